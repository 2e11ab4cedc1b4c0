//! Ownership machines against each other, seeded.

mod cluster;
mod doubt;
mod yields;

use std::time::Duration;

use cluster::{Cluster, Faults, SHARDS, Violation};
use stead_node::logic::ownership::Rules;

const NO_FAULTS: Faults = Faults { lose: 0.0, repeat: 0.0, members_lag_ms: 30, delay_max_ms: 3 };
const FAULTS: Faults = Faults { lose: 0.05, repeat: 0.1, members_lag_ms: 300, delay_max_ms: 40 };

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Three nodes start within 2 s in an order of the seed's; one joins later, one is drained.
fn forming_join_and_drain(seed: u64, faults: Faults, rules: Rules) -> Cluster {
    let mut cluster = Cluster::new(4, seed, faults, rules);
    for step in 0..3 {
        cluster.start(((seed + step) % 3) as usize);
        cluster.run_for(Duration::from_millis(seed * 7919 % 700));
    }
    cluster.run_for(secs(8));
    cluster.start(3);
    cluster.run_for(secs(6));
    cluster.drain(1);
    for _ in 0..200 {
        if cluster.is_drained(1) {
            cluster.leave(1);
            break;
        }
        cluster.run_for(Duration::from_millis(100));
    }
    cluster.run_for(secs(8));
    cluster.check_end();
    cluster
}

/// The same start, then a node dies, proven or silently, and comes back.
fn crash_and_return(seed: u64, faults: Faults, rules: Rules) -> Cluster {
    let mut cluster = Cluster::new(4, seed, faults, rules);
    for node in 0..4 {
        cluster.start(node);
    }
    cluster.run_for(Duration::from_millis(3_000 + seed * 37 % 2_000));
    let node = (seed % 4) as usize;
    cluster.kill(node, seed.is_multiple_of(2));
    cluster.run_for(secs(1 + seed % 5));
    cluster.start(node);
    cluster.run_for(Duration::from_millis(seed * 131 % 3_000));
    cluster.kill(((seed + 1) % 4) as usize, !seed.is_multiple_of(3));
    cluster.run_for(secs(15));
    cluster.check_end();
    cluster
}

/// A node joins, and for a while its claims do not reach one of the owners.
fn join_with_claims_held_back(seed: u64, faults: Faults, rules: Rules) -> Cluster {
    let mut cluster = Cluster::new(4, seed, faults, rules);
    for node in 0..3 {
        cluster.start(node);
    }
    cluster.run_for(secs(5));
    cluster.cut = Some(((seed % 3) as usize, 3));
    cluster.start(3);
    cluster.run_for(secs(8));
    cluster.cut = None;
    cluster.run_for(secs(6));
    cluster.check_end();
    cluster
}

/// Four nodes start at the same instant.
fn start_together(seed: u64, faults: Faults, rules: Rules) -> Cluster {
    let mut cluster = Cluster::new(4, seed, faults, rules);
    for node in 0..4 {
        cluster.start(node);
    }
    cluster.run_for(secs(12));
    cluster.check_end();
    cluster
}

type Scenario = fn(u64, Faults, Rules) -> Cluster;
const SCENARIOS: [(&str, Scenario); 4] = [
    ("start_together", start_together),
    ("forming_join_and_drain", forming_join_and_drain),
    ("crash_and_return", crash_and_return),
    ("join_with_claims_held_back", join_with_claims_held_back),
];

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40),
    }
}

#[test]
fn a_cluster_forms_grows_and_drains_without_faults() {
    let mut cluster = forming_join_and_drain(1, NO_FAULTS, Rules::ALL);
    assert_eq!(cluster.violations, []);
    assert!(!cluster.is_running(1), "the drained node left");
    let owned: usize = (0..4).map(|node| cluster.owned(node)).sum();
    assert_eq!(owned, SHARDS as usize);
    assert!((0..4).filter(|&node| node != 1).all(|node| cluster.owned(node) > 4));
    cluster.run_for(secs(1));
}

