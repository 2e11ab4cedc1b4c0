//! Requests at a node that does not own their session.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response};
use stead_node::{Body, Handle, RequestMeta, Session};
use stead_shared::id::{BootId, ClusterId, NodeBoot, NodeId, RequestId};
use stead_shared::member::Role as MemberRole;
use stead_shared::net::link::{
    CloseReason, Link, LinkConfig, LinkHandler, LinkLimits, Links, PeerInfo, Reply, ServerStream,
    StreamEvent,
};
use stead_shared::refusal::{Claim, Refusal};
use stead_shared::wire::http::{decode_refusal, encode_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::cluster::{N_SHARDS, SOON, http, key, options, pair, raw, run, session_of, start};
use crate::common::{request, text};

#[tokio::test]
async fn a_request_reaches_the_owner_whichever_node_is_asked() {
    let (a, b) = pair().await;
    for (asked, owner) in [(&a, &b), (&b, &a), (&a, &a)] {
        let (asked, owner) = (&asked.handle, &owner.handle);
        let session = session_of(owner);
        let path = format!("/sessions/{session}/counters/{}", asked.name());
        for n in 1..=3 {
            let answer = http(asked, "POST", &path, "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.body, format!("{{\"value\":{n}}}"));
            assert_eq!(answer.header("stead-node"), Some(owner.name()));
            let (_, epoch) = owner.owner_of(&key(&session)).unwrap();
            assert_eq!(answer.header("stead-epoch"), Some(epoch.to_string().as_str()));
        }
    }
    assert_eq!(a.leave().await.shards_left, 0);
    assert_eq!(b.leave().await.shards_left, N_SHARDS as usize, "nobody is left to take them");
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let (a, b) = pair().await;
    let session = session_of(&b.handle);
    let value: Vec<u8> = (0..900_000).map(|n| (n % 251) as u8).collect();
    let (sender, body) = Body::channel(2, None);
    let pieces = value.clone();
    let sending = tokio::spawn(async move {
        for piece in pieces.chunks(10_000) {
            sender.send(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        sender.finish().await.unwrap();
    });
    let path = format!("/sessions/{session}");
    let put = Request::put(&path).body(body).unwrap();
    let answer = a.handle.request(key(&session), put).await.unwrap();
    assert_eq!(answer.status(), 201, "{}", text(answer).await);
    sending.await.unwrap();

    let answer = a.handle.request(key(&session), request(Method::GET, &path, "")).await.unwrap();
    assert_eq!(answer.headers()["stead-node"], "b");
    assert_eq!(answer.body().length(), Some(900_000));
    assert!(answer.into_body().collect_up_to(1 << 20).await.unwrap() == value);
}

// ---- WebSockets --------------------------------------------------------------------------------

type Socket = WebSocketStream<TcpStream>;

async fn connect(node: &Handle, session: &str) -> Socket {
    let mut stream = TcpStream::connect(node.http_addr()).await.unwrap();
    let head = format!(
        "GET /sessions/{session}/ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(SOON, stream.read_u8()).await.expect("in time").unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(answer.contains("upgrade: websocket"), "{answer}");
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

async fn next(socket: &mut Socket) -> Message {
    let next = timeout(SOON, socket.next()).await;
    next.expect("in time").expect("before the end").expect("no error")
}

#[tokio::test]
async fn a_room_is_joined_through_any_node_and_left_when_it_moves() {
    let (a, b) = pair().await;
    let session = session_of(&b.handle);
    let mut here = connect(&b.handle, &session).await;
    let mut there = connect(&a.handle, &session).await;
    there.send(Message::text("hello")).await.unwrap();
    for socket in [&mut here, &mut there] {
        assert_eq!(next(socket).await.to_text().unwrap(), r#"{"seq":1,"text":"hello"}"#);
    }

    b.leave().await;
    for socket in [&mut here, &mut there] {
        let Message::Close(Some(frame)) = next(socket).await else { panic!("no close frame") };
        assert_eq!(frame.code, CloseCode::Restart);
    }
    let mut again = connect(&a.handle, &session).await;
    again.send(Message::text("again")).await.unwrap();
    assert_eq!(next(&mut again).await.to_text().unwrap(), r#"{"seq":2,"text":"again"}"#);
}

// ---- one hop only ------------------------------------------------------------------------------

struct Silent;

impl LinkHandler for Silent {
    fn opened(&self, _peer: PeerInfo, _stream: ServerStream) {}
    fn call(&self, _peer: PeerInfo, _kind: u8, _payload: Bytes, _reply: Reply) {}
    fn notify(&self, _peer: PeerInfo, _kind: u8, _payload: Bytes) {}
    fn connected(&self, _link: Link) {}
    fn closed(&self, _peer: PeerInfo, _reason: CloseReason) {}
}

#[tokio::test]
async fn what_came_over_a_link_is_never_forwarded() {
    let (a, b) = pair().await;
    let session = session_of(&b.handle);
    let me = NodeBoot { node: NodeId(1), boot: BootId(1) };
    let config = LinkConfig {
        me,
        role: MemberRole::Router,
        cluster: ClusterId::of_name("stead"),
        keys: Vec::new(),
        limits: LinkLimits::default(),
    };
    let links = Links::new(config, Arc::new(Silent));
    let link = links.dial(a.handle.gossip_addr()).await.unwrap();
    let view = a.handle.view();
    let (_, epoch) = a.handle.owner_of(&key(&session)).unwrap();
    let meta = RequestMeta {
        shard: view.params.shard_of(&key(&session)),
        epoch: None,
        key: key(&session),
        id: RequestId { boot: me.boot, counter: 1 },
        attempt: 1,
        first_sent_ms: 0,
        deadline_ms: 5_000,
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        upgrade: false,
    };
    let path = format!("/sessions/{session}/counters/n");
    let (parts, _) = request(Method::POST, &path, "").into_parts();
    let mut stream = link.open(encode_request(&meta, &parts).unwrap(), true).unwrap();
    let event = timeout(SOON, stream.recv.next()).await.expect("in time");
    let Some(StreamEvent::Refused(refusal)) = event else { panic!("{event:?}") };
    let claim = Some(Claim { epoch });
    assert_eq!(decode_refusal(&refusal), Ok(Refusal::NotOwner { claim }), "with whom to ask");
    let answer = http(&b.handle, "GET", &path, "").await;
    assert_eq!(answer.status, 404, "nobody has counted");
}

// ---- the border --------------------------------------------------------------------------------

/// Answers with the headers it was given.
async fn mirror(_session: Session, request: Request<Body>) -> Response<Body> {
    let mut lines: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines.push(format!("target: {}", request.uri()));
    let mut response = Response::new(Body::from(lines.join("\n")));
    for (name, value) in [("stead-node", "fake"), ("stead-x", "y"), ("keep-alive", "1")] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

#[tokio::test]
async fn headers_of_ours_cannot_be_faked_by_either_side() {
    let node = stead_node::Node::builder().options(options("a", None)).service(mirror);
    let a = run(node.start().await.unwrap()).await;
    let answer = raw(
        a.handle.http_addr(),
        b"GET http://x/s/k?q HTTP/1.1\r\nHost: x\r\nStead-Epoch: 9.9\r\nstead-shard: 1\r\nTE: trailers\r\n\
          X-Forwarded-For: 10.0.0.1\r\nProxy-Connection: x\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n\r\n",
    )
    .await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        "host: x\nvia: 1.1 stead\nx-forwarded-for: 10.0.0.1, 127.0.0.1\nx-forwarded-proto: http\n\
         target: /s/k?q"
    );
    assert_eq!(answer.header("stead-node"), Some("a"));
    assert_eq!((answer.header("stead-x"), answer.header("keep-alive")), (None, None));
}

#[tokio::test]
async fn heads_that_are_not_allowed_are_refused() {
    let a = start("a", None).await;
    let rest = "connection: close\r\n\r\n";
    for (head, status) in [
        ("GET /sessions/k HTTP/1.1\r\n", 400),
        ("GET /sessions/k HTTP/1.1\r\nhost: x\r\nhost: x\r\n", 400),
        ("GET http://y/sessions/k HTTP/1.1\r\nhost: x\r\n", 400),
        ("CONNECT x:80 HTTP/1.1\r\nhost: x\r\n", 400),
        ("PUT /sessions/k HTTP/1.1\r\nhost: x\r\nexpect: x\r\n", 417),
        ("PUT /sessions/k HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: x\r\n", 400),
    ] {
        let answer = raw(a.handle.http_addr(), format!("{head}{rest}").as_bytes()).await;
        assert_eq!(answer.status, status, "{head}: {answer:?}");
        assert!(answer.header("stead-refusal").is_some(), "{head}: {answer:?}");
        assert!(answer.header("stead-outcome").is_none(), "{head}: {answer:?}");
        let document: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(document["refusal"], answer.header("stead-refusal").unwrap());
    }
    // Those that the HTTP library itself refuses.
    for head in [
        "PUT /sessions/k HTTP/1.1\r\nhost: x\r\ntransfer-encoding: x\r\n",
        "GET /sessions/k HTTP/1.1\r\nhost : x\r\n",
    ] {
        let answer = raw(a.handle.http_addr(), format!("{head}{rest}").as_bytes()).await;
        assert_eq!(answer.status, 400, "{head}: {answer:?}");
    }
}
