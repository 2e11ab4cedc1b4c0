//! What all shards of a host share: limits, clock, memory, alarms, metrics.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use stead_shared::id::{SessionKey, ShardId};
use stead_shared::net::disk::unix_micros;
use stead_shared::time::Time;
use tokio::time::Instant;

use super::alarms::Alarms;
use super::conflicts::Conflicts;
use super::data::Footprint;
use super::saving::Saving;
use crate::doubt::Doubts;
use crate::logic::heal::{Merge, Written};
use crate::metrics::Metrics;

/// Limits and defaults of a [`Host`](crate::Host).
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// How long a session lives without access, unless it says otherwise. Default 24 h. Shorter
    /// frees memory sooner; longer keeps more idle sessions.
    pub session_ttl: Duration,
    /// Most bytes that all sessions of this node may take, with an estimate of their overhead.
    /// Default: no limit. Reached, a change that needs more is refused; nothing is evicted.
    pub memory_max: u64,
    /// Most bytes of one session. Default 4 MiB. A session moves as one record, so that a
    /// larger one makes moves longer.
    pub session_bytes_max: usize,
    /// Most timers of one session. Default 32.
    pub session_timers_max: usize,
    /// Most requests of one shard that wait for their turn. Default 1024.
    pub mailbox_requests_max: usize,
    /// Most bytes of their bodies; one whose length is not known counts 64 KiB. Default 16 MiB.
    pub mailbox_bytes_max: usize,
    /// Longest wait for a turn. Default 10 s. Its own deadline ends a request's wait sooner.
    pub mailbox_age_max: Duration,
    /// Most turns for timers at one time. Default 256. More timers that are due wait.
    pub timer_turns_max: usize,
    /// For whose acknowledgement answers wait. Default: the members among a shard's followers.
    pub acks: Acks,
    /// Copies, the one here included, below which nothing is changed: refused `Degraded`. Default 1.
    /// Higher keeps what is new in more places, and refuses it while a node is missing.
    pub min_copies: usize,
    /// After how long without an acknowledgement a follower is reported. Default 1 s. Shorter
    /// leaves copies behind for a hiccup; longer lets answers wait longer.
    pub silent_after: Duration,
    /// Makes one of two values that both sides of a cut have written. Default none: the later one
    /// stays, the other is listed as a conflict.
    pub merge: Option<Arc<dyn Merge>>,
    /// Most bytes of changes that a follower has yet to acknowledge, and that are kept for it.
    /// Default 32 MiB. Reached, turns that change something wait. Less stops them sooner.
    pub unacked_bytes_max: usize,
}

/// For whom answers wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// For nobody: what a node has answered is lost with it.
    Memory,
    /// For all members that follow the shard.
    #[default]
    Replica,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            session_ttl: Duration::from_secs(24 * 60 * 60),
            memory_max: u64::MAX,
            session_bytes_max: 4 << 20,
            session_timers_max: 32,
            mailbox_requests_max: 1024,
            mailbox_bytes_max: 16 << 20,
            mailbox_age_max: Duration::from_secs(10),
            timer_turns_max: 256,
            acks: Acks::default(),
            min_copies: 1,
            silent_after: Duration::from_secs(1),
            merge: None,
            unacked_bytes_max: 32 << 20,
        }
    }
}

/// Why the state of a session cannot be read by this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnreadableReason {
    /// A newer version wrote it.
    Newer {
        /// The version of the state.
        stored: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// Its bytes are not what its type expects.
    Undecodable {
        /// What the decoder said.
        detail: String,
    },
}

/// A session whose state was left alone because this program cannot read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its key.
    pub key: SessionKey,
    /// Its shard.
    pub shard: ShardId,
    /// Why.
    pub reason: UnreadableReason,
}

/// How many unreadable sessions are listed; the metric counts all.
const UNREADABLE_LISTED_MAX: usize = 1000;

pub(crate) struct Core {
    pub(crate) config: HostConfig,
    pub(crate) alarms: Alarms,
    pub(crate) metrics: Metrics,
    /// Whether the service wants to know when sessions come and go.
    pub(crate) has_hooks: bool,
    pub(crate) doubts: Doubts,
    pub(crate) conflicts: Conflicts,
    /// Unix time of `origin`, in microseconds, and the last stamp that was given or seen.
    unix_origin: AtomicU64,
    stamp: AtomicU64,
    /// Nothing begins: cut off with the smaller part of the cluster.
    pub(crate) stopped: AtomicBool,
    /// The state on disk, where there is one.
    pub(crate) saving: OnceLock<Arc<Saving>>,
    origin: Instant,
    bytes: AtomicU64,
    sessions: AtomicU64,
    unreadable: Mutex<BTreeMap<(ShardId, SessionKey), UnreadableReason>>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn new(config: HostConfig, has_hooks: bool) -> Self {
        Self {
            config,
            alarms: Alarms::default(),
            metrics: Metrics::new(),
            has_hooks,
            doubts: Doubts::default(),
            conflicts: Conflicts::new(),
            unix_origin: AtomicU64::new(unix_micros()),
            stamp: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            saving: OnceLock::new(),
            origin: Instant::now(),
            bytes: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            unreadable: Mutex::default(),
        }
    }

