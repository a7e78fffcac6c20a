//! `netwatch-server stats`: statistics of a number in the reports.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;

use super::query::RangeArgs;
use super::reading::{Child, Out, ShownProgress, closed_pipe_is_no_error, finish, open};
use super::{CommandResult, Usage};
use crate::config;
use crate::query::stats::{self, Format, MAX_STEPS, Options};
use crate::query::{Filter, Incomplete, Path};

/// Maximum number of quantiles.
const MAX_QUANTILES: usize = 20;

/// Maximum of `--top`.
const MAX_TOP: u64 = 1_000;

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Where the numbers are, such as '.hosts[].history[].latency'
    #[arg(value_name = "PATH")]
    path: Path,
    /// Where the group of each number is, such as '.hosts[].name': in the same element of the last array that both
    /// paths share. If there are several, the number counts for each of them
    #[arg(long, value_name = "PATH")]
    by: Option<Path>,
    /// The length of a time step, such as 1m [default: no steps]
    #[arg(long, value_name = "DURATION", value_parser = step)]
    step: Option<NonZeroU32>,
    /// Quantiles from 0 to 1, separated by commas
    #[arg(long, value_name = "NUMBERS", value_parser = quantile, value_delimiter = ',', default_value = ".5,.95,.99")]
    quantiles: Vec<f64>,
    /// Values that count as errors, unless they are null, such as '.hosts[].history[].error'
    #[arg(long, value_name = "PATH")]
    errors: Option<Path>,
    /// Values of which the distinct ones are counted, within a few percent
    #[arg(long, value_name = "PATH")]
    distinct: Option<Path>,
    /// Show this many groups, largest first. The rest is one group, `other`
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=MAX_TOP))]
    top: u64,
    /// Only reports that match this filter in jq's language
    #[arg(long = "where", value_name = "FILTER", value_parser = Filter::parse)]
    filter: Option<Filter>,
    #[command(flatten)]
    range: RangeArgs,
    /// The format of the output
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// The data directory [default: DATA_DIR]
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    child: Child,
}

fn quantile(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "not a number from 0 to 1, such as .95".to_owned())
}

fn step(text: &str) -> Result<NonZeroU32, String> {
    let step = config::parse_age(text).ok().filter(|step| step.subsec_nanos() == 0);
    let step = step.and_then(|step| NonZeroU32::new(u32::try_from(step.as_secs()).ok()?));
    step.ok_or_else(|| "not a duration of whole seconds, such as 30s, 1m or 1d".to_owned())
}

pub(super) fn run(args: StatsArgs) -> CommandResult {
    args.child.start()?;
    let range = args.range.range()?;
    if args.quantiles.len() > MAX_QUANTILES {
        return Err(Usage(format!("there are more than {MAX_QUANTILES} quantiles")).into());
    }
    if let (Some(since), Some(until), Some(step)) = (range.since, range.until, args.step) {
        let steps = until.duration_since(since).as_secs() / i64::from(step.get());
        if steps >= MAX_STEPS as i64 {
            return Err(Usage(format!("--step is too short: there would be more than {MAX_STEPS} steps")).into());
        }
    }
    let time = args.range.report_time();
    let options = Options {
        path: args.path,
        by: args.by,
        errors: args.errors,
        distinct: args.distinct,
        step_seconds: args.step,
        quantiles: args.quantiles,
        top: args.top as usize,
        time: time.path(),
        range,
    };
    let store = open(args.dir)?;
    let (incomplete, progress) = (Incomplete::default(), ShownProgress::new());
    let done = stats::run(&store, &options, &time, args.filter.as_ref(), &incomplete, &|now| progress.update(now));
    progress.finish();
    let summary = done?.finish();
    // The other formats say so themselves.
    if summary.limited && matches!(args.format, Format::Csv | Format::Svg) {
        incomplete.skip(
            "too many groups, steps or values for the memory; the rest is one group, or only in totals".to_owned(),
        );
    }
    let mut out = Out::open(&args.child)?;
    closed_pipe_is_no_error(summary.write(args.format, &mut out).and_then(|()| out.finish()))?;
    finish(&incomplete)
}
