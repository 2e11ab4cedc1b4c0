//! Sessions on disk: the newest record of each, so that a node that starts again has them, and
//! beside it, in slots, what would be dear to write with each change of it.
//!
//! ```text
//!  put, remove, meta, forget          one batch              sync
//! ───────────────────────▶ (queue) ─────────────▶ database ───────▶ witness ──▶ wait() returns
//!        never block                 committer: one thread
//! ```
//!
//! The database (fjall) is in `DIR/state`, with two files beside it: `identity`, which says whose
//! state it is, and `seqs`, the witness of [`durable`](crate::logic::durable). Changes of a shard
//! are handed over in order and reach the disk in order; those of different shards that reach it
//! together become one batch. A change is handed over once and never withdrawn: while the disk is
//! full or failing it stays in the queue, and is written when the disk works again.
//!
//! **Crash story.** A process that is killed loses nothing that was written, and a machine that
//! loses power nothing that was synced. A batch is there as a whole or not at all. At the start
//! every row is read and checked; a shard of which something is lost is reported as damaged, at
//! each start until it is forgotten, and never given out as if it were whole.

mod batch;
mod committer;
mod herald;
mod identity;
mod inspect;
mod metrics;
mod open;
mod queue;
mod store;
mod witness;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stead_shared::id::{ClusterId, ShardId, Version};
use stead_shared::net::disk::unix_micros;
use stead_shared::net::watch;
use tokio::time::Instant;

use self::herald::Herald;
use self::queue::{Op, Shared};
pub use crate::logic::durable::{Beginning, Damage, Role, ShardMeta};
use crate::logic::durable::{RowError, decode_session};
use crate::logic::rows::{SLOT_MAX, row_key, split_row};

/// How long [`Disk::close`] tries to bring what is queued to a disk that fails.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where and how to keep state.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// The data directory; the state is in its folder `state`.
    pub dir: PathBuf,
    /// The node whose state it is.
    pub name: String,
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Every batch is synced before it counts as done (`+disk`); else each second.
    pub sync: bool,
    /// Most bytes of changes that wait; beyond that [`Disk::has_room`] is false. Default 32 MiB.
    pub queue_bytes_max: usize,
}

impl DiskConfig {
    /// The defaults.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, name: &str, cluster: ClusterId) -> Self {
        let (dir, name) = (dir.into(), name.to_owned());
        Self { dir, name, cluster, sync: false, queue_bytes_max: 32 << 20 }
    }
}

/// The state on disk cannot be used. Nothing in it was changed, except as said.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system refused.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process uses it.
    #[error(
        "{dir} is in use by another process; stop that one, or give this one another --data-dir",
        dir = dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The state of another node.
    #[error(
        "{dir} holds the state of node {found}, and this is node {own}; start it with \
         `--name {found}`, or give it another --data-dir",
        dir = dir.display()
    )]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose state it is.
        found: String,
        /// The node that wants to use it.
        own: String,
    },
    /// The state of another cluster.
    #[error(
        "{dir} holds the state of another cluster ({found}, and this one is {own}); start the node \
         with the `--cluster` of before, or give it another --data-dir",
        dir = dir.display()
    )]
    OtherCluster {
        /// The directory.
        dir: PathBuf,
        /// Its cluster.
        found: ClusterId,
        /// The cluster of the node that wants to use it.
        own: ClusterId,
    },
    /// Written by another version of this program.
    #[error("{dir} holds state of format {found}, which this version does not read; \
         move the directory away, and the node gets its state from the others", dir = dir.display())]
    Format {
        /// The directory.
        dir: PathBuf,
        /// The format that it says.
        found: u8,
    },
    /// Nobody can say whose state it is.
    #[error(
        "{path} is missing or broken, so nobody can say whose state that is; move the directory \
         away, and the node gets its state from the others",
        path = path.display()
    )]
    Identity {
        /// The file.
        path: PathBuf,
    },
    /// The database cannot be opened. What it could not read of its journal it may have cut off.
    #[error(
        "the state in {dir} cannot be read: {error}; move the directory away, and the node gets \
         its state from the others",
        dir = dir.display()
    )]
    Broken {
        /// The directory.
        dir: PathBuf,
        /// What the database says.
        error: String,
    },
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> DiskError + 'a {
    move |source| DiskError::Io { what, path: path.to_owned(), source }
}

/// Whether the disk takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// It does.
    Ok,
    /// No room is left on it. Tried again all the time.
    Full,
    /// It reports errors. Tried again all the time.
    Failing {
        /// The last one.
        error: String,
    },
}

