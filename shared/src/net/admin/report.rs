//! The JSON of the admin interface: what every process answers and every command reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{AckPolicy, OnMinority};
use crate::member::{Members, Role};
use crate::pins::PinKind;

/// `GET /v1/members`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersReport {
    /// Digest of what placement depends on, 16 hex digits: members that agree on it agree on
    /// every target.
    pub members_digest: String,
    /// All members known here, this process included, sorted by name.
    pub members: Vec<MemberReport>,
    /// Whether this process is on the smaller side of a cut; none at a router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub majority: Option<MajorityReport>,
    /// What the node that was asked promises of its shards; none of one that owns nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promises: Option<PromisesReport>,
}

/// How much of the cluster a node is with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MajorityReport {
    /// What it does on the smaller side of a cut.
    pub on_minority: OnMinority,
    /// Nodes of which a majority is counted; 0 before they have settled.
    pub settled: usize,
    /// How many of them are ready here.
    pub ready: usize,
    /// Whether they are too few.
    pub is_minority: bool,
}

/// What a node promises of its shards: see `docs/guide/promises.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromisesReport {
    /// Who decides which nodes are dead.
    pub mode: Mode,
    /// What must know of a change before its answer goes out.
    pub ack: AckPolicy,
    /// Copies that each shard is to have on other nodes.
    pub replicas: u8,
    /// Copies, the owner's among them, below which changes are refused.
    pub min_copies: u8,
}

/// Who decides which nodes are dead, and so who owns what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Gossip: every node that is reached serves, on both sides of a cut.
    Available,
}

/// `GET /v1/conflicts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictsReport {
    /// The conflicts that this process has found and still lists, the oldest first.
    pub conflicts: Vec<ConflictReport>,
}

/// A value that lost to another one, when two histories of its session met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictReport {
    /// The session's key; bytes that are no UTF-8 as U+FFFD.
    pub key: String,
    /// Its shard.
    pub shard: u32,
    /// The change that stayed, `EPOCH/NUMBER`.
    pub kept: String,
    /// The change that did not.
    pub lost: String,
    /// When that was written, in Unix milliseconds by its node's clock.
    pub lost_written_ms: u64,
    /// The value that it wrote, in base64.
    pub value: String,
    /// The version of its schema, if it is typed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
}

/// `POST /v1/members/{name}/forget`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetReport {
    /// Nodes that do not count the forgotten one any more, by name.
    pub told: Vec<String>,
    /// Nodes that did not answer: ask again, or ask them.
    pub unreached: Vec<String>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    /// Its name, or its id in hex until its card has come.
    pub name: String,
    /// `node` or `router`.
    pub role: String,
    /// `joining`, `ready`, `leaving`, `suspect`, `down` or `left`.
    pub state: String,
    /// Its weight; 0 owns nothing.
    pub weight: u16,
    /// Its zone, or empty.
    pub zone: String,
    /// Where gossip and the link reach it.
    pub gossip: String,
    /// Where it answers HTTP, or empty.
    pub http: String,
    /// Where its admin listener is, or empty.
    pub admin: String,
    /// Which start of its process this is.
    pub boot_id: u64,
    /// Version of its program, or empty.
    pub version: String,
}

impl MembersReport {
    /// The report of `members`.
    #[must_use]
    pub fn of(members: &Members, members_digest: u64) -> Self {
        let mut list: Vec<MemberReport> = members.list.iter().map(MemberReport::of).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        let members_digest = format!("{members_digest:016x}");
        Self { members_digest, members: list, majority: None, promises: None }
    }
}

impl MemberReport {
    fn of(member: &crate::member::Member) -> Self {
        let card = member.card.as_deref();
        let text = |field: fn(&crate::member::Card) -> &String| {
            card.map_or_else(String::new, |card| field(card).clone())
        };
        Self {
            name: member.name(),
            role: match member.role {
                Role::Node => "node".into(),
                Role::Router => "router".into(),
            },
            state: member.state.to_string(),
            weight: member.weight,
            zone: text(|card| &card.zone),
            gossip: member.gossip.to_string(),
            http: text(|card| &card.http),
            admin: text(|card| &card.admin),
            boot_id: member.boot.0,
            version: text(|card| &card.version),
        }
    }
}

