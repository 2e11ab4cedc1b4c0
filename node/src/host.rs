//! The sessions of one node: who may serve a shard is decided elsewhere, how it is served here.

use std::future::Future;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::TryFutureExt;
use http::{Method, Request, Response, StatusCode, request};
use stead_shared::control::ShardEpoch;
use stead_shared::id::{Epoch, NodeBoot, SessionKey, ShardId, Version};
use stead_shared::net::heard::Heard;
use stead_shared::refusal::Refusal;
use stead_shared::wire::http::{RequestMeta, ResponseMeta};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::body::Body;
use crate::disk::{Beginning, Role, ShardMeta};
use crate::logic::gate::Gate;
use crate::logic::window::Asked;
use crate::once;
use crate::problem::REFUSAL;
use crate::replica::Replicas;
use crate::saved::Kept;
use crate::service::SharedService;
use crate::session::{SessionHandle, Why};
use crate::store::alarms::Next;
use crate::store::arriving::Arriving;
use crate::store::aside::SetAside;
use crate::store::conflicts::Conflict;
use crate::store::copy::ShardCopy;
use crate::store::core::{Core, HostConfig, Unreadable};
use crate::store::draft::Access;
use crate::store::record::{Record, RecordError};
use crate::store::saving::Pen;
use crate::store::shard::{Orphan, Shard, ShardStats};
use crate::store::turns::{Admission, Asker, Begun, Turn};
use crate::turn::{Answer, Job, Outcome, Unstoppable, lost};

/// Bodies up to this length are read before their turn; it is what the link lets a client send
/// before the request is accepted, and what a request of unknown length counts with while it
/// waits.
const BODY_AHEAD_MAX: u64 = 64 * 1024;

/// The sessions of a node by shard, and the service that works on them. Clones are the same.
///
/// All methods but those that return futures return at once. Ownership is the caller's
/// business: a host serves a shard from [`activate_empty`](Self::activate_empty) or
/// [`Incoming::activate`] until [`seal`](Self::seal) or [`drop_shard`](Self::drop_shard).
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    core: Arc<Core>,
    service: SharedService,
    shards: DashMap<ShardId, Arc<Shard>>,
    timer_turns: Arc<Semaphore>,
    replicas: Replicas,
    kept: Kept,
}

/// What a host holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostStats {
    /// Shards that are here, sealed ones included.
    pub shards: usize,
    /// Sessions in them; those of copies that are kept for others are not counted.
    pub sessions: u64,
    /// Their bytes, with an estimate of the overhead; those of arriving shards included, of
    /// shards that were set aside, and of copies that are kept for others.
    pub bytes: u64,
}

impl Host {
    /// A host without shards.
    #[must_use]
    pub fn new(config: HostConfig, service: SharedService) -> Self {
        let timer_turns = Arc::new(Semaphore::new(config.timer_turns_max.max(1)));
        let core = Arc::new(Core::new(config, service.has_hooks()));
        let (shards, replicas, kept) = (DashMap::new(), Replicas::new(), Kept::default());
        Self { inner: Arc::new(Inner { core, service, shards, timer_turns, replicas, kept }) }
    }

    /// Answers a request of a session whose shard is here.
    ///
    /// Dropping the future before the request's turn takes it out of the queue; a turn that has
    /// begun runs to its end all the same.
    ///
    /// # Errors
    /// When the request was not executed. A refusal `NotOwner` comes without a claim.
    pub async fn serve(
        &self,
        meta: RequestMeta,
        request: Request<Body>,
    ) -> Result<(ResponseMeta, Response<Body>), Refusal> {
        self.serve_with(meta, request, || ()).await
    }

