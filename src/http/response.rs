//! The common form of responses.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

/// The trailer that says whether an answer is complete.
pub(super) const NETWATCH_STATUS: HeaderName = HeaderName::from_static("netwatch-status");

/// The body of a response.
#[derive(Debug)]
pub(super) enum ResponseBody {
    /// All bytes are known. Nothing is allocated for it.
    Whole(Full<Bytes>),
    /// The body is made while it is sent.
    Streamed(StreamedBody),
}

/// The receiving end of a body that is made while it is sent. Dropping it tells the other end that the client is gone.
#[derive(Debug)]
pub(super) struct StreamedBody {
    pub(super) parts: mpsc::Receiver<Part>,
    /// The length, if it is known.
    pub(super) bytes: Option<u64>,
    pub(super) is_ended: bool,
}

/// A part of a streamed body.
#[derive(Debug)]
pub(super) enum Part {
    Data(Bytes),
    /// The end, with the value of the trailer [`NETWATCH_STATUS`]. A body without this part is aborted: the client sees
    /// that it is incomplete.
    End(Option<HeaderValue>),
}

impl Default for ResponseBody {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl StreamedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.parts.poll_recv(cx)) {
            Some(Part::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Part::End(status)) => {
                self.is_ended = true;
                status.map(|status| Ok(Frame::trailers(HeaderMap::from_iter([(NETWATCH_STATUS, status)]))))
            }
            None => Some(Err(io::ErrorKind::ConnectionAborted.into())),
        })
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Streamed(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Streamed(body) => body.is_ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Streamed(body) => body.bytes.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

/// A response with these bytes as its body.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Response<ResponseBody> {
    Response::new(ResponseBody::Whole(Full::new(bytes.into())))
}

/// A response with a text body. The body should end with a line break, so that a shell prompt starts on a new line.
pub(super) fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = whole(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Details of errors can contain text from clients. A browser must not render them as a page.
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A response with a JSON body.
pub(super) fn json(status: StatusCode, content_type: &'static str, body: &impl Serialize) -> Response<ResponseBody> {
    let mut bytes = serde_json::to_vec(body).expect("strings and numbers can be serialized");
    bytes.push(b'\n');
    text(status, content_type, bytes)
}
