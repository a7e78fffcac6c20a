//! What a dead server leaves in its journals becomes report files, and what is no report is put aside.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use common::{Server, command, cpu_time, report_files, stored, wait_until};
use rustix::process::Signal;

const STEM: &str = "reports-20261122T150512.123456789Z-5f3a9c01";

/// A data directory with one journal.
fn with_journal(bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("journal")).unwrap();
    fs::write(dir.path().join("journal").join(format!("{STEM}.jsonl")), bytes).unwrap();
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
fn journals_that_can_not_be_recovered_now_are_left_alone_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("journal")).unwrap();
    // Several, and several threads to recover them. A directory in the place of each report file is what stops them.
    let stems = ["reports-20261122T150512.123456789Z-5f3a9c01", "reports-20261122T150512.223456789Z-5f3a9c02"];
    for stem in stems {
        fs::write(dir.path().join(format!("journal/{stem}.jsonl")), "{}\n").unwrap();
        fs::create_dir(dir.path().join(format!("{stem}.jsonl.zst"))).unwrap();
    }
    let server = Server::start_in(dir.path(), &[("ZSTD_THREADS", "2")]);
    for stem in stems {
        server.wait_for_log("can't recover this journal; it is kept", |line| line.to_string().contains(stem));
    }
    // Trying again and again would never let it be quiet.
    wait_until("the server is quiet", || {
        let (before, started) = (cpu_time(server.id()), Instant::now());
        thread::sleep(Duration::from_millis(500)); // what is measured, not a wait
        (cpu_time(server.id()) - before < started.elapsed() / 10).then_some(())
    });
}

#[test]
fn a_killed_servers_reports_are_there_after_the_next_start_and_the_port_opens_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(dir.path(), &[]);
    for n in 0..10 {
        server.post(format!("{{\"n\":{n}}}")).assert_ok();
    }
    let journal = journals(dir.path()).into_iter().find(|name| !name.starts_with('.')).unwrap();
    let content = fs::read(dir.path().join("journal").join(&journal)).unwrap();
    assert!(content.starts_with(b"{\"n\":0}\n{\"n\":1}\n"), "a person can read it");
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
fn a_running_server_recovers_what_another_one_leaves_and_no_journal_that_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let living = Server::start_in(dir.path(), &[]);
    living.post("{\"living\":true}").assert_ok();
    let mut dying = Server::start_in(dir.path(), &[]);
    dying.post("{\"dying\":true}").assert_ok();
    assert!(run("recover", dir.path()).status.success());
    assert!(stored(dir.path()).is_empty(), "both are in use");
    dying.signal(Signal::KILL);
    dying.wait();
    living.wait_for_log("recovered", |_| true);
    assert_eq!(stored(dir.path()), ["{\"dying\":true}"]);
    living.stop();
    assert_eq!(stored(dir.path()).len(), 2);
}

