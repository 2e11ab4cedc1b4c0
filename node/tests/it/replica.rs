//! Copies on other hosts, over real links.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, StatusCode};
use stead_node::{Body, HostConfig, Lost, ReplicaReport, TurnError};
use stead_shared::control::ShardEpoch;
use stead_shared::id::{ShardId, Version};
use stead_shared::refusal::Refusal;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::common::{SHARD, ask, key, meta, post, say, settle, text};
use crate::peers::{Peer, SOON, contents, names};

#[tokio::test]
async fn a_promoted_copy_is_what_its_owner_was() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    a.owns(1);
    let names = names(40);
    for name in &names[..20] {
        say(&a.host, name, "before").await;
    }
    a.fill(&mut b).await;
    for (n, name) in names.iter().enumerate() {
        say(&a.host, name, &format!("after {n}")).await;
        if n % 5 == 0 {
            say(&a.host, name, "delete").await;
        }
    }
    say(&a.host, "brief", "brief").await;
    say(&a.host, "brief", "read").await;
    let before = contents(&a.host, &names).await;
    assert_eq!(before.values().filter(|(value, ..)| value.is_some()).count(), 32);
    // All of it was answered, so all of it is there.
    let copy = b.copy();
    assert_eq!((copy.owner, copy.epoch, copy.complete), (a.me, a.epoch(1), true));
    assert_eq!(copy.sessions, 32, "what was deleted or expired is gone");
    assert_eq!((b.host.stats().sessions, b.host.stats().shards), (0, 0), "not its own yet");

    assert!(b.host.promote(SHARD, b.epoch(2)));
    assert!(!b.host.promote(SHARD, b.epoch(2)), "there is none any more");
    assert_eq!(contents(&b.host, &names).await, before);
    assert_eq!((b.host.stats().sessions, b.host.copies()), (32, Vec::new()));
    // Numbers go on where the copy ended.
    say(&b.host, "next", "x").await;
    let next = contents(&b.host, &["next".to_owned()]).await;
    let version = Version { epoch: b.epoch(2), seq: copy.seq + 1 };
    assert_eq!(next["next"].2, Some(version));
}

#[tokio::test]
async fn a_fill_while_the_shard_is_written_to_misses_nothing() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    a.owns(1);
    let names = names(600);
    for name in &names[..500] {
        say(&a.host, name, "before").await;
    }
    let writing = Arc::new(AtomicBool::new(true));
    let writer = tokio::spawn({
        let (host, names, writing) = (a.host.clone(), names.clone(), Arc::clone(&writing));
        async move {
            let mut n = 0usize;
            while writing.load(Ordering::Relaxed) || n < 2000 {
                n += 1;
                let body = if n.is_multiple_of(7) { "delete" } else { "during" };
                say(&host, &names[n * 31 % names.len()], body).await;
                tokio::task::yield_now().await;
            }
        }
    });
    settle().await;
    a.fill(&mut b).await;
    writing.store(false, Ordering::Relaxed);
    writer.await.unwrap();
    let before = contents(&a.host, &names).await;
    assert!(b.host.promote(SHARD, b.epoch(2)));
    assert_eq!(contents(&b.host, &names).await, before);
    assert_eq!(b.host.stats().sessions, a.host.stats().sessions);
}

#[tokio::test]
async fn an_answer_waits_for_members_and_leaves_when_there_are_none() {
    let config = HostConfig { silent_after: Duration::from_millis(50), ..HostConfig::default() };
    let (mut a, mut b) = (Peer::start_with("a", config), Peer::start("b"));
    a.owns(1);
    a.fill(&mut b).await;
    say(&a.host, "s", "one").await;
    b.be_deaf(&a).await;
    assert_eq!(say(&a.host, "s", "read").await, "1", "nothing to wait for");
    let host = a.host.clone();
    let mut waiting = tokio::spawn(async move { say(&host, "s", "two").await });
    for _ in 0..2 {
        assert_eq!(a.report().await, ReplicaReport::FollowerSilent { to: b.me });
    }
    assert!(!waiting.is_finished());
    // What a read sees was not acknowledged either.
    let host = a.host.clone();
    let reading = tokio::spawn(async move { say(&host, "s", "read").await });
    settle().await;
    assert!(!waiting.is_finished() && !reading.is_finished());
    a.host.set_followers(SHARD, &[]);
    assert_eq!(timeout(SOON, &mut waiting).await.expect("soon").unwrap(), "2");
    assert_eq!(timeout(SOON, reading).await.expect("soon").unwrap(), "2");
    assert_eq!(say(&a.host, "s", "three").await, "3");
}

