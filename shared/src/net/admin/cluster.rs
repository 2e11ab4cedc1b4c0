//! The admin interface of a process that knows the cluster: the same for nodes and routers but
//! for what [`Local`] says of the process itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::net::watch;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::{
    AdminSource, ClusterMoves, ConflictsReport, DrainError, DrainReport, ForgetError, ForgetReport,
    Later, MajorityReport, MembersReport, MovesReport, PinReport, PinsReport, PlaceError,
    PromisesReport, Readiness, ShardsReport, WhereReport, placing,
};
use crate::control::kind;
use crate::hash::ShardCount;
use crate::id::{NodeId, SessionKey, ShardId};
use crate::member::{Member, Members, Role};
use crate::net::link::Links;
use crate::net::pinning::PinDesk;
use crate::view::View;

/// How long another node may take to answer.
const CALL_MAX: Duration = Duration::from_secs(3);

/// What a process says of itself.
pub trait Local: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> String;
    /// Whether it should be sent requests.
    fn ready(&self) -> Readiness;
    /// Shards that are between two owners here.
    fn moving(&self) -> u32;
    /// What is moving here; nothing where nothing is owned.
    fn moves(&self) -> MovesReport {
        MovesReport::default()
    }
    /// How much of the cluster it is with; none where nothing is owned.
    fn majority(&self) -> Option<MajorityReport> {
        None
    }
    /// What it promises of its shards; none where nothing is owned.
    fn promises(&self) -> Option<PromisesReport> {
        None
    }
    /// Counts a node no more. False when it counts none: it owns nothing.
    fn forget(&self, _node: NodeId) -> bool {
        false
    }
    /// Shards whose requests are refused here, since what the disk holds of them is damaged.
    fn quarantined(&self) -> Vec<u32> {
        Vec::new()
    }
    /// Values that lost to others when two histories met here; none where nothing is owned.
    fn conflicts(&self) -> ConflictsReport {
        ConflictsReport::default()
    }
    /// Starts its drain. False when it has none: it owns nothing.
    fn drain(&self) -> bool;
    /// How far that is; none when it owns nothing.
    fn drain_report(&self) -> Option<DrainReport>;
}

/// Answers from a process's newest view.
pub struct ClusterAdmin {
    /// Everybody; known before the number of shards is.
    pub members: watch::Receiver<Arc<Members>>,
    /// The newest view; none until the number of shards is known.
    pub view: Arc<dyn Fn() -> Option<Arc<View>> + Send + Sync>,
    /// Ways to other members.
    pub links: Links,
    /// The pins.
    pub pins: PinDesk,
    /// The process itself.
    pub local: Arc<dyn Local>,
}

impl std::fmt::Debug for ClusterAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterAdmin").finish_non_exhaustive()
    }
}

/// Names of members by id.
pub(super) fn names(members: &Members) -> BTreeMap<NodeId, String> {
    members.list.iter().map(|member| (member.id, member.name())).collect()
}

/// Who serves how many shards in `view`, and which of them `view.members.me` does.
#[must_use]
pub fn shards_report(view: &View, moving: u32) -> ShardsReport {
    let names = names(&view.members);
    let name = |node: NodeId| names.get(&node).cloned().unwrap_or_else(|| node.to_string());
    let live_nodes = view.members.list.iter().filter(|member| member.is_live_node());
    let mut by_node: BTreeMap<String, u32> = live_nodes.map(|member| (member.name(), 0)).collect();
    let n_shards = view.params.shards;
    let mut unowned = 0;
    let mut owned = Vec::new();
    for shard in n_shards.all() {
        match view.live_claim(shard) {
            Some((_, owner)) => {
                *by_node.entry(name(owner.node)).or_default() += 1;
                if owner.node == view.members.me {
                    owned.push(shard.0);
                }
            }
            None => unowned += 1,
        }
    }
    let targets =
        view.targets.counts().into_iter().map(|(node, count)| (name(node), count)).collect();
    let shards = n_shards.get();
    let under_replicated = view.under_replicated();
    let quarantined = Vec::new();
    ShardsReport { shards, by_node, unowned, moving, under_replicated, targets, owned, quarantined }
}

/// Where `shard` is in `view`, but for its pin.
#[must_use]
pub fn where_report(view: &View, shard: ShardId) -> WhereReport {
    let claim = view.live_claim(shard);
    let name =
        |node: NodeId| view.members.find(node).map_or_else(|| node.to_string(), Member::name);
    let owner = claim.map(|(_, owner)| name(owner.node));
    let epoch = claim.map(|(epoch, _)| epoch.to_string());
    let replicas = view.live_replicas(shard).map(|boot| name(boot.node)).collect();
    WhereReport { shard: shard.0, owner, epoch, replicas, pin: None }
}

/// The number of shards that live nodes were configured with, as their cards say.
#[must_use]
pub fn shard_count_of(members: &Members) -> Option<ShardCount> {
    let nodes = members.list.iter().filter(|member| member.is_live_node());
    nodes
        .filter_map(|member| member.card.as_deref())
        .find_map(|card| ShardCount::new(card.n_shards).ok())
}

impl ClusterAdmin {
    fn find(&self, name: &str) -> Result<Member, DrainError> {
        let members = self.members.borrow();
        let found = members.list.iter().find(|m| m.state.is_live() && m.name() == name);
        match found {
            None => Err(DrainError::UnknownNode(name.to_owned())),
            Some(member) if member.role == Role::Router => {
                Err(DrainError::NotANode(name.to_owned()))
            }
            Some(member) => Ok(member.clone()),
        }
    }

