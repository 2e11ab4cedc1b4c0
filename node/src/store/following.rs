//! Who follows a shard: replicas that get an entry for each of its changes, and for whose
//! acknowledgement its answers wait.
//!
//! ```text
//!  Queued ──fill begins──▶ Live ──refused, or too slow──▶ Lost
//!     adopt ──────────────▶
//! ```
//! What is answered while a copy is filled may not be in it when the fill ends. So answers wait for
//! it from then on, and it is complete only when it has all that was answered before: it is
//! [catching up](Follow::is_catching).
//!
//! Everything is appended under the shard's lock, in the order of the changes. A member that is
//! `Lost` is waited for until the set of members is another one: only then can it not be promoted
//! any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use stead_shared::control::ShardEpoch;
use stead_shared::id::{Epoch, NodeBoot, SessionKey, ShardId, Version};
use stead_shared::refusal::Refusal;
use stead_shared::time::Time;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::answers::News;
use super::core::Core;
use super::data::Stored;
use super::draft::Access;
use super::inner::{Inner, Past};
use super::record::Record;
use super::saving::Answers;
use super::shard::{Shard, overloaded};
use crate::logic::gate::Gate;
use crate::logic::replication::Lost;
use crate::logic::window::Trim;
use crate::replica::Adoption;
use crate::replica::feed::{Feed, Milestone, ROOM_MAX};
use crate::replica::frame::Head;

/// Most records of one step of a fill, and most slots it looks at: see [`super::copy`].
const STEP_RECORDS_MAX: usize = 256;
const STEP_SLOTS_MAX: usize = 2048;
/// Most bytes of one step.
const STEP_BYTES_MAX: u64 = 64 * 1024;

/// All followers of one shard; never empty.
pub(super) struct Followers {
    shard: ShardId,
    list: Vec<Follow>,
}

struct Follow {
    /// Nobody else of this shard has or had it.
    id: u64,
    feed: Arc<Feed>,
    is_member: bool,
    /// Its copy was filled, and answers wait for it as long as it follows.
    is_catching: bool,
    /// Whether its feed counts on it.
    is_counted: bool,
    phase: Phase,
    /// Whether its copy is not complete.
    is_filling: bool,
    /// Position of the last item of this shard.
    last: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Live {
        /// Position of the first item.
        since: u64,
    },
    Lost,
}

impl Follow {
    fn new(feed: &Arc<Feed>, id: u64, phase: Phase, last: u64) -> Self {
        feed.attach();
        Self {
            id,
            feed: Arc::clone(feed),
            is_member: false,
            is_catching: false,
            is_counted: false,
            phase,
            is_filling: false,
            last,
        }
    }

    fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    /// Whether answers wait for it.
    fn is_awaited(&self) -> bool {
        self.is_member || (self.is_catching && self.is_live())
    }

    fn set_member(&mut self, is_member: bool) {
        self.is_member = is_member;
        self.recount();
    }

    /// What is not awaited yet must not be silent either: it holds changes back.
    fn recount(&mut self) {
        let counts = self.is_member || self.is_live();
        if std::mem::replace(&mut self.is_counted, counts) != counts {
            self.feed.count_follower(counts);
        }
    }

    fn lose(&mut self) {
        self.phase = Phase::Lost;
        self.recount();
        if std::mem::take(&mut self.is_filling) {
            self.feed.count_lost_fill();
        }
    }

    /// What answers wait for: more than it will ever have, where it does not follow.
    fn awaited(&self) -> u64 {
        if self.is_live() { self.last } else { u64::MAX }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.phase = Phase::Lost;
        self.set_member(false);
        self.feed.detach();
    }
}

