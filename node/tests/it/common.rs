//! One host with a few shards, and short ways to talk to it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use stead_node::{Body, Host, HostConfig, RequestMeta, ResponseMeta, Service, SharedService};
use stead_shared::id::{BootId, Epoch, NodeId, RequestId, SessionKey, ShardId};
use stead_shared::refusal::Refusal;

pub(crate) const SHARD: ShardId = ShardId(7);
pub(crate) const EPOCH: Epoch = Epoch { counter: 1, node: NodeId(0xa) };

/// A host that serves [`SHARD`] in [`EPOCH`].
pub(crate) fn host(service: impl Service) -> Host {
    host_with(HostConfig::default(), service)
}

pub(crate) fn host_with(config: HostConfig, service: impl Service) -> Host {
    let host = Host::new(config, SharedService::new(service));
    host.activate_empty(SHARD, EPOCH);
    host
}

pub(crate) fn key(text: &str) -> SessionKey {
    SessionKey::new(text.as_bytes().to_vec()).unwrap()
}

/// Each request has an id of its own.
static COUNTER: AtomicU64 = AtomicU64::new(1);

pub(crate) fn meta(session: &str) -> RequestMeta {
    RequestMeta {
        shard: SHARD,
        epoch: None,
        key: key(session),
        id: RequestId { boot: BootId(1), counter: COUNTER.fetch_add(1, Ordering::Relaxed) },
        attempt: 1,
        first_sent_ms: 0,
        deadline_ms: 0,
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        upgrade: false,
    }
}

pub(crate) fn post(body: impl Into<Body>) -> Request<Body> {
    request(Method::POST, "/", body)
}

pub(crate) fn request(method: Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder().method(method).uri(path).body(body.into()).unwrap()
}

/// Serves one request and reads the answer's body.
pub(crate) async fn ask(
    host: &Host,
    session: &str,
    body: &str,
) -> Result<(StatusCode, String), Refusal> {
    let (_, response) = host.serve(meta(session), post(body.to_owned())).await?;
    let status = response.status();
    Ok((status, text(response).await))
}

pub(crate) async fn say(host: &Host, session: &str, body: &str) -> String {
    let (status, answer) = ask(host, session, body).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

pub(crate) async fn text(response: Response<Body>) -> String {
    String::from_utf8(bytes(response).await.to_vec()).unwrap()
}

pub(crate) async fn bytes(response: Response<Body>) -> Bytes {
    response.into_body().collect_up_to(16 << 20).await.unwrap()
}

/// Starts a request in a task of its own and waits until it is queued or runs.
pub(crate) fn start(
    host: &Host,
    session: &str,
    body: impl Into<Body>,
) -> tokio::task::JoinHandle<Result<(ResponseMeta, Response<Body>), Refusal>> {
    let (host, meta, request) = (host.clone(), meta(session), post(body));
    tokio::spawn(async move { host.serve(meta, request).await })
}

/// Lets all other tasks of a single-threaded runtime run until they wait.
pub(crate) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// Moves a shard as a handoff does: seal, export, install, drop.
pub(crate) async fn hand_over(from: &Host, to: &Host, epoch: Epoch) {
    from.seal(SHARD).await;
    let records = from.export(SHARD).unwrap();
    to.drop_shard(SHARD);
    to.install(SHARD, epoch, records).unwrap();
    from.drop_shard(SHARD);
}
