//! Restarts without downtime: two servers on one port, a socket from systemd, and notifications to systemd.

mod common;

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use common::{PATIENCE, Server, command};
use rustix::process::Signal;

#[test]
fn two_servers_share_a_port_and_the_second_continues_when_the_first_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Server::start_in(dir.path(), &[("REUSE_PORT", "true")]);
    let port = first.address.port().to_string();
    let second = Server::start_in(dir.path(), &[("REUSE_PORT", "true"), ("PORT", &port)]);
    for n in 0..50 {
        first.post(format!("{{\"n\":{n}}}")).assert_ok();
    }
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));
    assert!((1..50).contains(&first.stored().len()), "the first server must store some of the 50 reports, but not all");
    for n in 50..100 {
        second.post(format!("{{\"n\":{n}}}")).assert_ok();
    }
    assert_eq!(second.stop().len(), 100);
}

#[test]
fn without_reuse_port_a_server_cannot_listen_on_the_port_of_another_server() {
    let first = Server::start(&[]);
    let port = first.address.port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let output = command(dir.path()).env("HOST", "127.0.0.1").env("PORT", port).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("can't listen"));
}

#[test]
fn a_socket_that_systemd_passes_is_used() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut shell = Command::new("sh");
    // LISTEN_PID is the process ID of the server, which only the shell knows. The socket must be file descriptor 3.
    shell.args(["-c", "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\""]);
    shell.arg(env!("CARGO_BIN_EXE_netwatch-server")).env_clear();
    shell.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
    let dir = tempfile::tempdir().unwrap();
    let server = Server::spawn_from(shell, dir.path(), &[("PORT", "1")], None);
    assert_eq!(server.address, address);
    server.post("{}").assert_ok();
    assert_eq!(server.stop().len(), 1);
}

#[test]
fn systemd_is_notified_when_the_server_is_ready_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let receive = || {
        let mut message = [0; 100];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap().trim_end().to_owned()
    };
    let server = Server::start_in(&dir.path().join("data"), &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert_eq!(receive(), "READY=1");
    server.stop();
    assert_eq!(receive(), "STOPPING=1");
}
