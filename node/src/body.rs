//! The one body type of requests and responses, whatever carries them.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

/// Why a body ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The sender went away. What arrived is a prefix of the body.
    #[error("the body was cut off by its sender")]
    Aborted,
    /// More bytes than the reader accepts. The rest was not read.
    #[error("the body is longer than {limit} bytes")]
    TooLong {
        /// What the reader accepts.
        limit: usize,
    },
    /// The connection or the producer below failed, in its own words.
    #[error("the body failed: {0}")]
    Failed(String),
}

/// A stream of bytes that knows its exact length where its producer does.
///
/// `http_body::Body<Data = Bytes, Error = BodyError>`. Dropping it tells the producer to stop.
#[derive(Debug, Default)]
pub struct Body {
    inner: Inner,
}

#[derive(Default)]
enum Inner {
    #[default]
    Empty,
    Full(Bytes),
    Channel {
        frames: mpsc::Receiver<Result<Bytes, BodyError>>,
        /// Bytes still to come, where the sender said so.
        left: Option<u64>,
        /// Whether the sender finished: a channel that closes without it was cut off.
        finished: bool,
    },
    Failed(BodyError),
    Boxed(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError> + Send>>),
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Channel { left, .. } => write!(f, "Channel({left:?} bytes left)"),
            Self::Failed(error) => write!(f, "Failed({error})"),
            Self::Boxed(_) => f.write_str("Boxed"),
        }
    }
}

impl Body {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Any other body. Its length hint is passed on.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: fmt::Display,
    {
        let body = body.map_err(|error| BodyError::Failed(error.to_string()));
        Self { inner: Inner::Boxed(Box::pin(body)) }
    }

    /// A body that ends with an error at once.
    pub(crate) fn failed(error: BodyError) -> Self {
        Self { inner: Inner::Failed(error) }
    }

    /// A body fed through a channel that holds at most `capacity` pieces.
    ///
    /// `length` is the exact number of bytes to come, where it is known: the reader sees a
    /// sender that stops short of it as cut off.
    #[must_use]
    pub fn channel(capacity: usize, length: Option<u64>) -> (BodySender, Self) {
        let (sender, frames) = mpsc::channel(capacity.max(1));
        let body = Self { inner: Inner::Channel { frames, left: length, finished: false } };
        (BodySender { frames: sender }, body)
    }

    /// The exact number of bytes still to come, where it is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        http_body::Body::size_hint(self).exact()
    }

    /// The bytes when all of them are here already; the body back otherwise.
    ///
    /// # Errors
    /// The body, unchanged, when it has to be waited for.
    pub fn try_into_bytes(self) -> Result<Bytes, Self> {
        match self.inner {
            Inner::Empty => Ok(Bytes::new()),
            Inner::Full(bytes) => Ok(bytes),
            inner @ (Inner::Channel { .. } | Inner::Failed(_) | Inner::Boxed(_)) => {
                Err(Self { inner })
            }
        }
    }

    /// The bytes when all of them are here already.
    pub(crate) fn peek(&self) -> Option<&[u8]> {
        match &self.inner {
            Inner::Empty => Some(&[]),
            Inner::Full(bytes) => Some(bytes),
            Inner::Channel { .. } | Inner::Failed(_) | Inner::Boxed(_) => None,
        }
    }

    /// Itself when nothing of it has to be waited for; as an error otherwise.
    pub(crate) fn ready(self) -> Result<Self, Self> {
        match self.inner {
            Inner::Empty | Inner::Full(_) | Inner::Failed(_) => Ok(self),
            Inner::Channel { .. } | Inner::Boxed(_) => Err(self),
        }
    }

    /// Reads all of it, at most `limit` bytes.
    ///
    /// # Errors
    /// When it is longer, at once where its length is known; when it is cut off or fails.
    pub async fn collect_up_to(self, limit: usize) -> Result<Bytes, BodyError> {
        let too_long = BodyError::TooLong { limit };
        if self.length().is_some_and(|length| (limit as u64) < length) {
            return Err(too_long);
        }
        let mut body = match self.try_into_bytes() {
            Ok(bytes) => return Ok(bytes),
            Err(body) => body,
        };
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if limit < first.len() + all.len() + data.len() {
                return Err(too_long);
            }
            if first.is_empty() && all.is_empty() {
                first = data;
            } else {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data);
            }
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.inner {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.inner = Inner::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Inner::Channel { frames, left, finished } => {
                let piece = ready!(frames.poll_recv(cx));
                Poll::Ready(next_piece(piece, left, finished).map(|r| r.map(Frame::data)))
            }
            Inner::Failed(error) => {
                let error = error.clone();
                self.inner = Inner::Empty;
                Poll::Ready(Some(Err(error)))
            }
            Inner::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Full(bytes) => bytes.is_empty(),
            Inner::Channel { finished, left, .. } => *finished || *left == Some(0),
            Inner::Failed(_) => false,
            Inner::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Channel { left, .. } => {
                left.map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            Inner::Failed(_) => SizeHint::default(),
            Inner::Boxed(body) => body.size_hint(),
        }
    }
}

