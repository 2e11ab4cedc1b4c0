//! `stead` gives every session a home: one node owns its state in memory, every request of the
//! session goes there, and when nodes join, leave or crash, shards of sessions move with their
//! state.
//!
//! This is the facade that services embed: [`Node`] owns sessions and runs a [`Service`],
//! [`Router`] is the reverse proxy in front, and the rest are the types they share.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use stead::{Body, Node, Session};
//!
//! let node = Node::builder()
//!     .name("n1")
//!     .gossip("127.0.0.1:7400".parse()?)
//!     .http("127.0.0.1:8081".parse()?)
//!     .service(async |session: Session, _request: http::Request<Body>| {
//!         let visits = session.add("visits", 1).unwrap_or_default();
//!         http::Response::new(Body::from(format!("visit {visits}\n")))
//!     })
//!     .start()
//!     .await?;
//! node.run_until(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

pub use stead_node::*;
pub use stead_router::RouterError;
pub use stead_router::{Handle as RouterHandle, Proxy, ProxyConfig, Router, RouterBuilder};
pub use stead_shared as shared;
