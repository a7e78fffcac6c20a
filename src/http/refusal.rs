//! Every way in which a request is turned away, and the one place where it becomes a status.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytesize::ByteSize;
use http_body_util::Full;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::encoding::ACCEPTED;
use super::idempotency::MAX_KEY_BYTES;
use super::json;
use crate::buffer::{NotKept, Refused};
use crate::report::{Fault, Invalid, MAX_DEPTH};

/// Seconds after which a client may try again.
const RETRY_AFTER_SECONDS: &str = "2";

/// The types to recommend, of all that are taken.
const ACCEPT_TYPES: &str = "application/json, application/x-ndjson, text/plain";

/// The forms that reports may come in.
const SHAPES: &str = "a JSON object, an array of objects or one object on each line";

/// Why a request gets no 2xx.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no such path")]
    NotFound,
    #[error("the method is not one of: {allow}")]
    Method { allow: &'static str },
    #[error("the origin is not one of CORS_ALLOW_ORIGINS")]
    Origin,
    #[error("the request has no write key")]
    KeyMissing,
    #[error("the write key is not one of WRITE_KEYS")]
    KeyWrong,
    #[error("more requests than {of}")]
    RateLimited { of: &'static str, wait: Duration },
    #[error("the idempotency key is not 1 to {MAX_KEY_BYTES} bytes long")]
    IdempotencyKey,
    /// What became of the request that this one repeats.
    #[error(transparent)]
    AsTheFirst(Arc<Refusal>),
    #[error("{}", essence.as_ref().map_or_else(
        || "the Content-Type is malformed".to_owned(),
        |essence| format!("the Content-Type is {essence}")
    ))]
    ContentType { essence: Option<String> },
    #[error("the body is a multipart form")]
    FormData,
    #[error("the charset is {charset:?}")]
    Charset { charset: String },
    #[error("the Content-Encoding is not one of: {ACCEPTED}")]
    ContentEncoding,
    #[error("the body can't be decoded as {encoding}: {reason}")]
    NotDecodable { encoding: &'static str, reason: String },
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("the report{} has a member {name:?}", element.map_or_else(String::new, |element| format!(" in element {element} of the batch")))]
    Stamped { name: String, element: Option<usize> },
    #[error("the body is longer than {max_bytes} bytes")]
    TooLarge { max_bytes: usize },
    #[error("the reports with their stamps are longer than {max_bytes} bytes")]
    StampedTooLarge { max_bytes: usize },
    #[error("the body did not come in time")]
    BodyTimeout,
    #[error("the body broke off: {0}")]
    BodyBroken(hyper::Error),
    #[error("too many bodies in flight")]
    TooManyInFlight,
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    NotKept(#[from] NotKept),
}

/// RFC 9457, as `application/problem+json`.
#[derive(Debug, Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
}

