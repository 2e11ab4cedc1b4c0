//! Sessions that another node served under a shard of ours, taken in while it is served.
//!
//! What becomes of each is decided in [`crate::logic::heal`].

use std::sync::Arc;

use bytes::Bytes;
use stead_shared::id::{Epoch, SessionKey, Version};
use stead_shared::refusal::Refusal;
use stead_shared::time::Time;

use super::conflicts::{Conflict, Loser};
use super::data::{Counter, Data, Footprint, Stored};
use super::inner::Inner;
use super::record::RecordError;
use super::shard::Shard;
use crate::logic::gate::Gate;
use crate::logic::heal::lineage::Lineage;
use crate::logic::heal::{self, Merge, Verdict, compare, counter, last_writer};
use crate::logic::window::Window;
use crate::merging::Histories;

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

/// What is to be done with an offered session.
enum Decision {
    /// Nothing: it counts as this.
    Done(Merged),
    Take,
    /// With the last change that both have.
    Both(Option<Version>),
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
    pub(crate) fn is_healed(&self) {
        self.lock().healed = None;
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
        Ok(match self.lock().decide(key, stored, offered, histories)? {
            Decision::Done(merged) => Some(merged),
            Decision::Take | Decision::Both(..) => None,
        })
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
        if !matches!(decision, Decision::Done(_)) && self.core.refuses_changes() {
            return Err(MergeError::Busy);
        }
        let here = inner.sessions.at_rest(key.as_bytes());
        let old = here.map_or(Footprint::NONE, Stored::footprint);
        let old_timer = here.and_then(|here| here.data.earliest_timer());
        let is_activated = here.is_some_and(|here| here.activated);
        let mut loser = None;
        let mut seq = stored.data.version.seq;
        match (decision, here) {
            (Decision::Done(merged), _) => return Ok(merged),
            (Decision::Take, None) | (Decision::Both(..), None) => {}
            (Decision::Take, Some(here)) => {
                let window = unite(here.data.window(), stored.data.window(), self.core.now());
                stored.set_window(window);
            }
            (Decision::Both(ancestor), Some(here)) => {
                seq = seq.max(here.data.version.seq);
                let window = unite(here.data.window(), stored.data.window(), self.core.now());
                let merge = self.core.config.merge.as_deref();
                let epoch = inner.served_since(offered)?;
                let version = Version { epoch, seq: 1 + seq.max(inner.seq) };
                let sides = Sides { ancestor, histories, merge, version };
                loser = sides.merge(&here.data, &mut stored.data);
                stored.data.version = version;
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
        let (due, kept) = (stored.due(), stored.data.value_version);
        inner.sessions.remove(key.as_bytes());
        inner.sessions.insert(Box::new(stored));
        inner.expires_at(due);
        inner.arm(self.id(), &self.core);
        inner.tell_arrival(&self.core, prev, key);
        inner.note_healed(key, &histories.theirs);
        drop(inner);
        let Some(Loser { version: lost, written, value, schema }) = loser else {
            return Ok(Merged::Taken);
        };
        let (key, shard) = (key.clone(), self.id());
        let lost_written_micros = written.0;
        let conflict = Conflict { key, shard, kept, lost, lost_written_micros, value, schema };
        self.core.conflicts.add(conflict);
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

    /// What a session was at the end of another history is in it: when that is offered again it is
    /// no conflict with what has become of it since.
    fn note_healed(&mut self, key: &SessionKey, theirs: &Lineage) {
        let Some(&tip) = theirs.ends().last() else { return };
        match self.healed.as_deref_mut().filter(|(of, _)| *of == tip) {
            Some((_, keys)) => drop(keys.insert(key.clone())),
            None => self.healed = Some(Box::new((tip, [key.clone()].into()))),
        }
    }

    fn decide(
        &self,
        key: &SessionKey,
        stored: &Stored,
        offered: Epoch,
        Histories { ours, theirs, is_unconfirmed }: &Histories,
    ) -> Result<Decision, MergeError> {
        let epoch = self.served_since(offered)?;
        if epoch < stored.data.version.epoch {
            // Our own changes would seem older than this one.
            return Err(RecordError::Malformed.into());
        }
        let here = self.sessions.at_rest(key.as_bytes());
        if *theirs == Lineage::EMPTY {
            let Some(here) = here else { return Ok(Decision::Take) };
            let (own, version) = (here.data.version, stored.data.version);
            // Who served that epoch changed it after this: it has not been changed here since.
            let goes_on = own.epoch == version.epoch && own.seq < version.seq && own.epoch < epoch;
            return Ok(match own == version {
                true => Decision::Done(Merged::Taken),
                false if goes_on => Decision::Take,
                false => Decision::Done(Merged::Kept),
            });
        }
        if let Some((tip, keys)) = self.healed.as_deref()
            && Some(tip) == theirs.ends().last()
            && keys.contains(key)
        {
            return Ok(Decision::Done(Merged::Taken));
        }
        let ancestor = ours.ancestor(theirs);
        let verdict = compare(here.map(|here| here.data.version), stored.data.version, ancestor);
        Ok(match (verdict, here) {
            (Verdict::Keep, _) => Decision::Done(Merged::Taken),
            (Verdict::Take, _) => Decision::Take,
            // What was answered to nobody may have been asked for again, and be in what is here.
            (Verdict::Both, Some(_)) if *is_unconfirmed && ancestor.is_some() => {
                Decision::Done(Merged::Kept)
            }
            // A change is worth more than a deletion.
            (Verdict::Both, Some(here)) if here.is_tombstone() => Decision::Take,
            (Verdict::Both, _) if stored.is_tombstone() => Decision::Done(Merged::Taken),
            (Verdict::Both, _) => Decision::Both(ancestor),
        })
    }
}

/// Two histories of a shard.
struct Sides<'a> {
    ancestor: Option<Version>,
    histories: &'a Histories,
    merge: Option<&'a dyn Merge>,
    /// The change that it is to merge them.
    version: Version,
}

impl Sides<'_> {
    /// Makes of `theirs` what both are together. Gives the value that did not stay, if there is one.
    fn merge(&self, ours: &Data, theirs: &mut Data) -> Option<Loser> {
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

    fn merge_value(&self, ours: &Data, theirs: &mut Data) -> Option<Loser> {
        let (Some(our_value), Some(their_value)) = (&ours.value, &theirs.value) else {
            if ours.value.is_some() {
                theirs.take_value(ours);
            }
            return None;
        };
        let verdict = compare(Some(ours.value_version), theirs.value_version, self.ancestor);
        if verdict == Verdict::Keep
            || (our_value == their_value && ours.schema() == theirs.schema())
        {
            theirs.take_value(ours);
            return None;
        }
        if verdict == Verdict::Take {
            return None;
        }
        let by_time = || {
            let (ours, theirs) =
                ((ours.written, ours.value_version), (theirs.written, theirs.value_version));
            last_writer(ours, theirs)
        };
        let merged = match self.merge {
            Some(merge) if ours.schema() == theirs.schema() => {
                merge.merge(None, our_value, their_value)
            }
            Some(_) | None => by_time(),
        };
        match merged {
            heal::Merged::Both(bytes) => {
                theirs.value = Some(Arc::from(bytes));
                theirs.value_version = self.version;
                None
            }
            heal::Merged::Theirs => Some(loser(ours)),
            heal::Merged::Ours => {
                let loser = loser(theirs);
                theirs.take_value(ours);
                Some(loser)
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

fn loser(data: &Data) -> Loser {
    Loser {
        version: data.value_version,
        written: data.written,
        value: data.value.as_deref().map_or_else(Bytes::new, Bytes::copy_from_slice),
        schema: data.schema(),
    }
}

/// All that either has answered lately.
fn unite(ours: Option<&Window>, theirs: Option<&Window>, now: Time) -> Window {
    let (ours, theirs) = match (ours, theirs) {
        (Some(ours), Some(theirs)) => (ours, theirs),
        (one, other) => return one.or(other).cloned().unwrap_or_default(),
    };
    ours.united(theirs, now)
}
