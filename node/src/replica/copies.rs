//! Copies that are kept here for other nodes: what their owners send is taken in, in order, each
//! item once, over however many connections it comes.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dashmap::mapref::entry::Entry;
use metrics::Gauge;
use stead_shared::control::ShardEpoch;
use stead_shared::id::{Epoch, NodeBoot, ShardId, Version};

use super::ReplicaReport;
use super::frame::{Ack, Head, Items, Refused};
use crate::disk::{Role, ShardMeta};
use crate::host::Host;
use crate::logic::replication::{Accept, CopyRules, CopyState, EntryHead, Lost, Taken};
use crate::store::arriving::Arriving;
use crate::store::aside::SetAside;
use crate::store::core::Core;
use crate::store::record::Record;
use crate::store::saving::Pen;
use crate::transfer::TransferError;

const RULES: &CopyRules = &CopyRules::ALL;

/// A copy that is kept here, for operators and for those who decide who promotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyStats {
    /// Which shard.
    pub shard: ShardId,
    /// Whom it follows.
    pub owner: NodeBoot,
    /// The epoch in which that one serves, as far as is known.
    pub epoch: Epoch,
    /// Where it ends: the epoch of it.
    pub at_epoch: Epoch,
    /// Where it ends: the number of its last change.
    pub seq: u64,
    /// Whether it holds everything up to there.
    pub complete: bool,
    /// Sessions in it.
    pub sessions: usize,
    /// Their bytes, with an estimate of the overhead.
    pub bytes: u64,
}

pub(crate) struct Copy {
    state: CopyState,
    arriving: Arriving,
    /// A shard that was served here until it was granted away.
    is_own: bool,
    counted: Option<Counted>,
    pen: Option<Box<Pen>>,
}

impl std::fmt::Debug for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copy").field("state", &self.state).finish_non_exhaustive()
    }
}

/// A complete copy in the gauge.
struct Counted(Gauge);

