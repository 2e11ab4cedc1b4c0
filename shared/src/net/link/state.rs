//! Everything of a connection that is behind its lock: the queue, the streams, the books.

use std::collections::BTreeMap;
use std::task::Waker;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::conn::Batch;
use super::slots::{Slot, Slots, StreamEvent};
use super::stream::Half;
use crate::wire::link::{
    CloseReason, FrameType, Incoming, Message, PAYLOAD_MAX, RecvWindow, ResetCode, SendWindow,
    StreamId, Violation, flag, put_frame, put_message,
};

/// Bytes of a ping that come back in its pong.
const PING_BYTES: usize = 8;

/// Everything behind the lock.
pub(super) struct State {
    /// Encoded frames that wait for the writer.
    pub(super) out: Vec<u8>,
    pub(super) out_frames: u64,
    /// Bytes ever queued; `queued - written` wait here or in the writer's hands.
    pub(super) queued: u64,
    pub(super) pong_queued: bool,
    pub(super) writer: Option<Waker>,
    pub(super) slots: Slots,
    /// Sorted: when the connection ends, callers are woken in this order.
    pub(super) calls: BTreeMap<u32, oneshot::Sender<Option<Bytes>>>,
    pub(super) calls_in: u32,
    pub(super) next_call: u32,
    pub(super) send: SendWindow,
    pub(super) recv: RecvWindow,
    /// Streams that wait for the connection's credit or for room in the queue.
    blocked: Vec<(u32, StreamId)>,
    /// Those who wait until what they queued was handed to the socket.
    pub(super) flushers: Vec<Waker>,
    pub(super) heard: Instant,
    pub(super) reads: u64,
    pub(super) closed: Option<CloseReason>,
    pub(super) frames: u64,
    pub(super) writes: u64,
}

impl State {
    pub(super) fn new(dialer: bool, windows: (SendWindow, RecvWindow)) -> Self {
        Self {
            out: Vec::new(),
            out_frames: 0,
            queued: 0,
            pong_queued: false,
            writer: None,
            slots: Slots::new(dialer),
            calls: BTreeMap::new(),
            calls_in: 0,
            next_call: 0,
            send: windows.0,
            recv: windows.1,
            blocked: Vec::new(),
            flushers: Vec::new(),
            heard: Instant::now(),
            reads: 0,
            closed: None,
            frames: 0,
            writes: 0,
        }
    }

    /// Queues one frame.
    pub(super) fn put_frame_only(
        &mut self,
        kind: FrameType,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) {
        let before = self.out.len();
        put_frame(&mut self.out, kind, flags, stream, payload);
        self.out_frames += 1;
        self.queued += (self.out.len() - before) as u64;
    }

