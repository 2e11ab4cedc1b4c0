//! State on its way between nodes: copies of shards that are served meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use stead_node::logic::copying::Progress;
use stead_node::logic::heal::lineage::Lineage;
use stead_node::logic::ownership::Event;
use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::id::{NodeBoot, ShardId, Version};

use crate::ctx::{Ctx, Happens, SESSIONS, ms};
use crate::host::{Contents, Session};
use crate::links::{Kind, Msg};
use crate::node::NodeModel;
use crate::saved::Pen;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Over all sessions.
    Walk,
    /// Over what has changed.
    Rounds,
    /// Behind a closed gate.
    Last,
}

/// A copy, seen from its source.
#[derive(Debug)]
pub(crate) struct CopyTask {
    conn: u64,
    shards: Vec<ShardEpoch>,
    queue: VecDeque<(ShardId, u8)>,
    dirty: BTreeSet<(ShardId, u8)>,
    stage: Stage,
    n_sent: u32,
}

impl CopyTask {
    pub(crate) fn changed(&mut self, shard: ShardId, session: u8) {
        if self.shards.iter().any(|at| at.shard == shard) {
            self.dirty.insert((shard, session));
        }
    }
}

/// A copy, seen from its target.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    conn: u64,
    is_whole: bool,
    sessions: BTreeMap<(ShardId, u8), Session>,
    ends: BTreeMap<ShardId, (Version, Lineage)>,
    pens: BTreeMap<ShardId, Pen>,
}

impl NodeModel {
    // ---- the source ------------------------------------------------------------------------

    pub(crate) fn begin_copy(
        &mut self,
        ctx: &mut Ctx,
        handoff: HandoffId,
        to: NodeBoot,
        shards: Vec<ShardEpoch>,
        serves: bool,
    ) {
        let conn =
            ctx.host_of(to.node).and_then(|host| ctx.connect(self.at, host, to.boot, Kind::Bulk));
        let Some(conn) = conn else {
            ctx.after(self.at, ms(50), Happens::CopyFailed(handoff));
            return;
        };
        ctx.send(conn, self.at, Msg::Begin { handoff, shards: shards.clone() });
        let mut queue = VecDeque::new();
        for at in &shards {
            let sessions = self.host.shards.get(&at.shard).map_or(&[][..], |s| &s.sessions);
            let there = (0..SESSIONS).zip(sessions).filter(|(_, session)| session.is_there());
            queue.extend(there.map(|(session, _)| (at.shard, session)));
        }
        let stage = if serves { Stage::Walk } else { Stage::Last };
        let task = CopyTask { conn, shards, queue, dirty: BTreeSet::new(), stage, n_sent: 0 };
        self.tasks.insert(handoff, task);
        ctx.after(self.at, Duration::from_micros(200), Happens::CopyStep(handoff));
    }

