//! The links to all live members, and what comes in on them.
//!
//! The mesh dials every live member that no link is open to, again and again, and turns what it
//! finds into evidence for the membership: a refused reconnect after a broken link is proof of
//! death, another boot that answers is proof that the old one is gone, silence is an accusation.
//! What members send goes to one bounded channel for the driver, or to the hooks given at the
//! start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use metrics::{Counter, counter, describe_counter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::agent::Agent;
use super::heard::Heard;
use super::link::{DialError, Link, LinkConfig, LinkHandler, Links, PeerInfo, Reply, ServerStream};
use super::peers::{LinkPeers, answer_push_pull};
use super::platform::Platform;
use crate::control::kind;
use crate::id::{NodeBoot, NodeId};
use crate::member::Members;
use crate::wire::link::CloseReason;

/// Events that may wait for the driver. More are dropped and counted: claims are asked for again,
/// and every other message is sent again by whoever wants an answer.
const EVENTS_MAX: usize = 8_192;
/// First pause before an unreachable member is dialled again.
const REDIAL_FIRST: Duration = Duration::from_millis(100);
/// Longest pause.
const REDIAL_MAX: Duration = Duration::from_secs(1);

/// What the driver must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshEvent {
    /// A link to this member is open.
    Connected {
        /// Who.
        peer: NodeBoot,
        /// The version of the protocol that both speak.
        protocol: u8,
    },
    /// No link to this member is open any more.
    Disconnected(NodeId),
    /// A member says something.
    Note {
        /// Who.
        from: NodeBoot,
        /// One of [`kind`].
        kind: u8,
        /// What.
        payload: Bytes,
    },
}

/// What the process does with streams and calls of its peers.
pub trait Hooks: Send + Sync + 'static {
    /// A peer opened a stream. Must not block.
    fn opened(&self, peer: PeerInfo, stream: ServerStream);
    /// A peer asks something other than push/pull. Must not block.
    fn call(&self, peer: PeerInfo, kind: u8, payload: Bytes, reply: Reply);
}

struct Handler {
    hooks: Arc<dyn Hooks>,
    agent: OnceLock<Agent>,
    heard: Arc<Heard>,
    events: mpsc::Sender<MeshEvent>,
    broken: mpsc::Sender<NodeId>,
    dropped: Counter,
}

impl Handler {
    fn tell(&self, event: MeshEvent) {
        if self.events.try_send(event).is_err() {
            self.dropped.increment(1);
        }
    }
}

impl LinkHandler for Handler {
    fn heard(&self) {
        self.heard.note();
    }

    fn opened(&self, peer: PeerInfo, stream: ServerStream) {
        self.hooks.opened(peer, stream);
    }

    fn call(&self, peer: PeerInfo, kind: u8, payload: Bytes, reply: Reply) {
        if kind != kind::PUSH_PULL {
            self.hooks.call(peer, kind, payload, reply);
            return;
        }
        if let Some(agent) = self.agent.get() {
            answer_push_pull(agent, peer, payload, reply);
        }
    }

    fn notify(&self, peer: PeerInfo, kind: u8, payload: Bytes) {
        self.tell(MeshEvent::Note { from: peer.node_boot(), kind, payload });
    }

    fn connected(&self, link: Link) {
        let (peer, protocol) = (link.peer().node_boot(), link.peer().protocol);
        self.tell(MeshEvent::Connected { peer, protocol });
    }

    fn closed(&self, peer: PeerInfo, _reason: CloseReason) {
        // A full channel only costs the redial its haste: the mesh looks at every member again.
        let _ = self.broken.try_send(peer.node);
    }
}

/// Links to every live member. See the module's page.
pub struct Mesh {
    me: NodeId,
    links: Links,
    handler: Arc<Handler>,
    broken: mpsc::Receiver<NodeId>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("me", &self.me).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Redial {
    at: Instant,
    pause: Duration,
    /// A link was open before: a refusal now is proof.
    was_open: bool,
}

impl Mesh {
    /// Links for this process, none of them open yet; events come out of the receiver. All that is
    /// read is noted in `heard`.
    #[must_use]
    pub fn new(
        config: LinkConfig,
        platform: Platform,
        hooks: Arc<dyn Hooks>,
        heard: Arc<Heard>,
    ) -> (Self, mpsc::Receiver<MeshEvent>) {
        let (events, events_out) = mpsc::channel(EVENTS_MAX);
        let (broken_in, broken) = mpsc::channel(1024);
        describe_counter!(
            "stead_mesh_events_dropped_total",
            "Messages of peers dropped because the driver was behind; they are sent again"
        );
        let dropped = counter!("stead_mesh_events_dropped_total");
        let me = config.me.node;
        let agent = OnceLock::new();
        let handler = Handler { hooks, agent, heard, events, broken: broken_in, dropped };
        let handler = Arc::new(handler);
        let for_links = Arc::clone(&handler) as Arc<dyn LinkHandler>;
        let links = Links::on(platform, config, for_links);
        (Self { me, links, handler, broken }, events_out)
    }

