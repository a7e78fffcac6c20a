//! The command line. One file per command.

mod cat;
mod completions;
mod healthcheck;
mod log;
mod ls;
mod prune;
mod query;
mod reading;
mod recover;
mod serve;
mod stats;
mod tail;
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
    /// Print the reports in files, or all reports
    Cat(cat::CatArgs),
    /// Print a script that completes commands and options in a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Ask the server with the same settings on this machine whether it is alive. Exit code 0 if it is, else 1.
    Healthcheck,
    /// List the files that contain reports, oldest first
    Ls(ls::LsArgs),
    /// Write manual pages to a directory
    #[command(hide = true)]
    Man {
        /// The directory
        dir: PathBuf,
    },
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
    /// Print the reports that match a filter, also those that are not in report files yet
    Query(query::QueryArgs),
    /// Turn the journals of a dead server into report files, without serving. Exit code 1 if one cannot be recovered.
    Recover {
        /// The data directory [default: DATA_DIR]
        dir: Option<PathBuf>,
    },
    /// Print statistics of a number in the reports, by group and time
    Stats(Box<stats::StatsArgs>),
    /// Print the latest reports, and those that arrive
    Tail(tail::TailArgs),
    /// Read every report file and journal and check it. Exit code 1 if one is corrupt.
    Verify {
        /// The data directory [default: DATA_DIR]
        dir: Option<PathBuf>,
    },
}

/// The result of a command. The error is for the user, in one or more lines.
type CommandResult = Result<(), Box<dyn std::error::Error>>;

/// Invalid parameters that the parser cannot know.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// The output is complete except for what this names.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Partial(String);

/// The exit code after invalid parameters. The same as that of the parser.
const USAGE: u8 = 2;

/// The exit code if the output ends as it should, but something is missing in it.
const PARTIAL: u8 = 3;

/// Runs the command of this process. Errors go to standard error.
pub fn run() -> ExitCode {
    // Beyond RLIMIT_FSIZE, a write must fail like any other write. By default the signal would end the process.
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()) {
        eprintln!("netwatch-server: can't handle SIGXFSZ: {error}");
    }
    let result = match Cli::parse().command {
        None => serve::run(),
        Some(Command::Cat(args)) => cat::run(args),
        Some(Command::Completions { shell }) => completions::print(shell),
        Some(Command::Healthcheck) => healthcheck::run(),
        Some(Command::Ls(args)) => ls::run(args),
        Some(Command::Man { dir }) => completions::write_man_pages(&dir),
        Some(Command::Prune { dry_run, max_age, max_bytes, dir }) => {
            prune::run(dry_run, Retention { max_age, max_bytes }, dir)
        }
        Some(Command::Query(args)) => query::run(args),
        Some(Command::Recover { dir }) => recover::run(dir),
        Some(Command::Stats(args)) => stats::run(*args),
        Some(Command::Tail(args)) => tail::run(args),
        Some(Command::Verify { dir }) => verify::run(dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.to_string().lines().for_each(|line| eprintln!("netwatch-server: {line}"));
            match () {
                () if error.is::<Usage>() => ExitCode::from(USAGE),
                () if error.is::<Partial>() => ExitCode::from(PARTIAL),
                () => ExitCode::FAILURE,
            }
        }
    }
}
