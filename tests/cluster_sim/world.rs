//! All processes of a run, what happens to them, and its course.

use std::sync::Arc;
use std::time::Duration;

use stead_shared::control::HandoffId;
use stead_shared::id::{BootId, NodeBoot, NodeId, ShardId};
use stead_shared::member::Phase;
use stead_shared::sim::{Host, NetConfig, Sim};
use stead_shared::time::Time;

use crate::ctx::{Ctx, Happens, N_ROUTERS, N_SHARDS, SESSIONS, ms, name, params};
use crate::disk::Disk;
use crate::history::{Done, Op};
use crate::host::Ask;
use crate::links::{Kind, Links};
use crate::membership::{Health, Truth};
use crate::merges::Merges;
use crate::node::NodeModel;
use crate::oracle::{Finding, Oracle, Violation};
use crate::plan::{Blow, Fault, Part, Plan, Step, Trigger};
use crate::router::RouterModel;

/// How long after the last fault every shard has one server (I5).
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// With disks: nodes of the cluster before are waited for, first.
const SETTLED_WITH_DISKS: Duration = Duration::from_secs(16);
/// Boots of nodes that start again or join later look as if the cluster were old.
const OLD: u64 = 100_000_000;

/// See the module's page.
pub(crate) struct World {
    pub(crate) ctx: Ctx,
    nodes: Vec<Option<NodeModel>>,
    routers: Vec<RouterModel>,
    is_over: bool,
}

/// What a run was like.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) findings: Vec<Finding>,
    pub(crate) n_events: u64,
    pub(crate) n_moves: u32,
    pub(crate) n_taken_over: u32,
    pub(crate) n_ops: usize,
    pub(crate) merges: Merges,
}

/// Runs a plan to its end, or to the first finding.
pub(crate) fn run(seed: u64, plan: &Plan, log: bool) -> Outcome {
    let mut world = World::new(seed, plan, log);
    let mut n_events = 0;
    let has_disks = plan.knobs.disk.is_some();
    let settles = if has_disks { SETTLED_WITH_DISKS } else { SETTLED_AFTER };
    let settled = Time::ZERO + plan.quiet_at + settles;
    n_events += world.run_until(settled);
    world.check_drains();
    if plan.knobs.heals && world.ctx.oracle.findings.is_empty() {
        world.check_owners();
    }
    world.probe();
    n_events += world.run_until(settled + ms(1_500));
    world.is_over = true;
    // The last answers, and the end of a move that is just under way.
    for seconds in 1..=18 {
        world.note_quarantines();
        let is_done = world.ctx.oracle.is_answered()
            && world.ctx.oracle.is_served()
            && !(plan.knobs.heals && world.has_asides());
        if is_done && 2 < seconds {
            break;
        }
        n_events += world.run_until(settled + ms(1_500 + seconds * 1_000));
    }
    if world.ctx.oracle.findings.is_empty() {
        world.check_end();
    }
    let oracle = world.ctx.oracle;
    Outcome {
        findings: oracle.findings,
        n_events,
        n_moves: oracle.n_moves,
        n_taken_over: oracle.n_taken_over,
        n_ops: oracle.ops.len(),
        merges: oracle.merges,
    }
}

/// Runs a plan without bad luck, and looks all the time whether every shard is in two places.
pub(crate) fn run_watched(seed: u64, plan: &Plan, from: Duration, log: bool) -> Outcome {
    let mut world = World::new(seed, plan, log);
    let mut n_events = 0;
    let mut now = Time::ZERO + from;
    while now < Time::ZERO + plan.quiet_at && world.ctx.oracle.findings.is_empty() {
        n_events += world.run_until(now);
        world.check_copies(now);
        now += ms(2);
    }
    let oracle = world.ctx.oracle;
    Outcome {
        findings: oracle.findings,
        n_events,
        n_moves: oracle.n_moves,
        n_taken_over: oracle.n_taken_over,
        n_ops: oracle.ops.len(),
        merges: oracle.merges,
    }
}

