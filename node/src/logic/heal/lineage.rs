//! Through which epochs the state of a shard has come.

use serde::{Deserialize, Serialize};
use stead_shared::id::{Epoch, Version};

/// Most epochs that are remembered; with more the oldest are forgotten, and histories that parted
/// before have nothing in common any more.
pub const EPOCHS_MAX: usize = 32;

/// The epochs in which a shard was served and changed, oldest first, each with the last change in
/// it that is in the shard's state. Nobody but its owner changes anything in an epoch, so that two nodes
/// whose lineages name the same epoch have the same changes of it, up to the lower of their ends.
/// Epochs of other histories are in it once all that those had was merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lineage {
    ends: Vec<Version>,
}

impl Lineage {
    /// Of a shard that was never changed.
    pub const EMPTY: Self = Self { ends: Vec::new() };

    /// What another member says. None when the epochs go back.
    #[must_use]
    pub fn of(ends: Vec<Version>) -> Option<Self> {
        let grows = |pair: &[Version]| pair[0].epoch < pair[1].epoch;
        let is_lineage = ends.len() <= EPOCHS_MAX && ends.windows(2).all(grows);
        is_lineage.then_some(Self { ends })
    }

    /// The last change in each epoch, oldest first.
    #[must_use]
    pub fn ends(&self) -> &[Version] {
        &self.ends
    }

    /// The shard is at `at`. Epochs in which nothing changed are left out.
    pub fn reach(&mut self, at: Version) {
        match self.ends.last_mut() {
            Some(last) if at.seq <= last.seq => {}
            Some(last) if last.epoch == at.epoch => last.seq = at.seq,
            Some(_) | None if at.seq == 0 => {}
            Some(_) | None => {
                self.ends.push(at);
                if EPOCHS_MAX < self.ends.len() {
                    self.ends.remove(0);
                }
            }
        }
    }

    /// All that another history has is in this one, which is served in the epoch `served`. Whether that
    /// is more than before.
    pub fn learn(&mut self, other: &Self, served: Epoch) -> bool {
        let mut is_news = false;
        for end in other.ends.iter().filter(|end| end.epoch < served) {
            if self.has(*end) {
                continue;
            }
            is_news = true;
            match self.ends.binary_search_by_key(&end.epoch, |known| known.epoch) {
                Ok(n) => self.ends[n].seq = end.seq,
                Err(n) => self.ends.insert(n, *end),
            }
        }
        let n_surplus = self.ends.len().saturating_sub(EPOCHS_MAX);
        self.ends.drain(..n_surplus);
        is_news
    }

    /// Whether a change is in it. One of an epoch before all that are remembered counts as if it were.
    #[must_use]
    pub fn has(&self, change: Version) -> bool {
        let oldest = self.ends.first().filter(|_| EPOCHS_MAX <= self.ends.len());
        let is_forgotten = oldest.is_some_and(|oldest| change.epoch < oldest.epoch);
        is_forgotten || Some(change.seq) <= self.end_of(change.epoch)
    }

    /// The last change made in `epoch`; none where it was not served in it, or nothing changed.
    #[must_use]
    pub fn end_of(&self, epoch: Epoch) -> Option<u64> {
        let at = self.ends.binary_search_by_key(&epoch, |end| end.epoch).ok()?;
        self.ends.get(at).map(|end| end.seq)
    }

    /// The last change that both have; none when they have nothing in common.
    #[must_use]
    pub fn ancestor(&self, other: &Self) -> Option<Version> {
        self.ends.iter().rev().find_map(|end| {
            let seq = end.seq.min(other.end_of(end.epoch)?);
            Some(Version { seq, ..*end })
        })
    }

    /// How this one stands to `other`.
    #[must_use]
    pub fn relation(&self, other: &Self) -> Relation {
        let (ours, theirs) = (self.ends.last().copied(), other.ends.last().copied());
        match self.ancestor(other) {
            _ if ours == theirs => Relation::Same,
            ancestor if ancestor == theirs => Relation::Ahead,
            ancestor if ancestor == ours => Relation::Behind,
            ancestor => Relation::Parted(ancestor),
        }
    }
}

