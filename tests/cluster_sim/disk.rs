//! A disk that fails, with rows and witness as production writes and judges them.
//!
//! What is written is on disk once it is synced. A loss of power keeps of the rest any number of
//! whole batches, and of the witness any number of bytes: the database cuts its journal in front of
//! a batch that is torn. The end of a process alone keeps all that was written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use stead_node::logic::durable::{
    Counted, MetaRow, Role, RowError, Seen, ShardMeta, Tally, Verdict, decode_meta, decode_session,
    encode_meta, encode_session, encode_witness, judge, parse_witness,
};
use stead_node::logic::heal::lineage::Lineage;
use stead_node::logic::rows::{row_key, start_of};
use stead_shared::id::{Epoch, NodeId, ShardId, Version};
use stead_shared::time::Time;

use crate::host::Session;

/// Without a policy that waits for the disk: a sync at most so often. The witness never more often.
pub(crate) const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Changes that may wait for the disk.
const QUEUE_MAX: usize = 24;
/// So many syncs back a journal may be read that has lost its end.
const OLDER_MAX: usize = 4;

/// Under which a shard's past is written: no session has this number.
const PAST: u8 = u8::MAX;

const NOBODY: Version = Version { epoch: Epoch { counter: 0, node: NodeId(0) }, seq: 0 };

/// How the disks of a run are.
#[derive(Clone, Debug)]
pub(crate) struct DiskKnobs {
    /// Answers wait for it.
    pub(crate) sync: bool,
    pub(crate) sync_takes: Range<Duration>,
    /// One process in so many ends with a loss of power.
    pub(crate) power: u32,
    /// One start in so many finds a flipped bit, or a journal without its end.
    pub(crate) damage: u32,
}

/// A change, as it is handed over.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Put { shard: ShardId, at: Version, session: u8, state: Session },
    Meta { shard: ShardId, meta: ShardMeta, past: Lineage },
    Forget { shard: ShardId },
}

impl Op {
    fn shard(&self) -> ShardId {
        match *self {
            Self::Put { shard, .. } | Self::Meta { shard, .. } | Self::Forget { shard } => shard,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Rows {
    shards: BTreeMap<ShardId, Vec<u8>>,
    sessions: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Row {
    Shard(ShardId),
    Session(Vec<u8>),
}

/// All of it is on disk, or nothing.
#[derive(Clone, Debug, Default)]
struct Batch {
    /// None removes a row.
    rows: Vec<(Row, Option<Vec<u8>>)>,
    seen: Vec<Seen>,
}

impl Rows {
    fn apply(&mut self, batch: &Batch) {
        for (row, value) in &batch.rows {
            match (row, value) {
                (Row::Shard(shard), Some(value)) => drop(self.shards.insert(*shard, value.clone())),
                (Row::Shard(shard), None) => drop(self.shards.remove(shard)),
                (Row::Session(key), Some(value)) => {
                    self.sessions.insert(key.clone(), value.clone());
                }
                (Row::Session(key), None) => drop(self.sessions.remove(key)),
            }
        }
    }

    fn of(&self, shard: ShardId) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
        let end = start_of(ShardId(shard.0 + 1));
        self.sessions.range(start_of(shard)..end)
    }
}

/// What is on disk of a shard at a start.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) shard: ShardId,
    pub(crate) meta: Option<ShardMeta>,
    pub(crate) damaged: bool,
    pub(crate) past: Lineage,
    pub(crate) sessions: BTreeMap<u8, Session>,
}

/// What a process has handed over, and how far it is.
#[derive(Debug, Default)]
struct Committer {
    queue: VecDeque<Op>,
    /// Of the last change that was handed over, that was written, that was synced.
    position: u64,
    written: u64,
    synced: u64,
    /// Changes that are not synced.
    n_unsynced: usize,
    rows: BTreeMap<ShardId, MetaRow>,
    digests: BTreeMap<Vec<u8>, u64>,
    /// What is written of what shards have come through.
    pasts: BTreeMap<ShardId, Lineage>,
    /// Shards whose rows go once it is on disk that they mean nothing.
    erasing: Vec<ShardId>,
}

impl Committer {
    /// Writes a row of a shard: a session, or what it has come through.
    fn put(
        &mut self,
        (shard, session): (ShardId, u8),
        at: Version,
        number: u64,
        row: &mut MetaRow,
        batch: &mut Batch,
    ) {
        let key = row_key(shard, &[session], None);
        let (value, digest) = encode_session(&key, at, 0, &number.to_be_bytes());
        if let Some(old) = self.digests.insert(key.clone(), digest) {
            row.tally.take(old);
        }
        row.tally.add(digest);
        batch.rows.push((Row::Session(key), Some(value)));
    }
}

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Every state of a session that was ever written: rows hold their numbers.
    states: Vec<Session>,
    /// The same of what shards have come through.
    pasts: Vec<Lineage>,
    rows: Rows,
    /// What there was some syncs ago.
    older: VecDeque<Rows>,
    /// Written, and not synced.
    journal: Vec<Batch>,
    commit: u64,
    witness: Vec<u8>,
    /// Bytes of the witness that are synced, and when they were.
    witnessed: (usize, Time),
    /// Nodes that were in the cluster.
    pub(crate) members: BTreeSet<NodeId>,
    committer: Committer,
    /// The last process ended with its machine: the witness may have lost its end as well.
    lost_power: bool,
    /// Until when it fails.
    pub(crate) fails_until: Time,
    /// The process has seen it fail.
    pub(crate) has_failed: bool,
}

impl Disk {
    // ---- the process -----------------------------------------------------------------------

