//! The WebSocket room, over streams in memory.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stead_node::builtin::{BuiltIn, BuiltInConfig};
use stead_node::{Host, Upgrade, Upgraded};
use stead_shared::id::{Epoch, NodeId};
use tokio::io::DuplexStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::common::{SHARD, hand_over, host, meta, request, settle};

type Client = WebSocketStream<DuplexStream>;

async fn try_connect(host: &Host, session: &str, buffer: usize) -> Result<Client, StatusCode> {
    let mut request = request(Method::GET, &format!("/sessions/{session}/ws"), "");
    let headers = request.headers_mut();
    headers.insert("sec-websocket-version", "13".parse().unwrap());
    headers.insert("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
    let (sender, upgrade) = Upgrade::pair();
    request.extensions_mut().insert(upgrade);
    let (_, response) = host.serve(meta(session), request).await.unwrap();
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(response.status());
    }
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let (ours, theirs) = tokio::io::duplex(buffer);
    sender.send(Upgraded::new(theirs));
    Ok(WebSocketStream::from_raw_socket(ours, Role::Client, None).await)
}

async fn connect(host: &Host, session: &str) -> Client {
    try_connect(host, session, 64 << 10).await.unwrap()
}

async fn say(client: &mut Client, text: &str) {
    client.send(Message::text(text)).await.unwrap();
}

async fn next(client: &mut Client) -> Message {
    let next = timeout(Duration::from_secs(10), client.next()).await;
    next.expect("in time").expect("before the end").expect("no error")
}

