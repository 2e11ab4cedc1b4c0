//! One connection: its queue of frames to send, its streams and calls, behind one short lock.
//!
//! Producers append encoded frames to the queue and wake the writer once; the writer takes all
//! of them at the end of the event loop's turn. Consumers find their events in the stream's
//! place in the table. No lock is held across an await, and no callback runs under it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::state::State;
use super::stats::LinkStats;
use super::stream::{Half, ServerStream};
use super::{CallError, LinkLimits, OpenError, PeerInfo, QueueFull, Reply};
use crate::wire::link::{
    Agreed, Assembler, CloseReason, ConnectionKind, FrameError, FrameType, Message, Parsed,
    RecvWindow, ResetCode, SendWindow, Side, StreamId, StreamState, flag, parse,
};

/// What the reader found for others to do, once the lock is released.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) wakers: Vec<Waker>,
    pub(super) deliveries: Vec<Delivery>,
}

/// Something for the handler or for a caller.
pub(super) enum Delivery {
    Opened(ServerStream),
    Call { kind: u8, payload: Bytes, reply: Reply },
    Notify { kind: u8, payload: Bytes },
    Answer { to: oneshot::Sender<Option<Bytes>>, payload: Option<Bytes> },
}

/// A connection after its hello.
pub(super) struct Conn {
    pub(super) peer: PeerInfo,
    pub(super) kind: ConnectionKind,
    pub(super) dialer: bool,
    pub(super) limits: LinkLimits,
    /// Cancelled when the connection is closed; the reader stops.
    pub(super) gone: CancellationToken,
    /// Bytes handed to the socket.
    written: AtomicU64,
    /// Bytes that the writer took out of the queue: the peer may see them. What it did not take
    /// when the connection closes is never sent.
    taken: AtomicU64,
    /// `CHECKSUM` on bulk connections.
    body_flags: u8,
    peer_stream_window: u32,
    peer_streams_max: u32,
    state: Mutex<State>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("peer", &self.peer)
            .field("kind", &self.kind)
            .field("dialer", &self.dialer)
            .finish_non_exhaustive()
    }
}

/// How quiet a peer is.
pub(super) struct Quiet {
    /// When something was last read.
    pub(super) heard: Instant,
    /// How often something was read.
    pub(super) reads: u64,
    /// Whether anybody waits for the peer.
    pub(super) awaited: bool,
}

/// What the writer takes in one go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// The buffer was filled.
    Bytes,
    /// The connection is closed; the buffer holds the last words, if any.
    Last(CloseReason),
}