impl Followers {
    fn append(&mut self, now: Time, head: Head, record: impl FnOnce(&mut Vec<u8>)) {
        if !self.list.iter().any(Follow::is_live) {
            return;
        }
        let item = head.item(record);
        for follow in self.list.iter_mut().filter(|follow| follow.is_live()) {
            follow.last = follow.feed.push(now, item.clone());
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Follow> {
        self.list.iter_mut().find(|follow| follow.id == id)
    }

    fn release(&self) {
        for follow in &self.list {
            follow.feed.release(self.shard);
        }
    }
}

/// What a follower keeps a session for longer by than its owner does, so that no copy loses one
/// that its owner still has: accesses are told only once in that time.
pub(super) fn grace(core: &Core, stored: &Stored) -> std::time::Duration {
    core.ttl(stored.data.ttl_micros) / 4
}

fn record<'a>(core: &Core, stored: &'a Stored) -> Record<'a> {
    let expires = stored.expires + grace(core, stored);
    Record::of(&stored.key, &stored.data, expires, core.now())
}

fn record_of_change<'a>(core: &Core, stored: &'a Stored, news: News) -> Record<'a> {
    let session = (&*stored.key, &stored.data, stored.expires + grace(core, stored));
    let came = news.came.zip(stored.data.window());
    let entry = came.and_then(|(is_keyed, window)| window.newest(is_keyed));
    Record::of_change(session, (news.trim, entry), core.now())
}

impl Inner {
    /// Copies of the shard that answers wait for, and the one here.
    pub(super) fn n_copies(&self) -> usize {
        let followers = self.followers.as_ref().map_or(&[][..], |followers| &followers.list);
        1 + followers.iter().filter(|follow| follow.is_member && follow.is_live()).count()
    }

    /// Whether answers wait for no copy.
    pub(super) fn is_alone(&self) -> bool {
        let followers = self.followers.as_ref().map_or(&[][..], |followers| &followers.list);
        !followers.iter().any(|follow| follow.is_member)
    }

    /// Gives the next change its number, which is above `above`. Whoever calls it makes the change
    /// and then [tells](Self::tell) it.
    pub(super) fn next_seq(&mut self, above: u64) -> u64 {
        let prev = self.seq;
        self.seq = self.seq.max(above) + 1;
        self.origin = None;
        prev
    }

    /// Tells the followers of a change that is made: the session is as it is now, and its window
    /// beside this news as it was. The shard was at `prev` before.
    pub(super) fn tell(&mut self, core: &Core, prev: u64, key: &SessionKey, news: News) {
        self.save(core, key, Answers::came(news.came));
        let (Some(followers), Some(epoch)) = (&mut self.followers, self.gate.epoch()) else {
            return;
        };
        let key = key.as_bytes();
        let stored = self.sessions.at_rest(key);
        let gone = Record::Gone { key };
        let record = stored.map_or(gone, |stored| record_of_change(core, stored, news));
        let (shard, prev) = (followers.shard, Version { epoch, seq: prev });
        let head = Head::Entry { shard, epoch, seq: self.seq, prev };
        followers.append(core.now(), head, |out| record.encode_to(out));
    }

    /// Tells the followers of a session all of which is new to them.
    pub(super) fn tell_arrival(&mut self, core: &Core, prev: u64, key: &SessionKey) {
        self.save(core, key, Answers::All);
        let (Some(followers), Some(epoch)) = (&mut self.followers, self.gate.epoch()) else {
            return;
        };
        let Some(stored) = self.sessions.at_rest(key.as_bytes()) else { return };
        let (shard, prev) = (followers.shard, Version { epoch, seq: prev });
        let head = Head::Entry { shard, epoch, seq: self.seq, prev };
        followers.append(core.now(), head, |out| record(core, stored).encode_to(out));
    }

    /// Tells the followers that entries of a session's window have left.
    pub(super) fn tell_trim(&mut self, core: &Core, prev: u64, key: &SessionKey, trim: Trim) {
        self.save(core, key, Answers::All);
        self.save_past();
        let floor_ms = self.floor_ms();
        let (Some(followers), Some(epoch)) = (&mut self.followers, self.gate.epoch()) else {
            return;
        };
        let (key, Trim { recent: recent_gone, keyed: keyed_gone }) = (key.as_bytes(), trim);
        let record = Record::Trimmed { key, recent_gone, keyed_gone, floor_ms };
        let (shard, prev) = (followers.shard, Version { epoch, seq: prev });
        let head = Head::Entry { shard, epoch, seq: self.seq, prev };
        followers.append(core.now(), head, |out| record.encode_to(out));
    }

