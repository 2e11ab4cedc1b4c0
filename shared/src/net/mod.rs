//! Sockets and tasks: the only asynchronous part of this crate.

pub mod sock;
