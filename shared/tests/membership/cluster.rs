//! Joins, deaths, goodbyes, partitions and replays.

use bytes::Bytes;
use proptest::prelude::*;
use stead_shared::id::{BootId, NodeId};
use stead_shared::sim::{Change, addr_of, name_of};
use stead_shared::swim::{FatalReason, SwimEvent, SwimState};

use super::*;

fn deaths(cluster: &MembershipSim) -> Vec<(Host, BootId, bool)> {
    let of = |(_, by, change): &(_, Host, Change)| match change {
        Change::Died { who, confirmed } => Some((*by, who.boot, *confirmed)),
        Change::Seen { .. } | Change::Fatal(_) | Change::Left => None,
    };
    cluster.log().iter().filter_map(of).collect()
}

fn fatal(cluster: &MembershipSim) -> Vec<(Host, FatalReason)> {
    let of = |(_, by, change): &(_, Host, Change)| match change {
        Change::Fatal(reason) => Some((*by, reason.clone())),
        Change::Seen { .. } | Change::Died { .. } | Change::Left => None,
    };
    cluster.log().iter().filter_map(of).collect()
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = |seed| {
        let mut cluster = MembershipSim::agreed_cluster(config(12, seed));
        cluster.set_net(lossy(0.1));
        cluster.crash(Host(3));
        cluster.run_for(secs(5));
        cluster.isolate(&[Host(4), Host(5)]);
        cluster.run_for(secs(10));
        cluster.heal();
        cluster.start(Host(3));
        cluster.leave(Host(7));
        cluster.run_for(secs(10));
        (format!("{:?}", cluster.log()), cluster.traffic())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_death_is_known_to_all_within_five_seconds() {
    for (n, seeds, loss) in [(2, 5, 0.0), (5, 20, 0.05), (20, 20, 0.05), (100, 3, 0.0)] {
        for seed in 0..seeds {
            let mut cluster = MembershipSim::agreed_cluster(config(n, seed));
            cluster.set_net(lossy(loss));
            cluster.run_for(millis(seed * 113 % 500));
            cluster.crash(Host(n - 1));
            let took = cluster.run_until_agreed(secs(5));
            assert!(took.is_some(), "n = {n}, seed {seed}");
            assert!(all_show(&cluster, Host(n - 1), MemberState::Down));
        }
    }
}

#[test]
fn a_joiner_knows_all_200_and_their_cards_within_a_second() {
    let mut cluster = MembershipSim::new(config(200, 1));
    cluster.start_hosts(0..199);
    assert!(cluster.run_until_agreed(secs(30)).is_some());
    cluster.run_for(secs(2));
    let joiner = Host(199);
    cluster.start(joiner);
    let took = cluster.run_until(secs(1), |cluster| cluster.is_right(joiner));
    assert!(took.is_some());
    assert!(cluster.members(joiner).list.iter().all(|member| member.card.is_some()));
    let known = cluster.run_until_agreed(secs(2));
    assert!(known.is_some(), "and all know the joiner soon after");
    let id = NodeId::of_name(&name_of(joiner));
    let carded = |cluster: &MembershipSim| {
        let shows = |by| cluster.members(by).find(id).is_some_and(|m| m.card.is_some());
        cluster.hosts().into_iter().all(shows)
    };
    assert!(cluster.run_until(secs(3), carded).is_some(), "and its card");
}

#[test]
fn nodes_that_start_together_and_name_one_another_find_one_another() {
    for seed in 0..20 {
        let mut cluster = MembershipSim::new(config(3, seed));
        cluster.set_net(lossy(0.05));
        for host in [2, 0, 1].map(Host) {
            cluster.start(host);
        }
        assert!(cluster.run_until_agreed(secs(3)).is_some(), "seed {seed}");
        assert_eq!(fatal(&cluster), []);
    }
}

#[test]
fn a_change_of_phase_or_weight_is_seen_by_all_and_is_no_death() {
    let mut cluster = MembershipSim::agreed_cluster(config(10, 3));
    cluster.set_net(lossy(0.05));
    cluster.tell(Host(2), SwimEvent::SetWeight(7));
    cluster.tell(Host(2), says(Phase::Leaving));
    let id = NodeId::of_name(&name_of(Host(2)));
    let changed = |cluster: &MembershipSim| {
        let shows = |by| {
            cluster.members(by).find(id).is_some_and(|member| {
                (member.weight, member.state, member.in_ring) == (7, MemberState::Leaving, false)
            })
        };
        cluster.hosts().into_iter().all(shows)
    };
    assert!(cluster.run_until(secs(2), changed).is_some());
    cluster.run_for(secs(10));
    assert!(changed(&cluster));
    assert_eq!(deaths(&cluster), []);
}

#[test]
fn five_percent_loss_takes_nobody_for_dead() {
    let mut cluster = MembershipSim::agreed_cluster(config(20, 11));
    cluster.set_net(lossy(0.05));
    let since = cluster.now();
    cluster.run_for(secs(300));
    assert_eq!(cluster.n_false_downs(since), 0);
    assert_eq!(cluster.stats().core_errors, 0);
}

#[test]
fn a_pause_of_two_seconds_is_no_death() {
    let mut cluster = MembershipSim::agreed_cluster(config(10, 5));
    let since = cluster.now();
    for i in 0..20 {
        let host = Host(i % 10);
        cluster.pause(host);
        cluster.run_for(secs(2));
        cluster.resume(host);
        cluster.run_for(secs(2));
    }
    assert_eq!(cluster.n_false_downs(since), 0);
}

#[test]
fn a_process_that_stood_still_for_long_comes_back_with_its_memory() {
    let mut cluster = MembershipSim::agreed_cluster(config(5, 5));
    cluster.pause(Host(3));
    cluster.run_for(secs(15));
    assert!((0..3).map(Host).all(|by| state_of(&cluster, by, Host(3)) == Some(MemberState::Down)));
    cluster.resume(Host(3));
    assert!(cluster.run_until_agreed(secs(2)).is_some());
    assert!(deaths(&cluster).iter().all(|(_, _, confirmed)| !confirmed), "by silence only");
    assert!(deaths(&cluster).iter().all(|(by, _, _)| *by != Host(3)), "it accused nobody");
}

#[test]
fn partitions_heal_within_ten_seconds() {
    for (n, minority, seeds) in [(2, 1, 10), (20, 1, 5), (20, 4, 5), (20, 10, 5)] {
        for seed in 0..seeds {
            let mut cluster = MembershipSim::agreed_cluster(config(n, seed));
            let cut: Vec<Host> = (n - minority..n).map(Host).collect();
            cluster.isolate(&cut);
            cluster.run_for(secs(60) + millis(seed * 517));
            assert!(!cluster.agreed());
            cluster.heal();
            let healed_at = cluster.now();
            let took = cluster.run_until_agreed(secs(10));
            assert!(took.is_some(), "{minority}|{}, seed {seed}", n - minority);
            assert_eq!(cluster.n_false_downs(healed_at), 0, "{minority} of {n}, seed {seed}");
        }
    }
}

#[test]
fn a_way_that_is_cut_in_one_direction_kills_nobody() {
    let mut cluster = MembershipSim::agreed_cluster(config(8, 2));
    let since = cluster.now();
    for from in cluster.hosts() {
        cluster.cut(from, Host((from.0 + 1) % 8));
    }
    cluster.run_for(secs(120));
    assert_eq!(cluster.n_false_downs(since), 0);
}

#[test]
fn a_process_that_crashes_and_starts_again_elsewhere_joins_at_once() {
    let mut cluster = MembershipSim::new(config(6, 4));
    cluster.start_hosts(0..5);
    cluster.run_for(secs(5));
    cluster.crash(Host(4));
    let me = cluster.start_as(Host(5), &name_of(Host(4)), None);
    assert!(cluster.run_until_agreed(secs(2)).is_some());
    assert_eq!(cluster.swim(Host(5)).me(), me);
    let confirmed = deaths(&cluster).iter().filter(|(_, _, confirmed)| *confirmed).count();
    assert_eq!(confirmed, 4, "all others know that its memory is lost");
}

#[test]
fn a_clock_that_went_back_does_not_keep_a_process_out() {
    let mut cluster = MembershipSim::agreed_cluster(config(4, 4));
    let old = cluster.swim(Host(3)).me();
    cluster.crash(Host(3));
    let me = cluster.start_as(Host(3), &name_of(Host(3)), Some(BootId(17)));
    assert!(cluster.run_until_agreed(secs(2)).is_some());
    assert_eq!(me.boot, BootId(17));
    assert!(old.boot < cluster.swim(Host(3)).me().boot);
}

#[test]
fn the_elder_of_two_that_could_not_hear_one_another_stops() {
    let mut cluster = MembershipSim::new(config(6, 9));
    cluster.start_hosts(0..5);
    cluster.run_for(secs(5));
    cluster.isolate(&[Host(4)]);
    cluster.run_for(secs(10));
    let newer = cluster.start_as(Host(5), &name_of(Host(4)), None);
    cluster.run_for(secs(5));
    cluster.heal();
    cluster.run_for(secs(15));
    let [(Host(4), FatalReason::Superseded { boot, .. })] = fatal(&cluster)[..] else {
        panic!("{:?}", fatal(&cluster));
    };
    assert_eq!(boot, newer.boot);
    assert!(cluster.agreed());
}

#[test]
fn the_last_to_leave_goes_at_once() {
    let mut cluster = MembershipSim::agreed_cluster(config(2, 1));
    cluster.leave(Host(0));
    cluster.run_for(secs(1));
    assert!(!cluster.is_there(Host(0)));
    assert_eq!(state_of(&cluster, Host(1), Host(0)), Some(MemberState::Left));
    cluster.leave(Host(1));
    assert!(cluster.run_until(millis(10), |cluster| !cluster.is_there(Host(1))).is_some());
    assert_eq!(deaths(&cluster), []);
}

#[test]
fn whoever_left_is_forgotten_after_a_while_and_whoever_died_later() {
    let mut cluster = MembershipSim::agreed_cluster(config(4, 6));
    cluster.leave(Host(2));
    cluster.crash(Host(3));
    cluster.run_for(secs(595));
    assert_eq!(state_of(&cluster, Host(0), Host(2)), Some(MemberState::Left));
    cluster.run_for(secs(10));
    assert_eq!(state_of(&cluster, Host(0), Host(2)), None);
    assert_eq!(state_of(&cluster, Host(0), Host(3)), Some(MemberState::Down));
    cluster.run_for(secs(3_000));
    assert_eq!(state_of(&cluster, Host(0), Host(3)), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_payload_and_no_list_brings_a_member_down(
        kind in 0..3_u8,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut cluster = MembershipSim::agreed_cluster(config(3, 1));
        let from = cluster.swim(Host(1)).me();
        let payload: Bytes = std::iter::once(kind).chain(payload).collect();
        let source = addr_of(Host(1));
        let _ = SwimState::decode(&payload);
        cluster.tell(Host(0), SwimEvent::Datagram { from, source, payload });
        cluster.run_for(secs(1));
        prop_assert!(cluster.agreed());
    }
}