    /// Tells the followers that the shard goes on counting at its number.
    pub(super) fn tell_seq(&mut self, core: &Core, prev: u64) {
        self.save_gate();
        if self.followers.is_none() {
            return;
        }
        let past = self.past();
        let (Some(followers), Some(epoch)) = (&mut self.followers, self.gate.epoch()) else {
            return;
        };
        let (shard, seq) = (followers.shard, self.seq);
        let head = Head::Entry { shard, epoch, seq, prev: Version { epoch, seq: prev } };
        let record = Record::of_shard(seq, past);
        followers.append(core.now(), head, |out| record.encode_to(out));
    }

    /// Tells the followers of an access after which the session expires later than at `before`,
    /// if it matters to them.
    pub(super) fn tell_touch(&mut self, core: &Core, key: &SessionKey, before: Time) {
        let Some(stored) = self.sessions.get(key.as_bytes()) else { return };
        let grace = grace(core, stored);
        let quarter = u64::try_from(grace.as_micros()).unwrap_or(u64::MAX).max(1);
        if before.as_micros() / quarter == stored.expires.as_micros() / quarter {
            return;
        }
        self.save_touch(core, key);
        let Some(stored) = self.sessions.get(key.as_bytes()) else { return };
        let (Some(followers), Some(epoch)) = (&mut self.followers, self.gate.epoch()) else {
            return;
        };
        let now = core.now();
        let record = Record::touched(key.as_bytes(), stored.expires + grace, now);
        let head = Head::Touch { shard: followers.shard, epoch };
        followers.append(now, head, |out| record.encode_to(out));
    }

    /// The shard was served in `old` and will be in `new`: followers go along.
    pub(super) fn follow_epoch(&mut self, core: &Core, old: Epoch, new: Epoch) {
        if old == new {
            return;
        }
        self.origin = Some(old);
        let prev = Version { epoch: old, seq: self.seq };
        self.note_epoch(prev);
        if let Some(followers) = &mut self.followers {
            let head = Head::NextEpoch { shard: followers.shard, epoch: new, prev };
            followers.append(core.now(), head, |_| {});
            // Whoever waits for the end of a seal learns that it is over.
            followers.release();
        }
    }

    /// Lets all followers go; those who wait for them look again.
    pub(super) fn let_go(&mut self) {
        if let Some(followers) = self.followers.take() {
            followers.release();
        }
    }

    fn remove_follower(&mut self, is_it: impl Fn(&Follow) -> bool) {
        let Some(followers) = &mut self.followers else { return };
        let shard = followers.shard;
        followers.list.retain(|follow| {
            let goes = is_it(follow);
            if goes {
                follow.feed.release(shard);
            }
            !goes
        });
        if followers.list.is_empty() {
            self.followers = None;
        }
    }

    /// Puts a follower in. One to the same node is replaced; answers wait for it as they did.
    fn add_follower(&mut self, shard: ShardId, mut follow: Follow) {
        let followers =
            self.followers.get_or_insert_with(|| Box::new(Followers { shard, list: Vec::new() }));
        let to = follow.feed.to();
        match followers.list.iter_mut().find(|old| old.feed.to() == to) {
            Some(old) => {
                let was_member = old.is_member || follow.is_member;
                follow.set_member(was_member);
                *old = follow;
                old.feed.release(shard);
            }
            None => followers.list.push(follow),
        }
    }
}

/// How far a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FillStep {
    More,
    /// It is complete, or of no use any more.
    Ended,
}

impl Shard {
    /// Whether there is a follower, or was until the shard went. Without one it costs nothing.
    pub(crate) fn is_followed(&self) -> bool {
        self.is_followed.load(Ordering::Acquire)
    }

