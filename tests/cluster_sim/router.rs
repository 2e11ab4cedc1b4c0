//! A router: the production rules of parking and retrying, and a shell around them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stead_router::logic::retry::{Budget, Event, Failure, Next, Replay, Sent, Trail};
use stead_shared::claims::{Applied, Book};
use stead_shared::control::{Control, who_holds};
use stead_shared::id::{Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::park::{Cause, Limits, Lot, Release, Ticket, Verdict, Wait};
use stead_shared::refusal::Refusal;
use stead_shared::route::{Route, route};
use stead_shared::sim::Host;
use stead_shared::time::Time;
use stead_shared::view::View;

use crate::ctx::{Ctx, Happens, N_SHARDS, ms};
use crate::history::Done;
use crate::host::Ask;
use crate::links::{Answer, Kind, Msg};
use crate::membership::{Change, DOWN_GRACE, Health, News, Sight};

/// The longest that a request may take.
const REQUEST_MAX: Duration = Duration::from_secs(14);
/// How often deadlines are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(125);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Destination {
    owner: NodeBoot,
    epoch: Epoch,
}

#[derive(Debug)]
struct Errand {
    ask: Ask,
    client: u32,
    trail: Trail,
    ticket: Option<Ticket>,
    /// It has the turn of its queue, and whether it only looks.
    turn: Option<(Ticket, bool)>,
    deadline: Time,
    /// The present attempt, once it is on its way.
    sent: Option<(u64, Destination)>,
    attempt: u32,
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct RouterModel {
    pub(crate) at: Host,
    pub(crate) sight: Sight,
    view: View,
    book: Book,
    ahead: BTreeMap<ShardId, (Epoch, NodeBoot)>,
    lot: Lot,
    budget: Budget,
    n_requests: u64,
    errands: BTreeMap<u32, Errand>,
    /// By ticket.
    parked: BTreeMap<u64, u32>,
    dialling: std::collections::BTreeSet<Host>,
}

/// What to do next for a request.
#[derive(Debug)]
enum Step {
    Go(Option<Destination>),
    Fail(Failure),
    /// It waits.
    Wait,
}

impl RouterModel {
    pub(crate) fn new(ctx: &mut Ctx, at: Host) -> Self {
        let sight = Sight::new(ctx, at);
        let book = Book::new(N_SHARDS);
        let view = View {
            params: Arc::clone(&ctx.params),
            members: Arc::clone(&sight.members),
            pins: Arc::new([]),
            targets: Arc::clone(&sight.targets),
            members_digest: sight.digest,
            claims: book.table().clone(),
        };
        ctx.after(at, LOOK_EVERY, Happens::Look);
        Self {
            at,
            sight,
            view,
            book,
            ahead: BTreeMap::new(),
            lot: Lot::new(Limits::default()),
            budget: Budget::default(),
            n_requests: 0,
            errands: BTreeMap::new(),
            parked: BTreeMap::new(),
            dialling: std::collections::BTreeSet::new(),
        }
    }

    pub(crate) fn happen(&mut self, ctx: &mut Ctx, what: Happens) {
        match what {
            Happens::Linked { conn } => {
                let _ = ctx.linked(conn, self.at);
            }
            Happens::Unlinked { conn, peer, kind: _ } => {
                ctx.unlinked(conn, self.at, peer);
                self.dial_soon(ctx, peer, ms(100));
                self.on_broken(ctx, conn);
            }
            Happens::Delivered { conn, number, sent, msg } => {
                if let Some((from, boot, msg)) = ctx.arrived((conn, number, sent), self.at, msg) {
                    let from = NodeBoot { node: ctx.name_of(from), boot };
                    self.on_message(ctx, from, msg);
                }
            }
            Happens::Dial { to } => {
                self.dialling.remove(&to);
                let Some(boot) = self.sight.live(to) else { return };
                if ctx.main(self.at, to).is_none_or(|(_, known)| known != boot) {
                    ctx.connect(self.at, to, boot, Kind::Main);
                    self.dial_soon(ctx, to, ms(150));
                }
            }
            Happens::News(news) => self.on_news(ctx, news),
            Happens::Introduced(news) => news.into_iter().for_each(|news| self.on_news(ctx, news)),
            Happens::Grace => {
                self.sight.rebuild(ctx);
                self.publish(ctx);
            }
            Happens::Pins(version, set) => self.sight.pin(ctx, (version, set)),
            Happens::Look => {
                self.look(ctx);
                ctx.after(self.at, LOOK_EVERY, Happens::Look);
            }
            Happens::Unreachable { op, attempt } => {
                if self.errands.get(&op).is_some_and(|errand| errand.attempt == attempt) {
                    self.recover(ctx, op, &Event::Unreachable);
                }
            }
            Happens::Tick(_)
            | Happens::TurnEnds { .. }
            | Happens::CopyStep(_)
            | Happens::Copied(..)
            | Happens::CopyFailed(_)
            | Happens::Reported(_)
            | Happens::FillStep(_)
            | Happens::Stream(_)
            | Happens::Watch(_)
            | Happens::Sealed(_)
            | Happens::Sizes
            | Happens::Compare
            | Happens::Gossip(_)
            | Happens::Offer(_)
            | Happens::TakeIn(_)
            | Happens::Disk(_)
            | Happens::Drain
            | Happens::Next { .. }
            | Happens::Fault(_)
            | Happens::LinkTimeout { .. } => unreachable!("not for a router: {what:?}"),
        }
    }

