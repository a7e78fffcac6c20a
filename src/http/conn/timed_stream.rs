//! The socket of a connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connection::Connection;
use super::deadlines::Phase;

/// A socket that tells the deadlines of its connection when bytes arrive.
#[derive(Debug)]
pub(super) struct TimedStream {
    pub(super) stream: TcpStream,
    pub(super) connection: Arc<Connection>,
}

impl TimedStream {
    /// Whether the client has closed the connection during a streamed answer. A client that has only closed its sending
    /// side looks the same, and also counts. hyper does not read meanwhile, but it flushes each time it is polled.
    fn is_abandoned(&self, cx: &mut Context<'_>) -> bool {
        self.connection.deadlines.phase() == Phase::Streaming
            && match self.poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
                Poll::Ready(Ok(bytes)) => bytes == 0,
                Poll::Ready(Err(_)) => true,
                Poll::Pending => false,
            }
    }

    /// Reads the received bytes without consuming them.
    pub(super) fn poll_peek(&self, cx: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        self.stream.poll_peek(cx, bytes)
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.connection.deadlines.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_abandoned(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    // Answers are short. Copying head and body into one write costs less than a vectored write.
    fn is_write_vectored(&self) -> bool {
        false
    }
}
