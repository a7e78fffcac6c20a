//! Faults of the world around the servers.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::process::Signal;

use crate::Soak;
use crate::common::{Client, Random, command, gzip};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9, and a start.
    Kill,
    /// SIGTERM, and a start.
    Terminate,
    /// SIGTERM, kill -9 during the shutdown, and a start.
    KillDuringShutdown,
    /// SIGSTOP, and SIGCONT.
    Suspend,
    FullDisk,
    StalledDisk,
    /// Nobody reads the log of a server.
    UnreadLog,
    /// A cleaner removes the journals and temporary files of live servers.
    Cleaner,
    /// A consumer takes each report file as soon as it appears.
    FastConsumer,
    /// All clients send as fast as they can.
    Burst,
    /// A `recover` command runs next to the servers, and is killed.
    Recovery,
    Bombs,
    Http2Flood,
    SlowBodies,
}

pub(crate) const ALL: [Fault; 14] = [
    Fault::Kill,
    Fault::Terminate,
    Fault::KillDuringShutdown,
    Fault::Suspend,
    Fault::FullDisk,
    Fault::StalledDisk,
    Fault::UnreadLog,
    Fault::Cleaner,
    Fault::FastConsumer,
    Fault::Burst,
    Fault::Recovery,
    Fault::Bombs,
    Fault::Http2Flood,
    Fault::SlowBodies,
];

/// Maximum time from the work of the cleaner until the reports of that time are in report files.
const PUBLISHED: Duration = Duration::from_secs(60);

/// Connections of one attack.
const SLOW_CONNECTIONS: usize = 60;
const FLOOD_CONNECTIONS: usize = 5;

/// Locks of faults that can happen only once at a time.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    full_disk: Mutex<()>,
    stalled_disk: Mutex<()>,
}

/// Causes faults, one after the other, until they are stopped. `queue` contains the first faults.
pub(crate) fn cause(soak: &Soak, mut queue: Vec<Fault>, mut random: Random) {
    let without = std::env::var("SOAK_WITHOUT").unwrap_or_default();
    let without: Vec<_> = without.split(',').collect();
    while soak.faults_run() {
        let fault = queue.pop().unwrap_or_else(|| ALL[random.below(ALL.len() as u64) as usize]);
        if without.contains(&format!("{fault:?}").as_str()) {
            continue;
        }
        if run(soak, fault, &mut random) {
            soak.fault_counts[ALL.iter().position(|other| *other == fault).unwrap()].fetch_add(1, Ordering::Relaxed);
        }
        soak.pause(Duration::from_millis(random.below(1500)));
    }
}

/// The order of the first faults: each kind once.
pub(crate) fn shuffled(random: &mut Random) -> Vec<Fault> {
    let mut faults = ALL.to_vec();
    for n in (1..faults.len()).rev() {
        faults.swap(n, random.below(n as u64 + 1) as usize);
    }
    faults
}

fn millis(random: &mut Random, from: u64, to: u64) -> Duration {
    Duration::from_millis(from + random.below(to - from))
}

/// Returns whether the fault happened.
fn run(soak: &Soak, fault: Fault, random: &mut Random) -> bool {
    let started = Instant::now();
    soak.trace(|| format!("{fault:?} begins"));
    let happened = match fault {
        Fault::Kill => restart(soak, random, &[Signal::KILL], None),
        Fault::Terminate => restart(soak, random, &[Signal::TERM], Some(0)),
        Fault::KillDuringShutdown => restart(soak, random, &[Signal::TERM, Signal::KILL], None),
        Fault::Suspend => suspend(soak, random),
        Fault::FullDisk => full_disk(soak, millis(random, 500, 5000)),
        Fault::StalledDisk => stalled_disk(soak, millis(random, 200, 5000)),
        Fault::UnreadLog => {
            let unread = soak.slots[random.below(2) as usize].lock().as_ref().map(|process| process.stop_reading_log());
            soak.pause(millis(random, 1000, 8000));
            unread.is_some()
        }
        Fault::Cleaner => clean(soak),
        Fault::FastConsumer => set_for(soak, &soak.is_consumer_fast, millis(random, 1000, 5000)),
        Fault::Burst => set_for(soak, &soak.is_burst, millis(random, 1000, 4000)),
        Fault::Recovery => recover(soak, millis(random, 1, 300)),
        Fault::Bombs => attack(soak, random, bombs),
        Fault::Http2Flood => attack(soak, random, flood),
        Fault::SlowBodies => attack(soak, random, slow_bodies),
    };
    soak.trace(|| format!("{fault:?} ends after {:?}", started.elapsed()));
    happened
}

