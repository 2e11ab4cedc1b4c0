//! What a session is at rest.

use std::sync::Arc;
use std::time::Duration;

use stead_shared::id::{Epoch, Version};
use stead_shared::time::Time;

use super::answers::News;
use super::key::Key;
use crate::logic::heal::Written;
use crate::logic::heal::counter::{self, Part};
use crate::logic::window::{Entry, Trim, Window};

/// Bytes a session costs beside its key, value, counters and timers: two or three allocations with
/// the allocator's own headers, a slot, and a place in the index at 70 % load. Measured with
/// `just memory`: 240 with keys of 36 bytes, 210 with keys that need no allocation.
pub(crate) const SESSION_OVERHEAD: usize = 240;
/// Bytes of a session's record beside its key and value: two versions and some numbers.
pub(crate) const RECORD_OVERHEAD: u64 = 64;
const COUNTER_OVERHEAD: usize = 48;
const TIMER_OVERHEAD: usize = 64;

/// The committed state of one session. Cloning it copies no bytes of values.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) value: Option<Arc<[u8]>>,
    /// Schema version of a typed value, plus 1; 0 for raw bytes.
    schema_code: u32,
    /// The highest id that a timer of this session had.
    pub(crate) timer_last: u32,
    /// When anything last changed.
    version: Version,
    /// When the value last changed: in this epoch; none for that of `version`, as most have it.
    value_epoch: Option<Box<Epoch>>,
    value_seq: u64,
    /// When anything but a counter last changed.
    pub(crate) written: Written,
    /// Idle time to live in microseconds; 0 for the node's default.
    pub(crate) ttl_micros: u64,
    /// Sorted by name; never empty.
    pub(crate) counters: Option<Arc<Vec<Counter>>>,
    /// What few sessions have, in one place so that it costs the others one pointer.
    rare: Option<Arc<Rare>>,
}

#[derive(Clone, Debug, Default)]
struct Rare {
    /// None without any.
    timers: Option<Box<Timers>>,
    window: Window,
}

/// In the order of their ids.
#[derive(Clone, Debug)]
struct Timers(Vec<Timer>);

/// A counter, made of what was added to it in each epoch: see [`counter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counter {
    pub(crate) name: Box<str>,
    pub(crate) value: i64,
    /// The last change that added to its last part. Most have no other.
    at: Version,
    /// All parts, where there is more than one, or one that is folded; else none. Few, and not counted
    /// as memory.
    parts: Vec<Part>,
}

impl Counter {
    /// One whose value was made in one epoch, up to this change.
    pub(crate) fn new(name: &str, value: i64, at: Version) -> Self {
        Self { name: name.into(), value, at, parts: Vec::new() }
    }

    /// One that is the sum of these; none of none.
    pub(crate) fn of(name: &str, parts: Vec<Part>) -> Option<Self> {
        let value = counter::value(&parts);
        let at = parts.last().map(|part| Version { epoch: part.epoch, seq: part.seq })?;
        let is_plain = parts.len() == 1 && !parts.iter().any(|part| part.is_folded);
        let parts = if is_plain { Vec::new() } else { parts };
        Some(Self { name: name.into(), value, at, parts })
    }

    /// What was added in each epoch.
    pub(crate) fn parts(&self) -> Vec<Part> {
        match self.parts.as_slice() {
            [] => vec![Part::new(self.at, self.value)],
            parts => parts.to_vec(),
        }
    }

    /// It has this value with this change.
    pub(crate) fn set(&mut self, value: i64, at: Version) {
        if value == self.value {
            return;
        }
        if at.epoch == self.at.epoch && self.parts.is_empty() {
            self.at.seq = self.at.seq.max(at.seq);
        } else {
            let mut parts = self.parts();
            counter::add(&mut parts, at, value.wrapping_sub(self.value));
            let last = parts.last().map(|part| Version { epoch: part.epoch, seq: part.seq });
            (self.at, self.parts) = (last.unwrap_or(at), parts);
        }
        self.value = value;
    }
}

/// An event that is due at a time of this host's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) id: u32,
    pub(crate) due: Time,
    /// Microseconds between two events; 0 for a timer that fires once.
    pub(crate) period_micros: u64,
    pub(crate) event: Box<[u8]>,
}

impl Timer {
    /// The next due time after `now` of a periodic timer. Ticks that were missed are skipped.
    pub(crate) fn next_due(&self, now: Time) -> Option<Time> {
        if self.period_micros == 0 {
            return None;
        }
        let late = now.since(self.due);
        let late_micros = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        let periods = late_micros / self.period_micros + 1;
        Some(self.due + Duration::from_micros(self.period_micros.saturating_mul(periods)))
    }
}

impl Data {
    /// Nothing, as of `version`.
    pub(crate) fn empty(version: Version) -> Self {
        Self {
            value: None,
            schema_code: 0,
            timer_last: 0,
            version,
            value_epoch: None,
            value_seq: version.seq,
            written: Written::default(),
            ttl_micros: 0,
            counters: None,
            rare: None,
        }
    }

