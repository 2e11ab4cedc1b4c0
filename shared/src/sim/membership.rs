//! A cluster of [`Swim`] machines on the simulated network.

mod shell;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;

use super::kernel::{Host, NetConfig, Sim};
use crate::id::{BootId, NodeBoot, NodeId};
use crate::member::{Card, MemberState, Members, Phase, Role};
use crate::swim::{
    FatalReason, SelfDescription, Swim, SwimConfig, SwimEvent, SwimState, SwimStats,
};
use crate::time::Time;

/// Boot ids look like those of real processes: microseconds of the Unix clock.
const BOOT_ORIGIN: u64 = 1_790_000_000_000_000;
/// The port of every simulated process.
const PORT: u16 = 7_400;

/// The name of the process that normally runs at `host`.
#[must_use]
pub fn name_of(host: Host) -> String {
    format!("n{}", host.0)
}

/// The address of `host`.
#[must_use]
pub fn addr_of(host: Host) -> SocketAddr {
    let [_, b, c, d] = host.0.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, b, c, d)), PORT)
}

fn host_of(addr: SocketAddr) -> Option<Host> {
    match addr.ip() {
        IpAddr::V4(ip) => {
            let [_, b, c, d] = ip.octets();
            Some(Host(u32::from_be_bytes([0, b, c, d])))
        }
        IpAddr::V6(_) => None,
    }
}

/// A simulated cluster.
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Number of hosts. None runs a process at first.
    pub n_hosts: u32,
    /// The network.
    pub net: NetConfig,
    /// The machines.
    pub swim: SwimConfig,
    /// The hosts that everybody has for seeds.
    pub seeds: Vec<Host>,
}

/// Something that a process noticed.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Its list shows a member in another state. `None`: not listed.
    Seen {
        /// The member, and the boot shown afterwards (or before, when it is not listed now).
        who: NodeBoot,
        /// Before.
        from: Option<MemberState>,
        /// Afterwards.
        to: Option<MemberState>,
    },
    /// It was told that this boot is dead.
    Died {
        /// Which.
        who: NodeBoot,
        /// With proof.
        confirmed: bool,
    },
    /// It stopped for good.
    Fatal(FatalReason),
    /// It has told everybody goodbye.
    Left,
}

/// What was sent so far, by all processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Datagrams.
    pub packets: u64,
    /// Bytes of their payloads, without the envelope.
    pub packet_bytes: u64,
    /// Lists sent by push/pull, calls and answers.
    pub lists: u64,
    /// Their bytes.
    pub list_bytes: u64,
}

#[derive(Clone, Debug)]
enum Event {
    Tick,
    Swim(SwimEvent),
    Datagram { to: NodeBoot, from: NodeBoot, source: SocketAddr, payload: Bytes },
    Call { call: u64, source: Host, from: NodeBoot, state: SwimState },
    Answer { call: u64, from: NodeBoot, state: SwimState },
    CallFailed { call: u64 },
    NameAsked { source: Host, old: NodeBoot },
    NameAnswer { old: NodeBoot, boot: BootId },
    NameOver { old: NodeBoot },
}

#[derive(Debug)]
struct Process {
    swim: Swim,
    /// The tick that counts; earlier ones are left over.
    tick_at: Option<Time>,
    calls: BTreeMap<u64, SocketAddr>,
    asking: Option<NodeBoot>,
    members: Arc<Members>,
    /// Its list shows exactly those alive that are.
    right: bool,
    /// It has been told to say goodbye.
    leaving: bool,
}

/// Processes on hosts, and what they notice.
#[derive(Debug)]
pub struct MembershipSim {
    sim: Sim<Event>,
    config: MembershipConfig,
    processes: BTreeMap<Host, Process>,
    /// The processes that are alive and have not said goodbye.
    truth: BTreeMap<NodeId, BootId>,
    n_wrong: usize,
    n_calls: u64,
    log: Vec<(Time, Host, Change)>,
    traffic: Traffic,
    /// Counters of processes that are no more.
    past: SwimStats,
    changed: bool,
}

impl MembershipSim {
    /// A cluster without processes.
    #[must_use]
    pub fn new(config: MembershipConfig) -> Self {
        Self {
            sim: Sim::new(config.seed, config.n_hosts, config.net.clone()),
            config,
            processes: BTreeMap::new(),
            truth: BTreeMap::new(),
            n_wrong: 0,
            n_calls: 0,
            log: Vec::new(),
            traffic: Traffic::default(),
            past: SwimStats::default(),
            changed: false,
        }
    }

    /// A cluster of ready processes on all hosts, started together and agreed.
    ///
    /// # Panics
    /// When they do not agree within a minute: the run has no meaning then.
    #[must_use]
    pub fn agreed_cluster(config: MembershipConfig) -> Self {
        let mut cluster = Self::new(config);
        for host in cluster.hosts() {
            cluster.start(host);
            cluster.run_for(Duration::from_millis(5));
        }
        let took = cluster.run_until_agreed(Duration::from_secs(60));
        assert!(took.is_some(), "seed {}: no agreement in 60 s", cluster.config.seed);
        cluster.run_for(Duration::from_secs(5));
        cluster
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        self.sim.hosts().collect()
    }

