//! The one loop that feeds the ownership machine and carries out what it decides.
//!
//! Events come from gossip, from links, from the tasks that move state, and from the process
//! itself; the machine ([`crate::logic::ownership`]) turns them into actions. Nothing here decides
//! anything about ownership.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use metrics::counter;
use stead_shared::claims::ClaimsUpdate;
use stead_shared::control::{Control, HandoffId, ShardEpoch, kind};
use stead_shared::heard::Lift;
use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::member::{Members, Phase};
use stead_shared::net::agent::{Agent, AgentEvent};
use stead_shared::net::heard::{Doubt, Heard};
use stead_shared::net::link::Links;
use stead_shared::net::mesh::MeshEvent;
use stead_shared::net::parking::Parking;
use stead_shared::net::pinning::{Order, Pinning};
use stead_shared::net::watch;
use stead_shared::time::Time;
use stead_shared::view::View;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::doubt::DoubtMeters;
use crate::host::{Host, Incoming};
use crate::logic::copying::Progress;
use crate::logic::ownership::{Action, Event, GiveUp, Note, Ownership, OwnershipConfig, Pending};
use crate::logic::recovery::Saved;
use crate::moving::Rate;
use crate::replica::ReplicaReport;
use crate::transfer::{self, Budget, Command, Copier, Tally, TransferError};

mod copies;
mod meters;
mod saved;

use meters::Meters;

/// Events taken from a channel in one turn of the loop, before claims are pushed and views
/// published.
const BATCH: usize = 256;
/// How often shard sizes are told to the machine and gauges are set.
const SIZES_EVERY: Duration = Duration::from_millis(500);
/// How often claim logs are compared with every peer.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// Offers that are sent at a time.
const OFFERS_MAX: usize = 2;

/// What tasks report back.
#[derive(Debug)]
pub(crate) enum Done {
    /// How far a copy is.
    Copied(HandoffId, Progress),
    /// Gates are closed and quiet.
    Sealed(HandoffId),
    /// State did not arrive.
    SendFailed(HandoffId),
    /// The stream of an incoming handoff has begun.
    Receiving(HandoffId),
    /// State is here.
    Received(HandoffId, BTreeMap<ShardId, Incoming>),
    /// State broke off.
    ReceiveFailed(HandoffId),
    /// The disk holds nothing of these shards any more that their owners are offered.
    Offered(Vec<ShardId>),
    /// An operator says that a node is gone for ever.
    Forget(NodeId),
    /// The process wants to leave.
    Drain,
}

/// How far the node is, for everybody in the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Joined or founded.
    pub(crate) ready: bool,
    /// Was asked to drain.
    pub(crate) draining: bool,
    /// Since when.
    pub(crate) draining_since: Option<Instant>,
    /// Has nothing left to hand off.
    pub(crate) drained: bool,
    /// The cluster did not let it in.
    pub(crate) gave_up: Option<GiveUp>,
    /// Shards here, moving ones included.
    pub(crate) n_owned: usize,
    /// On the smaller side of a cut; nodes that count, and how many of them are ready.
    pub(crate) minority: bool,
    pub(crate) settled: (usize, usize),
    /// Shards here with fewer copies than wanted.
    pub(crate) n_under: usize,
    /// What is yet to move.
    pub(crate) pending: Pending,
    /// Bytes of state sent per second, lately.
    pub(crate) bytes_per_second: u64,
}

/// Everything the loop owns.
pub(crate) struct Driver {
    pub(crate) me: NodeBoot,
    pub(crate) machine: Ownership,
    /// What the machine was made with.
    pub(crate) ownership: OwnershipConfig,
    /// What the disk held at the start, and who was in the cluster.
    pub(crate) found: (BTreeMap<ShardId, Saved>, BTreeSet<NodeId>),
    pub(crate) host: Host,
    pub(crate) agent: Agent,
    pub(crate) links: Links,
    pub(crate) pinning: Pinning,
    pub(crate) views: watch::Sender<Arc<View>>,
    pub(crate) progress: watch::Sender<Standing>,
    /// Where shards go that were granted away, until their claim is seen.
    pub(crate) granted: Arc<DashMap<ShardId, Epoch>>,
    pub(crate) done_in: mpsc::Sender<Done>,
    /// What copies for balance share.
    pub(crate) budget: Arc<Budget>,
    /// Whether anybody was heard lately.
    pub(crate) heard: Arc<Heard>,
    /// Requests that wait for the end of a doubt, or of a move.
    pub(crate) parking: Arc<Parking>,
    /// What handoffs have sent.
    pub(crate) tally: Tally,
    pub(crate) origin: Instant,
    /// Whether somebody among these was configured for another cluster than ours.
    pub(crate) disagrees: Box<dyn Fn(&Members) -> bool + Send>,
}

