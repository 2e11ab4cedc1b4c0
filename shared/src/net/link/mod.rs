//! The link: framed connections between members, shared by everything two members say to each
//! other. The protocol itself is pure, in [`crate::wire::link`]; here are sockets and tasks.
//!
//! A [`Links`] holds all connections of a process, at most a few per peer: one for requests and
//! control, and one for bulk state, opened when first asked for. Either side may have dialled;
//! a connection serves both directions.
//!
//! Each connection has two tasks. The **reader** takes everything that one read brings, puts it
//! where its users wait, and calls the [`LinkHandler`]. The **writer** sleeps until a frame is
//! queued, waits for the end of the event loop's turn, and writes everything that was queued
//! meanwhile with one system call. There is no timer on that way, and no task per stream.
//!
//! # What it promises
//! - Frames of one connection arrive in the order in which they were queued.
//! - A stream that nobody reads holds at most its window; the connection's other streams go on.
//! - When a connection ends every stream ends with a [`ResetCode::LinkClosed`] and every call
//!   fails; nothing waits for ever. A peer that has gone silent is noticed within
//!   [`LinkLimits::ping_after`] + [`LinkLimits::dead_after`] while anybody waits for it.
//! - A head that was not [flushed](SendHalf::flushed) was not seen by the peer.

mod conn;
mod io;
mod peer;
mod pool;
mod slots;
mod socket;
mod state;
mod stats;
mod stream;

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::id::{BootId, ClusterId, NodeBoot, NodeId};
use crate::member::Role;
pub use crate::wire::link::{CloseReason, ConnectionKind, ResetCode};
use crate::wire::link::{KEYS_MAX, LocalHello, MESSAGE_MAX, REPLAY_BYTES};

use conn::Conn;
pub use pool::Links;
pub use slots::StreamEvent;
pub use socket::LinkSocket;
pub use stats::LinkStats;
pub use stream::{ClientStream, RecvHalf, SendHalf, ServerSend, ServerStream};

/// Limits of the link. The defaults suit a cluster in one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// Body bytes a stream may hold unread. At 256 KiB and 1 ms of round trip 250 MB/s.
    pub stream_window: u32,
    /// Body bytes all streams of a connection may hold unread: 128 streams that are never read
    /// before the others have to wait.
    pub connection_window: u32,
    /// Streams that a peer may have open.
    pub streams_max: u32,
    /// Calls without an answer, each way.
    pub calls_max: u32,
    /// Bytes of a head or of trailers.
    pub head_max: usize,
    /// Bytes of a call, a note or a reply.
    pub message_max: usize,
    /// Queued bytes beyond which senders of bodies wait.
    pub queue_data: usize,
    /// Queued bytes beyond which new streams, calls and notes are refused.
    pub queue_max: usize,
    /// Queued bytes beyond which the connection is given up.
    pub queue_hard: usize,
    /// Connections of all kinds.
    pub connections_max: usize,
    /// Connections that have not said hello.
    pub handshakes_max: usize,
    /// How long a connect may take.
    pub connect_timeout: Duration,
    /// How long a hello may take.
    pub hello_timeout: Duration,
    /// Silence after which a ping is sent while somebody waits for the peer.
    pub ping_after: Duration,
    /// The same while nobody does.
    pub ping_idle: Duration,
    /// Silence after a ping that means the peer is gone.
    pub dead_after: Duration,
    /// How long the peer may take nothing of what we write.
    pub stalled_after: Duration,
    /// How long the last words may take.
    pub goodbye: Duration,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            stream_window: 256 << 10,
            connection_window: 32 << 20,
            streams_max: 32_768,
            calls_max: 1024,
            head_max: 64 << 10,
            message_max: MESSAGE_MAX - 1,
            queue_data: 256 << 10,
            queue_max: 16 << 20,
            queue_hard: 64 << 20,
            connections_max: 4096,
            handshakes_max: 64,
            connect_timeout: Duration::from_secs(1),
            hello_timeout: Duration::from_secs(2),
            ping_after: Duration::from_secs(1),
            ping_idle: Duration::from_secs(5),
            dead_after: Duration::from_secs(2),
            stalled_after: Duration::from_secs(10),
            goodbye: Duration::from_millis(500),
        }
    }
}

