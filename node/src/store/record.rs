//! Sessions on their way to another node: one record each, after one for the shard.
//!
//! A record is a byte that names its format, and postcard. Times travel as what is left of them, since each
//! process has a clock of its own; what a record spends on the way is not counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use stead_shared::id::{KEY_BYTES_MAX, Version};
use stead_shared::time::Time;
use stead_shared::wire::link::ONCE_SINCE;

use super::core::Core;
use super::data::{Counter, Data, Stored, Timer};
use super::inner::Past;
use crate::disk::SavedRow;
use crate::logic::heal::Written;
use crate::logic::heal::counter::{self, Part};
use crate::logic::window::{Entry, NO_VERSION, Trim, Window, slot_of};

mod window;

pub(crate) use window::{EntryRecord, Extent, WindowChange, WindowRecord};

/// The newest format of records that this code knows: those that tell of windows have it.
const FORMAT: u8 = 2;
/// The format of all others, and of those for a process that knows no newer one.
const FORMAT_PLAIN: u8 = 1;

/// A record that cannot be read. Nothing of it was taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a version of this program that this one does not know.
    #[error("the record has format {0}, this version reads up to {FORMAT}")]
    Format(u8),
    /// Not a record.
    #[error("the bytes are not a record of a session")]
    Malformed,
    /// The record is fine, and there is no memory for it (`--memory-max`).
    #[error("no memory left for the record")]
    MemoryFull,
}

/// One record. The order of the variants and fields is the format; new variants go to the end.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record<'a> {
    /// The number of the shard's last change. The first record of a shard, and of a copy that
    /// was made while it served also the last one.
    Shard { seq: u64 },
    /// A session. It replaces what came before under its key.
    #[serde(borrow)]
    Session(SessionRecord<'a>),
    /// A session that was sent before is no more.
    Gone {
        #[serde(serialize_with = "as_bytes")]
        key: &'a [u8],
    },
    /// A session that was sent before was accessed since: this is what is left of its time.
    Touched {
        #[serde(serialize_with = "as_bytes")]
        key: &'a [u8],
        left_micros: u64,
    },
    /// A session that was changed, or is a tombstone now, and what that did to its window.
    Changed(#[serde(borrow)] SessionRecord<'a>, #[serde(borrow)] WindowChange<'a>),
    /// Entries of a session's window are of no use any more, the oldest first. A tombstone ends
    /// with its window.
    Trimmed {
        #[serde(serialize_with = "as_bytes")]
        key: &'a [u8],
        recent_gone: u32,
        keyed_gone: u32,
        floor_ms: u64,
    },
    /// The number of the shard's last change, as `Shard`, the floor of windows that have ended, and
    /// the last change in each epoch before this one.
    ShardPast { seq: u64, floor_ms: u64, lineage: Vec<Version> },
    /// A session or a tombstone, with all that is known of it. It replaces what came before under its
    /// key.
    Whole(
        #[serde(borrow)] SessionRecord<'a>,
        SessionPast,
        #[serde(borrow)] Option<WindowRecord<'a>>,
    ),
    /// Of what follows, whoever took the shard over has all that was answered.
    Unconfirmed,
    /// A session or a tombstone on disk, with all that is known of it but the entries of its window,
    /// each of which is in a slot beside it.
    AtRest(#[serde(borrow)] SessionRecord<'a>, SessionPast, Option<Extent>),
    /// Such an entry, and its number.
    Slot(u32, #[serde(borrow)] EntryRecord<'a>),
    /// Both in one: an entry and the session that it came with.
    SlotAtRest(
        u32,
        #[serde(borrow)] EntryRecord<'a>,
        #[serde(borrow)] SessionRecord<'a>,
        SessionPast,
        Extent,
    ),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRecord<'a> {
    #[serde(serialize_with = "as_bytes")]
    pub(super) key: &'a [u8],
    #[serde(serialize_with = "as_bytes_if_any", borrow)]
    value: Option<&'a [u8]>,
    schema: Option<u32>,
    value_version: Version,
    version: Version,
    ttl_micros: u64,
    left_micros: u64,
    #[serde(borrow)]
    counters: Vec<(&'a str, i64)>,
    #[serde(borrow)]
    timers: Vec<TimerRecord<'a>>,
    timer_last: u32,
}

/// Where what is in a session comes from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionPast {
    written_micros: u64,
    /// What was added to each counter in each epoch, in the order of the session's record.
    parts: Vec<Vec<Part>>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TimerRecord<'a> {
    id: u32,
    left_micros: u64,
    period_micros: u64,
    #[serde(serialize_with = "as_bytes")]
    event: &'a [u8],
}

/// A record for one that speaks this version of the link's protocol.
pub(crate) fn for_peer(record: Bytes, protocol: u8) -> Bytes {
    if ONCE_SINCE <= protocol || record.first() != Some(&FORMAT) {
        return record;
    }
    Record::decode(&record).map_or_else(|_| record.clone(), |known| known.plain().encode())
}

/// The same bytes as a sequence of numbers would give, written at once.
fn as_bytes<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(bytes)
}

fn as_bytes_if_any<S: Serializer>(bytes: &Option<&[u8]>, to: S) -> Result<S::Ok, S::Error> {
    struct Raw<'a>(&'a [u8]);
    impl Serialize for Raw<'_> {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_bytes(self.0)
        }
    }
    bytes.map(Raw).serialize(to)
}

