//! Seeds and push/pull.

use std::net::SocketAddr;
use std::time::Duration;

use foca::{Member, State};

use super::Swim;
use super::config::Rule;
use super::core::PROVED;
use super::event::{Entry, SwimAction, SwimState};
use super::identity::{Identity, Standing};
use super::notice::Notice;
use super::timers::Alarm;
use crate::id::NodeBoot;
use crate::member::Card;
use crate::time::Time;

/// The first pause between two tries of the seeds; it doubles up to the seed period.
const SEED_RETRY: Duration = Duration::from_millis(200);
/// Most seed addresses tried in one round.
const SEEDS_MAX: usize = 64;
/// How long an exchange may take before its address is tried again.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How many times a member is told that somebody holds it for dead.
const RENEW_TRIES: u32 = 4;
const RENEW_RETRY: Duration = Duration::from_millis(400);

impl Swim {
    /// What this process knows, to call a peer with. Nothing while its name is not settled.
    #[must_use]
    pub fn state(&self) -> SwimState {
        let cards = vec![(*self.card).clone()];
        SwimState { members: self.entries(), cards }
    }

    /// The answer to a peer's call with `asked`: what we know, and the cards that it lacks.
    #[must_use]
    pub fn answer(&self, asked: &SwimState) -> SwimState {
        let has = |card: &Card| {
            asked
                .members
                .iter()
                .any(|entry| entry.has_card && entry.member.id().node_boot() == card.of)
        };
        let mut state = self.state();
        let others = self.roster.iter().filter_map(|known| known.card.as_deref());
        state.cards.extend(others.filter(|card| !has(card)).cloned());
        state
    }

    fn entries(&self) -> Vec<Entry> {
        if !self.naming.is_settled() {
            return Vec::new();
        }
        let others = self.core.members().filter(|member| !self.is_me(member.id().node));
        let mut entries: Vec<Entry> = others
            .map(|member| Entry {
                has_card: self.roster.get(member.id().node).is_some_and(|known| {
                    known.identity.boot == member.id().boot && known.card.is_some()
                }),
                member: member.clone(),
            })
            .collect();
        entries.push(Entry { member: Member::alive(self.me), has_card: true });
        entries.sort_by_key(|entry| entry.member.id().node);
        entries
    }

    /// ## The seed loop
    pub(super) fn try_seeds(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        out.push(SwimAction::ResolveSeeds);
        if !self.config.rules.hold(Rule::SeedLoop) {
            return;
        }
        let pause = if self.core.n_active() == 0 && self.naming_or_alone() {
            self.n_seed_tries = self.n_seed_tries.saturating_add(1);
            SEED_RETRY * (1 << self.n_seed_tries.min(8).saturating_sub(1))
        } else {
            self.config.seed_period
        };
        self.timers.set(now + pause.min(self.config.seed_period), Alarm::Seeds);
    }

    /// Whether nobody was ever met.
    fn naming_or_alone(&self) -> bool {
        self.roster.iter().next().is_none()
    }

    pub(super) fn seed_addrs(
        &mut self,
        now: Time,
        addrs: &[SocketAddr],
        out: &mut Vec<SwimAction>,
    ) {
        let others: Vec<SocketAddr> =
            addrs.iter().copied().filter(|&addr| addr != self.me.gossip).take(SEEDS_MAX).collect();
        if others.is_empty() {
            self.name_unasked();
        }
        for addr in others {
            let up = self.roster.live().any(|known| known.identity.gossip == addr);
            if !up {
                self.call(now, addr, None, out);
            }
        }
    }

    /// Asks the shell to exchange lists with the member at `addr`, unless it is at it.
    pub(super) fn call(
        &mut self,
        now: Time,
        addr: SocketAddr,
        node: Option<crate::id::NodeId>,
        out: &mut Vec<SwimAction>,
    ) {
        self.calls.retain(|_, until| now < *until);
        if self.calls.insert(addr, now + CALL_MAX).is_none() {
            out.push(SwimAction::PushPull { addr, node });
        }
    }

    /// ## Push/pull with somebody, down members too
    pub(super) fn push_pull_somebody(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        let lonely = self.core.n_active() == 0;
        let period = if lonely { self.config.lonely_period } else { self.config.push_pull_period };
        self.timers.set(now + period, Alarm::PushPull);
        if !self.config.rules.hold(Rule::PushPull) {
            return;
        }
        self.core.effects.dirty = true;
        let known = self.roster.iter().filter(|known| known.identity.standing != Standing::Gone);
        let candidates: Vec<Identity> = known.map(|known| known.identity).collect();
        for identity in self.pick(candidates, 1) {
            self.call(now, identity.gossip, Some(identity.node), out);
        }
    }

