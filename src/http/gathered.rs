//! Memory for bodies, within bounds.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::Refusal;

/// A body, or what has come of it, in memory of its own: no more than `MAX_BODY_BYTES`, and counted against
/// `INFLIGHT_BYTES` until it is dropped.
#[derive(Debug)]
pub(super) struct Gathered {
    bytes: Vec<u8>,
    counted: OwnedSemaphorePermit,
    max_bytes: usize,
}

impl Gathered {
    pub(super) fn new(inflight: &Arc<Semaphore>, max_bytes: usize) -> Result<Self, Refusal> {
        let counted = Arc::clone(inflight).try_acquire_many_owned(0).map_err(|_| Refusal::TooManyInFlight)?;
        Ok(Self { bytes: Vec::new(), counted, max_bytes })
    }

    /// Makes room for `bytes` in all: `at_once` of them, or twice as many as before, if those are more and the bounds
    /// allow it. Memory is taken as bytes come, not as they are announced, and never more than is counted.
    pub(super) fn make_room(&mut self, bytes: usize, at_once: usize) -> Result<(), Refusal> {
        if bytes > self.max_bytes {
            return Err(self.too_large());
        }
        let before = self.bytes.capacity();
        if bytes > before {
            let capacity = bytes.max(at_once).max(2 * before).min(self.max_bytes);
            let more = u32::try_from(capacity - before).unwrap_or(u32::MAX);
            let inflight = Arc::clone(self.counted.semaphore());
            self.counted.merge(inflight.try_acquire_many_owned(more).map_err(|_| Refusal::TooManyInFlight)?);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        Ok(())
    }

    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        self.make_room(self.bytes.len() + piece.len(), 0)?;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// For filling up the room that was made.
    pub(super) fn spare(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() == self.max_bytes
    }

    pub(super) fn too_large(&self) -> Refusal {
        Refusal::TooLarge { max_bytes: self.max_bytes }
    }
}
