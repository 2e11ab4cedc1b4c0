//! A node's answer on its way to the client.

use std::future::poll_fn;
use std::mem::take;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, SET_COOKIE};
use http::{HeaderValue, Method, Response, StatusCode, Version, response};
use stead_shared::id::{Epoch, ShardId};
use stead_shared::net::link::{RecvHalf, StreamEvent};

use super::Inner;
use super::errand::Errand;
use crate::body::OutBody;
use crate::client::ClientState;
use crate::logic::retry::Failure;
use crate::respond::{Problem, Then, respond};
use crate::tunnel::{Tunnel, is_websocket};
use crate::upstream::{Answered, Upload};
use stead_shared::border::headers;

impl Inner {
    /// The node's answer, made fit for the client.
    pub(super) fn pass_on(
        &self,
        mut errand: Errand,
        answered: Answered,
        client: &Arc<ClientState>,
    ) -> Response<OutBody> {
        let Answered { head, mut recv, mut send } = answered;
        let meta = head.meta.clone();
        // The request's headers have done their work. The HTTP library uses the answer's map for
        // the next request: so a connection goes on with one map, and it soon is large enough.
        let Ok(mut parts) = head.into_parts(take(&mut errand.parts.headers)) else {
            return self.broken(errand.then());
        };
        if parts.status.is_informational() {
            return match (errand.upgrade.take(), send) {
                (Some((protocol, upgrade)), Some(send))
                    if parts.status == StatusCode::SWITCHING_PROTOCOLS =>
                {
                    self.clean(&mut parts, errand, meta.epoch, Some(protocol.clone()));
                    let is_websocket = is_websocket(&protocol);
                    let (state, metrics) = (Arc::clone(client), Arc::clone(&self.metrics));
                    let tunnel =
                        Tunnel { client: upgrade, state, send, recv, is_websocket, metrics };
                    self.clients.tasks.spawn(tunnel.run(self.clients.stopping.clone()));
                    Response::from_parts(parts, OutBody::empty())
                }
                // Not asked for, and it would take the connection out of step.
                _not_asked_for => self.broken(Then::Close),
            };
        }
        if let Some(send) = &mut send {
            // The upgrade was turned down: nothing more follows on this stream.
            let _ended = send.finish(None);
        }
        let length = body_length(&errand.parts.method, &mut parts, meta.length);
        let has_body = errand.parts.method != Method::HEAD && may_have_body(parts.status);
        let body = match Beginning::of(&mut recv, has_body, length) {
            Beginning::None => OutBody::empty(),
            Beginning::Whole(bytes) => OutBody::full(bytes),
            Beginning::Some(ahead) => {
                let metrics = Arc::clone(&self.metrics);
                OutBody::stream(recv, ahead, length, errand.takes_trailers, metrics)
            }
            // The client has seen nothing yet, so it can be told.
            Beginning::Broken => return self.broken(errand.then()),
        };
        if let Some(upload) = errand.upload.take().filter(|upload| !upload.is_done()) {
            self.finish_upload(upload);
        }
        self.clean(&mut parts, errand, meta.epoch, None);
        Response::from_parts(parts, body)
    }

    fn broken(&self, then: Then) -> Response<OutBody> {
        self.metrics.unknown.increment(1);
        respond(Problem::Failed(Failure::Unknown), then)
    }

    /// Headers as the client may see them.
    fn clean(
        &self,
        parts: &mut response::Parts,
        errand: Errand,
        epoch: Epoch,
        upgrade: Option<HeaderValue>,
    ) {
        parts.version = Version::HTTP_11;
        headers::to_client(&mut parts.headers, upgrade, errand.takes_trailers);
        if self.config.expose_headers {
            self.expose(parts, errand.meta.shard, epoch);
        }
        if let Some(cookie) = errand.set_cookie {
            self.metrics.cookies_issued.increment(1);
            parts.headers.append(SET_COOKIE, cookie);
        }
    }

    fn expose(&self, parts: &mut response::Parts, shard: ShardId, epoch: Epoch) {
        let name = self.routing.with_view(|view| {
            view.members.find(epoch.node).map_or_else(|| epoch.node.to_string(), |m| m.name())
        });
        let values = [
            (headers::NODE, HeaderValue::try_from(name)),
            (headers::SHARD, HeaderValue::try_from(shard.to_string())),
            (headers::EPOCH, HeaderValue::try_from(epoch.to_string())),
        ];
        for (name, value) in values {
            if let Ok(value) = value {
                parts.headers.insert(name, value);
            }
        }
    }

    /// The node answered before it had the whole body: the rest goes on beside the answer.
    fn finish_upload(&self, mut upload: Box<Upload>) {
        self.clients.tasks.spawn(async move {
            // Either side's end ends it; the answer tells the client what became of it.
            let _ended = poll_fn(|cx| upload.poll(cx)).await;
        });
    }
}

/// What is here of an answer's body when its head is.
#[derive(Debug)]
enum Beginning {
    /// There is no body.
    None,
    /// All of it, which is most often so.
    Whole(Bytes),
    /// Some of it, or nothing yet.
    Some([Option<StreamEvent>; 2]),
    /// It broke off, or it is not what was promised.
    Broken,
}

impl Beginning {
    fn of(recv: &mut RecvHalf, has_body: bool, length: Option<u64>) -> Self {
        if !has_body {
            return Self::None;
        }
        let fits = |bytes: usize| length.is_none_or(|length| bytes as u64 == length);
        let first = match recv.try_next() {
            Poll::Ready(Some(StreamEvent::Data(first))) => first,
            Poll::Ready(Some(StreamEvent::End(None))) if fits(0) => return Self::None,
            Poll::Ready(_) => return Self::Broken,
            Poll::Pending => return Self::Some([None, None]),
        };
        if length.is_some_and(|length| length < first.len() as u64) {
            return Self::Broken;
        }
        match recv.try_next() {
            Poll::Ready(Some(StreamEvent::End(_))) if !fits(first.len()) => Self::Broken,
            Poll::Ready(Some(StreamEvent::End(None))) => Self::Whole(first),
            Poll::Ready(Some(second @ (StreamEvent::Data(_) | StreamEvent::End(Some(_))))) => {
                Self::Some([Some(StreamEvent::Data(first)), Some(second)])
            }
            Poll::Ready(_) => Self::Broken,
            Poll::Pending => Self::Some([Some(StreamEvent::Data(first)), None]),
        }
    }
}

fn may_have_body(status: StatusCode) -> bool {
    status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

/// Takes the length out of the head: the HTTP library writes it from the body's own. Only an
/// answer without a body says in its head how long it would be.
fn body_length(method: &Method, parts: &mut response::Parts, known: Option<u64>) -> Option<u64> {
    let says_only = *method == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED;
    if says_only {
        if let Some(length) = known.filter(|_| *method == Method::HEAD)
            && !parts.headers.contains_key(CONTENT_LENGTH)
        {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        return None;
    }
    let said = parts.headers.remove(CONTENT_LENGTH);
    known.or_else(|| said?.to_str().ok()?.parse().ok())
}
