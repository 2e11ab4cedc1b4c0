//! Shards placed by hand: they go there, stay there, and go back.

use std::time::Duration;

use stead_node::Handle;
use stead_shared::id::{NodeId, ShardId};
use stead_shared::net::admin::{AdminSource as _, PlaceError};
use stead_shared::pins::PinKind;

use crate::cluster::{SOON, http, key, owner, pair, session_of, settled, start, until};

const HOUR: Duration = Duration::from_secs(3600);

fn id(node: &Handle) -> NodeId {
    NodeId::of_name(node.name())
}

/// A session of `node`, its shard, and a value of its own in it.
async fn session_with_value(node: &Handle) -> (String, ShardId) {
    let session = session_of(node);
    let path = format!("/sessions/{session}");
    assert_eq!(http(node, "PUT", &path, "precious").await.status, 201);
    let shard = node.view().params.shard_of(&key(&session));
    (session, shard)
}

/// Waits until everybody sees the shard at `home`, wanted there and claimed there.
async fn at_home(seen_by: &[&Handle], shard: ShardId, home: &Handle) {
    for handle in seen_by {
        until(handle, &format!("{shard} should be at {}", home.name()), |view| {
            view.targets.owner_of(shard) == Some(id(home)) && owner(view, shard) == Some(id(home))
        })
        .await;
    }
}

async fn pin(asked: &Handle, shard: ShardId, to: &Handle, keep: Duration) {
    let pin = asked.admin().move_shard(shard.0, to.name().to_owned(), keep).await.unwrap();
    assert_eq!((pin.node.as_str(), pin.author.as_str()), (to.name(), asked.name()));
    assert_eq!((pin.kind, pin.effective), (PinKind::Hand, true));
}

#[tokio::test]
async fn a_pin_moves_a_shard_with_its_sessions_and_an_unpin_brings_it_back() {
    let (a, b) = pair().await;
    let (session, shard) = session_with_value(&a.handle).await;
    // Whoever is asked: first the one that gives, then the one that has.
    pin(&a.handle, shard, &b.handle, HOUR).await;
    at_home(&[&a.handle, &b.handle], shard, &b.handle).await;
    let path = format!("/sessions/{session}");
    assert_eq!(http(&b.handle, "GET", &path, "").await.body, "precious");
    for handle in [&a.handle, &b.handle] {
        assert_eq!(handle.admin().pins().pins.len(), 1);
        assert_eq!(handle.admin().shard(shard.0).unwrap().pin.unwrap().node, "b");
    }
    settled(&[&a.handle, &b.handle]).await;
    assert_eq!(a.handle.view().members_digest, b.handle.view().members_digest);

    b.handle.admin().unpin(shard.0).await.unwrap();
    at_home(&[&a.handle, &b.handle], shard, &a.handle).await;
    assert_eq!(http(&a.handle, "GET", &path, "").await.body, "precious");
    assert_eq!(a.handle.admin().pins().pins, []);
    let again = a.handle.admin().unpin(shard.0).await;
    assert_eq!(again, Err(PlaceError::NotPinned(shard)));
}

#[tokio::test]
async fn a_newcomer_learns_the_pins() {
    let (a, b) = pair().await;
    let (_, shard) = session_with_value(&a.handle).await;
    pin(&b.handle, shard, &b.handle, HOUR).await;
    let c = start("c", Some(&a.handle)).await;
    settled(&[&a.handle, &b.handle, &c.handle]).await;
    at_home(&[&a.handle, &b.handle, &c.handle], shard, &b.handle).await;
    // Only the members know, and each of them does.
    a.leave().await;
    b.leave().await;
    let pins = c.handle.admin().pins().pins;
    assert_eq!(pins.len(), 1);
    assert!(!pins[0].effective, "its node has left");
    at_home(&[&c.handle], shard, &c.handle).await;
}

#[tokio::test]
async fn a_pin_waits_for_its_node() {
    let (a, b) = pair().await;
    let (session, shard) = session_with_value(&a.handle).await;
    pin(&a.handle, shard, &b.handle, HOUR).await;
    at_home(&[&a.handle, &b.handle], shard, &b.handle).await;
    b.leave().await;
    at_home(&[&a.handle], shard, &a.handle).await;
    let b = start("b", Some(&a.handle)).await;
    at_home(&[&a.handle, &b.handle], shard, &b.handle).await;
    assert_eq!(http(&b.handle, "GET", &format!("/sessions/{session}"), "").await.body, "precious");
}

#[tokio::test]
async fn a_pin_that_expires_lets_the_shard_go_home() {
    let (a, b) = pair().await;
    let (_, shard) = session_with_value(&a.handle).await;
    pin(&b.handle, shard, &b.handle, Duration::from_secs(4)).await;
    until(&b.handle, "the pin should count", |view| {
        view.targets.owner_of(shard) == Some(id(&b.handle))
    })
    .await;
    at_home(&[&a.handle, &b.handle], shard, &a.handle).await;
    assert_eq!(b.handle.admin().pins().pins, []);
}

#[tokio::test]
async fn what_moves_is_asked_of_every_node() {
    let (a, b) = pair().await;
    let asked = tokio::time::timeout(SOON, a.handle.admin().moves()).await.unwrap();
    assert_eq!(asked.by_node.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(asked.silent, Vec::<String>::new());
    // A node that is not there any more is no member to ask.
    b.leave().await;
    let asked = tokio::time::timeout(SOON, a.handle.admin().moves()).await.unwrap();
    assert_eq!(asked.by_node.keys().collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn what_cannot_be_pinned_is_refused_with_the_reason() {
    let (a, _b) = pair().await;
    let admin = a.handle.admin();
    let to = |shard: u32, node: &str, keep| admin.move_shard(shard, node.to_owned(), keep);
    let unknown = to(64, "b", HOUR).await.unwrap_err();
    assert_eq!(unknown, PlaceError::UnknownShard { shard: "64".to_owned(), last: 63 });
    let nobody = to(1, "nobody", HOUR).await.unwrap_err();
    assert_eq!(nobody, PlaceError::UnknownNode("nobody".to_owned()));
    let too_short = to(1, "b", Duration::ZERO).await.unwrap_err();
    assert!(too_short.to_string().contains("1 second"), "{too_short}");
    assert_eq!(admin.pins().pins, []);
}
