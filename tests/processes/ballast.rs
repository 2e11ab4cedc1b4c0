//! Large values that are written over and over, so that databases have something to do. What is left
//! of each is the last one that was answered, or one that was sent after it, whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Method;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;

use crate::client::{self, Answer, Connection};
use crate::harness::eventually;
use crate::trial::PATIENCE;

/// Sessions written side by side, one after the other by each of a few writers.
const WRITERS: usize = 4;
const SESSIONS_EACH: usize = 8;
/// Hardly compressible, like most of what is large.
const BYTES: usize = 768 << 10;
/// Before a writer tries again that was answered nothing.
const REST: Duration = Duration::from_millis(20);

/// Writers at work.
pub(crate) struct Ballast {
    front: SocketAddr,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: JoinSet<Vec<Large>>,
}

/// A session with a large value.
struct Large {
    id: usize,
    path: String,
    /// Number of the last write that was answered.
    answered: u64,
    /// And of the last one that was sent.
    sent: u64,
}

impl Ballast {
    pub(crate) fn start(front: SocketAddr) -> Self {
        let (stop, written) = (Arc::default(), Arc::default());
        let mut ballast = Self { front, stop, written, writers: JoinSet::new() };
        for writer in 0..WRITERS {
            let ids = (writer * SESSIONS_EACH..).take(SESSIONS_EACH);
            let mine = ids.map(|id| Large {
                id,
                path: format!("/sessions/large-{id}"),
                answered: 0,
                sent: 0,
            });
            let (stop, written) = (Arc::clone(&ballast.stop), Arc::clone(&ballast.written));
            ballast.writers.spawn(write(front, mine.collect(), stop, written));
        }
        ballast
    }

    /// Waits until so many more bytes were written.
    pub(crate) async fn writes(&self, bytes: u64) {
        let wanted = self.written.load(Ordering::Relaxed) + bytes;
        eventually("bytes written", PATIENCE, || {
            let now = self.written.load(Ordering::Relaxed);
            std::future::ready(if wanted <= now { Ok(()) } else { Err(format!("{now}/{wanted}")) })
        })
        .await;
    }

    /// Stops writing.
    pub(crate) async fn stop(mut self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while let Some(mine) = self.writers.join_next().await {
            all.extend(mine.expect("a writer does not panic"));
        }
        Written { front: self.front, all }
    }
}

/// What was written.
pub(crate) struct Written {
    front: SocketAddr,
    all: Vec<Large>,
}

impl Written {
    /// Every value that was answered is there, or one that was sent after it.
    pub(crate) async fn assert_there(&self) {
        for large in self.all.iter().filter(|large| 0 < large.answered) {
            let found = client::get(self.front, &large.path).await.and_then(Answer::success);
            let found = found.unwrap_or_else(|why| panic!("{}: {why}", large.path)).body;
            let number = found.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            let Large { path, answered, sent, .. } = large;
            let fits = (*answered..=*sent).contains(&number);
            assert!(fits, "{path}: write {number} of {sent}, {answered} was answered");
            assert!(found == value(large.id, number), "{path}: not as it was written");
        }
        let answered: u64 = self.all.iter().map(|large| large.answered).sum();
        println!("{answered} large values were written");
        assert!(0 < answered, "nothing was written");
    }
}

async fn write(
    front: SocketAddr,
    mut mine: Vec<Large>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> Vec<Large> {
    let mut kept = None;
    for i in (0..mine.len()).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let large = &mut mine[i];
        large.sent += 1;
        match put(front, &mut kept, &large.path, value(large.id, large.sent)).await {
            Ok(()) => {
                large.answered = large.sent;
                written.fetch_add(BYTES as u64, Ordering::Relaxed);
            }
            Err(_) => {
                kept = None;
                tokio::time::sleep(REST).await;
            }
        }
    }
    mine
}

async fn put(
    front: SocketAddr,
    kept: &mut Option<Connection>,
    path: &str,
    value: Bytes,
) -> Result<(), String> {
    if kept.is_none() {
        *kept = Some(Connection::open(front).await?);
    }
    let connection = kept.as_mut().expect("opened above");
    connection.send_body(Method::PUT, path, value).await?.success().map(drop)
}

/// The value of one write: its number, and what only that one has.
fn value(id: usize, number: u64) -> Bytes {
    let mut value = BytesMut::zeroed(BYTES);
    StdRng::seed_from_u64(number << 16 | id as u64).fill_bytes(&mut value);
    value[..8].as_mut().put_u64(number);
    value.freeze()
}
