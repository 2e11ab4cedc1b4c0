//! The target's side of a handoff.
//!
//! ```text
//!         Prepare, answered            all state here          Grant
//! (none) ──────────────────▶ Receiving ───────────▶ CaughtUp ─────────▶ (serving, claim told)
//!                                │ Abort, source gone   │ Abort
//!                                ▼                      ▼
//!                             (dropped)              (dropped)
//! ```
//!
//! A copy that is caught up is not the owner's. It stays until the source grants or aborts; when
//! the source dies first, whoever may then claim the shards (see [`super::genesis`]) uses the copy
//! if it is this node. A grant whose copy is gone is answered `NoCopy`, and the source takes the
//! shards back: a dropped copy is a promise too. Only that answer undoes a grant; a `Declined`
//! belongs to `Prepare`, which may come twice and late.

use std::time::Duration;

use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::time::Time;

/// How long a copy outlives its dead source.
pub const KEEP_AFTER_DEATH: Duration = Duration::from_secs(30);

/// How long state may be on its way: longer than a source keeps shards sealed.
pub const RECEIVE_MAX: Duration = Duration::from_secs(10);

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// State is coming.
    Receiving,
    /// Everything up to the seal is here.
    CaughtUp,
}

/// One handoff, seen from its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its number at the source.
    pub id: HandoffId,
    /// The shards, at the source's epochs.
    pub shards: Vec<ShardEpoch>,
    /// Where it stands.
    pub phase: Phase,
    /// Since when.
    pub since: Time,
    /// When the source was seen dead.
    pub orphan_since: Option<Time>,
}
