//! Whole clusters in virtual time: the production machines of nodes and routers, seeded faults,
//! and a judge that sees only what machines decide and what clients are told.
//!
//! `SEED=n` runs one seed and prints its log; `SEEDS=n` runs so many.

mod content;
mod ctx;
mod cuts;
mod disk;
mod feed;
mod history;
mod host;
mod kept;
mod links;
mod membership;
mod merges;
mod node;
mod offers;
mod oracle;
mod plan;
mod router;
mod rules;
mod saved;
mod transfer;
mod world;

use std::time::Duration;

use content::Healing;
use cuts::plan_with_cuts;
use oracle::{Finding, Violation};
use plan::{Luck, Plan, plan, plan_with_copies, plan_with_disks, rolling};
use rules::Rule;
use stead_shared::rules::Rules;
use world::{Outcome, run, run_watched};

/// Within so many seeds each rule that is off is found out.
const SEEDS_MAX: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn run_seed(luck: Luck, seed: u64, rules: Rules, log: bool) -> Outcome {
    run(seed, &plan(luck, seed, rules), log)
}

/// Panics with what was found, and with what shows it again.
fn assert_clean(luck: Luck, seed: u64) {
    let outcome = run_seed(luck, seed, Rules::ALL, false);
    assert!(outcome.findings.is_empty(), "{luck:?} {seed}: {:#?}", outcome.findings);
}

/// Panics with what was found with copies, and with what shows it again.
fn assert_clean_with_copies(seed: u64) {
    let luck = Luck::with_copies(seed);
    let outcome = run(seed, &plan_with_copies(luck, seed, Rules::ALL), false);
    assert!(outcome.findings.is_empty(), "{luck:?} {seed}: {:#?}", outcome.findings);
}

type Planner = fn(Luck, u64, Rules) -> Plan;

