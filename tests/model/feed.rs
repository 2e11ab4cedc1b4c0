//! The owner's side of copies that follow: what is sent to each of them and kept until it is
//! acknowledged, and the answers that wait for that.
//!
//! A connection carries its items in order, or is cut, and what was on its way is lost; the next one
//! is there at once, for one that comes later is one on which nothing has arrived yet.

use std::collections::{BTreeMap, VecDeque};

use stead_node::logic::ownership::Unfollowed;
use stead_node::logic::replication::{Lost, Outbox};
use stead_shared::claims::Replicas;
use stead_shared::control::ShardEpoch;
use stead_shared::id::{Epoch, NodeBoot, Version};

use super::kept::{Ack, Report};
use super::node::{Entry, Gate, Node, SHARD};

/// What is sent to a copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    FillBegin { at: Version },
    Fill { epoch: Epoch, entries: Vec<Entry> },
    FillEnd { at: Version },
    Adopt { epoch: Epoch, prev: Version },
    NextEpoch { epoch: Epoch, prev: Version },
    Entry { prev: Version, entry: Entry },
}

/// A copy of a shard that is served here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Follow {
    id: u64,
    pub(crate) to: NodeBoot,
    is_member: bool,
    /// It was filled: answers wait for it as long as it follows.
    is_catching: bool,
    phase: Phase,
    /// Position of the last item.
    last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Queued,
    Live {
        /// Position of the first item.
        since: u64,
    },
    Lost,
}

impl Follow {
    fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    fn is_awaited(&self) -> bool {
        self.is_member || (self.is_catching && self.is_live())
    }

    /// What answers wait for: more than it will ever have, where it does not follow.
    fn awaited(&self) -> u64 {
        if self.is_live() { self.last } else { u64::MAX }
    }
}

/// How far a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fill {
    Queued,
    Begun,
    Sent,
}

/// What is on its way to one follower.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Feed {
    outbox: Outbox<Item>,
    /// What has left over the connection that there is, and not arrived.
    pub(crate) flying: VecDeque<(u64, Item)>,
    /// With this position the copy of this follower is complete.
    milestones: VecDeque<(u64, ShardEpoch, u64)>,
    fill: Option<(u64, Fill)>,
}

impl Feed {
    fn new() -> Self {
        let (flying, milestones) = (VecDeque::new(), VecDeque::new());
        Self { outbox: Outbox::new(0, usize::MAX), flying, milestones, fill: None }
    }

    pub(crate) fn is_filling(&self) -> bool {
        self.fill.is_some()
    }

    /// Whether something waits for an acknowledgement.
    pub(crate) fn waits(&self) -> bool {
        self.outbox.acked() < self.outbox.last()
    }
}

/// An answer that waits for copies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Unacked {
    entry: Entry,
    waits: Vec<(NodeBoot, u64)>,
}

/// An answer that goes out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Released {
    pub(crate) entry: Entry,
    /// The epoch in which it is served when it goes out.
    pub(crate) epoch: Epoch,
    /// Whom it has waited for.
    pub(crate) told: Replicas,
}

/// The owner's side of all copies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Feeds {
    pub(crate) by_node: BTreeMap<NodeBoot, Feed>,
    pub(crate) unacked: Vec<Unacked>,
    /// Answers that go out with this step.
    pub(crate) released: Vec<Released>,
    /// Followers of a shard that is about to be here.
    adoptions: Vec<(NodeBoot, Epoch, bool)>,
    last_follow: u64,
}

impl Node {
    fn end(&self) -> Option<Version> {
        self.gate.as_ref().map(Gate::end)
    }

    fn push(&mut self, to: NodeBoot, item: Item) -> u64 {
        let feed = self.feeds.by_node.entry(to).or_insert_with(Feed::new);
        let position = feed.outbox.push(Self::start_time(), item.clone(), 1);
        feed.flying.push_back((position, item));
        position
    }

    /// Sends an item to all who follow.
    fn append(&mut self, item: &Item) {
        let live: Vec<NodeBoot> =
            self.follows().iter().filter(|it| it.is_live()).map(|it| it.to).collect();
        for to in live {
            let last = self.push(to, item.clone());
            if let Some(follow) = self.follow(to) {
                follow.last = last;
            }
        }
    }

