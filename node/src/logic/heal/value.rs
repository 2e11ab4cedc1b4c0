//! Values that two histories of a session have.

use stead_shared::id::Version;

use super::{Histories, Merge, Merged, Verdict, Written, compare, last_writer};

/// A value, as one side has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// What it is.
    pub bytes: &'a [u8],
    /// The version of its schema, if it is typed.
    pub schema: Option<u32>,
    /// The change that wrote it.
    pub at: Version,
    /// When anything but a counter of its session last changed.
    pub written: Written,
}

/// Which value stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stays {
    /// What is here; `loses`: the other one is a conflict, since its writer did not see this one nor
    /// this one's writer it.
    Ours {
        /// Whether there is a conflict.
        loses: bool,
    },
    /// What is there.
    Theirs {
        /// Whether what is here is a conflict.
        loses: bool,
    },
    /// This, which has all of both.
    Both(Vec<u8>),
}

/// What stays of the values of a session that both sides changed. By default the later writer's.
#[must_use]
pub fn merge(
    ours: Option<Value<'_>>,
    theirs: Option<Value<'_>>,
    histories: &Histories,
    resolver: Option<&dyn Merge>,
) -> Stays {
    let (ours, theirs) = match (ours, theirs) {
        (Some(ours), Some(theirs)) => (ours, theirs),
        (Some(_), None) => return Stays::Ours { loses: false },
        (None, _) => return Stays::Theirs { loses: false },
    };
    let is_same = (ours.bytes, ours.schema) == (theirs.bytes, theirs.schema);
    match compare(Some(ours.at), theirs.at, histories) {
        Verdict::Keep => return Stays::Ours { loses: false },
        Verdict::Take | Verdict::Both if is_same => return Stays::Ours { loses: false },
        Verdict::Take => return Stays::Theirs { loses: false },
        Verdict::Both => {}
    }
    let merged = match resolver.filter(|_| ours.schema == theirs.schema) {
        Some(resolver) => resolver.merge(None, ours.bytes, theirs.bytes),
        None => last_writer((ours.written, ours.at), (theirs.written, theirs.at)),
    };
    match merged {
        Merged::Ours => Stays::Ours { loses: true },
        Merged::Theirs => Stays::Theirs { loses: true },
        Merged::Both(bytes) => Stays::Both(bytes),
    }
}

#[cfg(test)]
mod tests {
    use stead_shared::id::{Epoch, NodeId};

    use super::*;
    use crate::logic::heal::lineage::Lineage;

    fn at(counter: u64, seq: u64) -> Version {
        Version { epoch: Epoch { counter, node: NodeId(1) }, seq }
    }

    fn value(bytes: &[u8], at: Version, written: u64) -> Value<'_> {
        Value { bytes, schema: None, at, written: Written(written) }
    }

    #[test]
    fn only_what_neither_saw_of_the_other_is_a_conflict() {
        let lineage = |ends: &[Version]| Lineage::of(ends.to_vec()).unwrap();
        let (ours, theirs) = (lineage(&[at(5, 9), at(7, 20)]), lineage(&[at(5, 9), at(6, 20)]));
        let parted = Histories::new(ours, theirs);
        let (old, here, there) = (at(5, 4), at(7, 15), at(6, 12));
        let (stays, loses) = (Stays::Ours { loses: false }, Stays::Ours { loses: true });
        let (goes, is_lost) = (Stays::Theirs { loses: false }, Stays::Theirs { loses: true });
        for (ours, theirs, wanted) in [
            (value(b"a", here, 8), value(b"b", old, 3), &stays),
            (value(b"a", old, 3), value(b"b", there, 8), &goes),
            (value(b"a", old, 3), value(b"a", there, 8), &stays),
            (value(b"a", here, 7), value(b"a", there, 8), &stays),
            (value(b"a", here, 8), value(b"b", there, 7), &loses),
            (value(b"a", here, 7), value(b"b", there, 8), &is_lost),
        ] {
            let merged = merge(Some(ours), Some(theirs), &parted, None);
            assert_eq!(merged, *wanted, "{ours:?} {theirs:?}");
        }
        assert_eq!(merge(None, Some(value(b"b", there, 1)), &parted, None), goes);
        assert_eq!(merge(Some(value(b"a", old, 1)), None, &parted, None), stays);
    }

    #[test]
    fn a_resolver_is_asked_about_values_of_one_schema() {
        let both =
            |_: Option<&[u8]>, ours: &[u8], theirs: &[u8]| Merged::Both([ours, theirs].concat());
        let (ours, theirs) = (value(b"a", at(7, 1), 1), value(b"b", at(6, 1), 2));
        let merged = |theirs| merge(Some(ours), Some(theirs), &Histories::UNKNOWN, Some(&both));
        assert_eq!(merged(theirs), Stays::Both(b"ab".to_vec()));
        assert_eq!(merged(Value { schema: Some(1), ..theirs }), Stays::Theirs { loses: true });
    }
}
