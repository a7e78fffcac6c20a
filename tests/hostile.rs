//! Hostile clients neither slow down other clients nor use unbounded server memory.
//!
//! More attacks are in `http2.rs` (rapid reset, frame floods), `resets.rs`, `limits.rs` and `smuggling.rs`.

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use common::{PATIENCE, Server, gzip, request, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn memory_kib(server: &Server, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    value.trim_matches([':', ' ', '\t']).strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

/// The peak resident memory. The kernel's counter is approximate, so a later value can be slightly smaller.
fn peak_kib(server: &Server) -> usize {
    memory_kib(server, "VmHWM")
}

/// The test that measures response times takes the write lock and runs alone. All other tests take the read lock.
static MACHINE: RwLock<()> = RwLock::new(());

fn share_the_machine() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Number of slow clients. Each sends single bytes of a header or a body that never ends.
const SLOW_CLIENTS: usize = 5000;

/// Approximate time between two bytes of one slow client.
const SLOW_INTERVAL: Duration = Duration::from_secs(2);

/// Number of normal requests in one measurement.
const REQUESTS: usize = 1000;

/// Number of clients that send the normal requests.
const CLIENTS: usize = 4;

/// The 99th percentile of the response times. Each client waits for an answer before it sends the next request.
fn p99(server: &Server) -> Duration {
    let mut times: Vec<_> = thread::scope(|scope| {
        let client = || {
            let mut client = server.connect();
            let mut times = Vec::new();
            for _ in 0..REQUESTS / CLIENTS {
                let started = Instant::now();
                client.post("{}").assert_ok();
                times.push(started.elapsed());
            }
            times
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    times.sort();
    times[REQUESTS * 99 / 100]
}

/// Keeps `count` slow connections open until `stop` is set. Sets `all_connected` when all are open.
fn trickle(server: &Server, count: usize, all_connected: &AtomicBool, stop: &AtomicBool) {
    let open = |n: usize| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream
            .write_all(
                [&b"P"[..], b"POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 1000\r\n\r\n"][n % 2],
            )
            .unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let mut streams: Vec<_> = (0..count).map(open).collect();
    all_connected.store(true, Ordering::Release);
    while !stop.load(Ordering::Acquire) {
        for (n, stream) in streams.iter_mut().enumerate() {
            match stream.write(b"x") {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The server has closed this connection.
                Err(_) => *stream = open(n),
            }
            if n % 50 == 0 {
                thread::sleep(SLOW_INTERVAL / (count / 50) as u32); // sets the pace of the slow clients
            }
        }
    }
}

/// Stops the threads of a scope when dropped, also if the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn thousands_of_slow_clients_do_not_slow_down_other_clients() {
    let _exclusive = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let max_files = limit.maximum.map_or(usize::MAX, |maximum| maximum as usize);
    let slow_clients = SLOW_CLIENTS.min(max_files - 500);
    let (server, reference) = (&Server::start(&[]), &Server::start(&[]));
    p99(reference); // warm-up
    p99(server);
    let mut samples = [(); 5].map(|()| p99(server));
    samples.sort();
    let baseline = samples[2];
    let (all_connected, stop) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(move || trickle(server, slow_clients, all_connected, stop));
        let _stop = StopOnDrop(stop);
        wait_until("all slow clients are connected", || all_connected.load(Ordering::Acquire).then_some(()));
        // Other programs can slow down this machine, so a slow measurement is repeated. The reference server has no
        // slow clients. Its p99 shows how busy the machine is.
        let attacked = wait_until(&format!("the p99 is at most twice the {baseline:?} without slow clients"), || {
            let baseline = baseline.max(p99(reference));
            Some(p99(server)).filter(|attacked| *attacked <= baseline * 2)
        });
        println!("{slow_clients} slow clients: p99 {baseline:?} without them, {attacked:?} with them");
    });
}

#[test]
fn a_decompression_bomb_is_answered_413_in_bounded_memory() {
    let _shared = share_the_machine();
    // 10 GiB of zstd, 1 GiB of gzip, and 64 MiB of br. The zstd and gzip bombs consist of many frames or members. gzip
    // compresses at most about 1000:1, so its bomb is smaller.
    let spaces = vec![b' '; 64 << 20];
    let mut br = Vec::new();
    let params = brotli::enc::BrotliEncoderParams { quality: 1, ..Default::default() };
    brotli::BrotliCompress(&mut &spaces[..], &mut br, &params).unwrap();
    let zstd = zstd::encode_all(&*spaces, 1).unwrap().repeat(160);
    let bombs = [("zstd", zstd), ("gzip", gzip(&spaces).repeat(16)), ("br", br)];
    let server = Server::start(&[]);
    let mut client = server.connect();
    client.post_with("content-encoding: gzip\r\n", gzip("{}")).assert_ok();
    let before_kib = peak_kib(&server);
    for (encoding, bomb) in bombs {
        assert!(bomb.len() <= 1 << 20, "{encoding}: the {} compressed bytes alone exceed the body limit", bomb.len());
        client.post_with(&format!("content-encoding: {encoding}\r\n"), &bomb).assert_problem(413, "too-large");
        client.post("{}").assert_ok();
    }
    let used_kib = peak_kib(&server).saturating_sub(before_kib);
    // The bound leaves space for huge pages that the kernel may add.
    assert!(used_kib < 64 * 1024, "{used_kib} KiB");
    assert_eq!(server.stop(), ["{}"; 4]);
}

#[test]
fn each_of_many_addresses_has_its_own_rate_limit_in_bounded_memory() {
    let _shared = share_the_machine();
    const ADDRESSES: u32 = 100_000;
    let server = Server::start(&[("TRUSTED_PROXIES", "127.0.0.0/8"), ("RATE_LIMIT", "1/h"), ("ACK", "memory")]);
    let post_from = |address: u32| {
        let [a, b, c] = [address >> 16, address >> 8, address].map(|byte| byte & 255);
        format!(
            "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\nx-forwarded-for: 198.{a}.{b}.{c}\r\n\
             content-length: 2\r\n\r\n{{}}"
        )
    };
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // For speed, requests are pipelined, and only the statuses of the answers are parsed.
    let mut ask = |addresses: &[u32]| -> Vec<u16> {
        stream.write_all(addresses.iter().map(|address| post_from(*address)).collect::<String>().as_bytes()).unwrap();
        let (mut answers, mut buffer) = (String::new(), [0; 64 * 1024]);
        loop {
            let statuses: Vec<_> =
                answers.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect();
            if statuses.len() == addresses.len() && answers.ends_with("}\n") {
                return statuses;
            }
            let length = stream.read(&mut buffer).unwrap();
            assert!(length > 0, "the server closed the connection");
            answers += std::str::from_utf8(&buffer[..length]).unwrap();
        }
    };
    assert_eq!(ask(&[0]), [200]);
    let before_kib = peak_kib(&server);
    for hundred in (1..=ADDRESSES).collect::<Vec<_>>().chunks(100) {
        // Each new address may send one request. Address 0 has already sent one, so it is refused.
        let answers = ask(&[hundred, &[0]].concat());
        assert_eq!((&answers[..100], answers[100]), (&[200; 100][..], 429));
    }
    // The server still remembers the most recent addresses.
    let last: Vec<_> = (ADDRESSES - 100..=ADDRESSES).collect();
    let limited = ask(&last).iter().filter(|status| **status == 429).count();
    assert!(limited > 90, "{limited} of {}", last.len());
    let used_kib = peak_kib(&server).saturating_sub(before_kib);
    println!("{ADDRESSES} addresses: {used_kib} KiB");
    assert!(used_kib < 64 * 1024, "{used_kib} KiB");
    assert_eq!(server.stop().len(), ADDRESSES as usize + 1 + last.len() - limited);
}

#[test]
fn a_client_that_closes_its_sending_side_still_gets_its_answer() {
    let _shared = share_the_machine();
    let server = Server::start(&[("ACK", "disk")]);
    let mut client = server.connect();
    client.send(request(b"{\"half\":1}"));
    client.writer().shutdown(Shutdown::Write).unwrap();
    client.answer().assert_ok();
    client.assert_closed();
    // The body is incomplete, and the rest can't arrive.
    let mut client = server.connect();
    client.send(&request(b"{\"half\":2}")[..70]);
    client.writer().shutdown(Shutdown::Write).unwrap();
    client.answer().assert_problem(400, "body-broken");
    client.assert_closed();
    // The client closes its sending side before the first request.
    let mut client = server.connect();
    client.writer().shutdown(Shutdown::Write).unwrap();
    client.assert_closed();
    assert_eq!(server.stop(), ["{\"half\":1}"]);
}

#[test]
fn a_client_that_reads_no_answers_is_blocked_and_then_disconnected() {
    let _shared = share_the_machine();
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "1s")]);
    server.post("{}").assert_ok();
    let before_kib = peak_kib(&server);
    let mut greedy = TcpStream::connect(server.address).unwrap();
    greedy.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // The client reads no answers. The server must stop reading requests, and must not buffer answers without a limit.
    let many = request(b"{}").repeat(1000);
    let sent = (0..1000).take_while(|_| greedy.write_all(&many).is_ok()).count();
    assert!(sent < 1000, "the server read {sent} thousand requests and buffered their answers");
    server.post("{}").assert_ok();
    let used_kib = peak_kib(&server).saturating_sub(before_kib);
    assert!(used_kib < 32 * 1024, "{used_kib} KiB");
    // The server then closes the idle connection. The number of answers that the client can still read depends on
    // timing, because a reset discards unread data.
    greedy.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut answers, mut buffer) = (Vec::new(), [0; 64 * 1024]);
    let end = loop {
        match greedy.read(&mut buffer) {
            Ok(0) => break ErrorKind::UnexpectedEof,
            Ok(length) => answers.extend_from_slice(&buffer[..length]),
            Err(error) => break error.kind(),
        }
    };
    assert!(matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end:?}");
    let answers = String::from_utf8(answers).unwrap().matches("\"accepted\":1}").count();
    assert!(server.stop().len() >= answers + 2);
}

#[test]
fn a_request_target_that_is_too_long_is_refused() {
    let _shared = share_the_machine();
    let server = Server::start(&[]);
    let head = format!("GET /{} HTTP/1.1\r\nhost: test\r\n\r\n", "x".repeat(16 * 1024));
    assert_eq!(server.connect().ask(&head, b"").status, 431);
    let head = format!("GET /{} HTTP/1.1\r\nhost: test\r\n\r\n", "x".repeat(15 * 1024));
    server.connect().ask(&head, b"").assert_problem(404, "not-found");
}
