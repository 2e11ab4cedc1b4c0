//! What a request costs on the link, and how many frames one system call carries.
//!
//! Two runtimes of one thread each: one opens streams as a router does, the other answers them
//! as a node does. Printed for each side: CPU time per request (user and system together, from
//! the scheduler) and frames per write.
//!
//! ```text
//! cargo run --release --example link_load -- [CONCURRENCY [SECONDS [BODY_BYTES]]]
//! ```
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use stead_shared::id::{
    BootId, ClusterId, Epoch, NodeBoot, NodeId, RequestId, SessionKey, ShardId,
};
use stead_shared::member::Role;
use stead_shared::net::link::{
    ClientStream, CloseReason, Link, LinkConfig, LinkHandler, LinkLimits, LinkStats, Links,
    PeerInfo, Reply, ServerStream, StreamEvent,
};
use stead_shared::net::sock;
use stead_shared::wire::http::{
    RequestMeta, ResponseMeta, decode_request, decode_response, encode_request, encode_response,
};
use tokio::sync::oneshot;

/// The number of a request whose answer has no end.
const STUCK: u64 = u64::MAX;

/// Answers every stream with a body of this size.
struct Answer {
    body: Bytes,
    /// The connection that was made; its counters outlive it.
    link: Mutex<Option<Link>>,
}

impl Answer {
    fn new(body_bytes: usize) -> Arc<Self> {
        Arc::new(Self { body: Bytes::from(vec![b'x'; body_bytes]), link: Mutex::new(None) })
    }

    fn stats(&self) -> LinkStats {
        let link = self.link.lock().expect("nobody panics with the lock");
        link.as_ref().map(Link::stats).unwrap_or_default()
    }
}

impl LinkHandler for Answer {
    fn opened(&self, _: PeerInfo, stream: ServerStream) {
        let body = self.body.clone();
        tokio::spawn(answer(stream, body));
    }

    fn call(&self, _: PeerInfo, _: u8, payload: Bytes, reply: Reply) {
        reply.send(payload);
    }

    fn notify(&self, _: PeerInfo, _: u8, _: Bytes) {}

    fn connected(&self, link: Link) {
        *self.link.lock().expect("nobody panics with the lock") = Some(link);
    }

    fn closed(&self, _: PeerInfo, _: CloseReason) {}
}

async fn answer(mut stream: ServerStream, body: Bytes) {
    let (meta, _request) = decode_request(stream.head).expect("our own head");
    let endless = meta.id.counter == STUCK;
    let response = http::Response::builder()
        .header("content-type", "application/json")
        .header("stead-node", "n1")
        .body(())
        .expect("a plain answer");
    let epoch = Epoch { counter: 1, node: NodeId(1) };
    let length = Some(body.len() as u64);
    let meta = ResponseMeta { shard: meta.shard, epoch, length, pressure: 0 };
    let head = encode_response(&meta, &response.into_parts().0).expect("a small head");
    // The client may have gone.
    let _ = stream.send.head_and_first(head, Some(body), !endless).await;
    while endless && stream.send.send(Bytes::from_static(&[b'x'; 16_000])).await.is_ok() {}
}

fn request_head(counter: u64) -> Bytes {
    let request = http::Request::get("/sessions/alice/counters/visits")
        .header("host", "localhost:8080")
        .header("user-agent", "load")
        .header("accept", "*/*")
        .header("x-forwarded-for", "127.0.0.1")
        .header("x-forwarded-proto", "http")
        .body(())
        .expect("a plain request");
    let meta = RequestMeta {
        shard: ShardId(1),
        epoch: Some(Epoch { counter: 1, node: NodeId(1) }),
        key: SessionKey::new(Bytes::from_static(b"alice")).expect("a short key"),
        id: RequestId { boot: BootId(1), counter },
        attempt: 1,
        first_sent_ms: 1,
        deadline_ms: 30_000,
        client: [127, 0, 0, 1].into(),
        upgrade: false,
    };
    encode_request(&meta, &request.into_parts().0).expect("a small head")
}

/// Opens a stream whose answer never ends and is never read.
fn stuck_request(link: &Link) -> ClientStream {
    link.open(request_head(STUCK), true).expect("the link is open")
}

