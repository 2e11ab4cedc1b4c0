//! A judge: counts on many sessions at a fixed rate, and knows what each answer must be.
//!
//! ```text
//!  pacer (a thread)          one task a session               the board
//!    every 1/rate s, in turn   one request at a time, by its     per phase: requests, failures,
//!    "session i, due at t" ──▶ share of the connections ───────▶ latencies since the due time
//! ```
//!
//! The loop is open: a request falls due whether or not those before it were answered, and its
//! latency is measured from when it was due. A cluster that stops for a second is charged with
//! every request of that second. The rate is a part of what the same cluster answered in a short
//! closed loop just before.
//!
//! Every answer is checked: the values of a session are 1, 2, 3 and so on. A failed request whose
//! outcome is unknown may or may not have counted, at any time from then on; nothing else may.
//! Depends on nothing but [`client`](crate::client), so that a load generator can include it too.

mod report;
mod session;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::Connection;
pub(crate) use report::{Phase, Report};
pub(crate) use session::Trouble;
use session::{Session, Verdict};

/// A connection that sessions share; `None` until it is needed, and again when it broke.
type Kept = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// What to put on a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Where the router takes requests. It must leave `stead-node`, `stead-shard` and
    /// `stead-epoch` on its answers.
    pub(crate) front: SocketAddr,
    /// Sessions `PREFIX-0` and so on, which nobody has counted on before.
    pub(crate) prefix: String,
    pub(crate) n_sessions: usize,
    /// Connections, each for every so many-th session. A request that waits holds up the other
    /// sessions of its connection.
    pub(crate) n_connections: usize,
    /// How long saturation is measured.
    pub(crate) saturate_for: Duration,
    /// Part of the saturation to go on with.
    pub(crate) fraction: f64,
    /// Requests a second that are enough even if the cluster could answer more.
    pub(crate) rate_max: f64,
}

/// A load that runs until it is stopped.
pub(crate) struct Judge {
    shared: Arc<Shared>,
    /// Requests a second.
    rate: f64,
    sessions: oneshot::Receiver<Vec<Session>>,
}

struct Shared {
    stop: AtomicBool,
    begun: Instant,
    board: Mutex<Board>,
}

/// What was seen so far.
struct Board {
    phases: Vec<Phase>,
    last_answer: Option<Instant>,
    /// When the newest request of each session that succeeded was due.
    succeeded: Vec<Option<Instant>>,
    n_answered: u64,
}

