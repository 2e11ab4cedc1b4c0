//! Copies of shards on other nodes, which follow every change: both ends, and what the driver of
//! a node may ask of them.
//!
//! An owner has one stream to each node that keeps copies of its shards ([`stream`]), whatever
//! their number. Shards put what changes into the stream's [`feed`] under their own locks, so that
//! the order there is the order of the changes. A feed keeps everything until it is acknowledged
//! and sends it again over the next connection. The other end takes it in ([`copies`]), in order,
//! each item once. When what fits is decided in [`crate::logic::replication`].
//!
//! # What it does not do
//! It does not know who should have a copy, nor whether a copy may be promoted: whoever asks for
//! that has made sure of it.

pub(crate) mod copies;
pub(crate) mod feed;
pub(crate) mod frame;
mod meters;
mod stream;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use dashmap::DashMap;
use stead_shared::control::ShardEpoch;
use stead_shared::id::{Epoch, NodeBoot, ShardId, Version};
use stead_shared::net::link::Links;
use tokio::sync::mpsc;

use crate::host::Host;
use crate::logic::replication::{Lost, Taken};
use crate::store::aside::SetAside;
use crate::store::saving::Pen;
use crate::store::shard::Shard;
use copies::Copy;
pub use copies::CopyStats;
use feed::{Feed, Lease};
use meters::FeedMeters;

/// What happens to copies, for whoever decides about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaReport {
    /// The other node has complete copies of these shards, which follow.
    Filled {
        /// Who has them.
        to: NodeBoot,
        /// The shards, with the epochs in which they were served when the copy was complete.
        shards: Vec<ShardEpoch>,
    },
    /// Copies of these shards follow no more. Answers of a shard still wait for one that is a
    /// member of its followers.
    FollowerLost {
        /// Whose they are.
        to: NodeBoot,
        /// The shards, and why.
        shards: Vec<(ShardId, Lost)>,
    },
    /// The other node has acknowledged nothing for `silent_after` of the
    /// [`HostConfig`](crate::HostConfig) although answers wait for it. Told again after as long.
    FollowerSilent {
        /// Who that is.
        to: NodeBoot,
    },
    /// Copies that are kept here are complete and follow their owner.
    CopyComplete {
        /// Who owns the shards.
        owner: NodeBoot,
        /// The shards, with the epochs in which they are served.
        shards: Vec<ShardEpoch>,
    },
    /// Before the next one: complete copies of another owner's are being replaced, and wait for what
    /// becomes of them.
    CopyReplaced {
        /// Who replaces them.
        owner: NodeBoot,
        /// The shards, with the epochs in which they are served.
        shards: Vec<ShardEpoch>,
    },
    /// What was kept here of these shards is being replaced.
    CopyBegun {
        /// Who owns the shards.
        owner: NodeBoot,
        /// The shards, with the epochs in which they are served.
        shards: Vec<ShardEpoch>,
    },
}

/// Both ends, of one host.
#[derive(Debug)]
pub(crate) struct Replicas {
    wiring: OnceLock<Wiring>,
    feeds: Mutex<Feeds>,
    copies: DashMap<ShardId, Copy>,
    /// Complete copies whose place another owner's took, until it is decided what becomes of them.
    replaced: DashMap<ShardId, Copy>,
    /// Followers of shards that are not here yet.
    adoptions: Mutex<BTreeMap<ShardId, Vec<Adoption>>>,
    /// How far each owner's items were met.
    taken: DashMap<NodeBoot, Arc<Mutex<Taken>>>,
    meters: Arc<FeedMeters>,
}

#[derive(Debug)]
struct Wiring {
    links: Links,
    reports: mpsc::UnboundedSender<ReplicaReport>,
}

/// A follower of a shard that is not here yet.
#[derive(Debug)]
pub(crate) struct Adoption {
    pub(crate) lease: Lease,
    pub(crate) epoch: Epoch,
    /// Answers wait for it.
    pub(crate) is_member: bool,
}

#[derive(Debug, Default)]
struct Feeds {
    by_node: BTreeMap<NodeBoot, Arc<Feed>>,
    /// No feed that is gone had a higher position. A new one to the same node goes on above it.
    position_last: u64,
}

impl Replicas {
    pub(crate) fn new() -> Self {
        Self {
            wiring: OnceLock::new(),
            feeds: Mutex::default(),
            copies: DashMap::new(),
            replaced: DashMap::new(),
            adoptions: Mutex::default(),
            taken: DashMap::new(),
            meters: Arc::new(FeedMeters::new()),
        }
    }

