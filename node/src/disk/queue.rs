//! What waits for the committer, and what it has told.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use stead_shared::id::{ShardId, Version};
use stead_shared::net::watch;
use tokio::time::Instant;

use super::store::Store;
use super::{DiskFailed, DiskState, Slots};
use crate::logic::durable::ShardMeta;
use crate::logic::grouping::LOOK_EACH;

/// A change as it was handed over.
#[derive(Debug)]
pub(super) enum Op {
    Put {
        shard: ShardId,
        at: Version,
        key: Bytes,
        own: Option<Bytes>,
        slots: Slots,
        written_ms: u64,
    },
    Remove {
        shard: ShardId,
        at: Version,
        key: Bytes,
    },
    Meta {
        shard: ShardId,
        meta: ShardMeta,
    },
    Forget {
        shard: ShardId,
    },
}

/// What a change costs in the queue besides its bytes.
const OP_BYTES: usize = 96;

impl Op {
    fn bytes(&self) -> usize {
        OP_BYTES
            + match self {
                Self::Put { key, own, slots, .. } => {
                    key.len() + own.as_ref().map_or(0, Bytes::len) + slots.bytes()
                }
                Self::Remove { key, .. } => key.len(),
                Self::Meta { .. } | Self::Forget { .. } => 0,
            }
    }
}

/// Some changes, in order.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) ops: Vec<Op>,
    pub(super) bytes: usize,
    /// The position of the last one.
    pub(super) through: u64,
}

/// Why the committer has work, or none.
#[derive(Debug)]
pub(super) enum Next {
    Ops(Taken),
    /// Nothing came, and something is due.
    Due,
    /// Nothing is left, and nothing more will come.
    Closing,
}

#[derive(Debug, Default)]
struct Inner {
    ops: VecDeque<Op>,
    /// The position of the last change that was handed over.
    position: u64,
    /// Bytes of changes that are not synced yet, taken ones included.
    bytes: usize,
    /// Somebody waits for this position to be on disk.
    wanted: u64,
    /// The committer waits for something to do.
    idle: bool,
    closing: Option<Instant>,
}

/// How far the committer is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) written: u64,
    pub(super) synced: u64,
    pub(super) failed: Option<DiskFailed>,
}

impl Progress {
    /// Whether everything up to `position` is synced, or will not be for now.
    pub(super) fn is_done(&self, position: u64) -> Option<Result<(), DiskFailed>> {
        if position <= self.synced { Some(Ok(())) } else { self.failed.map(Err) }
    }
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    work: Condvar,
    pub(super) bytes_max: usize,
    pub(super) sync: bool,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) state: watch::Sender<DiskState>,
    /// For reading; none while the database is reopened.
    pub(super) store: Mutex<Option<Store>>,
}

impl Shared {
    pub(super) fn new(bytes_max: usize, sync: bool, store: Store) -> Self {
        Self {
            inner: Mutex::default(),
            work: Condvar::new(),
            bytes_max,
            sync,
            progress: watch::Sender::new(Progress::default()),
            state: watch::Sender::new(DiskState::Ok),
            store: Mutex::new(Some(store)),
        }
    }

    /// Plain numbers and a queue: nothing that a panic would leave half changed.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, op: Op) -> u64 {
        let mut inner = self.lock();
        inner.position += 1;
        inner.bytes += op.bytes();
        inner.ops.push_back(op);
        let position = inner.position;
        if std::mem::take(&mut inner.idle) {
            drop(inner);
            self.work.notify_one();
        }
        position
    }

    /// Somebody waits for `position`.
    pub(super) fn want(&self, position: u64) {
        let mut inner = self.lock();
        if inner.wanted < position {
            inner.wanted = position;
            inner.idle = false;
            drop(inner);
            self.work.notify_one();
        }
    }

    pub(super) fn wanted(&self) -> u64 {
        self.lock().wanted
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Changes that were taken are on disk.
    pub(super) fn free(&self, bytes: usize) {
        let mut inner = self.lock();
        inner.bytes = inner.bytes.saturating_sub(bytes);
    }

    /// Nothing more will be handed over; the committer may try until `deadline`.
    pub(super) fn close(&self, deadline: Instant) {
        let mut inner = self.lock();
        inner.closing.get_or_insert(deadline);
        inner.idle = false;
        drop(inner);
        self.work.notify_one();
    }

    pub(super) fn closing(&self) -> Option<Instant> {
        self.lock().closing
    }

    /// Lets more come to what is queued: until nothing came between two looks, or for `wait`.
    pub(super) fn gather(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut inner = self.lock();
        let mut n_ops = 0;
        while n_ops < inner.ops.len() && inner.closing.is_none() && Instant::now() < until {
            n_ops = inner.ops.len();
            inner = self.pause(inner, Some(LOOK_EACH));
        }
    }

    /// The next changes, of about `bytes_max` bytes in all; waits for them until `due`, or until
    /// somebody wants more than `synced` on disk.
    pub(super) fn take(&self, bytes_max: usize, due: Option<Instant>, synced: u64) -> Next {
        let mut inner = self.lock();
        loop {
            if !inner.ops.is_empty() {
                return Next::Ops(inner.take(bytes_max));
            }
            if inner.wanted > synced && inner.position > synced {
                return Next::Due;
            }
            if inner.closing.is_some() {
                return Next::Closing;
            }
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Next::Due;
            }
            inner.idle = true;
            inner = self.pause(inner, left);
            inner.idle = false;
        }
    }

    /// Waits for `time`, or less when this is closed.
    pub(super) fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut inner = self.lock();
        while inner.closing.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.pause(inner, Some(left));
        }
        // Closed, and not yet past the deadline: it may still go through.
        let short = time.min(Duration::from_millis(50));
        drop(self.work.wait_timeout(inner, short).unwrap_or_else(PoisonError::into_inner));
    }

    fn pause<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        time: Option<Duration>,
    ) -> MutexGuard<'a, Inner> {
        match time {
            Some(time) => {
                self.work.wait_timeout(inner, time).unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.work.wait(inner).unwrap_or_else(PoisonError::into_inner),
        }
    }

    pub(super) fn reader(&self) -> Option<Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_reader(&self, store: Option<Store>) {
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = store;
    }
}

impl Inner {
    fn take(&mut self, bytes_max: usize) -> Taken {
        let mut taken = Taken::default();
        while taken.bytes < bytes_max
            && let Some(op) = self.ops.pop_front()
        {
            taken.bytes += op.bytes();
            taken.ops.push(op);
        }
        taken.through = self.position - self.ops.len() as u64;
        taken
    }
}
