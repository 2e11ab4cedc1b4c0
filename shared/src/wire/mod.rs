//! What travels between members.

pub mod datagram;
pub mod http;
pub mod link;
