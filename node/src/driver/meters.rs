//! The driver's metrics, as handles that are made once.

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use crate::logic::ownership::{Pending, Took};

pub(super) struct Meters {
    pub(super) handed_off: Counter,
    pub(super) lost: Counter,
    pub(super) taken_over: Counter,
    pub(super) yielded: Counter,
    pub(super) promoted: Counter,
    phase_seconds: [Histogram; 4],
    sealed_seconds: Histogram,
    pause_seconds: Histogram,
    pub(super) owned: Gauge,
    pub(super) under_replicated: Gauge,
    pub(super) minority: Gauge,
    pub(super) quarantined: Gauge,
    moving: Gauge,
    copying: Gauge,
    pending: [Gauge; 3],
    pending_bytes: Gauge,
    frozen: Gauge,
}

fn describe() {
    describe_counter!("stead_handoffs_total", "Handoffs that this node began, by outcome");
    describe_counter!("stead_handoff_bytes_total", "Bytes of state moved, by direction");
    describe_histogram!(
        "stead_handoff_sealed_seconds",
        "From the seal of a handoff to the claim of its target"
    );
    describe_counter!(
        "stead_shards_lost_total",
        "Shards that started empty because their owner died without a copy"
    );
    describe_counter!(
        "stead_shards_taken_over_total",
        "Shards claimed because nobody alive held them"
    );
    describe_counter!(
        "stead_shards_yielded_total",
        "Shards given up because another node served them at a higher epoch"
    );
    describe_counter!("stead_shards_promoted_total", "Shards of dead owners served on from copies");
    describe_counter!(
        "stead_offers_total",
        "Shards with sessions that were given up and offered to their new owner, by outcome"
    );
    describe_counter!(
        "stead_offered_sessions_total",
        "Sessions of shards that were given up, by what became of them"
    );
    describe_gauge!("stead_shards_owned", "Shards of this node, moving ones included");
    describe_gauge!(
        "stead_shards_under_replicated",
        "Shards of this node with fewer copies than wanted, where there are nodes for them"
    );
    describe_gauge!(
        "stead_minority",
        "1 while this node is cut off with the smaller part of its cluster"
    );
    describe_gauge!(
        "stead_shards_quarantined",
        "Shards of this node whose state on disk is damaged: their requests are refused"
    );
    describe_gauge!("stead_shards_moving", "Shards between two owners, seen from their source");
    describe_gauge!("stead_shards_copying", "Shards that are copied to another node and served");
    describe_gauge!("stead_moves_pending", "Shards that are to move and do not yet, by class");
    describe_gauge!("stead_moves_pending_bytes", "State that is to be handed off, copies included");
    describe_gauge!("stead_moves_frozen", "1 while a mass failure holds moves for balance up");
    describe_histogram!(
        "stead_session_pause_seconds",
        "The same once for each session that moved: how long it was not served"
    );
    describe_histogram!("stead_handoff_phase_seconds", "Time that each step of a handoff took");
    describe_counter!(
        "stead_control_unreadable_total",
        "Messages about ownership that could not be read"
    );
    describe_counter!(
        "stead_control_unsent_total",
        "Messages about ownership that found no open link; they are sent again"
    );
    describe_counter!(
        "stead_link_heads_unreadable_total",
        "Requests on links whose head could not be read"
    );
}

impl Meters {
    pub(super) fn new() -> Self {
        describe();
        Self {
            handed_off: counter!("stead_handoffs_total", "outcome" => "done"),
            lost: counter!("stead_shards_lost_total"),
            taken_over: counter!("stead_shards_taken_over_total"),
            yielded: counter!("stead_shards_yielded_total"),
            promoted: counter!("stead_shards_promoted_total"),
            phase_seconds: ["prepare", "copy", "seal", "grant"]
                .map(|phase| histogram!("stead_handoff_phase_seconds", "phase" => phase)),
            sealed_seconds: histogram!("stead_handoff_sealed_seconds"),
            pause_seconds: histogram!("stead_session_pause_seconds"),
            owned: gauge!("stead_shards_owned"),
            minority: gauge!("stead_minority"),
            under_replicated: gauge!("stead_shards_under_replicated"),
            quarantined: gauge!("stead_shards_quarantined"),
            moving: gauge!("stead_shards_moving"),
            copying: gauge!("stead_shards_copying"),
            pending: ["takeover", "drain", "balance"]
                .map(|class| gauge!("stead_moves_pending", "class" => class)),
            pending_bytes: gauge!("stead_moves_pending_bytes"),
            frozen: gauge!("stead_moves_frozen"),
        }
    }

    pub(super) fn handed_off(&self, took: Took, n_sessions: usize) {
        self.handed_off.increment(1);
        let pause = (took.sealed + took.granting).as_secs_f64();
        self.sealed_seconds.record(pause);
        self.pause_seconds.record_many(pause, n_sessions);
        let phases = [took.preparing, took.copying, took.sealed, took.granting];
        for (histogram, phase) in self.phase_seconds.iter().zip(phases) {
            histogram.record(phase.as_secs_f64());
        }
    }

    pub(super) fn pending(&self, pending: Pending) {
        let Pending { takeover, drain, balance, copying, moving, bytes, frozen } = pending;
        for (gauge, n) in self.pending.iter().zip([takeover, drain, balance]) {
            gauge.set(n as f64);
        }
        self.copying.set(copying as f64);
        self.moving.set(moving as f64);
        self.pending_bytes.set(bytes as f64);
        self.frozen.set(f64::from(u8::from(frozen)));
    }
}
