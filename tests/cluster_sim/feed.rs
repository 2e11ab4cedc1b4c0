//! Copies that follow a shard, seen from its owner: one stream to each node that keeps any, whatever
//! their number, with the production rules of what is sent again and what was taken in.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use stead_node::logic::gate::Gate;
use stead_node::logic::heal::lineage::Lineage;
use stead_node::logic::ownership::{Event, Unfollowed};
use stead_node::logic::replication::{Lost, Outbox};
use stead_shared::claims::Replicas;
use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::id::{Epoch, NodeBoot, ShardId, Version};

use crate::ctx::{Ctx, Happens, SESSIONS, ms};
use crate::host::{Ask, Session, Shard};
use crate::links::{Answer, Kind, Msg};
use crate::node::NodeModel;

/// A replica that has acknowledged nothing for so long is silent.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// The pause before a stream is opened again; twice as long each time, up to a limit.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is sent to a copy, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    FillBegin {
        shard: ShardId,
        at: Version,
        past: Lineage,
    },
    Fill {
        shard: ShardId,
        epoch: Epoch,
        session: u8,
        state: Session,
    },
    FillEnd {
        shard: ShardId,
        at: Version,
    },
    Adopt {
        shard: ShardId,
        epoch: Epoch,
        prev: Version,
    },
    NextEpoch {
        shard: ShardId,
        epoch: Epoch,
        prev: Version,
    },
    /// A change: the session as it is after it, or the shard's number alone.
    Entry {
        shard: ShardId,
        at: Version,
        prev: Version,
        state: Option<(u8, Session)>,
        /// All of the session is new to the copy.
        is_whole: bool,
        /// With the number: the epochs before.
        past: Option<Lineage>,
    },
}

impl Item {
    pub(crate) fn shard(&self) -> ShardId {
        match *self {
            Self::FillBegin { shard, .. }
            | Self::Fill { shard, .. }
            | Self::FillEnd { shard, .. }
            | Self::Adopt { shard, .. }
            | Self::NextEpoch { shard, .. }
            | Self::Entry { shard, .. } => shard,
        }
    }
}

/// A copy of a shard that is served here.
#[derive(Clone, Debug)]
pub(crate) struct Follow {
    id: u64,
    to: NodeBoot,
    pub(crate) is_member: bool,
    /// Its copy was filled: answers wait for it as long as it follows.
    is_catching: bool,
    phase: Phase,
    /// Position of the last item of this shard.
    last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Queued,
    Live {
        /// Position of the first item.
        since: u64,
    },
    Lost,
}

impl Follow {
    fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    fn is_awaited(&self) -> bool {
        self.is_member || (self.is_catching && self.is_live())
    }

    /// What answers wait for: more than it will ever have, where it does not follow.
    fn awaited(&self) -> u64 {
        if self.is_live() { self.last } else { u64::MAX }
    }
}

/// The stream to one node.
#[derive(Debug)]
pub(crate) struct Feed {
    outbox: Outbox<Item>,
    conn: Option<u64>,
    /// What was sent over this connection.
    sent: u64,
    /// With this position a copy of this follower is complete.
    milestones: VecDeque<(u64, ShardEpoch, u64)>,
    fills: VecDeque<(ShardId, u64)>,
    /// The fill under way, and the next session.
    filling: Option<(ShardId, u64, u8)>,
    steps: bool,
    dials: bool,
    watches: bool,
    pause: Duration,
}

impl Feed {
    fn new() -> Self {
        Self {
            outbox: Outbox::new(0, usize::MAX),
            conn: None,
            sent: 0,
            milestones: VecDeque::new(),
            fills: VecDeque::new(),
            filling: None,
            steps: false,
            dials: false,
            watches: false,
            pause: PAUSE_FIRST,
        }
    }
}

/// An answer that waits for copies.
#[derive(Debug)]
pub(crate) struct Unacked {
    ask: Ask,
    life: u64,
    answer: Answer,
    /// What it tells of.
    ops: Vec<u32>,
    waits: Vec<(NodeBoot, u64)>,
    /// Copies have it: the position that is to be on disk.
    disk: Option<u64>,
}

