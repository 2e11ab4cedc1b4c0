//! What `+disk` costs beside the database under it, and how fast a node has its sessions back.
//!
//! Writers write one after the other a record each and wait until it is synced. "stead" goes
//! through `Disk`; "raw" is the same database with a thread that takes whatever is queued, commits
//! it as one batch and syncs. Both in turns, on the same disk; the ratio is of the medians. Then a
//! state of many sessions is made, and opened, checked, and read into memory as a start does.
//!
//! ```text
//! cargo run --release --example disk_writers -- [DIR [WRITERS [SECONDS [ROUNDS [SESSIONS]]]]]
//! ```
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use stead_node::disk::{Disk, DiskConfig, Role, ShardMeta, Slots};
use stead_shared::id::{ClusterId, Epoch, NodeId, ShardId, Version};
use tokio::sync::oneshot;
use tokio::time::Instant;

const RECORD_BYTES: usize = 1024;
const KEYS_PER_WRITER: u64 = 1000;
const SHARDS: u32 = 256;

fn at(seq: u64) -> Version {
    Version { epoch: Epoch { counter: 1, node: NodeId(1) }, seq }
}

fn config(dir: &Path) -> DiskConfig {
    let cluster = ClusterId::of_name("example");
    DiskConfig { sync: true, ..DiskConfig::new(dir, "n1", cluster) }
}

/// Not to be compressed to nothing.
fn record(mut seed: u64, bytes: usize) -> Bytes {
    let next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

fn key(writer: u64, number: u64) -> String {
    format!("session-{writer:04}-{:06}", number % KEYS_PER_WRITER)
}

/// Changes per second of `writers` that write until the time is over.
async fn rate<F: Future<Output = ()> + Send>(
    writers: u64,
    time: Duration,
    write: impl Fn(u64, u64) -> F + Clone + Send + 'static,
) -> f64 {
    let began = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let write = write.clone();
            tokio::spawn(async move {
                let mut written = 0;
                while began.elapsed() < time {
                    write(writer, written).await;
                    written += 1;
                }
                written
            })
        })
        .collect();
    let mut written = 0;
    for task in tasks {
        written += task.await.expect("a writer ends");
    }
    written as f64 / began.elapsed().as_secs_f64()
}

async fn stead(dir: &Path, writers: u64, time: Duration) -> f64 {
    let (disk, _) = Disk::open(config(dir)).expect("a new directory");
    let handle = disk.clone();
    let rate = rate(writers, time, move |writer, number| {
        let disk = handle.clone();
        async move {
            let shard = ShardId((writer as u32) % SHARDS);
            let record = record(writer << 32 | number, RECORD_BYTES);
            let row = (Some(record), Slots::Same);
            let position = disk.put(shard, at(number), key(writer, number).as_bytes(), row);
            disk.wait(position).await.expect("the disk works");
        }
    });
    let rate = rate.await;
    disk.close().await.expect("the disk works");
    rate
}

struct RawChange {
    key: Vec<u8>,
    record: Bytes,
    done: oneshot::Sender<()>,
}

/// Group commit as simple as it can be.
fn commit_raw(dir: &Path, changes: &mpsc::Receiver<RawChange>) -> fjall::Result<()> {
    let db = Database::builder(dir).manual_journal_persist(true).open()?;
    let sessions = db.keyspace("sessions", KeyspaceCreateOptions::default)?;
    while let Ok(first) = changes.recv() {
        let mut batch = db.batch();
        let mut told = Vec::new();
        for change in std::iter::once(first).chain(changes.try_iter()) {
            batch.insert(&sessions, change.key, &*change.record);
            told.push(change.done);
        }
        batch.commit()?;
        db.persist(PersistMode::SyncData)?;
        for done in told {
            let _ = done.send(());
        }
    }
    Ok(())
}

async fn raw(dir: &Path, writers: u64, time: Duration) -> f64 {
    let (sender, receiver) = mpsc::channel();
    let folder = dir.to_owned();
    let committer = std::thread::spawn(move || commit_raw(&folder, &receiver));
    let rate = rate(writers, time, move |writer, number| {
        let sender = sender.clone();
        async move {
            let (done, told) = oneshot::channel();
            let record = record(writer << 32 | number, RECORD_BYTES);
            let key = key(writer, number).into_bytes();
            sender.send(RawChange { key, record, done }).expect("the committer runs");
            told.await.expect("the disk works");
        }
    });
    let rate = rate.await;
    let committed = tokio::task::spawn_blocking(|| committer.join()).await;
    committed.expect("it ends").expect("no panic").expect("the disk works");
    rate
}

