//! Pins: shards placed by hand or by heat, whatever the matching says.
//!
//! Every member keeps a book of all pins. An entry is written once, by its author, and spreads to
//! everybody; each book keeps, per shard and kind, the entry with the highest (version, author).
//! Books are joined entry by entry, so that the order in which entries arrive, and how often, does
//! not matter: members that have heard the same agree.
//!
//! ```text
//! author                                    every other member
//!   pin(), unpin() ── Changed(entries) ──────▶ Pins::apply → Change
//!   on connect, every 10 s ── Digest ────────▶ equal: nothing; else
//!                  ◀── Changed(all of its) ──
//!                  ◀── Wanted ───────────────
//!                  ── Changed(all of ours) ──▶
//! ```
//!
//! **Hand beats heat**: the two kinds are kept apart, and an entry by heat counts only while none
//! by hand is in force. **An unpin is an entry too**: it names no node, and stays as long as
//! anything that it took the place of could have been in force, so that a late copy of that does
//! not come back. **Expiry** is in Unix milliseconds: members whose clocks differ disagree for that
//! long, and their digests say so. A pin to a node that is absent stays in the book and has no
//! effect until the node is there or the pin expires.
//!
//! Books live in memory: pins last as long as one member that knows them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::hash::ShardCount;
use crate::id::{NodeId, ShardId};
use crate::placement;

/// Shards that a member pins at most, unpinned ones that are still remembered included. Every
/// member keeps them all, and a note of this many entries has some 40 KiB.
pub const PINS_MAX: usize = 1_024;
/// The shortest time that a shard is pinned for.
pub const KEEP_MIN: Duration = Duration::from_secs(1);
/// The longest.
pub const KEEP_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Entries in one note. Keeps a note far below the longest message of a link.
const NOTE_ENTRIES: usize = 512;

/// Who wanted a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinKind {
    /// The balance of load.
    Heat,
    /// A person. Comes before heat.
    Hand,
}

/// What one author wrote about one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinEntry {
    /// The shard.
    pub shard: ShardId,
    /// By hand or by heat.
    pub kind: PinKind,
    /// The highest version counts.
    pub version: u64,
    /// The member that wrote the entry; of equal versions the highest author counts.
    pub author: NodeId,
    /// Where the shard should be; nowhere when it was unpinned.
    pub node: Option<NodeId>,
    /// In force until then, in Unix milliseconds.
    pub until_ms: u64,
    /// Remembered until then, in Unix milliseconds: not less than `until_ms`, nor than that of any
    /// entry whose place this one took.
    pub kept_ms: u64,
}

impl PinEntry {
    /// Whether it places its shard at `now_ms`.
    #[must_use]
    pub fn is_in_force(&self, now_ms: u64) -> bool {
        self.node.is_some() && now_ms < self.until_ms
    }

    /// The later of two entries for one shard and kind, remembered as long as either. Nothing but
    /// the values decide, so that every member makes the same of the same two.
    fn join(self, other: Self) -> Self {
        let rank = |entry: &Self| (entry.version, entry.author, entry.node, entry.until_ms);
        let later = if rank(&self) < rank(&other) { other } else { self };
        Self { kept_ms: self.kept_ms.max(other.kept_ms), ..later }
    }
}

/// What members tell each other about pins. Late and repeated notes are harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PinsNote {
    /// The sender's [`Pins::digest`]: whoever has another one answers.
    Digest(u64),
    /// Entries of the sender's book.
    Changed(Vec<PinEntry>),
    /// Send all of yours.
    Wanted,
}

/// What became of a book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Change {
    /// It is as it was.
    Same,
    /// An entry came or went: look at what is in force again.
    Changed,
}