/// The owner's side of all copies.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    by_node: BTreeMap<NodeBoot, Feed>,
    unacked: Vec<Unacked>,
    last_follow: u64,
    /// Followers of shards that are about to be here.
    adoptions: BTreeMap<ShardId, Vec<(NodeBoot, Epoch, bool)>>,
    /// Seals whose turns have ended.
    sealing: BTreeMap<HandoffId, Vec<ShardId>>,
}

impl NodeModel {
    // ---- what shards say -------------------------------------------------------------------

    fn push(&mut self, ctx: &mut Ctx, to: NodeBoot, item: Item) -> u64 {
        let now = ctx.now();
        let feed = self.feeds.by_node.entry(to).or_insert_with(Feed::new);
        let position = feed.outbox.push(now, item, 1);
        if !feed.watches {
            feed.watches = true;
            ctx.after(self.at, SILENT_AFTER, Happens::Watch(to));
        }
        if feed.conn.is_none() && !feed.dials {
            feed.dials = true;
            ctx.after(self.at, Duration::ZERO, Happens::Stream(to));
        }
        self.flush(ctx, to);
        position
    }

    fn flush(&mut self, ctx: &mut Ctx, to: NodeBoot) {
        let Some(feed) = self.feeds.by_node.get_mut(&to) else { return };
        let Some(conn) = feed.conn else { return };
        let items: Vec<(u64, Item)> =
            feed.outbox.unacked(feed.sent).map(|(at, item)| (at, item.clone())).collect();
        if let (Some((first, _)), Some((last, _))) = (items.first(), items.last()) {
            let (first, last) = (*first, *last);
            feed.sent = last;
            let items = items.into_iter().map(|(_, item)| item).collect();
            ctx.send(conn, self.at, Msg::Items { first, items });
        }
    }

    /// Sends an item to all who follow the shard.
    fn append(&mut self, ctx: &mut Ctx, shard: ShardId, item: &Item) {
        let Some(here) = self.host.shards.get(&shard) else { return };
        let live: Vec<(NodeBoot, u64)> =
            here.follows.iter().filter(|it| it.is_live()).map(|it| (it.to, it.id)).collect();
        for (to, id) in live {
            let last = self.push(ctx, to, item.clone());
            if let Some(follow) = self.follow(shard, id) {
                follow.last = last;
            }
        }
    }

    fn follow(&mut self, shard: ShardId, id: u64) -> Option<&mut Follow> {
        self.host.shards.get_mut(&shard)?.follows.iter_mut().find(|it| it.id == id)
    }

    /// The session has changed; the shard was at `prev` before.
    pub(crate) fn tell_change(
        &mut self,
        ctx: &mut Ctx,
        shard: ShardId,
        prev: u64,
        session: Option<u8>,
    ) {
        self.tell(ctx, (shard, prev), session, false);
    }

    /// A session has come here, and all of it is new to those who follow.
    pub(crate) fn tell_arrival(&mut self, ctx: &mut Ctx, shard: ShardId, prev: u64, session: u8) {
        self.tell(ctx, (shard, prev), Some(session), true);
    }

    fn tell(
        &mut self,
        ctx: &mut Ctx,
        (shard, prev): (ShardId, u64),
        session: Option<u8>,
        is_whole: bool,
    ) {
        self.save_change(ctx, shard, session);
        let Some(here) = self.host.shards.get_mut(&shard) else { return };
        here.origin = None;
        let epoch = here.epoch();
        let at = Version { epoch, seq: here.seq };
        let state = session.map(|n| (n, here.sessions[usize::from(n)].clone()));
        ctx.oracle.entry(ctx.sim.now(), shard, at, state.as_ref());
        ctx.oracle.reached(self.me, state.as_ref().map(|(_, state)| state));
        let prev = Version { epoch, seq: prev };
        let has_past = session.is_none() && here.past != Lineage::EMPTY;
        let past = has_past.then(|| here.past.clone());
        self.append(ctx, shard, &Item::Entry { shard, at, prev, state, is_whole, past });
    }

