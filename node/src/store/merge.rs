//! Sessions that another node served under a shard of ours, taken in while it is served.
//!
//! What becomes of each is decided in [`crate::logic::heal`].

use std::sync::Arc;

use stead_shared::id::{Epoch, SessionKey, Version};
use stead_shared::refusal::Refusal;

use super::conflicts::Conflict;
use super::data::{Counter, Data, Footprint, Stored};
use super::inner::Inner;
use super::record::RecordError;
use super::shard::Shard;
use crate::logic::gate::Gate;
use crate::logic::heal::lineage::Lineage;
use crate::logic::heal::value::{self, Stays, Value};
use crate::logic::heal::{self, Decision, Healed, Histories, Merge, Side, counter, twice};
use crate::logic::window::Window;

/// What became of a session that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// What was offered is in it, now or since before.
    Taken,
    /// What was offered lost to a change that was made here, and is listed as a conflict; or it was
    /// answered to nobody; or it is of a node that does not say where its state comes from.
    Kept,
}

/// Why a session was not taken in. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// The shard is not served here in the epoch that the offer names, nor in a higher one. None
    /// of its sessions will be taken in.
    #[error("the shard is not served here in that epoch")]
    NotServed,
    /// The session is in use and its turn did not come. Later it may.
    #[error("the session's turn did not come")]
    Busy,
    /// The record cannot be read, or there is no memory for it.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl From<Refusal> for MergeError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Overloaded { .. }
            | Refusal::Degraded
            | Refusal::Quarantined
            | Refusal::DeadlinePassed => Self::Busy,
            Refusal::NotOwner { .. } | Refusal::Moving => Self::NotServed,
        }
    }
}

/// What became of a session, where nothing has to be done for it.
fn merged(decision: Decision) -> Option<Merged> {
    match decision {
        Decision::Keep => Some(Merged::Taken),
        Decision::Lose => Some(Merged::Kept),
        Decision::Take | Decision::Merge => None,
    }
}

fn value_of(data: &Data) -> Option<Value<'_>> {
    let bytes = data.value.as_deref()?;
    let (schema, at, written) = (data.schema(), data.value_version(), data.written);
    Some(Value { bytes, schema, at, written })
}

fn side(stored: &Stored) -> Side {
    Side { version: stored.data.version(), is_tombstone: stored.is_tombstone() }
}

impl Shard {
    /// Goes on counting above the changes that another node made, and above the floor of its windows.
    pub(crate) fn raise_seq(
        &self,
        offered: Epoch,
        seq: u64,
        floor_ms: u64,
    ) -> Result<(), MergeError> {
        let mut inner = self.lock();
        inner.served_since(offered)?;
        let is_higher = inner.floor_ms() < floor_ms;
        inner.raise_floor(floor_ms);
        if inner.seq < seq || is_higher {
            let prev = inner.next_seq(seq.saturating_sub(1));
            inner.tell_seq(&self.core, prev);
        }
        Ok(())
    }

    /// All of another history is in this one.
    pub(crate) fn end_healing(&self, theirs: &Lineage) {
        let mut inner = self.lock();
        inner.healed = None;
        let Gate::Serving(epoch) = inner.gate else { return };
        let mut past = inner.past();
        if past.lineage.learn(theirs, epoch) {
            inner.past = past.boxed();
            let prev = inner.next_seq(0);
            inner.tell_seq(&self.core, prev);
        }
    }

    /// Where what is in it comes from.
    pub(crate) fn lineage(&self) -> Lineage {
        self.lock().lineage()
    }

    /// What becomes of an offered session, where that is clear without its turn.
    pub(crate) fn is_settled(
        &self,
        key: &SessionKey,
        stored: &Stored,
        (offered, histories): (Epoch, &Histories),
    ) -> Result<Option<Merged>, MergeError> {
        self.lock().decide(key, stored, offered, histories).map(merged)
    }

