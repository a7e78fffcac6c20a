//! Queries, statistics, tails and the live state over HTTP: answers, limits, and the end of their processes.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use common::{Answer, Client, Server, wait_until};
use rustix::process::Signal;
use serde_json::Value;

const TOKEN: &str = "an-admin-token-of-a-test";

/// A filter that never ends, and has no output.
const ENDLESS: &str = "filter=def%20f:%20f;%20f";

/// A filter with endless output for each report.
const FLOOD: &str = "filter=repeat(%22xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx%22)";

fn start(settings: &[(&str, &str)]) -> Server {
    Server::start(&[settings, &[("ADMIN_TOKEN", TOKEN)]].concat())
}

fn head(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {TOKEN}\r\n{headers}\r\n")
}

fn ask(server: &Server, path: &str, headers: &str) -> (Client, Answer) {
    let mut client = server.connect();
    client.send(head(path, headers));
    let answer = client.answer();
    (client, answer)
}

/// Sends a request and does not wait for the answer.
fn begin(server: &Server, path: &str) -> Client {
    let mut client = server.connect();
    client.send(head(path, ""));
    client
}

/// The body and the trailers of a streamed answer with status 200.
fn query(server: &Server, path: &str) -> (String, String) {
    let (mut client, answer) = ask(server, path, "te: trailers\r\n");
    assert_eq!(answer.status, 200, "{answer:?}");
    let (body, trailers) = client.try_chunks().unwrap();
    (String::from_utf8(body).unwrap(), trailers)
}

/// The child processes of a server that have not ended.
fn children(server: &Server) -> Vec<u32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        // The name in parentheses may contain anything.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        fields.get(1).is_some_and(|parent| *parent == server.id().to_string())
    };
    processes.filter(is_child).collect()
}

fn wait_for_children(server: &Server, count: usize) -> Vec<u32> {
    wait_until(&format!("there are {count} child processes"), || {
        Some(children(server)).filter(|children| children.len() == count)
    })
}

#[test]
fn reports_are_readable_as_soon_as_they_are_acknowledged_and_the_trailer_says_that_all_are_there() {
    let server = start(&[]);
    for n in 1..=3 {
        server.post(format!("{{\"n\":{n}}}")).assert_ok();
    }
    let complete = "netwatch-status: complete";
    let all = "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n";
    assert_eq!(query(&server, "/api/v1/reports"), (all.to_owned(), complete.to_owned()));
    let (some, status) = query(&server, "/api/v1/reports?filter=.n%3E1&limit=1&format=json");
    assert_eq!((serde_json::from_str::<Value>(&some).unwrap(), &*status), (serde_json::json!([{ "n": 2 }]), complete));
    let (stats, status) = query(&server, "/api/v1/stats?path=.n");
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!((&stats["series"][0]["count"], &*status), (&Value::from(3), complete));

    for (path, content_type) in [
        ("/api/v1/reports", "application/x-ndjson"),
        ("/api/v1/reports?format=json", "application/json"),
        ("/api/v1/reports?format=csv", "text/csv; charset=utf-8"),
        ("/api/v1/stats?path=.n", "application/json"),
        ("/api/v1/stats?path=.n&format=csv", "text/csv; charset=utf-8"),
        ("/api/v1/stats?path=.n&format=svg", "image/svg+xml"),
        ("/api/v1/stats?path=.n&format=table", "text/plain; charset=utf-8"),
    ] {
        let (mut client, answer) = ask(&server, path, "");
        assert_eq!((answer.status, &*answer.headers["content-type"]), (200, content_type), "{path}");
        assert!(answer.headers["content-security-policy"].contains("default-src 'none'"), "{path}");
        let (body, trailers) = client.try_chunks().unwrap();
        assert!(!body.is_empty() && trailers.is_empty(), "{path}: no trailer for a client that does not ask for it");
        // The connection is usable for further requests.
        client.post("{}").assert_ok();
    }
    for (accept, encoding) in [("zstd, gzip", "zstd"), ("gzip", "gzip")] {
        let (mut client, answer) = ask(&server, "/api/v1/reports?filter=.n", &format!("accept-encoding: {accept}\r\n"));
        assert_eq!((&*answer.headers["content-encoding"], &*answer.headers["vary"]), (encoding, "Accept-Encoding"));
        let (body, _) = client.try_chunks().unwrap();
        let text = match encoding {
            "zstd" => zstd::decode_all(&body[..]).unwrap(),
            _ => std::io::read_to_string(flate2::read::GzDecoder::new(&body[..])).unwrap().into_bytes(),
        };
        assert_eq!(text, b"1\n2\n3\n");
    }
}

