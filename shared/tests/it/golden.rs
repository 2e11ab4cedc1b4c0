//! Hash, ring and placement give what they always gave. See `tests/golden/README.md`.

use std::fmt::Write as _;
use std::path::PathBuf;

use stead_shared::hash::{HashSecret, ShardCount};
use stead_shared::id::{NodeId, SessionKey, ShardId};
use stead_shared::keys::{KeyFile, SecretKey};
use stead_shared::placement::{Pin, PlacementInput, PlacementNode, place};
use stead_shared::ring::Ring;
use xxhash_rust::xxh3::xxh3_64;

/// Compares with the file, or writes it when `UPDATE_GOLDEN` is set.
fn check(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (line, (golden, found)) in golden.lines().zip(found.lines()).enumerate() {
        assert_eq!(golden, found, "{}:{}", path.display(), line + 1);
    }
    assert_eq!(golden.lines().count(), found.lines().count(), "{}", path.display());
}

/// A thousand keys: names as people use them, then one of each length up to the longest.
fn keys() -> impl Iterator<Item = SessionKey> {
    let named = (0..488).map(|n| format!("session-{n:04}").into_bytes());
    let of_length = (1..=512usize).map(|len| (0..len).map(|at| (at * 31 + len) as u8).collect());
    named.chain(of_length).map(|bytes| SessionKey::new(bytes).unwrap())
}

fn raw_secret() -> [u8; 32] {
    std::array::from_fn(|at| at as u8)
}

#[test]
fn a_thousand_keys_fall_on_the_shards_they_always_fell_on() {
    let (public, own) = (HashSecret::public(), HashSecret::new(raw_secret()));
    let mut found = format!(
        "# fingerprints {:016x} {:016x}\n# key: hash and shard of 16384, public secret; own secret\n",
        public.fingerprint(),
        own.fingerprint()
    );
    for (n, key) in keys().enumerate() {
        let bytes = key.as_bytes();
        let _ = write!(found, "{n}");
        for secret in [&public, &own] {
            let shard = secret.shard_of(&key, ShardCount::default());
            let _ = write!(found, " {:016x} {shard}", secret.hash(bytes));
        }
        found.push('\n');
    }
    check("hash.txt", &found);
}

#[test]
fn rotating_the_gossip_keys_moves_no_session() {
    let secret = |n: u8| SecretKey::new([n; 32]);
    let file = KeyFile::generate(SecretKey::new(raw_secret()), secret(1), 0);
    let rotated = file.clone().rotate(secret(2), 1).rotate(secret(3), 2);
    let rotated = KeyFile::parse(&rotated.render()).unwrap();
    let of = |file: &KeyFile| HashSecret::new(*file.hash_secret().as_bytes());
    let (before, after) = (of(&file), of(&rotated));
    assert_eq!(before.fingerprint(), after.fingerprint());
    for key in keys() {
        let shards = ShardCount::default();
        assert_eq!(before.shard_of(&key, shards), after.shard_of(&key, shards));
    }
}

/// Named nodes, sorted by id as the ring wants them.
fn named(weights: &[(&str, u16)]) -> Vec<(NodeId, u16)> {
    let mut nodes: Vec<_> =
        weights.iter().map(|(name, weight)| (NodeId::of_name(name), *weight)).collect();
    nodes.sort_unstable();
    nodes
}

#[test]
fn the_points_of_the_ring_are_where_they_always_were() {
    let mut found = String::from("# a and c of weight 1, b of weight 2; 32 shards\n");
    let nodes = named(&[("a", 1), ("b", 2), ("c", 1)]);
    let ring = Ring::build(ShardCount::new(32).unwrap(), &nodes);
    for point in ring.points() {
        let node = nodes[usize::from(point.node_idx)].0;
        let _ = writeln!(found, "{:016x} {node}", point.position);
    }
    for n_nodes in [10, 100] {
        let names: Vec<_> = (0..n_nodes).map(|n| format!("n{n}")).collect();
        let nodes = named(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>());
        let ring = Ring::build(ShardCount::default(), &nodes);
        let mut listing = vec![];
        for point in ring.points() {
            listing.extend_from_slice(&point.position.to_be_bytes());
            listing.extend_from_slice(&point.node_idx.to_be_bytes());
        }
        let (points, hash) = (ring.points().len(), xxh3_64(&listing));
        let _ = writeln!(found, "n0 to n{}: {points} points, xxh3 {hash:016x}", n_nodes - 1);
    }
    check("ring.txt", &found);
}

/// `n` nodes with weights and zones by turns.
fn nodes(n: usize, weights: &[u16], n_zones: u32) -> Vec<PlacementNode> {
    let node = |n: usize| PlacementNode {
        id: NodeId::of_name(&format!("n{n}")),
        leaving: false,
        weight: weights[n % weights.len()],
        zone: n as u32 % n_zones,
    };
    (0..n).map(node).collect()
}

fn case(shards: u32, balance: u32, replicas: u8, nodes: Vec<PlacementNode>) -> PlacementInput {
    PlacementInput {
        balance_permille: balance,
        replicas,
        ..PlacementInput::of_nodes(ShardCount::new(shards).unwrap(), nodes)
    }
}

#[test]
fn the_tables_of_placement_are_what_they_always_were() {
    let mut found = String::from("# 64 shards on n0 to n4, two copies: owner, copies\n");
    let small = place(&case(64, 1050, 2, nodes(5, &[1], 1)));
    for shard in (0..64).map(ShardId) {
        let _ = write!(found, "{shard} {}", small.owner_of(shard).unwrap());
        for replica in small.replicas_of(shard) {
            let _ = write!(found, " {replica}");
        }
        found.push('\n');
    }
    let mut pinned = case(4096, 1100, 1, nodes(12, &[1, 2, 4], 3));
    pinned.nodes[5].leaving = true;
    let pin = |n: u32| Pin {
        shard: ShardId(n * 7),
        node: NodeId::of_name(&format!("n{}", n % 14)),
        version: u64::from(n),
    };
    pinned.pins = (0..50).map(pin).collect();
    let cases = [
        ("3 nodes", case(16_384, 1050, 1, nodes(3, &[1], 1))),
        ("10 nodes, 1.25", case(16_384, 1250, 1, nodes(10, &[1], 1))),
        ("30 nodes, 3 zones", case(16_384, 1020, 2, nodes(30, &[1], 3))),
        ("100 nodes", case(16_384, 1050, 1, nodes(100, &[1], 1))),
        ("more nodes than shards", case(16, 1050, 1, nodes(40, &[1], 2))),
        ("weights 0 to 4", case(16_384, 1050, 1, nodes(20, &[0, 1, 2, 3, 4], 1))),
        ("weights, zones, pins, one leaving", pinned),
    ];
    for (name, input) in cases {
        let targets = place(&input);
        let mut listing = vec![];
        for shard in input.shards.all() {
            for node in targets.owner_of(shard).into_iter().chain(targets.replicas_of(shard)) {
                listing.extend_from_slice(&node.0.to_be_bytes());
            }
        }
        let (digest, hash) = (targets.digest(), xxh3_64(&listing));
        let _ = writeln!(found, "{name}: digest {digest:016x}, table xxh3 {hash:016x}");
    }
    check("placement.txt", &found);
}
