//! What routing reads: members, targets and claims in one immutable snapshot.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::claims::{Book, ClaimTable};
use crate::hash::{HashSecret, ShardCount};
use crate::id::{Epoch, NodeBoot, SessionKey, ShardId};
use crate::member::{Member, Members, Role};
use crate::placement::{PlacementInput, PlacementNode, Targets, place};

/// Seed of the members digest. Part of the wire format.
const DIGEST_SEED: u64 = 0x5354_4541_445f_4d44;

/// The parameters that all members of a cluster must share.
#[derive(Clone, Debug)]
pub struct ClusterParams {
    /// Number of shards.
    pub shards: ShardCount,
    /// Capacity factor of placement, in thousandths.
    pub balance_permille: u32,
    /// The hash secret.
    pub secret: HashSecret,
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
    #[must_use]
    pub fn members_digest(&self, members: &Members) -> u64 {
        let mut bytes = Vec::with_capacity(32 + members.list.len() * 16);
        bytes.extend(self.shards.get().to_le_bytes());
        bytes.extend(self.balance_permille.to_le_bytes());
        bytes.extend(self.secret.fingerprint().to_le_bytes());
        for node in self.ring_nodes(members) {
            bytes.extend(node.id.0.to_le_bytes());
            bytes.extend(node.weight.to_le_bytes());
            bytes.extend(node.zone.to_le_bytes());
        }
        xxh3_64_with_seed(&bytes, DIGEST_SEED)
    }

    /// Where shards should be.
    #[must_use]
    pub fn targets(&self, members: &Members) -> Targets {
        let nodes = self.ring_nodes(members);
        let balance_permille = self.balance_permille;
        place(&PlacementInput { balance_permille, ..PlacementInput::of_nodes(self.shards, nodes) })
    }

    /// The shard of a session.
    #[must_use]
    pub fn shard_of(&self, key: &SessionKey) -> ShardId {
        self.secret.shard_of(key, self.shards)
    }
}

/// An immutable snapshot of the cluster as this process sees it.
#[derive(Clone, Debug)]
pub struct View {
    /// Parameters of the cluster.
    pub params: Arc<ClusterParams>,
    /// Everybody.
    pub members: Arc<Members>,
    /// Where shards should be.
    pub targets: Arc<Targets>,
    /// Digest of what `targets` was computed from.
    pub members_digest: u64,
    /// Where shards are.
    pub claims: ClaimTable,
}

impl View {
    /// The first view of a process: itself alone, no claims.
    #[must_use]
    pub fn new(params: Arc<ClusterParams>, members: Arc<Members>) -> Self {
        let targets = Arc::new(params.targets(&members));
        let members_digest = params.members_digest(&members);
        let claims = Book::new(params.shards.get()).table().clone();
        Self { params, members, targets, members_digest, claims }
    }

    /// The same claims among other members. Targets are computed anew only when their input
    /// changed.
    #[must_use]
    pub fn with_members(&self, members: Arc<Members>) -> Self {
        let members_digest = self.params.members_digest(&members);
        let targets = if members_digest == self.members_digest {
            Arc::clone(&self.targets)
        } else {
            Arc::new(self.params.targets(&members))
        };
        let (params, claims) = (Arc::clone(&self.params), self.claims.clone());
        Self { params, members, targets, members_digest, claims }
    }

    /// Other claims among the same members.
    #[must_use]
    pub fn with_claims(&self, claims: ClaimTable) -> Self {
        Self { claims, ..self.clone() }
    }

    /// The best claim for `shard` whose owner is alive.
    #[must_use]
    pub fn live_claim(&self, shard: ShardId) -> Option<(Epoch, NodeBoot)> {
        self.claims.get(shard).filter(|&(_, owner)| self.members.is_live(owner))
    }
}
