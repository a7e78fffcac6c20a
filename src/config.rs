//! One flat [`Config`] from the environment.
//!
//! [`SETTINGS`] is the one list of what can be set: the defaults, the help text and the README's table come from it.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::buffer::{Ack, Shape};
use crate::http::Origins;
use crate::http::client::{ForwardedHeader, Mask, Networks};
use crate::http::rate_limit::Rate;
use crate::http::stamp::Stamps;
use crate::http::write_keys::WriteKeys;
use crate::store::Compression;

/// A variable of the environment.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// The value that it has if it is not set, or is empty.
    pub default: &'static str,
    /// What it takes.
    pub takes: &'static str,
    /// What it is for.
    pub help: &'static str,
}

const fn setting(name: &'static str, default: &'static str, takes: &'static str, help: &'static str) -> Setting {
    Setting { name, default, takes, help }
}

/// What no log and no error may show.
const SECRETS: &[&str] = &["WRITE_KEYS"];

impl Setting {
    /// A value of it, as everybody may see it.
    fn shown(&self, value: String) -> String {
        match SECRETS.contains(&self.name) && value != self.default {
            true => "(secret)".to_owned(),
            false => value,
        }
    }
}

const SIZE: &str = "a size such as 64KiB or 10MiB";
const DURATION: &str = "a duration such as 500ms, 60s or 5m, more than zero and up to a year";
const DELAY: &str = "a duration such as 500ms, 60s or 5m, from 0s up to a year";
const TRUTH: &str = "true or false";
const COUNT: &str = "a whole number, 1 to 1000000";
const AUTO_COUNT: &str = "a whole number, 1 to 1024, or auto: one for each core";
const RATE: &str = "a rate such as 10/s, 600/m or 10/s,burst=100, or off";
const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);
const LEVEL: &str = "a zstd level, 1 to 22";

/// Every variable, in the order in which people meet them.
pub const SETTINGS: &[Setting] = &[
    setting("PORT", "8080", "a port, 0 to 65535 (0: any free one)", "The TCP port to listen on."),
    setting("HOST", "::", "an IP address", "The address to listen on; `::` is all interfaces, IPv6 and IPv4."),
    setting(
        "REUSE_PORT",
        "false",
        TRUTH,
        "Share the port with other servers on this machine, for a restart without a gap.",
    ),
    setting("DATA_DIR", "./data/reports", "a directory", "Where report files are published; made if it is not there."),
    setting("DEBUG", "false", TRUTH, "Log refused requests and closed connections too."),
    setting("LOG_FORMAT", "text", "text or json", "How log lines look on standard error: text or json."),
    setting(
        "ACK",
        "journal",
        "memory, journal or disk",
        "What a report has to be in before it is answered with 200: memory, journal or disk.",
    ),
    setting(
        "BATCH_BYTES",
        "10MiB",
        SIZE,
        "A batch is flushed when it holds this much, uncompressed. More than MAX_BODY_BYTES.",
    ),
    setting("FLUSH_INTERVAL", "60s", DURATION, "A batch is flushed when its first report is this old."),
    setting(
        "BUFFER_BYTES",
        "64MiB",
        SIZE,
        "Memory for all batches, the active one and those that wait to be flushed. At least two of BATCH_BYTES.",
    ),
    setting("SPILL_BYTES", "1GiB", SIZE, "Journals of batches that gave up their memory in a burst; 0 for none."),
    setting(
        "MIN_FREE_BYTES",
        "64MiB",
        SIZE,
        "With less free on the disk, new reports are refused; what is held is still flushed.",
    ),
    setting("ZSTD_LEVEL", "1", LEVEL, "How hard to compress, 1 to 22."),
    setting("ZSTD_THREADS", "auto", AUTO_COUNT, "Threads that compress one file; auto is one for each core."),
    setting("MAX_BODY_BYTES", "1MiB", SIZE, "The longest request body."),
    setting(
        "INFLIGHT_BYTES",
        "64MiB",
        SIZE,
        "Memory for request bodies that come in several pieces or compressed, all together. At least two of MAX_BODY_BYTES.",
    ),
    setting(
        "CORS_ALLOW_ORIGINS",
        "*",
        "* or a list of origins without a path, with commas between them: https://app.example.com, https://*.example.com \
         for all hosts below, or null",
        "Pages that may send reports: `*` for all, or a list such as `https://app.example.com,https://*.example.org`.",
    ),
    setting(
        "DEDUP_WINDOW",
        "off",
        "off, or a duration such as 60s or 5m, up to a year",
        "For how long a repeat with the same idempotency key is answered as before and not kept again; off for never.",
    ),
    setting(
        "TRUSTED_PROXIES",
        "none",
        "addresses and networks such as 10.0.0.0/8,192.0.2.7, or none",
        "Proxies that are believed when they say whose request it is.",
    ),
    setting(
        "FORWARDED_HEADER",
        "x-forwarded-for",
        "x-forwarded-for or forwarded",
        "The header in which they say so: x-forwarded-for or forwarded.",
    ),
    setting(
        "PROXY_PROTOCOL",
        "off",
        "on or off",
        "Whether their connections begin with a header of the PROXY protocol, version 1 or 2.",
    ),
    setting(
        "STAMP",
        "none",
        "a list of received_at, client_ip, user_agent, origin and header:NAME, or none",
        "What is added to each report: received_at, client_ip, user_agent, origin, header:NAME.",
    ),
    setting(
        "CLIENT_IP_MASK",
        "/32,/128",
        "prefix lengths for IPv4 and IPv6 such as /24,/48",
        "How much of a client's address is stamped.",
    ),
    setting(
        "WRITE_KEYS",
        "none",
        "a list of keys, each of 16 to 128 letters, digits or any of -._~+/=, or none",
        "Keys of which a client has to know one to send reports. Read again with SIGHUP, as the next one is.",
    ),
    setting(
        "WRITE_KEYS_FILE",
        "none",
        "a file with such a key on each line, or none",
        "A file with more of them, one on each line.",
    ),
    setting("RATE_LIMIT", "off", RATE, "Requests that one client address may send (or /64 of IPv6): `10/s,burst=100`."),
    setting("KEY_RATE_LIMIT", "off", RATE, "Requests that all who use one key may send."),
    setting("WORKERS", "auto", AUTO_COUNT, "Threads that answer requests; auto is one for each core."),
    setting(
        "MAX_CONNECTIONS",
        "16384",
        COUNT,
        "Open connections, as far as the limit of open files allows; more wait to be accepted.",
    ),
    setting(
        "MAX_CONNECTIONS_PER_ADDRESS",
        "off",
        "a whole number, 1 to 1000000, or off",
        "Open connections of one client address (or /64 of IPv6); more are closed at once.",
    ),
    setting("HEADER_TIMEOUT", "10s", DURATION, "From the first byte of a request to the end of its header."),
    setting("BODY_TIMEOUT", "30s", DURATION, "For a whole request body."),
    setting("KEEP_ALIVE_TIMEOUT", "75s", DURATION, "For an idle connection; longer than the load balancer's own."),
    setting(
        "SHUTDOWN_DELAY",
        "0s",
        DELAY,
        "On a stop, how long requests are taken after /readyz has turned 503: until the load balancer has seen it.",
    ),
    setting(
        "SHUTDOWN_TIMEOUT",
        "8s",
        DURATION,
        "After that, for the requests in flight; then all is flushed, however long that takes.",
    ),
];

