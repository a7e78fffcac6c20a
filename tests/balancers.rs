//! Two collectors behind HAProxy and nginx, with the configurations of `deploy/`. `make balancers` runs these tests and
//! needs both programs.

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

/// Longer than the 3 s that HAProxy needs to notice that `/readyz` is 503.
const SHUTDOWN_DELAY: (&str, &str) = ("SHUTDOWN_DELAY", "8s");

/// Clients that send reports until `stop` is set.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    acknowledged: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
}

impl Load {
    fn report(&self, address: SocketAddr, client_number: usize) {
        let mut random = Random(client_number as u64);
        // Of four clients, one opens a new connection for each report, and one sends reports that are longer than the
        // buffer of a load balancer, so that its requests last longer. The other two keep their connection.
        let reconnects = client_number % 4 == 2;
        let pad = if client_number % 4 == 3 { 100_000 } else { 1_000 };
        let mut connection = None;
        for n in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            thread::sleep(Duration::from_millis(random.below(40))); // the pace of the client, not a wait
            let id = format!("{client_number}-{n}");
            let report = format!("{{\"id\":\"{id}\",\"pad\":\"{}\"}}", "x".repeat(pad));
            let close = match post(&mut connection, address, &report) {
                Ok(answer) if answer.status == 200 => {
                    self.acknowledged.lock().unwrap().push(report);
                    reconnects || answer.headers.get("connection").is_some_and(|value| value == "close")
                }
                // A slow disk is not an effect of the restart. This report must not be stored.
                Ok(answer) if answer.is_full() => true,
                other => {
                    self.failed.lock().unwrap().push(format!("{id}: {other:?}"));
                    true
                }
            };
            if close {
                connection = None;
            }
        }
    }

    fn wait_for_more(&self) {
        let acknowledged = || self.acknowledged.lock().unwrap().len();
        let target = acknowledged() + 200;
        wait_until("200 more reports are acknowledged", || (acknowledged() >= target).then_some(()));
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Posts over the given connection. Opens a connection first if there is none.
fn post(connection: &mut Option<Client>, address: SocketAddr, report: &str) -> io::Result<Answer> {
    let client = match connection {
        Some(client) => client,
        none => none.insert(Client::try_connect(address)?),
    };
    client.try_send(request(report.as_bytes()))?;
    client.try_any_answer()
}

/// Restarts the collectors in turn while clients send reports. No request fails, and each acknowledged report is stored
/// once.
fn check_restarts(kind: Kind) {
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
        // Stop the clients even if this code panics.
        let _stop_on_drop = StopOnDrop(&load.stop);
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
#[ignore = "needs haproxy: run `make balancers`"]
fn no_request_fails_while_collectors_restart_behind_haproxy() {
    check_restarts(Kind::HaProxy);
}

#[test]
#[ignore = "needs nginx: run `make balancers`"]
fn no_request_fails_while_collectors_restart_behind_nginx() {
    check_restarts(Kind::Nginx);
}

/// Starts a collector that passes health checks, but fails every report. It closes the connection after the first
/// report, answers 503 to the second report, and so on alternately. Returns its address.
fn start_failing_collector() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let report_count = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let report_count = Arc::clone(&report_count);
            // The thread ends when the connection is closed.
            thread::spawn(move || fail_reports(&stream.unwrap(), &report_count));
        }
    });
    address
}

fn fail_reports(mut stream: &TcpStream, report_count: &AtomicUsize) -> io::Result<()> {
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
        let status = match is_report.then(|| report_count.fetch_add(1, Ordering::Relaxed)) {
            None => "200 OK",
            Some(number) if number % 2 == 0 => return Ok(()),
            Some(_) => "503 Service Unavailable",
        };
        stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
    }
}

