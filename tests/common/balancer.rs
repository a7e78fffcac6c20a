//! A real load balancer with its configuration from `deploy/`, in front of two collectors (servers under test).

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use super::{Client, wait_until};

pub(crate) const ASK_HEALTH: &str = "GET /.well-known/healthcheck.json HTTP/1.1\r\nhost: test\r\n\r\n";

/// The load balancer program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    HaProxy,
    Nginx,
}

pub(crate) struct Balancer {
    kind: Kind,
    child: Child,
    pub(crate) address: SocketAddr,
    stats: SocketAddr,
    dir: TempDir,
}

impl Balancer {
    /// Starts a load balancer and waits until it forwards requests. Each of the `changes` replaces the first text with
    /// the second in the configuration.
    pub(crate) fn start(kind: Kind, collectors: [SocketAddr; 2], changes: &[(&str, &str)]) -> Self {
        // Retry if another process has opened the port in the meantime.
        wait_until("the load balancer forwards requests", || {
            let mut balancer = Self::spawn(kind, collectors, changes);
            let answers = |balancer: &Self| {
                let mut client = Client::try_connect(balancer.address).ok()?;
                client.try_send(ASK_HEALTH).ok()?;
                client.try_any_answer().ok().filter(|answer| answer.status == 200)
            };
            wait_until("the load balancer answers or exits", || {
                let exited = balancer.child.try_wait().unwrap();
                exited.map(|_| false).or_else(|| answers(&balancer).map(|_| true))
            })
            .then_some(balancer)
        })
    }

    fn spawn(kind: Kind, collectors: [SocketAddr; 2], changes: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The worker processes of nginx run without root and need access to this directory.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let [address, stats] = free_addresses();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = match kind {
            Kind::HaProxy => haproxy(dir.path(), address, stats, collectors, changes),
            Kind::Nginx => nginx(dir.path(), address, collectors, changes),
        };
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { kind, child, address, stats, dir }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::try_connect(self.address).unwrap()
    }

    /// Waits until the load balancer uses this collector, for example after a restart.
    ///
    /// Returns at once for nginx, which does not report the state of a collector. nginx uses a failed collector again
    /// after `fail_timeout`, which is shorter than the `SHUTDOWN_DELAY` of the next restart.
    pub(crate) fn wait_until_used(&self, collector: usize) {
        if self.kind == Kind::HaProxy {
            let row = format!("collectors,collector-{},", collector + 1);
            wait_until("HAProxy reports the collector as up", || {
                let mut stream = TcpStream::connect(self.stats).unwrap();
                stream.write_all(b"GET /stats;csv HTTP/1.0\r\n\r\n").unwrap();
                let mut stats = String::new();
                stream.read_to_string(&mut stats).unwrap();
                let mut lines = stats.lines();
                lines.any(|line| line.starts_with(&row) && line.contains(",UP,")).then_some(())
            });
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            // SIGTERM and not SIGKILL: nginx must stop its worker processes first.
            kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
            self.child.wait().unwrap();
        }
        if thread::panicking() {
            eprintln!("{:?} log:\n{}", self.kind, fs::read_to_string(self.dir.path().join("log")).unwrap());
        }
    }
}

fn free_addresses() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// Writes the configuration `deploy/<name>` with these changes to `dir`.
fn configure<'a>(dir: &Path, name: &str, changes: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let mut text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{name} does not contain {from:?}");
        text = text.replace(from, to);
    }
    fs::write(dir.join(name), text).unwrap();
}

fn haproxy(
    dir: &Path,
    address: SocketAddr,
    stats: SocketAddr,
    collectors: [SocketAddr; 2],
    changes: &[(&str, &str)],
) -> Command {
    // Only root can run HAProxy as another user.
    let user_lines = [("    user haproxy\n", ""), ("    group haproxy\n", "")].into_iter();
    let removed = user_lines.filter(|_| !geteuid().is_root());
    configure(dir, "haproxy.cfg", changes.iter().copied().chain(removed));
    let mut command = Command::new("haproxy");
    // Run in the foreground. Allow fewer connections, because the limit of open files may be low in a test environment.
    command.current_dir(dir).args(["-db", "-n", "400", "-f", "haproxy.cfg"]);
    command.env("LISTEN", address.to_string()).env("STATS", stats.to_string());
    command.env("COLLECTOR_1", collectors[0].to_string()).env("COLLECTOR_2", collectors[1].to_string());
    command
}

fn nginx(dir: &Path, address: SocketAddr, collectors: [SocketAddr; 2], changes: &[(&str, &str)]) -> Command {
    let [first, second] = collectors.map(|collector| collector.to_string());
    let listen = format!("listen {address} ");
    let pid = format!("pid {};", dir.join("pid").display());
    let temp = |name| format!("{name}_temp_path {};\n", dir.join(name).display());
    let http = format!("http {{\n{}", ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(temp).concat());
    let test_changes = [
        ("collector-1:8080", &*first),
        ("collector-2:8080", &second),
        ("listen 80 ", &listen),
        ("        listen [::]:80 backlog=4096;\n", ""),
        ("pid /run/nginx.pid;", &pid),
        ("http {\n", &http),
        ("worker_rlimit_nofile 16384;", ""),
        ("worker_connections 8192;", "worker_connections 400;"),
    ];
    configure(dir, "nginx.conf", changes.iter().copied().chain(test_changes));
    let mut command = Command::new("nginx");
    command.args(["-g", "daemon off;", "-c", "nginx.conf", "-p"]).arg(dir);
    command
}