impl Judge {
    /// Measures saturation, then begins with phase "steady" of the open loop.
    ///
    /// It has threads of its own, so that what a test does meanwhile delays no request.
    pub(crate) async fn start(load: Load) -> Self {
        let board = Board {
            phases: vec![Phase::new("saturated")],
            last_answer: None,
            succeeded: vec![None; load.n_sessions],
            n_answered: 0,
        };
        let (stop, begun) = (AtomicBool::new(false), Instant::now());
        let shared = Arc::new(Shared { stop, begun, board: Mutex::new(board) });
        let (saturated, rate) = oneshot::channel();
        let (done, sessions) = oneshot::channel();
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            let sessions = runtime.block_on(judge(&load, &theirs, saturated));
            // Whoever started it may have panicked.
            let _ = done.send(sessions);
        });
        let rate = rate.await.expect("the judge measures saturation");
        Self { shared, rate, sessions }
    }

    /// Begins another phase: for requests that are due from now on.
    pub(crate) fn phase(&self, name: &str) {
        self.shared.board().phases.push(Phase::new(name));
    }

    /// Waits until as many requests were answered as fall due in `seconds`.
    pub(crate) async fn seconds(&self, seconds: f64, within: Duration) {
        let wanted = self.shared.board().n_answered + (self.rate * seconds) as u64;
        self.wait_for("requests answered", within, |board| {
            let n = board.n_answered;
            if n >= wanted { Ok(()) } else { Err(format!("{n} of {wanted}")) }
        })
        .await;
    }

    /// Waits until every session has succeeded with a request that fell due after this call.
    pub(crate) async fn all_succeed(&self, within: Duration) {
        let since = Instant::now();
        self.wait_for("every session succeeds", within, |board| {
            let late = |at: &&Option<Instant>| at.is_none_or(|at| at < since);
            match board.succeeded.iter().filter(late).count() {
                0 => Ok(()),
                n => Err(format!("{n} of {} do not", board.succeeded.len())),
            }
        })
        .await;
    }

    async fn wait_for(
        &self,
        what: &str,
        within: Duration,
        ask: impl Fn(&Board) -> Result<(), String>,
    ) {
        let deadline = Instant::now() + within;
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            ticks.tick().await;
            let found = ask(&self.shared.board());
            match found {
                Ok(()) => return,
                Err(why) => assert!(Instant::now() < deadline, "{what}: {why} within {within:?}"),
            }
        }
    }

    /// Stops; requests that are due are still sent and waited for.
    pub(crate) async fn stop(mut self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        let sessions = (&mut self.sessions).await.expect("the judge ends");
        let phases = std::mem::take(&mut self.shared.board().phases);
        let mut troubles: Vec<Trouble> =
            sessions.into_iter().flat_map(|session| session.troubles).collect();
        troubles.sort_by_key(|trouble| trouble.at);
        Report { rate: self.rate, phases, troubles }
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().expect("nobody panics while he holds the board")
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Board {
    /// Takes down what became of session `i`'s request that was due at `due`.
    fn record(&mut self, i: usize, due: Instant, now: Instant, verdict: &Verdict) {
        self.n_answered += 1;
        let gap = self.last_answer.replace(now).map_or(Duration::ZERO, |last| now - last);
        let current = self.phases.last_mut().expect("there is always a phase");
        current.gap = current.gap.max(gap);
        let of_due = self.phases.iter_mut().rev().find(|phase| phase.since <= due);
        let phase = of_due.expect("nothing is due before the first phase");
        phase.requests += 1;
        match verdict {
            Verdict::Failed => phase.failed += 1,
            Verdict::Counted { right, moved, out_for } => {
                phase.wrong += u64::from(!right);
                phase.outage = phase.outage.max(*out_for);
                phase.took(now - due);
                if *moved {
                    phase.moved_after(*out_for);
                }
                self.succeeded[i] = Some(due);
            }
        }
    }
}

/// Everything the judge does, on its own thread.
async fn judge(load: &Load, shared: &Arc<Shared>, saturated: oneshot::Sender<f64>) -> Vec<Session> {
    let sessions = (0..load.n_sessions).map(|i| Session::new(i, &load.prefix)).collect();
    // The first part warms up, and no session is older than the other.
    let (sessions, _) = saturate(load, shared, sessions, load.saturate_for / 4).await;
    let (sessions, saturation) = saturate(load, shared, sessions, load.saturate_for).await;
    let rate = (saturation * load.fraction).min(load.rate_max);
    shared.board().phases.push(Phase::new("steady"));
    // Whoever started it may have panicked.
    let _ = saturated.send(rate);
    paced(load, shared, sessions, rate).await
}

/// Asks as fast as answers come, at least once for every session. Answers a second.
async fn saturate(
    load: &Load,
    shared: &Arc<Shared>,
    sessions: Vec<Session>,
    lasts: Duration,
) -> (Vec<Session>, f64) {
    let mut lots: Vec<Vec<Session>> = (0..load.n_connections).map(|_| Vec::new()).collect();
    for session in sessions {
        lots[session.i % load.n_connections].push(session);
    }
    let (since, before) = (Instant::now(), shared.board().n_answered);
    let mut workers = JoinSet::new();
    for mut lot in lots.into_iter().filter(|lot| !lot.is_empty()) {
        let (front, shared) = (load.front, Arc::clone(shared));
        workers.spawn(async move {
            let mut connection = None;
            while since.elapsed() < lasts && !shared.stopped() {
                for session in &mut lot {
                    session.ask(front, &mut connection, Instant::now(), &shared).await;
                }
            }
            lot
        });
    }
    let mut sessions: Vec<Session> = workers.join_all().await.into_iter().flatten().collect();
    sessions.sort_by_key(|session| session.i);
    let answers = shared.board().n_answered - before;
    (sessions, answers as f64 / since.elapsed().as_secs_f64())
}

/// Asks when requests are due, until it is stopped.
async fn paced(
    load: &Load,
    shared: &Arc<Shared>,
    sessions: Vec<Session>,
    rate: f64,
) -> Vec<Session> {
    let connections: Vec<Kept> = (0..load.n_connections).map(|_| Kept::default()).collect();
    let mut lanes = Vec::new();
    let mut workers = JoinSet::new();
    for mut session in sessions {
        let (lane, mut due) = mpsc::unbounded_channel();
        lanes.push(lane);
        let kept = Arc::clone(&connections[session.i % load.n_connections]);
        let (front, shared) = (load.front, Arc::clone(shared));
        workers.spawn(async move {
            while let Some(due) = due.recv().await {
                let mut connection = kept.lock().await;
                session.ask(front, &mut connection, due, &shared).await;
            }
            session
        });
    }
    let theirs = Arc::clone(shared);
    std::thread::spawn(move || pace(rate, &lanes, &theirs));
    workers.join_all().await
}

/// Says in turn to each lane when a request is due, until it is stopped.
fn pace(rate: f64, lanes: &[mpsc::UnboundedSender<Instant>], shared: &Shared) {
    sleep_exactly();
    let begun = Instant::now();
    for tick in 0_u32.. {
        let due = begun + Duration::from_secs_f64(f64::from(tick) / rate);
        let now = Instant::now();
        if now < due {
            std::thread::sleep(due - now);
        }
        if shared.stopped() || lanes[tick as usize % lanes.len()].send(due).is_err() {
            return;
        }
    }
}

/// Sleeps of this thread end when they should: by default the kernel joins those that are near
/// each other, 50 µs, which would count as latency.
fn sleep_exactly() {
    let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    if let Some(id) = thread.file_name() {
        // Without it the judge is a little less exact.
        let _ = std::fs::write(std::path::Path::new("/proc").join(id).join("timerslack_ns"), "1");
    }
}
