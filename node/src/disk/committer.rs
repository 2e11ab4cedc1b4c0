//! The one thread that writes: it takes what is queued, commits it as one batch, syncs, tells the
//! witness, tells those who wait.
//!
//! ```text
//!        queued                committed                synced, witnessed
//! (idle) ──────▶ (writing) ────────────▶ (unsynced) ────────────────────▶ (idle)
//!                    │ error                 │ error
//!                    ▼                       ▼
//!                 (failing) ── each 500 ms: reopen, write all that is unsynced again, sync ─▶ (idle)
//! ```
//!
//! A batch is kept until it is synced: after a failed sync nobody knows what of it the disk has,
//! so all of it is written again. Rows replace rows, so that once more does no harm.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stead_shared::id::ShardId;
use tokio::time::Instant;

use super::batch::{self, Book, Prepared};
use super::metrics::Metrics;
use super::queue::{Next, Progress, Shared, Taken};
use super::store::{Store, StoreError};
use super::witness::WitnessFile;
use super::{DiskFailed, DiskState};
use crate::logic::grouping::Grouping;

/// Bytes of changes in one batch, about. Several fit into what the database keeps in memory
/// before it writes a table.
const BATCH_BYTES: usize = 4 << 20;
/// Without `+disk`: a sync at most each second, or when so much is not synced.
const SYNC_EACH: Duration = Duration::from_secs(1);
const UNSYNCED_BYTES_MAX: usize = 16 << 20;
/// Between two attempts while the disk fails.
const RETRY_EACH: Duration = Duration::from_millis(500);
/// Between two looks whether the database's own tasks have caught up.
const STALL_LOOK_EACH: Duration = Duration::from_millis(5);
/// Rows that one step of forgetting a shard removes.
const FORGET_ROWS_BYTES: usize = 1 << 20;

/// It was closed while the disk failed: what was queued is not on disk.
struct Abandoned;

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the witness: {0}")]
    Witness(io::Error),
}

