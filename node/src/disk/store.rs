//! The database under the module: opening it, writing batches, reading shards.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Slice};
use stead_shared::id::ShardId;

use super::inspect::inspect;
use crate::logic::durable::{Counted, MetaRow, RowError, decode_meta, decode_session};
use crate::logic::rows::{is_same, shard_of, split_slot, start_of};
use crate::logic::window::{SLOTS, is_keyed_slot};

/// Bytes of blocks that the database keeps in memory. Sessions are read once, at the start.
const CACHE_BYTES: u64 = 8 << 20;
/// The journal's old files, at most: what an unclean end makes the next start replay.
const JOURNAL_BYTES_MAX: u64 = 128 << 20;
/// Bytes of rows that the database keeps in memory before it writes a table. Each row is searched a
/// place for among those that are there.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Threads that flush and compact.
const WORKERS: usize = 2;

/// What the database says when it does not do what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("another process has it open")]
    Locked,
    #[error("a write or a task in the background failed before")]
    Poisoned,
    #[error("{0}")]
    Other(String),
}

impl From<fjall::Error> for StoreError {
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
                Self::Io(error)
            }
            fjall::Error::Locked => Self::Locked,
            fjall::Error::Poisoned => Self::Poisoned,
            other => Self::Other(other.to_string()),
        }
    }
}

impl StoreError {
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Io(error) if Self::is_full_io(error))
    }

    pub(super) fn is_full_io(error: &io::Error) -> bool {
        [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind())
    }
}

/// The database meets some broken files with a panic.
pub(super) fn without_panic<T>(
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn Any + Send)) -> StoreError {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    StoreError::Other(format!("the database panicked: {text}"))
}

/// One change of one row.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) place: Place,
    pub(super) key: Slice,
    /// None removes it.
    pub(super) value: Option<Slice>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Sessions,
    Shards,
}

#[derive(Clone)]
pub(super) struct Store {
    db: Database,
    sessions: Keyspace,
    shards: Keyspace,
}

/// A row of a session, or of a slot of one, as it is stored: key and value.
pub(super) type RawRow = (Slice, Slice);

impl Store {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        inspect(dir)?;
        without_panic(|| {
            let db = Database::builder(dir)
                .cache_size(CACHE_BYTES)
                .worker_threads(WORKERS)
                .max_journaling_size(JOURNAL_BYTES_MAX)
                .journal_compression(CompressionType::None)
                .manual_journal_persist(true)
                .open()?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            let sessions = db.keyspace("sessions", options)?;
            let shards = db.keyspace("shards", KeyspaceCreateOptions::default)?;
            Ok(Self { db, sessions, shards })
        })
    }

    /// Moves everything from the journal into tables.
    #[cfg(test)]
    pub(super) fn flush(&self) {
        self.sessions.rotate_memtable_and_wait().unwrap();
        self.shards.rotate_memtable_and_wait().unwrap();
    }

    /// Ends the database, when this is the last handle.
    pub(super) fn close(self) {
        let closed = without_panic(|| {
            drop(self);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::error!(%error, "closing the database");
        }
    }

    /// Writes all of it or nothing. On disk with the next [`Self::sync`].
    pub(super) fn write(&self, writes: &[Write]) -> Result<(), StoreError> {
        without_panic(|| {
            let mut batch = self.db.batch();
            for write in writes {
                let keyspace = match write.place {
                    Place::Sessions => &self.sessions,
                    Place::Shards => &self.shards,
                };
                match &write.value {
                    Some(value) => batch.insert(keyspace, write.key.clone(), value.clone()),
                    None => batch.remove(keyspace, write.key.clone()),
                }
            }
            batch.commit()?;
            Ok(self.db.persist(PersistMode::Buffer)?)
        })
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        without_panic(|| Ok(self.db.persist(PersistMode::SyncData)?))
    }

    /// Whether a batch can be written now without the database holding its writer until its own
    /// tasks have caught up: it would wait for ever when one of them has failed meanwhile.
    ///
    /// # Errors
    /// One has failed.
    pub(super) fn has_room(&self) -> Result<bool, StoreError> {
        // It holds writers at 4 and 20; a batch adds at most two to either.
        let room = |keyspace: &Keyspace| {
            keyspace.sealed_memtable_count() < 2 && keyspace.l0_table_count() < 16
        };
        if room(&self.sessions) && room(&self.shards) {
            return Ok(true);
        }
        self.db.persist(PersistMode::Buffer)?;
        Ok(false)
    }

    pub(super) fn metas(&self) -> Result<Metas, StoreError> {
        without_panic(|| {
            let mut metas = BTreeMap::new();
            for row in self.shards.iter() {
                let (key, value) = row.into_inner()?;
                let shard = shard_of(&key)
                    .map_err(|error| StoreError::Other(format!("a row of no shard: {error}")))?;
                let meta = if *key == *start_of(shard) {
                    decode_meta(shard, &value)
                } else {
                    Err(RowError::Malformed)
                };
                metas.insert(shard, meta);
            }
            Ok(metas)
        })
    }

    /// Up to `bytes_max` bytes of rows of a shard and a little more, in order, behind the row `after`:
    /// always all of a session (at least one).
    pub(super) fn rows(
        &self,
        shard: ShardId,
        after: Option<&[u8]>,
        bytes_max: usize,
    ) -> Result<Vec<RawRow>, StoreError> {
        without_panic(|| {
            let from = match after {
                Some(after) => Bound::Excluded(after.to_vec()),
                None => Bound::Included(start_of(shard)),
            };
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for row in self.sessions.range((from, end_of(shard))) {
                let (key, value) = row.into_inner()?;
                let is_next = |(last, _): &RawRow| !is_same(last, &key);
                if bytes >= bytes_max && rows.last().is_some_and(is_next) {
                    break;
                }
                bytes += key.len() + value.len();
                rows.push((key, value));
            }
            Ok(rows)
        })
    }

    /// Reads every row of a shard.
    pub(super) fn count(&self, shard: ShardId, index: &mut ShardIndex) -> Counted {
        let mut counted = Counted::default();
        let read = without_panic(|| {
            let range = (Bound::Included(start_of(shard)), end_of(shard));
            for row in self.sessions.range(range) {
                let (key, value) = row.into_inner()?;
                match (split_slot(&key), decode_session(&key, &value)) {
                    (Ok((own, slot)), Ok(row)) => {
                        index.replace(&key, Some(row.digest));
                        if let Some(slot) = slot {
                            index.note_slot(own, slot);
                        }
                        counted.add(&row);
                        if counted.newest.is_some_and(|(mark, _)| Some(mark) == row.mark) {
                            index.newest = Some(key);
                        }
                    }
                    (Err(_), _) | (_, Err(_)) => counted.broken += 1,
                }
            }
            Ok(())
        });
        counted.unreadable = read.err().map(|error| error.to_string());
        counted
    }

    /// The commit that a row is marked with, if it is there.
    pub(super) fn mark_of(&self, row_key: &[u8]) -> Result<Option<u64>, StoreError> {
        without_panic(|| {
            let Some(row) = self.sessions.get(row_key)? else { return Ok(None) };
            let row = decode_session(row_key, &row).ok();
            Ok(row.and_then(|row| row.mark).map(|mark| mark.commit))
        })
    }

    /// The first shard from `shard` on of which there are sessions.
    pub(super) fn next_shard(&self, shard: ShardId) -> Result<Option<ShardId>, StoreError> {
        without_panic(|| {
            let Some(row) = self.sessions.range(start_of(shard)..).next() else { return Ok(None) };
            let key = row.key()?;
            let shard = shard_of(&key)
                .map_err(|error| StoreError::Other(format!("a row of no shard: {error}")))?;
            Ok(Some(shard))
        })
    }
}

