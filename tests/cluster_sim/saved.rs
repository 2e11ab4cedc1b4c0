//! What a node has on disk: who writes it, who waits for it, and what becomes of it at a start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stead_node::logic::durable::{Beginning, Role, ShardMeta};
use stead_node::logic::gate::Gate;
use stead_node::logic::heal::lineage::Lineage;
use stead_node::logic::ownership::Event;
use stead_node::logic::recovery::Saved;
use stead_shared::control::{BegunShard, HandoffId, SavedKind, ShardEpoch};
use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId, ShardId, Version};
use stead_shared::refusal::Refusal;
use stead_shared::sim::Host;
use stead_shared::time::Time;

use crate::ctx::{Ctx, Happens, SESSIONS, ms};
use crate::disk::{Disk, Found, Op, SYNC_EVERY};
use crate::host::{Ask, Contents, Session};
use crate::node::NodeModel;
use crate::offers::Aside;
use crate::oracle::Violation;

/// Between two attempts while the disk fails.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// The writer of a shard whose state from the start is kept.
const KEPT: u64 = 0;

/// A step of the one who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskStep {
    Write,
    Sync,
    /// A sync that nobody waits for.
    Due,
}

/// The right to write a shard to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pen {
    id: u64,
    /// Position of the last change.
    last: u64,
    /// How what it writes began.
    begun: Option<Beginning>,
    /// Whether answers wait for no copy, as it has written.
    alone: Option<bool>,
}

/// Who goes on when everything up to some change is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Settled {
    Seal(HandoffId, Vec<ShardId>),
    Received(HandoffId),
    /// An offer that came by that connection was taken in.
    Offer {
        conn: u64,
        number: u64,
    },
}

#[derive(Debug)]
struct KeptShard {
    at: Version,
    begun: Option<Beginning>,
    past: Lineage,
    sessions: Vec<Session>,
}

/// The state on disk, seen from the process.
#[derive(Debug)]
pub(crate) struct Saving {
    /// Answers wait for it.
    sync: bool,
    /// Shards of which something is on disk, and who writes them.
    writers: BTreeMap<ShardId, u64>,
    next_writer: u64,
    kept: BTreeMap<ShardId, KeptShard>,
    pub(crate) quarantined: BTreeSet<ShardId>,
    /// How shards began that came here from others.
    begun: BTreeMap<ShardId, Beginning>,
    settles: Vec<(u64, Settled)>,
    /// The last position that the disk gave, and one that somebody waits for.
    last: u64,
    wanted: u64,
    is_busy: bool,
    is_due: bool,
    synced: Time,
}

impl Saving {
    fn is_current(&self, shard: ShardId, pen: Pen) -> bool {
        self.writers.get(&shard) == Some(&pen.id)
    }

    pub(crate) fn keeps(&self, shard: ShardId) -> bool {
        self.writers.get(&shard) == Some(&KEPT)
    }

    fn write(&mut self, disk: &mut Disk, shard: ShardId, pen: &mut Pen, mut op: Op) {
        if let Op::Meta { meta, .. } = &mut op {
            pen.alone = Some(meta.alone);
            meta.begun = meta.begun.or(pen.begun).or_else(|| self.begun.get(&shard).copied());
        }
        if self.is_current(shard, *pen) {
            pen.last = disk.push(op);
            self.last = pen.last;
        }
    }

    fn pen(&mut self, begun: Option<Beginning>) -> Pen {
        self.next_writer += 1;
        Pen { id: self.next_writer, last: 0, begun, alone: None }
    }

    fn release(&mut self, shard: ShardId, begun: Option<Beginning>) -> Pen {
        let pen = self.pen(begun);
        self.writers.insert(shard, pen.id);
        pen
    }

    fn begin(
        &mut self,
        disk: &mut Disk,
        shard: ShardId,
        meta: ShardMeta,
        past: &Lineage,
    ) -> Option<Pen> {
        if self.keeps(shard) {
            return None;
        }
        let mut pen = self.pen(meta.begun);
        if self.writers.insert(shard, pen.id).is_some() {
            self.last = disk.push(Op::Forget { shard });
        }
        self.write(disk, shard, &mut pen, Op::Meta { shard, meta, past: past.clone() });
        Some(pen)
    }

