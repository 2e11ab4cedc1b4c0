//! Datagrams, suspicion and proof of death.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foca::{Member, Message, State, Timer};

use super::config::Rule;
use super::core::PROVED;
use super::event::SwimAction;
use super::identity::Identity;
use super::notice::{self, Notice, Payload, Peeked};
use super::roster::Life;
use super::timers::Alarm;
use super::{DEAF_CHECK, Swim, WATCH_CHECK};
use crate::id::{BootId, NodeBoot, NodeId};
use crate::time::Time;

/// How long an accusation is held back before it is looked at again.
const HOLD: Duration = Duration::from_secs(1);
/// How many members are asked to see for themselves whether a connect is refused.
const WITNESSES: usize = 3;
/// Most processes of which refusals are remembered at a time.
const REPORTS_MAX: usize = 1_024;
/// How many times a card is asked for by datagram; after that push/pull must bring it.
const CARD_TRIES: u32 = 5;
const CARD_RETRY: Duration = Duration::from_secs(1);
/// How many times an accused member is asked for a sign of life.
const ACCUSED_TRIES: u32 = 3;
/// At most one exchange of lists in this time because somebody held us for dead.
const CORRECTION_PERIOD: Duration = Duration::from_secs(1);

/// Refused connects, by the process that should have answered.
#[derive(Debug, Default)]
pub(super) struct Reports(BTreeMap<NodeBoot, Report>);

#[derive(Debug)]
struct Report {
    first: Time,
    by: BTreeSet<NodeId>,
    /// We have told others, or looked for ourselves.
    told: bool,
    dialled: bool,
}

impl Reports {
    fn entry(&mut self, now: Time, who: NodeBoot, window: Duration) -> Option<&mut Report> {
        self.0.retain(|_, report| now.since(report.first) <= window);
        if REPORTS_MAX <= self.0.len() && !self.0.contains_key(&who) {
            return None;
        }
        let fresh = Report { first: now, by: BTreeSet::new(), told: false, dialled: false };
        Some(self.0.entry(who).or_insert(fresh))
    }
}

impl Swim {
    /// ## A datagram
    pub(super) fn datagram(
        &mut self,
        now: Time,
        from: NodeBoot,
        payload: &[u8],
        out: &mut Vec<SwimAction>,
    ) {
        self.core.stats.packets_in += 1;
        if !self.naming.is_settled() || self.is_me(from.node) {
            self.core.stats.packets_refused += 1;
            return;
        }
        match notice::read(payload) {
            Some(Payload::Core(packet)) => self.packet(now, from, packet, out),
            Some(Payload::Notice(notice)) => self.notice(now, from, *notice, out),
            None => self.core.stats.packets_refused += 1,
        }
    }

    pub(super) fn heard(&mut self, now: Time, who: NodeBoot) {
        self.last_heard = self.last_heard.max(now);
        self.roster.heard(now, who);
    }

    fn packet(&mut self, now: Time, from: NodeBoot, packet: &[u8], out: &mut Vec<SwimAction>) {
        let Some(peeked) = notice::peek(packet) else {
            self.core.stats.packets_refused += 1;
            return;
        };
        let sender = peeked.header.src;
        if sender.node_boot() != from || !self.roster.admits(sender.node, &self.config) {
            self.core.stats.packets_refused += 1;
            return;
        }
        self.heard(now, from);
        if self.tells_of_twin(now, &peeked, out) {
            return;
        }
        self.correct_sender(&peeked, out);
        let news = peeked.members().any(|member| self.roster.is_news(&member));
        self.core.effects.dirty |= news;
        self.core.packet(packet);
        if peeked.header.message == Message::TurnUndead {
            self.correct_myself(now, &sender, out);
        }
    }

    /// Whether a packet tells of a newer process of our name. Such a packet is not believed:
    /// the core would declare the other one dead, and it us, for ever.
    fn tells_of_twin(&mut self, now: Time, peeked: &Peeked, out: &mut Vec<SwimAction>) -> bool {
        let twin = peeked
            .updates
            .iter()
            .find(|member| self.is_me(member.id().node) && self.me.boot < member.id().boot);
        let Some(twin) = twin.cloned() else { return false };
        self.twin_seen(now, &twin, out);
        true
    }

    /// Somebody speaks to an identity that we no longer have; the news may have been lost.
    fn correct_sender(&mut self, peeked: &Peeked, out: &mut Vec<SwimAction>) {
        let to = peeked.header.dst;
        if to.node_boot() == self.me.node_boot() && to.bump < self.me.bump {
            self.notify(&peeked.header.src, &Notice::Iam(self.me), out);
        }
    }

    /// Somebody held us for dead, and we have a new identity. It surely knows others who do.
    fn correct_myself(&mut self, now: Time, teller: &Identity, out: &mut Vec<SwimAction>) {
        if self.corrected_at.is_none_or(|at| CORRECTION_PERIOD <= now.since(at)) {
            self.corrected_at = Some(now);
            self.call(now, teller.gossip, Some(teller.node), out);
        }
    }

