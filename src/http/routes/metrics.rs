//! `GET /metrics`: the counters and the state of the server, for Prometheus.
//!
//! The text is made on a thread of its own, so a scrape delays no request.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use hyper::header::{ACCEPT, CACHE_CONTROL, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, NoLabelSet, prometheus_text, text as openmetrics,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::oneshot;

use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::response::{ResponseBody, text};
use crate::metrics::{CODES, ENDS, LOSSES, ROUTES, Snapshot, TRIGGERS};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Nanoseconds per second.
const NANOS: f64 = 1e9;

pub(super) async fn get(app: &Arc<App>, headers: &HeaderMap) -> Result<Response<ResponseBody>, ApiError> {
    let is_openmetrics = prefers_openmetrics(headers);
    // One scrape at a time. Further ones wait.
    let _turn = app.scrapes.lock().await;
    let (done, scraped) = oneshot::channel();
    let registered = Arc::clone(app);
    let scrape = move || drop(done.send(scrape(registered, is_openmetrics)));
    thread::Builder::new().name("scrape".to_owned()).spawn(scrape).map_err(ApiError::Internal)?;
    let body = scraped.await.map_err(|_| ApiError::Internal(std::io::Error::other("the scrape failed")))?;
    let mut response = text(StatusCode::OK, if is_openmetrics { OPENMETRICS } else { PROMETHEUS }, body);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Whether the client accepts OpenMetrics. Prometheus sends its preferences in order, so a weight of 0 is all that
/// would speak against it.
fn prefers_openmetrics(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
        let is_named = parts.next().is_some_and(|name| name == "application/openmetrics-text");
        is_named && !parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)))
    })
}

fn scrape(app: Arc<App>, is_openmetrics: bool) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(app)));
    let mut body = String::new();
    let encoded = match is_openmetrics {
        true => openmetrics::encode(&mut body, &registry),
        false => prometheus_text::encode(&mut body, &registry),
    };
    encoded.expect("writing to a string cannot fail");
    body
}

#[derive(Debug)]
struct Scrape(Arc<App>);

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (app, mut out) = (&*self.0, Out(encoder));
        requests(app, &mut out)?;
        connections(app, &mut out)?;
        buffer(app, &mut out)?;
        files(app, &mut out)?;
        server(app, &mut out)?;
        process(app, &mut out)
    }
}

fn requests(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let metrics = &*app.metrics;
    let requests = ROUTES.into_iter().flat_map(|(route, path)| {
        let code = |code: u16| if code == 0 { "other".to_owned() } else { code.to_string() };
        let by_code = CODES.into_iter().enumerate();
        by_code.map(move |(index, status)| {
            ([("route", path.to_owned()), ("code", code(status))], metrics.requests(route, index))
        })
    });
    out.counters(
        "netwatch_http_requests",
        "Answered requests, by route and status code",
        requests.filter(|(_, count)| *count > 0),
    )?;
    let request_ns = metrics.request_ns();
    out.seconds("netwatch_http_request_duration", "Time from the header of a request to its answer", &request_ns)?;
    out.counter("netwatch_reports_accepted", "Reports that were answered with 200", metrics.accepted_reports())?;
    out.counter("netwatch_report_bytes", "Bytes of accepted reports, uncompressed", metrics.accepted_bytes())?;
    let refused = app.refusals.totals().map(|(reason, count)| ([("reason", reason)], count));
    out.counters("netwatch_requests_refused", "Refused requests, by the name of the problem type", refused)?;
    let lost = LOSSES.into_iter().map(|(lost, reason)| ([("reason", reason)], metrics.lost(lost)));
    out.counters("netwatch_reports_lost", "Acknowledged reports that are lost; must stay 0", lost)
}

fn connections(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let metrics = &*app.metrics;
    let ended = ENDS.map(|(ended, outcome)| ([("outcome", outcome)], metrics.connections_ended(ended)));
    let open = metrics.connections_opened.get().saturating_sub(ended.iter().map(|(_, count)| count).sum());
    out.gauge("netwatch_open_connections", "Open connections", open as f64)?;
    out.counters("netwatch_connections", "Connections that ended, by outcome", ended.into_iter())
}

fn buffer(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let (metrics, state) = (&*app.metrics, app.buffer.state());
    out.gauge("netwatch_buffer_bytes", "Bytes of reports in memory", state.bytes as f64)?;
    let batches = [("free", state.free), ("active", state.active), ("sealed", state.sealed)];
    let batches = batches.map(|(state, count)| ([("state", state)], count as f64));
    out.gauges("netwatch_buffer_batches", "Batches in memory, by state", batches)?;
    let oldest = state.oldest.unwrap_or_default().as_secs_f64();
    out.gauge("netwatch_oldest_unflushed_seconds", "Age of the oldest report that is in no report file", oldest)?;
    out.seconds(
        "netwatch_journal_commit",
        "Time to write, and sync, a group of reports",
        &metrics.commit_ns.snapshot(),
    )?;
    let reports = metrics.group_reports.snapshot();
    out.histogram("netwatch_journal_group_reports", "Reports in a group", &reports, 1.0, None)?;
    out.gauge("netwatch_spilled_bytes", "Bytes of the journals of spilled batches", state.spilled_bytes as f64)
}

