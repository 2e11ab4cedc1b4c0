//! What this node's disk holds of shards, until it is clear what becomes of it (R0).
//!
//! ```text
//! starting node                                   every other live node
//!   WhatSaved ─────────────────────────────────▶
//!   ◀── Saved{states that nobody serves, shards claimed empty}
//!   all have answered; of each shard that the disk holds:
//!     somebody serves it, and its state goes back to this one ──▶ dropped
//!     somebody serves it from nothing, or from an older state,
//!     or this one began by itself, or went on without copies ───▶ offered to the owner
//!     somebody serves it below the epoch of this state ─────────▶ served here above both
//!     somebody has set it aside as damaged, this is whole ──────▶ served here
//!     nobody serves it, and a newer state is elsewhere ─────────▶ waits for that one's claim
//!     nobody serves it, and this is the newest ─────────────────▶ served here, or set aside where
//!                                                                 it is damaged
//! ```
//!
//! A node is not ready before all of this is decided, but the one that founds: the others join it.
//! Whoever wants to claim a shard empty hears from it that it holds the shard. Nodes that the data
//! directory remembers are waited for, for [`RETURN_MAX`] from the start: theirs may be the newest
//! state.

use stead_shared::control::{BegunShard, SavedKind, SavedShard};
use stead_shared::id::Version;

use super::*;
use crate::logic::durable::Beginning;
use crate::logic::recovery::{Saved, rank};

/// How long nodes of the cluster before are waited for.
const RETURN_MAX: Duration = Duration::from_secs(10);
/// How often those who are silent are asked again.
const SAVED_ASK_EVERY: Duration = Duration::from_millis(200);
/// How often all are asked anew while something is not decided.
const ROUND_EVERY: Duration = Duration::from_millis(500);
/// The first version of the link's protocol whose nodes can tell what their disks hold.
const SAVED_SINCE: u8 = 3;
/// The token of what nobody has asked for.
const NO_QUESTION: Token = 0;
/// How long a founder with a disk waits for counters and disks that others remember.
const DISKS_MAX: Duration = Duration::from_secs(5);

/// What is not decided yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Recovery {
    held: BTreeMap<ShardId, Saved>,
    /// Nodes of the cluster before.
    remembered: BTreeSet<NodeId>,
    /// Shards that other joining nodes' disks hold, for one who founds.
    elsewhere: BTreeSet<ShardId>,
    /// Shards that this process claimed empty, or from disk, and how those had begun.
    begun: BTreeMap<ShardId, Vec<BegunShard>>,
    /// Shards that nobody can serve, since what is on disk is damaged.
    quarantined: BTreeSet<ShardId>,
    /// Shards of which the disk still holds what their owners are offered.
    offering: BTreeSet<ShardId>,
    round: Option<Round>,
    next_round: Option<Time>,
    said: bool,
}

/// One question to everybody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Round {
    token: Token,
    since: Time,
    ask_at: Time,
    told: BTreeMap<NodeBoot, Told>,
    /// Shards whose claims have changed since it was asked: who claims them may have told before
    /// that, and not how they began.
    moved: BTreeSet<ShardId>,
}

/// What one node has told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Told {
    shards: BTreeMap<ShardId, SavedShard>,
    begun: BTreeMap<ShardId, Vec<BegunShard>>,
    /// Where its claim log was.
    pos: u64,
}

/// What becomes of a shard that the disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Wait,
    Drop,
    Offer(NodeBoot, Epoch),
    Serve,
    SetAside,
}

impl Recovery {
    /// Claims of these shards have changed.
    pub(super) fn note_moved(&mut self, shards: &[ShardId]) {
        if let Some(round) = &mut self.round {
            round.moved.extend(shards.iter().filter(|shard| self.held.contains_key(shard)));
        }
    }

    pub(super) fn each_time(&mut self, visit: &mut dyn FnMut(&mut Time, Duration)) {
        if let Some(round) = &mut self.round {
            visit(&mut round.since, ASK_FOR);
            visit(&mut round.ask_at, Duration::ZERO);
        }
        if let Some(at) = &mut self.next_round {
            visit(at, Duration::ZERO);
        }
    }
}