async fn one_request(link: &Link, counter: u64) -> usize {
    let mut stream = link.open(request_head(counter), true).expect("the link is open");
    let mut bytes = 0;
    while let Some(event) = stream.recv.next().await {
        match event {
            StreamEvent::Head(head) => {
                let _head = decode_response(head).expect("a head");
            }
            StreamEvent::Data(data) => bytes += data.len(),
            StreamEvent::End(_) | StreamEvent::Accepted => {}
            StreamEvent::Refused(_) | StreamEvent::Reset(_) => return 0,
        }
    }
    bytes
}

fn config(name: &str) -> LinkConfig {
    LinkConfig {
        me: NodeBoot { node: NodeId::of_name(name), boot: BootId(1) },
        role: Role::Node,
        cluster: ClusterId::of_name("load"),
        keys: Vec::new(),
        limits: LinkLimits::default(),
    }
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn report(side: &str, requests: u64, cpu: Duration, stats: LinkStats) {
    println!(
        "{side:8} {:7.2} µs CPU/request   {:6.1} frames/write   {:8.2} requests/write",
        cpu.as_secs_f64() * 1e6 / requests as f64,
        stats.frames as f64 / stats.writes as f64,
        requests as f64 / stats.writes as f64,
    );
}

/// What a run measured, at both ends.
struct Outcome {
    requests: u64,
    held_bytes: u64,
    client: (Duration, LinkStats),
    server: (Duration, LinkStats),
}

/// Requests by so many tasks at a time, for so long; with one more whose answer nobody reads.
fn run(concurrency: u64, time: Duration, body: usize, with_stuck: bool) -> Outcome {
    let (tell_addr, addr) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = std::thread::spawn(move || {
        runtime().block_on(async move {
            let handler = Answer::new(body);
            let links = Links::new(config("server"), handler.clone());
            let listener = sock::tcp_listener(([127, 0, 0, 1], 0).into(), "load").expect("a port");
            let _ = tell_addr.send(listener.local_addr().expect("bound"));
            let before = cpu_time();
            links.serve(listener, async { drop(stopped.await) }).await;
            (cpu_time() - before, handler.stats())
        })
    });
    let requests = Arc::new(AtomicU64::new(0));
    let (held_bytes, client) = runtime().block_on(async {
        let addr = addr.await.expect("the server runs");
        let links = Links::new(config("client"), Answer::new(0));
        let link = links.dial(addr).await.expect("the server listens");
        let stuck = with_stuck.then(|| stuck_request(&link));
        let done = Arc::new(AtomicBool::new(false));
        let before = cpu_time();
        let clients: Vec<_> = (0..concurrency)
            .map(|_| {
                tokio::spawn(client(link.clone(), Arc::clone(&requests), Arc::clone(&done), body))
            })
            .collect();
        tokio::time::sleep(time).await;
        let held_bytes = link.stats().held_bytes;
        done.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.expect("no client fails");
        }
        drop(stuck);
        assert!(link.stats().streams == 0, "every stream is gone");
        (held_bytes, (cpu_time() - before, link.stats()))
    });
    let _ = stop.send(());
    let server = server.join().expect("the server ends well");
    Outcome { requests: requests.load(Ordering::Relaxed), held_bytes, client, server }
}

/// One request after the other.
async fn client(link: Link, requests: Arc<AtomicU64>, done: Arc<AtomicBool>, body: usize) {
    while !done.load(Ordering::Relaxed) {
        let counter = requests.fetch_add(1, Ordering::Relaxed);
        assert_eq!(one_request(&link, counter).await, body, "a whole answer");
    }
}

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let concurrency = args.next().unwrap_or(100);
    let time = Duration::from_secs(args.next().unwrap_or(2));
    let body = args.next().unwrap_or(100) as usize;

    let mut rates = Vec::new();
    for with_stuck in [false, true] {
        let outcome = run(concurrency, time, body, with_stuck);
        let rate = outcome.requests as f64 / time.as_secs_f64();
        println!(
            "{concurrency} requests at a time{}, answers of {body} bytes: {rate:.0}/s, \
             {} bytes held unread at the end",
            if with_stuck { " beside one answer that nobody reads" } else { "" },
            outcome.held_bytes,
        );
        report("client", outcome.requests, outcome.client.0, outcome.client.1);
        report("server", outcome.requests, outcome.server.0, outcome.server.1);
        rates.push(rate);
    }
    println!("with / without the one that nobody reads: {:.3}", rates[1] / rates[0]);
}