    /// ## A peer's list
    pub(super) fn push_pull(
        &mut self,
        now: Time,
        from: NodeBoot,
        state: SwimState,
        out: &mut Vec<SwimAction>,
    ) {
        if let Some(entry) = state.members.iter().find(|e| e.member.id().node == from.node) {
            self.calls.remove(&entry.member.id().gossip);
        }
        if from == self.me.node_boot() {
            // One of the seeds is this process itself.
            if self.calls.len() <= 1 {
                self.name_unasked();
            }
            return;
        }
        if self.naming.is_settled() {
            self.merge(now, from, state, out);
        } else {
            self.check_name(now, from, state, out);
        }
    }

    /// Our name is ours: takes in the first list, and tells its sender who we are.
    pub(super) fn introduce(
        &mut self,
        now: Time,
        from: NodeBoot,
        state: SwimState,
        out: &mut Vec<SwimAction>,
    ) {
        let entry = state.members.iter().find(|entry| entry.member.id().node == from.node);
        let peer = entry.map(|entry| *entry.member.id());
        self.merge(now, from, state, out);
        match peer {
            Some(peer) => self.call(now, peer.gossip, Some(peer.node), out),
            // It has not settled its own name yet; the seed loop comes back to it at once.
            None => {
                self.calls.clear();
                out.push(SwimAction::ResolveSeeds);
            }
        }
    }

    /// Takes in a peer's list.
    fn merge(&mut self, now: Time, from: NodeBoot, state: SwimState, out: &mut Vec<SwimAction>) {
        let whole = self.config.rules.hold(Rule::PushPull);
        let first = self.core.n_active() == 0;
        let mut room = self.config.n_members_max.saturating_sub(self.roster.len());
        let mut wanted = Vec::new();
        let mut peer = None;
        for entry in state.members.into_iter().take(self.config.n_members_max) {
            let member = entry.member;
            if member.id().node_boot() == from {
                peer = Some(*member.id());
            } else if !whole {
                continue;
            }
            if !self.is_me(member.id().node) && self.roster.get(member.id().node).is_none() {
                if room == 0 {
                    continue;
                }
                room -= 1;
            }
            if self.accept(now, &member, out) {
                wanted.push(member);
            }
        }
        // Who joins learns what the others know already, and need not tell them.
        self.core.apply(wanted, !first);
        self.refresh(now, out);
        self.heard(now, from);
        for card in state.cards.into_iter().take(self.config.n_members_max) {
            self.roster.keep_card(card);
        }
        if self.roster.take_changed() {
            self.publish(now, out);
        }
        if let Some(peer) = peer {
            if !whole {
                self.core.announce(peer);
            }
            out.push(SwimAction::Synced { with: from });
        }
    }

    /// Whether an entry of a peer's list goes to the core as it is.
    fn accept(&mut self, now: Time, member: &Member<Identity>, out: &mut Vec<SwimAction>) -> bool {
        let theirs = *member.id();
        if self.is_me(theirs.node) {
            return self.accept_of_myself(now, member, out);
        }
        let Some(mine) = self.core.members().find(|mine| mine.id().node == theirs.node).cloned()
        else {
            return true;
        };
        let said_goodbye = theirs.standing == Standing::Gone;
        if *mine.id() != theirs || said_goodbye || member.incarnation() == PROVED {
            return true;
        }
        match (mine.state(), member.state()) {
            // The two sides of a healed partition. An accusation from afar is a suspicion until
            // the accused had time to take a new bump.
            (State::Alive | State::Suspect, State::Down) => {
                self.ask_renewal(now, theirs, 0, out);
                let pending = Alarm::Pending(theirs, member.incarnation());
                self.timers.set(now + self.config.suspicion, pending);
                false
            }
            (State::Down, State::Alive | State::Suspect) => {
                self.ask_renewal(now, theirs, 0, out);
                false
            }
            (State::Alive | State::Suspect, State::Alive | State::Suspect)
            | (State::Down, State::Down) => true,
        }
    }

    /// What others say of us goes to the core when it is about the identity that we have.
    fn accept_of_myself(
        &mut self,
        now: Time,
        member: &Member<Identity>,
        out: &mut Vec<SwimAction>,
    ) -> bool {
        let theirs = *member.id();
        if self.me.boot < theirs.boot {
            self.twin_seen(now, member, out);
        }
        theirs == self.me
    }

    /// Tells a member that somebody holds it for dead, until it is known under another bump.
    pub(super) fn ask_renewal(
        &mut self,
        now: Time,
        identity: Identity,
        n_asked: u32,
        out: &mut Vec<SwimAction>,
    ) {
        let known = self.roster.get(identity.node);
        if known.is_some_and(|known| known.identity != identity) || RENEW_TRIES <= n_asked {
            return;
        }
        self.notify(&identity, &Notice::Renew(identity), out);
        self.timers.set(now + RENEW_RETRY, Alarm::RenewAgain(identity, n_asked + 1));
    }

    /// The accused did not answer in time.
    pub(super) fn pending_over(&mut self, identity: Identity, incarnation: u16) {
        let still =
            self.core.members().any(|mine| *mine.id() == identity && mine.state() != State::Down);
        if still {
            self.core.apply(vec![Member::new(identity, incarnation, State::Down)], true);
        }
    }
}
