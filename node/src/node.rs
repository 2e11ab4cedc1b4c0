//! A node of a cluster: built, run, drained.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use http::{Request, Response};
use stead_shared::config::{AckPolicy, NodeConfig, NodeOptions};
use stead_shared::control::{HandoffId, ShardEpoch, kind};
use stead_shared::id::{Epoch, NodeId, ShardId};
use stead_shared::member::{Members, Phase, Role};
use stead_shared::net::admin::ClusterAdmin;
use stead_shared::net::agent::{Agent, End};
use stead_shared::net::link::{ConnectionKind, Links, PeerInfo, Reply, ServerStream};
use stead_shared::net::mesh::Hooks;
use stead_shared::net::parking::Parking;
use stead_shared::net::pinning::{PinDesk, Pinning};
use stead_shared::net::platform::Platform;
use stead_shared::net::process::{self, Process, ProcessConfig};
use stead_shared::net::sock;
use stead_shared::net::watch;
use stead_shared::swim::SwimConfig;
use stead_shared::time::Time;
use stead_shared::view::{ClusterParams, View};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::body::Body;
use crate::driver::{Done, Driver, Sources, Standing};
use crate::failure::{LeaveReport, NodeError, mismatch, refuse_a_second_cluster, remember_members};
use crate::forward::Forwarding;
use crate::host::{Host, HostStats};
use crate::logic::forming::FormingConfig;
use crate::logic::heal::Merge;
use crate::logic::ownership::{GiveUp, Ownership, OwnershipConfig};
use crate::moving;
use crate::offer;
use crate::replica::ReplicaReport;
use crate::saved::{Found, NotSaved, open_disk, save_all};
use crate::serve::Server;
use crate::service::{Service, SharedService};
use crate::store::core::{Acks, HostConfig};
use crate::transfer::{self, Budget, Tally, TransferHead};

/// Reports of tasks that may wait for the driver.
const DONE_MAX: usize = 1_024;
/// Incoming transfers at a time: more than the machine ever agrees to.
const TRANSFERS_MAX: usize = 32;
/// Incoming offers at a time. Others are asked to come again.
const OFFERS_MAX: usize = 4;
/// How long late requests are still answered after a drain, while claims spread.
const LINGER: Duration = Duration::from_millis(200);
/// How long links may take to close.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Builds a [`Node`].
#[derive(Debug)]
pub struct NodeBuilder {
    options: NodeOptions,
    config: Option<NodeConfig>,
    swim: SwimConfig,
    host: HostConfig,
    service: Option<SharedService>,
    platform: Platform,
}

impl NodeBuilder {
    fn new() -> Self {
        Self {
            options: NodeOptions::default(),
            config: None,
            swim: SwimConfig::default(),
            host: HostConfig::default(),
            service: None,
            platform: Platform::system(),
        }
    }

    /// The stable name; its hash is the node's id.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// Where gossip (UDP) and the link (TCP) listen.
    #[must_use]
    pub fn gossip(mut self, addr: SocketAddr) -> Self {
        self.options.gossip = addr;
        self
    }

    /// Where plain HTTP listens.
    #[must_use]
    pub fn http(mut self, addr: SocketAddr) -> Self {
        self.options.http = addr;
        self
    }

