//! Sessions of a shard that this node serves no more, until somebody has them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use stead_shared::id::ShardId;

use super::core::Core;
use super::data::Stored;
use super::record::{Record, SessionRecord};
use super::shard::session_key;

/// What was in a shard, taken out of its host by [`Host::set_aside`](crate::Host::set_aside).
/// Nothing changes it any more: no turn, no timer, no time to live. Its memory stays counted until
/// it is dropped.
pub struct SetAside {
    core: Arc<Core>,
    shard: ShardId,
    seq: u64,
    sessions: HashMap<Box<[u8]>, Box<Stored>>,
    bytes: u64,
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
        (shard, seq): (ShardId, u64),
        sessions: HashMap<Box<[u8]>, Box<Stored>>,
        bytes: u64,
    ) -> Self {
        Self { core, shard, seq, sessions, bytes }
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

    /// Its sessions as records for [`Host::merge`](crate::Host::merge) or
    /// [`Host::install`](crate::Host::install), but those whose time to live has run out. Each is
    /// made when it is asked for.
    pub fn records(&self) -> impl Iterator<Item = Bytes> + Send + '_ {
        let now = self.core.now();
        let sessions = self.sessions.iter().filter(move |(_, stored)| now < stored.expires);
        let sessions = sessions.map(move |(key, stored)| {
            let record = SessionRecord::of(session_key(key), &stored.data, stored.expires, now);
            Record::Session(record).encode()
        });
        std::iter::once(Record::Shard { seq: self.seq }.encode()).chain(sessions)
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        self.core.free(self.bytes, self.sessions.len() as u64);
    }
}
