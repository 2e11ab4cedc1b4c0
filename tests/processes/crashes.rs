//! Nodes that are killed while they are busy with their disk: write tables, read at the start what is
//! there, hand shards over. What was answered with `+disk` is neither lost nor counted twice.
//!
//! The moments are left to chance; `SEED=n` repeats them. Every day small; `JUDGE=full` does more.

use std::collections::BTreeSet;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Method;
use tokio::time::Instant;

use crate::ballast::Ballast;
use crate::chance::Chance;
use crate::client::{self, Connection};
use crate::harness::{Cluster, Plan, SOON, eventually, fresh_dir, ready};
use crate::trial::{PATIENCE, Size, TooLate, Trial, counted_by_nodes, in_mid_move};

const ALL: [&str; 3] = ["n1", "n2", "n3"];
/// What takes a start some time to read.
const READ_BYTES: u64 = 32 << 20;

/// `n` nodes that answer a change when it is on their disks, as these options say.
fn on_disk(n: usize, options: &[&str]) -> Plan {
    let mut plan = Plan { disks: true, ..Plan::of(n, Size::asked_for().shards) };
    plan.node_options.extend(options.iter().map(|word| (*word).to_owned()));
    plan
}

pub(crate) const COPIED: [&str; 2] = ["--ack", "replica+disk"];
pub(crate) const DISK_ALONE: [&str; 4] = ["--ack", "memory+disk", "--replicas", "0"];

/// A number of rounds, every day and at full size.
fn rounds(small: usize, full: usize) -> usize {
    if Size::asked_for().full { full } else { small }
}

/// Kills nodes before any of them can notice that another is gone.
async fn kill(trial: &mut Trial, names: &[&str]) {
    for name in names {
        // Not by a command, which would take its time.
        trial.cluster.node(name).proc.child.kill().unwrap();
    }
    for name in names {
        trial.cluster.node(name).proc.ended(PATIENCE).await;
    }
}

/// Waits until all shards have owners and copies. They need not be where placement wants them: after so
/// many deaths nothing moves for balance for half a minute.
async fn copied(trial: &Trial) {
    eventually("copies of all shards", PATIENCE, || async {
        let report = trial.cluster.shards().await?;
        match (report.unowned, report.under_replicated) {
            (0, 0) => Ok(()),
            short => Err(format!("{short:?} unowned and short")),
        }
    })
    .await;
}

async fn assert_nothing_lost(trial: &Trial) {
    assert_eq!(counted_by_nodes(&trial.cluster, "stead_shards_lost_total").await, 0);
    assert_eq!(counted_by_nodes(&trial.cluster, "stead_disk_damaged_shards_total").await, 0);
}

/// A table of a node's database, whole or not. A start that removes one may make another of that name.
type Table = (PathBuf, SystemTime);

/// The tables of a node's database.
struct Tables {
    keyspaces: PathBuf,
    seen: BTreeSet<Table>,
}

impl Tables {
    fn of(cluster: &Cluster, node: &str) -> Self {
        let keyspaces = cluster.dir.join(format!("data-{node}")).join("state/keyspaces");
        let mut tables = Self { keyspaces, seen: BTreeSet::new() };
        tables.seen = tables.now();
        tables
    }

    fn now(&self) -> BTreeSet<Table> {
        // What was there a moment ago may be gone.
        let entries = |dir: &Path| -> Vec<DirEntry> {
            std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).collect()
        };
        let keyspaces = entries(&self.keyspaces).into_iter();
        let tables = keyspaces.flat_map(|keyspace| entries(&keyspace.path().join("tables")));
        let table = |it: DirEntry| Some((it.path(), it.metadata().ok()?.created().ok()?));
        tables.filter_map(table).collect()
    }

    /// Waits until one more is begun.
    async fn begun(&mut self) {
        let mut looks = tokio::time::interval(Duration::from_millis(1));
        let deadline = Instant::now() + PATIENCE;
        loop {
            looks.tick().await;
            let now = self.now();
            if !now.is_subset(&self.seen) {
                self.seen.extend(now);
                return;
            }
            assert!(Instant::now() < deadline, "no table is written");
        }
    }
}

