//! The configuration: one flat [`Config`] from the environment and a file.
//!
//! [`GROUPS`] is the table of all settings. The other files hold the types of setting values.

mod ack;
mod admin_token;
mod memory;
mod networks;
mod origins;
mod rate;
mod rules;
mod settings;
mod stamps;
mod values;
mod write_keys;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use self::ack::Ack;
pub use self::admin_token::{Access, AdminToken};
pub use self::networks::{ForwardedHeader, Mask, Networks};
pub use self::origins::Origins;
pub use self::rate::Rate;
pub use self::settings::{CONFIG_FILE, DEFAULT_FILE, GROUPS, Group, Setting, help, settings};
pub use self::stamps::{Stamp, StampSource, Stamps};
pub use self::values::{parse_age, parse_size};
pub use self::write_keys::{KeyFileError, WriteKey, WriteKeys};

/// All settings, checked. Each field is the setting of the same name in lower case; [`GROUPS`] documents it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the table of settings documents each field, for users too")]
pub struct Config {
    pub port: u16,
    pub host: IpAddr,
    #[serde(deserialize_with = "values::switch")]
    pub reuse_port: bool,
    pub data_dir: PathBuf,
    #[serde(deserialize_with = "values::switch")]
    pub debug: bool,
    #[serde(deserialize_with = "values::word")]
    pub log_format: LogFormat,
    #[serde(deserialize_with = "values::word")]
    pub ack: Ack,
    #[serde(deserialize_with = "values::size")]
    pub batch_bytes: usize,
    #[serde(deserialize_with = "values::duration")]
    pub flush_interval: Duration,
    #[serde(deserialize_with = "values::size")]
    pub buffer_bytes: usize,
    #[serde(deserialize_with = "values::size_or_off")]
    pub spill_bytes: usize,
    #[serde(deserialize_with = "values::size_or_off")]
    pub min_free_bytes: usize,
    #[serde(deserialize_with = "values::age_or_off")]
    pub retention_max_age: Option<Duration>,
    #[serde(deserialize_with = "values::size_or_off")]
    pub retention_max_bytes: usize,
    #[serde(deserialize_with = "values::switch")]
    pub retention_on_full: bool,
    #[serde(deserialize_with = "values::level")]
    pub zstd_level: i32,
    #[serde(deserialize_with = "values::auto_count")]
    pub zstd_threads: usize,
    #[serde(deserialize_with = "values::size")]
    pub max_body_bytes: usize,
    #[serde(deserialize_with = "values::size")]
    pub inflight_bytes: usize,
    pub cors_allow_origins: Origins,
    #[serde(deserialize_with = "values::duration_or_off")]
    pub dedup_window: Option<Duration>,
    #[serde(deserialize_with = "values::list")]
    pub trusted_proxies: Networks,
    #[serde(deserialize_with = "values::word")]
    pub forwarded_header: ForwardedHeader,
    #[serde(deserialize_with = "values::switch")]
    pub proxy_protocol: bool,
    #[serde(deserialize_with = "values::list")]
    pub stamp: Stamps,
    #[serde(deserialize_with = "values::parsed")]
    pub client_ip_mask: Mask,
    pub write_keys: WriteKeys,
    #[serde(deserialize_with = "values::path_or_none")]
    pub write_keys_file: Option<PathBuf>,
    pub admin_token: AdminToken,
    #[serde(deserialize_with = "values::path_or_none")]
    pub admin_token_file: Option<PathBuf>,
    #[serde(deserialize_with = "values::parsed_or_off")]
    pub admin_listen: Option<SocketAddr>,
    #[serde(deserialize_with = "values::duration")]
    pub query_timeout: Duration,
    #[serde(deserialize_with = "values::processes")]
    pub query_max_concurrent: usize,
    #[serde(deserialize_with = "values::text_or_none")]
    pub metrics_username: Option<String>,
    #[serde(deserialize_with = "values::text_or_none")]
    pub metrics_password: Option<String>,
    #[serde(deserialize_with = "values::parsed_or_off")]
    pub rate_limit: Option<Rate>,
    #[serde(deserialize_with = "values::parsed_or_off")]
    pub key_rate_limit: Option<Rate>,
    #[serde(deserialize_with = "values::auto_count")]
    pub workers: usize,
    #[serde(deserialize_with = "values::auto_connections")]
    pub max_connections: usize,
    #[serde(deserialize_with = "values::count_or_off")]
    pub max_connections_per_address: Option<usize>,
    #[serde(deserialize_with = "values::duration")]
    pub header_timeout: Duration,
    #[serde(deserialize_with = "values::duration")]
    pub body_timeout: Duration,
    #[serde(deserialize_with = "values::duration")]
    pub commit_timeout: Duration,
    #[serde(deserialize_with = "values::duration")]
    pub keep_alive_timeout: Duration,
    #[serde(deserialize_with = "values::delay")]
    pub shutdown_delay: Duration,
    #[serde(deserialize_with = "values::duration")]
    pub shutdown_timeout: Duration,
    /// The settings as text, for the log.
    #[serde(skip)]
    pub text: Text,
}

