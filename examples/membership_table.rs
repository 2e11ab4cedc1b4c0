//! Prints what the membership does in simulation: how soon a death, a join and a leave are known,
//! how often the living are taken for dead, how soon partitions heal, and what it costs.
//!
//! ```sh
//! cargo run --release --example membership_table -- --sizes 5,20,50,100,200 --seeds 20
//! ```
//!
//! Everything runs in virtual time on the machines of production; equal seeds print equal tables.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::time::Duration;

use rand::RngExt;
use stead_shared::sim::{Host, MembershipConfig, MembershipSim, NetConfig};
use stead_shared::swim::{Rule, SwimConfig, SwimRules};

const USAGE: &str =
    "membership_table [--sizes N,N,…] [--seeds N] [--rules-size N] [--soak SECONDS]";

/// Time after which a scenario is given up.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a partition lasts.
const PARTITION: Duration = Duration::from_secs(120);

struct Options {
    sizes: Vec<u32>,
    seeds: u64,
    rules_size: u32,
    soak: Duration,
}

fn main() -> Result<(), String> {
    let options = parse(std::env::args().skip(1))?;
    print_speed(&options);
    print_stability(&options);
    print_healing(&options);
    print_rules(&options);
    Ok(())
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        sizes: vec![5, 50, 200],
        seeds: 10,
        rules_size: 50,
        soak: Duration::from_secs(300),
    };
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        let number = || value.parse::<u32>().map_err(|error| format!("{flag} {value}: {error}"));
        match flag.as_str() {
            "--sizes" => {
                let sizes = value.split(',').map(str::parse).collect::<Result<_, _>>();
                options.sizes = sizes.map_err(|error| format!("{flag} {value}: {error}"))?;
            }
            "--seeds" => options.seeds = u64::from(number()?),
            "--rules-size" => options.rules_size = number()?,
            "--soak" => options.soak = Duration::from_secs(u64::from(number()?)),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(options)
}

fn config(n_hosts: u32, seed: u64, rules: SwimRules, loss: f64) -> MembershipConfig {
    MembershipConfig {
        seed,
        n_hosts,
        net: NetConfig { loss, ..NetConfig::default() },
        swim: SwimConfig { rules, ..SwimConfig::default() },
        seeds: (0..3.min(n_hosts)).map(Host).collect(),
    }
}

/// Runs one scenario for each seed.
fn sample(seeds: u64, mut scenario: impl FnMut(u64) -> Option<Duration>) -> Vec<Option<Duration>> {
    let mut times: Vec<Option<Duration>> = (0..seeds).map(&mut scenario).collect();
    times.sort_by_key(|time| time.unwrap_or(Duration::MAX));
    times
}

/// p50, p90 and maximum.
fn quantiles(times: &[Option<Duration>]) -> String {
    let at = |permille: usize| {
        let rank = (times.len() * permille).div_ceil(1_000).max(1);
        match times[rank - 1] {
            Some(time) => format!("{:.3}", time.as_secs_f64()),
            None => "never".to_owned(),
        }
    };
    format!("{:>6} {:>6} {:>6}", at(500), at(900), at(1_000))
}

fn crash(n: u32, seed: u64, rules: SwimRules, loss: f64) -> Option<Duration> {
    let mut cluster = MembershipSim::agreed_cluster(config(n, seed, rules, loss));
    cluster.crash(Host(n - 1));
    cluster.run_until_agreed(LIMIT)
}

/// The same, where two members had links to it that broke.
fn crash_with_links(n: u32, seed: u64, rules: SwimRules) -> Option<Duration> {
    let mut cluster = MembershipSim::agreed_cluster(config(n, seed, rules, 0.0));
    cluster.crash(Host(n - 1));
    cluster.links_break(Host(n - 1), &[Host(0), Host(1)]);
    cluster.run_until_agreed(LIMIT)
}