    /// Nothing gets from `from` to `to` any more.
    pub fn cut(&mut self, from: Host, to: Host) {
        self.sim.cut(from, to);
    }

    /// Cuts `these` hosts off from the others.
    pub fn isolate(&mut self, these: &[Host]) {
        self.sim.isolate(these);
    }

    /// Mends every cut.
    pub fn heal(&mut self) {
        self.sim.heal();
    }

    /// The process at `host` stands still.
    pub fn pause(&mut self, host: Host) {
        self.sim.pause(host);
    }

    /// It goes on.
    pub fn resume(&mut self, host: Host) {
        self.sim.resume(host);
    }

    /// Changes how the network treats what is sent from now on.
    pub fn set_net(&mut self, net: NetConfig) {
        self.sim.set_net(net);
    }

    /// Randomness of this run, for scenarios.
    pub fn rng(&mut self) -> &mut rand::rngs::StdRng {
        self.sim.rng()
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.sim.now()
    }

    /// Everything noticed so far, in order.
    #[must_use]
    pub fn log(&self) -> &[(Time, Host, Change)] {
        &self.log
    }

    /// What was sent so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The list of the process at `host`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn members(&self, host: Host) -> &Members {
        &self.process(host).members
    }

    /// The machine at `host`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn swim(&self, host: Host) -> &Swim {
        &self.process(host).swim
    }

    /// Whether a process is at `host` that did not stop by itself.
    #[must_use]
    pub fn is_there(&self, host: Host) -> bool {
        self.processes.contains_key(&host)
    }

    fn process(&self, host: Host) -> &Process {
        self.processes.get(&host).expect("a process runs there")
    }

    /// Sum of the counters of all processes that are or were.
    #[must_use]
    pub fn stats(&self) -> SwimStats {
        self.processes.values().fold(self.past, |sum, process| add(sum, process.swim.stats()))
    }

    /// Starts the processes of these hosts at once, under their normal names.
    pub fn start_hosts(&mut self, hosts: Range<u32>) {
        for host in hosts.map(Host) {
            self.start(host);
        }
    }

    /// Starts the process of `host` under its normal name.
    pub fn start(&mut self, host: Host) -> NodeBoot {
        self.start_as(host, &name_of(host), None)
    }

    /// Starts a process called `name` at `host`; its boot id is `boot`, or from the clock.
    pub fn start_as(&mut self, host: Host, name: &str, boot: Option<BootId>) -> NodeBoot {
        let now = self.sim.now();
        let clock = BootId(BOOT_ORIGIN + now.as_micros());
        let me = NodeBoot { node: NodeId::of_name(name), boot: boot.unwrap_or(clock) };
        let description = describe(host, name, me);
        let seed = self.sim.rng().random();
        let swim = Swim::new(description, self.config.swim.clone(), seed, now);
        self.stop(host);
        self.sim.start(host);
        let process = Process {
            members: swim.members(),
            swim,
            tick_at: None,
            calls: BTreeMap::new(),
            asking: None,
            right: false,
            leaving: false,
        };
        self.processes.insert(host, process);
        self.judge_all();
        self.set_tick(host);
        me
    }

    /// The process at `host` is gone at once; connects to it are refused from now on.
    pub fn crash(&mut self, host: Host) {
        self.stop(host);
        self.judge_all();
    }

    /// The process at `host` says goodbye. It counts as gone from now on.
    pub fn leave(&mut self, host: Host) {
        let process = self.processes.get_mut(&host).expect("a process runs there");
        process.leaving = true;
        self.judge_all();
        self.tell(host, SwimEvent::Leave);
    }

    /// Tells the process at `host` something from above.
    pub fn tell(&mut self, host: Host, event: SwimEvent) {
        self.sim.timer(host, self.sim.now(), Event::Swim(event));
    }

    /// Everybody who runs tries to connect to `host`, as it does when a link breaks.
    pub fn links_break(&mut self, host: Host, by: &[Host]) {
        let who = self.truth_or_last(host);
        for &host_by in by {
            self.dial(host_by, who, addr_of(host));
        }
    }

    fn truth_or_last(&self, host: Host) -> NodeBoot {
        let node = NodeId::of_name(&name_of(host));
        let seen = self.processes.values().find_map(|process| process.members.find(node));
        NodeBoot { node, boot: seen.map(|member| member.boot).unwrap_or_default() }
    }

    fn stop(&mut self, host: Host) {
        self.sim.crash(host);
        if let Some(process) = self.processes.remove(&host) {
            self.past = add(self.past, process.swim.stats());
        }
    }

    /// Runs for `duration` of virtual time.
    pub fn run_for(&mut self, duration: Duration) {
        let until = self.sim.now() + duration;
        while let Some((host, event)) = self.sim.next(until) {
            self.happen(host, event);
        }
    }

    /// Runs until `done` holds, which is asked whenever a list has changed. Returns how long that
    /// took, or nothing when it does not hold within `limit`.
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let start = self.sim.now();
        if done(self) {
            return Some(Duration::ZERO);
        }
        while let Some((host, event)) = self.sim.next(start + limit) {
            self.changed = false;
            self.happen(host, event);
            if self.changed && done(self) {
                return Some(self.sim.now().since(start));
            }
        }
        None
    }

    /// Runs until every process lists exactly those as alive that are.
    pub fn run_until_agreed(&mut self, limit: Duration) -> Option<Duration> {
        self.run_until(limit, Self::agreed)
    }

    /// Whether every process lists exactly those as alive that are.
    #[must_use]
    pub fn agreed(&self) -> bool {
        self.n_wrong == 0
    }

    /// Whether the process at `host` does.
    #[must_use]
    pub fn is_right(&self, host: Host) -> bool {
        self.process(host).right
    }

    /// How often since `since` somebody listed a process as down that was alive then. Meant for
    /// runs in which nobody dies.
    #[must_use]
    pub fn n_false_downs(&self, since: Time) -> usize {
        let alive = |who: &NodeBoot| self.truth.get(&who.node) == Some(&who.boot);
        self.log
            .iter()
            .filter(|(at, _, change)| match change {
                Change::Seen { who, to, .. } => {
                    since <= *at && *to == Some(MemberState::Down) && alive(who)
                }
                Change::Died { .. } | Change::Fatal(_) | Change::Left => false,
            })
            .count()
    }

    fn note(&mut self, host: Host, change: Change) {
        self.log.push((self.sim.now(), host, change));
    }

    /// The list of the process at `host` differs: writes down how.
    fn publish(&mut self, host: Host) {
        let Some(process) = self.processes.get_mut(&host) else { return };
        let new = process.swim.members();
        let old = std::mem::replace(&mut process.members, Arc::clone(&new));
        for member in &new.list {
            let from = old.find(member.id).map(|old| (old.boot, old.state));
            if from != Some((member.boot, member.state)) {
                let (from, to) = (from.map(|(_, state)| state), Some(member.state));
                self.note(host, Change::Seen { who: member.node_boot(), from, to });
            }
        }
        for member in old.list.iter().filter(|member| new.find(member.id).is_none()) {
            let who = member.node_boot();
            self.note(host, Change::Seen { who, from: Some(member.state), to: None });
        }
        self.changed = true;
        self.judge(host);
    }

    /// Who is alive has changed: of two processes of one name the first one counts.
    fn judge_all(&mut self) {
        let present = self.processes.values().filter(|process| !process.leaving);
        self.truth.clear();
        for me in present.map(|process| process.swim.me()) {
            self.truth.entry(me.node).or_insert(me.boot);
        }
        for process in self.processes.values_mut() {
            process.right = shows(&process.members, &self.truth);
        }
        self.n_wrong = self.processes.values().filter(|process| !process.right).count();
        self.changed = true;
    }

    fn judge(&mut self, host: Host) {
        let Some(process) = self.processes.get_mut(&host) else { return };
        let was = process.right;
        process.right = shows(&process.members, &self.truth);
        match (was, process.right) {
            (true, false) => self.n_wrong += 1,
            (false, true) => self.n_wrong -= 1,
            (true, true) | (false, false) => {}
        }
    }
}

