//! Nodes are killed and stopped while clients count on their sessions, and copies on other nodes
//! serve on: nothing that was answered is lost, and nothing counts twice.
//!
//! Every day small; `JUDGE=full` does many rounds and asks for the bounds on time, too.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use stead_shared::net::admin::{ShardsReport, WhereReport};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::chance::Chance;
use crate::client;
use crate::harness::{Cluster, signal};
use crate::trial::{PATIENCE, Size, Trial, counted_by_nodes};

const LOST: &str = "stead_shards_lost_total";
const SHORT: &str = "stead_shards_under_replicated";
/// How often it is looked for shards without a second copy.
const LOOK: Duration = Duration::from_millis(10);
/// What a router knows of members may be older than what it knows of claims, by this at most.
const HEARD: Duration = Duration::from_secs(1);

fn rounds(size: Size, full: usize) -> usize {
    if size.full { full } else { 2 }
}

fn victim(chance: &mut Chance) -> String {
    format!("n{}", 1 + chance.below(3))
}

#[tokio::test]
async fn nodes_killed_one_after_the_other_lose_nothing() {
    let mut chance = Chance::of("kills");
    let mut trial = Trial::start(3).await;
    trial.cluster.settled(3).await;
    for _ in 0..rounds(trial.size, 20) {
        let victim = victim(&mut chance);
        trial.judge.phase("kill");
        trial.kill(&victim).await;
        trial.judge.all_succeed(PATIENCE).await;
        assert_eq!(counted_by_nodes(&trial.cluster, LOST).await, 0);
        trial.judge.phase("again");
        trial.cluster.start_again(&victim);
        trial.cluster.settled(3).await;
        // The next failure may come when every shard has had its copies for a second.
        trial.judge.seconds(1.0, PATIENCE).await;
    }
    let size = trial.size;
    let (_cluster, report) = trial.end("kills").await;
    report.assert_values("kills");
    let (n_moved, median, longest) = report.moved("kill");
    println!("kills: {n_moved} sessions without an owner for {median:?} (median) to {longest:?}");
    assert!(0 < n_moved, "nobody had sessions");
    assert!(median <= size.within(Duration::from_secs(1)), "{median:?} without success");
    let outage = report.outage();
    assert!(outage <= size.within(Duration::from_secs(3)), "{outage:?} without success");
}

#[tokio::test]
async fn a_node_that_stood_still_comes_back_to_its_copies() {
    let mut chance = Chance::of("stops");
    let mut trial = Trial::start(3).await;
    trial.cluster.settled(3).await;
    for _ in 0..rounds(trial.size, 10) {
        let victim = victim(&mut chance);
        trial.judge.phase("stopped");
        let pid = trial.cluster.node(&victim).proc.pid();
        signal(pid, "STOP");
        // Long enough to be taken for dead; nothing is waited for: this is the fault.
        tokio::time::sleep(Duration::from_secs(10)).await;
        signal(pid, "CONT");
        trial.judge.all_succeed(PATIENCE).await;
        trial.cluster.settled(3).await;
        trial.judge.seconds(1.0, PATIENCE).await;
    }
    assert_eq!(counted_by_nodes(&trial.cluster, LOST).await, 0);
    let within = trial.size.within(Duration::from_secs(7));
    let (_cluster, report) = trial.end("stops").await;
    report.assert_values("stops");
    let outage = report.outage();
    assert!(outage <= within, "{outage:?} without success");
}