    /// The shard was served in `old` and is in another epoch now: followers go along.
    pub(crate) fn follow_epoch(&mut self, ctx: &mut Ctx, shard: ShardId, old: Epoch) {
        let Some(here) = self.host.shards.get_mut(&shard) else { return };
        let epoch = here.epoch();
        if old == epoch {
            return;
        }
        here.origin = Some(old);
        let prev = Version { epoch: old, seq: here.seq };
        here.past.reach(prev);
        self.append(ctx, shard, &Item::NextEpoch { shard, epoch, prev });
        self.look_at_waiting(ctx);
    }

    /// A shard is served from now on: those follow it who were meant to.
    pub(crate) fn begun(&mut self, ctx: &mut Ctx, at: ShardEpoch) {
        for (to, epoch, named) in self.feeds.adoptions.remove(&at.shard).unwrap_or_default() {
            if epoch == at.epoch {
                self.adopt_one(ctx, to, at, named);
            }
        }
    }

    // ---- what the machine wants ------------------------------------------------------------

    /// Whether all answers of a shard have waited for this one.
    pub(crate) fn is_answered_at(&self, shard: ShardId, member: NodeBoot) -> bool {
        let follows = self.host.shards.get(&shard).map_or(&[][..], |here| &here.follows);
        follows.iter().any(|it| it.is_member && it.to == member)
    }

    pub(crate) fn set_replicas(&mut self, ctx: &mut Ctx, sets: &[(ShardId, Replicas)]) {
        for (shard, set) in sets {
            ctx.oracle.waits_for(self.me, *shard, set);
            let Some(here) = self.host.shards.get_mut(shard) else { continue };
            let mut missing = set.as_slice().to_vec();
            for follow in &mut here.follows {
                if set.contains(follow.to) {
                    follow.is_member = true;
                    missing.retain(|boot| *boot != follow.to);
                }
            }
            let gone: Vec<NodeBoot> = here
                .follows
                .iter()
                .filter(|it| it.is_member && !set.contains(it.to))
                .map(|it| it.to)
                .collect();
            for to in gone {
                self.remove_follower(*shard, to);
            }
            for to in missing {
                self.report_lost(ctx, to, *shard, Lost::NoCopy);
            }
            self.recompute(ctx, *shard);
            self.save_set(ctx, *shard);
        }
    }

    pub(crate) fn fill(&mut self, ctx: &mut Ctx, to: NodeBoot, shards: &[ShardEpoch]) {
        for &at in shards {
            match self.serves(at) {
                Ok(()) => {
                    let id = self.add_follower(ctx, at.shard, to, Phase::Queued, 0);
                    let feed = self.feeds.by_node.get_mut(&to).expect("it follows");
                    feed.fills.push_back((at.shard, id));
                    if !std::mem::replace(&mut feed.steps, true) {
                        ctx.after(self.at, Duration::from_micros(50), Happens::FillStep(to));
                    }
                }
                Err(lost) => self.report_lost(ctx, to, at.shard, lost),
            }
        }
    }

    pub(crate) fn adopt(
        &mut self,
        ctx: &mut Ctx,
        to: NodeBoot,
        shards: &[ShardEpoch],
        named: bool,
    ) {
        for &at in shards {
            let epoch = self.host.shards.get(&at.shard).map(Shard::epoch);
            if epoch.is_some_and(|epoch| at.epoch <= epoch) {
                self.adopt_one(ctx, to, at, named);
            } else {
                let waiting = self.feeds.adoptions.entry(at.shard).or_default();
                waiting.retain(|(boot, epoch, _)| *boot != to && *epoch == at.epoch);
                waiting.push((to, at.epoch, named));
            }
        }
    }

    fn adopt_one(&mut self, ctx: &mut Ctx, to: NodeBoot, at: ShardEpoch, named: bool) {
        let origin =
            self.host.shards.get(&at.shard).and_then(|here| Some((here.origin?, here.seq)));
        let (epoch, seq) = match (self.serves(at), origin) {
            (Ok(()), Some(origin)) => origin,
            (Ok(()), None) => return self.report_lost(ctx, to, at.shard, Lost::Behind),
            (Err(lost), _) => return self.report_lost(ctx, to, at.shard, lost),
        };
        let prev = Version { epoch, seq };
        let item = Item::Adopt { shard: at.shard, epoch: at.epoch, prev };
        let since = self.push(ctx, to, item);
        let id = self.add_follower(ctx, at.shard, to, Phase::Live { since }, since);
        if let Some(feed) = self.feeds.by_node.get_mut(&to) {
            feed.milestones.push_back((since, at, id));
        }
        if named && let Some(follow) = self.follow(at.shard, id) {
            follow.is_member = true;
        }
        self.save_set(ctx, at.shard);
    }

