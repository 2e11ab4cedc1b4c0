//! Settings of the machine.

use super::*;

/// Rules that a test can switch off, to see that it notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// R0: ask all members before claiming what seems unclaimed.
    pub genesis_asks: bool,
    /// R0: joining nodes form by one proposal that all of them accept.
    pub forming_agrees: bool,
    /// R1: who claims what nobody holds does so above every epoch that anybody remembers.
    pub claims_raise_epoch: bool,
    /// R2: the gate closes before the last changes are sent.
    pub gate_closes_first: bool,
    /// R3: a seal is a promise: an aborted one serves on in a new epoch.
    pub seal_is_promise: bool,
    /// R4: a recorded grant is never aborted.
    pub grant_is_final: bool,
    /// R4: a grant is sent again until the claim is seen.
    pub grant_is_resent: bool,
    /// R8: late and repeated messages are harmless.
    pub stale_is_ignored: bool,
    /// R9: a request that names a newer epoch than the one served is not served.
    pub newest_serves: bool,
    /// R10: shards move for balance only while the cluster is calm.
    pub balance_waits: bool,
    /// R5: ask all live nodes before serving a dead owner's shards from a copy.
    pub takeover_asks: bool,
    /// R6: a copy takes an entry only where it follows the one before, of no lower epoch.
    pub appends_follow: bool,
    /// R12: an entry is sent until it is acknowledged or its replica is out of the claim.
    pub entries_stay: bool,
    /// R13: a replica is out of the claim, for others to see, before answers go out without it; one
    /// that is out never takes over.
    pub set_is_known_first: bool,
    /// R11: who has heard nobody lately lets no answer out.
    pub heard_lately: bool,
}

impl Rules {
    /// All rules on: the only setting outside tests.
    pub const ALL: Self = Self {
        genesis_asks: true,
        forming_agrees: true,
        claims_raise_epoch: true,
        gate_closes_first: true,
        seal_is_promise: true,
        grant_is_final: true,
        grant_is_resent: true,
        stale_is_ignored: true,
        newest_serves: true,
        balance_waits: true,
        takeover_asks: true,
        appends_follow: true,
        entries_stay: true,
        set_is_known_first: true,
        heard_lately: true,
    };
}

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
    /// The shortest time between two looks at all shards. Each takes a moment where there are many.
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
            recheck_every: Duration::from_millis(10),
            orphan_grace: Duration::from_secs(10),
            batch_shards_max: 256,
            batch_bytes_max: 4 << 20,
            outgoing_max: 4,
            incoming_max: 4,
            replicas: 0,
            rules: Rules::ALL,
        }
    }
}
