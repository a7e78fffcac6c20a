//! The sending end of a body that is made while it is sent.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::HeaderValue;
use tokio::select;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connection::Connection;
use crate::http::response::{Part, ResponseBody, StreamedBody};

/// Parts that wait for the client, beside the one that hyper holds. One is enough to read ahead.
const WAITING_PARTS: usize = 1;

/// The sending end of a streamed body. Dropping it aborts the body, and the client sees that the body is incomplete.
#[derive(Debug)]
pub(in crate::http) struct StreamWriter {
    parts: mpsc::Sender<Part>,
    connection: Arc<Connection>,
}

/// Why a stream has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Stopped {
    /// The client has gone or does not read.
    Gone,
    /// The server shuts down, or needs the connection for others. The stream may still [finish](StreamWriter::finish).
    Leaving,
}

impl StreamWriter {
    pub(super) fn new(connection: Arc<Connection>, bytes: Option<u64>) -> (Self, ResponseBody) {
        let (sender, parts) = mpsc::channel(WAITING_PARTS);
        let body = ResponseBody::Streamed(StreamedBody { parts, bytes, is_ended: false });
        (Self { parts: sender, connection }, body)
    }

    /// Sends a part. Waits until the client has read most of the parts before it.
    pub(in crate::http) async fn send(&self, bytes: Bytes) -> Result<(), Stopped> {
        // The connection has the same limit. But with HTTP/2, a client may read its other answers.
        let sent = timeout(self.connection.app.limits.keep_alive_timeout, self.parts.send(Part::Data(bytes)));
        select! {
            biased;
            // First, because a fast client could always be ready for the next part.
            () = self.connection.left.wait() => Err(Stopped::Leaving),
            sent = sent => sent.map_err(|_| Stopped::Gone)?.map_err(|_| Stopped::Gone),
        }
    }

    /// Resolves when the stream has to stop.
    pub(in crate::http) async fn stopped(&self) -> Stopped {
        select! {
            () = self.parts.closed() => Stopped::Gone,
            () = self.connection.left.wait() => Stopped::Leaving,
        }
    }

    /// Ends the body, with this value of the trailer `netwatch-status`.
    pub(in crate::http) async fn finish(self, status: Option<HeaderValue>) {
        let limit = self.connection.app.limits.keep_alive_timeout;
        // An error means that nobody wants the end any more.
        drop(timeout(limit, self.parts.send(Part::End(status))).await);
    }
}
