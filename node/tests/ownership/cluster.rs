//! A cluster of ownership machines in virtual time: gates and sessions are modelled, messages are
//! delayed, lost and repeated, and members see each change of the membership at their own time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stead_node::logic::copying::Progress;
use stead_node::logic::forming::FormingConfig;
use stead_node::logic::ownership::{Action, Event, Ownership, OwnershipConfig, Rules};
use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::member::{Member, MemberState, Members, Phase, Role};
use stead_shared::time::Time;
use stead_shared::view::{ClusterParams, View};

pub(crate) const SHARDS: u32 = 32;

/// What the oracle can complain about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Violation {
    /// Two gates of one shard are open at once.
    TwoOwners,
    /// A node served in an epoch not above one it had granted away or sealed.
    EpochNotRaised,
    /// An acknowledged change is gone though its owner never died.
    LostChange,
    /// Faults are long over and some shard has no owner.
    NoOwner,
}

#[derive(Clone, Debug)]
struct Gate {
    epoch: Epoch,
    open: bool,
    state: Vec<u64>,
}

#[derive(Clone, Debug)]
enum Happens {
    Tick {
        node: usize,
        boot: BootId,
    },
    Deliver {
        node: usize,
        boot: BootId,
        event: Event,
    },
    State {
        node: usize,
        boot: BootId,
        id: HandoffId,
        states: BTreeMap<ShardId, Vec<u64>>,
    },
    /// The members as they were when the news set out.
    Look {
        node: usize,
        boot: BootId,
        version: u64,
        list: Vec<Member>,
    },
    Write,
}

struct Process {
    boot: BootId,
    machine: Ownership,
    view: View,
    phase: Phase,
    gates: BTreeMap<ShardId, Gate>,
    /// Highest epoch this boot ever sealed or granted away, by shard.
    promised: BTreeMap<ShardId, Epoch>,
    copies: BTreeMap<HandoffId, BTreeMap<ShardId, Vec<u64>>>,
    /// Handoffs whose state is being sent, and where to.
    sending: BTreeMap<HandoffId, (NodeBoot, Vec<ShardEpoch>)>,
    tick_at: Time,
    drained: bool,
    seen: u64,
}

/// Faults of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) lose: f64,
    pub(crate) repeat: f64,
    pub(crate) members_lag_ms: u64,
    pub(crate) delay_max_ms: u64,
}

pub(crate) struct Cluster {
    pub(crate) now: Time,
    rng: StdRng,
    faults: Faults,
    rules: Rules,
    seq: u64,
    queue: BinaryHeap<Reverse<(Time, u64, usize)>>,
    pending: BTreeMap<usize, Happens>,
    processes: Vec<Option<Process>>,
    /// The truth about each node: boot, state, and since when.
    truth: Vec<(BootId, MemberState)>,
    params: Arc<ClusterParams>,
    next_value: u64,
    version: u64,
    acked: BTreeMap<ShardId, Vec<(u64, NodeBoot)>>,
    died: Vec<NodeBoot>,
    pub(crate) violations: Vec<(Time, Violation, ShardId)>,
    /// The second's claims do not reach the first.
    pub(crate) cut: Option<(usize, usize)>,
    pub(crate) log: Vec<String>,
    keep_log: bool,
}

