//! `netwatch-server recover`: recovery without a server.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::{CommandResult, log};
use crate::config::Config;
use crate::store::{Compression, Recovered, Store, Unrecognized, recover};

pub(super) fn run(dir: Option<PathBuf>) -> CommandResult {
    let config = Config::from_env()?;
    let metrics = Arc::default();
    let _log = log::init(&config, &metrics);
    let dir = dir.unwrap_or_else(|| config.data_dir.clone());
    if !dir.is_dir() {
        return Err(format!("there is no directory {}", dir.display()).into());
    }
    let store = Store::open(&dir, &metrics)?;
    let Recovered { batches, reports, corrupt_bytes, failed } =
        recover(&store, Compression::from(&config), &mut Unrecognized::new())?;
    // Not `println`, which panics if the output cannot be written.
    writeln!(
        io::stdout(),
        "{batches} journals recovered with {reports} reports, {corrupt_bytes} corrupt bytes moved to quarantine, \
         {failed} journals left for a retry"
    )?;
    if failed > 0 { Err("not all journals could be recovered".into()) } else { Ok(()) }
}