/// A change is not on disk yet. It is not withdrawn either: it may still get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskFailed {
    /// No room is left.
    #[error("the disk is full")]
    Full,
    /// The disk reports errors.
    #[error("the disk fails")]
    Failing,
    /// The disk was closed. Nothing gets there any more.
    #[error("the state on disk was closed")]
    Closed {
        /// What was handed over before is all there.
        complete: bool,
    },
}

/// The state on disk. Clones are the same one; with the last one it is closed.
#[derive(Clone)]
pub struct Disk {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    herald: Option<Herald>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(Instant::now() + CLOSE_TIMEOUT);
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = *self.handle.shared.progress.borrow();
        f.debug_struct("Disk").field("progress", &progress).finish_non_exhaustive()
    }
}

/// What was found at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Every shard of which there is something, or should be; by id.
    pub shards: Vec<RecoveredShard>,
    /// The witness is missing, or part of it is broken: a journal whose end is lost might go
    /// unnoticed.
    pub unwitnessed: bool,
}

/// A shard that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredShard {
    /// Its id.
    pub shard: ShardId,
    /// What the node said of it last. None when that is lost.
    pub meta: Option<ShardMeta>,
    /// Rows that can be read: of sessions, and of their slots.
    pub rows: u64,
    /// Why what is there must not be taken for all that was. Stays until [`Disk::forget`].
    pub damaged: Option<Damage>,
}

/// A session as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSession {
    /// Its key.
    pub key: Bytes,
    /// Its own row, if it has one.
    pub own: Option<SavedRow>,
    /// Its slots, in order; also those that it has no use for any more.
    pub slots: Vec<(u8, SavedRow)>,
}

/// A row of a session as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRow {
    /// The change that wrote it.
    pub at: Version,
    /// What was given to [`Disk::put`].
    pub record: Bytes,
    /// Time since it was written; zero when the clock went back.
    pub age: Duration,
}

/// What becomes of a session's slots when its record is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slots {
    /// They stay.
    Same,
    /// This one is replaced.
    One(u8, Bytes),
    /// It has these and no others.
    All(Vec<(u8, Bytes)>),
}

impl Slots {
    fn bytes(&self) -> usize {
        match self {
            Self::Same => 0,
            Self::One(_, record) => record.len(),
            Self::All(all) => all.iter().map(|(_, record)| record.len()).sum(),
        }
    }
}

/// A shard could not be read to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read shard {shard} from disk: {error}")]
pub struct ReadError {
    /// The shard.
    pub shard: ShardId,
    /// What is wrong.
    pub error: String,
}

impl Disk {
    /// Opens the state in `config.dir`, reads and checks all of it. Blocks, for seconds when there
    /// is much.
    ///
    /// # Errors
    /// [`DiskError`] when the directory is not this node's, or cannot be used.
    pub fn open(config: DiskConfig) -> Result<(Self, Recovered), DiskError> {
        let (shared, recovered) = open::open(config)?;
        let herald = Herald::start(shared.progress.subscribe());
        Ok((Self { handle: Arc::new(Handle { shared, herald }) }, recovered))
    }

    /// Keeps `own` as the session's own row, unless that stays, and what is in its slots, all or
    /// nothing. Gives the change's position.
    ///
    /// This and the next three never block. Changes of a shard come in the order of its numbers.
    pub fn put(
        &self,
        shard: ShardId,
        at: Version,
        key: &[u8],
        (own, slots): (Option<Bytes>, Slots),
    ) -> u64 {
        let key = Bytes::copy_from_slice(key);
        let written_ms = unix_micros() / 1000;
        self.handle.shared.push(Op::Put { shard, at, key, own, slots, written_ms })
    }

    /// The session is no more, nor are its slots.
    pub fn remove(&self, shard: ShardId, at: Version, key: &[u8]) -> u64 {
        let key = Bytes::copy_from_slice(key);
        self.handle.shared.push(Op::Remove { shard, at, key })
    }

    /// Says whose the shard is from here on, and whether all of it is there.
    pub fn meta(&self, shard: ShardId, meta: ShardMeta) -> u64 {
        self.handle.shared.push(Op::Meta { shard, meta })
    }

    /// Drops all of the shard. What is handed over after it begins from nothing.
    pub fn forget(&self, shard: ShardId) -> u64 {
        self.handle.shared.push(Op::Forget { shard })
    }

    /// The position up to which everything is on disk (with `sync`: synced, else written), and
    /// whether the disk fails.
    #[must_use]
    pub fn done(&self) -> (u64, bool) {
        let progress = *self.handle.shared.progress.borrow();
        let position = if self.handle.shared.sync { progress.synced } else { progress.written };
        (position, progress.failed.is_some())
    }

