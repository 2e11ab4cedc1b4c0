//! One of three nodes that hold a million sessions is killed: how soon its shards are served on from
//! their copies, and how soon there are two copies of everything again.
//!
//! ```text
//! cargo build --release --bin stead
//! cargo run --release --example takeover_million -- target/release/stead                # 1,000,000 x 100 bytes
//! cargo run --release --example takeover_million -- target/release/stead 100000 1024    # 100 MiB
//! ```
//!
//! Real processes on loopback, with one copy of each shard, 16,384 of them. The death is known when a
//! node that lives reports nothing of the dead one's any more. All are served when that is so and
//! both nodes know an owner of every shard; that they answer is then seen by a read of sessions of
//! every kind, of which none may be missing.
#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use client::{Client, Error};
use cluster::{IN_TIME, Proc, fill, settled};

mod client;
mod cluster;

/// Sessions that are read afterwards, at most.
const SAMPLE: u64 = 50_000;
/// How often the nodes are asked how far they are.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes that nodes sent to copies.
const COPIED: &str = "stead_replication_bytes_total{direction=\"out\"}";

async fn copied(nodes: &[Proc]) -> Result<f64, Error> {
    let mut sum = 0.0;
    for node in nodes {
        sum += node.metric(COPIED).await?;
    }
    Ok(sum)
}

/// How many of the sessions are not there, of those that are read.
async fn missing(router: &Proc, n_sessions: u64) -> Result<(u64, u64), Error> {
    let mut client = Client::connect(router.http).await?;
    let step = n_sessions.div_ceil(SAMPLE).max(1);
    let (mut n, mut n_missing) = (0, 0);
    for i in (0..n_sessions).step_by(usize::try_from(step)?) {
        let answer = client.ask(Method::GET, &format!("/sessions/s{i}"), "").await?;
        n += 1;
        n_missing += u64::from(!answer.status().is_success());
    }
    Ok((n, n_missing))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: takeover_million STEAD [SESSIONS [BYTES]]";
    let stead = words.first().ok_or(usage)?;
    let n_sessions: u64 = words.get(1).map_or(Ok(1_000_000), |word| word.parse())?;
    let bytes: usize = words.get(2).map_or(Ok(100), |word| word.parse())?;
    let options = ["--shards", "16384", "--replicas", "1"];
    let n1 = Proc::node(stead, "n1", &options, "")?;
    let join = n1.gossip.to_string();
    let mut nodes = vec![n1];
    for name in ["n2", "n3"] {
        nodes.push(Proc::node(stead, name, &options, &join)?);
    }
    let router = Proc::router(stead, &join)?;
    settled(&[&router, &nodes[0], &nodes[1], &nodes[2]], 3).await?;
    let began = Instant::now();
    fill(router.http, n_sessions, bytes).await?;
    let resident = nodes.iter().map(Proc::resident).sum::<Result<u64, _>>()? >> 20;
    println!("{n_sessions} sessions of {bytes} bytes put in {:.1?}", began.elapsed());
    println!("memory of all nodes: {resident} MiB");

    let dead = nodes.pop().ok_or("three nodes")?;
    let before = copied(&nodes).await?;
    let killed = Instant::now();
    drop(dead);
    let (mut known, mut served) = (None, None);
    loop {
        let reports = [nodes[0].shards().await?, nodes[1].shards().await?];
        let is_known = reports.iter().any(|report| !report.by_node.contains_key("n3"));
        if is_known {
            known.get_or_insert_with(|| killed.elapsed());
        }
        let has_all =
            |report: &cluster::Shards| !report.by_node.contains_key("n3") && report.unowned == 0;
        if reports.iter().all(has_all) {
            served.get_or_insert_with(|| killed.elapsed());
            if reports.iter().all(|report| report.under_replicated == 0) {
                break;
            }
        }
        if IN_TIME < killed.elapsed() {
            return Err("it is not over in time".into());
        }
        // Reports of all shards are not for nothing: without a pause they take a core.
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let whole = killed.elapsed();
    let sent = copied(&nodes).await? - before;
    let (known, served) = (known.ok_or("unknown")?, served.ok_or("not served")?);
    let (n_read, n_missing) = missing(&router, n_sessions).await?;
    let mut lost = 0.0;
    for node in &nodes {
        lost += node.metric("stead_shards_lost_total").await?;
    }
    println!("killed; known after {:.0} ms", known.as_secs_f64() * 1e3);
    println!("  all shards have owners {:.0} ms later", (served - known).as_secs_f64() * 1e3);
    let filling = (whole - known).as_secs_f64();
    println!(
        "  all copies again {:.2} s after it was known: {:.0} MB, {:.0} MB/s",
        filling,
        sent / 1e6,
        sent / 1e6 / filling
    );
    println!("  {n_missing} of {n_read} sessions missing, {lost} shards lost");
    Ok(())
}