#[test]
fn invalid_parameters_are_answers_and_no_files() {
    let server = start(&[]);
    for path in [
        "/api/v1/reports?filter=.a%20%3E",
        "/api/v1/reports?since=yesterday",
        "/api/v1/reports?limit=-1",
        "/api/v1/reports?limit=1&limit=2",
        "/api/v1/reports?dir=/etc",
        "/api/v1/reports?format=xml",
        "/api/v1/reports?filter=%ff",
        "/api/v1/reports?filter=a%00b",
        "/api/v1/reports?filter=env",
        "/api/v1/reports?filter=input_filename",
        "/api/v1/stats",
        "/api/v1/stats?path=x%20y",
        "/api/v1/stats?path=.a&quantiles=2",
        "/api/v1/reports/tail?filter=.a%20%3E",
        "/api/v1/reports/tail?follow=",
        "/api/v1/live?x=1",
    ] {
        let detail = ask(&server, path, "").1.assert_problem(400, "bad-query");
        assert!(!detail.contains(server.data_dir.to_str().unwrap()) && !detail.contains("Usage"), "{path}: {detail}");
    }
    let long = format!("/api/v1/reports?filter={}", "x".repeat(8192));
    ask(&server, &long, "").1.assert_problem(400, "bad-query");
    // A value is never an option.
    server.post("{}").assert_ok();
    assert_eq!(query(&server, "/api/v1/reports?filter=-1").0, "-1\n");
    let detail = ask(&server, "/api/v1/reports?filter=--help", "").1.assert_problem(400, "bad-query");
    assert!(detail.contains("unknown filter"), "{detail}");
}

#[test]
fn a_corrupt_file_is_named_in_the_trailer_without_its_directory() {
    let server = start(&[("FLUSH_INTERVAL", "10ms")]);
    server.post("{\"n\":1}").assert_ok();
    let file = wait_until("the report is published", || common::report_files(&server.data_dir).pop());
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&file, bytes).unwrap();
    let (_, status) = query(&server, "/api/v1/reports?filter=.");
    assert!(status.starts_with("netwatch-status: incomplete; ") && status.contains(&name), "{status}");
    assert!(!status.contains(server.data_dir.to_str().unwrap()), "{status}");
}

