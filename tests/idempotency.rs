//! A request that is sent twice with one key is kept once.

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
fn a_repeat_is_answered_as_the_first_was_and_kept_once() {
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
fn without_a_window_a_key_means_nothing() {
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
fn repeats_that_come_all_at_once_are_kept_once() {
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
fn a_request_that_was_refused_may_come_again_with_its_key() {
    let server = Server::start(&[("DEDUP_WINDOW", "1h")]);
    let mut client = server.connect();
    post(&mut client, "a", "{\"a\":}").assert_problem(400, "not-json");
    post(&mut client, "a", "{\"a\":1}").assert_ok();
    post(&mut client, "a", "{\"a\":1}").assert_ok();

    let aside = server.data_dir.with_extension("aside");
    fs::rename(&server.data_dir, &aside).unwrap();
    // The batch that is open has its journal already, the next one has none.
    let refused = wait_until("a journal can't be written", || {
        let answer = client.post(format!("{{\"pad\":\"{}\"}}", "x".repeat(1_000_000)));
        (answer.status != 200).then_some(answer)
    });
    refused.assert_problem(503, "not-kept");
    let refused = post(&mut client, "b", "{\"b\":1}");
    assert_eq!(refused.status, 503, "{refused:?}");
    fs::rename(&aside, &server.data_dir).unwrap();
    wait_until("reports are taken again", || (post(&mut client, "b", "{\"b\":1}").status == 200).then_some(()));
    post(&mut client, "b", "{\"b\":1}").assert_ok();
    let stored = server.stop();
    assert_eq!(stored.iter().filter(|report| *report == "{\"a\":1}").count(), 1);
    assert!(stored.contains(&"{\"b\":1}".to_owned()));
}

#[test]
fn a_key_is_forgotten_when_its_window_is_over() {
    let server = Server::start(&[("DEDUP_WINDOW", "50ms"), ("FLUSH_INTERVAL", "1ms")]);
    let mut client = server.connect();
    wait_until("it is kept again", || {
        post(&mut client, "a", "{}").assert_ok();
        (server.stored().len() > 1).then_some(())
    });
}

#[test]
fn a_key_that_is_too_long_or_empty_is_a_400_and_nothing_is_kept() {
    let server = Server::start(&[("DEDUP_WINDOW", "1h")]);
    let mut client = server.connect();
    for key in ["", &"x".repeat(256)] {
        post(&mut client, key, "{}").assert_problem(400, "idempotency-key");
        post_by_query(&mut client, key, "{}").assert_problem(400, "idempotency-key");
    }
    post(&mut client, &"x".repeat(255), "{}").assert_ok();
    assert_eq!(server.stop(), ["{}"]);
}
