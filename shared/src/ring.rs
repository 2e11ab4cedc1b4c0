//! The ring of virtual nodes: in which order a shard prefers the nodes.
//!
//! Every node has [`POINTS_PER_WEIGHT`] points per unit of weight at positions that follow from
//! its id alone, so that a node that comes back finds its old places. Shards stand at even
//! distances on the same circle of 2^64 positions. A shard prefers the node whose next point in
//! clockwise direction (towards larger positions) is nearest.
//!
//! Of the points that one node has between two neighbouring shards only the first can be anybody's
//! nearest. The others are left out, so that no node takes more than one step from shard to shard
//! however large its weight is.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::hash::ShardCount;
use crate::id::{NodeId, ShardId};

/// Points on the ring per unit of weight. With 512, the arcs of 100 equal nodes differ by about
/// 11 % before placement bounds them.
pub const POINTS_PER_WEIGHT: u32 = 512;

/// Above this many points (128 MiB) every node's number of points is halved until they fit, which
/// moves many shards at that moment. Reached when all weights together exceed 16,384.
pub const POINTS_MAX: u64 = 1 << 23;

/// Seed of the hash that gives the points their positions. Part of the wire format.
const POINT_SEED: u64 = 0x5354_4541_445f_5054;

/// One point of a node on the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Where it is.
    pub position: u64,
    /// Whose it is: an index into the list of nodes that the ring was built from.
    pub node_idx: u16,
}

/// The points of all nodes that are the first of their node behind some shard, sorted by
/// position, then by node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    shards: ShardCount,
    points: Vec<Point>,
    /// For each shard the index of the first point at or after it, and the end as last entry.
    starts: Vec<u32>,
}

impl Ring {
    /// The ring of these nodes, given as (id, weight) and sorted by id. Weight 0 has no point.
    ///
    /// # Panics
    /// When there are more than 65,535 nodes, or they are not sorted.
    #[must_use]
    pub fn build(shards: ShardCount, nodes: &[(NodeId, u16)]) -> Self {
        assert!(nodes.len() <= usize::from(u16::MAX), "nodes are counted in 16 bits");
        assert!(nodes.is_sorted_by_key(|(id, _)| *id), "nodes must be sorted by id");
        let halvings = halvings(nodes);
        let mut unsorted = Vec::with_capacity(
            nodes.iter().map(|(_, weight)| n_points(*weight, halvings) as usize).sum(),
        );
        for (idx, &(id, weight)) in (0..).zip(nodes) {
            let points = (0..n_points(weight, halvings))
                .map(|point| Point { position: position_of(id, point), node_idx: idx });
            unsorted.extend(points);
        }
        let mut starts = starts_of_shards(shards, &unsorted);
        let mut points = sort_by_shard(shards, &unsorted, &starts);
        keep_first_of_node(&mut points, &mut starts, nodes.len());
        Self { shards, points, starts }
    }

    /// All points, in order.
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The `step`-th point that `shard` meets on its way round, and how far it is from the
    /// shard. Nothing after a full turn.
    #[must_use]
    #[inline]
    pub fn step(&self, shard: ShardId, step: u32) -> Option<(u64, u16)> {
        let n_points = self.points.len();
        if step as usize >= n_points {
            return None;
        }
        let at = self.starts[shard.0 as usize] as usize + step as usize;
        let point = self.points[if at < n_points { at } else { at - n_points }];
        Some((point.position.wrapping_sub(self.shards.position(shard)), point.node_idx))
    }

    /// The indexes of all nodes with weight, in the order in which `shard` prefers them, each
    /// with its distance.
    pub fn preference(&self, shard: ShardId) -> impl Iterator<Item = (u64, u16)> + '_ {
        let mut seen = vec![];
        (0..).map_while(move |step| self.step(shard, step)).filter(move |(_, node_idx)| {
            let at = usize::from(*node_idx);
            if seen.len() <= at {
                seen.resize(at + 1, false);
            }
            !std::mem::replace(&mut seen[at], true)
        })
    }
}

/// Where point number `point` of a node is.
fn position_of(node: NodeId, point: u32) -> u64 {
    let mut input = [0; 12];
    input[..8].copy_from_slice(&node.0.to_le_bytes());
    input[8..].copy_from_slice(&point.to_le_bytes());
    xxh3_64_with_seed(&input, POINT_SEED)
}

/// How many points a node of this weight has; at least one if it has any weight.
fn n_points(weight: u16, halvings: u32) -> u32 {
    let points = (u32::from(weight) * POINTS_PER_WEIGHT) >> halvings;
    points.max(u32::from(weight > 0))
}

/// How often the number of points must be halved to stay within [`POINTS_MAX`].
fn halvings(nodes: &[(NodeId, u16)]) -> u32 {
    let weights: u64 = nodes.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let points = weights * u64::from(POINTS_PER_WEIGHT);
    points.div_ceil(POINTS_MAX).max(1).next_power_of_two().trailing_zeros()
}

