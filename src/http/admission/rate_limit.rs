//! Token buckets per key, in bounded memory.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::{Clock, MonotonicClock};
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use moka::sync::Cache;

use crate::config::Rate;

/// Maximum number of buckets, of about 300 bytes each. Beyond it, the cache evicts the buckets that are used least. An
/// evicted bucket counts as full. A flood of new addresses evicts mostly its own buckets.
const MAX_BUCKETS: u64 = 100_000;

/// What a bucket belongs to: a client address or a write key.
pub(super) trait Key: Hash + Eq + Clone + Debug + Send + Sync + 'static {}

impl<K: Hash + Eq + Clone + Debug + Send + Sync + 'static> Key for K {}

/// One token bucket per key.
#[derive(Debug)]
pub(super) struct RateLimit<K: Key>(RateLimiter<K, Buckets<K>, MonotonicClock>);

impl<K: Key> RateLimit<K> {
    pub(super) fn new(rate: Rate) -> Self {
        let quota = rate.quota();
        // A bucket that was idle this long is full again, so it need not be remembered.
        let refilled = quota.burst_size_replenished_in();
        let buckets = Cache::builder().max_capacity(MAX_BUCKETS).time_to_idle(refilled).build();
        Self(RateLimiter::new(quota, Buckets(buckets), MonotonicClock))
    }

    /// Takes one token from the bucket of `key`.
    ///
    /// # Errors
    /// The time until the next token, if the bucket is empty.
    pub(super) fn check(&self, key: &K) -> Result<(), Duration> {
        self.0.check_key(key).map_err(|not_until| not_until.wait_time_from(MonotonicClock.now()))
    }
}

#[derive(Debug)]
struct Buckets<K: Key>(Cache<K, Arc<InMemoryState>>);

impl<K: Key> StateStore for Buckets<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let bucket = self.0.get(key).unwrap_or_else(|| self.0.get_with(key.clone(), Arc::default));
        bucket.measure_and_replace(&NotKeyed::NonKey, f)
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn limit(rate: &str) -> RateLimit<u32> {
        RateLimit::new(rate.parse().unwrap())
    }

    #[test]
    fn an_empty_bucket_returns_the_time_until_the_next_token() {
        let limit = limit("2/h,burst=3");
        for _ in 0..3 {
            limit.check(&1).unwrap();
        }
        let wait = limit.check(&1).unwrap_err();
        assert!(wait > Duration::from_secs(29 * 60) && wait <= Duration::from_secs(30 * 60), "{wait:?}");
        limit.check(&2).unwrap();
    }

    #[test]
    fn a_flood_of_keys_is_forgotten_but_a_key_in_constant_use_is_not() {
        let limit = limit("1/h,burst=10");
        let flood = MAX_BUCKETS as u32 * 3 / 2;
        let mut refused = 0;
        for key in 1..=flood {
            limit.check(&key).unwrap();
            if key % 100 == 0 {
                refused += u32::from(limit.check(&0).is_err());
            }
        }
        // The cache may evict key 0 a few times before it has learned how often the key is used.
        assert!(refused > flood / 100 * 9 / 10, "{refused}");
        let Buckets(buckets) = limit.0.into_state_store();
        buckets.run_pending_tasks();
        assert!(buckets.entry_count() <= MAX_BUCKETS);
    }
}
