//! The judge of what is there when histories that had parted are one again.
//!
//! A counter is the sum of what its writes added, each once. The last acknowledged write of a value
//! on each side is the value, or is listed as a conflict, or was overwritten by a write that saw it
//! and of which the same holds.

use std::collections::{BTreeMap, BTreeSet};

use stead_node::logic::heal::Decision;
use stead_shared::id::ShardId;

use crate::content::{adds, puts};
use crate::history::{Done, Op};
use crate::host::Session;
use crate::oracle::Violation;

/// What became of sessions that other nodes had, too.
#[derive(Debug, Default)]
pub(crate) struct Merges {
    /// The writes whose values each write has replaced, wherever it was executed.
    saw: BTreeMap<u32, BTreeSet<u32>>,
    /// Writes that were executed in more than one place.
    twice: BTreeSet<u32>,
    /// Writes whose values are listed as conflicts.
    listed: BTreeSet<u32>,
    pub(crate) n_taken: u32,
    pub(crate) n_merged: u32,
    /// Conflicts that are none: the value had been seen by whoever replaced it.
    pub(crate) n_false: u32,
}

impl Merges {
    /// A write was executed where this one's value was.
    pub(crate) fn saw(&mut self, op: u32, seen: Option<u32>) {
        if self.saw.contains_key(&op) {
            self.twice.insert(op);
        }
        self.saw.entry(op).or_default().extend(seen);
    }

    /// A session was taken in. The value of `loser` is listed as one that `kept` did not see.
    pub(crate) fn merged(&mut self, decision: Decision, kept: Option<u32>, loser: Option<u32>) {
        self.n_taken += u32::from(decision == Decision::Take);
        self.n_merged += u32::from(decision == Decision::Merge);
        self.listed.extend(loser);
        // What a write saw that was executed twice it did not see in both places.
        let is_once = |op: u32| !self.twice.contains(&op);
        let loser = loser.filter(|op| is_once(*op));
        let is_seen = loser.is_some_and(|op| self.seen_by(kept, is_once).contains(&op));
        self.n_false += u32::from(is_seen);
    }

    /// These writes, and those whose values they replaced, and so on, as far as `counts` says.
    fn seen_by(
        &self,
        writes: impl IntoIterator<Item = u32>,
        counts: impl Fn(u32) -> bool,
    ) -> BTreeSet<u32> {
        let mut rest: Vec<u32> = writes.into_iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(op) = rest.pop() {
            if seen.insert(op) && counts(op) {
                rest.extend(self.saw.get(&op).into_iter().flatten());
            }
        }
        seen
    }

    pub(crate) fn n_conflicts(&self) -> usize {
        self.listed.len()
    }

    /// Those of `writes` whose values are there, are listed, or were overwritten by such.
    fn accounted(&self, value: Option<u32>, writes: &[(u32, Op)]) -> BTreeSet<u32> {
        let is_listed = |op: &u32| self.listed.contains(op);
        let listed = writes.iter().map(|(op, _)| *op).filter(is_listed);
        self.seen_by(listed.chain(value), |_| true)
    }

    /// Long after the last cut: what is wrong with a session.
    pub(crate) fn check(
        &self,
        (shard, session): (ShardId, u8),
        ops: &[Op],
        state: &Session,
    ) -> Vec<(Violation, String)> {
        let is_of =
            |(_, op): &(u32, &Op)| op.is_write && op.shard == shard && op.session == session;
        let writes: Vec<(u32, Op)> = (0..).zip(ops).filter(is_of).map(|(n, op)| (n, *op)).collect();
        let is_acked = |(_, op): &&(u32, Op)| matches!(op.done, Some((_, Done::Value(_))));
        let is_unknown = |(_, op): &&(u32, Op)| matches!(op.done, Some((_, Done::Unknown)) | None);
        let sum = |it: &mut dyn Iterator<Item = &(u32, Op)>| it.map(|(op, _)| adds(*op)).sum();
        let low: i64 = sum(&mut writes.iter().filter(is_acked));
        let more: i64 = sum(&mut writes.iter().filter(is_unknown));
        let here: i64 = state.ops.iter().map(|op| adds(*op)).sum();
        let counter = state.content.counter();
        let mut found = Vec::new();
        if !(low..=low + more).contains(&counter) || counter != here {
            let text = format!(
                "shard {shard} session {session}: {counter}, acknowledged {low}, unknown {more}, \
                 executed {here}"
            );
            found.push((Violation::CounterOff, text));
        }
        let value = state.content.value.map(|it| it.op);
        let accounted = self.accounted(value, &writes);
        let is_lost = |(op, _): &&(u32, Op)| puts(*op) && !accounted.contains(op);
        let lost: Vec<u32> =
            writes.iter().filter(is_acked).filter(is_lost).map(|(op, _)| *op).collect();
        if !lost.is_empty() {
            let text = format!("shard {shard} session {session}: {lost:?}, value {value:?}");
            found.push((Violation::LostValue, text));
        }
        found
    }
}
