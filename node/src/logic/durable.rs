//! What the disk holds of a shard, and how its loss is noticed.
//!
//! The database under it replays its journal up to the first record that it cannot read, and says
//! nothing about the rest. So with each batch goes where each of its shards is: the number of that
//! commit, how many rows there are, and a sum over them. The row of the shard's last change says it, as a
//! [*mark*](Mark), or a row of the shard's own, its *meta* row, when there is more to say. A file of its
//! own, the *witness*, is told which commit each shard has reached, after every sync.
//!
//! - A newest commit that is below the witness's: the end of the journal is lost.
//! - A count or a sum that differs: something in the middle is lost, stale, or too much.
//! - A checksum that differs: the row itself is broken.
//!
//! What is not noticed: the loss of commits that neither the database nor the witness has on disk.
//! The witness is synced each second, later than the database; so after a loss of power *and* a
//! broken journal, the last second may be missing without a word.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stead_shared::id::{Epoch, NodeBoot, NodeId, ShardId, Version};

/// The version of rows and witness that this code writes, and the only one it reads.
pub const FORMAT: u8 = 3;

/// Bytes before a session's record: checksum, epoch (counter and node), seq, time of writing.
const SESSION_HEAD: usize = 4 + 4 * 8;

/// Whose a shard was when this was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// This node served it.
    Owner,
    /// This node kept a copy for another.
    Copy {
        /// The one that served it.
        owner: NodeBoot,
    },
    /// Nobody has said: the shard was written to before its role was.
    Unknown,
    /// This node served it and sealed it for a move: it may have been granted to another node, and
    /// served there in the next epoch.
    Sealed,
}

/// What is known of a shard besides its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMeta {
    /// The shard's last change here.
    pub at: Version,
    /// Whose it is.
    pub role: Role,
    /// Every session of the shard is there, up to `at`. False while a copy is being filled.
    pub complete: bool,
    /// How it began at this node, where others may have of it what is not in it.
    pub begun: Option<Beginning>,
    /// This node served it, and answers waited for no copy: whoever takes it over may lack what is
    /// here.
    pub alone: bool,
}

/// A claim of a shard that nobody served, with what there was of it on one disk, or with nothing.
/// Who comes back later may have more, and is to hear of it: also when its claimer has started again
/// since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Beginning {
    /// The epoch in which it was claimed.
    pub epoch: Epoch,
    /// The state that it was claimed with; none when it was empty.
    pub from: Option<Version>,
}

/// A shard's row. The order of the fields is the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaRow {
    /// What the node said of it.
    pub meta: ShardMeta,
    /// The number of the commit that wrote this; it grows over the life of the database.
    pub commit: u64,
    /// How many rows there are.
    pub tally: Tally,
    /// The shard is being deleted; what is left of it means nothing.
    pub forgetting: bool,
    /// Damage was found at an earlier start, and the shard was not dropped since.
    pub damaged: bool,
}

/// The number of a shard's rows, those of its sessions and of what they answered, and a sum over
/// them, which both change with each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub rows: u64,
    /// Wrapping sum of the digests of their rows.
    pub sum: u64,
}

impl Tally {
    /// One row more.
    pub fn add(&mut self, digest: u64) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(digest);
    }

    /// One row less.
    pub fn take(&mut self, digest: u64) {
        self.rows = self.rows.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(digest);
    }
}

/// A row that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Too short for what it is.
    #[error("too short")]
    Short,
    /// Not what was written.
    #[error("the checksum differs")]
    Checksum,
    /// Written by a version of this program that this one does not know.
    #[error("format {0}, this version reads {FORMAT}")]
    Format(u8),
    /// Something else.
    #[error("malformed")]
    Malformed,
}

/// A session's row, or that of one of its slots, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRow<'a> {
    /// Its last change.
    pub at: Version,
    /// When it was written, in milliseconds since 1970.
    pub written_ms: u64,
    /// What is in it, as the store encodes it.
    pub record: &'a [u8],
    /// What it adds to its shard's [`Tally`].
    pub digest: u64,
    /// What it says of its shard.
    pub mark: Option<Mark>,
}

/// What a row says besides of its whole shard: where the shard is with the commit that wrote it. It
/// stands for a shard's row that only moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The number of that commit.
    pub commit: u64,
    /// The rows there are.
    pub tally: Tally,
}

