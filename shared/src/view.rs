//! What routing reads: members, targets and claims in one immutable snapshot.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::claims::{Book, CLAIM_REPLICAS_MAX, ClaimTable};
use crate::hash::{HashSecret, ShardCount};
use crate::id::{Epoch, NodeBoot, SessionKey, ShardId};
use crate::member::{Member, MemberState, Members, Role};
use crate::placement::{Pin, PlacementInput, PlacementNode, Targets, place};

/// Seed of the members digest. Part of the wire format.
const DIGEST_SEED: u64 = 0x5354_4541_445f_4d44;
/// Seed of what pins add to it. Part of the wire format.
const PINS_SEED: u64 = 0x5354_4541_445f_504e;

/// The parameters that all members of a cluster must share.
#[derive(Clone, Debug)]
pub struct ClusterParams {
    /// Number of shards.
    pub shards: ShardCount,
    /// Capacity factor of placement, in thousandths.
    pub balance_permille: u32,
    /// The hash secret.
    pub secret: HashSecret,
    /// Copies that placement wants of each shard beside the owner's. What this process asks for:
    /// who owns what does not depend on it.
    pub replicas: u8,
}

impl ClusterParams {
    /// The members that placement counts.
    #[must_use]
    pub fn ring_nodes(&self, members: &Members) -> Vec<PlacementNode> {
        let counts = |member: &&Member| member.role == Role::Node && member.in_ring;
        members
            .list
            .iter()
            .filter(counts)
            .map(|member| PlacementNode {
                id: member.id,
                leaving: false,
                weight: if member.held_down { 0 } else { member.weight },
                zone: member.zone,
            })
            .collect()
    }

    /// The digest of everything that decides targets: equal digest, equal target. It has no order:
    /// which of two is newer cannot be told.
    ///
    /// `pins` as [`Pins::overlay`](crate::pins::Pins::overlay) gives them. Those to nodes that
    /// placement does not count decide nothing and are not in it; without any it is what it was
    /// before there were pins.
    #[must_use]
    pub fn members_digest(&self, members: &Members, pins: &[Pin]) -> u64 {
        let nodes = self.ring_nodes(members);
        let mut bytes = Vec::with_capacity(32 + members.list.len() * 16);
        bytes.extend(self.shards.get().to_le_bytes());
        bytes.extend(self.balance_permille.to_le_bytes());
        bytes.extend(self.secret.fingerprint().to_le_bytes());
        for node in &nodes {
            bytes.extend(node.id.0.to_le_bytes());
            bytes.extend(node.weight.to_le_bytes());
            bytes.extend(node.zone.to_le_bytes());
        }
        let digest = xxh3_64_with_seed(&bytes, DIGEST_SEED);
        let counts = |pin: &&Pin| {
            let node = nodes.binary_search_by_key(&pin.node, |node| node.id);
            self.shards.contains(pin.shard) && node.is_ok_and(|at| nodes[at].weight > 0)
        };
        let mut pins = pins.iter().filter(counts).peekable();
        if pins.peek().is_none() {
            return digest;
        }
        bytes.clear();
        bytes.extend(digest.to_le_bytes());
        for pin in pins {
            bytes.extend(pin.shard.0.to_le_bytes());
            bytes.extend(pin.node.0.to_le_bytes());
        }
        xxh3_64_with_seed(&bytes, PINS_SEED)
    }

    /// Where shards should be, `pins` as for [`members_digest`](Self::members_digest).
    #[must_use]
    pub fn targets(&self, members: &Members, pins: &[Pin]) -> Targets {
        let nodes = self.ring_nodes(members);
        let (balance_permille, pins) = (self.balance_permille, pins.to_vec());
        let input = PlacementInput::of_nodes(self.shards, nodes);
        place(&PlacementInput { balance_permille, pins, replicas: self.replicas, ..input })
    }

    /// The shard of a session.
    #[must_use]
    pub fn shard_of(&self, key: &SessionKey) -> ShardId {
        self.secret.shard_of(key, self.shards)
    }
}

/// Copies that claims name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Census {
    /// How many shards have so many live replicas.
    by_count: [u32; 1 + CLAIM_REPLICAS_MAX],
}

