//! The host from outside: no sockets, time paused where it matters.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

mod builtin;
mod cluster;
mod common;
mod copy;
mod doubt;
mod forward;
mod found;
mod heal;
mod heirs;
mod in_doubt;
mod merge;
mod minority;
mod moves;
mod once;
mod peers;
mod pins;
mod recovery;
mod replica;
mod rolling;
mod room;
mod served;
mod superseded;
mod throttle;
mod time;
#[cfg(feature = "axum")]
mod tower;
mod turns;
mod typed;
mod yields;
