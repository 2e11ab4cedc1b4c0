//! When a shard that is copied while it serves may be sealed.
//!
//! ```text
//!             walk done, little has changed            lag small, or it shrinks no more
//! walking ─────────────────────────────▶ (rounds) ─────────────────────────────▶ seal
//!                                           │ three rounds did not shrink it
//!                                           ▼
//!                                       throttled: changes at half the rate of the copy
//!                                           │ 2 s later still too far behind
//!                                           ▼
//!                                        too hot
//! ```
//!
//! A copy is a walk over all sessions and then rounds: each sends what had changed when it began.
//! What changes during a round is the *lag* at its end, and what is left to be sent while nobody
//! is served; so the pause depends on the rate of changes and not on the size of the shard. The
//! phases are those of Valkey's atomic slot migration.

use std::time::Duration;

use stead_shared::time::Time;

/// A lag so small that another round would not pay.
const LAG_SMALL: u64 = 16 << 10;
/// A lag that may be sent behind a closed gate (R4): 10 ms at 100 MB/s.
pub const LAG_MAX: u64 = 1 << 20;
/// The same as time at the rate of the copy.
pub const LAG_TIME_MAX: Duration = Duration::from_millis(50);
/// Rounds that may fail to shrink the lag before changes are throttled.
const ROUNDS_MAX: u8 = 3;
/// Rounds in all after which changes are throttled: a lag that goes up and down gets nowhere.
const ROUNDS_IN_ALL_MAX: u16 = 20;
/// How long changes are throttled before the copy is given up.
const THROTTLE_MAX: Duration = Duration::from_secs(2);
/// A copy of which nothing is heard for so long is given up: reports come every few hundred
/// milliseconds.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What a copy tells at the end of a round, and now and then during the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The walk over all sessions has not ended.
    pub walking: bool,
    /// Bytes that have changed since they were sent.
    pub lag: u64,
    /// Bytes that the walk has yet to send.
    pub left: u64,
    /// Bytes per second at which the copy gets on.
    pub rate: u64,
    /// More has changed than can be kept track of.
    pub overflow: bool,
}

/// What to do about a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One more round.
    GoOn,
    /// Close the gate, send the rest.
    Seal,
    /// Let changes through at no more than this many bytes per second.
    Throttle(u64),
    /// Changes come faster than they can be sent.
    TooHot,
}

/// A copy under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Copying {
    /// When something was last heard of it.
    heard: Time,
    /// The lag at the end of the last round.
    lag: Option<u64>,
    /// Rounds in a row that did not shrink it.
    n_stuck: u8,
    n_rounds: u16,
    throttled: Option<Time>,
    /// What was left to walk, when last heard.
    left: u64,
}

impl Copying {
    /// A copy that begins.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self { heard: now, lag: None, n_stuck: 0, n_rounds: 0, throttled: None, left: 0 }
    }

    /// Bytes to be sent before a seal, when last heard.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left.saturating_add(self.lag.unwrap_or(0))
    }

    /// Whether changes are throttled.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        self.throttled.is_some()
    }

    /// Whether nothing was heard for too long.
    #[must_use]
    pub fn is_silent(&self, now: Time) -> bool {
        now.since(self.heard) >= SILENCE_MAX
    }

    /// Shows `visit` every moment that is remembered, and how long after it something may happen.
    pub(super) fn each_time(&mut self, visit: &mut dyn FnMut(&mut Time, Duration)) {
        visit(&mut self.heard, SILENCE_MAX);
        if let Some(at) = &mut self.throttled {
            visit(at, THROTTLE_MAX);
        }
    }

    /// Takes a report in.
    #[must_use]
    pub fn on_progress(&mut self, now: Time, progress: Progress) -> Verdict {
        self.heard = now;
        self.left = progress.left;
        if progress.overflow {
            return Verdict::TooHot;
        }
        if progress.walking {
            return Verdict::GoOn;
        }
        let before = self.lag.replace(progress.lag);
        if progress.lag <= LAG_SMALL {
            return Verdict::Seal;
        }
        let is_near = progress.lag <= LAG_MAX || is_soon_sent(progress);
        let halved = before.is_none_or(|before| progress.lag <= before / 2);
        if is_near && !halved {
            return Verdict::Seal;
        }
        if before.is_some_and(|before| before <= progress.lag) {
            self.n_stuck = self.n_stuck.saturating_add(1);
        } else {
            self.n_stuck = 0;
        }
        self.n_rounds = self.n_rounds.saturating_add(1);
        let is_stuck = self.n_stuck >= ROUNDS_MAX || self.n_rounds >= ROUNDS_IN_ALL_MAX;
        match self.throttled {
            Some(since) if now.since(since) >= THROTTLE_MAX => Verdict::TooHot,
            None if is_stuck => {
                self.throttled = Some(now);
                Verdict::Throttle((progress.rate / 2).max(1))
            }
            Some(_) | None => Verdict::GoOn,
        }
    }
}