/// An immutable snapshot of the cluster as this process sees it.
#[derive(Clone, Debug)]
pub struct View {
    /// Parameters of the cluster.
    pub params: Arc<ClusterParams>,
    /// Everybody.
    pub members: Arc<Members>,
    /// The pins in force, whether or not their nodes are there: at most one per shard, sorted.
    pub pins: Arc<[Pin]>,
    /// Where shards should be.
    pub targets: Arc<Targets>,
    /// Digest of what `targets` was computed from.
    pub members_digest: u64,
    /// Where shards are.
    pub claims: ClaimTable,
}

impl View {
    /// The first view of a process: itself alone, no claims, no pins.
    #[must_use]
    pub fn new(params: Arc<ClusterParams>, members: Arc<Members>) -> Self {
        let pins: Arc<[Pin]> = Arc::new([]);
        let targets = Arc::new(params.targets(&members, &pins));
        let members_digest = params.members_digest(&members, &pins);
        let claims = Book::new(params.shards.get()).table().clone();
        Self { params, members, pins, targets, members_digest, claims }
    }

    /// The same claims and pins among other members. Targets are computed anew only when their
    /// input changed.
    #[must_use]
    pub fn with_members(&self, members: Arc<Members>) -> Self {
        self.retargeted(members, Arc::clone(&self.pins))
    }

    /// Other pins among the same members. Targets are computed anew only when their input changed:
    /// a pin to a node that is not there changes nothing.
    #[must_use]
    pub fn with_pins(&self, pins: impl Into<Arc<[Pin]>>) -> Self {
        self.retargeted(Arc::clone(&self.members), pins.into())
    }

    fn retargeted(&self, members: Arc<Members>, pins: Arc<[Pin]>) -> Self {
        let members_digest = self.params.members_digest(&members, &pins);
        let targets = if members_digest == self.members_digest {
            Arc::clone(&self.targets)
        } else {
            Arc::new(self.params.targets(&members, &pins))
        };
        let (params, claims) = (Arc::clone(&self.params), self.claims.clone());
        Self { params, members, pins, targets, members_digest, claims }
    }

    /// Other claims among the same members.
    #[must_use]
    pub fn with_claims(&self, claims: ClaimTable) -> Self {
        Self { claims, ..self.clone() }
    }

