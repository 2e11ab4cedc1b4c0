//! Copies of the shards that this node owns (R12, R13).
//!
//! ```text
//! wanted, not there   ── Fill ──▶ filling ── Filled ──▶ named in the claim
//! named, not wanted, as many named as are wanted ────▶ out of the claim
//! named, dead or silent ─────────────────────────────▶ out of the claim, known to somebody else,
//!                                                      and only then answers go out without it
//! ```
//!
//! A claim changes its owner *or* one replica at a time; the position in the owner's claim log tells
//! which of two sets is the newer one.

use stead_shared::claims::{CLAIM_REPLICAS_MAX, Replicas};

use super::*;

/// Shards that are filled at one replica at a time: enough to keep its stream busy from one look at
/// all shards to the next where they are small.
const FILLS_MAX: usize = 2048;
/// When somebody is filled again that has refused it.
const FILL_AGAIN: Duration = Duration::from_millis(200);
/// How often members are asked whether they know of a replica that has left a claim.
const SEE_EVERY: Duration = Duration::from_millis(100);
/// How long a replica that did not acknowledge is left alone.
const SHUNNED_FOR: Duration = Duration::from_secs(2);
/// The first version of the link's protocol whose nodes hold copies.
const REPLICAS_SINCE: u8 = 3;

/// Replicas that have left claims, before somebody else knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leaving {
    boot: NodeBoot,
    /// The position of the change in the own log.
    pos: u64,
    shards: BTreeSet<ShardId>,
    pub(super) ask_at: Time,
}

impl Ownership {
    /// Shards that this node serves with fewer copies than are wanted, where there are nodes for
    /// them.
    #[must_use]
    pub fn under_replicated(&self) -> usize {
        self.n_under
    }

    /// Who holds copies of a shard that this node owns.
    #[must_use]
    pub fn replicas(&self, shard: ShardId) -> Replicas {
        self.log.replicas(shard)
    }

    pub(super) fn speaks_of_replicas(&self, node: NodeId) -> bool {
        self.connected.get(&node).is_some_and(|(_, version)| REPLICAS_SINCE <= *version)
    }

    fn fit_replica(&self, node: NodeId) -> Option<NodeBoot> {
        let member = self.members.find(node)?;
        let boot = member.node_boot();
        let fit = member.state == MemberState::Ready
            && self.is_connected(boot)
            && self.speaks_of_replicas(node)
            && self.shunned.get(&boot).is_none_or(|until| *until <= self.now);
        fit.then_some(boot)
    }

    /// The nodes that should hold copies of a shard of this node and can. The owner that placement
    /// wants is among them only where there are too few others: it gets the shard anyway.
    fn wanted_replicas(&self, shard: ShardId) -> Replicas {
        let target = self.targets.owner_of(shard);
        let nodes = self.targets.replicas_of(shard).chain(target);
        let nodes = nodes.filter(|node| *node != self.config.me.node);
        let fit = nodes.filter_map(|node| self.fit_replica(node));
        Replicas::new(fit.take(usize::from(self.config.replicas)))
    }