    /// As [`serve`](Self::serve); `accepted` runs when the turn begins, from when on there is no
    /// refusal.
    ///
    /// # Errors
    /// As [`serve`](Self::serve); `accepted` did not run.
    pub async fn serve_with(
        &self,
        meta: RequestMeta,
        request: Request<Body>,
        accepted: impl FnOnce() + Send,
    ) -> Result<(ResponseMeta, Response<Body>), Refusal> {
        let (head, body) = request.into_parts();
        self.serve_in(self.shard(meta.shard), meta, head, body, accepted).await
    }

    /// As [`serve_with`](Self::serve_with), for whoever has looked the shard up.
    pub(crate) fn serve_in(
        &self,
        shard: Option<Arc<Shard>>,
        meta: RequestMeta,
        head: request::Parts,
        body: Body,
        accepted: impl FnOnce() + Send,
    ) -> impl Future<Output = Result<(ResponseMeta, Response<Body>), Refusal>> + Send {
        let served = self.try_serve(shard, meta, head, body, accepted);
        served.inspect_err(|refusal| self.inner.core.metrics.refused(refusal))
    }

    // What seldom has to be waited for is in a box: it would make this future larger, which every
    // request moves.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice")]
    fn try_serve(
        &self,
        shard: Option<Arc<Shard>>,
        meta: RequestMeta,
        head: request::Parts,
        body: Body,
        accepted: impl FnOnce() + Send,
    ) -> impl Future<Output = Result<(ResponseMeta, Response<Body>), Refusal>> + Send {
        async move {
            let Some(shard) = shard else {
                let is_aside = self.is_quarantined(meta.shard);
                let not_owner = Refusal::NotOwner { claim: None };
                return Err(if is_aside { Refusal::Quarantined } else { not_owner });
            };
            let body = match body.ready() {
                Ok(body) => body,
                Err(body) => {
                    shard.check_epoch(meta.epoch)?;
                    Box::pin(self.read_ahead(body, deadline(&meta))).await?
                }
            };
            let access =
                if self.inner.service.is_read(&head) { Access::Read } else { Access::Change };
            // What changes nothing, or goes on as something else, may be run as often as it comes.
            let is_once = access == Access::Change && !meta.upgrade;
            let asked = match is_once.then(|| Asked::of(&meta, &head, &body)).transpose() {
                Ok(asked) => asked,
                Err(problem) => {
                    let epoch = shard.gate().open()?;
                    accepted();
                    return Ok(answered(
                        &shard,
                        false,
                        Answer { epoch, response: problem.into_response() },
                    ));
                }
            };
            let bytes = body.length().unwrap_or(BODY_AHEAD_MAX).min(BODY_AHEAD_MAX) as usize;
            let asker = Asker::Client { bytes, epoch: meta.epoch };
            let turn = match shard.admit(&meta.key, access, asker)? {
                Admission::Now(turn) => turn,
                Admission::Queued(place) => Box::pin(place.wait(deadline(&meta))).await?,
            };
            let turn = if turn.is_free() {
                turn
            } else {
                Box::pin(turn.paced(bytes, deadline(&meta))).await?
            };
            let begun = turn.begin_request(asked)?;
            accepted();
            let is_head = head.method == Method::HEAD;
            let mut answer = match begun.met {
                Turn::Runs(_) => {
                    let run = self.run(begun, Job::Request(Request::from_parts(head, body)));
                    run.await.answer().expect("a request is answered")
                }
                Turn::Replays(_) | Turn::Unknown | Turn::OtherRequest => {
                    Box::pin(self.answer_again(begun)).await
                }
            };
            // What was refused changed nothing: it tells of a disk that fails, and does not wait for
            // it.
            let is_refused = answer.response.headers().contains_key(REFUSAL);
            let access = if is_refused { Access::Read } else { access };
            if !shard.acknowledged(access).await {
                answer.response = lost().into_response();
            }
            if self.inner.core.doubts.must_wait() {
                answer = Box::pin(self.hold(&shard, answer)).await;
            }
            Ok(answered(&shard, is_head, answer))
        }
    }

