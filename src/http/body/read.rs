//! Reads a whole body.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};

use super::body_buffer::BodyBuffer;
use super::encoding::Encoding;
use crate::http::app::App;
use crate::http::conn::RequestContext;
use crate::http::error::ApiError;

/// A whole request body.
pub(in crate::http) enum Body {
    /// It arrived in one piece, in the memory into which the socket was read.
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

/// Reads a whole body, within the limits of size and time.
pub(in crate::http) async fn read(context: &mut RequestContext<'_>, incoming: &mut Incoming) -> Result<Body, ApiError> {
    let app = &context.connection.app;
    let max_bytes = app.limits.max_body_bytes;
    if incoming.size_hint().lower() > max_bytes as u64 {
        return Err(ApiError::TooLarge { max_bytes });
    }
    let Some(first) = next_piece(context, incoming).await? else { return Ok(Body::Piece(Bytes::new())) };
    if incoming.is_end_stream() && first.len() <= max_bytes {
        return Ok(Body::Piece(first));
    }
    let mut buffer = BodyBuffer::new(&app.inflight, max_bytes)?;
    let mut next = Some(first);
    while let Some(piece) = next {
        buffer.push(&piece)?;
        // Releases the memory into which the socket was read, before the wait for the next piece.
        drop(piece);
        next = if incoming.is_end_stream() { None } else { next_piece(context, incoming).await? };
    }
    Ok(Body::Buffer(buffer))
}

/// The next bytes of a body. `None` at its end.
async fn next_piece(context: &mut RequestContext<'_>, incoming: &mut Incoming) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *incoming).poll_frame(cx));
        match context.in_time(frame).await.ok_or(ApiError::BodyTimeout)? {
            None => return Ok(None),
            Some(Err(error)) => return Err(ApiError::BodyBroken(error)),
            // Anything but data is a trailer.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Decodes a body, as soon as one of the permits for decoders is free.
pub(in crate::http) async fn decode(app: &App, encoded: &Body, encoding: Encoding) -> Result<Body, ApiError> {
    let _permit = app.decoders.acquire().await.expect("the semaphore is never closed");
    let mut decoded = BodyBuffer::new(&app.inflight, app.limits.max_body_bytes)?;
    encoding.decode(encoded.as_bytes(), &mut decoded).await?;
    Ok(Body::Buffer(decoded))
}
