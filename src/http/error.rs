//! The errors of the API, and the one place that maps them to statuses.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, ALLOW, CONTENT_RANGE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::response::{ResponseBody, json};
use crate::buffer::{AppendError, NotDurable};
use crate::report::{Fault, Invalid, MAX_DEPTH};

/// Seconds after which a client may retry.
const RETRY_AFTER_SECONDS: &str = "2";

/// The recommended types. More are accepted.
const ACCEPT_TYPES: &str = "application/json, application/x-ndjson, text/plain";

/// The forms of a body.
const FORMS: &str = "a JSON object, an array of objects or one object on each line";

/// The names of all problem types, which the log counts. Changing a name is a breaking change.
pub(super) const PROBLEMS: [&str; 34] = [
    "internal",
    "admin-closed",
    "admin-token-missing",
    "admin-token-wrong",
    "empty",
    "not-utf8",
    "not-json",
    "not-an-object",
    "too-deep",
    "body-broken",
    "too-many-pieces",
    "idempotency-key",
    "not-decodable",
    "stamped",
    "key-missing",
    "key-wrong",
    "origin-not-allowed",
    "not-found",
    "method-not-allowed",
    "body-timeout",
    "too-large",
    "unsupported-type",
    "unsupported-charset",
    "unsupported-encoding",
    "rate-limited",
    "buffer-full",
    "disk-full",
    "not-durable",
    "too-many-in-flight",
    "stopping",
    "bad-query",
    "too-many-queries",
    "query-failed",
    "range-not-satisfiable",
];

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("there is no such path")]
    NotFound,
    #[error("the method is not one of: {allow}")]
    Method { allow: &'static str },
    #[error("the origin is not one of CORS_ALLOW_ORIGINS")]
    Origin,
    #[error("the request has no write key")]
    KeyMissing,
    #[error("the write key is not one of WRITE_KEYS")]
    KeyWrong,
    #[error("more requests than {limit}")]
    RateLimited { limit: &'static str, wait: Duration },
    #[error("the idempotency key is not 1 to {max_bytes} bytes long")]
    IdempotencyKey { max_bytes: usize },
    /// The error of the request that this one repeats.
    #[error(transparent)]
    SameAsFirst(Arc<ApiError>),
    #[error("{}", essence.as_ref().map_or_else(
        || "the Content-Type is malformed".to_owned(),
        |essence| format!("the Content-Type is {essence}")
    ))]
    ContentType { essence: Option<String> },
    #[error("the body is a multipart form")]
    FormData,
    #[error("the charset is {charset:?}")]
    Charset { charset: String },
    #[error("the Content-Encoding is not one of: {accepted}")]
    ContentEncoding { accepted: &'static str },
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
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("the body is incomplete: {0}")]
    BodyBroken(hyper::Error),
    #[error("the body has more than 16,384 pieces, of less than {min_bytes} bytes on average")]
    TooManyPieces { min_bytes: usize },
    #[error("too many bodies in flight")]
    TooManyInFlight,
    #[error("the server can't answer: {0}")]
    Internal(std::io::Error),
    #[error("there is no admin token")]
    AdminClosed,
    #[error("the request has no admin token")]
    AdminTokenMissing(Challenge),
    #[error("the admin token is wrong")]
    AdminTokenWrong(Challenge),
    #[error("a page of another origin may not do this")]
    OtherOrigin,
    #[error("{0}")]
    BadQuery(String),
    #[error("{limit} are running")]
    TooManyQueries { limit: &'static str },
    #[error("{0}")]
    QueryFailed(String),
    #[error("the range is not within the {bytes} bytes of the file")]
    Range { bytes: u64 },
    #[error("there is no such report file")]
    NoSuchFile,
    #[error("the server is shutting down")]
    Leaving,
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    NotDurable(#[from] NotDurable),
}

/// How a client can present the admin token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Challenge {
    /// As the password of any user. A browser asks for it.
    Password,
    /// As a bearer token. A browser asks for nothing: the page does that.
    Token,
}

