//! Configuration: options as people write them, checked into values that cannot be wrong.
//!
//! [`NodeOptions`] and [`RouterOptions`] are what a TOML file, the environment and flags fill in;
//! each field has a default or is required. [`NodeConfig`] and [`RouterConfig`] are what the rest
//! of the program takes: made by `try_from`, which is the one place that knows ranges and
//! relations. Nothing here reads files, the environment or the clock.

mod ack;
mod checked;
mod minority;
mod options;
mod units;

pub use ack::{AckPolicy, ParseAckError};
pub use checked::{ConfigError, MemberConfig, NodeConfig, OnNoKey, RouterConfig, check_host_port};
pub use minority::{OnMinority, ParseOnMinorityError};
pub use options::{LogFormat, NoKey, NodeOptions, RouterOptions};
pub use units::{Patience, Size, Span, UnitError};
