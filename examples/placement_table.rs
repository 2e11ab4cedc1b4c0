//! Prints how even placement is, and how much it moves.
//!
//! ```text
//! cargo run --release --example placement_table                # the whole table
//! cargo run --release --example placement_table -- 10@4096     # 10 nodes, 4,096 shards
//! ```
//!
//! Each number is the mean of several clusters with other node names. *Ideal* is what any
//! placement must do: a joiner takes its share and nothing else moves; copies that died with a
//! node are made anew and no others.
#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::fmt::Write as _;
use std::time::Duration;

use stead_shared::hash::ShardCount;
use stead_shared::id::{NodeId, ShardId};
use stead_shared::placement::{PlacementInput, PlacementNode, Targets, place};

/// Rows of the table: nodes and shards.
const SIZES: [(usize, u32); 6] =
    [(3, 16_384), (10, 16_384), (30, 16_384), (100, 16_384), (300, 65_536), (1000, 65_536)];
/// Capacity factors, in thousandths.
const BALANCES: [u32; 4] = [1020, 1050, 1100, 1250];

fn main() -> Result<(), String> {
    let sizes: Vec<_> =
        std::env::args().skip(1).map(|arg| parse(&arg)).collect::<Result<_, _>>()?;
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    println!("One zone, one replica.\n{}", heading());
    for (n_nodes, shards) in &sizes {
        for balance in BALANCES {
            println!("{}", measure(*n_nodes, *shards, balance, 1)?);
        }
    }
    println!("\nThree zones, one replica.\n{}", heading());
    for (n_nodes, shards) in &sizes {
        println!("{}", measure(*n_nodes, *shards, 1050, 3)?);
    }
    Ok(())
}

fn parse(size: &str) -> Result<(usize, u32), String> {
    let parsed = size.split_once('@').and_then(|(nodes, shards)| {
        let nodes: usize = nodes.parse().ok()?;
        Some((nodes, shards.parse().ok()?)).filter(|_| (2..=10_000).contains(&nodes))
    });
    parsed.ok_or_else(|| format!("`{size}` is not NODES@SHARDS, for example 10@4096"))
}

fn heading() -> String {
    let mut text = String::from("   N      S     c | owners: max/mean  moved/ideal");
    text.push_str(" | replicas: max/mean  promoted  new/ideal  other zone | rejoin same | rebuild");
    text
}

/// One row: the mean of some clusters.
fn measure(n_nodes: usize, shards: u32, balance: u32, n_zones: u32) -> Result<String, String> {
    let shards = ShardCount::new(shards).map_err(|error| error.to_string())?;
    let n_trials = if n_nodes <= 100 { 10 } else { 4 };
    let trials: Vec<_> =
        (0..n_trials).map(|trial| Trial::run(trial, n_nodes, shards, balance, n_zones)).collect();
    let mean = |of: fn(&Trial) -> f64| trials.iter().map(of).sum::<f64>() / trials.len() as f64;
    let mut row = format!("{n_nodes:4} {:6} {:5.2} |", shards.get(), f64::from(balance) / 1000.0);
    let _ = write!(row, "{:17.3}{:13.2} |", mean(|t| t.owners_max), mean(|t| t.moved));
    let _ = write!(row, "{:19.3}{:9.1}%", mean(|t| t.replicas_max), mean(|t| t.promoted) * 100.0);
    let _ = write!(row, "{:11.3}{:11.1}% |", mean(|t| t.new_copies), mean(|t| t.apart) * 100.0);
    let same = if trials.iter().all(|t| t.rejoin_same) { "yes" } else { "NO" };
    let fastest = trials.iter().map(|t| t.rebuild).min().unwrap_or_default();
    let _ = write!(row, "{same:>12} |{:5.1} ms", fastest.as_secs_f64() * 1e3);
    Ok(row)
}

/// What one cluster showed.
struct Trial {
    /// Shards of the fullest node, by the mean.
    owners_max: f64,
    /// Shards that change their owner when one node joins, by the joiner's share.
    moved: f64,
    /// Copies at the fullest node, by the mean.
    replicas_max: f64,
    /// Part of a dead node's shards whose replica is the next owner.
    promoted: f64,
    /// Copies to be made after a death, by the copies that died.
    new_copies: f64,
    /// Part of the shards whose replica is in another zone than the owner.
    apart: f64,
    rejoin_same: bool,
    rebuild: Duration,
}

