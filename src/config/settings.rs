//! The table of settings. Defaults, help, error messages and the tables of `docs/configuration.md` come from it.

use std::fmt::Write;

use super::values::{
    AGE_OR_OFF, AUTO_CONNECTIONS, AUTO_COUNT, AUTO_THREADS, COUNT, COUNT_OR_OFF, DELAY, DURATION, DURATION_OR_OFF,
    LEVEL, RATE_OR_OFF, SIZE, SIZE_OR_OFF, SWITCH, is_none,
};

/// The variable that names the configuration file.
pub const CONFIG_FILE: &str = "CONFIG_FILE";

/// The configuration file that is read if `CONFIG_FILE` is not set, relative to the working directory.
pub const DEFAULT_FILE: &str = ".env";

/// Settings whose values must not appear in logs and errors.
const SECRETS: &[&str] = &["WRITE_KEYS", "ADMIN_TOKEN", "METRICS_PASSWORD"];

/// One environment variable.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// The value that is used if the variable is not set or empty.
    pub default: &'static str,
    /// Valid values, as a noun phrase.
    pub takes: &'static str,
    /// Its purpose, in full sentences.
    pub help: &'static str,
}

/// Settings that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// The heading in `--help`.
    pub title: &'static str,
    /// The settings, most important first.
    pub settings: &'static [Setting],
}

impl Setting {
    /// A value of this setting, as logs and errors may show it.
    pub(super) fn shown(&self, value: &str) -> String {
        match SECRETS.contains(&self.name) && value != self.default && !is_none(value) {
            true => "(secret)".to_owned(),
            false => value.to_owned(),
        }
    }
}

const fn setting(name: &'static str, default: &'static str, takes: &'static str, help: &'static str) -> Setting {
    Setting { name, default, takes, help }
}

