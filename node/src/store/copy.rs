//! A copy of a shard that is made while the shard serves.
//!
//! ```text
//!  slots  0 ──────────── cursor ───────────── end ─────────▶
//!         copied:        not copied:          came since the copy began:
//!         a change marks a change is found    a change marks
//!         the slot       by the walk          the slot
//! ```
//!
//! First the walk goes once through all slots, then what changed behind it is sent again, as
//! often as it takes; a session that changes many times during the walk is sent twice, not many
//! times. Once the shard is sealed nothing changes any more, and what is left is the last
//! of it. Deletions are always sent first: what follows them may be a new session of that key.
//!
//! The shard's lock is held for a bounded step at a time, which collects pointers to values. The
//! records are made after it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use stead_shared::id::ShardId;
use stead_shared::time::Time;

use super::data::{Data, Stored};
use super::record::Record;
use super::sessions::Sessions;
use super::shard::Shard;
use super::tracking::{Lag, Tracking};
use crate::logic::gate::Gate;

/// Most records of one step: at some 50 ns each under the lock.
const STEP_RECORDS_MAX: usize = 256;
/// Most slots that one step looks at: most may be empty.
const STEP_SLOTS_MAX: usize = 2048;

/// A shard on its way out, while it is served. Made by [`Host::copy`](crate::Host::copy).
///
/// All its records, in the order they were given, make an [`Incoming`](crate::Incoming) what the
/// shard was at some time between the last two calls of [`next`](Self::next). Dropping it ends
/// the copy, and a [throttle](crate::Host::throttle).
pub struct ShardCopy {
    shard: Arc<Shard>,
    step: Step,
}

impl fmt::Debug for ShardCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardCopy").field("shard", &self.shard.id()).finish_non_exhaustive()
    }
}

/// What one step takes along from under the lock.
#[derive(Debug, Default)]
struct Step {
    keys: Vec<u8>,
    taken: Vec<(Range<usize>, Taken)>,
    /// About the length of the records.
    bytes: u64,
}

#[derive(Debug)]
enum Taken {
    Gone,
    Touched { expires: Time },
    Session { data: Data, expires: Time },
}

impl ShardCopy {
    /// None when the shard is being copied already, or gone.
    pub(crate) fn begin(shard: &Arc<Shard>) -> Option<Self> {
        let mut inner = shard.lock();
        match inner.gate {
            Gate::Serving(_) | Gate::Sealed(_) => {}
            Gate::Gone => return None,
        }
        let sessions = &mut inner.sessions;
        if sessions.tracking.is_some() {
            return None;
        }
        let tracking = Tracking::new(sessions.slots.len(), sessions.record_bytes);
        sessions.tracking = Some(Box::new(tracking));
        drop(inner);
        Some(Self { shard: Arc::clone(shard), step: Step::default() })
    }

    /// Which shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard.id()
    }

    /// Appends the next records to `out`: at least one if there is any, and no more once they
    /// have `bytes_max` bytes. Gives their number of bytes; 0 when there is nothing to send now.
    ///
    /// After a [`seal`](crate::Host::seal) has ended, what is given until the first 0 completes
    /// the copy, unless [`lag`](Self::lag) tells of an overflow.
    pub fn next(&mut self, bytes_max: usize, out: &mut Vec<Bytes>) -> usize {
        // All in one piece of memory.
        let (mut buffer, mut ends) = (Vec::new(), Vec::new());
        let n = self.each_next(bytes_max, |record| {
            let start = buffer.len();
            record.encode_to(&mut buffer);
            ends.push(buffer.len());
            buffer.len() - start
        });
        let (bytes, mut start) = (Bytes::from(buffer), 0);
        out.extend(
            ends.into_iter().map(|end| bytes.slice(std::mem::replace(&mut start, end)..end)),
        );
        n
    }

    /// The same for records that `put` writes; it gives the length of each.
    pub(crate) fn each_next(
        &mut self,
        bytes_max: usize,
        mut put: impl FnMut(&Record<'_>) -> usize,
    ) -> usize {
        let mut bytes = 0;
        loop {
            let budget = bytes_max.saturating_sub(bytes) as u64;
            let has_more = self.shard.lock().sessions.take_step(budget, &mut self.step);
            bytes += self.step.put(self.shard.core().now(), &mut put);
            if !has_more || (bytes > 0 && bytes_max <= bytes) {
                return bytes;
            }
        }
    }

    /// Whether the shard was dropped. What was copied of it is of no use any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.shard.gate() == Gate::Gone
    }

    /// How far it is behind. Sizes are estimates.
    #[must_use]
    pub fn lag(&self) -> Lag {
        let lag = self.shard.lock().sessions.tracking.as_ref().map(|tracking| tracking.lag());
        // Without the shard it is never complete.
        lag.unwrap_or_else(|| Lag { walking: true, ..Lag::default() })
    }

    /// A record with the numbers of the shard: of its last change, for one. It is the first record of a copy,
    /// and once more the last one, so that the one who goes on counts above it.
    #[must_use]
    pub fn seq_record(&self) -> Bytes {
        let inner = self.shard.lock();
        let (seq, past) = (inner.seq, inner.past());
        drop(inner);
        Record::of_shard(seq, past).encode()
    }
}