    pub(crate) fn copy_step(&mut self, ctx: &mut Ctx, handoff: HandoffId) {
        let (bytes, rate) = (ctx.knobs.session_bytes, ctx.knobs.copy_rate);
        let Some(task) = self.tasks.get_mut(&handoff) else { return };
        let conn = task.conn;
        if let Some((shard, session)) = task.queue.pop_front() {
            task.n_sent += 1;
            let n_left = task.queue.len() as u64;
            let reports = task.stage == Stage::Walk && task.n_sent.is_multiple_of(4);
            if let Some(here) = self.host.shards.get(&shard) {
                let state = here.sessions[usize::from(session)].clone();
                ctx.send(conn, self.at, Msg::Record { handoff, shard, session, state });
            }
            if reports {
                let progress =
                    Progress { walking: true, lag: 0, left: n_left * bytes, rate, overflow: false };
                ctx.after(self.at, Duration::ZERO, Happens::Copied(handoff, progress));
            }
            let takes = Duration::from_micros(100 + bytes * 1_000_000 / rate);
            ctx.after(self.at, takes, Happens::CopyStep(handoff));
            return;
        }
        match task.stage {
            Stage::Walk | Stage::Rounds => {
                task.stage = Stage::Rounds;
                let lag = task.dirty.len() as u64 * bytes;
                let progress = Progress { walking: false, lag, left: 0, rate, overflow: false };
                task.queue.extend(std::mem::take(&mut task.dirty));
                ctx.after(self.at, Duration::ZERO, Happens::Copied(handoff, progress));
                let pause = if task.queue.is_empty() { ms(10) } else { Duration::from_micros(10) };
                ctx.after(self.at, pause, Happens::CopyStep(handoff));
            }
            Stage::Last if !task.dirty.is_empty() => {
                task.queue.extend(std::mem::take(&mut task.dirty));
                ctx.after(self.at, Duration::ZERO, Happens::CopyStep(handoff));
            }
            Stage::Last => {
                let shards = std::mem::take(&mut task.shards);
                let end = |at: &ShardEpoch| {
                    let shard = self.host.shards.get(&at.shard)?;
                    let end = Version { epoch: shard.epoch(), seq: shard.seq };
                    Some((at.shard, end, shard.past.clone()))
                };
                let ends = shards.iter().filter_map(end).collect();
                self.tasks.remove(&handoff);
                ctx.send(conn, self.at, Msg::End { handoff, ends });
            }
        }
    }

    /// Nothing changes any more: this is the end of what is sent.
    pub(crate) fn send_last(&mut self, ctx: &mut Ctx, handoff: HandoffId) {
        if let Some(task) = self.tasks.get_mut(&handoff) {
            for &at in &task.shards {
                ctx.oracle.ended(self.me, at);
            }
            // A round sends the rest of the last one, and once what has changed since.
            task.queue.extend(std::mem::take(&mut task.dirty));
            task.stage = Stage::Last;
        }
    }

    pub(crate) fn stop_copy(&mut self, ctx: &mut Ctx, handoff: HandoffId) {
        if let Some(task) = self.tasks.remove(&handoff) {
            ctx.break_conn(task.conn);
        }
    }

    pub(crate) fn copy_failed(&mut self, ctx: &mut Ctx, handoff: HandoffId) {
        self.tasks.remove(&handoff);
        self.feed(ctx, Event::SendFailed(handoff));
    }

    pub(crate) fn on_stream_broken(&mut self, ctx: &mut Ctx, conn: u64) {
        if self.is_stream_broken(ctx, conn) {
            return;
        }
        let sent = self.tasks.iter().find(|(_, task)| task.conn == conn).map(|(id, _)| *id);
        if let Some(handoff) = sent {
            self.copy_failed(ctx, handoff);
        }
        let here = self.copies.iter().find(|(_, copy)| copy.conn == conn && !copy.is_whole);
        if let Some(handoff) = here.map(|(id, _)| *id) {
            self.forget_arrival(ctx, handoff);
            self.feed(ctx, Event::ReceiveFailed(handoff));
        }
        self.offer_is_broken(ctx, conn);
    }

    // ---- the target ------------------------------------------------------------------------

    pub(crate) fn on_state(&mut self, ctx: &mut Ctx, conn: u64, from: NodeBoot, msg: Msg) {
        match msg {
            Msg::Begin { handoff, shards } => {
                let begun = |at: &ShardEpoch| Some((at.shard, self.begin_arrival(ctx, *at)?));
                let pens = shards.iter().filter_map(begun).collect();
                self.copies.insert(handoff, Copy { conn, pens, ..Copy::default() });
                self.feed(ctx, Event::Receiving(handoff));
            }
            Msg::Record { handoff, shard, session, state } => {
                if let Some(copy) = self.copies.get_mut(&handoff) {
                    copy.sessions.insert((shard, session), state);
                }
            }
            Msg::End { handoff, ends } => {
                if let Some(copy) = self.copies.get_mut(&handoff) {
                    copy.ends =
                        ends.into_iter().map(|(shard, at, past)| (shard, (at, past))).collect();
                    copy.is_whole = true;
                    self.has_arrived(ctx, handoff);
                }
            }
            Msg::Offer { number, at, contents, unconfirmed } => {
                self.begin_taking_in(ctx, (Some(conn), number), at, (contents, unconfirmed));
            }
            Msg::Settled { number, all: true } => {
                self.forget_aside(ctx, number);
            }
            Msg::Settled { number, all: false } => self.offer_later(ctx, number),
            Msg::Items { first, items } => self.on_items(ctx, conn, from, first, items),
            Msg::Taken { position, refused } => self.on_taken(ctx, from, position, &refused),
            Msg::Control(_)
            | Msg::Claims(_)
            | Msg::ClaimsWanted
            | Msg::Request(_)
            | Msg::Answer { .. } => unreachable!("{from:?} sends no such thing as state"),
        }
    }

