//! The command line: settings, errors at the start, subcommands, health.

mod common;

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use common::{Server, command};
use netwatch_server::config::settings;

/// Runs a command until it exits. Returns the exit code, standard output and standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn an_invalid_setting_stops_the_start_with_one_error_line() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value, expected) in [
        ("PORT", "8o80", "a port"),
        ("PORT", "65536", "a port"),
        ("HOST", "localhost:1", "an IP address"),
        ("DEBUG", "maybe", "on or off"),
        ("LOG_FORMAT", "xml", "text or json"),
        ("BATCH_BYTES", "10 elephants", "a size"),
        ("FLUSH_INTERVAL", "60", "a duration"),
        ("FLUSH_INTERVAL", "-1s", "more than zero"),
        ("BODY_TIMEOUT", "0s", "more than zero"),
        ("ZSTD_LEVEL", "23", "from 1 to 22"),
        ("ZSTD_LEVEL", "0", "from 1 to 22"),
        ("CORS_ALLOW_ORIGINS", "app.example.com", "https://app.example.com"),
        ("CORS_ALLOW_ORIGINS", "https://app.example.com/", "without a path"),
        ("CORS_ALLOW_ORIGINS", "https://a.example, *", "* or a list"),
        ("DEDUP_WINDOW", "never", "or off"),
        ("FLUSH_INTERVAL", "off", "a duration"),
        ("RATE_LIMIT", "10", "10/s"),
        ("KEY_RATE_LIMIT", "10/s,20", "burst=100"),
        ("KEY_RATE_LIMIT", "10/s", "while WRITE_KEYS"),
        ("RATE_LIMIT", "1/h,burst=6000000", "10/s"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "0", "from 1 to 1000000"),
        ("WORKERS", "0", "from 1 to 1024"),
        ("MAX_CONNECTIONS", "0", "from 1 to 1000000"),
        ("KEEP_ALIVE_TIMEOUT", "1000000h", "up to a year"),
        ("BATCH_BYTES", "1MiB", "more than MAX_BODY_BYTES, which is 1.0 MiB"),
        ("BUFFER_BYTES", "19MiB", "at least twice BATCH_BYTES, which is 10.0 MiB"),
        ("INFLIGHT_BYTES", "2MB", "at least twice MAX_BODY_BYTES, which is 1.0 MiB"),
        ("MAX_BODY_BYTES", "1", "at least 2 bytes"),
    ] {
        let (code, _, error) = run(command(dir.path()).env(name, value));
        assert_eq!(code, 1, "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.starts_with(&format!("netwatch-server: {name} is {value:?}, but must be ")), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the server must not create files");
}

#[test]
fn write_keys_never_appear_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let short = "not-long-enough";
    let (code, _, error) = run(command(dir.path()).env("WRITE_KEYS", short));
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("16 to 128") && !error.contains(short), "{error}");

    let key = "long-enough-for-a-key";
    let server = Server::start(&[("WRITE_KEYS", key)]);
    let starting = server.wait_for_log("starting", |_| true).to_string();
    assert!(starting.contains("WRITE_KEYS=(secret)") && !starting.contains(key), "{starting}");

    let file = dir.path().join("settings");
    fs::write(&file, format!("DEBUG=true\nWRITE_KEYS={key}, another-{key}\n")).unwrap();
    let (code, _, error) = run(command(dir.path()).env("CONFIG_FILE", &file));
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("settings: the line after DEBUG is not"), "{error}");
    assert!(!error.contains(key), "{error}");

    let keys = dir.path().join("keys");
    fs::write(&keys, format!("{key}\n{short}\n")).unwrap();
    let (code, _, error) = run(command(dir.path()).env("WRITE_KEYS_FILE", &keys));
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("keys: line 2 is not") && !error.contains(short), "{error}");
}

#[test]
fn a_port_in_use_stops_the_start_with_one_error_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let (code, _, error) = run(command(dir.path()).env("HOST", "127.0.0.1").env("PORT", &port));
    assert_eq!(code, 1);
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(&port) && error.contains("in use"), "{error}");
}

