//! Members, deaths, and who counts as alive.

use super::*;

impl Ownership {
    pub(super) fn on_members(
        &mut self,
        members: Arc<Members>,
        targets: Arc<Targets>,
        digest: u64,
        out: &mut Vec<Action>,
    ) {
        if digest != self.digest {
            self.digest = digest;
            self.digest_since = self.now;
        }
        self.members = members;
        self.targets = targets;
        self.recheck = true;
        self.count_members();
        self.settle_claims(out);
        let now = self.now;
        let suspects: BTreeSet<NodeId> = self
            .members
            .list
            .iter()
            .filter(|member| member.state == MemberState::Suspect)
            .map(|member| member.id)
            .collect();
        self.suspects.retain(|node, _| suspects.contains(node));
        for node in suspects {
            self.suspects.entry(node).or_insert(now);
        }
        let members = Arc::clone(&self.members);
        self.deaths.retain(|who, death| death.confirmed || !members.is_live(*who));
        self.told_of.retain(|who, _| !members.is_live(*who));
        self.drop_dead_replicas(out);
        // The list may tell of a death before, after or without the event.
        for member in members.list.iter().filter(|m| m.state == MemberState::Down) {
            self.on_died(member.node_boot(), false);
        }
    }

    /// Who lives has changed, and so perhaps whose claims count.
    fn settle_claims(&mut self, out: &mut Vec<Action>) {
        let (members, me) = (Arc::clone(&self.members), self.config.me);
        match self.book.set_live(|owner| owner == me || members.is_live(owner)) {
            Applied::Same | Applied::WantFull => {}
            Applied::Changed(shards) => {
                self.on_book_changed(&shards, out);
                out.push(Action::Publish);
            }
        }
    }

    pub(super) fn on_died(&mut self, who: NodeBoot, confirmed: bool) {
        let since = self.suspects.get(&who.node).copied().unwrap_or(self.now);
        let is_node = self.is_node(who.node);
        let new = Death { since, confirmed, counted: false };
        let death = self.deaths.entry(who).or_insert(new);
        death.confirmed |= confirmed;
        // Of somebody who died young the list may tell only later that it was a node.
        if is_node && !death.counted {
            death.counted = true;
            self.note_death();
        }
        self.recheck = true;
    }

    /// Whether somebody who is said to hold a shard may do so. One that is not known here yet, or
    /// only as an earlier boot, is known to those who said it: this node is behind.
    pub(super) fn may_hold(&self, who: NodeBoot) -> bool {
        let is_known = self.members.is_live(who) || self.is_dead(who);
        !is_known || self.is_holder(who)
    }

    /// Whether this boot is dead, as far as known. One that is not known yet is not: it has sent
    /// something before the news of it came.
    pub(super) fn is_dead(&self, who: NodeBoot) -> bool {
        let is_news = self.members.find(who.node).is_none_or(|member| member.boot < who.boot);
        !is_news && who != self.config.me && !self.members.is_live(who)
    }

    fn is_node(&self, node: NodeId) -> bool {
        self.members.find(node).is_some_and(|member| member.role == Role::Node)
    }

    /// Whether an owner's claim still counts: it is alive, or silent for less than the grace.
    pub(super) fn is_holder(&self, who: NodeBoot) -> bool {
        if who == self.config.me || self.members.is_live(who) {
            return true;
        }
        match self.members.find(who.node) {
            Some(member) if member.boot > who.boot => false,
            Some(member) if member.state == MemberState::Left => false,
            Some(_) => self.deaths.get(&who).is_none_or(|death| {
                !death.confirmed && self.now.since(death.since) < self.config.orphan_grace
            }),
            None => false,
        }
    }

    /// Live nodes that are still joining, this one included while it is. Who is only suspected may
    /// yet found, and is asked like the others.
    pub(super) fn joining(&self) -> BTreeSet<NodeBoot> {
        self.members
            .list
            .iter()
            .filter(|m| m.is_live_node() && m.phase == Phase::Joining)
            .map(|m| m.node_boot())
            .chain((self.stage == Stage::Joining).then_some(self.config.me))
            .collect()
    }

    /// Live nodes that are past joining or own shards, but this one.
    pub(super) fn owners(&self) -> BTreeSet<NodeBoot> {
        let booked = self
            .book
            .owners()
            .filter(|&(owner, n_claims)| n_claims > 0 && self.members.is_live(owner))
            .map(|(owner, _)| owner);
        self.members
            .live_peers()
            .filter(|m| m.role == Role::Node && m.phase != Phase::Joining)
            .map(|m| m.node_boot())
            .chain(booked)
            .filter(|owner| *owner != self.config.me)
            .collect()
    }
}