    fn dial_soon(&mut self, ctx: &mut Ctx, to: Host, after: Duration) {
        if ctx.is_node(to) && self.dialling.insert(to) {
            ctx.after(self.at, after, Happens::Dial { to });
        }
    }

    // ---- what is known ---------------------------------------------------------------------

    fn on_news(&mut self, ctx: &mut Ctx, news: News) {
        if news.about == self.at {
            return;
        }
        match self.sight.take(ctx, news) {
            Change::Nothing => return,
            Change::Members => {}
            Change::Died { .. } => ctx.after(self.at, DOWN_GRACE, Happens::Grace),
        }
        if matches!(news.health, Health::Alive | Health::Suspect) {
            self.dial_soon(ctx, news.about, ms(5));
        }
        self.publish(ctx);
    }

    fn publish(&mut self, ctx: &mut Ctx) {
        self.view.members = Arc::clone(&self.sight.members);
        let members = &self.sight.members;
        let _ = self.book.set_live(|owner| members.is_live(owner));
        self.view.members_digest = self.sight.digest;
        self.view.claims = self.book.table().clone();
        self.serve_queues(ctx);
    }

    fn on_message(&mut self, ctx: &mut Ctx, from: NodeBoot, msg: Msg) {
        match msg {
            Msg::Claims(update) => {
                if !self.view.members.is_live(update.owner) {
                    if self.book.pos_of(update.owner) < update.pos {
                        self.book.doubt(update.owner);
                    }
                    return;
                }
                match self.book.apply(&update) {
                    Applied::Changed(_) => self.publish(ctx),
                    Applied::Same => {}
                    Applied::WantFull => self.tell(ctx, from.node, Msg::ClaimsWanted),
                }
            }
            Msg::ClaimsWanted => {}
            Msg::Control(message) => self.on_control(ctx, from, message),
            Msg::Answer { op, attempt, answer } => self.on_answer(ctx, op, attempt, answer),
            Msg::Request(_)
            | Msg::Begin { .. }
            | Msg::Record { .. }
            | Msg::End { .. }
            | Msg::Offer { .. }
            | Msg::Settled { .. }
            | Msg::Items { .. }
            | Msg::Taken { .. } => unreachable!("not for a router"),
        }
    }

    fn tell(&self, ctx: &mut Ctx, to: NodeId, msg: Msg) {
        let conn = ctx.host_of(to).and_then(|to| ctx.main(self.at, to));
        if let Some((conn, _)) = conn {
            ctx.send(conn, self.at, msg);
        }
    }

