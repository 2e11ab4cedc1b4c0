//! A fourth node joins three that hold a million sessions of 1 KiB, under load: how fast state
//! moves beside a plain copy over TCP, how well the budget is kept, and what it costs in memory.
//!
//! ```text
//! cargo build --release --bin stead
//! cargo run --release --example join_million -- target/release/stead            # without a budget
//! cargo run --release --example join_million -- target/release/stead 1000000 32MiB
//! ```
//!
//! Real processes on loopback. The yardstick runs in this process: one thread frames 1 KiB records,
//! checksums and sends them, the other one checks them and puts them into a hash map. State sent is
//! what the nodes count, records as they go out.
//!
//! The yardstick runs twice. *Alone* it has the machine for itself, which the join has not: state
//! moves while the cluster answers its 5,000 requests per second, and on few cores these take a
//! good part of them. *Under the load* it runs in the same conditions as the join: the same cluster
//! answers the same requests meanwhile, and a moment later the fourth node joins. The second ratio
//! tells what a handoff costs beyond a copy, the first one has the cost of the load in it.
#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use tokio::task::JoinSet;
use tokio::time::Instant;

use client::{Client, Error};
use cluster::{IN_TIME, LOOK_EVERY, Proc, fill, settled};

mod client;
mod cluster;

const VALUE_BYTES: usize = 1024;
/// Records of the yardstick.
const YARDSTICK_RECORDS: u32 = 400_000;
const LOADERS: u64 = 16;
/// Requests per second while the node joins.
const RATE: u64 = 5_000;
/// Bytes of state that a node has sent.
const SENT: &str = "stead_handoff_bytes_total{direction=\"out\"}";

// ---- the yardstick ----

/// MB/s of a copy that frames, checksums and inserts the same records.
fn yardstick() -> Result<f64, Error> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    let receiver = std::thread::spawn(move || receive(&listener));
    let records: HashMap<Vec<u8>, Vec<u8>> = (0..YARDSTICK_RECORDS)
        .map(|i| (format!("s{i}").into_bytes(), vec![b'v'; VALUE_BYTES]))
        .collect();
    let mut stream = TcpStream::connect(to)?;
    let began = Instant::now();
    let mut chunk = Vec::with_capacity(80 << 10);
    let mut bytes = 0;
    for (key, value) in &records {
        let mut crc = crc32fast::Hasher::new();
        crc.update(key);
        crc.update(value);
        for length in [key.len(), value.len(), crc.finalize() as usize] {
            chunk.extend((length as u32).to_le_bytes());
        }
        chunk.extend(key);
        chunk.extend(value);
        if chunk.len() >= 64 << 10 {
            stream.write_all(&chunk)?;
            bytes += chunk.len();
            chunk.clear();
        }
    }
    stream.write_all(&chunk)?;
    bytes += chunk.len();
    stream.shutdown(std::net::Shutdown::Write)?;
    let n = receiver.join().map_err(|_| "the receiver panicked")??;
    assert_eq!(n, records.len(), "all records came");
    Ok(bytes as f64 / 1e6 / began.elapsed().as_secs_f64())
}

fn receive(listener: &TcpListener) -> Result<usize, std::io::Error> {
    let mut stream = std::io::BufReader::with_capacity(256 << 10, listener.accept()?.0);
    let mut records: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut header = [0; 12];
    while stream.read_exact(&mut header).is_ok() {
        let number = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (mut key, mut value) = (vec![0; number(0) as usize], vec![0; number(4) as usize]);
        stream.read_exact(&mut key)?;
        stream.read_exact(&mut value)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&key);
        crc.update(&value);
        assert_eq!(crc.finalize(), number(8), "a checksum differs");
        records.insert(key, value);
    }
    Ok(records.len())
}

/// What was sent: from the last look that saw nothing of it to the first that saw all of it.
struct Flow {
    /// Founding the cluster has moved empty shards already.
    before: (Instant, u64),
    last: (Instant, u64),
}

impl Flow {
    fn new(sent: u64) -> Self {
        let before = (Instant::now(), sent);
        Self { before, last: before }
    }

    fn see(&mut self, sent: u64) {
        let now = (Instant::now(), sent);
        if self.last.1 < sent {
            self.last = now;
        } else if self.last.1 == self.before.1 {
            (self.before, self.last) = (now, now);
        }
    }

    fn bytes(&self) -> f64 {
        (self.last.1 - self.before.1) as f64
    }

    fn seconds(&self) -> f64 {
        (self.last.0 - self.before.0).as_secs_f64()
    }
}

// ---- load ----

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    n: AtomicU64,
    failed: AtomicU64,
    slowest_micros: AtomicU64,
}