impl World {
    fn new(seed: u64, plan: &Plan, log: bool) -> Self {
        let knobs = plan.knobs.clone();
        let n_hosts = knobs.n_nodes + N_ROUTERS;
        let mut sim = Sim::new(seed, n_hosts + 1, NetConfig::default());
        sim.start(Host(n_hosts));
        let oracle = Oracle::new(knobs.honest);
        let routers = (0..N_ROUTERS).map(|n| NodeId::of_name(&format!("r{n}")));
        let mut ctx = Ctx {
            sim,
            links: Links::default(),
            oracle,
            truth: (0..n_hosts).map(|_| Truth::none()).collect(),
            names: (0..knobs.n_nodes).map(name).chain(routers).collect(),
            params: Arc::new(params(knobs.replicas)),
            pins: (0, 0),
            next_stamp: 0,
            is_quiet: false,
            log,
            triggers: plan.triggers.clone(),
            targets: Default::default(),
            heirs: Default::default(),
            hit: Default::default(),
            disks: (0..knobs.n_nodes).map(|_| Disk::default()).collect(),
            knobs,
        };
        let routers = (0..N_ROUTERS).map(|n| {
            let at = Host(ctx.knobs.n_nodes + n);
            ctx.raise(at, Phase::Ready, false);
            RouterModel::new(&mut ctx, at)
        });
        let routers = routers.collect();
        let world = ctx.world();
        for (at, fault) in &plan.faults {
            ctx.after(world, *at, Happens::Fault(fault.clone()));
        }
        for client in 0..ctx.knobs.n_clients {
            ctx.after(world, ms(900 + u64::from(client)), Happens::Next { client });
        }
        let nodes = (0..ctx.knobs.n_nodes).map(|_| None).collect();
        Self { ctx, nodes, routers, is_over: false }
    }

    fn run_until(&mut self, until: Time) -> u64 {
        let mut n = 0;
        while self.ctx.oracle.findings.is_empty() {
            let Some((host, what)) = self.ctx.sim.next(until) else { break };
            n += 1;
            self.happen(host, what);
        }
        n
    }

    fn happen(&mut self, host: Host, what: Happens) {
        if host == self.ctx.world() {
            self.meet(what);
        } else if let Some(node) = self.nodes.get_mut(host.0 as usize) {
            if let Some(node) = node {
                node.happen(&mut self.ctx, what);
            }
        } else {
            self.routers[(host.0 - self.ctx.knobs.n_nodes) as usize].happen(&mut self.ctx, what);
        }
    }

    fn meet(&mut self, what: Happens) {
        match what {
            Happens::Fault(fault) => self.strike(fault),
            Happens::LinkTimeout { a, b } => self.ctx.link_timeout(a, b),
            Happens::Next { client } if !self.is_over => self.next_request(client),
            Happens::Next { .. } => {}
            other => unreachable!("not for the world: {other:?}"),
        }
    }

    // ---- clients ---------------------------------------------------------------------------

    fn next_request(&mut self, client: u32) {
        let router = self.ctx.below(N_ROUTERS) as usize;
        let shard = ShardId(self.ctx.below(N_SHARDS));
        let session = self.ctx.below(u32::from(SESSIONS)) as u8;
        let is_write = self.ctx.below(10) < 7;
        self.ask(client, router, (shard, session), is_write);
    }

    fn ask(&mut self, client: u32, router: usize, session: (ShardId, u8), is_write: bool) {
        if !self.ctx.sim.is_running(self.routers[router].at) {
            let world = self.ctx.world();
            self.ctx.after(world, ms(40), Happens::Next { client });
            return;
        }
        let (shard, session) = session;
        let asked = self.ctx.now();
        let op = u32::try_from(self.ctx.oracle.ops.len()).expect("few");
        let done = None;
        self.ctx.oracle.ops.push(Op { shard, session, is_write, asked, done });
        let ask = Ask {
            op,
            attempt: 0,
            try_no: 1,
            first_sent_ms: asked.as_micros() / 1000,
            shard,
            session,
            is_write,
            epoch: None,
            conn: 0,
        };
        self.routers[router].begin(&mut self.ctx, client, ask);
    }

