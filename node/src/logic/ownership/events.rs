//! What goes into the machine and what comes out.

use stead_shared::claims::Replicas;
use stead_shared::control::BegunShard;

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
    Connected {
        /// Who.
        peer: NodeBoot,
        /// The version of the link's protocol that both speak.
        protocol: u8,
    },
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
    /// How far the copy that [`Action::Copy`] began is.
    Copied {
        /// The move.
        handoff: HandoffId,
        /// How far.
        progress: Progress,
    },
    /// The gates that [`Action::Seal`] closed are quiet: no turn runs behind them.
    Sealed(HandoffId),
    /// State could not be sent.
    SendFailed(HandoffId),
    /// The stream of an incoming handoff has begun.
    Receiving(HandoffId),
    /// All state of an incoming handoff is here and its checksums agree.
    Received(HandoffId),
    /// The stream of an incoming handoff broke.
    ReceiveFailed(HandoffId),
    /// Copies at `to` are complete and follow.
    Filled {
        /// The replica.
        to: NodeBoot,
        /// The shards, at the epochs they were served in.
        shards: Vec<ShardEpoch>,
    },
    /// A replica refused to follow.
    FollowerLost {
        /// The replica.
        to: NodeBoot,
        /// The shards, and why.
        shards: Vec<(ShardId, Unfollowed)>,
    },
    /// A replica that is waited for has acknowledged nothing for too long.
    FollowerSilent(NodeBoot),
    /// An owner has begun to fill copies here: what was here of these shards is gone.
    CopyBegun {
        /// The owner.
        owner: NodeBoot,
        /// The shards, at its epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Before [`Event::CopyBegun`]: there were complete copies of another owner's, which wait for
    /// [`Action::OfferReplaced`] or [`Action::DropReplaced`].
    CopyReplaced {
        /// The owner that fills.
        owner: NodeBoot,
        /// The shards, at its epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Copies here are complete and follow their owner.
    CopyComplete {
        /// The owner.
        owner: NodeBoot,
        /// The shards, at its epochs.
        shards: Vec<ShardEpoch>,
    },
    /// There was no copy to open these shards over: its owner, which is not dead after all, had begun
    /// to replace it.
    NotOpened(Vec<ShardEpoch>),
    /// What [`Action::OfferSaved`] was to offer of these shards is with their owners, or nobody took
    /// it: this node's disk is free for them.
    Offered(Vec<ShardId>),
    /// Sizes of shards that hold anything; all others are empty.
    Sizes(BTreeMap<ShardId, u64>),
    /// This process has not heard anybody for too long (R11): the doubt with this number begins.
    Doubt(u64),
    /// Somebody was heard during the doubt with this number.
    Heard(u64),
    /// An operator says that this node is gone for ever.
    Forget(NodeId),
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
    /// Send the state of shards that are served to the target, and what changes meanwhile, until
    /// [`Action::SendLast`] or [`Action::StopCopy`]; tell [`Event::Copied`] how far that is.
    Copy {
        /// The move.
        handoff: HandoffId,
        /// The target.
        to: NodeBoot,
        /// The shards, at the epochs they are served in.
        shards: Vec<ShardEpoch>,
        /// Whether the copy keeps to the budget for balance.
        budgeted: bool,
    },
    /// Let changes of shards that are copied through at no more than this rate.
    Throttle {
        /// The shards.
        shards: Vec<ShardId>,
        /// For each of them; none lifts the limit.
        bytes_per_second: Option<u64>,
    },
    /// The gates are quiet: send what has changed since, and then that this is all.
    SendLast {
        /// The move.
        handoff: HandoffId,
    },
    /// Break a copy off.
    StopCopy {
        /// The move.
        handoff: HandoffId,
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
    /// Send the whole state of sealed shards to a target that takes no copies while they serve.
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
    /// Answers of these shards wait from now on for these replicas and no others; those that are
    /// named no more follow no more.
    SetReplicas {
        /// The shards and who is named in their claims.
        sets: Vec<(ShardId, Replicas)>,
    },
    /// Fill copies at a replica, and let them follow; tell [`Event::Filled`].
    Fill {
        /// The replica.
        to: NodeBoot,
        /// The shards, at the epochs they are served in.
        shards: Vec<ShardEpoch>,
    },
    /// Let a replica follow that may hold the same state; tell [`Event::Filled`], or
    /// [`Event::FollowerLost`] when it does not. This comes before the gates open in these epochs:
    /// no change is to come in between.
    Adopt {
        /// The replica.
        to: NodeBoot,
        /// The shards, at the epochs they are served in.
        shards: Vec<ShardEpoch>,
        /// It is named in the claim already: answers wait for it.
        named: bool,
    },
    /// Send nothing more of these shards to a replica that their claims do not name.
    StopFill {
        /// The replica.
        to: NodeBoot,
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Make copies that follow `owner` of state that was granted to it.
    KeepCopy {
        /// The new owner.
        owner: NodeBoot,
        /// The shards, at its epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Forget copies of others' shards.
    DropReplicas {
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Offer copies of a dead owner's shards to who serves them now without them, then drop them.
    OfferReplicas {
        /// The owner.
        to: NodeBoot,
        /// The shards and its epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Offer what [`Event::CopyReplaced`] told of to who replaces it, then drop it.
    OfferReplaced {
        /// The owner.
        to: NodeBoot,
        /// The shards and its epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Drop what [`Event::CopyReplaced`] told of: it is of no use.
    DropReplaced {
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Open gates over copies of a dead owner's shards; tell [`Event::NotOpened`] where there is none.
    OpenReplica {
        /// The shards and the epochs to serve in.
        shards: Vec<ShardEpoch>,
    },
    /// Open gates over what the disk holds of these shards.
    OpenSaved {
        /// The shards and the epochs to serve in.
        shards: Vec<ShardEpoch>,
    },
    /// Forget what the disk holds of these shards: their owners have it, or something newer.
    DropSaved {
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Offer what the disk holds of these shards to their owner, which began without it.
    OfferSaved {
        /// The owner.
        to: NodeBoot,
        /// The shards and its epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Refuse requests of these shards: what the disk holds of them is damaged, and nobody has
    /// anything better.
    Quarantine {
        /// The shards and the epochs in which they are held.
        shards: Vec<ShardEpoch>,
    },
    /// Remember how these began that are about to come here, wherever they are written.
    NoteBegun {
        /// How each began.
        begun: Vec<BegunShard>,
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
    /// A doubt is over: what is served now is served rightly, as far as anybody knows.
    Certain {
        /// Its number.
        doubt: u64,
        /// Nobody is there to be asked.
        alone: bool,
    },
    /// Answer nothing from now on, or answer again.
    Stop(bool),
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
        /// Which one.
        handoff: HandoffId,
        /// The target.
        to: NodeBoot,
        /// Number of shards.
        n_shards: usize,
        /// Why.
        class: Class,
        /// How long each step took.
        took: Took,
    },
    /// A handoff was aborted.
    Aborted {
        /// Which one.
        handoff: HandoffId,
        /// The target.
        to: NodeBoot,
        /// Number of shards.
        n_shards: usize,
        /// Why.
        why: Abort,
    },
    /// Shards of a dead owner are served from copies.
    Promoted {
        /// The dead owner.
        from: NodeBoot,
        /// Number of shards.
        n_shards: usize,
    },
    /// Replicas of this node have taken shards over: it was taken for dead. What is here is offered
    /// to them; of most of it they have the same or more.
    Superseded {
        /// Number of shards.
        n_shards: usize,
    },
    /// This node is on the smaller side of a cut, or is not any more.
    Minority {
        /// Which.
        is_minority: bool,
        /// Whether it stops answering meanwhile.
        stops: bool,
        /// Nodes that count.
        settled: usize,
        /// How many of them are here.
        ready: usize,
    },
    /// Shards are served from this node's disk.
    Recovered {
        /// Number of shards.
        n_shards: usize,
    },
    /// Some of those are older than what another node's disk holds, which is damaged: the latest
    /// changes are lost.
    OlderThanDamaged {
        /// Number of shards.
        n_shards: usize,
    },
    /// Nodes that were in the cluster before are waited for: their disks may hold what is newest.
    WaitsForDisks {
        /// How long, from the start on.
        within: Duration,
    },
    /// Shards of dead owners were claimed.
    TookOver {
        /// Number of shards.
        n_shards: usize,
    },
}

/// How long each step of a handoff took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Took {
    /// From the question to the target until its answer.
    pub preparing: Duration,
    /// From there to the seal; nothing where the state was sent behind a closed gate.
    pub copying: Duration,
    /// From the seal to the grant: with `granting` the time in which nobody served.
    pub sealed: Duration,
    /// From the grant until the target's claim was seen.
    pub granting: Duration,
}

/// Why a handoff was called off. Nothing is lost by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Abort {
    /// The target said no.
    Declined,
    /// The target is dead, or leaves.
    TargetGone,
    /// Placement wants the shards elsewhere by now.
    NotWanted,
    /// A step took longer than it may.
    TooLate,
    /// The state could not be sent.
    Broken,
    /// Changes came faster than they could be sent.
    TooHot,
    /// After the grant, the target had no copy to serve, or was gone.
    NoCopy,
}

impl Abort {
    /// A word for metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Declined => "declined",
            Self::TargetGone => "target-gone",
            Self::NotWanted => "not-wanted",
            Self::TooLate => "too-late",
            Self::Broken => "broken",
            Self::TooHot => "too-hot",
            Self::NoCopy => "no-copy",
        }
    }
}

impl std::fmt::Display for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Declined => "the target declined",
            Self::TargetGone => "the target is gone",
            Self::NotWanted => "the shards are not to move there any more",
            Self::TooLate => "it took too long",
            Self::Broken => "the state could not be sent",
            Self::TooHot => "changes came faster than they could be sent",
            Self::NoCopy => "the target had no copy after the grant",
        })
    }
}

/// Why a replica does not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unfollowed {
    /// Its copy ends elsewhere than where the next entry begins.
    Behind,
    /// It has no copy, or not a whole one.
    NoCopy,
    /// It has no memory left for the copy.
    NoMemory,
    /// It knows of a higher epoch.
    HigherEpoch(Epoch),
}

/// Why the process should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// Not ready within the limit.
    JoinTimeout,
}