/// Names the file that is read instead of `.env`.
const CONFIG_FILE: &str = "CONFIG_FILE";
const DEFAULT_FILE: &str = ".env";

/// All that can be set, checked. The fields are the variables of [`SETTINGS`] in lower case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "SETTINGS says it, to users too")]
pub struct Config {
    pub port: u16,
    pub host: IpAddr,
    #[serde(deserialize_with = "flag")]
    pub reuse_port: bool,
    pub data_dir: PathBuf,
    #[serde(deserialize_with = "flag")]
    pub debug: bool,
    pub log_format: LogFormat,
    pub ack: Ack,
    #[serde(deserialize_with = "size")]
    pub batch_bytes: usize,
    #[serde(deserialize_with = "duration")]
    pub flush_interval: Duration,
    #[serde(deserialize_with = "size")]
    pub buffer_bytes: usize,
    #[serde(deserialize_with = "size")]
    pub spill_bytes: usize,
    #[serde(deserialize_with = "size")]
    pub min_free_bytes: usize,
    pub zstd_level: i32,
    #[serde(deserialize_with = "auto_count")]
    pub zstd_threads: usize,
    #[serde(deserialize_with = "size")]
    pub max_body_bytes: usize,
    #[serde(deserialize_with = "size")]
    pub inflight_bytes: usize,
    pub cors_allow_origins: Origins,
    #[serde(deserialize_with = "duration_or_off")]
    pub dedup_window: Option<Duration>,
    pub trusted_proxies: Networks,
    pub forwarded_header: ForwardedHeader,
    #[serde(deserialize_with = "on_or_off")]
    pub proxy_protocol: bool,
    pub stamp: Stamps,
    pub client_ip_mask: Mask,
    pub write_keys: WriteKeys,
    pub write_keys_file: PathBuf,
    #[serde(deserialize_with = "rate_or_off")]
    pub rate_limit: Option<Rate>,
    #[serde(deserialize_with = "rate_or_off")]
    pub key_rate_limit: Option<Rate>,
    #[serde(deserialize_with = "auto_count")]
    pub workers: usize,
    pub max_connections: usize,
    #[serde(deserialize_with = "count_or_off")]
    pub max_connections_per_address: Option<usize>,
    #[serde(deserialize_with = "duration")]
    pub header_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub body_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub keep_alive_timeout: Duration,
    #[serde(deserialize_with = "delay")]
    pub shutdown_delay: Duration,
    #[serde(deserialize_with = "duration")]
    pub shutdown_timeout: Duration,
    /// The settings as they were read, for the log.
    #[serde(skip)]
    pub effective: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object on each line.
    Json,
}