/// Writes a state of `n` sessions; how long that took.
async fn fill(dir: &Path, n: u64) -> Duration {
    let began = Instant::now();
    let config = DiskConfig { sync: false, ..config(dir) };
    let (disk, _) = Disk::open(config).expect("a new directory");
    for number in 0..n {
        disk.room().await;
        let shard = ShardId(number as u32 % SHARDS);
        let key = format!("session-{number:012}");
        let row = (Some(record(number, RECORD_BYTES)), Slots::Same);
        disk.put(shard, at(number), key.as_bytes(), row);
    }
    for shard in (0..SHARDS).map(ShardId) {
        let (at, role) = (at(n), Role::Owner);
        disk.meta(shard, ShardMeta { at, role, complete: true, begun: None, alone: false });
    }
    disk.close().await.expect("the disk works");
    began.elapsed()
}

struct Recovery {
    opened: Duration,
    read: Duration,
    sessions: usize,
}

/// Opens a state and reads all of it into maps.
fn recover(dir: &Path) -> Recovery {
    let began = Instant::now();
    let (disk, recovered) = Disk::open(config(dir)).expect("its directory");
    let opened = began.elapsed();
    let mut shards: HashMap<ShardId, HashMap<Bytes, (Version, Bytes)>> = HashMap::new();
    for found in &recovered.shards {
        assert_eq!(found.damaged, None);
        let sessions = shards.entry(found.shard).or_default();
        let mut after: Option<Bytes> = None;
        loop {
            let step = disk.read(found.shard, after.as_deref(), 1 << 20).expect("it is whole");
            let Some(last) = step.last() else { break };
            after = Some(last.key.clone());
            let rows = step.into_iter().filter_map(|one| Some((one.key, one.own?)));
            sessions.extend(rows.map(|(key, own)| (key, (own.at, own.record))));
        }
    }
    let read = began.elapsed() - opened;
    Recovery { opened, read, sessions: shards.values().map(HashMap::len).sum() }
}

fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

async fn measure(dir: &Path, writers: u64, time: Duration, rounds: usize, sessions: u64) {
    let (mut steads, mut raws) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let folders = [dir.join(format!("stead-{round}")), dir.join(format!("raw-{round}"))];
        for folder in &folders {
            std::fs::create_dir_all(folder).expect("the directory can be written");
        }
        steads.push(stead(&folders[0], writers, time).await);
        raws.push(raw(&folders[1], writers, time).await);
        println!("round {round}: stead {:.0}/s, raw {:.0}/s", steads[round], raws[round]);
        for folder in &folders {
            std::fs::remove_dir_all(folder).expect("it is ours");
        }
    }
    let (stead, raw) = (median(&mut steads), median(&mut raws));
    println!("{writers} writers, {RECORD_BYTES} bytes each, synced before it counts");
    println!("stead {stead:9.0} changes/s");
    println!("raw   {raw:9.0} changes/s");
    println!("ratio {:9.2}", stead / raw);
    let folder = dir.join("recovery");
    std::fs::create_dir_all(&folder).expect("the directory can be written");
    let filled = fill(&folder, sessions).await;
    println!(
        "{sessions} sessions of {RECORD_BYTES} bytes written in {:.1} s",
        filled.as_secs_f64()
    );
    let read = recover(&folder);
    let (opened, rest) = (read.opened.as_secs_f64(), read.read.as_secs_f64());
    println!(
        "{} sessions back in {:.1} s: opened and checked in {opened:.1} s, read in {rest:.1} s",
        read.sessions,
        opened + rest
    );
    assert_eq!(read.sessions as u64, sessions);
    std::fs::remove_dir_all(&folder).expect("it is ours");
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "target".to_owned());
    let mut numbers = args.map(|text| text.parse().expect("a number"));
    let writers = numbers.next().unwrap_or(64);
    let seconds = numbers.next().unwrap_or(5);
    let rounds = numbers.next().unwrap_or(5);
    let sessions = numbers.next().unwrap_or(1_000_000);
    let dir = Path::new(&dir).join(format!("disk-writers-{}", std::process::id()));
    measure(&dir, writers, Duration::from_secs(seconds), rounds as usize, sessions).await;
    std::fs::remove_dir_all(&dir).expect("it is ours");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_small_run_ends() {
        let name = format!("stead-disk-writers-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        measure(&dir, 4, Duration::from_millis(20), 1, 500).await;
        std::fs::remove_dir_all(&dir).expect("it is ours");
    }
}
