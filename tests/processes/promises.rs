//! What `docs/guide/promises.md` says of settings that nothing else runs with: answers that wait for
//! the owner alone, and sessions without copies.

use std::time::Duration;

use crate::client;
use crate::counting::sessions;
use crate::crashes::{COPIED, DISK_ALONE};
use crate::disk::{is_there, put, value};
use crate::harness::{Cluster, Plan, SOON, eventually, run, signal, stderr};
use crate::tally::Tally;
use crate::trial::{PATIENCE, Size, Trial, counted_by_nodes};

const SHARDS: u32 = 64;
const N: usize = 60;
pub(crate) const MEMORY: [&str; 2] = ["--ack", "memory"];
pub(crate) const NO_COPIES: [&str; 2] = ["--replicas", "0"];

/// Three nodes with these options.
fn plan(options: &[&str]) -> Plan {
    let node_options = options.iter().map(|word| (*word).to_owned()).collect();
    Plan { node_options, ..Plan::of(3, SHARDS) }
}

/// A node joins, another drains, a shard is moved by hand, and all nodes are restarted one after the
/// other: nothing fails.
async fn planned_changes_keep_everything(what: &str, plan: Plan) {
    let mut trial = Trial::planned(Plan { shards: Size::asked_for().shards, ..plan }).await;
    trial.cluster.settled(3).await;
    trial.judge.phase("join");
    trial.cluster.add("n4");
    trial.cluster.settled(4).await;
    trial.judge.phase("by hand");
    let admin = format!("http://{}", trial.cluster.router.admin);
    let moved = run(&["move", "7", "n4", "--for", "1h", "--wait", "--admin", &admin]).await;
    assert!(moved.status.success(), "{}", stderr(&moved));
    trial.judge.phase("drain");
    let drained = run(&["drain", "n4", "--wait", "--admin", &admin]).await;
    assert!(drained.status.success(), "{}", stderr(&drained));
    trial.cluster.node("n4").proc.ended(SOON).await;
    trial.judge.phase("restart");
    for name in ["n1", "n2", "n3"] {
        signal(trial.cluster.node(name).proc.pid(), "TERM");
        let status = trial.cluster.node(name).proc.ended(SOON).await;
        assert!(status.success(), "{name}: {status}");
        trial.cluster.start_again(name);
        trial.cluster.settled(3).await;
    }
    let (_cluster, report) = trial.end(what).await;
    report.assert_clean(what);
}

#[tokio::test]
async fn planned_changes_with_answers_from_memory_keep_everything() {
    planned_changes_keep_everything("planned, memory", plan(&MEMORY)).await;
}

#[tokio::test]
async fn planned_changes_without_copies_keep_everything() {
    planned_changes_keep_everything("planned, no copies", plan(&NO_COPIES)).await;
}

#[tokio::test]
async fn planned_changes_with_disks_keep_everything() {
    let plan = Plan { disks: true, ..plan(&COPIED) };
    planned_changes_keep_everything("planned, disks", plan).await;
}

#[tokio::test]
async fn planned_changes_with_disks_and_without_copies_keep_everything() {
    let plan = Plan { disks: true, ..plan(&DISK_ALONE) };
    planned_changes_keep_everything("planned, disks, no copies", plan).await;
}

/// What is under way when the node dies may be lost, and what had come to the copy before is not.
#[tokio::test]
async fn with_answers_from_memory_a_kill_loses_only_what_had_not_reached_the_copy() {
    let mut trial = Trial::planned(plan(&MEMORY)).await;
    trial.cluster.settled(3).await;
    let names = sessions("before", N);
    for name in &names {
        put(trial.cluster.front(), name, name).await.unwrap();
    }
    eventually("copies that have everything", PATIENCE, || async {
        match counted_by_nodes(&trial.cluster, "stead_replication_unacked_bytes").await {
            0 => Ok(()),
            n => Err(format!("{n} bytes are not acknowledged")),
        }
    })
    .await;
    trial.judge.phase("kill");
    trial.kill("n2").await;
    trial.judge.all_succeed(PATIENCE).await;
    trial.cluster.settled(2).await;
    for name in &names {
        assert_eq!(value(trial.cluster.front(), name).await.as_deref(), Ok(name.as_str()));
    }
    assert_eq!(counted_by_nodes(&trial.cluster, "stead_shards_lost_total").await, 0);
    let (_cluster, report) = trial.end("kill, memory").await;
    report.assert_nothing_doubled("kill, memory");
}

/// A node stands still until the others serve its shards, and goes on: what was counted before and
/// meanwhile is there in the end.
async fn a_node_that_stood_still_is_merged(options: &[&str]) {
    let mut cluster = Cluster::planned(plan(options)).await;
    cluster.settled(3).await;
    let mut tally = Tally::new("still", N);
    for _ in 0..3 {
        tally.until_answered(cluster.front()).await;
    }
    let pid = cluster.node("n2").proc.pid();
    signal(pid, "STOP");
    eventually("other owners", PATIENCE, || async {
        let report = cluster.shards().await?;
        let is_gone = report.unowned == 0 && report.by_node.len() == 2;
        if is_gone { Ok(()) } else { Err(format!("{:?}", report.by_node)) }
    })
    .await;
    tally.until_answered(cluster.front()).await;
    signal(pid, "CONT");
    cluster.settled(3).await;
    tally.until_answered(cluster.front()).await;
    tally.is_whole(cluster.front(), PATIENCE).await;
}

#[tokio::test]
async fn a_node_that_stood_still_with_answers_from_memory_is_merged() {
    a_node_that_stood_still_is_merged(&MEMORY).await;
}

#[tokio::test]
async fn a_node_that_stood_still_without_copies_is_merged() {
    a_node_that_stood_still_is_merged(&NO_COPIES).await;
}

/// Kills all nodes, starts them again and waits until they serve.
async fn all_are_killed(cluster: &mut Cluster) {
    let names = ["n1", "n2", "n3"];
    for name in names {
        cluster.node(name).proc.child.kill().unwrap();
    }
    for name in names {
        cluster.node(name).proc.ended(PATIENCE).await;
        cluster.start_again(name);
    }
    cluster.settled(3).await;
}

#[tokio::test]
async fn all_nodes_killed_at_once_without_disks_lose_everything() {
    for options in [&[][..], &MEMORY, &NO_COPIES] {
        let mut cluster = Cluster::planned(plan(options)).await;
        put(cluster.front(), "alice", "cart").await.unwrap();
        all_are_killed(&mut cluster).await;
        let found = client::get(cluster.front(), "/sessions/alice").await.unwrap();
        assert_eq!(found.status, http::StatusCode::NOT_FOUND, "{options:?}");
    }
}

/// Written behind: what is a second old is there, whatever answers waited for.
async fn what_had_reached_the_disks_is_there(options: &[&str]) {
    let mut cluster = Cluster::planned(Plan { disks: true, ..plan(options) }).await;
    let names = sessions("written", N);
    for name in &names {
        put(cluster.front(), name, name).await.unwrap();
    }
    eventually("disks that have everything", Duration::from_secs(5), || async {
        match counted_by_nodes(&cluster, "stead_disk_queue_bytes").await {
            0 => Ok(()),
            n => Err(format!("{n} bytes wait")),
        }
    })
    .await;
    all_are_killed(&mut cluster).await;
    is_there(&cluster, &names).await;
}

#[tokio::test]
async fn all_nodes_killed_at_once_have_what_had_reached_their_disks() {
    for options in [&[][..], &MEMORY, &NO_COPIES] {
        what_had_reached_the_disks_is_there(options).await;
    }
}
