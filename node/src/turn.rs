//! One turn from its grant to its answer.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::ETAG;
use http::{HeaderValue, Request, Response, StatusCode};
use stead_shared::id::{Epoch, Version};
use stead_shared::refusal::Refusal;
use tokio::runtime::Handle;

use crate::body::Body;
use crate::problem::Problem;
use crate::service::{Boxed, Service};
use crate::session::{Session, StateError, TurnError, Why};
use crate::store::turns::{Begun, Committed, Turn};

/// What a turn is for.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all turns are for requests")]
pub(crate) enum Job {
    Request(Request<Body>),
    /// Gives the timers that are due to the service.
    Timers,
    /// Says goodbye to a session whose time to live ran out.
    Expire,
}

/// How a turn ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answered(Answer),
    /// There was nobody to answer.
    Done,
}

impl Outcome {
    /// The answer, where there was somebody to answer.
    pub(crate) fn answer(self) -> Option<Answer> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::Done => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) epoch: Epoch,
    pub(crate) response: Response<Body>,
}

/// In the extensions of a response: add an `ETag` that names the value as it is after the
/// commit of this turn.
///
/// The version of a change is not known before its commit, which comes after the handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StampEtag;

/// The `ETag` of a value that last changed at `version`. It does not change with a move.
#[must_use]
pub fn etag(version: Version) -> String {
    format!("\"{:x}.{}.{:x}\"", version.epoch.counter, version.epoch.node, version.seq)
}

/// Runs a turn. What seldom happens in one is in a box of its own: it would make all of them larger.
#[expect(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice")]
pub(crate) fn run<S: Service>(
    service: Arc<S>,
    mut begun: Begun,
    job: Job,
) -> impl Future<Output = Outcome> + Send {
    async move {
        begun.core().metrics.turns.increment(1);
        if let Some(expired) = begun.expired.take() {
            Box::pin(say_goodbye(&*service, &expired, Why::Expired)).await;
        }
        let outcome = match job {
            Job::Request(request) => answer(&*service, &mut begun, request).await,
            Job::Timers => {
                Box::pin(fire_timers(&*service, &mut begun)).await;
                Outcome::Done
            }
            Job::Expire => Outcome::Done,
        };
        let core = begun.core();
        core.metrics.turn_seconds.record(core.now().since(begun.began).as_secs_f64());
        outcome
    }
}

/// The last turn of a session in a shard that is sealed.
pub(crate) async fn deactivate<S: Service>(service: Arc<S>, turn: Begun, why: Why) {
    let said = AssertUnwindSafe(service.deactivating(&turn.session, why)).catch_unwind().await;
    match said {
        Ok(()) => {
            if let Err(error) = turn.commit_last() {
                tracing::warn!(%error, "the changes of a deactivation were discarded");
            }
        }
        Err(_) => turn.core().metrics.turn_panics.increment(1),
    }
}

/// Tells the service of a session that is not here any more.
pub(crate) async fn say_goodbye<S: Service>(service: &S, session: &Session, why: Why) {
    let said = AssertUnwindSafe(service.deactivating(session, why)).catch_unwind().await;
    if said.is_err() {
        tracing::warn!(?session, "the service panicked while a session went");
    }
    session.end();
}

async fn answer<S: Service>(service: &S, begun: &mut Begun, request: Request<Body>) -> Outcome {
    let session = begun.session.clone();
    let activate = begun.activate;
    // Not named: what is named and moved is kept twice.
    let Ok(response) = AssertUnwindSafe(async move {
        if activate {
            Box::pin(service.activated(&session)).await;
        }
        service.call(session, request).await
    })
    .catch_unwind()
    .await
    else {
        begun.core().metrics.turn_panics.increment(1);
        begun.session.end();
        tracing::error!(session = ?begun.session, "the service panicked, its turn is discarded");
        return failed(begun, panicked());
    };
    begun.activate = false;
    let asked = match &mut begun.met {
        Turn::Runs(asked) => asked.take(),
        Turn::Replays(_) | Turn::Unknown | Turn::OtherRequest => None,
    };
    match begun.commit_answer(asked, &response) {
        Ok(committed) => {
            let response = stamp(response, committed);
            Outcome::Answered(Answer { epoch: committed.epoch, response })
        }
        Err(TurnError::State(error)) => discarded(begun, &error),
        Err(TurnError::Lost | TurnError::Refused(_)) => failed(begun, lost()),
    }
}

