//! The node's metrics, as handles that are made once.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use stead_shared::refusal::Refusal;

use crate::store::core::UnreadableReason;

pub(crate) struct Metrics {
    pub(crate) sessions: Gauge,
    pub(crate) session_bytes: Gauge,
    pub(crate) sessions_expired: Counter,
    pub(crate) turns: Counter,
    pub(crate) turn_seconds: Histogram,
    pub(crate) turn_panics: Counter,
    pub(crate) turns_waiting: Gauge,
    pub(crate) turns_delayed: Counter,
    pub(crate) timers_fired: Counter,
    pub(crate) memory_full: Counter,
    pub(crate) disk_full: Counter,
    /// Requests that name a newer epoch than the one that is served here.
    pub(crate) stale_epochs: Counter,
    /// Requests for a shard that has moved on, answered with its owner.
    pub(crate) late_requests: Counter,
    replayed_whole: Counter,
    replayed_status: Counter,
    pub(crate) replays_unknown: Counter,
    pub(crate) answers_forgotten: Counter,
    pub(crate) executed_twice: Counter,
    unreadable_newer: Counter,
    unreadable_undecodable: Counter,
    refused_not_owner: Counter,
    refused_moving: Counter,
    refused_overloaded: Counter,
    refused_degraded: Counter,
    refused_quarantined: Counter,
    refused_deadline: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        describe();
        let refused = |refusal| counter!("stead_refusals_total", "refusal" => refusal);
        let replayed = |answer| counter!("stead_replayed_answers_total", "answer" => answer);
        let unreadable = |reason| counter!("stead_sessions_unreadable_total", "reason" => reason);
        Self {
            sessions: gauge!("stead_sessions"),
            session_bytes: gauge!("stead_session_bytes"),
            sessions_expired: counter!("stead_sessions_expired_total"),
            turns: counter!("stead_turns_total"),
            turn_seconds: histogram!("stead_turn_seconds"),
            turn_panics: counter!("stead_turn_panics_total"),
            turns_waiting: gauge!("stead_turns_waiting"),
            turns_delayed: counter!("stead_turns_delayed_total"),
            timers_fired: counter!("stead_timers_fired_total"),
            memory_full: counter!("stead_memory_full_total"),
            disk_full: counter!("stead_disk_full_total"),
            stale_epochs: counter!("stead_stale_epoch_refusals_total"),
            late_requests: counter!("stead_late_requests_total"),
            replayed_whole: replayed("whole"),
            replayed_status: replayed("status-only"),
            answers_forgotten: counter!("stead_answers_forgotten_total"),
            executed_twice: counter!("stead_requests_executed_twice_total"),
            replays_unknown: counter!("stead_replays_unknown_total"),
            unreadable_newer: unreadable("newer"),
            unreadable_undecodable: unreadable("undecodable"),
            refused_not_owner: refused("not-owner"),
            refused_moving: refused("moving"),
            refused_overloaded: refused("overloaded"),
            refused_degraded: refused("degraded"),
            refused_quarantined: refused("quarantined"),
            refused_deadline: refused("deadline-passed"),
        }
    }

    pub(crate) fn replayed(&self, is_whole: bool) {
        if is_whole { &self.replayed_whole } else { &self.replayed_status }.increment(1);
    }

    pub(crate) fn unreadable(&self, reason: &UnreadableReason) {
        match reason {
            UnreadableReason::Newer { .. } => self.unreadable_newer.increment(1),
            UnreadableReason::Undecodable { .. } => self.unreadable_undecodable.increment(1),
        }
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        let counter = match refusal {
            Refusal::NotOwner { .. } => &self.refused_not_owner,
            Refusal::Moving => &self.refused_moving,
            Refusal::Overloaded { .. } => &self.refused_overloaded,
            Refusal::Degraded => &self.refused_degraded,
            Refusal::Quarantined => &self.refused_quarantined,
            Refusal::DeadlinePassed => &self.refused_deadline,
        };
        counter.increment(1);
    }
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_gauge!("stead_sessions", "Sessions in memory");
    describe_gauge!(
        "stead_session_bytes",
        Unit::Bytes,
        "Memory of all sessions, with an estimate of their overhead"
    );
    describe_counter!("stead_sessions_expired_total", "Sessions whose time to live ran out");
    describe_counter!("stead_turns_total", "Turns begun: requests, timers and room messages");
    describe_histogram!(
        "stead_turn_seconds",
        Unit::Seconds,
        "From the begin of a turn until its answer's head"
    );
    describe_counter!("stead_turn_panics_total", "Turns whose handler panicked");
    describe_gauge!("stead_turns_waiting", "Requests that wait for the turn of their session");
    describe_counter!(
        "stead_turns_delayed_total",
        "Turns that waited because their shard changed faster than a copy of it could follow, or all \
         of them faster than the disk"
    );
    describe_counter!("stead_timers_fired_total", "Timer events given to the service");
    describe_counter!("stead_memory_full_total", "Changes discarded for want of memory");
    describe_counter!(
        "stead_disk_full_total",
        "Changes refused because the disk takes no more: it is full, or fails"
    );
    describe_counter!(
        "stead_replayed_answers_total",
        "Requests that had been applied before and were given their answer again"
    );
    describe_counter!(
        "stead_answers_forgotten_total",
        "Sessions whose answers were not kept for want of memory"
    );
    describe_counter!(
        "stead_requests_executed_twice_total",
        "Requests that both sides of a cut had executed, and that counters count once"
    );
    describe_counter!(
        "stead_replays_unknown_total",
        "Requests that may have been applied before, and were not run again"
    );
    describe_counter!(
        "stead_sessions_unreadable_total",
        "Times that a session's state was found unreadable and left alone"
    );
    describe_counter!(
        "stead_stale_epoch_refusals_total",
        "Requests refused because they name a newer epoch than the one served here"
    );
    describe_counter!(
        "stead_late_requests_total",
        "Requests for a shard that has moved on, answered with its new owner as a hint"
    );
    describe_counter!("stead_refusals_total", "Requests refused before they were executed");
}