fn set_for(soak: &Soak, flag: &AtomicBool, duration: Duration) -> bool {
    flag.store(true, Ordering::Release);
    soak.pause(duration);
    flag.store(false, Ordering::Release);
    true
}

/// A fault of the disk or of time. While it lasts, the server may refuse with `not-durable` what no client notices.
pub(crate) struct Disturbance<'a>(&'a Soak);

impl<'a> Disturbance<'a> {
    fn begin(soak: &'a Soak) -> Self {
        soak.disturbances.fetch_add(1, Ordering::AcqRel);
        Self(soak)
    }
}

impl Drop for Disturbance<'_> {
    fn drop(&mut self) {
        *self.0.last_disturbance.lock().unwrap() = Instant::now();
        self.0.disturbances.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The counter of disturbances that last.
pub(crate) type Disturbances = AtomicUsize;

/// Server 1 is not restarted in the second half of the run, so that a leak would show at the end.
fn restartable(soak: &Soak, random: &mut Random) -> usize {
    if soak.is_second_half() { 0 } else { random.below(2) as usize }
}

fn restart(soak: &Soak, random: &mut Random, signals: &[Signal], code: Option<i32>) -> bool {
    let slot = &soak.slots[restartable(soak, random)];
    let mut locked = slot.lock();
    for (n, signal) in signals.iter().enumerate() {
        if n > 0 {
            soak.pause(millis(random, 1, 200));
        }
        let Some(process) = &mut *locked else { return false };
        process.signal(*signal);
    }
    // A server that is killed during its shutdown may already have ended with 0.
    match signals.len() {
        1 => slot.expect_end(&mut locked, code),
        _ => slot.expect_killed_or_ended(&mut locked),
    }
    if random.below(2) == 0 {
        soak.pause(millis(random, 1, 1500));
    }
    slot.start(&mut locked);
    true
}

fn suspend(soak: &Soak, random: &mut Random) -> bool {
    let slot = &soak.slots[random.below(2) as usize];
    let locked = slot.lock();
    let Some(process) = &*locked else { return false };
    let _disturbance = Disturbance::begin(soak);
    process.signal(Signal::STOP);
    soak.pause(millis(random, 500, 5000));
    process.signal(Signal::CONT);
    true
}

fn full_disk(soak: &Soak, duration: Duration) -> bool {
    let Ok(_exclusive) = soak.locks.full_disk.try_lock() else { return false };
    let _disturbance = Disturbance::begin(soak);
    let path = soak.file_system.path.join("filler");
    let filler = File::create(&path).unwrap();
    let (until, mut length) = (Instant::now() + duration, 0);
    // Whatever becomes free is taken again.
    while Instant::now() < until && soak.faults_run() {
        let free = soak.file_system.free_bytes();
        if free > 0 && fallocate(&filler, FallocateFlags::empty(), length, free).is_ok() {
            length += free;
        } else if free > 1 << 20 && fallocate(&filler, FallocateFlags::empty(), length, 1 << 20).is_ok() {
            // The file system needs some blocks for itself.
            length += 1 << 20;
        } else {
            soak.pause(Duration::from_millis(20));
        }
    }
    drop(filler);
    fs::remove_file(path).unwrap();
    length > 0
}

fn stalled_disk(soak: &Soak, duration: Duration) -> bool {
    let Ok(_exclusive) = soak.locks.stalled_disk.try_lock() else { return false };
    let _disturbance = Disturbance::begin(soak);
    let _frozen = soak.file_system.freeze();
    soak.pause(duration);
    true
}

/// Removes journals and temporary files of live servers. That loses nothing, as long as these servers are not killed
/// before they have written the report files. Staged report files and journals of dead servers are the only copy of
/// their reports, so they stay.
fn clean(soak: &Soak) -> bool {
    // No server is killed until all reports are published.
    let slots = [soak.slots[0].lock(), soak.slots[1].lock()];
    if slots.iter().any(|slot| slot.is_none()) {
        return false;
    }
    let _disturbance = Disturbance::begin(soak);
    let positions = soak.ledger.positions();
    let mut removed = 0;
    for dir in ["journal", "tmp"] {
        for entry in fs::read_dir(soak.data_dir.join(dir)).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().ends_with(b".zst") {
                continue;
            }
            let Ok(file) = File::open(entry.path()) else { continue };
            let is_orphan = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if !is_orphan && fs::remove_file(entry.path()).is_ok() {
                removed += 1;
            }
        }
    }
    let deadline = Instant::now() + PUBLISHED;
    while let Some(missing) = soak.ledger.missing(&positions) {
        if Instant::now() > deadline {
            soak.ledger.violation(format!("{missing:?} is not stored {PUBLISHED:?} after its journal was removed"));
            break;
        }
        std::thread::sleep(Duration::from_millis(50)); // the consumer reads the report files in the meantime
    }
    removed > 0
}

