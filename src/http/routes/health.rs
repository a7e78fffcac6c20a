//! Health endpoints: is the process alive, and should it receive requests?

use std::time::Duration;

use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::http::app::App;
use crate::http::response::{ResponseBody, json};

/// The time after which a write to a journal counts as stalled. Usually it takes microseconds, and a sync milliseconds.
const STALLED: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
struct Health {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    version: &'static str,
    /// Whole seconds.
    uptime: u64,
}

/// 200 as long as the process can answer.
pub(super) fn live(app: &App) -> Response<ResponseBody> {
    health(app, None)
}

/// 200 if the next report would be accepted. Otherwise 503 with the reason.
pub(super) fn ready(app: &App) -> Response<ResponseBody> {
    health(app, not_ready(app))
}

/// The most specific reason first: a disk error also fills the buffer.
fn not_ready(app: &App) -> Option<String> {
    if app.drain.is_announced() {
        Some("the server is shutting down".to_owned())
    } else if app.buffer.is_disk_full() {
        Some("the disk is full".to_owned())
    } else if app.buffer.commit_wait() >= STALLED {
        Some(format!("the disk does not respond: a write waits for {} s", app.buffer.commit_wait().as_secs()))
    } else if let Some(error) = app.store.health().error() {
        Some(error)
    } else if !app.buffer.has_capacity() {
        Some("the buffer is full: reports arrive faster than the disk can store them".to_owned())
    } else {
        None
    }
}

fn health(app: &App, reason: Option<String>) -> Response<ResponseBody> {
    let (code, status) = match reason {
        None => (StatusCode::OK, "ok"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    let health = Health { status, reason, version: env!("CARGO_PKG_VERSION"), uptime: app.started.elapsed().as_secs() };
    let mut response = json(code, "application/json", &health);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
