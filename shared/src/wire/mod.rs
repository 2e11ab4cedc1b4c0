//! What travels between members.

pub mod datagram;
