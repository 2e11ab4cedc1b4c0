//! Sessions that two hosts served at once, brought together.

use bytes::Bytes;
use http::{Request, Response};
use std::sync::Arc;
use stead_node::{
    Body, Gate, Host, HostConfig, MergeError, Merged, RecordError, Service, Session, SetAside,
};
use stead_shared::control::ShardEpoch;
use stead_shared::id::{Epoch, NodeId};
use stead_shared::refusal::Refusal;
use tokio::sync::Semaphore;

use crate::common::{EPOCH, SHARD, ask, host, host_with, key, say, settle, start};

/// The epoch of the one who took over.
const NEXT: Epoch = Epoch { counter: 2, node: NodeId(0xb) };

/// Adds what the body says to a counter; after a permit, when it says `wait`, and then nothing.
#[derive(Clone)]
pub(crate) struct Adding {
    gate: Arc<Semaphore>,
}

impl Adding {
    pub(crate) fn new() -> Self {
        Self { gate: Arc::new(Semaphore::new(0)) }
    }
}

impl Service for Adding {
    async fn call(&self, session: Session, request: Request<Body>) -> Response<Body> {
        let body = request.into_body().collect_up_to(100).await.unwrap();
        if body == "wait" {
            self.gate.acquire().await.unwrap().forget();
            return Response::new(Body::empty());
        }
        let by: i64 = std::str::from_utf8(&body).unwrap().parse().unwrap();
        Response::new(session.add("n", by).unwrap().to_string().into())
    }
}

fn at(epoch: Epoch) -> ShardEpoch {
    ShardEpoch { shard: SHARD, epoch }
}

/// A host that was taken for dead, and the one that took its shard over.
fn two_hosts(service: &Adding) -> (Host, Host) {
    let (old, new) = (host(service.clone()), host(service.clone()));
    new.drop_shard(SHARD);
    new.activate_empty(SHARD, NEXT);
    (old, new)
}

fn records(aside: &SetAside) -> Vec<Bytes> {
    aside.records().collect()
}

/// Merges all records: the number taken, and the number kept.
async fn merge(to: &Host, records: &[Bytes]) -> (usize, usize) {
    let (mut taken, mut kept) = (0, 0);
    let mut merging = to.merging(at(NEXT));
    for record in records {
        match merging.add(record).await.unwrap() {
            Some(Merged::Taken) => taken += 1,
            Some(Merged::Kept) => kept += 1,
            None => {}
        }
    }
    (taken, kept)
}

#[tokio::test]
async fn what_is_absent_is_taken_and_counters_have_what_both_added() {
    let (old, new) = two_hosts(&Adding::new());
    for session in ["both", "one", "other"] {
        say(&old, session, "10").await;
    }
    say(&new, "both", "1").await;
    say(&new, "new", "1").await;
    let aside = old.set_aside(SHARD).unwrap();
    assert_eq!(merge(&new, &records(&aside)).await, (3, 0));
    assert_eq!(say(&new, "one", "1").await, "11");
    assert_eq!(say(&new, "both", "1").await, "12");
    assert_eq!(say(&new, "new", "1").await, "2");
    let sessions = new.shard_stats(SHARD).unwrap();
    assert_eq!((sessions.sessions, sessions.bytes), (4, new.stats().bytes));
}

#[tokio::test]
async fn merging_again_takes_nothing_twice() {
    let (old, new) = two_hosts(&Adding::new());
    say(&old, "a", "10").await;
    say(&old, "b", "10").await;
    let records = records(&old.set_aside(SHARD).unwrap());
    assert_eq!(merge(&new, &records).await, (2, 0));
    assert_eq!(merge(&new, &records).await, (2, 0), "the same state is as good as taken");
    say(&new, "a", "1").await;
    assert_eq!(merge(&new, &records).await, (2, 0), "what came of it since stays");
    assert_eq!(new.conflicts(), []);
    let stats = new.shard_stats(SHARD).unwrap();
    assert_eq!((stats.sessions, stats.bytes), (2, new.stats().bytes));
    assert_eq!(say(&new, "a", "1").await, "12");
}

#[tokio::test]
async fn a_state_that_goes_on_from_the_one_here_takes_its_place() {
    let (old, new) = two_hosts(&Adding::new());
    say(&old, "s", "10").await;
    let then: Vec<Bytes> = old.export(SHARD).unwrap().collect();
    assert_eq!(merge(&new, &then).await, (1, 0));
    say(&old, "s", "1").await;
    let records = records(&old.set_aside(SHARD).unwrap());
    assert_eq!(merge(&new, &records).await, (1, 0));
    assert_eq!(merge(&new, &then).await, (0, 1), "what is older does not");
    assert_eq!(say(&new, "s", "1").await, "12");
    assert_eq!(merge(&new, &records).await, (1, 0), "what came of it since stays");
    assert_eq!(say(&new, "s", "1").await, "13");
    let sessions = new.shard_stats(SHARD).unwrap();
    assert_eq!((sessions.sessions, sessions.bytes), (1, new.stats().bytes));
}

