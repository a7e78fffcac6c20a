//! Is the process alive, and should it be sent requests?

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::{App, json};

#[derive(Debug, Serialize)]
struct Health {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    version: &'static str,
    /// Whole seconds.
    uptime: u64,
}

/// 200 as long as the process can answer at all.
pub(super) fn live(app: &App) -> Response<Full<Bytes>> {
    health(app, None)
}

/// 200 when a report would be taken, 503 with the reason when not.
pub(super) fn ready(app: &App) -> Response<Full<Bytes>> {
    health(app, not_ready(app))
}

fn not_ready(app: &App) -> Option<&'static str> {
    if app.is_leaving() {
        Some("the server is stopping")
    } else if app.buffer.is_disk_full() {
        Some("the disk is full")
    } else if !app.buffer.has_room() {
        Some("the buffer is full: reports come faster than they can be written to disk")
    } else {
        None
    }
}

fn health(app: &App, reason: Option<&'static str>) -> Response<Full<Bytes>> {
    let (code, status) = match reason {
        None => (StatusCode::OK, "ok"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    let health = Health { status, reason, version: env!("CARGO_PKG_VERSION"), uptime: app.started.elapsed().as_secs() };
    let body = serde_json::to_vec(&health).expect("strings and a number are JSON");
    let mut response = json(code, "application/json", body);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
