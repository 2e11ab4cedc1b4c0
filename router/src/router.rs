//! A router of a cluster: a member of the gossip that owns nothing and routes.
//!
//! **Never writes claims.** It keeps everybody's in a book, answers who holds what from it, and
//! passes grants on for owners that do not reach their target.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use stead_shared::claims::{Applied, Book, ClaimsUpdate};
use stead_shared::config::{ConfigError, OnNoKey, RouterConfig, RouterOptions};
use stead_shared::control::{Control, ShardRange, Token, kind, who_holds};
use stead_shared::id::{NodeBoot, NodeId};
use stead_shared::member::{Members, Phase, Role};
use stead_shared::net::admin::{ClusterAdmin, DrainReport, Local, Readiness, shard_count_of};
use stead_shared::net::agent::{Agent, AgentEvent, End};
use stead_shared::net::link::{Links, PeerInfo, Reply, ServerStream};
use stead_shared::net::mesh::{Hooks, MeshEvent};
use stead_shared::net::pinning::{PinDesk, Pinning};
use stead_shared::net::platform::Platform;
use stead_shared::net::process::{self, Process, ProcessConfig, StartError};
use stead_shared::net::sock::{self, SockError, TcpListener};
use stead_shared::net::watch;
use stead_shared::swim::{FatalReason, SwimConfig};
use stead_shared::view::{ClusterParams, View};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{ProxyConfig, ProxyConfigError};
use crate::proxy::Proxy;

/// Events taken from the mesh in one turn.
const BATCH: usize = 256;
/// How often missing claim logs are asked for.
const CLAIMS_EVERY: Duration = Duration::from_millis(200);
/// How often the clock is looked at for pins that expire.
const PINS_EVERY: Duration = Duration::from_millis(500);
/// How often pins are compared with every peer.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// How long links may take to close.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Why a router did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// Its options contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The proxy's part of them.
    #[error(transparent)]
    Proxy(#[from] ProxyConfigError),
    /// Sockets, files or gossip. Nothing was started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The clients' socket. Nothing was started.
    #[error(transparent)]
    Sock(#[from] SockError),
    /// Gossip ended it.
    #[error(transparent)]
    Fatal(#[from] FatalReason),
    /// A seed does not belong to our cluster.
    #[error("{addr}: {why}")]
    Rejected {
        /// The seed.
        addr: SocketAddr,
        /// Why, and what to do.
        why: String,
    },
    /// Gossip broke down.
    #[error("the gossip thread ended; this router cannot know its cluster any more")]
    GossipLost,
}

/// Builds a [`Router`].
#[derive(Debug, Default)]
pub struct RouterBuilder {
    options: RouterOptions,
    config: Option<RouterConfig>,
    swim: SwimConfig,
    platform: Platform,
}

impl RouterBuilder {
    /// Where clients connect.
    #[must_use]
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.options.listen = addr;
        self
    }

    /// Where gossip (UDP) and the link (TCP) listen.
    #[must_use]
    pub fn gossip(mut self, addr: SocketAddr) -> Self {
        self.options.gossip = addr;
        self
    }

    /// Gossip addresses of nodes, `HOST:PORT` each. At least one: a router founds no cluster.
    #[must_use]
    pub fn join<S: Into<String>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.options.join = seeds.into_iter().map(Into::into).collect();
        self
    }

    /// Where the session key is in a request, in order of preference: `header:NAME`,
    /// `cookie:NAME`, `path:N`, `query:NAME`, `regex:RE`, `ip`. At least one.
    #[must_use]
    pub fn key<S: Into<String>>(mut self, sources: impl IntoIterator<Item = S>) -> Self {
        self.options.key = sources.into_iter().map(Into::into).collect();
        self
    }

    /// Whether clients see `stead-node`, `stead-shard` and `stead-epoch`. Default no.
    #[must_use]
    pub fn expose_headers(mut self, expose: bool) -> Self {
        self.options.expose_headers = expose;
        self
    }

    /// All options at once, as a file or flags give them. They take the place of those given
    /// before.
    #[must_use]
    pub fn options(mut self, options: RouterOptions) -> Self {
        self.options = options;
        self
    }

    /// A configuration that was checked before. It takes the place of all options.
    #[must_use]
    pub fn config(mut self, config: RouterConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Tuning of the membership protocol.
    #[must_use]
    pub fn swim(mut self, swim: SwimConfig) -> Self {
        self.swim = swim;
        self
    }

    /// The system beneath, for simulations.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Starts the router; clients are served from when it knows the cluster, see
    /// [`Router::ready`].
    ///
    /// # Errors
    /// [`RouterError`]; nothing is left running.
    pub async fn start(self) -> Result<Router, RouterError> {
        let config = match self.config {
            Some(config) => config,
            None => RouterConfig::try_from(&self.options)?,
        };
        Router::start(config, self.swim, self.platform).await
    }
}

/// A router takes no streams and no calls.
struct NoHooks;

impl Hooks for NoHooks {
    fn opened(&self, _peer: PeerInfo, stream: ServerStream) {
        drop(stream);
    }

    fn call(&self, _peer: PeerInfo, _kind: u8, _payload: Bytes, reply: Reply) {
        drop(reply);
    }
}

/// How much of the cluster a router knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Knowledge {
    /// The number of shards is known.
    has_params: bool,
    /// The logs of all live owners are.
    has_claims: bool,
}

