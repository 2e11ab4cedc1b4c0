//! A simulated cluster of the production router and nodes, and the loop that runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use stead_node::{Handle, Node};
use stead_router::Router;
use stead_shared::config::{NodeOptions, RouterOptions};
use stead_shared::id::{Epoch, NodeId, SessionKey, ShardId};
use stead_shared::keys::{KeyFile, SecretKey};
use stead_shared::net::disk;
use stead_shared::net::platform::Platform;
use stead_shared::net::turmoil;
use stead_shared::view::View;
use tokio::sync::Notify;

use crate::judge::session;
use crate::log::{Log, WireTap};

const SHARDS: u32 = 32;
const GOSSIP: u16 = 7400;
const HTTP: u16 = 8080;
const SEEDS: [&str; 3] = ["n1", "n2", "n3"];
/// The clients' address of the router.
pub(crate) const FRONT: &str = "router:8080";
/// When simulations begin, in seconds since 1970.
const EPOCH_UNIX_S: u64 = 1_750_000_000;
/// Longest run in virtual time.
const RUN_MAX: Duration = Duration::from_secs(120);
/// How often the network's digest is written down.
const DIGEST_EVERY: Duration = Duration::from_secs(1);

/// What a scenario asks of the loop that runs the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// A node starts for the first time.
    Start(&'static str),
    /// A node is gone from one moment to the next, without a word.
    Crash(&'static str),
    /// It comes back with nothing but its name.
    Restart(&'static str),
}

/// The cluster as its scenario sees it. Clones are the same.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) log: Log,
    seed: u64,
    keys: PathBuf,
    orders: Arc<Mutex<Vec<Order>>>,
    nodes: Arc<Mutex<BTreeMap<&'static str, Running>>>,
}

#[derive(Clone)]
struct Running {
    handle: Handle,
    shutdown: Arc<Notify>,
}

impl World {
    fn new(seed: u64, keys: PathBuf) -> Self {
        let (orders, nodes) = (Arc::default(), Arc::default());
        Self { log: Log::default(), seed, keys, orders, nodes }
    }

    /// Has the loop do something before the next step.
    pub(crate) fn order(&self, order: Order) {
        if let Order::Crash(name) = order {
            self.nodes.lock().unwrap().remove(name);
        }
        self.log.say("judge", format_args!("{order:?}"));
        self.orders.lock().unwrap().push(order);
    }

    /// Asks a node to hand everything off and to leave; waits until it has left.
    pub(crate) async fn drain(&self, name: &str) {
        self.log.say("judge", format_args!("Drain({name:?})"));
        let shutdown = Arc::clone(&self.nodes.lock().unwrap()[name].shutdown);
        shutdown.notify_one();
        let has_left = || !self.nodes.lock().unwrap().contains_key(name);
        self.until(Duration::from_secs(40), has_left).await;
    }

    /// Cuts a node off from everybody, or mends that. What is sent meanwhile arrives afterwards,
    /// as TCP sends it again.
    pub(crate) fn cut(&self, name: &str, cut: bool) {
        self.log.say("judge", format_args!("{} {name}", if cut { "cut off" } else { "mended" }));
        for other in self.others(name) {
            if cut { turmoil::hold(name, other) } else { turmoil::release(name, other) }
        }
    }

    fn others(&self, name: &str) -> Vec<&'static str> {
        let nodes = self.nodes.lock().unwrap();
        nodes.keys().copied().chain(["router"]).filter(|other| *other != name).collect()
    }

    /// Waits until these many nodes run, and all of them see every shard where it belongs.
    pub(crate) async fn settled(&self, n_nodes: usize) {
        self.settled_without("", n_nodes).await;
    }

    /// The same for all nodes but one, whatever that one sees.
    pub(crate) async fn settled_without(&self, absent: &str, n_nodes: usize) {
        let is_so = || {
            let nodes = self.nodes.lock().unwrap();
            let present = nodes.iter().filter(|(name, _)| **name != absent);
            let views: Vec<_> = present.map(|(_, running)| running.handle.view()).collect();
            views.len() == n_nodes && views.iter().all(|view| is_settled(view, n_nodes))
        };
        self.until(Duration::from_secs(60), is_so).await;
        self.log.say("judge", format_args!("{n_nodes} nodes are at rest"));
    }

    /// Which of the judge's sessions a node owns by its own view.
    pub(crate) fn sessions_of(&self, name: &str, n_sessions: usize) -> BTreeSet<String> {
        let handle = self.nodes.lock().unwrap()[name].handle.clone();
        let is_owner = |session: &String| {
            let key = SessionKey::new(session.clone().into_bytes()).unwrap();
            handle.owner_of(&key).is_some_and(|(owner, _)| owner == NodeId::of_name(name))
        };
        (0..n_sessions).map(session).filter(is_owner).collect()
    }

    async fn until(&self, limit: Duration, is_so: impl Fn() -> bool) {
        let waits = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(limit, waits).await.is_err() {
            panic!("not within {limit:?}; seed {}, log:\n{}", self.seed, self.log.text());
        }
    }

    /// The system beneath a process: the same in every run with this seed, another one for each
    /// process and each start of it.
    fn platform(&self, name: &str) -> Platform {
        let started = turmoil::sim_elapsed().unwrap_or_default().as_micros();
        let seed = NodeId::of_name(&format!("{} {name} {started}", self.seed));
        Platform::simulated(seed.0, || {
            let now = turmoil::since_epoch().unwrap_or_default().as_micros();
            u64::try_from(now).unwrap_or(u64::MAX)
        })
    }

    async fn run_node(self, name: &'static str) -> turmoil::Result {
        let options = NodeOptions {
            name: Some(name.to_owned()),
            gossip: on(name, GOSSIP),
            http: on(name, HTTP),
            join: SEEDS.iter().map(|seed| format!("{seed}:{GOSSIP}")).collect(),
            shards: SHARDS,
            cluster_key_file: Some(self.keys.clone()),
            ..NodeOptions::default()
        };
        let builder = Node::builder().options(options).platform(self.platform(name));
        let node = Box::pin(builder.start()).await?;
        let (handle, shutdown) = (node.handle(), Arc::new(Notify::new()));
        tokio::spawn(note_claims(self.log.clone(), name, handle.clone()));
        let running = Running { handle, shutdown: Arc::clone(&shutdown) };
        self.nodes.lock().unwrap().insert(name, running);
        let left = Box::pin(node.run_until(shutdown.notified())).await?;
        self.log.say(name, format_args!("left: {left:?}"));
        self.nodes.lock().unwrap().remove(name);
        Ok(())
    }

    async fn run_router(self) -> turmoil::Result {
        let options = RouterOptions {
            gossip: on("router", GOSSIP),
            listen: on("router", HTTP),
            join: SEEDS.iter().map(|seed| format!("{seed}:{GOSSIP}")).collect(),
            key: vec!["path:2".to_owned()],
            cluster_key_file: Some(self.keys.clone()),
            ..RouterOptions::default()
        };
        let builder = Router::builder().options(options).platform(self.platform("router"));
        let router = Box::pin(builder.start()).await?;
        router.ready().await?;
        self.log.say("router", "knows the cluster");
        Box::pin(router.run_until(std::future::pending())).await?;
        Ok(())
    }
}

