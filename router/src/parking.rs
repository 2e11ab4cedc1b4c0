//! Requests that wait: the queues of [`stead_shared::park`] behind a lock, with somebody who
//! looks after them when the view changes or time passes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stead_shared::id::ShardId;
use stead_shared::time::Time;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::metrics::{Metrics, Parked};
use crate::routing::Routing;
use stead_shared::park::{Cause, Limits, Lot, Release, Ticket, Verdict, Wait};

/// Why a request waits no longer and is not sent either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    Full(Cause),
    TooLong(Cause),
}

impl NotSent {
    pub(crate) fn cause(self) -> Cause {
        match self {
            Self::Full(cause) | Self::TooLong(cause) => cause,
        }
    }
}

#[derive(Debug)]
struct State {
    lot: Lot,
    /// By ticket number; one for each that waits.
    wakers: HashMap<u64, oneshot::Sender<Verdict>>,
}

/// All waiting requests of a proxy.
#[derive(Debug)]
pub(crate) struct Parking {
    state: Mutex<State>,
    /// False while there is no queue at all: then the request path takes no lock.
    busy: AtomicBool,
    /// The driver must compute its deadline anew.
    entered: Notify,
    routing: Arc<Routing>,
    metrics: Arc<Metrics>,
    origin: Instant,
}

impl Parking {
    pub(crate) fn new(limits: Limits, routing: Arc<Routing>, metrics: Arc<Metrics>) -> Self {
        let state = State { lot: Lot::new(limits), wakers: HashMap::new() };
        Self {
            state: Mutex::new(state),
            busy: AtomicBool::new(false),
            entered: Notify::new(),
            routing,
            metrics,
            origin: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn time_of(&self, instant: Instant) -> Time {
        Time::ZERO + instant.saturating_duration_since(self.origin)
    }

    fn now(&self) -> Time {
        self.time_of(Instant::now())
    }

    pub(crate) fn waiting(&self) -> usize {
        self.lock().lot.waiting()
    }

    /// Whether a request for `shard` must queue behind others.
    pub(crate) fn has_queue(&self, shard: ShardId) -> bool {
        self.busy.load(Ordering::Acquire) && self.lock().lot.has_queue(shard)
    }

    /// Waits until it is this request's turn. `turn` is the one it had and comes back with: it
    /// is passed on only once the request is in its old place again.
    pub(crate) async fn wait(
        self: &Arc<Self>,
        wait: Wait,
        turn: Option<Turn>,
    ) -> Result<Turn, NotSent> {
        let (sender, receiver) = oneshot::channel();
        let ticket = {
            let mut state = self.lock();
            let Ok(ticket) = state.lot.enter(self.now(), &wait) else {
                self.metrics.park_ended(Parked::Full);
                return Err(NotSent::Full(wait.cause.unwrap_or(Cause::Moving)));
            };
            state.wakers.insert(ticket.number, sender);
            if let Some(mut turn) = turn {
                turn.passed = true;
                state.lot.passed(ticket, false);
            }
            self.serve_queue(&mut state, wait.shard);
            ticket
        };
        self.entered.notify_one();
        let place = Place { parking: self, ticket, waits: true };
        let verdict = receiver.await.unwrap_or(Verdict::TooLong(Cause::NoOwner));
        place.give_up();
        match verdict {
            Verdict::Go | Verdict::Look => {
                self.metrics.park_ended(Parked::Released);
                Ok(Turn {
                    parking: Arc::clone(self),
                    ticket,
                    looks: verdict == Verdict::Look,
                    passed: false,
                })
            }
            Verdict::TooLong(cause) => {
                self.metrics.park_ended(Parked::TooLong);
                Err(NotSent::TooLong(cause))
            }
        }
    }

    /// Releases whoever can be, of one shard.
    fn serve_queue(&self, state: &mut State, shard: ShardId) {
        let mut out = Vec::new();
        let to = self.routing.destination(shard).map(|to| to.epoch);
        state.lot.turn_of(self.now(), shard, to, &mut out);
        self.release(state, &out);
    }

    fn serve_all_queues(&self) {
        let mut state = self.lock();
        let mut out = Vec::new();
        let epoch = |shard| self.routing.destination(shard).map(|to| to.epoch);
        state.lot.turn(self.now(), epoch, &mut out);
        self.release(&mut state, &out);
    }

    /// Tells those that are released, in order. Whoever went away meanwhile had the turn and
    /// gives it back through its [`Place`].
    fn release(&self, state: &mut State, out: &[Release]) {
        for release in out {
            if let Some(waker) = state.wakers.remove(&release.ticket.number) {
                let _gone = waker.send(release.verdict);
            }
        }
        self.busy.store(!state.lot.is_idle(), Ordering::Release);
        self.metrics.parked.set(state.lot.waiting() as f64);
    }

    fn leave(&self, ticket: Ticket) {
        let mut state = self.lock();
        if state.wakers.remove(&ticket.number).is_some() {
            self.metrics.park_ended(Parked::Left);
        }
        state.lot.leave(ticket);
        state.lot.passed(ticket, false);
        self.serve_queue(&mut state, ticket.shard);
    }

    fn passed(&self, ticket: Ticket, welcome: bool) {
        let mut state = self.lock();
        state.lot.passed(ticket, welcome);
        self.serve_queue(&mut state, ticket.shard);
    }

    /// Looks after the queues, for ever.
    pub(crate) async fn drive(&self) {
        let mut views = self.routing.views();
        let mut is_published = true;
        loop {
            let deadline = self.lock().lot.deadline();
            let alarm = async {
                match deadline {
                    Some(time) => sleep_until(self.origin + time.since(Time::ZERO)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = views.changed(), if is_published => is_published = changed.is_ok(),
                () = alarm => {}
                () = self.entered.notified() => continue,
            }
            self.serve_all_queues();
        }
    }
}

/// A place in a queue; gives it up when the client goes away.
struct Place<'a> {
    parking: &'a Parking,
    ticket: Ticket,
    waits: bool,
}

impl Place<'_> {
    fn give_up(mut self) {
        self.waits = false;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.parking.leave(self.ticket);
        }
    }
}

/// It is this request's turn. Dropping it passes the turn on.
#[derive(Debug)]
pub(crate) struct Turn {
    parking: Arc<Parking>,
    pub(crate) ticket: Ticket,
    looks: bool,
    passed: bool,
}

impl Turn {
    /// The request is on its way, so the next one may follow; unless it only looks.
    pub(crate) fn sent(turn: Option<Self>) -> Option<Self> {
        turn.filter(|turn| turn.looks)
    }

    /// The request was accepted.
    pub(crate) fn welcome(mut self) {
        self.passed = true;
        self.parking.passed(self.ticket, true);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.passed {
            self.parking.passed(self.ticket, false);
        }
    }
}
