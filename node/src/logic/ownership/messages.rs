//! Messages of other members.

use super::*;

impl Ownership {
    pub(super) fn on_control(&mut self, from: NodeBoot, message: Control, out: &mut Vec<Action>) {
        match message {
            Control::Propose { token, members } => self.on_propose(from, token, &members, out),
            Control::Accept { token } => self.forming.on_accept(self.now, from, token),
            Control::Reject { token, rather: _ } => self.forming.on_reject(self.now, token),
            Control::WhoHolds { token, members_digest, shards } => {
                // Who is not known here yet would not be asked when this node asks: it comes again.
                if self.members.is_live(from) {
                    if members_digest == self.digest {
                        self.void_copies(&shards, None, out);
                    }
                    self.on_who_holds(from, (token, members_digest), &shards, out);
                }
            }
            Control::Holds { token, members_digest, holdings, highest } => {
                self.on_doubt_answer(from, token, &holdings, out);
                self.on_takeable(from.node, (token, None), (&holdings, &highest), out);
                self.on_holds(from, token, members_digest, (&holdings, &highest));
            }
            Control::Prepare { handoff, members_digest, shards, drain } => {
                self.on_prepare(from, handoff, (members_digest, drain), shards, out);
            }
            Control::Prepared { handoff } => self.on_prepared(from, handoff, out),
            Control::Declined { handoff, why } => self.on_declined(from, handoff, why, out),
            Control::NoCopy { handoff } => self.on_no_copy(from, handoff, out),
            Control::Served { handoff, shards } => self.on_served(from, handoff, &shards, out),
            Control::CaughtUp { handoff } => self.on_caught_up(from, handoff, out),
            Control::Grant { handoff, shards } => self.on_grant(handoff, &shards, out),
            Control::Relay { to, handoff, shards } => {
                let message = Control::Grant { handoff, shards };
                if to == self.config.me.node {
                    self.on_control(from, message, out);
                } else {
                    out.push(Action::Send { to, message });
                }
            }
            Control::TakeOver { token, owner, pos, shards } => {
                self.on_take_over(from, (token, owner, pos), &shards, out);
            }
            Control::Takeable { token, pos, holdings, highest } => {
                let answer = (&holdings[..], &highest[..]);
                self.on_takeable(from.node, (token, Some(pos)), answer, out);
            }
            Control::SeeClaims { pos } => self.on_see_claims(from, pos, out),
            Control::SeenClaims { pos } => self.on_seen_claims(from, pos, out),
            Control::WhatSaved { token } => self.on_what_saved(from, token, out),
            Control::Saved { token, shards, begun, pos } => {
                self.on_saved(from, (token, pos), (&shards, &begun), out);
            }
            Control::Abort { handoff } => {
                if self.incoming.remove(&handoff).is_some() {
                    out.push(Action::DropCopy { handoff });
                }
            }
        }
    }

    pub(super) fn on_propose(
        &mut self,
        from: NodeBoot,
        token: Token,
        members: &[NodeBoot],
        out: &mut Vec<Action>,
    ) {
        let joining = self.joining();
        let owner = match self.stage {
            // Who has decided to found, and only asks for counters yet, is as good as an owner.
            Stage::Joining => {
                let founds = self.founds_by.is_some().then_some(self.config.me);
                self.owners().into_iter().next().or(founds)
            }
            Stage::Ready | Stage::Leaving => Some(self.config.me),
        };
        let sight = Sight { me: self.config.me, joining: &joining, owner, has_peer: true };
        let message = self.forming.on_propose(self.now, from, (token, members), sight);
        out.push(Action::Send { to: from.node, message });
    }

    /// Whoever asks who holds shards may claim them on the answer: a grant of them that is still
    /// under way, from a source that has died since, must find no copy (R8).
    pub(super) fn void_copies(
        &mut self,
        shards: &[ShardRange],
        of: Option<NodeBoot>,
        out: &mut Vec<Action>,
    ) {
        if !self.config.rules.stale_is_ignored {
            return;
        }
        let asked = |at: &ShardEpoch| {
            let covers = |range: &ShardRange| {
                range.first <= at.shard.0 && at.shard.0 - range.first < range.len
            };
            shards.iter().any(covers)
        };
        self.incoming.retain(|&handoff, incoming| {
            let is_void = incoming.phase == incoming::Phase::CaughtUp
                && of.is_none_or(|source| handoff.source == source)
                && incoming.shards.iter().any(asked);
            if is_void {
                out.push(Action::DropCopy { handoff });
            }
            !is_void
        });
    }

    pub(super) fn on_who_holds(
        &self,
        from: NodeBoot,
        (token, digest): (Token, u64),
        shards: &[ShardRange],
        out: &mut Vec<Action>,
    ) {
        let (mut holdings, highest) = self.holdings(shards);
        // Whoever may claim them on the answer may know of the owner's death before this node.
        let founds = token == JOIN_TOKEN && self.stage == Stage::Joining;
        holdings.extend(self.claimed_by_me(shards, |shard| match digest {
            NO_CLAIM => self.may_take_over(shard) || founds && self.holds_saved(shard),
            _ => self.is_heir(shard) || self.holds_saved(shard),
        }));
        let members_digest = self.digest;
        let message = Control::Holds { token, members_digest, holdings, highest };
        out.push(Action::Send { to: from.node, message });
    }

    /// What this node knows of who holds these shards, and their highest counters.
    pub(super) fn holdings(&self, shards: &[ShardRange]) -> (Vec<Holding>, Vec<ClaimRange>) {
        let (mut holdings, highest) =
            who_holds(&self.book, self.config.n_shards, shards, |owner| self.is_holder(owner));
        for range in shards {
            for shard in range.shards(self.config.n_shards) {
                if let Some(Slot::Granted { to, next, .. }) = self.slots.get(&shard) {
                    let counter = next.counter;
                    let range = ClaimRange { first: shard.0, len: 1, counter };
                    holdings.push(Holding { owner: *to, range });
                }
            }
        }
        (holdings, highest)
    }

    /// Those of these shards that this node is about to serve.
    pub(super) fn claimed_by_me(
        &self,
        shards: &[ShardRange],
        is_mine: impl Fn(ShardId) -> bool,
    ) -> Vec<Holding> {
        let all = shards.iter().flat_map(|range| range.shards(self.config.n_shards));
        let holding = |shard: ShardId| {
            let counter = 1 + self.book.highest(shard);
            let range = ClaimRange { first: shard.0, len: 1, counter };
            Holding { owner: self.config.me, range }
        };
        all.filter(|shard| is_mine(*shard)).map(holding).collect()
    }

    pub(super) fn on_holds(
        &mut self,
        from: NodeBoot,
        token: Token,
        digest: u64,
        answer: (&[Holding], &[ClaimRange]),
    ) {
        // One that is only suspected may claim as well.
        let binding = self
            .members
            .find(from.node)
            .is_some_and(|m| m.is_live_node() && m.phase == Phase::Ready);
        if token == JOIN_TOKEN {
            self.on_counters(from.node, answer.1);
            self.on_held_elsewhere(from, answer.0);
        }
        if let Some(query) = self.query.as_mut().filter(|query| query.token == token) {
            query.answer(from.node, digest, binding, answer);
        }
    }
}
