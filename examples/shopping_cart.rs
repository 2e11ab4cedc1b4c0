//! A shop that keeps the cart of every customer in memory, on the node where the customer's
//! requests go. There is no database to ask and no cache to invalidate.
//!
//! ```text
//! cargo run --example shopping_cart
//! curl -d 2 localhost:8081/carts/alice/tea            # two teas into alice's cart
//! curl -d 1 localhost:8081/carts/alice/cup
//! curl localhost:8081/carts/alice                     # {"items":{"cup":1,"tea":2},"coupon":null}
//! curl -X DELETE localhost:8081/carts/alice/cup       # no cup after all
//! curl -X DELETE localhost:8081/carts/alice           # an empty cart
//! ```
//!
//! A second node takes half of the carts over; either answers for all customers, and with Ctrl-C
//! either hands its carts to the other:
//!
//! ```text
//! cargo run --example shopping_cart -- n2 127.0.0.1:7410 127.0.0.1:8082 127.0.0.1:7400
//! curl localhost:8082/carts/alice
//! ```
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode, request};
use serde::{Deserialize, Serialize};
use stead::{Body, Node, NodeError, Problem, Service, Session, State};

#[cfg(test)]
mod client;

/// Shards of the shop's cluster: enough for some ten nodes, and the same for ever.
const N_SHARDS: u32 = 1_024;
/// Different items in one cart. What clients can make grow needs a bound.
const ITEMS_MAX: usize = 100;
/// How long a cart is kept when its customer does not come back.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What one customer wants to buy: the typed state of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cart {
    items: BTreeMap<String, u32>,
    /// Came later: carts from before are read without it.
    #[serde(default)]
    coupon: Option<String>,
}

impl State for Cart {
    // Fields with `#[serde(default)]` come and go under one version. Raise it when programs of
    // before must not touch what this one writes: they refuse such a cart then, and keep it.
    const VERSION: u32 = 1;
}

impl Cart {
    /// False when the cart is full. It is as before then.
    fn add(&mut self, item: &str, n: u32) -> bool {
        if !self.items.contains_key(item) && ITEMS_MAX <= self.items.len() {
            return false;
        }
        let count = self.items.entry(item.to_owned()).or_default();
        *count = count.saturating_add(n);
        true
    }
}

/// The HTTP interface. The session is the customer: the second segment of the path, which is
/// where nodes look for the key unless told otherwise.
#[derive(Debug)]
struct Shop;

impl Service for Shop {
    async fn call(&self, session: Session, request: Request<Body>) -> Response<Body> {
        answer(&session, request).await.unwrap_or_else(Problem::into_response)
    }

    /// Who only looks need not wait for the requests of the same customer that change something.
    fn is_read(&self, head: &request::Parts) -> bool {
        head.method == Method::GET
    }

    fn has_hooks(&self) -> bool {
        false
    }
}

/// What is changed here is committed as one before the answer leaves, and moves with the session
/// from then on.
async fn answer(session: &Session, request: Request<Body>) -> Result<Response<Body>, Problem> {
    let (head, body) = request.into_parts();
    let path: Vec<&str> = head.uri.path().split('/').skip(1).collect();
    match (&head.method, path.as_slice()) {
        (&Method::GET, ["carts", _customer]) => {
            Ok(shown(&session.get::<Cart>()?.unwrap_or_default()))
        }
        (&Method::POST, ["carts", _customer, item]) => {
            let n = number(body).await?;
            let cart = session.update(|cart: &mut Cart| cart.add(item, n).then(|| cart.clone()))?;
            session.expire_in(KEPT)?;
            cart.map(|cart| shown(&cart)).ok_or_else(full)
        }
        (&Method::DELETE, ["carts", _customer, item]) => {
            let cart = session.update(|cart: &mut Cart| {
                cart.items.remove(*item);
                cart.clone()
            })?;
            Ok(shown(&cart))
        }
        (&Method::DELETE, ["carts", _customer]) => {
            session.delete()?;
            Ok(shown(&Cart::default()))
        }
        _ => Err(Problem::new(StatusCode::NOT_FOUND, "not-found", "Not sold here", "")),
    }
}