/// How one lineage stands to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both end with the same change.
    Same,
    /// It has all changes of the other, and more.
    Ahead,
    /// The other has all its changes, and more.
    Behind,
    /// Each has changes that the other has not; the last one that both have, if any.
    Parted(Option<Version>),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stead_shared::id::NodeId;

    use super::*;

    fn at(counter: u64, node: u64, seq: u64) -> Version {
        Version { epoch: Epoch { counter, node: NodeId(node) }, seq }
    }

    fn lineage(ends: &[Version]) -> Lineage {
        Lineage::of(ends.to_vec()).unwrap()
    }

    #[test]
    fn an_owner_that_went_on_and_the_copy_that_took_over_part_where_the_copy_ended() {
        let owner = lineage(&[at(3, 1, 40), at(5, 1, 120)]);
        let heir = lineage(&[at(3, 1, 40), at(5, 1, 100), at(6, 2, 130)]);
        assert_eq!(owner.relation(&heir), Relation::Parted(Some(at(5, 1, 100))));
        assert_eq!(heir.relation(&owner), Relation::Parted(Some(at(5, 1, 100))));
        assert!(owner.has(at(5, 1, 101)) && !heir.has(at(5, 1, 101)));
        assert!(heir.has(at(6, 2, 101)) && !owner.has(at(6, 2, 101)));
        assert!(owner.has(at(3, 1, 7)) && heir.has(at(3, 1, 7)));
    }

    #[test]
    fn who_changed_nothing_since_is_behind() {
        let owner = lineage(&[at(5, 1, 100)]);
        let heir = lineage(&[at(5, 1, 100), at(6, 2, 130)]);
        assert_eq!(owner.relation(&heir), Relation::Behind);
        assert_eq!(heir.relation(&owner), Relation::Ahead);
        assert_eq!(heir.relation(&heir.clone()), Relation::Same);
    }

    #[test]
    fn a_shard_that_began_empty_elsewhere_has_nothing_in_common() {
        let owner = lineage(&[at(5, 1, 100)]);
        let fresh = lineage(&[at(6, 2, 3)]);
        assert_eq!(owner.relation(&fresh), Relation::Parted(None));
        assert_eq!(Lineage::EMPTY.relation(&owner), Relation::Behind);
        assert_eq!(Lineage::EMPTY.relation(&Lineage::EMPTY), Relation::Same);
    }

    #[test]
    fn epochs_without_a_change_leave_no_trace() {
        let mut it = Lineage::EMPTY;
        for at in [at(1, 1, 0), at(2, 1, 4), at(2, 1, 6), at(3, 2, 6), at(4, 1, 7)] {
            it.reach(at);
        }
        assert_eq!(it.ends(), [at(2, 1, 6), at(4, 1, 7)]);
        for n in 0..100 {
            it.reach(at(5 + n, 1, 8 + n));
        }
        assert_eq!(it.ends().len(), EPOCHS_MAX);
        assert_eq!(it.ends().last(), Some(&at(104, 1, 107)));
    }

    /// A change of another history is not in this one, however old the epoch is that it was made in.
    #[test]
    fn what_was_merged_is_known_and_what_was_not_is_not() {
        let mut heir = lineage(&[at(5, 1, 100), at(7, 2, 160)]);
        let other = lineage(&[at(5, 1, 90), at(6, 3, 150), at(8, 3, 170)]);
        assert!(!heir.has(at(6, 3, 1)));
        assert!(heir.learn(&other, at(8, 2, 0).epoch));
        assert_eq!(heir.ends(), [at(5, 1, 100), at(6, 3, 150), at(7, 2, 160)]);
        assert!(heir.has(at(6, 3, 150)) && !heir.has(at(6, 3, 151)));
        assert!(!heir.learn(&other, at(8, 2, 0).epoch));
        heir.reach(at(8, 2, 171));
        for n in 0..40 {
            assert!(heir.learn(&lineage(&[at(10 + n, 1, 200)]), at(99, 1, 0).epoch));
        }
        assert_eq!(heir.ends().len(), EPOCHS_MAX);
        assert!(heir.has(at(6, 3, 151)), "it is as good as known");
    }

    #[test]
    fn what_goes_back_is_no_lineage() {
        assert!(Lineage::of(vec![at(2, 1, 4), at(1, 1, 5)]).is_none());
        assert!(Lineage::of(vec![at(2, 1, 4); EPOCHS_MAX + 1]).is_none());
    }

    proptest! {
        /// Two histories that share a beginning part at its end, whatever came after it.
        #[test]
        fn the_ancestor_is_where_histories_parted(
            shared in prop::collection::vec(1u64..5, 1..6),
            ours in prop::collection::vec(1u64..5, 0..6),
            theirs in prop::collection::vec(1u64..5, 1..6),
        ) {
            let mut common = Lineage::EMPTY;
            let (mut counter, mut seq) = (0, 0);
            for n in &shared {
                (counter, seq) = (counter + 1, seq + n);
                common.reach(at(counter, 1, seq));
            }
            let go_on = |node: u64, more: &[u64]| {
                let (mut it, mut seq) = (common.clone(), seq);
                for (n, more) in (1..).zip(more) {
                    seq += more;
                    it.reach(at(counter + n, node, seq));
                }
                it
            };
            let (ours, theirs) = (go_on(2, &ours), go_on(3, &theirs));
            prop_assert_eq!(ours.ancestor(&theirs), Some(at(counter, 1, seq)));
        }
    }
}
