//! What an owner keeps until a follower has it, and when a follower takes something in.
//!
//! ```text
//!  owner                                           replica
//!    FillBegin(e, seq)   ─────────────────────────▶  whatever was there of the shard is replaced
//!    sessions … entries … sessions … entries ─────▶  incomplete: each later one is newer
//!    FillEnd(e, seq)     ─────────────────────────▶  complete
//!    Adopt(e, previous)  ─────────────────────────▶  a complete copy that ends there follows
//!    NextEpoch(e, previous) ──────────────────────▶  so does one that followed all the time
//!    Entry(e, seq, previous) ─────────────────────▶  taken in if the copy ends at `previous`
//!    ◀── position taken in, what was refused ──────
//! ```
//!
//! | copy \ event | FillBegin | FillEnd | Adopt | NextEpoch | Entry |
//! |---|---|---|---|---|---|
//! | none | incomplete | no copy | no copy | no copy | no copy |
//! | incomplete, same owner | incomplete anew | complete, if it ends there | no copy | incomplete, in it | incomplete, one further |
//! | complete, same owner | incomplete anew | repeated | complete, in the new epoch | complete, in it | complete, one further |
//! | complete, other owner | incomplete anew | no copy | complete, follows the new owner | no copy | no copy |
//! | any, of a higher epoch | refused: higher epoch | refused | refused | refused | refused |
//!
//! A copy never overwrites what it cannot connect to: it refuses, stays where it is, and its owner
//! begins anew with a fill.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stead_shared::id::{Epoch, NodeBoot, ShardId, Version};
use stead_shared::time::Time;

/// The rules of copies that a test can switch off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRules {
    /// R6: a copy takes an entry only if it ends at the one before, and only in an epoch that is
    /// not below what it has promised.
    pub replica_checks_previous: bool,
}

impl CopyRules {
    /// All rules on: the only setting outside tests.
    pub const ALL: Self = Self { replica_checks_previous: true };
}

/// Why a copy does not follow its owner any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lost {
    /// It does not end where the next entry goes on.
    Behind,
    /// It has promised itself to this epoch, which is higher.
    HigherEpoch(Epoch),
    /// There is none that follows this owner.
    NoCopy,
}

impl Lost {
    /// For metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Behind => "behind",
            Self::HigherEpoch(_) => "higher-epoch",
            Self::NoCopy => "no-copy",
        }
    }
}

// ---- the owner's side -----------------------------------------------------------------------

/// Most bytes that are not acknowledged while a copy is filled: enough to keep a connection busy.
pub const FILL_AHEAD: usize = 1 << 20;

/// Items on their way to one follower: each has a position, and is kept until it is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outbox<T> {
    waiting: VecDeque<Waiting<T>>,
    acked: u64,
    bytes: usize,
    bytes_max: usize,
    silent_since: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiting<T> {
    item: T,
    bytes: usize,
    since: Time,
}

impl<T> Outbox<T> {
    /// Empty; its first item gets the position after `after`. More than `bytes_max` bytes that are
    /// not acknowledged are too many.
    #[must_use]
    pub fn new(after: u64, bytes_max: usize) -> Self {
        let waiting = VecDeque::new();
        Self { waiting, acked: after, bytes: 0, bytes_max, silent_since: None }
    }

    /// Appends an item of `bytes` bytes and gives its position.
    pub fn push(&mut self, now: Time, item: T, bytes: usize) -> u64 {
        self.waiting.push_back(Waiting { item, bytes, since: now });
        self.bytes += bytes;
        self.silent_since.get_or_insert(now);
        self.last()
    }

    /// Everything up to `position` has been taken in. Gives how long the oldest of it had waited;
    /// none when nothing is new. What was never sent cannot be acknowledged.
    pub fn ack(&mut self, now: Time, position: u64) -> Option<Duration> {
        let position = position.min(self.last());
        let oldest = self.waiting.front().filter(|_| self.acked < position)?.since;
        while self.acked < position {
            let Some(gone) = self.waiting.pop_front() else { break };
            self.bytes -= gone.bytes;
            self.acked += 1;
        }
        self.silent_since = (!self.waiting.is_empty()).then_some(now);
        Some(now.since(oldest))
    }

    /// Forgets what waits, as if it were acknowledged: nobody follows any more.
    pub fn clear(&mut self) {
        self.acked = self.last();
        self.waiting = VecDeque::new();
        self.bytes = 0;
        self.silent_since = None;
    }

