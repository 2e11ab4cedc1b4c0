//! Machines that start with what their disks hold (R0, R3), without disks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use stead_node::logic::durable::Beginning;
use stead_node::logic::forming::FormingConfig;
use stead_node::logic::ownership::{Action, Event, Note, Ownership, OwnershipConfig};
use stead_node::logic::recovery::Saved;
use stead_shared::control::{Control, HandoffId, NotNow, SavedKind, ShardEpoch};
use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId, ShardId, Version};
use stead_shared::member::{Member, MemberState, Members, Phase, Role};
use stead_shared::time::Time;
use stead_shared::view::{ClusterParams, View};

const N_SHARDS: u32 = 8;
const S: ShardId = ShardId(5);

type Held = BTreeMap<ShardId, Saved>;

fn boot(n: u64) -> NodeBoot {
    NodeBoot { node: NodeId(n), boot: BootId(100 + n) }
}

fn saved(kind: SavedKind, counter: u64, node: u64, seq: u64) -> Saved {
    let at = Version { epoch: Epoch { counter, node: NodeId(node) }, seq };
    Saved { at, kind, sealed: false, begun: None, alone: false }
}

fn held(kind: SavedKind, counter: u64, node: u64, seq: u64) -> Held {
    BTreeMap::from([(S, saved(kind, counter, node, seq))])
}

/// Nodes that start, whose messages arrive at once.
#[derive(Default)]
struct World {
    now_ms: u64,
    machines: BTreeMap<NodeId, Ownership>,
    ready: BTreeSet<NodeId>,
    queue: VecDeque<(NodeId, Event)>,
    /// What is pushed of claims does not arrive: they are there when they are asked for.
    loses_claims: bool,
    /// What each was told to do about shards.
    done: Vec<(u64, Action)>,
}

impl World {
    /// These nodes, by their numbers, with what their disks hold.
    fn of(disks: &[(u64, Held)]) -> Self {
        let mut world = Self::default();
        for (node, held) in disks {
            world.start(*node, held.clone(), &[]);
        }
        world
    }

    fn start(&mut self, node: u64, held: Held, remembered: &[u64]) {
        let forming = FormingConfig { has_seeds: true, ..FormingConfig::default() };
        let config = OwnershipConfig::new(boot(node), N_SHARDS, forming);
        let config = OwnershipConfig { has_disk: true, ..config };
        let view = self.view(NodeId(node));
        let now = Time::ZERO + Duration::from_millis(self.now_ms);
        let machine = Ownership::new(config, view.members, view.targets, now)
            .recovering(held, remembered.iter().map(|node| NodeId(*node)).collect());
        for &other in self.machines.keys() {
            let peers = [(other, boot(node)), (NodeId(node), boot(other.0))];
            self.queue.extend(peers.map(|(at, peer)| (at, Event::Connected { peer, protocol: 3 })));
        }
        self.machines.insert(NodeId(node), machine);
        self.tell_members();
    }

    fn view(&self, me: NodeId) -> View {
        let shards = ShardCount::new(N_SHARDS).unwrap();
        let secret = HashSecret::public();
        let params = ClusterParams { shards, balance_permille: 1050, secret, replicas: 0 };
        let member = |id: NodeId| {
            let is_ready = self.ready.contains(&id);
            Member {
                id,
                boot: boot(id.0).boot,
                role: Role::Node,
                phase: if is_ready { Phase::Ready } else { Phase::Joining },
                state: if is_ready { MemberState::Ready } else { MemberState::Joining },
                weight: 1,
                zone: 0,
                gossip: SocketAddr::from(([127, 0, 0, 1], 7000)),
                in_ring: is_ready,
                held_down: false,
                card: None,
            }
        };
        let ids: BTreeSet<NodeId> = self.machines.keys().copied().chain([me]).collect();
        let list = ids.into_iter().map(member).collect();
        View::new(Arc::new(params), Arc::new(Members { me, list }))
    }

    fn tell_members(&mut self) {
        for &node in self.machines.keys() {
            let View { members, targets, members_digest: digest, .. } = self.view(node);
            self.queue.push_back((node, Event::Members { members, targets, digest }));
        }
        self.settle();
    }

    fn settle(&mut self) {
        while let Some((node, event)) = self.queue.pop_front() {
            let now = Time::ZERO + Duration::from_millis(self.now_ms);
            let mut out = Vec::new();
            let Some(machine) = self.machines.get_mut(&node) else { continue };
            machine.handle(now, event, &mut out);
            let mut is_ready = false;
            for action in out {
                is_ready |= action == Action::BecomeReady;
                self.carry_out(node, action);
            }
            if is_ready {
                self.ready.insert(node);
                self.tell_members();
            }
        }
    }