/// The loop's sources.
pub(crate) struct Sources {
    pub(crate) agent_events: mpsc::Receiver<AgentEvent>,
    pub(crate) mesh_events: mpsc::Receiver<MeshEvent>,
    pub(crate) done: mpsc::Receiver<Done>,
    pub(crate) replicas: mpsc::UnboundedReceiver<ReplicaReport>,
}

struct State {
    copies: HashMap<HandoffId, BTreeMap<ShardId, Incoming>>,
    /// Sessions behind the gates that handoffs closed.
    sealed: HashMap<HandoffId, usize>,
    /// Copies that are being sent; dropping the sender calls one off.
    sending: HashMap<HandoffId, watch::Sender<Command>>,
    publish: bool,
    meters: Meters,
    doubts: DoubtMeters,
    /// Number of the last doubt that the machine was told of.
    doubt: u64,
    rate: Rate,
    /// Limits offers that are being sent.
    offers: Arc<Semaphore>,
    /// What came of actions, for the machine.
    results: Vec<Event>,
}

enum Woken {
    Gossip(Option<AgentEvent>),
    Members,
    Doubt,
    Mesh(usize),
    Done(Option<Done>),
    Replica(ReplicaReport),
    Pin(Order),
    Sizes,
    Compare,
    Tick,
}

