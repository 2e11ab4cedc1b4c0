//! The body of an answer on its way to the client.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use stead_shared::net::link::{RecvHalf, StreamEvent};
use stead_shared::wire::http::decode_trailers;

use crate::client::ClientState;
use crate::metrics::Metrics;
use stead_shared::border::headers::is_passed_as_trailer;

/// The node's side of an answer broke before its end; the client's connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer broke off")]
pub(crate) struct BrokenOff;

/// A body for the client.
#[derive(Debug)]
pub(crate) struct OutBody {
    kind: Kind,
    /// Told when a piece waits for the client and when the answer is over.
    client: Option<Arc<ClientState>>,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Stream(Box<Streaming>),
}

#[derive(Debug)]
struct Streaming {
    recv: RecvHalf,
    /// What came with the head.
    ahead: [Option<StreamEvent>; 2],
    /// What is to come, when the node said how much.
    left: Option<u64>,
    takes_trailers: bool,
    metrics: Arc<Metrics>,
}

impl OutBody {
    pub(crate) fn empty() -> Self {
        Self { kind: Kind::Empty, client: None }
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        let kind = if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) };
        Self { kind, client: None }
    }

    /// What comes on a link's stream: `ahead` came already.
    pub(crate) fn stream(
        recv: RecvHalf,
        ahead: [Option<StreamEvent>; 2],
        length: Option<u64>,
        takes_trailers: bool,
        metrics: Arc<Metrics>,
    ) -> Self {
        let streaming = Streaming { recv, ahead, left: length, takes_trailers, metrics };
        Self { kind: Kind::Stream(Box::new(streaming)), client: None }
    }

    /// The same body, watched: see [`ClientState`].
    pub(crate) fn watched_by(mut self, client: Arc<ClientState>) -> Self {
        client.waits_for_client();
        self.client = Some(client);
        self
    }
}

impl Streaming {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let event = match self.ahead.iter_mut().find_map(Option::take) {
            Some(event) => Some(event),
            None => ready!(self.recv.poll_next(cx)),
        };
        Poll::Ready(match event {
            Some(StreamEvent::Data(bytes)) => Some(self.piece(bytes)),
            Some(StreamEvent::End(trailers)) if self.left.is_none_or(|left| left == 0) => {
                self.left = Some(0);
                trailers.filter(|_| self.takes_trailers).and_then(trailers_frame).map(Ok)
            }
            Some(
                StreamEvent::End(_)
                | StreamEvent::Reset(_)
                | StreamEvent::Refused(_)
                | StreamEvent::Accepted
                | StreamEvent::Head(_),
            )
            | None => Some(Err(self.broken_off())),
        })
    }

    fn piece(&mut self, bytes: Bytes) -> Result<Frame<Bytes>, BrokenOff> {
        if let Some(left) = &mut self.left {
            // More than was promised would be read as the next answer.
            match left.checked_sub(bytes.len() as u64) {
                Some(rest) => *left = rest,
                None => return Err(self.broken_off()),
            }
        }
        Ok(Frame::data(bytes))
    }

    fn broken_off(&self) -> BrokenOff {
        self.metrics.aborted.increment(1);
        BrokenOff
    }
}

fn trailers_frame(encoded: Bytes) -> Option<Frame<Bytes>> {
    let mut trailers = decode_trailers(encoded).ok()?;
    let doomed: Vec<_> =
        trailers.keys().filter(|name| !is_passed_as_trailer(name)).cloned().collect();
    for name in doomed {
        trailers.remove(name);
    }
    (!trailers.is_empty()).then(|| Frame::trailers(trailers))
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = &mut *self;
        let polled = match std::mem::replace(&mut this.kind, Kind::Empty) {
            Kind::Empty => return Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Kind::Stream(mut streaming) => {
                let polled = streaming.poll(cx);
                if !matches!(polled, Poll::Ready(None | Some(Err(_)))) {
                    this.kind = Kind::Stream(streaming);
                }
                polled
            }
        };
        if let Some(client) = &this.client {
            match &polled {
                Poll::Pending => client.waits_for_node(),
                Poll::Ready(_) => client.waits_for_client(),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(streaming) => match streaming.left {
                Some(left) => SizeHint::with_exact(left),
                None => SizeHint::default(),
            },
        }
    }
}

impl Drop for OutBody {
    fn drop(&mut self) {
        if let Some(client) = &self.client {
            client.answered();
        }
    }
}
