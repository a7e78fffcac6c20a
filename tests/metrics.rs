//! `GET /metrics`, and who may read it.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::{Answer, Client, Server, command, gzip, request, wait_until};
use rustix::process::Signal;

const TOKEN: &str = "an-admin-token-of-a-test";

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

fn basic(login: &str) -> String {
    format!("authorization: Basic {}\r\n", BASE64_STANDARD.encode(login))
}

fn get(address: SocketAddr, path: &str, headers: &str) -> Answer {
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    Client::try_connect(address).unwrap().ask(&head, b"")
}

/// The samples of a scrape: name with labels, and value.
fn samples(server: &Server) -> BTreeMap<String, f64> {
    let answer = get(server.address, "/metrics", &bearer(TOKEN));
    assert_eq!(answer.status, 200, "{answer:?}");
    let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

fn start(settings: &[(&str, &str)]) -> Server {
    Server::start(&[settings, &[("ADMIN_TOKEN", TOKEN)]].concat())
}

#[test]
fn counts_of_reports_and_requests_are_exact() {
    let server = start(&[("DEDUP_WINDOW", "1h"), ("MAX_BODY_BYTES", "1KiB"), ("FLUSH_INTERVAL", "50ms")]);
    let mut client = server.connect();
    for n in 0..20 {
        client.post(format!("{{\"n\":{n}}}")).assert_ok();
    }
    assert_eq!(client.post("[{},{},{}]").status, 200);
    assert_eq!(client.post_with("content-encoding: gzip\r\n", gzip("{}\n{}\n")).status, 200);
    for _ in 0..3 {
        client.post_with("idempotency-key: one\r\n", "{}").assert_ok();
    }
    client.post("{").assert_problem(400, "not-json");
    server.post(" ".repeat(2000)).assert_problem(413, "too-large");
    server.get("/nowhere").assert_problem(404, "not-found");
    let stored = wait_until("all reports are in files", || Some(server.stored()).filter(|stored| stored.len() == 26));

    let bytes: usize = stored.iter().map(|line| line.len() + 1).sum();
    // A flush is counted after its file has appeared. Each scrape is a request, too.
    let mut requests = 27.0;
    let samples = wait_until("all flushes are counted", || {
        requests += 1.0;
        let samples = samples(&server);
        let sealed = samples["netwatch_buffer_batches{state=\"sealed\"}"];
        let is_counted = samples["netwatch_file_bytes_total{kind=\"raw\"}"] >= bytes as f64 && sealed == 0.0;
        (is_counted && samples["netwatch_flushes_total{trigger=\"interval\",outcome=\"ok\"}"] >= 1.0).then_some(samples)
    });
    let value = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("no {name} in {samples:?}"));
    assert_eq!(value("netwatch_reports_accepted_total"), 26.0);
    assert_eq!(value("netwatch_report_bytes_total"), bytes as f64);
    assert_eq!(value("netwatch_file_bytes_total{kind=\"raw\"}"), bytes as f64);
    assert_eq!(value("netwatch_http_requests_total{route=\"/api/v1/reports\",code=\"200\"}"), 25.0);
    assert_eq!(value("netwatch_http_requests_total{route=\"/api/v1/reports\",code=\"400\"}"), 1.0);
    assert_eq!(value("netwatch_http_requests_total{route=\"other\",code=\"404\"}"), 1.0);
    assert_eq!(value("netwatch_requests_refused_total{reason=\"not-json\"}"), 1.0);
    assert_eq!(value("netwatch_requests_refused_total{reason=\"too-large\"}"), 1.0);
    assert_eq!(value("netwatch_requests_refused_total{reason=\"empty\"}"), 0.0);
    assert_eq!(value("netwatch_http_request_duration_seconds_count"), requests);
    assert_eq!(value("netwatch_http_request_duration_seconds_bucket{le=\"+Inf\"}"), requests);
    assert_eq!(value("netwatch_journal_group_reports_sum"), 26.0);
    assert_eq!(value("netwatch_buffer_batches{state=\"active\"}"), 1.0);
    assert!(value("netwatch_open_connections") >= 1.0);
    assert!(value("netwatch_disk_free_bytes") > 0.0 && value("process_resident_memory_bytes") > 0.0);
    for lost in ["corrupt-journal", "corrupt-file"] {
        assert_eq!(value(&format!("netwatch_reports_lost_total{{reason=\"{lost}\"}}")), 0.0);
    }
    let started = value("process_start_time_seconds");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(started <= now + 1.0 && started > now - 600.0, "{started} {now}");
}

