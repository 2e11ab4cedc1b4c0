//! What must hold in every state, and what must come about in some.

use std::sync::atomic::Ordering;

use stateright::Property;

use super::cluster::Exploration;
use super::members::NODES;
use super::node::{Entry, Node, SHARD};
use super::recovery::heals;
use super::scenario::{Budget, Scenario};
use super::state::{Flaw, Letter, State};

/// I1, as long as whoever is taken for dead is dead.
pub(crate) const ONE_GATE: &str = "at most one gate is open";
/// I2.
pub(crate) const NO_LATE_ANSWER: &str = "no acknowledgement below a promised or learned epoch";
/// I3.
pub(crate) const ONE_ENTRY: &str = "no two entries with one epoch and number";
/// R3.
pub(crate) const PROMISES: &str = "no gate opens in an epoch that was sealed or granted";
/// I4, as long as whoever is taken for dead is dead: a client that reads, reads what it wrote.
pub(crate) const NOTHING_LOST: &str = "an open gate has every acknowledged change";
/// I4, whatever is believed.
pub(crate) const NOTHING_GONE: &str = "every acknowledged change is somewhere";
/// R6 and R12.
pub(crate) const COPIED_FIRST: &str = "a change is acknowledged when every copy has it";
/// R5 and R13, as long as whoever is taken for dead is dead.
pub(crate) const NO_STALE_COPY: &str = "no copy is served that its owner did not count on";
/// Where there are copies, and none is let go because it is silent: whatever is believed.
pub(crate) const NEWEST_HAS_ALL: &str = "the newest open gate has every acknowledged change";
/// R13.
pub(crate) const KEEPS_A_COPY: &str = "a claim with a copy has one while nobody dies or is silent";
/// I5.
pub(crate) const HEALS: &str = "one node serves soon after the last fault";

pub(crate) const HANDED_OFF: &str = "a handoff completes";
pub(crate) const ABORTED: &str = "a sealed shard is taken back";
pub(crate) const TAKEN_OVER: &str = "a dead owner's shard is claimed";
pub(crate) const TWO_GATES: &str = "two gates are open after a false death";
pub(crate) const PROMOTED: &str = "a dead owner's shard is served from a copy";
pub(crate) const NAMED: &str = "a new copy is counted on";

/// Not a property of the cluster: enough states have been seen.
pub(crate) const ENOUGH: &str = "enough states";

/// All that must never fail.
pub(crate) const ALWAYS: [&str; 11] = [
    ONE_GATE,
    NO_LATE_ANSWER,
    ONE_ENTRY,
    PROMISES,
    NOTHING_LOST,
    NOTHING_GONE,
    COPIED_FIRST,
    NO_STALE_COPY,
    NEWEST_HAS_ALL,
    KEEPS_A_COPY,
    HEALS,
];

pub(crate) fn properties() -> Vec<Property<Exploration>> {
    vec![
        Property::always(ONE_GATE, |_, state: &State| state.history.slandered || open(state) <= 1),
        Property::always(NO_LATE_ANSWER, |_, state| !has(state, Flaw::LateAcknowledgement)),
        Property::always(ONE_ENTRY, |_, state| !has(state, Flaw::TwoEntriesOneNumber)),
        Property::always(PROMISES, |_, state| !has(state, Flaw::BrokenPromise)),
        Property::always(NOTHING_LOST, |_, state: &State| {
            state.history.slandered || nothing_lost(state)
        }),
        Property::always(NOTHING_GONE, |_, state| owed(state).all(|entry| is_kept(state, entry))),
        Property::always(COPIED_FIRST, |_, state| !has(state, Flaw::UncopiedAcknowledgement)),
        Property::always(NO_STALE_COPY, |_, state| {
            !has(state, Flaw::StaleCopy) && !has(state, Flaw::NothingToOpen)
        }),
        Property::always(NEWEST_HAS_ALL, |model: &Exploration, state| {
            let Budget { silences, .. } = model.scenario.budget;
            model.scenario.replicas == 0 || silences > 0 || newest_has_all(state)
        }),
        Property::always(KEEPS_A_COPY, |model: &Exploration, state| {
            keeps_a_copy(&model.scenario, state)
        }),
        Property::always(HEALS, |model, state| heals(&model.scenario, state, &model.well)),
        Property::sometimes(HANDED_OFF, |_, state| handed_off(state)),
        Property::sometimes(ABORTED, |_, state| opened_at(state, 0).is_some_and(|c| c > 1)),
        Property::sometimes(TAKEN_OVER, |_, state| taken_over(state)),
        Property::sometimes(TWO_GATES, |_, state| open(state) > 1),
        Property::sometimes(PROMOTED, |_, state: &State| state.history.promoted),
        Property::sometimes(NAMED, |_, state| is_named(state)),
        Property::sometimes(ENOUGH, |model: &Exploration, _| {
            model.states_max <= 1 + model.n_checked.fetch_add(1, Ordering::Relaxed)
        }),
    ]
}

