//! What is counted. Handles are made once; labels have few values, known here.

use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use stead_shared::net::parking;

use crate::logic::framing::Violation;
use crate::logic::retry::Next;

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Why a request was sent again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Retried {
    Redirect,
    Parked,
    Replay,
    Error,
}

/// Handles of the proxy's metrics.
pub(crate) struct Metrics {
    requests: [Counter; 5],
    pub(crate) seconds: Histogram,
    pub(crate) connections: Gauge,
    pub(crate) upgraded: Gauge,
    retries: [Counter; 4],
    pub(crate) retries_denied: Counter,
    pub(crate) stale_answers: Counter,
    pub(crate) unknown: Counter,
    pub(crate) accusations: Counter,
    pub(crate) cookies_issued: Counter,
    pub(crate) aborted: Counter,
    pub(crate) timeouts: Counter,
    malformed: Counter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics(..)")
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let retries = |reason| counter!("stead_retries_total", "reason" => reason);
        Self {
            requests: CLASSES.map(|class| counter!("stead_requests_total", "class" => class)),
            seconds: histogram!("stead_request_seconds"),
            connections: gauge!("stead_router_connections"),
            upgraded: gauge!("stead_router_upgraded_connections"),
            retries: ["redirect", "parked", "replay", "error"].map(retries),
            retries_denied: counter!("stead_retries_denied_total"),
            stale_answers: counter!("stead_router_stale_answers_total"),
            unknown: counter!("stead_router_unknown_total"),
            accusations: counter!("stead_router_accusations_total"),
            cookies_issued: counter!("stead_router_cookies_issued_total"),
            aborted: counter!("stead_router_aborted_total"),
            timeouts: counter!("stead_router_timeouts_total"),
            malformed: counter!("stead_router_malformed_total"),
        }
    }

    pub(crate) fn answered(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(requests) = self.requests.get(class) {
            requests.increment(1);
        }
        self.seconds.record(took.as_secs_f64());
    }

    pub(crate) fn retried(&self, next: &Next) {
        let why = match next {
            Next::Redirect(_) => Retried::Redirect,
            Next::Park(_) => Retried::Parked,
            Next::Replay => Retried::Replay,
            Next::Again => Retried::Error,
            Next::AtOnce | Next::Fail(_) => return,
        };
        self.retries[why as usize].increment(1);
    }

    pub(crate) fn violated(&self, violation: Violation) {
        self.malformed.increment(1);
        tracing::debug!(violation = violation.detail(), "refused a request");
    }

    pub(crate) fn malformed(&self) {
        self.malformed.increment(1);
    }
}

/// Handles of the metrics of waiting requests.
pub(crate) fn parking() -> parking::Meters {
    let ended = |outcome| counter!("stead_router_park_total", "outcome" => outcome);
    parking::Meters {
        waiting: gauge!("stead_router_parked"),
        released: ended("released"),
        too_long: ended("too-long"),
        full: ended("full"),
        left: ended("left"),
        seconds: histogram!("stead_router_park_seconds"),
    }
}

/// Describes the proxy's metrics to the installed recorder, and makes those that count events
/// show up as zero.
pub fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("stead_requests_total", "Requests answered, by class of their status");
    describe_histogram!(
        "stead_request_seconds",
        Unit::Seconds,
        "Time from a request's head to its answer's head"
    );
    describe_gauge!("stead_router_connections", "Connections of clients that are open");
    describe_gauge!(
        "stead_router_upgraded_connections",
        "Connections of clients that were upgraded, to WebSocket for instance"
    );
    describe_gauge!("stead_router_parked", "Requests that wait for their shard's owner");
    describe_counter!("stead_router_park_total", "Waits for a shard's owner, by how they ended");
    describe_histogram!(
        "stead_router_park_seconds",
        Unit::Seconds,
        "How long each wait for a shard's owner lasted"
    );
    describe_counter!("stead_retries_total", "Requests sent again, by reason");
    describe_counter!("stead_retries_denied_total", "Requests not sent again: budget used up");
    describe_counter!(
        "stead_router_stale_answers_total",
        "Answers thrown away because their epoch was over"
    );
    describe_counter!(
        "stead_router_unknown_total",
        "Requests that failed and may have been executed (stead-outcome: unknown)"
    );
    describe_counter!("stead_router_accusations_total", "Owners found out of reach");
    describe_counter!("stead_router_cookies_issued_total", "Sticky cookies issued");
    describe_counter!(
        "stead_router_aborted_total",
        "Answers cut off because their node's side broke"
    );
    describe_counter!("stead_router_timeouts_total", "Clients that took too long and were cut off");
    describe_counter!("stead_router_malformed_total", "Requests refused as malformed");
    let _all = (Metrics::new(), parking());
}
