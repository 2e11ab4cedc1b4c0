//! The reverse proxy of `stead`: it finds the key of a request, the shard of the key, the owner
//! of the shard, and hands the request to it over the link.
//!
//! [`Proxy`] is the whole of it; the request path is `proxy`, on one screen. What is decided is
//! in [`logic`], without sockets or clocks; the rest carries it out.
#![warn(missing_docs)]

mod body;
mod client;
mod config;
pub mod logic;
mod metrics;
mod proxy;
mod respond;
mod router;
mod routing;
mod sessions;
mod tunnel;
mod upstream;

pub use config::{Limits, ProxyConfig, ProxyConfigError};
pub use metrics::describe as describe_metrics;
pub use proxy::{Accuse, Proxy};
pub use router::{Handle, Router, RouterBuilder, RouterError};
