//! The membership in simulated clusters: what it does, and what each of its rules is good for.

mod cluster;
mod rules;

use std::time::Duration;

use stead_shared::member::{MemberState, Phase};
use stead_shared::sim::{Host, MembershipConfig, MembershipSim, NetConfig};
use stead_shared::swim::{Rule, SwimConfig, SwimRules};

/// A cluster of `n` hosts, the first two of them seeds.
fn config(n_hosts: u32, seed: u64) -> MembershipConfig {
    MembershipConfig {
        seed,
        n_hosts,
        net: NetConfig::default(),
        swim: SwimConfig::default(),
        seeds: (0..2.min(n_hosts)).map(Host).collect(),
    }
}

/// The same, without `rule` if there is one.
fn config_without(n_hosts: u32, seed: u64, rule: Option<Rule>) -> MembershipConfig {
    let all = SwimRules::all();
    let rules = rule.map_or(all, |rule| all.without(rule));
    MembershipConfig {
        swim: SwimConfig { rules, ..SwimConfig::default() },
        ..config(n_hosts, seed)
    }
}

fn lossy(loss: f64) -> NetConfig {
    NetConfig { loss, duplicate: loss / 5.0, ..NetConfig::default() }
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What the process at `by` shows of the one that normally runs at `who`.
fn state_of(cluster: &MembershipSim, by: Host, who: Host) -> Option<MemberState> {
    let id = stead_shared::id::NodeId::of_name(&stead_shared::sim::name_of(who));
    cluster.members(by).find(id).map(|member| member.state)
}

/// Everybody but `who` shows it in `state`.
fn all_show(cluster: &MembershipSim, who: Host, state: MemberState) -> bool {
    let others = cluster.hosts().into_iter().filter(|&host| host != who && cluster.is_there(host));
    others.into_iter().all(|by| state_of(cluster, by, who) == Some(state))
}

/// A process that has just said where it stands.
fn says(phase: Phase) -> stead_shared::swim::SwimEvent {
    stead_shared::swim::SwimEvent::SetPhase(phase)
}
