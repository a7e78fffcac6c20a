//! Recovery publishes the reports in the journals of dead servers. It copies corrupt bytes to quarantine.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use common::{Server, command, cpu_time, report_files, stored, wait_until};
use rustix::process::Signal;

const BATCH_ID: &str = "reports-20261122T150512.123456789Z-5f3a9c01";

/// A data directory with one journal.
fn with_journal(bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("journal")).unwrap();
    fs::write(dir.path().join("journal").join(format!("{BATCH_ID}.jsonl")), bytes).unwrap();
    dir
}

fn run(subcommand: &str, dir: &Path) -> Output {
    command(&std::env::temp_dir())
        .env("CONFIG_FILE", "/dev/null")
        .arg(subcommand)
        .arg(dir)
        .env("LOG_FORMAT", "json")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn journals(dir: &Path) -> Vec<String> {
    fs::read_dir(dir.join("journal")).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_journal_that_cannot_be_recovered_is_retried_after_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("journal")).unwrap();
    // Two journals, and two threads that recover them. Both fail: a directory has the name of the report file.
    let batch_ids = ["reports-20261122T150512.123456789Z-5f3a9c01", "reports-20261122T150512.223456789Z-5f3a9c02"];
    for batch_id in batch_ids {
        fs::write(dir.path().join(format!("journal/{batch_id}.jsonl")), "{}\n").unwrap();
        fs::create_dir(dir.path().join(format!("{batch_id}.jsonl.zst"))).unwrap();
    }
    let server = Server::start_in(dir.path(), &[("ZSTD_THREADS", "2")]);
    for batch_id in batch_ids {
        server.wait_for_log("can't recover a journal; retrying later", |line| line.to_string().contains(batch_id));
    }
    // A server that retries without a pause never becomes idle.
    wait_until("the server is idle", || {
        let (before, started) = (cpu_time(server.id()), Instant::now());
        thread::sleep(Duration::from_millis(500)); // the measurement period
        (cpu_time(server.id()) - before < started.elapsed() / 10).then_some(())
    });
}

#[test]
fn after_a_kill_the_next_start_recovers_the_reports_and_accepts_requests_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(dir.path(), &[]);
    for n in 0..10 {
        server.post(format!("{{\"n\":{n}}}")).assert_ok();
    }
    let journal = journals(dir.path()).into_iter().find(|name| !name.starts_with('.')).unwrap();
    let content = fs::read(dir.path().join("journal").join(&journal)).unwrap();
    assert!(content.starts_with(b"{\"n\":0}\n{\"n\":1}\n"), "the journal is plain JSONL");
    server.signal(Signal::KILL);
    server.wait();
    assert!(stored(dir.path()).is_empty());

    let server = Server::start_in(dir.path(), &[]);
    server.post("{\"n\":10}").assert_ok();
    server.wait_for_log("recovered", |line| line["fields"]["reports"] == 10);
    assert_eq!(stored(dir.path()).len(), 10);
    let file = report_files(dir.path()).pop().unwrap();
    assert_eq!(file.file_name().unwrap().to_str().unwrap(), format!("{journal}.zst"));
    assert_eq!(server.stop().len(), 11);
}

#[test]
fn a_running_server_recovers_the_journals_of_a_killed_server_but_no_journal_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let living = Server::start_in(dir.path(), &[]);
    living.post("{\"living\":true}").assert_ok();
    let mut dying = Server::start_in(dir.path(), &[]);
    dying.post("{\"dying\":true}").assert_ok();
    assert!(run("recover", dir.path()).status.success());
    assert!(stored(dir.path()).is_empty(), "both journals are in use");
    dying.signal(Signal::KILL);
    dying.wait();
    living.wait_for_log("recovered", |_| true);
    assert_eq!(stored(dir.path()), ["{\"dying\":true}"]);
    living.stop();
    assert_eq!(stored(dir.path()).len(), 2);
}

