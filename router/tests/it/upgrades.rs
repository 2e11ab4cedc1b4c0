//! WebSocket and its like: switched once, then bytes.

use http::{Response, StatusCode};
use stead_shared::net::link::StreamEvent;

use crate::world::{Asked, Client, World, soon};

const UPGRADE: &str = "GET /s/k/ws HTTP/1.1\nHost: a\nConnection: keep-alive, Upgrade\nUpgrade: websocket\n\
     Sec-WebSocket-Key: x\n\n";

fn switching() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("sec-websocket-accept", "y".parse().unwrap());
    response
}

/// A client and its owner with an open WebSocket between them.
async fn switched(world: &mut World) -> (Client, Asked) {
    let mut client = world.client_with(UPGRADE).await;
    let mut asked = world.owners[0].asked().await;
    assert!(asked.meta.upgrade);
    assert_eq!(asked.header("upgrade"), Some("websocket"));
    let head = asked.head(switching(), None);
    asked.send.head(&head, false).unwrap();
    let got = client.head().await;
    assert_eq!(got.status, 101);
    assert_eq!(got.header("upgrade"), Some("websocket"));
    assert_eq!(got.header("connection"), Some("upgrade"));
    assert_eq!(got.header("sec-websocket-accept"), Some("y"));
    (client, asked)
}

async fn data(asked: &mut Asked) -> Vec<u8> {
    match soon(asked.recv.next()).await {
        Some(StreamEvent::Data(bytes)) => bytes.to_vec(),
        other => panic!("want data: {other:?}"),
    }
}

#[tokio::test]
async fn after_the_switch_bytes_go_both_ways() {
    let mut world = World::new();
    let (mut client, mut asked) = switched(&mut world).await;
    for text in ["one", "two"] {
        client.send(text).await;
        let echo = data(&mut asked).await;
        assert_eq!(echo, text.as_bytes());
        soon(asked.send.send(echo.into())).await.unwrap();
        assert_eq!(client.bytes(3).await, text.as_bytes());
    }
    asked.send.finish(None).unwrap();
    assert!(client.is_closed().await, "the node's end is the client's end");
}

// S17
#[tokio::test]
async fn bytes_sent_before_the_switch_wait_for_it() {
    let mut world = World::new();
    let smuggled = format!("{UPGRADE}GET /s/other HTTP/1.1\nHost: a\n\n");
    let mut client = world.client_with(&smuggled).await;
    let mut asked = world.owners[0].asked().await;
    assert!(asked.recv.try_next().is_pending(), "nothing but the head");
    let head = asked.head(switching(), None);
    asked.send.head(&head, false).unwrap();
    assert_eq!(client.head().await.status, 101);
    assert!(data(&mut asked).await.starts_with(b"GET /s/other"), "as bytes of the tunnel");
    assert!(world.owners[0].is_left_alone(), "and never as a request");
}

// S18
#[tokio::test]
async fn an_upgrade_that_is_turned_down_stays_http() {
    let mut world = World::new();
    let mut client = world.client_with(UPGRADE).await;
    let asked = world.owners[0].asked().await;
    asked.answer("plain").await;
    assert_eq!(client.got().await.text(), "plain");
    client.send("GET /s/k HTTP/1.1\r\nHost: a\r\n\r\n").await;
    world.owners[0].asked().await.answer("next").await;
    assert_eq!(client.got().await.text(), "next");
}

// S11
#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_an_error() {
    let mut world = World::new();
    let mut client = world.client_with("GET /s/k HTTP/1.1\nHost: a\n\n").await;
    let mut asked = world.owners[0].asked().await;
    let head = asked.head(switching(), None);
    asked.send.head(&head, false).unwrap();
    let got = client.got().await;
    assert_eq!((got.status.as_u16(), got.header("stead-outcome")), (502, Some("unknown")));
    assert!(client.is_closed().await);
}

// S20
#[tokio::test]
async fn an_upgrade_to_http_2_is_not_passed_on() {
    let mut world = World::new();
    let request = UPGRADE.replace("websocket\n", "h2c\nHTTP2-Settings: AAMAAABkAAQAAP__\n");
    let mut client = world.client_with(&request).await;
    let asked = world.owners[0].asked().await;
    assert!(!asked.meta.upgrade && asked.header("upgrade").is_none());
    asked.answer("plain").await;
    assert_eq!(client.got().await.text(), "plain");
}

#[tokio::test]
async fn a_websocket_whose_owner_breaks_is_told_to_come_back() {
    let mut world = World::new();
    let (mut client, mut asked) = switched(&mut world).await;
    let message = [0x81, 2, b'h', b'i'];
    soon(asked.send.send(message.to_vec().into())).await.unwrap();
    assert_eq!(client.bytes(4).await, message);
    drop(asked);
    assert_eq!(client.bytes(4).await, [0x88, 2, 0x03, 0xF4], "1012");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn nothing_is_said_in_the_middle_of_a_message() {
    let mut world = World::new();
    let (mut client, mut asked) = switched(&mut world).await;
    soon(asked.send.send(vec![0x81, 9, b'h'].into())).await.unwrap();
    assert_eq!(client.bytes(3).await.len(), 3);
    drop(asked);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_stream() {
    let mut world = World::new();
    let (client, mut asked) = switched(&mut world).await;
    drop(client);
    soon(async {
        while !matches!(
            asked.recv.next().await,
            Some(StreamEvent::End(_)) | Some(StreamEvent::Reset(_)) | None
        ) {}
    })
    .await;
}

#[tokio::test]
async fn websockets_end_when_the_proxy_stops() {
    let mut world = World::new();
    let (mut client, _asked) = switched(&mut world).await;
    world.stop();
    assert_eq!(client.bytes(4).await, [0x88, 2, 0x03, 0xF4]);
    soon(&mut world.served).await.unwrap();
}
