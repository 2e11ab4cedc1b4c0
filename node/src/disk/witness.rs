//! The file that remembers which commit each shard has reached, apart from the database.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stead_shared::id::ShardId;
use tokio::time::Instant;

use crate::logic::durable::{Seen, Witness, encode_witness, parse_witness};

const NAME: &str = "seqs";
/// Past this it is written anew.
const BYTES_MAX: u64 = 16 << 20;
const SYNC_EACH: Duration = Duration::from_secs(1);

/// The file, open for appending, and what it says.
pub(super) struct WitnessFile {
    path: PathBuf,
    file: File,
    /// Bytes of whole records.
    len: u64,
    /// A write failed: there may be half a record at the end.
    torn: bool,
    unsynced: bool,
    synced: Instant,
    shards: HashMap<ShardId, Seen>,
}

/// None when there is none.
pub(super) fn read(dir: &Path) -> io::Result<Option<Witness>> {
    match std::fs::read(dir.join(NAME)) {
        Ok(bytes) => Ok(Some(parse_witness(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl WitnessFile {
    /// Writes the file anew, with what is known of each shard.
    pub(super) fn create(dir: &Path, seen: impl IntoIterator<Item = Seen>) -> io::Result<Self> {
        let path = dir.join(NAME);
        let shards = seen.into_iter().map(|seen| (seen.shard, seen)).collect();
        let (file, len) = write_anew(&path, &shards)?;
        let synced = Instant::now();
        Ok(Self { path, file, len, torn: false, unsynced: false, synced, shards })
    }

    /// Appends what a sync has brought to disk. After an error the same can be appended again.
    pub(super) fn append(&mut self, seen: &[Seen]) -> io::Result<()> {
        for one in seen {
            self.shards.insert(one.shard, *one);
        }
        if self.len > BYTES_MAX {
            self.rewrite()?;
        } else if !seen.is_empty() {
            self.append_record(seen)?;
        }
        if self.unsynced && self.synced.elapsed() >= SYNC_EACH {
            self.sync()?;
        }
        Ok(())
    }

    /// A shard of which there is nothing any more needs no mention in the next file.
    pub(super) fn rewrite(&mut self) -> io::Result<()> {
        let kept = self.shards.iter().filter(|(_, seen)| !seen.gone);
        let kept = kept.map(|(shard, seen)| (*shard, *seen)).collect();
        (self.file, self.len) = write_anew(&self.path, &kept)?;
        (self.shards, self.torn, self.unsynced) = (kept, false, false);
        Ok(())
    }

    fn append_record(&mut self, seen: &[Seen]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.len)?;
        }
        let mut bytes = Vec::new();
        encode_witness(seen, &mut bytes);
        self.torn = true;
        self.file.write_all(&bytes)?;
        self.torn = false;
        self.len += bytes.len() as u64;
        self.unsynced = true;
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        (self.unsynced, self.synced) = (false, Instant::now());
        Ok(())
    }

    /// When it should be synced next, if there is anything to sync.
    pub(super) fn due(&self) -> Option<Instant> {
        self.unsynced.then(|| self.synced + SYNC_EACH)
    }
}

/// A reader finds the old file or the new one.
fn write_anew(path: &Path, shards: &HashMap<ShardId, Seen>) -> io::Result<(File, u64)> {
    let seen: Vec<Seen> = shards.values().copied().collect();
    let mut bytes = Vec::new();
    encode_witness(&seen, &mut bytes);
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    if let Some(dir) = path.parent().filter(|_| cfg!(unix)) {
        File::open(dir)?.sync_all()?;
    }
    // With `append` a truncated file is written on at its new end.
    let file = OpenOptions::new().append(true).open(path)?;
    Ok((file, bytes.len() as u64))
}
