//! What the link counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use crate::wire::link::CloseReason;

/// Counters of one connection, or the sums of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Connections.
    pub connections: u64,
    /// Streams whose halves are not all dropped.
    pub streams: u64,
    /// Calls without an answer, ours and the peer's.
    pub calls: u64,
    /// Body bytes that arrived and were not read.
    pub held_bytes: u64,
    /// Bytes that wait to be written.
    pub queued_bytes: u64,
    /// Frames written.
    pub frames: u64,
    /// System calls (writes) that it took.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

impl LinkStats {
    pub(super) fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.streams += other.streams;
        self.calls += other.calls;
        self.held_bytes += other.held_bytes;
        self.queued_bytes += other.queued_bytes;
        self.frames += other.frames;
        self.writes += other.writes;
        self.written_bytes += other.written_bytes;
    }
}

/// Handles to the metrics of all links of a process, made once.
pub(super) struct Meters {
    /// `stead_link_frames_per_write`: the larger, the fewer system calls per request.
    pub(super) frames_per_write: Histogram,
    /// `stead_link_connections`: open connections, both kinds.
    pub(super) connections: Gauge,
    /// `stead_link_closed_total{reason}`, in the order of [`CloseReason::ALL`].
    closed: [(Counter, AtomicU64); CloseReason::ALL.len()],
}

impl Meters {
    pub(super) fn new() -> Self {
        describe_histogram!(
            "stead_link_frames_per_write",
            "Frames that one write to a link carried; more means fewer system calls"
        );
        describe_gauge!("stead_link_connections", "Open connections to other members");
        describe_counter!(
            "stead_link_closed_total",
            "Connections that ended or never came to be, by reason"
        );
        Self {
            frames_per_write: histogram!("stead_link_frames_per_write"),
            connections: gauge!("stead_link_connections"),
            closed: CloseReason::ALL.map(|reason| {
                let counter = counter!("stead_link_closed_total", "reason" => reason.token());
                (counter, AtomicU64::new(0))
            }),
        }
    }

    pub(super) fn count_close(&self, reason: CloseReason) {
        if let Some((counter, count)) = self.closed.get(reason as usize - 1) {
            counter.increment(1);
            count.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn closed(&self, reason: CloseReason) -> u64 {
        self.closed.get(reason as usize - 1).map_or(0, |(_, count)| count.load(Relaxed))
    }
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}
