//! A body that comes over a link: of a request at the owner, of an answer at who forwarded.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use stead_shared::border::headers::is_passed_as_trailer;
use stead_shared::net::link::{RecvHalf, StreamEvent};
use stead_shared::wire::http::decode_trailers;

use crate::body::BodyError;

/// The pieces of a stream, as a body. Reading it gives credit back to the sender; dropping it
/// before its end tells the sender that nobody reads.
pub(crate) struct LinkBody {
    recv: RecvHalf,
    /// Bytes to come, where the sender said how many.
    left: Option<u64>,
    ended: bool,
}

impl LinkBody {
    /// What `recv` brings from now on; `length` bytes of it, where that is known.
    pub(crate) fn new(recv: RecvHalf, length: Option<u64>) -> Self {
        Self { recv, left: length, ended: false }
    }

    fn piece(&mut self, data: Bytes) -> Result<Frame<Bytes>, BodyError> {
        if let Some(left) = &mut self.left {
            // More than was promised would be taken for the next message.
            match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => return Err(self.broken()),
            }
        }
        Ok(Frame::data(data))
    }

    fn broken(&mut self) -> BodyError {
        self.ended = true;
        BodyError::Aborted
    }
}

impl http_body::Body for LinkBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.recv.poll_next(cx)) {
                Some(StreamEvent::Data(data)) => return Poll::Ready(Some(self.piece(data))),
                Some(StreamEvent::End(trailers)) if self.left.is_none_or(|left| left == 0) => {
                    self.ended = true;
                    return Poll::Ready(trailers.and_then(passed).map(|t| Ok(Frame::trailers(t))));
                }
                Some(StreamEvent::Accepted | StreamEvent::Refused(_) | StreamEvent::Head(_)) => {}
                Some(StreamEvent::End(_) | StreamEvent::Reset(_)) | None => {
                    return Poll::Ready(Some(Err(self.broken())));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// What may be passed on of encoded trailers.
fn passed(encoded: Bytes) -> Option<HeaderMap> {
    let mut trailers = decode_trailers(encoded).ok()?;
    let unfit = |name: &&http::HeaderName| !is_passed_as_trailer(name);
    let doomed: Vec<_> = trailers.keys().filter(unfit).cloned().collect();
    for name in doomed {
        trailers.remove(name);
    }
    (!trailers.is_empty()).then_some(trailers)
}