    /// Whether answers wait for followers.
    pub(crate) fn waits_for_acks(&self) -> bool {
        match self.config.acks {
            Acks::Memory => false,
            Acks::Replica => true,
        }
    }

    /// This host's clock.
    pub(crate) fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    /// Tells the time of day, in Unix microseconds.
    pub(crate) fn set_unix_time(&self, micros: u64) {
        let origin = micros.saturating_sub(self.now().as_micros());
        self.unix_origin.store(origin, Ordering::Relaxed);
    }

    /// The time of a change at `now`, above every one that was given or seen here.
    pub(crate) fn stamp(&self, now: Time) -> Written {
        let unix = self.unix_origin.load(Ordering::Relaxed) + now.as_micros();
        let next = |last: u64| Some(Written(last).next(unix).0);
        let last = self.stamp.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        Written(last.unwrap_or_else(|last| last)).next(unix)
    }

    /// Another node gave this stamp.
    pub(crate) fn see_stamp(&self, written: Written) {
        let unix = self.unix_origin.load(Ordering::Relaxed) + self.now().as_micros();
        if written.counts_at(unix) {
            self.stamp.fetch_max(written.0, Ordering::Relaxed);
        }
    }

    /// `time` on the runtime's clock.
    pub(crate) fn instant(&self, time: Time) -> Instant {
        self.origin + time.since(Time::ZERO)
    }

    /// How long a session with this setting lives without access.
    pub(crate) fn ttl(&self, ttl_micros: u64) -> Duration {
        match ttl_micros {
            0 => self.config.session_ttl,
            micros => Duration::from_micros(micros),
        }
    }

    /// Takes or gives back memory. Only what grows can be refused; nothing changes then.
    pub(crate) fn resize(&self, old: Footprint, new: Footprint) -> Result<(), MemoryFull> {
        let (old_bytes, new_bytes) = (old.bytes, new.bytes);
        if new_bytes <= old_bytes {
            self.bytes.fetch_sub(old_bytes - new_bytes, Ordering::Relaxed);
        } else {
            let more = new_bytes - old_bytes;
            let total = self.bytes.fetch_add(more, Ordering::Relaxed).saturating_add(more);
            if self.config.memory_max < total {
                self.bytes.fetch_sub(more, Ordering::Relaxed);
                return Err(MemoryFull);
            }
        }
        if old.sessions != new.sessions {
            self.count_sessions(new.sessions, old.sessions);
        }
        self.metrics.session_bytes.increment(new_bytes as f64 - old_bytes as f64);
        Ok(())
    }

    /// As [`resize`](Self::resize), of what does not grow.
    pub(crate) fn shrink(&self, old: Footprint, new: Footprint) {
        debug_assert!(new.bytes <= old.bytes, "{old:?} to {new:?}");
        // What shrinks is never refused.
        let _ = self.resize(old, new);
    }

    /// Gives memory back.
    pub(crate) fn free(&self, Footprint { bytes, sessions }: Footprint) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.session_bytes.decrement(bytes as f64);
        self.count_sessions(0, sessions);
    }

    fn count_sessions(&self, more: u64, fewer: u64) {
        self.sessions.fetch_add(more, Ordering::Relaxed);
        self.sessions.fetch_sub(fewer, Ordering::Relaxed);
        self.metrics.sessions.increment(more as f64 - fewer as f64);
    }

    /// Whether `more` bytes would fit now. Another session may take them first.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        self.bytes().saturating_add(more as u64) <= self.config.memory_max
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    pub(crate) fn note_unreadable(&self, found: Unreadable) {
        self.metrics.unreadable(&found.reason);
        let mut listed = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.len() < UNREADABLE_LISTED_MAX {
            listed.insert((found.shard, found.key), found.reason);
        }
    }

    pub(crate) fn forget_unreadable(&self, shard: ShardId, key: Option<&SessionKey>) {
        let mut listed = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        match key {
            _ if listed.is_empty() => {}
            Some(key) => drop(listed.remove(&(shard, key.clone()))),
            None => listed.retain(|(listed, _), _| *listed != shard),
        }
    }

    pub(crate) fn unreadable(&self) -> Vec<Unreadable> {
        let listed = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |((shard, key), reason): (&(ShardId, SessionKey), &UnreadableReason)| {
            Unreadable { key: key.clone(), shard: *shard, reason: reason.clone() }
        };
        listed.iter().map(entry).collect()
    }
}

/// The node's memory limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryFull;
