//! `netwatch-server query`: the reports that match a filter.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use super::reading::{Child, Out, ShownProgress, closed_pipe_is_no_error, finish, open};
use super::{CommandResult, Usage};
use crate::query::{Filter, Format, Incomplete, Order, Output, Path, Query, ReportTime, TimeRange, parse_time};

/// Which times are wanted.
#[derive(Debug, Clone, Args)]
pub(super) struct RangeArgs {
    #[command(flatten)]
    limits: LimitArgs,
    /// The member with a report's own time, in RFC 3339 or milliseconds since 1970. A report without it counts by the
    /// time at which its batch was received [default: ._received_at]
    #[arg(long, value_name = "PATH")]
    time: Option<Path>,
}

/// The limits of a time range.
#[derive(Debug, Clone, Args)]
pub(super) struct LimitArgs {
    /// Only reports from this time on: RFC 3339, a date (UTC), or an age such as 15m or 2d
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) since: Option<Timestamp>,
    /// Only reports up to this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) until: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    #[command(flatten)]
    range: RangeArgs,
    /// The order of the batches, by the time of their first report
    #[arg(long, value_enum, default_value_t)]
    order: Order,
    /// Print at most this many values
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The format of the output
    #[arg(long, value_enum, default_value = "ndjson")]
    format: Format,
    /// The data directory [default: DATA_DIR]
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    child: Child,
    /// A filter in jq's language, such as '.geo.country == "DE"'. `true` prints the report, `false` and `null` do not,
    /// and any other value is printed itself [default: all reports]
    #[arg(value_name = "FILTER", value_parser = Filter::parse)]
    filter: Option<Filter>,
}

fn time(text: &str) -> Result<Timestamp, String> {
    parse_time(text, Timestamp::now())
}

impl LimitArgs {
    pub(super) fn range(&self) -> Result<TimeRange, Usage> {
        match (self.since, self.until) {
            (Some(since), Some(until)) if since > until => {
                Err(Usage(format!("--since {since} is later than --until {until}")))
            }
            (since, until) => Ok(TimeRange { since, until }),
        }
    }
}

impl RangeArgs {
    pub(super) fn range(&self) -> Result<TimeRange, Usage> {
        self.limits.range()
    }

    pub(super) fn report_time(&self) -> ReportTime {
        self.time.clone().map_or(ReportTime::Received, ReportTime::Member)
    }
}

pub(super) fn run(args: QueryArgs) -> CommandResult {
    args.child.start()?;
    let range = args.range.range()?;
    let time = args.range.report_time();
    let (order, limit, filter) = (args.order, args.limit, args.filter);
    let mut query = Query { range, time, order, limit, filter, as_frames: false };
    // Report files are compressed already.
    query.as_frames = args.child.compresses_to_zstd() && args.format == Format::Ndjson && query.is_everything();
    let store = open(args.dir)?;
    let (incomplete, progress) = (Incomplete::default(), ShownProgress::new());
    let out = if query.as_frames { Out::plain()? } else { Out::open(&args.child)? };
    let mut output = Output::new(args.format, out, args.limit);
    let done = query.run(&store, &mut output, &incomplete, &|now| progress.update(now));
    progress.finish();
    let printed = done.and_then(|()| output.finish()).and_then(|(out, notice)| {
        notice.into_iter().for_each(|notice| eprintln!("netwatch-server: {notice}"));
        out.finish()
    });
    closed_pipe_is_no_error(printed)?;
    finish(&incomplete)
}
