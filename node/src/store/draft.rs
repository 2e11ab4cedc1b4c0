//! The copy that a turn works on. Nobody else sees it before it is committed.

use std::sync::Arc;
use std::time::Duration;

use stead_shared::id::Version;
use stead_shared::time::Time;

use super::core::{Core, UnreadableReason};
use super::data::{Counter, Data, Timer, counter_size, timers_size};
use crate::logic::heal::Written;
use crate::logic::window::Added;
use crate::session::StateError;

/// What a turn may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Change,
    /// A read that runs beside turns, or a session that is gone already.
    Read,
}

#[derive(Debug)]
pub(crate) struct Draft {
    access: Access,
    now: Time,
    key_bytes: usize,
    /// What is committed; none when the session does not exist or this turn deleted it.
    base: Option<Data>,
    /// Bytes of the session as it would be after a commit.
    size: usize,
    /// Bytes of the session as committed.
    old_size: usize,
    changes: Changes,
    /// The state was met and cannot be read: nothing of this turn is committed.
    unreadable: Option<UnreadableReason>,
}

/// What a commit does to the stored data.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Everything that was there goes first.
    pub(crate) delete: bool,
    pub(crate) value: Option<NewValue>,
    /// New values by name, each name once.
    pub(crate) counters: Vec<NewCounter>,
    pub(crate) timers: Option<Vec<Timer>>,
    pub(crate) timer_last: Option<u32>,
    pub(crate) ttl_micros: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct NewValue {
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) schema: Option<u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct NewCounter {
    pub(crate) name: Box<str>,
    pub(crate) value: i64,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        let Self { delete, value, counters, timers, timer_last: _, ttl_micros } = self;
        !delete
            && value.is_none()
            && counters.is_empty()
            && timers.is_none()
            && ttl_micros.is_none()
    }

    /// What they add to the counters of `data`, with the change `at`. Nothing where all that was there goes:
    /// then no history has it beside another.
    pub(crate) fn added(&self, data: Option<&Data>, at: Version) -> Option<Box<Added>> {
        if self.delete {
            return None;
        }
        let by = |new: &NewCounter| {
            let old = data.and_then(|data| data.counter(&new.name)).unwrap_or(0);
            (new.name.clone(), new.value.wrapping_sub(old))
        };
        Added::new(self.counters.iter().map(by).collect(), at)
    }

    /// Makes the changes to `data`, as of `version`, at that time.
    pub(crate) fn apply(self, data: &mut Data, version: Version, now: Written) {
        let Self { delete, value, timers, ttl_micros, counters: _, timer_last: _ } = &self;
        if *delete || value.is_some() || timers.is_some() || ttl_micros.is_some() {
            data.written = now;
        }
        if self.delete {
            let window = data.take_window();
            *data = Data::empty(version);
            data.written = now;
            data.set_window(window);
        }
        data.set_version(version);
        if let Some(value) = self.value {
            data.value = Some(value.bytes);
            data.set_schema(value.schema);
            data.set_value_version(version);
        }
        if !self.counters.is_empty() {
            // Copies only where a concurrent read still looks at the old ones.
            let counters = Arc::make_mut(data.counters.get_or_insert_default());
            for counter in self.counters {
                match counters.binary_search_by(|old| old.name.cmp(&counter.name)) {
                    Ok(at) => counters[at].set(counter.value, version),
                    Err(at) => {
                        let new = Counter::new(&counter.name, counter.value, version);
                        counters.insert(at, new);
                    }
                }
            }
        }
        if let Some(timers) = self.timers {
            data.set_timers(timers);
        }
        if let Some(id) = self.timer_last {
            data.timer_last = id;
        }
        if let Some(ttl) = self.ttl_micros {
            data.ttl_micros = ttl;
        }
    }
}

impl Draft {
    /// A copy of `base`, which is counted with `size` bytes. Its window is no business of a turn.
    pub(crate) fn new(
        access: Access,
        now: Time,
        key_bytes: usize,
        base: Option<Data>,
        size: usize,
    ) -> Self {
        let size = size - base.as_ref().map_or(0, Data::window_size);
        let changes = Changes::default();
        Self { access, now, key_bytes, base, size, old_size: size, changes, unreadable: None }
    }

    /// The changes, and the bytes of the session after them without its window: 0 when it does not
    /// exist then.
    pub(crate) fn into_changes(self) -> (Changes, usize) {
        let size = if self.exists() { self.size } else { 0 };
        (self.changes, size)
    }

    pub(crate) fn unreadable(&self) -> Option<&UnreadableReason> {
        self.unreadable.as_ref()
    }

    pub(crate) fn mark_unreadable(&mut self, reason: UnreadableReason) {
        self.unreadable = Some(reason);
    }

    pub(crate) fn value(&self) -> Option<NewValue> {
        if let Some(value) = &self.changes.value {
            return Some(value.clone());
        }
        let base = self.base.as_ref()?;
        let bytes = Arc::clone(base.value.as_ref()?);
        Some(NewValue { bytes, schema: base.schema() })
    }

