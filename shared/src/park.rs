//! Requests that wait for their shard to have an owner again: bounded, and in order.
//!
//! ```text
//! request ── enter ──▶ waiting ── turn: Go ──▶ released ── passed ──▶ the next one's turn
//!                        │  ▲                     │
//!                        │  └── enter again ──────┘  refused again: back to its old place
//!                        └── turn: TooLong ──▶ 503
//! ```
//! Each shard has a queue. Its first request is released when there is a place to send it to
//! that is better than the one that failed, by epoch; it passes the turn on as soon as it is
//! on its way, so requests reach the new owner in the order in which they came. Since an event
//! can be missed, the first one also looks again every [`LOOK_AGAIN`]; that one holds the turn
//! until it knows more, so that not everybody runs into the same wall.
//!
//! A request that arrives while others wait for the same shard waits behind them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{Epoch, ShardId};
use crate::time::Time;

/// How often the first of a queue looks again although nothing seems to have changed.
pub const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The end of a move, which is bounded.
    Moving,
    /// A new owner: the last one is out of reach, or there is none.
    NoOwner,
}

/// Bounds of waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that wait for one shard. Default 64.
    pub shard_requests_max: usize,
    /// Bytes of bodies kept for them. Default 1 MiB.
    pub shard_bytes_max: usize,
    /// Requests that wait for any shard. Default 8192.
    pub requests_max: usize,
    /// Bytes of bodies kept for them. Default 64 MiB.
    pub bytes_max: usize,
    /// Longest wait for the end of a move. Default 2 s, as long as a move may hold its shard.
    pub moving_max: Duration,
    /// Longest wait for a new owner. Default 10 s: a silent death takes up to 5 s to be known.
    pub no_owner_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            shard_requests_max: 64,
            shard_bytes_max: 1 << 20,
            requests_max: 8192,
            bytes_max: 64 << 20,
            moving_max: Duration::from_secs(2),
            no_owner_max: Duration::from_secs(10),
        }
    }
}

/// A place in a shard's queue, kept across releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    /// The shard waited for.
    pub shard: ShardId,
    /// Smaller is earlier.
    pub number: u64,
    /// When it first had to wait.
    pub since: Time,
}

/// A request that has to wait.
#[derive(Clone, Debug)]
pub struct Wait {
    /// For this shard.
    pub shard: ShardId,
    /// The place it had before, if it was released and came back.
    pub again: Option<Ticket>,
    /// What for; `None` when only because others wait before it.
    pub cause: Option<Cause>,
    /// The highest epoch that was tried: only a higher one is better.
    pub tried: Option<Epoch>,
    /// Bytes of its body that are kept.
    pub bytes: usize,
    /// When the client's patience ends.
    pub deadline: Time,
}

/// There is no room: the request is answered with 503 at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What becomes of a waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its turn: send it, then call [`Lot::passed`].
    Go,
    /// Its turn, to find out: send it, and call [`Lot::passed`] when it was accepted or not.
    Look,
    /// It waited as long as it may.
    TooLong(Cause),
}

/// A verdict for one of the waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Whose.
    pub ticket: Ticket,
    /// Which.
    pub verdict: Verdict,
}

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    cause: Cause,
    until: Time,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    /// By ticket number.
    waiting: BTreeMap<u64, Waiter>,
    bytes: usize,
    /// Whose turn it is.
    turn: Option<u64>,
    /// It only looks: a better place need not wait for what it finds.
    looks: bool,
    cause: Option<Cause>,
    /// The highest epoch that failed.
    tried: Option<Epoch>,
    look_at: Time,
}

/// All queues of one process.
#[derive(Debug)]
pub struct Lot {
    limits: Limits,
    queues: BTreeMap<ShardId, Queue>,
    waiting: usize,
    bytes: usize,
    last_number: u64,
}

