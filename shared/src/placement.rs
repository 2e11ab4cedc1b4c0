//! Placement: which node should own each shard, and which should hold its copies.
//!
//! A pipeline of pure steps from members, weights and pins to a table of targets:
//!
//! 1. **eligible**: nodes that stay and have weight, sorted by id, one entry each;
//! 2. **capacities**: how many shards each of them takes at most;
//! 3. **ring**: in which order each shard prefers them (see [`crate::ring`]);
//! 4. **owners**: a stable matching of shards with nodes within the capacities;
//! 5. **replicas**: one more matching per copy, without the nodes that hold the shard already,
//!    other zones first;
//! 6. **pins**: an overlay; each changes exactly its own shard.
//!
//! The matching is unique (Gale & Shapley 1962; both sides rank by the same score, with ties
//! broken by ids), so that every member with the same input computes the same table, in whatever
//! order it heard of the others. Stable allocation bounded by capacities is how Akamai maps
//! clients to clusters (Maggs & Sitaraman, CCR 2015); here it moves little more than the ideal
//! share of shards when a node comes or goes.

mod matching;

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::hash::ShardCount;
use crate::id::{NodeId, ShardId};
use crate::ring::Ring;
use matching::{Match, NO_NODE};

/// The default capacity factor: a node owns at most 5 % more than its share.
pub const BALANCE_PERMILLE_DEFAULT: u32 = 1050;
/// The smallest capacity factor. Tighter balance moves more shards per change.
pub const BALANCE_PERMILLE_MIN: u32 = 1020;
/// The largest capacity factor.
pub const BALANCE_PERMILLE_MAX: u32 = 1250;
/// Most copies of a shard beside its owner's.
pub const REPLICAS_MAX: u8 = 7;
/// Most nodes that placement tells apart. Later ones, by id, own nothing.
pub const NODES_MAX: usize = 65_534;

/// Copies of one round that a node takes at most, in thousandths of its share.
const REPLICA_BALANCE_PERMILLE: u32 = 1250;
/// Seed of the hash that decides how a node's capacity is rounded. Part of the wire format.
const ROUNDING_SEED: u64 = 0x5354_4541_445f_5550;

/// A node that placement may count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlacementNode {
    /// Who.
    pub id: NodeId,
    /// Hands everything off: capacity 0.
    pub leaving: bool,
    /// Its share in proportion to the others. A node of weight 0 owns nothing.
    pub weight: u16,
    /// Copies of a shard are kept in different zones where possible; 0 for none is a zone too.
    pub zone: u32,
}

/// A shard placed by hand or by heat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// What.
    pub shard: ShardId,
    /// Where. The pin is ignored while that node is absent, leaving or without weight.
    pub node: NodeId,
    /// The highest version of a shard's pins counts; of equal ones the larger node id.
    pub version: u64,
}

/// Everything that decides the targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementInput {
    /// Number of shards.
    pub shards: ShardCount,
    /// Capacity factor in thousandths, taken as the nearest one from
    /// [`BALANCE_PERMILLE_MIN`] to [`BALANCE_PERMILLE_MAX`].
    pub balance_permille: u32,
    /// Copies beside the owner's, at most [`REPLICAS_MAX`]; fewer when there are too few nodes.
    pub replicas: u8,
    /// The nodes, in any order.
    pub nodes: Vec<PlacementNode>,
    /// Overrides, in any order.
    pub pins: Vec<Pin>,
}

impl PlacementInput {
    /// These nodes with default balance, no replicas and no pins.
    #[must_use]
    pub fn of_nodes(shards: ShardCount, nodes: Vec<PlacementNode>) -> Self {
        let balance_permille = BALANCE_PERMILLE_DEFAULT;
        Self { shards, balance_permille, replicas: 0, nodes, pins: vec![] }
    }
}

/// Where placement wants each shard: an immutable table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Targets {
    /// Sorted.
    nodes: Box<[NodeId]>,
    /// For each shard an index into `nodes`, or `NO_NODE`.
    owners: Box<[u16]>,
    /// For each shard `n_replicas` indexes into `nodes`.
    replicas: Box<[u16]>,
    n_replicas: usize,
    digest: u64,
}

impl Targets {
    /// The target of a shard: nothing when no node can own it, or there is no such shard.
    #[must_use]
    #[inline]
    pub fn owner_of(&self, shard: ShardId) -> Option<NodeId> {
        let idx = *self.owners.get(shard.0 as usize)?;
        self.nodes.get(usize::from(idx)).copied()
    }

