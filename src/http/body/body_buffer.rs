//! Memory for bodies, within limits.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::inflight::{Charge, Inflight, Memory};
use crate::http::error::ApiError;

/// Minimum growth of a body that arrives in several pieces, if it may become that long.
const MIN_GROWTH_BYTES: usize = 4 * 1024;

/// A body that arrives in several pieces. It can be evicted until it is pinned.
#[derive(Debug)]
pub(super) struct ArrivingBody {
    memory: Arc<Memory>,
    charge: Charge,
    len: usize,
    capacity: usize,
    /// The announced length, or `max_bytes`.
    expected_bytes: usize,
    max_bytes: usize,
}

impl ArrivingBody {
    pub(super) fn new(inflight: &Arc<Inflight>, client: IpAddr, expected_bytes: usize, max_bytes: usize) -> Self {
        let memory = Memory::new();
        let charge = inflight.charge(client, Some(Arc::clone(&memory)));
        Self { memory, charge, len: 0, capacity: 0, expected_bytes, max_bytes }
    }

    /// Appends a piece. Memory is allocated as bytes arrive, not as they are announced, and never more than is charged.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        let len = self.len + piece.len();
        if len > self.max_bytes {
            return Err(ApiError::TooLarge { max_bytes: self.max_bytes });
        }
        if len > self.capacity {
            let growth = (self.capacity / 4).max(MIN_GROWTH_BYTES);
            let capacity = (self.capacity + growth).min(self.expected_bytes).max(len);
            self.charge.grow(capacity - self.capacity, Instant::now())?;
            self.capacity = capacity;
        }
        let mut bytes = self.memory.lock();
        let bytes = bytes.as_mut().ok_or(ApiError::TooManyInFlight)?;
        bytes.reserve_exact(self.capacity - bytes.len());
        bytes.extend_from_slice(piece);
        self.len = len;
        Ok(())
    }

    /// All pieces have arrived. Until it is pinned, the body waits like one that has just grown.
    pub(super) fn completed(&mut self) -> Result<(), ApiError> {
        self.charge.grow(0, Instant::now())
    }

    /// Waits until the body is evicted.
    pub(super) async fn evicted(&self) {
        self.memory.evicted().await;
    }

    /// Protects the body against eviction.
    pub(super) fn pin(mut self) -> Result<BodyBuffer, ApiError> {
        self.charge.pin()?;
        let bytes = self.memory.lock().take().ok_or(ApiError::TooManyInFlight)?;
        Ok(BodyBuffer { bytes, charge: self.charge, max_bytes: self.max_bytes })
    }
}

/// A complete or decoded body. It is no longer than `MAX_BODY_BYTES`. Its memory counts towards `INFLIGHT_BYTES` until
/// it is dropped.
#[derive(Debug)]
pub(in crate::http) struct BodyBuffer {
    // Before `charge`, so that the memory is free when it stops counting.
    bytes: Vec<u8>,
    charge: Charge,
    max_bytes: usize,
}

impl BodyBuffer {
    /// For a body that is going to be decoded.
    pub(super) fn new(inflight: &Arc<Inflight>, client: IpAddr, max_bytes: usize) -> Self {
        Self { bytes: Vec::new(), charge: inflight.charge(client, None), max_bytes }
    }

    /// Makes the capacity at least `bytes`. If it has to grow, it becomes at least `at_once` and at least doubles, as
    /// far as `MAX_BODY_BYTES` permits.
    pub(super) fn reserve(&mut self, bytes: usize, at_once: usize) -> Result<(), ApiError> {
        if bytes > self.max_bytes {
            return Err(self.too_large());
        }
        let before = self.bytes.capacity();
        if bytes > before {
            let capacity = bytes.max(at_once).max(2 * before).min(self.max_bytes);
            self.charge.grow(capacity - before, Instant::now())?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
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