/// All settings, in groups.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Essentials",
        settings: &[
            setting("PORT", "8080", "a port from 0 to 65535 (0: any free port)", "TCP port to listen on."),
            setting("HOST", "::", "an IP address", "Address to listen on. `::` means all interfaces, IPv6 and IPv4."),
            setting(
                "DATA_DIR",
                "./data/reports",
                "a directory",
                "Directory for report files. The server creates it if it is missing.",
            ),
            setting(
                "ACK",
                "journal",
                "memory, journal or disk",
                "When a request is answered with 200: once its reports are in memory, in the journal, or synced to disk.",
            ),
            setting(
                "FLUSH_INTERVAL",
                "60s",
                DURATION,
                "Maximum age of the first report of a batch before the batch is flushed to a report file.",
            ),
            setting(
                "BATCH_BYTES",
                "10MiB",
                SIZE,
                "Uncompressed size at which a batch is flushed. Must be larger than MAX_BODY_BYTES.",
            ),
            setting("LOG_FORMAT", "text", "text or json", "Format of log lines on standard error."),
            setting("DEBUG", "off", SWITCH, "Also log each refused request, each closed connection and all settings."),
        ],
    },
    Group {
        title: "Who may send",
        settings: &[
            setting(
                "CORS_ALLOW_ORIGINS",
                "*",
                "* or a list of origins without a path, separated by commas: https://app.example.com, \
                 https://*.example.com for all subdomains, or null",
                "Origins whose pages may send reports. `*` allows all origins.",
            ),
            setting(
                "WRITE_KEYS",
                "none",
                "a list of keys, each 16 to 128 letters, digits or any of -._~+/=, or none",
                "Accepted write keys, separated by commas. SIGHUP reloads keys from CONFIG_FILE and WRITE_KEYS_FILE.",
            ),
            setting(
                "WRITE_KEYS_FILE",
                "none",
                "a file with one key per line, or none",
                "File with additional write keys, one per line.",
            ),
            setting(
                "RATE_LIMIT",
                "off",
                RATE_OR_OFF,
                "Maximum request rate of one client address (IPv6: one /64 network), such as `10/s,burst=100`.",
            ),
            setting(
                "KEY_RATE_LIMIT",
                "off",
                RATE_OR_OFF,
                "Maximum request rate of all clients that use one write key.",
            ),
            setting(
                "DEDUP_WINDOW",
                "off",
                DURATION_OR_OFF,
                "How long the server remembers idempotency keys. A repeated request in this time is not stored again.",
            ),
        ],
    },
    Group {
        title: "Who may read",
        settings: &[
            setting(
                "ADMIN_TOKEN",
                "auto",
                "16 to 128 letters, digits or any of -._~+/=, or none (only with ADMIN_LISTEN), or auto: a new token if \
                 standard error is a terminal, otherwise nobody may read",
                "Token that permits reading: reports, files, statistics and metrics. It does not permit sending. SIGHUP reloads it from CONFIG_FILE \
                 and ADMIN_TOKEN_FILE.",
            ),
            setting(
                "ADMIN_TOKEN_FILE",
                "none",
                "a file with the token on its first line, or none",
                "File with the admin token. It takes precedence over ADMIN_TOKEN.",
            ),
            setting(
                "ADMIN_LISTEN",
                "off",
                "an address and a port such as 127.0.0.1:9090 or [::1]:9090, or off",
                "Serve everything that is read on this address, and not on PORT.",
            ),
            setting("QUERY_TIMEOUT", "30s", DURATION, "Maximum time of a query or statistics over HTTP."),
            setting(
                "QUERY_MAX_CONCURRENT",
                "2",
                COUNT,
                "Queries and statistics over HTTP at the same time. Each is a process of its own.",
            ),
            setting(
                "METRICS_USERNAME",
                "none",
                "a name, or none",
                "User name that permits reading `/metrics`, with METRICS_PASSWORD. The admin token does so, too.",
            ),
            setting("METRICS_PASSWORD", "none", "a password, or none", "Password for METRICS_USERNAME."),
        ],
    },
    Group {
        title: "Proxies and stamps",
        settings: &[
            setting(
                "TRUSTED_PROXIES",
                "none",
                "addresses and networks without host bits, such as 10.0.0.0/8,192.0.2.7, or none",
                "Proxies whose statements about the client address are trusted.",
            ),
            setting(
                "FORWARDED_HEADER",
                "x-forwarded-for",
                "x-forwarded-for or forwarded",
                "Header in which trusted proxies name the client.",
            ),
            setting(
                "PROXY_PROTOCOL",
                "off",
                SWITCH,
                "Connections from trusted proxies begin with a PROXY protocol header, version 1 or 2.",
            ),
            setting(
                "STAMP",
                "none",
                "a list of received_at, client_ip, user_agent, origin and header:NAME, or none",
                "Members that the server adds to each report: received_at, client_ip, user_agent, origin, header:NAME.",
            ),
            setting(
                "CLIENT_IP_MASK",
                "/32,/128",
                "prefix lengths for IPv4 and IPv6 such as /24,/48",
                "Number of address bits that the stamp client_ip keeps.",
            ),
        ],
    },
    Group {
        title: "Batches and disk",
        settings: &[
            setting(
                "BUFFER_BYTES",
                "64MiB",
                SIZE,
                "Memory for all batches: the active one and those that wait for the flush. At least twice BATCH_BYTES.",
            ),
            setting(
                "SPILL_BYTES",
                "1GiB",
                SIZE_OR_OFF,
                "Maximum disk space for spilled batches: batches that released their memory in a burst and are flushed \
                 later from their journals.",
            ),
            setting(
                "MIN_FREE_BYTES",
                "64MiB",
                SIZE_OR_OFF,
                "With less free disk space, the server refuses new reports. It still flushes the reports that it holds.",
            ),
            setting(
                "RETENTION_MAX_AGE",
                "off",
                AGE_OR_OFF,
                "Report files are deleted when their last report is this old. The newest file is never deleted.",
            ),
            setting(
                "RETENTION_MAX_BYTES",
                "off",
                SIZE_OR_OFF,
                "Maximum size of all report files together. Beyond it, the oldest files are deleted.",
            ),
            setting(
                "RETENTION_ON_FULL",
                "off",
                SWITCH,
                "With less than MIN_FREE_BYTES of free disk space, delete the oldest report files instead of refusing \
                 new reports.",
            ),
            setting("ZSTD_LEVEL", "1", LEVEL, "Compression level of report files."),
            setting(
                "ZSTD_THREADS",
                "auto",
                AUTO_THREADS,
                "Threads that compress one report file, and journals that are recovered at the same time. The memory can \
                 lower it.",
            ),
        ],
    },
    Group {
        title: "Limits",
        settings: &[
            setting("WORKERS", "auto", AUTO_COUNT, "Threads that handle requests."),
            setting(
                "REUSE_PORT",
                "off",
                SWITCH,
                "Share the port with other servers on this machine, for a restart without a gap.",
            ),
            setting("MAX_BODY_BYTES", "1MiB", SIZE, "Maximum size of a request body, before and after decoding."),
            setting(
                "INFLIGHT_BYTES",
                "64MiB",
                SIZE,
                "Memory for all request bodies that arrive compressed or in several pieces. At least twice \
                 MAX_BODY_BYTES.",
            ),
            setting(
                "MAX_CONNECTIONS",
                "auto",
                AUTO_CONNECTIONS,
                "Maximum number of open connections. The limit of open files can lower it. Further connections wait.",
            ),
            setting(
                "MAX_CONNECTIONS_PER_ADDRESS",
                "off",
                COUNT_OR_OFF,
                "Maximum number of open connections of one client address (IPv6: one /64 network). Further connections \
                 are closed.",
            ),
            setting(
                "HEADER_TIMEOUT",
                "10s",
                DURATION,
                "Maximum time from the first byte of a request to the end of its header.",
            ),
            setting("BODY_TIMEOUT", "30s", DURATION, "Maximum time for a request body."),
            setting(
                "COMMIT_TIMEOUT",
                "5s",
                DURATION,
                "Maximum time from the end of a body to the answer. A disk that does not respond in this time leads to \
                 a 503.",
            ),
            setting(
                "KEEP_ALIVE_TIMEOUT",
                "75s",
                DURATION,
                "Maximum idle time of a connection. Set it higher than the idle timeout of the load balancer.",
            ),
            setting(
                "SHUTDOWN_DELAY",
                "0s",
                DELAY,
                "Time between SIGTERM, when /readyz turns 503, and the end of service. Load balancers need it to notice.",
            ),
            setting(
                "SHUTDOWN_TIMEOUT",
                "8s",
                DURATION,
                "Maximum time for open requests after SHUTDOWN_DELAY. The flush that follows has no time limit.",
            ),
        ],
    },
];

/// All settings.
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    GROUPS.iter().flat_map(|group| group.settings)
}

/// The settings as `--help` shows them.
#[must_use]
pub fn help() -> String {
    let mut help = String::from("Settings (environment variables) and their defaults:\n");
    let written = GROUPS.iter().try_for_each(|Group { title, settings }| {
        writeln!(help, "\n {title}")?;
        settings.iter().try_for_each(|Setting { name, default, takes, help: purpose }| {
            writeln!(help, "  {name}={default}\n      {purpose} Valid: {takes}.")
        })
    });
    written.expect("writing to a string cannot fail");
    help + &format!(
        "\nSettings that are not in the environment are read from the file that {CONFIG_FILE} names, or else from \
         {DEFAULT_FILE} in\nthe working directory: lines of NAME=value. An empty value means the default. Switches \
         accept on/off, true/false, yes/no\nand 1/0. Letter case does not matter in switches, words and off."
    )
}
