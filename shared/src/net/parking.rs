//! Requests that wait: the queues of [`crate::park`] behind a lock, with somebody who looks after
//! them when the view changes or time passes. Routers and nodes hold one each.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter, Gauge, Histogram};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::id::{Epoch, ShardId};
use crate::net::watch;
use crate::park::{Cause, Limits, Lot, Release, Ticket, Verdict, Wait};
use crate::time::Time;
use crate::view::View;

/// Tells the epoch in which a shard's owner, if one is in reach, would serve a request now.
pub type OwnerEpoch = Box<dyn Fn(ShardId) -> Option<Epoch> + Send + Sync>;

/// What is counted, by the names of whoever parks.
pub struct Meters {
    /// Requests that wait at this moment.
    pub waiting: Gauge,
    /// Waits that ended because it was the request's turn.
    pub released: Counter,
    /// Waits that took too long (expired).
    pub too_long: Counter,
    /// Requests that found no room (rejected).
    pub full: Counter,
    /// Waits that ended because the client went away.
    pub left: Counter,
    /// How long each wait lasted, however it ended. In seconds.
    pub seconds: Histogram,
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meters(..)")
    }
}

/// Why a request waits no longer and is not sent either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// There was no room for it.
    Full(Cause),
    /// It waited as long as it may.
    TooLong(Cause),
}

impl NotSent {
    /// What it waited for, or would have.
    #[must_use]
    pub fn cause(self) -> Cause {
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

/// All waiting requests of a process. [`Self::drive`] has to run beside it.
pub struct Parking {
    state: Mutex<State>,
    /// False while there is no queue at all: then the request path takes no lock.
    busy: AtomicBool,
    /// The driver must compute its deadline anew.
    entered: Notify,
    views: watch::Receiver<Arc<View>>,
    owner_epoch: OwnerEpoch,
    meters: Meters,
    origin: Instant,
}

impl fmt::Debug for Parking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parking").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Parking {
    /// Nobody waits yet. Whoever does is looked at again when `views` changes; `owner_epoch` says
    /// whether there is a better place then.
    #[must_use]
    pub fn new(
        limits: Limits,
        views: watch::Receiver<Arc<View>>,
        owner_epoch: OwnerEpoch,
        meters: Meters,
    ) -> Self {
        let state = State { lot: Lot::new(limits), wakers: HashMap::new() };
        Self {
            state: Mutex::new(state),
            busy: AtomicBool::new(false),
            entered: Notify::new(),
            views,
            owner_epoch,
            meters,
            origin: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An instant as the time that [`Wait::deadline`] means.
    #[must_use]
    pub fn time_of(&self, instant: Instant) -> Time {
        Time::ZERO + instant.saturating_duration_since(self.origin)
    }

    fn now(&self) -> Time {
        self.time_of(Instant::now())
    }

    /// Requests that wait at this moment.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().lot.waiting()
    }

    /// Whether a request for `shard` must queue behind others. Without any queue this costs one
    /// load.
    #[must_use]
    pub fn has_queue(&self, shard: ShardId) -> bool {
        self.busy.load(Ordering::Acquire) && self.lock().lot.has_queue(shard)
    }

    /// Waits until it is this request's turn. `turn` is the one it had and comes back with: it
    /// is passed on only once the request is in its old place again. Dropping the future gives
    /// its place up.
    ///
    /// # Errors
    /// It is not to be sent any more: [`NotSent`].
    pub async fn wait(self: &Arc<Self>, wait: Wait, turn: Option<Turn>) -> Result<Turn, NotSent> {
        let (sender, receiver) = oneshot::channel();
        let begun = self.now();
        let ticket = {
            let mut state = self.lock();
            let Ok(ticket) = state.lot.enter(begun, &wait) else {
                self.meters.full.increment(1);
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
        let place = Place { parking: self, ticket, begun, waits: true };
        let verdict = receiver.await.unwrap_or(Verdict::TooLong(Cause::NoOwner));
        place.give_up();
        self.meters.seconds.record(self.now().since(begun).as_secs_f64());
        match verdict {
            Verdict::Go | Verdict::Look => {
                self.meters.released.increment(1);
                Ok(Turn {
                    parking: Arc::clone(self),
                    ticket,
                    looks: verdict == Verdict::Look,
                    passed: false,
                })
            }
            Verdict::TooLong(cause) => {
                self.meters.too_long.increment(1);
                Err(NotSent::TooLong(cause))
            }
        }
    }

    /// Releases whoever can be, of one shard.
    fn serve_queue(&self, state: &mut State, shard: ShardId) {
        let mut out = Vec::new();
        state.lot.turn_of(self.now(), shard, (self.owner_epoch)(shard), &mut out);
        self.release(state, &out);
    }

    /// Looks at all queues now: something has changed that the views do not tell.
    pub fn look(&self) {
        let mut state = self.lock();
        state.lot.look();
        self.serve_all(&mut state);
    }

    fn serve_all_queues(&self) {
        self.serve_all(&mut self.lock());
    }

    fn serve_all(&self, state: &mut State) {
        let mut out = Vec::new();
        state.lot.turn(self.now(), &self.owner_epoch, &mut out);
        self.release(state, &out);
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
        self.meters.waiting.set(state.lot.waiting() as f64);
    }

    fn leave(&self, ticket: Ticket, begun: Time) {
        self.meters.seconds.record(self.now().since(begun).as_secs_f64());
        let mut state = self.lock();
        if state.wakers.remove(&ticket.number).is_some() {
            self.meters.left.increment(1);
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

    /// Looks after the queues, for ever. One a process.
    pub async fn drive(&self) {
        let mut views = self.views.clone();
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
    begun: Time,
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
            self.parking.leave(self.ticket, self.begun);
        }
    }
}

/// It is this request's turn. Dropping it passes the turn on.
#[derive(Debug)]
pub struct Turn {
    parking: Arc<Parking>,
    ticket: Ticket,
    looks: bool,
    passed: bool,
}

impl Turn {
    /// The place in the queue that it came from, for coming back.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// The request is on its way, so the next one may follow; unless it only looks.
    #[must_use]
    pub fn sent(turn: Option<Self>) -> Option<Self> {
        turn.filter(|turn| turn.looks)
    }

    /// The request was accepted.
    pub fn welcome(mut self) {
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
