//! The gossip agent: sockets, timers and calls around the pure [`crate::swim::Swim`] machine.
//!
//! ```text
//!   UDP ── open ──┐                       ┌── seal ── UDP
//!   deadline ─────┤                       ├── push/pull, hello, DNS (tasks of the caller's runtime)
//!   link calls ───┼─► Swim: event → actions ─┼── members (watch)
//!   wishes ───────┘                       └── events (deaths, syncs)
//! ```
//! [`Agent::prepare`] checks and binds everything together, [`AgentRun::run`] is the loop, and
//! [`on_own_thread`] runs it on a thread of its own, so that no load of requests makes this
//! process look dead. The [`Agent`] is a handle for everybody else; none of its methods waits
//! for the network but [`Agent::leave`].
//!
//! What does not authenticate is dropped, counted and never answered. Without keys the agent
//! binds to loopback only, unless it is told to be insecure.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::{io, thread};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use self::inbox::Inbox;
use self::meters::Meters;
pub use self::meters::Stats;
use self::shell::Shell;
use crate::id::{BootId, ClusterId, NodeBoot, NodeId};
use crate::keys::Keyring;
use crate::member::{Members, Phase};
use crate::net::heard::Heard;
use crate::net::platform::Platform;
use crate::net::sock::UdpSocket;
use crate::net::watch;
use crate::swim::{FatalReason, SelfDescription, SwimConfig, SwimState};

mod inbox;
mod meters;
mod shell;
mod tasks;

/// Push/pull calls of peers that may wait for the agent.
const CALLS_MAX: usize = 64;

/// Events that may wait for the driver in its channel; more wait in the agent.
const EVENTS_MAX: usize = 256;

/// What an agent is told at its start.
#[derive(Debug)]
pub struct AgentConfig {
    /// Who this process is. Port 0 in its gossip address stands for the port that was bound.
    pub me: SelfDescription,
    /// Addresses or names with ports of members to join; names are resolved anew each time.
    pub seeds: Vec<String>,
    /// The keys of datagrams; none is for loopback, or for `insecure`.
    pub keys: Option<Keyring>,
    /// Whether to gossip without keys outside loopback.
    pub insecure: bool,
    /// The cluster.
    pub cluster: ClusterId,
    /// Tuning of the membership protocol.
    pub swim: SwimConfig,
    /// Where the boot id is remembered when it has to change while the process runs.
    pub data_dir: Option<PathBuf>,
    /// The system beneath.
    pub platform: Platform,
}

/// An agent that cannot start. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Everybody on the network could control the cluster.
    #[error(
        "gossip on {addr} without a key would let anybody who reaches it control the cluster: \
         give every member the same --cluster-key-file (`stead keygen` makes one), listen on \
         127.0.0.1, or accept that with --insecure-gossip"
    )]
    NoKey {
        /// The address that was bound.
        addr: SocketAddr,
    },
    /// Others would be told an address that leads nowhere.
    #[error(
        "others cannot reach this process at {addr}: name its own address in --gossip, or say \
         --advertise HOST:PORT"
    )]
    NoAddress {
        /// The address of the description.
        addr: SocketAddr,
    },
    /// The socket is unusable.
    #[error("the gossip socket fails: {0}")]
    Socket(#[source] io::Error),
    /// No random bytes for nonces and probe orders.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The system starts no thread.
    #[error("cannot start the gossip thread: {0}")]
    Thread(#[source] io::Error),
}

/// What the rest of the process must know at once, in order. Nothing is lost; deaths of one boot
/// that wait together are told as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// Lists were exchanged with a member.
    Synced {
        /// The member.
        with: NodeBoot,
    },
    /// A boot of a node is dead.
    Died {
        /// Which.
        who: NodeBoot,
        /// Whether there is proof, or mere silence.
        confirmed: bool,
    },
    /// This process has another boot id from now on, because an earlier one of its name was
    /// higher.
    BootIs(BootId),
}

/// How an agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It said goodbye to everybody.
    Left,
    /// It was stopped without a word.
    Stopped,
    /// The process must not go on.
    Fatal(FatalReason),
    /// Somebody answered at the address of a seed and does not belong with us, before we had met
    /// any member.
    Rejected {
        /// The seed.
        addr: SocketAddr,
        /// Why, and what to do.
        why: String,
    },
    /// Its task was dropped or has panicked.
    Lost,
}

