//! Upgraded connections: after `101` the bytes of both sides go through as they are.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use stead_shared::net::link::{RecvHalf, ResetCode, SendHalf, StreamEvent};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_util::sync::CancellationToken;

use crate::client::ClientState;
use crate::metrics::Metrics;
use stead_shared::border::websocket::{CLOSE_SERVICE_RESTART, Frames};

/// Bytes taken from a client in one go; a frame of the link.
const READ_BYTES: usize = 16 * 1024;

/// How long the node's side may go on after the client's has ended, and the last words take.
const GOODBYE: Duration = Duration::from_secs(5);

/// The two ends of a tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) client: OnUpgrade,
    /// Keeps the client's place among those that may be connected.
    pub(crate) state: Arc<ClientState>,
    pub(crate) send: SendHalf,
    pub(crate) recv: RecvHalf,
    pub(crate) is_websocket: bool,
    pub(crate) metrics: Arc<Metrics>,
}

/// Whether this protocol is WebSocket.
pub(crate) fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
}

type Io = TokioIo<Upgraded>;

impl Tunnel {
    /// Carries bytes both ways until one side ends or the proxy stops.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let Ok(client) = self.client.await else { return };
        self.metrics.upgraded.increment(1.0);
        let (reader, mut writer) = tokio::io::split(TokioIo::new(client));
        let mut frames = self.is_websocket.then(Frames::new);
        let up = to_node(reader, self.send);
        let down = to_client(self.recv, &mut writer, frames.as_mut());
        let ended = both(up, down, &stopping).await;
        let may_close = frames.is_some_and(|frames| frames.may_close());
        let goodbye = async {
            if ended == Ended::Broken && may_close {
                let _gone = writer.write_all(&CLOSE_SERVICE_RESTART).await;
            }
            let _gone = writer.shutdown().await;
        };
        let _late = tokio::time::timeout(GOODBYE, goodbye).await;
        self.metrics.upgraded.decrement(1.0);
        drop(self.state);
    }
}

/// How the node's side ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It said everything.
    Said,
    /// It broke, or this proxy stops.
    Broken,
    /// The client is gone.
    Client,
}

async fn both(
    up: impl Future<Output = Result<(), ClientGone>>,
    down: impl Future<Output = Ended>,
    stopping: &CancellationToken,
) -> Ended {
    let mut down = std::pin::pin!(down);
    let mut up = std::pin::pin!(up);
    let up = tokio::select! {
        biased;
        ended = &mut down => return ended,
        () = stopping.cancelled() => return Ended::Broken,
        up = &mut up => up,
    };
    if up == Err(ClientGone) {
        return Ended::Client;
    }
    // One side said everything; what the node has to say to that may still come.
    tokio::time::timeout(GOODBYE, down).await.unwrap_or(Ended::Client)
}

/// The client's connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ClientGone;

/// Until the client has said everything, or the node takes no more.
async fn to_node(mut client: ReadHalf<Io>, mut send: SendHalf) -> Result<(), ClientGone> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        // What was sent is still referred to until it is on the wire; then the room is reused.
        buffer.reserve(READ_BYTES);
        match client.read_buf(&mut buffer).await {
            Ok(0) => {
                // When the node takes no more, its own side says why.
                let _ended = send.finish(None);
                return Ok(());
            }
            Ok(_) => {
                if send.send(buffer.split().freeze()).await.is_err() {
                    return Ok(());
                }
            }
            Err(_) => {
                send.reset(ResetCode::Cancelled);
                return Err(ClientGone);
            }
        }
    }
}

async fn to_client(
    mut recv: RecvHalf,
    client: &mut WriteHalf<Io>,
    mut frames: Option<&mut Frames>,
) -> Ended {
    loop {
        match recv.next().await {
            Some(StreamEvent::Data(bytes)) => {
                if let Some(frames) = &mut frames {
                    frames.feed(&bytes);
                }
                if write(client, bytes).await.is_err() {
                    return Ended::Client;
                }
            }
            Some(StreamEvent::End(_)) => return Ended::Said,
            Some(
                StreamEvent::Reset(_)
                | StreamEvent::Accepted
                | StreamEvent::Refused(_)
                | StreamEvent::Head(_),
            )
            | None => return Ended::Broken,
        }
    }
}

async fn write(client: &mut WriteHalf<Io>, bytes: Bytes) -> std::io::Result<()> {
    client.write_all(&bytes).await?;
    client.flush().await
}