    fn on_control(&self, ctx: &mut Ctx, from: NodeBoot, message: Control) {
        match message {
            Control::WhoHolds { token, members_digest: _, shards } => {
                let is_live = |owner| self.view.members.is_live(owner);
                let (holdings, highest) = who_holds(&self.book, N_SHARDS, &shards, is_live);
                let members_digest = self.view.members_digest;
                let holds = Control::Holds { token, members_digest, holdings, highest };
                self.tell(ctx, from.node, Msg::Control(holds));
            }
            Control::Relay { to, handoff, shards } => {
                self.tell(ctx, to, Msg::Control(Control::Grant { handoff, shards }));
            }
            Control::TakeOver { token, owner, pos, shards } => {
                let known = self.book.pos_of(owner);
                if pos < known
                    && let Some(update) = self.book.log_of(owner)
                {
                    self.tell(ctx, from.node, Msg::Claims(update));
                }
                let is_live = |owner| self.view.members.is_live(owner);
                let (holdings, highest) = who_holds(&self.book, N_SHARDS, &shards, is_live);
                let takeable = Control::Takeable { token, pos: known, holdings, highest };
                self.tell(ctx, from.node, Msg::Control(takeable));
            }
            Control::Propose { .. }
            | Control::Accept { .. }
            | Control::Reject { .. }
            | Control::Holds { .. }
            | Control::Prepare { .. }
            | Control::Prepared { .. }
            | Control::Declined { .. }
            | Control::CaughtUp { .. }
            | Control::Grant { .. }
            | Control::NoCopy { .. }
            | Control::Takeable { .. }
            | Control::SeeClaims { .. }
            | Control::SeenClaims { .. }
            | Control::WhatSaved { .. }
            | Control::Saved { .. }
            | Control::Abort { .. }
            | Control::Served { .. } => {}
        }
    }

    fn destination(&mut self, shard: ShardId) -> Option<Destination> {
        let known = match route(&self.view, shard) {
            Route::Owner { owner, addr: _, epoch } => Some(Destination { owner, epoch }),
            Route::Park => None,
        };
        let Some(&(epoch, owner)) = self.ahead.get(&shard) else { return known };
        let claimed = self.view.claims.get(shard).map(|(epoch, _)| epoch);
        if self.view.members.is_live(owner) && claimed < Some(epoch) {
            return Some(Destination { owner, epoch });
        }
        self.ahead.remove(&shard);
        known
    }

    fn learn(&mut self, shard: ShardId, epoch: Epoch) {
        let claimed = self.view.claims.get(shard).map(|(epoch, _)| epoch);
        let member = self.view.members.find(epoch.node).filter(|member| member.state.is_live());
        let Some(member) = member.filter(|_| claimed < Some(epoch)) else { return };
        let owner = member.node_boot();
        let known = self.ahead.entry(shard).or_insert((epoch, owner));
        if known.0 < epoch || !self.view.members.is_live(known.1) {
            *known = (epoch, owner);
        }
    }

    /// Whoever was said to own the shard in `epoch` does not.
    fn unlearn(&mut self, shard: ShardId, epoch: Epoch) {
        if self.ahead.get(&shard).is_some_and(|(ahead, _)| *ahead <= epoch) {
            self.ahead.remove(&shard);
        }
    }

    // ---- requests --------------------------------------------------------------------------

    pub(crate) fn begin(&mut self, ctx: &mut Ctx, client: u32, ask: Ask) {
        self.n_requests += 1;
        let errand = Errand {
            ask,
            client,
            trail: Trail::new(ctx.knobs.rules),
            ticket: None,
            turn: None,
            deadline: ctx.now() + REQUEST_MAX,
            sent: None,
            attempt: 0,
        };
        self.errands.insert(ask.op, errand);
        let to = self.destination(ask.shard);
        if self.lot.has_queue(ask.shard) {
            let step = self.park(ctx, ask.op, None);
            self.go_on(ctx, ask.op, step);
        } else {
            self.go_on(ctx, ask.op, Step::Go(to));
        }
    }

    fn go_on(&mut self, ctx: &mut Ctx, op: u32, step: Step) {
        match step {
            Step::Go(Some(to)) => self.attempt(ctx, op, to),
            Step::Go(None) => {
                let step = self.park(ctx, op, Some(Cause::NoOwner));
                self.go_on(ctx, op, step);
            }
            Step::Fail(failure) => self.fail(ctx, op, failure),
            Step::Wait => {}
        }
    }

    fn attempt(&mut self, ctx: &mut Ctx, op: u32, to: Destination) {
        let Some(errand) = self.errands.get_mut(&op) else { return };
        errand.trail.aim(to.epoch);
        errand.attempt += 1;
        let link = ctx.host_of(to.owner.node).and_then(|host| ctx.main(self.at, host));
        let Some((conn, _)) = link.filter(|(_, boot)| *boot == to.owner.boot) else {
            let (attempt, after) = (errand.attempt, ms(1 + u64::from(ctx.below(60))));
            ctx.after(self.at, after, Happens::Unreachable { op, attempt });
            return;
        };
        let is_old = ctx.host_of(to.owner.node).is_some_and(|host| host.0 < ctx.knobs.old_nodes);
        if is_old && errand.ask.is_write && errand.trail.may_have_run() {
            self.recover(ctx, op, &Event::NotOnce);
            return;
        }
        let (try_no, epoch) = (errand.trail.begin(), Some(to.epoch));
        let ask = Ask { attempt: errand.attempt, try_no, epoch, ..errand.ask };
        errand.sent = Some((conn, to));
        ctx.oracle.sent(ctx.sim.now(), ask.op, to.epoch);
        let turn = errand.turn.take_if(|(_, looks)| !*looks);
        ctx.send(conn, self.at, Msg::Request(ask));
        if let Some((ticket, _)) = turn {
            self.lot.passed(ticket, false);
            self.serve_queue(ctx, ask.shard);
        }
    }