    /// Seeds, `HOST:PORT` each. Without any the node founds a cluster.
    #[must_use]
    pub fn join<S: Into<String>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.options.join = seeds.into_iter().map(Into::into).collect();
        self
    }

    /// Number of shards of the whole cluster, the same on all nodes, for ever: a power of two.
    /// Default 16384.
    #[must_use]
    pub fn shards(mut self, n_shards: u32) -> Self {
        self.options.shards = n_shards;
        self
    }

    /// Where the session key is in a plain HTTP request, in order of preference: `header:NAME`,
    /// `cookie:NAME`, `path:N`, `query:NAME`, `regex:RE`, `ip`. Default `path:2`.
    #[must_use]
    pub fn key<S: Into<String>>(mut self, sources: impl IntoIterator<Item = S>) -> Self {
        self.options.key = sources.into_iter().map(Into::into).collect();
        self
    }

    /// All options at once, as a file or flags give them. They take the place of those given
    /// before.
    #[must_use]
    pub fn options(mut self, options: NodeOptions) -> Self {
        self.options = options;
        self
    }

    /// A configuration that was checked before. It takes the place of all options.
    #[must_use]
    pub fn config(mut self, config: NodeConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Tuning of the membership protocol.
    #[must_use]
    pub fn swim(mut self, swim: SwimConfig) -> Self {
        self.swim = swim;
        self
    }

    /// Limits of sessions and shards beside those among the options.
    #[must_use]
    pub fn host(mut self, host: HostConfig) -> Self {
        self.host = host;
        self
    }

    /// The system beneath, for simulations.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// The service that answers requests. Without one the built-in session service does.
    #[must_use]
    pub fn service(mut self, service: impl Service) -> Self {
        self.service = Some(SharedService::new(service));
        self
    }

    /// A tower service, for example an `axum::Router`, as the service that answers requests:
    /// short for `service(tower(service))`, see [`tower()`](crate::tower()).
    #[must_use]
    pub fn tower<S, B>(self, service: S) -> Self
    where
        S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        self.service(crate::service::tower(service))
    }

    /// Makes one of two values that both sides of a cut have written of a session. Without it the
    /// later one stays, and the other is listed as a conflict.
    #[must_use]
    pub fn merge(mut self, merge: impl Merge) -> Self {
        self.host.merge = Some(Arc::new(merge));
        self
    }

    /// Starts the node; it joins or founds in the background, see [`Node::ready`].
    ///
    /// # Errors
    /// [`NodeError`]; nothing is left running.
    pub async fn start(self) -> Result<Node, NodeError> {
        let config = match self.config {
            Some(config) => config,
            None => NodeConfig::try_from(&self.options)?,
        };
        let service = self.service.unwrap_or_else(|| {
            SharedService::new(crate::builtin::BuiltIn::new(
                crate::builtin::BuiltInConfig::default(),
            ))
        });
        let host = HostConfig {
            session_ttl: config.session_ttl,
            memory_max: config.memory_max,
            min_copies: usize::from(config.min_copies),
            acks: match config.ack {
                AckPolicy::Memory | AckPolicy::MemoryAndDisk => Acks::Memory,
                AckPolicy::Replica | AckPolicy::ReplicaAndDisk => Acks::Replica,
            },
            ..self.host
        };
        let beneath = (self.swim, self.platform);
        Node::start(config, beneath, Host::new(host, service)).await
    }
}

/// What streams and calls of peers meet. The server is there only once the view is.
struct NodeHooks {
    server: std::sync::OnceLock<Arc<Server>>,
    done: mpsc::Sender<Done>,
    transfers: Arc<Semaphore>,
    offers: Arc<Semaphore>,
    progress: watch::Receiver<Standing>,
    name: String,
}

impl Hooks for NodeHooks {
    fn opened(&self, _peer: PeerInfo, stream: ServerStream) {
        let Some(server) = self.server.get().cloned() else { return };
        match stream.kind() {
            ConnectionKind::Main => {
                // In a box, because a task moves what it runs a few times.
                tokio::spawn(Box::pin(server.answer(stream)));
            }
            ConnectionKind::Bulk => self.receive(server.host.clone(), stream),
        }
    }

    fn call(&self, _peer: PeerInfo, kind: u8, payload: Bytes, reply: Reply) {
        match kind {
            kind::DRAIN if self.done.try_send(Done::Drain).is_ok() => reply.send(Bytes::new()),
            kind::DRAIN_PROGRESS => {
                let progress = *self.progress.borrow();
                let stats = self.server.get().map(|server| server.host.stats());
                let report = moving::drain_report(&self.name, progress, stats.unwrap_or_default());
                reply.send(json(&report));
            }
            kind::MOVES => reply.send(json(&moving::report(&self.progress.borrow()))),
            kind::FORGET => {
                let node = payload.as_ref().try_into().map(|id| NodeId(u64::from_le_bytes(id)));
                // Without an answer the asker knows that it did not happen.
                if node.is_ok_and(|node| self.done.try_send(Done::Forget(node)).is_ok()) {
                    reply.send(Bytes::new());
                }
            }
            _ => {}
        }
    }
}

