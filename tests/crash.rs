//! Acknowledged reports survive a SIGKILL at any moment, and each is stored exactly once.
//!
//! Each round executes a random plan in one data directory. Servers start and receive reports over many connections.
//! They are killed or stopped at random moments, while another server may continue to run. Recoveries are killed too,
//! several in a row. Incomplete lines are appended to the journals of dead servers.
//!
//! At the end of a round, each acknowledged report must be in the report files exactly once. No refused report may be
//! there. The incomplete lines must be in the quarantine. At random moments, `netwatch_reports_accepted_total` of a server
//! must be the number of reports that it has acknowledged.
//!
//! `CRASH_ROUNDS` is the minimum number of rounds (default: 30). `CRASH_SEED` is the seed of the first round. Each
//! further round adds one to the seed. The test prints both values, to repeat the run with them.

mod common;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{Client, Random, Server, command, from_env, server_command, stored};
use rustix::fs::statvfs;
use rustix::process::Signal;

const CONNECTIONS: usize = 8;
const ADMIN_TOKEN: &str = "an-admin-token-of-a-test";

/// Maximum number of servers that run in the data directory at the same time.
const SERVERS: u64 = 2;

/// A memory file system. Rounds use it only if `MEMORY_BYTES` are free there, enough for the files of one round.
const MEMORY: &str = "/dev/shm";
const MEMORY_BYTES: u64 = 512 << 20;

/// Batches are small, so a flush is in progress most of the time. With the last settings, most batches spill.
const BUFFER_SETTINGS: [[(&str, &str); 3]; 4] = [
    [("BATCH_BYTES", "4KiB"), ("BUFFER_BYTES", "4MiB"), ("ZSTD_LEVEL", "1")],
    [("BATCH_BYTES", "64KiB"), ("BUFFER_BYTES", "4MiB"), ("ZSTD_LEVEL", "1")],
    [("BATCH_BYTES", "1MiB"), ("BUFFER_BYTES", "4MiB"), ("ZSTD_LEVEL", "1")],
    [("BATCH_BYTES", "4KiB"), ("BUFFER_BYTES", "16KiB"), ("ZSTD_LEVEL", "22")],
];

#[derive(Debug)]
enum Step {
    /// Start a server and send reports to it until it ends.
    Start,
    /// Kill the running server with this index.
    Kill(usize),
    /// Send SIGTERM to the running server with this index. The next step does not wait until the server ends.
    Stop(usize),
    /// Compare the counter of the running server with this index with the answers of its clients.
    Count(usize),
    /// Start a recovery and kill it after this time. A starting server or the `recover` command performs the recovery.
    KillRecovery { in_server: bool, after: Duration },
    /// Append `start` and `length` more bytes to each journal, after its last line. No server runs at this time.
    Tear { start: &'static str, length: usize },
}

#[derive(Debug)]
struct Plan {
    /// Whether the data directory is in memory. A sync takes no time there, so the kills hit other operations.
    in_memory: bool,
    settings: Vec<(&'static str, &'static str)>,
    /// Each step, and the time to wait after it.
    steps: Vec<(Step, Duration)>,
}

/// A random duration of up to 131 ms. Its order of magnitude is random too.
fn random_duration(random: &mut Random) -> Duration {
    let magnitude = 1 << (10 + random.below(8));
    Duration::from_micros(random.below(magnitude))
}

fn tear(random: &mut Random) -> Step {
    let start = if random.below(2) == 0 { "{\"torn\":\"" } else { "{\"torn\":\u{1}}\n{" };
    // A long line takes time to be copied to quarantine.
    Step::Tear { start, length: 1 << random.below(20) }
}

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut settings =
            vec![("MAX_BODY_BYTES", "2KiB"), ("FLUSH_INTERVAL", "20ms"), ("WORKERS", "3"), ("MIN_FREE_BYTES", "0")];
        settings.push(("ADMIN_TOKEN", ADMIN_TOKEN));
        settings.extend(BUFFER_SETTINGS[(seed % BUFFER_SETTINGS.len() as u64) as usize]);
        settings.push(("ACK", if random.below(5) == 0 { "disk" } else { "journal" }));
        let has_space = statvfs(MEMORY).is_ok_and(|memory| memory.f_bavail * memory.f_frsize >= MEMORY_BYTES);
        let in_memory = random.below(2) == 0 && has_space;
        let mut plan = Self { in_memory, settings, steps: Vec::new() };
        let mut running = 0;
        for n in 0..3 + random.below(5) {
            let step = match random.below(9) {
                _ if n == 0 => Step::Start,
                0..=3 if running < SERVERS => Step::Start,
                4 if running == 0 => tear(&mut random),
                0 | 4 | 5 if running > 0 => Step::Kill(random.below(running) as usize),
                6 if running > 0 => Step::Stop(random.below(running) as usize),
                7 if running > 0 => Step::Count(random.below(running) as usize),
                _ => Step::KillRecovery { in_server: random.below(2) == 0, after: random_duration(&mut random) },
            };
            // Gives a new server time to receive reports.
            let pause = if let Step::Start = step { random.below(150_000) } else { 0 };
            match step {
                Step::Start => running += 1,
                Step::Kill(_) | Step::Stop(_) => running -= 1,
                _ => {}
            }
            plan.steps.push((step, Duration::from_micros(pause) + random_duration(&mut random)));
        }
        plan.steps.extend((0..running).map(|_| (Step::Kill(0), random_duration(&mut random))));
        if random.below(2) == 0 {
            plan.steps.push((tear(&mut random), Duration::ZERO));
        }
        for _ in 0..2 + random.below(6) {
            let step = Step::KillRecovery { in_server: random.below(3) == 0, after: random_duration(&mut random) };
            plan.steps.push((step, Duration::ZERO));
        }
        plan
    }
}