    /// Long after the faults: each router is asked for each shard.
    fn probe(&mut self) {
        let clients = self.ctx.knobs.n_clients..;
        let asks = (0..N_SHARDS).flat_map(|shard| (0..N_ROUTERS).map(move |r| (shard, r)));
        self.ctx.oracle.first_probe = self.ctx.oracle.ops.len();
        for (client, (shard, router)) in clients.zip(asks.collect::<Vec<_>>()) {
            self.ask(client, router as usize, (ShardId(shard), 0), false);
        }
        self.ctx.oracle.after_probe = self.ctx.oracle.ops.len();
    }

    // ---- faults ----------------------------------------------------------------------------

    fn n_up(&self) -> usize {
        self.nodes
            .iter()
            .flatten()
            .filter(|node| {
                let truth = &self.ctx.truth[node.at.0 as usize];
                truth.phase != Phase::Leaving
            })
            .count()
    }

    fn strike(&mut self, fault: Fault) {
        self.ctx.note(|| format!("== {fault:?}"));
        let world = self.ctx.world();
        match fault {
            Fault::Start(host) => self.start(host),
            Fault::Crash { host, confirmed } => {
                self.crash(host, confirmed);
            }
            Fault::Exit(host, boot) => self.exit(host, boot),
            Fault::Restart { host, confirmed, after } => {
                if self.crash(host, confirmed) {
                    self.ctx.after(world, after, Happens::Fault(Fault::Start(host)));
                }
            }
            Fault::Pause { host, lasts } => self.pause(host, lasts),
            Fault::Resume(host) => self.resume(host),
            Fault::Drain(host) => self.drain(host),
            Fault::Pins(pins) => self.pin(pins),
            Fault::Suspect { host, lasts } => {
                if self.ctx.sim.is_alive(host) {
                    let news = self.ctx.stamped(host, Health::Suspect);
                    self.ctx.spread(news, ms(0));
                    let refute = Fault::Refute(host, self.ctx.boot_of(host));
                    self.ctx.after(world, lasts, Happens::Fault(refute));
                }
            }
            Fault::FalseDeath { host, by_all, lasts } => self.slander(host, by_all, lasts),
            Fault::Refute(host, boot) => {
                let is_there = self.ctx.sim.is_running(host) && self.ctx.boot_of(host) == boot;
                if is_there {
                    let news = self.ctx.stamped(host, Health::Alive);
                    self.ctx.spread(news, ms(0));
                }
            }
            Fault::Cut { from, to } => self.ctx.cut(from, to),
            Fault::Isolate { mask } => self.isolate(mask),
            Fault::Heal => self.heal(),
            Fault::BreakLink => {
                if let Some(conn) = self.ctx.some_conn(Kind::Main) {
                    self.ctx.break_conn(conn);
                }
            }
            Fault::BreakStream => {
                if let Some(conn) = self.ctx.some_conn(Kind::Bulk) {
                    self.ctx.break_conn(conn);
                }
            }
            Fault::RestartAll { power } => self.restart_all(power),
            Fault::DiskFails { host, lasts } => {
                self.ctx.disks[host.0 as usize].fails_until = self.ctx.now() + lasts;
            }
            Fault::BreakStreams(host) => self.ctx.break_all(host, Kind::Bulk),
            Fault::BreakLinks(host) => self.ctx.break_all(host, Kind::Main),
            Fault::Slow { from, to, by } => self.ctx.slow_down(from, to, by),
            Fault::Quiet => self.quiet(),
        }
    }

