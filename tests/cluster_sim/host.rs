//! Gates, sessions and turns of one node, as thin as they can be.

use std::collections::{BTreeMap, VecDeque};

use stead_node::logic::gate::Gate;
use stead_node::logic::heal::Healed;
use stead_node::logic::heal::lineage::Lineage;
use stead_node::logic::window::{Asked, Content, Entry, Kept, Met, Window};
use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::id::{BootId, Epoch, RequestId, ShardId, Version};
use stead_shared::refusal::Refusal;
use stead_shared::rules::Rules;
use stead_shared::time::Time;

use crate::content::{Clock, Content as State, added};
use crate::ctx::SESSIONS;
use crate::feed::Follow;
use crate::saved::Pen;

/// A request at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) op: u32,
    pub(crate) attempt: u32,
    /// The number of this attempt among those that may be executed.
    pub(crate) try_no: u16,
    /// When the first attempt was made, in milliseconds.
    pub(crate) first_sent_ms: u64,
    pub(crate) shard: ShardId,
    pub(crate) session: u8,
    pub(crate) is_write: bool,
    pub(crate) epoch: Option<Epoch>,
    /// The connection that it came by.
    pub(crate) conn: u64,
}

/// One session: which requests have changed it, for the judge, and what they have made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) version: Option<Version>,
    pub(crate) ops: Vec<u32>,
    pub(crate) content: State,
    pub(crate) window: Window,
}

impl Session {
    pub(crate) fn value(&self) -> u64 {
        self.ops.len() as u64
    }

    pub(crate) fn is_there(&self) -> bool {
        self.version.is_some()
    }
}

/// What is in a shard.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    pub(crate) seq: u64,
    /// The epochs that it has come through before.
    pub(crate) past: Lineage,
    pub(crate) sessions: Vec<Session>,
}

impl Contents {
    fn nothing() -> Self {
        let sessions = vec![Session::default(); usize::from(SESSIONS)];
        Self { seq: 0, past: Lineage::EMPTY, sessions }
    }
}

#[derive(Clone, Debug, Default)]
struct Turns {
    is_taken: bool,
    queue: VecDeque<Ask>,
}

#[derive(Clone, Debug)]
pub(crate) struct Shard {
    pub(crate) gate: Gate,
    /// Another one for each time that the shard comes here.
    pub(crate) life: u64,
    pub(crate) seq: u64,
    pub(crate) sessions: Vec<Session>,
    turns: Vec<Turns>,
    running: u32,
    sealers: Vec<HandoffId>,
    /// Bytes per second of changes, while they are throttled.
    pub(crate) throttle: Option<u64>,
    /// The epoch in which it was served before, until it changes.
    pub(crate) origin: Option<Epoch>,
    /// The epochs that it has come through before this one.
    pub(crate) past: Lineage,
    pub(crate) healed: Option<Box<Healed<u8>>>,
    pub(crate) follows: Vec<Follow>,
    /// Writes every change to disk.
    pub(crate) pen: Option<Pen>,
}

impl Shard {
    pub(crate) fn epoch(&self) -> Epoch {
        self.gate.epoch().expect("a shard that is gone is not kept")
    }

    /// Whether answers wait for no copy.
    pub(crate) fn is_alone(&self) -> bool {
        !self.follows.iter().any(|follow| follow.is_member)
    }

    /// The epochs that it has come through, this one included.
    pub(crate) fn lineage(&self) -> Lineage {
        let mut lineage = self.past.clone();
        lineage.reach(Version { epoch: self.epoch(), seq: self.seq });
        lineage
    }

    /// What is in it, given up.
    pub(crate) fn into_contents(self) -> Contents {
        Contents { seq: self.seq, past: self.lineage(), sessions: self.sessions }
    }

    fn is_idle(&self) -> bool {
        self.running == 0
    }
}

/// What a request meets.
#[derive(Debug)]
pub(crate) enum Admitted {
    Refused(Refusal),
    Queued,
    /// It runs now. A read has read this value.
    Runs {
        life: u64,
        read: Option<u64>,
    },
}

