//! What every process that meets HTTP clients does with their requests' heads, and with its own
//! answers: the router, and a node on its own listener.

pub mod hardening;
pub mod headers;
pub mod websocket;
