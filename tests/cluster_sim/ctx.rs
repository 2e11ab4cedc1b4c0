//! What all processes of a run share: the kernel, the links, the judge, the truth.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use stead_node::logic::copying::Progress;
use stead_node::logic::ownership::{Event, OwnershipConfig};
use stead_shared::control::HandoffId;
use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{BootId, NodeBoot, NodeId, ShardId};
use stead_shared::member::{Members, Phase};
use stead_shared::placement::{Pin, Targets};
use stead_shared::rules::Rules;
use stead_shared::sim::{Host, Sim};
use stead_shared::time::Time;
use stead_shared::view::ClusterParams;

use crate::content::Healing;
use crate::disk::{Disk, DiskKnobs};
use crate::host::Ask;
use crate::links::{Kind, Links, Msg};
use crate::membership::{News, Truth};
use crate::oracle::Oracle;
use crate::plan::{Fault, Trigger};
use crate::saved::DiskStep;

pub(crate) const N_SHARDS: u32 = 8;
pub(crate) const SESSIONS: u8 = 2;
pub(crate) const N_ROUTERS: u32 = 2;
/// Sets of pins that a run changes between; the first has none.
pub(crate) const PIN_SETS: u8 = 12;

/// Everything that happens to a process, or to the world.
#[derive(Debug)]
pub(crate) enum Happens {
    /// The machine's deadline, as it was set with this number.
    Tick(u64),
    Linked {
        conn: u64,
    },
    Unlinked {
        conn: u64,
        peer: Host,
        kind: Kind,
    },
    Delivered {
        conn: u64,
        number: Option<u64>,
        sent: Time,
        msg: Msg,
    },
    Dial {
        to: Host,
    },
    News(News),
    /// What a newcomer gets from the first whom it reaches.
    Introduced(Vec<News>),
    /// Placement stops to count members that went down.
    Grace,
    /// Pins of this version.
    Pins(u32, u8),
    TurnEnds {
        life: u64,
        ask: Ask,
        read: Option<u64>,
    },
    CopyStep(HandoffId),
    Copied(HandoffId, Progress),
    CopyFailed(HandoffId),
    /// What the host tells the machine of copies.
    Reported(Event),
    /// The next step of the fills at this node.
    FillStep(NodeBoot),
    /// The stream to copies at this node opens.
    Stream(NodeBoot),
    /// Whether that node is silent.
    Watch(NodeBoot),
    Sealed(HandoffId),
    Sizes,
    Compare,
    /// A packet of gossip that was due then.
    Gossip(Time),
    Offer(u64),
    /// The next session of an offer.
    TakeIn(u64),
    /// The next step of the one who writes to disk.
    Disk(DiskStep),
    Drain,
    /// A router looks at its queues and at deadlines.
    Look,
    /// A client's next request.
    Next {
        client: u32,
    },
    /// A dial did not find the owner.
    Unreachable {
        op: u32,
        attempt: u32,
    },
    /// To the world.
    Fault(Fault),
    LinkTimeout {
        a: Host,
        b: Host,
    },
}

