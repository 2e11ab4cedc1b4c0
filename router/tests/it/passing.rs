//! What passes through: heads, bodies, and nothing more than fits.

use bytes::Bytes;
use http::Response;
use stead_shared::id::SessionKey;
use stead_shared::net::link::{ResetCode, StreamEvent};

use stead_shared::wire::http::encode_trailers;

use crate::world::{SHARD, World, soon};

const GET: &str = "GET /sessions/alice HTTP/1.1\nhost: a\n\n";

#[tokio::test]
async fn a_request_reaches_its_owner_and_the_answer_its_client() {
    let mut world = World::new();
    let mut client = world.client_with("GET /sessions/al%69ce?x=1 HTTP/1.1\nHost: a\n\n").await;
    let asked = world.owners[0].asked().await;
    assert_eq!(asked.meta.key, SessionKey::new("alice").unwrap());
    assert_eq!((asked.meta.shard, asked.meta.attempt), (SHARD, 1));
    assert_eq!(asked.meta.epoch, Some(world.owners[0].epoch(1)));
    assert!((50_000..=60_000).contains(&asked.meta.deadline_ms));
    assert!(asked.meta.client.is_loopback());
    assert_eq!(asked.parts.uri, "/sessions/al%69ce?x=1");
    asked.answer("hello").await;
    let got = client.got().await;
    assert_eq!((got.status.as_u16(), got.text()), (200, "hello"));
    assert_eq!(got.header("content-length"), Some("5"));
}

#[tokio::test]
async fn a_connection_is_kept_and_pipelined_requests_are_answered_in_order() {
    let mut world = World::new();
    let mut client = world.client_with(&GET.repeat(2)).await;
    for round in ["1", "2", "3"] {
        let asked = world.owners[0].asked().await;
        let counter = asked.meta.id.counter.to_string();
        asked.answer(&counter).await;
        assert_eq!(client.got().await.text(), (counter), "round {round}");
        if round == "2" {
            client.send(GET.replace('\n', "\r\n")).await;
        }
    }
    assert_eq!(world.links.stats().connections, 1, "one link for all");
}

#[tokio::test]
async fn headers_of_the_connection_and_of_ours_stay_at_the_border() {
    let mut world = World::new();
    let mut client = world
        .client_with(
            "GET /sessions/a HTTP/1.1\nHost: h\nConnection: keep-alive, X-Hop, X-Forwarded-For\n\
             Keep-Alive: 5\nTE: trailers\nProxy-Connection: x\nProxy-Authorization: x\n\
             X-Hop: 1\nStead-Epoch: 9.0\nSTEAD_Shard: 1\nX-End: 2\n\
             X-Forwarded-For: 203.0.113.9\nX-Forwarded-Proto: gopher\n\n",
        )
        .await;
    let asked = world.owners[0].asked().await;
    let mut names: Vec<&str> = asked.parts.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["host", "via", "x-end", "x-forwarded-for", "x-forwarded-proto"]);
    assert_eq!(asked.header("x-forwarded-for"), Some("127.0.0.1"), "theirs was named as a hop");
    assert_eq!(asked.header("x-forwarded-proto"), Some("http"));
    assert_eq!(asked.header("via"), Some("1.1 stead"));

    let mut answer = Response::new(());
    for (name, value) in [
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "5"),
        ("stead-node", "a"),
        ("stead-secret", "s"),
        ("x-end", "2"),
    ] {
        answer.headers_mut().append(name, value.parse().unwrap());
    }
    asked.respond(answer, "").await;
    let got = client.got().await;
    let mut names: Vec<&str> = got.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "date", "x-end"]);
}

#[tokio::test]
async fn exposed_headers_tell_who_answered() {
    let mut world = World::with("path:2", |config| config.expose_headers = true);
    let mut client = world.client_with(GET).await;
    world.owners[0].asked().await.answer("x").await;
    let got = client.got().await;
    let id = world.owners[0].id.node.to_string();
    assert_eq!(got.header("stead-node"), Some(id.as_str()), "no card, so no name");
    assert_eq!(got.header("stead-shard"), Some("0"));
    assert_eq!(got.header("stead-epoch"), Some(format!("1.{id}").as_str()));
}

