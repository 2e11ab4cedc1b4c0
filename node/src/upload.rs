//! A request's body that can be sent again as long as nobody has accepted the request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use stead_shared::net::link::SendHalf;
use stead_shared::wire::link::REPLAY_BYTES;

use crate::body::{Body, BodyError};

/// Bytes that are kept for another attempt: what the link lets through before a request is
/// accepted, and what a host reads before a turn.
const KEPT_MAX: usize = REPLAY_BYTES as usize;

/// Why a body could not be sent to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UploadError {
    /// It broke off before.
    Body,
    /// The stream takes no more; what it received says why.
    Stream,
}

/// A body, and the begin of it that was read already.
///
/// Trailers of a request are dropped: nothing says that a handler may take them (RFC 9110
/// §6.5.1).
#[derive(Debug)]
pub(crate) struct Upload {
    body: Body,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// Whether `kept` is everything that was read.
    is_kept: bool,
    /// Pieces of `kept` that the present attempt has taken.
    n_taken: usize,
    ended: bool,
    failed: Option<BodyError>,
    /// Whether more may be read than is kept.
    accepted: bool,
    /// What is being sent; true when nothing follows.
    piece: Option<(Bytes, bool)>,
    done: bool,
}

impl Upload {
    pub(crate) fn new(body: Body) -> Self {
        let ended = body.is_end_stream();
        Self {
            body,
            kept: Vec::new(),
            kept_bytes: 0,
            is_kept: true,
            n_taken: 0,
            ended,
            failed: None,
            accepted: false,
            piece: None,
            done: false,
        }
    }

    /// Whether there is no body at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.ended && self.is_kept && self.kept.is_empty()
    }

    /// Bytes that are kept for another attempt.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Whether another attempt can send everything once more.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Whether everything was sent.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// `=> (at the begin)`: another attempt.
    pub(crate) fn rewind(&mut self) {
        self.n_taken = 0;
        self.accepted = false;
        self.piece = None;
        self.done = false;
    }

    /// The request will be executed: from here on there may be nothing to go back to.
    pub(crate) fn accepted(&mut self) {
        self.accepted = true;
    }

    fn length(&self) -> Option<u64> {
        let rest = if self.ended { Some(0) } else { self.body.length() };
        let ahead: usize = self.kept[self.n_taken..].iter().map(Bytes::len).sum();
        rest.map(|rest| rest + ahead as u64)
    }

    /// The next piece; none at the end. Pending as well while no more may be read: whoever
    /// accepts the request wakes the task.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            if let Some(piece) = self.kept.get(self.n_taken).cloned() {
                self.n_taken += 1;
                self.forget_if_large();
                return Poll::Ready(Some(Ok(piece)));
            }
            if let Some(error) = &self.failed {
                return Poll::Ready(Some(Err(error.clone())));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if !self.accepted && KEPT_MAX <= self.kept_bytes {
                return Poll::Pending;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.into_data().ok().filter(|data| !data.is_empty()) {
                        self.kept_bytes += data.len();
                        self.kept.push(data);
                    }
                    self.ended = self.body.is_end_stream();
                }
                Some(Err(error)) => self.failed = Some(error),
                None => self.ended = true,
            }
        }
    }

    fn forget_if_large(&mut self) {
        if self.accepted && KEPT_MAX < self.kept_bytes {
            self.is_kept = false;
        }
        if !self.is_kept {
            self.kept.drain(..self.n_taken);
            self.n_taken = 0;
            self.kept_bytes = self.kept.iter().map(Bytes::len).sum();
        }
    }

    /// Sends what is there until one of the sides has enough.
    pub(crate) fn poll_send(
        &mut self,
        send: &mut SendHalf,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if let Some((piece, last)) = &mut self.piece {
                let sent = ready!(send.poll_send(cx, piece, *last));
                self.done = *last;
                self.piece = None;
                sent.map_err(|_| UploadError::Stream)?;
                continue;
            }
            match ready!(self.poll_piece(cx)) {
                Some(Ok(piece)) => {
                    let last = self.ended && self.n_taken == self.kept.len();
                    self.piece = Some((piece, last));
                }
                Some(Err(_)) => return Poll::Ready(Err(UploadError::Body)),
                None => {
                    self.done = true;
                    send.finish(None).map_err(|_| UploadError::Stream)?;
                }
            }
        }
    }

    /// Lends the body to somebody who may give it back unread, or hardly read.
    pub(crate) fn lend(mut self) -> (Body, Lender) {
        self.rewind();
        // Who serves here reads as he likes; beyond what is kept he has accepted the request.
        self.accepted = true;
        if self.is_empty() {
            return (Body::empty(), Lender(Arc::new(Mutex::new(Some(self)))));
        }
        let back = Lender::default();
        let lent = Lent { upload: Some(self), back: back.clone() };
        (Body::new(lent), back)
    }
}

