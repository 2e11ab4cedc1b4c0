//! Requests that come twice are applied once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use stead_node::{
    Body, Host, HostConfig, OUTCOME, REPLAYED, RequestMeta, ResponseMeta, Session, StampEtag, etag,
};
use stead_shared::id::{BootId, Epoch, NodeId, RequestId};
use stead_shared::refusal::Refusal;
use tokio::sync::Semaphore;

use crate::common::{
    EPOCH, SHARD, bytes, hand_over, host, host_with, key, meta, post, request, say, settle, text,
};

const LATER: Epoch = Epoch { counter: 2, node: NodeId(0xb) };

/// A request with a number of its own; `attempt` of it, first sent at `first_sent_ms`.
fn attempt(session: &str, counter: u64, attempt: u16, first_sent_ms: u64) -> RequestMeta {
    let id = RequestId { boot: BootId(9), counter };
    RequestMeta { id, attempt, first_sent_ms, ..meta(session) }
}

async fn ask(
    host: &Host,
    meta: RequestMeta,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    host.serve(meta, request).await.map(|(_, response): (ResponseMeta, _)| response)
}

/// Counts in the session what runs: `read` changes nothing, `gone` deletes it, `long` is answered at
/// length, and `wait` waits for a permit.
fn counting(gate: &Arc<Semaphore>) -> impl stead_node::Service {
    let gate = Arc::clone(gate);
    move |session: Session, request: Request<Body>| {
        let gate = Arc::clone(&gate);
        async move {
            let body = request.into_body().collect_up_to(100_000).await.unwrap();
            if body == "read" {
                return Response::new(Body::from(format!("{:?}", session.counter("n").unwrap())));
            }
            if body == "wait" {
                gate.acquire().await.unwrap().forget();
            }
            if body == "gone" {
                session.delete().unwrap();
                return Response::new(Body::from("gone"));
            }
            let n = session.add("n", 1).unwrap();
            let mut response = Response::new(Body::from(match &body[..] {
                b"long" => "x".repeat(17_000),
                _ => n.to_string(),
            }));
            *response.status_mut() = StatusCode::CREATED;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/x"));
            response
        }
    }
}

fn counter() -> Host {
    host(counting(&Arc::new(Semaphore::new(0))))
}

async fn count(host: &Host, meta: RequestMeta) -> String {
    text(ask(host, meta, post("")).await.unwrap()).await
}

#[track_caller]
fn assert_unknown(response: &Response<Body>) {
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(response.headers()[OUTCOME], "unknown");
}

#[tokio::test]
async fn a_request_that_comes_again_gets_its_answer_again() {
    let host = counter();
    let first = ask(&host, attempt("s", 1, 1, 5), post("")).await.unwrap();
    assert!(first.headers().get(REPLAYED).is_none());
    let again = ask(&host, attempt("s", 1, 2, 5), post("")).await.unwrap();
    assert_eq!(again.status(), StatusCode::CREATED);
    assert_eq!(again.headers()[CONTENT_TYPE], "text/x");
    assert_eq!(again.headers()[REPLAYED], "true");
    assert_eq!(text(again).await, "1");
    // Another one of the same number comes from another process.
    let other = RequestMeta { id: RequestId { boot: BootId(8), counter: 1 }, ..meta("s") };
    assert_eq!(count(&host, other).await, "2");
    assert_eq!(say_count(&host, "s").await, "Some(2)");
}

async fn say_count(host: &Host, session: &str) -> String {
    text(ask(host, meta(session), post("read")).await.unwrap()).await
}

#[tokio::test]
async fn the_first_attempt_may_come_after_the_second() {
    let host = counter();
    assert_eq!(count(&host, attempt("s", 1, 2, 5)).await, "1");
    assert_eq!(count(&host, attempt("s", 1, 1, 5)).await, "1");
}

#[tokio::test]
async fn what_changes_nothing_leaves_nothing_and_runs_as_often_as_it_comes() {
    let ran = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&ran);
    let host = host(move |_: Session, _: Request<Body>| {
        counts.fetch_add(1, Ordering::Relaxed);
        async { Response::new(Body::from("nothing")) }
    });
    for n in 1..=3 {
        let response = ask(&host, attempt("s", 1, n, 5), post("")).await.unwrap();
        assert!(response.headers().get(REPLAYED).is_none());
    }
    assert_eq!(ran.load(Ordering::Relaxed), 3);
    assert_eq!((host.stats().sessions, host.stats().bytes), (0, 0));
}

