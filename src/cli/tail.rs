//! `netwatch-server tail`: the latest reports, and those that arrive.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::CommandResult;
use super::reading::{Child, Out, closed_pipe_is_no_error, finish, open};
use crate::query::{Evaluator, Filter, Incomplete, lines_of, run_line};
use crate::store::{Follow, Store, StoredBatch};

/// Time between two looks at new reports. Reports come in many small groups.
const PAUSE: Duration = Duration::from_millis(20);

/// Time between two comments, from which a client and the proxies before it see that the connection is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A reader that blocks the output this long is too slow. It misses the reports that have arrived meanwhile.
const SLOW: Duration = Duration::from_millis(250);

/// Maximum time of a filter for one report.
const FILTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Reports that are searched for the latest ones. With a filter that matches rarely, a tail should not begin by reading
/// the whole archive.
const LATEST_BYTES: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// Wait for further reports and print them
    #[arg(short, long)]
    follow: bool,
    /// Begin with this many of the latest reports
    #[arg(long, short = 'n', value_name = "N", default_value_t = 10)]
    limit: usize,
    /// The data directory [default: DATA_DIR]
    #[arg(long)]
    dir: Option<PathBuf>,
    #[arg(long, value_enum, hide = true, default_value = "ndjson")]
    format: TailFormat,
    #[command(flatten)]
    child: Child,
    /// A filter in jq's language, as for `query` [default: all reports]
    #[arg(value_name = "FILTER", value_parser = Filter::parse)]
    filter: Option<Filter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TailFormat {
    Ndjson,
    /// Server-sent events. A slow reader misses reports.
    Sse,
}

pub(super) fn run(args: TailArgs) -> CommandResult {
    args.child.start()?;
    let store = open(args.dir.clone())?;
    let incomplete = Incomplete::default();
    closed_pipe_is_no_error(tail(&store, &args, &incomplete))?;
    finish(&incomplete)
}

fn tail(store: &Store, args: &TailArgs, incomplete: &Incomplete) -> io::Result<()> {
    let mut evaluator = args.filter.as_ref().map(Filter::evaluator);
    let mut out = Printer::new(args)?;
    let watchdog = Watchdog::start(args.filter.is_some())?;
    let (mut follow, batches) = store.follow()?;
    for line in latest(store, &batches, &follow, evaluator.as_mut(), &watchdog, args.limit, incomplete)? {
        out.line(&line)?;
    }
    out.flush()?;
    if !args.follow {
        return Ok(());
    }
    let mut named = 0;
    loop {
        let silence = HEARTBEAT.saturating_sub(out.last_write.elapsed());
        follow.wait(silence, io::stdout().as_fd())?;
        let mut skipped = 0_u64;
        follow.read(&mut |block| {
            if out.is_slow() {
                skipped += memchr::memchr_iter(b'\n', block).count() as u64;
                return Ok(());
            }
            for line in lines_of(block) {
                let _running = watchdog.watch();
                run_line(evaluator.as_mut(), line, incomplete, &mut |value| out.line(value))?;
            }
            out.flush()
        })?;
        follow.failures().into_iter().for_each(|failure| incomplete.skip(failure));
        // Each problem is named when it happens first.
        let problems = incomplete.lines();
        problems.iter().skip(named).for_each(|problem| eprintln!("netwatch-server: {problem}"));
        named = problems.len();
        if skipped > 0 {
            out.skipped(skipped)?;
        }
        if out.last_write.elapsed() >= HEARTBEAT {
            out.heartbeat()?;
        }
        out.blocked = Duration::ZERO;
        thread::sleep(PAUSE); // collects further groups of reports
    }
}