/// Goal: what was answered is there whatever of the database's own work was done. Method: large values
/// are written until the database of one of `n` nodes begins a table, of what it had in memory or of
/// other tables, and that node is killed a moment later. What it leaves unfinished is counted: files
/// that the next start removes.
async fn is_killed_while_it_writes_tables(what: &str, n: usize, options: &[&str]) {
    let mut chance = Chance::of(what);
    let mut trial = Trial::planned_light(on_disk(n, options)).await;
    trial.cluster.settled(n).await;
    let ballast = Ballast::start(trial.cluster.front());
    let mut n_unfinished = 0;
    let n_rounds = rounds(1, 12);
    for _ in 0..n_rounds {
        trial.judge.phase("tables");
        let victim = chance.shuffled(&ALL[..n])[0];
        let mut tables = Tables::of(&trial.cluster, victim);
        // More than four of the first level are merged.
        for _ in 0..=chance.below(rounds(1, 7)) {
            tables.begun().await;
        }
        chance.moment(Duration::from_millis(80)).await;
        kill(&mut trial, &[victim]).await;
        let left = tables.now();
        trial.cluster.start_again(victim);
        ready(trial.cluster.node(victim)).await;
        n_unfinished += usize::from(!left.is_subset(&tables.now()));
        trial.judge.all_succeed(PATIENCE).await;
        copied(&trial).await;
        assert_nothing_lost(&trial).await;
    }
    let written = ballast.stop().await;
    println!("{what}: {n_unfinished} of {n_rounds} kills left files that were of no use");
    written.assert_there().await;
    let (_cluster, report) = trial.end(what).await;
    report.assert_values(what);
}

#[tokio::test]
async fn a_node_killed_while_it_writes_tables_loses_nothing() {
    is_killed_while_it_writes_tables("tables", 1, &DISK_ALONE).await;
}

#[tokio::test]
async fn a_node_with_copies_killed_while_it_writes_tables_loses_nothing() {
    is_killed_while_it_writes_tables("tables, copies", 3, &COPIED).await;
}

/// Whether a node has read its disk since it was started.
fn has_read(trial: &mut Trial) -> bool {
    trial.cluster.node("n1").proc.log().contains("shards were read from disk")
}

/// Goal: a start that is killed is no worse than none. Method: as often as the node was killed before
/// it had read its disk; each second time it gets further, up to where it serves.
async fn is_killed_while_it_reads_its_disk(what: &str, n: usize, options: &[&str]) {
    let mut chance = Chance::of(what);
    let mut trial = Trial::planned(on_disk(n, options)).await;
    trial.cluster.settled(n).await;
    let ballast = Ballast::start(trial.cluster.front());
    ballast.writes(READ_BYTES * rounds(1, 3) as u64).await;
    let written = ballast.stop().await;
    trial.judge.phase("reading");
    kill(&mut trial, &["n1"]).await;
    let begun = Instant::now();
    trial.cluster.start_again("n1");
    eventually("shards read from disk", PATIENCE, || {
        std::future::ready(if has_read(&mut trial) { Ok(()) } else { Err(String::new()) })
    })
    .await;
    let reads = begun.elapsed();
    ready(trial.cluster.node("n1")).await;
    let serves = begun.elapsed();
    let (mut n_kills, mut n_reading) = (0, 0);
    while n_reading < rounds(2, 30) {
        kill(&mut trial, &["n1"]).await;
        n_kills += 1;
        assert!(n_kills <= 200, "{n_reading} of {n_kills} kills met what takes {reads:?}");
        trial.cluster.start_again("n1");
        chance.moment(if n_kills % 2 == 0 { serves } else { reads }).await;
        n_reading += usize::from(!has_read(&mut trial));
    }
    println!("{what}: {n_reading} of {n_kills} kills met the reading, which takes {reads:?}");
    kill(&mut trial, &["n1"]).await;
    trial.cluster.start_again("n1");
    ready(trial.cluster.node("n1")).await;
    // What fell due meanwhile is asked first, and is up to half of what the node can answer.
    trial.judge.all_succeed(PATIENCE + begun.elapsed() * 2).await;
    copied(&trial).await;
    assert_nothing_lost(&trial).await;
    written.assert_there().await;
    let (_cluster, report) = trial.end(what).await;
    report.assert_values(what);
}

#[tokio::test]
async fn a_node_killed_while_it_reads_its_disk_loses_nothing() {
    is_killed_while_it_reads_its_disk("reading", 1, &DISK_ALONE).await;
}

#[tokio::test]
async fn a_node_with_copies_killed_while_it_reads_its_disk_loses_nothing() {
    is_killed_while_it_reads_its_disk("reading, copies", 3, &COPIED).await;
}

