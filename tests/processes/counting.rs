//! A judge: counts on many sessions without a pause, and knows what each answer must be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::Connection;

/// Complaints kept; one is enough to fail, a few help to understand.
const COMPLAINTS_MAX: usize = 20;

/// A running load.
pub(crate) struct Counting {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    workers: JoinSet<Report>,
}

/// What the judge saw.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) requests: u64,
    pub(crate) slowest: Duration,
    /// Lost or repeated values and failed requests.
    pub(crate) complaints: Vec<String>,
}

impl Counting {
    /// Counts on `sessions` by `n_connections` kept connections, each session by one of them.
    pub(crate) fn start(front: SocketAddr, sessions: &[String], n_connections: usize) -> Self {
        Self::start_at(front, sessions, n_connections, 0)
    }

    /// The same for sessions that were counted `count` times before.
    pub(crate) fn start_at(
        front: SocketAddr,
        sessions: &[String],
        n_connections: usize,
        count: i64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let mut workers = JoinSet::new();
        for i in 0..n_connections {
            let mine: Vec<(String, i64)> = sessions
                .iter()
                .skip(i)
                .step_by(n_connections)
                .map(|session| (session.clone(), count))
                .collect();
            workers.spawn(work(front, mine, Arc::clone(&stop), Arc::clone(&answered)));
        }
        Self { stop, answered, workers }
    }

    /// Waits until every session was counted `rounds` more times, more or less.
    pub(crate) async fn rounds(&self, n_sessions: usize, rounds: u64) {
        let wanted = self.answered.load(Ordering::Relaxed) + n_sessions as u64 * rounds;
        crate::harness::eventually("rounds of counting", crate::harness::SOON, || {
            let now = self.answered.load(Ordering::Relaxed);
            let done = if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted}")) };
            std::future::ready(done)
        })
        .await;
    }

    /// Stops counting.
    pub(crate) async fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Report::default();
        for report in self.workers.join_all().await {
            total.requests += report.requests;
            total.slowest = total.slowest.max(report.slowest);
            total.complaints.extend(report.complaints);
        }
        total
    }
}

impl Report {
    /// No counter lost or repeated a value, and no request failed.
    #[track_caller]
    pub(crate) fn assert_clean(&self, what: &str) {
        println!("{what}: {} requests, slowest {:?}", self.requests, self.slowest);
        let complaints = self.complaints.join("\n");
        assert!(self.complaints.is_empty(), "{what}, {} requests:\n{complaints}", self.requests);
        assert!(self.requests > 0, "{what}: nothing was counted");
    }

    fn complain(&mut self, complaint: String) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(complaint);
        }
    }
}

/// Names of `n` sessions.
pub(crate) fn sessions(prefix: &str, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{prefix}-{i}")).collect()
}

async fn work(
    front: SocketAddr,
    mut sessions: Vec<(String, i64)>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
) -> Report {
    let mut report = Report::default();
    let mut connection = None;
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for (session, count) in &mut sessions {
            let sent = Instant::now();
            match add_one(front, &mut connection, session).await {
                Ok((value, node)) => {
                    if value != *count + 1 {
                        let at = start.elapsed();
                        let expected = *count + 1;
                        report.complain(format!(
                            "{at:?} {session}: {value} instead of {expected} from {node}"
                        ));
                    }
                    *count = value;
                }
                Err(error) => {
                    report.complain(format!("{:?} {session}: {error}", start.elapsed()));
                    connection = None;
                }
            }
            report.requests += 1;
            answered.fetch_add(1, Ordering::Relaxed);
            report.slowest = report.slowest.max(sent.elapsed());
        }
    }
    report
}

/// The counter's new value and the node that answered.
async fn add_one(
    front: SocketAddr,
    kept: &mut Option<Connection>,
    session: &str,
) -> Result<(i64, String), String> {
    if kept.is_none() {
        *kept = Some(Connection::open(front).await?);
    }
    let connection = kept.as_mut().expect("opened above");
    let path = format!("/sessions/{session}/counters/visits");
    let answer = connection.send(Method::POST, &path).await?.success()?;
    Ok((answer.counter()?, answer.header("stead-node").to_owned()))
}
