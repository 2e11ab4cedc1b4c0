//! What a session has answered lately, so that a request that comes twice is applied once.
//!
//! A request keeps its id over all its attempts. An answer is kept with the change that it tells
//! of, as one entry of the session's window; whoever has the change has the entry.
//!
//! | what comes | in the window | not in it |
//! |---|---|---|
//! | the first attempt | its answer, again | runs |
//! | a later attempt, first sent after the floor | its answer, again | runs |
//! | a later attempt, first sent at the floor or before | its answer, again | outcome unknown |
//!
//! The *floor* is the latest first-sent time among entries that were removed: whatever was first
//! sent later, and is not here, has changed nothing. A first attempt is looked up as well: it may
//! have stood still on its way while a later one overtook it.
//!
//! A client may name its request itself, with an idempotency key. Those entries stay longer and
//! push only each other out. They know what was asked: a key that is used for something else is
//! an error of the client's.
//!
//! An entry leaves when its list has too many, or too many bytes, as another comes, and when its
//! time is over. Only the owner of the session decides that, and tells copies how many went.
//!
//! Entries of a list are numbered as they come, by each node for itself: on disk each is in the slot
//! that its number says ([`slot_of`]), where the one that took the slot before has left by then.

use std::collections::VecDeque;
use std::time::Duration;

use stead_shared::id::{Epoch, NodeId, RequestId, Version};
use stead_shared::rules::Rules;
use stead_shared::time::Time;

use crate::logic::heal::counter::Part;

/// Most answers that a session keeps by the ids of their requests. A client that waits for each
/// answer has one request under way: so many may share a session when its owner dies.
pub const RECENT_MAX: usize = 128;
/// Most answers that a session keeps by idempotency keys.
pub const KEYED_MAX: usize = 64;
/// Most bytes of each of the two lists.
pub const LIST_BYTES_MAX: usize = 128 << 10;
/// Most bytes of headers and body that are kept of one answer. Of a longer one only its status is,
/// and the version that it tells of.
pub const ANSWER_BYTES_MAX: usize = 16 << 10;
/// How long an answer is kept by its request's id: as long as routers wait for an answer.
pub const RECENT_FOR: Duration = Duration::from_secs(60);
/// How long an answer is kept by an idempotency key.
pub const KEYED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Most bytes of an idempotency key.
pub const KEY_BYTES_MAX: usize = 255;

/// Slots on disk of entries by the ids of their requests; those by idempotency keys come behind.
const RECENT_SLOTS: u32 = 128;
const KEYED_SLOTS: u32 = 64;
const _: () = assert!(RECENT_MAX <= RECENT_SLOTS as usize && KEYED_MAX <= KEYED_SLOTS as usize);

/// From how many entries on a window has the marks of their ids.
const MARKED_MIN: usize = 16;

/// What an entry costs beside its texts.
const ENTRY_OVERHEAD: usize = 128;
/// What it costs that an entry added to counters, beside the counters.
const ADDED_OVERHEAD: usize = 112;
/// What it costs that an entry added to one counter, beside its name.
const COUNTER_OVERHEAD: usize = 40;
/// What a window costs beside its entries.
const WINDOW_OVERHEAD: usize = 128;

/// The version of an answer whose change is not committed yet.
pub const NO_VERSION: Version = Version { epoch: Epoch { counter: 0, node: NodeId(0) }, seq: 0 };

/// What a request says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its id; none where whoever took it in has no name yet.
    pub id: Option<RequestId>,
    /// 1 for one that no node can have executed before.
    pub attempt: u16,
    /// When the first attempt was made, in Unix milliseconds by the clock that gave the id.
    pub first_sent_ms: u64,
    /// How the client named it, if it did.
    pub key: Option<Box<Keyed>>,
}

/// A request as its client named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// The idempotency key, 1 to [`KEY_BYTES_MAX`] bytes.
    pub name: Box<[u8]>,
    /// What was asked for: a hash of method, target and body.
    pub fingerprint: u128,
}

