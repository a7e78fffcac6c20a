//! `GET /api/v1/files` and `GET /api/v1/files/NAME`: the list of report files, and the files themselves.
//!
//! Report files never change, so clients may cache them forever. Threads for blocking work read them in pieces: request
//! threads never wait for the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use headers::{ETag, HeaderMapExt, IfModifiedSince, IfNoneMatch, IfRange, LastModified};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap,
    HeaderValue, RANGE,
};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use super::parameters::Parameters;
use crate::http::app::App;
use crate::http::conn::{RequestContext, StreamWriter};
use crate::http::error::ApiError;
use crate::http::response::{NETWATCH_STATUS, ResponseBody, json};
use crate::store::{BatchId, CatalogEntry};

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 64 * 1024;

const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 10_000;

#[derive(Debug, Serialize)]
struct Listing {
    files: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    /// Time of the first report.
    first: Option<Timestamp>,
    /// Time of the last report.
    last: Option<Timestamp>,
    bytes: u64,
}

impl From<CatalogEntry> for Listed {
    fn from(CatalogEntry { id, bytes, modified }: CatalogEntry) -> Self {
        let time = |time: SystemTime| Timestamp::try_from(time).ok();
        Self { name: id.report_file(), first: time(id.first()), last: time(modified), bytes }
    }
}

/// The list of report files.
pub(super) fn list(app: &App, query: Option<&str>) -> Result<Response<ResponseBody>, ApiError> {
    let parameters = Parameters::parse(query, &["since", "until", "order", "limit"])?;
    let (since, until) = (parameters.time("since")?, parameters.time("until")?);
    let limit = parameters.count("limit", DEFAULT_LIMIT, MAX_LIMIT)?;
    let catalog = app.store.catalog();
    let files = match parameters.word("order", &[("asc", false), ("desc", true)])? {
        false => catalog.files(since, until),
        true => catalog.files_newest_first(since, until),
    };
    let files = files.take(limit).map(Listed::from).collect();
    let mut response = json(StatusCode::OK, "application/json", &Listing { files });
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let status = match catalog.totals().is_loaded {
        true => "complete",
        false => "incomplete; the list of the files is being loaded",
    };
    headers.insert(NETWATCH_STATUS, HeaderValue::from_static(status));
    Ok(response)
}

/// One report file, or a part of it.
pub(super) async fn get(
    context: &RequestContext<'_>,
    request: &Request<Incoming>,
    name: &str,
) -> Result<Response<ResponseBody>, ApiError> {
    // Only names that the server gives are opened. They contain no separator, so no other directory can be reached.
    let id = BatchId::of_report_file(name).ok_or(ApiError::NoSuchFile)?;
    Parameters::parse(request.uri().query(), &[])?;
    let app = &context.connection.app;
    let permit = Arc::clone(&app.downloads).try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::TooManyQueries { limit: "as many downloads as the server permits" })?;
    context.start_stream();
    let store = Arc::clone(&app.store);
    let open = spawn_blocking(move || {
        let file = store.open_report_file(&id)?;
        let metadata = file.metadata()?;
        io::Result::Ok((file, metadata.len(), metadata.modified()?))
    });
    let opened = tokio::select! {
        opened = open => opened.map_err(io::Error::other).and_then(|opened| opened),
        () = context.left() => return Err(ApiError::Leaving),
    };
    let (file, bytes, modified) = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ApiError::NoSuchFile),
        opened => opened.map_err(ApiError::Internal)?,
    };
    let etag: ETag = format!("\"{id}-{bytes}\"").parse().expect("an id needs no escapes");
    let modified = LastModified::from(modified);

    let asked = request.headers();
    let mut response = Response::<ResponseBody>::default();
    let headers = response.headers_mut();
    headers.typed_insert(etag.clone());
    headers.typed_insert(modified);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    if is_known(asked, &etag, modified) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let wanted = match asked.typed_get::<IfRange>() {
        Some(condition) if condition.is_modified(Some(&etag), Some(&modified)) => Wanted::All,
        _ => Wanted::of(asked, bytes),
    };
    let (first, end) = match wanted {
        Wanted::All => (0, bytes),
        Wanted::Part { first, end } => {
            let range = format!("bytes {first}-{}/{bytes}", end - 1);
            headers.insert(CONTENT_RANGE, range.try_into().expect("it is printable ASCII"));
            (first, end)
        }
        Wanted::Nothing => return Err(ApiError::Range { bytes }),
    };
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/zstd"));
    headers.insert(CONTENT_LENGTH, (end - first).into());
    let disposition = format!("attachment; filename=\"{}\"", id.report_file());
    headers.insert(CONTENT_DISPOSITION, disposition.try_into().expect("a file name is printable ASCII"));
    if matches!(wanted, Wanted::Part { .. }) {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    if request.method() != Method::HEAD {
        let (writer, body) = context.stream(Some(end - first));
        *response.body_mut() = body;
        tokio::spawn(send(Arc::new(file), first, end, writer, permit));
    }
    Ok(response)
}

