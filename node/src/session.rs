//! A session as its service sees it during one turn.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use stead_shared::id::{Epoch, SessionKey, ShardId, Version};
use stead_shared::net::watch;
use stead_shared::refusal::Refusal;

use crate::state::State;
use crate::store::core::{Core, Unreadable, UnreadableReason};
use crate::store::draft::{Access, Draft, NewValue};
use crate::store::shard::Shard;
use crate::store::turns::{Asker, Attachment, Waited};

/// Why a session's state could not be read or changed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The turn is over: its answer's head has left, or it was given up. A retry cannot help;
    /// take a new turn with [`SessionHandle::turn`].
    #[error("the turn is over")]
    TurnOver,
    /// This is a read beside turns, or the session is going: it cannot be changed.
    #[error("the session cannot be changed in this turn")]
    ReadOnly,
    /// The session would be larger than a session may be.
    #[error("a session has at most {limit} bytes")]
    TooLarge {
        /// Most bytes of a session, overhead included.
        limit: usize,
    },
    /// The node's memory limit is reached. A retry can help once other sessions are gone.
    #[error("the node's memory limit is reached")]
    MemoryFull,
    /// The disk takes no more changes (`--data-dir`): it is full, or fails. Nothing was changed. A
    /// retry can help once it works again.
    #[error("the node's disk takes no more changes")]
    DiskFull,
    /// A newer version of the program wrote the state. The host answers this turn with 503
    /// `quarantined` and commits nothing of it, whatever the handler does.
    #[error("the state has version {stored}, this program reads up to {known}")]
    NewerVersion {
        /// The version of the state.
        stored: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// The state is not what its type expects. It is kept as it is; the host answers this turn
    /// with 503 `quarantined`, unless the handler deletes the session.
    #[error("the state cannot be read: {detail}")]
    Undecodable {
        /// What the decoder said.
        detail: String,
    },
    /// The new state cannot be written in its encoding.
    #[error("the state cannot be written: {detail}")]
    Unencodable {
        /// What the encoder said.
        detail: String,
    },
    /// The counter would leave the range of 64 bits.
    #[error("the counter would overflow")]
    CounterOverflow,
    /// The session has as many timers as a session may have.
    #[error("a session has at most {limit} timers")]
    TooManyTimers {
        /// Most timers of a session.
        limit: usize,
    },
}

impl From<UnreadableReason> for StateError {
    fn from(reason: UnreadableReason) -> Self {
        match reason {
            UnreadableReason::Newer { stored, known } => Self::NewerVersion { stored, known },
            UnreadableReason::Undecodable { detail } => Self::Undecodable { detail },
        }
    }
}

/// Why a session goes from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its shard moves to another node, with the session.
    Moving,
    /// Nobody came within its time to live.
    Expired,
    /// It was deleted.
    Deleted,
    /// This node does not own the shard any more. What is here is of no use.
    Lost,
}

/// A timer of a session, for [`Session::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId(pub(crate) u32);

