//! A state of the whole: processes, what is on its way between them, and what the oracle knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use stead_node::logic::copying::Progress;
use stead_node::logic::forming::FormingConfig;
use stead_node::logic::ownership::{Action, Event, Ownership, OwnershipConfig};
use stead_shared::claims::{ClaimsUpdate, Replicas};
use stead_shared::control::{Control, HandoffId, ShardEpoch};
use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId};
use stead_shared::member::MemberState;

use super::feed::{Item, Released};
use super::kept::Report;
use super::members::{NODES, View, id_of, index_of};
use super::node::{Entry, Gate, LONG, Node, SHARD, Shared, Whole};
use super::recovery::settle;
use super::scenario::{Budget, Scenario, Start};

/// Something on its way. Letters arrive in any order, or never.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Letter {
    /// A message about ownership.
    Control { from: NodeBoot, to: usize, message: Control },
    /// Send your claims.
    ClaimsWanted { from: usize, to: usize },
    /// The last part of a copy; nothing when its stream broke.
    Copy { to: usize, handoff: HandoffId, state: Option<Whole> },
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
    /// A change was acknowledged that a copy never had which its owner counts on.
    UncopiedAcknowledgement,
    /// A copy was served that its dead owner did not count on any more.
    StaleCopy,
    /// A copy was to be served that is not there.
    NothingToOpen,
}

