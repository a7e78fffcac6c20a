//! The server survives the worst cases within the memory limit of `deploy/`.
//!
//! Each server runs in a cgroup (version 1 or 2) of its own. That requires root, so these tests are ignored by default.
//! `make memory` runs them, one after the other.

mod common;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use common::{Server, command, report_files, wait_until, wait_until_idle};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Connections that are left for the health check.
const SPARE_CONNECTIONS: usize = 16;

/// A cgroup with the memory limit of `deploy/compose.yaml` and without swap.
struct Cgroup {
    dir: PathBuf,
    is_version_2: bool,
}

impl Cgroup {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let is_version_2 = Path::new(CGROUPS).join("cgroup.controllers").exists();
        let name = format!("netwatch-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(CGROUPS).join(if is_version_2 { "" } else { "memory" }).join(name);
        fs::create_dir(&dir).expect("the test must run as root");
        let cgroup = Self { dir, is_version_2 };
        let limit = common::memory_limit_of_compose().to_string();
        let (file, swap) = match is_version_2 {
            true => ("memory.max", "memory.swap.max"),
            false => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        };
        fs::write(cgroup.dir.join(file), &limit).unwrap();
        // Kernels without swap accounting do not have this file.
        if cgroup.dir.join(swap).exists() {
            fs::write(cgroup.dir.join(swap), if is_version_2 { "0" } else { &limit }).unwrap();
        }
        cgroup
    }

    fn start(&self, data_dir: &Path, settings: &[(&str, &str)]) -> Server {
        // The shell enters the cgroup and becomes the server.
        let enter = "echo $$ >\"$0\" && exec \"$1\"";
        let mut shell = Command::new("/bin/sh");
        shell.env_clear().current_dir(std::env::temp_dir()).stdin(Stdio::null());
        shell.args(["-c", enter]).arg(self.dir.join("cgroup.procs")).arg(command(data_dir).get_program());
        Server::spawn_from(shell, data_dir, settings, None)
    }

    /// Number of processes that the kernel has killed because of the limit.
    fn oom_kills(&self) -> u64 {
        let file = if self.is_version_2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.dir.join(file)).unwrap();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().parse().unwrap()
    }

    fn assert_survived(&self, server: &mut Server) {
        assert!(server.is_running(), "{} OOM kills", self.oom_kills());
        assert_eq!(self.oom_kills(), 0);
        assert_eq!(server.get("/readyz").status, 200);
        let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
        println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A cgroup can only be removed when its last process has ended.
        wait_until("the cgroup is removed", || fs::remove_dir(&self.dir).ok());
    }
}

/// Opens almost as many connections as the server accepts, sends these bytes on each, and waits until the server has
/// handled them.
fn attack(settings: &[(&str, &str)], bytes: &[u8]) {
    let cgroup = Cgroup::new();
    let dir = tempfile::tempdir().unwrap();
    let mut server = cgroup.start(dir.path(), settings);
    let listening = server.wait_for_log("listening", |_| true);
    let max_connections = listening["fields"]["max_connections"].as_u64().unwrap() as usize;
    let connections = max_connections - SPARE_CONNECTIONS;
    let mut clients: Vec<_> = (0..connections).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    for client in &mut clients {
        client.set_nonblocking(true).unwrap();
        // The server may have closed the connection, and its receive buffer may be full.
        drop(client.write(bytes));
    }
    wait_until_idle(&mut server);
    println!("{connections} connections");
    cgroup.assert_survived(&mut server);
    drop(clients);
    server.post("{}").assert_ok();
    drop(server);
}

#[test]
#[ignore = "requires root: make memory"]
fn headers_that_do_not_end_fit_the_memory() {
    let head = format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\nx: {}", "x".repeat(16_000));
    attack(&[("HEADER_TIMEOUT", "1h")], head.as_bytes());
}

#[test]
#[ignore = "requires root: make memory"]
fn bodies_that_do_not_end_fit_the_memory() {
    let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 40000\r\n\r\n";
    attack(&[("BODY_TIMEOUT", "1h")], format!("{head}{}", " ".repeat(30_000)).as_bytes());
}

#[test]
#[ignore = "requires root: make memory"]
fn http_2_requests_that_do_not_end_fit_the_memory() {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let path = b"/api/v1/reports";
    let headers = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 4], b"test"].concat();
    let requests = (0..100).flat_map(|n| frame(1, 4, 2 * n + 1, &headers));
    let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
    attack(&[("BODY_TIMEOUT", "1h"), ("HEADER_TIMEOUT", "1h")], &begin.into_iter().chain(requests).collect::<Vec<_>>());
}

/// Recovers journals of this size with more threads than fit the memory, until each thread has had one.
fn recover(level: &str, journal_bytes: usize) {
    const JOURNALS: usize = 64;
    let cgroup = Cgroup::new();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("journal")).unwrap();
    let mut random = common::Random(1);
    let mut lines = String::new();
    while lines.len() < journal_bytes {
        let text = format!("{:x}", random.below(u64::MAX)).repeat(70);
        lines.push_str(&format!("{{\"n\":{},\"text\":\"{text}\"}}\n", lines.len()));
    }
    for n in 0..JOURNALS {
        let name = format!("reports-20261122T150614.{n:09}Z-00005f3a.jsonl");
        fs::write(dir.path().join("journal").join(name), &lines).unwrap();
    }
    let mut server = cgroup.start(dir.path(), &[("ZSTD_THREADS", "64"), ("ZSTD_LEVEL", level)]);
    wait_until("many journals are recovered", || {
        (!server.is_running() || report_files(dir.path()).len() >= JOURNALS / 4).then_some(())
    });
    cgroup.assert_survived(&mut server);
    drop(server);
}

#[test]
#[ignore = "requires root: make memory"]
fn recovery_of_many_journals_with_many_threads_fits_the_memory() {
    recover("1", 9 << 20);
}

#[test]
#[ignore = "requires root: make memory"]
fn recovery_with_a_high_compression_level_fits_the_memory() {
    recover("19", 1 << 20);
}