/// A running router.
#[derive(Debug)]
pub struct Router {
    handle: Handle,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    proxy: JoinHandle<()>,
}

/// A cheap way to a running router, for everybody in the process.
#[derive(Clone, Debug)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    agent: Agent,
    links: Links,
    pins: PinDesk,
    listen: SocketAddr,
    view: Arc<OnceLock<watch::Receiver<Arc<View>>>>,
    knowledge: watch::Receiver<Knowledge>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Router {
    /// A builder with default options.
    #[must_use]
    pub fn builder() -> RouterBuilder {
        RouterBuilder::default()
    }

    async fn start(
        config: RouterConfig,
        swim: SwimConfig,
        platform: Platform,
    ) -> Result<Self, RouterError> {
        crate::metrics::describe();
        let listener = sock::tcp_listener(config.listen, "listen")?;
        let listen = listener.local_addr().unwrap_or(config.listen);
        let name =
            config.name.clone().unwrap_or_else(|| format!("router-{}", config.member.gossip));
        let process_config = ProcessConfig {
            member: config.member.clone(),
            name: name.clone(),
            role: Role::Router,
            weight: 0,
            zone: String::new(),
            http: config.member.reachable(listen),
            n_shards: 0,
            balance_permille: 0,
            data_dir: None,
            swim,
            platform: platform.clone(),
        };
        let process = process::start(process_config, Arc::new(NoHooks)).await?;
        let proxy_config =
            ProxyConfig { platform: platform.clone(), ..proxy_config(&config, &process) };
        proxy_config.check()?;
        process.agent.set_phase(Phase::Ready);
        let (knowledge, knowledge_out) = watch::channel(Knowledge::default());
        let (first, first_out) = tokio::sync::oneshot::channel();
        let view = Arc::new(OnceLock::new());
        let stop = process.stop.clone();
        let (pinning, pins) = Pinning::new(process.me.node, process.links.clone(), platform);
        let inner = Inner {
            name,
            agent: process.agent.clone(),
            links: process.links.clone(),
            pins,
            listen,
            view: Arc::clone(&view),
            knowledge: knowledge_out,
        };
        let driver = Driver {
            agent: process.agent,
            links: process.links.clone(),
            pinning,
            secret: process.secret,
            known: None,
            view,
            first: Some(first),
            knowledge,
            asked: BTreeMap::new(),
        };
        let front = Front {
            config: proxy_config,
            listener,
            links: process.links,
            agent: inner.agent.clone(),
            stop: stop.clone(),
        };
        let driver = driver.run(process.agent_events, process.mesh_events);
        let tasks = vec![tokio::spawn(driver)];
        let proxy = tokio::spawn(async move {
            if let Ok(views) = first_out.await {
                front.serve(views).await;
            }
        });
        Ok(Self { handle: Handle { inner: Arc::new(inner) }, stop, tasks, proxy })
    }

    /// A way to this router for the rest of the process.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until the router knows where every owner's shards are, or cannot.
    ///
    /// # Errors
    /// Why it never will.
    pub async fn ready(&self) -> Result<(), RouterError> {
        let mut knowledge = self.handle.inner.knowledge.clone();
        tokio::select! {
            biased;
            error = self.failed() => Err(error),
            ready = knowledge.wait_for(|knowledge| knowledge.has_claims) => {
                ready.map(|_| ()).map_err(|_| RouterError::GossipLost)
            }
        }
    }

    async fn failed(&self) -> RouterError {
        match self.handle.inner.agent.ended().await {
            End::Fatal(reason) => RouterError::Fatal(reason),
            End::Rejected { addr, why } => RouterError::Rejected { addr, why },
            End::Left | End::Stopped | End::Lost => RouterError::GossipLost,
        }
    }

    /// Runs until `shutdown`, then lets requests finish and leaves.
    ///
    /// # Errors
    /// When the cluster throws it out.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), RouterError> {
        let outcome = tokio::select! {
            biased;
            error = self.failed() => Err(error),
            () = shutdown => Ok(()),
        };
        let inner = Arc::clone(&self.handle.inner);
        inner.agent.set_phase(Phase::Leaving);
        self.stop.cancel();
        // A panic in the proxy was logged where it happened.
        let _ = self.proxy.await;
        if outcome.is_ok() {
            inner.agent.leave().await;
        }
        inner.agent.stop();
        if tokio::time::timeout(CLOSE_MAX, inner.links.close_all()).await.is_err() {
            tracing::debug!("links did not close in time");
        }
        for task in self.tasks {
            task.abort();
        }
        outcome
    }
}

