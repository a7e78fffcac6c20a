//! What was acknowledged survives a SIGKILL, exactly once, whatever the server was at.
//!
//! Each round is a plan, drawn from random numbers: on one data directory servers start, take reports over many
//! connections, and are killed or stopped at a random moment, while another one may go on; so are recoveries, several
//! in a row; and half lines are written behind what the dead have left. In the end all that was acknowledged has to be
//! in the files once and nothing that was refused, and the half lines have to be in the quarantine.
//!
//! `CRASH_ROUNDS` (30) is how many at least. `CRASH_SEED` replays the plans of a run; that of the first round is
//! printed, and the next ones count up from there.

mod common;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{Client, Random, Server, command, from_env, server_command, stored};
use rustix::fs::statvfs;
use rustix::process::Signal;

const CONNECTIONS: usize = 8;

/// Servers that share the directory.
const SERVERS: u64 = 2;

/// A file system without a disk, where there is one with room for what a round leaves.
const MEMORY: &str = "/dev/shm";
const MEMORY_BYTES: u64 = 512 << 20;

/// Small batches, so that most of the time one is being flushed. With the last, most of them spill.
const SHAPES: [[(&str, &str); 3]; 4] = [
    [("BATCH_BYTES", "4KiB"), ("BUFFER_BYTES", "4MiB"), ("ZSTD_LEVEL", "1")],
    [("BATCH_BYTES", "64KiB"), ("BUFFER_BYTES", "4MiB"), ("ZSTD_LEVEL", "1")],
    [("BATCH_BYTES", "1MiB"), ("BUFFER_BYTES", "4MiB"), ("ZSTD_LEVEL", "1")],
    [("BATCH_BYTES", "4KiB"), ("BUFFER_BYTES", "16KiB"), ("ZSTD_LEVEL", "22")],
];

#[derive(Debug)]
enum Step {
    /// A server starts, and takes reports until it is gone.
    Start,
    /// The server of this index, among those that run, is killed.
    Kill(usize),
    /// It is told to stop; what comes next does not wait for its end.
    Stop(usize),
    /// A recovery is killed: one without a server, or else that of a server that starts.
    KillRecovery { serves: bool, after: Duration },
    /// Once no server runs, this and so many bytes more are written behind the last line of each journal.
    Tear { start: &'static str, length: usize },
}

#[derive(Debug)]
struct Plan {
    /// Where to sync takes no time, servers and recoveries are found at something else.
    in_memory: bool,
    settings: Vec<(&'static str, &'static str)>,
    /// What happens, and how long to wait after that.
    steps: Vec<(Step, Duration)>,
}

/// A time of any order of magnitude up to 130 ms.
fn moment(random: &mut Random) -> Duration {
    let magnitude = 1 << (10 + random.below(8));
    Duration::from_micros(random.below(magnitude))
}

fn tear(random: &mut Random) -> Step {
    let start = if random.below(2) == 0 { "{\"torn\":\"" } else { "{\"torn\":\u{1}}\n{" };
    // A long one takes its time to be put aside.
    Step::Tear { start, length: 1 << random.below(20) }
}

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut settings =
            vec![("MAX_BODY_BYTES", "2KiB"), ("FLUSH_INTERVAL", "20ms"), ("WORKERS", "3"), ("MIN_FREE_BYTES", "0")];
        settings.extend(SHAPES[(seed % SHAPES.len() as u64) as usize]);
        settings.push(("ACK", if random.below(5) == 0 { "disk" } else { "journal" }));
        let has_room = statvfs(MEMORY).is_ok_and(|memory| memory.f_bavail * memory.f_frsize >= MEMORY_BYTES);
        let in_memory = random.below(2) == 0 && has_room;
        let mut plan = Self { in_memory, settings, steps: Vec::new() };
        let mut running = 0;
        for n in 0..3 + random.below(5) {
            let step = match random.below(8) {
                _ if n == 0 => Step::Start,
                0..=3 if running < SERVERS => Step::Start,
                4 if running == 0 => tear(&mut random),
                0 | 4 | 5 if running > 0 => Step::Kill(random.below(running) as usize),
                6 if running > 0 => Step::Stop(random.below(running) as usize),
                _ => Step::KillRecovery { serves: random.below(2) == 0, after: moment(&mut random) },
            };
            // Long enough for a server to have something to lose.
            let pause = if let Step::Start = step { random.below(150_000) } else { 0 };
            match step {
                Step::Start => running += 1,
                Step::Kill(_) | Step::Stop(_) => running -= 1,
                _ => {}
            }
            plan.steps.push((step, Duration::from_micros(pause) + moment(&mut random)));
        }
        plan.steps.extend((0..running).map(|_| (Step::Kill(0), moment(&mut random))));
        if random.below(2) == 0 {
            plan.steps.push((tear(&mut random), Duration::ZERO));
        }
        for _ in 0..2 + random.below(6) {
            let step = Step::KillRecovery { serves: random.below(3) == 0, after: moment(&mut random) };
            plan.steps.push((step, Duration::ZERO));
        }
        plan
    }
}

