//! Everybody this process has heard of, and what the ring makes of them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use foca::State;

use super::config::{Rule, SwimConfig};
use super::core::PROVED;
use super::event::SwimAction;
use super::identity::{Identity, Standing};
use crate::id::{NodeBoot, NodeId};
use crate::member::{Card, Member, MemberState, Members, Role};
use crate::time::Time;

/// What is held of a boot of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Alive,
    Suspect,
    Down { confirmed: bool },
    Left,
}

impl Life {
    /// What an entry of foca's list says. A goodbye counts from the moment it is heard.
    pub(crate) fn of(member: &foca::Member<Identity>) -> Self {
        if member.id().standing == Standing::Gone {
            return Self::Left;
        }
        match member.state() {
            State::Alive => Self::Alive,
            State::Suspect => Self::Suspect,
            State::Down => Self::Down { confirmed: member.incarnation() == PROVED },
        }
    }

    pub(crate) fn is_live(self) -> bool {
        match self {
            Self::Alive | Self::Suspect => true,
            Self::Down { .. } | Self::Left => false,
        }
    }
}

/// Unclean deaths of a node, across its boots.
#[derive(Clone, Debug, Default)]
struct Flaps {
    deaths: VecDeque<Time>,
    held_until: Time,
    n_holds: u32,
}

impl Flaps {
    fn died(&mut self, now: Time, config: &SwimConfig) {
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|&at| config.flap_window < now.since(at)) {
            self.deaths.pop_front();
        }
        if self.deaths.len() < config.flap_deaths {
            return;
        }
        self.deaths.clear();
        if config.hold_down_max * 2 < now.since(self.held_until) {
            self.n_holds = 0;
        }
        let hold = config.hold_down.saturating_mul(1 << self.n_holds.min(16));
        self.held_until = now + hold.min(config.hold_down_max);
        self.n_holds += 1;
    }
}

/// One node that this process has heard of.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) identity: Identity,
    pub(crate) incarnation: u16,
    pub(crate) life: Life,
    pub(crate) card: Option<Arc<Card>>,
    /// When a packet of it came in last.
    pub(crate) heard: Time,
    /// When it was last asked for a sign of life out of turn, and how often in vain.
    asked_at: Time,
    n_asked: u32,
    /// When it died or left.
    gone_at: Time,
    /// Down, and still in the ring until then.
    ring_until: Time,
    flaps: Flaps,
}

impl Known {
    fn new(now: Time, member: &foca::Member<Identity>) -> Self {
        Self {
            identity: *member.id(),
            incarnation: member.incarnation(),
            life: Life::of(member),
            card: None,
            heard: now,
            asked_at: Time::ZERO,
            n_asked: 0,
            gone_at: now,
            ring_until: Time::ZERO,
            flaps: Flaps::default(),
        }
    }

    /// When it is to be asked for a sign of life, if nothing is heard of it until then. Ever more
    /// rarely when that was in vain and yet it lives: then only the way back from it is cut.
    pub(crate) fn ask_at(&self, config: &SwimConfig) -> Time {
        let patience = config.watch_after * (1 << self.n_asked.min(6));
        self.heard.max(self.asked_at) + patience
    }

    fn in_ring(&self, now: Time) -> bool {
        let ready = self.identity.role == Role::Node && self.identity.standing == Standing::Ready;
        match self.life {
            Life::Alive | Life::Suspect => ready,
            Life::Down { .. } => ready && now < self.ring_until,
            Life::Left => false,
        }
    }

    /// Takes notice of the end of this boot.
    fn end(&mut self, now: Time, life: Life, config: &SwimConfig) {
        self.gone_at = now;
        if life == Life::Left || !self.life.is_live() || !config.rules.hold(Rule::DampedRing) {
            return;
        }
        self.ring_until = now + config.down_grace;
        self.flaps.died(now, config);
    }

    fn forget_at(&self, config: &SwimConfig) -> Option<Time> {
        match self.life {
            Life::Alive | Life::Suspect => None,
            Life::Down { .. } => Some(self.gone_at + config.remember_down),
            Life::Left => Some(self.gone_at + config.remember_left),
        }
    }