impl Counted {
    fn new(host: &Host) -> Self {
        let gauge = host.replicas().meters.copies.clone();
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Copy {
    fn incomplete(host: &Host, shard: ShardId, state: CopyState) -> Self {
        let pen = host.core().begin_on_disk(shard, meta_of(&state));
        Self { state, arriving: Arriving::new(), is_own: false, counted: None, pen }
    }

    /// Writes whom it follows and where it ends.
    fn save_state(&mut self, core: &Core, shard: ShardId) {
        let meta = meta_of(&self.state);
        if let Some((pen, arriving)) = self.pen(core, shard) {
            pen.meta(meta, arriving.past());
        }
    }

    /// Writes what came last.
    fn save(&mut self, core: &Core, shard: ShardId, record: &[u8]) {
        let state = self.state;
        let Some((pen, arriving)) = self.pen(core, shard) else { return };
        pen.follow(core, state.at, record, arriving.sessions());
        let moves = |record: &Record<'_>| match record {
            Record::Shard { .. } | Record::ShardPast { .. } | Record::Trimmed { .. } => true,
            Record::Session(_)
            | Record::Whole(..)
            | Record::Changed(..)
            | Record::Gone { .. }
            | Record::Touched { .. }
            | Record::Unconfirmed
            | Record::AtRest(..)
            | Record::Slot(..)
            | Record::SlotAtRest(..) => false,
        };
        if Record::decode(record).is_ok_and(|record| moves(&record)) {
            pen.meta(meta_of(&state), arriving.past());
        }
    }

    /// The pen and what it writes, if the disk has room. A copy that changed while it had none is written anew.
    fn pen(&mut self, core: &Core, shard: ShardId) -> Option<(&mut Pen, &Arriving)> {
        let saving = core.saving.get()?;
        let is_current = self.pen.as_ref().is_some_and(|pen| pen.is_current());
        if !saving.disk().has_room() {
            if let Some(mut pen) = self.pen.take() {
                pen.meta(
                    ShardMeta { complete: false, ..meta_of(&self.state) },
                    self.arriving.past(),
                );
            }
            return None;
        }
        if !is_current {
            let begun = ShardMeta { complete: false, ..meta_of(&self.state) };
            let mut pen = core.begin_on_disk(shard, begun)?;
            pen.put_all(core, self.state.at, self.arriving.sessions());
            pen.meta(meta_of(&self.state), self.arriving.past());
            self.pen = Some(pen);
        }
        Some((self.pen.as_deref_mut()?, &self.arriving))
    }

    /// The pen of a complete copy that ends at `at`.
    pub(crate) fn take_pen_at(&mut self, at: Version) -> Option<Box<Pen>> {
        let ends_there = self.state.complete && self.state.at == at;
        self.pen.take_if(|pen| ends_there && pen.is_current())
    }

    /// Whether it is on disk, complete, and ends at `at`.
    pub(crate) fn is_on_disk_at(&self, at: Version) -> bool {
        self.state.complete
            && self.state.at == at
            && self.pen.as_ref().is_some_and(|pen| pen.is_current())
    }

    pub(super) fn n_sessions(&self) -> usize {
        self.arriving.sessions().len()
    }

    pub(super) fn stats(&self, shard: ShardId) -> CopyStats {
        let CopyState { owner, epoch, promised: _, at, complete } = self.state;
        let sessions = self.arriving.sessions();
        CopyStats {
            shard,
            owner,
            epoch,
            at_epoch: at.epoch,
            seq: at.seq,
            complete,
            sessions: sessions.len(),
            bytes: sessions.bytes(),
        }
    }

    /// It follows into another epoch, if that was taken in.
    fn go_on(&mut self, accept: Accept, prev: Version) -> Result<(), Lost> {
        if accept == Accept::Apply {
            self.arriving.note_epoch(prev);
        }
        refusal(accept)
    }

    fn forget(self, core: &Core) -> usize {
        let n_sessions = self.n_sessions();
        if let Some(pen) = self.pen {
            pen.forget();
        }
        self.arriving.forget(core);
        n_sessions
    }
}

fn meta_of(state: &CopyState) -> ShardMeta {
    let CopyState { owner, at, complete, .. } = *state;
    ShardMeta { at, role: Role::Copy { owner }, complete, begun: None, alone: false }
}

// ---- by order of the driver -----------------------------------------------------------------

/// Makes a sealed shard a copy; only one that ends at `at` if that is given.
pub(super) fn keep_own(
    host: &Host,
    shard: ShardId,
    (owner, epoch): (NodeBoot, Epoch),
    at: Option<Version>,
) -> bool {
    match host.replicas().copies.entry(shard) {
        Entry::Occupied(copy) => {
            let state = &copy.get().state;
            state.complete && state.owner == owner && epoch <= state.epoch
        }
        Entry::Vacant(free) => {
            let Some((end, arriving, pen)) = host.take_sealed(shard, epoch, at) else {
                return false;
            };
            let state = CopyState::of_own(owner, epoch, end);
            let counted = Some(Counted::new(host));
            let mut copy = Copy { state, arriving, is_own: true, counted, pen };
            copy.save_state(host.core(), shard);
            free.insert(copy);
            true
        }
    }
}

pub(super) fn drop_copy(host: &Host, shard: ShardId) -> usize {
    let gone = host.replicas().copies.remove(&shard);
    gone.map_or(0, |(_, copy)| copy.forget(host.core()))
}

/// Takes a complete copy out. What is on disk of it stays until that is settled.
pub(super) fn set_aside(host: &Host, shard: ShardId) -> Option<SetAside> {
    let gone = host.replicas().copies.remove_if(&shard, |_, copy| copy.state.complete);
    gone.map(|(_, copy)| aside_of(host, shard, copy))
}

pub(super) fn set_replaced_aside(host: &Host, shard: ShardId) -> Option<SetAside> {
    host.replicas().replaced.remove(&shard).map(|(_, copy)| aside_of(host, shard, copy))
}

pub(super) fn drop_replaced(host: &Host, shard: ShardId) {
    if let Some((_, copy)) = host.replicas().replaced.remove(&shard) {
        copy.forget(host.core());
    }
}

fn aside_of(host: &Host, shard: ShardId, copy: Copy) -> SetAside {
    let Copy { state, mut arriving, pen, .. } = copy;
    arriving.set_seq(state.at.seq);
    arriving.note_epoch(state.at);
    let pen = pen.filter(|pen| pen.is_current());
    SetAside::of(Arc::clone(host.core()), shard, arriving, pen)
}

/// Serves a complete copy; with `only_own` one that was made of a shard that was served here.
pub(super) fn promote(host: &Host, shard: ShardId, epoch: Epoch, only_own: bool) -> bool {
    let Entry::Occupied(mut copy) = host.replicas().copies.entry(shard) else { return false };
    let CopyState { complete, at, promised, .. } = copy.get().state;
    let may = complete && (copy.get().is_own || !only_own) && promised <= epoch;
    if !may || host.gate(shard).is_some() {
        return false;
    }
    // The entry is held until the shard is here: what comes of it finds one or the other.
    let mut arriving = std::mem::replace(&mut copy.get_mut().arriving, Arriving::new());
    arriving.set_seq(at.seq);
    let pen = copy.get_mut().take_pen_at(at);
    host.serve_arrived(shard, epoch, arriving, Some(at.epoch), pen);
    copy.remove();
    true
}

pub(super) fn promise(host: &Host, shard: ShardId, epoch: Epoch) -> bool {
    let copy = host.replicas().copies.get_mut(&shard);
    copy.map(|mut copy| copy.state.promise(epoch)).is_some()
}

// ---- by order of their owners ---------------------------------------------------------------

/// One connection of an owner.
pub(super) struct Intake {
    host: Host,
    owner: NodeBoot,
    /// Shared with other connections of the same owner, of which one may be dead already.
    taken: Arc<Mutex<Taken>>,
    /// The position that comes next on this connection.
    next: Option<u64>,
}

impl Intake {
    pub(super) fn new(host: &Host, owner: NodeBoot) -> Self {
        let taken = Arc::clone(&host.replicas().taken.entry(owner).or_default());
        Self { host: host.clone(), owner, taken, next: None }
    }

