//! What is written is there again; and whose directory it is.

use super::*;
use crate::logic::durable::FORMAT;

#[tokio::test]
async fn what_was_written_is_there_after_a_new_start() {
    let scratch = Scratch::new("again");
    let (disk, recovered) = scratch.open();
    assert_eq!(recovered, Recovered { shards: Vec::new(), unwitnessed: false });
    disk.meta(ShardId(1), owned(0));
    put(&disk, 1, 1, "b", "one");
    put(&disk, 1, 2, "a", "two");
    put(&disk, 1, 3, "b", "three");
    put(&disk, 2, 1, "gone", "x");
    disk.remove(ShardId(2), at(2), b"gone");
    put(&disk, u32::MAX, 7, "last", "shard");
    let last = disk.meta(ShardId(2), copied(2));
    disk.wait(last).await.unwrap();
    assert_eq!(disk.done(), (last, false));
    disk.close().await.unwrap();
    let (disk, recovered) = scratch.open();
    let found = |shard, meta, rows| RecoveredShard {
        shard: ShardId(shard),
        meta: Some(meta),
        rows,
        damaged: None,
    };
    let unsaid =
        ShardMeta { at: at(7), role: Role::Unknown, complete: false, begun: None, alone: false };
    let shards = vec![found(1, owned(3), 2), found(2, copied(2), 0), found(u32::MAX, unsaid, 1)];
    assert_eq!(recovered, Recovered { shards, unwitnessed: false });
    let expected = BTreeMap::from([
        (1, of([("a", 2, "two"), ("b", 3, "three")])),
        (2, of([])),
        (u32::MAX, of([("last", 7, "shard")])),
    ]);
    assert_eq!(contents(&disk, &recovered), expected);
    disk.close().await.unwrap();
}

#[tokio::test]
async fn a_forgotten_shard_is_gone_and_may_come_back() {
    let scratch = Scratch::new("forget");
    let (disk, _) = scratch.open();
    for number in 0..3000 {
        put(&disk, 1, number, &format!("k{number}"), &"x".repeat(1000));
    }
    put(&disk, 2, 1, "other", "shard");
    disk.forget(ShardId(1));
    disk.forget(ShardId(9));
    put(&disk, 1, 1, "new", "life");
    let last = disk.meta(ShardId(1), owned(1));
    disk.wait(last).await.unwrap();
    let expected =
        BTreeMap::from([(1, of([("new", 1, "life")])), (2, of([("other", 1, "shard")]))]);
    disk.close().await.unwrap();
    let (disk, recovered) = scratch.open();
    assert_eq!(contents(&disk, &recovered), expected);
    let last = disk.forget(ShardId(1));
    disk.wait(last).await.unwrap();
    disk.close().await.unwrap();
    let (disk, recovered) = scratch.open();
    assert_eq!(contents(&disk, &recovered).into_keys().collect::<Vec<_>>(), [2]);
    disk.close().await.unwrap();
}

#[tokio::test]
async fn without_sync_it_is_written_at_once_and_synced_when_somebody_waits() {
    let scratch = Scratch::new("lazy");
    let (disk, _) = Disk::open(DiskConfig { sync: false, ..scratch.config() }).unwrap();
    let first = put(&disk, 1, 1, "a", "x");
    while disk.done().0 < first {
        disk.handle.shared.progress.subscribe().changed().await.unwrap();
    }
    let second = put(&disk, 1, 2, "b", "y");
    disk.wait(second).await.unwrap();
    put(&disk, 1, 3, "c", "z");
    disk.close().await.unwrap();
    let (disk, recovered) = scratch.open();
    let expected = of([("a", 1, "x"), ("b", 2, "y"), ("c", 3, "z")]);
    assert_eq!(contents(&disk, &recovered)[&1], expected);
    disk.close().await.unwrap();
}

#[tokio::test]
async fn a_full_queue_has_no_room_until_it_is_written() {
    let scratch = Scratch::new("room");
    let config = DiskConfig { queue_bytes_max: 1 << 20, ..scratch.config() };
    let (disk, _) = Disk::open(config).unwrap();
    let mut number = 0;
    while disk.has_room() {
        number += 1;
        put(&disk, 1, number, &format!("k{number}"), &"x".repeat(100_000));
    }
    disk.room().await;
    assert!(disk.has_room());
    disk.close().await.unwrap();
    let (disk, recovered) = scratch.open();
    assert_eq!(recovered.shards[0].rows, number);
    disk.close().await.unwrap();
}