/// What a process says on every link, and its limits.
#[derive(Clone)]
pub struct LinkConfig {
    /// This process.
    pub me: NodeBoot,
    /// What it is.
    pub role: Role,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Link keys that are accepted, the primary one first, at most [`KEYS_MAX`]. None: peers
    /// prove nothing, and only peers without a key are met.
    pub keys: Vec<[u8; 32]>,
    /// Limits.
    pub limits: LinkLimits,
}

impl fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkConfig")
            .field("me", &self.me)
            .field("role", &self.role)
            .field("cluster", &self.cluster)
            .field("keys", &self.keys.len())
            .field("limits", &self.limits)
            .finish()
    }
}

impl LinkConfig {
    fn hello(&self) -> LocalHello {
        LocalHello {
            cluster: self.cluster,
            who: self.me,
            role: self.role,
            keys: self.keys.iter().copied().take(KEYS_MAX).collect(),
            stream_window: self.limits.stream_window.max(REPLAY_BYTES),
            connection_window: self.limits.connection_window.max(REPLAY_BYTES),
            streams_max: self.limits.streams_max,
        }
    }
}

/// The process at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its node.
    pub node: NodeId,
    /// The start of it that answered.
    pub boot: BootId,
    /// What it is.
    pub role: Role,
    /// The protocol version both speak.
    pub protocol: u8,
    /// Where it was dialled, or from where it dialled.
    pub addr: SocketAddr,
}

impl PeerInfo {
    /// Node and boot.
    #[must_use]
    pub fn node_boot(&self) -> NodeBoot {
        NodeBoot { node: self.node, boot: self.boot }
    }
}

/// What comes from peers. The callbacks run on the connection's reader, in the order in which
/// things arrived: they must not block, only pass on.
pub trait LinkHandler: Send + Sync + 'static {
    /// Bytes of a peer that has proved who it is were read; what they say is told next.
    fn heard(&self) {}
    /// A peer opened a stream. Drop it to reset it.
    fn opened(&self, peer: PeerInfo, stream: ServerStream);
    /// A peer asks; answer by `reply`, now or later. Dropped, the peer learns that there is no
    /// answer.
    fn call(&self, peer: PeerInfo, kind: u8, payload: Bytes, reply: Reply);
    /// A peer says something.
    fn notify(&self, peer: PeerInfo, kind: u8, payload: Bytes);
    /// A connection for requests and control is open; bulk connections are not told.
    fn connected(&self, link: Link);
    /// Such a connection ended. There may be another one to the same peer.
    fn closed(&self, peer: PeerInfo, reason: CloseReason);
}

/// Why a message was not queued. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFull {
    /// The connection ended.
    #[error("the link is closed: {0}")]
    Closed(CloseReason),
    /// Too much waits to be sent, or too many calls for an answer. A retry may help.
    #[error("too much is waiting on the link")]
    Full,
    /// Longer than [`LinkLimits::message_max`].
    #[error("the message is too long for the link")]
    TooLong,
}

/// Why a stream was not opened. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The connection ended.
    #[error("the link is closed: {0}")]
    Closed(CloseReason),
    /// Too much waits to be sent. A retry may help.
    #[error("too much is waiting on the link")]
    Full,
    /// The peer takes no more streams. A retry may help.
    #[error("too many streams are open on the link")]
    TooMany,
    /// Longer than [`LinkLimits::head_max`].
    #[error("the head is too long for the link")]
    HeadTooLong,
}

impl From<QueueFull> for OpenError {
    fn from(error: QueueFull) -> Self {
        match error {
            QueueFull::Closed(reason) => Self::Closed(reason),
            QueueFull::Full => Self::Full,
            QueueFull::TooLong => Self::HeadTooLong,
        }
    }
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was not sent.
    #[error(transparent)]
    NotSent(QueueFull),
    /// The connection ended before the answer came: the peer may have acted on it.
    #[error("the link closed before the answer came")]
    LinkClosed,
    /// No answer in time: the peer may have acted on it, or may yet.
    #[error("no answer in time")]
    Timeout,
    /// The peer has no answer: too busy, or it knows no such call.
    #[error("the peer has no answer")]
    Unanswered,
}

