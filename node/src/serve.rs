//! Requests that come over links: decode, serve, answer. The path of every routed request.

use std::sync::Arc;

use dashmap::DashMap;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use stead_shared::id::{Epoch, ShardId};
use stead_shared::net::link::{RecvHalf, ResetCode, SendError, ServerSend, ServerStream};
use stead_shared::refusal::{Claim, Refusal};
use stead_shared::view::View;
use stead_shared::wire::http::{
    RequestMeta, ResponseMeta, decode_request, encode_refusal, encode_response, encode_trailers,
};
use tokio::sync::watch;

use crate::body::Body;
use crate::host::Host;
use crate::link_body::LinkBody;
use crate::tunnel;
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
            let body = LinkBody::new(recv, announced(&parts.headers));
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

/// The length that a request's head announces.
fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
