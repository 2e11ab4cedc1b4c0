//! How far a journal of the database can be read.
//!
//! The database's own replay stops without a word at some broken records, refuses to open at
//! others, and takes the number of a batch as it is, though no checksum covers it. So its journals
//! are read before it sees them, and cut behind the last batch that is whole and in order: what
//! was synced and is lost by that, the witness and the tallies of shards tell
//! ([`durable`](super::durable)).
//!
//! ```text
//! batch  = start item* end           start = 1, count u32, number u64
//! item   = 2, type, compression, keyspace u64, key length u16, value length u32,
//!          stored length u32, key, value
//! end    = 3, xxh3 of the items u64, "FJL" 3
//! ```
//!
//! All of it little-endian; fjall 3, `journal/entry.rs`. The file is made with its full length,
//! so zeros follow the last batch.

use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";
/// The least that a part of a batch has, a cleared keyspace: it bounds the count.
const ITEM_BYTES_MIN: usize = 1 + 8;
/// Between two batches. Every batch takes one number, so more than this is no step but a flip.
const STEP_MAX: u64 = 1 << 32;

/// What was found in a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// Bytes up to the end of the last good batch.
    pub good: usize,
    /// How many good batches.
    pub batches: usize,
    /// The number of the last one, or what was given.
    pub number: Option<u64>,
    /// Something follows that is neither a good batch nor zeros.
    pub garbage: bool,
}

/// Reads a journal. `number` is that of the last batch of the journal before.
#[must_use]
pub fn check(bytes: &[u8], number: Option<u64>) -> Journal {
    let mut journal = Journal { number, ..Journal::default() };
    loop {
        let rest = &bytes[journal.good..];
        let Some((len, number)) = batch(rest).filter(|(_, next)| follows(journal.number, *next))
        else {
            journal.garbage = !is_zeros(rest);
            return journal;
        };
        journal.good += len;
        journal.batches += 1;
        journal.number = Some(number);
    }
}

fn follows(last: Option<u64>, next: u64) -> bool {
    let step = match last {
        Some(last) => next.checked_sub(last).filter(|step| *step > 0),
        None => Some(next),
    };
    step.is_some_and(|step| step < STEP_MAX)
}

/// A compare of memory: most of a new journal is zeros.
fn is_zeros(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// The length and the number of the batch at the start, if it is whole.
fn batch(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.u8()? != START {
        return None;
    }
    let count = usize::try_from(reader.u32()?).ok()?;
    let number = reader.u64()?;
    if count > bytes.len() / ITEM_BYTES_MIN {
        return None;
    }
    let first = reader.at;
    for _ in 0..count {
        reader.item()?;
    }
    let items = &bytes[first..reader.at];
    let whole = reader.u8()? == END && reader.u64()? == xxh3_64(items);
    (whole && reader.take(TRAILER.len())? == TRAILER).then_some((reader.at, number))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn item(&mut self) -> Option<()> {
        match self.u8()? {
            CLEAR => self.take(8).map(drop),
            ITEM => {
                let _kind = self.u8()?;
                // This program writes its journal as it is.
                if self.u8()? != 0 {
                    return None;
                }
                self.take(8)?;
                let key = self.take(2)?.try_into().ok().map(u16::from_le_bytes)?;
                let (value, stored) = (self.u32()?, self.u32()?);
                if value != stored {
                    return None;
                }
                self.take(usize::from(key))?;
                self.take(usize::try_from(stored).ok()?).map(drop)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![ITEM, 0, 0];
        bytes.extend_from_slice(&7u64.to_le_bytes());
        bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        bytes
    }

    fn push(out: &mut Vec<u8>, number: u64, items: &[Vec<u8>]) {
        out.push(START);
        out.extend_from_slice(&(items.len() as u32).to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        let items = items.concat();
        out.extend_from_slice(&items);
        out.push(END);
        out.extend_from_slice(&xxh3_64(&items).to_le_bytes());
        out.extend_from_slice(&TRAILER);
    }

    /// Three batches, and where each ends.
    fn journal() -> (Vec<u8>, [usize; 3]) {
        let mut bytes = Vec::new();
        let ends = [(4, 1), (5, 2), (9, 3)].map(|(number, n_items)| {
            push(&mut bytes, number, &vec![item(b"key", b"value"); n_items]);
            bytes.len()
        });
        (bytes, ends)
    }

    #[test]
    fn a_journal_is_read_to_its_end() {
        let (mut bytes, ends) = journal();
        let whole = Journal { good: ends[2], batches: 3, number: Some(9), garbage: false };
        assert_eq!(check(&bytes, None), whole);
        bytes.extend_from_slice(&[0; 1000]);
        assert_eq!(check(&bytes, Some(3)), whole);
        assert_eq!(check(&bytes, Some(4)).good, 0);
        assert_eq!(check(&[0; 64], Some(4)), Journal { number: Some(4), ..Journal::default() });
    }

    /// All but a number that is flipped and still in order, which the tallies notice.
    #[test]
    fn it_is_cut_before_a_flipped_bit() {
        let (bytes, ends) = journal();
        for bit in 0..ends[2] * 8 {
            let batch = ends.iter().filter(|end| **end <= bit / 8).count();
            let start = if batch == 0 { 0 } else { ends[batch - 1] };
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = check(&flipped, None);
            let of_number = (5..13).contains(&(bit / 8 - start));
            if of_number {
                assert!(read.good >= start, "bit {bit}");
            } else {
                let before = (read.good, read.batches, read.garbage);
                assert_eq!(before, (start, batch, true), "bit {bit}");
            }
        }
    }

    #[test]
    fn half_a_batch_at_the_end_is_no_batch() {
        let (bytes, ends) = journal();
        for end in ends[1] + 1..ends[2] {
            let read = check(&bytes[..end], None);
            assert_eq!((read.good, read.garbage), (ends[1], true));
            let mut torn = bytes[..end].to_vec();
            torn.extend_from_slice(&[0; 300]);
            assert_eq!(check(&torn, None).good, ends[1]);
        }
    }
}