/// Why a peer was not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Nobody listens at its address: proof that the process there is gone.
    #[error("the connection was refused")]
    Refused,
    /// It answered, and does not belong with us: another cluster or key, no protocol in common.
    /// Says what to do.
    #[error("{0}")]
    Rejected(String),
    /// Anything else: silence, a broken connection.
    #[error("{0}")]
    Failed(String),
}

/// The way to other members that is not UDP: the link.
///
/// The futures run on the runtime of whoever started the agent, and must end in bounded time.
pub trait PushPuller: Send + Sync + 'static {
    /// Calls the member at `addr`, probably `node`, with our list; gives who answered, and its
    /// list.
    fn push_pull(
        &self,
        addr: SocketAddr,
        node: Option<NodeId>,
        mine: Bytes,
    ) -> impl Future<Output = Result<(NodeBoot, Bytes), PeerError>> + Send;

    /// Dials `addr` anew and gives who answers its hello, be it a member of our own name.
    fn hello(&self, addr: SocketAddr) -> impl Future<Output = Result<NodeBoot, PeerError>> + Send;

    /// Our own boot id in hellos from now on.
    fn boot_is(&self, boot: BootId);
}

/// A call by a peer: its list for ours.
#[derive(Debug)]
struct Call {
    from: NodeBoot,
    state: SwimState,
    reply: oneshot::Sender<SwimState>,
}

/// A push/pull call that was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer's bytes are no list of members.
    #[error("not a list of members")]
    NotAList,
    /// The agent has ended.
    #[error("the gossip agent has ended")]
    Ended,
}

/// A handle to a running agent. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Agent {
    inbox: Arc<Inbox>,
    calls: mpsc::Sender<Call>,
    members: watch::Receiver<Arc<Members>>,
    end: watch::Receiver<Option<End>>,
    meters: Arc<Meters>,
    gossip: SocketAddr,
}

impl Agent {
    /// An agent on `socket`, not yet running; its events come out of the receiver.
    ///
    /// The socket comes from [`sock::udp`](crate::net::sock::udp) or
    /// [`sock::udp_and_tcp`](crate::net::sock::udp_and_tcp).
    ///
    /// # Errors
    /// [`AgentError`] when it must not or cannot gossip there.
    pub fn prepare(
        mut config: AgentConfig,
        socket: UdpSocket,
    ) -> Result<(Self, AgentRun, mpsc::Receiver<AgentEvent>), AgentError> {
        let bound = socket.local_addr().map_err(AgentError::Socket)?;
        if config.keys.is_none() && !config.insecure && !bound.ip().is_loopback() {
            return Err(AgentError::NoKey { addr: bound });
        }
        let gossip = &mut config.me.gossip;
        if gossip.port() == 0 {
            gossip.set_port(bound.port());
        }
        if gossip.ip().is_unspecified() {
            return Err(AgentError::NoAddress { addr: *gossip });
        }
        let gossip = *gossip;
        let meters = Arc::new(Meters::new(config.keys.is_some()));
        let inbox = Arc::new(Inbox::default());
        let (calls, calls_in) = mpsc::channel(CALLS_MAX);
        let (events, events_out) = mpsc::channel(EVENTS_MAX);
        let (members_in, members) =
            watch::channel(Arc::new(Members { me: config.me.card.of.node, list: Vec::new() }));
        let (end_in, end) = watch::channel(None);
        let ends = Ends { calls: calls_in, events, members: members_in, end: end_in };
        let agent = Self { inbox: Arc::clone(&inbox), calls, members, end, meters, gossip };
        let meters = Arc::clone(&agent.meters);
        let run = AgentRun { config, socket, inbox, meters, ends, heard: None };
        Ok((agent, run, events_out))
    }

    /// Everybody this process knows; a new list for each change. Empty before the agent runs.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// The address under which others reach this process.
    #[must_use]
    pub fn gossip(&self) -> SocketAddr {
        self.gossip
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.meters.stats()
    }

    /// Says that this process joins, is ready or leaves. The last word counts.
    pub fn set_phase(&self, phase: Phase) {
        self.inbox.wish(|wishes| wishes.phase = Some(phase));
    }

