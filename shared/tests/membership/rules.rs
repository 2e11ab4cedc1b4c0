//! For each rule: what holds with it, and what goes wrong without it.

use stead_shared::id::NodeId;
use stead_shared::sim::{Change, name_of};
use stead_shared::swim::{FatalReason, SwimEvent};

use super::*;

/// Runs `scenario` with all rules and without `rule`; the first must be free of what it counts,
/// the second not.
fn check(rule: Rule, mut scenario: impl FnMut(Option<Rule>) -> u64) {
    assert_eq!(scenario(None), 0, "with all rules");
    assert_ne!(scenario(Some(rule)), 0, "without {rule:?}");
}

fn count(bad: bool) -> u64 {
    u64::from(bad)
}

#[test]
fn ordered_timers_end_no_probe_before_its_time() {
    check(Rule::OrderedTimers, |rule| {
        let mut cluster = MembershipSim::agreed_cluster(config_without(5, 1, rule));
        for i in 0..10 {
            cluster.pause(Host(i % 5));
            cluster.run_for(millis(1_300));
            cluster.resume(Host(i % 5));
            cluster.run_for(secs(1));
        }
        cluster.stats().core_errors
    });
}

#[test]
fn a_refuted_suspicion_forces_no_new_identity() {
    check(Rule::RefutedIsForgotten, |rule| {
        let mut cluster = MembershipSim::agreed_cluster(config_without(20, 2, rule));
        cluster.set_net(lossy(0.1));
        cluster.run_for(secs(120));
        cluster.stats().renewals
    });
}

#[test]
fn one_that_was_cut_off_accuses_nobody_when_it_returns() {
    check(Rule::DeafAccusesNobody, |rule| {
        let mut cluster = MembershipSim::agreed_cluster(config_without(20, 3, rule));
        cluster.isolate(&[Host(19)]);
        cluster.run_for(secs(20));
        cluster.heal();
        cluster.run_for(secs(10));
        let renewed_by_itself = cluster.swim(Host(19)).stats().renewals;
        cluster.stats().renewals - renewed_by_itself
    });
}

#[test]
fn one_that_is_cut_off_for_long_goes_on_alone() {
    let mut cluster = MembershipSim::agreed_cluster(config(5, 3));
    cluster.isolate(&[Host(4)]);
    cluster.run_for(secs(20));
    let live = |cluster: &MembershipSim| cluster.members(Host(4)).live_peers().count();
    assert_eq!(live(&cluster), 4, "it cannot tell whether they are dead or it is deaf");
    cluster.run_for(secs(15));
    assert_eq!(live(&cluster), 0);
}

#[test]
fn the_survivor_of_two_takes_over_at_once() {
    let mut cluster = MembershipSim::agreed_cluster(config(2, 3));
    cluster.crash(Host(0));
    assert!(cluster.run_until_agreed(secs(4)).is_some());
}

#[test]
fn seeds_are_tried_until_they_are_there() {
    check(Rule::SeedLoop, |rule| {
        let mut cluster = MembershipSim::new(config_without(4, 4, rule));
        cluster.start_hosts(2..4);
        cluster.run_for(secs(30));
        cluster.start_hosts(0..2);
        count(cluster.run_until_agreed(secs(6)).is_none())
    });
}

#[test]
fn a_joiner_gets_the_whole_list() {
    check(Rule::PushPull, |rule| {
        let mut cluster = MembershipSim::new(config_without(80, 5, rule));
        cluster.start_hosts(0..79);
        cluster.run_for(secs(60));
        let joiner = Host(79);
        cluster.start(joiner);
        count(cluster.run_until(secs(1), |cluster| cluster.is_right(joiner)).is_none())
    });
}

/// A second process called `n1` at a host of its own, while the first one lives.
fn twin(rule: Option<Rule>) -> MembershipSim {
    let mut cluster = MembershipSim::new(config_without(6, 6, rule));
    cluster.start_hosts(0..5);
    cluster.run_for(secs(5));
    cluster.start_as(Host(5), &name_of(Host(1)), None);
    cluster.run_for(secs(5));
    cluster
}

#[test]
fn a_second_process_of_one_name_stops_and_harms_nobody() {
    check(Rule::NameIsAsked, |rule| {
        let cluster = twin(rule);
        let harmed = cluster.log().iter().any(|(_, by, change)| match change {
            Change::Died { .. } => true,
            Change::Fatal(_) => *by != Host(5),
            Change::Seen { .. } | Change::Left => false,
        });
        count(harmed)
    });
    let cluster = twin(None);
    let stopped = cluster.log().iter().any(|(_, by, change)| {
        *by == Host(5) && matches!(change, Change::Fatal(FatalReason::NameTaken { .. }))
    });
    assert!(stopped && cluster.agreed());
}

#[test]
fn a_restart_that_nobody_noticed_is_still_a_death() {
    check(Rule::BootIsDeath, |rule| {
        let mut cluster = MembershipSim::agreed_cluster(config_without(5, 7, rule));
        let old = cluster.swim(Host(3)).me();
        cluster.crash(Host(3));
        cluster.run_for(millis(300));
        cluster.start(Host(3));
        cluster.run_until_agreed(secs(5)).expect("it joins again");
        let told = |(_, _, change): &&(_, _, Change)| {
            *change == Change::Died { who: old, confirmed: true }
        };
        4 - cluster.log().iter().filter(told).count() as u64
    });
}

