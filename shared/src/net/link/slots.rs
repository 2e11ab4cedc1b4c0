//! The table of streams of one connection. A place and its queue are used again and again, so
//! that a stream costs no allocation once the table has grown to its working size.

use std::collections::VecDeque;
use std::task::Waker;

use bytes::Bytes;

use crate::wire::link::{ResetCode, StreamId, StreamState};

/// No place.
const NONE: u32 = u32::MAX;

/// Events a place keeps room for after its stream is gone.
const EVENTS_KEPT: usize = 32;

/// What arrived on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// The request will be executed. Left out when the head follows at once.
    Accepted,
    /// The request was not executed; an encoded refusal. The last event.
    Refused(Bytes),
    /// The head of the answer.
    Head(Bytes),
    /// A piece of the body.
    Data(Bytes),
    /// The body's end, with its trailers if any. The last event.
    End(Option<Bytes>),
    /// Given up. The last event.
    Reset(ResetCode),
}

/// One end of one stream.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: StreamId,
    pub(super) state: StreamState,
    pub(super) events: VecDeque<StreamEvent>,
    /// Halves that are not dropped: bits of [`super::stream::Half`]. 0: the place is free.
    pub(super) halves: u8,
    /// Nobody reads: what comes is thrown away.
    pub(super) discards: bool,
    /// Why the stream was given up, by either side.
    pub(super) reset: Option<ResetCode>,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    pub(super) canceller: Option<Waker>,
    use_count: u16,
}

/// All streams of a connection, ours and the peer's.
#[derive(Debug)]
pub(super) struct Slots {
    dialer: bool,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// For each place in the peer's table, where its stream is in ours.
    remote: Vec<u32>,
    n_local: u32,
    n_remote: u32,
}

impl Slots {
    pub(super) fn new(dialer: bool) -> Self {
        Self {
            dialer,
            slots: Vec::new(),
            free: Vec::new(),
            remote: Vec::new(),
            n_local: 0,
            n_remote: 0,
        }
    }

    /// Streams opened by this side and by the peer.
    pub(super) fn counts(&self) -> (u32, u32) {
        (self.n_local, self.n_remote)
    }

    /// A place for a stream that we open. None when the table is full.
    pub(super) fn insert_local(
        &mut self,
        state: StreamState,
        halves: u8,
    ) -> Option<(u32, StreamId)> {
        let key = self.place(&state)?;
        let dialer = self.dialer;
        let slot = self.slots.get_mut(key as usize)?;
        slot.id = StreamId::new(dialer, key as u16, slot.use_count);
        let id = slot.id;
        slot.occupy(state, halves);
        self.n_local += 1;
        Some((key, id))
    }

    /// A place for a stream that the peer opened. None when the table is full.
    pub(super) fn insert_remote(
        &mut self,
        id: StreamId,
        state: StreamState,
        halves: u8,
    ) -> Option<u32> {
        let key = self.place(&state)?;
        let slot = self.slots.get_mut(key as usize)?;
        slot.id = id;
        slot.occupy(state, halves);
        let place = usize::from(id.place());
        if self.remote.len() <= place {
            self.remote.resize(place + 1, NONE);
        }
        self.remote[place] = key;
        self.n_remote += 1;
        Some(key)
    }

    fn place(&mut self, state: &StreamState) -> Option<u32> {
        if let Some(key) = self.free.pop() {
            return Some(key);
        }
        let key = u32::try_from(self.slots.len()).ok().filter(|key| *key < StreamId::PLACES)?;
        self.slots.push(Slot {
            id: StreamId(0),
            state: state.clone(),
            events: VecDeque::new(),
            halves: 0,
            discards: false,
            reset: None,
            reader: None,
            writer: None,
            canceller: None,
            use_count: 1,
        });
        Some(key)
    }

    /// The place of a stream that a frame names.
    pub(super) fn find(&self, id: StreamId) -> Option<u32> {
        let place = usize::from(id.place());
        let key =
            if id.by_dialer() == self.dialer { place as u32 } else { *self.remote.get(place)? };
        self.get(key, id).map(|_| key)
    }

    /// Whether the peer has a stream at that place of its table that is not over.
    pub(super) fn remote_is_open(&self, id: StreamId) -> bool {
        let key = self.remote.get(usize::from(id.place())).copied().unwrap_or(NONE);
        self.slots.get(key as usize).is_some_and(|slot| {
            slot.halves != 0
                && slot.id.by_dialer() != self.dialer
                && slot.id.place() == id.place()
                && !slot.state.is_over()
        })
    }

    pub(super) fn get(&self, key: u32, id: StreamId) -> Option<&Slot> {
        self.slots.get(key as usize).filter(|slot| slot.id == id && slot.halves != 0)
    }

    pub(super) fn get_mut(&mut self, key: u32, id: StreamId) -> Option<&mut Slot> {
        self.slots.get_mut(key as usize).filter(|slot| slot.id == id && slot.halves != 0)
    }

    /// The stream at a key that was just found.
    pub(super) fn at(&mut self, key: u32) -> Option<&mut Slot> {
        self.slots.get_mut(key as usize).filter(|slot| slot.halves != 0)
    }

    /// All live streams.
    pub(super) fn live(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().filter(|slot| slot.halves != 0)
    }

    /// The stream is over and nobody holds a half of it: its place is free.
    pub(super) fn remove(&mut self, key: u32) {
        let dialer = self.dialer;
        let Some(slot) = self.slots.get_mut(key as usize) else { return };
        debug_assert!(slot.halves == 0 && slot.state.is_over(), "{slot:?}");
        slot.vacate();
        if slot.id.by_dialer() == dialer {
            slot.use_count = next_use(slot.use_count);
            self.n_local -= 1;
        } else {
            let place = usize::from(slot.id.place());
            if let Some(entry) = self.remote.get_mut(place).filter(|entry| **entry == key) {
                *entry = NONE;
            }
            self.n_remote -= 1;
        }
        self.free.push(key);
    }
}

/// Never a multiple of what an id holds of it: together with place 0 that would be stream 0, and
/// credit for that one is the connection's.
fn next_use(use_count: u16) -> u16 {
    if use_count < StreamId::USES - 1 { use_count + 1 } else { 1 }
}

impl Slot {
    fn occupy(&mut self, state: StreamState, halves: u8) {
        self.state = state;
        self.halves = halves;
        self.discards = false;
        self.reset = None;
    }

    fn vacate(&mut self) {
        self.events.clear();
        self.events.shrink_to(EVENTS_KEPT);
        self.reader = None;
        self.writer = None;
        self.canceller = None;
    }

    /// Everybody who waits for something of this stream.
    pub(super) fn wake_all(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.reader.take());
        wakers.extend(self.writer.take());
        wakers.extend(self.canceller.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::link::Side;

    #[test]
    fn no_stream_is_stream_zero() {
        for dialer in [false, true] {
            let mut slots = Slots::new(dialer);
            let mut last = None;
            for _ in 0..2 * u32::from(StreamId::USES) {
                let state = StreamState::new(Side::Opener, 1, 1, false);
                let (key, id) = slots.insert_local(state, 1).unwrap();
                assert_eq!((key, id.place(), id.by_dialer()), (0, 0, dialer));
                assert!(id != StreamId(0) && last != Some(id), "{id:?}");
                last = Some(id);
                let slot = slots.at(key).unwrap();
                slot.state.reset();
                slot.halves = 0;
                slots.remove(key);
            }
        }
    }
}
