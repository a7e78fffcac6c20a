//! What can't be kept is refused, with what to change, and leaves nothing behind.

mod common;

use std::fs;
use std::io::Write;
use std::sync::mpsc;
use std::thread;

use common::{Server, wait_until};

#[test]
fn what_is_no_report_is_a_400_with_the_position_of_the_fault() {
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
        (b"{\"a\":1}\n[{\"a\":1}]", "not-an-object", "an array is no object, at line 2 column 1, in element 1"),
        (b"[{},\n{},\n17]", "not-an-object", "a number is no object, at line 3 column 1, in element 2 of the batch: "),
        (b"[{},{\"a\"}]", "not-json", "at line 1 column 9, in element 1 of the batch: "),
        (b"{}\n{}\n{\"a\":\"\xff\"}", "not-utf8", "line 3 column 7 on, in element 2 of the batch: "),
        (b"\"text\"", "not-an-object", "a string"),
        (deep.as_bytes(), "too-deep", "line 1 column 132"),
    ] {
        let found = server.post(body).assert_problem(400, name);
        assert!(found.contains(detail), "{found}");
    }
    assert!(server.stop().is_empty());
}

#[test]
fn a_refusal_does_not_cost_the_connection() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    client.post("1").assert_problem(400, "not-an-object");
    client.post("{}").assert_ok();
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn a_body_over_the_limit_is_a_413_whether_announced_or_not() {
    let server = Server::start(&[("MAX_BODY_BYTES", "100")]);
    let announced = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 101\r\n\r\n";
    let detail = server.connect().ask(announced, b"").assert_problem(413, "too-large");
    assert!(detail.contains("100 bytes") && detail.contains("MAX_BODY_BYTES"), "{detail}");

    let mut client = server.connect();
    client.send("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(format!("40\r\n{}\r\n40\r\n{}\r\n", "x".repeat(64), "x".repeat(64)));
    client.answer().assert_problem(413, "too-large");
    assert!(server.stop().is_empty());
}

#[test]
fn a_client_that_sends_far_too_much_still_reads_the_answer() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    client.send(format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", 2 << 20));
    client.send(vec![b' '; 2 << 20]);
    client.answer().assert_problem(413, "too-large");
    client.post("{}").assert_ok();
}

#[test]
fn a_body_that_says_it_is_something_else_is_a_415_and_does_not_cost_the_connection() {
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
    // Long enough to fill what the kernel buffers: the answer comes before the body is read.
    let answer = client.post_with("content-type: image/png\r\n", vec![b' '; 1 << 20]);
    answer.assert_problem(415, "unsupported-type");
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn an_encoding_that_is_not_known_is_a_415_that_says_which_are() {
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
fn a_body_that_can_not_be_decoded_is_a_400_that_says_why() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let gzip = common::gzip("{\"a\":1}");
    let mut damaged = gzip.clone();
    *damaged.iter_mut().nth_back(5).unwrap() ^= 1; // within the checksum
    for (body, detail) in [
        (&b"{}"[..], "can't be decoded as gzip: "),
        (&gzip[..gzip.len() - 1], "it ends too early"),
        (&damaged, "can't be decoded as gzip: "),
        (&[&gzip, &b"{}"[..]].concat(), "other bytes follow its end"),
    ] {
        let found = client.post_with("content-encoding: gzip\r\n", body).assert_problem(400, "not-decodable");
        assert!(found.contains(detail), "{found}");
    }
    client.post_with("content-encoding: gzip\r\n", common::gzip(" ")).assert_problem(400, "empty");
    assert!(server.stop().is_empty());
}

#[test]
fn other_methods_are_a_405_that_says_which_to_use() {
    let server = Server::start(&[]);
    for (method, path, allow) in
        [("GET", "/api/v1/reports", "POST"), ("PUT", "/api/v1/reports", "POST"), ("DELETE", "/livez", "GET, HEAD")]
    {
        let answer = server.connect().ask(&format!("{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n"), b"");
        answer.assert_problem(405, "method-not-allowed");
        assert_eq!(answer.headers["allow"], allow);
    }
}

#[test]
fn other_paths_are_a_404() {
    let server = Server::start(&[]);
    for path in ["/", "/api/v1/report", "/api/v1/reports/", "/.well-known/"] {
        let detail = server.get(path).assert_problem(404, "not-found");
        assert!(detail.contains("/api/v1/reports"), "{detail}");
    }
}

#[test]
fn a_full_buffer_is_a_503_and_what_was_acknowledged_is_kept_until_the_disk_is_back() {
    let server = Server::start(&[
        ("MAX_BODY_BYTES", "1KiB"),
        ("BATCH_BYTES", "2KiB"),
        ("BUFFER_BYTES", "6KiB"),
        ("WORKERS", "1"),
        ("ACK", "memory"),
    ]);
    assert_eq!(server.get("/readyz").status, 200);
    let aside = server.data_dir.with_extension("aside");
    fs::rename(&server.data_dir, &aside).unwrap();

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
    server.wait_for_log("can't publish; the batch is kept", |line| line["level"] == "ERROR");
    let ready = server.get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.json()["reason"].as_str().unwrap().contains("full"), "{}", ready.body);
    assert_eq!(server.get("/livez").status, 200);

    fs::rename(&aside, &server.data_dir).unwrap();
    wait_until("there is room again", || (server.get("/readyz").status == 200).then_some(()));
    client.post(report(accepted)).assert_ok();
    let mut stored = server.stop();
    stored.sort();
    assert_eq!(stored, (0..=accepted).map(report).collect::<Vec<_>>());
}

#[test]
fn a_disk_that_is_nearly_full_is_a_503_before_anything_is_taken() {
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
fn a_journal_that_can_not_be_written_is_a_503_and_never_a_200() {
    for ack in ["journal", "disk"] {
        let server = Server::start(&[("ACK", ack)]);
        let aside = server.data_dir.with_extension("aside");
        fs::rename(&server.data_dir, &aside).unwrap();
        server.post("{\"n\":1}").assert_problem(503, "not-kept");
        fs::rename(&aside, &server.data_dir).unwrap();
        wait_until("reports are taken again", || (server.post("{\"n\":2}").status == 200).then_some(()));
        assert!(server.stop().contains(&"{\"n\":2}".to_owned()));
    }
}

#[test]
fn bodies_in_flight_are_bounded_together() {
    let server = Server::start(&[("INFLIGHT_BYTES", "2MiB")]);
    let report = format!("{{\"pad\":\"{}\"}}", "x".repeat(1_000_000));
    let request = common::request(report.as_bytes());
    let (first_part, rest) = request.split_at(700_000);
    let (answered, answers) = mpsc::channel();
    // All stay unfinished, and together they are too much: one has to go.
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
        // The one that was refused may be gone.
        drop(writer.write_all(rest));
    }
    let mut accepted = answers.iter().take(2).filter(|answer| answer.status == 200).count();
    server.post(&report).assert_ok();
    accepted += 1;
    assert_eq!(server.stop(), vec![report; accepted]);
}

#[test]
fn without_a_journal_requests_wait_a_moment_and_are_refused_while_the_server_stays_responsive() {
    let server = Server::start(&[
        ("MAX_BODY_BYTES", "1KiB"),
        ("BATCH_BYTES", "2KiB"),
        ("BUFFER_BYTES", "64KiB"),
        ("SPILL_BYTES", "0"),
    ]);
    // No journal can be made any more.
    let journals = server.data_dir.join("journal");
    let report = format!("{{\"pad\":\"{}\"}}", "x".repeat(900));
    server.post(&report).assert_ok();
    fs::rename(&journals, server.data_dir.with_extension("aside")).unwrap();
    fs::write(&journals, "").unwrap();
    // Those that are ready can't be named, either: each refuses its batch.
    wait_until("all journals are used up", || {
        server.post(&report);
        (server.get("/readyz").status == 503).then_some(())
    });
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
    fs::rename(server.data_dir.with_extension("aside"), &journals).unwrap();
    wait_until("reports are taken again", || (server.post(&report).status == 200).then_some(()));
}
