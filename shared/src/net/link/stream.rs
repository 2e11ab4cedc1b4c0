//! The two ends of a stream, in halves. Dropping a half tells the peer what it must know.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};

use super::conn::Conn;
use super::slots::StreamEvent;
use super::state::State;
use super::{PeerInfo, SendError};
use crate::wire::link::{ConnectionKind, FrameType, ResetCode, Side, StreamId, flag};

/// Bits that tell which halves of a stream are alive.
pub(super) struct Half;

impl Half {
    pub(super) const SEND: u8 = 1;
    pub(super) const RECV: u8 = 2;
    pub(super) const BOTH: u8 = Self::SEND | Self::RECV;
}

/// One half's place in the table. Dropping it gives the half back.
#[derive(Debug)]
struct Place {
    conn: Arc<Conn>,
    key: u32,
    id: StreamId,
    half: u8,
}

impl Place {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> Option<T> {
        self.conn.with_slot(self.key, self.id, act)
    }

    fn poll_body(
        &self,
        data: &mut &[u8],
        fin: bool,
        cx: &Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        match self.conn.send_body(self.key, self.id, data, fin, cx.waker()) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(code) => Poll::Ready(Err(SendError(code))),
        }
    }

    async fn send_body(&self, mut data: &[u8], fin: bool) -> Result<(), SendError> {
        poll_fn(|cx| self.poll_body(&mut data, fin, cx)).await
    }

    fn finish(&self, trailers: Option<Bytes>) -> Result<(), SendError> {
        let head_max = self.conn.limits.head_max;
        let sent = self.with(|state| {
            let slot = state.slots.get_mut(self.key, self.id)?;
            if !slot.state.send(0, true) {
                return Some(Err(SendError(slot.reset.unwrap_or(ResetCode::Done))));
            }
            let trailers = trailers.filter(|bytes| bytes.len() <= head_max);
            let mark = if trailers.is_some() { flag::MARK } else { 0 };
            let payload = trailers.unwrap_or_default();
            state.put_message_only(FrameType::End, flag::FIN | mark, self.id.0, &payload);
            Some(Ok(()))
        });
        sent.flatten().unwrap_or(Err(SendError(ResetCode::Cancelled)))
    }

    fn reset(&self, code: ResetCode) {
        self.with(|state| state.reset(self.key, code));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.conn.with_slot(self.key, self.id, |state| {
            if let Some(code) = state.left_undone(self.key, self.half) {
                state.reset(self.key, code);
            }
            state.release(self.key, self.half);
        });
    }
}

impl State {
    /// What the peer must be told when this half is dropped now.
    fn left_undone(&mut self, key: u32, half: u8) -> Option<ResetCode> {
        let slot = self.slots.at(key)?;
        let (sending, receiving) = (slot.state.is_sending(), slot.state.is_receiving());
        let reads = slot.halves & Half::RECV != 0;
        match (slot.state.side(), half) {
            (Side::Opener, Half::RECV) if receiving => Some(ResetCode::Cancelled),
            (Side::Opener, Half::SEND) if sending => Some(ResetCode::Cancelled),
            (Side::Acceptor, Half::SEND) if sending => Some(ResetCode::Failed),
            (Side::Acceptor, Half::SEND) if receiving && !reads => Some(ResetCode::Done),
            (Side::Acceptor, Half::RECV) if receiving && !sending => Some(ResetCode::Done),
            _ => None,
        }
    }
}

/// The opener's end of a stream: a request and the way to its answer.
#[derive(Debug)]
pub struct ClientStream {
    /// Sends the request's body.
    pub send: SendHalf,
    /// Receives the answer.
    pub recv: RecvHalf,
}

impl ClientStream {
    pub(super) fn new(conn: Arc<Conn>, key: u32, id: StreamId, head_end: u64) -> Self {
        let send = Place { conn: Arc::clone(&conn), key, id, half: Half::SEND };
        let recv = Place { conn, key, id, half: Half::RECV };
        Self { send: SendHalf { place: send, head_end }, recv: RecvHalf { place: recv } }
    }

    /// Both halves.
    #[must_use]
    pub fn split(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }

    /// See [`SendHalf::flushed`].
    #[must_use]
    pub fn flushed(&self) -> bool {
        self.send.flushed()
    }
}

/// Sends a request's body. Dropped before the end it cancels the stream.
#[derive(Debug)]
pub struct SendHalf {
    place: Place,
    head_end: u64,
}

impl SendHalf {
    /// Whether the head was taken to be handed to the socket. When the link breaks and it was
    /// not, the peer cannot have executed the request, and never will; when it was, it may have.
    #[must_use]
    pub fn flushed(&self) -> bool {
        self.place.conn.may_be_seen(self.head_end)
    }

