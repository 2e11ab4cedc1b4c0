//! The virtual clock, the event queue and the network.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::time::Time;

/// Most messages that wait for a paused host, as in a socket's buffer.
const BACKLOG_MAX: usize = 4_096;

/// A machine on the network: an address at which at most one process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub u32);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

/// How the network treats what is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConfig {
    /// One-way delay, uniform. Datagrams overtake one another within it.
    pub latency: Range<Duration>,
    /// Probability that a datagram is lost, 0 to 1.
    pub loss: f64,
    /// Probability that a datagram arrives twice, 0 to 1.
    pub duplicate: f64,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(150)..Duration::from_micros(1_500),
            loss: 0.0,
            duplicate: 0.0,
        }
    }
}

/// What a connect finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Somebody listens.
    Open,
    /// The host is there and nobody listens.
    Refused,
    /// No answer: cut off.
    Silent,
}

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Running {
    No,
    Yes,
    Paused,
}

#[derive(Debug)]
struct HostState<E> {
    running: Running,
    /// Grows with each start: timers of an earlier life are void.
    life: u32,
    /// What came in during a pause.
    backlog: VecDeque<(Option<u32>, E)>,
}

#[derive(Debug)]
struct Item<E> {
    host: Host,
    /// The life that it is for; a message is for whoever is there.
    life: Option<u32>,
    event: E,
}

/// The kernel. `E` is whatever reaches a process: messages and its own timers.
#[derive(Debug)]
pub struct Sim<E> {
    now: Time,
    order: BinaryHeap<Reverse<(Time, u64)>>,
    items: BTreeMap<u64, Item<E>>,
    n_queued: u64,
    rng: StdRng,
    hosts: Vec<HostState<E>>,
    net: NetConfig,
    cuts: BTreeSet<(Host, Host)>,
}