impl Drop for ShardCopy {
    fn drop(&mut self) {
        let mut inner = self.shard.lock();
        let tracking = inner.sessions.tracking.take();
        // Nothing is left to catch up.
        self.shard.lift(&mut inner);
        drop(inner);
        // Not under the lock.
        drop(tracking);
    }
}

impl Step {
    fn push(&mut self, key: &[u8], taken: Taken, bytes: u64) {
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        self.taken.push((start..self.keys.len(), taken));
        self.bytes += bytes;
    }

    fn push_session(&mut self, stored: &Stored) {
        let session = Taken::Session { data: stored.data.clone(), expires: stored.expires };
        self.push(&stored.key, session, stored.record_bytes());
    }

    fn is_full(&self, budget: u64) -> bool {
        STEP_RECORDS_MAX <= self.taken.len() || (!self.taken.is_empty() && budget <= self.bytes)
    }

    /// Makes the records and gives their bytes.
    fn put(&mut self, now: Time, put: &mut impl FnMut(&Record<'_>) -> usize) -> usize {
        let mut bytes = 0;
        for (key, taken) in self.taken.drain(..) {
            let key = &self.keys[key];
            bytes += match taken {
                Taken::Gone => put(&Record::Gone { key }),
                Taken::Touched { expires } => put(&Record::touched(key, expires, now)),
                Taken::Session { data, expires } => put(&Record::of(key, &data, expires, now)),
            };
        }
        self.keys.clear();
        self.bytes = 0;
        bytes
    }
}

impl Sessions {
    /// Takes what comes next, up to about `budget` bytes. Whether there is more.
    fn take_step(&mut self, budget: u64, step: &mut Step) -> bool {
        let Self { slots, tracking, .. } = self;
        let Some(tracking) = tracking else { return false };
        let mut slots_left = STEP_SLOTS_MAX;
        while !step.is_full(budget) && 0 < slots_left {
            slots_left -= 1;
            if let Some(key) = tracking.next_gone() {
                step.push(key, Taken::Gone, key.len() as u64);
            } else if let Some(slot) = tracking.next_slot() {
                let Some(stored) = &slots[slot as usize] else { continue };
                tracking.walked(stored.record_bytes());
                step.push_session(stored);
            } else if let Some(slot) = tracking.next_changed() {
                let Some(stored) = &slots[slot as usize] else { continue };
                tracking.taken(stored.record_bytes());
                step.push_session(stored);
            } else if let Some(slot) = tracking.next_touched() {
                let Some(stored) = &slots[slot as usize] else { continue };
                let touched = Taken::Touched { expires: stored.expires };
                step.push(&stored.key, touched, stored.key.len() as u64);
            } else {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use stead_shared::id::{Epoch, NodeId, Version};

    use super::*;

    /// A shard of which only every `keep`th session is left.
    fn sessions(n: u32, keep: u32) -> Sessions {
        let version = Version { epoch: Epoch { counter: 1, node: NodeId(1) }, seq: 1 };
        let mut sessions = Sessions::new();
        for key in 0..n {
            sessions.insert(Box::new(Stored::new(&key.to_le_bytes(), version, Time::ZERO)));
        }
        for key in (0..n).filter(|key| key % keep != 0) {
            sessions.remove(&key.to_le_bytes());
        }
        let tracking = Tracking::new(sessions.slots.len(), sessions.record_bytes);
        sessions.tracking = Some(Box::new(tracking));
        sessions
    }

    /// The numbers of records of all steps without a limit in bytes.
    fn steps(sessions: &mut Sessions) -> Vec<usize> {
        let mut steps = Vec::new();
        loop {
            let mut step = Step::default();
            let has_more = sessions.take_step(u64::MAX, &mut step);
            steps.push(step.taken.len());
            if !has_more {
                return steps;
            }
        }
    }

    #[test]
    fn the_lock_is_held_for_a_bounded_number_of_records() {
        let mut sessions = sessions(1000, 1);
        assert_eq!(steps(&mut sessions), [256, 256, 256, 232]);
        for key in 0..1000u32 {
            sessions.touch(&key.to_le_bytes(), |_| Time::from_micros(1));
        }
        assert_eq!(steps(&mut sessions), [256, 256, 256, 232]);
        for key in 0..1000u32 {
            sessions.remove(&key.to_le_bytes());
        }
        assert_eq!(steps(&mut sessions), [256, 256, 256, 232]);
        assert_eq!(steps(&mut sessions), [0]);
    }

    #[test]
    fn the_lock_is_held_for_a_bounded_number_of_empty_slots() {
        let steps = steps(&mut sessions(100_000, 1000));
        assert_eq!(steps.iter().sum::<usize>(), 100);
        assert!(steps.iter().all(|n_records| *n_records <= 3), "{steps:?}");
    }
}