    /// No more goes to that copy. Whether answers still wait for it is for the set to say.
    pub(crate) fn stop_fill(&mut self, ctx: &mut Ctx, to: NodeBoot, shards: &[ShardId]) {
        for shard in shards {
            let here = self.host.shards.get_mut(shard);
            let follow = here.and_then(|here| here.follows.iter_mut().find(|it| it.to == to));
            match follow {
                Some(follow) if follow.is_member => follow.phase = Phase::Lost,
                Some(_) => self.remove_follower(*shard, to),
                None => {}
            }
            if let Some(waiting) = self.feeds.adoptions.get_mut(shard) {
                waiting.retain(|(boot, ..)| *boot != to);
            }
            self.recompute(ctx, *shard);
        }
    }

    fn serves(&self, at: ShardEpoch) -> Result<(), Lost> {
        match self.host.shards.get(&at.shard).map(|here| here.gate) {
            Some(Gate::Serving(served)) if served == at.epoch => Ok(()),
            Some(Gate::Serving(served)) if at.epoch < served => Err(Lost::HigherEpoch(served)),
            Some(Gate::Serving(_) | Gate::Sealed(_) | Gate::Gone) | None => Err(Lost::NoCopy),
        }
    }

    /// One to the same node is replaced; answers wait for it as they did.
    fn add_follower(
        &mut self,
        ctx: &mut Ctx,
        shard: ShardId,
        to: NodeBoot,
        phase: Phase,
        last: u64,
    ) -> u64 {
        self.feeds.by_node.entry(to).or_insert_with(Feed::new);
        self.feeds.last_follow += 1;
        let id = self.feeds.last_follow;
        let here = self.host.shards.get_mut(&shard).expect("it is served");
        let old = here.follows.iter().position(|it| it.to == to).map(|n| here.follows.remove(n));
        let is_member = old.is_some_and(|old| old.is_member);
        here.follows.push(Follow { id, to, is_member, is_catching: false, phase, last });
        self.recompute(ctx, shard);
        id
    }

    fn remove_follower(&mut self, shard: ShardId, to: NodeBoot) {
        if let Some(here) = self.host.shards.get_mut(&shard) {
            here.follows.retain(|it| it.to != to);
        }
        self.let_go(to);
    }

    /// Nobody follows over a stream any more: what waits in it is of no use.
    fn let_go(&mut self, to: NodeBoot) {
        let is_used = |here: &Shard| here.follows.iter().any(|it| it.to == to);
        if self.host.shards.values().any(is_used) {
            return;
        }
        if let Some(feed) = self.feeds.by_node.get_mut(&to) {
            feed.outbox.clear();
            feed.milestones.clear();
            feed.fills.clear();
            feed.filling = None;
        }
    }

    /// A shard is not here any more: those who followed it are let go.
    pub(crate) fn unfollowed(&mut self, ctx: &mut Ctx, shard: &Shard) {
        for follow in &shard.follows {
            self.let_go(follow.to);
        }
        self.look_at_waiting(ctx);
    }

    fn report_lost(&self, ctx: &mut Ctx, to: NodeBoot, shard: ShardId, lost: Lost) {
        let why = match lost {
            Lost::Behind => Unfollowed::Behind,
            Lost::NoCopy => Unfollowed::NoCopy,
            Lost::HigherEpoch(epoch) => Unfollowed::HigherEpoch(epoch),
        };
        let shards = vec![(shard, why)];
        ctx.after(self.at, Duration::ZERO, Happens::Reported(Event::FollowerLost { to, shards }));
    }

    // ---- fills -----------------------------------------------------------------------------