    /// Reads a small body before its turn, so that a slow client holds up nobody. What is longer,
    /// or of unknown length, streams into the turn.
    async fn read_ahead(&self, body: Body, deadline: Option<Instant>) -> Result<Body, Refusal> {
        if body.length().is_none_or(|length| BODY_AHEAD_MAX < length) {
            return Ok(body);
        }
        let age_max = Instant::now() + self.inner.core.config.mailbox_age_max;
        let until = deadline.map_or(age_max, |deadline| deadline.min(age_max));
        match timeout_at(until, body.collect_up_to(BODY_AHEAD_MAX as usize)).await {
            Ok(Ok(bytes)) => Ok(bytes.into()),
            // The service learns of it when it reads.
            Ok(Err(error)) => Ok(Body::failed(error)),
            Err(_) => Err(Refusal::DeadlinePassed),
        }
    }

    /// Keeps an answer until it is certain who owns the shard. One of a shard that is not served
    /// in the same epoch then may be of somebody who was not the owner any more.
    #[cold]
    async fn hold(&self, shard: &Shard, answer: Answer) -> Answer {
        self.inner.core.doubts.certain().await;
        if shard.gate().epoch() == Some(answer.epoch) {
            return answer;
        }
        Answer { response: lost().into_response(), ..answer }
    }

    /// Answers a request as it was answered before.
    async fn answer_again(&self, mut begun: Begun) -> Answer {
        let (core, epoch) = (&self.inner.core, begun.session.epoch());
        let answer = match std::mem::replace(&mut begun.met, Turn::Unknown) {
            Turn::Runs(_) => unreachable!("it is not run again"),
            Turn::Replays(kept) => once::replay(core, &kept, epoch),
            Turn::Unknown => {
                core.metrics.replays_unknown.increment(1);
                once::unknown(epoch)
            }
            Turn::OtherRequest => once::other_request(epoch),
        };
        // The service learns all the same of what had expired.
        self.run(begun, Job::Expire).await;
        answer
    }

    fn run(&self, begun: Begun, job: Job) -> Unstoppable<Outcome> {
        Unstoppable::new(self.inner.service.run(begun, job))
    }

    /// A session of a shard that is here, for turns of the process's own.
    #[must_use]
    pub fn session(&self, shard: ShardId, key: SessionKey) -> Option<SessionHandle> {
        Some(SessionHandle::new(self.shard(shard)?, key))
    }

    /// Answers only while `heard` has heard somebody lately (R11). Only the first one counts.
    pub fn listen(&self, heard: Arc<Heard>) {
        self.inner.core.doubts.listen(heard);
    }

    /// Begins nothing from now on, or begins again: this node is cut off with the smaller part of
    /// its cluster. What runs ends.
    pub fn stop(&self, stops: bool) {
        self.inner.core.stopped.store(stops, Ordering::Release);
    }

    /// Whether nothing begins, because of [`stop`](Self::stop).
    pub(crate) fn is_stopped(&self) -> bool {
        self.inner.core.stopped.load(Ordering::Acquire)
    }

    /// Counts a request that came here for a shard that has moved on.
    pub(crate) fn count_late_request(&self) {
        self.inner.core.metrics.late_requests.increment(1);
    }

