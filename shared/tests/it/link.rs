//! The link between two processes, both in this one.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use stead_shared::id::{BootId, ClusterId, NodeBoot, NodeId};
use stead_shared::member::Role;
use stead_shared::net::link::{
    CallError, ClientStream, CloseReason, ConnectionKind, DialError, Link, LinkConfig, LinkHandler,
    LinkLimits, LinkStats, Links, OpenError, PeerInfo, Reply, ResetCode, ServerStream, StreamEvent,
};
use stead_shared::net::sock;
use stead_shared::wire::link::{
    Dialer, FrameType, LocalHello, PAYLOAD_MAX, REPLAY_BYTES, StreamId, flag, put_frame,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);
const ANY_PORT: &str = "127.0.0.1:0";

/// Passes everything on to the test.
struct Tell {
    streams: mpsc::UnboundedSender<ServerStream>,
    notes: mpsc::UnboundedSender<(u8, Bytes)>,
    closed: mpsc::UnboundedSender<CloseReason>,
    unanswered: Mutex<Vec<Reply>>,
}

/// Calls of this kind are answered with their payload, others are dropped or kept.
const ECHO: u8 = 1;
const KEEP: u8 = 2;

impl LinkHandler for Tell {
    fn opened(&self, _: PeerInfo, stream: ServerStream) {
        let _ = self.streams.send(stream);
    }

    fn call(&self, _: PeerInfo, kind: u8, payload: Bytes, reply: Reply) {
        match kind {
            ECHO => reply.send(payload),
            KEEP => self.unanswered.lock().unwrap().push(reply),
            _ => drop(reply),
        }
    }

    fn notify(&self, _: PeerInfo, kind: u8, payload: Bytes) {
        let _ = self.notes.send((kind, payload));
    }

    fn connected(&self, _: Link) {}

    fn closed(&self, _: PeerInfo, reason: CloseReason) {
        let _ = self.closed.send(reason);
    }
}

/// A process with its links.
struct Process {
    links: Links,
    addr: SocketAddr,
    id: NodeId,
    streams: mpsc::UnboundedReceiver<ServerStream>,
    notes: mpsc::UnboundedReceiver<(u8, Bytes)>,
    closed: mpsc::UnboundedReceiver<CloseReason>,
}

fn config(name: &str) -> LinkConfig {
    LinkConfig {
        me: NodeBoot { node: NodeId::of_name(name), boot: BootId(1) },
        role: Role::Node,
        cluster: ClusterId::of_name("test"),
        keys: vec![[7; 32]],
        limits: LinkLimits::default(),
    }
}

impl Process {
    fn start(config: LinkConfig) -> Self {
        let (streams_in, streams) = mpsc::unbounded_channel();
        let (notes_in, notes) = mpsc::unbounded_channel();
        let (closed_in, closed) = mpsc::unbounded_channel();
        let tell = Tell {
            streams: streams_in,
            notes: notes_in,
            closed: closed_in,
            unanswered: Mutex::default(),
        };
        let id = config.me.node;
        let links = Links::new(config, Arc::new(tell));
        let listener = sock::tcp_listener(ANY_PORT.parse().unwrap(), "test").unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = links.clone();
        tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
        Self { links, addr, id, streams, notes, closed }
    }

    fn named(name: &str) -> Self {
        Self::start(config(name))
    }
}

/// Fails the test instead of hanging it.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(10 * SECOND, future).await.expect("happens soon")
}