    pub(crate) fn follows(&self) -> &[Follow] {
        self.gate.as_ref().map_or(&[], |gate| &gate.follows)
    }

    fn follow(&mut self, to: NodeBoot) -> Option<&mut Follow> {
        self.gate.as_mut()?.follows.iter_mut().find(|it| it.to == to)
    }

    // ---- what the shard says -----------------------------------------------------------------

    /// The shard has changed: all who follow are told, and the answer waits for them.
    pub(crate) fn tell_change(&mut self, entry: Entry, prev: Version) {
        if let Some(gate) = &mut self.gate {
            gate.origin = None;
        }
        self.append(&Item::Entry { prev, entry });
        let waits = self.waits();
        self.feeds.unacked.push(Unacked { entry, waits });
        self.look_at_waiting();
    }

    /// The shard was served in `old` and is in another epoch now: followers go along.
    pub(crate) fn follow_epoch(&mut self, old: Epoch) {
        let Some(gate) = self.gate.as_mut().filter(|gate| gate.epoch != old) else { return };
        gate.origin = Some(old);
        let (epoch, seq) = (gate.epoch, gate.seq);
        self.append(&Item::NextEpoch { epoch, prev: Version { epoch: old, seq } });
        self.look_at_waiting();
    }

    /// The shard is served from now on: those follow who were meant to.
    pub(crate) fn begun(&mut self, at: ShardEpoch) {
        for (to, epoch, named) in std::mem::take(&mut self.feeds.adoptions) {
            if epoch == at.epoch {
                self.adopt_one(to, at, named);
            }
        }
    }

    /// The shard is not here any more: nobody follows, and nobody knows what becomes of what waits.
    pub(crate) fn close(&mut self) -> Option<Gate> {
        let gate = self.gate.take()?;
        for follow in &gate.follows {
            self.let_go(follow.to);
        }
        self.feeds.unacked.clear();
        Some(gate)
    }

    // ---- what the machine wants --------------------------------------------------------------

    pub(crate) fn set_replicas(&mut self, set: &Replicas) {
        let Some(gate) = &mut self.gate else { return };
        gate.told = set.clone();
        let mut missing = set.as_slice().to_vec();
        for follow in gate.follows.iter_mut().filter(|it| set.contains(it.to)) {
            follow.is_member = true;
            missing.retain(|boot| *boot != follow.to);
        }
        let is_gone = |it: &&Follow| it.is_member && !set.contains(it.to);
        let gone: Vec<NodeBoot> = gate.follows.iter().filter(is_gone).map(|it| it.to).collect();
        for to in gone {
            self.remove_follower(to);
        }
        for to in missing {
            self.report_lost(to, Lost::NoCopy);
        }
        self.recompute();
    }

    pub(crate) fn fill(&mut self, to: NodeBoot, at: ShardEpoch) {
        match self.serves(at) {
            Ok(()) => {
                let id = self.add_follower(to, Phase::Queued, 0);
                if let Some(feed) = self.feeds.by_node.get_mut(&to) {
                    feed.fill = Some((id, Fill::Queued));
                }
            }
            Err(lost) => self.report_lost(to, lost),
        }
    }

    pub(crate) fn adopt(&mut self, to: NodeBoot, at: ShardEpoch, named: bool) {
        if self.gate.as_ref().is_some_and(|gate| at.epoch <= gate.epoch) {
            self.adopt_one(to, at, named);
        } else {
            self.feeds.adoptions.retain(|(boot, epoch, _)| *boot != to && *epoch == at.epoch);
            self.feeds.adoptions.push((to, at.epoch, named));
        }
    }

