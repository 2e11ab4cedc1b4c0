//! What the live scenarios have in common: their size, a cluster with state to move and a judge on
//! it, and the moment in the middle of a move.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde::de::DeserializeOwned;
use stead_shared::net::admin::{ClusterMoves, ShardsReport};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{self, Connection};
use crate::harness::{Cluster, Plan, is_running, signal};
use crate::judge::{Judge, Load, Report};

/// How long anything may take that takes seconds on a machine that does nothing else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often the middle of a move is looked for.
const LOOK: Duration = Duration::from_millis(2);
/// How often a scenario is begun for a fault that comes too late.
const ATTEMPTS: u32 = 5;
/// Values written side by side.
const WRITERS: usize = 8;

/// How large a scenario is: `JUDGE=full` for measurements, else small enough for every day.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) full: bool,
    n_sessions: usize,
    n_connections: usize,
    pub(crate) shards: u32,
    saturate_for: Duration,
    fraction: f64,
    rate_max: f64,
    /// Load before and after what is judged, in seconds.
    pub(crate) steady: f64,
    /// Other sessions that make moves last, and bytes of each.
    n_values: usize,
    value_bytes: usize,
    /// And how fast it may move.
    handoff_rate: &'static str,
    /// Nodes that are restarted one after the other.
    pub(crate) n_restarted: usize,
}

impl Size {
    pub(crate) fn asked_for() -> Self {
        match std::env::var("JUDGE").as_deref() {
            Ok("full") => Self::FULL,
            Ok(other) => panic!("JUDGE={other}: only `full` is known"),
            Err(_) => Self::SMALL,
        }
    }

    const FULL: Self = Self {
        full: true,
        n_sessions: 1000,
        n_connections: 64,
        shards: 1024,
        saturate_for: Duration::from_secs(2),
        fraction: 0.5,
        rate_max: f64::INFINITY,
        steady: 5.0,
        n_values: 4000,
        value_bytes: 64 << 10,
        handoff_rate: "64MiB",
        n_restarted: 5,
    };

    /// A connection for each session, so that those that wait hold up nobody else, and a rate
    /// that a busy machine keeps up with.
    const SMALL: Self = Self {
        full: false,
        n_sessions: 120,
        n_connections: 120,
        shards: 64,
        saturate_for: Duration::from_millis(300),
        fraction: 0.25,
        rate_max: 600.0,
        steady: 0.5,
        n_values: 1000,
        value_bytes: 48 << 10,
        handoff_rate: "2MiB",
        n_restarted: 3,
    };

    /// A deadline of a measurement; every day only that it happens at all is asked.
    pub(crate) fn within(&self, measured: Duration) -> Duration {
        if self.full { measured } else { PATIENCE }
    }
}

/// A cluster under load.
pub(crate) struct Trial {
    pub(crate) size: Size,
    pub(crate) cluster: Cluster,
    pub(crate) judge: Judge,
}

impl Trial {
    /// `n` nodes, without state but the judge's.
    pub(crate) async fn start(n: usize) -> Self {
        Self::planned(Plan::of(n, Size::asked_for().shards)).await
    }

    /// The same as planned.
    pub(crate) async fn planned(plan: Plan) -> Self {
        Self::load(Size::asked_for(), Cluster::planned(plan).await).await
    }

    /// What is planned, with a quarter of the load: there is something else for the nodes to do.
    pub(crate) async fn planned_light(plan: Plan) -> Self {
        let size = Size::asked_for();
        let size = Size { fraction: size.fraction / 4.0, ..size };
        Self::load(size, Cluster::planned(plan).await).await
    }

    /// `n` nodes with so much state that moves last.
    pub(crate) async fn start_heavy(n: usize) -> Self {
        Self::planned_heavy(Plan::of(n, Size::asked_for().shards)).await
    }

    /// What is planned, with so much state that moves last.
    pub(crate) async fn planned_heavy(mut plan: Plan) -> Self {
        let size = Size::asked_for();
        plan.node_options.extend(["--handoff-rate".to_owned(), size.handoff_rate.to_owned()]);
        let cluster = Cluster::planned(plan).await;
        write_values(&cluster, size.n_values, size.value_bytes).await;
        Self::load(size, cluster).await
    }

    async fn load(size: Size, cluster: Cluster) -> Self {
        let judge = Judge::start(Load {
            front: cluster.front(),
            prefix: "judged".to_owned(),
            n_sessions: size.n_sessions,
            n_connections: size.n_connections,
            saturate_for: size.saturate_for,
            fraction: size.fraction,
            rate_max: size.rate_max,
        })
        .await;
        judge.seconds(size.steady, PATIENCE).await;
        Self { size, cluster, judge }
    }