    pub(crate) fn push(&mut self, op: Op) -> u64 {
        self.committer.queue.push_back(op);
        self.committer.position += 1;
        self.committer.position
    }

    /// The position up to which all is on disk.
    pub(crate) fn synced(&self) -> u64 {
        self.committer.synced
    }

    pub(crate) fn has_room(&self) -> bool {
        self.committer.queue.len() + self.committer.n_unsynced < QUEUE_MAX
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.committer.queue.is_empty()
    }

    /// Nothing is written before it is on disk that what was there means nothing.
    pub(crate) fn must_sync(&self) -> bool {
        !self.committer.erasing.is_empty()
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.journal.is_empty() && self.committer.erasing.is_empty()
    }

    /// Writes what was handed over, up to the next shard that is to be forgotten.
    pub(crate) fn write(&mut self) {
        let mut batch = Batch::default();
        let mut touched: BTreeMap<ShardId, MetaRow> = BTreeMap::new();
        let mut is_first = true;
        while let Some(op) = self.committer.queue.front() {
            let forgets = matches!(op, Op::Forget { .. });
            if !self.committer.erasing.is_empty() || (forgets && !is_first) {
                break;
            }
            is_first = false;
            let op = self.committer.queue.pop_front().expect("it is the first");
            self.committer.written += 1;
            self.committer.n_unsynced += 1;
            self.prepare(op, &mut touched, &mut batch);
        }
        self.finish(touched, batch);
    }

    fn prepare(&mut self, op: Op, touched: &mut BTreeMap<ShardId, MetaRow>, batch: &mut Batch) {
        let shard = op.shard();
        let meta = ShardMeta {
            at: NOBODY,
            role: Role::Unknown,
            complete: false,
            begun: None,
            alone: false,
        };
        let (tally, forgetting, damaged) = (Tally::default(), false, false);
        let new = MetaRow { meta, commit: 0, tally, forgetting, damaged };
        let known = self.committer.rows.get(&shard).copied();
        if known.is_none() && matches!(op, Op::Forget { .. }) && !touched.contains_key(&shard) {
            return;
        }
        let row = touched.entry(shard).or_insert_with(|| known.unwrap_or(new));
        match op {
            Op::Put { at, session, state, .. } => {
                row.meta.at = at;
                let number = self.states.len() as u64;
                self.states.push(state);
                self.committer.put((shard, session), at, number, row, batch);
            }
            Op::Meta { meta, past, .. } => {
                row.meta = meta;
                let known = self.committer.pasts.get(&shard);
                if *known.unwrap_or(&Lineage::EMPTY) != past {
                    self.committer.pasts.insert(shard, past.clone());
                    let number = self.pasts.len() as u64;
                    self.pasts.push(past);
                    self.committer.put((shard, PAST), meta.at, number, row, batch);
                }
            }
            Op::Forget { .. } => {
                (row.forgetting, row.damaged, row.tally) = (true, false, Tally::default());
                self.committer.erasing.push(shard);
                self.committer.pasts.remove(&shard);
                let end = start_of(ShardId(shard.0 + 1));
                let keys = self.committer.digests.range(start_of(shard)..end);
                let keys: Vec<Vec<u8>> = keys.map(|(key, _)| key.clone()).collect();
                for key in keys {
                    self.committer.digests.remove(&key);
                }
            }
        }
    }

