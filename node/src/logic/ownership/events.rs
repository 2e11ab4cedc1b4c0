//! What goes into the machine and what comes out.

use super::*;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The time of [`Ownership::deadline`] has come.
    Tick,
    /// Members, and what follows from them.
    Members {
        /// Everybody.
        members: Arc<Members>,
        /// Where shards should be.
        targets: Arc<Targets>,
        /// Digest of all that `targets` was computed from.
        digest: u64,
    },
    /// A boot is dead; `confirmed`: proven, not only silent.
    Died {
        /// Who.
        who: NodeBoot,
        /// Whether it was refused or replaced rather than silent.
        confirmed: bool,
    },
    /// A link to this member is open.
    Connected(NodeBoot),
    /// No link to this member is open any more.
    Disconnected(NodeId),
    /// A claim log, or a part of one, came in.
    Claims(ClaimsUpdate),
    /// A member wants our whole claim log.
    ClaimsWanted(NodeId),
    /// A member speaks.
    Control {
        /// Who.
        from: NodeBoot,
        /// What.
        message: Control,
    },
    /// The gates that [`Action::Seal`] closed are quiet: no turn runs behind them.
    Sealed(HandoffId),
    /// State could not be sent.
    SendFailed(HandoffId),
    /// All state of an incoming handoff is here and its checksums agree.
    Received(HandoffId),
    /// The stream of an incoming handoff broke.
    ReceiveFailed(HandoffId),
    /// Sizes of shards that hold anything; all others are empty.
    Sizes(BTreeMap<ShardId, u64>),
    /// Hand everything off.
    Drain,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell a member.
    Send {
        /// Whom.
        to: NodeId,
        /// What.
        message: Control,
    },
    /// Tell every member that a link is open to.
    PushClaims(ClaimsUpdate),
    /// Tell one member our whole log.
    SendClaims {
        /// Whom.
        to: NodeId,
        /// The log.
        update: ClaimsUpdate,
    },
    /// Ask a member for its whole log.
    AskClaims {
        /// Whom.
        to: NodeId,
    },
    /// Tell the cluster that this node is ready.
    BecomeReady,
    /// Open gates over no state.
    OpenEmpty {
        /// The shards and the epochs to serve in.
        shards: Vec<ShardEpoch>,
        /// Whether a dead owner's sessions are gone with this.
        lost: bool,
    },
    /// Close gates now, tell [`Event::Sealed`] when running turns have ended.
    Seal {
        /// The move.
        handoff: HandoffId,
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Open gates again over the state that is there.
    Reopen {
        /// The shards and the new epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Stream sealed state to the target.
    SendState {
        /// The move.
        handoff: HandoffId,
        /// The target.
        to: NodeBoot,
        /// The shards, at the epochs they were served in.
        shards: Vec<ShardEpoch>,
    },
    /// Forget an incoming copy.
    DropCopy {
        /// The move.
        handoff: HandoffId,
    },
    /// Open gates over shards of an incoming copy.
    OpenCopy {
        /// The move.
        handoff: HandoffId,
        /// The shards and the epochs to serve in.
        shards: Vec<ShardEpoch>,
    },
    /// Drop state that has another owner now.
    DropState {
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Close gates: somebody else serves at a higher epoch. Offer it the sessions, then drop them.
    Yield {
        /// The owner with the higher epoch.
        to: NodeBoot,
        /// The shards and its epochs.
        shards: Vec<ShardEpoch>,
    },
    /// The claims that routing reads have changed.
    Publish,
    /// Nothing is left to hand off.
    Drained,
    /// Log this.
    Note(Note),
    /// Stop the process: the cluster did not let it in.
    GiveUp(GiveUp),
}

/// Something an operator may want to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Every shard claimed by this node, for a new cluster.
    Founded {
        /// No seed answered.
        alone: bool,
    },
    /// Ready, in a cluster that was there before.
    Joined,
    /// A handoff ended with the target's claim.
    HandedOff {
        /// The target.
        to: NodeBoot,
        /// Number of shards.
        n_shards: usize,
        /// Since `Prepare`... the seal.
        sealed_for: Duration,
    },
    /// A handoff was aborted.
    Aborted {
        /// The target.
        to: NodeBoot,
        /// Number of shards.
        n_shards: usize,
        /// Why.
        why: &'static str,
    },
    /// Shards of dead owners were claimed.
    TookOver {
        /// Number of shards.
        n_shards: usize,
    },
}

/// Why the process should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// Not ready within the limit.
    JoinTimeout,
}
