//! What of a host's shards goes to disk: every change, in the order of the changes, under the lock
//! under which it is made.
//!
//! What is written of a shard has one writer at a time, who has its [`Pen`]: the shard that is
//! served, the copy that is kept for another node, or the handoff that comes in. Whoever begins
//! anew takes the pen from the one before, who writes nothing more. What the disk held at the start
//! stays [kept](Saving::keep) until it is decided what becomes of it, and nobody has its pen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use stead_shared::id::{SessionKey, ShardId, Version};
use stead_shared::refusal::Refusal;
use stead_shared::time::Time;
use tokio::time::{Instant, timeout_at};

use super::core::Core;
use super::data::Stored;
use super::draft::Access;
use super::following::grace;
use super::inner::{Inner, Past};
use super::record::Record;
use super::sessions::Sessions;
use super::shard::{Shard, overloaded};
use crate::disk::{Disk, DiskFailed, DiskState, Role, ShardMeta, Slots};
use crate::logic::durable::Beginning;
use crate::logic::gate::Gate;
use crate::logic::window::slot_of;

/// Under which a shard's past is written: no session has this key.
const PAST_KEY: &[u8] = &[];

/// The writer of a shard whose state from the start is kept.
const KEPT: u64 = 0;

/// The state on disk of one host.
#[derive(Debug)]
pub(crate) struct Saving {
    disk: Disk,
    /// Answers wait for it.
    sync: bool,
    /// Shards of which something is on disk, and who writes them.
    writers: DashMap<ShardId, u64>,
    next_writer: AtomicU64,
    /// The last position that the disk gave.
    last: AtomicU64,
    /// How shards began that came here from others.
    begun: DashMap<ShardId, Beginning>,
}

impl Saving {
    pub(crate) fn new(disk: Disk, sync: bool) -> Self {
        let (writers, next_writer) = (DashMap::new(), AtomicU64::new(KEPT + 1));
        Self { disk, sync, writers, next_writer, last: AtomicU64::new(0), begun: DashMap::new() }
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Whether nothing may be changed now: the disk fails, and answers wait for it, or what it has yet
    /// to take is too much. While it works changes [wait](Core::disk_room) for room; those that have
    /// begun by then go on, within bounds.
    pub(crate) fn refuses(&self) -> bool {
        let is_failing = self.disk.done().1;
        is_failing && (self.sync || !self.disk.has_room()) || self.disk.is_overfull()
    }

    /// Waits until everything that was written up to now is on disk, whatever the policy.
    ///
    /// # Errors
    /// [`DiskFailed`], at once, while the disk fails.
    pub(crate) async fn settled(&self) -> Result<(), DiskFailed> {
        self.disk.wait(self.last.load(Ordering::Acquire)).await
    }

    /// A shard that comes here began like this. Of several times the last one counts.
    pub(crate) fn note_begun(&self, shard: ShardId, begun: Beginning) {
        let mut known = self.begun.entry(shard).or_insert(begun);
        if known.epoch < begun.epoch {
            *known = begun;
        }
    }

    /// What the disk holds of a shard stays as it is, and nobody writes to it.
    pub(crate) fn keep(&self, shard: ShardId) {
        self.writers.insert(shard, KEPT);
    }

    /// Whether what the disk held of a shard at the start is still kept.
    pub(crate) fn keeps(&self, shard: ShardId) -> bool {
        self.writers.get(&shard).is_some_and(|writer| *writer == KEPT)
    }

    /// The pen of what was kept, which began like this.
    pub(crate) fn release(self: &Arc<Self>, shard: ShardId, begun: Option<Beginning>) -> Box<Pen> {
        let id = self.next_writer.fetch_add(1, Ordering::Relaxed);
        self.writers.insert(shard, id);
        self.pen(shard, id, begun)
    }

    /// Begins a shard from nothing, with `meta`. None while what it was is kept.
    pub(crate) fn begin(self: &Arc<Self>, shard: ShardId, meta: ShardMeta) -> Option<Box<Pen>> {
        let id = self.next_writer.fetch_add(1, Ordering::Relaxed);
        match self.writers.entry(shard) {
            Entry::Occupied(writer) if *writer.get() == KEPT => return None,
            Entry::Occupied(mut writer) => {
                writer.insert(id);
                self.note(self.disk.forget(shard));
                self.note(self.disk.meta(shard, meta));
            }
            Entry::Vacant(free) => {
                let _held = free.insert(id);
                self.note(self.disk.meta(shard, meta));
            }
        }
        let mut pen = self.pen(shard, id, meta.begun);
        pen.alone = Some(meta.alone);
        Some(pen)
    }

    /// The pen of what is kept, which stays kept.
    pub(crate) fn kept_pen(self: &Arc<Self>, shard: ShardId) -> Box<Pen> {
        self.pen(shard, KEPT, None)
    }

    /// Whether answers wait for the disk.
    pub(crate) fn is_awaited(&self) -> bool {
        self.sync
    }

    fn pen(self: &Arc<Self>, shard: ShardId, id: u64, begun: Option<Beginning>) -> Box<Pen> {
        let past = Past::default();
        Box::new(Pen { saving: Arc::clone(self), shard, id, last: 0, past, begun, alone: None })
    }

    fn note(&self, position: u64) -> u64 {
        self.last.fetch_max(position, Ordering::AcqRel);
        position
    }
}

/// The right to write a shard to disk.
#[derive(Debug)]
pub(crate) struct Pen {
    saving: Arc<Saving>,
    shard: ShardId,
    id: u64,
    /// Where its last change is in the disk's queue.
    last: u64,
    /// What it has written of the shard's past.
    past: Past,
    /// How what it writes began.
    begun: Option<Beginning>,
    /// Whether answers wait for no copy, as it has written.
    alone: Option<bool>,
}

impl Pen {
    /// Whether nobody has begun anew.
    pub(crate) fn is_current(&self) -> bool {
        self.saving.writers.get(&self.shard).is_some_and(|writer| *writer == self.id)
    }

