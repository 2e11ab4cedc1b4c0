//! Which of several states of a shard is the newest, when several nodes have one and nobody serves
//! it.
//!
//! Changes of an epoch are made by one owner, in one order, and a whole copy that ends at one of them
//! has all before it. So the highest epoch counts, and in it the state that goes furthest: where
//! answers wait for the owner's disk that is at least all that was answered. What is damaged counts
//! only where there is nothing else. A copy in memory that is about to be served
//! comes before all: its owner died a moment ago, and it has all that was acknowledged.

use stead_shared::control::{SavedKind, SavedShard};
use stead_shared::id::{Epoch, NodeId, Version};
use stead_shared::rules::Rules;

use super::durable::Beginning;

/// What is on this node's disk of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Saved {
    /// Its last change.
    pub at: Version,
    /// What it is.
    pub kind: SavedKind,
    /// The shard was sealed: it may have been granted, and served by another in the next epoch.
    pub sealed: bool,
    /// How it began, where others may have of it what is not in it.
    pub begun: Option<Beginning>,
    /// It was served here, and answers waited for no copy.
    pub alone: bool,
}

impl Saved {
    /// The highest counter in which the shard may have been served by what is known here.
    #[must_use]
    pub fn counter(&self, rules: &Rules) -> u64 {
        self.at.epoch.counter + u64::from(self.sealed && rules.seal_is_saved)
    }
}

/// How new a state is: the highest is the one to serve. Never the same for two nodes.
#[must_use]
pub fn rank(node: NodeId, saved: &SavedShard) -> (bool, bool, Epoch, u64, SavedKind, NodeId) {
    let (is_heir, is_whole) = match saved.kind {
        SavedKind::Heir => (true, true),
        SavedKind::Owner | SavedKind::Copy => (false, true),
        SavedKind::Damaged => (false, false),
    };
    (is_heir, is_whole, saved.at.epoch, saved.at.seq, saved.kind, node)
}

#[cfg(test)]
mod tests {
    use stead_shared::id::ShardId;

    use super::*;

    fn saved(kind: SavedKind, counter: u64, seq: u64) -> SavedShard {
        let at = Version { epoch: Epoch { counter, node: NodeId(1) }, seq };
        SavedShard { shard: ShardId(0), at, kind }
    }

    #[test]
    fn the_newest_state_is_found() {
        // From the oldest to the newest.
        let order = [
            (9, saved(SavedKind::Damaged, 9, 9)),
            (7, saved(SavedKind::Owner, 3, 7)),
            (8, saved(SavedKind::Copy, 3, 8)),
            (6, saved(SavedKind::Copy, 4, 5)),
            (4, saved(SavedKind::Owner, 4, 5)),
            (5, saved(SavedKind::Copy, 4, 6)),
            (6, saved(SavedKind::Copy, 4, 6)),
            (3, saved(SavedKind::Heir, 2, 1)),
        ];
        let ranks: Vec<_> = order.iter().map(|(node, it)| rank(NodeId(*node), it)).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
    }

    #[test]
    fn what_was_sealed_may_have_been_served_in_the_next_epoch() {
        let SavedShard { at, kind, .. } = saved(SavedKind::Owner, 4, 5);
        let counter =
            |sealed| Saved { at, kind, sealed, begun: None, alone: false }.counter(&Rules::ALL);
        assert_eq!((counter(false), counter(true)), (4, 5));
    }
}
