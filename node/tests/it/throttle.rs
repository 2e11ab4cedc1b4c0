//! Changes of a shard are held back while a copy of it catches up. In paused time.

use std::num::NonZeroU64;
use std::time::Duration;

use http::{Method, Request, Response, request};
use stead_node::{Body, Host, HostConfig, RequestMeta, ResponseMeta, Service, Session};
use stead_shared::id::{BootId, Epoch, NodeId, RequestId};
use stead_shared::refusal::Refusal;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::common::{self, SHARD, host, host_with, post, settle, text};

const NEXT: Epoch = Epoch { counter: 2, node: NodeId(0xb) };
/// A change of 1000 bytes takes a tenth of a second, with its record a little more.
const RATE: NonZeroU64 = NonZeroU64::new(10_000).unwrap();

/// Of a request without a name: nothing is kept of its answer, and a record is what is in it.
fn meta(session: &str) -> RequestMeta {
    let id = RequestId { boot: BootId(0), counter: 0 };
    RequestMeta { id, ..common::meta(session) }
}

async fn say(host: &Host, session: &str, body: &str) -> String {
    text(host.serve(meta(session), post(body.to_owned())).await.unwrap().1).await
}

fn start(
    host: &Host,
    session: &str,
    body: impl Into<Body>,
) -> JoinHandle<Result<(ResponseMeta, Response<Body>), Refusal>> {
    let (host, meta, request) = (host.clone(), meta(session), post(body));
    tokio::spawn(async move { host.serve(meta, request).await })
}

/// Puts the body, but that of a GET.
#[derive(Clone)]
struct Putting;

impl Service for Putting {
    async fn call(&self, session: Session, request: Request<Body>) -> Response<Body> {
        if request.method() == Method::GET {
            return Response::new(Body::empty());
        }
        let body = request.into_body().collect_up_to(100_000).await.unwrap();
        if !body.is_empty() {
            session.put_bytes(&body).unwrap();
        }
        Response::new(Body::empty())
    }

    fn is_read(&self, head: &request::Parts) -> bool {
        head.method == Method::GET
    }

    fn has_hooks(&self) -> bool {
        false
    }
}

/// Puts 1000 bytes into each of `n` sessions at once. How long that took.
async fn put_many(host: &Host, n: usize) -> Duration {
    let start = Instant::now();
    let mut puts = JoinSet::new();
    for session in 0..n {
        let host = host.clone();
        puts.spawn(async move { say(&host, &format!("s{session}"), &"v".repeat(1000)).await });
    }
    puts.join_all().await;
    start.elapsed()
}

fn is_about(time: Duration, ms: u128) -> bool {
    (ms * 9 / 10..ms * 12 / 10).contains(&time.as_millis())
}

