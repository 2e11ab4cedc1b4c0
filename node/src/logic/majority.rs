//! Whether this node is on the smaller side of a cut.
//!
//! What counts is the *settled set*: the ready nodes, once they have not changed for a while. A node
//! that dies stays in it until the others, being the majority, have settled without it; one that
//! leaves, or that an operator says is gone for ever, goes at once. A minority never settles: it
//! stays one until enough of the others are back, or are forgotten.
//!
//! Of two halves the one with the lowest node id is the majority: both sides know that without
//! hearing each other, and nobody knows more.

use std::collections::BTreeSet;
use std::time::Duration;

use stead_shared::id::NodeId;
use stead_shared::time::Time;

/// The settled set, and what may become it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Majority {
    settles_after: Duration,
    settled: BTreeSet<NodeId>,
    ready: BTreeSet<NodeId>,
    ready_since: Time,
}

impl Majority {
    /// Nobody counts yet, and nobody is in a minority.
    #[must_use]
    pub fn new(settles_after: Duration, now: Time) -> Self {
        let (settled, ready) = (BTreeSet::new(), BTreeSet::new());
        Self { settles_after, settled, ready, ready_since: now }
    }

    /// These nodes are ready and alive, as far as is known here, and those have left.
    pub fn see(&mut self, now: Time, ready: BTreeSet<NodeId>, left: &BTreeSet<NodeId>) {
        self.settled.retain(|node| !left.contains(node));
        if ready != self.ready {
            self.ready = ready;
            self.ready_since = now;
        }
        self.advance(now);
    }

    /// Time has passed.
    pub fn advance(&mut self, now: Time) {
        let is_settled = self.settles_after <= now.since(self.ready_since);
        if is_settled && !self.is_minority() && !self.ready.is_empty() {
            self.settled.clone_from(&self.ready);
        }
    }

    /// This node is gone for ever.
    pub fn forget(&mut self, node: NodeId) {
        self.settled.remove(&node);
    }

    /// Every moment that is remembered: see `Ownership::each_time`.
    pub(super) fn each_time(&mut self, visit: &mut dyn FnMut(&mut Time, Duration)) {
        visit(&mut self.ready_since, self.settles_after);
    }

    /// Whether fewer than half of the settled set are ready, or half of it without the lowest id.
    #[must_use]
    pub fn is_minority(&self) -> bool {
        self.is_minority_of(&self.ready)
    }

    /// The same, if only these nodes were ready.
    #[must_use]
    pub fn is_minority_of(&self, ready: &BTreeSet<NodeId>) -> bool {
        let here = self.settled.intersection(ready).count();
        let has_lowest = self.settled.first().is_none_or(|lowest| ready.contains(lowest));
        match (2 * here).cmp(&self.settled.len()) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => !has_lowest,
            std::cmp::Ordering::Greater => false,
        }
    }

    /// Nodes of the settled set, and how many of them are ready.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        (self.settled.len(), self.settled.intersection(&self.ready).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(60);

    fn set(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().map(|node| NodeId(*node)).collect()
    }

    fn at(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    /// Five nodes that have settled.
    fn five() -> Majority {
        let mut majority = Majority::new(AFTER, at(0));
        majority.see(at(1), set(&[1, 2, 3, 4, 5]), &set(&[]));
        majority.advance(at(61));
        assert_eq!(majority.count(), (5, 5));
        majority
    }

    #[test]
    fn nobody_is_in_a_minority_before_a_set_has_settled() {
        let mut majority = Majority::new(AFTER, at(0));
        majority.see(at(1), set(&[1, 2, 3]), &set(&[]));
        majority.see(at(60), set(&[1]), &set(&[]));
        assert!(!majority.is_minority());
    }

    #[test]
    fn two_of_five_are_a_minority_however_long_it_lasts() {
        let mut majority = five();
        majority.see(at(70), set(&[1, 2, 3]), &set(&[]));
        assert!(!majority.is_minority());
        majority.see(at(71), set(&[1, 2]), &set(&[]));
        assert!(majority.is_minority());
        majority.advance(at(1_000));
        assert!(majority.is_minority());
        majority.see(at(1_001), set(&[1, 2, 5]), &set(&[]));
        assert!(!majority.is_minority());
    }

    #[test]
    fn a_majority_settles_without_the_dead() {
        let mut majority = five();
        majority.see(at(70), set(&[3, 4, 5]), &set(&[]));
        majority.advance(at(129));
        assert_eq!(majority.count(), (5, 3));
        majority.advance(at(130));
        assert_eq!(majority.count(), (3, 3));
        majority.see(at(131), set(&[4, 5]), &set(&[]));
        assert!(!majority.is_minority());
    }

    #[test]
    fn who_leaves_does_not_count() {
        let mut majority = five();
        majority.see(at(70), set(&[1, 2]), &set(&[3, 4]));
        assert_eq!(majority.count(), (3, 2));
        assert!(!majority.is_minority());
    }

    #[test]
    fn forgotten_nodes_make_a_majority_of_the_rest() {
        let mut majority = five();
        majority.see(at(70), set(&[4, 5]), &set(&[]));
        assert!(majority.is_minority());
        majority.forget(NodeId(1));
        // Two of four, without the lowest.
        assert!(majority.is_minority());
        majority.forget(NodeId(2));
        assert!(!majority.is_minority());
        majority.advance(at(130));
        assert_eq!(majority.count(), (2, 2));
    }

    #[test]
    fn of_two_halves_the_one_with_the_lowest_id_goes_on() {
        let mut majority = Majority::new(AFTER, at(0));
        majority.see(at(0), set(&[1, 2, 3, 4]), &set(&[]));
        majority.advance(at(60));
        assert!(!majority.is_minority_of(&set(&[1, 4])));
        assert!(majority.is_minority_of(&set(&[2, 3])));
        assert!(!majority.is_minority_of(&set(&[2, 3, 4])));
        assert!(majority.is_minority_of(&set(&[1])));
    }
}
