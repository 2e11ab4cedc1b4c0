//! A router and three nodes in one process: a cluster for tests of your own.
//!
//! ```text
//! cargo run --example embedded_cluster
//! ```
//!
//! Everything listens on 127.0.0.1 and a port that is free, so that many such tests can run side
//! by side. The example counts on some sessions through the router, drains a node while it goes
//! on counting, and fails when a count is lost, doubled or refused. Put your own service in with
//! `.service(…)` where [`Cluster::start`] builds its nodes; without one they run the built-in
//! session store.
#![expect(clippy::print_stdout, reason = "a program that prints a summary")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use stead::{Handle, LeaveReport, Node, NodeError, Router, RouterError, RouterHandle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use client::{Client, Error};

mod client;

/// Few shards make a small cluster quick to start; production wants 100 or more for each node.
const N_SHARDS: u32 = 256;
const N_SESSIONS: u64 = 100;
/// How long all of it may take.
const IN_TIME: Duration = Duration::from_secs(60);

/// A node or a router on its own task, until it is told to leave.
struct Running<H, R> {
    handle: H,
    leave: oneshot::Sender<()>,
    ended: JoinHandle<R>,
}

type RunningNode = Running<Handle, Result<LeaveReport, NodeError>>;
type RunningRouter = Running<RouterHandle, Result<(), RouterError>>;

impl RunningNode {
    fn run(node: Node) -> Self {
        let (handle, (leave, told)) = (node.handle(), oneshot::channel());
        let ended = tokio::spawn(node.run_until(async { told.await.unwrap_or_default() }));
        Self { handle, leave, ended }
    }
}

impl RunningRouter {
    fn run(router: Router) -> Self {
        let (handle, (leave, told)) = (router.handle(), oneshot::channel());
        let ended = tokio::spawn(router.run_until(async { told.await.unwrap_or_default() }));
        Self { handle, leave, ended }
    }
}

impl<H, R> Running<H, R> {
    /// Hands everything off, as with SIGTERM, and says what came of it.
    async fn leave(self) -> Result<R, Error> {
        // It may have ended by itself.
        let _ = self.leave.send(());
        Ok(self.ended.await?)
    }
}

struct Cluster {
    router: RunningRouter,
    nodes: Vec<RunningNode>,
}

impl Cluster {
    /// Nodes `n1`, `n2`, … and a router, when every shard is where it belongs.
    async fn start(n_nodes: usize) -> Result<Self, Error> {
        let anywhere: SocketAddr = "127.0.0.1:0".parse()?;
        let mut nodes: Vec<RunningNode> = Vec::with_capacity(n_nodes);
        for n in 1..=n_nodes {
            // The first founds the cluster, the others join it.
            let seed = nodes.first().map(|founder| founder.handle.gossip_addr().to_string());
            let node = Node::builder().name(format!("n{n}")).gossip(anywhere).http(anywhere);
            let node = node.join(seed).shards(N_SHARDS).start().await?;
            node.ready().await?;
            nodes.push(RunningNode::run(node));
        }
        for node in &nodes {
            node.handle.settled(n_nodes).await?;
        }
        let seeds = nodes.iter().map(|node| node.handle.gossip_addr().to_string());
        let router = Router::builder().listen(anywhere).gossip(anywhere).join(seeds);
        let router = router.key(["path:2"]).expose_headers(true).start().await?;
        router.ready().await?;
        Ok(Self { router: RunningRouter::run(router), nodes })
    }

    async fn stop(self) -> Result<(), Error> {
        self.router.leave().await??;
        for node in self.nodes {
            node.leave().await??;
        }
        Ok(())
    }
}

/// What the built-in counters answer.
#[derive(Deserialize)]
struct Counted {
    value: u64,
}

/// Counts once on every session, and tells how many of them each node owns.
///
/// Fails when a session does not answer `expected`.
async fn count(client: &mut Client, expected: u64) -> Result<BTreeMap<String, u64>, Error> {
    let mut by_node = BTreeMap::new();
    for n in 0..N_SESSIONS {
        let path = format!("/sessions/s{n}/counters/visits");
        let answer = client.ask(Method::POST, &path, "").await?;
        if !answer.status().is_success() {
            return Err(format!("{path}: {}", String::from_utf8_lossy(answer.body())).into());
        }
        let Counted { value } = serde_json::from_slice(answer.body())?;
        if value != expected {
            return Err(format!("{path}: {value} where {expected} was expected").into());
        }
        let node = answer.headers().get("stead-node").ok_or("an answer from no node")?;
        *by_node.entry(node.to_str()?.to_owned()).or_default() += 1;
    }
    Ok(by_node)
}

async fn run() -> Result<(), Error> {
    let mut cluster = Cluster::start(3).await?;
    let mut client = Client::connect(cluster.router.handle.listen_addr()).await?;
    println!("three nodes:   sessions by node {:?}", count(&mut client, 1).await?);

    let mut n_rounds = 1;
    let leaving = cluster.nodes.remove(1);
    let leaving = tokio::spawn(leaving.leave());
    while !leaving.is_finished() {
        n_rounds += 1;
        count(&mut client, n_rounds).await?;
    }
    let report = leaving.await???;
    if report.forced || report.sessions_left != 0 {
        return Err(format!("the drain did not come to its end: {report:?}").into());
    }
    println!("n2 has left:   {} rounds were counted meanwhile", n_rounds - 1);

    n_rounds += 1;
    let by_node = count(&mut client, n_rounds).await?;
    if by_node.contains_key("n2") {
        return Err("n2 answers after it has left".into());
    }
    println!("two nodes:     sessions by node {by_node:?}");
    let n_counts = n_rounds * N_SESSIONS;
    println!("nothing lost:  {n_counts} counts on {N_SESSIONS} sessions, each followed the last");
    cluster.stop().await
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    timeout(IN_TIME, run()).await?
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_is_lost_while_a_node_drains() {
        super::main().unwrap();
    }
}
