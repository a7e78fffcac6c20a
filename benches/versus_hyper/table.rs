//! Medians, spreads and ratios, as a table and as JSON.

use std::fmt;
use std::num::NonZero;
use std::thread;

use serde_json::{Value, json};

use crate::{Args, Result};

/// If the client uses more of its core than this, the client may limit the throughput.
const CLIENT_CORES_LIMIT: f64 = 0.9;

/// More than the kernel needs to write the files of b. Other processes that use this much distort the results.
const OTHER_CORES_LIMIT: f64 = 0.15;

/// The results of one side in one round.
pub(crate) struct Round {
    pub(crate) requests_per_second: f64,
    pub(crate) cpu_us: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) peak_rss_mib: f64,
    pub(crate) server_cores: f64,
    pub(crate) client_cores: f64,
    pub(crate) other_cores: f64,
}

/// The rounds of both sides, in chronological order.
pub(crate) struct Case {
    pub(crate) connections: usize,
    pub(crate) report_bytes: usize,
    pub(crate) a: Vec<Round>,
    pub(crate) b: Vec<Round>,
}

struct Metric {
    title: &'static str,
    key: &'static str,
    of: fn(&Round) -> f64,
}

impl Metric {
    fn values(&self, rounds: &[Round]) -> Vec<f64> {
        rounds.iter().map(self.of).collect()
    }

    /// The ratio b/a of each round.
    fn ratios(&self, case: &Case) -> Vec<f64> {
        case.a.iter().zip(&case.b).map(|(a, b)| (self.of)(b) / (self.of)(a)).collect()
    }
}

/// The metrics that are compared.
const RESULTS: [Metric; 6] = [
    Metric { title: "requests/s", key: "requests_per_second", of: |round| round.requests_per_second },
    Metric { title: "CPU µs/request", key: "cpu_us_per_request", of: |round| round.cpu_us },
    Metric { title: "p50 ms", key: "p50_ms", of: |round| round.p50_ms },
    Metric { title: "p99 ms", key: "p99_ms", of: |round| round.p99_ms },
    Metric { title: "p99.9 ms", key: "p999_ms", of: |round| round.p999_ms },
    Metric { title: "peak RSS MiB", key: "peak_rss_mib", of: |round| round.peak_rss_mib },
];

/// The metrics that show whether the comparison is meaningful.
const CORES_BUSY: [Metric; 3] = [
    Metric { title: "cores busy: server", key: "server_cores", of: |round| round.server_cores },
    Metric { title: "cores busy: client", key: "client_cores", of: |round| round.client_cores },
    Metric { title: "cores busy: others", key: "other_cores", of: |round| round.other_cores },
];

/// One Markdown table per case.
pub(crate) struct Table {
    cores: usize,
    about: Value,
    cases: Vec<Case>,
}

impl Table {
    pub(crate) fn new(args: &Args) -> Self {
        let Args { a, b, rounds, seconds, .. } = args;
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        println!("a: {a}\nb: {b}\n{cores} cores; medians (minimum–maximum) of {rounds} rounds of {seconds:?}\n");
        let about = json!({
            "a": a.to_string(),
            "b": b.to_string(),
            "cores": cores,
            "rounds": rounds,
            "seconds": seconds.as_secs_f64(),
        });
        Self { cores, about, cases: Vec::new() }
    }

    /// Prints the case and warnings about it.
    pub(crate) fn add(&mut self, case: Case) {
        println!("{case}");
        for (name, rounds) in [("a", &case.a), ("b", &case.b)] {
            let [server, client, others] = CORES_BUSY.map(|cores| Spread::of(cores.values(rounds)).median);
            if others > OTHER_CORES_LIMIT {
                println!("Warning: other processes were busy during {name}. Measure again on an idle machine.\n");
            }
            if client > CLIENT_CORES_LIMIT {
                println!("Warning: with {name} the client is the bottleneck: it is almost never idle.\n");
            } else if server + client > 0.95 * self.cores as f64 {
                println!("With {name} no core is idle, so requests/s also depends on the CPU usage of the client.\n");
            }
        }
        self.cases.push(case);
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        let mut results = self.about.clone();
        results["cases"] = self.cases.iter().map(Case::to_json).collect();
        Ok(serde_json::to_string_pretty(&results)?)
    }
}

impl Case {
    fn to_json(&self) -> Value {
        let side = |rounds| in_json(RESULTS.iter().chain(&CORES_BUSY), |metric| metric.values(rounds));
        json!({
            "connections": self.connections,
            "report_bytes": self.report_bytes,
            "a": side(&self.a),
            "b": side(&self.b),
            "b_over_a": in_json(RESULTS.iter(), |metric| metric.ratios(self)),
        })
    }

    fn row(&self, f: &mut fmt::Formatter<'_>, metric: &Metric, ratio: &str) -> fmt::Result {
        let [a, b] = [&self.a, &self.b].map(|rounds| Spread::of(metric.values(rounds)).to_string());
        writeln!(f, "| {:<28} | {a:>24} | {b:>24} | {ratio:>24} |", metric.title)
    }
}

fn in_json<'a>(metrics: impl Iterator<Item = &'a Metric>, values: impl Fn(&Metric) -> Vec<f64>) -> Value {
    let with_spread = |metric: &Metric| {
        let rounds = values(metric);
        let Spread { median, min, max } = Spread::of(rounds.clone());
        (metric.key.to_owned(), json!({ "median": median, "min": min, "max": max, "rounds": rounds }))
    };
    metrics.map(with_spread).collect()
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = format!("connections {}, size {}", self.connections, self.report_bytes);
        writeln!(f, "| {title:<28} | {:>24} | {:>24} | {:>24} |", "a", "b", "b/a")?;
        writeln!(f, "|{:-<30}|{:->25}:|{:->25}:|{:->25}:|", "", "", "", "")?;
        for metric in &RESULTS {
            self.row(f, metric, &Spread::of(metric.ratios(self)).to_string())?;
        }
        CORES_BUSY.iter().try_for_each(|metric| self.row(f, metric, ""))
    }
}

struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (below, above) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Self { median: f64::midpoint(below, above), min: values[0], max: values[values.len() - 1] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Three digits match the precision of these measurements.
        let decimals = if self.max >= 100.0 {
            0
        } else if self.max >= 10.0 {
            1
        } else if self.max >= 1.0 {
            2
        } else {
            3
        };
        write!(f, "{:.decimals$} ({:.decimals$}–{:.decimals$})", self.median, self.min, self.max)
    }
}
