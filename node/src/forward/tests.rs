//! Requests that wait at a node: their order, their bounds, and how waiting ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use stead_shared::config::NodeOptions;
use stead_shared::id::{BootId, ClusterId, NodeId};
use stead_shared::member::Role;
use stead_shared::net::link::{
    CloseReason, LinkConfig, LinkHandler, LinkLimits, Links, PeerInfo, Reply, ServerStream,
};
use stead_shared::net::parking::NotSent;
use stead_shared::net::sock;
use stead_shared::park::Limits;
use stead_shared::refusal::Claim;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::node::Node;
use crate::session::Session;

const SOON: Duration = Duration::from_secs(20);

/// Fails the test instead of hanging it.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("happens soon")
}

/// The targets of the requests that were executed, in order.
type Log = Arc<Mutex<Vec<String>>>;

/// A node whose service writes down what it executes.
async fn start(name: &str, join: Option<&Handle>) -> (Node, Log) {
    let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let options = NodeOptions {
        name: Some(name.to_owned()),
        gossip: anywhere,
        http: anywhere,
        join: join.map(|seed| seed.gossip_addr().to_string()).into_iter().collect(),
        shards: 16,
        ..NodeOptions::default()
    };
    let log = Log::default();
    let service = {
        let log = Arc::clone(&log);
        move |_session: Session, request: Request<Body>| {
            let log = Arc::clone(&log);
            async move {
                log.lock().unwrap().push(request.uri().to_string());
                Response::new(Body::from(request.uri().to_string()))
            }
        }
    };
    let node = Node::builder().options(options).service(service).start().await.unwrap();
    soon(node.ready()).await.unwrap();
    (node, log)
}

fn key() -> SessionKey {
    SessionKey::new(b"k".to_vec()).unwrap()
}

/// Closes the gate of the session's shard as a move does, and gives its epoch.
async fn seal(owner: &Handle) -> (ShardId, Epoch) {
    let shard = owner.inner.params.shard_of(&key());
    let Some(Gate::Serving(epoch)) = owner.inner.host.gate(shard) else { panic!("not served") };
    owner.inner.host.seal(shard).await;
    (shard, epoch)
}

fn reopen(owner: &Handle, (shard, epoch): (ShardId, Epoch)) {
    assert!(owner.inner.host.reopen(shard, epoch.next(epoch.node)));
}

/// Waits until this many requests are parked at `node`.
async fn parked(node: &Handle, n: usize) {
    let waits = async {
        while node.inner.forwarding.parking.waiting() != n {
            tokio::task::yield_now().await;
        }
    };
    soon(waits).await;
}

type Answer = JoinHandle<Result<Response<Body>, Refusal>>;

fn ask(node: &Handle, target: &str) -> Answer {
    let node = node.clone();
    let request = Request::post(target).body(Body::empty()).unwrap();
    tokio::spawn(async move { node.request(key(), request).await })
}

/// Asks for `/0`, `/1` and so on, each once the one before waits.
async fn ask_in_turn(node: &Handle, n: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    for idx in 0..n {
        answers.push(ask(node, &format!("/{idx}")));
        parked(node, idx + 1).await;
    }
    answers
}

async fn check_answered(answers: Vec<Answer>) {
    for (idx, answer) in answers.into_iter().enumerate() {
        let answer = soon(answer).await.unwrap().unwrap();
        let text = soon(answer.into_body().collect_up_to(100)).await.unwrap();
        assert_eq!(text, format!("/{idx}"));
    }
}

fn in_order(n: usize) -> Vec<String> {
    (0..n).map(|idx| format!("/{idx}")).collect()
}

#[tokio::test]
async fn requests_of_a_moving_shard_wait_and_are_executed_in_order() {
    let (node, log) = start("a", None).await;
    let handle = node.handle();
    let sealed = seal(&handle).await;
    let mut answers = ask_in_turn(&handle, 20).await;
    reopen(&handle, sealed);
    // The gate is open, but others were here before.
    answers.push(ask(&handle, "/20"));
    check_answered(answers).await;
    assert_eq!(*log.lock().unwrap(), in_order(21));
    parked(&handle, 0).await;
}