    /// Goes on a little, stops, and says what the judge saw.
    pub(crate) async fn end(self, what: &str) -> (Cluster, Report) {
        self.judge.all_succeed(PATIENCE).await;
        self.judge.seconds(self.size.steady, PATIENCE).await;
        let report = self.judge.stop().await;
        println!("{}", report.table(what));
        for trouble in report.troubles.iter().take(5) {
            println!("{trouble}");
        }
        (self.cluster, report)
    }

    /// Waits until `source` is handing shards over that `target` is to get: copies them, or has
    /// closed their gates.
    pub(crate) async fn mid_move(&mut self, source: &str, target: &str) -> Result<(), TooLate> {
        let deadline = Instant::now() + PATIENCE;
        let mut looks = tokio::time::interval(LOOK);
        let mut admin = Connection::open(self.cluster.node(source).admin).await.unwrap();
        loop {
            looks.tick().await;
            let moves: ClusterMoves = ask(&mut admin, "/v1/moves").await;
            let report: ShardsReport = ask(&mut admin, "/v1/shards").await;
            let moves = moves.by_node.get(source).copied().unwrap_or_default();
            match Progress::of(&report, source, target) {
                Progress::Middle if 0 < moves.moving + moves.copying => return Ok(()),
                Progress::Before | Progress::Middle => {
                    assert!(Instant::now() < deadline, "no move begins: {moves:?} {report:?}");
                }
                Progress::After => return Err(TooLate(report.by_node)),
            }
        }
    }

    /// Whether `source` still has to give, now that it cannot.
    pub(crate) async fn still_moving(&self, source: &str, target: &str) -> Result<(), TooLate> {
        let report = self.cluster.shards().await.unwrap();
        match Progress::of(&report, source, target) {
            Progress::Middle => Ok(()),
            Progress::Before | Progress::After => Err(TooLate(report.by_node)),
        }
    }

    /// Kills a node so that it can do nothing any more.
    pub(crate) async fn kill(&mut self, name: &str) {
        let node = self.cluster.node(name);
        signal(node.proc.pid(), "KILL");
        node.proc.ended(PATIENCE).await;
    }
}

/// The move was over before its middle was seen, or before the fault that was to meet it: shards
/// by node. Nothing was tried, and nothing is known.
#[derive(Debug)]
pub(crate) struct TooLate(BTreeMap<String, u32>);

/// Tries until a fault meets the middle of a move.
pub(crate) async fn in_mid_move<F: Future<Output = Result<(), TooLate>>>(attempt: impl Fn() -> F) {
    for i in 1..=ATTEMPTS {
        match attempt().await {
            Ok(()) => return,
            Err(TooLate(by_node)) => println!("attempt {i} came too late: {by_node:?}"),
        }
    }
    panic!("moves are over before a fault can meet them: they need more state, or more time");
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Before,
    Middle,
    After,
}

impl Progress {
    fn of(report: &ShardsReport, source: &str, target: &str) -> Self {
        let count = |of: &BTreeMap<String, u32>, node| of.get(node).copied().unwrap_or(0);
        let gives = count(&report.by_node, source) > count(&report.targets, source);
        let wanted = count(&report.targets, target) > 0;
        let has = count(&report.by_node, target) > 0;
        match (wanted && gives, has) {
            (true, _) => Self::Middle,
            (false, false) => Self::Before,
            (false, true) => Self::After,
        }
    }
}

async fn ask<T: DeserializeOwned>(admin: &mut Connection, path: &str) -> T {
    let answer = admin.send(Method::GET, path).await.unwrap().success().unwrap();
    serde_json::from_slice(&answer.body).unwrap()
}

/// Sum of a counter without labels over the nodes that run.
pub(crate) async fn counted_by_nodes(cluster: &Cluster, counter: &str) -> u64 {
    let mut sum = 0;
    for node in cluster.nodes.iter().filter(|node| is_running(node.proc.pid())) {
        let answer = client::get(node.admin, "/metrics").await.unwrap().success().unwrap();
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(counter));
        let value = lines.find_map(|rest| rest.trim().parse::<u64>().ok());
        sum += value.unwrap_or_else(|| panic!("{}: no {counter} in {text}", node.proc.name));
    }
    sum
}

/// Writes values into sessions of their own.
async fn write_values(cluster: &Cluster, n: usize, bytes: usize) {
    let value = Bytes::from(vec![b'v'; bytes]);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (front, value) = (cluster.front(), value.clone());
        writers.spawn(async move {
            let mut connection = Connection::open(front).await.unwrap();
            for i in (writer..n).step_by(WRITERS) {
                let path = format!("/sessions/value-{i}");
                let written = connection.send_body(Method::PUT, &path, value.clone()).await;
                written.and_then(client::Answer::success).unwrap();
            }
        });
    }
    writers.join_all().await;
}
