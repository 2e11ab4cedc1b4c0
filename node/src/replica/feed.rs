//! One follower as shards see it: they append, and wait for what they have appended.
//!
//! A feed does not know who drains it. For another node it is a task that sends
//! ([`super::stream`]); whoever else can keep entries, like a log on disk, takes them from
//! [`Feed::frame_after`] and says [`Feed::ack`].
//!
//! Its lock is taken after a shard's lock, never before it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use stead_shared::control::ShardEpoch;
use stead_shared::id::{NodeBoot, ShardId};
use stead_shared::time::Time;
use tokio::sync::{Notify, mpsc, oneshot};

use super::ReplicaReport;
use super::frame::{self, FrameWriter};
use super::meters::FeedMeters;
use crate::logic::replication::{Lost, Outbox};
use crate::store::shard::Shard;

/// Items are gathered to about this size.
const FRAME: usize = 60 * 1024;

pub(crate) struct Feed {
    to: NodeBoot,
    state: Mutex<State>,
    /// There is something to take.
    pub(super) queued: Notify,
    /// Something waits for an acknowledgement, and nothing did before; or others count on it.
    pub(super) busy: Notify,
    /// There is room, or those who wait for it should look again.
    room: Notify,
    /// A copy is to be filled.
    pub(super) to_fill: Notify,
    /// Nobody uses it any more.
    pub(super) idle: Notify,
    reports: mpsc::UnboundedSender<ReplicaReport>,
    meters: Arc<FeedMeters>,
}

struct State {
    addr: SocketAddr,
    outbox: Outbox<Bytes>,
    /// Those who wait for a position, in its order.
    waiters: BTreeMap<(u64, u64), (ShardId, oneshot::Sender<()>)>,
    waiter_last: u64,
    milestones: VecDeque<Milestone>,
    fills: VecDeque<(Arc<Shard>, u64)>,
    /// One of them is under way.
    is_filling: bool,
    /// Shards that it follows, and those who are about to name some.
    users: usize,
    /// Followers of shards whose changes it has to take.
    followers: usize,
}

/// With this position a copy is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Milestone {
    pub(crate) position: u64,
    pub(crate) at: ShardEpoch,
    /// Of which follower of the shard.
    pub(crate) follow: u64,
    pub(crate) is_fill: bool,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("to", &self.to).finish_non_exhaustive()
    }
}

impl Feed {
    /// Its first position comes after `after`.
    pub(super) fn new(
        (to, addr): (NodeBoot, SocketAddr),
        after: u64,
        bytes_max: usize,
        reports: mpsc::UnboundedSender<ReplicaReport>,
        meters: Arc<FeedMeters>,
    ) -> Self {
        let state = State {
            addr,
            outbox: Outbox::new(after, bytes_max),
            waiters: BTreeMap::new(),
            waiter_last: 0,
            milestones: VecDeque::new(),
            fills: VecDeque::new(),
            is_filling: false,
            users: 0,
            followers: 0,
        };
        Self {
            to,
            state: Mutex::new(state),
            queued: Notify::new(),
            busy: Notify::new(),
            room: Notify::new(),
            to_fill: Notify::new(),
            idle: Notify::new(),
            reports,
            meters,
        }
    }

    pub(crate) fn to(&self) -> NodeBoot {
        self.to
    }