fn json(report: &impl serde::Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(report).expect("plain data always encodes"))
}

impl NodeHooks {
    fn receive(&self, host: Host, stream: ServerStream) {
        match transfer::head_of(&stream) {
            Ok(TransferHead::Handoff { handoff, shards }) => {
                self.receive_handoff(host, handoff, shards, stream);
            }
            Ok(TransferHead::Offer { from, shards }) => {
                let Ok(slot) = Arc::clone(&self.offers).try_acquire_owned() else { return };
                tokio::spawn(async move {
                    if let Err(error) = offer::receive(&host, &shards, stream).await {
                        tracing::info!(%error, from = %from.node, "an offer broke off");
                    }
                    drop(slot);
                });
            }
            Ok(TransferHead::Replicate { owner: _ }) => {
                tokio::spawn(async move { host.follow(stream).await });
            }
            // The stream's end tells the sender.
            Err(error) => tracing::info!(%error, "a transfer that cannot be read"),
        }
    }

    fn receive_handoff(
        &self,
        host: Host,
        handoff: HandoffId,
        shards: Vec<ShardEpoch>,
        stream: ServerStream,
    ) {
        let Ok(slot) = Arc::clone(&self.transfers).try_acquire_owned() else { return };
        let done = self.done.clone();
        tokio::spawn(async move {
            // The driver is gone only when the process is.
            let _ = done.send(Done::Receiving(handoff)).await;
            let outcome = match transfer::receive(&host, &shards, stream).await {
                Ok(mut copy) => match save_all(&mut copy).await {
                    Ok(()) => Done::Received(handoff, copy),
                    Err(NotSaved) => {
                        tracing::warn!(from = %handoff.source.node, "state did not get to disk");
                        Done::ReceiveFailed(handoff)
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, from = %handoff.source.node, "state did not arrive");
                    Done::ReceiveFailed(handoff)
                }
            };
            drop(slot);
            // The driver is gone only when the process is.
            let _ = done.send(outcome).await;
        });
    }
}

/// A running node. Dropping it stops the process's part without a goodbye.
#[derive(Debug)]
pub struct Node {
    handle: Handle,
    stop: tokio_util::sync::CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    drain_timeout: Duration,
}