/// One session during one turn.
///
/// All methods work on a copy. Its changes are committed together, before the head of the
/// answer leaves; nobody sees any of them before, and none of them when the handler panics.
/// Clones are the same session in the same turn; after the turn they answer
/// [`StateError::TurnOver`].
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    shard: Arc<Shard>,
    key: SessionKey,
    epoch: Epoch,
    /// None once the turn is over.
    draft: Mutex<Option<Draft>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("key", &self.inner.key)
            .field("shard", &self.shard())
            .field("epoch", &self.inner.epoch)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(shard: Arc<Shard>, key: SessionKey, epoch: Epoch, draft: Draft) -> Self {
        Self { inner: Arc::new(Inner { shard, key, epoch, draft: Mutex::new(Some(draft)) }) }
    }

    /// The bytes that name it.
    #[must_use]
    pub fn key(&self) -> &SessionKey {
        &self.inner.key
    }

    /// The shard it belongs to.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.inner.shard.id()
    }

    /// The epoch in which this node served the shard when the turn began.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.inner.epoch
    }

    /// When the session last changed, before this turn; none where it did not exist.
    ///
    /// # Errors
    /// When the turn is over.
    pub fn version(&self) -> Result<Option<Version>, StateError> {
        self.read(Draft::version)
    }

    /// When the value last changed, before this turn; none where there was none.
    ///
    /// # Errors
    /// When the turn is over.
    pub fn value_version(&self) -> Result<Option<Version>, StateError> {
        self.read(Draft::value_version)
    }

    /// Whether the session has a value, a counter or a timer.
    ///
    /// # Errors
    /// When the turn is over.
    pub fn exists(&self) -> Result<bool, StateError> {
        self.read(Draft::exists)
    }

    /// The typed value; none where there is none.
    ///
    /// # Errors
    /// When a newer version of the program wrote it, it cannot be decoded, or the turn is over.
    pub fn get<T: State>(&self) -> Result<Option<T>, StateError> {
        self.with(|draft| self.decode(draft))
    }

    /// Changes the typed value in place, starting from `T::default()` where there is none.
    ///
    /// # Errors
    /// As [`get`](Self::get) and [`set`](Self::set). `change` has run only when the state could
    /// be read; its changes count only when this is `Ok`.
    pub fn update<T, R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, StateError>
    where
        T: State + Default,
    {
        self.with(|draft| {
            let mut value: T = self.decode(draft)?.unwrap_or_default();
            let result = change(&mut value);
            self.encode(draft, &value)?;
            Ok(result)
        })
    }

    /// Replaces the typed value.
    ///
    /// # Errors
    /// When there is no room for it, it cannot be encoded, the session cannot be changed, or the
    /// turn is over.
    pub fn set<T: State>(&self, value: &T) -> Result<(), StateError> {
        self.with(|draft| {
            // What a newer version wrote is never overwritten, not even unread.
            if let Some(NewValue { schema: Some(stored), .. }) = draft.value()
                && T::VERSION < stored
            {
                return Err(self.unreadable(draft, newer::<T>(stored)));
            }
            self.encode(draft, value)
        })
    }

    /// The value's bytes, typed or not; none where there is none.
    ///
    /// # Errors
    /// When the turn is over.
    pub fn bytes(&self) -> Result<Option<Bytes>, StateError> {
        let value = self.read(Draft::value)?;
        Ok(value.map(|value| Bytes::from_owner(value.bytes)))
    }

    /// Replaces the value by bytes without a type.
    ///
    /// # Errors
    /// When there is no room for them, the session cannot be changed, or the turn is over.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<(), StateError> {
        let value = NewValue { bytes: Arc::from(bytes), schema: None };
        self.with(|draft| draft.put_value(self.core(), value))
    }

    /// Deletes value, counters and timers. The session is gone unless this turn puts something
    /// in again; those [attached](SessionHandle::attach) to it are told.
    ///
    /// # Errors
    /// When the session cannot be changed, a newer version wrote it, or the turn is over.
    pub fn delete(&self) -> Result<(), StateError> {
        self.with(Draft::delete)
    }

    /// The value of a counter; none where it does not exist.
    ///
    /// # Errors
    /// When the turn is over.
    pub fn counter(&self, name: &str) -> Result<Option<i64>, StateError> {
        self.read(|draft| draft.counter(name))
    }

    /// Names and values of all counters, sorted by name.
    ///
    /// # Errors
    /// When the turn is over.
    pub fn counters(&self) -> Result<Vec<(String, i64)>, StateError> {
        self.read(Draft::counters)
    }

    /// Adds to a counter, which starts at 0, and gives its new value.
    ///
    /// # Errors
    /// When it would overflow, there is no room for a new one, the session cannot be changed, or
    /// the turn is over.
    pub fn add(&self, name: &str, by: i64) -> Result<i64, StateError> {
        self.with(|draft| draft.add(self.core(), name, by))
    }

    /// From now on the session is gone `ttl` after its last access.
    ///
    /// Timers are no access. Set on a session that has nothing in it, it has no effect.
    ///
    /// # Errors
    /// When the session cannot be changed or the turn is over.
    pub fn expire_in(&self, ttl: Duration) -> Result<(), StateError> {
        self.with(|draft| draft.set_ttl(Some(ttl)))
    }

    /// Back to the node's own time to live.
    ///
    /// # Errors
    /// When the session cannot be changed or the turn is over.
    pub fn expire_by_default(&self) -> Result<(), StateError> {
        self.with(|draft| draft.set_ttl(None))
    }

    /// Gives `event` to [`Service::timer`](crate::Service::timer) in a turn of its own, `delay`
    /// after the begin of this one. Timers move with the session.
    ///
    /// # Errors
    /// When there are too many, there is no room, the session cannot be changed, or the turn is
    /// over.
    pub fn after(&self, delay: Duration, event: impl AsRef<[u8]>) -> Result<TimerId, StateError> {
        self.with(|draft| draft.add_timer(self.core(), delay, 0, event.as_ref())).map(TimerId)
    }

    /// Gives `event` to the service every `period` (at least a millisecond), from one period
    /// after the begin of this turn until it is cancelled. Ticks that come due while the session
    /// is busy or moving are given once.
    ///
    /// # Errors
    /// As [`after`](Self::after).
    pub fn every(&self, period: Duration, event: impl AsRef<[u8]>) -> Result<TimerId, StateError> {
        let period = period.max(Duration::from_millis(1));
        let micros = u64::try_from(period.as_micros()).unwrap_or(u64::MAX);
        self.with(|draft| draft.add_timer(self.core(), period, micros, event.as_ref())).map(TimerId)
    }

    /// Stops a timer. False when it fired already or never was.
    ///
    /// # Errors
    /// When the session cannot be changed or the turn is over.
    pub fn cancel(&self, timer: TimerId) -> Result<bool, StateError> {
        self.with(|draft| draft.cancel_timer(self.core(), timer.0))
    }

    /// How many timers the session has.
    ///
    /// # Errors
    /// When the turn is over.
    pub fn timers(&self) -> Result<usize, StateError> {
        self.read(|draft| draft.timers().len())
    }

    /// Something that outlives the turn: takes further turns, waits until the session goes.
    #[must_use]
    pub fn handle(&self) -> SessionHandle {
        SessionHandle::new(Arc::clone(&self.inner.shard), self.inner.key.clone())
    }

    /// Ends the turn for all clones.
    pub(crate) fn end(&self) -> Option<Draft> {
        self.lock().take()
    }

    pub(crate) fn take_due_timers(&self) -> Vec<Box<[u8]>> {
        self.with(|draft| Ok(draft.take_due_timers())).unwrap_or_default()
    }

    fn core(&self) -> &Core {
        self.inner.shard.core()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Draft>> {
        // A closure that panicked inside `update` changed nothing: the draft is whole.
        self.inner.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(
        &self,
        change: impl FnOnce(&mut Draft) -> Result<R, StateError>,
    ) -> Result<R, StateError> {
        change(self.lock().as_mut().ok_or(StateError::TurnOver)?)
    }

    fn read<R>(&self, read: impl FnOnce(&Draft) -> R) -> Result<R, StateError> {
        self.lock().as_ref().map(read).ok_or(StateError::TurnOver)
    }

    fn decode<T: State>(&self, draft: &mut Draft) -> Result<Option<T>, StateError> {
        let Some(value) = draft.value() else { return Ok(None) };
        let reason = match value.schema {
            Some(stored) if T::VERSION < stored => newer::<T>(stored),
            Some(stored) => match T::decode(stored, &value.bytes) {
                Ok(value) => return Ok(Some(value)),
                Err(error) => UnreadableReason::Undecodable { detail: error.to_string() },
            },
            None => UnreadableReason::Undecodable { detail: "bytes without a type".into() },
        };
        Err(self.unreadable(draft, reason))
    }

    fn encode<T: State>(&self, draft: &mut Draft, value: &T) -> Result<(), StateError> {
        let bytes =
            value.encode().map_err(|e| StateError::Unencodable { detail: e.to_string() })?;
        let value = NewValue { bytes: Arc::from(bytes), schema: Some(T::VERSION) };
        draft.put_value(self.core(), value)
    }

    fn unreadable(&self, draft: &mut Draft, reason: UnreadableReason) -> StateError {
        let (key, shard) = (self.key().clone(), self.shard());
        self.core().note_unreadable(Unreadable { key, shard, reason: reason.clone() });
        draft.mark_unreadable(reason.clone());
        reason.into()
    }
}

fn newer<T: State>(stored: u32) -> UnreadableReason {
    UnreadableReason::Newer { stored, known: T::VERSION }
}

/// Why a turn taken by [`SessionHandle::turn`] changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnError {
    /// It did not begin: the session moves, has gone from this node, or is too busy.
    #[error("the turn did not begin: {}", .0.token())]
    Refused(Refusal),
    /// Its changes could not be committed.
    #[error("the turn's changes were discarded: {0}")]
    State(#[from] StateError),
    /// The shard was taken from this node while the turn ran.
    #[error("the shard was lost during the turn")]
    Lost,
}

/// A session beyond one turn, for what outlives a request: a WebSocket, a streaming answer.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    shard: Arc<Shard>,
    key: SessionKey,
}