/// Whether exactly these are listed as alive. A process that has said goodbye is not asked.
fn shows(members: &Members, truth: &BTreeMap<NodeId, BootId>) -> bool {
    if !truth.contains_key(&members.me) {
        return true;
    }
    let live = members.list.iter().filter(|member| member.state.is_live());
    live.map(|member| (&member.id, &member.boot)).eq(truth.iter())
}

fn describe(host: Host, name: &str, me: NodeBoot) -> SelfDescription {
    let ip = addr_of(host).ip();
    SelfDescription {
        card: Card {
            of: me,
            name: name.to_owned(),
            http: format!("{ip}:8080"),
            admin: format!("{ip}:9180"),
            zone: String::new(),
            n_shards: 16_384,
            balance_permille: 1_050,
            secret_fingerprint: 7,
            version: "0.1.0".to_owned(),
        },
        role: Role::Node,
        weight: 1,
        zone: 0,
        gossip: addr_of(host),
        phase: Phase::Ready,
    }
}

fn add(a: SwimStats, b: SwimStats) -> SwimStats {
    SwimStats {
        packets_in: a.packets_in + b.packets_in,
        packets_out: a.packets_out + b.packets_out,
        bytes_out: a.bytes_out + b.bytes_out,
        packets_refused: a.packets_refused + b.packets_refused,
        core_errors: a.core_errors + b.core_errors,
        suspicions_refuted: a.suspicions_refuted + b.suspicions_refuted,
        accusations_held: a.accusations_held + b.accusations_held,
        renewals: a.renewals + b.renewals,
        notices_out: a.notices_out + b.notices_out,
        stalls: a.stalls + b.stalls,
    }
}
