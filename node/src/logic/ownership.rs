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
//! | `Granted(e → e+1)` | closed | e | claim ≥ e+1 seen; target dead: `Serving(e.counter + 2, self)` |
//!
//! The claim at `e` stays in the log until the target's is seen, so that nobody takes the shard
//! for unclaimed in between; the epoch in the request decides who is asked (R9).
//!
//! # Crash story
//!
//! A source that dies before its grant takes its sessions along; the target drops its copy, or
//! uses it when it is the one to claim the shards. One that dies after the grant is not needed any
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

use stead_shared::claims::{Applied, Book, ClaimLog, ClaimsUpdate};
use stead_shared::control::{Control, HandoffId, NotNow, ShardEpoch, ShardRange, Token, who_holds};
use stead_shared::id::{Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::member::{MemberState, Members, Role};
use stead_shared::placement::Targets;
use stead_shared::time::Time;

use super::forming::{Forming, FormingConfig, Sight, Step};
use super::genesis::{ASK_EVERY, ASK_FOR, Query};
use super::incoming::{self, Incoming, KEEP_AFTER_DEATH, RECEIVE_MAX};
use super::outgoing::{self, GRANT_EVERY, Outgoing, PREPARE_MAX, RELAY_AFTER, SEALED_MAX};

/// Rules that a test can switch off, to see that it notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// R0: ask all members before claiming what seems unclaimed.
    pub genesis_asks: bool,
    /// R0: joining nodes form by one proposal that all of them accept.
    pub forming_agrees: bool,
    /// R1: an aborted seal serves on in a new epoch.
    pub abort_raises_epoch: bool,
    /// R4: a recorded grant is never aborted.
    pub grant_is_final: bool,
    /// R4: a grant is sent again until the claim is seen.
    pub grant_is_resent: bool,
    /// R8: late and repeated messages are harmless.
    pub stale_is_ignored: bool,
}

impl Rules {
    /// All rules on: the only setting outside tests.
    pub const ALL: Self = Self {
        genesis_asks: true,
        forming_agrees: true,
        abort_raises_epoch: true,
        grant_is_final: true,
        grant_is_resent: true,
        stale_is_ignored: true,
    };
}

/// Settings of the machine.
#[derive(Clone, Debug)]
pub struct OwnershipConfig {
    /// This node and boot.
    pub me: NodeBoot,
    /// Number of shards of the cluster.
    pub n_shards: u32,
    /// How to form.
    pub forming: FormingConfig,
    /// How long the cluster may take to let this node in.
    pub join_max: Duration,
    /// How long members must not have changed before shards move for balance (R10).
    pub balance_quiet: Duration,
    /// How long a silent owner's shards wait before they are claimed empty.
    pub orphan_grace: Duration,
    /// Most shards in one handoff.
    pub batch_shards_max: usize,
    /// Most bytes of state in one handoff; a larger shard goes alone.
    pub batch_bytes_max: u64,
    /// Most handoffs at a time, out.
    pub outgoing_max: usize,
    /// Most handoffs at a time, in.
    pub incoming_max: usize,
    /// Switches for tests.
    pub rules: Rules,
}

impl OwnershipConfig {
    /// The defaults, for this node.
    #[must_use]
    pub fn new(me: NodeBoot, n_shards: u32, forming: FormingConfig) -> Self {
        Self {
            me,
            n_shards,
            forming,
            join_max: Duration::from_secs(30),
            balance_quiet: Duration::from_secs(1),
            orphan_grace: Duration::from_secs(10),
            batch_shards_max: 256,
            batch_bytes_max: 4 << 20,
            outgoing_max: 4,
            incoming_max: 16,
            rules: Rules::ALL,
        }
    }
}

