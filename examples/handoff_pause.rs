//! How long sessions pause when their shard moves under load, and what a move costs in memory.
//!
//! ```text
//! cargo run --release --example handoff_pause             # as measured: 10 rounds, then 64 MiB
//! cargo run --release --example handoff_pause -- 2 8      # 2 rounds, then 8 MiB
//! cargo run --release --example handoff_pause -- 10 64 1  # with a copy of each shard, too
//! ```
//!
//! The source runs in this process, under a counting allocator and with the clients; the target is
//! a process of its own that joins and leaves again. First shards of 1 MiB move there and back,
//! each with some sessions that are counted on without a break: the pause of a session is the
//! longest time between two of its answers. Then one large shard moves while 16 clients change it
//! as fast as they can.
#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Request;
use peak_alloc::PeakAlloc;
use stead::{Body, Handle, Node};
use stead_shared::config::{NodeOptions, Size, Span};
use stead_shared::hash::ShardCount;
use stead_shared::id::{NodeId, SessionKey, ShardId};
use stead_shared::net::admin::Local;
use stead_shared::placement::{PlacementInput, PlacementNode, place};
use tokio::task::JoinSet;
use tokio::time::Instant;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Sessions of 1 KiB that make about 1 MiB of records.
const SESSIONS_PER_MIB: u64 = 960;
const SHARDS: u32 = 16;
/// Sessions of each shard that are counted on.
const CLIENTS_PER_SHARD: usize = 2;
const WRITERS: usize = 16;
const IN_TIME: Duration = Duration::from_secs(60);

fn options(name: &str, join: Option<&str>, shards: u32, replicas: u8) -> NodeOptions {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    NodeOptions {
        name: Some(name.to_owned()),
        gossip: anywhere,
        http: anywhere,
        join: join.map(str::to_owned).into_iter().collect(),
        shards,
        replicas,
        memory_max: Size::mib(4096),
        handoff_rate: Size(0),
        drain_timeout: Span::secs(60),
        ..NodeOptions::default()
    }
}

/// The shards that a node called `b` gets from one called `a`.
fn shards_of_b(shards: u32) -> Result<Vec<ShardId>, Error> {
    let node =
        |name| PlacementNode { id: NodeId::of_name(name), leaving: false, weight: 1, zone: 0 };
    let nodes = vec![node("a"), node("b")];
    let targets = place(&PlacementInput::of_nodes(ShardCount::new(shards)?, nodes));
    Ok(targets.shards_of(NodeId::of_name("b")).collect())
}

/// Names of `n` sessions in a shard.
fn names(a: &Handle, shard: ShardId, n: u64) -> Result<Vec<String>, Error> {
    let view = a.view();
    let mut names = Vec::new();
    for i in 0_u64.. {
        let name = format!("s{i}");
        if view.params.shard_of(&SessionKey::new(name.clone().into_bytes())?) == shard {
            names.push(name);
            if names.len() as u64 == n {
                break;
            }
        }
    }
    Ok(names)
}

async fn ask(a: &Handle, method: &str, name: &str, path: &str, body: &[u8]) -> Result<(), Error> {
    let key = SessionKey::new(name.to_owned().into_bytes())?;
    let body = Body::from(bytes::Bytes::copy_from_slice(body));
    let uri = format!("/sessions/{name}{path}");
    let request = Request::builder().method(method).uri(uri).body(body)?;
    let answer = a.request(key, request).await.map_err(|refusal| format!("{refusal:?}"))?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("{}", answer.status()).into()) }
}

async fn fill(a: &Handle, shard: ShardId, mib: u64) -> Result<Vec<String>, Error> {
    let names = names(a, shard, mib * SESSIONS_PER_MIB)?;
    for name in &names {
        ask(a, "PUT", name, "", &[b'v'; 1024]).await?;
    }
    Ok(names)
}

/// The target, in a process of its own; it leaves when its input ends.
struct Target(Child);

impl Target {
    fn start(join: &str, shards: u32, replicas: u8) -> Result<Self, Error> {
        let child = Command::new(std::env::current_exe()?)
            .args(["target", join, &shards.to_string(), &replicas.to_string()])
            .stdin(Stdio::piped())
            .spawn()?;
        Ok(Self(child))
    }

    async fn leave(mut self) -> Result<(), Error> {
        drop(self.0.stdin.take());
        let ended = tokio::task::spawn_blocking(move || self.0.wait()).await??;
        if ended.success() { Ok(()) } else { Err("the target did not leave cleanly".into()) }
    }
}

async fn be_target(join: &str, shards: u32, replicas: u8) -> Result<(), Error> {
    let node = Node::builder().options(options("b", Some(join), shards, replicas)).start().await?;
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let report = node.run_until(async { drop(end.await) }).await?;
    if report.shards_left == 0 { Ok(()) } else { Err(format!("{report:?}").into()) }
}

/// Waits until every shard is with its target, and nothing moves.
async fn settled(a: &Handle, n_nodes: usize) -> Result<(), Error> {
    tokio::time::timeout(IN_TIME, a.settled(n_nodes)).await??;
    Ok(())
}