    /// The nodes that should hold copies of a shard, the first choice for its owner's successor
    /// first. All different, none the owner.
    pub fn replicas_of(&self, shard: ShardId) -> impl Iterator<Item = NodeId> + '_ {
        let begin = shard.0 as usize * self.n_replicas;
        let idxs = self.replicas.get(begin..begin + self.n_replicas).unwrap_or_default();
        idxs.iter().filter_map(|idx| self.nodes.get(usize::from(*idx)).copied())
    }

    /// The shards that `node` should own, in order.
    pub fn shards_of(&self, node: NodeId) -> impl Iterator<Item = ShardId> + '_ {
        let of_node = self.nodes.binary_search(&node).ok();
        let owned = (0..)
            .zip(self.owners.iter())
            .filter(move |(_, idx)| of_node.is_some_and(|of_node| of_node == usize::from(**idx)));
        owned.map(|(shard, _)| ShardId(shard))
    }

    /// How many shards each node should own, sorted by node.
    #[must_use]
    pub fn counts(&self) -> Vec<(NodeId, u32)> {
        let mut counts: Vec<_> = self.nodes.iter().map(|node| (*node, 0)).collect();
        for idx in &self.owners {
            if let Some((_, count)) = counts.get_mut(usize::from(*idx)) {
                *count += 1;
            }
        }
        counts
    }

    /// The nodes that can own shards, sorted.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// How many shards there are.
    #[must_use]
    pub fn n_shards(&self) -> u32 {
        self.owners.len() as u32
    }

    /// Copies of each shard beside its owner's.
    #[must_use]
    pub fn n_replicas(&self) -> usize {
        self.n_replicas
    }

    /// Hash of everything that decided this table. Equal digests, equal targets; it has no order.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The shards whose owner differs in `newer`, each with the old and the new owner.
    pub fn moves_to<'a>(
        &'a self,
        newer: &'a Self,
    ) -> impl Iterator<Item = (ShardId, Option<NodeId>, Option<NodeId>)> + 'a {
        let n_shards = self.n_shards().max(newer.n_shards());
        let owners = (0..n_shards).map(ShardId).map(|shard| {
            let (from, to) = (self.owner_of(shard), newer.owner_of(shard));
            (shard, from, to)
        });
        owners.filter(|(_, from, to)| from != to)
    }
}

/// The targets of these members: a pure function of the *sets* of nodes and pins.
///
/// Takes milliseconds (16,384 shards, 100 nodes): not for the request path.
#[must_use]
pub fn place(input: &PlacementInput) -> Targets {
    let nodes = eligible(&input.nodes);
    let pins = pins_in_force(input, &nodes);
    let digest = digest_of(input, &nodes, &pins);
    let n_shards = input.shards.get() as usize;

    let weights: Vec<_> = nodes.iter().map(|node| (node.id, node.weight)).collect();
    let ring = Ring::build(input.shards, &weights);
    let zones = zone_idxs(&nodes);
    let n_replicas =
        usize::from(input.replicas.min(REPLICAS_MAX)).min(nodes.len().saturating_sub(1));

    // One row per round: the owners, then each copy. A round sees the rows before it.
    let mut rows: Vec<Vec<u16>> = Vec::with_capacity(1 + n_replicas);
    if nodes.is_empty() {
        rows.push(vec![NO_NODE; n_shards]);
    }
    for round in rows.len()..1 + n_replicas {
        let capacities = match round {
            0 => owner_capacities(input, &nodes),
            _ => replica_capacities(input.shards, &nodes),
        };
        let row = Match::new(input.shards, &ring, &zones, &capacities, &rows).settle();
        rows.push(row);
    }
    for (shard, node) in pins {
        overlay(&mut rows, shard.0 as usize, node, &zones);
    }

    let mut replicas = vec![NO_NODE; n_shards * n_replicas];
    for (copy, row) in rows.iter().skip(1).enumerate() {
        for (shard, node) in row.iter().enumerate() {
            replicas[shard * n_replicas + copy] = *node;
        }
    }
    Targets {
        nodes: nodes.iter().map(|node| node.id).collect(),
        owners: rows.swap_remove(0).into(),
        replicas: replicas.into(),
        n_replicas,
        digest,
    }
}

