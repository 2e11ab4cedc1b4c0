//! Where a request goes. A plain function over a [`View`]: no allocation, no lock.

use std::net::SocketAddr;

use crate::id::{Epoch, NodeBoot, ShardId};
use crate::view::View;

/// Where a request of a shard goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the live owner.
    Owner {
        /// Who, and which boot.
        owner: NodeBoot,
        /// Where its link listens.
        addr: SocketAddr,
        /// The epoch of its claim.
        epoch: Epoch,
    },
    /// Nobody alive claims the shard: wait for a claim. The target will claim it; it is never
    /// sent requests before that.
    Park,
}

/// Where a request of `shard` goes in this view.
#[must_use]
pub fn route(view: &View, shard: ShardId) -> Route {
    let Some((epoch, owner)) = view.claims.get(shard) else { return Route::Park };
    match view.members.find(owner.node) {
        Some(member) if member.boot == owner.boot && member.state.is_live() => {
            Route::Owner { owner, addr: member.gossip, epoch }
        }
        Some(_) | None => Route::Park,
    }
}