impl<'a> Record<'a> {
    pub(crate) fn encode(&self) -> Bytes {
        self.encode_about(0)
    }

    /// The same of a record that is about so long.
    pub(crate) fn encode_about(&self, length: u64) -> Bytes {
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        self.encode_to(&mut bytes);
        bytes.into()
    }

    /// Writes the record behind what is in `out`.
    pub(crate) fn encode_to(&self, out: &mut Vec<u8>) {
        out.push(if self.is_plain() { FORMAT_PLAIN } else { FORMAT });
        let bytes = postcard::to_extend(self, std::mem::take(out));
        *out = bytes.expect("a record has no field that postcard cannot write");
    }

    /// The same for one that speaks this version of the link's protocol.
    pub(crate) fn encode_for(&self, protocol: u8, out: &mut Vec<u8>) {
        if ONCE_SINCE <= protocol || self.is_plain() {
            self.encode_to(out);
        } else {
            out.extend_from_slice(&for_peer(self.encode(), protocol));
        }
    }

    /// # Errors
    /// When the bytes are no record, or one of a version that is not known here.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (format, rest) = bytes.split_first().ok_or(RecordError::Malformed)?;
        if !(FORMAT_PLAIN..=FORMAT).contains(format) {
            return Err(RecordError::Format(*format));
        }
        let Ok((record, [])) = postcard::take_from_bytes::<Self>(rest) else {
            return Err(RecordError::Malformed);
        };
        let is_fit = record.is_plain() == (*format == FORMAT_PLAIN)
            && record.key().is_none_or(|key| (1..=KEY_BYTES_MAX).contains(&key.len()));
        if is_fit { Ok(record) } else { Err(RecordError::Malformed) }
    }

    /// Whether a process that does not know windows reads it.
    fn is_plain(&self) -> bool {
        match self {
            Self::Shard { .. } | Self::Session(_) | Self::Gone { .. } | Self::Touched { .. } => {
                true
            }
            Self::Changed(..)
            | Self::Trimmed { .. }
            | Self::ShardPast { .. }
            | Self::Whole(..)
            | Self::Unconfirmed
            | Self::AtRest(..)
            | Self::Slot(..)
            | Self::SlotAtRest(..) => false,
        }
    }

    fn key(&self) -> Option<&'a [u8]> {
        match self {
            Self::Shard { .. } | Self::ShardPast { .. } | Self::Unconfirmed | Self::Slot(..) => {
                None
            }
            Self::Session(SessionRecord { key, .. })
            | Self::AtRest(SessionRecord { key, .. }, ..)
            | Self::SlotAtRest(_, _, SessionRecord { key, .. }, ..)
            | Self::Whole(SessionRecord { key, .. }, ..)
            | Self::Changed(SessionRecord { key, .. }, _)
            | Self::Gone { key }
            | Self::Touched { key, .. }
            | Self::Trimmed { key, .. } => Some(key),
        }
    }

    /// The session that this record has all of, as if it had been made `age` ago.
    ///
    /// # Errors
    /// When it is a record of something else, or one that cannot be.
    pub(crate) fn into_stored(self, core: &Core, age: Duration) -> Result<Stored, RecordError> {
        let (session, past, window) = match self {
            Self::Session(session) => (session, None, None),
            Self::Whole(session, past, window) => (session, Some(past), window),
            Self::Shard { .. }
            | Self::ShardPast { .. }
            | Self::Unconfirmed
            | Self::AtRest(..)
            | Self::Slot(..)
            | Self::SlotAtRest(..)
            | Self::Gone { .. }
            | Self::Touched { .. }
            | Self::Changed(..)
            | Self::Trimmed { .. } => return Err(RecordError::Malformed),
        };
        let window = window.map(|mut window| {
            window.age(age);
            window.into_window(core.now())
        });
        restored(core, (session, past, window), age)
    }

    /// The version of the session that this record of the disk tells of; of a shard's past that of
    /// nothing.
    pub(crate) fn version_at_rest(&self) -> Option<Version> {
        match self {
            Self::AtRest(session, ..)
            | Self::SlotAtRest(_, _, session, ..)
            | Self::Session(session)
            | Self::Whole(session, ..) => Some(session.version),
            Self::ShardPast { .. } => Some(NO_VERSION),
            Self::Shard { .. }
            | Self::Gone { .. }
            | Self::Touched { .. }
            | Self::Changed(..)
            | Self::Trimmed { .. }
            | Self::Unconfirmed
            | Self::Slot(..) => None,
        }
    }

    /// The session that this record of the disk tells of, if it is one of a session, with the entries
    /// of its window from its slots.
    ///
    /// # Errors
    /// When it is a record of something else, or its slots are not those of its window.
    pub(crate) fn into_stored_with(
        self,
        core: &Core,
        age: Duration,
        slots: &[(u8, SavedRow)],
    ) -> Result<Stored, RecordError> {
        let (session, past, extent) = match self {
            Self::AtRest(session, past, extent) => (session, past, extent),
            Self::SlotAtRest(_, _, session, past, extent) => (session, past, Some(extent)),
            other => return other.into_stored(core, age),
        };
        let window = extent.map(|extent| extent.fill(core.now(), slots)).transpose()?;
        restored(core, (session, Some(past), window), age)
    }

    /// What of it a process is told that does not know windows.
    pub(crate) fn plain(self) -> Self {
        match self {
            Self::Changed(session, _) | Self::Whole(session, ..) if session.is_nothing() => {
                Self::Gone { key: session.key }
            }
            Self::Changed(session, _) | Self::Whole(session, ..) => Self::Session(session),
            Self::ShardPast { seq, .. } => Self::Shard { seq },
            // It counts as a change all the same.
            Self::Trimmed { .. } | Self::Unconfirmed => Self::Shard { seq: 0 },
            Self::AtRest(session, ..) | Self::SlotAtRest(_, _, session, ..) => {
                Self::Session(session)
            }
            Self::Slot(..) => Self::Shard { seq: 0 },
            Self::Shard { .. } | Self::Session(_) | Self::Gone { .. } | Self::Touched { .. } => {
                self
            }
        }
    }

    /// The record of a shard whose last change has this number.
    pub(crate) fn of_shard(seq: u64, past: Past) -> Self {
        let Past { floor_ms, lineage } = past;
        match (floor_ms, lineage.ends()) {
            (0, []) => Self::Shard { seq },
            (floor_ms, ends) => Self::ShardPast { seq, floor_ms, lineage: ends.to_vec() },
        }
    }

    /// The record of a session, or of a tombstone, as it is at `now`.
    pub(crate) fn of(key: &'a [u8], data: &'a Data, expires: Time, now: Time) -> Self {
        let session = SessionRecord::of(key, data, expires, now);
        let window = data.window().map(|window| WindowRecord::of(window, now));
        Self::Whole(session, SessionPast::of(data), window)
    }

    /// The same for the disk, without the entries of its window.
    pub(crate) fn at_rest(key: &'a [u8], data: &'a Data, expires: Time, now: Time) -> Self {
        let session = SessionRecord::of(key, data, expires, now);
        Self::AtRest(session, SessionPast::of(data), data.window().map(Extent::of))
    }

    /// The record of an entry with this number.
    pub(crate) fn slot(number: u32, entry: &'a Entry, now: Time) -> Self {
        Self::Slot(number, EntryRecord::of(entry, now))
    }

    /// The record of a session and of the newest entry in a list of its window, and that entry's slot.
    /// None without one.
    pub(crate) fn slot_at_rest(
        (key, data, expires): (&'a [u8], &'a Data, Time),
        is_keyed: bool,
        now: Time,
    ) -> Option<(u8, Self)> {
        let window = data.window()?;
        let (number, entry) = window.numbered(is_keyed).next_back()?;
        let session = SessionRecord::of(key, data, expires, now);
        let entry = EntryRecord::of(entry, now);
        let (past, extent) = (SessionPast::of(data), Extent::of(window));
        let record = Self::SlotAtRest(number, entry, session, past, extent);
        Some((slot_of(is_keyed, number), record))
    }

    /// The record of a session whose change let `trim` leave its window, and `entry` come.
    pub(crate) fn of_change(
        (key, data, expires): (&'a [u8], &'a Data, Time),
        (trim, entry): (Trim, Option<&'a Entry>),
        now: Time,
    ) -> Self {
        let session = SessionRecord::of(key, data, expires, now);
        match data.window() {
            None => Self::Session(session),
            Some(_) => Self::Changed(session, WindowChange::of(trim, entry, now)),
        }
    }

    /// The record of an access.
    pub(crate) fn touched(key: &'a [u8], expires: Time, now: Time) -> Self {
        Self::Touched { key, left_micros: micros_left(expires, now) }
    }
}

