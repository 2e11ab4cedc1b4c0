//! What follows when an attempt did not end in an answer.
//!
//! | event | next |
//! |---|---|
//! | `not-owner`, claim above every epoch tried | there, at most [`REDIRECTS_MAX`] times |
//! | `not-owner` otherwise | wait for an owner |
//! | `moving` | wait for the move to end |
//! | `overloaded`, `degraded`, `quarantined` | passed on |
//! | its link closed, nothing sent | again at once: a new link shows whether it is there |
//! | owner unreachable, nothing sent | wait for an owner |
//! | its link closed after bytes were sent: its owner died | again, for at most [`REPLAYS_MAX`] owners, if that is harmless, else unknown |
//! | broken otherwise, or an answer of a past epoch | the same, if the budget allows it |
//! | its owner does not apply requests once, and it may have been applied | unknown |
//! | out of time | unknown once something was sent, else what it waited for |
//!
//! A request that may have been executed is never reported as refused, whatever a later attempt
//! says: [`Trail`] remembers.

use std::time::Duration;

use stead_shared::id::Epoch;
use stead_shared::park::Cause;
use stead_shared::refusal::Refusal;
use stead_shared::rules::Rules;

/// Most `not-owner` answers that are followed. Each leads to a higher epoch, so more than one is
/// already rare.
pub const REDIRECTS_MAX: u8 = 3;

/// Most owners whose links close under a request that is sent again. One that kills its owner should
/// not kill all of them.
pub const REPLAYS_MAX: u16 = 3;

/// Most attempts of one request, whatever their reasons. Parking bounds them too: 10 s of
/// waiting with a look every 250 ms, and some more.
pub const ATTEMPTS_MAX: u16 = 64;

/// Which requests are sent again when they may have been executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// Those that change nothing (RFC 9110 §9.2.1).
    Reads,
    /// All whose body is still here: others only to nodes that apply each request once.
    #[default]
    All,
}

/// What happened to an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The node did not execute it.
    Refused(Refusal),
    /// The link closed, and no byte of it was sent.
    Unsent,
    /// There is no link.
    Unreachable,
    /// Its link closed after bytes of it were sent, and no answer had begun.
    Cut(Sent),
    /// Its stream ended after bytes of it were sent, and no answer had begun.
    Broken(Sent),
    /// It may have been executed, and the owner would execute it again.
    NotOnce,
    /// The answer is of an epoch below one known when the request was sent: whoever gave it had
    /// been replaced.
    Stale(Sent),
    /// The deadline passed.
    OutOfTime {
        /// Whether this attempt's bytes were sent.
        sent: bool,
    },
}

/// What was sent, of a request that may have been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The method is safe.
    pub is_read: bool,
    /// Every byte of the body that was sent is still here.
    pub is_kept: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send it to the owner in this epoch, at once.
    Redirect(Epoch),
    /// Wait for a better place to send it to.
    Park(Cause),
    /// Send it as if for the first time.
    AtOnce,
    /// Send it again to whoever is the owner now, which a link confirms.
    Replay,
    /// The same; the retry budget must allow it.
    Again,
    /// Tell the client.
    Fail(Failure),
}

/// What the client is told when nothing helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not executed: the shard is moving.
    Moving,
    /// Not executed: no owner in reach.
    NoOwner,
    /// Not executed: too much to do; come back after this time.
    Overloaded(Duration),
    /// Not executed: too few copies.
    Degraded,
    /// Not executed: set aside.
    Quarantined,
    /// May have been executed: the connection to the owner broke.
    Unknown,
    /// May have been executed: no answer in time.
    UnknownInTime,
}

/// What one request has been through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trail {
    rules: Rules,
    attempts: u16,
    /// Attempts that may have been executed. Only they count for the nodes: what was refused is
    /// as if it had never been sent.
    maybe_run: u16,
    redirects: u8,
    /// Owners whose links closed under it, and the epoch of the last of them: all connections of a
    /// process that dies close one after the other.
    n_cut: u16,
    cut_at: Option<Epoch>,
    highest: Option<Epoch>,
}

