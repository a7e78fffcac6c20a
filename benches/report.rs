//! The report check, by report size, and its individual steps.

mod common;

use std::hint::black_box;

use common::Reports;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use netwatch_server::report;
use serde::de::IgnoredAny;

fn check(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("report");
    for bytes in [300, 1_200, 6_000] {
        let report = Reports::new(1).report(bytes);
        group.throughput(Throughput::Bytes(report.len() as u64));
        group.bench_with_input(BenchmarkId::new("check", bytes), &report, |bencher, report| {
            bencher.iter(|| report::Reports::check(black_box(report)).is_ok());
        });
        group.bench_with_input(BenchmarkId::new("only serde_json", bytes), &report, |bencher, report| {
            bencher.iter(|| serde_json::from_slice::<IgnoredAny>(black_box(report)).is_ok());
        });
        group.bench_with_input(BenchmarkId::new("only UTF-8 by simdutf8", bytes), &report, |bencher, report| {
            bencher.iter(|| simdutf8::basic::from_utf8(black_box(report)).is_ok());
        });
        group.bench_with_input(BenchmarkId::new("only UTF-8 by std", bytes), &report, |bencher, report| {
            bencher.iter(|| std::str::from_utf8(black_box(report)).is_ok());
        });
        let pretty = serde_json::from_slice::<serde_json::Value>(&report).expect("a generated report is JSON");
        let pretty = serde_json::to_vec_pretty(&pretty).expect("writing JSON to memory succeeds");
        group.bench_with_input(
            BenchmarkId::new("check and fold, pretty-printed", bytes),
            &pretty,
            |bencher, report| {
                bencher.iter(|| report::Reports::check(black_box(report)).is_ok());
            },
        );
    }
    group.finish();
}

criterion_group!(benches, check);
criterion_main!(benches);
