//! The judge. It sees what machines decide and what clients are told, and nothing else.
//!
//! A change is *excused* when it may be gone: its shard's owner died with it, for there are no
//! copies in this mode. That two nodes which took each other for dead had both changed the session is
//! no excuse.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stead_shared::claims::Replicas;
use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::id::{Epoch, NodeBoot, ShardId, Version};
use stead_shared::sim::Host;
use stead_shared::time::Time;

use crate::ctx::{BALANCE_STAY, N_SHARDS};
use crate::history::{Done, Op};
use crate::host::Session;
use crate::merges::Merges;

/// What can be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Violation {
    /// I1: two gates of a shard are open at once, and nobody was taken for dead wrongly.
    TwoServers,
    /// I2: a shard is served in an epoch that its node had sealed or granted away.
    PromiseBroken,
    /// I2: a node acknowledged a change though it knew a newer epoch.
    BehindClaim,
    /// I3: two changes have the same shard, epoch and number.
    TwoEntries,
    /// I4: an acknowledged change is gone.
    LostChange,
    /// I5: long after the last fault a shard has no server, or more than one.
    NotSettled,
    /// I5: long after the last fault a node that was to leave is still there.
    NotDrained,
    /// I5: a request got no answer.
    Unanswered,
    /// Clients see values that no counter gives.
    NotLinearizable,
    /// A client was told that its request had not been executed, and it had.
    RefusedAndRun,
    /// A request was executed twice.
    RanTwice,
    /// R9: a request was answered in an older epoch than the one it named.
    ServedOlder,
    /// R9: a request that was turned away went straight back to an epoch that had been tried, or to
    /// an older one.
    SentBack,
    /// R11: a process that had heard nobody for too long let an answer out.
    UnheardAnswer,
    /// R10: a shard moved for balance though members had only just changed.
    MovedInUnrest,
    /// R10: a shard moved for balance after a mass failure.
    MovedInFreeze,
    /// R10: a shard moved for balance that had only just done so.
    MovedAgain,
    /// I3: a change was acknowledged in one place and is another one in a copy.
    Diverged,
    /// R6: a copy acknowledged a change and does not hold it, or not the one before.
    FalseAck,
    /// R12: an answer left before all replicas that it waits for had what it tells of.
    AnsweredTooSoon,
    /// A shard is in fewer than two places though nothing went wrong.
    FewCopies,
    /// R13: who was not waited for any more took over.
    StaleCopy,
    /// What was damaged on disk was taken for whole.
    DamageUnnoticed,
    /// R13: somebody took over who has no copy.
    NothingToOpen,
    /// A counter is not the sum of what was added.
    CounterOff,
    /// The value of an acknowledged write is gone, and nobody who overwrote it had seen it.
    LostValue,
}

/// What was found out, and when.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) at: Time,
    pub(crate) what: Violation,
    pub(crate) text: String,
}

type At = (NodeBoot, ShardId);
/// A session and what has changed it; none where only the shard's number changed.
type Content = Option<(u8, Vec<u32>)>;

