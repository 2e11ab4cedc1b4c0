//! The source's side of handoffs.

use super::*;

impl Ownership {
    pub(super) fn outgoing_from(&mut self, from: NodeBoot, id: HandoffId) -> Option<&mut Outgoing> {
        let stale = id.source != self.config.me;
        let handoff = self.outgoing.get_mut(&id.number)?;
        (!stale && handoff.to == from).then_some(handoff)
    }

    pub(super) fn on_prepared(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let now = self.now;
        let copies = self.connected.get(&from.node).is_some_and(|(_, v)| COPIES_SINCE <= *v);
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if !matches!(handoff.phase, outgoing::Phase::Preparing { .. }) {
            return;
        }
        if !copies {
            self.seal(id, out);
            return;
        }
        handoff.phase = outgoing::Phase::Copying(Copying::new(now));
        handoff.steps.copied = Some(now);
        let (to, shards) = (handoff.to, handoff.shards.clone());
        let budgeted = handoff.class == Class::Balance;
        out.push(Action::Copy { handoff: id, to, shards, budgeted });
    }

    pub(super) fn on_copied(&mut self, id: HandoffId, progress: Progress, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(handoff) = self.outgoing.get_mut(&id.number) else { return };
        let outgoing::Phase::Copying(copying) = &mut handoff.phase else { return };
        let verdict = copying.on_progress(now, progress);
        let (class, to) = (handoff.class, handoff.to);
        match verdict {
            Verdict::GoOn => {}
            // Not while the target is under suspicion: the copy goes on until that is settled.
            Verdict::Seal if self.members.find(to.node).is_some_and(is_suspect) => {}
            Verdict::Seal => self.seal(id, out),
            Verdict::Throttle(rate) => {
                let shards = handoff.ids().collect();
                out.push(Action::Throttle { shards, bytes_per_second: Some(rate) });
            }
            // Who leaves has no later to wait for.
            Verdict::TooHot if class == Class::Drain && !progress.overflow => self.seal(id, out),
            Verdict::TooHot => {
                let shards = handoff.shards.clone();
                self.leave_hot(&shards);
                self.abort(id.number, Abort::TooHot, out);
            }
        }
    }

    /// ## Serving => Sealed: the gates close with this action, before anything waits (R2).
    fn seal(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(handoff) = self.outgoing.get_mut(&id.number) else { return };
        let until = now + SEALED_MAX;
        handoff.steps.sealed = Some(now);
        let shards = handoff.shards.clone();
        if !self.config.rules.gate_closes_first && handoff.steps.copied.is_some() {
            handoff.phase = outgoing::Phase::Sending { until };
            out.push(Action::SendLast { handoff: id });
            return;
        }
        handoff.phase = outgoing::Phase::Sealing { until };
        // The next copy to the same target may begin.
        self.recheck = true;
        for at in &shards {
            self.slots.insert(at.shard, Slot::Sealed { epoch: at.epoch });
        }
        let shards = shards.iter().map(|at| at.shard).collect();
        out.push(Action::Seal { handoff: id, shards });
    }

    pub(super) fn on_sealed(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        let Some(handoff) = self.outgoing.get_mut(&id.number) else { return };
        let outgoing::Phase::Sealing { until } = handoff.phase else { return };
        handoff.phase = outgoing::Phase::Sending { until };
        if handoff.steps.copied.is_some() {
            out.push(Action::SendLast { handoff: id });
        } else {
            let (to, shards) = (handoff.to, handoff.shards.clone());
            out.push(Action::SendState { handoff: id, to, shards });
        }
    }

    pub(super) fn on_send_failed(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        let under_way = self.outgoing.get(&id.number).is_some_and(|handoff| match handoff.phase {
            outgoing::Phase::Copying(_)
            | outgoing::Phase::Sealing { .. }
            | outgoing::Phase::Sending { .. } => true,
            outgoing::Phase::Preparing { .. } | outgoing::Phase::Granted { .. } => false,
        });
        if under_way {
            self.abort(id.number, Abort::Broken, out);
        }
    }

    pub(super) fn on_declined(
        &mut self,
        from: NodeBoot,
        id: HandoffId,
        why: NotNow,
        out: &mut Vec<Action>,
    ) {
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        let phase = handoff.phase;
        match phase {
            outgoing::Phase::Preparing { .. } => {
                self.outgoing.remove(&id.number);
                // One that is busy has a stream free again in a moment, and others wait for it, too.
                let pause = match why {
                    NotNow::Busy => BUSY_FOR,
                    NotNow::NotReady | NotNow::OtherView => DECLINED_FOR,
                };
                self.leave_alone(from.node, pause);
            }
            outgoing::Phase::Copying(_)
            | outgoing::Phase::Sealing { .. }
            | outgoing::Phase::Sending { .. } => self.abort(id.number, Abort::Declined, out),
            // A late answer to a repeated `Prepare` means nothing any more.
            outgoing::Phase::Granted { .. } => {}
        }
    }

    /// Asks a target that said no, or nothing, again only after a while.
    fn leave_alone(&mut self, node: NodeId, pause: Duration) {
        self.declined.insert(node, self.now + pause);
        self.recheck_by(self.now + pause);
    }

    pub(super) fn on_no_copy(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if matches!(handoff.phase, outgoing::Phase::Granted { .. }) {
            self.take_back(id.number, out);
        }
    }