#[test]
fn a_child_has_no_secret_and_low_priority_and_dies_with_its_client() {
    let settings = [
        ("WRITE_KEYS", "a-write-key-of-a-test"),
        ("METRICS_USERNAME", "u"),
        ("METRICS_PASSWORD", "a-password"),
        ("QUERY_TIMEOUT", "1h"),
    ];
    let server = start(&settings);
    server.post_with("x-write-key: a-write-key-of-a-test\r\n", "{}").assert_ok();
    for path in [format!("/api/v1/reports?{ENDLESS}"), "/api/v1/reports/tail".to_owned()] {
        let client = begin(&server, &path);
        let child = wait_for_children(&server, 1)[0];
        wait_until("the child has set its limits", || {
            // It does this last.
            let adjustment = fs::read_to_string(format!("/proc/{child}/oom_score_adj")).unwrap();
            (adjustment.trim() == "1000").then_some(())
        });
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
        // The name in parentheses may contain anything. 16 fields are between it and the nice level.
        assert_eq!(stat.rsplit(')').next().unwrap().split_whitespace().nth(16), Some("19"), "{stat}");
        let environment = fs::read_to_string(format!("/proc/{child}/environ")).unwrap();
        let names: Vec<_> = environment.split_terminator('\0').map(|line| line.split('=').next().unwrap()).collect();
        assert_eq!(names, ["MALLOC_ARENA_MAX", "MIMALLOC_ARENA_RESERVE"]);
        let arguments = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap();
        for secret in [TOKEN, "a-write-key-of-a-test", "a-password"] {
            assert!(!environment.contains(secret) && !arguments.contains(secret));
        }
        let limits = fs::read_to_string(format!("/proc/{child}/limits")).unwrap();
        let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(!limit("Max address space").contains("unlimited"), "{limits}");
        assert_eq!(limit("Max cpu time").contains("unlimited"), path.ends_with("tail"), "{limits}");
        // It has neither the sockets nor the files of the server.
        for entry in fs::read_dir(format!("/proc/{child}/fd")).unwrap() {
            let target = fs::read_link(entry.unwrap().path()).unwrap();
            assert!(!target.to_str().unwrap().starts_with("socket:"), "{target:?}");
        }
        drop(client);
        wait_for_children(&server, 0);
    }
}

#[test]
fn a_client_that_leaves_during_its_output_ends_the_child() {
    let server = start(&[("QUERY_TIMEOUT", "1h")]);
    server.post("{}").assert_ok();
    for is_reset in [false, true] {
        let (mut client, answer) = ask(&server, &format!("/api/v1/reports?{FLOOD}"), "");
        assert_eq!(answer.status, 200);
        client.try_chunk().unwrap().unwrap();
        wait_for_children(&server, 1);
        if is_reset {
            client.reset_on_drop();
        }
        drop(client);
        wait_for_children(&server, 0);
    }
}

#[test]
fn queries_beyond_the_limit_are_refused_and_do_not_delay_reports() {
    let server = start(&[("QUERY_MAX_CONCURRENT", "2"), ("QUERY_TIMEOUT", "1h")]);
    server.post("{}").assert_ok();
    let path = format!("/api/v1/reports?{ENDLESS}");
    let running = [begin(&server, &path), begin(&server, &path)];
    wait_for_children(&server, 2);
    let refused = ask(&server, "/api/v1/reports", "").1;
    refused.assert_problem(503, "too-many-queries");
    assert_eq!(refused.headers["retry-after"], "2");
    ask(&server, "/api/v1/stats?path=.n", "").1.assert_problem(503, "too-many-queries");
    server.post("{}").assert_ok();
    assert_eq!(children(&server).len(), 2);
    // A query that waits gets the place of one that ends.
    let mut waiting = begin(&server, "/api/v1/reports");
    drop(running);
    assert_eq!(waiting.answer().status, 200);
    assert_eq!(waiting.try_chunks().unwrap().0, b"{}\n{}\n");
    wait_for_children(&server, 0);
}

#[test]
fn tails_and_live_views_are_limited_and_a_place_is_free_after_each() {
    let server = start(&[]);
    server.post("{}").assert_ok();
    for (path, max) in [("/api/v1/reports/tail", 8), ("/api/v1/live", 64)] {
        let mut open: Vec<_> = (0..max).map(|_| ask(&server, path, "")).collect();
        for (client, answer) in &mut open {
            assert_eq!((answer.status, &*answer.headers["content-type"]), (200, "text/event-stream"), "{answer:?}");
            assert!(client.try_chunk().unwrap().unwrap().starts_with(b"data: "));
        }
        ask(&server, path, "").1.assert_problem(503, "too-many-queries");
        open.pop();
        wait_until("another one is accepted", || (ask(&server, path, "").1.status == 200).then_some(()));
    }
    wait_for_children(&server, 0);
}

