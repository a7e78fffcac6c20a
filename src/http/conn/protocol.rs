//! HTTP/1.1 and HTTP/2 without TLS on one port. The first bytes of a connection decide which one it is.
//!
//! hyper-util offers the same as `server::conn::auto`. But that does not report the protocol, on which the timeouts
//! depend, and it cannot limit the length of a header.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::{http1, http2};
use hyper::service::HttpService;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::ReadBuf;

use super::request::AnswerBody;
use super::streams::Reservation;
use super::timed_stream::TimedStream;

/// Maximum size of the request line and headers, in bytes. A longer header is answered with 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Maximum number of bytes that are read from one connection at once. A longer body arrives in several pieces, which
/// are collected in memory that counts towards `INFLIGHT_BYTES`.
const MAX_READ_BYTES: usize = 32 * 1024;

/// Bytes that a client may send on an HTTP/2 connection, or for one of its bodies, before the server has read them.
/// hyper holds them in memory.
const WINDOW_BYTES: u32 = 64 * 1024 - 1;

/// Maximum number of requests that the client has reset, and that the server has not handled yet. Beyond that, hyper
/// closes the connection.
const MAX_RESET_REQUESTS: usize = 8;

/// The first bytes of every HTTP/2 connection (RFC 9113, section 3.4). No HTTP/1 request begins with them.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Fewer bytes could also be the beginning of an HTTP/1 method.
const MIN_PREFACE_BYTES: usize = b"PRI ".len();

type Io = TokioIo<TimedStream>;

/// hyper's HTTP/1 settings. Public for the benchmark that compares the server with a bare hyper server.
#[must_use]
pub fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // `deadlines` limits the time, without a timer per request.
        .header_read_timeout(None)
        // A client that has closed its sending side still waits for the answer.
        .half_close(true)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_READ_BYTES);
    builder
}

/// hyper's HTTP/2 settings.
fn http2_builder(max_streams: u32) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_concurrent_streams(max_streams)
        .max_pending_accept_reset_streams(MAX_RESET_REQUESTS)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    builder
}

/// hyper's state machine for one connection.
#[allow(clippy::large_enum_variant, reason = "nearly all connections become the large one")]
pub(super) enum Protocol<S>
where
    S: HttpService<Incoming, ResBody = AnswerBody>,
{
    /// No byte has arrived yet. `None` if the connection is closed before that.
    Unknown(Option<(TimedStream, S)>),
    /// HTTP/2: the connection reserves its streams, and waits if there is none. `None` if it is closed before that.
    Reserving(Option<(TimedStream, S)>, Pin<Box<dyn Future<Output = Reservation> + Send>>),
    Http1(http1::Connection<Io, S>),
    Http2(Pin<Box<http2::Connection<Io, S, TokioExecutor>>>, Reservation),
}

impl<S> Protocol<S>
where
    S: HttpService<Incoming, ResBody = AnswerBody> + Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    TokioExecutor: Http2ServerConnExec<S::Future, AnswerBody>,
{
    pub(super) fn new(stream: TimedStream, service: S) -> Self {
        Self::Unknown(Some((stream, service)))
    }

    /// Resolves when the connection has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        loop {
            return match self {
                Self::Http1(connection) => Pin::new(connection).poll(cx).map_err(|error| error.to_string()),
                Self::Http2(connection, _) => connection.as_mut().poll(cx).map_err(|error| error.to_string()),
                Self::Reserving(before, reserving) => {
                    if before.is_none() {
                        return Poll::Ready(Ok(()));
                    }
                    let reservation = ready!(reserving.as_mut().poll(cx));
                    let (stream, service) = before.take().expect("checked above");
                    stream.connection.deadlines.is_http2(reservation.count());
                    let builder = http2_builder(reservation.count());
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    *self = Self::Http2(Box::pin(connection), reservation);
                    continue;
                }
                Self::Unknown(before) => {
                    let Some((stream, _)) = before else { return Poll::Ready(Ok(())) };
                    let begins = ready!(begins_with_preface(stream, cx));
                    let (stream, service) = before.take().expect("checked above");
                    *self = match begins {
                        Ok(false) => Self::Http1(http1_builder().serve_connection(TokioIo::new(stream), service)),
                        Ok(true) => {
                            // A client that has sent its request does not wait forever.
                            stream.connection.deadlines.received();
                            let streams = Arc::clone(&stream.connection.app.streams);
                            Self::Reserving(Some((stream, service)), Box::pin(streams.reserve()))
                        }
                        Err(error) => return Poll::Ready(Err(error.to_string())),
                    };
                    continue;
                }
            };
        }
    }

    /// HTTP/2: resolves once, when other connections need the streams of this one.
    pub(super) fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http2(_, reservation) => reservation.poll_leave(cx),
            Self::Unknown(_) | Self::Reserving(..) | Self::Http1(_) => Poll::Pending,
        }
    }

    /// Finishes the current requests and accepts no others.
    pub(super) fn graceful_shutdown(&mut self) {
        match self {
            Self::Unknown(before) | Self::Reserving(before, _) => *before = None,
            Self::Http1(connection) => Pin::new(connection).graceful_shutdown(),
            Self::Http2(connection, _) => connection.as_mut().graceful_shutdown(),
        }
    }
}

/// Does not consume the bytes. Fewer bytes than [`MIN_PREFACE_BYTES`] count as HTTP/1: no client sends the preface in
/// such small pieces.
fn begins_with_preface(stream: &TimedStream, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
    let mut bytes = [0; PREFACE.len()];
    let mut bytes = ReadBuf::new(&mut bytes);
    ready!(stream.poll_peek(cx, &mut bytes))?;
    let begin = bytes.filled();
    Poll::Ready(Ok(begin.len() >= MIN_PREFACE_BYTES && PREFACE.starts_with(begin)))
}
