use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::super::{
    AdminSource, ClusterMoves, ConflictsReport, DrainReport, DrainState, ForgetReport, Later,
    MembersReport, PinReport, PinsReport, PlaceError, ShardsReport, WhereReport,
};
use super::*;
use crate::id::ShardId;
use crate::net::sock;
use crate::pins::PinKind;

/// A node called `n1` in a cluster of four shards.
#[derive(Default)]
struct Fixed {
    drained: Mutex<Vec<Option<String>>>,
    moved: Mutex<Vec<(u32, String, Duration)>>,
    unready: bool,
}

impl AdminSource for Fixed {
    fn ready(&self) -> Readiness {
        if self.unready { Readiness::NotReady("joining".into()) } else { Readiness::Ready }
    }

    fn members(&self) -> MembersReport {
        MembersReport {
            members_digest: format!("{:016x}", 7),
            members: vec![],
            majority: None,
            promises: None,
        }
    }

    fn conflicts(&self) -> ConflictsReport {
        ConflictsReport::default()
    }

    fn forget(&self, name: String) -> Later<Result<ForgetReport, ForgetError>> {
        Box::pin(async move {
            match name.as_str() {
                "n1" => Err(ForgetError::Alive(name)),
                _ => Ok(ForgetReport { told: vec!["n1".into()], unreached: Vec::new() }),
            }
        })
    }

    fn shards(&self) -> ShardsReport {
        let by_node = BTreeMap::from([("n1".to_owned(), 3)]);
        ShardsReport { shards: 4, by_node, unowned: 1, owned: vec![0, 2, 3], ..Default::default() }
    }

    fn where_is(&self, key: &SessionKey) -> Option<WhereReport> {
        let shard = key.as_bytes().len() as u32;
        Some(home(shard))
    }

    fn shard(&self, shard: u32) -> Result<WhereReport, PlaceError> {
        known(shard).map(home)
    }

    fn pins(&self) -> PinsReport {
        PinsReport { pins: vec![pin(2)] }
    }

    fn move_shard(
        &self,
        shard: u32,
        to: String,
        keep: Duration,
    ) -> Later<Result<PinReport, PlaceError>> {
        let answer = known(shard).and_then(|shard| match to.as_str() {
            "n1" => Ok(pin(shard)),
            "router" => Err(PlaceError::NotANode(to.clone())),
            _ => Err(PlaceError::UnknownNode(to.clone())),
        });
        if answer.is_ok() {
            self.moved.lock().unwrap().push((shard, to, keep));
        }
        Box::pin(async { answer })
    }

    fn unpin(&self, shard: u32) -> Later<Result<(), PlaceError>> {
        let answer = known(shard).and_then(|shard| {
            (shard == 2).then_some(()).ok_or(PlaceError::NotPinned(ShardId(shard)))
        });
        Box::pin(async { answer })
    }

    fn moves(&self) -> Later<ClusterMoves> {
        Box::pin(async { ClusterMoves { silent: vec!["n2".into()], ..Default::default() } })
    }

    fn drain(&self, node: Option<String>) -> Later<Result<(), DrainError>> {
        let known = node.as_deref().is_none_or(|name| name == "n1");
        let answer = if known {
            self.drained.lock().unwrap().push(node);
            Ok(())
        } else {
            Err(DrainError::UnknownNode(node.unwrap_or_default()))
        };
        Box::pin(async { answer })
    }

    fn drain_progress(&self, _: Option<String>) -> Later<Result<DrainReport, DrainError>> {
        Box::pin(async {
            Ok(DrainReport {
                node: "n1".into(),
                state: DrainState::Draining,
                shards_left: 3,
                sessions_left: 10,
                bytes_left: 1000,
                bytes_per_second: 100,
                elapsed_ms: 5,
            })
        })
    }
}

fn known(shard: u32) -> Result<u32, PlaceError> {
    let error = || PlaceError::UnknownShard { shard: shard.to_string(), last: 3 };
    (shard < 4).then_some(shard).ok_or_else(error)
}

fn home(shard: u32) -> WhereReport {
    WhereReport { shard, owner: Some("n1".into()), epoch: None, replicas: vec![], pin: None }
}