    fn put_all(
        &mut self,
        disk: &mut Disk,
        (shard, at): (ShardId, Version),
        pen: &mut Pen,
        sessions: &[Session],
    ) {
        for (session, state) in (0..SESSIONS).zip(sessions).filter(|(_, state)| state.is_there()) {
            let state = state.clone();
            self.write(disk, shard, pen, Op::Put { shard, at, session, state });
        }
    }

    fn forget(&mut self, disk: &mut Disk, shard: ShardId, mut pen: Pen) {
        if self.is_current(shard, pen) {
            self.write(disk, shard, &mut pen, Op::Forget { shard });
            self.writers.remove(&shard);
        }
    }

    fn leave(&mut self, shard: ShardId, pen: Pen) {
        if self.is_current(shard, pen) {
            self.release(shard, None);
        }
    }
}

/// What becomes of a shard that was found; none where nothing of it is of use.
fn kept_of(found: &Found) -> Option<(KeptShard, Saved)> {
    let nothing = Version { epoch: Epoch { counter: 0, node: NodeId(0) }, seq: 0 };
    let at = found.meta.map_or(nothing, |meta| meta.at);
    let sealed = found.meta.is_some_and(|meta| meta.role == Role::Sealed);
    let kind = match found.meta {
        _ if found.damaged => SavedKind::Damaged,
        Some(ShardMeta { complete: true, role: Role::Owner | Role::Sealed, .. }) => {
            SavedKind::Owner
        }
        Some(ShardMeta { complete: true, role: Role::Copy { .. }, .. }) => SavedKind::Copy,
        Some(_) | None => return None,
    };
    let of = |session| found.sessions.get(&session).cloned().unwrap_or_default();
    let sessions = (0..SESSIONS).map(of).collect();
    let begun = found.meta.and_then(|meta| meta.begun);
    let alone = found.meta.is_some_and(|meta| meta.alone);
    let past = found.past.clone();
    Some((KeptShard { at, begun, past, sessions }, Saved { at, kind, sealed, begun, alone }))
}

/// What is found on disk at the start: how it is kept, and what the machine is told.
pub(crate) fn open_disk(ctx: &mut Ctx, me: NodeBoot) -> (Option<Saving>, BTreeMap<ShardId, Saved>) {
    let Some(knobs) = ctx.knobs.disk.clone() else { return (None, BTreeMap::new()) };
    let now = ctx.now();
    let at = ctx.host_of(me.node).expect("it has a host");
    let disk = &mut ctx.disks[at.0 as usize];
    let found = disk.open(now);
    let mut saving = Saving {
        sync: knobs.sync,
        writers: BTreeMap::new(),
        next_writer: KEPT,
        kept: BTreeMap::new(),
        quarantined: BTreeSet::new(),
        begun: BTreeMap::new(),
        settles: Vec::new(),
        last: 0,
        wanted: 0,
        is_busy: false,
        is_due: false,
        synced: now,
    };
    let mut held = BTreeMap::new();
    for found in &found {
        let shard = found.shard;
        if !found.damaged && ctx.oracle.is_damaged(at, shard) {
            let text = format!("n{}: {shard} is read as if it were whole", at.0);
            ctx.oracle.find(now, Violation::DamageUnnoticed, text);
        }
        saving.writers.insert(shard, KEPT);
        match kept_of(found) {
            Some((kept, saved)) => {
                saving.kept.insert(shard, kept);
                held.insert(shard, saved);
            }
            None => {
                let pen = saving.release(shard, None);
                saving.forget(&mut ctx.disks[at.0 as usize], shard, pen);
            }
        }
    }
    (Some(saving), held)
}

impl NodeModel {
    // ---- what is written -------------------------------------------------------------------

    /// Writes whether a shard is served, in which epoch, and where it is.
    pub(crate) fn save_gate(&mut self, ctx: &mut Ctx, shard: ShardId) {
        let Some(saving) = &mut self.saving else { return };
        let Some(here) = self.host.shards.get_mut(&shard) else { return };
        let (role, epoch) = match here.gate {
            Gate::Serving(epoch) => (Role::Owner, epoch),
            Gate::Sealed(epoch) => (Role::Sealed, epoch),
            Gate::Gone => return,
        };
        let at = Version { epoch, seq: here.seq };
        let alone = here.is_alone();
        let meta = ShardMeta { at, role, complete: true, begun: None, alone };
        if let Some(pen) = &mut here.pen {
            let disk = &mut ctx.disks[self.at.0 as usize];
            let past = here.past.clone();
            saving.write(disk, shard, pen, Op::Meta { shard, meta, past });
        }
    }

