//! Requests that come twice, as HTTP: what they say of themselves, what of their answers is kept,
//! and how that is answered again. What becomes of them is decided in [`crate::logic::window`].

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, request};
use stead_shared::border::headers::REPLAYED;
use stead_shared::id::{BootId, Epoch};
use stead_shared::time::Time;
use stead_shared::wire::http::{RequestMeta, decode_trailers, encode_trailers};
use xxhash_rust::xxh3::Xxh3Default;

use crate::body::Body;
use crate::logic::window::{Asked, Content, Entry, KEY_BYTES_MAX, Kept, Keyed};
use crate::problem::Problem;
use crate::store::core::Core;
use crate::turn::{Answer, etag, is_stamped};

/// With it a client names its request, to ask for its answer again.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

impl Asked {
    /// What a request says of itself.
    ///
    /// # Errors
    /// Its idempotency key is none.
    pub(crate) fn of(
        meta: &RequestMeta,
        head: &request::Parts,
        body: &Body,
    ) -> Result<Self, Problem> {
        // A process that does not know its own name yet gives numbers that others give, too.
        let id = (meta.id.boot != BootId(0)).then_some(meta.id);
        let key = if head.method.is_safe() { None } else { Keyed::of(head, body)?.map(Box::new) };
        // What should change nothing may run again where nobody knows whether it did.
        let attempt = if head.method.is_safe() { 1 } else { meta.attempt };
        Ok(Self { id, attempt, first_sent_ms: meta.first_sent_ms, key })
    }

    /// The entry of this request, which is answered with `response` once its change is committed at
    /// `now`. None for one that nobody could ask for again.
    pub(crate) fn into_entry(self, response: &Response<Body>, now: Time) -> Option<Entry> {
        if self.id.is_none() && self.key.is_none() {
            return None;
        }
        Some(Entry::new(self, keep(response), now))
    }
}

impl Keyed {
    /// How the client named its request, if it did.
    fn of(head: &request::Parts, body: &Body) -> Result<Option<Self>, Problem> {
        let mut values = head.headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let name = value.as_bytes();
        if values.next().is_some() || !(1..=KEY_BYTES_MAX).contains(&name.len()) {
            return Err(bad_key());
        }
        Ok(Some(Self { name: name.into(), fingerprint: fingerprint(head, body) }))
    }
}

/// What was asked for. Of a body that is too long to be read ahead, or of unknown length, only the
/// length that its head announces counts.
fn fingerprint(head: &request::Parts, body: &Body) -> u128 {
    let mut hash = Xxh3Default::new();
    hash.update(head.method.as_str().as_bytes());
    hash.update(b" ");
    hash.update(head.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes());
    hash.update(b" ");
    hash.update(&body.length().unwrap_or(u64::MAX).to_le_bytes());
    hash.update(body.peek().unwrap_or_default());
    hash.digest128()
}

fn bad_key() -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "idempotency-key-invalid",
        "The idempotency key cannot be used",
        format!("The header Idempotency-Key wants one value of 1 to {KEY_BYTES_MAX} bytes."),
    )
    .refused("malformed")
}

/// What is kept of an answer. Its version is not known before the commit.
fn keep(response: &Response<Body>) -> Kept {
    let body = response.body().peek();
    let head = encode_trailers(response.headers()).ok();
    Kept {
        status: response.status().as_u16(),
        version: crate::logic::window::NO_VERSION,
        has_etag: is_stamped(response),
        content: head.zip(body).and_then(|(head, body)| Content::new(&head, body)),
    }
}

/// An answer that was given before.
pub(crate) fn replay(core: &Core, kept: &Kept, epoch: Epoch) -> Answer {
    let whole = kept.content.as_ref().and_then(|content| {
        let headers = decode_trailers(Bytes::copy_from_slice(content.head())).ok()?;
        Some((headers, Bytes::copy_from_slice(content.body())))
    });
    let is_whole = whole.is_some();
    core.metrics.replayed(is_whole);
    let (mut headers, body) = whole.unwrap_or_else(|| (HeaderMap::new(), Bytes::new()));
    if kept.has_etag || !is_whole {
        let value = HeaderValue::try_from(etag(kept.version)).expect("hex digits, dots and quotes");
        headers.insert(ETAG, value);
    }
    if !is_whole {
        headers.remove(CONTENT_LENGTH);
    }
    let how = if is_whole { "true" } else { "status-only" };
    headers.insert(REPLAYED, HeaderValue::from_static(how));
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
    *response.headers_mut() = headers;
    Answer { epoch, response }
}

/// The answer to a request that may have been applied, and whose answer is gone.
pub(crate) fn unknown(epoch: Epoch) -> Answer {
    let problem = Problem::new(
        StatusCode::BAD_GATEWAY,
        "outcome-unknown",
        "The request may have been executed",
        "An earlier attempt was sent and its answer was lost. It was not run again.",
    );
    Answer { epoch, response: problem.outcome_unknown().into_response() }
}

/// The answer to a request whose idempotency key its client has used for another one.
pub(crate) fn other_request(epoch: Epoch) -> Answer {
    let problem = Problem::new(
        StatusCode::CONFLICT,
        "idempotency-key-reused",
        "The idempotency key was used for another request",
        "Another method, target or body came with this key before. Give each request its own.",
    );
    Answer { epoch, response: problem.refused("idempotency-key-reused").into_response() }
}
