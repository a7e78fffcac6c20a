//! Retention: old report files are pruned within the limits, and nothing else is.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use common::{Server, command, report_files, wait_until};
use netwatch_server::store::BatchId;
use rustix::process::Signal;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Creates a report file whose only report came `age` ago.
fn old_file(dir: &Path, age: Duration) -> PathBuf {
    let time = SystemTime::now() - age;
    let path = dir.join(BatchId::new(time).report_file());
    fs::write(&path, zstd::encode_all(&b"{\"old\":true}\n"[..], 1).unwrap()).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    path
}

fn bytes(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

fn wait_until_gone(path: &Path) {
    wait_until("the file is pruned", || (!path.exists()).then_some(()));
}

/// Posts a report, and waits until its file is published.
fn publish(server: &Server, body: &str) -> PathBuf {
    let before = report_files(&server.data_dir);
    server.post(body).assert_ok();
    wait_until("the report is published", || {
        report_files(&server.data_dir).into_iter().find(|path| !before.contains(path))
    })
}

#[test]
fn files_that_are_too_old_are_pruned_at_the_start_and_each_one_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let [old, older, young] = [31, 35, 29].map(|days| old_file(dir.path(), days * DAY));
    // A file that is old by its name, but has a young report.
    let touched = old_file(dir.path(), 40 * DAY);
    File::options().write(true).open(&touched).unwrap().set_modified(SystemTime::now()).unwrap();
    let server = Server::start_in(dir.path(), &[("RETENTION_MAX_AGE", "30d")]);
    for (path, days) in [(&older, 35), (&old, 31)] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let logged = server.wait_for_log("pruned", |line| line["fields"]["file"] == name);
        assert_eq!(logged["fields"]["age_seconds"].as_u64().unwrap() / DAY.as_secs(), days);
        assert!(logged["fields"]["bytes"].as_u64().unwrap() > 0);
    }
    let lines = server.stop();
    assert_eq!(lines.len(), 2);
    assert!(!old.exists() && !older.exists() && young.exists() && touched.exists());
}

#[test]
fn a_file_gets_too_old_while_the_server_runs_but_the_newest_one_stays() {
    let server = Server::start(&[("RETENTION_MAX_AGE", "1s"), ("FLUSH_INTERVAL", "10ms")]);
    let first = publish(&server, "{\"n\":1}");
    let second = publish(&server, "{\"n\":2}");
    wait_until_gone(&first);
    let third = publish(&server, "{\"n\":3}");
    wait_until_gone(&second);
    assert!(third.exists());
    assert_eq!(server.stop(), ["{\"n\":3}"]);
}

#[test]
fn all_files_together_stay_within_the_size_after_each_flush() {
    let dir = tempfile::tempdir().unwrap();
    let old: Vec<_> = (1..=5).rev().map(|days| old_file(dir.path(), days * DAY)).collect();
    let limit = 3 * bytes(&old[0]);
    let settings = [("RETENTION_MAX_BYTES", format!("{limit}B")), ("FLUSH_INTERVAL", "10ms".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let server = Server::start_in(dir.path(), &settings);
    wait_until_gone(&old[1]);
    assert_eq!(report_files(dir.path()), old[2..]);
    let new = publish(&server, "{}");
    wait_until_gone(&old[2]);
    assert_eq!(report_files(dir.path()), [old[3].clone(), old[4].clone(), new], "no more than necessary");
}

#[test]
fn both_limits_apply_and_files_of_others_are_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let old: Vec<_> = [50, 40, 3, 2, 1].map(|days| old_file(dir.path(), days * DAY)).into();
    let others = ["notes.txt", "reports-2020.jsonl.zst", "reports-20200101T000000.000000000Z-0000000a.jsonl.zst.bak"];
    for name in others {
        fs::write(dir.path().join(name), "x".repeat(1000)).unwrap();
        File::options().write(true).open(dir.path().join(name)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let limit = format!("{}B", 2 * bytes(&old[0]));
    let server = Server::start_in(dir.path(), &[("RETENTION_MAX_BYTES", &limit), ("RETENTION_MAX_AGE", "30d")]);
    wait_until_gone(&old[2]);
    assert!(!old[0].exists() && !old[1].exists() && old[3].exists() && old[4].exists());
    for name in others {
        assert_eq!(bytes(&dir.path().join(name)), 1000);
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert_eq!(server.stop().len(), 2);
}

#[test]
fn without_limits_nothing_is_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let old = old_file(dir.path(), 10_000 * DAY);
    let server = Server::start_in(dir.path(), &[("FLUSH_INTERVAL", "10ms")]);
    publish(&server, "{}");
    publish(&server, "{}");
    assert_eq!(server.stop().len(), 3);
    assert!(old.exists());
}

#[test]
fn a_file_that_is_being_read_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let [old, _] = [31, 1].map(|days| old_file(dir.path(), days * DAY));
    let mut reader = File::open(&old).unwrap();
    let _server = Server::start_in(dir.path(), &[("RETENTION_MAX_AGE", "30d")]);
    wait_until_gone(&old);
    let mut content = Vec::new();
    reader.read_to_end(&mut content).unwrap();
    assert_eq!(zstd::decode_all(&content[..]).unwrap(), b"{\"old\":true}\n");
}

#[test]
fn files_that_others_add_are_noticed_and_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let [first, _] = [31, 1].map(|days| old_file(dir.path(), days * DAY));
    let _server = Server::start_in(dir.path(), &[("RETENTION_MAX_AGE", "30d")]);
    wait_until_gone(&first);
    wait_until_gone(&old_file(dir.path(), 32 * DAY));
}

#[test]
fn two_servers_on_one_directory_keep_one_limit_together() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [("RETENTION_MAX_BYTES", "300B"), ("FLUSH_INTERVAL", "10ms")];
    let servers = [(); 2].map(|()| Server::start_in(dir.path(), &settings));
    for n in 0..20 {
        servers[n % 2].post(format!("{{\"n\":{n}}}")).assert_ok();
        // Each report gets a file of its own.
        wait_until("the report is published", || {
            let journals = fs::read_dir(dir.path().join("journal")).unwrap().map(|entry| entry.unwrap().file_name());
            (!journals.into_iter().any(|name| name.to_string_lossy().starts_with("reports-"))).then_some(())
        });
    }
    wait_until("the files are within the limit", || {
        let files = report_files(dir.path());
        let sizes = files.iter().map(|path| path.metadata().map_or(0, |metadata| metadata.len()));
        (sizes.sum::<u64>() <= 300).then_some(())
    });
    let [mut first, mut second] = servers;
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));
    for server in [&mut first, &mut second] {
        assert_eq!(server.count_in_log("can't remove an old report file; retrying later"), 0);
    }
    let lines = second.stop();
    assert!(lines.len() > 5, "no more than necessary: {lines:?}");
    assert_eq!(lines.last().unwrap(), "{\"n\":19}");
    let expected: Vec<_> = (20 - lines.len()..20).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(lines, expected, "the youngest ones are left, each of them once");
}

