//! What is moving at this node, as other members and people are told.

use std::time::Duration;

use stead_shared::net::admin::{DrainReport, DrainState, MovesReport, PendingMoves};
use stead_shared::time::Time;

use crate::driver::Standing;
use crate::host::HostStats;
use crate::logic::ownership::Pending;

/// What this node still has to hand off or to take over.
pub(crate) fn report(standing: &Standing) -> MovesReport {
    let Pending { takeover, drain, balance, copying, moving, bytes, frozen } = standing.pending;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    MovesReport {
        moving: count(moving),
        copying: count(copying),
        pending: PendingMoves {
            takeover: count(takeover),
            drain: count(drain),
            balance: count(balance),
        },
        bytes_left: bytes,
        bytes_per_second: standing.bytes_per_second,
        frozen,
    }
}

/// How much time a sample has at least: a shorter one says little.
const SAMPLE: Duration = Duration::from_millis(250);

/// Bytes per second of a count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    at: Time,
    total: u64,
    per_second: u64,
}

impl Rate {
    /// Bytes per second since the last sample and the one before, given the count now.
    pub(crate) fn measure(&mut self, now: Time, total: u64) -> u64 {
        let passed = now.since(self.at);
        if passed < SAMPLE {
            return self.per_second;
        }
        let grown = u128::from(total.saturating_sub(self.total)) * 1_000_000;
        let newest = u64::try_from(grown / passed.as_micros()).unwrap_or(u64::MAX);
        // A transfer that has ended is over: no mean keeps it alive.
        let mean = (self.per_second / 2).saturating_add(newest.div_ceil(2));
        self.per_second = if newest == 0 || self.per_second == 0 { newest } else { mean };
        (self.at, self.total) = (now, total);
        self.per_second
    }
}

/// How far a drain is.
pub(crate) fn drain_report(name: &str, progress: Standing, stats: HostStats) -> DrainReport {
    let state = match (progress.draining, progress.drained) {
        (false, _) => DrainState::Idle,
        (true, false) => DrainState::Draining,
        (true, true) => DrainState::Drained,
    };
    let elapsed = progress.draining_since.map_or(Duration::ZERO, |since| since.elapsed());
    DrainReport {
        node: name.to_owned(),
        state,
        shards_left: u32::try_from(progress.n_owned).unwrap_or(u32::MAX),
        sessions_left: stats.sessions,
        bytes_left: stats.bytes,
        bytes_per_second: progress.bytes_per_second,
        elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_of_the_machine_has_its_place() {
        let pending = Pending {
            takeover: 1,
            drain: 2,
            balance: 3,
            copying: 4,
            moving: 5,
            bytes: 6,
            frozen: true,
        };
        let expected = MovesReport {
            moving: 5,
            copying: 4,
            pending: PendingMoves { takeover: 1, drain: 2, balance: 3 },
            bytes_left: 6,
            bytes_per_second: 7,
            frozen: true,
        };
        let standing = Standing { pending, bytes_per_second: 7, ..Standing::default() };
        assert_eq!(report(&standing), expected);
        assert_eq!(expected.remaining(), 15);
    }

    #[test]
    fn a_rate_follows_what_is_sent_and_falls_to_nothing_with_it() {
        let at = |ms: u64| Time::ZERO + Duration::from_millis(ms);
        let mut rate = Rate::default();
        assert_eq!(rate.measure(at(500), 1_000), 2_000);
        assert_eq!(rate.measure(at(600), 9_000), 2_000, "too short to tell");
        assert_eq!(rate.measure(at(1_000), 3_000), 3_000);
        assert_eq!(rate.measure(at(1_500), 3_000), 0);
        assert_eq!(rate.measure(at(2_000), 3_500), 1_000);
    }
}
