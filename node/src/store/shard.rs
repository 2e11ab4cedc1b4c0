//! One shard: its gate, its sessions, and who has the turn of each.
//!
//! ```text
//!            activate            seal                 drop
//!  (absent) ─────────▶ Serving ────────▶ Sealed ─────────────▶ Gone
//!                         ▲                 │                    ▲
//!                         └──── reopen ─────┘      drop          │
//!                         └──────────────────────────────────────┘
//! ```
//!
//! The gate closes in one step under the lock: from then on nothing begins, those that wait are
//! refused, those that run finish and may still commit, and the one who sealed waits for them.
//! After every wait a turn looks at the gate again before it begins. A `Gone` shard commits
//! nothing more: whoever still works on it is told that the outcome is unknown.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stead_shared::id::{Epoch, SessionKey, ShardId, Version};
use stead_shared::net::watch;
use stead_shared::refusal::Refusal;
use stead_shared::rules::Rules;
use stead_shared::time::Time;
use tokio::sync::oneshot;

use super::arriving::Arriving;
use super::aside::SetAside;
use super::core::Core;
use super::data::{Data, Stored};
use super::draft::{Access, Draft};
use super::inner::{Crowd, Locked, Past, State};
use super::saving::Pen;
use super::sessions::Sessions;
use super::turns::{Admission, Asker, Attachment, Begun, Permit, Waited};
use crate::logic::gate::Gate;
use crate::replica::Adoption;
use crate::session::{Session, Why};

pub(crate) struct Shard {
    id: ShardId,
    pub(super) core: Arc<Core>,
    /// Whether there is a throttle, for those who do not have the lock.
    pub(super) is_throttled: AtomicBool,
    /// Whether there are followers, for those who do not have the lock.
    pub(super) is_followed: AtomicBool,
    state: Mutex<State>,
}

/// What a shard holds, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStats {
    /// Which shard.
    pub shard: ShardId,
    /// Whether it is served.
    pub gate: Gate,
    /// Sessions in it.
    pub sessions: usize,
    /// Their bytes, with an estimate of the overhead.
    pub bytes: u64,
    /// Turns that run.
    pub running: u32,
    /// Requests that wait for a turn.
    pub waiting: usize,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A session that left with its shard and whose service wants to know.
pub(crate) struct Orphan {
    pub(crate) session: Session,
}

impl Shard {
    pub(crate) fn new(
        id: ShardId,
        core: Arc<Core>,
        epoch: Epoch,
        pen: Option<Box<Pen>>,
    ) -> Arc<Self> {
        Self::with_sessions(id, core, epoch, Arriving::new(), None, pen)
    }

    /// Serves what arrived, which was served in the epoch `origin` before. This takes the same time
    /// however much that is.
    pub(crate) fn with_sessions(
        id: ShardId,
        core: Arc<Core>,
        epoch: Epoch,
        arrived: Arriving,
        origin: Option<Epoch>,
        pen: Option<Box<Pen>>,
    ) -> Arc<Self> {
        let is_saved = pen.is_some();
        let Arriving { seq, sessions, timed, mut past, earliest_expiry } = arrived;
        let gate = Gate::Serving(epoch);
        if let Some(epoch) = origin.filter(|_| 0 < seq) {
            past.lineage.reach(Version { epoch, seq });
        }
        let past = past.boxed();
        let state = State::Bare { gate, seq, id_last: 0, origin, past, followers: None, pen };
        let (is_throttled, is_followed) = (AtomicBool::new(false), AtomicBool::new(false));
        let shard =
            Arc::new(Self { id, core, is_throttled, is_followed, state: Mutex::new(state) });
        if !sessions.is_empty() {
            let mut inner = shard.lock();
            inner.sessions = sessions;
            inner.timed = timed;
            // The first look for expired sessions does not hold up those who waited for the shard.
            inner.swept_at = shard.core.now();
            inner.expires_at(earliest_expiry);
            inner.arm(id, &shard.core);
        }
        if is_saved {
            shard.lock().save_gate();
        }
        shard
    }

