//! The start: whose directory it is, what is in it, and what of that can be trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stead_shared::id::ShardId;

use super::batch::{Book, NOBODY, seen};
use super::committer::Committer;
use super::metrics::Metrics;
use super::queue::{Op, Shared};
use super::store::{Metas, ShardIndex, Store, StoreError};
use super::witness::{self, WitnessFile};
use super::{DiskConfig, DiskError, Recovered, RecoveredShard, identity, io_error};
use crate::logic::durable::{
    Counted, Damage, MetaRow, Role, RowError, Seen, ShardMeta, Tally, Verdict, Witness, judge,
    marked,
};

/// The folder of the data directory.
const FOLDER: &str = "state";

pub(super) fn open(config: DiskConfig) -> Result<(Arc<Shared>, Recovered), DiskError> {
    let dir = config.dir.join(FOLDER);
    std::fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
    identity::check(&dir, &config.name, config.cluster)?;
    let store = Store::open(&dir).map_err(|error| store_error(&dir, error))?;
    let told = witness::read(&dir).map_err(io_error("read", &dir))?;
    let metas = store.metas().map_err(|error| store_error(&dir, error))?;
    let unwitnessed = report_witness(&dir, told.as_ref(), &metas);
    let witness = told.unwrap_or_default();
    let found = survey(&store, &metas, &witness);
    let metrics = Metrics::new();
    metrics.damaged.increment(found.n_damaged());
    let file = WitnessFile::create(&dir, found.witness.values().copied())
        .map_err(io_error("write", &dir))?;
    let shared = Arc::new(Shared::new(config.queue_bytes_max, config.sync, store.clone()));
    for shard in found.forgotten {
        shared.push(Op::Forget { shard });
    }
    let recovered = Recovered { shards: found.shards, unwitnessed };
    start(Committer::new(Arc::clone(&shared), dir.clone(), store, file, found.book, metrics))
        .map_err(io_error("start a thread for", &dir))?;
    Ok((shared, recovered))
}

fn start(committer: Committer) -> std::io::Result<()> {
    std::thread::Builder::new().name("disk".to_owned()).spawn(|| committer.run()).map(drop)
}

fn store_error(dir: &Path, error: StoreError) -> DiskError {
    let dir: PathBuf = dir.to_owned();
    match error {
        StoreError::Io(source) => DiskError::Io { what: "open", path: dir, source },
        StoreError::Locked => DiskError::InUse { dir },
        StoreError::Poisoned | StoreError::Other(_) => {
            DiskError::Broken { dir, error: error.to_string() }
        }
    }
}

/// Whether the witness can vouch for everything.
fn report_witness(dir: &Path, witness: Option<&Witness>, metas: &Metas) -> bool {
    let dir = dir.display();
    match witness {
        None if metas.is_empty() => false,
        None => {
            tracing::error!(%dir, "the witness of the state on disk is missing: whether its newest \
                changes are lost cannot be checked");
            true
        }
        Some(Witness { bad: 0, tail, .. }) => {
            if *tail > 0 {
                tracing::info!(%dir, bytes = tail, "the witness ends in half a record");
            }
            false
        }
        Some(Witness { bad, .. }) => {
            tracing::error!(%dir, bad, "records of the witness of the state on disk are broken: \
                what they said cannot be checked");
            true
        }
    }
}

struct Survey {
    shards: Vec<RecoveredShard>,
    forgotten: Vec<ShardId>,
    book: Book,
    witness: BTreeMap<ShardId, Seen>,
}

impl Survey {
    fn n_damaged(&self) -> u64 {
        self.shards.iter().filter(|shard| shard.damaged.is_some()).count() as u64
    }
}

