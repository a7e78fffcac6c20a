//! Shell completions and manual pages, made from the definition of the command line.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CommandResult};

pub(super) fn print(shell: Shell) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "netwatch-server", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

pub(super) fn write_man_pages(dir: &Path) -> CommandResult {
    Ok(clap_mangen::generate_to(Cli::command(), dir)?)
}
