//! Sessions that another node served under a shard of ours, taken in while it is served.

use stead_shared::id::{Epoch, SessionKey, Version};
use stead_shared::refusal::Refusal;

use super::data::{Footprint, Stored};
use super::inner::Inner;
use super::record::RecordError;
use super::shard::Shard;
use crate::logic::gate::Gate;

/// What became of a session that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It is here now, or was here before: what has become of it since stays.
    Taken,
    /// Another state of it is here, and stays.
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

    /// What becomes of an offered session, where that is clear without its turn.
    pub(crate) fn compare(
        &self,
        key: &SessionKey,
        stored: &Stored,
        offered: Epoch,
    ) -> Result<Option<Merged>, MergeError> {
        self.lock().compare(key, stored.data.version, offered)
    }

    /// Takes an offered session in, unless there is one that it does not go on from. The caller has
    /// its turn.
    pub(crate) fn take_in(
        &self,
        key: &SessionKey,
        stored: Stored,
        offered: Epoch,
    ) -> Result<Merged, MergeError> {
        let mut inner = self.lock();
        if let Some(merged) = inner.compare(key, stored.data.version, offered)? {
            return Ok(merged);
        }
        if self.core.refuses_changes() {
            return Err(MergeError::Busy);
        }
        let old = inner.sessions.at_rest(key.as_bytes());
        let old_size = old.map_or(Footprint::NONE, Stored::footprint);
        let old_timer = old.and_then(|old| old.data.earliest_timer());
        let activated = old.is_some_and(|old| old.activated);
        self.core.resize(old_size, stored.footprint()).map_err(|_| RecordError::MemoryFull)?;
        if let Some(at) = old_timer {
            inner.timed.remove(&(at, key.clone()));
        }
        let stored = Stored { activated: activated && !stored.is_tombstone(), ..stored };
        let prev = inner.next_seq(stored.data.version.seq);
        if let Some(at) = stored.data.earliest_timer() {
            inner.timed.insert((at, key.clone()));
        }
        let due = stored.due();
        inner.sessions.insert(Box::new(stored));
        inner.expires_at(due);
        inner.arm(self.id(), &self.core);
        inner.tell_arrival(&self.core, prev, key);
        Ok(Merged::Taken)
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

    fn compare(
        &self,
        key: &SessionKey,
        version: Version,
        offered: Epoch,
    ) -> Result<Option<Merged>, MergeError> {
        let epoch = self.served_since(offered)?;
        if epoch < version.epoch {
            // Our own changes would seem older than this one.
            return Err(RecordError::Malformed.into());
        }
        // It was in the copy that this shard was made of, and perhaps something came after it.
        let is_in = |end: Version| version.epoch == end.epoch && version.seq <= end.seq;
        if self.promoted().is_some_and(is_in) {
            return Ok(Some(Merged::Taken));
        }
        // What was deleted a moment ago does not come back either.
        let Some(here) = self.sessions.at_rest(key.as_bytes()) else { return Ok(None) };
        let own = here.data.version;
        // Who served that epoch changed it after this: it has not been changed here since.
        let goes_on = own.epoch == version.epoch && own.seq < version.seq && own.epoch < epoch;
        Ok(match own == version {
            true => Some(Merged::Taken),
            false if goes_on => None,
            false => Some(Merged::Kept),
        })
    }
}
