//! Clients with bad intentions: what they can take from the others, and of the server's memory, has a bound.
//!
//! More of them are in `http2.rs` (rapid reset, floods of frames), `resets.rs`, `limits.rs` and `smuggling.rs`.

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

fn memory_kib(server: &Server, what: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    value.trim_matches([':', ' ', '\t']).strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

/// The most that it has ever had, as closely as the kernel counts: it may tell a little less later.
fn peak_kib(server: &Server) -> usize {
    memory_kib(server, "VmHWM")
}

/// Held by the test that measures, for itself alone; the others share it.
static MACHINE: RwLock<()> = RwLock::new(());

fn share_the_machine() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Sockets that each send a byte now and then: a header or a body that never ends.
const SLOW_CLIENTS: usize = 5000;

/// How long each of them waits between two bytes, about.
const SLOW_PACE: Duration = Duration::from_secs(2);

/// Requests of the others in one measurement, by as many clients.
const REQUESTS: usize = 1000;
const CLIENTS: usize = 4;

/// The slowest but one in a hundred of the requests that clients send one after the other.
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

/// Keeps `count` connections open that get nowhere, until `end`; sets `all` once they are.
fn trickle(server: &Server, count: usize, all: &AtomicBool, end: &AtomicBool) {
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
    all.store(true, Ordering::Release);
    while !end.load(Ordering::Acquire) {
        for (n, stream) in streams.iter_mut().enumerate() {
            match stream.write(b"x") {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The server has had enough of this one.
                Err(_) => *stream = open(n),
            }
            if n % 50 == 0 {
                thread::sleep(SLOW_PACE / (count / 50) as u32); // the pace of these clients, not a wait
            }
        }
    }
}

/// Has a scope's threads end, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn thousands_of_clients_that_get_nowhere_hold_up_nobody() {
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let files = limit.maximum.map_or(usize::MAX, |maximum| maximum as usize);
    let slow_clients = SLOW_CLIENTS.min(files - 500);
    let (server, beside) = (&Server::start(&[]), &Server::start(&[]));
    p99(beside);
    p99(server); // the first ones find everything cold
    let mut quiet = [(); 5].map(|()| p99(server));
    quiet.sort();
    let quiet = quiet[2];
    let (all, end) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(move || trickle(server, slow_clients, all, end));
        let _end = End(end);
        wait_until("they are connected", || all.load(Ordering::Acquire).then_some(()));
        // Again when it was not so: the machine may be busy with something else, as a server without such clients tells.
        // If they held up the others, it would never be so.
        let busy = wait_until(&format!("the others are served within twice the {quiet:?} of before"), || {
            let quiet = quiet.max(p99(beside));
            Some(p99(server)).filter(|busy| *busy <= quiet * 2)
        });
        println!("{slow_clients} slow clients: p99 {quiet:?} without them, {busy:?} with them");
    });
}

#[test]
fn a_bomb_is_a_413_and_costs_no_more_memory_than_a_body_may() {
    let _shared = share_the_machine();
    // Of many parts, where the format has them: 10 GiB of zstd, 1 GiB of gzip, which packs a thousand to one at best,
    // and 64 MiB of br.
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
        assert!(bomb.len() <= 1 << 20, "{encoding}: {} bytes are refused as they are", bomb.len());
        client.post_with(&format!("content-encoding: {encoding}\r\n"), &bomb).assert_problem(413, "too-large");
        client.post("{}").assert_ok();
    }
    let taken_kib = peak_kib(&server).saturating_sub(before_kib);
    // The kernel may add huge pages of its own accord.
    assert!(taken_kib < 64 * 1024, "{taken_kib} KiB");
    assert_eq!(server.stop(), ["{}"; 4]);
}