impl Ownership {
    /// Takes note of what this node's disk holds, and of the nodes that were in the cluster when it
    /// last ran. Before anything else.
    #[must_use]
    pub fn recovering(
        mut self,
        held: BTreeMap<ShardId, Saved>,
        remembered: BTreeSet<NodeId>,
    ) -> Self {
        for (shard, saved) in &held {
            self.book.remember(*shard, saved.counter(&self.config.rules));
        }
        let begun = held.iter().filter_map(|(shard, saved)| began(*shard, saved));
        let begun = begun.map(|it| (it.at.shard, vec![it])).collect();
        self.recovery = Recovery { held, remembered, begun, ..Recovery::default() };
        self
    }

    /// Shards that are held by this node and cannot be served: what is on its disk is damaged.
    pub fn quarantined(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.recovery.quarantined.iter().copied()
    }

    pub(super) fn is_quarantined(&self, shard: ShardId) -> bool {
        self.recovery.quarantined.contains(&shard)
    }

    /// Whether this node's disk holds a shard, and it is not decided what becomes of that.
    pub(super) fn holds_saved(&self, shard: ShardId) -> bool {
        self.recovery.held.contains_key(&shard)
    }

    pub(super) fn is_recovering(&self) -> bool {
        !self.recovery.held.is_empty()
    }

    /// Whether the disk holds what the shard's owner is offered: nothing else of it can be written
    /// there, so that the shard cannot come here yet.
    pub(super) fn is_offering(&self, shard: ShardId) -> bool {
        self.recovery.offering.contains(&shard)
    }

    pub(super) fn on_offered(&mut self, shards: &[ShardId]) {
        for shard in shards {
            self.recovery.offering.remove(shard);
        }
    }

    /// Whether a node may come back that was in the cluster before, and have what is newest.
    pub(super) fn waits_for_disks(&mut self) -> bool {
        if RETURN_MAX <= self.now.since(self.started) {
            return false;
        }
        let members = &self.members;
        let is_away = |node: &NodeId| members.find(*node).is_none_or(|m| !m.state.is_live());
        let away = self.recovery.remembered.iter().any(is_away);
        if away {
            self.recheck_by(self.now + TICK);
        }
        away
    }

    /// How long a founder waits for what others remember.
    pub(super) fn counters_max(&self) -> Duration {
        if self.config.has_disk { DISKS_MAX } else { COUNTERS_MAX }
    }

    /// Whether a founder leaves a shard to whoever has it on disk.
    pub(super) fn is_saved_somewhere(&self, shard: ShardId) -> bool {
        self.holds_saved(shard) || self.recovery.elsewhere.contains(&shard)
    }

    /// A joining node has said what it holds: nothing but what is on its disk.
    pub(super) fn on_held_elsewhere(&mut self, from: NodeBoot, holdings: &[Holding]) {
        let own = holdings.iter().filter(|it| it.owner == from);
        let shards = own.flat_map(|Holding { range, .. }| {
            let range = ShardRange { first: range.first, len: range.len };
            range.shards(self.config.n_shards)
        });
        self.recovery.elsewhere.extend(shards);
    }

    /// These are claimed without any state.
    pub(super) fn note_begun(&mut self, shards: &[ShardEpoch]) {
        let begun = |at: &ShardEpoch| (at.shard, vec![BegunShard { at: *at, from: None }]);
        self.recovery.begun.extend(shards.iter().map(begun));
    }

    /// The source of a move takes back what its target may have changed, which has died with it.
    pub(super) fn note_taken_back(&mut self, granted: ShardEpoch, at: ShardEpoch) {
        let from = Some(Version { epoch: granted.epoch, seq: u64::MAX });
        self.recovery.begun.entry(at.shard).or_default().push(BegunShard { at, from });
    }