    /// Writes whether answers wait for a copy, unless that is written.
    pub(crate) fn save_set(&mut self, ctx: &mut Ctx, shard: ShardId) {
        let Some(here) = self.host.shards.get(&shard) else { return };
        if here.pen.is_some_and(|pen| pen.alone != Some(here.is_alone())) {
            self.save_gate(ctx, shard);
        }
    }

    /// Writes a change: a session as it is now, or the shard's number alone.
    pub(crate) fn save_change(&mut self, ctx: &mut Ctx, shard: ShardId, session: Option<u8>) {
        let Some(session) = session else { return self.save_gate(ctx, shard) };
        let Some(saving) = &mut self.saving else { return };
        let Some(here) = self.host.shards.get_mut(&shard) else { return };
        let at = Version { epoch: here.epoch(), seq: here.seq };
        let state = here.sessions[usize::from(session)].clone();
        if let Some(pen) = &mut here.pen {
            let disk = &mut ctx.disks[self.at.0 as usize];
            saving.write(disk, shard, pen, Op::Put { shard, at, session, state });
        }
    }

    pub(crate) fn begin_on_disk(
        &mut self,
        ctx: &mut Ctx,
        shard: ShardId,
        meta: ShardMeta,
        past: &Lineage,
    ) -> Option<Pen> {
        let disk = &mut ctx.disks[self.at.0 as usize];
        self.saving.as_mut()?.begin(disk, shard, meta, past)
    }

    /// Writes of a shard that was claimed empty that it was; `old`: one that was here already.
    pub(crate) fn save_beginning(&mut self, ctx: &mut Ctx, at: ShardEpoch, old: Option<Epoch>) {
        if old.is_some() {
            self.save_gate(ctx, at.shard);
            return;
        }
        if ctx.disks.iter().any(|disk| disk.has(at.shard)) {
            ctx.oracle.begun_over(at.shard);
        }
        if ctx.disks.iter().any(|disk| !disk.ops(at.shard).is_empty()) {
            ctx.oracle.tear(at.shard);
        }
        let version = Version { epoch: at.epoch, seq: 0 };
        let begun = Some(Beginning { epoch: at.epoch, from: None });
        let meta = ShardMeta { at: version, role: Role::Owner, complete: true, begun, alone: true };
        let pen = self.begin_on_disk(ctx, at.shard, meta, &Lineage::EMPTY);
        if let Some(here) = self.host.shards.get_mut(&at.shard) {
            here.pen = pen;
        }
    }

    /// The last nodes to be seen stay: one that is left alone still was in their cluster.
    pub(crate) fn remember_members(&self, ctx: &mut Ctx) {
        let others = self.told.list.iter().filter(|it| it.id != self.me.node && it.is_live_node());
        let others: BTreeSet<NodeId> = others.map(|it| it.id).collect();
        if self.saving.is_some() && !others.is_empty() {
            ctx.disks[self.at.0 as usize].members = others;
        }
    }

    /// Serves what arrived, and writes it where nobody has.
    pub(crate) fn serve_arrived(
        &mut self,
        ctx: &mut Ctx,
        at: ShardEpoch,
        contents: Contents,
        origin: Option<Epoch>,
        pen: Option<Pen>,
    ) {
        let pen = pen.or_else(|| {
            let version = Version { epoch: at.epoch, seq: contents.seq };
            let meta = ShardMeta {
                at: version,
                role: Role::Owner,
                complete: false,
                begun: None,
                alone: false,
            };
            let mut pen = self.begin_on_disk(ctx, at.shard, meta, &contents.past)?;
            let disk = &mut ctx.disks[self.at.0 as usize];
            let saving = self.saving.as_mut()?;
            saving.put_all(disk, (at.shard, version), &mut pen, &contents.sessions);
            Some(pen)
        });
        for session in &contents.sessions {
            self.host.clock.see(ctx.sim.now(), session.content.written);
        }
        self.host.activate(at, contents, origin);
        if let Some(here) = self.host.shards.get_mut(&at.shard) {
            here.pen = pen;
        }
        self.save_gate(ctx, at.shard);
    }