    pub(crate) fn fill_step(&mut self, ctx: &mut Ctx, to: NodeBoot) {
        let takes = 100 + ctx.knobs.session_bytes * 1_000_000 / ctx.knobs.copy_rate;
        let Some(feed) = self.feeds.by_node.get_mut(&to) else { return };
        if feed.filling.is_none() {
            let Some((shard, id)) = feed.fills.pop_front() else {
                feed.steps = false;
                return;
            };
            self.begin_fill(ctx, to, shard, id);
        } else {
            self.next_fill(ctx, to);
        }
        ctx.after(self.at, Duration::from_micros(takes), Happens::FillStep(to));
    }

    fn begin_fill(&mut self, ctx: &mut Ctx, to: NodeBoot, shard: ShardId, id: u64) {
        let Some(follow) = self.follow(shard, id) else { return };
        if follow.phase != Phase::Queued || follow.to != to {
            return;
        }
        let here = &self.host.shards[&shard];
        let at = Version { epoch: here.epoch(), seq: here.seq };
        let past = here.past.clone();
        let since = self.push(ctx, to, Item::FillBegin { shard, at, past });
        if let Some(follow) = self.follow(shard, id) {
            (follow.phase, follow.last) = (Phase::Live { since }, since);
        }
        if let Some(feed) = self.feeds.by_node.get_mut(&to) {
            feed.filling = Some((shard, id, 0));
        }
        self.recompute(ctx, shard);
    }

    fn next_fill(&mut self, ctx: &mut Ctx, to: NodeBoot) {
        let feed = self.feeds.by_node.get_mut(&to).expect("it steps");
        let Some((shard, id, mut session)) = feed.filling.take() else { return };
        if !self.follow(shard, id).is_some_and(|it| it.to == to && it.is_live()) {
            return;
        }
        let here = &self.host.shards[&shard];
        let epoch = here.epoch();
        while session < SESSIONS && !here.sessions[usize::from(session)].is_there() {
            session += 1;
        }
        let is_end = session == SESSIONS;
        let item = if is_end {
            Item::FillEnd { shard, at: Version { epoch, seq: here.seq } }
        } else {
            let state = here.sessions[usize::from(session)].clone();
            Item::Fill { shard, epoch, session, state }
        };
        let last = self.push(ctx, to, item);
        if let Some(follow) = self.follow(shard, id) {
            follow.last = last;
        }
        let feed = self.feeds.by_node.get_mut(&to).expect("it steps");
        if is_end {
            feed.milestones.push_back((last, ShardEpoch { shard, epoch }, id));
        } else {
            feed.filling = Some((shard, id, session + 1));
        }
    }

    // ---- streams ---------------------------------------------------------------------------

    pub(crate) fn open_stream(&mut self, ctx: &mut Ctx, to: NodeBoot) {
        let host = ctx.host_of(to.node);
        let conn = host.and_then(|host| ctx.connect(self.at, host, to.boot, Kind::Bulk));
        let Some(feed) = self.feeds.by_node.get_mut(&to) else { return };
        feed.dials = false;
        match conn {
            Some(_) => {
                (feed.conn, feed.sent) = (conn, feed.outbox.acked());
                self.flush(ctx, to);
            }
            None => self.stream_later(ctx, to),
        }
    }

    fn stream_later(&mut self, ctx: &mut Ctx, to: NodeBoot) {
        let Some(feed) = self.feeds.by_node.get_mut(&to) else { return };
        if feed.outbox.acked() < feed.outbox.last() && !std::mem::replace(&mut feed.dials, true) {
            ctx.after(self.at, feed.pause, Happens::Stream(to));
            feed.pause = (feed.pause * 2).min(PAUSE_MAX);
        }
    }

    /// A stream broke. Whether it was one to copies.
    pub(crate) fn is_stream_broken(&mut self, ctx: &mut Ctx, conn: u64) -> bool {
        let of_conn = |(_, feed): &(&NodeBoot, &Feed)| feed.conn == Some(conn);
        let Some(to) = self.feeds.by_node.iter().find(of_conn).map(|(to, _)| *to) else {
            return false;
        };
        let feed = self.feeds.by_node.get_mut(&to).expect("just found");
        feed.conn = None;
        // Without this rule what was sent counts as taken in.
        if !ctx.knobs.rules.entries_stay {
            let sent = feed.sent;
            self.on_acked(ctx, to, sent);
        }
        self.stream_later(ctx, to);
        true
    }

