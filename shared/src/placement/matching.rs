//! Stable matching of shards with nodes.
//!
//! Shards propose to the nodes in the order of their preference, a node keeps the best it has
//! room for, and a shard that is put out proposes on. Both sides rank a pair by the same
//! [`Rank`], ties are broken by ids, so there is exactly one stable matching and the order of
//! the proposals does not matter.

use std::collections::BinaryHeap;

use crate::hash::ShardCount;
use crate::id::ShardId;
use crate::ring::Ring;

/// In a row: no node.
pub(super) const NO_NODE: u16 = u16::MAX;

/// Fruitless steps before a shard asks whether its search still has a chance.
const PATIENCE: u32 = 32;

/// How well a shard and a node fit, less is better: class, then clockwise distance, then shard
/// id, in one number. Class 1 is a node in a zone that holds the shard already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u128);

impl Rank {
    const BEST: Self = Self(0);
    const WORST: Self = Self(u128::MAX);

    fn new(class: u8, distance: u64, shard: ShardId) -> Self {
        Self(u128::from(class) << 96 | u128::from(distance) << 32 | u128::from(shard.0))
    }

    fn class(self) -> u8 {
        (self.0 >> 96) as u8
    }

    fn shard(self) -> ShardId {
        ShardId(self.0 as u32)
    }
}

/// A shard's search for a node: which class it tries, and its next step round the ring.
#[derive(Clone, Copy, Debug)]
struct Search {
    shard: ShardId,
    class: u8,
    step: u32,
}

/// One round of matching: every shard gets one node that does not hold it yet.
pub(super) struct Match<'a> {
    shards: ShardCount,
    ring: &'a Ring,
    /// For each node its zone.
    zones: &'a [u16],
    n_zones: usize,
    /// For each node how many shards it takes.
    capacities: &'a [u32],
    /// Who holds each shard already: the results of the rounds before.
    rows: &'a [Vec<u16>],
    /// For each node what it keeps, the worst on top.
    kept: Vec<BinaryHeap<Rank>>,
    /// For each shard the step after the one that its node was found at.
    steps: Vec<u32>,
    /// For each zone its least choosy nodes with their cutoffs, one more than a shard can have
    /// holders. May be out of date, but only on the safe side, as nodes only become choosier.
    cutoffs: Vec<Vec<(Rank, u16)>>,
    /// Steps since `cutoffs` were made.
    age: usize,
    stranded: Vec<ShardId>,
}

impl<'a> Match<'a> {
    pub(super) fn new(
        shards: ShardCount,
        ring: &'a Ring,
        zones: &'a [u16],
        capacities: &'a [u32],
        rows: &'a [Vec<u16>],
    ) -> Self {
        let n_zones = zones.iter().max().map_or(0, |last| usize::from(*last) + 1);
        let room =
            |capacity: &u32| BinaryHeap::with_capacity((*capacity).min(shards.get()) as usize);
        Self {
            shards,
            ring,
            zones,
            n_zones,
            capacities,
            rows,
            kept: capacities.iter().map(room).collect(),
            steps: vec![0; shards.get() as usize],
            cutoffs: vec![],
            age: usize::MAX,
            stranded: vec![],
        }
    }

    /// The node of each shard. A shard that no node has room for gets the first that does not
    /// hold it; none at all only if every node does.
    pub(super) fn settle(mut self) -> Vec<u16> {
        for shard in self.shards.all() {
            let mut search = Some(Search { shard, class: self.first_class(shard), step: 0 });
            while let Some(open) = search {
                search = self.propose(open);
            }
        }
        let mut row = vec![NO_NODE; self.shards.get() as usize];
        for (node_idx, kept) in (0..).zip(&self.kept) {
            for rank in kept {
                row[rank.shard().0 as usize] = node_idx;
            }
        }
        for shard in &self.stranded {
            row[shard.0 as usize] = self.first_eligible(*shard);
        }
        row
    }

