//! From changes to rows: one batch with at most one change of each row, and the rows of the shards
//! that it touches.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use stead_shared::id::{Epoch, NodeId, ShardId, Version};

use super::Slots;
use super::queue::Op;
use super::store::{Place, ShardIndex, Write};
use crate::logic::durable::{
    Mark, MetaRow, Role, Seen, ShardMeta, Tally, encode_meta, encode_session, mark_row,
};
use crate::logic::rows::row_key;

/// The version of a shard of which nothing is known.
pub(super) const NOBODY: Version = Version { epoch: Epoch { counter: 0, node: NodeId(0) }, seq: 0 };

/// What the committer knows of the shards on disk, with everything that it was handed so far.
#[derive(Default)]
pub(super) struct Book {
    /// The number of the last commit.
    pub(super) commit: u64,
    pub(super) rows: HashMap<ShardId, MetaRow>,
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

/// The rows that a batch changes, each of which may come more than once: the last one counts. Two
/// changes of one row in one batch would have the same number in the database, and which of them it
/// keeps is nobody's promise.
type Rows = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A shard while its changes are gathered.
struct Touched {
    row: MetaRow,
    /// Which of the rows is that of its last change. None for one that removed something.
    last: Option<usize>,
    /// Its own row says more than where it is.
    is_said: bool,
}

/// The changes as one batch.
pub(super) fn prepare(book: &mut Book, ops: &[Op]) -> Prepared {
    let (mut rows, mut all) = (Rows::with_capacity(ops.len()), BTreeMap::new());
    for op in ops {
        match op {
            Op::Put { shard, at, key, own, slots, written_ms } => {
                let mut session = change(book, &mut all, &mut rows, (*shard, key, *at));
                session.put_slots(slots, (*at, *written_ms));
                if let Some(own) = own {
                    session.put(None, own, (*at, *written_ms));
                }
            }
            Op::Remove { shard, at, key } => {
                let mut session = change(book, &mut all, &mut rows, (*shard, key, *at));
                session.remove_slots(&BTreeSet::new());
                session.remove(None);
                session.touched.last = None;
            }
            Op::Meta { shard, meta } => {
                let touched = touch(book, &mut all, *shard, meta.at);
                (touched.row.meta, touched.is_said) = (*meta, true);
            }
            // The committer puts them between batches.
            Op::Forget { .. } => debug_assert!(false, "a shard is forgotten in steps"),
        }
    }
    finish(book, all, rows)
}

/// Begins a change of a session.
fn change<'a>(
    book: &'a mut Book,
    all: &'a mut BTreeMap<ShardId, Touched>,
    rows: &'a mut Rows,
    (shard, key, at): (ShardId, &'a [u8], Version),
) -> Session<'a> {
    let touched = touch(book, all, shard, at);
    touched.row.meta.at = at;
    let index = book.index.entry(shard).or_default();
    Session { shard, key, index, touched, rows }
}

/// A session that is changed.
struct Session<'a> {
    shard: ShardId,
    key: &'a [u8],
    index: &'a mut ShardIndex,
    touched: &'a mut Touched,
    rows: &'a mut Rows,
}

impl Session<'_> {
    fn put(&mut self, slot: Option<u8>, record: &[u8], (at, written_ms): (Version, u64)) {
        let row = row_key(self.shard, self.key, slot);
        if let Some(slot) = slot {
            self.index.note_slot(&row[..row.len() - 1], slot);
        }
        let (value, digest) = encode_session(&row, at, written_ms, record);
        if let Some(old) = self.index.replace(&row, Some(digest)) {
            self.touched.row.tally.take(old);
        }
        self.touched.row.tally.add(digest);
        self.touched.last = Some(self.rows.len());
        self.rows.push((row, Some(value)));
    }

    fn remove(&mut self, slot: Option<u8>) {
        let row = row_key(self.shard, self.key, slot);
        if let Some(old) = self.index.replace(&row, None) {
            self.touched.row.tally.take(old);
            self.rows.push((row, None));
        }
    }

    fn put_slots(&mut self, slots: &Slots, written: (Version, u64)) {
        match slots {
            Slots::Same => {}
            Slots::One(slot, record) => self.put(Some(*slot), record, written),
            Slots::All(all) => {
                self.remove_slots(&all.iter().map(|(slot, _)| *slot).collect());
                for (slot, record) in all {
                    self.put(Some(*slot), record, written);
                }
            }
        }
    }

    /// Removes its slots, but those that are written anew.
    fn remove_slots(&mut self, but: &BTreeSet<u8>) {
        let filled = self.index.take_slots(&row_key(self.shard, self.key, None));
        for slot in filled.filter(|slot| !but.contains(slot)) {
            self.remove(Some(slot));
        }
    }
}

fn touch<'a>(
    book: &Book,
    touched: &'a mut BTreeMap<ShardId, Touched>,
    shard: ShardId,
    at: Version,
) -> &'a mut Touched {
    touched.entry(shard).or_insert_with(|| {
        let meta =
            ShardMeta { at, role: Role::Unknown, complete: false, begun: None, alone: false };
        let new =
            MetaRow { meta, commit: 0, tally: Tally::default(), forgetting: false, damaged: false };
        let known = book.rows.get(&shard);
        Touched { row: known.copied().unwrap_or(new), last: None, is_said: known.is_none() }
    })
}

