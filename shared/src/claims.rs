//! Who owns what: each owner's numbered log of its own claims, and the book that everybody keeps
//! of everybody's.
//!
//! A claim says "this boot of this node serves this shard in this epoch, and these boots hold copies
//! of it". The position in the owner's log tells which of two sets of copies is newer. Only the owner
//! writes its log; it pushes each batch of changes down every link it has, and the receiver applies
//! a batch only at the position where it begins. A gap, a checksum that differs or another boot
//! makes the receiver ask for the whole log, which is small: claims are run-length coded.
//!
//! ```text
//! owner                                   every other member
//!   commit() ── ClaimsUpdate{base: 4, pos: 5} ──▶ Book::apply → Applied
//!   commit() ── ClaimsUpdate{base: 6, pos: 7} ──▶ Book::apply → WantFull
//!   full()   ◀── ask ───────────────────────────
//!            ── ClaimsUpdate{base: None, pos: 7} ▶ Book::apply → Applied
//! ```
//!
//! Of several claims for one shard the one with the highest epoch counts, those of the living before
//! those of the dead. A claim of a dead boot stays in the book, so that its counter is not forgotten,
//! but holds nobody up.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::control::{self, ControlError};
use crate::id::{NodeBoot, ShardId};

mod book;
mod sets;

pub use book::{Applied, Book, ClaimTable, TableEntry};
pub use sets::{CLAIM_REPLICAS_MAX, Replicas, SetRange, Sets};

/// Consecutive shards with the same counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimRange {
    /// First shard.
    pub first: u32,
    /// Number of shards, at least 1.
    pub len: u32,
    /// Epoch counter under which the owner serves them; 0 when it released them.
    pub counter: u64,
}

/// A batch of changes to one owner's claims, or all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimsUpdate {
    /// Whose claims.
    pub owner: NodeBoot,
    /// Log position that the changes follow; `None` when `ranges` is the whole set.
    pub base: Option<u64>,
    /// Log position after them.
    pub pos: u64,
    /// The changes, sorted by shard.
    pub ranges: Vec<ClaimRange>,
    /// Sum over all claims of the owner after the changes.
    pub checksum: u64,
    /// Who holds copies of the shards in `ranges`.
    #[serde(skip)]
    pub sets: Sets,
}

impl ClaimsUpdate {
    /// Version byte and postcard; the sets come behind the rest, where readers of an older protocol
    /// do not look.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let bytes = control::encode(self);
        if self.sets == Sets::default() {
            return bytes;
        }
        let all = postcard::to_extend(&self.sets, Vec::from(bytes));
        Bytes::from(all.expect("plain data always encodes"))
    }

    /// The inverse of [`encode`](Self::encode). Without sets, as older versions write it, no claim
    /// has replicas.
    ///
    /// # Errors
    /// On another version, or bytes that do not decode. Never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        let (update, rest): (Self, _) = control::decode_some(bytes)?;
        let sets = match rest {
            [] => Sets::default(),
            _ => postcard::from_bytes(rest).map_err(|_| ControlError)?,
        };
        Ok(Self { sets, ..update })
    }
}

/// What one claim adds to the checksum: order does not matter, so that it can be kept up
/// incrementally.
fn weight(shard: ShardId, counter: u64) -> u64 {
    mix((u64::from(shard.0) << 32) ^ counter.wrapping_mul(GOLDEN))
}

/// 2^64 divided by the golden ratio, odd.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Spreads every bit over all of them: the last step of splitmix64 (Steele, Lea and Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Packs sorted `(shard, counter)` pairs into ranges.
fn ranges_of(pairs: impl Iterator<Item = (ShardId, u64)>) -> Vec<ClaimRange> {
    let mut ranges: Vec<ClaimRange> = Vec::new();
    for (shard, counter) in pairs {
        match ranges.last_mut() {
            Some(last) if last.first + last.len == shard.0 && last.counter == counter => {
                last.len += 1;
            }
            _ => ranges.push(ClaimRange { first: shard.0, len: 1, counter }),
        }
    }
    ranges
}

/// One owner's own log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimLog {
    me: NodeBoot,
    pos: u64,
    checksum: u64,
    sets_checksum: u64,
    claims: BTreeMap<ShardId, Claim>,
    dirty: BTreeSet<ShardId>,
}

/// What an owner claims of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Claim {
    counter: u64,
    replicas: Replicas,
}

