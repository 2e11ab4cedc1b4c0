//! The whole cluster in a simulated network: the production router and nodes, real HTTP, turmoil
//! for sockets and time.
//!
//! A run is decided by its seed. Its log has every request and answer, every claim, and once a
//! second a digest of every byte that went over the network, so that two runs with the same log
//! were the same run. `SEED=7 cargo test --features turmoil --test turmoil -- --nocapture` runs
//! another seed, and the log is part of the message of a failure.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod judge;
mod log;
mod world;

use std::time::Duration;

use judge::{Clients, Seen, read_all};
use world::{Order, World, run};

const CLIENTS: usize = 4;
const SESSIONS: usize = 40;

fn seed() -> u64 {
    std::env::var("SEED").map_or(1, |seed| seed.parse().expect("SEED is a number"))
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Everybody was served all along, and nothing was lost or repeated.
/// Every value that was answered is there.
fn assert_nothing_lost(seen: &[Seen]) {
    assert!(seen.iter().all(|seen| seen.restarts == 0), "{seen:?}");
}

fn assert_flawless<'a>(seen: impl IntoIterator<Item = &'a Seen>) {
    for seen in seen {
        assert_eq!((seen.failures, seen.restarts), (0, 0), "{seen:?}");
        assert!(seen.value > 0, "{seen:?}");
    }
}

/// The same seed is the same run, another seed another one.
fn assert_repeatable<F: Future<Output = ()> + 'static>(scenario: fn(World) -> F) {
    let seed = seed();
    let (first, second) = (run(seed, scenario), run(seed, scenario));
    let differs = first.lines().zip(second.lines()).position(|(first, second)| first != second);
    if let Some(at) = differs {
        let context = |log: &str| {
            log.lines().skip(at.saturating_sub(20)).take(30).collect::<Vec<_>>().join("\n")
        };
        let (first, second) = (context(&first), context(&second));
        panic!("seed {seed}: line {at} differs\n{first}\n-- and in the second run\n{second}");
    }
    assert_eq!(first.len(), second.len(), "seed {seed}: one run went on for longer");
    assert_ne!(first, run(seed + 1, scenario));
}

/// Forms, takes a sixth node in, hands one off.
async fn join_and_drain(world: World) {
    world.settled(5).await;
    let clients = Clients::start(&world, CLIENTS, SESSIONS);
    pass(1).await;
    world.order(Order::Start("n6"));
    world.settled(6).await;
    pass(1).await;
    world.drain("n2").await;
    world.settled(5).await;
    pass(1).await;
    let seen = clients.stop().await;
    assert_flawless(&seen);
    read_all(&world, &seen).await;
}

#[test]
fn a_join_and_a_drain_lose_nothing() {
    assert_repeatable(join_and_drain);
}

/// Cuts a node off for a shorter time than it takes to be held dead.
async fn short_cut(world: World) {
    world.settled(5).await;
    let clients = Clients::start(&world, CLIENTS, SESSIONS);
    pass(1).await;
    world.cut("n3", true);
    pass(1).await;
    world.cut("n3", false);
    pass(2).await;
    let seen = clients.stop().await;
    assert_flawless(&seen);
    read_all(&world, &seen).await;
}

#[test]
fn a_short_cut_is_a_delay_and_nothing_else() {
    assert_repeatable(short_cut);
}

/// Cuts a node off until the others serve its shards, and mends that. Its sessions go on there from
/// their copies; all others are served as if nothing were.
async fn long_cut(world: World) {
    world.settled(5).await;
    let clients = Clients::start(&world, CLIENTS, SESSIONS);
    pass(1).await;
    let cut_off = world.sessions_of("n3", SESSIONS);
    world.cut("n3", true);
    world.settled_without("n3", 4).await;
    pass(2).await;
    world.cut("n3", false);
    world.settled(5).await;
    pass(2).await;
    let seen = clients.stop().await;
    assert_flawless(seen.iter().filter(|seen| !cut_off.contains(&seen.session)));
    assert_nothing_lost(&seen);
    read_all(&world, &seen).await;
}

#[test]
fn a_long_cut_loses_nothing_and_holds_up_only_what_is_behind_it() {
    assert_repeatable(long_cut);
}

/// A node is gone from one moment to the next, and comes back with nothing but its name.
async fn crash_and_restart(world: World) {
    world.settled(5).await;
    let clients = Clients::start(&world, CLIENTS, SESSIONS);
    pass(1).await;
    let crashed = world.sessions_of("n4", SESSIONS);
    world.order(Order::Crash("n4"));
    world.settled(4).await;
    pass(1).await;
    world.order(Order::Restart("n4"));
    world.settled(5).await;
    pass(1).await;
    let seen = clients.stop().await;
    assert_flawless(seen.iter().filter(|seen| !crashed.contains(&seen.session)));
    assert_nothing_lost(&seen);
    read_all(&world, &seen).await;
}

#[test]
fn a_crash_loses_nothing_and_holds_up_only_the_sessions_of_its_node() {
    assert_repeatable(crash_and_restart);
}
