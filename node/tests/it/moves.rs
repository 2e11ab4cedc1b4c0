//! Seal, export, install: a shard that moves takes everything with it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use stead_node::{
    Body, Gate, Host, HostConfig, OUTCOME, RecordError, Service, Session, TurnError, Why,
};
use stead_shared::id::{Epoch, NodeId};
use stead_shared::refusal::Refusal;
use tokio::sync::Semaphore;

use crate::common::{
    EPOCH, SHARD, ask, hand_over, host, host_with, key, meta, post, say, settle, start, text,
};

const NEXT: Epoch = Epoch { counter: 2, node: NodeId(0xb) };

/// Counts, and waits inside the turn where the body says so.
#[derive(Clone)]
struct Counting {
    gate: Arc<Semaphore>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Counting {
    fn new() -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), log: Arc::default() }
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl Service for Counting {
    async fn call(&self, session: Session, request: Request<Body>) -> Response<Body> {
        let body = request.into_body().collect_up_to(100).await.unwrap();
        let n = session.add("n", 1).unwrap();
        match &body[..] {
            b"wait" => self.gate.acquire().await.unwrap().forget(),
            b"tick" => drop(session.every(Duration::from_secs(1), "tick").unwrap()),
            b"ttl" => session.expire_in(Duration::from_secs(60)).unwrap(),
            _ => {}
        }
        Response::new(n.to_string().into())
    }

    async fn activated(&self, session: &Session) {
        self.log.lock().unwrap().push(format!("+{}", text_of(session)));
    }

    async fn deactivating(&self, session: &Session, why: Why) {
        self.log.lock().unwrap().push(format!("-{} {why:?}", text_of(session)));
        // Refused where the session cannot go on anywhere.
        let _ = session.put_bytes(b"was deactivated");
    }

    async fn timer(&self, session: Session, event: Bytes) {
        let n = session.add("ticks", 1).unwrap();
        let event = String::from_utf8(event.to_vec()).unwrap();
        self.log.lock().unwrap().push(format!("{event} {n}"));
    }
}

fn text_of(session: &Session) -> String {
    String::from_utf8(session.key().as_bytes().to_vec()).unwrap()
}

fn two_hosts() -> (Counting, Host, Host) {
    let service = Counting::new();
    let (from, to) = (host(service.clone()), host(service.clone()));
    to.drop_shard(SHARD);
    (service, from, to)
}

#[tokio::test]
async fn the_gate_closes_at_once_and_the_seal_ends_with_the_last_turn() {
    let service = Counting::new();
    let host = host(service.clone());
    let running = start(&host, "s", "wait");
    let waiting = start(&host, "s", "");
    settle().await;
    let sealed = host.seal(SHARD);
    // Nothing was polled yet.
    assert_eq!(host.gate(SHARD), Some(Gate::Sealed(EPOCH)));
    let sealed = tokio::spawn(sealed);
    settle().await;
    assert!(!sealed.is_finished());
    assert_eq!(waiting.await.unwrap().unwrap_err(), Refusal::Moving);
    assert_eq!(ask(&host, "s", "").await.unwrap_err(), Refusal::Moving);
    assert_eq!(ask(&host, "other", "").await.unwrap_err(), Refusal::Moving);
    service.gate.add_permits(1);
    let (meta, response) = running.await.unwrap().unwrap();
    assert_eq!((meta.epoch, text(response).await), (EPOCH, "1".into()));
    sealed.await.unwrap();
}

#[tokio::test]
async fn a_turn_that_was_granted_looks_at_the_gate_again_before_it_begins() {
    let service = Counting::new();
    let host = host(service.clone());
    let running = start(&host, "s", "wait");
    settle().await;
    let mut granted = Box::pin(host.serve(meta("s"), post("")));
    assert!((&mut granted).now_or_never().is_none());
    service.gate.add_permits(1);
    let (_, response) = running.await.unwrap().unwrap();
    assert_eq!(text(response).await, "1");
    // The next in line has its turn by now, but did not run since.
    assert_eq!(host.shard_stats(SHARD).unwrap().running, 1);
    let sealed = host.seal(SHARD);
    assert_eq!(granted.await.unwrap_err(), Refusal::Moving);
    sealed.await;
    let (from, to) = (host, Host::new(HostConfig::default(), shared(service)));
    hand_over(&from, &to, NEXT).await;
    assert_eq!(say(&to, "s", "").await, "2");
}

fn shared(service: impl Service) -> stead_node::SharedService {
    stead_node::SharedService::new(service)
}

#[tokio::test]
async fn a_shard_that_is_reopened_goes_on_where_it_was() {
    let service = Counting::new();
    let host = host(service.clone());
    say(&host, "s", "").await;
    host.seal(SHARD).await;
    let own = Epoch { counter: 2, node: EPOCH.node };
    assert!(host.reopen(SHARD, own));
    assert_eq!(host.gate(SHARD), Some(Gate::Serving(own)));
    assert_eq!(say(&host, "s", "").await, "2");
    assert_eq!(service.log(), ["+s", "-s Moving", "+s"]);
}