/// How one run differs from others.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    pub(crate) n_nodes: u32,
    /// One-way delay of what is sent over a link.
    pub(crate) delay: Range<Duration>,
    /// How long news of members take to each process.
    pub(crate) news: Range<Duration>,
    /// How long turns take.
    pub(crate) turn: Range<Duration>,
    /// One turn in so many takes [`Self::long_turn`].
    pub(crate) long_turns: u32,
    pub(crate) long_turn: Duration,
    /// Bytes of a session.
    pub(crate) session_bytes: u64,
    /// Bytes per second of a copy.
    pub(crate) copy_rate: u64,
    /// One message about ownership in a hundred of these comes once more, up to 4 s later.
    pub(crate) repeats: u32,
    /// Nodes that speak the protocol before this one.
    pub(crate) old_nodes: u32,
    /// Copies of each shard beside its owner's.
    pub(crate) replicas: u8,
    /// Whether nodes have disks, and which.
    pub(crate) disk: Option<DiskKnobs>,
    pub(crate) n_clients: u32,
    pub(crate) think: Range<Duration>,
    pub(crate) rules: Rules,
    pub(crate) healing: Healing,
    /// Cuts are healed and nobody dies: what is merged is looked at closely.
    pub(crate) heals: bool,
    /// Only dead nodes are declared dead, and no cut isolates anybody.
    pub(crate) honest: bool,
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Ctx {
    pub(crate) sim: Sim<Happens>,
    pub(crate) knobs: Knobs,
    pub(crate) links: Links,
    pub(crate) oracle: Oracle,
    pub(crate) truth: Vec<Truth>,
    pub(crate) names: Vec<NodeId>,
    pub(crate) params: Arc<ClusterParams>,
    /// Version and set.
    pub(crate) pins: (u32, u8),
    pub(crate) next_stamp: u64,
    /// Faults are over: clients ask less often.
    pub(crate) is_quiet: bool,
    pub(crate) log: bool,
    pub(crate) triggers: Vec<Trigger>,
    /// Targets of handoffs.
    pub(crate) targets: BTreeMap<HandoffId, Host>,
    /// Who was named in claims of processes that have died, and lives.
    pub(crate) heirs: BTreeMap<(NodeBoot, ShardId), BTreeSet<NodeBoot>>,
    /// Handoffs that were hit.
    pub(crate) hit: BTreeSet<HandoffId>,
    /// Of each node; empty where there are none.
    pub(crate) disks: Vec<Disk>,
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn params(replicas: u8) -> ClusterParams {
    ClusterParams {
        shards: ShardCount::new(N_SHARDS).expect("a power of two"),
        balance_permille: 1050,
        secret: HashSecret::public(),
        replicas,
    }
}

impl Ctx {
    pub(crate) fn now(&self) -> Time {
        self.sim.now()
    }

    #[expect(clippy::print_stdout, reason = "the log of one run, which was asked for")]
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if self.log {
            let mut text = text().replace("node:", "");
            for (idx, name) in self.names.iter().enumerate() {
                text = text.replace(&name.to_string(), &self.label(idx));
            }
            println!("{:?} {text}", self.now());
        }
    }

    fn label(&self, idx: usize) -> String {
        let n_nodes = self.knobs.n_nodes as usize;
        if idx < n_nodes { format!("n{idx}") } else { format!("r{}", idx - n_nodes) }
    }

    pub(crate) fn n_hosts(&self) -> u32 {
        self.knobs.n_nodes + N_ROUTERS
    }

    /// The pseudo host of faults and clocks outside all processes.
    pub(crate) fn world(&self) -> Host {
        Host(self.n_hosts())
    }

    pub(crate) fn is_node(&self, host: Host) -> bool {
        host.0 < self.knobs.n_nodes
    }

    pub(crate) fn name_of(&self, host: Host) -> NodeId {
        self.names[host.0 as usize]
    }

    pub(crate) fn host_of(&self, id: NodeId) -> Option<Host> {
        let idx = self.names.iter().position(|name| *name == id)?;
        u32::try_from(idx).ok().map(Host)
    }

    pub(crate) fn boot_of(&self, host: Host) -> BootId {
        self.truth[host.0 as usize].boot
    }

    pub(crate) fn who(&self, host: Host) -> NodeBoot {
        NodeBoot { node: self.name_of(host), boot: self.boot_of(host) }
    }

    pub(crate) fn between(&mut self, range: &Range<Duration>) -> Duration {
        if range.is_empty() { range.start } else { self.sim.rng().random_range(range.clone()) }
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        0 < n && self.sim.rng().random_range(0..n) == 0
    }

    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.sim.rng().random_range(0..n.max(1))
    }

    pub(crate) fn after(&mut self, host: Host, after: Duration, what: Happens) {
        let at = self.now() + after;
        self.sim.timer(host, at, what);
    }

    /// How each node is set up.
    pub(crate) fn ownership_config(&self, me: NodeBoot) -> OwnershipConfig {
        let forming = stead_node::logic::forming::FormingConfig {
            has_seeds: true,
            quiet: ms(400),
            alone_after: None,
        };
        let mut config = OwnershipConfig::new(me, N_SHARDS, forming);
        config.rules = self.knobs.rules;
        config.batch_shards_max = 3;
        config.balance_quiet = BALANCE_QUIET;
        config.balance_stay = BALANCE_STAY;
        config.orphan_grace = ms(3_000);
        config.replicas = self.knobs.replicas;
        config.has_disk = self.knobs.disk.is_some();
        config
    }
}

/// Shorter than by default, so that more moves fit into a run.
pub(crate) const BALANCE_QUIET: Duration = Duration::from_millis(400);
pub(crate) const BALANCE_STAY: Duration = Duration::from_secs(4);

/// Targets and digest under the pins of set `pins`. The table of a set of nodes is computed once
/// for all runs.
pub(crate) fn targets_of(
    params: &ClusterParams,
    members: &Members,
    pins: u8,
) -> (Arc<Targets>, u64) {
    type Known = BTreeMap<(Vec<NodeId>, u8, u8), Arc<Targets>>;
    thread_local! {
        static KNOWN: RefCell<Known> = const { RefCell::new(BTreeMap::new()) };
    }
    let ids: Vec<NodeId> = params.ring_nodes(members).iter().map(|node| node.id).collect();
    let in_force = pins_of(pins);
    let digest = params.members_digest(members, &in_force);
    let targets = KNOWN.with_borrow_mut(|known| {
        let entry = known.entry((ids, pins, params.replicas));
        Arc::clone(entry.or_insert_with(|| Arc::new(params.targets(members, &in_force))))
    });
    (targets, digest)
}

/// The pins of a set: about two thirds of the shards, to any of the names.
fn pins_of(set: u8) -> Vec<Pin> {
    let set = u32::from(set);
    let pinned = (0..N_SHARDS).filter(|shard| 0 < set && (shard * 7 + set * 5) % 3 > 0);
    let pin = |shard| {
        let node = name((shard * 3 + set * 11 + set / 3) % 7);
        Pin { shard: ShardId(shard), node, version: 1 }
    };
    pinned.map(pin).collect()
}

/// The name of a node, or of a router.
pub(crate) fn name(idx: u32) -> NodeId {
    NodeId::of_name(&format!("n{idx}"))
}

/// One process of the truth.
impl Truth {
    pub(crate) fn none() -> Self {
        Self { boot: BootId(0), is_up: false, phase: Phase::Joining, last: None }
    }
}
