//! Too few are left: `--on-minority stop`, and what an operator can say.

use std::time::Duration;

use http::Method;
use stead_shared::net::admin::MembersReport;

use crate::client::{Answer, count, get_json, once};
use crate::counting::sessions;
use crate::harness::{Cluster, Plan, SOON, eventually, run, signal, stderr, stdout};

const SHARDS: u32 = 64;

/// The one that is left.
const KEPT: &str = "n3";

#[tokio::test]
async fn who_is_left_with_too_few_answers_nothing_until_the_dead_are_forgotten() {
    let mut plan = Plan::of(3, SHARDS);
    let options = ["--on-minority", "stop", "--settled-after", "8s"];
    plan.node_options = options.iter().map(|word| (*word).to_owned()).collect();
    let mut cluster = Cluster::planned(plan).await;
    let mut kept = None;
    for session in sessions("s", 20) {
        let answer = count(cluster.front(), &session).await.unwrap();
        if answer.header("stead-node") == KEPT {
            kept = Some(format!("/sessions/{session}/counters/visits"));
        }
    }
    let path = &kept.expect("a session of the node that is left");
    let (admin, http) = (cluster.node(KEPT).admin, cluster.node(KEPT).http);
    let majority = async || {
        let report: MembersReport = get_json(admin, "/v1/members").await?;
        report.majority.ok_or_else(|| "none".to_owned())
    };
    eventually("a settled set of three", SOON, || async {
        let seen = majority().await?;
        if seen.settled == 3 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    for dead in ["n1", "n2"] {
        signal(cluster.node(dead).proc.pid(), "KILL");
    }
    eventually("a minority", SOON, || async {
        let seen = majority().await?;
        if seen.is_minority { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let refused = once(http, Method::GET, path).await.unwrap();
    assert_eq!(refused.status.as_u16(), 503, "{refused:?}");
    assert_eq!(refused.header("stead-refusal"), "degraded");
    let ready: Answer = once(admin, Method::GET, "/readyz").await.unwrap();
    assert_eq!(ready.status.as_u16(), 503);
    let text = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(text.contains("cut off: 1 of 3 nodes"), "{text}");

    let forget =
        async |node: &str| run(&["members", "forget", node, "--admin", &admin.to_string()]).await;
    let alive = forget(KEPT).await;
    assert!(!alive.status.success());
    assert!(stderr(&alive).contains("stead drain n3"), "{}", stderr(&alive));
    for dead in ["n1", "n2"] {
        let said = forget(dead).await;
        assert!(said.status.success(), "{}", stderr(&said));
        assert_eq!(stdout(&said), format!("{dead} is not counted any more by n3\n"));
    }
    eventually("answers", Duration::from_secs(30), || async {
        once(http, Method::POST, path).await?.success().map(drop)
    })
    .await;
    let log = &cluster.node(KEPT).proc.log();
    assert!(log.contains("cut off with the smaller part of the cluster"), "{log}");
    assert!(log.contains("with most of the cluster again"), "{log}");
}
