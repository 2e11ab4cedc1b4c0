//! What a copy of a shard has yet to learn: how far its walk is, and what changed behind it.
//!
//! The walk goes through the slots that were there when it began. A change of a session that it
//! has yet to come to needs no note; one behind it is marked, one bit a slot. So the memory of a
//! copy is bounded by the number of slots, however long it takes. Only deletions leave nothing
//! that could be marked: their keys are kept, up to [`GONE_BYTES_MAX`].

/// Most bytes of keys of deleted sessions that wait to be sent: 60,000 of 30 bytes.
const GONE_BYTES_MAX: usize = 2 << 20;
/// About the length of the record of an access.
const TOUCH_BYTES: u64 = 32;

/// How far a copy is behind the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Whether there are sessions that were not copied even once.
    pub walking: bool,
    /// About how many bytes of records changed after they were copied, and wait to be sent again.
    pub bytes: u64,
    /// How many sessions that are, with those that are gone or were only accessed.
    pub sessions: u64,
    /// About how many bytes of records were not copied even once.
    pub left_bytes: u64,
    /// So many sessions were deleted that not all could be remembered. The copy is of no use
    /// any more: it gives nothing, and stays `walking` for ever.
    pub overflow: bool,
}

#[derive(Debug)]
pub(super) struct Tracking {
    /// The next slot of the walk.
    cursor: u32,
    /// Where the walk ends. Slots from here on are as good as walked.
    end: u32,
    left_bytes: u64,
    changed: Marks,
    changed_bytes: u64,
    /// Sessions that were accessed and not changed.
    touched: Marks,
    gone: Keys,
    overflow: bool,
}

impl Tracking {
    /// Of a shard with `slots` slots, in which sessions of `bytes` bytes are.
    pub(super) fn new(slots: usize, bytes: u64) -> Self {
        let end = u32::try_from(slots).unwrap_or(u32::MAX);
        Self {
            cursor: if bytes == 0 { end } else { 0 },
            end,
            left_bytes: bytes,
            changed: Marks::default(),
            changed_bytes: 0,
            touched: Marks::default(),
            gone: Keys::default(),
            overflow: false,
        }
    }

    pub(super) fn lag(&self) -> Lag {
        let touched = self.touched.len as u64;
        Lag {
            walking: self.overflow || self.cursor < self.end,
            bytes: self.changed_bytes + TOUCH_BYTES * touched + self.gone.bytes() as u64,
            sessions: self.changed.len as u64 + touched + self.gone.len as u64,
            left_bytes: self.left_bytes,
            overflow: self.overflow,
        }
    }

    // ---- what happens in the shard; sizes are those of records ----

    pub(super) fn created(&mut self, slot: u32, bytes: u64) {
        if self.is_ahead(slot) {
            self.left_bytes += bytes;
        } else if !self.overflow {
            self.changed.set(slot);
            self.changed_bytes += bytes;
        }
    }

    pub(super) fn changed(&mut self, slot: u32, old: u64, new: u64) {
        if self.is_ahead(slot) {
            self.left_bytes = self.left_bytes - old + new;
        } else if !self.overflow {
            self.touched.clear(slot);
            let was_marked = !self.changed.set(slot);
            self.changed_bytes = self.changed_bytes - if was_marked { old } else { 0 } + new;
        }
    }

    pub(super) fn touched(&mut self, slot: u32) {
        if !self.is_ahead(slot) && !self.overflow && !self.changed.has(slot) {
            self.touched.set(slot);
        }
    }

    pub(super) fn removed(&mut self, slot: u32, key: &[u8], bytes: u64) {
        if self.is_ahead(slot) {
            self.walked(bytes);
        } else if !self.overflow {
            self.touched.clear(slot);
            if self.changed.clear(slot) {
                self.changed_bytes -= bytes;
            }
            self.gone.push(key);
            if GONE_BYTES_MAX < self.gone.bytes() {
                *self = Self { overflow: true, ..Self::new(0, 0) };
            }
        }
    }

    fn is_ahead(&self, slot: u32) -> bool {
        (self.cursor..self.end).contains(&slot)
    }

    // ---- what the copy takes ----

    /// The key of a session that is gone.
    pub(super) fn next_gone(&mut self) -> Option<&[u8]> {
        self.gone.pop()
    }

    /// The next slot of the walk. Whoever takes it says [`walked`](Self::walked) what it holds.
    pub(super) fn next_slot(&mut self) -> Option<u32> {
        let slot = Some(self.cursor).filter(|slot| *slot < self.end)?;
        self.cursor += 1;
        Some(slot)
    }

    /// That many bytes are not ahead of the walk any more. It ends with the last of them: only
    /// empty slots are left.
    pub(super) fn walked(&mut self, bytes: u64) {
        self.left_bytes -= bytes;
        if self.left_bytes == 0 {
            self.cursor = self.end;
        }
    }

    /// A slot whose session changed. Whoever takes it says what it holds.
    pub(super) fn next_changed(&mut self) -> Option<u32> {
        self.changed.pop()
    }

    pub(super) fn taken(&mut self, bytes: u64) {
        self.changed_bytes -= bytes;
    }

