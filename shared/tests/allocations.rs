//! Routing a request allocates nothing. A binary of its own, because the allocator that counts
//! replaces the one of the whole process.

use std::net::SocketAddr;
use std::sync::Arc;

use stead_shared::claims::{Applied, Book, ClaimLog};
use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{BootId, NodeBoot, NodeId, SessionKey};
use stead_shared::member::{Member, MemberState, Members, Phase, Role};
use stead_shared::placement::{PlacementInput, PlacementNode, place};
use stead_shared::route::{Route, route};
use stead_shared::view::{ClusterParams, View};

fn keys() -> Vec<SessionKey> {
    (0..1000).map(|n| SessionKey::new(format!("session-{n:016x}")).expect("24 bytes")).collect()
}

/// Calls `work` for every key and says how often it allocated.
fn allocations(mut work: impl FnMut(&SessionKey)) -> u64 {
    let keys = keys();
    allocation_counter::measure(|| keys.iter().for_each(&mut work)).count_total
}

fn node(n: u32) -> NodeBoot {
    NodeBoot { node: NodeId::of_name(&format!("n{n}")), boot: BootId(1) }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|key| drop(key.as_bytes().to_vec())), 1000);
}

#[test]
fn a_lookup_of_the_targets_allocates_nothing() {
    let shards = ShardCount::default();
    let nodes = (0..100).map(|n| PlacementNode {
        id: node(n).node,
        leaving: false,
        weight: 1,
        zone: n % 3,
    });
    let input = PlacementInput { replicas: 2, ..PlacementInput::of_nodes(shards, nodes.collect()) };
    let (targets, secret) = (place(&input), HashSecret::new([7; 32]));
    let mut found = 0;
    let allocated = allocations(|key| {
        let shard = secret.shard_of(key, shards);
        found += usize::from(targets.owner_of(shard).is_some());
        found += targets.replicas_of(shard).count();
    });
    assert_eq!((allocated, found), (0, 3000));
}

#[test]
fn routing_to_the_owner_allocates_nothing() {
    let view = a_view();
    let mut routed = 0;
    let allocated = allocations(|key| {
        let route = route(&view, view.params.shard_of(key));
        routed += usize::from(matches!(route, Route::Owner { .. }));
    });
    assert_eq!((allocated, routed), (0, 1000));
}

/// Three nodes, all shards claimed by their targets.
fn a_view() -> View {
    let member = |n| Member {
        id: node(n).node,
        boot: node(n).boot,
        role: Role::Node,
        phase: Phase::Ready,
        state: MemberState::Ready,
        weight: 1,
        zone: 0,
        gossip: SocketAddr::from(([127, 0, 0, 1], 7400)),
        in_ring: true,
        held_down: false,
        card: None,
    };
    let mut list: Vec<_> = (0..3).map(member).collect();
    list.sort_unstable_by_key(|member| member.id);
    let params = ClusterParams {
        shards: ShardCount::default(),
        balance_permille: 1050,
        secret: HashSecret::public(),
        replicas: 0,
    };
    let members = Arc::new(Members { me: list[0].id, list });
    let view = View::new(Arc::new(params), members);
    let mut book = Book::new(view.params.shards.get());
    for owner in (0..3).map(node) {
        let mut log = ClaimLog::new(owner);
        view.targets.shards_of(owner.node).for_each(|shard| log.claim(shard, 1));
        assert!(matches!(book.apply(&log.full()), Applied::Changed(_)));
    }
    view.with_claims(book.table().clone())
}
