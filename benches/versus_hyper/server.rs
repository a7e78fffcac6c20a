//! A server as a child process: its start, its resource usage, and its orderly shutdown.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::time::clock_getcpuclockid;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

use crate::{Result, bare};

const NETWATCH: &str = env!("CARGO_BIN_EXE_netwatch-server");

/// The time limits for the start of a server, and for its shutdown with the final flush.
const START_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(60);

const LOG_TAIL_LINES: usize = 30;

/// The server on one side of the comparison.
#[derive(Clone)]
pub(crate) enum Side {
    Bare,
    Netwatch {
        binary: PathBuf,
        /// Environment variables and their values.
        settings: Vec<(String, String)>,
    },
}

impl Side {
    /// Runs in a separate directory, so that the server reads no `.env`, and with these settings only.
    fn command(&self, dir: &Path) -> Result<Command> {
        let mut command = match self {
            Self::Bare => Command::new(std::env::current_exe()?),
            Self::Netwatch { binary, .. } => Command::new(binary.canonicalize()?),
        };
        command.env_clear().current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        match self {
            Self::Bare => command.arg(bare::COMMAND),
            Self::Netwatch { settings, .. } => command
                .envs(settings.iter().map(|(name, value)| (name, value)))
                .envs([("HOST", "127.0.0.1"), ("PORT", "0"), ("LOG_FORMAT", "json")])
                .env("DATA_DIR", dir),
        };
        Ok(command)
    }
}

impl FromStr for Side {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        if text == "bare" {
            return Ok(Self::Bare);
        }
        let (mut binary, mut settings) = (PathBuf::from(NETWATCH), Vec::new());
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) => settings.push((name.into(), value.into())),
                None => binary = word.into(),
            }
        }
        Ok(Self::Netwatch { binary, settings })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare => f.write_str("bare hyper"),
            Self::Netwatch { binary, settings } => {
                let own = binary == Path::new(NETWATCH);
                write!(f, "{}", if own { "netwatch-server".into() } else { binary.to_string_lossy() })?;
                settings.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
            }
        }
    }
}

/// A running server.
pub(crate) struct Server {
    process: Process,
    address: SocketAddr,
    log: Log,
    dir: TempDir,
    stores_reports: bool,
}

impl Server {
    /// Starts a server with an empty directory in `parent`, and waits until it listens.
    pub(crate) fn start(side: &Side, parent: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
        let mut command = side.command(dir.path())?;
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let stderr = child.stderr.take().ok_or("stderr is not piped")?;
        let process = Process(child);
        let (sender, listening) = mpsc::channel();
        let log = Log::follow(stderr, sender);
        let Ok(address) = listening.recv_timeout(START_LIMIT) else {
            drop(process);
            return Err(format!("the server did not start in {START_LIMIT:?}; end of its log:\n{}", log.tail()).into());
        };
        let stores_reports = matches!(side, Side::Netwatch { .. });
        Ok(Self { process, address, log, dir, stores_reports })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills the server if it is running, and returns the end of its log.
    pub(crate) fn into_log(self) -> String {
        drop(self.process);
        self.log.tail()
    }

    /// The CPU time of the process so far, with a resolution of a nanosecond. Includes finished threads.
    ///
    /// This is the sum of the scheduler. `/proc/PID/stat` has the same times, but with a resolution of 10 ms. The sum
    /// of `/proc/PID/task/*/schedstat` does not include finished threads.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let clock = clock_getcpuclockid(nix::unistd::Pid::from_raw(self.process.0.id().cast_signed()))?;
        Ok(clock.now()?.into())
    }

    pub(crate) fn peak_rss_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id()))?;
        let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
        Ok(value.ok_or("no VmHWM in /proc/PID/status")?.trim().parse()?)
    }

    /// Shuts the server down and returns its total CPU time. Fails if the exit code is not 0.
    pub(crate) fn end(&mut self) -> Result<Duration> {
        let pid = Pid::from_child(&self.process.0);
        kill_process(pid, Signal::TERM)?;
        let asked = Instant::now();
        // With NOWAIT, the process stays a zombie, whose CPU clock can still be read.
        let exited = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), exited)?.is_none() {
            if asked.elapsed() > END_LIMIT {
                return Err(format!("the server is still running {END_LIMIT:?} after SIGTERM").into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        let cpu_time = self.cpu_time()?;
        let status = self.process.0.wait()?;
        if !status.success() {
            return Err(format!("the server exited with {status}").into());
        }
        Ok(cpu_time)
    }

    /// The number of lines in all report files. `None` for bare hyper, which stores nothing.
    pub(crate) fn stored_reports(&self) -> Result<Option<u64>> {
        if !self.stores_reports {
            return Ok(None);
        }
        let mut reports = 0;
        for entry in fs::read_dir(self.dir.path())? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(".jsonl.zst") {
                reports += count_lines(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Ok(Some(reports))
    }
}

fn count_lines(path: &Path) -> std::io::Result<u64> {
    let mut text = zstd::Decoder::new(File::open(path)?)?;
    let mut buffer = vec![0; 256 << 10];
    let mut lines = 0;
    loop {
        match text.read(&mut buffer)? {
            0 => return Ok(lines),
            read_bytes => lines += memchr::memchr_iter(b'\n', &buffer[..read_bytes]).count() as u64,
        }
    }
}

/// A child process that is killed when its owner is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail if the process has already exited, which is fine.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Reads a server's log continuously, so that the server never blocks on stderr. Keeps the last lines.
struct Log(JoinHandle<VecDeque<String>>);

impl Log {
    /// Sends the address of the server as soon as the log contains it.
    fn follow(stderr: ChildStderr, listening: Sender<SocketAddr>) -> Self {
        Self(thread::spawn(move || {
            let mut tail = VecDeque::new();
            for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
                if let Some(address) = listening_address(&line) {
                    // The receiver is gone if the server took too long.
                    listening.send(address).ok();
                }
                tail.push_back(line);
                if tail.len() > LOG_TAIL_LINES {
                    tail.pop_front();
                }
            }
            tail
        }))
    }

    /// Waits until the server exits.
    fn tail(self) -> String {
        let lines = self.0.join().unwrap_or_default();
        lines.iter().flat_map(|line| [line, "\n"]).collect()
    }
}

fn listening_address(line: &str) -> Option<SocketAddr> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = event.get("fields")?;
    if fields.get("message")? != "listening" {
        return None;
    }
    fields.get("address")?.as_str()?.parse().ok()
}
