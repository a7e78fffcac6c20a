//! Recovering 1 GiB of journals, including checks and fsyncs, compared with `zstd -1 -T0` on the same bytes.
//!
//! The two run alternately, read from the page cache and write to the same disk. The benchmark needs the zstd command
//! line tool and 2.3 GiB of free space in the temporary directory.

#[allow(dead_code, reason = "this benchmark uses only the report generator")]
mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::Reports;
use netwatch_server::store::{BatchId, Compression, Store, Unrecognized, recover};

const BYTES: usize = 1 << 30;
const BATCH_BYTES: usize = 10 << 20;
const ROUNDS: usize = 5;

fn main() {
    let dir = tempfile::tempdir().expect("can't create a temporary directory");
    let (all, data_dir) = (dir.path().join("all.jsonl"), dir.path().join("data"));
    let journals: Vec<_> = (0..BYTES / BATCH_BYTES).map(|seed| batch(seed as u64)).collect();
    fs::write(&all, journals.concat()).expect("can't write 1 GiB");
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let zstd = time_zstd(&all);
            let recovery = time_recovery(&data_dir, &journals, threads);
            println!("zstd {:.0} MiB/s, recovery {:.0} MiB/s", speed(zstd), speed(recovery));
            zstd.as_secs_f64() / recovery.as_secs_f64()
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let (least, median, most) = (rounds[0], rounds[ROUNDS / 2], rounds[ROUNDS - 1]);
    println!("recovery / zstd -1 -T0 on {threads} cores: {median:.2} ({least:.2}–{most:.2})");
}

/// A full batch of different reports of about 1.2 kB, one per line.
fn batch(seed: u64) -> Vec<u8> {
    let mut reports = Reports::new(seed);
    let mut lines = Vec::with_capacity(BATCH_BYTES);
    while lines.len() < BATCH_BYTES - 2_000 {
        lines.extend_from_slice(&reports.report(1_200));
        lines.push(b'\n');
    }
    lines
}

fn time_zstd(file: &Path) -> Duration {
    let started = Instant::now();
    let status = Command::new("zstd").args(["-1", "-T0", "-q", "-f"]).arg(file).status().expect("can't run zstd");
    assert!(status.success());
    started.elapsed()
}

fn time_recovery(data_dir: &Path, journals: &[Vec<u8>], threads: usize) -> Duration {
    fs::create_dir_all(data_dir.join("journal")).expect("can't create the journal directory");
    for lines in journals {
        let path = data_dir.join("journal").join(BatchId::new(SystemTime::now()).journal());
        fs::write(&path, lines).expect("can't write a journal");
        // Write the journal to disk before the measurement, like the input of zstd.
        fs::File::open(path).and_then(|file| file.sync_all()).expect("can't sync a journal");
    }
    let started = Instant::now();
    let store = Store::open(data_dir, &Arc::default()).expect("can't open the data directory");
    let recovered =
        recover(&store, Compression { level: 1, threads }, &mut Unrecognized::new()).expect("recovery failed");
    let took = started.elapsed();
    assert_eq!((recovered.batches, recovered.failed), (journals.len(), 0));
    fs::remove_dir_all(data_dir).expect("can't remove the data directory");
    took
}

fn speed(took: Duration) -> f64 {
    BYTES as f64 / f64::from(1 << 20) / took.as_secs_f64()
}
