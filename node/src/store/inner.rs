//! What is behind a shard's lock.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;

use stead_shared::id::{Epoch, SessionKey, Version};
use stead_shared::net::watch;
use stead_shared::refusal::Refusal;
use stead_shared::time::Time;
use tokio::sync::oneshot;

use super::answers::{Bound, News, window};
use super::clock::NEVER;
use super::core::Core;
use super::data::{Footprint, Stored};
use super::draft::Changes;
use super::following::Followers;
use super::saving::Pen;
use super::sessions::{Sessions, Spot};
use super::shard::Shard;
use super::throttle::Throttle;
use super::turns::Waited;
use crate::logic::gate::Gate;
use crate::logic::heal::Healed;
use crate::logic::heal::lineage::Lineage;
use crate::logic::window::{Entry, Window};
use crate::session::{StateError, Why};

/// A node owns thousands of shards, and most of a young cluster's have never seen a session: what
/// they need for one is made when somebody comes.
pub(super) enum State {
    Bare {
        gate: Gate,
        seq: u64,
        id_last: u64,
        origin: Option<Epoch>,
        past: Option<Box<Past>>,
        followers: Option<Box<Followers>>,
        pen: Option<Box<Pen>>,
    },
    Full(Box<Inner>),
}

impl State {
    pub(super) fn gate(&self) -> Gate {
        match self {
            Self::Bare { gate, .. } => *gate,
            Self::Full(inner) => inner.gate,
        }
    }

    /// Those who wait for something.
    pub(super) fn waiting(&self) -> usize {
        match self {
            Self::Bare { .. } => 0,
            Self::Full(inner) => {
                inner.waiting + inner.throttle.as_ref().map_or(0, |throttle| throttle.waiting())
            }
        }
    }
}

/// The lock, held.
pub(super) struct Locked<'a> {
    state: MutexGuard<'a, State>,
}

impl<'a> Locked<'a> {
    pub(super) fn new(mut state: MutexGuard<'a, State>) -> Self {
        if let State::Bare { gate, seq, id_last, origin, past, followers, pen } = &mut *state {
            let (id_last, origin, pen) = (*id_last, *origin, pen.take());
            let (past, followers) = (past.take(), followers.take());
            let new = Inner::new(*gate, *seq);
            let inner = Inner { id_last, origin, past, followers, pen, ..new };
            *state = State::Full(Box::new(inner));
        }
        Self { state }
    }
}

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        match &*self.state {
            State::Full(inner) => inner,
            State::Bare { .. } => unreachable!("it was made full"),
        }
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        match &mut *self.state {
            State::Full(inner) => inner,
            State::Bare { .. } => unreachable!("it was made full"),
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.is_bare() {
            let Inner { gate, seq, id_last, origin, .. } = **self;
            let (past, followers) = (self.past.take(), self.followers.take());
            let pen = self.pen.take();
            *self.state = State::Bare { gate, seq, id_last, origin, past, followers, pen };
        }
    }
}

/// What a shard has of what was in it before, beside its sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    /// The epochs that it has come through.
    pub(crate) lineage: Lineage,
    /// When a request was first sent, in Unix milliseconds, whose answer went with the window that it
    /// was in: the latest of them.
    pub(crate) floor_ms: u64,
}