fn node_id(node: usize) -> NodeId {
    NodeId::of_name(&format!("n{node}"))
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Cluster {
    pub(crate) fn new(n: usize, seed: u64, faults: Faults, rules: Rules) -> Self {
        let params = ClusterParams {
            shards: ShardCount::new(SHARDS).expect("a power of two"),
            balance_permille: 1050,
            secret: HashSecret::public(),
        };
        let mut cluster = Self {
            now: Time::ZERO,
            rng: StdRng::seed_from_u64(seed),
            faults,
            rules,
            seq: 0,
            queue: BinaryHeap::new(),
            pending: BTreeMap::new(),
            processes: (0..n).map(|_| None).collect(),
            truth: vec![(BootId(0), MemberState::Down); n],
            params: Arc::new(params),
            next_value: 1,
            version: 0,
            acked: BTreeMap::new(),
            died: Vec::new(),
            violations: Vec::new(),
            cut: None,
            log: Vec::new(),
            keep_log: std::env::var("SEED").is_ok(),
        };
        cluster.at(ms(1), Happens::Write);
        cluster
    }

    fn at(&mut self, after: Duration, what: Happens) {
        self.seq += 1;
        let key = self.seq as usize;
        self.queue.push(Reverse((self.now + after, self.seq, key)));
        self.pending.insert(key, what);
    }

    pub(crate) fn start(&mut self, node: usize) {
        let boot = BootId(self.now.as_micros() + 1);
        let me = NodeBoot { node: node_id(node), boot };
        self.truth[node] = (boot, MemberState::Joining);
        let members = Arc::new(Members { me: me.node, list: vec![self.member(node)] });
        let view = View::new(Arc::clone(&self.params), Arc::clone(&members));
        let forming = FormingConfig { has_seeds: true, ..FormingConfig::default() };
        let mut config = OwnershipConfig::new(me, SHARDS, forming);
        config.rules = self.rules;
        config.batch_shards_max = 4;
        config.orphan_grace = ms(3_000);
        let targets = Arc::clone(&view.targets);
        self.processes[node] = Some(Process {
            boot,
            machine: Ownership::new(config, members, targets, self.now),
            view,
            phase: Phase::Joining,
            gates: BTreeMap::new(),
            promised: BTreeMap::new(),
            copies: BTreeMap::new(),
            sending: BTreeMap::new(),
            tick_at: Time::ZERO,
            drained: false,
            seen: 0,
        });
        self.at(ms(1), Happens::Tick { node, boot });
        self.tell_all();
    }

    /// The process is gone at once; the others learn it by proof or, later, by silence.
    pub(crate) fn kill(&mut self, node: usize, confirmed: bool) {
        let Some(process) = self.processes[node].take() else { return };
        let who = NodeBoot { node: node_id(node), boot: process.boot };
        self.died.push(who);
        self.truth[node].1 = MemberState::Down;
        for other in 0..self.processes.len() {
            let lag = ms(self.rng.random_range(1..=self.faults.members_lag_ms));
            let disconnected = Event::Disconnected(who.node);
            self.deliver(other, ms(1), disconnected);
            self.deliver(other, lag, Event::Died { who, confirmed });
        }
        self.tell_all();
    }

    pub(crate) fn drain(&mut self, node: usize) {
        if let Some(process) = &mut self.processes[node] {
            process.phase = Phase::Leaving;
            self.truth[node].1 = MemberState::Leaving;
            self.deliver(node, ms(0), Event::Drain);
            self.tell_all();
        }
    }

    pub(crate) fn is_drained(&self, node: usize) -> bool {
        self.processes[node].as_ref().is_some_and(|process| process.drained)
    }

    /// A drained process exits.
    pub(crate) fn leave(&mut self, node: usize) {
        self.processes[node] = None;
        self.truth[node].1 = MemberState::Left;
        self.tell_all();
    }

    pub(crate) fn is_running(&self, node: usize) -> bool {
        self.processes[node].is_some()
    }

    fn deliver(&mut self, node: usize, after: Duration, event: Event) {
        if let Some(boot) = self.processes[node].as_ref().map(|process| process.boot) {
            self.at(after, Happens::Deliver { node, boot, event });
        }
    }

    fn tell_all(&mut self) {
        self.version += 1;
        let mut list: Vec<Member> = (0..self.truth.len())
            .filter(|&other| self.truth[other].0 != BootId(0))
            .map(|other| self.member(other))
            .collect();
        list.sort_by_key(|member| member.id);
        for node in 0..self.processes.len() {
            let lag = ms(self.rng.random_range(1..=self.faults.members_lag_ms));
            if let Some(boot) = self.processes[node].as_ref().map(|process| process.boot) {
                let (version, list) = (self.version, list.clone());
                self.at(lag, Happens::Look { node, boot, version, list });
            }
        }
    }

    fn member(&self, node: usize) -> Member {
        let (boot, state) = self.truth[node];
        Member {
            id: node_id(node),
            boot,
            role: Role::Node,
            phase: match state {
                MemberState::Joining => Phase::Joining,
                MemberState::Leaving | MemberState::Left => Phase::Leaving,
                MemberState::Ready | MemberState::Suspect | MemberState::Down => Phase::Ready,
            },
            state,
            weight: 1,
            zone: 0,
            gossip: SocketAddr::from(([127, 0, 0, 1], 7000 + node as u16)),
            in_ring: state == MemberState::Ready,
            held_down: false,
            card: None,
        }
    }

    fn look(&mut self, node: usize, version: u64, list: Vec<Member>) {
        let members = Arc::new(Members { me: node_id(node), list });
        let Some(process) = &mut self.processes[node] else { return };
        if process.seen >= version {
            return;
        }
        process.seen = version;
        let before = Arc::clone(&process.view.members);
        process.view = process.view.with_members(Arc::clone(&members));
        let event = Event::Members {
            members: Arc::clone(&members),
            targets: Arc::clone(&process.view.targets),
            digest: process.view.members_digest,
        };
        let peers: Vec<NodeBoot> = members
            .live_peers()
            .filter(|peer| !before.is_live(peer.node_boot()))
            .map(Member::node_boot)
            .collect();
        self.handle(node, event);
        for peer in peers {
            // Every third pair of nodes speaks the version before: sealed first, then sent.
            let protocol = if (peer.node.0 + node as u64).is_multiple_of(3) { 1 } else { 2 };
            self.deliver(node, ms(1), Event::Connected { peer, protocol });
        }
    }

    fn handle(&mut self, node: usize, event: Event) {
        let Some(process) = &mut self.processes[node] else { return };
        let mut out = Vec::new();
        process.machine.handle(self.now, event, &mut out);
        let boot = process.boot;
        let deadline = process.machine.deadline();
        for action in out {
            self.act(node, action);
        }
        let Some(process) = &mut self.processes[node] else { return };
        if process.tick_at <= self.now || process.tick_at > deadline {
            process.tick_at = deadline;
            let after = deadline.since(self.now);
            self.at(after, Happens::Tick { node, boot });
        }
        self.check();
    }

    fn index(&self, id: NodeId) -> Option<usize> {
        (0..self.truth.len()).find(|&node| node_id(node) == id)
    }

    fn send(&mut self, from: usize, to: NodeId, event: Event) {
        let Some(to) = self.index(to) else { return };
        let cut = self.cut == Some((to, from)) && matches!(event, Event::Claims(_));
        if cut || self.rng.random_bool(self.faults.lose) {
            return;
        }
        let delay =
            Duration::from_micros(self.rng.random_range(100..self.faults.delay_max_ms * 1_000));
        self.deliver(to, delay, event.clone());
        if self.rng.random_bool(self.faults.repeat) {
            let delay = ms(self.rng.random_range(1..4_000));
            self.deliver(to, delay, event);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        let Some(process) = &mut self.processes[node] else { return };
        let me = NodeBoot { node: node_id(node), boot: process.boot };
        if self.keep_log {
            self.log.push(format!("{:?} n{node} {action:?}", self.now));
        }
        match action {
            Action::Send { to, message } => {
                self.send(node, to, Event::Control { from: me, message });
            }
            Action::PushClaims(update) => {
                for other in (0..self.processes.len()).filter(|&other| other != node) {
                    self.send(node, node_id(other), Event::Claims(update.clone()));
                }
            }
            Action::SendClaims { to, update } => self.send(node, to, Event::Claims(update)),
            Action::AskClaims { to } => self.send(node, to, Event::ClaimsWanted(me.node)),
            Action::BecomeReady => {
                if process.phase == Phase::Joining {
                    process.phase = Phase::Ready;
                    self.truth[node].1 = MemberState::Ready;
                    self.tell_all();
                }
            }
            Action::OpenEmpty { shards, lost: _ } => self.open(node, &shards, &BTreeMap::new()),
            Action::Seal { handoff, shards } => {
                for shard in shards {
                    if let Some(gate) = process.gates.get_mut(&shard) {
                        gate.open = false;
                        process.promised.insert(shard, gate.epoch);
                    }
                }
                let after = Duration::from_micros(self.rng.random_range(10..2_000));
                self.deliver(node, after, Event::Sealed(handoff));
            }
            Action::Reopen { shards } => {
                let states: BTreeMap<ShardId, Vec<u64>> = process
                    .gates
                    .iter()
                    .map(|(&shard, gate)| (shard, gate.state.clone()))
                    .collect();
                self.open(node, &shards, &states);
            }
            Action::Copy { handoff, to, shards, budgeted: _ } => {
                process.sending.insert(handoff, (to, shards));
                let walking = Progress { walking: true, lag: 0, left: 9, rate: 1, overflow: false };
                let done = Progress { walking: false, left: 0, ..walking };
                let delay = Duration::from_micros(self.rng.random_range(200..20_000));
                let copied = |progress| Event::Copied { handoff, progress };
                self.deliver(node, delay / 2, copied(walking));
                if self.rng.random_bool(self.faults.lose) {
                    self.deliver(node, delay, Event::SendFailed(handoff));
                } else {
                    self.deliver(node, delay, copied(done));
                }
            }
            Action::StopCopy { handoff } => {
                process.sending.remove(&handoff);
            }
            Action::Throttle { .. } => {}
            Action::SendLast { handoff } => {
                if let Some((to, shards)) = process.sending.remove(&handoff) {
                    self.act(node, Action::SendState { handoff, to, shards });
                }
            }
            Action::SendState { handoff, to, shards } => {
                let states: BTreeMap<ShardId, Vec<u64>> = shards
                    .iter()
                    .filter_map(|at| Some((at.shard, process.gates.get(&at.shard)?.state.clone())))
                    .collect();
                let delay = Duration::from_micros(self.rng.random_range(200..20_000));
                match self.index(to.node) {
                    Some(target) if self.rng.random_bool(1.0 - self.faults.lose) => {
                        let boot = to.boot;
                        let id = handoff;
                        self.at(delay, Happens::State { node: target, boot, id, states });
                    }
                    _ => self.deliver(node, delay, Event::SendFailed(handoff)),
                }
            }
            Action::DropCopy { handoff } => {
                process.copies.remove(&handoff);
            }
            Action::OpenCopy { handoff, shards } => {
                let states = process.copies.remove(&handoff).unwrap_or_default();
                self.open(node, &shards, &states);
            }
            Action::DropState { shards } => {
                for shard in shards {
                    process.gates.remove(&shard);
                }
            }
            Action::Yield { to: _, shards } => {
                for at in shards {
                    process.gates.remove(&at.shard);
                }
            }
            Action::Drained => process.drained = true,
            Action::Publish | Action::Note(_) | Action::Certain { .. } => {}
            Action::GiveUp(_) => self.kill(node, true),
        }
    }

    fn open(&mut self, node: usize, shards: &[ShardEpoch], states: &BTreeMap<ShardId, Vec<u64>>) {
        let Some(process) = &mut self.processes[node] else { return };
        for at in shards {
            if process.promised.get(&at.shard).is_some_and(|promised| at.epoch <= *promised) {
                self.violations.push((self.now, Violation::EpochNotRaised, at.shard));
            }
            let state = states.get(&at.shard).cloned().unwrap_or_default();
            process.gates.insert(at.shard, Gate { epoch: at.epoch, open: true, state });
        }
    }

    fn write(&mut self) {
        let shard = ShardId(self.rng.random_range(0..SHARDS));
        let value = self.next_value;
        for node in 0..self.processes.len() {
            let Some(process) = &mut self.processes[node] else { continue };
            let who = NodeBoot { node: node_id(node), boot: process.boot };
            if let Some(gate) = process.gates.get_mut(&shard).filter(|gate| gate.open) {
                gate.state.push(value);
                self.acked.entry(shard).or_default().push((value, who));
                self.next_value += 1;
                break;
            }
        }
        self.at(ms(1), Happens::Write);
    }

    fn check(&mut self) {
        let mut owners: BTreeMap<ShardId, usize> = BTreeMap::new();
        for process in self.processes.iter().flatten() {
            for (&shard, _) in process.gates.iter().filter(|(_, gate)| gate.open) {
                *owners.entry(shard).or_default() += 1;
            }
        }
        for (shard, n) in owners {
            if n > 1 {
                self.violations.push((self.now, Violation::TwoOwners, shard));
            }
        }
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        while let Some(&Reverse((at, _, key))) = self.queue.peek() {
            if at > until || self.violations.len() > 20 {
                break;
            }
            self.queue.pop();
            self.now = at;
            let Some(what) = self.pending.remove(&key) else { continue };
            self.happen(what);
        }
        self.now = until;
    }

    fn is_boot(&self, node: usize, boot: BootId) -> bool {
        self.processes[node].as_ref().is_some_and(|process| process.boot == boot)
    }

    fn happen(&mut self, what: Happens) {
        match what {
            Happens::Tick { node, boot } if self.is_boot(node, boot) => {
                self.handle(node, Event::Tick);
            }
            Happens::Deliver { node, boot, event } if self.is_boot(node, boot) => {
                self.handle(node, event);
            }
            Happens::State { node, boot, id, states } if self.is_boot(node, boot) => {
                if let Some(process) = &mut self.processes[node] {
                    process.copies.insert(id, states);
                }
                self.handle(node, Event::Received(id));
            }
            Happens::Look { node, boot, version, list } if self.is_boot(node, boot) => {
                self.look(node, version, list);
            }
            Happens::Write => self.write(),
            Happens::Tick { .. }
            | Happens::Deliver { .. }
            | Happens::State { .. }
            | Happens::Look { .. } => {}
        }
    }

    /// After the faults: every shard has one open gate, and no change is lost but those that
    /// passed through a process that died.
    pub(crate) fn check_end(&mut self) {
        for shard in (0..SHARDS).map(ShardId) {
            let open: Vec<&Gate> = self
                .processes
                .iter()
                .flatten()
                .filter_map(|process| process.gates.get(&shard).filter(|gate| gate.open))
                .collect();
            if open.is_empty() {
                self.violations.push((self.now, Violation::NoOwner, shard));
                continue;
            }
            if self.died.is_empty() {
                let acked = self.acked.get(&shard).cloned().unwrap_or_default();
                let kept = |value: u64| open.iter().any(|gate| gate.state.contains(&value));
                if acked.iter().any(|&(value, _)| !kept(value)) {
                    self.violations.push((self.now, Violation::LostChange, shard));
                }
            }
        }
    }

    pub(crate) fn owned(&self, node: usize) -> usize {
        self.processes[node]
            .as_ref()
            .map_or(0, |process| process.gates.values().filter(|gate| gate.open).count())
    }
}