    fn adopt_one(&mut self, to: NodeBoot, at: ShardEpoch, named: bool) {
        let origin = self.gate.as_ref().and_then(|gate| Some((gate.origin?, gate.seq)));
        let (epoch, seq) = match (self.serves(at), origin) {
            (Ok(()), Some(origin)) => origin,
            (Ok(()), None) => return self.report_lost(to, Lost::Behind),
            (Err(lost), _) => return self.report_lost(to, lost),
        };
        let item = Item::Adopt { epoch: at.epoch, prev: Version { epoch, seq } };
        let since = self.push(to, item);
        let id = self.add_follower(to, Phase::Live { since }, since);
        if let Some(feed) = self.feeds.by_node.get_mut(&to) {
            feed.milestones.push_back((since, at, id));
        }
        if let Some(follow) = self.follow(to).filter(|_| named) {
            follow.is_member = true;
        }
    }

    /// No more goes to that copy. Whether answers still wait for it is for the set to say.
    pub(crate) fn stop_fill(&mut self, to: NodeBoot) {
        if let Some(member) = self.follow(to).filter(|follow| follow.is_member) {
            member.phase = Phase::Lost;
        } else if self.follow(to).is_some() {
            self.remove_follower(to);
        }
        self.feeds.adoptions.retain(|(boot, ..)| *boot != to);
        self.recompute();
    }

    fn serves(&self, at: ShardEpoch) -> Result<(), Lost> {
        match &self.gate {
            Some(gate) if gate.open && gate.epoch == at.epoch => Ok(()),
            Some(gate) if gate.open && at.epoch < gate.epoch => Err(Lost::HigherEpoch(gate.epoch)),
            Some(_) | None => Err(Lost::NoCopy),
        }
    }

    /// One to the same node is replaced; answers wait for it as they did.
    fn add_follower(&mut self, to: NodeBoot, phase: Phase, last: u64) -> u64 {
        self.feeds.by_node.entry(to).or_insert_with(Feed::new);
        self.feeds.last_follow += 1;
        let id = self.feeds.last_follow;
        if let Some(gate) = &mut self.gate {
            let is_member = gate.follows.iter().any(|it| it.to == to && it.is_member);
            gate.follows.retain(|it| it.to != to);
            gate.follows.push(Follow { id, to, is_member, is_catching: false, phase, last });
        }
        self.recompute();
        id
    }

    fn remove_follower(&mut self, to: NodeBoot) {
        if let Some(gate) = &mut self.gate {
            gate.follows.retain(|it| it.to != to);
        }
        self.let_go(to);
    }

    /// What waits for whoever follows no more is of no use. What has left arrives, perhaps.
    fn let_go(&mut self, to: NodeBoot) {
        if let Some(feed) = self.feeds.by_node.get_mut(&to) {
            feed.outbox.clear();
            feed.milestones.clear();
            feed.fill = None;
        }
    }

    fn report_lost(&mut self, to: NodeBoot, lost: Lost) {
        let why = match lost {
            Lost::Behind => Unfollowed::Behind,
            Lost::NoCopy => Unfollowed::NoCopy,
            Lost::HigherEpoch(epoch) => Unfollowed::HigherEpoch(epoch),
        };
        self.reports.push_back(Report::Lost { to, why });
    }

    // ---- streams -----------------------------------------------------------------------------

    /// A fill goes one step on.
    pub(crate) fn fill_step(&mut self, to: NodeBoot) {
        let Some(feed) = self.feeds.by_node.get_mut(&to) else { return };
        let Some((id, step)) = feed.fill.take() else { return };
        let Some(end) = self.end() else { return };
        let is_its = |it: &Follow| it.id == id && (it.is_live() || it.phase == Phase::Queued);
        if !self.follow(to).is_some_and(|it| is_its(it)) {
            return;
        }
        let (item, next) = match step {
            Fill::Queued => (Item::FillBegin { at: end }, Some(Fill::Begun)),
            Fill::Begun => {
                let entries = self.entries().to_vec();
                (Item::Fill { epoch: end.epoch, entries }, Some(Fill::Sent))
            }
            Fill::Sent => (Item::FillEnd { at: end }, None),
        };
        let last = self.push(to, item);
        if let Some(follow) = self.follow(to) {
            follow.last = last;
            if step == Fill::Queued {
                follow.phase = Phase::Live { since: last };
            }
        }
        if let Some(feed) = self.feeds.by_node.get_mut(&to) {
            feed.fill = next.map(|step| (id, step));
            if next.is_none() {
                feed.milestones.push_back((
                    last,
                    ShardEpoch { shard: SHARD, epoch: end.epoch },
                    id,
                ));
            }
        }
        self.recompute();
    }

