//! Nodes are killed while clients count on their sessions, and routers insist: a request whose node
//! died is asked again, and answered by the copy's owner, once.

use http::Method;

use crate::client;
use crate::trial::{PATIENCE, Trial};

/// Sum over the nodes that run of a counter with labels.
async fn replayed(trial: &Trial) -> u64 {
    let mut sum = 0;
    for node in &trial.cluster.nodes {
        let Ok(answer) = client::once(node.admin, Method::GET, "/metrics").await else { continue };
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let lines = text.lines().filter(|line| line.starts_with("stead_replayed_answers_total"));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        sum += values.sum::<u64>();
    }
    sum
}

/// Goal: with a copy of each shard the death of a node loses and doubles nothing, and fails no request.
/// Method: the judge asks each session for 1, 2, 3 and so on.
#[tokio::test]
async fn a_node_that_is_killed_doubles_nothing_and_fails_nothing() {
    let mut trial = Trial::start(3).await;
    trial.cluster.settled(3).await;
    let rounds = if trial.size.full { 20 } else { 3 };
    let mut n_replayed = 0;
    for round in 0..rounds {
        let victim = format!("n{}", 1 + (round * 2) % 3);
        trial.judge.phase("kill");
        trial.kill(&victim).await;
        trial.judge.all_succeed(PATIENCE).await;
        n_replayed += replayed(&trial).await;
        trial.cluster.start_again(&victim);
        trial.cluster.settled(3).await;
        trial.judge.seconds(1.0, PATIENCE).await;
    }
    println!("insisting: {n_replayed} answers were given again, counted after each kill");
    let (_cluster, report) = trial.end("insisting").await;
    report.assert_values("insisting");
    let n_failed = report.troubles.iter().filter(|trouble| trouble.is_failure()).count();
    assert_eq!(n_failed, 0, "{:?}", report.troubles);
}