    fn start(&mut self, host: Host) {
        // What is on its disk is to be there in the end.
        let is_over = self.ctx.is_quiet && self.ctx.knobs.disk.is_none();
        if self.nodes[host.0 as usize].is_some() || is_over {
            return;
        }
        let is_later = self.ctx.now() > Time::ZERO + ms(500);
        let old = self.ctx.who(host);
        self.ctx.raise(host, Phase::Joining, is_later);
        self.damage(host, old);
        let node = NodeModel::new(&mut self.ctx, host);
        self.ctx.oracle.has_read(host);
        self.nodes[host.0 as usize] = Some(node);
    }

    /// Whether there was somebody to crash. Two nodes are left, always.
    fn crash(&mut self, host: Host, confirmed: bool) -> bool {
        if self.n_up() < 3 || self.nodes[host.0 as usize].is_none() {
            return false;
        }
        self.bury(host, None);
        let has_last_word = confirmed || self.ctx.one_in(2);
        self.ctx.hang_up(host, has_last_word);
        self.ctx.mourn(host, confirmed);
        true
    }

    /// All processes end at the same instant, and start again.
    fn restart_all(&mut self, power: bool) {
        let world = self.ctx.world();
        let up: Vec<Host> = self.nodes.iter().flatten().map(|node| node.at).collect();
        for &host in &up {
            self.bury(host, Some(power));
        }
        for host in up {
            let confirmed = self.ctx.one_in(2);
            self.ctx.hang_up(host, confirmed);
            self.ctx.mourn(host, confirmed);
            let after = ms(20 + u64::from(self.ctx.below(1_500)));
            self.ctx.after(world, after, Happens::Fault(Fault::Start(host)));
        }
    }

    /// Some starts find a damaged disk.
    fn damage(&mut self, host: Host, old: NodeBoot) {
        let Some(knobs) = self.ctx.knobs.disk.clone() else { return };
        let mut damaged = Default::default();
        if self.ctx.one_in(knobs.damage) {
            damaged = self.ctx.disks[host.0 as usize].damage(self.ctx.sim.rng());
        }
        for &shard in &damaged {
            self.ctx.note(|| format!("{shard} is damaged on the disk of n{}", host.0));
            self.ctx.oracle.damage(host, shard);
        }
        let new = self.ctx.who(host);
        self.ctx.oracle.starts_again(old, new, &damaged);
    }

    /// `power`: whether the machine ends as well; none where chance decides.
    fn bury(&mut self, host: Host, power: Option<bool>) {
        if let Some(knobs) = self.ctx.knobs.disk.clone() {
            let power = power.unwrap_or_else(|| self.ctx.one_in(knobs.power));
            self.ctx.disks[host.0 as usize].crash(self.ctx.sim.rng(), power);
        }
        if let Some(node) = self.nodes[host.0 as usize].take() {
            let others = &self.nodes;
            for shard in (0..N_SHARDS).map(ShardId) {
                let heirs = node.heirs(shard, others.iter().flatten());
                self.ctx.heirs.insert((node.me, shard), heirs);
            }
            let lives = |boot: &NodeBoot| others.iter().flatten().any(|other| other.me == *boot);
            let has_heirs = |ctx: &Ctx, owner, shard| {
                ctx.heirs.get(&(owner, shard)).is_some_and(|heirs| heirs.iter().any(lives))
            };
            let elsewhere =
                |shard| others.iter().flatten().flat_map(|other| other.ops_here(shard)).collect();
            node.bury(&mut self.ctx, elsewhere, has_heirs);
        }
        self.ctx.sim.crash(host);
        self.ctx.truth[host.0 as usize].is_up = false;
    }