fn proxy_config(config: &RouterConfig, process: &Process) -> ProxyConfig {
    let cookie_key = process.keys.as_ref().map(|keys| *keys.cookie_key().as_bytes());
    let is_local = config.listen.ip().is_loopback();
    let issues = matches!(config.no_key, OnNoKey::IssueCookie { .. });
    ProxyConfig {
        no_key: config.no_key.clone(),
        // Without a cluster key cookies are signed by nobody's secret: on loopback only.
        cookie_key: cookie_key.or_else(|| (issues && is_local).then_some([0; 32])),
        expose_headers: config.expose_headers,
        ..ProxyConfig::new(process.me.requests(), config.key.clone())
    }
}

/// The proxy, once there is something to route by.
struct Front {
    config: ProxyConfig,
    listener: TcpListener,
    links: Links,
    agent: Agent,
    stop: CancellationToken,
}

impl Front {
    async fn serve(self, views: watch::Receiver<Arc<View>>) {
        let agent = self.agent;
        let accuse = Arc::new(move |node: NodeId| agent.accuse(node));
        match Proxy::new(self.config, views, self.links, accuse) {
            Ok(proxy) => proxy.serve(self.listener, self.stop).await,
            Err(error) => tracing::error!(%error, "the proxy cannot start"),
        }
    }
}

/// What is known once the number of shards is.
struct Known {
    book: Book,
    views: watch::Sender<Arc<View>>,
}

struct Driver {
    agent: Agent,
    links: Links,
    pinning: Pinning,
    secret: stead_shared::hash::HashSecret,
    known: Option<Known>,
    view: Arc<OnceLock<watch::Receiver<Arc<View>>>>,
    first: Option<tokio::sync::oneshot::Sender<watch::Receiver<Arc<View>>>>,
    knowledge: watch::Sender<Knowledge>,
    asked: BTreeMap<NodeId, Instant>,
}

impl Driver {
    fn describe() {
        describe_gauge!(
            "stead_router_claims_known",
            "1 when the claims of all live owners are known, else 0"
        );
        describe_counter!(
            "stead_control_unexpected_total",
            "Messages about ownership that a router does not take"
        );
        describe_counter!(
            "stead_control_unsent_total",
            "Messages about ownership that found no open link; they are sent again"
        );
    }

    async fn run(
        mut self,
        mut agent_events: mpsc::Receiver<AgentEvent>,
        mut mesh_events: mpsc::Receiver<MeshEvent>,
    ) {
        Self::describe();
        crate::metrics::describe();
        let mut members = self.agent.members();
        let mut mesh = Vec::with_capacity(BATCH);
        let mut tick = tokio::time::interval(CLAIMS_EVERY);
        let mut pins_tick = tokio::time::interval(PINS_EVERY);
        let mut compare = tokio::time::interval(COMPARE_EVERY);
        loop {
            let mut changed = false;
            tokio::select! {
                biased;
                event = agent_events.recv() => if event.is_none() { return },
                seen = members.changed() => {
                    if seen.is_err() { return }
                    let members = Arc::clone(&members.borrow_and_update());
                    self.on_members(members);
                }
                n = mesh_events.recv_many(&mut mesh, BATCH) => {
                    if n == 0 { return }
                    for event in mesh.drain(..) {
                        changed |= self.on_mesh(event);
                    }
                }
                order = self.pinning.order() => self.pinning.carry_out(order),
                _ = tick.tick() => self.ask_missing(),
                _ = pins_tick.tick() => self.pinning.tick(),
                _ = compare.tick() => self.pinning.compare(),
            }
            if changed && let Some(known) = &self.known {
                let view = known.views.borrow().with_claims(known.book.table().clone());
                known.views.send_replace(Arc::new(view));
            }
            self.follow_pins();
            self.judge();
        }
    }