/// The silence after which no answer may go out (R11), twice, for a packet may have come just
/// before its end; and the time between two packets.
const HEARD_MAX: Duration = Duration::from_millis(2_300);

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) findings: Vec<Finding>,
    /// Only dead nodes are declared dead, and no cut isolates anybody.
    pub(crate) is_honest: bool,
    /// Open gates.
    open: BTreeMap<ShardId, BTreeMap<NodeBoot, Epoch>>,
    /// Gates that are open or closed over state.
    here: BTreeMap<ShardId, BTreeMap<NodeBoot, Epoch>>,
    /// Epochs up to which a process never opens a gate again.
    promised: BTreeMap<At, Epoch>,
    /// Epochs up to which it acknowledges nothing any more.
    ended: BTreeMap<At, Epoch>,
    /// Promises that are on disk.
    saved: BTreeMap<At, Epoch>,
    /// Shards whose state on a node's disk is damaged, and those of which any ever was.
    damaged: BTreeSet<(Host, ShardId)>,
    ever_damaged: BTreeSet<ShardId>,
    /// Shards that are refused since nobody has them whole.
    pub(crate) quarantined: BTreeSet<ShardId>,
    entries: BTreeMap<(ShardId, Version), (u32, NodeBoot)>,
    acked: BTreeMap<u32, (ShardId, u8)>,
    /// Changes that somebody was told of.
    released: BTreeSet<u32>,
    /// The session after each change, or nothing.
    contents: BTreeMap<(ShardId, Version), Content>,
    /// The changes that came to a process, whatever became of them there.
    reached: BTreeMap<NodeBoot, BTreeSet<u32>>,
    /// For whom answers wait by order of the machine, whether they follow or not.
    sets: BTreeMap<At, Replicas>,
    /// For whom answers wait, those among them whose copies are complete and not named yet.
    awaited: BTreeMap<At, BTreeSet<NodeBoot>>,
    excused: BTreeSet<u32>,
    /// Shards whose histories have a gap.
    torn: BTreeSet<ShardId>,
    /// Shards that began empty while their state was on a disk that was away: who comes back with a
    /// higher epoch than that serves at once.
    begun_over: BTreeSet<ShardId>,
    /// Until when shards stay that came for balance.
    stays: BTreeMap<At, Time>,
    for_balance: BTreeMap<HandoffId, NodeBoot>,
    /// The newest epoch to which each request has been sent, and when it was turned away last.
    tried: BTreeMap<u32, (Epoch, Option<Time>)>,
    /// When the last packet was sent that a process heard, while it is not alone.
    heard: BTreeMap<NodeBoot, Time>,
    pub(crate) merges: Merges,
    pub(crate) n_moves: u32,
    /// Shards that were served from copies of dead owners.
    pub(crate) n_taken_over: u32,
    pub(crate) ops: Vec<Op>,
    /// The requests that must succeed: the first, and the one after the last.
    pub(crate) first_probe: usize,
    pub(crate) after_probe: usize,
}

impl Oracle {
    pub(crate) fn new(is_honest: bool) -> Self {
        Self { is_honest, ..Self::default() }
    }

    pub(crate) fn find(&mut self, at: Time, what: Violation, text: String) {
        self.findings.push(Finding { at, what, text });
    }

    pub(crate) fn opened(&mut self, now: Time, who: NodeBoot, at: ShardEpoch) {
        let promised = self.promised.get(&(who, at.shard)).copied();
        if Some(at.epoch) <= promised {
            let text =
                format!("{} opens at {} after a promise up to {promised:?}", who.node, at.epoch);
            self.find(now, Violation::PromiseBroken, text);
        }
        let open = self.open.entry(at.shard).or_default();
        open.insert(who, at.epoch);
        let was_here = self.here.entry(at.shard).or_default().insert(who, at.epoch);
        if was_here.is_none() {
            self.sets.remove(&(who, at.shard));
        }
        if self.is_honest && open.len() > 1 && !self.begun_over.contains(&at.shard) {
            let text = format!("shard {}: {open:?}", at.shard);
            self.find(now, Violation::TwoServers, text);
        }
    }

    pub(crate) fn sealed(&mut self, who: NodeBoot, shard: ShardId, epoch: Epoch) {
        self.promise(who, ShardEpoch { shard, epoch });
        self.close(who, shard);
    }

    fn promise(&mut self, who: NodeBoot, at: ShardEpoch) {
        let promised = self.promised.entry((who, at.shard)).or_insert(at.epoch);
        *promised = (*promised).max(at.epoch);
    }

    /// Everything of this epoch has been sent to somebody else.
    pub(crate) fn ended(&mut self, who: NodeBoot, at: ShardEpoch) {
        let ended = self.ended.entry((who, at.shard)).or_insert(at.epoch);
        *ended = (*ended).max(at.epoch);
    }