/// The IDs of the reports that the server acknowledged or refused.
#[derive(Default)]
struct Answered {
    acknowledged: Vec<String>,
    refused: Vec<String>,
}

/// The report with this ID. The last number in the ID determines the length of the report.
fn report(id: &str) -> String {
    let n: usize = id.rsplit('-').next().unwrap().parse().unwrap();
    format!("{{\"id\":\"{id}\",\"pad\":\"{}\"}}", "x".repeat((n * 37) % 900))
}

/// What the clients of one server share.
#[derive(Default)]
struct Clients {
    acknowledged: AtomicUsize,
    /// Each client holds it from a request to its answer. Whoever holds it alone knows that no request is open.
    open_requests: RwLock<()>,
}

/// Sends reports until the server ends.
fn load(mut client: Client, writer: &str, clients: &Clients) -> Answered {
    let mut answered = Answered::default();
    for n in 0.. {
        let id = format!("{writer}-{n}");
        let _open = clients.open_requests.read().unwrap();
        if client.try_send(common::request(report(&id).as_bytes())).is_err() {
            break;
        }
        match client.try_answer() {
            Ok(answer) if answer.status == 200 => {
                clients.acknowledged.fetch_add(1, Ordering::Relaxed);
                answered.acknowledged.push(id);
            }
            Ok(answer) => {
                let stopping = answer.body.contains(":stopping");
                answer.assert_problem(503, if stopping { "stopping" } else { "buffer-full" });
                answered.refused.push(id);
            }
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::WouldBlock, "no answer");
                break;
            }
        }
    }
    answered
}

/// A server and its client threads.
struct Running {
    server: Server,
    clients: Arc<Clients>,
    loads: Vec<JoinHandle<Answered>>,
}

impl Running {
    fn count(&self) {
        let _no_open_request = self.clients.open_requests.write().unwrap();
        let head = format!("GET /metrics HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\r\n");
        let metrics = self.server.connect().ask(&head, b"").body;
        let accepted = metrics.lines().find_map(|line| line.strip_prefix("netwatch_reports_accepted_total "));
        assert_eq!(accepted.unwrap().parse(), Ok(self.clients.acknowledged.load(Ordering::Relaxed)));
    }
}