    /// Sends a piece of the body; waits for credit and for room in the queue. Before the request
    /// is accepted there is credit for [`REPLAY_BYTES`](crate::wire::link::REPLAY_BYTES).
    ///
    /// Cancel safe in this sense: whole frames went or did not; how many is not known.
    ///
    /// # Errors
    /// The stream ended: refused, reset, or its link closed. The answer's side says which.
    pub async fn send(&mut self, data: Bytes) -> Result<(), SendError> {
        self.place.send_body(&data, false).await
    }

    /// Like [`send`](Self::send), and nothing follows: saves a frame.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub async fn send_last(&mut self, data: Bytes) -> Result<(), SendError> {
        self.place.send_body(&data, true).await
    }

    /// Like [`send`](Self::send), or [`send_last`](Self::send_last) with `last`, of memory that
    /// the caller keeps and may use again.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub async fn send_slice(&mut self, data: &[u8], last: bool) -> Result<(), SendError> {
        self.place.send_body(data, last).await
    }

    /// Like [`send`](Self::send), or [`send_last`](Self::send_last) with `last`, polled: what went
    /// is taken out of `data`.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn poll_send(
        &mut self,
        cx: &Context<'_>,
        data: &mut Bytes,
        last: bool,
    ) -> Poll<Result<(), SendError>> {
        let mut rest = &data[..];
        let polled = self.place.poll_body(&mut rest, last, cx);
        let went = data.len() - rest.len();
        data.advance(went);
        polled
    }

    /// Ends the body, with encoded trailers if any.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn finish(&mut self, trailers: Option<Bytes>) -> Result<(), SendError> {
        self.place.finish(trailers)
    }

    /// Gives the stream up, both ways.
    pub fn reset(&mut self, code: ResetCode) {
        self.place.reset(code);
    }
}

/// Receives what the peer sends on a stream. Dropped before the end it cancels the stream at the
/// opener's end; at the other end what still comes is thrown away.
#[derive(Debug)]
pub struct RecvHalf {
    place: Place,
}

impl RecvHalf {
    /// The next event; `None` after the last one. Credit goes back as data is taken.
    ///
    /// Cancel safe: an event is either returned or stays.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Like [`next`](Self::next), for bodies that are polled.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        self.take(Some(cx))
    }

    /// The next event if it is there already: `Pending` when there will be one later.
    pub fn try_next(&mut self) -> Poll<Option<StreamEvent>> {
        self.take(None)
    }

    fn take(&self, cx: Option<&mut Context<'_>>) -> Poll<Option<StreamEvent>> {
        let (key, id) = (self.place.key, self.place.id);
        let taken = self.place.with(|state| {
            let Some(slot) = state.slots.get_mut(key, id) else { return Poll::Ready(None) };
            let Some(event) = slot.events.pop_front() else {
                if !slot.state.is_receiving() {
                    return Poll::Ready(None);
                }
                if let Some(cx) = cx {
                    let waker = cx.waker();
                    if !slot.reader.as_ref().is_some_and(|known| known.will_wake(waker)) {
                        slot.reader = Some(waker.clone());
                    }
                }
                return Poll::Pending;
            };
            if let StreamEvent::Data(bytes) = &event {
                let bytes = bytes.len() as u32;
                state.consume(key, bytes);
            }
            Poll::Ready(Some(event))
        });
        taken.unwrap_or(Poll::Ready(None))
    }
}

/// A stream that the peer opened: its head, and the way to answer it.
#[derive(Debug)]
pub struct ServerStream {
    /// The request's encoded head.
    pub head: Bytes,
    /// Whether the head is all that comes.
    pub fin: bool,
    /// Receives the request's body.
    pub recv: RecvHalf,
    /// Answers.
    pub send: ServerSend,
}

impl ServerStream {
    /// What the connection that it came on is for.
    #[must_use]
    pub fn kind(&self) -> ConnectionKind {
        self.send.place.conn.kind
    }
}

impl ServerStream {
    pub(super) fn new(conn: Arc<Conn>, key: u32, id: StreamId, head: Bytes, fin: bool) -> Self {
        let send = Place { conn: Arc::clone(&conn), key, id, half: Half::SEND };
        let recv = Place { conn, key, id, half: Half::RECV };
        Self { head, fin, recv: RecvHalf { place: recv }, send: ServerSend { place: send } }
    }
}

/// Answers a stream. Dropped before the answer's end it resets the stream as failed.
#[derive(Debug)]
pub struct ServerSend {
    place: Place,
}

impl ServerSend {
    /// Who asks.
    #[must_use]
    pub fn peer(&self) -> PeerInfo {
        self.place.conn.peer
    }

    /// Promises to execute the request; the sender gets credit for more of its body. Not needed
    /// when the head follows at once.
    pub fn accepted(&mut self) {
        let (key, id) = (self.place.key, self.place.id);
        self.place.with(|state| {
            let Some(slot) = state.slots.get_mut(key, id) else { return };
            if slot.state.accept() {
                let credit = slot.state.give_back().map(|credit| (id.0, credit));
                state.put_frame_only(FrameType::Accepted, 0, id.0, &[]);
                state.put_credit(credit);
            }
        });
    }