impl WriteError {
    fn is_full(&self) -> bool {
        match self {
            Self::Store(error) => error.is_full(),
            Self::Witness(error) => StoreError::is_full_io(error),
        }
    }
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    dir: PathBuf,
    /// None while it is being reopened.
    store: Option<Store>,
    witness: WitnessFile,
    book: Book,
    metrics: Metrics,
    /// Written, and not known to be on disk.
    unsynced: Vec<Prepared>,
    unsynced_bytes: usize,
    progress: Progress,
    synced: Instant,
    grouping: Grouping,
}

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        dir: PathBuf,
        store: Store,
        witness: WitnessFile,
        book: Book,
        metrics: Metrics,
    ) -> Self {
        Self {
            shared,
            dir,
            store: Some(store),
            witness,
            book,
            metrics,
            unsynced: Vec::new(),
            unsynced_bytes: 0,
            progress: Progress::default(),
            synced: Instant::now(),
            grouping: Grouping::default(),
        }
    }

    /// Until it is closed.
    pub(super) fn run(mut self) {
        let abandoned = self.serve().is_err();
        if abandoned {
            tracing::error!(
                changes = self.unsynced.len(),
                "the disk still fails: the last changes are not on it"
            );
        }
        self.shared.set_reader(None);
        // The database ends before it is said to have ended: whoever waits may open it again.
        self.close_store();
        self.progress.failed = Some(DiskFailed::Closed { complete: !abandoned });
        self.publish();
    }

    fn serve(&mut self) -> Result<(), Abandoned> {
        loop {
            let due = self.due();
            if let Some(wait) = self.grouping.wait().filter(|_| self.shared.sync) {
                self.shared.gather(wait);
            }
            match self.shared.take(BATCH_BYTES, due, self.progress.synced) {
                Next::Ops(taken) => self.commit_all(taken)?,
                Next::Due => {}
                Next::Closing => return self.finish(),
            }
            self.sync_if_due()?;
            self.metrics.queue_bytes.set(self.shared.bytes() as f64);
        }
    }

    fn due(&self) -> Option<Instant> {
        let sync = (!self.unsynced.is_empty()).then(|| self.synced + SYNC_EACH);
        [sync, self.witness.due()].into_iter().flatten().min()
    }

    fn finish(&mut self) -> Result<(), Abandoned> {
        self.sync()?;
        self.attempt(|committer| committer.witness.sync().map_err(WriteError::Witness))
    }

    /// Commits in order, what is to be forgotten before the changes that come with it.
    fn commit_all(&mut self, taken: Taken) -> Result<(), Abandoned> {
        let mut done = taken.through - taken.ops.len() as u64;
        let segments = batch::segments(taken.ops);
        let last = segments.len() - 1;
        for (number, segment) in segments.into_iter().enumerate() {
            let before = done;
            done += (segment.forgets.len() + segment.ops.len()) as u64;
            // The bytes of all go with the last ones.
            let bytes = if number == last { taken.bytes } else { 0 };
            let (through, forgotten) = match segment.ops.is_empty() {
                true => (done, bytes),
                false => (before, 0),
            };
            self.forget(&segment.forgets, before, (through, forgotten))?;
            if !segment.ops.is_empty() {
                let mut prepared = batch::prepare(&mut self.book, &segment.ops);
                (prepared.through, prepared.queued) = (done, bytes);
                self.commit(prepared)?;
            }
        }
        Ok(())
    }

    /// Forgets shards; everything up to `before` was committed, and up to `through` is then.
    fn forget(
        &mut self,
        shards: &[ShardId],
        before: u64,
        (through, queued): (u64, usize),
    ) -> Result<(), Abandoned> {
        let known = shards.iter().copied().filter(|shard| self.book.rows.contains_key(shard));
        let known: Vec<ShardId> = known.collect();
        if !known.is_empty() {
            let mut begun = batch::begin_to_forget(&mut self.book, &known);
            begun.through = before;
            self.commit(begun)?;
            // Nothing is deleted while an older state could still come back, or be missed.
            self.sync()?;
            self.attempt(|committer| committer.witness.sync().map_err(WriteError::Witness))?;
        }
        let mut step = Prepared::default();
        for &shard in shards {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let mut rows = Vec::new();
                self.attempt(|committer| {
                    rows = committer.store()?.rows(shard, after.as_deref(), FORGET_ROWS_BYTES)?;
                    Ok(())
                })?;
                let Some((last, _)) = rows.last() else { break };
                after = Some(last.to_vec());
                step.forget_rows(rows.iter().map(|(key, _)| &**key));
                if FORGET_ROWS_BYTES <= step.bytes {
                    step.through = before;
                    self.commit(std::mem::take(&mut step))?;
                }
            }
            step.forget_shard(&mut self.book, shard);
        }
        if shards.is_empty() {
            return Ok(());
        }
        (step.through, step.queued) = (through, queued);
        self.commit(step)
    }

    fn commit(&mut self, prepared: Prepared) -> Result<(), Abandoned> {
        let through = prepared.through;
        self.unsynced_bytes += prepared.bytes;
        self.metrics.commits.increment(1);
        self.metrics.bytes.increment(prepared.bytes as u64);
        self.unsynced.push(prepared);
        let number = self.unsynced.len() - 1;
        self.attempt(|committer| committer.write(number))?;
        self.progress.written = self.progress.written.max(through);
        if !self.shared.sync {
            self.publish();
        }
        self.sync_if_due()
    }

    fn store(&self) -> Result<&Store, StoreError> {
        self.store.as_ref().ok_or(StoreError::Poisoned)
    }

    /// Writes one of those that are not synced.
    fn write(&self, number: usize) -> Result<(), WriteError> {
        let store = self.store()?;
        while !store.has_room()? {
            self.shared.rest(STALL_LOOK_EACH);
        }
        if let Some(prepared) = self.unsynced.get(number) {
            store.write(&prepared.writes)?;
        }
        Ok(())
    }

    fn sync_if_due(&mut self) -> Result<(), Abandoned> {
        let wanted = self.shared.sync || self.shared.wanted() > self.progress.synced;
        let much = self.unsynced_bytes >= UNSYNCED_BYTES_MAX;
        if !self.unsynced.is_empty() && (wanted || much || self.synced.elapsed() >= SYNC_EACH) {
            return self.sync();
        }
        if self.witness.due().is_some_and(|due| due <= Instant::now()) {
            self.attempt(|committer| committer.witness.sync().map_err(WriteError::Witness))?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Abandoned> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        self.attempt(Self::sync_and_tell)?;
        self.synced = Instant::now();
        let took = self.synced - began;
        self.metrics.sync_seconds.record(took.as_secs_f64());
        self.grouping.synced(self.progress.written - self.progress.synced, took);
        self.shared.free(self.unsynced.iter().map(|prepared| prepared.queued).sum());
        self.unsynced.clear();
        self.unsynced_bytes = 0;
        self.progress.synced = self.progress.written;
        self.publish();
        Ok(())
    }

    /// The witness is told only what is on disk.
    fn sync_and_tell(&mut self) -> Result<(), WriteError> {
        self.store()?.sync()?;
        let seen: Vec<_> =
            self.unsynced.iter().flat_map(|prepared| prepared.seen.iter().copied()).collect();
        self.witness.append(&seen).map_err(WriteError::Witness)
    }

    /// Does `work`, as often as it takes. Before each new attempt the database is opened again and
    /// everything that is not known to be on disk written again.
    fn attempt(
        &mut self,
        mut work: impl FnMut(&mut Self) -> Result<(), WriteError>,
    ) -> Result<(), Abandoned> {
        let mut result = work(self);
        let failed = result.is_err();
        while let Err(error) = result {
            self.report(&error);
            let late = self.shared.closing().is_some_and(|until| until <= Instant::now());
            if late {
                return Err(Abandoned);
            }
            self.shared.rest(RETRY_EACH);
            result = self.reopen().and_then(|()| work(self));
        }
        if failed {
            tracing::info!("the disk works again");
            self.metrics.failing.set(0.0);
            self.progress.failed = None;
            // Whoever hears that it works again must not be refused afterwards.
            self.publish();
            self.shared.state.send_replace(DiskState::Ok);
        }
        Ok(())
    }

    fn report(&mut self, error: &WriteError) {
        let state = if error.is_full() {
            DiskState::Full
        } else {
            DiskState::Failing { error: error.to_string() }
        };
        let failed = if state == DiskState::Full { DiskFailed::Full } else { DiskFailed::Failing };
        let changed = *self.shared.state.borrow() != state;
        if changed {
            let dir = self.dir.display();
            tracing::error!(%dir, %error, "the disk fails; trying again");
        }
        self.metrics.failing.set(1.0);
        self.progress.failed = Some(failed);
        if changed {
            self.shared.state.send_replace(state);
        }
        self.publish();
    }

    /// Opens the database again and writes everything that is not known to be on disk.
    fn reopen(&mut self) -> Result<(), WriteError> {
        self.shared.set_reader(None);
        self.close_store();
        probe(&self.dir, self.unsynced_bytes).map_err(StoreError::Io)?;
        let store = Store::open(&self.dir)?;
        self.compare(&store)?;
        self.shared.set_reader(Some(store.clone()));
        self.store = Some(store);
        for number in 0..self.unsynced.len() {
            self.write(number)?;
        }
        Ok(())
    }

    /// What was on disk must still be there when the database comes back.
    fn compare(&mut self, store: &Store) -> Result<(), WriteError> {
        let metas = store.metas()?;
        let pending: std::collections::BTreeSet<ShardId> = self
            .unsynced
            .iter()
            .flat_map(|batch| batch.seen.iter().map(|seen| seen.shard))
            .collect();
        let mut lost = Vec::new();
        for (&shard, row) in &self.book.rows {
            if pending.contains(&shard) || row.damaged {
                continue;
            }
            let newest = self.book.index.get(&shard).and_then(|index| index.newest.as_ref());
            let found = match (metas.get(&shard), newest) {
                (Some(Ok(_)), Some(newest)) => store.mark_of(newest)?,
                (Some(Ok(found)), None) => Some(found.commit),
                (Some(Err(_)) | None, _) => None,
            };
            if found.is_none_or(|found| found < row.commit) {
                lost.push(shard);
            }
        }
        for shard in lost {
            tracing::error!(%shard, "the disk has lost what was on it; the shard is damaged there");
            self.metrics.damaged.increment(1);
            let marked = batch::mark_damaged(&mut self.book, shard);
            self.unsynced.push(marked);
        }
        Ok(())
    }

    fn close_store(&mut self) {
        if let Some(store) = self.store.take() {
            store.close();
        }
    }

    fn publish(&self) {
        self.shared.progress.send_replace(self.progress);
    }
}

/// Whether there is room for what has to be written, and a little more: opening the database and
/// replaying its journal only to find the disk full is dear.
fn probe(dir: &std::path::Path, bytes: usize) -> io::Result<()> {
    let path = dir.join("probe");
    let filled = std::fs::File::create(&path).and_then(|mut file| {
        let zeros = [0; 64 << 10];
        for _ in 0..=(bytes + (1 << 20)) / zeros.len() {
            io::Write::write_all(&mut file, &zeros)?;
        }
        file.sync_data()
    });
    let removed = std::fs::remove_file(&path);
    filled.and(removed)
}
