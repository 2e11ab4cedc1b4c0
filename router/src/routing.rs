//! Where a request goes: the view, and what answers told that the view does not know yet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use stead_shared::id::{Epoch, NodeBoot, ShardId};
use stead_shared::route::{Route, route};
use stead_shared::view::View;
use tokio::sync::watch;

/// The owner of a shard, and how to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) owner: NodeBoot,
    pub(crate) addr: SocketAddr,
    pub(crate) epoch: Epoch,
}

/// The newest view and the shards of which more is known.
#[derive(Debug)]
pub(crate) struct Routing {
    views: watch::Receiver<Arc<View>>,
    /// Claims heard from nodes that are above the view's. Gossip catches up within moments, so
    /// the map is nearly always empty; it never has more entries than there are shards.
    ahead: DashMap<ShardId, (Epoch, NodeBoot)>,
    /// Its size, so that an empty one costs a load per request and not a lookup.
    n_ahead: AtomicUsize,
}

impl Routing {
    pub(crate) fn new(views: watch::Receiver<Arc<View>>) -> Self {
        Self { views, ahead: DashMap::new(), n_ahead: AtomicUsize::new(0) }
    }

    pub(crate) fn views(&self) -> watch::Receiver<Arc<View>> {
        self.views.clone()
    }

    pub(crate) fn with_view<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.views.borrow())
    }

    /// Where requests of `shard` go now, if its owner is alive.
    pub(crate) fn destination(&self, shard: ShardId) -> Option<Destination> {
        let view = self.views.borrow();
        let known = match route(&view, shard) {
            Route::Owner { owner, addr, epoch } => Some(Destination { owner, addr, epoch }),
            Route::Park => None,
        };
        if self.n_ahead.load(Ordering::Relaxed) == 0 {
            return known;
        }
        self.better_than(known, &view, shard)
    }

    #[cold]
    fn better_than(
        &self,
        known: Option<Destination>,
        view: &View,
        shard: ShardId,
    ) -> Option<Destination> {
        let Some((epoch, owner)) = self.ahead.get(&shard).map(|entry| *entry) else { return known };
        // A claim whose owner is dead counts for nothing, and one that gossip overtook neither.
        let claimed = view.claims.get(shard).map(|(epoch, _)| epoch);
        let alive = view.members.find(owner.node).filter(|_| view.members.is_live(owner));
        match alive {
            Some(member) if claimed < Some(epoch) => {
                Some(Destination { owner, addr: member.gossip, epoch })
            }
            Some(_) | None => {
                self.forget(shard);
                known
            }
        }
    }

    fn forget(&self, shard: ShardId) {
        if self.ahead.remove(&shard).is_some() {
            self.n_ahead.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes note that the owner in `epoch` serves `shard`, or is said to. Whether this is news
    /// of a living member.
    pub(crate) fn learn(&self, shard: ShardId, epoch: Epoch) -> bool {
        let owner = {
            let view = self.views.borrow();
            let claimed = view.claims.get(shard).map(|(epoch, _)| epoch);
            let member = view.members.find(epoch.node).filter(|member| member.state.is_live());
            match member {
                Some(member) if claimed < Some(epoch) => member.node_boot(),
                Some(_) | None => return false,
            }
        };
        match self.ahead.entry(shard) {
            Entry::Occupied(mut known) => {
                if known.get().0 < epoch {
                    known.insert((epoch, owner));
                }
            }
            Entry::Vacant(place) => {
                place.insert((epoch, owner));
                self.n_ahead.fetch_add(1, Ordering::Relaxed);
            }
        }
        true
    }
}
