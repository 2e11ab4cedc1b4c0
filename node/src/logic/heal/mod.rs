//! What becomes of two histories of one shard, when the nodes that served it hear each other again.
//!
//! The higher epoch has won by then and keeps the shard; the other side offers what it has. Of a
//! session, one side may have changes that the other lacks, or both:
//!
//! | changed since the histories parted | what stays |
//! |---|---|
//! | on neither side, or here alone | what is here |
//! | there alone | what is there |
//! | on both | value: the resolver says, by default the last writer; counters: what both sides added, what one request added on both once ([`twice`]) |
//!
//! A session that is missing on one side and was changed on the other stays: a change is worth
//! more than a deletion, which leaves no trace.
//!
//! A change is known on a side whose [lineage](Lineage) has it: it was made in an epoch that the side's
//! state has come through that far, itself or by merging all that another one had. What was merged
//! of a history that is not all here yet counts as changed here: it is never dropped, but a value may
//! be listed as a conflict that had been seen.

pub mod counter;
pub mod lineage;
pub mod twice;
pub mod value;

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

use stead_shared::id::{Epoch, Version};

use self::lineage::Lineage;

/// Where two states of a shard come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histories {
    /// Through what the state here came.
    pub ours: Lineage,
    /// Through what the other one came; empty where its process does not say it.
    pub theirs: Lineage,
    /// The last change that both have.
    pub ancestor: Option<Version>,
    /// Whoever serves the shard now has all that was answered in theirs, if it took over from a copy of
    /// it.
    pub is_unconfirmed: bool,
}

impl Histories {
    /// Nothing was said about them.
    pub const UNKNOWN: Self = Self {
        ours: Lineage::EMPTY,
        theirs: Lineage::EMPTY,
        ancestor: None,
        is_unconfirmed: false,
    };

    /// Of these two.
    #[must_use]
    pub fn new(ours: Lineage, theirs: Lineage) -> Self {
        let ancestor = ours.ancestor(&theirs);
        Self { ours, theirs, ancestor, is_unconfirmed: false }
    }

    /// Whether what theirs has beyond where they parted was answered to nobody: ours took over from a
    /// copy of it, in the epoch after its last one. A member that answers wait for may also have
    /// followed somebody else before it took over, while a cut healed.
    fn lacks_only_what_was_not_answered(&self, served: Epoch) -> bool {
        let Some(Version { epoch, .. }) = self.ancestor else { return false };
        let is_last = self.theirs.ends().last().is_some_and(|end| end.epoch == epoch);
        self.is_unconfirmed && is_last && self.ours.end_of(epoch.next(served.node)).is_some()
    }
}

/// A session, or what is left of one, as one side has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its last change.
    pub version: Version,
    /// It does not exist any more; only what it has answered does.
    pub is_tombstone: bool,
}

/// What is to be done with a session that another history has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: all that counts of it is here.
    Keep,
    /// Nothing: it lost to what is here.
    Lose,
    /// It comes in place of what is here.
    Take,
    /// One is made of both.
    Merge,
}

/// What is to be done with `theirs` in a shard that is served in the epoch `served`.
#[must_use]
pub fn decide(served: Epoch, here: Option<Side>, theirs: Side, histories: &Histories) -> Decision {
    let version_here = here.map(|here| here.version);
    if histories.theirs == Lineage::EMPTY {
        return decide_alone(served, version_here, theirs.version);
    }
    match (compare(version_here, theirs.version, histories), here) {
        (Verdict::Keep, _) => Decision::Keep,
        (Verdict::Take, _) => Decision::Take,
        // What was answered to nobody may have been asked for again, and be in what is here.
        (Verdict::Both, Some(_)) if histories.lacks_only_what_was_not_answered(served) => {
            Decision::Lose
        }
        // A change is worth more than a deletion.
        (Verdict::Both, Some(here)) if here.is_tombstone => Decision::Take,
        (Verdict::Both, _) if theirs.is_tombstone => Decision::Keep,
        (Verdict::Both, _) => Decision::Merge,
    }
}

/// The same where nobody says what the session came through.
fn decide_alone(served: Epoch, here: Option<Version>, theirs: Version) -> Decision {
    let Some(here) = here else { return Decision::Take };
    // Who served that epoch changed it after this: it has not been changed here since.
    let goes_on = here.epoch == theirs.epoch && here.seq < theirs.seq && here.epoch < served;
    match here == theirs {
        true => Decision::Keep,
        false if goes_on => Decision::Take,
        false => Decision::Lose,
    }
}

/// What is to happen to a session that another history has, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What is here stays, or stays away: nothing changed there.
    Keep,
    /// What is there counts: nothing changed here.
    Take,
    /// Both changed it.
    Both,
}

