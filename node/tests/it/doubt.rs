//! Nobody was heard for too long: answers wait, nothing begins, and nothing old gets out (R11).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Request, Response, StatusCode};
use stead_node::{Body, Host, OUTCOME, Session};
use stead_shared::heard::Lift;
use stead_shared::net::heard::Heard;
use stead_shared::refusal::Refusal;
use stead_shared::time::Time;
use tokio::sync::Semaphore;

use crate::common::{EPOCH, SHARD, ask, host, say, settle, start, text};

/// A host, the clock of its ears in milliseconds, and a gate in its handler.
struct Doubting {
    host: Host,
    heard: Arc<Heard>,
    ms: Arc<AtomicU64>,
    handler: Arc<Semaphore>,
}

impl Doubting {
    fn new() -> Self {
        let (ms, handler) = (Arc::new(AtomicU64::new(1000)), Arc::new(Semaphore::new(0)));
        let clock = Arc::clone(&ms);
        let clock = move || Time::from_micros(clock.load(Ordering::Relaxed) * 1000);
        let heard = Arc::new(Heard::new(true, Box::new(clock)));
        let gate = Arc::clone(&handler);
        let host = host(move |session: Session, request: Request<Body>| {
            let gate = Arc::clone(&gate);
            async move {
                let body = request.into_body().collect_up_to(100).await.unwrap();
                if &body[..] == b"wait" {
                    gate.acquire().await.unwrap().forget();
                }
                Response::new(Body::from(session.add("n", 1).unwrap().to_string()))
            }
        });
        host.listen(Arc::clone(&heard));
        heard.peers(true);
        Self { host, heard, ms, handler }
    }

    /// Lets time pass in which nobody is heard.
    fn silence(&self, ms: u64) {
        self.ms.fetch_add(ms, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn an_answer_that_is_ready_after_a_silence_waits_until_it_is_certain() {
    let it = Doubting::new();
    assert_eq!(say(&it.host, "s", "").await, "1");
    let running = start(&it.host, "s", "wait");
    settle().await;
    it.silence(1001);
    it.handler.add_permits(1);
    settle().await;
    assert!(!running.is_finished(), "the handler has run, the answer waits");
    assert!(it.heard.is_in_doubt(), "the answer has raised the doubt");
    assert_eq!(ask(&it.host, "other", "").await.unwrap_err(), Refusal::Moving, "nothing begins");
    assert!(it.heard.lift(1, Lift::Answered));
    let (meta, response) = running.await.unwrap().unwrap();
    assert_eq!((meta.epoch, text(response).await), (EPOCH, "2".into()));
    assert_eq!(say(&it.host, "s", "").await, "3");
}

#[tokio::test]
async fn an_answer_of_a_shard_that_was_lost_meanwhile_is_unknown() {
    for reopened in [false, true] {
        let it = Doubting::new();
        let running = start(&it.host, "s", "wait");
        settle().await;
        it.silence(1001);
        it.handler.add_permits(1);
        settle().await;
        it.host.drop_shard(SHARD);
        if reopened {
            it.host.activate_empty(SHARD, EPOCH.next(EPOCH.node));
        }
        assert!(it.heard.lift(1, Lift::Answered));
        let (_, response) = running.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(response.headers()[OUTCOME], "unknown");
    }
}

#[tokio::test]
async fn one_that_waits_for_its_turn_does_not_begin_in_a_doubt() {
    let it = Doubting::new();
    let running = start(&it.host, "s", "wait");
    settle().await;
    let next = start(&it.host, "s", "");
    settle().await;
    it.silence(1001);
    it.heard.note();
    it.handler.add_permits(1);
    assert_eq!(next.await.unwrap().unwrap_err(), Refusal::Moving);
    assert!(!running.is_finished());
    assert!(it.heard.lift(1, Lift::Alone));
    let (_, response) = running.await.unwrap().unwrap();
    assert_eq!(text(response).await, "1");
    it.silence(60_000);
    assert_eq!(say(&it.host, "s", "").await, "2", "alone, whatever the time");
}

#[tokio::test]
async fn while_somebody_is_heard_no_answer_waits() {
    let it = Doubting::new();
    for n in 1..5 {
        it.silence(600);
        it.heard.note();
        it.silence(400);
        assert_eq!(say(&it.host, "s", "").await, n.to_string());
    }
    assert_eq!(it.heard.doubts().borrow().number, 0);
}
