//! When a report is acknowledged.

use serde::Deserialize;

/// The state that a report must reach before its request is answered with 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// In the batch, in memory. Survives an orderly shutdown only.
    Memory,
    /// Written to the batch's journal. Survives a crash of the process.
    Journal,
    /// Written to the batch's journal and synced. Survives a power failure and a crash of the kernel.
    Disk,
}
