//! Turns: exclusive, in order, committed as one or not at all, bounded.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request};
use stead_node::{Body, HostConfig, OUTCOME, Service, Session, StateError, TurnError};
use stead_shared::id::{Epoch, NodeId, ShardId};
use stead_shared::refusal::Refusal;
use tokio::sync::Semaphore;

use crate::common::{
    EPOCH, SHARD, ask, host, host_with, key, meta, post, say, settle, start, text,
};

fn ok(text: impl Into<String>) -> Response<Body> {
    Response::new(Body::from(text.into()))
}

/// Appends the request's body to the session, and waits inside the turn for a permit where the
/// body says `wait`.
#[derive(Clone)]
struct Appending {
    gate: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    order: Arc<Mutex<Vec<String>>>,
}

impl Appending {
    fn new() -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), inside: Arc::default(), order: Arc::default() }
    }
}

impl Service for Appending {
    async fn call(&self, session: Session, request: Request<Body>) -> Response<Body> {
        let body = request.into_body().collect_up_to(1000).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        if body == "read" {
            return ok(
                String::from_utf8(session.bytes().unwrap().unwrap_or_default().to_vec()).unwrap()
            );
        }
        assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "two turns at once");
        self.order.lock().unwrap().push(body.clone());
        let mut value = session.bytes().unwrap().unwrap_or_default().to_vec();
        value.extend_from_slice(body.as_bytes());
        session.put_bytes(&value).unwrap();
        if body.contains("wait") {
            self.gate.acquire().await.unwrap().forget();
        }
        assert_eq!(self.inside.fetch_sub(1, Ordering::SeqCst), 1);
        ok(String::from_utf8(value).unwrap())
    }

    fn is_read(&self, head: &request::Parts) -> bool {
        head.method == Method::GET
    }
}

#[tokio::test]
async fn requests_of_one_session_take_turns_in_the_order_in_which_they_came() {
    let service = Appending::new();
    let host = host(service.clone());
    let asked: Vec<_> =
        ["wait", "a", "b", "c"].into_iter().map(|body| start(&host, "s", body)).collect();
    settle().await;
    assert_eq!(*service.order.lock().unwrap(), ["wait"]);
    assert_eq!(host.shard_stats(SHARD).unwrap().waiting, 3);
    service.gate.add_permits(1);
    for one in asked {
        one.await.unwrap().unwrap();
    }
    assert_eq!(*service.order.lock().unwrap(), ["wait", "a", "b", "c"]);
    assert_eq!(say(&host, "s", "d").await, "waitabcd");
    assert_eq!(host.shard_stats(SHARD).unwrap().waiting, 0);
    assert_eq!(host.shard_stats(SHARD).unwrap().running, 0);
}