    /// Looks at the copies of every shard that is served here.
    pub(super) fn keep_copies(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        self.shunned.retain(|_, until| now < *until);
        self.refused_fills.retain(|_, until| now < *until);
        self.unfollow_outranked(out);
        let ready = |m: &&Member| {
            m.role == Role::Node && m.state == MemberState::Ready && m.id != self.config.me.node
        };
        let n_others = self.members.list.iter().filter(ready).count();
        let enough = usize::from(self.config.replicas).min(n_others);
        let moving: BTreeSet<ShardId> = self.outgoing.values().flat_map(|it| it.ids()).collect();
        // Whoever leaves is let go when that is known: a fill of it would end with that.
        let leaving: BTreeSet<ShardId> =
            self.leaving_sets.iter().flat_map(|it| &it.shards).copied().collect();
        let mut fills: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        let mut extra: BTreeMap<NodeBoot, Vec<ShardId>> = BTreeMap::new();
        let mut n_under = 0;
        for at in self.serving() {
            let set = self.log.replicas(at.shard);
            if self.is_quarantined(at.shard) {
                continue;
            }
            n_under += usize::from(set.len() < enough);
            if moving.contains(&at.shard)
                || leaving.contains(&at.shard)
                || (set.is_empty() && enough == 0)
            {
                continue;
            }
            let wanted = self.wanted_replicas(at.shard);
            let mut missing = wanted.as_slice().iter().filter(|boot| !set.contains(**boot));
            // Where no more can be named, somebody must leave before another one is filled.
            let is_full = set.len() == CLAIM_REPLICAS_MAX;
            match missing.next().filter(|_| !is_full) {
                Some(boot)
                    if !self.is_filling(*boot, at.shard)
                        && !self.refused_fills.contains_key(&(at.shard, *boot)) =>
                {
                    fills.entry(*boot).or_default().push(at);
                }
                Some(_) => {}
                None => {
                    let is_extra = usize::from(self.config.replicas) < set.len();
                    let goes = |boot: &&NodeBoot| {
                        !wanted.contains(**boot) && (is_extra || !self.may_stay(**boot))
                    };
                    if let Some(last) = set.as_slice().iter().rev().find(goes) {
                        extra.entry(*last).or_default().push(at.shard);
                    }
                }
            }
        }
        self.n_under = n_under;
        for (to, mut shards) in fills {
            let under_way = self.filling.get(&to).map_or(0, BTreeSet::len);
            shards.truncate(FILLS_MAX.saturating_sub(under_way));
            if !shards.is_empty() {
                self.filling.entry(to).or_default().extend(shards.iter().map(|at| at.shard));
                self.tell_begun(to, &shards, out);
                out.push(Action::Fill { to, shards });
            }
        }
        for (boot, shards) in extra {
            self.drop_replica(shards, boot);
        }
        // Nothing else tells that somebody may be asked again.
        let shunned = self.shunned.values().min().copied();
        let until =
            [shunned, self.refused_fills.values().min().copied()].into_iter().flatten().min();
        if let Some(until) = until {
            self.recheck_by(until);
        }
    }

    /// Whether somebody who is not wanted may be named for as long as those who are wanted cannot
    /// be: it does not leave.
    fn may_stay(&self, boot: NodeBoot) -> bool {
        self.members
            .find(boot.node)
            .is_some_and(|member| matches!(member.state, MemberState::Ready | MemberState::Suspect))
    }

    fn is_filling(&self, to: NodeBoot, shard: ShardId) -> bool {
        self.filling.get(&to).is_some_and(|shards| shards.contains(&shard))
    }

    /// Takes a replica out of claims. Answers wait for it until somebody else knows that it is out.
    fn drop_replica(&mut self, shards: impl IntoIterator<Item = ShardId>, boot: NodeBoot) {
        let mut left = BTreeSet::new();
        for shard in shards {
            let set = self.log.replicas(shard).without(boot);
            if self.log.set_replicas(shard, set) {
                left.insert(shard);
            }
        }
        if !left.is_empty() {
            // The change is part of the next commit.
            let (pos, ask_at) = (self.log.pos() + 1, self.now);
            self.leaving_sets.push(Leaving { boot, pos, shards: left, ask_at });
            self.recheck = true;
        }
    }

    /// Asks whether it is known who left claims; with nobody to ask, it is.
    pub(super) fn settle_sets(&mut self, out: &mut Vec<Action>) {
        if self.leaving_sets.is_empty() {
            return;
        }
        let peers: Vec<NodeId> = self
            .members
            .live_peers()
            .filter(|m| m.role == Role::Node && self.is_connected(m.node_boot()))
            .filter(|m| self.speaks_of_replicas(m.id))
            .map(|m| m.id)
            .collect();
        // One that lives and has no link may yet tell, or turn out to be dead.
        let is_unreached = self
            .members
            .live_peers()
            .any(|m| m.role == Role::Node && !self.connected.contains_key(&m.id));
        let waits = (is_unreached || !peers.is_empty()) && self.config.rules.set_is_known_first;
        if !waits {
            self.sets_are_known(u64::MAX, out);
            return;
        }
        let now = self.now;
        let mut newest = None;
        for leaving in self.leaving_sets.iter_mut().filter(|it| it.ask_at <= now) {
            leaving.ask_at = now + SEE_EVERY;
            newest = newest.max(Some(leaving.pos));
        }
        let Some(pos) = newest.filter(|pos| *pos <= self.log.pos()) else { return };
        for to in peers {
            out.push(Action::Send { to, message: Control::SeeClaims { pos } });
        }
    }