    fn exit(&mut self, host: Host, boot: BootId) {
        let is_there =
            self.nodes[host.0 as usize].as_ref().is_some_and(|node| node.me.boot == boot);
        if !is_there {
            return;
        }
        if !self.ctx.sim.is_running(host) {
            // Who is paused on its way out leaves when it goes on.
            let world = self.ctx.world();
            self.ctx.after(world, ms(20), Happens::Fault(Fault::Exit(host, boot)));
            return;
        }
        let now = self.ctx.now();
        self.ctx.disks[host.0 as usize].close(now);
        self.bury(host, Some(false));
        self.ctx.hang_up(host, true);
        let news = self.ctx.stamped(host, Health::Left);
        self.ctx.spread(news, ms(0));
    }

    fn drain(&mut self, host: Host) {
        let is_ready = self.ctx.truth[host.0 as usize].phase == Phase::Ready;
        if is_ready && 2 < self.n_up() && self.nodes[host.0 as usize].is_some() {
            self.ctx.after(host, ms(0), Happens::Drain);
        }
    }

    fn pause(&mut self, host: Host, lasts: Duration) {
        if !self.ctx.sim.is_running(host) {
            return;
        }
        self.ctx.sim.pause(host);
        let world = self.ctx.world();
        self.ctx.after(world, lasts, Happens::Fault(Fault::Resume(host)));
        if lasts > ms(3_000) {
            for other in (0..self.ctx.n_hosts()).map(Host).filter(|other| *other != host) {
                self.ctx.after(world, ms(3_000), Happens::LinkTimeout { a: host, b: other });
            }
            self.ctx.mourn(host, false);
        } else if lasts > ms(700) && self.ctx.one_in(2) {
            let news = self.ctx.stamped(host, Health::Suspect);
            self.ctx.spread(news, ms(500));
        }
    }

    fn resume(&mut self, host: Host) {
        self.ctx.sim.resume(host);
        if self.ctx.sim.is_running(host) {
            let news = self.ctx.stamped(host, Health::Alive);
            self.ctx.spread(news, ms(50));
        }
    }

    fn pin(&mut self, pins: u8) {
        let version = self.ctx.pins.0 + 1;
        self.ctx.pins = (version, pins);
        let range = self.ctx.knobs.news.clone();
        for host in (0..self.ctx.n_hosts()).map(Host) {
            if self.ctx.sim.is_alive(host) {
                let lag = self.ctx.between(&range);
                self.ctx.after(host, lag, Happens::Pins(version, pins));
            }
        }
    }

    fn slander(&mut self, host: Host, by_all: bool, lasts: Duration) {
        if !self.ctx.sim.is_alive(host) {
            return;
        }
        let suspect = self.ctx.stamped(host, Health::Suspect);
        let down = self.ctx.stamped(host, Health::Down { confirmed: false });
        let range = self.ctx.knobs.news.clone();
        for other in (0..self.ctx.n_hosts()).map(Host).filter(|other| *other != host) {
            if self.ctx.sim.is_alive(other) && (by_all || self.ctx.one_in(2)) {
                let lag = self.ctx.between(&range);
                self.ctx.after(other, lag, Happens::News(suspect));
                self.ctx.after(other, lag + ms(300), Happens::News(down));
            }
        }
        let world = self.ctx.world();
        let refute = Fault::Refute(host, self.ctx.boot_of(host));
        self.ctx.after(world, ms(300) + lasts, Happens::Fault(refute));
    }

    fn isolate(&mut self, mask: u32) {
        let n = self.ctx.n_hosts();
        let inside = |host: u32| mask & (1 << host) != 0;
        for (one, other) in (0..n).flat_map(|one| (0..n).map(move |other| (one, other))) {
            if inside(one) == inside(other) {
                continue;
            }
            let (about, by) = (Host(one), Host(other));
            self.ctx.cut(about, by);
            if self.ctx.sim.is_alive(about) && self.ctx.sim.is_alive(by) {
                let soon = ms(500 + u64::from(self.ctx.below(600)));
                let suspect = self.ctx.stamped(about, Health::Suspect);
                self.ctx.after(by, soon, Happens::News(suspect));
                let down = self.ctx.stamped(about, Health::Down { confirmed: false });
                self.ctx.after(by, soon + ms(2_300), Happens::News(down));
            }
        }
    }