#[tokio::test]
async fn an_answer_that_waits_is_lost_with_its_shard() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    a.owns(1);
    a.fill(&mut b).await;
    b.be_deaf(&a).await;
    let host = a.host.clone();
    let waiting = tokio::spawn(async move { ask(&host, "s", "two").await });
    let session = a.host.session(SHARD, key("t")).unwrap();
    let handle = tokio::spawn(async move {
        session.turn(|session| session.add("n", 1), |_| panic!("it is not acknowledged")).await
    });
    settle().await;
    assert!(!waiting.is_finished() && !handle.is_finished());
    a.host.drop_shard(SHARD);
    let (status, _) = timeout(SOON, waiting).await.expect("soon").unwrap().unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!(timeout(SOON, handle).await.expect("soon").unwrap(), Err(TurnError::Lost));
}

#[tokio::test]
async fn a_seal_ends_when_members_have_everything() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    a.owns(1);
    a.fill(&mut b).await;
    b.be_deaf(&a).await;
    let host = a.host.clone();
    let waiting = tokio::spawn(async move { say(&host, "s", "one").await });
    settle().await;
    let sealed = tokio::spawn(a.host.seal(SHARD));
    settle().await;
    assert!(!sealed.is_finished());
    // It listens again.
    b.is_deaf.store(false, Ordering::Relaxed);
    a.cut(&b).await;
    timeout(SOON, sealed).await.expect("soon").unwrap();
    assert_eq!(timeout(SOON, waiting).await.expect("soon").unwrap(), "1");
    assert_eq!(b.copy().seq, 1);
}

#[tokio::test]
async fn connections_break_and_nothing_is_missing_or_doubled() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    a.owns(1);
    a.fill(&mut b).await;
    let names = names(10);
    for round in 0..8 {
        let mut turns = Vec::new();
        for n in 0..60 {
            let (host, name) = (a.host.clone(), names[n % names.len()].clone());
            let body = "x".repeat(n * 100);
            turns.push(tokio::spawn(async move { say(&host, &name, &body).await }));
            if n == 20 + round {
                settle().await;
                a.cut(&b).await;
            }
        }
        for turn in turns {
            timeout(SOON, turn).await.expect("soon").unwrap();
        }
        assert_eq!(b.copy().seq, 60 * (round as u64 + 1), "round {round}");
    }
    let before = contents(&a.host, &names).await;
    assert!(b.host.promote(SHARD, b.epoch(2)));
    assert_eq!(contents(&b.host, &names).await, before);
    assert!(before.values().all(|(_, n, _)| *n == Some(48)));
    assert!(a.reports.try_recv().is_err() && b.reports.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_copies_that_come_and_go_under_load_are_the_same_in_the_end() {
    let (mut a, mut b, c) = (Peer::start("a"), Peer::start("b"), Peer::start("c"));
    a.owns(1);
    let at = a.at(1);
    a.fill(&mut b).await;
    let names = names(50);
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (host, names) = (a.host.clone(), names.clone());
            tokio::spawn(async move {
                for n in 0..500 {
                    let name = &names[(n * 7 + writer) % names.len()];
                    let body = if n % 9 == 0 { "delete".to_owned() } else { n.to_string() };
                    say(&host, name, &body).await;
                }
            })
        })
        .collect();
    while !writers.iter().all(|writer| writer.is_finished()) {
        a.host.begin_fill(c.me, c.addr, vec![at]);
        assert_eq!(a.report().await, ReplicaReport::Filled { to: c.me, shards: vec![at] });
        a.host.set_followers(SHARD, &[b.me, c.me]);
        a.cut(&c).await;
        tokio::task::yield_now().await;
        a.cut(&b).await;
        a.host.set_followers(SHARD, &[b.me]);
        // One that is called off, if that comes in time.
        a.host.begin_fill(c.me, c.addr, vec![a.at(1)]);
        a.host.stop_following(c.me, &[SHARD]);
        while a.reports.try_recv().is_ok() {}
    }
    for writer in writers {
        writer.await.unwrap();
    }
    a.host.begin_fill(c.me, c.addr, vec![at]);
    while !c.host.copies().first().is_some_and(|copy| copy.complete && copy.seq == 2000) {
        tokio::task::yield_now().await;
    }
    let before = contents(&a.host, &names).await;
    assert_eq!(b.copy().seq, 2000);
    for copy in [&b, &c] {
        assert!(copy.host.promote(SHARD, copy.epoch(2)));
        assert_eq!(contents(&copy.host, &names).await, before);
    }
}