/// The end of a row without a mark, and of one with a mark.
const UNMARKED: u8 = 0;
const MARKED: u8 = 1;
/// Bytes of a mark, and of its checksum.
const MARK_BYTES: usize = 3 * 8;

/// Marks a row that [`encode_session`] made.
pub fn mark_row(row: &mut Vec<u8>, mark: Mark) {
    row.pop();
    let start = row.len();
    for number in [mark.commit, mark.tally.rows, mark.tally.sum] {
        row.extend_from_slice(&number.to_le_bytes());
    }
    let crc = crc(&row[..4], &row[start..]);
    row.extend_from_slice(&crc.to_le_bytes());
    row.push(MARKED);
}

/// Takes the end of a row off.
fn split_mark(row: &[u8]) -> Result<(&[u8], Option<Mark>), RowError> {
    match row.split_last().ok_or(RowError::Short)? {
        (&UNMARKED, row) => Ok((row, None)),
        (&MARKED, rest) => {
            let (rest, stored) = rest.split_last_chunk::<4>().ok_or(RowError::Short)?;
            let (row, mark) = rest.split_last_chunk::<MARK_BYTES>().ok_or(RowError::Short)?;
            if crc(row.get(..4).ok_or(RowError::Short)?, mark) != u32::from_le_bytes(*stored) {
                return Err(RowError::Checksum);
            }
            let mut reader = Reader(mark);
            let commit = reader.u64()?;
            let tally = Tally { rows: reader.u64()?, sum: reader.u64()? };
            Ok((row, Some(Mark { commit, tally })))
        }
        (_, _) => Err(RowError::Malformed),
    }
}

/// What a shard's row says together with the newest mark of its rows.
#[must_use]
pub fn marked(row: MetaRow, newest: Option<(Mark, Version)>) -> MetaRow {
    match newest {
        Some((Mark { commit, tally }, at)) if row.commit < commit => {
            MetaRow { meta: ShardMeta { at, ..row.meta }, commit, tally, ..row }
        }
        Some(_) | None => row,
    }
}

/// Spreads a row's checksum and number over 64 bits (the finalizer of splitmix64).
fn digest(crc: u32, seq: u64) -> u64 {
    let mut x = (u64::from(crc) << 32) ^ seq ^ 0x9e37_79b9_7f4a_7c15;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn crc(key: &[u8], rest: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(rest);
    crc.finalize()
}

/// The value of a session's row under `row_key`, and what it adds to the tally.
#[must_use]
pub fn encode_session(
    row_key: &[u8],
    at: Version,
    written_ms: u64,
    record: &[u8],
) -> (Vec<u8>, u64) {
    let mut row = Vec::with_capacity(SESSION_HEAD + record.len() + MARK_BYTES + 5);
    row.extend_from_slice(&[0; 4]);
    for number in [at.epoch.counter, at.epoch.node.0, at.seq, written_ms] {
        row.extend_from_slice(&number.to_le_bytes());
    }
    row.extend_from_slice(record);
    let crc = crc(row_key, &row[4..]);
    row[..4].copy_from_slice(&crc.to_le_bytes());
    row.push(UNMARKED);
    (row, digest(crc, at.seq))
}

/// Reads a session's row.
///
/// # Errors
/// [`RowError`] when it is not what was written under this key.
pub fn decode_session<'a>(row_key: &[u8], row: &'a [u8]) -> Result<SessionRow<'a>, RowError> {
    let (row, mark) = split_mark(row)?;
    let (stored, rest) = row.split_first_chunk().ok_or(RowError::Short)?;
    let stored = u32::from_le_bytes(*stored);
    if crc(row_key, rest) != stored {
        return Err(RowError::Checksum);
    }
    let mut reader = Reader(rest);
    let epoch = Epoch { counter: reader.u64()?, node: NodeId(reader.u64()?) };
    let at = Version { epoch, seq: reader.u64()? };
    let written_ms = reader.u64()?;
    Ok(SessionRow { at, written_ms, record: reader.0, digest: digest(stored, at.seq), mark })
}

