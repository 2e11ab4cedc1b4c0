//! The link between two processes, both in this one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use stead_shared::id::{BootId, ClusterId, NodeBoot, NodeId};
use stead_shared::member::Role;
use stead_shared::net::link::{
    CallError, CloseReason, DialError, Link, LinkConfig, LinkHandler, LinkLimits, LinkStats, Links,
    PeerInfo, Reply, ResetCode, ServerStream, StreamEvent,
};
use stead_shared::net::sock;
use tokio::sync::mpsc;
use tokio::time::timeout;

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
    soon(async {
        while !wanted(links.stats()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
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

#[tokio::test]
async fn a_closed_port_is_refused_and_not_merely_unreachable() {
    let a = Process::named("a");
    let listener = sock::tcp_listener(ANY_PORT.parse().unwrap(), "test").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(soon(a.links.dial(addr)).await.unwrap_err(), DialError::Refused);
}