#[tokio::test]
async fn thousands_of_empty_shards_are_followed_at_once() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    let epoch = a.epoch(1);
    let shards: Vec<_> = (0..16_384).map(ShardId).collect();
    for shard in &shards {
        a.host.activate_empty(*shard, epoch);
    }
    let wanted: Vec<_> = shards.iter().map(|shard| ShardEpoch { shard: *shard, epoch }).collect();
    a.host.begin_fill(b.me, b.addr, wanted.clone());
    let (mut filled, mut n_reports) = (Vec::new(), 0);
    while filled.len() < shards.len() {
        let ReplicaReport::Filled { to, shards } = a.report().await else { panic!("not filled") };
        assert_eq!(to, b.me);
        filled.extend(shards);
        n_reports += 1;
    }
    assert_eq!(filled, wanted);
    assert!(n_reports < 200, "{n_reports}");
    assert!(b.host.copies().iter().all(|copy| copy.complete && copy.owner == a.me));
    for shard in &shards {
        a.host.set_followers(*shard, &[b.me]);
    }
    while b.reports.try_recv().is_ok() {}
    assert_eq!(say(&a.host, "s", "x").await, "1");
    assert_eq!(b.host.copies()[SHARD.0 as usize].seq, 1);
    for shard in &shards {
        a.host.set_followers(*shard, &[]);
    }
    assert!(b.host.promote(SHARD, b.epoch(2)));
    assert_eq!(say(&b.host, "s", "read").await, "1");
}

#[tokio::test]
async fn a_stale_owner_is_told_of_the_higher_epoch() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    a.owns(1);
    a.fill(&mut b).await;
    assert!(b.host.promote(SHARD, b.epoch(2)));
    let host = a.host.clone();
    let waiting = tokio::spawn(async move { ask(&host, "s", "stale").await });
    let shards = vec![(SHARD, Lost::HigherEpoch(b.epoch(2)))];
    assert_eq!(a.report().await, ReplicaReport::FollowerLost { to: b.me, shards });
    settle().await;
    assert!(!waiting.is_finished(), "nobody has it");
    a.host.drop_shard(SHARD);
    let (status, _) = timeout(SOON, waiting).await.expect("soon").unwrap().unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!(say(&b.host, "s", "read").await, "0");
}

/// Moves the shard from `a` to `b` as a handoff does, up to the grant.
async fn move_over(a: &Peer, b: &Peer, counter: u64) -> stead_node::Incoming {
    let from = a.served();
    a.host.seal(SHARD).await;
    let mut incoming = b.host.incoming_from(from);
    for record in a.host.export(SHARD).unwrap() {
        incoming.add(&record).unwrap();
    }
    assert!(from.epoch.counter < counter);
    incoming
}