    /// The position up to which everything was taken in.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The position of the last item.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.acked + self.waiting.len() as u64
    }

    /// What is not acknowledged and comes after `position`, in order.
    pub fn unacked(&self, position: u64) -> impl Iterator<Item = (u64, &T)> {
        let skip = position.saturating_sub(self.acked);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(self.waiting.len());
        let first = self.acked + skip as u64 + 1;
        (first..).zip(self.waiting.range(skip..).map(|waiting| &waiting.item))
    }

    /// Bytes that are not acknowledged.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether changes have to wait. While there are `fills` they wait as soon as these do, so that
    /// both go on, and an answer waits for no more than that.
    #[must_use]
    pub fn is_full(&self, fills: bool) -> bool {
        let most = if fills { FILL_AHEAD.min(self.bytes_max / 2) } else { self.bytes_max };
        most <= self.bytes
    }

    /// Since when the oldest item waits.
    #[must_use]
    pub fn oldest_since(&self) -> Option<Time> {
        self.waiting.front().map(|waiting| waiting.since)
    }

    /// Since when nothing was acknowledged although something waits.
    #[must_use]
    pub fn silent_since(&self) -> Option<Time> {
        self.silent_since
    }
}

// ---- the replica's side ---------------------------------------------------------------------

/// How far a follower has met what an owner sends, over all connections that this came by.
///
/// What comes again by a new connection is what the owner did not hear of: it is not taken in twice,
/// and what was refused of it is told once more. Else its sender would believe that it was taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    position: u64,
    /// Of each shard, the first item that was refused since the last one that begins anew. So there
    /// are at most as many as shards.
    refused: BTreeMap<ShardId, (u64, Lost)>,
}

impl Taken {
    /// Everything up to here was taken in or refused.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What became of an item that was met before, and is not taken in again.
    #[must_use]
    pub fn known(&self, position: u64, shard: ShardId) -> Option<Result<(), Lost>> {
        if self.position < position {
            return None;
        }
        let refused = self.refused.get(&shard).filter(|(at, _)| *at == position);
        Some(refused.map_or(Ok(()), |(_, why)| Err(*why)))
    }

    /// Notes what became of the next item; `begins` when a follower begins with it. Whether its owner
    /// has to be told: what follows of a shard of which an item was refused is refused, too.
    pub fn note(
        &mut self,
        position: u64,
        shard: ShardId,
        begins: bool,
        outcome: Result<(), Lost>,
    ) -> bool {
        self.position = position;
        if begins {
            self.refused.remove(&shard);
        }
        match outcome {
            Err(why) if !self.refused.contains_key(&shard) => {
                self.refused.insert(shard, (position, why));
                true
            }
            Ok(()) | Err(_) => false,
        }
    }
}

/// What is known about an entry before it is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    /// Who sends it.
    pub owner: NodeBoot,
    /// The epoch in which its owner serves the shard.
    pub epoch: Epoch,
    /// Its number.
    pub seq: u64,
    /// Where the shard was before.
    pub prev: Version,
}

/// What a copy does with something that its owner sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Accept {
    /// Take it in.
    Apply,
    /// It is here already.
    Duplicate,
    /// It does not fit; nothing changed.
    Refuse(Lost),
}

/// What is known of a copy without looking at its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CopyState {
    /// Whom it follows.
    pub owner: NodeBoot,
    /// The epoch in which that one serves, as far as is known.
    pub epoch: Epoch,
    /// Nothing of a lower epoch is taken in any more.
    pub promised: Epoch,
    /// Where it ends: an epoch in which it followed, and the number of its last change.
    pub at: Version,
    /// Whether it holds everything up to there.
    pub complete: bool,
}

impl CopyState {
    /// A copy that is complete: a shard that was served here, and whose next owner serves it in
    /// `epoch`.
    #[must_use]
    pub fn of_own(owner: NodeBoot, epoch: Epoch, at: Version) -> Self {
        Self { owner, epoch, promised: epoch, at, complete: true }
    }

    /// ## (any) => Incomplete
    /// What was there is of no use for whoever fills, and goes.
    ///
    /// # Errors
    /// When the one that is here has promised itself to a higher epoch.
    pub fn begin_fill(
        here: Option<&Self>,
        owner: NodeBoot,
        at: Version,
        rules: &CopyRules,
    ) -> Result<Self, Lost> {
        let promised = here.map_or(at.epoch, |here| here.promised);
        if at.epoch < promised && rules.replica_checks_previous {
            return Err(Lost::HigherEpoch(promised));
        }
        let epoch = at.epoch;
        Ok(Self { owner, epoch, promised: epoch.max(promised), at, complete: false })
    }

