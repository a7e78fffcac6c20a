//! Stamps with facts about the client, such as its address behind proxies. Clients cannot forge a stamp.

mod common;

use std::net::Ipv4Addr;

use common::{Answer, Client, Server, command};

const TRUSTED: (&str, &str) = ("TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.1");

fn post_with(client: &mut Client, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let head = format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\n{headers}content-length: {length}\r\n\r\n");
    client.ask(&head, body.as_bytes())
}

#[test]
fn trusted_proxies_name_the_client_and_the_stamped_address_is_masked() {
    let server = Server::start(&[TRUSTED, ("STAMP", "client_ip"), ("CLIENT_IP_MASK", "/24,/48"), ("WORKERS", "1")]);
    let mut client = server.connect();
    post_with(&mut client, "", "{\"n\":1}").assert_ok();
    post_with(&mut client, "x-forwarded-for: 6.6.6.6, 198.51.100.7, 10.0.0.1\r\n", "{\"n\":2}").assert_ok();
    post_with(&mut client, "forwarded: for=6.6.6.6\r\nX-Forwarded-For: 2001:db8:1:2::3\r\n", "{\"n\":3}").assert_ok();
    let expected = [
        "{\"_client_ip\":\"127.0.0.0\",\"n\":1}",
        "{\"_client_ip\":\"198.51.100.0\",\"n\":2}",
        "{\"_client_ip\":\"2001:db8:1::\",\"n\":3}",
    ];
    assert_eq!(server.stop(), expected);

    let server = Server::start(&[TRUSTED, ("STAMP", "client_ip"), ("FORWARDED_HEADER", "forwarded")]);
    let headers = "x-forwarded-for: 6.6.6.6\r\nforwarded: for=\"198.51.100.7:80\";proto=https\r\n";
    post_with(&mut server.connect(), headers, "{}").assert_ok();
    assert_eq!(server.stop(), ["{\"_client_ip\":\"198.51.100.7\"}"]);
}

#[test]
fn the_forwarding_header_of_an_untrusted_client_is_ignored() {
    let server = Server::start(&[("TRUSTED_PROXIES", "10.0.0.1"), ("STAMP", "client_ip")]);
    post_with(&mut server.connect(), "x-forwarded-for: 6.6.6.6\r\n", "{}").assert_ok();
    assert_eq!(server.stop(), ["{\"_client_ip\":\"127.0.0.1\"}"]);
}

#[test]
fn every_report_of_a_batch_is_stamped_and_a_batch_with_a_forged_stamp_is_refused() {
    let server = Server::start(&[("STAMP", "received_at, user_agent, origin, header:X-Tab")]);
    let mut client = server.connect();
    let headers = "user-agent: Firefox\r\nx-tab: 7\r\n";
    assert_eq!(post_with(&mut client, headers, "[{\"n\":1},{}]").json()["accepted"], 2);
    let refused = post_with(&mut client, headers, "[{\"n\":3},{\"_origin\":1}]");
    let detail = refused.assert_problem(400, "stamped");
    assert!(detail.contains("element 1") && detail.contains("_origin"), "{detail}");
    let stored = server.stop();
    assert_eq!(stored.len(), 2);
    for line in stored {
        let report: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&report["_user_agent"], &report["_x_tab"]), (&"Firefox".into(), &"7".into()));
        assert!(report["_received_at"].as_str().unwrap().ends_with('Z') && report.get("_origin").is_none(), "{line}");
    }
}

#[test]
fn stamps_count_towards_max_body_bytes() {
    let server = Server::start(&[("STAMP", "client_ip"), ("MAX_BODY_BYTES", "1KiB")]);
    let batch = format!("[{}]", vec!["{}"; 300].join(","));
    post_with(&mut server.connect(), "", &batch).assert_problem(413, "too-large");
    assert_eq!(server.stop().len(), 0);
}

#[test]
fn a_proxy_protocol_header_of_version_1_or_2_names_the_client() {
    let server = Server::start(&[TRUSTED, ("PROXY_PROTOCOL", "on"), ("STAMP", "client_ip")]);
    let v2 = |command: u8, address: [u8; 4]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        header.extend([0x20 | command, 0x11, 0, 12 + 5]);
        header.extend([address, Ipv4Addr::LOCALHOST.octets()].concat());
        header.extend([0x12, 0x34, 0, 80]);
        // An extension of type NOOP with two bytes.
        header.extend([4, 0, 2, 1, 2]);
        header
    };
    let headers = [
        b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 80\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::7 ::1 4711 80\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        v2(1, [198, 51, 100, 8]),
        v2(0, [198, 51, 100, 9]),
    ];
    for header in headers {
        // Send the header in one piece, and then byte by byte.
        let mut whole = server.connect();
        whole.send([&header[..], &common::request(b"{}")].concat());
        whole.answer().assert_ok();
        whole.post("{}").assert_ok();
        let mut slow = server.connect();
        header.iter().for_each(|byte| slow.send([*byte]));
        slow.post("{}").assert_ok();
    }
    // The PROXY header can name another trusted proxy. Then X-Forwarded-For names the client.
    let mut nested = server.connect();
    nested.send("PROXY TCP4 10.0.0.1 127.0.0.1 4711 80\r\n");
    post_with(&mut nested, "x-forwarded-for: 198.51.100.10\r\n", "{}").assert_ok();
    let mut stored = server.stop();
    stored.sort();
    let line = |address: &str| format!("{{\"_client_ip\":\"{address}\"}}");
    let mut expected: Vec<_> = ["198.51.100.7", "2001:db8::7", "198.51.100.8", "127.0.0.1", "127.0.0.1"]
        .iter()
        .flat_map(|address| vec![line(address); 3])
        .collect();
    expected.push(line("198.51.100.10"));
    expected.sort();
    assert_eq!(stored, expected);
}

#[test]
fn a_proxy_protocol_header_is_required_from_trusted_proxies_and_refused_from_others() {
    let server = Server::start(&[TRUSTED, ("PROXY_PROTOCOL", "on"), ("HEADER_TIMEOUT", "100ms")]);
    for bytes in [&common::request(b"{}")[..], b"PROXY TCP4 198.51.100.7\r\n", b"PROXY TCP4 1", b"", &[0; 5000]] {
        let mut client = server.connect();
        client.send(bytes);
        client.assert_closed();
    }
    assert_eq!(server.stop().len(), 0);
    let server = Server::start(&[("TRUSTED_PROXIES", "10.0.0.1"), ("PROXY_PROTOCOL", "on")]);
    server.post("{}").assert_ok();
    let mut client = server.connect();
    client.send([b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 80\r\n", &common::request(b"{}")[..]].concat());
    assert_eq!(client.answer().status, 400);
    assert_eq!(server.stop().len(), 1);
}

#[test]
fn the_proxy_protocol_without_trusted_proxies_is_an_invalid_setting() {
    let output = command(&std::env::temp_dir()).env("PROXY_PROTOCOL", "on").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("TRUSTED_PROXIES"), "{error}");
}