/// An answer as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its status.
    pub status: u16,
    /// When the session's value last changed, or the session where it has none.
    pub version: Version,
    /// Whether the answer named that version in an `ETag`, which is not among its headers.
    pub has_etag: bool,
    /// Its headers and its body; none where they were too long, or not all there.
    pub content: Option<Content>,
}

/// Headers and body of an answer, in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    bytes: Box<[u8]>,
    head_bytes: u32,
}

impl Content {
    /// None when they are too long.
    #[must_use]
    pub fn new(head: &[u8], body: &[u8]) -> Option<Self> {
        let head_bytes = u32::try_from(head.len()).ok()?;
        let fits = head.len() + body.len() <= ANSWER_BYTES_MAX;
        fits.then(|| Self { bytes: [head, body].concat().into(), head_bytes })
    }

    /// The headers, as they were given.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.bytes[..self.head_bytes as usize]
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.head_bytes as usize..]
    }
}

/// A request that was applied, and what it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: Option<RequestId>,
    /// When it was first sent, in Unix milliseconds.
    pub first_sent_ms: u64,
    /// How its client named it.
    pub key: Option<Box<Keyed>>,
    /// When it is of no use any more, by the clock of whoever owns the session.
    pub expires: Time,
    /// What it was answered.
    pub answer: Kept,
    /// What it added to counters; none where that is nothing.
    pub added: Option<Box<Added>>,
}

/// What a request added to the counters of its session, and how often that counts: see
/// [`twice`](crate::logic::heal::twice).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// Names, and what was added each time.
    pub counters: Vec<(Box<str>, i64)>,
    /// 1 in the epoch that it was executed in; in sum, 1.
    pub counts: Vec<Part>,
}

impl Entry {
    /// Of a request that is applied at `now`.
    #[must_use]
    pub fn new(asked: Asked, answer: Kept, now: Time) -> Self {
        let Asked { id, attempt: _, first_sent_ms, key } = asked;
        let kept_for = if key.is_some() { KEYED_FOR } else { RECENT_FOR };
        Self { id, first_sent_ms, key, expires: now + kept_for, answer, added: None }
    }

    /// Bytes that it is counted with.
    #[must_use]
    pub fn size(&self) -> usize {
        let key = self.key.as_ref().map_or(0, |key| key.name.len() + size_of::<Keyed>());
        let content = self.answer.content.as_ref().map_or(0, |content| content.bytes.len());
        let added = self.added.as_ref().map_or(0, |added| added.size());
        ENTRY_OVERHEAD + key + content + added
    }
}

impl Added {
    fn size(&self) -> usize {
        let names = self.counters.iter().map(|(name, _)| COUNTER_OVERHEAD + name.len());
        ADDED_OVERHEAD + names.sum::<usize>()
    }
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met<'a> {
    /// Nothing tells that it was applied: it runs.
    Run,
    /// It was applied, and this was the answer.
    Replay(&'a Kept),
    /// It may have been applied, and its answer is gone.
    Unknown,
    /// Its client has used the key for another request.
    OtherRequest,
}

/// How many entries leave a window, the oldest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trim {
    /// Of those that are kept by the ids of their requests.
    pub recent: u32,
    /// Of those that are kept by idempotency keys.
    pub keyed: u32,
}

impl Trim {
    /// Whether nothing leaves.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    recent: List,
    /// Of `recent`, while that is long.
    marks: Option<Box<Marks>>,
    /// None while it is empty: few sessions have any.
    keyed: Option<Box<List>>,
    floor_ms: u64,
}

/// A part of each id, in order. Those of a whole window are in a few cache lines, its entries in a
/// hundred, and every request is looked for.
#[derive(Clone, Debug)]
struct Marks {
    marks: VecDeque<u32>,
    /// No entry has an id with a higher counter. A process counts its requests, so that what is new
    /// from the busiest of them is above it and need not be looked for.
    highest: u64,
}

/// The bound does not come down with the entry that set it: whoever took the entries in later may
/// have a lower one.
impl PartialEq for Marks {
    fn eq(&self, other: &Self) -> bool {
        self.marks == other.marks
    }
}