async fn fire_timers<S: Service>(service: &S, begun: &mut Begun) {
    let events = begun.session.take_due_timers();
    if events.is_empty() {
        return;
    }
    begun.core().metrics.timers_fired.increment(events.len() as u64);
    let (session, activate) = (begun.session.clone(), begun.activate);
    let is_whole = AssertUnwindSafe(async {
        if activate {
            service.activated(&session).await;
        }
        for event in events {
            service.timer(session.clone(), Bytes::from_owner(event)).await;
        }
    })
    .catch_unwind()
    .await
    .is_ok();
    begun.activate = false;
    if is_whole && begun.commit().is_ok() {
        return;
    }
    // What the events changed does not count. That they fired does: else they would fire again
    // at once, for ever.
    begun.core().metrics.turn_panics.increment(u64::from(!is_whole));
    tracing::error!(session = ?begun.session, "a timer's turn failed, its changes are discarded");
    begun.start_again();
    begun.session.take_due_timers();
    if let Err(error) = begun.commit() {
        tracing::warn!(session = ?begun.session, %error, "a timer that failed stays due");
    }
}

/// Whether an answer is to name its value: see [`StampEtag`].
pub(crate) fn is_stamped(response: &Response<Body>) -> bool {
    response.extensions().get::<StampEtag>().is_some()
}

fn stamp(mut response: Response<Body>, committed: Committed) -> Response<Body> {
    if response.extensions_mut().remove::<StampEtag>().is_some()
        && let Some(version) = committed.value_version
    {
        let value = HeaderValue::try_from(etag(version)).expect("hex digits, dots and quotes");
        response.headers_mut().insert(ETAG, value);
    }
    response
}

/// An answer under the epoch in which the shard is served now.
fn failed(begun: &Begun, problem: Problem) -> Outcome {
    let epoch = begun.epoch().unwrap_or_else(|| begun.session.epoch());
    Outcome::Answered(Answer { epoch, response: problem.into_response() })
}

/// The handler ran, and the host could not commit what it did.
fn discarded(begun: &Begun, error: &StateError) -> Outcome {
    match error {
        StateError::NewerVersion { .. } | StateError::Undecodable { .. } => {
            begun.core().metrics.refused(&Refusal::Quarantined);
            failed(begun, Problem::of_refusal(&Refusal::Quarantined))
        }
        StateError::MemoryFull => failed(begun, memory_full()),
        StateError::DiskFull => failed(begun, disk_full()),
        StateError::TurnOver
        | StateError::ReadOnly
        | StateError::TooLarge { .. }
        | StateError::Unencodable { .. }
        | StateError::CounterOverflow
        | StateError::TooManyTimers { .. } => failed(begun, panicked()),
    }
}

fn panicked() -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "handler-failed",
        "The service failed",
        "Its changes of the session were discarded; what it did elsewhere is not known.",
    )
    .outcome_unknown()
}

pub(crate) fn lost() -> Problem {
    Problem::new(
        StatusCode::BAD_GATEWAY,
        "lost-ownership",
        "The session was taken from this node while the request ran",
        "Whether another node knows of its changes is not known.",
    )
    .outcome_unknown()
}

pub(crate) fn memory_full() -> Problem {
    Problem::new(
        StatusCode::INSUFFICIENT_STORAGE,
        "memory-full",
        "The node's memory limit is reached",
        "Nothing was changed. Delete sessions, or raise --memory-max.",
    )
    .refused("overloaded")
}

pub(crate) fn disk_full() -> Problem {
    Problem::new(
        StatusCode::INSUFFICIENT_STORAGE,
        "disk-full",
        "The node's disk takes no more changes",
        "Nothing was changed, and reads go on. Make room where --data-dir is, or see the node's log \
         for what the disk reports; changes are taken again as soon as it works.",
    )
    .refused("disk-full")
    .retry_after(1000)
}

/// A turn that goes on when nobody waits for it any more: a client that goes away does not
/// interrupt what has begun.
pub(crate) struct Unstoppable<T: Send + 'static> {
    turn: Option<Boxed<T>>,
}

impl<T: Send + 'static> Unstoppable<T> {
    pub(crate) fn new(turn: Boxed<T>) -> Self {
        Self { turn: Some(turn) }
    }
}

impl<T: Send + 'static> Future for Unstoppable<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let turn = self.turn.as_mut().expect("a future is not polled after its end");
        let outcome = turn.as_mut().poll(cx);
        if outcome.is_ready() {
            self.turn = None;
        }
        outcome
    }
}

impl<T: Send + 'static> Drop for Unstoppable<T> {
    fn drop(&mut self) {
        // Without a runtime the process is about to end.
        if let (Some(turn), Ok(runtime)) = (self.turn.take(), Handle::try_current()) {
            runtime.spawn(turn);
        }
    }
}