    /// When anything last changed.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Something has changed, and not the value.
    pub(crate) fn set_version(&mut self, version: Version) {
        let value_version = self.value_version();
        self.version = version;
        self.set_value_version(value_version);
    }

    /// When the value last changed.
    pub(crate) fn value_version(&self) -> Version {
        let epoch = self.value_epoch.as_deref().map_or(self.version.epoch, |epoch| *epoch);
        Version { epoch, seq: self.value_seq }
    }

    pub(crate) fn set_value_version(&mut self, at: Version) {
        self.value_seq = at.seq;
        self.value_epoch = (at.epoch != self.version.epoch).then(|| Box::new(at.epoch));
    }

    /// Schema version of a typed value; none for raw bytes.
    pub(crate) fn schema(&self) -> Option<u32> {
        self.schema_code.checked_sub(1)
    }

    pub(crate) fn set_schema(&mut self, schema: Option<u32>) {
        // The highest version of all is taken for the one below it, on both sides.
        self.schema_code = schema.map_or(0, |version| version.saturating_add(1));
    }

    pub(crate) fn counters(&self) -> &[Counter] {
        self.counters.as_deref().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn timers(&self) -> &[Timer] {
        let timers = self.rare.as_deref().and_then(|rare| rare.timers.as_deref());
        timers.map_or(&[], |timers| &timers.0)
    }

    pub(crate) fn set_timers(&mut self, timers: Vec<Timer>) {
        if timers.is_empty() && self.rare.is_none() {
            return;
        }
        let timers = (!timers.is_empty()).then(|| Box::new(Timers(timers)));
        self.change_rare(|rare| rare.timers = timers);
    }

    /// What it has answered lately; none where that is nothing.
    pub(crate) fn window(&self) -> Option<&Window> {
        self.rare.as_deref().map(|rare| &rare.window).filter(|window| !window.is_empty())
    }

    pub(crate) fn set_window(&mut self, window: Window) {
        if window.is_empty() && self.rare.is_none() {
            return;
        }
        self.change_rare(|rare| rare.window = window);
    }

    pub(crate) fn take_window(&mut self) -> Window {
        let mut window = Window::default();
        if self.window().is_some() {
            self.change_rare(|rare| window = std::mem::take(&mut rare.window));
        }
        window
    }

    /// Bytes of its window.
    pub(crate) fn window_size(&self) -> usize {
        self.window().map_or(0, Window::size)
    }

    /// Puts the answer to what changed it last into its window.
    pub(super) fn note_answer(&mut self, mut entry: Entry, now: Time) -> News {
        entry.answer.version = match self.value {
            Some(_) if entry.answer.has_etag => self.value_version(),
            Some(_) | None => {
                entry.answer.has_etag = false;
                self.version
            }
        };
        let came = Some(entry.key.is_some());
        let mut trim = Trim::default();
        self.change_rare(|rare| trim = rare.window.add(entry, now));
        News { trim, came }
    }

    /// Lets entries of its window leave; the floor of the window if it has ended.
    pub(crate) fn trim_window(&mut self, trim: Trim) -> Option<u64> {
        self.window()?;
        let mut ended = None;
        self.change_rare(|rare| {
            rare.window.follow(trim, None);
            ended = rare.window.is_empty().then(|| std::mem::take(&mut rare.window).floor_ms());
        });
        ended
    }

    /// Copies only where somebody still looks at the old ones.
    fn change_rare(&mut self, change: impl FnOnce(&mut Rare)) {
        let rare = Arc::make_mut(self.rare.get_or_insert_default());
        change(rare);
        if rare.timers.is_none() && rare.window.is_empty() {
            self.rare = None;
        }
    }

    /// A session exists as long as it has a value, a counter or a timer. What is left of one that
    /// does not is a tombstone: its window.
    pub(crate) fn exists(&self) -> bool {
        self.value.is_some() || self.counters.is_some() || !self.timers().is_empty()
    }

    /// The value of `other` becomes this one's.
    pub(crate) fn take_value(&mut self, other: &Self) {
        self.value.clone_from(&other.value);
        self.schema_code = other.schema_code;
        self.set_value_version(other.value_version());
    }

    /// Sorted by name.
    pub(crate) fn set_counters(&mut self, counters: Vec<Counter>) {
        self.counters = (!counters.is_empty()).then(|| Arc::new(counters));
    }

    /// What was added to a counter; nothing where there is none.
    pub(crate) fn parts_of(&self, name: &str) -> Vec<Part> {
        let counters = self.counters();
        let at = counters.binary_search_by(|counter| (*counter.name).cmp(name));
        at.ok().and_then(|at| counters.get(at)).map_or_else(Vec::new, Counter::parts)
    }

    /// Adds to a counter that is there, with this change.
    pub(crate) fn add_to(&mut self, name: &str, by: i64, at: Version) {
        let Some(counters) = &mut self.counters else { return };
        let found = Arc::make_mut(counters).iter_mut().find(|counter| &*counter.name == name);
        if let Some(counter) = found {
            counter.set(counter.value.wrapping_add(by), at);
        }
    }

    pub(crate) fn counter(&self, name: &str) -> Option<i64> {
        let counters = self.counters();
        let at = counters.binary_search_by(|counter| (*counter.name).cmp(name)).ok()?;
        counters.get(at).map(|counter| counter.value)
    }

    pub(crate) fn earliest_timer(&self) -> Option<Time> {
        self.timers().iter().map(|timer| timer.due).min()
    }

    /// Bytes this session is counted with, its key of `key_bytes` included.
    pub(crate) fn size(&self, key_bytes: usize) -> usize {
        let value = self.value.as_ref().map_or(0, |value| value.len());
        let counters: usize = self.counters().iter().map(|c| counter_size(&c.name)).sum();
        let rare = timers_size(self.timers()) + self.window_size();
        SESSION_OVERHEAD + key_bytes + value + counters + rare
    }
}

pub(crate) fn counter_size(name: &str) -> usize {
    COUNTER_OVERHEAD + name.len()
}

pub(crate) fn timers_size(timers: &[Timer]) -> usize {
    timers.iter().map(|timer| TIMER_OVERHEAD + timer.event.len()).sum()
}

/// What something takes of a node's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) bytes: u64,
    /// Sessions that exist.
    pub(crate) sessions: u64,
}

