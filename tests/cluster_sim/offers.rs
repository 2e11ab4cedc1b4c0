//! Offers of what was in shards that were given up, and how it is merged into what is served.
//!
//! What becomes of each session is decided by production. As there, one session is merged after the
//! other, each in its turn, and an offer that breaks off is made again.

use std::collections::VecDeque;
use std::time::Duration;

use stead_node::logic::gate::Gate;
use stead_node::logic::heal::{self, Decision, Healed, Histories, Side};
use stead_node::logic::ownership::Event;
use stead_shared::control::ShardEpoch;
use stead_shared::id::{Epoch, NodeBoot, ShardId, Version};

use crate::content::{Healing, Meeting};
use crate::ctx::{Ctx, Happens, SESSIONS, ms};
use crate::host::{Contents, Session, Shard};
use crate::links::{Kind, Msg};
use crate::node::NodeModel;
use crate::saved::Pen;

/// An offer is made so many times.
const ATTEMPTS: u32 = 10;
/// So many times a session is looked at that is in use.
const LOOKS: u32 = 400;
/// So many times it is looked whether copies have what was merged.
const WAITS: u32 = 2_000;

/// Sessions of a shard that was given up.
#[derive(Debug)]
pub(crate) struct Aside {
    pub(crate) at: ShardEpoch,
    to: NodeBoot,
    pub(crate) contents: Contents,
    /// Whoever it was given up for has all of it that was answered.
    is_unconfirmed: bool,
    attempt: u32,
    conn: u64,
    /// For what the disk holds of it.
    pen: Option<Pen>,
}

impl Aside {
    pub(crate) fn of(at: ShardEpoch, to: NodeBoot, contents: Contents, pen: Option<Pen>) -> Self {
        Self { at, to, contents, is_unconfirmed: false, attempt: 0, conn: 0, pen }
    }
}

/// An offer that is being taken in.
#[derive(Debug)]
pub(crate) struct Intake {
    /// The connection and the number of an offer; the number alone where it is this node's own.
    conn: Option<u64>,
    number: u64,
    at: ShardEpoch,
    /// In which life the shard was when the last of it was merged.
    life: u64,
    histories: Histories,
    sessions: VecDeque<(u8, Session)>,
    is_served: bool,
    has_left: bool,
    looks: u32,
    waits: Option<Vec<(NodeBoot, u64)>>,
}

/// What is merged no further now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    NotServed,
    Busy,
}

impl NodeModel {
    // ---- whoever gave it up ----------------------------------------------------------------

