//! Logging to standard error, without waiting for its reader.
//!
//! A thread writes the log. If the reader is slow or stops reading, lines wait in a queue. If the queue is full, lines
//! are lost and counted. No other thread ever waits for the log.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, LogFormat};
use crate::metrics::Metrics;

/// Maximum number of lines in the queue. Lines have 100 to 1,000 bytes.
const QUEUE_LINES: usize = 8192;

/// Starts the log, and logs the configuration's warnings. Dropping the guard writes the queue, but gives up after a
/// second if nobody reads standard error.
pub(super) fn init(config: &Config, metrics: &Metrics) -> WorkerGuard {
    let level = if config.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    // Warnings only from libraries: at lower levels they log every HTTP/2 frame, and could log a key in a URL.
    let targets = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level).with_default(LevelFilter::WARN);
    // h2 warns about hostile clients, who could fill the log.
    let targets = targets.with_target("h2", LevelFilter::ERROR);
    let lost = Arc::new(OnceLock::new());
    let stderr = Stderr { format: config.log_format, lost: Arc::clone(&lost), reported: 0 };
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE_LINES);
    let (writer, guard) = builder.thread_name("log").finish(stderr);
    lost.get_or_init(|| writer.error_counter());
    let counter = writer.error_counter();
    metrics.log_lines_lost.set_source(move || counter.dropped_lines() as u64);
    // If standard error is closed, the log is lost and nothing else. An error message about that would panic.
    let log = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_max_level(level)
        .with_target(false)
        .log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).finish().with(targets).init(),
        LogFormat::Json => log.json().finish().with(targets).init(),
    }
    config.text.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    guard
}

/// Standard error. Reports lost lines in the log itself as soon as lines can be written again.
struct Stderr {
    format: LogFormat,
    lost: Arc<OnceLock<ErrorCounter>>,
    reported: usize,
}

impl Stderr {
    /// A log line about lost lines. Not through the log: its queue may be full.
    fn loss(&self, lines: usize) -> String {
        const MESSAGE: &str = "log lines were lost, because nobody read them in time";
        let now = jiff::Timestamp::now();
        match self.format {
            LogFormat::Text => format!("{now}  WARN {MESSAGE} lines={lines}\n"),
            LogFormat::Json => {
                let fields = serde_json::json!({ "message": MESSAGE, "lines": lines });
                format!("{}\n", serde_json::json!({ "timestamp": now.to_string(), "level": "WARN", "fields": fields }))
            }
        }
    }
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(bytes)?;
        let lost = self.lost.get().map_or(0, ErrorCounter::dropped_lines);
        let lines = lost.saturating_sub(self.reported);
        if lines > 0 {
            self.reported = lost;
            io::stderr().write_all(self.loss(lines).as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