fn files(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let metrics = &*app.metrics;
    out.seconds("netwatch_flush", "Time to write a report file", &metrics.flush_ns.snapshot())?;
    let flushes = TRIGGERS.into_iter().flat_map(|(trigger, name)| {
        let [ok, error] = metrics.flushes(trigger);
        [("ok", ok), ("error", error)].map(|(outcome, count)| ([("trigger", name), ("outcome", outcome)], count))
    });
    out.counters("netwatch_flushes", "Attempts to write a report file, by trigger and outcome", flushes)?;
    let bytes = [("raw", metrics.file_bytes_raw.get()), ("zstd", metrics.file_bytes_zstd.get())];
    let bytes = bytes.map(|(kind, bytes)| ([("kind", kind)], bytes));
    out.counters("netwatch_file_bytes", "Bytes in report files, before and after compression", bytes.into_iter())?;
    let recovered = metrics.recovered_reports.get();
    out.counter("netwatch_recovered_reports", "Reports recovered from journals of dead servers", recovered)?;
    let quarantined = metrics.quarantined_bytes.get();
    out.counter("netwatch_quarantined_bytes", "Corrupt bytes copied to the quarantine", quarantined)?;
    let catalog = app.store.catalog().totals();
    out.counter("netwatch_pruned_files", "Report files removed by retention", catalog.pruned_files)?;
    out.gauge("netwatch_report_files", "Report files in the data directory", catalog.files as f64)?;
    out.gauge("netwatch_report_files_bytes", "Size of all report files, compressed", catalog.bytes as f64)?;
    let oldest = catalog.oldest.map(|oldest| SystemTime::now().duration_since(oldest).unwrap_or_default());
    let oldest = oldest.unwrap_or_default().as_secs_f64();
    out.gauge("netwatch_report_files_oldest_seconds", "Age of the first report of the oldest report file", oldest)?;
    out.gauge("netwatch_disk_free_bytes", "Free disk space at the last check", metrics.disk_free_bytes.get() as f64)?;
    let is_full = u8::from(app.buffer.is_disk_full());
    out.gauge("netwatch_disk_full", "1 if reports are refused because the disk is full", is_full.into())
}

fn server(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let lost = app.metrics.log_lines_lost.get();
    out.counter("netwatch_log_lines_lost", "Log lines that were lost because nobody read them", lost)?;
    let refused = app.metrics.admin_refused.get();
    out.counter("netwatch_admin_requests_refused", "Requests without a valid admin token", refused)?;
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    let mut build = out.0.encode_descriptor("netwatch_build", "The version of the server", None, MetricType::Info)?;
    build.encode_info(&version)
}

/// The metrics that all processes have by convention, without a prefix.
fn process(app: &App, out: &mut Out<'_>) -> fmt::Result {
    let started = app.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    out.gauge("process_start_time_seconds", "Start of the server, in seconds since 1970", started)?;
    let Ok(this) = procfs::process::Process::myself() else { return Ok(()) };
    if let Ok(stat) = this.stat() {
        let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        out.counter_of("process_cpu_seconds", "Processor time, user and system", seconds)?;
        out.gauge("process_resident_memory_bytes", "Resident memory", (stat.rss * procfs::page_size()) as f64)?;
        out.gauge("process_virtual_memory_bytes", "Virtual memory", stat.vsize as f64)?;
        out.gauge("process_threads", "Threads", stat.num_threads as f64)?;
    }
    if let Ok(open) = this.fd_count() {
        out.gauge("process_open_fds", "Open file descriptors", open as f64)?;
    }
    let max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    out.gauge("process_max_fds", "Limit of open file descriptors", max.map_or(f64::INFINITY, |max| max as f64))
}

/// Encodes metrics.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counter_of(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauges<L: EncodeLabelSet, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: [(L, f64); N],
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            encoder.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A histogram of nanoseconds, encoded in seconds.
    fn seconds(&mut self, name: &str, help: &str, snapshot: &Snapshot) -> fmt::Result {
        self.histogram(name, help, snapshot, NANOS, Some(&Unit::Seconds))
    }

    /// A histogram whose values are divided by `scale`.
    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        Snapshot { buckets, sum }: &Snapshot,
        scale: f64,
        unit: Option<&Unit>,
    ) -> fmt::Result {
        let upper = |bound: Option<u64>| bound.map_or(f64::INFINITY, |bound| bound as f64 / scale);
        let counts: Vec<_> = buckets.iter().map(|(bound, count)| (upper(*bound), *count)).collect();
        let total = buckets.iter().map(|(_, count)| count).sum();
        let mut encoder = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(*sum as f64 / scale, total, &counts, None)
    }
}