    fn note_followed(&self, inner: &mut Inner) {
        inner.save_set();
        // Of a shard that is gone it stays: what waits must learn that it is gone.
        if inner.gate != Gate::Gone {
            self.is_followed.store(inner.followers.is_some(), Ordering::Release);
        }
    }

    /// Whose acknowledgement answers wait for. Others that were members go; those that are on
    /// their way stay. Gives the members that do not follow.
    pub(crate) fn set_followers(&self, members: &[NodeBoot]) -> Vec<NodeBoot> {
        let mut inner = self.lock();
        let mut missing = members.to_vec();
        if let Some(followers) = &mut inner.followers {
            for follow in &mut followers.list {
                let to = follow.feed.to();
                if members.contains(&to) {
                    follow.set_member(true);
                    missing.retain(|member| *member != to);
                }
            }
        }
        inner.remove_follower(|follow| follow.is_member && !members.contains(&follow.feed.to()));
        self.note_followed(&mut inner);
        missing
    }

    /// No more goes to that follower. Whether answers still wait for it is for
    /// [`set_followers`](Self::set_followers) to say.
    pub(crate) fn unfollow(&self, to: NodeBoot) {
        let mut inner = self.lock();
        inner.remove_follower(|follow| follow.feed.to() == to && !follow.is_member);
        if let Some(followers) = &mut inner.followers {
            let shard = followers.shard;
            if let Some(member) = followers.list.iter_mut().find(|it| it.feed.to() == to) {
                member.lose();
                // What they wait for will never be acknowledged.
                member.feed.release(shard);
            }
        }
        self.note_followed(&mut inner);
    }

    /// A follower to come, whose copy is filled when its turn comes.
    pub(crate) fn queue_fill(self: &Arc<Self>, feed: &Arc<Feed>, epoch: Epoch) -> Result<(), Lost> {
        let mut inner = self.lock();
        self.serves(&inner, epoch)?;
        let id = inner.next_id();
        inner.add_follower(self.id(), Follow::new(feed, id, Phase::Queued, 0));
        self.note_followed(&mut inner);
        feed.fill_later(Arc::clone(self), id);
        Ok(())
    }

    /// A follower whose copy ends where this shard began. `is_member`: answers wait for it from
    /// now on.
    pub(crate) fn adopt(
        &self,
        feed: &Arc<Feed>,
        epoch: Epoch,
        is_member: bool,
    ) -> Result<(), Lost> {
        self.adopt_in(&mut self.lock(), feed, epoch, is_member)
    }

    /// As [`adopt`](Self::adopt), of those who were meant to follow from the shard's begin on.
    pub(crate) fn adopt_or_tell(&self, adoptions: &[Adoption]) {
        if !adoptions.is_empty() {
            self.adopt_or_tell_in(&mut self.lock(), adoptions);
        }
    }

    pub(super) fn adopt_or_tell_in(&self, inner: &mut Inner, adoptions: &[Adoption]) {
        for Adoption { lease, epoch, is_member } in adoptions {
            if let Err(why) = self.adopt_in(inner, lease.feed(), *epoch, *is_member) {
                lease.feed().report_lost(self.id(), why);
            }
        }
    }

    fn adopt_in(
        &self,
        inner: &mut Inner,
        feed: &Arc<Feed>,
        epoch: Epoch,
        is_member: bool,
    ) -> Result<(), Lost> {
        self.serves(inner, epoch)?;
        let origin = inner.origin.ok_or(Lost::Behind)?;
        let (shard, id) = (self.id(), inner.next_id());
        let prev = Version { epoch: origin, seq: inner.seq };
        let item = Head::Adopt { shard, epoch, prev }.item(|_| {});
        let at = ShardEpoch { shard, epoch };
        let since = feed.push_milestone(self.core.now(), item, (at, id), false);
        let mut follow = Follow::new(feed, id, Phase::Live { since }, since);
        follow.set_member(is_member);
        inner.add_follower(shard, follow);
        self.note_followed(inner);
        Ok(())
    }

