//! `netwatch-server tail`: the latest reports, and those that arrive.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::CommandResult;
use super::reading::{Child, Out, closed_pipe_is_no_error, open};
use crate::query::{Evaluator, Filter, lines_of, run_line};
use crate::store::{BatchId, Store, StoredBatch};

/// Time between two looks at new reports. Reports come in many small groups.
const PAUSE: Duration = Duration::from_millis(20);

/// Time between two comments, from which a client and the proxies before it see that the connection is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A reader that blocks the output this long is too slow. It misses the reports that have arrived meanwhile.
const SLOW: Duration = Duration::from_millis(250);

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
    Ok(closed_pipe_is_no_error(tail(&store, &args))?)
}

fn tail(store: &Store, args: &TailArgs) -> io::Result<()> {
    let mut evaluator = args.filter.as_ref().map(Filter::evaluator);
    let mut out = Printer { out: Out::open(&args.child)?, format: args.format, last_write: Instant::now() };
    let (mut follow, batches, journals) = store.follow()?;
    for line in latest(store, &batches, &journals, evaluator.as_mut(), args.limit)? {
        out.line(&line)?;
    }
    out.flush()?;
    if !args.follow {
        return follow.failures().into_iter().map(io::Error::other).map(Err).next().unwrap_or(Ok(()));
    }
    loop {
        let silence = HEARTBEAT.saturating_sub(out.last_write.elapsed());
        follow.wait(silence, io::stdout().as_fd())?;
        let mut skipped = 0_u64;
        let mut is_slow = false;
        follow.read(&mut |block| {
            if is_slow {
                skipped += memchr::memchr_iter(b'\n', block).count() as u64;
                return Ok(());
            }
            let started = Instant::now();
            for line in lines_of(block) {
                run_line(evaluator.as_mut(), line, &mut |value| out.line(value))?;
            }
            out.flush()?;
            is_slow = args.format == TailFormat::Sse && started.elapsed() > SLOW;
            Ok(())
        })?;
        follow.failures().into_iter().for_each(|failure| eprintln!("netwatch-server: {failure}"));
        if skipped > 0 {
            out.skipped(skipped)?;
        }
        if out.last_write.elapsed() >= HEARTBEAT {
            out.heartbeat()?;
        }
        thread::sleep(PAUSE); // collects further groups of reports
    }
}

/// The last `limit` values, oldest first. Of a journal, only the part that was there before.
fn latest(
    store: &Store,
    batches: &[StoredBatch],
    journals: &BTreeMap<BatchId, u64>,
    mut evaluator: Option<&mut Evaluator>,
    limit: usize,
) -> io::Result<VecDeque<Vec<u8>>> {
    let mut latest: VecDeque<Vec<u8>> = VecDeque::new();
    for batch in batches.iter().rev() {
        if latest.len() >= limit {
            break;
        }
        let Some(open) = store.open_batch(batch)? else { continue };
        let end = journals.get(&batch.id()).copied().filter(|_| open.is_journal).unwrap_or(u64::MAX);
        let left = limit - latest.len();
        let mut last: VecDeque<Vec<u8>> = VecDeque::new();
        let (mut lines, mut block, mut offset) = (open.lines()?, Vec::new(), 0);
        while offset < end {
            if let Err(error) = lines.next_lines(&mut block) {
                eprintln!("netwatch-server: {}: {error}", open.name);
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
                run_line(evaluator.as_deref_mut(), line, &mut |value| {
                    last.push_back(value.to_vec());
                    if last.len() > left {
                        last.pop_front();
                    }
                    Ok(())
                })?;
            }
        }
        last.into_iter().rev().for_each(|line| latest.push_front(line));
    }
    Ok(latest)
}

struct Printer {
    out: Out,
    format: TailFormat,
    last_write: Instant,
}

impl Printer {
    /// Prints a value without its line break.
    fn line(&mut self, value: &[u8]) -> io::Result<()> {
        match self.format {
            TailFormat::Ndjson => self.out.write_all(value)?,
            TailFormat::Sse => {
                self.out.write_all(b"data: ")?;
                self.out.write_all(value)?;
                self.out.write_all(b"\n")?;
            }
        }
        self.last_write = Instant::now();
        self.out.write_all(b"\n")
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
        self.out.flush()
    }
}