    /// Who is granted shards, or gets copies of them, hears how they began: the state of one who comes
    /// back may not be in them. Where nothing was before, there is nothing to tell.
    pub(super) fn tell_begun(&self, to: NodeBoot, shards: &[ShardEpoch], out: &mut Vec<Action>) {
        let begun = shards.iter().filter_map(|at| self.recovery.begun.get(&at.shard)).flatten();
        let begun = begun.filter(|it| 1 < it.at.epoch.counter).copied();
        let begun: Vec<BegunShard> = begun.collect();
        let speaks = self.connected.get(&to.node).is_some_and(|(_, it)| SAVED_SINCE <= *it);
        if !begun.is_empty() && speaks {
            let (token, shards, pos) = (NO_QUESTION, Vec::new(), self.log.pos());
            let message = Control::Saved { token, shards, begun, pos };
            out.push(Action::Send { to: to.node, message });
        }
    }

    fn on_begun(&mut self, begun: &[BegunShard], out: &mut Vec<Action>) {
        let mut news = Vec::new();
        for it in begun.iter().filter(|it| it.at.shard.0 < self.config.n_shards) {
            let known = self.recovery.begun.entry(it.at.shard).or_default();
            if !known.contains(it) {
                known.push(*it);
                news.push(*it);
            }
        }
        if !news.is_empty() {
            out.push(Action::NoteBegun { begun: news });
        }
    }

    /// Somebody else serves it now, or this node from other state.
    pub(super) fn leave_quarantine(&mut self, shard: ShardId) {
        self.recovery.quarantined.remove(&shard);
    }

    /// To one whom the members do not show yet nothing is said: its name may be known for that of an
    /// owner who lives, and then this node does not know that it is to take over. It asks again.
    pub(super) fn on_what_saved(&self, from: NodeBoot, token: Token, out: &mut Vec<Action>) {
        if !self.members.is_live(from) {
            return;
        }
        let of_disk = |(&shard, saved): (&ShardId, &Saved)| SavedShard {
            shard,
            at: saved.at,
            kind: saved.kind,
        };
        let mut shards: BTreeMap<ShardId, SavedShard> =
            self.recovery.held.iter().map(of_disk).map(|it| (it.shard, it)).collect();
        let aside = self.quarantined().map(|shard| (shard, SavedKind::Damaged));
        for (shard, kind) in aside.chain(self.heirlooms().map(|shard| (shard, SavedKind::Heir))) {
            let epoch = Epoch { counter: self.book.highest(shard), node: self.config.me.node };
            let at = Version { epoch, seq: 0 };
            shards.insert(shard, SavedShard { shard, at, kind });
        }
        let begun = self.recovery.begun.values().flatten().copied().collect();
        let shards = shards.into_values().collect();
        let message = Control::Saved { token, shards, begun, pos: self.log.pos() };
        out.push(Action::Send { to: from.node, message });
    }

    pub(super) fn on_saved(
        &mut self,
        from: NodeBoot,
        (token, pos): (Token, u64),
        (shards, begun): (&[SavedShard], &[BegunShard]),
        out: &mut Vec<Action>,
    ) {
        if token == NO_QUESTION {
            self.on_begun(begun, out);
            return;
        }
        let Some(round) = self.recovery.round.as_mut().filter(|it| it.token == token) else {
            return;
        };
        for saved in shards.iter().filter(|it| it.shard.0 < self.config.n_shards) {
            self.book.remember(saved.shard, saved.at.epoch.counter);
        }
        let shards = shards.iter().map(|it| (it.shard, *it)).collect();
        let mut begun_by_shard: BTreeMap<ShardId, Vec<BegunShard>> = BTreeMap::new();
        for it in begun {
            begun_by_shard.entry(it.at.shard).or_default().push(*it);
        }
        round.told.insert(from, Told { shards, begun: begun_by_shard, pos });
    }