impl Trail {
    /// A request that has not been sent. All rules are on outside tests.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            attempts: 0,
            maybe_run: 0,
            redirects: 0,
            n_cut: 0,
            cut_at: None,
            highest: None,
        }
    }

    /// Whether a hint may lead to the owner in `epoch`: only upwards (R9), for two that take each
    /// other for the owner would send a request back and forth.
    #[must_use]
    pub fn leads_to(&self, epoch: Epoch) -> bool {
        self.highest < Some(epoch) || !self.rules.newest_serves
    }

    /// The owner in `epoch` is about to be tried.
    pub fn aim(&mut self, epoch: Epoch) {
        self.highest = self.highest.max(Some(epoch));
    }

    /// The request is about to be sent. The number of this attempt among those that may be
    /// executed, from 1: a node runs any request that no node can have run before.
    pub fn begin(&mut self) -> u16 {
        self.attempts += 1;
        self.maybe_run + 1
    }

    /// Whether it was sent only once so far.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.attempts <= 1
    }

    /// Whether an attempt may have been executed.
    #[must_use]
    pub fn may_have_run(&self) -> bool {
        0 < self.maybe_run
    }

    /// The highest epoch whose owner was tried.
    #[must_use]
    pub fn highest(&self) -> Option<Epoch> {
        self.highest
    }

    /// Decides what follows.
    pub fn next(&mut self, event: &Event, replay: Replay) -> Next {
        let may_repeat = self.may_repeat(event, replay);
        let next = match event {
            Event::Refused(refusal) => self.refused(refusal),
            Event::Unsent => Next::AtOnce,
            Event::Unreachable => Next::Park(Cause::NoOwner),
            Event::Cut(_) if may_repeat && self.is_cut_seldom() => Next::Replay,
            Event::Broken(_) | Event::Stale(_) if may_repeat => Next::Again,
            Event::Cut(_) | Event::Broken(_) | Event::Stale(_) | Event::NotOnce => {
                Next::Fail(Failure::Unknown)
            }
            Event::OutOfTime { sent: true } => Next::Fail(Failure::UnknownInTime),
            Event::OutOfTime { sent: false } => Next::Fail(Failure::NoOwner),
        };
        match next {
            Next::Fail(failure) => Next::Fail(self.truly(failure)),
            Next::Redirect(_) | Next::Park(_) | Next::AtOnce | Next::Replay | Next::Again
                if ATTEMPTS_MAX <= self.attempts =>
            {
                Next::Fail(self.truly(Failure::NoOwner))
            }
            Next::Redirect(_) | Next::Park(_) | Next::AtOnce | Next::Replay | Next::Again => next,
        }
    }

    /// Counts an attempt that may have been executed. Whether another one does no harm.
    fn may_repeat(&mut self, event: &Event, replay: Replay) -> bool {
        let (Event::Cut(sent) | Event::Broken(sent) | Event::Stale(sent)) = event else {
            return false;
        };
        self.maybe_run += 1;
        (sent.is_read || replay == Replay::All) && sent.is_kept
    }

    /// Counts the owner whose link closed. Whether there were few.
    fn is_cut_seldom(&mut self) -> bool {
        if self.n_cut == 0 || self.cut_at != self.highest {
            self.n_cut += 1;
            self.cut_at = self.highest;
        }
        self.n_cut <= REPLAYS_MAX
    }

    fn refused(&mut self, refusal: &Refusal) -> Next {
        match refusal {
            Refusal::NotOwner { claim } => {
                let hint = claim.map(|claim| claim.epoch);
                match hint.filter(|&epoch| self.leads_to(epoch)) {
                    Some(epoch) if self.redirects < REDIRECTS_MAX => {
                        self.redirects += 1;
                        Next::Redirect(epoch)
                    }
                    Some(_) | None => Next::Park(Cause::NoOwner),
                }
            }
            Refusal::Moving => Next::Park(Cause::Moving),
            Refusal::Overloaded { retry_after_ms } => {
                let after = Duration::from_millis(u64::from(*retry_after_ms));
                Next::Fail(Failure::Overloaded(after))
            }
            Refusal::DeadlinePassed => Next::Fail(Failure::Overloaded(Duration::from_secs(1))),
            Refusal::Degraded => Next::Fail(Failure::Degraded),
            Refusal::Quarantined => Next::Fail(Failure::Quarantined),
        }
    }

    /// A failure as it may be told: "not executed" only when no attempt may have been.
    #[must_use]
    pub fn truly(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Unknown | Failure::UnknownInTime => failure,
            Failure::Moving
            | Failure::NoOwner
            | Failure::Overloaded(_)
            | Failure::Degraded
            | Failure::Quarantined => {
                if self.maybe_run > 0 {
                    Failure::Unknown
                } else {
                    failure
                }
            }
        }
    }
}