#[tokio::test]
async fn after_a_handoff_its_source_is_the_first_copy() {
    let (a, mut b) = (Peer::start("a"), Peer::start("b"));
    let mut a = a;
    a.owns(1);
    let names = names(10);
    for name in &names {
        say(&a.host, name, "at a").await;
    }
    let incoming = move_over(&a, &b, 2).await;
    b.host.adopt(a.me, a.addr, vec![b.at(2)], true);
    assert_eq!(incoming.activate(b.epoch(2)), 10);
    // It need not know of the claim: the entry tells.
    assert_eq!(say(&b.host, &names[0], "at b").await, "2");
    assert_eq!(b.report().await, ReplicaReport::Filled { to: a.me, shards: vec![b.at(2)] });
    let (owner, shards) = (b.me, vec![b.at(2)]);
    assert_eq!(a.report().await, ReplicaReport::CopyComplete { owner, shards });
    assert!(a.host.gate(SHARD).is_none());
    let copy = a.copy();
    assert_eq!((copy.owner, copy.epoch, copy.seq, copy.complete), (b.me, b.epoch(2), 11, true));
    assert!(a.host.keep_as_copy(SHARD, b.me, b.epoch(2)), "it is kept already");
    let before = contents(&b.host, &names).await;
    assert!(a.host.promote(SHARD, a.epoch(3)));
    assert_eq!(contents(&a.host, &names).await, before);
}

#[tokio::test]
async fn a_copy_of_the_old_owner_follows_the_new_one_if_it_ends_there() {
    let (mut a, mut b, mut c) = (Peer::start("a"), Peer::start("b"), Peer::start("c"));
    a.owns(1);
    say(&a.host, "s", "at a").await;
    a.fill(&mut c).await;
    say(&a.host, "s", "at a").await;
    let incoming = move_over(&a, &b, 2).await;
    b.host.adopt(c.me, c.addr, vec![b.at(2)], false);
    incoming.activate(b.epoch(2));
    assert_eq!(b.report().await, ReplicaReport::Filled { to: c.me, shards: vec![b.at(2)] });
    b.host.set_followers(SHARD, &[c.me]);
    assert_eq!(say(&b.host, "s", "at b").await, "3");
    let (owner, shards) = (b.me, vec![b.at(2)]);
    assert_eq!(c.report().await, ReplicaReport::CopyComplete { owner, shards });
    assert_eq!((c.copy().owner, c.copy().seq), (b.me, 3));

    // Back to where it was, by an aborted seal: the copy goes along.
    b.host.seal(SHARD).await;
    assert!(b.host.reopen(SHARD, b.epoch(3)));
    assert_eq!(say(&b.host, "s", "at b").await, "4");
    assert_eq!((c.copy().epoch, c.copy().seq), (b.epoch(3), 4));

    // One that has missed something does not. It is sent nothing more, and waited for as long as it
    // is named.
    b.host.stop_following(c.me, &[SHARD]);
    let host = b.host.clone();
    let waiting = tokio::spawn(async move { say(&host, "s", "at b").await });
    settle().await;
    assert!(!waiting.is_finished(), "it is a member");
    b.host.set_followers(SHARD, &[]);
    assert_eq!(timeout(SOON, waiting).await.expect("soon").unwrap(), "5");
    a.host.drop_shard(SHARD);
    let incoming = move_over(&b, &a, 4).await;
    a.host.adopt(c.me, c.addr, vec![a.at(4)], true);
    incoming.activate(a.epoch(4));
    let shards = vec![(SHARD, Lost::Behind)];
    assert_eq!(a.report().await, ReplicaReport::FollowerLost { to: c.me, shards });
    // It is where it was, until it is filled.
    assert_eq!((c.copy().owner, c.copy().seq), (b.me, 4));
    let host = a.host.clone();
    let waiting = tokio::spawn(async move { say(&host, "s", "at a").await });
    settle().await;
    assert!(!waiting.is_finished(), "it is a member");
    a.host.begin_fill(c.me, c.addr, vec![a.at(4)]);
    assert_eq!(a.report().await, ReplicaReport::Filled { to: c.me, shards: vec![a.at(4)] });
    assert_eq!(timeout(SOON, waiting).await.expect("soon").unwrap(), "6");
    assert_eq!((c.copy().owner, c.copy().seq), (a.me, 6));
}

