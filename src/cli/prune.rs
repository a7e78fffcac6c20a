//! `netwatch-server prune`: retention without a server.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{CommandResult, log};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::{PruneMode, Pruned, PrunedFile, Retention, Store};

pub(super) fn run(dry_run: bool, limits: Retention, dir: Option<PathBuf>) -> CommandResult {
    let config = Config::from_env()?;
    let _log = log::init(&config, &Metrics::default());
    let settings = Retention::from(&config);
    let retention =
        Retention { max_age: limits.max_age.or(settings.max_age), max_bytes: limits.max_bytes.or(settings.max_bytes) };
    if !retention.is_limited() {
        return Err("there is no limit: set --max-age, --max-bytes, RETENTION_MAX_AGE or RETENTION_MAX_BYTES".into());
    }
    let dir = dir.unwrap_or_else(|| config.data_dir.clone());
    if !dir.is_dir() {
        return Err(format!("there is no directory {}", dir.display()).into());
    }
    let store = Store::open_existing(&dir)?;
    store.scan(&mut || true)?;
    let (mode, done) = match dry_run {
        true => (PruneMode::DryRun, "would be deleted"),
        false => (PruneMode::Remove, "deleted"),
    };
    // Not `println`, which panics if the output cannot be written.
    let mut out = io::stdout().lock();
    let Pruned { files, bytes, failed } = store.prune(retention, mode, SystemTime::now(), &mut |file| {
        let PrunedFile { path, bytes, age } = file;
        writeln!(out, "{}: {done}, {bytes} bytes, {} old", path.display(), readable(*age))?;
        Ok(ControlFlow::Continue(()))
    })?;
    let kept = store.catalog().totals();
    writeln!(out, "{files} files {done}, {bytes} bytes; {} files kept, {} bytes", kept.files, kept.bytes)?;
    if failed > 0 { Err("not all files could be deleted".into()) } else { Ok(()) }
}

/// An age in the units that people use for it.
fn readable(age: Duration) -> String {
    let minutes = age.as_secs() / 60;
    match (minutes / 60 / 24, minutes / 60 % 24, minutes % 60) {
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}