fn on(name: &str, port: u16) -> SocketAddr {
    SocketAddr::new(turmoil::lookup(name), port)
}

fn is_settled(view: &View, n_nodes: usize) -> bool {
    let is_home = |shard| {
        let owner = view.live_claim(shard).map(|(_, owner)| owner.node);
        owner.is_some() && owner == view.targets.owner_of(shard)
    };
    view.params.ring_nodes(&view.members).len() == n_nodes
        && (0..SHARDS).all(|shard| is_home(ShardId(shard)))
}

/// Writes down what a node claims, and what it claims no more.
async fn note_claims(log: Log, name: &'static str, handle: Handle) {
    let (me, mut views) = (NodeId::of_name(name), handle.views());
    let mut before: BTreeMap<ShardId, Epoch> = BTreeMap::new();
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        let mine: BTreeMap<ShardId, Epoch> = (0..SHARDS)
            .map(ShardId)
            .filter_map(|shard| Some((shard, view.live_claim(shard)?)))
            .filter(|(_, (_, owner))| owner.node == me)
            .map(|(shard, (epoch, _))| (shard, epoch))
            .collect();
        let gone = before.iter().filter(|(shard, _)| !mine.contains_key(shard));
        let gone = gone.map(|(shard, _)| format!(" -{shard}"));
        let fresh = mine.iter().filter(|(shard, epoch)| before.get(shard) != Some(epoch));
        let fresh = fresh.map(|(shard, epoch)| format!(" +{shard}@{}", epoch.counter));
        let change: String = gone.chain(fresh).collect();
        if !change.is_empty() {
            log.say(name, format_args!("claims{change}"));
        }
        before = mine;
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Runs five nodes and a router, and `scenario` against them. Gives the log.
///
/// # Panics
/// When a process of the cluster ends with an error, or the scenario takes too long.
pub(crate) fn run<F: Future<Output = ()> + 'static>(
    seed: u64,
    scenario: impl FnOnce(World) -> F,
) -> String {
    let scratch = Scratch::new(seed);
    let world = World::new(seed, scratch.keys());
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_UNIX_S))
        .simulation_duration(RUN_MAX)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(4))
        .tcp_capacity(1024)
        .udp_capacity(1024)
        .build();
    for name in ["n1", "n2", "n3", "n4", "n5"] {
        start(&mut sim, &world, name);
    }
    let router = world.clone();
    sim.host("router", move || router.clone().run_router());
    let judged = scenario(world.clone());
    sim.client("judge", async move {
        judged.await;
        Ok(())
    });
    let tap = WireTap(world.log.clone());
    tracing::subscriber::with_default(tap, || steps(&mut sim, &world));
    world.log.text()
}

