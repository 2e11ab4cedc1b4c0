//! The agent's loop: pick what happened, let the machine decide, do what it says.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::inbox::{Inbox, Wishes};
use super::meters::{DropLog, Meters};
use super::tasks::TaskDone;
use super::{AgentError, AgentEvent, AgentRun, Call, End, PushPuller};
use crate::id::{BootId, NodeBoot};
use crate::member::Members;
use crate::net::disk;
use crate::net::heard::Heard;
use crate::net::platform::Platform;
use crate::net::sock::Datagrams;
use crate::net::watch;
use crate::swim::{FatalReason, Swim, SwimAction, SwimEvent};
use crate::time::Time;
use crate::wire::datagram::{DATAGRAM_BYTES_MAX, Envelope, NONCE_BYTES, PAYLOAD_BYTES_MAX};

// Whatever the machine hands out fits into an envelope.
const _: () = assert!(crate::swim::PAYLOAD_BYTES_MAX <= PAYLOAD_BYTES_MAX);

/// Datagrams read in one turn, so that a flood cannot hold up timers.
const BATCH: usize = 64;

/// How long the socket rests when the system says that it fails.
const SOCKET_REST: Duration = Duration::from_millis(100);

/// How long the loop sleeps when nothing is due.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// What woke the loop.
enum Wake {
    Wishes,
    Call(Call),
    Task(Result<(Id, TaskDone), JoinError>),
    EventsTaken,
    Socket,
    Deadline,
}

pub(super) struct Shell<P> {
    pub(super) swim: Swim,
    envelope: Envelope,
    socket: Datagrams,
    local: SocketAddr,
    buffer: Box<[u8; DATAGRAM_BYTES_MAX + 1]>,
    rest_until: Instant,
    platform: Platform,
    rng: StdRng,
    origin: Instant,

    pub(super) peers: Arc<P>,
    pub(super) helpers: Handle,
    pub(super) tasks: JoinSet<TaskDone>,
    /// What to tell the machine of a task that ends without a word.
    pub(super) if_lost: HashMap<Id, SwimEvent>,
    pub(super) name_timeout: Duration,
    pub(super) seeds: Arc<[String]>,
    pub(super) unresolved: BTreeSet<String>,
    data_dir: Option<PathBuf>,

    inbox: Arc<Inbox>,
    heard: Option<Arc<Heard>>,
    calls: mpsc::Receiver<Call>,
    members: watch::Sender<Arc<Members>>,
    events: mpsc::Sender<AgentEvent>,
    untold: VecDeque<AgentEvent>,
    pub(super) meters: Arc<Meters>,
    drop_log: DropLog,
    /// Whether lists were ever exchanged with anybody.
    pub(super) has_met_somebody: bool,
    pub(super) end: Option<End>,
}

impl<P: PushPuller> Shell<P> {
    pub(super) fn new(run: AgentRun, peers: Arc<P>, helpers: Handle) -> Result<Self, AgentError> {
        let AgentRun { config, socket, inbox, meters, ends, heard } = run;
        let mut seed = [0; 32];
        config.platform.fill(&mut seed).map_err(AgentError::Random)?;
        let mut rng = StdRng::from_seed(seed);
        let socket = socket.attach().map_err(AgentError::Socket)?;
        let local = socket.local_addr().map_err(AgentError::Socket)?;
        if config.keys.is_none() && !local.ip().is_loopback() {
            tracing::warn!("gossip is not authenticated: whoever reaches {local} controls us");
        }
        let envelope = Envelope::new(config.me.card.of, config.cluster, config.keys);
        let name_timeout = config.swim.name_timeout;
        let swim = Swim::new(config.me, config.swim, rng.next_u64(), Time::ZERO);
        let now = Instant::now();
        Ok(Self {
            swim,
            envelope,
            socket,
            local,
            buffer: Box::new([0; DATAGRAM_BYTES_MAX + 1]),
            rest_until: now,
            platform: config.platform,
            rng,
            origin: now,
            peers,
            helpers,
            tasks: JoinSet::new(),
            if_lost: HashMap::new(),
            name_timeout,
            seeds: config.seeds.into(),
            unresolved: BTreeSet::new(),
            data_dir: config.data_dir,
            inbox,
            heard,
            calls: ends.calls,
            members: ends.members,
            events: ends.events,
            untold: VecDeque::new(),
            meters,
            drop_log: DropLog::default(),
            has_met_somebody: false,
            end: None,
        })
    }

