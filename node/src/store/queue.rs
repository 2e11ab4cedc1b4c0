//! Who waits for the turn of a session.

use std::sync::Arc;

use stead_shared::id::SessionKey;
use stead_shared::refusal::Refusal;
use tokio::sync::oneshot;

use super::core::Core;
use super::draft::Access;
use super::inner::{Active, Inner, Waiter};
use super::shard::{Shard, overloaded};
use super::turns::{Asker, Permit, Place, Waited};
use crate::session::Why;

impl Inner {
    pub(super) fn queue(
        &mut self,
        shard: &Arc<Shard>,
        key: &SessionKey,
        asker: Asker,
    ) -> Result<Place, Refusal> {
        let config = &shard.core.config;
        let (bytes, is_full) = match asker {
            Asker::Node => (0, false),
            Asker::Client { bytes, .. } => {
                let with_it = self.waiting_bytes.saturating_add(bytes);
                let is_full = config.mailbox_requests_max <= self.waiting
                    || config.mailbox_bytes_max < with_it;
                (bytes, is_full)
            }
        };
        if is_full {
            return Err(overloaded());
        }
        let (turn, granted) = oneshot::channel();
        let id = self.next_id();
        let active = self.active.entry(key.clone()).or_default();
        active.waiting.push_back(Waiter { id, bytes, turn });
        self.waiting += 1;
        self.waiting_bytes += bytes;
        shard.core.metrics.turns_waiting.increment(1.0);
        Ok(Place::new(shard, key, id, granted))
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.id_last += 1;
        self.id_last
    }

    pub(super) fn waits_less(&mut self, core: &Core, waiter: &Waiter) {
        self.waiting -= 1;
        self.waiting_bytes -= waiter.bytes;
        core.metrics.turns_waiting.decrement(1.0);
    }

    pub(super) fn grant_next(&mut self, shard: &Arc<Shard>, key: &SessionKey) {
        loop {
            let Some(active) = self.active.get_mut(key) else { return };
            let Some(waiter) = active.waiting.pop_front() else {
                active.has_turn = false;
                break;
            };
            self.waits_less(&shard.core, &waiter);
            let permit = Permit::new(shard, key, Access::Change);
            match waiter.turn.send(Ok(Waited::new(permit))) {
                Ok(()) => {
                    self.running += 1;
                    return;
                }
                // Nobody waits there any more. Its permit must not come back under this lock.
                Err(Ok(waited)) => waited.forget(),
                Err(Err(_)) => {}
            }
        }
        self.tidy_active(key);
    }

    pub(super) fn tidy_active(&mut self, key: &SessionKey) {
        if self.active.get(key).is_some_and(Active::is_idle) {
            self.active.remove(key);
        }
    }

    /// Refuses all who wait and tells all who are attached, session by session in the order of
    /// their keys.
    pub(super) fn turn_away(&mut self, core: &Core, refusal: &Refusal, why: Why) {
        let mut all: Vec<_> = self.active.iter_mut().collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        for (_, active) in all {
            for waiter in active.waiting.drain(..) {
                core.metrics.turns_waiting.decrement(1.0);
                // It may have stopped waiting.
                let _ = waiter.turn.send(Err(refusal.clone()));
            }
            if let Some(crowd) = active.crowd.take() {
                crowd.gone.send_replace(Some(why));
            }
        }
        self.waiting = 0;
        self.waiting_bytes = 0;
        self.active.retain(|_, active| !active.is_idle());
    }
}
