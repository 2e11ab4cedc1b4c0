//! Sessions of a shard that this node serves no more, until somebody has them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use stead_shared::id::{SessionKey, ShardId};
use stead_shared::time::Time;

use super::arriving::Arriving;
use super::core::Core;
use super::inner::Past;
use super::record::Record;
use super::saving::Pen;
use super::sessions::Sessions;

/// What was in a shard, taken out of its host by [`Host::set_aside`](crate::Host::set_aside).
/// Nothing changes it any more: no turn, no timer, no time to live. Its memory stays counted until
/// it is dropped.
pub struct SetAside {
    core: Arc<Core>,
    shard: ShardId,
    seq: u64,
    sessions: Sessions,
    timed: BTreeSet<(Time, SessionKey)>,
    past: Past,
    /// Whoever it is offered to has all of it that was answered.
    is_unconfirmed: bool,
    /// For what the disk holds of it.
    pen: Option<Box<Pen>>,
}

impl fmt::Debug for SetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetAside")
            .field("shard", &self.shard)
            .field("sessions", &self.sessions.len())
            .finish_non_exhaustive()
    }
}

impl SetAside {
    pub(super) fn new(
        core: Arc<Core>,
        (shard, seq, past): (ShardId, u64, Past),
        sessions: Sessions,
        timed: BTreeSet<(Time, SessionKey)>,
        pen: Option<Box<Pen>>,
    ) -> Self {
        let is_unconfirmed = false;
        Self { core, shard, seq, sessions, timed, past, is_unconfirmed, pen }
    }

    /// What arrived, given up.
    pub(crate) fn of(
        core: Arc<Core>,
        shard: ShardId,
        arrived: Arriving,
        pen: Option<Box<Pen>>,
    ) -> Self {
        let Arriving { seq, sessions, timed, past, earliest_expiry: _ } = arrived;
        Self::new(core, (shard, seq, past), sessions, timed, pen)
    }

    /// Whoever it is offered to has all of it that was answered.
    pub(crate) fn set_unconfirmed(&mut self) {
        self.is_unconfirmed = true;
    }

    /// Nobody needs what the disk holds of it any more.
    pub(crate) fn forget_on_disk(&mut self) {
        if let Some(pen) = self.pen.take() {
            pen.forget();
        }
    }

    /// Nobody took it: what the disk holds of it is offered again after the next start.
    pub(crate) fn leave_on_disk(&mut self) {
        if let Some(pen) = self.pen.take() {
            pen.leave();
        }
    }

    pub(crate) fn take_pen(&mut self) -> Option<Box<Pen>> {
        self.pen.take()
    }

    /// What is in it, as if it had arrived.
    pub(crate) fn into_arriving(mut self) -> Arriving {
        let sessions = std::mem::replace(&mut self.sessions, Sessions::new());
        let timed = std::mem::take(&mut self.timed);
        // They are looked at soon, and then it is known.
        let (seq, past) = (self.seq, std::mem::take(&mut self.past));
        Arriving { seq, sessions, timed, past, earliest_expiry: Time::ZERO }
    }

    /// Which shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Number of its sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Its sessions as records for [`Merging::add`](crate::Merging::add) or
    /// [`Host::install`](crate::Host::install), but those whose time to live has run out. Each is
    /// made when it is asked for.
    pub fn records(&self) -> impl Iterator<Item = Bytes> + Send + '_ {
        let now = self.core.now();
        let sessions = self.sessions.iter().filter(move |stored| now < stored.expires);
        let sessions = sessions
            .map(move |stored| Record::of(&stored.key, &stored.data, stored.expires, now).encode());
        let head = Record::of_shard(self.seq, self.past.clone()).encode();
        let unconfirmed = self.is_unconfirmed.then(|| Record::Unconfirmed.encode());
        std::iter::once(head).chain(unconfirmed).chain(sessions)
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        let sessions = std::mem::replace(&mut self.sessions, Sessions::new());
        self.core.free(sessions.footprint());
        discard(sessions, std::mem::take(&mut self.timed));
    }
}

/// More sessions than this are not given back by whoever happens to drop them: at some 100 ns
/// each, this many take half a millisecond.
const DISCARDED_HERE_MAX: usize = 5_000;

/// Gives memory back without holding up the caller for long. Without a runtime the process ends.
pub(super) fn discard(sessions: Sessions, timed: BTreeSet<(Time, SessionKey)>) {
    if DISCARDED_HERE_MAX < sessions.len()
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        runtime.spawn_blocking(move || drop((sessions, timed)));
    }
}