/// A problem (RFC 9457), as `application/problem+json`.
#[derive(Debug, Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
}

impl ApiError {
    /// Status, name of the problem type, title and detail.
    fn problem(&self) -> (StatusCode, &'static str, &'static str, String) {
        const BAD: StatusCode = StatusCode::BAD_REQUEST;
        const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        let reason = self.to_string();
        let retry = |why: &str| format!("{why}. Nothing was stored. Send the request again in a moment.");
        match self {
            Self::NotFound => (
                StatusCode::NOT_FOUND,
                "not-found",
                "No such path",
                "Send reports to /api/v1/reports with POST. docs/http-api.md lists all paths.".to_owned(),
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
                "Pages of this origin may not send reports. Add the origin to CORS_ALLOW_ORIGINS on the server."
                    .to_owned(),
            ),
            Self::Internal(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Internal error",
                "The server could not make the answer. Its log may say more.".to_owned(),
            ),
            Self::AdminClosed => (
                StatusCode::FORBIDDEN,
                "admin-closed",
                "Reading is not enabled",
                "Set ADMIN_TOKEN or ADMIN_TOKEN_FILE on the server to enable this path.".to_owned(),
            ),
            Self::AdminTokenMissing(_) => (
                StatusCode::UNAUTHORIZED,
                "admin-token-missing",
                "Admin token missing",
                format!("{reason}: send ADMIN_TOKEN as Authorization: Bearer, or as the password of Basic."),
            ),
            Self::AdminTokenWrong(_) => (
                StatusCode::UNAUTHORIZED,
                "admin-token-wrong",
                "Admin token not valid",
                "The server does not accept this token. Write keys do not permit reading.".to_owned(),
            ),
            Self::OtherOrigin => (
                StatusCode::FORBIDDEN,
                "origin-not-allowed",
                "Origin not allowed",
                format!("{reason}: open the page of the server itself."),
            ),
            Self::BadQuery(_) => (BAD, "bad-query", "Query not valid", reason),
            Self::TooManyQueries { .. } => (
                UNAVAILABLE,
                "too-many-queries",
                "Too many queries",
                format!("{reason} at the same time. Send the request again in a moment."),
            ),
            Self::QueryFailed(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "query-failed",
                "Query failed",
                format!("The query did not finish: {reason}."),
            ),
            Self::Range { .. } => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range-not-satisfiable",
                "Range not satisfiable",
                format!("{reason}."),
            ),
            Self::NoSuchFile => (
                StatusCode::NOT_FOUND,
                "not-found",
                "No such file",
                "There is no report file with this name. It may have been deleted. /api/v1/files lists them."
                    .to_owned(),
            ),
            Self::Leaving => (
                UNAVAILABLE,
                "stopping",
                "Server is shutting down",
                format!("{reason}. Send the request again in a moment."),
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
                "The server does not accept this write key. It may have been removed.".to_owned(),
            ),
            Self::RateLimited { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate-limited",
                "Too many requests",
                format!("{reason}. Nothing was stored. Send the request again after Retry-After seconds."),
            ),
            Self::IdempotencyKey { .. } => (
                BAD,
                "idempotency-key",
                "Idempotency key not valid",
                format!("{reason}: send another key, such as a UUID, or none."),
            ),
            Self::SameAsFirst(first) => first.problem(),
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
                format!(
                    "{reason}, which browsers send for a FormData object: send a string, such as the result of JSON.stringify."
                ),
            ),
            Self::Charset { .. } => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-charset",
                "Charset not supported",
                format!("{reason}: encode the body as UTF-8."),
            ),
            Self::ContentEncoding { .. } => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-encoding",
                "Content-Encoding not supported",
                format!("{reason}: use one of these, once, or no encoding."),
            ),
            Self::NotDecodable { .. } => (
                BAD,
                "not-decodable",
                "Body can't be decoded",
                format!("{reason}. Send the complete output of the encoder, and nothing else."),
            ),
            Self::Invalid(Invalid { fault, .. }) => match fault {
                Fault::Empty => (BAD, "empty", "No report", format!("{reason}: send {FORMS}.")),
                Fault::NotUtf8(_) => (BAD, "not-utf8", "Body is not UTF-8", format!("{reason}: encode it as UTF-8.")),
                Fault::NotJson { .. } => (
                    BAD,
                    "not-json",
                    "Body is not JSON",
                    format!("{reason}: send {FORMS}, valid according to RFC 8259."),
                ),
                Fault::NotAnObject { .. } => {
                    (BAD, "not-an-object", "Report is not an object", format!("{reason}: send {FORMS}."))
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
                "Member name is reserved",
                format!("{reason}, which the server adds itself: rename {name:?}."),
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
                "Body did not arrive in time",
                "The body took too long to arrive. Send it without pauses.".to_owned(),
            ),
            Self::BodyBroken(_) => (
                BAD,
                "body-broken",
                "Body is incomplete",
                format!("{reason}: send all bytes that the header announces."),
            ),
            Self::TooManyPieces { .. } => (
                BAD,
                "too-many-pieces",
                "Body has too many pieces",
                format!("{reason}: collect the body before you send it, or send longer chunks."),
            ),
            Self::TooManyInFlight => {
                (UNAVAILABLE, "too-many-in-flight", "Too busy", retry("The server has no memory for more bodies"))
            }
            Self::Append(AppendError::DiskFull) => {
                (UNAVAILABLE, "disk-full", "Disk full", retry("The server's disk is full"))
            }
            Self::Append(AppendError::Full) => {
                (UNAVAILABLE, "buffer-full", "Too busy", retry("Reports arrive faster than the disk can store them"))
            }
            Self::NotDurable(_) => (
                UNAVAILABLE,
                "not-durable",
                "Report could not be made durable",
                "The report could not be written to disk. It may be stored later. Send it again in a moment."
                    .to_owned(),
            ),
            Self::Append(AppendError::Closed) => {
                (UNAVAILABLE, "stopping", "Server is shutting down", retry("The server is shutting down"))
            }
        }
    }

    /// The error itself, or the error of the request that this one repeats.
    fn root(&self) -> &Self {
        match self {
            Self::SameAsFirst(first) => first.root(),
            error => error,
        }
    }

    /// The answer, and the name of the problem type.
    pub(super) fn to_response(&self) -> (Response<ResponseBody>, &'static str) {
        let (status, name, title, detail) = self.problem();
        let problem = Problem {
            r#type: format!("tag:netwatch-server,2026:{name}"),
            title,
            status: status.as_u16(),
            detail: &detail,
        };
        let mut response = json(status, "application/problem+json", &problem);
        let header = match self.root() {
            Self::Method { allow } => Some((ALLOW, HeaderValue::from_static(allow))),
            Self::KeyMissing | Self::KeyWrong => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            // Browsers ask for a password then.
            Self::AdminTokenMissing(challenge) | Self::AdminTokenWrong(challenge) => {
                let challenge = match challenge {
                    Challenge::Password => "Basic realm=\"netwatch-server\"",
                    Challenge::Token => "Bearer realm=\"netwatch-server\"",
                };
                Some((WWW_AUTHENTICATE, HeaderValue::from_static(challenge)))
            }
            Self::Range { bytes } => {
                let range = format!("bytes */{bytes}");
                Some((CONTENT_RANGE, range.try_into().expect("it is printable ASCII")))
            }
            // Rounded up, so that there is a token by then.
            Self::RateLimited { wait, .. } => Some((RETRY_AFTER, (wait.as_secs() + 1).into())),
            Self::ContentType { .. } | Self::FormData => Some((ACCEPT, HeaderValue::from_static(ACCEPT_TYPES))),
            Self::ContentEncoding { accepted } => Some((ACCEPT_ENCODING, HeaderValue::from_static(accepted))),
            _ if status == StatusCode::SERVICE_UNAVAILABLE => {
                Some((RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS)))
            }
            _ => None,
        };
        response.headers_mut().extend(header);
        (response, name)
    }
}