/// Numbers the batch. Where a shard is goes along with the row of its last change, where there is
/// one and that is all to say.
fn finish(book: &mut Book, all: BTreeMap<ShardId, Touched>, mut rows: Rows) -> Prepared {
    let mut prepared = Prepared::default();
    if all.is_empty() {
        return prepared;
    }
    book.commit += 1;
    let mut own = Vec::new();
    for (shard, Touched { mut row, last, is_said }) in all {
        row.commit = book.commit;
        let index = book.index.entry(shard).or_default();
        match last.filter(|_| !is_said).and_then(|last| rows.get_mut(last)) {
            Some((key, Some(value))) => {
                mark_row(value, Mark { commit: row.commit, tally: row.tally });
                index.newest = Some(key.as_slice().into());
            }
            Some((_, None)) | None => {
                index.newest = None;
                own.push((shard, row));
            }
        }
        book.rows.insert(shard, row);
        prepared.seen.push(seen(shard, &row));
    }
    // Of equal ones the last stays behind.
    rows.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut rows = rows.into_iter().peekable();
    while let Some((key, value)) = rows.next() {
        if rows.peek().is_none_or(|(next, _)| *next != key) {
            prepared.push(Place::Sessions, &key, value.as_deref());
        }
    }
    for (shard, row) in own {
        prepared.push(Place::Shards, &shard.0.to_be_bytes(), Some(&encode_meta(shard, &row)));
    }
    prepared
}

pub(super) fn seen(shard: ShardId, row: &MetaRow) -> Seen {
    Seen { shard, commit: row.commit, at: row.meta.at, gone: row.forgetting }
}

/// The first step of forgetting shards: from here on their sessions mean nothing.
pub(super) fn begin_to_forget(book: &mut Book, shards: &[ShardId]) -> Prepared {
    let mut touched = BTreeMap::new();
    for &shard in shards {
        let touched = touch(book, &mut touched, shard, NOBODY);
        let row = &mut touched.row;
        (row.forgetting, row.damaged, row.tally) = (true, false, Tally::default());
        book.index.remove(&shard);
    }
    finish(book, touched, Rows::new())
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
        book.index.remove(&shard);
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
    let mut touched = BTreeMap::new();
    touch(book, &mut touched, shard, NOBODY).row.damaged = true;
    finish(book, touched, Rows::new())
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
        let (key, own) = (Bytes::from(key), Some(Bytes::from(seq.to_string())));
        let slots = Slots::Same;
        Op::Put { shard: ShardId(shard), at: at(seq), key, own, slots, written_ms: 1 }
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
        assert_eq!(rows, [(a1, true), (b1, false), (a2, true), (one, true), (two, true)]);
        let value = prepared.writes[0].value.as_ref().unwrap();
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

    /// Goal: where a shard is goes along with its changes, and is in its own row when they are none.
    #[test]
    fn a_shard_s_own_row_is_written_only_when_it_says_more() {
        let mut book = Book::default();
        let own = |prepared: &Prepared| {
            prepared.writes.iter().filter(|write| write.place == Place::Shards).count()
        };
        let mark = |prepared: &Prepared| {
            let rows = prepared
                .writes
                .iter()
                .filter_map(|write| Some((&write.key, write.value.as_ref()?)));
            let rows = rows.filter_map(|(key, value)| decode_session(key, value).ok());
            rows.filter_map(|row| Some((row.at.seq, row.mark?.commit, row.mark?.tally.rows)))
                .collect()
        };
        let check = |prepared: &Prepared, n_own: usize, expected: Vec<(u64, u64, u64)>| {
            let marks: Vec<(u64, u64, u64)> = mark(prepared);
            assert_eq!((own(prepared), marks), (n_own, expected));
        };
        check(&prepare(&mut book, &[put(1, "a", 1)]), 1, vec![]);
        check(&prepare(&mut book, &[put(1, "a", 2), put(1, "b", 3)]), 0, vec![(3, 2, 2)]);
        check(&prepare(&mut book, &[put(1, "b", 4), put(1, "a", 5)]), 0, vec![(5, 3, 2)]);
        let remove = |seq| Op::Remove { shard: ShardId(1), at: at(seq), key: Bytes::from("b") };
        check(&prepare(&mut book, &[put(1, "a", 6), remove(7)]), 1, vec![]);
        check(&prepare(&mut book, &[remove(8), put(1, "a", 9)]), 0, vec![(9, 5, 1)]);
        let meta =
            ShardMeta { at: at(10), role: Role::Owner, complete: true, begun: None, alone: false };
        check(
            &prepare(&mut book, &[put(1, "a", 10), Op::Meta { shard: ShardId(1), meta }]),
            1,
            vec![],
        );
        assert_eq!(book.index[&ShardId(1)].newest, None);
        check(&prepare(&mut book, &[put(1, "a", 11)]), 0, vec![(11, 7, 1)]);
        assert_eq!(book.index[&ShardId(1)].newest.as_deref(), Some(&b"\0\0\0\x01a\0\0"[..]));
    }

    fn put_slots(seq: u64, slots: Slots) -> Op {
        let (key, own) = (Bytes::from("a"), Some(Bytes::from("own")));
        Op::Put { shard: ShardId(1), at: at(seq), key, own, slots, written_ms: 1 }
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
