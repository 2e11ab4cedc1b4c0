//! Placement and lookup: what a change of membership and what a request costs.
//!
//! ```text
//! cargo bench --bench placement
//! ```
//! Meant to stay below: 5 ms for 100 nodes and 16,384 shards, 50 ms for 1,000 and 65,536; a
//! lookup of a 24-byte key 5 ns with a snapshot at hand, 20 ns with a load of the shared one.

use std::hint::black_box;
use std::sync::Arc;

use arc_swap::ArcSwap;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{NodeId, SessionKey};
use stead_shared::placement::{PlacementInput, PlacementNode, Targets, place};
use stead_shared::ring::Ring;

/// Lookups per measured round.
const KEYS: usize = 4096;

fn input(n_nodes: u32, shards: u32, replicas: u8, n_zones: u32) -> PlacementInput {
    let node = |n: u32| PlacementNode {
        id: NodeId::of_name(&format!("node-{n}")),
        leaving: false,
        weight: 1,
        zone: n % n_zones,
    };
    let shards = ShardCount::new(shards).expect("a power of two");
    PlacementInput {
        replicas,
        ..PlacementInput::of_nodes(shards, (0..n_nodes).map(node).collect())
    }
}

fn rebuild(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("placement");
    for (n_nodes, shards) in [(10, 16_384), (100, 16_384), (300, 65_536), (1000, 65_536)] {
        for (name, replicas, n_zones) in [("owners", 0, 1), ("replica", 1, 1), ("zones", 1, 3)] {
            let input = input(n_nodes, shards, replicas, n_zones);
            let id = BenchmarkId::new(name, format!("{n_nodes}x{shards}"));
            group.bench_with_input(id, &input, |bencher, input| bencher.iter(|| place(input)));
        }
        let input = input(n_nodes, shards, 0, 1);
        let mut nodes: Vec<_> = input.nodes.iter().map(|node| (node.id, node.weight)).collect();
        nodes.sort_unstable();
        let id = BenchmarkId::new("ring", format!("{n_nodes}x{shards}"));
        group.bench_with_input(id, &nodes, |b, nodes| b.iter(|| Ring::build(input.shards, nodes)));
    }
    group.finish();
}

/// Keys of 24 bytes, as a short UUID or a token has.
fn keys() -> Vec<SessionKey> {
    let key = |n| SessionKey::new(format!("session-{n:016x}")).expect("24 bytes");
    (0..KEYS).map(|n| key(n * 0x9e37_79b9)).collect()
}

fn find(keys: &[SessionKey], mut owner: impl FnMut(&SessionKey) -> Option<NodeId>) -> u64 {
    keys.iter().fold(0, |sum, key| sum ^ owner(black_box(key)).map_or(0, |node| node.0))
}

fn lookup(criterion: &mut Criterion) {
    let keys = keys();
    let secret = HashSecret::public();
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(KEYS as u64));
    for (n_nodes, shards) in [(100, 16_384), (300, 65_536)] {
        let input = input(n_nodes, shards, 0, 1);
        let size = format!("{n_nodes}x{shards}");
        let shared: ArcSwap<Targets> = ArcSwap::from_pointee(place(&input));
        let cached: Arc<Targets> = shared.load_full();
        group.bench_function(BenchmarkId::new("cached", &size), |bencher| {
            bencher.iter(|| find(&keys, |key| cached.owner_of(secret.shard_of(key, input.shards))));
        });
        group.bench_function(BenchmarkId::new("loaded", &size), |bencher| {
            bencher.iter(|| {
                find(&keys, |key| shared.load().owner_of(secret.shard_of(key, input.shards)))
            });
        });
    }
    group.bench_function("hash alone", |bencher| {
        bencher.iter(|| find(&keys, |key| Some(NodeId(secret.hash(key.as_bytes())))));
    });
    group.finish();
}

criterion_group!(benches, rebuild, lookup);
criterion_main!(benches);
