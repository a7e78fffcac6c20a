//! What operators watch: counters and histograms of one server.
//!
//! Every module may count here. This module imports none of the others. Counters that each request increments belong to
//! a worker and have their own cache lines; a scrape sums them. All accesses are Relaxed: a counter publishes no other
//! data. A scrape that runs beside a request sees either its old or its new value.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A number that may change in any way.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of values by size. `N` upper bounds, and one bucket above them.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    buckets: [Counter; N],
    above: Counter,
    sum: Counter,
}

/// The values of a histogram at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Upper bound, inclusive, and number of values in each bucket, smallest first. `None` is infinity.
    pub buckets: Vec<(Option<u64>, u64)>,
    /// The sum of all values.
    pub sum: u64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [u64; N]) -> Self {
        let buckets = std::array::from_fn(|_| Counter::default());
        Self { bounds, buckets, above: Counter::default(), sum: Counter::default() }
    }

    /// Counts one value.
    pub fn observe(&self, value: u64) {
        let index = self.bounds.iter().position(|bound| value <= *bound);
        index.map_or(&self.above, |index| &self.buckets[index]).add(1);
        self.sum.add(value);
    }

    /// The present values.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let bounds = self.bounds.iter().map(|bound| Some(*bound)).chain([None]);
        let counts = self.buckets.iter().chain([&self.above]).map(Counter::get);
        Snapshot { buckets: bounds.zip(counts).collect(), sum: self.sum.get() }
    }
}

impl<const N: usize> Histogram<N> {
    /// Counts a duration. The bounds of the histogram are nanoseconds.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000 * MICROSECOND;
const SECOND: u64 = 1_000 * MILLISECOND;

/// 0.1 ms to 10 s, for requests.
const REQUEST_NS: [u64; 16] = [
    100 * MICROSECOND,
    250 * MICROSECOND,
    500 * MICROSECOND,
    MILLISECOND,
    5 * MILLISECOND / 2,
    5 * MILLISECOND,
    10 * MILLISECOND,
    25 * MILLISECOND,
    50 * MILLISECOND,
    100 * MILLISECOND,
    250 * MILLISECOND,
    500 * MILLISECOND,
    SECOND,
    5 * SECOND / 2,
    5 * SECOND,
    10 * SECOND,
];

/// 10 µs to 10 s, for writes to journals.
const COMMIT_NS: [u64; 13] = [
    10 * MICROSECOND,
    25 * MICROSECOND,
    50 * MICROSECOND,
    100 * MICROSECOND,
    500 * MICROSECOND,
    MILLISECOND,
    5 * MILLISECOND,
    10 * MILLISECOND,
    50 * MILLISECOND,
    100 * MILLISECOND,
    500 * MILLISECOND,
    SECOND,
    10 * SECOND,
];

/// 5 ms to 60 s, for report files.
const FLUSH_NS: [u64; 11] = [
    5 * MILLISECOND,
    10 * MILLISECOND,
    25 * MILLISECOND,
    50 * MILLISECOND,
    100 * MILLISECOND,
    250 * MILLISECOND,
    500 * MILLISECOND,
    SECOND,
    5 * SECOND,
    15 * SECOND,
    60 * SECOND,
];

const GROUP_REPORTS: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096];

/// The route of a request, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Route {
    /// `/api/v1/reports`
    Reports,
    /// `/livez`
    Livez,
    /// `/readyz` and its older names
    Readyz,
    /// `/openapi.yaml`
    Openapi,
    /// `/metrics`
    Metrics,
    /// `GET /api/v1/reports`
    Query,
    /// `/api/v1/stats`
    Stats,
    /// `/api/v1/reports/tail`
    Tail,
    /// `/api/v1/files`
    Files,
    /// `/api/v1/files/` and the name of a report file
    File,
    /// `/api/v1/live`
    Live,
    /// `/login`
    Login,
    /// `/logout`
    Logout,
    /// The web page
    Page,
    /// Any other path
    Other,
}

impl Route {
    /// Whether answers take as long as a query or a client wants.
    #[must_use]
    pub fn is_streamed(self) -> bool {
        matches!(self, Self::Query | Self::Stats | Self::Tail | Self::File | Self::Live)
    }
}

/// All routes with their labels.
pub const ROUTES: [(Route, &str); 15] = [
    (Route::Reports, "/api/v1/reports"),
    (Route::Livez, "/livez"),
    (Route::Readyz, "/readyz"),
    (Route::Openapi, "/openapi.yaml"),
    (Route::Metrics, "/metrics"),
    (Route::Query, "GET /api/v1/reports"),
    (Route::Stats, "/api/v1/stats"),
    (Route::Tail, "/api/v1/reports/tail"),
    (Route::Files, "/api/v1/files"),
    (Route::File, "/api/v1/files/NAME"),
    (Route::Live, "/api/v1/live"),
    (Route::Login, "/login"),
    (Route::Logout, "/logout"),
    (Route::Page, "/"),
    (Route::Other, "other"),
];

