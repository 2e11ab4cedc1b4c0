//! Claims: one's own, and what others' claims mean for one's own shards.

use super::*;

impl Ownership {
    pub(super) fn on_connected(&mut self, peer: NodeBoot, protocol: u8, out: &mut Vec<Action>) {
        self.connected.insert(peer.node, (peer, protocol));
        out.push(Action::SendClaims { to: peer.node, update: self.log.full() });
    }

    pub(super) fn is_connected(&self, peer: NodeBoot) -> bool {
        self.connected.get(&peer.node).is_some_and(|(known, _)| *known == peer)
    }

    pub(super) fn on_claims(&mut self, update: &ClaimsUpdate, out: &mut Vec<Action>) {
        // A process that the members do not show may yet be sent away, for its name is taken: its
        // empty log must not replace the real one's. What is missing is asked for again.
        if update.owner == self.config.me {
            return;
        }
        if !self.members.is_live(update.owner) {
            let is_news = self.book.pos_of(update.owner) < update.pos;
            if !self.on_log_of_the_dead(update) && is_news {
                self.book.doubt(update.owner);
            }
            return;
        }
        match self.book.apply(update) {
            Applied::Same => {}
            Applied::WantFull => self.ask_claims(update.owner.node, out),
            Applied::Changed(shards) => {
                self.on_book_changed(&shards, out);
                out.push(Action::Publish);
                self.recheck = true;
                self.ask_again();
            }
        }
    }

    pub(super) fn ask_claims(&mut self, to: NodeId, out: &mut Vec<Action>) {
        let asked = self.asked_claims.get(&to);
        if asked.is_none_or(|at| self.now.since(*at) >= CLAIMS_EVERY) {
            self.asked_claims.insert(to, self.now);
            out.push(Action::AskClaims { to });
        }
    }

    pub(super) fn on_book_changed(&mut self, shards: &[ShardId], out: &mut Vec<Action>) {
        self.recovery.note_moved(shards);
        let mut dropped = Vec::new();
        let mut n_superseded = 0;
        let mut yielded: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        for &shard in shards {
            let (Some(slot), Some((epoch, owner))) =
                (self.slots.get(&shard).copied(), self.book.get(shard))
            else {
                continue;
            };
            if owner == self.config.me || !self.members.is_live(owner) {
                continue;
            }
            match slot {
                Slot::Granted { next, to, .. } if epoch == next && owner == to => {
                    dropped.push(ShardEpoch { shard, epoch: next });
                }
                // Whoever serves it there may have claimed it, or opened a copy, and what is here
                // never went there. Where it has only gone on it is merged, which changes nothing.
                Slot::Granted { next, .. } if epoch >= next => {
                    yielded.entry(owner).or_default().push(ShardEpoch { shard, epoch });
                }
                // Even who held a copy may not have served that one.
                Slot::Serving { epoch: mine } | Slot::Sealed { epoch: mine } if epoch > mine => {
                    n_superseded += usize::from(self.is_superseded_by(shard, owner));
                    yielded.entry(owner).or_default().push(ShardEpoch { shard, epoch });
                }
                Slot::Serving { .. } | Slot::Sealed { .. } | Slot::Granted { .. } => {}
            }
        }
        let yields: BTreeSet<ShardId> = yielded.values().flatten().map(|at| at.shard).collect();
        for &shard in &yields {
            self.leave_quarantine(shard);
            self.slots.remove(&shard);
            self.log.release(shard);
        }
        if !yields.is_empty() {
            for handoff in self.outgoing.values_mut() {
                handoff.shards.retain(|at| !yields.contains(&at.shard));
            }
            self.finish_granted(out);
        }
        self.drop_outdated_copies(shards, out);
        if 0 < n_superseded {
            out.push(Action::Note(Note::Superseded { n_shards: n_superseded }));
        }
        self.let_go(dropped, out);
        for (to, shards) in yielded {
            out.push(Action::Yield { to, shards });
        }
    }

    /// ## Granted => (none): the targets have served these, in the epochs that were granted.
    pub(super) fn let_go(&mut self, granted: Vec<ShardEpoch>, out: &mut Vec<Action>) {
        if granted.is_empty() {
            return;
        }
        for at in &granted {
            self.slots.remove(&at.shard);
            self.log.release(at.shard);
        }
        self.keep_or_drop(granted, out);
        self.finish_granted(out);
    }

    /// Closes the handoffs whose target has claimed everything.
    pub(super) fn finish_granted(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let slots = &self.slots;
        self.outgoing.retain(|_, handoff| {
            let granted = matches!(handoff.phase, outgoing::Phase::Granted { .. });
            let is_open =
                |shard| slots.get(&shard).is_some_and(|slot: &Slot| slot.is_granted_to(handoff.to));
            let open = handoff.ids().any(is_open);
            if granted && !open {
                out.push(Action::Note(Note::HandedOff {
                    handoff: handoff.id,
                    to: handoff.to,
                    n_shards: handoff.shards.len(),
                    class: handoff.class,
                    took: took(&handoff.steps, now),
                }));
            }
            !granted || open
        });
    }

    /// Forgets copies of shards that their source serves in a newer epoch than the copy's: it took
    /// them back, and its word of that was lost.
    fn drop_outdated_copies(&mut self, changed: &[ShardId], out: &mut Vec<Action>) {
        let book = &self.book;
        let is_outdated = |incoming: &Incoming| {
            incoming.shards.iter().filter(|at| changed.binary_search(&at.shard).is_ok()).any(|at| {
                book.get(at.shard)
                    .is_some_and(|(epoch, owner)| owner == incoming.id.source && at.epoch < epoch)
            })
        };
        self.incoming.retain(|&handoff, incoming| {
            let outdated = is_outdated(incoming);
            if outdated {
                out.push(Action::DropCopy { handoff });
            }
            !outdated
        });
    }

    /// The highest counter that is known, or may be used by a grant that is on its way here: its source
    /// would take a claim at that for what it granted.
    pub(super) fn highest(&self, shard: ShardId) -> u64 {
        self.book.highest(shard).max(self.arrived.get(&shard).copied().unwrap_or(0))
    }

    /// Opens a shard here and claims it.
    pub(super) fn serve(&mut self, at: ShardEpoch) {
        assert_eq!(at.epoch.node, self.config.me.node, "nobody serves in another's epoch");
        let old = self.slots.insert(at.shard, Slot::Serving { epoch: at.epoch });
        if !matches!(old, Some(Slot::Serving { .. } | Slot::Sealed { .. })) {
            // Fills from when it was here before ended when it went.
            self.filling.values_mut().for_each(|shards| {
                shards.remove(&at.shard);
            });
            self.filling.retain(|_, shards| !shards.is_empty());
        }
        self.arrived.remove(&at.shard);
        self.served.insert(at.shard, at.epoch.counter);
        self.log.claim(at.shard, at.epoch.counter);
    }

    pub(super) fn commit(&mut self, out: &mut Vec<Action>) {
        if let Some(update) = self.log.commit() {
            let _ = self.book.apply(&update);
            out.push(Action::PushClaims(update));
            out.push(Action::Publish);
        }
    }
}

fn took(steps: &Steps, now: Time) -> Took {
    let sealed = steps.sealed.unwrap_or(now);
    let copied = steps.copied.unwrap_or(sealed);
    let granted = steps.granted.unwrap_or(now);
    Took {
        preparing: copied.since(steps.asked),
        copying: sealed.since(copied),
        sealed: granted.since(sealed),
        granting: now.since(granted),
    }
}
