//! Nodes with a data directory: what was answered survives the end of every process, and a disk
//! that cannot be used says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use stead_shared::net::admin::{ShardsReport, WhereReport};

use crate::client::{self, Connection};
use crate::counting::sessions;
use crate::harness::{
    Cluster, Member, Plan, SOON, eventually, free_addr, fresh_dir, node, ready, signal, skipped,
};
use crate::tally::Tally;
use crate::trial::{PATIENCE, Size, Trial, counted_by_nodes};

/// Kills all nodes before any of them can notice that another is gone, and starts them again.
async fn kill_all(trial: &mut Trial, names: &[&str]) {
    for name in names {
        signal(trial.cluster.node(name).proc.pid(), "KILL");
    }
    for name in names {
        trial.cluster.node(name).proc.ended(PATIENCE).await;
    }
    for name in names {
        trial.cluster.start_again(name);
    }
}

async fn all_are_killed_at_once(what: &str, options: &[&str]) {
    let plan = Plan { shards: Size::asked_for().shards, ..on_disk(options) };
    let mut trial = Trial::planned(plan).await;
    trial.cluster.settled(3).await;
    let rounds = if trial.size.full { 10 } else { 2 };
    for _ in 0..rounds {
        trial.judge.phase("all killed");
        kill_all(&mut trial, &["n1", "n2", "n3"]).await;
        trial.judge.all_succeed(PATIENCE).await;
        trial.cluster.settled(3).await;
        trial.judge.seconds(1.0, PATIENCE).await;
    }
    assert_eq!(counted_by_nodes(&trial.cluster, "stead_shards_lost_total").await, 0);
    let (_cluster, report) = trial.end(what).await;
    report.assert_values(what);
}

#[tokio::test]
async fn all_nodes_killed_at_once_lose_nothing() {
    all_are_killed_at_once("all killed", &COPIED).await;
}

#[tokio::test]
async fn all_nodes_without_copies_killed_at_once_lose_nothing() {
    all_are_killed_at_once("all killed, no copies", &DISK_ALONE).await;
}

/// Counts with an idempotency key. The value, and whether it was told before.
async fn count_keyed(cluster: &Cluster, session: &str) -> Result<(i64, bool), String> {
    let path = format!("/sessions/{session}/counters/n");
    let mut connection = Connection::open(cluster.front()).await?;
    let answer = connection.send_keyed(Method::POST, &path, Bytes::new(), Some(session)).await?;
    let answer = answer.success()?;
    Ok((answer.counter()?, answer.header("stead-replayed") == "true"))
}

#[tokio::test]
async fn all_nodes_killed_at_once_remember_what_they_answered() {
    let mut cluster = Cluster::planned(on_disk(&COPIED)).await;
    cluster.settled(3).await;
    let names: Vec<String> = (0..40).map(|i| format!("asked-{i}")).collect();
    for name in &names {
        assert_eq!(count_keyed(&cluster, name).await, Ok((1, false)));
    }
    for name in ["n1", "n2", "n3"] {
        signal(cluster.node(name).proc.pid(), "KILL");
    }
    for name in ["n1", "n2", "n3"] {
        cluster.node(name).proc.ended(PATIENCE).await;
        cluster.start_again(name);
    }
    cluster.settled(3).await;
    for name in &names {
        assert_eq!(count_keyed(&cluster, name).await, Ok((1, true)), "{name}");
    }
}

#[tokio::test]
async fn one_node_killed_and_started_again_loses_nothing() {
    let plan = Plan { shards: Size::asked_for().shards, ..on_disk(&COPIED) };
    let mut trial = Trial::planned(plan).await;
    trial.cluster.settled(3).await;
    for name in ["n2", "n3"] {
        trial.judge.phase("killed");
        trial.kill(name).await;
        trial.cluster.start_again(name);
        trial.judge.all_succeed(PATIENCE).await;
        trial.cluster.settled(3).await;
        trial.judge.seconds(1.0, PATIENCE).await;
    }
    let (_cluster, report) = trial.end("one killed").await;
    report.assert_values("one killed");
}

