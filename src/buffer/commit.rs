//! One group of the group commit: writes, and syncs, the journal of a batch.
//!
//! The leader first lets other ready tasks append. Then it writes all complete lines with one positioned, vectored
//! write. No timer and no extra thread delays a group. Tasks that append in the meantime wait for the next group.

use std::io;
use std::panic;

use super::batch::Batch;
use super::group_commit::{GroupCommit, Leadership, Progress};
use crate::config::Ack;

impl GroupCommit for Batch {
    fn progress(&self) -> &Progress {
        &self.journal().progress
    }

    fn is_complete(&self, chunk: usize) -> bool {
        Batch::is_complete(self, chunk)
    }

    async fn commit_group(leadership: Leadership<Self>) {
        // Other ready tasks append first.
        tokio::task::yield_now().await;
        let batch = &*leadership;
        let ends = match batch.journal().write(|| batch.id(), |chunk| batch.chunk_lines(chunk)) {
            Ok(ends) => ends,
            Err(error) => return fail(leadership, &error),
        };
        if batch.ack() != Ack::Disk {
            return leadership.mark_durable(&ends);
        }
        // Off the event loop, and to its end even if no task waits for it. Leadership moves along, so that there is one
        // leader from the write to the end of the sync.
        let synced = tokio::task::spawn_blocking(move || match leadership.journal().sync() {
            Ok(()) => leadership.mark_durable(&ends),
            Err(error) => fail(leadership, &error),
        });
        match synced.await {
            // A panic also ends this request. Otherwise it would lead again and again.
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            // Any other error means that the runtime shuts down and no request is answered.
            Ok(()) | Err(_) => {}
        }
    }
}

fn fail(leadership: Leadership<Batch>, error: &io::Error) {
    tracing::error!(%error, "can't write a journal; the waiting requests are refused and the batch is sealed");
    leadership.journal().journal.report_failure(error);
    leadership.seal();
    leadership.fail();
}
