//! Rules of routers and nodes that a test can switch off.

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
    /// R3: a seal is on disk before its handoff goes on, and counts at the next start.
    pub seal_is_saved: bool,
    /// R4: a recorded grant is never aborted.
    pub grant_is_final: bool,
    /// R4: a grant is sent again until the claim is seen.
    pub grant_is_resent: bool,
    /// R8: late and repeated messages are harmless.
    pub stale_is_ignored: bool,
    /// R9: a request goes upwards only: one that names a newer epoch than the one served is not
    /// served, and a router follows a hint only to a higher epoch than any that it has tried.
    pub newest_serves: bool,
    /// R10: shards move for balance only once members have been the same for a while, and in the
    /// eyes of both ends.
    pub balance_waits: bool,
    /// R10: shards do not move for balance after a mass failure.
    pub balance_freezes: bool,
    /// R10: a shard that moved for balance stays for a while.
    pub balance_stays: bool,
    /// R10: a drain is never held up.
    pub drain_never_waits: bool,
    /// R10: what nobody holds is claimed whatever else is going on.
    pub takeover_never_waits: bool,
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
    /// R14: a request that was applied is not applied again; its answer is.
    pub applied_once: bool,
}

impl Rules {
    /// All rules on: the only setting outside tests.
    pub const ALL: Self = Self {
        genesis_asks: true,
        forming_agrees: true,
        claims_raise_epoch: true,
        gate_closes_first: true,
        seal_is_promise: true,
        seal_is_saved: true,
        grant_is_final: true,
        grant_is_resent: true,
        stale_is_ignored: true,
        newest_serves: true,
        balance_waits: true,
        balance_freezes: true,
        balance_stays: true,
        drain_never_waits: true,
        takeover_never_waits: true,
        takeover_asks: true,
        appends_follow: true,
        entries_stay: true,
        set_is_known_first: true,
        heard_lately: true,
        applied_once: true,
    };
}