/// The value of a shard's row.
#[must_use]
pub fn encode_meta(shard: ShardId, meta: &MetaRow) -> Vec<u8> {
    let row = postcard::to_extend(meta, vec![0, 0, 0, 0, FORMAT]);
    let mut row = row.expect("plain numbers are encoded into memory");
    let crc = crc(&shard.0.to_be_bytes(), &row[4..]);
    row[..4].copy_from_slice(&crc.to_le_bytes());
    row
}

/// Reads a shard's row.
///
/// # Errors
/// [`RowError`] when it is not what was written for this shard.
pub fn decode_meta(shard: ShardId, row: &[u8]) -> Result<MetaRow, RowError> {
    let (stored, rest) = row.split_first_chunk().ok_or(RowError::Short)?;
    if crc(&shard.0.to_be_bytes(), rest) != u32::from_le_bytes(*stored) {
        return Err(RowError::Checksum);
    }
    match rest.split_first() {
        Some((&FORMAT, meta)) => postcard::from_bytes(meta).map_err(|_| RowError::Malformed),
        Some((&other, _)) => Err(RowError::Format(other)),
        None => Err(RowError::Short),
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u64(&mut self) -> Result<u64, RowError> {
        let (number, rest) = self.0.split_first_chunk().ok_or(RowError::Short)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }
}

/// What the witness was told of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The shard.
    pub shard: ShardId,
    /// The commit that changed it last.
    pub commit: u64,
    /// The shard's last change then.
    pub at: Version,
    /// That commit dropped the shard.
    pub gone: bool,
}

/// Bytes of one shard in a record of the witness.
const SEEN_BYTES: usize = 4 + 1 + 4 * 8;
/// Shards in one record: what one flipped byte can hide.
const SEEN_MAX: usize = 64;

/// Appends records to the witness: `[len u32][crc32][shards]`, all little-endian; the checksum
/// covers the length too.
pub fn encode_witness(seen: &[Seen], out: &mut Vec<u8>) {
    for part in seen.chunks(SEEN_MAX) {
        let len = u32::try_from(part.len() * SEEN_BYTES).expect("few shards in a record");
        let start = out.len();
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for one in part {
            out.extend_from_slice(&one.shard.0.to_le_bytes());
            out.push(u8::from(one.gone));
            for number in [one.commit, one.at.epoch.counter, one.at.epoch.node.0, one.at.seq] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        let crc = crc(&len.to_le_bytes(), &out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The witness, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// The last word about each shard.
    pub shards: BTreeMap<ShardId, Seen>,
    /// Stretches in the middle that are no records: flipped bytes. What they said is not known.
    pub bad: usize,
    /// Bytes behind the last record: the tail of one that was being written, or a broken one.
    pub tail: usize,
}

/// Reads a witness. Behind bytes that are no record it goes on at the next record there is.
#[must_use]
pub fn parse_witness(mut bytes: &[u8]) -> Witness {
    let mut witness = Witness::default();
    let mut skipped = 0;
    while !bytes.is_empty() {
        match parse_record(bytes) {
            Some((record, rest)) => {
                witness.bad += usize::from(skipped > 0);
                skipped = 0;
                for seen in record.chunks_exact(SEEN_BYTES).filter_map(parse_seen) {
                    let last = witness.shards.entry(seen.shard).or_insert(seen);
                    if last.commit <= seen.commit {
                        *last = seen;
                    }
                }
                bytes = rest;
            }
            None => {
                skipped += 1;
                bytes = &bytes[1..];
            }
        }
    }
    witness.tail = skipped;
    witness
}

fn parse_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (stored, rest) = rest.split_first_chunk()?;
    let n = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    if n == 0 || n % SEEN_BYTES != 0 || n > SEEN_MAX * SEEN_BYTES {
        return None;
    }
    let (record, rest) = rest.split_at_checked(n)?;
    (crc(len, record) == u32::from_le_bytes(*stored)).then_some((record, rest))
}

fn parse_seen(bytes: &[u8]) -> Option<Seen> {
    let (shard, rest) = bytes.split_first_chunk()?;
    let (&gone, rest) = rest.split_first()?;
    let mut reader = Reader(rest);
    let mut number = || reader.u64().ok();
    let (commit, counter, node, seq) = (number()?, number()?, number()?, number()?);
    let at = Version { epoch: Epoch { counter, node: NodeId(node) }, seq };
    Some(Seen { shard: ShardId(u32::from_le_bytes(*shard)), commit, at, gone: gone != 0 })
}

/// What was found when a shard's sessions were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Those that can be read.
    pub tally: Tally,
    /// Rows that are not what was written.
    pub broken: u64,
    /// The newest mark of those that can be read, and the change that its row is of.
    pub newest: Option<(Mark, Version)>,
    /// The database could not read on; what it said.
    pub unreadable: Option<String>,
}

impl Counted {
    /// A row can be read.
    pub fn add(&mut self, row: &SessionRow<'_>) {
        self.tally.add(row.digest);
        let newest = self.newest.map_or(0, |(mark, _)| mark.commit);
        let mark = row.mark.filter(|mark| newest < mark.commit);
        self.newest = mark.map(|mark| (mark, row.at)).or(self.newest);
    }
}

/// Why a shard's state on disk must not be used as if it were whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The disk has an older state than it had once confirmed: the journal's end is lost.
    #[error("it was once on disk up to {known}, now only up to {found}", known = At(.known), found = At(.found))]
    Behind {
        /// What was confirmed.
        known: Version,
        /// What there is.
        found: Version,
    },
    /// It was on disk once, and is not now.
    #[error("it was once on disk up to {known}, now nothing of it is", known = At(.known))]
    Missing {
        /// What was confirmed.
        known: Version,
    },
    /// There are sessions, and no row for their shard.
    #[error("{rows} rows are there, and nothing that says what they are")]
    Stray {
        /// How many.
        rows: u64,
    },
    /// The shard's own row is broken.
    #[error("its row is broken: {0}")]
    Meta(RowError),
    /// Rows of sessions are broken.
    #[error("{broken} rows are broken")]
    Rows {
        /// How many.
        broken: u64,
    },
    /// There are more or fewer rows than there were.
    #[error("{found} rows are there, and should be {expected}")]
    Count {
        /// As the row says.
        expected: u64,
        /// As they were counted.
        found: u64,
    },
    /// As many rows as there were, and not in the same state.
    #[error("at least one row is there in an older state")]
    Stale,
    /// The database reports an error.
    #[error("the database cannot read it: {0}")]
    Unreadable(String),
    /// Found at an earlier start; the shard was not dropped since.
    #[error("damage was found at an earlier start")]
    Earlier,
}