/// The session of a record that was made `age` ago, with its window.
fn restored(
    core: &Core,
    (mut session, past, window): (SessionRecord<'_>, Option<SessionPast>, Option<Window>),
    age: Duration,
) -> Result<Stored, RecordError> {
    session.age(age);
    let mut stored = session.into_stored(core.now());
    if let Some(past) = past {
        stored = past.complete(stored)?;
        core.see_stamp(stored.data.written);
    }
    if let Some(window) = window {
        stored.set_window(window);
    }
    Ok(stored)
}

impl<'a> SessionRecord<'a> {
    fn of(key: &'a [u8], data: &'a Data, expires: Time, now: Time) -> Self {
        let timers = data.timers().iter().map(|timer| TimerRecord {
            id: timer.id,
            left_micros: micros_left(timer.due, now),
            period_micros: timer.period_micros,
            event: &timer.event,
        });
        let counters = data.counters().iter().map(|c| (&*c.name, c.value));
        Self {
            key,
            value: data.value.as_deref(),
            schema: data.schema(),
            value_version: data.value_version(),
            version: data.version(),
            ttl_micros: data.ttl_micros,
            left_micros: micros_left(expires, now),
            counters: counters.collect(),
            timers: timers.collect(),
            timer_last: data.timer_last,
        }
    }

    /// Whether it tells of a session that does not exist.
    fn is_nothing(&self) -> bool {
        self.value.is_none() && self.counters.is_empty() && self.timers.is_empty()
    }

    pub(crate) fn key(&self) -> &[u8] {
        self.key
    }

    /// Takes away what has passed of its time and of its timers' since the record was made.
    pub(crate) fn age(&mut self, age: Duration) {
        let age = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        self.left_micros = self.left_micros.saturating_sub(age);
        for timer in &mut self.timers {
            timer.left_micros = timer.left_micros.saturating_sub(age);
        }
    }

    /// The session that starts at `now` where the record left off.
    pub(crate) fn into_stored(self, now: Time) -> Stored {
        let mut counters: Vec<Counter> = self
            .counters
            .into_iter()
            .map(|(name, value)| Counter::new(name, value, self.version))
            .collect();
        // Lookups rely on the order, and a peer's word is no proof of it.
        counters.sort_by(|a, b| a.name.cmp(&b.name));
        counters.dedup_by(|a, b| a.name == b.name);
        let timers: Vec<Timer> = self.timers.into_iter().map(|timer| timer.start(now)).collect();
        let mut data = Data::empty(self.version);
        data.value = self.value.map(Arc::from);
        data.set_value_version(self.value_version);
        data.ttl_micros = self.ttl_micros;
        data.counters = (!counters.is_empty()).then(|| Arc::new(counters));
        data.set_timers(timers);
        data.timer_last = self.timer_last;
        data.set_schema(self.schema);
        let expires = now + Duration::from_micros(self.left_micros);
        let bytes = u32::try_from(data.size(self.key.len())).unwrap_or(u32::MAX);
        Stored { key: self.key.into(), data, expires, bytes, activated: false }
    }
}

impl SessionPast {
    fn of(data: &Data) -> Self {
        let parts = data.counters().iter().map(Counter::parts).collect();
        Self { written_micros: data.written.0, parts }
    }

    /// What the session of the record that it came with is with this.
    ///
    /// # Errors
    /// When it is of other counters.
    pub(crate) fn complete(self, mut stored: Stored) -> Result<Stored, RecordError> {
        stored.data.written = Written(self.written_micros);
        if self.parts.len() != stored.data.counters().len() {
            return Err(RecordError::Malformed);
        }
        let mut counters = Vec::with_capacity(self.parts.len());
        for (counter, parts) in stored.data.counters().iter().zip(self.parts) {
            let parts = counter::checked(parts).ok_or(RecordError::Malformed)?;
            let whole = Counter::of(&counter.name, parts);
            let whole = whole.filter(|whole| whole.value == counter.value);
            counters.push(whole.ok_or(RecordError::Malformed)?);
        }
        stored.data.set_counters(counters);
        Ok(stored)
    }
}

impl TimerRecord<'_> {
    fn start(self, now: Time) -> Timer {
        Timer {
            id: self.id,
            due: now + Duration::from_micros(self.left_micros),
            period_micros: self.period_micros,
            event: self.event.into(),
        }
    }
}