impl Past {
    /// Nothing where there is none.
    pub(super) fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

pub(super) struct Inner {
    pub(super) gate: Gate,
    /// Number of the last change in this shard.
    pub(super) seq: u64,
    /// The epoch in which the shard was served before this one with the same number: none when
    /// it began here, or has changed since.
    pub(super) origin: Option<Epoch>,
    /// What is left of what was here before.
    pub(super) past: Option<Box<Past>>,
    /// The end of another history that is being merged, and the sessions of it that have been.
    pub(super) healed: Option<Box<Healed<SessionKey>>>,
    /// Who is told of every change.
    pub(super) followers: Option<Box<Followers>>,
    /// Writes every change to disk.
    pub(super) pen: Option<Box<Pen>>,
    pub(super) sessions: Sessions,
    /// Sessions in use right now.
    pub(super) active: HashMap<SessionKey, Active>,
    /// Turns and reads that were granted and have not ended.
    pub(super) running: u32,
    pub(super) waiting: usize,
    pub(super) waiting_bytes: usize,
    /// Number of the last waiter or crowd.
    pub(super) id_last: u64,
    /// Sessions with timers by their earliest one, but those whose turn for it is on its way.
    pub(super) timed: BTreeSet<(Time, SessionKey)>,
    /// No session expires before.
    pub(super) sweep_at: Time,
    pub(super) swept_at: Time,
    pub(super) armed: Option<Time>,
    /// Holds changes back while it is there.
    pub(super) throttle: Option<Box<Throttle>>,
    /// Told when nothing runs any more.
    pub(super) idle: Vec<oneshot::Sender<()>>,
}

#[derive(Default)]
pub(super) struct Active {
    pub(super) has_turn: bool,
    pub(super) waiting: VecDeque<Waiter>,
    pub(super) crowd: Option<Crowd>,
}

/// Those attached to a session.
pub(super) struct Crowd {
    pub(super) id: u64,
    pub(super) attached: usize,
    pub(super) gone: watch::Sender<Option<Why>>,
}

impl Active {
    pub(super) fn is_idle(&self) -> bool {
        !self.has_turn && self.waiting.is_empty() && self.crowd.is_none()
    }
}

pub(super) struct Waiter {
    pub(super) id: u64,
    pub(super) bytes: usize,
    pub(super) turn: oneshot::Sender<Result<Waited, Refusal>>,
}

impl Inner {
    pub(super) fn new(gate: Gate, seq: u64) -> Self {
        Self {
            gate,
            seq,
            origin: None,
            past: None,
            healed: None,
            followers: None,
            pen: None,
            sessions: Sessions::new(),
            active: HashMap::new(),
            running: 0,
            waiting: 0,
            waiting_bytes: 0,
            id_last: 0,
            timed: BTreeSet::new(),
            sweep_at: NEVER,
            swept_at: Time::ZERO,
            armed: None,
            throttle: None,
            idle: Vec::new(),
        }
    }

    /// Whether nothing is lost when only the gate and the numbers are kept. One who was turned
    /// away may still have the number of its place: nobody else gets that.
    fn is_bare(&self) -> bool {
        self.running == 0
            && self.sessions.is_empty()
            && self.sessions.tracking.is_none()
            && self.active.is_empty()
            && self.timed.is_empty()
            && self.armed.is_none()
            && self.throttle.is_none()
            && self.idle.is_empty()
            && self.healed.is_none()
    }

    pub(super) fn floor_ms(&self) -> u64 {
        self.past.as_ref().map_or(0, |past| past.floor_ms)
    }

    pub(super) fn raise_floor(&mut self, to_ms: u64) {
        if self.floor_ms() < to_ms {
            self.past.get_or_insert_default().floor_ms = to_ms;
        }
    }

    /// The epochs that it has come through, this one included.
    pub(super) fn lineage(&self) -> Lineage {
        let mut lineage = self.past.as_ref().map_or(Lineage::EMPTY, |past| past.lineage.clone());
        if let Some(epoch) = self.gate.epoch() {
            lineage.reach(Version { epoch, seq: self.seq });
        }
        lineage
    }

    /// What whoever has the shard next needs of what was in it before, but this epoch.
    pub(super) fn past(&self) -> Past {
        self.past.as_deref().cloned().unwrap_or_default()
    }

    /// It was served in an epoch up to here.
    pub(super) fn note_epoch(&mut self, end: Version) {
        if 0 < end.seq {
            self.past.get_or_insert_default().lineage.reach(end);
        }
    }