    fn carry_out(&mut self, node: NodeId, action: Action) {
        match action {
            Action::Send { to, message } => {
                self.queue.push_back((to, Event::Control { from: boot(node.0), message }));
            }
            Action::PushClaims(_) if self.loses_claims => {}
            Action::PushClaims(update) => {
                let others = self.machines.keys().filter(|other| **other != node);
                self.queue.extend(others.map(|other| (*other, Event::Claims(update.clone()))));
            }
            Action::SendClaims { to, update } => self.queue.push_back((to, Event::Claims(update))),
            Action::AskClaims { to } => self.queue.push_back((to, Event::ClaimsWanted(node))),
            other => self.done.push((node.0, other)),
        }
    }

    /// Lets time pass. Nobody takes a handoff: their copies never end.
    fn pass(&mut self, ms: u64) -> &mut Self {
        for _ in 0..ms / 20 {
            self.now_ms += 20;
            let nodes: Vec<NodeId> = self.machines.keys().copied().collect();
            self.queue.extend(nodes.into_iter().map(|node| (node, Event::Tick)));
            self.settle();
        }
        self
    }

    /// What became of shard `S`: the node, a word, and the counter where there is one.
    fn fates(&self) -> Vec<(u64, &'static str, u64)> {
        let of = |shards: &[ShardEpoch]| {
            shards.iter().find(|at| at.shard == S).map(|at| at.epoch.counter)
        };
        let fate = |(node, action): &(u64, Action)| {
            let (word, counter) = match action {
                Action::OpenEmpty { shards, .. } => ("empty", of(shards)?),
                Action::OpenSaved { shards } => ("saved", of(shards)?),
                Action::OfferSaved { shards, .. } => ("offered", of(shards)?),
                Action::Quarantine { shards } => ("quarantined", of(shards)?),
                Action::DropSaved { shards } => ("dropped", u64::from(!shards.contains(&S))),
                _ => return None,
            };
            Some((*node, word, counter))
        };
        self.done.iter().filter_map(fate).collect()
    }

    fn is_all_ready(&self) -> bool {
        self.ready.len() == self.machines.len()
    }
}

#[test]
fn the_newest_state_is_served_and_the_others_are_dropped() {
    let mut world = World::of(&[
        (1, held(SavedKind::Copy, 7, 2, 80)),
        (2, held(SavedKind::Owner, 7, 2, 90)),
        (3, held(SavedKind::Owner, 6, 3, 99)),
    ]);
    world.pass(5_000);
    assert_eq!(world.fates(), [(2, "saved", 8), (1, "dropped", 0), (3, "dropped", 0)]);
    assert!(world.is_all_ready());
}

/// Seen with processes: three nodes were killed at once and started again, and two of them served the
/// same twelve shards. Each had said what it held, and one had claimed it, before the other decided;
/// the claim came after the answer that did not name the shard any more.
#[test]
fn a_state_that_is_claimed_already_is_served_once_though_the_claim_is_late() {
    for nodes in [[1, 2], [2, 1]] {
        let [newest, older] = nodes;
        let mut world = World::of(&[
            (older, held(SavedKind::Copy, 7, newest, 80)),
            (newest, held(SavedKind::Owner, 7, newest, 90)),
        ]);
        world.loses_claims = true;
        world.pass(5_000);
        assert_eq!(world.fates(), [(newest, "saved", 8), (older, "dropped", 0)]);
    }
}

#[test]
fn a_copy_that_goes_further_than_its_owner_is_served() {
    let mut world =
        World::of(&[(1, held(SavedKind::Owner, 7, 1, 80)), (2, held(SavedKind::Copy, 7, 1, 90))]);
    world.pass(5_000);
    assert_eq!(world.fates(), [(2, "saved", 8), (1, "dropped", 0)]);
}

#[test]
fn of_copies_alone_the_one_that_goes_furthest_is_served() {
    let mut world = World::of(&[
        (1, held(SavedKind::Copy, 7, 9, 90)),
        (2, held(SavedKind::Copy, 7, 9, 91)),
        (3, Held::new()),
    ]);
    world.pass(5_000);
    assert_eq!(world.fates(), [(2, "saved", 8), (1, "dropped", 0)]);
}

#[test]
fn nobody_claims_empty_what_a_disk_holds_and_all_else_is_claimed() {
    let mut world =
        World::of(&[(1, Held::new()), (2, Held::new()), (3, held(SavedKind::Owner, 4, 3, 1))]);
    world.pass(5_000);
    assert_eq!(world.fates(), [(3, "saved", 5)]);
    let owned: usize = world.machines.values().map(Ownership::n_owned).sum();
    assert_eq!(owned, N_SHARDS as usize);
}

