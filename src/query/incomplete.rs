//! What is missing in an output.

use std::sync::{Mutex, PoisonError};

/// What a query could not read or do.
#[derive(Debug, Default)]
pub struct Incomplete {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    skipped: Vec<String>,
    skipped_count: usize,
    failed_reports: usize,
    first_failure: Option<String>,
}

impl Incomplete {
    /// Maximum number of files that are named.
    const MAX_NAMED: usize = 20;

    /// Adds a file that cannot be read, with the reason.
    pub fn skip(&self, what: String) {
        let mut state = self.lock();
        state.skipped_count += 1;
        if state.skipped.len() < Self::MAX_NAMED {
            state.skipped.push(what);
        }
    }

    pub(super) fn fail(&self, message: String) {
        let mut state = self.lock();
        state.failed_reports += 1;
        state.first_failure.get_or_insert(message);
    }

    /// One line for each problem. Empty if the query is complete.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let state = self.lock();
        let mut lines = state.skipped.clone();
        if state.skipped_count > lines.len() {
            lines.push(format!("{} more files are incomplete", state.skipped_count - lines.len()));
        }
        if let Some(first) = &state.first_failure {
            let count = state.failed_reports;
            let reports = if count == 1 { "report is" } else { "reports are" };
            lines.push(format!("{count} {reports} left out, because the filter failed: {first}"));
        }
        lines
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
