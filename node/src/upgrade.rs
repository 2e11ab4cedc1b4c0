//! Connections that stop being HTTP: what carries the bytes after a `101`.
//!
//! Whoever takes the request in (the link server, the HTTP listener) puts an [`Upgrade`] into
//! its extensions. The service answers `101` and spawns a task that waits for the
//! [`Upgraded`] stream, which comes once the answer's head has left.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

type Waiting = Pin<Box<dyn Future<Output = io::Result<Upgraded>> + Send>>;

/// The promise of a raw stream, in the extensions of a request that asks for an upgrade.
///
/// Clones share the one stream: the first that waits for it gets it.
#[derive(Clone)]
pub struct Upgrade {
    waiting: Arc<Mutex<Option<Waiting>>>,
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").finish_non_exhaustive()
    }
}

impl Upgrade {
    /// A stream that `stream` gives once the `101` has left.
    pub fn new(stream: impl Future<Output = io::Result<Upgraded>> + Send + 'static) -> Self {
        Self { waiting: Arc::new(Mutex::new(Some(Box::pin(stream)))) }
    }

    /// A promise and the one who keeps it.
    #[must_use]
    pub fn pair() -> (UpgradeSender, Self) {
        let (sender, receiver) = oneshot::channel();
        let stream = async move { receiver.await.map_err(|_| not_upgraded())? };
        (UpgradeSender { sender }, Self::new(stream))
    }

    /// The upgrade of a request that hyper received.
    #[must_use]
    pub fn from_hyper(upgrade: hyper::upgrade::OnUpgrade) -> Self {
        Self::new(async move {
            let stream = upgrade.await.map_err(io::Error::other)?;
            Ok(Upgraded::new(hyper_util::rt::TokioIo::new(stream)))
        })
    }

    /// The upgrade that came with `request`, if it asks for one.
    pub fn of<B>(request: &Request<B>) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Waits until the `101` has left, and gives the raw stream.
    ///
    /// # Errors
    /// When the connection ended first, the answer was not a `101`, or another clone has the
    /// stream.
    pub async fn stream(self) -> io::Result<Upgraded> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        match waiting {
            Some(stream) => stream.await,
            None => Err(io::Error::other("the upgraded stream was taken already")),
        }
    }
}

fn not_upgraded() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was not upgraded")
}

/// Keeps the promise of [`Upgrade::pair`]. Dropping it breaks the promise.
#[derive(Debug)]
pub struct UpgradeSender {
    sender: oneshot::Sender<io::Result<Upgraded>>,
}

impl UpgradeSender {
    /// Gives the stream to the service. It is dropped when nobody waits for it.
    pub fn send(self, stream: Upgraded) {
        // A service that does not want it any more has closed the connection by that.
        drop(self.sender.send(Ok(stream)));
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The raw bytes of an upgraded connection, both ways.
pub struct Upgraded {
    stream: Box<dyn Stream>,
}

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgraded").finish_non_exhaustive()
    }
}

impl Upgraded {
    /// Any stream.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream) }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