    fn feeds(&self) -> MutexGuard<'_, Feeds> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adoptions(&self) -> MutexGuard<'_, BTreeMap<ShardId, Vec<Adoption>>> {
        self.adoptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sessions in copies that are kept here.
    pub(crate) fn n_copied(&self) -> u64 {
        self.copies.iter().map(|copy| copy.n_sessions() as u64).sum()
    }

    pub(crate) fn has_copy(&self, shard: ShardId) -> bool {
        self.copies.contains_key(&shard)
    }

    /// Whether a complete copy that ends at `at` is on disk.
    pub(crate) fn is_on_disk_at(&self, shard: ShardId, at: Version) -> bool {
        self.copies.get(&shard).is_some_and(|copy| copy.is_on_disk_at(at))
    }

    /// Takes over the writing of a complete copy that ends at `at`.
    pub(crate) fn take_pen_at(&self, shard: ShardId, at: Version) -> Option<Box<Pen>> {
        self.copies.get_mut(&shard)?.take_pen_at(at)
    }

    fn report(&self, report: ReplicaReport) {
        if let Some(wiring) = self.wiring.get() {
            // Without the driver the process ends.
            let _ = wiring.reports.send(report);
        }
    }

    /// Takes a feed out that nobody uses.
    fn retire(&self, feed: &Arc<Feed>) -> bool {
        let mut feeds = self.feeds();
        if feed.is_used() {
            return false;
        }
        feeds.by_node.remove(&feed.to());
        feeds.position_last = feeds.position_last.max(feed.last());
        true
    }
}

impl Host {
    /// From now on shards can have followers on other nodes, and what happens to copies is
    /// reported. Only the first call counts.
    pub fn replicate(&self, links: Links, reports: mpsc::UnboundedSender<ReplicaReport>) {
        // One process, one set of links.
        let _ = self.replicas().wiring.set(Wiring { links, reports });
    }

    // ---- the owner's side ----

    /// The followers whose acknowledgement the shard's answers wait for. A member that is not named
    /// any more does not follow any more; one that is being filled or adopted and is not named goes
    /// on. One that is named and does not follow is reported lost, and not waited for.
    pub fn set_followers(&self, shard: ShardId, members: &[NodeBoot]) {
        let Some(here) = self.shard(shard) else { return };
        for to in here.set_followers(members) {
            let shards = vec![(shard, Lost::NoCopy)];
            self.replicas().report(ReplicaReport::FollowerLost { to, shards });
        }
    }

    /// Fills copies of shards that are served here in these epochs, on a node that listens at
    /// `addr`; each is reported when it is complete, or lost. Nobody waits for them before
    /// [`set_followers`](Self::set_followers) names that node; for one that was a member already
    /// answers wait.
    pub fn begin_fill(&self, to: NodeBoot, addr: SocketAddr, shards: Vec<ShardEpoch>) {
        self.add_followers((to, addr), &shards, |feed, at| {
            self.shard(at.shard).ok_or(Lost::NoCopy)?.queue_fill(feed, at.epoch)
        });
    }

    /// Lets copies follow that end exactly where these shards began in these epochs, on a node that
    /// listens at `addr`: each is reported as if it had been filled, or lost. `member`: answers
    /// wait for it from now on.
    ///
    /// A shard that has changed since it began here is reported lost at once. So it is better to
    /// say this right before the shard begins: one that is not served in that epoch yet is adopted
    /// when it is, unless [`stop_following`](Self::stop_following) takes that back.
    pub fn adopt(&self, to: NodeBoot, addr: SocketAddr, shards: Vec<ShardEpoch>, member: bool) {
        let begun = |at: ShardEpoch| {
            let has_begun = |here: &Arc<Shard>| Some(at.epoch) <= here.gate().epoch();
            self.shard(at.shard).filter(has_begun)
        };
        self.add_followers((to, addr), &shards, |feed, at| match begun(at) {
            Some(shard) => shard.adopt(feed, at.epoch, member),
            None => {
                let (lease, epoch) = (Lease::new(feed), at.epoch);
                let adoption = Adoption { lease, epoch, is_member: member };
                let mut adoptions = self.replicas().adoptions();
                let of_shard = adoptions.entry(at.shard).or_default();
                of_shard.retain(|it| it.epoch == at.epoch && it.lease.feed().to() != to);
                of_shard.push(adoption);
                Ok(())
            }
        });
    }

    /// Who was meant to follow a shard that begins in `epoch`.
    pub(crate) fn take_adoptions(&self, shard: ShardId, epoch: Epoch) -> Vec<Adoption> {
        let mut waiting = self.replicas().adoptions().remove(&shard).unwrap_or_default();
        waiting.retain(|adoption| adoption.epoch == epoch);
        waiting
    }

