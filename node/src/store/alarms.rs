//! When the next shard wants to be looked at: one entry a shard that has anything to wait for.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stead_shared::id::ShardId;
use stead_shared::time::Time;
use tokio::sync::Notify;

/// Sorted by time, then shard. Locked after a shard's lock, never before it.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    due: Mutex<BTreeSet<(Time, ShardId)>>,
    earlier: Notify,
}

/// What the keeper of the time does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// This shard is due.
    Due(ShardId),
    /// Nothing before this time.
    At(Time),
    /// Nothing at all.
    Never,
}

impl Alarms {
    /// Moves the alarm of `shard` from `old` to `new`.
    pub(crate) fn set(&self, shard: ShardId, old: Option<Time>, new: Option<Time>) {
        let mut due = self.lock();
        let first = due.first().copied();
        if let Some(old) = old {
            due.remove(&(old, shard));
        }
        if let Some(new) = new {
            due.insert((new, shard));
        }
        let is_earlier = new.is_some_and(|new| first.is_none_or(|(first, _)| new < first));
        drop(due);
        if is_earlier {
            self.earlier.notify_one();
        }
    }

    /// Takes out the first alarm that is due at `now`.
    pub(crate) fn pop(&self, now: Time) -> Next {
        let mut due = self.lock();
        match due.first().copied() {
            None => Next::Never,
            Some((at, _)) if now < at => Next::At(at),
            Some((at, shard)) => {
                due.remove(&(at, shard));
                Next::Due(shard)
            }
        }
    }

    /// Waits until an alarm was set that is earlier than all others.
    pub(crate) async fn earlier(&self) {
        self.earlier.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(Time, ShardId)>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
