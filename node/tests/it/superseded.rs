//! Shards that are taken back, and owners that were taken for dead.

use stead_node::{Merged, ReplicaReport};

use stead_shared::control::ShardEpoch;

use crate::common::{SHARD, say};
use crate::peers::Peer;

#[tokio::test]
async fn whoever_is_to_follow_a_shard_that_is_taken_back_has_its_first_change() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    a.owns(1);
    say(&a.host, "s", "x").await;
    a.fill(&mut b).await;
    a.host.seal(SHARD).await;
    // Nothing can be said to follow before it opens again.
    a.host.adopt(b.me, b.addr, vec![a.at(3)], true);
    assert!(a.host.reopen(SHARD, a.epoch(3)));
    assert_eq!(say(&a.host, "s", "x").await, "2");
    assert_eq!(a.report().await, ReplicaReport::Filled { to: b.me, shards: vec![a.at(3)] });
    assert_eq!((b.copy().epoch, b.copy().seq, b.copy().complete), (a.epoch(3), 2, true));
    // The same of one that was granted away for nothing and is a copy meanwhile.
    a.host.seal(SHARD).await;
    assert!(a.host.keep_as_copy(SHARD, b.me, b.epoch(4)));
    a.host.adopt(b.me, b.addr, vec![a.at(5)], true);
    assert!(a.host.reopen(SHARD, a.epoch(5)));
    assert_eq!(say(&a.host, "s", "x").await, "3");
    assert_eq!(a.report().await, ReplicaReport::Filled { to: b.me, shards: vec![a.at(5)] });
    assert_eq!((b.copy().epoch, b.copy().seq), (a.epoch(5), 3));
}

#[tokio::test]
async fn what_a_promoted_copy_had_is_no_conflict() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    a.owns(1);
    for name in ["same", "changed", "deleted", "both"] {
        say(&a.host, name, "x").await;
    }
    a.fill(&mut b).await;
    // The owner goes on alone with two of them, and is superseded.
    a.host.set_followers(SHARD, &[]);
    say(&a.host, "both", "x").await;
    say(&a.host, "new", "x").await;
    assert!(b.host.promote(SHARD, b.epoch(2)));
    assert_eq!(say(&b.host, "changed", "x").await, "2");
    say(&b.host, "deleted", "delete").await;
    assert_eq!(say(&b.host, "both", "x").await, "2");
    let mut kept = 0;
    let mut merging = b.host.merging(ShardEpoch { shard: SHARD, epoch: b.epoch(2) });
    for record in a.host.set_aside(SHARD).unwrap().records() {
        let merged = merging.add(&record).await.unwrap();
        kept += u32::from(merged == Some(Merged::Kept));
    }
    assert_eq!(kept, 0, "counters have what both have added");
    for (name, next) in [("same", "2"), ("changed", "3"), ("deleted", "1"), ("both", "4")] {
        assert_eq!(say(&b.host, name, "x").await, next, "{name}");
    }
    assert_eq!(say(&b.host, "new", "x").await, "2", "it is here now");
}