/// How a turn ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// The shard is gone, and nothing was committed; or nobody knows whether it was applied before.
    Unknown,
    /// A write was applied, or a read has read.
    Ran {
        version: Version,
        value: u64,
        /// The session had this write already.
        is_twice: bool,
        /// The write whose value it replaced.
        saw: Option<u32>,
    },
    /// Nothing may be changed now, and nothing was.
    Refused,
    /// It was applied before, with this value.
    Again { epoch: Epoch, value: u64 },
}

fn asked(ask: &Ask) -> Asked {
    let id = Some(RequestId { boot: BootId(1), counter: u64::from(ask.op) });
    Asked { id, attempt: ask.try_no, first_sent_ms: ask.first_sent_ms, key: None }
}

fn value_of(kept: &Kept) -> u64 {
    let head = kept.content.as_ref().map(Content::head).unwrap_or_default();
    u64::from_be_bytes(head.try_into().expect("a value was kept"))
}

/// The shards of one node.
#[derive(Debug)]
pub(crate) struct HostModel {
    pub(crate) shards: BTreeMap<ShardId, Shard>,
    pub(crate) clock: Clock,
    lives: u64,
}

impl HostModel {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { shards: BTreeMap::new(), clock, lives: 0 }
    }

    fn fresh(&mut self, epoch: Epoch, contents: Contents) -> Shard {
        self.lives += 1;
        let Contents { seq, past, sessions } = contents;
        Shard {
            gate: Gate::Serving(epoch),
            life: self.lives,
            seq,
            sessions,
            turns: vec![Turns::default(); usize::from(SESSIONS)],
            running: 0,
            sealers: Vec::new(),
            throttle: None,
            origin: None,
            past,
            healed: None,
            follows: Vec::new(),
            pen: None,
        }
    }

    pub(crate) fn activate(
        &mut self,
        at: ShardEpoch,
        mut contents: Contents,
        origin: Option<Epoch>,
    ) {
        if let Some(epoch) = origin {
            contents.past.reach(Version { epoch, seq: contents.seq });
        }
        let mut shard = self.fresh(at.epoch, contents);
        shard.origin = origin;
        self.shards.insert(at.shard, shard);
    }

    /// A shard that is here already keeps its sessions.
    pub(crate) fn activate_empty(&mut self, at: ShardEpoch) -> Vec<HandoffId> {
        if self.shards.contains_key(&at.shard) {
            return self.reopen(at);
        }
        self.activate(at, Contents::nothing(), None);
        Vec::new()
    }

    /// Gives the seals that wait no more.
    pub(crate) fn reopen(&mut self, at: ShardEpoch) -> Vec<HandoffId> {
        let Some(shard) = self.shards.get_mut(&at.shard) else { return Vec::new() };
        assert!(shard.epoch() <= at.epoch, "the epoch of {} goes back", at.shard);
        shard.gate = Gate::Serving(at.epoch);
        std::mem::take(&mut shard.sealers)
    }

    /// Closes a gate. Gives who is turned away; the seal has ended when nothing runs.
    pub(crate) fn seal(&mut self, shard: ShardId, handoff: HandoffId) -> (Vec<Ask>, bool) {
        let Some(shard) = self.shards.get_mut(&shard) else { return (Vec::new(), true) };
        shard.gate = Gate::Sealed(shard.epoch());
        let away = shard.turns.iter_mut().flat_map(|turns| turns.queue.drain(..)).collect();
        let is_idle = shard.is_idle();
        if !is_idle {
            shard.sealers.push(handoff);
        }
        (away, is_idle)
    }

    /// Takes a shard out. Gives who waited for a turn, and the seals that wait no more.
    pub(crate) fn take_out(&mut self, shard: ShardId) -> Option<(Shard, Vec<Ask>)> {
        let mut shard = self.shards.remove(&shard)?;
        let away = shard.turns.iter_mut().flat_map(|turns| turns.queue.drain(..)).collect();
        Some((shard, away))
    }

    pub(crate) fn sealers(shard: &mut Shard) -> Vec<HandoffId> {
        std::mem::take(&mut shard.sealers)
    }

    /// A request comes.
    pub(crate) fn admit(&mut self, ask: &Ask, rules: &Rules) -> Admitted {
        let Some(shard) = self.shards.get_mut(&ask.shard) else {
            return Admitted::Refused(Refusal::NotOwner { claim: None });
        };
        if let Err(refusal) = shard.gate.open_for(ask.epoch, rules) {
            return Admitted::Refused(refusal);
        }
        let session = usize::from(ask.session);
        if ask.is_write {
            if shard.turns[session].is_taken {
                shard.turns[session].queue.push_back(*ask);
                return Admitted::Queued;
            }
            shard.turns[session].is_taken = true;
        }
        shard.running += 1;
        let read = (!ask.is_write).then(|| shard.sessions[session].value());
        Admitted::Runs { life: shard.life, read }
    }

    /// A turn ends.
    pub(crate) fn commit(
        &mut self,
        ask: &Ask,
        life: u64,
        now: Time,
        (rules, refuses): (&Rules, bool),
    ) -> Ended {
        let here = self.shards.get_mut(&ask.shard).filter(|shard| shard.life == life);
        let Some(shard) = here else { return Ended::Unknown };
        let epoch = shard.epoch();
        let session = &mut shard.sessions[usize::from(ask.session)];
        if !ask.is_write {
            let version = Version { epoch, seq: shard.seq };
            return Ended::Ran { version, value: session.value(), is_twice: false, saw: None };
        }
        let asked = asked(ask);
        match Window::meet(Some(&session.window), 0, &asked, rules) {
            Met::Run if refuses => return Ended::Refused,
            Met::Run => {}
            Met::Replay(kept) => return Ended::Again { epoch, value: value_of(kept) },
            Met::Unknown | Met::OtherRequest => return Ended::Unknown,
        }
        shard.seq += 1;
        let version = Version { epoch, seq: shard.seq };
        let is_twice = session.ops.contains(&ask.op);
        session.ops.push(ask.op);
        session.version = Some(version);
        let saw = session.content.change(ask.op, version, || self.clock.stamp(now));
        let value = session.value();
        let content = Content::new(&value.to_be_bytes(), &[]);
        let kept = Kept { status: 200, version, has_etag: false, content };
        // Copies are whole here: they need not be told what leaves.
        let entry = Entry { added: added(ask.op, version), ..Entry::new(asked, kept, now) };
        let _ = session.window.add(entry, now);
        Ended::Ran { version, value, is_twice, saw }
    }

    /// What an answer with this value tells of.
    pub(crate) fn ops(&self, ask: &Ask, value: u64) -> Vec<u32> {
        let here = self.shards.get(&ask.shard);
        let ops = here.map_or(&[][..], |it| &it.sessions[usize::from(ask.session)].ops);
        ops[..ops.len().min(value as usize)].to_vec()
    }

    /// What follows a turn: the next one, and seals that have ended.
    pub(crate) fn release(&mut self, ask: &Ask, life: u64) -> (Option<Ask>, Vec<HandoffId>) {
        let here = self.shards.get_mut(&ask.shard).filter(|shard| shard.life == life);
        let Some(shard) = here else { return (None, Vec::new()) };
        shard.running -= 1;
        let mut next = None;
        if ask.is_write {
            let turns = &mut shard.turns[usize::from(ask.session)];
            next = turns.queue.pop_front();
            turns.is_taken = next.is_some();
        }
        shard.running += u32::from(next.is_some());
        let ended = if shard.is_idle() { std::mem::take(&mut shard.sealers) } else { Vec::new() };
        (next, ended)
    }

    /// Whether turns still run behind a gate that was closed for this move.
    pub(crate) fn seal_goes_on(&self, handoff: HandoffId) -> bool {
        self.shards.values().any(|shard| shard.sealers.contains(&handoff))
    }

    /// Whether a turn of this session runs.
    pub(crate) fn is_busy(&self, shard: ShardId, session: u8) -> bool {
        self.shards.get(&shard).is_some_and(|s| s.turns[usize::from(session)].is_taken)
    }
}