#[test]
fn a_node_alone_serves_what_its_disk_holds() {
    let mut world = World::default();
    world.start(1, held(SavedKind::Copy, 7, 2, 90), &[]);
    world.pass(15_000);
    assert_eq!(world.fates(), [(1, "saved", 8)]);
    assert!(world.is_all_ready());
}

#[test]
fn after_a_seal_the_next_epoch_is_left_to_whom_it_may_have_been_granted() {
    let sealed = Saved { sealed: true, ..saved(SavedKind::Owner, 7, 1, 80) };
    let mut world = World::of(&[(1, BTreeMap::from([(S, sealed)])), (2, Held::new())]);
    world.pass(5_000);
    assert_eq!(world.fates(), [(1, "saved", 9)]);
}

#[test]
fn who_was_there_before_is_waited_for() {
    let mut world = World::default();
    world.start(1, held(SavedKind::Copy, 7, 2, 90), &[2, 3]);
    world.start(2, Held::new(), &[1, 3]);
    world.pass(7_000);
    assert!(world.ready.is_empty(), "the third may have what is newest");
    world.start(3, held(SavedKind::Owner, 7, 3, 95), &[1, 2]);
    world.pass(5_000);
    assert_eq!(world.fates(), [(3, "saved", 8), (1, "dropped", 0)]);
    assert!(world.is_all_ready());
}

#[test]
fn who_does_not_come_back_is_not_waited_for_for_ever() {
    let mut world = World::default();
    world.start(1, held(SavedKind::Copy, 7, 2, 90), &[2, 3]);
    world.start(2, Held::new(), &[1, 3]);
    world.pass(15_000);
    assert_eq!(world.fates(), [(1, "saved", 8)]);
    assert!(world.is_all_ready());
}

#[test]
fn what_began_empty_is_offered_the_state_of_before() {
    let mut world = World::of(&[(1, Held::new())]);
    world.pass(15_000);
    assert_eq!(world.fates(), [(1, "empty", 1)]);
    world.start(2, held(SavedKind::Owner, 0, 2, 80), &[]);
    world.pass(3_000);
    assert_eq!(world.fates()[1..], [(2, "offered", 1)]);
    assert!(world.is_all_ready());
}

#[test]
fn what_goes_back_to_a_state_does_not_get_it_again() {
    let mut world = World::of(&[(1, held(SavedKind::Owner, 7, 1, 90))]);
    world.pass(15_000);
    assert_eq!(world.fates(), [(1, "saved", 8)]);
    world.start(2, held(SavedKind::Copy, 7, 1, 80), &[]);
    world.pass(3_000);
    assert_eq!(world.fates()[1..], [(2, "dropped", 0)]);
}

#[test]
fn what_was_begun_from_an_older_state_is_offered_the_newer_one() {
    let mut world = World::of(&[(1, held(SavedKind::Copy, 7, 2, 90))]);
    world.pass(15_000);
    assert_eq!(world.fates(), [(1, "saved", 8)]);
    world.start(2, held(SavedKind::Owner, 7, 2, 95), &[]);
    world.pass(3_000);
    assert_eq!(world.fates()[1..], [(2, "offered", 8)]);
}

/// On the smaller side of a cut a shard began empty, and its node ended there: the other side, where
/// the owner lived, has moved the shard on since, to an epoch that is as high.
#[test]
fn what_began_by_itself_is_offered_to_who_went_on_without_it() {
    let begun = Some(Beginning { epoch: Epoch { counter: 7, node: NodeId(1) }, from: None });
    for (known, fate) in [(false, (1, "offered", 8)), (true, (1, "dropped", 0))] {
        let begun_there = begun.filter(|_| known);
        let newest = Saved { begun: begun_there, ..saved(SavedKind::Owner, 7, 2, 9) };
        let mut world = World::of(&[(2, BTreeMap::from([(S, newest)]))]);
        world.pass(15_000);
        assert_eq!(world.fates(), [(2, "saved", 8)]);
        let alone = Saved { begun, ..saved(SavedKind::Owner, 7, 1, 3) };
        world.start(1, BTreeMap::from([(S, alone)]), &[]);
        world.pass(3_000);
        assert_eq!(world.fates()[1..], [fate], "known: {known}");
    }
}

/// An owner goes on without copies when those are silent. One of them may have been served since, by
/// who took everybody else for dead.
#[test]
fn what_an_owner_answered_alone_is_offered_to_whoever_took_over() {
    for (alone, fate) in [(true, (2, "offered", 8)), (false, (2, "dropped", 0))] {
        let mut world = World::of(&[(1, held(SavedKind::Owner, 7, 1, 4))]);
        world.pass(15_000);
        assert_eq!(world.fates(), [(1, "saved", 8)]);
        let old = Saved { alone, ..saved(SavedKind::Owner, 6, 2, 9) };
        world.start(2, BTreeMap::from([(S, old)]), &[]);
        world.pass(3_000);
        assert_eq!(world.fates()[1..], [fate], "alone: {alone}");
    }
}

