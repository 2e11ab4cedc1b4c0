//! The handoff, the takeover and copies that follow, explored state by state.
//!
//! Three nodes and one shard. Each node is a production machine
//! ([`Ownership`](stead_node::logic::ownership::Ownership)) in a shell of the model's own: a gate,
//! the changes behind it, copies that come and go. A checker tries, breadth first, every order in
//! which what may happen can happen.
//!
//! # What may happen
//!
//! - Messages about ownership, and the last part of a copy, arrive in any order, late, twice, or
//!   never: one that is lost is one that has not arrived yet.
//! - Claims arrive in the order of their link, late, never, or with one of them missing.
//! - Turns begin at an open gate and end, acknowledged, while it is open or after it has closed.
//! - Each node learns of each change among the members in its own time.
//! - Placement changes its mind, nodes leave, die, start again, are taken for dead though they
//!   live, streams break, changes come too fast for a copy: as often as the [`scenario`] says.
//!
//! Where a scenario wants copies that follow, they are the production
//! [`Outbox`](stead_node::logic::replication::Outbox) and
//! [`CopyState`](stead_node::logic::replication::CopyState) in [`feed`] and [`kept`]:
//!
//! - A turn that has ended is acknowledged once all copies have its change.
//! - Items and acknowledgements arrive in the order of their connection, late, or never. A
//!   connection is cut with all that is on it, and what was not acknowledged is sent again. What a
//!   process has sent may arrive after its death.
//! - A fill goes on in steps, and changes come between them.
//! - What becomes of copies reaches the machine later, in order, and before a long wait ends.
//! - A copy that is waited for is found silent: as often as the scenario says.
//!
//! # Time
//!
//! A clock would make every state new. Each machine's stands still while it handles messages; time
//! passes only when the model lets a node wait, *a wait* (long enough for every answer) or *a long
//! wait* (long enough for everything). After each step the clock is set back to where it stood,
//! and what is left of each timer is rounded up to one of the two waits (`node::round_times`). So
//! timers are slower than they would be, by any amount, on each node apart from the others; none
//! is faster. What rests on two nodes' timers being right relative to each other would fail here,
//! and nothing of the protocol may.
//!
//! # What must hold
//!
//! See [`checks`]. Those of I1 and of reads are asked for only while nobody was taken for dead
//! that lives. I5 is asked of every state by a run from it ([`recovery`]): all that is on its way
//! is lost, nothing goes wrong any more, and soon the node that placement wants serves, with the
//! copies that are wanted and nothing left to be answered.
//!
//! A change goes down with its owner only where nobody else was counted on who has it: one death at
//! a time loses nothing that was acknowledged with a copy.
//!
//! # What this does not show
//!
//! More shards than one, and so batches, and streams that several shards share; more copies than
//! one; memory and disks that are full, and what comes back from a disk; forming; routers; what
//! becomes of sessions that a node with a lower claim gives up (kept aside here; merging has tests
//! of its own); targets that take no copies while a shard serves. Counts are bounded, as each
//! scenario says: a run that would begin one handoff more ends there.
//!
//! `STATES=1000000 cargo test --release --test model -- --nocapture` explores further than the
//! gate does.
#![expect(clippy::print_stdout, reason = "how far it came, and how a rule's absence shows")]

mod checks;
mod cluster;
mod explore;
mod feed;
mod kept;
mod members;
mod node;
mod recovery;
mod scenario;
mod state;
mod trace;

use stead_shared::rules::Rules;

use checks::{
    ABORTED, COPIED_FIRST, HANDED_OFF, HEALS, NAMED, NO_LATE_ANSWER, NO_STALE_COPY, NOTHING_LOST,
    ONE_GATE, PROMISES, PROMOTED, TAKEN_OVER, TWO_GATES,
};
use explore::{counterexample, explore};
use scenario::{
    COPY, COPY_MOVE, COPY_SLANDER, DEATH, DEATH_IN_MOVE, DRAIN, LOST_COPY, MOVE, MOVES, NEW_COPY,
    OTHER_COPY, SILENT_COPY, SILENT_OTHER, SLANDER, SLANDER_IN_MOVE, Scenario,
};

/// How many states of each scenario to check, at most.
fn states_max() -> usize {
    let states = std::env::var("STATES").ok().and_then(|states| states.parse().ok());
    states.unwrap_or(3_000)
}

/// Explores, and asserts that nothing fails and that all of `must` comes about.
fn check(scenario: Scenario, must: &[&str]) {
    let explored = explore(scenario, states_max());
    assert_eq!(explored.violated, Vec::<&str>::new(), "{}", scenario.name);
    for name in must {
        assert!(
            explored.found.contains(name),
            "{}: it never comes about that {name}",
            scenario.name
        );
    }
}