    pub(crate) fn id(&self) -> ShardId {
        self.id
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn stats(&self) -> ShardStats {
        let state = self.peek();
        let (gate, waiting) = (state.gate(), state.waiting());
        let (sessions, bytes, running) = match &*state {
            State::Bare { .. } => (0, 0, 0),
            State::Full(inner) => (inner.sessions.len(), inner.sessions.bytes(), inner.running),
        };
        ShardStats { shard: self.id, gate, sessions, bytes, running, waiting }
    }

    pub(crate) fn gate(&self) -> Gate {
        self.peek().gate()
    }

    /// Refuses a request that nothing here can serve. A newer epoch than the one served here
    /// means that somebody else owns the shard.
    pub(crate) fn check_epoch(&self, named: Option<Epoch>) -> Result<(), Refusal> {
        self.open_for(self.gate(), named)
    }

    fn open_for(&self, gate: Gate, named: Option<Epoch>) -> Result<(), Refusal> {
        let opened = gate.open_for(named, &Rules::ALL);
        if opened.is_err() && matches!(gate, Gate::Serving(_)) {
            self.core.metrics.stale_epochs.increment(1);
        }
        opened
    }

    /// How full the mailbox is: 0 empty, 255 full.
    pub(crate) fn pressure(&self) -> u8 {
        let max = self.core.config.mailbox_requests_max.max(1);
        u8::try_from(self.peek().waiting() * 255 / max).unwrap_or(u8::MAX)
    }

    /// Whether it takes no more memory than an empty shard needs.
    #[cfg(test)]
    pub(crate) fn is_bare(&self) -> bool {
        matches!(*self.peek(), State::Bare { .. })
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked::new(self.peek())
    }

    /// The same for a look that needs no session.
    fn peek(&self) -> MutexGuard<'_, State> {
        // No code of the application runs under this lock, and a commit is applied as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- turns ----

    /// A turn for somebody inside this process, without a deadline of its own.
    pub(crate) async fn wait_turn(
        shard: &Arc<Self>,
        key: &SessionKey,
        asker: Asker,
    ) -> Result<Waited, Refusal> {
        shard.core.doubts.certain().await;
        match shard.admit(key, Access::Change, asker)? {
            Admission::Now(turn) => Ok(turn),
            Admission::Queued(place) => place.wait(None).await,
        }
    }

    /// Asks for a turn, or for a read beside turns.
    pub(crate) fn admit(
        self: &Arc<Self>,
        key: &SessionKey,
        access: Access,
        asker: Asker,
    ) -> Result<Admission, Refusal> {
        let mut inner = self.lock();
        self.open_for(inner.gate, asker.epoch())?;
        if self.core.doubts.is_in_doubt() {
            return Err(Refusal::Moving);
        }
        if self.core.stopped.load(Ordering::Acquire) {
            return Err(Refusal::Degraded);
        }
        if access == Access::Change {
            let active = inner.active.entry(key.clone()).or_default();
            if active.has_turn {
                return inner.queue(self, key, asker).map(Admission::Queued);
            }
            active.has_turn = true;
        }
        inner.running += 1;
        Ok(Admission::Now(Waited::new(Permit::new(self, key, access))))
    }

    pub(super) fn leave_queue(&self, key: &SessionKey, id: u64) {
        let mut inner = self.lock();
        let Some(active) = inner.active.get_mut(key) else { return };
        let Some(at) = active.waiting.iter().position(|waiter| waiter.id == id) else { return };
        let waiter = active.waiting.remove(at).expect("the position was just found");
        inner.waits_less(&self.core, &waiter);
        inner.tidy_active(key);
    }

    /// Ends a turn or a read, and grants the session's turn to the next in line.
    /// `expected` bytes of it were counted as changes and did not come.
    pub(super) fn release(self: &Arc<Self>, key: &SessionKey, access: Access, expected: u64) {
        let mut inner = self.lock();
        inner.running -= 1;
        if let Some(throttle) = &mut inner.throttle {
            throttle.correct(expected, 0);
        }
        if access == Access::Change {
            inner.grant_next(self, key);
        }
        if inner.running == 0 {
            for sealer in inner.idle.drain(..) {
                // It may have stopped waiting.
                let _ = sealer.send(());
            }
        }
    }

    // ---- the gate ----

    /// Closes the gate at once. What is returned resolves when the last turn has ended.
    pub(crate) fn seal(&self) -> Option<oneshot::Receiver<()>> {
        let mut inner = self.lock();
        if let Gate::Serving(epoch) = inner.gate {
            inner.gate = Gate::Sealed(epoch);
            inner.save_gate();
            self.lift(&mut inner);
            // Those who are attached stay until now, and leave here: they cannot leave later.
            let attached = inner.active.iter().filter(|(_, active)| active.crowd.is_some());
            let attached: Vec<_> = attached.map(|(key, _)| key.clone()).collect();
            for key in attached {
                inner.touch(&self.core, &key);
            }
            inner.turn_away(&self.core, &Refusal::Moving, Why::Moving);
        }
        inner.when_idle()
    }

    /// Serves again, in a new epoch, in which those who were meant to follow do. False when the
    /// shard is gone.
    pub(crate) fn reopen(&self, epoch: Epoch, adoptions: &[Adoption]) -> bool {
        let mut inner = self.lock();
        let Some(old) = inner.gate.epoch() else { return false };
        assert!(old <= epoch, "an epoch of shard {} would go back: {old} to {epoch}", self.id);
        inner.gate = Gate::Serving(epoch);
        inner.save_gate();
        inner.follow_epoch(&self.core, old, epoch);
        self.adopt_or_tell_in(&mut inner, adoptions);
        self.lift(&mut inner);
        inner.idle.clear();
        inner.arm(self.id, &self.core);
        true
    }

    /// Closes the gate for good. Gives what was behind it, and the sessions whose service wants to
    /// know; none when the shard is gone already.
    pub(crate) fn close(self: &Arc<Self>) -> Option<(SetAside, Vec<Orphan>)> {
        self.close_if(|_, _| true)
    }

    /// As [`close`](Self::close), when the gate and the number of the last change are as wanted.
    pub(crate) fn close_if(
        self: &Arc<Self>,
        is_wanted: impl FnOnce(Gate, u64) -> bool,
    ) -> Option<(SetAside, Vec<Orphan>)> {
        let mut inner = self.lock();
        let epoch = inner.gate.epoch().filter(|_| is_wanted(inner.gate, inner.seq))?;
        inner.gate = Gate::Gone;
        inner.let_go();
        self.lift(&mut inner);
        inner.turn_away(&self.core, &Refusal::NotOwner { claim: None }, Why::Lost);
        inner.idle.clear();
        self.core.alarms.set(self.id, inner.armed.take(), None);
        let timed = std::mem::take(&mut inner.timed);
        let sessions = std::mem::replace(&mut inner.sessions, Sessions::new());
        let end = Version { epoch, seq: inner.seq };
        inner.note_epoch(end);
        let (seq, past, pen) = (inner.seq, inner.past(), inner.pen.take());
        drop(inner);
        self.core.forget_unreadable(self.id, None);
        let n_orphans = sessions.n_activated();
        let orphans = sessions.iter().filter(|stored| stored.activated).take(n_orphans);
        let orphans = orphans
            .map(|stored| Orphan {
                session: self.farewell(&session_key(&stored.key), epoch, stored),
            })
            .collect();
        let numbers = (self.id, seq, past);
        Some((SetAside::new(Arc::clone(&self.core), numbers, sessions, timed, pen), orphans))
    }

    /// A session that can only be read, because it is not in the shard any more.
    pub(super) fn farewell(
        self: &Arc<Self>,
        key: &SessionKey,
        epoch: Epoch,
        stored: &Stored,
    ) -> Session {
        let (now, length) = (self.core.now(), key.as_bytes().len());
        let size = stored.bytes as usize;
        let draft = Draft::new(Access::Read, now, length, Some(stored.data.clone()), size);
        Session::new(Arc::clone(self), key.clone(), epoch, draft)
    }

    /// All sessions as they are now, tombstones included, the number of the last change and the floor
    /// of windows that have ended. Values are shared, not copied.
    pub(crate) fn snapshot(&self) -> (u64, Past, Vec<(SessionKey, Data, Time)>) {
        let inner = self.lock();
        let sessions = inner.sessions.iter();
        let sessions =
            sessions.map(|stored| (session_key(&stored.key), stored.data.clone(), stored.expires));
        (inner.seq, inner.past(), sessions.collect())
    }

    /// Sessions of a sealed shard whose service was told that they are here.
    pub(crate) fn activated(&self) -> Vec<SessionKey> {
        let inner = self.lock();
        let activated = inner.sessions.iter().filter(|stored| stored.activated);
        activated.take(inner.sessions.n_activated()).map(|it| session_key(&it.key)).collect()
    }

    /// The last turn of a session whose shard is sealed; none when it is not sealed any more.
    pub(crate) fn last_turn(self: &Arc<Self>, key: &SessionKey) -> Option<Begun> {
        let mut inner = self.lock();
        let Gate::Sealed(epoch) = inner.gate else { return None };
        let active = inner.active.entry(key.clone()).or_default();
        if active.has_turn {
            return None;
        }
        active.has_turn = true;
        inner.running += 1;
        let stored = inner.sessions.get(key.as_bytes());
        let base = stored.map(|stored| (stored.data.clone(), stored.bytes as usize));
        drop(inner);
        let permit = Permit::new(self, key, Access::Change);
        Some(Begun::new(permit, epoch, base, None, false, self.core.now()))
    }

    // ---- those who stay for longer than a turn ----

    pub(crate) fn attach(self: &Arc<Self>, key: &SessionKey) -> Result<Attachment, Refusal> {
        let mut inner = self.lock();
        inner.gate.open()?;
        let id = inner.next_id();
        let active = inner.active.entry(key.clone()).or_default();
        let crowd = active.crowd.get_or_insert_with(|| Crowd {
            id,
            attached: 0,
            gone: watch::Sender::new(None),
        });
        crowd.attached += 1;
        Ok(Attachment::new(self, key, crowd.id, crowd.gone.subscribe()))
    }

    pub(super) fn detach(&self, key: &SessionKey, crowd_id: u64) {
        let mut inner = self.lock();
        let Some(active) = inner.active.get_mut(key) else { return };
        // Another crowd may have come together since this one was sent away.
        let Some(crowd) = active.crowd.as_mut().filter(|crowd| crowd.id == crowd_id) else {
            return;
        };
        crowd.attached -= 1;
        if crowd.attached == 0 {
            active.crowd = None;
        }
        inner.tidy_active(key);
        inner.touch(&self.core, key);
    }
}

pub(super) fn overloaded() -> Refusal {
    Refusal::Overloaded { retry_after_ms: 1000 }
}

pub(crate) fn session_key(bytes: &[u8]) -> SessionKey {
    SessionKey::new(bytes::Bytes::copy_from_slice(bytes)).expect("only keys are put in the map")
}
