//! The source's side of handoffs.

use super::*;

impl Ownership {
    pub(super) fn outgoing_from(&mut self, from: NodeBoot, id: HandoffId) -> Option<&mut Outgoing> {
        let stale = id.source != self.config.me;
        let (handoff, _) = self.outgoing.get_mut(&id.number)?;
        (!stale && handoff.to == from).then_some(handoff)
    }

    pub(super) fn on_prepared(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if !matches!(handoff.phase, outgoing::Phase::Preparing { .. }) {
            return;
        }
        handoff.phase = outgoing::Phase::Sealing { until: now + SEALED_MAX };
        let shards = handoff.shards.clone();
        if let Some((_, sealed)) = self.outgoing.get_mut(&id.number) {
            *sealed = SealedAt(now);
        }
        // ## Serving => Sealed: the gate closes with this action, before anything waits (R2).
        for at in &shards {
            self.slots.insert(at.shard, Slot::Sealed { epoch: at.epoch });
        }
        let shards = shards.iter().map(|at| at.shard).collect();
        out.push(Action::Seal { handoff: id, shards });
    }

    pub(super) fn on_sealed(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        let Some((handoff, _)) = self.outgoing.get_mut(&id.number) else { return };
        if let outgoing::Phase::Sealing { until } = handoff.phase {
            handoff.phase = outgoing::Phase::Sending { until };
            let (to, shards) = (handoff.to, handoff.shards.clone());
            out.push(Action::SendState { handoff: id, to, shards });
        }
    }

    pub(super) fn on_declined(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        let phase = handoff.phase;
        match phase {
            outgoing::Phase::Preparing { .. } => {
                self.outgoing.remove(&id.number);
                self.leave_alone(from.node);
            }
            outgoing::Phase::Sealing { .. } | outgoing::Phase::Sending { .. } => {
                self.abort(id.number, "the target declined", out);
            }
            // A late answer to a repeated `Prepare` means nothing any more.
            outgoing::Phase::Granted { .. } => {}
        }
    }

    /// Asks a target that said no, or nothing, again only after a while.
    fn leave_alone(&mut self, node: NodeId) {
        self.declined.insert(node, self.now);
        self.recheck_by(self.now + DECLINED_FOR);
    }

    pub(super) fn on_no_copy(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if matches!(handoff.phase, outgoing::Phase::Granted { .. }) {
            self.take_back(id.number, out);
        }
    }

    pub(super) fn on_caught_up(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if !matches!(handoff.phase, outgoing::Phase::Sending { .. }) {
            return;
        }
        // ## Sealed => Granted: recorded before it is sent; from here on only the target serves.
        handoff.phase = outgoing::Phase::Granted { since: now, resend_at: now + GRANT_EVERY };
        let (to, granted, old) = (handoff.to, handoff.granted(), handoff.shards.clone());
        for (next, old) in granted.iter().zip(&old) {
            let slot = Slot::Granted { epoch: old.epoch, to, next: next.epoch };
            self.slots.insert(next.shard, slot);
        }
        let message = Control::Grant { handoff: id, shards: granted };
        out.push(Action::Send { to: to.node, message });
        out.push(Action::Publish);
    }

    pub(super) fn abort_if_sealed(
        &mut self,
        id: HandoffId,
        why: &'static str,
        out: &mut Vec<Action>,
    ) {
        if self.outgoing.get(&id.number).is_some_and(|(handoff, _)| handoff.is_sealed()) {
            self.abort(id.number, why, out);
        }
    }

    /// ## (Preparing | Sealing | Sending) => Serving: an abort returns the shards to their source.
    pub(super) fn abort(&mut self, number: u64, why: &'static str, out: &mut Vec<Action>) {
        let Some((handoff, _)) = self.outgoing.remove(&number) else { return };
        let (id, to) = (handoff.id, handoff.to);
        out.push(Action::Send { to: to.node, message: Control::Abort { handoff: id } });
        out.push(Action::Note(Note::Aborted { to, n_shards: handoff.shards.len(), why }));
        self.leave_alone(to.node);
        if handoff.is_sealed() {
            let raise = u64::from(self.config.rules.abort_raises_epoch);
            self.reopen(&handoff, raise, out);
        }
    }

    /// ## Granted => Serving: the target is dead or has dropped its copy.
    pub(super) fn take_back(&mut self, number: u64, out: &mut Vec<Action>) {
        let Some((handoff, _)) = self.outgoing.remove(&number) else { return };
        let (to, n_shards) = (handoff.to, handoff.shards.len());
        let why = "the target was gone after the grant";
        out.push(Action::Note(Note::Aborted { to, n_shards, why }));
        self.reopen(&handoff, 2, out);
    }

    pub(super) fn reopen(&mut self, handoff: &Outgoing, raise: u64, out: &mut Vec<Action>) {
        let node = self.config.me.node;
        let mut shards = Vec::with_capacity(handoff.shards.len());
        for at in &handoff.shards {
            if self.slots.contains_key(&at.shard) {
                let epoch = Epoch { counter: at.epoch.counter + raise, node };
                let at = ShardEpoch { shard: at.shard, epoch };
                self.serve(at);
                shards.push(at);
            }
        }
        self.recheck = true;
        out.push(Action::Reopen { shards });
    }
}