#[tokio::test]
async fn so_do_those_of_a_shard_that_moves_elsewhere() {
    let (a, log_a) = start("a", None).await;
    let (b, log_b) = start("b", Some(&a.handle())).await;
    for node in [&a, &b] {
        soon(node.handle().settled(2)).await.unwrap();
    }
    let (owner, log, other) = match a.handle().owner_of(&key()) {
        Some((owner, _)) if owner == a.handle().inner.me => (a.handle(), log_a, b.handle()),
        _ => (b.handle(), log_b, a.handle()),
    };
    let sealed = seal(&owner).await;
    let answers = ask_in_turn(&other, 20).await;
    reopen(&owner, sealed);
    check_answered(answers).await;
    assert_eq!(*log.lock().unwrap(), in_order(20));
}

#[tokio::test]
async fn more_than_may_wait_are_turned_away() {
    let (node, log) = start("a", None).await;
    let handle = node.handle();
    let sealed = seal(&handle).await;
    let answers = ask_in_turn(&handle, 64).await;
    assert_eq!(soon(ask(&handle, "/65th")).await.unwrap().unwrap_err(), Refusal::Moving);
    check_turned_away(&handle).await;
    parked(&handle, 64).await;
    reopen(&handle, sealed);
    check_answered(answers).await;
    assert_eq!(*log.lock().unwrap(), in_order(64));
}

/// What a client of plain HTTP hears when there is no room.
async fn check_turned_away(node: &Handle) {
    let mut stream = soon(sock::connect(node.http_addr(), SOON)).await.unwrap();
    let request = b"POST /s/k HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    soon(stream.write_all(request)).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    for line in
        ["stead-refusal: moving", "retry-after: 1", "content-type: application/problem+json"]
    {
        assert!(head.lines().any(|found| found == line), "no {line} in {head}");
    }
    assert!(!head.contains("stead-outcome"), "{head}");
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&document["status"], &document["refusal"]), (&503.into(), &"moving".into()));
    assert_eq!(document["retry_after_ms"], 200);
}

#[tokio::test]
async fn waiting_for_a_move_ends_with_a_refusal() {
    let (node, log) = start("a", None).await;
    let handle = node.handle();
    seal(&handle).await;
    let begun = Instant::now();
    assert_eq!(soon(ask(&handle, "/late")).await.unwrap().unwrap_err(), Refusal::Moving);
    assert!(Limits::default().moving_max <= begun.elapsed());
    assert!(log.lock().unwrap().is_empty());
    parked(&handle, 0).await;
}

#[tokio::test]
async fn who_goes_away_holds_up_nobody() {
    let (node, log) = start("a", None).await;
    let handle = node.handle();
    let sealed = seal(&handle).await;
    let mut answers = ask_in_turn(&handle, 3).await;
    answers.remove(0).abort();
    parked(&handle, 2).await;
    reopen(&handle, sealed);
    for answer in answers {
        assert!(soon(answer).await.unwrap().is_ok());
    }
    assert_eq!(*log.lock().unwrap(), ["/1", "/2"]);
}

// ---- over the link -----------------------------------------------------------------------------

struct Silent;

impl LinkHandler for Silent {
    fn opened(&self, _peer: PeerInfo, _stream: ServerStream) {}
    fn call(&self, _peer: PeerInfo, _kind: u8, _payload: Bytes, _reply: Reply) {}
    fn notify(&self, _peer: PeerInfo, _kind: u8, _payload: Bytes) {}
    fn connected(&self, _link: Link) {}
    fn closed(&self, _peer: PeerInfo, _reason: CloseReason) {}
}

/// A router's link to `node`.
async fn router_to(node: &Handle) -> Link {
    let config = LinkConfig {
        me: NodeBoot { node: NodeId(1), boot: BootId(1) },
        role: Role::Router,
        cluster: ClusterId::of_name("stead"),
        keys: Vec::new(),
        limits: LinkLimits::default(),
    };
    soon(Links::new(config, Arc::new(Silent)).dial(node.gossip_addr())).await.unwrap()
}

/// Sends a request that names `epoch`.
fn send(link: &Link, node: &Handle, target: &str, epoch: Epoch) -> ClientStream {
    let meta =
        RequestMeta { epoch: Some(epoch), ..node.meta(key(), Ipv4Addr::LOCALHOST.into(), false) };
    let (parts, ()) = Request::post(target).body(()).unwrap().into_parts();
    link.open(encode_request(&meta, &parts).unwrap(), true).unwrap()
}

