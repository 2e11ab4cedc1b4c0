//! Starting handoffs (R10), and the end of a drain.
//!
//! Shards move for two reasons that are handoffs: their node *drains*, or *balance* wants them
//! elsewhere. A drain is never held up. Balance waits until the cluster is calm: members unchanged
//! for a while, the target ready and of the same view, no mass failure, and no shard that has only
//! just moved.

use super::*;

/// Deaths within this time are one event.
pub(super) const MASS_WITHIN: Duration = Duration::from_secs(5);
/// So many of them, if they are also [`MASS_PERCENT`] of the nodes, freeze balance.
const MASS_MIN: usize = 3;
/// Percent of the nodes.
const MASS_PERCENT: usize = 30;
/// How long members must not change before a freeze ends.
pub(super) const THAW_AFTER: Duration = Duration::from_secs(30);
/// How long a shard that was too hot to move is left alone; then it goes by itself.
const HOT_FOR: Duration = Duration::from_secs(5);

/// What is yet to move from or to this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Shards of dead owners, and unclaimed ones, that this node is about to claim.
    pub takeover: usize,
    /// Shards that are to be handed off because this node leaves.
    pub drain: usize,
    /// Shards that placement wants elsewhere.
    pub balance: usize,
    /// Shards whose handoff is under way and not yet sealed.
    pub copying: usize,
    /// Shards that are sealed, or granted and not yet claimed.
    pub moving: usize,
    /// Bytes of state in all of them that are handed off, as far as known.
    pub bytes: u64,
    /// A mass failure holds balance up.
    pub frozen: bool,
}

/// Shards that are to be handed off and are not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    shards: usize,
    bytes: u64,
}

impl Waiting {
    fn add(&mut self, size: Option<&u64>) {
        self.shards += 1;
        self.bytes += size.copied().unwrap_or(0);
    }

    fn take(&mut self, size: Option<&u64>) {
        self.shards -= 1;
        self.bytes -= size.copied().unwrap_or(0);
    }
}

impl Ownership {
    pub(super) fn start_handoffs(&mut self, out: &mut Vec<Action>) {
        let class = self.class();
        let never_waits = class == Class::Drain && self.config.rules.drain_never_waits;
        let is_calm = never_waits || self.may_balance();
        let busy: BTreeSet<ShardId> =
            self.outgoing.values().flat_map(|handoff| handoff.ids()).collect();
        let mut wanted: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        let me = self.config.me.node;
        let mut waits = false;
        let mut waiting = Waiting::default();
        let is_free = |at: &ShardEpoch| !busy.contains(&at.shard) && !self.is_quarantined(at.shard);
        for at in self.serving().filter(is_free) {
            let elsewhere = self.targets.owner_of(at.shard).is_some_and(|node| node != me);
            if !elsewhere {
                continue;
            }
            waiting.add(self.sizes.get(&at.shard));
            let may_move = is_calm && self.may_move(at.shard, class);
            match self.target_of(at.shard).filter(|_| may_move) {
                Some(to) => wanted.entry(to).or_default().push(at),
                None => waits |= is_calm,
            }
        }
        // A target that is not fit now, or said no, is looked at again.
        if waits {
            self.recheck_by(self.now + DECLINED_FOR);
        }
        let most = self.copies_to_one_max(class);
        for (to, shards) in wanted {
            let mut shards = &shards[..];
            while !shards.is_empty()
                && self.streams_out() < self.config.outgoing_max
                && self.copies_to(to) < most
            {
                let n = self.batch_len(shards);
                let (batch, rest) = shards.split_at(n);
                for at in batch {
                    waiting.take(self.sizes.get(&at.shard));
                }
                self.prepare(to, batch.to_vec(), class, out);
                shards = rest;
            }
            // A stream that becomes free is noticed at once.
            self.recheck_by(self.now + DECLINED_FOR);
        }
        self.waiting = waiting;
    }

    /// Why this node hands shards off.
    pub(super) fn class(&self) -> Class {
        match self.stage {
            Stage::Leaving => Class::Drain,
            Stage::Joining | Stage::Ready => Class::Balance,
        }
    }

