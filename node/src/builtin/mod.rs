//! The service of a node without an application: a session store over HTTP.
//!
//! The session's key is its id. Under `/sessions/{id}`:
//!
//! | request | answer |
//! |---|---|
//! | `PUT` bytes ≤ 1 MiB, `?ttl=30m` | 201 (new) or 204, `ETag` |
//! | `GET` | 200 with the bytes and `ETag`, or 404; 304 for `If-None-Match` |
//! | `DELETE` | 204, value and counters are gone; or 404 |
//! | `POST …/counters/{name}`, empty or `{"by": 2}`, `?ttl=30m` | 200 `{"value": 3}`; 400 for a bad body, 409 for an overflow |
//! | `GET …/counters/{name}` | 200 `{"value": 3}`, or 404 |
//! | `GET …/ws` with a WebSocket upgrade | 101, and a room: see [`room`] |
//!
//! `PUT` and `DELETE` honour `If-Match` and `If-None-Match` with 412. The `ETag` names the last
//! change of the value; neither counters nor a move change it. `?ttl=` is the time to live
//! without access; a `PUT` without it goes back to the node's own (`--session-ttl`), a `POST`
//! keeps what is there. An id that is not the key is 400 `key-mismatch`. Memory that has run out
//! is 507. All errors are `application/problem+json` (RFC 9457).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request};

use crate::body::Body;
use crate::problem::Problem;
use crate::service::Service;
use crate::session::{Session, StateError};
use crate::turn::{disk_full, memory_full};

mod counter;
mod path;
pub mod room;
mod value;

use path::{Resource, Target};
use room::Rooms;

/// Limits of the built-in service.
#[derive(Clone, Debug)]
pub struct BuiltInConfig {
    /// Most bytes of a value. Default 1 MiB.
    pub value_bytes_max: usize,
    /// Longest time for a request's body to arrive, since its session waits. Default 30 s.
    pub body_time_max: Duration,
    /// Most clients of one room. Default 1024.
    pub room_clients_max: usize,
    /// Most messages that wait for one client of a room; one that falls further behind is
    /// disconnected (1013). Default 256.
    pub room_queue_max: usize,
    /// Most bytes of a room's message. Default 64 KiB.
    pub message_bytes_max: usize,
    /// How often a room's client is pinged; one that is silent three times as long is
    /// disconnected. Default 30 s.
    pub ping_every: Duration,
}

impl Default for BuiltInConfig {
    fn default() -> Self {
        Self {
            value_bytes_max: 1 << 20,
            body_time_max: Duration::from_secs(30),
            room_clients_max: 1024,
            room_queue_max: 256,
            message_bytes_max: 64 << 10,
            ping_every: Duration::from_secs(30),
        }
    }
}

/// The session store. See the [module](self).
#[derive(Debug)]
pub struct BuiltIn {
    config: BuiltInConfig,
    rooms: Arc<Rooms>,
}

impl Default for BuiltIn {
    fn default() -> Self {
        Self::new(BuiltInConfig::default())
    }
}

impl BuiltIn {
    /// A store with these limits.
    #[must_use]
    pub fn new(config: BuiltInConfig) -> Self {
        let rooms = Arc::new(Rooms::new(config.clone()));
        Self { config, rooms }
    }

    /// Answers a request, whose body is beside it.
    async fn answer(
        &self,
        session: &Session,
        request: &Request<()>,
        body: Body,
    ) -> Result<Response<Body>, Problem> {
        let target = Target::parse(request.uri().path())?;
        if target.id != session.key().as_bytes() {
            return Err(key_mismatch());
        }
        match target.resource {
            Resource::Value => value::answer(&self.config, session, request, body).await,
            Resource::Counter(name) => {
                counter::answer(&self.config, session, &name, request, body).await
            }
            Resource::Room => self.rooms.answer(session, request),
        }
    }
}

impl Service for BuiltIn {
    // A block and not an `async fn`, which would keep the request twice.
    fn call(
        &self,
        session: Session,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send {
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        async move { self.answer(&session, &request, body).await.unwrap_or_else(Problem::into_response) }
    }

    fn is_read(&self, head: &request::Parts) -> bool {
        head.method == Method::GET || head.method == Method::HEAD
    }

    fn has_hooks(&self) -> bool {
        false
    }
}

fn key_mismatch() -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "key-mismatch",
        "The id in the path is not the session's key",
        "The request was routed by another key than the path names. Check the router's --key.",
    )
}

fn wrong_method(allowed: &'static str) -> Problem {
    let title = "This resource does not know the method";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", title, allowed).allow(allowed)
}

fn bad_request(kind: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, kind, "The request is not valid", detail)
}

fn not_found(kind: &'static str, title: &'static str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, kind, title, "")
}

fn too_large(limit: usize) -> Problem {
    let title = "The content is too large";
    let detail = format!("At most {limit} bytes.");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", title, detail)
}

impl From<StateError> for Problem {
    fn from(error: StateError) -> Self {
        match error {
            StateError::TooLarge { limit } => too_large(limit),
            StateError::MemoryFull => memory_full(),
            StateError::DiskFull => disk_full(),
            StateError::CounterOverflow => Self::new(
                StatusCode::CONFLICT,
                "counter-overflow",
                "The counter would leave the range of 64 bits",
                "It was not changed.",
            ),
            StateError::NewerVersion { .. } | StateError::Undecodable { .. } => {
                Self::of_refusal(&stead_shared::refusal::Refusal::Quarantined)
            }
            StateError::TurnOver
            | StateError::ReadOnly
            | StateError::Unencodable { .. }
            | StateError::TooManyTimers { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "The session could not be changed",
                error.to_string(),
            ),
        }
    }
}

/// The bytes of a body that is here already; of at most `limit`.
fn at_hand(body: Body, limit: usize) -> Result<Result<Bytes, Body>, Problem> {
    match body.try_into_bytes() {
        Ok(bytes) if limit < bytes.len() => Err(too_large(limit)),
        bytes_or_body => Ok(bytes_or_body),
    }
}

/// Reads a body of at most `limit` bytes.
async fn read_body(config: &BuiltInConfig, body: Body, limit: usize) -> Result<Bytes, Problem> {
    use crate::body::BodyError;
    let read = tokio::time::timeout(config.body_time_max, body.collect_up_to(limit)).await;
    match read {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(BodyError::TooLong { limit })) => Err(too_large(limit)),
        Ok(Err(error @ (BodyError::Aborted | BodyError::Failed(_)))) => {
            Err(bad_request("body-cut-off", error.to_string()))
        }
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-too-slow",
            "The content did not arrive in time",
            "The session was not changed.",
        )),
    }
}