    /// Says that the request was not executed, and why. False when it was accepted or given up
    /// before: nothing is sent then.
    pub fn refuse(self, refusal: Bytes) -> bool {
        let (key, id) = (self.place.key, self.place.id);
        let refused = self.place.with(|state| {
            let may = state.slots.get_mut(key, id).is_some_and(|slot| slot.state.refuse());
            if may {
                state.put_message_only(FrameType::Refused, flag::FIN, id.0, &refusal);
            }
            may
        });
        refused.unwrap_or(false)
    }

    /// Sends the answer's head; `fin` when there is no body.
    ///
    /// # Errors
    /// The stream was given up, or a head was sent before.
    pub fn head(&mut self, head: &Bytes, fin: bool) -> Result<(), SendError> {
        self.answer(head, &mut Bytes::new(), fin).map(|_all_went| ())
    }

    /// Sends the answer's head with the first piece of its body, in one go where credit allows;
    /// `fin` when that is all. Waits for the rest as [`send`](Self::send) does.
    ///
    /// # Errors
    /// The stream was given up, or a head was sent before.
    pub async fn head_and_first(
        &mut self,
        head: Bytes,
        first: Option<Bytes>,
        fin: bool,
    ) -> Result<(), SendError> {
        let mut first = first.unwrap_or_default();
        if self.answer(&head, &mut first, fin)? {
            return Ok(());
        }
        self.place.send_body(&first, fin).await
    }

    /// Queues the head and what goes of the body. True when all went.
    fn answer(&self, head: &Bytes, body: &mut Bytes, fin: bool) -> Result<bool, SendError> {
        let (key, id) = (self.place.key, self.place.id);
        let conn = &self.place.conn;
        if head.len() > conn.limits.head_max {
            return Err(SendError(ResetCode::Failed));
        }
        let ends = fin && body.is_empty();
        let sent = self.place.with(|state| {
            let Some(slot) = state.slots.get_mut(key, id) else {
                return Err(ResetCode::Cancelled);
            };
            if !slot.state.answer(ends) {
                return Err(slot.reset.unwrap_or(ResetCode::Failed));
            }
            let credit = slot.state.give_back().map(|credit| (id.0, credit));
            let flags = if ends { flag::FIN } else { 0 };
            state.put_message_only(FrameType::Head, flags, id.0, head);
            state.put_credit(credit);
            if body.is_empty() {
                return Ok(true);
            }
            let room = conn.room(state);
            let mut rest = &body[..];
            let all_went = state.push_body(key, id, &mut rest, fin, room, conn.body_flags());
            let went = body.len() - rest.len();
            body.advance(went);
            all_went
        });
        sent.unwrap_or(Err(ResetCode::Cancelled)).map_err(SendError)
    }

    /// Sends a piece of the body; waits for credit and for room in the queue.
    ///
    /// # Errors
    /// The stream was given up.
    pub async fn send(&mut self, data: Bytes) -> Result<(), SendError> {
        self.place.send_body(&data, false).await
    }

    /// Like [`send`](Self::send), and nothing follows.
    ///
    /// # Errors
    /// The stream was given up.
    pub async fn send_last(&mut self, data: Bytes) -> Result<(), SendError> {
        self.place.send_body(&data, true).await
    }

    /// Ends the body, with encoded trailers if any.
    ///
    /// # Errors
    /// The stream was given up.
    pub fn finish(&mut self, trailers: Option<Bytes>) -> Result<(), SendError> {
        self.place.finish(trailers)
    }

    /// Gives the stream up, both ways.
    pub fn reset(&mut self, code: ResetCode) {
        self.place.reset(code);
    }

    /// Waits until the peer gives the stream up or the link closes. Never ends otherwise: use it
    /// beside the work that it may cut short.
    pub async fn cancelled(&self) -> ResetCode {
        poll_fn(|cx| self.poll_cancelled(cx)).await
    }

    /// Like [`cancelled`](Self::cancelled), polled.
    pub fn poll_cancelled(&self, cx: &mut Context<'_>) -> Poll<ResetCode> {
        let (key, id) = (self.place.key, self.place.id);
        let polled = self.place.with(|state| {
            let Some(slot) = state.slots.get_mut(key, id) else { return Poll::Pending };
            if let Some(code) = slot.reset {
                return Poll::Ready(code);
            }
            let waker = cx.waker();
            if !slot.canceller.as_ref().is_some_and(|known| known.will_wake(waker)) {
                slot.canceller = Some(waker.clone());
            }
            Poll::Pending
        });
        polled.unwrap_or(Poll::Ready(ResetCode::LinkClosed))
    }
}
