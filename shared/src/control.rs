//! What members tell each other about ownership, over the link.
//!
//! Every message is idempotent: a late or repeated one is harmless (R8).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::claims::{Book, ClaimRange};
use crate::id::{Epoch, NodeBoot, NodeId, ShardId, Version};

/// Kinds of calls and notes on the link.
pub mod kind {
    /// Call: membership lists, both ways.
    pub const PUSH_PULL: u8 = 1;
    /// Note: a [`ClaimsUpdate`](crate::claims::ClaimsUpdate).
    pub const CLAIMS: u8 = 2;
    /// Note: send your whole claim log.
    pub const CLAIMS_WANTED: u8 = 3;
    /// Note: a [`Control`](super::Control).
    pub const CONTROL: u8 = 4;
    /// Call: drain yourself; answered with nothing.
    pub const DRAIN: u8 = 5;
    /// Call: how far is your drain? Answered with JSON.
    pub const DRAIN_PROGRESS: u8 = 6;
    /// Note: a [`PinsNote`](crate::pins::PinsNote).
    pub const PINS: u8 = 7;
    /// Call: what is moving at your end? Answered with JSON.
    pub const MOVES: u8 = 8;
    /// Call: this node is gone for ever (its id, 8 bytes, little-endian); answered with nothing.
    pub const FORGET: u8 = 9;
}

/// The first byte of an encoded [`Control`]: the version of its layout.
const CONTROL_VERSION: u8 = 1;

/// A number of the sender's own that ties an answer to its question.
pub type Token = u64;

/// A move of some shards from one owner to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HandoffId {
    /// The source.
    pub source: NodeBoot,
    /// Its number there.
    pub number: u64,
}

/// A shard and an epoch of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardEpoch {
    /// The shard.
    pub shard: ShardId,
    /// Its epoch.
    pub epoch: Epoch,
}

/// Consecutive shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShardRange {
    /// First shard.
    pub first: u32,
    /// Number of shards.
    pub len: u32,
}

impl ShardRange {
    /// Packs sorted shards into ranges.
    #[must_use]
    pub fn pack(shards: impl IntoIterator<Item = ShardId>) -> Vec<Self> {
        let mut ranges: Vec<Self> = Vec::new();
        for shard in shards {
            match ranges.last_mut() {
                Some(last) if last.first + last.len == shard.0 => last.len += 1,
                _ => ranges.push(Self { first: shard.0, len: 1 }),
            }
        }
        ranges
    }

    /// The shards in the range that are below `n_shards`.
    pub fn shards(self, n_shards: u32) -> impl Iterator<Item = ShardId> {
        let end = self.first.saturating_add(self.len).min(n_shards);
        (self.first..end).map(ShardId)
    }
}

/// A live claim that the answerer knows, its own or another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holding {
    /// Who holds the shards.
    pub owner: NodeBoot,
    /// Which shards, at which counter.
    pub range: ClaimRange,
}

/// Why a target does not take shards now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NotNow {
    /// It is not ready, or is leaving.
    NotReady,
    /// It sees other members than the source does.
    OtherView,
    /// It already takes as many as it may.
    Busy,
}