    /// Copies for balance that this node makes to one target at a time: its share of what the
    /// target takes, so that all sources of a joiner use their budgets, and none waits for long.
    fn copies_to_one_max(&self, class: Class) -> usize {
        let ready = |m: &&Member| m.role == Role::Node && m.state == MemberState::Ready;
        let n_sources = self.members.list.iter().filter(ready).count().saturating_sub(1);
        match class {
            Class::Drain => usize::MAX,
            Class::Balance => (self.config.incoming_max / n_sources.max(1)).max(1),
        }
    }

    fn copies_to(&self, to: NodeBoot) -> usize {
        self.outgoing.values().filter(|handoff| handoff.to == to && handoff.is_open()).count()
    }

    fn streams_out(&self) -> usize {
        self.outgoing.values().filter(|handoff| handoff.holds_stream()).count()
    }

    /// Looks at everything again at `at`, or sooner.
    pub(super) fn recheck_by(&mut self, at: Time) {
        self.recheck_at = Some(self.recheck_at.map_or(at, |sooner| sooner.min(at)));
    }

    /// Whether members have been quiet long enough to move shards for balance.
    pub(super) fn may_balance(&mut self) -> bool {
        let rules = self.config.rules;
        let founding = self.founded_at.is_some_and(|at| self.now.since(at) < FOUNDING_FOR);
        let quiet = if founding { FOUNDING_QUIET } else { self.config.balance_quiet };
        let mut ready_at = self.digest_since;
        if rules.balance_waits {
            ready_at += quiet;
        }
        if self.frozen_since.is_some() && rules.balance_freezes {
            ready_at = ready_at.max(self.digest_since + THAW_AFTER);
        }
        if ready_at > self.now {
            self.recheck_by(ready_at);
            return false;
        }
        self.frozen_since = None;
        // What has too few copies gets them first.
        if self.n_under > 0 && !self.filling.is_empty() {
            self.recheck_by(self.now + TICK);
            return false;
        }
        true
    }

    /// Takes a death into account that was not announced: many at once freeze balance.
    pub(super) fn note_death(&mut self) {
        let now = self.now;
        self.recent_deaths.retain(|at| now.since(*at) < MASS_WITHIN);
        self.recent_deaths.push(now);
        let n_deaths = self.recent_deaths.len();
        let alive = self.members.list.iter().filter(|m| m.is_live_node()).count();
        let n_nodes = alive + n_deaths;
        if MASS_MIN <= n_deaths && n_nodes * MASS_PERCENT < n_deaths * 100 {
            self.frozen_since = Some(now);
        }
    }

    /// Whether `shard` may be handed off now.
    fn may_move(&self, shard: ShardId, class: Class) -> bool {
        let is_hot = self.hot.get(&shard).is_some_and(|until| self.now < *until);
        let stays = self.stays.get(&shard).is_some_and(|until| self.now < *until);
        match class {
            Class::Drain => true,
            Class::Balance => !(is_hot || stays && self.config.rules.balance_stays),
        }
    }

    /// A shard has come for balance: it stays for a while. Not in a cluster that is only just
    /// being founded, as the boots of both nodes tell, which are times of their starts.
    pub(super) fn settle_in(&mut self, shard: ShardId, source: NodeBoot) {
        let apart = self.config.me.boot.0.abs_diff(source.boot.0);
        if FOUNDING_FOR.as_micros() <= u128::from(apart) {
            self.stays.insert(shard, self.now + self.config.balance_stay);
        }
        let now = self.now;
        self.stays.retain(|_, until| now < *until);
    }

    /// Shards that were too hot to move: left alone for a while, and then moved one by one.
    pub(super) fn leave_hot(&mut self, shards: &[ShardEpoch]) {
        let now = self.now;
        self.hot.retain(|_, until| now.since(*until) < 4 * HOT_FOR);
        self.hot.extend(shards.iter().map(|at| (at.shard, now + HOT_FOR)));
        self.recheck_by(now + HOT_FOR);
    }

