//! Two histories of a shard that meet.

use std::sync::Arc;

use stead_node::logic::heal;
use stead_node::{Host, HostConfig, Merged, RequestMeta};
use stead_shared::control::ShardEpoch;
use stead_shared::id::{BootId, Epoch, NodeId, RequestId};

use crate::common::{EPOCH, SHARD, host_with, key, meta, post};

/// The epoch of the one that took over.
const NEXT: Epoch = Epoch { counter: EPOCH.counter + 1, node: NodeId(77) };

fn host(merge: Option<Arc<dyn heal::Merge>>) -> Host {
    let service = crate::merge::Adding::new();
    let config = HostConfig { merge, ..HostConfig::default() };
    host_with(config, service)
}

async fn put(host: &Host, name: &str, value: &str) {
    let session = host.session(SHARD, key(name)).unwrap();
    session.turn(|session| session.put_bytes(value.as_bytes()), |()| ()).await.unwrap();
}

async fn add(host: &Host, name: &str, by: i64) {
    let session = host.session(SHARD, key(name)).unwrap();
    session.turn(|session| session.add("n", by), |_| ()).await.unwrap();
}

/// The value and the counter of a session.
async fn read(host: &Host, name: &str) -> (Option<String>, Option<i64>) {
    let session = host.session(SHARD, key(name)).unwrap();
    let read = session.turn(|session| Ok((session.bytes()?, session.counter("n")?)), |_| ());
    let (value, counter) = read.await.unwrap();
    (value.map(|value| String::from_utf8(value.to_vec()).unwrap()), counter)
}

/// An owner that goes on, and a host that serves a copy of what the owner has now.
fn part(owner: &Host, heir: &Host) {
    take_over(owner, heir, NEXT);
}

/// The heir serves a copy in this epoch.
fn take_over(owner: &Host, heir: &Host, at: Epoch) {
    take_over_from(owner, EPOCH, heir, at);
}

/// The same where the owner serves the shard in the epoch `from`.
fn take_over_from(owner: &Host, from: Epoch, heir: &Host, at: Epoch) {
    let mut incoming = heir.incoming_from(ShardEpoch { shard: SHARD, epoch: from });
    for record in owner.export(SHARD).unwrap() {
        incoming.add(&record).unwrap();
    }
    incoming.activate(at);
}

/// The heir gets what the owner has: number of sessions taken, and lost to the heir's changes.
async fn meet(owner: &Host, heir: &Host) -> (usize, usize) {
    let aside = owner.set_aside(SHARD).unwrap();
    let mut merging = heir.merging(ShardEpoch { shard: SHARD, epoch: NEXT });
    let (mut taken, mut kept) = (0, 0);
    for record in aside.records() {
        match merging.add(&record).await.unwrap() {
            Some(Merged::Taken) => taken += 1,
            Some(Merged::Kept) => kept += 1,
            None => {}
        }
    }
    merging.finish();
    (taken, kept)
}

#[tokio::test]
async fn what_one_side_changed_counts_and_of_two_values_the_later() {
    let (owner, heir) = (host(None), host(None));
    for name in ["same", "there", "here", "early", "late", "alike"] {
        put(&owner, name, "common").await;
    }
    part(&owner, &heir);
    put(&heir, "here", "heir").await;
    put(&heir, "early", "heir").await;
    put(&owner, "there", "owner").await;
    put(&owner, "late", "owner").await;
    put(&owner, "early", "owner").await;
    put(&heir, "late", "heir").await;
    put(&heir, "alike", "both").await;
    put(&owner, "alike", "both").await;
    put(&owner, "new", "owner").await;
    assert_eq!(meet(&owner, &heir).await, (5, 2));
    for (name, value) in [
        ("same", "common"),
        ("there", "owner"),
        ("here", "heir"),
        ("early", "owner"),
        ("late", "heir"),
        ("alike", "both"),
        ("new", "owner"),
    ] {
        assert_eq!(read(&heir, name).await.0.as_deref(), Some(value), "{name}");
    }
    let mut lost: Vec<_> = heir
        .conflicts()
        .into_iter()
        .map(|it| (it.key, String::from_utf8(it.value.to_vec()).unwrap()))
        .collect();
    lost.sort();
    let wanted = [(key("early"), "heir".to_owned()), (key("late"), "owner".to_owned())];
    assert_eq!(lost, wanted);
}

/// Adds 1 for a request with this number.
async fn ask(host: &Host, name: &str, number: u64) {
    let id = RequestId { boot: BootId(9), counter: number };
    let meta = RequestMeta { id, attempt: 2, first_sent_ms: 1, ..meta(name) };
    let _answer = host.serve(meta, post("1")).await.unwrap();
}