/// The statuses that the server answers with. The last one stands for all others.
pub const CODES: [u16; 18] = [200, 204, 206, 304, 400, 401, 403, 404, 405, 408, 413, 415, 416, 422, 429, 500, 503, 0];

/// Why a batch was flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Trigger {
    /// It was full.
    Full,
    /// Its first report was `FLUSH_INTERVAL` old.
    Interval,
    /// Its journal failed.
    JournalFailed,
    /// It was spilled, and is published from its journal.
    Spilled,
    /// The server shut down.
    Shutdown,
}

/// All triggers with their labels.
pub const TRIGGERS: [(Trigger, &str); 5] = [
    (Trigger::Full, "full"),
    (Trigger::Interval, "interval"),
    (Trigger::JournalFailed, "journal-failed"),
    (Trigger::Spilled, "spilled"),
    (Trigger::Shutdown, "shutdown"),
];

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Ended {
    /// Closed by the client, or by the server after an answer or during a shutdown.
    Closed,
    /// The client was too slow or idle for too long.
    Timeout,
    /// The client sent something that is not HTTP, or the connection broke.
    Error,
    /// Closed at once, because of a limit of connections.
    Refused,
}

/// All ends of connections with their labels.
pub const ENDS: [(Ended, &str); 4] =
    [(Ended::Closed, "closed"), (Ended::Timeout, "timeout"), (Ended::Error, "error"), (Ended::Refused, "refused")];

/// Why acknowledged reports were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Lost {
    /// The disk has changed a journal, and the reports were not in memory any more.
    CorruptJournal,
    /// The disk has changed a staged report file. Each such file counts as one report, because its content is unknown.
    CorruptFile,
}

/// All reasons for losses with their labels.
pub const LOSSES: [(Lost, &str); 2] = [(Lost::CorruptJournal, "corrupt-journal"), (Lost::CorruptFile, "corrupt-file")];

/// Counters of the requests that one worker has answered.
#[derive(Debug)]
struct Worker {
    requests: [[Counter; CODES.len()]; ROUTES.len()],
    request_ns: Histogram<{ REQUEST_NS.len() }>,
    accepted_reports: Counter,
    accepted_bytes: Counter,
}

/// All counters of one server. Public fields are shared by all threads and change rarely, once per group or per batch
/// at most.
#[derive(Debug)]
#[allow(missing_docs, reason = "docs/metrics.md describes each metric; a test compares it with a scrape")]
pub struct Metrics {
    workers: Box<[CachePadded<Worker>]>,
    pub connections_opened: Counter,
    connections_ended: [Counter; ENDS.len()],
    pub commit_ns: Histogram<{ COMMIT_NS.len() }>,
    pub group_reports: Histogram<{ GROUP_REPORTS.len() }>,
    pub flush_ns: Histogram<{ FLUSH_NS.len() }>,
    /// By trigger: succeeded, failed.
    flushes: [[Counter; 2]; TRIGGERS.len()],
    pub file_bytes_raw: Counter,
    pub file_bytes_zstd: Counter,
    pub recovered_reports: Counter,
    pub quarantined_bytes: Counter,
    pub admin_refused: Counter,
    lost: [Counter; LOSSES.len()],
    /// At the last check of the disk.
    pub disk_free_bytes: Gauge,
    /// 0 if it is not known.
    pub disk_total_bytes: Gauge,
    pub log_lines_lost: LogLinesLost,
}

/// Reads the number of lost log lines from the log.
#[derive(Default)]
pub struct LogLinesLost(OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>);

impl LogLinesLost {
    /// Sets the source. Only the first call has an effect.
    pub fn set_source(&self, source: impl Fn() -> u64 + Send + Sync + 'static) {
        self.0.get_or_init(|| Box::new(source));
    }

    /// The present number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get().map_or(0, |source| source())
    }
}