    fn member(&self, now: Time) -> Member {
        let phase = self.identity.standing.phase();
        Member {
            id: self.identity.node,
            boot: self.identity.boot,
            role: self.identity.role,
            phase,
            state: match (self.life, self.identity.standing) {
                (Life::Alive, Standing::Joining) => MemberState::Joining,
                (Life::Alive, Standing::Ready) => MemberState::Ready,
                (Life::Alive, Standing::Leaving | Standing::Gone) => MemberState::Leaving,
                (Life::Suspect, _) => MemberState::Suspect,
                (Life::Down { .. }, _) => MemberState::Down,
                (Life::Left, _) => MemberState::Left,
            },
            weight: self.identity.weight,
            zone: self.identity.zone,
            gossip: self.identity.gossip,
            in_ring: self.in_ring(now),
            held_down: now < self.flaps.held_until,
            card: self.card.clone(),
        }
    }
}

/// Everybody but this process, by node id.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    known: BTreeMap<NodeId, Known>,
    /// The list as others see it may differ from the last one.
    changed: bool,
}

impl Roster {
    /// The list is to be made anew, whatever happens here.
    pub(crate) fn touch(&mut self) {
        self.changed = true;
    }

    /// Whether the list may differ from that at the last call.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<&Known> {
        self.known.get(&node)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = &Known> {
        self.iter().filter(|known| known.life.is_live())
    }

    /// The next member after `node`, in the order of ids and around its end, that is alive and
    /// not suspect.
    pub(crate) fn next_alive(&self, node: NodeId) -> Option<&Known> {
        let after = self.known.range((Bound::Excluded(node), Bound::Unbounded));
        let before = self.known.range(..node);
        after.chain(before).map(|(_, known)| known).find(|known| known.life == Life::Alive)
    }

    /// Whether `member` may say something that is not known here.
    pub(crate) fn is_news(&self, member: &foca::Member<Identity>) -> bool {
        let Some(known) = self.known.get(&member.id().node) else {
            return true;
        };
        if *member.id() < known.identity {
            return false;
        }
        *member.id() != known.identity
            || Life::of(member) != known.life
            || known.incarnation < member.incarnation()
    }

    /// Whether there is room for the node: it is known, or somebody else is not needed.
    pub(crate) fn admits(&self, node: NodeId, config: &SwimConfig) -> bool {
        self.known.len() < config.n_members_max
            || self.known.contains_key(&node)
            || self.known.values().any(|known| !known.life.is_live())
    }

    pub(crate) fn heard(&mut self, now: Time, who: NodeBoot) {
        let known = self.known.get_mut(&who.node);
        if let Some(known) = known.filter(|known| known.identity.boot == who.boot) {
            known.heard = now;
            known.n_asked = 0;
        }
    }