    pub(super) fn meters(&self) -> &FeedMeters {
        &self.meters
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- who uses it ----

    pub(crate) fn attach(&self) {
        self.lock().users += 1;
    }

    pub(crate) fn detach(&self) {
        let mut state = self.lock();
        state.users -= 1;
        if state.users == 0 {
            self.meters.unacked.decrement(state.outbox.bytes() as f64);
            state.outbox.clear();
            state.waiters.clear();
            state.milestones.clear();
            let fills = std::mem::take(&mut state.fills);
            drop(state);
            // A shard that goes with them detaches too.
            drop(fills);
            self.room.notify_waiters();
            self.idle.notify_one();
        }
    }

    pub(crate) fn count_follower(&self, counts: bool) {
        let mut state = self.lock();
        if counts {
            state.followers += 1;
        } else {
            state.followers -= 1;
        }
        drop(state);
        self.busy.notify_one();
    }

    pub(super) fn is_used(&self) -> bool {
        0 < self.lock().users
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.lock().addr
    }

    pub(super) fn set_addr(&self, addr: SocketAddr) {
        self.lock().addr = addr;
    }

    // ---- what shards do ----

    /// Appends an item and gives its position.
    pub(crate) fn push(&self, now: Time, item: Bytes) -> u64 {
        self.push_with(now, item, |_, _| ())
    }

    /// Appends the item that completes a copy.
    pub(crate) fn push_milestone(
        &self,
        now: Time,
        item: Bytes,
        (at, follow): (ShardEpoch, u64),
        is_fill: bool,
    ) -> u64 {
        self.push_with(now, item, |state, position| {
            state.milestones.push_back(Milestone { position, at, follow, is_fill });
        })
    }

    fn push_with(&self, now: Time, item: Bytes, also: impl FnOnce(&mut State, u64)) -> u64 {
        let mut state = self.lock();
        let was_empty = state.outbox.bytes() == 0;
        let bytes = item.len();
        let position = state.outbox.push(now, item, bytes);
        also(&mut state, position);
        drop(state);
        self.meters.unacked.increment(bytes as f64);
        self.queued.notify_one();
        if was_empty {
            self.busy.notify_one();
        }
        position
    }

    /// Waits until `position` is acknowledged; none when it is already. An error means that the
    /// one who waits should look again at what it waits for.
    pub(crate) fn wait(&self, shard: ShardId, position: u64) -> Option<oneshot::Receiver<()>> {
        let mut state = self.lock();
        if position <= state.outbox.acked() {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        state.waiter_last += 1;
        let key = (position, state.waiter_last);
        state.waiters.insert(key, (shard, sender));
        Some(receiver)
    }

    /// Those who wait for something of this shard look again.
    pub(crate) fn release(&self, shard: ShardId) {
        let mut state = self.lock();
        if !state.waiters.is_empty() {
            state.waiters.retain(|_, (waits_for, _)| *waits_for != shard);
        }
        drop(state);
        self.room.notify_waiters();
    }

    pub(crate) fn is_full(&self) -> bool {
        let state = self.lock();
        state.outbox.is_full(state.is_filling)
    }

    /// Resolves when there may be room. It is registered when this returns.
    pub(crate) fn room(&self) -> tokio::sync::futures::Notified<'_> {
        self.room.notified()
    }

    pub(crate) fn count_lost_fill(&self) {
        self.meters.fills_lost.increment(1);
    }

    pub(crate) fn report_lost(&self, shard: ShardId, why: Lost) {
        // Without the driver the process ends.
        let _ = self
            .reports
            .send(ReplicaReport::FollowerLost { to: self.to, shards: vec![(shard, why)] });
    }

    // ---- fills ----

    pub(crate) fn fill_later(&self, shard: Arc<Shard>, follow: u64) {
        self.lock().fills.push_back((shard, follow));
        self.to_fill.notify_one();
    }

    pub(super) fn next_fill(&self) -> Option<(Arc<Shard>, u64)> {
        let mut state = self.lock();
        let next = state.fills.pop_front();
        if std::mem::replace(&mut state.is_filling, next.is_some()) && next.is_none() {
            drop(state);
            self.room.notify_waiters();
        }
        next
    }

    /// Waits until there is room for a piece of a fill.
    pub(super) async fn room_for_fill(&self) {
        loop {
            let room = self.room.notified();
            if !self.lock().outbox.is_full(true) {
                return;
            }
            room.await;
        }
    }

    // ---- what drains it ----

    pub(super) fn acked(&self) -> u64 {
        self.lock().outbox.acked()
    }

    pub(super) fn last(&self) -> u64 {
        self.lock().outbox.last()
    }

    /// A frame of what comes after `position`, for one that speaks this version of the link's
    /// protocol, and the position of the last item in it.
    pub(super) fn frame_after(&self, position: u64, protocol: u8) -> Option<(Bytes, u64)> {
        let mut items = Vec::new();
        let state = self.lock();
        let (mut bytes, mut first) = (0, 0);
        for (at, item) in state.outbox.unacked(position) {
            if items.is_empty() {
                first = at;
            } else if FRAME < bytes + item.len() {
                break;
            }
            bytes += item.len();
            items.push(item.clone());
        }
        drop(state);
        let last = first + items.len().checked_sub(1)? as u64;
        let mut frame = FrameWriter::new(first);
        for item in &items {
            frame.put(&frame::for_peer(item, protocol));
        }
        self.meters.sent.increment(frame.len() as u64);
        Some((frame.finish(), last))
    }

    /// Everything up to `position` was taken in. Gives what is complete by that.
    pub(super) fn ack(&self, now: Time, position: u64) -> Vec<Milestone> {
        let mut state = self.lock();
        let before = state.outbox.bytes();
        if let Some(waited) = state.outbox.ack(now, position) {
            self.meters.ack_seconds.record(waited.as_secs_f64());
        }
        self.meters.unacked.decrement((before - state.outbox.bytes()) as f64);
        let acked = state.outbox.acked();
        let later = state.waiters.split_off(&(acked + 1, 0));
        let done = std::mem::replace(&mut state.waiters, later);
        let n_reached = state.milestones.partition_point(|it| it.position <= acked);
        let reached = state.milestones.drain(..n_reached).collect();
        drop(state);
        for (_, waiter) in done.into_values() {
            // It may have stopped waiting.
            let _ = waiter.send(());
        }
        self.room.notify_waiters();
        reached
    }

    /// Whether the position of a milestone was acknowledged. Otherwise it is told of when it is.
    pub(crate) fn has(&self, milestone: Milestone) -> bool {
        let mut state = self.lock();
        if milestone.position <= state.outbox.acked() {
            return true;
        }
        // Those of other shards may be further.
        let place = state.milestones.partition_point(|it| it.position <= milestone.position);
        state.milestones.insert(place, milestone);
        false
    }

    /// Since when nothing was acknowledged although somebody counts on it.
    pub(super) fn silent_since(&self) -> Option<Time> {
        let state = self.lock();
        state.outbox.silent_since().filter(|_| 0 < state.followers)
    }

    /// What there is to tell of its acknowledgements, for operators.
    pub(super) fn report(&self, report: ReplicaReport) {
        // Without the driver the process ends.
        let _ = self.reports.send(report);
    }
}

/// The longest wait for room, where nobody has a deadline.
pub(crate) const ROOM_MAX: Duration = Duration::from_secs(10);

/// A feed that somebody is about to use.
#[derive(Debug)]
pub(crate) struct Lease(Arc<Feed>);

impl Lease {
    pub(super) fn new(feed: &Arc<Feed>) -> Self {
        feed.attach();
        Self(Arc::clone(feed))
    }

    pub(crate) fn feed(&self) -> &Arc<Feed> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.detach();
    }
}