/// The configuration as text, for the log. It contains no secrets.
#[derive(Debug, Clone, Default)]
pub struct Text {
    /// `NAME=value` of the settings that differ from their defaults.
    pub changed: String,
    /// `NAME=value` of all settings.
    pub all: String,
    /// Likely mistakes, one sentence each. They do not prevent the start.
    pub warnings: Vec<String>,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// One fault of the configuration. It fits on one line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A value is malformed or contradicts another value.
    #[error("{name} is {value:?}, but must be {takes}")]
    Value {
        /// The setting.
        name: &'static str,
        /// Its value, unless that is a secret.
        value: String,
        /// Valid values.
        takes: String,
    },
    /// A configuration file or key file cannot be used.
    #[error("can't use the file {path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// All faults of the configuration. At least one. They are displayed on one line each.
#[derive(Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(Error::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Errors {}

impl From<Error> for Errors {
    fn from(error: Error) -> Self {
        Self(vec![error])
    }
}

impl Config {
    /// Reads the environment. Settings that are not in the environment are read from the file that `CONFIG_FILE` names,
    /// or else from `.env` in the working directory, if that exists.
    ///
    /// # Errors
    /// [`Errors`] with all faults.
    pub fn from_env() -> Result<Self, Errors> {
        let file = match std::env::var_os(CONFIG_FILE).filter(|path| !path.is_empty()) {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()),
        };
        let (mut values, mut warnings, mut errors) = (HashMap::new(), Vec::new(), Vec::new());
        if let Some(path) = file {
            let lines = read_file(&path).unwrap_or_else(|error| {
                errors.push(error);
                Vec::new()
            });
            for (name, value) in lines {
                if !settings().any(|setting| setting.name == name) {
                    warnings.push(unknown_name(&name, &path));
                }
                values.insert(name, value);
            }
        }
        for setting in settings() {
            match std::env::var_os(setting.name).map(std::ffi::OsString::into_string) {
                None => {}
                Some(Ok(value)) => drop(values.insert(setting.name.to_owned(), value)),
                Some(Err(value)) => errors.push(invalid(setting, &value.to_string_lossy())),
            }
        }
        match Self::from_values(&values) {
            Ok(mut config) if errors.is_empty() => {
                config.text.warnings.extend(warnings);
                Ok(config)
            }
            Ok(_) => Err(Errors(errors)),
            Err(Errors(more)) => Err(Errors(errors.into_iter().chain(more).collect())),
        }
    }

    /// The configuration with `values` in place of the defaults, by setting name. Other names are ignored. An empty
    /// value means the default.
    ///
    /// # Errors
    /// [`Errors`] with all faults.
    pub fn from_values(values: &HashMap<String, String>) -> Result<Self, Errors> {
        let value = |setting: &Setting| match values.get(setting.name).map(|value| value.trim()) {
            None | Some("") => setting.default.to_owned(),
            Some(value) => value.to_owned(),
        };
        let parse = |value: &dyn Fn(&Setting) -> String| {
            envy::from_iter::<_, Self>(settings().map(|setting| (setting.name.to_owned(), value(setting))))
        };
        // envy stops at the first fault and does not name the variable. So each value is tried alone.
        let is_valid = |one: &Setting| {
            parse(&|setting| if setting.name == one.name { value(setting) } else { setting.default.to_owned() }).is_ok()
        };
        let parsed = parse(&value);
        let (valid, wrong): (Vec<_>, Vec<_>) = settings().partition(|one| parsed.is_ok() || is_valid(one));
        let mut errors: Vec<_> = wrong.iter().map(|one| invalid(one, &value(one))).collect();
        // The relations between valid values are checked in any case, so that all faults are found at once.
        let is_checked = |name: &str| valid.iter().any(|setting| setting.name == name);
        let valid_or_default = |setting: &Setting| match is_checked(setting.name) {
            true => value(setting),
            false => setting.default.to_owned(),
        };
        let mut config = parsed
            .or_else(|_| parse(&valid_or_default))
            .unwrap_or_else(|error| panic!("each of these values is valid alone: {error}"));
        errors.extend(config.contradictions(is_checked, &value));
        if let Some(path) = &config.write_keys_file
            && let Err(error) = config.write_keys.add_file(path)
        {
            errors.push(Error::File { path: path.clone(), reason: error.to_string() });
        }
        if let Some(path) = &config.admin_token_file
            && let Err(error) = config.admin_token.read_file(path)
        {
            errors.push(Error::File { path: path.clone(), reason: error.to_string() });
        }
        if !errors.is_empty() {
            return Err(Errors(errors));
        }
        let mut warnings = Vec::new();
        let available = memory::available_bytes().unwrap_or(u64::MAX);
        let threads = memory::fitting_threads(&config, available);
        if threads < config.zstd_threads && !value(named("ZSTD_THREADS")).eq_ignore_ascii_case("auto") {
            let (wanted, level) = (config.zstd_threads, config.zstd_level);
            warnings
                .push(format!("ZSTD_THREADS is {wanted}, but with ZSTD_LEVEL {level}, memory suffices for {threads}"));
        }
        config.zstd_threads = threads;
        if config.max_connections == 0 {
            config.max_connections = memory::fitting_connections(&config, available);
        }
        warnings.extend(memory::warning(&config, available));
        let shown = |setting: &Setting| format!("{}={}", setting.name, setting.shown(&value(setting)));
        let changed = settings().filter(|setting| value(setting) != setting.default);
        config.text = Text {
            changed: changed.map(shown).collect::<Vec<_>>().join(" "),
            all: settings().map(shown).collect::<Vec<_>>().join(" "),
            warnings,
        };
        Ok(config)
    }

