//! Membership: who is there, without sockets and clocks.
//!
//! [`Swim`] puts [foca](https://docs.rs/foca) (SWIM, DSN'02) behind events and actions and adds
//! what a cluster needs around it, rule by rule ([`Rule`]). The shell seals and sends what
//! [`SwimAction::Send`] says, calls peers for push/pull over the link, and feeds back what comes.
//!
//! ```text
//! start ──ResolveSeeds──► PushPull (nothing of ourselves in it) ──► is somebody alive under our
//!   name? ──ProbeName──► Fatal, or free ──► list taken in, PushPull again ──► Synced: a member
//! ```
//!
//! States of another member, as seen from here:
//!
//! ```text
//!  unknown ─► Alive ◄─► Suspect ──silence──► Down ──► (a new bump: Alive again)
//!               │           │                  ▲
//!               ├───────────┴─refused, rebooted┘ confirmed
//!               └─goodbye─► Left (final for this boot)
//! ```
//!
//! What it does not promise: that all members see the same list at the same time, that a member
//! said to be down is dead (silence is not proof), or an order of news from different members.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::core::Core;
use self::detect::Reports;
use self::identity::{Identity, Standing, plain_addr};
use self::name::Naming;
use self::notice::Notice;
use self::roster::Roster;
use self::timers::{Alarm, Timers};
use crate::id::{BootId, NodeBoot, NodeId};
use crate::member::{Card, Member, MemberState, Members, Phase, Role};
use crate::time::Time;

mod config;
mod core;
mod detect;
mod event;
mod identity;
mod name;
mod notice;
mod roster;
mod sync;
mod timers;

pub use self::config::{PAYLOAD_BYTES_MAX, Rule, SwimConfig, SwimRules};
pub use self::event::{DecodeStateError, FatalReason, SwimAction, SwimEvent, SwimState, SwimStats};
pub use self::identity::PROTOCOL;

/// What a process says of itself when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfDescription {
    /// The large part; names node and boot.
    pub card: Card,
    /// Node or router.
    pub role: Role,
    /// Weight, in units of 512 points on the ring.
    pub weight: u16,
    /// Hash of the zone's name, 0 for none.
    pub zone: u32,
    /// Where others reach gossip and link.
    pub gossip: SocketAddr,
    /// Where it stands at the start.
    pub phase: Phase,
}

/// The membership machine of one process.
pub struct Swim {
    config: SwimConfig,
    me: Identity,
    card: Arc<Card>,
    core: Core,
    timers: Timers,
    roster: Roster,
    rng: StdRng,
    naming: Naming,
    /// When the last authenticated word of anybody came in.
    last_heard: Time,
    /// How many times in a row the seeds were tried in vain.
    n_seed_tries: u32,
    /// Lists being exchanged, and until when an answer is waited for.
    calls: BTreeMap<SocketAddr, Time>,
    /// The last exchange asked for because somebody held us for dead.
    corrected_at: Option<Time>,
    /// When news was last passed on out of turn.
    passed_on_at: Option<Time>,
    reports: Reports,
    /// Members that were asked for a sign of life.
    accused: BTreeSet<NodeId>,
    /// When a newer process of our name is asked for.
    twin_due: Option<Time>,
    members: Arc<Members>,
    /// When the list changes next by the passing of time; the alarm set for it.
    roster_alarm: Option<Time>,
    /// Goodbye was said, or something fatal happened.
    over: bool,
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swim")
            .field("me", &self.me)
            .field("naming", &self.naming)
            .field("roster", &self.roster)
            .finish_non_exhaustive()
    }
}