pub(crate) async fn put(addr: std::net::SocketAddr, name: &str, value: &str) -> Result<(), String> {
    let body = Bytes::copy_from_slice(value.as_bytes());
    let path = format!("/sessions/{name}");
    let answer = Connection::open(addr).await?.send_body(Method::PUT, &path, body).await?;
    answer.success().map(drop)
}

pub(crate) async fn value(addr: std::net::SocketAddr, name: &str) -> Result<String, String> {
    let answer = client::get(addr, &format!("/sessions/{name}")).await?.success()?;
    Ok(String::from_utf8_lossy(&answer.body).into_owned())
}

/// Waits until each session has its name as value.
pub(crate) async fn is_there(cluster: &Cluster, names: &[String]) {
    for name in names {
        eventually("the session", PATIENCE, || async {
            let found = value(cluster.front(), name).await?;
            if found == *name { Ok(()) } else { Err(format!("{name}: {found}")) }
        })
        .await;
    }
}

/// Three nodes that answer a change when it is on disk, as these options say.
fn on_disk(options: &[&str]) -> Plan {
    let node_options = options.iter().map(|word| (*word).to_owned()).collect();
    Plan { disks: true, node_options, ..Plan::of(3, 64) }
}

const COPIED: [&str; 2] = ["--ack", "replica+disk"];
const DISK_ALONE: [&str; 4] = ["--ack", "memory+disk", "--replicas", "0"];

/// Without copies others begin the shards of a dead node empty. It has them on disk, and gives them
/// to whoever serves them when it is back.
#[tokio::test]
async fn a_node_without_copies_elsewhere_brings_its_sessions_back() {
    let mut cluster = Cluster::planned(on_disk(&DISK_ALONE)).await;
    let names: Vec<String> = (0..120).map(|i| format!("kept-{i}")).collect();
    for name in &names {
        put(cluster.front(), name, name).await.unwrap();
    }
    signal(cluster.node("n2").proc.pid(), "KILL");
    cluster.node("n2").proc.ended(PATIENCE).await;
    cluster.settled(2).await;
    let mut n_missing = 0;
    for name in &names {
        n_missing += u32::from(value(cluster.front(), name).await.is_err());
    }
    assert!(0 < n_missing, "n2 had sessions");
    cluster.start_again("n2");
    cluster.settled(3).await;
    is_there(&cluster, &names).await;
}

/// Of two histories of a session the newer value stays, and counters have what both added. One that
/// is only on the node's disk comes back, whatever was deleted of it elsewhere: who began empty knows
/// nothing of it.
#[tokio::test]
async fn what_was_written_while_a_node_without_copies_was_away_meets_what_it_has() {
    let mut cluster = Cluster::planned(on_disk(&DISK_ALONE)).await;
    let names: Vec<String> = (0..120).map(|i| format!("met-{i}")).collect();
    for name in &names {
        put(cluster.front(), name, name).await.unwrap();
        client::count(cluster.front(), name).await.unwrap();
    }
    signal(cluster.node("n2").proc.pid(), "KILL");
    cluster.node("n2").proc.ended(PATIENCE).await;
    cluster.settled(2).await;
    let mut missing = Vec::new();
    for name in &names {
        if value(cluster.front(), name).await.is_err() {
            missing.push(name.clone());
        }
    }
    assert!(6 < missing.len(), "n2 had sessions");
    let (written, deleted) = missing.split_at(missing.len() / 2);
    for name in written {
        put(cluster.front(), name, "new").await.unwrap();
        assert_eq!(client::count(cluster.front(), name).await.unwrap().counter(), Ok(1));
    }
    for name in deleted {
        let path = format!("/sessions/{name}");
        put(cluster.front(), name, "new").await.unwrap();
        client::once(cluster.front(), Method::DELETE, &path).await.unwrap().success().unwrap();
    }
    cluster.start_again("n2");
    cluster.settled(3).await;
    is_there(&cluster, deleted).await;
    for name in written {
        let path = format!("/sessions/{name}/counters/visits");
        eventually("both histories", PATIENCE, || async {
            let found = client::get(cluster.front(), &path).await?.success()?.counter()?;
            if found == 2 { Ok(()) } else { Err(format!("{name}: {found}")) }
        })
        .await;
        assert_eq!(value(cluster.front(), name).await.as_deref(), Ok("new"), "{name}");
    }
}