    /// Hands something over, unless somebody else writes the shard by now.
    fn write(&self, push: impl FnOnce(&Disk) -> u64) -> Option<u64> {
        // Held until it is in the queue: who begins anew comes after it.
        let writer = self.saving.writers.get(&self.shard).filter(|writer| **writer == self.id)?;
        let position = self.saving.note(push(&self.saving.disk));
        drop(writer);
        Some(position)
    }

    /// Writes what the shard is, and what it has of what was in it before.
    pub(crate) fn meta(&mut self, meta: ShardMeta, past: &Past) {
        self.past(meta.at, past);
        let shard = self.shard;
        let known = || self.saving.begun.get(&shard).map(|begun| *begun);
        let begun = meta.begun.or(self.begun).or_else(known);
        let meta = ShardMeta { begun, ..meta };
        self.alone = Some(meta.alone);
        self.last = self.write(|disk| disk.meta(shard, meta)).unwrap_or(self.last);
    }

    /// Writes what the shard has of what was in it before, unless that is written.
    fn past(&mut self, at: Version, past: &Past) {
        if self.past != *past {
            self.past = past.clone();
            let record = Record::of_shard(at.seq, past.clone()).encode();
            self.put(at, PAST_KEY, (Some(record), Slots::Same));
        }
    }

    fn put(&mut self, at: Version, key: &[u8], row: (Option<Bytes>, Slots)) {
        let shard = self.shard;
        self.last = self.write(|disk| disk.put(shard, at, key, row)).unwrap_or(self.last);
    }

    fn remove(&mut self, at: Version, key: &[u8]) {
        let shard = self.shard;
        self.last = self.write(|disk| disk.remove(shard, at, key)).unwrap_or(self.last);
    }

    /// Writes what a record has done to `sessions`. One that tells only where the shard is writes
    /// nothing: that is for [`meta`](Self::meta).
    pub(crate) fn follow(&mut self, core: &Core, at: Version, encoded: &[u8], sessions: &Sessions) {
        match Record::decode(encoded) {
            Ok(Record::Gone { key }) => self.remove(at, key),
            Ok(Record::Touched { key, .. }) => {
                if sessions.get(key).is_some() {
                    self.put_here(core, at, (key, Answers::Same), sessions);
                }
            }
            Ok(Record::Changed(session, change)) => {
                let answers = Answers::came(change.entry.map(|entry| entry.is_keyed()));
                self.put_here(core, at, (session.key(), answers), sessions);
            }
            Ok(Record::Session(session) | Record::Whole(session, ..)) => {
                self.put_here(core, at, (session.key(), Answers::All), sessions);
            }
            Ok(Record::Trimmed { key, .. }) => {
                self.put_here(core, at, (key, Answers::All), sessions);
            }
            Ok(
                Record::Shard { .. }
                | Record::ShardPast { .. }
                | Record::Unconfirmed
                | Record::AtRest(..)
                | Record::Slot(..)
                | Record::SlotAtRest(..),
            )
            | Err(_) => {}
        }
    }

