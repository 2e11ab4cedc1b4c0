//! From changes to rows: one batch with at most one change of each row, and the rows of the shards
//! that it touches.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use stead_shared::id::{Epoch, NodeId, ShardId, Version};

use super::Slots;
use super::queue::Op;
use super::store::{Place, ShardIndex, Write};
use crate::logic::durable::{MetaRow, Role, Seen, ShardMeta, Tally, encode_meta, encode_session};
use crate::logic::rows::row_key;

/// The version of a shard of which nothing is known.
pub(super) const NOBODY: Version = Version { epoch: Epoch { counter: 0, node: NodeId(0) }, seq: 0 };

/// What the committer knows of the shards on disk, with everything that it was handed so far.
#[derive(Default)]
pub(super) struct Book {
    /// The number of the last commit.
    pub(super) commit: u64,
    pub(super) rows: BTreeMap<ShardId, MetaRow>,
    pub(super) index: HashMap<ShardId, ShardIndex>,
}

/// A batch, complete: written as often as it takes.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    pub(super) writes: Vec<Write>,
    /// What the witness is told once it is on disk.
    pub(super) seen: Vec<Seen>,
    /// Bytes of rows.
    pub(super) bytes: usize,
    /// Bytes in the queue that go when it is on disk.
    pub(super) queued: usize,
    /// The position of its last change.
    pub(super) through: u64,
}

impl Prepared {
    fn push(&mut self, place: Place, key: &[u8], value: Option<&[u8]>) {
        self.bytes += key.len() + value.map_or(0, <[u8]>::len);
        self.writes.push(Write { place, key: key.into(), value: value.map(Into::into) });
    }
}

/// Which change of a row counts: the last. Two changes of one row in one batch would have the same
/// number in the database, and which of them it keeps is nobody's promise.
pub(super) fn prepare(book: &mut Book, ops: &[Op]) -> Prepared {
    let mut prepared = Prepared::default();
    let mut written = SlotWrites::default();
    let mut last: HashMap<(ShardId, &[u8]), usize> = HashMap::with_capacity(ops.len());
    for (number, op) in ops.iter().enumerate() {
        if let Op::Put { shard, key, .. } | Op::Remove { shard, key, .. } = op {
            last.insert((*shard, key), number);
        }
    }
    let mut touched = BTreeMap::new();
    for (number, op) in ops.iter().enumerate() {
        match op {
            Op::Put { shard, at, key, record, slots, written_ms } => {
                let row = touch(book, &mut touched, *shard, *at);
                row.meta.at = *at;
                let index = book.index.entry(*shard).or_default();
                let of = (*shard, &**key);
                written.put(index, &mut row.tally, of, slots, (*at, *written_ms));
                if last.get(&(*shard, key)) != Some(&number) {
                    continue;
                }
                let key = row_key(*shard, key, None);
                let (value, digest) = encode_session(&key, *at, *written_ms, record);
                let old = index.replace(&key, Some(digest));
                tally(&mut row.tally, old, Some(digest));
                prepared.push(Place::Sessions, &key, Some(&value));
            }
            Op::Remove { shard, at, key } => {
                let row = touch(book, &mut touched, *shard, *at);
                row.meta.at = *at;
                let index = book.index.entry(*shard).or_default();
                written.remove_all(index, &mut row.tally, (*shard, key), &BTreeSet::new());
                if last.get(&(*shard, key)) != Some(&number) {
                    continue;
                }
                let key = row_key(*shard, key, None);
                let old = index.replace(&key, None);
                tally(&mut row.tally, old, None);
                prepared.push(Place::Sessions, &key, None);
            }
            Op::Meta { shard, meta } => {
                touch(book, &mut touched, *shard, meta.at).meta = *meta;
            }
            // The committer puts them between batches.
            Op::Forget { .. } => debug_assert!(false, "a shard is forgotten in steps"),
        }
    }
    for (key, value) in written.0 {
        prepared.push(Place::Sessions, &key, value.as_deref());
    }
    finish(book, touched, &mut prepared);
    prepared
}

/// What becomes of rows of slots, whose keys these are.
#[derive(Default)]
struct SlotWrites(BTreeMap<Vec<u8>, Option<Vec<u8>>>);

impl SlotWrites {
    fn put(
        &mut self,
        index: &mut ShardIndex,
        tally: &mut Tally,
        of: (ShardId, &[u8]),
        slots: &Slots,
        written: (Version, u64),
    ) {
        match slots {
            Slots::Same => {}
            Slots::One(slot, record) => self.put_one(index, tally, of, (*slot, record), written),
            Slots::All(all) => {
                let stay = all.iter().map(|(slot, _)| *slot).collect();
                self.remove_all(index, tally, of, &stay);
                for (slot, record) in all {
                    self.put_one(index, tally, of, (*slot, record), written);
                }
            }
        }
    }

