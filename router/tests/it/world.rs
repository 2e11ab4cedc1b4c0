//! A proxy, its clients and its owners.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, request};
use stead_router::{Proxy, ProxyConfig};
use stead_shared::claims::{Applied, Book, ClaimLog};
use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{BootId, ClusterId, Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::member::{Member, MemberState, Members, Phase, Role};
use stead_shared::net::link::{
    CloseReason, Link, LinkConfig, LinkHandler, LinkLimits, Links, PeerInfo, RecvHalf, Reply,
    ServerSend, ServerStream, StreamEvent,
};
use stead_shared::net::sock;
use stead_shared::net::watch;
use stead_shared::refusal::{Claim, Refusal};
use stead_shared::session_key::parse_list;
use stead_shared::view::{ClusterParams, View};
use stead_shared::wire::http::{
    RequestMeta, ResponseMeta, decode_request, encode_refusal, encode_response,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// One shard, so that every key is in it.
pub(crate) const SHARD: ShardId = ShardId(0);

/// Fails the test instead of hanging it.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.expect("happens soon")
}

struct Tell {
    streams: mpsc::UnboundedSender<ServerStream>,
}

impl LinkHandler for Tell {
    fn opened(&self, _: PeerInfo, stream: ServerStream) {
        let _ = self.streams.send(stream);
    }

    fn call(&self, _: PeerInfo, _: u8, _: Bytes, _: Reply) {}

    fn notify(&self, _: PeerInfo, _: u8, _: Bytes) {}

    fn connected(&self, _: Link) {}

    fn closed(&self, _: PeerInfo, _: CloseReason) {}
}

fn links(name: &str, role: Role) -> (Links, mpsc::UnboundedReceiver<ServerStream>) {
    let (sender, streams) = mpsc::unbounded_channel();
    let config = LinkConfig {
        me: boot(name),
        role,
        cluster: ClusterId::of_name("test"),
        keys: vec![],
        limits: LinkLimits::default(),
    };
    (Links::new(config, Arc::new(Tell { streams: sender })), streams)
}

fn boot(name: &str) -> NodeBoot {
    NodeBoot { node: NodeId::of_name(name), boot: BootId(1) }
}

fn any_port() -> sock::TcpListener {
    sock::tcp_listener("127.0.0.1:0".parse().unwrap(), "test").unwrap()
}

/// A node, played by the test.
pub(crate) struct Owner {
    pub(crate) id: NodeBoot,
    pub(crate) links: Links,
    addr: SocketAddr,
    streams: mpsc::UnboundedReceiver<ServerStream>,
    listening: JoinHandle<()>,
    log: ClaimLog,
}

impl Owner {
    fn start(name: &str) -> Self {
        let (links, streams) = links(name, Role::Node);
        let listener = any_port();
        let addr = listener.local_addr().unwrap();
        let serving = links.clone();
        let listening =
            tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
        Self { id: boot(name), links, addr, streams, listening, log: ClaimLog::new(boot(name)) }
    }

    /// The next request that reaches this owner.
    pub(crate) async fn asked(&mut self) -> Asked {
        let stream = soon(self.streams.recv()).await.expect("the links are open");
        let (meta, parts) = decode_request(stream.head).unwrap();
        Asked { meta, parts, recv: stream.recv, send: stream.send }
    }

    /// Lets `serve` answer every request from now on.
    pub(crate) fn serve<F>(&mut self, serve: impl Fn(Asked) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (_, none) = mpsc::unbounded_channel();
        let mut streams = std::mem::replace(&mut self.streams, none);
        tokio::spawn(async move {
            while let Some(stream) = streams.recv().await {
                let (meta, parts) = decode_request(stream.head).unwrap();
                let asked = Asked { meta, parts, recv: stream.recv, send: stream.send };
                tokio::spawn(serve(asked));
            }
        });
    }

    /// Whether no request waits for its answer here.
    pub(crate) fn is_left_alone(&mut self) -> bool {
        self.streams.try_recv().is_err()
    }

    /// Dies: refuses connections and breaks those it has.
    pub(crate) async fn die(&mut self) {
        self.listening.abort();
        let _cancelled = (&mut self.listening).await;
        soon(self.links.close_all()).await;
    }

    pub(crate) fn epoch(&self, counter: u64) -> Epoch {
        Epoch { counter, node: self.id.node }
    }

    pub(crate) fn claim(&self, counter: u64) -> Option<Claim> {
        Some(Claim { epoch: self.epoch(counter) })
    }
}

/// A request at its owner.
pub(crate) struct Asked {
    pub(crate) meta: RequestMeta,
    pub(crate) parts: request::Parts,
    pub(crate) recv: RecvHalf,
    pub(crate) send: ServerSend,
}

impl Asked {
    pub(crate) fn head(&self, response: Response<()>, length: Option<u64>) -> Bytes {
        self.head_at(self.meta.epoch.expect("routers name the epoch"), response, length)
    }

    fn head_at(&self, epoch: Epoch, response: Response<()>, length: Option<u64>) -> Bytes {
        let meta = ResponseMeta { shard: self.meta.shard, epoch, length, pressure: 0 };
        encode_response(&meta, &response.into_parts().0).unwrap()
    }

    /// Answers 200 with this text.
    pub(crate) async fn answer(self, text: &str) {
        self.respond(Response::new(()), text).await;
    }

    pub(crate) async fn respond(mut self, response: Response<()>, text: &str) {
        let head = self.head(response, Some(text.len() as u64));
        let body = Bytes::copy_from_slice(text.as_bytes());
        soon(self.send.head_and_first(head, Some(body), true)).await.unwrap();
    }

    /// Answers as if in another epoch.
    pub(crate) async fn answer_at(mut self, epoch: Epoch, text: &str) {
        let head = self.head_at(epoch, Response::new(()), Some(text.len() as u64));
        let body = Bytes::copy_from_slice(text.as_bytes());
        soon(self.send.head_and_first(head, Some(body), true)).await.unwrap();
    }

    pub(crate) fn refuse(self, refusal: &Refusal) {
        assert!(self.send.refuse(encode_refusal(refusal)));
    }

    /// The whole body.
    pub(crate) async fn body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            match soon(self.recv.next()).await {
                Some(StreamEvent::Data(bytes)) => body.extend_from_slice(&bytes),
                Some(StreamEvent::End(_)) | None => return body,
                Some(other) => panic!("in a body: {other:?}"),
            }
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A proxy and its owners.
pub(crate) struct World {
    pub(crate) owners: Vec<Owner>,
    pub(crate) addr: SocketAddr,
    proxy: Proxy,
    /// The proxy's links.
    pub(crate) links: Links,
    pub(crate) accused: mpsc::UnboundedReceiver<NodeId>,
    shutdown: CancellationToken,
    pub(crate) served: JoinHandle<()>,
    views: watch::Sender<Arc<View>>,
    book: Book,
}

impl World {
    /// Two owners of which the first one owns the shard, and a proxy with `path:2`.
    pub(crate) fn new() -> Self {
        Self::with("path:2", |_| ())
    }

    pub(crate) fn with(keys: &str, change: impl FnOnce(&mut ProxyConfig)) -> Self {
        let owners = vec![Owner::start("a"), Owner::start("b")];
        let shards = ShardCount::new(1).unwrap();
        let params = ClusterParams {
            shards,
            balance_permille: 1050,
            secret: HashSecret::public(),
            replicas: 0,
        };
        let view = View::new(Arc::new(params), Arc::new(members(&owners)));
        let (views, receiver) = watch::channel(Arc::new(view));
        let (links, _streams) = links("router", Role::Router);
        let (accuse, accused) = mpsc::unbounded_channel();
        let mut config = ProxyConfig::new(BootId(1), parse_list(keys).unwrap());
        change(&mut config);
        let accuse = Arc::new(move |node| accuse.send(node).expect("the test listens"));
        let proxy = Proxy::new(config, receiver, links.clone(), accuse).unwrap();
        let listener = any_port();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(proxy.serve(listener, shutdown.clone()));
        let book = Book::new(1);
        let mut world = Self { owners, addr, proxy, links, accused, shutdown, served, views, book };
        world.claim(0, 1);
        world
    }

    /// Owner `owner` claims the shard at `counter`.
    pub(crate) fn claim(&mut self, owner: usize, counter: u64) {
        let log = &mut self.owners[owner].log;
        log.claim(SHARD, counter);
        let _all_is_sent = log.commit();
        assert!(matches!(self.book.apply(&log.full()), Applied::Changed(_)));
        let table = self.book.table().clone();
        self.views.send_modify(|view| *view = Arc::new(view.with_claims(table)));
    }

    /// Waits until this many requests are parked.
    pub(crate) async fn parked(&self, n: usize) {
        soon(async {
            while self.proxy.parked() != n {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Tells the proxy to stop.
    pub(crate) fn stop(&self) {
        self.shutdown.cancel();
    }

    pub(crate) async fn client(&self) -> Client {
        Client { stream: soon(TcpStream::connect(self.addr)).await.unwrap(), rest: Vec::new() }
    }

    /// A client that has sent this, with CR LF for each line end.
    pub(crate) async fn client_with(&self, request: &str) -> Client {
        let mut client = self.client().await;
        client.send(&request.replace('\n', "\r\n")).await;
        client
    }
}

fn members(owners: &[Owner]) -> Members {
    let member = |who: NodeBoot, role, gossip| Member {
        id: who.node,
        boot: who.boot,
        role,
        phase: Phase::Ready,
        state: MemberState::Ready,
        weight: 1,
        zone: 0,
        gossip,
        in_ring: role == Role::Node,
        held_down: false,
        card: None,
    };
    let mut list: Vec<Member> =
        owners.iter().map(|owner| member(owner.id, Role::Node, owner.addr)).collect();
    list.push(member(boot("router"), Role::Router, "127.0.0.1:1".parse().unwrap()));
    list.sort_by_key(|member| member.id);
    Members { me: boot("router").node, list }
}

/// A client's connection, byte for byte.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    rest: Vec<u8>,
}

/// An answer as the client sees it.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn document(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Bytes until there are at least `n`.
    pub(crate) async fn bytes(&mut self, n: usize) -> Vec<u8> {
        while self.rest.len() < n {
            assert!(self.more().await, "closed after {:?}", String::from_utf8_lossy(&self.rest));
        }
        self.rest.drain(..n).collect()
    }

    /// False at the end.
    async fn more(&mut self) -> bool {
        soon(self.stream.read_buf(&mut self.rest)).await.is_ok_and(|n| n > 0)
    }

    pub(crate) async fn is_closed(&mut self) -> bool {
        !self.more().await
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.rest.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.bytes(end + 2).await;
                return String::from_utf8(line[..end].to_vec()).unwrap();
            }
            assert!(self.more().await, "closed in {:?}", String::from_utf8_lossy(&self.rest));
        }
    }

    /// An answer's head.
    pub(crate) async fn head(&mut self) -> Got {
        let first = self.line().await;
        let status = first.split(' ').nth(1).expect("a status line").parse().unwrap();
        let mut headers = HeaderMap::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(": ") else { break };
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        Got { status, headers, body: Vec::new() }
    }

    /// One chunk; empty for the last one.
    pub(crate) async fn chunk(&mut self) -> Vec<u8> {
        let size = usize::from_str_radix(&self.line().await, 16).unwrap();
        let mut chunk = self.bytes(size + 2).await;
        chunk.truncate(size);
        chunk
    }

    /// A whole answer.
    pub(crate) async fn got(&mut self) -> Got {
        let mut got = self.head().await;
        if let Some(length) = got.header("content-length") {
            let length = length.parse().unwrap();
            got.body = self.bytes(length).await;
        } else if got.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break;
                }
                got.body.extend(chunk);
            }
        }
        got
    }
}
