//! Claiming what nobody alive holds (R0).

use super::*;

impl Ownership {
    /// Shards that this node should claim because nobody alive holds them.
    pub(super) fn unclaimed(&mut self) -> BTreeSet<ShardId> {
        let me = self.config.me;
        let mut waits = false;
        let mut shards = BTreeSet::new();
        // Both go up: no search for every shard.
        let mut held = self.slots.keys().peekable();
        for shard in (0..self.config.n_shards).map(ShardId) {
            let is_held = held.next_if_eq(&&shard).is_some();
            if is_held || self.targets.owner_of(shard) != Some(me.node) {
                continue;
            }
            if self.is_heir(shard) || self.holds_saved(shard) {
                continue;
            }
            match self.book.get(shard) {
                Some((_, owner)) if self.is_holder(owner) || self.has_heirs(shard, owner) => {
                    waits |= !self.members.is_live(owner);
                }
                None if self.has_heirs_of_former(shard) => waits = true,
                Some(_) | None => {
                    shards.insert(shard);
                }
            }
        }
        if waits {
            self.recheck_by(self.now + TICK);
        }
        shards
    }

    /// Whether a dead owner has left copies that may be taken over. One that never does so is not
    /// waited for longer than a silent owner.
    fn has_heirs(&self, shard: ShardId, owner: NodeBoot) -> bool {
        self.any_heir(owner, self.book.replicas(shard))
    }

    /// The same where the owner's name has a new process.
    fn has_heirs_of_former(&self, shard: ShardId) -> bool {
        let mut claims = self.book.former(shard);
        claims.any(|(owner, set)| self.any_heir(owner, set.as_slice()))
    }

    fn any_heir(&self, owner: NodeBoot, set: &[NodeBoot]) -> bool {
        let lives = |boot: &NodeBoot| *boot == self.config.me || self.members.is_live(*boot);
        let waited = self.deaths.get(&owner).map_or(Duration::ZERO, |it| self.now.since(it.since));
        waited < self.config.orphan_grace && set.iter().any(lives)
    }

    pub(super) fn claim_unclaimed(&mut self, out: &mut Vec<Action>) {
        if self.query.is_some() || self.stage != Stage::Ready || self.is_stopped() {
            return;
        }
        if !self.config.rules.takeover_never_waits && !self.may_balance() {
            return;
        }
        if self.waits_for_disks() {
            return;
        }
        let shards = self.unclaimed();
        if shards.is_empty() {
            return;
        }
        let waiting: BTreeSet<NodeId> = self.members.live_peers().map(|peer| peer.id).collect();
        let query = Query::new(self.next_token, self.digest, shards, waiting, self.now);
        self.next_token += 1;
        self.query = Some(query);
        self.advance_query(out);
    }

    pub(super) fn advance_query(&mut self, out: &mut Vec<Action>) {
        let Some(mut query) = self.query.take() else { return };
        let members = Arc::clone(&self.members);
        query.waiting.retain(|node| members.find(*node).is_some_and(|m| m.state.is_live()));
        let patient = self.now.since(query.since) < ASK_FOR;
        if !patient {
            // Whom no link reaches in all this time counts as unreachable (R0: "it reaches").
            query.waiting.retain(|node| self.connected.contains_key(node));
        }
        if !self.config.rules.genesis_asks {
            query.waiting.clear();
        }
        // Who has come since may have on disk what is about to be claimed empty.
        let newcomers: BTreeSet<NodeId> =
            members.live_peers().map(|it| it.id).filter(|id| !query.asked.contains(id)).collect();
        if !newcomers.is_empty() && self.config.rules.genesis_asks {
            query.asked.extend(&newcomers);
            query.waiting.extend(newcomers);
            query.resend_at = self.now;
        }
        if query.digest != self.digest || query.disagreed {
            self.recheck_by(self.now + ASK_EVERY);
            return;
        }
        if query.waiting.is_empty() {
            self.claim_answered(&query, out);
            return;
        }
        if query.resend_at <= self.now {
            query.resend_at = self.now + ASK_EVERY;
            let message = query.message();
            for &to in &query.waiting {
                out.push(Action::Send { to, message: message.clone() });
            }
        }
        self.query = Some(query);
    }

    pub(super) fn claim_answered(&mut self, query: &Query, out: &mut Vec<Action>) {
        if self.is_stopped() {
            return;
        }
        for (&shard, &counter) in &query.highest {
            self.book.remember(shard, counter);
        }
        let still = self.unclaimed();
        // What nobody holds only since the question was asked is asked for next.
        self.recheck |= still.difference(&query.shards).next().is_some();
        let mut fresh = Vec::new();
        let mut lost = Vec::new();
        let mut copies: BTreeMap<HandoffId, Vec<ShardEpoch>> = BTreeMap::new();
        for &shard in query.shards.intersection(&still) {
            if let Some(holder) = query.holders(shard).find(|owner| self.may_hold(*owner)) {
                self.ask_claims(holder.node, out);
                self.recheck_by(self.now + ASK_EVERY);
                continue;
            }
            let raise = u64::from(self.config.rules.claims_raise_epoch);
            let counter = (raise + self.highest(shard)).max(1);
            let epoch = Epoch { counter, node: self.config.me.node };
            let at = ShardEpoch { shard, epoch };
            // A copy whose source served on in a later epoch lacks what was changed in it.
            let highest = self.book.highest(shard);
            let is_newest = |at: &ShardEpoch| at.shard == shard && at.epoch.counter == highest;
            let copy = self.incoming.values().find(|incoming| {
                incoming.phase == incoming::Phase::CaughtUp && incoming.shards.iter().any(is_newest)
            });
            match (copy, self.book.get(shard)) {
                (Some(copy), _) => copies.entry(copy.id).or_default().push(at),
                (None, Some(_)) => lost.push(at),
                (None, None) => fresh.push(at),
            }
        }
        let n_shards = fresh.len() + lost.len() + copies.values().map(Vec::len).sum::<usize>();
        for &at in fresh.iter().chain(&lost).chain(copies.values().flatten()) {
            self.serve(at);
        }
        self.drop_replicas(fresh.iter().chain(&lost).chain(copies.values().flatten()), out);
        for (shards, lost) in [(fresh, false), (lost, true)] {
            if !shards.is_empty() {
                self.note_begun(&shards);
                out.push(Action::OpenEmpty { shards, lost });
            }
        }
        for (handoff, shards) in copies {
            self.incoming.remove(&handoff);
            out.push(Action::OpenCopy { handoff, shards });
        }
        if n_shards > 0 {
            // They have no copies yet, and nobody else may have news for long.
            self.recheck = true;
            out.push(Action::Note(Note::TookOver { n_shards }));
        }
    }
}
