//! What an application implements, and the ways to plug one in.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, request};
use tower::ServiceExt;

use crate::body::Body;
use crate::session::{Session, Why};
use crate::store::turns::Begun;
use crate::turn::{self, Job};

/// An application: it answers the requests of sessions.
///
/// Requests of one session take turns, in the order in which they came; a turn lasts until
/// [`call`](Self::call) returns the head of the answer. An async closure
/// `|session, request| async { response }` is a service, and so is any tower service by
/// [`tower()`].
pub trait Service: Send + Sync + 'static {
    /// Answers one request. When it panics, nothing it changed is committed, and the client gets
    /// 500 with `stead-outcome: unknown`. A client that goes away does not stop it.
    fn call(
        &self,
        session: Session,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// The session is here: before its first turn on this node, also after a move. What it
    /// changes is committed with that turn. A session that does not exist after a turn is new
    /// again in the next.
    fn activated(&self, session: &Session) -> impl Future<Output = ()> + Send {
        let _ = session;
        async {}
    }

    /// The session goes from this node, after its last turn. What is changed here is committed
    /// where the session goes on: for [`Why::Moving`].
    fn deactivating(&self, session: &Session, why: Why) -> impl Future<Output = ()> + Send {
        let _ = (session, why);
        async {}
    }

    /// A timer of the session is due. Runs in a turn of its own.
    fn timer(&self, session: Session, event: Bytes) -> impl Future<Output = ()> + Send {
        let _ = (session, event);
        async {}
    }

    /// Whether this request only reads, and so need not wait for its turn: it runs beside turns
    /// and sees the state that was committed when it began. It cannot change the session, and
    /// [`activated`](Self::activated) does not come before it. Default: no.
    fn is_read(&self, head: &request::Parts) -> bool {
        let _ = head;
        false
    }

    /// Whether [`activated`](Self::activated) and [`deactivating`](Self::deactivating) do
    /// anything. Saying no spares two calls a session. Default: yes.
    fn has_hooks(&self) -> bool {
        true
    }

    /// This service, with `on_timer` for [`timer`](Self::timer): gives timers to services that
    /// are a closure or come from [`tower()`].
    ///
    /// ```
    /// use stead_node::{Body, Service, Session};
    ///
    /// let visits = async |session: Session, _request: http::Request<Body>| {
    ///     let set = session.every(std::time::Duration::from_secs(60), "rest");
    ///     http::Response::new(Body::from(if set.is_ok() { "welcome" } else { "come later" }))
    /// };
    /// let service = visits.on_timer(async |session: Session, event: bytes::Bytes| {
    ///     assert_eq!(event, "rest");
    ///     session.add("minutes", 1).expect("a minute more");
    /// });
    /// # let _ = stead_node::SharedService::new(service);
    /// ```
    fn on_timer<T, R>(self, on_timer: T) -> WithTimers<Self, T>
    where
        Self: Sized,
        T: Fn(Session, Bytes) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send,
    {
        WithTimers { service: self, on_timer }
    }
}

/// See [`Service::on_timer`].
#[derive(Clone)]
pub struct WithTimers<S, T> {
    service: S,
    on_timer: T,
}

impl<S: fmt::Debug, T> fmt::Debug for WithTimers<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithTimers").field("service", &self.service).finish_non_exhaustive()
    }
}

impl<S, T, R> Service for WithTimers<S, T>
where
    S: Service,
    T: Fn(Session, Bytes) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    fn call(
        &self,
        session: Session,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send {
        self.service.call(session, request)
    }

    fn activated(&self, session: &Session) -> impl Future<Output = ()> + Send {
        self.service.activated(session)
    }

    fn deactivating(&self, session: &Session, why: Why) -> impl Future<Output = ()> + Send {
        self.service.deactivating(session, why)
    }

    fn timer(&self, session: Session, event: Bytes) -> impl Future<Output = ()> + Send {
        (self.on_timer)(session, event)
    }

    fn is_read(&self, head: &request::Parts) -> bool {
        self.service.is_read(head)
    }

    fn has_hooks(&self) -> bool {
        self.service.has_hooks()
    }
}

