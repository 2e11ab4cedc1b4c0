//! What may happen in a run, and how often.

use stead_node::logic::ownership::Event;
use stead_shared::id::NodeBoot;
use stead_shared::rules::Rules;

/// How often each thing may yet happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Changes by clients.
    pub(crate) writes: u8,
    /// Placement wants the shard at the next node.
    pub(crate) moves: u8,
    /// A node is told to leave.
    pub(crate) drains: u8,
    /// A process dies.
    pub(crate) kills: u8,
    /// A node that died is started again.
    pub(crate) restarts: u8,
    /// The others take a node for dead that is not.
    pub(crate) slanders: u8,
    /// The stream of a copy breaks, or changes come too fast for it.
    pub(crate) breaks: u8,
    /// A message arrives twice.
    pub(crate) repeats: u8,
    /// Claims do not arrive, but later ones do.
    pub(crate) losses: u8,
    /// The connection to a copy is cut.
    pub(crate) cuts: u8,
    /// A copy acknowledges nothing for too long.
    pub(crate) silences: u8,
}

/// What the machines have come to before the scenario begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The first node serves, and every copy is there that is wanted.
    Settled,
    /// The first node serves, and is about to fill the first copy.
    Unfilled,
    /// Who has a copy was taken for dead, and does not know yet that another one is named instead
    /// of it; nobody else knows yet that it lives.
    Replaced,
}

/// A configuration of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) budget: Budget,
    /// Most handoffs that one node begins.
    pub(crate) handoffs: u64,
    /// Most questions that one node asks of everybody.
    pub(crate) questions: u64,
    /// The highest epoch.
    pub(crate) epochs: u64,
    /// Copies beside the owner's that are wanted.
    pub(crate) replicas: u8,
    pub(crate) start: Start,
    pub(crate) rules: Rules,
}

impl Scenario {
    /// A link to somebody is there. Nodes that know nothing of copies are met where there are none.
    pub(crate) fn connected(&self, peer: NodeBoot) -> Event {
        let protocol = if self.replicas == 0 { 2 } else { 3 };
        Event::Connected { peer, protocol }
    }
}

const WRITE: Budget = Budget {
    writes: 1,
    moves: 0,
    drains: 0,
    kills: 0,
    restarts: 0,
    slanders: 0,
    breaks: 0,
    repeats: 0,
    losses: 0,
    cuts: 0,
    silences: 0,
};

/// The shard moves once for balance, and one message comes twice.
pub(crate) const MOVE: Scenario = Scenario {
    name: "move",
    budget: Budget { moves: 1, repeats: 1, ..WRITE },
    handoffs: 1,
    questions: 1,
    epochs: 3,
    replicas: 0,
    start: Start::Settled,
    rules: Rules::ALL,
};

/// Placement changes its mind twice; claims are lost.
pub(crate) const MOVES: Scenario = Scenario {
    name: "moves",
    budget: Budget { moves: 2, losses: 1, ..WRITE },
    handoffs: 2,
    questions: 2,
    epochs: 5,
    replicas: 0,
    start: Start::Settled,
    rules: Rules::ALL,
};

/// A node leaves; streams break.
pub(crate) const DRAIN: Scenario = Scenario {
    name: "drain",
    budget: Budget { writes: 2, drains: 1, breaks: 1, ..WRITE },
    handoffs: 2,
    questions: 2,
    epochs: 5,
    replicas: 0,
    start: Start::Settled,
    rules: Rules::ALL,
};

/// A process dies, and is started again.
pub(crate) const DEATH: Scenario = Scenario {
    name: "death",
    budget: Budget { kills: 1, restarts: 1, ..WRITE },
    handoffs: 2,
    questions: 2,
    epochs: 5,
    replicas: 0,
    start: Start::Settled,
    rules: Rules::ALL,
};

/// The same while the shard moves.
pub(crate) const DEATH_IN_MOVE: Scenario = Scenario {
    name: "death in a move",
    budget: Budget { moves: 1, kills: 1, restarts: 1, ..WRITE },
    ..DEATH
};

/// The others take a node for dead that is not, and learn better.
pub(crate) const SLANDER: Scenario =
    Scenario { name: "false death", budget: Budget { slanders: 1, ..WRITE }, ..DEATH };

/// The same while the shard moves.
pub(crate) const SLANDER_IN_MOVE: Scenario = Scenario {
    name: "false death in a move",
    budget: Budget { moves: 1, slanders: 1, ..WRITE },
    ..DEATH
};

/// An owner with one copy dies; connections to copies are cut.
pub(crate) const COPY: Scenario = Scenario {
    name: "copy",
    budget: Budget { writes: 2, kills: 1, cuts: 1, ..WRITE },
    replicas: 1,
    ..DEATH
};

/// A copy is silent, and leaves the claim.
pub(crate) const SILENT_COPY: Scenario =
    Scenario { name: "silent copy", budget: Budget { kills: 1, silences: 1, ..WRITE }, ..COPY };

/// Any two processes die, one after the other, so that a copy is filled in between; or at once.
pub(crate) const LOST_COPY: Scenario =
    Scenario { name: "lost copy", budget: Budget { kills: 2, ..WRITE }, ..COPY };

/// A process dies while a copy is filled.
pub(crate) const NEW_COPY: Scenario = Scenario {
    name: "new copy",
    budget: Budget { kills: 1, cuts: 1, ..WRITE },
    start: Start::Unfilled,
    ..COPY
};

/// A process dies while the copy that a claim names is another one than somebody who has one knows.
pub(crate) const OTHER_COPY: Scenario = Scenario {
    name: "other copy",
    budget: Budget { kills: 1, ..WRITE },
    start: Start::Replaced,
    ..COPY
};

/// The same, and the copy that the claim names is silent.
pub(crate) const SILENT_OTHER: Scenario =
    Scenario { name: "silent other copy", budget: SILENT_COPY.budget, ..OTHER_COPY };

/// The others take a node for dead that is not, where there are copies.
pub(crate) const COPY_SLANDER: Scenario =
    Scenario { name: "false death, a copy", budget: Budget { slanders: 1, ..WRITE }, ..COPY };

/// A process dies while a shard with a copy moves.
pub(crate) const COPY_MOVE: Scenario =
    Scenario { name: "copy in a move", budget: Budget { moves: 1, kills: 1, ..WRITE }, ..COPY };