impl Conn {
    pub(super) fn new(
        peer: PeerInfo,
        dialer: bool,
        agreed: &Agreed,
        windows: (SendWindow, RecvWindow),
        limits: LinkLimits,
    ) -> Arc<Self> {
        let kind = agreed.peer.kind;
        Arc::new(Self {
            peer,
            kind,
            dialer,
            limits,
            gone: CancellationToken::new(),
            written: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            body_flags: if kind == ConnectionKind::Bulk { flag::CHECKSUM } else { 0 },
            peer_stream_window: agreed.peer.stream_window,
            peer_streams_max: agreed.peer.streams_max,
            state: Mutex::new(State::new(dialer, windows)),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn closed(&self) -> Option<CloseReason> {
        self.lock().closed
    }

    /// Flags of every body frame.
    pub(super) fn body_flags(&self) -> u8 {
        self.body_flags
    }

    /// Body bytes that may be queued now.
    pub(super) fn room(&self, state: &State) -> usize {
        self.limits.queue_data.saturating_sub(self.waiting(state))
    }

    /// Bytes queued and not yet handed to the socket.
    fn waiting(&self, state: &State) -> usize {
        state.queued.saturating_sub(self.written.load(Relaxed)) as usize
    }

    pub(super) fn stats(&self) -> LinkStats {
        let state = self.lock();
        let (local, remote) = state.slots.counts();
        LinkStats {
            connections: 1,
            streams: u64::from(local) + u64::from(remote),
            calls: state.calls.len() as u64 + u64::from(state.calls_in),
            held_bytes: u64::from(state.recv.held()),
            queued_bytes: self.waiting(&state) as u64,
            frames: state.frames,
            writes: state.writes,
            written_bytes: self.written.load(Relaxed),
        }
    }

    // ---- notes and calls --------------------------------------------------------------------

    pub(super) fn notify(&self, kind: u8, payload: &Bytes) -> Result<(), QueueFull> {
        let mut state = self.lock();
        self.check_room(&state, payload.len())?;
        let waker = state.put_message(FrameType::Notify, 0, 0, &[kind], payload);
        drop(state);
        wake(waker);
        Ok(())
    }

    fn check_room(&self, state: &State, bytes: usize) -> Result<(), QueueFull> {
        if let Some(reason) = state.closed {
            return Err(QueueFull::Closed(reason));
        }
        if bytes > self.limits.message_max {
            return Err(QueueFull::TooLong);
        }
        if self.waiting(state) + bytes > self.limits.queue_max {
            return Err(QueueFull::Full);
        }
        Ok(())
    }

    /// Sends a call; the answer comes by the receiver, `None` when the peer has none.
    pub(super) fn call(
        &self,
        kind: u8,
        payload: &Bytes,
    ) -> Result<(u32, oneshot::Receiver<Option<Bytes>>), CallError> {
        let mut state = self.lock();
        self.check_room(&state, payload.len()).map_err(CallError::NotSent)?;
        if state.calls.len() >= self.limits.calls_max as usize {
            return Err(CallError::NotSent(QueueFull::Full));
        }
        let (answer, receiver) = oneshot::channel();
        let id = state.next_call;
        state.next_call = id.wrapping_add(1);
        state.calls.insert(id, answer);
        let waker = state.put_message(FrameType::Call, 0, id, &[kind], payload);
        drop(state);
        wake(waker);
        Ok((id, receiver))
    }

    pub(super) fn forget_call(&self, id: u32) {
        self.lock().calls.remove(&id);
    }

    pub(super) fn reply(&self, id: u32, payload: Option<&Bytes>) {
        let mut state = self.lock();
        state.calls_in = state.calls_in.saturating_sub(1);
        if state.closed.is_some() {
            return;
        }
        let fits = payload.filter(|bytes| bytes.len() <= self.limits.message_max);
        let waker = match fits {
            Some(payload) => state.put_message(FrameType::Reply, 0, id, &[], payload),
            None => state.put_frame(FrameType::Reply, flag::MARK, id, &[]),
        };
        let overflow = self.waiting(&state) > self.limits.queue_hard;
        drop(state);
        wake(waker);
        if overflow {
            self.close(CloseReason::Overflow);
        }
    }

    // ---- streams ----------------------------------------------------------------------------

    /// Opens a stream. Gives its key, its id and where its head ends in the queue.
    pub(super) fn open(&self, head: &Bytes, fin: bool) -> Result<(u32, StreamId, u64), OpenError> {
        let mut state = self.lock();
        self.check_room(&state, head.len()).map_err(OpenError::from)?;
        if head.len() > self.limits.head_max {
            return Err(OpenError::HeadTooLong);
        }
        if state.slots.counts().0 >= self.peer_streams_max {
            return Err(OpenError::TooMany);
        }
        let stream =
            StreamState::new(Side::Opener, self.peer_stream_window, self.limits.stream_window, fin);
        let (key, id) = state.slots.insert_local(stream, Half::BOTH).ok_or(OpenError::TooMany)?;
        let flags = if fin { flag::FIN } else { 0 };
        let waker = state.put_message(FrameType::Open, flags, id.0, &[], head);
        let head_end = state.queued;
        drop(state);
        wake(waker);
        Ok((key, id, head_end))
    }

    /// Sends as much of `data` as credit and queue allow; what remains stays in it. `Ok(true)`
    /// when all of it went. Otherwise `waker` is called when there may be room again.
    pub(super) fn send_body(
        &self,
        key: u32,
        id: StreamId,
        data: &mut &[u8],
        fin: bool,
        waker: &Waker,
    ) -> Result<bool, ResetCode> {
        let mut state = self.lock();
        let done = loop {
            let (room, before) = (self.room(&state), data.len());
            let done = state.push_body(key, id, data, fin, room, self.body_flags);
            if done != Ok(false) {
                break done;
            }
            // The writer empties the queue meanwhile, without the lock: room that is there by now
            // is used, for nobody would wake those who wait for it.
            let was_full = room <= before - data.len();
            if !was_full || self.room(&state) == 0 {
                state.wait_to_send(key, id, waker, was_full);
                break done;
            }
        };
        let writer = state.writer_if_output();
        drop(state);
        wake(writer);
        done
    }

    /// Runs `act` on a stream under the lock, then wakes the writer if it queued anything.
    pub(super) fn with_slot<T>(
        &self,
        key: u32,
        id: StreamId,
        act: impl FnOnce(&mut State) -> T,
    ) -> Option<T> {
        let mut state = self.lock();
        state.slots.get(key, id)?;
        let value = act(&mut state);
        let waker = state.writer_if_output();
        let overflow = self.waiting(&state) > self.limits.queue_hard;
        drop(state);
        wake(waker);
        if overflow {
            self.close(CloseReason::Overflow);
        }
        Some(value)
    }

    // ---- the reader -------------------------------------------------------------------------

    /// Takes every whole frame out of `buffer`. What it asks of others is in `batch`, in order,
    /// also when it fails.
    pub(super) fn receive(
        self: &Arc<Self>,
        buffer: &mut BytesMut,
        assembler: &mut Assembler,
        batch: &mut Batch,
    ) -> Result<(), CloseReason> {
        let mut state = self.lock();
        if let Some(reason) = state.closed {
            return Err(reason);
        }
        state.heard = Instant::now();
        state.reads += 1;
        let mut at = 0;
        let result = loop {
            match parse(buffer.get(at..).unwrap_or_default()) {
                Ok(Parsed::Needs(_)) => break Ok(()),
                Ok(Parsed::Frame { header, payload, taken }) => {
                    at += taken;
                    let message = assembler.take(header, payload).map_err(frame_reason);
                    match message {
                        Ok(None) => {}
                        Ok(Some(message)) => {
                            if let Err(reason) = self.on_message(&mut state, message, batch) {
                                break Err(reason);
                            }
                        }
                        Err(reason) => break Err(reason),
                    }
                }
                Err(error) => break Err(frame_reason(error)),
            }
        };
        batch.wakers.extend(state.writer_if_output());
        let overflow = self.waiting(&state) > self.limits.queue_hard;
        drop(state);
        buffer.advance(at);
        if overflow { Err(CloseReason::Overflow) } else { result }
    }

    fn on_message(
        self: &Arc<Self>,
        state: &mut State,
        message: Message,
        batch: &mut Batch,
    ) -> Result<(), CloseReason> {
        match message.kind {
            FrameType::Ping => state.pong(&message.payload),
            FrameType::Pong => {}
            FrameType::Close => {
                return Err(CloseReason::from_byte(message.payload.first().copied().unwrap_or(0)));
            }
            FrameType::Credit => return state.on_credit(&message, batch),
            FrameType::Open => return self.on_open(state, message, batch),
            FrameType::Accepted
            | FrameType::Refused
            | FrameType::Head
            | FrameType::Data
            | FrameType::End
            | FrameType::Reset => return state.on_stream(message, batch),
            FrameType::Call => return self.on_call(state, message, batch),
            FrameType::Reply => {
                if let Some(to) = state.calls.remove(&message.stream) {
                    let none = message.flags & flag::MARK != 0;
                    let payload = (!none).then_some(message.payload);
                    batch.deliveries.push(Delivery::Answer { to, payload });
                }
            }
            FrameType::Notify => {
                let (kind, payload) = kind_and_payload(message.payload)?;
                batch.deliveries.push(Delivery::Notify { kind, payload });
            }
            FrameType::Hello | FrameType::Proof => return Err(CloseReason::Protocol),
        }
        Ok(())
    }

    fn on_call(
        self: &Arc<Self>,
        state: &mut State,
        message: Message,
        batch: &mut Batch,
    ) -> Result<(), CloseReason> {
        if state.calls_in >= self.limits.calls_max {
            state.put_frame_only(FrameType::Reply, flag::MARK, message.stream, &[]);
            return Ok(());
        }
        let (kind, payload) = kind_and_payload(message.payload)?;
        state.calls_in += 1;
        let reply = Reply::new(Arc::clone(self), message.stream);
        batch.deliveries.push(Delivery::Call { kind, payload, reply });
        Ok(())
    }

    fn on_open(
        self: &Arc<Self>,
        state: &mut State,
        message: Message,
        batch: &mut Batch,
    ) -> Result<(), CloseReason> {
        let id = StreamId(message.stream);
        if id.by_dialer() == self.dialer || state.slots.remote_is_open(id) {
            return Err(CloseReason::Protocol);
        }
        let fin = message.flags & flag::FIN != 0;
        let stream = StreamState::new(
            Side::Acceptor,
            self.peer_stream_window,
            self.limits.stream_window,
            fin,
        );
        let full = state.slots.counts().1 >= self.limits.streams_max;
        let key = if full { None } else { state.slots.insert_remote(id, stream, Half::BOTH) };
        match key {
            Some(key) => {
                let stream = ServerStream::new(Arc::clone(self), key, id, message.payload, fin);
                batch.deliveries.push(Delivery::Opened(stream));
            }
            None => {
                let code = [ResetCode::TooMany as u8];
                state.put_frame_only(FrameType::Reset, flag::FIN, id.0, &code);
            }
        }
        Ok(())
    }

    // ---- the writer -------------------------------------------------------------------------

    /// Whether there is something to write; registers the writer otherwise.
    pub(super) fn has_output(&self, waker: &Waker) -> bool {
        let mut state = self.lock();
        let ready = !state.out.is_empty() || state.closed.is_some();
        state.writer = if ready { None } else { Some(waker.clone()) };
        ready
    }

    /// Bytes ever queued: the place in the queue of what was queued last.
    pub(super) fn queued(&self) -> u64 {
        self.lock().queued
    }

    /// Whether what was queued up to `place` was handed to the socket, or never will be.
    /// Otherwise `waker` is called when it may have been.
    pub(super) fn is_flushed(&self, place: u64, waker: &Waker) -> bool {
        let mut state = self.lock();
        let done = self.written.load(Relaxed) >= place || state.closed.is_some();
        if !done {
            state.flushers.push(waker.clone());
        }
        done
    }

    /// Takes everything queued. `buffer` must be empty.
    pub(super) fn take_output(&self, buffer: &mut Vec<u8>) -> (Output, u64) {
        let mut state = self.lock();
        std::mem::swap(&mut state.out, buffer);
        let frames = std::mem::take(&mut state.out_frames);
        state.pong_queued = false;
        state.frames += frames;
        if state.closed.is_none() {
            self.taken.store(state.queued, Relaxed);
        }
        (state.closed.map_or(Output::Bytes, Output::Last), frames)
    }

    /// Whether the peer may see what was queued up to `place`.
    pub(super) fn may_be_seen(&self, place: u64) -> bool {
        self.taken.load(Relaxed) >= place
    }

    /// The writer stops for good: what the socket did not take is never sent.
    pub(super) fn stop_writing(&self) {
        self.taken.store(self.written.load(Relaxed), Relaxed);
    }

    /// The socket took `bytes`, in one system call.
    pub(super) fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Relaxed);
    }

    /// Everything taken was written in `writes` calls: those who wait for room may go on.
    pub(super) fn flushed(&self, writes: u64) {
        let mut state = self.lock();
        state.writes += writes;
        let mut wakers = state.unblock();
        wakers.append(&mut state.flushers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    // ---- life and death ---------------------------------------------------------------------

    /// How quiet the peer is.
    pub(super) fn quiet(&self) -> Quiet {
        let state = self.lock();
        let (local, remote) = state.slots.counts();
        let awaited = local > 0 || remote > 0 || !state.calls.is_empty();
        Quiet { heard: state.heard, reads: state.reads, awaited }
    }

    pub(super) fn ping(&self) {
        let mut state = self.lock();
        if state.closed.is_none() {
            let waker = state.put_frame(FrameType::Ping, 0, 0, &[0; 8]);
            drop(state);
            wake(waker);
        }
    }

    /// Ends the connection: every stream is reset, every call fails. The peer is told unless it
    /// is gone. False when it was closed before.
    pub(super) fn close(&self, reason: CloseReason) -> bool {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        if state.closed.is_some() {
            return false;
        }
        state.closed = Some(reason);
        // Before anybody hears of it: who looks for another link must not find this one again.
        self.gone.cancel();
        // A head that was not flushed must never be seen by the peer: its sender is told below
        // that it may try elsewhere.
        state.forget_output();
        if tells_the_peer(reason) {
            state.put_frame_only(FrameType::Close, 0, 0, &[reason as u8]);
        }
        for slot in state.slots.live() {
            slot.end(ResetCode::LinkClosed);
            slot.wake_all(&mut wakers);
        }
        let calls = std::mem::take(&mut state.calls);
        wakers.extend(state.writer.take());
        wakers.append(&mut state.flushers);
        drop(state);
        drop(calls);
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    /// How long the last words may take.
    pub(super) fn goodbye_time(&self) -> Duration {
        self.limits.goodbye
    }
}

fn tells_the_peer(reason: CloseReason) -> bool {
    !matches!(
        reason,
        CloseReason::PeerGone | CloseReason::Io | CloseReason::Silent | CloseReason::Stalled
    )
}

fn frame_reason(error: FrameError) -> CloseReason {
    match error {
        FrameError::Checksum => CloseReason::Checksum,
        FrameError::TooLong(_) | FrameError::Broken | FrameError::MessageTooLong => {
            CloseReason::Protocol
        }
    }
}

/// A call or note begins with its kind.
fn kind_and_payload(mut message: Bytes) -> Result<(u8, Bytes), CloseReason> {
    let kind = *message.first().ok_or(CloseReason::Protocol)?;
    message.advance(1);
    Ok((kind, message))
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests;