    /// Proposes from node to node until one accepts or none is left. Returns the search of the
    /// shard that was put out for it, if one was.
    fn propose(&mut self, mut search: Search) -> Option<Search> {
        let mut fruitless = 0u32;
        loop {
            while let Some((distance, node_idx)) = self.ring.step(search.shard, search.step) {
                search.step += 1;
                let rank = Rank::new(search.class, distance, search.shard);
                // A second point of a node that refused at the first: it refuses again.
                if rank < self.cutoff(usize::from(node_idx))
                    && self.class_of(search.shard, node_idx) == Some(search.class)
                {
                    return self.accept(node_idx, rank, search.step);
                }
                fruitless += 1;
                if fruitless >= PATIENCE && fruitless.is_power_of_two() {
                    self.age = self.age.saturating_add(fruitless as usize);
                    if self.is_hopeless(rank) {
                        break;
                    }
                }
            }
            if self.rows.is_empty() || search.class == 1 {
                self.stranded.push(search.shard);
                return None;
            }
            search = Search { class: 1, step: 0, ..search };
        }
    }

    /// The node keeps the shard and puts out its worst if it is full.
    fn accept(&mut self, node_idx: u16, rank: Rank, step: u32) -> Option<Search> {
        self.steps[rank.shard().0 as usize] = step;
        let kept = &mut self.kept[usize::from(node_idx)];
        if kept.len() < self.capacities[usize::from(node_idx)] as usize {
            kept.push(rank);
            return None;
        }
        let out = std::mem::replace(&mut *kept.peek_mut()?, rank);
        let shard = out.shard();
        Some(Search { shard, class: out.class(), step: self.steps[shard.0 as usize] })
    }

    /// Only what ranks better than this is taken by the node.
    fn cutoff(&self, node_idx: usize) -> Rank {
        let kept = &self.kept[node_idx];
        if kept.len() < self.capacities[node_idx] as usize {
            return Rank::WORST;
        }
        kept.peek().copied().unwrap_or(Rank::BEST)
    }

    /// How the shard sees the node: 0 in a zone of its own, 1 in a zone that holds the shard
    /// already, nothing for a node that does.
    fn class_of(&self, shard: ShardId, node_idx: u16) -> Option<u8> {
        let zone = self.zones[usize::from(node_idx)];
        let mut class = 0;
        for row in self.rows {
            let holder = row[shard.0 as usize];
            if holder == node_idx {
                return None;
            }
            class |= u8::from(self.zones[usize::from(holder)] == zone);
        }
        Some(class)
    }

    /// 1 where all zones hold the shard already, so that nothing of class 0 can be found.
    fn first_class(&self, shard: ShardId) -> u8 {
        if self.rows.len() < self.n_zones {
            return 0;
        }
        u8::from((0..self.n_zones).all(|zone| self.is_held_in(shard, zone)))
    }

    fn is_held_in(&self, shard: ShardId, zone: usize) -> bool {
        let holders = self.rows.iter().map(|row| usize::from(row[shard.0 as usize]));
        holders.map(|holder| usize::from(self.zones[holder])).any(|held| held == zone)
    }

    /// Whether every node of the class refuses at this rank, and so at all that follow. Without
    /// this question the shards of a large zone would go round the whole ring to learn that a
    /// small one is full.
    fn is_hopeless(&mut self, rank: Rank) -> bool {
        // A renewal costs a visit to each node: only after several times as many steps.
        if self.age > 4 * self.kept.len() {
            self.renew_cutoffs();
        }
        let class = Some(rank.class());
        let open = |zone: &Vec<(Rank, u16)>| {
            let mut of_class =
                zone.iter().filter(|(_, node_idx)| self.class_of(rank.shard(), *node_idx) == class);
            of_class.next().is_some_and(|(cutoff, _)| rank < *cutoff)
        };
        !self.cutoffs.iter().any(open)
    }

    fn renew_cutoffs(&mut self) {
        self.age = 0;
        self.cutoffs = vec![vec![]; self.n_zones];
        for node_idx in 0..self.kept.len() {
            let zone = usize::from(self.zones[node_idx]);
            let cutoff = self.cutoff(node_idx);
            self.cutoffs[zone].push((cutoff, node_idx as u16));
        }
        for zone in &mut self.cutoffs {
            zone.sort_unstable_by(|a, b| b.cmp(a));
            zone.truncate(self.rows.len() + 1);
        }
    }

    /// The node that the shard prefers of those that do not hold it, whatever room it has.
    fn first_eligible(&self, shard: ShardId) -> u16 {
        for class in self.first_class(shard)..=1 {
            let walk = (0..).map_while(|step| self.ring.step(shard, step));
            let mut nodes = walk.map(|(_, node_idx)| node_idx);
            if let Some(found) = nodes.find(|idx| self.class_of(shard, *idx) == Some(class)) {
                return found;
            }
        }
        NO_NODE
    }
}