    fn serves(&self, inner: &Inner, epoch: Epoch) -> Result<(), Lost> {
        match inner.gate {
            Gate::Serving(served) if served == epoch => Ok(()),
            Gate::Serving(served) if epoch < served => Err(Lost::HigherEpoch(served)),
            Gate::Serving(_) | Gate::Sealed(_) | Gate::Gone => Err(Lost::NoCopy),
        }
    }

    /// Begins the fill of a follower that still wants it.
    pub(crate) fn begin_fill(&self, id: u64) -> bool {
        let mut inner = self.lock();
        let (Some(epoch), seq) = (inner.gate.epoch(), inner.seq) else { return false };
        let past = inner.past();
        let Some(followers) = &mut inner.followers else { return false };
        let shard = followers.shard;
        let queued = followers.find(id).filter(|follow| follow.phase == Phase::Queued);
        let Some(follow) = queued else { return false };
        let item = Head::FillBegin { shard, at: Version { epoch, seq } }.item(|_| {});
        let since = follow.feed.push(self.core.now(), item);
        (follow.phase, follow.last) = (Phase::Live { since }, since);
        if past != Past::default() {
            let record = Record::of_shard(seq, past);
            let item = Head::Fill { shard, epoch }.item(|out| record.encode_to(out));
            follow.last = follow.feed.push(self.core.now(), item);
        }
        follow.is_filling = true;
        follow.recount();
        // Those who wait for it know now what for.
        follow.feed.release(shard);
        true
    }

    /// Appends the next sessions from slot `cursor` on, as they are now, or the end.
    pub(crate) fn fill_step(&self, id: u64, cursor: &mut usize) -> FillStep {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let (Some(epoch), seq, shard) = (inner.gate.epoch(), inner.seq, self.id()) else {
            return FillStep::Ended;
        };
        let follow = inner.followers.as_mut().and_then(|followers| followers.find(id));
        let Some(follow) = follow.filter(|follow| follow.is_live()) else {
            return FillStep::Ended;
        };
        let now = self.core.now();
        let (mut n_records, mut bytes) = (0, 0);
        for _ in 0..STEP_SLOTS_MAX {
            let Some(slot) = inner.sessions.slots.get(*cursor) else {
                let at = Version { epoch, seq };
                let item = Head::FillEnd { shard, at }.item(|_| {});
                let milestone = (ShardEpoch { shard, epoch }, id);
                follow.last = follow.feed.push_milestone(now, item, milestone, true);
                return FillStep::Ended;
            };
            *cursor += 1;
            let Some(stored) = slot else { continue };
            let item =
                Head::Fill { shard, epoch }.item(|out| record(&self.core, stored).encode_to(out));
            n_records += 1;
            bytes += item.len() as u64;
            follow.last = follow.feed.push(now, item);
            if STEP_RECORDS_MAX <= n_records || STEP_BYTES_MAX <= bytes {
                break;
            }
        }
        FillStep::More
    }

    /// What the milestone says has reached the copy of a follower that is still one. Whether that is
    /// all that was answered; if not, another milestone will tell.
    pub(crate) fn completes(&self, milestone: Milestone, to: NodeBoot) -> bool {
        let mut inner = self.lock();
        let follow = inner.followers.as_mut().and_then(|it| it.find(milestone.follow));
        let follow = follow.filter(|follow| follow.feed.to() == to && follow.is_live());
        let Some(follow) = follow else { return false };
        let was_awaited = follow.is_awaited();
        follow.is_catching = true;
        follow.recount();
        let is_complete =
            was_awaited || follow.feed.has(Milestone { position: follow.last, ..milestone });
        if is_complete {
            follow.is_filling = false;
        }
        is_complete
    }