#[test]
fn a_data_directory_that_cannot_be_created_stops_the_start_with_one_error_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    // Not even root can create a directory in /proc.
    for data_dir in ["file/reports", "/proc/reports"] {
        let (code, _, error) = run(command(dir.path()).env("PORT", "0").env("DATA_DIR", data_dir));
        assert_eq!(code, 1);
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(data_dir), "{error}");
    }
}

#[test]
fn the_environment_overrides_settings_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".env"), "# a comment\nPORT=1\nexport ZSTD_LEVEL='99'\nUNKNOWN=x\n").unwrap();
    fs::write(dir.path().join("other"), "FLUSH_INTERVAL=soon\n").unwrap();
    let (_, _, error) = run(command(dir.path()).env("PORT", "x"));
    assert!(error.contains("PORT is \"x\""), "{error}");
    let (_, _, error) = run(command(dir.path()).env("ZSTD_LEVEL", "88"));
    assert!(error.contains("ZSTD_LEVEL is \"88\""), "{error}");
    let (_, _, error) = run(&mut command(dir.path()));
    assert!(error.contains("ZSTD_LEVEL is \"99\""), "{error}");
    let (_, _, error) = run(command(dir.path()).env("CONFIG_FILE", "other"));
    assert!(error.contains("FLUSH_INTERVAL is \"soon\""), "{error}");
    let (code, _, error) = run(command(dir.path()).env("CONFIG_FILE", "none"));
    assert_eq!((code, error.lines().count()), (1, 1), "{error}");
    assert!(error.contains("none"), "{error}");
    fs::write(dir.path().join("broken"), "PORT\n").unwrap();
    let (code, _, error) = run(command(dir.path()).env("CONFIG_FILE", "broken"));
    assert_eq!((code, error.lines().count()), (1, 1), "{error}");
}

#[test]
fn an_empty_value_means_the_default() {
    let server = Server::start(&[("ZSTD_LEVEL", ""), ("BATCH_BYTES", " "), ("DEBUG", "on")]);
    let changed = server.wait_for_log("starting", |_| true)["fields"]["changed_settings"].as_str().unwrap().to_owned();
    assert!(changed.contains("DEBUG=on") && !changed.contains("ZSTD_LEVEL"), "{changed}");
    let all = server.wait_for_log("all settings", |_| true)["fields"]["settings"].as_str().unwrap().to_owned();
    for setting in settings() {
        assert!(all.contains(&format!("{}=", setting.name)), "{all}");
    }
    assert!(all.contains("ZSTD_LEVEL=1 ") && all.contains("BATCH_BYTES=10MiB "), "{all}");
}

#[test]
fn the_help_lists_every_setting_with_its_default() {
    let dir = tempfile::tempdir().unwrap();
    let (code, help, _) = run(command(dir.path()).arg("--help"));
    assert_eq!(code, 0);
    for setting in settings() {
        assert!(help.contains(&format!("{}={}\n", setting.name, setting.default)), "{help}");
    }
}

#[test]
fn likely_mistakes_in_the_configuration_are_warnings() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("settings"), "BATCH_BYTSE=1MiB\nBUFFER_BYTES=1EiB\nPORT=x\n").unwrap();
    // The invalid port stops the start. Its error is the only line, without the warnings.
    let (code, _, error) = run(command(dir.path()).env("CONFIG_FILE", "settings"));
    assert_eq!((code, error.lines().count()), (1, 1), "{error}");
    fs::write(dir.path().join("settings"), "BATCH_BYTSE=1MiB\n").unwrap();
    let recover = |command: &mut Command| run(command.arg("recover").arg(dir.path()));
    let (code, _, log) = recover(command(dir.path()).env("CONFIG_FILE", "settings"));
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("BATCH_BYTSE in settings is not a setting; did you mean BATCH_BYTES?"), "{log}");
}

#[test]
fn all_invalid_settings_are_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let invalid = [("PORT", "x"), ("ACK", "never"), ("TRUSTED_PROXIES", "10.0.0.5/8"), ("ZSTD_LEVEL", "high")];
    let (code, _, error) = run(command(dir.path()).envs(invalid));
    assert_eq!((code, error.lines().count()), (1, invalid.len()), "{error}");
    for (name, _) in invalid {
        assert!(error.contains(&format!("netwatch-server: {name} is ")), "{error}");
    }
}

