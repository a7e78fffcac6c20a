//! Two collectors behind HAProxy and nginx, with the configurations of `deploy/`. `make balancers` runs this; it takes
//! both programs.

mod common;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::balancer::{Balancer, Kind};
use common::{Answer, Client, Random, Server, from_env, request, wait_until};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

const CLIENTS: usize = 16;

/// Longer than HAProxy takes to notice that `/readyz` is 503, 3 s.
const SHUTDOWN_DELAY: (&str, &str) = ("SHUTDOWN_DELAY", "8s");

/// Clients that report until they are told to stop.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    acknowledged: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
}

impl Load {
    fn report(&self, address: SocketAddr, client_number: usize) {
        let mut random = Random(client_number as u64);
        // Of four clients, two keep their connection, one comes anew with each report, and one sends long ones: more
        // than a load balancer holds back, so that they are on their way for a while.
        let (anew, pad) = (client_number % 4 == 2, if client_number % 4 == 3 { 100_000 } else { 1_000 });
        let mut connection = None;
        for n in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            thread::sleep(Duration::from_millis(random.below(40))); // the pace of this client, not a wait
            let id = format!("{client_number}-{n}");
            let report = format!("{{\"id\":\"{id}\",\"pad\":\"{}\"}}", "x".repeat(pad));
            let ends = match ask(&mut connection, address, &report) {
                Ok(answer) if answer.status == 200 => {
                    self.acknowledged.lock().unwrap().push(report);
                    anew || answer.headers.get("connection").is_some_and(|value| value == "close")
                }
                // A disk that stalls is nothing that a restart has done. It must not be stored.
                Ok(answer) if answer.is_full() => true,
                other => {
                    self.failed.lock().unwrap().push(format!("{id}: {other:?}"));
                    true
                }
            };
            if ends {
                connection = None;
            }
        }
    }

    fn wait_for_more(&self) {
        let acknowledged = || self.acknowledged.lock().unwrap().len();
        let wanted = acknowledged() + 200;
        wait_until("reports go on", || (acknowledged() >= wanted).then_some(()));
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Posts over this connection, or over a new one.
fn ask(connection: &mut Option<Client>, address: SocketAddr, report: &str) -> io::Result<Answer> {
    let client = match connection {
        Some(client) => client,
        none => none.insert(Client::try_connect(address)?),
    };
    client.try_send(request(report.as_bytes()))?;
    client.try_any_answer()
}

/// Restarts collectors in turn while clients report: no request fails, and each is stored once.
fn restarts_are_not_noticed(kind: Kind) {
    let dir = tempfile::tempdir().unwrap();
    let mut collectors = [(); 2].map(|()| Server::start_in(dir.path(), &[SHUTDOWN_DELAY]));
    let balancer = Balancer::start(kind, [collectors[0].address, collectors[1].address], &[]);
    balancer.wait_until_used(0);
    balancer.wait_until_used(1);
    let load = Load::default();
    thread::scope(|scope| {
        for client_number in 0..CLIENTS {
            let (load, address) = (&load, balancer.address);
            scope.spawn(move || load.report(address, client_number));
        }
        // However this ends, so do they.
        let _stopped = StopOnDrop(&load.stop);
        let rounds = from_env("BALANCER_ROUNDS").unwrap_or(4);
        for number in [0, 1].into_iter().cycle().take(rounds as usize) {
            load.wait_for_more();
            let collector = &mut collectors[number];
            let port = collector.address.port().to_string();
            collector.signal(Signal::TERM);
            assert_eq!(collector.wait().code(), Some(0));
            *collector = Server::start_in(dir.path(), &[SHUTDOWN_DELAY, ("PORT", &port)]);
            balancer.wait_until_used(number);
        }
        load.wait_for_more();
    });
    for mut collector in collectors {
        collector.signal(Signal::TERM);
        assert_eq!(collector.wait().code(), Some(0));
    }
    let (mut acknowledged, failed) = (load.acknowledged.into_inner().unwrap(), load.failed.into_inner().unwrap());
    println!("{kind:?}: {} acknowledged, {} failed", acknowledged.len(), failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
    let mut stored = common::stored(dir.path());
    stored.sort();
    acknowledged.sort();
    assert!(stored == acknowledged, "{} acknowledged, {} stored", acknowledged.len(), stored.len());
}

#[test]
#[ignore = "takes haproxy: make balancers"]
fn behind_haproxy_restarts_are_not_noticed() {
    restarts_are_not_noticed(Kind::HaProxy);
}

#[test]
#[ignore = "takes nginx: make balancers"]
fn behind_nginx_restarts_are_not_noticed() {
    restarts_are_not_noticed(Kind::Nginx);
}

/// A collector that is well, but takes a report and closes the connection, takes the next one and answers 503, and so
/// on. Returns its address.
fn one_that_takes_and_refuses() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let taken = Arc::clone(&taken);
            // Ends with the connection.
            thread::spawn(move || take_and_refuse(&stream.unwrap(), &taken));
        }
    });
    address
}