    /// The live, connected node that should own `shard` instead of this one.
    pub(super) fn target_of(&self, shard: ShardId) -> Option<NodeBoot> {
        let node = self.targets.owner_of(shard).filter(|node| *node != self.config.me.node)?;
        let member = self.members.find(node)?;
        let declined = self.declined.get(&node);
        let fit = member.state == MemberState::Ready
            && self.is_connected(member.node_boot())
            && declined.is_none_or(|until| *until <= self.now);
        fit.then(|| member.node_boot())
    }

    pub(super) fn batch_len(&self, shards: &[ShardEpoch]) -> usize {
        let mut bytes = 0;
        let fits = |at: &&ShardEpoch| {
            bytes += self.sizes.get(&at.shard).copied().unwrap_or(0);
            bytes <= self.config.batch_bytes_max && !self.hot.contains_key(&at.shard)
        };
        let n = shards.iter().take(self.config.batch_shards_max).take_while(fits).count();
        n.max(1)
    }

    pub(super) fn prepare(
        &mut self,
        to: NodeBoot,
        shards: Vec<ShardEpoch>,
        class: Class,
        out: &mut Vec<Action>,
    ) {
        let number = self.next_number;
        self.next_number += 1;
        let id = HandoffId { source: self.config.me, number };
        let message = Control::Prepare {
            handoff: id,
            members_digest: self.digest,
            shards: shards.clone(),
            drain: class == Class::Drain,
        };
        out.push(Action::Send { to: to.node, message });
        let phase = outgoing::Phase::Preparing { until: self.now + PREPARE_MAX };
        let steps = Steps { asked: self.now, ..Steps::default() };
        self.outgoing.insert(number, Outgoing { id, to, class, shards, phase, steps });
    }

    /// Whether a handoff that can still be called off should go on.
    pub(super) fn is_wanted(&self, handoff: &Outgoing) -> bool {
        let wanted = |at: &ShardEpoch| match handoff.class {
            // Any ready node will do: what was begun is not begun again elsewhere.
            Class::Drain => true,
            Class::Balance => self.targets.owner_of(at.shard) == Some(handoff.to.node),
        };
        let fit = self.members.find(handoff.to.node).is_some_and(|member| {
            matches!(member.state, MemberState::Ready | MemberState::Suspect)
        });
        fit && handoff.shards.iter().any(wanted)
    }

    /// What is yet to move, by class.
    #[must_use]
    pub fn pending(&self) -> Pending {
        let Waiting { shards: waiting, mut bytes } = self.waiting;
        let mut copying = 0;
        for handoff in self.outgoing.values().filter(|handoff| handoff.is_open()) {
            copying += handoff.shards.len();
            bytes += match handoff.phase {
                outgoing::Phase::Copying(copying) => copying.left(),
                outgoing::Phase::Preparing { .. }
                | outgoing::Phase::Sealing { .. }
                | outgoing::Phase::Sending { .. }
                | outgoing::Phase::Granted { .. } => {
                    handoff.ids().map(|shard| self.sizes.get(&shard).copied().unwrap_or(0)).sum()
                }
            };
        }
        let (drain, balance) = match self.class() {
            Class::Drain => (waiting, 0),
            Class::Balance => (0, waiting),
        };
        Pending {
            takeover: self.query.as_ref().map_or(0, |query| query.shards.len()),
            drain,
            balance,
            copying,
            moving: self.n_moving(),
            bytes,
            frozen: self.frozen_since.is_some(),
        }
    }

    pub(super) fn finish_drain(&mut self, out: &mut Vec<Action>) {
        self.recheck_by(self.now + BUSY_TICK);
        let somebody = self
            .members
            .live_peers()
            .any(|m| m.role == Role::Node && m.state == MemberState::Ready);
        let moving = self.slots.values().any(|slot| matches!(slot, Slot::Granted { .. }));
        let is_empty =
            self.slots.keys().all(|shard| self.is_quarantined(*shard)) && !self.is_needed();
        if !self.drained && (is_empty || (!somebody && !moving)) {
            self.drained = true;
            out.push(Action::Drained);
        }
    }
}
