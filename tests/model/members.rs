//! The membership: a list of views that each process looks at in order, in its own time.

use std::net::SocketAddr;
use std::sync::Arc;

use stead_node::logic::ownership::Event;
use stead_shared::hash::ShardCount;
use stead_shared::id::{BootId, NodeBoot, NodeId};
use stead_shared::member::{Member, MemberState, Members, Phase, Role};
use stead_shared::placement::{Pin, PlacementInput, PlacementNode, Targets, place};

use super::node::SHARD;

/// Number of nodes.
pub(crate) const NODES: usize = 3;

/// What gossip tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct View {
    pub(crate) nodes: [(BootId, MemberState); NODES],
    /// Placement wants the shard here, or at the next ready node.
    pub(crate) preferred: usize,
}

pub(crate) fn id_of(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

pub(crate) fn index_of(id: NodeId) -> usize {
    id.0 as usize - 1
}

impl View {
    /// Everybody ready, the shard at the first.
    pub(crate) const FIRST: Self =
        Self { nodes: [(BootId(1), MemberState::Ready); NODES], preferred: 0 };

    pub(crate) fn who(&self, node: usize) -> NodeBoot {
        NodeBoot { node: id_of(node), boot: self.nodes[node].0 }
    }

    /// The same with another state of one node.
    pub(crate) fn with(mut self, node: usize, state: MemberState) -> Self {
        self.nodes[node].1 = state;
        self
    }

    /// As a node sees it that knows itself.
    pub(crate) fn seen_by(self, me: NodeBoot, phase: MemberState) -> Self {
        let mut mine = self;
        mine.nodes[index_of(me.node)] = (me.boot, phase);
        mine
    }

    pub(crate) fn is_live(&self, who: NodeBoot) -> bool {
        let (boot, state) = self.nodes[index_of(who.node)];
        boot == who.boot && state.is_live()
    }

    /// Where placement wants the shard.
    pub(crate) fn target(&self) -> Option<usize> {
        (0..NODES)
            .map(|i| (self.preferred + i) % NODES)
            .find(|node| self.nodes[*node].1 == MemberState::Ready)
    }

    /// Everything that decides the target, as one number.
    fn digest(&self) -> u64 {
        let ready = (0..NODES).filter(|node| self.nodes[*node].1 == MemberState::Ready);
        ready.map(|node| 1 << node).sum::<u64>() * 8 + self.preferred as u64
    }

    fn targets(&self, replicas: u8) -> Targets {
        let one = ShardCount::new(1).expect("a power of two");
        let node =
            |node: usize| PlacementNode { id: id_of(node), leaving: false, weight: 1, zone: 0 };
        let ready = (0..NODES).filter(|node| self.nodes[*node].1 == MemberState::Ready);
        let mut input = PlacementInput::of_nodes(one, ready.map(node).collect());
        input.replicas = replicas;
        input.pins = self
            .target()
            .map(|target| Pin { shard: SHARD, node: id_of(target), version: 1 })
            .into_iter()
            .collect();
        place(&input)
    }

    pub(crate) fn members(&self, me: NodeBoot) -> Arc<Members> {
        let list = (0..NODES).map(|node| self.member(node)).collect();
        Arc::new(Members { me: me.node, list })
    }

    fn member(&self, node: usize) -> Member {
        let (boot, state) = self.nodes[node];
        Member {
            id: id_of(node),
            boot,
            role: Role::Node,
            phase: match state {
                MemberState::Joining => Phase::Joining,
                MemberState::Leaving | MemberState::Left => Phase::Leaving,
                MemberState::Ready | MemberState::Suspect | MemberState::Down => Phase::Ready,
            },
            state,
            weight: 1,
            zone: 0,
            gossip: SocketAddr::from(([127, 0, 0, 1], 7000)),
            in_ring: state == MemberState::Ready,
            held_down: false,
            card: None,
        }
    }

    /// The news of it for one node.
    pub(crate) fn event(&self, me: NodeBoot, replicas: u8) -> Event {
        Event::Members {
            members: self.members(me),
            targets: self.target_table(replicas),
            digest: self.digest(),
        }
    }

    pub(crate) fn target_table(&self, replicas: u8) -> Arc<Targets> {
        Arc::new(self.targets(replicas))
    }
}
