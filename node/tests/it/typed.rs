//! Typed state: versions, and what cannot be read.

use http::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use stead_node::{Body, Host, State, StateError, Unreadable, UnreadableReason};
use stead_node::{REFUSAL, Session, TurnError};

use crate::common::{SHARD, host, key, meta, post};

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cart {
    items: Vec<String>,
}

impl State for Cart {
    const VERSION: u32 = 1;
}

/// What a later version of the program writes: same name, one more field.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct CartWithCoupon {
    items: Vec<String>,
    #[serde(default)]
    coupon: Option<String>,
}

impl State for CartWithCoupon {
    const VERSION: u32 = 2;
}

async fn nothing(_: Session, _: Request<Body>) -> Response<Body> {
    Response::default()
}

async fn turn<R>(
    host: &Host,
    change: impl FnOnce(&Session) -> Result<R, StateError> + Send,
) -> Result<R, TurnError> {
    host.session(SHARD, key("s")).unwrap().turn(change, |_| ()).await
}

fn add(item: &str) -> impl Fn(&Session) -> Result<usize, StateError> + Send {
    move |session| {
        session.update(|cart: &mut Cart| {
            cart.items.push(item.to_owned());
            cart.items.len()
        })
    }
}

#[tokio::test]
async fn an_update_starts_from_the_default_and_goes_on_from_what_it_left() {
    let host = host(nothing);
    assert_eq!(turn(&host, |s| s.get::<Cart>()).await, Ok(None));
    assert_eq!(turn(&host, add("tea")).await, Ok(1));
    assert_eq!(turn(&host, add("milk")).await, Ok(2));
    let cart = turn(&host, |s| s.get::<Cart>()).await.unwrap().unwrap();
    assert_eq!(cart.items, ["tea", "milk"]);
}

#[tokio::test]
async fn newer_code_reads_what_older_code_wrote() {
    let host = host(nothing);
    turn(&host, add("tea")).await.unwrap();
    let cart = turn(&host, |s| s.get::<CartWithCoupon>()).await.unwrap().unwrap();
    assert_eq!(cart, CartWithCoupon { items: vec!["tea".into()], coupon: None });
}

#[tokio::test]
async fn older_code_never_touches_what_newer_code_wrote() {
    let host = host(nothing);
    let new = CartWithCoupon { items: vec![], coupon: Some("xmas".into()) };
    turn(&host, |s| s.set(&new)).await.unwrap();
    let newer = StateError::NewerVersion { stored: 2, known: 1 };
    let refused = Err(TurnError::State(newer.clone()));
    assert_eq!(turn(&host, add("tea")).await, refused);
    assert_eq!(turn(&host, |s| s.set(&Cart::default())).await, Err(newer.clone().into()));
    // Code that does not look at its errors changes nothing either.
    let careless = turn(&host, |session| {
        let _ = session.get::<Cart>();
        let results = [session.put_bytes(b"x"), session.delete()];
        assert_eq!(results, [Err(newer.clone()), Err(newer.clone())]);
        assert_eq!(session.add("n", 1), Err(newer.clone()));
        Ok(())
    });
    assert_eq!(careless.await, Err(TurnError::State(newer.clone())));
    let kept = turn(&host, |s| s.get::<CartWithCoupon>()).await.unwrap();
    assert_eq!(kept, Some(new));
    let reason = UnreadableReason::Newer { stored: 2, known: 1 };
    assert_eq!(host.unreadable(), [Unreadable { key: key("s"), shard: SHARD, reason }]);
}

#[tokio::test]
async fn a_session_of_a_newer_version_is_answered_503_whatever_the_handler_does() {
    let host = host(|session: Session, _: Request<Body>| async move {
        let _ = session.get::<Cart>();
        Response::new(Body::from("all is well"))
    });
    turn(&host, |s| s.set(&CartWithCoupon::default())).await.unwrap();
    let (_, response) = host.serve(meta("s"), post("")).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[REFUSAL], "quarantined");
}

#[tokio::test]
async fn undecodable_state_is_kept_byte_for_byte_until_somebody_deletes_it() {
    let host = host(nothing);
    let junk = b"\x00not a cart\xff";
    turn(&host, |s| s.put_bytes(junk)).await.unwrap();
    let error = turn(&host, add("tea")).await.unwrap_err();
    assert!(matches!(error, TurnError::State(StateError::Undecodable { .. })), "{error:?}");
    assert_eq!(turn(&host, |s| s.bytes()).await.unwrap().unwrap(), &junk[..]);
    assert_eq!(host.unreadable().len(), 1);
    let deleted = turn(&host, |session| {
        let _ = session.get::<Cart>();
        session.delete()?;
        session.set(&Cart { items: vec!["new".into()] })
    });
    deleted.await.unwrap();
    assert_eq!(turn(&host, add("tea")).await, Ok(2));
    assert!(host.unreadable().is_empty());
}

#[tokio::test]
async fn a_type_reads_old_schemas_in_its_own_way() {
    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Lines {
        lines: Vec<String>,
    }
    impl State for Lines {
        const VERSION: u32 = 3;
        fn decode(version: u32, bytes: &[u8]) -> Result<Self, stead_node::CodecError> {
            if version < 3 {
                let old: Cart =
                    serde_json::from_slice(bytes).map_err(stead_node::CodecError::new)?;
                return Ok(Self { lines: old.items });
            }
            serde_json::from_slice(bytes).map_err(stead_node::CodecError::new)
        }
    }
    let host = host(nothing);
    turn(&host, add("tea")).await.unwrap();
    let lines = turn(&host, |s| s.update(|lines: &mut Lines| lines.lines.clone())).await.unwrap();
    assert_eq!(lines, ["tea"]);
    assert!(turn(&host, add("milk")).await.is_err());
}
