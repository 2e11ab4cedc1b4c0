//! Metrics of copies.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::logic::replication::Lost;

/// What all feeds of a process count.
#[derive(Debug)]
pub(crate) struct FeedMeters {
    pub(super) sent: Counter,
    pub(super) received: Counter,
    pub(super) entries: Counter,
    pub(super) unacked: Gauge,
    pub(super) ack_seconds: Histogram,
    pub(super) copies: Gauge,
    pub(super) filled: Counter,
    pub(super) fills_lost: Counter,
}

impl FeedMeters {
    pub(super) fn new() -> Self {
        describe();
        let bytes = |direction| counter!("stead_replication_bytes_total", "direction" => direction);
        let fills = |outcome| counter!("stead_fills_total", "outcome" => outcome);
        Self {
            sent: bytes("out"),
            received: bytes("in"),
            entries: counter!("stead_replication_entries_total"),
            unacked: gauge!("stead_replication_unacked_bytes"),
            ack_seconds: histogram!("stead_replication_ack_seconds"),
            copies: gauge!("stead_copies"),
            filled: fills("done"),
            fills_lost: fills("lost"),
        }
    }

    pub(super) fn refused(&self, why: Lost) {
        counter!("stead_replication_refused_total", "why" => why.label()).increment(1);
    }
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        "stead_replication_entries_total",
        "Changes that were taken in from the owners of copies held here"
    );
    describe_counter!(
        "stead_replication_bytes_total",
        Unit::Bytes,
        "Bytes of streams to and from copies, by direction"
    );
    describe_gauge!(
        "stead_replication_unacked_bytes",
        Unit::Bytes,
        "What copies elsewhere have yet to acknowledge"
    );
    describe_histogram!(
        "stead_replication_ack_seconds",
        Unit::Seconds,
        "From a change until its copy had acknowledged it: the oldest of each acknowledgement"
    );
    describe_counter!(
        "stead_replication_refused_total",
        "Times that a copy elsewhere did not follow any more, by why"
    );
    describe_gauge!("stead_copies", "Complete copies held here of shards of other nodes");
    describe_counter!("stead_fills_total", "Copies elsewhere that were filled, by outcome");
}
