//! Clusters in virtual time: one thread, one seed, no clock.
//!
//! [`Sim`] is the kernel: it orders events, delays, loses and doubles messages, and crashes,
//! pauses and cuts off hosts. It knows nothing of what the messages mean, so any machines can be
//! driven by it. [`MembershipSim`] drives [`Swim`](crate::swim::Swim).
//!
//! Equal seeds give equal runs, event by event.

mod kernel;
mod membership;

pub use self::kernel::{Connect, Host, NetConfig, Sim};
pub use self::membership::{Change, MembershipConfig, MembershipSim, Traffic, addr_of, name_of};