#[tokio::test]
async fn what_was_deleted_while_a_node_was_away_stays_deleted() {
    let mut cluster = Cluster::planned(on_disk(&COPIED)).await;
    let names: Vec<String> = (0..60).map(|i| format!("gone-{i}")).collect();
    for name in &names {
        put(cluster.front(), name, name).await.unwrap();
    }
    signal(cluster.node("n2").proc.pid(), "KILL");
    cluster.node("n2").proc.ended(PATIENCE).await;
    cluster.settled(2).await;
    for name in &names {
        let path = format!("/sessions/{name}");
        client::once(cluster.front(), Method::DELETE, &path).await.unwrap().success().unwrap();
    }
    cluster.start_again("n2");
    cluster.settled(3).await;
    for name in &names {
        let answer = client::get(cluster.front(), &format!("/sessions/{name}")).await.unwrap();
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{name} came back");
    }
}

/// The last one has everything: those that start with it wait for it, and begin nothing empty.
async fn are_stopped_node_by_node(options: &[&str]) {
    let mut cluster = Cluster::planned(on_disk(options)).await;
    let names: Vec<String> = (0..60).map(|i| format!("stopped-{i}")).collect();
    for name in &names {
        put(cluster.front(), name, name).await.unwrap();
    }
    let nodes = ["n1", "n2", "n3"];
    for name in nodes {
        signal(cluster.node(name).proc.pid(), "TERM");
        let status = cluster.node(name).proc.ended(PATIENCE).await;
        assert!(status.success(), "{name}: {status}");
    }
    for name in nodes {
        cluster.start_again(name);
    }
    is_there(&cluster, &names).await;
    cluster.settled(3).await;
}

#[tokio::test]
async fn a_cluster_that_was_stopped_node_by_node_starts_with_its_sessions() {
    are_stopped_node_by_node(&COPIED).await;
}

#[tokio::test]
async fn a_cluster_without_copies_that_was_stopped_node_by_node_starts_with_its_sessions() {
    are_stopped_node_by_node(&DISK_ALONE).await;
}

/// A node alone that keeps its sessions in `data`.
pub(crate) fn alone(dir: &Path, name: &str, data: &Path, more: &[&str]) -> Member {
    let data = data.display().to_string();
    let options = [&["--data-dir", &data, "--ack", "memory+disk"], more].concat();
    node(dir, name, free_addr(), "", 64, &options)
}

/// The same node in a cluster of two shards.
fn few_shards(dir: &Path, data: &Path) -> Member {
    let data = data.display().to_string();
    node(dir, "n1", free_addr(), "", 2, &["--data-dir", &data])
}

async fn kill(member: &mut Member) {
    signal(member.proc.pid(), "KILL");
    member.proc.ended(SOON).await;
}

/// The member ends by itself, with a message that has all of `pieces`.
async fn is_refused(mut member: Member, pieces: &[&str]) {
    let status = member.proc.ended(SOON).await;
    let log = member.proc.log();
    assert!(status.code().is_some_and(|code| code != 0), "{status}: {log}");
    assert!(!log.contains("panicked"), "{log}");
    for piece in pieces {
        assert!(log.contains(piece), "`{piece}` is not in: {log}");
    }
}

#[tokio::test]
async fn a_data_directory_of_somebody_else_is_refused() {
    let dir = fresh_dir();
    let data = dir.join("data");
    let mut first = alone(&dir, "n1", &data, &[]);
    ready(&first).await;
    put(first.http, "alice", "cart").await.unwrap();
    is_refused(alone(&dir, "n1", &data, &[]), &["in use", "--data-dir"]).await;
    kill(&mut first).await;
    is_refused(alone(&dir, "n2", &data, &[]), &["n1", "n2", "--name n1"]).await;
    is_refused(alone(&dir, "n1", &data, &["--cluster", "other"]), &["another cluster"]).await;
    is_refused(few_shards(&dir, &data), &["--shards", "shard"]).await;
    let again = alone(&dir, "n1", &data, &[]);
    ready(&again).await;
    assert_eq!(value(again.http, "alice").await.as_deref(), Ok("cart"));
}