    /// Takes what is new of an offered session in. The caller has its turn.
    pub(crate) fn take_in(
        &self,
        key: &SessionKey,
        mut stored: Stored,
        (offered, histories): (Epoch, &Histories),
    ) -> Result<Merged, MergeError> {
        let mut inner = self.lock();
        let decision = inner.decide(key, &stored, offered, histories)?;
        if let Some(merged) = merged(decision) {
            return Ok(merged);
        }
        if self.core.refuses_changes() {
            return Err(MergeError::Busy);
        }
        let here = inner.sessions.at_rest(key.as_bytes());
        let old = here.map_or(Footprint::NONE, Stored::footprint);
        let old_timer = here.and_then(|here| here.data.earliest_timer());
        let is_activated = here.is_some_and(|here| here.activated);
        let (windows, now) = (Windows::default(), self.core.now());
        let mut loser = None;
        let mut seq = stored.data.version().seq;
        match (decision, here) {
            (_, None) => {}
            (Decision::Keep | Decision::Lose | Decision::Take, Some(here)) => {
                let (here, theirs) = (windows.of(&here.data), windows.of(&stored.data));
                let window = theirs.united(here, now, |_, _| {});
                stored.set_window(window);
            }
            (Decision::Merge, Some(here)) => {
                seq = seq.max(here.data.version().seq);
                let merge = self.core.config.merge.as_deref();
                let epoch = inner.served_since(offered)?;
                let version = Version { epoch, seq: 1 + seq.max(inner.seq) };
                let (ours, theirs) = (windows.of(&here.data), windows.of(&stored.data));
                let (window, amends, n_twice) = twice::unite(ours, theirs, histories, version, now);
                self.core.metrics.executed_twice.increment(n_twice as u64);
                let sides = Sides { histories, merge, version };
                loser = sides.merge(&here.data, &mut stored.data);
                amends.iter().for_each(|it| stored.data.add_to(&it.name, it.by, version));
                stored.data.set_version(version);
                stored.expires = stored.expires.max(here.expires);
                stored.bytes =
                    u32::try_from(stored.data.size(key.as_bytes().len())).unwrap_or(u32::MAX);
                stored.set_window(window);
            }
        }
        stored.activated = is_activated && !stored.is_tombstone();
        self.core.resize(old, stored.footprint()).map_err(|_| RecordError::MemoryFull)?;
        let prev = inner.next_seq(seq);
        if let Some(at) = old_timer {
            inner.timed.remove(&(at, key.clone()));
        }
        if let Some(at) = stored.data.earliest_timer() {
            inner.timed.insert((at, key.clone()));
        }
        let (due, kept) = (stored.due(), stored.data.value_version());
        inner.sessions.remove(key.as_bytes());
        inner.sessions.insert(Box::new(stored));
        inner.expires_at(due);
        inner.arm(self.id(), &self.core);
        inner.tell_arrival(&self.core, prev, key);
        Healed::note(&mut inner.healed, key.clone(), &histories.theirs);
        drop(inner);
        let Some(loser) = loser else { return Ok(Merged::Taken) };
        self.core.conflicts.add(Conflict::of(key, self.id(), kept, &loser));
        Ok(Merged::Kept)
    }
}

impl Inner {
    /// The epoch served, if it is not below the one that an offer was made to.
    fn served_since(&self, offered: Epoch) -> Result<Epoch, MergeError> {
        match self.gate {
            Gate::Serving(epoch) if offered <= epoch => Ok(epoch),
            Gate::Serving(_) | Gate::Sealed(_) | Gate::Gone => Err(MergeError::NotServed),
        }
    }

    fn decide(
        &self,
        key: &SessionKey,
        stored: &Stored,
        offered: Epoch,
        histories: &Histories,
    ) -> Result<Decision, MergeError> {
        let served = self.served_since(offered)?;
        if served < stored.data.version().epoch {
            // Our own changes would seem older than this one.
            return Err(RecordError::Malformed.into());
        }
        if self.healed.as_ref().is_some_and(|healed| healed.has(key, &histories.theirs)) {
            return Ok(Decision::Keep);
        }
        let here = self.sessions.at_rest(key.as_bytes()).map(side);
        Ok(heal::decide(served, here, side(stored), histories))
    }
}

/// Two histories of a shard.
struct Sides<'a> {
    histories: &'a Histories,
    merge: Option<&'a dyn Merge>,
    /// The change that it is to merge them.
    version: Version,
}

impl Sides<'_> {
    /// Makes of `theirs` what both are together. Gives the value that did not stay, if there is one.
    fn merge(&self, ours: &Data, theirs: &mut Data) -> Option<Data> {
        let loser = self.merge_value(ours, theirs);
        theirs.set_counters(self.merge_counters(ours, theirs));
        if theirs.written <= ours.written {
            theirs.set_timers(ours.timers().to_vec());
            theirs.ttl_micros = ours.ttl_micros;
        }
        theirs.timer_last = theirs.timer_last.max(ours.timer_last);
        theirs.written = theirs.written.max(ours.written);
        loser
    }

    fn merge_value(&self, ours: &Data, theirs: &mut Data) -> Option<Data> {
        let stays = value::merge(value_of(ours), value_of(theirs), self.histories, self.merge);
        match stays {
            Stays::Theirs { loses } => loses.then(|| ours.clone()),
            Stays::Ours { loses } => {
                let loser = loses.then(|| theirs.clone());
                theirs.take_value(ours);
                loser
            }
            Stays::Both(bytes) => {
                theirs.value = Some(Arc::from(bytes));
                theirs.set_value_version(self.version);
                None
            }
        }
    }

    fn merge_counters(&self, ours: &Data, theirs: &Data) -> Vec<Counter> {
        let names = ours.counters().iter().chain(theirs.counters()).map(|counter| &counter.name);
        let mut names: Vec<&str> = names.map(|name| &**name).collect();
        names.sort_unstable();
        names.dedup();
        let merged = names.into_iter().map(|name| {
            let parts = counter::merge(
                (&ours.parts_of(name), &self.histories.ours),
                (&theirs.parts_of(name), &self.histories.theirs),
            );
            (name, parts)
        });
        merged.filter_map(|(name, parts)| Counter::of(name, parts)).collect()
    }
}

/// Where a session has no window, an empty one.
#[derive(Default)]
struct Windows {
    empty: Window,
}

impl Windows {
    fn of<'a>(&'a self, data: &'a Data) -> &'a Window {
        data.window().unwrap_or(&self.empty)
    }
}
