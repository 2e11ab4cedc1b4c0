//! `POST` and `GET /sessions/{id}/counters/{name}`.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use serde::{Deserialize, Serialize};

use super::value::without_body;
use super::{BuiltInConfig, at_hand, bad_request, not_found, path, read_body, wrong_method};
use crate::body::Body;
use crate::problem::Problem;
use crate::session::Session;

/// `{"by": -9223372036854775808}` with any white space somebody may like.
const BODY_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    by: i64,
}

#[derive(Serialize)]
struct Counter {
    value: i64,
}

pub(super) async fn answer(
    config: &BuiltInConfig,
    session: &Session,
    name: &str,
    request: &Request<()>,
    body: Body,
) -> Result<Response<Body>, Problem> {
    match *request.method() {
        Method::POST => {
            let ttl = path::ttl(request.uri().query())?;
            let body = match at_hand(body, BODY_BYTES_MAX)? {
                Ok(bytes) => bytes,
                Err(body) => Box::pin(read_body(config, body, BODY_BYTES_MAX)).await?,
            };
            let value = session.add(name, change(&body)?)?;
            if let Some(ttl) = ttl {
                session.expire_in(ttl)?;
            }
            Ok(json(value))
        }
        Method::GET => get(session, name),
        Method::HEAD => get(session, name).map(without_body),
        _ => Err(wrong_method("GET, HEAD, POST")),
    }
}

fn get(session: &Session, name: &str) -> Result<Response<Body>, Problem> {
    let value = session.counter(name)?;
    let value = value.ok_or_else(|| not_found("no-such-counter", "There is no such counter"))?;
    Ok(json(value))
}

fn change(body: &[u8]) -> Result<i64, Problem> {
    if body.is_empty() {
        return Ok(1);
    }
    let change: Change = serde_json::from_slice(body).map_err(|error| {
        let detail = format!("The body is empty or like {{\"by\": 1}}: {error}.");
        bad_request("bad-counter-change", detail)
    })?;
    Ok(change.by)
}

fn json(value: i64) -> Response<Body> {
    let body = serde_json::to_vec(&Counter { value }).expect("a number is always JSON");
    let mut response = Response::new(Body::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
