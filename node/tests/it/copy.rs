//! A shard is copied while it serves.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;
use stead_node::{Body, Host, HostConfig, Incoming, Lag, Service, Session, ShardCopy};
use stead_shared::id::{Epoch, NodeId};
use tokio::time::sleep;

use crate::common::{EPOCH, SHARD, host, host_with, key};

const NEXT: Epoch = Epoch { counter: 2, node: NodeId(0xb) };

/// Counts the events of timers.
#[derive(Clone)]
struct Ticking;

impl Service for Ticking {
    async fn call(&self, _: Session, _: Request<Body>) -> Response<Body> {
        Response::new(Body::empty())
    }

    async fn timer(&self, session: Session, _: Bytes) {
        session.add("events", 1).unwrap();
    }

    fn has_hooks(&self) -> bool {
        false
    }
}

fn two_hosts() -> (Host, Host) {
    let (from, to) = (host(Ticking), host(Ticking));
    to.drop_shard(SHARD);
    (from, to)
}

async fn turn(host: &Host, name: &str, change: impl FnOnce(&Session) + Send) {
    let session = host.session(SHARD, key(name)).unwrap();
    let change = |session: &Session| {
        change(session);
        Ok(())
    };
    session.turn(change, |()| ()).await.unwrap();
}

async fn put(host: &Host, name: &str, value: &[u8]) {
    turn(host, name, |session| session.put_bytes(value).unwrap()).await;
}

/// What a copy gives next, of up to `bytes_max` bytes, in its target.
fn step(copy: &mut ShardCopy, bytes_max: usize, to: &mut Incoming) -> usize {
    let mut records = Vec::new();
    let bytes = copy.next(bytes_max, &mut records);
    assert_eq!(bytes, records.iter().map(Bytes::len).sum::<usize>());
    for record in &records {
        to.add(record).unwrap();
    }
    records.len()
}

fn rest(copy: &mut ShardCopy, to: &mut Incoming) -> usize {
    let mut n_records = 0;
    loop {
        match step(copy, 100, to) {
            0 => return n_records,
            n => n_records += n,
        }
    }
}

/// Seals, sends what is left, and serves at the target.
async fn finish(from: &Host, mut copy: ShardCopy, mut to: Incoming) {
    from.seal(SHARD).await;
    rest(&mut copy, &mut to);
    assert_eq!(copy.lag(), Lag::default());
    to.add(&copy.seq_record()).unwrap();
    to.activate(NEXT);
}

/// Everything in the shard, times as what is left of them.
fn contents(host: &Host) -> Vec<Bytes> {
    let mut records: Vec<_> = host.export(SHARD).unwrap().collect();
    records.sort();
    records
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, usize),
    Add(u8),
    Delete(u8),
    DeleteAndPut(u8),
    Access(u8),
    Ttl(u8, u64),
    After(u8, u64),
    Every(u8, u64),
    Wait(u64),
    Copy(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let name = 0u8..12;
    prop_oneof![
        3 => (name.clone(), 0usize..60).prop_map(|(name, length)| Step::Put(name, length)),
        2 => name.clone().prop_map(Step::Add),
        2 => name.clone().prop_map(Step::Delete),
        1 => name.clone().prop_map(Step::DeleteAndPut),
        3 => name.clone().prop_map(Step::Access),
        2 => (name.clone(), 1u64..4000).prop_map(|(name, ms)| Step::Ttl(name, ms)),
        1 => (name.clone(), 1u64..4000).prop_map(|(name, ms)| Step::After(name, ms)),
        1 => (name, 300u64..4000).prop_map(|(name, ms)| Step::Every(name, ms)),
        2 => (1u64..3000).prop_map(Step::Wait),
        4 => (0usize..400).prop_map(Step::Copy),
    ]
}

async fn perform(host: &Host, step: &Step) {
    let ms = Duration::from_millis;
    let (Step::Put(name, _)
    | Step::Add(name)
    | Step::Delete(name)
    | Step::DeleteAndPut(name)
    | Step::Access(name)
    | Step::Ttl(name, _)
    | Step::After(name, _)
    | Step::Every(name, _)) = step
    else {
        return;
    };
    turn(host, &format!("session-{name}"), |session| match *step {
        Step::Put(_, length) => session.put_bytes(&vec![b'v'; length]).unwrap(),
        Step::Add(_) => drop(session.add("n", 1).unwrap()),
        Step::Delete(_) => session.delete().unwrap(),
        Step::DeleteAndPut(_) => {
            session.delete().unwrap();
            session.put_bytes(b"anew").unwrap();
        }
        Step::Ttl(_, left) => session.expire_in(ms(left)).unwrap(),
        // The number of timers is limited.
        Step::After(_, due) => drop(session.after(ms(due), "once")),
        Step::Every(_, period) => drop(session.every(ms(period), "again")),
        Step::Access(_) | Step::Wait(_) | Step::Copy(_) => {}
    })
    .await;
}

