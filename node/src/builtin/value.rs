//! `PUT`, `GET` and `DELETE /sessions/{id}`.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use stead_shared::refusal::Refusal;
use tokio::time::timeout;

use super::{BuiltInConfig, at_hand, not_found, path, read_body, wrong_method};
use crate::body::Body;
use crate::problem::Problem;
use crate::session::Session;
use crate::turn::{StampEtag, etag};

/// How long a move waits for a body on its way: well below the two seconds that a shard may be
/// sealed.
const GRACE_OF_MOVES: Duration = Duration::from_secs(1);

pub(super) async fn answer(
    config: &BuiltInConfig,
    session: &Session,
    request: &Request<()>,
    body: Body,
) -> Result<Response<Body>, Problem> {
    match *request.method() {
        Method::PUT => put(config, session, request, body).await,
        Method::GET => get(session, request.headers()),
        Method::HEAD => get(session, request.headers()).map(without_body),
        Method::DELETE => delete(session, request.headers()),
        _ => Err(wrong_method("GET, HEAD, PUT, DELETE")),
    }
}

async fn put(
    config: &BuiltInConfig,
    session: &Session,
    request: &Request<()>,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let ttl = path::ttl(request.uri().query())?;
    let current = current_etag(session)?;
    check_preconditions(request.headers(), current.as_deref())?;
    let bytes = match at_hand(body, config.value_bytes_max)? {
        Ok(bytes) => bytes,
        Err(body) => Box::pin(read_long_body(config, session, body)).await?,
    };
    session.put_bytes(&bytes)?;
    match ttl {
        Some(ttl) => session.expire_in(ttl)?,
        None => session.expire_by_default()?,
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() =
        if current.is_some() { StatusCode::NO_CONTENT } else { StatusCode::CREATED };
    response.extensions_mut().insert(StampEtag);
    Ok(response)
}

/// Reads a body whose end may be long in coming. When the session is to move, its client gets a
/// short while to finish and is sent away then, since the move waits for this turn.
async fn read_long_body(
    config: &BuiltInConfig,
    session: &Session,
    body: Body,
) -> Result<Bytes, Problem> {
    let moving = || Problem::of_refusal(&Refusal::Moving);
    let read = read_body(config, body, config.value_bytes_max);
    let Ok(mut attached) = session.handle().attach() else {
        return timeout(GRACE_OF_MOVES, read).await.map_err(|_| moving())?;
    };
    tokio::select! {
        biased;
        read = read => read,
        () = async {
            attached.gone().await;
            tokio::time::sleep(GRACE_OF_MOVES).await;
        } => Err(moving()),
    }
}

fn get(session: &Session, headers: &HeaderMap) -> Result<Response<Body>, Problem> {
    let (Some(bytes), Some(current)) = (session.bytes()?, current_etag(session)?) else {
        return Err(no_value());
    };
    check(headers, &IF_MATCH, |tag| tag == "*" || tag == current, true)?;
    let is_same = |tag: &str| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == current;
    let mut response = Response::new(Body::empty());
    if headers.contains_key(IF_NONE_MATCH) && tags(headers, &IF_NONE_MATCH).any(is_same) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        *response.body_mut() = bytes.into();
        let binary = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(CONTENT_TYPE, binary);
    }
    let tag = HeaderValue::try_from(current).expect("an etag is visible ASCII");
    response.headers_mut().insert(ETAG, tag);
    Ok(response)
}

/// The head that a `GET` would have.
pub(super) fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().length()
        && response.status() == StatusCode::OK
    {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    *response.body_mut() = Body::empty();
    response
}

fn delete(session: &Session, headers: &HeaderMap) -> Result<Response<Body>, Problem> {
    check_preconditions(headers, current_etag(session)?.as_deref())?;
    if !session.exists()? {
        return Err(no_value());
    }
    session.delete()?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn current_etag(session: &Session) -> Result<Option<String>, Problem> {
    Ok(session.value_version()?.map(etag))
}

/// RFC 9110 §13: for a change, `If-Match` wants what is there, `If-None-Match` forbids it.
fn check_preconditions(headers: &HeaderMap, current: Option<&str>) -> Result<(), Problem> {
    let is_current = |tag: &str| match current {
        // A weak tag never matches: it does not name these very bytes.
        Some(current) => tag == "*" || tag == current,
        None => false,
    };
    check(headers, &IF_MATCH, is_current, true)?;
    check(headers, &IF_NONE_MATCH, is_current, false)
}

/// 412 where the header is there and whether one of its tags `matches` is not as `wanted`.
fn check(
    headers: &HeaderMap,
    name: &HeaderName,
    matches: impl FnMut(&str) -> bool,
    wanted: bool,
) -> Result<(), Problem> {
    if !headers.contains_key(name) || tags(headers, name).any(matches) == wanted {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::PRECONDITION_FAILED,
        "precondition-failed",
        "The session is not in the state that was asked for",
        format!("{name} was not fulfilled; nothing was changed."),
    ))
}

/// The entity tags of a list. Ours have no comma inside, and others match none of ours.
fn tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',').map(str::trim))
}

fn no_value() -> Problem {
    not_found("no-such-session", "There is no such session")
}
