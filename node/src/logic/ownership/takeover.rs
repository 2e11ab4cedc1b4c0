//! Copies of others' shards, and taking those over whose owner has died (R5).
//!
//! ```text
//! first live replica of the newest set               every other live node, routers too
//!   TakeOver{dead owner, pos of its log, shards} ──▶    forgets what the dead owner handed off to it
//!   ◀── (more of the dead owner's log)                  and was not granted yet
//!   ◀── Takeable{holdings, highest}
//!   nobody serves it, and this node is named in the newest set:
//!   serves at 1 + the highest counter anybody remembers
//! ```
//!
//! Everybody named in a claim has acknowledged all that its owner acknowledged, so any of them will
//! do, and the order of the set decides: who comes later in it hears those before it first, who say
//! that they hold the shard. One that is not named by the newest set it can learn of never takes
//! over.
//!
//! Who could take over, and finds the shard served by somebody whom the dead owner had not named, was
//! not heard when that one claimed it: on the other side of a cut, or taken for dead. It offers what it
//! holds, and goes without. So does one whose copy such an owner fills anew.

use stead_shared::claims::Replicas;

use super::*;

/// How long a node without a link is waited for that is not to take over itself. One with a link
/// may serve what it was granted: it is waited for while it lives.
const TAKE_FOR: Duration = Duration::from_secs(3);
/// How long a router is waited for, which serves nothing: it may be the last one that knows of the
/// newest set.
const TAKE_FROM_ROUTERS: Duration = Duration::from_secs(1);
/// How often those who are silent are asked again.
const TAKE_EVERY: Duration = Duration::from_millis(100);
/// How long those go first who are named before this node.
const TURN: Duration = Duration::from_secs(1);
/// How long a copy is kept that nobody's claim names.
const UNNAMED_FOR: Duration = Duration::from_secs(5);
/// The same while it is being filled, or after its owner's death.
const UNNAMED_LONG: Duration = Duration::from_secs(30);

/// A copy of another owner's shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct HeldCopy {
    owner: NodeBoot,
    epoch: Epoch,
    complete: bool,
    /// Named by its owner's claim, as far as known.
    named: bool,
    /// Everybody was asked after the owner's death whether it is named.
    settled: bool,
    /// Since when nobody needs it.
    idle_since: Option<Time>,
    /// Since when its owner is dead.
    orphan_since: Option<Time>,
    /// Until when nobody is asked again: somebody else holds the shard, whose claim is awaited.
    asks_at: Option<Time>,
}

impl HeldCopy {
    pub(super) fn each_time(&mut self, visit: &mut dyn FnMut(&mut Time, Duration)) {
        for at in [&mut self.idle_since, &mut self.orphan_since].into_iter().flatten() {
            visit(at, UNNAMED_LONG);
        }
        if let Some(at) = &mut self.asks_at {
            visit(at, Duration::ZERO);
        }
    }
}

/// A question whether shards of a dead owner may be served from copies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TakeOver {
    pub(super) query: Query,
    pos: u64,
}

impl Ownership {
    /// Whether a living owner counts on a copy that is here.
    pub(super) fn is_needed(&self) -> bool {
        self.copies.iter().any(|(&shard, copy)| {
            let named = self.is_named(copy.owner, shard).unwrap_or(copy.named);
            named && self.members.is_live(copy.owner)
        })
    }

    /// Number of complete copies of others' shards.
    #[must_use]
    pub fn n_copies(&self) -> usize {
        self.copies.values().filter(|copy| copy.complete).count()
    }

    pub(super) fn on_copy(
        &mut self,
        owner: NodeBoot,
        shards: &[ShardEpoch],
        complete: bool,
        out: &mut Vec<Action>,
    ) {
        let mut dropped = Vec::new();
        for at in shards {
            if self.slots.contains_key(&at.shard) && !self.is_granted_to(at.shard, owner) {
                dropped.push(at.shard);
                continue;
            }
            let copy = HeldCopy {
                owner,
                epoch: at.epoch,
                complete,
                named: self.is_named(owner, at.shard).unwrap_or(false),
                settled: false,
                idle_since: None,
                orphan_since: None,
                asks_at: None,
            };
            self.copies.insert(at.shard, copy);
        }
        if !dropped.is_empty() {
            out.push(Action::DropReplicas { shards: dropped });
        }
        if self.is_dead(owner) {
            self.review_copies(out);
        }
    }

