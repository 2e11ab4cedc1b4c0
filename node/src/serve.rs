//! Requests that come over links: decode, serve, answer. The path of every routed request.
//!
//! A request may be here before the shard is: whoever hands it off tells clients' routers and us
//! at the same time. It waits then, with those that this node took in itself, in one queue (R9).

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use http::{HeaderMap, Request, Response, StatusCode, request};
use http_body_util::BodyExt;
use stead_shared::id::{Epoch, NodeId, ShardId};
use stead_shared::net::link::{RecvHalf, ResetCode, SendError, ServerSend, ServerStream};
use stead_shared::net::parking::{NotSent, Parking, Turn};
use stead_shared::net::watch;
use stead_shared::park::{Cause, Wait};
use stead_shared::refusal::{Claim, Refusal};
use stead_shared::view::View;
use stead_shared::wire::http::{
    RequestMeta, ResponseMeta, decode_request, encode_refusal, encode_response, encode_trailers,
};
use stead_shared::wire::link::REPLAY_BYTES;
use tokio::time::Instant;

use crate::body::Body;
use crate::host::{Host, deadline};
use crate::link_body::LinkBody;
use crate::tunnel;
use crate::upgrade::{Upgrade, Upgraded};

/// Bytes of an upgraded stream that wait on their way to the service, each way.
const UPGRADE_BUFFER: usize = 32 * 1024;
/// How long a request without a deadline may wait: longer than the queue lets it.
const LONG: Duration = Duration::from_secs(30);

/// Why a request waits, as the queue wants it.
#[derive(Clone, Copy, Debug)]
struct Why {
    cause: Option<Cause>,
    /// Only a higher epoch ends the wait.
    tried: Option<Epoch>,
}

/// Answers streams of routers and other nodes.
pub(crate) struct Server {
    pub(crate) host: Host,
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) granted: Arc<DashMap<ShardId, Epoch>>,
    pub(crate) parking: Arc<Parking>,
    pub(crate) me: NodeId,
}

impl Server {
    /// Serves one request.
    ///
    /// Every request moves this future: what seldom has to be waited for is in a box.
    pub(crate) fn answer(self: Arc<Self>, stream: ServerStream) -> impl Future<Output = ()> + Send {
        let ServerStream { head, fin, recv, mut send } = stream;
        async move {
            let Ok((meta, parts)) = decode_request(head) else {
                metrics::counter!("stead_link_heads_unreadable_total").increment(1);
                send.reset(ResetCode::Failed);
                return;
            };
            let shard = meta.shard;
            let here = self.host.shard(shard);
            let (meta, parts, here, mut turn) = match self.must_wait(&meta, here.is_some()) {
                None => (meta, parts, here, None),
                Some(why) => {
                    drop(here);
                    match Box::pin(self.wait(meta, parts, why, fin, &send)).await {
                        Some(Ok((meta, parts, its_turn))) => {
                            (meta, parts, self.host.shard(shard), Some(its_turn))
                        }
                        Some(Err(refusal)) => {
                            send.refuse(encode_refusal(&self.with_claim(shard, refusal)));
                            return;
                        }
                        None => return,
                    }
                }
            };
            if meta.upgrade {
                drop(turn);
                Box::pin(self.answer_upgrade(meta, parts, recv, send)).await;
                return;
            }
            let served = if fin {
                let serving = self.host.serve_in(here, meta, parts, Body::empty(), || ());
                let mut serving = pin!(serving);
                // A client that goes away before its turn takes the request out of the queue.
                tokio::select! {
                    biased;
                    served = in_turn(&mut turn, serving.as_mut()) => served,
                    _ = send.cancelled() => return,
                }
            } else {
                let body = Body::new(LinkBody::new(recv, announced(&parts.headers)));
                let serving = self.host.serve_in(here, meta, parts, body, || send.accepted());
                in_turn(&mut turn, pin!(serving)).await
            };
            match served {
                // An error means that nobody waits for the answer any more.
                Ok((meta, response)) => drop(respond(&mut send, &meta, response).await),
                Err(refusal) => {
                    send.refuse(encode_refusal(&self.with_claim(shard, refusal)));
                }
            }
        }
    }

    /// Whether a request has to wait here before it is looked at, and why: for the end of a doubt,
    /// for those that came earlier, or for the end of the move that it has heard of and this node
    /// has not.
    fn must_wait(&self, meta: &RequestMeta, is_here: bool) -> Option<Why> {
        if is_here {
            if self.host.is_in_doubt() {
                return Some(Why { cause: Some(Cause::Moving), tried: None });
            }
            let why = Why { cause: None, tried: None };
            return self.parking.has_queue(meta.shard).then_some(why);
        }
        let named = meta.epoch.filter(|epoch| epoch.node == self.me)?;
        let tried = self.known(meta.shard);
        (tried < Some(named)).then_some(Why { cause: Some(Cause::Moving), tried })
    }

    /// The newest epoch of a shard that this node knows of.
    fn known(&self, shard: ShardId) -> Option<Epoch> {
        let granted = self.granted.get(&shard).map(|epoch| *epoch);
        granted.max(self.views.borrow().claims.get(shard).map(|(epoch, _)| epoch))
    }

