//! Unplanned ends: what the dead node alone held is gone, everything else goes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{self, count};
use crate::counting::{Counting, sessions};
use crate::harness::{Cluster, Member, SOON, eventually, signal};

const SHARDS: u32 = 1024;
const N_SESSIONS: usize = 240;

/// Counts once on every session and tells which node holds which.
async fn homes(front: SocketAddr, sessions: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut homes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for session in sessions {
        let answer = count(front, session).await.unwrap();
        homes.entry(answer.header("stead-node").to_owned()).or_default().push(session.clone());
    }
    homes
}

/// How long after `since` each session answered again, and with what.
async fn answers(front: SocketAddr, sessions: &[String], since: Instant) -> Vec<(Duration, i64)> {
    let mut asking = JoinSet::new();
    for session in sessions {
        let session = session.clone();
        asking.spawn(async move {
            loop {
                // Refusals and unknown outcomes are allowed until there is a new owner.
                if let Ok(answer) = count(front, &session).await {
                    return (since.elapsed(), answer.counter().unwrap());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    asking.join_all().await
}

/// Stops `n2` by `name` while the sessions of the others are counted on.
async fn stop_a_node(name: &str, within: Duration) -> Cluster {
    let mut cluster = Cluster::start_alone(3, SHARDS).await;
    let front = cluster.front();
    let mut homes = homes(front, &sessions("s", N_SESSIONS)).await;
    let lost = homes.remove("n2").expect("n2 holds sessions");
    let others: Vec<String> = homes.into_values().flatten().collect();
    let counting = Counting::start_at(front, &others, 8, 1);
    counting.rounds(others.len(), 2).await;
    let since = Instant::now();
    signal(cluster.node("n2").proc.pid(), name);
    let answers = answers(front, &lost, since).await;
    let slowest = answers.iter().map(|(after, _)| *after).max().unwrap_or_default();
    println!("SIG{name}: {} sessions answered again after at most {slowest:?}", lost.len());
    assert!(slowest <= within, "answered again after {slowest:?}");
    for (after, value) in answers {
        assert!(value == 1 || value == 2, "{value} after {after:?}: neither anew nor continued");
    }
    counting.rounds(others.len(), 2).await;
    counting.stop().await.assert_clean("sessions of the other nodes");
    cluster
}

#[tokio::test]
async fn a_killed_node_is_replaced_within_three_seconds() {
    let cluster = stop_a_node("KILL", Duration::from_secs(3)).await;
    cluster.settled(2).await;
}

#[tokio::test]
async fn a_frozen_node_is_replaced_within_fifteen_seconds() {
    let mut cluster = stop_a_node("STOP", Duration::from_secs(15)).await;
    // It comes back and finds its place again, without a second owner of anything.
    signal(cluster.node("n2").proc.pid(), "CONT");
    cluster.settled(3).await;
    let front = cluster.front();
    for session in sessions("after", 30) {
        for expected in 1..=3 {
            assert_eq!(count(front, &session).await.unwrap().counter(), Ok(expected), "{session}");
        }
    }
}

/// How often `n2` has heard nobody for too long.
async fn doubts(node: &Member) -> Result<u64, String> {
    let metrics = client::get(node.admin, "/metrics").await?;
    let text = String::from_utf8_lossy(&metrics.body);
    let line = text.lines().find_map(|line| line.strip_prefix("stead_doubts_total "));
    line.and_then(|n| n.parse().ok()).ok_or_else(|| "no stead_doubts_total".to_owned())
}

#[tokio::test]
async fn a_node_that_stood_still_for_a_moment_asks_who_it_is_and_goes_on() {
    let mut cluster = Cluster::start_alone(3, SHARDS).await;
    let all = sessions("s", N_SESSIONS);
    let counting = Counting::start(cluster.front(), &all, 8);
    counting.rounds(all.len(), 2).await;
    let node = cluster.node("n2");
    let before = doubts(node).await.unwrap();
    signal(node.proc.pid(), "STOP");
    // Not to wait for anything: this is how long it stands still.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    signal(node.proc.pid(), "CONT");
    counting.rounds(all.len(), 4).await;
    eventually("a doubt", SOON, || async {
        let n = doubts(node).await?;
        if before < n { Ok(()) } else { Err(format!("{n} doubts, {before} before")) }
    })
    .await;
    let report = counting.stop().await;
    println!("stopped for 1.5 s: {} requests, slowest {:?}", report.requests, report.slowest);
    report.assert_clean("all sessions");
    cluster.settled(3).await;
}

#[tokio::test]
async fn a_killed_node_comes_back_under_its_name() {
    let mut cluster = Cluster::start(3, SHARDS).await;
    signal(cluster.node("n2").proc.pid(), "KILL");
    cluster.node("n2").proc.ended(Duration::from_secs(5)).await;
    cluster.nodes.retain(|node| node.proc.name != "n2");
    cluster.add("n2");
    cluster.settled(3).await;
    for session in sessions("s", 30) {
        for expected in 1..=2 {
            let answer = count(cluster.front(), &session).await.unwrap();
            assert_eq!(answer.counter(), Ok(expected), "{session}");
        }
    }
}
