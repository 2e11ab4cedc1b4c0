//! What becomes of two histories of one shard, when the nodes that served it hear each other again.
//!
//! The higher epoch has won by then and keeps the shard; the other side offers what it has. Of a
//! session, one side may have changes that the other lacks, or both:
//!
//! | changed since the histories parted | what stays |
//! |---|---|
//! | on neither side, or here alone | what is here |
//! | there alone | what is there |
//! | on both | value: the resolver says, by default the last writer; counters: what both sides added |
//!
//! A session that is missing on one side and was changed on the other stays: a change is worth
//! more than a deletion, which leaves no trace.

pub mod counter;
pub mod lineage;

use std::fmt;

use stead_shared::id::Version;

use self::lineage::is_common;

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
pub fn compare(ours: Option<Version>, theirs: Version, ancestor: Option<Version>) -> Verdict {
    match ours {
        _ if is_common(theirs, ancestor) => Verdict::Keep,
        // Nobody but its owner changes anything in an epoch: the later change knew the earlier one.
        Some(ours) if ours.epoch == theirs.epoch && theirs.seq <= ours.seq => Verdict::Keep,
        Some(ours) if ours.epoch == theirs.epoch => Verdict::Take,
        None => Verdict::Take,
        Some(ours) if is_common(ours, ancestor) => Verdict::Take,
        Some(_) => Verdict::Both,
    }
}

/// When a value was written, in microseconds: Unix time, or one more than the last one that this
/// process has seen anywhere, where that is later (hybrid logical clock, Kulkarni et al. 2014, with
/// the logical part in the low bits of the physical one).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Written(pub u64);

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
        let parted = Some(at(5, 100));
        for (ours, theirs, wanted) in [
            (Some(at(5, 90)), at(5, 90), Verdict::Keep),
            (Some(at(6, 101)), at(5, 90), Verdict::Keep),
            (Some(at(5, 90)), at(5, 101), Verdict::Take),
            (Some(at(6, 101)), at(5, 101), Verdict::Both),
            (Some(at(5, 101)), at(5, 101), Verdict::Keep),
            (None, at(5, 90), Verdict::Keep),
            (None, at(5, 101), Verdict::Take),
        ] {
            assert_eq!(compare(ours, theirs, parted), wanted, "{ours:?} {theirs:?}");
        }
        assert_eq!(compare(Some(at(6, 1)), at(5, 1), None), Verdict::Both);
        assert_eq!(compare(Some(at(5, 1)), at(5, 2), None), Verdict::Take);
        assert_eq!(compare(Some(at(5, 2)), at(5, 1), None), Verdict::Keep);
        assert_eq!(compare(None, at(5, 1), None), Verdict::Take);
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
