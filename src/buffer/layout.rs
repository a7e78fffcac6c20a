//! How the memory of the buffer is divided.

use crate::config::Config;

/// Number of batches, shards and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferLayout {
    /// Number of batches: one is active, the others are free or wait for the flush. At least 2.
    pub batches: usize,
    /// Number of shards, each with one chunk per batch. At least 1.
    pub shards: usize,
    /// Size of a chunk in bytes. The reports of one request, with a line break after each, must fit in a chunk.
    pub chunk_bytes: usize,
}

impl BufferLayout {
    /// Size of a batch in bytes.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.shards * self.chunk_bytes
    }
}

impl From<&Config> for BufferLayout {
    /// One shard per worker, as long as a chunk fits two of the longest bodies. So a batch is at least half full when a
    /// long report fits in none of its chunks.
    fn from(config: &Config) -> Self {
        let shards = (config.batch_bytes / (2 * (config.max_body_bytes + 1))).clamp(1, config.workers);
        let batches = config.buffer_bytes / config.batch_bytes;
        Self { batches, shards, chunk_bytes: config.batch_bytes / shards }
    }
}