fn open(state: &State) -> usize {
    state.running().filter(|(_, node)| node.is_open()).count()
}

fn has(state: &State, flaw: Flaw) -> bool {
    state.history.flaws.contains(&flaw)
}

/// Acknowledged changes but those that went down with a process.
fn owed(state: &State) -> impl Iterator<Item = &Entry> {
    let history = &state.history;
    history.acknowledged.iter().filter(|entry| !history.excused.contains(entry))
}

pub(crate) fn nothing_lost(state: &State) -> bool {
    state
        .running()
        .filter(|(_, node)| node.is_open())
        .all(|(_, node)| owed(state).all(|entry| node.entries().contains(entry)))
}

/// By the word of whoever serves.
fn keeps_a_copy(scenario: &Scenario, state: &State) -> bool {
    let history = &state.history;
    let is_calm = !history.killed && !history.slandered;
    let is_silent = state.left.silences < scenario.budget.silences;
    let is_named = |node: &Node| !node.machine.replicas(SHARD).is_empty();
    let applies = state.first_named.is_some() && is_calm && !is_silent;
    !applies || state.running().filter(|(_, node)| node.is_open()).all(|(_, node)| is_named(node))
}

fn newest_has_all(state: &State) -> bool {
    let open = state.running().filter(|(_, node)| node.is_open());
    let newest = open.max_by_key(|(_, node)| node.gate.as_ref().map(|gate| gate.epoch));
    newest.is_none_or(|(_, node)| owed(state).all(|entry| node.entries().contains(entry)))
}

/// Another one than in the first state, if there was one.
fn is_named(state: &State) -> bool {
    let gates = state.running().filter_map(|(_, node)| node.gate.as_ref());
    let mut told = gates.flat_map(|gate| gate.told.as_slice());
    told.any(|boot| Some(*boot) != state.first_named)
}

fn is_kept(state: &State, entry: &Entry) -> bool {
    let travels = |letter: &Letter| match letter {
        Letter::Copy { state: Some(state), .. } => state.entries.contains(entry),
        Letter::Copy { state: None, .. }
        | Letter::Control { .. }
        | Letter::ClaimsWanted { .. }
        | Letter::Quiet { .. }
        | Letter::Broken { .. } => false,
    };
    state.running().any(|(_, node)| node.has(entry))
        || state.letters.values().any(|letter| travels(letter))
}

fn opened_at(state: &State, i: usize) -> Option<u64> {
    let gate = state.node(i)?.gate.as_ref()?;
    gate.open.then_some(gate.epoch.counter)
}

fn handed_off(state: &State) -> bool {
    let calm = !state.history.killed && !state.history.slandered;
    let first_has_none = state.node(0).is_some_and(|node| node.gate.is_none());
    calm && first_has_none && (1..NODES).any(|i| opened_at(state, i).is_some())
}

/// Where the shard does not move otherwise.
fn taken_over(state: &State) -> bool {
    let is_empty =
        |i: usize| state.node(i).is_some_and(|node| node.is_open() && node.entries().is_empty());
    state.history.killed && (1..NODES).any(is_empty)
}