    fn finish(&mut self, touched: BTreeMap<ShardId, MetaRow>, mut batch: Batch) {
        if touched.is_empty() {
            return;
        }
        self.commit += 1;
        for (shard, mut row) in touched {
            row.commit = self.commit;
            self.committer.rows.insert(shard, row);
            batch.rows.push((Row::Shard(shard), Some(encode_meta(shard, &row))));
            let (commit, at, gone) = (row.commit, row.meta.at, row.forgetting);
            batch.seen.push(Seen { shard, commit, at, gone });
        }
        self.journal.push(batch);
    }

    /// What was written is on disk, and the witness is told.
    pub(crate) fn sync(&mut self, now: Time) {
        self.older.push_back(self.rows.clone());
        if OLDER_MAX < self.older.len() {
            self.older.pop_front();
        }
        for batch in std::mem::take(&mut self.journal) {
            self.rows.apply(&batch);
            encode_witness(&batch.seen, &mut self.witness);
        }
        if SYNC_EVERY <= now.since(self.witnessed.1) || self.must_sync() {
            self.witnessed = (self.witness.len(), now);
        }
        self.committer.synced = self.committer.written;
        self.committer.n_unsynced = 0;
        let mut erased = Batch::default();
        for shard in std::mem::take(&mut self.committer.erasing) {
            let rows = self.rows.of(shard).map(|(key, _)| (Row::Session(key.clone()), None));
            erased.rows.extend(rows);
            erased.rows.push((Row::Shard(shard), None));
            self.committer.rows.remove(&shard);
        }
        if !erased.rows.is_empty() {
            self.journal.push(erased);
        }
    }

    /// A process that ends in order brings everything to disk.
    pub(crate) fn close(&mut self, now: Time) {
        while !self.is_idle() || !self.is_synced() {
            self.write();
            self.sync(now);
        }
        self.witnessed = (self.witness.len(), now);
    }

    // ---- its end, and the next start -------------------------------------------------------

    /// The process ends at once; `power`: the machine as well.
    pub(crate) fn crash(&mut self, rng: &mut StdRng, power: bool) {
        let mut n_kept = self.journal.len();
        self.lost_power = power || !self.journal.is_empty();
        if power {
            n_kept = rng.random_range(0..=n_kept);
            let end = rng.random_range(self.witnessed.0..=self.witness.len());
            self.witness.truncate(end);
        }
        for batch in self.journal.drain(..).take(n_kept) {
            self.rows.apply(&batch);
        }
        self.committer = Committer::default();
        (self.fails_until, self.has_failed) = (Time::ZERO, false);
    }

    /// Bits flip, or the journal's end is lost. Gives the shards whose state is not whole any more.
    pub(crate) fn damage(&mut self, rng: &mut StdRng) -> BTreeSet<ShardId> {
        match rng.random_range(0..4) {
            0 | 1 => flip_one(&mut self.rows.sessions, rng)
                .map(|key| ShardId(u32::from_be_bytes(key[..4].try_into().expect("a shard"))))
                .into_iter()
                .collect(),
            2 => flip_one(&mut self.rows.shards, rng).into_iter().collect(),
            _ => self.lose_end(rng),
        }
    }

    /// What the witness knows of: the loss of both ends is not noticed, nor said to be.
    fn lose_end(&mut self, rng: &mut StdRng) -> BTreeSet<ShardId> {
        if self.older.is_empty() || self.lost_power {
            return BTreeSet::new();
        }
        let back = rng.random_range(0..self.older.len());
        let older = self.older[back].clone();
        let shards = older.shards.keys().chain(self.rows.shards.keys()).copied();
        let is_other = |shard: &ShardId| older.shards.get(shard) != self.rows.shards.get(shard);
        let changed = shards.filter(is_other).collect();
        self.rows = older;
        self.older.clear();
        changed
    }

    /// Reads everything, as at a start.
    pub(crate) fn open(&mut self, now: Time) -> Vec<Found> {
        self.older.clear();
        let told = parse_witness(&self.witness).shards;
        let metas = &self.rows.shards;
        let metas: BTreeMap<ShardId, Result<MetaRow, RowError>> =
            metas.iter().map(|(shard, row)| (*shard, decode_meta(*shard, row))).collect();
        let commits = metas.values().flatten().map(|row| row.commit);
        self.commit = commits.chain(told.values().map(|seen| seen.commit)).max().unwrap_or(0);
        let of_rows = self.rows.sessions.keys();
        let of_rows =
            of_rows.map(|key| ShardId(u32::from_be_bytes(key[..4].try_into().expect("a shard"))));
        let shards: BTreeSet<ShardId> =
            of_rows.chain(metas.keys().copied()).chain(told.keys().copied()).collect();
        let mut found = Vec::new();
        let mut seen = Vec::new();
        for shard in shards {
            self.judge(shard, metas.get(&shard), told.get(&shard), (&mut found, &mut seen));
        }
        self.witness.clear();
        encode_witness(&seen, &mut self.witness);
        self.witnessed = (self.witness.len(), now);
        found
    }

