//! Statistics, compared with a naive evaluator on values.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const START: &str = "2026-11-22T12:00:00Z";
const MEMORY_BYTES: usize = 8 << 20;

fn options(path: &str) -> Options {
    Options {
        path: path.parse().expect("a path"),
        by: None,
        errors: None,
        distinct: None,
        step_seconds: None,
        quantiles: vec![0.5, 0.99],
        top: 20,
        time: ".time".parse().expect("a path"),
        range: TimeRange::default(),
    }
}

fn path(text: &str) -> Option<Path> {
    Some(text.parse().expect("a path"))
}

fn batch() -> BatchTime {
    BatchTime { time: START.parse().expect("a time"), is_in_range: true }
}

fn stats<T: AsRef<[u8]>>(options: &Options, lines: &[T]) -> Stats {
    let mut stats = Stats::new(options.clone(), MEMORY_BYTES);
    lines.iter().for_each(|line| stats.add(line.as_ref(), batch(), |_| true));
    stats
}

fn summary(options: &Options, lines: &[&str]) -> Summary {
    stats(options, lines).finish()
}

/// The groups with their counts.
fn counts(summary: &Summary) -> Vec<(Option<&str>, u64)> {
    summary.series.iter().map(|series| (series.group.as_deref(), series.total.count)).collect()
}

#[test]
fn each_number_counts_for_the_group_of_its_own_element() {
    let options = Options {
        by: path(".hosts[].name"),
        errors: path(".hosts[].history[].error"),
        distinct: path(".client"),
        ..options(".hosts[].history[].ms")
    };
    let summary = summary(
        &options,
        &[
            r#"{"client":"x","hosts":[{"name":"a","history":[{"ms":10},{"ms":20},{"error":"e"}]},{"name":"b","history":[{"error":null}]}]}"#,
            r#"{"client":"y","hosts":[{"name":"a","history":[{"ms":30},{"ms":"40"},{"ms":null}]},{"history":[{"ms":-5}]}]}"#,
        ],
    );
    assert_eq!(counts(&summary), [(Some("a"), 3), (None, 1), (Some("b"), 0)]);
    let Measures { count, errors, min, mean, max, distinct, .. } = summary.series[0].total;
    assert_eq!((count, errors, min, mean, max, distinct), (3, 1, Some(10.0), Some(20.0), Some(30.0), Some(2)));
    assert_eq!(summary.series[1].total.quantiles, [Some(-5.0), Some(-5.0)], "within the exact range");
    // The clients are outside of the hosts. So each of them counts for all hosts of its report.
    assert_eq!(summary.series[2].total.distinct, Some(1));
    assert_eq!((summary.reports, summary.reports_matched, summary.limited), (2, 2, false));
}

#[test]
fn groups_are_values_not_texts() {
    let options = Options { by: path(".g"), ..options(".n") };
    let lines = [
        r#"{"n":1,"g":"a"}"#,
        r#"{"n":1,"g":"\u0061"}"#,
        r#"{"n":1,"g":null}"#,
        r#"{"n":1}"#,
        r#"{"n":1,"g":"null"}"#,
        r#"{"n":1,"g":1}"#,
        r#"{"n":1,"g":{"x": 1}}"#,
        r#"{"n":1,"g":"\ud800"}"#,
        r#"{"n":1,"g":"line\nbreak"}"#,
    ];
    let summary = summary(&options, &lines);
    let expected = [
        (Some("a"), 2),
        (None, 2),
        (Some("line\nbreak"), 1),
        (Some("null"), 1),
        (Some("\"\\ud800\""), 1),
        (Some("1"), 1),
        (Some("{\"x\": 1}"), 1),
    ];
    let mut actual = counts(&summary);
    actual.sort_by_key(|(group, count)| (std::cmp::Reverse(*count), *group));
    let mut expected = expected.to_vec();
    expected.sort_by_key(|(group, count)| (std::cmp::Reverse(*count), *group));
    assert_eq!(actual, expected);
}

