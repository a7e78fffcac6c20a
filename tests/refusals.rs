//! Refused requests: each answer names the problem and says what to change.

mod common;

use std::fs;
use std::io::Write;
use std::sync::mpsc;
use std::thread;

use common::{Server, wait_until};

#[test]
fn an_invalid_body_is_a_400_with_the_position_of_the_fault() {
    let server = Server::start(&[]);
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(127), "]".repeat(127));
    for (body, name, detail) in [
        (&b""[..], "empty", "send a JSON object"),
        (b" \n", "empty", "send a JSON object"),
        (b"[]", "empty", "send a JSON object"),
        (b"{\"a\":\n\"\xff\"}", "not-utf8", "line 2 column 2"),
        (b"hello", "not-json", "expected value at line 1 column 1"),
        (b"{\"a\":1", "not-json", "line 1 column 6"),
        (b"{\"a\":1} {\"a\":2}", "not-json", "line 1 column 9"),
        (b"{\"a\":01}", "not-json", "line 1 column 7"),
        (
            b"{\"a\":1}\n[{\"a\":1}]",
            "not-an-object",
            "expected an object, found an array at line 2 column 1, in element 1",
        ),
        (
            b"[{},\n{},\n17]",
            "not-an-object",
            "expected an object, found a number at line 3 column 1, in element 2 of the batch: ",
        ),
        (b"[{},{\"a\"}]", "not-json", "at line 1 column 9, in element 1 of the batch: "),
        (b"{}\n{}\n{\"a\":\"\xff\"}", "not-utf8", "line 3 column 7, in element 2 of the batch: "),
        (b"\"text\"", "not-an-object", "a string"),
        (deep.as_bytes(), "too-deep", "line 1 column 132"),
    ] {
        let found = server.post(body).assert_problem(400, name);
        assert!(found.contains(detail), "{found}");
    }
    assert!(server.stop().is_empty());
}

#[test]
fn a_refused_request_leaves_the_connection_open() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    client.post("1").assert_problem(400, "not-an-object");
    client.post("{}").assert_ok();
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn a_body_over_the_limit_is_a_413_with_or_without_a_content_length() {
    let server = Server::start(&[("MAX_BODY_BYTES", "100")]);
    let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 101\r\n\r\n";
    let detail = server.connect().ask(head, b"").assert_problem(413, "too-large");
    assert!(detail.contains("100 bytes") && detail.contains("MAX_BODY_BYTES"), "{detail}");

    let mut client = server.connect();
    client.send("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(format!("40\r\n{}\r\n40\r\n{}\r\n", "x".repeat(64), "x".repeat(64)));
    client.answer().assert_problem(413, "too-large");
    assert!(server.stop().is_empty());
}

#[test]
fn a_client_that_sends_a_body_far_over_the_limit_can_read_the_answer() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    client.send(format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", 2 << 20));
    client.send(vec![b' '; 2 << 20]);
    client.answer().assert_problem(413, "too-large");
    client.post("{}").assert_ok();
}

#[test]
fn an_unsupported_content_type_is_a_415_and_leaves_the_connection_open() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for (content_type, name, detail) in [
        ("multipart/form-data; boundary=x", "unsupported-type", "JSON.stringify"),
        ("application/xml", "unsupported-type", "the Content-Type is application/xml: send JSON as application/json"),
        ("json", "unsupported-type", "malformed"),
        ("application/json; charset=utf-16", "unsupported-charset", "the charset is \"utf-16\""),
    ] {
        let answer = client.post_with(&format!("content-type: {content_type}\r\n"), "{}");
        let found = answer.assert_problem(415, name);
        assert!(found.contains(detail), "{found}");
        assert_eq!(answer.headers.contains_key("accept"), name == "unsupported-type", "{answer:?}");
    }
    client.post("{}").assert_ok();
    // This body is larger than the socket buffers of the kernel. The server answers before it reads the body.
    let answer = client.post_with("content-type: image/png\r\n", vec![b' '; 1 << 20]);
    answer.assert_problem(415, "unsupported-type");
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn an_unsupported_encoding_is_a_415_that_lists_the_supported_encodings() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for encoding in ["compress", "gzip, br", "aes128gcm"] {
        let answer = client.post_with(&format!("content-encoding: {encoding}\r\n"), "{}");
        answer.assert_problem(415, "unsupported-encoding");
        assert_eq!(answer.headers["accept-encoding"], "gzip, deflate, zstd, br");
    }
    client.post("{}").assert_ok();
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn a_body_that_cannot_be_decoded_is_a_400_with_the_reason() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let gzip = common::gzip("{\"a\":1}");
    let mut corrupt = gzip.clone();
    *corrupt.iter_mut().nth_back(5).unwrap() ^= 1; // one bit of the checksum
    for (body, detail) in [
        (&b"{}"[..], "can't be decoded as gzip: "),
        (&gzip[..gzip.len() - 1], "it ends too early"),
        (&corrupt, "can't be decoded as gzip: "),
        (&[&gzip, &b"{}"[..]].concat(), "other bytes follow the end"),
    ] {
        let found = client.post_with("content-encoding: gzip\r\n", body).assert_problem(400, "not-decodable");
        assert!(found.contains(detail), "{found}");
    }
    client.post_with("content-encoding: gzip\r\n", common::gzip(" ")).assert_problem(400, "empty");
    assert!(server.stop().is_empty());
}