    pub(crate) fn granted(&mut self, who: NodeBoot, shards: &[ShardEpoch]) {
        for &at in shards {
            let sealed = self.promised.get(&(who, at.shard)).copied();
            self.promise(who, at);
            self.ended(who, at);
            // A seal that is on disk promises the next epoch as well; one that is not, nothing.
            if let Some(saved) =
                self.saved.get_mut(&(who, at.shard)).filter(|it| Some(**it) == sealed)
            {
                *saved = at.epoch.max(*saved);
            }
        }
    }

    /// Seals of these shards are on disk.
    pub(crate) fn keeps_promises(&mut self, who: NodeBoot, shards: &[ShardId]) {
        let promised =
            shards.iter().filter_map(|shard| self.promised.get_key_value(&(who, *shard)));
        self.saved.extend(promised);
    }

    /// A node starts again: what it had promised it still does. What is on disk of these shards is
    /// damaged, and so may its promises be.
    pub(crate) fn starts_again(
        &mut self,
        old: NodeBoot,
        new: NodeBoot,
        damaged: &BTreeSet<ShardId>,
    ) {
        let kept = |((who, shard), at): (&At, &Epoch)| {
            (*who == old && !damaged.contains(shard)).then_some(((new, *shard), *at))
        };
        let saved: Vec<(At, Epoch)> = self.saved.iter().filter_map(kept).collect();
        self.promised.extend(saved.iter().copied());
        self.saved.extend(saved);
    }

    /// What is on a node's disk of this shard is damaged: an older copy may be all that is left.
    pub(crate) fn damage(&mut self, at: Host, shard: ShardId) {
        self.damaged.insert((at, shard));
        self.ever_damaged.insert(shard);
        let all: Vec<u32> =
            self.acked.iter().filter(|(_, (of, _))| *of == shard).map(|(op, _)| *op).collect();
        self.excuse(shard, all.into_iter());
    }

    pub(crate) fn is_damaged(&self, at: Host, shard: ShardId) -> bool {
        self.damaged.contains(&(at, shard))
    }

    pub(crate) fn has_read(&mut self, at: Host) {
        self.damaged.retain(|(host, _)| *host != at);
    }

    /// A shard is served from disk.
    pub(crate) fn opened_saved(&mut self, shard: ShardId, sessions: &[Session]) {
        let here: BTreeSet<u32> = sessions.iter().flat_map(|it| it.ops.iter().copied()).collect();
        let is_missing =
            |op: &u32| !here.contains(op) && self.acked.get(op).is_some_and(|(of, _)| *of == shard);
        if self.released.iter().any(is_missing) {
            self.torn.insert(shard);
        }
    }

    /// A shard is served from an older state than what was told of: a disk has the rest, and is away.
    pub(crate) fn reopened(&mut self, shard: ShardId, here: &[Session], on_disks: &BTreeSet<u32>) {
        let here: BTreeSet<u32> = here.iter().flat_map(|it| it.ops.iter().copied()).collect();
        if on_disks.iter().any(|op| !here.contains(op) && self.released.contains(op)) {
            self.torn.insert(shard);
        }
    }

    /// A shard begins empty, and is on a disk that is away.
    pub(crate) fn begun_over(&mut self, shard: ShardId) {
        self.begun_over.insert(shard);
    }

    /// The shard's history may have a gap.
    pub(crate) fn tear(&mut self, shard: ShardId) {
        self.torn.insert(shard);
    }

    /// Whether nobody serves a shard, and may refuse to.
    fn is_aside(&self, shard: ShardId) -> bool {
        self.quarantined.contains(&shard) && self.ever_damaged.contains(&shard)
    }

    /// Whether a request of it must be answered, long after the faults.
    pub(crate) fn must_answer(&self, op: &Op) -> bool {
        !self.is_aside(op.shard)
    }

    fn close(&mut self, who: NodeBoot, shard: ShardId) {
        if let Some(open) = self.open.get_mut(&shard) {
            open.remove(&who);
        }
    }

    /// A gate is closed and its state is not here any more.
    pub(crate) fn dropped(&mut self, who: NodeBoot, shard: ShardId) {
        self.close(who, shard);
        if let Some(here) = self.here.get_mut(&shard) {
            here.remove(&who);
        }
    }