    /// Waits for the turn in the queue; none when the client goes away first.
    async fn wait(
        &self,
        mut meta: RequestMeta,
        parts: request::Parts,
        why: Why,
        fin: bool,
        send: &ServerSend,
    ) -> Option<Result<(RequestMeta, request::Parts, Turn), Refusal>> {
        let until = deadline(&meta).unwrap_or_else(|| Instant::now() + LONG);
        let wait = Wait {
            shard: meta.shard,
            again: None,
            cause: why.cause,
            tried: why.tried,
            bytes: if fin { 0 } else { ahead(&parts.headers) },
            deadline: self.parking.time_of(until),
        };
        let waited = tokio::select! {
            biased;
            waited = self.parking.wait(wait, None) => waited,
            _ = send.cancelled() => return None,
        };
        meta.deadline_ms = left_ms(until);
        Some(waited.map(|turn| (meta, parts, turn)).map_err(refusal_of))
    }

    /// Adds who owns the shard, where this node knows better than the one who asked.
    pub(crate) fn with_claim(&self, shard: ShardId, refusal: Refusal) -> Refusal {
        match refusal {
            Refusal::NotOwner { claim: None } | Refusal::Moving => {}
            Refusal::NotOwner { claim: Some(_) }
            | Refusal::Overloaded { .. }
            | Refusal::Degraded
            | Refusal::Quarantined
            | Refusal::DeadlinePassed => return refusal,
        }
        if let Some(epoch) = self.granted.get(&shard).map(|epoch| *epoch) {
            return self.hint(epoch);
        }
        let view = self.views.borrow();
        let claim = view.live_claim(shard).filter(|(_, owner)| owner.node != view.members.me);
        match claim {
            Some((epoch, _)) => self.hint(epoch),
            None => refusal,
        }
    }

    fn hint(&self, epoch: Epoch) -> Refusal {
        self.host.count_late_request();
        Refusal::NotOwner { claim: Some(Claim { epoch }) }
    }

    async fn answer_upgrade(
        &self,
        meta: RequestMeta,
        parts: request::Parts,
        recv: RecvHalf,
        mut send: ServerSend,
    ) {
        let shard = meta.shard;
        let (sender, upgrade) = Upgrade::pair();
        let mut request = Request::from_parts(parts, Body::empty());
        request.extensions_mut().insert(upgrade);
        match self.host.serve_with(meta, request, || send.accepted()).await {
            Ok((meta, response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let Ok(head) = encode_response(&meta, &response.into_parts().0) else { return };
                if send.head(&head, false).is_err() {
                    return;
                }
                let (ours, theirs) = tokio::io::duplex(UPGRADE_BUFFER);
                sender.send(Upgraded::new(theirs));
                tunnel::run(ours, recv, send, None).await;
            }
            Ok((meta, response)) => drop(respond(&mut send, &meta, response).await),
            Err(refusal) => {
                send.refuse(encode_refusal(&self.with_claim(shard, refusal)));
            }
        }
    }
}

/// Sends an answer: head and body in one go where the body is at hand.
fn respond(
    send: &mut ServerSend,
    meta: &ResponseMeta,
    response: Response<Body>,
) -> impl Future<Output = Result<(), SendError>> + Send {
    let (parts, body) = response.into_parts();
    let head = encode_response(meta, &parts);
    let shard = meta.shard;
    async move {
        let Ok(head) = head else {
            tracing::warn!(%shard, "an answer's head is too large for the link");
            send.reset(ResetCode::Failed);
            return Ok(());
        };
        match body.try_into_bytes() {
            Ok(bytes) => send.head_and_first(head, Some(bytes), true).await,
            Err(body) => Box::pin(stream_body(send, head, body)).await,
        }
    }
}

/// Sends an answer whose body comes by and by.
async fn stream_body(send: &mut ServerSend, head: Bytes, mut body: Body) -> Result<(), SendError> {
    send.head(&head, false)?;
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            send.reset(ResetCode::Failed);
            return Ok(());
        };
        match frame.into_data() {
            Ok(data) => send.send(data).await?,
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    send.finish(trailers.and_then(|trailers| encode_trailers(&trailers).ok()))
}

/// Runs `serving`, and passes the turn in the queue on as soon as the request has found its
/// place in here: from its first step on it is before all that begin later. One that is refused
/// keeps the turn, for coming back.
pub(crate) async fn in_turn<T>(
    turn: &mut Option<Turn>,
    mut serving: Pin<&mut impl Future<Output = Result<T, Refusal>>>,
) -> Result<T, Refusal> {
    if turn.is_none() {
        return serving.await;
    }
    let first = poll_fn(|cx| Poll::Ready(serving.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(Err(refusal)) => Err(refusal),
        Poll::Ready(Ok(served)) => {
            welcome(turn);
            Ok(served)
        }
        Poll::Pending => {
            welcome(turn);
            serving.await
        }
    }
}

/// The way is open for everybody.
pub(crate) fn welcome(turn: &mut Option<Turn>) {
    if let Some(turn) = turn.take() {
        turn.welcome();
    }
}

/// What a request that waits no longer hears.
pub(crate) fn refusal_of(not_sent: NotSent) -> Refusal {
    match not_sent.cause() {
        Cause::Moving => Refusal::Moving,
        Cause::NoOwner => Refusal::NotOwner { claim: None },
    }
}

/// The time until `deadline` in milliseconds; never zero, which would mean that there is none.
pub(crate) fn left_ms(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now());
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1)
}

/// Bytes of a body that the link lets through before its request is accepted.
fn ahead(headers: &HeaderMap) -> usize {
    let replay = REPLAY_BYTES as usize;
    announced(headers)
        .map_or(replay, |length| usize::try_from(length).unwrap_or(replay).min(replay))
}

/// The length that a request's head announces.
fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
