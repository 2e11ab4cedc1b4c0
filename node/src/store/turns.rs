//! The life of a turn: asked for, granted, begun, committed, ended.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::Response;
use stead_shared::id::{Epoch, SessionKey, Version};
use stead_shared::net::watch;
use stead_shared::refusal::Refusal;
use stead_shared::time::Time;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::core::Core;
use super::data::{Data, Stored};
use super::draft::{Access, Draft};
use super::shard::{Shard, overloaded};
use crate::body::Body;
use crate::logic::window::{Asked, Kept};
use crate::session::{Session, StateError, TurnError, Why};
use crate::turn::is_stamped;

/// Who asks for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A client. The mailbox may be full for it.
    Client {
        /// What waits with it.
        bytes: usize,
        /// The epoch it believes in.
        epoch: Option<Epoch>,
    },
    /// The node itself, which limits its turns in its own way.
    Node,
}

impl Asker {
    pub(super) fn epoch(self) -> Option<Epoch> {
        match self {
            Self::Client { epoch, .. } => epoch,
            Self::Node => None,
        }
    }
}

/// An answer to [`Shard::admit`].
pub(crate) enum Admission {
    Now(Waited),
    Queued(Place),
}

/// A place in a session's queue. Dropping it leaves the queue.
pub(crate) struct Place {
    shard: Arc<Shard>,
    key: SessionKey,
    id: u64,
    granted: oneshot::Receiver<Result<Waited, Refusal>>,
}

impl Place {
    pub(super) fn new(
        shard: &Arc<Shard>,
        key: &SessionKey,
        id: u64,
        granted: oneshot::Receiver<Result<Waited, Refusal>>,
    ) -> Self {
        Self { shard: Arc::clone(shard), key: key.clone(), id, granted }
    }