    /// A process dies with the changes of `ops` behind a gate of `shard`. When it is not the last
    /// owner, somebody who was taken it for dead has opened another gate, or it had granted the
    /// shard away: then what others hold as well, behind gates of theirs, must not be lost.
    pub(crate) fn died(
        &mut self,
        who: NodeBoot,
        shard: ShardId,
        ops: impl Iterator<Item = u32>,
        (elsewhere, has_heirs): (&BTreeSet<u32>, bool),
    ) {
        let here = self.here.entry(shard).or_default();
        let mine = here.get(&who).copied();
        let is_owner = here.values().max().copied() == mine;
        self.dropped(who, shard);
        if !(is_owner && has_heirs) {
            self.excuse_released(shard, ops.filter(|op| is_owner || !elsewhere.contains(op)));
        }
    }

    /// As [`Self::excuse`], of those of `ops` that anybody was told of.
    pub(crate) fn excuse_released(&mut self, shard: ShardId, ops: impl Iterator<Item = u32>) {
        let gone: Vec<u32> = ops.filter(|op| self.released.contains(op)).collect();
        if !gone.is_empty() {
            self.excuse(shard, gone.into_iter());
        }
    }

    /// Changes may be gone from now on.
    pub(crate) fn excuse(&mut self, shard: ShardId, ops: impl Iterator<Item = u32>) {
        self.torn.insert(shard);
        self.excused.extend(ops);
    }

    /// A node has executed a request.
    pub(crate) fn ran(
        &mut self,
        now: Time,
        who: NodeBoot,
        (op, shard, session): (u32, ShardId, u8),
        version: Version,
        newest: Option<Epoch>,
    ) {
        if let Some((other, _)) = self.entries.insert((shard, version), (op, who)) {
            let text = format!("shard {shard}: {version:?} is of {other} and of {op}");
            self.find(now, Violation::TwoEntries, text);
        }
        self.acked.insert(op, (shard, session));
        if Some(version.epoch) <= self.ended.get(&(who, shard)).copied() {
            let text =
                format!("{} changes shard {shard} at {} after its end", who.node, version.epoch);
            self.find(now, Violation::PromiseBroken, text);
        }
        if Some(version.epoch) < newest {
            let text = format!(
                "{} changes shard {shard} at {}, knows {newest:?}",
                who.node, version.epoch
            );
            self.find(now, Violation::BehindClaim, text);
        }
    }

    /// A node has executed a request whose change its session had already. Where that change was lost
    /// with its owner, it has not.
    pub(crate) fn ran_twice(&mut self, now: Time, op: u32) {
        self.find(now, Violation::RanTwice, format!("request {op}"));
    }

