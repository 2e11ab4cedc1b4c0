//! Hosts with links between them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use stead_node::{
    Body, CopyStats, Gate, Host, HostConfig, ReplicaReport, Service, Session, SharedService,
};
use stead_shared::control::ShardEpoch;
use stead_shared::id::{BootId, ClusterId, Epoch, NodeBoot, NodeId, Version};
use stead_shared::member::Role;
use stead_shared::net::link::{
    CloseReason, Link, LinkConfig, LinkHandler, LinkLimits, Links, PeerInfo, Reply, ServerStream,
};
use stead_shared::net::sock;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::common::{SHARD, key};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Adds to a counter of the session, and keeps the body as its value.
#[derive(Clone)]
pub(crate) struct Keeping;

impl Service for Keeping {
    async fn call(&self, session: Session, request: Request<Body>) -> Response<Body> {
        let body = request.into_body().collect_up_to(1 << 20).await.unwrap();
        match &body[..] {
            b"read" => {}
            b"delete" => session.delete().unwrap(),
            b"brief" => {
                session.put_bytes(&body).unwrap();
                session.expire_in(Duration::from_micros(1)).unwrap();
            }
            _ => {
                session.add("n", 1).unwrap();
                session.put_bytes(&body).unwrap();
            }
        }
        let n = session.counter("n").unwrap().unwrap_or(0);
        Response::new(n.to_string().into())
    }

    fn is_read(&self, head: &http::request::Parts) -> bool {
        head.uri.path() == "/read"
    }

    fn has_hooks(&self) -> bool {
        false
    }
}

/// A host with its links.
pub(crate) struct Peer {
    pub(crate) host: Host,
    pub(crate) links: Links,
    pub(crate) me: NodeBoot,
    pub(crate) addr: SocketAddr,
    pub(crate) reports: mpsc::UnboundedReceiver<ReplicaReport>,
    pub(crate) is_deaf: Arc<AtomicBool>,
}

struct Streams {
    host: Host,
    is_deaf: Arc<AtomicBool>,
    /// What is not listened to.
    held: Mutex<Vec<ServerStream>>,
}

impl LinkHandler for Streams {
    fn opened(&self, _peer: PeerInfo, stream: ServerStream) {
        if self.is_deaf.load(Ordering::Relaxed) {
            self.held.lock().unwrap().push(stream);
            return;
        }
        self.held.lock().unwrap().clear();
        let host = self.host.clone();
        tokio::spawn(async move { host.follow(stream).await });
    }

    fn call(&self, _peer: PeerInfo, _kind: u8, _payload: Bytes, _reply: Reply) {}
    fn notify(&self, _peer: PeerInfo, _kind: u8, _payload: Bytes) {}
    fn connected(&self, _link: Link) {}
    fn closed(&self, _peer: PeerInfo, _reason: CloseReason) {}
}

impl Peer {
    pub(crate) fn start(name: &str) -> Self {
        Self::start_with(name, HostConfig::default())
    }

    pub(crate) fn start_with(name: &str, config: HostConfig) -> Self {
        let me = NodeBoot { node: NodeId::of_name(name), boot: BootId(1) };
        let host = Host::new(config, SharedService::new(Keeping));
        let is_deaf = Arc::new(AtomicBool::new(false));
        let streams =
            Streams { host: host.clone(), is_deaf: Arc::clone(&is_deaf), held: Mutex::default() };
        let config = LinkConfig {
            me,
            role: Role::Node,
            cluster: ClusterId::of_name("test"),
            keys: Vec::new(),
            limits: LinkLimits::default(),
        };
        let links = Links::new(config, Arc::new(streams));
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = sock::tcp_listener(anywhere, "test").unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = links.clone();
        tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
        let (reports_in, reports) = mpsc::unbounded_channel();
        host.replicate(links.clone(), reports_in);
        Self { host, links, me, addr, reports, is_deaf }
    }

    pub(crate) fn epoch(&self, counter: u64) -> Epoch {
        Epoch { counter, node: self.me.node }
    }

    pub(crate) fn at(&self, counter: u64) -> ShardEpoch {
        ShardEpoch { shard: SHARD, epoch: self.epoch(counter) }
    }

    pub(crate) async fn report(&mut self) -> ReplicaReport {
        timeout(SOON, self.reports.recv()).await.expect("soon").unwrap()
    }

    /// Owns the shard from now on.
    pub(crate) fn owns(&self, counter: u64) {
        self.host.activate_empty(SHARD, self.epoch(counter));
    }

    /// Fills a copy at `to`, and makes it a member.
    pub(crate) async fn fill(&mut self, to: &mut Self) {
        let at = self.served();
        self.host.begin_fill(to.me, to.addr, vec![at]);
        assert_eq!(self.report().await, ReplicaReport::Filled { to: to.me, shards: vec![at] });
        let (owner, shards) = (self.me, vec![at]);
        assert_eq!(to.report().await, ReplicaReport::CopyBegun { owner, shards });
        let (owner, shards) = (self.me, vec![at]);
        assert_eq!(to.report().await, ReplicaReport::CopyComplete { owner, shards });
        self.host.set_followers(SHARD, &[to.me]);
    }

    pub(crate) fn served(&self) -> ShardEpoch {
        let Some(Gate::Serving(epoch)) = self.host.gate(SHARD) else { panic!("not served") };
        ShardEpoch { shard: SHARD, epoch }
    }

    pub(crate) fn copy(&self) -> CopyStats {
        let copies = self.host.copies();
        assert_eq!(copies.len(), 1, "{copies:?}");
        copies[0]
    }

    /// Takes in nothing that comes from now on.
    pub(crate) async fn be_deaf(&self, of: &Self) {
        self.is_deaf.store(true, Ordering::Relaxed);
        of.cut(self).await;
    }

    /// Breaks the connection to a peer.
    pub(crate) async fn cut(&self, to: &Self) {
        let link = self.links.bulk(to.me.node, None, to.addr).await.unwrap();
        link.close(CloseReason::Shutdown);
    }
}

pub(crate) type Contents = BTreeMap<String, (Option<Bytes>, Option<i64>, Option<Version>)>;

/// What a host has under these names.
pub(crate) async fn contents(host: &Host, names: &[String]) -> Contents {
    let mut contents = BTreeMap::new();
    for name in names {
        let session = host.session(SHARD, key(name)).unwrap();
        let read =
            |session: &Session| Ok((session.bytes()?, session.counter("n")?, session.version()?));
        let read = session.turn(read, |_| ()).await.unwrap();
        contents.insert(name.clone(), read);
    }
    contents
}

pub(crate) fn names(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("s{n}")).collect()
}
