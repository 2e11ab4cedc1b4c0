//! Why a node does not start or go on, what it leaves behind, and when it must not be let in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use stead_shared::config::{ConfigError, NodeConfig};
use stead_shared::id::NodeId;
use stead_shared::member::{Member, Members, Role};
use stead_shared::net::disk::{self, DiskError};
use stead_shared::net::process::StartError;
use stead_shared::net::sock::SockError;
use stead_shared::net::watch;
use stead_shared::swim::FatalReason;

/// Why a node did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its options contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Sockets, files or gossip. Nothing was started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The plain HTTP socket. Nothing was started.
    #[error(transparent)]
    Sock(#[from] SockError),
    /// Gossip ended it.
    #[error(transparent)]
    Fatal(#[from] FatalReason),
    /// A seed does not belong to our cluster.
    #[error("{addr}: {why}")]
    Rejected {
        /// The seed.
        addr: SocketAddr,
        /// Why, and what to do.
        why: String,
    },
    /// Gossip broke down.
    #[error("the gossip thread ended; this node cannot know its cluster any more")]
    GossipLost,
    /// The cluster did not let it in.
    #[error(
        "the cluster did not let this node in within 30 s: not all owners answered; see \
         `stead status` on another member, and whether this node's gossip port is reachable"
    )]
    JoinTimeout,
    /// Its data directory belongs to a cluster, and it was not told to join it.
    #[error(
        "{dir} remembers a cluster with {names}: name some of them by --join, or say --found to \
         found a new cluster without their sessions"
    )]
    KnowsOthers {
        /// The data directory.
        dir: String,
        /// Members of that cluster.
        names: String,
    },
    /// A file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The sessions on disk cannot be used.
    #[error(transparent)]
    State(#[from] crate::disk::DiskError),
    /// The sessions on disk cannot be taken in.
    #[error(transparent)]
    Load(#[from] crate::saved::LoadError),
    /// Another member counts shards differently.
    #[error(
        "this node has --shards {ours}, but {name} of the same cluster has {theirs}: the number \
         of shards is fixed for the life of a cluster; start this node with --shards {theirs}"
    )]
    ShardCount {
        /// Ours.
        ours: u32,
        /// Theirs.
        theirs: u32,
        /// Who.
        name: String,
    },
    /// Another member places shards differently.
    #[error(
        "this node has --balance {ours} (thousandths), but {name} of the same cluster has \
         {theirs}: all nodes need the same"
    )]
    Balance {
        /// Ours.
        ours: u32,
        /// Theirs.
        theirs: u32,
        /// Who.
        name: String,
    },
}

/// What was not handed off when a node ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaveReport {
    /// Shards that this node still owned.
    pub shards_left: usize,
    /// Sessions in them, which are gone.
    pub sessions_left: u64,
    /// Whether the deadline or a second signal cut the drain short.
    pub forced: bool,
}

/// A node that was in a cluster does not found another one beside it by accident (R0).
pub(crate) fn refuse_a_second_cluster(config: &NodeConfig) -> Result<(), NodeError> {
    let Some(dir) = config.data_dir.as_deref().filter(|_| !config.found) else { return Ok(()) };
    if !config.member.join.is_empty() {
        return Ok(());
    }
    let names = disk::known_members(dir)?;
    if names.is_empty() {
        return Ok(());
    }
    Err(NodeError::KnowsOthers { dir: dir.display().to_string(), names: names.join(", ") })
}

/// Keeps the names of other nodes in the data directory, for [`refuse_a_second_cluster`].
pub(crate) async fn remember_members(
    dir: PathBuf,
    me: NodeId,
    mut members: watch::Receiver<Arc<Members>>,
) {
    let mut remembered = Vec::new();
    while members.changed().await.is_ok() {
        let seen = Arc::clone(&members.borrow_and_update());
        let others = |m: &&Member| m.id != me && m.is_live_node() && m.card.is_some();
        let names: Vec<String> = seen.list.iter().filter(others).map(Member::name).collect();
        // The last ones to be seen stay: a node that is left alone still was in their cluster.
        if names.is_empty() || names == remembered {
            continue;
        }
        let (dir, written) = (dir.clone(), names.clone());
        let write = tokio::task::spawn_blocking(move || disk::remember_members(&dir, &written));
        match write.await {
            Ok(Ok(())) => remembered = names,
            Ok(Err(error)) => tracing::warn!(%error, "the members were not remembered"),
            Err(error) => tracing::warn!(%error, "the members were not remembered"),
        }
    }
}

/// A live node that was configured for another cluster than ours.
pub(crate) fn mismatch(config: &NodeConfig, me: NodeId, members: &Members) -> Option<NodeError> {
    let others = |m: &&Member| m.id != me && m.role == Role::Node && m.state.is_live();
    members.list.iter().filter(others).find_map(|member| {
        let card = member.card.as_deref()?;
        let (name, ours) = (card.name.clone(), config.shards.get());
        if card.n_shards != ours {
            return Some(NodeError::ShardCount { ours, theirs: card.n_shards, name });
        }
        let ours = config.balance_permille;
        let theirs = card.balance_permille;
        (theirs != ours).then_some(NodeError::Balance { ours, theirs, name })
    })
}
