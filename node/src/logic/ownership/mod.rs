//! Which shards this node serves, and how that changes.
//!
//! One machine for the whole node: events in, actions out; it knows no clock, socket or session.
//!
//! # A shard at its owner
//!
//! | state | gate | claim in own log | leaves by |
//! |---|---|---|---|
//! | (none) | closed | no | genesis, a grant |
//! | `Serving(e)` | open | e | seal; a higher claim of somebody else (yield) |
//! | `Sealed(e)` | closed | e | abort: `Serving(e.counter + 1, self)`; grant recorded |
//! | `Granted(e → e+1)` | closed | e | claim ≥ e+1 seen, or told of; target dead: `Serving(e.counter + 2, self)` |
//!
//! The claim at `e` stays in the log until the target's is seen, so that nobody takes the shard
//! for unclaimed in between; the epoch in the request decides who is asked (R9). Of a target that
//! was served by the grant and has handed the shard on there may be no claim left to see: it
//! answers `Served`, which is the word of the claim that was missed, and does what that would have
//! done.
//!
//! A shard that is copied to its next owner still is `Serving`; the two machines of a handoff have
//! pages of their own: [`super::outgoing`] and [`super::incoming`].
//!
//! # Crash story
//!
//! A source that dies before its grant takes its sessions along; the target drops its copy, or
//! uses it, if it is whole, when it is the one to claim the shards. A copy whose source served on
//! after all is dropped as soon as the source's newer claim is seen. A source that dies after the
//! grant is not needed any
//! more. A target that dies before the grant costs an abort; after it, the source still has the
//! state and takes the shards back two epochs on. A node that was taken for dead and is not closes
//! its gates when it sees a higher claim, and offers its sessions to the claimant.
//!
//! # What this does not promise
//!
//! One owner at a time while live members cannot hear each other: gossip is the arbiter of death.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use stead_shared::claims::{Applied, Book, ClaimLog, ClaimRange, ClaimsUpdate};
use stead_shared::config::OnMinority;
use stead_shared::control::{
    Control, HandoffId, Holding, NotNow, ShardEpoch, ShardRange, Token, who_holds,
};
use stead_shared::id::{Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::member::{Member, MemberState, Members, Phase, Role};
use stead_shared::placement::Targets;
use stead_shared::rules::Rules;
use stead_shared::time::Time;

use super::copying::{Copying, Progress, Verdict};
use super::forming::{Forming, FormingConfig, Sight, Step};
use super::genesis::{ASK_EVERY, ASK_FOR, Query};
use super::incoming::{self, BEGIN_MAX, Incoming, KEEP_AFTER_DEATH};
use super::majority::Majority;
use super::outgoing::{
    self, Class, GRANT_EVERY, Outgoing, PREPARE_MAX, RELAY_AFTER, SEALED_MAX, Steps,
};

mod advance;
mod checks;
mod claims;
mod config;
mod doubt;
mod events;
mod members;
mod messages;
mod minority;
mod moves;
mod receiving;
mod recovery;
mod replicas;
mod sending;
mod takeover;
mod times;
mod unclaimed;

pub use config::OwnershipConfig;
pub use doubt::ALONE_AFTER;
pub use events::{Abort, Action, Event, GiveUp, Note, Took, Unfollowed};
pub use moves::Pending;

/// How balance moves wait right after the first node founded the cluster: there is nothing to
/// disturb yet.
const FOUNDING_QUIET: Duration = Duration::from_millis(50);
/// How long "right after" is.
const FOUNDING_FOR: Duration = Duration::from_secs(10);
/// How long a target is left alone whose streams are all taken.
const BUSY_FOR: Duration = Duration::from_millis(10);
/// How long a target that declined is left alone.
const DECLINED_FOR: Duration = Duration::from_millis(100);
/// How often missing claim logs are asked for.
const CLAIMS_EVERY: Duration = Duration::from_millis(200);
/// The longest time between two looks at everything.
const TICK: Duration = Duration::from_millis(100);
/// The same while something is under way.
const BUSY_TICK: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Slot {
    Serving { epoch: Epoch },
    Sealed { epoch: Epoch },
    Granted { epoch: Epoch, to: NodeBoot, next: Epoch },
}

impl Slot {
    /// Whether the shard was granted to this target, whose claim was not seen yet.
    fn is_granted_to(self, target: NodeBoot) -> bool {
        match self {
            Self::Granted { to, .. } => to == target,
            Self::Serving { .. } | Self::Sealed { .. } => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Joining,
    Ready,
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Death {
    since: Time,
    confirmed: bool,
    /// It was taken into account as that of a node.
    counted: bool,
}

/// The digest of a question that asks for no right to claim what nobody holds.
const NO_CLAIM: u64 = 0;
/// The token of a newcomer's question after counters.
const JOIN_TOKEN: Token = 0;
/// How long a founder waits for counters that others remember.
const COUNTERS_MAX: Duration = Duration::from_millis(300);
/// Most shards for which debug builds check all invariants after each event.
const CHECKED_MAX: u32 = 1024;
/// The first version of the link's protocol whose targets take a copy while its source serves.
const COPIES_SINCE: u8 = 2;
/// The first version of the link's protocol whose sources know [`Control::Served`].
const SERVED_SINCE: u8 = 2;

/// The machine. See the module's page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ownership {
    config: OwnershipConfig,
    now: Time,
    started: Time,
    stage: Stage,
    forming: Forming,
    founded_at: Option<Time>,
    members: Arc<Members>,
    targets: Arc<Targets>,
    digest: u64,
    digest_since: Time,
    log: ClaimLog,
    book: Book,
    slots: BTreeMap<ShardId, Slot>,
    /// The highest counter at which this process ever served each shard.
    served: BTreeMap<ShardId, u64>,
    /// The counters at which shards may have been granted here that have arrived: what is served of them
    /// from something else is served above.
    arrived: BTreeMap<ShardId, u64>,
    outgoing: BTreeMap<u64, Outgoing>,
    incoming: BTreeMap<HandoffId, Incoming>,
    query: Option<Query>,
    doubt: Option<doubt::Doubt>,
    majority: Majority,
    was_minority: bool,
    /// Nobody was heard for so long that this node is taken for isolated, nor since.
    is_alone: bool,
    deaths: BTreeMap<NodeBoot, Death>,
    suspects: BTreeMap<NodeId, Time>,
    /// With the version of the protocol that both speak.
    connected: BTreeMap<NodeId, (NodeBoot, u8)>,
    asked_claims: BTreeMap<NodeId, Time>,
    /// Until when targets are left alone that declined.
    declined: BTreeMap<NodeId, Time>,
    sizes: BTreeMap<ShardId, u64>,
    /// Until when shards are not moved for balance that came for it.
    stays: BTreeMap<ShardId, Time>,
    /// Until when shards are left alone that were too hot to move.
    hot: BTreeMap<ShardId, Time>,
    recent_deaths: Vec<Time>,
    frozen_since: Option<Time>,
    waiting: moves::Waiting,
    /// Shards that replicas are being filled with, or asked to follow with.
    filling: BTreeMap<NodeBoot, BTreeSet<ShardId>>,
    /// Until when replicas are left alone that did not acknowledge.
    shunned: BTreeMap<NodeBoot, Time>,
    /// Shards of which a fill was refused there, and until when none is tried.
    refused_fills: BTreeMap<(ShardId, NodeBoot), Time>,
    leaving_sets: Vec<replicas::Leaving>,
    /// Replicas that do not follow since they know of these epochs, which are higher.
    outranked: BTreeMap<(ShardId, NodeBoot), Epoch>,
    n_under: usize,
    /// Copies of others' shards.
    copies: BTreeMap<ShardId, takeover::HeldCopy>,
    /// How far somebody knows the logs of dead owners of which less is known here.
    told_of: BTreeMap<NodeBoot, u64>,
    /// By the dead owner.
    takeovers: BTreeMap<NodeBoot, takeover::TakeOver>,
    /// Whom this newcomer has asked for the counters that they remember, when last, and whether
    /// they have answered.
    counters_of: BTreeMap<NodeId, (Time, bool)>,
    /// It was decided to found, alone or not: when that happens even if not all have answered.
    founds_by: Option<(Time, bool)>,
    recovery: recovery::Recovery,
    next_number: u64,
    next_token: Token,
    recheck: bool,
    /// When all shards were last looked at.
    rechecked: Time,
    recheck_at: Option<Time>,
    drained: bool,
}

impl Ownership {
    /// A node that has just started.
    #[must_use]
    pub fn new(
        config: OwnershipConfig,
        members: Arc<Members>,
        targets: Arc<Targets>,
        now: Time,
    ) -> Self {
        let me = config.me;
        let n_shards = config.n_shards;
        let mut book = Book::new(n_shards);
        let log = ClaimLog::new(me);
        let _ = book.apply(&log.full());
        Self {
            forming: Forming::new(config.forming, now),
            majority: Majority::new(config.settles_after, now),
            was_minority: false,
            is_alone: false,
            config,
            now,
            started: now,
            stage: Stage::Joining,
            founded_at: None,
            members,
            targets,
            digest: 0,
            digest_since: now,
            log,
            book,
            slots: BTreeMap::new(),
            served: BTreeMap::new(),
            arrived: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            query: None,
            doubt: None,
            deaths: BTreeMap::new(),
            suspects: BTreeMap::new(),
            connected: BTreeMap::new(),
            asked_claims: BTreeMap::new(),
            declined: BTreeMap::new(),
            sizes: BTreeMap::new(),
            stays: BTreeMap::new(),
            hot: BTreeMap::new(),
            recent_deaths: Vec::new(),
            frozen_since: None,
            waiting: moves::Waiting::default(),
            filling: BTreeMap::new(),
            shunned: BTreeMap::new(),
            refused_fills: BTreeMap::new(),
            leaving_sets: Vec::new(),
            outranked: BTreeMap::new(),
            n_under: 0,
            copies: BTreeMap::new(),
            told_of: BTreeMap::new(),
            takeovers: BTreeMap::new(),
            counters_of: BTreeMap::new(),
            founds_by: None,
            recovery: recovery::Recovery::default(),
            next_number: 1,
            next_token: 1,
            recheck: true,
            rechecked: Time::ZERO,
            recheck_at: None,
            drained: false,
        }
    }

    /// The claims of everybody, for routing.
    #[must_use]
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Position and checksum of the own claim log, for comparison.
    #[must_use]
    pub fn heartbeat(&self) -> ClaimsUpdate {
        self.log.heartbeat()
    }

    /// Number of shards that this node serves or moves.
    #[must_use]
    pub fn n_owned(&self) -> usize {
        self.slots.len()
    }

    /// Number of shards that are between two owners here.
    #[must_use]
    pub fn n_moving(&self) -> usize {
        let moving = |slot: &&Slot| match slot {
            Slot::Serving { .. } => false,
            Slot::Sealed { .. } | Slot::Granted { .. } => true,
        };
        self.slots.values().filter(moving).count()
    }

    /// The shards that this node serves, and their epochs.
    pub fn serving(&self) -> impl Iterator<Item = ShardEpoch> + '_ {
        self.slots.iter().filter_map(|(&shard, slot)| match *slot {
            Slot::Serving { epoch } => Some(ShardEpoch { shard, epoch }),
            Slot::Sealed { .. } | Slot::Granted { .. } => None,
        })
    }

    /// The newest claim that this node knows for `shard`, its own grants included.
    #[must_use]
    pub fn newest(&self, shard: ShardId) -> Option<Epoch> {
        let booked = self.book.get(shard).map(|(epoch, _)| epoch);
        match self.slots.get(&shard) {
            Some(Slot::Granted { next, .. }) => booked.max(Some(*next)),
            Some(Slot::Serving { .. } | Slot::Sealed { .. }) | None => booked,
        }
    }

    /// Grants under way: where requests of these shards should go.
    pub fn granted(&self) -> impl Iterator<Item = ShardEpoch> + '_ {
        self.slots.iter().filter_map(|(&shard, slot)| match *slot {
            Slot::Granted { next, .. } => Some(ShardEpoch { shard, epoch: next }),
            Slot::Serving { .. } | Slot::Sealed { .. } => None,
        })
    }

    /// When to call [`Self::handle`] with [`Event::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Time {
        let busy = self.stage == Stage::Joining
            || self.outgoing.values().any(|handoff| handoff.is_sealed())
            || self.query.is_some()
            || self.doubt.is_some()
            || !self.takeovers.is_empty()
            || !self.leaving_sets.is_empty()
            || self.is_recovering()
            || (self.stage == Stage::Leaving && !self.drained);
        let tick = self.now + if busy { BUSY_TICK } else { TICK };
        self.recheck_at.map_or(tick, |at| tick.min(at.max(self.now)))
    }

    /// Takes one event in, then looks at everything that may follow from it.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.on_event(event, out);
        self.review_majority(out);
        self.advance(out);
        self.commit(out);
        self.settle_sets(out);
        // Looks at every shard: too much after each event where there are many.
        if cfg!(debug_assertions) && self.config.n_shards <= CHECKED_MAX {
            self.check_invariants();
        }
    }

    fn on_event(&mut self, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Members { members, targets, digest } => {
                self.on_members(members, targets, digest, out);
            }
            Event::Died { who, confirmed } => self.on_died(who, confirmed),
            Event::Connected { peer, protocol } => {
                self.hears();
                self.on_connected(peer, protocol, out);
            }
            Event::Disconnected(node) => {
                self.connected.remove(&node);
            }
            Event::Claims(update) => {
                self.hears();
                self.on_claims(&update, out);
            }
            Event::ClaimsWanted(to) => out.push(Action::SendClaims { to, update: self.log.full() }),
            Event::Control { from, message } => {
                self.hears();
                self.on_control(from, message, out);
            }
            Event::Copied { handoff, progress } => self.on_copied(handoff, progress, out),
            Event::Sealed(id) => self.on_sealed(id, out),
            Event::SendFailed(id) => self.on_send_failed(id, out),
            Event::Receiving(id) => self.on_receiving(id, out),
            Event::Received(id) => self.on_received(id, out),
            Event::ReceiveFailed(id) => self.on_receive_failed(id, out),
            Event::Sizes(sizes) => self.sizes = sizes,
            Event::Filled { to, shards } => self.on_filled(to, &shards, out),
            Event::FollowerLost { to, shards } => self.on_follower_lost(to, &shards, out),
            Event::FollowerSilent(to) => self.on_follower_silent(to, out),
            Event::CopyReplaced { owner, shards } => self.on_replaced(owner, shards, out),
            Event::CopyBegun { owner, shards } => self.on_copy(owner, &shards, false, out),
            Event::CopyComplete { owner, shards } => self.on_copy(owner, &shards, true, out),
            Event::NotOpened(shards) => self.on_not_opened(&shards),
            Event::Offered(shards) => self.on_offered(&shards),
            Event::Doubt(number) => self.on_doubt(number, out),
            Event::Heard(number) => self.on_heard(number),
            Event::Forget(node) => self.on_forget(node),
            Event::Drain => self.stage = Stage::Leaving,
        }
    }
}
