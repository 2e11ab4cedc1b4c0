//! Whole nodes in one process, over loopback sockets.

use std::net::SocketAddr;
use std::time::Duration;

use stead_node::{Handle, LeaveReport, Node, NodeError};
use stead_shared::config::NodeOptions;
use stead_shared::id::{NodeId, SessionKey, ShardId};
use stead_shared::view::View;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything may take before a test fails.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Shards of a test's cluster: few, so that tests are fast.
pub(crate) const N_SHARDS: u32 = 64;

/// A node that runs until it is told to leave.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    leave: oneshot::Sender<()>,
    ended: JoinHandle<Result<LeaveReport, NodeError>>,
}

impl Running {
    /// Hands everything off and leaves.
    pub(crate) async fn leave(self) -> LeaveReport {
        // A node that was drained leaves by itself.
        let _ = self.leave.send(());
        timeout(SOON, self.ended).await.expect("leaves in time").unwrap().unwrap()
    }
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn options(name: &str, join: Option<&Handle>) -> NodeOptions {
    NodeOptions {
        name: Some(name.to_owned()),
        gossip: anywhere(),
        http: anywhere(),
        join: join.map(|seed| seed.gossip_addr().to_string()).into_iter().collect(),
        shards: N_SHARDS,
        ..NodeOptions::default()
    }
}

/// Starts a node and waits until it is ready.
pub(crate) async fn start(name: &str, join: Option<&Handle>) -> Running {
    run(Node::builder().options(options(name, join)).start().await.unwrap()).await
}

/// Waits until a node is ready, and runs it.
pub(crate) async fn run(node: Node) -> Running {
    timeout(SOON, node.ready()).await.expect("ready in time").unwrap();
    let handle = node.handle();
    let (leave, asked) = oneshot::channel();
    let ended = tokio::spawn(node.run_until(async move {
        // Dropped at the end of the test: then the process ends soon.
        if asked.await.is_err() {
            std::future::pending::<()>().await;
        }
    }));
    Running { handle, leave, ended }
}

/// Two nodes that have settled.
pub(crate) async fn pair() -> (Running, Running) {
    let a = start("a", None).await;
    let b = start("b", Some(&a.handle)).await;
    settled(&[&a.handle, &b.handle]).await;
    (a, b)
}

/// Waits until the view of `handle` is as `wanted`.
pub(crate) async fn until(handle: &Handle, what: &str, wanted: impl Fn(&View) -> bool) {
    let mut views = handle.views();
    let found = timeout(SOON, views.wait_for(|view| wanted(view))).await;
    assert!(found.is_ok(), "{what}; the view of {}: {:#?}", handle.name(), summary(handle));
}

fn summary(handle: &Handle) -> Vec<(String, String, usize)> {
    let view = handle.view();
    let count =
        |node: NodeId| all_shards().filter(|shard| owner(&view, *shard) == Some(node)).count();
    view.members.list.iter().map(|m| (m.name(), m.state.to_string(), count(m.id))).collect()
}

pub(crate) fn all_shards() -> impl Iterator<Item = ShardId> {
    (0..N_SHARDS).map(ShardId)
}

pub(crate) fn owner(view: &View, shard: ShardId) -> Option<NodeId> {
    view.live_claim(shard).map(|(_, owner)| owner.node)
}

/// Waits until every node knows all others, and every shard is where it should be.
pub(crate) async fn settled(handles: &[&Handle]) {
    for handle in handles {
        until(handle, "shards should be where they should be", |view| {
            let ready = view.params.ring_nodes(&view.members).len();
            ready == handles.len()
                && all_shards().all(|shard| {
                    let target = view.targets.owner_of(shard);
                    target.is_some() && owner(view, shard) == target
                })
        })
        .await;
    }
}

pub(crate) fn key(text: &str) -> SessionKey {
    SessionKey::new(text.as_bytes().to_vec()).unwrap()
}

/// A session that `node` owns.
pub(crate) fn session_of(node: &Handle) -> String {
    let me = NodeId::of_name(node.name());
    (0..)
        .map(|n| format!("s{n}"))
        .find(|name| node.owner_of(&key(name)).is_some_and(|(owner, _)| owner == me))
        .unwrap()
}

/// An answer over plain HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Sends `request` as it is, and reads until the server closes.
pub(crate) async fn raw(to: SocketAddr, request: &[u8]) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let answer = timeout(SOON, exchange).await.expect("an answer in time");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// One request of plain HTTP.
pub(crate) async fn http(node: &Handle, method: &str, path: &str, body: &str) -> Answer {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    raw(node.http_addr(), request.as_bytes()).await
}