fn start(sim: &mut turmoil::Sim<'_>, world: &World, name: &'static str) {
    let world = world.clone();
    sim.host(name, move || world.clone().run_node(name));
}

/// A machine without power: it says nothing more, not even that its connections are closed.
///
/// It is cut off first because turmoil drops its runtime, and tokio drops the tasks of a runtime in
/// an order that depends on numbers counted for the whole process: the closing segments would go
/// out in another order in each run.
fn crash(sim: &mut turmoil::Sim<'_>, world: &World, name: &str) {
    let others = world.others(name);
    others.iter().for_each(|other| sim.partition(name, *other));
    world.log.listen(false);
    sim.crash(name);
    world.log.listen(true);
    others.iter().for_each(|other| sim.repair(name, *other));
}

fn steps(sim: &mut turmoil::Sim<'_>, world: &World) {
    let mut digest_at = DIGEST_EVERY;
    loop {
        let ended = sim.step().unwrap_or_else(|error| {
            panic!("{error}; seed {}, log:\n{}", world.seed, world.log.text())
        });
        if ended || digest_at <= sim.elapsed() {
            world.log.sent(sim.elapsed());
            digest_at += DIGEST_EVERY;
        }
        if ended {
            return;
        }
        for order in std::mem::take(&mut *world.orders.lock().unwrap()) {
            match order {
                Order::Start(name) => start(sim, world, name),
                Order::Crash(name) => crash(sim, world, name),
                Order::Restart(name) => sim.bounce(name),
            }
        }
    }
}

/// A directory with the cluster's keys, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(seed: u64) -> Self {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("main").replace("::", "-");
        let name = format!("stead-turmoil-{}-{name}-{seed}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let scratch = Self(dir);
        let keys =
            KeyFile::generate(SecretKey::new([1; 32]), SecretKey::new([2; 32]), EPOCH_UNIX_S);
        disk::create_keys(&scratch.keys(), &keys).unwrap();
        scratch
    }

    fn keys(&self) -> PathBuf {
        self.0.join("cluster.keys")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