    fn on_answer(&mut self, ctx: &mut Ctx, op: u32, attempt: u32, answer: Answer) {
        let Some(errand) = self.errands.get_mut(&op) else { return };
        let Some((_, to)) = errand.sent.filter(|_| errand.attempt == attempt) else { return };
        errand.sent = None;
        let (shard, is_read) = (errand.ask.shard, !errand.ask.is_write);
        match answer {
            Answer::Done { epoch, value } => {
                ctx.oracle.answered(ctx.sim.now(), shard, to.epoch, epoch);
                if to.epoch < epoch {
                    self.learn(shard, epoch);
                }
                if epoch < to.epoch {
                    let sent = Sent { is_read, is_kept: true };
                    self.recover(ctx, op, &Event::Stale(sent));
                } else {
                    self.answered(ctx, op, value);
                }
            }
            Answer::Unknown => self.finish(ctx, op, Done::Unknown),
            Answer::Refused(refusal) => {
                if matches!(refusal, Refusal::NotOwner { .. }) {
                    ctx.oracle.turned_away(ctx.sim.now(), op);
                    self.unlearn(shard, to.epoch);
                }
                self.recover(ctx, op, &Event::Refused(refusal));
            }
        }
    }

    fn answered(&mut self, ctx: &mut Ctx, op: u32, value: u64) {
        let turn = self.errands.get_mut(&op).and_then(|errand| errand.turn.take());
        if let Some((ticket, _)) = turn {
            self.lot.passed(ticket, true);
            self.serve_queue(ctx, ticket.shard);
        }
        self.finish(ctx, op, Done::Value(value));
    }

    fn on_broken(&mut self, ctx: &mut Ctx, conn: u64) {
        let by_it = |(op, errand): (&u32, &Errand)| {
            errand.sent.is_some_and(|(by, _)| by == conn).then_some((*op, !errand.ask.is_write))
        };
        let ops: Vec<(u32, bool)> = self.errands.iter().filter_map(by_it).collect();
        for (op, is_read) in ops {
            if let Some(errand) = self.errands.get_mut(&op) {
                errand.sent = None;
            }
            self.recover(ctx, op, &Event::Cut(Sent { is_read, is_kept: true }));
        }
    }

    fn recover(&mut self, ctx: &mut Ctx, op: u32, event: &Event) {
        let Some(errand) = self.errands.get_mut(&op) else { return };
        let shard = errand.ask.shard;
        let next = errand.trail.next(event, Replay::All);
        let trail = errand.trail.clone();
        let step = match next {
            Next::Redirect(epoch) => {
                self.learn(shard, epoch);
                match self.destination(shard) {
                    Some(to) if trail.leads_to(to.epoch) => Step::Go(Some(to)),
                    Some(_) | None => self.park(ctx, op, Some(Cause::NoOwner)),
                }
            }
            Next::Park(cause) => self.park(ctx, op, Some(cause)),
            Next::AtOnce | Next::Replay => Step::Go(self.destination(shard)),
            Next::Again if self.budget.withdraw(self.n_requests) => {
                Step::Go(self.destination(shard))
            }
            Next::Again => Step::Fail(Failure::Unknown),
            Next::Fail(failure) => Step::Fail(failure),
        };
        self.go_on(ctx, op, step);
    }

