//! The report files contain each acknowledged report once, unchanged except for line breaks.

mod common;

use std::collections::HashSet;
use std::io::Write;
use std::thread;

use common::Server;

#[test]
fn a_report_is_stored_byte_for_byte() {
    let server = Server::start(&[]);
    let report = r#"{ "clientId" : "a","n":[1e999,-0.0,12345678901234567890123],"s":"\u0000\ud800 é 💡","a":1,"a":2}"#;
    let answer = server.post(report);
    answer.assert_ok();
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(server.stop(), [report]);
}

#[test]
fn a_pretty_printed_report_becomes_one_line() {
    let server = Server::start(&[]);
    server.post("\n{\r\n  \"a\": [\n1]\n}\n").assert_ok();
    assert_eq!(server.stop(), ["{    \"a\": [ 1] }"]);
}

#[test]
fn a_report_is_accepted_with_every_content_type_that_clients_use_for_json() {
    let server = Server::start(&[]);
    let types =
        ["application/json", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "application/a+json"];
    server.post_with("", "{}").assert_ok();
    for content_type in types {
        server.post_with(&format!("content-type: {content_type}\r\n"), "{}").assert_ok();
    }
    assert_eq!(server.stop(), ["{}"; 5]);
}

#[test]
fn a_batch_is_accepted_as_an_array_or_as_lines_and_each_report_is_stored_as_a_line() {
    // With a single worker, reports are stored in the order of the requests.
    let server = Server::start(&[("WORKERS", "1")]);
    let lines = [r#"{"n":1}"#, r#"{"n":2,"a":[{}]}"#, r#"{"n":3}"#];
    let mut client = server.connect();
    client.post(format!("[{}]", lines.join(","))).assert_accepted(3);
    client.post(lines.join("\n")).assert_accepted(3);
    client.post_with("content-type: application/x-ndjson\r\n", lines.join("\r\n\r\n") + "\r\n").assert_accepted(3);
    client.post_with("content-type: application/json\r\n", format!("[{}]", lines[0])).assert_accepted(1);
    assert_eq!(server.stop(), [&lines[..], &lines, &lines, &lines[..1]].concat());
}

#[test]
fn reports_that_browsers_generate_are_accepted() {
    let server = Server::start(&[("WORKERS", "1")]);
    let csp =
        r#"{"age":2,"body":{"blockedURL":"inline","disposition":"report"},"type":"csp-violation","url":"https://a/"}"#;
    let nel =
        r#"{"age":0,"body":{"elapsed_time":345,"phase":"connection","type":"tcp.refused"},"type":"network-error"}"#;
    server.post_with("content-type: application/reports+json\r\n", format!("[{csp}, {nel}]")).assert_accepted(2);
    let legacy_csp = r#"{"csp-report":{"blocked-uri":"inline"}}"#;
    server.post_with("content-type: application/csp-report\r\n", legacy_csp).assert_ok();
    assert_eq!(server.stop(), [csp, nel, legacy_csp]);
}

#[test]
fn a_batch_can_fill_a_body_of_maximum_length() {
    let server = Server::start(&[("BATCH_BYTES", "65537"), ("MAX_BODY_BYTES", "64KiB"), ("BUFFER_BYTES", "256KiB")]);
    let count = 64 * 1024 / 3;
    let array = format!("[{}]", vec!["{}"; count].join(","));
    assert_eq!(array.len(), 64 * 1024);
    server.post(&array).assert_accepted(count);
    let lines = "{}\n".repeat(count) + " ";
    assert_eq!(lines.len(), 64 * 1024);
    server.post(lines).assert_accepted(count);
    let multiline = "{\n}\n".repeat(64 * 1024 / 4);
    server.post(multiline).assert_accepted(64 * 1024 / 4);
    assert_eq!(server.stop().len(), 2 * count + 64 * 1024 / 4);
}

#[test]
fn a_body_of_any_supported_encoding_is_decoded_with_and_without_a_content_length() {
    let server = Server::start(&[("WORKERS", "1")]);
    let reports: Vec<_> = (0..2_000).map(|n| format!("{{\"n\":{n},\"pad\":\"{:x}\"}}", n * n * 7_919_u64)).collect();
    let plain = reports.join("\n");
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    deflate.write_all(plain.as_bytes()).unwrap();
    let mut brotli = Vec::new();
    brotli::BrotliCompress(&mut plain.as_bytes(), &mut brotli, &Default::default()).unwrap();
    let encoded = [
        ("gzip", common::gzip(&plain)),
        ("deflate", deflate.finish().unwrap()),
        ("zstd", zstd::encode_all(plain.as_bytes(), 3).unwrap()),
        ("br", brotli),
        ("identity", plain.clone().into_bytes()),
    ];
    let mut client = server.connect();
    for (encoding, body) in &encoded {
        assert!(body.len() <= plain.len());
        client.post_with(&format!("content-encoding: {encoding}\r\n"), body).assert_accepted(reports.len());
        // A chunked body arrives in pieces, and its length is not known in advance.
        let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n";
        client.send(format!("{head}content-encoding: {encoding}\r\n\r\n"));
        for chunk in body.chunks(999) {
            client.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        }
        client.send("0\r\n\r\n");
        client.answer().assert_accepted(reports.len());
    }
    let stored = server.stop();
    assert_eq!(stored.len(), 2 * encoded.len() * reports.len());
    assert!(stored.chunks(reports.len()).all(|batch| batch == reports));
}

#[test]
fn a_chunked_body_needs_no_content_length() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    client.send("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send("5\r\n{\"a\":\r\n2\r\n1}\r\n");
    client.send("0\r\ntrailer: ignored\r\n\r\n");
    client.answer().assert_ok();
    client.post("{\"a\":2}").assert_ok();
    assert_eq!(server.stop(), ["{\"a\":1}", "{\"a\":2}"]);
}

#[test]
fn a_request_that_arrives_byte_by_byte_is_accepted() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let report = format!("{{\"pad\":\"{}\"}}", "x".repeat(300));
    for byte in common::request(report.as_bytes()) {
        client.send([byte]);
    }
    client.answer().assert_ok();
    assert_eq!(server.stop(), [report]);
}

