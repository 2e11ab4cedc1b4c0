//! Requests that come over links: decode, serve, answer. The path of every routed request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use dashmap::DashMap;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use stead_shared::id::{Epoch, ShardId};
use stead_shared::net::link::{
    RecvHalf, ResetCode, SendError, ServerSend, ServerStream, StreamEvent,
};
use stead_shared::refusal::{Claim, Refusal};
use stead_shared::view::View;
use stead_shared::wire::http::{
    RequestMeta, ResponseMeta, decode_request, decode_trailers, encode_refusal, encode_response,
    encode_trailers,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::body::{Body, BodyError};
use crate::host::Host;
use crate::upgrade::{Upgrade, Upgraded};

/// Bytes of an upgraded stream that wait on their way to the service, each way.
const UPGRADE_BUFFER: usize = 32 * 1024;

/// Answers streams of routers and other nodes.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) host: Host,
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) granted: Arc<DashMap<ShardId, Epoch>>,
}

impl Server {
    /// Serves one request.
    pub(crate) async fn answer(self, stream: ServerStream) {
        let ServerStream { head, fin, recv, mut send } = stream;
        let Ok((meta, parts)) = decode_request(head) else {
            metrics::counter!("stead_link_heads_unreadable_total").increment(1);
            send.reset(ResetCode::Failed);
            return;
        };
        if meta.upgrade {
            self.answer_upgrade(meta, parts, recv, send).await;
            return;
        }
        let shard = meta.shard;
        let served = if fin {
            // A client that goes away before its turn takes the request out of the queue.
            tokio::select! {
                biased;
                served = self.host.serve(meta, Request::from_parts(parts, Body::empty())) => served,
                _ = send.cancelled() => return,
            }
        } else {
            let body = LinkBody::new(recv, &parts.headers);
            let request = Request::from_parts(parts, Body::new(body));
            self.host.serve_with(meta, request, || send.accepted()).await
        };
        match served {
            // An error means that nobody waits for the answer any more.
            Ok((meta, response)) => drop(respond(&mut send, &meta, response).await),
            Err(refusal) => {
                send.refuse(encode_refusal(&self.with_claim(shard, refusal)));
            }
        }
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
            return Refusal::NotOwner { claim: Some(Claim { epoch }) };
        }
        let view = self.views.borrow();
        let claim = view.live_claim(shard).filter(|(_, owner)| owner.node != view.members.me);
        match claim {
            Some((epoch, _)) => Refusal::NotOwner { claim: Some(Claim { epoch }) },
            None => refusal,
        }
    }

    async fn answer_upgrade(
        self,
        meta: RequestMeta,
        parts: http::request::Parts,
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
                pump(ours, recv, send).await;
            }
            Ok((meta, response)) => drop(respond(&mut send, &meta, response).await),
            Err(refusal) => {
                send.refuse(encode_refusal(&self.with_claim(shard, refusal)));
            }
        }
    }
}

/// Sends an answer: head and body in one go where the body is at hand.
async fn respond(
    send: &mut ServerSend,
    meta: &ResponseMeta,
    response: Response<Body>,
) -> Result<(), SendError> {
    let (parts, body) = response.into_parts();
    let Ok(head) = encode_response(meta, &parts) else {
        tracing::warn!(shard = %meta.shard, "an answer's head is too large for the link");
        send.reset(ResetCode::Failed);
        return Ok(());
    };
    let mut body = match body.try_into_bytes() {
        Ok(bytes) => return send.head_and_first(head, Some(bytes), true).await,
        Err(body) => body,
    };
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

/// Carries an upgraded stream both ways until either side ends it.
async fn pump(ours: tokio::io::DuplexStream, mut recv: RecvHalf, mut send: ServerSend) {
    let (mut from_service, mut to_service) = tokio::io::split(ours);
    let inward = async {
        while let Some(event) = recv.next().await {
            match event {
                StreamEvent::Data(data) => {
                    if to_service.write_all(&data).await.is_err() {
                        return;
                    }
                }
                StreamEvent::End(_) | StreamEvent::Reset(_) => break,
                StreamEvent::Accepted | StreamEvent::Refused(_) | StreamEvent::Head(_) => {}
            }
        }
        // The service learns by it that nothing more comes.
        let _ = to_service.shutdown().await;
    };
    let outward = async {
        let mut buffer = bytes::BytesMut::with_capacity(UPGRADE_BUFFER);
        loop {
            buffer.reserve(UPGRADE_BUFFER);
            match from_service.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if send.send(buffer.split().freeze()).await.is_err() {
                        return;
                    }
                }
            }
        }
        // An error means that the peer gave up first.
        let _ = send.finish(None);
    };
    tokio::join!(inward, outward);
}

/// A request's body, as it comes over the link.
struct LinkBody {
    recv: RecvHalf,
    left: Option<u64>,
    ended: bool,
}

impl LinkBody {
    fn new(recv: RecvHalf, headers: &HeaderMap) -> Self {
        let length = headers.get(http::header::CONTENT_LENGTH);
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self { recv, left, ended: false }
    }
}

impl http_body::Body for LinkBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let event = std::task::ready!(self.recv.poll_next(cx));
            match event {
                Some(StreamEvent::Data(data)) => {
                    if let Some(left) = &mut self.left {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(StreamEvent::End(trailers)) => {
                    self.ended = true;
                    let trailers = trailers.and_then(|bytes| decode_trailers(bytes).ok());
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Some(StreamEvent::Accepted | StreamEvent::Refused(_) | StreamEvent::Head(_)) => {}
                Some(StreamEvent::Reset(_)) | None => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(BodyError::Aborted)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.left.map_or_else(http_body::SizeHint::default, http_body::SizeHint::with_exact)
    }
}