#[test]
fn complete_lines_are_published_under_the_batch_id_of_the_journal() {
    let dir = with_journal(b"{\"a\":1}\n{\"b\":2}\n\0\0\0\0\0\0\0\0");
    let output = run("recover", dir.path());
    assert!(output.status.success());
    assert!(text(&output.stdout).starts_with("1 journals recovered with 2 reports, 0 corrupt bytes"));
    assert_eq!(report_files(dir.path()), [dir.path().join(format!("{BATCH_ID}.jsonl.zst"))]);
    assert_eq!(stored(dir.path()), ["{\"a\":1}", "{\"b\":2}"]);
    assert!(journals(dir.path()).is_empty());
    assert_eq!(report_files(dir.path())[0].metadata().unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn a_journal_whose_report_file_exists_is_removed_and_not_published_again() {
    let dir = with_journal(b"{\"a\":1}\n");
    let published = dir.path().join(format!("{BATCH_ID}.jsonl.zst"));
    fs::write(&published, zstd::encode_all(&b"{\"a\":1}\n"[..], 1).unwrap()).unwrap();
    assert!(run("recover", dir.path()).status.success());
    assert_eq!(stored(dir.path()), ["{\"a\":1}"]);
    assert!(journals(dir.path()).is_empty());
}

#[test]
fn a_corrupt_report_file_is_moved_to_quarantine_and_its_journal_is_published() {
    let frame = zstd::encode_all(&b"{\"a\":1}\n".repeat(100)[..], 1).unwrap();
    let mut flipped = frame.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for corrupt in [&frame[..frame.len() - 3], &flipped, b""] {
        let dir = with_journal(b"{\"a\":1}\n");
        let published = dir.path().join(format!("{BATCH_ID}.jsonl.zst"));
        fs::write(&published, corrupt).unwrap();
        let verified = run("verify", dir.path());
        assert!(run("recover", dir.path()).status.success());
        assert_eq!(verified.status.code(), Some(1));
        assert!(text(&verified.stdout).contains("CORRUPT"), "{verified:?}");
        let quarantined = dir.path().join("quarantine").join(published.file_name().unwrap());
        assert_eq!(fs::read(quarantined).unwrap(), corrupt, "quarantine preserves the bytes");
        assert_eq!(stored(dir.path()), ["{\"a\":1}"]);
        assert!(journals(dir.path()).is_empty());
    }
}

#[test]
fn corrupt_bytes_are_copied_to_quarantine_and_logged_with_their_offset() {
    for (journal, reports, corrupt, offset) in [
        (&b"{\"a\":1}\n{\"b\":"[..], &["{\"a\":1}"][..], &b"{\"b\":"[..], 8),
        (b"{\"a\":1}\n{\"b\":\0\0\0\0", &["{\"a\":1}"], b"{\"b\":", 8),
        (b"{\"a\":1}\n{\"b\0\0\":2}\n{\"c\":3}\n", &["{\"a\":1}", "{\"c\":3}"], b"{\"b\0\0\":2}\n", 8),
        (b"{\"a\":1}\n\0\0\0\0{\"c\":3}\n", &["{\"a\":1}", "{\"c\":3}"], b"", 0),
        (b"{\"a\":1}\n{\"b\":\xff}\n{\"c\":3}\n", &["{\"a\":1}", "{\"c\":3}"], b"{\"b\":\xff}\n", 8),
        (b"[1]\n\n{}\n", &["{}"], b"[1]\n\n", 0),
        (b"no line break and no zeros", &[], b"no line break and no zeros", 0),
        (b"\0\0\0\0", &[], b"", 0),
        (b"", &[], b"", 0),
    ] {
        let dir = with_journal(journal);
        let verified = run("verify", dir.path());
        assert_eq!(verified.status.code(), Some(i32::from(!corrupt.is_empty())), "{verified:?}");
        let output = run("recover", dir.path());
        assert!(output.status.success());
        assert_eq!(stored(dir.path()), reports);
        assert!(journals(dir.path()).is_empty());
        let quarantined = dir.path().join("quarantine").join(format!("{BATCH_ID}.jsonl"));
        if corrupt.is_empty() {
            assert!(!quarantined.exists());
            continue;
        }
        assert_eq!(fs::read(quarantined).unwrap(), corrupt);
        let log = text(&output.stderr);
        assert!(
            log.contains(BATCH_ID) && log.contains(&format!("\"offset\":{offset},\"bytes\":{}", corrupt.len())),
            "{log}"
        );
    }
}

#[test]
fn a_line_of_20_mib_is_recovered() {
    let line = format!("{{\"pad\":\"{}\"}}", "x".repeat(20 << 20));
    let dir = with_journal(format!("{line}\n").as_bytes());
    assert!(run("recover", dir.path()).status.success());
    assert_eq!(stored(dir.path()), [line]);
}

#[test]
fn an_unrecognized_file_in_the_journal_directory_is_ignored_with_a_warning() {
    let dir = with_journal(b"{}\n");
    for name in ["notes.txt", "reports-2026.jsonl", "reports-20261122T150512.123456789Z-5F3A9C01.jsonl"] {
        fs::write(dir.path().join("journal").join(name), "{}\n").unwrap();
        let output = run("recover", dir.path());
        assert!(output.status.success());
        assert!(text(&output.stderr).contains("unrecognized file; ignored"), "{output:?}");
        assert_eq!(fs::read(dir.path().join("journal").join(name)).unwrap(), b"{}\n");
        fs::remove_file(dir.path().join("journal").join(name)).unwrap();
    }
    assert_eq!(stored(dir.path()), ["{}"]);
}

#[test]
fn recovery_removes_the_temporary_files_of_dead_servers_and_no_other_files() {
    let dir = with_journal(b"{}\n");
    let tmp = dir.path().join("tmp");
    fs::create_dir(&tmp).unwrap();
    for name in [".probe.0123abcd.tmp", &format!(".{BATCH_ID}.jsonl.zst.0123abcd.tmp"), ".journal.0123abcd.tmp"] {
        fs::write(tmp.join(name), "x").unwrap();
    }
    let others = [".rsync-partial.tmp", ".probe.tmp", ".probe.0123ABCD.tmp", "notes.tmp"];
    for name in others {
        fs::write(tmp.join(name), "x").unwrap();
    }
    assert!(run("recover", dir.path()).status.success());
    let mut left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let mut others = others.map(str::to_owned).to_vec();
    others.sort();
    assert_eq!(left, others);
    assert!(journals(dir.path()).is_empty());
    assert_eq!(run("recover", Path::new("/nowhere")).status.code(), Some(1));
}

#[test]
fn verify_of_valid_files_exits_with_0_while_a_server_uses_the_data_directory() {
    let server = Server::start(&[("FLUSH_INTERVAL", "10ms")]);
    server.post("{\"n\":1}").assert_ok();
    wait_until("the report is published", || (server.stored().len() == 1).then_some(()));
    let is_named = |name: &String| !name.starts_with('.');
    wait_until("its journal is removed", || (!journals(&server.data_dir).iter().any(is_named)).then_some(()));
    let output = run("verify", &server.data_dir);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("valid, 1 reports"));
    assert_eq!(run("verify", Path::new("/nowhere")).status.code(), Some(1));
}

#[test]
fn verify_skips_everything_that_is_not_a_regular_file() {
    let dir = with_journal(b"{}\n");
    let fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    // A FIFO without a writer would block its reader.
    fifo(&dir.path().join("reports-20261122T150512.000000001Z-00000001.jsonl.zst"));
    fifo(&dir.path().join("journal/reports-20261122T150512.000000002Z-00000002.jsonl"));
    symlink("nowhere", dir.path().join("reports-20261122T150512.000000003Z-00000003.jsonl.zst")).unwrap();
    fs::create_dir(dir.path().join("reports-20261122T150512.000000004Z-00000004.jsonl.zst")).unwrap();
    let output = run("verify", dir.path());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).ends_with("1 files checked, 1 reports, all valid\n"), "{output:?}");
    assert!(run("recover", dir.path()).status.success());
}

