//! Pins and moves over HTTP.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use http::header::HeaderMap;
use http::{Response, StatusCode, Uri};

use super::super::{Admin, PlaceError};
use super::{Peer, allowed, json, problem, text_parameter};
use crate::config::Span;
use crate::pins::PinError;

/// How long a shard is pinned when the request does not say.
const KEEP_DEFAULT: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn pins(State(admin): State<Admin>) -> Response<Body> {
    json(StatusCode::OK, &admin.source.pins())
}

pub(super) async fn moves(State(admin): State<Admin>) -> Response<Body> {
    json(StatusCode::OK, &admin.source.moves().await)
}

pub(super) async fn shard(State(admin): State<Admin>, Path(id): Path<String>) -> Response<Body> {
    match numbered(&admin, &id).and_then(|shard| admin.source.shard(shard)) {
        Ok(report) => json(StatusCode::OK, &report),
        Err(error) => place_problem(&error),
    }
}

pub(super) async fn move_shard(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    if let Err(response) = allowed(&admin, peer, &headers, "move") {
        return *response;
    }
    let (to, keep) = match where_to(&uri, peer) {
        Ok(asked) => asked,
        Err(response) => return *response,
    };
    let shard = match numbered(&admin, &id) {
        Ok(shard) => shard,
        Err(error) => return place_problem(&error),
    };
    tracing::info!(peer = %peer.0, shard, to, ?keep, "admin: move");
    match admin.source.move_shard(shard, to, keep).await {
        Ok(pin) => json(StatusCode::ACCEPTED, &pin),
        Err(error) => place_problem(&error),
    }
}

pub(super) async fn unpin(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    if let Err(response) = allowed(&admin, peer, &headers, "unpin") {
        return *response;
    }
    let shard = match numbered(&admin, &id) {
        Ok(shard) => shard,
        Err(error) => return place_problem(&error),
    };
    tracing::info!(peer = %peer.0, shard, "admin: unpin");
    match admin.source.unpin(shard).await {
        Ok(()) => json(StatusCode::ACCEPTED, &serde_json::json!({ "accepted": true })),
        Err(error) => place_problem(&error),
    }
}

/// The node and the time that a move asks for.
fn where_to(uri: &Uri, peer: Peer) -> Result<(String, Duration), Box<Response<Body>>> {
    let bad = |detail: String| Box::new(problem(StatusCode::BAD_REQUEST, detail));
    let to = text_parameter(uri, "to", peer)?
        .ok_or_else(|| bad("say where to: /v1/shards/{id}/move?to=NODE[&for=24h]".to_owned()))?;
    let keep = match text_parameter(uri, "for", peer)? {
        None => KEEP_DEFAULT,
        Some(text) => text.parse::<Span>().map_err(|error| bad(format!("for: {error}")))?.0,
    };
    Ok((to, keep))
}

/// The number of a shard, as a path gives it. Whether there is one of that number is for the
/// source to say.
fn numbered(admin: &Admin, id: &str) -> Result<u32, PlaceError> {
    id.parse().map_err(|_| match admin.source.shards().shards {
        0 => PlaceError::NoShards,
        shards => PlaceError::UnknownShard { shard: id.to_owned(), last: shards - 1 },
    })
}

fn place_problem(error: &PlaceError) -> Response<Body> {
    let status = match error {
        PlaceError::UnknownShard { .. } | PlaceError::UnknownNode(_) | PlaceError::NotPinned(_) => {
            StatusCode::NOT_FOUND
        }
        PlaceError::NotANode(_)
        | PlaceError::NotReady { .. }
        | PlaceError::NoWeight(_)
        | PlaceError::Pin(PinError::Full | PinError::PinnedByHand(_)) => StatusCode::CONFLICT,
        PlaceError::Pin(PinError::Keep) => StatusCode::BAD_REQUEST,
        PlaceError::NoShards | PlaceError::Closed(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    problem(status, error.to_string())
}