/// What the reader of a channel sees: an empty piece is the sender's end mark.
fn next_piece(
    piece: Option<Result<Bytes, BodyError>>,
    left: &mut Option<u64>,
    finished: &mut bool,
) -> Option<Result<Bytes, BodyError>> {
    if *finished {
        return None;
    }
    let error = match piece {
        Some(Ok(bytes)) if bytes.is_empty() && left.is_none_or(|left| left == 0) => {
            *finished = true;
            return None;
        }
        Some(Ok(bytes)) if !bytes.is_empty() => {
            let length = bytes.len() as u64;
            match left.as_mut().map(|left| (left.checked_sub(length), left)) {
                None => return Some(Ok(bytes)),
                Some((Some(rest), left)) => {
                    *left = rest;
                    return Some(Ok(bytes));
                }
                Some((None, _)) => BodyError::Failed("longer than announced".into()),
            }
        }
        Some(Ok(_)) => BodyError::Aborted,
        Some(Err(error)) => error,
        // All announced bytes are here: nobody can tell whether the sender meant to go on.
        None if *left == Some(0) => {
            *finished = true;
            return None;
        }
        None => BodyError::Aborted,
    };
    *finished = true;
    Some(Err(error))
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { inner: if bytes.is_empty() { Inner::Empty } else { Inner::Full(bytes) } }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

/// The reader of a body is gone: what was to be sent is of no use to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the body any more")]
pub struct ReaderGone;

/// Feeds a [`Body::channel`]. Dropping it without [`finish`](Self::finish) cuts the body off.
#[derive(Debug)]
pub struct BodySender {
    frames: mpsc::Sender<Result<Bytes, BodyError>>,
}

impl BodySender {
    /// Hands `bytes` over, waiting for room.
    ///
    /// # Errors
    /// When the reader is gone.
    pub async fn send(&self, bytes: Bytes) -> Result<(), ReaderGone> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.frames.send(Ok(bytes)).await.map_err(|_| ReaderGone)
    }

    /// Ends the body.
    ///
    /// # Errors
    /// When the reader is gone.
    pub async fn finish(self) -> Result<(), ReaderGone> {
        self.frames.send(Ok(Bytes::new())).await.map_err(|_| ReaderGone)
    }

    /// Ends the body with an error, where there is room for it; else it ends as cut off.
    pub fn abort(self, error: BodyError) {
        // A full channel closes behind its last piece, which the reader sees as `Aborted`.
        let _ = self.frames.try_send(Err(error));
    }

    /// Waits until nobody reads the body any more.
    pub async fn reader_gone(&self) {
        self.frames.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sender_that_goes_without_a_word_cuts_the_body_off() {
        let (sender, body) = Body::channel(4, None);
        sender.send(Bytes::from_static(b"half")).await.unwrap();
        drop(sender);
        assert_eq!(body.collect_up_to(100).await, Err(BodyError::Aborted));
    }

    #[tokio::test]
    async fn a_finished_channel_gives_all_its_pieces() {
        let (sender, body) = Body::channel(4, Some(6));
        assert_eq!(body.length(), Some(6));
        sender.send(Bytes::from_static(b"abc")).await.unwrap();
        sender.send(Bytes::from_static(b"def")).await.unwrap();
        sender.finish().await.unwrap();
        assert_eq!(body.collect_up_to(6).await.unwrap(), "abcdef");
    }

    #[tokio::test]
    async fn fewer_bytes_than_announced_are_an_error() {
        let (sender, body) = Body::channel(4, Some(6));
        sender.send(Bytes::from_static(b"abc")).await.unwrap();
        sender.finish().await.unwrap();
        assert_eq!(body.collect_up_to(100).await, Err(BodyError::Aborted));
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        let limit = BodyError::TooLong { limit: 3 };
        assert_eq!(Body::from("four").collect_up_to(3).await, Err(limit.clone()));
        assert_eq!(Body::from("3 b").collect_up_to(3).await.unwrap(), "3 b");
        let (sender, body) = Body::channel(4, None);
        sender.send(Bytes::from_static(b"four")).await.unwrap();
        assert_eq!(body.collect_up_to(3).await, Err(limit));
    }

    #[test]
    fn the_length_is_known_where_the_producer_knows_it() {
        assert_eq!(Body::empty().length(), Some(0));
        assert_eq!(Body::from("abc").length(), Some(3));
        assert_eq!(Body::new(http_body_util::Full::new(Bytes::from("ab"))).length(), Some(2));
        assert_eq!(Body::channel(1, None).1.length(), None);
    }
}