#[tokio::test]
async fn a_routed_request_that_is_here_before_its_shard_waits_for_it() {
    let (node, log) = start("a", None).await;
    let handle = node.handle();
    let (shard, epoch) = seal(&handle).await;
    handle.inner.host.drop_shard(shard);
    let link = router_to(&handle).await;
    let next = epoch.next(epoch.node);
    let mut early = send(&link, &handle, "/0", next);
    parked(&handle, 1).await;
    let second = ask(&handle, "/1");
    parked(&handle, 2).await;
    // One that has heard nothing new is told so at once, whoever waits.
    let refused = soon(send(&link, &handle, "/no", epoch).recv.next()).await;
    let Some(StreamEvent::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!(decode_refusal(&refusal), Ok(Refusal::NotOwner { claim: None }));

    handle.inner.host.activate_empty(shard, next);
    let answered = soon(early.recv.next()).await;
    assert!(matches!(answered, Some(StreamEvent::Head(_))), "{answered:?}");
    assert!(soon(second).await.unwrap().is_ok());
    assert_eq!(*log.lock().unwrap(), in_order(2));
}

#[tokio::test]
async fn who_is_sent_here_before_the_grant_waits_for_it_as_for_news() {
    let (node, log) = start("a", None).await;
    let handle = node.handle();
    let (shard, epoch) = seal(&handle).await;
    handle.inner.host.drop_shard(shard);
    let to_come = epoch.next(epoch.node);
    let place = |hint| handle.place(&handle.view(), shard, hint);
    // A node is ready a moment before its first claims are published.
    let waits = async {
        while handle.view().live_claim(shard).is_none() {
            tokio::task::yield_now().await;
        }
    };
    soon(waits).await;
    assert_eq!(place(None), Place::Here(epoch));
    assert_eq!(place(Some(epoch)), Place::Here(epoch));
    assert_eq!(place(Some(to_come)), Place::Nowhere);
    handle.inner.host.activate_empty(shard, to_come);
    assert_eq!(place(Some(to_come)), Place::Here(to_come));
    assert!(soon(ask(&handle, "/0")).await.unwrap().is_ok());
    assert_eq!(*log.lock().unwrap(), in_order(1));
}

/// Keeps counters by their names.
#[derive(Default)]
struct Counters(Mutex<HashMap<String, Arc<AtomicU64>>>);

impl Counters {
    fn named(&self, name: &str) -> Arc<AtomicU64> {
        Arc::clone(self.0.lock().unwrap().entry(name.to_owned()).or_default())
    }

    fn get(&self, name: &str) -> u64 {
        self.named(name).load(Ordering::Relaxed)
    }
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.named(key.name()))
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

async fn refused(mut stream: ClientStream) -> Refusal {
    let event = soon(stream.recv.next()).await;
    let Some(StreamEvent::Refused(refusal)) = event else { panic!("{event:?}") };
    decode_refusal(&refusal).unwrap()
}

#[tokio::test]
async fn who_knows_less_and_who_knows_more_is_counted() {
    let counters = Counters::default();
    let _here = metrics::set_default_local_recorder(&counters);
    let (node, _log) = start("a", None).await;
    let handle = node.handle();
    let shard = handle.inner.params.shard_of(&key());
    let Some(Gate::Serving(epoch)) = handle.inner.host.gate(shard) else { panic!("not served") };
    let link = router_to(&handle).await;
    let newer = epoch.next(NodeId(77));
    let refusal = refused(send(&link, &handle, "/newer", newer)).await;
    assert_eq!(refusal, Refusal::NotOwner { claim: None });
    assert_eq!(counters.get("stead_stale_epoch_refusals_total"), 1);
    assert_eq!(counters.get("stead_late_requests_total"), 0);

    handle.inner.host.seal(shard).await;
    handle.inner.server.granted.insert(shard, newer);
    let refusal = refused(send(&link, &handle, "/late", epoch)).await;
    assert_eq!(refusal, Refusal::NotOwner { claim: Some(Claim { epoch: newer }) });
    assert_eq!(counters.get("stead_stale_epoch_refusals_total"), 1);
    assert_eq!(counters.get("stead_late_requests_total"), 1);
}

#[tokio::test]
async fn an_overflow_says_when_to_come_again() {
    let answer = Problem::of_refusal(&refusal_of(NotSent::Full(Cause::NoOwner))).into_response();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()[RETRY_AFTER], "1");
}