#[tokio::test]
async fn an_answer_to_head_says_its_length_and_has_no_body() {
    let mut world = World::new();
    let mut client = world.client_with(&GET.replace("GET", "HEAD")).await;
    let mut asked = world.owners[0].asked().await;
    let head = asked.head(Response::new(()), Some(7));
    asked.send.head(&head, true).unwrap();
    let got = client.head().await;
    assert_eq!(got.header("content-length"), Some("7"));
    client.send(GET.replace('\n', "\r\n")).await;
    world.owners[0].asked().await.answer("next").await;
    assert_eq!(client.got().await.text(), "next", "nothing was left over");
}

#[tokio::test]
async fn an_absolute_target_is_passed_on_in_origin_form() {
    let mut world = World::new();
    let mut client = world.client_with("GET http://a/s/k?q HTTP/1.1\nHost: a\n\n").await;
    let asked = world.owners[0].asked().await;
    assert_eq!(asked.parts.uri.to_string(), "/s/k?q");
    asked.answer("x").await;
    client.got().await;
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let mut world = World::new();
    let mut client = world
        .client_with("POST /s/k HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n3\none\n")
        .await;
    let mut asked = world.owners[0].asked().await;
    assert_eq!(soon(asked.recv.next()).await, Some(StreamEvent::Data("one".into())));
    let head = asked.head(Response::new(()), None);
    soon(asked.send.head_and_first(head, Some("first".into()), false)).await.unwrap();
    assert_eq!(client.head().await.header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.chunk().await, b"first", "before the request's end");
    client.send("3\r\ntwo\r\n").await;
    assert_eq!(soon(asked.recv.next()).await, Some(StreamEvent::Data("two".into())));
    soon(asked.send.send("second".into())).await.unwrap();
    assert_eq!(client.chunk().await, b"second");
    client.send("0\r\n\r\n").await;
    assert_eq!(soon(asked.recv.next()).await, Some(StreamEvent::End(None)));
    asked.send.finish(None).unwrap();
    assert_eq!(client.chunk().await, b"");
    client.send(GET.replace('\n', "\r\n")).await;
    world.owners[0].asked().await.answer("again").await;
    assert_eq!(client.got().await.text(), "again");
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_no_more_than_a_window() {
    const SIZE: usize = 32 << 20;
    let mut world = World::new();
    let mut slow = world.client_with(GET).await;
    let mut asked = world.owners[0].asked().await;
    let head = asked.head(Response::new(()), Some(SIZE as u64));
    asked.send.head(&head, false).unwrap();
    let sending = tokio::spawn(async move {
        for _ in 0..SIZE >> 16 {
            asked.send.send(Bytes::from(vec![b'x'; 1 << 16])).await.unwrap();
        }
        asked.send.finish(None).unwrap();
    });
    // Credit goes back by halves of the window, so at least one half fills up when nobody reads.
    let window = 256 << 10;
    soon(async {
        while world.links.stats().held_bytes < window / 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..20 {
        let mut quick = world.client_with(GET).await;
        world.owners[0].asked().await.answer("quick").await;
        assert_eq!(quick.got().await.text(), "quick");
        assert!(world.links.stats().held_bytes <= window);
    }
    assert!(!sending.is_finished());
    assert_eq!(slow.got().await.body.len(), SIZE);
    soon(sending).await.unwrap();
}

#[tokio::test]
async fn an_upload_that_nobody_accepts_is_not_read_beyond_what_is_kept() {
    let mut world = World::new();
    let mut client =
        world.client_with("PUT /s/k HTTP/1.1\nHost: a\nContent-Length: 33554432\n\n").await;
    let mut asked = world.owners[0].asked().await;
    let mut sent = 0;
    let piece = vec![b'u'; 1 << 16];
    let stuck = std::time::Duration::from_millis(300);
    while let Ok(written) =
        tokio::time::timeout(stuck, tokio::io::AsyncWriteExt::write(&mut client.stream, &piece))
            .await
    {
        sent += written.unwrap();
    }
    let mut got = 0;
    while got < 64 << 10 {
        let Some(StreamEvent::Data(bytes)) = soon(asked.recv.next()).await else { panic!("data") };
        got += bytes.len();
    }
    assert!(asked.recv.try_next().is_pending(), "the credit before acceptance is used up");
    asked.send.accepted();
    let rest = vec![b'u'; (32 << 20) - sent];
    let (body, ()) = tokio::join!(asked.body(), client.send(&rest));
    assert_eq!(got + body.len(), 32 << 20);
    asked.answer("done").await;
    assert_eq!(client.got().await.text(), "done");
}

#[tokio::test]
async fn a_client_that_expects_to_be_asked_is_asked_once_its_owner_is_found() {
    let mut world = World::new();
    let mut client = world
        .client_with("PUT /s/k HTTP/1.1\nHost: a\nContent-Length: 4\nExpect: 100-continue\n\n")
        .await;
    let mut asked = world.owners[0].asked().await;
    assert_eq!(asked.header("expect"), None);
    assert_eq!(client.head().await.status, 100);
    client.send("body").await;
    assert_eq!(asked.body().await, b"body");
    asked.answer("thanks").await;
    assert_eq!(client.got().await.text(), "thanks");
}

#[tokio::test]
async fn an_early_answer_closes_a_connection_with_an_unread_body() {
    let mut world = World::new();
    let mut client = world
        .client_with(
            "PUT / HTTP/1.1\nHost: a\nContent-Length: 1000000\n\nGET /s/smuggled HTTP/1.1\n",
        )
        .await;
    let got = client.got().await;
    assert_eq!((got.status.as_u16(), got.header("connection")), (400, Some("close")));
    assert!(client.is_closed().await);
    assert!(world.owners[0].is_left_alone());
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request() {
    let mut world = World::new();
    let client = world.client_with(GET).await;
    let asked = world.owners[0].asked().await;
    drop(client);
    assert_eq!(soon(asked.send.cancelled()).await, ResetCode::Cancelled);
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_client_too() {
    let mut world = World::new();
    let mut client = world.client_with(GET).await;
    let mut asked = world.owners[0].asked().await;
    let head = asked.head(Response::new(()), None);
    soon(asked.send.head_and_first(head, Some("begun".into()), false)).await.unwrap();
    client.head().await;
    assert_eq!(client.chunk().await, b"begun");
    drop(asked);
    assert!(client.is_closed().await, "without the last chunk");
}

#[tokio::test]
async fn an_answer_that_is_not_as_long_as_promised_is_none() {
    let mut world = World::new();
    for text in ["four", "tw", ""] {
        let mut client = world.client_with(GET).await;
        let mut asked = world.owners[0].asked().await;
        let head = asked.head(Response::new(()), Some(3));
        soon(asked.send.head_and_first(head, Some(text.into()), true)).await.unwrap();
        let got = client.got().await;
        assert_eq!((got.status.as_u16(), got.header("stead-outcome")), (502, Some("unknown")));
    }
}

#[tokio::test]
async fn trailers_reach_only_a_client_that_takes_them() {
    let mut world = World::new();
    for (te, want) in [("TE: trailers\n", "0\r\nx-sum: 1\r\n\r\n"), ("", "0\r\n\r\n")] {
        let request = format!("GET /s/k HTTP/1.1\nHost: a\n{te}\n");
        let mut client = world.client_with(&request).await;
        let mut asked = world.owners[0].asked().await;
        let mut response = Response::new(());
        response.headers_mut().insert("trailer", "x-sum".parse().unwrap());
        let head = asked.head(response, None);
        soon(asked.send.head_and_first(head, Some("x".into()), false)).await.unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        trailers.insert("stead-epoch", "1.0".parse().unwrap());
        asked.send.finish(Some(encode_trailers(&trailers).unwrap())).unwrap();
        client.head().await;
        assert_eq!(client.chunk().await, b"x");
        assert_eq!(client.bytes(want.len()).await, want.as_bytes());
    }
}

#[tokio::test]
async fn a_client_in_the_middle_of_an_upload_still_gets_the_early_answer() {
    let world = World::new();
    let size = 4 << 20;
    let mut client =
        world.client_with(&format!("PUT / HTTP/1.1\nHost: a\nContent-Length: {size}\n\n")).await;
    client.send(vec![b'x'; size]).await;
    let got = client.got().await;
    assert_eq!((got.status.as_u16(), got.header("connection")), (400, Some("close")));
    assert!(client.is_closed().await);
}