    pub(crate) fn forget_on_disk(&mut self, ctx: &mut Ctx, shard: ShardId, pen: Option<Pen>) {
        if let (Some(saving), Some(pen)) = (&mut self.saving, pen) {
            saving.forget(&mut ctx.disks[self.at.0 as usize], shard, pen);
        }
    }

    /// Nobody took it: what the disk holds of it is offered again after the next start.
    pub(crate) fn leave_on_disk(&mut self, shard: ShardId, pen: Option<Pen>) {
        if let (Some(saving), Some(pen)) = (&mut self.saving, pen) {
            saving.leave(shard, pen);
        }
    }

    // ---- copies ----------------------------------------------------------------------------

    /// Sees to it that somebody writes a copy, if the disk has room. One that changed while it had
    /// none is written anew.
    fn copy_pen(&mut self, ctx: &mut Ctx, shard: ShardId) -> bool {
        let Some(saving) = &mut self.saving else { return false };
        let Some(copy) = self.kept.copies.get_mut(&shard) else { return false };
        let disk = &mut ctx.disks[self.at.0 as usize];
        let meta = copy.meta();
        let begun = ShardMeta { complete: false, ..meta };
        if !disk.has_room() {
            if let Some(mut pen) = copy.pen.take() {
                let past = copy.past.clone();
                saving.write(disk, shard, &mut pen, Op::Meta { shard, meta: begun, past });
            }
            return false;
        }
        if copy.pen.is_none_or(|pen| !saving.is_current(shard, pen)) {
            let past = copy.past.clone();
            let Some(mut pen) = saving.begin(disk, shard, begun, &past) else { return false };
            saving.put_all(disk, (shard, meta.at), &mut pen, &copy.sessions);
            saving.write(disk, shard, &mut pen, Op::Meta { shard, meta, past });
            copy.pen = Some(pen);
        }
        true
    }

    /// Writes a change of a copy: a session, or whom it follows and where it ends.
    pub(crate) fn save_copy(&mut self, ctx: &mut Ctx, shard: ShardId, session: Option<u8>) {
        if !self.copy_pen(ctx, shard) {
            return;
        }
        let (Some(saving), Some(copy)) = (&mut self.saving, self.kept.copies.get_mut(&shard))
        else {
            return;
        };
        let meta = copy.meta();
        let op = match session {
            Some(session) => {
                let state = copy.sessions[usize::from(session)].clone();
                Op::Put { shard, at: meta.at, session, state }
            }
            None => Op::Meta { shard, meta, past: copy.past.clone() },
        };
        if let Some(pen) = &mut copy.pen {
            saving.write(&mut ctx.disks[self.at.0 as usize], shard, pen, op);
        }
    }

    /// The pen of a complete copy that ends at `at`.
    pub(crate) fn take_pen_at(&mut self, shard: ShardId, at: Version) -> Option<Pen> {
        if !self.is_on_disk_at(shard, at) {
            return None;
        }
        self.kept.copies.get_mut(&shard)?.pen.take()
    }

    fn is_on_disk_at(&self, shard: ShardId, at: Version) -> bool {
        let (Some(saving), Some(copy)) = (&self.saving, self.kept.copies.get(&shard)) else {
            return false;
        };
        let is_current = copy.pen.is_some_and(|pen| saving.is_current(shard, pen));
        copy.state.complete && copy.state.at == at && is_current
    }

    // ---- handoffs --------------------------------------------------------------------------

    /// Begins to write what arrives, unless it is there as a copy that follows.
    pub(crate) fn begin_arrival(&mut self, ctx: &mut Ctx, at: ShardEpoch) -> Option<Pen> {
        if self.kept.copies.contains_key(&at.shard) {
            return None;
        }
        let owner = NodeBoot { node: at.epoch.node, boot: BootId(0) };
        let (at, shard) = (Version { epoch: at.epoch, seq: 0 }, at.shard);
        self.begin_on_disk(
            ctx,
            shard,
            ShardMeta {
                at,
                role: Role::Copy { owner },
                complete: false,
                begun: None,
                alone: false,
            },
            &Lineage::EMPTY,
        )
    }