    /// Whether a session of a fill is taken in.
    pub fn fill(&self, owner: NodeBoot, epoch: Epoch, rules: &CopyRules) -> Accept {
        match self.is_from(owner, epoch, rules) {
            Ok(()) if self.complete => Accept::Duplicate,
            Ok(()) => Accept::Apply,
            Err(lost) => Accept::Refuse(lost),
        }
    }

    /// ## Incomplete => Complete
    pub fn end_fill(&mut self, owner: NodeBoot, at: Version, rules: &CopyRules) -> Accept {
        if let Err(lost) = self.is_from(owner, at.epoch, rules) {
            return Accept::Refuse(lost);
        }
        if self.at != at && rules.replica_checks_previous {
            return Accept::Refuse(Lost::Behind);
        }
        let was_complete = std::mem::replace(&mut self.complete, true);
        if was_complete { Accept::Duplicate } else { Accept::Apply }
    }

    /// ## Complete (any owner) => Complete (follows `owner` in `epoch`)
    /// It must end exactly where the owner began in that epoch.
    pub fn adopt(
        &mut self,
        owner: NodeBoot,
        epoch: Epoch,
        prev: Version,
        rules: &CopyRules,
    ) -> Accept {
        if epoch < self.promised && rules.replica_checks_previous {
            return Accept::Refuse(Lost::HigherEpoch(self.promised));
        }
        if !self.complete {
            return Accept::Refuse(Lost::NoCopy);
        }
        if self.owner == owner && self.at == (Version { epoch, seq: prev.seq }) {
            return Accept::Duplicate;
        }
        self.go_on(owner, epoch, prev, rules)
    }

    /// ## (any) => the same, in the owner's next epoch
    pub fn next_epoch(
        &mut self,
        owner: NodeBoot,
        epoch: Epoch,
        prev: Version,
        rules: &CopyRules,
    ) -> Accept {
        match self.is_from(owner, epoch, rules) {
            Ok(()) if self.at.epoch == epoch => Accept::Duplicate,
            Ok(()) => self.go_on(owner, epoch, prev, rules),
            Err(lost) => Accept::Refuse(lost),
        }
    }

    fn go_on(&mut self, owner: NodeBoot, epoch: Epoch, prev: Version, rules: &CopyRules) -> Accept {
        if self.at != prev && rules.replica_checks_previous {
            return Accept::Refuse(Lost::Behind);
        }
        (self.owner, self.epoch) = (owner, epoch);
        self.promised = self.promised.max(epoch);
        self.at = Version { epoch, seq: prev.seq };
        Accept::Apply
    }

    /// Whether an entry is taken in; it ends there then.
    pub fn accept(&mut self, entry: &EntryHead, rules: &CopyRules) -> Accept {
        let EntryHead { owner, epoch, seq, prev } = *entry;
        if let Err(lost) = self.is_from(owner, epoch, rules) {
            return Accept::Refuse(lost);
        }
        if epoch == self.at.epoch && seq <= self.at.seq {
            return Accept::Duplicate;
        }
        if self.at != prev && rules.replica_checks_previous {
            return Accept::Refuse(Lost::Behind);
        }
        self.at = Version { epoch, seq };
        self.epoch = epoch;
        self.promised = self.promised.max(epoch);
        Accept::Apply
    }

    /// Takes nothing of an epoch below `epoch` in any more.
    pub fn promise(&mut self, epoch: Epoch) {
        self.promised = self.promised.max(epoch);
    }

    /// Whether what `owner` sends in `epoch` is for this copy.
    fn is_from(&self, owner: NodeBoot, epoch: Epoch, rules: &CopyRules) -> Result<(), Lost> {
        if epoch < self.promised && rules.replica_checks_previous {
            return Err(Lost::HigherEpoch(self.promised));
        }
        if owner == self.owner { Ok(()) } else { Err(Lost::NoCopy) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use stead_shared::id::{BootId, NodeId};

    use super::*;

    const A: NodeBoot = NodeBoot { node: NodeId(0xa), boot: BootId(1) };
    const B: NodeBoot = NodeBoot { node: NodeId(0xb), boot: BootId(1) };
    const ON: &CopyRules = &CopyRules::ALL;
    const OFF: &CopyRules = &CopyRules { replica_checks_previous: false };

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, node: NodeId(1) }
    }

    fn at(counter: u64, seq: u64) -> Version {
        Version { epoch: epoch(counter), seq }
    }