    pub(crate) fn drop_copy(&mut self, ctx: &mut Ctx, handoff: HandoffId) {
        let whole = self.copies.get(&handoff).map(|copy| (copy.is_whole, copy.conn));
        self.forget_arrival(ctx, handoff);
        if let Some((false, conn)) = whole {
            ctx.break_conn(conn);
        }
    }

    pub(crate) fn forget_arrival(&mut self, ctx: &mut Ctx, handoff: HandoffId) {
        for (shard, pen) in self.copies.remove(&handoff).unwrap_or_default().pens {
            self.forget_on_disk(ctx, shard, Some(pen));
        }
    }

    /// All of a handoff has arrived: it is written where it is not yet.
    fn has_arrived(&mut self, ctx: &mut Ctx, handoff: HandoffId) {
        let Some(mut copy) = self.copies.remove(&handoff) else { return };
        let mut is_saved = true;
        for (&shard, (at, past)) in &copy.ends {
            let of = |n| copy.sessions.get(&(shard, n)).cloned().unwrap_or_default();
            let sessions = (0..SESSIONS).map(of).collect();
            let contents = Contents { seq: at.seq, past: past.clone(), sessions };
            let mut pen = copy.pens.remove(&shard);
            is_saved &= self.save_arrival(ctx, (shard, *at), &contents, &mut pen);
            copy.pens.extend(pen.map(|pen| (shard, pen)));
        }
        self.copies.insert(handoff, copy);
        if is_saved {
            self.received(ctx, handoff);
        } else {
            self.forget_arrival(ctx, handoff);
            self.feed(ctx, Event::ReceiveFailed(handoff));
        }
    }

    pub(crate) fn open_copy(&mut self, ctx: &mut Ctx, handoff: HandoffId, shards: &[ShardEpoch]) {
        let mut copy = self.copies.remove(&handoff).unwrap_or_default();
        for &at in shards {
            let mut take = |session| copy.sessions.remove(&(at.shard, session)).unwrap_or_default();
            let sessions: Vec<Session> = (0..SESSIONS).map(&mut take).collect();
            ctx.oracle.reached(self.me, &sessions);
            let (end, past) = copy.ends.remove(&at.shard).unzip();
            let pen = self.current(at.shard, copy.pens.remove(&at.shard));
            let pen = pen.or_else(|| self.take_pen_at(at.shard, end?));
            if let Some((_, pen)) = self.take_out(ctx, at.shard) {
                self.forget_on_disk(ctx, at.shard, pen);
            }
            let (seq, origin) = (end.map_or(0, |end| end.seq), end.map(|end| end.epoch));
            let contents = Contents { seq, past: past.unwrap_or(Lineage::EMPTY), sessions };
            self.serve_arrived(ctx, at, contents, origin, pen);
            ctx.oracle.opened(ctx.sim.now(), self.me, at);
            self.begun(ctx, at);
            if self.is_granted {
                ctx.oracle.moved(ctx.sim.now(), self.me, handoff, at.shard);
            }
        }
        for (shard, pen) in copy.pens {
            self.forget_on_disk(ctx, shard, Some(pen));
        }
    }
}