    /// The boots that hold copies of `shard` by its claim, and live.
    pub fn live_replicas(&self, shard: ShardId) -> impl Iterator<Item = NodeBoot> + '_ {
        let named = self.claims.replicas(shard).iter().copied();
        named.filter(|boot| self.members.is_live(*boot))
    }

    /// Shards that are served with fewer live copies than wanted, where there are nodes for them.
    ///
    /// Who was not configured with a number of copies, as a router, takes what most shards have for
    /// what is wanted.
    #[must_use]
    pub fn under_replicated(&self) -> u32 {
        let mut census = Census::default();
        for shard in self.params.shards.all() {
            if self.live_claim(shard).is_some() {
                let n = self.live_replicas(shard).count().min(CLAIM_REPLICAS_MAX);
                census.by_count[n] += 1;
            }
        }
        let ready = |m: &&Member| m.role == Role::Node && m.state == MemberState::Ready;
        let n_others = self.members.list.iter().filter(ready).count().saturating_sub(1);
        let usual = (1..=CLAIM_REPLICAS_MAX).rev().max_by_key(|n| census.by_count[*n]);
        let usual = usual.filter(|n| 0 < census.by_count[*n]).unwrap_or(0);
        let wanted = usize::from(self.params.replicas);
        let wanted = if wanted == 0 { usual } else { wanted }.min(n_others);
        census.by_count.iter().take(wanted).sum()
    }

    /// The best claim for `shard` whose owner is alive.
    #[must_use]
    pub fn live_claim(&self, shard: ShardId) -> Option<(Epoch, NodeBoot)> {
        self.claims.get(shard).filter(|&(_, owner)| self.members.is_live(owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::{ClaimLog, Replicas};
    use crate::id::{BootId, NodeId};
    use crate::member::Phase;

    fn members(nodes: &[(u64, bool)]) -> Arc<Members> {
        let member = |&(id, in_ring): &(u64, bool)| Member {
            id: NodeId(id),
            boot: BootId(1),
            role: Role::Node,
            phase: Phase::Ready,
            state: MemberState::Ready,
            weight: 1,
            zone: 0,
            gossip: "127.0.0.1:7400".parse().unwrap(),
            in_ring,
            held_down: false,
            card: None,
        };
        Arc::new(Members { me: NodeId(1), list: nodes.iter().map(member).collect() })
    }

    fn view(nodes: &[(u64, bool)]) -> View {
        let params = ClusterParams {
            shards: ShardCount::new(64).unwrap(),
            balance_permille: 1050,
            secret: HashSecret::public(),
            replicas: 0,
        };
        View::new(Arc::new(params), members(nodes))
    }

    fn pin(shard: u32, node: u64) -> Pin {
        Pin { shard: ShardId(shard), node: NodeId(node), version: 1 }
    }

    /// Where shard 5 is not.
    fn elsewhere(view: &View) -> u64 {
        3 - view.targets.owner_of(ShardId(5)).unwrap().0
    }

    #[test]
    fn a_pin_in_force_is_part_of_targets_and_digest_until_it_goes() {
        let bare = view(&[(1, true), (2, true)]);
        let to = elsewhere(&bare);
        let pinned = bare.with_pins([pin(5, to)]);
        assert_eq!(pinned.targets.owner_of(ShardId(5)), Some(NodeId(to)));
        assert_eq!(bare.targets.moves_to(&pinned.targets).count(), 1);
        assert_ne!(pinned.members_digest, bare.members_digest);
        assert_ne!(bare.with_pins([pin(6, to)]).members_digest, pinned.members_digest);
        let unpinned = pinned.with_pins([]);
        assert_eq!(unpinned.members_digest, bare.members_digest);
        assert_eq!(unpinned.targets, bare.targets);
    }

    #[test]
    fn a_pin_to_an_absent_node_waits_for_it() {
        let bare = view(&[(1, true), (2, false)]);
        let pinned = bare.with_pins([pin(5, 2), pin(64, 1)]);
        assert_eq!(pinned.members_digest, bare.members_digest);
        assert!(Arc::ptr_eq(&pinned.targets, &bare.targets), "nothing is computed anew");
        let both = [(1, true), (2, true)];
        let there = pinned.with_members(members(&both));
        assert_eq!(there.targets.owner_of(ShardId(5)), Some(NodeId(2)));
        let directly = view(&both).with_pins([pin(5, 2)]);
        assert_eq!(there.members_digest, directly.members_digest);
        assert_eq!(there.targets, directly.targets);
    }

    #[test]
    fn shards_with_too_few_live_copies_are_counted() {
        let owner = NodeBoot { node: NodeId(1), boot: BootId(1) };
        let copy = NodeBoot { node: NodeId(2), boot: BootId(1) };
        let gone = NodeBoot { node: NodeId(2), boot: BootId(0) };
        let mut log = ClaimLog::new(owner);
        (0..8).for_each(|shard| log.claim(ShardId(shard), 1));
        (0..5).for_each(|shard| {
            log.set_replicas(ShardId(shard), Replicas::new([copy]));
        });
        log.set_replicas(ShardId(5), Replicas::new([gone]));
        let mut book = Book::new(64);
        let _ = book.apply(&log.full());
        let two = view(&[(1, true), (2, true)]).with_claims(book.table().clone());
        assert_eq!(two.live_replicas(ShardId(0)).collect::<Vec<_>>(), [copy]);
        assert_eq!(two.under_replicated(), 3);
        // With nobody to hold a copy, none is missing.
        let one = view(&[(1, true)]).with_claims(book.table().clone());
        assert_eq!(one.under_replicated(), 0);
    }

    #[test]
    fn the_version_of_a_pin_decides_nothing_once_it_counts() {
        let bare = view(&[(1, true), (2, true)]);
        let to = elsewhere(&bare);
        let older = bare.with_pins([pin(5, to)]);
        let newer = older.with_pins([Pin { version: 2, ..pin(5, to) }]);
        assert!(Arc::ptr_eq(&older.targets, &newer.targets));
    }
}