async fn heard(client: &mut Client) -> Value {
    match next(client).await {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn close_code(client: &mut Client) -> CloseCode {
    loop {
        if let Message::Close(frame) = next(client).await {
            return frame.unwrap().code;
        }
    }
}

fn store() -> Host {
    host(BuiltIn::default())
}

#[tokio::test]
async fn a_message_gets_the_next_number_and_goes_to_everybody_in_the_session() {
    let host = store();
    let (mut a, mut b) = (connect(&host, "room").await, connect(&host, "room").await);
    let mut other = connect(&host, "other").await;
    say(&mut a, "hello").await;
    let first = json!({"seq": 1, "text": "hello"});
    assert_eq!(heard(&mut a).await, first);
    assert_eq!(heard(&mut b).await, first);
    say(&mut b, "\"quotes\" and ünicode").await;
    let second = json!({"seq": 2, "text": "\"quotes\" and ünicode"});
    assert_eq!(heard(&mut a).await, second);
    assert_eq!(heard(&mut b).await, second);
    say(&mut other, "alone").await;
    assert_eq!(heard(&mut other).await, json!({"seq": 1, "text": "alone"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_hears_all_messages_in_one_order_without_gaps() {
    let host = store();
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(connect(&host, "room").await);
    }
    let each = 20;
    let talks = clients.into_iter().enumerate().map(|(who, mut client)| {
        tokio::spawn(async move {
            let mut all = Vec::new();
            for n in 0..each {
                say(&mut client, &format!("{who}.{n}")).await;
                all.push(heard(&mut client).await);
            }
            while all.len() < 5 * each {
                all.push(heard(&mut client).await);
            }
            all
        })
    });
    let mut heard_by = Vec::new();
    for talk in talks.collect::<Vec<_>>() {
        heard_by.push(talk.await.unwrap());
    }
    for (at, message) in heard_by[0].iter().enumerate() {
        assert_eq!(message["seq"], at + 1);
    }
    assert!(heard_by.iter().all(|heard| heard == &heard_by[0]));
}

#[tokio::test]
async fn a_room_is_closed_1012_when_its_shard_moves_and_its_numbers_go_on() {
    let (from, to) = (store(), store());
    let mut client = connect(&from, "room").await;
    say(&mut client, "one").await;
    heard(&mut client).await;
    let handed = hand_over(&from, &to, Epoch { counter: 2, node: NodeId(2) });
    let (code, ()) = tokio::join!(close_code(&mut client), handed);
    assert_eq!(code, CloseCode::Restart);
    let mut client = connect(&to, "room").await;
    say(&mut client, "two").await;
    assert_eq!(heard(&mut client).await, json!({"seq": 2, "text": "two"}));
}

#[tokio::test]
async fn a_room_is_closed_1012_when_its_session_is_deleted() {
    let host = store();
    let mut client = connect(&host, "room").await;
    say(&mut client, "one").await;
    heard(&mut client).await;
    let delete = request(Method::DELETE, "/sessions/room", "");
    assert_eq!(host.serve(meta("room"), delete).await.unwrap().1.status(), 204);
    assert_eq!(close_code(&mut client).await, CloseCode::Restart);
    let mut client = connect(&host, "room").await;
    say(&mut client, "anew").await;
    assert_eq!(heard(&mut client).await["seq"], 1);
}

#[tokio::test]
async fn who_leaves_hears_no_more_and_others_go_on() {
    let host = store();
    let (mut a, mut b) = (connect(&host, "room").await, connect(&host, "room").await);
    b.close(None).await.unwrap();
    while b.next().await.is_some() {}
    say(&mut a, "still here").await;
    assert_eq!(heard(&mut a).await["seq"], 1);
    drop(a);
    settle().await;
    let mut back = connect(&host, "room").await;
    say(&mut back, "back").await;
    assert_eq!(heard(&mut back).await["seq"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_thrown_out_and_holds_nobody_up() {
    let config = BuiltInConfig { room_queue_max: 8, ..BuiltInConfig::default() };
    let host = host(BuiltIn::new(config));
    let mut slow = try_connect(&host, "room", 64).await.unwrap();
    let mut quick = connect(&host, "room").await;
    let long = "x".repeat(1000);
    for seq in 1..=100 {
        say(&mut quick, &long).await;
        assert_eq!(heard(&mut quick).await["seq"], seq);
    }
    // What was on its way arrives, and then the end.
    let mut last = None;
    while let Some(Ok(message)) = slow.next().await {
        last = Some(message);
    }
    match last {
        Some(Message::Close(Some(frame))) => assert_eq!(frame.code, CloseCode::Again),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_room_takes_only_so_many() {
    let config = BuiltInConfig { room_clients_max: 2, ..BuiltInConfig::default() };
    let host = host(BuiltIn::new(config));
    let _a = connect(&host, "room").await;
    let b = connect(&host, "room").await;
    let refused = try_connect(&host, "room", 100).await.unwrap_err();
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    drop(b);
    settle().await;
    connect(&host, "room").await;
}

#[tokio::test]
async fn what_a_room_does_not_understand_closes_the_connection() {
    let config = BuiltInConfig { message_bytes_max: 100, ..BuiltInConfig::default() };
    let host = host(BuiltIn::new(config));
    let mut client = connect(&host, "room").await;
    client.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(close_code(&mut client).await, CloseCode::Unsupported);
    let mut client = connect(&host, "room").await;
    say(&mut client, &"x".repeat(101)).await;
    assert_eq!(close_code(&mut client).await, CloseCode::Size);
    assert_eq!(host.stats().sessions, 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_pinged_and_let_go_when_it_does_not_answer() {
    let host = store();
    let mut client = connect(&host, "room").await;
    assert!(matches!(next_of(&mut client).await, Message::Ping(_)));
    // Nothing is answered, since nothing is read.
    tokio::time::sleep(Duration::from_secs(62)).await;
    let mut last = None;
    while let Some(Ok(message)) = client.next().await {
        last = Some(message);
    }
    match last {
        Some(Message::Close(Some(frame))) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("{other:?}"),
    }
}

async fn next_of(client: &mut Client) -> Message {
    client.next().await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_pings_stays() {
    let host = store();
    let mut client = connect(&host, "room").await;
    for _ in 0..10 {
        assert!(matches!(next_of(&mut client).await, Message::Ping(_)));
    }
    say(&mut client, "here").await;
    assert_eq!(heard(&mut client).await["seq"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_whose_stream_never_comes_leaves_the_room() {
    let host = host(BuiltIn::new(BuiltInConfig { room_clients_max: 1, ..Default::default() }));
    let mut request = request(Method::GET, "/sessions/room/ws", "");
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    let key = "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap();
    request.headers_mut().insert("sec-websocket-key", key);
    let (sender, upgrade) = Upgrade::pair();
    request.extensions_mut().insert(upgrade);
    host.serve(meta("room"), request).await.unwrap();
    assert!(try_connect(&host, "room", 100).await.is_err());
    tokio::time::sleep(Duration::from_secs(6)).await;
    connect(&host, "room").await;
    drop(sender);
    assert!(host.gate(SHARD).is_some());
}
