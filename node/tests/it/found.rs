//! Founding a second cluster by accident.

use std::net::SocketAddr;
use std::time::Duration;

use stead_node::{Node, NodeError};
use stead_shared::config::NodeOptions;

fn options(name: &str, dir: Option<&std::path::Path>) -> NodeOptions {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    NodeOptions {
        name: Some(name.to_owned()),
        gossip: any,
        http: any,
        admin: any,
        shards: 64,
        cluster: format!("found-{}", std::process::id()),
        data_dir: dir.map(Into::into),
        ..NodeOptions::default()
    }
}

#[tokio::test]
async fn a_node_that_was_in_a_cluster_does_not_found_another_by_accident() {
    let dir = std::env::temp_dir().join(format!("stead-found-{}", std::process::id()));
    let first = Node::builder().options(options("f1", None)).start().await.unwrap();
    let seed = first.handle().gossip_addr().to_string();
    let joins = NodeOptions { join: vec![seed], ..options("f2", Some(&dir)) };
    let second = Node::builder().options(joins).start().await.unwrap();
    second.ready().await.unwrap();
    let remembered = async {
        while stead_shared::net::disk::known_members(&dir).unwrap() != ["f1"] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), remembered).await.expect("f1 is remembered");
    second.run_until(async {}).await.unwrap();

    let alone = Node::builder().options(options("f2", Some(&dir))).start().await;
    let error = alone.expect_err("it belongs to a cluster");
    assert!(matches!(error, NodeError::KnowsOthers { .. }), "{error}");
    assert!(error.to_string().contains("f1") && error.to_string().contains("--found"), "{error}");

    let found = NodeOptions { found: true, ..options("f2", Some(&dir)) };
    let node = Node::builder().options(found).start().await.unwrap();
    node.ready().await.unwrap();
    node.run_until(async {}).await.unwrap();
    first.run_until(async {}).await.unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}
