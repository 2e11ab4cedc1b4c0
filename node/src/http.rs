//! Plain HTTP for people, other proxies and clients that need no router.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use metrics::{Counter, Gauge, counter, gauge};
use stead_shared::border::hardening::{self, Malformed};
use stead_shared::border::headers::{self, EPOCH, NODE, SHARD};
use stead_shared::id::{BootId, RequestId, SessionKey};
use stead_shared::member::Member;
use stead_shared::net::sock::{TcpListener, TcpStream};
use stead_shared::session_key::extract;
use stead_shared::wire::http::{RequestMeta, ResponseMeta};
use tokio::sync::Semaphore;
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
/// Bytes of a head: what the link takes as well.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Requests that one HTTP/2 client may have open.
const STREAMS_MAX: u32 = 256;
/// How often an HTTP/2 client is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Serves plain HTTP until `stop`.
pub(crate) async fn serve(handle: Handle, listener: TcpListener, stop: CancellationToken) {
    let meters = Arc::new(Meters::new());
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    loop {
        if slots.available_permits() == 0 {
            meters.full.increment(1);
        }
        let slot = Arc::clone(&slots);
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
                let client = Client::new(handle.clone(), peer, Arc::clone(&meters));
                let heard = Arc::clone(&client.heard);
                let connection = graceful.watch(connection(client, stream));
                let meters = Arc::clone(&meters);
                tokio::spawn(async move {
                    meters.clients.increment(1.0);
                    until_silent(connection, &heard, &meters).await;
                    meters.clients.decrement(1.0);
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

/// Runs a connection, but not for long when its client does not even send one whole head: the
/// HTTP library waits without limit while it does not know the version.
async fn until_silent<T>(connection: impl Future<Output = T>, heard: &AtomicBool, meters: &Meters) {
    let mut connection = std::pin::pin!(connection);
    // How a connection ended is no event: a client that went away is not either.
    if tokio::time::timeout(HEADER_TIMEOUT, &mut connection).await.is_ok() {
        return;
    }
    if heard.load(Ordering::Relaxed) {
        let _ = connection.await;
    } else {
        meters.timeouts.increment(1);
    }
}

fn connection(
    client: Client,
    stream: TcpStream,
) -> impl hyper_util::server::graceful::GracefulConnection<Error: std::fmt::Debug> {
    // Without it an answer waits for the client's acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(HEADER_TIMEOUT);
    let client = Arc::new(client);
    let service = service_fn(move |request: Request<Incoming>| {
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(client.answer(request).await) }
    });
    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned()
}

struct Meters {
    clients: Gauge,
    full: Counter,
    timeouts: Counter,
    malformed: Counter,
}

impl Meters {
    fn new() -> Self {
        metrics::describe_gauge!(
            "stead_node_clients",
            "Connections of clients to this node's own listener"
        );
        metrics::describe_counter!(
            "stead_node_clients_full_total",
            "Times that no more connections were taken until one ended"
        );
        metrics::describe_counter!(
            "stead_node_client_timeouts_total",
            "Clients cut off because they sent no head in time"
        );
        metrics::describe_counter!(
            "stead_node_malformed_total",
            "Requests refused because their head is not what RFC 9110 allows"
        );
        Self {
            clients: gauge!("stead_node_clients"),
            full: counter!("stead_node_clients_full_total"),
            timeouts: counter!("stead_node_client_timeouts_total"),
            malformed: counter!("stead_node_malformed_total"),
        }
    }
}

/// Whoever is at the other end of a connection.
struct Client {
    handle: Handle,
    ip: IpAddr,
    /// The same as text, for `x-forwarded-for`.
    ip_text: HeaderValue,
    /// Whether a whole head has come.
    heard: Arc<AtomicBool>,
    meters: Arc<Meters>,
}

impl Client {
    fn new(handle: Handle, peer: SocketAddr, meters: Arc<Meters>) -> Self {
        let ip = peer.ip().to_canonical();
        let ip_text = HeaderValue::try_from(ip.to_string()).expect("an address is plain text");
        Self { handle, ip, ip_text, heard: Arc::new(AtomicBool::new(false)), meters }
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        self.heard.store(true, Ordering::Relaxed);
        let version = request.version();
        complete_host(&mut request);
        if let Err(malformed) = check(&request) {
            self.meters.malformed.increment(1);
            return refuse(malformed, version);
        }
        let sources = &self.handle.inner.config.key;
        let key = match extract(sources, request.uri(), request.headers(), self.ip) {
            Ok(Some(key)) => key,
            Ok(None) => return no_key(sources),
            Err(error) => return bad_key(&error),
        };
        let protocol = headers::upgrade_of(request.method(), version, request.headers());
        let takes_trailers = headers::takes_trailers(request.headers());
        let upgrade = protocol.as_ref().map(|_| hyper::upgrade::on(&mut request));
        headers::to_node(request.headers_mut(), version, &self.ip_text, protocol);
        to_origin_form(&mut request);
        let meta = self.handle.meta(key, self.ip, upgrade.is_some());
        if let Some(upgrade) = upgrade {
            request.extensions_mut().insert(Upgrade::from_hyper(upgrade));
        }
        match self.handle.carry(meta, request.map(Body::new)).await {
            Ok((meta, mut response)) => {
                let protocol = offered(&response);
                headers::to_client(response.headers_mut(), protocol, takes_trailers);
                self.handle.stamp(meta.as_ref(), response.headers_mut());
                response
            }
            Err(refusal) => Problem::of_refusal(&refusal).into_response(),
        }
    }
}

/// HTTP/2 names the host in the request's target only.
fn complete_host(request: &mut Request<Incoming>) {
    if request.version() != Version::HTTP_2 || request.headers().contains_key(HOST) {
        return;
    }
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    if let Some(host) = authority.and_then(|host| HeaderValue::try_from(host).ok()) {
        request.headers_mut().insert(HOST, host);
    }
}

/// One sentence and a status for a head that is not allowed.
type Unfit = (StatusCode, &'static str);

fn check(request: &Request<Incoming>) -> Result<(), Unfit> {
    let (headers, bad) = (request.headers(), StatusCode::BAD_REQUEST);
    hardening::check(request.method(), request.uri(), request.version(), headers).map_err(
        |malformed| match malformed {
            Malformed::Expectation => (StatusCode::EXPECTATION_FAILED, malformed.detail()),
            Malformed::HostMissing
            | Malformed::HostTwice
            | Malformed::HostInvalid
            | Malformed::HostMismatch
            | Malformed::TargetForm
            | Malformed::Connect => (bad, malformed.detail()),
        },
    )?;
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
        return Err((bad, "the only transfer coding that is supported is chunked, once"));
    }
    Ok(())
}

/// What comes after a head that is not allowed is not to be trusted either.
fn refuse((status, detail): Unfit, version: Version) -> Response<Body> {
    let problem = Problem::new(status, "malformed", "Malformed request", detail);
    let mut response = problem.refused("malformed").into_response();
    if version < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The host is in its header; nodes see the same target whatever the client's version.
fn to_origin_form(request: &mut Request<Incoming>) {
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
    }
}

/// The protocol that an answer switches to, or asks the client to switch to.
fn offered(response: &Response<Body>) -> Option<HeaderValue> {
    let status = response.status();
    let names_it =
        status == StatusCode::SWITCHING_PROTOCOLS || status == StatusCode::UPGRADE_REQUIRED;
    if names_it { response.headers().get(UPGRADE).cloned() } else { None }
}

impl Handle {
    pub(crate) fn meta(&self, key: SessionKey, client: IpAddr, upgrade: bool) -> RequestMeta {
        let counter = self.inner.requests.fetch_add(1, Ordering::Relaxed);
        RequestMeta {
            shard: self.inner.params.shard_of(&key),
            epoch: None,
            key,
            id: RequestId { boot: self.boot(), counter },
            attempt: 1,
            first_sent_ms: self.inner.platform.unix_micros() / 1000,
            deadline_ms: REQUEST_MS,
            client,
            upgrade,
        }
    }

    fn boot(&self) -> BootId {
        self.view().members.my_self().map_or(BootId(0), |me| me.node_boot().requests())
    }

    /// Says who answered, of which shard, in which epoch.
    pub(crate) fn stamp(&self, meta: Option<&ResponseMeta>, headers: &mut http::HeaderMap) {
        let Some(ResponseMeta { shard, epoch, .. }) = meta else { return };
        let owner = if epoch.node == self.inner.me {
            self.name().to_owned()
        } else {
            let owner = self.view().members.find(epoch.node).map(Member::name);
            owner.unwrap_or_else(|| epoch.node.to_string())
        };
        let texts = [(NODE, owner), (SHARD, shard.to_string()), (EPOCH, epoch.to_string())];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_no_head_is_cut_off() {
        let (meters, heard) = (Meters::new(), AtomicBool::new(false));
        let begun = tokio::time::Instant::now();
        until_silent(std::future::pending::<()>(), &heard, &meters).await;
        assert_eq!(begun.elapsed(), HEADER_TIMEOUT);
        heard.store(true, Ordering::Relaxed);
        let long = tokio::time::sleep(HEADER_TIMEOUT * 5);
        until_silent(long, &heard, &meters).await;
        assert_eq!(begun.elapsed(), HEADER_TIMEOUT * 6, "one that did may stay");
    }
}
