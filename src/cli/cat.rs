//! `netwatch-server cat`: the reports in files.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::reading::{Child, Out, ShownProgress, closed_pipe_is_no_error, finish, open};
use super::{CommandResult, Partial};
use crate::query::{Format, Incomplete, Output, Query};
use crate::store::{Encoding, LineReader};

#[derive(Debug, Args)]
pub(super) struct CatArgs {
    /// The data directory [default: DATA_DIR]
    #[arg(long, conflicts_with = "files")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    child: Child,
    /// Report files, or journals, whose names end with .jsonl [default: all of the data directory]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(super) fn run(args: CatArgs) -> CommandResult {
    args.child.start()?;
    let mut out = Out::open(&args.child)?;
    if !args.files.is_empty() {
        let mut failed = Vec::new();
        for path in &args.files {
            match print(path, &mut out) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => failed.push(format!("{}: {error}", path.display())),
                Ok(()) => {}
            }
        }
        closed_pipe_is_no_error(out.finish())?;
        return if failed.is_empty() { Ok(()) } else { Err(Partial(failed.join("\n")).into()) };
    }
    let store = open(args.dir)?;
    let (incomplete, progress) = (Incomplete::default(), ShownProgress::new());
    let mut output = Output::new(Format::Ndjson, out, None);
    let done = Query::all().run(&store, &mut output, &incomplete, &|now| progress.update(now));
    progress.finish();
    closed_pipe_is_no_error(done.and_then(|()| output.finish()).and_then(|(out, _)| out.finish()))?;
    finish(&incomplete)
}

fn print(path: &Path, out: &mut Out) -> io::Result<()> {
    let file = File::open(path)?;
    let is_journal = path.extension().is_some_and(|extension| extension == "jsonl");
    let mut lines = LineReader::new(&file, if is_journal { Encoding::Journal } else { Encoding::Zstd })?;
    let mut block = Vec::new();
    loop {
        lines.next_lines(&mut block)?;
        if block.is_empty() {
            break;
        }
        out.write_all(&block)?;
    }
    match lines.corrupt_bytes() {
        0 => Ok(()),
        bytes => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{bytes} corrupt bytes"))),
    }
}