impl Eq for Marks {}

impl Marks {
    fn of<'a>(entries: impl Iterator<Item = &'a Entry>) -> Box<Self> {
        let mut marks = Box::new(Self { marks: VecDeque::new(), highest: 0 });
        entries.for_each(|entry| marks.push(entry.id));
        marks
    }

    fn mark(id: Option<RequestId>) -> u32 {
        id.map_or(0, |id| id.counter as u32)
    }

    fn push(&mut self, id: Option<RequestId>) {
        self.marks.push_back(Self::mark(id));
        self.highest = self.highest.max(id.map_or(0, |id| id.counter));
    }

    fn may_have(&self, id: RequestId) -> bool {
        id.counter <= self.highest && self.marks.contains(&Self::mark(Some(id)))
    }
}

/// In the order in which the requests were applied, which is also that in which they expire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct List {
    entries: VecDeque<Entry>,
    /// At most a little more than [`LIST_BYTES_MAX`].
    bytes: u32,
    /// The number of the first entry. It wraps around.
    first: u32,
}

/// Where on disk the entry with this number is.
#[must_use]
pub fn slot_of(is_keyed: bool, number: u32) -> u8 {
    let slot = if is_keyed { RECENT_SLOTS + number % KEYED_SLOTS } else { number % RECENT_SLOTS };
    slot as u8
}

/// Whether entries by idempotency keys are in this slot.
#[must_use]
pub fn is_keyed_slot(slot: u8) -> bool {
    RECENT_SLOTS <= u32::from(slot)
}

/// The slots of each list, from the one that is filled first to the one that is filled last.
pub const SLOTS: [std::ops::Range<u8>; 2] =
    [0..RECENT_SLOTS as u8, RECENT_SLOTS as u8..(RECENT_SLOTS + KEYED_SLOTS) as u8];

/// A list without entries.
static EMPTY: List = List { entries: VecDeque::new(), bytes: 0, first: 0 };

impl List {
    fn push(&mut self, entry: Entry) {
        if self.entries.capacity() == 0 {
            // Most sessions have one.
            self.entries.reserve_exact(1);
        }
        self.bytes += entry.size() as u32;
        self.entries.push_back(entry);
    }

    /// Removes the oldest `n`; the latest time at which one of them was first sent.
    fn pop(&mut self, n: u32) -> u64 {
        let n = (n as usize).min(self.entries.len());
        let gone = self.entries.drain(..n);
        let (mut floor, mut bytes) = (0, 0);
        for entry in gone {
            floor = entry.first_sent_ms.max(floor);
            bytes += entry.size() as u32;
        }
        self.bytes -= bytes;
        self.first = self.first.wrapping_add(n as u32);
        floor
    }

    /// How many leave so that one of `bytes` more may come at `now`.
    fn surplus(&self, bytes: usize, n_max: usize, now: Time) -> u32 {
        let (mut n_left, mut left) = (self.entries.len(), self.bytes as usize + bytes);
        for entry in &self.entries {
            if now < entry.expires && n_left < n_max && left <= LIST_BYTES_MAX {
                break;
            }
            n_left -= 1;
            left -= entry.size();
        }
        (self.entries.len() - n_left) as u32
    }

    /// How many leave at `now`: all of them, once the last one is of no use any more.
    fn expired(&self, now: Time) -> u32 {
        let all = self.expires().is_some_and(|at| at <= now);
        if all { self.entries.len() as u32 } else { 0 }
    }

    fn expires(&self) -> Option<Time> {
        self.entries.back().map(|entry| entry.expires)
    }
}

impl Window {
    /// What is left of a window.
    #[must_use]
    pub fn from_parts(
        floor_ms: u64,
        recent: impl IntoIterator<Item = Entry>,
        keyed: impl IntoIterator<Item = Entry>,
    ) -> Self {
        let mut window = Self { floor_ms, ..Self::default() };
        recent.into_iter().for_each(|entry| window.push_recent(entry));
        keyed.into_iter().for_each(|entry| window.keyed_mut().push(entry));
        window
    }

