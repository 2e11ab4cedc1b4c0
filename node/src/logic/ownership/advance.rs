//! What follows from an event: joining, time that has run out.

use super::*;

impl Ownership {
    pub(super) fn advance(&mut self, out: &mut Vec<Action>) {
        if self.stage == Stage::Joining {
            self.join_or_form(out);
        }
        let knows_owners = self.stage != Stage::Joining || self.knows_owners();
        if knows_owners {
            self.advance_recovery(out);
        }
        self.advance_doubt(out);
        self.expire_handoffs(out);
        self.expire_copies(out);
        self.advance_takeovers(out);
        self.ask_missing_claims(out);
        if self.recheck_at.is_some_and(|at| at <= self.now) {
            self.recheck = true;
            self.recheck_at = None;
        }
        if self.stage == Stage::Ready || self.stage == Stage::Leaving {
            self.advance_query(out);
            if self.recheck && self.now < self.rechecked + self.config.recheck_every {
                self.recheck = false;
                self.recheck_by(self.rechecked + self.config.recheck_every);
            }
            // Who does not know what it owns begins nothing.
            let is_stopped = self.is_stopped() && self.stage != Stage::Leaving;
            if self.recheck && self.doubt.is_none() && !is_stopped {
                self.recheck = false;
                self.rechecked = self.now;
                self.review_copies(out);
                self.claim_unclaimed(out);
                self.keep_copies(out);
                self.start_handoffs(out);
            }
        }
        if self.stage == Stage::Leaving {
            self.finish_drain(out);
        }
    }

    pub(super) fn join_or_form(&mut self, out: &mut Vec<Action>) {
        let owners = self.owners();
        if self.knows_owners() && !self.is_recovering() {
            self.become_ready(Note::Joined, out);
            return;
        }
        self.ask_counters(out);
        if self.now.since(self.started) >= self.config.join_max && !owners.is_empty() {
            out.push(Action::GiveUp(GiveUp::JoinTimeout));
            return;
        }
        if self.founds_by.is_some() && owners.is_empty() {
            self.found_in_time(out);
            return;
        }
        self.founds_by = None;
        let joining = self.joining();
        let sight = Sight {
            me: self.config.me,
            joining: &joining,
            owner: owners.iter().next().copied(),
            has_peer: self.members.live_peers().next().is_some(),
        };
        let mut messages = Vec::new();
        let mut step = self.forming.step(self.now, sight, &mut messages);
        if !self.config.rules.forming_agrees && sight.has_peer && sight.owner.is_none() {
            step = Step::Found { alone: false };
        }
        out.extend(messages.into_iter().map(|(to, message)| Action::Send { to, message }));
        match step {
            Step::Wait => {}
            Step::Found { alone } => {
                self.founds_by = Some((self.now + self.counters_max(), alone));
                self.found_in_time(out);
            }
        }
    }

    fn knows_owners(&self) -> bool {
        let owners = self.owners();
        !owners.is_empty() && owners.iter().all(|owner| self.book.knows(*owner))
    }

    /// Founds as was decided, once the counters that others remember are known.
    fn found_in_time(&mut self, out: &mut Vec<Action>) {
        let Some((by, alone)) = self.founds_by else { return };
        if self.waits_for_disks() {
            return;
        }
        if by <= self.now || self.all_counters_are_known() {
            self.found(alone, out);
        }
    }

    /// Asks every live member for the highest counters that it remembers: a cluster that is founded
    /// after another one must not use its epochs again (R0).
    fn ask_counters(&mut self, out: &mut Vec<Action>) {
        let members = Arc::clone(&self.members);
        for peer in members.live_peers() {
            if !self.is_connected(peer.node_boot()) {
                continue;
            }
            let asked = self.counters_of.get(&peer.id);
            if asked.is_some_and(|(at, known)| *known || self.now.since(*at) < ASK_EVERY) {
                continue;
            }
            self.counters_of.insert(peer.id, (self.now, false));
            let shards = vec![ShardRange { first: 0, len: self.config.n_shards }];
            let message = Control::WhoHolds { token: JOIN_TOKEN, members_digest: NO_CLAIM, shards };
            out.push(Action::Send { to: peer.id, message });
        }
    }

    fn all_counters_are_known(&self) -> bool {
        let known = |id: &NodeId| self.counters_of.get(id).is_some_and(|(_, known)| *known);
        self.members.live_peers().all(|peer| known(&peer.id))
    }

    pub(super) fn on_counters(&mut self, from: NodeId, highest: &[ClaimRange]) {
        if let Some((_, known)) = self.counters_of.get_mut(&from) {
            *known = true;
        }
        for range in highest {
            let end = range.first.saturating_add(range.len).min(self.config.n_shards);
            for shard in (range.first..end).map(ShardId) {
                self.book.remember(shard, range.counter);
            }
        }
    }