    /// A shard begins here: those follow it who were meant to. Nobody else knows of it yet.
    pub(crate) fn adopt_waiting(&self, shard: &Shard, epoch: Epoch) {
        shard.adopt_or_tell(&self.take_adoptions(shard.id(), epoch));
    }

    /// No changes of these shards go to that node any more. Answers still wait for one that is a member,
    /// until [`set_followers`](Self::set_followers) names it no more.
    pub fn stop_following(&self, to: NodeBoot, shards: &[ShardId]) {
        for id in shards {
            if let Some(shard) = self.shard(*id) {
                shard.unfollow(to);
            }
            if let Some(of_shard) = self.replicas().adoptions().get_mut(id) {
                of_shard.retain(|it| it.lease.feed().to() != to);
            }
        }
    }

    fn add_followers(
        &self,
        to: (NodeBoot, SocketAddr),
        shards: &[ShardEpoch],
        add: impl Fn(&Arc<Feed>, ShardEpoch) -> Result<(), Lost>,
    ) {
        let Some(lease) = self.feed(to) else { return };
        let lost = shards.iter().filter_map(|at| Some((at.shard, add(lease.feed(), *at).err()?)));
        let lost: Vec<_> = lost.collect();
        if !lost.is_empty() {
            self.replicas().report(ReplicaReport::FollowerLost { to: to.0, shards: lost });
        }
    }

    /// The feed to a node. None before this host has links.
    fn feed(&self, (to, addr): (NodeBoot, SocketAddr)) -> Option<Lease> {
        let replicas = self.replicas();
        let wiring = replicas.wiring.get()?;
        let mut feeds = replicas.feeds();
        if let Some(feed) = feeds.by_node.get(&to) {
            feed.set_addr(addr);
            return Some(Lease::new(feed));
        }
        let (bytes_max, meters) =
            (self.core().config.unacked_bytes_max, Arc::clone(&replicas.meters));
        let reports = wiring.reports.clone();
        let feed = Arc::new(Feed::new((to, addr), feeds.position_last, bytes_max, reports, meters));
        feeds.by_node.insert(to, Arc::clone(&feed));
        let lease = Lease::new(&feed);
        drop(feeds);
        tokio::spawn(stream::run(self.clone(), wiring.links.clone(), feed));
        Some(lease)
    }

    // ---- the replica's side ----

    /// Makes a shard that is sealed here a complete copy, which follows its next owner: `owner`
    /// serves it in `epoch`. True when there is such a copy now, also when there was before.
    pub fn keep_as_copy(&self, shard: ShardId, owner: NodeBoot, epoch: Epoch) -> bool {
        copies::keep_own(self, shard, (owner, epoch), None)
    }

    /// Forgets a copy, and gives the number of its sessions.
    pub fn drop_copy(&self, shard: ShardId) -> usize {
        copies::drop_copy(self, shard)
    }

    /// Takes a complete copy out, to be offered to who serves the shard.
    pub(crate) fn set_copy_aside(&self, shard: ShardId) -> Option<SetAside> {
        copies::set_aside(self, shard)
    }

    /// The same of one whose place another owner's took.
    pub(crate) fn set_replaced_aside(&self, shard: ShardId) -> Option<SetAside> {
        copies::set_replaced_aside(self, shard)
    }

    /// Forgets a copy whose place another owner's took.
    pub(crate) fn drop_replaced(&self, shard: ShardId) {
        copies::drop_replaced(self, shard);
    }

    /// Serves a complete copy from now on, in `epoch`. False when there is none, it has promised
    /// itself to a higher epoch, or the shard is here already. This takes the same time however much is in it.
    pub fn promote(&self, shard: ShardId, epoch: Epoch) -> bool {
        copies::promote(self, shard, epoch, false)
    }

    /// Takes nothing into a copy any more that is of an epoch below `epoch`. False when there is
    /// no copy.
    pub fn promise(&self, shard: ShardId, epoch: Epoch) -> bool {
        copies::promise(self, shard, epoch)
    }

    pub(crate) fn promote_own(&self, shard: ShardId, epoch: Epoch) -> bool {
        copies::promote(self, shard, epoch, true)
    }

    /// All copies that are kept here, in the order of their shards.
    #[must_use]
    pub fn copies(&self) -> Vec<CopyStats> {
        let copies = self.replicas().copies.iter();
        let mut stats: Vec<_> = copies.map(|copy| copy.stats(*copy.key())).collect();
        stats.sort_by_key(|stats| stats.shard);
        stats
    }
}
