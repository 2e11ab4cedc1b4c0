//! One attempt at a request: over a link's stream to a node, and back to its answer's head.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use stead_shared::net::link::{ClientStream, RecvHalf, ResetCode, SendHalf, StreamEvent};
use stead_shared::net::parking::Turn;
use stead_shared::refusal::Refusal;
use stead_shared::wire::http::{ResponseHead, decode_refusal};
use stead_shared::wire::link::REPLAY_BYTES;

use crate::client::ClientState;
use crate::logic::retry::{Event, Sent};

/// What became of an attempt.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The answer's head is here.
    Answer(Answered),
    /// No answer, and why.
    Event(Event),
    /// The client did not send what it began.
    BrokenBody,
    /// The request's head is too large for the link.
    HeadTooLarge,
}

/// An answer that has begun.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) head: ResponseHead,
    pub(crate) recv: RecvHalf,
    /// The way to the node, when the request's end was not said: an upgrade.
    pub(crate) send: Option<SendHalf>,
}

/// What can be said of a refusal that cannot be read, or of a peer that is full: not executed.
const BUSY: Refusal = Refusal::Overloaded { retry_after_ms: 1000 };

impl Outcome {
    pub(crate) fn busy() -> Self {
        Self::Event(Event::Refused(BUSY))
    }
}

/// Carries a request's body and waits for the answer's head.
pub(crate) async fn exchange(
    stream: ClientStream,
    mut upload: Option<&mut Upload>,
    turn: &mut Option<Turn>,
    is_read: bool,
) -> Outcome {
    let (send, mut recv) = stream.split();
    let mut send = Some(send);
    if let Some(upload) = &mut upload {
        upload.attach(send.take());
    }
    loop {
        let event = match &mut upload {
            None => recv.next().await,
            Some(upload) => match next_while_uploading(&mut recv, upload).await {
                Ok(event) => event,
                Err(BrokenBody) => return Outcome::BrokenBody,
            },
        };
        let is_kept = upload.as_ref().is_none_or(|upload| upload.is_kept);
        let sent = Sent { is_read, is_kept };
        let broken = Outcome::Event(Event::Broken(sent));
        return match event {
            Some(StreamEvent::Accepted) => {
                welcome(turn);
                if let Some(upload) = &mut upload {
                    upload.accepted();
                }
                continue;
            }
            Some(StreamEvent::Head(head)) => {
                welcome(turn);
                match ResponseHead::decode(head) {
                    Ok(head) => Outcome::Answer(Answered { head, recv, send }),
                    Err(_) => broken,
                }
            }
            Some(StreamEvent::Refused(bytes)) => {
                Outcome::Event(Event::Refused(decode_refusal(&bytes).unwrap_or(BUSY)))
            }
            Some(StreamEvent::Reset(ResetCode::TooMany)) => Outcome::busy(),
            Some(StreamEvent::Reset(ResetCode::LinkClosed)) | None => {
                let send = send.as_ref().or_else(|| upload.as_ref()?.send.as_ref());
                match send.is_some_and(SendHalf::flushed) {
                    true => Outcome::Event(Event::Cut(sent)),
                    false => Outcome::Event(Event::Unsent),
                }
            }
            Some(StreamEvent::Reset(_) | StreamEvent::Data(_) | StreamEvent::End(_)) => broken,
        };
    }
}

fn welcome(turn: &mut Option<Turn>) {
    if let Some(turn) = turn.take() {
        turn.welcome();
    }
}

/// The client's side broke before the body's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BrokenBody;