#[test]
fn verify_beside_a_consumer_reports_no_missing_files() {
    let dir = tempfile::tempdir().unwrap();
    let frame = zstd::encode_all(&b"{}\n"[..], 1).unwrap();
    let path = |n: u32| dir.path().join(format!("reports-20261122T150512.{n:09}Z-00000001.jsonl.zst"));
    (0..2_000).for_each(|n| fs::write(path(n), &frame).unwrap());
    thread::scope(|scope| {
        let consumer = scope.spawn(|| (0..2_000).rev().for_each(|n| fs::remove_file(path(n)).unwrap()));
        while !consumer.is_finished() {
            let output = run("verify", dir.path());
            assert_eq!(output.status.code(), Some(0), "{output:?}");
        }
    });
}

#[test]
fn files_that_root_creates_belong_to_the_owner_of_the_data_directory() {
    const OWNER: u32 = 65532;
    if !rustix::process::geteuid().is_root() {
        return; // only root can change owners
    }
    let dir = with_journal(b"{\"a\":1}\n{\"torn\":");
    for path in [dir.path().to_owned(), dir.path().join("journal")] {
        chown(path, Some(OWNER), Some(OWNER)).unwrap();
    }
    assert!(run("recover", dir.path()).status.success());
    let report_file = report_files(dir.path()).pop().unwrap();
    let quarantine = dir.path().join("quarantine");
    let copy = quarantine.join(format!("{BATCH_ID}.jsonl"));
    for path in [report_file, dir.path().join("tmp"), quarantine, copy] {
        let owner = fs::metadata(&path).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (OWNER, OWNER), "{}", path.display());
    }
}
