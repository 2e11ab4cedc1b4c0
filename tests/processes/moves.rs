//! Planned changes under load: nothing is lost, nothing is repeated, nothing fails.

use crate::client::count;
use crate::counting::{Counting, sessions};
use crate::harness::{Cluster, SOON, eventually, is_running, run, signal, stderr};

const SHARDS: u32 = 1024;
const N_SESSIONS: usize = 300;
const N_CONNECTIONS: usize = 12;

/// A cluster of three, and a load on it that has begun.
async fn under_load() -> (Cluster, Counting) {
    let cluster = Cluster::start(3, SHARDS).await;
    let counting = Counting::start(cluster.front(), &sessions("s", N_SESSIONS), N_CONNECTIONS);
    counting.rounds(N_SESSIONS, 2).await;
    (cluster, counting)
}

#[tokio::test]
async fn a_session_counts_on_one_node() {
    let cluster = Cluster::start(3, SHARDS).await;
    let mut seen = std::collections::BTreeSet::new();
    for session in sessions("alice", 30) {
        let first = count(cluster.front(), &session).await.unwrap();
        for expected in 2..=4 {
            let answer = count(cluster.front(), &session).await.unwrap();
            assert_eq!(answer.counter(), Ok(expected));
            for header in ["stead-node", "stead-shard", "stead-epoch"] {
                assert!(!answer.header(header).is_empty(), "{header}");
                assert_eq!(answer.header(header), first.header(header), "{header}");
            }
        }
        seen.insert(first.header("stead-node").to_owned());
    }
    assert_eq!(seen.len(), 3, "thirty sessions meet every node: {seen:?}");
}

#[tokio::test]
async fn a_node_joins_under_load() {
    let (mut cluster, counting) = under_load().await;
    cluster.add("n4");
    cluster.settled(4).await;
    counting.rounds(N_SESSIONS, 2).await;
    counting.stop().await.assert_clean("join");
    let by_node = cluster.shards().await.unwrap().by_node;
    let fair = SHARDS / 4;
    assert!((fair * 9 / 10..=fair * 11 / 10).contains(&by_node["n4"]), "{by_node:?}");
}

#[tokio::test]
async fn a_node_is_drained_under_load() {
    let (mut cluster, counting) = under_load().await;
    let admin = format!("http://{}", cluster.router.admin);
    let drained = run(&["drain", "n2", "--wait", "--admin", &admin]).await;
    assert!(drained.status.success(), "{}", stderr(&drained));
    let status = cluster.node("n2").proc.ended(SOON).await;
    assert!(status.success(), "{status}");
    cluster.settled(2).await;
    counting.rounds(N_SESSIONS, 2).await;
    counting.stop().await.assert_clean("drain");
}

#[tokio::test]
async fn a_node_is_terminated_under_load() {
    let (mut cluster, counting) = under_load().await;
    signal(cluster.node("n3").proc.pid(), "TERM");
    let status = cluster.node("n3").proc.ended(SOON).await;
    assert!(status.success(), "{status}");
    cluster.settled(2).await;
    counting.rounds(N_SESSIONS, 2).await;
    counting.stop().await.assert_clean("SIGTERM");
    let members = cluster.members().await.unwrap();
    let n3 = members.members.iter().find(|member| member.name == "n3");
    assert!(n3.is_none_or(|member| member.state == "left"), "{n3:?}");
}

#[tokio::test]
async fn a_drained_node_can_come_back() {
    let (mut cluster, counting) = under_load().await;
    signal(cluster.node("n1").proc.pid(), "TERM");
    cluster.node("n1").proc.ended(SOON).await;
    cluster.settled(2).await;
    cluster.nodes.retain(|node| node.proc.name != "n1");
    cluster.add("n1");
    cluster.settled(3).await;
    counting.rounds(N_SESSIONS, 2).await;
    counting.stop().await.assert_clean("leave and return");
}

#[tokio::test]
async fn the_last_node_leaves_quickly() {
    let mut cluster = Cluster::start(1, SHARDS).await;
    count(cluster.front(), "alice").await.unwrap();
    let node = cluster.node("n1");
    signal(node.proc.pid(), "TERM");
    let pid = node.proc.pid();
    let within = std::time::Duration::from_secs(5);
    assert!(node.proc.ended(within).await.success());
    eventually("its end", SOON, || {
        std::future::ready(if is_running(pid) { Err("runs".into()) } else { Ok(()) })
    })
    .await;
}