    /// When the committed value last changed; none where there is none.
    pub(crate) fn value_version(&self) -> Option<Version> {
        let base = self.base.as_ref()?;
        base.value.as_ref().map(|_| base.value_version())
    }

    pub(crate) fn version(&self) -> Option<Version> {
        self.base.as_ref().map(|base| base.version())
    }

    pub(crate) fn counter(&self, name: &str) -> Option<i64> {
        if let Some(new) = self.changes.counters.iter().find(|counter| &*counter.name == name) {
            return Some(new.value);
        }
        self.base.as_ref()?.counter(name)
    }

    /// Names and values of the counters, sorted by name.
    pub(crate) fn counters(&self) -> Vec<(String, i64)> {
        let base = self.base.as_ref().map_or(&[][..], Data::counters);
        let mut all: Vec<(String, i64)> =
            base.iter().map(|counter| (counter.name.to_string(), counter.value)).collect();
        for new in &self.changes.counters {
            match all.binary_search_by(|(old, _)| (**old).cmp(&new.name)) {
                Ok(at) => all[at].1 = new.value,
                Err(at) => all.insert(at, (new.name.to_string(), new.value)),
            }
        }
        all
    }

    pub(crate) fn timers(&self) -> &[Timer] {
        match &self.changes.timers {
            Some(timers) => timers,
            None => self.base.as_ref().map_or(&[], Data::timers),
        }
    }

    /// A session exists as long as it has a value, a counter or a timer.
    pub(crate) fn exists(&self) -> bool {
        self.changes.value.is_some()
            || !self.changes.counters.is_empty()
            || !self.timers().is_empty()
            || self.base.as_ref().is_some_and(|base| base.value.is_some())
            || self.base.as_ref().is_some_and(|base| base.counters.is_some())
    }

    pub(crate) fn put_value(&mut self, core: &Core, value: NewValue) -> Result<(), StateError> {
        let old = self.value().map_or(0, |old| old.bytes.len());
        self.make_room(core, old, value.bytes.len())?;
        self.changes.value = Some(value);
        Ok(())
    }

    pub(crate) fn add(&mut self, core: &Core, name: &str, by: i64) -> Result<i64, StateError> {
        let old = self.counter(name);
        let value = old.unwrap_or(0).checked_add(by).ok_or(StateError::CounterOverflow)?;
        self.make_room(core, 0, if old.is_some() { 0 } else { counter_size(name) })?;
        match self.changes.counters.iter_mut().find(|counter| &*counter.name == name) {
            Some(counter) => counter.value = value,
            None => self.changes.counters.push(NewCounter { name: name.into(), value }),
        }
        Ok(value)
    }