    fn notice(&mut self, now: Time, from: NodeBoot, notice: Notice, out: &mut Vec<SwimAction>) {
        self.heard(now, from);
        let sender = self
            .roster
            .get(from.node)
            .filter(|known| known.identity.boot == from.boot && known.life.is_live())
            .map(|known| known.identity);
        match notice {
            Notice::Refused(who) => {
                if sender.is_some() {
                    self.refused(now, who, from.node, out);
                }
            }
            Notice::Gone(identity) | Notice::Iam(identity) if identity.node_boot() != from => {
                self.core.stats.packets_refused += 1;
            }
            Notice::Gone(identity) => self.core.apply(vec![Member::down(identity)], true),
            Notice::Iam(identity) if self.roster.admits(from.node, &self.config) => {
                self.core.apply(vec![Member::alive(identity)], true);
            }
            Notice::Iam(_) => self.core.stats.packets_refused += 1,
            Notice::Renew(identity) if identity == self.me => {
                self.core.change_identity(self.me.bumped());
            }
            Notice::Renew(_) | Notice::Pong => {}
            Notice::CardWanted => {
                if let Some(sender) = sender {
                    self.notify(&sender, &Notice::Card((*self.card).clone()), out);
                }
            }
            Notice::Card(card) if card.of == from => self.keep_card(now, card, out),
            Notice::Card(_) => self.core.stats.packets_refused += 1,
            Notice::Ping => {
                if let Some(sender) = sender {
                    self.notify(&sender, &Notice::Pong, out);
                }
            }
        }
    }

    pub(super) fn keep_card(
        &mut self,
        now: Time,
        card: crate::member::Card,
        out: &mut Vec<SwimAction>,
    ) {
        if self.roster.keep_card(card) {
            self.publish(now, out);
        }
    }

    /// Asks a member for its card, several times if need be.
    pub(super) fn want_card(
        &mut self,
        now: Time,
        of: Identity,
        n_asked: u32,
        out: &mut Vec<SwimAction>,
    ) {
        let missing = self.roster.get(of.node).filter(|known| {
            known.identity.boot == of.boot && known.card.is_none() && known.life.is_live()
        });
        let Some(identity) = missing.map(|known| known.identity) else { return };
        // The first time push/pull may be about to bring it.
        if 0 < n_asked {
            self.notify(&identity, &Notice::CardWanted, out);
        }
        if n_asked < CARD_TRIES {
            let after = if n_asked == 0 { self.config.gossip_period } else { CARD_RETRY };
            self.timers.set(now + after, Alarm::Card(identity, n_asked + 1));
        }
    }