    /// Whether nothing begins here, because nobody was heard lately.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.inner.core.doubts.is_in_doubt()
    }

    // ---- ownership ----

    /// Serves a shard without sessions from now on. One that is here already keeps its sessions
    /// and is served in the new epoch.
    ///
    /// # Panics
    /// When the shard is here in a higher epoch.
    pub fn activate_empty(&self, shard: ShardId, epoch: Epoch) {
        match self.inner.shards.entry(shard) {
            Entry::Occupied(here) => {
                here.get().reopen(epoch, &self.take_adoptions(shard, epoch));
            }
            Entry::Vacant(free) => {
                let (at, role) = (Version { epoch, seq: 0 }, Role::Owner);
                let begun = Some(Beginning { epoch, from: None });
                let meta = ShardMeta { at, role, complete: true, begun, alone: true };
                let pen = self.inner.core.begin_on_disk(shard, meta);
                let begun = Shard::new(shard, Arc::clone(&self.inner.core), epoch, pen);
                self.adopt_waiting(&begun, epoch);
                free.insert(begun);
            }
        }
        self.drop_copy(shard);
    }

    /// Takes a shard in, record by record. Nobody sees it before it is activated.
    #[must_use]
    pub fn incoming(&self, shard: ShardId) -> Incoming {
        Incoming { host: self.clone(), shard, arriving: Arriving::new(), origin: None, pen: None }
    }

    /// As [`incoming`](Self::incoming), of a shard that is served in this epoch until it is here.
    #[must_use]
    pub fn incoming_from(&self, at: ShardEpoch) -> Incoming {
        let mut incoming = self.incoming(at.shard);
        incoming.origin = Some(at.epoch);
        incoming.begin_on_disk();
        incoming
    }

    /// Serves a shard with the sessions in `records`, as another host exported them.
    ///
    /// # Errors
    /// When one of the records cannot be taken in. The shard is not served then.
    pub fn install<R: AsRef<[u8]>>(
        &self,
        shard: ShardId,
        epoch: Epoch,
        records: impl IntoIterator<Item = R>,
    ) -> Result<usize, RecordError> {
        let mut incoming = self.incoming(shard);
        for record in records {
            incoming.add(record.as_ref())?;
        }
        Ok(incoming.activate(epoch))
    }

    /// Closes the gate of a shard now, before this returns. Nothing begins any more; those who
    /// wait are refused `Moving`, those attached are told.
    ///
    /// The future resolves when the last turn has ended and the service has said goodbye to its
    /// sessions, and all members that follow the shard have acknowledged every change, or are
    /// members no more; also when the shard is reopened or dropped first. Without the shard it
    /// does at once.
    pub fn seal(&self, shard: ShardId) -> impl Future<Output = ()> + Send + 'static + use<> {
        let here = self.shard(shard);
        let idle = here.as_ref().and_then(|shard| shard.seal());
        let (has_hooks, service) = (self.inner.core.has_hooks, self.inner.service.clone());
        async move {
            if let Some(idle) = idle {
                // An error means that the shard was reopened or dropped.
                let _ = idle.await;
            }
            let Some(shard) = here else { return };
            let activated = if has_hooks { shard.activated() } else { Vec::new() };
            for key in activated {
                let Some(turn) = shard.last_turn(&key) else { return };
                service.deactivate(turn, Why::Moving).await;
            }
            shard.acknowledged_while_sealed().await;
        }
    }

    /// Serves a sealed shard again, in a new epoch; also one that was made a copy by
    /// [`keep_as_copy`](Self::keep_as_copy). False when it is not here.
    ///
    /// # Panics
    /// When `epoch` is lower than the one it was served in.
    pub fn reopen(&self, shard: ShardId, epoch: Epoch) -> bool {
        match self.shard(shard) {
            Some(here) => here.reopen(epoch, &self.take_adoptions(shard, epoch)),
            None => self.promote_own(shard, epoch),
        }
    }

    /// The sessions of a shard as they are now, as records for [`install`](Self::install). After
    /// a seal has ended these are all its changes; without one, those committed so far. Each
    /// record is made when it is asked for. None when the shard is not here.
    #[must_use]
    pub fn export(&self, shard: ShardId) -> Option<Export> {
        let shard = self.shard(shard)?;
        let now = self.inner.core.now();
        let (seq, past, sessions) = shard.snapshot();
        let records = sessions.into_iter().map(move |(key, data, expires)| {
            Record::of(key.as_bytes(), &data, expires, now).encode()
        });
        let head = Record::of_shard(seq, past).encode();
        Some(Export { records: Box::new(std::iter::once(head).chain(records)) })
    }

    /// Begins to copy a shard while it is served: see [`ShardCopy`]. None when it is not here, or
    /// is being copied already.
    #[must_use]
    pub fn copy(&self, shard: ShardId) -> Option<ShardCopy> {
        ShardCopy::begin(&self.shard(shard)?)
    }

    /// Admits changes of a shard at most at this many bytes of records per second, in the order in
    /// which they come; none as fast as they come. Their turns wait, within the limits of the
    /// shard's mailbox and not past their deadlines; declared reads go on, timers do too and
    /// count. It ends with a seal, a reopening, the shard, or the copy that it was meant for.
    pub fn throttle(&self, shard: ShardId, bytes_per_second: Option<NonZeroU64>) {
        if let Some(shard) = self.shard(shard) {
            shard.throttle(bytes_per_second);
        }
    }

    /// Forgets a shard and all its sessions, and gives their number. What runs on it commits
    /// nothing more.
    pub fn drop_shard(&self, shard: ShardId) -> usize {
        self.set_aside(shard).map_or(0, |mut aside| {
            aside.forget_on_disk();
            aside.sessions()
        })
    }

    /// Takes a shard out with its sessions: for everybody else it is not here any more, and what
    /// runs on it commits nothing. None when it is not here.
    pub fn set_aside(&self, shard: ShardId) -> Option<SetAside> {
        let (_, shard) = self.inner.shards.remove(&shard)?;
        let (aside, orphans) = shard.close()?;
        self.orphaned(orphans);
        Some(aside)
    }

    /// As [`set_aside`](Self::set_aside), for `heir`, which has taken the shard over.
    pub(crate) fn set_aside_for(&self, shard: ShardId, heir: NodeBoot) -> Option<SetAside> {
        let is_unconfirmed = self.shard(shard)?.is_answered_at(heir);
        let mut aside = self.set_aside(shard)?;
        if is_unconfirmed {
            aside.set_unconfirmed();
        }
        Some(aside)
    }

    /// Says goodbye to sessions that are not here any more.
    fn orphaned(&self, orphans: Vec<Orphan>) {
        if !orphans.is_empty() {
            let service = self.inner.service.clone();
            let goodbyes = async move {
                for orphan in orphans {
                    service.say_goodbye(orphan.session, Why::Lost).await;
                }
            };
            // Without a runtime the process ends, and its service with it.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(goodbyes);
            }
        }
    }

    // ---- for copies: see `replica` ----

    pub(crate) fn replicas(&self) -> &Replicas {
        &self.inner.replicas
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.inner.kept
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    /// Serves what arrived.
    pub(crate) fn serve_arrived(
        &self,
        shard: ShardId,
        epoch: Epoch,
        arrived: Arriving,
        origin: Option<Epoch>,
        pen: Option<Box<Pen>>,
    ) {
        let core = Arc::clone(&self.inner.core);
        let pen = pen.or_else(|| write_down(&core, shard, epoch, &arrived));
        // Whoever hears of its followers finds it.
        let place = self.inner.shards.entry(shard);
        let begun = Shard::with_sessions(shard, core, epoch, arrived, origin, pen);
        self.adopt_waiting(&begun, epoch);
        place.insert(begun);
    }

    /// Takes a shard out that is sealed in an epoch below `below`, and ends at `at` if that is
    /// given. Gives where it ends.
    pub(crate) fn take_sealed(
        &self,
        shard: ShardId,
        below: Epoch,
        at: Option<Version>,
    ) -> Option<(Version, Arriving, Option<Box<Pen>>)> {
        let here = self.shard(shard)?;
        let mut end = None;
        let (mut aside, orphans) = here.close_if(|gate, seq| {
            let Gate::Sealed(epoch) = gate else { return false };
            end = Some(Version { epoch, seq }).filter(|end| at.is_none_or(|at| at == *end));
            end.is_some() && epoch < below
        })?;
        self.inner.shards.remove_if(&shard, |_, it| Arc::ptr_eq(it, &here));
        self.orphaned(orphans);
        let pen = aside.take_pen();
        Some((end?, aside.into_arriving(), pen))
    }

    /// The time of day, in Unix microseconds, by which changes are stamped.
    pub(crate) fn set_unix_time(&self, micros: u64) {
        self.inner.core.set_unix_time(micros);
    }

    /// Values that lost to later ones when two histories of their sessions met, the oldest first.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.inner.core.conflicts.list()
    }

    // ---- time ----

    /// Expires sessions and fires timers until it is dropped. One a host, on its runtime.
    pub async fn keep_time(&self) {
        let core = &self.inner.core;
        loop {
            core.doubts.certain().await;
            core.disk_takes_changes().await;
            match core.alarms.pop(core.now()) {
                Next::Due(shard) => self.fire(shard).await,
                Next::At(at) => {
                    tokio::select! {
                        biased;
                        () = core.alarms.earlier() => {}
                        () = tokio::time::sleep_until(core.instant(at)) => {}
                    }
                }
                Next::Never => core.alarms.earlier().await,
            }
        }
    }

    async fn fire(&self, shard: ShardId) {
        let Some(shard) = self.shard(shard) else { return };
        let due = shard.fire(self.inner.core.now());
        for key in due.expired {
            self.spawn_turn(&shard, key, false).await;
        }
        for key in due.timers {
            self.spawn_turn(&shard, key, true).await;
        }
    }

    /// Takes a turn that nobody asked for, in a task of its own. Waits while too many run.
    async fn spawn_turn(&self, shard: &Arc<Shard>, key: SessionKey, is_timer: bool) {
        let slots = Arc::clone(&self.inner.timer_turns);
        let slot = slots.acquire_owned().await.expect("the semaphore is never closed");
        let (host, shard) = (self.clone(), Arc::clone(shard));
        tokio::spawn(async move {
            // Few enough of them run that they need not wait for ever.
            let _ = shard.room(None).await;
            if let Ok(turn) = Shard::wait_turn(&shard, &key, Asker::Node).await
                && let Ok(begun) = turn.begin_unasked()
            {
                host.run(begun, if is_timer { Job::Timers } else { Job::Expire }).await;
            }
            if is_timer {
                shard.retime(&key);
            }
            drop(slot);
        });
    }

    // ---- looking in ----

    /// Whether a shard is here, and served.
    #[must_use]
    pub fn gate(&self, shard: ShardId) -> Option<Gate> {
        self.shard(shard).map(|shard| shard.gate())
    }

    /// The totals.
    #[must_use]
    pub fn stats(&self) -> HostStats {
        let core = &self.inner.core;
        HostStats {
            shards: self.inner.shards.len(),
            sessions: core.sessions().saturating_sub(self.replicas().n_copied()),
            bytes: core.bytes(),
        }
    }

    /// One shard. None when it is not here.
    #[must_use]
    pub fn shard_stats(&self, shard: ShardId) -> Option<ShardStats> {
        self.shard(shard).map(|shard| shard.stats())
    }

    /// All shards, in the order of their numbers.
    #[must_use]
    pub fn stats_by_shard(&self) -> Vec<ShardStats> {
        let shards: Vec<_> = self.inner.shards.iter().map(|shard| Arc::clone(&shard)).collect();
        let mut stats: Vec<_> = shards.iter().map(|shard| shard.stats()).collect();
        stats.sort_by_key(|stats| stats.shard);
        stats
    }

    /// Sessions whose state this program met and could not read, up to 1000 of them.
    #[must_use]
    pub fn unreadable(&self) -> Vec<Unreadable> {
        self.inner.core.unreadable()
    }

    pub(crate) fn shard(&self, id: ShardId) -> Option<Arc<Shard>> {
        self.inner.shards.get(&id).map(|shard| Arc::clone(&shard))
    }
}

