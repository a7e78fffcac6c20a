//! What all connections of a server share.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Semaphore;

use super::admission::{Admin, Admission, ConnectionsPerAddress, Proxies, Repeats};
use super::body::Inflight;
use super::conn::Streams;
use super::drain::Drain;
use super::queries::Queries;
use super::refusals::Refusals;
use super::{MAX_DOWNLOADS, MAX_SUBSCRIBERS};
use crate::buffer::Buffer;
use crate::config::{Config, Mask, Origins, Stamps};
use crate::metrics::Metrics;
use crate::store::Store;

/// What all connections of a server share.
#[derive(Debug)]
pub struct App {
    pub(super) buffer: Arc<Buffer>,
    pub(super) store: Arc<Store>,
    pub(super) limits: Limits,
    /// `None` if a client may open any number of connections.
    pub(super) per_address: Option<ConnectionsPerAddress>,
    pub(super) admission: Admission,
    pub(super) admin: Admin,
    /// What is read has a listener of its own.
    pub(super) has_admin_listener: bool,
    pub(super) origins: Origins,
    /// `None` if idempotency keys are ignored.
    pub(super) repeats: Option<Repeats>,
    pub(super) proxies: Proxies,
    pub(super) stamps: Stamps,
    pub(super) client_ip_mask: Mask,
    /// The streams of all HTTP/2 connections together.
    pub(super) streams: Arc<Streams>,
    /// Memory for bodies, on all connections together.
    pub(super) inflight: Arc<Inflight>,
    /// Permits for decoders, which need memory for their windows.
    pub(super) decoders: Semaphore,
    pub(super) drain: Drain,
    pub(super) refusals: Refusals,
    pub(super) metrics: Arc<Metrics>,
    /// Permits for downloads of report files, and for clients that follow the state of the server.
    pub(super) downloads: Arc<Semaphore>,
    pub(super) subscribers: Arc<Semaphore>,
    pub(super) queries: Queries,
    pub(super) buffer_max_bytes: u64,
    pub(super) spill_max_bytes: u64,
    /// The turn to scrape the metrics.
    pub(super) scrapes: tokio::sync::Mutex<()>,
    pub(super) started: Instant,
    pub(super) started_at: SystemTime,
}

/// Limits of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_body_bytes: usize,
    pub(super) header_timeout: Duration,
    pub(super) body_timeout: Duration,
    /// Maximum time from a complete body to the answer. It ends the wait for a disk that does not respond.
    pub(super) commit_timeout: Duration,
    pub(super) keep_alive_timeout: Duration,
}

impl App {
    /// Reports go to `buffer`. `/readyz` reports errors of `store`.
    #[must_use]
    pub fn new(config: &Config, buffer: Arc<Buffer>, store: Arc<Store>) -> Self {
        let metrics = Arc::clone(store.metrics());
        Self {
            buffer,
            store,
            limits: Limits {
                max_body_bytes: config.max_body_bytes,
                header_timeout: config.header_timeout,
                body_timeout: config.body_timeout,
                commit_timeout: config.commit_timeout,
                keep_alive_timeout: config.keep_alive_timeout,
            },
            per_address: config.max_connections_per_address.map(ConnectionsPerAddress::new),
            admission: Admission::new(config.write_keys.clone(), config.rate_limit, config.key_rate_limit),
            admin: Admin::new(config),
            has_admin_listener: config.admin_listen.is_some(),
            origins: config.cors_allow_origins.clone(),
            repeats: config.dedup_window.map(|window| Repeats::new(window, config.max_connections)),
            proxies: Proxies {
                trusted: config.trusted_proxies.clone(),
                header: config.forwarded_header,
                proxy_protocol: config.proxy_protocol,
            },
            stamps: config.stamp.clone(),
            client_ip_mask: config.client_ip_mask,
            streams: Arc::new(Streams::new(config.max_streams())),
            inflight: Inflight::new(config.inflight_bytes, config.max_body_bytes),
            decoders: Semaphore::new(config.workers),
            drain: Drain::default(),
            refusals: Refusals::new(),
            metrics,
            downloads: Arc::new(Semaphore::new(MAX_DOWNLOADS)),
            subscribers: Arc::new(Semaphore::new(MAX_SUBSCRIBERS)),
            queries: Queries::new(&config.data_dir, config.query_timeout, config.query_max_concurrent),
            buffer_max_bytes: config.buffer_bytes as u64,
            spill_max_bytes: config.spill_bytes as u64,
            scrapes: tokio::sync::Mutex::default(),
            started: Instant::now(),
            started_at: SystemTime::now(),
        }
    }

    /// Announces the shutdown: `/readyz` answers 503 from now on.
    pub(crate) fn announce_shutdown(&self) {
        self.drain.announce();
    }

    /// Lets each connection finish its current requests, and accept no others.
    pub(crate) fn drain(&self) {
        self.drain.start();
    }

    /// Logs the requests that were refused since the last call, by reason.
    pub(crate) fn log_refusals(&self) {
        self.refusals.log();
    }
}
