//! `GET /api/v1/live`: the state of the server, once per second, as server-sent events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::Map;
use tokio::time::{MissedTickBehavior, interval};

use super::event_stream;
use crate::http::app::App;
use crate::http::conn::{RequestContext, Stopped, StreamWriter};
use crate::http::error::ApiError;
use crate::http::response::ResponseBody;
use crate::metrics::{ENDS, LOSSES, Snapshot};

const INTERVAL: Duration = Duration::from_secs(1);

/// Quantiles are those of the last intervals: few requests per second give some numbers, too.
const QUANTILE_INTERVALS: usize = 10;

const NANOS_PER_MS: f64 = 1e6;

/// What the page shows.
#[derive(Debug, Serialize)]
struct State {
    now_ms: u64,
    version: &'static str,
    uptime_seconds: f64,
    reports: u64,
    bytes: u64,
    refused: Map<String, serde_json::Value>,
    requests: u64,
    latency_ms: Latency,
    buffer_bytes: u64,
    buffer_max_bytes: u64,
    journal_commit_ms: Commit,
    batches: Batches,
    oldest_unflushed_seconds: f64,
    spilled_bytes: u64,
    spill_max_bytes: u64,
    disk_free_bytes: u64,
    disk_total_bytes: u64,
    disk_full: bool,
    files: u64,
    files_bytes: u64,
    written_bytes: u64,
    connections: u64,
    lost: u64,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Commit {
    p50: Option<f64>,
    p99: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Batches {
    free: usize,
    active: usize,
    sealed: usize,
}

pub(super) fn get(context: &RequestContext<'_>, is_head: bool) -> Result<Response<ResponseBody>, ApiError> {
    let app = &context.connection.app;
    let permit = Arc::clone(&app.subscribers).try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::TooManyQueries { limit: "64 live views" })?;
    let mut response = event_stream(StatusCode::OK);
    if !is_head {
        context.start_stream();
        let (writer, body) = context.stream(None);
        *response.body_mut() = body;
        let app = Arc::clone(app);
        tokio::spawn(async move {
            if follow(&app, &writer).await == Stopped::Leaving {
                writer.finish(None).await;
            }
            drop(permit);
        });
    }
    Ok(response)
}

async fn follow(app: &App, writer: &StreamWriter) -> Stopped {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut recent = VecDeque::with_capacity(QUANTILE_INTERVALS + 1);
    loop {
        tokio::select! {
            stopped = writer.stopped() => return stopped,
            _ = ticks.tick() => {}
        }
        recent.push_back((app.metrics.request_ns(), app.metrics.commit_ns.snapshot()));
        if recent.len() > QUANTILE_INTERVALS + 1 {
            recent.pop_front();
        }
        let json = serde_json::to_string(&state(app, &recent)).expect("strings and numbers can be serialized");
        if let Err(stopped) = writer.send(format!("data: {json}\n\n").into()).await {
            return stopped;
        }
    }
}

/// The state now. `recent` has the durations of requests and commits, oldest first.
fn state(app: &App, recent: &VecDeque<(Snapshot, Snapshot)>) -> State {
    let (metrics, buffer, files) = (&*app.metrics, app.buffer.state(), app.store.catalog().totals());
    let ended: u64 = ENDS.iter().map(|(ended, _)| metrics.connections_ended(*ended)).sum();
    let refused = app.refusals.totals().map(|(reason, count)| (reason.to_owned(), count.into()));
    let (first, last) = (recent.front().expect("just pushed"), recent.back().expect("just pushed"));
    let request = |quantile| since(&first.0, &last.0, quantile);
    let commit = |quantile| since(&first.1, &last.1, quantile);
    State {
        now_ms: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: app.started.elapsed().as_secs_f64(),
        reports: metrics.accepted_reports(),
        bytes: metrics.accepted_bytes(),
        refused: refused.collect(),
        requests: metrics.all_requests(),
        latency_ms: Latency { p50: request(0.5), p95: request(0.95), p99: request(0.99) },
        buffer_bytes: buffer.bytes,
        buffer_max_bytes: app.buffer_max_bytes,
        journal_commit_ms: Commit { p50: commit(0.5), p99: commit(0.99) },
        batches: Batches { free: buffer.free, active: buffer.active, sealed: buffer.sealed },
        oldest_unflushed_seconds: buffer.oldest.unwrap_or_default().as_secs_f64(),
        spilled_bytes: buffer.spilled_bytes,
        spill_max_bytes: app.spill_max_bytes,
        disk_free_bytes: metrics.disk_free_bytes.get(),
        disk_total_bytes: metrics.disk_total_bytes.get(),
        disk_full: app.buffer.is_disk_full(),
        files: files.files as u64,
        files_bytes: files.bytes,
        written_bytes: metrics.file_bytes_zstd.get(),
        connections: metrics.connections_opened.get().saturating_sub(ended),
        lost: LOSSES.iter().map(|(lost, _)| metrics.lost(*lost)).sum(),
    }
}

/// A quantile, in milliseconds, of the durations that were counted between two snapshots. `None` if there is none.
/// Within a bucket, it assumes that the values are spread evenly.
fn since(before: &Snapshot, after: &Snapshot, quantile: f64) -> Option<f64> {
    let counts =
        before.buckets.iter().zip(&after.buckets).map(|((bound, old), (_, new))| (*bound, new.saturating_sub(*old)));
    let total: u64 = counts.clone().map(|(_, count)| count).sum();
    let wanted = quantile * total as f64;
    let (mut below, mut lower) = (0.0, 0.0);
    for (bound, count) in counts.filter(|_| total > 0) {
        // Values above all bounds count as the last bound.
        let upper = bound.map_or(lower, |bound| bound as f64);
        if count > 0 && below + count as f64 >= wanted {
            let within = lower + (upper - lower) * (wanted - below) / count as f64;
            return Some(within / NANOS_PER_MS);
        }
        (below, lower) = (below + count as f64, upper);
    }
    None
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn snapshot(counts: [u64; 3]) -> Snapshot {
        let bounds = [Some(1_000_000), Some(3_000_000), None];
        Snapshot { buckets: bounds.into_iter().zip(counts).collect(), sum: 0 }
    }

    #[test]
    fn quantiles_are_those_of_the_values_between_two_snapshots() {
        let quantile = |before, after, quantile| since(&snapshot(before), &snapshot(after), quantile);
        assert_eq!(quantile([5, 5, 5], [5, 5, 5], 0.5), None);
        assert_eq!(quantile([1000, 0, 0], [1000, 10, 0], 0.5), Some(2.0));
        assert_eq!(quantile([0, 0, 0], [100, 0, 0], 0.99), Some(0.99));
        assert_eq!(quantile([0, 0, 0], [50, 50, 0], 0.5), Some(1.0));
        assert_eq!(quantile([0, 0, 0], [0, 0, 7], 0.99), Some(3.0), "above all bounds");
    }
}