impl<F, R> Service for F
where
    F: Fn(Session, Request<Body>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send,
{
    fn call(
        &self,
        session: Session,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send {
        self(session, request)
    }

    fn has_hooks(&self) -> bool {
        false
    }
}

/// A tower service as an application, for example an `axum::Router`.
///
/// The [`Session`] is in the request's extensions. With the feature `axum` it is an extractor, and
/// [`Problem`](crate::Problem) an answer. [`Service::on_timer`] adds timers.
pub fn tower<S, B>(service: S) -> Tower<S>
where
    S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: fmt::Display,
{
    Tower { service }
}

/// See [`tower()`].
#[derive(Clone, Debug)]
pub struct Tower<S> {
    service: S,
}

impl<S, B> Service for Tower<S>
where
    S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: fmt::Display,
{
    async fn call(&self, session: Session, mut request: Request<Body>) -> Response<Body> {
        request.extensions_mut().insert(session);
        match self.service.clone().oneshot(request).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    }

    fn has_hooks(&self) -> bool {
        false
    }
}

/// The request did not come through a node: it has no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request has no session: it did not come through a node")]
pub struct NoSession;

impl Session {
    /// The session that a node put into the extensions of a request to a tower service.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(extensions: &http::Extensions) -> Result<Self, NoSession> {
        extensions.get::<Self>().cloned().ok_or(NoSession)
    }
}

#[cfg(feature = "axum")]
impl<S: Sync> axum::extract::FromRequestParts<S> for Session {
    type Rejection = NoSession;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, NoSession> {
        Self::of(&parts.extensions)
    }
}

#[cfg(feature = "axum")]
impl axum::response::IntoResponse for NoSession {
    fn into_response(self) -> axum::response::Response {
        (http::StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

#[cfg(feature = "axum")]
impl axum::response::IntoResponse for crate::problem::Problem {
    fn into_response(self) -> axum::response::Response {
        Self::into_response(self).map(axum::body::Body::new)
    }
}

pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A service of any type, as a host keeps it.
#[derive(Clone)]
pub struct SharedService {
    service: Arc<dyn Erased>,
}

impl fmt::Debug for SharedService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedService").finish_non_exhaustive()
    }
}

impl SharedService {
    /// Forgets the type of `service`.
    pub fn new(service: impl Service) -> Self {
        Self { service: Arc::new(service) }
    }

    pub(crate) fn run(&self, turn: Begun, job: Job) -> Boxed<turn::Outcome> {
        Arc::clone(&self.service).run(turn, job)
    }

    pub(crate) fn deactivate(&self, turn: Begun, why: Why) -> Boxed<()> {
        Arc::clone(&self.service).deactivate(turn, why)
    }

    pub(crate) fn say_goodbye(&self, session: Session, why: Why) -> Boxed<()> {
        Arc::clone(&self.service).say_goodbye(session, why)
    }

    pub(crate) fn is_read(&self, head: &request::Parts) -> bool {
        self.service.is_read(head)
    }

    pub(crate) fn has_hooks(&self) -> bool {
        self.service.has_hooks()
    }
}

/// The object-safe face of [`Service`]: whole turns, so that a turn is one allocation.
trait Erased: Send + Sync {
    fn run(self: Arc<Self>, turn: Begun, job: Job) -> Boxed<turn::Outcome>;
    fn deactivate(self: Arc<Self>, turn: Begun, why: Why) -> Boxed<()>;
    fn say_goodbye(self: Arc<Self>, session: Session, why: Why) -> Boxed<()>;
    fn is_read(&self, head: &request::Parts) -> bool;
    fn has_hooks(&self) -> bool;
}

impl<S: Service> Erased for S {
    fn run(self: Arc<Self>, turn: Begun, job: Job) -> Boxed<turn::Outcome> {
        Box::pin(turn::run(self, turn, job))
    }

    fn deactivate(self: Arc<Self>, turn: Begun, why: Why) -> Boxed<()> {
        Box::pin(turn::deactivate(self, turn, why))
    }

    fn say_goodbye(self: Arc<Self>, session: Session, why: Why) -> Boxed<()> {
        Box::pin(async move { turn::say_goodbye(&*self, &session, why).await })
    }

    fn is_read(&self, head: &request::Parts) -> bool {
        Service::is_read(self, head)
    }

    fn has_hooks(&self) -> bool {
        Service::has_hooks(self)
    }
}