    /// An owner fills copies of shards of which complete ones were here. Where they were another
    /// owner's who had not named this one, that owner's changes may be nowhere else.
    pub(super) fn on_replaced(
        &self,
        owner: NodeBoot,
        shards: Vec<ShardEpoch>,
        out: &mut Vec<Action>,
    ) {
        let is_missed = |at: &ShardEpoch| {
            let copy = self.copies.get(&at.shard).filter(|copy| copy.owner != owner);
            copy.is_some_and(|copy| self.may_be_missed(at.shard, copy, owner))
        };
        let (offered, dropped): (Vec<_>, Vec<_>) = shards.into_iter().partition(is_missed);
        if !dropped.is_empty() {
            let shards = dropped.into_iter().map(|at| at.shard).collect();
            out.push(Action::DropReplaced { shards });
        }
        if !offered.is_empty() {
            out.push(Action::OfferReplaced { to: owner, shards: offered });
        }
    }

    /// Shards that this node is about to serve from copies of dead owners.
    pub(super) fn heirlooms(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.copies.keys().copied().filter(|shard| self.may_take_over(*shard))
    }

    fn is_granted_to(&self, shard: ShardId, owner: NodeBoot) -> bool {
        self.slots.get(&shard).is_some_and(|slot| slot.is_granted_to(owner))
    }

    /// Whether `owner` names this node; none when its log is not known. One that does not claim the
    /// shard has let it go.
    fn is_named(&self, owner: NodeBoot, shard: ShardId) -> Option<bool> {
        let pos = self.book.pos_of(owner);
        if self.told_of.get(&owner).is_some_and(|newest| pos < *newest) {
            return Some(false);
        }
        let is_known = 0 < pos;
        match self.book.replicas_of(owner, shard) {
            Some(replicas) => Some(replicas.contains(self.config.me)),
            None => is_known.then_some(false),
        }
    }

    /// A shard that was granted away stays here as a copy of its new owner's, when that says so. Of
    /// one that has gone on since, what is here is too old.
    pub(super) fn keep_or_drop(&mut self, granted: Vec<ShardEpoch>, out: &mut Vec<Action>) {
        let mut dropped = Vec::new();
        let mut kept: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        for ShardEpoch { shard, epoch: next } in granted {
            match self.book.get(shard) {
                // It has become a copy by the new owner's word before its claim was seen.
                Some((_, owner)) if self.copies.get(&shard).is_some_and(|it| it.owner == owner) => {
                    dropped.push(shard);
                }
                Some((epoch, owner))
                    if epoch == next && self.book.replicas(shard).contains(&self.config.me) =>
                {
                    kept.entry(owner).or_default().push(ShardEpoch { shard, epoch });
                }
                Some(_) | None => dropped.push(shard),
            }
        }
        if !dropped.is_empty() {
            out.push(Action::DropState { shards: dropped });
        }
        for (owner, shards) in kept {
            self.on_copy(owner, &shards, true, out);
            out.push(Action::KeepCopy { owner, shards });
        }
    }