    fn put_one(
        &mut self,
        index: &mut ShardIndex,
        tally: &mut Tally,
        (shard, key): (ShardId, &[u8]),
        (slot, record): (u8, &[u8]),
        (at, written_ms): (Version, u64),
    ) {
        let row = row_key(shard, key, Some(slot));
        let (value, digest) = encode_session(&row, at, written_ms, record);
        index.note_slot(&row_key(shard, key, None), slot);
        self::tally(tally, index.replace(&row, Some(digest)), Some(digest));
        self.0.insert(row, Some(value));
    }

    /// Removes the slots of a session, but those that are written anew.
    fn remove_all(
        &mut self,
        index: &mut ShardIndex,
        tally: &mut Tally,
        (shard, key): (ShardId, &[u8]),
        but: &BTreeSet<u8>,
    ) {
        let filled = index.take_slots(&row_key(shard, key, None));
        for slot in filled.filter(|slot| !but.contains(slot)) {
            let row = row_key(shard, key, Some(slot));
            if let Some(old) = index.replace(&row, None) {
                tally.take(old);
                self.0.insert(row, None);
            }
        }
    }
}

fn touch<'a>(
    book: &Book,
    touched: &'a mut BTreeMap<ShardId, MetaRow>,
    shard: ShardId,
    at: Version,
) -> &'a mut MetaRow {
    touched.entry(shard).or_insert_with(|| {
        let meta = ShardMeta { at, role: Role::Unknown, complete: false, begun: None };
        let new =
            MetaRow { meta, commit: 0, tally: Tally::default(), forgetting: false, damaged: false };
        book.rows.get(&shard).copied().unwrap_or(new)
    })
}

fn tally(tally: &mut Tally, old: Option<u64>, new: Option<u64>) {
    if let Some(old) = old {
        tally.take(old);
    }
    if let Some(new) = new {
        tally.add(new);
    }
}

fn finish(book: &mut Book, touched: BTreeMap<ShardId, MetaRow>, prepared: &mut Prepared) {
    if touched.is_empty() {
        return;
    }
    book.commit += 1;
    for (shard, mut row) in touched {
        row.commit = book.commit;
        book.rows.insert(shard, row);
        prepared.push(Place::Shards, &shard.0.to_be_bytes(), Some(&encode_meta(shard, &row)));
        prepared.seen.push(seen(shard, &row));
    }
}

pub(super) fn seen(shard: ShardId, row: &MetaRow) -> Seen {
    Seen { shard, commit: row.commit, at: row.meta.at, gone: row.forgetting }
}

/// The first step of forgetting shards: from here on their sessions mean nothing.
pub(super) fn begin_to_forget(book: &mut Book, shards: &[ShardId]) -> Prepared {
    let mut prepared = Prepared::default();
    let mut touched = BTreeMap::new();
    for &shard in shards {
        let row = touch(book, &mut touched, shard, NOBODY);
        (row.forgetting, row.damaged, row.tally) = (true, false, Tally::default());
        book.index.remove(&shard);
    }
    finish(book, touched, &mut prepared);
    prepared
}

impl Prepared {
    /// These rows of sessions go, whose shards are being forgotten.
    pub(super) fn forget_rows<'a>(&mut self, rows: impl Iterator<Item = &'a [u8]>) {
        for key in rows {
            self.push(Place::Sessions, key, None);
        }
    }

    /// The last of a shard that is being forgotten goes: its own row.
    pub(super) fn forget_shard(&mut self, book: &mut Book, shard: ShardId) {
        book.rows.remove(&shard);
        self.push(Place::Shards, &shard.0.to_be_bytes(), None);
    }
}

/// Changes that can be committed as one batch, once their shards were forgotten that are to be.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// Shards to forget first.
    pub(super) forgets: Vec<ShardId>,
    pub(super) ops: Vec<Op>,
}

/// Cuts changes into segments. The order of the changes of each shard stays.
pub(super) fn segments(ops: Vec<Op>) -> Vec<Segment> {
    let mut segments = vec![Segment::default()];
    let mut changed: HashSet<ShardId> = HashSet::new();
    for op in ops {
        if let Op::Forget { shard } = op
            && changed.contains(&shard)
        {
            segments.push(Segment::default());
            changed.clear();
        }
        let segment = segments.last_mut().expect("one is always there");
        match op {
            Op::Forget { shard } => segment.forgets.push(shard),
            Op::Put { shard, .. } | Op::Remove { shard, .. } | Op::Meta { shard, .. } => {
                changed.insert(shard);
                segment.ops.push(op);
            }
        }
    }
    segments
}

