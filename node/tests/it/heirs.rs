//! Machines that keep copies of each other's shards (R5, R13), without sockets or sessions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use stead_node::logic::copying::Progress;
use stead_node::logic::forming::FormingConfig;
use stead_node::logic::ownership::{Action, Event, Note, Ownership, OwnershipConfig, Unfollowed};
use stead_shared::claims::{ClaimLog, Replicas};
use stead_shared::control::{Control, ShardEpoch};
use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::member::{Member, MemberState, Members, Phase, Role};
use stead_shared::time::Time;
use stead_shared::view::{ClusterParams, View};

const N_SHARDS: u32 = 32;

fn boot(n: u64) -> NodeBoot {
    NodeBoot { node: NodeId(n), boot: BootId(100 + n) }
}

/// Nodes 1 to `n`, whose messages arrive at once and whose state moves in no time.
struct World {
    now_ms: u64,
    machines: BTreeMap<NodeId, Ownership>,
    states: BTreeMap<NodeId, MemberState>,
    queue: VecDeque<(NodeId, Event)>,
    /// What each was told to do, but messages and moves of state.
    done: Vec<(NodeId, Action)>,
    /// What these say is lost.
    mute: BTreeSet<NodeId>,
    /// Nobody fills copies.
    lazy: bool,
}

impl World {
    fn new(n: u64) -> Self {
        let mut world = Self {
            now_ms: 0,
            machines: BTreeMap::new(),
            states: (1..=n).map(|n| (NodeId(n), MemberState::Ready)).collect(),
            queue: VecDeque::new(),
            done: Vec::new(),
            mute: BTreeSet::new(),
            lazy: false,
        };
        for node in 1..=n {
            // The first founds, the others join it.
            let forming = FormingConfig { has_seeds: node > 1, ..FormingConfig::default() };
            let config = OwnershipConfig::new(boot(node), N_SHARDS, forming);
            let config = OwnershipConfig { replicas: 1, ..config };
            let view = world.view(NodeId(node));
            let (members, targets) = (Arc::clone(&view.members), Arc::clone(&view.targets));
            let machine = Ownership::new(config, members, targets, Time::ZERO);
            world.machines.insert(NodeId(node), machine);
        }
        for at in 1..=n {
            for peer in (1..=n).filter(|peer| *peer != at) {
                let event = Event::Connected { peer: boot(peer), protocol: 3 };
                world.queue.push_back((NodeId(at), event));
            }
        }
        world.tell_members();
        world.pass(15_000);
        world
    }

    fn view(&self, me: NodeId) -> View {
        let shards = ShardCount::new(N_SHARDS).unwrap();
        let secret = HashSecret::public();
        let params = ClusterParams { shards, balance_permille: 1050, secret, replicas: 1 };
        let member = |(&id, &state): (&NodeId, &MemberState)| Member {
            id,
            boot: boot(id.0).boot,
            role: Role::Node,
            phase: Phase::Ready,
            state,
            weight: 1,
            zone: 0,
            gossip: SocketAddr::from(([127, 0, 0, 1], 7000)),
            in_ring: state == MemberState::Ready,
            held_down: false,
            card: None,
        };
        let list = self.states.iter().map(member).collect();
        View::new(Arc::new(params), Arc::new(Members { me, list }))
    }

    fn tell_members(&mut self) {
        for &node in self.machines.keys() {
            let View { members, targets, members_digest: digest, .. } = self.view(node);
            self.queue.push_back((node, Event::Members { members, targets, digest }));
        }
        self.settle();
    }

    fn set(&mut self, node: u64, state: MemberState) {
        self.states.insert(NodeId(node), state);
        self.tell_members();
    }