/// Nodes that stay and have weight, sorted by id, one entry each.
fn eligible(nodes: &[PlacementNode]) -> Vec<PlacementNode> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    // An id given twice counts once, and is leaving only if every mention of it is.
    nodes.dedup_by_key(|node| node.id);
    nodes.retain(|node| !node.leaving && node.weight > 0);
    nodes.truncate(NODES_MAX);
    nodes
}

/// One pin per shard, sorted by shard, as indexes into the eligible nodes.
fn pins_in_force(input: &PlacementInput, nodes: &[PlacementNode]) -> Vec<(ShardId, u16)> {
    let mut pins: Vec<_> = input
        .pins
        .iter()
        .filter(|pin| input.shards.contains(pin.shard))
        .map(|pin| (pin.shard, std::cmp::Reverse((pin.version, pin.node))))
        .collect();
    pins.sort_unstable();
    pins.dedup_by_key(|(shard, _)| *shard);
    let placed = pins.into_iter().filter_map(|(shard, std::cmp::Reverse((_, node)))| {
        let idx = nodes.binary_search_by_key(&node, |node| node.id).ok()?;
        Some((shard, idx as u16))
    });
    placed.collect()
}

/// For each node the number of its zone, counted from 0.
fn zone_idxs(nodes: &[PlacementNode]) -> Vec<u16> {
    let mut zones: Vec<_> = nodes.iter().map(|node| node.zone).collect();
    zones.sort_unstable();
    zones.dedup();
    nodes.iter().map(|node| zones.partition_point(|zone| *zone < node.zone) as u16).collect()
}

/// How many shards each node owns at most: `floor(c * S * w / W + u)`, with u in [0, 1) a hash of
/// the node, so that not every node sheds a shard at the moment when the fraction steps. Together
/// at least as many as there are shards.
fn owner_capacities(input: &PlacementInput, nodes: &[PlacementNode]) -> Vec<u32> {
    let permille = input.balance_permille.clamp(BALANCE_PERMILLE_MIN, BALANCE_PERMILLE_MAX);
    let hashed = |node: &PlacementNode| {
        Rounding::Add(xxh3_64_with_seed(&node.id.0.to_le_bytes(), ROUNDING_SEED) as u32)
    };
    let capacities = shares(input.shards, permille, nodes, hashed);
    let sum: u64 = capacities.iter().map(|capacity| u64::from(*capacity)).sum();
    if sum < u64::from(input.shards.get()) {
        return shares(input.shards, permille, nodes, |_| Rounding::Up);
    }
    capacities
}

/// How many copies of one round each node takes at most; one at least.
fn replica_capacities(shards: ShardCount, nodes: &[PlacementNode]) -> Vec<u32> {
    let mut capacities = shares(shards, REPLICA_BALANCE_PERMILLE, nodes, |_| Rounding::Add(0));
    capacities.iter_mut().for_each(|capacity| *capacity = (*capacity).max(1));
    capacities
}

/// How a share becomes a whole number.
enum Rounding {
    /// Add this many 2^-32, then round down.
    Add(u32),
    Up,
}

/// `permille / 1000 * shards * weight / weights` for each node, rounded.
fn shares(
    shards: ShardCount,
    permille: u32,
    nodes: &[PlacementNode],
    rounding: impl Fn(&PlacementNode) -> Rounding,
) -> Vec<u32> {
    let weights: u128 = nodes.iter().map(|node| u128::from(node.weight)).sum();
    let whole = 1000 * weights;
    let share = |node: &PlacementNode| {
        let part = u128::from(permille) * u128::from(shards.get()) * u128::from(node.weight);
        let rounded = match rounding(node) {
            Rounding::Add(fraction) => {
                ((part << 32) + whole * u128::from(fraction)) / (whole << 32)
            }
            Rounding::Up => part.div_ceil(whole),
        };
        rounded as u32
    };
    nodes.iter().map(share).collect()
}

/// Makes `node` the owner of `shard`. Where it held a copy, the owner that gives way takes that;
/// it also takes the last copy when all others would be in the new owner's zone and it is not.
fn overlay(rows: &mut [Vec<u16>], shard: usize, node: u16, zones: &[u16]) {
    let Some((owners, copies)) = rows.split_first_mut() else { return };
    let former = std::mem::replace(&mut owners[shard], node);
    if former == node || copies.is_empty() {
        return;
    }
    let zone_of = |idx: u16| zones[usize::from(idx)];
    let held = copies.iter().position(|row| row[shard] == node);
    let one_zone = zone_of(former) != zone_of(node)
        && copies.iter().all(|row| zone_of(row[shard]) == zone_of(node));
    if let Some(copy) = held.or_else(|| one_zone.then(|| copies.len() - 1)) {
        copies[copy][shard] = former;
    }
}