    pub(super) fn when_idle(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.running == 0 {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.idle.push(sender);
        Some(receiver)
    }

    pub(super) fn remove(&mut self, core: &Core, key: &SessionKey) -> Option<Box<Stored>> {
        let stored = self.sessions.remove(key.as_bytes())?;
        core.free(stored.footprint());
        if let Some(at) = stored.data.earliest_timer() {
            self.timed.remove(&(at, key.clone()));
        }
        Some(stored)
    }

    /// Starts a session's time to live anew.
    pub(super) fn touch(&mut self, core: &Core, key: &SessionKey) {
        self.touch_at(core, key, &self.sessions.spot(key.as_bytes()), core.now());
    }

    /// The same, of the session at this spot.
    pub(super) fn touch_at(&mut self, core: &Core, key: &SessionKey, spot: &Spot, now: Time) {
        let mut before = now;
        let expires = |stored: &Stored| {
            before = stored.expires;
            match stored.is_tombstone() {
                true => before,
                false => now + core.ttl(stored.data.ttl_micros),
            }
        };
        let is_told = self.followers.is_some() || self.pen.is_some();
        if self.sessions.touch_at(spot, expires) && is_told {
            self.tell_touch(core, key, before);
        }
    }

    /// Makes the changes of one turn at `now`, after which the session is counted with `size` bytes
    /// and its window, in which `entry` comes.
    pub(super) fn apply(
        &mut self,
        shard: &Shard,
        key: &SessionKey,
        epoch: Epoch,
        (changes, size): (Changes, usize),
        mut entry: Option<Entry>,
        now: Time,
    ) -> Result<(), StateError> {
        let core = &*shard.core;
        let (was_deleted, new_ttl) = (changes.delete, changes.ttl_micros.is_some());
        if core.refuses_changes() {
            core.metrics.disk_full.increment(1);
            return Err(StateError::DiskFull);
        }
        let spot = self.sessions.spot(key.as_bytes());
        let here = self.sessions.at(&spot);
        if let Some(entry) = &mut entry {
            let next = Version { epoch, seq: 1 + self.seq };
            entry.added = changes.added(here.map(|here| &here.data), next);
        }
        let old = here.map_or(Footprint::NONE, Stored::footprint);
        let known = window(here);
        let answers_max = Window::bound(known, entry.as_ref());
        let mut bound = Bound::new(key, size, answers_max);
        let mut is_forgetful = false;
        if core.resize(old, bound.footprint).is_err() {
            // What it has answered is worth less than what it is.
            is_forgetful = 0 < answers_max;
            bound = Bound::new(key, size, 0);
            if !is_forgetful || core.resize(old, bound.footprint).is_err() {
                core.metrics.memory_full.increment(1);
                return Err(StateError::MemoryFull);
            }
            let known = window(self.sessions.at(&spot));
            let newest_ms = known.map_or(0, Window::newest_ms);
            let sent_ms = entry.take().map_or(0, |entry| entry.first_sent_ms);
            self.forget_answers(core, newest_ms.max(sent_ms));
        }
        let rest = bound.rest;
        let prev = self.next_seq(0);
        let version = Version { epoch, seq: self.seq };
        let written = core.stamp(now);
        if was_deleted {
            self.tell_deleted(key);
            core.forget_unreadable(shard.id(), Some(key));
        }
        if rest == 0 {
            // The memory is given back already.
            let gone = self.sessions.remove(key.as_bytes());
            self.retime_change(key, gone.and_then(|gone| gone.data.earliest_timer()), None);
            self.tell(core, prev, key, News::default());
            return Ok(());
        }
        let make = || Box::new(Stored::new(key.as_bytes(), version, now));
        let mut news = News::default();
        let (after, due, old_timer, new_timer) = self.sessions.change_at(&spot, make, |stored| {
            let old_timer = stored.data.earliest_timer();
            changes.apply(&mut stored.data, version, written);
            if is_forgetful {
                stored.data.take_window();
            }
            if let Some(entry) = entry {
                news = stored.data.note_answer(entry, now);
            }
            stored.bytes = u32::try_from(rest + stored.data.window_size()).unwrap_or(u32::MAX);
            if old.sessions == 0 || new_ttl || was_deleted {
                stored.expires = now + core.ttl(stored.data.ttl_micros);
            }
            if stored.is_tombstone() {
                let window = stored.data.window().and_then(Window::expires);
                stored.expires = window.unwrap_or(now);
            }
            (stored.footprint(), stored.due(), old_timer, stored.data.earliest_timer())
        });
        core.shrink(bound.footprint, after);
        self.expires_at(due);
        self.retime_change(key, old_timer, new_timer);
        self.tell(core, prev, key, news);
        Ok(())
    }

    fn retime_change(&mut self, key: &SessionKey, old: Option<Time>, new: Option<Time>) {
        if old != new {
            old.map(|at| self.timed.remove(&(at, key.clone())));
            new.map(|at| self.timed.insert((at, key.clone())));
        }
    }

    fn tell_deleted(&mut self, key: &SessionKey) {
        if let Some(crowd) = self.active.get_mut(key).and_then(|active| active.crowd.take()) {
            crowd.gone.send_replace(Some(Why::Deleted));
        }
    }
}