    /// Asks, and decides once all have answered.
    pub(super) fn advance_recovery(&mut self, out: &mut Vec<Action>) {
        if self.recovery.held.is_empty() || self.stage == Stage::Leaving {
            return;
        }
        let now = self.now;
        self.recheck_by(now + TICK);
        if self.recovery.round.is_none() {
            if self.recovery.next_round.is_some_and(|at| now < at) {
                return;
            }
            let (token, told, moved) = (self.next_token, BTreeMap::new(), BTreeSet::new());
            self.next_token += 1;
            self.recovery.round = Some(Round { token, since: now, ask_at: now, told, moved });
        }
        let peers = self.peers_with_disks();
        let Some(round) = &mut self.recovery.round else { return };
        let book = &self.book;
        // Who has claimed what it held says nothing of it any more: its claims do, once they are here.
        let is_known = |peer: &NodeBoot| {
            round.told.get(peer).is_some_and(|told| told.pos <= book.pos_of(*peer))
        };
        let silent: Vec<NodeBoot> = peers.into_iter().filter(|peer| !is_known(peer)).collect();
        if silent.is_empty() {
            let (told, moved) = (std::mem::take(&mut round.told), std::mem::take(&mut round.moved));
            self.recovery.round = None;
            self.recovery.next_round = Some(now + ROUND_EVERY);
            self.decide(&told, &moved, out);
            return;
        }
        if round.ask_at <= now {
            round.ask_at = now + SAVED_ASK_EVERY;
            let token = round.token;
            for peer in silent {
                out.push(Action::AskClaims { to: peer.node });
                let message = Control::WhatSaved { token };
                out.push(Action::Send { to: peer.node, message });
            }
        }
    }

    /// Live nodes that can answer. One without a link may yet get one, for a while.
    fn peers_with_disks(&self) -> Vec<NodeBoot> {
        let nodes = self.members.live_peers().filter(|m| m.role == Role::Node);
        let since = self.recovery.round.as_ref().map_or(self.now, |round| round.since);
        let is_patient = self.now.since(since) < ASK_FOR;
        let speaks = |boot: &NodeBoot| match self.connected.get(&boot.node) {
            Some((_, version)) => SAVED_SINCE <= *version,
            None => is_patient,
        };
        nodes.map(|m| m.node_boot()).filter(speaks).collect()
    }

    fn decide(
        &mut self,
        told: &BTreeMap<NodeBoot, Told>,
        moved: &BTreeSet<ShardId>,
        out: &mut Vec<Action>,
    ) {
        let waits = self.waits_for_disks();
        let mut dropped = Vec::new();
        let mut offered: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        let (mut served, mut aside, mut n_older) = (Vec::new(), Vec::new(), 0);
        let held = std::mem::take(&mut self.recovery.held);
        let mut left = BTreeMap::new();
        for (shard, saved) in held {
            let fate = match moved.contains(&shard) {
                true => Fate::Wait,
                false => self.fate(shard, &saved, told, waits),
            };
            match fate {
                Fate::Wait => drop(left.insert(shard, saved)),
                Fate::Drop => dropped.push(shard),
                Fate::Offer(to, epoch) => {
                    offered.entry(to).or_default().push(ShardEpoch { shard, epoch });
                }
                Fate::Serve => {
                    n_older += usize::from(is_older(shard, &saved, told));
                    let at = self.serve_saved(shard);
                    self.recovery.begun.insert(shard, begun_of(at, &saved));
                    served.push(at);
                }
                Fate::SetAside => {
                    self.recovery.quarantined.insert(shard);
                    aside.push(self.serve_saved(shard));
                }
            }
        }
        self.recovery.held = left;
        self.recheck = true;
        self.tell_fates(dropped, served, aside, out);
        if 0 < n_older {
            out.push(Action::Note(Note::OlderThanDamaged { n_shards: n_older }));
        }
        for (to, shards) in offered {
            self.recovery.offering.extend(shards.iter().map(|at| at.shard));
            out.push(Action::OfferSaved { to, shards });
        }
        if waits
            && !self.recovery.held.is_empty()
            && !std::mem::replace(&mut self.recovery.said, true)
        {
            out.push(Action::Note(Note::WaitsForDisks { within: RETURN_MAX }));
        }
    }