    fn judge(
        &mut self,
        shard: ShardId,
        row: Option<&Result<MetaRow, RowError>>,
        told: Option<&Seen>,
        (found, seen): (&mut Vec<Found>, &mut Vec<Seen>),
    ) {
        let mut counted = Counted::default();
        let (mut sessions, mut past) = (BTreeMap::new(), Lineage::EMPTY);
        let mut digests = Vec::new();
        for (key, value) in self.rows.of(shard) {
            match decode_session(key, value) {
                Ok(row) => {
                    counted.tally.add(row.digest);
                    digests.push((key.clone(), row.digest));
                    let number = u64::from_be_bytes(row.record.try_into().expect("a number"));
                    if key[4] == PAST {
                        past = self.pasts[number as usize].clone();
                    } else {
                        sessions.insert(key[4], self.states[number as usize].clone());
                    }
                }
                Err(_) => counted.broken += 1,
            }
        }
        let verdict = judge(row, told, &counted);
        let row = row.and_then(|row| row.ok());
        seen.extend(told);
        let damaged = match verdict {
            Verdict::Absent => return,
            Verdict::Forgotten => {
                self.committer.rows.insert(shard, row.unwrap_or_else(|| unknown(told)));
                self.push(Op::Forget { shard });
                return;
            }
            Verdict::Whole => false,
            Verdict::Damaged(_) => true,
        };
        let kept = if damaged { Some(row.unwrap_or_else(|| unknown(told))) } else { row };
        if let Some(kept) = kept {
            self.committer.rows.insert(shard, MetaRow { damaged, ..kept });
        }
        if let Some(row) = row.filter(|row| told.is_none_or(|told| told.commit < row.commit)) {
            let (commit, at, gone) = (row.commit, row.meta.at, row.forgetting);
            seen.push(Seen { shard, commit, at, gone });
        }
        self.committer.digests.extend(digests);
        self.committer.pasts.insert(shard, past.clone());
        found.push(Found { shard, meta: row.map(|row| row.meta), damaged, past, sessions });
    }

    /// Whether anything is there of a shard, and be it only that it was served.
    pub(crate) fn has(&self, shard: ShardId) -> bool {
        self.rows.shards.contains_key(&shard)
    }

    /// The changes of a shard that the next start finds whole.
    pub(crate) fn ops(&self, shard: ShardId) -> BTreeSet<u32> {
        let Some(Ok(row)) = self.rows.shards.get(&shard).map(|row| decode_meta(shard, row)) else {
            return BTreeSet::new();
        };
        if !row.meta.complete || row.forgetting || row.damaged {
            return BTreeSet::new();
        }
        let read = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            let row = decode_session(key, value).ok()?;
            let number = u64::from_be_bytes(row.record.try_into().ok()?);
            Some(&self.states[number as usize].ops)
        };
        self.rows
            .of(shard)
            .filter(|(key, _)| key[4] != PAST)
            .filter_map(read)
            .flatten()
            .copied()
            .collect()
    }
}

fn unknown(told: Option<&Seen>) -> MetaRow {
    let at = told.map_or(NOBODY, |seen| seen.at);
    let meta = ShardMeta { at, role: Role::Unknown, complete: false, begun: None, alone: false };
    let commit = told.map_or(0, |seen| seen.commit);
    MetaRow { meta, commit, tally: Tally::default(), forgetting: false, damaged: false }
}

/// Flips a bit of one of these rows.
fn flip_one<K: Clone + Ord>(rows: &mut BTreeMap<K, Vec<u8>>, rng: &mut StdRng) -> Option<K> {
    if rows.is_empty() {
        return None;
    }
    let n = rng.random_range(0..rows.len());
    let (key, value) = rows.iter_mut().nth(n)?;
    let bit = rng.random_range(0..value.len() * 8);
    value[bit / 8] ^= 1 << (bit % 8);
    Some(key.clone())
}
