//! All connections of a process: who is connected, by which of several connections, and who is
//! being dialled.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use dashmap::DashMap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::conn::Conn;
use super::io::{
    HelloFailure, hello_as_acceptor, hello_as_dialer, read_loop, say_close, watch_silence,
    write_loop,
};
use super::peer::Peer;
use super::socket::LinkSocket;
use super::stats::Meters;
use super::{
    CloseReason, ConnectionKind, DialError, Link, LinkConfig, LinkHandler, LinkStats, PeerInfo,
};
use crate::id::{BootId, NodeBoot, NodeId};
use crate::net::platform::Platform;
use crate::net::sock::{self, SockError, TcpListener, TcpStream};
use crate::wire::link::{Agreed, KEYS_MAX, LocalHello};

/// Connections of one kind between two processes. Two when both dial at once; a few more while
/// old ones that broke in silence wait to be noticed.
const PER_PEER_MAX: usize = 4;

/// Every link of this process. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

struct Shared {
    config: LinkConfig,
    platform: Platform,
    hello: ArcSwap<LocalHello>,
    handler: Arc<dyn LinkHandler>,
    peers: DashMap<NodeId, Arc<Peer>>,
    handshakes: Arc<Semaphore>,
    connections: AtomicUsize,
    stopping: AtomicBool,
    tasks: TaskTracker,
    meters: Arc<Meters>,
}

impl Links {
    /// No links yet.
    #[must_use]
    pub fn new(config: LinkConfig, handler: Arc<dyn LinkHandler>) -> Self {
        Self::on(Platform::system(), config, handler)
    }

    /// As [`new`](Self::new), with nonces from `platform`.
    #[must_use]
    pub fn on(platform: Platform, config: LinkConfig, handler: Arc<dyn LinkHandler>) -> Self {
        Self {
            shared: Arc::new(Shared {
                hello: ArcSwap::from_pointee(config.hello()),
                handler,
                peers: DashMap::new(),
                handshakes: Arc::new(Semaphore::new(config.limits.handshakes_max)),
                connections: AtomicUsize::new(0),
                stopping: AtomicBool::new(false),
                tasks: TaskTracker::new(),
                meters: Arc::new(Meters::new()),
                config,
                platform,
            }),
        }
    }