#[tokio::test]
async fn a_shard_that_was_granted_away_for_nothing_is_taken_back() {
    let (a, b) = (Peer::start("a"), Peer::start("b"));
    a.owns(1);
    assert!(!a.host.keep_as_copy(SHARD, b.me, b.epoch(2)), "it is served");
    say(&a.host, "s", "at a").await;
    a.host.seal(SHARD).await;
    assert!(a.host.keep_as_copy(SHARD, b.me, b.epoch(2)));
    assert!(a.host.keep_as_copy(SHARD, b.me, b.epoch(2)));
    assert_eq!(ask(&a.host, "s", "x").await, Err(Refusal::NotOwner { claim: None }));
    assert!(a.host.reopen(SHARD, a.epoch(3)));
    assert_eq!(say(&a.host, "s", "at a").await, "2");
    assert_eq!(a.host.copies(), Vec::new());
    a.host.seal(SHARD).await;
    assert!(a.host.keep_as_copy(SHARD, b.me, b.epoch(4)));
    assert_eq!(a.host.drop_copy(SHARD), 1);
    assert_eq!(a.host.stats(), stead_node::HostStats::default());
}

#[tokio::test]
async fn a_copy_promotes_in_no_epoch_below_its_promise() {
    let (mut a, mut b) = (Peer::start("a"), Peer::start("b"));
    a.owns(3);
    a.fill(&mut b).await;
    assert!(!b.host.promote(SHARD, b.epoch(2)));
    assert!(b.host.promise(SHARD, b.epoch(5)));
    assert!(!b.host.promote(SHARD, b.epoch(4)));
    // Its owner is shut out.
    let host = a.host.clone();
    let waiting = tokio::spawn(async move { ask(&host, "s", "stale").await });
    let shards = vec![(SHARD, Lost::HigherEpoch(b.epoch(5)))];
    assert_eq!(a.report().await, ReplicaReport::FollowerLost { to: b.me, shards });
    assert!(b.host.promote(SHARD, b.epoch(5)));
    assert!(!waiting.is_finished());
    assert!(!b.host.promise(SHARD, b.epoch(6)), "it is no copy any more");
}

#[tokio::test]
async fn a_copy_that_finds_no_memory_is_given_up_and_gives_it_back() {
    let config = HostConfig { memory_max: 20_000, ..HostConfig::default() };
    let (mut a, mut b) = (Peer::start("a"), Peer::start_with("b", config));
    a.owns(1);
    a.fill(&mut b).await;
    say(&a.host, "small", &"x".repeat(5_000)).await;
    let host = a.host.clone();
    let waiting = tokio::spawn(async move { say(&host, "large", &"x".repeat(50_000)).await });
    let shards = vec![(SHARD, Lost::NoCopy)];
    assert_eq!(a.report().await, ReplicaReport::FollowerLost { to: b.me, shards });
    assert_eq!((b.host.copies(), b.host.stats().bytes), (Vec::new(), 0));
    assert!(!waiting.is_finished());
    a.host.set_followers(SHARD, &[]);
    assert_eq!(timeout(SOON, waiting).await.expect("soon").unwrap(), "1");
}

