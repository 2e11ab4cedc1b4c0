//! What a copy of a shard takes. A binary of its own, because the allocator that counts replaces
//! the one of the whole process.

use futures_util::FutureExt;
use http::{Request, Response};
use stead_node::{Body, Host, HostConfig, Session, ShardCopy, SharedService};
use stead_shared::id::{Epoch, NodeId, SessionKey, ShardId};

const SHARD: ShardId = ShardId(7);
const EPOCH: Epoch = Epoch { counter: 1, node: NodeId(0xa) };
const N_SESSIONS: usize = 20_000;
/// Of the copy of one chunk, not of what is copied: 20 MB.
const MEMORY_MAX: u64 = 512 * 1024;
const CHUNK: usize = 64 * 1024;

fn host() -> Host {
    let call = async |_: Session, _: Request<Body>| Response::new(Body::empty());
    Host::new(HostConfig::default(), SharedService::new(call))
}

fn key(n: usize) -> SessionKey {
    SessionKey::new(format!("session-{n:08}")).expect("16 bytes")
}

async fn put(host: &Host, n: usize) {
    let session = host.session(SHARD, key(n)).expect("the shard is here");
    let value = [b'v'; 1000];
    session.turn(|session| session.put_bytes(&value), |()| ()).await.expect("it is served");
}

/// Calls `next` until it gives 0, and drops the records. Most bytes at a time, and their sum.
fn drain(copy: &mut ShardCopy) -> (u64, usize) {
    let (mut most, mut sum) = (0, 0);
    loop {
        let mut bytes = 0;
        let took = allocation_counter::measure(|| bytes = copy.next(CHUNK, &mut Vec::new()));
        most = most.max(took.bytes_max);
        sum += bytes;
        if bytes == 0 {
            return (most, sum);
        }
        assert!(bytes <= CHUNK + 1100, "up to a record more: {bytes}");
    }
}

#[tokio::test]
async fn the_memory_of_a_copy_does_not_grow_with_the_shard_or_with_time() {
    let host = host();
    host.activate_empty(SHARD, EPOCH);
    for n in 0..N_SESSIONS {
        put(&host, n).await;
    }
    let mut copy = host.copy(SHARD).expect("the shard is here");
    let (most, sum) = drain(&mut copy);
    assert!(20_000_000 < sum, "{sum}");
    assert!((CHUNK as u64..MEMORY_MAX).contains(&most), "{most}");
    // Everything changes again and again, and is noted once.
    for _ in 0..3 {
        for n in 0..N_SESSIONS {
            put(&host, n).await;
        }
    }
    assert_eq!(copy.lag().sessions, N_SESSIONS as u64);
    let (most, again) = drain(&mut copy);
    assert!(most < MEMORY_MAX && sum.abs_diff(again) < 100_000, "{most} {again}");
}

#[tokio::test]
async fn a_shard_without_sessions_costs_little_and_a_visit_leaves_nothing_behind() {
    const N_SHARDS: i64 = 1 << 14;
    let host = host();
    let open = || (0..N_SHARDS as u32).for_each(|n| host.activate_empty(ShardId(n), EPOCH));
    let took = allocation_counter::measure(open);
    let each = took.bytes_current / N_SHARDS;
    assert!((32..168).contains(&each), "{each} bytes a shard");
    let visit = |n| {
        let session = host.session(ShardId(n), key(0)).expect("the shard is here");
        let look = session.turn(|session| session.exists(), |_| ()).now_or_never();
        assert_eq!(look, Some(Ok(false)));
    };
    visit(0);
    let took = allocation_counter::measure(|| (1..100).for_each(visit));
    assert!(took.count_total > 100, "the counter counts");
    assert_eq!(took.bytes_current, 0);
}

#[tokio::test]
async fn opening_a_shard_that_arrived_allocates_the_same_however_large_it_is() {
    let from = host();
    let took = async |n_sessions: usize| {
        from.activate_empty(SHARD, EPOCH);
        for n in 0..n_sessions {
            put(&from, n).await;
        }
        let mut incoming = host().incoming(SHARD);
        for record in from.export(SHARD).expect("it is here") {
            incoming.add(&record).expect("there is memory");
        }
        let mut activated = 0;
        let took = allocation_counter::measure(|| activated = incoming.activate(EPOCH));
        assert_eq!(activated, n_sessions);
        took.count_total
    };
    let (few, many) = (took(10).await, took(1000).await);
    assert_eq!(few, many);
    assert!(0 < few, "the counter counts");
}
