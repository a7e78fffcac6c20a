//! `netwatch-server verify`: checks every file of a data directory.

use std::io::{self, Write};
use std::path::PathBuf;

use super::CommandResult;
use crate::config::Config;
use crate::store::{Verdict, verify};

pub(super) fn run(dir: Option<PathBuf>) -> CommandResult {
    let dir = dir.map_or_else(|| Config::from_env().map(|config| config.data_dir), Ok)?;
    // Not `println`, which panics if the output cannot be written.
    let mut out = io::stdout().lock();
    let (mut files, mut total, mut corrupt) = (0, 0, 0);
    let print = |Verdict { path, reports }: Verdict| {
        files += 1;
        match reports {
            Ok(reports) => {
                total += reports;
                writeln!(out, "{}: valid, {reports} reports", path.display())
            }
            Err(reason) => {
                corrupt += 1;
                writeln!(out, "{}: CORRUPT: {reason}", path.display())
            }
        }
    };
    verify(&dir, print).map_err(|error| format!("can't verify {}: {error}", dir.display()))?;
    if files == 0 {
        writeln!(out, "{} contains no report files and no journals", dir.display())?;
        return Ok(());
    }
    let verdict = if corrupt == 0 { "all valid".to_owned() } else { format!("{corrupt} corrupt") };
    writeln!(out, "{files} files checked, {total} reports, {verdict}")?;
    if corrupt == 0 { Ok(()) } else { Err(format!("{corrupt} of {files} files are corrupt").into()) }
}
