//! Requests with, without and with strange keys.

use stead_shared::config::OnNoKey;

use crate::world::World;

#[tokio::test]
async fn without_a_key_the_client_learns_what_was_tried() {
    let mut world = World::with("header:x-session,path:2", |_| ());
    let mut client = world.client_with("GET /only HTTP/1.1\nHost: a\n\n").await;
    let got = client.got().await;
    assert_eq!((got.status.as_u16(), got.header("stead-refusal")), (400, Some("no-session-key")));
    assert_eq!(got.header("stead-outcome"), None);
    let document = got.document();
    assert_eq!(document["refusal"], "no-session-key");
    let detail = document["detail"].as_str().unwrap();
    assert!(detail.contains("header:x-session, path:2"), "{detail}");
    assert!(world.owners[0].is_left_alone());
    client.send("GET /s/k HTTP/1.1\r\nHost: a\r\n\r\n").await;
    world.owners[0].asked().await.answer("kept").await;
    assert_eq!(client.got().await.text(), "kept");
}

#[tokio::test]
async fn a_key_that_cannot_be_one_is_refused() {
    let mut world = World::new();
    for path in ["/s//", "/s/%zz", &format!("/s/{}", "k".repeat(513))] {
        let mut client = world.client_with(&format!("GET {path} HTTP/1.1\nHost: a\n\n")).await;
        let got = client.got().await;
        assert_eq!(got.status, 400, "{path}");
        assert_eq!(got.header("stead-refusal"), Some("no-session-key"), "{path}");
    }
    assert!(world.owners[0].is_left_alone());
}

fn issuing() -> World {
    World::with("header:x-session,cookie:sid", |config| {
        let name = "sid".parse().unwrap();
        config.no_key = OnNoKey::IssueCookie { name, secure: false };
        config.cookie_key = Some([9; 32]);
    })
}

#[tokio::test]
async fn an_issued_cookie_keeps_its_session_and_a_made_up_one_does_not() {
    let mut world = issuing();
    let mut client = world.client_with("GET / HTTP/1.1\nHost: a\n\n").await;
    let asked = world.owners[0].asked().await;
    let key = asked.meta.key.clone();
    assert_eq!(key.as_bytes().len(), 32);
    asked.answer("new").await;
    let got = client.got().await;
    let set = got.header("set-cookie").unwrap().to_owned();
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Lax") && !set.contains("Secure"));
    let pair = set.split(';').next().unwrap();

    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {pair}\r\n\r\n")).await;
    let asked = world.owners[0].asked().await;
    assert_eq!(asked.meta.key, key);
    asked.answer("same").await;
    assert_eq!(client.got().await.header("set-cookie"), None);

    for made_up in ["sid=alice", &pair[..pair.len() - 1], &format!("{pair}x"), "sid="] {
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {made_up}\r\n\r\n")).await;
        let asked = world.owners[0].asked().await;
        assert_ne!(asked.meta.key, key, "{made_up}");
        assert_ne!(asked.meta.key.as_bytes(), b"alice");
        asked.answer("other").await;
        assert!(client.got().await.header("set-cookie").is_some(), "{made_up}");
    }
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Session: s\r\n\r\n").await;
    let asked = world.owners[0].asked().await;
    assert_eq!(asked.meta.key.as_bytes(), b"s");
    asked.answer("named").await;
    assert_eq!(client.got().await.header("set-cookie"), None);
}

#[tokio::test]
async fn requests_without_a_key_are_spread_when_asked_to() {
    let mut world = World::with("header:x-session", |c| c.no_key = OnNoKey::RoundRobin);
    let mut client = world.client().await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let asked = world.owners[0].asked().await;
        keys.push(asked.meta.key.clone());
        asked.answer("x").await;
        client.got().await;
    }
    keys.dedup();
    assert_eq!(keys.len(), 3);
}