    fn heal(&mut self) {
        self.ctx.heal();
        for host in (0..self.ctx.n_hosts()).map(Host) {
            if self.ctx.sim.is_running(host) {
                let news = self.ctx.stamped(host, Health::Alive);
                let lag = ms(u64::from(self.ctx.below(300)));
                self.ctx.spread(news, lag);
            }
        }
    }

    fn quiet(&mut self) {
        for host in (0..self.ctx.n_hosts()).map(Host) {
            if self.ctx.sim.is_alive(host) && !self.ctx.sim.is_running(host) {
                self.resume(host);
            }
        }
        self.heal();
        if self.ctx.knobs.disk.is_some() {
            for host in (0..self.ctx.knobs.n_nodes).map(Host) {
                self.start(host);
                self.ctx.disks[host.0 as usize].fails_until = Time::ZERO;
            }
        }
        self.ctx.triggers.clear();
        self.ctx.knobs.repeats = 0;
        self.ctx.is_quiet = true;
    }

    // ---- the end ---------------------------------------------------------------------------

    fn check_copies(&mut self, now: Time) {
        for shard in (0..N_SHARDS).map(ShardId) {
            let holders: Vec<NodeId> = self
                .nodes
                .iter()
                .flatten()
                .filter(|node| node.holds(shard))
                .map(|node| node.me.node)
                .collect();
            if holders.len() < 2 {
                let text = format!("{shard} is at {holders:?} only");
                self.ctx.oracle.find(now, Violation::FewCopies, text);
            }
        }
    }

    /// Whoever was to leave has had the time to.
    fn check_drains(&mut self) {
        let now = self.ctx.now();
        for node in self.nodes.iter().flatten() {
            if self.ctx.truth[node.at.0 as usize].phase == Phase::Leaving {
                let text = format!("{} has {} shards", node.me.node, node.machine.n_owned());
                self.ctx.oracle.find(now, Violation::NotDrained, text);
            }
        }
    }

    /// Long enough after the last cut nobody else has a shard that somebody serves.
    fn check_owners(&mut self) {
        let now = self.ctx.now();
        for shard in (0..N_SHARDS).map(ShardId) {
            let open = self.ctx.oracle.servers(shard);
            if 1 < open.len() {
                let text = format!("{shard} is served by {open:?}");
                self.ctx.oracle.find(now, Violation::NotSettled, text);
            }
        }
    }

    fn has_asides(&self) -> bool {
        self.nodes.iter().flatten().any(NodeModel::has_asides)
    }

    /// What was changed on any side of a cut is there, once.
    fn check_merges(&mut self) {
        let mut found = Vec::new();
        let oracle = &self.ctx.oracle;
        for shard in (0..N_SHARDS).map(ShardId) {
            let serves = |node: &&NodeModel| oracle.servers(shard).contains(&node.me);
            let Some(node) = self.nodes.iter().flatten().find(serves) else { continue };
            let Some(here) = node.host.shards.get(&shard) else { continue };
            for (session, state) in (0..SESSIONS).zip(&here.sessions) {
                found.extend(oracle.merges.check((shard, session), &oracle.ops, state));
            }
        }
        let now = self.ctx.now();
        for (what, text) in found {
            self.ctx.oracle.find(now, what, text);
        }
    }

    fn note_quarantines(&mut self) {
        let aside = self.nodes.iter().flatten().flat_map(|node| node.machine.quarantined());
        self.ctx.oracle.quarantined = aside.collect();
    }

    /// Who has left took along what nobody else had.
    fn excuse_who_is_away(&mut self) {
        for (node, disk) in self.nodes.iter().zip(&self.ctx.disks) {
            for shard in (0..N_SHARDS).map(ShardId).filter(|_| node.is_none()) {
                self.ctx.oracle.excuse(shard, disk.ops(shard).into_iter());
            }
        }
    }

