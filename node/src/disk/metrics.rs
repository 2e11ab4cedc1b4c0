//! The disk's metrics, as handles that are made once.

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

pub(super) struct Metrics {
    pub(super) commits: Counter,
    pub(super) bytes: Counter,
    pub(super) sync_seconds: Histogram,
    pub(super) queue_bytes: Gauge,
    pub(super) failing: Gauge,
    pub(super) damaged: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        describe_counter!("stead_disk_commits_total", "Batches of changes given to the database");
        describe_counter!("stead_disk_bytes_total", "Bytes of rows given to the database");
        describe_histogram!(
            "stead_disk_sync_seconds",
            "From the begin of a sync until it and the witness were written"
        );
        describe_gauge!("stead_disk_queue_bytes", "Bytes of changes that are not on disk yet");
        describe_gauge!("stead_disk_failing", "1 while the disk refuses writes, else 0");
        describe_counter!(
            "stead_disk_damaged_shards_total",
            "Shards of which something that was on disk is lost or broken"
        );
        Self {
            commits: counter!("stead_disk_commits_total"),
            bytes: counter!("stead_disk_bytes_total"),
            sync_seconds: histogram!("stead_disk_sync_seconds"),
            queue_bytes: gauge!("stead_disk_queue_bytes"),
            failing: gauge!("stead_disk_failing"),
            damaged: counter!("stead_disk_damaged_shards_total"),
        }
    }
}
