//! Shards placed by hand, with the commands that do it.

use std::net::SocketAddr;

use serde_json::Value;

use crate::client::get_json;
use crate::counting::{Counting, sessions};
use crate::harness::{Cluster, SOON, eventually, run, signal, stderr, stdout};

const SHARDS: u32 = 256;
const N_SESSIONS: usize = 100;

fn url(admin: SocketAddr) -> String {
    format!("http://{admin}")
}

/// The shard of a session, its owner, and a node that is not.
async fn somebody(cluster: &Cluster) -> (String, String, String) {
    let home: Value = get_json(cluster.router.admin, "/v1/where?key=s-0").await.unwrap();
    let owner = home["owner"].as_str().unwrap().to_owned();
    let other = if owner == "n1" { "n2" } else { "n1" };
    (home["shard"].to_string(), owner, other.to_owned())
}

async fn owner(admin: SocketAddr, shard: &str) -> Result<String, String> {
    let home: Value = get_json(admin, &format!("/v1/shards/{shard}")).await?;
    home["owner"].as_str().map(str::to_owned).ok_or_else(|| format!("{home}"))
}

#[tokio::test]
async fn a_shard_is_moved_by_hand_under_load_and_goes_back() {
    let cluster = Cluster::start(2, SHARDS).await;
    let counting = Counting::start(cluster.front(), &sessions("s", N_SESSIONS), 4);
    counting.rounds(N_SESSIONS, 1).await;
    let (shard, owned_by, other) = somebody(&cluster).await;
    let admins = [cluster.router.admin, cluster.nodes[0].admin, cluster.nodes[1].admin];
    let admin = url(cluster.router.admin);

    let moved = run(&["move", &shard, &other, "--for", "2h", "--wait", "--admin", &admin]).await;
    assert!(moved.status.success(), "{}", stderr(&moved));
    let said = stdout(&moved);
    assert!(said.starts_with(&format!("shard {shard} is at {other} after ")), "{said}");
    let way = format!("shard {shard}: at {owned_by}, on its way to {other}\n");
    assert!(stderr(&moved).contains(&way), "{}", stderr(&moved));

    for admin in admins {
        eventually("the claim", SOON, || async {
            let found = owner(admin, &shard).await?;
            if found == other { Ok(()) } else { Err(found) }
        })
        .await;
        let pins = run(&["pins", "--admin", &url(admin)]).await;
        let row = stdout(&pins).lines().nth(1).unwrap().to_owned();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[..3], [shard.as_str(), &other, "hand"], "{row}");
        assert!(cells[3].starts_with("router-") && cells.last() == Some(&"yes"), "{row}");
        let home = run(&["where", "s-0", "--admin", &url(admin)]).await;
        let home = stdout(&home);
        assert!(home.contains(&format!("pinned to {other} by hand for ")), "{home}");
        let status = run(&["status", "--wait-healthy", "--admin", &url(admin)]).await;
        assert!(stdout(&status).contains("\nmoves: "), "{}", stdout(&status));
    }

    let unpinned = run(&["unpin", &shard, "--admin", &url(cluster.nodes[1].admin)]).await;
    assert!(unpinned.status.success(), "{}", stderr(&unpinned));
    eventually("the way back", SOON, || async {
        let found = owner(cluster.router.admin, &shard).await?;
        if found == owned_by { Ok(()) } else { Err(found) }
    })
    .await;
    let pins = run(&["pins", "--admin", &admin]).await;
    assert_eq!(stdout(&pins), "no shard is pinned\n");
    let pins = run(&["pins", "--json", "--admin", &admin]).await;
    let json: Value = serde_json::from_slice(&pins.stdout).unwrap();
    assert_eq!(json, serde_json::json!({ "pins": [] }));
    counting.rounds(N_SESSIONS, 1).await;
    counting.stop().await.assert_clean("move by hand");
}

#[tokio::test]
async fn what_cannot_be_moved_is_refused_with_what_to_do() {
    let cluster = Cluster::start(2, SHARDS).await;
    let admin = url(cluster.router.admin);
    let router = format!("router-{}", cluster.router.gossip);
    for (arguments, code, names) in [
        (
            &["move", "256", "n1"][..],
            64,
            "404 Not Found: there is no shard 256: shards are numbered 0 to 255",
        ),
        (&["move", "7", "n9"], 64, "404 Not Found: no live node is called `n9`"),
        (&["move", "7", &router], 64, "is a router: it owns no shards; name a node"),
        (&["move", "7", "n1", "--for", "400d"], 64, "1 second to 366 days"),
        (&["unpin", "7"], 64, "shard 7 is not pinned"),
    ] {
        let output = run(&[arguments, &["--admin", &admin]].concat()).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(names), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn a_wait_for_a_move_ends_at_its_deadline() {
    let mut cluster = Cluster::start(2, SHARDS).await;
    let (shard, owned_by, other) = somebody(&cluster).await;
    // An owner that does not run hands nothing off; it is given up after ten seconds.
    signal(cluster.node(&owned_by).proc.pid(), "STOP");
    let admin = url(cluster.router.admin);
    let wait = ["--wait", "--timeout", "300ms", "--admin", &admin];
    let moved = run(&[&["move", &shard, &other], &wait[..]].concat()).await;
    assert_eq!(moved.status.code(), Some(75), "{}", stderr(&moved));
    let hint = format!("shard {shard} is not at {other} after 300ms: ");
    assert!(stderr(&moved).contains(&hint), "{}", stderr(&moved));
    assert!(stderr(&moved).contains(&format!("`stead unpin {shard}`")), "{}", stderr(&moved));
}
