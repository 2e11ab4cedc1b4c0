//! Tests through the public surface: some over real sockets on loopback, the others pure.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod agent;
mod decode;
mod golden;
mod link;
mod peers;
mod placement;