/// If a collector may have received a report, the load balancer must not send the report to the other collector.
/// Otherwise, the report could be stored twice.
fn check_that_a_report_is_sent_once(kind: Kind) {
    let server = Server::start(&[]);
    let balancer = Balancer::start(kind, [server.address, start_failing_collector()], &[]);
    balancer.wait_until_used(1);
    let (mut acknowledged, mut failed) = (Vec::new(), Vec::new());
    wait_until("two requests fail", || {
        let report = format!("{{\"n\":{}}}", acknowledged.len() + failed.len());
        match balancer.connect().ask_any(request(report.as_bytes())).status {
            200 => acknowledged.push(report),
            status => failed.push(status),
        }
        (failed.len() == 2).then_some(())
    });
    assert_eq!(failed, [502, 503]);
    let mut stored = server.stop();
    stored.sort();
    acknowledged.sort();
    assert_eq!(stored, acknowledged);
}

#[test]
#[ignore = "needs haproxy: run `make balancers`"]
fn haproxy_sends_each_report_to_one_collector() {
    check_that_a_report_is_sent_once(Kind::HaProxy);
}

#[test]
#[ignore = "needs nginx: run `make balancers`"]
fn nginx_sends_each_report_to_one_collector() {
    check_that_a_report_is_sent_once(Kind::Nginx);
}

/// The collector receives the real address of the client, even if the client sends forged headers.
fn check_client_address(kind: Kind, settings: &[(&str, &str)], changes: &[(&str, &str)]) {
    let server = Server::start(&[&[("STAMP", "client_ip"), ("TRUSTED_PROXIES", "127.0.0.1")], settings].concat());
    let balancer = Balancer::start(kind, [server.address; 2], changes);
    // Connect from a different address than the load balancer.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 7], 0)).into()).unwrap();
    socket.connect(&balancer.address.into()).unwrap();
    let mut client = Client::from_stream(socket.into()).unwrap();
    let forged = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n";
    let head = format!("POST /api/v1/reports HTTP/1.1\r\nHost: test\r\n{forged}Content-Length: 2\r\n\r\n");
    assert_eq!(client.ask_any(head + "{}").status, 200);
    assert_eq!(server.stop(), ["{\"_client_ip\":\"127.0.0.7\"}"]);
}

#[test]
#[ignore = "needs haproxy: run `make balancers`"]
fn haproxy_passes_the_client_address_in_a_header_or_in_the_proxy_protocol() {
    check_client_address(Kind::HaProxy, &[], &[]);
    let changes = [("default-server check", "default-server check send-proxy-v2"), ("    option forwardfor\n", "")];
    check_client_address(Kind::HaProxy, &[("PROXY_PROTOCOL", "on")], &changes);
}

#[test]
#[ignore = "needs nginx: run `make balancers`"]
fn nginx_passes_the_client_address_in_a_header() {
    check_client_address(Kind::Nginx, &[], &[]);
}

/// The server answers clients with the token. The load balancer does not forward their requests.
fn check_that_nobody_reads(kind: Kind) {
    let token = "an-admin-token-of-a-test";
    let server = Server::start(&[("ADMIN_TOKEN", token)]);
    let balancer = Balancer::start(kind, [server.address; 2], &[]);
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n\r\n");
    assert_eq!(server.connect().ask_any(request("/metrics")).status, 200);
    for path in [
        "/metrics",
        "/metrics?x=/api/v1/reports",
        "//metrics",
        "/%6detrics",
        "/api/v1/reports/../../../metrics",
        "/.well-known/healthcheck.json/../../metrics",
        "/metrics/../api/v1/reports",
        "http://test/metrics",
        "/api/v1/reports",
        "/api/v1/reports?limit=1",
        "/api/v1/reports/tail",
        "/api/v1/stats?path=.n",
        "/api/v1/files",
        "/api/v1/live",
        "/",
    ] {
        let answer = balancer.connect().ask_any(request(path));
        assert!((400..500).contains(&answer.status) && !answer.body.contains("netwatch"), "{path}: {answer:?}");
    }
    let scrapes = "netwatch_http_requests_total{route=\"/metrics\",code=\"200\"} 1\n";
    assert!(server.connect().ask_any(request("/metrics")).body.contains(scrapes));
}

#[test]
#[ignore = "needs haproxy: run `make balancers`"]
fn nobody_reads_through_haproxy() {
    check_that_nobody_reads(Kind::HaProxy);
}

#[test]
#[ignore = "needs nginx: run `make balancers`"]
fn nobody_reads_through_nginx() {
    check_that_nobody_reads(Kind::Nginx);
}