    /// Maximum number of HTTP/2 streams, on all connections together.
    #[must_use]
    pub fn max_streams(&self) -> usize {
        memory::max_streams(self.max_connections)
    }
}

/// The form of a line in a configuration file.
const FORM: &str = "of the form NAME=value, with quotes around a value that contains spaces";

fn read_file(path: &Path) -> Result<Vec<(String, String)>, Error> {
    let failed = |error: dotenvy::Error, previous: Option<&(String, String)>| {
        let reason = match (error, previous) {
            // The error names the place, but does not repeat the line, which may contain a key.
            (dotenvy::Error::LineParse(..), None) => format!("its first line is not {FORM}"),
            (dotenvy::Error::LineParse(..), Some((name, _))) => {
                format!("the line after {name} is not {FORM}")
            }
            (error, _) => error.to_string(),
        };
        Error::File { path: path.to_owned(), reason }
    };
    let mut values = Vec::new();
    for line in dotenvy::from_path_iter(path).map_err(|error| failed(error, None))? {
        values.push(line.map_err(|error| failed(error, values.last()))?);
    }
    Ok(values)
}

fn unknown_name(name: &str, path: &Path) -> String {
    let similarity = |setting: &Setting| strsim::jaro_winkler(&name.to_uppercase(), setting.name);
    let nearest = settings().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let hint = match nearest {
        Some(setting) if similarity(setting) > 0.85 => format!("; did you mean {}?", setting.name),
        _ => String::new(),
    };
    format!("{name} in {} is not a setting{hint}", path.display())
}

fn named(name: &str) -> &'static Setting {
    settings().find(|setting| setting.name == name).expect("the code names settings that exist")
}

