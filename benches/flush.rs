//! Compressing one full batch, by zstd level and number of threads, and publishing it.
//!
//! Before each measurement, the benchmark prints the compression ratio of the level.

mod common;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::Reports;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use netwatch_server::store::{BatchId, Compression, Store, compress};

const BATCH_BYTES: usize = 10 << 20;

/// A full batch of different reports of about 1.2 kB, one per line.
fn batch() -> Vec<u8> {
    let mut reports = Reports::new(1);
    let mut lines = Vec::with_capacity(BATCH_BYTES);
    while lines.len() < BATCH_BYTES - 2_000 {
        lines.extend_from_slice(&reports.report(1_200));
        lines.push(b'\n');
    }
    lines
}

fn flush(criterion: &mut Criterion) {
    let lines = batch();
    let mut group = criterion.benchmark_group("flush");
    group.throughput(Throughput::Bytes(lines.len() as u64));
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for level in [1, 2, 3, 5, 7, 9] {
        for threads in [1, 2, 4] {
            let compression = Compression { level, threads };
            let mut frame = Vec::new();
            compress(&[&lines], compression, &mut frame).expect("writing to memory succeeds");
            let ratio = lines.len() as f64 / frame.len() as f64;
            println!("level {level}, {threads} threads: {} → {} bytes, {ratio:.2}×", lines.len(), frame.len());
            let id = BenchmarkId::new(format!("compress at level {level}"), format!("{threads} threads"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| compress(&[&lines], compression, io::sink()));
            });
        }
    }
    let dir = tempfile::tempdir().expect("can't create a temporary directory");
    let store = Store::open(dir.path(), &Arc::default()).expect("can't open the data directory");
    group.bench_function("stage and publish at level 1, with all fsyncs", |bencher| {
        bencher.iter(|| {
            let now = SystemTime::now();
            let compression = Compression { level: 1, threads: 2 };
            let mut staged = store.stage(BatchId::new(now), &[&lines], now, compression)?;
            store.publish(&mut staged, compression)
        });
    });
    group.finish();
}

criterion_group!(benches, flush);
criterion_main!(benches);