/// Reads everything once.
fn survey(store: &Store, metas: &Metas, told: &Witness) -> Survey {
    let mut survey = Survey {
        shards: Vec::new(),
        forgotten: Vec::new(),
        book: Book::default(),
        witness: BTreeMap::new(),
    };
    let commits = metas.values().flatten().map(|row| row.commit);
    let commits = commits.chain(told.shards.values().map(|seen| seen.commit));
    survey.book.commit = commits.max().unwrap_or(0);
    let mut shards: BTreeSet<ShardId> = metas.keys().chain(told.shards.keys()).copied().collect();
    add_strays(store, &mut shards);
    for shard in shards {
        let (row, seen) = (metas.get(&shard), told.shards.get(&shard));
        let mut index = ShardIndex::default();
        let counted = store.count(shard, &mut index);
        survey.judged(shard, row.copied(), seen.copied(), counted, index);
    }
    survey
}

/// Shards of which there are sessions and nothing else.
fn add_strays(store: &Store, shards: &mut BTreeSet<ShardId>) {
    let mut from = Some(ShardId(0));
    while let Some(start) = from {
        // One search for each gap between shards that are known.
        if shards.contains(&start) {
            from = start.0.checked_add(1).map(ShardId);
            continue;
        }
        let found = match store.next_shard(start) {
            Ok(Some(found)) => found,
            Ok(None) => break,
            // The shards whose rows cannot be read are found so when they are counted.
            Err(_) => match shards.range(start..).next() {
                Some(known) => *known,
                None => break,
            },
        };
        shards.insert(found);
        from = found.0.checked_add(1).map(ShardId);
    }
}

impl Survey {
    fn judged(
        &mut self,
        shard: ShardId,
        row: Option<Result<MetaRow, RowError>>,
        told: Option<Seen>,
        counted: Counted,
        mut index: ShardIndex,
    ) {
        let verdict = judge(row.as_ref(), told.as_ref(), &counted);
        let row = row.and_then(Result::ok).map(|row| marked(row, counted.newest));
        let newest = counted.newest.map_or(0, |(mark, _)| mark.commit);
        self.book.commit = self.book.commit.max(newest);
        if row.is_none_or(|row| newest < row.commit) {
            index.newest = None;
        }
        match verdict {
            Verdict::Absent => {}
            Verdict::Forgotten => {
                self.forgotten.push(shard);
                self.witness.extend(told.map(|seen| (shard, seen)));
                let row = row.unwrap_or_else(|| unknown(told.as_ref()));
                self.book.rows.insert(shard, row);
            }
            Verdict::Whole => {
                self.report(shard, row, &counted, None);
                self.keep(shard, row, told, index);
            }
            Verdict::Damaged(damage) => {
                tracing::error!(%shard, %damage, "the state of a shard on disk is damaged");
                self.report(shard, row, &counted, Some(damage));
                let row = row.unwrap_or_else(|| unknown(told.as_ref()));
                self.keep(shard, Some(MetaRow { damaged: true, ..row }), told, index);
            }
        }
    }

    /// The witness does not forget what it knew of a shard that is damaged.
    fn keep(
        &mut self,
        shard: ShardId,
        row: Option<MetaRow>,
        told: Option<Seen>,
        index: ShardIndex,
    ) {
        let found = row.map(|row| seen(shard, &row));
        let newest = [found, told].into_iter().flatten().max_by_key(|seen| seen.commit);
        self.witness.extend(newest.map(|seen| (shard, seen)));
        self.book.rows.extend(row.map(|row| (shard, row)));
        self.book.index.insert(shard, index);
    }

    fn report(
        &mut self,
        shard: ShardId,
        row: Option<MetaRow>,
        counted: &Counted,
        damaged: Option<Damage>,
    ) {
        let (meta, rows) = (row.map(|row| row.meta), counted.tally.rows);
        self.shards.push(RecoveredShard { shard, meta, rows, damaged });
    }
}

/// A row for a shard whose own is lost.
fn unknown(seen: Option<&Seen>) -> MetaRow {
    let at = seen.map_or(NOBODY, |seen| seen.at);
    MetaRow {
        meta: ShardMeta { at, role: Role::Unknown, complete: false, begun: None, alone: false },
        commit: seen.map_or(0, |seen| seen.commit),
        tally: Tally::default(),
        forgetting: false,
        damaged: false,
    }
}