/// `GET /v1/shards`. The counts in `by_node` and `unowned` add up to `shards`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardsReport {
    /// Number of shards of the cluster; 0 on a router that has not learned it yet.
    pub shards: u32,
    /// How many shards each live node serves, by its claims. Members that left or died are not
    /// in here.
    pub by_node: BTreeMap<String, u32>,
    /// Shards that no live member claims.
    pub unowned: u32,
    /// Shards of this process that are between two owners: sealed or granted now.
    pub moving: u32,
    /// Shards with fewer live copies than wanted.
    pub under_replicated: u32,
    /// How many shards placement wants on each node.
    pub targets: BTreeMap<String, u32>,
    /// Shards that this process owns, ascending.
    pub owned: Vec<u32>,
    /// Those of them whose requests it refuses, since what its disk holds of them is damaged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<u32>,
}

/// `GET /v1/where?key=K`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhereReport {
    /// The key's shard.
    pub shard: u32,
    /// The live node that claims it, by name.
    pub owner: Option<String>,
    /// The epoch of the newest claim known here, `COUNTER.NODE`.
    pub epoch: Option<String>,
    /// Nodes that hold a copy.
    pub replicas: Vec<String>,
    /// What pins it, if anything does.
    #[serde(default)]
    pub pin: Option<PinReport>,
}

/// `GET /v1/pins`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinsReport {
    /// The pins in force, one per shard, ascending.
    pub pins: Vec<PinReport>,
}

/// A shard placed by hand or by heat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinReport {
    /// The shard.
    pub shard: u32,
    /// Where it is to be, by name.
    pub node: String,
    /// By hand or by heat.
    pub kind: PinKind,
    /// The member that wrote it, by name.
    pub author: String,
    /// Of several pins the one with the highest version counts.
    pub version: u64,
    /// When it expires, in Unix milliseconds.
    pub expires_ms: u64,
    /// Whether placement follows it. Not while its node is away, leaving or without weight.
    pub effective: bool,
}

/// What is moving at one node; the answer to a call of kind
/// [`MOVES`](crate::control::kind::MOVES).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MovesReport {
    /// Shards between two owners, seen from their source: sealed or granted now.
    pub moving: u32,
    /// Shards whose state is being copied while they are served.
    pub copying: u32,
    /// Shards that are to move and do not yet.
    pub pending: PendingMoves,
    /// Bytes of the sessions of all these at their sources.
    pub bytes_left: u64,
    /// Bytes of state sent per second, lately.
    pub bytes_per_second: u64,
    /// Moves for balance are held back, because too many members went down at once.
    pub frozen: bool,
}

/// Shards that are to move, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingMoves {
    /// Their owner is gone, and this node is to have them.
    pub takeover: u32,
    /// Their owner leaves.
    pub drain: u32,
    /// They are elsewhere than placement wants them: after a join, by a pin.
    pub balance: u32,
}

impl MovesReport {
    /// Shards that are not where they should be.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        let PendingMoves { takeover, drain, balance } = self.pending;
        [self.moving, self.copying, takeover, drain, balance]
            .into_iter()
            .fold(0, u32::saturating_add)
    }

    /// Both together; frozen when either is.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        let (pending, others) = (self.pending, other.pending);
        Self {
            moving: self.moving.saturating_add(other.moving),
            copying: self.copying.saturating_add(other.copying),
            pending: PendingMoves {
                takeover: pending.takeover.saturating_add(others.takeover),
                drain: pending.drain.saturating_add(others.drain),
                balance: pending.balance.saturating_add(others.balance),
            },
            bytes_left: self.bytes_left.saturating_add(other.bytes_left),
            bytes_per_second: self.bytes_per_second.saturating_add(other.bytes_per_second),
            frozen: self.frozen || other.frozen,
        }
    }
}

/// `GET /v1/moves`: the whole cluster, asked node by node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMoves {
    /// All answers added up.
    pub total: MovesReport,
    /// What each live node answered, by name.
    pub by_node: BTreeMap<String, MovesReport>,
    /// Live nodes that did not answer in time, by name: `total` is without them.
    pub silent: Vec<String>,
}

/// `GET /v1/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    /// The node.
    pub node: String,
    /// How far it is.
    pub state: DrainState,
    /// Shards that it still owns.
    pub shards_left: u32,
    /// Sessions in them.
    pub sessions_left: u64,
    /// Bytes of those.
    #[serde(default)]
    pub bytes_left: u64,
    /// Bytes of state sent per second, lately.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// Time since the drain began, 0 before it.
    pub elapsed_ms: u64,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainState {
    /// Nobody asked for one.
    Idle,
    /// Shards are being handed off.
    Draining,
    /// Nothing is left here.
    Drained,
}

/// An error as RFC 9457 wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI that names the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, and what to do.
    pub detail: String,
}