    /// ## One of foca's timers
    pub(super) fn core_timer(
        &mut self,
        now: Time,
        timer: Timer<Identity>,
        held_since: Option<Time>,
    ) {
        if let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
            let refuted = !self.core.is_suspect(member_id, *incarnation);
            if refuted && self.config.rules.hold(Rule::RefutedIsForgotten) {
                self.core.stats.suspicions_refuted += 1;
                return;
            }
            if self.is_deaf(now) && self.config.rules.hold(Rule::DeafAccusesNobody) {
                self.core.stats.accusations_held += 1;
                let since = held_since.unwrap_or(now);
                self.timers.set(now + HOLD, Alarm::Foca(timer, Some(since)));
                return;
            }
        }
        self.core.timer(timer);
    }

    /// Hears nobody, though there should be several to hear.
    fn is_deaf(&self, now: Time) -> bool {
        1 < self.core.n_active() && self.config.deaf_after < now.since(self.last_heard)
    }

    /// ## Deaf => alone
    ///
    /// After so long the others go on without us, and we without them.
    pub(super) fn check_deaf(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        self.timers.set(now + DEAF_CHECK, Alarm::Deaf);
        let alone = self.is_deaf(now) && self.config.deaf_max <= now.since(self.last_heard);
        if alone && self.config.rules.hold(Rule::DeafAccusesNobody) {
            self.roster.all_silent(now, &self.config, out);
            self.start_afresh();
        }
    }

    /// ## Watch
    ///
    /// Probes are random, and in an unlucky run of them nobody asks for the dead one. So each
    /// member also looks after one other, the next in the order of ids.
    pub(super) fn watch(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        self.timers.set(now + WATCH_CHECK, Alarm::Watch);
        let Some(next) = self.roster.next_alive(self.me.node) else { return };
        if next.ask_at(&self.config) <= now {
            let node = next.identity.node;
            self.accuse(now, node, out);
        }
    }

    /// ## Accuse
    ///
    /// A probe out of turn: whoever says nothing until its end is suspect.
    pub(super) fn accuse(&mut self, now: Time, node: NodeId, out: &mut Vec<SwimAction>) {
        let Some(known) = self.roster.get(node).filter(|known| known.life == Life::Alive) else {
            return;
        };
        let identity = known.identity;
        if self.accused.insert(node) {
            self.roster.asked(now, node);
            self.ask_accused(now, identity, now, 0, out);
        }
    }

    pub(super) fn ask_accused(
        &mut self,
        now: Time,
        identity: Identity,
        since: Time,
        n_asked: u32,
        out: &mut Vec<SwimAction>,
    ) {
        let silent = self.roster.get(identity.node).is_some_and(|known| {
            known.identity == identity && known.life == Life::Alive && known.heard <= since
        });
        if silent && n_asked < ACCUSED_TRIES {
            self.notify(&identity, &Notice::Ping, out);
            let again = Alarm::Accused(identity, since, n_asked + 1);
            self.timers.set(now + self.config.probe_rtt, again);
            return;
        }
        self.accused.remove(&identity.node);
        if silent && !self.is_deaf(now) {
            self.suspect(now, identity);
        }
    }

    fn suspect(&mut self, now: Time, identity: Identity) {
        let Some(known) = self.roster.get(identity.node) else { return };
        let incarnation = known.incarnation;
        self.core.apply(vec![Member::new(identity, incarnation, State::Suspect)], true);
        let timer = self.core.suspicion_timer(identity, incarnation);
        self.timers.set(now + self.config.suspicion, Alarm::Foca(timer, None));
    }

    /// ## Refused
    ///
    /// Nobody listens where the process was: two distinct witnesses prove its death, one when
    /// there are no two.
    pub(super) fn refused(
        &mut self,
        now: Time,
        who: NodeBoot,
        by: NodeId,
        out: &mut Vec<SwimAction>,
    ) {
        let Some(known) = self.roster.get(who.node) else { return };
        let provable = known.identity.boot == who.boot
            && matches!(known.life, Life::Alive | Life::Suspect | Life::Down { confirmed: false });
        if !provable || !self.config.rules.hold(Rule::DampedRing) {
            return;
        }
        let (identity, mine) = (known.identity, self.is_me(by));
        let wanted = self.witnesses_wanted(now, who.node);
        let always = !self.config.rules.hold(Rule::NoticesOnChange);
        let Some(report) = self.reports.entry(now, who, self.config.refusal_window) else {
            return;
        };
        let first = report.by.is_empty();
        report.by.insert(by);
        let proved = wanted <= report.by.len();
        let tell = mine && (!report.told || always);
        let look = !mine && !report.dialled && !report.by.contains(&self.me.node);
        report.told |= tell;
        report.dialled |= look;
        if proved {
            self.prove(now, identity, out);
        } else if tell {
            self.call_witnesses(who, out);
        } else if look {
            out.push(SwimAction::Dial { who, addr: identity.gossip });
        }
        if first && !proved {
            // By then it shows who else is there to be a witness.
            self.timers.set(now + self.config.deaf_after, Alarm::Refused(who));
        }
    }

    /// Two, or one when nobody else was heard lately who could be the other one.
    fn witnesses_wanted(&self, now: Time, who: NodeId) -> usize {
        let mut others = self.roster.live().filter(|known| known.identity.node != who);
        let company = others.any(|known| now.since(known.heard) < self.config.deaf_after);
        if company { 2 } else { 1 }
    }

    /// Counts the witnesses again.
    pub(super) fn refused_over(&mut self, now: Time, who: NodeBoot, out: &mut Vec<SwimAction>) {
        let n = self.reports.0.get(&who).map_or(0, |report| report.by.len());
        let known = self.roster.get(who.node).map(|known| (known.identity, known.life));
        let Some((identity, life)) = known else { return };
        let there = identity.boot == who.boot && life.is_live();
        if there && 0 < n && self.witnesses_wanted(now, who.node) <= n {
            self.prove(now, identity, out);
        }
    }

    fn call_witnesses(&mut self, who: NodeBoot, out: &mut Vec<SwimAction>) {
        let mut others = self.live();
        others.retain(|identity| identity.node != who.node);
        for witness in self.pick(others, WITNESSES) {
            self.notify(&witness, &Notice::Refused(who), out);
        }
    }

    /// Declares a proved death. It travels by gossip; nobody can refute it but by a new bump.
    fn prove(&mut self, now: Time, identity: Identity, out: &mut Vec<SwimAction>) {
        self.reports.0.remove(&identity.node_boot());
        let down = Member::new(identity, PROVED, State::Down);
        self.core.apply(vec![down.clone()], true);
        self.roster.observe(now, &down, &self.config, out);
    }

    /// ## Another boot answered at the address of a member
    ///
    /// The one before it is dead, and the new one may not know yet that we are here.
    pub(super) fn other_boot(
        &mut self,
        now: Time,
        node: NodeId,
        boot: BootId,
        out: &mut Vec<SwimAction>,
    ) {
        let Some(known) = self.roster.get(node) else { return };
        if known.identity.boot < boot && self.config.rules.hold(Rule::BootIsDeath) {
            let identity = known.identity;
            self.prove(now, identity, out);
            self.call(now, identity.gossip, Some(node), out);
        }
    }
}
