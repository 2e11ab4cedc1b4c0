//! The tasks of a connection: the hello, the reader, the writer, and the watch over silence.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::conn::{Batch, Conn, Delivery, Output};
use super::stats::Meters;
use super::{LinkHandler, LinkLimits};
use crate::wire::link::{
    Acceptor, Agreed, Assembler, CloseReason, ConnectionKind, Dialer, FrameType, HEADER_BYTES,
    HELLO_BYTES_MAX, LocalHello, MAGIC, Parsed, flag, parse, put_frame,
};

/// Bytes read in one system call.
const READ_BYTES: usize = 64 << 10;

/// Capacity that the write buffer keeps after a burst: `queue_data`, and what may be queued beside
/// it. Less, and a buffer that is filled by one body would shrink and grow with every write.
const WRITE_BYTES_KEPT: usize = 288 << 10;

/// How late a timer may fire before we take it that this process, not the peer, stood still.
const PAUSE: Duration = Duration::from_millis(250);

/// Why a hello failed, and whether the peer said so.
#[derive(Debug)]
pub(super) enum HelloFailure {
    /// We closed, for this reason.
    Ours(CloseReason),
    /// The peer closed, for this reason.
    Theirs(CloseReason),
}

/// Fills `buffer` until it begins with a frame; gives its type and payload.
async fn read_frame<R: AsyncRead + Unpin>(
    io: &mut R,
    buffer: &mut BytesMut,
) -> Result<(FrameType, Vec<u8>), HelloFailure> {
    loop {
        let parsed = parse(buffer).map_err(|_| HelloFailure::Ours(CloseReason::Garbage))?;
        if let Parsed::Frame { header, payload, taken } = parsed {
            let kind = FrameType::from_byte(header.kind);
            let payload = payload.to_vec();
            buffer.advance(taken);
            match kind {
                Some(FrameType::Close) => {
                    let reason = payload.first().copied().unwrap_or(0);
                    return Err(HelloFailure::Theirs(CloseReason::from_byte(reason)));
                }
                Some(kind) => return Ok((kind, payload)),
                None => return Err(HelloFailure::Ours(CloseReason::Garbage)),
            }
        }
        if looks_like_garbage(buffer) {
            return Err(HelloFailure::Ours(CloseReason::Garbage));
        }
        match io.read_buf(buffer).await {
            Ok(0) => return Err(HelloFailure::Theirs(CloseReason::PeerGone)),
            Ok(_) => {}
            Err(_) => return Err(HelloFailure::Theirs(CloseReason::Io)),
        }
    }
}

/// Whether what came so far cannot become a hello, a proof or a goodbye: no waiting for the
/// bytes that a stranger's first four announce.
fn looks_like_garbage(buffer: &BytesMut) -> bool {
    let handshake = |kind| matches!(kind, 1 | 2 | 5);
    let kind_is_wrong = buffer.first().is_some_and(|kind| !handshake(*kind));
    let cut = buffer.get(1).is_some_and(|flags| flags & flag::MORE != 0);
    let len = buffer.get(2..4).map_or(0, |len| usize::from(len[0]) << 8 | usize::from(len[1]));
    let body = buffer.get(HEADER_BYTES..).unwrap_or_default();
    let magic = body.len().min(MAGIC.len());
    let is_hello = buffer.first() == Some(&1);
    let magic_is_wrong = is_hello && body.get(..magic) != MAGIC.get(..magic);
    kind_is_wrong || cut || len > HELLO_BYTES_MAX || magic_is_wrong
}

async fn write_all<W: AsyncWrite + Unpin>(io: &mut W, bytes: &[u8]) -> Result<(), HelloFailure> {
    io.write_all(bytes).await.map_err(|_| HelloFailure::Theirs(CloseReason::Io))
}

/// The next frame, which must be of this type.
async fn expect_frame<R: AsyncRead + Unpin>(
    io: &mut R,
    buffer: &mut BytesMut,
    wanted: FrameType,
) -> Result<Vec<u8>, HelloFailure> {
    let (kind, payload) = read_frame(io, buffer).await?;
    if kind == wanted { Ok(payload) } else { Err(HelloFailure::Ours(CloseReason::Garbage)) }
}

/// Says hello as the one who connected. What was read beyond it stays in `buffer`.
pub(super) async fn hello_as_dialer<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    buffer: &mut BytesMut,
    local: LocalHello,
    kind: ConnectionKind,
    nonce: [u8; 32],
) -> Result<Agreed, HelloFailure> {
    let (mut dialer, first) = Dialer::start(local, kind, nonce);
    write_all(io, &first).await?;
    let hello = expect_frame(io, buffer, FrameType::Hello).await?;
    dialer.hello(&hello).map_err(HelloFailure::Ours)?;
    let proof = expect_frame(io, buffer, FrameType::Proof).await?;
    let (agreed, last) = dialer.proof(&proof).map_err(HelloFailure::Ours)?;
    write_all(io, &last).await?;
    Ok(agreed)
}

/// Says hello as the one who was connected to.
pub(super) async fn hello_as_acceptor<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    buffer: &mut BytesMut,
    local: LocalHello,
    nonce: [u8; 32],
) -> Result<Agreed, HelloFailure> {
    let mut acceptor = Acceptor::start(local, nonce);
    let hello = expect_frame(io, buffer, FrameType::Hello).await?;
    let answer = acceptor.hello(&hello).map_err(HelloFailure::Ours)?;
    write_all(io, &answer).await?;
    let proof = expect_frame(io, buffer, FrameType::Proof).await?;
    acceptor.proof(&proof).map_err(HelloFailure::Ours)
}

