//! The way of the gossip agent to other members: lists and hellos go over the link.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::agent::{Agent, CallError, PeerError, PushPuller};
use super::link::{CloseReason, DialError, Link, Links, PeerInfo, Reply};
use crate::control::kind;
use crate::id::{BootId, NodeBoot, NodeId};

/// How long a peer may take to answer with its list.
const PUSH_PULL_TIMEOUT: Duration = Duration::from_secs(3);

/// Reaches peers by the links of this process.
#[derive(Clone, Debug)]
pub struct LinkPeers {
    links: Links,
}

impl LinkPeers {
    /// Peers by these links.
    #[must_use]
    pub fn new(links: Links) -> Self {
        Self { links }
    }
}

impl LinkPeers {
    /// An open link to `node`, or a new one to whoever answers at `addr`.
    async fn link(&self, addr: SocketAddr, node: Option<NodeId>) -> Result<Link, DialError> {
        let Some(node) = node else { return self.links.dial(addr).await };
        match self.links.to(node, None, addr).await {
            Err(DialError::WrongPeer { found }) => {
                self.links.open_link(found.node).ok_or(DialError::WrongPeer { found })
            }
            outcome => outcome,
        }
    }
}

impl PushPuller for LinkPeers {
    async fn push_pull(
        &self,
        addr: SocketAddr,
        node: Option<NodeId>,
        mine: Bytes,
    ) -> Result<(NodeBoot, Bytes), PeerError> {
        let link = self.link(addr, node).await.map_err(|error| self.seed_error(error))?;
        let answer = link.call(kind::PUSH_PULL, mine, PUSH_PULL_TIMEOUT).await;
        let list = answer.map_err(|error| PeerError::Failed(error.to_string()))?;
        Ok((link.peer().node_boot(), list))
    }

    async fn hello(&self, addr: SocketAddr) -> Result<NodeBoot, PeerError> {
        match self.links.dial(addr).await {
            Ok(link) => Ok(link.peer().node_boot()),
            Err(DialError::WrongPeer { found }) => Ok(found),
            Err(error) => Err(peer_error(error)),
        }
    }

    fn boot_is(&self, boot: BootId) {
        self.links.set_boot(boot);
    }
}

impl LinkPeers {
    /// A seed that answers with our own name and another boot is a process that runs already;
    /// with our own boot it is this one, which may be among its own seeds.
    fn seed_error(&self, error: DialError) -> PeerError {
        match error {
            DialError::WrongPeer { found } if is_namesake(found, self.links.me()) => {
                PeerError::Rejected(
                    "a process of the same name runs there; every member needs a --name of its \
                     own"
                    .to_owned(),
                )
            }
            error => peer_error(error),
        }
    }
}

/// Another process that runs under our name.
fn is_namesake(found: NodeBoot, me: NodeBoot) -> bool {
    found.node == me.node && found.boot != me.boot
}

fn peer_error(error: DialError) -> PeerError {
    match error {
        DialError::Refused => PeerError::Refused,
        DialError::Rejected(CloseReason::WrongKey) => PeerError::Rejected(
            "its cluster key is another one; every member needs the same --cluster-key-file"
                .to_owned(),
        ),
        DialError::Rejected(CloseReason::WrongCluster) => PeerError::Rejected(
            "it belongs to another cluster; every member needs the same --cluster".to_owned(),
        ),
        DialError::Rejected(CloseReason::Version) => PeerError::Rejected(
            "its version of stead is too far from this one; upgrade one version at a time"
                .to_owned(),
        ),
        DialError::Timeout
        | DialError::Rejected(_)
        | DialError::Io(_)
        | DialError::WrongPeer { .. }
        | DialError::Stopping
        | DialError::TooMany => PeerError::Failed(error.to_string()),
    }
}

/// Answers a peer's call of kind [`kind::PUSH_PULL`]; for the callbacks of a link's handler,
/// which must not wait.
///
/// # Panics
/// Outside a tokio runtime.
pub fn answer_push_pull(agent: &Agent, peer: PeerInfo, list: Bytes, reply: Reply) {
    let agent = agent.clone();
    tokio::spawn(async move {
        match agent.push_pull(peer.node_boot(), &list).await {
            Ok(ours) => reply.send(ours),
            // Dropping the reply tells the peer that there is none.
            Err(error @ (CallError::NotAList | CallError::Ended)) => {
                tracing::debug!(peer = ?peer.node, "push/pull not answered: {error}");
            }
        }
    });
}
