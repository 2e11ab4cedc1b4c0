//! Starting handoffs (R10), and the end of a drain.

use super::*;

impl Ownership {
    pub(super) fn start_handoffs(&mut self, out: &mut Vec<Action>) {
        let leaving = self.stage == Stage::Leaving;
        if !leaving && !self.may_balance() {
            return;
        }
        let busy: BTreeSet<ShardId> =
            self.outgoing.values().flat_map(|(handoff, _)| handoff.ids()).collect();
        let mut wanted: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        let me = self.config.me.node;
        let mut waits = false;
        for at in self.serving().filter(|at| !busy.contains(&at.shard)) {
            match self.target_of(at.shard) {
                Some(to) => wanted.entry(to).or_default().push(at),
                None => waits |= self.targets.owner_of(at.shard).is_some_and(|node| node != me),
            }
        }
        // A target that is not fit now, or said no, is looked at again.
        if waits {
            self.recheck_by(self.now + DECLINED_FOR);
        }
        for (to, shards) in wanted {
            let mut shards = &shards[..];
            while !shards.is_empty() && self.outgoing.len() < self.config.outgoing_max {
                let n = self.batch_len(shards);
                let (batch, rest) = shards.split_at(n);
                self.prepare(to, batch.to_vec(), leaving, out);
                shards = rest;
            }
            self.recheck_by(self.now + BUSY_TICK);
        }
    }

    /// Looks at everything again at `at`, or sooner.
    pub(super) fn recheck_by(&mut self, at: Time) {
        self.recheck_at = Some(self.recheck_at.map_or(at, |sooner| sooner.min(at)));
    }

    /// Whether members have been quiet long enough to move shards for balance.
    pub(super) fn may_balance(&mut self) -> bool {
        let founding = self.founded_at.is_some_and(|at| self.now.since(at) < FOUNDING_FOR);
        let quiet = if founding { FOUNDING_QUIET } else { self.config.balance_quiet };
        let ready_at = self.digest_since + quiet;
        if ready_at > self.now {
            self.recheck_by(ready_at);
        }
        ready_at <= self.now
    }

    /// The live, connected node that should own `shard` instead of this one.
    pub(super) fn target_of(&self, shard: ShardId) -> Option<NodeBoot> {
        let node = self.targets.owner_of(shard).filter(|node| *node != self.config.me.node)?;
        let member = self.members.find(node)?;
        let declined = self.declined.get(&node);
        let fit = member.state == MemberState::Ready
            && self.connected.get(&node) == Some(&member.node_boot())
            && declined.is_none_or(|at| self.now.since(*at) >= DECLINED_FOR);
        fit.then(|| member.node_boot())
    }

    pub(super) fn batch_len(&self, shards: &[ShardEpoch]) -> usize {
        let mut bytes = 0;
        let fits = |at: &&ShardEpoch| {
            bytes += self.sizes.get(&at.shard).copied().unwrap_or(0);
            bytes <= self.config.batch_bytes_max
        };
        let n = shards.iter().take(self.config.batch_shards_max).take_while(fits).count();
        n.max(1)
    }

    pub(super) fn prepare(
        &mut self,
        to: NodeBoot,
        shards: Vec<ShardEpoch>,
        drain: bool,
        out: &mut Vec<Action>,
    ) {
        let number = self.next_number;
        self.next_number += 1;
        let id = HandoffId { source: self.config.me, number };
        let message = Control::Prepare {
            handoff: id,
            members_digest: self.digest,
            shards: shards.clone(),
            drain,
        };
        out.push(Action::Send { to: to.node, message });
        let phase = outgoing::Phase::Preparing { until: self.now + PREPARE_MAX };
        let handoff = Outgoing { id, to, shards, phase };
        self.outgoing.insert(number, (handoff, SealedAt(self.now)));
    }

    pub(super) fn finish_drain(&mut self, out: &mut Vec<Action>) {
        self.recheck_by(self.now + BUSY_TICK);
        let somebody = self
            .members
            .live_peers()
            .any(|m| m.role == Role::Node && m.state == MemberState::Ready);
        let moving = self.slots.values().any(|slot| matches!(slot, Slot::Granted { .. }));
        if !self.drained && (self.slots.is_empty() || (!somebody && !moving)) {
            self.drained = true;
            out.push(Action::Drained);
        }
    }
}
