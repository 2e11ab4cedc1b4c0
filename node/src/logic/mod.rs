//! Decisions about shards: pure state machines, driven by [`crate::driver`].

pub mod forming;
pub mod genesis;
pub mod incoming;
pub mod outgoing;
pub mod ownership;
