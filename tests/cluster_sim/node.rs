//! A node: the production machine, and around it a shell as thin as it can be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use stead_node::logic::ownership::{Action, Event, Ownership};
use stead_shared::control::{Control, HandoffId, ShardEpoch};
use stead_shared::heard::{self, Ear, Lift};
use stead_shared::id::{Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::member::{MemberState, Members, Phase};
use stead_shared::refusal::{Claim, Refusal};
use stead_shared::sim::Host;
use stead_shared::time::Time;

use crate::content::Clock;
use crate::ctx::{BALANCE_QUIET, Ctx, Happens, ms};
use crate::feed::Feeds;
use crate::host::{Admitted, Ask, Contents, Ended, HostModel, Session, Shard};
use crate::kept::KeptCopies;
use crate::links::{Answer, Kind, Msg};
use crate::membership::{Change, DOWN_GRACE, Health, News, Sight};
use crate::offers::{Aside, Intake};
use crate::oracle::Violation;
use crate::plan::Step;
use crate::saved::{Pen, Saving, may_be_gone, open_disk};
use crate::transfer::{Copy, CopyTask};

/// See the module's page.
#[derive(Debug)]
pub(crate) struct NodeModel {
    pub(crate) at: Host,
    pub(crate) me: NodeBoot,
    pub(crate) machine: Ownership,
    pub(crate) sight: Sight,
    pub(crate) host: HostModel,
    pub(crate) tasks: BTreeMap<HandoffId, CopyTask>,
    pub(crate) copies: BTreeMap<HandoffId, Copy>,
    pub(crate) asides: BTreeMap<u64, Aside>,
    pub(crate) next_aside: u64,
    pub(crate) intakes: BTreeMap<u64, Intake>,
    pub(crate) next_intake: u64,
    granted: BTreeMap<ShardId, Epoch>,
    tick: (Time, u64),
    /// What the judge of moves knows: when the members' digest changed, and unannounced deaths.
    pub(crate) told: Arc<Members>,
    digest: u64,
    digest_since: Time,
    dead: BTreeSet<NodeBoot>,
    deaths: VecDeque<Time>,
    frozen: bool,
    founded: Option<Time>,
    dialling: BTreeSet<Host>,
    /// What came before the first list of members.
    unheard: Option<Vec<News>>,
    /// What happens now comes of a grant.
    pub(crate) is_granted: bool,
    /// Whether anybody was heard lately (R11).
    ear: Ear,
    /// Answers that wait for the end of a doubt, each with its shard's life and epoch.
    held: Vec<(Ask, u64, Epoch, Answer, Vec<u32>)>,
    pub(crate) feeds: Feeds,
    pub(crate) kept: KeptCopies,
    pub(crate) saving: Option<Saving>,
}

/// Between two packets of gossip that a process hears from anybody.
const GOSSIP_EVERY: Duration = Duration::from_millis(300);

impl NodeModel {
    pub(crate) fn new(ctx: &mut Ctx, at: Host) -> Self {
        let me = ctx.who(at);
        let sight = Sight::new(ctx, at);
        let (members, targets) = (Arc::clone(&sight.members), Arc::clone(&sight.targets));
        let (saving, held) = open_disk(ctx, me);
        let remembered = match &saving {
            Some(_) => ctx.disks[at.0 as usize].members.clone(),
            None => BTreeSet::new(),
        };
        let machine = Ownership::new(ctx.ownership_config(me), members, targets, ctx.now())
            .recovering(held, remembered);
        ctx.after(at, ms(1), Happens::Tick(1));
        ctx.after(at, ms(450), Happens::Sizes);
        ctx.after(at, ms(10_000), Happens::Compare);
        let due = ctx.now() + GOSSIP_EVERY;
        ctx.after(at, GOSSIP_EVERY, Happens::Gossip(due));
        Self {
            at,
            me,
            machine,
            sight,
            host: HostModel::new(Clock::of(me.node)),
            tasks: BTreeMap::new(),
            copies: BTreeMap::new(),
            asides: BTreeMap::new(),
            next_aside: 0,
            intakes: BTreeMap::new(),
            next_intake: 0,
            granted: BTreeMap::new(),
            tick: (ctx.now() + ms(1), 1),
            told: Arc::new(Members { me: me.node, list: Vec::new() }),
            digest: 0,
            digest_since: ctx.now(),
            dead: BTreeSet::new(),
            deaths: VecDeque::new(),
            frozen: false,
            founded: None,
            dialling: BTreeSet::new(),
            unheard: Some(Vec::new()),
            is_granted: false,
            ear: Ear::new(ctx.knobs.rules.heard_lately),
            held: Vec::new(),
            feeds: Feeds::default(),
            kept: KeptCopies::default(),
            saving,
        }
    }

    pub(crate) fn happen(&mut self, ctx: &mut Ctx, what: Happens) {
        self.meet(ctx, what);
        self.poke_disk(ctx);
    }

    fn meet(&mut self, ctx: &mut Ctx, what: Happens) {
        match what {
            Happens::Tick(n) if n == self.tick.1 => {
                self.tick.0 = Time::ZERO;
                self.feed(ctx, Event::Tick);
            }
            Happens::Tick(_) => {}
            Happens::Linked { conn } => self.on_linked(ctx, conn),
            Happens::Unlinked { conn, peer, kind } => self.on_unlinked(ctx, conn, peer, kind),
            Happens::Delivered { conn, number, sent, msg } => {
                if let Some((from, boot, msg)) = ctx.arrived((conn, number, sent), self.at, msg) {
                    let from = NodeBoot { node: ctx.name_of(from), boot };
                    if self.told.live_peers().next().is_some() {
                        ctx.oracle.heard(self.me, sent);
                    }
                    self.hear(ctx);
                    self.on_message(ctx, conn, from, msg);
                }
            }
            Happens::Dial { to } => self.dial(ctx, to),
            Happens::News(news) => match &mut self.unheard {
                Some(unheard) => unheard.push(news),
                None => self.on_news(ctx, news),
            },
            Happens::Introduced(news) => self.on_introduced(ctx, news),
            Happens::Grace => {
                self.sight.rebuild(ctx);
                self.tell_members(ctx);
            }
            Happens::Pins(version, set) => {
                self.sight.pin(ctx, (version, set));
                self.tell_members(ctx);
            }
            Happens::TurnEnds { life, ask, read } => self.on_turn_end(ctx, ask, life, read),
            Happens::CopyStep(id) => self.copy_step(ctx, id),
            Happens::Copied(handoff, progress) => {
                self.feed(ctx, Event::Copied { handoff, progress });
            }
            Happens::CopyFailed(id) => self.copy_failed(ctx, id),
            Happens::Reported(event) => self.feed(ctx, event),
            Happens::FillStep(to) => self.fill_step(ctx, to),
            Happens::Stream(to) => self.open_stream(ctx, to),
            Happens::Watch(to) => self.watch(ctx, to),
            Happens::Sealed(id) => self.feed(ctx, Event::Sealed(id)),
            Happens::Sizes => {
                let sizes = self.sizes(ctx);
                self.feed(ctx, Event::Sizes(sizes));
                ctx.after(self.at, ms(500), Happens::Sizes);
            }
            Happens::Compare => {
                let heartbeat = self.machine.heartbeat();
                for peer in ctx.peers(self.at) {
                    self.send(ctx, peer, Msg::Claims(heartbeat.clone()));
                }
                ctx.after(self.at, ms(10_000), Happens::Compare);
            }
            Happens::Gossip(due) => self.on_gossip(ctx, due),
            Happens::Offer(number) => self.offer(ctx, number),
            Happens::TakeIn(number) => self.take_in_step(ctx, number),
            Happens::Disk(step) => self.disk_step(ctx, step),
            Happens::Drain => {
                let news = ctx.set_phase(self.at, Phase::Leaving);
                self.sight.take(ctx, news);
                self.feed(ctx, Event::Drain);
            }
            Happens::Look
            | Happens::Next { .. }
            | Happens::Unreachable { .. }
            | Happens::Fault(_)
            | Happens::LinkTimeout { .. } => unreachable!("not for a node: {what:?}"),
        }
    }

    fn sizes(&self, ctx: &Ctx) -> BTreeMap<ShardId, u64> {
        let size = |(&id, shard): (&ShardId, &Shard)| {
            let n = shard.sessions.iter().filter(|session| session.is_there()).count() as u64;
            (0 < n).then_some((id, n * ctx.knobs.session_bytes))
        };
        self.host.shards.iter().filter_map(size).collect()
    }

    pub(crate) fn feed(&mut self, ctx: &mut Ctx, event: Event) {
        if ctx.log && event != Event::Tick {
            ctx.note(|| format!("n{} <- {}", self.at.0, brief(&event)));
        }
        let mut out = Vec::new();
        self.machine.handle(ctx.now(), event, &mut out);
        for action in out {
            self.act(ctx, action);
        }
        for at in self.machine.granted() {
            self.granted.insert(at.shard, at.epoch);
        }
        let deadline = self.machine.deadline();
        if self.tick.0 <= ctx.now() || deadline < self.tick.0 {
            self.tick = (deadline, self.tick.1 + 1);
            ctx.sim.timer(self.at, deadline, Happens::Tick(self.tick.1));
        }
    }

    // ---- members ---------------------------------------------------------------------------

    fn on_introduced(&mut self, ctx: &mut Ctx, news: Vec<News>) {
        for news in news {
            if self.sight.take(ctx, news) != Change::Nothing
                && self.sight.live(news.about).is_some()
            {
                self.dial_soon(ctx, news.about, ms(5));
            }
            if matches!(news.health, Health::Down { .. }) {
                let who = NodeBoot { node: ctx.name_of(news.about), boot: news.boot };
                self.note_death(ctx, news.about, who);
            }
        }
        ctx.after(self.at, DOWN_GRACE, Happens::Grace);
        self.tell_members(ctx);
        for news in self.unheard.take().unwrap_or_default() {
            self.on_news(ctx, news);
        }
    }

    fn on_news(&mut self, ctx: &mut Ctx, news: News) {
        // Of its own end a process hears, too, and objects.
        if news.about == self.at && news.boot == self.me.boot {
            return;
        }
        let change = self.sight.take(ctx, news);
        let died = match change {
            Change::Nothing => return,
            Change::Members => None,
            Change::Died { boot, confirmed } => {
                ctx.after(self.at, DOWN_GRACE, Happens::Grace);
                let who = NodeBoot { node: ctx.name_of(news.about), boot };
                Some((Event::Died { who, confirmed }, who))
            }
        };
        if let Some((event, who)) = died {
            let is_told_first = ctx.one_in(2);
            if !is_told_first {
                self.tell_members(ctx);
            }
            self.note_death(ctx, news.about, who);
            self.feed(ctx, event);
            if is_told_first {
                self.tell_members(ctx);
            }
        } else {
            self.tell_members(ctx);
        }
        if matches!(news.health, Health::Alive | Health::Suspect) && news.about != self.at {
            self.dial_soon(ctx, news.about, ms(5));
        }
    }

    fn note_death(&mut self, ctx: &Ctx, about: Host, who: NodeBoot) {
        if !ctx.is_node(about) || !self.dead.insert(who) {
            return;
        }
        let now = ctx.now();
        self.deaths.retain(|at| now.since(*at) < Duration::from_secs(5));
        self.deaths.push_back(now);
        let alive = 1 + self.sight.members.list.iter().filter(|m| m.is_live_node()).count();
        let n = self.deaths.len();
        self.frozen |= 3 <= n && (alive + n) * 30 < n * 100;
    }

    fn tell_members(&mut self, ctx: &mut Ctx) {
        let (members, targets) = (Arc::clone(&self.sight.members), Arc::clone(&self.sight.targets));
        let digest = self.sight.digest;
        self.told = Arc::clone(&members);
        self.remember_members(ctx);
        let has_peers = members.live_peers().next().is_some();
        self.ear.peers(has_peers, ctx.now());
        if !has_peers {
            ctx.oracle.is_alone(self.me);
        }
        if digest != self.digest {
            (self.digest, self.digest_since) = (digest, ctx.now());
        }
        self.feed(ctx, Event::Members { members, targets, digest });
    }

    fn dial_soon(&mut self, ctx: &mut Ctx, to: Host, after: Duration) {
        if self.dialling.insert(to) {
            ctx.after(self.at, after, Happens::Dial { to });
        }
    }

    fn dial(&mut self, ctx: &mut Ctx, to: Host) {
        self.dialling.remove(&to);
        let Some(boot) = self.sight.live(to) else { return };
        if ctx.main(self.at, to).is_none_or(|(_, known)| known != boot) {
            ctx.connect(self.at, to, boot, Kind::Main);
            self.dial_soon(ctx, to, ms(150));
        }
    }

    fn on_linked(&mut self, ctx: &mut Ctx, conn: u64) {
        let Some(peer) = ctx.linked(conn, self.at) else { return };
        let is_old = |host: Option<Host>| host.is_some_and(|h| h.0 < ctx.knobs.old_nodes);
        let old = is_old(Some(self.at)) || is_old(ctx.host_of(peer.node));
        let protocol = if old { 1 } else { 4 };
        self.feed(ctx, Event::Connected { peer, protocol });
    }

    fn on_unlinked(&mut self, ctx: &mut Ctx, conn: u64, peer: Host, kind: Kind) {
        match kind {
            Kind::Bulk => self.on_stream_broken(ctx, conn),
            Kind::Main => {
                if ctx.unlinked(conn, self.at, peer) {
                    self.feed(ctx, Event::Disconnected(ctx.name_of(peer)));
                    self.dial_soon(ctx, peer, ms(100));
                }
            }
        }
    }

    // ---- who is heard ----------------------------------------------------------------------

    /// A packet of gossip comes from whoever can reach this process. It was sent when it was due;
    /// a process that was stopped reads it late.
    fn on_gossip(&mut self, ctx: &mut Ctx, due: Time) {
        let is_heard = (0..ctx.n_hosts()).map(Host).any(|other| {
            other != self.at && ctx.sim.is_running(other) && !ctx.sim.is_cut(other, self.at)
        });
        if is_heard && self.told.live_peers().next().is_some() {
            ctx.oracle.heard(self.me, due);
            self.hear(ctx);
        }
        let next = ctx.now() + GOSSIP_EVERY;
        ctx.after(self.at, GOSSIP_EVERY, Happens::Gossip(next));
    }

    fn hear(&mut self, ctx: &mut Ctx) {
        let change = self.ear.note(ctx.now());
        self.on_ear(ctx, change);
    }

    fn on_ear(&mut self, ctx: &mut Ctx, change: heard::Change) {
        match change {
            heard::Change::None => {}
            heard::Change::Doubt => self.feed(ctx, Event::Doubt(self.ear.n_doubts())),
            heard::Change::Heard => self.feed(ctx, Event::Heard(self.ear.n_doubts())),
        }
    }

    /// Lets an answer out, unless nobody was heard lately.
    pub(crate) fn answer(
        &mut self,
        ctx: &mut Ctx,
        ask: &Ask,
        life: u64,
        answer: Answer,
        ops: Vec<u32>,
    ) {
        if let Answer::Done { epoch, .. } = answer {
            let change = self.ear.check(ctx.now());
            self.on_ear(ctx, change);
            if self.ear.is_in_doubt() {
                self.held.push((*ask, life, epoch, answer, ops));
                return;
            }
            ctx.oracle.let_out(ctx.sim.now(), self.me, ask.shard, ops);
        }
        ctx.send(ask.conn, self.at, Msg::Answer { op: ask.op, attempt: ask.attempt, answer });
    }

    /// The doubt with this number is over: what waited for it goes out, if its shard is still
    /// served as it was.
    fn end_doubt(&mut self, ctx: &mut Ctx, number: u64, alone: bool) {
        let how = if alone { Lift::Alone } else { Lift::Answered };
        if !self.ear.lift(number, how, ctx.now()) {
            return;
        }
        if alone {
            ctx.oracle.is_alone(self.me);
        } else {
            ctx.oracle.heard(self.me, ctx.sim.now());
        }
        for (ask, life, epoch, answer, ops) in std::mem::take(&mut self.held) {
            let here = self.host.shards.get(&ask.shard);
            let is_same = here.is_some_and(|s| s.life == life && s.gate.epoch() == Some(epoch));
            self.answer(ctx, &ask, life, if is_same { answer } else { Answer::Unknown }, ops);
        }
    }

    // ---- messages --------------------------------------------------------------------------

    pub(crate) fn send(&self, ctx: &mut Ctx, to: Host, msg: Msg) {
        if let Some((conn, _)) = ctx.main(self.at, to) {
            ctx.send(conn, self.at, msg);
        }
    }

    fn send_to(&self, ctx: &mut Ctx, to: NodeId, msg: Msg) {
        if let Some(to) = ctx.host_of(to) {
            self.send(ctx, to, msg);
        }
    }

    fn on_message(&mut self, ctx: &mut Ctx, conn: u64, from: NodeBoot, msg: Msg) {
        match msg {
            Msg::Control(message) => {
                self.is_granted = matches!(message, Control::Grant { .. });
                self.feed(ctx, Event::Control { from, message });
                self.is_granted = false;
            }
            Msg::Claims(update) => self.feed(ctx, Event::Claims(update)),
            Msg::ClaimsWanted => self.feed(ctx, Event::ClaimsWanted(from.node)),
            Msg::Request(ask) => self.on_request(ctx, Ask { conn, ..ask }),
            Msg::Answer { .. } => unreachable!("nodes ask nothing"),
            Msg::Begin { .. }
            | Msg::Record { .. }
            | Msg::End { .. }
            | Msg::Offer { .. }
            | Msg::Settled { .. }
            | Msg::Items { .. }
            | Msg::Taken { .. } => self.on_state(ctx, conn, from, msg),
        }
    }

    // ---- requests --------------------------------------------------------------------------

    fn on_request(&mut self, ctx: &mut Ctx, ask: Ask) {
        if self.ear.is_in_doubt() {
            self.refuse(ctx, &ask, Refusal::Moving);
            return;
        }
        if self.is_quarantined(ask.shard) && !self.host.shards.contains_key(&ask.shard) {
            self.refuse(ctx, &ask, Refusal::Quarantined);
            return;
        }
        match self.host.admit(&ask, &ctx.knobs.rules) {
            Admitted::Refused(refusal) => self.refuse(ctx, &ask, refusal),
            Admitted::Queued => {}
            Admitted::Runs { life, read } => self.run(ctx, ask, life, read),
        }
    }

    fn run(&self, ctx: &mut Ctx, ask: Ask, life: u64, read: Option<u64>) {
        let range = ctx.knobs.turn.clone();
        let mut takes = ctx.between(&range);
        if ctx.one_in(ctx.knobs.long_turns) && !ctx.is_quiet {
            takes = ctx.knobs.long_turn;
        }
        if let Some(rate) = self.host.shards.get(&ask.shard).and_then(|shard| shard.throttle)
            && ask.is_write
        {
            takes += Duration::from_micros(ctx.knobs.session_bytes * 1_000_000 / rate.max(1));
        }
        ctx.after(self.at, takes, Happens::TurnEnds { life, ask, read });
    }

    pub(crate) fn refuse(&self, ctx: &mut Ctx, ask: &Ask, refusal: Refusal) {
        let refusal = self.with_claim(ask.shard, refusal);
        let answer = Answer::Refused(refusal);
        ctx.send(ask.conn, self.at, Msg::Answer { op: ask.op, attempt: ask.attempt, answer });
    }

    /// Adds who owns the shard, where this node knows.
    fn with_claim(&self, shard: ShardId, refusal: Refusal) -> Refusal {
        match refusal {
            Refusal::NotOwner { claim: None } | Refusal::Moving => {}
            Refusal::NotOwner { claim: Some(_) }
            | Refusal::Overloaded { .. }
            | Refusal::Degraded
            | Refusal::Quarantined
            | Refusal::DeadlinePassed => return refusal,
        }
        if let Some(&epoch) = self.granted.get(&shard) {
            return Refusal::NotOwner { claim: Some(Claim { epoch }) };
        }
        match self.claim_of_others(shard) {
            Some(epoch) => Refusal::NotOwner { claim: Some(Claim { epoch }) },
            None => refusal,
        }
    }

    fn claim_of_others(&self, shard: ShardId) -> Option<Epoch> {
        let (epoch, owner) = self.machine.book().get(shard)?;
        (owner.node != self.me.node && self.sight.members.is_live(owner)).then_some(epoch)
    }

    fn on_turn_end(&mut self, ctx: &mut Ctx, ask: Ask, life: u64, read: Option<u64>) {
        let refuses = self.disk_refuses(ctx);
        match self.host.commit(&ask, life, ctx.now(), (&ctx.knobs.rules, refuses)) {
            Ended::Refused => self.refuse_for_disk(ctx, &ask),
            Ended::Unknown => self.answer(ctx, &ask, life, Answer::Unknown, Vec::new()),
            Ended::Again { epoch, value } => {
                ctx.note(|| format!("n{} answers {} again: {value}", self.at.0, ask.op));
                let ops = self.host.ops(&ask, value);
                let answer = Answer::Done { epoch, value };
                self.answer_when_acked(ctx, ask, life, answer, ops);
            }
            Ended::Ran { version, value, is_twice, saw } => {
                let value = read.unwrap_or(value);
                if ask.is_write {
                    let newest = self.claim_of_others(ask.shard);
                    let what = (ask.op, ask.shard, ask.session);
                    ctx.oracle.ran(ctx.sim.now(), self.me, what, version, newest);
                    if is_twice {
                        ctx.oracle.ran_twice(ctx.sim.now(), ask.op);
                    }
                    ctx.oracle.merges.saw(ask.op, saw);
                    for task in self.tasks.values_mut() {
                        task.changed(ask.shard, ask.session);
                    }
                    ctx.note(|| {
                        let (at, op, shard) = (self.at.0, ask.op, ask.shard);
                        format!("n{at} ran {op}: shard {shard} {version:?} value {value}")
                    });
                    self.tell_change(ctx, ask.shard, version.seq - 1, Some(ask.session));
                }
                let ops = self.host.ops(&ask, value);
                let answer = Answer::Done { epoch: version.epoch, value };
                self.answer_when_acked(ctx, ask, life, answer, ops);
            }
        }
        let (next, ended) = self.host.release(&ask, life);
        self.seals_ended(ctx, &ended);
        if let Some(next) = next {
            self.run(ctx, next, life, None);
        }
    }

    fn seals_ended(&mut self, ctx: &mut Ctx, ended: &[HandoffId]) {
        if !ended.is_empty() {
            self.look_at_seals(ctx);
        }
    }

    /// A shard that was granted to somebody else is not said to be any more.
    pub(crate) fn granted_to_others_ends(&mut self, shard: ShardId) {
        self.granted.remove(&shard);
    }

    // ---- actions ---------------------------------------------------------------------------

    fn act(&mut self, ctx: &mut Ctx, action: Action) {
        if let Some((step, handoff)) = self.step_of(ctx, &action) {
            ctx.reached(step, handoff);
        }
        if ctx.log {
            ctx.note(|| format!("n{} -> {}", self.at.0, brief(&action)));
        }
        match action {
            Action::Send { to, message } => self.send_control(ctx, to, message),
            Action::PushClaims(update) => {
                for peer in ctx.peers(self.at) {
                    self.send(ctx, peer, Msg::Claims(update.clone()));
                }
            }
            Action::SendClaims { to, update } => self.send_to(ctx, to, Msg::Claims(update)),
            Action::AskClaims { to } => self.send_to(ctx, to, Msg::ClaimsWanted),
            Action::BecomeReady => {
                let news = ctx.set_phase(self.at, Phase::Ready);
                self.sight.take(ctx, news);
                ctx.after(self.at, Duration::ZERO, Happens::Grace);
            }
            Action::OpenEmpty { shards, lost } => self.open_empty(ctx, &shards, lost),
            Action::Copy { handoff, to, shards, budgeted: _ } => {
                self.begin_copy(ctx, handoff, to, shards, true);
            }
            Action::Throttle { shards, bytes_per_second } => {
                for shard in shards {
                    if let Some(shard) = self.host.shards.get_mut(&shard) {
                        shard.throttle = bytes_per_second;
                    }
                }
            }
            Action::SendLast { handoff } => self.send_last(ctx, handoff),
            Action::StopCopy { handoff } => self.stop_copy(ctx, handoff),
            Action::Seal { handoff, shards } => self.seal(ctx, handoff, &shards),
            Action::Reopen { shards } => {
                for at in shards {
                    self.granted.remove(&at.shard);
                    if let Some(old) = self.host.shards.get(&at.shard).map(Shard::epoch) {
                        let waiting = self.host.reopen(at);
                        self.save_gate(ctx, at.shard);
                        self.seals_ended(ctx, &waiting);
                        ctx.oracle.opened(ctx.sim.now(), self.me, at);
                        self.follow_epoch(ctx, at.shard, old);
                        self.begun(ctx, at);
                        let on_disks =
                            ctx.disks.iter().flat_map(|disk| disk.ops(at.shard)).collect();
                        if let Some(here) = self.host.shards.get(&at.shard) {
                            ctx.oracle.reopened(at.shard, &here.sessions, &on_disks);
                        }
                    } else {
                        self.promote(ctx, at, true);
                    }
                }
            }
            Action::SendState { handoff, to, shards } => {
                self.begin_copy(ctx, handoff, to, shards, false);
                self.send_last(ctx, handoff);
            }
            Action::DropCopy { handoff } => self.drop_copy(ctx, handoff),
            Action::OpenCopy { handoff, shards } => self.open_copy(ctx, handoff, &shards),
            Action::DropState { shards } => {
                for shard in shards {
                    self.granted.remove(&shard);
                    if let Some((_, pen)) = self.take_out(ctx, shard) {
                        self.forget_on_disk(ctx, shard, pen);
                    }
                }
            }
            Action::Yield { to, shards } => self.yield_to(ctx, to, &shards),
            Action::SetReplicas { sets } => self.set_replicas(ctx, &sets),
            Action::Fill { to, shards } => self.fill(ctx, to, &shards),
            Action::Adopt { to, shards, named } => self.adopt(ctx, to, &shards, named),
            Action::StopFill { to, shards } => self.stop_fill(ctx, to, &shards),
            Action::KeepCopy { owner, shards } => self.keep_copies(ctx, owner, &shards),
            Action::DropReplicas { shards } => self.drop_replicas(ctx, &shards),
            Action::OfferReplicas { to, shards } => self.offer_replicas(ctx, to, &shards),
            Action::OfferReplaced { to, shards } => self.offer_replaced(ctx, to, &shards),
            Action::DropReplaced { shards } => {
                self.kept.replaced.retain(|shard, _| !shards.contains(shard));
            }
            Action::OpenReplica { shards } => self.open_replicas(ctx, &shards),
            Action::Stop(_) => unreachable!("nobody is to stop here"),
            Action::OpenSaved { shards } => self.open_saved(ctx, &shards),
            Action::DropSaved { shards } => self.drop_saved(ctx, &shards),
            Action::OfferSaved { to, shards } => self.offer_saved(ctx, to, &shards),
            Action::Quarantine { shards } => self.quarantine(ctx, &shards),
            Action::NoteBegun { begun } => self.note_begun(&begun),
            Action::Certain { doubt, alone } => self.end_doubt(ctx, doubt, alone),
            Action::Publish => {}
            Action::Drained => {
                let world = ctx.world();
                let soon = Duration::from_micros(u64::from(ctx.below(30_000)));
                let exit = crate::plan::Fault::Exit(self.at, self.me.boot);
                ctx.after(world, soon, Happens::Fault(exit));
            }
            Action::Note(note) => {
                if matches!(note, stead_node::logic::ownership::Note::Founded { .. }) {
                    self.founded = Some(ctx.now());
                }
            }
            Action::GiveUp(_) => {
                let world = ctx.world();
                let exit = crate::plan::Fault::Exit(self.at, self.me.boot);
                ctx.after(world, Duration::ZERO, Happens::Fault(exit));
            }
        }
    }

    /// The step of a handoff that an action is.
    fn step_of(&self, ctx: &mut Ctx, action: &Action) -> Option<(Step, HandoffId)> {
        match action {
            Action::Send { to, message: Control::Prepare { handoff, .. } } => {
                let target = ctx.host_of(*to)?;
                ctx.targets.insert(*handoff, target);
                Some((Step::Prepare, *handoff))
            }
            Action::Send { message: Control::CaughtUp { handoff }, .. } => {
                Some((Step::CaughtUp, *handoff))
            }
            Action::Send { message: Control::Grant { handoff, .. }, .. } => {
                Some((Step::Grant, *handoff))
            }
            Action::Copy { handoff, .. } => Some((Step::Copy, *handoff)),
            Action::Seal { handoff, .. } => Some((Step::Seal, *handoff)),
            Action::SendLast { handoff } => Some((Step::Last, *handoff)),
            Action::OpenCopy { handoff, .. } => Some((Step::Open, *handoff)),
            Action::Send { .. }
            | Action::PushClaims(_)
            | Action::SendClaims { .. }
            | Action::AskClaims { .. }
            | Action::BecomeReady
            | Action::OpenEmpty { .. }
            | Action::Throttle { .. }
            | Action::StopCopy { .. }
            | Action::Reopen { .. }
            | Action::SendState { .. }
            | Action::DropCopy { .. }
            | Action::DropState { .. }
            | Action::SetReplicas { .. }
            | Action::Fill { .. }
            | Action::Adopt { .. }
            | Action::StopFill { .. }
            | Action::KeepCopy { .. }
            | Action::DropReplicas { .. }
            | Action::OfferReplicas { .. }
            | Action::OfferReplaced { .. }
            | Action::DropReplaced { .. }
            | Action::OpenReplica { .. }
            | Action::OpenSaved { .. }
            | Action::DropSaved { .. }
            | Action::OfferSaved { .. }
            | Action::Quarantine { .. }
            | Action::NoteBegun { .. }
            | Action::Yield { .. }
            | Action::Publish
            | Action::Stop(_)
            | Action::Certain { .. }
            | Action::Drained
            | Action::Note(_)
            | Action::GiveUp(_) => None,
        }
    }

    fn send_control(&mut self, ctx: &mut Ctx, to: NodeId, message: Control) {
        match &message {
            Control::Grant { handoff, shards } | Control::Relay { handoff, shards, .. } => {
                if handoff.source == self.me {
                    ctx.oracle.granted(self.me, shards);
                }
            }
            Control::Prepare { handoff, shards, drain, .. } => {
                let why_not = self.why_not_calm(ctx.now(), to);
                ctx.oracle.asked(ctx.sim.now(), (*handoff, *drain), shards, why_not);
            }
            Control::Propose { .. }
            | Control::Accept { .. }
            | Control::Reject { .. }
            | Control::WhoHolds { .. }
            | Control::Holds { .. }
            | Control::Prepared { .. }
            | Control::Declined { .. }
            | Control::CaughtUp { .. }
            | Control::NoCopy { .. }
            | Control::TakeOver { .. }
            | Control::Takeable { .. }
            | Control::SeeClaims { .. }
            | Control::SeenClaims { .. }
            | Control::WhatSaved { .. }
            | Control::Saved { .. }
            | Control::Abort { .. }
            | Control::Served { .. } => {}
        }
        self.send_to(ctx, to, Msg::Control(message.clone()));
        // Late and repeated messages are harmless (R8): a relay that stood still sends such.
        if ctx.one_in(ctx.knobs.repeats)
            && let Some(to) = ctx.host_of(to)
            && let Some((conn, _)) = ctx.main(self.at, to)
        {
            let late = ms(u64::from(ctx.below(4_000)));
            let (sent, msg) = (ctx.now(), Msg::Control(message));
            ctx.after(to, late, Happens::Delivered { conn, number: None, sent, msg });
        }
    }

    /// What speaks against a move for balance, in the eyes of this node (R10).
    fn why_not_calm(&mut self, now: Time, to: NodeId) -> Option<(Violation, String)> {
        let is_founding = self.founded.is_some_and(|at| now.since(at) < Duration::from_secs(10));
        let for_long = now.since(self.digest_since);
        if !is_founding && for_long < BALANCE_QUIET {
            let text = format!("members have been the same for {for_long:?} only");
            return Some((Violation::MovedInUnrest, text));
        }
        if self.frozen && for_long < Duration::from_secs(30) {
            return Some((Violation::MovedInFreeze, format!("many died, {for_long:?} ago")));
        }
        self.frozen = false;
        let state = self.told.find(to).map(|member| member.state);
        let is_ready = state == Some(MemberState::Ready);
        (!is_ready).then(|| (Violation::MovedInUnrest, format!("its target is {state:?}")))
    }

    fn open_empty(&mut self, ctx: &mut Ctx, shards: &[ShardEpoch], lost: bool) {
        for &at in shards {
            self.granted.remove(&at.shard);
            let old = self.host.shards.get(&at.shard).map(Shard::epoch);
            let waiting = self.host.activate_empty(at);
            self.save_beginning(ctx, at, old);
            self.seals_ended(ctx, &waiting);
            ctx.oracle.opened(ctx.sim.now(), self.me, at);
            self.follow_epoch(ctx, at.shard, old.unwrap_or(at.epoch));
            self.begun(ctx, at);
            if lost {
                ctx.note(|| format!("n{}: shard {} starts empty", self.at.0, at.shard));
            }
        }
    }

    fn seal(&mut self, ctx: &mut Ctx, handoff: HandoffId, shards: &[ShardId]) {
        for &id in shards {
            if let Some(shard) = self.host.shards.get(&id) {
                ctx.oracle.sealed(self.me, id, shard.epoch());
            }
            let (away, _) = self.host.seal(id, handoff);
            self.save_gate(ctx, id);
            for ask in away {
                self.refuse(ctx, &ask, Refusal::Moving);
            }
        }
        self.is_sealing(handoff, shards);
        self.look_at_seals(ctx);
    }

    /// Takes a shard out for good.
    pub(crate) fn take_out(
        &mut self,
        ctx: &mut Ctx,
        id: ShardId,
    ) -> Option<(Contents, Option<Pen>)> {
        let (mut shard, away) = self.host.take_out(id)?;
        ctx.oracle.dropped(self.me, id);
        for ask in away {
            self.refuse(ctx, &ask, Refusal::NotOwner { claim: None });
        }
        let waiting = HostModel::sealers(&mut shard);
        self.seals_ended(ctx, &waiting);
        self.unfollowed(ctx, &shard);
        let pen = shard.pen.take();
        Some((shard.into_contents(), pen))
    }

    /// The process is gone; what others hold of each shard is given.
    pub(crate) fn bury(
        &self,
        ctx: &mut Ctx,
        elsewhere: impl Fn(ShardId) -> BTreeSet<u32>,
        has_heirs: impl Fn(&Ctx, NodeBoot, ShardId) -> bool,
    ) {
        for (&id, shard) in &self.host.shards {
            let heirs = has_heirs(ctx, self.me, id);
            let may_go = may_be_gone(ctx, self.at, id);
            let ops = ops_of(&shard.sessions).filter(may_go);
            ctx.oracle.died(self.me, id, ops, (&elsewhere(id), heirs));
        }
        for (&id, copy) in &self.kept.copies {
            let owner = copy.state.owner;
            let was_heir =
                ctx.heirs.get(&(owner, id)).is_some_and(|heirs| heirs.contains(&self.me));
            if was_heir && !has_heirs(ctx, owner, id) {
                let elsewhere = elsewhere(id);
                let may_go = may_be_gone(ctx, self.at, id);
                let gone =
                    ops_of(&copy.sessions).filter(|op| !elsewhere.contains(op) && may_go(op));
                ctx.oracle.excuse_released(id, gone);
            }
        }
        for aside in self.asides.values() {
            let may_go = may_be_gone(ctx, self.at, aside.at.shard);
            ctx.oracle.excuse(aside.at.shard, ops_of(&aside.contents.sessions).filter(may_go));
        }
    }

    /// The changes of a shard that are here, behind a gate or set aside.
    /// Who holds all that was acknowledged of a shard beside this node, which owns it: whoever is
    /// named in its claim, as one of `others` knows.
    pub(crate) fn heirs<'a>(
        &self,
        shard: ShardId,
        others: impl Iterator<Item = &'a Self> + Clone,
    ) -> BTreeSet<NodeBoot> {
        let set = self.machine.replicas(shard);
        let named = others.clone().filter(|other| set.contains(other.me));
        let is_known = |heir: NodeBoot| {
            let mut sets =
                others.clone().filter_map(|o| o.machine.book().replicas_of(self.me, shard));
            sets.any(|set| set.contains(heir))
        };
        let is_own = |heir: &Self| {
            heir.host.shards.contains_key(&shard)
                || heir.kept.copies.get(&shard).is_some_and(|copy| copy.is_own)
        };
        named.filter(|heir| is_known(heir.me) || is_own(heir)).map(|heir| heir.me).collect()
    }

    pub(crate) fn ops_here(&self, shard: ShardId) -> impl Iterator<Item = u32> {
        let gate = self.host.shards.get(&shard).into_iter().flat_map(|s| ops_of(&s.sessions));
        let asides = self.asides.values().filter(move |aside| aside.at.shard == shard);
        gate.chain(asides.flat_map(|aside| ops_of(&aside.contents.sessions)))
    }
}

fn ops_of(sessions: &[Session]) -> impl Iterator<Item = u32> {
    sessions.iter().flat_map(|session| session.ops.iter().copied())
}

/// A line for the log.
fn brief(what: &impl std::fmt::Debug) -> String {
    let mut text = format!("{what:?}");
    if let Some(at) = text.find("Members { members") {
        text.truncate(at + 7);
    }
    for (long, short) in [("NodeBoot ", ""), ("Epoch { counter: ", "{"), ("ShardEpoch ", "")] {
        text = text.replace(long, short);
    }
    text
}