    /// Sees to it that a shard that arrived is on disk. False when it cannot be.
    pub(crate) fn save_arrival(
        &mut self,
        ctx: &mut Ctx,
        (shard, at): (ShardId, Version),
        contents: &Contents,
        pen: &mut Option<Pen>,
    ) -> bool {
        if self.saving.is_none() || self.is_on_disk_at(shard, at) {
            return true;
        }
        let owner = NodeBoot { node: at.epoch.node, boot: BootId(0) };
        let role = Role::Copy { owner };
        let meta = |complete| ShardMeta { at, role, complete, begun: None, alone: false };
        let disk = &mut ctx.disks[self.at.0 as usize];
        let Some(saving) = &mut self.saving else { return true };
        let current = pen.filter(|pen| saving.is_current(shard, *pen));
        let past = &contents.past;
        let begun = || saving.begin(disk, shard, meta(false), past);
        let Some(mut ours) = current.or_else(begun) else { return false };
        saving.put_all(disk, (shard, at), &mut ours, &contents.sessions);
        let (meta, past) = (meta(true), past.clone());
        saving.write(disk, shard, &mut ours, Op::Meta { shard, meta, past });
        *pen = Some(ours);
        true
    }

    /// A handoff has arrived, and is there once it is on disk where answers wait for that.
    pub(crate) fn received(&mut self, ctx: &mut Ctx, handoff: HandoffId) {
        if self.saving.as_ref().is_some_and(|saving| saving.sync) {
            self.settle(ctx, Settled::Received(handoff));
        } else {
            self.feed(ctx, Event::Received(handoff));
        }
    }

    pub(crate) fn current(&self, shard: ShardId, pen: Option<Pen>) -> Option<Pen> {
        pen.filter(|pen| self.saving.as_ref().is_some_and(|it| it.is_current(shard, *pen)))
    }

    /// A seal is a promise, also after a restart (R3): it has ended once it is on disk.
    pub(crate) fn seal_has_ended(
        &mut self,
        ctx: &mut Ctx,
        handoff: HandoffId,
        shards: Vec<ShardId>,
    ) {
        if self.saving.is_some() && ctx.knobs.rules.seal_is_saved {
            self.settle(ctx, Settled::Seal(handoff, shards));
        } else {
            self.sealed_for_good(ctx, handoff, &shards);
        }
    }

    /// A disk that fails is not to be trusted with shards any longer: they had better go, and the
    /// promise ends with the process.
    fn sealed_for_good(&self, ctx: &mut Ctx, handoff: HandoffId, shards: &[ShardId]) {
        if self.saving.is_some() && !ctx.disks[self.at.0 as usize].has_failed {
            ctx.oracle.keeps_promises(self.me, shards);
        }
        ctx.after(self.at, Duration::from_micros(50), Happens::Sealed(handoff));
    }

    fn settle(&mut self, ctx: &mut Ctx, settled: Settled) {
        if let Some(saving) = &mut self.saving {
            saving.wanted = saving.wanted.max(saving.last);
            saving.settles.push((saving.last, settled));
        }
        self.look_at_settles(ctx);
    }

    fn look_at_settles(&mut self, ctx: &mut Ctx) {
        let Some(saving) = &mut self.saving else { return };
        let disk = &ctx.disks[self.at.0 as usize];
        let (synced, failed) = (disk.synced(), disk.has_failed);
        let is_done = |(at, _): &mut (u64, Settled)| failed || *at <= synced;
        let done: Vec<(u64, Settled)> = saving.settles.extract_if(.., is_done).collect();
        for (at, settled) in done {
            let is_saved = at <= synced;
            match settled {
                Settled::Seal(handoff, shards) => self.sealed_for_good(ctx, handoff, &shards),
                Settled::Received(handoff) if is_saved => {
                    if self.copies.contains_key(&handoff) {
                        self.feed(ctx, Event::Received(handoff));
                    }
                }
                Settled::Received(handoff) => {
                    self.forget_arrival(ctx, handoff);
                    self.feed(ctx, Event::ReceiveFailed(handoff));
                }
                Settled::Offer { conn, number } => self.settled_offer(ctx, conn, number, is_saved),
            }
        }
    }

    // ---- waiting ---------------------------------------------------------------------------