fn recover(soak: &Soak, duration: Duration) -> bool {
    // The cleaner must not remove a journal that this command is about to publish.
    let _no_cleaner = soak.slots[0].lock();
    let mut recovery = command(&std::env::temp_dir());
    let recovery = recovery.arg("recover").arg(&soak.data_dir).stdout(Stdio::null()).stderr(Stdio::null());
    let mut recovery = recovery.spawn().unwrap();
    soak.pause(duration);
    recovery.kill().unwrap();
    recovery.wait().unwrap();
    true
}

fn attack(soak: &Soak, random: &mut Random, attack: impl Fn(&Soak, &mut Random, std::net::SocketAddr)) -> bool {
    let Some(target) = soak.slots[random.below(2) as usize].target() else { return false };
    attack(soak, random, target.address);
    true
}

fn connect(address: std::net::SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    Some(stream)
}

/// Bodies that become very long when they are decoded.
fn bombs(soak: &Soak, _: &mut Random, address: std::net::SocketAddr) {
    let spaces = vec![b' '; 4 << 20];
    let bombs = [
        ("zstd", zstd::encode_all(&*spaces, 1).unwrap().repeat(64)),
        ("gzip", gzip(&spaces).repeat(8)),
        // The window is larger than the limit of the body.
        ("zstd", zstd::encode_all(&*spaces, 19).unwrap()),
    ];
    for (encoding, bomb) in bombs.iter().cycle().take(12) {
        let Some(Ok(mut client)) = connect(address).map(Client::from_stream) else { return };
        let head = format!("content-encoding: {encoding}\r\ncontent-length: {}\r\n\r\n", bomb.len());
        let head = format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\n{head}");
        if client.try_send([head.as_bytes(), bomb].concat()).is_err() {
            continue;
        }
        client.writer().set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        if let Ok(answer) = client.try_any_answer()
            && !matches!(answer.status, 413 | 503 | 408)
        {
            soak.ledger.violation(format!("unexpected answer to a decompression bomb: {answer:?}"));
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Rapid resets, and connections with many open requests whose answers nobody reads. No request has a body.
fn flood(soak: &Soak, random: &mut Random, address: std::net::SocketAddr) {
    let path = b"/api/v1/reports";
    let headers = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 4], b"test"].concat();
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
    let mut open = Vec::new();
    for n in 0..FLOOD_CONNECTIONS {
        let Some(mut stream) = connect(address) else { return };
        let streams = if n % 2 == 0 { 3000 } else { 100 };
        let requests = (0..streams).flat_map(|stream| match n % 2 {
            // HEADERS with END_STREAM, and RST_STREAM.
            0 => [frame(1, 5, 2 * stream + 1, &headers), frame(3, 0, 2 * stream + 1, &8u32.to_be_bytes())].concat(),
            _ => frame(1, 4, 2 * stream + 1, &headers),
        });
        // An error means that the server has closed the connection.
        drop(stream.write_all(&[preface.clone(), requests.collect()].concat()));
        open.push(stream);
    }
    soak.pause(millis(random, 200, 3000));
}

/// Bodies that arrive byte by byte and never end.
fn slow_bodies(soak: &Soak, random: &mut Random, address: std::net::SocketAddr) {
    let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 60000\r\n\r\n{\"attack\":\"";
    let mut streams: Vec<_> = (0..SLOW_CONNECTIONS).map_while(|_| connect(address)).collect();
    streams.retain_mut(|stream| stream.write_all(head.as_bytes()).is_ok());
    let until = Instant::now() + millis(random, 1000, 6000);
    while Instant::now() < until && !streams.is_empty() && soak.faults_run() {
        streams.retain_mut(|stream| stream.write_all(b"x").is_ok());
        soak.pause(Duration::from_millis(100));
    }
    if let Some(stream) = streams.first_mut() {
        let mut answer = [0; 12];
        if stream.read_exact(&mut answer).is_ok() && !matches!(&answer[9..], b"408" | b"503") {
            soak.ledger.violation(format!("unexpected answer to a slow body: {}", String::from_utf8_lossy(&answer)));
        }
    }
}