impl ClaimLog {
    /// An empty log.
    #[must_use]
    pub fn new(me: NodeBoot) -> Self {
        let (claims, dirty) = (BTreeMap::new(), BTreeSet::new());
        Self { me, pos: 0, checksum: 0, sets_checksum: 0, claims, dirty }
    }

    /// Claims `shard` at `counter`, or at a higher one than before. Who holds copies of it stays.
    ///
    /// # Panics
    /// When the counter is 0 or lower than the one claimed: an epoch never falls.
    pub fn claim(&mut self, shard: ShardId, counter: u64) {
        let claim = self.claims.entry(shard).or_default();
        let old = std::mem::replace(&mut claim.counter, counter);
        assert!(counter > 0 && old <= counter, "the epoch of {shard} falls");
        if old > 0 {
            self.checksum = self.checksum.wrapping_sub(weight(shard, old));
        }
        self.checksum = self.checksum.wrapping_add(weight(shard, counter));
        self.dirty.insert(shard);
    }

    /// Says who holds copies of a shard that is claimed. False when that is nothing new.
    pub fn set_replicas(&mut self, shard: ShardId, replicas: Replicas) -> bool {
        let Some(claim) = self.claims.get_mut(&shard).filter(|it| it.replicas != replicas) else {
            return false;
        };
        let old = sets::weight(shard, &claim.replicas);
        let new = sets::weight(shard, &replicas);
        self.sets_checksum = self.sets_checksum.wrapping_sub(old).wrapping_add(new);
        claim.replicas = replicas;
        self.dirty.insert(shard);
        true
    }

    /// Gives the claim to `shard` up, if there is one.
    pub fn release(&mut self, shard: ShardId) {
        if let Some(old) = self.claims.remove(&shard) {
            self.checksum = self.checksum.wrapping_sub(weight(shard, old.counter));
            let set = sets::weight(shard, &old.replicas);
            self.sets_checksum = self.sets_checksum.wrapping_sub(set);
            self.dirty.insert(shard);
        }
    }

    /// The counter under which `shard` is claimed.
    #[must_use]
    pub fn counter(&self, shard: ShardId) -> Option<u64> {
        self.claims.get(&shard).map(|claim| claim.counter)
    }

    /// Who holds copies of `shard`, by its claim.
    #[must_use]
    pub fn replicas(&self, shard: ShardId) -> Replicas {
        self.claims.get(&shard).map_or(Replicas::NONE, |claim| claim.replicas.clone())
    }

    /// The position after the last commit.
    #[must_use]
    pub fn pos(&self) -> u64 {
        self.pos
    }

    /// All claims, by shard.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, u64)> + '_ {
        self.claims.iter().map(|(&shard, claim)| (shard, claim.counter))
    }

    /// Number of claims.
    #[must_use]
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// Whether nothing is claimed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Closes the batch of changes since the last call; `None` when there are none.
    pub fn commit(&mut self) -> Option<ClaimsUpdate> {
        if self.dirty.is_empty() {
            return None;
        }
        let base = self.pos;
        self.pos += 1;
        let dirty = std::mem::take(&mut self.dirty);
        let changes = dirty.iter().map(|s| (*s, self.claims.get(s).map_or(0, |it| it.counter)));
        let ranges = ranges_of(changes);
        let sets = dirty.iter().filter_map(|s| Some((*s, &self.claims.get(s)?.replicas)));
        let sets = Sets::pack(sets, self.sets_checksum);
        Some(self.update(Some(base), ranges, sets))
    }

    /// All claims as they were at the last commit or later.
    #[must_use]
    pub fn full(&self) -> ClaimsUpdate {
        let sets = self.claims.iter().map(|(shard, claim)| (*shard, &claim.replicas));
        self.update(None, ranges_of(self.iter()), Sets::pack(sets, self.sets_checksum))
    }

    /// Position and checksum alone: what anti-entropy compares.
    #[must_use]
    pub fn heartbeat(&self) -> ClaimsUpdate {
        let sets = Sets { checksum: self.sets_checksum, ..Sets::default() };
        self.update(Some(self.pos), Vec::new(), sets)
    }

    fn update(&self, base: Option<u64>, ranges: Vec<ClaimRange>, sets: Sets) -> ClaimsUpdate {
        let (owner, pos, checksum) = (self.me, self.pos, self.checksum);
        ClaimsUpdate { owner, base, pos, ranges, checksum, sets }
    }
}
