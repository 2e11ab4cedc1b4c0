//! Sessions in memory, by shard.
//!
//! A [`shard::Shard`] holds its gate, its sessions and their queues behind one lock that is never
//! held across an await, so that closing the gate and everything that depends on it is one
//! step. Sessions at rest are as small as they can be; what only a session in use needs (a
//! queue, those attached to it) lives in a second map that is empty most of the time.

pub(crate) mod alarms;
mod answers;
pub(crate) mod arriving;
pub(crate) mod aside;
pub(crate) mod clock;
pub(crate) mod conflicts;
pub(crate) mod copy;
pub(crate) mod core;
pub(crate) mod data;
pub(crate) mod draft;
pub(crate) mod following;
mod inner;
pub(crate) mod key;
pub(crate) mod merge;
mod queue;
pub(crate) mod record;
pub(crate) mod saving;
pub(crate) mod sessions;
pub(crate) mod shard;
mod throttle;
pub(crate) mod tracking;
pub(crate) mod turns;