/// The records of a shard. Made by [`Host::export`].
pub struct Export {
    records: Box<dyn Iterator<Item = Bytes> + Send>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").finish_non_exhaustive()
    }
}

impl Iterator for Export {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.records.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.records.size_hint()
    }
}

/// A shard on its way in. Dropping it forgets what has arrived.
pub struct Incoming {
    host: Host,
    shard: ShardId,
    arriving: Arriving,
    origin: Option<Epoch>,
    pen: Option<Box<Pen>>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("shard", &self.shard)
            .field("sessions", &self.sessions())
            .finish_non_exhaustive()
    }
}

impl Incoming {
    /// Takes one record in. A session that came before is replaced.
    ///
    /// # Errors
    /// When it cannot be read, or there is no memory for it. Nothing changed then.
    pub fn add(&mut self, record: &[u8]) -> Result<(), RecordError> {
        let core = &self.host.inner.core;
        self.arriving.add(core, record)?;
        if let (Some(pen), Some(epoch)) = (&mut self.pen, self.origin) {
            let at = Version { epoch, seq: self.arriving.seq() };
            pen.follow(core, at, record, self.arriving.sessions());
        }
        Ok(())
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.shard
    }

    pub(crate) fn origin(&self) -> Option<Epoch> {
        self.origin
    }