/// Goal: so is the start of a cluster, whatever of it had found the others, agreed on who has the newest
/// of each shard, and served it. Method: all nodes are killed, started in any order, and killed again
/// before long.
async fn are_killed_while_they_start(what: &str, options: &[&str]) {
    let mut chance = Chance::of(what);
    let mut trial = Trial::planned(on_disk(3, options)).await;
    trial.cluster.settled(3).await;
    trial.judge.phase("starting");
    for _ in 0..rounds(1, 5) {
        for _ in 0..rounds(3, 6) {
            kill(&mut trial, &ALL).await;
            for name in chance.shuffled(&ALL) {
                chance.moment(Duration::from_millis(200)).await;
                trial.cluster.start_again(name);
            }
            chance.moment(Duration::from_millis(2500)).await;
        }
        trial.judge.all_succeed(PATIENCE).await;
        copied(&trial).await;
        assert_nothing_lost(&trial).await;
    }
    let (_cluster, report) = trial.end(what).await;
    report.assert_values(what);
}

#[tokio::test]
async fn nodes_killed_while_they_start_lose_nothing() {
    are_killed_while_they_start("starting", &COPIED).await;
}

#[tokio::test]
async fn nodes_without_copies_killed_while_they_start_lose_nothing() {
    are_killed_while_they_start("starting without copies", &DISK_ALONE).await;
}

/// Who dies in the middle of a handoff from `n1` to `n4`, as soon as some of it is done.
async fn are_killed_in_mid_move(
    what: &str,
    options: &[&str],
    victims: &[&str],
    chance: &mut Chance,
) -> Result<(), TooLate> {
    let mut trial = Trial::planned_heavy(on_disk(3, options)).await;
    trial.judge.phase("move");
    trial.cluster.add("n4");
    trial.mid_move("n1", "n4").await?;
    chance.moment(Duration::from_millis(300)).await;
    trial.still_moving("n1", "n4").await?;
    trial.judge.phase("killed");
    kill(&mut trial, victims).await;
    for name in victims {
        trial.cluster.start_again(name);
    }
    trial.judge.all_succeed(PATIENCE).await;
    copied(&trial).await;
    assert_nothing_lost(&trial).await;
    let (_cluster, report) = trial.end(what).await;
    report.assert_values(what);
    Ok(())
}

async fn killed_in_mid_move(what: &str, options: &[&str], victims: &[&str]) {
    let chance = tokio::sync::Mutex::new(Chance::of(what));
    for _ in 0..rounds(1, 5) {
        in_mid_move(async || {
            are_killed_in_mid_move(what, options, victims, &mut *chance.lock().await).await
        })
        .await;
    }
}

#[tokio::test]
async fn the_source_of_a_handoff_killed_and_started_again_loses_nothing() {
    killed_in_mid_move("source", &COPIED, &["n1"]).await;
}

#[tokio::test]
async fn the_target_of_a_handoff_killed_and_started_again_loses_nothing() {
    killed_in_mid_move("target", &COPIED, &["n4"]).await;
}

#[tokio::test]
async fn everybody_killed_in_mid_handoff_loses_nothing() {
    killed_in_mid_move("everybody", &COPIED, &["n1", "n2", "n3", "n4"]).await;
}

/// A shard that is granted is on the disks of both, in different epochs, and must be served from one.
#[tokio::test]
async fn everybody_killed_in_mid_handoff_without_copies_loses_nothing() {
    killed_in_mid_move("everybody, no copies", &DISK_ALONE, &["n1", "n2", "n3", "n4"]).await;
}

/// What the first start makes in a data directory, in that order.
const MADE: [&str; 10] = [
    "identity.new",
    "identity",
    "lock",
    "keyspaces",
    "0.jnl",
    "version",
    "keyspaces/0",
    "keyspaces/1",
    "keyspaces/2/current",
    "seqs",
];

#[tokio::test]
async fn a_node_killed_while_it_makes_its_data_directory_starts_again() {
    for made in std::iter::repeat_n(MADE, rounds(1, 20)).flatten() {
        let dir = fresh_dir();
        let data = dir.join("data");
        let mut first = crate::disk::alone(&dir, "n1", &data, &[]);
        let path = data.join("state").join(made);
        let begun = Instant::now();
        while !path.exists() && !data.join("state/seqs").exists() {
            assert!(begun.elapsed() < SOON, "{made} is not made");
        }
        first.proc.child.kill().unwrap();
        first.proc.ended(SOON).await;
        let again = crate::disk::alone(&dir, "n1", &data, &[]);
        eventually(made, SOON, || async {
            let path = "/sessions/alice";
            let mut connection = Connection::open(again.http).await?;
            let answer = connection.send_body(Method::PUT, path, Bytes::from_static(b"cart")).await;
            answer.and_then(client::Answer::success).map(drop)
        })
        .await;
    }
}
