//! Requests that were executed on both sides of a cut.
//!
//! A request whose connection breaks in a cut is asked again, and may then be executed by another
//! owner of the same shard, which does not know what became of it before. When the histories meet,
//! the windows of the session name the request on both sides. Counters then have what it added
//! twice: the surplus is taken away again.
//!
//! How often a request counts is a counter itself, made of parts by epoch as any other
//! ([`counter`]): 1 in the epoch it was executed in. Merged, it is 2 for a request that both sides
//! executed. Whoever merges them takes one away in its own epoch, from this counter and from those
//! that the request had added to. So it does not matter which side does it, how often they
//! are merged, and whether both sides had taken it away already.

use stead_shared::id::Version;
use stead_shared::time::Time;

use super::Histories;
use super::counter::{self, Part};
use crate::logic::window::{Added, Entry, Window};

/// What has to be added to a counter because a request was counted too often: less than nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amends {
    /// The counter's name.
    pub name: Box<str>,
    /// What to add.
    pub by: i64,
}

/// Makes one window of those of two histories of a session, within the bounds of one, at `now`.
/// Says what is to be added to counters with the change `served`, which merges the session, and how
/// many requests were executed on both sides.
#[must_use]
pub fn unite(
    ours: &Window,
    theirs: &Window,
    histories: &Histories,
    served: Version,
    now: Time,
) -> (Window, Vec<Amends>, usize) {
    let (mut amends, mut n_twice) = (Vec::new(), 0);
    let window = ours.united(theirs, now, |ours, theirs| {
        let Some(surplus) = reconcile(ours, theirs, histories, served) else { return };
        n_twice += 1;
        let added = theirs.added.iter().flat_map(|added| &added.counters);
        amends.extend(added.map(|(name, by)| Amends {
            name: name.clone(),
            by: by.wrapping_mul(surplus).wrapping_neg(),
        }));
    });
    (window, amends, n_twice)
}

/// Makes a request that is in both windows count once. How often it counted beside that, if it did.
fn reconcile(
    ours: &mut Entry,
    theirs: &Entry,
    histories: &Histories,
    served: Version,
) -> Option<i64> {
    let (ours, theirs) = (ours.added.as_mut()?, theirs.added.as_ref()?);
    let sides = ((&*ours.counts, &histories.ours), (&*theirs.counts, &histories.theirs));
    let mut counts = counter::merge(sides.0, sides.1);
    let surplus = counter::value(&counts).wrapping_sub(1);
    if surplus != 0 {
        counter::add(&mut counts, served, surplus.wrapping_neg());
    }
    ours.counts = counts;
    (surplus != 0).then_some(surplus)
}

impl Added {
    /// Of a request that makes the change `at`; none where it adds to no counter.
    #[must_use]
    pub fn new(counters: Vec<(Box<str>, i64)>, at: Version) -> Option<Box<Self>> {
        let counts = vec![Part::new(at, 1)];
        (!counters.is_empty()).then(|| Box::new(Self { counters, counts }))
    }
}

#[cfg(test)]
mod tests {
    use stead_shared::id::{BootId, Epoch, NodeId, RequestId};

    use super::*;
    use crate::logic::heal::lineage::Lineage;
    use crate::logic::window::{Asked, Kept, NO_VERSION};

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, node: NodeId(1) }
    }

    fn lineage(ends: &[(u64, u64)]) -> Lineage {
        let ends = ends.iter().map(|&(counter, seq)| Version { epoch: epoch(counter), seq });
        Lineage::of(ends.collect()).unwrap()
    }

    /// One request, executed in this epoch.
    fn window(request: u64, by: i64, at: u64) -> Window {
        let id = Some(RequestId { boot: BootId(1), counter: request });
        let asked = Asked { id, attempt: 1, first_sent_ms: 1, key: None };
        let answer = Kept { status: 200, version: NO_VERSION, has_etag: false, content: None };
        let mut entry = Entry::new(asked, answer, Time::ZERO);
        let at = Version { epoch: epoch(at), seq: 10 * at };
        entry.added = Added::new(vec![("n".into(), by)], at);
        Window::from_parts(0, [entry], [])
    }

    fn amends(by: i64) -> Vec<Amends> {
        vec![Amends { name: "n".into(), by }]
    }

    #[test]
    fn what_both_sides_executed_counts_once_whoever_merges_it_and_how_often() {
        let (owner, heir) = (lineage(&[(1, 10), (2, 20)]), lineage(&[(1, 10), (3, 20)]));
        let (on_owner, on_heir) = (window(7, 5, 2), window(7, 5, 3));
        let histories = Histories::new(heir.clone(), owner.clone());
        let merge = |ours: &Window, theirs: &Window, histories: &Histories, at: u64| {
            let at = Version { epoch: epoch(at), seq: 10 * at };
            unite(ours, theirs, histories, at, Time::ZERO)
        };
        let (by_heir, made, n_twice) = merge(&on_heir, &on_owner, &histories, 4);
        assert_eq!((made, n_twice, by_heir.recent().len()), (amends(-5), 1, 1));
        // Another copy of what the owner had comes later.
        let after = lineage(&[(1, 10), (3, 20), (4, 21)]);
        let again = merge(&by_heir, &on_owner, &Histories::new(after.clone(), owner.clone()), 4);
        assert_eq!(again, (by_heir.clone(), vec![], 0));
        // The owner was merged with a third that the heir had told, and both are merged.
        let (by_owner, made, _) = merge(&on_owner, &on_heir, &Histories::new(owner, heir), 5);
        assert_eq!(made, amends(-5));
        let other = lineage(&[(1, 10), (2, 20), (5, 21)]);
        let (both, made, _) = merge(&by_heir, &by_owner, &Histories::new(after, other), 6);
        assert_eq!(made, amends(5), "taken away by both");
        let counts = &both.recent().next().unwrap().added.as_ref().unwrap().counts;
        assert_eq!(counter::value(counts), 1);
    }

    #[test]
    fn what_one_side_executed_or_both_have_in_common_is_left_alone() {
        let (owner, heir) = (lineage(&[(1, 10), (2, 20)]), lineage(&[(1, 10), (3, 20)]));
        let histories = Histories::new(heir, owner);
        let merge = |ours: &Window, theirs: &Window| {
            let at = Version { epoch: epoch(4), seq: 40 };
            let (window, amends, n_twice) = unite(ours, theirs, &histories, at, Time::ZERO);
            (window.recent().len(), amends.len(), n_twice)
        };
        assert_eq!(merge(&window(7, 5, 1), &window(7, 5, 1)), (1, 0, 0));
        assert_eq!(merge(&window(7, 5, 3), &window(8, 5, 2)), (2, 0, 0));
        assert_eq!(merge(&Window::default(), &window(8, 5, 2)), (1, 0, 0));
        assert_eq!(merge(&window(7, 5, 3), &window(7, 5, 2)), (1, 1, 1));
    }
}