/// What the oracle knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct History {
    pub(crate) written: BTreeMap<(Epoch, u8), u8>,
    pub(crate) acknowledged: BTreeSet<Entry>,
    /// Acknowledged changes that went down with the process that had them.
    pub(crate) excused: BTreeSet<Entry>,
    /// Which processes ever had which changes behind a gate, or in a copy.
    pub(crate) reached: BTreeSet<(NodeBoot, u8)>,
    /// Whom the dead waited for before they answered, and whom of them their claims still named.
    pub(crate) told: BTreeMap<NodeBoot, (Replicas, Replicas)>,
    pub(crate) flaws: BTreeSet<Flaw>,
    pub(crate) killed: bool,
    pub(crate) slandered: bool,
    /// A copy was served.
    pub(crate) promoted: bool,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) nodes: [Option<Shared<Node>>; NODES],
    pub(crate) letters: BTreeMap<u64, Shared<Letter>>,
    /// Claims, in the order of the link between two nodes.
    pub(crate) claims: BTreeMap<(usize, usize), VecDeque<ClaimsUpdate>>,
    /// What the dead had sent to copies.
    pub(crate) last_words: BTreeMap<(NodeBoot, usize), VecDeque<(u64, Item)>>,
    pub(crate) views: Arc<Vec<View>>,
    pub(crate) left: Budget,
    /// Who had the first copy when the scenario began.
    pub(crate) first_named: Option<NodeBoot>,
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
            last_words: BTreeMap::new(),
            views: Arc::new(vec![View::FIRST]),
            left: scenario.budget,
            first_named: None,
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
        let members = View::FIRST.event(View::FIRST.who(0), scenario.replicas);
        state.feed(scenario, 0, Duration::ZERO, members);
        for (node, peer) in pairs() {
            let event = scenario.connected(View::FIRST.who(peer));
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
        state.begin_with(scenario);
        let gate = state.node(0).and_then(|node| node.gate.as_ref());
        state.first_named = gate.and_then(|gate| gate.told.as_slice().first().copied());
        state.is_beyond = false;
        state
    }

    /// Brings the machines to where the scenario begins.
    fn begin_with(&mut self, scenario: &Scenario) {
        if scenario.start == Start::Unfilled {
            return;
        }
        settle(scenario, self, None, &mut |_, _| {});
        let named = self.node(0).map(|node| node.machine.replicas(SHARD)).unwrap_or_default();
        let Some(named) = named.as_slice().first().map(|boot| index_of(boot.node)) else { return };
        if scenario.start == Start::Settled {
            return;
        }
        let slandered = View::FIRST.with(named, MemberState::Down);
        self.push_view(slandered);
        settle(scenario, self, Some(named), &mut |_, _| {});
        for node in (0..NODES).filter(|node| *node != named) {
            self.feed(scenario, node, LONG, Event::Tick);
        }
        settle(scenario, self, Some(named), &mut |_, _| {});
        self.letters.clear();
        self.claims.clear();
        self.views = Arc::new(vec![slandered, View::FIRST]);
        for node in 0..NODES {
            self.edit(node, |node| node.seen = 0);
        }
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
        config.replicas = scenario.replicas;
        config.balance_quiet = Duration::ZERO;
        config.recheck_every = Duration::ZERO;
        // Nobody counts here.
        config.settles_after = Duration::MAX;
        let (members, targets) = (view.members(me), view.target_table(scenario.replicas));
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
            self.set(node, edited);
        }
    }

    /// A process has changed: what it answered is answered.
    fn set(&mut self, i: usize, mut node: Node) {
        for released in std::mem::take(&mut node.feeds.released) {
            self.answer(&node, &released);
        }
        for entry in node.kept.iter().flat_map(|copy| &copy.entries) {
            if !self.history.reached.contains(&(node.me, entry.value)) {
                self.note(|history| history.reached.insert((node.me, entry.value)));
            }
        }
        for (to, feed) in &mut node.feeds.by_node {
            if !self.is_running(*to) {
                feed.flying.clear();
            }
        }
        self.nodes[i] = Some(Shared::known(node));
    }

    pub(crate) fn is_running(&self, boot: NodeBoot) -> bool {
        self.node(index_of(boot.node)).is_some_and(|node| node.me == boot)
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
        self.set(i, node);
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
            Action::OpenEmpty { shards, lost: _ } => {
                self.open(scenario, node, &shards, &Whole::default());
            }
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
                    self.post(Letter::Copy { to: index_of(to.node), handoff, state: None });
                }
            }
            Action::Seal { handoff, shards: _ } => {
                if let Some(gate) = &mut node.gate {
                    gate.open = false;
                }
                self.post(Letter::Quiet { node: i, handoff });
            }
            Action::Reopen { shards } => self.reopen(scenario, node, &shards),
            Action::DropCopy { handoff } => {
                node.copies.remove(&handoff);
            }
            Action::OpenCopy { handoff, shards } => {
                let whole = node.copies.remove(&handoff).unwrap_or_default();
                self.open(scenario, node, &shards, &whole);
            }
            Action::DropState { shards: _ } => {
                let _ = node.close();
            }
            Action::Yield { to: _, shards: _ } => {
                let gone = node.close();
                node.aside.extend(gone.into_iter().flat_map(|gate| gate.entries));
            }
            Action::Drained => node.drained = true,
            Action::SetReplicas { sets } => sets.iter().for_each(|(_, set)| node.set_replicas(set)),
            Action::Fill { to, shards } => shards.into_iter().for_each(|at| node.fill(to, at)),
            Action::Adopt { to, shards, named } => {
                shards.into_iter().for_each(|at| node.adopt(to, at, named));
            }
            Action::StopFill { to, shards: _ } => node.stop_fill(to),
            Action::KeepCopy { owner, shards } => {
                shards.into_iter().for_each(|at| node.keep_own((owner, at.epoch), None));
            }
            Action::DropReplicas { shards: _ } => node.kept = None,
            Action::OfferReplaced { .. } | Action::DropReplaced { .. } => {
                unreachable!("what is replaced is not kept here")
            }
            Action::OfferReplicas { .. } => {
                let gone = node.kept.take();
                node.aside.extend(gone.into_iter().flat_map(|copy| copy.entries));
            }
            Action::OpenReplica { shards } => self.open_replica(scenario, node, &shards),
            Action::Stop(_) => unreachable!("nobody stops here"),
            Action::OpenSaved { .. }
            | Action::DropSaved { .. }
            | Action::OfferSaved { .. }
            | Action::Quarantine { .. } => unreachable!("there is no disk here"),
            Action::NoteBegun { .. } => {}
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
            Control::WhoHolds { token, .. } | Control::TakeOver { token, .. } => {
                token.saturating_sub(scenario.questions)
            }
            Control::Grant { shards, .. } => {
                let granted = shards.iter().map(|at| at.epoch).max();
                if granted.is_some_and(|granted| granted.node != node.me.node) {
                    node.promised = node.promised.max(granted);
                }
                0
            }
            Control::Propose { .. }
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
        let state = Some(node.whole());
        self.post(Letter::Copy { to: index_of(to.node), handoff, state });
    }

    fn opens(&mut self, scenario: &Scenario, node: &Node, at: ShardEpoch) {
        if node.promised.is_some_and(|promised| at.epoch <= promised) {
            self.flaw(Flaw::BrokenPromise);
        }
        self.is_beyond |= at.epoch.counter > scenario.epochs;
    }

    fn open(&mut self, scenario: &Scenario, node: &mut Node, shards: &[ShardEpoch], over: &Whole) {
        for &at in shards {
            self.opens(scenario, node, at);
            let turn = node.has_turn();
            let _ = node.close();
            node.gate = Some(Gate::over(at, turn, over.clone()));
            node.begun(at);
        }
    }

    /// Opens a gate again. What is behind it may have become a copy meanwhile.
    fn reopen(&mut self, scenario: &Scenario, node: &mut Node, shards: &[ShardEpoch]) {
        for &at in shards {
            if node.gate.is_some() {
                self.opens(scenario, node, at);
                let old = node.raise(at.epoch);
                node.follow_epoch(old);
                node.begun(at);
            } else if let Some(copy) = node.take_copy(at.epoch, true) {
                self.open(scenario, node, &[at], &copy.whole());
            }
        }
    }

    /// Serves the copy of a dead owner's shard.
    fn open_replica(&mut self, scenario: &Scenario, node: &mut Node, shards: &[ShardEpoch]) {
        for &at in shards {
            let Some(copy) = node.take_copy(at.epoch, false) else {
                if !self.history.slandered {
                    self.flaw(Flaw::NothingToOpen);
                }
                node.reports.push_back(Report::NotOpened(at));
                continue;
            };
            let told = self.history.told.get(&copy.state.owner);
            let counts = told.is_some_and(|(told, _)| told.contains(node.me));
            if !counts && !self.history.slandered {
                self.flaw(Flaw::StaleCopy);
            }
            self.note(|history| history.promoted = true);
            self.open(scenario, node, &[at], &copy.whole());
        }
    }

    pub(crate) fn note<T>(&mut self, change: impl FnOnce(&mut History) -> T) -> T {
        change(Arc::make_mut(&mut self.history))
    }

    pub(crate) fn flaw(&mut self, flaw: Flaw) {
        Arc::make_mut(&mut self.history).flaws.insert(flaw);
    }

    /// Whether a letter can arrive: a seal has ended when no turn runs behind the gate, and all
    /// copies have everything.
    pub(crate) fn is_due(&self, letter: &Letter) -> bool {
        match *letter {
            Letter::Quiet { node, .. } => self.node(node).is_some_and(|node| {
                let is_closed = node.gate.as_ref().is_some_and(|gate| !gate.open);
                let is_quiet = !node.has_turn();
                is_quiet && (!is_closed || !node.waits_for_copies())
            }),
            Letter::Control { .. }
            | Letter::ClaimsWanted { .. }
            | Letter::Copy { .. }
            | Letter::Broken { .. } => true,
        }
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
            Letter::Copy { to, handoff, state: Some(state) } => {
                self.feed(scenario, to, zero, Event::Receiving(handoff));
                self.edit(to, |node| {
                    node.copies.insert(handoff, state);
                });
                self.feed(scenario, to, zero, Event::Received(handoff));
            }
            Letter::Copy { to, handoff, state: None } => {
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
        self.feed(scenario, i, Duration::ZERO, view.event(me, scenario.replicas));
        for peer in (0..NODES).filter(|peer| *peer != i).map(|peer| view.who(peer)) {
            if view.is_live(peer) && !before.is_live(peer) {
                self.feed(scenario, i, Duration::ZERO, scenario.connected(peer));
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
            self.post(Letter::Copy { to: index_of(to.node), handoff, state: None });
            self.post(Letter::Broken { node: i, handoff });
        }
    }

    /// A turn ends: its change is in the shard, and its client is told once all copies have it.
    pub(crate) fn commit(&mut self, i: usize) {
        let value = self.history.written.len() as u8 + 1;
        let Some(prev) = self.node(i).and_then(|node| Some(node.gate.as_ref()?.end())) else {
            return;
        };
        let (epoch, seq) = (prev.epoch, prev.seq as u8 + 1);
        let entry = Entry { epoch, seq, value };
        if self.note(|history| history.written.insert((epoch, seq), value)).is_some() {
            self.flaw(Flaw::TwoEntriesOneNumber);
        }
        self.edit(i, |node| {
            if let Some(gate) = &mut node.gate {
                gate.turn = false;
                gate.seq += 1;
                gate.entries.push(entry);
            }
            node.tell_change(entry, prev);
        });
    }

    /// A client is told of its change.
    fn answer(&mut self, node: &Node, released: &Released) {
        let Released { entry, epoch, told } = released;
        let learned = node.machine.book().get(SHARD).map(|(epoch, _)| epoch);
        let late = node.promised.is_some_and(|promised| *epoch <= promised)
            || learned.is_some_and(|learned| *epoch < learned);
        if late {
            self.flaw(Flaw::LateAcknowledgement);
        }
        let has = |boot: &NodeBoot| self.history.reached.contains(&(*boot, entry.value));
        if !told.as_slice().iter().all(has) {
            self.flaw(Flaw::UncopiedAcknowledgement);
        }
        self.note(|history| history.acknowledged.insert(*entry));
    }

    // ---- copies that follow ------------------------------------------------------------------

    /// The next item of an owner reaches who keeps a copy, or one that it is to skip does.
    pub(crate) fn carry(&mut self, scenario: &Scenario, owner: NodeBoot, to: usize) {
        let Some(me) = self.node(to).map(|node| node.me) else { return };
        let mut items = Vec::new();
        while let Some((position, item)) = self.next_item(owner, me) {
            let is_old = self.node(to).is_some_and(|node| node.has_taken(owner, position));
            items.push((position, item));
            if !is_old {
                break;
            }
        }
        self.edit(to, |node| {
            for (position, item) in items {
                node.on_item(owner, position, item, &scenario.rules);
            }
        });
    }

    fn next_item(&mut self, owner: NodeBoot, to: NodeBoot) -> Option<(u64, Item)> {
        if self.is_running(owner) {
            let mut next = None;
            self.edit(index_of(owner.node), |node| {
                let feed = node.feeds.by_node.get_mut(&to);
                next = feed.and_then(|feed| feed.flying.pop_front());
            });
            return next;
        }
        let key = (owner, index_of(to.node));
        let last_words = self.last_words.get_mut(&key)?;
        let next = last_words.pop_front();
        if last_words.is_empty() {
            self.last_words.remove(&key);
        }
        next
    }

    /// What was taken in reaches the owner.
    pub(crate) fn acknowledge(&mut self, from: usize, owner: NodeBoot) {
        let Some(me) = self.node(from).map(|node| node.me) else { return };
        let mut ack = None;
        self.edit(from, |node| ack = node.intake.acks.remove(&owner));
        if let Some(ack) = ack.filter(|_| self.is_running(owner)) {
            self.edit(index_of(owner.node), |node| node.on_taken(me, &ack));
        }
    }

    /// The connection from an owner to a copy is cut, with all that is on its way, and there is
    /// another one.
    pub(crate) fn cut(&mut self, scenario: &Scenario, from: usize, to: NodeBoot) {
        let Some(owner) = self.node(from).map(|node| node.me) else { return };
        self.edit(index_of(to.node), |node| node.intake.cut(owner));
        self.edit(from, |node| node.cut(to, scenario.rules.entries_stay));
    }

    /// The machine is told the next thing about copies.
    pub(crate) fn report(&mut self, scenario: &Scenario, i: usize) {
        let mut report = None;
        self.edit(i, |node| report = node.reports.pop_front());
        if let Some(report) = report {
            self.feed(scenario, i, Duration::ZERO, report.event());
        }
    }

    /// A process is gone, and what was on its way to it.
    pub(crate) fn end(&mut self, i: usize) {
        let Some(gone) = self.nodes[i].take() else { return };
        if let Some(gate) = &gone.gate {
            let named = gone.machine.replicas(SHARD);
            let still = gate.told.as_slice().iter().filter(|boot| named.contains(**boot));
            let told = (gate.told.clone(), Replicas::new(still.copied()));
            self.note(|history| history.told.insert(gone.me, told));
        }
        let copied = gone.kept.iter().flat_map(|copy| &copy.entries);
        let lost: Vec<Entry> = gone
            .entries()
            .iter()
            .chain(copied)
            .filter(|it| !self.outlives(&gone, it))
            .copied()
            .collect();
        self.note(|history| history.excused.extend(lost));
        self.letters.retain(|_, letter| letter.to() != i);
        self.claims.retain(|(_, to), _| *to != i);
        self.last_words.retain(|(_, to), _| *to != i);
        for (to, feed) in &gone.feeds.by_node {
            if !feed.flying.is_empty() {
                self.last_words.insert((gone.me, index_of(to.node)), feed.flying.clone());
            }
        }
        for node in 0..NODES {
            self.edit(node, |node| {
                node.intake.cut(gone.me);
            });
        }
    }

    /// Whether a change that was in a process is with somebody who serves, or whom the owner counted
    /// on and its claim named, as any node knows that lives: a claim that went down with its owner
    /// names nobody.
    fn outlives(&self, gone: &Node, entry: &Entry) -> bool {
        let owner = match (&gone.gate, &gone.kept) {
            (Some(_), _) => Some(gone.me),
            (None, copy) => copy.as_ref().map(|copy| copy.state.owner),
        };
        let told = owner.and_then(|owner| self.history.told.get(&owner));
        self.running().any(|(_, node)| {
            let is_known = owner.is_some_and(|owner| {
                let sets =
                    self.running().map(|(_, it)| it.machine.book().replicas_of(owner, SHARD));
                sets.flatten().any(|set| set.contains(node.me))
            });
            let counts = is_known && told.is_some_and(|(_, named)| named.contains(node.me));
            let is_copied = node
                .kept
                .as_ref()
                .is_some_and(|copy| copy.state.complete && copy.entries.contains(entry));
            let is_here = node.entries().contains(entry);
            is_here && node.is_open() || counts && (is_here || is_copied)
        })
    }
}

pub(crate) fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..NODES).flat_map(|a| (0..NODES).map(move |b| (a, b))).filter(|(a, b)| a != b)
}
