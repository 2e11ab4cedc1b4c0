//! What of a shard has arrived, ready to be served.

use std::collections::BTreeSet;
use std::time::Duration;

use stead_shared::id::SessionKey;
use stead_shared::time::Time;

use super::aside::discard;
use super::clock::NEVER;
use super::core::Core;
use super::record::{Record, RecordError, SessionRecord};
use super::sessions::Sessions;
use super::shard::session_key;

/// Sessions with all that a shard keeps about them, so that nobody has to look at them when the
/// gate opens.
pub(crate) struct Arriving {
    pub(super) seq: u64,
    pub(super) sessions: Sessions,
    pub(super) timed: BTreeSet<(Time, SessionKey)>,
    /// None of the sessions expires before.
    pub(super) earliest_expiry: Time,
}

impl Arriving {
    pub(crate) fn new() -> Self {
        let (sessions, timed) = (Sessions::new(), BTreeSet::new());
        Self { seq: 0, sessions, timed, earliest_expiry: NEVER }
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
            Record::Session(session) => self.put(core, session)?,
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

    /// Takes a session in that was written to disk `age` ago.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(crate) fn add_aged(
        &mut self,
        core: &Core,
        record: &[u8],
        age: Duration,
    ) -> Result<(), RecordError> {
        let Record::Session(mut session) = Record::decode(record)? else {
            return Err(RecordError::Malformed);
        };
        session.age(age);
        self.put(core, session)
    }

    /// Gives everything back to `core`.
    pub(crate) fn forget(self, core: &Core) {
        core.free(self.sessions.bytes(), self.sessions.len() as u64);
        discard(self.sessions, self.timed);
    }

    fn put(&mut self, core: &Core, session: SessionRecord<'_>) -> Result<(), RecordError> {
        let stored = session.into_stored(core.now());
        let spot = self.sessions.spot(&stored.key);
        let old = self.sessions.at(&spot);
        let old_bytes = old.map_or(0, |old| old.bytes as usize);
        let old_timer = old.and_then(|old| old.data.earliest_timer());
        core.resize(old_bytes, stored.bytes as usize).map_err(|_| RecordError::MemoryFull)?;
        self.seq = self.seq.max(stored.data.version.seq);
        self.earliest_expiry = self.earliest_expiry.min(stored.expires);
        self.retime(&stored.key, old_timer, stored.data.earliest_timer());
        self.sessions.insert_at(spot, Box::new(stored));
        Ok(())
    }

    fn remove(&mut self, core: &Core, key: &[u8]) {
        let Some(gone) = self.sessions.remove(key) else { return };
        core.free(u64::from(gone.bytes), 1);
        self.retime(key, gone.data.earliest_timer(), None);
    }

    fn retime(&mut self, key: &[u8], old: Option<Time>, new: Option<Time>) {
        if old != new {
            old.map(|at| self.timed.remove(&(at, session_key(key))));
            new.map(|at| self.timed.insert((at, session_key(key))));
        }
    }
}