    /// A slot whose session was accessed.
    pub(super) fn next_touched(&mut self) -> Option<u32> {
        self.touched.pop()
    }
}

/// A set of slots, one bit each.
#[derive(Debug, Default)]
struct Marks {
    words: Vec<u64>,
    len: usize,
    /// The slot where the next search begins, so that no mark waits for ever.
    from: u32,
}

impl Marks {
    fn at(slot: u32) -> (usize, u64) {
        (slot as usize / 64, 1 << (slot % 64))
    }

    fn has(&self, slot: u32) -> bool {
        let (word, bit) = Self::at(slot);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// False when it was set.
    fn set(&mut self, slot: u32) -> bool {
        if self.has(slot) {
            return false;
        }
        let (word, bit) = Self::at(slot);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
        self.len += 1;
        true
    }

    /// False when it was not set.
    fn clear(&mut self, slot: u32) -> bool {
        let (word, bit) = Self::at(slot);
        let is_set = self.has(slot);
        if is_set {
            self.words[word] &= !bit;
            self.len -= 1;
        }
        is_set
    }

    /// Takes one out. The search goes through at most a bit a slot.
    fn pop(&mut self) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let (mut word, bit) = Self::at(self.from);
        let mut bits = self.words.get(word).map_or(0, |word| word & !(bit - 1));
        while bits == 0 {
            word = if word + 1 < self.words.len() { word + 1 } else { 0 };
            bits = self.words[word];
        }
        let slot = word as u32 * 64 + bits.trailing_zeros();
        self.from = slot.wrapping_add(1);
        self.clear(slot);
        Some(slot)
    }
}

/// A queue of keys in one piece of memory: each after two bytes for its length.
#[derive(Debug, Default)]
struct Keys {
    buffer: Vec<u8>,
    taken: usize,
    len: usize,
}

impl Keys {
    fn bytes(&self) -> usize {
        self.buffer.len() - self.taken
    }

    fn push(&mut self, key: &[u8]) {
        if self.buffer.len() < 2 * self.taken {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        let length = u16::try_from(key.len()).expect("a key has up to 512 bytes");
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(key);
        self.len += 1;
    }

    fn pop(&mut self) -> Option<&[u8]> {
        let rest = self.buffer.get(self.taken..)?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_le_bytes(*length));
        self.taken += 2 + length;
        self.len -= 1;
        Some(&rest[..length])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn marks_are_a_set(steps in vec((0u8..3, 0u32..300), 0..300)) {
            let (mut marks, mut set) = (Marks::default(), BTreeSet::new());
            for (step, slot) in steps {
                match step {
                    0 => prop_assert_eq!(marks.set(slot), set.insert(slot)),
                    1 => prop_assert_eq!(marks.clear(slot), set.remove(&slot)),
                    _ => {
                        let taken = marks.pop();
                        prop_assert_eq!(taken.is_some(), !set.is_empty());
                        prop_assert!(taken.is_none_or(|slot| set.remove(&slot)));
                    }
                }
                prop_assert_eq!(marks.len, set.len());
                prop_assert!(set.iter().all(|slot| marks.has(*slot)));
            }
        }

        #[test]
        fn keys_come_out_in_their_order(steps in vec(proptest::option::of(vec(0u8.., 1..9)), 0..200)) {
            let (mut keys, mut queue) = (Keys::default(), VecDeque::<Vec<u8>>::new());
            for step in steps {
                match step {
                    Some(key) => {
                        keys.push(&key);
                        queue.push_back(key);
                        let bytes: usize = queue.iter().map(|key| key.len() + 2).sum();
                        prop_assert!(keys.buffer.len() <= 2 * bytes);
                    }
                    None => prop_assert_eq!(keys.pop().map(<[u8]>::to_vec), queue.pop_front()),
                }
                prop_assert_eq!(keys.len, queue.len());
            }
        }
    }

    #[test]
    fn no_mark_waits_for_ever() {
        for other in [1, 63, 64, 1000] {
            let mut marks = Marks::default();
            marks.set(other);
            let mut again_and_again = || {
                marks.set(0);
                marks.pop()
            };
            assert_eq!([again_and_again(), again_and_again()], [Some(0), Some(other)]);
        }
    }

    #[test]
    fn too_many_deletions_end_the_copy_and_give_their_memory_back() {
        let mut tracking = Tracking::new(10, 1000);
        for slot in 0..5 {
            assert_eq!(tracking.next_slot(), Some(slot));
            tracking.walked(100);
        }
        let key = [b'k'; 510];
        for _ in 0..GONE_BYTES_MAX / 512 {
            tracking.removed(3, &key, 100);
            tracking.created(3, 100);
        }
        assert!(!tracking.lag().overflow);
        tracking.removed(3, &key, 100);
        let lost = Lag { overflow: true, walking: true, ..Lag::default() };
        assert_eq!(tracking.lag(), lost);
        tracking.created(3, 100);
        tracking.changed(4, 100, 200);
        tracking.touched(7);
        tracking.removed(4, &key, 200);
        assert_eq!(tracking.lag(), lost);
        assert_eq!(tracking.gone.buffer.capacity(), 0);
    }
}
