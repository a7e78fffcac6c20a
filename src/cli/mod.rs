//! The command line. One file per command.

mod healthcheck;
mod log;
mod recover;
mod serve;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};

use crate::config;

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