    /// Asks another node.
    fn ask(&self, name: String, kind: u8) -> Later<Result<Bytes, DrainError>> {
        let (found, links) = (self.find(&name), self.links.clone());
        Box::pin(async move {
            let member = found?;
            let unreachable =
                |reason: String| DrainError::Unreachable { node: name.clone(), reason };
            let link = links.to(member.id, Some(member.boot), member.gossip).await;
            let link = link.map_err(|error| unreachable(error.to_string()))?;
            let answer = link.call(kind, Bytes::new(), CALL_MAX).await;
            answer.map_err(|error| unreachable(error.to_string()))
        })
    }

    fn is_me(&self, node: Option<&String>) -> bool {
        node.is_none_or(|name| *name == self.local.name())
    }
}

/// Tells a node that another one is gone for ever. Its name, and whether it has taken note.
async fn tell_forget(links: Links, to: Member, node: NodeId) -> (String, bool) {
    let told = async {
        let link = links.to(to.id, Some(to.boot), to.gossip).await.ok()?;
        let payload = Bytes::copy_from_slice(&node.0.to_le_bytes());
        link.call(kind::FORGET, payload, CALL_MAX).await.ok()
    };
    let is_told = matches!(tokio::time::timeout(CALL_MAX, told).await, Ok(Some(_)));
    (to.name(), is_told)
}

impl AdminSource for ClusterAdmin {
    fn ready(&self) -> Readiness {
        self.local.ready()
    }

    fn members(&self) -> MembersReport {
        let digest = (self.view)().map_or(0, |view| view.members_digest);
        let majority = self.local.majority();
        let promises = self.local.promises();
        MembersReport { majority, promises, ..MembersReport::of(&self.members.borrow(), digest) }
    }

    fn conflicts(&self) -> ConflictsReport {
        self.local.conflicts()
    }

    fn forget(&self, name: String) -> Later<Result<ForgetReport, ForgetError>> {
        let members = Arc::clone(&self.members.borrow());
        if members.list.iter().any(|member| member.state.is_live() && member.name() == name) {
            return Box::pin(async move { Err(ForgetError::Alive(name)) });
        }
        let node = NodeId::of_name(&name);
        let mut report = ForgetReport::default();
        if self.local.forget(node) {
            report.told.push(self.local.name());
        }
        let links = self.links.clone();
        Box::pin(async move {
            let peers = members.live_peers().filter(|peer| peer.role == Role::Node);
            let calls = peers.map(|peer| tell_forget(links.clone(), peer.clone(), node));
            let mut calls: JoinSet<(String, bool)> = calls.collect();
            while let Some(Ok((name, is_told))) = calls.join_next().await {
                if is_told { &mut report.told } else { &mut report.unreached }.push(name);
            }
            report.told.sort();
            report.unreached.sort();
            Ok(report)
        })
    }

    fn shards(&self) -> ShardsReport {
        let Some(view) = (self.view)() else { return ShardsReport::default() };
        let quarantined = self.local.quarantined();
        ShardsReport { quarantined, ..shards_report(&view, self.local.moving()) }
    }

    fn where_is(&self, key: &SessionKey) -> Option<WhereReport> {
        let view = (self.view)()?;
        Some(self.home(&view, view.params.shard_of(key)))
    }

    fn shard(&self, shard: u32) -> Result<WhereReport, PlaceError> {
        let (view, shard) = self.known_shard(shard)?;
        Ok(self.home(&view, shard))
    }

    fn pins(&self) -> PinsReport {
        placing::pins_report(&self.members.borrow(), &self.pins.book())
    }

    fn move_shard(
        &self,
        shard: u32,
        to: String,
        keep: Duration,
    ) -> Later<Result<PinReport, PlaceError>> {
        self.pin_by_hand(shard, &to, keep)
    }

    fn unpin(&self, shard: u32) -> Later<Result<(), PlaceError>> {
        self.unpin_by_hand(shard)
    }

    fn moves(&self) -> Later<ClusterMoves> {
        self.ask_moves()
    }

    fn drain(&self, node: Option<String>) -> Later<Result<(), DrainError>> {
        if self.is_me(node.as_ref()) {
            let started = self.local.drain();
            let name = self.local.name();
            return Box::pin(async move {
                if started { Ok(()) } else { Err(DrainError::NotANode(name)) }
            });
        }
        let asked = self.ask(node.unwrap_or_default(), kind::DRAIN);
        Box::pin(async move { asked.await.map(|_| ()) })
    }

    fn drain_progress(&self, node: Option<String>) -> Later<Result<DrainReport, DrainError>> {
        if self.is_me(node.as_ref()) {
            let (report, name) = (self.local.drain_report(), self.local.name());
            return Box::pin(async move { report.ok_or(DrainError::NotANode(name)) });
        }
        let name = node.unwrap_or_default();
        let asked = self.ask(name.clone(), kind::DRAIN_PROGRESS);
        Box::pin(async move {
            let answer = asked.await?;
            serde_json::from_slice(&answer).map_err(|error| DrainError::Unreachable {
                node: name,
                reason: format!("its answer cannot be read: {error}"),
            })
        })
    }
}
