//! `netwatch-server ls`: the files that contain reports.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use super::CommandResult;
use super::query::LimitArgs;
use super::reading::{closed_pipe_is_no_error, finish, open};
use crate::query::{Incomplete, TimeRange};
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    #[command(flatten)]
    range: LimitArgs,
    /// The format of the output
    #[arg(long, value_enum, default_value = "table")]
    format: LsFormat,
    /// The data directory [default: DATA_DIR]
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LsFormat {
    /// Columns, and a line with the totals
    Table,
    /// One JSON object per line
    Ndjson,
}

/// One line of the list. Times in RFC 3339.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    name: &'a str,
    first: String,
    last: Option<String>,
    bytes: u64,
}

pub(super) fn run(args: LsArgs) -> CommandResult {
    let range = args.range.range()?;
    let store = open(args.dir)?;
    let incomplete = Incomplete::default();
    closed_pipe_is_no_error(list(&store, args.format, range, &incomplete))?;
    finish(&incomplete)
}

fn list(store: &Store, format: LsFormat, range: TimeRange, incomplete: &Incomplete) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut files, mut bytes) = (0, 0);
    for batch in store.stored_batches(range.until.map(SystemTime::from))? {
        let open = match store.open_batch(&batch) {
            Ok(Some(open)) => open,
            Ok(None) => continue,
            Err(error) => {
                incomplete.skip(error.to_string());
                continue;
            }
        };
        if !range.overlaps(batch.id().first(), open.last) {
            continue;
        }
        files += 1;
        bytes += open.bytes;
        let (first, last) = (readable(batch.id().first()), open.last.map(readable));
        match format {
            LsFormat::Table => {
                let last = last.unwrap_or_else(|| "being written".to_owned());
                writeln!(out, "{first}  {last:<20}  {:>9}  {}", ByteSize(open.bytes).display().iec_short(), open.name)?;
            }
            LsFormat::Ndjson => {
                serde_json::to_writer(&mut out, &Listed { name: &open.name, first, last, bytes: open.bytes })?;
                out.write_all(b"\n")?;
            }
        }
    }
    if format == LsFormat::Table {
        writeln!(out, "{files} files, {}", ByteSize(bytes).display().iec_short())?;
    }
    out.flush()
}

fn readable(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "unknown".to_owned(), |time| format!("{time:.0}"))
}
