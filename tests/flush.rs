//! When the server writes report files, and how many.

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Server, report_files, stored, wait_until};

#[test]
fn a_batch_is_flushed_when_flush_interval_has_passed_since_its_first_report() {
    let server = Server::start(&[("FLUSH_INTERVAL", "50ms")]);
    server.post("{\"n\":1}").assert_ok();
    let published = server.wait_for_log("published", |_| true);
    assert_eq!(server.stored(), ["{\"n\":1}"]);
    assert_eq!(published["fields"]["reports"], 1);
    assert_eq!(published["fields"]["bytes_in"], 8);
    let file = report_files(&server.data_dir).pop().unwrap();
    assert_eq!(published["fields"]["file"], file.file_name().unwrap().to_str().unwrap());
    assert_eq!(published["fields"]["bytes_out"], file.metadata().unwrap().len());
    assert!(published["fields"]["ms"].is_u64());
    // The interval of the next batch starts with its own first report.
    server.post("{\"n\":2}").assert_ok();
    wait_until("there are two report files", || (report_files(&server.data_dir).len() == 2).then_some(()));
    assert_eq!(server.stop(), ["{\"n\":1}", "{\"n\":2}"]);
}

#[test]
fn a_batch_is_flushed_when_it_is_full() {
    let server = Server::start(&[
        ("FLUSH_INTERVAL", "1h"),
        ("MAX_BODY_BYTES", "1KiB"),
        ("BATCH_BYTES", "4KiB"),
        ("WORKERS", "2"),
    ]);
    let report = format!("{{\"pad\":\"{}\"}}", "x".repeat(1000));
    let mut client = server.connect();
    (0..5).for_each(|_| client.post(&report).assert_ok());
    let published = server.wait_for_log("published", |_| true);
    assert!(published["fields"]["reports"].as_u64().unwrap() >= 4, "both chunks were filled: {published}");
    assert_eq!(server.stop().len(), 5);
}

#[test]
fn a_few_reports_on_many_workers_make_one_file() {
    let mut server = Server::start(&[("WORKERS", "8"), ("MAX_BODY_BYTES", "64KiB")]);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| server.post("{}").assert_ok());
        }
    });
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    assert_eq!(report_files(&server.data_dir).len(), 1);
    assert_eq!(server.stored().len(), 16);
}

#[test]
fn a_server_without_reports_writes_no_file() {
    let server = Server::start(&[("FLUSH_INTERVAL", "1ms")]);
    server.post("[]").assert_problem(400, "empty");
    assert!(server.stop().is_empty());
}

#[test]
fn two_servers_in_one_directory_never_use_the_same_file_name() {
    const REPORTS: usize = 500;
    let dir = tempfile::tempdir().unwrap();
    let settings = [("MAX_BODY_BYTES", "100"), ("BATCH_BYTES", "300"), ("BUFFER_BYTES", "64KiB")];
    let servers = [0, 1].map(|_| Server::start_in(dir.path(), &settings));
    thread::scope(|scope| {
        for (n, server) in servers.iter().enumerate() {
            scope.spawn(move || {
                let mut client = server.connect();
                (0..REPORTS).for_each(|report| {
                    client.post_until_capacity(format!("{{\"server\":{n},\"n\":{report}}}")).assert_ok();
                });
            });
        }
    });
    for mut server in servers {
        server.signal(rustix::process::Signal::TERM);
        assert!(server.wait().success());
    }
    let stored = stored(dir.path());
    assert_eq!(stored.len(), 2 * REPORTS);
    assert_eq!(stored.into_iter().collect::<HashSet<_>>().len(), 2 * REPORTS);
}

#[test]
fn a_burst_that_is_faster_than_the_flush_spills_and_every_accepted_report_is_stored() {
    let server = Server::start(&[
        ("MAX_BODY_BYTES", "32KiB"),
        ("BATCH_BYTES", "128KiB"),
        ("BUFFER_BYTES", "256KiB"),
        ("ZSTD_LEVEL", "22"),
        ("FLUSH_INTERVAL", "1h"),
    ]);
    // Until a batch has spilled, the clients send reports that compress slowly.
    let spilled = AtomicBool::new(false);
    let accepted: HashSet<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..8_u64)
            .map(|client| {
                let (server, spilled) = (&server, &spilled);
                scope.spawn(move || {
                    let (mut connection, mut accepted) = (server.connect(), Vec::new());
                    while !spilled.load(Ordering::Relaxed) {
                        let report = random_report(client, accepted.len() as u64);
                        match connection.post(&report) {
                            answer if answer.status == 200 => accepted.push(report),
                            answer => drop(answer.assert_problem(503, "buffer-full")),
                        }
                    }
                    accepted
                })
            })
            .collect();
        server.wait_for_log("spilled", |_| true);
        spilled.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let stored = server.stop();
    assert_eq!(stored.len(), accepted.len());
    assert_eq!(stored.into_iter().collect::<HashSet<_>>(), accepted);
}

/// A report with 30 kB of pseudorandom letters.
fn random_report(client: u64, n: u64) -> String {
    let mut state = client << 32 | n;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'A' + (state >> 58) as u8 % 26)
    };
    let letters: String = (0..30_000).map(|_| letter()).collect();
    format!("{{\"client\":{client},\"n\":{n},\"letters\":\"{letters}\"}}")
}
