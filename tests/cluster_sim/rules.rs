//! The rules that can be switched off, and what their absence leads to.

use stead_shared::rules::Rules;

use crate::oracle::Violation;
use crate::plan::{Luck, Plan, plan, plan_with_disks};

/// A rule.
///
/// Of `NewestServes` runs show the router's half. The other rules let no node serve in an older
/// epoch than one in which it is said to serve, so none reaches what the gate would refuse: that has
/// a table of cases of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    GenesisAsks,
    FormingAgrees,
    ClaimsRaiseEpoch,
    GateClosesFirst,
    SealIsPromise,
    SealIsSaved,
    GrantIsFinal,
    GrantIsResent,
    StaleIsIgnored,
    NewestServes,
    BalanceWaits,
    BalanceFreezes,
    BalanceStays,
    DrainNeverWaits,
    TakeoverNeverWaits,
    HeardLately,
    TakeoverAsks,
    AppendsFollow,
    EntriesStay,
    SetIsKnownFirst,
    AppliedOnce,
}

impl Rule {
    pub(crate) const ALL: [Self; 21] = [
        Self::GenesisAsks,
        Self::FormingAgrees,
        Self::ClaimsRaiseEpoch,
        Self::GateClosesFirst,
        Self::SealIsPromise,
        Self::SealIsSaved,
        Self::GrantIsFinal,
        Self::GrantIsResent,
        Self::StaleIsIgnored,
        Self::NewestServes,
        Self::BalanceWaits,
        Self::BalanceFreezes,
        Self::BalanceStays,
        Self::DrainNeverWaits,
        Self::TakeoverNeverWaits,
        Self::HeardLately,
        Self::TakeoverAsks,
        Self::AppendsFollow,
        Self::EntriesStay,
        Self::SetIsKnownFirst,
        Self::AppliedOnce,
    ];

    /// All rules but this one.
    pub(crate) fn off(self) -> Rules {
        let mut rules = Rules::ALL;
        match self {
            Self::GenesisAsks => rules.genesis_asks = false,
            Self::FormingAgrees => rules.forming_agrees = false,
            Self::ClaimsRaiseEpoch => rules.claims_raise_epoch = false,
            Self::GateClosesFirst => rules.gate_closes_first = false,
            Self::SealIsPromise => rules.seal_is_promise = false,
            Self::SealIsSaved => rules.seal_is_saved = false,
            Self::GrantIsFinal => rules.grant_is_final = false,
            Self::GrantIsResent => rules.grant_is_resent = false,
            Self::StaleIsIgnored => rules.stale_is_ignored = false,
            Self::NewestServes => rules.newest_serves = false,
            Self::BalanceWaits => rules.balance_waits = false,
            Self::BalanceFreezes => rules.balance_freezes = false,
            Self::BalanceStays => rules.balance_stays = false,
            Self::DrainNeverWaits => rules.drain_never_waits = false,
            Self::TakeoverNeverWaits => rules.takeover_never_waits = false,
            Self::HeardLately => rules.heard_lately = false,
            Self::TakeoverAsks => rules.takeover_asks = false,
            Self::AppendsFollow => rules.appends_follow = false,
            Self::EntriesStay => rules.entries_stay = false,
            Self::SetIsKnownFirst => rules.set_is_known_first = false,
            Self::AppliedOnce => rules.applied_once = false,
        }
        rules
    }

    /// The bad luck that brings it out.
    pub(crate) fn luck(self) -> Luck {
        match self {
            Self::GenesisAsks
            | Self::ClaimsRaiseEpoch
            | Self::BalanceFreezes
            | Self::DrainNeverWaits
            | Self::TakeoverNeverWaits => Luck::Deaths,
            Self::FormingAgrees => Luck::Forming,
            Self::GateClosesFirst
            | Self::SealIsPromise
            | Self::GrantIsFinal
            | Self::GrantIsResent => Luck::Handoffs,
            Self::SealIsSaved | Self::StaleIsIgnored | Self::NewestServes => Luck::LateGrants,
            Self::BalanceWaits | Self::BalanceStays => Luck::Unrest,
            Self::HeardLately => Luck::Wild,
            Self::TakeoverAsks | Self::EntriesStay | Self::SetIsKnownFirst | Self::AppliedOnce => {
                Luck::Copies
            }
            Self::AppendsFollow => Luck::Zombies,
        }
    }

    /// What its runs are like.
    pub(crate) fn plan(self, seed: u64, rules: Rules) -> Plan {
        match self {
            Self::SealIsSaved => plan_with_disks(self.luck(), seed, rules),
            Self::GenesisAsks
            | Self::FormingAgrees
            | Self::ClaimsRaiseEpoch
            | Self::GateClosesFirst
            | Self::SealIsPromise
            | Self::GrantIsFinal
            | Self::GrantIsResent
            | Self::StaleIsIgnored
            | Self::NewestServes
            | Self::BalanceWaits
            | Self::BalanceFreezes
            | Self::BalanceStays
            | Self::DrainNeverWaits
            | Self::TakeoverNeverWaits
            | Self::HeardLately
            | Self::TakeoverAsks
            | Self::AppendsFollow
            | Self::EntriesStay
            | Self::SetIsKnownFirst
            | Self::AppliedOnce => plan(self.luck(), seed, rules),
        }
    }

    /// What it is there against.
    pub(crate) fn violation(self) -> Violation {
        match self {
            Self::GenesisAsks | Self::FormingAgrees | Self::StaleIsIgnored | Self::GrantIsFinal => {
                Violation::TwoServers
            }
            Self::ClaimsRaiseEpoch => Violation::TwoEntries,
            Self::GateClosesFirst | Self::SealIsPromise | Self::SealIsSaved => {
                Violation::PromiseBroken
            }
            Self::GrantIsResent | Self::TakeoverNeverWaits => Violation::NotSettled,
            Self::DrainNeverWaits => Violation::NotDrained,
            Self::NewestServes => Violation::SentBack,
            Self::BalanceWaits => Violation::MovedInUnrest,
            Self::BalanceFreezes => Violation::MovedInFreeze,
            Self::BalanceStays => Violation::MovedAgain,
            Self::HeardLately => Violation::UnheardAnswer,
            Self::TakeoverAsks | Self::SetIsKnownFirst => Violation::StaleCopy,
            Self::AppendsFollow => Violation::FalseAck,
            Self::EntriesStay => Violation::AnsweredTooSoon,
            Self::AppliedOnce => Violation::RanTwice,
        }
    }
}