#[test]
fn after_a_kill_the_recovered_reports_are_those_that_were_in_no_file_and_none_counts_as_accepted() {
    let dir = tempfile::tempdir().unwrap();
    // Only full batches become files.
    let settings = [
        ("ADMIN_TOKEN", TOKEN),
        ("FLUSH_INTERVAL", "1h"),
        ("MAX_BODY_BYTES", "1KiB"),
        ("BATCH_BYTES", "4KiB"),
        ("BUFFER_BYTES", "64KiB"),
    ];
    let mut server = Server::start_in(dir.path(), &settings);
    let mut client = server.connect();
    let report = |n: usize| format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(300));
    let mut acknowledged = 0;
    // Until some reports are in files and some are not.
    let flushed = wait_until("the active batch has reports, and other batches are in files", || {
        client.post_until_capacity(report(acknowledged)).assert_ok();
        acknowledged += 1;
        let samples = samples(&server);
        let has_sealed = samples["netwatch_buffer_batches{state=\"sealed\"}"] > 0.0;
        let flushed = server.stored().len();
        (!has_sealed && flushed > 0 && flushed < acknowledged).then_some(flushed)
    });
    assert_eq!(samples(&server)["netwatch_reports_accepted_total"], acknowledged as f64);
    server.signal(Signal::KILL);
    server.wait();
    assert_eq!(server.stored().len(), flushed);

    let server = Server::start_in(dir.path(), &settings);
    assert_eq!(samples(&server)["netwatch_reports_accepted_total"], 0.0);
    let stored =
        wait_until("the reports are recovered", || Some(server.stored()).filter(|stored| stored.len() >= acknowledged));
    let recovered = wait_until("the recovery is counted", || {
        Some(samples(&server)["netwatch_recovered_reports_total"]).filter(|recovered| *recovered > 0.0)
    });
    assert_eq!((stored.len(), recovered), (acknowledged, (acknowledged - flushed) as f64));
    server.post("{}").assert_ok();
    let samples = samples(&server);
    assert_eq!(samples["netwatch_reports_accepted_total"], 1.0);
    assert_eq!(samples["netwatch_recovered_reports_total"], recovered);
    assert_eq!(server.stop().len(), acknowledged + 1);
}

#[test]
fn the_documentation_lists_exactly_the_metrics_of_a_scrape() {
    let server = start(&[]);
    server.post("{}").assert_ok();
    let body = get(server.address, "/metrics", &bearer(TOKEN)).body;
    let types = body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let scraped: BTreeMap<_, _> = types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
    let label_names = |name: &str| {
        let mut names = BTreeSet::new();
        let lines = body.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once('}'));
        for label in lines.flat_map(|(labels, _)| labels.split("\",")).filter_map(|label| label.split_once('=')) {
            names.insert(label.0.to_owned());
        }
        names
    };
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    let (_, table) = docs.split_once("## All metrics").unwrap();
    let mut listed = BTreeMap::new();
    for row in table.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let name = cells[0].trim_end_matches('`').to_owned();
        let labels: BTreeSet<_> = cells[2]
            .split(',')
            .map(|label| label.trim().trim_matches('`').to_owned())
            .filter(|label| !label.is_empty())
            .collect();
        assert_eq!(labels, label_names(&name), "labels of {name}");
        listed.insert(name, cells[1].to_owned());
    }
    assert_eq!(listed, scraped);
    assert!(scraped.keys().all(|name| name.starts_with("netwatch_") || name.starts_with("process_")));
}

#[test]
fn a_client_that_accepts_openmetrics_gets_it() {
    let server = start(&[]);
    let prometheus =
        "accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1\r\n";
    let answer = get(server.address, "/metrics", &format!("{}{prometheus}", bearer(TOKEN)));
    assert!(answer.headers["content-type"].starts_with("application/openmetrics-text; version=1.0.0"), "{answer:?}");
    assert!(answer.body.ends_with("# EOF\n") && answer.body.contains("# TYPE netwatch_reports_accepted counter\n"));
    for accept in ["", "accept: text/plain\r\n", "accept: */*\r\n", "accept: application/openmetrics-text;q=0\r\n"] {
        let answer = get(server.address, "/metrics", &format!("{}{accept}", bearer(TOKEN)));
        assert!(answer.headers["content-type"].starts_with("text/plain; version=0.0.4"), "{accept} {answer:?}");
        assert!(answer.body.contains("# TYPE netwatch_reports_accepted_total counter\n"));
    }
}