#[test]
fn a_large_buffer_uses_no_physical_memory_until_it_is_filled() {
    let server = Server::start(&[("BUFFER_BYTES", "8GiB")]);
    server.post("{}").assert_ok();
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 100 << 10, "{peak_kib} KiB");
}

#[test]
fn the_start_logs_the_url_and_the_changed_settings() {
    let server = Server::start(&[("ZSTD_LEVEL", "3")]);
    let changed = server.wait_for_log("starting", |_| true)["fields"]["changed_settings"].as_str().unwrap().to_owned();
    assert!(changed.contains("ZSTD_LEVEL=3") && !changed.contains("ACK="), "{changed}");
    let url = server.wait_for_log("listening", |_| true)["fields"]["url"].as_str().unwrap().to_owned();
    assert_eq!(url, format!("http://{}/api/v1/reports", server.address));
}

#[test]
fn the_version_option_prints_the_name_and_the_version() {
    let dir = tempfile::tempdir().unwrap();
    let (code, version, _) = run(command(dir.path()).arg("--version"));
    assert_eq!((code, version.trim()), (0, concat!("netwatch-server ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn health_is_json_with_status_version_and_uptime() {
    let server = Server::start(&[]);
    for path in ["/livez", "/readyz", "/.well-known/healthcheck.json", "/.well-known/healthcheck"] {
        let answer = server.get(path);
        assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "application/json"), "{path}");
        let health = answer.json();
        assert_eq!(health["status"], "ok");
        assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
        assert!(health["uptime"].is_u64());
    }
}

#[test]
fn the_healthcheck_command_succeeds_only_while_the_server_runs() {
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let port = server.address.port().to_string();
    let check = |host: &str| run(command(dir.path()).arg("healthcheck").env("HOST", host).env("PORT", &port));
    assert_eq!(check("127.0.0.1"), (0, String::new(), String::new()));
    assert_eq!(check("::"), (0, String::new(), String::new()));
    assert!(server.stop().is_empty());
    let (code, _, error) = check("127.0.0.1");
    assert_eq!((code, error.lines().count()), (1, 1), "{error}");
    assert!(error.contains("/livez"), "{error}");
}

#[test]
fn the_default_host_accepts_ipv4_and_ipv6() {
    let server = Server::start(&[("HOST", "::")]);
    for host in ["127.0.0.1", "::1"] {
        let address = std::net::SocketAddr::new(host.parse().unwrap(), server.address.port());
        if host == "::1" && TcpListener::bind("[::1]:0").is_err() {
            continue; // a machine without IPv6
        }
        std::net::TcpStream::connect(address).unwrap();
    }
}

#[test]
fn a_failed_write_to_standard_output_is_an_error_and_not_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    for subcommand in ["recover", "verify"] {
        fs::create_dir_all(dir.path().join("journal")).unwrap();
        fs::write(dir.path().join("journal/reports-20261122T150512.123456789Z-5f3a9c01.jsonl"), "{}\n").unwrap();
        let full = fs::File::create("/dev/full").unwrap();
        let output = command(dir.path()).arg(subcommand).arg(dir.path()).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(!String::from_utf8(output.stderr).unwrap().contains("panicked"));
    }
}

#[test]
fn a_limit_of_the_file_size_is_an_error_and_not_the_end_of_the_process() {
    let dir = tempfile::tempdir().unwrap();
    // The first journal is larger.
    let limited = format!("ulimit -f 1024 && exec {}", env!("CARGO_BIN_EXE_netwatch-server"));
    let mut shell = Command::new("bash");
    shell
        .args(["-c", &limited])
        .env_clear()
        .env("CONFIG_FILE", "/dev/null")
        .env("PORT", "0")
        .env("DATA_DIR", dir.path());
    let (code, _, error) = run(&mut shell);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("can't allocate") && error.contains("File too large"), "{error}");
}
