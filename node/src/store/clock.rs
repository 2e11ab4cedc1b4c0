//! What time does to a shard: sessions expire, timers come due.
//!
//! A shard has one alarm, at the earliest of its timers and its next look for expired sessions.
//! That look goes through all sessions of the shard, so that none needs an entry of its own;
//! it is due when the first session may expire, and not more often than its cost allows. Nobody
//! sees a session past its time in between: each turn looks for itself.

use std::time::Duration;

use stead_shared::id::{SessionKey, ShardId};
use stead_shared::time::Time;

use super::answers::News;
use super::core::Core;
use super::data::Stored;
use super::inner::Inner;
use super::sessions::Sessions;
use super::shard::{Shard, session_key};

/// Later than everything.
pub(super) const NEVER: Time = Time::from_micros(u64::MAX);

/// What the keeper of the time does for a shard.
#[derive(Debug, Default)]
pub(crate) struct Due {
    /// Sessions with timers to fire.
    pub(crate) timers: Vec<SessionKey>,
    /// Sessions that expired and whose service wants to know.
    pub(crate) expired: Vec<SessionKey>,
}

impl Shard {
    /// Expires what is due and says which timers are.
    pub(crate) fn fire(&self, now: Time) -> Due {
        let mut inner = self.lock();
        inner.armed = None;
        let mut due = Due::default();
        if inner.gate.open().is_err() {
            return due;
        }
        while inner.timed.first().is_some_and(|(at, _)| *at <= now) {
            due.timers.extend(inner.timed.pop_first().map(|(_, key)| key));
        }
        if inner.sweep_at <= now {
            due.expired = inner.sweep(&self.core, now);
        }
        inner.arm(self.id(), &self.core);
        due
    }

    /// Puts the timers of a session back in line, after its turn for one.
    pub(crate) fn retime(&self, key: &SessionKey) {
        let mut inner = self.lock();
        let stored = inner.sessions.get(key.as_bytes());
        if let Some(at) = stored.and_then(|stored| stored.data.earliest_timer()) {
            inner.timed.insert((at, key.clone()));
            inner.arm(self.id(), &self.core);
        }
    }
}

impl Inner {
    /// Moves the shard's alarm to an earlier time where that is needed; a later one is left to
    /// ring for nothing.
    pub(super) fn arm(&mut self, shard: ShardId, core: &Core) {
        let timer = self.timed.first().map_or(NEVER, |(at, _)| *at);
        let wanted = timer.min(self.sweep_at);
        let is_needed = self.armed.is_none_or(|armed| wanted < armed);
        if wanted != NEVER && is_needed {
            core.alarms.set(shard, self.armed.replace(wanted), Some(wanted));
        }
    }

    /// Sees to it that the shard is looked through once a session expires at `at`.
    pub(super) fn expires_at(&mut self, at: Time) {
        // A look costs about 100 ns a session: with this pause at most a hundredth of the time.
        let pause = Duration::from_micros(10 * self.sessions.len() as u64);
        let soonest = self.swept_at + pause.max(Duration::from_secs(1));
        let at = if self.swept_at == Time::ZERO { at } else { at.max(soonest) };
        self.sweep_at = self.sweep_at.min(at);
    }

    /// Removes what expired and is not in use, and what sessions have answered long ago. What the service was told of is left to it.
    fn sweep(&mut self, core: &Core, now: Time) -> Vec<SessionKey> {
        let due = self.sessions.iter().filter(|stored| stored.due() <= now);
        let due: Vec<_> =
            due.map(|it| (session_key(&it.key), it.expires <= now && !it.is_tombstone())).collect();
        let mut told = Vec::new();
        for (key, is_expired) in due {
            if !is_expired {
                self.trim(core, &key, now);
                continue;
            }
            if self.active.contains_key(&key) {
                continue;
            }
            if self.sessions.get(key.as_bytes()).is_some_and(|stored| stored.activated) {
                told.push(key);
            } else {
                self.expire(core, &key);
            }
        }
        self.swept_at = now;
        self.sweep_at = NEVER;
        if !self.sessions.is_empty() {
            self.expires_at(earliest_expiry(&self.sessions));
        }
        told
    }

    pub(super) fn expire(&mut self, core: &Core, key: &SessionKey) -> Option<Box<Stored>> {
        let stored = self.remove(core, key)?;
        self.bury(core, key, &stored);
        // A deletion is a change of the shard like any other.
        let prev = self.next_seq(0);
        self.tell(core, prev, key, News::default());
        core.metrics.sessions_expired.increment(1);
        Some(stored)
    }
}

/// When there is something to do about the first of these sessions.
fn earliest_expiry(sessions: &Sessions) -> Time {
    sessions.iter().map(Stored::due).min().unwrap_or(NEVER)
}