#[test]
fn only_the_admin_token_permits_reading_and_only_a_write_key_permits_sending() {
    let key = "a-write-key-of-a-test";
    let server = start(&[("WRITE_KEYS", key)]);
    let refused = get(server.address, "/metrics", "");
    assert_eq!(refused.headers["www-authenticate"], "Basic realm=\"netwatch-server\"");
    refused.assert_problem(401, "admin-token-missing");
    get(server.address, "/metrics", &format!("x-write-key: {key}\r\n")).assert_problem(401, "admin-token-missing");
    get(server.address, &format!("/metrics?key={key}"), "").assert_problem(401, "admin-token-missing");
    get(server.address, "/metrics", &bearer(key)).assert_problem(401, "admin-token-wrong");
    assert_eq!(get(server.address, "/metrics", &bearer(TOKEN)).status, 200);
    assert_eq!(get(server.address, "/metrics", &basic(&format!("anybody:{TOKEN}"))).status, 200);
    server.post_with(&bearer(TOKEN), "{}").assert_problem(401, "key-wrong");
    server.post_with(&bearer(key), "{}").assert_ok();
    let samples = samples(&server);
    assert_eq!(samples["netwatch_admin_requests_refused_total"], 4.0);
    server
        .connect()
        .ask(&format!("POST /metrics HTTP/1.1\r\nhost: test\r\n{}\r\n", bearer(TOKEN)), b"")
        .assert_problem(405, "method-not-allowed");
    let log = {
        let mut server = server;
        server.signal(Signal::TERM);
        server.wait();
        server.log()
    };
    assert!(!log.contains(TOKEN) && !log.contains(key), "{log}");
}

#[test]
fn without_a_token_nobody_may_read_and_the_answer_names_the_setting() {
    let server = Server::start(&[]);
    for headers in [String::new(), bearer(TOKEN), bearer("auto"), bearer("none")] {
        let detail = get(server.address, "/metrics", &headers).assert_problem(403, "admin-closed");
        assert!(detail.contains("ADMIN_TOKEN"), "{detail}");
    }
}

#[test]
fn an_admin_listener_serves_everything_that_is_read_and_the_port_does_not() {
    let server = Server::start(&[("ADMIN_LISTEN", "127.0.0.1:0"), ("ADMIN_TOKEN", "none")]);
    let admin: SocketAddr = {
        let line = server.wait_for_log("listening for readers", |_| true);
        line["fields"]["address"].as_str().unwrap().parse().unwrap()
    };
    get(server.address, "/metrics", "").assert_problem(404, "not-found");
    server.post("{}").assert_ok();
    let metrics = get(admin, "/metrics", "");
    assert!(metrics.body.contains("netwatch_reports_accepted_total 1\n"), "{metrics:?}");
    assert_eq!((get(admin, "/readyz", "").status, get(admin, "/livez", "").status), (200, 200));
    let mut client = Client::try_connect(admin).unwrap();
    client.send(request(b"{}"));
    client.answer().assert_problem(404, "not-found");
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn the_user_name_and_password_of_the_earlier_server_permit_reading_metrics() {
    let server = Server::start(&[("METRICS_USERNAME", "prometheus"), ("METRICS_PASSWORD", "secret")]);
    assert_eq!(get(server.address, "/metrics", &basic("prometheus:secret")).status, 200);
    get(server.address, "/metrics", &basic("prometheus:wrong")).assert_problem(401, "admin-token-wrong");
    get(server.address, "/metrics", "").assert_problem(401, "admin-token-missing");
}

#[test]
fn sighup_reloads_the_token_from_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    fs::write(&file, "the-first-token-in-the-file\n").unwrap();
    let server = Server::start(&[("ADMIN_TOKEN_FILE", file.to_str().unwrap())]);
    let status = |token: &str| get(server.address, "/metrics", &bearer(token)).status;
    assert_eq!(status("the-first-token-in-the-file"), 200);
    fs::write(&file, "the-second-token-in-the-file\n").unwrap();
    server.signal(Signal::HUP);
    wait_until("the token is reloaded", || (status("the-second-token-in-the-file") == 200).then_some(()));
    assert_eq!(status("the-first-token-in-the-file"), 401);
    fs::write(&file, "short\n").unwrap();
    server.signal(Signal::HUP);
    server.wait_for_log("can't reload the write keys and the admin token; keeping the current ones", |_| true);
    assert_eq!(status("the-second-token-in-the-file"), 200);
}

#[test]
fn settings_that_would_open_the_reports_to_everybody_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (settings, message) in [
        (&[("ADMIN_TOKEN", "none")][..], "ADMIN_TOKEN is \"none\", but must be a token while ADMIN_LISTEN is off"),
        (&[("ADMIN_TOKEN", "0123456789abcdef"), ("WRITE_KEYS", "0123456789abcdef")], "different from all WRITE_KEYS"),
        (&[("ADMIN_TOKEN", "short")], "ADMIN_TOKEN is \"(secret)\""),
        (&[("METRICS_PASSWORD", "x")], "METRICS_PASSWORD"),
        (&[("METRICS_USERNAME", "x")], "METRICS_PASSWORD"),
    ] {
        let output = command(dir.path()).envs(settings.iter().copied()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{settings:?}: {stderr}");
        assert!(stderr.contains(message), "{settings:?}: {stderr}");
        assert!(!stderr.contains("0123456789abcdef"), "{stderr}");
    }
}