#[tokio::test]
async fn reopening_ends_a_seal_that_waits() {
    let service = Counting::new();
    let host = host(service.clone());
    let running = start(&host, "s", "wait");
    settle().await;
    let sealed = tokio::spawn(host.seal(SHARD));
    settle().await;
    assert!(host.reopen(SHARD, EPOCH.next(EPOCH.node)));
    sealed.await.unwrap();
    service.gate.add_permits(1);
    let (meta, _) = running.await.unwrap().unwrap();
    assert_eq!(meta.epoch, EPOCH.next(EPOCH.node));
    assert_eq!(service.log(), ["+s"]);
}

#[tokio::test(start_paused = true)]
async fn a_move_keeps_values_counters_times_to_live_timers_and_versions() {
    let (service, from, to) = two_hosts();
    let time = tokio::spawn({
        let to = to.clone();
        async move { to.keep_time().await }
    });
    say(&from, "timed", "tick").await;
    say(&from, "short", "ttl").await;
    say(&from, "plain", "").await;
    let version = async |host: &Host| {
        let handle = host.session(SHARD, key("plain")).unwrap();
        let read = handle.turn(|s| Ok((s.version()?, s.value_version()?)), |_| ()).await;
        read.unwrap()
    };
    tokio::time::advance(Duration::from_millis(400)).await;
    hand_over(&from, &to, NEXT).await;
    assert!(from.gate(SHARD).is_none());
    assert_eq!(to.stats().sessions, 3);
    assert_eq!(from.stats().sessions, 0);
    assert_eq!(from.stats().bytes, 0);
    let (last, value) = version(&to).await;
    assert_eq!(last.unwrap().epoch, EPOCH);
    assert_eq!(last, value, "the deactivation changed the value last");
    service.log();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(service.log(), ["+timed", "tick 1"]);
    assert_eq!(say(&to, "plain", "").await, "2");
    let (next, value) = version(&to).await;
    assert_eq!(next.unwrap().epoch, NEXT);
    assert!(value < next, "a counter is not the value");
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert_eq!(to.stats().sessions, 2);
    time.abort();
}

#[tokio::test]
async fn the_service_says_goodbye_before_a_move_and_its_last_changes_go_along() {
    let (service, from, to) = two_hosts();
    say(&from, "s", "").await;
    hand_over(&from, &to, NEXT).await;
    assert_eq!(service.log(), ["+s", "-s Moving"]);
    let handle = to.session(SHARD, key("s")).unwrap();
    let value = handle.turn(|session| session.bytes(), |_| ()).await.unwrap();
    assert_eq!(value.unwrap(), "was deactivated");
    assert_eq!(say(&to, "s", "").await, "2");
    assert_eq!(service.log(), ["+s"]);
}

#[tokio::test]
async fn a_turn_whose_shard_is_lost_meanwhile_commits_nothing() {
    let service = Counting::new();
    let host = host(service.clone());
    say(&host, "s", "").await;
    let running = start(&host, "s", "wait");
    let waiting = start(&host, "s", "");
    settle().await;
    assert_eq!(host.drop_shard(SHARD), 1);
    assert_eq!(waiting.await.unwrap().unwrap_err(), Refusal::NotOwner { claim: None });
    // It comes back before the turn has ended: still another shard.
    host.activate_empty(SHARD, NEXT);
    service.gate.add_permits(1);
    let (_, response) = running.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(response.headers()[OUTCOME], "unknown");
    assert_eq!(host.stats().sessions, 0);
    assert_eq!(host.stats().bytes, 0);
    settle().await;
    assert_eq!(service.log(), ["+s", "-s Lost"]);
    assert_eq!(say(&host, "s", "").await, "1");
}

#[tokio::test]
async fn those_attached_are_told_when_their_session_goes() {
    let host = host(Counting::new());
    let attach = |name: &str| host.session(SHARD, key(name)).unwrap().attach().unwrap();
    say(&host, "s", "").await;
    let mut other = attach("other");
    let mut attached = attach("s");
    let handle = host.session(SHARD, key("s")).unwrap();
    handle.turn(|session| session.delete(), |()| ()).await.unwrap();
    assert_eq!(attached.gone().await, Why::Deleted);
    let mut again = attach("s");
    drop(attached);
    host.seal(SHARD).await;
    assert_eq!(again.gone().await, Why::Moving);
    assert_eq!(other.gone().await, Why::Moving);
    assert_eq!(handle.attach().unwrap_err(), Refusal::Moving);
    let refused = handle.turn(|session| session.add("n", 1), |_| ()).await;
    assert_eq!(refused, Err(TurnError::Refused(Refusal::Moving)));
}