    pub(super) async fn run(mut self) -> End {
        self.publish();
        loop {
            let wake = self.next().await;
            self.wake(wake);
            // What lies in the socket comes before what time has brought: an answer that is
            // here already must not count as missing.
            self.receive();
            self.tick();
            self.tell();
            if let Some(end) = self.end.take() {
                return end;
            }
        }
    }

    async fn next(&mut self) -> Wake {
        let deadline = self.deadline();
        let resting = Instant::now() < self.rest_until;
        tokio::select! {
            biased;
            () = self.inbox.changed() => Wake::Wishes,
            Some(call) = self.calls.recv() => Wake::Call(call),
            Some(done) = self.tasks.join_next_with_id() => Wake::Task(done),
            _ = self.events.reserve(), if !self.untold.is_empty() => Wake::EventsTaken,
            _ = self.socket.readable(), if !resting => Wake::Socket,
            () = tokio::time::sleep_until(deadline) => Wake::Deadline,
        }
    }

    fn wake(&mut self, wake: Wake) {
        match wake {
            Wake::Wishes => {
                let wishes = self.inbox.take();
                self.grant(wishes);
            }
            Wake::Call(call) => self.answer(call),
            Wake::Task(done) => self.task_done(done),
            Wake::EventsTaken | Wake::Socket | Wake::Deadline => {}
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    /// When the loop must wake at the latest.
    fn deadline(&self) -> Instant {
        let swim = self.swim.deadline().map(|at| self.origin + at.since(Time::ZERO));
        let now = Instant::now();
        let latest = if now < self.rest_until { self.rest_until } else { now + IDLE_MAX };
        swim.map_or(latest, |at| at.min(latest))
    }

    fn tick(&mut self) {
        let now = self.now();
        let Some(due) = self.swim.deadline().filter(|due| *due <= now) else { return };
        self.meters.loop_lag(now.since(due));
        self.meters.swim(self.swim.stats());
        if let Some(keys) = self.envelope.keys() {
            let made = keys.newest().made_unix_s;
            self.meters.key_age((self.platform.unix_micros() / 1_000_000).saturating_sub(made));
        }
        self.step(SwimEvent::Tick);
    }

    pub(super) fn step(&mut self, event: SwimEvent) {
        let mut actions = Vec::new();
        self.swim.handle(self.now(), event, &mut actions);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: SwimAction) {
        match action {
            SwimAction::Send { to, to_boot, addr, payload } => {
                self.send(NodeBoot { node: to, boot: to_boot }, addr, &payload);
            }
            SwimAction::ResolveSeeds => self.resolve_seeds(),
            SwimAction::PushPull { addr, node } => self.push_pull(addr, node),
            SwimAction::Dial { who, addr } => self.dial(who, addr),
            SwimAction::ProbeName { addr, old } => self.probe_name(addr, old),
            SwimAction::Changed => self.publish(),
            SwimAction::Synced { with } => self.synced(with),
            SwimAction::Died { who, confirmed } => self.died(who, confirmed),
            SwimAction::BootIs(boot) => self.boot_is(boot),
            SwimAction::Fatal(reason) => self.fatal(reason),
            SwimAction::Left => self.end = Some(End::Left),
        }
    }

    fn fatal(&mut self, reason: FatalReason) {
        tracing::error!("{reason}");
        self.end = Some(End::Fatal(reason));
    }
}

/// Datagrams.
impl<P: PushPuller> Shell<P> {
    fn receive(&mut self) {
        for _ in 0..BATCH {
            match self.socket.try_recv_from(&mut self.buffer[..]) {
                Ok((length, source)) => self.datagram(length, source),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.meters.receive_errors.add(1);
                    self.rest_until = Instant::now() + SOCKET_REST;
                    tracing::debug!("the gossip socket fails: {error}");
                    return;
                }
            }
        }
    }

    fn datagram(&mut self, length: usize, source: SocketAddr) {
        self.meters.bytes_in.add(length);
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        let unix_ms = self.platform.unix_micros() / 1000;
        match self.envelope.open(&self.buffer[..length], unix_ms) {
            Ok(opened) => {
                self.meters.packets_in.add(1);
                if let Some(heard) = &self.heard {
                    heard.note();
                }
                let (from, payload) = (opened.from, opened.payload);
                self.step(SwimEvent::Datagram { from, source, payload });
            }
            Err(error) => self.drop_log.dropped(&self.meters, &error, source),
        }
    }

    fn send(&mut self, to: NodeBoot, addr: SocketAddr, payload: &Bytes) {
        let mut nonce = [0; NONCE_BYTES];
        self.rng.fill_bytes(&mut nonce);
        let unix_ms = self.platform.unix_micros() / 1000;
        let datagram = match self.envelope.seal(to, payload, unix_ms, nonce) {
            Ok(datagram) => datagram,
            Err(error) => {
                self.meters.send_errors.add(1);
                tracing::error!("{error}");
                return;
            }
        };
        // A full socket drops like a full network does: gossip is sent again anyway.
        match self.socket.try_send_to(&datagram, family_of(self.local, addr)) {
            Ok(length) => {
                self.meters.packets_out.add(1);
                self.meters.bytes_out.add(length);
            }
            Err(error) => {
                self.meters.send_errors.add(1);
                tracing::debug!(%addr, "cannot send a gossip datagram: {error}");
            }
        }
    }
}

/// An IPv6 socket reaches IPv4 addresses under their mapped form.
fn family_of(local: SocketAddr, to: SocketAddr) -> SocketAddr {
    match (local.ip(), to.ip()) {
        (IpAddr::V6(_), IpAddr::V4(ip)) => (ip.to_ipv6_mapped(), to.port()).into(),
        (IpAddr::V6(_), IpAddr::V6(_)) | (IpAddr::V4(_), IpAddr::V4(_) | IpAddr::V6(_)) => to,
    }
}

/// The rest of the process.
impl<P: PushPuller> Shell<P> {
    fn grant(&mut self, wishes: Wishes) {
        let Wishes { phase, weight, keys, leave, stop, accused, refused, other_boots } = wishes;
        if stop {
            self.end = Some(End::Stopped);
            return;
        }
        if let Some(keys) = keys {
            self.meters.sealed(true);
            self.envelope.set_keys(Some(keys));
        }
        if let Some(phase) = phase {
            self.step(SwimEvent::SetPhase(phase));
        }
        if let Some(weight) = weight {
            self.step(SwimEvent::SetWeight(weight));
        }
        for (node, boot) in other_boots {
            self.step(SwimEvent::OtherBootAnswered { node, boot });
        }
        for (node, by) in refused {
            self.step(SwimEvent::Refused { node, by });
        }
        for node in accused {
            self.step(SwimEvent::Accuse(node));
        }
        if leave {
            self.step(SwimEvent::Leave);
        }
    }

