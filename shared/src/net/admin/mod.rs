//! The admin listener of every process: metrics, health, members, shards, drain.
//!
//! | Path | Answer |
//! |---|---|
//! | `GET /metrics` | the Prometheus text that the given closure renders |
//! | `GET /healthz` | 200 while the process answers at all |
//! | `GET /readyz` | 200, or 503 with the reason |
//! | `GET /v1/members` | [`MembersReport`] |
//! | `POST /v1/members/{name}/forget` | [`ForgetReport`]; a dead node does not count for a majority any more |
//! | `GET /v1/conflicts` | [`ConflictsReport`] of this process |
//! | `GET /v1/shards` | [`ShardsReport`] |
//! | `GET /v1/where?key=K` | [`WhereReport`] |
//! | `GET /v1/shards/{id}` | the same of a shard |
//! | `POST /v1/shards/{id}/move?to=NODE[&for=24h]` | 202 and the [`PinReport`]; the shard goes there by itself |
//! | `DELETE /v1/shards/{id}/pin` | 202; the shard goes back by itself |
//! | `GET /v1/pins` | [`PinsReport`] |
//! | `GET /v1/moves` | [`ClusterMoves`] |
//! | `POST /v1/drain[?node=NAME]` | 202; the drain goes on by itself |
//! | `GET /v1/drain[?node=NAME]` | [`DrainReport`] |
//!
//! GETs are open to whoever reaches the listener. POSTs and DELETEs need to come from loopback with the
//! header `stead-admin: 1`, or to bring the [`AdminToken`]. Errors are problem documents
//! (RFC 9457). The listener is bounded in connections, in time per request and in header bytes,
//! and runs apart from the request path.

mod auth;
mod cluster;
mod placing;
mod report;
mod serve;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use auth::{AdminToken, TokenError};
pub use cluster::{ClusterAdmin, Local, shard_count_of, shards_report, where_report};
pub use placing::{PlaceError, pins_report};
pub use report::{
    ClusterMoves, ConflictReport, ConflictsReport, DrainReport, DrainState, ForgetReport,
    MajorityReport, MemberReport, MembersReport, Mode, MovesReport, PendingMoves, PinReport,
    PinsReport, Problem, PromisesReport, ShardsReport, WhereReport,
};
pub use serve::serve;

use crate::id::SessionKey;

/// Renders all metrics in the Prometheus text format.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// An answer that may take a while. Given up after 10 seconds.
pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the admin listener shows and starts; implemented by the node and by the router.
///
/// The plain functions read a snapshot and return at once.
pub trait AdminSource: Send + Sync + 'static {
    /// Whether this process should be sent requests.
    fn ready(&self) -> Readiness;

    /// The members known here.
    fn members(&self) -> MembersReport;

    /// Counts the node called `name`, which is gone for ever, no more for a majority: here, and at
    /// every node that can be reached.
    fn forget(&self, name: String) -> Later<Result<ForgetReport, ForgetError>>;

    /// Values that lost to others when two histories of their sessions met here.
    fn conflicts(&self) -> ConflictsReport;

    /// Who serves how many shards.
    fn shards(&self) -> ShardsReport;

    /// Where the session `key` is, or `None` as long as the number of shards is not known here.
    fn where_is(&self, key: &SessionKey) -> Option<WhereReport>;

    /// The home of a shard.
    ///
    /// # Errors
    /// [`PlaceError`].
    fn shard(&self, shard: u32) -> Result<WhereReport, PlaceError>;

    /// The pins in force.
    fn pins(&self) -> PinsReport;

    /// Pins a shard by hand to the node called `to`, for `keep`; it moves there by itself.
    fn move_shard(
        &self,
        shard: u32,
        to: String,
        keep: Duration,
    ) -> Later<Result<PinReport, PlaceError>>;

    /// Takes the pin of a shard away; it goes back by itself.
    fn unpin(&self, shard: u32) -> Later<Result<(), PlaceError>>;

    /// What is moving in the whole cluster.
    fn moves(&self) -> Later<ClusterMoves>;

    /// Starts a drain of the node called `node`, or of this process. Starting it again changes
    /// nothing and is no error.
    fn drain(&self, node: Option<String>) -> Later<Result<(), DrainError>>;

    /// How far the drain of the node called `node`, or of this process, is.
    fn drain_progress(&self, node: Option<String>) -> Later<Result<DrainReport, DrainError>>;
}

/// Whether a process should be sent requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// Yes, and a human should know this.
    Warning(String),
    /// No, because of this.
    NotReady(String),
}

/// A node that was not forgotten. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForgetError {
    /// It may come back, and serve.
    #[error("`{0}` is alive; hand its shards off with `stead drain {0}`, and it counts no more")]
    Alive(String),
}

/// A drain that did not start, or whose progress is not known. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrainError {
    /// No live member has that name. A retry does not help.
    #[error("no live node is called `{0}`; `stead status` lists the members")]
    UnknownNode(String),
    /// A router owns nothing. A retry does not help.
    #[error("`{0}` is a router: it owns nothing to hand off; name a node")]
    NotANode(String),
    /// The node did not answer. A retry may help.
    #[error("`{node}` did not answer: {reason}")]
    Unreachable {
        /// The node.
        node: String,
        /// What happened.
        reason: String,
    },
}

/// What the listener needs.
#[derive(Clone)]
pub struct Admin {
    /// Where the answers come from.
    pub source: Arc<dyn AdminSource>,
    /// Renders `/metrics`.
    pub metrics: Render,
    /// Allows POSTs from outside loopback, where given.
    pub token: Option<AdminToken>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("token", &self.token).finish_non_exhaustive()
    }
}