    fn check_end(&mut self) {
        self.note_quarantines();
        if self.ctx.knobs.disk.is_some() {
            self.excuse_who_is_away();
        }
        let nodes = &self.nodes;
        let state = |who: NodeBoot, shard: ShardId, session: u8| {
            let node = nodes.iter().flatten().find(|node| node.me == who);
            let shard = node.and_then(|node| node.host.shards.get(&shard));
            shard.map_or_else(Vec::new, |shard| shard.sessions[usize::from(session)].ops.clone())
        };
        let now = self.ctx.now();
        self.ctx.oracle.check_end(now, state);
        let probes = self.ctx.oracle.first_probe..self.ctx.oracle.after_probe;
        let failed = self.ctx.oracle.ops[probes]
            .iter()
            .filter(|op| self.ctx.oracle.must_answer(op))
            .find(|op| !matches!(op.done, Some((_, Done::Value(_)))))
            .map(|op| format!("{op:?}"));
        if let Some(text) = failed {
            self.ctx.oracle.find(now, Violation::NotSettled, text);
        }
        if self.ctx.knobs.heals {
            self.check_merges();
        }
    }
}

impl Ctx {
    /// A process starts.
    fn raise(&mut self, host: Host, phase: Phase, is_later: bool) {
        let now = self.now().as_micros() + 1;
        let truth = &mut self.truth[host.0 as usize];
        let boot = if is_later { now + OLD } else { now };
        truth.boot = BootId(boot.max(truth.boot.0 + 1));
        truth.is_up = true;
        truth.phase = phase;
        self.sim.start(host);
        let news = self.stamped(host, Health::Alive);
        self.spread(news, ms(0));
        self.introduce(host);
    }

    /// A handoff has come to this step: bad luck may have waited for it.
    pub(crate) fn reached(&mut self, step: Step, handoff: HandoffId) {
        if step == Step::Grant && self.hit.contains(&handoff) {
            self.reached(Step::Granted, handoff);
        }
        let Some(idx) = self.triggers.iter().position(|trigger| trigger.step == step) else {
            return;
        };
        if 0 < self.triggers[idx].skip {
            self.triggers[idx].skip -= 1;
            return;
        }
        let trigger = self.triggers.remove(idx);
        let source = self.host_of(handoff.source.node);
        let target = self.targets.get(&handoff).copied();
        if let (Some(source), Some(target)) = (source, target) {
            self.hit.insert(handoff);
            self.hit(trigger, source, target);
        }
    }

    fn hit(&mut self, trigger: Trigger, source: Host, target: Host) {
        let (host, other) = match trigger.part {
            Part::Source => (source, target),
            Part::Target => (target, source),
        };
        let world = self.world();
        let third = Host(self.below(self.n_hosts()));
        let fault = match trigger.blow {
            Blow::Crash { confirmed } => Fault::Crash { host, confirmed },
            Blow::Restart { confirmed, after } => Fault::Restart { host, confirmed, after },
            Blow::Pause(lasts) => Fault::Pause { host, lasts },
            Blow::CutToOther(lasts) => {
                self.after(world, trigger.after + lasts, Happens::Fault(Fault::Heal));
                Fault::Cut { from: host, to: other }
            }
            Blow::SlowToOther(by) => Fault::Slow { from: host, to: other, by },
            Blow::SlowToThird(by) => Fault::Slow { from: host, to: third, by },
            Blow::Suspect(lasts) => Fault::Suspect { host, lasts },
            Blow::FalseDeath(lasts) => Fault::FalseDeath { host, by_all: lasts > ms(2_000), lasts },
            Blow::Drain => Fault::Drain(host),
            Blow::Pins => Fault::Pins(self.below(u32::from(crate::ctx::PIN_SETS)) as u8),
            Blow::BreakLink => Fault::BreakLink,
            Blow::BreakStream => Fault::BreakStream,
        };
        self.after(world, trigger.after, Happens::Fault(fault));
    }
}
