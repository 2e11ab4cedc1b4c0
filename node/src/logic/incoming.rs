//! The target's side of a handoff.
//!
//! ```text
//!         Prepare, answered            all state here          Grant
//! (none) ──────────────────▶ Receiving ───────────▶ CaughtUp ─────────▶ (serving, claim told)
//!                                │ Abort, source gone,  │ Abort
//!                                ▼ stream broken        ▼
//!                             (dropped)              (dropped)
//! ```
//!
//! A copy that is caught up is not the owner's. It stays until the source grants or aborts; when
//! the source dies first, whoever may then claim the shards (see [`super::genesis`]) uses the copy
//! if it is this node. A grant whose copy is gone is answered `NoCopy`, and the source takes the
//! shards back: a dropped copy is a promise too. Only that answer undoes a grant; a `Declined`
//! belongs to `Prepare`, which may come twice and late.
//!
//! A copy takes as long as it takes: the source serves meanwhile. What is bounded is the wait for
//! its stream to begin; one that stands still is broken off by whoever reads it.

use std::time::Duration;

use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::time::Time;

/// How long a copy outlives its dead source.
pub const KEEP_AFTER_DEATH: Duration = Duration::from_secs(30);

/// How long a stream may take to begin after it was agreed to.
pub const BEGIN_MAX: Duration = Duration::from_secs(10);

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// State is coming, or about to.
    Receiving {
        /// Its stream has begun.
        begun: bool,
    },
    /// Everything up to the seal is here.
    CaughtUp,
}

/// One handoff, seen from its target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Incoming {
    /// Its number at the source.
    pub id: HandoffId,
    /// The shards, at the source's epochs.
    pub shards: Vec<ShardEpoch>,
    /// The source does not leave: the shards come for balance.
    pub for_balance: bool,
    /// Where it stands.
    pub phase: Phase,
    /// Since when.
    pub since: Time,
    /// When the source was seen dead.
    pub orphan_since: Option<Time>,
}

impl Incoming {
    /// Whether it takes one of the streams that a node may have.
    #[must_use]
    pub fn holds_stream(&self) -> bool {
        match self.phase {
            Phase::Receiving { .. } => true,
            Phase::CaughtUp => false,
        }
    }
}