    fn answer(&mut self, call: Call) {
        let Call { from, state, reply } = call;
        self.meters.push_pulls_answered.add(1);
        // The answer is what we know after this, less the cards that the caller has.
        self.step(SwimEvent::PushPull { from, state: state.clone() });
        // A caller that has gone is of no interest.
        let _ = reply.send(self.swim.answer(&state));
    }

    fn publish(&self) {
        let members = self.swim.members();
        self.meters.members(&members);
        self.members.send_replace(members);
    }

    fn synced(&mut self, with: NodeBoot) {
        self.has_met_somebody = true;
        let event = AgentEvent::Synced { with };
        if !self.untold.contains(&event) {
            self.untold.push_back(event);
        }
    }

    fn died(&mut self, who: NodeBoot, confirmed: bool) {
        let meters = &self.meters;
        if confirmed { &meters.deaths_confirmed } else { &meters.deaths_silent }.add(1);
        for event in &mut self.untold {
            if let AgentEvent::Died { who: known, confirmed: proved } = event
                && *known == who
            {
                *proved |= confirmed;
                return;
            }
        }
        self.untold.push_back(AgentEvent::Died { who, confirmed });
    }

    fn boot_is(&mut self, boot: BootId) {
        self.envelope.set_boot(boot);
        self.peers.boot_is(boot);
        if let Some(dir) = &self.data_dir
            && let Err(error) = disk::remember_boot(dir, boot)
        {
            tracing::warn!("{error}");
        }
        self.untold.push_back(AgentEvent::BootIs(boot));
    }

    /// Hands events to the driver, as many as it takes.
    fn tell(&mut self) {
        while let Some(event) = self.untold.front() {
            match self.events.try_send(*event) {
                Ok(()) => drop(self.untold.pop_front()),
                Err(mpsc::error::TrySendError::Full(_)) => return,
                Err(mpsc::error::TrySendError::Closed(_)) => self.untold.clear(),
            }
        }
    }
}
