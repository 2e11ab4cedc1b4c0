//! The request path: key → shard → owner → link → answer.
//!
//! A request is carried by the task of its client's connection, from the head to the last byte
//! of the answer: no task per request, nothing collected. What goes wrong on the way leads
//! through [`crate::logic::retry`] back to another attempt or to [`crate::respond`].

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::header::CONNECTION;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use stead_shared::id::{NodeId, RequestId};
use stead_shared::net::link::{DialError, Link, Links, OpenError};
use stead_shared::net::sock::TcpListener;
use stead_shared::net::watch;
use stead_shared::refusal::Refusal;
use stead_shared::view::View;
use stead_shared::wire::http::{RequestMeta, encode_request};
use stead_shared::wire::link::ONCE_SINCE;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::OutBody;
use crate::client::{ClientState, Clients, in_time, serve};
use crate::config::{ProxyConfig, ProxyConfigError};
use crate::logic::retry::{Budget, Event, Failure, Next};
use crate::metrics::{self, Metrics};
use crate::respond::{Problem, Then, respond};
use crate::routing::{Destination, Routing};
use crate::sessions::{NotFound, Sessions};
use crate::upstream::{Answered, Outcome, exchange};
use stead_shared::border::{hardening, headers};
use stead_shared::net::parking::{Parking, Turn};
use stead_shared::park::{Cause, Wait};

mod answer;
mod errand;

use errand::{Errand, Undelivered};

/// Called with a node that could not be reached, so that the failure detector probes it at once.
pub type Accuse = Arc<dyn Fn(NodeId) + Send + Sync>;

