//! The replica's side of copies that follow: what comes in, by the production rules.

use std::collections::{BTreeMap, BTreeSet};

use stead_node::logic::ownership::{Event, Unfollowed};
use stead_node::logic::replication::{Accept, CopyRules, CopyState, EntryHead, Lost};
use stead_shared::control::ShardEpoch;
use stead_shared::id::{Epoch, NodeBoot, Version};
use stead_shared::rules::Rules;

use super::feed::Item;
use super::node::{Entry, Node, SHARD, Whole};

/// A copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kept {
    pub(crate) state: CopyState,
    pub(crate) entries: Vec<Entry>,
    /// A shard that was served here until it was granted away.
    is_own: bool,
}

/// What an owner is told of what came in: the newest word, and all that was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ack {
    pub(crate) position: u64,
    pub(crate) refused: Vec<(u64, Lost)>,
}

/// What both sides of copies tell their own machine, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Report {
    Filled { to: NodeBoot, at: ShardEpoch },
    Lost { to: NodeBoot, why: Unfollowed },
    Silent(NodeBoot),
    Begun { owner: NodeBoot, at: ShardEpoch },
    Complete { owner: NodeBoot, at: ShardEpoch },
    NotOpened(ShardEpoch),
}

impl Report {
    pub(crate) fn event(self) -> Event {
        match self {
            Self::Filled { to, at } => Event::Filled { to, shards: vec![at] },
            Self::Lost { to, why } => Event::FollowerLost { to, shards: vec![(SHARD, why)] },
            Self::Silent(to) => Event::FollowerSilent(to),
            Self::Begun { owner, at } => Event::CopyBegun { owner, shards: vec![at] },
            Self::Complete { owner, at } => Event::CopyComplete { owner, shards: vec![at] },
            Self::NotOpened(at) => Event::NotOpened(vec![at]),
        }
    }
}

/// The replica's side of all copies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Intake {
    /// Up to which position each owner's items were taken in.
    taken: BTreeMap<NodeBoot, u64>,
    /// Owners of whose items one was refused on the connection that there is, and none that begins
    /// anew came since.
    refused: BTreeSet<NodeBoot>,
    /// What each of them is told, on its way.
    pub(crate) acks: BTreeMap<NodeBoot, Ack>,
}

impl Intake {
    /// The connection of this owner is gone, and what was on its way back.
    pub(crate) fn cut(&mut self, owner: NodeBoot) {
        self.refused.remove(&owner);
        self.acks.remove(&owner);
    }
}

/// Whether it was taken in just now.
fn outcome(accept: Accept) -> Result<bool, Lost> {
    match accept {
        Accept::Apply => Ok(true),
        Accept::Duplicate => Ok(false),
        Accept::Refuse(lost) => Err(lost),
    }
}

fn at(epoch: Epoch) -> ShardEpoch {
    ShardEpoch { shard: SHARD, epoch }
}

impl Node {
    /// What of this owner was taken in already.
    pub(crate) fn has_taken(&self, owner: NodeBoot, position: u64) -> bool {
        self.intake.taken.get(&owner).is_some_and(|taken| position <= *taken)
    }

    /// An item arrives.
    pub(crate) fn on_item(&mut self, owner: NodeBoot, position: u64, item: Item, rules: &Rules) {
        if !self.has_taken(owner, position) {
            self.intake.taken.insert(owner, position);
            let begins = matches!(item, Item::FillBegin { .. } | Item::Adopt { .. });
            match self.take_in(owner, item, rules) {
                Ok(()) => {
                    self.intake.refused.remove(&owner);
                }
                Err(why) if self.intake.refused.insert(owner) || begins => {
                    self.intake.acks.entry(owner).or_default().refused.push((position, why));
                }
                Err(_) => {}
            }
        }
        let taken = self.intake.taken.get(&owner).copied().unwrap_or_default();
        self.intake.acks.entry(owner).or_default().position = taken;
    }