    fn sets_are_known(&mut self, pos: u64, out: &mut Vec<Action>) {
        let mut known = BTreeSet::new();
        let mut gone: BTreeMap<NodeBoot, Vec<ShardId>> = BTreeMap::new();
        let (log, filling) = (&self.log, &self.filling);
        self.leaving_sets.retain(|leaving| {
            if pos < leaving.pos {
                return true;
            }
            known.extend(leaving.shards.iter().copied());
            let boot = leaving.boot;
            let is_back = |shard: &ShardId| {
                log.replicas(*shard).contains(boot)
                    || filling.get(&boot).is_some_and(|filling| filling.contains(shard))
            };
            let shards = leaving.shards.iter().copied().filter(|shard| !is_back(shard));
            gone.entry(boot).or_default().extend(shards);
            false
        });
        self.recheck |= !known.is_empty();
        self.tell_sets(known, out);
        // One that was filled, named and left before that was told is no member, and waited for.
        for (to, shards) in gone {
            if !shards.is_empty() {
                out.push(Action::StopFill { to, shards });
            }
        }
    }

    /// Answers of these shards wait for whoever is named now. Not yet where somebody has left of
    /// whom nobody else knows: there they wait for everybody who was named.
    pub(super) fn tell_sets(
        &self,
        shards: impl IntoIterator<Item = ShardId>,
        out: &mut Vec<Action>,
    ) {
        let is_known = |shard: &ShardId| {
            self.slots.contains_key(shard)
                && self.leaving_sets.iter().all(|leaving| !leaving.shards.contains(shard))
        };
        let held = shards.into_iter().filter(is_known);
        let sets: Vec<_> = held.map(|shard| (shard, self.log.replicas(shard))).collect();
        if !sets.is_empty() {
            out.push(Action::SetReplicas { sets });
        }
    }

    pub(super) fn on_see_claims(&mut self, from: NodeBoot, pos: u64, out: &mut Vec<Action>) {
        if pos <= self.book.pos_of(from) {
            out.push(Action::Send { to: from.node, message: Control::SeenClaims { pos } });
        } else {
            self.ask_claims(from.node, out);
        }
    }

    pub(super) fn on_seen_claims(&mut self, from: NodeBoot, pos: u64, out: &mut Vec<Action>) {
        if self.members.is_live(from) {
            self.sets_are_known(pos, out);
        }
    }

    /// A copy is complete and follows: it is named in the claim.
    pub(super) fn on_filled(&mut self, to: NodeBoot, shards: &[ShardEpoch], out: &mut Vec<Action>) {
        let (mut named, mut unnamed) = (Vec::new(), Vec::new());
        for at in shards {
            let filling = self.filling.get_mut(&to).is_some_and(|it| it.remove(&at.shard));
            let serves = matches!(self.slots.get(&at.shard), Some(Slot::Serving { .. }));
            if filling && serves && self.members.is_live(to) {
                let set = self.log.replicas(at.shard).with(to);
                if self.log.set_replicas(at.shard, set) {
                    named.push(at.shard);
                }
            }
            if !self.log.replicas(at.shard).contains(to) {
                unnamed.push(at.shard);
            }
        }
        // Answers wait for a copy that is complete; of these no claim will tell.
        if !unnamed.is_empty() {
            out.push(Action::StopFill { to, shards: unnamed });
        }
        self.filling.retain(|_, shards| !shards.is_empty());
        self.tell_sets(named, out);
        self.recheck = true;
    }

    /// A replica refused to follow.
    pub(super) fn on_follower_lost(
        &mut self,
        to: NodeBoot,
        shards: &[(ShardId, Unfollowed)],
        out: &mut Vec<Action>,
    ) {
        let mut lost = Vec::new();
        for &(shard, why) in shards {
            match why {
                // Somebody serves above this node. Nothing of what waits is acknowledged; the
                // claim tells the rest.
                Unfollowed::HigherEpoch(epoch) => {
                    self.outranked.insert((shard, to), epoch);
                    self.recheck = true;
                    self.ask_claims(epoch.node, out);
                }
                // Who refused a fill may yet serve the shard, and will hear that it is not its own.
                Unfollowed::NoCopy if self.is_filling(to, shard) => {
                    self.refused_fills.insert((shard, to), self.now + FILL_AGAIN);
                    lost.push(shard);
                }
                Unfollowed::Behind | Unfollowed::NoCopy => lost.push(shard),
                Unfollowed::NoMemory => {
                    self.shun(to);
                    lost.push(shard);
                }
            }
        }
        self.unfollow(to, lost, out);
    }

    /// A replica has acknowledged nothing for too long: answers must not wait any longer.
    pub(super) fn on_follower_silent(&mut self, to: NodeBoot, out: &mut Vec<Action>) {
        self.shun(to);
        let named = self.named(to);
        self.unfollow(to, named, out);
    }

