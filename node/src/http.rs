//! Plain HTTP for people, other proxies and clients that need no router.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use stead_shared::id::{BootId, RequestId, SessionKey};
use stead_shared::session_key::extract;
use stead_shared::wire::http::{RequestMeta, ResponseMeta};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::node::Handle;
use crate::problem::Problem;
use crate::upgrade::Upgrade;

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4_096;
/// How long a client may take to send a head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request may take in all.
const REQUEST_MS: u32 = 30_000;
/// How long connections may finish their requests at the end.
const GRACE: Duration = Duration::from_secs(5);

const NODE: HeaderName = HeaderName::from_static("stead-node");
const SHARD: HeaderName = HeaderName::from_static("stead-shard");
const EPOCH: HeaderName = HeaderName::from_static("stead-epoch");

/// Serves plain HTTP until `stop`.
pub(crate) async fn serve(handle: Handle, listener: TcpListener, stop: CancellationToken) {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    loop {
        let slot = std::sync::Arc::clone(&slots);
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = async {
                let slot = slot.acquire_owned().await.expect("the semaphore is never closed");
                (listener.accept().await, slot)
            } => accepted,
        };
        match accepted {
            (Ok((stream, peer)), slot) => {
                let connection = graceful.watch(connection(handle.clone(), stream, peer));
                tokio::spawn(async move {
                    // A client that went away is no event.
                    let _ = connection.await;
                    drop(slot);
                });
            }
            (Err(error), _slot) => {
                tracing::warn!(%error, "http: cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::info!("http: connections were cut at the end");
    }
}

fn connection(
    handle: Handle,
    stream: TcpStream,
    peer: SocketAddr,
) -> impl hyper_util::server::graceful::GracefulConnection<Error: std::fmt::Debug> {
    // Without it an answer waits for the client's acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(256);
    let service = service_fn(move |request: Request<Incoming>| {
        let handle = handle.clone();
        async move { Ok::<_, Infallible>(handle.answer_plain(request, peer).await) }
    });
    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned()
}

impl Handle {
    async fn answer_plain(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let sources = &self.inner.config.key;
        let found = extract(sources, request.uri(), request.headers(), peer.ip());
        let key = match found {
            Ok(Some(key)) => key,
            Ok(None) => return no_key(sources),
            Err(error) => return bad_key(&error),
        };
        let upgrades = request.headers().contains_key(http::header::UPGRADE);
        if upgrades {
            let upgrade = Upgrade::from_hyper(hyper::upgrade::on(&mut request));
            request.extensions_mut().insert(upgrade);
        }
        let meta = self.meta(key, peer.ip(), upgrades);
        match self.carry(meta, request.map(Body::new)).await {
            Ok(response) => response,
            Err(refusal) => Problem::of_refusal(&refusal).into_response(),
        }
    }

    pub(crate) fn meta(&self, key: SessionKey, client: IpAddr, upgrade: bool) -> RequestMeta {
        let counter = self.inner.requests.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        RequestMeta {
            shard: self.inner.params.shard_of(&key),
            epoch: None,
            key,
            id: RequestId { boot: self.boot(), counter },
            attempt: 1,
            first_sent_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            deadline_ms: REQUEST_MS,
            client,
            upgrade,
        }
    }

    fn boot(&self) -> BootId {
        self.view().members.my_self().map_or(BootId(0), |me| me.boot)
    }

    pub(crate) fn stamp(&self, meta: &ResponseMeta, headers: &mut http::HeaderMap) {
        let owner = self.view().members.find(meta.epoch.node).map(|member| member.name());
        let owner = owner.unwrap_or_else(|| self.name().to_owned());
        let texts =
            [(NODE, owner), (SHARD, meta.shard.to_string()), (EPOCH, meta.epoch.to_string())];
        for (name, text) in texts {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(name, value);
            }
        }
    }
}

fn no_key(sources: &[stead_shared::session_key::KeySource]) -> Response<Body> {
    let tried: Vec<String> = sources.iter().map(ToString::to_string).collect();
    let detail = format!("Looked for the session key in: {}.", tried.join(", "));
    Problem::new(StatusCode::BAD_REQUEST, "no-session-key", "No session key", &detail)
        .refused("no-session-key")
        .into_response()
}

fn bad_key(error: &stead_shared::session_key::KeyError) -> Response<Body> {
    let detail = format!("The session key cannot be used: {error}.");
    Problem::new(StatusCode::BAD_REQUEST, "no-session-key", "No usable session key", &detail)
        .refused("no-session-key")
        .into_response()
}
