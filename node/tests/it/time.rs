//! Expiry and timers, in paused time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use stead_node::{Body, Host, HostConfig, Service, Session, StateError, Why};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::common::{SHARD, ask, host, host_with, key, say, settle};

fn keep_time(host: &Host) -> JoinHandle<()> {
    let host = host.clone();
    tokio::spawn(async move { host.keep_time().await })
}

/// Does what the body says, and writes down what happens when.
#[derive(Clone)]
struct Diary {
    start: Instant,
    log: Arc<Mutex<Vec<String>>>,
    has_hooks: bool,
}

impl Diary {
    fn new(has_hooks: bool) -> Self {
        Self { start: Instant::now(), log: Arc::default(), has_hooks }
    }

    fn note(&self, text: impl std::fmt::Display) {
        let at = self.start.elapsed().as_millis();
        self.log.lock().unwrap().push(format!("{at} {text}"));
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl Service for Diary {
    async fn call(&self, session: Session, request: Request<Body>) -> Response<Body> {
        let body = request.into_body().collect_up_to(100).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        let (verb, rest) = body.split_once(' ').unwrap_or((&body, ""));
        let ms = || Duration::from_millis(rest.parse().unwrap());
        let answer = match verb {
            "put" => session.put_bytes(rest.as_bytes()).map(|()| String::new()),
            "get" => {
                let bytes = session.bytes().unwrap();
                Ok(bytes.map_or_else(|| "none".into(), |b| String::from_utf8(b.to_vec()).unwrap()))
            }
            "ttl" => session.expire_in(ms()).map(|()| String::new()),
            "after" => session.after(ms(), "once").map(|id| format!("{id:?}")),
            "every" => session.every(ms(), "tick").map(|id| format!("{id:?}")),
            "panics" => session.after(ms(), "panic").map(|id| format!("{id:?}")),
            _ => panic!("{verb}"),
        };
        Response::new(answer.unwrap_or_else(|error| error.to_string()).into())
    }

    async fn activated(&self, session: &Session) {
        self.note(format!("+{:?}", session.key()));
    }

    async fn deactivating(&self, session: &Session, why: Why) {
        let value = session.bytes().unwrap().unwrap();
        assert_eq!(session.put_bytes(b"x"), Err(StateError::ReadOnly));
        self.note(format!("{why:?} {}", String::from_utf8_lossy(&value)));
    }

    async fn timer(&self, session: Session, event: Bytes) {
        let n = session.add("events", 1).unwrap();
        self.note(format!("{} {n}", String::from_utf8_lossy(&event)));
        assert_ne!(event, "panic", "as asked");
    }

    fn has_hooks(&self) -> bool {
        self.has_hooks
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_expires_and_an_access_puts_it_off() {
    let config = HostConfig { session_ttl: Duration::from_secs(100), ..HostConfig::default() };
    let host = host_with(config, Diary::new(false));
    let time = keep_time(&host);
    say(&host, "s", "put value").await;
    sleep(Duration::from_secs(90)).await;
    assert_eq!(say(&host, "s", "get").await, "value");
    sleep(Duration::from_secs(90)).await;
    assert_eq!(host.stats().sessions, 1);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(host.stats().sessions, 0);
    assert_eq!(host.stats().bytes, 0);
    time.abort();
}

#[tokio::test(start_paused = true)]
async fn nobody_sees_a_session_past_its_time_even_before_it_is_swept() {
    let host = host(Diary::new(false));
    say(&host, "s", "put value").await;
    say(&host, "s", "ttl 500").await;
    sleep(Duration::from_millis(499)).await;
    assert_eq!(say(&host, "s", "get").await, "value");
    sleep(Duration::from_millis(501)).await;
    assert_eq!(say(&host, "s", "get").await, "none");
    assert_eq!(host.stats().sessions, 0);
}

#[tokio::test(start_paused = true)]
async fn many_sessions_with_own_times_expire_each_in_its_time() {
    let host = host(Diary::new(false));
    let time = keep_time(&host);
    for i in 1..=20 {
        let name = i.to_string();
        say(&host, &name, "put x").await;
        say(&host, &name, &format!("ttl {}", i * 2000)).await;
    }
    for left in (0..20).rev() {
        sleep(Duration::from_millis(2000)).await;
        // A shard is looked through at most once a second.
        sleep(Duration::from_millis(if left == 19 { 1001 } else { 0 })).await;
        assert_eq!(host.stats().sessions, left);
    }
    time.abort();
}

#[tokio::test(start_paused = true)]
async fn the_service_hears_of_an_expired_session_and_sees_it_once_more() {
    let service = Diary::new(true);
    let host = host(service.clone());
    let time = keep_time(&host);
    say(&host, "s", "put value").await;
    say(&host, "s", "ttl 5000").await;
    service.log();
    sleep(Duration::from_millis(5100)).await;
    assert_eq!(service.log(), ["5000 Expired value"]);
    assert_eq!(host.stats().sessions, 0);
    time.abort();
}

#[tokio::test(start_paused = true)]
async fn an_attached_session_does_not_expire() {
    let host = host(Diary::new(false));
    let time = keep_time(&host);
    say(&host, "s", "put value").await;
    say(&host, "s", "ttl 1000").await;
    let attached = host.session(SHARD, key("s")).unwrap().attach().unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(host.stats().sessions, 1);
    assert_eq!(say(&host, "s", "get").await, "value");
    sleep(Duration::from_secs(60)).await;
    drop(attached);
    assert_eq!(host.stats().sessions, 1);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(host.stats().sessions, 0);
    time.abort();
}

#[tokio::test(start_paused = true)]
async fn on_timer_takes_the_timers_and_leaves_the_rest_to_the_service() {
    let service = Diary::new(true);
    let timers = service.clone();
    let host = host(service.clone().on_timer(move |session: Session, event: Bytes| {
        timers.note(format!("taken {} of {:?}", String::from_utf8_lossy(&event), session.key()));
        std::future::ready(())
    }));
    let time = keep_time(&host);
    say(&host, "s", "put value").await;
    say(&host, "s", "ttl 5000").await;
    say(&host, "s", "after 300").await;
    sleep(Duration::from_millis(5100)).await;
    let key = key("s");
    let expected = [
        format!("0 +{key:?}"),
        format!("300 taken once of {key:?}"),
        "5000 Expired value".to_owned(),
    ];
    assert_eq!(service.log(), expected);
    time.abort();
}

#[tokio::test(start_paused = true)]
async fn timers_fire_in_their_time_in_turns_of_their_own() {
    let service = Diary::new(false);
    let host = host(service.clone());
    let time = keep_time(&host);
    say(&host, "s", "after 300").await;
    say(&host, "s", "every 200").await;
    say(&host, "t", "after 100").await;
    sleep(Duration::from_millis(650)).await;
    let log = service.log();
    assert_eq!(log, ["100 once 1", "200 tick 1", "300 once 2", "400 tick 3", "600 tick 4"]);
    time.abort();
}

#[tokio::test(start_paused = true)]
async fn an_earlier_timer_is_not_held_up_by_a_later_one() {
    let service = Diary::new(false);
    let host = host(service.clone());
    let time = keep_time(&host);
    say(&host, "s", "after 10000").await;
    settle().await;
    say(&host, "t", "after 50").await;
    sleep(Duration::from_millis(60)).await;
    assert_eq!(service.log(), ["50 once 1"]);
    time.abort();
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_timer_does_not_fire() {
    let service = Diary::new(false);
    let host = host(service.clone());
    let time = keep_time(&host);
    let handle = host.session(SHARD, key("s")).unwrap();
    let once = Duration::from_millis(100);
    let timer = handle.turn(|s| s.after(once, "once"), |_| ()).await.unwrap();
    let cancel = |s: &Session| s.cancel(timer);
    assert_eq!(handle.turn(cancel, |_| ()).await, Ok(true));
    assert_eq!(handle.turn(cancel, |_| ()).await, Ok(false));
    sleep(Duration::from_secs(1)).await;
    assert!(service.log().is_empty());
    assert_eq!(host.stats().sessions, 0);
    time.abort();
}

#[tokio::test(start_paused = true)]
async fn a_timer_whose_turn_panics_fires_once_and_changes_nothing() {
    let service = Diary::new(false);
    let host = host(service.clone());
    let time = keep_time(&host);
    say(&host, "s", "put x").await;
    say(&host, "s", "panics 100").await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(service.log(), ["100 panic 1"]);
    let handle = host.session(SHARD, key("s")).unwrap();
    assert_eq!(
        handle.turn(|s| Ok((s.timers()?, s.counter("events")?)), |_| ()).await,
        Ok((0, None))
    );
    time.abort();
}

#[tokio::test(start_paused = true)]
async fn a_session_has_a_largest_number_of_timers() {
    let host =
        host_with(HostConfig { session_timers_max: 2, ..HostConfig::default() }, Diary::new(false));
    for _ in 0..2 {
        say(&host, "s", "after 100").await;
    }
    let refused = StateError::TooManyTimers { limit: 2 }.to_string();
    assert_eq!(say(&host, "s", "after 100").await, refused);
}

#[tokio::test(start_paused = true)]
async fn timers_that_come_due_during_an_aborted_move_fire_after_it() {
    let service = Diary::new(false);
    let host = host(service.clone());
    let time = keep_time(&host);
    say(&host, "s", "every 100").await;
    host.seal(SHARD).await;
    sleep(Duration::from_millis(1050)).await;
    assert!(service.log().is_empty());
    assert!(ask(&host, "s", "get").await.is_err());
    let epoch = crate::common::EPOCH;
    host.reopen(SHARD, epoch.next(epoch.node));
    sleep(Duration::from_millis(100)).await;
    // The missed ones are given once.
    assert_eq!(service.log(), ["1050 tick 1", "1100 tick 2"]);
    time.abort();
}