#[tokio::test]
async fn what_is_not_acknowledged_is_bounded() {
    let config = HostConfig { unacked_bytes_max: 100_000, ..HostConfig::default() };
    let (mut a, mut b) = (Peer::start_with("a", config), Peer::start("b"));
    a.owns(1);
    a.fill(&mut b).await;
    b.be_deaf(&a).await;
    let body = "x".repeat(10_000);
    let mut refused = 0;
    let mut waiting = Vec::new();
    for n in 0..30 {
        let (host, body) = (a.host.clone(), body.clone());
        let mut meta = meta(&format!("s{n}"));
        meta.deadline_ms = 100;
        let turn = tokio::spawn(async move { host.serve(meta, post(body)).await });
        settle().await;
        waiting.push(turn);
    }
    let begun = a.host.stats().sessions;
    assert!((9..=11).contains(&begun), "{begun}");
    for turn in waiting.drain(begun as usize..) {
        match timeout(SOON, turn).await.expect("soon").unwrap() {
            Err(Refusal::Overloaded { .. }) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 30 - begun);
    // Those that have begun go on, and there is room again.
    b.is_deaf.store(false, Ordering::Relaxed);
    a.cut(&b).await;
    for turn in waiting {
        let (_, response) = timeout(SOON, turn).await.expect("soon").unwrap().unwrap();
        assert_eq!(text(response).await, "1");
    }
    assert_eq!(say(&a.host, "more", &body).await, "1");
    assert_eq!(b.copy().seq, begun + 1);
}

#[tokio::test]
async fn a_follower_that_takes_nothing_holds_changes_back_until_it_is_let_go() {
    let config = HostConfig { unacked_bytes_max: 100_000, ..HostConfig::default() };
    let (mut a, b) = (Peer::start_with("a", config), Peer::start("b"));
    b.is_deaf.store(true, Ordering::Relaxed);
    a.owns(1);
    a.host.begin_fill(b.me, b.addr, vec![a.at(1)]);
    settle().await;
    let host = a.host.clone();
    let saying = tokio::spawn(async move {
        for _ in 0..30 {
            say(&host, "s", &"x".repeat(10_000)).await;
        }
    });
    assert_eq!(a.report().await, ReplicaReport::FollowerSilent { to: b.me });
    assert!(!saying.is_finished(), "it is more than may wait");
    a.host.stop_following(b.me, &[SHARD]);
    timeout(SOON, saying).await.expect("soon").unwrap();
}

#[tokio::test]
async fn a_fill_ends_although_the_shard_changes_as_fast_as_it_can() {
    let config = HostConfig { unacked_bytes_max: 1 << 20, ..HostConfig::default() };
    let (mut a, b) = (Peer::start_with("a", config), Peer::start("b"));
    a.owns(1);
    let body = "x".repeat(1000);
    for name in names(2000) {
        say(&a.host, &name, &body).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let (host, body, stop) = (a.host.clone(), body.clone(), Arc::clone(&stop));
        writers.spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                say(&host, &format!("s{}", (writer + 4 * n) % 2000), &body).await;
                tokio::task::yield_now().await;
            }
            n
        });
    }
    a.host.begin_fill(b.me, b.addr, vec![a.at(1)]);
    assert_eq!(a.report().await, ReplicaReport::Filled { to: b.me, shards: vec![a.at(1)] });
    stop.store(true, Ordering::Relaxed);
    while let Some(n) = timeout(SOON, writers.join_next()).await.expect("soon") {
        assert!(0 < n.unwrap(), "it went on meanwhile");
    }
    assert_eq!((b.copy().sessions, b.copy().complete), (2000, true));
}

#[tokio::test]
async fn with_too_few_copies_changes_are_refused_and_reads_are_not() {
    let config = HostConfig { min_copies: 2, ..HostConfig::default() };
    let (mut a, mut b) = (Peer::start_with("a", config), Peer::start("b"));
    a.owns(1);
    assert_eq!(ask(&a.host, "s", "one").await.unwrap_err(), Refusal::Degraded);
    a.fill(&mut b).await;
    assert_eq!(say(&a.host, "s", "one").await, "1");
    a.host.set_followers(SHARD, &[]);
    assert_eq!(ask(&a.host, "s", "two").await.unwrap_err(), Refusal::Degraded);
    let read = Request::builder().uri("/read").body(Body::from("read")).unwrap();
    let (_, response) = a.host.serve(meta("s"), read).await.unwrap();
    assert_eq!(text(response).await, "1");
}

#[tokio::test]
async fn without_a_wait_a_change_is_answered_at_once_and_follows() {
    let config = HostConfig { acks: stead_node::Acks::Memory, ..HostConfig::default() };
    let (mut a, mut b) = (Peer::start_with("a", config), Peer::start("b"));
    a.owns(1);
    a.fill(&mut b).await;
    b.be_deaf(&a).await;
    assert_eq!(say(&a.host, "s", "one").await, "1");
    a.host.seal(SHARD).await;
    b.is_deaf.store(false, Ordering::Relaxed);
    a.cut(&b).await;
    while b.copy().seq < 1 {
        tokio::task::yield_now().await;
    }
}
