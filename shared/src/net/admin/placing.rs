//! Pins and moves, as the admin interface shows and starts them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::cluster::{ClusterAdmin, names, where_report};
use super::{ClusterMoves, Later, MovesReport, PinReport, PinsReport, WhereReport};
use crate::control::kind;
use crate::id::ShardId;
use crate::member::{Member, MemberState, Members, Role};
use crate::net::link::Links;
use crate::net::pinning::{DeskClosed, unix_ms};
use crate::pins::{PinEntry, PinError, PinKind, PinOrder, Pins};
use crate::view::View;

/// How long a node may take to say what is moving.
const MOVES_MAX: Duration = Duration::from_secs(1);

/// A shard that is not pinned, or not unpinned, or not known. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// No node has been met yet. A retry may help.
    #[error("the number of shards is not known yet: no node has been met")]
    NoShards,
    /// A retry does not help.
    #[error(
        "there is no shard {shard}: shards are numbered 0 to {last}; `stead where KEY` names a session's"
    )]
    UnknownShard {
        /// What was asked for.
        shard: String,
        /// The last one.
        last: u32,
    },
    /// No live member has that name. A retry does not help.
    #[error("no live node is called `{0}`; `stead status` lists the members")]
    UnknownNode(String),
    /// A retry does not help.
    #[error("`{0}` is a router: it owns no shards; name a node")]
    NotANode(String),
    /// A retry helps once it is ready.
    #[error("`{node}` is {state}: it takes shards once `stead status` shows it ready")]
    NotReady {
        /// The node.
        node: String,
        /// What it is.
        state: String,
    },
    /// A retry does not help.
    #[error("`{0}` has weight 0: it owns nothing; start it with another --weight")]
    NoWeight(String),
    /// The pin cannot be made.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A retry does not help.
    #[error("shard {0} is not pinned; `stead pins` lists those that are")]
    NotPinned(ShardId),
    /// The process stops, or has too much to do. A retry may help.
    #[error(transparent)]
    Closed(#[from] DeskClosed),
}

fn pin_report(members: &Members, entry: &PinEntry) -> Option<PinReport> {
    let node = entry.node?;
    let name = |id| members.find(id).map_or_else(|| format!("{id}"), Member::name);
    let counts = |member: &Member| {
        member.role == Role::Node && member.in_ring && !member.held_down && member.weight > 0
    };
    Some(PinReport {
        shard: entry.shard.0,
        node: name(node),
        kind: entry.kind,
        author: name(entry.author),
        version: entry.version,
        expires_ms: entry.until_ms,
        effective: members.find(node).is_some_and(counts),
    })
}

/// The pins in force, with names of `members` where those are known.
#[must_use]
pub fn pins_report(members: &Members, book: &Pins) -> PinsReport {
    let in_force = book.in_force(unix_ms());
    PinsReport { pins: in_force.iter().filter_map(|entry| pin_report(members, entry)).collect() }
}

/// Whether a shard can be sent to this member now.
fn fit(member: &Member) -> Result<(), PlaceError> {
    let node = member.name();
    let not_ready = |state: String| PlaceError::NotReady { node: node.clone(), state };
    match member.role {
        Role::Router => Err(PlaceError::NotANode(node)),
        Role::Node if member.state != MemberState::Ready => {
            Err(not_ready(member.state.to_string()))
        }
        Role::Node if member.held_down => Err(not_ready("held down for flapping".to_owned())),
        Role::Node if member.weight == 0 => Err(PlaceError::NoWeight(node)),
        Role::Node => Ok(()),
    }
}

impl ClusterAdmin {
    /// The view and the shard in it.
    pub(super) fn known_shard(&self, shard: u32) -> Result<(Arc<View>, ShardId), PlaceError> {
        let view = (self.view)().ok_or(PlaceError::NoShards)?;
        let shards = view.params.shards;
        if shards.contains(ShardId(shard)) {
            return Ok((view, ShardId(shard)));
        }
        Err(PlaceError::UnknownShard { shard: shard.to_string(), last: shards.get() - 1 })
    }

    /// Where a shard is, and what pins it.
    pub(super) fn home(&self, view: &View, shard: ShardId) -> WhereReport {
        let entry = self.pins.book().pin_of(shard, unix_ms());
        let pin = entry.and_then(|entry| pin_report(&self.members.borrow(), &entry));
        WhereReport { pin, ..where_report(view, shard) }
    }

    fn order(&self, shard: u32, to: &str, keep: Duration) -> Result<PinOrder, PlaceError> {
        let (_, shard) = self.known_shard(shard)?;
        let members = self.members.borrow();
        let found = members.list.iter().find(|m| m.state.is_live() && m.name() == to);
        let member = found.ok_or_else(|| PlaceError::UnknownNode(to.to_owned()))?;
        fit(member)?;
        Ok(PinOrder { shard, node: member.id, kind: PinKind::Hand, keep })
    }

    pub(super) fn pin_by_hand(
        &self,
        shard: u32,
        to: &str,
        keep: Duration,
    ) -> Later<Result<PinReport, PlaceError>> {
        let order = self.order(shard, to, keep);
        let (desk, members) = (self.pins.clone(), self.members.clone());
        Box::pin(async move {
            let order = order?;
            let entry = desk.pin(order).await??;
            let report = pin_report(&members.borrow(), &entry);
            report.ok_or(PlaceError::NotPinned(order.shard))
        })
    }