/// Where a lent body comes back to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lender(Arc<Mutex<Option<Upload>>>);

impl Lender {
    /// The body, once its reader has dropped it.
    pub(crate) fn take_back(self) -> Option<Upload> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[derive(Debug)]
struct Lent {
    upload: Option<Upload>,
    back: Lender,
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(upload) = &mut self.upload else { return Poll::Ready(None) };
        upload.poll_piece(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.length() == Some(0))
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.upload.as_ref().and_then(Upload::length);
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let upload = self.upload.take();
        *self.back.0.lock().unwrap_or_else(PoisonError::into_inner) = upload;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(body: Body) -> Result<Bytes, BodyError> {
        body.collect_up_to(1 << 20).await
    }

    fn chunked(pieces: &[&'static str]) -> Body {
        let (sender, body) = Body::channel(pieces.len() + 1, None);
        let pieces: Vec<Bytes> = pieces.iter().map(|&piece| Bytes::from(piece)).collect();
        tokio::spawn(async move {
            for piece in pieces {
                sender.send(piece).await.unwrap();
            }
            sender.finish().await.unwrap();
        });
        body
    }

    #[tokio::test]
    async fn a_small_body_can_be_lent_again_after_it_was_read() {
        let mut upload = Upload::new(chunked(&["ab", "cd"]));
        for _ in 0..3 {
            let (body, lender) = upload.lend();
            assert_eq!(read(body).await.unwrap(), "abcd");
            upload = lender.take_back().unwrap();
            assert!(upload.is_kept());
        }
    }

    #[tokio::test]
    async fn a_large_body_is_not_held_once_it_is_read() {
        let large = Bytes::from(vec![7; KEPT_MAX + 1]);
        let (sender, body) = Body::channel(4, None);
        sender.send(large.clone()).await.unwrap();
        sender.finish().await.unwrap();
        let (body, lender) = Upload::new(body).lend();
        assert_eq!(read(body).await.unwrap(), large);
        let upload = lender.take_back().unwrap();
        assert!(!upload.is_kept());
        assert_eq!(upload.kept_bytes, 0);
    }

    #[tokio::test]
    async fn the_length_is_that_of_what_is_to_come() {
        let (body, lender) = Upload::new(Body::from("abcd")).lend();
        assert_eq!(body.length(), Some(4));
        drop(body);
        let (body, lender) = lender.take_back().unwrap().lend();
        assert_eq!(read(body).await.unwrap(), "abcd");
        let (body, _) = lender.take_back().unwrap().lend();
        assert_eq!(body.length(), Some(4), "at the begin again");
        let (body, lender) = Upload::new(Body::empty()).lend();
        assert!(body.is_end_stream());
        assert!(lender.take_back().is_some_and(|upload| upload.is_empty()));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_broken_for_every_reader() {
        let (sender, body) = Body::channel(4, None);
        sender.send(Bytes::from_static(b"ab")).await.unwrap();
        drop(sender);
        let mut upload = Upload::new(body);
        for _ in 0..2 {
            let (body, lender) = upload.lend();
            assert!(matches!(read(body).await, Err(BodyError::Failed(_))));
            upload = lender.take_back().unwrap();
        }
    }
}
