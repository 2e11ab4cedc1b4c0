//! Tests over real sockets on loopback.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod agent;
mod link;
mod peers;
