//! A real load balancer with the configuration of `deploy/`, in front of two collectors of a test.

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

/// Which one.
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
    /// Starts one with `changes` to its configuration, each from what is there to what shall be there, and waits until
    /// requests get through.
    pub(crate) fn start(kind: Kind, collectors: [SocketAddr; 2], changes: &[(&str, &str)]) -> Self {
        // Again if somebody else has taken the port meanwhile.
        wait_until("requests get through the load balancer", || {
            let mut balancer = Self::spawn(kind, collectors, changes);
            let answers = |balancer: &Self| {
                let mut client = Client::try_connect(balancer.address).ok()?;
                client.try_send(ASK_HEALTH).ok()?;
                client.try_any_answer().ok().filter(|answer| answer.status == 200)
            };
            wait_until("it answers or ends", || {
                let ended = balancer.child.try_wait().unwrap();
                ended.map(|_| false).or_else(|| answers(&balancer).map(|_| true))
            })
            .then_some(balancer)
        })
    }

    fn spawn(kind: Kind, collectors: [SocketAddr; 2], changes: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // For the workers of nginx, which give up root.
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

    /// Waits until requests go to this collector again. nginx does not tell; but what it holds against a collector, it
    /// forgets within the `SHUTDOWN_DELAY` of the next one.
    pub(crate) fn wait_until_used(&self, collector: usize) {
        if self.kind == Kind::HaProxy {
            let server = format!("collectors,collector-{},", collector + 1);
            wait_until("HAProxy sees the collector", || {
                let mut stream = TcpStream::connect(self.stats).unwrap();
                stream.write_all(b"GET /stats;csv HTTP/1.0\r\n\r\n").unwrap();
                let mut stats = String::new();
                stream.read_to_string(&mut stats).unwrap();
                let mut lines = stats.lines();
                lines.any(|line| line.starts_with(&server) && line.contains(",UP,")).then_some(())
            });
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            // Not by force: nginx has to end its workers first.
            kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
            self.child.wait().unwrap();
        }
        if thread::panicking() {
            eprintln!("log of {:?}:\n{}", self.kind, fs::read_to_string(self.dir.path().join("log")).unwrap());
        }
    }
}

fn free_addresses() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// Writes the configuration with these changes to `dir`.
fn configure<'a>(dir: &Path, name: &str, changes: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let mut text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{name} holds no {from:?}");
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
    // Without root, there is nobody else to become.
    let user = [("    user haproxy\n", ""), ("    group haproxy\n", "")].into_iter();
    let ours = user.filter(|_| !geteuid().is_root());
    configure(dir, "haproxy.cfg", changes.iter().copied().chain(ours));
    let mut command = Command::new("haproxy");
    // In the foreground, and with fewer connections: the limit of open files may be low here.
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
    let ours = [
        ("collector-1:8080", &*first),
        ("collector-2:8080", &second),
        ("listen 80 ", &listen),
        ("        listen [::]:80 backlog=4096;\n", ""),
        ("pid /run/nginx.pid;", &pid),
        ("http {\n", &http),
        ("worker_rlimit_nofile 16384;", ""),
        ("worker_connections 8192;", "worker_connections 400;"),
    ];
    configure(dir, "nginx.conf", changes.iter().copied().chain(ours));
    let mut command = Command::new("nginx");
    command.args(["-g", "daemon off;", "-c", "nginx.conf", "-p"]).arg(dir);
    command
}
