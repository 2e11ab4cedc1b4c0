//! A rate that several streams share: how long each has to wait before it sends.

use std::num::NonZeroU64;
use std::time::Duration;

use stead_shared::time::Time;

/// What was not used in this time may be caught up with.
const BURST: Duration = Duration::from_millis(100);

/// Bytes per second, handed out in the order in which they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    rate: Option<NonZeroU64>,
    free_at: Time,
}

impl Pace {
    /// At most `rate` bytes per second; none is no limit.
    #[must_use]
    pub fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, free_at: Time::ZERO }
    }

    /// Takes `bytes` out of the budget; the answer is how long to wait before sending them.
    #[must_use]
    pub fn take(&mut self, now: Time, bytes: u64) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let begin = self.free_at.max(now - BURST);
        let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.get());
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        self.free_at = begin + Duration::from_micros(micros);
        begin.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_pace_without_a_rate_holds_nobody_up() {
        let mut pace = Pace::new(None);
        assert_eq!(pace.take(at(0), u64::MAX), Duration::ZERO);
    }

    #[test]
    fn over_time_no_more_than_the_rate_is_handed_out() {
        let mut pace = Pace::new(NonZeroU64::new(1_000_000));
        let (mut now, mut sent) = (at(1_000), 0);
        while now < at(11_000) {
            now = now + pace.take(now, 64 << 10);
            sent += 64 << 10;
        }
        let allowed = 10_000_000;
        assert!((allowed..allowed + 200_000 + (64 << 10)).contains(&sent), "{sent}");
    }

    #[test]
    fn what_was_not_used_is_not_saved_up_for_long() {
        let mut pace = Pace::new(NonZeroU64::new(1_000));
        assert_eq!(pace.take(at(60_000), 100), Duration::ZERO);
        assert_eq!(pace.take(at(60_000), 100), Duration::ZERO);
        assert_eq!(pace.take(at(60_000), 100), Duration::from_millis(100));
        assert_eq!(pace.take(at(60_000), 1), Duration::from_millis(200));
    }
}