#[tokio::test(start_paused = true)]
async fn changes_come_at_the_rate_and_as_they_like_without_one() {
    let host = host(Putting);
    assert_eq!(put_many(&host, 50).await, Duration::ZERO);
    host.throttle(SHARD, Some(RATE));
    let time = put_many(&host, 51).await;
    assert!(is_about(time, 5_300), "{time:?}");
    let twice = NonZeroU64::new(20_000);
    host.throttle(SHARD, twice);
    let time = put_many(&host, 51).await;
    assert!(is_about(time, 2_750), "{time:?}");
    host.throttle(SHARD, None);
    assert_eq!(put_many(&host, 50).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn reads_go_on_and_turns_that_change_nothing_cost_nothing() {
    let host = host(Putting);
    put_many(&host, 10).await;
    host.throttle(SHARD, Some(RATE));
    let writes = tokio::spawn({
        let host = host.clone();
        async move { put_many(&host, 10).await }
    });
    settle().await;
    let before = Instant::now();
    for _ in 0..100 {
        let read = Request::builder().method(Method::GET).uri("/").body(Body::empty()).unwrap();
        host.serve(meta("s9"), read).await.unwrap();
    }
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert!(!writes.is_finished());
    writes.await.unwrap();
    // After some 10 records in the time of 10, no more than one turn has to wait for another.
    let before = Instant::now();
    for _ in 0..100 {
        say(&host, "s0", "").await;
    }
    assert!(before.elapsed() < Duration::from_millis(250), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_no_longer_than_its_deadline_and_is_not_counted_then() {
    let host = host(Putting);
    // A small record takes two thirds of a second.
    host.throttle(SHARD, NonZeroU64::new(100));
    let start = Instant::now();
    say(&host, "a", "v").await;
    let hurried = RequestMeta { deadline_ms: 300, ..meta("b") };
    assert_eq!(host.serve(hurried, post("v")).await.unwrap_err(), Refusal::DeadlinePassed);
    assert_eq!(start.elapsed(), Duration::from_millis(300));
    say(&host, "c", "v").await;
    assert!(is_about(start.elapsed(), 660), "{:?}", start.elapsed());
    assert_eq!(host.shard_stats(SHARD).unwrap().running, 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_no_longer_than_the_mailbox_keeps_anybody() {
    let host = host(Putting);
    host.throttle(SHARD, Some(NonZeroU64::MIN));
    say(&host, "a", "v").await;
    let start = Instant::now();
    assert_eq!(host.serve(meta("b"), post("v")).await.unwrap_err(), overloaded());
    assert_eq!(start.elapsed(), HostConfig::default().mailbox_age_max);
}

fn overloaded() -> Refusal {
    Refusal::Overloaded { retry_after_ms: 1000 }
}

#[tokio::test(start_paused = true)]
async fn no_more_wait_than_the_mailbox_holds() {
    let config = HostConfig { mailbox_requests_max: 3, ..HostConfig::default() };
    let host = host_with(config, Putting);
    host.throttle(SHARD, Some(NonZeroU64::MIN));
    say(&host, "a", "v").await;
    let waiting: Vec<_> = ["b", "c", "d"].map(|name| start(&host, name, "v")).into();
    settle().await;
    assert_eq!(host.serve(meta("e"), post("v")).await.unwrap_err(), overloaded());
    host.throttle(SHARD, None);
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_bytes_wait_than_the_mailbox_holds() {
    let config = HostConfig { mailbox_bytes_max: 2500, ..HostConfig::default() };
    let host = host_with(config, Putting);
    host.throttle(SHARD, Some(NonZeroU64::MIN));
    say(&host, "a", "v").await;
    let _waiting = ["b", "c"].map(|name| start(&host, name, "v".repeat(1000)));
    settle().await;
    let refused = host.serve(meta("d"), post("v".repeat(1000))).await.unwrap_err();
    assert_eq!(refused, overloaded());
}

#[tokio::test(start_paused = true)]
async fn a_seal_does_not_wait_for_those_held_back_and_sends_them_on() {
    let host = host(Putting);
    host.throttle(SHARD, Some(NonZeroU64::MIN));
    say(&host, "a", "v").await;
    let waiting = start(&host, "b", "v");
    settle().await;
    let before = Instant::now();
    host.seal(SHARD).await;
    assert_eq!(waiting.await.unwrap().unwrap_err(), Refusal::Moving);
    host.throttle(SHARD, Some(NonZeroU64::MIN));
    assert!(host.reopen(SHARD, NEXT));
    for name in ["a", "b", "c"] {
        say(&host, name, "v").await;
    }
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn those_held_back_go_on_when_the_copy_is_given_up_and_are_sent_on_without_the_shard() {
    let host = host(Putting);
    let copy = host.copy(SHARD).unwrap();
    host.throttle(SHARD, Some(NonZeroU64::MIN));
    say(&host, "a", "v").await;
    let waiting = start(&host, "b", "v");
    settle().await;
    drop(copy);
    let before = Instant::now();
    waiting.await.unwrap().unwrap();
    host.throttle(SHARD, Some(NonZeroU64::MIN));
    say(&host, "a", "v").await;
    let waiting = start(&host, "b", "v");
    settle().await;
    host.drop_shard(SHARD);
    assert_eq!(waiting.await.unwrap().unwrap_err(), Refusal::NotOwner { claim: None });
    assert_eq!(before.elapsed(), Duration::ZERO);
}