fn invalid(setting: &Setting, value: &str) -> Error {
    Error::Value { name: setting.name, value: setting.shown(value), takes: setting.takes.to_owned() }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn config(values: &[(&str, &str)]) -> Result<Config, Errors> {
        Config::from_values(&values.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[test]
    fn every_switch_accepts_every_spelling() {
        let networks = ("TRUSTED_PROXIES", "10.0.0.0/8");
        for name in ["REUSE_PORT", "DEBUG", "PROXY_PROTOCOL", "RETENTION_ON_FULL"] {
            for (spellings, expected) in [
                (["on", "ON", "true", "True", "yes", "1", "t"], true),
                (["off", "Off", "false", "FALSE", "no", "0", "F"], false),
            ] {
                for spelling in spellings {
                    let config = config(&[networks, (name, spelling)]).unwrap();
                    let value = match name {
                        "REUSE_PORT" => config.reuse_port,
                        "DEBUG" => config.debug,
                        "RETENTION_ON_FULL" => config.retention_on_full,
                        _ => config.proxy_protocol,
                    };
                    assert_eq!(value, expected, "{name}={spelling}");
                }
            }
        }
    }

    #[test]
    fn every_optional_limit_and_list_accepts_off_in_any_letter_case() {
        for off in ["off", "OFF", "none", "None"] {
            let names = ["SPILL_BYTES", "MIN_FREE_BYTES", "DEDUP_WINDOW", "RATE_LIMIT", "KEY_RATE_LIMIT"];
            let lists = ["MAX_CONNECTIONS_PER_ADDRESS", "TRUSTED_PROXIES", "STAMP", "WRITE_KEYS", "WRITE_KEYS_FILE"];
            let values: Vec<_> = names.into_iter().chain(lists).map(|name| (name, off)).collect();
            let config = config(&values).unwrap();
            assert_eq!((config.spill_bytes, config.min_free_bytes, config.dedup_window), (0, 0, None));
            assert!(config.rate_limit.is_none() && config.key_rate_limit.is_none());
            assert!(config.max_connections_per_address.is_none() && config.trusted_proxies.is_empty());
            assert!(config.stamp.is_empty() && config.write_keys.is_empty() && config.write_keys_file.is_none());
        }
        let config = config(&[("ACK", "DISK"), ("LOG_FORMAT", "Json"), ("FORWARDED_HEADER", "Forwarded")]).unwrap();
        assert_eq!((config.ack, config.log_format), (Ack::Disk, LogFormat::Json));
    }

    #[test]
    fn retention_is_off_by_default_and_takes_days_weeks_and_sizes() {
        let config = |values: &[_]| config(values).map_err(|Errors(errors)| errors[0].to_string());
        let default = config(&[]).unwrap();
        assert_eq!(
            (default.retention_max_age, default.retention_max_bytes, default.retention_on_full),
            (None, 0, false)
        );
        let day = Duration::from_secs(24 * 60 * 60);
        for (text, age) in [("30d", 30 * day), ("8w", 56 * day), ("1d 12h", day * 3 / 2), ("36500d", 36_500 * day)] {
            assert_eq!(config(&[("RETENTION_MAX_AGE", text)]).unwrap().retention_max_age, Some(age), "{text}");
        }
        for off in ["off", "0d", "0s"] {
            assert_eq!(config(&[("RETENTION_MAX_AGE", off)]).unwrap().retention_max_age, None, "{off}");
        }
        for wrong in ["30", "-1d", "1y", "1 month", "40000d", "d"] {
            let error = config(&[("RETENTION_MAX_AGE", wrong)]).unwrap_err();
            assert!(error.starts_with("RETENTION_MAX_AGE is ") && error.contains("such as 12h, 30d or 8w"), "{error}");
        }
        assert_eq!(config(&[("RETENTION_MAX_BYTES", "2TiB")]).unwrap().retention_max_bytes, 2 << 40);
        assert_eq!(config(&[("FLUSH_INTERVAL", "1d")]).unwrap().flush_interval, day);
        assert!(config(&[("FLUSH_INTERVAL", "367d")]).is_err());
        let error = config(&[("RETENTION_ON_FULL", "on"), ("MIN_FREE_BYTES", "off")]).unwrap_err();
        assert!(error.ends_with("must be off while MIN_FREE_BYTES is off"), "{error}");
    }

    #[test]
    fn all_faults_are_reported_together() {
        let Errors(errors) =
            config(&[("PORT", "x"), ("ZSTD_LEVEL", "y"), ("TRUSTED_PROXIES", "10.0.0.5/8")]).unwrap_err();
        let text: Vec<_> = errors.iter().map(Error::to_string).collect();
        assert_eq!(text.len(), 3, "{text:?}");
        assert!(text[0].starts_with("PORT is \"x\"") && text[1].starts_with("TRUSTED_PROXIES"), "{text:?}");
        let Errors(errors) = config(&[("MAX_BODY_BYTES", "1"), ("ZSTD_LEVEL", "99"), ("PORT", "x")]).unwrap_err();
        assert_eq!(errors.len(), 3, "{errors:?}");
        // A relation to an invalid value is not checked.
        let Errors(errors) = config(&[("BATCH_BYTES", "x"), ("BUFFER_BYTES", "1MiB")]).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
    }

    #[test]
    fn the_text_names_settings_that_differ_from_their_defaults_and_no_secrets() {
        let config = config(&[("PORT", "1"), ("ACK", "journal"), ("WRITE_KEYS", "0123456789abcdef")]).unwrap();
        assert_eq!(config.text.changed, "PORT=1 WRITE_KEYS=(secret)");
        assert!(config.text.all.contains("ACK=journal ") && !config.text.all.contains("0123456789abcdef"));
    }

    #[test]
    fn a_buffer_larger_than_the_memory_is_a_warning() {
        let warnings = config(&[("BUFFER_BYTES", "1EiB")]).unwrap().text.warnings;
        assert!(warnings.len() == 1 && warnings[0].starts_with("BUFFER_BYTES needs 1.0 EiB"), "{warnings:?}");
        assert!(config(&[]).unwrap().text.warnings.is_empty());
    }

    #[test]
    fn an_unknown_name_is_reported_with_the_most_similar_setting() {
        let path = Path::new(".env");
        assert_eq!(
            unknown_name("BATCH_BYTSE", path),
            "BATCH_BYTSE in .env is not a setting; did you mean BATCH_BYTES?"
        );
        assert_eq!(unknown_name("POSTGRES_PASSWORD", path), "POSTGRES_PASSWORD in .env is not a setting");
    }

    #[test]
    fn setting_names_are_unique() {
        let names: HashSet<_> = settings().map(|setting| setting.name).collect();
        assert_eq!(names.len(), settings().count());
    }
}