    fn list(&self, is_keyed: bool) -> &List {
        if is_keyed { self.keyed.as_deref().unwrap_or(&EMPTY) } else { &self.recent }
    }

    fn keyed_mut(&mut self) -> &mut List {
        self.keyed.get_or_insert_default()
    }

    /// The same window, whose entries have numbers from these on.
    #[must_use]
    pub fn numbered_from(mut self, recent: u32, keyed: u32) -> Self {
        self.recent.first = recent;
        if let Some(list) = &mut self.keyed {
            list.first = keyed;
        }
        self
    }

    /// One of its lists, with the numbers of the entries, the oldest first.
    pub fn numbered(&self, is_keyed: bool) -> impl DoubleEndedIterator<Item = (u32, &Entry)> {
        let list = self.list(is_keyed);
        let (first, n) = (list.first, list.entries.len() as u32);
        (0..n).map(move |n| first.wrapping_add(n)).zip(&list.entries)
    }

    /// The number of the first entry of a list, and how many there are.
    #[must_use]
    pub fn extent(&self, is_keyed: bool) -> (u32, u32) {
        let list = self.list(is_keyed);
        (list.first, list.entries.len() as u32)
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.recent.entries.is_empty() && self.list(true).entries.is_empty()
    }

    /// The latest time at which a request was first sent whose entry is gone.
    #[must_use]
    pub fn floor_ms(&self) -> u64 {
        self.floor_ms
    }

    /// The latest time at which a request was first sent that is or was in it.
    #[must_use]
    pub fn newest_ms(&self) -> u64 {
        let here = self.recent().chain(self.keyed()).map(|entry| entry.first_sent_ms);
        here.max().unwrap_or(0).max(self.floor_ms)
    }

    /// Those that are kept by the ids of their requests, the oldest first.
    pub fn recent(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.recent.entries.iter()
    }

    /// Those that are kept by idempotency keys, the oldest first.
    pub fn keyed(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.list(true).entries.iter()
    }

    /// Bytes that it is counted with.
    #[must_use]
    pub fn size(&self) -> usize {
        let bytes = self.recent.bytes as usize + self.list(true).bytes as usize;
        if self.is_empty() { 0 } else { WINDOW_OVERHEAD + bytes }
    }

    /// Most bytes that a window may have once an entry is in it.
    #[must_use]
    pub fn bound(window: Option<&Self>, entry: Option<&Entry>) -> usize {
        let size = window.map_or(0, Self::size);
        entry.map_or(size, |entry| size.max(WINDOW_OVERHEAD) + entry.size())
    }

    /// The entry that came last, to one of the lists.
    #[must_use]
    pub fn newest(&self, is_keyed: bool) -> Option<&Entry> {
        self.list(is_keyed).entries.back()
    }

    /// When something of it is of no use any more.
    #[must_use]
    pub fn due(&self) -> Option<Time> {
        self.recent.expires().into_iter().chain(self.list(true).expires()).min()
    }

    /// When nothing of it is of any use any more.
    #[must_use]
    pub fn expires(&self) -> Option<Time> {
        self.recent.expires().max(self.list(true).expires())
    }