    pub(crate) fn yield_to(&mut self, ctx: &mut Ctx, to: NodeBoot, shards: &[ShardEpoch]) {
        for &at in shards {
            let is_unconfirmed = self.is_answered_at(at.shard, to);
            let taken = self.take_out(ctx, at.shard);
            self.drop_saved(ctx, &[at.shard]);
            let Some((contents, pen)) = taken else { continue };
            if contents.sessions.iter().any(Session::is_there) {
                let aside = Aside { is_unconfirmed, ..Aside::of(at, to, contents, pen) };
                self.set_aside(ctx, aside);
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

    pub(crate) fn offer(&mut self, ctx: &mut Ctx, number: u64) {
        let Some(aside) = self.asides.get(&number) else { return };
        let claim = self.machine.book().get(aside.at.shard);
        let claim = claim.filter(|(epoch, owner)| {
            aside.at.epoch <= *epoch && self.sight.members.is_live(*owner)
        });
        let (epoch, owner) = claim.unwrap_or((aside.at.epoch, aside.to));
        let at = ShardEpoch { epoch, ..aside.at };
        let (contents, unconfirmed) = (aside.contents.clone(), aside.is_unconfirmed);
        if owner == self.me {
            self.begin_taking_in(ctx, (None, number), at, (contents, unconfirmed));
            return;
        }
        let host = ctx.host_of(owner.node);
        match host.and_then(|host| ctx.connect(self.at, host, owner.boot, Kind::Bulk)) {
            Some(conn) => {
                if let Some(aside) = self.asides.get_mut(&number) {
                    aside.conn = conn;
                }
                ctx.send(conn, self.at, Msg::Offer { number, at, contents, unconfirmed });
            }
            None => self.offer_later(ctx, number),
        }
    }

    pub(crate) fn offer_later(&mut self, ctx: &mut Ctx, number: u64) {
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

    pub(crate) fn forget_aside(&mut self, ctx: &mut Ctx, number: u64) {
        if let Some(aside) = self.asides.remove(&number) {
            self.forget_on_disk(ctx, aside.at.shard, aside.pen);
            self.report(ctx, Event::Offered(vec![aside.at.shard]));
        }
    }

    /// The stream of an offer broke, at either end.
    pub(crate) fn offer_is_broken(&mut self, ctx: &mut Ctx, conn: u64) {
        let offered = self.asides.iter().find(|(_, aside)| aside.conn == conn).map(|(n, _)| *n);
        if let Some(number) = offered {
            self.offer_later(ctx, number);
        }
        self.intakes.retain(|_, intake| intake.conn != Some(conn));
    }

    pub(crate) fn has_asides(&self) -> bool {
        self.asides.values().any(|aside| aside.attempt < ATTEMPTS)
    }

    // ---- whoever serves it now -------------------------------------------------------------

    /// Begins to merge what another node served, or this one, of a shard that is served here.
    pub(crate) fn begin_taking_in(
        &mut self,
        ctx: &mut Ctx,
        (conn, number): (Option<u64>, u64),
        at: ShardEpoch,
        (contents, is_unconfirmed): (Contents, bool),
    ) {
        let Contents { seq, past, sessions } = contents;
        let here = self.host.shards.get(&at.shard);
        let ours = here.map(Shard::lineage).unwrap_or_default();
        let mut histories = Histories { is_unconfirmed, ..Histories::new(ours, past) };
        if ctx.knobs.healing == Healing::WithoutLineage {
            histories = Histories::UNKNOWN;
        }
        let sessions = (0..SESSIONS).zip(sessions).filter(|(_, session)| session.is_there());
        let intake = Intake {
            conn,
            number,
            at,
            life: here.map_or(0, |here| here.life),
            histories,
            sessions: sessions.collect(),
            is_served: self.served_since(at).is_ok(),
            has_left: false,
            looks: 0,
            waits: None,
        };
        if intake.is_served {
            self.raise_seq(ctx, at.shard, seq);
        }
        self.next_intake += 1;
        self.intakes.insert(self.next_intake, intake);
        self.step_soon(ctx, self.next_intake, 50);
    }

    fn step_soon(&self, ctx: &mut Ctx, intake: u64, micros: u64) {
        ctx.after(self.at, Duration::from_micros(micros), Happens::TakeIn(intake));
    }

    /// The epoch served, if it is not below the one that an offer was made to.
    fn served_since(&self, at: ShardEpoch) -> Result<Epoch, Trouble> {
        match self.host.shards.get(&at.shard).map(|here| here.gate) {
            Some(Gate::Serving(epoch)) if at.epoch <= epoch => Ok(epoch),
            Some(Gate::Serving(_) | Gate::Sealed(_) | Gate::Gone) | None => Err(Trouble::NotServed),
        }
    }

    fn raise_seq(&mut self, ctx: &mut Ctx, shard: ShardId, seq: u64) {
        let Some(here) = self.host.shards.get_mut(&shard) else { return };
        let prev = here.seq;
        here.seq = prev.max(seq);
        if prev < seq {
            self.tell_change(ctx, shard, prev, None);
        }
    }

    /// Takes the next session in, or looks whether all are where answers wait for them.
    pub(crate) fn take_in_step(&mut self, ctx: &mut Ctx, number: u64) {
        let Some(mut intake) = self.intakes.remove(&number) else { return };
        match intake.sessions.pop_front() {
            Some((session, theirs)) if intake.is_served => {
                match self.take_in_session(ctx, &intake, session, theirs.clone()) {
                    Ok(()) => intake.looks = 0,
                    Err(Trouble::NotServed) => intake.is_served = false,
                    Err(Trouble::Busy) if intake.looks < LOOKS => {
                        intake.looks += 1;
                        intake.sessions.push_front((session, theirs));
                    }
                    Err(Trouble::Busy) => (intake.has_left, intake.looks) = (true, 0),
                }
                let pause = if 0 < intake.looks { 1_000 } else { 200 };
                self.intakes.insert(number, intake);
                self.step_soon(ctx, number, pause);
            }
            Some(_) | None if intake.has_left || !intake.is_served => {
                self.taken_in(ctx, &intake, false);
            }
            Some(_) | None => self.confirm(ctx, number, intake),
        }
    }

    fn confirm(&mut self, ctx: &mut Ctx, number: u64, mut intake: Intake) {
        let shard = intake.at.shard;
        let here = self.host.shards.get(&shard);
        if here.is_none_or(|here| here.life != intake.life) || WAITS < intake.looks {
            self.taken_in(ctx, &intake, false);
            return;
        }
        let now = self.waits(shard);
        let mut waits = intake.waits.take().unwrap_or_else(|| now.clone());
        waits.retain(|(to, _)| now.iter().any(|(other, _)| other == to));
        for (to, position) in &mut waits {
            let here = now.iter().find(|(other, _)| other == to);
            *position = here.map_or(*position, |(_, here)| (*position).min(*here));
        }
        waits.retain(|wait| !self.is_acked(*wait));
        if waits.is_empty() {
            self.end_healing(ctx, &intake);
            self.taken_in(ctx, &intake, true);
            return;
        }
        (intake.waits, intake.looks) = (Some(waits), intake.looks + 1);
        self.intakes.insert(number, intake);
        self.step_soon(ctx, number, 2_000);
    }

    /// All of another history is in what is served here.
    fn end_healing(&mut self, ctx: &mut Ctx, intake: &Intake) {
        let shard = intake.at.shard;
        let Some(here) = self.host.shards.get_mut(&shard) else { return };
        here.healed = None;
        let Gate::Serving(epoch) = here.gate else { return };
        if here.past.learn(&intake.histories.theirs, epoch) {
            here.seq += 1;
            let prev = here.seq - 1;
            self.tell_change(ctx, shard, prev, None);
        }
    }

    fn taken_in(&mut self, ctx: &mut Ctx, intake: &Intake, all: bool) {
        match (intake.conn, all) {
            (Some(conn), true) => self.offer_was_taken(ctx, conn, intake.number),
            (Some(conn), false) => self.settled_offer(ctx, conn, intake.number, false),
            (None, true) => self.forget_aside(ctx, intake.number),
            (None, false) => self.offer_later(ctx, intake.number),
        }
    }

    pub(crate) fn settled_offer(&self, ctx: &mut Ctx, conn: u64, number: u64, all: bool) {
        ctx.send(conn, self.at, Msg::Settled { number, all });
    }

    fn take_in_session(
        &mut self,
        ctx: &mut Ctx,
        intake: &Intake,
        session: u8,
        mut theirs: Session,
    ) -> Result<(), Trouble> {
        let (at, histories) = (intake.at, &intake.histories);
        let epoch = self.served_since(at)?;
        let (now, healing) = (ctx.now(), ctx.knobs.healing);
        self.host.clock.see(now, theirs.content.written);
        let is_busy = self.host.is_busy(at.shard, session) || self.disk_refuses(ctx);
        let Some(shard) = self.host.shards.get_mut(&at.shard) else { return Ok(()) };
        let Some(version) = theirs.version else { return Ok(()) };
        let here = &shard.sessions[usize::from(session)];
        let side = |version| Side { version, is_tombstone: false };
        let is_healed =
            shard.healed.as_ref().is_some_and(|healed| healed.has(&session, &histories.theirs));
        let decision = match is_healed {
            true => Decision::Keep,
            false => heal::decide(epoch, here.version.map(side), side(version), histories),
        };
        let text = || {
            format!(
                "n{}: {decision:?} {} session {session}: {:?} value {:?} counter {}, offered {:?} \
                 value {:?} counter {}",
                self.at.0,
                at.shard,
                here.version,
                here.content.value.map(|it| it.op),
                here.content.counter(),
                theirs.version,
                theirs.content.value.map(|it| it.op),
                theirs.content.counter(),
            )
        };
        if !is_busy {
            ctx.note(text);
        }
        let mut loser = None;
        let mut seq = version.seq;
        match decision {
            Decision::Keep | Decision::Lose => return Ok(()),
            Decision::Take | Decision::Merge if is_busy => return Err(Trouble::Busy),
            Decision::Take => theirs.take_window(&here.window, now),
            Decision::Merge if healing == Healing::OneSide => {
                theirs.take_window(&here.window, now);
            }
            Decision::Merge => {
                seq = seq.max(here.version.map_or(0, |version| version.seq));
                let version = Version { epoch, seq: 1 + seq.max(shard.seq) };
                let meeting = Meeting { histories, version, now, healing };
                loser = meeting.merge(here, &mut theirs);
            }
        }
        if decision == Decision::Merge {
            // Clients saw two histories.
            ctx.oracle.tear(at.shard);
        }
        let kept = theirs.content.value.map(|it| it.op);
        ctx.oracle.merges.merged(decision, kept, loser);
        let prev = shard.seq;
        shard.seq = prev.max(seq) + 1;
        shard.sessions[usize::from(session)] = theirs;
        Healed::note(&mut shard.healed, session, &histories.theirs);
        self.tell_arrival(ctx, at.shard, prev, session);
        for task in self.tasks.values_mut() {
            task.changed(at.shard, session);
        }
        Ok(())
    }
}