/// Tells the peer why its hello failed: only who spoke our protocol is answered.
pub(super) async fn say_close<W: AsyncWrite + Unpin>(io: &mut W, reason: CloseReason) {
    if reason != CloseReason::Garbage && reason != CloseReason::HelloTimeout {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, FrameType::Close, 0, 0, &[reason as u8]);
        // The peer may be gone; there is nobody left to tell.
        let _ = timeout(PAUSE, io.write_all(&bytes)).await;
    }
    let _ = timeout(PAUSE, io.shutdown()).await;
}

/// Reads until the connection ends; gives the reason.
pub(super) async fn read_loop<R: AsyncRead + Unpin>(
    conn: &Arc<Conn>,
    handler: &dyn LinkHandler,
    mut io: R,
    mut buffer: BytesMut,
) -> CloseReason {
    let mut assembler = Assembler::default();
    let mut batch = Batch::default();
    loop {
        let result = conn.receive(&mut buffer, &mut assembler, &mut batch);
        deliver(conn, handler, &mut batch);
        if let Err(reason) = result {
            return reason;
        }
        buffer.reserve(READ_BYTES);
        match io.read_buf(&mut buffer).await {
            Ok(0) => return CloseReason::PeerGone,
            Ok(_) => handler.heard(),
            Err(_) => return CloseReason::Io,
        }
    }
}

fn deliver(conn: &Conn, handler: &dyn LinkHandler, batch: &mut Batch) {
    for waker in batch.wakers.drain(..) {
        waker.wake();
    }
    for delivery in batch.deliveries.drain(..) {
        match delivery {
            Delivery::Opened(stream) => handler.opened(conn.peer, stream),
            Delivery::Call { kind, payload, reply } => {
                handler.call(conn.peer, kind, payload, reply);
            }
            Delivery::Notify { kind, payload } => handler.notify(conn.peer, kind, payload),
            // The caller may have given up meanwhile.
            Delivery::Answer { to, payload } => drop(to.send(payload)),
        }
    }
}

/// Writes until the connection is closed: everything that is queued at the end of a turn of the
/// event loop goes in one system call.
pub(super) async fn write_loop<W: AsyncWrite + Unpin>(
    conn: &Conn,
    meters: &Meters,
    limits: &LinkLimits,
    mut io: W,
) {
    let mut buffer = Vec::new();
    loop {
        poll_fn(|cx| if conn.has_output(cx.waker()) { Poll::Ready(()) } else { Poll::Pending })
            .await;
        // What all tasks that are ready now add is written with the rest.
        after_the_others().await;
        let (output, frames) = conn.take_output(&mut buffer);
        if let Output::Last(_) = output {
            let _ = timeout(conn.goodbye_time(), io.write_all(&buffer)).await;
            let _ = timeout(conn.goodbye_time(), io.shutdown()).await;
            return;
        }
        meters.frames_per_write.record(frames as f64);
        match write_out(conn, limits, &mut io, &buffer).await {
            Ok(writes) => conn.flushed(writes),
            Err(reason) => {
                conn.stop_writing();
                conn.close(reason);
                return;
            }
        }
        buffer.clear();
        buffer.shrink_to(WRITE_BYTES_KEPT);
    }
}

/// Waits for every task that is ready now to have had its turn.
///
/// Unlike `yield_now` of the runtime it does not wait for the sockets to be asked for more: that
/// is a system call for every single request where there is nothing to write together, and where
/// there is, the tasks that are ready are many.
async fn after_the_others() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Hands all bytes to the socket; gives the number of system calls.
async fn write_out<W: AsyncWrite + Unpin>(
    conn: &Conn,
    limits: &LinkLimits,
    io: &mut W,
    bytes: &[u8],
) -> Result<u64, CloseReason> {
    let mut rest = bytes;
    let mut writes = 0;
    while !rest.is_empty() {
        let write = tokio::select! {
            biased;
            write = io.write(rest) => write,
            () = stalled(conn, limits.stalled_after) => return Err(CloseReason::Stalled),
        };
        match write {
            Ok(0) | Err(_) => return Err(CloseReason::Io),
            Ok(n) => {
                conn.wrote(n);
                writes += 1;
                rest = rest.get(n..).unwrap_or_default();
            }
        }
    }
    Ok(writes)
}

/// Ends when a write has taken too long, or at once when the connection is closed meanwhile.
/// Only polled, and its timer only set, when the socket is full.
async fn stalled(conn: &Conn, after: Duration) {
    let deadline = Instant::now() + after;
    tokio::select! {
        biased;
        () = conn.gone.cancelled() => {}
        () = sleep_until(deadline) => {}
    }
}

/// Ends when the peer has not been heard for too long. Silence makes a ping; no answer to it,
/// nor anything else, means that the peer is gone.
pub(super) async fn watch_silence(conn: &Conn, limits: &LinkLimits) {
    // When a ping was sent, and how often something had been read by then.
    let mut pinged: Option<(Instant, u64)> = None;
    loop {
        let quiet = conn.quiet();
        let now = Instant::now();
        pinged = pinged.filter(|(_, reads)| *reads == quiet.reads);
        let patience = if quiet.awaited { limits.ping_after } else { limits.ping_idle };
        let due = match pinged {
            None => quiet.heard + patience,
            Some((at, _)) => at + limits.dead_after,
        };
        if now < due {
            // Looks again soon: a stream may have been opened, or an answer come.
            sleep_until(due.min(now + limits.ping_after)).await;
        } else if pinged.is_none() {
            conn.ping();
            pinged = Some((now, quiet.reads));
        } else if now > due + PAUSE {
            // It was this process that stood still: what came meanwhile is read first.
            pinged = Some((now, quiet.reads));
        } else {
            return;
        }
    }
}