/// Until the joiner knows all, and until all know the joiner and everybody else.
fn join(n: u32, seed: u64, rules: SwimRules) -> (Option<Duration>, Option<Duration>) {
    let mut cluster = MembershipSim::new(config(n, seed, rules, 0.0));
    cluster.start_hosts(0..n - 1);
    cluster.run_until_agreed(LIMIT);
    cluster.run_for(Duration::from_secs(10));
    let joiner = Host(n - 1);
    cluster.start(joiner);
    let complete = cluster.run_until(LIMIT, |cluster| cluster.is_right(joiner));
    let known = cluster.run_until_agreed(LIMIT);
    (complete, complete.zip(known).map(|(complete, known)| complete + known))
}

fn leave(n: u32, seed: u64, rules: SwimRules, loss: f64) -> Option<Duration> {
    let mut cluster = MembershipSim::agreed_cluster(config(n, seed, rules, loss));
    cluster.leave(Host(n - 1));
    cluster.run_until_agreed(LIMIT)
}

/// Splits off the last `minority` hosts, and measures from the heal on. Returns false downs seen
/// after the heal as well.
fn heal(n: u32, minority: u32, seed: u64, rules: SwimRules) -> (Option<Duration>, usize) {
    let mut cluster = MembershipSim::agreed_cluster(config(n, seed, rules, 0.0));
    let these: Vec<Host> = (n - minority..n).map(Host).collect();
    cluster.isolate(&these);
    let extra: f64 = cluster.rng().random_range(0.0..5.0);
    cluster.run_for(PARTITION + Duration::from_secs_f64(extra));
    cluster.heal();
    let healed_at = cluster.now();
    let took = cluster.run_until_agreed(LIMIT);
    cluster.run_for(Duration::from_secs(10));
    (took, cluster.n_false_downs(healed_at))
}

/// What a quiet cluster of `n` notices wrongly, and what it costs.
struct Soak {
    false_downs: usize,
    renewals: u64,
    packets: f64,
    packet_bytes: f64,
    list_bytes: f64,
    core_errors: u64,
}

fn soak(n: u32, seed: u64, rules: SwimRules, loss: f64, length: Duration) -> Soak {
    let mut cluster = MembershipSim::agreed_cluster(config(n, seed, rules, loss));
    let (since, before, stats) = (cluster.now(), cluster.traffic(), cluster.stats());
    cluster.run_for(length);
    let (after, end) = (cluster.traffic(), cluster.stats());
    let each = |bytes: u64| bytes as f64 / f64::from(n) / length.as_secs_f64();
    Soak {
        false_downs: cluster.n_false_downs(since),
        renewals: end.renewals - stats.renewals,
        packets: each(after.packets - before.packets),
        packet_bytes: each(after.packet_bytes - before.packet_bytes),
        list_bytes: each(after.list_bytes - before.list_bytes),
        core_errors: end.core_errors,
    }
}

/// One member after the other stands still for two seconds, as in a long collection or a busy
/// machine.
fn pauses(n: u32, seed: u64, length: Duration) -> usize {
    let mut cluster = MembershipSim::agreed_cluster(config(n, seed, SwimRules::all(), 0.0));
    let since = cluster.now();
    while cluster.now().since(since) < length {
        let host = Host(cluster.rng().random_range(0..n));
        cluster.pause(host);
        cluster.run_for(Duration::from_secs(2));
        cluster.resume(host);
        cluster.run_for(Duration::from_secs(3));
    }
    cluster.n_false_downs(since)
}

