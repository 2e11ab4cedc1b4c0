//! Connections that begin, wait too long, and end.

use std::time::Duration;

use crate::world::{World, soon};

const GET: &str = "GET /s/k HTTP/1.1\nHost: a\n\n";
const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_head_that_does_not_arrive_is_not_waited_for() {
    let world = World::with("path:2", |config| config.limits.head_timeout = SHORT);
    for begin in ["", "G", "GET /s/k HTTP/1.1\nHost: "] {
        let mut client = world.client_with(begin).await;
        assert!(client.is_closed().await, "{begin:?}");
    }
}

#[tokio::test]
async fn a_second_head_has_its_own_time() {
    let mut world = World::with("path:2", |config| config.limits.head_timeout = SHORT);
    let mut client = world.client_with(&format!("{GET}GET /s/k HTTP/1.1\n")).await;
    world.owners[0].asked().await.answer("first").await;
    assert_eq!(client.got().await.text(), "first");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let mut world = World::with("path:2", |config| config.limits.idle_timeout = SHORT);
    let mut client = world.client_with(GET).await;
    world.owners[0].asked().await.answer("x").await;
    client.got().await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let mut world = World::with("path:2", |config| config.limits.stall_timeout = SHORT);
    let client = world.client_with(GET).await;
    let mut asked = world.owners[0].asked().await;
    let head = asked.head(http::Response::new(()), None);
    asked.send.head(&head, false).unwrap();
    let piece = bytes::Bytes::from(vec![0; 1 << 16]);
    soon(async { while asked.send.send(piece.clone()).await.is_ok() {} }).await;
    drop(client);
}

#[tokio::test]
async fn a_silent_node_is_no_reason_to_cut_the_client_off() {
    let mut world = World::with("path:2", |config| {
        config.limits.stall_timeout = SHORT;
        config.limits.request_timeout = SHORT * 4;
    });
    let mut client = world.client_with(GET).await;
    let mut asked = world.owners[0].asked().await;
    let head = asked.head(http::Response::new(()), None);
    asked.send.head(&head, false).unwrap();
    client.head().await;
    // Another client's timeout shows that time passed.
    let mut other = world.client_with(GET).await;
    assert_eq!(other.got().await.status, 504);
    soon(asked.send.send_last("late".into())).await.unwrap();
    assert_eq!(client.chunk().await, b"late");
}

#[tokio::test]
async fn stopping_lets_requests_finish_and_takes_no_more() {
    let mut world = World::new();
    let mut busy = world.client_with(GET).await;
    let mut idle = world.client_with(GET).await;
    let first = world.owners[0].asked().await;
    world.owners[0].asked().await.answer("x").await;
    idle.got().await;
    world.stop();
    assert!(idle.is_closed().await);
    assert!(soon(tokio::net::TcpStream::connect(world.addr)).await.is_err());
    assert!(!world.served.is_finished());
    first.answer("finished").await;
    let got = busy.got().await;
    assert_eq!((got.text(), got.header("connection")), ("finished", Some("close")));
    assert!(busy.is_closed().await);
    soon(&mut world.served).await.unwrap();
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let mut world = World::with("path:2", |config| config.limits.drain_timeout = SHORT);
    let mut client = world.client_with(GET).await;
    let _never_answered = world.owners[0].asked().await;
    world.stop();
    assert!(client.is_closed().await);
    soon(&mut world.served).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_room() {
    let mut world = World::with("path:2", |config| config.limits.connections_max = 1);
    let mut first = world.client_with(GET).await;
    world.owners[0].asked().await.answer("first").await;
    first.got().await;
    let mut second = world.client_with(GET).await;
    first.send(GET.replace('\n', "\r\n")).await;
    world.owners[0].asked().await.answer("first again").await;
    first.got().await;
    assert!(world.owners[0].is_left_alone(), "the second is not read yet");
    drop(first);
    world.owners[0].asked().await.answer("second").await;
    assert_eq!(second.got().await.text(), "second");
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_place() {
    let mut world = World::with("path:2", |config| config.limits.connections_max = 1);
    let upgrade = "GET /s/k HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: websocket\n\n";
    let mut first = world.client_with(upgrade).await;
    let mut asked = world.owners[0].asked().await;
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    let head = asked.head(response, None);
    asked.send.head(&head, false).unwrap();
    first.head().await;
    let mut second = world.client_with(GET).await;
    soon(asked.send.send("still".into())).await.unwrap();
    assert_eq!(first.bytes(5).await, b"still");
    assert!(world.owners[0].is_left_alone(), "the second is not read yet");
    drop((first, asked));
    world.owners[0].asked().await.answer("second").await;
    assert_eq!(second.got().await.text(), "second");
}
