//! A state of the whole: processes, what is on its way between them, and what the oracle knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use stead_node::logic::copying::Progress;
use stead_node::logic::forming::FormingConfig;
use stead_node::logic::ownership::{Action, Event, Ownership, OwnershipConfig};
use stead_shared::claims::ClaimsUpdate;
use stead_shared::control::{Control, HandoffId, ShardEpoch};
use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId};
use stead_shared::member::MemberState;

use super::members::{NODES, View, id_of, index_of};
use super::node::{Entry, Gate, LONG, Node, Shared};
use super::scenario::{Budget, Scenario};

/// Something on its way. Letters arrive in any order, or never.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Letter {
    /// A message about ownership.
    Control { from: NodeBoot, to: usize, message: Control },
    /// Send your claims.
    ClaimsWanted { from: usize, to: usize },
    /// The last part of a copy; nothing when its stream broke.
    Copy { to: usize, handoff: HandoffId, entries: Option<Vec<Entry>> },
    /// The gate has been closed, and the turns behind it have ended.
    Quiet { node: usize, handoff: HandoffId },
    /// The stream of a copy broke, at its source.
    Broken { node: usize, handoff: HandoffId },
}

impl Letter {
    pub(crate) fn to(&self) -> usize {
        match self {
            Self::Control { to, .. } | Self::ClaimsWanted { to, .. } | Self::Copy { to, .. } => *to,
            Self::Quiet { node, .. } | Self::Broken { node, .. } => *node,
        }
    }
}

/// What must never happen and is seen only at the moment when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Flaw {
    /// A change was acknowledged in an epoch not above one that was sealed, granted or learned.
    LateAcknowledgement,
    /// Two different entries have one epoch and number.
    TwoEntriesOneNumber,
    /// A gate was opened in an epoch not above one that was sealed or granted.
    BrokenPromise,
}

/// What the oracle knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct History {
    pub(crate) written: BTreeMap<(Epoch, u8), u8>,
    pub(crate) acknowledged: BTreeSet<Entry>,
    /// Acknowledged changes that went down with the process that had them.
    pub(crate) excused: BTreeSet<Entry>,
    pub(crate) flaws: BTreeSet<Flaw>,
    pub(crate) killed: bool,
    pub(crate) slandered: bool,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) nodes: [Option<Shared<Node>>; NODES],
    pub(crate) letters: BTreeMap<u64, Shared<Letter>>,
    /// Claims, in the order of the link between two nodes.
    pub(crate) claims: BTreeMap<(usize, usize), VecDeque<ClaimsUpdate>>,
    pub(crate) views: Arc<Vec<View>>,
    pub(crate) left: Budget,
    pub(crate) history: Arc<History>,
    /// Something was counted further than the scenario counts.
    pub(crate) is_beyond: bool,
}

impl State {
    /// Everybody ready and in touch, the shard at the first node, as the machines come there.
    pub(crate) fn first(scenario: &Scenario) -> Self {
        let mut state = Self {
            nodes: [None, None, None],
            letters: BTreeMap::new(),
            claims: BTreeMap::new(),
            views: Arc::new(vec![View::FIRST]),
            left: scenario.budget,
            history: Arc::default(),
            is_beyond: false,
        };
        for node in 0..NODES {
            let me = View::FIRST.who(node);
            let alone = View { nodes: [(BootId(0), MemberState::Left); NODES], preferred: 0 };
            let view = if node == 0 { alone.seen_by(me, MemberState::Ready) } else { View::FIRST };
            state.start(scenario, node, me, (view, 0));
        }
        state.feed(scenario, 0, Duration::ZERO, Event::Tick);
        state.feed(scenario, 0, Duration::ZERO, View::FIRST.event(View::FIRST.who(0)));
        for (node, peer) in pairs() {
            let event = Event::Connected { peer: View::FIRST.who(peer), protocol: 2 };
            state.feed(scenario, node, Duration::ZERO, event);
        }
        while let Some((from, to)) = state.claims.keys().next().copied() {
            state.deliver_claims(scenario, from, to);
        }
        for node in 0..NODES {
            state.feed(scenario, node, LONG, Event::Tick);
        }
        state.letters.clear();
        state.claims.clear();
        state.views = Arc::new(vec![View::FIRST]);
        for node in 0..NODES {
            state.edit(node, |node| {
                node.seen = 0;
                node.phase = MemberState::Ready;
            });
        }
        state.is_beyond = false;
        state
    }

