//! Changes of a shard are held back while a copy of it catches up.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stead_shared::id::SessionKey;
use stead_shared::net::watch;
use stead_shared::refusal::Refusal;
use stead_shared::time::Time;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::data::{RECORD_OVERHEAD, Stored};
use super::draft::Access;
use super::inner::Inner;
use super::shard::{Shard, overloaded};
use super::turns::Waited;
use crate::logic::gate::Gate;
use crate::logic::pace::Pace;

pub(super) struct Throttle {
    pace: Pace,
    /// Never sends: those who wait learn that it is dropped.
    lifted: watch::Sender<()>,
    /// Bytes of the bodies that wait.
    waiting_bytes: Arc<AtomicUsize>,
}

/// A turn's place in time. Dropping it stops waiting.
struct Slot {
    begin: Time,
    lifted: watch::Receiver<()>,
    bytes: usize,
    waiting_bytes: Arc<AtomicUsize>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Throttle {
    fn new(bytes_per_second: NonZeroU64, now: Time) -> Self {
        let pace = Pace::new(bytes_per_second, now);
        Self { pace, lifted: watch::Sender::new(()), waiting_bytes: Arc::default() }
    }

    pub(super) fn waiting(&self) -> usize {
        self.lifted.receiver_count()
    }

    /// Counts `real` bytes of changes instead of those that were `expected`.
    pub(super) fn correct(&mut self, expected: u64, real: u64) {
        self.pace.correct(expected, real);
    }
}

impl Inner {
    /// Counts what a turn has changed, for which `expected` bytes are counted already.
    pub(super) fn count_change(&mut self, key: &SessionKey, expected: u64) {
        let stored = self.sessions.get(key.as_bytes());
        let real = stored.map_or(key.as_bytes().len() as u64, Stored::record_bytes);
        if let Some(throttle) = &mut self.throttle {
            throttle.correct(expected, real);
        }
    }
}

impl Shard {
    /// Admits changes at `bytes_per_second` from now on, or as they come. Of a shard that is not
    /// served nothing changes, and there is nothing to hold back.
    pub(crate) fn throttle(&self, bytes_per_second: Option<NonZeroU64>) {
        let mut inner = self.lock();
        match (bytes_per_second, inner.gate) {
            (Some(rate), Gate::Serving(_)) => {
                let throttle = inner
                    .throttle
                    .get_or_insert_with(|| Box::new(Throttle::new(rate, self.core.now())));
                throttle.pace.set(rate);
                self.is_throttled.store(true, Ordering::Relaxed);
            }
            (Some(_), Gate::Sealed(_) | Gate::Gone) | (None, _) => self.lift(&mut inner),
        }
    }

    /// Lets all who wait go on.
    pub(super) fn lift(&self, inner: &mut Inner) {
        inner.throttle = None;
        self.is_throttled.store(false, Ordering::Relaxed);
    }

    /// Counts a change to come; none when it may come at once.
    fn admit_change(&self, turn: &Waited, bytes: usize) -> Result<Option<Slot>, Refusal> {
        let mut inner = self.lock();
        let (waiting, waiting_bytes) = (inner.waiting, inner.waiting_bytes);
        let key = turn.key().as_bytes();
        let old = inner.sessions.get(key).map_or(0, |stored| stored.record_bytes());
        let Some(throttle) = &mut inner.throttle else { return Ok(None) };
        let config = &self.core.config;
        let with_it = throttle.waiting_bytes.load(Ordering::Relaxed).saturating_add(bytes);
        if config.mailbox_requests_max <= waiting + throttle.waiting()
            || config.mailbox_bytes_max < waiting_bytes.saturating_add(with_it)
        {
            return Err(overloaded());
        }
        let expected = old.max(RECORD_OVERHEAD + (key.len() + bytes) as u64);
        let now = self.core.now();
        let begin = throttle.pace.admit(now, expected);
        turn.expect_change_of(expected);
        if begin <= now {
            return Ok(None);
        }
        let (lifted, waiting_bytes) =
            (throttle.lifted.subscribe(), Arc::clone(&throttle.waiting_bytes));
        waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Some(Slot { begin, lifted, bytes, waiting_bytes }))
    }
}

impl Waited {
    /// Whether nothing of what [`paced`](Self::paced) waits for is in its way.
    pub(crate) fn is_free(&self) -> bool {
        let shard = self.shard();
        let is_held_back = || {
            shard.is_throttled.load(Ordering::Relaxed)
                || !shard.core.has_disk_room()
                || !shard.has_room()
        };
        self.access() == Access::Read || !is_held_back()
    }

    /// Waits until the shard may change again, where changes are held back or its followers have
    /// too much to acknowledge, or the disk to write; not past `deadline` nor longer than the
    /// mailbox keeps anybody. Reads go on. `bytes` is what waits with it.
    pub(crate) async fn paced(
        self,
        bytes: usize,
        deadline: Option<Instant>,
    ) -> Result<Self, Refusal> {
        let shard = Arc::clone(self.shard());
        if self.access() == Access::Read {
            return Ok(self);
        }
        shard.core.disk_room(deadline).await?;
        shard.room(deadline).await?;
        if !shard.is_throttled.load(Ordering::Relaxed) {
            return Ok(self);
        }
        let Some(mut slot) = shard.admit_change(&self, bytes)? else { return Ok(self) };
        shard.core.metrics.turns_delayed.increment(1);
        let too_old = Instant::now() + shard.core.config.mailbox_age_max;
        let until = deadline.map_or(too_old, |deadline| deadline.min(too_old));
        let begin = shard.core.instant(slot.begin);
        let in_time = timeout_at(until, async {
            tokio::select! {
                biased;
                // An error means that it is lifted; the turn looks at the gate when it begins.
                _ = slot.lifted.changed() => {}
                () = sleep_until(begin) => {}
            }
        });
        match in_time.await {
            Ok(()) => Ok(self),
            Err(_) if until < too_old => Err(Refusal::DeadlinePassed),
            Err(_) => Err(overloaded()),
        }
    }
}