    /// Follows `A` in epoch 3, up to change 7.
    fn copy(complete: bool) -> CopyState {
        CopyState { owner: A, epoch: epoch(3), promised: epoch(3), at: at(3, 7), complete }
    }

    fn entry(owner: NodeBoot, (counter, seq): (u64, u64), prev: Version) -> EntryHead {
        EntryHead { owner, epoch: epoch(counter), seq, prev }
    }

    const BEHIND: Accept = Accept::Refuse(Lost::Behind);
    const NO_COPY: Accept = Accept::Refuse(Lost::NoCopy);

    fn promised(counter: u64) -> Accept {
        Accept::Refuse(Lost::HigherEpoch(epoch(counter)))
    }

    /// What `act` says, and that only `Apply` changes anything.
    fn check(
        before: CopyState,
        wanted: Accept,
        act: impl FnOnce(&mut CopyState) -> Accept,
    ) -> CopyState {
        let mut after = before;
        assert_eq!(act(&mut after), wanted);
        assert_eq!(after != before, wanted == Accept::Apply);
        after
    }

    #[test]
    fn an_entry_is_taken_in_where_the_copy_ends() {
        for complete in [false, true] {
            for (entry, wanted) in [
                (entry(A, (3, 8), at(3, 7)), Accept::Apply),
                // Numbers may leave some out: the one before says where it goes on.
                (entry(A, (3, 20), at(3, 7)), Accept::Apply),
                (entry(A, (3, 7), at(3, 6)), Accept::Duplicate),
                (entry(A, (3, 1), at(3, 0)), Accept::Duplicate),
                (entry(A, (3, 9), at(3, 8)), BEHIND),
                (entry(A, (3, 8), at(2, 7)), BEHIND),
                (entry(A, (2, 8), at(2, 7)), promised(3)),
                (entry(A, (4, 8), at(4, 7)), BEHIND),
                (entry(B, (3, 8), at(3, 7)), NO_COPY),
                (entry(B, (4, 8), at(3, 7)), NO_COPY),
                (entry(B, (2, 8), at(3, 7)), promised(3)),
            ] {
                let after = check(copy(complete), wanted, |copy| copy.accept(&entry, ON));
                assert_eq!(after.complete, complete);
                if wanted == Accept::Apply {
                    assert_eq!(after.at, Version { epoch: entry.epoch, seq: entry.seq });
                }
            }
        }
    }

    #[test]
    fn a_complete_copy_that_ends_there_is_adopted() {
        for (owner, counter, prev, wanted) in [
            (B, 4, at(3, 7), Accept::Apply),
            (A, 4, at(3, 7), Accept::Apply),
            (A, 3, at(2, 7), Accept::Duplicate),
            (B, 4, at(3, 6), BEHIND),
            (B, 4, at(3, 8), BEHIND),
            (B, 4, at(2, 7), BEHIND),
            (B, 2, at(3, 7), promised(3)),
        ] {
            let adopt = |copy: &mut CopyState| copy.adopt(owner, epoch(counter), prev, ON);
            let after = check(copy(true), wanted, adopt);
            if wanted == Accept::Apply {
                let state = CopyState { owner, epoch: epoch(4), promised: epoch(4), ..copy(true) };
                assert_eq!(after, CopyState { at: at(4, 7), ..state });
            }
            let wanted = if counter < 3 { promised(3) } else { NO_COPY };
            check(copy(false), wanted, adopt);
        }
    }

    #[test]
    fn a_copy_goes_along_into_its_owner_s_next_epoch() {
        for complete in [false, true] {
            for (owner, counter, prev, wanted) in [
                (A, 4, at(3, 7), Accept::Apply),
                (A, 3, at(3, 7), Accept::Duplicate),
                (A, 4, at(3, 8), BEHIND),
                (B, 4, at(3, 7), NO_COPY),
                (A, 2, at(3, 7), promised(3)),
            ] {
                let go = |copy: &mut CopyState| copy.next_epoch(owner, epoch(counter), prev, ON);
                assert_eq!(check(copy(complete), wanted, go).complete, complete);
            }
        }
    }

