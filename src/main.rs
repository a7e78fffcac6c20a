//! The command line: allocator, logging, signals; all else is in the library.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use netwatch_server::config::{self, Config, LogFormat};
use netwatch_server::http::write_keys::WriteKeys;
use netwatch_server::store::{self, Store};
use netwatch_server::{healthcheck, server};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout_at};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

// Under many small allocations by several threads it takes about half the time of the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes JSON reports over HTTP and leaves zstd-compressed JSONL files. Without a command it serves.
#[derive(Debug, Parser)]
#[command(version, after_help = config::help(), max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask the server of the same settings on this machine whether it is alive: exit code 0 if it is, else 1.
    Healthcheck,
    /// Turn journals that a dead server has left into report files, without serving: exit code 1 if one is kept.
    Recover {
        /// The data directory [default: DATA_DIR]
        dir: Option<PathBuf>,
    },
    /// Read every report file and journal and say which are sound: exit code 1 if one is not.
    Verify {
        /// The data directory [default: DATA_DIR]
        dir: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        None => serve(),
        Some(Command::Healthcheck) => healthcheck(),
        Some(Command::Recover { dir }) => recover(dir),
        Some(Command::Verify { dir }) => verify(dir),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netwatch-server: {error}");
            ExitCode::FAILURE
        }
    }
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn serve() -> Done {
    let config = Config::from_env()?;
    log_to_stderr(&config);
    let store = Store::open(&config.data_dir)?;
    let listener =
        match server::inherited().map_err(|error| format!("can't listen on what LISTEN_FDS names: {error}"))? {
            Some(listener) => listener,
            None => server::listen(config.host, config.port, config.reuse_port)
                .map_err(|error| format!("can't listen on HOST {} PORT {}: {error}", config.host, config.port))?,
        };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = config.effective, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.workers)
        .thread_keep_alive(SYNC_THREAD_KEEP_ALIVE)
        .enable_all()
        .build()?;
    let shutdown = {
        let _context = runtime.enter();
        reload_on_hangup(config.write_keys.clone())?;
        stop_signal()?
    };
    runtime.block_on(server::run(config, store, listener, shutdown))?;
    Ok(())
}

/// The thread that syncs journals stays: when the next sync comes, the system may have none to give.
const SYNC_THREAD_KEEP_ALIVE: Duration = Duration::from_secs(u32::MAX as u64);

/// One stop may be told twice: `timeout` signals a process and then its group.
const SAME_STOP: Duration = Duration::from_millis(50);

/// Resolves with the first SIGTERM or SIGINT. A second one ends the process.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        either(&mut term, &mut int).await;
        tokio::spawn(async move {
            let first = Instant::now();
            while timeout_at(first + SAME_STOP, either(&mut term, &mut int)).await.is_ok() {}
            either(&mut term, &mut int).await;
            tracing::error!("a second signal: ending at once; reports that are not on disk yet are lost");
            std::process::exit(1);
        });
    })
}

/// Reads the write keys again with each SIGHUP. What else has changed takes a restart.
fn reload_on_hangup(keys: WriteKeys) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match Config::from_env() {
                Ok(config) => {
                    let count = keys.replace_by(&config.write_keys);
                    tracing::info!(keys = count, "the write keys are read again");
                }
                Err(error) => tracing::error!(%error, "can't read the write keys again; those of before hold"),
            }
        }
    });
    Ok(())
}

async fn either(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

fn healthcheck() -> Done {
    let config = Config::from_env()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(healthcheck::run(config.host, config.port))?;
    Ok(())
}

fn recover(dir: Option<PathBuf>) -> Done {
    let config = Config::from_env()?;
    log_to_stderr(&config);
    let dir = dir.unwrap_or_else(|| config.data_dir.clone());
    if !dir.is_dir() {
        return Err(format!("there is no directory {}", dir.display()).into());
    }
    let store = Store::open(&dir)?;
    let recovered = store::recover::recover(&store, config.compression(), &mut HashSet::new())?;
    writeln!(
        io::stdout(),
        "{} journals with {} reports recovered, {} bytes put aside, {} journals kept for another try",
        recovered.journals,
        recovered.reports,
        recovered.quarantined_bytes,
        recovered.failed
    )?;
    if recovered.failed > 0 { Err("not all journals could be recovered".into()) } else { Ok(()) }
}

fn verify(dir: Option<PathBuf>) -> Done {
    let dir = dir.map_or_else(|| Config::from_env().map(|config| config.data_dir), Ok)?;
    let verdicts = store::verify::verify(&dir).map_err(|error| format!("can't read {}: {error}", dir.display()))?;
    // Not `println`, which panics when nobody takes it.
    let mut out = io::stdout();
    for store::verify::Verdict { path, reports } in &verdicts {
        match reports {
            Ok(reports) => writeln!(out, "{}: sound, {reports} reports", path.display())?,
            Err(reason) => writeln!(out, "{}: NOT SOUND: {reason}", path.display())?,
        }
    }
    match verdicts.iter().filter(|verdict| verdict.reports.is_err()).count() {
        0 => Ok(()),
        unsound => Err(format!("{unsound} of {} files are not sound", verdicts.len()).into()),
    }
}

fn log_to_stderr(config: &Config) {
    let level = if config.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    // Not what libraries say in passing: it would be a line for each frame of HTTP/2, and might show a key in a URL.
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level).with_default(LevelFilter::WARN);
    // Without a reader of standard error the log is lost, and nothing else: telling so there would panic.
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_target(false)
        .log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).finish().with(ours).init(),
        LogFormat::Json => log.json().finish().with(ours).init(),
    }
}