#[test]
fn an_unsupported_method_is_a_405_that_lists_the_allowed_methods() {
    let server = Server::start(&[]);
    for (method, path, allow) in [
        ("PUT", "/api/v1/reports", "GET, HEAD, POST"),
        ("POST", "/api/v1/files", "GET, HEAD"),
        ("GET", "/login", "POST"),
        ("DELETE", "/livez", "GET, HEAD"),
    ] {
        let answer = server.connect().ask(&format!("{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n"), b"");
        answer.assert_problem(405, "method-not-allowed");
        assert_eq!(answer.headers["allow"], allow);
    }
}

#[test]
fn an_unknown_path_is_a_404_that_names_the_path_for_reports() {
    let server = Server::start(&[]);
    for path in ["/x", "/api/v1/report", "/api/v1/reports/", "/.well-known/"] {
        let detail = server.get(path).assert_problem(404, "not-found");
        assert!(detail.contains("/api/v1/reports"), "{detail}");
    }
}

#[test]
fn a_full_buffer_is_a_503_and_acknowledged_reports_are_stored_when_the_disk_is_back() {
    let server = Server::start(&[
        ("MAX_BODY_BYTES", "1KiB"),
        ("BATCH_BYTES", "2KiB"),
        ("BUFFER_BYTES", "6KiB"),
        ("WORKERS", "1"),
        ("ACK", "memory"),
    ]);
    assert_eq!(server.get("/readyz").status, 200);
    let moved = server.data_dir.with_extension("moved");
    fs::rename(&server.data_dir, &moved).unwrap();

    let report = |n: usize| format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(900));
    let mut client = server.connect();
    let mut accepted = 0;
    let refused = loop {
        let answer = client.post(report(accepted));
        if answer.status != 200 {
            break answer;
        }
        accepted += 1;
    };
    refused.assert_problem(503, "buffer-full");
    assert!(refused.headers["retry-after"].parse::<u32>().unwrap() > 0);
    assert_eq!(accepted, 6, "two reports in each of three batches");
    server.wait_for_log("can't write a report file; retrying", |line| line["level"] == "ERROR");
    let ready = server.get("/readyz");
    assert_eq!(ready.status, 503);
    let reason = ready.json()["reason"].as_str().unwrap().to_owned();
    let path = server.data_dir.to_str().unwrap();
    assert!(reason.contains(path) && reason.contains("No such file"), "the reason names the disk error: {reason}");
    assert_eq!(server.get("/livez").status, 200);

    fs::rename(&moved, &server.data_dir).unwrap();
    wait_until("the server is ready again", || (server.get("/readyz").status == 200).then_some(()));
    client.post(report(accepted)).assert_ok();
    let mut stored = server.stop();
    stored.sort();
    assert_eq!(stored, (0..=accepted).map(report).collect::<Vec<_>>());
}

#[test]
fn a_nearly_full_disk_is_a_503_and_no_report_is_accepted() {
    let server = Server::start(&[("MIN_FREE_BYTES", "1EiB")]);
    server.wait_for_log("the disk is full; reports are refused", |_| true);
    let refused = server.post("{}");
    refused.assert_problem(503, "disk-full");
    assert!(refused.headers.contains_key("retry-after"));
    let ready = server.get("/readyz");
    assert_eq!((ready.status, &ready.json()["reason"]), (503, &"the disk is full".into()));
    assert_eq!(server.get("/livez").status, 200);
    assert!(server.stop().is_empty());
}

#[test]
fn a_journal_that_cannot_be_written_is_a_503_and_never_a_200() {
    for ack in ["journal", "disk"] {
        let server = Server::start(&[("ACK", ack)]);
        let moved = server.data_dir.with_extension("moved");
        fs::rename(&server.data_dir, &moved).unwrap();
        server.post("{\"n\":1}").assert_problem(503, "not-durable");
        fs::rename(&moved, &server.data_dir).unwrap();
        wait_until("reports are accepted again", || (server.post("{\"n\":2}").status == 200).then_some(()));
        assert!(server.stop().contains(&"{\"n\":2}".to_owned()));
    }
}

