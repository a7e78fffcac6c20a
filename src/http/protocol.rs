//! HTTP/1.1 or HTTP/2, both without TLS on the one port: the first bytes of a connection tell.
//!
//! hyper-util has the same as `server::conn::auto`. That does not tell which of the two it is, and their time-outs are
//! not the same; nor does it bound the length of a header.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::{http1, http2};
use hyper::service::HttpService;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::ReadBuf;

use super::connection::{Answer, Watched};
use super::{http1_builder, http2_builder};

/// No HTTP/1 request begins so, and every HTTP/2 connection does (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Fewer bytes of it might be those of a method.
const MIN_PREFACE_BYTES: usize = b"PRI ".len();

type Io = TokioIo<Watched>;

/// hyper's state machine for one connection.
#[allow(clippy::large_enum_variant, reason = "nearly all connections become the large one")]
pub(super) enum Protocol<S>
where
    S: HttpService<Incoming, ResBody = Answer>,
{
    /// Nothing has come yet. None once nothing will.
    Unknown(Option<(Watched, S)>),
    Http1(http1::Connection<Io, S>),
    Http2(Pin<Box<http2::Connection<Io, S, TokioExecutor>>>),
}

impl<S> Protocol<S>
where
    S: HttpService<Incoming, ResBody = Answer> + Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    TokioExecutor: Http2ServerConnExec<S::Future, Answer>,
{
    pub(super) fn new(stream: Watched, service: S) -> Self {
        Self::Unknown(Some((stream, service)))
    }

    /// Ready when the connection has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        loop {
            return match self {
                Self::Http1(connection) => Pin::new(connection).poll(cx).map_err(|error| error.to_string()),
                Self::Http2(connection) => connection.as_mut().poll(cx).map_err(|error| error.to_string()),
                Self::Unknown(before) => {
                    let Some((stream, _)) = before else { return Poll::Ready(Ok(())) };
                    let begins = ready!(begins_with_preface(stream, cx));
                    let (stream, service) = before.take().expect("it was there just now");
                    *self = match begins {
                        Ok(false) => Self::Http1(http1_builder().serve_connection(TokioIo::new(stream), service)),
                        Ok(true) => {
                            stream.speaks_http2();
                            let connection = http2_builder().serve_connection(TokioIo::new(stream), service);
                            Self::Http2(Box::pin(connection))
                        }
                        Err(error) => return Poll::Ready(Err(error.to_string())),
                    };
                    continue;
                }
            };
        }
    }

    /// Lets it finish what it is at.
    pub(super) fn graceful_shutdown(&mut self) {
        match self {
            Self::Unknown(before) => *before = None,
            Self::Http1(connection) => Pin::new(connection).graceful_shutdown(),
            Self::Http2(connection) => connection.as_mut().graceful_shutdown(),
        }
    }
}

/// Leaves the bytes where they are. A few that might become the preface are taken for HTTP/1: nobody sends it in such
/// small pieces.
fn begins_with_preface(stream: &Watched, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
    let mut bytes = [0; PREFACE.len()];
    let mut bytes = ReadBuf::new(&mut bytes);
    ready!(stream.poll_peek(cx, &mut bytes))?;
    let begin = bytes.filled();
    Poll::Ready(Ok(begin.len() >= MIN_PREFACE_BYTES && PREFACE.starts_with(begin)))
}