/// How much may be retried after errors: one in ten requests, so that retries cannot double the
/// load of a cluster in trouble.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Tenths of a retry.
    tenths: u64,
    requests_seen: u64,
}

/// Most retries that can be saved up, and what a new process begins with.
const SAVED_MAX: u64 = 100;
const SAVED_FIRST: u64 = 10;

impl Default for Budget {
    fn default() -> Self {
        Self { tenths: SAVED_FIRST * 10, requests_seen: 0 }
    }
}

impl Budget {
    /// Takes one retry out, when there is one. `requests` is the number of first attempts since
    /// the start.
    pub fn withdraw(&mut self, requests: u64) -> bool {
        let earned = requests.saturating_sub(self.requests_seen);
        self.requests_seen = self.requests_seen.max(requests);
        self.tenths = self.tenths.saturating_add(earned).min(SAVED_MAX * 10);
        match self.tenths.checked_sub(10) {
            Some(left) => {
                self.tenths = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use stead_shared::id::NodeId;
    use stead_shared::refusal::Claim;

    use super::*;

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, node: NodeId(1) }
    }

    fn not_owner(counter: Option<u64>) -> Event {
        let claim = counter.map(|counter| Claim { epoch: epoch(counter) });
        Event::Refused(Refusal::NotOwner { claim })
    }

    const READ: Sent = Sent { is_read: true, is_kept: true };
    const WRITE: Sent = Sent { is_read: false, is_kept: true };
    const LARGE: Sent = Sent { is_read: false, is_kept: false };

    /// What follows `event` when the one attempt so far was at epoch 5.
    fn after(event: Event, replay: Replay) -> Next {
        let mut trail = Trail::new(Rules::ALL);
        trail.aim(epoch(5));
        trail.begin();
        trail.next(&event, replay)
    }

    #[test]
    fn each_event_has_its_answer() {
        let second = Duration::from_secs(1);
        for (event, want) in [
            (not_owner(Some(6)), Next::Redirect(epoch(6))),
            (not_owner(Some(5)), Next::Park(Cause::NoOwner)),
            (not_owner(Some(4)), Next::Park(Cause::NoOwner)),
            (not_owner(None), Next::Park(Cause::NoOwner)),
            (Event::Refused(Refusal::Moving), Next::Park(Cause::Moving)),
            (
                Event::Refused(Refusal::Overloaded { retry_after_ms: 1000 }),
                Next::Fail(Failure::Overloaded(second)),
            ),
            (Event::Refused(Refusal::DeadlinePassed), Next::Fail(Failure::Overloaded(second))),
            (Event::Refused(Refusal::Degraded), Next::Fail(Failure::Degraded)),
            (Event::Refused(Refusal::Quarantined), Next::Fail(Failure::Quarantined)),
            (Event::Unsent, Next::AtOnce),
            (Event::Unreachable, Next::Park(Cause::NoOwner)),
            (Event::Broken(READ), Next::Again),
            (Event::Broken(WRITE), Next::Fail(Failure::Unknown)),
            (Event::Broken(LARGE), Next::Fail(Failure::Unknown)),
            (Event::Cut(READ), Next::Replay),
            (Event::Cut(WRITE), Next::Fail(Failure::Unknown)),
            (Event::NotOnce, Next::Fail(Failure::Unknown)),
            (Event::Stale(READ), Next::Again),
            (Event::Stale(WRITE), Next::Fail(Failure::Unknown)),
            (Event::OutOfTime { sent: true }, Next::Fail(Failure::UnknownInTime)),
            (Event::OutOfTime { sent: false }, Next::Fail(Failure::NoOwner)),
        ] {
            assert_eq!(after(event.clone(), Replay::Reads), want, "{event:?}");
        }
    }

    #[test]
    fn writes_are_replayed_only_where_nodes_apply_them_once() {
        assert_eq!(after(Event::Broken(WRITE), Replay::All), Next::Again);
        assert_eq!(after(Event::Stale(WRITE), Replay::All), Next::Again);
        assert_eq!(after(Event::Cut(WRITE), Replay::All), Next::Replay);
        assert_eq!(after(Event::Cut(LARGE), Replay::All), Next::Fail(Failure::Unknown));
        assert_eq!(after(Event::Broken(LARGE), Replay::All), Next::Fail(Failure::Unknown));
    }

    #[test]
    fn a_request_that_kills_its_owners_does_not_kill_all_of_them() {
        let mut trail = Trail::new(Rules::ALL);
        for attempt in 1..=REPLAYS_MAX {
            trail.aim(epoch(u64::from(attempt)));
            assert_eq!(trail.begin(), attempt);
            assert_eq!(trail.next(&Event::Cut(WRITE), Replay::All), Next::Replay);
            assert!(trail.may_have_run());
        }
        trail.aim(epoch(9));
        trail.begin();
        assert_eq!(trail.next(&Event::Cut(WRITE), Replay::All), Next::Fail(Failure::Unknown));
    }

    #[test]
    fn redirects_lead_upwards_and_end() {
        let mut trail = Trail::new(Rules::ALL);
        trail.aim(epoch(5));
        trail.begin();
        for counter in [6, 8, 9] {
            let next = trail.next(&not_owner(Some(counter)), Replay::Reads);
            assert_eq!(next, Next::Redirect(epoch(counter)));
            trail.aim(epoch(counter));
            trail.begin();
            let back = trail.next(&not_owner(Some(counter - 1)), Replay::Reads);
            assert_eq!(back, Next::Park(Cause::NoOwner), "never down to {}", counter - 1);
        }
        assert_eq!(trail.next(&not_owner(Some(20)), Replay::Reads), Next::Park(Cause::NoOwner));
        let mut off = Trail::new(Rules { newest_serves: false, ..Rules::ALL });
        off.aim(epoch(5));
        assert_eq!(off.next(&not_owner(Some(4)), Replay::Reads), Next::Redirect(epoch(4)));
    }

    #[test]
    fn what_may_have_been_executed_is_never_called_refused() {
        let mut trail = Trail::new(Rules::ALL);
        trail.aim(epoch(5));
        trail.begin();
        assert_eq!(trail.next(&Event::Broken(READ), Replay::Reads), Next::Again);
        trail.aim(epoch(6));
        trail.begin();
        let refusal = Event::Refused(Refusal::Degraded);
        assert_eq!(trail.next(&refusal, Replay::Reads), Next::Fail(Failure::Unknown));
        assert_eq!(trail.truly(Failure::Moving), Failure::Unknown);
    }

    #[test]
    fn attempts_end() {
        let mut trail = Trail::new(Rules::ALL);
        for _ in 1..ATTEMPTS_MAX {
            trail.begin();
            assert_eq!(trail.next(&Event::Unreachable, Replay::All), Next::Park(Cause::NoOwner));
        }
        trail.begin();
        assert_eq!(trail.next(&Event::Unreachable, Replay::All), Next::Fail(Failure::NoOwner));
    }

    #[test]
    fn one_request_in_ten_may_be_retried() {
        let mut budget = Budget::default();
        let granted = |budget: &mut Budget, requests| {
            std::iter::repeat_with(|| budget.withdraw(requests)).take_while(|&ok| ok).count()
        };
        assert_eq!(granted(&mut budget, 0), 10, "what a new process begins with");
        assert_eq!(granted(&mut budget, 9), 0);
        assert_eq!(granted(&mut budget, 10), 1);
        assert_eq!(granted(&mut budget, 260), 25);
        assert_eq!(granted(&mut budget, 1_000_000), 100, "no more is saved up");
    }
}