#[test]
fn a_shard_does_not_come_while_the_disk_holds_what_its_owner_is_offered() {
    let mut world = World::of(&[(1, held(SavedKind::Copy, 7, 2, 90))]);
    world.pass(15_000);
    world.start(2, held(SavedKind::Owner, 7, 2, 95), &[]);
    world.pass(3_000);
    let answer = |world: &mut World, number| {
        let shards = vec![ShardEpoch { shard: S, epoch: Epoch { counter: 8, node: NodeId(1) } }];
        let handoff = HandoffId { source: boot(1), number };
        let message = Control::Prepare { handoff, members_digest: 0, shards, drain: true };
        let now = Time::ZERO + Duration::from_millis(world.now_ms);
        let mut out = Vec::new();
        let target = world.machines.get_mut(&NodeId(2)).unwrap();
        target.handle(now, Event::Control { from: boot(1), message }, &mut out);
        out.into_iter().find_map(|action| match action {
            Action::Send { to: NodeId(1), message } => Some(message),
            _ => None,
        })
    };
    let why = NotNow::NotReady;
    let handoff = |number| HandoffId { source: boot(1), number };
    let declined = Control::Declined { handoff: handoff(901), why };
    assert_eq!(answer(&mut world, 901), Some(declined));
    world.queue.push_back((NodeId(2), Event::Offered(vec![S])));
    world.settle();
    assert_eq!(answer(&mut world, 902), Some(Control::Prepared { handoff: handoff(902) }));
}

#[test]
fn a_state_that_is_older_than_a_damaged_one_is_served_and_that_is_said() {
    let mut world =
        World::of(&[(1, held(SavedKind::Damaged, 7, 1, 95)), (2, held(SavedKind::Copy, 7, 1, 90))]);
    world.pass(5_000);
    assert_eq!(world.fates(), [(2, "saved", 8), (1, "dropped", 0)]);
    let note = Action::Note(Note::OlderThanDamaged { n_shards: 1 });
    assert!(world.done.contains(&(2, note)));
}

#[test]
fn a_cluster_that_was_founded_apart_gives_way_to_the_higher_epoch() {
    let mut world = World::of(&[(1, Held::new())]);
    world.pass(15_000);
    world.start(2, held(SavedKind::Owner, 7, 2, 80), &[]);
    world.pass(3_000);
    assert_eq!(world.fates()[1..], [(2, "saved", 8)]);
    let yields = |(node, action): &(u64, Action)| {
        *node == 1 && matches!(action, Action::Yield { to, .. } if *to == boot(2))
    };
    assert!(world.done.iter().any(yields), "the other gives up what it has");
}

#[test]
fn what_is_damaged_is_taken_from_whoever_has_it_whole() {
    let mut world =
        World::of(&[(1, held(SavedKind::Damaged, 7, 1, 90)), (2, held(SavedKind::Copy, 7, 1, 90))]);
    world.pass(5_000);
    assert_eq!(world.fates(), [(2, "saved", 8), (1, "dropped", 0)]);
}

#[test]
fn what_nobody_has_whole_is_set_aside_and_stays_where_it_is() {
    let mut world = World::of(&[(1, Held::new()), (2, held(SavedKind::Damaged, 7, 2, 90))]);
    world.pass(30_000);
    assert_eq!(world.fates(), [(2, "quarantined", 8)]);
    let quarantined: Vec<ShardId> = world.machines[&NodeId(2)].quarantined().collect();
    assert_eq!(quarantined, [S]);
    let moves = |(_, action): &(u64, Action)| matches!(action, Action::Copy { shards, .. } if shards.iter().any(|at| at.shard == S));
    assert!(!world.done.iter().any(moves), "nothing of it can be sent");
    let recovered =
        |(_, action): &(u64, Action)| matches!(action, Action::Note(Note::Recovered { .. }));
    assert!(!world.done.iter().any(recovered));
}

#[test]
fn a_whole_copy_that_comes_later_ends_a_quarantine() {
    let mut world = World::of(&[(1, held(SavedKind::Damaged, 7, 1, 90))]);
    world.pass(15_000);
    assert_eq!(world.fates(), [(1, "quarantined", 8)]);
    world.start(2, held(SavedKind::Copy, 7, 1, 90), &[]);
    world.pass(3_000);
    assert_eq!(world.fates()[1..], [(2, "saved", 9)]);
    assert_eq!(world.machines[&NodeId(1)].quarantined().count(), 0);
}