impl fmt::Debug for LogLinesLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl Metrics {
    /// Counters for this number of workers. More threads may count as well, at a higher cost.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let worker = || Worker {
            requests: Default::default(),
            request_ns: Histogram::new(&REQUEST_NS),
            accepted_reports: Counter::default(),
            accepted_bytes: Counter::default(),
        };
        Self {
            workers: (0..workers.max(1)).map(|_| CachePadded::new(worker())).collect(),
            connections_opened: Counter::default(),
            connections_ended: Default::default(),
            commit_ns: Histogram::new(&COMMIT_NS),
            group_reports: Histogram::new(&GROUP_REPORTS),
            flush_ns: Histogram::new(&FLUSH_NS),
            flushes: Default::default(),
            file_bytes_raw: Counter::default(),
            file_bytes_zstd: Counter::default(),
            recovered_reports: Counter::default(),
            quarantined_bytes: Counter::default(),
            admin_refused: Counter::default(),
            lost: Default::default(),
            disk_free_bytes: Gauge::default(),
            disk_total_bytes: Gauge::default(),
            log_lines_lost: LogLinesLost::default(),
        }
    }

    fn worker(&self) -> &Worker {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed));
        &self.workers[NUMBER.with(|number| number % self.workers.len())]
    }

    /// Counts an answered request.
    pub fn count_request(&self, route: Route, status: u16, elapsed: Duration) {
        let worker = self.worker();
        let code = CODES.iter().position(|code| *code == status).unwrap_or(CODES.len() - 1);
        worker.requests[route as usize][code].add(1);
        if !route.is_streamed() {
            worker.request_ns.observe_duration(elapsed);
        }
    }

    /// Counts the reports of a request that is answered with 200.
    pub fn count_accepted(&self, reports: usize, bytes: usize) {
        let worker = self.worker();
        worker.accepted_reports.add(reports as u64);
        worker.accepted_bytes.add(bytes as u64);
    }

    /// Counts the end of a connection.
    pub fn count_connection(&self, ended: Ended) {
        self.connections_ended[ended as usize].add(1);
    }

    /// Counts an attempt to write a report file.
    pub fn count_flush(&self, trigger: Trigger, is_ok: bool) {
        self.flushes[trigger as usize][usize::from(!is_ok)].add(1);
    }

    /// Counts acknowledged reports that are lost.
    pub fn count_lost(&self, reason: Lost, reports: usize) {
        self.lost[reason as usize].add(reports as u64);
    }

    /// Number of requests by route and status.
    #[must_use]
    pub fn requests(&self, route: Route, code_index: usize) -> u64 {
        self.workers.iter().map(|worker| worker.requests[route as usize][code_index].get()).sum()
    }

    /// Number of all requests.
    #[must_use]
    pub fn all_requests(&self) -> u64 {
        self.workers.iter().flat_map(|worker| worker.requests.iter().flatten()).map(Counter::get).sum()
    }

    /// Durations of all requests in nanoseconds, without streamed answers.
    #[must_use]
    pub fn request_ns(&self) -> Snapshot {
        let mut snapshots = self.workers.iter().map(|worker| worker.request_ns.snapshot());
        let mut total = snapshots.next().expect("there is at least one worker");
        for snapshot in snapshots {
            total.sum += snapshot.sum;
            total.buckets.iter_mut().zip(&snapshot.buckets).for_each(|((_, count), (_, more))| *count += more);
        }
        total
    }

    /// Number of accepted reports.
    #[must_use]
    pub fn accepted_reports(&self) -> u64 {
        self.workers.iter().map(|worker| worker.accepted_reports.get()).sum()
    }

    /// Bytes of accepted reports, uncompressed.
    #[must_use]
    pub fn accepted_bytes(&self) -> u64 {
        self.workers.iter().map(|worker| worker.accepted_bytes.get()).sum()
    }

    /// Number of connections that ended like this.
    #[must_use]
    pub fn connections_ended(&self, ended: Ended) -> u64 {
        self.connections_ended[ended as usize].get()
    }

    /// Number of attempts to write report files: succeeded and failed.
    #[must_use]
    pub fn flushes(&self, trigger: Trigger) -> [u64; 2] {
        self.flushes[trigger as usize].each_ref().map(Counter::get)
    }

    /// Number of acknowledged reports that were lost.
    #[must_use]
    pub fn lost(&self, reason: Lost) -> u64 {
        self.lost[reason as usize].get()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(1)
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn labels_are_in_the_order_of_their_numbers() {
        assert!(ROUTES.iter().enumerate().all(|(index, (route, _))| *route as usize == index));
        assert!(TRIGGERS.iter().enumerate().all(|(index, (trigger, _))| *trigger as usize == index));
        assert!(ENDS.iter().enumerate().all(|(index, (ended, _))| *ended as usize == index));
        assert!(LOSSES.iter().enumerate().all(|(index, (lost, _))| *lost as usize == index));
    }

    #[test]
    fn a_histogram_counts_each_value_in_the_first_bucket_that_fits() {
        let histogram = Histogram::new(&GROUP_REPORTS);
        [1, 2, 3, 4, 4096, 4097].into_iter().for_each(|value| histogram.observe(value));
        let Snapshot { buckets, sum } = histogram.snapshot();
        let filled: Vec<_> = buckets.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(Some(1), 1), (Some(2), 1), (Some(4), 2), (Some(4096), 1), (None, 1)]);
        assert_eq!(sum, 1 + 2 + 3 + 4 + 4096 + 4097);
    }

    #[test]
    fn counts_of_all_threads_are_summed() {
        let metrics = Metrics::new(2);
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        metrics.count_request(Route::Reports, 200, Duration::from_millis(1));
                        metrics.count_request(Route::Other, 418, Duration::from_secs(11));
                        metrics.count_accepted(2, 10);
                    }
                });
            }
        });
        assert_eq!(metrics.requests(Route::Reports, 0), 5000);
        assert_eq!(metrics.requests(Route::Other, CODES.len() - 1), 5000, "an unexpected status");
        assert_eq!((metrics.accepted_reports(), metrics.accepted_bytes()), (10_000, 50_000));
        let durations = metrics.request_ns();
        assert_eq!(durations.buckets[3], (Some(MILLISECOND), 5000));
        assert_eq!(durations.buckets.last(), Some(&(None, 5000)));
    }
}