    /// These shards are served here from other state: copies of them are of no use.
    pub(super) fn drop_replicas<'a>(
        &mut self,
        shards: impl IntoIterator<Item = &'a ShardEpoch>,
        out: &mut Vec<Action>,
    ) {
        let held = shards.into_iter().filter(|at| self.copies.remove(&at.shard).is_some());
        let shards: Vec<ShardId> = held.map(|at| at.shard).collect();
        if !shards.is_empty() {
            out.push(Action::DropReplicas { shards });
        }
    }

    /// Forgets what nobody needs, and asks for what has lost its owner.
    pub(super) fn review_copies(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let mut dropped = Vec::new();
        let mut orphans: BTreeMap<NodeBoot, BTreeSet<ShardId>> = BTreeMap::new();
        let mut offered: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        let mut recheck_by = None;
        let mut copies = std::mem::take(&mut self.copies);
        copies.retain(|&shard, copy| {
            if self.slots.contains_key(&shard) {
                return self.is_granted_to(shard, copy.owner);
            }
            if let Some(named) = self.is_named(copy.owner, shard) {
                copy.named = named;
            }
            let lives = !self.is_dead(copy.owner);
            copy.orphan_since = (!lives).then(|| copy.orphan_since.unwrap_or(now));
            let served = self.is_taken_over(shard, copy);
            if lives {
                copy.settled = false;
            }
            let may_be_named = copy.named || !copy.settled;
            if !lives && let Some((epoch, stranger)) = self.stranger_for(shard, copy) {
                offered.entry(stranger).or_default().push(ShardEpoch { shard, epoch });
                return false;
            }
            copy.asks_at = copy.asks_at.filter(|at| now < *at);
            let is_orphan = !served && copy.complete && !lives && may_be_named;
            if is_orphan && copy.asks_at.is_none() && self.is_my_turn(shard, copy) {
                orphans.entry(copy.owner).or_default().insert(shard);
            }
            // One that is named is complete, whether that was reported yet or not; whether it is may be
            // just what somebody has been asked.
            let is_asked = !copy.settled
                && self
                    .takeovers
                    .get(&copy.owner)
                    .is_some_and(|it| it.query.shards.contains(&shard));
            if !served && (copy.named && (copy.complete || lives) || is_asked) {
                copy.idle_since = None;
                return true;
            }
            let since = *copy.idle_since.get_or_insert(now);
            let long = !served && (!copy.complete || !lives);
            let until = since + if long { UNNAMED_LONG } else { UNNAMED_FOR };
            let keep = now < until;
            if keep {
                recheck_by = Some(recheck_by.map_or(until, |at: Time| at.min(until)));
            } else {
                dropped.push(shard);
            }
            keep
        });
        self.copies = copies;
        // Nothing else may happen until then.
        if let Some(at) = recheck_by {
            self.recheck_by(at);
        }
        for (to, shards) in offered {
            out.push(Action::OfferReplicas { to, shards });
        }
        if !dropped.is_empty() {
            out.push(Action::DropReplicas { shards: dropped });
        }
        for (owner, shards) in orphans {
            self.ask_to_take_over(owner, shards, out);
        }
    }

    /// ## Serving => (none): nothing is here.
    pub(super) fn on_not_opened(&mut self, shards: &[ShardEpoch]) {
        for at in shards {
            let serves = |slot: &Slot| *slot == Slot::Serving { epoch: at.epoch };
            if self.slots.get(&at.shard).is_some_and(serves) {
                self.slots.remove(&at.shard);
                self.log.release(at.shard);
                self.recheck = true;
            }
        }
    }

    /// Whether nobody alive is named before this node, or has had its time.
    fn is_my_turn(&self, shard: ShardId, copy: &HeldCopy) -> bool {
        let set = self.book.replicas_of(copy.owner, shard);
        let first = set.and_then(|set| {
            let lives = |boot: &&NodeBoot| !self.is_dead(**boot);
            set.as_slice().iter().find(lives).copied()
        });
        let had_its_time = copy.orphan_since.is_some_and(|at| TURN <= self.now.since(at));
        had_its_time || first.is_none_or(|first| first == self.config.me)
    }

    /// Whether this node may yet take the shard over from a copy.
    pub(super) fn may_take_over(&self, shard: ShardId) -> bool {
        let is_orphan = |copy: &HeldCopy| self.is_dead(copy.owner);
        self.is_heir(shard) && self.copies.get(&shard).is_some_and(is_orphan)
    }

    /// Whether this node holds all that was acknowledged of a shard, as far as it knows, and nobody
    /// serves it who took it over. It may be named without having heard of it yet.
    pub(super) fn is_heir(&self, shard: ShardId) -> bool {
        let Some(copy) = self.copies.get(&shard) else { return false };
        let named = self.is_named(copy.owner, shard).unwrap_or(copy.named);
        let may_be_named = !copy.settled && self.is_dead(copy.owner)
            || !self.is_dead(copy.owner) && self.book.replicas_of(copy.owner, shard).is_some();
        copy.complete && (named || may_be_named) && !self.is_taken_over(shard, copy)
    }

    /// Whether somebody served it after the owner of the copy did: if that one is dead, too, it has
    /// heirs of its own.
    fn is_taken_over(&self, shard: ShardId, copy: &HeldCopy) -> bool {
        Some(copy.epoch) < self.book.highest_claim(shard, copy.owner)
    }

    /// Who serves a shard of a dead owner without what this copy holds, which nobody has but those who
    /// were named with it.
    fn stranger_for(&self, shard: ShardId, copy: &HeldCopy) -> Option<(Epoch, NodeBoot)> {
        let (epoch, owner) = self.book.get(shard)?;
        let is_other = owner != self.config.me && owner != copy.owner;
        let serves = is_other && copy.epoch < epoch && self.members.is_live(owner);
        (serves && self.may_be_missed(shard, copy, owner)).then_some((epoch, owner))
    }

    /// Whether `other`, who serves the shard, may lack what a copy holds: it is named with it, and
    /// `other` is not.
    fn may_be_missed(&self, shard: ShardId, copy: &HeldCopy, other: NodeBoot) -> bool {
        let may_be_named = self.is_named(copy.owner, shard).unwrap_or(copy.named || !copy.settled);
        let set = self.book.replicas_of(copy.owner, shard);
        copy.complete && may_be_named && !set.is_some_and(|set| set.contains(other))
    }

    /// Whether `one` is to take a shard of `owner` over rather than `other`.
    fn precedes(&self, owner: NodeBoot, shard: ShardId, one: NodeBoot, other: NodeBoot) -> bool {
        let set = self.book.replicas_of(owner, shard);
        let place = |boot: NodeBoot| {
            let mut named = set.map_or(&[][..], Replicas::as_slice).iter();
            (named.position(|it| *it == boot).unwrap_or(usize::MAX), boot)
        };
        place(one) < place(other)
    }

    /// Whether a node must answer before this one takes a shard over: it is to do so itself.
    fn is_heir_before_me(&self, owner: NodeBoot, query: &Query, node: NodeId) -> bool {
        let Some(boot) = self.members.find(node).map(|member| member.node_boot()) else {
            return false;
        };
        query.shards.iter().any(|shard| {
            let set = self.book.replicas_of(owner, *shard);
            set.is_none_or(|set| set.contains(boot))
                && self.precedes(owner, *shard, boot, self.config.me)
        })
    }

    fn ask_to_take_over(
        &mut self,
        owner: NodeBoot,
        shards: BTreeSet<ShardId>,
        out: &mut Vec<Action>,
    ) {
        if self.doubt.is_some() || self.stage == Stage::Joining || self.is_stopped() {
            return;
        }
        let under_way = self.takeovers.get(&owner).map(|it| &it.query.shards);
        if under_way.is_some_and(|asked| shards.is_subset(asked)) {
            return;
        }
        let shards = &shards | under_way.unwrap_or(&BTreeSet::new());
        let waiting: BTreeSet<NodeId> = match self.config.rules.takeover_asks {
            true => self.members.live_peers().map(|m| m.id).collect(),
            false => BTreeSet::new(),
        };
        let query = Query::new(self.next_token, self.digest, shards, waiting, self.now);
        self.next_token += 1;
        let pos = self.book.pos_of(owner);
        self.takeovers.insert(owner, TakeOver { query, pos });
        self.advance_takeovers(out);
    }

    /// A target died that shards were granted to. Where there are copies, others may know that it
    /// served, and who has all that it acknowledged.
    pub(super) fn target_died(&mut self, number: u64, out: &mut Vec<Action>) {
        let Some(handoff) = self.outgoing.get(&number) else { return };
        let (to, shards) = (handoff.to, handoff.ids().collect());
        if self.config.replicas == 0 || !self.is_dead(to) {
            self.take_back(number, out);
            return;
        }
        self.ask_to_take_over(to, shards, out);
    }

    /// Takes back what was granted to `target`, except where it served and did not name this node
    /// but others who live: they have more than is here.
    fn take_back_from(&mut self, target: NodeBoot, query: &Query, out: &mut Vec<Action>) {
        let members = Arc::clone(&self.members);
        let is_heirs = |set: &Replicas| {
            !set.contains(self.config.me) && set.as_slice().iter().any(|it| members.is_live(*it))
        };
        let gone = query.shards.iter().copied().filter(|shard| {
            self.is_granted_to(*shard, target)
                && self.book.replicas_of(target, *shard).is_some_and(is_heirs)
        });
        let gone: Vec<ShardId> = gone.collect();
        for shard in &gone {
            self.slots.remove(shard);
            self.log.release(*shard);
        }
        if !gone.is_empty() {
            out.push(Action::DropState { shards: gone });
        }
        let of_target = |it: &Outgoing| {
            it.to == target
                && matches!(it.phase, outgoing::Phase::Granted { .. })
                && it.ids().all(|shard| query.shards.contains(&shard))
        };
        let numbers = self.outgoing.iter().filter(|(_, it)| of_target(it)).map(|(n, _)| *n);
        for number in numbers.collect::<Vec<_>>() {
            self.take_back(number, out);
        }
    }

    pub(super) fn advance_takeovers(&mut self, out: &mut Vec<Action>) {
        let owners: Vec<NodeBoot> = self.takeovers.keys().copied().collect();
        for owner in owners {
            let Some(mut it) = self.takeovers.remove(&owner) else { continue };
            if !self.is_dead(owner) || self.doubt.is_some() || self.is_stopped() {
                continue;
            }
            let waited = self.now.since(it.query.since);
            let members = Arc::clone(&self.members);
            let query = &it.query;
            let gone = query.waiting.iter().copied().filter(|node| {
                let member = members.find(*node).filter(|m| m.state.is_live());
                let is_connected = self.connected.contains_key(node);
                !member.is_some_and(|member| match member.role {
                    Role::Node => {
                        let is_near = waited < TAKE_FOR || is_connected;
                        is_near || self.is_heir_before_me(owner, query, *node)
                    }
                    Role::Router => is_connected && waited < TAKE_FROM_ROUTERS,
                })
            });
            for node in gone.collect::<Vec<_>>() {
                it.query.waiting.remove(&node);
                // What others say of it counts.
                it.query.asked.remove(&node);
            }
            if it.query.waiting.is_empty() {
                self.take_over(owner, &it.query, out);
                continue;
            }
            if it.query.resend_at <= self.now {
                it.query.resend_at = self.now + TAKE_EVERY;
                for &to in &it.query.waiting {
                    let message = match self.speaks_of_replicas(to) {
                        true => Control::TakeOver {
                            token: it.query.token,
                            owner,
                            pos: it.pos,
                            shards: ShardRange::pack(it.query.shards.iter().copied()),
                        },
                        false => it.query.message(),
                    };
                    out.push(Action::Send { to, message });
                }
            }
            self.takeovers.insert(owner, it);
        }
    }

    pub(super) fn on_take_over(
        &mut self,
        from: NodeBoot,
        (token, owner, pos): (Token, NodeBoot, u64),
        shards: &[ShardRange],
        out: &mut Vec<Action>,
    ) {
        // Who is not known here yet asks again.
        if !self.members.is_live(from) {
            return;
        }
        self.void_copies(shards, Some(owner), out);
        self.told_of_log(owner, pos);
        let known = self.book.pos_of(owner);
        if pos < known
            && let Some(update) = self.book.log_of(owner)
        {
            out.push(Action::SendClaims { to: from.node, update });
        }
        let (mut holdings, highest) = self.holdings(shards);
        let me = self.config.me;
        holdings.extend(self.claimed_by_me(shards, |shard| {
            let is_heir = self.copies.get(&shard).is_some_and(|it| it.owner == owner);
            is_heir && self.is_heir(shard) && self.precedes(owner, shard, me, from)
        }));
        let message = Control::Takeable { token, pos: known, holdings, highest };
        out.push(Action::Send { to: from.node, message });
    }

    pub(super) fn on_takeable(
        &mut self,
        from: NodeId,
        (token, pos): (Token, Option<u64>),
        answer: (&[Holding], &[ClaimRange]),
        out: &mut Vec<Action>,
    ) {
        let asked = self.takeovers.iter().find(|(_, it)| it.query.token == token);
        if let (Some((&owner, _)), Some(pos)) = (asked, pos) {
            self.told_of_log(owner, pos);
            if pos < self.book.pos_of(owner)
                && self.members.find(from).is_some_and(|m| m.role == Role::Node)
                && let Some(update) = self.book.log_of(owner)
            {
                out.push(Action::SendClaims { to: from, update });
            }
        }
        for it in self.takeovers.values_mut().filter(|it| it.query.token == token) {
            it.query.answer(from, it.query.digest, false, answer);
        }
    }

    /// Somebody knows a log up to `pos`: who knows less of it may not be named any more.
    fn told_of_log(&mut self, owner: NodeBoot, pos: u64) {
        if self.is_dead(owner) && self.book.pos_of(owner) < pos {
            let newest = self.told_of.entry(owner).or_default();
            *newest = pos.max(*newest);
        }
    }

    /// Takes a dead owner's log in, of which somebody knew more, or what it said last. Whether that
    /// was it.
    pub(super) fn on_log_of_the_dead(&mut self, update: &ClaimsUpdate) -> bool {
        let pos = self.book.pos_of(update.owner);
        let follows = 0 < pos && update.base == Some(pos);
        let is_asked = self.takeovers.contains_key(&update.owner)
            || self.copies.values().any(|copy| copy.owner == update.owner);
        let is_asked = follows || is_asked && update.base.is_none();
        if is_asked && self.book.pos_of(update.owner) < update.pos {
            let _ = self.book.apply(update);
            let (members, me) = (Arc::clone(&self.members), self.config.me);
            let _ = self.book.set_live(|owner| owner == me || members.is_live(owner));
            self.recheck = true;
        }
        is_asked
    }

    /// All have answered: what nobody serves is served here.
    fn take_over(&mut self, owner: NodeBoot, query: &Query, out: &mut Vec<Action>) {
        let node = self.config.me.node;
        let mut served = Vec::new();
        let mut adopted: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        for (&shard, &counter) in &query.highest {
            self.book.remember(shard, counter);
        }
        self.take_back_from(owner, query, out);
        // What turns out not to be for this node to serve is for others, and be it as unclaimed.
        self.recheck = true;
        for &shard in &query.shards {
            let Some(&copy) = self.copies.get(&shard).filter(|copy| copy.owner == owner) else {
                continue;
            };
            let asks = self.config.rules.takeover_asks;
            let named = self.is_named(owner, shard).unwrap_or(copy.named);
            if let Some(copy) = self.copies.get_mut(&shard) {
                (copy.named, copy.settled) = (named, true);
            }
            let is_newest = named || !self.config.rules.set_is_known_first;
            if !copy.complete || !is_newest || self.slots.contains_key(&shard) {
                continue;
            }
            let is_other = |holder: &NodeBoot| *holder != owner && *holder != self.config.me;
            // One that is dead was not when it was told of: who says so will learn it.
            let holder = query.holders_above(shard, copy.epoch).find(is_other);
            if asks && (holder.is_some() || self.is_taken_over(shard, &copy)) {
                if let Some(holder) = holder {
                    self.ask_claims(holder.node, out);
                }
                let again = self.now + TAKE_EVERY;
                if let Some(copy) = self.copies.get_mut(&shard) {
                    copy.asks_at = Some(again);
                }
                self.recheck_by(again);
                continue;
            }
            let counter = 1 + self.highest(shard).max(copy.epoch.counter);
            let at = ShardEpoch { shard, epoch: Epoch { counter, node } };
            let set = self.book.replicas_of(owner, shard).cloned().unwrap_or(Replicas::NONE);
            for &boot in set.as_slice().iter().filter(|boot| **boot != self.config.me) {
                adopted.entry(boot).or_default().push(at);
            }
            self.copies.remove(&shard);
            self.serve(at);
            served.push(at);
        }
        if served.is_empty() {
            return;
        }
        let n_shards = served.len();
        self.adopt(adopted, out);
        out.push(Action::OpenReplica { shards: served });
        out.push(Action::Note(Note::Promoted { from: owner, n_shards }));
    }
}