struct At<'a>(&'a Version);

impl std::fmt::Display for At<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "change {} of epoch {}", self.0.seq, self.0.epoch)
    }
}

/// What to make of a shard at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is nothing, and nothing is missed.
    Absent,
    /// All that was confirmed is there.
    Whole,
    /// It was dropped; what is left of it can go.
    Forgotten,
    /// Something is lost.
    Damaged(Damage),
}

/// Judges a shard by its row, by what the witness last heard of it, and by what was counted.
#[must_use]
pub fn judge(
    meta: Option<&Result<MetaRow, RowError>>,
    seen: Option<&Seen>,
    counted: &Counted,
) -> Verdict {
    let row = match meta {
        None => return judge_without_row(seen, counted),
        Some(Err(error)) => return Verdict::Damaged(Damage::Meta(*error)),
        Some(Ok(row)) => &marked(*row, counted.newest),
    };
    if let Some(seen) = seen.filter(|seen| row.commit < seen.commit) {
        if seen.gone {
            return Verdict::Forgotten;
        }
        let (known, found) = (seen.at, row.meta.at);
        return Verdict::Damaged(Damage::Behind { known, found });
    }
    if row.forgetting {
        return Verdict::Forgotten;
    }
    match damage_of(row, counted) {
        Some(damage) => Verdict::Damaged(damage),
        None => Verdict::Whole,
    }
}

fn judge_without_row(seen: Option<&Seen>, counted: &Counted) -> Verdict {
    let rows = counted.tally.rows + counted.broken;
    match seen {
        Some(seen) if !seen.gone => Verdict::Damaged(Damage::Missing { known: seen.at }),
        _ if counted.unreadable.is_some() => Verdict::Damaged(Damage::Stray { rows }),
        // The drop's last batch takes the rows of sessions with the shard's own.
        Some(_) if rows > 0 => Verdict::Forgotten,
        None if rows > 0 => Verdict::Damaged(Damage::Stray { rows }),
        Some(_) | None => Verdict::Absent,
    }
}