/// The reverse proxy. Cheap to clone; all clones are one proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    config: ProxyConfig,
    sessions: Sessions,
    routing: Arc<Routing>,
    parking: Arc<Parking>,
    links: Links,
    accuse: Accuse,
    clients: Arc<Clients>,
    metrics: Arc<Metrics>,
    /// Requests so far: the number of the next one.
    n_requests: AtomicU64,
    budget: Mutex<Budget>,
    /// An instant and what the wall clock said then, so that a request reads one clock only.
    began: (Instant, Duration),
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Proxy {
    /// A proxy that routes by the newest of `views` over `links`.
    ///
    /// Metrics go to the recorder that is installed at this moment.
    ///
    /// # Errors
    /// The configuration cannot work.
    pub fn new(
        config: ProxyConfig,
        views: watch::Receiver<Arc<View>>,
        links: Links,
        accuse: Accuse,
    ) -> Result<Self, ProxyConfigError> {
        let metrics = Arc::new(Metrics::new());
        let routing = Arc::new(Routing::new(views));
        let (for_parking, limits) = (Arc::clone(&routing), config.park.clone());
        let owner_epoch = Box::new(move |shard| for_parking.destination(shard).map(|to| to.epoch));
        let parking = Parking::new(limits, routing.views(), owner_epoch, metrics::parking());
        let wall = Duration::from_micros(config.platform.unix_micros());
        let inner = Inner {
            sessions: Sessions::new(&config)?,
            parking: Arc::new(parking),
            routing,
            links,
            accuse,
            clients: Arc::new(Clients::new(config.limits.clone())),
            metrics,
            n_requests: AtomicU64::new(0),
            budget: Mutex::new(Budget::default()),
            began: (Instant::now(), wall),
            config,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Serves clients of `listener` until `shutdown`; then takes no more, lets requests finish
    /// within [`Limits::drain_timeout`](crate::Limits::drain_timeout) and closes. Call it once.
    pub fn serve(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        serve(self.clone(), listener, shutdown)
    }

    /// Requests that wait for their shard's owner at this moment.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.inner.parking.waiting()
    }

    pub(crate) fn clients(&self) -> &Arc<Clients> {
        &self.inner.clients
    }

    pub(crate) fn parking(&self) -> &Arc<Parking> {
        &self.inner.parking
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Answers one request, with the node's answer or with a problem document.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        client: Arc<ClientState>,
    ) -> Response<OutBody> {
        let begun = Instant::now();
        let response = self.inner.carry(request, &client, begun).await;
        self.inner.metrics.answered(response.status(), begun.elapsed());
        if response.headers().get(CONNECTION).is_some_and(|option| option == "close") {
            client.linger();
        }
        response.map(|body| body.watched_by(client))
    }
}

impl Inner {
    async fn carry(
        &self,
        mut request: Request<Incoming>,
        client: &Arc<ClientState>,
        begun: Instant,
    ) -> Response<OutBody> {
        if let Some(violation) = client.begin_request() {
            self.metrics.violated(violation);
            return respond(Problem::Violation(violation), Then::Close);
        }
        let upgrade = headers::upgrade_of(request.method(), request.version(), request.headers())
            .map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
        let (parts, body) = request.into_parts();
        let checked = hardening::check(&parts.method, &parts.uri, parts.version, &parts.headers);
        if let Err(malformed) = checked {
            self.metrics.malformed();
            return respond(Problem::Malformed(malformed), Then::Close);
        }
        let then = if body.is_end_stream() { Then::Keep } else { Then::Close };
        let found = match self.sessions.find(&parts, client.ip, || self.unix_seconds()) {
            Ok(found) => found,
            Err(NotFound::None) => return respond(Problem::NoKey(&self.sessions.tried), then),
            Err(NotFound::Invalid(error)) => return respond(Problem::BadKey(error), then),
        };
        let shard = self.routing.with_view(|view| view.params.shard_of(&found.key));
        let meta = RequestMeta {
            shard,
            epoch: None,
            key: found.key,
            id: self.next_id(),
            attempt: 0,
            first_sent_ms: self.unix_ms(begun),
            deadline_ms: 0,
            client: client.ip,
            upgrade: upgrade.is_some(),
        };
        let mut errand = Errand::new(parts, body, upgrade, meta, client, begun);
        errand.set_cookie = found.set_cookie;
        let delivered = match in_time(client, self.deliver(&mut errand)).await {
            Some(delivered) => delivered,
            None => Err(errand.out_of_time(&self.config)),
        };
        match delivered {
            Ok(answered) => self.pass_on(errand, answered, client),
            Err(undelivered) => self.give_up(&errand, undelivered, client),
        }
    }

    /// Attempts until there is an answer, or no hope.
    async fn deliver(&self, errand: &mut Errand) -> Result<Answered, Undelivered> {
        let shard = errand.meta.shard;
        let mut to = self.routing.destination(shard);
        if self.parking.has_queue(shard) {
            to = Box::pin(self.park(errand, None)).await?;
        }
        loop {
            let Some(destination) = to else {
                to = Box::pin(self.park(errand, Some(Cause::NoOwner))).await?;
                continue;
            };
            match self.attempt(errand, destination).await {
                Outcome::Answer(answered) => match self.checked(errand, destination, answered) {
                    Ok(answered) => return Ok(answered),
                    Err(stale) => to = Box::pin(self.recover(errand, &stale)).await?,
                },
                Outcome::Event(event) => {
                    if matches!(event, Event::Refused(Refusal::NotOwner { .. })) {
                        self.routing.unlearn(shard, destination.epoch);
                    }
                    to = Box::pin(self.recover(errand, &event)).await?;
                }
                Outcome::BrokenBody => return Err(Undelivered::BrokenBody),
                Outcome::HeadTooLarge => return Err(Undelivered::HeadTooLarge),
            }
        }
    }

    async fn attempt(&self, errand: &mut Errand, to: Destination) -> Outcome {
        errand.is_sent = false;
        errand.trail.aim(to.epoch);
        let link = match self.links.open_link(to.owner.node) {
            Some(link) if link.peer().boot == to.owner.boot => link,
            Some(_) | None => match Box::pin(self.dial(to)).await {
                Ok(link) => link,
                Err(outcome) => return outcome,
            },
        };
        if errand.trail.may_have_run() && !errand.is_read && link.peer().protocol < ONCE_SINCE {
            return Outcome::Event(Event::NotOnce);
        }
        errand.meta.attempt = errand.trail.begin();
        errand.meta.epoch = Some(to.epoch);
        errand.meta.deadline_ms = self.left_ms(errand);
        let Ok(head) = encode_request(&errand.meta, &errand.parts) else {
            return Outcome::HeadTooLarge;
        };
        let fin = errand.upload.is_none() && errand.upgrade.is_none();
        let stream = match link.open(head, fin) {
            Ok(stream) => stream,
            Err(OpenError::Closed(_)) => return Outcome::Event(Event::Unsent),
            Err(OpenError::Full | OpenError::TooMany) => return Outcome::busy(),
            Err(OpenError::HeadTooLong) => return Outcome::HeadTooLarge,
        };
        errand.is_sent = true;
        errand.turn = Turn::sent(errand.turn.take());
        exchange(stream, errand.upload.as_deref_mut(), &mut errand.turn, errand.is_read).await
    }

    async fn dial(&self, to: Destination) -> Result<Link, Outcome> {
        let error = match self.links.to(to.owner.node, Some(to.owner.boot), to.addr).await {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        tracing::debug!(node = %to.owner.node, %error, "cannot reach an owner");
        match error {
            DialError::Refused
            | DialError::Timeout
            | DialError::Rejected(_)
            | DialError::Io(_)
            | DialError::WrongPeer { .. } => {
                self.metrics.accusations.increment(1);
                (self.accuse)(to.owner.node);
                Err(Outcome::Event(Event::Unreachable))
            }
            DialError::Stopping | DialError::TooMany => Err(Outcome::Event(Event::Unreachable)),
        }
    }

    /// An answer, unless whoever gave it had been replaced before it was asked.
    ///
    /// Compared is what was known when the request was sent. A claim that came since says
    /// nothing against the answer: a node finishes its turns before it hands a shard over, and
    /// the new claim may come by another connection before the last answers do.
    fn checked(
        &self,
        errand: &Errand,
        to: Destination,
        answered: Answered,
    ) -> Result<Answered, Event> {
        let epoch = answered.head.meta.epoch;
        if to.epoch < epoch {
            self.routing.learn(errand.meta.shard, epoch);
        }
        if to.epoch <= epoch {
            return Ok(answered);
        }
        self.metrics.stale_answers.increment(1);
        Err(Event::Stale(errand.sent()))
    }

    /// Another attempt's destination, once there is one.
    async fn recover(
        &self,
        errand: &mut Errand,
        event: &Event,
    ) -> Result<Option<Destination>, Undelivered> {
        let shard = errand.meta.shard;
        let next = errand.trail.next(event, self.config.replay);
        self.metrics.retried(&next);
        match next {
            Next::Redirect(epoch) => {
                self.routing.learn(shard, epoch);
                // The hint names somebody who is not there, or it is older than what is known.
                match self.routing.destination(shard) {
                    Some(to) if errand.trail.leads_to(to.epoch) => Ok(Some(to)),
                    Some(_) | None => self.park(errand, Some(Cause::NoOwner)).await,
                }
            }
            Next::Park(cause) => self.park(errand, Some(cause)).await,
            Next::AtOnce | Next::Replay => Ok(self.routing.destination(shard)),
            Next::Again if self.may_retry() => Ok(self.routing.destination(shard)),
            Next::Again => {
                self.metrics.retries_denied.increment(1);
                Err(Undelivered::Failed(Failure::Unknown))
            }
            Next::Fail(failure) => Err(Undelivered::Failed(failure)),
        }
    }

    fn may_retry(&self) -> bool {
        let requests = self.n_requests.load(Ordering::Relaxed);
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).withdraw(requests)
    }

    /// Waits for the turn of this request; `cause` is `None` when it only queues behind others.
    async fn park(
        &self,
        errand: &mut Errand,
        cause: Option<Cause>,
    ) -> Result<Option<Destination>, Undelivered> {
        errand.is_sent = false;
        let wait = Wait {
            shard: errand.meta.shard,
            again: errand.ticket,
            cause,
            tried: errand.trail.highest(),
            bytes: errand.upload.as_ref().map_or(0, |upload| upload.kept_bytes()),
            deadline: self.parking.time_of(errand.deadline(&self.config)),
        };
        match self.parking.wait(wait, errand.turn.take()).await {
            Ok(turn) => {
                errand.ticket = Some(turn.ticket());
                errand.turn = Some(turn);
                Ok(self.routing.destination(errand.meta.shard))
            }
            Err(not_sent) => {
                let failure = match not_sent.cause() {
                    Cause::Moving => Failure::Moving,
                    Cause::NoOwner => Failure::NoOwner,
                };
                Err(Undelivered::Failed(errand.trail.truly(failure)))
            }
        }
    }

    fn give_up(
        &self,
        errand: &Errand,
        undelivered: Undelivered,
        client: &ClientState,
    ) -> Response<OutBody> {
        let then = if client.is_overdue() { Then::Close } else { errand.then() };
        let problem = match undelivered {
            Undelivered::Failed(failure) => {
                if matches!(failure, Failure::Unknown | Failure::UnknownInTime) {
                    self.metrics.unknown.increment(1);
                }
                Problem::Failed(failure)
            }
            Undelivered::HeadTooLarge => Problem::HeadTooLarge,
            Undelivered::BrokenBody => match client.violation() {
                Some(violation) => {
                    self.metrics.violated(violation);
                    Problem::BrokenBody
                }
                None => Problem::BrokenBody,
            },
        };
        respond(problem, then)
    }

    fn next_id(&self) -> RequestId {
        let counter = self.n_requests.fetch_add(1, Ordering::Relaxed);
        RequestId { boot: self.config.boot, counter }
    }

    fn unix_ms(&self, at: Instant) -> u64 {
        let wall = self.began.1 + at.saturating_duration_since(self.began.0);
        u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
    }

    fn unix_seconds(&self) -> u64 {
        self.unix_ms(Instant::now()) / 1000
    }

    fn left_ms(&self, errand: &Errand) -> u32 {
        let whole = self.config.limits.request_timeout;
        // The first attempt follows at once, and needs no second look at the clock.
        let left = if errand.trail.is_first() && errand.ticket.is_none() {
            whole
        } else {
            errand.deadline(&self.config).saturating_duration_since(Instant::now())
        };
        u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
    }
}