/// How balance moves wait right after the first node founded the cluster: there is nothing to
/// disturb yet.
const FOUNDING_QUIET: Duration = Duration::from_millis(50);
/// How long "right after" is.
const FOUNDING_FOR: Duration = Duration::from_secs(10);
/// How long a target that declined is left alone.
const DECLINED_FOR: Duration = Duration::from_millis(100);
/// How often missing claim logs are asked for.
const CLAIMS_EVERY: Duration = Duration::from_millis(200);
/// The longest time between two looks at everything.
const TICK: Duration = Duration::from_millis(100);
/// The same while something is under way.
const BUSY_TICK: Duration = Duration::from_millis(20);

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The time of [`Ownership::deadline`] has come.
    Tick,
    /// Members, and what follows from them.
    Members {
        /// Everybody.
        members: Arc<Members>,
        /// Where shards should be.
        targets: Arc<Targets>,
        /// Digest of all that `targets` was computed from.
        digest: u64,
    },
    /// A boot is dead; `confirmed`: proven, not only silent.
    Died {
        /// Who.
        who: NodeBoot,
        /// Whether it was refused or replaced rather than silent.
        confirmed: bool,
    },
    /// A link to this member is open.
    Connected(NodeBoot),
    /// No link to this member is open any more.
    Disconnected(NodeId),
    /// A claim log, or a part of one, came in.
    Claims(ClaimsUpdate),
    /// A member wants our whole claim log.
    ClaimsWanted(NodeId),
    /// A member speaks.
    Control {
        /// Who.
        from: NodeBoot,
        /// What.
        message: Control,
    },
    /// The gates that [`Action::Seal`] closed are quiet: no turn runs behind them.
    Sealed(HandoffId),
    /// State could not be sent.
    SendFailed(HandoffId),
    /// All state of an incoming handoff is here and its checksums agree.
    Received(HandoffId),
    /// The stream of an incoming handoff broke.
    ReceiveFailed(HandoffId),
    /// Sizes of shards that hold anything; all others are empty.
    Sizes(BTreeMap<ShardId, u64>),
    /// Hand everything off.
    Drain,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell a member.
    Send {
        /// Whom.
        to: NodeId,
        /// What.
        message: Control,
    },
    /// Tell every member that a link is open to.
    PushClaims(ClaimsUpdate),
    /// Tell one member our whole log.
    SendClaims {
        /// Whom.
        to: NodeId,
        /// The log.
        update: ClaimsUpdate,
    },
    /// Ask a member for its whole log.
    AskClaims {
        /// Whom.
        to: NodeId,
    },
    /// Tell the cluster that this node is ready.
    BecomeReady,
    /// Open gates over no state.
    OpenEmpty {
        /// The shards and the epochs to serve in.
        shards: Vec<ShardEpoch>,
        /// Whether a dead owner's sessions are gone with this.
        lost: bool,
    },
    /// Close gates now, tell [`Event::Sealed`] when running turns have ended.
    Seal {
        /// The move.
        handoff: HandoffId,
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Open gates again over the state that is there.
    Reopen {
        /// The shards and the new epochs.
        shards: Vec<ShardEpoch>,
    },
    /// Stream sealed state to the target.
    SendState {
        /// The move.
        handoff: HandoffId,
        /// The target.
        to: NodeBoot,
        /// The shards, at the epochs they were served in.
        shards: Vec<ShardEpoch>,
    },
    /// Forget an incoming copy.
    DropCopy {
        /// The move.
        handoff: HandoffId,
    },
    /// Open gates over shards of an incoming copy.
    OpenCopy {
        /// The move.
        handoff: HandoffId,
        /// The shards and the epochs to serve in.
        shards: Vec<ShardEpoch>,
    },
    /// Drop state that has another owner now.
    DropState {
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Close gates: somebody else serves at a higher epoch. Offer it the sessions, then drop them.
    Yield {
        /// The owner with the higher epoch.
        to: NodeBoot,
        /// The shards and its epochs.
        shards: Vec<ShardEpoch>,
    },
    /// The claims that routing reads have changed.
    Publish,
    /// Nothing is left to hand off.
    Drained,
    /// Log this.
    Note(Note),
    /// Stop the process: the cluster did not let it in.
    GiveUp(GiveUp),
}

/// Something an operator may want to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Every shard claimed by this node, for a new cluster.
    Founded {
        /// No seed answered.
        alone: bool,
    },
    /// Ready, in a cluster that was there before.
    Joined,
    /// A handoff ended with the target's claim.
    HandedOff {
        /// The target.
        to: NodeBoot,
        /// Number of shards.
        n_shards: usize,
        /// Since `Prepare`... the seal.
        sealed_for: Duration,
    },
    /// A handoff was aborted.
    Aborted {
        /// The target.
        to: NodeBoot,
        /// Number of shards.
        n_shards: usize,
        /// Why.
        why: &'static str,
    },
    /// Shards of dead owners were claimed.
    TookOver {
        /// Number of shards.
        n_shards: usize,
    },
}

/// Why the process should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// Not ready within the limit.
    JoinTimeout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Serving { epoch: Epoch },
    Sealed { epoch: Epoch },
    Granted { epoch: Epoch, to: NodeBoot, next: Epoch },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Joining,
    Ready,
    Leaving,
}

#[derive(Clone, Copy, Debug)]
struct Death {
    since: Time,
    confirmed: bool,
}

/// Where the sealed time of a handoff is counted from.
#[derive(Clone, Copy, Debug)]
struct SealedAt(Time);