    /// Waits for the turn, not past `deadline` nor longer than the mailbox keeps anybody.
    pub(crate) async fn wait(mut self, deadline: Option<Instant>) -> Result<Waited, Refusal> {
        let age_max = self.shard.core.config.mailbox_age_max;
        let too_old = Instant::now() + age_max;
        let until = deadline.map_or(too_old, |deadline| deadline.min(too_old));
        match tokio::time::timeout_at(until, &mut self.granted).await {
            Ok(Ok(granted)) => granted,
            Ok(Err(_)) => Err(Refusal::NotOwner { claim: None }),
            Err(_) if until < too_old => Err(Refusal::DeadlinePassed),
            Err(_) => Err(overloaded()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shard.leave_queue(&self.key, self.id);
    }
}

/// The right to a turn or a read. Dropping it ends the turn.
pub(super) struct Permit {
    shard: Arc<Shard>,
    key: SessionKey,
    access: Access,
    is_void: bool,
    /// Bytes that the shard's throttle counts for the change to come.
    expected: AtomicU64,
}

impl Permit {
    pub(super) fn new(shard: &Arc<Shard>, key: &SessionKey, access: Access) -> Self {
        let (shard, key, expected) = (Arc::clone(shard), key.clone(), AtomicU64::new(0));
        Self { shard, key, access, is_void: false, expected }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_void {
            self.shard.release(&self.key, self.access, *self.expected.get_mut());
        }
    }
}

/// A turn that was granted and has not begun.
pub(crate) struct Waited {
    permit: Permit,
}

impl Waited {
    pub(super) fn new(permit: Permit) -> Self {
        Self { permit }
    }

    pub(super) fn shard(&self) -> &Arc<Shard> {
        &self.permit.shard
    }

    pub(super) fn key(&self) -> &SessionKey {
        &self.permit.key
    }

    pub(super) fn access(&self) -> Access {
        self.permit.access
    }

    /// Notes what the throttle counts for this turn.
    pub(super) fn expect_change_of(&self, bytes: u64) {
        self.permit.expected.store(bytes, Ordering::Relaxed);
    }

    /// Takes the grant back, by one who holds the shard's lock.
    pub(super) fn forget(mut self) {
        self.permit.is_void = true;
    }

    /// Begins the turn as an access of the session.
    pub(crate) fn begin(self) -> Result<Begun, Refusal> {
        self.begin_as(true, None)
    }

    /// Begins the turn of a request; `asked` unless it may be run as often as it comes.
    pub(crate) fn begin_request(self, asked: Option<Asked>) -> Result<Begun, Refusal> {
        self.begin_as(true, asked)
    }

    /// Begins a turn that is no access: the time to live goes on.
    pub(crate) fn begin_unasked(self) -> Result<Begun, Refusal> {
        self.begin_as(false, None)
    }

    /// Begins the turn, if the gate is still open. `is_access` starts the time to live anew.
    fn begin_as(self, is_access: bool, asked: Option<Asked>) -> Result<Begun, Refusal> {
        let shard = Arc::clone(&self.permit.shard);
        let key = &self.permit.key;
        let now = shard.core.now();
        let mut inner = shard.lock();
        // A doubt closes every gate, without a change of any.
        let is_in_doubt = shard.core.doubts.is_in_doubt();
        let open = if is_in_doubt { Err(Refusal::Moving) } else { inner.gate.open() };
        let epoch = match open {
            Ok(epoch) => epoch,
            Err(refusal) => {
                drop(inner);
                return Err(refusal);
            }
        };
        let spot = inner.sessions.spot(key.as_bytes());
        let here = inner.sessions.at(&spot);
        let exists = |stored: &&Stored| !stored.is_tombstone();
        let is_over = here.filter(exists).is_some_and(|stored| stored.expires <= now)
            && inner.active.get(key).is_none_or(|active| active.crowd.is_none());
        let mut expired = None;
        let met = asked.map_or(Turn::Runs(None), |asked| inner.meet(here, asked));
        let is_degraded = matches!(met, Turn::Runs(_))
            && self.permit.access == Access::Change
            && inner.n_copies() < shard.core.config.min_copies;
        if is_degraded {
            drop(inner);
            return Err(Refusal::Degraded);
        }
        if is_over && self.permit.access == Access::Change {
            expired = inner.expire(&shard.core, key).filter(|stored| stored.activated);
        }
        if is_access && !is_over {
            inner.touch_at(&shard.core, key, &spot, now);
        }
        let stored = if is_over { None } else { inner.sessions.at(&spot).filter(exists) };
        let base = stored.map(|it| (it.data.clone(), it.bytes as usize, it.activated));
        drop(inner);
        let farewell = expired.map(|stored| shard.farewell(key, epoch, &stored));
        let is_new = shard.core.has_hooks && !base.as_ref().is_some_and(|(_, _, told)| *told);
        let base = base.map(|(data, size, _)| (data, size));
        let activate = is_new && self.permit.access == Access::Change;
        Ok(Begun { met, ..Begun::new(self.permit, epoch, base, farewell, activate, now) })
    }
}

/// A turn that runs. Dropping it without a commit discards its changes.
pub(crate) struct Begun {
    pub(crate) session: Session,
    /// What was here under this key until its time to live ran out, where the service wants to
    /// know.
    pub(crate) expired: Option<Session>,
    /// Whether the service has yet to be told that the session is here.
    pub(crate) activate: bool,
    /// When it began, by the host's clock.
    pub(crate) began: Time,
    /// What its request is met with.
    pub(crate) met: Turn,
    permit: Permit,
}

/// What a request is met with in its turn.
#[derive(Debug)]
pub(crate) enum Turn {
    /// It runs. What it says of itself is kept with what it changes.
    Runs(Option<Asked>),
    /// It was applied before.
    Replays(Kept),
    /// It may have been applied before, and what it was answered is gone.
    Unknown,
    /// Its client has used its idempotency key for another request.
    OtherRequest,
}

/// What a commit made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) epoch: Epoch,
    /// When the value last changed, for an answer that is to say so; none where there is none.
    pub(crate) value_version: Option<Version>,
}

impl Begun {
    pub(super) fn new(
        permit: Permit,
        epoch: Epoch,
        base: Option<(Data, usize)>,
        expired: Option<Session>,
        activate: bool,
        began: Time,
    ) -> Self {
        let (data, size) = base.map_or((None, 0), |(data, size)| (Some(data), size));
        let draft = Draft::new(permit.access, began, permit.key.as_bytes().len(), data, size);
        let session = Session::new(Arc::clone(&permit.shard), permit.key.clone(), epoch, draft);
        Self { session, expired, activate, began, met: Turn::Runs(None), permit }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.permit.shard.core
    }