pub(super) type Metas = BTreeMap<ShardId, Result<MetaRow, RowError>>;

fn end_of(shard: ShardId) -> Bound<Vec<u8>> {
    match shard.0.checked_add(1) {
        Some(next) => Bound::Excluded(start_of(ShardId(next))),
        None => Bound::Unbounded,
    }
}

/// Which rows a shard has, so that its tally can be kept without reading them: 16 bytes each, and
/// as much for each session that has slots.
#[derive(Default)]
pub(super) struct ShardIndex {
    /// Keyed by chance at each start: nobody can choose keys that collide.
    hasher: RandomState,
    rows: HashMap<u64, u64, Plain>,
    /// For each session that has slots: the end of those of either list that were ever filled.
    slots: HashMap<u64, [u8; 2], Plain>,
    /// The row with the newest mark, unless the shard's own row is newer.
    pub(super) newest: Option<Slice>,
}

impl ShardIndex {
    fn hash(&self, row_key: &[u8]) -> u64 {
        self.hasher.hash_one(row_key)
    }

    /// Replaces a row's digest and gives the old one.
    pub(super) fn replace(&mut self, row_key: &[u8], digest: Option<u64>) -> Option<u64> {
        let hash = self.hash(row_key);
        match digest {
            Some(digest) => self.rows.insert(hash, digest),
            None => self.rows.remove(&hash),
        }
    }

    /// A slot of the session with this row is filled.
    pub(super) fn note_slot(&mut self, own_row: &[u8], slot: u8) {
        let ends = self.slots.entry(self.hasher.hash_one(own_row)).or_default();
        let [recent, keyed] = ends;
        let end = if is_keyed_slot(slot) { keyed } else { recent };
        *end = (*end).max(slot + 1);
    }

    /// The slots of the session with this row that may be filled, of which nothing is known any more.
    pub(super) fn take_slots(&mut self, own_row: &[u8]) -> impl Iterator<Item = u8> + use<> {
        let ends = self.slots.remove(&self.hash(own_row)).unwrap_or_default();
        SLOTS.into_iter().zip(ends).flat_map(|(slots, end)| slots.start..end.max(slots.start))
    }
}

/// Hashes are not hashed again.
#[derive(Clone, Copy, Default)]
struct Plain(u64);

impl BuildHasher for Plain {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl std::hash::Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
