//! Tests with real files: there is no other way to fault what is below the database.

mod basic;
mod crash;
mod flips;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId};

use super::*;

/// A directory of its own for each test, in memory where there is such a place.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = base.join(format!("stead-state-{name}-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub(crate) fn config(&self) -> DiskConfig {
        config(&self.0)
    }

    pub(crate) fn open(&self) -> (Disk, Recovered) {
        Disk::open(self.config()).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(dir: &Path) -> DiskConfig {
    DiskConfig { sync: true, ..DiskConfig::new(dir, "n1", ClusterId::of_name("test")) }
}

fn at(seq: u64) -> Version {
    Version { epoch: Epoch { counter: 1, node: NodeId(1) }, seq }
}

fn owned(seq: u64) -> ShardMeta {
    ShardMeta { at: at(seq), role: Role::Owner, complete: true, begun: None, alone: false }
}

fn copied(seq: u64) -> ShardMeta {
    let owner = NodeBoot { node: NodeId(3), boot: BootId(9) };
    ShardMeta {
        at: at(seq),
        role: Role::Copy { owner },
        complete: false,
        begun: None,
        alone: false,
    }
}

fn put(disk: &Disk, shard: u32, seq: u64, key: &str, record: &str) -> u64 {
    put_with(disk, shard, seq, key, (record, Slots::Same))
}

fn put_with(disk: &Disk, shard: u32, seq: u64, key: &str, (record, slots): (&str, Slots)) -> u64 {
    let record = Bytes::copy_from_slice(record.as_bytes());
    disk.put(ShardId(shard), at(seq), key.as_bytes(), (Some(record), slots))
}

/// What a shard holds: key to number of the change and record. Read in steps of two rows or so.
type Content = BTreeMap<String, (u64, String)>;

fn content(disk: &Disk, shard: ShardId) -> Result<Content, ReadError> {
    let mut content = Content::new();
    let mut after: Option<Bytes> = None;
    loop {
        let step = disk.read(shard, after.as_deref(), 100)?;
        let Some(last) = step.last() else { return Ok(content) };
        after = Some(last.key.clone());
        for session in step {
            let own = session.own.unwrap();
            assert!(own.age < Duration::from_secs(600));
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let (key, record) = (text(&session.key), text(&own.record));
            assert!(content.insert(key, (own.at.seq, record)).is_none());
        }
    }
}

fn contents(disk: &Disk, recovered: &Recovered) -> BTreeMap<u32, Content> {
    let whole = recovered.shards.iter().filter(|shard| shard.damaged.is_none());
    whole.map(|found| (found.shard.0, content(disk, found.shard).unwrap())).collect()
}

fn damaged(recovered: &Recovered) -> Vec<u32> {
    let damaged = recovered.shards.iter().filter(|shard| shard.damaged.is_some());
    damaged.map(|found| found.shard.0).collect()
}

fn of<const N: usize>(rows: [(&str, u64, &str); N]) -> Content {
    rows.into_iter().map(|(key, seq, record)| (key.into(), (seq, record.into()))).collect()
}
