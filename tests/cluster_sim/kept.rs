//! Copies of others' shards, which follow their owners by the production rules.

use std::collections::BTreeMap;
use std::time::Duration;

use stead_node::logic::durable::{Role, ShardMeta};
use stead_node::logic::gate::Gate;
use stead_node::logic::heal::lineage::Lineage;
use stead_node::logic::ownership::Event;
use stead_node::logic::replication::{Accept, CopyRules, CopyState, EntryHead, Lost, Taken};
use stead_shared::control::ShardEpoch;
use stead_shared::id::{Epoch, NodeBoot, ShardId, Version};

use crate::ctx::{Ctx, Happens, SESSIONS};
use crate::feed::Item;
use crate::host::{Contents, Session};
use crate::links::Msg;
use crate::node::NodeModel;
use crate::offers::Aside;
use crate::oracle::Violation;
use crate::saved::Pen;

/// A copy.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) state: CopyState,
    /// The epochs that it has come through before the one of its last change.
    pub(crate) past: Lineage,
    pub(crate) sessions: Vec<Session>,
    /// A shard that was served here until it was granted away.
    pub(crate) is_own: bool,
    pub(crate) pen: Option<Pen>,
}

impl Kept {
    pub(crate) fn meta(&self) -> ShardMeta {
        let CopyState { owner, at, complete, .. } = self.state;
        ShardMeta { at, role: Role::Copy { owner }, complete, begun: None, alone: false }
    }
}

/// The replica's side of all copies.
#[derive(Debug, Default)]
pub(crate) struct KeptCopies {
    pub(crate) copies: BTreeMap<ShardId, Kept>,
    /// Complete ones whose place another owner's took, until it is decided what becomes of them.
    pub(crate) replaced: BTreeMap<ShardId, Kept>,
    /// How far each owner's items were met.
    taken: BTreeMap<NodeBoot, Taken>,
}

fn outcome(accept: Accept) -> Result<bool, Lost> {
    match accept {
        Accept::Apply => Ok(true),
        Accept::Duplicate => Ok(false),
        Accept::Refuse(lost) => Err(lost),
    }
}

impl NodeModel {
    pub(crate) fn on_items(
        &mut self,
        ctx: &mut Ctx,
        conn: u64,
        owner: NodeBoot,
        first: u64,
        items: Vec<Item>,
    ) {
        let mut refused = Vec::new();
        for (position, item) in (first..).zip(items) {
            let shard = item.shard();
            let taken = self.kept.taken.entry(owner).or_default();
            if let Some(known) = taken.known(position, shard) {
                refused.extend(known.err().map(|why| (position, shard, why)));
                continue;
            }
            let begins = matches!(item, Item::FillBegin { .. } | Item::Adopt { .. });
            let entry = match &item {
                Item::Entry { at, prev, .. } => Some((shard, *at, *prev)),
                Item::FillBegin { .. }
                | Item::Fill { .. }
                | Item::FillEnd { .. }
                | Item::Adopt { .. }
                | Item::NextEpoch { .. } => None,
            };
            let outcome = self.take_in(ctx, owner, item);
            if let (Some(entry), Ok(())) = (entry, outcome) {
                self.judge(ctx, entry);
            }
            let taken = self.kept.taken.entry(owner).or_default();
            if taken.note(position, shard, begins, outcome)
                && let Err(why) = outcome
            {
                refused.push((position, shard, why));
            }
        }
        let position = self.kept.taken.get(&owner).map_or(0, Taken::position);
        ctx.send(conn, self.at, Msg::Taken { position, refused });
    }

