//! The real proxy between real clients and owners that the tests play, all over loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod keys;
mod lifecycle;
mod moves;
mod passing;
mod retries;
mod smuggling;
mod upgrades;
mod world;
