//! What the machine decides about copies, carried out.

use std::net::SocketAddr;

use super::*;
use crate::logic::ownership::Unfollowed;
use crate::logic::replication::Lost;
use crate::replica::ReplicaReport;
use crate::store::aside::SetAside;

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
            ReplicaReport::CopyReplaced { owner, shards } => Event::CopyReplaced { owner, shards },
            ReplicaReport::CopyBegun { owner, shards } => Event::CopyBegun { owner, shards },
        };
        self.feed(event, state);
    }

    fn addr_of(&self, node: NodeBoot) -> Option<SocketAddr> {
        self.views.borrow().members.find(node.node).map(|member| member.gossip)
    }

    pub(super) fn fill(&self, to: NodeBoot, shards: Vec<ShardEpoch>, state: &mut State) {
        match self.addr_of(to) {
            Some(addr) => self.host.begin_fill(to, addr, shards),
            None => state.results.push(out_of_reach(to, &shards)),
        }
    }

    pub(super) fn adopt(
        &self,
        to: NodeBoot,
        shards: Vec<ShardEpoch>,
        named: bool,
        state: &mut State,
    ) {
        match self.addr_of(to) {
            Some(addr) => self.host.adopt(to, addr, shards, named),
            None => state.results.push(out_of_reach(to, &shards)),
        }
    }

    pub(super) fn keep_copies(&self, owner: NodeBoot, shards: &[ShardEpoch]) {
        for at in shards {
            self.granted.remove(&at.shard);
            if !self.host.keep_as_copy(at.shard, owner, at.epoch) {
                self.host.drop_shard(at.shard);
                tracing::debug!(shard = %at.shard, "a shard that moved left no copy");
            }
        }
    }

    pub(super) fn drop_replicas(&self, shards: &[ShardId]) {
        for shard in shards {
            self.host.drop_copy(*shard);
        }
    }

    pub(super) fn drop_replaced(&self, shards: &[ShardId]) {
        shards.iter().for_each(|shard| self.host.drop_replaced(*shard));
    }

    pub(super) fn offer_replicas(&self, to: NodeBoot, shards: &[ShardEpoch], state: &State) {
        let aside = |at: &ShardEpoch| Some((*at, self.host.set_copy_aside(at.shard)?));
        self.offer_copies(to, shards.iter().filter_map(aside).collect(), state);
    }

    pub(super) fn offer_replaced(&self, to: NodeBoot, shards: &[ShardEpoch], state: &State) {
        let aside = |at: &ShardEpoch| Some((*at, self.host.set_replaced_aside(at.shard)?));
        self.offer_copies(to, shards.iter().filter_map(aside).collect(), state);
    }

    fn offer_copies(&self, to: NodeBoot, copies: Vec<(ShardEpoch, SetAside)>, state: &State) {
        let n_shards = copies.len();
        let (aside, empty): (Vec<_>, Vec<_>) =
            copies.into_iter().partition(|(_, it)| it.sessions() > 0);
        empty.into_iter().for_each(|(_, mut aside)| aside.forget_on_disk());
        let n_sessions: usize = aside.iter().map(|(_, aside)| aside.sessions()).sum();
        tracing::warn!(n_shards, n_sessions, to = %to.node,
            "another node claimed these shards without their copies, which are here: it is offered \
             them");
        self.offer(to, aside, state);
    }

    /// Those that have no copy here are told of.
    pub(super) fn open_replicas(&self, shards: Vec<ShardEpoch>) -> Option<Event> {
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