/// Hash of what decides the table, once what does not matter is gone.
fn digest_of(input: &PlacementInput, nodes: &[PlacementNode], pins: &[(ShardId, u16)]) -> u64 {
    let mut hash = Xxh3::new();
    let mut add = |value: u64| hash.update(&value.to_le_bytes());
    add(u64::from(input.shards.get()));
    add(u64::from(input.balance_permille.clamp(BALANCE_PERMILLE_MIN, BALANCE_PERMILLE_MAX)));
    add(u64::from(input.replicas.min(REPLICAS_MAX)));
    add(nodes.len() as u64);
    for node in nodes {
        add(node.id.0);
        add(u64::from(node.weight) << 32 | u64::from(node.zone));
    }
    for (shard, idx) in pins {
        add(u64::from(shard.0) << 16 | u64::from(*idx));
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: usize, weight: u16, zone: u32) -> PlacementNode {
        PlacementNode { id: NodeId::of_name(&format!("n{n}")), leaving: false, weight, zone }
    }

    fn input(count: u32, nodes: Vec<PlacementNode>) -> PlacementInput {
        PlacementInput::of_nodes(ShardCount::new(count).unwrap(), nodes)
    }

    #[test]
    fn without_nodes_no_shard_has_an_owner() {
        let targets = place(&input(64, vec![]));
        assert_eq!(targets.owner_of(ShardId(0)), None);
        assert_eq!(targets.replicas_of(ShardId(0)).count(), 0);
        assert_eq!((targets.n_shards(), targets.nodes().len()), (64, 0));
    }

    #[test]
    fn one_node_owns_everything_and_nothing_beyond() {
        let targets = place(&input(64, vec![node(1, 1, 0)]));
        assert_eq!(targets.shards_of(NodeId::of_name("n1")).count(), 64);
        assert_eq!(targets.owner_of(ShardId(64)), None);
        assert_eq!(targets.replicas_of(ShardId(64)).count(), 0);
    }

    #[test]
    fn a_pin_changes_exactly_its_shard() {
        let nodes = (0..5).map(|n| node(n, 1, n as u32 % 2)).collect();
        let mut input = PlacementInput { replicas: 2, ..input(256, nodes) };
        let before = place(&input);
        let shard = ShardId(77);
        for to in before.nodes().to_vec() {
            input.pins = vec![Pin { shard, node: to, version: 1 }];
            let after = place(&input);
            assert_eq!(after.owner_of(shard), Some(to));
            assert!(after.replicas_of(shard).all(|replica| replica != to));
            for other in input.shards.all().filter(|other| *other != shard) {
                assert_eq!(before.owner_of(other), after.owner_of(other));
                assert!(before.replicas_of(other).eq(after.replicas_of(other)));
            }
            assert_ne!(before.digest(), after.digest());
        }
    }

    #[test]
    fn a_pin_to_a_node_that_is_absent_leaving_or_without_weight_is_ignored() {
        let mut nodes: Vec<_> = (0..4).map(|n| node(n, 1, 0)).collect();
        nodes[1].leaving = true;
        nodes[2].weight = 0;
        let mut input = input(64, nodes);
        let before = place(&input);
        for name in ["n1", "n2", "nobody"] {
            let node = NodeId::of_name(name);
            input.pins = vec![Pin { shard: ShardId(3), node, version: 1 }];
            assert_eq!(place(&input), before, "{name}");
        }
        input.pins[0].shard = ShardId(64);
        assert_eq!(place(&input), before);
    }

    #[test]
    fn the_newest_pin_of_a_shard_counts() {
        let mut input = input(64, (0..3).map(|n| node(n, 1, 0)).collect());
        let pin =
            |name: &str, version| Pin { shard: ShardId(5), node: NodeId::of_name(name), version };
        input.pins = vec![pin("n0", 1), pin("n1", 3), pin("n2", 2)];
        assert_eq!(place(&input).owner_of(ShardId(5)), Some(NodeId::of_name("n1")));
        input.pins.reverse();
        assert_eq!(place(&input).owner_of(ShardId(5)), Some(NodeId::of_name("n1")));
        // The newest is for a node that is not there: an older one does not come back to life.
        input.pins.push(pin("nobody", 4));
        let unpinned = place(&PlacementInput { pins: vec![], ..input.clone() });
        assert_eq!(place(&input), unpinned);
    }

    #[test]
    fn the_owner_that_gives_way_to_a_pin_keeps_a_copy_where_needed() {
        let nodes = vec![node(0, 1, 1), node(1, 1, 2)];
        let mut input = PlacementInput { replicas: 1, ..input(16, nodes) };
        let before = place(&input);
        for shard in input.shards.all() {
            let (owner, copy) = (before.owner_of(shard), before.replicas_of(shard).next());
            input.pins = vec![Pin { shard, node: copy.unwrap(), version: 1 }];
            let after = place(&input);
            assert_eq!((after.owner_of(shard), after.replicas_of(shard).next()), (copy, owner));
        }
    }

    #[test]
    fn leaving_is_as_good_as_gone_for_the_targets() {
        let mut nodes: Vec<_> = (0..5).map(|n| node(n, 1, 0)).collect();
        nodes[3].leaving = true;
        let leaving = place(&input(256, nodes.clone()));
        nodes.remove(3);
        assert_eq!(leaving, place(&input(256, nodes)));
    }

    #[test]
    fn copies_are_kept_in_another_zone_where_there_is_one() {
        let nodes = (0..9).map(|n| node(n, 1, n as u32 % 3)).collect::<Vec<_>>();
        let zone = |id| nodes.iter().find(|node| node.id == id).unwrap().zone;
        let input = PlacementInput { replicas: 2, ..input(1024, nodes.clone()) };
        let targets = place(&input);
        for shard in input.shards.all() {
            let mut zones: Vec<_> = targets.replicas_of(shard).map(zone).collect();
            zones.push(zone(targets.owner_of(shard).unwrap()));
            zones.sort_unstable();
            assert_eq!(zones, [0, 1, 2], "{shard}");
        }
    }

    #[test]
    fn a_small_zone_takes_the_copies_it_has_room_for_and_no_search_is_endless() {
        let nodes: Vec<_> = (0..40).map(|n| node(n, 1, u32::from(n < 4))).collect();
        let input = PlacementInput { replicas: 1, ..input(4096, nodes.clone()) };
        let targets = place(&input);
        let small: Vec<_> = nodes[..4].iter().map(|node| node.id).collect();
        let copies = |node: NodeId| {
            input.shards.all().filter(|s| targets.replicas_of(*s).any(|r| r == node)).count()
        };
        for node in small {
            assert_eq!(copies(node), 4096 * 5 / 4 / 40);
        }
    }

    #[test]
    fn with_two_nodes_each_holds_what_the_other_owns_whatever_their_room() {
        let input = PlacementInput { replicas: 3, ..input(64, vec![node(0, 9, 0), node(1, 1, 0)]) };
        let targets = place(&input);
        assert_eq!(targets.n_replicas(), 1);
        for shard in input.shards.all() {
            let holders = [targets.owner_of(shard), targets.replicas_of(shard).next()];
            assert!(holders[0].is_some() && holders[1].is_some() && holders[0] != holders[1]);
        }
    }

    #[test]
    fn more_nodes_than_shards_is_no_problem() {
        for n in [2, 17, 40] {
            let input = PlacementInput {
                replicas: 2,
                ..input(16, (0..n).map(|n| node(n, 1 + n as u16 % 3, 0)).collect())
            };
            let targets = place(&input);
            assert!(input.shards.all().all(|shard| targets.owner_of(shard).is_some()));
        }
    }

    #[test]
    fn moves_name_old_and_new_owner() {
        let mut nodes: Vec<_> = (0..3).map(|n| node(n, 1, 0)).collect();
        let three = place(&input(64, nodes.clone()));
        let gone = nodes.pop().unwrap().id;
        let two = place(&input(64, nodes));
        let moves: Vec<_> = three.moves_to(&two).collect();
        assert!(moves.iter().all(|(_, from, to)| from != to && *to != Some(gone)));
        assert!(three.shards_of(gone).all(|shard| moves.iter().any(|(s, ..)| *s == shard)));
        assert_eq!(two.moves_to(&two).count(), 0);
    }
}