    /// Starts a process.
    pub(crate) fn start(
        &mut self,
        scenario: &Scenario,
        node: usize,
        me: NodeBoot,
        (view, seen): (View, usize),
    ) {
        let has_seeds = node != 0 || me.boot != BootId(1);
        let forming = FormingConfig { has_seeds, alone_after: None, ..FormingConfig::default() };
        let mut config = OwnershipConfig::new(me, 1, forming);
        config.rules = scenario.rules;
        config.balance_quiet = Duration::ZERO;
        config.recheck_every = Duration::ZERO;
        // Nobody counts here.
        config.settles_after = Duration::MAX;
        let (members, targets) = (view.members(me), view.target_table());
        let machine = Ownership::new(config, members, targets, Node::start_time());
        self.nodes[node] = Some(Shared::known(Node::new(machine, me, MemberState::Joining, seen)));
    }

    pub(crate) fn view(&self) -> View {
        *self.views.last().expect("there is a first")
    }

    pub(crate) fn push_view(&mut self, view: View) {
        Arc::make_mut(&mut self.views).push(view);
    }

    pub(crate) fn node(&self, node: usize) -> Option<&Node> {
        self.nodes[node].as_deref()
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(i, node)| Some((i, &**node.as_ref()?)))
    }

    pub(crate) fn edit(&mut self, node: usize, change: impl FnOnce(&mut Node)) {
        if let Some(shared) = &self.nodes[node] {
            let mut edited = Node::clone(shared);
            change(&mut edited);
            self.nodes[node] = Some(Shared::known(edited));
        }
    }

    pub(crate) fn post(&mut self, letter: Letter) {
        if self.nodes[letter.to()].is_some() {
            let letter = Shared::new(letter);
            self.letters.insert(letter.fingerprint(), letter);
        }
    }

    /// Feeds a machine and does what it says.
    pub(crate) fn feed(&mut self, scenario: &Scenario, i: usize, after: Duration, event: Event) {
        let Some(shared) = &self.nodes[i] else { return };
        let mut node = Node::clone(shared);
        for action in node.feed(after, event) {
            self.act(scenario, i, &mut node, action);
        }
        self.nodes[i] = Some(Shared::known(node));
    }

    fn act(&mut self, scenario: &Scenario, i: usize, node: &mut Node, action: Action) {
        match action {
            Action::Send { to, message } => self.send(scenario, node, to, message),
            Action::PushClaims(update) => {
                for to in (0..NODES).filter(|to| *to != i) {
                    self.push_claims(i, to, update.clone());
                }
            }
            Action::SendClaims { to, update } => self.push_claims(i, index_of(to), update),
            Action::AskClaims { to } => {
                self.post(Letter::ClaimsWanted { from: i, to: index_of(to) });
            }
            Action::BecomeReady => {
                if node.phase == MemberState::Joining {
                    node.phase = MemberState::Ready;
                    self.push_view(self.view().seen_by(node.me, MemberState::Ready));
                }
            }
            Action::OpenEmpty { shards, lost: _ } => self.open(scenario, node, &shards, &[]),
            Action::Copy { handoff, to, shards: _, budgeted: _ } => {
                node.streams.insert(handoff, to);
            }
            Action::SendLast { handoff } => {
                if let Some(to) = node.streams.remove(&handoff) {
                    self.send_copy(node, handoff, to);
                }
            }
            Action::SendState { handoff, to, shards: _ } => self.send_copy(node, handoff, to),
            Action::StopCopy { handoff } => {
                if let Some(to) = node.streams.remove(&handoff) {
                    self.post(Letter::Copy { to: index_of(to.node), handoff, entries: None });
                }
            }
            Action::Seal { handoff, shards: _ } => {
                if let Some(gate) = &mut node.gate {
                    gate.open = false;
                }
                self.post(Letter::Quiet { node: i, handoff });
            }
            Action::Reopen { shards } => {
                let entries = node.entries().to_vec();
                self.open(scenario, node, &shards, &entries);
            }
            Action::DropCopy { handoff } => {
                node.copies.remove(&handoff);
            }
            Action::OpenCopy { handoff, shards } => {
                let entries = node.copies.remove(&handoff).unwrap_or_default();
                self.open(scenario, node, &shards, &entries);
            }
            Action::DropState { shards: _ } => node.gate = None,
            Action::Yield { to: _, shards: _ } => {
                node.aside.extend(node.gate.take().into_iter().flat_map(|gate| gate.entries));
            }
            Action::Drained => node.drained = true,
            Action::SetReplicas { .. }
            | Action::Fill { .. }
            | Action::Adopt { .. }
            | Action::StopFill { .. }
            | Action::KeepCopy { .. }
            | Action::DropReplicas { .. }
            | Action::OpenReplica { .. } => unreachable!("nobody wants copies here"),
            Action::Stop(_) => unreachable!("nobody stops here"),
            Action::OpenSaved { .. }
            | Action::DropSaved { .. }
            | Action::OfferSaved { .. }
            | Action::Quarantine { .. } => unreachable!("there is no disk here"),
            Action::Throttle { .. }
            | Action::Certain { .. }
            | Action::Publish
            | Action::Note(_) => {}
            Action::GiveUp(_) => self.is_beyond = true,
        }
    }

    fn send(&mut self, scenario: &Scenario, node: &mut Node, to: NodeId, message: Control) {
        let most = match &message {
            Control::Prepare { handoff, .. } => handoff.number.saturating_sub(scenario.handoffs),
            Control::WhoHolds { token, .. } => token.saturating_sub(scenario.questions),
            Control::Grant { shards, .. } => {
                let granted = shards.iter().map(|at| at.epoch).max();
                if granted.is_some_and(|granted| granted.node != node.me.node) {
                    node.promised = node.promised.max(granted);
                }
                0
            }
            Control::Propose { .. }
            | Control::TakeOver { .. }
            | Control::Takeable { .. }
            | Control::SeeClaims { .. }
            | Control::SeenClaims { .. }
            | Control::WhatSaved { .. }
            | Control::Saved { .. }
            | Control::Accept { .. }
            | Control::Reject { .. }
            | Control::Holds { .. }
            | Control::Prepared { .. }
            | Control::Declined { .. }
            | Control::NoCopy { .. }
            | Control::CaughtUp { .. }
            | Control::Relay { .. }
            | Control::Abort { .. }
            | Control::Served { .. } => 0,
        };
        self.is_beyond |= most > 0;
        self.post(Letter::Control { from: node.me, to: index_of(to), message });
    }

    fn push_claims(&mut self, from: usize, to: usize, update: ClaimsUpdate) {
        if self.nodes[to].is_some() {
            let queue = self.claims.entry((from, to)).or_default();
            if queue.back() != Some(&update) {
                queue.push_back(update);
            }
        }
    }

    fn send_copy(&mut self, node: &Node, handoff: HandoffId, to: NodeBoot) {
        let entries = Some(node.entries().to_vec());
        self.post(Letter::Copy { to: index_of(to.node), handoff, entries });
    }

    fn open(&mut self, scenario: &Scenario, node: &mut Node, at: &[ShardEpoch], entries: &[Entry]) {
        for at in at {
            if node.promised.is_some_and(|promised| at.epoch <= promised) {
                self.flaw(Flaw::BrokenPromise);
            }
            self.is_beyond |= at.epoch.counter > scenario.epochs;
            let turn = node.has_turn();
            node.gate = Some(Gate { epoch: at.epoch, open: true, turn, entries: entries.to_vec() });
        }
    }

    pub(crate) fn note(&mut self, change: impl FnOnce(&mut History)) {
        change(Arc::make_mut(&mut self.history));
    }

    pub(crate) fn flaw(&mut self, flaw: Flaw) {
        Arc::make_mut(&mut self.history).flaws.insert(flaw);
    }

    /// A letter arrives.
    pub(crate) fn deliver(&mut self, scenario: &Scenario, letter: &Letter) {
        let zero = Duration::ZERO;
        match letter.clone() {
            Letter::Control { from, to, message } => {
                self.feed(scenario, to, zero, Event::Control { from, message });
            }
            Letter::ClaimsWanted { from, to } => {
                self.feed(scenario, to, zero, Event::ClaimsWanted(id_of(from)));
            }
            Letter::Copy { to, handoff, entries: Some(entries) } => {
                self.feed(scenario, to, zero, Event::Receiving(handoff));
                self.edit(to, |node| {
                    node.copies.insert(handoff, entries);
                });
                self.feed(scenario, to, zero, Event::Received(handoff));
            }
            Letter::Copy { to, handoff, entries: None } => {
                self.feed(scenario, to, zero, Event::ReceiveFailed(handoff));
            }
            Letter::Quiet { node, handoff } => {
                self.edit(node, |node| {
                    let sealed = node.gate.as_ref().filter(|gate| !gate.open).map(|g| g.epoch);
                    node.promised = node.promised.max(sealed);
                });
                self.feed(scenario, node, zero, Event::Sealed(handoff));
            }
            Letter::Broken { node, handoff } => {
                self.feed(scenario, node, zero, Event::SendFailed(handoff));
            }
        }
    }

    /// The next claims of one node reach another.
    pub(crate) fn deliver_claims(&mut self, scenario: &Scenario, from: usize, to: usize) {
        if let Some(update) = self.take_claims(from, to) {
            self.feed(scenario, to, Duration::ZERO, Event::Claims(update));
        }
    }

    pub(crate) fn take_claims(&mut self, from: usize, to: usize) -> Option<ClaimsUpdate> {
        let queue = self.claims.get_mut(&(from, to))?;
        let update = queue.pop_front();
        if queue.is_empty() {
            self.claims.remove(&(from, to));
        }
        update
    }

    /// One node looks at the next view.
    pub(crate) fn look(&mut self, scenario: &Scenario, i: usize) {
        let Some(node) = self.node(i) else { return };
        let (me, phase, seen) = (node.me, node.phase, node.seen);
        let before = self.views[seen].seen_by(me, phase);
        let view = self.views[seen + 1].seen_by(me, phase);
        self.edit(i, |node| node.seen += 1);
        for peer in (0..NODES).filter(|peer| *peer != i) {
            let was = before.who(peer);
            if before.is_live(was) && !view.is_live(was) {
                self.feed(scenario, i, Duration::ZERO, Event::Disconnected(id_of(peer)));
            }
        }
        self.feed(scenario, i, Duration::ZERO, view.event(me));
        for peer in (0..NODES).filter(|peer| *peer != i).map(|peer| view.who(peer)) {
            if view.is_live(peer) && !before.is_live(peer) {
                let event = Event::Connected { peer, protocol: 2 };
                self.feed(scenario, i, Duration::ZERO, event);
            }
        }
    }

    /// The copy of a handoff has ended a round, or cannot go on.
    pub(crate) fn copied(&mut self, scenario: &Scenario, i: usize, handoff: HandoffId, hot: bool) {
        let progress = Progress { walking: false, lag: 0, left: 0, rate: 1, overflow: hot };
        self.feed(scenario, i, Duration::ZERO, Event::Copied { handoff, progress });
    }

    /// The stream of a copy breaks.
    pub(crate) fn break_stream(&mut self, i: usize, handoff: HandoffId) {
        let to = self.node(i).and_then(|node| node.streams.get(&handoff)).copied();
        self.edit(i, |node| {
            node.streams.remove(&handoff);
        });
        if let Some(to) = to {
            self.post(Letter::Copy { to: index_of(to.node), handoff, entries: None });
            self.post(Letter::Broken { node: i, handoff });
        }
    }

    /// A turn ends: its change is in the shard, and its client is told.
    pub(crate) fn commit(&mut self, i: usize) {
        let value = self.history.written.len() as u8 + 1;
        let Some(node) = self.node(i) else { return };
        let Some(gate) = &node.gate else { return };
        let (epoch, seq) = (gate.epoch, gate.entries.len() as u8 + 1);
        let learned = node.machine.book().get(super::node::SHARD).map(|(epoch, _)| epoch);
        let late = node.promised.is_some_and(|promised| epoch <= promised)
            || learned.is_some_and(|learned| epoch < learned);
        let entry = Entry { epoch, seq, value };
        let twice = self.history.written.contains_key(&(epoch, seq));
        if late {
            self.flaw(Flaw::LateAcknowledgement);
        }
        if twice {
            self.flaw(Flaw::TwoEntriesOneNumber);
        }
        let history = Arc::make_mut(&mut self.history);
        history.written.insert((epoch, seq), value);
        history.acknowledged.insert(entry);
        self.edit(i, |node| {
            if let Some(gate) = &mut node.gate {
                gate.turn = false;
                gate.entries.push(entry);
            }
        });
    }

    /// A process is gone, and what was on its way to it.
    pub(crate) fn end(&mut self, i: usize) {
        let Some(gone) = self.nodes[i].take() else { return };
        let excused: Vec<Entry> = gone
            .entries()
            .iter()
            .filter(|entry| {
                !self.running().any(|(_, node)| node.is_open() && node.entries().contains(entry))
            })
            .copied()
            .collect();
        Arc::make_mut(&mut self.history).excused.extend(excused);
        self.letters.retain(|_, letter| letter.to() != i);
        self.claims.retain(|(_, to), _| *to != i);
    }
}

pub(crate) fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..NODES).flat_map(|a| (0..NODES).map(move |b| (a, b))).filter(|(a, b)| a != b)
}