impl<E> Sim<E> {
    /// `n_hosts` hosts without processes, at time zero.
    #[must_use]
    pub fn new(seed: u64, n_hosts: u32, net: NetConfig) -> Self {
        let empty = |_| HostState { running: Running::No, life: 0, backlog: VecDeque::new() };
        Self {
            now: Time::ZERO,
            order: BinaryHeap::new(),
            items: BTreeMap::new(),
            n_queued: 0,
            rng: StdRng::seed_from_u64(seed),
            hosts: (0..n_hosts).map(empty).collect(),
            net,
            cuts: BTreeSet::new(),
        }
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// Randomness of this run, for scenarios.
    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = Host> + use<E> {
        let n = u32::try_from(self.hosts.len()).expect("hosts are counted in 32 bits");
        (0..n).map(Host)
    }

    /// Changes how the network treats what is sent from now on.
    pub fn set_net(&mut self, net: NetConfig) {
        self.net = net;
    }

    /// A process starts at `host`. What an earlier one had set is void.
    pub fn start(&mut self, host: Host) {
        let state = self.host_mut(host);
        state.running = Running::Yes;
        state.life += 1;
        state.backlog.clear();
    }

    /// The process at `host` is gone at once. The host still refuses connects.
    pub fn crash(&mut self, host: Host) {
        let state = self.host_mut(host);
        state.running = Running::No;
        state.life += 1;
        state.backlog.clear();
    }

    /// The process at `host` stands still; what comes waits for it.
    pub fn pause(&mut self, host: Host) {
        if self.host(host).running == Running::Yes {
            self.host_mut(host).running = Running::Paused;
        }
    }

    /// It goes on, with what came in the meantime first.
    pub fn resume(&mut self, host: Host) {
        if self.host(host).running != Running::Paused {
            return;
        }
        self.host_mut(host).running = Running::Yes;
        for (life, event) in std::mem::take(&mut self.host_mut(host).backlog) {
            self.queue(self.now, host, life, event);
        }
    }

    /// Whether a process is there, paused or not.
    #[must_use]
    pub fn is_alive(&self, host: Host) -> bool {
        self.host(host).running != Running::No
    }

    /// Whether a process is there and runs.
    #[must_use]
    pub fn is_running(&self, host: Host) -> bool {
        self.host(host).running == Running::Yes
    }

    /// Nothing gets from `from` to `to` any more. The other direction is not touched.
    pub fn cut(&mut self, from: Host, to: Host) {
        self.cuts.insert((from, to));
    }

    /// Cuts both directions between every host of `these` and every other.
    pub fn isolate(&mut self, these: &[Host]) {
        let others: Vec<Host> = self.hosts().filter(|host| !these.contains(host)).collect();
        for &one in these {
            for &other in &others {
                self.cut(one, other);
                self.cut(other, one);
            }
        }
    }

    /// Mends every cut.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Whether nothing gets from `from` to `to`.
    #[must_use]
    pub fn is_cut(&self, from: Host, to: Host) -> bool {
        self.cuts.contains(&(from, to))
    }

    /// Sends a datagram: late, lost or twice.
    pub fn datagram(&mut self, from: Host, to: Host, event: E)
    where
        E: Clone,
    {
        if self.is_cut(from, to) || self.chance(self.net.loss) {
            return;
        }
        if self.chance(self.net.duplicate) {
            let at = self.now + self.latency();
            self.queue(at, to, None, event.clone());
        }
        let at = self.now + self.latency();
        self.queue(at, to, None, event);
    }

    /// What a connect from `from` to `to` would find now.
    #[must_use]
    pub fn connect(&self, from: Host, to: Host) -> Connect {
        if self.is_cut(from, to) || self.is_cut(to, from) {
            Connect::Silent
        } else if self.is_alive(to) {
            Connect::Open
        } else {
            Connect::Refused
        }
    }

    /// Sends over a connection: reliably, where a lost packet costs 200 ms. Nothing arrives
    /// while the way is cut or when the process is gone by then.
    pub fn stream(&mut self, from: Host, to: Host, event: E) {
        if self.connect(from, to) != Connect::Open {
            return;
        }
        let mut delay = self.latency();
        while self.chance(self.net.loss) {
            delay += Duration::from_millis(200);
        }
        let life = Some(self.host(to).life);
        self.queue(self.now + delay, to, life, event);
    }

    /// Sets a timer of the process that runs at `host` now.
    pub fn timer(&mut self, host: Host, at: Time, event: E) {
        let life = Some(self.host(host).life);
        self.queue(at, host, life, event);
    }

    /// The next event not later than `until`, for a process that runs. When there is none the
    /// time is `until` afterwards.
    pub fn next(&mut self, until: Time) -> Option<(Host, E)> {
        while let Some(&Reverse((at, n))) = self.order.peek() {
            if until < at {
                break;
            }
            self.order.pop();
            self.now = self.now.max(at);
            let item = self.items.remove(&n).expect("queued with its order");
            if let Some(event) = self.deliver(item) {
                return Some(event);
            }
        }
        self.now = self.now.max(until);
        None
    }

    fn deliver(&mut self, item: Item<E>) -> Option<(Host, E)> {
        let state = self.host_mut(item.host);
        if item.life.is_some_and(|life| life != state.life) {
            return None;
        }
        match state.running {
            Running::No => None,
            Running::Yes => Some((item.host, item.event)),
            Running::Paused => {
                if state.backlog.len() < BACKLOG_MAX {
                    state.backlog.push_back((item.life, item.event));
                }
                None
            }
        }
    }

    /// A one-way delay.
    pub fn latency(&mut self) -> Duration {
        if self.net.latency.is_empty() {
            return self.net.latency.start;
        }
        self.rng.random_range(self.net.latency.clone())
    }

    fn chance(&mut self, probability: f64) -> bool {
        0.0 < probability && self.rng.random_bool(probability)
    }

    fn queue(&mut self, at: Time, host: Host, life: Option<u32>, event: E) {
        self.n_queued += 1;
        self.order.push(Reverse((at.max(self.now), self.n_queued)));
        self.items.insert(self.n_queued, Item { host, life, event });
    }

    fn host(&self, host: Host) -> &HostState<E> {
        &self.hosts[host.0 as usize]
    }

    fn host_mut(&mut self, host: Host) -> &mut HostState<E> {
        &mut self.hosts[host.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Host = Host(0);
    const B: Host = Host(1);

    fn pair(seed: u64, net: NetConfig) -> Sim<u32> {
        let mut sim = Sim::new(seed, 2, net);
        sim.start(A);
        sim.start(B);
        sim
    }

    fn drain(sim: &mut Sim<u32>) -> Vec<(Host, u32)> {
        let until = sim.now() + Duration::from_secs(10);
        std::iter::from_fn(|| sim.next(until)).collect()
    }

    #[test]
    fn equal_seeds_give_equal_runs() {
        let run = |seed| {
            let net = NetConfig { loss: 0.3, duplicate: 0.3, ..NetConfig::default() };
            let mut sim = pair(seed, net);
            (0..100).for_each(|n| sim.datagram(A, B, n));
            drain(&mut sim)
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn datagrams_are_lost_doubled_and_overtaken() {
        let net = NetConfig { loss: 0.3, duplicate: 0.3, ..NetConfig::default() };
        let mut sim = pair(1, net);
        (0..1_000).for_each(|n| sim.datagram(A, B, n));
        let got: Vec<u32> = drain(&mut sim).into_iter().map(|(_, n)| n).collect();
        let distinct: BTreeSet<u32> = got.iter().copied().collect();
        assert!((650..750).contains(&distinct.len()), "{}", distinct.len());
        assert!(distinct.len() + 150 < got.len());
        assert!(!got.is_sorted());
    }

    #[test]
    fn a_cut_has_a_direction() {
        let mut sim = pair(1, NetConfig::default());
        sim.cut(A, B);
        sim.datagram(A, B, 1);
        sim.datagram(B, A, 2);
        assert_eq!(drain(&mut sim), [(A, 2)]);
        assert_eq!(sim.connect(B, A), Connect::Silent, "a connection needs both directions");
        sim.heal();
        assert_eq!(sim.connect(B, A), Connect::Open);
    }

    #[test]
    fn what_comes_in_a_pause_waits() {
        let mut sim = pair(1, NetConfig::default());
        sim.timer(B, Time::from_micros(5), 1);
        sim.pause(B);
        sim.datagram(A, B, 2);
        assert_eq!(drain(&mut sim), []);
        sim.resume(B);
        assert_eq!(drain(&mut sim), [(B, 1), (B, 2)]);
    }

    #[test]
    fn a_new_process_gets_no_timers_of_the_old_one_but_its_datagrams() {
        let mut sim = pair(1, NetConfig::default());
        sim.timer(B, Time::from_micros(5_000), 1);
        sim.datagram(A, B, 2);
        sim.crash(B);
        assert_eq!(sim.connect(A, B), Connect::Refused);
        sim.start(B);
        assert_eq!(drain(&mut sim), [(B, 2)]);
    }

    #[test]
    fn time_passes_without_events() {
        let mut sim = pair(1, NetConfig::default());
        assert_eq!(sim.next(Time::from_micros(7)), None);
        assert_eq!(sim.now(), Time::from_micros(7));
    }
}
