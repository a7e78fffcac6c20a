//! Clients that reset their connections at any point of a request do not affect other clients.
//!
//! Each run prints its seed. Set `RESETS_SEED` to repeat the run with the same reset points.

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{Client, Random, Server, from_env, request};

/// Clients that each send one report after another over one connection.
const STEADY_CLIENTS: usize = 32;

/// Threads that reset connections.
const RESETTERS: u64 = 8;

/// Connections that each of these threads opens and resets.
const RESETS_PER_THREAD: u64 = 400;

/// Connections that a thread opens before it resets all of them.
const RESETS_AT_ONCE: usize = 8;

/// The limit is the largest number of connections that are open at the same time. With a higher limit, the test could
/// not notice a connection slot that the server fails to release.
const MAX_CONNECTIONS: usize = STEADY_CLIENTS + RESETTERS as usize * RESETS_AT_ONCE;

fn report(id: &str, pad: u64) -> Vec<u8> {
    format!("{{\"id\":\"{id}\",\"pad\":\"{}\"}}", "x".repeat(pad as usize)).into()
}

/// Sends a random number of whole and partial requests, or nothing. Returns the ids of the acknowledged reports.
fn send_random_requests(client: &mut Client, name: &str, random: &mut Random) -> Vec<String> {
    // About a quarter of the bodies are so long that they arrive in several pieces.
    let pad = [random.below(500), 50_000 + random.below(50_000)][usize::from(random.below(4) == 0)];
    let half = request(&report(&format!("half-{name}"), pad));
    let body = half.iter().position(|byte| *byte == b'{').unwrap();
    let whole = |n: usize| request(&report(&format!("whole-{name}-{n}"), pad));
    let mut acknowledged = Vec::new();
    match random.below(6) {
        0 => {}
        1 => client.send(&half[..random.below(body as u64) as usize]),
        2 => client.send(&half[..body + random.below((half.len() - body) as u64) as usize]),
        3 => client.send(whole(0)),
        4 => client.send([whole(0), whole(1), whole(2), half[..half.len() / 2].to_vec()].concat()),
        _ => {
            client.send(whole(0));
            let answer = client.answer();
            if answer.is_full() {
                return acknowledged; // the disk is slow
            }
            answer.assert_ok();
            acknowledged.push(format!("whole-{name}-0"));
            client.send(whole(1));
        }
    }
    // Vary the delay before the reset, so that some resets happen while the answer is on its way.
    thread::sleep(Duration::from_micros(random.below(300)));
    acknowledged
}

/// Opens and resets many connections. Returns the ids of the acknowledged reports.
fn reset_connections(server: &Server, resetter: u64, mut random: Random) -> Vec<String> {
    let mut open = Vec::new();
    let mut acknowledged = Vec::new();
    for n in 0..RESETS_PER_THREAD {
        let mut client = server.connect();
        client.reset_on_drop();
        acknowledged.extend(send_random_requests(&mut client, &format!("{resetter}-{n}"), &mut random));
        open.push(client);
        if open.len() == RESETS_AT_ONCE {
            open.clear();
        }
    }
    acknowledged
}

fn check_that_resets_do_not_affect_other_clients(ack: &str) {
    let seed = from_env("RESETS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("ACK={ack} RESETS_SEED={seed}");
    let max_connections = MAX_CONNECTIONS.to_string();
    let server = Arc::new(Server::start(&[
        ("ACK", ack),
        ("WORKERS", "3"),
        ("FLUSH_INTERVAL", "20ms"),
        ("MAX_CONNECTIONS", &max_connections),
    ]));
    let done = AtomicBool::new(false);
    let acknowledged: Vec<String> = thread::scope(|scope| {
        let steady = |client: usize| {
            let (server, done) = (&server, &done);
            scope.spawn(move || {
                let (mut connection, mut acknowledged) = (server.connect(), Vec::new());
                while !done.load(Ordering::Relaxed) {
                    let id = format!("steady-{client}-{}", acknowledged.len());
                    connection.post_until_capacity(report(&id, acknowledged.len() as u64 % 500)).assert_ok();
                    acknowledged.push(id);
                }
                acknowledged
            })
        };
        let steady: Vec<_> = (0..STEADY_CLIENTS).map(steady).collect();
        let resetters: Vec<_> = (0..RESETTERS)
            .map(|resetter| (resetter, Random(seed + resetter)))
            .map(|(resetter, random)| {
                let server = &server;
                scope.spawn(move || reset_connections(server, resetter, random))
            })
            .collect();
        let mut acknowledged: Vec<_> = resetters.into_iter().flat_map(|resetter| resetter.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        acknowledged.extend(steady.into_iter().flat_map(|steady| steady.join().unwrap()));
        acknowledged
    });
    assert!(acknowledged.len() > STEADY_CLIENTS, "{}", acknowledged.len());
    // The server has released all connection slots.
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.post("{\"id\":\"last\"}").assert_ok());
    drop(clients);

    let stored = Arc::into_inner(server).unwrap().stop();
    let id =
        |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    let ids: Vec<_> = stored.iter().map(id).filter(|id| id != "last").collect();
    let unique: HashSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len(), "a report was stored twice");
    let lost: Vec<_> = acknowledged.iter().filter(|id| !unique.contains(id)).take(5).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(!ids.iter().any(|id| id.starts_with("half")), "an incomplete request was stored");
    let unanswered = ids.len() - acknowledged.len();
    println!(
        "{} reports acknowledged, {unanswered} more stored whose clients did not read the answer",
        acknowledged.len()
    );
    assert!(unanswered > 100, "{unanswered}: the resets come too early or too late");
}

#[test]
fn resets_do_not_affect_other_clients_with_ack_journal() {
    check_that_resets_do_not_affect_other_clients("journal");
}

#[test]
fn resets_do_not_affect_other_clients_with_ack_disk() {
    check_that_resets_do_not_affect_other_clients("disk");
}