    /// Writes a session as it is in `sessions`, or that it is no more.
    fn put_here(
        &mut self,
        core: &Core,
        at: Version,
        (key, answers): (&[u8], Answers),
        sessions: &Sessions,
    ) {
        match sessions.at_rest(key) {
            Some(stored) => {
                let expires = stored.expires;
                self.put(at, key, row_of(core, stored, expires, answers));
            }
            None => self.remove(at, key),
        }
    }

    /// Writes all sessions. What was there before is to have been forgotten.
    pub(crate) fn put_all(&mut self, core: &Core, at: Version, sessions: &Sessions) {
        for stored in sessions.iter() {
            self.put(at, &stored.key, row_of(core, stored, stored.expires, Answers::All));
        }
    }

    /// What is on disk stays until somebody begins anew, who may.
    pub(crate) fn leave(self) {
        let fresh = self.saving.next_writer.fetch_add(1, Ordering::Relaxed);
        if let Some(mut writer) = self.saving.writers.get_mut(&self.shard)
            && *writer == self.id
        {
            *writer = fresh;
        }
    }

    /// Drops all of the shard from disk, unless somebody else writes it by now.
    pub(crate) fn forget(self) {
        let shard = self.shard;
        self.write(|disk| disk.forget(shard));
        self.saving.writers.remove_if(&shard, |_, writer| *writer == self.id);
    }
}

/// What of a session's window goes to disk with it. The rest is there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answers {
    /// Nothing.
    Same,
    /// The entry that came last to one of the lists.
    Came { is_keyed: bool },
    /// All of it.
    All,
}

impl Answers {
    /// The entry that came, if one did, and to the list of idempotency keys.
    pub(super) fn came(is_keyed: Option<bool>) -> Self {
        is_keyed.map_or(Self::Same, |is_keyed| Self::Came { is_keyed })
    }
}

/// A session is written with each of its answers when it is no longer than this.
const SHORT_BYTES_MAX: u64 = 1024;

/// What is written of a session that lives until `expires`.
fn row_of(core: &Core, stored: &Stored, expires: Time, answers: Answers) -> (Option<Bytes>, Slots) {
    let now = core.now();
    let window = stored.data.window();
    let own_bytes = stored.record_bytes().saturating_sub(stored.data.window_size() as u64);
    let list = |is_keyed: bool| {
        let entries = window.into_iter().flat_map(move |window| window.numbered(is_keyed));
        entries.map(move |(number, entry)| {
            (slot_of(is_keyed, number), Record::slot(number, entry, now).encode())
        })
    };
    let slots = match answers {
        Answers::Same => Slots::Same,
        Answers::Came { is_keyed } => {
            let newest = window.and_then(|window| window.numbered(is_keyed).next_back());
            let bytes = own_bytes + newest.map_or(0, |(_, entry)| entry.size() as u64);
            if own_bytes <= SHORT_BYTES_MAX {
                let session = (&*stored.key, &stored.data, expires);
                if let Some((slot, record)) = Record::slot_at_rest(session, is_keyed, now) {
                    return (None, Slots::One(slot, record.encode_about(bytes)));
                }
            }
            newest.map_or(Slots::Same, |(number, entry)| {
                let record = Record::slot(number, entry, now).encode_about(bytes - own_bytes);
                Slots::One(slot_of(is_keyed, number), record)
            })
        }
        Answers::All => Slots::All(list(false).chain(list(true)).collect()),
    };
    let record = Record::at_rest(&stored.key, &stored.data, expires, now);
    (Some(record.encode_about(own_bytes)), slots)
}

impl Core {
    /// Whether the disk takes no more changes.
    pub(crate) fn refuses_changes(&self) -> bool {
        self.saving.get().is_some_and(|saving| saving.refuses())
    }