impl Driver {
    /// Runs until gossip has ended.
    pub(crate) async fn run(mut self, mut sources: Sources) {
        let mut state = State {
            copies: HashMap::new(),
            sealed: HashMap::new(),
            sending: HashMap::new(),
            publish: true,
            meters: Meters::new(),
            doubts: DoubtMeters::new(),
            doubt: 0,
            rate: Rate::default(),
            offers: Arc::new(Semaphore::new(OFFERS_MAX)),
            results: Vec::new(),
        };
        let mut members = self.agent.members();
        let mut doubts = self.heard.doubts();
        let mut sizes = tokio::time::interval(SIZES_EVERY);
        let mut compare = tokio::time::interval(COMPARE_EVERY);
        let mut mesh = Vec::with_capacity(BATCH);
        loop {
            let tick = self.instant(self.machine.deadline());
            let woken = tokio::select! {
                biased;
                event = sources.agent_events.recv() => Woken::Gossip(event),
                changed = members.changed() => {
                    if changed.is_err() { return }
                    Woken::Members
                }
                // The sender is the driver's own: it cannot be gone.
                Ok(()) = doubts.changed() => Woken::Doubt,
                done = sources.done.recv() => Woken::Done(done),
                // The sender is the host's, which the driver has.
                Some(report) = sources.replicas.recv() => Woken::Replica(report),
                n = sources.mesh_events.recv_many(&mut mesh, BATCH) => Woken::Mesh(n),
                order = self.pinning.order() => Woken::Pin(order),
                _ = sizes.tick() => Woken::Sizes,
                _ = compare.tick() => Woken::Compare,
                () = tokio::time::sleep_until(tick) => Woken::Tick,
            };
            match woken {
                Woken::Gossip(None) | Woken::Mesh(0) | Woken::Done(None) => return,
                Woken::Gossip(Some(event)) => self.on_gossip(event, &mut state),
                Woken::Members => {
                    let members = Arc::clone(&members.borrow_and_update());
                    self.on_members(members, &mut state);
                }
                Woken::Doubt => {
                    let doubt = *doubts.borrow_and_update();
                    self.on_doubt(doubt, &mut state);
                }
                Woken::Mesh(_) => {
                    for event in mesh.drain(..) {
                        self.on_mesh(event, &mut state);
                    }
                }
                Woken::Done(Some(done)) => self.on_done(done, &mut state),
                Woken::Replica(report) => self.on_replica(report, &mut state),
                Woken::Pin(order) => self.pinning.carry_out(order),
                Woken::Sizes => self.on_sizes(&mut state),
                Woken::Compare => {
                    self.compare_claims();
                    self.pinning.compare();
                }
                Woken::Tick => self.feed(Event::Tick, &mut state),
            }
            self.follow_pins(&mut state);
            self.publish(&mut state);
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    fn instant(&self, at: Time) -> Instant {
        self.origin + at.since(Time::ZERO)
    }

    fn feed(&mut self, event: Event, state: &mut State) {
        let mut actions = Vec::new();
        self.machine.handle(self.now(), event, &mut actions);
        loop {
            for action in std::mem::take(&mut actions) {
                self.act(action, state);
            }
            if state.results.is_empty() {
                return;
            }
            for result in std::mem::take(&mut state.results) {
                self.machine.handle(self.now(), result, &mut actions);
            }
        }
    }

    // ---- sources ---------------------------------------------------------------------------

    fn on_gossip(&mut self, event: AgentEvent, state: &mut State) {
        match event {
            AgentEvent::Died { who, confirmed } => self.feed(Event::Died { who, confirmed }, state),
            AgentEvent::Synced { with: _ } => {}
            AgentEvent::BootIs(boot) => self.begin_anew(boot),
        }
    }

    /// An earlier boot of this name had a higher id: this process has another one from now on.
    /// That is learned at the first contact, before anything is owned.
    fn begin_anew(&mut self, boot: BootId) {
        if self.machine.n_owned() > 0 {
            tracing::error!(%boot, "the boot id changed after shards were claimed");
            return;
        }
        self.me.boot = boot;
        self.ownership.me = self.me;
        let view = Arc::clone(&self.views.borrow());
        let (members, targets) = (Arc::clone(&view.members), Arc::clone(&view.targets));
        let (mut held, remembered) = self.found.clone();
        held.retain(|shard, _| self.host.has_saved(*shard));
        self.machine = Ownership::new(self.ownership.clone(), members, targets, self.now())
            .recovering(held, remembered);
        // Who owns nothing has nothing to doubt; the new machine knows of no doubt.
        let doubt = self.heard.doubts().borrow().number;
        self.heard.lift(doubt, Lift::Answered);
    }

    fn on_members(&mut self, members: Arc<Members>, state: &mut State) {
        let view = Arc::new(self.views.borrow().with_members(members));
        self.retarget(view, state);
    }

    fn follow_pins(&mut self, state: &mut State) {
        let view = self.pinning.follow(&self.views.borrow());
        if let Some(view) = view {
            self.retarget(Arc::new(view), state);
        }
    }

    /// Members or pins have changed, and targets may have.
    fn retarget(&mut self, view: Arc<View>, state: &mut State) {
        let event = Event::Members {
            members: Arc::clone(&view.members),
            targets: Arc::clone(&view.targets),
            digest: view.members_digest,
        };
        self.heard.peers(view.members.live_peers().next().is_some());
        let disagrees = (self.disagrees)(&view.members);
        self.views.send_replace(view);
        // A newcomer that does not fit stays outside; the process ends with the reason.
        if self.progress.borrow().ready || !disagrees {
            self.feed(event, state);
        }
    }

    fn on_doubt(&mut self, doubt: Doubt, state: &mut State) {
        if !doubt.lasts {
            return;
        }
        if state.doubt == doubt.number {
            self.feed(Event::Heard(doubt.number), state);
            return;
        }
        state.doubt = doubt.number;
        state.doubts.begun();
        tracing::info!("nobody was heard for a second: no answer goes out before somebody is");
        self.feed(Event::Doubt(doubt.number), state);
    }

    fn end_doubt(&self, doubt: u64, alone: bool, state: &mut State) {
        state.doubts.ended();
        if alone {
            tracing::warn!("nobody is heard: this node serves on, isolated");
        }
        self.heard.lift(doubt, if alone { Lift::Alone } else { Lift::Answered });
        self.parking.look();
    }

    fn on_mesh(&mut self, event: MeshEvent, state: &mut State) {
        match event {
            MeshEvent::Connected { peer, protocol } => {
                self.pinning.connected(peer.node);
                self.feed(Event::Connected { peer, protocol }, state);
            }
            MeshEvent::Disconnected(node) => self.feed(Event::Disconnected(node), state),
            MeshEvent::Note { from, kind: kind::PINS, payload } => {
                self.pinning.take_note(from.node, &payload);
            }
            MeshEvent::Note { from, kind, payload } => self.on_note(from, kind, &payload, state),
        }
    }

    fn on_note(&mut self, from: NodeBoot, kind: u8, payload: &Bytes, state: &mut State) {
        let event = match kind {
            kind::CLAIMS => ClaimsUpdate::decode(payload).ok().map(Event::Claims),
            kind::CLAIMS_WANTED => Some(Event::ClaimsWanted(from.node)),
            kind::CONTROL => {
                Control::decode(payload).ok().map(|message| Event::Control { from, message })
            }
            _ => None,
        };
        match event {
            Some(event) => self.feed(event, state),
            None => counter!("stead_control_unreadable_total").increment(1),
        }
    }

    fn on_done(&mut self, done: Done, state: &mut State) {
        match done {
            Done::Copied(handoff, progress) => {
                self.feed(Event::Copied { handoff, progress }, state);
            }
            Done::Sealed(id) => self.feed(Event::Sealed(id), state),
            Done::SendFailed(id) => self.feed(Event::SendFailed(id), state),
            Done::Receiving(id) => self.feed(Event::Receiving(id), state),
            Done::Received(id, copy) => {
                state.copies.insert(id, copy);
                self.feed(Event::Received(id), state);
            }
            Done::ReceiveFailed(id) => self.feed(Event::ReceiveFailed(id), state),
            Done::Offered(shards) => self.feed(Event::Offered(shards), state),
            Done::Forget(node) => self.feed(Event::Forget(node), state),
            Done::Drain => {
                self.progress.send_modify(|progress| {
                    progress.draining = true;
                    progress.draining_since.get_or_insert_with(Instant::now);
                });
                self.agent.set_phase(Phase::Leaving);
                self.budget.lift();
                self.feed(Event::Drain, state);
            }
        }
    }

    fn on_sizes(&mut self, state: &mut State) {
        let sizes = self
            .host
            .stats_by_shard()
            .into_iter()
            .filter(|stats| stats.sessions > 0)
            .map(|stats| (stats.shard, stats.bytes))
            .collect();
        self.feed(Event::Sizes(sizes), state);
        self.pinning.tick();
        self.count_moves(state);
    }

    /// What is yet to move changes without a claim that does.
    fn count_moves(&self, state: &mut State) {
        let pending = self.machine.pending();
        let bytes_per_second = state.rate.measure(self.now(), self.tally.total());
        state.meters.pending(pending);
        let n_under = self.machine.under_replicated();
        state.meters.under_replicated.set(n_under as f64);
        let (minority, settled) = (self.machine.is_minority(), self.machine.settled());
        state.meters.minority.set(f64::from(u8::from(minority)));
        self.progress.send_if_modified(|progress| {
            let before = *progress;
            progress.n_under = n_under;
            progress.minority = minority;
            progress.settled = settled;
            (progress.pending, progress.bytes_per_second) = (pending, bytes_per_second);
            *progress != before
        });
    }

    fn compare_claims(&self) {
        let heartbeat = self.machine.heartbeat().encode();
        for peer in self.links.peers() {
            self.note(peer.node, kind::CLAIMS, heartbeat.clone());
        }
    }

    // ---- actions ---------------------------------------------------------------------------

    /// Lost without a link, or when too much waits on it: whoever wants an answer asks again.
    fn note(&self, to: NodeId, kind: u8, payload: Bytes) {
        let sent = self.links.open_link(to).map(|link| link.notify(kind, payload));
        if !matches!(sent, Some(Ok(()))) {
            counter!("stead_control_unsent_total").increment(1);
        }
    }

    fn act(&self, action: Action, state: &mut State) {
        match action {
            Action::Send { to, message } => self.note(to, kind::CONTROL, message.encode()),
            Action::PushClaims(update) => {
                let update = update.encode();
                for peer in self.links.peers() {
                    self.note(peer.node, kind::CLAIMS, update.clone());
                }
            }
            Action::SendClaims { to, update } => {
                self.note(to, kind::CLAIMS, update.encode());
            }
            Action::AskClaims { to } => self.note(to, kind::CLAIMS_WANTED, Bytes::new()),
            Action::BecomeReady => {
                self.agent.set_phase(Phase::Ready);
                self.progress.send_modify(|progress| progress.ready = true);
            }
            Action::OpenEmpty { shards, lost } => self.open_empty(&shards, lost, state),
            Action::Copy { handoff, to, shards, budgeted } => {
                let command = self.copy(handoff, to, shards, budgeted);
                state.sending.insert(handoff, command);
            }
            Action::Throttle { shards, bytes_per_second } => {
                let rate = bytes_per_second.and_then(NonZeroU64::new);
                for shard in shards {
                    self.host.throttle(shard, rate);
                }
            }
            Action::SendLast { handoff } => {
                if let Some(command) = state.sending.get(&handoff) {
                    command.send_replace(Command::Finish);
                }
            }
            Action::StopCopy { handoff } => drop(state.sending.remove(&handoff)),
            Action::Seal { handoff, shards } => {
                let stats = shards.iter().filter_map(|shard| self.host.shard_stats(*shard));
                state.sealed.insert(handoff, stats.map(|stats| stats.sessions).sum());
                self.seal(handoff, &shards);
            }
            Action::Reopen { shards } => {
                for at in shards {
                    self.granted.remove(&at.shard);
                    self.host.reopen(at.shard, at.epoch);
                }
            }
            Action::SendState { handoff, to, shards } => self.send_state(handoff, to, shards),
            Action::DropCopy { handoff } => {
                state.copies.remove(&handoff);
            }
            Action::OpenCopy { handoff, shards } => self.open_copy(handoff, &shards, state),
            Action::DropState { shards } => {
                for shard in shards {
                    self.host.drop_shard(shard);
                    self.granted.remove(&shard);
                }
            }
            Action::SetReplicas { sets } => {
                for (shard, members) in sets {
                    self.host.set_followers(shard, members.as_slice());
                }
            }
            Action::Fill { to, shards } => self.fill(to, shards, state),
            Action::Adopt { to, shards, named } => self.adopt(to, shards, named, state),
            Action::StopFill { to, shards } => self.host.stop_following(to, &shards),
            Action::KeepCopy { owner, shards } => self.keep_copies(owner, &shards),
            Action::DropReplicas { shards } => self.drop_replicas(&shards),
            Action::OfferReplicas { to, shards } => self.offer_replicas(to, &shards, state),
            Action::OfferReplaced { to, shards } => self.offer_replaced(to, &shards, state),
            Action::DropReplaced { shards } => self.drop_replaced(&shards),
            Action::OpenReplica { shards } => state.results.extend(self.open_replicas(shards)),
            Action::OpenSaved { shards } => self.open_saved(&shards),
            Action::DropSaved { shards } => {
                shards.into_iter().for_each(|shard| self.host.drop_saved(shard));
            }
            Action::OfferSaved { to, shards } => self.offer_saved(to, &shards, state),
            Action::Quarantine { shards } => self.quarantine(&shards),
            Action::NoteBegun { begun } => self.host.note_begun(&begun),
            Action::Yield { to, shards } => self.give_up_shards(to, &shards, state),
            Action::Certain { doubt, alone } => self.end_doubt(doubt, alone, state),
            Action::Stop(stops) => self.host.stop(stops),
            Action::Publish => state.publish = true,
            Action::Drained => self.progress.send_modify(|progress| {
                // Whoever waits for the end reads what is left at once, before it is published.
                progress.n_owned = self.machine.n_owned();
                progress.drained = true;
            }),
            Action::Note(note) => self.log(&note, state),
            Action::GiveUp(why) => {
                self.progress.send_modify(|progress| progress.gave_up = Some(why));
            }
        }
    }

    fn open_empty(&self, shards: &[ShardEpoch], lost: bool, state: &State) {
        for at in shards {
            self.host.activate_empty(at.shard, at.epoch);
        }
        if lost {
            state.meters.lost.increment(shards.len() as u64);
            let n_shards = shards.len();
            tracing::warn!(n_shards, "shards of a dead owner start empty: their sessions are gone");
        }
    }

    fn seal(&self, handoff: HandoffId, shards: &[ShardId]) {
        // Every gate is closed when this loop ends, before anything waits (R2).
        let quiet: Vec<_> = shards.iter().map(|shard| self.host.seal(*shard)).collect();
        let (done, host) = (self.done_in.clone(), self.host.clone());
        tokio::spawn(async move {
            for quiet in quiet {
                quiet.await;
            }
            // A seal is a promise, also after a restart (R3). A disk that fails is not to be trusted
            // with the shards any longer: they had better go.
            if let Err(error) = host.settle_disk().await {
                tracing::warn!(%error, "shards are handed off without a note of it on disk");
            }
            // The loop is gone only when the process is.
            let _ = done.send(Done::Sealed(handoff)).await;
        });
    }

    /// Begins a copy; what is returned commands it.
    fn copy(
        &self,
        handoff: HandoffId,
        to: NodeBoot,
        shards: Vec<ShardEpoch>,
        budgeted: bool,
    ) -> watch::Sender<Command> {
        let (command, commands) = watch::channel(Command::GoOn);
        let addr = self.views.borrow().members.find(to.node).map(|member| member.gossip);
        let (links, host, done) = (self.links.clone(), self.host.clone(), self.done_in.clone());
        let budget = budgeted.then(|| Arc::clone(&self.budget));
        let tally = self.tally.clone();
        let reports = self.done_in.clone();
        tokio::spawn(async move {
            // A report that finds the queue full is followed by the next one.
            let report = move |progress| drop(reports.try_send(Done::Copied(handoff, progress)));
            let command = commands;
            let sent = match addr {
                Some(addr) => {
                    let to = (to, addr);
                    let copier =
                        Copier { links, host, to, handoff, shards, budget, tally, command, report };
                    copier.run().await
                }
                None => Err(TransferError::NoAddress),
            };
            match sent {
                Ok(()) | Err(TransferError::CalledOff) => {}
                Err(error) => {
                    tracing::warn!(%error, to = %to.node, "state could not be sent");
                    let _ = done.send(Done::SendFailed(handoff)).await;
                }
            }
        });
        command
    }

    fn send_state(&self, handoff: HandoffId, to: NodeBoot, shards: Vec<ShardEpoch>) {
        let addr = self.views.borrow().members.find(to.node).map(|member| member.gossip);
        let (links, host, done) = (self.links.clone(), self.host.clone(), self.done_in.clone());
        let tally = self.tally.clone();
        tokio::spawn(async move {
            let sent = match addr {
                Some(addr) => {
                    let to = (to, addr);
                    transfer::send(&links, &host, to, handoff, &shards, &tally).await
                }
                None => Err(TransferError::NoAddress),
            };
            if let Err(error) = sent {
                tracing::warn!(%error, to = %to.node, "state could not be sent");
                let _ = done.send(Done::SendFailed(handoff)).await;
            }
        });
    }

    fn open_copy(&self, handoff: HandoffId, shards: &[ShardEpoch], state: &mut State) {
        let mut copy = state.copies.remove(&handoff).unwrap_or_default();
        for at in shards {
            match copy.remove(&at.shard) {
                Some(incoming) => {
                    incoming.activate(at.epoch);
                }
                None => self.host.activate_empty(at.shard, at.epoch),
            }
        }
    }

    fn give_up_shards(&self, to: NodeBoot, shards: &[ShardEpoch], state: &State) {
        // Every gate is closed for good when this ends, before anything waits (R2).
        let aside =
            shards.iter().filter_map(|at| Some((*at, self.host.set_aside_for(at.shard, to)?)));
        let (aside, empty): (Vec<_>, Vec<_>) = aside.partition(|(_, it)| it.sessions() > 0);
        empty.into_iter().for_each(|(_, mut aside)| aside.forget_on_disk());
        shards.iter().for_each(|at| self.host.drop_saved(at.shard));
        let n_sessions: usize = aside.iter().map(|(_, aside)| aside.sessions()).sum();
        state.meters.yielded.increment(shards.len() as u64);
        let n_shards = shards.len();
        tracing::warn!(n_shards, n_sessions, to = %to.node,
            "another node serves these shards at a higher epoch: it is offered their sessions");
        self.offer(to, aside, state);
    }

    fn log(&self, note: &Note, state: &mut State) {
        match note {
            Note::Founded { alone: true } => {
                tracing::warn!("no seed answered: founded a cluster alone");
            }
            Note::Founded { alone: false } => tracing::info!("founded the cluster"),
            Note::Joined => tracing::info!("joined the cluster"),
            Note::HandedOff { handoff, to, n_shards, class, took } => {
                let n_sessions = state.sealed.remove(handoff).unwrap_or(0);
                state.meters.handed_off(*took, n_sessions);
                let pause = took.sealed + took.granting;
                tracing::debug!(to = %to.node, n_shards, ?class, copied_in = ?took.copying, ?pause,
                    "handed off");
            }
            Note::Aborted { handoff, to, n_shards, why } => {
                state.sealed.remove(handoff);
                counter!("stead_handoffs_total", "outcome" => why.label()).increment(1);
                tracing::info!(to = %to.node, n_shards, %why, "handoff called off");
            }
            Note::Promoted { from, n_shards } => {
                state.meters.promoted.increment(*n_shards as u64);
                tracing::warn!(owner = %from.node, n_shards,
                    "a node died: its shards are served from their copies here");
            }
            Note::Superseded { n_shards } => {
                state.meters.yielded.increment(*n_shards as u64);
                tracing::warn!(
                    n_shards,
                    "this node was taken for dead: replicas serve these shards, with all that was \
                     acknowledged here"
                );
            }
            Note::Minority { is_minority, stops, settled, ready } => {
                self.count_moves(state);
                log_minority(*is_minority, *stops, (*settled, *ready));
            }
            Note::Recovered { n_shards } => {
                tracing::info!(n_shards, "shards are served from disk");
            }
            Note::OlderThanDamaged { n_shards } => {
                tracing::error!(
                    n_shards,
                    "the newest state of shards is damaged: they are served \
                    from an older copy, without their latest changes"
                );
            }
            Note::WaitsForDisks { within } => {
                tracing::warn!(
                    ?within,
                    "nodes of this cluster are not back yet: their disks may \
                    hold newer sessions, so they are waited for"
                );
            }
            Note::TookOver { n_shards } => {
                state.meters.taken_over.increment(*n_shards as u64);
                tracing::info!(n_shards, "claimed shards that nobody held");
            }
        }
    }

    fn publish(&self, state: &mut State) {
        if !std::mem::take(&mut state.publish) {
            return;
        }
        for at in self.machine.granted() {
            self.granted.insert(at.shard, at.epoch);
        }
        let claims = self.machine.book().table().clone();
        let view = Arc::new(self.views.borrow().with_claims(claims));
        self.views.send_replace(view);
        let (n_owned, pending) = (self.machine.n_owned(), self.machine.pending());
        state.meters.owned.set(n_owned as f64);
        state.meters.quarantined.set(self.machine.quarantined().count() as f64);
        state.meters.pending(pending);
        self.progress.send_modify(|progress| {
            progress.n_owned = n_owned;
            progress.pending = pending;
        });
    }
}

fn log_minority(is_minority: bool, stops: bool, (settled, ready): (usize, usize)) {
    match (is_minority, stops) {
        (true, true) => tracing::warn!(
            settled,
            ready,
            "cut off with the smaller part of the cluster: nothing is answered until enough \
             nodes are heard again; `stead members forget NAME` counts one no more that is gone \
             for ever"
        ),
        (true, false) => tracing::warn!(
            settled,
            ready,
            "cut off with the smaller part of the cluster: this node serves on, and what both \
             sides change is merged later"
        ),
        (false, _) => tracing::info!(settled, ready, "with most of the cluster again"),
    }
}
