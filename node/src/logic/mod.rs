//! Decisions about shards: pure state machines; the driver feeds them and does what they say.

pub mod copying;
pub mod durable;
pub mod forming;
pub mod gate;
pub mod genesis;
pub mod grouping;
pub mod heal;
pub mod incoming;
pub mod journal;
pub mod majority;
pub mod outgoing;
pub mod ownership;
pub mod pace;
pub mod recovery;
pub mod replication;
pub mod rows;
pub mod window;
