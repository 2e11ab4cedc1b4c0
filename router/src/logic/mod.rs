//! What the proxy decides, without sockets, clocks or tasks.

pub mod cookie;
pub mod framing;
pub mod retry;