    /// Accepts peers until `shutdown` ends. Open connections stay; see
    /// [`close_all`](Self::close_all).
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, addr)) => self.admit(stream, addr),
                Err(error) => {
                    // Out of files, or a connection that was gone already: let others run first.
                    tracing::warn!(%error, "cannot accept a link");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Starts the hello of an accepted connection, unless there are too many.
    fn admit(&self, stream: TcpStream, addr: SocketAddr) {
        let permit = Arc::clone(&self.shared.handshakes).try_acquire_owned();
        let (Ok(permit), true) = (permit, self.has_room()) else {
            self.count(CloseReason::TooMany);
            return;
        };
        if sock::tune_link(&stream).is_err() {
            self.count(CloseReason::PeerGone);
            return;
        }
        let links = self.clone();
        self.shared.tasks.spawn(async move {
            let outcome = links.accept(stream, addr).await;
            drop(permit);
            if let Err(reason) = outcome {
                tracing::debug!(%addr, %reason, "a link was not accepted");
            }
        });
    }

    fn has_room(&self) -> bool {
        let open = self.shared.connections.load(Ordering::Relaxed);
        open < self.shared.config.limits.connections_max
    }

    fn count(&self, reason: CloseReason) {
        self.shared.meters.count_close(reason);
    }

    /// The acceptor's side of a connection that somebody else made.
    ///
    /// # Errors
    /// Why the hello failed; it is counted, and the peer was told unless it is a stranger.
    pub async fn accept<S: LinkSocket>(
        &self,
        mut socket: S,
        addr: SocketAddr,
    ) -> Result<Link, CloseReason> {
        let mut buffer = BytesMut::new();
        let hello = hello_as_acceptor(&mut socket, &mut buffer, self.hello(), self.nonce());
        let outcome = timeout(self.shared.config.limits.hello_timeout, hello).await;
        let agreed = match outcome {
            Ok(Ok(agreed)) if agreed.peer.who.node == self.shared.config.me.node => {
                Err(HelloFailure::Ours(CloseReason::SameName))
            }
            Ok(outcome) => outcome,
            Err(_) => Err(HelloFailure::Ours(CloseReason::HelloTimeout)),
        };
        match agreed {
            Ok(agreed) => self.adopt(socket, addr, buffer, &agreed, false).await,
            Err(HelloFailure::Theirs(reason)) => {
                self.count(reason);
                Err(reason)
            }
            Err(HelloFailure::Ours(reason)) => {
                self.count(reason);
                say_close(&mut socket, reason).await;
                Err(reason)
            }
        }
    }

    /// The link to a peer: an open one, whichever side made it, or a new one. Only one dial per
    /// peer is under way at a time, and all who wait share its outcome.
    ///
    /// # Errors
    /// Why there is none. [`DialError::Refused`] proves that nothing listens at `addr`.
    pub async fn to(
        &self,
        node: NodeId,
        boot: Option<BootId>,
        addr: SocketAddr,
    ) -> Result<Link, DialError> {
        self.connect(node, boot, addr, ConnectionKind::Main).await
    }

    /// The same for the connection that carries state in bulk.
    ///
    /// # Errors
    /// As for [`to`](Self::to).
    pub async fn bulk(
        &self,
        node: NodeId,
        boot: Option<BootId>,
        addr: SocketAddr,
    ) -> Result<Link, DialError> {
        self.connect(node, boot, addr, ConnectionKind::Bulk).await
    }

    async fn connect(
        &self,
        node: NodeId,
        boot: Option<BootId>,
        addr: SocketAddr,
        kind: ConnectionKind,
    ) -> Result<Link, DialError> {
        let peer = self.peer(node);
        if let Some(link) = peer.open(kind, boot) {
            return Ok(link);
        }
        let dialling = peer.dialling(kind);
        let before = dialling.last().0;
        let _turn = dialling.turn.lock().await;
        if let Some(link) = peer.open(kind, boot) {
            return Ok(link);
        }
        if let (count, Some(error)) = &*dialling.last()
            && *count > before
        {
            return Err(error.clone());
        }
        let outcome = self.dial_kind(addr, kind).await.and_then(|link| {
            let found = link.peer().node_boot();
            let is_meant = found.node == node && boot.is_none_or(|boot| found.boot == boot);
            if is_meant { Ok(link) } else { Err(DialError::WrongPeer { found }) }
        });
        let mut last = dialling.last();
        *last = (last.0 + 1, outcome.as_ref().err().cloned());
        outcome
    }

    /// Dials somebody whose name is not known: a seed. The connection joins the pool; when one
    /// to the same process is open already, that one is returned and the new one closed. One
    /// that was dialled at `addr` before is returned at once.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn dial(&self, addr: SocketAddr) -> Result<Link, DialError> {
        let known = |link: &Link| link.conn.dialer && link.peer().addr == addr && !link.is_closed();
        if let Some(link) = self.links_of(ConnectionKind::Main).into_iter().find(known) {
            return Ok(link);
        }
        self.dial_kind(addr, ConnectionKind::Main).await
    }

    async fn dial_kind(&self, addr: SocketAddr, kind: ConnectionKind) -> Result<Link, DialError> {
        if !self.has_room() {
            return Err(DialError::TooMany);
        }
        let limits = &self.shared.config.limits;
        let stream = sock::connect(addr, limits.connect_timeout).await.map_err(dial_error)?;
        sock::tune_link(&stream).map_err(|error| DialError::Io(error.to_string()))?;
        self.dial_over(stream, addr, kind).await
    }

    /// The dialer's side of a connection that somebody else made.
    ///
    /// # Errors
    /// Why the hello failed.
    pub async fn dial_over<S: LinkSocket>(
        &self,
        mut socket: S,
        addr: SocketAddr,
        kind: ConnectionKind,
    ) -> Result<Link, DialError> {
        let mut buffer = BytesMut::new();
        let hello = hello_as_dialer(&mut socket, &mut buffer, self.hello(), kind, self.nonce());
        let agreed = match timeout(self.shared.config.limits.hello_timeout, hello).await {
            Ok(Ok(agreed)) => agreed,
            Ok(Err(HelloFailure::Theirs(reason))) => {
                self.count(reason);
                return Err(DialError::Rejected(reason));
            }
            Ok(Err(HelloFailure::Ours(reason))) => {
                self.count(reason);
                say_close(&mut socket, reason).await;
                return Err(DialError::Rejected(reason));
            }
            Err(_) => {
                self.count(CloseReason::HelloTimeout);
                return Err(DialError::Timeout);
            }
        };
        let found = agreed.peer.who;
        if found.node == self.shared.config.me.node {
            self.count(CloseReason::SameName);
            return Err(DialError::WrongPeer { found });
        }
        if let Some(link) = self.peer(found.node).open(kind, Some(found.boot)) {
            self.count(CloseReason::Replaced);
            say_close(&mut socket, CloseReason::Replaced).await;
            return Ok(link);
        }
        let adopted = self.adopt(socket, addr, buffer, &agreed, true).await;
        adopted.map_err(|reason| match reason {
            CloseReason::Shutdown => DialError::Stopping,
            _ => DialError::Rejected(reason),
        })
    }

    fn hello(&self) -> LocalHello {
        LocalHello::clone(&self.shared.hello.load())
    }

    fn nonce(&self) -> [u8; 32] {
        self.shared.platform.random()
    }

    fn peer(&self, node: NodeId) -> Arc<Peer> {
        if let Some(peer) = self.shared.peers.get(&node) {
            return Arc::clone(&peer);
        }
        Arc::clone(&self.shared.peers.entry(node).or_default())
    }

    /// A connection has said hello: starts its tasks and puts it into the pool.
    async fn adopt<S: LinkSocket>(
        &self,
        mut socket: S,
        addr: SocketAddr,
        buffer: BytesMut,
        agreed: &Agreed,
        dialer: bool,
    ) -> Result<Link, CloseReason> {
        let hello = &agreed.peer;
        let peer = PeerInfo {
            node: hello.who.node,
            boot: hello.who.boot,
            role: hello.role,
            protocol: agreed.version,
            addr,
        };
        let windows = agreed.windows(&self.shared.hello.load());
        let conn = Conn::new(peer, dialer, agreed, windows, self.shared.config.limits);
        let link = Link { conn };
        if let Err(reason) = self.enter(&link) {
            say_close(&mut socket, reason).await;
            return Err(reason);
        }
        let (reader, writer) = socket.halves();
        self.spawn_tasks(&link, reader, writer, buffer);
        Ok(link)
    }

    /// Puts a link into the pool and out of it what it replaces.
    fn enter(&self, link: &Link) -> Result<(), CloseReason> {
        let peer = self.peer(link.peer().node);
        let boot = link.peer().boot;
        let mut links = peer.links(link.kind());
        // Looked at under the lock that `close_all` takes afterwards.
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Err(self.refused(CloseReason::Shutdown));
        }
        links.retain(|known| !known.is_closed());
        if links.iter().any(|known| known.peer().boot > boot) {
            return Err(self.refused(CloseReason::NewerBoot));
        }
        let (mut kept, older): (Vec<_>, Vec<_>) =
            links.drain(..).partition(|known| known.peer().boot == boot);
        kept.insert(0, link.clone());
        // Both ends prefer what the lower node id dialled, the newest first, so that requests
        // are not spread over two connections when both dialled at once.
        kept.sort_by_key(|link| !self.by_the_lower(link));
        let surplus = kept.split_off(kept.len().min(PER_PEER_MAX));
        *links = kept;
        drop(links);
        for old in older {
            old.close(CloseReason::NewerBoot);
        }
        for old in surplus {
            old.close(CloseReason::Replaced);
        }
        Ok(())
    }

    fn refused(&self, reason: CloseReason) -> CloseReason {
        self.count(reason);
        reason
    }

    fn by_the_lower(&self, link: &Link) -> bool {
        link.conn.dialer == (self.shared.config.me.node < link.peer().node)
    }

    fn spawn_tasks<R, W>(&self, link: &Link, reader: R, writer: W, buffer: BytesMut)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        shared.connections.fetch_add(1, Ordering::Relaxed);
        shared.meters.connections.increment(1.0);
        let tells = link.kind() == ConnectionKind::Main;
        if tells {
            shared.handler.connected(link.clone());
        }
        let (conn, meters) = (Arc::clone(&link.conn), Arc::clone(&shared.meters));
        self.shared.tasks.spawn(async move {
            let limits = conn.limits;
            write_loop(&conn, &meters, &limits, writer).await;
        });
        let conn = Arc::clone(&link.conn);
        self.shared.tasks.spawn(async move {
            let handler = Arc::clone(&shared.handler);
            let reason = tokio::select! {
                biased;
                reason = read_loop(&conn, &*handler, reader, buffer) => reason,
                () = watch_silence(&conn, &conn.limits) => CloseReason::Silent,
                () = conn.gone.cancelled() => CloseReason::Shutdown,
            };
            conn.close(reason);
            let reason = conn.closed().unwrap_or(reason);
            shared.leave(&conn, reason);
            if tells {
                shared.handler.closed(conn.peer, reason);
            }
        });
    }

    /// An open connection for requests and control, if there is one.
    #[must_use]
    pub fn open_link(&self, node: NodeId) -> Option<Link> {
        self.shared.peers.get(&node)?.open(ConnectionKind::Main, None)
    }

    /// Everybody with an open connection for requests and control.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerInfo> {
        let open = self
            .shared
            .peers
            .iter()
            .filter_map(|peer| peer.open(ConnectionKind::Main, None).map(|link| link.peer()));
        let mut peers: Vec<_> = open.collect();
        peers.sort_by_key(|peer| peer.node);
        peers
    }

    /// Closes the links to starts of a node before `boot`: they are dead.
    pub fn forget_older(&self, newest: NodeBoot) {
        for link in self.all_links() {
            if link.peer().node == newest.node && link.peer().boot < newest.boot {
                link.close(CloseReason::NewerBoot);
            }
        }
    }

    /// Who this process is.
    #[must_use]
    pub fn me(&self) -> NodeBoot {
        self.shared.hello.load().who
    }

    /// Another boot id of this process from now on. Closes the links made under the one so far.
    pub fn set_boot(&self, boot: BootId) {
        self.shared.hello.rcu(|hello| {
            let who = NodeBoot { boot, ..hello.who };
            LocalHello { who, ..LocalHello::clone(hello) }
        });
        for link in self.all_links() {
            link.close(CloseReason::NewerBoot);
        }
    }

    /// Other link keys for hellos from now on, the primary one first. Open links stay.
    pub fn set_keys(&self, keys: &[[u8; 32]]) {
        self.shared.hello.rcu(|hello| {
            let keys = keys.iter().copied().take(KEYS_MAX).collect();
            LocalHello { keys, ..LocalHello::clone(hello) }
        });
    }

    /// Closes every link and refuses new ones; waits until all are gone. What was queued before
    /// is still sent, if the peers take it within [`goodbye`](super::LinkLimits::goodbye).
    pub async fn close_all(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let links = self.all_links();
        let flush = async {
            for link in &links {
                link.flush().await;
            }
        };
        // Who takes nothing is not waited for.
        let _ = timeout(self.shared.config.limits.goodbye, flush).await;
        for link in links {
            link.close(CloseReason::Shutdown);
        }
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn all_links(&self) -> Vec<Link> {
        let mut all = self.links_of(ConnectionKind::Main);
        all.append(&mut self.links_of(ConnectionKind::Bulk));
        all
    }

    /// In the order of their nodes, for the map has none that is the same in the next run.
    fn links_of(&self, kind: ConnectionKind) -> Vec<Link> {
        let mut links = Vec::new();
        for peer in &self.shared.peers {
            links.extend(peer.links(kind).iter().cloned());
        }
        links.sort_by_key(|link| link.peer().node);
        links
    }

    /// The sums over all open connections.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        let mut sum = LinkStats::default();
        for link in self.all_links() {
            sum.add(link.stats());
        }
        sum
    }

    /// Connections that ended, or never came to be, for this reason.
    #[must_use]
    pub fn closed_total(&self, reason: CloseReason) -> u64 {
        self.shared.meters.closed(reason)
    }
}

impl Shared {
    /// A connection ended.
    fn leave(&self, conn: &Arc<Conn>, reason: CloseReason) {
        self.meters.count_close(reason);
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.meters.connections.decrement(1.0);
        if let Some(peer) = self.peers.get(&conn.peer.node) {
            peer.links(conn.kind).retain(|link| !Arc::ptr_eq(&link.conn, conn));
        }
    }
}

/// How long to wait before accepting again after an error.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

fn dial_error(error: SockError) -> DialError {
    match error {
        SockError::Refused { .. } => DialError::Refused,
        SockError::Timeout { .. } => DialError::Timeout,
        other => DialError::Io(other.to_string()),
    }
}