    fn tell_fates(
        &self,
        dropped: Vec<ShardId>,
        served: Vec<ShardEpoch>,
        aside: Vec<ShardEpoch>,
        out: &mut Vec<Action>,
    ) {
        if !dropped.is_empty() {
            out.push(Action::DropSaved { shards: dropped });
        }
        if !served.is_empty() {
            let n_shards = served.len();
            out.push(Action::OpenSaved { shards: served });
            out.push(Action::Note(Note::Recovered { n_shards }));
        }
        if !aside.is_empty() {
            out.push(Action::Quarantine { shards: aside });
        }
    }

    fn serve_saved(&mut self, shard: ShardId) -> ShardEpoch {
        let counter = 1 + self.highest(shard);
        let at = ShardEpoch { shard, epoch: Epoch { counter, node: self.config.me.node } };
        self.serve(at);
        at
    }

    fn fate(
        &self,
        shard: ShardId,
        saved: &Saved,
        told: &BTreeMap<NodeBoot, Told>,
        waits: bool,
    ) -> Fate {
        let me = self.config.me;
        let claim =
            self.book.get(shard).filter(|(_, owner)| *owner == me || self.members.is_live(*owner));
        let is_whole = saved.kind != SavedKind::Damaged;
        if let Some((epoch, owner)) = claim {
            let by_others = told.values().filter_map(|it| it.begun.get(&shard)).flatten();
            let begun_here = self.recovery.begun.get(&shard).into_iter().flatten();
            let mut begun = by_others.clone().chain(begun_here);
            // What is here was not in what it was begun from, or it began by itself, on a side of a cut
            // that nobody went on with: whoever goes on with it is told.
            let is_missed = begun.any(|begun| {
                saved.at.epoch < begun.at.epoch && begun.from.is_none_or(|from| from < saved.at)
            });
            let is_apart = saved.begun.is_some_and(|mine| {
                1 < mine.epoch.counter && by_others.clone().all(|it| it.at.epoch != mine.epoch)
            });
            let of_owner = told.get(&owner).and_then(|it| it.shards.get(&shard));
            // It has begun to serve it since it said that: how it began is in its next answer.
            if of_owner.is_some_and(|it| matches!(it.kind, SavedKind::Owner | SavedKind::Copy)) {
                return Fate::Wait;
            }
            let is_aside = of_owner.is_some_and(|it| it.kind == SavedKind::Damaged);
            return match is_whole {
                // The owner has nothing that it could serve.
                true if is_aside => Fate::Serve,
                // What the owner has cannot go back to what is newer.
                true if epoch < saved.at.epoch => Fate::Serve,
                true if is_missed || is_apart || saved.alone => Fate::Offer(owner, epoch),
                true | false => Fate::Drop,
            };
        }
        let mine = SavedShard { shard, at: saved.at, kind: saved.kind };
        let mut others =
            told.iter().filter_map(|(who, it)| Some((who.node, it.shards.get(&shard)?)));
        // What was served when they told may have been handed on since, to one who had told before.
        let is_outdated = told.iter().any(|(who, it)| it.pos < self.book.pos_of(*who));
        if waits
            || is_outdated
            || others.any(|(node, other)| rank(me.node, &mine) < rank(node, other))
        {
            return Fate::Wait;
        }
        if is_whole { Fate::Serve } else { Fate::SetAside }
    }
}

/// How a shard begins that is claimed with what is on disk, and how that began.
fn begun_of(at: ShardEpoch, saved: &Saved) -> Vec<BegunShard> {
    let now = BegunShard { at, from: Some(saved.at) };
    [Some(now), began(at.shard, saved)].into_iter().flatten().collect()
}

fn began(shard: ShardId, saved: &Saved) -> Option<BegunShard> {
    let Beginning { epoch, from } = saved.begun?;
    Some(BegunShard { at: ShardEpoch { shard, epoch }, from })
}

/// Whether somebody has a newer state of the shard that is damaged.
fn is_older(shard: ShardId, saved: &Saved, told: &BTreeMap<NodeBoot, Told>) -> bool {
    let others = told.values().filter_map(|it| it.shards.get(&shard));
    others.filter(|it| it.kind == SavedKind::Damaged).any(|it| saved.at < it.at)
}
