//! A request that is repeated with the same idempotency key is stored once.

mod common;

use std::fs;
use std::thread;

use common::{Answer, Client, Server, wait_until};

fn post(client: &mut Client, key: &str, body: &str) -> Answer {
    client.post_with(&format!("idempotency-key: {key}\r\n"), body)
}

fn post_by_query(client: &mut Client, key: &str, body: &str) -> Answer {
    let head = format!("POST /api/v1/reports?idempotency_key={key} HTTP/1.1\r\nhost: test\r\n");
    client.ask(&format!("{head}content-length: {}\r\n\r\n", body.len()), body.as_bytes())
}

#[test]
fn a_repeated_request_gets_the_same_answer_and_is_stored_once() {
    let server = Server::start(&[("DEDUP_WINDOW", "1h"), ("WORKERS", "1")]);
    let mut client = server.connect();
    for _ in 0..3 {
        post(&mut client, "a", "[{\"n\":1},{\"n\":2}]").assert_accepted(2);
        post(&mut server.connect(), "\"a\"", "[{\"n\":1},{\"n\":2}]").assert_accepted(2);
        post_by_query(&mut client, "a", "[{\"n\":1},{\"n\":2}]").assert_accepted(2);
        post(&mut client, "b", "{\"n\":3}").assert_accepted(1);
        client.post("{}").assert_ok();
    }
    assert_eq!(server.stop(), ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}", "{}", "{}", "{}"]);
}

#[test]
fn a_key_has_no_effect_without_a_dedup_window() {
    for window in ["off", "0s", ""] {
        let server = Server::start(&[("DEDUP_WINDOW", window)]);
        let mut client = server.connect();
        post(&mut client, "a", "{}").assert_ok();
        post(&mut client, "a", "{}").assert_ok();
        post(&mut client, &"x".repeat(1_000), "{}").assert_ok();
        assert_eq!(server.stop(), ["{}"; 3]);
    }
}

#[test]
fn simultaneous_repeats_are_stored_once() {
    let server = Server::start(&[("DEDUP_WINDOW", "1h"), ("WORKERS", "4")]);
    for round in 0..20 {
        thread::scope(|scope| {
            for _ in 0..8 {
                let mut client = server.connect();
                scope.spawn(move || post(&mut client, &round.to_string(), &format!("{{\"n\":{round}}}")).assert_ok());
            }
        });
    }
    let mut stored = server.stop();
    stored.sort();
    let mut sent: Vec<_> = (0..20).map(|round| format!("{{\"n\":{round}}}")).collect();
    sent.sort();
    assert_eq!(stored, sent);
}

#[test]
fn a_refused_request_can_be_repeated_with_the_same_key() {
    let server = Server::start(&[("DEDUP_WINDOW", "1h")]);
    let mut client = server.connect();
    post(&mut client, "a", "{\"a\":}").assert_problem(400, "not-json");
    post(&mut client, "a", "{\"a\":1}").assert_ok();
    post(&mut client, "a", "{\"a\":1}").assert_ok();

    let moved = server.data_dir.with_extension("moved");
    fs::rename(&server.data_dir, &moved).unwrap();
    // The active batch already has a journal. The server cannot create one for the next batch.
    let refused = wait_until("a report is refused", || {
        let answer = client.post(format!("{{\"pad\":\"{}\"}}", "x".repeat(1_000_000)));
        (answer.status != 200).then_some(answer)
    });
    refused.assert_problem(503, "not-durable");
    let refused = post(&mut client, "b", "{\"b\":1}");
    assert_eq!(refused.status, 503, "{refused:?}");
    fs::rename(&moved, &server.data_dir).unwrap();
    wait_until("reports are accepted again", || (post(&mut client, "b", "{\"b\":1}").status == 200).then_some(()));
    post(&mut client, "b", "{\"b\":1}").assert_ok();
    let stored = server.stop();
    assert_eq!(stored.iter().filter(|report| *report == "{\"a\":1}").count(), 1);
    assert!(stored.contains(&"{\"b\":1}".to_owned()));
}

#[test]
fn a_key_expires_after_the_dedup_window() {
    let server = Server::start(&[("DEDUP_WINDOW", "50ms"), ("FLUSH_INTERVAL", "1ms")]);
    let mut client = server.connect();
    wait_until("a repeated request is stored again", || {
        post(&mut client, "a", "{}").assert_ok();
        (server.stored().len() > 1).then_some(())
    });
}

#[test]
fn a_key_that_is_too_long_or_empty_is_a_400_and_nothing_is_stored() {
    let server = Server::start(&[("DEDUP_WINDOW", "1h")]);
    let mut client = server.connect();
    for key in ["", &"x".repeat(256)] {
        post(&mut client, key, "{}").assert_problem(400, "idempotency-key");
        post_by_query(&mut client, key, "{}").assert_problem(400, "idempotency-key");
    }
    post(&mut client, &"x".repeat(255), "{}").assert_ok();
    assert_eq!(server.stop(), ["{}"]);
}