#[tokio::test]
async fn a_shard_that_does_not_arrive_whole_is_forgotten() {
    let (_, from, to) = two_hosts();
    for session in ["a", "b", "c"] {
        say(&from, session, "").await;
    }
    let mut incoming = to.incoming(SHARD);
    for record in from.export(SHARD).unwrap().take(3) {
        incoming.add(&record).unwrap();
    }
    assert_eq!(incoming.sessions(), 2);
    assert_eq!(to.stats().sessions, 2);
    assert_eq!(ask(&to, "a", "").await.unwrap_err(), Refusal::NotOwner { claim: None });
    drop(incoming);
    assert_eq!(to.stats().sessions, 0);
    assert_eq!(to.stats().bytes, 0);
    assert_eq!(say(&from, "a", "").await, "2");
}

#[tokio::test]
async fn a_record_that_came_twice_counts_once() {
    let (_, from, to) = two_hosts();
    say(&from, "a", "").await;
    let records: Vec<_> = from.export(SHARD).unwrap().collect();
    to.install(SHARD, NEXT, records.iter().chain(&records)).unwrap();
    assert_eq!(to.stats().sessions, 1);
    assert_eq!(to.stats().bytes, from.stats().bytes);
    assert_eq!(say(&to, "a", "").await, "2");
}

#[tokio::test]
async fn a_shard_that_does_not_fit_into_memory_is_not_taken() {
    let service = Counting::new();
    let from = host(service.clone());
    for session in ["a", "b", "c"] {
        say(&from, session, "").await;
    }
    let to = host_with(HostConfig { memory_max: 700, ..HostConfig::default() }, service);
    to.drop_shard(SHARD);
    let refused = to.install(SHARD, NEXT, from.export(SHARD).unwrap());
    assert_eq!(refused, Err(RecordError::MemoryFull));
    assert_eq!(to.stats().bytes, 0);
    assert_eq!(to.install(SHARD, NEXT, [b"no record"]), Err(RecordError::Format(b'n')));
    assert!(to.gate(SHARD).is_none());
}

#[tokio::test]
async fn sequence_numbers_go_on_after_a_move() {
    let (_, from, to) = two_hosts();
    for _ in 0..5 {
        say(&from, "s", "").await;
    }
    hand_over(&from, &to, NEXT).await;
    say(&to, "t", "").await;
    let read = |session: &Session| session.version();
    let s = to.session(SHARD, key("s")).unwrap().turn(read, |_| ()).await.unwrap().unwrap();
    let t = to.session(SHARD, key("t")).unwrap().turn(read, |_| ()).await.unwrap().unwrap();
    assert!(s < t && s.seq < t.seq, "{s:?} {t:?}");
}

#[tokio::test]
async fn dropping_a_shard_gives_the_number_of_sessions_and_all_memory_back() {
    let host = host(Counting::new());
    for session in 0..100 {
        say(&host, &session.to_string(), "").await;
    }
    assert_eq!(host.stats().sessions, 100);
    assert_eq!(host.drop_shard(SHARD), 100);
    assert_eq!(host.drop_shard(SHARD), 0);
    assert_eq!(host.stats(), stead_node::HostStats::default());
}

/// Clients that count on their sessions while the shard goes back and forth between two hosts:
/// every increment is there once, and each client sees its own numbers in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_counter_loses_or_repeats_a_value_while_its_shard_moves() {
    let (_, a, b) = two_hosts();
    let clients: Vec<_> = (0..16)
        .map(|client| {
            let hosts = [a.clone(), b.clone()];
            tokio::spawn(async move {
                let session = format!("s{}", client % 8);
                let (mut seen, mut at) = (Vec::new(), 0);
                while seen.len() < 200 {
                    match ask(&hosts[at], &session, "").await {
                        Ok((_, n)) => seen.push(n.parse::<i64>().unwrap()),
                        Err(Refusal::NotOwner { .. }) => at = 1 - at,
                        Err(Refusal::Moving) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                    tokio::task::yield_now().await;
                }
                (session, seen)
            })
        })
        .collect();
    let (mut from, mut to, mut epoch) = (a, b, EPOCH);
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        epoch = epoch.next(EPOCH.node);
        hand_over(&from, &to, epoch).await;
        std::mem::swap(&mut from, &mut to);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    assert!(5 < epoch.counter, "the shard did not move often enough: {epoch}");
    let mut by_session = std::collections::BTreeMap::<String, Vec<i64>>::new();
    for client in clients {
        let (session, seen) = client.await.unwrap();
        assert!(seen.is_sorted(), "{session}: {seen:?}");
        by_session.entry(session).or_default().extend(seen);
    }
    for (session, mut seen) in by_session {
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(1..=seen.len() as i64), "{session}: {seen:?}");
    }
    assert_eq!(from.stats().sessions + to.stats().sessions, 8);
}