#[tokio::test]
async fn sessions_of_one_shard_do_not_wait_for_each_other() {
    let gate = Arc::new(Semaphore::new(0));
    let gate_of_service = Arc::clone(&gate);
    let host = host(move |session: Session, _: Request<Body>| {
        let gate = Arc::clone(&gate_of_service);
        async move {
            if session.key() == &key("slow") {
                gate.acquire().await.unwrap().forget();
            }
            ok("done")
        }
    });
    let slow = start(&host, "slow", "");
    settle().await;
    assert_eq!(say(&host, "fast", "").await, "done");
    gate.add_permits(1);
    slow.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_declared_read_runs_beside_a_turn_and_sees_only_what_is_committed() {
    let service = Appending::new();
    let host = host(service.clone());
    say(&host, "s", "old").await;
    let turn = start(&host, "s", "wait");
    settle().await;
    let mut read = post("read");
    *read.method_mut() = Method::GET;
    let (_, response) = host.serve(meta("s"), read).await.unwrap();
    assert_eq!(text(response).await, "old");
    service.gate.add_permits(1);
    turn.await.unwrap().unwrap();
    assert_eq!(say(&host, "s", "!").await, "oldwait!");
}

#[tokio::test]
async fn a_declared_read_cannot_change_anything() {
    struct Sly;
    impl Service for Sly {
        async fn call(&self, session: Session, _: Request<Body>) -> Response<Body> {
            assert_eq!(session.put_bytes(b"x"), Err(StateError::ReadOnly));
            assert_eq!(session.delete(), Err(StateError::ReadOnly));
            assert_eq!(session.add("n", 1), Err(StateError::ReadOnly));
            ok("read only")
        }
        fn is_read(&self, _: &request::Parts) -> bool {
            true
        }
    }
    let host = host(Sly);
    assert_eq!(say(&host, "s", "").await, "read only");
    assert_eq!(host.stats().sessions, 0);
}

#[tokio::test]
async fn a_panic_discards_the_turn_and_says_that_the_outcome_is_unknown() {
    let host = host(|session: Session, request: Request<Body>| async move {
        let body = request.into_body().collect_up_to(100).await.unwrap();
        let value = session.add("n", 1).unwrap();
        session.put_bytes(&body).unwrap();
        assert_ne!(body, "panic", "as asked");
        ok(value.to_string())
    });
    assert_eq!(say(&host, "s", "fine").await, "1");
    let (meta_of_answer, response) = host.serve(meta("s"), post("panic")).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(response.headers()[OUTCOME], "unknown");
    assert_eq!(meta_of_answer.epoch, EPOCH);
    let problem: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(problem["outcome"], "unknown");
    assert_eq!(say(&host, "s", "fine").await, "2");
}

#[tokio::test]
async fn a_panic_inside_an_update_leaves_the_session_usable() {
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Count(u32);
    impl stead_node::State for Count {
        const VERSION: u32 = 1;
    }
    let host = host(|session: Session, request: Request<Body>| async move {
        let body = request.into_body().collect_up_to(100).await.unwrap();
        let count = session.update(|count: &mut Count| {
            count.0 += 1;
            assert_ne!(body, "panic", "as asked");
            count.0
        });
        ok(count.unwrap().to_string())
    });
    assert_eq!(say(&host, "s", "").await, "1");
    assert_eq!(ask(&host, "s", "panic").await.unwrap().0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(say(&host, "s", "").await, "2");
}

#[tokio::test]
async fn changes_are_seen_by_nobody_before_the_answer_and_by_all_after_it() {
    let service = Appending::new();
    let host = host(service.clone());
    let turn = start(&host, "s", "wait");
    settle().await;
    assert_eq!(host.stats().sessions, 0);
    service.gate.add_permits(1);
    turn.await.unwrap().unwrap();
    assert_eq!(host.stats().sessions, 1);
}

#[tokio::test]
async fn a_session_kept_beyond_its_turn_answers_that_the_turn_is_over() {
    let kept = Arc::new(Mutex::new(None));
    let keeper = Arc::clone(&kept);
    let host = host(move |session: Session, _: Request<Body>| {
        *keeper.lock().unwrap() = Some(session.clone());
        async move {
            session.put_bytes(b"value").unwrap();
            ok("")
        }
    });
    say(&host, "s", "").await;
    let session = kept.lock().unwrap().take().unwrap();
    assert_eq!(session.bytes(), Err(StateError::TurnOver));
    assert_eq!(session.put_bytes(b"late"), Err(StateError::TurnOver));
    let result = session.handle().turn(|session| session.bytes(), |_| ()).await;
    assert_eq!(result, Ok(Some(Bytes::from_static(b"value"))));
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_interrupt_its_turn() {
    let service = Appending::new();
    let host = host(service.clone());
    let turn = start(&host, "s", "wait");
    settle().await;
    turn.abort();
    settle().await;
    service.gate.add_permits(1);
    assert_eq!(say(&host, "s", "!").await, "wait!");
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_the_queue() {
    let service = Appending::new();
    let host = host(service.clone());
    let first = start(&host, "s", "wait");
    let second = start(&host, "s", "gone");
    let third = start(&host, "s", "third");
    settle().await;
    second.abort();
    settle().await;
    assert_eq!(host.shard_stats(SHARD).unwrap().waiting, 1);
    service.gate.add_permits(1);
    first.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
    assert_eq!(*service.order.lock().unwrap(), ["wait", "third"]);
}

#[tokio::test]
async fn a_full_mailbox_refuses_and_other_shards_do_not_notice() {
    let service = Appending::new();
    let config = HostConfig { mailbox_requests_max: 2, ..HostConfig::default() };
    let host = host_with(config, service.clone());
    let other = ShardId(8);
    host.activate_empty(other, EPOCH);
    let waiting: Vec<_> = ["wait", "b", "c"].map(|body| start(&host, "s", body)).into();
    settle().await;
    let refusal = ask(&host, "s", "d").await.unwrap_err();
    assert_eq!(refusal, Refusal::Overloaded { retry_after_ms: 1000 });
    let mut elsewhere = meta("t");
    elsewhere.shard = other;
    let (answer, _) = host.serve(elsewhere, post("read")).await.unwrap();
    assert_eq!(answer.pressure, 0);
    service.gate.add_permits(1);
    for one in waiting {
        one.await.unwrap().unwrap();
    }
    say(&host, "s", "e").await;
}

#[tokio::test]
async fn a_mailbox_is_bounded_by_bytes_too() {
    let service = Appending::new();
    let config = HostConfig { mailbox_bytes_max: 100, ..HostConfig::default() };
    let host = host_with(config, service.clone());
    let first = start(&host, "s", "wait");
    let second = start(&host, "s", "x".repeat(80));
    settle().await;
    let refused = ask(&host, "s", &"y".repeat(30)).await.unwrap_err();
    assert!(matches!(refused, Refusal::Overloaded { .. }), "{refused:?}");
    service.gate.add_permits(1);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_past_its_deadline_is_not_executed() {
    let service = Appending::new();
    let host = host(service.clone());
    let first = start(&host, "s", "wait");
    settle().await;
    let mut hurried = meta("s");
    hurried.deadline_ms = 500;
    let refusal = host.serve(hurried, post("late")).await.unwrap_err();
    assert_eq!(refusal, Refusal::DeadlinePassed);
    let refusal = host.serve(meta("s"), post("late")).await.unwrap_err();
    assert_eq!(refusal, Refusal::Overloaded { retry_after_ms: 1000 });
    service.gate.add_permits(1);
    first.await.unwrap().unwrap();
    assert_eq!(*service.order.lock().unwrap(), ["wait"]);
}

#[tokio::test]
async fn accepted_is_said_when_the_turn_begins_and_never_with_a_refusal() {
    let service = Appending::new();
    let host = host(service.clone());
    let first = start(&host, "s", "wait");
    settle().await;
    let accepted = Arc::new(AtomicBool::new(false));
    let second = {
        let (host, accepted) = (host.clone(), Arc::clone(&accepted));
        tokio::spawn(async move {
            let say = move || accepted.store(true, Ordering::SeqCst);
            host.serve_with(meta("s"), post("x"), say).await
        })
    };
    settle().await;
    assert!(!accepted.load(Ordering::SeqCst));
    service.gate.add_permits(1);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert!(accepted.load(Ordering::SeqCst));
    host.drop_shard(SHARD);
    let refused = host.serve_with(meta("s"), post("x"), || panic!("accepted")).await;
    assert_eq!(refused.unwrap_err(), Refusal::NotOwner { claim: None });
}

#[tokio::test]
async fn a_request_for_a_shard_that_is_not_here_is_refused() {
    let host = host(Appending::new());
    let mut elsewhere = meta("s");
    elsewhere.shard = ShardId(1);
    let refusal = host.serve(elsewhere, post("x")).await.unwrap_err();
    assert_eq!(refusal, Refusal::NotOwner { claim: None });
}

#[tokio::test]
async fn an_older_epoch_is_served_and_a_newer_one_is_not() {
    let host = host(Appending::new());
    let epoch = Epoch { counter: 5, node: NodeId(1) };
    host.seal(SHARD).await;
    assert!(host.reopen(SHARD, epoch));
    let mut older = meta("s");
    older.epoch = Some(EPOCH);
    let (answer, _) = host.serve(older, post("x")).await.unwrap();
    assert_eq!(answer.epoch, epoch);
    let mut newer = meta("s");
    newer.epoch = Some(Epoch { counter: 6, node: NodeId(1) });
    let refusal = host.serve(newer, post("x")).await.unwrap_err();
    assert_eq!(refusal, Refusal::NotOwner { claim: None });
}

#[tokio::test]
async fn a_change_that_memory_has_no_room_for_is_refused_and_nothing_is_evicted() {
    let config = HostConfig { memory_max: 10_000, ..HostConfig::default() };
    let host = host_with(config, |session: Session, request: Request<Body>| async move {
        let body = request.into_body().collect_up_to(10_000).await.unwrap();
        match session.put_bytes(&body) {
            Ok(()) => ok("kept"),
            Err(error) => ok(error.to_string()),
        }
    });
    assert_eq!(say(&host, "a", &"x".repeat(5000)).await, "kept");
    let full = StateError::MemoryFull.to_string();
    assert_eq!(say(&host, "b", &"x".repeat(5000)).await, full);
    assert_eq!(host.stats().sessions, 1);
    assert_eq!(say(&host, "a", &"x".repeat(1000)).await, "kept");
    assert_eq!(say(&host, "b", &"x".repeat(1000)).await, "kept");
    let stats = host.stats();
    assert_eq!(stats.bytes, host.shard_stats(SHARD).unwrap().bytes);
    assert!(stats.bytes <= 10_000, "{stats:?}");
}

#[tokio::test]
async fn two_turns_that_race_for_the_last_memory_end_with_one_507() {
    let config = HostConfig { memory_max: 1000, ..HostConfig::default() };
    let gate = Arc::new(Semaphore::new(0));
    let gate_of_service = Arc::clone(&gate);
    let host = host_with(config, move |session: Session, _: Request<Body>| {
        let gate = Arc::clone(&gate_of_service);
        async move {
            session.put_bytes(&[0; 500]).unwrap();
            gate.acquire().await.unwrap().forget();
            ok("")
        }
    });
    let (a, b) = (start(&host, "a", ""), start(&host, "b", ""));
    settle().await;
    gate.add_permits(2);
    let mut statuses = Vec::new();
    for asked in [a, b] {
        statuses.push(asked.await.unwrap().unwrap().1.status());
    }
    statuses.sort();
    assert_eq!(statuses, [StatusCode::OK, StatusCode::INSUFFICIENT_STORAGE]);
    assert_eq!(host.stats().sessions, 1);
}

#[tokio::test]
async fn a_session_has_a_largest_size() {
    let config = HostConfig { session_bytes_max: 1000, ..HostConfig::default() };
    let host = host_with(config, |session: Session, _: Request<Body>| async move {
        let too_large = StateError::TooLarge { limit: 1000 };
        assert_eq!(session.put_bytes(&[0; 990]), Err(too_large.clone()));
        session.put_bytes(&[0; 500]).unwrap();
        assert_eq!(session.add(&"n".repeat(400), 1), Err(too_large.clone()));
        let later = Duration::from_secs(1);
        assert_eq!(session.after(later, vec![0; 400]).unwrap_err(), too_large);
        ok("")
    });
    say(&host, "s", "").await;
}

#[tokio::test]
async fn a_turn_of_the_process_waits_in_line_and_runs_its_end_before_the_next() {
    let service = Appending::new();
    let host = host(service.clone());
    let first = start(&host, "s", "wait");
    settle().await;
    let handle = host.session(SHARD, key("s")).unwrap();
    let said = Arc::clone(&service.order);
    let own = tokio::spawn(async move {
        let add = |session: &Session| session.add("n", 1);
        handle.turn(add, |n| said.lock().unwrap().push(format!("n is {n}"))).await
    });
    settle().await;
    let last = start(&host, "s", "last");
    settle().await;
    service.gate.add_permits(1);
    first.await.unwrap().unwrap();
    assert_eq!(own.await.unwrap(), Ok(1));
    last.await.unwrap().unwrap();
    assert_eq!(*service.order.lock().unwrap(), ["wait", "n is 1", "last"]);
    host.drop_shard(SHARD);
    assert!(host.session(SHARD, key("s")).is_none());
}

#[tokio::test]
async fn a_turn_of_the_process_in_a_shard_that_has_gone_is_refused() {
    let host = host(Appending::new());
    let handle = host.session(SHARD, key("s")).unwrap();
    host.drop_shard(SHARD);
    let refused = handle.turn(|session| session.add("n", 1), |_| ()).await;
    assert_eq!(refused, Err(TurnError::Refused(Refusal::NotOwner { claim: None })));
}