    /// Changes came to a process, by turns or as state.
    pub(crate) fn reached<'a>(
        &mut self,
        who: NodeBoot,
        sessions: impl IntoIterator<Item = &'a Session>,
    ) {
        let reached = self.reached.entry(who).or_default();
        reached.extend(sessions.into_iter().flat_map(|session| &session.ops));
    }

    /// A change, in its owner's log or a copy's.
    pub(crate) fn entry(
        &mut self,
        now: Time,
        shard: ShardId,
        version: Version,
        state: Option<&(u8, Session)>,
    ) {
        let content = state.map(|(session, state)| (*session, state.ops.clone()));
        let known = self.contents.entry((shard, version)).or_insert_with(|| content.clone());
        if *known != content {
            let text = format!("shard {shard}: {version:?} is {known:?} and {content:?}");
            self.find(now, Violation::Diverged, text);
        }
    }

    /// A replica acknowledges a change, and holds these sessions.
    pub(crate) fn took_in(
        &mut self,
        now: Time,
        who: NodeBoot,
        (shard, version, prev): (ShardId, Version, Version),
        sessions: &[Session],
    ) {
        for at in [version, prev] {
            let Some(Some((session, ops))) = self.contents.get(&(shard, at)) else { continue };
            let is_held = sessions
                .get(usize::from(*session))
                .is_some_and(|here| ops.last().is_none_or(|op| here.ops.contains(op)));
            if !is_held {
                let text = format!("{} takes {version:?} of {shard} in, lacks {at:?}", who.node);
                self.find(now, Violation::FalseAck, text);
                return;
            }
        }
    }

    /// Answers of a node wait for these replicas.
    pub(crate) fn waits_for(&mut self, who: NodeBoot, shard: ShardId, set: &Replicas) {
        self.sets.insert((who, shard), set.clone());
    }

    /// Answers of a node wait for these, whether the machine has said so yet or not.
    pub(crate) fn awaits(&mut self, who: NodeBoot, shard: ShardId, set: BTreeSet<NodeBoot>) {
        self.awaited.insert((who, shard), set);
    }

    /// A copy of a dead owner's shard is served.
    pub(crate) fn promoted(&mut self, now: Time, who: NodeBoot, shard: ShardId, owner: NodeBoot) {
        self.n_taken_over += 1;
        let set = self.sets.get(&(owner, shard)).cloned().unwrap_or(Replicas::NONE);
        let is_awaited = self.awaited.get(&(owner, shard)).is_some_and(|set| set.contains(&who));
        if self.is_honest && !set.contains(who) && !is_awaited {
            let text = format!("{} takes {shard} over, {owner:?} waited for {set:?}", who.node);
            self.find(now, Violation::StaleCopy, text);
        }
    }

    /// A process heard a packet that was sent then.
    pub(crate) fn heard(&mut self, who: NodeBoot, sent: Time) {
        let last = self.heard.entry(who).or_insert(sent);
        *last = sent.max(*last);
    }

    /// A process found that there may be nobody else.
    pub(crate) fn is_alone(&mut self, who: NodeBoot) {
        self.heard.remove(&who);
    }

    /// An answer leaves a node. It tells of these changes.
    pub(crate) fn let_out(&mut self, now: Time, who: NodeBoot, shard: ShardId, ops: Vec<u32>) {
        let set = self.sets.get(&(who, shard)).cloned().unwrap_or(Replicas::NONE);
        for boot in set.as_slice() {
            let reached = self.reached.entry(*boot).or_default();
            if let Some(op) = ops.iter().find(|op| !reached.contains(op)) {
                let text = format!("{} tells of {op}, {} has it not", who.node, boot.node);
                self.find(now, Violation::AnsweredTooSoon, text);
            }
        }
        self.released.extend(ops);
        let silence = self.heard.get(&who).map(|sent| now.since(*sent));
        if silence.is_some_and(|silence| HEARD_MAX < silence) {
            let text = format!("{} answers, and heard nobody for {silence:?}", who.node);
            self.find(now, Violation::UnheardAnswer, text);
        }
    }

    /// An answer as it comes to a router that had named this epoch.
    pub(crate) fn answered(&mut self, now: Time, shard: ShardId, named: Epoch, served: Epoch) {
        if served < named {
            let text = format!("shard {shard}: named {named}, served {served}");
            self.find(now, Violation::ServedOlder, text);
        }
    }

    /// A router sends a request.
    pub(crate) fn sent(&mut self, now: Time, op: u32, named: Epoch) {
        let (tried, turned_away) = self.tried.entry(op).or_insert((named, None));
        if named <= *tried && *turned_away == Some(now) {
            let text = format!("request {op}: tried {tried}, goes to {named}");
            self.findings.push(Finding { at: now, what: Violation::SentBack, text });
        }
        *tried = named.max(*tried);
    }

    /// A router hears that a request was sent to somebody who does not own its shard.
    pub(crate) fn turned_away(&mut self, now: Time, op: u32) {
        if let Some((_, turned_away)) = self.tried.get_mut(&op) {
            *turned_away = Some(now);
        }
    }

    // ---- moves ------------------------------------------------------------------------------

    /// A source asks a target. `why_not`: why the cluster is not calm in its eyes.
    pub(crate) fn asked(
        &mut self,
        now: Time,
        (handoff, drain): (HandoffId, bool),
        shards: &[ShardEpoch],
        why_not: Option<(Violation, String)>,
    ) {
        if drain {
            return;
        }
        self.for_balance.insert(handoff, handoff.source);
        if let Some((what, why)) = why_not {
            self.find(now, what, why);
        }
        for at in shards {
            if let Some(until) = self.stays.get(&(handoff.source, at.shard)).filter(|t| now < **t) {
                let text = format!("shard {} moves on before {until:?}", at.shard);
                self.find(now, Violation::MovedAgain, text);
            }
        }
    }

    /// A shard has come to `who` by a handoff.
    pub(crate) fn moved(&mut self, now: Time, who: NodeBoot, handoff: HandoffId, shard: ShardId) {
        self.n_moves += 1;
        let Some(source) = self.for_balance.get(&handoff) else { return };
        // Not while a cluster is only just being founded.
        if 10_000_000 <= who.boot.0.abs_diff(source.boot.0) {
            self.stays.insert((who, shard), now + BALANCE_STAY);
        }
    }

    // ---- the end ----------------------------------------------------------------------------

    pub(crate) fn is_answered(&self) -> bool {
        self.ops.iter().all(|op| op.done.is_some())
    }

    /// Whose gates of a shard are open.
    pub(crate) fn servers(&self, shard: ShardId) -> Vec<NodeBoot> {
        self.open.get(&shard).into_iter().flat_map(|open| open.keys().copied()).collect()
    }

    pub(crate) fn is_served(&self) -> bool {
        let is_open = |shard| self.open.get(&shard).is_some_and(|open| open.len() == 1);
        (0..N_SHARDS).map(ShardId).all(|shard| is_open(shard) || self.is_aside(shard))
    }

    /// Long after the faults: `state` gives the changes of a session at a server of its shard.
    pub(crate) fn check_end(
        &mut self,
        now: Time,
        state: impl Fn(NodeBoot, ShardId, u8) -> Vec<u32>,
    ) {
        let mut kept: BTreeSet<u32> = BTreeSet::new();
        for shard in (0..N_SHARDS).map(ShardId) {
            let open: Vec<NodeBoot> =
                self.open.get(&shard).into_iter().flat_map(|open| open.keys().copied()).collect();
            if open.len() != 1 && !(open.is_empty() && self.is_aside(shard)) {
                let text = format!("shard {shard} is served by {open:?}");
                self.find(now, Violation::NotSettled, text);
            }
            for who in open {
                for session in 0..crate::ctx::SESSIONS {
                    kept.extend(state(who, shard, session));
                }
            }
        }
        let gone =
            |(op, _): &(&u32, &(ShardId, u8))| !kept.contains(op) && !self.excused.contains(op);
        let lost: Vec<String> = self
            .acked
            .iter()
            .filter(gone)
            .filter(|(op, _)| matches!(self.ops[**op as usize].done, Some((_, Done::Value(_)))))
            .map(|(op, (shard, session))| format!("{op} of shard {shard} session {session}"))
            .collect();
        if !lost.is_empty() {
            let text = format!("{}: {}", lost.len(), lost[..lost.len().min(8)].join(", "));
            self.find(now, Violation::LostChange, text);
        }
        self.check_answers(now);
    }

    fn check_answers(&mut self, now: Time) {
        let mut found = Vec::new();
        for (n, op) in (0..).zip(&self.ops) {
            match op.done {
                None => found.push((Violation::Unanswered, format!("{n}: {op:?}"))),
                Some((_, Done::Refused(why))) if self.acked.contains_key(&n) => {
                    found.push((Violation::RefusedAndRun, format!("{n}: {why:?}")));
                }
                Some((_, Done::Refused(_) | Done::Value(_) | Done::Unknown)) => {}
            }
        }
        if self.is_honest {
            let whole = self.ops.iter().filter(|op| !self.torn.contains(&op.shard));
            if let Err(text) = crate::history::check(whole.copied()) {
                found.push((Violation::NotLinearizable, text));
            }
        }
        for (what, text) in found {
            self.find(now, what, text);
        }
    }
}