/// What is wrong with the configuration, in one line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// One value is not of its form, or contradicts another.
    #[error("{name} is {value:?}: it takes {takes}")]
    Value {
        /// The variable.
        name: &'static str,
        /// What it held.
        value: String,
        /// What would be right.
        takes: String,
    },
    /// A file that was named is not what it should be.
    #[error("can't use the file {path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Config {
    /// Reads the environment and, for what is not set there, the file that `CONFIG_FILE` names or else `.env` in the
    /// working directory, if there is one.
    ///
    /// # Errors
    /// [`Error`], for the first value that can't be used.
    pub fn from_env() -> Result<Self, Error> {
        let mut set = HashMap::new();
        match std::env::var_os(CONFIG_FILE).filter(|path| !path.is_empty()) {
            Some(path) => set.extend(read_file(Path::new(&path))?),
            None if Path::new(DEFAULT_FILE).exists() => set.extend(read_file(Path::new(DEFAULT_FILE))?),
            None => {}
        }
        for setting in SETTINGS {
            if let Some(value) = std::env::var_os(setting.name) {
                let value = value.into_string().map_err(|value| wrong(setting, value.to_string_lossy()))?;
                set.insert(setting.name.to_owned(), value);
            }
        }
        Self::from_set(&set)
    }

    /// The configuration in which `set` holds what differs from the defaults, by name of the variable. Names that are
    /// not in [`SETTINGS`] are passed over, empty values stand for the default.
    ///
    /// # Errors
    /// [`Error::Value`], for the first value that can't be used.
    pub fn from_set(set: &HashMap<String, String>) -> Result<Self, Error> {
        let held = |setting: &Setting| match set.get(setting.name).map(|value| value.trim()) {
            None | Some("") => setting.default.to_owned(),
            Some(value) => value.to_owned(),
        };
        let with = |value: &dyn Fn(&Setting) -> String| {
            envy::from_iter::<_, Self>(SETTINGS.iter().map(|setting| (setting.name.to_owned(), value(setting))))
        };
        let mut config = with(&held).map_err(|error| {
            // envy does not say which variable it was: the one that fails alone, with defaults for the others.
            let fails = |one: &&Setting| {
                with(&|setting| if setting.name == one.name { held(setting) } else { setting.default.to_owned() })
                    .is_err()
            };
            let setting = SETTINGS.iter().find(fails).unwrap_or_else(|| panic!("the defaults are sound: {error}"));
            wrong(setting, held(setting))
        })?;
        config.check().map_err(|(name, takes)| {
            let setting = SETTINGS.iter().find(|setting| setting.name == name).expect("checks name settings");
            Error::Value { name, value: held(setting), takes }
        })?;
        if config.has_key_file() {
            config
                .write_keys
                .add_file(&config.write_keys_file)
                .map_err(|error| Error::File { path: config.write_keys_file.clone(), reason: error.to_string() })?;
        }
        let shown = |setting: &Setting| format!("{}={}", setting.name, setting.shown(held(setting)));
        config.effective = SETTINGS.iter().map(shown).collect::<Vec<_>>().join(" ");
        Ok(config)
    }

    fn has_key_file(&self) -> bool {
        self.write_keys_file.as_os_str() != "none"
    }

    /// What one value alone does not show: ranges, and how values go together. Returns the variable and what would be
    /// right.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let size = |bytes: usize| ByteSize(bytes as u64);
        let least_batch = self.max_body_bytes.saturating_add(1);
        let least_inflight = self.max_body_bytes.saturating_mul(2);
        let least_buffer = self.batch_bytes.saturating_mul(2);
        let rules = [
            ("ZSTD_LEVEL", (1..=22).contains(&self.zstd_level), LEVEL.to_owned()),
            ("MAX_CONNECTIONS", (1..=1_000_000).contains(&self.max_connections), COUNT.to_owned()),
            ("MAX_BODY_BYTES", self.max_body_bytes >= 2, "at least 2 bytes".to_owned()),
            (
                "BATCH_BYTES",
                self.batch_bytes >= least_batch,
                format!("more than MAX_BODY_BYTES, which is {}", size(self.max_body_bytes)),
            ),
            (
                "BUFFER_BYTES",
                self.buffer_bytes >= least_buffer,
                format!("at least twice BATCH_BYTES, which is {}", size(self.batch_bytes)),
            ),
            (
                "INFLIGHT_BYTES",
                // A long compressed body, and what it unpacks to.
                self.inflight_bytes >= least_inflight,
                format!("at least twice MAX_BODY_BYTES, which is {}", size(self.max_body_bytes)),
            ),
            (
                "KEY_RATE_LIMIT",
                self.key_rate_limit.is_none() || !self.write_keys.is_empty() || self.has_key_file(),
                "off, as long as WRITE_KEYS and WRITE_KEYS_FILE are none".to_owned(),
            ),
            (
                "PROXY_PROTOCOL",
                !self.proxy_protocol || !self.trusted_proxies.is_empty(),
                "off, as long as TRUSTED_PROXIES is none".to_owned(),
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((name, _, takes)) => Err((name, takes)),
            None => Ok(()),
        }
    }

    /// How the buffer's memory is divided up: a segment for each worker, but each fit for two of the longest bodies, if
    /// a batch is. So a batch is at least half full when a long report finds no room in any of its segments.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let shards = (self.batch_bytes / (2 * (self.max_body_bytes + 1))).clamp(1, self.workers);
        Shape { batches: self.buffer_bytes / self.batch_bytes, shards, segment_bytes: self.batch_bytes / shards }
    }

    /// How report files are compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        Compression { level: self.zstd_level, threads: self.zstd_threads }
    }
}