#[test]
fn the_total_size_of_bodies_in_flight_is_limited() {
    let server = Server::start(&[("INFLIGHT_BYTES", "2MiB")]);
    let report = format!("{{\"pad\":\"{}\"}}", "x".repeat(1_000_000));
    let request = common::request(report.as_bytes());
    let (first_part, rest) = request.split_at(700_000);
    let (answered, answers) = mpsc::channel();
    // No body is complete, and the three bodies together exceed the limit. The server must refuse one of them.
    let writers = [0, 1, 2].map(|_| {
        let mut client = server.connect();
        let writer = client.writer();
        client.send(first_part);
        let answered = answered.clone();
        thread::spawn(move || answered.send(client.answer()).unwrap());
        writer
    });
    let refused = answers.recv().unwrap();
    refused.assert_problem(503, "too-many-in-flight");
    assert!(refused.headers.contains_key("retry-after"));
    for mut writer in writers {
        // The server may have closed the connection of the refused request.
        drop(writer.write_all(rest));
    }
    let mut accepted = answers.iter().take(2).filter(|answer| answer.status == 200).count();
    server.post(&report).assert_ok();
    accepted += 1;
    assert_eq!(server.stop(), vec![report; accepted]);
}

#[test]
fn without_a_journal_requests_are_refused_after_a_short_wait_and_the_server_stays_responsive() {
    let server = Server::start(&[
        ("MAX_BODY_BYTES", "1KiB"),
        ("BATCH_BYTES", "2KiB"),
        ("BUFFER_BYTES", "64KiB"),
        ("SPILL_BYTES", "0"),
    ]);
    // From now on, no journal can be created.
    let journals = server.data_dir.join("journal");
    let report = format!("{{\"pad\":\"{}\"}}", "x".repeat(900));
    server.post(&report).assert_ok();
    fs::rename(&journals, server.data_dir.with_extension("moved")).unwrap();
    fs::write(&journals, "").unwrap();
    // Journals that were created ahead of time cannot get their names. Each of them makes its batch fail.
    wait_until("all journals are used up", || server.post(&report).is_full().then_some(()));
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let mut client = server.connect();
            client.send(common::request(report.as_bytes()));
            client
        })
        .collect();
    assert_eq!(server.get("/livez").status, 200);
    for mut client in waiting {
        client.answer().assert_problem(503, "buffer-full");
    }
    fs::remove_file(&journals).unwrap();
    fs::rename(server.data_dir.with_extension("moved"), &journals).unwrap();
    wait_until("reports are accepted again", || (server.post(&report).status == 200).then_some(()));
}

#[test]
fn the_log_counts_refused_requests_by_reason() {
    let server = Server::start(&[("RATE_LIMIT", "2/h")]);
    server.post("{}").assert_ok();
    server.post("[]").assert_problem(400, "empty");
    for _ in 0..3 {
        server.post("{}").assert_problem(429, "rate-limited");
    }
    server.get("/nowhere").assert_problem(404, "not-found");
    server.signal(rustix::process::Signal::TERM);
    let logged = server.wait_for_log("requests were refused", |_| true);
    assert_eq!(logged["level"], "WARN");
    assert_eq!(logged["fields"]["total"], 5);
    assert_eq!(logged["fields"]["reasons"], "empty=1 not-found=1 rate-limited=3");
}

#[test]
fn with_debug_each_refused_request_is_logged_without_its_write_key() {
    let server = Server::start(&[("DEBUG", "yes"), ("WRITE_KEYS", "0123456789abcdef")]);
    let head = "POST /api/v1/reports?key=guessed-secret HTTP/1.1\r\nhost: test\r\norigin: https://a.example\r\n";
    server.connect().ask(&format!("{head}content-length: 2\r\n\r\n"), b"{}").assert_problem(401, "key-wrong");
    let logged = server.wait_for_log("refused a request", |_| true);
    let expected = [
        ("client", "127.0.0.1".into()),
        ("method", "POST".into()),
        ("path", "/api/v1/reports".into()),
        ("status", 401.into()),
        ("origin", "https://a.example".into()),
        ("reason", serde_json::Value::from("key-wrong")),
    ];
    for (name, value) in expected {
        assert_eq!(logged["fields"][name], value, "{logged}");
    }
    assert!(!logged.to_string().contains("guessed-secret"), "{logged}");
}