impl Swim {
    /// A process that knows nobody yet. The first [`deadline`](Self::deadline) is `now`; equal
    /// seeds and equal events give equal actions.
    #[must_use]
    pub fn new(me: SelfDescription, config: SwimConfig, rng_seed: u64, now: Time) -> Self {
        let identity = Identity {
            boot: me.card.of.boot,
            bump: 0,
            gossip: plain_addr(me.gossip),
            node: me.card.of.node,
            role: me.role,
            standing: Standing::from(me.phase),
            weight: me.weight,
            zone: me.zone,
            protocol: PROTOCOL,
        };
        let mut rng = StdRng::seed_from_u64(rng_seed);
        let naming = Naming::new(config.rules.hold(Rule::NameIsAsked));
        let mut swim = Self {
            core: Core::new(identity, config.foca(), rng.random()),
            card: Arc::new(me.card),
            me: identity,
            timers: Timers::default(),
            roster: Roster::default(),
            rng,
            naming,
            last_heard: now,
            n_seed_tries: 0,
            calls: BTreeMap::new(),
            corrected_at: None,
            passed_on_at: None,
            reports: Reports::default(),
            accused: BTreeSet::new(),
            twin_due: None,
            members: Arc::new(Members { me: identity.node, list: Vec::new() }),
            roster_alarm: None,
            over: false,
            config,
        };
        swim.timers.set(now, Alarm::Seeds);
        swim.timers.set(now + swim.config.lonely_period, Alarm::PushPull);
        swim.timers.set(now + DEAF_CHECK, Alarm::Deaf);
        swim.timers.set(now + WATCH_CHECK, Alarm::Watch);
        swim.members = Arc::new(swim.build_members(now));
        swim
    }

    /// Takes notice of `event` and says what to do about it.
    pub fn handle(&mut self, now: Time, event: SwimEvent, out: &mut Vec<SwimAction>) {
        if self.over && !matches!(event, SwimEvent::Tick) {
            return;
        }
        match event {
            SwimEvent::Tick => self.tick(now, out),
            SwimEvent::Datagram { from, source: _, payload } => {
                self.datagram(now, from, &payload, out);
            }
            SwimEvent::SeedAddrs(addrs) => self.seed_addrs(now, &addrs, out),
            SwimEvent::PushPull { from, state } => self.push_pull(now, from, state, out),
            SwimEvent::PushPullFailed { addr } => {
                self.calls.remove(&addr);
            }
            SwimEvent::SetPhase(phase) => {
                self.describe(Identity { standing: Standing::from(phase), ..self.me });
            }
            SwimEvent::SetWeight(weight) => self.describe(Identity { weight, ..self.me }),
            SwimEvent::Accuse(node) => self.accuse(now, node, out),
            SwimEvent::Refused { node, by } => self.refused(now, node, by, out),
            SwimEvent::OtherBootAnswered { node, boot } => {
                self.other_boot(now, node, boot, out);
            }
            SwimEvent::NameHeldBy { boot } => self.name_held(now, boot, out),
            SwimEvent::NameFree => self.name_free(now, out),
            SwimEvent::Leave => self.leave(now, out),
        }
        self.settle(now, out);
    }