    fn follow_pins(&mut self) {
        let Some(known) = &self.known else { return };
        let view = self.pinning.follow(&known.views.borrow());
        if let Some(view) = view {
            known.views.send_replace(Arc::new(view));
        }
    }

    fn on_members(&mut self, members: Arc<Members>) {
        if let Some(known) = &mut self.known {
            let changed = known.book.set_live(|owner| members.is_live(owner));
            let mut view = known.views.borrow().with_members(members);
            if changed != Applied::Same {
                view = view.with_claims(known.book.table().clone());
            }
            known.views.send_replace(Arc::new(view));
            return;
        }
        let Some(shards) = shard_count_of(&members) else { return };
        let card = members.list.iter().filter(|m| m.is_live_node()).find_map(|m| m.card.as_deref());
        let balance_permille = card.map_or(1050, |card| card.balance_permille);
        let secret = self.secret.clone();
        let params = Arc::new(ClusterParams { shards, balance_permille, secret, replicas: 0 });
        let (views, views_out) = watch::channel(Arc::new(View::new(params, members)));
        self.known = Some(Known { book: Book::new(shards.get()), views });
        // Set once: from here on `known` is there.
        let _ = self.view.set(views_out.clone());
        if let Some(first) = self.first.take() {
            let _ = first.send(views_out);
        }
        self.ask_missing();
    }

    fn on_mesh(&mut self, event: MeshEvent) -> bool {
        match event {
            MeshEvent::Connected { peer, protocol: _ } => {
                self.pinning.connected(peer.node);
                self.ask(peer.node);
                false
            }
            MeshEvent::Disconnected(node) => {
                self.asked.remove(&node);
                false
            }
            MeshEvent::Note { from, kind, payload } => self.on_note(from, kind, &payload),
        }
    }

    /// Whether claims have changed.
    fn on_note(&mut self, from: NodeBoot, kind: u8, payload: &Bytes) -> bool {
        match kind {
            kind::CLAIMS => {
                let update = ClaimsUpdate::decode(payload);
                let (Ok(update), Some(known)) = (update, &mut self.known) else { return false };
                // A process that the members do not show may yet be sent away, for its name is
                // taken: its empty log must not replace the real one's.
                if !known.views.borrow().members.is_live(update.owner) {
                    if known.book.pos_of(update.owner) < update.pos {
                        known.book.doubt(update.owner);
                    }
                    return false;
                }
                match known.book.apply(&update) {
                    Applied::Changed(_) => true,
                    Applied::Same => false,
                    Applied::WantFull => {
                        self.ask(update.owner.node);
                        false
                    }
                }
            }
            kind::PINS => {
                self.pinning.take_note(from.node, payload);
                false
            }
            kind::CONTROL => {
                if let Ok(message) = Control::decode(payload) {
                    self.on_control(from, message);
                }
                false
            }
            _ => false,
        }
    }

    fn on_control(&self, from: NodeBoot, message: Control) {
        match message {
            Control::WhoHolds { token, members_digest, shards } => {
                let Some(known) = &self.known else {
                    // Nothing is known here, and that is an answer.
                    let (holdings, highest) = (Vec::new(), Vec::new());
                    let holds = Control::Holds { token, members_digest, holdings, highest };
                    self.note(from.node, kind::CONTROL, holds.encode());
                    return;
                };
                let view = Arc::clone(&known.views.borrow());
                let n_shards = view.params.shards.get();
                let (holdings, highest) =
                    who_holds(&known.book, n_shards, &shards, |owner| view.members.is_live(owner));
                let members_digest = view.members_digest;
                let holds = Control::Holds { token, members_digest, holdings, highest };
                self.note(from.node, kind::CONTROL, holds.encode());
            }
            Control::Relay { to, handoff, shards } => {
                self.note(to, kind::CONTROL, Control::Grant { handoff, shards }.encode());
            }
            Control::TakeOver { token, owner, pos, shards } => {
                self.on_take_over(from, (token, owner, pos), &shards);
            }
            // Who holds copies asks and tells nodes only.
            Control::Propose { .. }
            | Control::Takeable { .. }
            | Control::SeeClaims { .. }
            | Control::SeenClaims { .. }
            | Control::WhatSaved { .. }
            | Control::Saved { .. }
            | Control::Accept { .. }
            | Control::Reject { .. }
            | Control::Holds { .. }
            | Control::Prepare { .. }
            | Control::Prepared { .. }
            | Control::Declined { .. }
            | Control::CaughtUp { .. }
            | Control::Grant { .. }
            | Control::NoCopy { .. }
            | Control::Abort { .. }
            | Control::Served { .. } => counter!("stead_control_unexpected_total").increment(1),
        }
    }

