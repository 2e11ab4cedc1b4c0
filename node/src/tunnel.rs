//! Upgraded streams on their way over a link: the bytes of both sides, as they are.

use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use stead_shared::border::websocket::{CLOSE_SERVICE_RESTART, Frames};
use stead_shared::net::link::{RecvHalf, SendError, SendHalf, ServerSend, StreamEvent};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes taken from the near side in one go: a frame of the link.
const READ_BYTES: usize = 16 * 1024;
/// How long one side may go on after the other has said everything.
const GOODBYE: Duration = Duration::from_secs(5);

/// The way out of this process, whichever side opened the stream.
pub(crate) trait Outlet: Send {
    /// Sends a piece; waits for credit.
    fn send(&mut self, data: Bytes) -> impl Future<Output = Result<(), SendError>> + Send;
    /// Says that nothing more comes.
    fn finish(&mut self) -> Result<(), SendError>;
}

impl Outlet for ServerSend {
    fn send(&mut self, data: Bytes) -> impl Future<Output = Result<(), SendError>> + Send {
        Self::send(self, data)
    }

    fn finish(&mut self) -> Result<(), SendError> {
        Self::finish(self, None)
    }
}

impl Outlet for SendHalf {
    fn send(&mut self, data: Bytes) -> impl Future<Output = Result<(), SendError>> + Send {
        Self::send(self, data)
    }

    fn finish(&mut self) -> Result<(), SendError> {
        Self::finish(self, None)
    }
}

/// Carries bytes between the near side and a link's stream until both have ended, or one of them
/// has and the other takes too long over it.
///
/// `frames` follows a WebSocket on its way to the near side, which is told to come back when the
/// stream breaks between two of them.
pub(crate) async fn run(
    near: impl AsyncRead + AsyncWrite + Send,
    recv: RecvHalf,
    send: impl Outlet,
    frames: Option<Frames>,
) {
    let (reader, writer) = tokio::io::split(near);
    let mut inward = std::pin::pin!(inward(recv, writer, frames));
    let mut outward = std::pin::pin!(outward(reader, send));
    // What is still open when the time is over is cut by dropping it.
    tokio::select! {
        biased;
        () = &mut inward => drop(tokio::time::timeout(GOODBYE, outward).await),
        () = &mut outward => drop(tokio::time::timeout(GOODBYE, inward).await),
    }
}

async fn inward(mut recv: RecvHalf, mut near: impl AsyncWrite + Unpin, mut frames: Option<Frames>) {
    let broke = loop {
        match recv.next().await {
            Some(StreamEvent::Data(data)) => {
                if let Some(frames) = &mut frames {
                    frames.feed(&data);
                }
                if near.write_all(&data).await.is_err() || near.flush().await.is_err() {
                    return;
                }
            }
            Some(StreamEvent::End(_)) => break false,
            Some(StreamEvent::Reset(_)) | None => break true,
            Some(StreamEvent::Accepted | StreamEvent::Refused(_) | StreamEvent::Head(_)) => {}
        }
    };
    if broke && frames.is_some_and(|frames| frames.may_close()) {
        // A near side that is gone needs no goodbye.
        let _ = near.write_all(&CLOSE_SERVICE_RESTART).await;
    }
    // The near side learns by it that nothing more comes.
    let _ = near.shutdown().await;
}

async fn outward(mut near: impl AsyncRead + Unpin, mut send: impl Outlet) {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        buffer.reserve(READ_BYTES);
        match near.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {
                if send.send(buffer.split().freeze()).await.is_err() {
                    return;
                }
            }
        }
    }
    // An error means that the peer gave up first.
    let _ = send.finish();
}
