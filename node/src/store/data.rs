//! What a session is at rest.

use std::sync::Arc;
use std::time::Duration;

use stead_shared::id::Version;
use stead_shared::time::Time;

use super::key::Key;

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
    /// When the value last changed. Without a value: the same as `version`.
    pub(crate) value_version: Version,
    /// When anything last changed.
    pub(crate) version: Version,
    /// Idle time to live in microseconds; 0 for the node's default.
    pub(crate) ttl_micros: u64,
    /// Sorted by name; never empty.
    pub(crate) counters: Option<Arc<Vec<Counter>>>,
    /// In the order of their ids; never empty.
    pub(crate) timers: Option<Arc<Vec<Timer>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counter {
    pub(crate) name: Box<str>,
    pub(crate) value: i64,
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
            value_version: version,
            version,
            ttl_micros: 0,
            counters: None,
            timers: None,
        }
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
        self.timers.as_deref().map_or(&[], Vec::as_slice)
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
        SESSION_OVERHEAD + key_bytes + value + counters + timers_size(self.timers())
    }
}

pub(crate) fn counter_size(name: &str) -> usize {
    COUNTER_OVERHEAD + name.len()
}

pub(crate) fn timers_size(timers: &[Timer]) -> usize {
    timers.iter().map(|timer| TIMER_OVERHEAD + timer.event.len()).sum()
}

/// A session in its shard.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) key: Key,
    pub(crate) data: Data,
    /// When it is gone unless somebody comes before.
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

    /// About the length of its record.
    pub(crate) fn record_bytes(&self) -> u64 {
        u64::from(self.bytes).saturating_sub(SESSION_OVERHEAD as u64) + RECORD_OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