impl SessionHandle {
    pub(crate) fn new(shard: Arc<Shard>, key: SessionKey) -> Self {
        Self { shard, key }
    }

    /// The bytes that name the session.
    #[must_use]
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// Waits for the session's turn, runs `change`, commits, waits until the shard's followers have
    /// acknowledged it, and runs `then` before the next turn begins, so that what `then` sends goes
    /// out in the order of the changes. Neither may block.
    ///
    /// # Errors
    /// When the turn could not begin or its changes could not be committed, or the shard was lost
    /// before they were acknowledged; `then` did not run.
    pub async fn turn<R>(
        &self,
        change: impl FnOnce(&Session) -> Result<R, StateError> + Send,
        then: impl FnOnce(&R) + Send,
    ) -> Result<R, TurnError> {
        let asker = Asker::Client { bytes: 0, epoch: None };
        let turn = Shard::wait_turn(&self.shard, &self.key, asker).await;
        let turn = turn.map_err(TurnError::Refused)?.paced(0, None).await;
        let begun = turn.and_then(Waited::begin).map_err(TurnError::Refused)?;
        let result = change(&begun.session)?;
        begun.commit()?;
        // The turn lasts: `then` of the next one comes after this one's.
        if !self.shard.acknowledged(Access::Change).await {
            return Err(TurnError::Lost);
        }
        then(&result);
        Ok(result)
    }

    /// Tells when the session goes, and keeps it from expiring until this is dropped.
    ///
    /// # Errors
    /// When its shard is moving or not here any more.
    pub fn attach(&self) -> Result<Attached, Refusal> {
        let attachment = self.shard.attach(&self.key)?;
        Ok(Attached { attachment })
    }
}

/// Somebody who is with a session for longer than a turn.
#[derive(Debug)]
pub struct Attached {
    attachment: Attachment,
}

impl Attached {
    /// Waits until the session goes from this node.
    pub async fn gone(&mut self) -> Why {
        let why: &mut watch::Receiver<Option<Why>> = self.attachment.gone();
        match why.wait_for(Option::is_some).await {
            Ok(why) => why.unwrap_or(Why::Lost),
            Err(_) => Why::Lost,
        }
    }
}
