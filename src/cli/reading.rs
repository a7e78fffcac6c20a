//! What the commands that read reports have in common: the directory, the output, the progress, the limits of a child
//! process of the server.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use flate2::write::GzEncoder;
use indicatif::{ProgressBar, ProgressStyle};
use procfs::process::Process;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, nice, set_parent_process_death_signal, setrlimit};

use super::{CommandResult, Partial, Usage};
use crate::config::Config;
use crate::query::{Incomplete, Progress};
use crate::store::Store;

/// Address space that a child process may use beyond what it uses at its start. Most of it is reserved by threads for
/// their stacks, and never touched.
const CHILD_ADDRESS_SPACE: u64 = 512 << 20;

/// A query that takes longer shows its progress.
const QUIET: Duration = Duration::from_secs(1);

/// For child processes of the server. Not for users.
#[derive(Debug, Clone, Args)]
pub(super) struct Child {
    /// Limit this process: lowest priority, memory, this many seconds of CPU time, and it dies with its parent
    #[arg(long, hide = true, value_name = "CPU_SECONDS", num_args = 0..=1, require_equals = true)]
    child: Option<Option<u64>>,
    /// Compress the output
    #[arg(long, hide = true, value_enum)]
    compress: Option<Compress>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compress {
    Zstd,
    Gzip,
}

impl Child {
    pub(super) fn compresses_to_zstd(&self) -> bool {
        matches!(self.compress, Some(Compress::Zstd))
    }

    /// Applies the limits.
    pub(super) fn start(&self) -> io::Result<()> {
        let Some(cpu_seconds) = self.child else { return Ok(()) };
        set_parent_process_death_signal(Some(Signal::KILL))?;
        nice(19)?;
        // The allocator has reserved address space already. The server tells it to reserve little.
        let pages = Process::myself().and_then(|this| this.statm()).map_or(0, |memory| memory.size);
        limit(Resource::As, pages * procfs::page_size() + CHILD_ADDRESS_SPACE)?;
        if let Some(seconds) = cpu_seconds {
            limit(Resource::Cpu, seconds)?;
        }
        // If the memory of the container is exhausted, this process is killed and not the server. Without /proc, the
        // limit of the address space has to be enough.
        drop(fs::write("/proc/self/oom_score_adj", "1000"));
        Ok(())
    }
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
    Ok(setrlimit(resource, Rlimit { current: Some(maximum), maximum: Some(maximum) })?)
}

/// Opens the data directory `dir`, or the one of the configuration.
pub(super) fn open(dir: Option<PathBuf>) -> Result<Store, Box<dyn std::error::Error>> {
    let dir = dir.map_or_else(|| Config::from_env().map(|config| config.data_dir), Ok)?;
    if !dir.is_dir() {
        return Err(Usage(format!("there is no directory {}", dir.display())).into());
    }
    Ok(Store::open_existing(&dir)?)
}

/// Standard output, perhaps compressed. Not `io::Stdout`, which looks for line breaks in everything.
pub(super) enum Out {
    Plain(BufWriter<File>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
    Gzip(GzEncoder<BufWriter<File>>),
}

impl Out {
    pub(super) fn plain() -> io::Result<Self> {
        Ok(Self::Plain(Self::stdout()?))
    }

    fn stdout() -> io::Result<BufWriter<File>> {
        Ok(BufWriter::with_capacity(64 << 10, File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }

    pub(super) fn open(child: &Child) -> io::Result<Self> {
        let stdout = Self::stdout()?;
        Ok(match child.compress {
            None => Self::Plain(stdout),
            Some(Compress::Zstd) => Self::Zstd(zstd::Encoder::new(stdout, 1)?),
            Some(Compress::Gzip) => Self::Gzip(GzEncoder::new(stdout, flate2::Compression::fast())),
        })
    }

    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Zstd(out) => out.finish(),
            Self::Gzip(out) => out.finish(),
        }?
        .flush()
    }

    fn inner(&mut self) -> &mut dyn Write {
        match self {
            Self::Plain(out) => out,
            Self::Zstd(out) => out,
            Self::Gzip(out) => out,
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            // Without a detour through the trait object for large blocks.
            Self::Plain(out) => out.write(bytes),
            _ => self.inner().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner().flush()
    }
}

/// The progress of a command, on a terminal. Nothing is shown in the first second, in a pipe, or if the output itself
/// goes to the terminal.
#[derive(Debug)]
pub(super) struct ShownProgress {
    started: Instant,
    is_shown: bool,
    bar: OnceLock<ProgressBar>,
}

impl ShownProgress {
    pub(super) fn new() -> Self {
        let is_shown = io::stderr().is_terminal() && !io::stdout().is_terminal();
        Self { started: Instant::now(), is_shown, bar: OnceLock::new() }
    }

    pub(super) fn update(&self, progress: Progress) {
        if !self.is_shown || self.started.elapsed() < QUIET {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            let style = ProgressStyle::with_template("{bar:40} {pos} of {len} files, {eta} left");
            ProgressBar::new(progress.total as u64).with_style(style.expect("the template is valid"))
        });
        bar.set_position(progress.done as u64);
    }

    pub(super) fn finish(&self) {
        self.bar.get().into_iter().for_each(ProgressBar::finish_and_clear);
    }
}

/// If nobody reads the output any more, the command has done its work.
pub(super) fn closed_pipe_is_no_error(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Names what is missing in the output, and returns an error if anything is.
pub(super) fn finish(incomplete: &Incomplete) -> CommandResult {
    let lines = incomplete.lines();
    if lines.is_empty() { Ok(()) } else { Err(Partial(lines.join("\n")).into()) }
}
