//! How a node ends, and what it says of what it could not hand off.

use std::process::ExitStatus;

use crate::client::count;
use crate::counting::sessions;
use crate::harness::{Cluster, Plan, SOON, eventually, signal};

const SHARDS: u32 = 64;
const N_SESSIONS: usize = 40;
/// `EX_TEMPFAIL`: not in time.
const CUT_SHORT: i32 = 75;

/// A cluster whose `n1` holds sessions and cannot hand them off, because `n2` has stopped.
struct Stuck {
    cluster: Cluster,
    /// Sessions of `n1`.
    n_sessions: usize,
    /// Shards of `n1`.
    n_shards: u32,
}

impl Stuck {
    async fn start(node_options: &[&str]) -> Self {
        let mut plan = Plan::of(2, SHARDS);
        plan.node_options = node_options.iter().map(|word| (*word).to_owned()).collect();
        let mut cluster = Cluster::planned(plan).await;
        let mut n_sessions = 0;
        for session in sessions("s", N_SESSIONS) {
            let answer = count(cluster.front(), &session).await.unwrap();
            n_sessions += usize::from(answer.header("stead-node") == "n1");
        }
        assert!(n_sessions > 0, "n1 holds no session");
        let n_shards = cluster.shards().await.unwrap().by_node["n1"];
        signal(cluster.node("n2").proc.pid(), "STOP");
        Self { cluster, n_sessions, n_shards }
    }

    /// Sends SIGTERM to `n1`, and waits until it has seen it for the `n`th time.
    async fn terminate(&mut self, n: usize) {
        let proc = &self.cluster.node("n1").proc;
        signal(proc.pid(), "TERM");
        eventually("its word that it was asked to stop", SOON, || {
            let seen = proc.log().matches("asked to stop").count();
            std::future::ready(if seen >= n { Ok(()) } else { Err(format!("{seen} times")) })
        })
        .await;
    }

    async fn ended(&mut self) -> ExitStatus {
        self.cluster.node("n1").proc.ended(SOON).await
    }

    /// It ended too early, and said exactly what that cost.
    fn assert_cut_short(&mut self, status: ExitStatus) {
        let log = self.cluster.node("n1").proc.log();
        assert_eq!(status.code(), Some(CUT_SHORT), "{log}");
        let (sessions, shards) = (self.n_sessions, self.n_shards);
        let cost = format!("{sessions} sessions in {shards} shards were dropped");
        assert!(log.contains(&cost), "`{cost}` is not in: {log}");
        assert!(!log.contains("node has left"), "{log}");
    }
}

#[tokio::test]
async fn a_second_sigterm_cuts_a_drain_short_and_says_what_it_cost() {
    let mut stuck = Stuck::start(&[]).await;
    stuck.terminate(1).await;
    stuck.terminate(2).await;
    let status = stuck.ended().await;
    stuck.assert_cut_short(status);
}

#[tokio::test]
async fn a_drain_that_takes_too_long_is_cut_short_and_says_what_it_cost() {
    let mut stuck = Stuck::start(&["--drain-timeout", "500ms"]).await;
    stuck.terminate(1).await;
    let status = stuck.ended().await;
    stuck.assert_cut_short(status);
}

#[tokio::test]
async fn a_node_that_handed_everything_off_says_nothing_was_dropped() {
    let mut cluster = Cluster::start(2, SHARDS).await;
    for session in sessions("s", N_SESSIONS) {
        count(cluster.front(), &session).await.unwrap();
    }
    let proc = &mut cluster.node("n1").proc;
    signal(proc.pid(), "TERM");
    let status = proc.ended(SOON).await;
    let log = proc.log();
    assert!(status.success(), "{status}: {log}");
    assert!(log.contains("node has left") && !log.contains("dropped"), "{log}");
    for session in sessions("s", N_SESSIONS) {
        let answer = count(cluster.front(), &session).await.unwrap();
        assert_eq!(answer.counter(), Ok(2), "{session}");
    }
}

#[tokio::test]
async fn the_last_node_says_what_nobody_was_left_to_take() {
    let mut cluster = Cluster::start(1, SHARDS).await;
    for session in sessions("s", N_SESSIONS) {
        count(cluster.front(), &session).await.unwrap();
    }
    let proc = &mut cluster.node("n1").proc;
    signal(proc.pid(), "TERM");
    let status = proc.ended(SOON).await;
    let log = proc.log();
    assert!(status.success(), "{status}: {log}");
    let cost = format!("shards={SHARDS} sessions={N_SESSIONS}");
    assert!(log.contains("nobody was left") && log.contains(&cost), "`{cost}` is not in: {log}");
}
