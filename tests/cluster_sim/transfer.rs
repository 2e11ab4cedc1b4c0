//! State on its way between nodes: copies of shards that are served meanwhile, and offers of
//! sessions that were given up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use stead_node::logic::copying::Progress;
use stead_node::logic::gate::Gate;
use stead_node::logic::ownership::Event;
use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::id::{NodeBoot, ShardId, Version};

use crate::ctx::{Ctx, Happens, SESSIONS, ms};
use crate::host::Session;
use crate::links::{Kind, Msg};
use crate::node::NodeModel;
use crate::saved::Pen;

/// An offer is made so many times.
const ATTEMPTS: u32 = 10;

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
    ends: BTreeMap<ShardId, Version>,
    pens: BTreeMap<ShardId, Pen>,
}

/// Sessions of a shard that was given up.
#[derive(Debug)]
pub(crate) struct Aside {
    pub(crate) at: ShardEpoch,
    to: NodeBoot,
    seq: u64,
    pub(crate) sessions: Vec<Session>,
    attempt: u32,
    conn: u64,
    /// For what the disk holds of it.
    pen: Option<Pen>,
}

impl Aside {
    pub(crate) fn of(
        at: ShardEpoch,
        to: NodeBoot,
        (seq, sessions): (u64, Vec<Session>),
        pen: Option<Pen>,
    ) -> Self {
        Self { at, to, seq, sessions, attempt: 0, conn: 0, pen }
    }
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
                    Some((at.shard, Version { epoch: shard.epoch(), seq: shard.seq }))
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
        let offered = self.asides.iter().find(|(_, aside)| aside.conn == conn).map(|(n, _)| *n);
        if let Some(number) = offered {
            self.offer_later(ctx, number);
        }
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
                    copy.ends = ends.into_iter().collect();
                    copy.is_whole = true;
                    self.has_arrived(ctx, handoff);
                }
            }
            Msg::Offer { number, at, seq, sessions } => {
                let all = self.merge(ctx, at, seq, sessions);
                if all {
                    self.offer_was_taken(ctx, conn, number);
                } else {
                    self.settled_offer(ctx, conn, number, false);
                }
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
        for (&shard, &at) in &copy.ends {
            let of = |n| copy.sessions.get(&(shard, n)).cloned().unwrap_or_default();
            let sessions: Vec<Session> = (0..SESSIONS).map(of).collect();
            let mut pen = copy.pens.remove(&shard);
            is_saved &= self.save_arrival(ctx, (shard, at), &sessions, &mut pen);
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
            let end = copy.ends.get(&at.shard).copied();
            let pen = self.current(at.shard, copy.pens.remove(&at.shard));
            let pen = pen.or_else(|| self.take_pen_at(at.shard, end?));
            if let Some((_, _, pen)) = self.take_out(ctx, at.shard) {
                self.forget_on_disk(ctx, at.shard, pen);
            }
            let (seq, origin) = (end.map_or(0, |end| end.seq), end.map(|end| end.epoch));
            self.serve_arrived(ctx, at, (seq, sessions), origin, pen);
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

    // ---- offers ----------------------------------------------------------------------------

    pub(crate) fn yield_to(&mut self, ctx: &mut Ctx, to: NodeBoot, shards: &[ShardEpoch]) {
        for &at in shards {
            let taken = self.take_out(ctx, at.shard);
            self.drop_saved(ctx, &[at.shard]);
            let Some((seq, sessions, pen)) = taken else { continue };
            if sessions.iter().any(Session::is_there) {
                self.set_aside(ctx, Aside::of(at, to, (seq, sessions), pen));
            } else {
                self.forget_on_disk(ctx, at.shard, pen);
            }
        }
    }

    pub(crate) fn set_aside(&mut self, ctx: &mut Ctx, aside: Aside) {
        self.next_aside += 1;
        self.asides.insert(self.next_aside, aside);
        ctx.after(self.at, Duration::from_micros(100), Happens::Offer(self.next_aside));
    }

    fn forget_aside(&mut self, ctx: &mut Ctx, number: u64) {
        if let Some(aside) = self.asides.remove(&number) {
            self.forget_on_disk(ctx, aside.at.shard, aside.pen);
            self.report(ctx, Event::Offered(vec![aside.at.shard]));
        }
    }

    pub(crate) fn settled_offer(&self, ctx: &mut Ctx, conn: u64, number: u64, all: bool) {
        ctx.send(conn, self.at, Msg::Settled { number, all });
    }

    pub(crate) fn offer(&mut self, ctx: &mut Ctx, number: u64) {
        let Some(aside) = self.asides.get(&number) else { return };
        let claim = self.machine.book().get(aside.at.shard);
        let claim = claim.filter(|(epoch, owner)| {
            aside.at.epoch <= *epoch && self.sight.members.is_live(*owner)
        });
        let (epoch, owner) = claim.unwrap_or((aside.at.epoch, aside.to));
        let at = ShardEpoch { epoch, ..aside.at };
        let (seq, sessions) = (aside.seq, aside.sessions.clone());
        if owner == self.me {
            if self.merge(ctx, at, seq, sessions) {
                self.forget_aside(ctx, number);
            } else {
                self.offer_later(ctx, number);
            }
            return;
        }
        let host = ctx.host_of(owner.node);
        match host.and_then(|host| ctx.connect(self.at, host, owner.boot, Kind::Bulk)) {
            Some(conn) => {
                if let Some(aside) = self.asides.get_mut(&number) {
                    aside.conn = conn;
                }
                ctx.send(conn, self.at, Msg::Offer { number, at, seq, sessions });
            }
            None => self.offer_later(ctx, number),
        }
    }

    fn offer_later(&mut self, ctx: &mut Ctx, number: u64) {
        let Some(aside) = self.asides.get_mut(&number) else { return };
        aside.attempt += 1;
        aside.conn = 0;
        if aside.attempt < ATTEMPTS {
            let pause = ms(200 << aside.attempt.min(6)).min(ms(10_000));
            ctx.after(self.at, pause, Happens::Offer(number));
        } else {
            let (shard, pen) = (aside.at.shard, aside.pen.take());
            self.leave_on_disk(shard, pen);
            self.report(ctx, Event::Offered(vec![shard]));
        }
    }

    /// Takes in what is not here. Whether every session was dealt with.
    fn merge(&mut self, ctx: &mut Ctx, at: ShardEpoch, seq: u64, sessions: Vec<Session>) -> bool {
        let busy = (0..SESSIONS).any(|session| self.host.is_busy(at.shard, session));
        let refuses = self.disk_refuses(ctx);
        let Some(here) = self.host.shards.get_mut(&at.shard) else { return false };
        let is_served = matches!(here.gate, Gate::Serving(epoch) if at.epoch <= epoch);
        let gate = here.gate;
        ctx.note(|| {
            let n = self.at.0;
            format!("n{n}: an offer of shard {} {gate:?} busy {busy} refuses {refuses}", at.shard)
        });
        if !is_served || busy || refuses {
            return false;
        }
        let prev = here.seq;
        here.seq = prev.max(seq);
        if prev < seq {
            self.tell_change(ctx, at.shard, prev, None);
        }
        for (session, theirs) in (0..SESSIONS).zip(sessions) {
            let Some(here) = self.host.shards.get_mut(&at.shard) else { return false };
            // It was in the copy, and perhaps something came after it.
            let is_in = |since: Version| {
                theirs.version.is_some_and(|it| it.epoch == since.epoch && it.seq <= since.seq)
            };
            if here.since.is_some_and(is_in) {
                continue;
            }
            let mine = &mut here.sessions[usize::from(session)];
            let lacks =
                |one: &Session, other: &Session| other.ops.iter().any(|op| !one.ops.contains(op));
            if mine.is_there() && !lacks(mine, &theirs) {
                continue;
            }
            // Both have changed it since they parted.
            if mine.is_there() && theirs.is_there() && lacks(&theirs, mine) {
                let lost = theirs.ops.into_iter().filter(|op| !mine.ops.contains(op));
                ctx.oracle.excuse(at.shard, lost);
            } else if theirs.is_there() {
                *mine = theirs;
                here.seq += 1;
                let prev = here.seq - 1;
                self.tell_change(ctx, at.shard, prev, Some(session));
            }
        }
        for session in 0..SESSIONS {
            for task in self.tasks.values_mut() {
                task.changed(at.shard, session);
            }
        }
        true
    }
}