/// A message about ownership.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Control {
    /// Forming: may I claim all shards for a cluster of these members?
    Propose {
        /// Ties the answer to the question.
        token: Token,
        /// All joining nodes that the proposer knows, itself included, sorted.
        members: Vec<NodeBoot>,
    },
    /// Forming: yes. Whoever said so follows no other proposer for a while.
    Accept {
        /// The proposal's token.
        token: Token,
    },
    /// Forming: no.
    Reject {
        /// The proposal's token.
        token: Token,
        /// A node with a lower id, a ready one, or the one promised to.
        rather: NodeBoot,
    },
    /// Who holds these shards?
    WhoHolds {
        /// Ties the answer to the question.
        token: Token,
        /// The asker's members digest: an answer counts only when it is the answerer's too.
        members_digest: u64,
        /// The shards.
        shards: Vec<ShardRange>,
    },
    /// What the answerer knows.
    Holds {
        /// The question's token.
        token: Token,
        /// The answerer's members digest.
        members_digest: u64,
        /// Claims with a live owner.
        holdings: Vec<Holding>,
        /// The highest counters it remembers, claims or not.
        highest: Vec<ClaimRange>,
    },
    /// Handoff: will you take these?
    Prepare {
        /// The move.
        handoff: HandoffId,
        /// The source's members digest.
        members_digest: u64,
        /// The shards, at the epochs the source serves.
        shards: Vec<ShardEpoch>,
        /// The source leaves: digests may differ.
        drain: bool,
    },
    /// Handoff: yes.
    Prepared {
        /// The move.
        handoff: HandoffId,
    },
    /// Handoff: no.
    Declined {
        /// The move.
        handoff: HandoffId,
        /// Why.
        why: NotNow,
    },
    /// Handoff: everything up to the seal is here.
    CaughtUp {
        /// The move.
        handoff: HandoffId,
    },
    /// Handoff: you own these now, at these epochs. Resent until the claim is seen.
    Grant {
        /// The move.
        handoff: HandoffId,
        /// The shards at their new epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Handoff: there is no copy to serve by this grant, and there never will be. The source may
    /// take the shards back.
    NoCopy {
        /// The move.
        handoff: HandoffId,
    },
    /// Handoff: a grant to be passed on, since the source may not reach its target.
    Relay {
        /// Whom to pass it to.
        to: NodeId,
        /// The move.
        handoff: HandoffId,
        /// The shards at their new epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Handoff: forget what you got.
    Abort {
        /// The move.
        handoff: HandoffId,
    },
    /// Handoff: these shards of a grant that came again have been served at least in its epochs,
    /// and have gone on to others since. Only to sources that speak protocol 2 or later.
    Served {
        /// The move.
        handoff: HandoffId,
        /// The shards, at the newest epochs in which the target served them.
        shards: Vec<ShardEpoch>,
    },
    /// Takeover: may I serve these from my copies, now that their owner is dead? Whoever has what
    /// the dead owner handed off to it, and has no grant yet, forgets it.
    TakeOver {
        /// Ties the answer to the question.
        token: Token,
        /// The dead owner.
        owner: NodeBoot,
        /// How far the asker knows its claim log.
        pos: u64,
        /// The shards.
        shards: Vec<ShardRange>,
    },
    /// Takeover: what stands against it. Who knows more of the dead owner's log has sent it first.
    Takeable {
        /// The question's token.
        token: Token,
        /// How far the answerer knows the dead owner's claim log.
        pos: u64,
        /// Claims with a live owner.
        holdings: Vec<Holding>,
        /// The highest counters it remembers.
        highest: Vec<ClaimRange>,
    },
    /// Do you know my claim log up to here?
    SeeClaims {
        /// A position in the sender's log.
        pos: u64,
    },
    /// Yes, the log of the one that asked is known up to here.
    SeenClaims {
        /// A position in the receiver's log.
        pos: u64,
    },
    /// Recovery: what of shards is on your disk, and which have you claimed empty? Only to nodes
    /// that speak protocol 3 or later.
    WhatSaved {
        /// Ties the answer to the question.
        token: Token,
    },
    /// Recovery: this.
    Saved {
        /// The question's token.
        token: Token,
        /// What the answerer's disk holds that nobody serves yet, and what it will serve from a copy
        /// in memory; one entry for each shard.
        shards: Vec<SavedShard>,
        /// Shards that the answerer has claimed empty, or from a state on disk.
        begun: Vec<BegunShard>,
        /// The position of its claim log. What it holds no more it may have claimed: the answer counts
        /// once the log is known up to here.
        pos: u64,
    },
}

/// A shard whose history goes on from a state that may not be the newest there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BegunShard {
    /// The shard, and the epoch in which it was claimed.
    pub at: ShardEpoch,
    /// From which state; none: from nothing.
    pub from: Option<Version>,
}

