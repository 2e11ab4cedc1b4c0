//! Settings of the machine.

use super::*;

/// Rules that a test can switch off, to see that it notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// R0: ask all members before claiming what seems unclaimed.
    pub genesis_asks: bool,
    /// R0: joining nodes form by one proposal that all of them accept.
    pub forming_agrees: bool,
    /// R1: an aborted seal serves on in a new epoch.
    pub abort_raises_epoch: bool,
    /// R4: a recorded grant is never aborted.
    pub grant_is_final: bool,
    /// R4: a grant is sent again until the claim is seen.
    pub grant_is_resent: bool,
    /// R8: late and repeated messages are harmless.
    pub stale_is_ignored: bool,
}

impl Rules {
    /// All rules on: the only setting outside tests.
    pub const ALL: Self = Self {
        genesis_asks: true,
        forming_agrees: true,
        abort_raises_epoch: true,
        grant_is_final: true,
        grant_is_resent: true,
        stale_is_ignored: true,
    };
}

/// Settings of the machine.
#[derive(Clone, Debug)]
pub struct OwnershipConfig {
    /// This node and boot.
    pub me: NodeBoot,
    /// Number of shards of the cluster.
    pub n_shards: u32,
    /// How to form.
    pub forming: FormingConfig,
    /// How long the cluster may take to let this node in.
    pub join_max: Duration,
    /// How long members must not have changed before shards move for balance (R10).
    pub balance_quiet: Duration,
    /// How long a silent owner's shards wait before they are claimed empty.
    pub orphan_grace: Duration,
    /// Most shards in one handoff.
    pub batch_shards_max: usize,
    /// Most bytes of state in one handoff; a larger shard goes alone.
    pub batch_bytes_max: u64,
    /// Most handoffs at a time, out.
    pub outgoing_max: usize,
    /// Most handoffs at a time, in.
    pub incoming_max: usize,
    /// Switches for tests.
    pub rules: Rules,
}

impl OwnershipConfig {
    /// The defaults, for this node.
    #[must_use]
    pub fn new(me: NodeBoot, n_shards: u32, forming: FormingConfig) -> Self {
        Self {
            me,
            n_shards,
            forming,
            join_max: Duration::from_secs(30),
            balance_quiet: Duration::from_secs(1),
            orphan_grace: Duration::from_secs(10),
            batch_shards_max: 256,
            batch_bytes_max: 4 << 20,
            outgoing_max: 4,
            incoming_max: 16,
            rules: Rules::ALL,
        }
    }
}
