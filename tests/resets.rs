//! Clients that reset their connections at any point of a request take nothing from those that behave.
//!
//! `RESETS_SEED` replays the points of a run, whose seed is printed.

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{Client, Random, Server, from_env, request};

/// Clients that send one report after the other, each over a connection that it keeps.
const STEADY: usize = 32;

/// Threads that reset connections, and how many each does.
const RESETTERS: u64 = 8;
const RESETS: u64 = 400;

/// Connections that a thread has open before it resets them all.
const AT_ONCE: usize = 8;

/// No more than there are at any time, so that one that is not given back is missed.
const MAX_CONNECTIONS: usize = STEADY + RESETTERS as usize * AT_ONCE;

fn report(id: &str, pad: u64) -> Vec<u8> {
    format!("{{\"id\":\"{id}\",\"pad\":\"{}\"}}", "x".repeat(pad as usize)).into()
}

/// Sends as much as `random` says of a request, or of several. Returns the ids that it has seen acknowledged.
fn begin(client: &mut Client, name: &str, random: &mut Random) -> Vec<String> {
    // Of one piece, or of several.
    let pad = [random.below(500), 50_000 + random.below(50_000)][usize::from(random.below(4) == 0)];
    let half = request(&report(&format!("half-{name}"), pad));
    let body = half.iter().position(|byte| *byte == b'{').unwrap();
    let whole = |n: usize| request(&report(&format!("whole-{name}-{n}"), pad));
    let mut kept = Vec::new();
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
                return kept; // a disk that stalls
            }
            answer.assert_ok();
            kept.push(format!("whole-{name}-0"));
            client.send(whole(1));
        }
    }
    // Sooner or later after that, the answer may be on its way.
    thread::sleep(Duration::from_micros(random.below(300)));
    kept
}

/// Resets many connections; returns the ids that were acknowledged before.
fn reset(server: &Server, resetter: u64, mut random: Random) -> Vec<String> {
    let mut open = Vec::new();
    let mut kept = Vec::new();
    for n in 0..RESETS {
        let mut client = server.connect();
        client.reset_on_drop();
        kept.extend(begin(&mut client, &format!("{resetter}-{n}"), &mut random));
        open.push(client);
        if open.len() == AT_ONCE {
            open.clear();
        }
    }
    kept
}

fn the_others_do_not_notice(ack: &str) {
    let seed = from_env("RESETS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("ACK={ack} RESETS_SEED={seed}");
    let max_connections = MAX_CONNECTIONS.to_string();
    let server = Arc::new(Server::start(&[
        ("ACK", ack),
        ("WORKERS", "3"),
        ("FLUSH_INTERVAL", "20ms"),
        ("MAX_CONNECTIONS", &max_connections),
    ]));
    let over = AtomicBool::new(false);
    let kept: Vec<String> = thread::scope(|scope| {
        let steady = |client: usize| {
            let (server, over) = (&server, &over);
            scope.spawn(move || {
                let (mut connection, mut kept) = (server.connect(), Vec::new());
                while !over.load(Ordering::Relaxed) {
                    let id = format!("steady-{client}-{}", kept.len());
                    connection.post_until_room(report(&id, kept.len() as u64 % 500)).assert_ok();
                    kept.push(id);
                }
                kept
            })
        };
        let steady: Vec<_> = (0..STEADY).map(steady).collect();
        let resetters: Vec<_> = (0..RESETTERS)
            .map(|resetter| (resetter, Random(seed + resetter)))
            .map(|(resetter, random)| {
                let server = &server;
                scope.spawn(move || reset(server, resetter, random))
            })
            .collect();
        let mut kept: Vec<_> = resetters.into_iter().flat_map(|resetter| resetter.join().unwrap()).collect();
        over.store(true, Ordering::Relaxed);
        kept.extend(steady.into_iter().flat_map(|steady| steady.join().unwrap()));
        kept
    });
    assert!(kept.len() > STEADY, "{}", kept.len());
    // Every place is there again.
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.post("{\"id\":\"last\"}").assert_ok());
    drop(clients);

    let stored = Arc::into_inner(server).unwrap().stop();
    let id =
        |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    let ids: Vec<_> = stored.iter().map(id).filter(|id| id != "last").collect();
    let unique: HashSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len(), "none twice");
    let lost: Vec<_> = kept.iter().filter(|id| !unique.contains(id)).take(5).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(!ids.iter().any(|id| id.starts_with("half")), "what did not come whole");
    let unheard = ids.len() - kept.len();
    println!("{} reports acknowledged, {unheard} more whose clients had gone", kept.len());
    assert!(unheard > 100, "{unheard}: the resets come too early, or too late");
}

#[test]
fn resets_take_nothing_from_those_who_wait_for_the_journal() {
    the_others_do_not_notice("journal");
}

#[test]
fn resets_take_nothing_from_those_who_wait_for_the_disk() {
    the_others_do_not_notice("disk");
}