impl Footprint {
    pub(crate) const NONE: Self = Self { bytes: 0, sessions: 0 };
}

/// A session in its shard.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) key: Key,
    pub(crate) data: Data,
    /// When it is gone unless somebody comes before. A tombstone: when its window is.
    pub(crate) expires: Time,
    /// What it is counted with: [`Data::size`].
    pub(crate) bytes: u32,
    /// Whether the service was told that the session is here.
    pub(crate) activated: bool,
}

impl Stored {
    /// A session with nothing in it.
    pub(crate) fn new(key: &[u8], version: Version, now: Time) -> Self {
        let data = Data::empty(version);
        Self { key: key.into(), data, expires: now, bytes: 0, activated: false }
    }

    /// Whether it does not exist: only what it has answered does.
    pub(crate) fn is_tombstone(&self) -> bool {
        !self.data.exists()
    }

    /// Counts its bytes anew.
    pub(crate) fn recount(&mut self) {
        let bytes = self.data.size(self.key.len());
        self.bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// Gives it a window; a tombstone ends with it.
    pub(crate) fn set_window(&mut self, window: Window) {
        let bytes = self.bytes as usize - self.data.window_size() + window.size();
        self.bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.data.set_window(window);
        if self.is_tombstone() {
            self.expires = self.data.window().and_then(Window::expires).unwrap_or(self.expires);
        }
    }

    /// What it is counted with.
    pub(crate) fn footprint(&self) -> Footprint {
        Footprint { bytes: u64::from(self.bytes), sessions: u64::from(!self.is_tombstone()) }
    }

    /// When there is something to do about it, unless somebody comes before.
    pub(crate) fn due(&self) -> Time {
        let window = self.data.window().and_then(Window::due);
        window.map_or(self.expires, |at| at.min(self.expires))
    }

    /// About the length of its record.
    pub(crate) fn record_bytes(&self) -> u64 {
        u64::from(self.bytes).saturating_sub(SESSION_OVERHEAD as u64) + RECORD_OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use stead_shared::id::NodeId;

    use super::*;

    #[test]
    fn the_value_s_version_stays_while_others_change() {
        let at = |counter, seq| Version { epoch: Epoch { counter, node: NodeId(1) }, seq };
        let mut data = Data::empty(at(1, 5));
        assert_eq!((data.version(), data.value_version()), (at(1, 5), at(1, 5)));
        for version in [at(1, 6), at(2, 3), at(3, 9)] {
            data.set_version(version);
            assert_eq!((data.version(), data.value_version()), (version, at(1, 5)));
        }
        data.set_value_version(at(3, 9));
        assert_eq!((data.value_version(), &data.value_epoch), (at(3, 9), &None));
    }

    #[test]
    fn a_session_takes_no_more_than_it_is_counted_with() {
        // With the headers of two allocations, and beside a slot and a place in the index.
        assert!(size_of::<Stored>() <= 136, "{}", size_of::<Stored>());
        assert!(size_of::<Rare>() + 16 <= 88, "{}", size_of::<Rare>());
    }

    #[test]
    fn missed_ticks_are_skipped() {
        let timer =
            Timer { id: 1, due: Time::from_micros(100), period_micros: 10, event: Box::default() };
        assert_eq!(timer.next_due(Time::from_micros(100)), Some(Time::from_micros(110)));
        assert_eq!(timer.next_due(Time::from_micros(109)), Some(Time::from_micros(110)));
        assert_eq!(timer.next_due(Time::from_micros(131)), Some(Time::from_micros(140)));
        let once = Timer { period_micros: 0, ..timer };
        assert_eq!(once.next_due(Time::from_micros(131)), None);
    }
}
