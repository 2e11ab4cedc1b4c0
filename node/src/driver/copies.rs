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
    pub(super) fn act_on_copies(&self, action: Action, state: &State) -> Option<Action> {
        match action {
            Action::SetReplicas { sets } => {
                for (shard, members) in sets {
                    self.host.set_followers(shard, members.as_slice());
                }
            }
            // Without an address it is a member no more: the machine learns that.
            Action::Fill { to, shards } => {
                if let Some(addr) = self.addr_of(to) {
                    self.host.begin_fill(to, addr, shards);
                }
            }
            Action::Adopt { to, shards, named } => {
                if let Some(addr) = self.addr_of(to) {
                    self.host.adopt(to, addr, shards, named);
                }
            }
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
            Action::OpenReplica { shards } => self.open_replicas(&shards, state),
            other => return Some(other),
        }
        None
    }

    fn open_replicas(&self, shards: &[ShardEpoch], state: &State) {
        let mut n_missing = 0;
        for at in shards {
            if !self.host.promote(at.shard, at.epoch) {
                self.host.activate_empty(at.shard, at.epoch);
                n_missing += 1;
            }
        }
        if n_missing > 0 {
            state.meters.lost.increment(n_missing);
            tracing::error!(n_missing, "shards to be served from copies that are not here: empty");
        }
    }
}

fn unfollowed(why: Lost) -> Unfollowed {
    match why {
        Lost::Behind => Unfollowed::Behind,
        Lost::NoCopy => Unfollowed::NoCopy,
        Lost::HigherEpoch(epoch) => Unfollowed::HigherEpoch(epoch),
    }
}
