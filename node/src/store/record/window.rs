//! What a session has answered lately, in records.

use serde::{Deserialize, Serialize};
use stead_shared::id::{RequestId, Version};
use stead_shared::time::Time;

use std::time::Duration;

use super::{Record, RecordError, as_bytes, micros_left};
use crate::disk::SavedRow;
use crate::logic::heal::counter::{self, Part};
use crate::logic::window::{Added, Content, Entry, Kept, Keyed, Trim, Window, slot_of};

/// All of a session's window.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WindowRecord<'a> {
    floor_ms: u64,
    #[serde(borrow)]
    recent: Vec<EntryRecord<'a>>,
    #[serde(borrow)]
    keyed: Vec<EntryRecord<'a>>,
}

/// A window whose entries are elsewhere: of each list the number of its first entry, and how many
/// there are.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(super) floor_ms: u64,
    pub(super) recent: (u32, u32),
    pub(super) keyed: (u32, u32),
}

impl Extent {
    pub(super) fn of(window: &Window) -> Self {
        let (recent, keyed) = (window.extent(false), window.extent(true));
        Self { floor_ms: window.floor_ms(), recent, keyed }
    }

    /// The window with its entries, which are among these slots.
    ///
    /// # Errors
    /// [`RecordError`] when one is missing, or no record of an entry.
    pub(super) fn fill(self, now: Time, slots: &[(u8, SavedRow)]) -> Result<Window, RecordError> {
        let recent = entries(false, self.recent, slots, now)?;
        let keyed = entries(true, self.keyed, slots, now)?;
        let window = Window::from_parts(self.floor_ms, recent, keyed);
        Ok(window.numbered_from(self.recent.0, self.keyed.0))
    }
}

/// The entries of a list, the oldest first. Those that left are still in slots that nobody took since.
fn entries(
    is_keyed: bool,
    (first, n): (u32, u32),
    slots: &[(u8, SavedRow)],
    now: Time,
) -> Result<Vec<Entry>, RecordError> {
    let entry = |number: u32| {
        let slot = slot_of(is_keyed, number);
        let at = slots.binary_search_by_key(&slot, |(slot, _)| *slot);
        let (_, saved) = at.ok().and_then(|at| slots.get(at)).ok_or(RecordError::Malformed)?;
        match Record::decode(&saved.record)? {
            Record::Slot(found, mut entry) | Record::SlotAtRest(found, mut entry, ..)
                if found == number =>
            {
                entry.age(saved.age);
                Ok(entry.into_entry(now))
            }
            _ => Err(RecordError::Malformed),
        }
    };
    (0..n).map(|offset| entry(first.wrapping_add(offset))).collect()
}

/// What a change does to a session's window.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WindowChange<'a> {
    /// Entries that leave, the oldest first.
    pub(crate) recent_gone: u32,
    pub(crate) keyed_gone: u32,
    /// The one that comes.
    #[serde(borrow)]
    pub(crate) entry: Option<EntryRecord<'a>>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryRecord<'a> {
    id: Option<RequestId>,
    first_sent_ms: u64,
    #[serde(borrow)]
    key: Option<KeyRecord<'a>>,
    left_micros: u64,
    status: u16,
    version: Version,
    has_etag: bool,
    #[serde(borrow)]
    content: Option<ContentRecord<'a>>,
    #[serde(borrow)]
    added: Option<AddedRecord<'a>>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AddedRecord<'a> {
    #[serde(borrow)]
    counters: Vec<(&'a str, i64)>,
    counts: Vec<Part>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeyRecord<'a> {
    #[serde(serialize_with = "as_bytes")]
    name: &'a [u8],
    fingerprint: u128,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ContentRecord<'a> {
    #[serde(serialize_with = "as_bytes")]
    head: &'a [u8],
    #[serde(serialize_with = "as_bytes")]
    body: &'a [u8],
}

impl<'a> WindowRecord<'a> {
    pub(super) fn of(window: &'a Window, now: Time) -> Self {
        Self {
            floor_ms: window.floor_ms(),
            recent: window.recent().map(|entry| EntryRecord::of(entry, now)).collect(),
            keyed: window.keyed().map(|entry| EntryRecord::of(entry, now)).collect(),
        }
    }

    /// Takes away what has passed of its entries' times since the record was made.
    pub(crate) fn age(&mut self, age: Duration) {
        for entry in self.recent.iter_mut().chain(&mut self.keyed) {
            entry.age(age);
        }
    }

    /// The window whose times start at `now` where the record left off.
    pub(crate) fn into_window(self, now: Time) -> Window {
        let recent = self.recent.into_iter().map(|entry| entry.into_entry(now));
        let keyed = self.keyed.into_iter().map(|entry| entry.into_entry(now));
        Window::from_parts(self.floor_ms, recent, keyed)
    }
}

impl<'a> WindowChange<'a> {
    pub(super) fn of(trim: Trim, entry: Option<&'a Entry>, now: Time) -> Self {
        let entry = entry.map(|entry| EntryRecord::of(entry, now));
        Self { recent_gone: trim.recent, keyed_gone: trim.keyed, entry }
    }

    pub(crate) fn into_parts(self, now: Time) -> (Trim, Option<Entry>) {
        let trim = Trim { recent: self.recent_gone, keyed: self.keyed_gone };
        (trim, self.entry.map(|entry| entry.into_entry(now)))
    }
}

impl<'a> EntryRecord<'a> {
    /// Takes away what has passed of its time since the record was made.
    fn age(&mut self, age: Duration) {
        let age = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        self.left_micros = self.left_micros.saturating_sub(age);
    }

    /// Whether its client has named the request.
    pub(crate) fn is_keyed(&self) -> bool {
        self.key.is_some()
    }

    pub(super) fn of(entry: &'a Entry, now: Time) -> Self {
        let Entry { id, first_sent_ms, key, expires, answer, added } = entry;
        let key = key.as_deref();
        let content = answer.content.as_ref();
        Self {
            id: *id,
            first_sent_ms: *first_sent_ms,
            key: key.map(|key| KeyRecord { name: &key.name, fingerprint: key.fingerprint }),
            left_micros: micros_left(*expires, now),
            status: answer.status,
            version: answer.version,
            has_etag: answer.has_etag,
            content: content.map(|it| ContentRecord { head: it.head(), body: it.body() }),
            added: added.as_deref().map(AddedRecord::of),
        }
    }

    fn into_entry(self, now: Time) -> Entry {
        let named = |key: KeyRecord<'_>| {
            Box::new(Keyed { name: key.name.into(), fingerprint: key.fingerprint })
        };
        let answer = Kept {
            status: self.status,
            version: self.version,
            has_etag: self.has_etag,
            // A longer one than this version keeps is none.
            content: self.content.and_then(|it| Content::new(it.head, it.body)),
        };
        Entry {
            id: self.id,
            first_sent_ms: self.first_sent_ms,
            key: self.key.map(named),
            expires: now + Duration::from_micros(self.left_micros),
            answer,
            added: self.added.and_then(AddedRecord::into_added),
        }
    }
}

impl<'a> AddedRecord<'a> {
    fn of(added: &'a Added) -> Self {
        let counters = added.counters.iter().map(|(name, by)| (&**name, *by));
        Self { counters: counters.collect(), counts: added.counts.clone() }
    }

    /// None where it cannot be: what was added counts as it is then.
    fn into_added(self) -> Option<Box<Added>> {
        let counts = counter::checked(self.counts)?;
        let counters = self.counters.into_iter().map(|(name, by)| (name.into(), by));
        Some(Box::new(Added { counters: counters.collect(), counts }))
    }
}