#[test]
fn a_full_disk_costs_the_oldest_files_only_if_that_is_allowed() {
    for (on_full, is_pruned) in [("off", false), ("on", true)] {
        let dir = tempfile::tempdir().unwrap();
        let old = [3, 2, 1].map(|days| old_file(dir.path(), days * DAY));
        // No disk has so much free space.
        let settings = [("MIN_FREE_BYTES", "1EiB"), ("RETENTION_ON_FULL", on_full)];
        let server = Server::start_in(dir.path(), &settings);
        server.wait_for_log("the disk is full; reports are refused", |_| true);
        if is_pruned {
            server.wait_for_log("the disk is full; the oldest report files were pruned", |line| {
                line["fields"]["files"] == 2
            });
        }
        assert_eq!(server.post("{}").status, 503);
        let left = if is_pruned { &old[2..] } else { &old[..] };
        assert_eq!(report_files(dir.path()), left, "the newest file stays");
    }
}

/// The resident memory of a server, now and at its peak.
fn resident_bytes(server: &Server) -> [u64; 2] {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        1024 * line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
    })
}

/// Starts a server on a directory with this number of files. Posts, and waits until the catalog is loaded. Returns the
/// memory of the server.
fn memory_with_files(files: u64) -> [u64; 2] {
    // In memory if possible. Links of one file, because only names matter.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let old = [31, 30].map(|days| old_file(dir.path(), days * DAY));
    let mut target = PathBuf::new();
    for n in 0..files {
        // File systems limit the number of links.
        if n % 10_000 == 0 {
            target = old_file(dir.path(), Duration::from_secs(2 * files - n));
        } else {
            let id = BatchId::new(SystemTime::now() - Duration::from_secs(2 * files - n));
            fs::hard_link(&target, dir.path().join(id.report_file())).unwrap();
        }
    }
    let started = Instant::now();
    // The file that is too old is pruned as soon as the catalog is loaded.
    let server = Server::start_in(dir.path(), &[("RETENTION_MAX_AGE", "30d12h")]);
    server.post("{\"n\":1}").assert_ok();
    let first_answer = started.elapsed();
    wait_until_gone(&old[0]);
    let memory = resident_bytes(&server);
    println!(
        "{files} files: first answer after {first_answer:?}, loaded after {:?}, {memory:?} bytes",
        started.elapsed()
    );
    let stopping = Instant::now();
    server.signal(Signal::TERM);
    let mut server = server;
    assert_eq!(server.wait().code(), Some(0));
    println!("stopped after {:?}", stopping.elapsed());
    // It stops in the middle of a scan, too.
    let mut server = Server::start_in(dir.path(), &[]);
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    memory
}

fn assert_memory_per_file(files: u64) {
    let [[before, peak_before], [after, peak_after]] = [0, files].map(memory_with_files);
    let (now, peak) = (after.saturating_sub(before) / files, peak_after.saturating_sub(peak_before) / files);
    println!("{now} bytes per file, {peak} at the peak");
    assert!(now <= 150 && peak <= 150, "{now} bytes per file, {peak} at the peak");
}

