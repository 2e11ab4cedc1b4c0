//! A cluster of real processes for the examples: nodes and a router on loopback.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Client, Error};

pub(crate) const IN_TIME: Duration = Duration::from_secs(600);
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);
const FILLERS: u64 = 32;

/// A process. Dropping it is `kill -9`.
pub(crate) struct Proc {
    child: Child,
    pub(crate) gossip: SocketAddr,
    pub(crate) http: SocketAddr,
    admin: SocketAddr,
}

fn free_addr() -> Result<SocketAddr, Error> {
    loop {
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        if UdpSocket::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
}

impl Proc {
    fn start(stead: &str, words: &[&str], http_flag: &str, join: &str) -> Result<Self, Error> {
        let (gossip, http, admin) = (free_addr()?, free_addr()?, free_addr()?);
        let mut command = Command::new(stead);
        command.args(words).args(["--log", "warn", "--exit-with-parent"]);
        for (flag, addr) in [("--gossip", gossip), (http_flag, http), ("--admin", admin)] {
            command.args([flag, &addr.to_string()]);
        }
        if !join.is_empty() {
            command.args(["--join", join]);
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        Ok(Self { child, gossip, http, admin })
    }

    /// A node with these options; `join` may be empty.
    pub(crate) fn node(
        stead: &str,
        name: &str,
        options: &[&str],
        join: &str,
    ) -> Result<Self, Error> {
        let words = [&["node", "--name", name, "--memory-max", "8GiB"], options].concat();
        Self::start(stead, &words, "--http", join)
    }

    /// A router whose keys are what comes second in paths.
    pub(crate) fn router(stead: &str, join: &str) -> Result<Self, Error> {
        Self::start(stead, &["router", "--key", "path:2"], "--listen", join)
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> Result<u64, Error> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib << 10)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<String, Error> {
        let mut client = Client::connect(self.admin).await?;
        let answer = client.ask(Method::GET, path, "").await?;
        Ok(String::from_utf8_lossy(answer.body()).into_owned())
    }

    pub(crate) async fn shards(&self) -> Result<Shards, Error> {
        Ok(serde_json::from_str(&self.get("/v1/shards").await?)?)
    }

    /// The value of a metric without labels, or with these.
    pub(crate) async fn metric(&self, name: &str) -> Result<f64, Error> {
        let text = self.get("/metrics").await?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(lines.next().map_or(Ok(0.0), str::parse)?)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `GET /v1/shards`, as far as it is looked at.
#[derive(Deserialize)]
pub(crate) struct Shards {
    pub(crate) shards: u32,
    pub(crate) by_node: BTreeMap<String, u32>,
    pub(crate) targets: BTreeMap<String, u32>,
    pub(crate) unowned: u32,
    pub(crate) under_replicated: u32,
}

impl Shards {
    /// Whether `n_nodes` nodes own what they are to own, with all copies.
    pub(crate) fn is_settled(&self, n_nodes: usize) -> bool {
        let is_placed = self.by_node.len() == n_nodes && self.by_node == self.targets;
        0 < self.shards && is_placed && self.unowned == 0 && self.under_replicated == 0
    }
}

pub(crate) async fn settled(nodes: &[&Proc], n_nodes: usize) -> Result<(), Error> {
    let until = Instant::now() + IN_TIME;
    for node in nodes {
        while !node.shards().await.is_ok_and(|report| report.is_settled(n_nodes)) {
            if until < Instant::now() {
                return Err("the cluster did not settle".into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

/// Puts sessions `s0`, `s1` and so on of so many bytes each.
pub(crate) async fn fill(front: SocketAddr, n_sessions: u64, bytes: usize) -> Result<(), Error> {
    let mut fillers = JoinSet::new();
    for first in 0..FILLERS {
        fillers.spawn(fill_some(front, first, n_sessions, bytes));
    }
    while let Some(filled) = fillers.join_next().await {
        filled??;
    }
    Ok(())
}

async fn fill_some(front: SocketAddr, first: u64, end: u64, bytes: usize) -> Result<(), Error> {
    let mut client = Client::connect(front).await?;
    for i in (first..end).step_by(FILLERS as usize) {
        let answer = client.ask(Method::PUT, &format!("/sessions/s{i}"), vec![b'v'; bytes]).await?;
        if !answer.status().is_success() {
            return Err(format!("PUT: {}", answer.status()).into());
        }
    }
    Ok(())
}
