//! Decisions about shards: pure state machines; the driver feeds them and does what they say.

pub mod forming;
pub mod genesis;
pub mod incoming;
pub mod outgoing;
pub mod ownership;
