//! Counters that several histories added to.
//!
//! A counter is made of parts: what was added in each epoch. Only its owner adds in an epoch, so of
//! two values of one part the one that was added to last is the right one, and the sum over all
//! parts misses nothing and counts nothing twice. Each part says itself when that was: a history
//! that took one over from another knows of the epoch no more than that.

use serde::{Deserialize, Serialize};
use stead_shared::id::{Epoch, Version};

use super::lineage::Lineage;

/// Most parts of one counter. With more, the two oldest become one: sides that parted before are
/// told apart no more finely than that.
pub const PARTS_MAX: usize = 8;

/// What was added in one epoch, or in all up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    /// The epoch.
    pub epoch: Epoch,
    /// The number of the last change that added to it.
    pub seq: u64,
    /// The sum of what was added.
    pub sum: i64,
    /// Earlier epochs are in it, too.
    pub is_folded: bool,
}

impl Part {
    /// What one change added.
    #[must_use]
    pub fn new(at: Version, by: i64) -> Self {
        Self { epoch: at.epoch, seq: at.seq, sum: by, is_folded: false }
    }
}

/// Adds `by` with the change `at`.
pub fn add(parts: &mut Vec<Part>, at: Version, by: i64) {
    match parts.binary_search_by_key(&at.epoch, |part| part.epoch) {
        Ok(n) => {
            let part = &mut parts[n];
            (part.seq, part.sum) = (part.seq.max(at.seq), part.sum.wrapping_add(by));
        }
        Err(n) => {
            parts.insert(n, Part::new(at, by));
            fold(parts, PARTS_MAX);
        }
    }
}

/// Parts in the order of their epochs, each epoch once, as another member says. None for others.
#[must_use]
pub fn checked(parts: Vec<Part>) -> Option<Vec<Part>> {
    let grows = parts.windows(2).all(|pair| pair[0].epoch < pair[1].epoch);
    (grows && parts.len() <= PARTS_MAX).then_some(parts)
}

/// The value of a counter with these parts.
#[must_use]
pub fn value(parts: &[Part]) -> i64 {
    parts.iter().fold(0, |sum, part| sum.wrapping_add(part.sum))
}

/// Makes the oldest parts one until there are at most `most`.
fn fold(parts: &mut Vec<Part>, most: usize) {
    while most < parts.len() && 2 <= parts.len() {
        let oldest = parts.remove(0);
        let part = &mut parts[0];
        (part.seq, part.sum) = (part.seq.max(oldest.seq), part.sum.wrapping_add(oldest.sum));
        part.is_folded = true;
    }
}

/// Makes all parts up to `epoch` one, of that epoch.
fn fold_up_to(parts: &[Part], epoch: Epoch) -> Vec<Part> {
    let n_old = parts.partition_point(|part| part.epoch <= epoch);
    let (old, new) = parts.split_at(n_old);
    let mut folded = Vec::with_capacity(1 + new.len());
    if let Some(seq) = old.iter().map(|part| part.seq).max() {
        folded.push(Part { epoch, seq, sum: value(old), is_folded: true });
    }
    folded.extend_from_slice(new);
    folded
}

/// The parts of a counter that both histories may have added to. It does not matter which is whose,
/// nor, up to [`PARTS_MAX`] parts, how often they are merged.
#[must_use]
pub fn merge(ours: (&[Part], &Lineage), theirs: (&[Part], &Lineage)) -> Vec<Part> {
    let folded = ours.0.iter().chain(theirs.0).filter(|part| part.is_folded);
    let folded = folded.map(|part| part.epoch).max();
    let up_to = |parts: &[Part]| match folded {
        Some(epoch) => fold_up_to(parts, epoch),
        None => parts.to_vec(),
    };
    let sides = [(up_to(ours.0), ours.1), (up_to(theirs.0), theirs.1)];
    let mut epochs: Vec<Epoch> =
        sides.iter().flat_map(|(parts, _)| parts).map(|part| part.epoch).collect();
    epochs.sort_unstable();
    epochs.dedup();
    let mut merged: Vec<Part> =
        epochs.into_iter().filter_map(|epoch| pick(epoch, &sides)).collect();
    fold(&mut merged, PARTS_MAX);
    merged
}

