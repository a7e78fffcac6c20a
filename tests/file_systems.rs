//! Reports survive a crash on each kind of file system. Requires root and the programs that create the file systems.

mod common;

use std::fs;
use std::thread;

use common::file_system::{FileSystem, Kind};
use common::{Server, command, server_command, wait_until};
use rustix::process::Signal;

const CLIENTS: usize = 4;
const REPORTS: usize = 100;

/// Batches of about 60 reports, so that there are report files, journals and a flush in progress at a kill.
const SETTINGS: [(&str, &str); 6] = [
    ("BATCH_BYTES", "64KiB"),
    ("BUFFER_BYTES", "1MiB"),
    ("MAX_BODY_BYTES", "16KiB"),
    ("INFLIGHT_BYTES", "1MiB"),
    ("FLUSH_INTERVAL", "1h"),
    ("MIN_FREE_BYTES", "1MiB"),
];

fn load(server: &Server, phase: &str) -> Vec<String> {
    thread::scope(|scope| {
        let load = |client_number: usize| {
            scope.spawn(move || {
                let mut client = server.connect();
                let report = |n| format!("{{\"id\":\"{phase}-{client_number}-{n}\",\"pad\":\"{}\"}}", "x".repeat(1000));
                let reports: Vec<_> = (0..REPORTS).map(report).collect();
                reports.iter().for_each(|report| client.post_until_capacity(report).assert_ok());
                reports
            })
        };
        let loads: Vec<_> = (0..CLIENTS).map(load).collect();
        loads.into_iter().flat_map(|load| load.join().unwrap()).collect()
    })
}

/// Sends reports to a server, kills it, starts it again, and checks that each report is stored once.
fn reports_survive_on(kind: Kind) {
    let file_system = FileSystem::mount(kind, 400);
    for ack in ["journal", "disk"] {
        let data_dir = file_system.path.join(ack);
        let settings = [&SETTINGS[..], &[("ACK", ack)]].concat();
        let mut sent = Vec::new();
        for round in 0..3 {
            let mut server = Server::start_in(&data_dir, &settings);
            assert_eq!(server.get("/readyz").status, 200);
            sent.extend(load(&server, &format!("{ack}-{round}")));
            server.signal(Signal::KILL);
            server.wait();
        }
        let journals = fs::read_dir(data_dir.join("journal")).unwrap().count();
        assert!(journals > 0, "there is nothing to recover");
        let server = Server::start_in(&data_dir, &settings);
        wait_until("the journals are recovered", || (server.stored().len() == sent.len()).then_some(()));
        sent.extend(load(&server, &format!("{ack}-last")));
        let mut stored = server.stop();
        let verified = command(&data_dir).arg("verify").arg(&data_dir).output().unwrap();
        assert!(verified.status.success(), "{verified:?}");
        stored.sort();
        sent.sort();
        assert_eq!(stored.len(), sent.len());
        assert!(stored == sent);
        assert!(!data_dir.join("quarantine").exists());
    }
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn reports_survive_a_crash_on_ext4() {
    reports_survive_on(Kind::Ext4);
}

#[test]
#[ignore = "requires root and xfsprogs"]
fn reports_survive_a_crash_on_xfs() {
    reports_survive_on(Kind::Xfs);
}

#[test]
#[ignore = "requires root and btrfs-progs"]
fn reports_survive_a_crash_on_btrfs() {
    reports_survive_on(Kind::Btrfs);
}

#[test]
#[ignore = "requires root"]
fn reports_survive_a_crash_on_tmpfs() {
    reports_survive_on(Kind::Tmpfs);
}

#[test]
#[ignore = "requires root"]
fn reports_survive_a_crash_on_ramfs_which_does_not_know_its_free_space() {
    reports_survive_on(Kind::Ramfs);
}

#[test]
#[ignore = "requires root"]
fn reports_survive_a_crash_on_overlayfs() {
    reports_survive_on(Kind::Overlay);
}

#[test]
#[ignore = "requires root and bindfs"]
fn reports_survive_a_crash_on_a_fuse_file_system() {
    reports_survive_on(Kind::Bindfs);
}

#[test]
#[ignore = "requires root, e2fsprogs and fuse2fs"]
fn reports_survive_a_crash_on_a_fuse_file_system_without_atomic_renames() {
    reports_survive_on(Kind::Fuse2fs);
}

#[test]
#[ignore = "requires root and rclone"]
fn reports_survive_a_crash_on_a_fuse_file_system_that_caches_writes() {
    reports_survive_on(Kind::Rclone);
}

/// Starts a server that must fail, and returns its log.
fn failed_start(data_dir: &std::path::Path) -> String {
    let output = server_command(data_dir, &SETTINGS).env("LOG_FORMAT", "text").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn a_start_on_a_read_only_file_system_fails_and_names_the_directory() {
    let file_system = FileSystem::mount(Kind::Ext4, 64);
    let data_dir = file_system.path.join("reports");
    Server::start_in(&data_dir, &SETTINGS).stop();
    file_system.make_read_only();
    let log = failed_start(&data_dir);
    assert!(log.contains(data_dir.to_str().unwrap()) && log.contains("Read-only file system"), "{log}");
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn a_start_on_a_file_system_that_is_too_small_for_the_journals_fails_and_names_the_directory() {
    let file_system = FileSystem::mount(Kind::Ext4, 8);
    let filler = fs::File::create(file_system.path.join("filler")).unwrap();
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, file_system.free_bytes() - 64 * 1024)
        .unwrap();
    let data_dir = file_system.path.join("reports");
    let log = failed_start(&data_dir);
    assert!(log.contains(data_dir.to_str().unwrap()) && log.contains("No space left on device"), "{log}");
}

#[test]
#[ignore = "requires root and rclone"]
fn a_start_on_a_file_system_that_cannot_preallocate_or_write_at_an_offset_fails_and_names_the_file() {
    let file_system = FileSystem::mount(Kind::RcloneWithoutCache, 0);
    let data_dir = file_system.path.join("reports");
    let log = failed_start(&data_dir);
    assert!(log.contains("can't allocate") && log.contains(data_dir.to_str().unwrap()), "{log}");
}
