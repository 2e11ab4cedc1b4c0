//! The sessions of one shard: a slab whose slots keep their numbers, and an index by key.
//!
//! A slot's number does not change while its session lives, so that a copy can walk the slots in
//! steps while sessions come, change and go: see [`super::copy`]. Every change of a session goes
//! through here, which is how a copy learns of it.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use stead_shared::time::Time;

use super::data::{Footprint, Stored};
use super::tracking::Tracking;
use crate::logic::window::Trim;

pub(crate) struct Sessions {
    pub(super) slots: Vec<Option<Box<Stored>>>,
    /// Slots without a session.
    free: Vec<u32>,
    index: HashTable<Place>,
    /// Clients choose the keys: nobody may choose them so that they collide.
    seeds: RandomState,
    /// Sum of what its sessions are counted with.
    bytes: u64,
    /// Those among them that do not exist any more.
    tombstones: usize,
    /// About the length of all their records.
    pub(super) record_bytes: u64,
    /// Sessions whose service was told that they are here.
    activated: usize,
    /// What a copy that is being made has yet to learn.
    pub(super) tracking: Option<Box<Tracking>>,
}

/// Where a session is. The hash comes along so that a growing index need not look at the keys.
#[derive(Clone, Copy)]
struct Place {
    slot: u32,
    hash: u32,
}

impl Place {
    fn spread(self) -> u64 {
        spread(self.hash)
    }
}

/// Where a session is, or would be.
pub(super) struct Spot {
    hash: u32,
    slot: Option<u32>,
}

/// The index takes its bits from both ends of 64.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            seeds: RandomState::new(),
            bytes: 0,
            tombstones: 0,
            record_bytes: 0,
            activated: 0,
            tracking: None,
        }
    }

    /// How many exist.
    pub(crate) fn len(&self) -> usize {
        self.index.len() - self.tombstones
    }

    /// Whether there is nothing, not even a tombstone.
    pub(crate) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// What they are counted with.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What they take, tombstones included.
    pub(crate) fn footprint(&self) -> Footprint {
        Footprint { bytes: self.bytes, sessions: self.len() as u64 }
    }

    /// How many the service was told of.
    pub(crate) fn n_activated(&self) -> usize {
        self.activated
    }

    /// A session that exists.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Stored> {
        self.at_rest(key).filter(|stored| !stored.is_tombstone())
    }

    /// A session, or its tombstone.
    pub(crate) fn at_rest(&self, key: &[u8]) -> Option<&Stored> {
        let slot = self.find(self.hash(key), key)?;
        self.slots[slot as usize].as_deref()
    }

    /// All of them, tombstones included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Stored> + Send {
        self.slots.iter().filter_map(|slot| slot.as_deref())
    }

    /// Puts a session in; one with the same key is replaced.
    pub(crate) fn insert(&mut self, stored: Box<Stored>) {
        self.remove(&stored.key);
        let hash = self.hash(&stored.key);
        self.put(hash, stored);
    }

    /// Where `key` is, or would be.
    pub(super) fn spot(&self, key: &[u8]) -> Spot {
        let hash = self.hash(key);
        Spot { hash, slot: self.find(hash, key) }
    }

    /// The session at a spot.
    pub(super) fn at(&self, spot: &Spot) -> Option<&Stored> {
        self.slots[spot.slot? as usize].as_deref()
    }

    /// The same as [`insert`](Self::insert), where it is known what is there. Nothing may have
    /// changed since.
    pub(super) fn insert_at(&mut self, spot: Spot, stored: Box<Stored>) {
        match spot.slot {
            Some(_) => self.insert(stored),
            None => {
                self.put(spot.hash, stored);
            }
        }
    }

    /// Changes a session; where there is none, what `make` gives is put in first.
    pub(crate) fn change<R>(
        &mut self,
        key: &[u8],
        make: impl FnOnce() -> Box<Stored>,
        change: impl FnOnce(&mut Stored) -> R,
    ) -> R {
        self.change_at(&self.spot(key), make, change)
    }

    /// The same, where it is known where the session is. None may have come or gone since.
    pub(super) fn change_at<R>(
        &mut self,
        spot: &Spot,
        make: impl FnOnce() -> Box<Stored>,
        change: impl FnOnce(&mut Stored) -> R,
    ) -> R {
        let slot = match spot.slot {
            Some(slot) => slot,
            None => self.put(spot.hash, make()),
        };
        let stored = self.slots[slot as usize].as_deref_mut().expect("the index names a session");
        let (old, old_record) = (u64::from(stored.bytes), stored.record_bytes());
        let was_tombstone = stored.is_tombstone();
        let result = change(stored);
        self.bytes = self.bytes - old + u64::from(stored.bytes);
        self.tombstones -= usize::from(was_tombstone);
        self.tombstones += usize::from(stored.is_tombstone());
        self.record_bytes = self.record_bytes - old_record + stored.record_bytes();
        if let Some(tracking) = &mut self.tracking {
            tracking.changed(slot, old_record, stored.record_bytes());
        }
        result
    }

    /// Lets entries of a session's window leave. Gives what the session is counted with after it,
    /// and the floor of the window if it has ended.
    pub(super) fn trim_window(&mut self, key: &[u8], trim: Trim) -> (Footprint, Option<u64>) {
        if self.at_rest(key).is_none() {
            return (Footprint::NONE, None);
        }
        let make = || unreachable!("it was just found");
        self.change(key, make, |stored| {
            let before = stored.data.window_size();
            let ended = stored.data.trim_window(trim);
            let gone = before - stored.data.window_size();
            stored.bytes -= u32::try_from(gone).unwrap_or(stored.bytes);
            (stored.footprint(), ended)
        })
    }

    /// Sets when a session expires, for what it was before. False where there is none.
    pub(crate) fn touch(&mut self, key: &[u8], expires: impl FnOnce(&Stored) -> Time) -> bool {
        self.touch_at(&self.spot(key), expires)
    }

    /// The same, where it is known where the session is. None may have come or gone since.
    pub(super) fn touch_at(&mut self, spot: &Spot, expires: impl FnOnce(&Stored) -> Time) -> bool {
        let Some(slot) = spot.slot else { return false };
        let Some(stored) = self.slots[slot as usize].as_deref_mut() else { return false };
        let expires = expires(stored);
        if stored.expires != expires {
            stored.expires = expires;
            if let Some(tracking) = &mut self.tracking {
                tracking.touched(slot);
            }
        }
        true
    }

    /// Notes whether the service was told of a session. That is no change of it.
    pub(crate) fn set_activated(&mut self, key: &[u8], activated: bool) {
        let Some(slot) = self.find(self.hash(key), key) else { return };
        let Some(stored) = self.slots[slot as usize].as_deref_mut() else { return };
        let activated = activated && !stored.is_tombstone();
        self.activated -= usize::from(stored.activated);
        self.activated += usize::from(activated);
        stored.activated = activated;
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Box<Stored>> {
        let hash = self.hash(key);
        let slots = &self.slots;
        let is_it = |place: &Place| is_at(slots, *place, hash, key);
        let found = self.index.find_entry(spread(hash), is_it).ok()?;
        let slot = found.remove().0.slot;
        let stored = self.slots[slot as usize].take()?;
        self.free.push(slot);
        self.bytes -= u64::from(stored.bytes);
        self.tombstones -= usize::from(stored.is_tombstone());
        self.record_bytes -= stored.record_bytes();
        self.activated -= usize::from(stored.activated);
        match &mut self.tracking {
            Some(tracking) => tracking.removed(slot, key, stored.record_bytes()),
            None if self.index.is_empty() => *self = Self::new(),
            None => {}
        }
        Some(stored)
    }

    fn put(&mut self, hash: u32, stored: Box<Stored>) -> u32 {
        self.bytes += u64::from(stored.bytes);
        self.tombstones += usize::from(stored.is_tombstone());
        self.activated += usize::from(stored.activated);
        let record_bytes = stored.record_bytes();
        self.record_bytes += record_bytes;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).expect("4 G sessions take more than all memory")
            }
        };
        self.slots[slot as usize] = Some(stored);
        let place = Place { slot, hash };
        self.index.insert_unique(place.spread(), place, |place| place.spread());
        if let Some(tracking) = &mut self.tracking {
            tracking.created(slot, record_bytes);
        }
        slot
    }

    fn find(&self, hash: u32, key: &[u8]) -> Option<u32> {
        let is_it = |place: &Place| is_at(&self.slots, *place, hash, key);
        self.index.find(spread(hash), is_it).map(|place| place.slot)
    }

    fn hash(&self, key: &[u8]) -> u32 {
        self.seeds.hash_one(key) as u32
    }
}