    pub(crate) fn set_ttl(&mut self, ttl: Option<Duration>) -> Result<(), StateError> {
        self.may_change()?;
        // 0 stands for the default, and a session cannot live shorter than a microsecond.
        let micros = ttl.map_or(0, |ttl| u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX).max(1));
        self.changes.ttl_micros = Some(micros);
        Ok(())
    }

    pub(crate) fn add_timer(
        &mut self,
        core: &Core,
        after: Duration,
        period_micros: u64,
        event: &[u8],
    ) -> Result<u32, StateError> {
        let limit = core.config.session_timers_max;
        if limit <= self.timers().len() {
            return Err(StateError::TooManyTimers { limit });
        }
        let mut timers = self.timers().to_vec();
        let committed = self.base.as_ref().map_or(0, |base| base.timer_last);
        // Never that of an earlier timer, which somebody may yet cancel.
        let id = self.changes.timer_last.unwrap_or(committed).wrapping_add(1);
        timers.push(Timer { id, due: self.now + after, period_micros, event: event.into() });
        self.put_timers(core, timers)?;
        self.changes.timer_last = Some(id);
        Ok(id)
    }

    /// Whether there was such a timer.
    pub(crate) fn cancel_timer(&mut self, core: &Core, id: u32) -> Result<bool, StateError> {
        self.may_change()?;
        let mut timers = self.timers().to_vec();
        let before = timers.len();
        timers.retain(|timer| timer.id != id);
        let found = timers.len() != before;
        if found {
            self.put_timers(core, timers)?;
        }
        Ok(found)
    }

    /// Takes out the events that are due; periodic ones are set to their next time.
    pub(crate) fn take_due_timers(&mut self) -> Vec<Box<[u8]>> {
        let now = self.now;
        let (mut due, mut rest) = (Vec::new(), Vec::new());
        for mut timer in self.timers().to_vec() {
            if now < timer.due {
                rest.push(timer);
                continue;
            }
            due.push((timer.due, timer.event.clone()));
            if let Some(next) = timer.next_due(now) {
                timer.due = next;
                rest.push(timer);
            }
        }
        if !due.is_empty() {
            self.size -= timers_size(self.timers());
            self.size += timers_size(&rest);
            self.changes.timers = Some(rest);
        }
        due.sort_by_key(|(at, _)| *at);
        due.into_iter().map(|(_, event)| event).collect()
    }

    /// Everything goes. What the turn did before is forgotten.
    pub(crate) fn delete(&mut self) -> Result<(), StateError> {
        match (self.access, &self.unreadable) {
            (Access::Read, _) => return Err(StateError::ReadOnly),
            // Whoever deletes says so: only what newer code may still want stays.
            (Access::Change, Some(UnreadableReason::Newer { stored, known })) => {
                return Err(StateError::NewerVersion { stored: *stored, known: *known });
            }
            (Access::Change, Some(UnreadableReason::Undecodable { .. }) | None) => {}
        }
        self.unreadable = None;
        self.base = None;
        self.size = 0;
        self.changes = Changes { delete: true, ..Changes::default() };
        Ok(())
    }

    fn put_timers(&mut self, core: &Core, timers: Vec<Timer>) -> Result<(), StateError> {
        let old = timers_size(self.timers());
        self.make_room(core, old, timers_size(&timers))?;
        self.changes.timers = Some(timers);
        Ok(())
    }

    fn may_change(&self) -> Result<(), StateError> {
        match (&self.unreadable, self.access) {
            (Some(reason), _) => Err(reason.clone().into()),
            (None, Access::Read) => Err(StateError::ReadOnly),
            (None, Access::Change) => Ok(()),
        }
    }

    /// Checks that a part of the session may grow from `old` to `new` bytes, and counts it.
    fn make_room(&mut self, core: &Core, old: usize, new: usize) -> Result<(), StateError> {
        self.may_change()?;
        let base = match self.size {
            0 => super::data::SESSION_OVERHEAD + self.key_bytes,
            size => size,
        };
        let size = base - old + new;
        let limit = core.config.session_bytes_max;
        if old < new && limit < size {
            return Err(StateError::TooLarge { limit });
        }
        if self.old_size < size && old < new && !core.has_room(size - self.old_size) {
            return Err(StateError::MemoryFull);
        }
        self.size = size;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use stead_shared::id::{Epoch, NodeId};

    use super::super::core::HostConfig;
    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Put(usize),
        Add(u8, i64),
        After(usize),
        Cancel(u32),
        Fire,
        Delete,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0usize..3000).prop_map(Op::Put),
            (0u8..5, -3i64..3).prop_map(|(name, by)| Op::Add(name, by)),
            (0usize..100).prop_map(Op::After),
            (0u32..6).prop_map(Op::Cancel),
            Just(Op::Fire),
            Just(Op::Delete),
        ]
    }

    fn perform(draft: &mut Draft, core: &Core, op: &Op) {
        // Refused operations change nothing, which the sizes show.
        let _ = match op {
            Op::Put(length) => {
                let bytes = vec![0; *length].into();
                draft.put_value(core, NewValue { bytes, schema: None })
            }
            Op::Add(name, by) => draft.add(core, &"n".repeat(1 + *name as usize), *by).map(drop),
            Op::After(length) => {
                draft.add_timer(core, Duration::from_secs(1), 0, &vec![0; *length]).map(drop)
            }
            Op::Cancel(id) => draft.cancel_timer(core, *id).map(drop),
            Op::Fire => {
                draft.take_due_timers();
                Ok(())
            }
            Op::Delete => draft.delete(),
        };
    }

    /// One turn at the `seq`-th tick; the session after it, with the size it is counted with.
    fn turn(core: &Core, base: Option<(Data, usize)>, seq: u64, ops: &[Op]) -> (Data, usize) {
        let now = Time::from_micros(800_000 * seq);
        let version = Version { epoch: Epoch { counter: 1, node: NodeId(1) }, seq };
        let (base, size) = base.map_or((None, 0), |(data, size)| (Some(data), size));
        let mut draft = Draft::new(Access::Change, now, 3, base.clone(), size);
        for op in ops {
            perform(&mut draft, core, op);
        }
        let (changes, size) = draft.into_changes();
        let mut data = base.unwrap_or_else(|| Data::empty(version));
        changes.apply(&mut data, version, Written(seq));
        (data, size)
    }

    proptest! {
        /// Over many turns, a session is counted with the bytes that it has.
        #[test]
        fn the_counted_size_is_the_size(turns in vec(vec(op(), 0..6), 0..8)) {
            let config = HostConfig { session_bytes_max: 4000, session_timers_max: 4, ..HostConfig::default() };
            let core = Core::new(config, false);
            let mut session: Option<(Data, usize)> = None;
            for (seq, ops) in turns.iter().enumerate() {
                let (data, size) = turn(&core, session.take(), seq as u64, ops);
                let is_empty =
                    !data.exists();
                prop_assert_eq!(size, if is_empty { 0 } else { data.size(3) });
                prop_assert!(size <= 4000);
                session = (!is_empty).then_some((data, size));
            }
        }
    }
}