    /// What becomes of a request of a session with this window, in a shard where windows with
    /// that floor have ended.
    #[must_use]
    pub fn meet<'a>(
        window: Option<&'a Self>,
        shard_floor_ms: u64,
        asked: &Asked,
        rules: &Rules,
    ) -> Met<'a> {
        if !rules.applied_once {
            return Met::Run;
        }
        if let Some(met) = window.and_then(|window| window.find(asked)) {
            return met;
        }
        let floor_ms = window.map_or(0, Self::floor_ms).max(shard_floor_ms);
        if 1 < asked.attempt && asked.first_sent_ms <= floor_ms { Met::Unknown } else { Met::Run }
    }

    fn find(&self, asked: &Asked) -> Option<Met<'_>> {
        if let Some(key) = &asked.key {
            let named = |entry: &&Entry| entry.key.as_ref().is_some_and(|it| it.name == key.name);
            let entry = self.list(true).entries.iter().rev().find(named)?;
            let is_same = entry.key.as_ref().is_some_and(|it| it.fingerprint == key.fingerprint);
            return Some(if is_same { Met::Replay(&entry.answer) } else { Met::OtherRequest });
        }
        let id = asked.id?;
        Some(Met::Replay(&self.find_recent(id)?.answer))
    }

    fn find_recent(&self, id: RequestId) -> Option<&Entry> {
        if self.marks.as_ref().is_some_and(|marks| !marks.may_have(id)) {
            return None;
        }
        // Those that come again were here a moment ago.
        self.recent.entries.iter().rev().find(|entry| entry.id == Some(id))
    }

    fn push_recent(&mut self, entry: Entry) {
        if let Some(marks) = &mut self.marks {
            marks.push(entry.id);
        }
        self.recent.push(entry);
        if self.marks.is_none() && MARKED_MIN <= self.recent.entries.len() {
            self.marks = Some(Marks::of(self.recent()));
        }
    }

    fn pop_recent(&mut self, n: u32) -> u64 {
        let floor_ms = self.recent.pop(n);
        let n_left = self.recent.entries.len();
        if n_left < MARKED_MIN {
            self.marks = None;
        }
        if let Some(marks) = &mut self.marks {
            marks.marks.drain(..marks.marks.len() - n_left);
        }
        floor_ms
    }

    /// Puts an entry in at `now`. Gives how many others left before it came.
    #[must_use]
    pub fn add(&mut self, entry: Entry, now: Time) -> Trim {
        let trim = self.trim_for(&entry, now);
        self.follow(trim, Some(entry));
        trim
    }

    fn trim_for(&self, entry: &Entry, now: Time) -> Trim {
        let bytes = entry.size();
        match entry.key {
            None => Trim { recent: self.recent.surplus(bytes, RECENT_MAX, now), keyed: 0 },
            Some(_) => Trim { recent: 0, keyed: self.list(true).surplus(bytes, KEYED_MAX, now) },
        }
    }

    /// What either of two windows of a session has, within the bounds of one: the floor is the higher
    /// one. `in_both` gets each entry of ours that is in the other, too, with that one.
    #[must_use]
    pub fn united(
        &self,
        other: &Self,
        now: Time,
        mut in_both: impl FnMut(&mut Entry, &Entry),
    ) -> Self {
        let mut window = self.clone();
        window.floor_ms = self.floor_ms.max(other.floor_ms);
        for entry in other.recent().chain(other.keyed()) {
            let is_here = |it: &&mut Entry| it.id == entry.id && it.key == entry.key;
            let keyed = window.keyed.iter_mut().flat_map(|list| &mut list.entries);
            let mut here = window.recent.entries.iter_mut().chain(keyed);
            match here.find(is_here) {
                Some(here) => in_both(here, entry),
                None => drop(window.add(entry.clone(), now)),
            }
        }
        window
    }

    /// What leaves at `now` because it is of no use any more. It has not left yet.
    #[must_use]
    pub fn expired(&self, now: Time) -> Trim {
        Trim { recent: self.recent.expired(now), keyed: self.list(true).expired(now) }
    }

    /// Does what the owner of the session did: `trim` leave, then `entry` comes.
    pub fn follow(&mut self, trim: Trim, entry: Option<Entry>) {
        let keyed = self.keyed.as_mut().map_or(0, |list| list.pop(trim.keyed));
        let floor_ms = self.pop_recent(trim.recent).max(keyed);
        self.floor_ms = self.floor_ms.max(floor_ms);
        match entry {
            Some(entry) if entry.key.is_some() => self.keyed_mut().push(entry),
            Some(entry) => self.push_recent(entry),
            None => {}
        }
        self.keyed.take_if(|list| list.entries.is_empty());
    }
}

#[cfg(test)]
mod tests;