fn print_speed(options: &Options) {
    let all = SwimRules::all();
    println!("seconds until all know (p50, p90, max of {} seeds)", options.seeds);
    println!(
        "{:>5} | {:^20} | {:^20} | {:^20} | {:^20} | {:^20} | {:^20}",
        "n",
        "crash",
        "crash, 5 % loss",
        "crash, 2 refused",
        "joiner complete",
        "joiner known",
        "leave"
    );
    for &n in &options.sizes {
        let seeds = options.seeds;
        let joins: Vec<_> = (0..seeds).map(|seed| join(n, seed, all)).collect();
        let row = [
            quantiles(&sample(seeds, |seed| crash(n, seed, all, 0.0))),
            quantiles(&sample(seeds, |seed| crash(n, seed, all, 0.05))),
            quantiles(&sample(seeds, |seed| crash_with_links(n, seed, all))),
            quantiles(&sample(seeds, |seed| joins[seed as usize].0)),
            quantiles(&sample(seeds, |seed| joins[seed as usize].1)),
            quantiles(&sample(seeds, |seed| leave(n, seed, all, 0.0))),
        ];
        println!("{n:>5} | {}", row.join(" | "));
    }
}

fn print_stability(options: &Options) {
    println!(
        "\nnobody dies for {} s (one seed): false downs / forced renewals",
        options.soak.as_secs()
    );
    println!(
        "{:>5} | {:>9} | {:>9} | {:>9} | {:>9} | {:>10} | per node and second, no loss",
        "n", "0 %", "1 %", "5 %", "10 % loss", "2 s pauses"
    );
    for &n in &options.sizes {
        let runs: Vec<Soak> = [0.0, 0.01, 0.05, 0.10]
            .iter()
            .map(|&loss| soak(n, 1, SwimRules::all(), loss, options.soak))
            .collect();
        let row: Vec<String> = runs
            .iter()
            .map(|run| format!("{:>9}", format!("{} / {}", run.false_downs, run.renewals)))
            .collect();
        println!(
            "{n:>5} | {} | {:>10} | {:.1} packets, {:.0} bytes + {:.0} bytes of push/pull",
            row.join(" | "),
            pauses(n, 1, options.soak),
            runs[0].packets,
            runs[0].packet_bytes,
            runs[0].list_bytes
        );
    }
}

fn print_healing(options: &Options) {
    println!("\nseconds from heal to agreement after {} s (p50, p90, max)", PARTITION.as_secs());
    for (n, minority) in [(2, 1), (50, 1), (50, 10), (50, 25)] {
        let runs: Vec<_> =
            (0..options.seeds).map(|seed| heal(n, minority, seed, SwimRules::all())).collect();
        let times = quantiles(&sample(options.seeds, |seed| runs[seed as usize].0));
        let false_downs: usize = runs.iter().map(|run| run.1).sum();
        println!(
            "{:>5} | {times} | {false_downs} false downs",
            format!("{minority}|{}", n - minority)
        );
    }
}

fn print_rules(options: &Options) {
    let n = options.rules_size;
    println!("\nn = {n}, each rule switched off (seed 1)");
    println!(
        "{:<20} | {:>6} | {:>6} | {:>6} | {:>22} | {:>16}",
        "without", "crash", "join", "leave", "5 % loss: downs/renew.", "heal 1|rest: s/downs"
    );
    let line = |name: &str, rules: SwimRules| {
        let seconds = |time: Option<Duration>| {
            time.map_or_else(|| "never".to_owned(), |time| format!("{:.2}", time.as_secs_f64()))
        };
        let run = soak(n, 1, rules, 0.05, options.soak);
        let (healed, downs) = heal(n, 1, 1, rules);
        println!(
            "{name:<20} | {:>6} | {:>6} | {:>6} | {:>22} | {:>16}",
            seconds(crash(n, 1, rules, 0.0)),
            seconds(join(n, 1, rules).0),
            seconds(leave(n, 1, rules, 0.05)),
            format!("{} / {} ({} errors)", run.false_downs, run.renewals, run.core_errors),
            format!("{} / {downs}", seconds(healed)),
        );
    };
    line("(nothing)", SwimRules::all());
    for rule in Rule::ALL {
        line(&format!("{rule:?}"), SwimRules::all().without(rule));
    }
}
