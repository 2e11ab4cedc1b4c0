//! What takes time and is not UDP: calls to peers, dials, DNS. All of it runs on the caller's
//! runtime, and comes back to the loop as an event.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};

use super::shell::Shell;
use super::{End, PeerError, PushPuller};
use crate::id::{NodeBoot, NodeId};
use crate::net::sock;
use crate::swim::{SwimEvent, SwimState};

/// Calls, dials and look-ups under way at once; more fail at once and come again.
const TASKS_MAX: usize = 64;

/// How long the names of all seeds may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Most addresses of one seed.
const SEED_ADDRS_MAX: usize = 64;

/// What a task found out.
pub(super) enum TaskDone {
    Event(SwimEvent),
    /// A call to a peer, counted beside what it brought.
    Called(SwimEvent),
    /// The peer at this address does not belong with us.
    Rejected(SocketAddr, String),
    Seeds {
        addrs: Vec<SocketAddr>,
        unresolved: BTreeSet<String>,
    },
    Nothing,
}

impl<P: PushPuller> Shell<P> {
    fn spawn(
        &mut self,
        if_lost: Option<SwimEvent>,
        task: impl Future<Output = TaskDone> + Send + 'static,
    ) {
        if self.tasks.len() >= TASKS_MAX {
            // Never a reason to wait: whoever wanted it asks again.
            if let Some(event) = if_lost {
                self.step(event);
            }
            return;
        }
        let id = self.tasks.spawn_on(task, &self.helpers).id();
        if let Some(event) = if_lost {
            self.if_lost.insert(id, event);
        }
    }

    pub(super) fn task_done(&mut self, done: Result<(Id, TaskDone), JoinError>) {
        let id = done.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let if_lost = self.if_lost.remove(&id).map_or(TaskDone::Nothing, TaskDone::Event);
        match done.map_or(if_lost, |(_, done)| done) {
            TaskDone::Event(event) => self.step(event),
            TaskDone::Called(event) => {
                let ok = matches!(event, SwimEvent::PushPull { .. });
                let meters = &self.meters;
                if ok { &meters.push_pulls_ok } else { &meters.push_pulls_failed }.add(1);
                self.step(event);
            }
            TaskDone::Seeds { addrs, unresolved } => {
                for seed in unresolved.difference(&self.unresolved) {
                    tracing::warn!("the seed {seed} does not resolve to an address; still trying");
                }
                self.unresolved = unresolved;
                self.step(SwimEvent::SeedAddrs(addrs));
            }
            TaskDone::Rejected(addr, why) => self.rejected(addr, why),
            TaskDone::Nothing => {}
        }
    }

    /// A typing error in a key file or a name is to be seen at once, not to wait for ever. Later
    /// on it is the other one's, and no reason to stop.
    fn rejected(&mut self, addr: SocketAddr, why: String) {
        self.meters.push_pulls_failed.add(1);
        if self.has_met_somebody {
            tracing::warn!(%addr, "no push/pull with {addr}: {why}");
            self.step(SwimEvent::PushPullFailed { addr });
        } else {
            tracing::error!(%addr, "cannot join at {addr}: {why}");
            self.end = Some(End::Rejected { addr, why });
        }
    }

    pub(super) fn resolve_seeds(&mut self) {
        let seeds = Arc::clone(&self.seeds);
        self.spawn(None, resolve(seeds));
    }

    pub(super) fn push_pull(&mut self, addr: SocketAddr, node: Option<NodeId>) {
        let mine = self.swim.state().encode();
        let peers = Arc::clone(&self.peers);
        let failed = SwimEvent::PushPullFailed { addr };
        self.spawn(Some(failed.clone()), async move {
            let called = peers.push_pull(addr, node, mine).await;
            let answer = called.and_then(|(from, list)| match SwimState::decode(&list) {
                Ok(state) => Ok(SwimEvent::PushPull { from, state }),
                Err(error) => Err(PeerError::Failed(error.to_string())),
            });
            match answer {
                Ok(answer) => TaskDone::Called(answer),
                Err(PeerError::Rejected(why)) => TaskDone::Rejected(addr, why),
                Err(error @ (PeerError::Refused | PeerError::Failed(_))) => {
                    tracing::debug!(%addr, "push/pull failed: {error}");
                    TaskDone::Called(failed)
                }
            }
        });
    }

    pub(super) fn dial(&mut self, who: NodeBoot, addr: SocketAddr) {
        let peers = Arc::clone(&self.peers);
        let by = self.swim.me().node;
        self.spawn(None, async move {
            match peers.hello(addr).await {
                Err(PeerError::Refused) => TaskDone::Event(SwimEvent::Refused { node: who, by }),
                Ok(NodeBoot { node, boot }) if node == who.node && boot != who.boot => {
                    TaskDone::Event(SwimEvent::OtherBootAnswered { node, boot })
                }
                Ok(_) | Err(PeerError::Rejected(_) | PeerError::Failed(_)) => TaskDone::Nothing,
            }
        });
    }

    pub(super) fn probe_name(&mut self, addr: SocketAddr, old: NodeBoot) {
        let peers = Arc::clone(&self.peers);
        let timeout = self.name_timeout;
        self.spawn(Some(SwimEvent::NameFree), async move {
            let hello = tokio::time::timeout(timeout, peers.hello(addr)).await;
            TaskDone::Event(match hello {
                Ok(Ok(found)) if found == old => SwimEvent::NameHeldBy { boot: found.boot },
                Ok(Ok(_) | Err(_)) | Err(_) => SwimEvent::NameFree,
            })
        });
    }
}

/// Looks all seeds up anew.
async fn resolve(seeds: Arc<[String]>) -> TaskDone {
    let mut addrs: Vec<SocketAddr> = Vec::new();
    let mut unresolved = BTreeSet::new();
    let mut lookups = JoinSet::new();
    for seed in seeds.iter().cloned() {
        lookups.spawn(async move {
            let found = tokio::time::timeout(RESOLVE_TIMEOUT, sock::lookup(&seed));
            let addrs: Vec<SocketAddr> = match found.await {
                Ok(Ok(found)) => found.into_iter().take(SEED_ADDRS_MAX).collect(),
                Ok(Err(_)) | Err(_) => Vec::new(),
            };
            (seed, addrs)
        });
    }
    for (seed, found) in lookups.join_all().await {
        if found.is_empty() {
            unresolved.insert(seed);
        }
        addrs.extend(found.into_iter().filter(|addr| !addrs.contains(addr)).collect::<Vec<_>>());
    }
    TaskDone::Seeds { addrs, unresolved }
}
