//! The host from outside: no sockets, time paused where it matters.

mod common;
mod moves;
mod time;
mod turns;
mod typed;