    fn take_in(&mut self, ctx: &mut Ctx, owner: NodeBoot, item: Item) -> Result<(), Lost> {
        let rules = &CopyRules { replica_checks_previous: ctx.knobs.rules.appends_follow };
        match item {
            Item::FillBegin { shard, at, past } => {
                self.is_served(ctx, shard, at.epoch)?;
                if self.saving.as_ref().is_some_and(|saving| saving.keeps(shard)) {
                    return Err(Lost::NoCopy);
                }
                let here = self.kept.copies.get(&shard).map(|copy| &copy.state);
                let state = CopyState::begin_fill(here, owner, at, rules)?;
                let sessions = vec![Session::default(); usize::from(SESSIONS)];
                let mut copy = Kept { state, past, sessions, is_own: false, pen: None };
                copy.pen = self.begin_on_disk(ctx, shard, copy.meta(), &copy.past);
                let old = self.kept.copies.insert(shard, copy);
                let shards = vec![ShardEpoch { shard, epoch: at.epoch }];
                if let Some(old) = old.filter(|it| it.state.complete && it.state.owner != owner) {
                    self.kept.replaced.insert(shard, old);
                    let shards = shards.clone();
                    self.report(ctx, Event::CopyReplaced { owner, shards });
                }
                self.report(ctx, Event::CopyBegun { owner, shards });
            }
            Item::Fill { shard, epoch, session, state } => {
                self.is_here(ctx, shard, epoch)?;
                let Some(copy) = self.kept.copies.get_mut(&shard) else { return Ok(()) };
                if outcome(copy.state.fill(owner, epoch, rules))? {
                    ctx.oracle.reached(self.me, [&state]);
                    self.host.clock.see(ctx.sim.now(), state.content.written);
                    copy.sessions[usize::from(session)] = state;
                    self.save_copy(ctx, shard, Some(session));
                }
            }
            Item::FillEnd { shard, at } => {
                self.is_here(ctx, shard, at.epoch)?;
                let Some(copy) = self.kept.copies.get_mut(&shard) else { return Ok(()) };
                if outcome(copy.state.end_fill(owner, at, rules))? {
                    self.save_copy(ctx, shard, None);
                    let shards = vec![ShardEpoch { shard, epoch: at.epoch }];
                    self.report(ctx, Event::CopyComplete { owner, shards });
                }
            }
            Item::Adopt { shard, epoch, prev } => {
                self.keep_own(ctx, shard, (owner, epoch), Some(prev));
                self.is_here(ctx, shard, epoch)?;
                let Some(copy) = self.kept.copies.get_mut(&shard) else { return Ok(()) };
                if outcome(copy.state.adopt(owner, epoch, prev, rules))? {
                    copy.past.reach(prev);
                }
                self.save_copy(ctx, shard, None);
                let shards = vec![ShardEpoch { shard, epoch }];
                self.report(ctx, Event::CopyComplete { owner, shards });
            }
            Item::NextEpoch { shard, epoch, prev } => {
                self.is_here(ctx, shard, epoch)?;
                let Some(copy) = self.kept.copies.get_mut(&shard) else { return Ok(()) };
                if outcome(copy.state.next_epoch(owner, epoch, prev, rules))? {
                    copy.past.reach(prev);
                }
                self.save_copy(ctx, shard, None);
            }
            Item::Entry { shard, at, prev, state, is_whole, past } => {
                self.is_here(ctx, shard, at.epoch)?;
                let Some(copy) = self.kept.copies.get_mut(&shard) else { return Ok(()) };
                let Version { epoch, seq } = at;
                let head = EntryHead { owner, epoch, seq, prev };
                if outcome(copy.state.accept(&head, rules))? {
                    ctx.oracle.entry(ctx.sim.now(), shard, at, state.as_ref());
                    ctx.oracle.reached(self.me, state.as_ref().map(|(_, state)| state));
                    let session = state.as_ref().map(|(session, _)| *session);
                    copy.past = past.unwrap_or_else(|| copy.past.clone());
                    if let Some((session, mut state)) = state {
                        let here = &mut copy.sessions[usize::from(session)];
                        if is_whole {
                            self.host.clock.see(ctx.sim.now(), state.content.written);
                        } else {
                            let stamp = || self.host.clock.stamp(ctx.sim.now());
                            state.derive(here, stamp);
                        }
                        *here = state;
                    }
                    self.save_copy(ctx, shard, session);
                }
            }
        }
        Ok(())
    }

    fn judge(&self, ctx: &mut Ctx, entry: (ShardId, Version, Version)) {
        let copy = self.kept.copies.get(&entry.0);
        // One that is incomplete gets the rest by its fill.
        if copy.is_some_and(|copy| !copy.state.complete) {
            return;
        }
        let here = self.host.shards.get(&entry.0).map(|here| &here.sessions[..]);
        let sessions = copy.map_or(here, |copy| Some(&copy.sessions[..])).unwrap_or_default();
        ctx.oracle.took_in(ctx.sim.now(), self.me, entry, sessions);
    }

    pub(crate) fn report(&self, ctx: &mut Ctx, event: Event) {
        ctx.after(self.at, Duration::ZERO, Happens::Reported(event));
    }

    /// Nobody who serves a shard takes a copy of it.
    fn is_served(&self, ctx: &Ctx, shard: ShardId, epoch: Epoch) -> Result<(), Lost> {
        match self.host.shards.get(&shard).map(crate::host::Shard::epoch) {
            Some(served) if epoch <= served && ctx.knobs.rules.appends_follow => {
                Err(Lost::HigherEpoch(served))
            }
            Some(_) if ctx.knobs.rules.appends_follow => Err(Lost::NoCopy),
            Some(_) | None => Ok(()),
        }
    }

    fn is_here(&self, ctx: &Ctx, shard: ShardId, epoch: Epoch) -> Result<(), Lost> {
        if self.kept.copies.contains_key(&shard) {
            return Ok(());
        }
        self.is_served(ctx, shard, epoch)?;
        if self.host.shards.contains_key(&shard) { Ok(()) } else { Err(Lost::NoCopy) }
    }

    /// Whether all that was acknowledged of a shard is here, as far as this node knows.
    pub(crate) fn holds(&self, shard: ShardId) -> bool {
        let is_complete = |copy: &Kept| copy.state.complete;
        self.host.shards.contains_key(&shard)
            || self.kept.copies.get(&shard).is_some_and(is_complete)
    }