/// The state of a shard that nobody serves yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SavedShard {
    /// Which shard.
    pub shard: ShardId,
    /// Its last change there.
    pub at: Version,
    /// What it is.
    pub kind: SavedKind,
}

/// What the state of a shard is that nobody serves yet. The order of the variants is the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SavedKind {
    /// On disk, and not whole.
    Damaged,
    /// On disk: a copy of another node's.
    Copy,
    /// On disk: the owner's.
    Owner,
    /// A copy in memory with all that was acknowledged, about to be served.
    Heir,
}

/// Answers `WhoHolds` from a book: the same for routers and nodes.
///
/// `is_live` says whether an owner counts as alive. The first list are claims of such owners, the
/// second the highest counters remembered, whoever claimed them.
#[must_use]
pub fn who_holds(
    book: &Book,
    n_shards: u32,
    shards: &[ShardRange],
    is_live: impl Fn(NodeBoot) -> bool,
) -> (Vec<Holding>, Vec<ClaimRange>) {
    let mut holdings: Vec<Holding> = Vec::new();
    let mut highest: Vec<ClaimRange> = Vec::new();
    for shard in shards.iter().flat_map(|range| range.shards(n_shards)) {
        if let Some((epoch, owner)) = book.get(shard).filter(|&(_, owner)| is_live(owner)) {
            let range = ClaimRange { first: shard.0, len: 1, counter: epoch.counter };
            let last = holdings.last_mut().filter(|last| last.owner == owner);
            if !last.is_some_and(|last| extend(&mut last.range, range)) {
                holdings.push(Holding { owner, range });
            }
        }
        let counter = book.highest(shard);
        if counter > 0 {
            let range = ClaimRange { first: shard.0, len: 1, counter };
            if !highest.last_mut().is_some_and(|last| extend(last, range)) {
                highest.push(range);
            }
        }
    }
    (holdings, highest)
}

fn extend(last: &mut ClaimRange, next: ClaimRange) -> bool {
    let follows = last.first + last.len == next.first && last.counter == next.counter;
    if follows {
        last.len += next.len;
    }
    follows
}

/// Bytes that are no message of a version we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a control message of version {CONTROL_VERSION}")]
pub struct ControlError;

impl Control {
    /// Version byte and postcard.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// # Errors
    /// On another version, or bytes that do not decode. Never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        decode(bytes)
    }
}

/// Version byte and postcard, for all that travels beside [`Control`].
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let buffer = vec![CONTROL_VERSION];
    Bytes::from(postcard::to_extend(value, buffer).expect("plain data always encodes"))
}

/// The inverse of [`encode`].
///
/// # Errors
/// On another version, or bytes that do not decode. Never panics.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, ControlError> {
    decode_some(bytes).map(|(value, _)| value)
}

/// The same, with the bytes behind the value.
pub(crate) fn decode_some<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
) -> Result<(T, &[u8]), ControlError> {
    match bytes.split_first() {
        Some((&CONTROL_VERSION, rest)) => postcard::take_from_bytes(rest).map_err(|_| ControlError),
        _ => Err(ControlError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::BootId;

    #[test]
    fn a_message_reads_back_and_other_versions_do_not() {
        let source = NodeBoot { node: NodeId(3), boot: BootId(9) };
        let message = Control::Abort { handoff: HandoffId { source, number: 7 } };
        let bytes = message.encode();
        assert_eq!(Control::decode(&bytes), Ok(message));
        let mut other = bytes.to_vec();
        other[0] = 99;
        assert_eq!(Control::decode(&other), Err(ControlError));
        assert_eq!(Control::decode(&[]), Err(ControlError));
    }

    #[test]
    fn shards_pack_into_ranges() {
        let packed = ShardRange::pack([1, 2, 3, 7].map(ShardId));
        assert_eq!(packed, [ShardRange { first: 1, len: 3 }, ShardRange { first: 7, len: 1 }]);
        assert_eq!(ShardRange { first: 6, len: u32::MAX }.shards(8).count(), 2);
    }
}
