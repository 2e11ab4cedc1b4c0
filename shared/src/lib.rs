//! The core of `stead`: what routers and nodes must agree on bit for bit.
//!
//! Everything outside `net` is pure: no clock, no randomness, no sockets, no tasks. Decisions
//! are plain functions and state machines that take an event and a time and return actions.
#![warn(missing_docs)]

pub mod border;
pub mod claims;
pub mod config;
pub mod control;
pub mod fuzz;
pub mod hash;
pub mod heard;
pub mod id;
pub mod keys;
pub mod member;
#[cfg(feature = "net")]
pub mod net;
pub mod park;
pub mod pins;
pub mod placement;
pub mod refusal;
pub mod ring;
pub mod route;
pub mod rules;
pub mod session_key;
#[cfg(feature = "sim")]
pub mod sim;
pub mod swim;
pub mod time;
pub mod view;
pub mod wire;