    /// Tells who may take a dead owner's shards over what is known here of who has copies of them:
    /// nobody else may know it any more.
    fn on_take_over(
        &self,
        from: NodeBoot,
        (token, owner, pos): (Token, NodeBoot, u64),
        shards: &[ShardRange],
    ) {
        let (mut known_pos, mut holdings, mut highest) = (0, Vec::new(), Vec::new());
        if let Some(known) = &self.known {
            known_pos = known.book.pos_of(owner);
            if pos < known_pos
                && let Some(update) = known.book.log_of(owner)
            {
                self.note(from.node, kind::CLAIMS, update.encode());
            }
            let view = Arc::clone(&known.views.borrow());
            let n_shards = view.params.shards.get();
            (holdings, highest) =
                who_holds(&known.book, n_shards, shards, |owner| view.members.is_live(owner));
        }
        let answer = Control::Takeable { token, pos: known_pos, holdings, highest };
        self.note(from.node, kind::CONTROL, answer.encode());
    }

    /// Lost without a link, or when too much waits on it: whoever wants an answer asks again.
    fn note(&self, to: NodeId, kind: u8, payload: Bytes) {
        let sent = self.links.open_link(to).map(|link| link.notify(kind, payload));
        if !matches!(sent, Some(Ok(()))) {
            counter!("stead_control_unsent_total").increment(1);
        }
    }

    fn ask(&mut self, node: NodeId) {
        let now = Instant::now();
        if self.known.is_some() && self.asked.get(&node).is_none_or(|at| now - *at >= CLAIMS_EVERY)
        {
            self.asked.insert(node, now);
            self.note(node, kind::CLAIMS_WANTED, Bytes::new());
        }
    }

    fn missing(&self) -> Vec<NodeId> {
        let Some(known) = &self.known else { return Vec::new() };
        let view = known.views.borrow();
        let live = view.members.list.iter().filter(|member| member.is_live_node());
        live.filter(|member| !known.book.knows(member.node_boot())).map(|m| m.id).collect()
    }

    fn ask_missing(&mut self) {
        for node in self.missing() {
            self.ask(node);
        }
    }

    fn judge(&self) {
        let has_params = self.known.is_some();
        let has_claims = self.known.as_ref().is_some_and(|known| {
            let members = Arc::clone(&known.views.borrow().members);
            known.book.owners().any(|(owner, n)| n > 0 && members.is_live(owner))
        }) && self.missing().is_empty();
        let knowledge = Knowledge { has_params, has_claims };
        self.knowledge.send_if_modified(|old| {
            // Once it could route it stays ready: a member that joins is no reason to stop.
            let new = Knowledge { has_claims: knowledge.has_claims || old.has_claims, ..knowledge };
            std::mem::replace(old, new) != new
        });
        gauge!("stead_router_claims_known").set(if has_claims { 1.0 } else { 0.0 });
    }
}

impl Handle {
    /// The router's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where clients connect.
    #[must_use]
    pub fn listen_addr(&self) -> SocketAddr {
        self.inner.listen
    }

    /// Where gossip and the link listen, as others reach it.
    #[must_use]
    pub fn gossip_addr(&self) -> SocketAddr {
        self.inner.agent.gossip()
    }

    /// The cluster as the router sees it now; none until it knows the number of shards.
    #[must_use]
    pub fn view(&self) -> Option<Arc<View>> {
        self.inner.view.get().map(|views| Arc::clone(&views.borrow()))
    }

    /// What the router's admin interface answers; see [`stead_shared::net::admin`].
    #[must_use]
    pub fn admin(&self) -> ClusterAdmin {
        let handle = self.clone();
        ClusterAdmin {
            members: self.inner.agent.members(),
            view: Arc::new(move || handle.view()),
            links: self.inner.links.clone(),
            pins: self.inner.pins.clone(),
            local: Arc::new(self.clone()),
        }
    }
}

impl Local for Handle {
    fn name(&self) -> String {
        self.inner.name.clone()
    }

    fn ready(&self) -> Readiness {
        let knowledge = *self.inner.knowledge.borrow();
        if knowledge.has_claims {
            Readiness::Ready
        } else if knowledge.has_params {
            Readiness::NotReady("not all owners' claims are known yet".to_owned())
        } else {
            Readiness::NotReady("no node of the cluster is known yet".to_owned())
        }
    }

    fn moving(&self) -> u32 {
        0
    }

    fn drain(&self) -> bool {
        false
    }

    fn drain_report(&self) -> Option<DrainReport> {
        None
    }
}