    /// A replica that knew of a higher epoch follows no more, also when this node serves above that
    /// one by now: an aborted move may have raised its own.
    fn unfollow_outranked(&mut self, out: &mut Vec<Action>) {
        let mut lost = Vec::new();
        let slots = &self.slots;
        self.outranked.retain(|&(shard, to), higher| match slots.get(&shard) {
            Some(Slot::Serving { epoch }) if *higher < *epoch => {
                lost.push((shard, to));
                false
            }
            Some(_) => true,
            None => false,
        });
        for (shard, to) in lost {
            self.unfollow(to, vec![shard], out);
        }
    }

    fn shun(&mut self, boot: NodeBoot) {
        self.shunned.insert(boot, self.now + SHUNNED_FOR);
        self.recheck = true;
    }

    /// Shards of this node whose claims name `boot`, or that it is being filled with.
    fn named(&self, boot: NodeBoot) -> Vec<ShardId> {
        let filling = self.filling.get(&boot);
        let is_named = |shard: &&ShardId| {
            filling.is_some_and(|it| it.contains(*shard))
                || self.log.replicas(**shard).contains(boot)
        };
        self.slots.keys().filter(is_named).copied().collect()
    }

    fn unfollow(&mut self, to: NodeBoot, shards: Vec<ShardId>, out: &mut Vec<Action>) {
        if shards.is_empty() {
            return;
        }
        if let Some(filling) = self.filling.get_mut(&to) {
            filling.retain(|shard| !shards.contains(shard));
        }
        self.filling.retain(|_, shards| !shards.is_empty());
        let (named, filling): (Vec<_>, Vec<_>) =
            shards.into_iter().partition(|shard| self.log.replicas(*shard).contains(to));
        self.drop_replica(named, to);
        if !filling.is_empty() {
            out.push(Action::StopFill { to, shards: filling });
        }
        self.recheck = true;
    }

    /// Members have changed: the dead hold nothing.
    pub(super) fn drop_dead_replicas(&mut self, out: &mut Vec<Action>) {
        let mut boots: BTreeSet<NodeBoot> = self.filling.keys().copied().collect();
        for shard in self.slots.keys() {
            boots.extend(self.log.replicas(*shard).as_slice());
        }
        let members = Arc::clone(&self.members);
        for boot in boots.into_iter().filter(|boot| !members.is_live(*boot)) {
            let named = self.named(boot);
            self.unfollow(boot, named, out);
        }
        self.shunned.retain(|boot, _| members.is_live(*boot));
        self.refused_fills.retain(|(_, boot), _| members.is_live(*boot));
    }

    /// Shards were granted to this node: the source holds the first copy from the first answer on,
    /// and those who followed the source may follow on. Gives the shards whose claims name it.
    pub(super) fn adopt_copies(
        &mut self,
        source: NodeBoot,
        shards: &[ShardEpoch],
        out: &mut Vec<Action>,
    ) -> Vec<ShardId> {
        let mut named = Vec::new();
        if self.config.replicas == 0 {
            return named;
        }
        let mut adopted: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        if self.members.is_live(source) && self.speaks_of_replicas(source.node) {
            let first = Replicas::new([source]);
            for at in shards {
                self.log.set_replicas(at.shard, first.clone());
            }
            out.push(Action::Adopt { to: source, shards: shards.to_vec(), named: true });
            named.extend(shards.iter().map(|at| at.shard));
        }
        for &at in shards {
            for &boot in self.book.replicas_of(source, at.shard).iter().flat_map(|r| r.as_slice()) {
                if boot != self.config.me && boot != source && self.members.is_live(boot) {
                    adopted.entry(boot).or_default().push(at);
                }
            }
        }
        self.adopt(adopted, out);
        named
    }

    /// Lets those follow who may hold the same state already.
    pub(super) fn adopt(
        &mut self,
        adopted: BTreeMap<NodeBoot, Vec<ShardEpoch>>,
        out: &mut Vec<Action>,
    ) {
        for (to, shards) in adopted {
            if self.speaks_of_replicas(to.node) && self.members.is_live(to) {
                self.filling.entry(to).or_default().extend(shards.iter().map(|at| at.shard));
                out.push(Action::Adopt { to, shards, named: false });
            }
        }
    }

    /// Whether somebody who serves this shard was named by the claim, and so has probably taken it
    /// over with all that was acknowledged here.
    pub(super) fn is_superseded_by(&self, shard: ShardId, owner: NodeBoot) -> bool {
        self.log.replicas(shard).contains(owner)
    }
}