    // ---- what the machine wants ------------------------------------------------------------

    pub(crate) fn keep_copies(&mut self, ctx: &mut Ctx, owner: NodeBoot, shards: &[ShardEpoch]) {
        for &at in shards {
            self.granted_to_others_ends(at.shard);
            self.keep_own(ctx, at.shard, (owner, at.epoch), None);
            // Where it cannot be kept it is of no use.
            if !self.kept.copies.contains_key(&at.shard) {
                ctx.note(|| format!("n{}: nothing to keep of {}", self.at.0, at.shard));
            }
        }
    }

    /// Makes a sealed shard a complete copy; only one that ends at `end` if that is given.
    fn keep_own(
        &mut self,
        ctx: &mut Ctx,
        shard: ShardId,
        (owner, epoch): (NodeBoot, Epoch),
        end: Option<Version>,
    ) {
        if self.kept.copies.contains_key(&shard) {
            return;
        }
        let Some(here) = self.host.shards.get(&shard) else { return };
        let at = Version { epoch: here.epoch(), seq: here.seq };
        let is_sealed = matches!(here.gate, Gate::Sealed(_)) && at.epoch < epoch;
        if !is_sealed || end.is_some_and(|end| end != at) {
            return;
        }
        let Some((contents, pen)) = self.take_out(ctx, shard) else { return };
        let Contents { seq, past, sessions } = contents;
        let state = CopyState::of_own(owner, epoch, Version { seq, ..at });
        self.kept.copies.insert(shard, Kept { state, past, sessions, is_own: true, pen });
        self.save_copy(ctx, shard, None);
    }

    pub(crate) fn drop_replicas(&mut self, ctx: &mut Ctx, shards: &[ShardId]) {
        for &shard in shards {
            if let Some(copy) = self.kept.copies.remove(&shard) {
                self.forget_on_disk(ctx, shard, copy.pen);
            }
        }
    }

    /// Takes complete copies out, and offers them.
    pub(crate) fn offer_replicas(&mut self, ctx: &mut Ctx, to: NodeBoot, shards: &[ShardEpoch]) {
        for &at in shards {
            let is_complete = |copy: &Kept| copy.state.complete;
            if !self.kept.copies.get(&at.shard).is_some_and(is_complete) {
                continue;
            }
            let Some(copy) = self.kept.copies.remove(&at.shard) else { continue };
            self.offer_copy(ctx, to, at, copy);
        }
    }

    pub(crate) fn offer_replaced(&mut self, ctx: &mut Ctx, to: NodeBoot, shards: &[ShardEpoch]) {
        for &at in shards {
            if let Some(copy) = self.kept.replaced.remove(&at.shard) {
                self.offer_copy(ctx, to, at, copy);
            }
        }
    }

    fn offer_copy(&mut self, ctx: &mut Ctx, to: NodeBoot, at: ShardEpoch, copy: Kept) {
        let pen = self.current(at.shard, copy.pen);
        if copy.sessions.iter().any(Session::is_there) {
            let Kept { state, mut past, sessions, .. } = copy;
            past.reach(state.at);
            let contents = Contents { seq: state.at.seq, past, sessions };
            self.set_aside(ctx, Aside::of(at, to, contents, pen));
        } else {
            self.forget_on_disk(ctx, at.shard, pen);
        }
    }

    /// Serves complete copies.
    pub(crate) fn open_replicas(&mut self, ctx: &mut Ctx, shards: &[ShardEpoch]) {
        for &at in shards {
            let owner = self.kept.copies.get(&at.shard).map(|copy| copy.state.owner);
            if let Some(owner) = owner {
                ctx.oracle.promoted(ctx.sim.now(), self.me, at.shard, owner);
            }
            if !self.promote(ctx, at, false) {
                if ctx.knobs.honest {
                    let text = format!("n{} has no copy of {} to open", self.at.0, at.shard);
                    ctx.oracle.find(ctx.sim.now(), Violation::NothingToOpen, text);
                }
                self.report(ctx, Event::NotOpened(vec![at]));
            }
        }
    }

    pub(crate) fn promote(&mut self, ctx: &mut Ctx, at: ShardEpoch, only_own: bool) -> bool {
        let may = self.kept.copies.get(&at.shard).is_some_and(|copy| {
            copy.state.complete && (copy.is_own || !only_own) && copy.state.at.epoch <= at.epoch
        });
        if !may || self.host.shards.contains_key(&at.shard) {
            return false;
        }
        let end = self.kept.copies.get(&at.shard).map(|copy| copy.state.at);
        let pen = end.and_then(|end| self.take_pen_at(at.shard, end));
        let Some(Kept { state, past, sessions, .. }) = self.kept.copies.remove(&at.shard) else {
            return false;
        };
        let contents = Contents { seq: state.at.seq, past, sessions };
        self.serve_arrived(ctx, at, contents, Some(state.at.epoch), pen);
        ctx.oracle.opened(ctx.sim.now(), self.me, at);
        self.begun(ctx, at);
        true
    }
}
