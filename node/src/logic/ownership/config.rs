//! Settings of the machine.

use super::*;

/// The share of each shard in the pause between two looks at all of them.
const LOOK_PER_SHARD: Duration = Duration::from_micros(2);

/// Settings of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// How long a shard that moved for balance stays where it is (R10).
    pub balance_stay: Duration,
    /// The shortest time between two looks at all shards: 10 ms, and longer where there are many, for
    /// they take most of a core otherwise while copies are filled and each claim is a reason to look.
    pub recheck_every: Duration,
    /// How long a silent owner's shards wait before they are claimed empty.
    pub orphan_grace: Duration,
    /// Most shards in one handoff.
    pub batch_shards_max: usize,
    /// Most bytes of state in one handoff; a larger shard goes alone.
    pub batch_bytes_max: u64,
    /// Most handoffs that send state at a time.
    pub outgoing_max: usize,
    /// Most handoffs that receive state at a time.
    pub incoming_max: usize,
    /// Copies of each shard beside the owner's that are wanted.
    pub replicas: u8,
    /// What to do on the smaller side of a cut.
    pub on_minority: OnMinority,
    /// How long the ready nodes must not have changed to be those of which a majority is counted.
    pub settles_after: Duration,
    /// This node keeps shards on disk: as a founder it waits longer for what others' disks hold.
    pub has_disk: bool,
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
            balance_stay: Duration::from_secs(10),
            recheck_every: Duration::from_millis(10).max(LOOK_PER_SHARD * n_shards),
            orphan_grace: Duration::from_secs(10),
            batch_shards_max: 256,
            batch_bytes_max: 4 << 20,
            outgoing_max: 4,
            incoming_max: 4,
            replicas: 0,
            on_minority: OnMinority::default(),
            settles_after: Duration::from_secs(60),
            has_disk: false,
            rules: Rules::ALL,
        }
    }
}
