//! The server process: configuration, log, signals, runtime.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout_at};

use super::{CommandResult, log};
use crate::config::{AdminToken, Config, WriteKeys};
use crate::listen;
use crate::metrics::Metrics;
use crate::server::{self, Listeners};
use crate::store::Store;

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
    let admin = match config.admin_listen {
        None => None,
        Some(address) => Some(
            listen::listen(address.ip(), address.port(), config.reuse_port)
                .map_err(|error| format!("can't listen on ADMIN_LISTEN {address}: {error}"))?,
        ),
    };
    if config.admin_token.is_closed() && io::stderr().is_terminal() {
        let address = admin.as_ref().unwrap_or(&listener).local_addr()?;
        make_token(&config.admin_token, server::reachable(address))?;
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), changed_settings = config.text.changed, "starting");
    tracing::debug!(settings = config.text.all, "all settings");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(config.workers).enable_all().build()?;
    let shutdown = {
        let _context = runtime.enter();
        reload_on_hangup(config.write_keys.clone(), config.admin_token.clone())?;
        shutdown_signal()?
    };
    let served = runtime.block_on(server::run(config, store, Listeners { reports: listener, admin }, shutdown));
    // Does not wait for tasks. All reports are in report files by now.
    runtime.shutdown_background();
    Ok(served?)
}

/// Makes a token for this run, and prints a URL that contains it. Only on a terminal: the token must not get into logs.
fn make_token(admin_token: &AdminToken, address: SocketAddr) -> io::Result<()> {
    let random = [(); 4].map(|()| getrandom::u64());
    let token = random.into_iter().map(|n| Ok(format!("{:016x}", n?))).collect::<io::Result<String>>()?;
    // The fragment of a URL never reaches a server or a log. The page logs in with it.
    writeln!(io::stderr(), "To see the reports, open http://{address}/#token={token}")?;
    admin_token.set(token.into());
    Ok(())
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

/// Reloads the write keys and the admin token with each SIGHUP. All other settings need a restart.
fn reload_on_hangup(keys: WriteKeys, token: AdminToken) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let (keys, token) = (keys.clone(), token.clone());
            // Not on a request thread: the disk of the files may not respond.
            let reload = thread::Builder::new().name("reload".to_owned()).spawn(move || reload(&keys, &token));
            if let Err(error) = reload {
                tracing::error!(%error, "{NOT_RELOADED}");
            }
        }
    });
    Ok(())
}

const NOT_RELOADED: &str = "can't reload the write keys and the admin token; keeping the current ones";

fn reload(keys: &WriteKeys, token: &AdminToken) {
    match Config::from_env() {
        // Without keys, everybody could send reports. That takes a restart.
        Ok(config) if config.write_keys.is_empty() && !keys.is_empty() => {
            tracing::error!("{NOT_RELOADED}: there are no new keys");
        }
        Ok(config) => {
            let count = keys.replace_with(&config.write_keys);
            // The token of this run stays if there is no new one.
            if !config.admin_token.is_closed() {
                token.replace_with(&config.admin_token);
            }
            tracing::info!(keys = count, "write keys and admin token reloaded");
        }
        Err(error) => tracing::error!(%error, "{NOT_RELOADED}"),
    }
}
