//! Properties of placement, for any cluster.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use stead_shared::hash::ShardCount;
use stead_shared::id::{NodeId, ShardId};
use stead_shared::placement::{Pin, PlacementInput, PlacementNode, Targets, place};
use stead_shared::ring::Ring;
use xxhash_rust::xxh3::xxh3_64_with_seed;

fn a_node() -> impl Strategy<Value = PlacementNode> {
    let leaving = prop::bool::weighted(0.1);
    (any::<u64>(), leaving, 0..4u16, 0..3u32).prop_map(|(id, leaving, weight, zone)| {
        PlacementNode { id: NodeId(id), leaving, weight, zone }
    })
}

fn a_cluster(shards: &'static [u32]) -> impl Strategy<Value = PlacementInput> {
    let pin = (any::<Index>(), any::<u32>(), 0..3u64);
    (vec(a_node(), 0..12), select(shards), 1020..=1250u32, 0..4u8, vec(pin, 0..4)).prop_map(
        |(nodes, shards, balance_permille, replicas, pins)| {
            let pin = |(node, shard, version): (Index, u32, u64)| {
                (!nodes.is_empty()).then(|| Pin {
                    shard: ShardId(shard % shards),
                    node: node.get(&nodes).id,
                    version,
                })
            };
            let pins = pins.into_iter().filter_map(pin).collect();
            let shards = ShardCount::new(shards).unwrap();
            PlacementInput { shards, balance_permille, replicas, nodes, pins }
        },
    )
}

fn may_own(input: &PlacementInput) -> Vec<PlacementNode> {
    input.nodes.iter().filter(|node| !node.leaving && node.weight > 0).copied().collect()
}

fn equal_nodes(n_nodes: usize, salt: u64) -> Vec<PlacementNode> {
    let id = |n| NodeId::of_name(&format!("{salt}-{n}"));
    (0..n_nodes).map(|n| PlacementNode { id: id(n), leaving: false, weight: 1, zone: 0 }).collect()
}

fn moved(from: &Targets, to: &Targets) -> f64 {
    from.moves_to(to).count() as f64
}

/// The stable matching as its definition has it: of all pairs of a shard and a node, the best
/// first, as long as both have room. Quadratic, and nothing in common with the production code
/// but the ring.
fn by_definition(input: &PlacementInput) -> Vec<Vec<NodeId>> {
    let mut nodes = may_own(input);
    nodes.sort_unstable();
    let weights: Vec<_> = nodes.iter().map(|node| (node.id, node.weight)).collect();
    let ring = Ring::build(input.shards, &weights);
    let mut holders: Vec<Vec<usize>> = vec![vec![]; input.shards.get() as usize];
    for round in 0..=usize::from(input.replicas).min(nodes.len() - 1) {
        let mut room =
            if round == 0 { owner_room(input, &nodes) } else { copy_room(input, &nodes) };
        let mut pairs = vec![];
        for shard in input.shards.all() {
            let held = &holders[shard.0 as usize];
            for (distance, node) in ring.preference(shard) {
                let node = usize::from(node);
                let zone_is_taken = held.iter().any(|h| nodes[*h].zone == nodes[node].zone);
                if !held.contains(&node) {
                    pairs.push((zone_is_taken, distance, node, shard));
                }
            }
        }
        pairs.sort_unstable();
        let mut placed = BTreeMap::new();
        for (_, _, node, shard) in &pairs {
            if room[*node] > 0 && !placed.contains_key(shard) {
                room[*node] -= 1;
                placed.insert(*shard, *node);
            }
        }
        for (_, _, node, shard) in pairs {
            placed.entry(shard).or_insert(node);
        }
        for (shard, node) in placed {
            holders[shard.0 as usize].push(node);
        }
    }
    let named = |held: Vec<usize>| held.into_iter().map(|idx| nodes[idx].id).collect();
    holders.into_iter().map(named).collect()
}