#[test]
fn the_time_of_a_report_decides_its_step_and_whether_it_counts() {
    let range = TimeRange {
        since: Some("2026-11-22T12:00:30Z".parse().expect("a time")),
        until: Some("2026-11-22T12:03:00Z".parse().expect("a time")),
    };
    let options = Options { step_seconds: NonZeroU32::new(60), range, ..options(".n") };
    let lines = [
        r#"{"n":1,"time":"2026-11-22T12:00:29.999Z"}"#,
        r#"{"n":2,"time":"2026-11-22T12:00:30Z"}"#,
        r#"{"n":3,"time":"2026-11-22T13:02:59.999+01:00"}"#,
        r#"{"n":4,"time":1795348980000}"#,
        r#"{"n":5,"time":1795348980001}"#,
        r#"{"n":6}"#,
    ];
    let summary = summary(&options, &lines);
    let points: Vec<_> = summary.series[0]
        .points
        .iter()
        .map(|Point { time, measures }| (time.to_string(), measures.count, measures.min))
        .collect();
    let expected = [("12:00", 2, 2.0), ("12:02", 1, 3.0), ("12:03", 1, 4.0)];
    let expected = expected.map(|(time, count, min)| (format!("2026-11-22T{time}:00Z"), count, Some(min)));
    assert_eq!(points, expected);
    assert_eq!((summary.reports, summary.series[0].total.count), (4, 4));

    let mut late = Stats::new(options, MEMORY_BYTES);
    late.add(br#"{"n":6}"#, BatchTime { is_in_range: false, ..batch() }, |_| true);
    assert_eq!(late.finish().reports, 0, "the interval of the batch counts for a report without a time");
}

#[test]
fn a_report_that_does_not_match_is_only_counted() {
    let mut stats = Stats::new(options(".n"), MEMORY_BYTES);
    for line in [r#"{"n":1}"#, r#"{"n":2,"x":1}"#] {
        stats.add(line.as_bytes(), batch(), |report| report.ends_with(b"1}") && report.len() > 8);
    }
    let summary = stats.finish();
    assert_eq!((summary.reports, summary.reports_matched, summary.series[0].total.min), (2, 1, Some(2.0)));
}

#[test]
fn the_largest_groups_are_shown_and_the_rest_is_one_group() {
    let options = Options { by: path(".g"), step_seconds: NonZeroU32::new(60), top: 2, ..options(".n") };
    let lines: Vec<String> =
        (0..10_u64).flat_map(|group| (0..=group).map(move |n| format!(r#"{{"g":"g{group}","n":{n}}}"#))).collect();
    let summary = stats(&options, &lines).finish();
    assert_eq!(counts(&summary), [(Some("g9"), 10), (Some("g8"), 9)]);
    let other = summary.other.expect("the rest");
    assert_eq!((other.total.count, other.total.max), (36, Some(7.0)));
    assert_eq!(other.points.iter().map(|point| point.measures.count).collect::<Vec<_>>(), [36]);
    assert!(!summary.limited, "nothing is missing");
}

#[test]
fn groups_beyond_the_limit_count_as_other() {
    let options = Options { by: path(".g"), top: 2 * MAX_GROUPS, ..options(".n") };
    let line = |group: usize| format!(r#"{{"g":{group},"n":1}}"#);
    let long = format!(r#"{{"g":"{}","n":1}}"#, "x".repeat(MAX_GROUP_BYTES));
    let mut stats = Stats::new(options, 64 << 20);
    stats.add(long.as_bytes(), batch(), |_| true);
    (0..MAX_GROUPS + 5).for_each(|group| stats.add(line(group).as_bytes(), batch(), |_| true));
    stats.add(line(0).as_bytes(), batch(), |_| true);
    let summary = stats.finish();
    assert_eq!(counts(&summary)[0], (Some("0"), 2));
    assert_eq!(summary.series.len(), MAX_GROUPS);
    assert_eq!(summary.other.expect("the rest").total.count, 5 + 1);
    assert!(summary.limited);
}

#[test]
fn steps_beyond_the_limit_count_in_the_total() {
    let options = Options { step_seconds: NonZeroU32::new(1), ..options(".n") };
    let mut stats = Stats::new(options, 64 << 20);
    for second in 0..MAX_STEPS + 10 {
        stats.add(format!(r#"{{"n":1,"time":{}}}"#, second * 1_000).as_bytes(), batch(), |_| true);
    }
    let summary = stats.finish();
    assert_eq!((summary.series[0].points.len(), summary.limited), (MAX_STEPS, true));
    assert_eq!(summary.series[0].total.count, (MAX_STEPS + 10) as u64);
}

#[test]
fn a_value_counts_for_a_limited_number_of_groups() {
    let options = Options { by: path(".g[]"), top: 1_000, ..options(".n") };
    let groups: Vec<usize> = (0..MAX_GROUPS_PER_VALUE + 50).collect();
    let summary = stats(&options, &[json!({"g": groups, "n": 1}).to_string()]).finish();
    assert_eq!(summary.series.len(), MAX_GROUPS_PER_VALUE);
}

#[test]
fn memory_is_limited_whatever_the_reports_contain() {
    let options = Options { by: path(".g"), distinct: path(".d"), step_seconds: NonZeroU32::new(1), ..options(".n[]") };
    let memory_bytes = 1 << 20;
    let mut stats = Stats::new(options, memory_bytes);
    let mut random = fastrand::Rng::with_seed(1);
    for report in 0..30_000_u32 {
        let numbers: Vec<String> = (0..8).map(|_| format!("1e{}", random.i32(-240..300))).collect();
        let (group, time) = (random.u32(0..2_000), random.u32(0..100));
        let line = format!(r#"{{"g":{group},"time":{time}000,"d":{report},"n":[{}]}}"#, numbers.join(","));
        stats.add(line.as_bytes(), batch(), |_| true);
    }
    let used = stats.totals.used_bytes();
    assert!(used < memory_bytes * 5 / 4, "{used}");
    let summary = stats.finish();
    assert!(summary.limited);
    let other = summary.other.as_ref().expect("the rest");
    let counted: u64 = summary.series.iter().map(|series| series.total.count).sum();
    assert_eq!(counted + other.total.count, 240_000, "no number is lost");
}

#[test]
fn sums_that_are_too_large_have_no_infinite_mean() {
    let summary = summary(&options(".n[]"), &[r#"{"n":[1.7e308,1.7e308,1e999]}"#]);
    let Measures { count, mean, max, .. } = summary.series[0].total;
    assert_eq!((count, max), (2, Some(1.7e308)));
    assert!(mean.is_none_or(f64::is_finite));
}

/// A report with hosts that have a name or not, and samples with a latency, an error, or something else.
fn report() -> impl Strategy<Value = Value> {
    let sample = prop_oneof![
        6 => (1_u32..100_000).prop_map(|ms| json!({"ms": f64::from(ms) / 10.0})),
        1 => Just(json!({"error": "timeout"})),
        1 => Just(json!({"ms": null, "error": null})),
        1 => (-50_i32..50).prop_map(|ms| json!({"ms": ms, "error": 0})),
    ];
    let name = prop_oneof![
        4 => prop::sample::select(&["a", "b", "c\n", "é\u{202e}"][..]).prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!(7)),
    ];
    let host = (name, prop::collection::vec(sample, 0..6))
        .prop_map(|(name, history)| json!({"name": name, "history": history}));
    (0..30_u32, 0..600_u32, prop::collection::vec(host, 0..4)).prop_map(
        |(client, second, hosts)| json!({"client": client, "time": u64::from(second) * 1_000, "hosts": hosts}),
    )
}

#[derive(Default)]
struct Naive {
    numbers: Vec<f64>,
    errors: u64,
    clients: HashSet<String>,
}

/// By group and step; the step `None` is the total.
fn naive(reports: &[Value]) -> BTreeMap<(String, Option<i64>), Naive> {
    let mut cells: BTreeMap<(String, Option<i64>), Naive> = BTreeMap::new();
    for report in reports {
        let step = report["time"].as_i64().map(|time| time / 60_000);
        for host in report["hosts"].as_array().into_iter().flatten() {
            for step in [None, step] {
                let cell = cells.entry((host["name"].to_string(), step)).or_default();
                cell.clients.insert(report["client"].to_string());
                for sample in host["history"].as_array().into_iter().flatten() {
                    cell.numbers.extend(sample["ms"].as_f64());
                    cell.errors += u64::from(!sample["error"].is_null());
                }
            }
        }
        // A client that has no hosts counts for the group null.
        if report["hosts"].as_array().is_none_or(Vec::is_empty) {
            for step in [None, step] {
                let cell = cells.entry(("null".to_owned(), step)).or_default();
                cell.clients.insert(report["client"].to_string());
            }
        }
    }
    cells
}

fn assert_equal(actual: &Measures, expected: &mut Naive) -> Result<(), TestCaseError> {
    expected.numbers.sort_by(f64::total_cmp);
    let numbers = &expected.numbers;
    prop_assert_eq!(actual.count, numbers.len() as u64);
    prop_assert_eq!(actual.errors, expected.errors);
    prop_assert_eq!(actual.distinct, Some(expected.clients.len() as u64));
    prop_assert_eq!((actual.min, actual.max), (numbers.first().copied(), numbers.last().copied()));
    if numbers.is_empty() {
        prop_assert_eq!(&actual.quantiles, &[None, None]);
        return Ok(());
    }
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    prop_assert!((actual.mean.expect("numbers") - mean).abs() < 1e-6);
    for (quantile, actual) in [0.5, 0.99].iter().zip(&actual.quantiles) {
        let rank = quantile * (numbers.len() - 1) as f64;
        let (below, above) = (numbers[rank as usize], numbers[rank.ceil() as usize]);
        let expected = below + (above - below) * rank.fract();
        let error = below.abs().max(above.abs()) * 0.010_001;
        prop_assert!((actual.expect("numbers") - expected).abs() <= error, "{:?}, not {}", actual, expected);
    }
    Ok(())
}

proptest! {
    #[test]
    fn statistics_are_those_of_a_naive_evaluator_however_they_are_split(
        reports in prop::collection::vec(report(), 0..40), parts in 1_usize..5
    ) {
        let options = Options {
            by: path(".hosts[].name"),
            errors: path(".hosts[].history[].error"),
            distinct: path(".client"),
            step_seconds: NonZeroU32::new(60),
            ..options(".hosts[].history[].ms")
        };
        let lines: Vec<String> = reports.iter().map(Value::to_string).collect();
        let mut merged = Stats::new(options.clone(), MEMORY_BYTES);
        lines.chunks(lines.len().div_ceil(parts).max(1)).for_each(|part| merged.merge(stats(&options, part)));
        let summary = merged.finish();
        let mut expected = naive(&reports);
        for series in &summary.series {
            let group = match &series.group {
                None => "null".to_owned(),
                Some(group) if group == "7" => "7".to_owned(),
                Some(group) => json!(group).to_string(),
            };
            let total = expected.remove(&(group.clone(), None));
            assert_equal(&series.total, &mut total.expect("the group exists"))?;
            for Point { time, measures } in &series.points {
                let point = expected.remove(&(group.clone(), Some(time.as_second() / 60)));
                assert_equal(measures, &mut point.expect("the point exists"))?;
            }
        }
        prop_assert!(expected.is_empty(), "{:?}", expected.keys());
        let single = stats(&options, &lines).finish();
        prop_assert_eq!(counts(&single), counts(&summary));
        prop_assert_eq!(summary.reports, reports.len() as u64);
    }
}
