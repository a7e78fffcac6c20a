//! Memory for bodies, within limits.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::error::ApiError;

/// A body that arrives in several pieces, or a decoded body. It is no longer than `MAX_BODY_BYTES`. Its memory counts
/// towards `INFLIGHT_BYTES` until it is dropped.
#[derive(Debug)]
pub(in crate::http) struct BodyBuffer {
    bytes: Vec<u8>,
    permits: OwnedSemaphorePermit,
    max_bytes: usize,
}

impl BodyBuffer {
    pub(in crate::http) fn new(inflight: &Arc<Semaphore>, max_bytes: usize) -> Result<Self, ApiError> {
        let permits = Arc::clone(inflight).try_acquire_many_owned(0).map_err(|_| ApiError::TooManyInFlight)?;
        Ok(Self { bytes: Vec::new(), permits, max_bytes })
    }

    /// Makes the capacity at least `bytes`. If it has to grow, it becomes at least `at_once` and at least doubles, as
    /// far as `MAX_BODY_BYTES` permits. Memory is allocated as bytes arrive, not as they are announced, and never more
    /// than is counted.
    pub(super) fn reserve(&mut self, bytes: usize, at_once: usize) -> Result<(), ApiError> {
        if bytes > self.max_bytes {
            return Err(self.too_large());
        }
        let before = self.bytes.capacity();
        if bytes > before {
            let capacity = bytes.max(at_once).max(2 * before).min(self.max_bytes);
            let more = u32::try_from(capacity - before).unwrap_or(u32::MAX);
            let inflight = Arc::clone(self.permits.semaphore());
            self.permits.merge(inflight.try_acquire_many_owned(more).map_err(|_| ApiError::TooManyInFlight)?);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        Ok(())
    }

    pub(in crate::http) fn push(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        self.reserve(self.bytes.len() + piece.len(), 0)?;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// The vector, to be filled up to its capacity.
    pub(super) fn spare(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(in crate::http) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() == self.max_bytes
    }

    pub(super) fn too_large(&self) -> ApiError {
        ApiError::TooLarge { max_bytes: self.max_bytes }
    }
}
