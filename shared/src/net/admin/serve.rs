//! The server: routes, limits, and the only table from error to status.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::{Admin, DrainError, ForgetError, Problem, Readiness, auth};
use crate::id::SessionKey;
use crate::net::sock::{TcpListener, TcpStream};
use crate::session_key::{KeyError, KeySource, extract};

mod placing;

/// Connections served at once; the next one waits in the backlog.
const CONNECTIONS_MAX: usize = 512;
/// For the head of a request, and for the idle time between two on one connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer. Only a drain by name asks another process.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// How long requests may take to end once the process stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed `accept`, so that running out of files does not busy the thread.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is here, for whoever asks for something else.
const PATHS: &str = "GET /metrics /healthz /readyz /v1/members /v1/conflicts /v1/shards /v1/shards/{id} \
    /v1/where?key= /v1/pins /v1/moves /v1/drain, POST /v1/drain /v1/shards/{id}/move?to= /v1/members/{name}/forget, \
    DELETE /v1/shards/{id}/pin";

/// The address of the client, as the listener saw it.
#[derive(Clone, Copy)]
struct Peer(IpAddr);

/// Serves the admin interface on `listener` until `stop` is ready, then lets requests end for at
/// most a second.
pub async fn serve(listener: TcpListener, admin: Admin, stop: impl Future<Output = ()>) {
    let router = router(admin);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (listener.accept().await, permit.expect("the semaphore is never closed"))
        };
        let (accepted, permit) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = graceful.watch(connection(stream, peer, router.clone()));
                tokio::spawn(async move {
                    // A client that went away is no event.
                    let _ = connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin: cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(STOP_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::debug!("admin: requests were still running at the end");
    }
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
) -> impl hyper_util::server::graceful::GracefulConnection + Send + 'static {
    let service = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        let answer = service.call(request);
        async move {
            match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answer) => answer,
                Err(_) => Ok(problem(StatusCode::GATEWAY_TIMEOUT, "no answer within 10 s")),
            }
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/v1/members", get(members))
        .route("/v1/members/{name}/forget", post(forget))
        .route("/v1/conflicts", get(conflicts))
        .route("/v1/shards", get(shards))
        .route("/v1/where", get(where_is))
        .route("/v1/drain", get(drain_progress).post(drain))
        .route("/v1/shards/{id}", get(placing::shard))
        .route("/v1/shards/{id}/move", post(placing::move_shard))
        .route("/v1/shards/{id}/pin", delete(placing::unpin))
        .route("/v1/pins", get(placing::pins))
        .route("/v1/moves", get(placing::moves))
        .fallback(async || problem(StatusCode::NOT_FOUND, format!("there are {PATHS}")))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, format!("there are {PATHS}"))
        })
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> Response<Body> {
    let mut response = Response::new(Body::from((admin.metrics)()));
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

async fn readyz(State(admin): State<Admin>) -> Response<Body> {
    match admin.source.ready() {
        Readiness::Ready => json(StatusCode::OK, &serde_json::json!({ "ready": true })),
        Readiness::Warning(warning) => {
            json(StatusCode::OK, &serde_json::json!({ "ready": true, "warning": warning }))
        }
        Readiness::NotReady(reason) => problem(StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

async fn members(State(admin): State<Admin>) -> Response<Body> {
    json(StatusCode::OK, &admin.source.members())
}

async fn forget(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    if let Err(response) = allowed(&admin, peer, &headers, "forget") {
        return *response;
    }
    tracing::info!(peer = %peer.0, node = name, "admin: forget");
    match admin.source.forget(name).await {
        Ok(report) => json(StatusCode::OK, &report),
        Err(error @ ForgetError::Alive(_)) => problem(StatusCode::CONFLICT, error.to_string()),
    }
}

async fn conflicts(State(admin): State<Admin>) -> Response<Body> {
    json(StatusCode::OK, &admin.source.conflicts())
}

async fn shards(State(admin): State<Admin>) -> Response<Body> {
    json(StatusCode::OK, &admin.source.shards())
}

async fn where_is(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
) -> Response<Body> {
    let key = match parameter(&uri, "key", peer) {
        Ok(Some(key)) => key,
        Ok(None) => return problem(StatusCode::BAD_REQUEST, "say which key: /v1/where?key=alice"),
        Err(error) => return problem(StatusCode::BAD_REQUEST, error.to_string()),
    };
    match admin.source.where_is(&key) {
        Some(report) => json(StatusCode::OK, &report),
        None => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "the number of shards is not known yet: no node has been met",
        ),
    }
}

async fn drain(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    if let Err(response) = allowed(&admin, peer, &headers, "drain") {
        return *response;
    }
    let node = match node_name(&uri, peer) {
        Ok(node) => node,
        Err(response) => return *response,
    };
    tracing::info!(peer = %peer.0, node = node.as_deref().unwrap_or("this process"), "admin: drain");
    match admin.source.drain(node).await {
        Ok(()) => json(StatusCode::ACCEPTED, &serde_json::json!({ "accepted": true })),
        Err(error) => drain_problem(&error),
    }
}

async fn drain_progress(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
) -> Response<Body> {
    let node = match node_name(&uri, peer) {
        Ok(node) => node,
        Err(response) => return *response,
    };
    match admin.source.drain_progress(node).await {
        Ok(report) => json(StatusCode::OK, &report),
        Err(error) => drain_problem(&error),
    }
}

/// Whether `peer` may change something.
fn allowed(
    admin: &Admin,
    peer: Peer,
    headers: &HeaderMap,
    what: &'static str,
) -> Result<(), Box<Response<Body>>> {
    auth::check(peer.0, headers, admin.token.as_ref()).map_err(|denied| {
        tracing::warn!(peer = %peer.0, why = ?denied, "admin: {what} denied");
        Box::new(problem(StatusCode::FORBIDDEN, denied.detail()))
    })
}

fn drain_problem(error: &DrainError) -> Response<Body> {
    let status = match error {
        DrainError::UnknownNode(_) => StatusCode::NOT_FOUND,
        DrainError::NotANode(_) => StatusCode::CONFLICT,
        DrainError::Unreachable { .. } => StatusCode::BAD_GATEWAY,
    };
    problem(status, error.to_string())
}

/// The parameter `node`, if there is one.
fn node_name(uri: &Uri, peer: Peer) -> Result<Option<String>, Box<Response<Body>>> {
    text_parameter(uri, "node", peer)
}

/// A query parameter that is text, if it is there.
fn text_parameter(
    uri: &Uri,
    name: &str,
    peer: Peer,
) -> Result<Option<String>, Box<Response<Body>>> {
    let bad = |detail: String| Box::new(problem(StatusCode::BAD_REQUEST, detail));
    let Some(value) = parameter(uri, name, peer).map_err(|error| bad(error.to_string()))? else {
        return Ok(None);
    };
    let text = String::from_utf8(value.as_bytes().to_vec());
    text.map(Some).map_err(|_| bad(format!("the parameter `{name}` is ASCII text")))
}

/// A query parameter, decoded by the rule for session keys: `%` once, `+` is a plus sign.
fn parameter(uri: &Uri, name: &str, peer: Peer) -> Result<Option<SessionKey>, KeyError> {
    extract(&[KeySource::Query(name.to_owned())], uri, &HeaderMap::new(), peer.0)
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let mut response = axum::response::IntoResponse::into_response((status, Json(value)));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn problem(status: StatusCode, detail: impl Into<String>) -> Response<Body> {
    let mut response = json(
        status,
        &Problem {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: detail.into(),
        },
    );
    let kind = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests;