    /// Waits while the disk takes no more changes.
    pub(crate) async fn disk_takes_changes(&self) {
        let Some(saving) = self.saving.get() else { return };
        let mut state = saving.disk.state();
        while saving.refuses() || !saving.disk.has_room() {
            if !saving.disk.has_room() {
                saving.disk.room().await;
            } else if state.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether there is room in the disk's queue.
    pub(super) fn has_disk_room(&self) -> bool {
        self.saving.get().is_none_or(|saving| saving.disk.has_room())
    }

    /// Waits for room in the queue of a disk that works, before something changes.
    ///
    /// # Errors
    /// When that takes too long.
    pub(crate) async fn disk_room(&self, deadline: Option<Instant>) -> Result<(), Refusal> {
        let Some(disk) = self.saving.get().map(|saving| &saving.disk) else { return Ok(()) };
        if disk.has_room() {
            return Ok(());
        }
        self.metrics.turns_delayed.increment(1);
        let too_old = Instant::now() + self.config.mailbox_age_max;
        let until = deadline.map_or(too_old, |deadline| deadline.min(too_old));
        let mut state = disk.state();
        // What a disk that fails refuses is said when the turn ends.
        while !disk.has_room() && *state.borrow_and_update() == DiskState::Ok {
            let more = timeout_at(until, async {
                tokio::select! {
                    biased;
                    () = disk.room() => {}
                    _ = state.changed() => {}
                }
            });
            more.await.map_err(|_| overloaded())?;
        }
        Ok(())
    }

    /// The pen of a shard that begins from nothing.
    pub(crate) fn begin_on_disk(&self, shard: ShardId, meta: ShardMeta) -> Option<Box<Pen>> {
        self.saving.get().and_then(|saving| saving.begin(shard, meta))
    }
}

impl Inner {
    /// Writes a session as it is now, or that it is no more.
    pub(super) fn save(&mut self, core: &Core, key: &SessionKey, answers: Answers) {
        let (Some(pen), Some(epoch)) = (&mut self.pen, self.gate.epoch()) else { return };
        let (at, key) = (Version { epoch, seq: self.seq }, key.as_bytes());
        match self.sessions.at_rest(key) {
            Some(stored) => {
                let expires = stored.expires + grace(core, stored);
                pen.put(at, key, row_of(core, stored, expires, answers));
            }
            None => pen.remove(at, key),
        }
    }

    /// Writes a session that was accessed. Nobody waits for that.
    pub(super) fn save_touch(&mut self, core: &Core, key: &SessionKey) {
        let before = self.pen.as_ref().map(|pen| pen.last);
        self.save(core, key, Answers::Same);
        if let (Some(pen), Some(last)) = (&mut self.pen, before) {
            pen.last = last;
        }
    }

    /// Writes whether the shard is served, in which epoch, and where it is.
    pub(super) fn save_gate(&mut self) {
        let (role, epoch) = match self.gate {
            Gate::Serving(epoch) => (Role::Owner, epoch),
            Gate::Sealed(epoch) => (Role::Sealed, epoch),
            Gate::Gone => return,
        };
        let alone = self.is_alone();
        let Some(pen) = &mut self.pen else { return };
        let at = Version { epoch, seq: self.seq };
        let meta = ShardMeta { at, role, complete: true, begun: None, alone };
        let nothing = Past::default();
        pen.meta(meta, self.past.as_deref().unwrap_or(&nothing));
    }

    /// Writes whether answers wait for a copy, unless that is written.
    pub(super) fn save_set(&mut self) {
        let alone = self.is_alone();
        if self.pen.as_ref().is_some_and(|pen| pen.alone != Some(alone)) {
            self.save_gate();
        }
    }

    /// Writes how far back the windows that have ended reach.
    pub(super) fn save_past(&mut self) {
        let (Some(pen), Some(past)) = (&mut self.pen, &self.past) else { return };
        if let Some(epoch) = self.gate.epoch() {
            pen.past(Version { epoch, seq: self.seq }, past);
        }
    }
}

impl Shard {
    /// Waits until the disk has what the shard was when this was called, if answers wait for it.
    /// Reads do not wait for a disk that fails: it is said where changes are refused.
    pub(super) async fn is_on_disk(&self, access: Access) -> bool {
        let Some(saving) = self.core.saving.get().filter(|saving| saving.sync) else {
            return true;
        };
        let position = self.lock().pen.as_ref().map(|pen| pen.last);
        match (position, access) {
            (Some(position), _) if position <= saving.disk.done().0 => true,
            (Some(position), _) => {
                saving.disk.wait(position).await.is_ok() || access == Access::Read
            }
            (None, access) => access == Access::Read,
        }
    }
}