    /// The connection is cut, and there is another one. Without R12 what was sent counts as taken
    /// in.
    pub(crate) fn cut(&mut self, to: NodeBoot, entries_stay: bool) {
        let Some(feed) = self.feeds.by_node.get_mut(&to) else { return };
        let again = feed.outbox.unacked(feed.outbox.acked());
        feed.flying = again.map(|(position, item)| (position, item.clone())).collect();
        if !entries_stay {
            feed.flying.clear();
            let last = feed.outbox.last();
            self.on_acked(to, last);
        }
    }

    pub(crate) fn on_taken(&mut self, from: NodeBoot, ack: &Ack) {
        // First: what was refused counts as taken in, and nobody may believe that it was.
        for &(at, why) in &ack.refused {
            let is_live =
                |it: &&mut Follow| matches!(it.phase, Phase::Live { since } if since <= at);
            if let Some(follow) = self.follow(from).filter(is_live) {
                follow.phase = Phase::Lost;
                self.recompute();
                self.report_lost(from, why);
            }
        }
        self.on_acked(from, ack.position);
    }

    fn on_acked(&mut self, to: NodeBoot, position: u64) {
        let Some(feed) = self.feeds.by_node.get_mut(&to) else { return };
        let _ = feed.outbox.ack(Self::start_time(), position);
        let acked = feed.outbox.acked();
        while let Some(&(_, at, id)) = feed.milestones.front().filter(|(at, ..)| *at <= acked) {
            feed.milestones.pop_front();
            let follows = self.gate.as_mut().map_or(&mut [][..], |gate| &mut gate.follows);
            let follow = follows.iter_mut().find(|it| it.id == id && it.to == to);
            let Some(follow) = follow.filter(|follow| follow.is_live()) else { continue };
            let was_awaited = follow.is_awaited();
            follow.is_catching = true;
            if was_awaited || follow.last <= acked {
                self.reports.push_back(Report::Filled { to, at });
            } else {
                // It may lack what was answered since its fill ended.
                let last = follow.last;
                let place = feed.milestones.partition_point(|(at, ..)| *at <= last);
                feed.milestones.insert(place, (last, at, id));
            }
        }
        self.look_at_waiting();
    }

    // ---- waiting -----------------------------------------------------------------------------

    /// Whom an answer would wait for now, and for what.
    fn waits(&self) -> Vec<(NodeBoot, u64)> {
        let awaited = self.follows().iter().filter(|it| it.is_awaited());
        awaited.map(|it| (it.to, it.awaited())).filter(|it| !self.is_acked(*it)).collect()
    }

    /// Whether the shard is to wait for copies before it may go.
    pub(crate) fn waits_for_copies(&self) -> bool {
        !self.waits().is_empty()
    }

    fn is_acked(&self, (to, position): (NodeBoot, u64)) -> bool {
        self.feeds.by_node.get(&to).is_some_and(|feed| position <= feed.outbox.acked())
    }

    /// Those who follow have changed: who waits for them looks again.
    fn recompute(&mut self) {
        let waits = self.waits();
        for unacked in &mut self.feeds.unacked {
            unacked.waits.clone_from(&waits);
        }
        self.look_at_waiting();
    }

    fn look_at_waiting(&mut self) {
        let (epoch, told) = match &self.gate {
            Some(gate) => (gate.epoch, gate.told.clone()),
            None => return self.feeds.unacked.clear(),
        };
        for mut unacked in std::mem::take(&mut self.feeds.unacked) {
            unacked.waits.retain(|it| !self.is_acked(*it));
            if unacked.waits.is_empty() {
                let (entry, told) = (unacked.entry, told.clone());
                self.feeds.released.push(Released { entry, epoch, told });
            } else {
                self.feeds.unacked.push(unacked);
            }
        }
    }
}