    pub(crate) fn asked(&mut self, now: Time, node: NodeId) {
        if let Some(known) = self.known.get_mut(&node) {
            known.asked_at = now;
            known.n_asked += 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Keeps a card of a boot that is known. Returns whether it was missing.
    pub(crate) fn keep_card(&mut self, card: Card) -> bool {
        let Some(known) = self.known.get_mut(&card.of.node) else {
            return false;
        };
        if known.identity.boot != card.of.boot || known.card.is_some() {
            return false;
        }
        known.card = Some(Arc::new(card));
        self.changed = true;
        true
    }

    /// Takes in an entry of foca's list. Returns whether it is the first of its boot.
    pub(crate) fn observe(
        &mut self,
        now: Time,
        member: &foca::Member<Identity>,
        config: &SwimConfig,
        out: &mut Vec<SwimAction>,
    ) -> bool {
        let Some(known) = self.known.get_mut(&member.id().node) else {
            self.known.insert(member.id().node, Known::new(now, member));
            self.changed = true;
            return true;
        };
        if member.id().boot < known.identity.boot {
            return false;
        }
        if known.identity.boot < member.id().boot {
            known.rebooted(now, member, config, out);
            self.changed = true;
            return true;
        }
        self.changed |= known.changed(now, member, config, out);
        false
    }

    /// Nobody else is there any more, as far as this process can hear.
    pub(crate) fn all_silent(&mut self, now: Time, config: &SwimConfig, out: &mut Vec<SwimAction>) {
        for known in self.known.values_mut() {
            let down = foca::Member::new(known.identity, known.incarnation, State::Down);
            if known.life.is_live() {
                self.changed |= known.changed(now, &down, config, out);
            }
        }
    }

    /// Drops those gone for long, and the longest gone beyond the limit. Returns them.
    pub(crate) fn forget(&mut self, now: Time, config: &SwimConfig) -> Vec<Identity> {
        let mut forgotten: Vec<Identity> = self
            .iter()
            .filter(|known| known.forget_at(config).is_some_and(|at| at <= now))
            .map(|known| known.identity)
            .collect();
        let excess = (self.known.len() - forgotten.len()).saturating_sub(config.n_members_max);
        if 0 < excess {
            let mut gone: Vec<&Known> = self
                .iter()
                .filter(|known| !known.life.is_live() && !forgotten.contains(&known.identity))
                .collect();
            gone.sort_by_key(|known| (known.gone_at, known.identity.node));
            let more: Vec<Identity> =
                gone.iter().take(excess).map(|known| known.identity).collect();
            forgotten.extend(more);
        }
        for identity in &forgotten {
            self.known.remove(&identity.node);
            self.changed = true;
        }
        forgotten
    }

    /// The list as everybody above sees it, `me` included.
    pub(crate) fn members(&self, now: Time, me: Member, config: &SwimConfig) -> Members {
        let mut list: Vec<Member> = self.iter().map(|known| known.member(now)).collect();
        let my_id = me.id;
        let at = list.partition_point(|member| member.id < my_id);
        list.insert(at, me);
        let damped = config.rules.hold(Rule::DampedRing);
        let somebody_stands =
            list.iter().any(|member| member.in_ring && !member.held_down && 0 < member.weight);
        for member in &mut list {
            member.held_down &= damped && somebody_stands;
        }
        Members { me: my_id, list }
    }

    /// When the list changes by the mere passing of time.
    pub(crate) fn next_change(&self, now: Time, config: &SwimConfig) -> Option<Time> {
        self.iter()
            .flat_map(|known| {
                [Some(known.ring_until), Some(known.flaps.held_until), known.forget_at(config)]
            })
            .flatten()
            .filter(|&at| now < at)
            .min()
    }
}

impl Known {
    /// A newer boot of the node: the older one's memory is lost, whatever foca calls it.
    fn rebooted(
        &mut self,
        now: Time,
        member: &foca::Member<Identity>,
        config: &SwimConfig,
        out: &mut Vec<SwimAction>,
    ) {
        let proved = matches!(self.life, Life::Left | Life::Down { confirmed: true });
        if !proved && config.rules.hold(Rule::BootIsDeath) {
            out.push(SwimAction::Died { who: self.identity.node_boot(), confirmed: true });
        }
        self.end(now, Life::Down { confirmed: true }, config);
        let fresh = Self::new(now, member);
        *self = Self { flaps: std::mem::take(&mut self.flaps), ..fresh };
    }

    /// Something else about the same boot. Another bump alone is no death. Returns whether
    /// anything shows.
    fn changed(
        &mut self,
        now: Time,
        member: &foca::Member<Identity>,
        config: &SwimConfig,
        out: &mut Vec<SwimAction>,
    ) -> bool {
        let life = Life::of(member);
        if self.life == Life::Left && life != Life::Left {
            return false;
        }
        self.incarnation = member.incarnation();
        if (self.life, self.identity) == (life, *member.id()) {
            return false;
        }
        let who: NodeBoot = self.identity.node_boot();
        match (self.life, life) {
            (Life::Alive | Life::Suspect, Life::Down { confirmed }) => {
                out.push(SwimAction::Died { who, confirmed });
                self.end(now, life, config);
            }
            (Life::Down { confirmed: false }, Life::Down { confirmed: true }) => {
                out.push(SwimAction::Died { who, confirmed: true });
            }
            (Life::Alive | Life::Suspect | Life::Down { .. }, Life::Left) => {
                self.end(now, life, config);
            }
            (
                Life::Alive | Life::Suspect | Life::Down { .. },
                Life::Alive | Life::Suspect | Life::Down { .. },
            )
            | (Life::Left, _) => {}
        }
        self.identity = *member.id();
        self.life = life;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::BootId;
    use crate::swim::identity::PROTOCOL;

    fn member(node: u64, boot: u64, state: State) -> foca::Member<Identity> {
        let identity = Identity {
            boot: BootId(boot),
            bump: 0,
            gossip: "127.0.0.1:7400".parse().unwrap(),
            node: NodeId(node),
            role: Role::Node,
            standing: Standing::Ready,
            weight: 1,
            zone: 0,
            protocol: PROTOCOL,
        };
        foca::Member::new(identity, 0, state)
    }

    fn at(secs: u64) -> Time {
        Time::ZERO + Duration::from_secs(secs)
    }

    /// Lets node 1 die at `times`, each time in a new boot.
    fn deaths(times: impl IntoIterator<Item = u64>) -> Roster {
        let (mut roster, config) = (Roster::default(), SwimConfig::default());
        for (boot, secs) in times.into_iter().enumerate() {
            for state in [State::Alive, State::Down] {
                let member = member(1, boot as u64, state);
                roster.observe(at(secs), &member, &config, &mut Vec::new());
            }
        }
        roster
    }

    fn held_until(roster: &Roster) -> Time {
        roster.get(NodeId(1)).unwrap().flaps.held_until
    }

    #[test]
    fn deaths_far_apart_hold_nobody_down() {
        assert_eq!(held_until(&deaths([0, 31, 62, 93, 124])), Time::ZERO);
        assert_eq!(held_until(&deaths([0, 30, 60])), at(90));
    }

    #[test]
    fn each_further_hold_is_twice_as_long_up_to_a_limit() {
        let hold = |n: u64| held_until(&deaths(0..3 * n)).since(at(3 * n - 1));
        let holds: Vec<u64> = (1..7).map(|n| hold(n).as_secs()).collect();
        assert_eq!(holds, [30, 60, 120, 240, 300, 300]);
    }

    #[test]
    fn the_list_is_bounded_and_the_longest_gone_go_first() {
        let config = SwimConfig { n_members_max: 3, ..SwimConfig::default() };
        let mut roster = Roster::default();
        for node in 1..=5 {
            let state = if node <= 3 { State::Down } else { State::Alive };
            roster.observe(at(node), &member(node, 1, state), &config, &mut Vec::new());
        }
        let forgotten: Vec<u64> =
            roster.forget(at(6), &config).iter().map(|identity| identity.node.0).collect();
        assert_eq!(forgotten, [1, 2]);
        assert!(roster.admits(NodeId(9), &config), "node 3 can go as well");
        roster.observe(at(7), &member(9, 1, State::Alive), &config, &mut Vec::new());
        roster.forget(at(7), &config);
        assert!(!roster.admits(NodeId(10), &config));
        assert!(roster.admits(NodeId(9), &config));
    }

    #[test]
    fn an_older_boot_is_no_news_and_changes_nothing() {
        let (mut roster, config) = (Roster::default(), SwimConfig::default());
        roster.observe(at(1), &member(1, 5, State::Alive), &config, &mut Vec::new());
        let stale = member(1, 4, State::Down);
        assert!(!roster.is_news(&stale));
        let mut out = Vec::new();
        roster.observe(at(2), &stale, &config, &mut out);
        assert_eq!(out, []);
        assert_eq!(roster.get(NodeId(1)).unwrap().life, Life::Alive);
    }
}
