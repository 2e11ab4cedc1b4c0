//! A number of bytes per second: how fast a shard may change while a copy of it catches up, and
//! how fast the copies of a node may be.

use std::num::NonZeroU64;
use std::time::Duration;

use stead_shared::time::Time;

/// How much may be done ahead at once.
const BURST: Duration = Duration::from_millis(20);

/// Admits changes, or pieces of copies, at a number of bytes per second, in the order in which they
/// ask.
///
/// A change is admitted with what it is expected to have, and corrected once it is known. What
/// was too little is waited for by those who come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    bytes_per_second: NonZeroU64,
    /// When everything that was admitted has had its time.
    paid_until: Time,
}

impl Pace {
    /// A pace at which nothing was admitted yet.
    #[must_use]
    pub fn new(bytes_per_second: NonZeroU64, now: Time) -> Self {
        Self { bytes_per_second, paid_until: now }
    }

    /// Goes on at another pace. What was admitted keeps its time.
    pub fn set(&mut self, bytes_per_second: NonZeroU64) {
        self.bytes_per_second = bytes_per_second;
    }

    /// Admits a change of about `bytes` bytes, and says from when on it may begin.
    #[must_use]
    pub fn admit(&mut self, now: Time, bytes: u64) -> Time {
        let begin = self.paid_until.max(now - BURST);
        self.paid_until = begin + self.time_of(bytes);
        now.max(begin)
    }

    /// Corrects an admission that was for `expected` bytes and came to `real` bytes; 0 for one
    /// that changed nothing.
    pub fn correct(&mut self, expected: u64, real: u64) {
        if expected <= real {
            self.paid_until += self.time_of(real - expected);
        } else {
            self.paid_until = self.paid_until - self.time_of(expected - real);
        }
    }

    fn time_of(&self, bytes: u64) -> Duration {
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_second.get());
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const RATE: NonZeroU64 = NonZeroU64::new(1_000_000).unwrap();

    fn at(micros: u64) -> Time {
        Time::from_micros(micros)
    }

    #[test]
    fn those_who_ask_together_begin_one_after_the_other() {
        let mut pace = Pace::new(RATE, at(1_000_000));
        let begins = [0; 3].map(|_| pace.admit(at(1_000_000), 5_000).as_micros());
        assert_eq!(begins, [1_000_000, 1_005_000, 1_010_000]);
    }

    #[test]
    fn time_that_nobody_used_is_worth_one_burst() {
        let mut pace = Pace::new(RATE, at(0));
        let now = at(60_000_000);
        let begins = [0; 4].map(|_| pace.admit(now, 10_000).since(now).as_micros());
        assert_eq!(begins, [0, 0, 0, 10_000]);
    }

    #[test]
    fn what_did_not_change_gives_its_time_back_and_what_was_larger_takes_more() {
        let mut pace = Pace::new(RATE, at(1_000_000));
        let _ = pace.admit(at(1_000_000), 5_000);
        pace.correct(5_000, 0);
        assert_eq!(pace.admit(at(1_000_000), 1_000), at(1_000_000));
        pace.correct(1_000, 300_000);
        assert_eq!(pace.admit(at(1_000_000), 1), at(1_300_000));
    }

    #[test]
    fn another_pace_counts_from_then_on() {
        let mut pace = Pace::new(RATE, at(1_000_000));
        let _ = pace.admit(at(1_000_000), 5_000);
        pace.set(NonZeroU64::MIN);
        assert_eq!(pace.admit(at(1_000_000), 2), at(1_005_000));
        assert_eq!(pace.admit(at(1_000_000), 1), at(3_005_000));
    }

    proptest! {
        /// In any time, no more begins than the pace gives, one burst and one change.
        #[test]
        fn no_more_begins_than_the_pace_gives(
            steps in vec((0u64..100_000, 1u64..50_000, 0u64..50_000), 1..100),
        ) {
            let mut pace = Pace::new(RATE, at(0));
            let (mut now, mut begun) = (at(0), Vec::new());
            for (pause, expected, real) in steps {
                now += Duration::from_micros(pause);
                begun.push((pace.admit(now, expected), real));
                pace.correct(expected, real);
            }
            for (n, (first, _)) in begun.iter().enumerate() {
                let mut sum = 0;
                for (last, real) in &begun[n..] {
                    prop_assert!(first <= last);
                    let most = last.since(*first).as_micros() as u64 + 20_000;
                    prop_assert!(sum <= most, "{sum} bytes in {most} us");
                    sum += real;
                }
            }
        }
    }
}
