//! A data directory with very many report files.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Client, cpu_time, server_command, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const FILES: u32 = 300_000;

/// Hard links to one file. ext4 permits 65,000.
const LINKS: u32 = 60_000;

/// Time limits are for a release build. A debug build may share the machine with compilers.
const SLACK: u32 = if cfg!(debug_assertions) { 20 } else { 1 };
const FIRST_ANSWER: Duration = Duration::from_millis(500);
const STOP: Duration = Duration::from_secs(1);

/// Maximum resident memory. It includes pages of the program itself, which are many in a debug build.
const MEMORY_KIB: u64 = if cfg!(debug_assertions) { 100 } else { 60 } * 1024;

/// Time without requests in which the processor time is measured.
const IDLE: Duration = Duration::from_secs(4);

/// Creates report files that all have the same content. Hard links, because they are created quickly and need no space.
fn create_files(dir: &Path) -> String {
    fs::create_dir_all(dir).unwrap();
    let content = zstd::encode_all(&b"{\"old\":1}\n"[..], 1).unwrap();
    let mut first = PathBuf::new();
    for n in 0..FILES {
        let path = dir.join(format!("reports-20261122T150512.{n:09}Z-{n:08x}.jsonl.zst"));
        if n % LINKS == 0 {
            fs::write(&path, &content).unwrap();
            first = path;
        } else {
            fs::hard_link(&first, path).unwrap();
        }
    }
    format!("{}/reports-20261122T150512.000000000Z-00000000.jsonl.zst", dir.display())
}

fn memory_kib(process: &Child, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    value.trim_matches([':', ' ', '\t']).strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

/// Ends the process when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}

/// A port that was free a moment ago. The test needs to know the port before the server has started.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

const TOKEN: &str = "an-admin-token-of-a-test";

#[test]
fn three_hundred_thousand_report_files_do_not_slow_down_the_start_or_use_memory_or_processor_time() {
    // A memory file system, if there is one: only the number of files matters.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let data_dir = dir.path().join("reports");
    let an_old_file = create_files(&data_dir);
    let port = free_port().to_string();
    let mut command = server_command(&data_dir, &[("PORT", &port), ("MIN_FREE_BYTES", "0"), ("ADMIN_TOKEN", TOKEN)]);
    let started = Instant::now();
    let mut server = Process(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let mut client = wait_until("the server listens", || Client::try_connect(address).ok());
    client.post("{\"new\":1}").assert_ok();
    let first_answer = started.elapsed();

    // The list of the files is loaded in the background.
    let scrape = format!("GET /metrics HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    wait_until("all files are listed", || {
        let metrics = client.ask(&scrape, b"").body;
        metrics.contains(&format!("\nnetwatch_report_files {FILES}.0\n")).then_some(())
    });
    let before = cpu_time(server.0.id());
    let rss_kib = memory_kib(&server.0, "VmRSS");
    thread::sleep(IDLE); // the processor time of an idle server is measured over this time
    let idle = cpu_time(server.0.id()) - before;
    let peak_kib = memory_kib(&server.0, "VmHWM");

    let signaled = Instant::now();
    kill_process(Pid::from_child(&server.0), Signal::TERM).unwrap();
    let status = wait_until("the server stops", || server.0.try_wait().unwrap());
    let stop = signaled.elapsed();
    let mut log = String::new();
    server.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    println!(
        "{FILES} report files: first answer after {first_answer:?}, {} MiB resident, {} MiB at most, {idle:?} of \
         processor time in {IDLE:?} without requests, stopped after {stop:?}",
        rss_kib / 1024,
        peak_kib / 1024
    );
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("panicked") && !log.contains("\"level\":\"ERROR\""), "{log}");
    assert!(first_answer < FIRST_ANSWER * SLACK, "{first_answer:?}");
    assert!(peak_kib < MEMORY_KIB, "{peak_kib} KiB");
    assert!(idle < IDLE / 100 * SLACK.min(5), "{idle:?}");
    assert!(stop < STOP * SLACK, "{stop:?}");
    // The old files are untouched, and there is one new file.
    assert_eq!(fs::metadata(an_old_file).unwrap().nlink(), u64::from(LINKS));
    let names = fs::read_dir(&data_dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.ends_with(".jsonl.zst")).count(), FILES as usize + 1);
}