    /// Whether nothing may be changed now.
    pub(crate) fn disk_refuses(&self, ctx: &Ctx) -> bool {
        let disk = &ctx.disks[self.at.0 as usize];
        self.saving.as_ref().is_some_and(|it| disk.has_failed && (it.sync || !disk.has_room()))
    }

    /// What an answer of a shard as it is now waits for; none where it waits for nothing.
    pub(crate) fn disk_wait(&self, shard: ShardId) -> Option<u64> {
        self.saving.as_ref().filter(|saving| saving.sync)?;
        let here = self.host.shards.get(&shard);
        Some(here.and_then(|here| here.pen).map_or(u64::MAX, |pen| pen.last))
    }

    /// Whether an answer that waits goes out: false when nobody knows whether it ever may.
    pub(crate) fn disk_has(&self, ctx: &Ctx, position: u64, ask: &Ask) -> Option<bool> {
        let disk = &ctx.disks[self.at.0 as usize];
        if position <= disk.synced() {
            return Some(true);
        }
        (disk.has_failed || position == u64::MAX).then_some(!ask.is_write)
    }

    /// Who reads while the disk fails may be told of what is not on it.
    pub(crate) fn confirmed(
        &self,
        ctx: &mut Ctx,
        position: u64,
        ask: &Ask,
        ops: Vec<u32>,
    ) -> Vec<u32> {
        if position <= ctx.disks[self.at.0 as usize].synced() {
            return ops;
        }
        ctx.oracle.tear(ask.shard);
        Vec::new()
    }

    pub(crate) fn is_quarantined(&self, shard: ShardId) -> bool {
        self.saving.as_ref().is_some_and(|saving| saving.quarantined.contains(&shard))
    }

    // ---- the one who writes ----------------------------------------------------------------

    /// Gives the one who writes something to do, if there is anything.
    pub(crate) fn poke_disk(&mut self, ctx: &mut Ctx) {
        let Some(saving) = &mut self.saving else { return };
        let disk = &ctx.disks[self.at.0 as usize];
        if saving.is_busy {
            return;
        }
        let wants = saving.sync || disk.synced() < saving.wanted;
        if disk.must_sync() {
            self.begin_sync(ctx);
        } else if !disk.is_idle() {
            saving.is_busy = true;
            let takes = Duration::from_micros(20 + u64::from(ctx.below(400)));
            ctx.after(self.at, takes, Happens::Disk(DiskStep::Write));
        } else if !disk.is_synced() && wants {
            self.begin_sync(ctx);
        } else if !disk.is_synced() && !std::mem::replace(&mut saving.is_due, true) {
            let due = (saving.synced + SYNC_EVERY).max(ctx.now() + ms(1));
            ctx.sim.timer(self.at, due, Happens::Disk(DiskStep::Due));
        }
    }

    fn begin_sync(&mut self, ctx: &mut Ctx) {
        let Some(saving) = &mut self.saving else { return };
        saving.is_busy = true;
        let range = ctx.knobs.disk.as_ref().map(|knobs| knobs.sync_takes.clone());
        let takes = range.map_or_else(|| ms(1), |range| ctx.between(&range));
        ctx.after(self.at, takes, Happens::Disk(DiskStep::Sync));
    }

    pub(crate) fn disk_step(&mut self, ctx: &mut Ctx, step: DiskStep) {
        let now = ctx.now();
        let Some(saving) = &mut self.saving else { return };
        let disk = &mut ctx.disks[self.at.0 as usize];
        if step == DiskStep::Due {
            saving.is_due = false;
            if !saving.is_busy && !disk.is_synced() {
                self.begin_sync(ctx);
            }
            return;
        }
        if now < disk.fails_until {
            let is_news = !std::mem::replace(&mut disk.has_failed, true);
            ctx.after(self.at, RETRY_EVERY, Happens::Disk(step));
            if is_news {
                ctx.note(|| format!("n{}: the disk fails", self.at.0));
                self.disk_is_news(ctx);
            }
            return;
        }
        saving.is_busy = false;
        disk.has_failed = false;
        match step {
            DiskStep::Write => disk.write(),
            DiskStep::Sync => {
                disk.sync(now);
                saving.synced = now;
                self.disk_is_news(ctx);
            }
            DiskStep::Due => {}
        }
    }

    fn disk_is_news(&mut self, ctx: &mut Ctx) {
        self.look_at_settles(ctx);
        self.look_at_waiting(ctx);
    }