/// Asserts that without a rule the property called `name` fails, and prints a shortest run.
fn must_fail(mut scenario: Scenario, switch_off: fn(&mut Rules), name: &'static str) {
    switch_off(&mut scenario.rules);
    let run = counterexample(scenario, name);
    println!("{name}: fails\n{}", run.as_deref().unwrap_or("it does not"));
    assert!(run.is_some(), "the oracle does not notice: {name}");
}

#[test]
fn a_move_is_safe_and_ends_well() {
    check(MOVE, &[HANDED_OFF, ABORTED]);
}

#[test]
fn a_drain_is_safe_and_ends_well() {
    check(DRAIN, &[ABORTED]);
}

#[test]
fn targets_that_change_are_safe_and_end_well() {
    check(MOVES, &[ABORTED]);
}

#[test]
fn deaths_are_safe_and_end_well() {
    check(DEATH, &[TAKEN_OVER]);
    check(DEATH_IN_MOVE, &[]);
}

/// That two gates are open here also shows that the oracle of the others can fail.
#[test]
fn false_deaths_are_noticed_and_end_well() {
    check(SLANDER, &[TWO_GATES]);
    check(SLANDER_IN_MOVE, &[]);
}

#[test]
fn a_dead_owner_is_followed_by_its_copy_with_nothing_lost() {
    check(COPY, &[PROMOTED]);
    check(LOST_COPY, &[PROMOTED]);
}

#[test]
fn a_copy_that_left_the_claim_is_not_served() {
    check(SILENT_COPY, &[]);
}

#[test]
fn a_death_in_a_move_loses_nothing_of_a_shard_with_a_copy() {
    check(COPY_MOVE, &[]);
}

#[test]
fn an_owner_that_was_taken_for_dead_answers_nothing_that_its_copy_lacks() {
    check(COPY_SLANDER, &[]);
}

/// Once nobody looked at a shard again that had been claimed empty.
#[test]
fn a_shard_that_is_claimed_empty_gets_its_copy() {
    check(NEW_COPY, &[NAMED]);
}

/// Once the only copy was let go for one that could not be filled yet.
#[test]
fn an_owner_keeps_the_copy_it_has_until_there_is_the_one_it_wants() {
    check(OTHER_COPY, &[]);
}

/// Once nobody looked at a shard again whose copy here was found not to count, and nobody ever
/// served it.
#[test]
fn a_copy_that_does_not_count_leaves_the_shard_to_be_claimed() {
    check(SILENT_OTHER, &[]);
}

/// R5.
#[test]
fn a_copy_that_asks_nobody_serves_though_another_one_is_counted_on() {
    must_fail(OTHER_COPY, |rules| rules.takeover_asks = false, NO_STALE_COPY);
}

/// R6.
#[test]
fn a_copy_that_takes_anything_in_acknowledges_what_it_does_not_have() {
    must_fail(COPY_SLANDER, |rules| rules.appends_follow = false, COPIED_FIRST);
}

/// R12.
#[test]
fn an_entry_that_is_not_sent_again_is_acknowledged_where_no_copy_has_it() {
    must_fail(COPY, |rules| rules.entries_stay = false, COPIED_FIRST);
}

/// R13.
#[test]
fn a_copy_whose_leaving_nobody_knows_of_serves_without_what_came_after() {
    must_fail(SILENT_COPY, |rules| rules.set_is_known_first = false, NO_STALE_COPY);
}

/// R2.
#[test]
fn a_gate_that_closes_late_acknowledges_what_its_successor_lacks() {
    let late = |rules: &mut Rules| rules.gate_closes_first = false;
    must_fail(MOVE, late, NO_LATE_ANSWER);
    must_fail(MOVE, late, NOTHING_LOST);
}

/// R3.
#[test]
fn a_seal_that_is_no_promise_serves_again_in_its_epoch() {
    must_fail(MOVE, |rules| rules.seal_is_promise = false, PROMISES);
}

/// R4.
#[test]
fn a_grant_that_is_not_final_makes_two_owners() {
    let mut scenario = MOVE;
    // The source begins another handoff at once.
    scenario.handoffs = 2;
    must_fail(scenario, |rules| rules.grant_is_final = false, ONE_GATE);
}

/// R4.
#[test]
fn a_grant_that_is_not_resent_is_lost_for_ever() {
    must_fail(MOVE, |rules| rules.grant_is_resent = false, HEALS);
}
