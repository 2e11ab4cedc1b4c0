//! What of a shard has arrived, ready to be served.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use stead_shared::id::{SessionKey, Version};
use stead_shared::time::Time;

use super::aside::discard;
use super::clock::NEVER;
use super::core::Core;
use super::data::{Footprint, Stored};
use super::inner::Past;
use super::record::{Record, RecordError, SessionRecord, WindowChange};
use super::sessions::Sessions;
use super::shard::session_key;
use crate::disk::{SavedRow, SavedSession};
use crate::logic::heal::lineage::Lineage;
use crate::logic::window::{Trim, Window};

/// Sessions with all that a shard keeps about them, so that nobody has to look at them when the
/// gate opens.
pub(crate) struct Arriving {
    pub(super) seq: u64,
    pub(super) sessions: Sessions,
    pub(super) timed: BTreeSet<(Time, SessionKey)>,
    /// What was in it before, but in the epoch that it comes from.
    pub(super) past: Past,
    /// Nothing has to be done about any of the sessions before.
    pub(super) earliest_expiry: Time,
}

impl Arriving {
    pub(crate) fn new() -> Self {
        let (sessions, timed) = (Sessions::new(), BTreeSet::new());
        Self { seq: 0, sessions, timed, past: Past::default(), earliest_expiry: NEVER }
    }

    /// Goes on counting at `seq`.
    pub(crate) fn set_seq(&mut self, seq: u64) {
        self.seq = seq;
    }

    /// The number of the shard's last change, as far as it has arrived.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Takes one record in, and its memory from `core`.
    ///
    /// # Errors
    /// When it cannot be read, or there is no memory for it. Nothing changed then.
    pub(crate) fn add(&mut self, core: &Core, record: &[u8]) -> Result<(), RecordError> {
        match Record::decode(record)? {
            Record::Shard { seq } => self.seq = self.seq.max(seq),
            Record::Session(session) => {
                let stored = session.into_stored(core.now());
                let stored = self.derive(core, stored);
                self.put(core, stored)?;
            }
            whole @ Record::Whole(..) => {
                self.put(core, whole.into_stored(core, Duration::ZERO)?)?;
            }
            Record::Changed(session, change) => self.change(core, session, change)?,
            Record::Trimmed { key, recent_gone, keyed_gone, floor_ms } => {
                self.trim(core, key, Trim { recent: recent_gone, keyed: keyed_gone });
                self.past.floor_ms = self.past.floor_ms.max(floor_ms);
            }
            Record::ShardPast { seq, floor_ms, lineage } => {
                self.seq = self.seq.max(seq);
                self.set_past(floor_ms, lineage)?;
            }
            Record::Unconfirmed => {}
            Record::AtRest(..) | Record::Slot(..) | Record::SlotAtRest(..) => {
                return Err(RecordError::Malformed);
            }
            Record::Gone { key } => self.remove(core, key),
            Record::Touched { key, left_micros } => {
                let expires = core.now() + Duration::from_micros(left_micros);
                if self.sessions.touch(key, |_| expires) {
                    self.earliest_expiry = self.earliest_expiry.min(expires);
                }
            }
        }
        Ok(())
    }