#[test]
fn a_flood_of_addresses_is_limited_one_by_one_in_bounded_memory() {
    let _shared = share_the_machine();
    const ADDRESSES: u32 = 100_000;
    let server = Server::start(&[("TRUSTED_PROXIES", "127.0.0.0/8"), ("RATE_LIMIT", "1/h"), ("ACK", "memory")]);
    let from = |address: u32| {
        let [a, b, c] = [address >> 16, address >> 8, address].map(|byte| byte & 255);
        format!(
            "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\nx-forwarded-for: 198.{a}.{b}.{c}\r\ncontent-length: 2\r\n\r\n{{}}"
        )
    };
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // One behind the other without waiting, and no more of the answers than the statuses, for speed.
    let mut ask = |addresses: &[u32]| -> Vec<u16> {
        stream.write_all(addresses.iter().map(|address| from(*address)).collect::<String>().as_bytes()).unwrap();
        let (mut answers, mut piece) = (String::new(), [0; 64 * 1024]);
        loop {
            let statuses: Vec<_> =
                answers.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect();
            if statuses.len() == addresses.len() && answers.ends_with('}') {
                return statuses;
            }
            let length = stream.read(&mut piece).unwrap();
            assert!(length > 0, "closed");
            answers += std::str::from_utf8(&piece[..length]).unwrap();
        }
    };
    assert_eq!(ask(&[0]), [200]);
    let before_kib = peak_kib(&server);
    for hundred in (1..=ADDRESSES).collect::<Vec<_>>().chunks(100) {
        // All of them may send once; the one that has, and goes on, may not.
        let answers = ask(&[hundred, &[0]].concat());
        assert_eq!((&answers[..100], answers[100]), (&[200; 100][..], 429));
    }
    // Each of those that came last is known.
    let last: Vec<_> = (ADDRESSES - 100..=ADDRESSES).collect();
    let limited = ask(&last).iter().filter(|status| **status == 429).count();
    assert!(limited > 90, "{limited} of {}", last.len());
    let taken_kib = peak_kib(&server).saturating_sub(before_kib);
    println!("{ADDRESSES} addresses: {taken_kib} KiB");
    assert!(taken_kib < 64 * 1024, "{taken_kib} KiB");
    assert_eq!(server.stop().len(), ADDRESSES as usize + 1 + last.len() - limited);
}

#[test]
fn a_client_that_has_said_all_it_has_to_say_still_gets_its_answer() {
    let _shared = share_the_machine();
    let server = Server::start(&[("ACK", "disk")]);
    let mut client = server.connect();
    client.send(request(b"{\"half\":1}"));
    client.writer().shutdown(Shutdown::Write).unwrap();
    client.answer().assert_ok();
    client.assert_closed();
    // In the middle of one, there is nothing more to wait for.
    let mut client = server.connect();
    client.send(&request(b"{\"half\":2}")[..70]);
    client.writer().shutdown(Shutdown::Write).unwrap();
    client.answer().assert_problem(400, "body-broken");
    client.assert_closed();
    // Nor before the first.
    let mut client = server.connect();
    client.writer().shutdown(Shutdown::Write).unwrap();
    client.assert_closed();
    assert_eq!(server.stop(), ["{\"half\":1}"]);
}

#[test]
fn requests_without_end_are_taken_as_fast_as_their_answers_are() {
    let _shared = share_the_machine();
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "1s")]);
    server.post("{}").assert_ok();
    let before_kib = peak_kib(&server);
    let mut greedy = TcpStream::connect(server.address).unwrap();
    greedy.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // It reads none of its answers. Then the server reads no more requests, and does not pile up answers.
    let many = request(b"{}").repeat(1000);
    let sent = (0..1000).take_while(|_| greedy.write_all(&many).is_ok()).count();
    assert!(sent < 1000, "the server has taken {sent} thousand requests, and holds their answers");
    server.post("{}").assert_ok();
    let taken_kib = peak_kib(&server).saturating_sub(before_kib);
    assert!(taken_kib < 32 * 1024, "{taken_kib} KiB");
    // And it is cut off, having brought nothing for a while. How many of its answers it still finds depends on when it
    // looks: a reset takes with it what has not been read.
    greedy.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut answers, mut piece) = (Vec::new(), [0; 64 * 1024]);
    let end = loop {
        match greedy.read(&mut piece) {
            Ok(0) => break ErrorKind::UnexpectedEof,
            Ok(length) => answers.extend_from_slice(&piece[..length]),
            Err(error) => break error.kind(),
        }
    };
    assert!(matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end:?}");
    let answers = String::from_utf8(answers).unwrap().matches("\"accepted\":1}").count();
    assert!(server.stop().len() >= answers + 2);
}

#[test]
fn a_target_that_is_too_long_is_refused() {
    let _shared = share_the_machine();
    let server = Server::start(&[]);
    let head = format!("GET /{} HTTP/1.1\r\nhost: test\r\n\r\n", "x".repeat(16 * 1024));
    assert_eq!(server.connect().ask(&head, b"").status, 431);
    let head = format!("GET /{} HTTP/1.1\r\nhost: test\r\n\r\n", "x".repeat(15 * 1024));
    server.connect().ask(&head, b"").assert_problem(404, "not-found");
}