/// The stream cannot be sent on any more; the other half says what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream ended: {0:?}")]
pub struct SendError(pub ResetCode);

/// Why there is no link to a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nothing listens there: proof that the process is gone.
    #[error("connection refused")]
    Refused,
    /// Nobody answered in time, at the connect or at the hello.
    #[error("no answer in time")]
    Timeout,
    /// One side did not want the other.
    #[error("the hello failed: {0}")]
    Rejected(CloseReason),
    /// The network said no in another way.
    #[error("cannot connect: {0}")]
    Io(String),
    /// Somebody else answered. It is this process itself, or another of its name, when
    /// `found.node` is its own; else the link to `found` is open and in the pool.
    #[error("{found:?} answered")]
    WrongPeer {
        /// Who did.
        found: NodeBoot,
    },
    /// This process closes its links.
    #[error("shutting down")]
    Stopping,
    /// Too many connections are open.
    #[error("too many connections")]
    TooMany,
}

/// One open connection. Cheap to clone; closing is shared.
#[derive(Clone, Debug)]
pub struct Link {
    conn: Arc<Conn>,
}

impl Link {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> PeerInfo {
        self.conn.peer
    }

    /// What the connection is for.
    #[must_use]
    pub fn kind(&self) -> ConnectionKind {
        self.conn.kind
    }

    /// Says something. It is lost when the connection ends before it arrives.
    ///
    /// # Errors
    /// It was not queued.
    pub fn notify(&self, kind: u8, payload: Bytes) -> Result<(), QueueFull> {
        self.conn.notify(kind, &payload)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// There is no answer. Except after [`CallError::NotSent`] the peer may have acted.
    pub async fn call(
        &self,
        kind: u8,
        payload: Bytes,
        after: Duration,
    ) -> Result<Bytes, CallError> {
        let (id, answer) = self.conn.call(kind, &payload)?;
        let forget = Forget { conn: &self.conn, id };
        let answer = timeout(after, answer).await;
        drop(forget);
        match answer {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(CallError::Unanswered),
            Ok(Err(_)) => Err(CallError::LinkClosed),
            Err(_) => Err(CallError::Timeout),
        }
    }

    /// Opens a stream with its encoded head; `fin` when the request has no body.
    ///
    /// # Errors
    /// Nothing was sent.
    pub fn open(&self, head: Bytes, fin: bool) -> Result<ClientStream, OpenError> {
        let (key, id, head_end) = self.conn.open(&head, fin)?;
        Ok(ClientStream::new(Arc::clone(&self.conn), key, id, head_end))
    }

    /// Waits until everything that was queued before was handed to the socket, or the connection
    /// ended.
    pub async fn flush(&self) {
        let place = self.conn.queued();
        poll_fn(|cx| match self.conn.is_flushed(place, cx.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.conn.gone.is_cancelled()
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> CloseReason {
        self.conn.gone.cancelled().await;
        self.conn.closed().unwrap_or(CloseReason::Shutdown)
    }

    /// Ends the connection. Open streams are reset; what was queued and not yet handed to the
    /// socket is dropped, see [`flush`](Self::flush).
    pub fn close(&self, reason: CloseReason) {
        self.conn.close(reason);
    }

    /// Counters of this connection.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        self.conn.stats()
    }
}

/// Forgets a call that nobody waits for any more.
struct Forget<'a> {
    conn: &'a Conn,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.conn.forget_call(self.id);
    }
}

/// The way to answer a call.
#[derive(Debug)]
pub struct Reply {
    conn: Option<Arc<Conn>>,
    id: u32,
}

impl Reply {
    fn new(conn: Arc<Conn>, id: u32) -> Self {
        Self { conn: Some(conn), id }
    }

    /// Answers. Lost when the connection has ended.
    pub fn send(mut self, payload: Bytes) {
        if let Some(conn) = self.conn.take() {
            conn.reply(self.id, Some(&payload));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            conn.reply(self.id, None);
        }
    }
}