    /// Forgets what the turn did, which goes on with the committed state.
    pub(crate) fn start_again(&mut self) {
        let Permit { shard, key, access, .. } = &self.permit;
        self.session.end();
        let (data, size) = match shard.lock().sessions.get(key.as_bytes()) {
            Some(stored) => (Some(stored.data.clone()), stored.bytes as usize),
            None => (None, 0),
        };
        let draft = Draft::new(*access, shard.core.now(), key.as_bytes().len(), data, size);
        self.session = Session::new(Arc::clone(shard), key.clone(), self.session.epoch(), draft);
    }

    /// The epoch in which the shard is served now; none when it is gone.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.permit.shard.gate().epoch()
    }

    /// Makes the turn's changes visible, all or none. The turn itself lasts until this is
    /// dropped.
    pub(crate) fn commit(&self) -> Result<Committed, TurnError> {
        self.commit_as(self.core().has_hooks && !self.activate, None)
    }

    /// Commits, with what the turn's request is answered.
    pub(crate) fn commit_answer(
        &self,
        asked: Option<Asked>,
        response: &Response<Body>,
    ) -> Result<Committed, TurnError> {
        self.commit_as(self.core().has_hooks && !self.activate, Some((asked, response)))
    }

    /// Commits the last turn that the service has before the session goes.
    pub(crate) fn commit_last(&self) -> Result<Committed, TurnError> {
        self.commit_as(false, None)
    }

    /// Commits; `is_told` is whether the service knows from now on that the session is here.
    fn commit_as(
        &self,
        is_told: bool,
        answer: Option<(Option<Asked>, &Response<Body>)>,
    ) -> Result<Committed, TurnError> {
        let draft = self.session.end().ok_or(StateError::TurnOver)?;
        if let Some(reason) = draft.unreadable() {
            return Err(StateError::from(reason.clone()).into());
        }
        let Permit { shard, key, expected, .. } = &self.permit;
        let (changes, size) = draft.into_changes();
        let is_change = !changes.is_empty();
        let core = &shard.core;
        let now = core.now();
        let wants_version = answer.as_ref().is_some_and(|(_, response)| is_stamped(response));
        let entry = answer
            .filter(|_| is_change)
            .and_then(|(asked, response)| asked?.into_entry(response, now));
        let mut inner = shard.lock();
        let epoch = inner.gate.epoch().ok_or(TurnError::Lost)?;
        if is_change {
            inner.apply(shard, key, epoch, (changes, size), entry, now)?;
            inner.arm(shard.id(), core);
        }
        if inner.throttle.is_some() && is_change {
            inner.count_change(key, expected.swap(0, Ordering::Relaxed));
        }
        if self.permit.access == Access::Change && core.has_hooks {
            inner.sessions.set_activated(key.as_bytes(), is_told);
        }
        let stored = if wants_version { inner.sessions.get(key.as_bytes()) } else { None };
        let value_version = stored
            .and_then(|stored| stored.data.value.as_ref().map(|_| stored.data.value_version()));
        Ok(Committed { epoch, value_version })
    }
}

/// Somebody attached to a session. Dropping it detaches.
pub(crate) struct Attachment {
    shard: Arc<Shard>,
    key: SessionKey,
    crowd_id: u64,
    gone: watch::Receiver<Option<Why>>,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Attachment {
    pub(super) fn new(
        shard: &Arc<Shard>,
        key: &SessionKey,
        crowd_id: u64,
        gone: watch::Receiver<Option<Why>>,
    ) -> Self {
        Self { shard: Arc::clone(shard), key: key.clone(), crowd_id, gone }
    }

    pub(crate) fn gone(&mut self) -> &mut watch::Receiver<Option<Why>> {
        &mut self.gone
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.shard.detach(&self.key, self.crowd_id);
    }
}