/// Goal: what was repeated across a cut counts once, and nothing else does. Method: the same request,
/// and one of each side's own, before and after.
#[tokio::test]
async fn what_both_sides_executed_counts_once() {
    let (owner, heir) = (host(None), host(None));
    ask(&owner, "s", 1).await;
    part(&owner, &heir);
    ask(&heir, "s", 1).await;
    assert_eq!(read(&heir, "s").await.1, Some(1), "answered again");
    for (host, numbers) in [(&owner, [2, 3]), (&heir, [2, 4])] {
        for number in numbers {
            ask(host, "s", number).await;
        }
    }
    let other = host(None);
    take_over(&owner, &other, Epoch { counter: EPOCH.counter + 1, node: NodeId(55) });
    meet(&owner, &heir).await;
    assert_eq!(read(&heir, "s").await.1, Some(4), "1, 2, 3 and 4");
    // Another one with the same history comes, to one that took over since.
    let next = host(None);
    take_over(&heir, &next, Epoch { counter: NEXT.counter + 1, node: NodeId(78) });
    ask(&next, "s", 5).await;
    meet(&other, &next).await;
    assert_eq!(read(&next, "s").await.1, Some(5));
    for number in 1..=5 {
        ask(&next, "s", number).await;
    }
    assert_eq!(read(&next, "s").await.1, Some(5), "all are answered again");
}

#[tokio::test]
async fn counters_have_what_both_added_whatever_became_of_the_values() {
    let (owner, heir) = (host(None), host(None));
    add(&owner, "s", 100).await;
    add(&owner, "unchanged", 5).await;
    part(&owner, &heir);
    add(&owner, "s", 7).await;
    put(&owner, "s", "owner").await;
    add(&owner, "s", -2).await;
    put(&heir, "s", "heir").await;
    add(&heir, "s", 30).await;
    meet(&owner, &heir).await;
    assert_eq!(read(&heir, "s").await, (Some("heir".to_owned()), Some(135)));
    assert_eq!(read(&heir, "unchanged").await, (None, Some(5)));
    add(&heir, "s", 1).await;
    assert_eq!(read(&heir, "s").await.1, Some(136));
}

#[tokio::test]
async fn a_shard_that_began_empty_gets_all_that_there_was() {
    let (owner, fresh) = (host(None), host(None));
    add(&owner, "s", 100).await;
    put(&owner, "s", "owner").await;
    fresh.drop_shard(SHARD);
    fresh.activate_empty(SHARD, NEXT);
    add(&fresh, "s", 3).await;
    assert_eq!(meet(&owner, &fresh).await, (1, 0));
    assert_eq!(read(&fresh, "s").await, (Some("owner".to_owned()), Some(103)));
    assert_eq!(fresh.conflicts(), []);
}

#[tokio::test]
async fn what_is_offered_twice_is_counted_once() {
    let (owner, heir) = (host(None), host(None));
    add(&owner, "s", 100).await;
    put(&owner, "s", "common").await;
    part(&owner, &heir);
    add(&owner, "s", 7).await;
    put(&owner, "s", "owner").await;
    let aside = owner.set_aside(SHARD).unwrap();
    for _ in 0..3 {
        let mut merging = heir.merging(ShardEpoch { shard: SHARD, epoch: NEXT });
        for record in aside.records() {
            merging.add(&record).await.unwrap();
        }
        add(&heir, "s", 1).await;
        put(&heir, "s", "heir").await;
    }
    assert_eq!(read(&heir, "s").await, (Some("heir".to_owned()), Some(110)));
    assert_eq!(heir.conflicts(), []);
}

#[tokio::test]
async fn a_deleted_session_that_the_other_side_changed_stays() {
    let (owner, heir) = (host(None), host(None));
    for name in ["changed", "unchanged"] {
        put(&owner, name, "common").await;
    }
    part(&owner, &heir);
    put(&owner, "changed", "owner").await;
    for name in ["changed", "unchanged"] {
        let session = heir.session(SHARD, key(name)).unwrap();
        session.turn(|session| session.delete(), |()| ()).await.unwrap();
    }
    meet(&owner, &heir).await;
    assert_eq!(read(&heir, "changed").await.0.as_deref(), Some("owner"));
    assert_eq!(read(&heir, "unchanged").await.0, None);
}

#[tokio::test]
async fn an_application_makes_one_value_of_two() {
    let merge = |_: Option<&[u8]>, ours: &[u8], theirs: &[u8]| {
        heal::Merged::Both([ours, b"+", theirs].concat())
    };
    let (owner, heir) = (host(None), host(Some(Arc::new(merge))));
    put(&owner, "s", "common").await;
    part(&owner, &heir);
    put(&owner, "s", "owner").await;
    put(&heir, "s", "heir").await;
    assert_eq!(meet(&owner, &heir).await, (1, 0));
    assert_eq!(read(&heir, "s").await.0.as_deref(), Some("heir+owner"));
    assert_eq!(heir.conflicts(), []);
}