#[test]
fn whole_lines_are_published_under_the_journals_stem() {
    let dir = with_journal(b"{\"a\":1}\n{\"b\":2}\n\0\0\0\0\0\0\0\0");
    let output = run("recover", dir.path());
    assert!(output.status.success());
    assert!(text(&output.stdout).starts_with("1 journals with 2 reports recovered, 0 bytes put aside"));
    assert_eq!(report_files(dir.path()), [dir.path().join(format!("{STEM}.jsonl.zst"))]);
    assert_eq!(stored(dir.path()), ["{\"a\":1}", "{\"b\":2}"]);
    assert!(journals(dir.path()).is_empty());
    assert_eq!(report_files(dir.path())[0].metadata().unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn a_journal_whose_report_file_is_there_is_dropped_and_nothing_is_there_twice() {
    let dir = with_journal(b"{\"a\":1}\n");
    let published = dir.path().join(format!("{STEM}.jsonl.zst"));
    fs::write(&published, zstd::encode_all(&b"{\"a\":1}\n"[..], 1).unwrap()).unwrap();
    assert!(run("recover", dir.path()).status.success());
    assert_eq!(stored(dir.path()), ["{\"a\":1}"]);
    assert!(journals(dir.path()).is_empty());
}

#[test]
fn a_report_file_that_is_not_sound_does_not_stop_its_journal_from_being_published() {
    let frame = zstd::encode_all(&b"{\"a\":1}\n".repeat(100)[..], 1).unwrap();
    let mut flipped = frame.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&frame[..frame.len() - 3], &flipped, b""] {
        let dir = with_journal(b"{\"a\":1}\n");
        let published = dir.path().join(format!("{STEM}.jsonl.zst"));
        fs::write(&published, damaged).unwrap();
        let verified = run("verify", dir.path());
        assert!(run("recover", dir.path()).status.success());
        assert_eq!(verified.status.code(), Some(1));
        assert!(text(&verified.stdout).contains("NOT SOUND"), "{verified:?}");
        let aside = dir.path().join("quarantine").join(published.file_name().unwrap());
        assert_eq!(fs::read(aside).unwrap(), damaged, "for a person to look at");
        assert_eq!(stored(dir.path()), ["{\"a\":1}"]);
        assert!(journals(dir.path()).is_empty());
    }
}

#[test]
fn what_is_no_report_is_put_aside_and_told_with_its_offset() {
    for (journal, kept, aside, offset) in [
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
        assert_eq!(verified.status.code(), Some(i32::from(!aside.is_empty())), "{verified:?}");
        let output = run("recover", dir.path());
        assert!(output.status.success());
        assert_eq!(stored(dir.path()), kept);
        assert!(journals(dir.path()).is_empty());
        let quarantined = dir.path().join("quarantine").join(format!("{STEM}.jsonl"));
        if aside.is_empty() {
            assert!(!quarantined.exists());
            continue;
        }
        assert_eq!(fs::read(quarantined).unwrap(), aside);
        let log = text(&output.stderr);
        assert!(log.contains(STEM) && log.contains(&format!("\"offset\":{offset},\"bytes\":{}", aside.len())), "{log}");
    }
}

#[test]
fn a_giant_line_is_a_line() {
    let line = format!("{{\"pad\":\"{}\"}}", "x".repeat(20 << 20));
    let dir = with_journal(format!("{line}\n").as_bytes());
    assert!(run("recover", dir.path()).status.success());
    assert_eq!(stored(dir.path()), [line]);
}

#[test]
fn a_file_that_no_server_has_named_is_left_alone_with_a_warning() {
    let dir = with_journal(b"{}\n");
    for name in ["notes.txt", "reports-2026.jsonl", "reports-20261122T150512.123456789Z-5F3A9C01.jsonl"] {
        fs::write(dir.path().join("journal").join(name), "{}\n").unwrap();
        let output = run("recover", dir.path());
        assert!(output.status.success());
        assert!(text(&output.stderr).contains("left alone"), "{output:?}");
        assert_eq!(fs::read(dir.path().join("journal").join(name)).unwrap(), b"{}\n");
        fs::remove_file(dir.path().join("journal").join(name)).unwrap();
    }
    assert_eq!(stored(dir.path()), ["{}"]);
}

#[test]
fn files_in_the_making_of_a_dead_server_go_and_those_of_others_stay() {
    let dir = with_journal(b"{}\n");
    for name in [".probe.0123abcd.tmp", &format!(".{STEM}.jsonl.zst.0123abcd.tmp"), "journal/.journal.0123abcd.tmp"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let others = [".rsync-partial.tmp", ".probe.tmp", ".probe.0123ABCD.tmp", "notes.tmp"];
    for name in others {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    assert!(run("recover", dir.path()).status.success());
    let mut left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    left.retain(|name| name != "journal" && !name.ends_with(".zst"));
    left.sort();
    let mut others = others.map(str::to_owned).to_vec();
    others.sort();
    assert_eq!(left, others);
    assert!(journals(dir.path()).is_empty());
    assert_eq!(run("recover", Path::new("/nowhere")).status.code(), Some(1));
}

#[test]
fn a_sound_directory_is_verified_with_exit_code_0_while_a_server_uses_it() {
    let server = Server::start(&[("FLUSH_INTERVAL", "10ms")]);
    server.post("{\"n\":1}").assert_ok();
    wait_until("it is published", || (server.stored().len() == 1).then_some(()));
    let named = |name: &String| !name.starts_with('.');
    wait_until("its journal is gone", || (!journals(&server.data_dir).iter().any(named)).then_some(()));
    let output = run("verify", &server.data_dir);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("sound, 1 reports"));
    assert_eq!(run("verify", Path::new("/nowhere")).status.code(), Some(1));
}