#[tokio::test]
async fn sessions_that_do_not_fit_into_memory_are_not_begun_with() {
    let dir = fresh_dir();
    let data = dir.join("data");
    let mut first = alone(&dir, "n1", &data, &[]);
    ready(&first).await;
    for i in 0..20 {
        put(first.http, &format!("s{i}"), &"x".repeat(1000)).await.unwrap();
    }
    kill(&mut first).await;
    let small = alone(&dir, "n1", &data, &["--memory-max", "8KiB"]);
    is_refused(small, &["--memory-max", "shard"]).await;
    let again = alone(&dir, "n1", &data, &[]);
    ready(&again).await;
    for i in 0..20 {
        assert_eq!(value(again.http, &format!("s{i}")).await.map(|it| it.len()), Ok(1000));
    }
}

/// Flips a bit of a marker in whatever files of a node's state it is in. How many that were.
fn flip(data: &Path, marker: &str) -> usize {
    let mut n_flipped = 0;
    let mut folders = vec![data.join("state")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(marker.len()).position(|at| at == marker.as_bytes());
            let Some(at) = found else { continue };
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            n_flipped += 1;
        }
    }
    n_flipped
}

#[tokio::test]
async fn damaged_shards_of_a_node_alone_are_refused_and_named() {
    let dir = fresh_dir();
    let data = dir.join("data");
    let mut first = alone(&dir, "n1", &data, &[]);
    ready(&first).await;
    for i in 0..40 {
        put(first.http, &format!("s{i}"), &format!("value-of-{i}.")).await.unwrap();
    }
    kill(&mut first).await;
    assert!(0 < flip(&data, "value-of-39."));
    for _ in 0..2 {
        let mut again = alone(&dir, "n1", &data, &[]);
        ready(&again).await;
        let refused = client::get(again.http, "/sessions/s39").await.unwrap();
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.header("stead-refusal"), "quarantined");
        let mut n_served = 0;
        for i in 0..39 {
            let answer = client::get(again.http, &format!("/sessions/s{i}")).await.unwrap();
            if answer.status.is_success() {
                assert_eq!(answer.body, format!("value-of-{i}."));
                n_served += 1;
            } else {
                assert_eq!(answer.header("stead-refusal"), "quarantined", "s{i}");
            }
        }
        assert!(0 < n_served, "only what is damaged is refused");
        let report: ShardsReport = client::get_json(again.admin, "/v1/shards").await.unwrap();
        assert!(!report.quarantined.is_empty());
        let log = again.proc.log();
        let named = format!("shard={}", report.quarantined[0]);
        assert!(log.contains("a shard is quarantined") && log.contains(&named), "{log}");
        kill(&mut again).await;
    }
}

#[tokio::test]
async fn damaged_shards_are_taken_from_another_node() {
    let mut cluster = Cluster::planned(on_disk(&COPIED)).await;
    let names: Vec<String> = (0..60).map(|i| format!("s{i}")).collect();
    for name in &names {
        put(cluster.front(), name, &format!("value-of-{name}.")).await.unwrap();
    }
    cluster.settled(3).await;
    // Nobody waits for the disks of copies but this test.
    eventually("all disks have everything", PATIENCE, || async {
        match counted_by_nodes(&cluster, "stead_disk_queue_bytes").await {
            0 => Ok(()),
            n => Err(format!("{n} bytes wait")),
        }
    })
    .await;
    let nodes = ["n1", "n2", "n3"];
    for name in nodes {
        signal(cluster.node(name).proc.pid(), "KILL");
        cluster.node(name).proc.ended(PATIENCE).await;
    }
    let data = cluster.dir.join("data-n2");
    let n_flipped: usize = names.iter().map(|name| flip(&data, &format!("value-of-{name}."))).sum();
    assert!(0 < n_flipped);
    for name in nodes {
        cluster.start_again(name);
    }
    for name in &names {
        eventually("the session", PATIENCE, || async {
            let found = value(cluster.front(), name).await?;
            let right = found == format!("value-of-{name}.");
            if right { Ok(()) } else { Err(format!("{name}: {found}")) }
        })
        .await;
    }
    let damaged = counted_by_nodes(&cluster, "stead_disk_damaged_shards_total").await;
    assert!(0 < damaged, "it was noticed");
    cluster.settled(3).await;
}