    /// Gives this process another weight.
    pub fn set_weight(&self, weight: u16) {
        self.inbox.wish(|wishes| wishes.weight = Some(weight));
    }

    /// A request could not reach `node`: probe it now. Cheap enough for the request path.
    pub fn accuse(&self, node: NodeId) {
        self.inbox.accuse(node);
    }

    /// The link to `node` broke and a new connection was refused, to this process or, as it was
    /// told, to `by`.
    pub fn refused(&self, node: NodeBoot, by: NodeId) {
        self.inbox.refused(node, by);
    }

    /// `boot` answered where another boot of `node` was dialled.
    pub fn other_boot(&self, node: NodeId, boot: BootId) {
        self.inbox.other_boot(node, boot);
    }

    /// Replaces the keys while the agent runs. No member is lost by it, in whatever order they
    /// get the new keys; see [`crate::wire::datagram`].
    pub fn set_keys(&self, keys: Keyring) {
        self.inbox.wish(|wishes| wishes.keys = Some(keys));
    }

    /// Answers a peer's push/pull: takes its list and gives ours.
    ///
    /// # Errors
    /// [`CallError`]; on `NotAList` nothing has changed.
    pub async fn push_pull(&self, from: NodeBoot, list: &[u8]) -> Result<Bytes, CallError> {
        let state = SwimState::decode(list).map_err(|_| CallError::NotAList)?;
        let (reply, answer) = oneshot::channel();
        let call = Call { from, state, reply };
        self.calls.send(call).await.map_err(|_| CallError::Ended)?;
        Ok(answer.await.map_err(|_| CallError::Ended)?.encode())
    }

    /// Says goodbye to everybody and waits until it was heard; some gossip rounds.
    pub async fn leave(&self) -> End {
        self.inbox.wish(|wishes| wishes.leave = true);
        self.ended().await
    }

    /// Ends the agent without a word: to the others a crash.
    pub fn stop(&self) {
        self.inbox.wish(|wishes| wishes.stop = true);
    }

    /// Waits until the agent has ended.
    pub async fn ended(&self) -> End {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(End::Lost),
            Err(_) => End::Lost,
        }
    }
}

/// The agent's own ends of its channels.
#[derive(Debug)]
struct Ends {
    calls: mpsc::Receiver<Call>,
    events: mpsc::Sender<AgentEvent>,
    members: watch::Sender<Arc<Members>>,
    end: watch::Sender<Option<End>>,
}

/// An agent that is ready to run.
#[derive(Debug)]
pub struct AgentRun {
    config: AgentConfig,
    socket: UdpSocket,
    inbox: Arc<Inbox>,
    meters: Arc<Meters>,
    ends: Ends,
    heard: Option<Arc<Heard>>,
}

impl AgentRun {
    /// Has every authentic datagram noted in `heard`.
    #[must_use]
    pub fn noting(mut self, heard: Arc<Heard>) -> Self {
        self.heard = Some(heard);
        self
    }

    /// Runs the agent until it leaves, is stopped or must not go on. Calls to peers and DNS run
    /// on `helpers`, where the link lives.
    ///
    /// # Errors
    /// [`AgentError`] when it could not start.
    pub async fn run<P: PushPuller>(
        self,
        peers: Arc<P>,
        helpers: Handle,
    ) -> Result<End, AgentError> {
        let end_in = self.ends.end.clone();
        let end = Box::pin(Shell::new(self, peers, helpers)?.run()).await;
        end_in.send_replace(Some(end.clone()));
        Ok(end)
    }
}

/// Runs the agent on a thread and a runtime of its own, so that requests cannot starve it. Calls
/// to peers run on the current runtime. [`Agent::ended`] tells how it ended.
///
/// # Errors
/// [`AgentError::Thread`].
///
/// # Panics
/// Outside a tokio runtime.
pub fn on_own_thread<P: PushPuller>(
    run: AgentRun,
    peers: Arc<P>,
) -> Result<thread::JoinHandle<Result<End, AgentError>>, AgentError> {
    let helpers = Handle::current();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::Thread)?;
    thread::Builder::new()
        .name("stead-gossip".to_owned())
        .spawn(move || runtime.block_on(run.run(peers, helpers)))
        .map_err(AgentError::Thread)
}
