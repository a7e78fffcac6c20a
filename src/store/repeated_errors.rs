//! Errors that repeat, because an operation is retried: they are logged at once, then at growing intervals.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time from the first log line of an error to the second. It doubles with each further line.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

const LAST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Maximum number of different errors. Beyond it, all of them are forgotten, so some are logged once more.
const MAX_ERRORS: usize = 1024;

/// The errors that were logged, by kind.
#[derive(Debug, Default)]
pub(super) struct RepeatedErrors(Mutex<HashMap<String, Repeated>>);

#[derive(Debug)]
struct Repeated {
    due: Instant,
    pause: Duration,
    /// Errors since the last log line.
    unlogged: u64,
}

impl RepeatedErrors {
    /// Counts an error of this kind. If it is to be logged now, returns the number of errors of this kind that were not
    /// logged since the last line.
    pub(super) fn count(&self, kind: String, now: Instant) -> Option<u64> {
        let mut errors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() >= MAX_ERRORS && !errors.contains_key(&kind) {
            errors.clear();
        }
        match errors.entry(kind) {
            Entry::Vacant(new) => {
                new.insert(Repeated { due: now + FIRST_PAUSE, pause: FIRST_PAUSE, unlogged: 0 });
                Some(0)
            }
            Entry::Occupied(mut known) => {
                let repeated = known.get_mut();
                if now < repeated.due {
                    repeated.unlogged += 1;
                    return None;
                }
                let pause = (2 * repeated.pause).min(LAST_PAUSE);
                Some(std::mem::replace(repeated, Repeated { due: now + pause, pause, unlogged: 0 }).unlogged)
            }
        }
    }

    /// Forgets all errors: the disk works again.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_logged_at_once_and_then_at_growing_intervals() {
        let (errors, start) = (RepeatedErrors::default(), Instant::now());
        let logged: Vec<_> =
            (0..200_000).filter(|n| errors.count("a".into(), start + Duration::from_secs(*n)).is_some()).collect();
        assert_eq!(logged[..6], [0, 10, 30, 70, 150, 310]);
        assert_eq!(logged[logged.len() - 1] - logged[logged.len() - 2], 3600);
        assert_eq!(errors.count("b".into(), start), Some(0), "another error");
        errors.clear();
        assert_eq!(errors.count("a".into(), start), Some(0));
        assert_eq!(errors.count("a".into(), start + FIRST_PAUSE / 2), None);
        assert_eq!(errors.count("a".into(), start + FIRST_PAUSE), Some(1));
    }

    #[test]
    fn the_number_of_remembered_errors_is_limited() {
        let (errors, start) = (RepeatedErrors::default(), Instant::now());
        for n in 0..10 * MAX_ERRORS {
            assert_eq!(errors.count(n.to_string(), start), Some(0));
        }
        assert!(errors.0.lock().unwrap().len() <= MAX_ERRORS);
    }
}