/// The machine. See the module's page.
#[derive(Debug)]
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
    outgoing: BTreeMap<u64, (Outgoing, SealedAt)>,
    incoming: BTreeMap<HandoffId, Incoming>,
    query: Option<Query>,
    deaths: BTreeMap<NodeBoot, Death>,
    suspects: BTreeMap<NodeId, Time>,
    connected: BTreeMap<NodeId, NodeBoot>,
    asked_claims: BTreeMap<NodeId, Time>,
    declined: BTreeMap<NodeId, Time>,
    sizes: BTreeMap<ShardId, u64>,
    next_number: u64,
    next_token: Token,
    recheck: bool,
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
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            query: None,
            deaths: BTreeMap::new(),
            suspects: BTreeMap::new(),
            connected: BTreeMap::new(),
            asked_claims: BTreeMap::new(),
            declined: BTreeMap::new(),
            sizes: BTreeMap::new(),
            next_number: 1,
            next_token: 1,
            recheck: true,
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
            || !self.outgoing.is_empty()
            || self.query.is_some()
            || (self.stage == Stage::Leaving && !self.drained);
        self.now + if busy { BUSY_TICK } else { TICK }
    }

    /// Takes one event in, then looks at everything that may follow from it.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.on_event(event, out);
        self.advance(out);
        self.commit(out);
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    fn on_event(&mut self, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Members { members, targets, digest } => {
                self.on_members(members, targets, digest)
            }
            Event::Died { who, confirmed } => self.on_died(who, confirmed),
            Event::Connected(peer) => self.on_connected(peer, out),
            Event::Disconnected(node) => {
                self.connected.remove(&node);
            }
            Event::Claims(update) => self.on_claims(&update, out),
            Event::ClaimsWanted(to) => out.push(Action::SendClaims { to, update: self.log.full() }),
            Event::Control { from, message } => self.on_control(from, message, out),
            Event::Sealed(id) => self.on_sealed(id, out),
            Event::SendFailed(id) => self.abort_if_sealed(id, "the state could not be sent", out),
            Event::Received(id) => self.on_received(id, out),
            Event::ReceiveFailed(id) => self.on_receive_failed(id, out),
            Event::Sizes(sizes) => self.sizes = sizes,
            Event::Drain => self.stage = Stage::Leaving,
        }
    }

    // ---- members ---------------------------------------------------------------------------

    fn on_members(&mut self, members: Arc<Members>, targets: Arc<Targets>, digest: u64) {
        if digest != self.digest {
            self.digest = digest;
            self.digest_since = self.now;
        }
        self.members = members;
        self.targets = targets;
        self.recheck = true;
        let now = self.now;
        let suspects: BTreeSet<NodeId> = self
            .members
            .list
            .iter()
            .filter(|member| member.state == MemberState::Suspect)
            .map(|member| member.id)
            .collect();
        self.suspects.retain(|node, _| suspects.contains(node));
        for node in suspects {
            self.suspects.entry(node).or_insert(now);
        }
        let members = Arc::clone(&self.members);
        self.deaths.retain(|who, _| !members.is_live(*who));
    }

    fn on_died(&mut self, who: NodeBoot, confirmed: bool) {
        let since = self.suspects.get(&who.node).copied().unwrap_or(self.now);
        let death = self.deaths.entry(who).or_insert(Death { since, confirmed });
        death.confirmed |= confirmed;
        self.recheck = true;
    }

    /// Whether an owner's claim still counts: it is alive, or silent for less than the grace.
    fn is_holder(&self, who: NodeBoot) -> bool {
        if who == self.config.me || self.members.is_live(who) {
            return true;
        }
        match self.members.find(who.node) {
            Some(member) if member.boot > who.boot => false,
            Some(member) if member.state == MemberState::Left => false,
            Some(_) => self.deaths.get(&who).is_none_or(|death| {
                !death.confirmed && self.now.since(death.since) < self.config.orphan_grace
            }),
            None => false,
        }
    }

    /// Live nodes that are still joining, this one included while it is.
    fn joining(&self) -> BTreeSet<NodeBoot> {
        self.members
            .list
            .iter()
            .filter(|m| m.role == Role::Node && m.state == MemberState::Joining)
            .map(|m| m.node_boot())
            .chain((self.stage == Stage::Joining).then_some(self.config.me))
            .collect()
    }

    /// Live nodes that are past joining or own shards, but this one.
    fn owners(&self) -> BTreeSet<NodeBoot> {
        let booked = self
            .book
            .owners()
            .filter(|&(owner, n_claims)| n_claims > 0 && self.members.is_live(owner))
            .map(|(owner, _)| owner);
        self.members
            .live_peers()
            .filter(|m| m.role == Role::Node && m.phase != stead_shared::member::Phase::Joining)
            .map(|m| m.node_boot())
            .chain(booked)
            .filter(|owner| *owner != self.config.me)
            .collect()
    }

    // ---- claims ----------------------------------------------------------------------------

    fn on_connected(&mut self, peer: NodeBoot, out: &mut Vec<Action>) {
        self.connected.insert(peer.node, peer);
        out.push(Action::SendClaims { to: peer.node, update: self.log.full() });
    }

    fn on_claims(&mut self, update: &ClaimsUpdate, out: &mut Vec<Action>) {
        if update.owner == self.config.me {
            return;
        }
        match self.book.apply(update) {
            Applied::Same => {}
            Applied::WantFull => self.ask_claims(update.owner.node, out),
            Applied::Changed(shards) => {
                self.on_book_changed(&shards, out);
                out.push(Action::Publish);
                self.recheck = true;
            }
        }
    }

    fn ask_claims(&mut self, to: NodeId, out: &mut Vec<Action>) {
        let asked = self.asked_claims.get(&to);
        if asked.is_none_or(|at| self.now.since(*at) >= CLAIMS_EVERY) {
            self.asked_claims.insert(to, self.now);
            out.push(Action::AskClaims { to });
        }
    }

    fn on_book_changed(&mut self, shards: &[ShardId], out: &mut Vec<Action>) {
        let mut dropped = Vec::new();
        let mut yielded: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        for &shard in shards {
            let (Some(slot), Some((epoch, owner))) =
                (self.slots.get(&shard).copied(), self.book.get(shard))
            else {
                continue;
            };
            if owner == self.config.me || !self.members.is_live(owner) {
                continue;
            }
            match slot {
                Slot::Granted { next, .. } if epoch >= next => dropped.push(shard),
                Slot::Serving { epoch: mine } | Slot::Sealed { epoch: mine } if epoch > mine => {
                    yielded.entry(owner).or_default().push(ShardEpoch { shard, epoch });
                }
                Slot::Serving { .. } | Slot::Sealed { .. } | Slot::Granted { .. } => {}
            }
        }
        let yields: BTreeSet<ShardId> = yielded.values().flatten().map(|at| at.shard).collect();
        for &shard in dropped.iter().chain(&yields) {
            self.slots.remove(&shard);
            self.log.release(shard);
        }
        if !yields.is_empty() {
            for (handoff, _) in self.outgoing.values_mut() {
                handoff.shards.retain(|at| !yields.contains(&at.shard));
            }
        }
        if !dropped.is_empty() {
            out.push(Action::DropState { shards: dropped });
            self.finish_granted(out);
        }
        for (to, shards) in yielded {
            out.push(Action::Yield { to, shards });
        }
    }

    /// Closes the handoffs whose target has claimed everything.
    fn finish_granted(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let slots = &self.slots;
        self.outgoing.retain(|_, (handoff, sealed)| {
            let granted = matches!(handoff.phase, outgoing::Phase::Granted { .. });
            let open = handoff.ids().any(|shard| match slots.get(&shard) {
                Some(Slot::Granted { to, .. }) => *to == handoff.to,
                Some(Slot::Serving { .. } | Slot::Sealed { .. }) | None => false,
            });
            if granted && !open {
                out.push(Action::Note(Note::HandedOff {
                    to: handoff.to,
                    n_shards: handoff.shards.len(),
                    sealed_for: now.since(sealed.0),
                }));
            }
            !granted || open
        });
    }

    /// Opens a shard here and claims it.
    fn serve(&mut self, at: ShardEpoch) {
        assert_eq!(at.epoch.node, self.config.me.node, "nobody serves in another's epoch");
        self.slots.insert(at.shard, Slot::Serving { epoch: at.epoch });
        self.log.claim(at.shard, at.epoch.counter);
    }

    fn commit(&mut self, out: &mut Vec<Action>) {
        if let Some(update) = self.log.commit() {
            let _ = self.book.apply(&update);
            out.push(Action::PushClaims(update));
            out.push(Action::Publish);
        }
    }

    // ---- messages --------------------------------------------------------------------------

    fn on_control(&mut self, from: NodeBoot, message: Control, out: &mut Vec<Action>) {
        match message {
            Control::Propose { token, members } => self.on_propose(from, token, &members, out),
            Control::Accept { token } => self.forming.on_accept(self.now, from, token),
            Control::Reject { token, rather: _ } => self.forming.on_reject(self.now, token),
            Control::WhoHolds { token, members_digest: _, shards } => {
                self.on_who_holds(from, token, &shards, out);
            }
            Control::Holds { token, members_digest, holdings, highest } => {
                self.on_holds(from, token, members_digest, (&holdings, &highest));
            }
            Control::Prepare { handoff, members_digest, shards, drain } => {
                self.on_prepare(from, handoff, (members_digest, drain), shards, out);
            }
            Control::Prepared { handoff } => self.on_prepared(from, handoff, out),
            Control::Declined { handoff, why: _ } => self.on_declined(from, handoff, out),
            Control::NoCopy { handoff } => self.on_no_copy(from, handoff, out),
            Control::CaughtUp { handoff } => self.on_caught_up(from, handoff, out),
            Control::Grant { handoff, shards } => self.on_grant(handoff, &shards, out),
            Control::Relay { to, handoff, shards } => {
                let message = Control::Grant { handoff, shards };
                if to == self.config.me.node {
                    self.on_control(from, message, out);
                } else {
                    out.push(Action::Send { to, message });
                }
            }
            Control::Abort { handoff } => {
                if self.incoming.remove(&handoff).is_some() {
                    out.push(Action::DropCopy { handoff });
                }
            }
        }
    }

    fn on_propose(
        &mut self,
        from: NodeBoot,
        token: Token,
        members: &[NodeBoot],
        out: &mut Vec<Action>,
    ) {
        let joining = self.joining();
        let owner = match self.stage {
            Stage::Joining => self.owners().into_iter().next(),
            Stage::Ready | Stage::Leaving => Some(self.config.me),
        };
        let sight = Sight { me: self.config.me, joining: &joining, owner, has_peer: true };
        let message = self.forming.on_propose(self.now, from, (token, members), sight);
        out.push(Action::Send { to: from.node, message });
    }

    fn on_who_holds(
        &self,
        from: NodeBoot,
        token: Token,
        shards: &[ShardRange],
        out: &mut Vec<Action>,
    ) {
        let (mut holdings, highest) =
            who_holds(&self.book, self.config.n_shards, shards, |owner| self.is_holder(owner));
        for range in shards {
            for shard in range.shards(self.config.n_shards) {
                if let Some(Slot::Granted { to, next, .. }) = self.slots.get(&shard) {
                    let counter = next.counter;
                    let range =
                        stead_shared::claims::ClaimRange { first: shard.0, len: 1, counter };
                    holdings.push(stead_shared::control::Holding { owner: *to, range });
                }
            }
        }
        let members_digest = self.digest;
        let message = Control::Holds { token, members_digest, holdings, highest };
        out.push(Action::Send { to: from.node, message });
    }

    fn on_holds(
        &mut self,
        from: NodeBoot,
        token: Token,
        digest: u64,
        answer: (&[stead_shared::control::Holding], &[stead_shared::claims::ClaimRange]),
    ) {
        let binding = self
            .members
            .find(from.node)
            .is_some_and(|m| m.role == Role::Node && m.state == MemberState::Ready);
        if let Some(query) = self.query.as_mut().filter(|query| query.token == token) {
            query.answer(from.node, digest, binding, answer);
        }
    }

    // ---- incoming --------------------------------------------------------------------------

    fn on_prepare(
        &mut self,
        from: NodeBoot,
        id: HandoffId,
        (digest, drain): (u64, bool),
        shards: Vec<ShardEpoch>,
        out: &mut Vec<Action>,
    ) {
        if id.source != from {
            return;
        }
        if self.incoming.contains_key(&id) {
            out.push(Action::Send { to: from.node, message: Control::Prepared { handoff: id } });
            return;
        }
        let known = |at: &ShardEpoch| {
            at.shard.0 >= self.config.n_shards || self.slots.contains_key(&at.shard)
        };
        let why = if self.stage != Stage::Ready || shards.iter().any(known) {
            Some(NotNow::NotReady)
        } else if digest != self.digest && !drain {
            Some(NotNow::OtherView)
        } else if self.incoming.len() >= self.config.incoming_max {
            Some(NotNow::Busy)
        } else {
            None
        };
        let message = match why {
            Some(why) => Control::Declined { handoff: id, why },
            None => {
                let phase = incoming::Phase::Receiving;
                let since = self.now;
                self.incoming.insert(id, Incoming { id, shards, phase, since, orphan_since: None });
                Control::Prepared { handoff: id }
            }
        };
        out.push(Action::Send { to: from.node, message });
    }

    fn on_received(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        match self.incoming.get_mut(&id) {
            Some(incoming) => {
                incoming.phase = incoming::Phase::CaughtUp;
                let message = Control::CaughtUp { handoff: id };
                out.push(Action::Send { to: id.source.node, message });
            }
            None => out.push(Action::DropCopy { handoff: id }),
        }
    }

    fn on_receive_failed(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        if self.incoming.get(&id).is_some_and(|i| i.phase == incoming::Phase::Receiving) {
            self.incoming.remove(&id);
            out.push(Action::DropCopy { handoff: id });
            let message = Control::Declined { handoff: id, why: NotNow::Busy };
            out.push(Action::Send { to: id.source.node, message });
        }
    }

    fn on_grant(&mut self, id: HandoffId, shards: &[ShardEpoch], out: &mut Vec<Action>) {
        let me = self.config.me.node;
        if shards.iter().any(|at| at.epoch.node != me || at.shard.0 >= self.config.n_shards) {
            return;
        }
        let caught_up =
            self.incoming.get(&id).is_some_and(|i| i.phase == incoming::Phase::CaughtUp);
        if caught_up {
            self.incoming.remove(&id);
            let (open, stale): (Vec<ShardEpoch>, Vec<ShardEpoch>) =
                shards.iter().copied().partition(|at| {
                    !self.config.rules.stale_is_ignored
                        || self.book.get(at.shard).is_none_or(|(epoch, _)| epoch < at.epoch)
                });
            for &at in &open {
                self.serve(at);
            }
            out.push(Action::OpenCopy { handoff: id, shards: open });
            debug_assert!(stale.len() <= shards.len());
            return;
        }
        // Whoever served by this grant, and be it that the shard has moved on since, remembers its
        // counter: only a target that never will serve by it may decline.
        let known = |at: &ShardEpoch| self.book.highest(at.shard) >= at.epoch.counter;
        if shards.iter().any(known) {
            out.push(Action::SendClaims { to: id.source.node, update: self.log.full() });
        } else {
            self.incoming.remove(&id);
            out.push(Action::DropCopy { handoff: id });
            let message = Control::NoCopy { handoff: id };
            out.push(Action::Send { to: id.source.node, message });
        }
    }

    // ---- outgoing --------------------------------------------------------------------------

    fn outgoing_from(&mut self, from: NodeBoot, id: HandoffId) -> Option<&mut Outgoing> {
        let stale = id.source != self.config.me;
        let (handoff, _) = self.outgoing.get_mut(&id.number)?;
        (!stale && handoff.to == from).then_some(handoff)
    }

    fn on_prepared(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if !matches!(handoff.phase, outgoing::Phase::Preparing { .. }) {
            return;
        }
        handoff.phase = outgoing::Phase::Sealing { until: now + SEALED_MAX };
        let shards = handoff.shards.clone();
        if let Some((_, sealed)) = self.outgoing.get_mut(&id.number) {
            *sealed = SealedAt(now);
        }
        // ## Serving => Sealed: the gate closes with this action, before anything waits (R2).
        for at in &shards {
            self.slots.insert(at.shard, Slot::Sealed { epoch: at.epoch });
        }
        let shards = shards.iter().map(|at| at.shard).collect();
        out.push(Action::Seal { handoff: id, shards });
    }

    fn on_sealed(&mut self, id: HandoffId, out: &mut Vec<Action>) {
        let Some((handoff, _)) = self.outgoing.get_mut(&id.number) else { return };
        if let outgoing::Phase::Sealing { until } = handoff.phase {
            handoff.phase = outgoing::Phase::Sending { until };
            let (to, shards) = (handoff.to, handoff.shards.clone());
            out.push(Action::SendState { handoff: id, to, shards });
        }
    }

    fn on_declined(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        let phase = handoff.phase;
        match phase {
            outgoing::Phase::Preparing { .. } => {
                self.outgoing.remove(&id.number);
                self.declined.insert(from.node, now);
            }
            outgoing::Phase::Sealing { .. } | outgoing::Phase::Sending { .. } => {
                self.abort(id.number, "the target declined", out);
            }
            // A late answer to a repeated `Prepare` means nothing any more.
            outgoing::Phase::Granted { .. } => {}
        }
    }

    fn on_no_copy(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if matches!(handoff.phase, outgoing::Phase::Granted { .. }) {
            self.take_back(id.number, out);
        }
    }

    fn on_caught_up(&mut self, from: NodeBoot, id: HandoffId, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(handoff) = self.outgoing_from(from, id) else { return };
        if !matches!(handoff.phase, outgoing::Phase::Sending { .. }) {
            return;
        }
        // ## Sealed => Granted: recorded before it is sent; from here on only the target serves.
        handoff.phase = outgoing::Phase::Granted { since: now, resend_at: now + GRANT_EVERY };
        let (to, granted, old) = (handoff.to, handoff.granted(), handoff.shards.clone());
        for (next, old) in granted.iter().zip(&old) {
            let slot = Slot::Granted { epoch: old.epoch, to, next: next.epoch };
            self.slots.insert(next.shard, slot);
        }
        let message = Control::Grant { handoff: id, shards: granted };
        out.push(Action::Send { to: to.node, message });
        out.push(Action::Publish);
    }

    fn abort_if_sealed(&mut self, id: HandoffId, why: &'static str, out: &mut Vec<Action>) {
        if self.outgoing.get(&id.number).is_some_and(|(handoff, _)| handoff.is_sealed()) {
            self.abort(id.number, why, out);
        }
    }

    /// ## (Preparing | Sealing | Sending) => Serving: an abort returns the shards to their source.
    fn abort(&mut self, number: u64, why: &'static str, out: &mut Vec<Action>) {
        let Some((handoff, _)) = self.outgoing.remove(&number) else { return };
        let (id, to) = (handoff.id, handoff.to);
        out.push(Action::Send { to: to.node, message: Control::Abort { handoff: id } });
        out.push(Action::Note(Note::Aborted { to, n_shards: handoff.shards.len(), why }));
        self.declined.insert(to.node, self.now);
        if handoff.is_sealed() {
            let raise = u64::from(self.config.rules.abort_raises_epoch);
            self.reopen(&handoff, raise, out);
        }
    }

    /// ## Granted => Serving: the target is dead or has dropped its copy.
    fn take_back(&mut self, number: u64, out: &mut Vec<Action>) {
        let Some((handoff, _)) = self.outgoing.remove(&number) else { return };
        let (to, n_shards) = (handoff.to, handoff.shards.len());
        let why = "the target was gone after the grant";
        out.push(Action::Note(Note::Aborted { to, n_shards, why }));
        self.reopen(&handoff, 2, out);
    }

    fn reopen(&mut self, handoff: &Outgoing, raise: u64, out: &mut Vec<Action>) {
        let node = self.config.me.node;
        let mut shards = Vec::with_capacity(handoff.shards.len());
        for at in &handoff.shards {
            if self.slots.contains_key(&at.shard) {
                let epoch = Epoch { counter: at.epoch.counter + raise, node };
                let at = ShardEpoch { shard: at.shard, epoch };
                self.serve(at);
                shards.push(at);
            }
        }
        self.recheck = true;
        out.push(Action::Reopen { shards });
    }

    // ---- what follows ----------------------------------------------------------------------

    fn advance(&mut self, out: &mut Vec<Action>) {
        if self.stage == Stage::Joining {
            self.join_or_form(out);
        }
        self.expire_handoffs(out);
        self.expire_copies(out);
        self.ask_missing_claims(out);
        if self.recheck_at.is_some_and(|at| at <= self.now) {
            self.recheck = true;
            self.recheck_at = None;
        }
        if self.stage == Stage::Ready || self.stage == Stage::Leaving {
            self.advance_query(out);
            if self.recheck {
                self.recheck = false;
                self.claim_unclaimed(out);
                self.start_handoffs(out);
            }
        }
        if self.stage == Stage::Leaving {
            self.finish_drain(out);
        }
    }

    fn join_or_form(&mut self, out: &mut Vec<Action>) {
        let owners = self.owners();
        if !owners.is_empty() && owners.iter().all(|owner| self.book.knows(*owner)) {
            self.become_ready(Note::Joined, out);
            return;
        }
        if self.now.since(self.started) >= self.config.join_max && !owners.is_empty() {
            out.push(Action::GiveUp(GiveUp::JoinTimeout));
            return;
        }
        let joining = self.joining();
        let sight = Sight {
            me: self.config.me,
            joining: &joining,
            owner: owners.iter().next().copied(),
            has_peer: self.members.live_peers().next().is_some(),
        };
        let mut messages = Vec::new();
        let mut step = self.forming.step(self.now, sight, &mut messages);
        if !self.config.rules.forming_agrees && sight.has_peer && sight.owner.is_none() {
            step = Step::Found { alone: false };
        }
        out.extend(messages.into_iter().map(|(to, message)| Action::Send { to, message }));
        match step {
            Step::Wait => {}
            Step::Found { alone } => self.found(alone, out),
        }
    }

    fn found(&mut self, alone: bool, out: &mut Vec<Action>) {
        let node = self.config.me.node;
        let mut shards = Vec::with_capacity(self.config.n_shards as usize);
        for shard in (0..self.config.n_shards).map(ShardId) {
            let epoch = Epoch { counter: 1 + self.book.highest(shard), node };
            let at = ShardEpoch { shard, epoch };
            self.serve(at);
            shards.push(at);
        }
        self.founded_at = Some(self.now);
        out.push(Action::OpenEmpty { shards, lost: false });
        self.become_ready(Note::Founded { alone }, out);
    }

    fn become_ready(&mut self, note: Note, out: &mut Vec<Action>) {
        self.stage = Stage::Ready;
        self.recheck = true;
        out.push(Action::BecomeReady);
        out.push(Action::Note(note));
    }

    fn ask_missing_claims(&mut self, out: &mut Vec<Action>) {
        for owner in self.owners() {
            if !self.book.knows(owner) && self.connected.contains_key(&owner.node) {
                self.ask_claims(owner.node, out);
            }
        }
    }

    fn expire_handoffs(&mut self, out: &mut Vec<Action>) {
        self.finish_granted(out);
        let numbers: Vec<u64> = self.outgoing.keys().copied().collect();
        for number in numbers {
            let Some((handoff, _)) = self.outgoing.get(&number) else { continue };
            let gone = !self.members.is_live(handoff.to);
            let holder = self.is_holder(handoff.to);
            match handoff.phase {
                outgoing::Phase::Granted { .. } if !holder => self.take_back(number, out),
                outgoing::Phase::Granted { since, resend_at } => {
                    self.resend_grant(number, since, resend_at, out);
                }
                outgoing::Phase::Preparing { .. }
                | outgoing::Phase::Sealing { .. }
                | outgoing::Phase::Sending { .. } => {
                    if gone {
                        self.abort(number, "the target is gone", out);
                    } else if handoff.is_late(self.now) {
                        self.abort(number, "it took too long", out);
                    }
                }
            }
        }
    }

    fn resend_grant(&mut self, number: u64, since: Time, resend_at: Time, out: &mut Vec<Action>) {
        let now = self.now;
        if !self.config.rules.grant_is_final && now.since(since) >= RELAY_AFTER {
            let Some((handoff, _)) = self.outgoing.remove(&number) else { return };
            self.reopen(&handoff, 1, out);
            return;
        }
        if resend_at > now || !self.config.rules.grant_is_resent {
            return;
        }
        let Some((handoff, _)) = self.outgoing.get_mut(&number) else { return };
        handoff.phase = outgoing::Phase::Granted { since, resend_at: now + GRANT_EVERY };
        let (id, to, shards) = (handoff.id, handoff.to.node, handoff.granted());
        if now.since(since) >= RELAY_AFTER {
            for peer in self.members.live_peers().filter(|peer| peer.id != to) {
                let message = Control::Relay { to, handoff: id, shards: shards.clone() };
                out.push(Action::Send { to: peer.id, message });
            }
        }
        out.push(Action::Send { to, message: Control::Grant { handoff: id, shards } });
        out.push(Action::AskClaims { to });
    }

    fn expire_copies(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let members = Arc::clone(&self.members);
        self.incoming.retain(|&handoff, incoming| {
            let receiving = incoming.phase == incoming::Phase::Receiving;
            if receiving && now.since(incoming.since) >= RECEIVE_MAX {
                out.push(Action::DropCopy { handoff });
                return false;
            }
            if members.is_live(handoff.source) {
                incoming.orphan_since = None;
                return true;
            }
            let since = *incoming.orphan_since.get_or_insert(now);
            let keep =
                incoming.phase == incoming::Phase::CaughtUp && now.since(since) < KEEP_AFTER_DEATH;
            if !keep {
                out.push(Action::DropCopy { handoff });
            }
            keep
        });
    }

    // ---- unclaimed shards ------------------------------------------------------------------

    /// Shards that this node should claim because nobody alive holds them.
    fn unclaimed(&mut self) -> BTreeSet<ShardId> {
        let me = self.config.me;
        let mut waits = false;
        let mut shards = BTreeSet::new();
        for shard in (0..self.config.n_shards).map(ShardId) {
            if self.targets.owner_of(shard) != Some(me.node) || self.slots.contains_key(&shard) {
                continue;
            }
            match self.book.get(shard) {
                Some((_, owner)) if self.is_holder(owner) => {
                    waits |= !self.members.is_live(owner);
                }
                Some(_) | None => {
                    shards.insert(shard);
                }
            }
        }
        if waits {
            self.recheck_at = Some(self.now + TICK);
        }
        shards
    }

    fn claim_unclaimed(&mut self, out: &mut Vec<Action>) {
        if self.query.is_some() || self.stage != Stage::Ready {
            return;
        }
        let shards = self.unclaimed();
        if shards.is_empty() {
            return;
        }
        let waiting = self.members.live_peers().map(|peer| peer.id).collect();
        let query = Query {
            token: self.next_token,
            digest: self.digest,
            shards,
            waiting,
            highest: BTreeMap::new(),
            held: BTreeMap::new(),
            since: self.now,
            resend_at: self.now,
            disagreed: false,
        };
        self.next_token += 1;
        self.query = Some(query);
        self.advance_query(out);
    }

    fn advance_query(&mut self, out: &mut Vec<Action>) {
        let Some(mut query) = self.query.take() else { return };
        let members = Arc::clone(&self.members);
        query.waiting.retain(|node| members.find(*node).is_some_and(|m| m.state.is_live()));
        let patient = self.now.since(query.since) < ASK_FOR;
        if !patient {
            // Whom no link reaches in all this time counts as unreachable (R0: "it reaches").
            query.waiting.retain(|node| self.connected.contains_key(node));
        }
        if !self.config.rules.genesis_asks {
            query.waiting.clear();
        }
        if query.digest != self.digest || query.disagreed {
            self.recheck_at = Some(self.now + ASK_EVERY);
            return;
        }
        if query.waiting.is_empty() {
            self.claim_answered(&query, out);
            return;
        }
        if query.resend_at <= self.now {
            query.resend_at = self.now + ASK_EVERY;
            let message = query.message();
            for &to in &query.waiting {
                out.push(Action::Send { to, message: message.clone() });
            }
        }
        self.query = Some(query);
    }

    fn claim_answered(&mut self, query: &Query, out: &mut Vec<Action>) {
        for (&shard, &counter) in &query.highest {
            self.book.remember(shard, counter);
        }
        let still = self.unclaimed();
        let mut fresh = Vec::new();
        let mut lost = Vec::new();
        let mut copies: BTreeMap<HandoffId, Vec<ShardEpoch>> = BTreeMap::new();
        for &shard in query.shards.intersection(&still) {
            if let Some(&holder) = query.held.get(&shard).filter(|owner| self.is_holder(**owner)) {
                self.ask_claims(holder.node, out);
                self.recheck_at = Some(self.now + ASK_EVERY);
                continue;
            }
            let epoch = Epoch { counter: 1 + self.book.highest(shard), node: self.config.me.node };
            let at = ShardEpoch { shard, epoch };
            let copy = self.incoming.values().find(|incoming| {
                incoming.phase == incoming::Phase::CaughtUp
                    && incoming.shards.iter().any(|at| at.shard == shard)
            });
            match (copy, self.book.get(shard)) {
                (Some(copy), _) => copies.entry(copy.id).or_default().push(at),
                (None, Some(_)) => lost.push(at),
                (None, None) => fresh.push(at),
            }
        }
        let n_shards = fresh.len() + lost.len() + copies.values().map(Vec::len).sum::<usize>();
        for &at in fresh.iter().chain(&lost).chain(copies.values().flatten()) {
            self.serve(at);
        }
        for (shards, lost) in [(fresh, false), (lost, true)] {
            if !shards.is_empty() {
                out.push(Action::OpenEmpty { shards, lost });
            }
        }
        for (handoff, shards) in copies {
            self.incoming.remove(&handoff);
            out.push(Action::OpenCopy { handoff, shards });
        }
        if n_shards > 0 {
            out.push(Action::Note(Note::TookOver { n_shards }));
        }
    }

    // ---- moves -----------------------------------------------------------------------------

    fn start_handoffs(&mut self, out: &mut Vec<Action>) {
        let leaving = self.stage == Stage::Leaving;
        if !leaving && !self.may_balance() {
            return;
        }
        let busy: BTreeSet<ShardId> =
            self.outgoing.values().flat_map(|(handoff, _)| handoff.ids()).collect();
        let mut wanted: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        for at in self.serving().filter(|at| !busy.contains(&at.shard)) {
            if let Some(to) = self.target_of(at.shard) {
                wanted.entry(to).or_default().push(at);
            }
        }
        for (to, shards) in wanted {
            let mut shards = &shards[..];
            while !shards.is_empty() && self.outgoing.len() < self.config.outgoing_max {
                let n = self.batch_len(shards);
                let (batch, rest) = shards.split_at(n);
                self.prepare(to, batch.to_vec(), leaving, out);
                shards = rest;
            }
            self.recheck_at.get_or_insert(self.now + BUSY_TICK);
        }
    }

    /// Whether members have been quiet long enough to move shards for balance.
    fn may_balance(&mut self) -> bool {
        let founding = self.founded_at.is_some_and(|at| self.now.since(at) < FOUNDING_FOR);
        let quiet = if founding { FOUNDING_QUIET } else { self.config.balance_quiet };
        let ready_at = self.digest_since + quiet;
        if ready_at > self.now {
            self.recheck_at = Some(self.recheck_at.map_or(ready_at, |at| at.min(ready_at)));
        }
        ready_at <= self.now
    }

    /// The live, connected node that should own `shard` instead of this one.
    fn target_of(&self, shard: ShardId) -> Option<NodeBoot> {
        let node = self.targets.owner_of(shard).filter(|node| *node != self.config.me.node)?;
        let member = self.members.find(node)?;
        let declined = self.declined.get(&node);
        let fit = member.state == MemberState::Ready
            && self.connected.get(&node) == Some(&member.node_boot())
            && declined.is_none_or(|at| self.now.since(*at) >= DECLINED_FOR);
        fit.then(|| member.node_boot())
    }

    fn batch_len(&self, shards: &[ShardEpoch]) -> usize {
        let mut bytes = 0;
        let fits = |at: &&ShardEpoch| {
            bytes += self.sizes.get(&at.shard).copied().unwrap_or(0);
            bytes <= self.config.batch_bytes_max
        };
        let n = shards.iter().take(self.config.batch_shards_max).take_while(fits).count();
        n.max(1)
    }

    fn prepare(
        &mut self,
        to: NodeBoot,
        shards: Vec<ShardEpoch>,
        drain: bool,
        out: &mut Vec<Action>,
    ) {
        let number = self.next_number;
        self.next_number += 1;
        let id = HandoffId { source: self.config.me, number };
        let message = Control::Prepare {
            handoff: id,
            members_digest: self.digest,
            shards: shards.clone(),
            drain,
        };
        out.push(Action::Send { to: to.node, message });
        let phase = outgoing::Phase::Preparing { until: self.now + PREPARE_MAX };
        let handoff = Outgoing { id, to, shards, phase };
        self.outgoing.insert(number, (handoff, SealedAt(self.now)));
    }

    fn finish_drain(&mut self, out: &mut Vec<Action>) {
        self.recheck_at.get_or_insert(self.now + BUSY_TICK);
        let somebody = self
            .members
            .live_peers()
            .any(|m| m.role == Role::Node && m.state == MemberState::Ready);
        let moving = self.slots.values().any(|slot| matches!(slot, Slot::Granted { .. }));
        if !self.drained && (self.slots.is_empty() || (!somebody && !moving)) {
            self.drained = true;
            out.push(Action::Drained);
        }
    }

    // ---- checks ----------------------------------------------------------------------------

    /// Panics when the machine contradicts itself.
    pub fn check_invariants(&self) {
        for (&shard, slot) in &self.slots {
            let epoch = match slot {
                Slot::Serving { epoch } | Slot::Sealed { epoch } => {
                    assert_eq!(epoch.node, self.config.me.node, "serves in another's epoch");
                    epoch
                }
                Slot::Granted { epoch, next, .. } => {
                    assert!(next > epoch, "a grant does not raise the epoch of {shard}");
                    epoch
                }
            };
            assert_eq!(self.log.counter(shard), Some(epoch.counter), "claim of {shard}");
        }
        assert_eq!(self.log.len(), self.slots.len(), "claims without a shard behind them");
        for (handoff, _) in self.outgoing.values() {
            if handoff.is_sealed() {
                for shard in handoff.ids() {
                    let open = matches!(self.slots.get(&shard), Some(Slot::Serving { .. }));
                    assert!(!open, "{shard} serves while sealed");
                }
            }
        }
    }
}
