//! The owner side of `stead`: sessions, their state, and the shards that carry them.
#![warn(missing_docs)]

pub mod builtin;
pub mod disk;
pub mod logic;

mod body;
mod doubt;
mod driver;
mod failure;
mod forward;
mod host;
mod http;
mod link_body;
mod local;
mod merging;
mod metrics;
mod moving;
mod node;
mod offer;
mod once;
mod problem;
mod replica;
mod saved;
mod serve;
mod service;
mod session;
mod state;
mod store;
mod transfer;
mod tunnel;
mod turn;
mod upgrade;
mod upload;

pub use body::{Body, BodyError, BodySender, ReaderGone};
pub use failure::{LeaveReport, NodeError};
pub use host::{Export, Host, HostStats, Incoming};
pub use logic::gate::Gate;
pub use logic::replication::Lost;
pub use merging::Merging;
pub use node::{Handle, Node, NodeBuilder};
pub use problem::{OUTCOME, Problem, REFUSAL};
pub use replica::{CopyStats, ReplicaReport};
pub use saved::LoadError;
pub use service::{NoSession, Service, SharedService, Tower, WithTimers, tower};
pub use session::{Attached, Session, SessionHandle, StateError, TimerId, TurnError, Why};
pub use state::{CodecError, State};
pub use store::aside::SetAside;
pub use store::conflicts::Conflict;
pub use store::copy::ShardCopy;
pub use store::core::{Acks, HostConfig, Unreadable, UnreadableReason};
pub use store::merge::{MergeError, Merged};
pub use store::record::RecordError;
pub use store::shard::ShardStats;
pub use store::tracking::Lag;
pub use turn::{StampEtag, etag};
pub use upgrade::{Upgrade, UpgradeSender, Upgraded};

pub use stead_shared::border::headers::REPLAYED;
pub use stead_shared::wire::http::{RequestMeta, ResponseMeta};