#[test]
fn a_query_that_takes_too_long_is_killed() {
    let server = start(&[("QUERY_TIMEOUT", "300ms")]);
    server.post("{}").assert_ok();
    let detail = ask(&server, &format!("/api/v1/reports?{ENDLESS}"), "").1.assert_problem(422, "query-failed");
    assert!(detail.contains("QUERY_TIMEOUT"), "{detail}");
    wait_for_children(&server, 0);
    // After the first output, only the trailer can say it, and the end of the connection.
    let path = format!("/api/v1/reports?{FLOOD}");
    let (_, status) = query(&server, &path);
    assert!(status.starts_with("netwatch-status: incomplete; ") && status.contains("QUERY_TIMEOUT"), "{status}");
    let (mut client, answer) = ask(&server, &path, "");
    assert_eq!(answer.status, 200);
    assert_eq!(client.try_chunks().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    wait_for_children(&server, 0);
}

#[test]
fn a_query_that_needs_too_much_memory_ends_and_does_not_affect_others() {
    let server = start(&[("QUERY_TIMEOUT", "1m")]);
    server.post("{\"n\":1}").assert_ok();
    let mut hungry = begin(&server, "/api/v1/reports?filter=def%20f:%20%5Bf%5D;%20f");
    assert_eq!(query(&server, "/api/v1/reports?filter=.n").0, "1\n");
    hungry.answer().assert_problem(422, "query-failed");
    server.post("{}").assert_ok();
}

#[test]
fn a_client_that_does_not_read_its_query_is_closed_and_its_child_killed() {
    let server = start(&[("KEEP_ALIVE_TIMEOUT", "500ms"), ("QUERY_TIMEOUT", "1h")]);
    server.post("{}").assert_ok();
    let (_client, answer) = ask(&server, &format!("/api/v1/reports?{FLOOD}"), "");
    assert_eq!(answer.status, 200);
    wait_for_children(&server, 0);
    // A stream without news is no reason to close the connection.
    let (mut idle, answer) = ask(&server, "/api/v1/reports/tail", "");
    assert_eq!(answer.status, 200);
    assert_eq!(idle.try_chunk().unwrap().unwrap(), b"data: {}\n\n");
    std::thread::sleep(Duration::from_millis(1500)); // several times the time limit
    server.post("{\"n\":2}").assert_ok();
    assert_eq!(idle.try_chunk().unwrap().unwrap(), b"data: {\"n\":2}\n\n");
}

#[test]
fn a_shutdown_ends_queries_tails_and_live_views_at_once() {
    let mut server = start(&[("SHUTDOWN_TIMEOUT", "1h"), ("QUERY_TIMEOUT", "1h"), ("KEEP_ALIVE_TIMEOUT", "1h")]);
    server.post("{}").assert_ok();
    let mut silent = begin(&server, &format!("/api/v1/reports?{ENDLESS}"));
    let (mut tail, _) = ask(&server, "/api/v1/reports/tail", "");
    let (mut live, _) = ask(&server, "/api/v1/live", "");
    let (mut flood, _) = ask(&server, &format!("/api/v1/reports?{FLOOD}"), "");
    for client in [&mut tail, &mut live, &mut flood] {
        client.try_chunk().unwrap().unwrap();
    }
    let pids = wait_for_children(&server, 3);
    server.signal(Signal::TERM);
    let started = Instant::now();
    silent.answer().assert_problem(503, "stopping");
    // Events end in an orderly way, so that a browser connects again.
    for client in [&mut tail, &mut live] {
        let (_, trailers) = client.try_chunks().unwrap();
        assert_eq!(trailers, "");
    }
    // The flood is not read until the end: it must not delay the shutdown.
    assert!(server.wait().success());
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert!(flood.try_chunks().is_err(), "an output that ends early is not a complete one");
    for pid in pids {
        wait_until("the child has ended", || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()));
    }
    assert_eq!(server.stored(), ["{}"]);
}

