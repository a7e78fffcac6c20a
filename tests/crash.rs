//! What was acknowledged survives a SIGKILL, exactly once, whatever the server was at.
//!
//! Rounds on one data directory: servers under load from many connections are killed at a random moment, and so is a
//! recovery, before the next servers start; at the end of each round all that was ever acknowledged has to be in the
//! files once.
//!
//! `CRASH_ROUNDS` (30) is how many; `CRASH_SEED` replays the moments of a run, whose seed is printed.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use common::{Server, command, stored};
use rustix::process::Signal;

const CONNECTIONS: usize = 8;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Sends reports until the server is gone; returns the ids of those that were acknowledged.
fn load(server: &Server, writer: usize, round: usize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut client = server.connect();
    for n in 0.. {
        let id = format!("{round}-{writer}-{n}");
        let report = format!("{{\"id\":\"{id}\",\"pad\":\"{}\"}}", "x".repeat((n * 37) % 900));
        if client.try_send(common::request(report.as_bytes())).is_err() {
            break;
        }
        match client.try_answer() {
            Ok(answer) if answer.status == 200 => acknowledged.push(id),
            Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.body),
            Err(_) => break,
        }
    }
    acknowledged
}

fn recover(dir: &Path) -> std::process::Child {
    command(dir).arg("recover").arg(dir).stdout(Stdio::null()).spawn().unwrap()
}

fn hammer(ack: &str, rounds: usize, seed: u64) {
    println!("ACK={ack} CRASH_ROUNDS={rounds} CRASH_SEED={seed}");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..rounds {
        // Every few rounds two servers share the directory, and batches are small, so that most of the time one is
        // being flushed.
        let servers = 1 + usize::from(random.below(3) == 0);
        let batch_bytes = ["4KiB", "64KiB", "1MiB"][random.below(3) as usize];
        let settings = [
            ("ACK", ack),
            ("MAX_BODY_BYTES", "2KiB"),
            ("BATCH_BYTES", batch_bytes),
            ("BUFFER_BYTES", "4MiB"),
            ("FLUSH_INTERVAL", "20ms"),
            ("WORKERS", "3"),
        ];
        let servers: Vec<_> = (0..servers).map(|_| Server::start_in(dir.path(), &settings)).collect();
        let moment = Duration::from_micros(random.below(120_000));
        thread::scope(|scope| {
            let loads: Vec<_> = servers
                .iter()
                .enumerate()
                .flat_map(|(n, server)| (0..CONNECTIONS).map(move |writer| (server, n * CONNECTIONS + writer)))
                .map(|(server, writer)| scope.spawn(move || load(server, writer, round)))
                .collect();
            thread::sleep(moment); // the random moment
            servers.iter().for_each(|server| server.signal(Signal::KILL));
            acknowledged.extend(loads.into_iter().flat_map(|load| load.join().unwrap()));
        });
        for mut server in servers {
            assert_eq!(server.wait().code(), None, "killed");
        }

        let mut killed = recover(dir.path());
        thread::sleep(Duration::from_micros(random.below(15_000)));
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert!(recover(dir.path()).wait().unwrap().success(), "round {round}");

        let mut times: HashMap<String, usize> = HashMap::new();
        for line in stored(dir.path()) {
            let report: serde_json::Value = serde_json::from_str(&line).unwrap();
            *times.entry(report["id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).take(5).collect();
        assert!(twice.is_empty(), "round {round}: {twice:?}");
        let missing: Vec<_> = acknowledged.iter().filter(|id| !times.contains_key(*id)).take(5).collect();
        assert!(missing.is_empty(), "round {round}: {missing:?}");
        assert_eq!(std::fs::read_dir(dir.path().join("journal")).unwrap().count(), 0, "round {round}");
    }
    assert!(acknowledged.len() > 10 * rounds, "{}", acknowledged.len());
    println!("{} acknowledged reports, all there", acknowledged.len());
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn what_was_acknowledged_survives_any_crash_once() {
    let seed = from_env("CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = from_env("CRASH_ROUNDS").unwrap_or(30) as usize;
    hammer("journal", rounds, seed);
    hammer("disk", rounds.div_ceil(5), seed);
}