/// A cheap way to a running node, for everybody in the process.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) me: NodeId,
    pub(crate) params: Arc<ClusterParams>,
    pub(crate) host: Host,
    pub(crate) agent: Agent,
    pub(crate) links: Links,
    pub(crate) pins: PinDesk,
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) progress: watch::Receiver<Standing>,
    pub(crate) server: Arc<Server>,
    pub(crate) done: mpsc::Sender<Done>,
    pub(crate) http: SocketAddr,
    pub(crate) config: NodeConfig,
    pub(crate) requests: std::sync::atomic::AtomicU64,
    pub(crate) forwarding: Forwarding,
    pub(crate) platform: Platform,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Node {
    /// A builder with default options.
    #[must_use]
    pub fn builder() -> NodeBuilder {
        NodeBuilder::new()
    }

    async fn start(
        config: NodeConfig,
        (swim, platform): (SwimConfig, Platform),
        host: Host,
    ) -> Result<Self, NodeError> {
        refuse_a_second_cluster(&config)?;
        host.set_unix_time(platform.unix_micros());
        let found = open_disk(&config, &host).await?;
        let http = sock::tcp_listener(config.http, "http")?;
        let http_addr = http.local_addr().unwrap_or(config.http);
        let (done_in, done) = mpsc::channel(DONE_MAX);
        let (replicas_in, replicas) = mpsc::unbounded_channel();
        let (progress, progress_out) = watch::channel(Standing::default());
        let hooks = Arc::new(NodeHooks {
            server: std::sync::OnceLock::new(),
            done: done_in.clone(),
            transfers: Arc::new(Semaphore::new(TRANSFERS_MAX)),
            offers: Arc::new(Semaphore::new(OFFERS_MAX)),
            progress: progress_out.clone(),
            name: config.name.clone(),
        });
        let process_config = process_config(&config, http_addr, (swim, platform.clone()));
        let process = process::start(process_config, Arc::clone(&hooks) as Arc<dyn Hooks>).await?;
        let params = Arc::new(ClusterParams {
            shards: config.shards,
            balance_permille: config.balance_permille,
            secret: process.secret.clone(),
            replicas: config.replicas,
        });
        let members = Arc::clone(&process.agent.members().borrow());
        let (views, views_out) = watch::channel(Arc::new(View::new(Arc::clone(&params), members)));
        let granted: Arc<DashMap<ShardId, Epoch>> = Arc::new(DashMap::new());
        let forwarding = Forwarding::new(host.clone(), views_out.clone());
        let parking = Arc::clone(&forwarding.parking);
        let server = Arc::new(Server {
            host: host.clone(),
            views: views_out.clone(),
            granted: Arc::clone(&granted),
            parking: Arc::clone(&parking),
            me: process.me.node,
        });
        // Set once: `start` made the hooks.
        let _ = hooks.server.set(Arc::clone(&server));
        let stop = process.stop.clone();
        let (pinning, pins) =
            Pinning::new(process.me.node, process.links.clone(), platform.clone());
        let inner = Inner {
            name: config.name.clone(),
            me: process.me.node,
            params,
            host: host.clone(),
            agent: process.agent.clone(),
            links: process.links.clone(),
            pins,
            views: views_out,
            progress: progress_out,
            server,
            done: done_in.clone(),
            http: http_addr,
            config: config.clone(),
            requests: std::sync::atomic::AtomicU64::new(1),
            forwarding,
            platform,
        };
        let handle = Handle { inner: Arc::new(inner) };
        host.listen(Arc::clone(&process.heard));
        host.replicate(process.links.clone(), replicas_in);
        let driver = Wiring {
            config: &config,
            found,
            host: host.clone(),
            pinning,
            views,
            progress,
            granted,
            parking: Arc::clone(&parking),
            done_in,
        };
        let mut tasks = Vec::new();
        if let Some(dir) = config.data_dir.clone() {
            let members = process.agent.members();
            tasks.push(tokio::spawn(remember_members(dir, process.me.node, members)));
        }
        tasks.extend([
            driver.spawn(process, done, replicas),
            tokio::spawn(async move { host.keep_time().await }),
            tokio::spawn(async move { parking.drive().await }),
            tokio::spawn(crate::http::serve(handle.clone(), http, stop.clone())),
        ]);
        Ok(Self { handle, stop, tasks, drain_timeout: config.drain_timeout })
    }

    /// A way to this node for the rest of the process.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until the node owns its part of the cluster, or cannot.
    ///
    /// # Errors
    /// Why it never will.
    pub async fn ready(&self) -> Result<(), NodeError> {
        let mut progress = self.handle.inner.progress.clone();
        tokio::select! {
            biased;
            error = self.failed() => Err(error),
            ready = progress.wait_for(|progress| progress.ready) => {
                ready.map(|_| ()).map_err(|_| NodeError::GossipLost)
            }
        }
    }

    /// Runs until `shutdown`, then hands everything off and leaves.
    ///
    /// # Errors
    /// When the cluster does not let it in or throws it out. Its sessions are gone then.
    pub async fn run_until(
        self,
        shutdown: impl Future<Output = ()>,
    ) -> Result<LeaveReport, NodeError> {
        self.run_until_forced(shutdown, std::future::pending()).await
    }

    /// As [`run_until`](Self::run_until); `force` cuts the drain short.
    ///
    /// # Errors
    /// As for [`run_until`](Self::run_until).
    pub async fn run_until_forced(
        self,
        shutdown: impl Future<Output = ()>,
        force: impl Future<Output = ()>,
    ) -> Result<LeaveReport, NodeError> {
        tokio::select! {
            biased;
            error = self.failed() => {
                self.abandon().await;
                return Err(error);
            }
            () = shutdown => {}
            () = self.asked_to_leave() => {}
        }
        Ok(self.leave(force).await)
    }

    /// A drain that somebody else asked for has ended.
    async fn asked_to_leave(&self) {
        let mut progress = self.handle.inner.progress.clone();
        if progress.wait_for(|progress| progress.draining && progress.drained).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn failed(&self) -> NodeError {
        let inner = &self.handle.inner;
        let mut progress = inner.progress.clone();
        let mut views = inner.views.clone();
        // Only a newcomer goes: one that was let in is no reason for the others to stop.
        let joining = inner.progress.clone();
        let mismatch = async {
            while !joining.borrow().ready {
                let found = mismatch(&inner.config, inner.me, &views.borrow_and_update().members);
                if let Some(error) = found {
                    return error;
                }
                if views.changed().await.is_err() {
                    break;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            end = inner.agent.ended() => match end {
                End::Fatal(reason) => NodeError::Fatal(reason),
                End::Rejected { addr, why } => NodeError::Rejected { addr, why },
                End::Left | End::Stopped | End::Lost => NodeError::GossipLost,
            },
            error = mismatch => error,
            Ok(gave_up) = async {
                progress.wait_for(|progress| progress.gave_up.is_some()).await.map(|p| p.gave_up)
            } => match gave_up {
                Some(GiveUp::JoinTimeout) | None => NodeError::JoinTimeout,
            },
        }
    }

    async fn leave(self, force: impl Future<Output = ()>) -> LeaveReport {
        let inner = Arc::clone(&self.handle.inner);
        // The driver is gone only when the process is.
        let _ = inner.done.send(Done::Drain).await;
        let mut progress = inner.progress.clone();
        let forced = tokio::select! {
            biased;
            drained = progress.wait_for(|progress| progress.drained) => drained.is_err(),
            () = tokio::time::sleep(self.drain_timeout) => true,
            () = force => true,
        };
        let owned = inner.progress.borrow().n_owned;
        let HostStats { sessions, .. } = inner.host.stats();
        let report = LeaveReport { shards_left: owned, sessions_left: sessions, forced };
        if !forced && owned == 0 {
            tokio::time::sleep(LINGER).await;
        }
        inner.agent.set_phase(Phase::Leaving);
        inner.agent.leave().await;
        self.abandon().await;
        report
    }

    async fn abandon(self) {
        self.stop.cancel();
        let inner = &self.handle.inner;
        inner.agent.stop();
        if tokio::time::timeout(CLOSE_MAX, inner.links.close_all()).await.is_err() {
            tracing::debug!("links did not close in time");
        }
        for task in self.tasks {
            task.abort();
        }
        inner.host.close_disk().await;
    }
}

/// What the driver needs from the start.
struct Wiring<'a> {
    config: &'a NodeConfig,
    found: Found,
    host: Host,
    pinning: Pinning,
    views: watch::Sender<Arc<View>>,
    progress: watch::Sender<Standing>,
    granted: Arc<DashMap<ShardId, Epoch>>,
    parking: Arc<Parking>,
    done_in: mpsc::Sender<Done>,
}

impl Wiring<'_> {
    fn spawn(
        self,
        process: Process,
        done: mpsc::Receiver<Done>,
        replicas: mpsc::UnboundedReceiver<ReplicaReport>,
    ) -> JoinHandle<()> {
        let forming = FormingConfig {
            has_seeds: !self.config.member.join.is_empty(),
            alone_after: self.config.form_alone_after,
            ..FormingConfig::default()
        };
        let ownership = OwnershipConfig::new(process.me, self.config.shards.get(), forming);
        let ownership = OwnershipConfig {
            replicas: self.config.replicas,
            on_minority: self.config.on_minority,
            settles_after: self.config.settled_after,
            has_disk: self.config.data_dir.is_some(),
            ..ownership
        };
        let view = Arc::clone(&self.views.borrow());
        let (members, targets) = (Arc::clone(&view.members), Arc::clone(&view.targets));
        let (config, me) = (self.config.clone(), process.me.node);
        let disagrees = Box::new(move |members: &Members| mismatch(&config, me, members).is_some());
        let driver = Driver {
            me: process.me,
            machine: Ownership::new(ownership.clone(), members, targets, Time::ZERO)
                .recovering(self.found.0.clone(), self.found.1.clone()),
            ownership,
            found: self.found,
            host: self.host,
            agent: process.agent,
            links: process.links,
            pinning: self.pinning,
            views: self.views,
            progress: self.progress,
            granted: self.granted,
            done_in: self.done_in,
            heard: process.heard,
            parking: self.parking,
            budget: Arc::new(Budget::new(self.config.handoff_rate)),
            tally: Tally::default(),
            origin: Instant::now(),
            disagrees,
        };
        let (agent_events, mesh_events) = (process.agent_events, process.mesh_events);
        let sources = Sources { agent_events, mesh_events, done, replicas };
        tokio::spawn(driver.run(sources))
    }
}

fn process_config(
    config: &NodeConfig,
    http: SocketAddr,
    (swim, platform): (SwimConfig, Platform),
) -> ProcessConfig {
    let data_dir: Option<PathBuf> = config.data_dir.clone();
    ProcessConfig {
        member: config.member.clone(),
        name: config.name.clone(),
        role: Role::Node,
        weight: config.weight,
        zone: config.zone.clone(),
        http: config.member.reachable(http),
        n_shards: config.shards.get(),
        balance_permille: config.balance_permille,
        data_dir,
        swim,
        platform,
    }
}

impl Handle {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where plain HTTP listens.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.inner.http
    }

    /// Where gossip and the link listen, as others reach it.
    #[must_use]
    pub fn gossip_addr(&self) -> SocketAddr {
        self.inner.agent.gossip()
    }

    /// The cluster as this node sees it now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.inner.views.borrow())
    }

    /// The cluster as this node sees it, from now on.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.inner.views.clone()
    }

    /// Waits until this node sees `n_nodes` nodes that own shards, and every shard where it
    /// belongs: for tests that want a cluster at rest. There is no bound; put a timeout around it.
    ///
    /// # Errors
    /// When the node has ended.
    pub async fn settled(&self, n_nodes: usize) -> Result<(), NodeError> {
        let n_shards = self.inner.params.shards.get();
        let is_home = |view: &View, shard: ShardId| {
            let owner = view.live_claim(shard).map(|(_, owner)| owner.node);
            owner.is_some() && owner == view.targets.owner_of(shard)
        };
        let mut views = self.views();
        let settled = views.wait_for(|view| {
            view.params.ring_nodes(&view.members).len() == n_nodes
                && (0..n_shards).all(|shard| is_home(view, ShardId(shard)))
        });
        settled.await.map(|_| ()).map_err(|_| NodeError::GossipLost)
    }

    /// Who owns the session `key`, and in which epoch; none when nobody alive does.
    #[must_use]
    pub fn owner_of(&self, key: &stead_shared::id::SessionKey) -> Option<(NodeId, Epoch)> {
        let view = self.view();
        let shard = self.inner.params.shard_of(key);
        view.live_claim(shard).map(|(epoch, owner)| (owner.node, epoch))
    }

    /// What this node holds.
    #[must_use]
    pub fn stats(&self) -> HostStats {
        self.inner.host.stats()
    }

    /// What the node's admin interface answers; see [`stead_shared::net::admin`].
    #[must_use]
    pub fn admin(&self) -> ClusterAdmin {
        let views = self.inner.views.clone();
        ClusterAdmin {
            members: self.inner.agent.members(),
            view: Arc::new(move || Some(Arc::clone(&views.borrow()))),
            links: self.inner.links.clone(),
            pins: self.inner.pins.clone(),
            local: Arc::new(self.clone()),
        }
    }

    /// Hands everything off; [`Node::run_until`] then leaves.
    pub async fn drain(&self) {
        // The driver is gone only when the process is.
        let _ = self.inner.done.send(Done::Drain).await;
        let mut progress = self.inner.progress.clone();
        let _ = progress.wait_for(|progress| progress.drained).await;
    }
}