#[test]
fn a_body_of_maximum_length_is_accepted_and_a_longer_body_is_refused() {
    let server = Server::start(&[]);
    let longest = format!("{{\"pad\":\"{}\"}}", "x".repeat(1024 * 1024 - 10));
    assert_eq!(longest.len(), 1024 * 1024);
    server.post(&longest).assert_ok();
    server.post(format!("{longest} ")).assert_problem(413, "too-large");
    assert_eq!(server.stop(), [longest]);
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    assert_eq!(client.ask(head, b"").status, 100);
    client.send("{}");
    client.answer().assert_ok();
}

#[test]
fn pipelined_requests_are_all_answered() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let requests: Vec<_> = (0..50).map(|n| common::request(format!("{{\"n\":{n}}}").as_bytes())).collect();
    client.send(requests.concat());
    for _ in 0..50 {
        client.answer().assert_ok();
    }
    assert_eq!(server.stop().len(), 50);
}

#[test]
fn ten_thousand_reports_from_many_connections_are_all_stored() {
    const CONNECTIONS: usize = 50;
    const REPORTS: usize = 200;
    let server = Server::start(&[
        ("WORKERS", "4"),
        ("BATCH_BYTES", "256KiB"),
        ("MAX_BODY_BYTES", "8KiB"),
        ("BUFFER_BYTES", "1MiB"),
    ]);
    let report = |connection: usize, n: usize| {
        format!("{{\"connection\":{connection},\"n\":{n},\"pad\":\"{}\"}}", "x".repeat((connection * n) % 700))
    };
    thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let mut client = server.connect();
            scope.spawn(move || {
                (0..REPORTS).for_each(|n| client.post_until_capacity(report(connection, n)).assert_ok())
            });
        }
    });
    let stored = server.stop();
    assert_eq!(stored.len(), CONNECTIONS * REPORTS);
    let sent: HashSet<_> = (0..CONNECTIONS).flat_map(|c| (0..REPORTS).map(move |n| report(c, n))).collect();
    assert_eq!(stored.into_iter().collect::<HashSet<_>>(), sent);
}
