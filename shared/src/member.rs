//! Members of the cluster as everybody above the gossip sees them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{BootId, NodeBoot, NodeId};

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Owns shards.
    Node,
    /// Routes requests and owns nothing.
    Router,
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Started, and not yet fit to own shards.
    Joining,
    /// Owns shards, or would.
    Ready,
    /// Hands its shards off and goes.
    Leaving,
}

/// What we think of a member: its own word while it is alive, else the failure detector's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Alive, and not yet fit to own shards.
    Joining,
    /// Alive and in the ring.
    Ready,
    /// Alive, handing off, out of the ring.
    Leaving,
    /// Did not answer a probe; still counted as alive.
    Suspect,
    /// Declared dead.
    Down,
    /// Said that it goes, and went.
    Left,
}

impl MemberState {
    /// Whether a member in this state may still be running and serving.
    #[must_use]
    pub fn is_live(self) -> bool {
        match self {
            Self::Joining | Self::Ready | Self::Leaving | Self::Suspect => true,
            Self::Down | Self::Left => false,
        }
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Leaving => "leaving",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        })
    }
}

/// The part of a member's description that is too large for a datagram. Travels by push/pull,
/// never changes within one boot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Card {
    /// Whose card, and of which boot.
    pub of: NodeBoot,
    /// Stable name; its hash is the node id.
    pub name: String,
    /// Where it answers plain HTTP; empty for none.
    pub http: String,
    /// Where its admin listener is; empty for none.
    pub admin: String,
    /// Zone, or empty.
    pub zone: String,
    /// Number of shards it was configured with; 0 for a router, which learns it.
    pub n_shards: u32,
    /// Capacity factor of placement, in thousandths (1050 = 1.05).
    pub balance_permille: u32,
    /// Fingerprint of the cluster's hash secret.
    pub secret_fingerprint: u64,
    /// Version of the program.
    pub version: String,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Who.
    pub id: NodeId,
    /// Which start of its process.
    pub boot: BootId,
    /// Node or router.
    pub role: Role,
    /// What it last said of itself.
    pub phase: Phase,
    /// What we think of it.
    pub state: MemberState,
    /// Configured weight, in units of 512 points on the ring; 0 owns nothing.
    pub weight: u16,
    /// Hash of the zone's name, 0 for none.
    pub zone: u32,
    /// Where gossip (UDP) and the link (TCP) reach it.
    pub gossip: SocketAddr,
    /// Whether placement counts it: a ready node, or one that went down less than `down_grace`
    /// ago. Leaving and joining members are not counted.
    pub in_ring: bool,
    /// Held down for flapping: in the ring at weight 0.
    pub held_down: bool,
    /// Its card, once push/pull brought it.
    pub card: Option<Arc<Card>>,
}

impl Member {
    /// Node and boot.
    #[must_use]
    pub fn node_boot(&self) -> NodeBoot {
        NodeBoot { node: self.id, boot: self.boot }
    }

    /// The name where known, else the id in hex.
    #[must_use]
    pub fn name(&self) -> String {
        self.card.as_ref().map_or_else(|| self.id.to_string(), |card| card.name.clone())
    }

    /// A ready or suspect member that may own shards.
    #[must_use]
    pub fn is_live_node(&self) -> bool {
        self.role == Role::Node && self.state.is_live()
    }
}

/// All members that one process knows, itself included, sorted by id, one entry each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Members {
    /// This process.
    pub me: NodeId,
    /// Everybody, itself included.
    pub list: Vec<Member>,
}

impl Members {
    /// The member called `id`.
    #[must_use]
    pub fn find(&self, id: NodeId) -> Option<&Member> {
        let at = self.list.binary_search_by_key(&id, |member| member.id).ok()?;
        self.list.get(at)
    }

    /// This process's own entry.
    #[must_use]
    pub fn my_self(&self) -> Option<&Member> {
        self.find(self.me)
    }

    /// Whether this very boot of the node may still be running.
    #[must_use]
    pub fn is_live(&self, who: NodeBoot) -> bool {
        self.find(who.node).is_some_and(|m| m.boot == who.boot && m.state.is_live())
    }

    /// Live members but this one.
    pub fn live_peers(&self) -> impl Iterator<Item = &Member> {
        self.list.iter().filter(|member| member.id != self.me && member.state.is_live())
    }
}