#[tokio::test]
async fn both_holders_killed_lose_exactly_their_shards() {
    let mut trial = Trial::start(4).await;
    trial.cluster.settled(4).await;
    let dead = BTreeSet::from(["n1".to_owned(), "n2".to_owned()]);
    let admin = trial.cluster.node("n3").admin;
    let mut lost = 0;
    for shard in 0..trial.size.shards {
        let path = format!("/v1/shards/{shard}");
        let home: WhereReport = client::get_json(admin, &path).await.unwrap();
        assert_eq!(home.replicas.len(), 1, "{home:?}");
        let holders = home.owner.iter().chain(&home.replicas);
        lost += u64::from(holders.cloned().collect::<BTreeSet<_>>().is_subset(&dead));
    }
    trial.judge.phase("both");
    for name in &dead {
        signal(trial.cluster.node(name).proc.pid(), "KILL");
    }
    for name in &dead {
        trial.cluster.node(name).proc.ended(PATIENCE).await;
    }
    trial.judge.all_succeed(PATIENCE).await;
    trial.cluster.settled(2).await;
    assert_eq!(counted_by_nodes(&trial.cluster, LOST).await, lost);
    let (_cluster, report) = trial.end("both holders").await;
    let anew = report.shards_begun_anew().len() as u64;
    println!("both holders: {anew} of {lost} lost shards had sessions");
    assert!(anew <= lost, "{anew} shards began anew, {lost} were lost");
}

/// What `/readyz` says beside that it is ready.
#[derive(Deserialize)]
struct Ready {
    warning: Option<String>,
}

/// Looks all the time whether shards have two copies.
struct Watch {
    stop: Arc<AtomicBool>,
    looks: JoinHandle<(u32, Vec<String>)>,
}

impl Watch {
    /// At what each node says of its own shards, and what the router knows of all.
    fn start(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let router = cluster.router.admin;
        let nodes: Vec<_> = cluster.nodes.iter().map(|node| node.admin).collect();
        let stopped = Arc::clone(&stop);
        let looks = tokio::spawn(async move {
            let (begun, mut whole) = (Instant::now(), Instant::now());
            let (mut n_looks, mut short) = (0, Vec::new());
            let mut ticks = tokio::time::interval(LOOK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                n_looks += 1;
                let mut found = short_at(&nodes).await;
                let report: ShardsReport = client::get_json(router, "/v1/shards").await.unwrap();
                if (report.unowned, report.under_replicated) == (0, 0) {
                    whole = Instant::now();
                } else if HEARD < whole.elapsed() {
                    found = Some(format!("{report:?}"));
                }
                short.extend(found.map(|what| format!("{:?}: {what}", begun.elapsed())));
            }
            (n_looks, short)
        });
        Self { stop, looks }
    }

    async fn assert_never_short(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (n_looks, short) = self.looks.await.unwrap();
        println!("{n_looks} looks at the copies of all shards");
        assert!(short.is_empty(), "{} of {n_looks} looks: {short:#?}", short.len());
        assert!(0 < n_looks, "nobody looked");
    }
}

/// A node that says that shards of its own are short of copies. One that is not there says nothing.
async fn short_at(nodes: &[SocketAddr]) -> Option<String> {
    for node in nodes {
        let Ok(answer) = client::get(*node, "/metrics").await else { continue };
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let mut lines = text.lines().filter(|line| line.starts_with(SHORT));
        if let Some(line) = lines.find(|line| !line.ends_with(" 0")) {
            return Some(format!("{node}: {line}"));
        }
    }
    None
}

#[tokio::test]
async fn every_shard_has_two_copies_while_nodes_are_restarted() {
    let n = Size::asked_for().n_restarted;
    let mut trial = Trial::start(n).await;
    trial.cluster.settled(n).await;
    let watch = Watch::start(&trial.cluster);
    trial.judge.phase("restart");
    for i in 1..=n {
        let name = format!("n{i}");
        signal(trial.cluster.node(&name).proc.pid(), "TERM");
        let status = trial.cluster.node(&name).proc.ended(Duration::from_secs(30)).await;
        assert!(status.success(), "{name}: {status}");
        trial.cluster.start_again(&name);
        trial.cluster.settled(n).await;
    }
    watch.assert_never_short().await;
    let ready: Ready = client::get_json(trial.cluster.node("n1").admin, "/readyz").await.unwrap();
    assert_eq!(ready.warning, None);
    assert_eq!(counted_by_nodes(&trial.cluster, LOST).await, 0);
    let (_cluster, report) = trial.end("restarts with copies").await;
    report.assert_clean("restarts with copies");
}