    pub(crate) fn on_taken(
        &mut self,
        ctx: &mut Ctx,
        to: NodeBoot,
        position: u64,
        refused: &[(u64, ShardId, Lost)],
    ) {
        // First: what was refused counts as taken in, and nobody may believe that it was.
        for &(at, shard, why) in refused {
            let here = self.host.shards.get_mut(&shard);
            let follow = here.and_then(|here| here.follows.iter_mut().find(|it| it.to == to));
            if let Some(follow) = follow
                && matches!(follow.phase, Phase::Live { since } if since <= at)
            {
                follow.phase = Phase::Lost;
                ctx.note(|| {
                    format!("n{}: {} does not follow {shard}: {why:?}", self.at.0, to.node)
                });
                self.recompute(ctx, shard);
                self.report_lost(ctx, to, shard, why);
            }
        }
        self.on_acked(ctx, to, position);
    }

    fn on_acked(&mut self, ctx: &mut Ctx, to: NodeBoot, position: u64) {
        let now = ctx.now();
        let Some(feed) = self.feeds.by_node.get_mut(&to) else { return };
        if feed.outbox.ack(now, position).is_some() {
            feed.pause = PAUSE_FIRST;
        }
        let acked = feed.outbox.acked();
        let mut shards = Vec::new();
        while let Some(&(_, at, id)) = feed.milestones.front().filter(|(at, ..)| *at <= acked) {
            feed.milestones.pop_front();
            let here = self.host.shards.get_mut(&at.shard);
            let follow =
                here.and_then(|here| here.follows.iter_mut().find(|it| it.id == id && it.to == to));
            let Some(follow) = follow.filter(|follow| follow.is_live()) else { continue };
            let was_awaited = follow.is_awaited();
            follow.is_catching = true;
            if was_awaited || follow.last <= acked {
                shards.push(at);
            } else {
                // It may lack what was answered since its fill ended.
                let last = follow.last;
                let place = feed.milestones.partition_point(|(at, ..)| *at <= last);
                feed.milestones.insert(place, (last, at, id));
            }
        }
        shards.iter().for_each(|at| self.tell_awaited(ctx, at.shard));
        if !shards.is_empty() {
            ctx.after(self.at, Duration::ZERO, Happens::Reported(Event::Filled { to, shards }));
        }
        self.look_at_waiting(ctx);
    }

    /// Looks whether somebody is silent for whom answers wait.
    pub(crate) fn watch(&mut self, ctx: &mut Ctx, to: NodeBoot) {
        let is_awaited = |here: &Shard| {
            here.follows.iter().any(|it| it.to == to && (it.is_awaited() || it.is_live()))
        };
        let is_awaited = self.host.shards.values().any(is_awaited);
        let Some(feed) = self.feeds.by_node.get_mut(&to) else { return };
        let Some(since) = feed.outbox.silent_since() else {
            feed.watches = false;
            return;
        };
        let due = since + SILENT_AFTER;
        let now = ctx.now();
        if is_awaited && due <= now {
            ctx.after(self.at, Duration::ZERO, Happens::Reported(Event::FollowerSilent(to)));
            ctx.after(self.at, SILENT_AFTER, Happens::Watch(to));
        } else {
            let at = due.max(now + ms(50));
            ctx.sim.timer(self.at, at, Happens::Watch(to));
        }
    }

    // ---- waiting ---------------------------------------------------------------------------

    pub(crate) fn waits(&self, shard: ShardId) -> Vec<(NodeBoot, u64)> {
        let follows = self.host.shards.get(&shard).map_or(&[][..], |here| &here.follows);
        let members = follows.iter().filter(|it| it.is_awaited());
        members.map(|it| (it.to, it.awaited())).filter(|it| !self.is_acked(*it)).collect()
    }

    pub(crate) fn is_acked(&self, (to, position): (NodeBoot, u64)) -> bool {
        self.feeds.by_node.get(&to).is_some_and(|feed| position <= feed.outbox.acked())
    }

