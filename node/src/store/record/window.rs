//! What a session has answered lately, in records.

use serde::{Deserialize, Serialize};
use stead_shared::id::{RequestId, Version};
use stead_shared::time::Time;

use std::time::Duration;

use super::{as_bytes, micros_left};
use crate::logic::heal::counter::{self, Part};
use crate::logic::window::{Added, Content, Entry, Kept, Keyed, Trim, Window};

/// All of a session's window.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WindowRecord<'a> {
    floor_ms: u64,
    #[serde(borrow)]
    recent: Vec<EntryRecord<'a>>,
    #[serde(borrow)]
    keyed: Vec<EntryRecord<'a>>,
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
        let age = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        for entry in self.recent.iter_mut().chain(&mut self.keyed) {
            entry.left_micros = entry.left_micros.saturating_sub(age);
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
    fn of(entry: &'a Entry, now: Time) -> Self {
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