/// Counts on a session until told to stop; the longest time between two answers.
async fn count(a: Handle, name: String, stop: Arc<AtomicBool>) -> Result<(Duration, u64), Error> {
    let (mut longest, mut n, mut last) = (Duration::ZERO, 0, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        ask(&a, "POST", &name, "/counters/n", b"").await?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        n += 1;
        // A client that thinks for a moment: the processors are not only for it.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok((longest, n))
}

async fn small_shards(rounds: usize, replicas: u8) -> Result<(), Error> {
    let node = Node::builder().options(options("a", None, SHARDS, replicas)).start().await?;
    node.ready().await?;
    let a = node.handle();
    settled(&a, 1).await?;
    let moving = shards_of_b(SHARDS)?;
    let mut counted = Vec::new();
    for &shard in &moving {
        let names = fill(&a, shard, 1).await?;
        counted.extend(names.into_iter().take(CLIENTS_PER_SHARD));
    }
    let join = a.gossip_addr().to_string();
    let mut pauses = Vec::new();
    let mut requests = 0;
    for round in 0..rounds * 2 {
        let is_back = round % 2 == 1;
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for name in &counted {
            clients.spawn(count(a.clone(), name.clone(), Arc::clone(&stop)));
        }
        if is_back {
            TARGET.with_target(|target| target.take()).ok_or("no target")?.leave().await?;
            settled(&a, 1).await?;
        } else {
            let target = Target::start(&join, SHARDS, replicas)?;
            settled(&a, 2).await?;
            TARGET.with_target(|slot| *slot = Some(target));
        }
        stop.store(true, Ordering::Relaxed);
        while let Some(client) = clients.join_next().await {
            let (longest, n) = client??;
            pauses.push(longest);
            requests += n;
        }
    }
    pauses.sort();
    let at = |permille: usize| pauses[(pauses.len() - 1) * permille / 1000];
    println!(
        "1 MiB shards: {} moves of {} shards with {} counted sessions, {requests} requests",
        rounds * 2,
        moving.len(),
        counted.len()
    );
    println!("  pause per session: p50 {:?}, p99 {:?}, max {:?}", at(500), at(990), at(1000));
    Ok(())
}

/// The target of the small shards, across rounds.
struct Kept(std::sync::Mutex<Option<Target>>);

static TARGET: Kept = Kept(std::sync::Mutex::new(None));

impl Kept {
    fn with_target<T>(&self, act: impl FnOnce(&mut Option<Target>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// What the writers of the large shard see.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    answers: AtomicU64,
    last_micros: AtomicU64,
    longest_micros: AtomicU64,
}

async fn write(a: Handle, names: Arc<Vec<String>>, seed: usize, began: Instant, seen: Arc<Seen>) {
    let mut i = seed * 7_919;
    while !seen.stop.load(Ordering::Relaxed) {
        i = (i + 104_729) % names.len();
        if let Err(error) = ask(&a, "POST", &names[i], "/counters/n", b"").await {
            println!("  FAILED: {error}");
        }
        let now = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let last = seen.last_micros.fetch_max(now, Ordering::Relaxed);
        seen.longest_micros.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        seen.answers.fetch_add(1, Ordering::Relaxed);
    }
}

async fn large_shard(mib: u64, replicas: u8) -> Result<(), Error> {
    let node = Node::builder().options(options("a", None, 2, replicas)).start().await?;
    node.ready().await?;
    let a = node.handle();
    settled(&a, 1).await?;
    let shard = *shards_of_b(2)?.first().ok_or("b gets no shard")?;
    let names = Arc::new(fill(&a, shard, mib).await?);
    let seen = Arc::new(Seen::default());
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for seed in 0..WRITERS {
        writers.spawn(write(a.clone(), Arc::clone(&names), seed, began, Arc::clone(&seen)));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let steady = seen.longest_micros.swap(0, Ordering::Relaxed);
    let heap = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let target = Target::start(&a.gossip_addr().to_string(), 2, replicas)?;
    let moves = || Local::moves(&a);
    while moves().copying == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (copy_began, before) = (Instant::now(), seen.answers.load(Ordering::Relaxed));
    while moves().copying > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let copied_in = copy_began.elapsed();
    let written = seen.answers.load(Ordering::Relaxed) - before;
    settled(&a, 2).await?;
    let growth = HEAP.peak_usage().saturating_sub(heap);
    tokio::time::sleep(Duration::from_millis(500)).await;
    seen.stop.store(true, Ordering::Relaxed);
    while writers.join_next().await.is_some() {}
    let longest = Duration::from_micros(seen.longest_micros.load(Ordering::Relaxed));
    println!("{mib} MiB shard, {WRITERS} writers at full rate: copied in {copied_in:?}");
    println!("  longest gap between two answers: {longest:?} (before: {steady} us)");
    println!("  writes answered during the copy: {written}");
    println!("  heap of the source above the state: {} KiB at most", growth >> 10);
    target.leave().await
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [role, join, shards, replicas] = &words[..]
        && role == "target"
    {
        return be_target(join, shards.parse()?, replicas.parse()?).await;
    }
    let number = |i: usize, default| words.get(i).map_or(Ok(default), |word| word.parse());
    let replicas = u8::try_from(number(2, 0)?)?;
    small_shards(number(0, 10)? as usize, replicas).await?;
    std::io::stdout().flush()?;
    large_shard(number(1, 64)?, replicas).await
}