/// `floor(c * S * w / W + u)` with u from the hash of the node, or all rounded up.
fn owner_room(input: &PlacementInput, nodes: &[PlacementNode]) -> Vec<u64> {
    let weights: u128 = nodes.iter().map(|node| u128::from(node.weight)).sum();
    let part = |node: &PlacementNode| {
        u128::from(input.balance_permille)
            * u128::from(input.shards.get())
            * u128::from(node.weight)
    };
    let hash = |node: &PlacementNode| {
        u128::from(xxh3_64_with_seed(&node.id.0.to_le_bytes(), 0x5354_4541_445f_5550) as u32)
    };
    let rounded =
        |node| ((part(node) << 32) + hash(node) * 1000 * weights) / ((1000 * weights) << 32);
    let room: Vec<_> = nodes.iter().map(|node| rounded(node) as u64).collect();
    if room.iter().sum::<u64>() < u64::from(input.shards.get()) {
        return nodes.iter().map(|node| part(node).div_ceil(1000 * weights) as u64).collect();
    }
    room
}

/// 1.25 times the mean, 1 at least.
fn copy_room(input: &PlacementInput, nodes: &[PlacementNode]) -> Vec<u64> {
    let weights: u64 = nodes.iter().map(|node| u64::from(node.weight)).sum();
    let room = |node: &PlacementNode| {
        (5 * u64::from(input.shards.get()) * u64::from(node.weight) / (4 * weights)).max(1)
    };
    nodes.iter().map(room).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_the_one_stable_matching(input in a_cluster(&[1, 4, 32, 64])) {
        let input = PlacementInput { pins: vec![], ..input };
        prop_assume!(!may_own(&input).is_empty());
        let targets = place(&input);
        for (shard, expected) in input.shards.all().zip(by_definition(&input)) {
            let found: Vec<_> =
                targets.owner_of(shard).into_iter().chain(targets.replicas_of(shard)).collect();
            prop_assert_eq!(found, expected, "{:?}", shard);
        }
    }

    #[test]
    fn the_order_of_members_and_pins_does_not_matter(
        (input, shuffled) in a_cluster(&[16, 256, 1024]).prop_flat_map(|input| {
            let nodes = Just(input.nodes.clone()).prop_shuffle();
            let pins = Just(input.pins.clone()).prop_shuffle();
            (Just(input), nodes, pins).prop_map(|(input, nodes, pins)| {
                (input.clone(), PlacementInput { nodes, pins, ..input })
            })
        })
    ) {
        prop_assert_eq!(place(&input), place(&shuffled));
    }

    #[test]
    fn every_shard_has_exactly_one_owner_that_may_own_whenever_there_is_one(
        input in a_cluster(&[1, 16, 256])
    ) {
        let allowed: BTreeSet<_> = may_own(&input).iter().map(|node| node.id).collect();
        let targets = place(&input);
        for shard in input.shards.all() {
            match targets.owner_of(shard) {
                Some(owner) => prop_assert!(allowed.contains(&owner)),
                None => prop_assert!(allowed.is_empty()),
            }
        }
        let counted: u32 = targets.counts().iter().map(|(_, count)| count).sum();
        prop_assert_eq!(counted, if allowed.is_empty() { 0 } else { input.shards.get() });
        for (node, count) in targets.counts() {
            prop_assert_eq!(targets.shards_of(node).count(), count as usize);
        }
    }

    #[test]
    fn no_node_owns_more_than_its_share_times_the_factor(input in a_cluster(&[64, 256, 1024])) {
        let input = PlacementInput { pins: vec![], ..input };
        let nodes = may_own(&input);
        let weights: u64 = nodes.iter().map(|node| u64::from(node.weight)).sum();
        for (id, count) in place(&input).counts() {
            let weight = nodes.iter().find(|node| node.id == id).unwrap().weight;
            let share = u64::from(input.balance_permille) * u64::from(input.shards.get())
                * u64::from(weight);
            // Rounded to one of the two whole numbers beside it.
            prop_assert!(u64::from(count) <= share / (1000 * weights) + 1, "{} has {}", id, count);
        }
    }

    #[test]
    fn copies_are_on_nodes_of_their_own(input in a_cluster(&[16, 256])) {
        let targets = place(&input);
        let n_nodes = may_own(&input).len();
        for shard in input.shards.all() {
            let replicas: Vec<_> = targets.replicas_of(shard).collect();
            let holders: BTreeSet<_> =
                replicas.iter().copied().chain(targets.owner_of(shard)).collect();
            prop_assert_eq!(replicas.len(), usize::from(input.replicas).min(n_nodes.max(1) - 1));
            prop_assert!(n_nodes == 0 || holders.len() == replicas.len() + 1);
        }
    }

    #[test]
    fn pins_change_their_shards_and_no_others(input in a_cluster(&[16, 256])) {
        let pinned = place(&input);
        let free = place(&PlacementInput { pins: vec![], ..input.clone() });
        for (shard, _, to) in free.moves_to(&pinned) {
            prop_assert!(input.pins.iter().any(|pin| pin.shard == shard && Some(pin.node) == to));
        }
        let is_pinned = |shard| input.pins.iter().any(|pin| pin.shard == shard);
        for shard in input.shards.all().filter(|shard| !is_pinned(*shard)) {
            prop_assert!(free.replicas_of(shard).eq(pinned.replicas_of(shard)));
        }
    }

    #[test]
    fn who_leaves_and_comes_back_finds_everything_as_it_was(
        (input, gone) in (a_cluster(&[256, 1024]), any::<Index>())
    ) {
        prop_assume!(!input.nodes.is_empty());
        let before = place(&input);
        let mut without = input.clone();
        let node = without.nodes.remove(gone.index(input.nodes.len()));
        let meanwhile = place(&without);
        prop_assert_eq!(meanwhile.shards_of(node.id).count(), 0);
        without.nodes.push(node);
        prop_assert_eq!(place(&without), before);
    }

    #[test]
    fn equal_digests_are_equal_tables(a in a_cluster(&[16]), b in a_cluster(&[16])) {
        let (a, b) = (place(&a), place(&b));
        prop_assert!(a == b || a.digest() != b.digest());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_join_moves_little_more_than_the_share_of_the_joiner(
        n_nodes in 2..12usize, salt: u64
    ) {
        let shards = ShardCount::new(2048).unwrap();
        let nodes = equal_nodes(n_nodes + 1, salt);
        let after = place(&PlacementInput::of_nodes(shards, nodes.clone()));
        let before = place(&PlacementInput::of_nodes(shards, nodes[..n_nodes].to_vec()));
        let ideal = 2048.0 / (n_nodes + 1) as f64;
        prop_assert!(moved(&before, &after) <= 1.4 * ideal, "{}", moved(&before, &after) / ideal);
        // Read backwards it is a leave or a death.
        let orphans = after.shards_of(nodes[n_nodes].id).count() as f64;
        prop_assert!(moved(&after, &before) <= 1.4 * orphans);
    }
}

/// The numbers that operators are promised, at the size they are promised for.
#[test]
fn a_hundred_nodes_are_even_and_a_join_moves_at_most_a_third_more_than_it_must() {
    let shards = ShardCount::default();
    let nodes = equal_nodes(101, 1);
    let before = place(&PlacementInput::of_nodes(shards, nodes[..100].to_vec()));
    let after = place(&PlacementInput::of_nodes(shards, nodes));
    let most = before.counts().into_iter().map(|(_, count)| count).max().unwrap();
    assert!(f64::from(most) <= 1.06 * 163.84, "{most}");
    assert!(moved(&before, &after) <= 1.33 * 16_384.0 / 101.0, "{}", moved(&before, &after));
}

#[test]
fn a_dead_nodes_shards_fall_to_the_nodes_that_hold_their_copies() {
    let nodes = equal_nodes(30, 2);
    let input =
        PlacementInput { replicas: 1, ..PlacementInput::of_nodes(ShardCount::default(), nodes) };
    let before = place(&input);
    let dead = input.nodes[7].id;
    let after = place(&PlacementInput {
        nodes: equal_nodes(30, 2).into_iter().filter(|n| n.id != dead).collect(),
        ..input
    });
    let orphans: Vec<_> = before.shards_of(dead).collect();
    let promoted = orphans
        .iter()
        .filter(|shard| before.replicas_of(**shard).next() == after.owner_of(**shard))
        .count();
    assert!(promoted * 100 >= orphans.len() * 95, "{promoted} of {}", orphans.len());
}