fn damage_of(row: &MetaRow, counted: &Counted) -> Option<Damage> {
    let (expected, found) = (row.tally, counted.tally);
    if let Some(error) = &counted.unreadable {
        Some(Damage::Unreadable(error.clone()))
    } else if counted.broken > 0 {
        Some(Damage::Rows { broken: counted.broken })
    } else if expected.rows != found.rows {
        Some(Damage::Count { expected: expected.rows, found: found.rows })
    } else if expected.sum != found.sum {
        Some(Damage::Stale)
    } else if row.damaged {
        Some(Damage::Earlier)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::rows::row_key;

    fn version(counter: u64, seq: u64) -> Version {
        Version { epoch: Epoch { counter, node: NodeId(7) }, seq }
    }

    fn row(commit: u64, tally: Tally) -> MetaRow {
        let (at, role) = (version(1, commit), Role::Owner);
        let meta = ShardMeta { at, role, complete: true, begun: None, alone: true };
        MetaRow { meta, commit, tally, forgetting: false, damaged: false }
    }

    fn seen(shard: u32, commit: u64, gone: bool) -> Seen {
        Seen { shard: ShardId(shard), commit, at: version(1, commit), gone }
    }

    #[test]
    fn rows_are_read_back_and_each_flipped_bit_is_noticed() {
        let key = row_key(ShardId(5), b"cart", None);
        let (value, digest) = encode_session(&key, version(3, 9), 77, b"record");
        let read = decode_session(&key, &value).unwrap();
        let mark = Mark { commit: 7, tally: Tally { rows: 3, sum: 9 } };
        let expected = |mark| {
            let (at, written_ms) = (version(3, 9), 77);
            SessionRow { at, written_ms, record: b"record", digest, mark }
        };
        assert_eq!(read, expected(None));
        let plain = value.clone();
        let mut value = value;
        mark_row(&mut value, mark);
        assert_eq!(decode_session(&key, &value), Ok(expected(Some(mark))));
        let other = row_key(ShardId(5), b"card", None);
        assert_eq!(decode_session(&other, &value), Err(RowError::Checksum));
        let meta = row(4, Tally { rows: 2, sum: 3 });
        let stored = encode_meta(ShardId(5), &meta);
        assert_eq!(decode_meta(ShardId(5), &stored), Ok(meta));
        assert_eq!(decode_meta(ShardId(6), &stored), Err(RowError::Checksum));
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_session(&key, &flipped).is_err());
        }
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_meta(ShardId(5), &flipped).is_err());
        }
        for bit in 0..plain.len() * 8 {
            let mut flipped = plain.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_session(&key, &flipped).is_err(), "{bit}");
        }
        assert_eq!(decode_session(&key, &[]), Err(RowError::Short));
        assert_eq!(decode_session(&key, &[1, 2, 0]), Err(RowError::Short));
    }

    #[test]
    fn the_format_of_rows_is_what_it_was() {
        let (value, _) = encode_session(&row_key(ShardId(1), b"k", None), version(2, 3), 4, b"r");
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&value[4..]),
            format!(
                "{:016x}{:016x}{:016x}{:016x}7200",
                2u64.swap_bytes(),
                7u64.swap_bytes(),
                3u64.swap_bytes(),
                4u64.swap_bytes()
            )
        );
        let meta = encode_meta(ShardId(1), &row(4, Tally { rows: 2, sum: 3 }));
        assert_eq!(hex(&meta[4..]), "03010704000100010402030000");
    }

    #[test]
    fn a_witness_is_read_on_behind_a_flipped_record() {
        let mut bytes = Vec::new();
        encode_witness(&[seen(1, 1, false), seen(2, 1, false)], &mut bytes);
        let first = bytes.len();
        encode_witness(&[seen(1, 2, false)], &mut bytes);
        let second = bytes.len();
        encode_witness(&[seen(2, 3, true)], &mut bytes);
        let whole = parse_witness(&bytes);
        let shards = [seen(1, 2, false), seen(2, 3, true)].map(|seen| (seen.shard, seen));
        assert_eq!((whole.bad, whole.tail), (0, 0));
        assert_eq!(whole.shards, BTreeMap::from(shards));
        for bit in first * 8..second * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = parse_witness(&flipped);
            assert_eq!((read.bad, read.tail), (1, 0), "bit {bit}");
            assert_eq!(read.shards[&ShardId(1)], seen(1, 1, false));
            assert_eq!(read.shards[&ShardId(2)], seen(2, 3, true));
        }
        for end in second + 1..bytes.len() {
            let read = parse_witness(&bytes[..end]);
            assert_eq!((read.bad, read.tail), (0, end - second));
            assert_eq!(read.shards[&ShardId(2)], seen(2, 1, false));
        }
    }

    #[test]
    fn a_witness_of_many_shards_has_small_records() {
        let all: Vec<Seen> = (0..1000).map(|shard| seen(shard, 9, false)).collect();
        let mut bytes = Vec::new();
        encode_witness(&all, &mut bytes);
        bytes[100] ^= 1;
        assert_eq!(parse_witness(&bytes).shards.len(), 1000 - SEEN_MAX);
    }

    #[test]
    fn what_becomes_of_a_shard() {
        let one = Tally { rows: 1, sum: 5 };
        let counted = |tally| Counted { tally, ..Counted::default() };
        let check = |meta: Option<MetaRow>, seen: Option<Seen>, found: Counted| {
            judge(meta.map(Ok).as_ref(), seen.as_ref(), &found)
        };
        let none = Tally::default();
        let damaged = Verdict::Damaged;
        let (known, found) = (version(1, 5), version(1, 4));
        assert_eq!(check(None, None, counted(none)), Verdict::Absent);
        assert_eq!(check(None, Some(seen(1, 5, true)), counted(none)), Verdict::Absent);
        assert_eq!(check(None, Some(seen(1, 5, true)), counted(one)), Verdict::Forgotten);
        assert_eq!(
            check(None, Some(seen(1, 5, false)), counted(none)),
            damaged(Damage::Missing { known })
        );
        assert_eq!(check(None, None, counted(one)), damaged(Damage::Stray { rows: 1 }));
        for at in [None, Some(seen(1, 3, true)), Some(seen(1, 4, false))] {
            assert_eq!(check(Some(row(4, one)), at, counted(one)), Verdict::Whole);
        }
        assert_eq!(
            check(Some(row(4, one)), Some(seen(1, 5, false)), counted(one)),
            damaged(Damage::Behind { known, found })
        );
        assert_eq!(
            check(Some(row(4, one)), Some(seen(1, 5, true)), counted(one)),
            Verdict::Forgotten
        );
        let count = Damage::Count { expected: 1, found: 0 };
        assert_eq!(check(Some(row(4, one)), None, counted(none)), damaged(count));
        let other = Tally { rows: 1, sum: 6 };
        assert_eq!(check(Some(row(4, one)), None, counted(other)), damaged(Damage::Stale));
        let broken = Counted { broken: 2, ..counted(one) };
        assert_eq!(check(Some(row(4, one)), None, broken), damaged(Damage::Rows { broken: 2 }));
        let mark = |commit| Some((Mark { commit, tally: one }, version(1, commit)));
        let with_mark = |commit| Counted { newest: mark(commit), ..counted(one) };
        let told = Some(seen(1, 6, false));
        assert_eq!(check(Some(row(4, none)), told, with_mark(6)), Verdict::Whole);
        let (known, found) = (version(1, 6), version(1, 5));
        let behind = damaged(Damage::Behind { known, found });
        assert_eq!(check(Some(row(4, none)), told, with_mark(5)), behind);
        let stale = Damage::Count { expected: 0, found: 1 };
        assert_eq!(check(Some(row(7, none)), told, with_mark(6)), damaged(stale));
        let earlier = MetaRow { damaged: true, ..row(4, one) };
        assert_eq!(check(Some(earlier), None, counted(one)), damaged(Damage::Earlier));
        let going = MetaRow { forgetting: true, ..row(4, one) };
        assert_eq!(check(Some(going), None, counted(none)), Verdict::Forgotten);
        assert_eq!(
            judge(Some(&Err(RowError::Checksum)), None, &counted(one)),
            damaged(Damage::Meta(RowError::Checksum))
        );
    }
}