    /// Waits until everything up to `position` is synced. Those who wait are woken in the order in
    /// which they began to. Safe to drop before it is ready.
    ///
    /// # Errors
    /// [`DiskFailed`], at once, while the disk fails.
    pub async fn wait(&self, position: u64) -> Result<(), DiskFailed> {
        let Handle { shared, herald } = &*self.handle;
        if !shared.sync && shared.progress.borrow().synced < position {
            shared.want(position);
        }
        let mut progress = shared.progress.subscribe();
        loop {
            if let Some(done) = progress.borrow_and_update().is_done(position) {
                return done;
            }
            let told = herald.as_ref().and_then(|herald| herald.listen(position));
            // What came before it listens is not told.
            if let Some(done) = progress.borrow_and_update().is_done(position) {
                return done;
            }
            match told {
                // An error means that nobody tells any more: then there is no such word the next time.
                Some(told) => drop(told.await),
                None if progress.changed().await.is_err() => {
                    return Err(DiskFailed::Closed { complete: false });
                }
                None => {}
            }
        }
    }

    /// Whether changes may be handed over. They are taken in any case; whoever goes on without
    /// room uses up the memory.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.handle.shared.bytes() < self.handle.shared.bytes_max
    }

    /// Whether so much was handed over without room that no more may be.
    #[must_use]
    pub fn is_overfull(&self) -> bool {
        2 * self.handle.shared.bytes_max <= self.handle.shared.bytes()
    }

    /// Waits until there is room. Safe to drop before it is ready.
    pub async fn room(&self) {
        let mut progress = self.handle.shared.progress.subscribe();
        while !self.has_room() && progress.changed().await.is_ok() {}
    }

    /// Whether the disk takes writes, and word when that changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<DiskState> {
        self.handle.shared.state.subscribe()
    }

    /// Brings everything that was handed over to the disk and closes it. Takes at most a little
    /// more than 5 s when the disk fails. What other clones hand over afterwards is lost.
    ///
    /// # Errors
    /// [`DiskFailed::Closed`] when not everything is on disk.
    pub async fn close(self) -> Result<(), DiskFailed> {
        let shared = &self.handle.shared;
        let mut progress = shared.progress.subscribe();
        shared.close(Instant::now() + CLOSE_TIMEOUT);
        let closed = |failed| matches!(failed, Some(DiskFailed::Closed { .. }));
        let waits = progress.wait_for(|now| closed(now.failed));
        // One attempt may hang in the system for longer than the committer has.
        match tokio::time::timeout(CLOSE_TIMEOUT * 2, waits).await {
            Ok(Ok(queue::Progress {
                failed: Some(DiskFailed::Closed { complete: true }), ..
            })) => Ok(()),
            Ok(_) | Err(_) => Err(DiskFailed::Closed { complete: false }),
        }
    }

    /// Up to `bytes_max` bytes of a shard's sessions (at least one), in the order of their keys,
    /// behind the key `after`. None are left when it is empty. Blocks, as long as that takes.
    ///
    /// # Errors
    /// [`ReadError`] when one of them cannot be read.
    pub fn read(
        &self,
        shard: ShardId,
        after: Option<&[u8]>,
        bytes_max: usize,
    ) -> Result<Vec<SavedSession>, ReadError> {
        let fail = |error: String| ReadError { shard, error };
        let store = self.handle.shared.reader();
        let store = store.ok_or_else(|| fail("the disk fails".to_owned()))?;
        let after = after.map(|key| row_key(shard, key, Some(SLOT_MAX)));
        let rows = store.rows(shard, after.as_deref(), bytes_max);
        let rows = rows.map_err(|error| fail(error.to_string()))?;
        sessions_of(&rows, unix_micros() / 1000).map_err(|error| fail(error.to_string()))
    }
}

/// Puts sessions together again with their slots.
fn sessions_of(rows: &[store::RawRow], now_ms: u64) -> Result<Vec<SavedSession>, RowError> {
    let mut sessions: Vec<SavedSession> = Vec::new();
    for (row_key, value) in rows {
        let (key, slot) = split_row(row_key)?;
        let row = decode_session(row_key, value)?;
        let record = Bytes::copy_from_slice(row.record);
        let age = Duration::from_millis(now_ms.saturating_sub(row.written_ms));
        let row = SavedRow { at: row.at, record, age };
        if sessions.last().is_none_or(|last| last.key != key) {
            sessions.push(SavedSession { key: key.into(), own: None, slots: Vec::new() });
        }
        let Some(session) = sessions.last_mut() else { continue };
        match slot {
            None => session.own = Some(row),
            Some(slot) => session.slots.push((slot, row)),
        }
    }
    Ok(sessions)
}