fn micros_left(at: Time, now: Time) -> u64 {
    u64::try_from(at.since(now).as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stead_shared::id::{BootId, Epoch, NodeId, RequestId};

    use super::*;
    use crate::logic::window::{Added, Asked, Content, Kept, Keyed};

    fn session() -> SessionRecord<'static> {
        let version = Version { epoch: Epoch { counter: 3, node: NodeId(9) }, seq: 17 };
        SessionRecord {
            key: b"alice",
            value: Some(b"cart"),
            schema: Some(2),
            value_version: Version { seq: 4, ..version },
            version,
            ttl_micros: 5_000_000,
            left_micros: 4_000_000,
            counters: vec![("visits", -7)],
            timers: vec![TimerRecord { id: 1, left_micros: 10, period_micros: 20, event: b"tick" }],
            timer_last: 3,
        }
    }

    fn entry(counter: u64, name: Option<&str>) -> Entry {
        let id = Some(RequestId { boot: BootId(7), counter });
        let named = |name: &str| Box::new(Keyed { name: name.as_bytes().into(), fingerprint: 9 });
        let asked = Asked { id, attempt: 1, first_sent_ms: 300, key: name.map(named) };
        let content = Content::new(b"head", b"body");
        let version = Version { epoch: Epoch { counter: 3, node: NodeId(9) }, seq: 17 };
        let answer = Kept { status: 200, version, has_etag: true, content };
        let counters = name.map(|name| (name.into(), 5)).into_iter().collect();
        let added = Added::new(counters, version);
        Entry { added, ..Entry::new(asked, answer, Time::ZERO) }
    }

    /// What is in it lives as long as the process.
    fn window() -> WindowRecord<'static> {
        let window = Window::from_parts(200, [entry(1, None)], [entry(2, Some("key"))]);
        WindowRecord::of(Box::leak(Box::new(window)), Time::ZERO)
    }

    fn change() -> WindowChange<'static> {
        let entry = Box::leak(Box::new(entry(3, None)));
        WindowChange::of(Trim { recent: 1, keyed: 0 }, Some(entry), Time::ZERO)
    }

    fn whole() -> Record<'static> {
        let epoch = |counter| Epoch { counter, node: NodeId(9) };
        let parts = vec![
            Part { epoch: epoch(1), seq: 4, sum: -10, is_folded: true },
            Part { epoch: epoch(3), seq: 9, sum: 3, is_folded: false },
        ];
        let past = SessionPast { written_micros: 77, parts: vec![parts] };
        Record::Whole(session(), past, Some(window()))
    }

    #[test]
    fn parts_that_do_not_make_the_counter_are_refused() {
        let part = |sum| Part::new(session().version, sum);
        for parts in [vec![], vec![vec![]], vec![vec![part(-6)]], vec![vec![part(-7), part(0)]]] {
            let past = SessionPast { written_micros: 1, parts };
            let stored = past.complete(session().into_stored(Time::ZERO));
            assert_eq!(stored.err(), Some(RecordError::Malformed));
        }
    }

    fn at_rest() -> Record<'static> {
        let Record::Whole(session, past, _) = whole() else { unreachable!("it is one") };
        Record::AtRest(session, past, Some(Extent { floor_ms: 200, recent: (5, 1), keyed: (6, 0) }))
    }

    fn slot_at_rest() -> Record<'static> {
        let (Record::AtRest(session, past, Some(extent)), Record::Slot(number, entry)) =
            (at_rest(), slot())
        else {
            unreachable!("they are")
        };
        Record::SlotAtRest(number, entry, session, past, extent)
    }

    fn slot() -> Record<'static> {
        Record::slot(5, Box::leak(Box::new(entry(3, None))), Time::ZERO)
    }

    fn changed() -> Record<'static> {
        Record::Changed(session(), change())
    }

    fn trimmed() -> Record<'static> {
        Record::Trimmed { key: b"bob", recent_gone: 1, keyed_gone: 2, floor_ms: 300 }
    }

    #[test]
    fn a_record_survives_the_way_there_and_back() {
        for record in [
            Record::Shard { seq: 5 },
            Record::Session(session()),
            Record::Gone { key: b"bob" },
            Record::Touched { key: b"bob", left_micros: 1 << 40 },
            changed(),
            trimmed(),
            Record::ShardPast { seq: 5, floor_ms: 7, lineage: vec![session().version] },
            whole(),
            Record::Unconfirmed,
            at_rest(),
            slot(),
            slot_at_rest(),
        ] {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
        let now = Time::from_micros(1_000);
        let stored = session().into_stored(now);
        let record = Record::of(&stored.key, &stored.data, stored.expires, now);
        assert_eq!(record.plain(), Record::Session(session()));
        let Record::Whole(session, past, Some(window)) = whole() else { unreachable!("it is one") };
        let mut stored = past.complete(session.into_stored(now)).unwrap();
        stored.set_window(window.into_window(now));
        let record = Record::of(&stored.key, &stored.data, stored.expires, now);
        assert_eq!(record, whole());
    }

    #[test]
    fn one_that_knows_no_windows_gets_what_it_knows() {
        let nothing = || {
            let (value, counters, timers) = (None, Vec::new(), Vec::new());
            SessionRecord { value, counters, timers, ..session() }
        };
        for (record, plain) in [
            (changed(), Record::Session(session())),
            (Record::Changed(nothing(), change()), Record::Gone { key: b"alice" }),
            (trimmed(), Record::Shard { seq: 0 }),
            (
                Record::ShardPast { seq: 5, floor_ms: 7, lineage: vec![session().version] },
                Record::Shard { seq: 5 },
            ),
            (whole(), Record::Session(session())),
            (Record::Gone { key: b"bob" }, Record::Gone { key: b"bob" }),
        ] {
            let mut bytes = Vec::new();
            record.encode_for(3, &mut bytes);
            assert_eq!(bytes[0], 1, "{record:?}");
            assert_eq!(Record::decode(&bytes), Ok(plain));
            assert_eq!(for_peer(record.encode(), 3), bytes);
            assert_eq!(for_peer(record.encode(), 4), record.encode());
        }
    }

    #[test]
    fn time_passes_for_a_record_on_disk() {
        let mut record = session();
        record.age(Duration::from_micros(5));
        assert_eq!((record.left_micros, record.timers[0].left_micros), (3_999_995, 5));
        record.age(Duration::from_secs(3600));
        assert_eq!((record.left_micros, record.timers[0].left_micros), (0, 0));
    }

    #[test]
    fn a_record_of_another_format_or_with_a_tail_is_refused() {
        let mut bytes = Record::Shard { seq: 5 }.encode().to_vec();
        bytes.push(0);
        assert_eq!(Record::decode(&bytes), Err(RecordError::Malformed));
        bytes[0] = 3;
        assert_eq!(Record::decode(&bytes), Err(RecordError::Format(3)));
        for (format, record) in [(2, Record::Shard { seq: 5 }), (1, whole())] {
            let mut bytes = record.encode().to_vec();
            bytes[0] = format;
            assert_eq!(Record::decode(&bytes), Err(RecordError::Malformed), "{format}");
        }
        assert_eq!(Record::decode(&[]), Err(RecordError::Malformed));
    }

    #[test]
    fn a_record_without_a_key_or_with_one_that_is_too_long_is_refused() {
        let long = [b'k'; KEY_BYTES_MAX + 1];
        for (key, ok) in [(&long[1..], true), (&long[..], false), (&[][..], false)] {
            let session = SessionRecord { key, ..session() };
            let touched = Record::Touched { key, left_micros: 1 };
            for record in [Record::Session(session), Record::Gone { key }, touched] {
                assert_eq!(Record::decode(&record.encode()).is_ok(), ok, "{}", key.len());
            }
        }
    }

    const WINDOW: &str = "c80101010701ac0200808ece1cc8010309110101046865616404626f647900\
                          01010702ac0201036b65790980c0ddeec102c8010309110101046865616404626f6479\
                          0101036b65790a010309110200";
    const CHANGE: &str = "010001010703ac0200808ece1cc8010309110101046865616404626f647900";

    #[test]
    fn the_bytes_of_the_format_never_change() {
        let golden = "01000a";
        let bytes = Record::Shard { seq: 10 }.encode();
        assert_eq!(hex(&bytes), golden);
        let golden = "010105616c6963650104636172740102030904030911c096b1028092f401\
                      01067669736974730d01010a14047469636b03";
        assert_eq!(hex(&Record::Session(session()).encode()), golden);
        assert_eq!(hex(&Record::Gone { key: b"bob" }.encode()), "010203626f62");
        let touched = Record::Touched { key: b"bob", left_micros: 300 };
        assert_eq!(hex(&touched.encode()), "010303626f62ac02");
        assert_eq!(hex(&trimmed().encode()), "020503626f620102ac02");
        assert_eq!(hex(&Record::Unconfirmed.encode()), "0208");
        let lineage = vec![Version { seq: 10, ..session().version }];
        let past = Record::ShardPast { seq: 10, floor_ms: 300, lineage };
        assert_eq!(hex(&past.encode()), "02060aac020103090a");
        let past = "4d010201090413010309090600";
        let plain = &hex(&Record::Session(session()).encode())[4..];
        assert_eq!(hex(&at_rest().encode()), format!("0209{plain}{past}01c80105010600"));
        let entry = &CHANGE[6..];
        assert_eq!(hex(&slot().encode()), format!("020a05{entry}"));
        let golden = format!("020b05{entry}{plain}{past}c80105010600");
        assert_eq!(hex(&slot_at_rest().encode()), golden);
        let window = &format!("01{WINDOW}");
        let plain = &hex(&Record::Session(session()).encode())[4..];
        assert_eq!(hex(&whole().encode()), format!("0207{plain}{past}{window}"));
        let plain = Record::Session(session()).encode();
        let session = hex(&plain)[4..].to_owned();
        assert_eq!(hex(&changed().encode()), format!("0204{session}{CHANGE}"));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes);
            for variant in 0..12 {
                let format = if variant < 4 { FORMAT_PLAIN } else { FORMAT };
                let framed = [&[format, variant], &bytes[..]].concat();
                let now = Time::from_micros(u64::MAX - 5);
                match Record::decode(&framed) {
                    Ok(Record::Session(session)) => drop(session.into_stored(now)),
                    Ok(Record::Whole(_, _, Some(window))) => drop(window.into_window(now)),
                    Ok(Record::Changed(_, change)) => drop(change.into_parts(now)),
                    Ok(_) | Err(_) => {}
                }
            }
        }

        #[test]
        fn a_damaged_record_is_refused_or_read_but_never_panics(at in 0usize..60, byte: u8) {
            let mut bytes = Record::Session(session()).encode().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Record::decode(&bytes);
        }
    }
}