    pub(crate) fn arrived(&self) -> &Arriving {
        &self.arriving
    }

    pub(crate) fn set_pen(&mut self, pen: Option<Box<Pen>>) {
        self.pen = pen;
    }

    pub(crate) fn take_pen(&mut self) -> Option<Box<Pen>> {
        self.pen.take()
    }

    /// Sessions that have arrived.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.arriving.sessions().len()
    }

    /// Serves the shard from now on. Gives the number of its sessions. What was here under this
    /// shard before is dropped. This takes the same time however much arrived.
    pub fn activate(mut self, epoch: Epoch) -> usize {
        let arrived = std::mem::replace(&mut self.arriving, Arriving::new());
        let n_sessions = arrived.sessions().len();
        let pen = self.pen.take();
        let pen = pen.filter(|pen| pen.is_current()).or_else(|| self.take_pen_of_copy(&arrived));
        self.host.drop_shard(self.shard);
        self.host.serve_arrived(self.shard, epoch, arrived, self.origin, pen);
        self.host.drop_copy(self.shard);
        n_sessions
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let arrived = std::mem::replace(&mut self.arriving, Arriving::new());
        arrived.forget(&self.host.inner.core);
        if let Some(pen) = self.pen.take() {
            pen.forget();
        }
    }
}

pub(crate) fn deadline(meta: &RequestMeta) -> Option<Instant> {
    let ms = u64::from(meta.deadline_ms);
    (ms != 0).then(|| Instant::now() + Duration::from_millis(ms))
}

/// Writes all of a shard to disk that begins here, and was written by nobody on its way.
fn write_down(core: &Core, shard: ShardId, epoch: Epoch, arrived: &Arriving) -> Option<Box<Pen>> {
    let at = Version { epoch, seq: arrived.seq() };
    let meta = ShardMeta { at, role: Role::Owner, complete: false, begun: None, alone: false };
    let mut pen = core.begin_on_disk(shard, meta)?;
    pen.put_all(core, at, arrived.sessions());
    Some(pen)
}

/// An answer of a shard, and what goes with it.
fn answered(shard: &Shard, is_head: bool, answer: Answer) -> (ResponseMeta, Response<Body>) {
    let meta = ResponseMeta {
        shard: shard.id(),
        epoch: answer.epoch,
        length: content_length(is_head, &answer.response),
        pressure: shard.pressure(),
    };
    (meta, answer.response)
}

/// The length of the content, where the answer has content at all (RFC 9110 §6.4.1).
fn content_length(is_head: bool, response: &Response<Body>) -> Option<u64> {
    let status = response.status();
    let has_none = is_head
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    if has_none { None } else { response.body().length() }
}
