//! Reads a whole body.

use std::future::{pending, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use tokio::select;
use tokio::task::consume_budget;

use super::body_buffer::{ArrivingBody, BodyBuffer};
use super::encoding::Encoding;
use crate::http::app::App;
use crate::http::conn::RequestContext;
use crate::http::error::ApiError;

/// Maximum number of pieces of a body of `bytes` bytes. A piece is a chunk (HTTP/1), a frame (HTTP/2) or the result of
/// a read from the socket. Each one takes about half a microsecond, even if it is empty. So a body takes at most 10 ms
/// for [`FREE_PIECES`] and 40 ms for each MiB. Clients that write single tokens of JSON stay below it.
const fn max_pieces(bytes: usize) -> usize {
    FREE_PIECES + bytes / MIN_PIECE_BYTES
}

const FREE_PIECES: usize = 16 * 1024;

/// Minimum average length of the pieces of a long body.
const MIN_PIECE_BYTES: usize = 16;

/// A body that has arrived completely. The memory of `Buffer` can be evicted.
#[derive(Debug)]
pub(in crate::http) struct Received {
    client: IpAddr,
    bytes: ReceivedBytes,
}

#[derive(Debug)]
enum ReceivedBytes {
    /// It arrived in one piece, in the memory into which the socket was read.
    Piece(Bytes),
    /// It arrived in several pieces.
    Buffer(ArrivingBody),
}

/// A whole request body.
pub(in crate::http) enum Body {
    /// It arrived in one piece.
    Piece(Bytes),
    /// It arrived in several pieces, or was decoded.
    Buffer(BodyBuffer),
}

impl Body {
    pub(in crate::http) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Piece(bytes) => bytes,
            Self::Buffer(buffer) => buffer.as_bytes(),
        }
    }
}

impl Received {
    /// The body, without decoding. It can't be evicted any more.
    pub(in crate::http) fn pin(self) -> Result<Body, ApiError> {
        match self.bytes {
            ReceivedBytes::Piece(bytes) => Ok(Body::Piece(bytes)),
            ReceivedBytes::Buffer(buffer) => buffer.pin().map(Body::Buffer),
        }
    }

    /// Decodes the body, as soon as one of the permits for decoders is free. It can be evicted until then.
    pub(in crate::http) async fn decode(self, app: &App, encoding: Encoding) -> Result<Body, ApiError> {
        let _permit = select! {
            biased;
            () = self.evicted() => return Err(ApiError::TooManyInFlight),
            permit = app.decoders.acquire() => permit.expect("the semaphore is never closed"),
        };
        let mut decoded = BodyBuffer::new(&app.inflight, self.client, app.limits.max_body_bytes);
        let encoded = self.pin()?;
        encoding.decode(encoded.as_bytes(), &mut decoded).await?;
        Ok(Body::Buffer(decoded))
    }

    async fn evicted(&self) {
        match &self.bytes {
            ReceivedBytes::Piece(_) => pending().await,
            ReceivedBytes::Buffer(buffer) => buffer.evicted().await,
        }
    }
}

/// Reads a whole body from `client`, within the limits of size and time.
pub(in crate::http) async fn read(
    context: &mut RequestContext<'_>,
    incoming: &mut Incoming,
    client: IpAddr,
) -> Result<Received, ApiError> {
    let app = &context.connection.app;
    let max_bytes = app.limits.max_body_bytes;
    let announced = incoming.size_hint();
    if announced.lower() > max_bytes as u64 {
        return Err(ApiError::TooLarge { max_bytes });
    }
    let received = |bytes| Received { client, bytes };
    let mut pieces = Pieces::default();
    let first = pieces.next(context, incoming).await?.unwrap_or_default();
    if incoming.is_end_stream() && first.len() <= max_bytes {
        return Ok(received(ReceivedBytes::Piece(first)));
    }
    let expected_bytes = announced.exact().map_or(max_bytes, |bytes| bytes as usize);
    let mut body = ArrivingBody::new(&app.inflight, client, expected_bytes, max_bytes);
    let mut next = Some(first);
    while let Some(piece) = next {
        body.push(&piece)?;
        // Releases the memory into which the socket was read, before the wait for the next piece.
        drop(piece);
        // Yields from time to time, because thousands of HTTP/2 frames may have arrived already.
        consume_budget().await;
        next = if incoming.is_end_stream() {
            None
        } else {
            select! {
                biased;
                () = body.evicted() => return Err(ApiError::TooManyInFlight),
                piece = pieces.next(context, incoming) => piece?,
            }
        };
    }
    body.completed()?;
    Ok(received(ReceivedBytes::Buffer(body)))
}

/// Counts the pieces of a body and their bytes.
#[derive(Debug, Default)]
struct Pieces {
    count: usize,
    bytes: usize,
}

impl Pieces {
    /// The next bytes of a body. `None` at its end.
    async fn next(
        &mut self,
        context: &mut RequestContext<'_>,
        incoming: &mut Incoming,
    ) -> Result<Option<Bytes>, ApiError> {
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut *incoming).poll_frame(cx));
            let frame = match context.in_time(frame).await.ok_or(ApiError::BodyTimeout)? {
                None => return Ok(None),
                Some(frame) => frame.map_err(ApiError::BodyBroken)?,
            };
            // Anything but data is a trailer.
            let Ok(data) = frame.into_data() else { continue };
            self.count += 1;
            self.bytes += data.len();
            if self.count > max_pieces(self.bytes) {
                return Err(ApiError::TooManyPieces { min_bytes: MIN_PIECE_BYTES });
            }
            return Ok(Some(data));
        }
    }
}