/// The ids of reports, by their answers.
#[derive(Default)]
struct Answered {
    kept: Vec<String>,
    refused: Vec<String>,
}

/// The report of an id, whose last number tells its length.
fn report(id: &str) -> String {
    let n: usize = id.rsplit('-').next().unwrap().parse().unwrap();
    format!("{{\"id\":\"{id}\",\"pad\":\"{}\"}}", "x".repeat((n * 37) % 900))
}

/// Sends reports until the server is gone.
fn load(mut client: Client, writer: &str) -> Answered {
    let mut answered = Answered::default();
    for n in 0.. {
        let id = format!("{writer}-{n}");
        if client.try_send(common::request(report(&id).as_bytes())).is_err() {
            break;
        }
        match client.try_answer() {
            Ok(answer) if answer.status == 200 => answered.kept.push(id),
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

/// A server, and those who send it reports.
struct Running(Server, Vec<JoinHandle<Answered>>);

/// One round under way.
struct Round {
    dir: tempfile::TempDir,
    running: Vec<Running>,
    stopping: Vec<Running>,
    answered: Answered,
    /// What has to be in the quarantine, by the names of the journals.
    torn: HashMap<PathBuf, Vec<u8>>,
    spilled: usize,
    /// Recoveries that were killed when they had recovered some journals, and not all.
    cut_short: usize,
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
            cut_short: 0,
        };
        for (index, (step, pause)) in plan.steps.iter().enumerate() {
            match step {
                Step::Start => round.start(index, &plan.settings),
                Step::Kill(index) => {
                    let killed = round.running.remove(*index);
                    killed.0.signal(Signal::KILL);
                    round.end(killed, None);
                }
                Step::Stop(index) => {
                    let stopping = round.running.remove(*index);
                    stopping.0.signal(Signal::TERM);
                    round.stopping.push(stopping);
                }
                Step::KillRecovery { serves, after } => round.kill_recovery(*serves, *after, &plan.settings),
                Step::Tear { start, length } => round.tear(&format!("{start}{}", "x".repeat(*length))),
            }
            thread::sleep(*pause); // the random moment
        }
        round.end_stopping();
        round.check();
        round
    }

    fn start(&mut self, index: usize, settings: &[(&str, &str)]) {
        let server = Server::start_in(self.dir.path(), settings);
        let load = |writer| {
            let (client, writer) = (server.connect(), format!("{index}-{writer}"));
            thread::spawn(move || load(client, &writer))
        };
        let loads = (0..CONNECTIONS).map(load).collect();
        self.running.push(Running(server, loads));
    }

    fn end_stopping(&mut self) {
        for stopping in mem::take(&mut self.stopping) {
            self.end(stopping, Some(0));
        }
    }

    fn end(&mut self, Running(mut server, loads): Running, code: Option<i32>) {
        for load in loads {
            let answered = load.join().unwrap();
            self.answered.kept.extend(answered.kept);
            self.answered.refused.extend(answered.refused);
        }
        assert_eq!(server.wait().code(), code);
        self.spilled += server.count_in_log("spilled");
    }

    fn kill_recovery(&mut self, serves: bool, after: Duration, settings: &[(&str, &str)]) {
        let mut recovery = if serves { server_command(self.dir.path(), settings) } else { self.recovery() };
        let before = self.journals().len();
        let mut recovery = recovery.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(after); // the random moment
        recovery.kill().unwrap();
        recovery.wait().unwrap();
        self.cut_short += usize::from((1..before).contains(&self.journals().len()));
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
            let [published, aside] = ["", "quarantine"].map(|dir| self.dir.path().join(dir).join(name));
            if self.torn.contains_key(name) || published.with_extension("jsonl.zst").exists() || aside.exists() {
                continue; // what it has is not looked at again
            }
            let journal = fs::read(&path).unwrap();
            let end = journal.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            // A kill in the middle of a write may have left a half line of its own.
            let line = memchr::memrchr(b'\n', &journal).map_or(0, |newline| newline + 1);
            File::options().write(true).open(&path).unwrap().write_all_at(bytes.as_bytes(), end as u64).unwrap();
            self.torn.insert(name.to_owned(), [&journal[line..end], bytes.as_bytes()].concat());
        }
    }

    /// Recovers what is left, and looks for all that was promised.
    fn check(&self) {
        let dir = self.dir.path();
        let recovered = self.recovery().output().unwrap();
        assert!(recovered.status.success(), "{recovered:?}");
        let mut times: HashMap<String, usize> = HashMap::new();
        for line in stored(dir) {
            let id = serde_json::from_str::<serde_json::Value>(&line).unwrap()["id"].as_str().unwrap().to_owned();
            assert_eq!(line, report(&id));
            *times.entry(id).or_default() += 1;
        }
        let none = |what: &str, ids: Vec<&String>| assert!(ids.is_empty(), "{what}: {:?}", &ids[..ids.len().min(5)]);
        none("twice", times.iter().filter(|(_, times)| **times > 1).map(|(id, _)| id).collect());
        none("lost", self.answered.kept.iter().filter(|id| !times.contains_key(*id)).collect());
        none("refused", self.answered.refused.iter().filter(|id| times.contains_key(*id)).collect());
        for (name, bytes) in &self.torn {
            let aside = fs::read(dir.join("quarantine").join(name));
            assert!(aside.is_ok_and(|aside| aside == *bytes), "{}", name.display());
        }
        for dir in [dir.to_owned(), dir.join("journal"), dir.join("quarantine")] {
            let files = fs::read_dir(&dir).into_iter().flatten().map(|file| file.unwrap().file_name());
            let left: Vec<_> =
                files.filter(|name| dir.ends_with("journal") || name.as_encoded_bytes()[0] == b'.').collect();
            assert!(left.is_empty(), "{left:?} in {}", dir.display());
        }
    }
}

#[test]
fn what_was_acknowledged_survives_any_crash_once() {
    let first = from_env("CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = from_env("CRASH_ROUNDS").unwrap_or(30);
    println!("CRASH_ROUNDS={rounds} CRASH_SEED={first}");
    let (mut kept, mut spilled, mut torn, mut cut_short) = (0, 0, 0, 0);
    for seed in first.. {
        // Rounds that are not what they are for prove nothing; then more are drawn.
        let prove_something = rounds < 30 || kept > 1_000 && spilled > 10 && torn > 10 && cut_short > 3;
        if seed - first >= rounds && prove_something {
            break;
        }
        assert!(seed - first < 5 * rounds, "{kept} kept, {spilled} spilled, {torn} torn, {cut_short} cut short");
        let plan = Plan::draw(seed);
        let round = std::panic::catch_unwind(|| Round::run(&plan));
        let round = round.unwrap_or_else(|_| panic!("CRASH_ROUNDS=1 CRASH_SEED={seed}: {plan:?}"));
        kept += round.answered.kept.len();
        spilled += round.spilled;
        torn += round.torn.len();
        cut_short += round.cut_short;
    }
    println!("{kept} reports kept, {spilled} batches spilled, {torn} journals torn, {cut_short} recoveries cut short");
}