/// The settings as `--help` shows them.
#[must_use]
pub fn help() -> String {
    struct Row<'a>(&'a Setting);
    impl fmt::Display for Row<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Setting { name, default, takes, help } = self.0;
            writeln!(f, "  {name}={default}\n      {help} Takes {takes}.")
        }
    }
    let rows: String = SETTINGS.iter().map(|setting| Row(setting).to_string()).collect();
    format!(
        "Settings, from the environment, with their defaults:\n{rows}\n\
         What the environment does not set is read from the file that {CONFIG_FILE} names, or else from {DEFAULT_FILE} \
         in the working\ndirectory, if there is one: lines of NAME=value. An empty value stands for the default."
    )
}

fn read_file(path: &Path) -> Result<Vec<(String, String)>, Error> {
    let failed = |error: dotenvy::Error, after: Option<&(String, String)>| {
        let reason = match (error, after) {
            // Where, and not the line itself: it may hold a key.
            (dotenvy::Error::LineParse(..), None) => "its first line is not of the form NAME=value".to_owned(),
            (dotenvy::Error::LineParse(..), Some((name, _))) => {
                format!("the line after {name} is not of the form NAME=value")
            }
            (error, _) => error.to_string(),
        };
        Error::File { path: path.to_owned(), reason }
    };
    let mut set = Vec::new();
    for line in dotenvy::from_path_iter(path).map_err(|error| failed(error, None))? {
        set.push(line.map_err(|error| failed(error, set.last()))?);
    }
    Ok(set)
}

fn wrong(setting: &Setting, value: impl Into<String>) -> Error {
    Error::Value { name: setting.name, value: setting.shown(value.into()), takes: setting.takes.to_owned() }
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let size: ByteSize = String::deserialize(deserializer)?.parse().map_err(D::Error::custom)?;
    usize::try_from(size.as_u64()).map_err(D::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    match delay(deserializer)? {
        Duration::ZERO => Err(D::Error::custom("out of range")),
        duration => Ok(duration),
    }
}

fn delay<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    within_a_year(&String::deserialize(deserializer)?)
}

/// No time at all is off, too.
fn duration_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "off" => Ok(None),
        text => Ok(Some(within_a_year(text)?).filter(|duration| !duration.is_zero())),
    }
}

fn within_a_year<E: serde::de::Error>(text: &str) -> Result<Duration, E> {
    let duration: jiff::SignedDuration = text.parse().map_err(E::custom)?;
    match Duration::try_from(duration) {
        Ok(duration) if duration <= YEAR => Ok(duration),
        _ => Err(E::custom("out of range")),
    }
}

fn auto_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "auto" {
        return Ok(std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    }
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err(D::Error::custom("out of range")),
    }
}

fn count_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "off" => Ok(None),
        text => match text.parse() {
            Ok(count @ 1..=1_000_000) => Ok(Some(count)),
            _ => Err(D::Error::custom("out of range")),
        },
    }
}

fn rate_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Rate>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(D::Error::custom),
    }
}

fn on_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(D::Error::custom("neither on nor off")),
    }
}

/// A truth value in the forms that the earlier server took, those of Go's `strconv.ParseBool`.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(D::Error::custom("no truth value")),
    }
}
