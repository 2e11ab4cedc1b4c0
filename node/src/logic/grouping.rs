//! How long whoever writes to disk waits for more to write at once.
//!
//! A sync costs the same for one change as for a hundred, and those who were answered together come
//! back together. So what is queued waits while more comes, for no more than a sync takes here; and not
//! at all where changes come alone, or syncs are so fast that a look at the queue takes as long.

use std::time::Duration;

/// Between two looks at the queue; it is left alone when nothing came between them.
pub const LOOK_EACH: Duration = Duration::from_micros(60);
/// Most that they wait, however slow the disk is.
const WAIT_MAX: Duration = Duration::from_millis(2);

/// What is known of the syncs so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grouping {
    /// What a sync takes, the last ones counting most.
    sync: Duration,
    /// Changes in the last one.
    n_changes: u64,
}

impl Grouping {
    /// A sync of so many changes took so long.
    pub fn synced(&mut self, n_changes: u64, took: Duration) {
        self.sync = if self.sync.is_zero() { took } else { (self.sync * 7 + took) / 8 };
        self.n_changes = n_changes;
    }

    /// How long what is queued may wait for more; none for not at all.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        let wait = self.sync.min(WAIT_MAX);
        (1 < self.n_changes && 2 * LOOK_EACH <= wait).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_alone_and_who_syncs_fast_does_not_wait() {
        let (slow, fast) = (Duration::from_millis(1), Duration::from_micros(100));
        let after = |n_changes, took| {
            let mut grouping = Grouping::default();
            grouping.synced(n_changes, took);
            grouping.wait()
        };
        assert_eq!(Grouping::default().wait(), None);
        assert_eq!(after(1, slow), None);
        assert_eq!(after(2, fast), None);
        assert_eq!(after(2, slow), Some(slow));
        assert_eq!(after(2, Duration::from_secs(1)), Some(WAIT_MAX));
    }

    #[test]
    fn one_slow_sync_counts_for_little() {
        let mut grouping = Grouping::default();
        grouping.synced(9, Duration::from_micros(800));
        grouping.synced(9, Duration::from_micros(1_600));
        assert_eq!(grouping.wait(), Some(Duration::from_micros(900)));
    }
}