/// Room for a database, and no more than a test fills at once.
const SMALL_BYTES: usize = 48 << 20;

/// A small file system in memory. Needs root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it at `place`; says so if that cannot be done for `test`.
    fn mount_for(test: &str, place: PathBuf, bytes: usize) -> Option<Self> {
        match Self::mount(place, bytes) {
            Ok(small) => Some(small),
            Err(why) => {
                skipped(test, &format!("a small file system cannot be mounted here: {why}"));
                None
            }
        }
    }

    fn mount(place: PathBuf, bytes: usize) -> Result<Self, String> {
        std::fs::create_dir_all(&place).map_err(|error| error.to_string())?;
        let size = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "stead-test"])
            .arg(&place)
            .output()
            .map_err(|error| error.to_string())?;
        if !mounted.status.success() {
            return Err(String::from_utf8_lossy(&mounted.stderr).into_owned());
        }
        Ok(Self(place))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A process that is still there has files open; it is gone when it is told to.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_changes_and_serves_reads_until_there_is_room() {
    let dir = fresh_dir();
    let test = "a_full_disk_refuses_changes_and_serves_reads_until_there_is_room";
    let Some(small) = SmallDisk::mount_for(test, dir.join("small"), SMALL_BYTES) else { return };
    let data = small.0.join("data");
    let member = alone(&dir, "n1", &data, &[]);
    ready(&member).await;
    put(member.http, "before", "here").await.unwrap();
    // What somebody else has put there.
    let ballast = small.0.join("ballast");
    fill(&ballast);
    let refused = refused(member.http, "big").await;
    let document: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(document["type"], "urn:stead:problem:disk-full", "{document}");
    assert!(document["detail"].as_str().unwrap().contains("--data-dir"), "{document}");
    assert_eq!(value(member.http, "before").await.as_deref(), Ok("here"));
    let metrics = client::get(member.admin, "/metrics").await.unwrap().success().unwrap();
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("stead_disk_failing 1"), "it is said");
    std::fs::remove_file(&ballast).unwrap();
    eventually("a change", PATIENCE, || put(member.http, "after", "there")).await;
    let mut member = member;
    kill(&mut member).await;
    let again = alone(&dir, "n1", &data, &[]);
    ready(&again).await;
    for (name, found) in [("before", "here"), ("after", "there")] {
        assert_eq!(value(again.http, name).await.as_deref(), Ok(found), "{name}");
    }
}

/// Writes large values until one is refused because the disk is full.
async fn refused(http: std::net::SocketAddr, session: &str) -> client::Answer {
    let (path, big) = (format!("/sessions/{session}"), Bytes::from(vec![b'x'; 64 << 10]));
    let refused = eventually("a refusal", Duration::from_secs(30), || async {
        let mut connection = Connection::open(http).await?;
        let answer = connection.send_body(Method::PUT, &path, big.clone()).await?;
        match answer.status {
            StatusCode::INSUFFICIENT_STORAGE => Ok(answer),
            other => Err(format!("{other}")),
        }
    })
    .await;
    assert_eq!(refused.header("stead-refusal"), "disk-full");
    refused
}

/// Sessions of `names` that a node owns, asked of the node itself.
async fn owned(node: &Member, names: &[String]) -> Vec<String> {
    let mut owned = Vec::new();
    for name in names {
        let home: WhereReport =
            client::get_json(node.admin, &format!("/v1/where?key={name}")).await.unwrap();
        if home.owner.as_deref() == Some(&node.proc.name) {
            owned.push(name.clone());
        }
    }
    owned
}

/// Three nodes with copies and answers from the disk, of which `n3` has a small one, and counters.
struct OneSmall {
    cluster: Cluster,
    tally: Tally,
    ballast: PathBuf,
    // Goes when nobody uses it any more.
    _small: SmallDisk,
}

