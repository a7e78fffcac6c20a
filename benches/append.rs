//! Appends of 1.2 kB reports to one buffer by 1 to N threads, while another thread recycles sealed batches. The
//! baseline is a vector in a mutex.

mod common;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::Reports;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use netwatch_server::buffer::{AppendError, Buffer, BufferLayout};
use netwatch_server::config::Ack;
use netwatch_server::report;

const BATCH_BYTES: usize = 10 << 20;

/// Calls `append` on this many threads at once, `iterations` times in total. Returns the elapsed time.
fn timed(threads: u64, iterations: u64, append: impl Fn() + Sync) -> Duration {
    let started = Instant::now();
    thread::scope(|scope| {
        for index in 0..threads {
            let append = &append;
            let share = iterations / threads + u64::from(index < iterations % threads);
            scope.spawn(move || (0..share).for_each(|_| append()));
        }
    });
    started.elapsed()
}

fn append(criterion: &mut Criterion) {
    let bytes = Reports::new(1).report(1_200);
    let report = report::Reports::check(&bytes).expect("a generated report is valid");
    let cores = thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut group = criterion.benchmark_group("append");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    for threads in [1, 2, 4, 8].into_iter().filter(|threads| *threads <= 2 * cores) {
        let shards = threads.min(cores) as usize;
        let layout = BufferLayout { batches: 6, shards, chunk_bytes: BATCH_BYTES / shards };
        let buffer = Buffer::new(layout, Ack::Memory, None, 0, &Arc::default());
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // Drops the batch. Another benchmark measures the flush.
                    let batch = buffer.next_sealed();
                    if batch.is_none() {
                        thread::sleep(Duration::from_micros(200));
                    }
                }
            });
            group.bench_with_input(BenchmarkId::new("buffer", threads), &threads, |bencher, threads| {
                bencher.iter_custom(|iterations| {
                    timed(*threads, iterations, || {
                        while let Err(error) = buffer.append(&report) {
                            assert_eq!(error, AppendError::Full);
                            thread::yield_now();
                        }
                    })
                });
            });
            done.store(true, Ordering::Relaxed);
        });

        let vector = Mutex::new(Vec::with_capacity(BATCH_BYTES));
        group.bench_with_input(BenchmarkId::new("mutex", threads), &threads, |bencher, threads| {
            bencher.iter_custom(|iterations| {
                timed(*threads, iterations, || {
                    let mut vector = vector.lock().expect("no thread panics");
                    if vector.len() + report.as_bytes().len() + 1 > BATCH_BYTES {
                        vector.clear();
                    }
                    vector.extend_from_slice(report.as_bytes());
                    vector.push(b'\n');
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, append);
criterion_main!(benches);