#[tokio::test]
async fn a_request_that_comes_again_while_the_first_runs_joins_it() {
    let gate = Arc::new(Semaphore::new(0));
    let host = host(counting(&gate));
    let both: Vec<_> = (1..=2)
        .map(|n| {
            let (host, meta) = (host.clone(), attempt("s", 1, n, 5));
            tokio::spawn(async move { ask(&host, meta, post("wait")).await })
        })
        .collect();
    settle().await;
    assert_eq!(host.shard_stats(SHARD).unwrap().waiting, 1);
    gate.add_permits(2);
    for one in both {
        assert_eq!(text(one.await.unwrap().unwrap()).await, "1");
    }
    assert_eq!(say_count(&host, "s").await, "Some(1)");
}

#[tokio::test]
async fn what_may_have_left_the_window_is_not_run_again() {
    let host = counter();
    for counter in 0..=128 {
        count(&host, attempt("s", counter, 1, 100 + counter)).await;
    }
    assert_unknown(&ask(&host, attempt("s", 0, 2, 100), post("")).await.unwrap());
    assert_eq!(count(&host, attempt("s", 1, 2, 101)).await, "2");
    assert_eq!(count(&host, attempt("s", 999, 1, 50)).await, "130", "a first attempt always runs");
    assert_eq!(count(&host, attempt("s", 998, 2, 500)).await, "131", "it was never here");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_for_a_minute_and_its_time_for_ever() {
    let host = counter();
    let keeper = host.clone();
    tokio::spawn(async move { keeper.keep_time().await });
    count(&host, attempt("s", 1, 1, 100)).await;
    let kept = host.stats().bytes;
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(count(&host, attempt("s", 1, 2, 100)).await, "1");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(host.stats().bytes < kept, "an idle session costs what it did");
    assert_unknown(&ask(&host, attempt("s", 1, 2, 100), post("")).await.unwrap());
    assert_eq!(count(&host, attempt("s", 2, 2, 101)).await, "2");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_gone_remembers_what_it_answered() {
    let config = HostConfig { session_ttl: Duration::from_secs(10), ..HostConfig::default() };
    let host = host_with(config, counting(&Arc::new(Semaphore::new(0))));
    let keeper = host.clone();
    tokio::spawn(async move { keeper.keep_time().await });
    count(&host, attempt("s", 1, 1, 100)).await;
    let gone = ask(&host, attempt("s", 2, 1, 101), post("gone")).await.unwrap();
    assert_eq!(text(gone).await, "gone");
    assert_eq!(host.stats().sessions, 0);
    assert_eq!(host.shard_stats(SHARD).unwrap().sessions, 0);
    assert_eq!(count(&host, attempt("s", 1, 2, 100)).await, "1", "it is not counted anew");
    let again = ask(&host, attempt("s", 2, 2, 101), post("gone")).await.unwrap();
    assert_eq!(again.headers()[REPLAYED], "true");
    assert_eq!(say_count(&host, "s").await, "None");
    // It begins anew, expires, and still remembers.
    assert_eq!(count(&host, attempt("s", 3, 1, 102)).await, "1");
    assert_eq!(host.stats().sessions, 1);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(host.stats().sessions, 0);
    assert_eq!(count(&host, attempt("s", 3, 2, 102)).await, "1");
    assert_eq!(say_count(&host, "s").await, "None");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((host.stats().sessions, host.stats().bytes), (0, 0), "the tombstone is gone, too");
    assert_unknown(&ask(&host, attempt("s", 3, 2, 102), post("")).await.unwrap());
}

#[tokio::test]
async fn windows_and_floors_move_with_their_shard() {
    let (from, to) = (counter(), counter());
    count(&from, attempt("s", 1, 1, 100)).await;
    count(&from, attempt("t", 2, 1, 101)).await;
    ask(&from, attempt("t", 3, 1, 102), post("gone")).await.unwrap();
    for counter in 10..=138 {
        count(&from, attempt("hot", counter, 1, 200 + counter)).await;
    }
    hand_over(&from, &to, LATER).await;
    assert_eq!((from.stats().bytes, from.stats().sessions), (0, 0));
    assert_eq!(to.stats().sessions, 2);
    assert_eq!(count(&to, attempt("s", 1, 2, 100)).await, "1");
    assert_eq!(count(&to, attempt("t", 2, 2, 101)).await, "1");
    assert_eq!(say_count(&to, "t").await, "None");
    assert_unknown(&ask(&to, attempt("hot", 10, 2, 210), post("")).await.unwrap());
    assert_eq!(count(&to, attempt("hot", 138, 2, 338)).await, "129");
}

#[tokio::test]
async fn windows_move_with_a_copy_that_is_made_while_the_shard_serves() {
    let (from, to) = (counter(), counter());
    count(&from, attempt("s", 1, 1, 100)).await;
    let mut copy = from.copy(SHARD).unwrap();
    let (mut incoming, mut records) = (to.incoming(SHARD), vec![copy.seq_record()]);
    copy.next(usize::MAX, &mut records);
    count(&from, attempt("s", 2, 1, 101)).await;
    ask(&from, attempt("t", 3, 1, 102), post("")).await.unwrap();
    copy.next(usize::MAX, &mut records);
    ask(&from, attempt("t", 4, 1, 103), post("gone")).await.unwrap();
    from.seal(SHARD).await;
    copy.next(usize::MAX, &mut records);
    records.push(copy.seq_record());
    for record in records {
        incoming.add(&record).unwrap();
    }
    assert_eq!(incoming.sessions(), 1);
    to.drop_shard(SHARD);
    incoming.activate(LATER);
    assert_eq!(count(&to, attempt("s", 1, 2, 100)).await, "1");
    assert_eq!(count(&to, attempt("s", 2, 2, 101)).await, "2");
    assert_eq!(count(&to, attempt("t", 3, 2, 102)).await, "1");
    assert_eq!(say_count(&to, "s").await, "Some(2)");
    assert_eq!(say_count(&to, "t").await, "None");
}

#[tokio::test]
async fn of_a_long_answer_its_status_and_version_are_told_again() {
    let host = counter();
    let first = ask(&host, attempt("s", 1, 1, 5), post("long")).await.unwrap();
    assert_eq!(bytes(first).await.len(), 17_000);
    let again = ask(&host, attempt("s", 1, 2, 5), post("long")).await.unwrap();
    assert_eq!(again.status(), StatusCode::CREATED);
    assert_eq!(again.headers()[REPLAYED], "status-only");
    let session = host.session(SHARD, key("s")).unwrap();
    let version = session.turn(|session| session.version(), |_| ()).await.unwrap();
    assert_eq!(again.headers()[ETAG], etag(version.unwrap()).as_str());
    assert_eq!(bytes(again).await, Bytes::new());
}

#[tokio::test]
async fn the_etag_of_an_answer_is_that_of_its_change() {
    let host = host(|session: Session, request: Request<Body>| async move {
        let body = request.into_body().collect_up_to(100).await.unwrap();
        session.put_bytes(&body).unwrap();
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(StampEtag);
        response
    });
    let first = ask(&host, attempt("s", 1, 1, 5), post("one")).await.unwrap();
    ask(&host, attempt("s", 2, 1, 6), post("two")).await.unwrap();
    let again = ask(&host, attempt("s", 1, 2, 5), post("one")).await.unwrap();
    assert_eq!(again.headers()[ETAG], first.headers()[ETAG]);
    let value = host.session(SHARD, key("s")).unwrap();
    let value = value.turn(|session| session.bytes(), |_| ()).await.unwrap();
    assert_eq!(value.unwrap(), "two", "nothing is put twice");
}

#[tokio::test]
async fn a_session_s_own_limit_is_not_about_what_it_answered() {
    let config = HostConfig { session_bytes_max: 1000, ..HostConfig::default() };
    let host = host_with(config, |session: Session, request: Request<Body>| async move {
        let body = request.into_body().collect_up_to(2000).await.unwrap();
        let status = session.put_bytes(&body).map_or(StatusCode::BAD_REQUEST, |()| StatusCode::OK);
        let mut response = Response::new(Body::from("x".repeat(2000)));
        *response.status_mut() = status;
        response
    });
    for counter in 0..20 {
        let asked = ask(&host, attempt("s", counter, 1, 5), post("x".repeat(600))).await.unwrap();
        assert_eq!(asked.status(), StatusCode::OK);
    }
    let asked = ask(&host, meta("s"), post("x".repeat(1000))).await.unwrap();
    assert_eq!(asked.status(), StatusCode::BAD_REQUEST);
    assert!(host.stats().bytes > 20 * 2000, "and it is counted");
    assert_eq!(host.drop_shard(SHARD), 1);
    assert_eq!(host.stats().bytes, 0);
}

#[tokio::test]
async fn any_method_is_applied_once() {
    let host = counter();
    for (counter, method) in [Method::PUT, Method::DELETE, Method::PATCH].into_iter().enumerate() {
        let meta = |n| attempt("s", counter as u64, n, 5);
        let first = ask(&host, meta(1), request(method.clone(), "/", "")).await.unwrap();
        let again = ask(&host, meta(2), request(method, "/", "")).await.unwrap();
        assert_eq!(text(first).await, text(again).await);
    }
    assert_eq!(say(&host, "s", "read").await, "Some(3)");
    assert_eq!(host.gate(SHARD).and_then(|gate| gate.epoch()), Some(EPOCH));
}

fn keyed(name: &str, body: &'static str) -> Request<Body> {
    let mut request = post(body);
    request.headers_mut().insert("idempotency-key", HeaderValue::from_str(name).unwrap());
    request
}

#[tokio::test(start_paused = true)]
async fn a_client_s_own_key_works_for_a_day_and_for_any_request_of_its_own() {
    let host = counter();
    let keeper = host.clone();
    tokio::spawn(async move { keeper.keep_time().await });
    let ask_keyed =
        async |name: &str, body| ask(&host, meta("s"), keyed(name, body)).await.unwrap();
    assert_eq!(text(ask_keyed("a", "x").await).await, "1");
    let again = ask_keyed("a", "x").await;
    assert_eq!(again.headers()[REPLAYED], "true");
    assert_eq!(text(again).await, "1");
    assert_eq!(text(ask_keyed("b", "x").await).await, "2");
    // Others do not push it out, and a minute does not either.
    for counter in 0..200 {
        count(&host, attempt("s", counter, 1, 5)).await;
    }
    tokio::time::sleep(Duration::from_secs(23 * 60 * 60)).await;
    assert_eq!(text(ask_keyed("a", "x").await).await, "1");
    // Accesses keep the session, but not what it answered.
    tokio::time::sleep(Duration::from_secs(2 * 60 * 60)).await;
    assert_eq!(text(ask_keyed("a", "x").await).await, "203");
}

#[tokio::test]
async fn a_key_for_another_request_is_a_conflict() {
    let host = counter();
    ask(&host, meta("s"), keyed("a", "x")).await.unwrap();
    let mut elsewhere = keyed("a", "x");
    *elsewhere.uri_mut() = "/elsewhere".parse().unwrap();
    for other in [keyed("a", "y"), elsewhere] {
        let response = ask(&host, meta("s"), other).await.unwrap();
        assert_eq!(response.status(), StatusCode::CONFLICT);
        let problem: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(problem["type"], "urn:stead:problem:idempotency-key-reused");
    }
    assert_eq!(text(ask(&host, meta("t"), keyed("a", "y")).await.unwrap()).await, "1");
    assert_eq!(say_count(&host, "s").await, "Some(1)");
}

#[tokio::test]
async fn a_key_that_is_none_is_told() {
    let host = counter();
    let mut twice = keyed("a", "x");
    twice.headers_mut().append("idempotency-key", HeaderValue::from_static("b"));
    for bad in [keyed("", "x"), keyed(&"k".repeat(256), "x"), twice] {
        let response = ask(&host, meta("s"), bad).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    }
    assert_eq!(host.stats().sessions, 0);
    let longest = ask(&host, meta("s"), keyed(&"k".repeat(255), "x")).await.unwrap();
    assert_eq!(text(longest).await, "1");
}

#[tokio::test]
async fn a_key_moves_with_its_shard() {
    let (from, to) = (counter(), counter());
    ask(&from, meta("s"), keyed("a", "x")).await.unwrap();
    hand_over(&from, &to, LATER).await;
    assert_eq!(text(ask(&to, meta("s"), keyed("a", "x")).await.unwrap()).await, "1");
    let other = ask(&to, meta("s"), keyed("a", "y")).await.unwrap();
    assert_eq!(other.status(), StatusCode::CONFLICT);
}