#[test]
fn two_refused_connects_prove_a_death() {
    check(Rule::DampedRing, |rule| {
        let mut cluster = MembershipSim::agreed_cluster(config_without(20, 8, rule));
        let who = cluster.swim(Host(19)).me();
        cluster.crash(Host(19));
        // One had a link to it; others see for themselves.
        cluster.links_break(Host(19), &[Host(5)]);
        let known = cluster.run_until_agreed(secs(1)).is_some();
        let proved = cluster
            .log()
            .iter()
            .filter(|(_, _, change)| *change == Change::Died { who, confirmed: true });
        count(!known || proved.count() != 19)
    });
}

#[test]
fn the_only_survivor_needs_no_second_witness() {
    let mut cluster = MembershipSim::agreed_cluster(config(3, 8));
    for host in [1, 2].map(Host) {
        cluster.crash(host);
        cluster.links_break(host, &[Host(0)]);
    }
    assert!(cluster.run_until_agreed(secs(3)).is_some());
}

#[test]
fn a_founder_that_starts_again_is_found_by_those_whose_links_broke() {
    let seeds = vec![Host(0)];
    let mut cluster = MembershipSim::agreed_cluster(MembershipConfig { seeds, ..config(3, 8) });
    cluster.crash(Host(0));
    cluster.run_for(millis(100));
    cluster.start(Host(0));
    cluster.links_break(Host(0), &[Host(1)]);
    assert!(cluster.run_until_agreed(secs(1)).is_some());
}

#[test]
fn one_refused_connect_proves_nothing() {
    let mut cluster = MembershipSim::agreed_cluster(config(5, 8));
    let who = cluster.swim(Host(4)).me();
    let by = NodeId::of_name(&name_of(Host(0)));
    let since = cluster.now();
    cluster.tell(Host(0), SwimEvent::Refused { node: who, by });
    cluster.run_for(secs(5));
    assert_eq!(cluster.n_false_downs(since), 0);
}

#[test]
fn a_node_that_went_down_stays_in_the_ring_for_a_moment() {
    check(Rule::DampedRing, |rule| {
        let mut cluster = MembershipSim::agreed_cluster(config_without(5, 9, rule));
        cluster.crash(Host(4));
        cluster.run_until_agreed(secs(5)).expect("its death is known");
        let id = NodeId::of_name(&name_of(Host(4)));
        let in_ring = |cluster: &MembershipSim| {
            cluster.members(Host(0)).find(id).is_some_and(|member| member.in_ring)
        };
        let at_first = in_ring(&cluster);
        cluster.run_for(millis(1_100));
        assert!(!in_ring(&cluster));
        count(!at_first)
    });
}

/// Crashes and restarts `hosts` three times within a minute. Returns who holds `hosts` down.
fn flap(rule: Option<Rule>, n: u32, hosts: &[Host]) -> MembershipSim {
    let mut cluster = MembershipSim::agreed_cluster(config_without(n, 10, rule));
    for _ in 0..3 {
        for &host in hosts {
            cluster.crash(host);
            cluster.run_for(millis(500));
            cluster.start(host);
            cluster.run_until_agreed(secs(10)).expect("it joins again");
        }
    }
    cluster
}

fn n_holding(cluster: &MembershipSim, who: Host) -> usize {
    let id = NodeId::of_name(&name_of(who));
    let holds = |&by: &Host| cluster.members(by).find(id).is_some_and(|member| member.held_down);
    cluster.hosts().iter().filter(|by| holds(by)).count()
}

#[test]
fn a_node_that_flaps_is_held_down_for_a_while() {
    check(Rule::DampedRing, |rule| {
        let mut cluster = flap(rule, 5, &[Host(4)]);
        let holding = n_holding(&cluster, Host(4));
        cluster.run_for(secs(31));
        assert_eq!(n_holding(&cluster, Host(4)), 0);
        4 - holding as u64
    });
}

#[test]
fn when_all_others_flap_nobody_is_held_down() {
    let cluster = flap(None, 2, &[Host(1)]);
    assert_eq!(n_holding(&cluster, Host(1)), 1, "the other one stands");
    let mut cluster = flap(None, 2, &[Host(1)]);
    cluster.tell(Host(0), says(Phase::Leaving));
    cluster.run_for(millis(100));
    assert_eq!(n_holding(&cluster, Host(1)), 0, "nobody else stands");
}

#[test]
fn goodbyes_are_not_flaps() {
    let mut cluster = MembershipSim::agreed_cluster(config(5, 10));
    for _ in 0..4 {
        cluster.leave(Host(4));
        cluster.run_for(secs(1));
        cluster.start(Host(4));
        cluster.run_until_agreed(secs(10)).expect("it joins again");
    }
    assert_eq!(n_holding(&cluster, Host(4)), 0);
}

#[test]
fn a_goodbye_reaches_everybody() {
    check(Rule::LeaveTellsAll, |rule| {
        let mut late = 0;
        for seed in 0..40 {
            let mut cluster = MembershipSim::agreed_cluster(config_without(2, seed, rule));
            cluster.set_net(lossy(0.3));
            cluster.leave(Host(1));
            let left = |cluster: &MembershipSim| all_show(cluster, Host(1), MemberState::Left);
            late += count(cluster.run_until(secs(1), left).is_none());
        }
        late
    });
}

#[test]
fn notices_are_sent_on_change_only() {
    check(Rule::NoticesOnChange, |rule| {
        let mut cluster = MembershipSim::agreed_cluster(config_without(10, 12, rule));
        let who = cluster.swim(Host(4)).me();
        let by = NodeId::of_name(&name_of(Host(0)));
        let before = cluster.swim(Host(0)).stats().notices_out;
        for _ in 0..20 {
            cluster.tell(Host(0), SwimEvent::Refused { node: who, by });
        }
        cluster.run_for(millis(1));
        let sent = cluster.swim(Host(0)).stats().notices_out - before;
        sent.saturating_sub(4)
    });
}