#[tokio::test]
async fn what_is_handed_over_after_the_end_is_refused() {
    let scratch = Scratch::new("end");
    let (disk, _) = scratch.open();
    let clone = disk.clone();
    disk.close().await.unwrap();
    let late = put(&clone, 1, 1, "a", "x");
    assert_eq!(clone.wait(late).await, Err(DiskFailed::Closed { complete: true }));
    assert!(clone.read(ShardId(1), None, 1).is_err());
}

#[tokio::test]
async fn another_node_s_directory_is_refused_by_name() {
    let scratch = Scratch::new("whose");
    let (disk, _) = scratch.open();
    let refusal = |config: DiskConfig| Disk::open(config).unwrap_err().to_string();
    let text = refusal(scratch.config());
    assert!(text.contains("in use by another process"), "{text}");
    disk.close().await.unwrap();
    let text = refusal(DiskConfig { name: "n2".to_owned(), ..scratch.config() });
    assert!(text.contains("state of node n1") && text.contains("--name n1"), "{text}");
    let text = refusal(DiskConfig { cluster: ClusterId(5), ..scratch.config() });
    assert!(text.contains("another cluster") && text.contains("0000000000000005"), "{text}");
    let identity = scratch.0.join("state/identity");
    let text = std::fs::read_to_string(&identity).unwrap();
    let next = FORMAT + 1;
    let future = text.replace(&format!("state {FORMAT}"), &format!("state {next}"));
    let lines = &future[..future.find("check ").unwrap()];
    let check = crc32fast::hash(lines.as_bytes());
    std::fs::write(&identity, format!("{lines}check {check:08x}\n")).unwrap();
    assert!(refusal(scratch.config()).contains(&format!("format {next}")));
    std::fs::write(&identity, text.replace("n1", "n3")).unwrap();
    assert!(refusal(scratch.config()).contains("missing or broken"));
    std::fs::remove_file(&identity).unwrap();
    assert!(refusal(scratch.config()).contains("missing or broken"));
    std::fs::write(&identity, text).unwrap();
    scratch.open().0.close().await.unwrap();
}

/// Goal: slots come back with their session, also behind a page's end, after the session came and
/// went, and after a start that has to find out which there are.
#[tokio::test]
async fn slots_come_back_with_their_session() {
    let scratch = Scratch::new("slots");
    let (disk, _) = scratch.open();
    let text = |slot: u8| Bytes::from(format!("{slot}-{}", "x".repeat(60)));
    disk.meta(ShardId(1), owned(0));
    for (seq, slot) in (1..).zip(0..100) {
        put_with(&disk, 1, seq, "a", ("own", Slots::One(slot, text(slot))));
    }
    put_with(&disk, 1, 200, "a\0", ("other", Slots::One(191, text(191))));
    put_with(&disk, 1, 201, "gone", ("own", Slots::All(vec![(0, text(0)), (150, text(150))])));
    disk.remove(ShardId(1), at(202), b"gone");
    disk.close().await.unwrap();
    let (disk, recovered) = scratch.open();
    assert_eq!((recovered.shards[0].rows, &recovered.shards[0].damaged), (103, &None));
    let own =
        |it: &SavedSession| String::from_utf8(it.own.as_ref().unwrap().record.to_vec()).unwrap();
    let step = disk.read(ShardId(1), None, 1).unwrap();
    assert_eq!((step.len(), &*step[0].key, own(&step[0])), (1, &b"a"[..], "own".to_owned()));
    let slots: Vec<_> = step[0].slots.iter().map(|(slot, it)| (*slot, it.record.clone())).collect();
    assert_eq!(slots, (0..100).map(|slot| (slot, text(slot))).collect::<Vec<_>>());
    let step = disk.read(ShardId(1), Some(b"a"), 1000).unwrap();
    assert_eq!((step.len(), &*step[0].key, step[0].slots[0].0), (1, &b"a\0"[..], 191));
    assert_eq!(disk.read(ShardId(1), Some(b"a\0"), 1000).unwrap(), []);
    put_with(&disk, 1, 203, "a", ("own", Slots::All(vec![(7, text(7))])));
    disk.remove(ShardId(1), at(204), b"a\0");
    disk.close().await.unwrap();
    let (disk, recovered) = scratch.open();
    assert_eq!((recovered.shards[0].rows, &recovered.shards[0].damaged), (2, &None));
    let step = disk.read(ShardId(1), None, 1000).unwrap();
    assert_eq!(step[0].slots.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [7]);
    disk.close().await.unwrap();
}