/// Waits, turn by turn, until the counters are as wanted.
async fn until(links: &Links, wanted: impl Fn(LinkStats) -> bool) {
    let end = Instant::now() + 10 * SECOND;
    while !wanted(links.stats()) {
        assert!(Instant::now() < end, "still {:?}", links.stats());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_goes_there_and_its_answer_comes_back() {
    let (a, mut b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let mut request = link.open(Bytes::from_static(b"head"), false).unwrap();
    request.send.send_last(Bytes::from_static(b"body")).await.unwrap();

    let mut stream = soon(b.streams.recv()).await.unwrap();
    assert_eq!(&stream.head[..], b"head");
    assert_eq!(soon(stream.recv.next()).await, Some(StreamEvent::Data("body".into())));
    assert_eq!(soon(stream.recv.next()).await, Some(StreamEvent::End(None)));
    assert_eq!(soon(stream.recv.next()).await, None);
    stream.send.head_and_first("answer".into(), Some("text".into()), false).await.unwrap();
    stream.send.finish(Some("trailers".into())).unwrap();
    drop(stream);

    let mut events = Vec::new();
    while let Some(event) = soon(request.recv.next()).await {
        events.push(event);
    }
    let wanted = [
        StreamEvent::Head("answer".into()),
        StreamEvent::Data("text".into()),
        StreamEvent::End(Some("trailers".into())),
    ];
    assert_eq!(events, wanted);
    assert!(request.flushed());
    drop(request);
    until(&a.links, |stats| stats.streams == 0).await;
    until(&b.links, |stats| stats.streams == 0).await;
}

#[tokio::test]
async fn calls_are_answered_and_notes_arrive_in_order() {
    let (a, mut b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let long = Bytes::from(vec![5; 100_000]);
    assert_eq!(link.call(ECHO, long.clone(), 5 * SECOND).await, Ok(long.clone()));
    assert_eq!(link.call(9, long.clone(), 5 * SECOND).await, Err(CallError::Unanswered));
    for n in 0..50 {
        link.notify(n, long.slice(..usize::from(n) * 1000)).unwrap();
    }
    for n in 0..50 {
        let (kind, payload) = soon(b.notes.recv()).await.unwrap();
        assert_eq!((kind, payload.len()), (n, usize::from(n) * 1000));
    }
}

#[tokio::test]
async fn when_a_link_closes_everything_on_it_ends() {
    let (mut a, mut b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let mut request = link.open("head".into(), true).unwrap();
    let stream = soon(b.streams.recv()).await.unwrap();
    let call = link.call(KEEP, Bytes::new(), 60 * SECOND);
    let (answer, reason, ()) = tokio::join!(call, stream.send.cancelled(), b.links.close_all());
    assert_eq!(answer, Err(CallError::LinkClosed));
    assert_eq!(reason, ResetCode::LinkClosed);
    assert_eq!(soon(request.recv.next()).await, Some(StreamEvent::Reset(ResetCode::LinkClosed)));
    assert_eq!(soon(a.closed.recv()).await, Some(CloseReason::Shutdown));
    assert_eq!(soon(b.closed.recv()).await, Some(CloseReason::Shutdown));
    assert!(link.open("head".into(), true).is_err());
}

/// Notes whether the link was closed when it was woken.
struct Look {
    link: Link,
    found: Mutex<Vec<bool>>,
}

impl Wake for Look {
    fn wake(self: Arc<Self>) {
        self.found.lock().unwrap().push(self.link.is_closed());
    }
}

/// Who is woken by it looks for another way at once, and would try the same link again.
#[tokio::test]
async fn who_is_told_that_a_link_is_closed_does_not_find_it_open() {
    let (a, b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let mut request = link.open("head".into(), true).unwrap();
    let look = Arc::new(Look { link: link.clone(), found: Mutex::default() });
    let waker = Waker::from(Arc::clone(&look));
    let mut next = pin!(request.recv.next());
    assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    link.close(CloseReason::Replaced);
    assert_eq!(*look.found.lock().unwrap(), [true]);
    assert!(a.links.open_link(b.id).is_none());
}

#[tokio::test]
async fn what_was_said_before_a_shutdown_still_arrives() {
    let (a, mut b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    for n in 0..100 {
        link.notify(n, Bytes::from(vec![n; 10_000])).unwrap();
    }
    soon(a.links.close_all()).await;
    for n in 0..100 {
        assert_eq!(soon(b.notes.recv()).await.unwrap().0, n);
    }
    assert_eq!(soon(b.closed.recv()).await, Some(CloseReason::Shutdown));
    assert_eq!(soon(a.links.dial(b.addr)).await.unwrap_err(), DialError::Stopping);
}

/// A request whose head never left can be sent elsewhere: the peer must not see it after all.
#[tokio::test]
async fn a_head_that_was_not_flushed_is_never_seen() {
    let (a, mut b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    // Queued and closed within one turn: the writer had no chance.
    let mut request = link.open("head".into(), true).unwrap();
    link.close(CloseReason::Replaced);
    assert!(!request.flushed());
    assert_eq!(soon(request.recv.next()).await, Some(StreamEvent::Reset(ResetCode::LinkClosed)));
    assert_eq!(soon(b.closed.recv()).await, Some(CloseReason::Replaced));
    assert!(!request.flushed());
    assert!(b.streams.try_recv().is_err());
}

#[tokio::test]
async fn a_closed_port_is_refused_and_not_merely_unreachable() {
    let a = Process::named("a");
    let listener = sock::tcp_listener(ANY_PORT.parse().unwrap(), "test").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(soon(a.links.dial(addr)).await.unwrap_err(), DialError::Refused);
}

// ---- flow control ---------------------------------------------------------------------------

/// Streams that are read, beside the one that is not.
const RUNNING: usize = 100;

/// Reads an answer to its end; gives the number of body bytes.
async fn read_all(mut stream: ClientStream) -> usize {
    let mut bytes = 0;
    while let Some(event) = stream.recv.next().await {
        match event {
            StreamEvent::Data(data) => bytes += data.len(),
            StreamEvent::Reset(code) => panic!("reset: {code:?}"),
            _ => {}
        }
    }
    bytes
}

/// Answers every stream with `body_bytes` in pieces, each in a task of its own.
fn answer_all(mut streams: mpsc::UnboundedReceiver<ServerStream>, body_bytes: usize) {
    tokio::spawn(async move {
        while let Some(mut stream) = streams.recv().await {
            tokio::spawn(async move {
                let piece = Bytes::from(vec![1; 50_000.min(body_bytes)]);
                let mut left = body_bytes;
                let _ = stream.send.head(&"head".into(), false);
                while left > 0 {
                    let now = piece.slice(..left.min(piece.len()));
                    left -= now.len();
                    if stream.send.send(now).await.is_err() {
                        return;
                    }
                }
                let _ = stream.send.finish(None);
            });
        }
    });
}

/// One peer never reads one answer while a hundred others run: they all finish, and what is held
/// for the one is at most its window.
#[tokio::test]
async fn a_stream_that_is_never_read_holds_up_nobody() {
    let (a, b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    answer_all(b.streams, 2_000_000);
    let window = u64::from(LinkLimits::default().stream_window);

    let never_read = link.open("head".into(), true).unwrap();
    until(&a.links, |stats| stats.held_bytes == window).await;

    for _ in 0..3 {
        let open = || link.open("head".into(), true).unwrap();
        let running: Vec<_> = (0..RUNNING).map(|_| tokio::spawn(read_all(open()))).collect();
        for stream in running {
            assert_eq!(soon(stream).await.unwrap(), 2_000_000);
        }
        assert_eq!(a.links.stats().held_bytes, window, "held for the one that nobody reads");
    }

    drop(never_read);
    for links in [&a.links, &b.links] {
        until(links, |stats| stats.streams == 0 && stats.held_bytes == 0).await;
    }
}

/// The same when more streams are stuck than one might like: up to the connection's window, the
/// others still get all the credit that is not held.
#[tokio::test]
async fn many_stuck_streams_leave_the_rest_of_the_connection_usable() {
    let mut of_a = config("a");
    of_a.limits.connection_window = 4 << 20;
    let window = of_a.limits.stream_window;
    let (a, b) = (Process::start(of_a), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    answer_all(b.streams, 1_000_000);

    let stuck: Vec<_> = (0..15).map(|_| link.open("head".into(), true).unwrap()).collect();
    until(&a.links, |stats| stats.held_bytes == 15 * u64::from(window)).await;
    for _ in 0..20 {
        let stream = link.open("head".into(), true).unwrap();
        assert_eq!(soon(read_all(stream)).await, 1_000_000);
    }
    drop(stuck);
    until(&a.links, |stats| stats.held_bytes == 0 && stats.streams == 0).await;
}

/// Senders that fill the queue wait for the writer, which empties it meanwhile on another thread:
/// nobody waits for room that is there already. After the first 64 KiB no credit comes that would
/// wake them by chance, as half a window is not exceeded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_fill_the_queue_all_get_through() {
    const BODY: usize = 131_072;
    let mut of_a = config("a");
    of_a.limits.queue_data = 64 << 10;
    let (a, mut b) = (Process::start(of_a), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    tokio::spawn(async move {
        while let Some(mut stream) = b.streams.recv().await {
            tokio::spawn(async move {
                stream.send.accepted();
                let mut bytes = 0;
                while let Some(StreamEvent::Data(data)) = stream.recv.next().await {
                    bytes += data.len();
                }
                assert_eq!(bytes, BODY);
                stream.send.head(&"head".into(), true)
            });
        }
    });
    let body = Bytes::from(vec![1; BODY]);
    for _ in 0..200 {
        let upload = || {
            let (mut stream, body) = (link.open("head".into(), false).unwrap(), body.clone());
            tokio::spawn(async move {
                stream.send.send_last(body).await.unwrap();
                read_all(stream).await
            })
        };
        for upload in (0..8).map(|_| upload()).collect::<Vec<_>>() {
            assert_eq!(soon(upload).await.unwrap(), 0);
        }
    }
}

/// A request of any size is kept for replay until it is accepted: 64 KiB go, the rest waits.
#[tokio::test]
async fn sixty_four_kilobytes_of_a_body_go_before_it_is_accepted() {
    let (a, mut b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let body = Bytes::from((0..300_000u32).map(|n| n as u8).collect::<Vec<_>>());

    // The first node refuses, the second attempt replays from the first byte.
    let (mut send, mut recv) = link.open("head".into(), false).unwrap().split();
    let sending = tokio::spawn({
        let body = body.clone();
        async move { send.send_last(body).await }
    });
    let mut refuses = soon(b.streams.recv()).await.unwrap();
    let mut came = 0;
    while came < REPLAY_BYTES as usize {
        match soon(refuses.recv.next()).await {
            Some(StreamEvent::Data(data)) => came += data.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(came, REPLAY_BYTES as usize);
    assert!(refuses.recv.try_next().is_pending(), "no more credit, although all was read");
    let ServerStream { send: answer, recv: body_came, .. } = refuses;
    assert!(answer.refuse("moving".into()));
    drop(body_came);
    assert_eq!(soon(recv.next()).await, Some(StreamEvent::Refused("moving".into())));
    assert_eq!(soon(recv.next()).await, None);
    assert!(soon(sending).await.unwrap().is_err());
    drop(recv);

    let (mut send, recv) = link.open("head".into(), false).unwrap().split();
    let sending = tokio::spawn({
        let body = body.clone();
        async move { send.send_last(body).await }
    });
    let mut accepts = soon(b.streams.recv()).await.unwrap();
    accepts.send.accepted();
    let mut got = Vec::new();
    loop {
        match soon(accepts.recv.next()).await {
            Some(StreamEvent::Data(data)) => got.extend_from_slice(&data),
            Some(StreamEvent::End(None)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, body);
    assert!(soon(sending).await.unwrap().is_ok());
    drop((recv, accepts));
    until(&a.links, |stats| stats.streams == 0 && stats.held_bytes == 0).await;
    until(&b.links, |stats| stats.streams == 0 && stats.held_bytes == 0).await;
}

#[tokio::test]
async fn state_in_bulk_has_a_connection_of_its_own() {
    let (a, mut b) = (Process::named("a"), Process::named("b"));
    let main = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let bulk = soon(a.links.bulk(b.id, None, b.addr)).await.unwrap();
    assert_eq!(a.links.stats().connections, 2);
    let (mut send, _recv) = bulk.open("shard".into(), false).unwrap().split();
    let sending = tokio::spawn(async move { send.send_last(vec![3; 5_000_000].into()).await });
    let mut stream = soon(b.streams.recv()).await.unwrap();
    stream.send.accepted();
    let mut bytes = 0;
    while let Some(StreamEvent::Data(data)) = soon(stream.recv.next()).await {
        bytes += data.len();
    }
    assert_eq!(bytes, 5_000_000);
    assert!(soon(sending).await.unwrap().is_ok());
    assert!(main.stats().written_bytes < 1000);
}

// ---- cancellation ---------------------------------------------------------------------------

#[tokio::test]
async fn cancelling_frees_everything_at_both_ends() {
    let (a, mut b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let mut answering = Vec::new();
    for n in 0..200u32 {
        let request = link.open("head".into(), n % 2 == 0).unwrap();
        let mut stream = soon(b.streams.recv()).await.unwrap();
        match n % 4 {
            0 => {}
            1 => stream.send.accepted(),
            2 => stream.send.head(&"head".into(), false).unwrap(),
            _ => {
                let body = Some(Bytes::from(vec![0; 100_000]));
                stream.send.head_and_first("head".into(), body, false).await.unwrap();
            }
        }
        answering.push(stream);
        drop(request);
    }
    for stream in answering {
        assert_eq!(soon(stream.send.cancelled()).await, ResetCode::Cancelled);
    }
    for links in [&a.links, &b.links] {
        until(links, |s| s.streams == 0 && s.held_bytes == 0 && s.queued_bytes == 0).await;
    }
    assert!(!link.is_closed());
}

#[tokio::test]
async fn an_answer_that_is_dropped_resets_the_stream() {
    let (a, mut b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let mut request = link.open("head".into(), true).unwrap();
    drop(soon(b.streams.recv()).await.unwrap());
    assert_eq!(soon(request.recv.next()).await, Some(StreamEvent::Reset(ResetCode::Failed)));
    drop(request);
    // Answered in full while the request still had a body to send: the answer counts.
    let mut request = link.open("head".into(), false).unwrap();
    let mut stream = soon(b.streams.recv()).await.unwrap();
    stream.send.head_and_first("early".into(), None, true).await.unwrap();
    drop(stream);
    assert_eq!(soon(request.recv.next()).await, Some(StreamEvent::Head("early".into())));
    assert_eq!(soon(request.recv.next()).await, Some(StreamEvent::End(None)));
    until(&b.links, |stats| stats.streams == 0).await;
    assert!(soon(request.send.send(vec![0; 200_000].into())).await.is_err());
    drop(request);
    until(&a.links, |stats| stats.streams == 0).await;
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_forgotten() {
    let (a, b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let answer = link.call(KEEP, Bytes::new(), Duration::from_millis(20)).await;
    assert_eq!(answer, Err(CallError::Timeout));
    until(&a.links, |stats| stats.calls == 0).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let mut of_b = config("b");
    of_b.limits.streams_max = 3;
    let (a, mut b) = (Process::named("a"), Process::start(of_b));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    let open: Vec<_> = (0..3).map(|_| link.open("head".into(), true).unwrap()).collect();
    assert_eq!(link.open("head".into(), true).unwrap_err(), OpenError::TooMany);
    for _ in 0..3 {
        drop(soon(b.streams.recv()).await.unwrap());
    }
    drop(open);
    until(&a.links, |stats| stats.streams == 0).await;
    assert!(link.open("head".into(), true).is_ok());
}

// ---- strangers ------------------------------------------------------------------------------

/// What a raw connection gets to read before it is closed.
async fn talk(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = sock::connect(addr, SECOND).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut got = Vec::new();
    // A reset instead of an end is fine as well: what matters is that it is over.
    let _ = soon(socket.read_to_end(&mut got)).await;
    got
}

#[tokio::test]
async fn garbage_is_unanswered_and_counted() {
    let b = Process::named("b");
    let long = [1u8; 5000];
    let garbage: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 64],
        &long,
        b"\x01\x00\x00\x20\0\0\0\0not stead",
        &[16; 8],
    ];
    for (n, bytes) in garbage.into_iter().enumerate() {
        assert_eq!(talk(b.addr, bytes).await, b"", "{bytes:?}");
        assert_eq!(b.links.closed_total(CloseReason::Garbage), n as u64 + 1, "{bytes:?}");
    }
    assert_eq!(b.links.stats().connections, 0);
}

/// Connections that say nothing are few, and so are those of all kinds together.
#[tokio::test]
async fn connections_beyond_the_limits_are_dropped_and_counted() {
    let mut of_b = config("b");
    of_b.limits.handshakes_max = 2;
    let b = Process::start(of_b);
    let silent = [sock::connect(b.addr, SECOND).await, sock::connect(b.addr, SECOND).await];
    assert_eq!(talk(b.addr, b"").await, b"");
    assert_eq!(b.links.closed_total(CloseReason::TooMany), 1);
    drop(silent);

    let mut of_c = config("c");
    of_c.limits.connections_max = 1;
    let (a, c) = (Process::named("a"), Process::start(of_c));
    soon(a.links.dial(c.addr)).await.unwrap();
    until(&c.links, |stats| stats.connections == 1).await;
    assert_eq!(talk(c.addr, b"").await, b"");
    assert_eq!(c.links.closed_total(CloseReason::TooMany), 1);
    assert_eq!(soon(c.links.dial(b.addr)).await.unwrap_err(), DialError::TooMany);
}

#[tokio::test]
async fn a_wrong_cluster_and_a_wrong_key_are_told_and_counted() {
    let b = Process::named("b");
    let mut other_cluster = config("a");
    other_cluster.cluster = ClusterId::of_name("other");
    let mut other_key = config("a");
    other_key.keys = vec![[8; 32]];
    let mut no_key = config("a");
    no_key.keys = Vec::new();
    for (config, reason, count) in [
        (other_cluster, CloseReason::WrongCluster, 1),
        (other_key, CloseReason::WrongKey, 1),
        (no_key, CloseReason::WrongKey, 2),
    ] {
        let a = Process::start(config);
        let error = soon(a.links.dial(b.addr)).await.unwrap_err();
        assert_eq!(error, DialError::Rejected(reason));
        assert_eq!(b.links.closed_total(reason), count);
        assert_eq!(a.links.closed_total(reason), 1);
    }
    assert_eq!(b.links.stats().connections, 0);
}

#[tokio::test]
async fn a_key_that_is_rotated_out_is_still_accepted() {
    let mut rotated = config("a");
    rotated.keys = vec![[8; 32], [7; 32]];
    let (a, b) = (Process::start(rotated), Process::named("b"));
    assert!(soon(a.links.dial(b.addr)).await.is_ok());
    let (c, d) =
        (Process::named("c"), Process::start(LinkConfig { me: who("d", 1), ..rotated_config() }));
    assert!(soon(c.links.dial(d.addr)).await.is_ok());
}

fn rotated_config() -> LinkConfig {
    LinkConfig { keys: vec![[8; 32], [7; 32]], ..config("x") }
}

fn who(name: &str, boot: u64) -> NodeBoot {
    NodeBoot { node: NodeId::of_name(name), boot: BootId(boot) }
}

/// A member that breaks the protocol after its hello is cut off, with the reason counted.
#[tokio::test]
async fn a_member_that_breaks_the_rules_is_cut_off() {
    let b = Process::named("b");
    let beyond = {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, FrameType::Open, 0, StreamId::new(true, 0, 0).0, b"head");
        for _ in 0..5 {
            let data = vec![0; PAYLOAD_MAX];
            put_frame(&mut bytes, FrameType::Data, 0, StreamId::new(true, 0, 0).0, &data);
        }
        bytes
    };
    let frame = |kind, flags, stream, payload: &[u8]| {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, kind, flags, stream, payload);
        bytes
    };
    let mut broken = frame(FrameType::Data, flag::CHECKSUM, 1, b"state");
    *broken.last_mut().unwrap() ^= 1;
    let cases = [
        (beyond, CloseReason::FlowControl),
        (broken, CloseReason::Checksum),
        (frame(FrameType::Hello, 0, 0, b"again"), CloseReason::Protocol),
        // A stream number that only the acceptor may use.
        (frame(FrameType::Open, 0, StreamId::new(false, 0, 0).0, b""), CloseReason::Protocol),
        (frame(FrameType::Credit, 0, 0, &[0xff; 4]), CloseReason::FlowControl),
        (frame(FrameType::Call, 0, 1, b""), CloseReason::Protocol),
        (vec![20, 0, 0xff, 0xff, 0, 0, 0, 1], CloseReason::Protocol),
    ];
    for (bytes, reason) in cases {
        let before = b.links.closed_total(reason);
        let mut socket = member(b.addr).await;
        socket.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon(socket.read_to_end(&mut rest)).await;
        soon(async {
            while b.links.closed_total(reason) == before {
                tokio::task::yield_now().await;
            }
        })
        .await;
        until(&b.links, |stats| stats.connections == 0 && stats.streams == 0).await;
    }
}

/// A raw connection that has said hello as a member would.
async fn member(addr: SocketAddr) -> sock::TcpStream {
    let local = LocalHello {
        cluster: ClusterId::of_name("test"),
        who: who("raw", 1),
        role: Role::Node,
        keys: vec![[7; 32]],
        stream_window: 1 << 18,
        connection_window: 1 << 22,
        streams_max: 100,
    };
    let mut socket = sock::connect(addr, SECOND).await.unwrap();
    let (mut dialer, hello) = Dialer::start(local, ConnectionKind::Main, [9; 32]);
    socket.write_all(&hello).await.unwrap();
    let hello = frame_payload(&mut socket).await;
    dialer.hello(&hello).unwrap();
    let proof = frame_payload(&mut socket).await;
    let (_, proof) = dialer.proof(&proof).unwrap();
    socket.write_all(&proof).await.unwrap();
    socket
}

async fn frame_payload(socket: &mut sock::TcpStream) -> Vec<u8> {
    let mut header = [0; 8];
    soon(socket.read_exact(&mut header)).await.unwrap();
    let mut payload = vec![0; usize::from(u16::from_be_bytes([header[2], header[3]]))];
    soon(socket.read_exact(&mut payload)).await.unwrap();
    payload
}

// ---- silence, in virtual time ---------------------------------------------------------------

/// Two processes joined by a relay that can stop forwarding: their sockets stay open.
async fn joined_by_a_relay(a: &Process, b: &Process) -> (Link, CancellationToken) {
    let (at_a, relay_a) = tokio::io::duplex(1 << 20);
    let (relay_b, at_b) = tokio::io::duplex(1 << 20);
    let stop = CancellationToken::new();
    let (a_read, a_write) = tokio::io::split(relay_a);
    let (b_read, b_write) = tokio::io::split(relay_b);
    tokio::spawn(relay(a_read, b_write, stop.clone()));
    tokio::spawn(relay(b_read, a_write, stop.clone()));
    let addr = ANY_PORT.parse().unwrap();
    let dial = a.links.dial_over(at_a, addr, ConnectionKind::Main);
    let (link, accepted) = tokio::join!(dial, b.links.accept(at_b, addr));
    accepted.unwrap();
    (link.unwrap(), stop)
}

async fn relay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    stop: CancellationToken,
) {
    let mut buffer = [0; 4096];
    loop {
        let n = tokio::select! {
            biased;
            () = stop.cancelled() => std::future::pending().await,
            n = from.read(&mut buffer) => n.unwrap_or(0),
        };
        if n == 0 || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

/// The peer stops answering while its socket stays open. Somebody waits for it: noticed within
/// a second of silence and two of waiting for a pong.
#[tokio::test(start_paused = true)]
async fn a_half_open_peer_is_noticed_in_three_seconds_while_a_stream_is_open() {
    let (mut a, mut b) = (Process::named("a"), Process::named("b"));
    let (link, stop) = joined_by_a_relay(&a, &b).await;
    let mut request = link.open("head".into(), true).unwrap();
    let stream = b.streams.recv().await.unwrap();
    // Quiet, but alive: pings keep the link up for as long as it takes.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!link.is_closed());

    stop.cancel();
    let start = Instant::now();
    assert_eq!(request.recv.next().await, Some(StreamEvent::Reset(ResetCode::LinkClosed)));
    assert!(start.elapsed() <= Duration::from_millis(3050), "{:?}", start.elapsed());
    assert_eq!(a.closed.recv().await, Some(CloseReason::Silent));
    assert_eq!(stream.send.cancelled().await, ResetCode::LinkClosed);
    assert_eq!(b.closed.recv().await, Some(CloseReason::Silent));
    assert_eq!(a.links.closed_total(CloseReason::Silent), 1);
    assert_eq!((a.links.stats().connections, b.links.stats().connections), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_half_open_peer_is_noticed_even_when_nobody_waits_for_it() {
    let (mut a, b) = (Process::named("a"), Process::named("b"));
    let (_link, stop) = joined_by_a_relay(&a, &b).await;
    stop.cancel();
    let start = Instant::now();
    assert_eq!(a.closed.recv().await, Some(CloseReason::Silent));
    assert!(start.elapsed() <= Duration::from_millis(7100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_never_comes_is_given_up() {
    let b = Process::named("b");
    let (_silent, at_b) = tokio::io::duplex(1024);
    let start = Instant::now();
    let outcome = b.links.accept(at_b, ANY_PORT.parse().unwrap()).await;
    assert_eq!(outcome.unwrap_err(), CloseReason::HelloTimeout);
    assert!(start.elapsed() <= Duration::from_secs(3));
    assert_eq!(b.links.closed_total(CloseReason::HelloTimeout), 1);
}

/// The peer reads nothing of what we write, but still talks: not silent, yet of no use.
#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up_and_holds_a_bounded_queue() {
    let (mut a, b) = (Process::named("a"), Process::named("b"));
    let (link, stop) = joined_by_a_relay(&a, &b).await;
    stop.cancel();
    let note = Bytes::from(vec![0; 1 << 20]);
    let queued = (0..100).take_while(|_| link.notify(1, note.clone()).is_ok()).count();
    assert!((14..=16).contains(&queued), "{queued} MiB");
    // Behind what the writer is stuck with: it can be sent elsewhere.
    until(&a.links, |stats| stats.frames > 0).await;
    let mut behind = link.open("head".into(), true).unwrap();
    let head = Bytes::from(vec![0; 60_000]);
    let refused = (0..200).find_map(|_| link.open(head.clone(), true).err());
    assert_eq!(refused, Some(OpenError::Full));
    assert!(matches!(a.closed.recv().await, Some(CloseReason::Silent | CloseReason::Stalled)));
    assert_eq!(behind.recv.next().await, Some(StreamEvent::Reset(ResetCode::LinkClosed)));
    assert!(!behind.flushed());
    assert_eq!(a.links.stats(), LinkStats::default());
}

// ---- the pool -------------------------------------------------------------------------------

#[tokio::test]
async fn many_who_want_a_link_at_once_share_one() {
    let (a, b) = (Process::named("a"), Process::named("b"));
    let wanting: Vec<_> = (0..50)
        .map(|_| {
            let (links, id, addr) = (a.links.clone(), b.id, b.addr);
            tokio::spawn(async move { links.to(id, None, addr).await.map(|link| link.peer()) })
        })
        .collect();
    for one in wanting {
        assert_eq!(soon(one).await.unwrap().unwrap().node, b.id);
    }
    assert_eq!(a.links.stats().connections, 1);
    // The other direction uses it too, and a seed turns out to be the same process.
    until(&b.links, |stats| stats.connections == 1).await;
    soon(b.links.to(a.id, None, a.addr)).await.unwrap();
    soon(a.links.dial(b.addr)).await.unwrap();
    until(&a.links, |stats| stats.connections == 1).await;
    until(&b.links, |stats| stats.connections == 1).await;
}

#[tokio::test]
async fn simultaneous_dials_end_in_one_connection_that_both_prefer() {
    for _ in 0..20 {
        let (a, b) = (Process::named("a"), Process::named("b"));
        let (at_a, at_b) = soon(async {
            tokio::join!(a.links.to(b.id, None, b.addr), b.links.to(a.id, None, a.addr))
        })
        .await;
        at_a.unwrap();
        at_b.unwrap();
        until(&a.links, |stats| (1..=2).contains(&stats.connections)).await;
        let n = a.links.stats().connections;
        until(&b.links, |stats| stats.connections == n).await;
        let prefers_a = a.links.open_link(b.id).unwrap();
        let prefers_b = b.links.open_link(a.id).unwrap();
        if n == 2 {
            let dialled = |link: &Link, listener: SocketAddr| link.peer().addr == listener;
            assert_ne!(dialled(&prefers_a, b.addr), dialled(&prefers_b, a.addr));
        }
    }
}

#[tokio::test]
async fn somebody_else_at_the_address_is_named() {
    let (a, b) = (Process::named("a"), Process::named("b"));
    let wanted = NodeId::of_name("c");
    let error = soon(a.links.to(wanted, None, b.addr)).await.unwrap_err();
    assert_eq!(error, DialError::WrongPeer { found: who("b", 1) });
    let error = soon(a.links.to(b.id, Some(BootId(9)), b.addr)).await.unwrap_err();
    assert_eq!(error, DialError::WrongPeer { found: who("b", 1) });
    // What was found is a member all the same, and in the pool.
    assert_eq!(a.links.open_link(b.id).unwrap().peer().node_boot(), who("b", 1));
    // Another process of our own name, and we ourselves.
    let twin = Process::start(LinkConfig { me: who("a", 2), ..config("a") });
    let error = soon(a.links.dial(twin.addr)).await.unwrap_err();
    assert_eq!(error, DialError::WrongPeer { found: who("a", 2) });
    let error = soon(a.links.dial(a.addr)).await.unwrap_err();
    assert_eq!(error, DialError::WrongPeer { found: who("a", 1) });
}

#[tokio::test]
async fn a_newer_start_of_a_peer_replaces_its_links() {
    let (mut a, old) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(old.id, None, old.addr)).await.unwrap();
    let new = Process::start(LinkConfig { me: who("b", 2), ..config("b") });
    soon(a.links.to(new.id, Some(BootId(2)), new.addr)).await.unwrap();
    assert_eq!(soon(link.closed()).await, CloseReason::NewerBoot);
    assert_eq!(soon(a.closed.recv()).await, Some(CloseReason::NewerBoot));
    assert_eq!(a.links.open_link(old.id).unwrap().peer().boot, BootId(2));
    // The old one cannot come back, whoever dials, and learns why.
    let error = soon(a.links.dial(old.addr)).await.unwrap_err();
    assert_eq!(error, DialError::Rejected(CloseReason::NewerBoot));
    let link = soon(old.links.dial(a.addr)).await.unwrap();
    assert_eq!(soon(link.closed()).await, CloseReason::NewerBoot);
}

/// Everything that the tasks of one turn queue goes out together.
#[tokio::test]
async fn what_many_tasks_queue_in_one_turn_is_written_at_once() {
    let (a, b) = (Process::named("a"), Process::named("b"));
    let link = soon(a.links.to(b.id, None, b.addr)).await.unwrap();
    answer_all(b.streams, 100);
    for _ in 0..20 {
        let open = || {
            let link = link.clone();
            tokio::spawn(async move { read_all(link.open("head".into(), true).unwrap()).await })
        };
        let running: Vec<_> = (0..64).map(|_| open()).collect();
        for stream in running {
            assert_eq!(soon(stream).await.unwrap(), 100);
        }
    }
    let stats = link.stats();
    assert!(stats.frames >= 20 * 64, "{stats:?}");
    assert!(stats.frames >= 10 * stats.writes, "many frames per write: {stats:?}");
}
