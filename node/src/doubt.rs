//! What the host does about a doubt (R11): answers that are ready wait, nothing begins.

use std::sync::{Arc, OnceLock};

use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};
use stead_shared::net::heard::Heard;
use tokio::time::Instant;

/// A host's way to know whether anybody was heard lately. One that was told of none is certain.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    heard: OnceLock<Arc<Heard>>,
}

impl Doubts {
    /// Listens to `heard` from now on. Only the first one counts.
    pub(crate) fn listen(&self, heard: Arc<Heard>) {
        // One process, one pair of ears.
        let _ = self.heard.set(heard);
    }

    /// Whether nothing may begin.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.heard.get().is_some_and(|heard| heard.is_in_doubt())
    }

    /// Looks at the clock: whether an answer that is ready now has to wait.
    pub(crate) fn must_wait(&self) -> bool {
        self.heard.get().is_some_and(|heard| heard.check())
    }

    /// Waits until there is no doubt.
    pub(crate) async fn certain(&self) {
        if let Some(heard) = self.heard.get() {
            heard.certain().await;
        }
    }
}

/// What is counted about doubts.
pub(crate) struct DoubtMeters {
    total: Counter,
    seconds: Histogram,
    begun: Option<Instant>,
}

impl DoubtMeters {
    pub(crate) fn new() -> Self {
        describe_counter!(
            "stead_doubts_total",
            "Times that this node had heard nobody for a second and asked who holds its shards"
        );
        describe_histogram!(
            "stead_doubt_seconds",
            metrics::Unit::Seconds,
            "How long answers waited until somebody had said who holds the shards"
        );
        let (total, seconds) = (counter!("stead_doubts_total"), histogram!("stead_doubt_seconds"));
        Self { total, seconds, begun: None }
    }

    pub(crate) fn begun(&mut self) {
        self.total.increment(1);
        self.begun = Some(Instant::now());
    }

    pub(crate) fn ended(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.seconds.record(begun.elapsed().as_secs_f64());
        }
    }
}