/// Runs one seed with its log, or all of them.
#[expect(clippy::print_stdout, reason = "what a run tells to whoever started it")]
fn run_seeds(luck_of: fn(u64) -> Luck, plan: Planner, n_seeds: u64) {
    if let Some(seed) = number("SEED") {
        let luck = luck_of(seed);
        let plan = plan(luck, seed, Rules::ALL);
        println!("{luck:?} {plan:#?}");
        let outcome = run(seed, &plan, true);
        assert!(outcome.findings.is_empty(), "SEED={seed} {luck:?}: {:#?}", outcome.findings);
        return;
    }
    let (mut n_events, mut n_moves, mut n_taken_over, mut n_ops) = (0, 0, 0, 0);
    let (mut n_taken, mut n_merged, mut n_conflicts, mut n_false) = (0, 0, 0, 0);
    let n_seeds = number("SEEDS").unwrap_or(n_seeds);
    let mut failed = Vec::new();
    for seed in number("FROM").unwrap_or(0)..n_seeds {
        let luck = luck_of(seed);
        let outcome = run(seed, &plan(luck, seed, Rules::ALL), false);
        n_events += outcome.n_events;
        n_moves += u64::from(outcome.n_moves);
        n_taken_over += u64::from(outcome.n_taken_over);
        n_ops += outcome.n_ops;
        n_taken += u64::from(outcome.merges.n_taken);
        n_merged += u64::from(outcome.merges.n_merged);
        n_conflicts += outcome.merges.n_conflicts();
        n_false += outcome.merges.n_false;
        for Finding { at, what, text } in outcome.findings {
            failed.push(format!("SEED={seed} {luck:?}: {at:?} {what:?}: {text}"));
        }
    }
    println!(
        "{n_seeds} seeds: {n_events} events, {n_ops} requests, {n_moves} shards moved, \
         {n_taken_over} taken over; of sessions that two sides had {n_taken} taken, {n_merged} \
         merged, {n_conflicts} conflicts, {n_false} of them are none"
    );
    assert!(failed.is_empty(), "{} findings:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn no_seed_finds_a_violation() {
    run_seeds(Luck::of_seed, plan, 2_000);
}

#[test]
fn no_seed_with_copies_finds_a_violation() {
    run_seeds(Luck::with_copies, plan_with_copies, 2_000);
}

#[test]
fn no_seed_with_disks_finds_a_violation() {
    run_seeds(Luck::with_disks, plan_with_disks, 350);
}

#[test]
fn no_seed_with_cuts_finds_a_violation() {
    run_seeds(|_| Luck::Cuts, |_, seed, rules| plan_with_cuts(seed, rules), 400);
}

#[test]
fn equal_seeds_give_equal_runs() {
    for seed in 0..8 {
        let run = || {
            let outcome = run_seed(Luck::Handoffs, seed, Rules::ALL, false);
            (outcome.n_events, outcome.n_moves, outcome.n_ops)
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}

/// A source was cut off and drained after the heal, while another node had taken its shards over:
/// the claim that met its grant was taken for the target's, and what it held was dropped.
#[test]
fn who_claims_what_was_granted_to_another_is_offered_what_is_there() {
    assert_clean(Luck::of_seed(2499), 2499);
}

/// Two clusters were founded apart, and one granted shards at a counter that the other had used.
#[test]
fn a_grant_at_a_counter_that_was_used_is_void() {
    assert_clean(Luck::of_seed(6527), 6527);
}

/// A target served by the grant, handed the shards on, and their next owner died: no claim was left
/// by which the source, which had been cut off, could see that its grant had been used. It sent it
/// again for ever, and held its own claim, so that nobody took the shards over.
#[test]
fn a_grant_ends_whose_shards_have_gone_on_and_died() {
    for seed in [17_538, 36_221] {
        assert_clean(Luck::of_seed(seed), seed);
    }
}

/// Goal: each rule is needed, and the judge can tell. Method: with the rule off, one of few seeds
/// shows the violation that the rule is there against; with it on, none of these seeds does.
#[test]
fn a_rule_that_is_off_is_found_out() {
    for rule in Rule::ALL {
        let (luck, expected) = (rule.luck(), rule.violation());
        let found = (0..SEEDS_MAX).find(|&seed| {
            let outcome = run(seed, &rule.plan(seed, rule.off()), false);
            outcome.findings.iter().any(|finding| finding.what == expected)
        });
        println!("{rule:?} off: {expected:?}, {luck:?} seed {found:?}");
        let last = found.unwrap_or_else(|| panic!("{rule:?} off was not found out"));
        for seed in 0..=last {
            let outcome = run(seed, &rule.plan(seed, Rules::ALL), false);
            assert!(outcome.findings.is_empty(), "{rule:?} {seed}: {:#?}", outcome.findings);
        }
    }
}

/// As for rules, of what becomes of histories that had parted.
#[test]
fn what_is_merged_wrong_is_found_out() {
    for (healing, expected) in Healing::WRONG {
        let found = (0..SEEDS_MAX).find(|&seed| {
            let mut plan = plan_with_cuts(seed, Rules::ALL);
            plan.knobs.healing = healing;
            let outcome = run(seed, &plan, false);
            outcome.findings.iter().any(|finding| finding.what == expected)
        });
        println!("{healing:?}: {expected:?}, seed {found:?}");
        assert!(found.is_some(), "{healing:?} was not found out");
    }
}

/// A node that had decided to found a cluster, and asked for counters yet, agreed to another
/// founder.
#[test]
fn who_is_about_to_found_agrees_to_no_other_founder() {
    assert_clean(Luck::of_seed(11_826), 11_826);
}

/// Its members differed from the asker's, which did not mind since it was under suspicion; both
/// claimed.
#[test]
fn who_is_suspected_may_disagree() {
    assert_clean(Luck::of_seed(33_335), 33_335);
}

/// Shards that had no holder any more while the node asked for others were never asked for.
#[test]
fn what_is_unclaimed_after_a_question_is_asked_for_next() {
    assert_clean(Luck::of_seed(22_289), 22_289);
}

/// One member told of the new owner, which the asker did not know yet; another, asked at the same
/// time, still knew the old one, and its word came last.
#[test]
fn the_newest_owner_that_anybody_tells_of_counts() {
    assert_clean(Luck::of_seed(57_775), 57_775);
}

/// A node died before its members' list had shown it, and did not count among the many that died.
#[test]
fn a_death_counts_that_is_told_before_its_node() {
    assert_clean(Luck::of_seed(52_757), 52_757);
}

/// The judge took a node for unheard that was paused before it had any peer, and whom links had
/// told of them since.
#[test]
fn what_comes_over_a_link_is_heard() {
    assert_clean(Luck::of_seed(56_814), 56_814);
}

/// Two heirs took each other's wish to take over for a claim, and waited for each other for ever.
#[test]
fn of_two_heirs_one_takes_over() {
    assert_clean_with_copies(9);
}

/// Two heirs could not hear each other, and each gave up on the other's answer.
#[test]
fn an_heir_waits_for_those_before_it() {
    assert_clean_with_copies(24);
}

/// An owner started again: its new log hid who had copies of its shards, and one of them claimed
/// them empty.
#[test]
fn who_holds_a_copy_does_not_claim_its_shard_empty() {
    assert_clean_with_copies(40);
}

/// A copy whose owner had let its shard go was still taken for an heir's.
#[test]
fn who_follows_an_owner_no_more_is_no_heir() {
    assert_clean_with_copies(15);
}

/// A node was granted a shard of which it had a copy. The copy stayed, and was in the way when the
/// shard went on.
#[test]
fn who_serves_a_shard_keeps_no_copy_of_it() {
    assert_clean_with_copies(269);
}

/// A source took shards back that it had granted, with an empty set: answers still waited for who was
/// named before.
#[test]
fn what_is_taken_back_keeps_its_copies() {
    assert_clean_with_copies(527);
}

/// A copy was named, and its node had not heard of it when the owner died.
#[test]
fn who_may_be_named_asks() {
    assert_clean_with_copies(1211);
}

/// A target served what it was granted, did not reach its source, and went on without it. The source
/// took the shards back when it died, and others had copies of more.
#[test]
fn a_source_asks_before_it_takes_back() {
    assert_clean_with_copies(1464);
}

/// An owner that was cut off served on below the epoch of one who had taken over and died: the heir of
/// that one waited for it.
#[test]
fn an_heir_waits_for_nobody_below_its_epoch() {
    assert_clean_with_copies(574);
}

/// An owner that was wrongly taken for dead began to fill a copy that was just about to be served.
#[test]
fn who_has_nothing_to_open_lets_go() {
    assert_clean_with_copies(511);
}

/// Replicas took an owner for dead and claimed its shards empty, or served copies of another line. The
/// owner believed that they had all that it had acknowledged.
#[test]
fn who_is_superseded_offers_what_is_there() {
    assert_clean_with_copies(736);
    assert_clean_with_copies(1007);
    assert_clean_with_copies(1964);
}

/// The first heir by an older set did not learn from the next one's question that its set was old, and
/// took over when that one died.
#[test]
fn a_question_tells_that_a_set_is_old() {
    assert_clean_with_copies(984);
}

/// A node followed an owner whose start it had not heard of, and took it for dead.
#[test]
fn an_owner_that_is_news_is_not_dead() {
    assert_clean_with_copies(909);
}

/// A claim named as many as it can, none of whom was wanted: those who were filled could not be named,
/// and who was to leave stayed.
#[test]
fn a_full_set_lets_somebody_go_first() {
    assert_clean_with_copies(1084);
}

/// A replica that had left a claim was filled again before that was known, and let go when it was: the
/// fill never ended.
#[test]
fn who_leaves_is_not_filled_yet() {
    assert_clean_with_copies(1324);
}

/// A shard went on from an owner that died to one that died as well. Who had an old copy of the first
/// one's took over before the heir of the second.
#[test]
fn a_later_owner_has_heirs_of_its_own() {
    assert_clean_with_copies(806);
}

/// The only one who knew that a replica was out was given up too soon; and late parts of a dead owner's
/// log made a node forget that it was named.
#[test]
fn a_log_that_is_known_is_not_doubted() {
    assert_clean_with_copies(7104);
    assert_clean_with_copies(14_772);
}

/// An owner that was cut off from all others, who lived, let a replica go as if it were alone.
#[test]
fn who_reaches_nobody_is_not_alone() {
    assert_clean_with_copies(8034);
}

/// A fill had ended, and what was answered while it did was still on its way to the copy. The claim
/// named it, and the owner died.
#[test]
fn a_copy_is_named_when_it_has_all_that_was_answered() {
    assert_clean_with_copies(2022);
}

/// Two heirs told of themselves, the answer that came last counted, and its heir died: the shard was
/// claimed empty beside the other.
#[test]
fn every_heir_that_tells_of_itself_counts() {
    assert_clean_with_copies(5264);
}

/// A copy was complete, and was not named, or only for a moment: answers waited for it for ever.
#[test]
fn nobody_waits_for_a_copy_that_no_claim_names() {
    assert_clean_with_copies(159);
    assert_clean_with_copies(3630);
}

/// A shard that came back to an owner was still taken to be filled at a replica, from the time before.
#[test]
fn a_fill_ends_when_its_shard_leaves() {
    assert_clean_with_copies(14_164);
}

/// A copy was on the other side of a cut, or its node was taken for dead, when its owner died: the shard
/// was claimed empty, and nobody got what the copy held.
#[test]
fn who_claims_a_shard_without_its_copy_is_offered_it() {
    assert_clean_with_copies(2180);
    assert_clean_with_copies(7661);
}

/// An owner that was taken for dead, and did not hear who took over, handed its shard on at a counter
/// above that one's. When that one died, too, its copy was filled anew by who had got the shard, and
/// what it held was nowhere else.
#[test]
fn what_is_replaced_is_offered_to_who_replaces_it() {
    assert_clean_with_copies(5758);
    assert_clean_with_copies(5770);
}

/// A replica took over from an owner that was wrongly taken for dead, and told it of its epoch. An
/// aborted move raised the old owner's above that: it was the one to stay, and its answers waited for a
/// copy that did not follow.
#[test]
fn who_outranks_its_replica_in_the_end_lets_it_go() {
    assert_clean_with_copies(1741);
}

/// An owner let a replica go that was cut off, one node knew it, and both died or started again: only
/// routers knew that the copy was too old, and were not asked.
#[test]
fn routers_know_who_is_named() {
    assert_clean_with_copies(2956);
    assert_clean_with_copies(8778);
    assert_clean_with_copies(16_014);
}

fn assert_clean_with_disks(seed: u64) {
    let luck = Luck::with_disks(seed);
    let outcome = run(seed, &plan_with_disks(luck, seed, Rules::ALL), false);
    assert!(outcome.findings.is_empty(), "{luck:?} {seed}: {:#?}", outcome.findings);
}

/// A node came back with a shard on its disk while another one asked all for it, and was not asked: the
/// shard was claimed empty beside it.
#[test]
fn who_comes_back_while_a_shard_is_asked_for_is_asked() {
    assert_clean_with_disks(53);
    assert_clean_with_disks(411);
}

/// A shard was claimed empty, and its claimer started again before the node came back that had it on
/// disk: its state was taken for a later one of the same history.
#[test]
fn how_a_shard_began_is_known_after_a_restart() {
    assert_clean_with_disks(49);
    assert_clean_with_disks(237);
}

/// The same, and the shard had gone on to another node, which started again as well.
#[test]
fn how_a_shard_began_goes_along_with_it() {
    assert_clean_with_disks(1311);
    assert_clean_with_disks(1347);
    assert_clean_with_disks(368);
}

/// An owner started again without its last changes, and asked a replica what it had that still took
/// it for the process before: the replica did not say that it had all.
#[test]
fn who_is_not_known_yet_is_not_told_what_is_saved() {
    assert_clean_with_disks(245);
}

/// Of two nodes that started together one served what it had told of, from nothing: the other one took
/// its word from before for all that there was.
#[test]
fn who_serves_what_it_told_of_is_asked_again() {
    assert_clean_with_disks(297);
    assert_clean_with_disks(627);
}

/// A shard went from one node to another who had told before that it had nothing of it, while the
/// first one's claim was already gone: a third served it from disk.
#[test]
fn who_has_moved_shards_since_it_told_is_asked_again() {
    assert_clean_with_disks(904);
}

/// A target served what it was granted, died, and its source took the shards back: what had been
/// changed was on the target's disk, and dropped there when it came back.
#[test]
fn what_is_taken_back_may_lack_what_its_target_changed() {
    assert_clean_with_disks(1035);
}

/// What is on disk of a shard was deleted, power was lost, and the witness did not remember that it was
/// to be: the shard was taken for damaged.
#[test]
fn what_was_deleted_on_purpose_is_not_missed() {
    assert_clean_with_disks(1297);
}

/// Sessions were offered to the owner of their shard, who took them in and died before they were on
/// its disk; whoever had offered them had forgotten them.
#[test]
fn what_was_offered_is_forgotten_when_it_is_on_disk_elsewhere() {
    assert_clean_with_disks(1421);
}

/// A node came back with the newest state on its disk, and asked one who had nothing to tell then and
/// owned the shard when all had answered: what had been told before counted.
#[test]
fn who_owns_a_shard_by_now_tells_again_how_it_began() {
    assert_clean_with_disks(1649);
    assert_clean_with_disks(3419);
}

/// A node offered an owner what was on its disk, and was to get the same shard: there was no room on
/// the disk for both, each attempt to move it sealed the shard anew, and each offer came in between.
#[test]
fn what_is_offered_from_disk_is_settled_before_its_shard_comes() {
    assert_clean_with_disks(2252);
}

/// A node that was alone on its side of a cut began a shard empty, changed it, and was restarted
/// before the cut healed. The owner on the other side had handed the shard on meanwhile, in as high an
/// epoch: what was on disk counted as known there, and was dropped.
#[test]
fn what_began_on_the_smaller_side_outlives_its_process() {
    assert_clean_with_disks(11681);
}

/// An owner went on without its copy, which a cut had taken away, and crashed. Who held that copy took
/// it over, for it heard nobody: what was on the owner's disk counted as known there, and was dropped.
#[test]
fn what_an_owner_answered_alone_outlives_its_process() {
    assert_clean_with_disks(12653);
}

/// A router had heard of an owner at a high epoch that died, and was told of a newer owner than the one
/// it had asked, at a lower epoch than that: it asked the same one again.
#[test]
fn what_a_router_heard_of_the_dead_does_not_hide_who_lives() {
    assert_clean_with_disks(15_082);
}

/// A disk failed while its shard was sealed, for which an older seal on it promised nothing.
#[test]
fn a_seal_that_is_not_on_disk_is_no_promise_after_a_restart() {
    assert_clean_with_disks(11_402);
}

/// All nodes were away, and a new one founded without what is on their disks; one that came back had a
/// higher epoch than that on its disk, and served at once.
#[test]
fn who_comes_back_with_a_higher_epoch_serves_at_once() {
    assert_clean_with_disks(5028);
    assert_clean_with_disks(23_750);
}

fn assert_clean_with_cuts(seed: u64) {
    let outcome = run(seed, &plan_with_cuts(seed, Rules::ALL), false);
    assert!(outcome.findings.is_empty(), "{seed}: {:#?}", outcome.findings);
}

/// A shard that began empty took over what another history had, and was merged with one that knew less
/// of that: whose counters were taken for newer, since it had come through the epoch itself.
#[test]
fn what_came_from_a_third_history_is_as_new_as_it_was_there() {
    assert_clean_with_cuts(5);
    assert_clean_with_cuts(83);
    assert_clean_with_cuts(118);
}

/// The same, and then the shard and a copy of it parted: what had been taken over after that was older
/// than where they had, and counted as if both had it.
#[test]
fn what_was_taken_over_since_is_not_in_a_copy() {
    for seed in [210, 255, 503, 543] {
        assert_clean_with_cuts(seed);
    }
}

/// A target had all of a shard, and the grant was lost with a cut: it took the shard over from a copy,
/// or claimed it empty, and its source took that claim for its grant's and dropped what was there.
#[test]
fn what_was_granted_is_offered_to_a_target_that_serves_something_else() {
    assert_clean_with_cuts(3770);
    assert_clean_with_cuts(7931);
}

#[test]
fn every_shard_is_in_two_places_while_one_node_after_the_other_leaves() {
    let only = number("SEED");
    let mut n_moves = 0;
    for seed in only.map_or(0..40, |seed| seed..seed + 1) {
        let plan = rolling(seed);
        let outcome = run_watched(seed, &plan, Duration::from_secs(3), only.is_some());
        assert!(outcome.findings.is_empty(), "seed {seed}: {:#?}", outcome.findings);
        n_moves += outcome.n_moves;
    }
    assert!(only.is_some() || 500 < n_moves, "only {n_moves} shards moved");
}

/// A judge of one server at a time that finds nothing where gossip takes the living for dead
/// would find nothing anywhere.
#[test]
fn false_deaths_give_two_servers() {
    let found = (0..SEEDS_MAX).find(|&seed| {
        let mut wild = plan(Luck::Wild, seed, Rules::ALL);
        wild.knobs.honest = true;
        let outcome = run(seed, &wild, false);
        outcome.findings.iter().any(|finding| finding.what == Violation::TwoServers)
    });
    println!("false deaths: TwoServers, seed {found:?}");
    assert!(found.is_some());
}