#[test]
fn children_end_with_a_server_that_is_killed() {
    let mut server = start(&[("QUERY_TIMEOUT", "1h")]);
    server.post("{}").assert_ok();
    let _query = begin(&server, &format!("/api/v1/reports?{ENDLESS}"));
    let _tail = begin(&server, "/api/v1/reports/tail");
    let pids = wait_for_children(&server, 2);
    for pid in &pids {
        // Until then, it has not asked to die with its parent.
        wait_until("the child runs the command", || {
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            (!limits.lines().any(|line| line.starts_with("Max address space") && line.contains("unlimited")))
                .then_some(())
        });
    }
    server.signal(Signal::KILL);
    server.wait();
    for pid in pids {
        wait_until("the child has ended", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        });
    }
}

#[test]
fn a_replaced_or_deleted_program_still_runs_queries() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("netwatch-server");
    fs::copy(env!("CARGO_BIN_EXE_netwatch-server"), &program).unwrap();
    let mut command = std::process::Command::new(&program);
    command.env_clear().current_dir(dir.path()).stdin(std::process::Stdio::null());
    let server = Server::spawn_from(command, &dir.path().join("data"), &[("ADMIN_TOKEN", TOKEN)], None);
    server.post("{}").assert_ok();
    fs::remove_file(&program).unwrap();
    assert_eq!(query(&server, "/api/v1/reports").0, "{}\n");
    fs::write(&program, "#!/bin/false\n").unwrap();
    assert_eq!(query(&server, "/api/v1/reports").0, "{}\n");
}

#[test]
fn the_live_state_counts_reports_and_refusals() {
    let server = start(&[]);
    server.post("{}").assert_ok();
    server.post("{").assert_problem(400, "not-json");
    let (mut client, answer) = ask(&server, "/api/v1/live", "");
    assert_eq!(answer.headers["cache-control"], "no-store");
    let mut next = || {
        let event = String::from_utf8(client.try_chunk().unwrap().unwrap()).unwrap();
        let data = event.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
        serde_json::from_str::<Value>(data).unwrap()
    };
    let first = next();
    assert_eq!((&first["reports"], &first["refused"]["not-json"]), (&Value::from(1), &Value::from(1)));
    assert!(first["latency_ms"]["p99"].is_null(), "nothing happened since: {first}");
    (0..5).for_each(|_| server.post("{}").assert_ok());
    let later = wait_until("the reports are counted", || Some(next()).filter(|state| state["reports"] == 6));
    assert!(later["latency_ms"]["p99"].as_f64().unwrap() > 0.0, "{later}");
    assert!(later["now_ms"].as_u64() > first["now_ms"].as_u64());
    for name in ["buffer_max_bytes", "spill_max_bytes", "disk_free_bytes", "disk_total_bytes", "connections"] {
        assert!(later[name].as_u64().unwrap() > 0, "{name} in {later}");
    }
}

#[test]
fn without_a_token_nobody_reads_and_no_process_starts() {
    let server = start(&[]);
    server.post("{\"secret\":1}").assert_ok();
    for path in ["/api/v1/reports", "/api/v1/reports/tail", "/api/v1/stats?path=.n", "/api/v1/live"] {
        let answer = server.get(path);
        assert!(answer.headers["www-authenticate"].starts_with("Bearer"), "{answer:?}");
        answer.assert_problem(401, "admin-token-missing");
        let head = "HEAD".to_owned() + &head(path, "")[3..];
        let (status, _, body) = server.connect().ask_bytes(&head);
        assert_eq!((status, body.len()), (200, 0), "{path}");
    }
    assert!(children(&server).is_empty());
    let closed = Server::start(&[]);
    closed.get("/api/v1/reports").assert_problem(403, "admin-closed");
}
