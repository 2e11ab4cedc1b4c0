//! The target's side of handoffs.

use super::*;

impl Ownership {
    pub(super) fn on_prepare(
        &mut self,
        from: NodeBoot,
        id: HandoffId,
        (digest, drain): (u64, bool),
        shards: Vec<ShardEpoch>,
        out: &mut Vec<Action>,
    ) {
        if id.source != from {
            return;
        }
        if self.incoming.contains_key(&id) {
            out.push(Action::Send { to: from.node, message: Control::Prepared { handoff: id } });
            return;
        }
        let known = |at: &ShardEpoch| {
            at.shard.0 >= self.config.n_shards
                || self.slots.contains_key(&at.shard)
                || self.holds_saved(at.shard)
                || self.is_offering(at.shard)
        };
        let is_calm = drain || digest == self.digest || !self.config.rules.balance_waits;
        let streams_in = self.incoming.values().filter(|incoming| incoming.holds_stream()).count();
        let why = if self.stage != Stage::Ready || shards.iter().any(known) {
            Some(NotNow::NotReady)
        } else if !is_calm {
            Some(NotNow::OtherView)
        } else if streams_in >= self.config.incoming_max {
            Some(NotNow::Busy)
        } else {
            None
        };
        let message = match why {
            Some(why) => Control::Declined { handoff: id, why },
            None => {
                let phase = incoming::Phase::Receiving { begun: false };
                let (since, for_balance, orphan_since) = (self.now, !drain, None);
                self.incoming
                    .insert(id, Incoming { id, shards, for_balance, phase, since, orphan_since });
                Control::Prepared { handoff: id }
            }
        };
        out.push(Action::Send { to: from.node, message });
    }

    pub(super) fn on_receiving(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        match self.incoming.get_mut(&id) {
            Some(incoming) => incoming.phase = incoming::Phase::Receiving { begun: true },
            None => out.push(Action::DropCopy { handoff: id }),
        }
    }

    pub(super) fn on_received(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        match self.incoming.get_mut(&id) {
            Some(incoming) => {
                incoming.phase = incoming::Phase::CaughtUp;
                let next = |at: &ShardEpoch| (at.shard, at.epoch.counter + 1);
                self.arrived.extend(incoming.shards.iter().map(next));
                let message = Control::CaughtUp { handoff: id };
                out.push(Action::Send { to: id.source.node, message });
            }
            None => out.push(Action::DropCopy { handoff: id }),
        }
    }

    pub(super) fn on_receive_failed(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        if self.incoming.get(&id).is_some_and(Incoming::holds_stream) {
            self.incoming.remove(&id);
            out.push(Action::DropCopy { handoff: id });
            let message = Control::Declined { handoff: id, why: NotNow::Busy };
            out.push(Action::Send { to: id.source.node, message });
        }
    }

    pub(super) fn on_grant(&mut self, id: HandoffId, shards: &[ShardEpoch], out: &mut Vec<Action>) {
        let me = self.config.me.node;
        if shards.iter().any(|at| at.epoch.node != me || at.shard.0 >= self.config.n_shards) {
            return;
        }
        let caught_up =
            self.incoming.get(&id).is_some_and(|i| i.phase == incoming::Phase::CaughtUp);
        // A counter that was used already is of somebody who took a shard over after the source had
        // granted it and died, or of a cluster that was founded apart. Such a grant is void as a
        // whole: its answer is for all of its shards.
        let is_void = self.config.rules.stale_is_ignored
            && shards.iter().any(|at| at.epoch.counter <= self.book.highest(at.shard));
        if caught_up && !is_void {
            let for_balance = self.incoming.remove(&id).is_some_and(|i| i.for_balance);
            for &at in shards {
                self.serve(at);
                if for_balance {
                    self.settle_in(at.shard, id.source);
                }
            }
            self.drop_replicas(shards, out);
            let named = self.adopt_copies(id.source, shards, out);
            out.push(Action::OpenCopy { handoff: id, shards: shards.to_vec() });
            self.tell_sets(named, out);
            // Members may have changed since the source chose this node: what came may have to go
            // on, and nobody else may have news for long.
            self.recheck = true;
            return;
        }
        // Whoever served by this grant, and be it that the shard has moved on since, says so: only
        // a target that never will serve by it may decline. What others served does not count.
        let known = |at: &ShardEpoch| self.served.get(&at.shard) >= Some(&at.epoch.counter);
        if shards.iter().any(known) {
            out.push(Action::SendClaims { to: id.source.node, update: self.log.full() });
            self.tell_served(id, shards, out);
        } else {
            self.incoming.remove(&id);
            out.push(Action::DropCopy { handoff: id });
            let message = Control::NoCopy { handoff: id };
            out.push(Action::Send { to: id.source.node, message });
        }
    }

    /// What was granted here, served, and has gone on since is in no claim of this node any more.
    /// Whoever has it now may be dead: the source cannot learn from claims that it was served.
    fn tell_served(&self, id: HandoffId, shards: &[ShardEpoch], out: &mut Vec<Action>) {
        let gone_on = |at: &ShardEpoch| {
            let counter = *self.served.get(&at.shard)?;
            let is_gone = at.epoch.counter <= counter && !self.slots.contains_key(&at.shard);
            let epoch = Epoch { counter, node: self.config.me.node };
            is_gone.then_some(ShardEpoch { shard: at.shard, epoch })
        };
        let shards: Vec<ShardEpoch> = shards.iter().filter_map(gone_on).collect();
        let protocol = self.connected.get(&id.source.node);
        if !shards.is_empty() && protocol.is_some_and(|(_, version)| SERVED_SINCE <= *version) {
            let message = Control::Served { handoff: id, shards };
            out.push(Action::Send { to: id.source.node, message });
        }
    }
}
