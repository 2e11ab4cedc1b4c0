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
use stead_shared::sim::{Change, Host, MembershipConfig, MembershipSim, NetConfig, name_of};
use stead_shared::swim::{Rule, SwimConfig, SwimEvent, SwimRules};

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
    println!("\nn = {n}, what each rule is good for");
    println!("{:<20} | {:>9} | {:>9} | measured", "rule", "with", "without");
    for rule in Rule::ALL {
        let with = measure(rule, n, SwimRules::all());
        let without = measure(rule, n, SwimRules::all().without(rule));
        println!("{:<20} | {with:>9} | {without:>9} | {}", format!("{rule:?}"), what(rule));
    }
}

fn what(rule: Rule) -> &'static str {
    match rule {
        Rule::OrderedTimers => "errors of the protocol core in 10 stalls of 1.3 s",
        Rule::RefutedIsForgotten => "new identities forced on healthy members in 60 s, 10 % loss",
        Rule::DeafAccusesNobody => "healthy members accused after one was cut off for 20 s",
        Rule::SeedLoop => "seconds until all are members, when the seeds start 30 s late",
        Rule::PushPull => "seconds until 1|rest is healed after 120 s",
        Rule::NameIsAsked => "deaths reported when a second process of one name is started",
        Rule::BootIsDeath => "members that do not learn that a node lost its memory in 300 ms",
        Rule::DampedRing => "seconds until all know a death that left refused connects",
        Rule::LeaveTellsAll => "seconds until all know a goodbye, 50 % loss",
        Rule::NoticesOnChange => "notices sent for 20 refused connects to one process",
    }
}

/// What `what` says.
fn measure(rule: Rule, n: u32, rules: SwimRules) -> String {
    let seconds = |time: Option<Duration>| {
        time.map_or_else(|| "never".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
    };
    match rule {
        Rule::OrderedTimers => stalls(n, rules).to_string(),
        Rule::RefutedIsForgotten => {
            soak(n, 1, rules, 0.10, Duration::from_secs(60)).renewals.to_string()
        }
        Rule::DeafAccusesNobody => accused_by_a_loner(n, rules).to_string(),
        Rule::SeedLoop => seconds(late_seeds(n, rules)),
        Rule::PushPull => seconds(heal(n, 1, 1, rules).0),
        Rule::NameIsAsked => deaths_by_a_twin(n, rules).to_string(),
        Rule::BootIsDeath => untold_of_a_restart(n, rules).to_string(),
        Rule::DampedRing => seconds(crash_with_links(n, 1, rules)),
        Rule::LeaveTellsAll => seconds(leave(n, 1, rules, 0.5)),
        Rule::NoticesOnChange => notices(n, rules).to_string(),
    }
}

fn stalls(n: u32, rules: SwimRules) -> u64 {
    let mut cluster = MembershipSim::agreed_cluster(config(n, 1, rules, 0.0));
    for host in (0..10).map(|i| Host(i % n)) {
        cluster.pause(host);
        cluster.run_for(Duration::from_millis(1_300));
        cluster.resume(host);
        cluster.run_for(Duration::from_secs(1));
    }
    cluster.stats().core_errors
}

fn accused_by_a_loner(n: u32, rules: SwimRules) -> u64 {
    let mut cluster = MembershipSim::agreed_cluster(config(n, 1, rules, 0.0));
    let loner = Host(n - 1);
    cluster.isolate(&[loner]);
    cluster.run_for(Duration::from_secs(20));
    cluster.heal();
    cluster.run_for(Duration::from_secs(10));
    cluster.stats().renewals - cluster.swim(loner).stats().renewals
}

fn late_seeds(n: u32, rules: SwimRules) -> Option<Duration> {
    let n_seeds = 3.min(n - 1);
    let mut cluster = MembershipSim::new(config(n, 1, rules, 0.0));
    cluster.start_hosts(n_seeds..n);
    cluster.run_for(Duration::from_secs(30));
    cluster.start_hosts(0..n_seeds);
    cluster.run_until_agreed(LIMIT)
}

fn n_deaths(cluster: &MembershipSim) -> usize {
    cluster.log().iter().filter(|(_, _, change)| matches!(change, Change::Died { .. })).count()
}

fn deaths_by_a_twin(n: u32, rules: SwimRules) -> usize {
    let mut cluster = MembershipSim::new(config(n + 1, 1, rules, 0.0));
    cluster.start_hosts(0..n);
    cluster.run_for(Duration::from_secs(5));
    cluster.start_as(Host(n), &name_of(Host(1)), None);
    cluster.run_for(Duration::from_secs(5));
    n_deaths(&cluster)
}

fn untold_of_a_restart(n: u32, rules: SwimRules) -> usize {
    let mut cluster = MembershipSim::agreed_cluster(config(n, 1, rules, 0.0));
    cluster.crash(Host(n - 1));
    cluster.run_for(Duration::from_millis(300));
    cluster.start(Host(n - 1));
    cluster.run_for(Duration::from_secs(10));
    n as usize - 1 - n_deaths(&cluster)
}

fn notices(n: u32, rules: SwimRules) -> u64 {
    let mut cluster = MembershipSim::agreed_cluster(config(n, 1, rules, 0.0));
    let (witness, accused) = (cluster.swim(Host(0)).me(), cluster.swim(Host(1)).me());
    let before = cluster.swim(Host(0)).stats().notices_out;
    for _ in 0..20 {
        cluster.tell(Host(0), SwimEvent::Refused { node: accused, by: witness.node });
    }
    cluster.run_for(Duration::from_millis(1));
    cluster.swim(Host(0)).stats().notices_out - before
}
