//! The model: what may happen next, and what must hold.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use stateright::{Model, Property};
use stead_node::logic::ownership::Event;
use stead_shared::control::HandoffId;
use stead_shared::id::{BootId, NodeBoot};
use stead_shared::member::MemberState;

use super::checks;
use super::kept::Report;
use super::members::{NODES, id_of, index_of};
use super::node::{LONG, Node, SHORT, Shared};
use super::scenario::Scenario;
use super::state::{Letter, State, pairs};

/// One thing that happens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// A letter arrives.
    Deliver(Shared<Letter>),
    /// A letter arrives, and will again.
    Repeat(Shared<Letter>),
    /// The next claims on a link arrive.
    Claims { from: usize, to: usize },
    /// They are lost.
    LoseClaims { from: usize, to: usize },
    /// Time passes at a node.
    Wait { node: usize, so_long: Duration },
    /// A node learns of a change among the members.
    Look(usize),
    /// A turn begins at an open gate.
    Begin(usize),
    /// It ends, and is acknowledged.
    Commit(usize),
    /// A copy has ended a round.
    Copied { node: usize, handoff: HandoffId },
    /// Changes come too fast for a copy.
    TooHot { node: usize, handoff: HandoffId },
    /// The stream of a copy breaks.
    Break { node: usize, handoff: HandoffId },
    /// A fill goes one step on.
    Fill { from: usize, to: NodeBoot },
    /// The next item for a copy arrives.
    Carry { owner: NodeBoot, to: usize },
    /// What a copy has taken in reaches its owner.
    Acknowledge { from: usize, owner: NodeBoot },
    /// The connection to a copy is cut, and there is another one.
    Cut { from: usize, to: NodeBoot },
    /// An owner waits too long for a copy.
    Silence { node: usize, to: NodeBoot },
    /// A node's machine learns what has become of copies.
    Report(usize),
    /// Placement changes its mind.
    Move,
    /// A node is told to leave.
    Drain(usize),
    /// It has handed everything off, and ends.
    Leave(usize),
    /// A process dies.
    Kill(usize),
    /// A dead node starts again.
    Restart(usize),
    /// A node is taken for dead.
    Slander(usize),
    /// It is known to live.
    Clear(usize),
}

impl Scenario {
    fn node_steps(&self, state: &State, steps: &mut Vec<Step>) {
        for (i, node) in state.running() {
            if node.seen + 1 < state.views.len() {
                steps.push(Step::Look(i));
            }
            if node.has_turn() {
                steps.push(Step::Commit(i));
            } else if node.is_open() && state.left.writes > 0 {
                steps.push(Step::Begin(i));
            }
            for &handoff in node.streams.keys() {
                steps.push(Step::Copied { node: i, handoff });
                if state.left.breaks > 0 {
                    steps.push(Step::TooHot { node: i, handoff });
                    steps.push(Step::Break { node: i, handoff });
                }
            }
            steps.push(Step::Wait { node: i, so_long: SHORT });
            // What a process tells itself does not take a minute.
            if node.reports.is_empty() {
                steps.push(Step::Wait { node: i, so_long: LONG });
            }
            if node.drained {
                steps.push(Step::Leave(i));
            }
            self.copy_steps(state, (i, node), steps);
        }
        for &(owner, to) in state.last_words.keys() {
            steps.push(Step::Carry { owner, to });
        }
    }

    fn copy_steps(&self, state: &State, (i, node): (usize, &Node), steps: &mut Vec<Step>) {
        for (&to, feed) in &node.feeds.by_node {
            if feed.is_filling() {
                steps.push(Step::Fill { from: i, to });
            }
            if !feed.flying.is_empty() {
                steps.push(Step::Carry { owner: node.me, to: index_of(to.node) });
            }
            if state.left.cuts > 0 && feed.waits() {
                steps.push(Step::Cut { from: i, to });
            }
            if state.left.silences > 0 && feed.waits() {
                steps.push(Step::Silence { node: i, to });
            }
        }
        for &owner in node.intake.acks.keys() {
            steps.push(Step::Acknowledge { from: i, owner });
        }
        if !node.reports.is_empty() {
            steps.push(Step::Report(i));
        }
    }

    fn member_steps(&self, state: &State, steps: &mut Vec<Step>) {
        let left = state.left;
        let view = state.view();
        if left.moves > 0 {
            steps.push(Step::Move);
        }
        for i in 0..NODES {
            let said = view.nodes[i].1;
            match state.node(i) {
                Some(node) => {
                    if left.drains > 0 && node.phase == MemberState::Ready {
                        steps.push(Step::Drain(i));
                    }
                    if left.kills > 0 {
                        steps.push(Step::Kill(i));
                    }
                    if said == MemberState::Down {
                        steps.push(Step::Clear(i));
                    } else if left.slanders > 0 {
                        steps.push(Step::Slander(i));
                    }
                }
                None if left.restarts > 0 && said == MemberState::Down => {
                    steps.push(Step::Restart(i));
                }
                None => {}
            }
        }
    }

