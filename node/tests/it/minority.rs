//! One machine on the smaller side of a cut.

use std::sync::Arc;
use std::time::Duration;

use stead_node::logic::forming::FormingConfig;
use stead_node::logic::ownership::{ALONE_AFTER, Action, Event, Note, Ownership, OwnershipConfig};
use stead_shared::claims::ClaimLog;
use stead_shared::config::OnMinority;
use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{BootId, NodeBoot, NodeId};
use stead_shared::member::{MemberState, Members};
use stead_shared::time::Time;
use stead_shared::view::{ClusterParams, View};

use crate::yields::{A, B, handle, member, members};

const C: NodeBoot = NodeBoot { node: NodeId(3), boot: BootId(1) };

fn view(b: MemberState, c: MemberState) -> View {
    let params = ClusterParams {
        shards: ShardCount::new(8).expect("a power of two"),
        balance_permille: 1050,
        secret: HashSecret::public(),
        replicas: 0,
    };
    let list = vec![member(A, MemberState::Ready), member(B, b), member(C, c)];
    View::new(Arc::new(params), Arc::new(Members { me: A.node, list }))
}

/// `A`, which founded a cluster, and `B` and `C`, where `B` owns nothing and `C` one shard. They have
/// settled; it is second 100.
fn settled(on_minority: OnMinority) -> Ownership {
    let alone = view(MemberState::Down, MemberState::Down);
    let forming = FormingConfig { has_seeds: false, ..FormingConfig::default() };
    let config = OwnershipConfig { on_minority, ..OwnershipConfig::new(A, 8, forming) };
    let (list, targets) = (Arc::clone(&alone.members), Arc::clone(&alone.targets));
    let mut machine = Ownership::new(config, list, targets, Time::ZERO);
    handle(&mut machine, 0, Event::Tick);
    handle(&mut machine, 1, members(&view(MemberState::Ready, MemberState::Ready)));
    let mut log = ClaimLog::new(C);
    log.claim(crate::yields::SHARD, 9);
    log.commit();
    handle(&mut machine, 2, Event::Claims(log.full()));
    assert!(!machine.is_minority());
    handle(&mut machine, 100_000, Event::Tick);
    assert_eq!(machine.settled(), (3, 3));
    machine
}

fn is_minority(out: &[Action]) -> Option<bool> {
    out.iter().find_map(|action| match action {
        Action::Note(Note::Minority { is_minority, .. }) => Some(*is_minority),
        _ => None,
    })
}

fn stops(out: &[Action]) -> Option<bool> {
    out.iter().find_map(|action| match action {
        Action::Stop(stops) => Some(*stops),
        _ => None,
    })
}

/// Whether it claims a shard of `C`, which is silent for good.
fn claims(machine: &mut Ownership) -> bool {
    (101_000..130_000).step_by(100).any(|at| {
        let out = handle(machine, at, Event::Tick);
        out.iter().any(|action| matches!(action, Action::OpenEmpty { .. }))
    })
}

#[test]
fn a_node_that_is_to_stop_answers_and_claims_nothing_until_enough_are_back() {
    let mut machine = settled(OnMinority::Stop);
    let out = handle(&mut machine, 100_100, members(&view(MemberState::Down, MemberState::Ready)));
    assert_eq!((stops(&out), is_minority(&out)), (None, None));
    let out = handle(&mut machine, 100_200, members(&view(MemberState::Down, MemberState::Down)));
    assert_eq!((stops(&out), is_minority(&out)), (Some(true), Some(true)));
    assert_eq!(machine.settled(), (3, 1));
    assert!(!claims(&mut machine));
    let out = handle(&mut machine, 500_000, members(&view(MemberState::Ready, MemberState::Down)));
    assert_eq!((stops(&out), is_minority(&out)), (Some(false), Some(false)));
}

#[test]
fn a_node_that_is_to_serve_says_so_and_serves() {
    let mut machine = settled(OnMinority::Serve);
    let out = handle(&mut machine, 100_200, members(&view(MemberState::Down, MemberState::Down)));
    assert_eq!((stops(&out), is_minority(&out)), (None, Some(true)));
    assert!(claims(&mut machine));
}

#[test]
fn a_node_that_nobody_is_heard_by_stops_before_it_answers_again() {
    let mut machine = settled(OnMinority::Stop);
    handle(&mut machine, 100_100, Event::Doubt(1));
    let alone_ms = 100_100 + u64::try_from(ALONE_AFTER.as_millis()).unwrap();
    let out = (100_120..=alone_ms).step_by(20).map(|at| handle(&mut machine, at, Event::Tick));
    let out: Vec<Action> = out.flatten().collect();
    let at = |wanted: &Action| out.iter().position(|action| action == wanted);
    let (stop, certain) = (Action::Stop(true), Action::Certain { doubt: 1, alone: true });
    assert!(at(&stop).unwrap() < at(&certain).unwrap(), "{out:?}");
    // Somebody speaks.
    let out = handle(&mut machine, alone_ms + 100, Event::Connected { peer: B, protocol: 3 });
    assert_eq!(stops(&out), Some(false));
}

#[test]
fn the_dead_count_no_more_once_they_are_forgotten_or_have_left() {
    let mut machine = settled(OnMinority::Stop);
    handle(&mut machine, 100_200, members(&view(MemberState::Down, MemberState::Down)));
    let out = handle(&mut machine, 100_300, Event::Forget(B.node));
    // Of two halves the one with the lowest id goes on.
    assert_eq!(stops(&out), Some(false));
    assert_eq!(machine.settled(), (2, 1));

    let mut machine = settled(OnMinority::Stop);
    let out = handle(&mut machine, 100_200, members(&view(MemberState::Left, MemberState::Down)));
    assert_eq!(stops(&out), None);
    assert_eq!(machine.settled(), (2, 1));
}

#[test]
fn the_living_are_not_forgotten() {
    let mut machine = settled(OnMinority::Stop);
    handle(&mut machine, 100_200, Event::Forget(B.node));
    assert_eq!(machine.settled(), (3, 3));
    assert_eq!(
        Duration::from_secs(60),
        OwnershipConfig::new(A, 8, FormingConfig::default()).settles_after
    );
}