    /// A follower did not take in what is at `position`. False when that was meant for one before
    /// it, or is known.
    pub(crate) fn refused(&self, to: NodeBoot, position: u64) -> bool {
        let mut inner = self.lock();
        let Some(followers) = &mut inner.followers else { return false };
        let shard = followers.shard;
        let Some(follow) = followers.list.iter_mut().find(|it| it.feed.to() == to) else {
            return false;
        };
        match follow.phase {
            Phase::Live { since } if since <= position => {}
            Phase::Live { .. } | Phase::Queued | Phase::Lost => return false,
        }
        follow.lose();
        // What they wait for will never be acknowledged.
        follow.feed.release(shard);
        true
    }

    // ---- waiting ----

    /// Waits until every member, and the disk if answers wait for it, has what the shard was when
    /// this was called. False when the shard is gone, or the disk fails: whether anybody has it is
    /// not known then. Reads do not wait for a disk that fails.
    pub(crate) async fn acknowledged(&self, access: Access) -> bool {
        self.is_with_followers().await && self.is_on_disk(access).await
    }

    async fn is_with_followers(&self) -> bool {
        if !self.is_followed() || !self.core.waits_for_acks() {
            return true;
        }
        loop {
            let Some(waits) = self.waits() else { return false };
            if all(waits).await {
                return true;
            }
        }
    }

    /// As [`acknowledged`](Self::acknowledged), until the shard is not sealed any more.
    pub(crate) async fn acknowledged_while_sealed(&self) {
        while self.is_followed()
            && self.core.waits_for_acks()
            && matches!(self.gate(), Gate::Sealed(_))
            && let Some(waits) = self.waits()
        {
            if all(waits).await {
                return;
            }
        }
    }

    /// Whether `member` has all that was answered: answers wait for it.
    pub(crate) fn is_answered_at(&self, member: NodeBoot) -> bool {
        let inner = self.lock();
        let followers = inner.followers.as_ref().map_or(&[][..], |followers| &followers.list);
        let is_it = |follow: &Follow| follow.is_member && follow.feed.to() == member;
        self.core.waits_for_acks() && followers.iter().any(is_it)
    }

    /// What members have yet to acknowledge; none when the shard is gone.
    fn waits(&self) -> Option<Vec<oneshot::Receiver<()>>> {
        let inner = self.lock();
        inner.gate.epoch()?;
        let Some(followers) = &inner.followers else { return Some(Vec::new()) };
        let members = followers.list.iter().filter(|follow| follow.is_awaited());
        Some(members.filter_map(|it| it.feed.wait(followers.shard, it.awaited())).collect())
    }

    /// Waits until no follower has too much to acknowledge, before something changes.
    ///
    /// # Errors
    /// When that takes too long.
    pub(crate) async fn room(&self, deadline: Option<Instant>) -> Result<(), Refusal> {
        if !self.is_followed() {
            return Ok(());
        }
        let mut until = None;
        while let Some(feed) = self.full_follower() {
            let until = *until.get_or_insert_with(|| {
                let too_old = Instant::now() + self.core.config.mailbox_age_max.min(ROOM_MAX);
                deadline.map_or(too_old, |deadline| deadline.min(too_old))
            });
            let mut room = std::pin::pin!(feed.room());
            room.as_mut().enable();
            if feed.is_full() && timeout_at(until, room).await.is_err() {
                return Err(overloaded());
            }
        }
        Ok(())
    }

    /// Whether no follower has too much to acknowledge.
    pub(super) fn has_room(&self) -> bool {
        !self.is_followed() || self.full_follower().is_none()
    }

    fn full_follower(&self) -> Option<Arc<Feed>> {
        let inner = self.lock();
        let followers = inner.followers.as_ref()?;
        let mut live = followers.list.iter().filter(|follow| follow.is_live());
        live.find(|follow| follow.feed.is_full()).map(|follow| Arc::clone(&follow.feed))
    }
}

/// Whether all of it was acknowledged. Otherwise there is something else to wait for.
async fn all(waits: Vec<oneshot::Receiver<()>>) -> bool {
    for wait in waits {
        if wait.await.is_err() {
            return false;
        }
    }
    true
}