    /// Takes a frame in, and adds what happened to `ack`.
    pub(super) fn take_in(&mut self, frame: Bytes, ack: &mut Ack) -> Result<(), TransferError> {
        self.host.replicas().meters.received.increment(frame.len() as u64);
        let mut items = Items::of(frame)?;
        if self.next.is_some_and(|next| next != items.position()) {
            return Err(TransferError::Broken);
        }
        let mut news = News { owner: self.owner, reports: Vec::new() };
        let outcome = self.take_items(&mut items, ack, &mut news);
        for report in news.reports {
            self.host.replicas().report(report);
        }
        self.next = Some(items.position());
        outcome
    }

    fn take_items(
        &self,
        items: &mut Items,
        ack: &mut Ack,
        news: &mut News,
    ) -> Result<(), TransferError> {
        let shared = Arc::clone(&self.taken);
        let mut taken = shared.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((position, head, record)) = items.next()? {
            let shard = head.shard();
            let refused = match taken.known(position, shard) {
                Some(outcome) => outcome,
                None => {
                    let outcome = self.apply(head, &record, news);
                    let is_news = taken.note(position, shard, head.begins(), outcome);
                    if is_news { outcome } else { Ok(()) }
                }
            };
            if let Err(why) = refused {
                ack.refused.push(Refused { position, shard, why });
            }
        }
        ack.position = ack.position.max(taken.position());
        Ok(())
    }

    fn apply(&self, head: Head, record: &[u8], news: &mut News) -> Result<(), Lost> {
        match head {
            Head::FillBegin { shard, at } => self.begin_fill(shard, at, news),
            Head::FillEnd { shard, at } => self.end_fill(shard, at, news),
            Head::Adopt { shard, epoch, prev } => self.adopt(shard, epoch, prev, news),
            Head::NextEpoch { shard, epoch, prev } => {
                let copy = self.host.replicas().copies.get_mut(&shard);
                let mut copy = copy.ok_or_else(|| self.without_copy(shard, epoch))?;
                let accept = copy.state.next_epoch(self.owner, epoch, prev, RULES);
                copy.go_on(accept, prev)?;
                copy.save_state(self.host.core(), shard);
                Ok(())
            }
            Head::Fill { shard, epoch } => {
                self.change(shard, epoch, record, |copy, owner| copy.fill(owner, epoch, RULES))
            }
            Head::Entry { shard, epoch, seq, prev } => {
                self.host.replicas().meters.entries.increment(1);
                self.change(shard, epoch, record, |copy, owner| {
                    copy.accept(&EntryHead { owner, epoch, seq, prev }, RULES)
                })
            }
            Head::Touch { shard, epoch } => {
                self.touch(shard, epoch, record);
                Ok(())
            }
        }
    }

    fn begin_fill(&self, shard: ShardId, at: Version, news: &mut News) -> Result<(), Lost> {
        let entry = self.host.replicas().copies.entry(shard);
        self.is_served(shard, at.epoch)?;
        // It is not decided yet whether what the disk holds is of use: a moment later it is.
        if self.host.core().saving.get().is_some_and(|saving| saving.keeps(shard)) {
            return Err(Lost::NoCopy);
        }
        let here = match &entry {
            Entry::Occupied(copy) => Some(&copy.get().state),
            Entry::Vacant(_) => None,
        };
        let state = CopyState::begin_fill(here, self.owner, at, RULES)?;
        match entry {
            Entry::Occupied(mut copy) => {
                let fresh = Copy::incomplete(&self.host, shard, state);
                let old = copy.insert(fresh);
                if old.state.complete && old.state.owner != self.owner {
                    drop_replaced(&self.host, shard);
                    self.host.replicas().replaced.insert(shard, old);
                    news.replaced(ShardEpoch { shard, epoch: at.epoch });
                } else {
                    old.forget(self.host.core());
                }
            }
            Entry::Vacant(free) => {
                drop(free.insert(Copy::incomplete(&self.host, shard, state)));
            }
        }
        news.begun(ShardEpoch { shard, epoch: at.epoch });
        Ok(())
    }