async fn next_while_uploading(
    recv: &mut RecvHalf,
    upload: &mut Upload,
) -> Result<Option<StreamEvent>, BrokenBody> {
    poll_fn(|cx| {
        if let Poll::Ready(event) = recv.poll_next(cx) {
            return Poll::Ready(Ok(event));
        }
        match upload.poll(cx) {
            Poll::Ready(Err(UploadError::Client)) => Poll::Ready(Err(BrokenBody)),
            // When the stream took no more, its other half says why.
            Poll::Ready(Ok(()) | Err(UploadError::Stream)) | Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Which side of an upload failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UploadError {
    Client,
    Stream,
}

/// A request's body on its way to a node, with its begin kept so that it can be sent again.
///
/// Until the node has accepted the request no more is read than is kept; what was read before a
/// refusal can be sent elsewhere whatever the body's size. After it the begin is kept only while
/// it is all there was.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Incoming,
    client: Arc<ClientState>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// Whether `kept` is everything that was read.
    is_kept: bool,
    /// Pieces of `kept` that this attempt has taken.
    n_taken: usize,
    /// Everything was read.
    ended: bool,
    /// What is being sent; true when nothing follows.
    piece: Option<(Bytes, bool)>,
    send: Option<SendHalf>,
    accepted: bool,
    done: bool,
}

impl Upload {
    pub(crate) fn new(body: Incoming, client: Arc<ClientState>) -> Self {
        Self {
            body,
            client,
            kept: Vec::new(),
            kept_bytes: 0,
            is_kept: true,
            n_taken: 0,
            ended: false,
            piece: None,
            send: None,
            accepted: false,
            done: false,
        }
    }

    /// Bytes held for another attempt.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Whether everything that was read is held for another attempt.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Whether everything was read from the client.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether everything was sent to the node.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// `=> (sending from the begin)`: another attempt.
    fn attach(&mut self, send: Option<SendHalf>) {
        self.send = send;
        self.n_taken = 0;
        self.piece = None;
        self.accepted = false;
        self.done = false;
    }

    fn accepted(&mut self) {
        self.accepted = true;
        self.forget_if_large();
    }

    fn forget_if_large(&mut self) {
        if self.accepted && REPLAY_BYTES as usize <= self.kept_bytes {
            self.is_kept = false;
        }
        if !self.is_kept {
            self.kept.drain(..self.n_taken);
            self.n_taken = 0;
            self.kept_bytes = self.kept.iter().map(Bytes::len).sum();
        }
    }

    /// Sends what is there until one of the sides has enough.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        loop {
            let Some(send) = &mut self.send else { return Poll::Ready(Err(UploadError::Stream)) };
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if let Some((piece, last)) = &mut self.piece {
                let sent = ready!(send.poll_send(cx, piece, *last));
                self.done = *last;
                self.piece = None;
                sent.map_err(|_| UploadError::Stream)?;
            } else if self.n_taken == self.kept.len() && self.ended {
                self.done = true;
                send.finish(None).map_err(|_| UploadError::Stream)?;
            } else {
                ready!(self.poll_piece(cx))?;
            }
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        if self.n_taken == self.kept.len() {
            ready!(self.poll_read(cx))?;
        }
        if let Some(piece) = self.kept.get(self.n_taken) {
            self.n_taken += 1;
            let last = self.ended && self.n_taken == self.kept.len();
            self.piece = Some((piece.clone(), last));
            self.forget_if_large();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the next piece into `kept`. Trailers of a request are dropped: nothing says that
    /// the node's handler may take them (RFC 9110 §6.5.1).
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        let full = !self.accepted && REPLAY_BYTES as usize <= self.kept_bytes;
        if full {
            // Until the node accepts; its answer wakes this task.
            return Poll::Pending;
        }
        let frame = ready!(std::pin::Pin::new(&mut self.body).poll_frame(cx));
        if self.client.violation().is_some() {
            return Poll::Ready(Err(UploadError::Client));
        }
        match frame {
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    self.kept_bytes += bytes.len();
                    self.kept.push(bytes);
                }
                self.ended = self.body.is_end_stream();
            }
            Some(Err(_)) => return Poll::Ready(Err(UploadError::Client)),
            None => self.ended = true,
        }
        Poll::Ready(Ok(()))
    }
}