/// Offers what `owner` has to `heir`, which has all of it that was answered, as the owner believes.
async fn offer_unconfirmed(owner: &Host, heir: &Host, at: Epoch) {
    let aside = owner.set_aside(SHARD).unwrap();
    let mut records = aside.records();
    let mut merging = heir.merging(ShardEpoch { shard: SHARD, epoch: at });
    merging.add(&records.next().unwrap()).await.unwrap();
    let unconfirmed = [2, 8];
    assert_eq!(merging.add(&unconfirmed).await, Ok(None));
    for record in records {
        merging.add(&record).await.unwrap();
    }
}

/// Seen with processes: both sides of a cut had gone on with a shard, and when it healed a node followed
/// one side and took over from that when it took its owner for dead. The owner of the other side, which
/// it was a copy of, too, thought that it had all that had been answered there.
#[tokio::test]
async fn who_took_over_from_another_history_has_not_what_was_answered_in_this_one() {
    let at = |counter, node| Epoch { counter: EPOCH.counter + counter, node: NodeId(node) };
    // The side that the owner of before is on goes on in its epoch.
    for goes_on in [true, false] {
        let [before, other, there, heir] = [(); 4].map(|()| host(None));
        add(&before, "s", 1).await;
        take_over(&before, &there, at(1, 72));
        take_over(&before, &other, at(1, 71));
        let here = if goes_on { before } else { other };
        add(&here, "s", 7).await;
        add(&there, "s", 70).await;
        take_over_from(&there, at(1, 72), &heir, at(2, 73));
        add(&heir, "s", 700).await;
        offer_unconfirmed(&here, &heir, at(2, 73)).await;
        assert_eq!(read(&heir, "s").await.1, Some(778), "{goes_on}");
    }
}

/// Seen with processes: a node was stopped in the middle of a change, which its router asked for again
/// elsewhere; when it went on, the counter had both.
#[tokio::test]
async fn what_nobody_was_answered_does_not_count_beside_what_was_asked_again() {
    let (owner, heir) = (host(None), host(None));
    for name in ["again", "alone"] {
        add(&owner, name, 100).await;
    }
    part(&owner, &heir);
    for (host, name) in [(&owner, "again"), (&heir, "again"), (&owner, "alone")] {
        add(host, name, 1).await;
    }
    offer_unconfirmed(&owner, &heir, NEXT).await;
    assert_eq!(read(&heir, "again").await.1, Some(101));
    assert_eq!(read(&heir, "alone").await.1, Some(101));
    assert_eq!(heir.conflicts(), []);
}

/// The same as [`meet`], of one who serves in the epoch `at`.
async fn meet_at(owner: &Host, heir: &Host, at: Epoch) {
    let aside = owner.set_aside(SHARD).unwrap();
    let mut merging = heir.merging(ShardEpoch { shard: SHARD, epoch: at });
    for record in aside.records() {
        merging.add(&record).await.unwrap();
    }
    merging.finish();
}

/// What was taken over from an older history is not in a copy that was made before.
#[tokio::test]
async fn what_was_taken_over_goes_on_to_who_has_an_older_copy() {
    let later = |n| Epoch { counter: NEXT.counter + n, node: NodeId(78 + n) };
    let (owner, heir, other, last) = (host(None), host(None), host(None), host(None));
    put(&owner, "both", "common").await;
    part(&owner, &heir);
    put(&heir, "there", "heir").await;
    take_over_from(&heir, NEXT, &other, later(1));
    put(&other, "both", "other").await;
    put(&owner, "new", "owner").await;
    put(&owner, "both", "owner").await;
    assert_eq!(meet(&owner, &heir).await, (2, 0));
    meet_at(&heir, &other, later(1)).await;
    assert_eq!(read(&other, "new").await.0.as_deref(), Some("owner"));
    // The later writer's stays, the other one is listed.
    assert_eq!(read(&other, "both").await.0.as_deref(), Some("owner"));
    assert_eq!(other.conflicts().len(), 1);
    // From now on it is known what was taken over, also to who goes on from here.
    take_over_from(&other, later(1), &last, later(2));
    put(&last, "new", "last").await;
    add(&other, "new", 1).await;
    meet_at(&other, &last, later(2)).await;
    assert_eq!(read(&last, "new").await, (Some("last".to_owned()), Some(1)));
    assert!(last.conflicts().is_empty(), "its writer had seen what it replaced");
}