    /// Takes in what was written to disk: a session, or the shard's past.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(crate) fn add_saved(
        &mut self,
        core: &Core,
        saved: &SavedSession,
    ) -> Result<(), RecordError> {
        // The row that was written last tells of the session: its own, or one that tells of it, too.
        let slots = saved.slots.iter().map(|(_, row)| row);
        let mut rows: Vec<&SavedRow> = saved.own.iter().chain(slots).collect();
        rows.sort_by_key(|row| Reverse(row.at));
        let mut newest: Option<(Version, Version, &SavedRow, Record<'_>)> = None;
        for row in rows {
            if newest.as_ref().is_some_and(|(at, ..)| row.at < *at) {
                break;
            }
            let record = Record::decode(&row.record)?;
            if let Some(version) = record.version_at_rest() {
                let is_newer = |(at, of, ..): &(_, _, _, _)| (*at, *of) < (row.at, version);
                if newest.as_ref().is_none_or(is_newer) {
                    newest = Some((row.at, version, row, record));
                }
            }
        }
        let (.., row, record) = newest.ok_or(RecordError::Malformed)?;
        match record {
            Record::ShardPast { seq: _, floor_ms, lineage } => self.set_past(floor_ms, lineage),
            session => self.put(core, session.into_stored_with(core, row.age, &saved.slots)?),
        }
    }

    /// What was in it before, but in the epoch that it comes from.
    pub(crate) fn past(&self) -> &Past {
        &self.past
    }

    fn set_past(&mut self, floor_ms: u64, lineage: Vec<Version>) -> Result<(), RecordError> {
        self.past.lineage = Lineage::of(lineage).ok_or(RecordError::Malformed)?;
        self.past.floor_ms = self.past.floor_ms.max(floor_ms);
        Ok(())
    }

    /// It was served in an epoch up to here, and is in another one from now on.
    pub(crate) fn note_epoch(&mut self, end: Version) {
        if 0 < end.seq {
            self.past.lineage.reach(end);
        }
    }

    /// What a change made of a session, with what is known here of what it was before.
    fn derive(&self, core: &Core, mut stored: Stored) -> Stored {
        let old = self.sessions.at_rest(&stored.key).map(|old| &old.data);
        let is_written = old.is_none_or(|old| old.value_version() != stored.data.value_version());
        stored.data.written = match old {
            Some(old) if !is_written => old.written,
            Some(_) | None => core.stamp(core.now()),
        };
        if let Some(old) = old.filter(|old| !old.counters().is_empty()) {
            let at = stored.data.version();
            let counters = stored.data.counters().iter().map(|new| {
                match old.counters().iter().find(|old| old.name == new.name) {
                    Some(old) => {
                        let mut counter = old.clone();
                        counter.set(new.value, at);
                        counter
                    }
                    None => new.clone(),
                }
            });
            let counters = counters.collect();
            stored.data.set_counters(counters);
            stored.recount();
        }
        stored
    }

    /// Gives everything back to `core`.
    pub(crate) fn forget(self, core: &Core) {
        core.free(self.sessions.footprint());
        discard(self.sessions, self.timed);
    }

    fn put(&mut self, core: &Core, stored: Stored) -> Result<(), RecordError> {
        let spot = self.sessions.spot(&stored.key);
        let old = self.sessions.at(&spot);
        let old_size = old.map_or(Footprint::NONE, Stored::footprint);
        let old_timer = old.and_then(|old| old.data.earliest_timer());
        core.resize(old_size, stored.footprint()).map_err(|_| RecordError::MemoryFull)?;
        self.seq = self.seq.max(stored.data.version().seq);
        self.earliest_expiry = self.earliest_expiry.min(stored.due());
        self.retime(&stored.key, old_timer, stored.data.earliest_timer());
        self.sessions.insert_at(spot, Box::new(stored));
        Ok(())
    }

    /// Takes in what a change made of a session, and does to its window what its owner did.
    fn change(
        &mut self,
        core: &Core,
        session: SessionRecord<'_>,
        change: WindowChange<'_>,
    ) -> Result<(), RecordError> {
        let now = core.now();
        let (trim, entry) = change.into_parts(now);
        let mut stored = self.derive(core, session.into_stored(now));
        let old = self.sessions.at_rest(&stored.key);
        let old_size = old.map_or(Footprint::NONE, Stored::footprint);
        let old_timer = old.and_then(|old| old.data.earliest_timer());
        let mut bound = stored.footprint();
        bound.bytes += Window::bound(old.and_then(|old| old.data.window()), entry.as_ref()) as u64;
        core.resize(old_size, bound).map_err(|_| RecordError::MemoryFull)?;
        self.seq = self.seq.max(stored.data.version().seq);
        self.retime(&stored.key, old_timer, stored.data.earliest_timer());
        let key = stored.key.clone();
        let empty = Box::new(Stored::new(&key, stored.data.version(), now));
        let (actual, due) = self.sessions.change(
            &key,
            || empty,
            |here| {
                let mut window = here.data.take_window();
                window.follow(trim, entry);
                stored.set_window(window);
                *here = stored;
                (here.footprint(), here.due())
            },
        );
        self.earliest_expiry = self.earliest_expiry.min(due);
        core.shrink(bound, actual);
        self.drop_if_nothing(core, &key);
        Ok(())
    }

    fn trim(&mut self, core: &Core, key: &[u8], trim: Trim) {
        let Some(old) = self.sessions.at_rest(key).map(Stored::footprint) else { return };
        let (new, ended) = self.sessions.trim_window(key, trim);
        core.shrink(old, new);
        self.past.floor_ms = self.past.floor_ms.max(ended.unwrap_or(0));
        self.drop_if_nothing(core, key);
    }

    /// A tombstone ends with its window. What a copy that is being filled does not know of it yet
    /// comes with the fill.
    fn drop_if_nothing(&mut self, core: &Core, key: &[u8]) {
        let here = self.sessions.at_rest(key);
        if here.is_some_and(|it| it.is_tombstone() && it.data.window().is_none()) {
            self.remove(core, key);
        }
    }

    fn remove(&mut self, core: &Core, key: &[u8]) {
        let Some(gone) = self.sessions.remove(key) else { return };
        core.free(gone.footprint());
        self.retime(key, gone.data.earliest_timer(), None);
    }

    fn retime(&mut self, key: &[u8], old: Option<Time>, new: Option<Time>) {
        if old != new {
            old.map(|at| self.timed.remove(&(at, session_key(key))));
            new.map(|at| self.timed.insert((at, session_key(key))));
        }
    }
}