fn is_at(slots: &[Option<Box<Stored>>], place: Place, hash: u32, key: &[u8]) -> bool {
    place.hash == hash && slots[place.slot as usize].as_ref().is_some_and(|it| *it.key == *key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use stead_shared::id::{Epoch, NodeId, Version};

    use super::*;

    fn stored(key: &[u8], bytes: u32, activated: bool) -> Box<Stored> {
        let version = Version { epoch: Epoch { counter: 1, node: NodeId(1) }, seq: 1 };
        let mut stored = Stored::new(key, version, Time::ZERO);
        stored.data.value = Some(std::sync::Arc::from(&b""[..]));
        Box::new(Stored { bytes, activated, ..stored })
    }

    proptest! {
        /// Whatever is done to it, it holds what a map would.
        #[test]
        fn it_is_a_map(steps in vec((0u8..5, 0u8..40, 1u32..1000, any::<bool>()), 0..400)) {
            let mut sessions = Sessions::new();
            let mut map = BTreeMap::new();
            for (step, key, bytes, activated) in steps {
                let name = [key];
                match step {
                    0 => {
                        sessions.insert(stored(&name, bytes, activated));
                        map.insert(key, (bytes, activated));
                    }
                    1 | 2 => {
                        let make = || stored(&name, 1, false);
                        sessions.change(&name, make, |stored| stored.bytes = bytes);
                        map.entry(key).or_insert((1, false)).0 = bytes;
                    }
                    3 => {
                        sessions.set_activated(&name, activated);
                        map.entry(key).and_modify(|it| it.1 = activated);
                    }
                    _ => prop_assert_eq!(
                        sessions.remove(&name).map(|it| (it.bytes, it.activated)),
                        map.remove(&key)
                    ),
                }
                let here = sessions.iter().map(|it| (it.key[0], (it.bytes, it.activated)));
                prop_assert_eq!(here.collect::<BTreeMap<_, _>>(), map.clone());
                prop_assert_eq!(sessions.len(), map.len());
                prop_assert_eq!(sessions.get(&name).map(|it| it.bytes), map.get(&key).map(|it| it.0));
                let bytes: u64 = map.values().map(|it| u64::from(it.0)).sum();
                prop_assert_eq!(sessions.bytes(), bytes);
                prop_assert_eq!(sessions.n_activated(), map.values().filter(|it| it.1).count());
                prop_assert!(sessions.slots.len() <= 40, "slots are used again");
            }
        }
    }
}
