//! Logging to standard error.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, LogFormat};

/// Starts the log, and logs the configuration's warnings.
pub(super) fn init(config: &Config) {
    let level = if config.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    // Warnings only from libraries: at lower levels they log every HTTP/2 frame, and could log a key in a URL.
    let targets = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level).with_default(LevelFilter::WARN);
    // If nobody reads standard error, the log is lost and nothing else. An error message about that would panic.
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_target(false)
        .log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).finish().with(targets).init(),
        LogFormat::Json => log.json().finish().with(targets).init(),
    }
    config.text.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
}
