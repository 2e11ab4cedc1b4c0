//! What was changed on both sides of a cut, and lost to a later change.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use stead_shared::id::{SessionKey, ShardId, Version};

use super::data::Data;

/// Most conflicts that are kept.
const CONFLICTS_MAX: usize = 1_000;
/// Most bytes of their values and keys.
const BYTES_MAX: usize = 16 << 20;

/// A value that another one was kept instead of, when two histories of its session met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The session.
    pub key: SessionKey,
    /// Its shard.
    pub shard: ShardId,
    /// Which change stayed.
    pub kept: Version,
    /// Which change did not.
    pub lost: Version,
    /// When that was written, in Unix microseconds by its node's clock.
    pub lost_written_micros: u64,
    /// The value that it wrote.
    pub value: Bytes,
    /// The version of its schema, if it is typed.
    pub schema: Option<u32>,
}

impl Conflict {
    /// The change `kept` of a session stayed, and the value of `loser` did not.
    pub(super) fn of(key: &SessionKey, shard: ShardId, kept: Version, loser: &Data) -> Self {
        Self {
            key: key.clone(),
            shard,
            kept,
            lost: loser.value_version(),
            lost_written_micros: loser.written.0,
            value: loser.value.as_deref().map_or_else(Bytes::new, Bytes::copy_from_slice),
            schema: loser.schema(),
        }
    }

    fn size(&self) -> usize {
        self.key.as_bytes().len() + self.value.len()
    }
}

/// The conflicts of a node, the oldest first.
pub(crate) struct Conflicts {
    kept: Mutex<Kept>,
    total: Counter,
    dropped: Counter,
    listed: Gauge,
}

#[derive(Default)]
struct Kept {
    list: VecDeque<Conflict>,
    bytes: usize,
}

impl Conflicts {
    pub(crate) fn new() -> Self {
        describe_counter!(
            "stead_conflicts_total",
            "Values that were changed on both sides of a cut and lost to a later change"
        );
        describe_counter!(
            "stead_conflicts_dropped_total",
            "Conflicts that are not listed any more because newer ones needed the room"
        );
        describe_gauge!("stead_conflicts", "Conflicts that are listed");
        Self {
            kept: Mutex::default(),
            total: counter!("stead_conflicts_total"),
            dropped: counter!("stead_conflicts_dropped_total"),
            listed: gauge!("stead_conflicts"),
        }
    }

    /// Lists a conflict, once. The oldest go when there are too many.
    pub(crate) fn add(&self, conflict: Conflict) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |it: &Conflict| it.key == conflict.key && it.lost == conflict.lost;
        if kept.list.iter().any(is_known) {
            return;
        }
        self.total.increment(1);
        kept.bytes += conflict.size();
        kept.list.push_back(conflict);
        while CONFLICTS_MAX < kept.list.len() || (BYTES_MAX < kept.bytes && 1 < kept.list.len()) {
            let Some(oldest) = kept.list.pop_front() else { break };
            kept.bytes -= oldest.size();
            self.dropped.increment(1);
        }
        self.listed.set(kept.list.len() as f64);
    }

    pub(crate) fn list(&self) -> Vec<Conflict> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.list.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use stead_shared::id::{Epoch, NodeId};

    use super::*;

    fn conflict(seq: u64, length: usize) -> Conflict {
        let version = Version { epoch: Epoch { counter: 1, node: NodeId(1) }, seq };
        Conflict {
            key: SessionKey::new(b"k".to_vec()).unwrap(),
            shard: ShardId(1),
            kept: version,
            lost: version,
            lost_written_micros: 0,
            value: vec![0; length].into(),
            schema: None,
        }
    }

    #[test]
    fn a_conflict_is_listed_once_and_the_oldest_go_first() {
        let conflicts = Conflicts::new();
        conflicts.add(conflict(1, 1));
        conflicts.add(conflict(1, 1));
        assert_eq!(conflicts.list().len(), 1);
        for seq in 0..1_500 {
            conflicts.add(conflict(seq, 1));
        }
        let list = conflicts.list();
        assert_eq!((list.len(), list[0].lost.seq), (CONFLICTS_MAX, 500));
        conflicts.add(conflict(5_000, BYTES_MAX + 1));
        assert_eq!(conflicts.list().len(), 1);
    }
}
