//! Why a request was not executed.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, NodeId};

/// Who owns a shard, as far as the one who says so knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// The owner and the epoch it serves in: `epoch.node` is the owner.
    pub epoch: Epoch,
}

impl Claim {
    /// The node that serves.
    #[must_use]
    pub fn owner(self) -> NodeId {
        self.epoch.node
    }
}

/// The request was **not executed**. Each variant asks something else of the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Not the owner of the shard. Retry at the claim's owner when its epoch is higher than any
    /// tried, else wait for a claim.
    NotOwner {
        /// The newest claim known here.
        claim: Option<Claim>,
    },
    /// The shard is sealed for a move. Wait for its new claim.
    Moving,
    /// Too much to do. Do not retry before this many milliseconds.
    Overloaded {
        /// Milliseconds to wait at least.
        retry_after_ms: u32,
    },
    /// Fewer copies than `--min-copies`: writes are refused.
    Degraded,
    /// The shard or session is set aside: its state cannot be read here.
    Quarantined,
    /// The deadline passed before the request's turn came.
    DeadlinePassed,
}

impl Refusal {
    /// The word in the `stead-refusal` header.
    #[must_use]
    pub fn token(&self) -> &'static str {
        match self {
            Self::NotOwner { .. } => "not-owner",
            Self::Moving => "moving",
            Self::Overloaded { .. } | Self::DeadlinePassed => "overloaded",
            Self::Degraded => "degraded",
            Self::Quarantined => "quarantined",
        }
    }
}