#[tokio::test]
async fn versions_come_along_and_numbers_go_on_above_them() {
    let (old, new) = two_hosts(&Adding::new());
    for _ in 0..5 {
        say(&old, "s", "1").await;
    }
    merge(&new, &records(&old.set_aside(SHARD).unwrap())).await;
    let version = async |name: &str| {
        let session = new.session(SHARD, key(name)).unwrap();
        session.turn(|session| session.version(), |_| ()).await.unwrap().unwrap()
    };
    assert_eq!((version("s").await.epoch, version("s").await.seq), (EPOCH, 5));
    say(&new, "t", "1").await;
    // That the session was taken in was a change too.
    assert_eq!((version("t").await.epoch, version("t").await.seq), (NEXT, 7));
}

#[tokio::test]
async fn only_who_serves_the_shard_in_that_epoch_takes_sessions() {
    let (old, new) = two_hosts(&Adding::new());
    say(&old, "s", "1").await;
    let aside = old.set_aside(SHARD).unwrap();
    let record = &records(&aside)[1];
    let higher = NEXT.next(NEXT.node);
    assert_eq!(new.merging(at(higher)).add(record).await, Err(MergeError::NotServed));
    assert_eq!(old.merging(at(NEXT)).add(record).await, Err(MergeError::NotServed));
    new.seal(SHARD).await;
    assert_eq!(new.merging(at(NEXT)).add(record).await, Err(MergeError::NotServed));
    assert_eq!(new.stats().sessions, 0);
    new.reopen(SHARD, higher);
    assert_eq!(new.merging(at(NEXT)).add(record).await, Ok(Some(Merged::Taken)));
    let garbage = new.merging(at(NEXT)).add(b"no record").await;
    assert_eq!(garbage, Err(RecordError::Format(b'n').into()));
}

#[tokio::test]
async fn a_session_that_does_not_fit_is_left_and_nothing_is_counted_for_it() {
    let service = Adding::new();
    let (old, _) = two_hosts(&service);
    for session in ["a", "b", "c"] {
        say(&old, session, "1").await;
    }
    let memory_max = old.stats().bytes * 5 / 6;
    let new = host_with(HostConfig { memory_max, ..HostConfig::default() }, service);
    let aside = old.set_aside(SHARD).unwrap();
    let mut outcomes = Vec::new();
    for record in &records(&aside)[1..] {
        outcomes.push(new.merging(at(EPOCH)).add(record).await);
    }
    let full = MergeError::Record(RecordError::MemoryFull);
    assert_eq!(outcomes, [Ok(Some(Merged::Taken)), Ok(Some(Merged::Taken)), Err(full)]);
    assert_eq!(new.stats().sessions, 2);
    assert_eq!(new.shard_stats(SHARD).unwrap().bytes, new.stats().bytes);
    assert_eq!(old.stats().sessions, 3, "what is set aside is in memory");
    drop(aside);
    assert_eq!(old.stats(), stead_node::HostStats::default());
}

#[tokio::test]
async fn a_session_waits_until_nobody_works_on_the_belief_that_it_is_absent() {
    let service = Adding::new();
    let (old, new) = two_hosts(&service);
    say(&old, "s", "10").await;
    let record = records(&old.set_aside(SHARD).unwrap())[1].clone();
    let running = start(&new, "s", "wait");
    settle().await;
    let next_in_line = start(&new, "s", "1");
    settle().await;
    let merging = tokio::spawn({
        let new = new.clone();
        async move { new.merging(at(NEXT)).add(&record).await }
    });
    settle().await;
    assert_eq!(new.stats().sessions, 0);
    service.gate.add_permits(1);
    running.await.unwrap().unwrap();
    // The one before the merge made a session of its own: that one stays.
    next_in_line.await.unwrap().unwrap();
    assert_eq!(merging.await.unwrap(), Ok(Some(Merged::Kept)));
    assert_eq!(say(&new, "s", "0").await, "1");
}

#[tokio::test]
async fn a_session_whose_turn_left_nothing_is_taken_after_it() {
    let service = Adding::new();
    let (old, new) = two_hosts(&service);
    say(&old, "s", "10").await;
    let record = records(&old.set_aside(SHARD).unwrap())[1].clone();
    let running = start(&new, "s", "wait");
    settle().await;
    let merging = tokio::spawn({
        let new = new.clone();
        async move { new.merging(at(NEXT)).add(&record).await }
    });
    settle().await;
    service.gate.add_permits(1);
    running.await.unwrap().unwrap();
    assert_eq!(merging.await.unwrap(), Ok(Some(Merged::Taken)));
    assert_eq!(say(&new, "s", "1").await, "11");
}

#[tokio::test]
async fn a_shard_that_was_set_aside_is_not_here_any_more() {
    let service = Adding::new();
    let (old, _) = two_hosts(&service);
    say(&old, "s", "10").await;
    let running = start(&old, "s", "wait");
    settle().await;
    let aside = old.set_aside(SHARD).unwrap();
    assert_eq!(ask(&old, "s", "1").await.unwrap_err(), Refusal::NotOwner { claim: None });
    assert!(old.set_aside(SHARD).is_none());
    // It may come back, empty, while the old sessions wait for their owner.
    old.activate_empty(SHARD, NEXT);
    assert_eq!(say(&old, "s", "1").await, "1");
    service.gate.add_permits(1);
    running.await.unwrap().unwrap();
    assert_eq!(aside.sessions(), 1);
    assert_eq!(old.gate(SHARD), Some(Gate::Serving(NEXT)));
    drop(aside);
    assert_eq!(say(&old, "s", "1").await, "2");
}
