//! Starts that cannot succeed: one clear message, an exit code, nothing half-started.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::client;
use crate::harness::{
    Member, SOON, free_addr, fresh_dir, keys, node, ready, router, run, stderr, stdout,
};

/// The member ends by itself with a failure and a message that has all of `pieces`; none of its
/// listeners answers afterwards.
async fn fails(mut member: Member, pieces: &[&str]) {
    let status = member.proc.ended(SOON).await;
    let log = member.proc.log();
    assert!(!status.success(), "{status}: {log}");
    assert_ne!(status.code(), None, "no signal and no panic: {log}");
    assert!(!log.contains("panicked"), "{log}");
    for piece in pieces {
        assert!(log.contains(piece), "`{piece}` is not in: {log}");
    }
    assert!(client::get(member.admin, "/healthz").await.is_err(), "its admin listener answers");
}

/// A node that is ready, alone.
async fn founder(dir: &Path, more: &[&str]) -> Member {
    let member = node(dir, "n1", free_addr(), "", 64, more);
    ready(&member).await;
    member
}

#[tokio::test]
async fn two_nodes_of_one_name_cannot_run_together() {
    let dir = fresh_dir();
    let first = founder(&dir, &[]).await;
    let second = node(&dir, "n1", free_addr(), &first.gossip.to_string(), 64, &[]);
    fails(second, &["n1"]).await;
    client::get(first.admin, "/readyz").await.unwrap().success().unwrap();
}

#[tokio::test]
async fn another_number_of_shards_is_refused() {
    let dir = fresh_dir();
    let first = founder(&dir, &[]).await;
    let second = node(&dir, "n2", free_addr(), &first.gossip.to_string(), 128, &[]);
    fails(second, &["64", "128", "shards"]).await;
    client::get(first.admin, "/readyz").await.unwrap().success().unwrap();
}

#[tokio::test]
async fn a_node_with_another_key_is_refused() {
    let dir = fresh_dir();
    let (ours, theirs) = (keys(&dir, "ours.toml"), keys(&dir, "theirs.toml"));
    let first = founder(&dir, &["--cluster-key-file", &ours]).await;
    let join = first.gossip.to_string();
    let second = node(&dir, "n2", free_addr(), &join, 64, &["--cluster-key-file", &theirs]);
    fails(second, &["key"]).await;
    let without = node(&dir, "n3", free_addr(), &join, 64, &[]);
    fails(without, &["key"]).await;
    let router = router(&dir, &join, &["--cluster-key-file", &theirs]);
    fails(router, &["key"]).await;
    client::get(first.admin, "/readyz").await.unwrap().success().unwrap();
}

#[tokio::test]
async fn members_with_one_key_form_a_cluster() {
    let dir = fresh_dir();
    let key = keys(&dir, "keys.toml");
    let first = founder(&dir, &["--cluster-key-file", &key]).await;
    let join = first.gossip.to_string();
    let router = router(&dir, &join, &["--cluster-key-file", &key]);
    ready(&router).await;
    let answer = client::count(router.http, "alice").await.unwrap();
    assert_eq!(answer.counter(), Ok(1));
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let dir = fresh_dir();
    let first = founder(&dir, &[]).await;
    let taken = |flag: &'static str, addr: SocketAddr| (flag, addr.to_string());
    for (flag, addr) in [
        taken("--gossip", first.gossip),
        taken("--http", first.http),
        taken("--admin", first.admin),
    ] {
        let (gossip, http, admin) = (free_addr(), free_addr(), free_addr());
        let (gossip, http, admin) = (gossip.to_string(), http.to_string(), admin.to_string());
        let mut addresses = [("--gossip", gossip), ("--http", http), ("--admin", admin)];
        for address in addresses.iter_mut().filter(|address| address.0 == flag) {
            address.1.clone_from(&addr);
        }
        let mut arguments = vec!["node", "--name", "n2"];
        arguments.extend(addresses.iter().flat_map(|(flag, addr)| [*flag, addr.as_str()]));
        let output = run(&arguments).await;
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(71), "{message}");
        assert!(message.contains(&addr) && message.contains("in use"), "{message}");
        assert!(message.contains(&flag[2..]), "{message}");
    }
    client::get(first.admin, "/readyz").await.unwrap().success().unwrap();
}

#[tokio::test]
async fn options_that_cannot_be_used_are_named() {
    for (arguments, code, piece) in [
        (&["node"][..], 78, "--name"),
        (&["node", "--name", "n1", "--weight", "heavy"], 64, "--weight"),
        (&["node", "--name", "n1", "--weight", "101"], 78, "--weight"),
        (&["node", "--name", "n1", "--gossip", "10.0.0.1:7400"], 78, "stead keygen"),
        (&["node", "--name", "n1", "--no-such-flag"], 64, "--no-such-flag"),
        (&["node", "--name", "n1", "--log", "n1=loud"], 78, "--log"),
        (&["router", "--key", "path:2"], 78, "--join"),
        (&["router", "--join", "127.0.0.1:7400"], 78, "--key"),
        (&["router", "--join", "127.0.0.1:7400", "--key", "segment:2"], 78, "segment:2"),
        (&["node", "--name", "n1", "--config", "/nowhere/n1.toml"], 66, "/nowhere/n1.toml"),
        (&["frobnicate"], 64, "frobnicate"),
    ] {
        let output = run(arguments).await;
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(piece), "{arguments:?}: {message}");
        assert!(stdout(&output).is_empty());
    }
}

#[tokio::test]
async fn a_key_file_that_cannot_be_used_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = fresh_dir();
    let (missing, exposed) = (dir.join("missing.toml"), keys(&dir, "exposed.toml"));
    fs::set_permissions(&exposed, fs::Permissions::from_mode(0o644)).unwrap();
    let garbage = dir.join("garbage.toml");
    fs::write(&garbage, "hash_secret = 1\n").unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o600)).unwrap();
    for (path, code, piece) in [
        (missing.display().to_string(), 66, "No such file"),
        (exposed, 78, "chmod 600"),
        (garbage.display().to_string(), 78, "line 1"),
    ] {
        let any = "127.0.0.1:0";
        let addresses = ["--gossip", any, "--http", any, "--admin", any];
        let mut arguments = vec!["node", "--name", "n1", "--cluster-key-file", &path];
        arguments.extend(addresses);
        let output = run(&arguments).await;
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(&path) && message.contains(piece), "{message}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_with_its_line() {
    let dir = fresh_dir();
    for (text, code, place) in [
        ("name = \"n1\"\nwieght = 2\n", 78, ":2: unknown option `wieght`"),
        ("name = \"n1\"\nweight = \"2\"\n", 78, ":2: "),
        ("name = \"n1\"\n\nweight = 1000\n", 78, ":3: weight"),
        ("name = n1\n", 78, ":1: "),
    ] {
        let path = dir.join("n1.toml").display().to_string();
        fs::write(&path, text).unwrap();
        for command in [&["node", "--config", &path][..], &["config", "check", &path]] {
            let output = run(command).await;
            let message = stderr(&output);
            assert_eq!(output.status.code(), Some(code), "{message}");
            assert!(message.contains(&format!("{path}{place}")), "{message}");
        }
    }
}