    #[test]
    fn a_fill_replaces_what_is_there_and_ends_where_the_owner_is() {
        let begun = CopyState::begin_fill(None, A, at(3, 7), ON).unwrap();
        assert_eq!(begun, copy(false));
        for here in [copy(true), copy(false), CopyState { owner: B, ..copy(true) }] {
            assert_eq!(CopyState::begin_fill(Some(&here), A, at(3, 7), ON), Ok(copy(false)));
            let lost = Lost::HigherEpoch(epoch(3));
            assert_eq!(CopyState::begin_fill(Some(&here), A, at(2, 9), ON), Err(lost));
        }
        for (owner, end, wanted) in [
            (A, at(3, 7), Accept::Apply),
            (A, at(3, 8), BEHIND),
            (A, at(3, 6), BEHIND),
            (B, at(3, 7), NO_COPY),
            (A, at(2, 7), promised(3)),
        ] {
            let after = check(copy(false), wanted, |copy| copy.end_fill(owner, end, ON));
            assert_eq!(after.complete, wanted == Accept::Apply);
        }
        check(copy(true), Accept::Duplicate, |copy| copy.end_fill(A, at(3, 7), ON));
        for (complete, owner, counter, wanted) in [
            (false, A, 3, Accept::Apply),
            (true, A, 3, Accept::Duplicate),
            (false, B, 3, NO_COPY),
            (false, A, 2, promised(3)),
        ] {
            assert_eq!(copy(complete).fill(owner, epoch(counter), ON), wanted);
        }
    }

    #[test]
    fn a_promise_shuts_the_old_owner_out() {
        let mut copy = copy(true);
        copy.promise(epoch(5));
        copy.promise(epoch(4));
        assert_eq!(copy.accept(&entry(A, (3, 8), at(3, 7)), ON), promised(5));
        assert_eq!(copy.adopt(B, epoch(4), at(3, 7), ON), promised(5));
        assert_eq!(copy.adopt(B, epoch(5), at(3, 7), ON), Accept::Apply);
    }

    #[test]
    fn without_the_rule_a_gap_goes_unnoticed() {
        assert_eq!(copy(true).accept(&entry(A, (3, 9), at(3, 8)), OFF), Accept::Apply);
        assert_eq!(copy(true).accept(&entry(A, (2, 9), at(2, 8)), OFF), Accept::Apply);
        assert_eq!(copy(true).adopt(B, epoch(4), at(3, 9), OFF), Accept::Apply);
    }

    #[test]
    fn an_outbox_tells_of_its_silences() {
        let time = Time::from_micros;
        let mut outbox = Outbox::new(10, 100);
        assert_eq!((outbox.silent_since(), outbox.oldest_since()), (None, None));
        assert_eq!(outbox.push(time(1), 'a', 30), 11);
        assert_eq!(outbox.push(time(2), 'b', 30), 12);
        assert!(outbox.is_full(true) && !outbox.is_full(false));
        assert_eq!(outbox.push(time(3), 'c', 40), 13);
        assert!(outbox.is_full(false));
        assert_eq!((outbox.silent_since(), outbox.oldest_since()), (Some(time(1)), Some(time(1))));
        assert_eq!(outbox.ack(time(5), 12), Some(Duration::from_micros(4)));
        assert_eq!((outbox.silent_since(), outbox.oldest_since()), (Some(time(5)), Some(time(3))));
        assert_eq!(outbox.ack(time(6), 12), None, "nothing new");
        assert_eq!(outbox.silent_since(), Some(time(5)));
        assert_eq!(
            outbox.ack(time(9), 99),
            Some(Duration::from_micros(6)),
            "no more than was sent"
        );
        assert_eq!((outbox.acked(), outbox.bytes(), outbox.silent_since()), (13, 0, None));
    }

    proptest! {
        #[test]
        fn an_outbox_keeps_what_is_not_acknowledged_in_order(
            steps in vec((0u8..3, 0u64..40), 0..100),
        ) {
            let (mut outbox, mut all, mut acked) = (Outbox::new(0, 1 << 20), Vec::new(), 0u64);
            for (step, n) in steps {
                match step {
                    0 => {
                        all.push(n);
                        prop_assert_eq!(outbox.push(Time::ZERO, n, n as usize), all.len() as u64);
                    }
                    1 => {
                        acked = acked.max(n.min(all.len() as u64));
                        outbox.ack(Time::ZERO, n);
                    }
                    _ => {
                        let after = n.max(acked).min(all.len() as u64);
                        let left = outbox.unacked(n).map(|(at, item)| (at, *item));
                        let wanted = (after + 1..).zip(all[after as usize..].iter().copied());
                        prop_assert!(left.eq(wanted));
                    }
                }
                prop_assert_eq!((outbox.acked(), outbox.last()), (acked, all.len() as u64));
                prop_assert_eq!(outbox.bytes() as u64, all[acked as usize..].iter().sum::<u64>());
            }
        }
    }
}
