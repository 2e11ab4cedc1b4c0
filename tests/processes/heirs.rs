//! Nodes are killed and stopped while clients count on their sessions, and copies on other nodes
//! serve on: nothing that was answered is lost, and nothing counts twice.
//!
//! Every day small; `JUDGE=full` does many rounds and asks for the bounds on time, too.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use stead_shared::net::admin::{ShardsReport, WhereReport};

use crate::client;
use crate::harness::signal;
use crate::trial::{PATIENCE, Size, Trial, counted_by_nodes};

const LOST: &str = "stead_shards_lost_total";

fn rounds(size: Size, full: usize) -> usize {
    if size.full { full } else { 2 }
}

/// Another one each time, without chance: the order of names is nothing to the cluster.
fn victim(round: usize) -> String {
    format!("n{}", 1 + (round * 2) % 3)
}

#[tokio::test]
async fn nodes_killed_one_after_the_other_lose_nothing() {
    let mut trial = Trial::start(3).await;
    trial.cluster.settled(3).await;
    for round in 0..rounds(trial.size, 20) {
        trial.judge.phase("kill");
        trial.kill(&victim(round)).await;
        trial.judge.all_succeed(PATIENCE).await;
        trial.cluster.start_again(&victim(round));
        trial.cluster.settled(3).await;
        // The next failure may come when every shard has had its copies for a second.
        trial.judge.seconds(1.0, PATIENCE).await;
    }
    assert_eq!(counted_by_nodes(&trial.cluster, LOST).await, 0);
    let within = trial.size.within(Duration::from_secs(3));
    let (_cluster, report) = trial.end("kills").await;
    report.assert_values("kills");
    let outage = report.outage();
    assert!(outage <= within, "{outage:?} without success");
}

#[tokio::test]
async fn a_node_that_stood_still_comes_back_to_its_copies() {
    let mut trial = Trial::start(3).await;
    trial.cluster.settled(3).await;
    for round in 0..rounds(trial.size, 10) {
        trial.judge.phase("stopped");
        let pid = trial.cluster.node(&victim(round)).proc.pid();
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

#[tokio::test]
async fn every_shard_has_two_copies_while_nodes_are_restarted() {
    let n = Size::asked_for().n_restarted;
    let mut trial = Trial::start(n).await;
    trial.cluster.settled(n).await;
    trial.judge.phase("restart");
    for i in 1..=n {
        let name = format!("n{i}");
        signal(trial.cluster.node(&name).proc.pid(), "TERM");
        let status = trial.cluster.node(&name).proc.ended(Duration::from_secs(30)).await;
        assert!(status.success(), "{name}: {status}");
        let admin = trial.cluster.router.admin;
        let report: ShardsReport = client::get_json(admin, "/v1/shards").await.unwrap();
        assert_eq!((report.unowned, report.under_replicated), (0, 0), "after {name} has left");
        trial.cluster.start_again(&name);
        trial.cluster.settled(n).await;
    }
    let ready: Ready = client::get_json(trial.cluster.node("n1").admin, "/readyz").await.unwrap();
    assert_eq!(ready.warning, None);
    assert_eq!(counted_by_nodes(&trial.cluster, LOST).await, 0);
    let (_cluster, report) = trial.end("restarts with copies").await;
    report.assert_clean("restarts with copies");
}