    fn end_fill(&self, shard: ShardId, at: Version, news: &mut News) -> Result<(), Lost> {
        let copy = self.host.replicas().copies.get_mut(&shard);
        let mut copy = copy.ok_or_else(|| self.without_copy(shard, at.epoch))?;
        match copy.state.end_fill(self.owner, at, RULES) {
            Accept::Apply => {
                copy.counted = Some(Counted::new(&self.host));
                copy.save_state(self.host.core(), shard);
                news.complete(ShardEpoch { shard, epoch: at.epoch });
                Ok(())
            }
            Accept::Duplicate => Ok(()),
            Accept::Refuse(lost) => Err(lost),
        }
    }

    fn adopt(
        &self,
        shard: ShardId,
        epoch: Epoch,
        prev: Version,
        news: &mut News,
    ) -> Result<(), Lost> {
        // A shard of our own that is sealed was granted away, and the grant went through.
        keep_own(&self.host, shard, (self.owner, epoch), Some(prev));
        let copy = self.host.replicas().copies.get_mut(&shard);
        let mut copy = copy.ok_or_else(|| self.without_copy(shard, epoch))?;
        let accept = copy.state.adopt(self.owner, epoch, prev, RULES);
        copy.go_on(accept, prev)?;
        copy.save_state(self.host.core(), shard);
        // One that follows already is told of too: whoever adopts wants to know.
        news.complete(ShardEpoch { shard, epoch });
        Ok(())
    }

    fn change(
        &self,
        shard: ShardId,
        epoch: Epoch,
        record: &[u8],
        accept: impl FnOnce(&mut CopyState, NodeBoot) -> Accept,
    ) -> Result<(), Lost> {
        let Entry::Occupied(mut copy) = self.host.replicas().copies.entry(shard) else {
            return Err(self.without_copy(shard, epoch));
        };
        match accept(&mut copy.get_mut().state, self.owner) {
            Accept::Apply => {}
            Accept::Duplicate => return Ok(()),
            Accept::Refuse(lost) => return Err(lost),
        }
        let core = self.host.core();
        if let Err(error) = copy.get_mut().arriving.add(core, record) {
            tracing::warn!(%error, %shard, "a copy is given up: a change cannot be taken in");
            copy.remove().forget(core);
            return Err(Lost::NoCopy);
        }
        copy.get_mut().save(core, shard, record);
        Ok(())
    }

    fn touch(&self, shard: ShardId, epoch: Epoch, record: &[u8]) {
        let Some(mut copy) = self.host.replicas().copies.get_mut(&shard) else { return };
        if copy.state.owner == self.owner && copy.state.promised <= epoch {
            // It needs no memory, and one that cannot be read is no change.
            let _ = copy.arriving.add(self.host.core(), record);
            copy.save(self.host.core(), shard, record);
        }
    }

    /// Nobody who serves a shard takes a copy of it.
    fn is_served(&self, shard: ShardId, epoch: Epoch) -> Result<(), Lost> {
        match self.host.gate(shard).and_then(|gate| gate.epoch()) {
            Some(served) if epoch <= served => Err(Lost::HigherEpoch(served)),
            Some(_) => Err(Lost::NoCopy),
            None => Ok(()),
        }
    }

    fn without_copy(&self, shard: ShardId, epoch: Epoch) -> Lost {
        self.is_served(shard, epoch).err().unwrap_or(Lost::NoCopy)
    }
}

/// Whether it was taken in, now or before.
fn refusal(accept: Accept) -> Result<(), Lost> {
    match accept {
        Accept::Apply | Accept::Duplicate => Ok(()),
        Accept::Refuse(lost) => Err(lost),
    }
}

/// What a frame changed, in order; each report of as many shards as come in a row.
struct News {
    owner: NodeBoot,
    reports: Vec<ReplicaReport>,
}

impl News {
    fn begun(&mut self, at: ShardEpoch) {
        if let Some(ReplicaReport::CopyBegun { shards, .. }) = self.reports.last_mut() {
            shards.push(at);
        } else {
            let (owner, shards) = (self.owner, vec![at]);
            self.reports.push(ReplicaReport::CopyBegun { owner, shards });
        }
    }

    fn replaced(&mut self, at: ShardEpoch) {
        let (owner, shards) = (self.owner, vec![at]);
        self.reports.push(ReplicaReport::CopyReplaced { owner, shards });
    }

    fn complete(&mut self, at: ShardEpoch) {
        if let Some(ReplicaReport::CopyComplete { shards, .. }) = self.reports.last_mut() {
            shards.push(at);
        } else {
            let (owner, shards) = (self.owner, vec![at]);
            self.reports.push(ReplicaReport::CopyComplete { owner, shards });
        }
    }
}
