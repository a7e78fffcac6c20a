//! The result of an append.

use std::sync::Arc;

use super::batch::Batch;
use super::group_commit::{self, NotDurable};

/// Where the reports of one request are. A ticket keeps the memory of its batch from being reused.
#[derive(Debug)]
pub struct Ticket {
    /// The batch that contains the reports.
    pub batch: Arc<Batch>,
    /// The index of the chunk within the batch.
    pub chunk: usize,
    /// The offset after the last line within the chunk, in bytes.
    pub end: usize,
}

impl Ticket {
    /// Waits until the reports are in the state that `ACK` asks for. There is no time limit; the caller sets one. The
    /// future may be dropped at any await.
    ///
    /// # Errors
    /// [`NotDurable`]. The reports may still be in a report file later.
    pub async fn durable(&self) -> Result<(), NotDurable> {
        if !self.batch.has_journal() {
            return Ok(());
        }
        group_commit::durable(&self.batch, self.chunk, self.end).await
    }

    /// Waits until the reports are in the state that `ACK` asks for or, if their journal fails, until they are in a
    /// staged report file. There is no time limit. The future may be dropped at any await.
    pub async fn stored(&self) {
        if self.durable().await.is_err() {
            self.batch.flushed().await;
        }
    }
}