/// The shard is found damaged; that stays until it is forgotten.
pub(super) fn mark_damaged(book: &mut Book, shard: ShardId) -> Prepared {
    let mut prepared = Prepared::default();
    let mut touched = BTreeMap::new();
    touch(book, &mut touched, shard, NOBODY).damaged = true;
    finish(book, touched, &mut prepared);
    prepared
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::logic::durable::{decode_meta, decode_session};
    use crate::logic::rows::split_row;

    fn at(seq: u64) -> Version {
        Version { epoch: Epoch { counter: 1, node: NodeId(1) }, seq }
    }

    fn put(shard: u32, key: &'static str, seq: u64) -> Op {
        let (key, record) = (Bytes::from(key), Bytes::from(seq.to_string()));
        let slots = Slots::Same;
        Op::Put { shard: ShardId(shard), at: at(seq), key, record, slots, written_ms: 1 }
    }

    #[test]
    fn a_row_is_changed_once_in_a_batch_and_the_last_change_counts() {
        let mut book = Book::default();
        let remove = Op::Remove { shard: ShardId(1), at: at(3), key: Bytes::from("b") };
        let ops = [put(1, "a", 1), put(1, "b", 2), remove, put(1, "a", 4), put(2, "a", 1)];
        let prepared = prepare(&mut book, &ops);
        let rows: Vec<_> =
            prepared.writes.iter().map(|write| (&*write.key, write.value.is_some())).collect();
        let (a1, b1, a2) =
            (&b"\0\0\0\x01a\0\0"[..], &b"\0\0\0\x01b\0\0"[..], &b"\0\0\0\x02a\0\0"[..]);
        let (one, two) = (&[0, 0, 0, 1][..], &[0, 0, 0, 2][..]);
        assert_eq!(rows, [(b1, false), (a1, true), (a2, true), (one, true), (two, true)]);
        let value = prepared.writes[1].value.as_ref().unwrap();
        let row = decode_session(a1, value).unwrap();
        assert_eq!((row.at, row.record), (at(4), &b"4"[..]));
        let meta = decode_meta(ShardId(1), prepared.writes[3].value.as_ref().unwrap()).unwrap();
        let tally = Tally { rows: 1, sum: row.digest };
        assert_eq!((meta.meta.at, meta.commit, meta.tally), (at(4), 1, tally));
        assert_eq!(prepared.seen.len(), 2);
        let gone = Op::Remove { shard: ShardId(1), at: at(5), key: Bytes::from("a") };
        prepare(&mut book, &[gone]);
        assert_eq!(book.rows[&ShardId(1)].tally, Tally::default());
        assert_eq!(book.commit, 2);
    }

    fn put_slots(seq: u64, slots: Slots) -> Op {
        let (key, record) = (Bytes::from("a"), Bytes::from("own"));
        Op::Put { shard: ShardId(1), at: at(seq), key, record, slots, written_ms: 1 }
    }

    fn one(slot: u8) -> Slots {
        Slots::One(slot, Bytes::from(vec![slot]))
    }

    /// What is written of slots: their numbers, and whether they are there afterwards.
    fn slots_of(prepared: &Prepared) -> Vec<(u8, bool)> {
        let slot = |write: &Write| Some((split_row(&write.key).ok()?.1?, write.value.is_some()));
        prepared
            .writes
            .iter()
            .filter(|write| write.place == Place::Sessions)
            .filter_map(slot)
            .collect()
    }

    #[test]
    fn slots_are_written_alone_and_go_with_their_session() {
        let mut book = Book::default();
        let rows = |book: &Book| book.rows[&ShardId(1)].tally.rows;
        let written = prepare(&mut book, &[put_slots(1, one(5)), put_slots(2, one(130))]);
        assert_eq!((slots_of(&written), rows(&book)), (vec![(5, true), (130, true)], 3));
        let written = prepare(&mut book, &[put_slots(3, Slots::Same)]);
        assert_eq!((slots_of(&written), rows(&book)), (vec![], 3));
        let written = prepare(&mut book, &[put_slots(4, one(5)), put_slots(5, one(6))]);
        assert_eq!((slots_of(&written), rows(&book)), (vec![(5, true), (6, true)], 4));
        let all = Slots::All(vec![(6, Bytes::from("6")), (7, Bytes::from("7"))]);
        let written = prepare(&mut book, &[put_slots(6, one(8)), put_slots(7, all)]);
        let expected = vec![(5, false), (6, true), (7, true), (8, false), (130, false)];
        assert_eq!((slots_of(&written), rows(&book)), (expected, 3));
        let remove = || Op::Remove { shard: ShardId(1), at: at(8), key: Bytes::from("a") };
        let written = prepare(&mut book, &[remove(), put_slots(9, one(6))]);
        assert_eq!((slots_of(&written), rows(&book)), (vec![(6, true), (7, false)], 2));
        prepare(&mut book, &[put_slots(10, Slots::All(Vec::new())), remove()]);
        assert_eq!(book.rows[&ShardId(1)].tally, Tally::default());
    }
}