    pub(super) fn unpin_by_hand(&self, shard: u32) -> Later<Result<(), PlaceError>> {
        let (known, desk) = (self.known_shard(shard), self.pins.clone());
        Box::pin(async move {
            let (_, shard) = known?;
            if desk.unpin(shard).await? { Ok(()) } else { Err(PlaceError::NotPinned(shard)) }
        })
    }

    /// Asks every live node, all at once.
    pub(super) fn ask_moves(&self) -> Later<ClusterMoves> {
        let members = Arc::clone(&self.members.borrow());
        let is_node = members.my_self().is_some_and(|me| me.role == Role::Node);
        let mine = is_node.then(|| (self.local.name(), Some(self.local.moves())));
        let links = self.links.clone();
        Box::pin(async move {
            let mut asked = JoinSet::new();
            for node in members.live_peers().filter(|member| member.is_live_node()) {
                asked.spawn(moves_of(links.clone(), node.clone()));
            }
            let mut answers: Vec<_> = mine.into_iter().collect();
            while let Some(answer) = asked.join_next().await {
                // A task that panicked was logged where it happened; its node stays silent.
                answers.extend(answer);
            }
            added_up(&members, answers)
        })
    }
}

async fn moves_of(links: Links, node: Member) -> (String, Option<MovesReport>) {
    let ask = async {
        let link = links.to(node.id, Some(node.boot), node.gossip).await.ok()?;
        let answer = link.call(kind::MOVES, Bytes::new(), MOVES_MAX).await.ok()?;
        serde_json::from_slice(&answer).ok()
    };
    let answer = tokio::time::timeout(MOVES_MAX, ask).await;
    (node.name(), answer.ok().flatten())
}

fn added_up(members: &Members, answers: Vec<(String, Option<MovesReport>)>) -> ClusterMoves {
    let nodes = members.list.iter().filter(|member| member.is_live_node()).map(|member| member.id);
    let names = names(members);
    let mut silent: Vec<_> = nodes.filter_map(|node| names.get(&node).cloned()).collect();
    let mut moves = ClusterMoves::default();
    for (name, report) in answers {
        let Some(report) = report else { continue };
        silent.retain(|silent| *silent != name);
        moves.total = moves.total.plus(&report);
        moves.by_node.insert(name, report);
    }
    silent.sort_unstable();
    ClusterMoves { silent, ..moves }
}

#[cfg(test)]
mod tests {
    use super::super::PendingMoves;
    use super::*;
    use crate::id::{BootId, NodeId};
    use crate::member::Phase;

    fn member(id: u64, role: Role, state: MemberState) -> Member {
        Member {
            id: NodeId(id),
            boot: BootId(1),
            role,
            phase: Phase::Ready,
            state,
            weight: 1,
            zone: 0,
            gossip: "127.0.0.1:7400".parse().unwrap(),
            in_ring: state == MemberState::Ready,
            held_down: false,
            card: None,
        }
    }

    #[test]
    fn only_a_ready_node_with_weight_takes_a_shard() {
        let ready = member(1, Role::Node, MemberState::Ready);
        assert_eq!(fit(&ready), Ok(()));
        let router = member(1, Role::Router, MemberState::Ready);
        assert_eq!(fit(&router), Err(PlaceError::NotANode(router.name())));
        for state in [MemberState::Joining, MemberState::Leaving, MemberState::Suspect] {
            let error = fit(&member(1, Role::Node, state)).unwrap_err();
            assert!(error.to_string().contains(&format!("is {state}")), "{error}");
        }
        let flapping = Member { held_down: true, ..ready.clone() };
        assert!(matches!(fit(&flapping), Err(PlaceError::NotReady { .. })));
        let light = Member { weight: 0, ..ready };
        assert_eq!(fit(&light), Err(PlaceError::NoWeight(light.name())));
    }

    #[test]
    fn a_pin_to_a_node_that_is_away_is_shown_as_without_effect() {
        let nodes = vec![
            member(1, Role::Node, MemberState::Ready),
            member(2, Role::Node, MemberState::Down),
        ];
        let members = Members { me: NodeId(1), list: nodes };
        let mut book = Pins::default();
        for (shard, node) in [(4, 1), (5, 2), (6, 3)] {
            let (shard, node, keep) = (ShardId(shard), NodeId(node), Duration::from_secs(3600));
            let order = PinOrder { shard, node, kind: PinKind::Hand, keep };
            assert!(book.pin(NodeId(1), order, unix_ms()).is_ok());
        }
        let report = pins_report(&members, &book);
        let shown: Vec<_> = report.pins.iter().map(|pin| (pin.shard, pin.effective)).collect();
        assert_eq!(shown, [(4, true), (5, false), (6, false)]);
    }

    #[test]
    fn moves_add_up_and_who_said_nothing_is_named() {
        let nodes = [1, 2, 3].map(|id| member(id, Role::Node, MemberState::Ready));
        let name = |at: usize| nodes[at].name();
        let members = Members { me: NodeId(1), list: nodes.to_vec() };
        let one = MovesReport {
            moving: 1,
            copying: 2,
            pending: PendingMoves { takeover: 3, drain: 4, balance: 5 },
            bytes_left: 6,
            bytes_per_second: 7,
            frozen: false,
        };
        let two = MovesReport { moving: 10, frozen: true, ..MovesReport::default() };
        let answers = vec![(name(0), Some(one)), (name(1), Some(two)), (name(2), None)];
        let moves = added_up(&members, answers);
        assert_eq!(moves.total, MovesReport { moving: 11, frozen: true, ..one });
        assert_eq!(moves.total.remaining(), 25);
        assert_eq!(moves.by_node.len(), 2);
        assert_eq!(moves.silent, [name(2)]);
    }
}