    pub(super) fn found(&mut self, alone: bool, out: &mut Vec<Action>) {
        let node = self.config.me.node;
        let mut shards = Vec::with_capacity(self.config.n_shards as usize);
        for shard in (0..self.config.n_shards).map(ShardId) {
            if self.is_saved_somewhere(shard) {
                continue;
            }
            let epoch = Epoch { counter: 1 + self.book.highest(shard), node };
            let at = ShardEpoch { shard, epoch };
            self.serve(at);
            shards.push(at);
        }
        self.founded_at = Some(self.now);
        self.drop_replicas(&shards, out);
        self.note_begun(&shards);
        out.push(Action::OpenEmpty { shards, lost: false });
        self.become_ready(Note::Founded { alone }, out);
    }

    pub(super) fn become_ready(&mut self, note: Note, out: &mut Vec<Action>) {
        self.stage = Stage::Ready;
        self.counters_of.clear();
        self.founds_by = None;
        self.recheck = true;
        out.push(Action::BecomeReady);
        out.push(Action::Note(note));
    }

    pub(super) fn ask_missing_claims(&mut self, out: &mut Vec<Action>) {
        for owner in self.owners() {
            if !self.book.knows(owner) && self.connected.contains_key(&owner.node) {
                self.ask_claims(owner.node, out);
            }
        }
    }

    pub(super) fn expire_handoffs(&mut self, out: &mut Vec<Action>) {
        self.finish_granted(out);
        let numbers: Vec<u64> = self.outgoing.keys().copied().collect();
        for number in numbers {
            let Some(handoff) = self.outgoing.get(&number) else { continue };
            let gone = !self.members.is_live(handoff.to);
            let holder = self.is_holder(handoff.to);
            match handoff.phase {
                outgoing::Phase::Granted { .. } if !holder => self.target_died(number, out),
                outgoing::Phase::Granted { since, resend_at } => {
                    self.resend_grant(number, since, resend_at, out);
                }
                outgoing::Phase::Preparing { .. }
                | outgoing::Phase::Copying(_)
                | outgoing::Phase::Sealing { .. }
                | outgoing::Phase::Sending { .. } => {
                    if gone {
                        self.abort(number, Abort::TargetGone, out);
                    } else if handoff.is_late(self.now) {
                        self.abort(number, Abort::TooLate, out);
                    } else if handoff.is_open() && !self.is_wanted(handoff) {
                        self.abort(number, Abort::NotWanted, out);
                    }
                }
            }
        }
    }

    pub(super) fn resend_grant(
        &mut self,
        number: u64,
        since: Time,
        resend_at: Time,
        out: &mut Vec<Action>,
    ) {
        let now = self.now;
        if !self.config.rules.grant_is_final && now.since(since) >= RELAY_AFTER {
            let Some(handoff) = self.outgoing.remove(&number) else { return };
            self.reopen(&handoff, 1, out);
            return;
        }
        if resend_at > now || !self.config.rules.grant_is_resent {
            return;
        }
        let Some(handoff) = self.outgoing.get_mut(&number) else { return };
        handoff.phase = outgoing::Phase::Granted { since, resend_at: now + GRANT_EVERY };
        let (id, target) = (handoff.id, handoff.to);
        let to = target.node;
        // Only what is still open: of what the target has served it may say so, of the rest that
        // there is no copy.
        let mut shards = handoff.granted();
        let slots = &self.slots;
        shards.retain(|at| slots.get(&at.shard).is_some_and(|slot| slot.is_granted_to(target)));
        if now.since(since) >= RELAY_AFTER {
            for peer in self.members.live_peers().filter(|peer| peer.id != to) {
                let message = Control::Relay { to, handoff: id, shards: shards.clone() };
                out.push(Action::Send { to: peer.id, message });
            }
        }
        self.tell_begun(target, &shards, out);
        out.push(Action::Send { to, message: Control::Grant { handoff: id, shards } });
        out.push(Action::AskClaims { to });
    }

    pub(super) fn expire_copies(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let members = Arc::clone(&self.members);
        self.incoming.retain(|&handoff, incoming| {
            let waits = incoming.phase == incoming::Phase::Receiving { begun: false };
            if waits && now.since(incoming.since) >= BEGIN_MAX {
                out.push(Action::DropCopy { handoff });
                return false;
            }
            if members.is_live(handoff.source) {
                incoming.orphan_since = None;
                return true;
            }
            let since = *incoming.orphan_since.get_or_insert(now);
            let keep =
                incoming.phase == incoming::Phase::CaughtUp && now.since(since) < KEEP_AFTER_DEATH;
            if !keep {
                out.push(Action::DropCopy { handoff });
            }
            keep
        });
    }
}
