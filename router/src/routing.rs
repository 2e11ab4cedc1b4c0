//! Where a request goes: the view, and what answers told that the view does not know yet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use stead_shared::id::{Epoch, NodeBoot, ShardId};
use stead_shared::net::watch;
use stead_shared::route::{Route, route};
use stead_shared::view::View;

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

    /// Whoever was said to own `shard` in `epoch` says that it does not: a grant can come to
    /// nothing. When it does own it a moment later, its claim tells.
    pub(crate) fn unlearn(&self, shard: ShardId, epoch: Epoch) {
        if self.n_ahead.load(Ordering::Relaxed) > 0
            && self.ahead.remove_if(&shard, |_, (ahead, _)| *ahead <= epoch).is_some()
        {
            self.n_ahead.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes note that the owner in `epoch` serves `shard`, or is said to. Whether this is news
    /// of a living member. What was said of one that has died since counts for nothing.
    pub(crate) fn learn(&self, shard: ShardId, epoch: Epoch) -> bool {
        let view = self.views.borrow();
        let owner = {
            let claimed = view.claims.get(shard).map(|(epoch, _)| epoch);
            let member = view.members.find(epoch.node).filter(|member| member.state.is_live());
            match member {
                Some(member) if claimed < Some(epoch) => member.node_boot(),
                Some(_) | None => return false,
            }
        };
        match self.ahead.entry(shard) {
            Entry::Occupied(mut known) => {
                let (highest, its_owner) = *known.get();
                if highest < epoch || !view.members.is_live(its_owner) {
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

#[cfg(test)]
mod tests {
    use stead_shared::claims::{Applied, Book, ClaimLog};
    use stead_shared::hash::{HashSecret, ShardCount};
    use stead_shared::id::{BootId, NodeId};
    use stead_shared::member::{Member, MemberState, Members, Phase, Role};
    use stead_shared::view::ClusterParams;

    use super::*;

    const SHARD: ShardId = ShardId(0);

    fn who(node: u64) -> NodeBoot {
        NodeBoot { node: NodeId(node), boot: BootId(1) }
    }

    fn epoch(counter: u64, node: u64) -> Epoch {
        Epoch { counter, node: NodeId(node) }
    }

    /// Nodes 1 and 2 in these states; the book says that they claimed at these counters.
    fn view(states: [MemberState; 2], counters: [u64; 2]) -> Arc<View> {
        let member = |(id, state)| Member {
            id: NodeId(id),
            boot: BootId(1),
            role: Role::Node,
            phase: Phase::Ready,
            state,
            weight: 1,
            zone: 0,
            gossip: "127.0.0.1:1".parse().unwrap(),
            in_ring: true,
            held_down: false,
            card: None,
        };
        let list = [1, 2].into_iter().zip(states).map(member).collect();
        let shards = ShardCount::new(1).unwrap();
        let params = ClusterParams {
            shards,
            balance_permille: 1050,
            secret: HashSecret::public(),
            replicas: 0,
        };
        let mut book = Book::new(1);
        for (node, counter) in [1, 2].into_iter().zip(counters).filter(|(_, counter)| *counter > 0)
        {
            let mut log = ClaimLog::new(who(node));
            log.claim(SHARD, counter);
            let _all = log.commit();
            assert!(matches!(book.apply(&log.full()), Applied::Changed(_) | Applied::Same));
        }
        let view = View::new(Arc::new(params), Arc::new(Members { me: NodeId(9), list }));
        Arc::new(view.with_claims(book.table().clone()))
    }

    const READY: MemberState = MemberState::Ready;

    fn epoch_of(routing: &Routing) -> Option<Epoch> {
        routing.destination(SHARD).map(|to| to.epoch)
    }

    #[test]
    fn what_an_answer_told_counts_until_gossip_overtakes_it() {
        let (views, receiver) = watch::channel(view([READY; 2], [3, 0]));
        let routing = Routing::new(receiver);
        assert_eq!(epoch_of(&routing), Some(epoch(3, 1)));
        assert!(!routing.learn(SHARD, epoch(3, 1)), "no news");
        assert!(!routing.learn(SHARD, epoch(2, 2)), "old news");
        assert!(routing.learn(SHARD, epoch(5, 2)));
        assert!(routing.learn(SHARD, epoch(4, 1)));
        assert_eq!(epoch_of(&routing), Some(epoch(5, 2)), "the highest");
        assert_eq!(routing.destination(SHARD).unwrap().owner, who(2));
        views.send_replace(view([READY; 2], [6, 5]));
        assert_eq!(epoch_of(&routing), Some(epoch(6, 1)));
        assert!(routing.ahead.is_empty());
        assert_eq!(routing.n_ahead.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_came_to_nothing_is_forgotten() {
        let (_views, receiver) = watch::channel(view([READY; 2], [3, 0]));
        let routing = Routing::new(receiver);
        assert!(routing.learn(SHARD, epoch(5, 2)));
        routing.unlearn(SHARD, epoch(4, 1));
        assert_eq!(epoch_of(&routing), Some(epoch(5, 2)), "an older one was asked");
        routing.unlearn(SHARD, epoch(5, 2));
        assert_eq!(epoch_of(&routing), Some(epoch(3, 1)));
        assert_eq!(routing.n_ahead.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_was_told_of_a_dead_member_counts_for_nothing() {
        let (views, receiver) = watch::channel(view([READY, MemberState::Down], [3, 0]));
        let routing = Routing::new(receiver);
        assert!(!routing.learn(SHARD, epoch(5, 2)));
        assert!(!routing.learn(SHARD, epoch(5, 77)), "nobody knows it");
        views.send_replace(view([READY; 2], [3, 0]));
        assert!(routing.learn(SHARD, epoch(5, 2)));
        views.send_replace(view([READY, MemberState::Left], [3, 0]));
        assert_eq!(epoch_of(&routing), Some(epoch(3, 1)));
        assert!(routing.ahead.is_empty());
        views.send_replace(view([MemberState::Down, READY], [3, 0]));
        assert_eq!(epoch_of(&routing), None, "nobody alive claims it");
        views.send_replace(view([READY; 2], [3, 0]));
        assert!(routing.learn(SHARD, epoch(5, 2)));
        views.send_replace(view([READY, MemberState::Down], [3, 0]));
        assert!(routing.learn(SHARD, epoch(4, 1)), "news beside what counts for nothing");
        assert_eq!(epoch_of(&routing), Some(epoch(4, 1)));
    }
}