impl Refusal {
    pub(super) fn to_response(&self) -> Response<Full<Bytes>> {
        const BAD: StatusCode = StatusCode::BAD_REQUEST;
        const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        tracing::debug!(refusal = %self, "refused");
        let reason = self.to_string();
        let again = |why: &str| format!("{why}. Nothing of this request was kept: send it again in a moment.");
        // The name is part of the type URI, for programs: changing one is a breaking change.
        let (status, name, title, detail) = match self {
            Self::NotFound => (
                StatusCode::NOT_FOUND,
                "not-found",
                "No such path",
                "Send reports to /api/v1/reports with POST.".to_owned(),
            ),
            Self::Method { allow } => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Method not allowed",
                format!("Use {allow} with this path."),
            ),
            Self::Origin => (
                StatusCode::FORBIDDEN,
                "origin-not-allowed",
                "Origin not allowed",
                "Pages of this origin may not send reports: add it to CORS_ALLOW_ORIGINS on the server.".to_owned(),
            ),
            Self::KeyMissing => (
                StatusCode::UNAUTHORIZED,
                "key-missing",
                "Write key missing",
                format!("{reason}: send it as X-Write-Key, as Authorization: Bearer, or as ?key= in the URL."),
            ),
            Self::KeyWrong => (
                StatusCode::UNAUTHORIZED,
                "key-wrong",
                "Write key not valid",
                "The server does not know this write key, or not any more.".to_owned(),
            ),
            Self::RateLimited { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate-limited",
                "Too many requests",
                format!("{reason}. Nothing of this request was kept: send it again after Retry-After seconds."),
            ),
            Self::IdempotencyKey => (
                BAD,
                "idempotency-key",
                "Idempotency key not valid",
                format!("{reason}: send another one, such as a UUID, or none."),
            ),
            Self::AsTheFirst(first) => return first.to_response(),
            Self::ContentType { .. } => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-type",
                "Content-Type not supported",
                format!("{reason}: send JSON as {ACCEPT_TYPES}."),
            ),
            Self::FormData => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-type",
                "Content-Type not supported",
                format!("{reason}, as browsers make of a FormData: send a string, such as JSON.stringify returns."),
            ),
            Self::Charset { .. } => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-charset",
                "Charset not supported",
                format!("{reason}: encode the body as UTF-8."),
            ),
            Self::ContentEncoding => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-encoding",
                "Content-Encoding not supported",
                format!("{reason}: compress with one of these, once, or not at all."),
            ),
            Self::NotDecodable { .. } => (
                BAD,
                "not-decodable",
                "Body can't be decoded",
                format!("{reason}. Send all of what the compression returned, and nothing else."),
            ),
            Self::Invalid(Invalid { fault, .. }) => match fault {
                Fault::Empty => (BAD, "empty", "No report", format!("{reason}: send {SHAPES}.")),
                Fault::NotUtf8(_) => (BAD, "not-utf8", "Body is not UTF-8", format!("{reason}: encode it as UTF-8.")),
                Fault::NotJson { .. } => (
                    BAD,
                    "not-json",
                    "Body is not JSON",
                    format!("{reason}: send {SHAPES}, strictly as RFC 8259 has it."),
                ),
                Fault::NotAnObject { .. } => {
                    (BAD, "not-an-object", "Report is not an object", format!("{reason}: send {SHAPES}."))
                }
                Fault::TooDeep(_) => (
                    BAD,
                    "too-deep",
                    "Report is nested too deep",
                    format!("{reason}: nest at most {MAX_DEPTH} levels."),
                ),
            },
            Self::TooLarge { max_bytes } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "Body too large",
                format!(
                    "{reason} ({}): send shorter reports, or raise MAX_BODY_BYTES on the server.",
                    ByteSize(*max_bytes as u64)
                ),
            ),
            Self::Stamped { name, .. } => (
                BAD,
                "stamped",
                "Name is taken",
                format!("{reason}: the server adds one of that name itself, so give {name:?} another one."),
            ),
            Self::StampedTooLarge { max_bytes } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "Body too large",
                format!("{reason} ({}): send fewer reports at once.", ByteSize(*max_bytes as u64)),
            ),
            Self::BodyTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "body-timeout",
                "Body did not come in time",
                "The body took too long to come: send the whole of it without a pause.".to_owned(),
            ),
            Self::BodyBroken(_) => {
                (BAD, "body-broken", "Body broke off", format!("{reason}: send all that the header announces."))
            }
            Self::TooManyInFlight => (
                UNAVAILABLE,
                "too-many-in-flight",
                "Too busy",
                again("More is being received than there is memory for"),
            ),
            Self::Refused(Refused::DiskFull) => {
                (UNAVAILABLE, "disk-full", "Disk full", again("There is no room on the server's disk"))
            }
            Self::Refused(Refused::Full) => {
                (UNAVAILABLE, "buffer-full", "Too busy", again("Reports come faster than they can be written to disk"))
            }
            Self::NotKept(_) => (
                UNAVAILABLE,
                "not-kept",
                "Report could not be kept",
                "The report could not be written to the journal. Send it again in a moment.".to_owned(),
            ),
            Self::Refused(Refused::Closed) => {
                (UNAVAILABLE, "stopping", "Server is stopping", again("This server is stopping"))
            }
        };
        let problem = Problem {
            r#type: format!("tag:netwatch-server,2026:{name}"),
            title,
            status: status.as_u16(),
            detail: &detail,
        };
        let body = serde_json::to_vec(&problem).expect("strings and a number are JSON");
        let mut response = json(status, "application/problem+json", body);
        let header = match self {
            Self::Method { allow } => Some((ALLOW, HeaderValue::from_static(allow))),
            Self::KeyMissing | Self::KeyWrong => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            // Rounded up: a client that waits as long finds a token.
            Self::RateLimited { wait, .. } => Some((RETRY_AFTER, (wait.as_secs() + 1).into())),
            Self::ContentType { .. } | Self::FormData => Some((ACCEPT, HeaderValue::from_static(ACCEPT_TYPES))),
            Self::ContentEncoding => Some((ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED))),
            _ if status == UNAVAILABLE => Some((RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS))),
            _ => None,
        };
        response.headers_mut().extend(header);
        response
    }
}
