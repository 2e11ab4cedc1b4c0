//! The program as a user runs it: real processes, real sockets, real signals.
//!
//! Every test has ports, processes and a directory of its own. A test that fails prints the end
//! of its processes' logs. `UPDATE_SNAPSHOTS=1 cargo test --test processes` rewrites the expected
//! outputs in `snapshots/`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "in a test a panic is the report, and what it measures is worth a line"
)]

mod admin;
mod ballast;
mod chance;
mod cli;
mod client;
mod counting;
mod crashes;
mod demo;
mod disk;
mod failures;
mod harness;
mod heirs;
mod insisting;
mod judge;
mod leaving;
mod live;
mod minority;
mod moves;
mod netns;
mod partition;
mod pins;
mod promises;
mod refusals;
mod tally;
mod trial;
