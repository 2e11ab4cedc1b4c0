//! What goes into the membership machine and what comes out of it.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::id::{BootId, NodeBoot, NodeId};
use crate::member::{Card, Phase};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum SwimEvent {
    /// The [`deadline`](super::Swim::deadline) has come. Early and repeated ticks are harmless.
    Tick,
    /// A datagram that was authenticated and opened.
    Datagram {
        /// Who sealed it.
        from: NodeBoot,
        /// Where it came from.
        source: SocketAddr,
        /// What was inside.
        payload: Bytes,
    },
    /// The answer to [`SwimAction::ResolveSeeds`]: all addresses of all seeds, own ones included
    /// or not.
    SeedAddrs(Vec<SocketAddr>),
    /// A peer's list, brought by its call or by its answer to ours. A callee calls
    /// [`Swim::answer`](super::Swim::answer) *after* handling this and sends what that returns.
    PushPull {
        /// Who sent it.
        from: NodeBoot,
        /// What it knows.
        state: SwimState,
    },
    /// A call asked for by [`SwimAction::PushPull`] came to nothing.
    PushPullFailed {
        /// The address of the call.
        addr: SocketAddr,
    },
    /// This process joins, is ready or leaves. Not a death: everybody sees the same boot.
    SetPhase(Phase),
    /// This process has another weight from now on.
    SetWeight(u16),
    /// A connect to this node failed or timed out: probe it now.
    Accuse(NodeId),
    /// A connect to the address of `node` was *refused* after its link broke.
    Refused {
        /// The process that should have been there.
        node: NodeBoot,
        /// Who saw it; this process itself, normally.
        by: NodeId,
    },
    /// *We* dialled the address recorded for `node`, and `boot` answered there.
    OtherBootAnswered {
        /// The node.
        node: NodeId,
        /// The boot that answered.
        boot: BootId,
    },
    /// The process asked by [`SwimAction::ProbeName`] answered in time.
    NameHeldBy {
        /// Its boot.
        boot: BootId,
    },
    /// It did not answer, or somebody else did.
    NameFree,
    /// Say goodbye. [`SwimAction::Left`] follows when everybody was told.
    Leave,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum SwimAction {
    /// Seal the payload for `to` and send it.
    Send {
        /// The receiver.
        to: NodeId,
        /// The boot it is meant for.
        to_boot: BootId,
        /// Its address.
        addr: SocketAddr,
        /// At most [`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX) bytes.
        payload: Bytes,
    },
    /// Resolve the names of all seeds anew and answer with [`SwimEvent::SeedAddrs`].
    ResolveSeeds,
    /// Call the member at `addr` with our [`state`](super::Swim::state) and feed its answer back
    /// as [`SwimEvent::PushPull`], or [`SwimEvent::PushPullFailed`].
    PushPull {
        /// Where.
        addr: SocketAddr,
        /// Whom we expect there, when known. Whoever answers is welcome.
        node: Option<NodeId>,
    },
    /// Dial `addr`, where `who` should be: when that is refused, say so by
    /// [`SwimEvent::Refused`] with ourselves as `by`; when another boot of the node answers, by
    /// [`SwimEvent::OtherBootAnswered`]; else do nothing.
    Dial {
        /// Who should be there.
        who: NodeBoot,
        /// Where.
        addr: SocketAddr,
    },
    /// [`Swim::members`](super::Swim::members) differs from before.
    Changed,
    /// Lists were exchanged with `with`, and what it knew is known here now.
    Synced {
        /// The peer.
        with: NodeBoot,
    },
    /// This boot of a node is dead. A member that said goodbye is
    /// [`Left`](crate::member::MemberState::Left) in the list instead and does not appear here.
    /// May be said twice of one boot: by silence first, confirmed later.
    Died {
        /// Which.
        who: NodeBoot,
        /// Whether there is proof (refused connects, a newer boot), or mere silence.
        confirmed: bool,
    },
    /// Ask the process at `addr` for its boot, over the link with a hello of both sides. Answer
    /// within the name timeout with [`SwimEvent::NameHeldBy`] when `old` is there, else with
    /// [`SwimEvent::NameFree`].
    ProbeName {
        /// Where it was last seen.
        addr: SocketAddr,
        /// Which boot of this node's name that was.
        old: NodeBoot,
    },
    /// Clocks disagree: an earlier boot of this node had a higher number. From now on this
    /// process has this one, in packets and hellos.
    BootIs(BootId),
    /// This process must not go on.
    Fatal(FatalReason),
    /// Everybody was told goodbye.
    Left,
}

/// Why a process must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatalReason {
    /// Another process of the same name was there first.
    #[error(
        "another process of this name is already a member and answers at {addr} (boot {boot}); \
         give this one another --name, or stop that one first"
    )]
    NameTaken {
        /// Where it answers.
        addr: SocketAddr,
        /// Its boot.
        boot: BootId,
    },
    /// A newer process of the same name has taken this one's place.
    #[error(
        "a newer process of this name has joined from {addr} (boot {boot}) and taken this one's \
         place; if both should run, give one another --name"
    )]
    Superseded {
        /// Where it answers.
        addr: SocketAddr,
        /// Its boot.
        boot: BootId,
    },
}

/// Everything that one member knows of all, for push/pull.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwimState {
    pub(crate) members: Vec<Entry>,
    pub(crate) cards: Vec<Card>,
}

impl SwimState {
    /// How many members are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Its wire form.
    ///
    /// # Panics
    /// Never: plain data always has a wire form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(postcard::to_stdvec(self).expect("plain data has a wire form"))
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// On anything that [`encode`](Self::encode) did not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeStateError> {
        postcard::from_bytes(bytes).map_err(DecodeStateError)
    }
}

/// Bytes that are no list of members.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list of members: {0}")]
pub struct DecodeStateError(postcard::Error);

/// One member in a [`SwimState`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) member: foca::Member<Identity>,
    /// Whether the sender has its card.
    pub(crate) has_card: bool,
}

/// What happened so far, for metrics and tests. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwimStats {
    /// Datagrams handled.
    pub packets_in: u64,
    /// Datagrams sent.
    pub packets_out: u64,
    /// Bytes of their payloads.
    pub bytes_out: u64,
    /// Datagrams that could not be read or were not meant for us.
    pub packets_refused: u64,
    /// Errors of the protocol core; a sign of a defect.
    pub core_errors: u64,
    /// Suspicions that were refuted in time.
    pub suspicions_refuted: u64,
    /// Accusations held back because we heard nobody.
    pub accusations_held: u64,
    /// Times this process had to take a new bump because somebody held it for dead.
    pub renewals: u64,
    /// Own notices sent beside the gossip.
    pub notices_out: u64,
    /// Times that this process stood still for longer than a probe waits.
    pub stalls: u64,
}
