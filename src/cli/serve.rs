//! The server process: configuration, log, signals, runtime.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout_at};

use super::{CommandResult, log};
use crate::config::{Config, WriteKeys};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::{listen, server};

/// Signals within this time count as one. `timeout` signals a process and then its process group.
const SAME_SHUTDOWN: Duration = Duration::from_millis(50);

pub(super) fn run() -> CommandResult {
    let config = Config::from_env()?;
    let metrics = Arc::new(Metrics::new(config.workers));
    let _log = log::init(&config, &metrics);
    let store = Store::open(&config.data_dir, &metrics)?;
    let listener =
        match listen::inherited().map_err(|error| format!("can't listen on the socket of LISTEN_FDS: {error}"))? {
            Some(listener) => listener,
            None => listen::listen(config.host, config.port, config.reuse_port)
                .map_err(|error| format!("can't listen on HOST {} PORT {}: {error}", config.host, config.port))?,
        };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), changed_settings = config.text.changed, "starting");
    tracing::debug!(settings = config.text.all, "all settings");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(config.workers).enable_all().build()?;
    let shutdown = {
        let _context = runtime.enter();
        reload_on_hangup(config.write_keys.clone())?;
        shutdown_signal()?
    };
    let served = runtime.block_on(server::run(config, store, listener, shutdown));
    // Does not wait for tasks. All reports are in report files by now.
    runtime.shutdown_background();
    Ok(served?)
}

/// Resolves with the first SIGTERM or SIGINT. A second signal ends the process.
fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        either(&mut term, &mut int).await;
        tokio::spawn(async move {
            let first = Instant::now();
            while timeout_at(first + SAME_SHUTDOWN, either(&mut term, &mut int)).await.is_ok() {}
            either(&mut term, &mut int).await;
            // Without a word in the log: nothing may come between a signal and its effect.
            std::process::exit(1);
        });
    })
}

async fn either(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Reloads the write keys with each SIGHUP. All other settings need a restart.
fn reload_on_hangup(keys: WriteKeys) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let keys = keys.clone();
            // Not on a request thread: the disk of the files may not respond.
            let reload = thread::Builder::new().name("reload".to_owned()).spawn(move || reload(&keys));
            if let Err(error) = reload {
                tracing::error!(%error, "{NOT_RELOADED}");
            }
        }
    });
    Ok(())
}

const NOT_RELOADED: &str = "can't reload the write keys; keeping the current ones";

fn reload(keys: &WriteKeys) {
    match Config::from_env() {
        // Without keys, everybody could send reports. That takes a restart.
        Ok(config) if config.write_keys.is_empty() && !keys.is_empty() => {
            tracing::error!("{NOT_RELOADED}: there are no new keys");
        }
        Ok(config) => {
            let count = keys.replace_with(&config.write_keys);
            tracing::info!(keys = count, "write keys reloaded");
        }
        Err(error) => tracing::error!(%error, "{NOT_RELOADED}"),
    }
}