/// Three nodes start within 1.2 s in any order, and name each other as seeds.
fn three_in_any_order(seed: u64) -> (Cluster, [usize; 3]) {
    const ORDERS: [[usize; 3]; 6] =
        [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let order = ORDERS[(seed % 6) as usize];
    let mut cluster = Cluster::new(3, seed, FAULTS, Rules::ALL);
    for (step, node) in (1..).zip(order) {
        cluster.start(node);
        cluster.run_for(Duration::from_millis(seed * 7919 * step % 600));
    }
    (cluster, order)
}

#[test]
fn nodes_started_together_in_any_order_form_one_cluster() {
    for seed in 0..200 {
        let (mut cluster, _) = three_in_any_order(seed);
        cluster.run_for(secs(12));
        cluster.check_end();
        assert_eq!(cluster.violations, [], "SEED={seed}");
        let owned: Vec<usize> = (0..3).map(|node| cluster.owned(node)).collect();
        assert!(owned.iter().all(|&n| n > 4), "SEED={seed}: {owned:?}");
    }
}

#[test]
fn a_founder_that_restarts_founds_nothing_twice() {
    for seed in 0..200 {
        let (mut cluster, order) = three_in_any_order(seed);
        cluster.run_for(Duration::from_millis(seed * 104_729 % 2_500));
        let founder = (0..3).max_by_key(|&node| cluster.owned(node)).unwrap_or(order[0]);
        cluster.kill(founder, seed.is_multiple_of(2));
        cluster.run_for(Duration::from_millis(seed * 1_299_709 % 2_000));
        cluster.start(founder);
        cluster.run_for(secs(16));
        cluster.check_end();
        assert_eq!(cluster.violations, [], "SEED={seed}");
    }
}

#[test]
fn the_last_node_leaves_at_once() {
    let mut cluster = Cluster::new(1, 1, NO_FAULTS, Rules::ALL);
    cluster.start(0);
    cluster.run_for(secs(12));
    assert_eq!(cluster.owned(0), SHARDS as usize);
    cluster.drain(0);
    cluster.run_for(secs(1));
    assert!(cluster.is_drained(0), "there is nobody to wait for");
}

#[test]
fn no_seed_finds_two_owners_or_a_lost_change() {
    for seed in seeds() {
        for (name, scenario) in SCENARIOS {
            let cluster = scenario(seed, FAULTS, Rules::ALL);
            for line in &cluster.log {
                println!("{line}");
            }
            assert_eq!(cluster.violations, [], "{name} SEED={seed}");
        }
    }
}

/// The target of a grant got the first `Prepare` once more, said no to it, and the source took
/// that for a refusal of the grant.
#[test]
fn a_late_answer_to_a_repeated_prepare_does_not_undo_the_grant() {
    let cluster = join_with_claims_held_back(1, FAULTS, Rules::ALL);
    assert_eq!(cluster.violations, []);
}

#[test]
fn each_rule_that_is_off_is_found_out() {
    type Switch = fn(&mut Rules);
    let switches: [(&str, Violation, Scenario, Switch); 5] = [
        ("R0 genesis", Violation::TwoOwners, crash_and_return, |r| r.genesis_asks = false),
        ("R0 forming", Violation::TwoOwners, start_together, |r| r.forming_agrees = false),
        ("R2", Violation::LostChange, forming_join_and_drain, |r| r.gate_closes_first = false),
        ("R3", Violation::EpochNotRaised, crash_and_return, |r| r.seal_is_promise = false),
        ("R4", Violation::TwoOwners, join_with_claims_held_back, |r| r.grant_is_final = false),
    ];
    for (name, violation, scenario, switch) in switches {
        let mut rules = Rules::ALL;
        switch(&mut rules);
        let found = (0..200).find(|&seed| {
            scenario(seed, FAULTS, rules).violations.iter().any(|found| found.1 == violation)
        });
        println!("{name} off: {violation:?}, first seed {found:?}");
        assert!(found.is_some(), "{name} off was not found out");
    }
}