#[test]
fn the_catalog_needs_at_most_150_bytes_per_file() {
    assert_memory_per_file(100_000);
}

#[test]
#[ignore = "takes a minute and 1 GiB of memory: make disks"]
fn the_catalog_of_a_million_files_needs_at_most_150_mb() {
    assert_memory_per_file(1_000_000);
}

/// Mounts a disk of this size in memory. It is unmounted when the value is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(dir.path());
        assert!(mount.status().unwrap().success(), "only root can mount a disk");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
#[ignore = "requires root, to mount a small disk: make disks"]
fn a_full_disk_that_prunes_never_refuses_a_report() {
    let disk = SmallDisk::new("48m");
    let dir = disk.0.path().join("data");
    let settings = [
        ("MIN_FREE_BYTES", "16MiB"),
        ("RETENTION_ON_FULL", "on"),
        ("BATCH_BYTES", "1MiB"),
        ("BUFFER_BYTES", "4MiB"),
        ("MAX_BODY_BYTES", "256KiB"),
        ("FLUSH_INTERVAL", "100ms"),
        // Spilled batches could fill the disk between two checks.
        ("SPILL_BYTES", "off"),
    ];
    let server = Server::start_in(&dir, &settings);
    let mut random = common::Random(1);
    let mut client = server.connect();
    // Random digits need about half of their size after the compression. All of them need three times the disk.
    for n in 0..1200 {
        let digits: String = (0..15_000).map(|_| format!("{:016x}", random.below(u64::MAX))).collect();
        let answer = client.post_until_capacity(format!("{{\"n\":{n},\"digits\":\"{digits}\"}}"));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    server.wait_for_log("the disk is full; the oldest report files were pruned", |_| true);
    let mut server = server;
    assert_eq!(server.count_in_log("the disk is full; reports are refused"), 0);
    let lines = server.stop();
    let numbers: Vec<u64> = lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted() && numbers.last() == Some(&1199) && numbers.len() > 50, "{numbers:?}");
}

fn prune(dir: &Path, settings: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = command(dir);
    command.env("CONFIG_FILE", "/dev/null").env("DATA_DIR", dir).envs(settings.iter().copied()).arg("prune").args(args);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_prune_command_prints_what_it_deletes_and_a_dry_run_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let old = [50, 40, 3, 2, 1].map(|days| old_file(dir.path(), days * DAY));
    let size = bytes(&old[0]);
    let max_bytes = format!("{}B", 2 * size);
    let args = ["--max-age", "30d", "--max-bytes", &max_bytes];
    let dry = prune(dir.path(), &[], &[&args[..], &["--dry-run"]].concat());
    assert!(dry.status.success(), "{dry:?}");
    let line = |path: &Path, done: &str, age: &str| format!("{}: {done}, {size} bytes, {age} old\n", path.display());
    let summary = |done: &str| format!("3 files {done}, {} bytes; 2 files kept, {} bytes\n", 3 * size, 2 * size);
    let expected = |done: &str| {
        let lines = [(0, "50d 0h"), (1, "40d 0h"), (2, "3d 0h")].map(|(n, age)| line(&old[n], done, age));
        lines.concat() + &summary(done)
    };
    assert_eq!(text(&dry.stdout), expected("would be deleted"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5, "and creates nothing");
    let done = prune(dir.path(), &[], &args);
    assert_eq!(text(&done.stdout), expected("deleted"), "{done:?}");
    assert_eq!(report_files(dir.path()), old[3..]);
}

#[test]
fn the_prune_command_uses_the_settings_and_requires_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let old = [50, 40, 3].map(|days| old_file(dir.path(), days * DAY));
    for args in [&[][..], &["--dry-run"]] {
        let output = prune(dir.path(), &[], args);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("there is no limit: set --max-age"), "{output:?}");
    }
    for args in [["--max-age", "30"], ["--max-age", "month"], ["--max-bytes", "many"], ["--dir", "/nowhere"]] {
        let output = prune(dir.path(), &[("RETENTION_MAX_AGE", "45d")], &args);
        assert_ne!(output.status.code(), Some(0), "{output:?}");
    }
    assert_eq!(report_files(dir.path()), old);
    let output = prune(dir.path(), &[("RETENTION_MAX_AGE", "45d")], &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report_files(dir.path()), old[1..]);
    let elsewhere = tempfile::tempdir().unwrap();
    let dir_arg = dir.path().to_str().unwrap();
    let output = prune(elsewhere.path(), &[("RETENTION_MAX_BYTES", "1KiB")], &["--dir", dir_arg, "--max-bytes", "1B"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report_files(dir.path()), old[2..], "the newest file stays");
}

#[test]
fn the_prune_command_works_beside_a_server_that_publishes() {
    let server = Server::start(&[("FLUSH_INTERVAL", "10ms")]);
    let first = publish(&server, "{\"n\":1}");
    publish(&server, "{\"n\":2}");
    let output = prune(&server.data_dir, &[], &["--max-bytes", "1B"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!first.exists());
    publish(&server, "{\"n\":3}");
    assert_eq!(server.stop(), ["{\"n\":2}", "{\"n\":3}"]);
}