    fn restart(&self, state: &mut State, i: usize) {
        let boot = BootId(state.view().nodes[i].0.0 + 1);
        let me = NodeBoot { node: id_of(i), boot };
        let view = state.view().seen_by(me, MemberState::Joining);
        state.push_view(view);
        state.start(self, i, me, (view, state.views.len() - 1));
        for peer in (0..NODES).map(|peer| view.who(peer)).filter(|peer| peer.node != me.node) {
            if view.is_live(peer) {
                state.feed(self, i, Duration::ZERO, self.connected(peer));
            }
        }
    }

    fn drain(&self, state: &mut State, i: usize) {
        state.edit(i, |node| node.phase = MemberState::Leaving);
        let view = state.view();
        state.push_view(view.with(i, MemberState::Leaving));
        state.feed(self, i, Duration::ZERO, Event::Drain);
    }

    pub(crate) fn take(&self, state: &mut State, step: Step) {
        match step {
            Step::Deliver(letter) => {
                state.letters.remove(&letter.fingerprint());
                state.deliver(self, &letter);
            }
            Step::Repeat(letter) => {
                state.left.repeats -= 1;
                state.deliver(self, &letter);
            }
            Step::Claims { from, to } => state.deliver_claims(self, from, to),
            Step::LoseClaims { from, to } => {
                state.left.losses -= 1;
                let _ = state.take_claims(from, to);
            }
            Step::Wait { node, so_long } => state.feed(self, node, so_long, Event::Tick),
            Step::Look(i) => state.look(self, i),
            Step::Begin(i) => {
                state.left.writes -= 1;
                state.edit(i, |node| {
                    if let Some(gate) = &mut node.gate {
                        gate.turn = true;
                    }
                });
            }
            Step::Commit(i) => state.commit(i),
            Step::Copied { node, handoff } => state.copied(self, node, handoff, false),
            Step::TooHot { node, handoff } => {
                state.left.breaks -= 1;
                state.copied(self, node, handoff, true);
            }
            Step::Break { node, handoff } => {
                state.left.breaks -= 1;
                state.break_stream(node, handoff);
            }
            Step::Fill { from, to } => state.edit(from, |node| node.fill_step(to)),
            Step::Carry { owner, to } => state.carry(self, owner, to),
            Step::Acknowledge { from, owner } => state.acknowledge(from, owner),
            Step::Cut { from, to } => {
                state.left.cuts -= 1;
                state.cut(self, from, to);
            }
            Step::Silence { node, to } => {
                state.left.silences -= 1;
                state.edit(node, |node| node.reports.push_back(Report::Silent(to)));
            }
            Step::Report(i) => state.report(self, i),
            Step::Move => {
                state.left.moves -= 1;
                let mut view = state.view();
                view.preferred = (view.preferred + 1) % NODES;
                state.push_view(view);
            }
            Step::Drain(i) => {
                state.left.drains -= 1;
                self.drain(state, i);
            }
            Step::Leave(i) => {
                state.end(i);
                state.push_view(state.view().with(i, MemberState::Left));
            }
            Step::Kill(i) => {
                state.left.kills -= 1;
                state.end(i);
                state.note(|history| history.killed = true);
                state.push_view(state.view().with(i, MemberState::Down));
            }
            Step::Restart(i) => {
                state.left.restarts -= 1;
                self.restart(state, i);
            }
            Step::Slander(i) => {
                state.left.slanders -= 1;
                state.note(|history| history.slandered = true);
                state.push_view(state.view().with(i, MemberState::Down));
            }
            Step::Clear(i) => {
                let phase = state.node(i).map_or(MemberState::Down, |node| node.phase);
                state.push_view(state.view().with(i, phase));
            }
        }
    }
}

/// A scenario, explored until enough states have been seen.
#[derive(Debug)]
pub(crate) struct Exploration {
    pub(crate) scenario: Scenario,
    pub(crate) states_max: usize,
    pub(crate) n_checked: AtomicUsize,
    /// Looks at this property alone.
    pub(crate) only: Option<&'static str>,
    /// States from which the cluster is known to recover.
    pub(crate) well: Mutex<HashSet<u64>>,
}

impl Model for Exploration {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(&self.scenario)]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        for letter in state.letters.values() {
            if state.is_due(letter) {
                steps.push(Step::Deliver(letter.clone()));
            }
            if state.left.repeats > 0 && matches!(**letter, Letter::Control { .. }) {
                steps.push(Step::Repeat(letter.clone()));
            }
        }
        for (from, to) in pairs().filter(|pair| state.claims.contains_key(pair)) {
            steps.push(Step::Claims { from, to });
            if state.left.losses > 0 {
                steps.push(Step::LoseClaims { from, to });
            }
        }
        self.scenario.node_steps(state, steps);
        self.scenario.member_steps(state, steps);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        self.scenario.take(&mut state, step);
        Some(state)
    }

    fn within_boundary(&self, state: &State) -> bool {
        !state.is_beyond
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let is_asked = |name| self.only.is_none_or(|only| only == name);
        checks::properties().into_iter().filter(|it| is_asked(it.name)).collect()
    }
}