    fn park(&mut self, ctx: &mut Ctx, op: u32, cause: Option<Cause>) -> Step {
        let Some(errand) = self.errands.get_mut(&op) else { return Step::Wait };
        errand.sent = None;
        let shard = errand.ask.shard;
        let wait = Wait {
            shard,
            again: errand.ticket,
            cause,
            tried: errand.trail.highest(),
            bytes: 16,
            deadline: errand.deadline,
        };
        let turn = errand.turn.take();
        let entered = self.lot.enter(ctx.now(), &wait);
        let step = match entered {
            Err(_) => {
                let failure = failure_of(cause.unwrap_or(Cause::Moving));
                Step::Fail(errand.trail.truly(failure))
            }
            Ok(ticket) => {
                errand.ticket = Some(ticket);
                self.parked.insert(ticket.number, op);
                Step::Wait
            }
        };
        if let Some((ticket, _)) = turn {
            self.lot.passed(ticket, false);
        }
        self.serve_queue(ctx, shard);
        step
    }

    fn serve_queue(&mut self, ctx: &mut Ctx, shard: ShardId) {
        let to = self.destination(shard).map(|to| to.epoch);
        let mut out = Vec::new();
        self.lot.turn_of(ctx.now(), shard, to, &mut out);
        self.release(ctx, &out);
    }

    fn serve_queues(&mut self, ctx: &mut Ctx) {
        if self.lot.is_idle() {
            return;
        }
        let epochs: Vec<Option<Epoch>> =
            (0..N_SHARDS).map(|s| self.destination(ShardId(s)).map(|to| to.epoch)).collect();
        let mut out = Vec::new();
        self.lot.turn(ctx.now(), |shard| epochs[shard.0 as usize], &mut out);
        self.release(ctx, &out);
    }

    fn release(&mut self, ctx: &mut Ctx, out: &[Release]) {
        for release in out {
            let Some(op) = self.parked.remove(&release.ticket.number) else { continue };
            let Some(errand) = self.errands.get_mut(&op) else { continue };
            match release.verdict {
                Verdict::Go | Verdict::Look => {
                    errand.turn = Some((release.ticket, release.verdict == Verdict::Look));
                    let step = Step::Go(self.destination(release.ticket.shard));
                    self.go_on(ctx, op, step);
                }
                Verdict::TooLong(cause) => {
                    let failure = errand.trail.truly(failure_of(cause));
                    self.fail(ctx, op, failure);
                }
            }
        }
    }

    fn look(&mut self, ctx: &mut Ctx) {
        let now = ctx.now();
        if self.lot.deadline().is_some_and(|at| at <= now) {
            self.serve_queues(ctx);
        }
        let late = |(op, errand): (&u32, &Errand)| (errand.deadline <= now).then_some(*op);
        let late: Vec<u32> = self.errands.iter().filter_map(late).collect();
        for op in late {
            let Some(errand) = self.errands.get_mut(&op) else { continue };
            let sent = errand.sent.is_some();
            match errand.trail.next(&Event::OutOfTime { sent }, Replay::All) {
                Next::Fail(failure) => self.fail(ctx, op, failure),
                Next::Redirect(_) | Next::Park(_) | Next::AtOnce | Next::Replay | Next::Again => {
                    self.finish(ctx, op, Done::Unknown);
                }
            }
        }
    }

    fn fail(&mut self, ctx: &mut Ctx, op: u32, failure: Failure) {
        let done = match failure {
            Failure::Unknown | Failure::UnknownInTime => Done::Unknown,
            Failure::Moving
            | Failure::NoOwner
            | Failure::Overloaded(_)
            | Failure::Degraded
            | Failure::Quarantined => Done::Refused(failure),
        };
        self.finish(ctx, op, done);
    }

    fn finish(&mut self, ctx: &mut Ctx, op: u32, done: Done) {
        let Some(errand) = self.errands.remove(&op) else { return };
        if let Some(ticket) = errand.ticket.filter(|t| self.parked.remove(&t.number).is_some()) {
            self.lot.leave(ticket);
        }
        let now = ctx.now();
        ctx.oracle.ops[op as usize].done = Some((now, done));
        ctx.note(|| format!("r{} tells client {}: {op} {done:?}", self.at.0, errand.client));
        let think = ctx.knobs.think.clone();
        let pause = ctx.between(&think) * if ctx.is_quiet { 12 } else { 1 };
        let world = ctx.world();
        ctx.after(world, pause, Happens::Next { client: errand.client });
        if let Some((ticket, _)) = errand.turn {
            self.lot.passed(ticket, false);
            self.serve_queue(ctx, ticket.shard);
        }
    }
}

fn failure_of(cause: Cause) -> Failure {
    match cause {
        Cause::Moving => Failure::Moving,
        Cause::NoOwner => Failure::NoOwner,
    }
}