    /// The target has served these, as a claim would have told that was missed.
    pub(super) fn on_served(
        &mut self,
        from: NodeBoot,
        id: HandoffId,
        shards: &[ShardEpoch],
        out: &mut Vec<Action>,
    ) {
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if !matches!(handoff.phase, outgoing::Phase::Granted { .. }) {
            return;
        }
        let ours: BTreeSet<ShardId> = handoff.ids().collect();
        let mut served = Vec::new();
        for at in shards.iter().filter(|at| ours.contains(&at.shard)) {
            match self.slots.get(&at.shard) {
                Some(Slot::Granted { to, next, .. })
                    if *to == from && next.counter <= at.epoch.counter =>
                {
                    self.book.remember(at.shard, at.epoch.counter);
                    served.push(ShardEpoch { shard: at.shard, epoch: *next });
                }
                Some(Slot::Granted { .. } | Slot::Serving { .. } | Slot::Sealed { .. }) | None => {}
            }
        }
        self.recheck |= !served.is_empty();
        self.let_go(served, out);
    }

    pub(super) fn on_caught_up(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if !matches!(handoff.phase, outgoing::Phase::Sending { .. }) {
            return;
        }
        // ## Sealed => Granted: recorded before it is sent; from here on only the target serves.
        handoff.phase = outgoing::Phase::Granted { since: now, resend_at: now + GRANT_EVERY };
        handoff.steps.granted = Some(now);
        let was_copied = handoff.steps.copied.is_some();
        let (to, granted, old) = (handoff.to, handoff.granted(), handoff.shards.clone());
        for (next, old) in granted.iter().zip(&old) {
            let slot = Slot::Granted { epoch: old.epoch, to, next: next.epoch };
            self.slots.insert(next.shard, slot);
            // Whoever may claim the shard after this, and be it this node, does so above the grant.
            self.book.remember(next.shard, next.epoch.counter);
        }
        if !self.config.rules.gate_closes_first {
            let shards = old.iter().map(|at| at.shard).collect();
            out.push(Action::Seal { handoff: id, shards });
        }
        if was_copied {
            out.push(Action::StopCopy { handoff: id });
        }
        self.tell_begun(to, &granted, out);
        let message = Control::Grant { handoff: id, shards: granted };
        out.push(Action::Send { to: to.node, message });
        out.push(Action::Publish);
        self.recheck = true;
    }

    /// ## (Preparing | Copying | Sealing | Sending) => Serving: an abort returns the shards to
    /// their source.
    pub(super) fn abort(&mut self, number: u64, why: Abort, out: &mut Vec<Action>) {
        let Some(handoff) = self.outgoing.remove(&number) else { return };
        let (id, to) = (handoff.id, handoff.to);
        out.push(Action::Send { to: to.node, message: Control::Abort { handoff: id } });
        let n_shards = handoff.shards.len();
        out.push(Action::Note(Note::Aborted { handoff: id, to, n_shards, why }));
        self.leave_alone(to.node, DECLINED_FOR);
        if handoff.steps.copied.is_some() {
            out.push(Action::StopCopy { handoff: id });
            out.push(Action::Throttle { shards: handoff.ids().collect(), bytes_per_second: None });
        }
        if handoff.is_sealed() {
            let raise = u64::from(self.config.rules.seal_is_promise);
            self.reopen(&handoff, raise, out);
        }
    }

    /// ## Granted => Serving: the target is dead or has dropped its copy.
    pub(super) fn take_back(&mut self, number: u64, out: &mut Vec<Action>) {
        let Some(handoff) = self.outgoing.remove(&number) else { return };
        let (to, n_shards) = (handoff.to, handoff.shards.len());
        let (id, why) = (handoff.id, Abort::NoCopy);
        out.push(Action::Note(Note::Aborted { handoff: id, to, n_shards, why }));
        // Who followed may have followed the target, and may be where this node is.
        let mut adopted: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        let node = self.config.me.node;
        let slots = &self.slots;
        let is_its = |at: &&ShardEpoch| {
            slots.get(&at.shard).is_some_and(|slot| slot.is_granted_to(handoff.to))
        };
        for at in handoff.shards.iter().filter(is_its) {
            let epoch = Epoch { counter: at.epoch.counter + 2, node };
            for &boot in self.log.replicas(at.shard).as_slice() {
                adopted.entry(boot).or_default().push(ShardEpoch { shard: at.shard, epoch });
            }
        }
        for (to, shards) in adopted {
            out.push(Action::Adopt { to, shards, named: true });
        }
        let taken_back: Vec<ShardEpoch> = handoff.shards.iter().filter(is_its).copied().collect();
        self.reopen(&handoff, 2, out);
        for granted in taken_back {
            let epoch = Epoch { counter: granted.epoch.counter + 2, node };
            self.note_taken_back(granted, ShardEpoch { epoch, ..granted });
        }
    }

    pub(super) fn reopen(&mut self, handoff: &Outgoing, raise: u64, out: &mut Vec<Action>) {
        let node = self.config.me.node;
        let mut shards = Vec::with_capacity(handoff.shards.len());
        for at in &handoff.shards {
            // One that has gone, and may be here again, is not this handoff's any more.
            let is_its = match self.slots.get(&at.shard) {
                Some(Slot::Sealed { epoch } | Slot::Serving { epoch }) => *epoch == at.epoch,
                Some(granted @ Slot::Granted { .. }) => granted.is_granted_to(handoff.to),
                None => false,
            };
            if is_its {
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

fn is_suspect(member: &Member) -> bool {
    member.state == MemberState::Suspect
}