    pub(super) fn put_frame(
        &mut self,
        kind: FrameType,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> Option<Waker> {
        self.put_frame_only(kind, flags, stream, payload);
        self.writer.take()
    }

    /// Queues a message in one or more frames.
    pub(super) fn put_message(
        &mut self,
        kind: FrameType,
        flags: u8,
        stream: u32,
        first: &[u8],
        payload: &[u8],
    ) -> Option<Waker> {
        let before = self.out.len();
        self.out_frames += put_message(&mut self.out, kind, flags, stream, first, payload) as u64;
        self.queued += (self.out.len() - before) as u64;
        self.writer.take()
    }

    /// The same for those that wake the writer themselves.
    pub(super) fn put_message_only(
        &mut self,
        kind: FrameType,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) {
        let before = self.out.len();
        self.out_frames += put_message(&mut self.out, kind, flags, stream, &[], payload) as u64;
        self.queued += (self.out.len() - before) as u64;
    }

    /// The writer, when it sleeps and there is something for it.
    pub(super) fn writer_if_output(&mut self) -> Option<Waker> {
        if self.out.is_empty() { None } else { self.writer.take() }
    }

    /// Drops what the writer has not taken.
    pub(super) fn forget_output(&mut self) {
        self.queued -= self.out.len() as u64;
        self.out.clear();
        self.out_frames = 0;
    }

    /// One answer to many pings, if they come faster than we write.
    pub(super) fn pong(&mut self, payload: &[u8]) {
        if !self.pong_queued {
            self.pong_queued = true;
            let payload = payload.get(..PING_BYTES).unwrap_or(payload);
            self.put_frame_only(FrameType::Pong, 0, 0, payload);
        }
    }

    pub(super) fn on_credit(
        &mut self,
        message: &Message,
        batch: &mut Batch,
    ) -> Result<(), CloseReason> {
        let bytes = message.payload.first_chunk::<4>().ok_or(CloseReason::Protocol)?;
        let bytes = u32::from_be_bytes(*bytes);
        if message.stream == 0 {
            self.send.grant(bytes).map_err(|_| CloseReason::FlowControl)?;
            batch.wakers.append(&mut self.unblock());
            return Ok(());
        }
        let key = self.slots.find(StreamId(message.stream));
        if let Some(slot) = key.and_then(|key| self.slots.at(key)) {
            slot.state.receive_credit(bytes).map_err(violation_reason)?;
            batch.wakers.extend(slot.writer.take());
        }
        Ok(())
    }

    /// A frame of a stream that is, or was, open.
    pub(super) fn on_stream(
        &mut self,
        message: Message,
        batch: &mut Batch,
    ) -> Result<(), CloseReason> {
        let len = message.payload.len() as u32;
        let is_data = message.kind == FrameType::Data;
        if is_data {
            self.recv.receive(len).map_err(|_| CloseReason::FlowControl)?;
        }
        let key = self.slots.find(StreamId(message.stream));
        let Some(slot) = key.and_then(|key| self.slots.at(key)) else {
            if is_data {
                self.give_back_connection(len);
            }
            return Ok(());
        };
        let incoming =
            slot.state.receive(message.kind, message.flags, len).map_err(violation_reason)?;
        let discards = slot.discards || incoming == Incoming::Late;
        slot.take_in(incoming, message, batch);
        if is_data && discards {
            self.give_back_connection(len);
        }
        Ok(())
    }

    /// Body bytes left the connection's books.
    pub(super) fn give_back_connection(&mut self, bytes: u32) {
        self.recv.consume(bytes);
        if let Some(credit) = self.recv.give_back() {
            self.put_frame_only(FrameType::Credit, 0, 0, &credit.to_be_bytes());
        }
    }

    /// Body bytes of a stream were read.
    pub(super) fn consume(&mut self, key: u32, bytes: u32) {
        let credit = self.slots.at(key).and_then(|slot| {
            let id = slot.id.0;
            slot.state.consume(bytes).map(|credit| (id, credit))
        });
        self.put_credit(credit);
        self.give_back_connection(bytes);
    }

    pub(super) fn put_credit(&mut self, credit: Option<(u32, u32)>) {
        if let Some((id, credit)) = credit {
            self.put_frame_only(FrameType::Credit, 0, id, &credit.to_be_bytes());
        }
    }

    /// Queues body frames within credit and `room`.
    pub(super) fn push_body(
        &mut self,
        key: u32,
        id: StreamId,
        data: &mut &[u8],
        fin: bool,
        mut room: usize,
        flags: u8,
    ) -> Result<bool, ResetCode> {
        let frame_max = if flags & flag::CHECKSUM == 0 { PAYLOAD_MAX } else { PAYLOAD_MAX - 4 };
        loop {
            let credit = self.send.credit();
            let slot = self.slots.get_mut(key, id).ok_or(ResetCode::Cancelled)?;
            if !slot.state.is_sending() {
                return Err(slot.reset.unwrap_or(ResetCode::Done));
            }
            let allowed = (slot.state.credit().min(credit) as usize).min(room).min(frame_max);
            let piece = data.len().min(allowed);
            let last = piece == data.len();
            if piece == 0 && !(data.is_empty() && fin) {
                return Ok(data.is_empty());
            }
            if !slot.state.send(piece as u32, fin && last) {
                return Err(ResetCode::Failed);
            }
            self.send.spend(piece as u32);
            let (piece, rest) = data.split_at(piece);
            *data = rest;
            let end = if fin && last { flag::FIN } else { 0 };
            self.put_frame_only(FrameType::Data, flags | end, id.0, piece);
            room = room.saturating_sub(piece.len());
            if last {
                return Ok(true);
            }
        }
    }

    /// Remembers who waits, and for what.
    pub(super) fn wait_to_send(&mut self, key: u32, id: StreamId, waker: &Waker, full: bool) {
        let shared = full || self.send.credit() == 0;
        if let Some(slot) = self.slots.get_mut(key, id) {
            let known = slot.writer.as_ref().is_some_and(|known| known.will_wake(waker));
            if !known {
                slot.writer = Some(waker.clone());
            }
            if shared && !self.blocked.contains(&(key, id)) {
                self.blocked.push((key, id));
            }
        }
    }

    /// Everybody who waits for something that all streams share.
    pub(super) fn unblock(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for (key, id) in self.blocked.drain(..) {
            wakers.extend(self.slots.get_mut(key, id).and_then(|slot| slot.writer.take()));
        }
        wakers
    }

    /// Gives a stream up and tells the peer, unless it is over.
    pub(super) fn reset(&mut self, key: u32, code: ResetCode) {
        let Some(slot) = self.slots.at(key) else { return };
        if slot.state.is_over() {
            return;
        }
        let id = slot.id.0;
        slot.end(code);
        let wakers = [slot.reader.take(), slot.writer.take(), slot.canceller.take()];
        self.put_frame_only(FrameType::Reset, flag::FIN, id, &[code as u8]);
        // Woken under the lock: a waker only schedules a task.
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// A half is dropped; the last one frees the place.
    pub(super) fn release(&mut self, key: u32, half: u8) {
        let Some(slot) = self.slots.at(key) else { return };
        slot.halves &= !half;
        let last = slot.halves == 0;
        let held = if half == Half::RECV || last { slot.discard() } else { 0 };
        if last {
            debug_assert!(slot.state.is_over(), "{slot:?}");
            slot.state.reset();
            self.slots.remove(key);
        }
        if held > 0 {
            self.give_back_connection(held);
        }
    }
}

fn violation_reason(violation: Violation) -> CloseReason {
    match violation {
        Violation::OutOfPlace => CloseReason::Protocol,
        Violation::Window => CloseReason::FlowControl,
    }
}

impl Slot {
    /// Puts what a frame means where its reader finds it.
    pub(super) fn take_in(&mut self, incoming: Incoming, message: Message, batch: &mut Batch) {
        let fin = message.flags & flag::FIN != 0;
        match incoming {
            Incoming::Accepted => self.push(StreamEvent::Accepted),
            Incoming::Refused => {
                self.push(StreamEvent::Refused(message.payload));
                batch.wakers.extend(self.writer.take());
            }
            Incoming::Head => {
                self.push(StreamEvent::Head(message.payload));
                if fin {
                    self.push(StreamEvent::End(None));
                }
            }
            Incoming::Data => {
                if !message.payload.is_empty() {
                    self.push(StreamEvent::Data(message.payload));
                }
                if fin {
                    self.push(StreamEvent::End(None));
                }
            }
            Incoming::End => {
                let trailers = message.flags & flag::MARK != 0;
                self.push(StreamEvent::End(trailers.then_some(message.payload)));
            }
            Incoming::Reset | Incoming::Stopped => {
                let code = ResetCode::from_byte(message.payload.first().copied().unwrap_or(0));
                self.reset = Some(code);
                if incoming == Incoming::Reset {
                    self.push(StreamEvent::Reset(code));
                }
                batch.wakers.extend(self.writer.take());
                batch.wakers.extend(self.canceller.take());
            }
            Incoming::Late => return,
        }
        if incoming == Incoming::Head || incoming == Incoming::Accepted {
            batch.wakers.extend(self.writer.take());
        }
        batch.wakers.extend(self.reader.take());
    }

    fn push(&mut self, event: StreamEvent) {
        if !self.discards {
            self.events.push_back(event);
        }
    }

    /// The stream ends here and now, by our own doing or with the connection.
    pub(super) fn end(&mut self, code: ResetCode) {
        if self.state.is_over() {
            return;
        }
        if self.state.is_receiving() {
            self.push(StreamEvent::Reset(code));
        }
        self.state.reset();
        self.reset = Some(code);
    }

    /// Nobody reads any more. Gives the body bytes that were waiting.
    fn discard(&mut self) -> u32 {
        self.discards = true;
        let data = self.events.drain(..).map(|event| match event {
            StreamEvent::Data(bytes) => bytes.len() as u32,
            _ => 0,
        });
        data.sum()
    }
}
