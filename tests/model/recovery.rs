//! I5: once nothing goes wrong any more, one node serves again.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use stead_node::logic::ownership::Event;
use stead_shared::member::MemberState;

use super::checks::nothing_lost;
use super::cluster::Step;
use super::members::NODES;
use super::node::{LONG, Node, SHORT, fingerprint};
use super::scenario::{Budget, Scenario};
use super::state::{Letter, State, pairs};

/// Looks at everything, each after a wait at every node.
const ROUNDS: usize = 12;
/// What may happen between two waits; more is a storm.
const STEPS_MAX: usize = 300;

/// Whether one node, and the right one, serves soon after the worst moment for everything on its
/// way to be lost. `well` are the fingerprints of states that did: without what was on its way,
/// most states are one that has been tried.
pub(crate) fn heals(scenario: &Scenario, state: &State, well: &Mutex<HashSet<u64>>) -> bool {
    let lost = lose_everything(scenario, state);
    let fingerprint = fingerprint(&lost);
    let is_known = well.lock().expect("nobody panics while holding it").contains(&fingerprint);
    if is_known {
        return true;
    }
    let heals = recover(scenario, state, &mut |_, _| {});
    if heals {
        well.lock().expect("nobody panics while holding it").insert(fingerprint);
    }
    heals
}

/// Lets everything on its way be lost and nothing go wrong any more, and tells `see` of each step
/// and the state before it.
pub(crate) fn recover(
    scenario: &Scenario,
    state: &State,
    see: &mut dyn FnMut(&State, Option<&Step>),
) -> bool {
    let mut state = lose_everything(scenario, state);
    for round in 0..ROUNDS {
        if !settle(scenario, &mut state, see) {
            return false;
        }
        if is_well(&state) {
            return true;
        }
        compare_claims(scenario, &mut state);
        let so_long = if round % 3 == 2 { LONG } else { SHORT };
        for node in 0..NODES {
            let step = Step::Wait { node, so_long };
            see(&state, Some(&step));
            scenario.take(&mut state, step);
        }
    }
    see(&state, None);
    false
}

/// Every link breaks and is there again, whoever lives is known to, and what might yet have gone
/// wrong will not.
fn lose_everything(scenario: &Scenario, state: &State) -> State {
    let mut state = state.clone();
    state.left = Budget::default();
    state.claims.clear();
    let letters: Vec<_> = state.letters.values().cloned().collect();
    for letter in letters {
        match *letter {
            Letter::Quiet { .. } | Letter::Broken { .. } => continue,
            Letter::Control { .. } | Letter::ClaimsWanted { .. } => {}
            Letter::Copy { to, handoff, .. } => {
                state.feed(scenario, to, Duration::ZERO, Event::ReceiveFailed(handoff));
            }
        }
        state.letters.remove(&letter.fingerprint());
    }
    clear_names(&mut state);
    state.is_beyond = false;
    state
}

/// Whoever lives is known to.
fn clear_names(state: &mut State) {
    for node in 0..NODES {
        let phase = state.node(node).map(|node| node.phase);
        if let Some(phase) = phase.filter(|_| state.view().nodes[node].1 == MemberState::Down) {
            state.push_view(state.view().with(node, phase));
        }
    }
}

/// Everything happens that need not wait; `false` when that does not end.
fn settle(
    scenario: &Scenario,
    state: &mut State,
    see: &mut dyn FnMut(&State, Option<&Step>),
) -> bool {
    for _ in 0..STEPS_MAX {
        let Some(step) = next(state) else { return true };
        see(state, Some(&step));
        scenario.take(state, step);
    }
    false
}

/// Something that can happen.
fn next(state: &State) -> Option<Step> {
    let of_node = state.running().find_map(|(i, node)| {
        if node.has_turn() {
            Some(Step::Commit(i))
        } else if node.seen + 1 < state.views.len() {
            Some(Step::Look(i))
        } else {
            node.drained.then_some(Step::Leave(i))
        }
    });
    let claims = || state.claims.keys().next().map(|&(from, to)| Step::Claims { from, to });
    let letter = || state.letters.values().next().cloned().map(Step::Deliver);
    let copied = || {
        let handoffs = |(i, node): (usize, &Node)| {
            node.streams.keys().map(move |id| (i, *id)).collect::<Vec<_>>()
        };
        let (node, handoff) = state.running().flat_map(handoffs).next()?;
        Some(Step::Copied { node, handoff })
    };
    of_node.or_else(claims).or_else(letter).or_else(copied)
}

/// What links do now and then: owners tell how far their claims are.
fn compare_claims(scenario: &Scenario, state: &mut State) {
    for (from, to) in pairs() {
        let Some(node) = state.node(from) else { continue };
        let heartbeat = Event::Claims(node.machine.heartbeat());
        let knows_each_other = state.view().is_live(node.me);
        if knows_each_other {
            state.feed(scenario, to, Duration::ZERO, heartbeat);
        }
    }
}

/// One gate is open, where placement wants it, and nothing is under way.
fn is_well(state: &State) -> bool {
    let mut open = state.running().filter(|(_, node)| node.is_open());
    let (Some((i, _)), None) = (open.next(), open.next()) else { return false };
    let is_home = state.view().target().is_none_or(|target| target == i);
    let is_calm = state.running().map(|(_, node)| node.machine.n_owned()).sum::<usize>() == 1;
    let is_whole = state.history.slandered || nothing_lost(state);
    is_home && is_calm && is_whole
}
