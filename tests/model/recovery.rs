//! I5: once nothing goes wrong any more, one node serves again.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use stead_node::logic::ownership::Event;
use stead_shared::member::MemberState;

use super::checks::nothing_lost;
use super::cluster::Step;
use super::members::{NODES, index_of};
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
    compare_claims(scenario, &mut state);
    for round in 0..ROUNDS {
        if !settle(scenario, &mut state, None, see) {
            return false;
        }
        if is_well(scenario, &state) {
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
    state.last_words.clear();
    let streams: Vec<_> = state
        .running()
        .flat_map(|(i, node)| node.feeds.by_node.keys().map(move |to| (i, *to)))
        .collect();
    for (from, to) in streams {
        state.cut(scenario, from, to);
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

/// Everything happens that need not wait, but nothing reaches `deaf`; `false` when that does not
/// end.
pub(crate) fn settle(
    scenario: &Scenario,
    state: &mut State,
    deaf: Option<usize>,
    see: &mut dyn FnMut(&State, Option<&Step>),
) -> bool {
    for _ in 0..STEPS_MAX {
        let Some(step) = next(state, deaf) else { return true };
        see(state, Some(&step));
        scenario.take(state, step);
    }
    false
}

/// Something that can happen.
fn next(state: &State, deaf: Option<usize>) -> Option<Step> {
    let hears = |i: usize| deaf != Some(i);
    let of_node = state.running().filter(|(i, _)| hears(*i)).find_map(|(i, node)| {
        if node.has_turn() {
            Some(Step::Commit(i))
        } else if node.seen + 1 < state.views.len() {
            Some(Step::Look(i))
        } else {
            node.drained.then_some(Step::Leave(i))
        }
    });
    let claims = || {
        let &(from, to) = state.claims.keys().find(|(_, to)| hears(*to))?;
        Some(Step::Claims { from, to })
    };
    let letter = || {
        let mut letters = state.letters.values();
        let letter = letters.find(|letter| hears(letter.to()) && state.is_due(letter))?;
        Some(Step::Deliver(letter.clone()))
    };
    let copied = || {
        let handoffs = |(i, node): (usize, &Node)| {
            node.streams.keys().map(move |id| (i, *id)).collect::<Vec<_>>()
        };
        // Behind a closed gate it tells nothing new.
        let mut open = state.running().filter(|(_, node)| node.is_open()).flat_map(handoffs);
        let (node, handoff) = open.next()?;
        Some(Step::Copied { node, handoff })
    };
    let of_copies = || state.running().find_map(|(i, node)| copy_step((i, node), &hears));
    let last_word = || {
        let &(owner, to) = state.last_words.keys().find(|(_, to)| hears(*to))?;
        Some(Step::Carry { owner, to })
    };
    of_node.or_else(claims).or_else(letter).or_else(copied).or_else(of_copies).or_else(last_word)
}

fn copy_step((i, node): (usize, &Node), hears: &impl Fn(usize) -> bool) -> Option<Step> {
    if !node.reports.is_empty() {
        return Some(Step::Report(i));
    }
    if let Some(&owner) = node.intake.acks.keys().find(|owner| hears(index_of(owner.node))) {
        return Some(Step::Acknowledge { from: i, owner });
    }
    node.feeds.by_node.iter().filter(|(to, _)| hears(index_of(to.node))).find_map(|(&to, feed)| {
        if feed.is_filling() {
            Some(Step::Fill { from: i, to })
        } else if feed.flying.is_empty() {
            None
        } else {
            Some(Step::Carry { owner: node.me, to: index_of(to.node) })
        }
    })
}

/// What links do when they are there again, and now and then: owners tell how far their claims are.
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

/// One gate is open, where placement wants it, with the copies that are wanted, and nothing is
/// under way.
fn is_well(scenario: &Scenario, state: &State) -> bool {
    let mut open = state.running().filter(|(_, node)| node.is_open());
    let (Some((i, node)), None) = (open.next(), open.next()) else { return false };
    let others = state.running().count() - 1;
    let n_copies = node.gate.as_ref().map_or(0, |gate| gate.told.len());
    let is_copied = n_copies == others.min(usize::from(scenario.replicas));
    let is_answered = node.feeds.unacked.is_empty();
    let is_home = state.view().target().is_none_or(|target| target == i);
    let is_calm = state.running().map(|(_, node)| node.machine.n_owned()).sum::<usize>() == 1;
    let is_whole = state.history.slandered || nothing_lost(state);
    is_home && is_calm && is_whole && is_copied && is_answered
}