    /// Lets an answer out once all members have what the shard is now.
    pub(crate) fn answer_when_acked(
        &mut self,
        ctx: &mut Ctx,
        ask: Ask,
        life: u64,
        answer: Answer,
        ops: Vec<u32>,
    ) {
        let waits = self.waits(ask.shard);
        let is_acked = waits.is_empty();
        let unacked = Unacked { ask, life, answer, ops, waits, disk: None };
        if is_acked {
            self.answer_when_saved(ctx, unacked);
        } else {
            ctx.note(|| format!("n{}: answer {} waits for {:?}", self.at.0, ask.op, unacked.waits));
            self.feeds.unacked.push(unacked);
        }
    }

    /// Lets an answer out that copies wait for no more, once the disk has what the shard is now.
    fn answer_when_saved(&mut self, ctx: &mut Ctx, unacked: Unacked) {
        let Unacked { ask, life, answer, ops, waits, disk } = unacked;
        let Some(position) = disk.or_else(|| self.disk_wait(ask.shard)) else {
            self.answer(ctx, &ask, life, answer, ops);
            return;
        };
        match self.disk_has(ctx, position, &ask) {
            Some(true) => {
                let ops = self.confirmed(ctx, position, &ask, ops);
                self.answer(ctx, &ask, life, answer, ops);
            }
            Some(false) => self.answer(ctx, &ask, life, Answer::Unknown, Vec::new()),
            None => {
                let disk = Some(position);
                self.feeds.unacked.push(Unacked { ask, life, answer, ops, waits, disk });
            }
        }
    }

    /// Those who follow the shard have changed: who waits for them looks again.
    fn recompute(&mut self, ctx: &mut Ctx, shard: ShardId) {
        self.tell_awaited(ctx, shard);
        let waits = self.waits(shard);
        let of_shard = |it: &&mut Unacked| it.ask.shard == shard && it.disk.is_none();
        for unacked in self.feeds.unacked.iter_mut().filter(of_shard) {
            unacked.waits.clone_from(&waits);
        }
        self.look_at_waiting(ctx);
    }

    fn tell_awaited(&self, ctx: &mut Ctx, shard: ShardId) {
        let follows = self.host.shards.get(&shard).map_or(&[][..], |here| &here.follows);
        let awaited = follows.iter().filter(|it| it.is_awaited()).map(|it| it.to);
        ctx.oracle.awaits(self.me, shard, awaited.collect());
    }

    pub(crate) fn look_at_waiting(&mut self, ctx: &mut Ctx) {
        let mut still = Vec::new();
        for mut unacked in std::mem::take(&mut self.feeds.unacked) {
            let here = self.host.shards.get(&unacked.ask.shard);
            let is_here = here.is_some_and(|here| here.life == unacked.life);
            unacked.waits.retain(|it| !self.is_acked(*it));
            if !is_here {
                let Unacked { ask, life, .. } = unacked;
                self.answer(ctx, &ask, life, Answer::Unknown, Vec::new());
            } else if unacked.waits.is_empty() {
                self.answer_when_saved(ctx, unacked);
            } else {
                still.push(unacked);
            }
        }
        still.append(&mut self.feeds.unacked);
        self.feeds.unacked = still;
        self.look_at_seals(ctx);
    }

    // ---- seals -----------------------------------------------------------------------------

    pub(crate) fn is_sealing(&mut self, handoff: HandoffId, shards: &[ShardId]) {
        self.feeds.sealing.insert(handoff, shards.to_vec());
    }

    /// A seal has ended when nothing runs and every member has everything.
    pub(crate) fn look_at_seals(&mut self, ctx: &mut Ctx) {
        let has_ended = |(handoff, shards): (&HandoffId, &Vec<ShardId>)| {
            let goes_on = self.host.seal_goes_on(*handoff);
            let waits = |shard: &ShardId| {
                let gate = self.host.shards.get(shard).map(|here| here.gate);
                matches!(gate, Some(Gate::Sealed(_))) && !self.waits(*shard).is_empty()
            };
            (!goes_on && !shards.iter().any(waits)).then_some(*handoff)
        };
        let ended: Vec<HandoffId> = self.feeds.sealing.iter().filter_map(has_ended).collect();
        for handoff in ended {
            let shards = self.feeds.sealing.remove(&handoff).unwrap_or_default();
            self.seal_has_ended(ctx, handoff, shards);
        }
    }
}