/// Where the points of each shard's arc will begin once they are sorted, and the end.
fn starts_of_shards(shards: ShardCount, points: &[Point]) -> Vec<u32> {
    let mut starts = vec![0; shards.get() as usize + 1];
    for point in points {
        starts[shards.shard_at(point.position).0 as usize + 1] += 1;
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    starts
}

/// Points are spread evenly, so sorting them by their shard leaves only small groups to sort.
fn sort_by_shard(shards: ShardCount, unsorted: &[Point], starts: &[u32]) -> Vec<Point> {
    let mut points = vec![Point::default(); unsorted.len()];
    let mut next = starts.to_vec();
    for point in unsorted {
        let slot = &mut next[shards.shard_at(point.position).0 as usize];
        points[*slot as usize] = *point;
        *slot += 1;
    }
    for arc in starts.windows(2) {
        points[arc[0] as usize..arc[1] as usize].sort_unstable();
    }
    points
}

/// Leaves the first point of each node in each shard's arc.
fn keep_first_of_node(points: &mut Vec<Point>, starts: &mut [u32], n_nodes: usize) {
    let mut last_arc = vec![usize::MAX; n_nodes];
    let (mut kept, mut at) = (0, 0);
    for arc in 0..starts.len() - 1 {
        let end = starts[arc + 1] as usize;
        starts[arc] = kept as u32;
        for from in at..end {
            let point = points[from];
            if std::mem::replace(&mut last_arc[usize::from(point.node_idx)], arc) != arc {
                points[kept] = point;
                kept += 1;
            }
        }
        at = end;
    }
    points.truncate(kept);
    if let Some(end) = starts.last_mut() {
        *end = kept as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(weights: &[u16]) -> Vec<(NodeId, u16)> {
        let named = |(n, weight): (usize, &u16)| (NodeId::of_name(&format!("n{n}")), *weight);
        let mut nodes: Vec<_> = weights.iter().enumerate().map(named).collect();
        nodes.sort_unstable();
        nodes
    }

    #[test]
    fn points_are_sorted_and_as_many_as_the_weight_says() {
        let ring = Ring::build(ShardCount::MAX, &nodes(&[1, 3, 0]));
        assert!(ring.points().is_sorted());
        let n_points = ring.points().len();
        // At 3 * 512 points in 65,536 arcs, 18 pairs are expected to share one.
        assert!((4 * 512 - 36..=4 * 512).contains(&n_points), "{n_points}");
    }

    #[test]
    fn a_node_has_one_point_between_two_shards_and_it_is_the_first() {
        let (id, weight) = (NodeId::of_name("n1"), 4);
        for count in [1, 2, 64] {
            let shards = ShardCount::new(count).unwrap();
            let ring = Ring::build(shards, &[(id, weight)]);
            assert_eq!(ring.points().len(), count as usize);
            for shard in shards.all() {
                let positions = (0..4 * 512).map(|point| position_of(id, point));
                let first = positions.filter(|at| shards.shard_at(*at) == shard).min().unwrap();
                assert_eq!(ring.step(shard, 0), Some((first - shards.position(shard), 0)));
            }
        }
    }

    #[test]
    fn a_shard_meets_every_point_once_by_distance() {
        let shards = ShardCount::new(64).unwrap();
        let ring = Ring::build(shards, &nodes(&[1, 1, 2]));
        for shard in shards.all() {
            let walk: Vec<_> = (0..).map_while(|step| ring.step(shard, step)).collect();
            assert_eq!(walk.len(), ring.points().len());
            assert!(walk.is_sorted());
        }
    }

    #[test]
    fn the_preference_names_each_node_with_weight_once() {
        let shards = ShardCount::new(64).unwrap();
        let nodes = nodes(&[1, 1, 2, 0]);
        let weightless = nodes.iter().position(|(_, weight)| *weight == 0).unwrap();
        let ring = Ring::build(shards, &nodes);
        for shard in shards.all() {
            let order: Vec<_> = ring.preference(shard).collect();
            assert!(order.is_sorted());
            let mut named: Vec<_> = order.iter().map(|(_, idx)| usize::from(*idx)).collect();
            named.sort_unstable();
            assert_eq!(named, (0..4).filter(|idx| *idx != weightless).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_ring_without_nodes_is_empty() {
        let ring = Ring::build(ShardCount::default(), &[]);
        assert_eq!(ring.step(ShardId(7), 0), None);
        assert_eq!(ring.preference(ShardId(7)).count(), 0);
    }

    #[test]
    fn huge_weights_do_not_make_a_huge_ring() {
        assert_eq!(halvings(&nodes(&[1; 100])), 0);
        assert_eq!(halvings(&[(NodeId(1), 16_384)]), 0);
        assert_eq!(halvings(&[(NodeId(1), 16_385)]), 1);
        let halvings = halvings(&nodes(&[u16::MAX, 1]));
        let (large, small) = (n_points(u16::MAX, halvings), n_points(1, halvings));
        assert!(u64::from(large + small) <= POINTS_MAX && small > 0);
        assert_eq!((n_points(1, 31), n_points(0, 31)), (1, 0));
    }
}