/// The state of one round.
struct Round {
    dir: tempfile::TempDir,
    running: Vec<Running>,
    stopping: Vec<Running>,
    answered: Answered,
    /// The bytes that must be in the quarantine, by the name of their journal.
    torn: HashMap<PathBuf, Vec<u8>>,
    /// Number of batches that spilled.
    spilled: usize,
    /// Number of recoveries that were killed after they had recovered some journals, but not all.
    interrupted: usize,
    /// Number of comparisons of a counter with the answers.
    counted: usize,
}

impl Round {
    fn run(plan: &Plan) -> Self {
        let mut round = Self {
            dir: if plan.in_memory { tempfile::tempdir_in(MEMORY) } else { tempfile::tempdir() }.unwrap(),
            running: Vec::new(),
            stopping: Vec::new(),
            answered: Answered::default(),
            torn: HashMap::new(),
            spilled: 0,
            interrupted: 0,
            counted: 0,
        };
        for (index, (step, pause)) in plan.steps.iter().enumerate() {
            match step {
                Step::Start => round.start(index, &plan.settings),
                Step::Kill(index) => {
                    let killed = round.running.remove(*index);
                    killed.server.signal(Signal::KILL);
                    round.end(killed, None);
                }
                Step::Stop(index) => {
                    let stopping = round.running.remove(*index);
                    stopping.server.signal(Signal::TERM);
                    round.stopping.push(stopping);
                }
                Step::Count(index) => {
                    round.running[*index].count();
                    round.counted += 1;
                }
                Step::KillRecovery { in_server, after } => round.kill_recovery(*in_server, *after, &plan.settings),
                Step::Tear { start, length } => round.tear(&format!("{start}{}", "x".repeat(*length))),
            }
            thread::sleep(*pause); // the next step starts at a random moment
        }
        round.end_stopping();
        round.check();
        round
    }

    fn start(&mut self, index: usize, settings: &[(&str, &str)]) {
        let server = Server::start_in(self.dir.path(), settings);
        let clients = Arc::new(Clients::default());
        let load = |writer| {
            let (client, writer, clients) = (server.connect(), format!("{index}-{writer}"), Arc::clone(&clients));
            thread::spawn(move || load(client, &writer, &clients))
        };
        let loads = (0..CONNECTIONS).map(load).collect();
        self.running.push(Running { server, clients, loads });
    }

    fn end_stopping(&mut self) {
        for stopping in mem::take(&mut self.stopping) {
            self.end(stopping, Some(0));
        }
    }

    fn end(&mut self, Running { mut server, loads, .. }: Running, code: Option<i32>) {
        for load in loads {
            let answered = load.join().unwrap();
            self.answered.acknowledged.extend(answered.acknowledged);
            self.answered.refused.extend(answered.refused);
        }
        assert_eq!(server.wait().code(), code);
        self.spilled += server.count_in_log("spilled");
    }

    fn kill_recovery(&mut self, in_server: bool, after: Duration, settings: &[(&str, &str)]) {
        let mut recovery = if in_server { server_command(self.dir.path(), settings) } else { self.recovery() };
        let before = self.journals().len();
        let mut recovery = recovery.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(after); // the kill comes at a random moment
        recovery.kill().unwrap();
        recovery.wait().unwrap();
        self.interrupted += usize::from((1..before).contains(&self.journals().len()));
    }

    fn recovery(&self) -> Command {
        let mut recovery = command(self.dir.path());
        recovery.arg("recover").arg(self.dir.path());
        recovery
    }

