//! What the machine decides about copies, carried out.

use std::net::SocketAddr;

use super::*;
use crate::logic::ownership::Unfollowed;
use crate::logic::replication::Lost;
use crate::replica::ReplicaReport;

impl Driver {
    pub(super) fn on_replica(&mut self, report: ReplicaReport, state: &mut State) {
        let event = match report {
            ReplicaReport::Filled { to, shards } => Event::Filled { to, shards },
            ReplicaReport::FollowerLost { to, shards } => {
                let shards = shards.into_iter().map(|(shard, why)| (shard, unfollowed(why)));
                Event::FollowerLost { to, shards: shards.collect() }
            }
            ReplicaReport::FollowerSilent { to } => {
                tracing::warn!(node = %to.node, "a replica acknowledges nothing: it is let go");
                Event::FollowerSilent(to)
            }
            ReplicaReport::CopyComplete { owner, shards } => Event::CopyComplete { owner, shards },
            ReplicaReport::CopyBegun { owner, shards } => Event::CopyBegun { owner, shards },
        };
        self.feed(event, state);
    }

    fn addr_of(&self, node: NodeBoot) -> Option<SocketAddr> {
        self.views.borrow().members.find(node.node).map(|member| member.gossip)
    }

    /// Whether `action` was one about copies; else it is given back.
    pub(super) fn act_on_copies(&self, action: Action, state: &mut State) -> Option<Action> {
        match action {
            Action::SetReplicas { sets } => {
                for (shard, members) in sets {
                    self.host.set_followers(shard, members.as_slice());
                }
            }
            Action::Fill { to, shards } => match self.addr_of(to) {
                Some(addr) => self.host.begin_fill(to, addr, shards),
                None => state.results.push(out_of_reach(to, &shards)),
            },
            Action::Adopt { to, shards, named } => match self.addr_of(to) {
                Some(addr) => self.host.adopt(to, addr, shards, named),
                None => state.results.push(out_of_reach(to, &shards)),
            },
            Action::StopFill { to, shards } => self.host.stop_following(to, &shards),
            Action::KeepCopy { owner, shards } => {
                for at in shards {
                    self.granted.remove(&at.shard);
                    if !self.host.keep_as_copy(at.shard, owner, at.epoch) {
                        self.host.drop_shard(at.shard);
                        tracing::debug!(shard = %at.shard, "a shard that moved left no copy");
                    }
                }
            }
            Action::DropReplicas { shards } => {
                for shard in shards {
                    self.host.drop_copy(shard);
                }
            }
            Action::OpenReplica { shards } => state.results.extend(self.open_replicas(shards)),
            other => return Some(other),
        }
        None
    }

    /// Those that have no copy here are told of.
    fn open_replicas(&self, shards: Vec<ShardEpoch>) -> Option<Event> {
        let is_missing = |at: &ShardEpoch| !self.host.promote(at.shard, at.epoch);
        let missing: Vec<ShardEpoch> = shards.into_iter().filter(is_missing).collect();
        if missing.is_empty() {
            return None;
        }
        let n_shards = missing.len();
        tracing::warn!(n_shards, "copies to serve are gone: their owner lives and replaces them");
        Some(Event::NotOpened(missing))
    }
}

/// Whoever has no address is no member any more.
fn out_of_reach(to: NodeBoot, shards: &[ShardEpoch]) -> Event {
    let shards = shards.iter().map(|at| (at.shard, Unfollowed::NoCopy)).collect();
    Event::FollowerLost { to, shards }
}

fn unfollowed(why: Lost) -> Unfollowed {
    match why {
        Lost::Behind => Unfollowed::Behind,
        Lost::NoCopy => Unfollowed::NoCopy,
        Lost::HigherEpoch(epoch) => Unfollowed::HigherEpoch(epoch),
    }
}