impl Trial {
    fn run(trial: u32, n_nodes: usize, shards: ShardCount, balance: u32, n_zones: u32) -> Self {
        let node = |n: usize| PlacementNode {
            id: NodeId::of_name(&format!("trial-{trial}-node-{n}")),
            leaving: false,
            weight: 1,
            zone: n as u32 % n_zones,
        };
        let of = |nodes: Vec<PlacementNode>| PlacementInput {
            balance_permille: balance,
            replicas: 1,
            ..PlacementInput::of_nodes(shards, nodes)
        };
        let all = of((0..n_nodes).map(node).collect());
        let joined = of((0..=n_nodes).map(node).collect());
        let died = of((1..n_nodes).map(node).collect());
        let rejoined = of((1..n_nodes).chain([0]).map(node).collect());

        let (targets, rebuild) = timed(&all);
        let (after_join, after_death) = (place(&joined), place(&died));
        let dead = node(0).id;
        let mean = f64::from(shards.get()) / n_nodes as f64;
        let owned = targets.counts().into_iter().map(|(_, count)| count).max().unwrap_or(0);
        let moved = targets.moves_to(&after_join).count() as f64;
        Self {
            owners_max: f64::from(owned) / mean,
            moved: moved * (n_nodes + 1) as f64 / f64::from(shards.get()),
            replicas_max: f64::from(most_copies(&targets, shards)) / mean,
            promoted: promoted(&targets, &after_death, dead),
            new_copies: new_copies(&targets, &after_death, dead, shards),
            apart: apart(&targets, &all),
            rejoin_same: place(&rejoined) == targets,
            rebuild,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "measures real time and nothing depends on it")]
fn timed(input: &PlacementInput) -> (Targets, Duration) {
    let begin = std::time::Instant::now();
    let targets = place(input);
    (targets, begin.elapsed())
}

fn most_copies(targets: &Targets, shards: ShardCount) -> u32 {
    let mut copies = vec![0; targets.nodes().len()];
    for node in shards.all().flat_map(|shard| targets.replicas_of(shard)) {
        if let Ok(idx) = targets.nodes().binary_search(&node) {
            copies[idx] += 1;
        }
    }
    copies.into_iter().max().unwrap_or(0)
}

fn promoted(before: &Targets, after: &Targets, dead: NodeId) -> f64 {
    let orphans: Vec<_> = before.shards_of(dead).collect();
    let promoted = |shard: &&ShardId| before.replicas_of(**shard).next() == after.owner_of(**shard);
    orphans.iter().filter(promoted).count() as f64 / orphans.len() as f64
}

fn new_copies(before: &Targets, after: &Targets, dead: NodeId, shards: ShardCount) -> f64 {
    let holders = |targets: &Targets, shard| -> Vec<NodeId> {
        targets.owner_of(shard).into_iter().chain(targets.replicas_of(shard)).collect()
    };
    let (mut lost, mut made) = (0, 0);
    for shard in shards.all() {
        let (had, has) = (holders(before, shard), holders(after, shard));
        lost += usize::from(had.contains(&dead));
        made += has.iter().filter(|node| !had.contains(node)).count();
    }
    made as f64 / lost as f64
}

fn apart(targets: &Targets, input: &PlacementInput) -> f64 {
    let zone_of = |id| input.nodes.iter().find(|node| node.id == id).map(|node| node.zone);
    let zones: Vec<_> = targets.nodes().iter().map(|id| zone_of(*id)).collect();
    let zone_of = |id: NodeId| targets.nodes().binary_search(&id).ok().and_then(|idx| zones[idx]);
    let is_apart = |shard: &ShardId| {
        let owner = targets.owner_of(*shard).and_then(zone_of);
        targets.replicas_of(*shard).all(|replica| zone_of(replica) != owner)
    };
    input.shards.all().filter(is_apart).count() as f64 / f64::from(input.shards.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_table_is_even_and_moves_little() {
        for (n_zones, balance) in [(1, 1050), (3, 1250)] {
            let shards = ShardCount::new(1024).unwrap();
            let trial = Trial::run(0, 6, shards, balance, n_zones);
            assert!(trial.rejoin_same);
            assert!(trial.owners_max <= f64::from(balance) / 1000.0 + 0.01);
            assert!(trial.moved < 1.5 && trial.replicas_max <= 1.25);
        }
        assert!(measure(3, 256, 1050, 3).unwrap().contains("yes"));
    }

    #[test]
    fn a_size_is_nodes_at_shards() {
        assert_eq!(parse("10@4096"), Ok((10, 4096)));
        for bad in ["", "10", "1@16", "a@b", "99999@16"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(measure(3, 100, 1050, 1).is_err());
    }
}