    /// The links.
    #[must_use]
    pub fn links(&self) -> Links {
        self.links.clone()
    }

    /// The agent's way to other members.
    #[must_use]
    pub fn peers(&self) -> Arc<LinkPeers> {
        Arc::new(LinkPeers::new(self.links.clone()))
    }

    /// Keeps a link open to every live member that `agent` knows, until it is dropped.
    pub async fn run(mut self, agent: Agent) {
        // Set once: `run` takes the mesh.
        let _ = self.handler.agent.set(agent.clone());
        let mut members = agent.members();
        let mut redials: BTreeMap<NodeId, Redial> = BTreeMap::new();
        let mut dials: JoinSet<(NodeBoot, bool, Option<DialError>)> = JoinSet::new();
        let mut dialling: BTreeMap<NodeId, NodeBoot> = BTreeMap::new();
        loop {
            let now = Instant::now();
            let seen = Arc::clone(&members.borrow_and_update());
            let mut next = now + REDIAL_MAX;
            redials.retain(|node, redial| {
                let is_live = seen.find(*node).is_some_and(|m| m.state.is_live());
                // A link that is closed as soon as it is open must not be dialled without pause.
                is_live && (redial.at > now || self.links.open_link(*node).is_none())
            });
            for (who, addr) in self.missing(&seen) {
                if dialling.contains_key(&who.node) {
                    continue;
                }
                let redial = redials.entry(who.node).or_insert(Redial {
                    at: now,
                    pause: REDIAL_FIRST,
                    was_open: false,
                });
                if redial.at > now {
                    next = next.min(redial.at);
                    continue;
                }
                let was_open = redial.was_open;
                redial.at = now + redial.pause;
                redial.pause = (redial.pause * 2).min(REDIAL_MAX);
                dialling.insert(who.node, who);
                let links = self.links.clone();
                dials.spawn(async move {
                    let error = links.to(who.node, Some(who.boot), addr).await.err();
                    (who, was_open, error)
                });
            }
            tokio::select! {
                biased;
                Some(node) = self.broken.recv() => self.on_broken(node, &mut redials),
                Some(Ok((who, was_open, error))) = dials.join_next() => {
                    dialling.remove(&who.node);
                    match error {
                        None => {}
                        Some(error) => self.on_unreachable(&agent, who, was_open, &error),
                    }
                }
                changed = members.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Live members without an open link.
    fn missing(&self, members: &Members) -> Vec<(NodeBoot, SocketAddr)> {
        members
            .live_peers()
            .filter(|member| {
                let link = self.links.open_link(member.id);
                link.is_none_or(|link| link.peer().boot != member.boot)
            })
            .map(|member| (member.node_boot(), member.gossip))
            .collect()
    }

    fn on_broken(&self, node: NodeId, redials: &mut BTreeMap<NodeId, Redial>) {
        if self.links.open_link(node).is_some() {
            return;
        }
        self.handler.tell(MeshEvent::Disconnected(node));
        let fresh = Redial { at: Instant::now(), pause: REDIAL_FIRST, was_open: true };
        redials.entry(node).or_insert(fresh).was_open = true;
    }

    fn on_unreachable(&self, agent: &Agent, who: NodeBoot, was_open: bool, error: &DialError) {
        match error {
            DialError::Refused if was_open => agent.refused(who, self.me),
            DialError::WrongPeer { found } if found.node == who.node && found.boot > who.boot => {
                agent.other_boot(found.node, found.boot);
            }
            DialError::Refused
            | DialError::Timeout
            | DialError::Rejected(_)
            | DialError::Io(_)
            | DialError::WrongPeer { .. } => agent.accuse(who.node),
            DialError::Stopping | DialError::TooMany => {}
        }
    }
}
