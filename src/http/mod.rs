//! On the wire: routes, limits and answers.

mod admission;
pub mod client;
mod connection;
mod content_type;
mod cors;
mod encoding;
mod gathered;
mod health;
mod idempotency;
mod ingest;
mod openapi;
mod per_address;
mod protocol;
mod proxy_protocol;
pub mod rate_limit;
mod refusal;
pub mod stamp;
pub mod write_keys;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::{http1, http2};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioExecutor;
use tokio::sync::{Notify, Semaphore};

use self::admission::Admission;
use self::client::{ForwardedHeader, Mask, Networks};
use self::connection::Exchange;
pub use self::connection::serve;
pub use self::cors::{NoOrigin, Origins};
use self::idempotency::Repeats;
use self::per_address::PerAddress;
use self::refusal::Refusal;
use self::stamp::Stamps;
use crate::buffer::Buffer;
use crate::config::Config;

/// Request line and headers, in bytes; more is answered with 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// The most that is read from one connection at once, in bytes. A longer body comes in several pieces, which are
/// gathered in memory that counts against `INFLIGHT_BYTES`.
const MAX_READ_BYTES: usize = 32 * 1024;

/// Requests that may be open on one HTTP/2 connection, the least that RFC 9113 recommends.
const MAX_STREAMS: u32 = 100;

/// Bytes that a client may send on an HTTP/2 connection, or of one body on it, before they are taken. They are held in
/// memory.
const WINDOW_BYTES: u32 = 64 * 1024 - 1;

/// What every connection shares.
#[derive(Debug)]
pub struct App {
    buffer: Arc<Buffer>,
    limits: Limits,
    /// None when a client may have any number of connections.
    per_address: Option<PerAddress>,
    admission: Admission,
    origins: Origins,
    /// None when every request is a new one.
    repeats: Option<Repeats>,
    proxies: Proxies,
    stamps: Stamps,
    client_ip_mask: Mask,
    /// Requests that there may still be over HTTP/2, on all connections.
    streams: Arc<Semaphore>,
    /// Bytes of gathered bodies that there may still be.
    inflight: Arc<Semaphore>,
    started: Instant,
    leaving: AtomicBool,
    draining: AtomicBool,
    drain: Notify,
}

/// What a client may ask of the server.
#[derive(Debug, Clone, Copy)]
struct Limits {
    max_body_bytes: usize,
    header_timeout: Duration,
    body_timeout: Duration,
    keep_alive_timeout: Duration,
}

/// The proxies that clients come through.
#[derive(Debug)]
struct Proxies {
    /// These are, and whatever else they say may be so or not.
    trusted: Networks,
    header: ForwardedHeader,
    /// They begin each connection with a header of the PROXY protocol.
    speak_proxy: bool,
}

impl App {
    /// As `config` says; reports go to `buffer`.
    #[must_use]
    pub fn new(config: &Config, buffer: Arc<Buffer>) -> Self {
        Self {
            buffer,
            limits: Limits {
                max_body_bytes: config.max_body_bytes,
                header_timeout: config.header_timeout,
                body_timeout: config.body_timeout,
                keep_alive_timeout: config.keep_alive_timeout,
            },
            per_address: config.max_connections_per_address.map(PerAddress::new),
            admission: Admission::new(config.write_keys.clone(), config.rate_limit, config.key_rate_limit),
            origins: config.cors_allow_origins.clone(),
            repeats: config.dedup_window.map(|window| Repeats::new(window, config.max_connections)),
            proxies: Proxies {
                trusted: config.trusted_proxies.clone(),
                header: config.forwarded_header,
                speak_proxy: config.proxy_protocol,
            },
            stamps: config.stamp.clone(),
            client_ip_mask: config.client_ip_mask,
            streams: Arc::new(Semaphore::new(config.max_connections)),
            inflight: Arc::new(Semaphore::new(config.inflight_bytes.min(Semaphore::MAX_PERMITS))),
            started: Instant::now(),
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            drain: Notify::new(),
        }
    }

    /// Has `/readyz` say from now on that the server is stopping.
    pub(crate) fn leave(&self) {
        // Relaxed: it stands for itself.
        self.leaving.store(true, Ordering::Relaxed);
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Lets every connection finish the request that it is at, and no other.
    pub(crate) fn drain(&self) {
        // Release: pairs with the Acquire in `is_draining`; it comes before the wake-up.
        self.draining.store(true, Ordering::Release);
        self.drain.notify_waiters();
    }

    fn is_draining(&self) -> bool {
        // Acquire: pairs with the Release in `drain`.
        self.draining.load(Ordering::Acquire)
    }
}

/// How hyper is set up for every connection. Public for the benchmark that compares with a bare hyper server.
#[must_use]
pub fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // Time-outs are the watch of `connection`, which needs no timer for each request.
        .header_read_timeout(None)
        // A client that has closed its side still waits for the answer.
        .half_close(true)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_READ_BYTES);
    builder
}

/// How hyper is set up for HTTP/2. A client of which more than 20 requests were reset before they were looked at is cut
/// off, as hyper has it.
fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    builder
}

/// Answers one request.
async fn answer(mut exchange: Exchange<'_>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let answered = match request.uri().path() {
        "/api/v1/reports" => match request.headers().get(ORIGIN) {
            None => reports(&mut exchange, request).await,
            Some(origin) => {
                let origin = origin.clone();
                return reports_from(origin, &mut exchange, request).await;
            }
        },
        "/livez" => only_get(&request).map(|()| health::live(&exchange.connection.app)),
        "/readyz" | "/.well-known/healthcheck.json" | "/.well-known/healthcheck" => {
            only_get(&request).map(|()| health::ready(&exchange.connection.app))
        }
        "/openapi.yaml" => only_get(&request).map(|()| openapi::document()),
        _ => Err(Refusal::NotFound),
    };
    answered.unwrap_or_else(|refusal| refusal.to_response())
}

async fn reports(exchange: &mut Exchange<'_>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
    match *request.method() {
        Method::POST => ingest::post(exchange, request).await,
        _ => Err(Refusal::Method { allow: "POST" }),
    }
}

/// The same for a page of this origin.
async fn reports_from(
    origin: HeaderValue,
    exchange: &mut Exchange<'_>,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    if !exchange.connection.app.origins.allow(&origin) {
        exchange.throw_away(request.into_body());
        return Refusal::Origin.to_response();
    }
    let mut response = match cors::is_preflight(&request) {
        true => cors::preflight(request.headers()),
        false => reports(exchange, request).await.unwrap_or_else(|refusal| refusal.to_response()),
    };
    cors::share(&mut response, origin);
    response
}

fn only_get(request: &Request<Incoming>) -> Result<(), Refusal> {
    // hyper leaves out the body of an answer to HEAD.
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Refusal::Method { allow: "GET, HEAD" }),
    }
}

fn json(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // A browser that is led here must not take what a stranger may have put into a detail for a page.
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
