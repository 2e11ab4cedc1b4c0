//! The source's side of a handoff.
//!
//! ```text
//!            Prepare            Prepared           sealed, sent        CaughtUp
//! (start) ─────────▶ Preparing ─────────▶ Sealing ─────────▶ Sending ─────────▶ Granted ─▶ (done)
//!                        │ declined, late     │ late, target gone │                 │
//!                        ▼                    ▼                   ▼                 ▼ target gone
//!                    (nothing)            (grant to oneself: serve at counter + 1)  (take back)
//! ```
//!
//! Before the grant is recorded the source may abort at every step and serves on; a seal is a
//! promise, so after one it serves in a new epoch (R3, R4). After the grant only the target may
//! serve: the source sends it again until a claim at least as new is seen, after 500 ms through
//! every other live member too, and keeps the state until then.

use std::time::Duration;

use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::id::{NodeBoot, ShardId};
use stead_shared::time::Time;

/// How long a target may take to answer `Prepare`.
pub const PREPARE_MAX: Duration = Duration::from_secs(2);
/// How long shards may be sealed before the source takes them back (R4).
pub const SEALED_MAX: Duration = Duration::from_secs(2);
/// How often a grant is sent again.
pub const GRANT_EVERY: Duration = Duration::from_millis(100);
/// After which time a grant is also relayed.
pub const RELAY_AFTER: Duration = Duration::from_millis(500);

/// Where a handoff stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asked the target.
    Preparing {
        /// Give up then; nothing has happened yet.
        until: Time,
    },
    /// Gates are closed, running turns finish.
    Sealing {
        /// Abort then.
        until: Time,
    },
    /// State is on its way.
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

/// One handoff, seen from its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number.
    pub id: HandoffId,
    /// The target.
    pub to: NodeBoot,
    /// The shards, at the epochs in which this node served them.
    pub shards: Vec<ShardEpoch>,
    /// Where it stands.
    pub phase: Phase,
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
            Phase::Preparing { .. } | Phase::Granted { .. } => false,
        }
    }

    /// Whether its time is up at `now`.
    #[must_use]
    pub fn is_late(&self, now: Time) -> bool {
        match self.phase {
            Phase::Preparing { until } | Phase::Sealing { until } | Phase::Sending { until } => {
                until <= now
            }
            Phase::Granted { .. } => false,
        }
    }
}
