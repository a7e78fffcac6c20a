//! Token buckets, one for each of whatever is limited, in bounded memory.

use std::fmt::Debug;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use moka::sync::Cache;

/// As many buckets are remembered, of some 300 bytes. Beyond that, those are forgotten that are asked for least, and
/// are full when they are asked for again: a flood of addresses can make room for itself, and take none from others.
const MAX_BUCKETS: u64 = 100_000;

/// The longest that a bucket may take to be full again: a year.
const MAX_FILLED: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How often something may be done, as a setting has it: `10/s`, `600/m,burst=1000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(Quota);

/// A rate is written in another way than this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no rate")]
pub struct NoRate;

impl FromStr for Rate {
    type Err = NoRate;

    fn from_str(text: &str) -> Result<Self, NoRate> {
        let (rate, burst) = match text.split_once(',') {
            None => (text, None),
            Some((rate, burst)) => (rate, Some(burst.trim().strip_prefix("burst=").ok_or(NoRate)?)),
        };
        let (count, unit) = rate.split_once('/').ok_or(NoRate)?;
        let number = |text: &str| text.trim().parse::<NonZeroU32>().map_err(|_| NoRate);
        let count = number(count)?;
        let unit = match unit.trim() {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(60 * 60),
            _ => return Err(NoRate),
        };
        let burst = burst.map_or(Ok(count), number)?;
        let quota = Quota::with_period(unit / count.get()).ok_or(NoRate)?.allow_burst(burst);
        // governor counts in nanoseconds, and there is no more than this to be remembered.
        let is_bounded = (unit / count.get()).checked_mul(burst.get()).is_some_and(|filled| filled <= MAX_FILLED);
        if is_bounded { Ok(Self(quota)) } else { Err(NoRate) }
    }
}

/// What is limited.
pub(super) trait Key: Hash + Eq + Clone + Debug + Send + Sync + 'static {}

impl<K: Hash + Eq + Clone + Debug + Send + Sync + 'static> Key for K {}

/// A bucket for each key.
#[derive(Debug)]
pub(super) struct RateLimit<K: Key>(RateLimiter<K, Buckets<K>, MonotonicClock>);

impl<K: Key> RateLimit<K> {
    pub(super) fn new(Rate(quota): Rate) -> Self {
        // By then a bucket is full again, just as one that was never there.
        let refilled = quota.burst_size_replenished_in();
        let buckets = Cache::builder().max_capacity(MAX_BUCKETS).time_to_idle(refilled).build();
        Self(RateLimiter::new(quota, Buckets(buckets), MonotonicClock))
    }

    /// Takes a token from the bucket of `key`.
    ///
    /// # Errors
    /// How long until there is one.
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
    fn a_bucket_gives_its_burst_and_then_says_how_long_to_wait() {
        let limit = limit("2/h,burst=3");
        for _ in 0..3 {
            limit.check(&1).unwrap();
        }
        let wait = limit.check(&1).unwrap_err();
        assert!(wait > Duration::from_secs(29 * 60) && wait <= Duration::from_secs(30 * 60), "{wait:?}");
        limit.check(&2).unwrap();
    }

    #[test]
    fn a_flood_of_keys_is_forgotten_and_one_that_is_asked_for_again_and_again_is_not() {
        let limit = limit("1/h,burst=10");
        let flood = MAX_BUCKETS as u32 * 3 / 2;
        let mut refused = 0;
        for key in 1..=flood {
            limit.check(&key).unwrap();
            if key % 100 == 0 {
                refused += u32::from(limit.check(&0).is_err());
            }
        }
        // It may be forgotten at times, while the cache finds out how often it is asked for.
        assert!(refused > flood / 100 * 9 / 10, "{refused}");
        let Buckets(buckets) = limit.0.into_state_store();
        buckets.run_pending_tasks();
        assert!(buckets.entry_count() <= MAX_BUCKETS);
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for rate in ["10/s", "600/m", "1/h", "600/m,burst=1000", "10 / s, burst=1", "1000000000/s", "1/h,burst=8000"] {
            assert!(rate.parse::<Rate>().is_ok(), "{rate:?}");
        }
        for wrong in [
            "",
            "10",
            "/s",
            "10/",
            "10/d",
            "0/s",
            "-1/s",
            "10/s,",
            "10/s,5",
            "10/s,burst=0",
            "4294967295/s",
            "1/h,burst=9000",
        ] {
            assert_eq!(wrong.parse::<Rate>(), Err(NoRate), "{wrong:?}");
        }
    }
}