/// The last `limit` values, oldest first, of at most [`LATEST_BYTES`] of reports. Of a journal, only the part that was
/// there before.
fn latest(
    store: &Store,
    batches: &[StoredBatch],
    follow: &Follow<'_>,
    mut evaluator: Option<&mut Evaluator>,
    watchdog: &Watchdog,
    limit: usize,
    incomplete: &Incomplete,
) -> io::Result<VecDeque<Vec<u8>>> {
    let mut latest: VecDeque<Vec<u8>> = VecDeque::new();
    let mut examined = 0;
    for batch in batches.iter().rev() {
        if latest.len() >= limit || examined >= LATEST_BYTES {
            break;
        }
        let opened;
        let (open, end) = match follow.existing(batch.id()) {
            Some(existing) => existing,
            None => match store.open_batch(batch) {
                Ok(Some(open)) => {
                    opened = open;
                    (&opened, u64::MAX)
                }
                Ok(None) => continue,
                Err(error) => {
                    incomplete.skip(error.to_string());
                    continue;
                }
            },
        };
        let left = limit - latest.len();
        let mut last: VecDeque<Vec<u8>> = VecDeque::new();
        let (mut lines, mut block, mut offset) = (open.lines()?, Vec::new(), 0);
        while offset < end {
            if let Err(error) = lines.next_lines(&mut block) {
                incomplete.skip(format!("{}: {error}", open.name));
                break;
            }
            if block.is_empty() {
                break;
            }
            for line in lines_of(&block) {
                offset += line.len() as u64;
                if offset > end {
                    break;
                }
                let _running = watchdog.watch();
                run_line(evaluator.as_deref_mut(), line, incomplete, &mut |value| {
                    last.push_back(value.to_vec());
                    if last.len() > left {
                        last.pop_front();
                    }
                    Ok(())
                })?;
            }
        }
        examined += offset.min(end);
        last.into_iter().rev().for_each(|line| latest.push_front(line));
    }
    Ok(latest)
}

/// Ends the process if the filter takes too long for one report. A tail has no limit for all of its time.
struct Watchdog {
    started: Instant,
    /// When the filter has begun with its report, in milliseconds since `started`, plus 1. 0 if it is not running.
    busy_since_ms: Arc<AtomicU64>,
}

impl Watchdog {
    fn start(is_needed: bool) -> io::Result<Self> {
        let this = Self { started: Instant::now(), busy_since_ms: Arc::default() };
        if is_needed {
            let (started, busy_since_ms) = (this.started, Arc::clone(&this.busy_since_ms));
            thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
                loop {
                    thread::sleep(Duration::from_secs(1)); // the precision of the limit
                    // Relaxed, here and below: the value is only compared with the clock.
                    let busy = busy_since_ms.load(Ordering::Relaxed);
                    let busy = busy.checked_sub(1).map(Duration::from_millis);
                    if busy.is_some_and(|since| started.elapsed().saturating_sub(since) > FILTER_TIMEOUT) {
                        eprintln!("netwatch-server: the filter takes more than {FILTER_TIMEOUT:?} for one report");
                        process::exit(1);
                    }
                }
            })?;
        }
        Ok(this)
    }

    fn watch(&self) -> Running<'_> {
        self.busy_since_ms.store(self.started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        Running(&self.busy_since_ms)
    }
}

/// Dropping it tells the watchdog that the filter has ended.
struct Running<'a>(&'a AtomicU64);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

struct Printer {
    out: Out,
    format: TailFormat,
    last_write: Instant,
    /// How long the output was blocked since the last look for new reports.
    blocked: Duration,
}

impl Printer {
    fn new(args: &TailArgs) -> io::Result<Self> {
        let out = Out::open(&args.child)?;
        Ok(Self { out, format: args.format, last_write: Instant::now(), blocked: Duration::ZERO })
    }

    /// Whether the reader of server-sent events cannot keep up.
    fn is_slow(&self) -> bool {
        self.format == TailFormat::Sse && self.blocked > SLOW
    }

    /// Prints a value without its line break.
    fn line(&mut self, value: &[u8]) -> io::Result<()> {
        let started = Instant::now();
        match self.format {
            TailFormat::Ndjson => self.out.write_all(value)?,
            TailFormat::Sse => {
                self.out.write_all(b"data: ")?;
                self.out.write_all(value)?;
                self.out.write_all(b"\n")?;
            }
        }
        self.out.write_all(b"\n")?;
        self.last_write = Instant::now();
        self.blocked += self.last_write - started;
        Ok(())
    }

    fn skipped(&mut self, reports: u64) -> io::Result<()> {
        write!(self.out, "event: skipped\ndata: {{\"reports\":{reports}}}\n\n")?;
        self.flush()
    }

    fn heartbeat(&mut self) -> io::Result<()> {
        self.last_write = Instant::now();
        if self.format == TailFormat::Sse {
            self.out.write_all(b": alive\n\n")?;
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let started = Instant::now();
        self.out.flush()?;
        self.blocked += started.elapsed();
        Ok(())
    }
}