/// Compares the last changes of a session, here and there.
#[must_use]
pub fn compare(ours: Option<Version>, theirs: Version, histories: &Histories) -> Verdict {
    match ours {
        _ if histories.ours.has(theirs) => Verdict::Keep,
        // Nobody but its owner changes anything in an epoch: the later change knew the earlier one.
        Some(ours) if ours.epoch == theirs.epoch && theirs.seq <= ours.seq => Verdict::Keep,
        Some(ours) if ours.epoch == theirs.epoch => Verdict::Take,
        None => Verdict::Take,
        Some(ours) if histories.theirs.has(ours) => Verdict::Take,
        Some(_) => Verdict::Both,
    }
}

/// When a value was written, in microseconds: Unix time, or one more than the last one that this
/// process has seen anywhere, where that is later (hybrid logical clock, Kulkarni et al. 2014, with
/// the logical part in the low bits of the physical one).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Written(pub u64);

/// How far ahead another node's clock may be for its stamps to count here: an hour in microseconds.
const AHEAD_MAX: u64 = 3_600_000_000;

impl Written {
    /// The stamp of a change at this time of day, where this one was given or seen before.
    #[must_use]
    pub fn next(self, unix_micros: u64) -> Self {
        Self(unix_micros.max(self.0.saturating_add(1)))
    }

    /// Whether a stamp of another node counts at this time of day. Clocks that are wrong by more than
    /// an hour do not pull everybody's along.
    #[must_use]
    pub fn counts_at(self, unix_micros: u64) -> bool {
        self.0 < unix_micros.saturating_add(AHEAD_MAX)
    }
}

/// The sessions of another history that were merged into this one, while more of them may be
/// offered: what they were at its end is in what is here, and no conflict with what has become of it
/// since.
#[derive(Clone, Debug)]
pub struct Healed<K> {
    of: Version,
    keys: HashSet<K>,
}

impl<K: Hash + Eq> Healed<K> {
    /// Notes that a session of `theirs` was merged. Of two histories only the last one counts.
    pub fn note(healed: &mut Option<Box<Self>>, key: K, theirs: &Lineage) {
        let Some(&of) = theirs.ends().last() else { return };
        match healed.as_deref_mut().filter(|healed| healed.of == of) {
            Some(healed) => drop(healed.keys.insert(key)),
            None => *healed = Some(Box::new(Self { of, keys: [key].into() })),
        }
    }

    /// Whether a session of `theirs` was merged.
    #[must_use]
    pub fn has(&self, key: &K, theirs: &Lineage) -> bool {
        Some(&self.of) == theirs.ends().last() && self.keys.contains(key)
    }
}

/// What stays of a value that both sides changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// What is here. The other one is kept aside as a conflict.
    Ours,
    /// What is there. The one here is kept aside as a conflict.
    Theirs,
    /// This, which has all of both. There is no conflict.
    Both(Vec<u8>),
}

/// An application's own way to make one of two values of a session. It must give the same for the
/// same bytes on every node, and must not block.
pub trait Merge: Send + Sync + 'static {
    /// Merges two values. `ancestor` is the value that both were made of, where it is still known.
    fn merge(&self, ancestor: Option<&[u8]>, ours: &[u8], theirs: &[u8]) -> Merged;
}

impl<F> Merge for F
where
    F: Fn(Option<&[u8]>, &[u8], &[u8]) -> Merged + Send + Sync + 'static,
{
    fn merge(&self, ancestor: Option<&[u8]>, ours: &[u8], theirs: &[u8]) -> Merged {
        self(ancestor, ours, theirs)
    }
}

impl fmt::Debug for dyn Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Merge")
    }
}

/// The later writer wins; of two at the same time the one with the higher version.
#[must_use]
pub fn last_writer(ours: (Written, Version), theirs: (Written, Version)) -> Merged {
    let rank = |(written, at): (Written, Version)| (written, at.epoch, at.seq);
    if rank(ours) < rank(theirs) { Merged::Theirs } else { Merged::Ours }
}

#[cfg(test)]
mod tests {
    use stead_shared::id::{Epoch, NodeId};

    use super::*;

    fn at(counter: u64, seq: u64) -> Version {
        Version { epoch: Epoch { counter, node: NodeId(1) }, seq }
    }