/// Counts on sessions at a fixed rate.
async fn load(front: SocketAddr, seed: u64, n_sessions: u64, seen: Arc<Seen>) -> Result<(), Error> {
    let mut client = Client::connect(front).await?;
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 * LOADERS / RATE));
    let mut i = seed * 7_919;
    while !seen.stop.load(Ordering::Relaxed) {
        let due = ticks.tick().await;
        i = (i + 104_729) % n_sessions;
        let path = format!("/sessions/s{i}/counters/n");
        let answer = client.ask(Method::POST, &path, "").await;
        if !answer.is_ok_and(|answer| answer.status().is_success()) {
            seen.failed.fetch_add(1, Ordering::Relaxed);
            client = Client::connect(front).await?;
        }
        let micros = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        seen.slowest_micros.fetch_max(micros, Ordering::Relaxed);
        seen.n.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let stead = words.first().ok_or("usage: join_million STEAD [SESSIONS [BUDGET]]")?;
    let n_sessions: u64 = words.get(1).map_or(Ok(1_000_000), |word| word.parse())?;
    let rate = words.get(2).map_or("0", String::as_str);
    let plain = yardstick()?;
    println!("a plain copy over TCP, alone: {plain:.0} MB/s");

    // What moves is to be compared with one copy: there are no others.
    let options = ["--handoff-rate", rate, "--replicas", "0"];
    let n1 = Proc::node(stead, "n1", &options, "")?;
    let join = n1.gossip.to_string();
    let mut nodes = vec![n1];
    for name in ["n2", "n3"] {
        nodes.push(Proc::node(stead, name, &options, &join)?);
    }
    let router = Proc::router(stead, &join)?;
    settled(&[&router], 3).await?;
    let began = Instant::now();
    fill(router.http, n_sessions, VALUE_BYTES).await?;
    println!("{n_sessions} sessions put in {:.1?}", began.elapsed());

    let seen = Arc::new(Seen::default());
    let mut loaders = JoinSet::new();
    for seed in 0..LOADERS {
        loaders.spawn(load(router.http, seed, n_sessions, Arc::clone(&seen)));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let steady = seen.slowest_micros.swap(0, Ordering::Relaxed);
    let loaded = tokio::task::spawn_blocking(yardstick).await??;
    println!("a plain copy over TCP, under the load: {loaded:.0} MB/s");
    tokio::time::sleep(Duration::from_secs(1)).await;
    seen.slowest_micros.store(0, Ordering::Relaxed);
    let before: Vec<u64> = nodes.iter().map(Proc::resident).collect::<Result<_, _>>()?;
    let mut peaks = before.clone();
    let mut of_each = Vec::new();
    for node in &nodes {
        of_each.push(Flow::new(node.metric(SENT).await? as u64));
    }
    let mut of_all = Flow::new(of_each.iter().map(|flow| flow.before.1).sum());
    let target = Proc::node(stead, "n4", &options, &join)?;
    let mut target_peak = 0;
    loop {
        for (node, peak) in nodes.iter().zip(&mut peaks) {
            *peak = (*peak).max(node.resident()?);
        }
        target_peak = target_peak.max(target.resident()?);
        let mut sum = 0;
        for (node, flow) in nodes.iter().zip(&mut of_each) {
            let sent = node.metric(SENT).await? as u64;
            flow.see(sent);
            sum += sent;
        }
        of_all.see(sum);
        let report = router.shards().await?;
        if report.is_settled(4) {
            break;
        }
        if began.elapsed() > IN_TIME {
            return Err("the join did not end".into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    if of_all.bytes() == 0.0 {
        return Err("nothing was sent".into());
    }
    let (moved, took) = (of_all.bytes() / 1e6, of_all.seconds());
    seen.stop.store(true, Ordering::Relaxed);
    while let Some(loader) = loaders.join_next().await {
        loader??;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = target.resident()?;
    let speed = moved / took;
    println!("moved {moved:.0} MB in {took:.2} s under {RATE} requests/s, budget {rate}");
    println!(
        "  {speed:.0} MB/s = {:.2} x the plain copy under the load, {:.2} x the one alone",
        speed / loaded,
        speed / plain
    );
    if rate != "0" {
        for (name, flow) in ["n1", "n2", "n3"].into_iter().zip(&of_each) {
            println!(
                "  {name} sent {:.2} MiB/s while it had something to send",
                flow.bytes() / f64::from(1 << 20) / flow.seconds()
            );
        }
    }
    for ((name, before), peak) in ["n1", "n2", "n3"].into_iter().zip(&before).zip(&peaks) {
        println!("  {name}: {} MiB, at most {} MiB more", before >> 20, (peak - before) >> 20);
    }
    println!(
        "  n4: {} MiB at the end, at most {} MiB more before",
        after >> 20,
        target_peak.saturating_sub(after) >> 20
    );
    println!(
        "  {} requests, {} failed, slowest {:.0} ms (before the join {:.0} ms)",
        seen.n.load(Ordering::Relaxed),
        seen.failed.load(Ordering::Relaxed),
        seen.slowest_micros.load(Ordering::Relaxed) as f64 / 1e3,
        steady as f64 / 1e3
    );
    Ok(())
}