    fn take_in(&mut self, owner: NodeBoot, item: Item, rules: &Rules) -> Result<(), Lost> {
        let copy_rules = &CopyRules { replica_checks_previous: rules.appends_follow };
        match item {
            Item::FillBegin { at: end } => {
                self.is_served(end.epoch, rules)?;
                let here = self.kept.as_ref().map(|copy| &copy.state);
                let state = CopyState::begin_fill(here, owner, end, copy_rules)?;
                self.kept = Some(Kept { state, entries: Vec::new(), is_own: false });
                self.reports.push_back(Report::Begun { owner, at: at(end.epoch) });
            }
            Item::Fill { epoch, entries } => {
                self.is_here(epoch, rules)?;
                let Some(copy) = &mut self.kept else { return Ok(()) };
                if outcome(copy.state.fill(owner, epoch, copy_rules))? {
                    copy.add(&entries);
                }
            }
            Item::FillEnd { at: end } => {
                self.is_here(end.epoch, rules)?;
                let Some(copy) = &mut self.kept else { return Ok(()) };
                if outcome(copy.state.end_fill(owner, end, copy_rules))? {
                    self.reports.push_back(Report::Complete { owner, at: at(end.epoch) });
                }
            }
            Item::Adopt { epoch, prev } => {
                self.keep_own((owner, epoch), Some(prev));
                self.is_here(epoch, rules)?;
                let Some(copy) = &mut self.kept else { return Ok(()) };
                outcome(copy.state.adopt(owner, epoch, prev, copy_rules))?;
                self.reports.push_back(Report::Complete { owner, at: at(epoch) });
            }
            Item::NextEpoch { epoch, prev } => {
                self.is_here(epoch, rules)?;
                let Some(copy) = &mut self.kept else { return Ok(()) };
                outcome(copy.state.next_epoch(owner, epoch, prev, copy_rules))?;
            }
            Item::Entry { prev, entry } => {
                let (epoch, seq) = (entry.epoch, u64::from(entry.seq));
                self.is_here(epoch, rules)?;
                let Some(copy) = &mut self.kept else { return Ok(()) };
                let head = EntryHead { owner, epoch, seq, prev };
                if outcome(copy.state.accept(&head, copy_rules))? {
                    copy.add(&[entry]);
                }
            }
        }
        Ok(())
    }

    /// Nobody who serves a shard takes a copy of it.
    fn is_served(&self, epoch: Epoch, rules: &Rules) -> Result<(), Lost> {
        match self.gate.as_ref().filter(|_| rules.appends_follow).map(|gate| gate.epoch) {
            Some(served) if epoch <= served => Err(Lost::HigherEpoch(served)),
            Some(_) => Err(Lost::NoCopy),
            None => Ok(()),
        }
    }

    fn is_here(&self, epoch: Epoch, rules: &Rules) -> Result<(), Lost> {
        if self.kept.is_some() {
            return Ok(());
        }
        self.is_served(epoch, rules)?;
        if self.gate.is_some() { Ok(()) } else { Err(Lost::NoCopy) }
    }

    /// Makes a sealed shard a complete copy; only one that ends at `end` if that is given.
    pub(crate) fn keep_own(&mut self, (owner, epoch): (NodeBoot, Epoch), end: Option<Version>) {
        let Some(gate) = self.gate.as_ref().filter(|_| self.kept.is_none()) else { return };
        let here = gate.end();
        if gate.open || epoch <= here.epoch || end.is_some_and(|end| end != here) {
            return;
        }
        let Some(gate) = self.close() else { return };
        let state = CopyState::of_own(owner, epoch, here);
        self.kept = Some(Kept { state, entries: gate.entries, is_own: true });
    }

    /// Takes a complete copy out, to be served in `epoch`; with `only_own` one that was made of a
    /// shard that was served here.
    pub(crate) fn take_copy(&mut self, epoch: Epoch, only_own: bool) -> Option<Kept> {
        let may = |copy: &mut Kept| {
            copy.state.complete && (copy.is_own || !only_own) && copy.state.promised <= epoch
        };
        self.kept.take_if(|copy| self.gate.is_none() && may(copy))
    }
}

impl Kept {
    pub(crate) fn whole(&self) -> Whole {
        Whole { end: Some(self.state.at), entries: self.entries.clone() }
    }

    /// A change that is here already is the same.
    fn add(&mut self, entries: &[Entry]) {
        self.entries.extend(entries);
        self.entries.sort_unstable();
        self.entries.dedup();
    }
}