fn take_and_refuse(mut stream: &TcpStream, taken: &AtomicUsize) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let (mut length, mut is_report) = (0, false);
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            match line.strip_prefix("content-length: ") {
                _ if line.is_empty() => break,
                Some(value) => length = value.parse().unwrap(),
                None => is_report |= line.starts_with("post "),
            }
        }
        lines.read_exact(&mut vec![0; length])?;
        let status = match is_report.then(|| taken.fetch_add(1, Ordering::Relaxed)) {
            None => "200 OK",
            Some(number) if number % 2 == 0 => return Ok(()),
            Some(_) => "503 Service Unavailable",
        };
        stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
    }
}

/// What a collector may have taken is not sent to another one: it could be stored twice.
fn a_report_is_sent_once(kind: Kind) {
    let server = Server::start(&[]);
    let balancer = Balancer::start(kind, [server.address, one_that_takes_and_refuses()], &[]);
    balancer.wait_until_used(1);
    let (mut kept, mut refused) = (Vec::new(), Vec::new());
    wait_until("two are refused", || {
        let report = format!("{{\"n\":{}}}", kept.len() + refused.len());
        match balancer.connect().ask_any(request(report.as_bytes())).status {
            200 => kept.push(report),
            other => refused.push(other),
        }
        (refused.len() == 2).then_some(())
    });
    assert_eq!(refused, [502, 503]);
    let mut stored = server.stop();
    stored.sort();
    kept.sort();
    assert_eq!(stored, kept);
}

#[test]
#[ignore = "takes haproxy: make balancers"]
fn haproxy_sends_a_report_once() {
    a_report_is_sent_once(Kind::HaProxy);
}

#[test]
#[ignore = "takes nginx: make balancers"]
fn nginx_sends_a_report_once() {
    a_report_is_sent_once(Kind::Nginx);
}

/// The address that a collector hears of is the client's, whatever the client says.
fn the_client_is_known(kind: Kind, settings: &[(&str, &str)], changes: &[(&str, &str)]) {
    let server = Server::start(&[&[("STAMP", "client_ip"), ("TRUSTED_PROXIES", "127.0.0.1")], settings].concat());
    let balancer = Balancer::start(kind, [server.address; 2], changes);
    // From another address than the balancer's.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 7], 0)).into()).unwrap();
    socket.connect(&balancer.address.into()).unwrap();
    let mut client = Client::from_stream(socket.into()).unwrap();
    let lies = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n";
    let head = format!("POST /api/v1/reports HTTP/1.1\r\nHost: test\r\n{lies}Content-Length: 2\r\n\r\n");
    assert_eq!(client.ask_any(head + "{}").status, 200);
    assert_eq!(server.stop(), ["{\"_client_ip\":\"127.0.0.7\"}"]);
}

#[test]
#[ignore = "takes haproxy: make balancers"]
fn haproxy_says_who_the_client_is_in_a_header_or_in_the_proxy_protocol() {
    the_client_is_known(Kind::HaProxy, &[], &[]);
    let changes = [("default-server check", "default-server check send-proxy-v2"), ("    option forwardfor\n", "")];
    the_client_is_known(Kind::HaProxy, &[("PROXY_PROTOCOL", "on")], &changes);
}

#[test]
#[ignore = "takes nginx: make balancers"]
fn nginx_says_who_the_client_is() {
    the_client_is_known(Kind::Nginx, &[], &[]);
}
