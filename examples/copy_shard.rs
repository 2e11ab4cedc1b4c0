//! How fast a shard is copied, beside the least that any copy has to do.
//!
//! One process, one thread, no network. Both sides frame records, checksum them twice and put them
//! into memory of their own. "copy" takes them from a shard that serves, through `Host::copy`, and
//! makes a shard of them that could serve; "plain" has its records ready and puts them into a
//! `HashMap`. The ratio says what sessions cost beyond moving their bytes.
//!
//! ```text
//! cargo run --release --example copy_shard -- [SESSIONS [VALUE_BYTES [ROUNDS]]]
//! ```
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Request, Response};
use stead_node::{Body, Host, HostConfig, Session, SharedService};
use stead_shared::id::{Epoch, NodeId, SessionKey, ShardId};
use tokio::time::Instant;

const SHARD: ShardId = ShardId(0);
const EPOCH: Epoch = Epoch { counter: 1, node: NodeId(1) };
/// What goes into one piece on its way.
const CHUNK: usize = 60 * 1024;

fn host() -> Host {
    let service = async |_: Session, _: Request<Body>| Response::new(Body::empty());
    Host::new(HostConfig::default(), SharedService::new(service))
}

fn key(n: usize) -> SessionKey {
    SessionKey::new(format!("session-{n:08}")).expect("16 bytes")
}

async fn fill(host: &Host, n_sessions: usize, value_bytes: usize) {
    host.activate_empty(SHARD, EPOCH);
    for n in 0..n_sessions {
        let session = host.session(SHARD, key(n)).expect("the shard is here");
        let value = vec![n as u8; value_bytes];
        let put = session.turn(|session| session.put_bytes(&value), |()| ());
        put.await.expect("nothing is in the way of a turn");
    }
}

/// Puts records into a chunk, each after its length and checksum.
fn frame<'a>(records: impl IntoIterator<Item = &'a Bytes>, chunk: &mut BytesMut) {
    for record in records {
        chunk.put_u32_le(record.len() as u32);
        chunk.put_u32_le(crc32fast::hash(record));
        chunk.put_slice(record);
    }
}

/// Takes the records out of a chunk again.
fn unframe(mut chunk: Bytes, mut take: impl FnMut(Bytes)) {
    while chunk.has_remaining() {
        let (length, crc) = (chunk.get_u32_le(), chunk.get_u32_le());
        let record = chunk.split_to(length as usize);
        assert_eq!(crc32fast::hash(&record), crc, "nothing was damaged");
        take(record);
    }
}

/// Copies the shard to another host.
fn copy(from: &Host, to: &Host) -> Duration {
    let start = Instant::now();
    let mut copy = from.copy(SHARD).expect("it is here");
    let mut incoming = to.incoming(SHARD);
    let (mut records, mut chunk) = (Vec::new(), BytesMut::new());
    while copy.next(CHUNK, &mut records) > 0 {
        frame(&records, &mut chunk);
        records.clear();
        unframe(chunk.split().freeze(), |record| incoming.add(&record).expect("there is room"));
    }
    incoming.activate(EPOCH);
    let time = start.elapsed();
    assert_eq!(to.stats().sessions, from.stats().sessions);
    time
}

/// Copies ready records to a map.
fn plain(from: &[(Bytes, Bytes)]) -> Duration {
    let start = Instant::now();
    let mut to: HashMap<Box<[u8]>, Box<[u8]>> = HashMap::new();
    let mut chunk = BytesMut::new();
    let per_chunk = from.first().map_or(1, |(_, record)| CHUNK / record.len() + 1);
    for some in from.chunks(per_chunk) {
        frame(some.iter().map(|(_, record)| record), &mut chunk);
        let mut keys = some.iter().map(|(key, _)| key);
        unframe(chunk.split().freeze(), |record| {
            let key = keys.next().expect("one a record");
            to.insert(key[..].into(), record[..].into());
        });
    }
    let time = start.elapsed();
    assert_eq!(to.len(), from.len());
    time
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Bytes per second of both.
async fn measure(n_sessions: usize, value_bytes: usize, rounds: usize) -> (f64, f64) {
    let from = host();
    fill(&from, n_sessions, value_bytes).await;
    let records: Vec<Bytes> = from.export(SHARD).expect("it is here").skip(1).collect();
    let bytes: usize = records.iter().map(Bytes::len).sum();
    let keys = (0..n_sessions).map(|n| Bytes::copy_from_slice(key(n).as_bytes()));
    let records: Vec<(Bytes, Bytes)> = keys.zip(records).collect();
    let (mut copies, mut plains) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let to = host();
        copies.push(copy(&from, &to));
        drop(to);
        plains.push(plain(&records));
    }
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64();
    (rate(median(&mut copies)), rate(median(&mut plains)))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let n_sessions = numbers.next().unwrap_or(64 * 1024);
    let value_bytes = numbers.next().unwrap_or(1024);
    let rounds = numbers.next().unwrap_or(9);
    let (copy, plain) = measure(n_sessions, value_bytes, rounds).await;
    println!("{n_sessions} sessions of {value_bytes} bytes, median of {rounds} rounds");
    println!("copy  {:8.0} MB/s", copy / 1e6);
    println!("plain {:8.0} MB/s", plain / 1e6);
    println!("ratio {:8.2}", copy / plain);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That everything arrives is asserted in both.
    #[tokio::test]
    async fn a_small_shard_is_copied() {
        let (copy, plain) = measure(300, 100, 1).await;
        assert!(0.0 < copy && 0.0 < plain);
    }
}