    fn journals(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.dir.path().join("journal")).into_iter().flatten();
        let files = files.map(|file| file.unwrap().path());
        files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("reports-")).collect()
    }

    fn tear(&mut self, bytes: &str) {
        self.end_stopping();
        for path in self.journals() {
            let name = Path::new(path.file_name().unwrap());
            let [staged, published, quarantined] =
                ["tmp", "", "quarantine"].map(|dir| self.dir.path().join(dir).join(name));
            let files = [staged, published].map(|path| path.with_extension("jsonl.zst"));
            if self.torn.contains_key(name) || files.iter().any(|path| path.exists()) || quarantined.exists() {
                continue; // recovery may not read this journal again
            }
            let journal = fs::read(&path).unwrap();
            let end = journal.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            // A kill during a write may already have left an incomplete line. It also goes to the quarantine.
            let last_line = memchr::memrchr(b'\n', &journal).map_or(0, |newline| newline + 1);
            File::options().write(true).open(&path).unwrap().write_all_at(bytes.as_bytes(), end as u64).unwrap();
            self.torn.insert(name.to_owned(), [&journal[last_line..end], bytes.as_bytes()].concat());
        }
    }

    /// Recovers the remaining journals and checks the guarantees.
    fn check(&self) {
        let dir = self.dir.path();
        let recovered = self.recovery().output().unwrap();
        assert!(recovered.status.success(), "{recovered:?}");
        let mut copies: HashMap<String, usize> = HashMap::new();
        for line in stored(dir) {
            let id = serde_json::from_str::<serde_json::Value>(&line).unwrap()["id"].as_str().unwrap().to_owned();
            assert_eq!(line, report(&id));
            *copies.entry(id).or_default() += 1;
        }
        let assert_none =
            |what: &str, ids: Vec<&String>| assert!(ids.is_empty(), "{what}: {:?}", &ids[..ids.len().min(5)]);
        assert_none("stored twice", copies.iter().filter(|(_, copies)| **copies > 1).map(|(id, _)| id).collect());
        assert_none("lost", self.answered.acknowledged.iter().filter(|id| !copies.contains_key(*id)).collect());
        assert_none("refused but stored", self.answered.refused.iter().filter(|id| copies.contains_key(*id)).collect());
        for (name, bytes) in &self.torn {
            let quarantined = fs::read(dir.join("quarantine").join(name));
            assert!(quarantined.is_ok_and(|quarantined| quarantined == *bytes), "wrong quarantine: {}", name.display());
        }
        let inner = |dir: &Path| dir.ends_with("journal") || dir.ends_with("tmp");
        for dir in [dir.to_owned(), dir.join("journal"), dir.join("tmp"), dir.join("quarantine")] {
            let files = fs::read_dir(&dir).into_iter().flatten().map(|file| file.unwrap().file_name());
            let leftover: Vec<_> = files.filter(|name| inner(&dir) || name.as_encoded_bytes()[0] == b'.').collect();
            assert!(leftover.is_empty(), "{leftover:?} in {}", dir.display());
        }
    }
}

#[test]
fn acknowledged_reports_survive_any_crash_exactly_once() {
    let first_seed = from_env("CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = from_env("CRASH_ROUNDS").unwrap_or(30);
    println!("CRASH_ROUNDS={rounds} CRASH_SEED={first_seed}");
    let (mut acknowledged, mut spilled, mut torn, mut interrupted, mut counted) = (0, 0, 0, 0, 0);
    for seed in first_seed.. {
        // A run must cover each kind of fault often enough. Otherwise it gets more rounds.
        let covers_enough =
            rounds < 30 || acknowledged > 1_000 && spilled > 10 && torn > 10 && interrupted > 3 && counted > 5;
        if seed - first_seed >= rounds && covers_enough {
            break;
        }
        assert!(
            seed - first_seed < 5 * rounds,
            "too few faults: {acknowledged} acknowledged, {spilled} spilled, {torn} torn, {interrupted} interrupted, \
             {counted} counted"
        );
        let plan = Plan::draw(seed);
        let round = std::panic::catch_unwind(|| Round::run(&plan));
        let round = round.unwrap_or_else(|_| panic!("CRASH_ROUNDS=1 CRASH_SEED={seed}: {plan:?}"));
        acknowledged += round.answered.acknowledged.len();
        spilled += round.spilled;
        torn += round.torn.len();
        interrupted += round.interrupted;
        counted += round.counted;
    }
    println!(
        "{acknowledged} reports acknowledged, {spilled} batches spilled, {torn} journals torn, \
         {interrupted} recoveries interrupted, {counted} counters compared"
    );
}
