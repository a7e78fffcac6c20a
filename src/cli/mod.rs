//! The command line. One file per command.

mod healthcheck;
mod log;
mod prune;
mod recover;
mod serve;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config;
use crate::store::Retention;

/// Collects JSON reports over HTTP and stores them as zstd-compressed JSONL files. Without a command, it serves.
#[derive(Debug, Parser)]
#[command(name = "netwatch-server", version, after_help = config::help(), max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask the server with the same settings on this machine whether it is alive. Exit code 0 if it is, else 1.
    Healthcheck,
    /// Delete the report files that exceed a limit, oldest first, without serving. The newest file is never deleted.
    Prune {
        /// Only print what would be deleted
        #[arg(long)]
        dry_run: bool,
        /// Delete files whose last report is this old, such as 30d [default: RETENTION_MAX_AGE]
        #[arg(long, value_name = "AGE", value_parser = config::parse_age)]
        max_age: Option<Duration>,
        /// Delete the oldest files until all together have this size, such as 20GiB [default: RETENTION_MAX_BYTES]
        #[arg(long, value_name = "SIZE", value_parser = config::parse_size)]
        max_bytes: Option<u64>,
        /// The data directory [default: DATA_DIR]
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Turn the journals of a dead server into report files, without serving. Exit code 1 if one cannot be recovered.
    Recover {
        /// The data directory [default: DATA_DIR]
        dir: Option<PathBuf>,
    },
    /// Read every report file and journal and check it. Exit code 1 if one is corrupt.
    Verify {
        /// The data directory [default: DATA_DIR]
        dir: Option<PathBuf>,
    },
}

/// The result of a command. The error is for the user, in one or more lines.
type CommandResult = Result<(), Box<dyn std::error::Error>>;

/// Runs the command of this process. Errors go to standard error.
pub fn run() -> ExitCode {
    // Beyond RLIMIT_FSIZE, a write must fail like any other write. By default the signal would end the process.
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()) {
        eprintln!("netwatch-server: can't handle SIGXFSZ: {error}");
    }
    let result = match Cli::parse().command {
        None => serve::run(),
        Some(Command::Healthcheck) => healthcheck::run(),
        Some(Command::Prune { dry_run, max_age, max_bytes, dir }) => {
            prune::run(dry_run, Retention { max_age, max_bytes }, dir)
        }
        Some(Command::Recover { dir }) => recover::run(dir),
        Some(Command::Verify { dir }) => verify::run(dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.to_string().lines().for_each(|line| eprintln!("netwatch-server: {line}"));
            ExitCode::FAILURE
        }
    }
}