/// A pin that was not made. The book is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// There are too many. A retry helps when some have expired.
    #[error(
        "there are {PINS_MAX} pinned shards, and no more are taken; `stead pins` lists them, and \
         those unpinned count until they would have expired"
    )]
    Full,
    /// By heat, while a pin by hand is in force. A retry helps when that has expired.
    #[error("{0} is pinned by hand")]
    PinnedByHand(ShardId),
    /// Too short or too long. A retry does not help.
    #[error("a shard can be pinned for 1 second to 366 days")]
    Keep,
}

/// Where a shard is to be kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinOrder {
    /// The shard.
    pub shard: ShardId,
    /// Where.
    pub node: NodeId,
    /// By hand or by heat.
    pub kind: PinKind,
    /// For how long, from [`KEEP_MIN`] to [`KEEP_MAX`].
    pub keep: Duration,
}

/// Everybody's pins. See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// At most one entry for each of the shards that can exist, of each kind.
    entries: BTreeMap<(ShardId, PinKind), PinEntry>,
}

impl Pins {
    /// Pins a shard. What comes out is to be told to everybody; the pin itself is the last of it.
    ///
    /// # Errors
    /// [`PinError`]; nothing changed.
    pub fn pin(
        &mut self,
        author: NodeId,
        order: PinOrder,
        now_ms: u64,
    ) -> Result<Vec<PinEntry>, PinError> {
        let PinOrder { shard, node, kind, keep } = order;
        if !(KEEP_MIN..=KEEP_MAX).contains(&keep) {
            return Err(PinError::Keep);
        }
        let by_hand = |pins: &Self| pins.effective(shard, PinKind::Hand, now_ms).is_some();
        if kind == PinKind::Heat && by_hand(self) {
            return Err(PinError::PinnedByHand(shard));
        }
        if self.of(shard).next().is_none() && self.n_shards() >= PINS_MAX {
            return Err(PinError::Full);
        }
        let until_ms = now_ms.saturating_add(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
        let mut written = Vec::new();
        if kind == PinKind::Hand {
            // It would come back when the pin by hand goes.
            written.extend(self.remove(author, shard, PinKind::Heat, now_ms));
        }
        let version = self.next_version(shard, now_ms);
        let node = Some(node);
        let entry = PinEntry { shard, kind, version, author, node, until_ms, kept_ms: until_ms };
        written.push(self.put(entry));
        Ok(written)
    }

    /// Takes the pins of a shard away. What comes out is to be told to everybody; nothing when the
    /// shard is not pinned.
    #[must_use]
    pub fn unpin(&mut self, author: NodeId, shard: ShardId, now_ms: u64) -> Vec<PinEntry> {
        let kinds = [PinKind::Heat, PinKind::Hand];
        kinds.into_iter().filter_map(|kind| self.remove(author, shard, kind, now_ms)).collect()
    }

    /// Takes in what another member has. Entries of shards that cannot exist, and those that
    /// nobody needs to remember any more, are passed over.
    pub fn apply(&mut self, entries: &[PinEntry], now_ms: u64) -> Change {
        let mut change = Change::Same;
        let fit = |entry: &&PinEntry| {
            ShardCount::MAX.contains(entry.shard) && now_ms < entry.kept_ms.max(entry.until_ms)
        };
        for entry in entries.iter().filter(fit) {
            let before = self.entries.get(&(entry.shard, entry.kind)).copied();
            if Some(self.put(*entry)) != before {
                change = Change::Changed;
            }
        }
        change
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now_ms: u64) -> Change {
        let before = self.entries.len();
        self.entries.retain(|_, entry| now_ms < entry.kept_ms);
        if self.entries.len() == before { Change::Same } else { Change::Changed }
    }

    /// The pins that count at `now_ms`, whether or not their nodes are there: one per shard,
    /// sorted by shard.
    #[must_use]
    pub fn in_force(&self, now_ms: u64) -> Vec<PinEntry> {
        let mut found: Vec<PinEntry> = Vec::new();
        for entry in self.entries.values().filter(|entry| entry.is_in_force(now_ms)) {
            match found.last_mut() {
                // Heat is sorted before hand.
                Some(last) if last.shard == entry.shard => *last = *entry,
                Some(_) | None => found.push(*entry),
            }
        }
        found
    }

    /// The same, as placement takes them.
    #[must_use]
    pub fn overlay(&self, now_ms: u64) -> Vec<placement::Pin> {
        let pin = |entry: PinEntry| {
            let PinEntry { shard, version, node, .. } = entry;
            node.map(|node| placement::Pin { shard, node, version })
        };
        self.in_force(now_ms).into_iter().filter_map(pin).collect()
    }

    /// The pin of one shard that counts at `now_ms`.
    #[must_use]
    pub fn pin_of(&self, shard: ShardId, now_ms: u64) -> Option<PinEntry> {
        self.effective(shard, PinKind::Hand, now_ms)
            .or_else(|| self.effective(shard, PinKind::Heat, now_ms))
    }

    /// Hash of all entries, 0 for none: members with equal ones have nothing to tell each other.
    #[must_use]
    pub fn digest(&self) -> u64 {
        if self.entries.is_empty() {
            return 0;
        }
        let mut hash = Xxh3::new();
        for entry in self.entries.values() {
            let words = [
                u64::from(entry.shard.0) << 1 | entry.kind as u64,
                entry.version,
                entry.author.0,
                entry.node.map_or(0, |node| node.0),
                u64::from(entry.node.is_some()),
                entry.until_ms,
                entry.kept_ms,
            ];
            words.iter().for_each(|word| hash.update(&word.to_le_bytes()));
        }
        hash.digest()
    }

    /// Everything, in notes that a link takes.
    pub fn notes(&self) -> impl Iterator<Item = PinsNote> {
        let entries: Vec<_> = self.entries.values().copied().collect();
        let notes: Vec<_> =
            entries.chunks(NOTE_ENTRIES).map(|some| PinsNote::Changed(some.to_vec())).collect();
        notes.into_iter()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn of(&self, shard: ShardId) -> impl Iterator<Item = &PinEntry> {
        let keys = (shard, PinKind::Heat)..=(shard, PinKind::Hand);
        self.entries.range(keys).map(|(_, entry)| entry)
    }

    fn n_shards(&self) -> usize {
        let mut shards: Vec<_> = self.entries.keys().map(|(shard, _)| *shard).collect();
        shards.dedup();
        shards.len()
    }

    fn effective(&self, shard: ShardId, kind: PinKind, now_ms: u64) -> Option<PinEntry> {
        self.entries.get(&(shard, kind)).filter(|entry| entry.is_in_force(now_ms)).copied()
    }

    /// Later than all that is known of the shard, and than what others wrote a while ago and is
    /// not known here yet.
    fn next_version(&self, shard: ShardId, now_ms: u64) -> u64 {
        let highest = self.of(shard).map(|entry| entry.version).max().unwrap_or(0);
        highest.saturating_add(1).max(now_ms)
    }

    fn remove(
        &mut self,
        author: NodeId,
        shard: ShardId,
        kind: PinKind,
        now_ms: u64,
    ) -> Option<PinEntry> {
        let pinned = self.effective(shard, kind, now_ms)?;
        let version = self.next_version(shard, now_ms);
        Some(self.put(PinEntry { version, author, node: None, until_ms: now_ms, ..pinned }))
    }

    /// Joins an entry with the one that is there; the outcome.
    fn put(&mut self, entry: PinEntry) -> PinEntry {
        let entry = PinEntry { kept_ms: entry.kept_ms.max(entry.until_ms), ..entry };
        match self.entries.entry((entry.shard, entry.kind)) {
            Entry::Vacant(vacant) => *vacant.insert(entry),
            Entry::Occupied(mut known) => {
                let joined = known.get().join(entry);
                known.insert(joined);
                joined
            }
        }
    }
}

#[cfg(test)]
mod tests;
