//! The source's side of a handoff.
//!
//! ```text
//!          Prepare           Prepared          little is left       quiet          CaughtUp
//! (start) ────────▶ Preparing ──────▶ Copying ──────────────▶ Sealing ────▶ Sending ──────▶ Granted ─▶ (done)
//!                       │ declined,      │ too hot, broken,       │ late, broken, │             │
//!                       ▼ late           ▼ not wanted any more    ▼ target gone   ▼             ▼ target gone,
//!                   (nothing)        (nothing)         (grant to oneself:                     no copy
//!                                                       serve at counter + 1)              (take back)
//! ```
//!
//! | phase | gate | writes | ends by |
//! |---|---|---|---|
//! | `Preparing` | open | go on | the target's answer, or 2 s |
//! | `Copying` | open | go on, tracked, throttled at last | [`Copying`]'s verdict |
//! | `Sealing` | closed | turns that run finish | they have; 2 s after the seal |
//! | `Sending` | closed | none | the target has all of it; 2 s after the seal |
//! | `Granted` | closed | none | a claim at least as new as the grant, or word of one |
//!
//! State is copied while the shard serves; only what changed since is sent behind the closed gate.
//! A target that speaks the protocol before that one gets everything behind it: `Prepared` leads
//! to `Sealing` at once.
//!
//! Before the grant is recorded the source may abort at every step and serves on; a seal is a
//! promise, so after one it serves in a new epoch (R3, R4). After the grant only the target may
//! serve: the source sends it again until a claim at least as new is seen, after 500 ms through
//! every other live member too, and keeps the state until then.

use std::time::Duration;

use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::id::{NodeBoot, ShardId};
use stead_shared::time::Time;

use super::copying::Copying;

/// How long a target may take to answer `Prepare`.
pub const PREPARE_MAX: Duration = Duration::from_secs(2);
/// How long shards may be sealed before the source takes them back (R4).
pub const SEALED_MAX: Duration = Duration::from_secs(2);
/// How often a grant is sent again.
pub const GRANT_EVERY: Duration = Duration::from_millis(100);
/// After which time a grant is also relayed.
pub const RELAY_AFTER: Duration = Duration::from_millis(500);

/// Why shards move (R10). Takeover and genesis are not handoffs: nobody hands off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The source leaves: never frozen, to any ready node, no budget.
    Drain,
    /// Placement wants them elsewhere: only while the cluster is calm, within the budget.
    Balance,
}

/// Where a handoff stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Asked the target.
    Preparing {
        /// Give up then; nothing has happened yet.
        until: Time,
    },
    /// State is on its way, and the shards serve on.
    Copying(Copying),
    /// Gates are closed, running turns finish.
    Sealing {
        /// Abort then.
        until: Time,
    },
    /// The last changes are on their way.
    Sending {
        /// Abort then.
        until: Time,
    },
    /// The target owns the shards.
    Granted {
        /// Since when.
        since: Time,
        /// When to send the grant again.
        resend_at: Time,
    },
}

/// When each step of a handoff began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Steps {
    /// The target was asked.
    pub asked: Time,
    /// The copy began.
    pub copied: Option<Time>,
    /// The gates were closed.
    pub sealed: Option<Time>,
    /// The target was granted the shards.
    pub granted: Option<Time>,
}

/// One handoff, seen from its source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outgoing {
    /// Its number.
    pub id: HandoffId,
    /// The target.
    pub to: NodeBoot,
    /// Why.
    pub class: Class,
    /// The shards, at the epochs in which this node served them.
    pub shards: Vec<ShardEpoch>,
    /// Where it stands.
    pub phase: Phase,
    /// How it came there.
    pub steps: Steps,
}

impl Outgoing {
    /// The shards' ids.
    pub fn ids(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.shards.iter().map(|at| at.shard)
    }

    /// The epochs in which the target serves after the grant.
    #[must_use]
    pub fn granted(&self) -> Vec<ShardEpoch> {
        let next =
            |at: &ShardEpoch| ShardEpoch { shard: at.shard, epoch: at.epoch.next(self.to.node) };
        self.shards.iter().map(next).collect()
    }

    /// Whether gates are closed and nothing is granted yet.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        match self.phase {
            Phase::Sealing { .. } | Phase::Sending { .. } => true,
            Phase::Preparing { .. } | Phase::Copying(_) | Phase::Granted { .. } => false,
        }
    }

    /// Whether it is under way and can be called off without anybody noticing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self.phase {
            Phase::Preparing { .. } | Phase::Copying(_) => true,
            Phase::Sealing { .. } | Phase::Sending { .. } | Phase::Granted { .. } => false,
        }
    }

    /// Whether it takes one of the streams that a node may have. Once granted it waits for a
    /// claim and sends nothing more.
    #[must_use]
    pub fn holds_stream(&self) -> bool {
        match self.phase {
            Phase::Preparing { .. }
            | Phase::Copying(_)
            | Phase::Sealing { .. }
            | Phase::Sending { .. } => true,
            Phase::Granted { .. } => false,
        }
    }

    /// Shows `visit` every moment that is remembered, and how long after it something may happen.
    pub(super) fn each_time(&mut self, visit: &mut dyn FnMut(&mut Time, Duration)) {
        match &mut self.phase {
            Phase::Preparing { until } | Phase::Sealing { until } | Phase::Sending { until } => {
                visit(until, Duration::ZERO);
            }
            Phase::Copying(copying) => copying.each_time(visit),
            Phase::Granted { since, resend_at } => {
                visit(since, RELAY_AFTER);
                visit(resend_at, Duration::ZERO);
            }
        }
        let Steps { asked, copied, sealed, granted } = &mut self.steps;
        visit(asked, Duration::ZERO);
        for at in [copied, sealed, granted].into_iter().flatten() {
            visit(at, Duration::ZERO);
        }
    }

    /// Whether its time is up at `now`.
    #[must_use]
    pub fn is_late(&self, now: Time) -> bool {
        match self.phase {
            Phase::Preparing { until } | Phase::Sealing { until } | Phase::Sending { until } => {
                until <= now
            }
            Phase::Copying(copying) => copying.is_silent(now),
            Phase::Granted { .. } => false,
        }
    }
}
