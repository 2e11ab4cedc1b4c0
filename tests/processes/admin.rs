//! The admin interface of real members, and the commands that read it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use http::Method;
use serde_json::{Value, json};
use stead_shared::id::Epoch;

use crate::client::{self, count, get, get_json};
use crate::harness::{Cluster, run, stderr, stdout};

const SHARDS: u32 = 256;

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn every_member_answers_as_documented() {
    let cluster = Cluster::start(2, SHARDS).await;
    let counted = count(cluster.front(), "alice").await.unwrap();
    let admins = [cluster.router.admin, cluster.nodes[0].admin, cluster.nodes[1].admin];
    let mut digests = BTreeSet::new();
    let mut owned_total = 0;
    for admin in admins {
        let members: Value = get_json(admin, "/v1/members").await.unwrap();
        let mut fields = BTreeSet::from(["members", "members_digest"]);
        // A router is on no side, and keeps nothing.
        if admin != cluster.router.admin {
            fields.extend(["majority", "promises"]);
            let promises =
                json!({"mode": "available", "ack": "replica", "replicas": 1, "min_copies": 1});
            assert_eq!(members["promises"], promises);
        }
        assert_eq!(keys(&members), fields);
        digests.insert(members["members_digest"].as_str().unwrap().to_owned());
        let fields = "name role state weight zone gossip http admin boot_id version";
        for member in members["members"].as_array().unwrap() {
            assert_eq!(keys(member), fields.split(' ').collect());
            assert_eq!(member["state"], "ready", "{member}");
        }
        assert_eq!(members["members"].as_array().unwrap().len(), 3);

        let shards: Value = get_json(admin, "/v1/shards").await.unwrap();
        let fields = "shards by_node unowned moving under_replicated targets owned";
        assert_eq!(keys(&shards), fields.split(' ').collect());
        assert_eq!(shards["shards"], SHARDS);
        assert_eq!(keys(&shards["by_node"]), BTreeSet::from(["n1", "n2"]));
        assert_eq!(shards["by_node"], shards["targets"]);
        owned_total += shards["owned"].as_array().unwrap().len();

        let home: Value = get_json(admin, "/v1/where?key=alice").await.unwrap();
        assert_eq!(keys(&home), BTreeSet::from(["epoch", "owner", "pin", "replicas", "shard"]));
        assert_eq!(home["shard"].to_string(), counted.header("stead-shard"));
        assert_eq!(home["owner"], counted.header("stead-node"));
        assert_eq!(home["epoch"], counted.header("stead-epoch"));
        home["epoch"].as_str().unwrap().parse::<Epoch>().unwrap();

        let shard: Value = get_json(admin, &format!("/v1/shards/{}", home["shard"])).await.unwrap();
        assert_eq!(shard, home);
        let pins: Value = get_json(admin, "/v1/pins").await.unwrap();
        assert_eq!(pins, serde_json::json!({ "pins": [] }));
        let moves: Value = get_json(admin, "/v1/moves").await.unwrap();
        assert_eq!(keys(&moves), BTreeSet::from(["by_node", "silent", "total"]));
        assert_eq!(keys(&moves["by_node"]), BTreeSet::from(["n1", "n2"]));
        let fields = "moving copying pending bytes_left bytes_per_second frozen";
        assert_eq!(keys(&moves["total"]), fields.split(' ').collect());
        assert_eq!(moves["silent"], serde_json::json!([]));

        let drain: Value = get_json(admin, "/v1/drain?node=n1").await.unwrap();
        assert_eq!((drain["node"].as_str(), drain["state"].as_str()), (Some("n1"), Some("idle")));
        let unknown = client::once(admin, Method::POST, "/v1/drain?node=n9").await.unwrap();
        assert_eq!(unknown.status, 404);
        assert_eq!(unknown.header("content-type"), "application/problem+json");
    }
    assert_eq!(digests.len(), 1, "all agree on the members");
    assert_eq!(owned_total, SHARDS as usize, "every shard is owned by one process");
}

#[tokio::test]
async fn metrics_are_described_and_bounded() {
    let cluster = Cluster::start(2, SHARDS).await;
    for i in 0..200 {
        count(cluster.front(), &format!("s-{i}")).await.unwrap();
    }
    for admin in [cluster.router.admin, cluster.nodes[0].admin] {
        check_metrics(admin).await;
    }
}

async fn check_metrics(admin: SocketAddr) {
    let answer = get(admin, "/metrics").await.unwrap();
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let named = |kind: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(kind));
        lines.map(|rest| rest.split(' ').next().unwrap().to_owned()).collect()
    };
    let (helped, typed) = (named("# HELP "), named("# TYPE "));
    assert!(!typed.is_empty());
    assert_eq!(typed.difference(&helped).collect::<Vec<_>>(), Vec::<&String>::new(), "no HELP");
    for name in &typed {
        assert!(name.starts_with("stead_"), "{name}");
    }
    let n_series = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    assert!(n_series < 2000, "{n_series} series");
    assert!(!text.contains("s-1"), "no session in a label");
    promtool(&text);
}

/// Where promtool is installed, it has a say.
fn promtool(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.stdout(Stdio::piped()).spawn() else { return };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

#[tokio::test]
async fn commands_work_against_any_member() {
    let cluster = Cluster::start(2, SHARDS).await;
    for admin in [cluster.router.admin, cluster.nodes[1].admin] {
        let admin = format!("http://{admin}");
        let status = run(&["status", "--wait-healthy", "--admin", &admin]).await;
        let table = stdout(&status);
        assert!(status.status.success(), "{}", stderr(&status));
        assert!(table.starts_with("healthy\n256 shards: 0 unowned, 0 moving,"), "{table}");
        for name in ["\nn1 ", "\nn2 ", "\nrouter-"] {
            assert!(table.contains(name), "{table}");
        }
        let status = run(&["status", "--json", "--admin", &admin]).await;
        let json: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(json["healthy"], true);
        let home = run(&["where", "alice", "--admin", &admin]).await;
        assert!(stdout(&home).starts_with("alice: shard "), "{}", stdout(&home));
        let unknown = run(&["drain", "n9", "--admin", &admin]).await;
        assert_eq!(unknown.status.code(), Some(64));
        assert!(stderr(&unknown).contains("n9"), "{}", stderr(&unknown));
    }
}

#[tokio::test]
async fn a_wait_for_health_ends_at_its_deadline() {
    let arguments = ["status", "--wait-healthy", "--timeout", "300ms", "--admin", "127.0.0.1:1"];
    let output = run(&arguments).await;
    assert_eq!(output.status.code(), Some(75));
    assert!(stderr(&output).contains("not healthy after 300ms"), "{}", stderr(&output));
}