    #[test]
    fn who_changed_a_session_since_has_it() {
        let lineage = |ends: &[Version]| Lineage::of(ends.to_vec()).unwrap();
        let ours = lineage(&[at(5, 100), at(6, 150)]);
        let parted = Histories::new(ours, lineage(&[at(5, 120)]));
        for (ours, theirs, wanted) in [
            (Some(at(5, 90)), at(5, 90), Verdict::Keep),
            (Some(at(6, 101)), at(5, 90), Verdict::Keep),
            (Some(at(5, 90)), at(5, 101), Verdict::Take),
            (Some(at(6, 101)), at(5, 101), Verdict::Both),
            (Some(at(5, 101)), at(5, 101), Verdict::Keep),
            (None, at(5, 90), Verdict::Keep),
            (None, at(5, 101), Verdict::Take),
        ] {
            assert_eq!(compare(ours, theirs, &parted), wanted, "{ours:?} {theirs:?}");
        }
        // It was taken over from a third history, which had it from before this one parted from theirs.
        let foreign = Version { epoch: Epoch { counter: 4, node: NodeId(3) }, seq: 120 };
        assert_eq!(compare(Some(at(5, 90)), foreign, &parted), Verdict::Take);
        assert_eq!(compare(Some(at(6, 101)), foreign, &parted), Verdict::Both);
        assert_eq!(compare(None, foreign, &parted), Verdict::Take);
        let unknown = &Histories::UNKNOWN;
        assert_eq!(compare(Some(at(6, 1)), at(5, 1), unknown), Verdict::Both);
        assert_eq!(compare(Some(at(5, 1)), at(5, 2), unknown), Verdict::Take);
        assert_eq!(compare(Some(at(5, 2)), at(5, 1), unknown), Verdict::Keep);
        assert_eq!(compare(None, at(5, 1), unknown), Verdict::Take);
    }

    #[test]
    fn what_becomes_of_an_offered_session() {
        let lineage = |ends: &[Version]| Lineage::of(ends.to_vec()).unwrap();
        let ours = lineage(&[at(5, 100), at(7, 300)]);
        let parted = Histories::new(ours, lineage(&[at(5, 100), at(6, 200)]));
        assert_eq!(parted.ancestor, Some(at(5, 100)));
        let unconfirmed = |ours: &[Version], theirs: &[Version]| {
            let is_unconfirmed = true;
            Histories { is_unconfirmed, ..Histories::new(lineage(ours), lineage(theirs)) }
        };
        // Who takes over from a copy does so in the next epoch, and which is its own.
        let heir = unconfirmed(&[at(5, 100), at(6, 300)], &[at(5, 200)]);
        let heirs_heir = unconfirmed(&[at(5, 100), at(6, 250), at(7, 300)], &[at(5, 200)]);
        let somebody = Version { epoch: Epoch { counter: 6, node: NodeId(2) }, seq: 250 };
        let elsewhere = unconfirmed(&[at(5, 100), somebody, at(7, 300)], &[at(5, 200)]);
        let later = unconfirmed(&[at(5, 100), at(7, 300)], &[at(5, 100), at(6, 200)]);
        let unknown = Histories::UNKNOWN;
        let apart = Histories::new(lineage(&[at(7, 300)]), lineage(&[at(6, 200)]));
        let strangers = Histories { is_unconfirmed: true, ..apart.clone() };
        let live = |version| Some(Side { version, is_tombstone: false });
        let dead = |version| Some(Side { version, is_tombstone: true });
        let (old, here, there) = (at(5, 90), at(7, 250), at(6, 150));
        for (histories, ours, theirs, wanted) in [
            (&parted, live(here), live(old), Decision::Keep),
            (&parted, live(old), live(there), Decision::Take),
            (&parted, None, live(there), Decision::Take),
            (&parted, None, live(old), Decision::Keep),
            (&parted, live(here), live(there), Decision::Merge),
            (&parted, dead(here), live(there), Decision::Take),
            (&parted, live(here), dead(there), Decision::Keep),
            (&parted, dead(here), dead(there), Decision::Take),
            (&heir, live(here), live(at(5, 150)), Decision::Lose),
            (&heir, live(old), live(at(5, 150)), Decision::Take),
            (&heirs_heir, live(here), live(at(5, 150)), Decision::Lose),
            (&elsewhere, live(here), live(at(5, 150)), Decision::Merge),
            (&later, live(here), live(there), Decision::Merge),
            (&strangers, live(here), live(there), Decision::Merge),
            (&apart, live(here), live(there), Decision::Merge),
            (&unknown, None, live(there), Decision::Take),
            (&unknown, live(there), live(there), Decision::Keep),
            (&unknown, live(at(6, 140)), live(there), Decision::Take),
            (&unknown, live(here), live(there), Decision::Lose),
            (&unknown, live(at(7, 240)), live(here), Decision::Lose),
        ] {
            let decision = decide(here.epoch, ours, theirs.unwrap(), histories);
            assert_eq!(decision, wanted, "{histories:?} {ours:?} {theirs:?}");
        }
    }

    #[test]
    fn the_last_writer_wins_on_both_sides_alike() {
        let (early, late) = ((Written(1), at(6, 9)), (Written(2), at(5, 3)));
        assert_eq!(last_writer(early, late), Merged::Theirs);
        assert_eq!(last_writer(late, early), Merged::Ours);
        let (low, high) = ((Written(2), at(5, 9)), (Written(2), at(6, 3)));
        assert_eq!(last_writer(low, high), Merged::Theirs);
        assert_eq!(last_writer(high, low), Merged::Ours);
    }
}
