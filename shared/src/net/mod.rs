//! Sockets and tasks: the only asynchronous part of this crate.

pub mod admin;
pub mod agent;
pub mod disk;
pub mod heard;
pub mod link;
pub mod mesh;
pub mod parking;
pub mod peers;
pub mod pinning;
pub mod platform;
pub mod process;
pub mod sock;
pub mod watch;
#[cfg(feature = "turmoil")]
pub use turmoil;