impl OneSmall {
    async fn start(test: &str) -> Option<Self> {
        let mut cluster =
            Cluster::planned(Plan { nodes: Plan::of(2, 64).nodes, ..on_disk(&COPIED) }).await;
        let small = SmallDisk::mount_for(test, cluster.dir.join("data-n3"), SMALL_BYTES)?;
        cluster.add("n3");
        cluster.settled(3).await;
        let mut tally = Tally::new("full", 60);
        tally.until_answered(cluster.front()).await;
        let ballast = small.0.join("ballast");
        Some(Self { cluster, tally, ballast, _small: small })
    }

    /// Fills the disk of `n3` until it says so.
    async fn fill(&mut self) {
        fill(&self.ballast);
        let larges = sessions("large", 60);
        let n3 = self.cluster.node("n3");
        let large = owned(n3, &larges).await.swap_remove(0);
        refused(n3.http, &large).await;
    }

    fn make_room(&self) {
        std::fs::remove_file(&self.ballast).unwrap();
    }

    /// Everything is counted on once more, and all that was answered is there.
    async fn is_whole(&mut self) {
        self.cluster.settled(3).await;
        self.tally.until_answered(self.cluster.front()).await;
        self.tally.is_whole(self.cluster.front(), PATIENCE).await;
    }
}

/// Goal: a node with copies whose disk is full refuses changes of its own sessions, serves reads, and
/// stands in nobody's way; what was answered is not lost, and not when the disk stays full to the
/// node's end. Method: the disk of one node of three is filled while counters are counted, and there is
/// room again; it is filled again, and the node is killed; it is filled once more, and all nodes are
/// killed. Each time counters must have what was answered and no more than was asked.
#[tokio::test]
async fn a_full_disk_of_one_node_with_copies_loses_nothing() {
    let test = "a_full_disk_of_one_node_with_copies_loses_nothing";
    let Some(mut trial) = OneSmall::start(test).await else { return };
    let all: Vec<String> = trial.tally.sessions().cloned().collect();

    trial.fill().await;
    let front = trial.cluster.front();
    assert!(!trial.tally.count_all(front).await, "n3 refuses");
    let its_own = owned(trial.cluster.node("n3"), &all).await;
    assert!(!its_own.is_empty() && its_own.len() < all.len());
    for name in &all {
        let path = format!("/sessions/{name}/counters/visits");
        client::get(front, &path).await.unwrap().success().unwrap();
        let answer = client::once(front, Method::POST, &path).await.unwrap();
        if its_own.contains(name) {
            assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE, "{name}");
            assert_eq!(answer.header("stead-refusal"), "disk-full");
        } else {
            trial.tally.heard(name, &answer);
            answer.success().unwrap();
        }
    }
    trial.make_room();
    trial.is_whole().await;

    trial.fill().await;
    trial.tally.count_all(front).await;
    signal(trial.cluster.node("n3").proc.pid(), "KILL");
    trial.cluster.node("n3").proc.ended(PATIENCE).await;
    trial.tally.until_answered(front).await;
    trial.make_room();
    trial.cluster.start_again("n3");
    trial.is_whole().await;

    trial.fill().await;
    trial.tally.count_all(front).await;
    let names = ["n1", "n2", "n3"];
    for name in names {
        trial.cluster.node(name).proc.child.kill().unwrap();
    }
    for name in names {
        trial.cluster.node(name).proc.ended(PATIENCE).await;
    }
    trial.make_room();
    for name in names {
        trial.cluster.start_again(name);
    }
    trial.is_whole().await;
    let (counted, unknown) = trial.tally.told();
    println!("full: {counted} counted, {unknown} unknown");
    assert_eq!(counted_by_nodes(&trial.cluster, "stead_shards_lost_total").await, 0);
}

/// Fills a disk to its last byte.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    let mut block = vec![0; 1 << 20];
    while !block.is_empty() {
        if file.write_all(&block).is_err() {
            block.truncate(block.len() / 2);
        }
    }
}