    /// Node `n` is gone, and proven to be.
    fn kill(&mut self, n: u64) {
        self.machines.remove(&NodeId(n)).expect("it lives");
        self.states.insert(NodeId(n), MemberState::Down);
        for &node in self.machines.keys() {
            self.queue.push_back((node, Event::Disconnected(NodeId(n))));
            self.queue.push_back((node, Event::Died { who: boot(n), confirmed: true }));
        }
        self.tell_members();
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 20 {
            self.now_ms += 20;
            let nodes: Vec<NodeId> = self.machines.keys().copied().collect();
            for node in nodes {
                self.queue.push_back((node, Event::Tick));
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        let mut n = 0;
        while let Some((node, event)) = self.queue.pop_front() {
            n += 1;
            assert!(n < 1_000_000, "it never ends: {event:?}");
            let Some(machine) = self.machines.get_mut(&node) else { continue };
            let mut out = Vec::new();
            machine.handle(Time::from_micros(self.now_ms * 1000), event, &mut out);
            for action in out {
                self.act(node, action);
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, event: Event) {
        if !self.mute.contains(&from) && !self.mute.contains(&to) {
            self.queue.push_back((to, event));
        }
    }

    fn act(&mut self, at: NodeId, action: Action) {
        let me = boot(at.0);
        match action.clone() {
            Action::Send { to, message } => {
                self.send(at, to, Event::Control { from: me, message });
            }
            Action::PushClaims(update) => {
                for to in self.states.keys().copied().filter(|to| *to != at).collect::<Vec<_>>() {
                    self.send(at, to, Event::Claims(update.clone()));
                }
            }
            Action::SendClaims { to, update } => self.send(at, to, Event::Claims(update)),
            Action::AskClaims { to } => self.send(at, to, Event::ClaimsWanted(at)),
            Action::Copy { handoff, to, .. } => {
                let progress =
                    Progress { walking: false, lag: 0, left: 0, rate: 1, overflow: false };
                self.queue.push_back((to.node, Event::Receiving(handoff)));
                self.queue.push_back((at, Event::Copied { handoff, progress }));
            }
            Action::Seal { handoff, .. } => self.queue.push_back((at, Event::Sealed(handoff))),
            Action::SendLast { handoff } => {
                let nodes: Vec<NodeId> = self.machines.keys().copied().collect();
                // Only its target knows it.
                for node in nodes {
                    self.queue.push_back((node, Event::Received(handoff)));
                }
            }
            Action::Fill { to, shards } | Action::Adopt { to, shards, .. } if !self.lazy => {
                let complete = Event::CopyComplete { owner: me, shards: shards.clone() };
                self.send(at, to.node, complete);
                self.queue.push_back((at, Event::Filled { to, shards }));
            }
            _ => {}
        }
        if !matches!(action, Action::Send { .. }) {
            self.done.push((at, action));
        }
    }

    fn owner(&self, shard: ShardId) -> NodeId {
        let serves = |machine: &&Ownership| machine.serving().any(|at| at.shard == shard);
        let mut owners = self.machines.iter().filter(|(_, machine)| serves(machine));
        let owner = *owners.next().expect("somebody serves it").0;
        assert_eq!(owners.next().map(|(node, _)| *node), None, "{shard} has two owners");
        owner
    }

    fn replica(&self, shard: ShardId) -> Option<NodeBoot> {
        let set = self.machines[&self.owner(shard)].replicas(shard);
        assert!(set.len() < 2, "{shard}: {set:?}");
        set.as_slice().first().copied()
    }

    fn shards() -> impl Iterator<Item = ShardId> {
        (0..N_SHARDS).map(ShardId)
    }

    fn under_replicated(&self) -> usize {
        self.machines.values().map(Ownership::under_replicated).sum()
    }
}

#[test]
fn every_shard_has_a_copy_on_another_node_and_only_one() {
    let world = World::new(3);
    for shard in World::shards() {
        let replica = world.replica(shard).expect("a copy");
        assert_ne!(replica.node, world.owner(shard));
    }
    assert_eq!(world.under_replicated(), 0);
    let copies: usize = world.machines.values().map(Ownership::n_copies).sum();
    assert_eq!(copies, N_SHARDS as usize, "no copy is left behind");
}

#[test]
fn the_replica_takes_over_at_the_next_epoch_and_the_copies_are_made_again() {
    let mut world = World::new(3);
    let dead: Vec<ShardId> = World::shards().filter(|s| world.owner(*s) == NodeId(2)).collect();
    let heirs: Vec<_> = dead.iter().map(|shard| world.replica(*shard)).collect();
    let counters: Vec<u64> = dead
        .iter()
        .map(|shard| world.machines[&NodeId(2)].newest(*shard).unwrap().counter)
        .collect();
    world.done.clear();
    world.kill(2);
    world.pass(40);
    for ((&shard, heir), counter) in dead.iter().zip(heirs).zip(counters) {
        assert_eq!(Some(boot(world.owner(shard).0)), heir, "{shard}");
        let epoch = world.machines[&world.owner(shard)].newest(shard).unwrap();
        assert_eq!(epoch.counter, counter + 1);
    }
    let lost = |action: &Action| matches!(action, Action::OpenEmpty { .. });
    assert!(!world.done.iter().any(|(_, action)| lost(action)), "nothing is lost");
    let promoted = world.done.iter().filter_map(|(_, action)| match action {
        Action::Note(Note::Promoted { n_shards, .. }) => Some(*n_shards),
        _ => None,
    });
    assert_eq!(promoted.sum::<usize>(), dead.len());
    world.pass(100);
    assert_eq!(world.under_replicated(), 0);
    assert!(World::shards().all(|shard| world.replica(shard).is_some()));
}

#[test]
fn a_silent_replica_is_let_go_only_when_somebody_else_knows_it() {
    let mut world = World::new(3);
    let shard = World::shards().find(|s| world.owner(*s) == NodeId(1)).unwrap();
    let silent = world.replica(shard).unwrap();
    let other = NodeId(if silent.node == NodeId(2) { 3 } else { 2 });
    world.lazy = true;
    world.mute.extend([other, silent.node]);
    world.done.clear();
    world.queue.push_back((NodeId(1), Event::FollowerSilent(silent)));
    world.pass(500);
    let told = |world: &World| {
        world.done.iter().any(|(at, action)| match action {
            Action::SetReplicas { sets } => {
                *at == NodeId(1) && sets.contains(&(shard, Replicas::NONE))
            }
            _ => false,
        })
    };
    assert!(world.machines[&NodeId(1)].replicas(shard).is_empty(), "it is out of the claim");
    assert!(!told(&world), "nobody knows it");
    world.mute.remove(&other);
    world.pass(500);
    assert!(told(&world));
}

#[test]
fn a_replica_that_was_let_go_is_filled_again_though_nothing_else_happens() {
    let mut world = World::new(3);
    let shard = World::shards().find(|s| world.owner(*s) == NodeId(1)).unwrap();
    let silent = world.replica(shard).unwrap();
    world.queue.push_back((NodeId(1), Event::FollowerSilent(silent)));
    world.pass(100);
    assert_eq!(world.replica(shard), None, "it is left alone for a while");
    world.pass(3_000);
    assert_eq!(world.replica(shard), Some(silent));
    assert_eq!(world.under_replicated(), 0);
}

#[test]
fn a_replica_that_has_left_the_claim_does_not_take_over() {
    let mut world = World::new(3);
    let shard = World::shards().find(|s| world.owner(*s) == NodeId(1)).unwrap();
    let stale = world.replica(shard).unwrap();
    // It misses that it is let go, and the owner dies.
    world.lazy = true;
    world.mute.insert(stale.node);
    world.queue.push_back((NodeId(1), Event::FollowerSilent(stale)));
    world.pass(500);
    world.mute.clear();
    world.done.clear();
    world.kill(1);
    world.pass(12_000);
    let promoted = world.done.iter().any(|(at, action)| match action {
        Action::OpenReplica { shards } => {
            *at == stale.node && shards.iter().any(|at| at.shard == shard)
        }
        _ => false,
    });
    assert!(!promoted, "it lacks what was acknowledged without it");
    world.owner(shard);
}

#[test]
fn who_claims_a_shard_without_its_copy_is_offered_it() {
    let mut world = World::new(3);
    let shard = World::shards().find(|s| world.owner(*s) == NodeId(1)).unwrap();
    let heir = world.replica(shard).unwrap();
    let other = boot(if heir.node == NodeId(2) { 3 } else { 2 });
    let counter = world.machines[&NodeId(1)].newest(shard).unwrap().counter + 1;
    // Nobody hears the heir, and so somebody else claims the shard.
    world.mute.insert(heir.node);
    world.kill(1);
    let mut log = ClaimLog::new(other);
    while log.pos() <= world.machines[&other.node].heartbeat().pos {
        counter_up(&mut log, shard, counter);
    }
    world.done.clear();
    world.queue.push_back((heir.node, Event::Claims(log.full())));
    world.pass(200);
    let epoch = Epoch { counter, node: other.node };
    let offer = Action::OfferReplicas { to: other, shards: vec![ShardEpoch { shard, epoch }] };
    assert_eq!(world.done.iter().filter(|it| **it == (heir.node, offer.clone())).count(), 1);
    let opens = |action: &Action| matches!(action, Action::OpenReplica { shards } if shards.iter().any(|at| at.shard == shard));
    assert!(!world.done.iter().any(|(_, action)| opens(action)));
}

#[test]
fn a_copy_that_is_replaced_is_offered_unless_its_owner_had_named_who_replaces_it() {
    let mut world = World::new(3);
    let shard = World::shards().find(|s| world.owner(*s) == NodeId(1)).unwrap();
    let heir = world.replica(shard).unwrap();
    let other = boot(if heir.node == NodeId(2) { 3 } else { 2 });
    let at = ShardEpoch { shard, epoch: Epoch { counter: 9, node: other.node } };
    let not_held = World::shards().find(|s| world.replica(*s) != Some(heir)).unwrap();
    for (owner, shard, expected) in [
        (other, shard, Action::OfferReplaced { to: other, shards: vec![at] }),
        (boot(1), shard, Action::DropReplaced { shards: vec![shard] }),
        (other, not_held, Action::DropReplaced { shards: vec![not_held] }),
    ] {
        world.done.clear();
        let shards = vec![ShardEpoch { shard, ..at }];
        world.queue.push_back((heir.node, Event::CopyReplaced { owner, shards }));
        world.settle();
        assert!(world.done.contains(&(heir.node, expected.clone())), "{expected:?}");
    }
}

/// Claims it, after as many changes as that takes.
fn counter_up(log: &mut ClaimLog, shard: ShardId, counter: u64) {
    log.release(shard);
    let _ = log.commit();
    log.claim(shard, counter);
    let _ = log.commit();
}

#[test]
fn a_replica_that_knows_a_newer_owner_is_not_let_go() {
    let mut world = World::new(3);
    let shard = World::shards().find(|s| world.owner(*s) == NodeId(1)).unwrap();
    let replica = world.replica(shard).unwrap();
    let epoch = world.machines[&NodeId(1)].newest(shard).unwrap().next(replica.node);
    world.done.clear();
    let shards = vec![(shard, Unfollowed::HigherEpoch(epoch))];
    world.queue.push_back((NodeId(1), Event::FollowerLost { to: replica, shards }));
    world.settle();
    assert!(world.machines[&NodeId(1)].replicas(shard).contains(replica));
    let asks = Action::AskClaims { to: replica.node };
    assert!(world.done.contains(&(NodeId(1), asks)));
}

#[test]
fn who_leaves_is_in_no_claim_in_the_end() {
    let mut world = World::new(3);
    world.states.insert(NodeId(3), MemberState::Leaving);
    world.queue.push_back((NodeId(3), Event::Drain));
    world.tell_members();
    world.pass(3_000);
    assert!(world.done.contains(&(NodeId(3), Action::Drained)));
    for shard in World::shards() {
        assert_ne!(world.owner(shard), NodeId(3));
        assert_ne!(world.replica(shard).expect("a copy").node, NodeId(3));
    }
    assert_eq!(world.under_replicated(), 0);
}

#[test]
fn a_shard_that_moves_has_a_copy_all_the_time() {
    let mut world = World::new(3);
    world.set(3, MemberState::Leaving);
    world.pass(5_000);
    world.set(3, MemberState::Ready);
    for _ in 0..500 {
        world.pass(20);
        for shard in World::shards() {
            let serves = |m: &Ownership| m.serving().any(|at| at.shard == shard);
            let Some(owner) = world.machines.values().find(|m| serves(m)) else { continue };
            assert!(!owner.replicas(shard).is_empty(), "{shard} has no copy");
        }
    }
    assert_eq!(world.under_replicated(), 0);
    assert!(World::shards().any(|shard| world.owner(shard) == NodeId(3)));
}

#[test]
fn a_message_of_takeover_that_comes_twice_is_harmless() {
    let mut world = World::new(3);
    let (one, two) = (NodeId(1), boot(2));
    let shards = vec![stead_shared::control::ShardRange { first: 0, len: N_SHARDS }];
    for owner in [boot(3), boot(1)] {
        let message = Control::TakeOver { token: 7, owner, pos: 0, shards: shards.clone() };
        for _ in 0..2 {
            world.queue.push_back((one, Event::Control { from: two, message: message.clone() }));
        }
        let message =
            Control::Takeable { token: 7, pos: 0, holdings: Vec::new(), highest: Vec::new() };
        world.queue.push_back((one, Event::Control { from: two, message }));
    }
    world.settle();
    world.pass(1_000);
    assert!(World::shards().all(|shard| world.replica(shard).is_some()));
}