    // ---- what was found at the start -------------------------------------------------------

    pub(crate) fn open_saved(&mut self, ctx: &mut Ctx, shards: &[ShardEpoch]) {
        for &at in shards {
            let Some(saving) = &mut self.saving else { continue };
            let Some(kept) = saving.kept.remove(&at.shard) else {
                let text = format!("n{} has nothing on disk of {} to open", self.at.0, at.shard);
                ctx.oracle.find(ctx.sim.now(), Violation::NothingToOpen, text);
                continue;
            };
            let begun = kept.begun.unwrap_or(Beginning { epoch: at.epoch, from: Some(kept.at) });
            let pen = saving.release(at.shard, Some(begun));
            ctx.oracle.reached(self.me, &kept.sessions);
            ctx.oracle.opened_saved(at.shard, &kept.sessions);
            let KeptShard { at: end, past, sessions, .. } = kept;
            let contents = Contents { seq: end.seq, past, sessions };
            self.serve_arrived(ctx, at, contents, Some(end.epoch), Some(pen));
            ctx.oracle.opened(ctx.sim.now(), self.me, at);
            self.begun(ctx, at);
            self.drop_replicas(ctx, &[at.shard]);
        }
    }

    pub(crate) fn drop_saved(&mut self, ctx: &mut Ctx, shards: &[ShardId]) {
        for &shard in shards {
            let Some(saving) = &mut self.saving else { continue };
            saving.quarantined.remove(&shard);
            saving.kept.remove(&shard);
            if saving.keeps(shard) {
                let pen = saving.release(shard, None);
                saving.forget(&mut ctx.disks[self.at.0 as usize], shard, pen);
            }
        }
    }

    pub(crate) fn offer_saved(&mut self, ctx: &mut Ctx, to: NodeBoot, shards: &[ShardEpoch]) {
        for &at in shards {
            let Some(saving) = &mut self.saving else { continue };
            let Some(kept) = saving.kept.remove(&at.shard) else { continue };
            let pen = Some(Pen { id: KEPT, last: 0, begun: None, alone: None });
            let KeptShard { at: end, mut past, sessions, .. } = kept;
            past.reach(end);
            let contents = Contents { seq: end.seq, past, sessions };
            self.set_aside(ctx, Aside::of(at, to, contents, pen));
        }
    }

    pub(crate) fn quarantine(&mut self, ctx: &Ctx, shards: &[ShardEpoch]) {
        for at in shards {
            ctx.note(|| format!("n{}: {} is quarantined", self.at.0, at.shard));
            if let Some(saving) = &mut self.saving {
                saving.quarantined.insert(at.shard);
            }
        }
    }

    /// Shards that are about to come here began like this. Of several times the last one counts.
    pub(crate) fn note_begun(&mut self, begun: &[BegunShard]) {
        let Some(saving) = &mut self.saving else { return };
        for it in begun {
            let begun = Beginning { epoch: it.at.epoch, from: it.from };
            let known = saving.begun.entry(it.at.shard).or_insert(begun);
            if known.epoch < begun.epoch {
                *known = begun;
            }
        }
    }

    /// An offer was taken in: it is settled once that is on disk, where answers wait for it.
    pub(crate) fn offer_was_taken(&mut self, ctx: &mut Ctx, conn: u64, number: u64) {
        if self.saving.as_ref().is_some_and(|saving| saving.sync) {
            self.settle(ctx, Settled::Offer { conn, number });
        } else {
            self.settled_offer(ctx, conn, number, true);
        }
    }

    pub(crate) fn refuse_for_disk(&self, ctx: &mut Ctx, ask: &Ask) {
        self.refuse(ctx, ask, Refusal::Overloaded { retry_after_ms: 1_000 });
    }
}

/// Whether a change of a shard may be gone with its node, which has just ended. What was answered
/// where answers wait for the disk may not.
pub(crate) fn may_be_gone(ctx: &Ctx, at: Host, shard: ShardId) -> impl Fn(&u32) -> bool + use<> {
    let sync = ctx.knobs.disk.as_ref().is_some_and(|knobs| knobs.sync);
    let ops = ctx.disks[at.0 as usize].ops(shard);
    move |op| !sync && !ops.contains(op)
}