impl Lot {
    /// An empty lot.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, queues: BTreeMap::new(), waiting: 0, bytes: 0, last_number: 0 }
    }

    /// Number of requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether nobody waits and nobody has the turn.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// Whether requests for `shard` must queue.
    #[must_use]
    pub fn has_queue(&self, shard: ShardId) -> bool {
        self.queues.contains_key(&shard)
    }

    /// A request begins to wait. Follow with [`Self::turn_of`]: its turn may be at once.
    ///
    /// # Errors
    /// When a limit is reached. Nothing changed then.
    pub fn enter(&mut self, now: Time, wait: &Wait) -> Result<Ticket, Full> {
        if self.limits.requests_max <= self.waiting
            || self.limits.bytes_max < self.bytes + wait.bytes
        {
            return Err(Full);
        }
        if let Some(queue) = self.queues.get(&wait.shard) {
            let full = self.limits.shard_requests_max <= queue.waiting.len();
            if full || self.limits.shard_bytes_max < queue.bytes + wait.bytes {
                return Err(Full);
            }
        } else if self.limits.shard_bytes_max < wait.bytes {
            return Err(Full);
        }
        let ticket = wait.again.unwrap_or_else(|| {
            self.last_number += 1;
            Ticket { shard: wait.shard, number: self.last_number, since: now }
        });
        let queue = self.queues.entry(wait.shard).or_default();
        if wait.cause.is_some() {
            queue.tried = queue.tried.max(wait.tried);
            queue.cause = wait.cause;
            queue.look_at = now + LOOK_AGAIN;
        }
        let cause = wait.cause.or(queue.cause).unwrap_or(Cause::Moving);
        let longest = match cause {
            Cause::Moving => self.limits.moving_max,
            Cause::NoOwner => self.limits.no_owner_max,
        };
        let until = (ticket.since + longest).min(wait.deadline);
        queue.waiting.insert(ticket.number, Waiter { ticket, cause, until, bytes: wait.bytes });
        queue.bytes += wait.bytes;
        self.waiting += 1;
        self.bytes += wait.bytes;
        Ok(ticket)
    }

    /// Takes a request out that waits no more, because its client went away. Harmless for one
    /// that was released.
    pub fn leave(&mut self, ticket: Ticket) {
        let Some(queue) = self.queues.get_mut(&ticket.shard) else { return };
        if let Some(waiter) = queue.waiting.remove(&ticket.number) {
            queue.bytes -= waiter.bytes;
            self.bytes -= waiter.bytes;
            self.waiting -= 1;
        }
        self.forget_if_empty(ticket.shard);
    }

    /// A released request passes its turn on. `welcome` when it was accepted there: then the way
    /// is open for everybody. Follow with [`Self::turn_of`]. Harmless for one without the turn.
    pub fn passed(&mut self, ticket: Ticket, welcome: bool) {
        let Some(queue) = self.queues.get_mut(&ticket.shard) else { return };
        if queue.turn == Some(ticket.number) {
            queue.turn = None;
        }
        if welcome {
            queue.tried = None;
        }
        self.forget_if_empty(ticket.shard);
    }

    fn forget_if_empty(&mut self, shard: ShardId) {
        if self.queues.get(&shard).is_some_and(|q| q.waiting.is_empty() && q.turn.is_none()) {
            self.queues.remove(&shard);
        }
    }

    /// Lets the first of every queue look again at the next [`Self::turn`]: something may have
    /// changed that no epoch tells.
    pub fn look(&mut self) {
        for queue in self.queues.values_mut() {
            queue.look_at = Time::ZERO;
        }
    }

    /// Releases whoever can be, in every queue: `owner_epoch` tells the epoch of a shard's owner,
    /// if one is in reach. Call it after a change of the view, and at
    /// [`Self::deadline`].
    pub fn turn(
        &mut self,
        now: Time,
        owner_epoch: impl Fn(ShardId) -> Option<Epoch>,
        out: &mut Vec<Release>,
    ) {
        let shards: Vec<ShardId> = self.queues.keys().copied().collect();
        for shard in shards {
            self.turn_of(now, shard, owner_epoch(shard), out);
        }
    }

    /// Releases whoever can be, of one shard. `to` is the epoch of the owner in reach, if any.
    pub fn turn_of(
        &mut self,
        now: Time,
        shard: ShardId,
        to: Option<Epoch>,
        out: &mut Vec<Release>,
    ) {
        let Some(queue) = self.queues.get_mut(&shard) else { return };
        let from = out.len();
        for waiter in queue.waiting.values().filter(|waiter| waiter.until <= now) {
            let verdict = Verdict::TooLong(waiter.cause);
            out.push(Release { ticket: waiter.ticket, verdict });
        }
        let is_time_to_look = queue.look_at <= now;
        if is_time_to_look {
            queue.look_at = now + LOOK_AGAIN;
        }
        let is_open = to.is_some() && queue.tried < to;
        let is_free = queue.turn.is_none() || (queue.looks && is_open);
        if is_free && to.is_some() {
            let first = queue.waiting.values().find(|waiter| now < waiter.until);
            if let Some(first) = first.filter(|_| is_open || is_time_to_look) {
                queue.turn = Some(first.ticket.number);
                queue.looks = !is_open;
                let verdict = if is_open { Verdict::Go } else { Verdict::Look };
                out.push(Release { ticket: first.ticket, verdict });
            }
        }
        for release in &out[from..] {
            if let Some(waiter) = queue.waiting.remove(&release.ticket.number) {
                queue.bytes -= waiter.bytes;
                self.bytes -= waiter.bytes;
                self.waiting -= 1;
            }
        }
        self.forget_if_empty(shard);
    }

    /// When [`Self::turn`] has something to do even if nothing changes.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let of_queue = |queue: &Queue| {
            let until = queue.waiting.values().map(|waiter| waiter.until).min()?;
            // Whoever has the turn passes it on; until then there is nothing to look for.
            Some(if queue.turn.is_none() { until.min(queue.look_at) } else { until })
        };
        self.queues.values().filter_map(of_queue).min()
    }

    /// Panics when the sums do not agree with what they sum up.
    pub fn check_invariants(&self) {
        let waiting: usize = self.queues.values().map(|queue| queue.waiting.len()).sum();
        let bytes: usize = self.queues.values().map(|queue| queue.bytes).sum();
        assert_eq!((waiting, bytes), (self.waiting, self.bytes), "the sums over all queues");
        for queue in self.queues.values() {
            let sum: usize = queue.waiting.values().map(|waiter| waiter.bytes).sum();
            assert_eq!(sum, queue.bytes, "the bytes of one queue");
            assert!(queue.waiting.len() <= self.limits.shard_requests_max, "requests of a shard");
            assert!(queue.bytes <= self.limits.shard_bytes_max, "bytes of a shard");
            assert!(!queue.waiting.is_empty() || queue.turn.is_some(), "no empty queue is kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::id::NodeId;
    use proptest::prelude::*;

    use super::*;

    const SHARD: ShardId = ShardId(7);
    const LATE: Time = Time::from_micros(u64::MAX);

    fn ms(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    fn owner(counter: u64) -> Option<Epoch> {
        Some(Epoch { counter, node: NodeId(counter) })
    }

    fn wait(cause: Cause) -> Wait {
        let tried = owner(5);
        Wait { shard: SHARD, again: None, cause: Some(cause), tried, bytes: 10, deadline: LATE }
    }

    fn behind() -> Wait {
        Wait { cause: None, tried: None, ..wait(Cause::Moving) }
    }

    fn lot() -> Lot {
        Lot::new(Limits::default())
    }

    fn turn(lot: &mut Lot, at: Time, to: Option<Epoch>) -> Vec<(u64, Verdict)> {
        let mut out = Vec::new();
        lot.turn_of(at, SHARD, to, &mut out);
        lot.check_invariants();
        out.into_iter().map(|release| (release.ticket.number, release.verdict)).collect()
    }

    #[test]
    fn only_a_better_place_releases() {
        let mut lot = lot();
        let ticket = lot.enter(ms(0), &wait(Cause::Moving)).unwrap();
        for not_better in [None, owner(5), owner(4)] {
            assert_eq!(turn(&mut lot, ms(1), not_better), [], "{not_better:?}");
        }
        assert_eq!(turn(&mut lot, ms(1), owner(6)), [(ticket.number, Verdict::Go)]);
        lot.passed(ticket, false);
        assert!(lot.is_idle());
    }

    #[test]
    fn the_turn_goes_round_in_order() {
        let mut lot = lot();
        let tickets: Vec<Ticket> =
            (0..3).map(|_| lot.enter(ms(0), &wait(Cause::Moving)).unwrap()).collect();
        for ticket in tickets {
            assert_eq!(turn(&mut lot, ms(1), owner(6)), [(ticket.number, Verdict::Go)]);
            assert_eq!(turn(&mut lot, ms(1), owner(6)), [], "it has not passed the turn on");
            lot.passed(ticket, false);
        }
        assert!(lot.is_idle());
    }

    #[test]
    fn who_arrives_later_waits_behind() {
        let mut lot = lot();
        let first = lot.enter(ms(0), &wait(Cause::NoOwner)).unwrap();
        turn(&mut lot, ms(1), owner(6));
        assert!(lot.has_queue(SHARD), "the first has the turn");
        lot.enter(ms(1), &behind()).unwrap();
        assert_eq!(turn(&mut lot, ms(1), owner(6)), []);
        lot.passed(first, false);
        assert_eq!(turn(&mut lot, ms(1), owner(6)), [(2, Verdict::Go)]);
    }

    #[test]
    fn who_is_refused_again_gets_its_old_place_and_its_old_patience() {
        let mut lot = lot();
        let first = lot.enter(ms(0), &wait(Cause::Moving)).unwrap();
        lot.enter(ms(0), &wait(Cause::Moving)).unwrap();
        turn(&mut lot, ms(100), owner(6));
        let mut again = Wait { again: Some(first), ..wait(Cause::Moving) };
        again.tried = owner(6);
        lot.enter(ms(200), &again).unwrap();
        lot.passed(first, false);
        assert_eq!(turn(&mut lot, ms(201), owner(6)), []);
        assert_eq!(turn(&mut lot, ms(202), owner(7)), [(first.number, Verdict::Go)]);
        lot.passed(first, false);
        lot.enter(ms(300), &Wait { again: Some(first), ..wait(Cause::Moving) }).unwrap();
        let late = turn(&mut lot, ms(2000), None);
        assert_eq!(late[0], (first.number, Verdict::TooLong(Cause::Moving)), "2 s in all");
    }

    #[test]
    fn waiting_ends() {
        for (cause, longest) in [(Cause::Moving, 2000), (Cause::NoOwner, 10_000)] {
            let mut lot = lot();
            lot.enter(ms(0), &wait(cause)).unwrap();
            lot.enter(ms(1), &behind()).unwrap();
            assert_eq!(turn(&mut lot, ms(longest - 1), None), []);
            assert_eq!(turn(&mut lot, ms(longest), None), [(1, Verdict::TooLong(cause))]);
            assert_eq!(turn(&mut lot, ms(longest + 1), None), [(2, Verdict::TooLong(cause))]);
            assert!(lot.is_idle());
        }
        let mut lot = lot();
        lot.enter(ms(0), &Wait { deadline: ms(30), ..wait(Cause::NoOwner) }).unwrap();
        assert_eq!(lot.deadline(), Some(ms(30)));
        assert_eq!(turn(&mut lot, ms(30), owner(6)), [(1, Verdict::TooLong(Cause::NoOwner))]);
    }

    #[test]
    fn the_first_looks_again_from_time_to_time_alone() {
        let mut lot = lot();
        let first = lot.enter(ms(0), &wait(Cause::NoOwner)).unwrap();
        lot.enter(ms(0), &behind()).unwrap();
        assert_eq!(lot.deadline(), Some(ms(250)));
        assert_eq!(turn(&mut lot, ms(249), owner(5)), []);
        assert_eq!(turn(&mut lot, ms(250), None), [], "there is nowhere to look");
        assert_eq!(lot.deadline(), Some(ms(500)), "and nothing to do at once");
        assert_eq!(turn(&mut lot, ms(500), owner(5)), [(1, Verdict::Look)]);
        assert_eq!(turn(&mut lot, ms(501), owner(5)), [], "it has the turn");
        lot.passed(first, false);
        assert_eq!(turn(&mut lot, ms(502), owner(5)), [], "not all at once");
        assert_eq!(turn(&mut lot, ms(750), owner(5)), [(2, Verdict::Look)]);
    }

    #[test]
    fn a_better_place_does_not_wait_for_whoever_looks() {
        let mut lot = lot();
        let looks = lot.enter(ms(0), &wait(Cause::NoOwner)).unwrap();
        let next = lot.enter(ms(0), &behind()).unwrap();
        assert_eq!(turn(&mut lot, ms(250), owner(5)), [(looks.number, Verdict::Look)]);
        assert_eq!(turn(&mut lot, ms(251), owner(6)), [(next.number, Verdict::Go)]);
        lot.passed(looks, false);
        assert!(!lot.is_idle(), "it is no longer its turn");
        lot.passed(next, false);
        assert!(lot.is_idle());
    }

    #[test]
    fn a_welcome_opens_the_way_for_all() {
        let mut lot = lot();
        let first = lot.enter(ms(0), &wait(Cause::NoOwner)).unwrap();
        lot.enter(ms(0), &behind()).unwrap();
        turn(&mut lot, ms(250), owner(5));
        lot.passed(first, true);
        assert_eq!(turn(&mut lot, ms(251), owner(5)), [(2, Verdict::Go)]);
    }

    #[test]
    fn a_client_that_goes_away_leaves_no_trace() {
        let mut lot = lot();
        let waiting = lot.enter(ms(0), &wait(Cause::Moving)).unwrap();
        lot.leave(waiting);
        assert!(lot.is_idle());
        let released = lot.enter(ms(0), &wait(Cause::Moving)).unwrap();
        turn(&mut lot, ms(1), owner(6));
        lot.leave(released);
        lot.passed(released, false);
        assert!(lot.is_idle() && lot.deadline().is_none());
    }

    #[test]
    fn every_limit_holds() {
        let mut lot = lot();
        for _ in 0..64 {
            lot.enter(ms(0), &wait(Cause::Moving)).unwrap();
        }
        assert_eq!(lot.enter(ms(0), &wait(Cause::Moving)), Err(Full), "the 65th");
        let other = Wait { shard: ShardId(8), bytes: (1 << 20) - 10, ..wait(Cause::Moving) };
        lot.enter(ms(0), &other).unwrap();
        lot.enter(ms(0), &Wait { shard: ShardId(8), ..wait(Cause::Moving) }).unwrap();
        let byte = Wait { shard: ShardId(8), bytes: 1, ..wait(Cause::Moving) };
        assert_eq!(lot.enter(ms(0), &byte), Err(Full), "the byte after a MiB");
        let large = Wait { shard: ShardId(9), bytes: (1 << 20) + 1, ..wait(Cause::Moving) };
        assert_eq!(lot.enter(ms(0), &large), Err(Full));
        lot.check_invariants();

        let mut lot = Lot::new(Limits { requests_max: 2, bytes_max: 25, ..Limits::default() });
        let on = |shard| Wait { shard: ShardId(shard), ..wait(Cause::Moving) };
        lot.enter(ms(0), &on(1)).unwrap();
        assert_eq!(lot.enter(ms(0), &Wait { bytes: 16, ..on(2) }), Err(Full), "all bytes");
        lot.enter(ms(0), &on(2)).unwrap();
        assert_eq!(lot.enter(ms(0), &Wait { bytes: 0, ..on(3) }), Err(Full), "all requests");
    }

    proptest! {
        #[test]
        fn nobody_is_lost_and_nobody_overtakes(steps in proptest::collection::vec((0u8..5, 0u64..400), 1..120)) {
            let mut lot = lot();
            let (mut now, mut released, mut order) = (ms(0), Vec::new(), Vec::new());
            let mut inside = 0usize;
            for (step, arg) in steps {
                now += Duration::from_millis(arg);
                let mut out = Vec::new();
                match step {
                    0 => inside += usize::from(lot.enter(now, &wait(Cause::NoOwner)).is_ok()),
                    1 => inside += usize::from(lot.enter(now, &behind()).is_ok()),
                    2 => lot.turn(now, |_| owner(6), &mut out),
                    3 => lot.turn(now, |_| owner(5), &mut out),
                    _ => if let Some((ticket, _)) = released.pop() { lot.passed(ticket, arg % 2 == 0) },
                }
                lot.check_invariants();
                for release in out {
                    inside -= 1;
                    if !matches!(release.verdict, Verdict::TooLong(_)) {
                        order.push(release.ticket.number);
                        released.push((release.ticket, release.verdict));
                    }
                }
                let gone = released.iter().filter(|(_, verdict)| *verdict == Verdict::Go).count();
                prop_assert!(gone <= 1, "one turn at a time, beside those who look");
                prop_assert_eq!(inside, lot.waiting());
            }
            prop_assert!(order.is_sorted());
        }
    }
}
