//! One machine that hears of higher claims.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use stead_node::logic::forming::FormingConfig;
use stead_node::logic::ownership::{Action, Event, Ownership, OwnershipConfig};
use stead_shared::claims::ClaimLog;
use stead_shared::control::ShardEpoch;
use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::member::{Member, MemberState, Members, Phase, Role};
use stead_shared::time::Time;
use stead_shared::view::{ClusterParams, View};

pub(crate) const A: NodeBoot = NodeBoot { node: NodeId(1), boot: BootId(1) };
pub(crate) const B: NodeBoot = NodeBoot { node: NodeId(2), boot: BootId(2) };
pub(crate) const SHARD: ShardId = ShardId(3);

pub(crate) fn member(who: NodeBoot, state: MemberState) -> Member {
    Member {
        id: who.node,
        boot: who.boot,
        role: Role::Node,
        phase: Phase::Ready,
        state,
        weight: 1,
        zone: 0,
        gossip: SocketAddr::from(([127, 0, 0, 1], 7000)),
        in_ring: state == MemberState::Ready,
        held_down: false,
        card: None,
    }
}

/// What `A` sees with `B` in this state.
pub(crate) fn view(b: MemberState) -> View {
    let params = ClusterParams {
        shards: ShardCount::new(8).expect("a power of two"),
        balance_permille: 1050,
        secret: HashSecret::public(),
        replicas: 0,
    };
    let list = vec![member(A, MemberState::Ready), member(B, b)];
    View::new(Arc::new(params), Arc::new(Members { me: A.node, list }))
}

pub(crate) fn handle(machine: &mut Ownership, at_ms: u64, event: Event) -> Vec<Action> {
    let mut out = Vec::new();
    machine.handle(Time::ZERO + Duration::from_millis(at_ms), event, &mut out);
    out
}

pub(crate) fn members(view: &View) -> Event {
    Event::Members {
        members: Arc::clone(&view.members),
        targets: Arc::clone(&view.targets),
        digest: view.members_digest,
    }
}

/// `A` was cut off and takes `B` for dead; `B` has taken a shard over meanwhile.
#[test]
fn a_shard_is_given_up_once_its_claimant_is_known_to_live() {
    let down = view(MemberState::Down);
    let forming = FormingConfig { has_seeds: false, ..FormingConfig::default() };
    let config = OwnershipConfig::new(A, 8, forming);
    let (list, targets) = (Arc::clone(&down.members), Arc::clone(&down.targets));
    let mut machine = Ownership::new(config, list, targets, Time::ZERO);
    handle(&mut machine, 0, Event::Tick);
    assert_eq!(machine.n_owned(), 8);
    let mut log = ClaimLog::new(B);
    log.claim(SHARD, 9);
    log.commit();
    // What a dead member is said to claim does not count.
    assert_eq!(handle(&mut machine, 1, Event::Claims(log.full())), []);
    handle(&mut machine, 2, members(&view(MemberState::Ready)));
    let out = handle(&mut machine, 3, Event::Claims(log.heartbeat()));
    assert!(out.contains(&Action::AskClaims { to: B.node }), "{out:?}");
    let out = handle(&mut machine, 4, Event::Claims(log.full()));
    let epoch = Epoch { counter: 9, node: B.node };
    let expected = Action::Yield { to: B, shards: vec![ShardEpoch { shard: SHARD, epoch }] };
    assert!(out.contains(&expected), "{out:?}");
    assert_eq!(machine.n_owned(), 7);
}
