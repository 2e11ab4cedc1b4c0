//! What becomes of shards that the disk held at the start, carried out.

use super::*;
use crate::offer::Offerer;
use crate::saved;
use crate::store::aside::SetAside;

impl Driver {
    pub(super) fn open_saved(&self, shards: &[ShardEpoch]) {
        for at in shards {
            if !self.host.open_saved(at.shard, at.epoch) {
                tracing::error!(shard = %at.shard, "what the disk held of a shard is gone");
                self.host.activate_empty(at.shard, at.epoch);
            }
        }
    }

    pub(super) fn offer_saved(&self, to: NodeBoot, shards: &[ShardEpoch], state: &State) {
        let aside = saved::taken_saved(&self.host, shards);
        let n_sessions: usize = aside.iter().map(|(_, aside)| aside.sessions()).sum();
        let n_shards = shards.len();
        tracing::warn!(n_shards, n_sessions, to = %to.node,
            "these shards began empty elsewhere while this node was away: their owner is offered \
             what is on disk");
        self.offer(to, aside, state);
    }

    pub(super) fn quarantine(&self, shards: &[ShardEpoch]) {
        for at in shards {
            let damage = self.host.quarantine(at.shard);
            tracing::error!(shard = %at.shard, %damage,
                "a shard is quarantined: what is on disk of it is damaged, and no other node has \
                 it. Its sessions are refused until a node with a whole copy starts; to give them \
                 up, move the data directory away and start again");
        }
    }

    pub(super) fn offer(&self, to: NodeBoot, aside: Vec<(ShardEpoch, SetAside)>, state: &State) {
        if aside.is_empty() {
            return;
        }
        let offerer = Offerer {
            me: self.me,
            links: self.links.clone(),
            host: self.host.clone(),
            views: self.views.subscribe(),
            done: self.done_in.clone(),
            slots: Arc::clone(&state.offers),
        };
        tokio::spawn(offerer.offer(to, aside));
    }
}