/// Sends the bytes of a file from `offset` to `end`.
async fn send(file: Arc<File>, mut offset: u64, end: u64, writer: StreamWriter, _permit: OwnedSemaphorePermit) {
    while offset < end {
        let (file, bytes) = (Arc::clone(&file), PIECE_BYTES.min(end - offset) as usize);
        let read = spawn_blocking(move || {
            let mut piece = vec![0; bytes];
            file.read_exact_at(&mut piece, offset).map(|()| Bytes::from(piece))
        });
        let piece = match read.await.map_err(io::Error::other) {
            Ok(Ok(piece)) => piece,
            // The client sees that bytes are missing, because the writer is dropped.
            Ok(Err(error)) | Err(error) => return tracing::error!(%error, "can't read a report file"),
        };
        offset += piece.len() as u64;
        if writer.send(piece).await.is_err() {
            return;
        }
    }
    writer.finish(None).await;
}

/// Whether the client has the file already.
fn is_known(asked: &HeaderMap, etag: &ETag, modified: LastModified) -> bool {
    match asked.typed_get::<IfNoneMatch>() {
        Some(condition) => !condition.precondition_passes(etag),
        None => asked.typed_get::<IfModifiedSince>().is_some_and(|since| !since.is_modified(modified.into())),
    }
}

/// Which bytes the client wants.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// From `first`, and before `end`.
    Part {
        first: u64,
        end: u64,
    },
    /// The range is beyond the end of the file.
    Nothing,
}

impl Wanted {
    /// The range of a request for a file of this length. The server may ignore a range (RFC 9110, section 14.2). It
    /// ignores several ranges, and what it does not understand.
    fn of(asked: &HeaderMap, bytes: u64) -> Self {
        let range = || {
            let (first, last) = asked.get(RANGE)?.to_str().ok()?.trim().strip_prefix("bytes=")?.split_once('-')?;
            let number = |text: &str| {
                let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
                is_number.then(|| if text.is_empty() { None } else { Some(text.parse().unwrap_or(u64::MAX)) })
            };
            Some((number(first)?, number(last)?))
        };
        match range() {
            None | Some((None, None)) => Self::All,
            Some((Some(first), Some(last))) if first > last => Self::All,
            Some((Some(first), _)) if first >= bytes => Self::Nothing,
            Some((Some(first), last)) => {
                Self::Part { first, end: last.map_or(bytes, |last| bytes.min(last.saturating_add(1))) }
            }
            Some((None, Some(count))) if count == 0 || bytes == 0 => Self::Nothing,
            Some((None, Some(count))) => Self::Part { first: bytes.saturating_sub(count), end: bytes },
        }
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_as_in_rfc_9110() {
        for (range, wanted) in [
            ("bytes=0-0", Wanted::Part { first: 0, end: 1 }),
            ("bytes=0-499", Wanted::Part { first: 0, end: 500 }),
            ("bytes=500-", Wanted::Part { first: 500, end: 1000 }),
            ("bytes=-1", Wanted::Part { first: 999, end: 1000 }),
            ("bytes=-5000", Wanted::Part { first: 0, end: 1000 }),
            ("bytes=999-99999999999999999999999", Wanted::Part { first: 999, end: 1000 }),
            ("bytes=1000-", Wanted::Nothing),
            ("bytes=99999999999999999999999-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=5-4", Wanted::All),
            ("bytes=-", Wanted::All),
            ("bytes=0-1,5-6", Wanted::All),
            ("bytes=+1-2", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("lines=0-1", Wanted::All),
        ] {
            let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static(range))]);
            assert_eq!(Wanted::of(&headers, 1000), wanted, "{range}");
        }
        assert_eq!(Wanted::of(&HeaderMap::new(), 1000), Wanted::All);
    }
}