/// What the sessions hold, without versions.
async fn values(host: &Host) -> Vec<String> {
    let mut values = Vec::new();
    for name in 0..12 {
        turn(host, &format!("session-{name}"), |session| {
            let (value, counters) = (session.bytes().unwrap(), session.counters().unwrap());
            values.push(format!("{value:?} {counters:?} {}", session.timers().unwrap()));
        })
        .await;
    }
    values
}

async fn check(steps: &[Step], from_the_start: usize) {
    let (from, to) = two_hosts();
    let ticking = from.clone();
    let time = tokio::spawn(async move { ticking.keep_time().await });
    let (before, during) = steps.split_at(from_the_start.min(steps.len()));
    for step in before {
        perform(&from, step).await;
    }
    let mut copy = from.copy(SHARD).unwrap();
    assert!(from.copy(SHARD).is_none(), "one at a time");
    let mut incoming = to.incoming(SHARD);
    incoming.add(&copy.seq_record()).unwrap();
    for now in during {
        perform(&from, now).await;
        match now {
            Step::Wait(ms) => sleep(Duration::from_millis(*ms)).await,
            Step::Copy(bytes_max) => {
                let is_even = copy.lag() == Lag::default();
                assert_eq!(step(&mut copy, *bytes_max, &mut incoming) == 0, is_even);
            }
            _ => {}
        }
    }
    finish(&from, copy, incoming).await;
    assert_eq!(contents(&to), contents(&from));
    assert_eq!(to.stats(), from.stats());
    assert_eq!(to.shard_stats(SHARD).unwrap().bytes, to.stats().bytes);
    // Both go on in the same way: timers fire, sessions expire.
    assert!(from.reopen(SHARD, NEXT));
    let ticking = to.clone();
    let other_time = tokio::spawn(async move { ticking.keep_time().await });
    for _ in 0..3 {
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(values(&to).await, values(&from).await);
    }
    assert_eq!(to.stats(), from.stats());
    time.abort();
    other_time.abort();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever happens to sessions while they are copied, the copy is the shard.
    #[test]
    fn a_copy_holds_what_the_shard_holds(steps in vec(any_step(), 0..80), at in 0usize..40) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(check(&steps, at));
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_read_during_the_copy_does_not_expire_early() {
    let (from, to) = two_hosts();
    turn(&from, "short", |session| {
        session.put_bytes(b"v").unwrap();
        session.expire_in(Duration::from_secs(1)).unwrap();
    })
    .await;
    let (mut copy, mut incoming) = (from.copy(SHARD).unwrap(), to.incoming(SHARD));
    assert_eq!(rest(&mut copy, &mut incoming), 1);
    for _ in 0..5 {
        sleep(Duration::from_millis(800)).await;
        turn(&from, "short", |session| assert!(session.exists().unwrap())).await;
    }
    let lag = copy.lag();
    assert_eq!((lag.walking, lag.sessions), (false, 1));
    assert!(lag.bytes < 100, "an access is not the whole session: {lag:?}");
    finish(&from, copy, incoming).await;
    sleep(Duration::from_millis(900)).await;
    turn(&to, "short", |session| assert!(session.exists().unwrap())).await;
    sleep(Duration::from_millis(1100)).await;
    turn(&to, "short", |session| assert!(!session.exists().unwrap())).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_with_somebody_attached_starts_its_time_anew_when_it_moves() {
    let (from, to) = two_hosts();
    turn(&from, "room", |session| {
        session.put_bytes(b"v").unwrap();
        session.expire_in(Duration::from_secs(1)).unwrap();
    })
    .await;
    let mut attached = from.session(SHARD, key("room")).unwrap().attach().unwrap();
    let (mut copy, mut incoming) = (from.copy(SHARD).unwrap(), to.incoming(SHARD));
    rest(&mut copy, &mut incoming);
    sleep(Duration::from_secs(5)).await;
    finish(&from, copy, incoming).await;
    attached.gone().await;
    sleep(Duration::from_millis(900)).await;
    turn(&to, "room", |session| assert!(session.exists().unwrap())).await;
}

#[tokio::test]
async fn the_lag_tells_what_is_left_and_what_changed_behind() {
    let (from, to) = two_hosts();
    for n in 0..100 {
        put(&from, &format!("{n:03}"), &[b'v'; 1000]).await;
    }
    let (mut copy, mut incoming) = (from.copy(SHARD).unwrap(), to.incoming(SHARD));
    let about = |bytes: u64, n: u64| (n * 1000..n * 1100).contains(&bytes) || bytes == 0 && n == 0;
    let lag = copy.lag();
    assert!(lag.walking && about(lag.left_bytes, 100) && lag.sessions == 0, "{lag:?}");
    let n = step(&mut copy, 20_000, &mut incoming);
    assert!((18..=20).contains(&n), "{n} records of 1000 bytes");
    for _ in 0..3 {
        put(&from, "000", &[b'w'; 1000]).await;
        put(&from, "001", &[b'w'; 1000]).await;
        put(&from, "099", &[b'w'; 1000]).await;
    }
    put(&from, "new", &[b'w'; 1000]).await;
    let lag = copy.lag();
    assert_eq!((lag.walking, lag.sessions), (true, 3), "{lag:?}");
    assert!(about(lag.bytes, 3) && about(lag.left_bytes, 100 - n as u64), "{lag:?}");
    for n in 0..100 {
        assert!(n < 99 && step(&mut copy, 1000, &mut incoming) > 0);
        if !copy.lag().walking {
            break;
        }
    }
    assert!(about(copy.lag().bytes, 3), "{:?}", copy.lag());
    assert_eq!(copy.lag().left_bytes, 0);
    assert_eq!(rest(&mut copy, &mut incoming), 3);
    assert_eq!((copy.lag(), incoming.sessions()), (Lag::default(), 101));
}

#[tokio::test]
async fn a_session_that_always_changes_does_not_hold_up_the_walk() {
    let (from, to) = two_hosts();
    for n in 0..50 {
        put(&from, &format!("{n:03}"), b"v").await;
    }
    let (mut copy, mut incoming) = (from.copy(SHARD).unwrap(), to.incoming(SHARD));
    for n in 0.. {
        if step(&mut copy, 1, &mut incoming) == 0 || !copy.lag().walking {
            break;
        }
        assert!(n < 60, "the walk takes one step a session");
        put(&from, "000", b"w").await;
    }
    assert_eq!(copy.lag().sessions, 1);
}

#[tokio::test]
async fn dropping_a_copy_lets_another_begin() {
    let (from, _) = two_hosts();
    put(&from, "s", b"v").await;
    let copy = from.copy(SHARD).unwrap();
    assert!(from.copy(SHARD).is_none());
    drop(copy);
    let copy = from.copy(SHARD).unwrap();
    assert!(copy.lag().walking);
    from.seal(SHARD).await;
    drop(copy);
    assert!(from.copy(SHARD).is_some(), "a sealed shard can be copied");
    from.drop_shard(SHARD);
    assert!(from.copy(SHARD).is_none());
}

#[tokio::test]
async fn the_copy_of_a_shard_that_is_dropped_never_completes() {
    let (from, to) = two_hosts();
    put(&from, "s", b"v").await;
    let (mut copy, mut incoming) = (from.copy(SHARD).unwrap(), to.incoming(SHARD));
    rest(&mut copy, &mut incoming);
    from.drop_shard(SHARD);
    from.activate_empty(SHARD, EPOCH);
    put(&from, "other", b"v").await;
    assert_eq!(step(&mut copy, 1000, &mut incoming), 0);
    assert!(copy.lag().walking);
    let other = from.copy(SHARD).unwrap();
    drop(copy);
    assert!(from.copy(SHARD).is_none(), "an old copy does not end another one");
    drop(other);
}

#[tokio::test]
async fn what_was_copied_and_is_dropped_gives_its_memory_back() {
    let (from, to) = two_hosts();
    for n in 0..10 {
        put(&from, &format!("{n}"), b"v").await;
    }
    let (mut copy, mut incoming) = (from.copy(SHARD).unwrap(), to.incoming(SHARD));
    rest(&mut copy, &mut incoming);
    for n in 0..5 {
        turn(&from, &format!("{n}"), |session| session.delete().unwrap()).await;
    }
    rest(&mut copy, &mut incoming);
    assert_eq!((to.stats().sessions, incoming.sessions()), (5, 5));
    assert_eq!(to.stats().bytes, from.stats().bytes);
    drop(incoming);
    assert_eq!((to.stats().sessions, to.stats().bytes), (0, 0));
}

#[tokio::test]
async fn a_target_without_memory_says_so_and_keeps_what_it_has() {
    let from = host(Ticking);
    let to = host_with(HostConfig { memory_max: 2000, ..HostConfig::default() }, Ticking);
    put(&from, "large", &[b'v'; 3000]).await;
    put(&from, "small", b"v").await;
    let mut copy = from.copy(SHARD).unwrap();
    let mut records = Vec::new();
    copy.next(10_000, &mut records);
    let mut incoming = to.incoming(SHARD);
    let added: Vec<_> = records.iter().map(|record| incoming.add(record).is_ok()).collect();
    assert_eq!(added, [false, true]);
    assert_eq!((incoming.sessions(), to.stats().sessions), (1, 1));
}