fn is_soon_sent(progress: Progress) -> bool {
    let allowed = u128::from(progress.rate) * LAG_TIME_MAX.as_millis() / 1000;
    u128::from(progress.lag) <= allowed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: u64 = 10 << 20;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn lag(lag: u64) -> Progress {
        Progress { walking: false, lag, left: 0, rate: RATE, overflow: false }
    }

    fn verdicts(lags: &[u64]) -> Vec<Verdict> {
        let mut copying = Copying::new(at(0));
        (0..).zip(lags).map(|(i, l)| copying.on_progress(at(i * 100), lag(*l))).collect()
    }

    #[test]
    fn a_copy_without_changes_is_sealed_after_its_walk() {
        let mut copying = Copying::new(at(0));
        let walking = Progress { walking: true, left: 5 << 20, ..lag(0) };
        assert_eq!(copying.on_progress(at(1), walking), Verdict::GoOn);
        assert_eq!(copying.left(), 5 << 20);
        assert_eq!(copying.on_progress(at(2), lag(0)), Verdict::Seal);
        assert_eq!(copying.left(), 0);
    }

    #[test]
    fn rounds_go_on_while_they_halve_the_lag() {
        use Verdict::{GoOn, Seal};
        assert_eq!(verdicts(&[8 << 20, 900 << 10, 100 << 10, 10 << 10]), [GoOn, GoOn, GoOn, Seal]);
        assert_eq!(verdicts(&[8 << 20, 900 << 10, 800 << 10]), [GoOn, GoOn, Seal]);
    }

    #[test]
    fn a_lag_that_does_not_shrink_is_throttled_and_then_given_up() {
        use Verdict::{GoOn, Throttle, TooHot};
        let mut copying = Copying::new(at(0));
        let far = lag(4 << 20);
        for (ms, verdict) in [(0, GoOn), (400, GoOn), (800, GoOn), (1200, Throttle(RATE / 2))] {
            assert_eq!(copying.on_progress(at(ms), far), verdict, "{ms}");
        }
        assert!(copying.is_throttled());
        assert_eq!(copying.on_progress(at(3199), far), GoOn);
        assert_eq!(copying.on_progress(at(3200), far), TooHot);
    }

    #[test]
    fn a_throttle_that_helps_ends_in_a_seal() {
        let mut copying = Copying::new(at(0));
        for ms in [0, 400, 800, 1200] {
            let _ = copying.on_progress(at(ms), lag(4 << 20));
        }
        assert_eq!(copying.on_progress(at(1600), lag(2 << 20)), Verdict::GoOn);
        assert_eq!(copying.on_progress(at(1800), lag(1 << 19)), Verdict::GoOn);
        assert_eq!(copying.on_progress(at(1900), lag(1 << 19)), Verdict::Seal);
    }

    #[test]
    fn what_cannot_be_kept_track_of_is_too_hot() {
        let mut copying = Copying::new(at(0));
        let overflow = Progress { overflow: true, walking: true, ..lag(0) };
        assert_eq!(copying.on_progress(at(1), overflow), Verdict::TooHot);
    }

    #[test]
    fn silence_is_noticed() {
        let mut copying = Copying::new(at(0));
        assert!(!copying.is_silent(at(4_999)) && copying.is_silent(at(5_000)));
        let _ = copying.on_progress(at(3_000), lag(9 << 20));
        assert!(!copying.is_silent(at(7_999)) && copying.is_silent(at(8_000)));
    }

    proptest! {
        /// Whatever the lags: never sealed with more than what may be sent behind a closed gate,
        /// given up only after a throttle, and always decided.
        #[test]
        fn a_copy_is_sealed_near_its_end_or_given_up(lags in prop::collection::vec(0u64..64 << 20, 100)) {
            let mut copying = Copying::new(at(0));
            let mut decided = false;
            for (i, l) in (0..).zip(&lags) {
                match copying.on_progress(at(i * 100), lag(*l)) {
                    Verdict::GoOn | Verdict::Throttle(_) => {}
                    Verdict::Seal => {
                        prop_assert!(*l <= LAG_MAX || is_soon_sent(lag(*l)));
                        decided = true;
                    }
                    Verdict::TooHot => {
                        prop_assert!(copying.is_throttled());
                        decided = true;
                    }
                }
                if decided { break }
            }
            prop_assert!(decided);
        }
    }
}