fn shown(cart: &Cart) -> Response<Body> {
    let text = serde_json::to_vec(cart).expect("texts and numbers are always JSON");
    let mut response = Response::new(Body::from(text));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// The number in the body; an empty one means 1.
async fn number(body: Body) -> Result<u32, Problem> {
    let bad = |detail: String| {
        Problem::new(StatusCode::BAD_REQUEST, "bad-number", "The body is not a number", detail)
    };
    let bytes = body.collect_up_to(16).await.map_err(|error| bad(error.to_string()))?;
    let text = String::from_utf8_lossy(&bytes);
    if text.is_empty() {
        return Ok(1);
    }
    text.trim().parse().map_err(|error| bad(format!("`{text}`: {error}")))
}

fn full() -> Problem {
    let detail = format!("A cart holds {ITEMS_MAX} different items.");
    Problem::new(StatusCode::CONFLICT, "cart-full", "The cart is full", detail)
}

/// A node of the shop. Without a seed it founds the cluster.
async fn open(
    name: &str,
    gossip: SocketAddr,
    http: SocketAddr,
    seed: Option<String>,
) -> Result<Node, NodeError> {
    let node = Node::builder().name(name).gossip(gossip).http(http).join(seed).shards(N_SHARDS);
    let node = node.service(Shop).start().await?;
    node.ready().await?;
    Ok(node)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "n1".into());
    let gossip = args.next().unwrap_or_else(|| "127.0.0.1:7400".into()).parse()?;
    let http = args.next().unwrap_or_else(|| "127.0.0.1:8081".into()).parse()?;
    let node = open(&name, gossip, http, args.next()).await?;
    println!("{name} is open on http://{}, Ctrl-C closes it", node.handle().http_addr());
    let left = node.run_until(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
    println!("{name} is closed; {} carts had no other node to go to", left.sessions_left);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::client::Client;
    use super::*;

    const SOON: Duration = Duration::from_secs(60);
    const N_CUSTOMERS: u32 = 30;

    async fn start(name: &str, seed: Option<&Node>) -> Node {
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let seed = seed.map(|node| node.handle().gossip_addr().to_string());
        open(name, anywhere, anywhere, seed).await.unwrap()
    }

    async fn client(node: &Node) -> Client {
        Client::connect(node.handle().http_addr()).await.unwrap()
    }

    /// The cart of customer `n`, and the node that it was on.
    async fn cart(client: &mut Client, n: u32) -> (Cart, String) {
        let answer = client.ask(Method::GET, &format!("/carts/c{n}"), "").await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let node = answer.headers()["stead-node"].to_str().unwrap().to_owned();
        (serde_json::from_slice(answer.body()).unwrap(), node)
    }

    #[tokio::test]
    async fn items_come_and_go() {
        let shop = start("n1", None).await;
        let mut client = client(&shop).await;
        let wishes = [
            (Method::POST, "/carts/alice/tea", "2", 200, r#"{"items":{"tea":2},"coupon":null}"#),
            (Method::POST, "/carts/alice/tea", "", 200, r#"{"items":{"tea":3},"coupon":null}"#),
            (Method::GET, "/carts/bob", "", 200, r#"{"items":{},"coupon":null}"#),
            (Method::DELETE, "/carts/alice/tea", "", 200, r#"{"items":{},"coupon":null}"#),
            (Method::DELETE, "/carts/alice", "", 200, r#"{"items":{},"coupon":null}"#),
        ];
        for (method, path, body, status, expected) in wishes {
            let answer = client.ask(method, path, body).await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), &answer.body()[..]),
                (status, expected.as_bytes())
            );
        }
        for (path, body, status) in [("/carts/alice/tea", "many", 400), ("/chairs/alice", "", 404)]
        {
            let answer = client.ask(Method::POST, path, body).await.unwrap();
            assert_eq!(answer.status(), status, "{path}");
        }
    }

    #[test]
    fn a_full_cart_takes_more_of_what_is_in_it() {
        let mut cart = Cart::default();
        assert!((0..ITEMS_MAX).all(|n| cart.add(&n.to_string(), 1)));
        assert!(!cart.add("tea", 1));
        assert!(cart.add("0", u32::MAX));
        assert_eq!(cart.items.len(), ITEMS_MAX);
        assert_eq!(cart.items["0"], u32::MAX);
    }

    async fn carts_follow() {
        let first = start("first", None).await;
        let mut at_first = client(&first).await;
        for n in 0..N_CUSTOMERS {
            let (path, body) = (format!("/carts/c{n}/tea"), n.to_string());
            let answer = at_first.ask(Method::POST, &path, body).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
        }
        let second = start("second", Some(&first)).await;
        for node in [&first, &second] {
            node.handle().settled(2).await.unwrap();
        }
        let mut n_moved = 0;
        for n in 0..N_CUSTOMERS {
            let (cart, node) = cart(&mut at_first, n).await;
            assert_eq!(cart.items["tea"], n);
            n_moved += u32::from(node == "second");
        }
        assert!((1..N_CUSTOMERS).contains(&n_moved), "{n_moved} of {N_CUSTOMERS} carts moved");

        let left = first.run_until(ready(())).await.unwrap();
        assert_eq!((left.sessions_left, left.forced), (0, false));
        let mut at_second = client(&second).await;
        for n in 0..N_CUSTOMERS {
            at_second.ask(Method::POST, &format!("/carts/c{n}/tea"), "").await.unwrap();
            let (cart, node) = cart(&mut at_second, n).await;
            assert_eq!((cart.items["tea"], node.as_str()), (n + 1, "second"));
        }
    }

    #[tokio::test]
    async fn carts_follow_their_shards_to_a_second_node() {
        tokio::time::timeout(SOON, carts_follow()).await.expect("in time");
    }
}