    /// When [`SwimEvent::Tick`] is due; nothing once it is all over.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.timers.next_due()
    }

    /// Everybody known, this process included.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.members)
    }

    /// This process as it is known to others.
    #[must_use]
    pub fn me(&self) -> NodeBoot {
        self.me.node_boot()
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> SwimStats {
        self.core.stats
    }

    fn tick(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        let ordered = self.config.rules.hold(Rule::OrderedTimers);
        if ordered {
            self.catch_up(now);
        }
        loop {
            let due =
                if ordered { self.timers.pop_due(now) } else { self.timers.pop_due_unordered(now) };
            let Some(alarm) = due else { break };
            self.fire(now, alarm, out);
            self.settle(now, out);
        }
    }

    /// Time for which this process stood still is not held against the others: their answers
    /// may lie in its socket unread.
    fn catch_up(&mut self, now: Time) {
        let Some(due) = self.timers.next_due() else { return };
        let lateness = now.since(due);
        if self.config.probe_rtt < lateness {
            self.core.stats.stalls += 1;
            self.timers.postpone(lateness);
            self.last_heard += lateness;
        }
    }

    fn fire(&mut self, now: Time, alarm: Alarm, out: &mut Vec<SwimAction>) {
        match alarm {
            Alarm::Foca(timer, held) => self.core_timer(now, timer, held),
            Alarm::Seeds => self.try_seeds(now, out),
            Alarm::PushPull => self.push_pull_somebody(now, out),
            Alarm::Deaf => self.check_deaf(now, out),
            Alarm::NameTimeout(n) => self.name_timeout(now, n, out),
            Alarm::TwinProbe(twin) => self.probe_twin(now, twin, out),
            Alarm::Pending(identity, incarnation) => self.pending_over(identity, incarnation),
            Alarm::RenewAgain(identity, n) => self.ask_renewal(now, identity, n, out),
            Alarm::Watch => self.watch(now, out),
            Alarm::Accused(identity, since, n) => self.ask_accused(now, identity, since, n, out),
            Alarm::Refused(who) => self.refused_over(now, who, out),
            Alarm::Card(identity, n) => self.want_card(now, identity, n, out),
            Alarm::Roster => {
                self.roster_alarm = None;
                self.roster.touch();
                self.core.effects.dirty = true;
            }
            Alarm::Goodbye(round) => self.goodbye(now, round, out),
        }
    }

    /// Carries out what the core wants, until it wants nothing more, and publishes the list.
    fn settle(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        while self.renewed() || self.fresh_when_idle(now, out) {}
        self.pass_on(now);
        for (after, timer) in std::mem::take(&mut self.core.effects.timers) {
            self.timers.set(now + after, Alarm::Foca(timer, None));
        }
        for (to, payload) in std::mem::take(&mut self.core.effects.sends) {
            self.send(&to, payload, out);
        }
        if std::mem::take(&mut self.core.effects.dirty) {
            self.refresh(now, out);
        }
    }

    /// News is passed on at once and not at the next round: a cluster of a hundred learns it in
    /// milliseconds instead of half a second, with the same number of packets. In a storm of
    /// news the rounds have to do.
    fn pass_on(&mut self, now: Time) {
        let news = std::mem::take(&mut self.core.effects.news);
        let pause = self.config.gossip_period / 2;
        if news && self.passed_on_at.is_none_or(|at| pause <= now.since(at)) {
            self.passed_on_at = Some(now);
            self.core.gossip();
        }
    }

    /// The core took another identity because somebody held the last one for dead.
    fn renewed(&mut self) -> bool {
        if self.core.identity() == self.me {
            return false;
        }
        self.me = self.core.identity();
        self.core.stats.renewals += 1;
        self.core.wake();
        true
    }

    /// With nobody left the core sleeps for ever. A fresh one holds nobody for dead, and so
    /// does not accuse the whole cluster when it was this process that was cut off.
    fn fresh_when_idle(&mut self, now: Time, out: &mut Vec<SwimAction>) -> bool {
        let idle = std::mem::take(&mut self.core.effects.idle);
        if !idle || self.over || !self.config.rules.hold(Rule::DeafAccusesNobody) {
            return false;
        }
        self.refresh(now, out);
        self.start_afresh();
        true
    }

    fn start_afresh(&mut self) {
        self.me = self.me.bumped();
        self.restart_core();
    }

    fn restart_core(&mut self) {
        self.timers.forget_core();
        self.core.restart(self.me, self.config.foca(), self.rng.random());
    }

    fn send(&mut self, to: &Identity, payload: bytes::Bytes, out: &mut Vec<SwimAction>) {
        self.core.stats.packets_out += 1;
        self.core.stats.bytes_out += payload.len() as u64;
        out.push(SwimAction::Send { to: to.node, to_boot: to.boot, addr: to.gossip, payload });
    }

    fn notify(&mut self, to: &Identity, notice: &Notice, out: &mut Vec<SwimAction>) {
        if let Some(payload) = notice.encode() {
            self.core.stats.notices_out += 1;
            self.send(to, payload, out);
        }
    }

    /// Describes this process anew. Not a death: the boot stays.
    fn describe(&mut self, me: Identity) {
        if me == self.me {
            return;
        }
        self.me = me.bumped();
        self.roster.touch();
        self.core.change_identity(self.me);
        self.core.wake();
    }

    /// Reads the core's list into the roster, and publishes when the result differs.
    fn refresh(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        let mut strangers = Vec::new();
        for member in self.core.members() {
            if member.id().node == self.me.node {
                continue;
            }
            if self.roster.observe(now, member, &self.config, out) {
                strangers.push(*member.id());
            }
        }
        for stranger in strangers {
            self.want_card(now, stranger, 0, out);
        }
        for gone in self.roster.forget(now, &self.config) {
            self.core.timer(foca::Timer::RemoveDown(gone));
        }
        if self.roster.take_changed() {
            self.publish(now, out);
            self.set_roster_alarm(now);
        }
    }

    fn publish(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        let members = self.build_members(now);
        if members != *self.members {
            self.members = Arc::new(members);
            out.push(SwimAction::Changed);
        }
    }

    fn set_roster_alarm(&mut self, now: Time) {
        let Some(at) = self.roster.next_change(now, &self.config) else { return };
        if self.roster_alarm.is_none_or(|set| at < set) {
            self.roster_alarm = Some(at);
            self.timers.set(at, Alarm::Roster);
        }
    }

    fn build_members(&self, now: Time) -> Members {
        let state = match self.me.standing {
            Standing::Joining => MemberState::Joining,
            Standing::Ready => MemberState::Ready,
            Standing::Leaving => MemberState::Leaving,
            Standing::Gone => MemberState::Left,
        };
        let me = Member {
            id: self.me.node,
            boot: self.me.boot,
            role: self.me.role,
            phase: self.me.standing.phase(),
            state,
            weight: self.me.weight,
            zone: self.me.zone,
            gossip: self.me.gossip,
            in_ring: self.me.role == Role::Node && self.me.standing == Standing::Ready,
            held_down: false,
            card: Some(Arc::clone(&self.card)),
        };
        self.roster.members(now, me, &self.config)
    }

    /// Takes another boot id, before anybody has heard of the one so far.
    fn reboot(&mut self, boot: BootId, out: &mut Vec<SwimAction>) {
        self.me.boot = boot;
        self.card = Arc::new(Card { of: self.me.node_boot(), ..(*self.card).clone() });
        self.roster.touch();
        self.restart_core();
        out.push(SwimAction::BootIs(boot));
    }

    /// Live members, this process not counted, in the order of their ids.
    fn live(&self) -> Vec<Identity> {
        self.roster.live().map(|known| known.identity).collect()
    }

    /// Up to `n` of `candidates`, chosen at random.
    fn pick(&mut self, mut candidates: Vec<Identity>, n: usize) -> Vec<Identity> {
        let n = n.min(candidates.len());
        for i in 0..n {
            let j = self.rng.random_range(i..candidates.len());
            candidates.swap(i, j);
        }
        candidates.truncate(n);
        candidates
    }

    fn leave(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        self.over = true;
        self.timers.clear();
        let before = self.me;
        self.me = Identity { standing: Standing::Gone, ..before.bumped() };
        self.roster.touch();
        self.core.change_identity(self.me);
        self.core.leave();
        self.settle(now, out);
        self.goodbye(now, 0, out);
    }

    /// ## Leaving => over
    ///
    /// The core tells three members, and if those packets are lost the rest find a corpse.
    fn goodbye(&mut self, now: Time, round: u32, out: &mut Vec<SwimAction>) {
        let live = self.live();
        let rounds = if self.config.rules.hold(Rule::LeaveTellsAll) && !live.is_empty() {
            self.config.leave_rounds
        } else {
            0
        };
        if rounds <= round {
            self.timers.clear();
            out.push(SwimAction::Left);
            return;
        }
        for to in live {
            self.notify(&to, &Notice::Gone(self.me), out);
        }
        self.timers.set(now + self.config.gossip_period, Alarm::Goodbye(round + 1));
    }

    fn fatal(&mut self, reason: FatalReason, out: &mut Vec<SwimAction>) {
        self.over = true;
        self.timers.clear();
        out.push(SwimAction::Fatal(reason));
    }

    fn is_me(&self, node: NodeId) -> bool {
        node == self.me.node
    }
}

/// How often this process looks whether it hears anybody.
const DEAF_CHECK: Duration = Duration::from_secs(1);
/// How often it looks after the next member.
const WATCH_CHECK: Duration = Duration::from_millis(250);