fn pin(shard: u32) -> PinReport {
    PinReport {
        shard,
        node: "n1".into(),
        kind: PinKind::Hand,
        author: "n1".into(),
        version: 7,
        expires_ms: 9,
        effective: true,
    }
}

struct Running {
    addr: SocketAddr,
    source: Arc<Fixed>,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

async fn start(source: Fixed) -> Running {
    let listener = sock::tcp_listener("127.0.0.1:0".parse().unwrap(), "admin").unwrap();
    let addr = listener.local_addr().unwrap();
    let source = Arc::new(source);
    let admin = Admin {
        source: source.clone(),
        metrics: Arc::new(|| "stead_up 1\n".to_owned()),
        token: None,
    };
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(serve(listener, admin, async {
        let _ = stopped.await;
    }));
    Running { addr, source, stop, server }
}

/// One request on a connection of its own: status and the text after the head.
async fn ask(running: &Running, request: &str) -> (u16, String) {
    let mut stream = sock::connect(running.addr, Duration::from_secs(5)).await.unwrap();
    let text = format!("{request}\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn gets_are_open() {
    let running = start(Fixed::default()).await;
    let metrics = ask(&running, "GET /metrics HTTP/1.1").await;
    assert_eq!(metrics, (200, "stead_up 1\n".into()));
    assert_eq!(ask(&running, "GET /healthz HTTP/1.1").await, (200, "ok\n".into()));
    assert_eq!(ask(&running, "GET /readyz HTTP/1.1").await, (200, r#"{"ready":true}"#.into()));
    let members = ask(&running, "GET /v1/members HTTP/1.1").await;
    assert_eq!(members.1, r#"{"members_digest":"0000000000000007","members":[]}"#);
    let shards = ask(&running, "GET /v1/shards HTTP/1.1").await;
    let expected = r#"{"shards":4,"by_node":{"n1":3},"unowned":1,"moving":0,"under_replicated":0,"targets":{},"owned":[0,2,3]}"#;
    assert_eq!(shards, (200, expected.into()));
    let drain = ask(&running, "GET /v1/drain HTTP/1.1").await;
    assert!(drain.1.contains(r#""state":"draining","shards_left":3"#), "{}", drain.1);
}

#[tokio::test]
async fn a_key_is_decoded_once() {
    let running = start(Fixed::default()).await;
    let place = ask(&running, "GET /v1/where?key=a%20b%2Bc HTTP/1.1").await;
    let expected = r#"{"shard":5,"owner":"n1","epoch":null,"replicas":[],"pin":null}"#;
    assert_eq!(place, (200, expected.into()));
    for bad in ["/v1/where", "/v1/where?key=", "/v1/where?key=%zz"] {
        assert_eq!(ask(&running, &format!("GET {bad} HTTP/1.1")).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn an_unready_process_says_why() {
    let running = start(Fixed { unready: true, ..Fixed::default() }).await;
    let (status, body) = ask(&running, "GET /readyz HTTP/1.1").await;
    assert_eq!(status, 503);
    assert!(body.contains(r#""detail":"joining""#), "{body}");
}

#[tokio::test]
async fn a_dead_node_is_forgotten_and_a_live_one_is_not() {
    let running = start(Fixed::default()).await;
    assert_eq!(ask(&running, "POST /v1/members/n9/forget HTTP/1.1").await.0, 403);
    let allowed = |path: &str| format!("POST {path} HTTP/1.1\r\nstead-admin: 1");
    let (status, body) = ask(&running, &allowed("/v1/members/n9/forget")).await;
    assert_eq!((status, body.contains(r#""told":["n1"]"#)), (200, true), "{body}");
    let (status, body) = ask(&running, &allowed("/v1/members/n1/forget")).await;
    assert_eq!((status, body.contains("`n1` is alive")), (409, true), "{body}");
}

#[tokio::test]
async fn a_drain_needs_the_header_and_a_known_node() {
    let running = start(Fixed::default()).await;
    assert_eq!(ask(&running, "POST /v1/drain HTTP/1.1").await.0, 403);
    assert!(running.source.drained.lock().unwrap().is_empty());
    let allowed = |path: &str| format!("POST {path} HTTP/1.1\r\nstead-admin: 1");
    assert_eq!(ask(&running, &allowed("/v1/drain")).await.0, 202);
    assert_eq!(ask(&running, &allowed("/v1/drain?node=n1")).await.0, 202);
    let (status, body) = ask(&running, &allowed("/v1/drain?node=n9")).await;
    assert_eq!(status, 404);
    assert!(body.contains("n9"), "{body}");
    assert_eq!(*running.source.drained.lock().unwrap(), [None, Some("n1".to_owned())]);
}

#[tokio::test]
async fn a_move_needs_the_header_a_shard_and_a_node_that_takes_it() {
    let running = start(Fixed::default()).await;
    assert_eq!(ask(&running, "POST /v1/shards/2/move?to=n1 HTTP/1.1").await.0, 403);
    let post =
        async |path: &str| ask(&running, &format!("POST {path} HTTP/1.1\r\nstead-admin: 1")).await;
    let (status, body) = post("/v1/shards/2/move?to=n1").await;
    let expected = r#"{"shard":2,"node":"n1","kind":"hand","author":"n1","version":7,"expires_ms":9,"effective":true}"#;
    assert_eq!((status, body.as_str()), (202, expected));
    assert_eq!(post("/v1/shards/3/move?to=n1&for=90m").await.0, 202);
    for (path, status, names) in [
        ("/v1/shards/4/move?to=n1", 404, "no shard 4"),
        ("/v1/shards/x/move?to=n1", 404, "no shard x"),
        ("/v1/shards/2/move?to=n9", 404, "n9"),
        ("/v1/shards/2/move?to=router", 409, "router"),
        ("/v1/shards/2/move", 400, "say where to"),
        ("/v1/shards/2/move?to=n1&for=soon", 400, "for: "),
    ] {
        let answer = post(path).await;
        assert_eq!(answer.0, status, "{path}: {}", answer.1);
        assert!(answer.1.contains(names), "{path}: {}", answer.1);
    }
    let minutes = |n: u64| Duration::from_secs(n * 60);
    let moved = running.source.moved.lock().unwrap().clone();
    assert_eq!(moved, [(2, "n1".to_owned(), minutes(24 * 60)), (3, "n1".to_owned(), minutes(90))]);
}

#[tokio::test]
async fn an_unpin_needs_the_header_and_a_pin() {
    let running = start(Fixed::default()).await;
    assert_eq!(ask(&running, "DELETE /v1/shards/2/pin HTTP/1.1").await.0, 403);
    let delete = async |path: &str| {
        ask(&running, &format!("DELETE {path} HTTP/1.1\r\nstead-admin: 1")).await
    };
    assert_eq!(delete("/v1/shards/2/pin").await.0, 202);
    assert_eq!(delete("/v1/shards/9/pin").await.0, 404);
    let (status, body) = delete("/v1/shards/1/pin").await;
    assert_eq!(status, 404);
    assert!(body.contains("is not pinned"), "{body}");
}

#[tokio::test]
async fn pins_moves_and_shards_are_shown_to_everybody() {
    let running = start(Fixed::default()).await;
    let pins = ask(&running, "GET /v1/pins HTTP/1.1").await;
    assert!(pins.0 == 200 && pins.1.starts_with(r#"{"pins":[{"shard":2,"#), "{}", pins.1);
    let moves = ask(&running, "GET /v1/moves HTTP/1.1").await;
    assert!(moves.0 == 200 && moves.1.contains(r#""silent":["n2"]"#), "{}", moves.1);
    assert_eq!(ask(&running, "GET /v1/shards/3 HTTP/1.1").await.0, 200);
    assert_eq!(ask(&running, "GET /v1/shards/4 HTTP/1.1").await.0, 404);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let running = start(Fixed::default()).await;
    assert_eq!(ask(&running, "GET /nothing HTTP/1.1").await.0, 404);
    let (status, body) = ask(&running, "DELETE /v1/members HTTP/1.1").await;
    assert_eq!(status, 405);
    assert!(body.starts_with(r#"{"type":"about:blank","title":"Method Not Allowed""#), "{body}");
}

#[tokio::test]
async fn it_stops_when_told_with_an_idle_connection_open() {
    let running = start(Fixed::default()).await;
    let _idle = sock::connect(running.addr, Duration::from_secs(5)).await.unwrap();
    running.stop.send(()).unwrap();
    running.server.await.unwrap();
}