/// The part of an epoch, as it was after the last change that added to it. Who has come through that
/// change and has no such part has deleted it.
fn pick(epoch: Epoch, [one, other]: &[(Vec<Part>, &Lineage); 2]) -> Option<Part> {
    let part =
        |side: &(Vec<Part>, &Lineage)| side.0.iter().find(|part| part.epoch == epoch).copied();
    let is_deleted = |part: Part, lineage: &Lineage| Some(part.seq) <= lineage.end_of(epoch);
    match (part(one), part(other)) {
        (Some(part), Some(other)) => Some(if part.seq < other.seq { other } else { part }),
        (Some(part), None) => (!is_deleted(part, other.1)).then_some(part),
        (None, Some(part)) => (!is_deleted(part, one.1)).then_some(part),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stead_shared::id::NodeId;

    use super::*;

    fn epoch(counter: u64, node: u64) -> Epoch {
        Epoch { counter, node: NodeId(node) }
    }

    /// A counter and the shard that it is in, which counts each change.
    #[derive(Clone, Default)]
    struct Side {
        parts: Vec<Part>,
        lineage: Lineage,
        seq: u64,
    }

    impl Side {
        fn add(&mut self, epoch: Epoch, by: i64) {
            self.seq += 1;
            let at = Version { epoch, seq: self.seq };
            add(&mut self.parts, at, by);
            self.lineage.reach(at);
        }

        fn merged(&self, other: &Self) -> Vec<Part> {
            merge((&self.parts, &self.lineage), (&other.parts, &other.lineage))
        }
    }

    #[test]
    fn what_both_sides_added_is_counted_once() {
        let mut owner = Side::default();
        owner.add(epoch(5, 1), 100);
        let mut heir = owner.clone();
        owner.add(epoch(5, 1), 7);
        owner.add(epoch(5, 1), -2);
        heir.add(epoch(6, 2), 30);
        assert_eq!(value(&owner.merged(&heir)), 135);
        assert_eq!(owner.merged(&heir), heir.merged(&owner));
    }

    #[test]
    fn a_side_that_began_empty_adds_to_the_other() {
        let (mut owner, mut fresh) = (Side::default(), Side::default());
        owner.add(epoch(4, 1), 60);
        owner.add(epoch(5, 1), 40);
        fresh.add(epoch(6, 2), 3);
        assert_eq!(value(&owner.merged(&fresh)), 103);
    }

    #[test]
    fn what_one_side_deleted_does_not_come_back_with_its_share() {
        let mut owner = Side::default();
        owner.add(epoch(5, 1), 100);
        let mut heir = owner.clone();
        owner.add(epoch(5, 1), 7);
        heir.seq += 1;
        heir.lineage.reach(Version { epoch: epoch(6, 2), seq: heir.seq });
        heir.parts.clear();
        heir.add(epoch(6, 2), 1);
        // The owner went further in its own epoch, and did not delete anything.
        assert_eq!(value(&owner.merged(&heir)), 108);
        // What it knew of is deleted with the rest.
        let mut other = Side::default();
        other.add(epoch(5, 1), 100);
        other.add(epoch(7, 3), 7);
        assert_eq!(value(&other.merged(&heir)), 8);
    }

    #[test]
    fn what_came_from_a_third_history_is_as_new_as_it_was_there() {
        let mut owner = Side::default();
        owner.add(epoch(5, 1), 100);
        let mut heir = owner.clone();
        owner.add(epoch(5, 1), 7);
        heir.add(epoch(6, 2), 30);
        // It began empty, and has what the owner had: it has not come through that epoch.
        let mut other = Side::default();
        other.add(epoch(7, 3), 1);
        (other.parts, other.seq) = (other.merged(&owner), 2);
        assert_eq!(value(&other.merged(&heir)), 138);
        assert_eq!(other.merged(&heir), heir.merged(&other));
    }

    proptest! {
        /// Whatever two sides do after they parted, merging gives what was added by anybody, in
        /// either order, and again when it is repeated.
        #[test]
        fn merging_gives_the_sum_of_all_that_was_added(
            common in prop::collection::vec((1u64..4, -50i64..50), 0..12),
            ours in prop::collection::vec((0u64..3, -50i64..50), 0..8),
            theirs in prop::collection::vec((0u64..3, -50i64..50), 0..8),
        ) {
            let mut side = Side::default();
            let mut counter = 1;
            let mut total = 0;
            for (more, by) in common {
                counter += more - 1;
                side.add(epoch(counter, 1), by);
                total += by;
            }
            let (mut one, mut other) = (side.clone(), side);
            // One side goes on in the same epoch, the other takes over.
            let (mut a, mut b) = (counter, counter + 1);
            for (more, by) in ours {
                a += more;
                one.add(epoch(a, 1), by);
                total += by;
            }
            for (more, by) in theirs {
                b += more;
                other.add(epoch(b, 2), by);
                total += by;
            }
            let merged = one.merged(&other);
            prop_assert_eq!(value(&merged), total);
            prop_assert_eq!(&merged, &other.merged(&one));
            prop_assert!(merged.len() <= PARTS_MAX);
            if one.parts.len() + other.parts.len() <= PARTS_MAX {
                let again = merge((&merged, &other.lineage), (&one.parts, &one.lineage));
                prop_assert_eq!(value(&again), total);
            }
        }
    }
}
