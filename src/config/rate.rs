//! Request rates.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use governor::Quota;

/// The longest time that an empty token bucket may take to fill up: one year.
const MAX_REFILL: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A request rate with a burst: `10/s`, `600/m`, `10/s,burst=100`. Without `burst`, the burst equals the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(Quota);

/// The text is not a rate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a rate")]
pub struct InvalidRate;

impl Rate {
    /// The rate as governor counts it.
    pub(crate) fn quota(self) -> Quota {
        self.0
    }
}

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let (rate, burst) = match text.split_once(',') {
            None => (text, None),
            Some((rate, burst)) => (rate, Some(burst.trim().strip_prefix("burst=").ok_or(InvalidRate)?)),
        };
        let (count, unit) = rate.split_once('/').ok_or(InvalidRate)?;
        let number = |text: &str| text.trim().parse::<NonZeroU32>().map_err(|_| InvalidRate);
        let count = number(count)?;
        let unit = match unit.trim() {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(60 * 60),
            _ => return Err(InvalidRate),
        };
        let burst = burst.map_or(Ok(count), number)?;
        let quota = Quota::with_period(unit / count.get()).ok_or(InvalidRate)?.allow_burst(burst);
        // governor counts nanoseconds in 64 bits. The limit keeps the product far below an overflow.
        let refill = (unit / count.get()).checked_mul(burst.get());
        if refill.is_some_and(|refill| refill <= MAX_REFILL) { Ok(Self(quota)) } else { Err(InvalidRate) }
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_not_a_rate_is_refused() {
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
            assert_eq!(wrong.parse::<Rate>(), Err(InvalidRate), "{wrong:?}");
        }
    }
}
