//! Gates, sessions and turns of one node, as thin as they can be.

use std::collections::{BTreeMap, VecDeque};

use stead_node::logic::gate::Gate;
use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::id::{Epoch, ShardId, Version};
use stead_shared::refusal::Refusal;
use stead_shared::rules::Rules;

use crate::ctx::SESSIONS;

/// A request at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) op: u32,
    pub(crate) attempt: u32,
    pub(crate) shard: ShardId,
    pub(crate) session: u8,
    pub(crate) is_write: bool,
    pub(crate) epoch: Option<Epoch>,
    /// The connection that it came by.
    pub(crate) conn: u64,
}

/// One session: a counter, and which requests have raised it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) version: Option<Version>,
    pub(crate) ops: Vec<u32>,
}

impl Session {
    pub(crate) fn value(&self) -> u64 {
        self.ops.len() as u64
    }

    pub(crate) fn is_there(&self) -> bool {
        self.version.is_some()
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
}

impl Shard {
    pub(crate) fn epoch(&self) -> Epoch {
        self.gate.epoch().expect("a shard that is gone is not kept")
    }

    fn is_idle(&self) -> bool {
        self.running == 0
    }
}

/// What a request meets.
#[derive(Debug)]
pub(crate) enum Met {
    Refused(Refusal),
    Queued,
    /// It runs now. A read has read this value.
    Runs {
        life: u64,
        read: Option<u64>,
    },
}

/// What was committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) version: Version,
    pub(crate) value: u64,
}

/// The shards of one node.
#[derive(Debug, Default)]
pub(crate) struct HostModel {
    pub(crate) shards: BTreeMap<ShardId, Shard>,
    lives: u64,
}

impl HostModel {
    fn fresh(&mut self, epoch: Epoch, seq: u64, sessions: Vec<Session>) -> Shard {
        self.lives += 1;
        Shard {
            gate: Gate::Serving(epoch),
            life: self.lives,
            seq,
            sessions,
            turns: vec![Turns::default(); usize::from(SESSIONS)],
            running: 0,
            sealers: Vec::new(),
            throttle: None,
        }
    }

    pub(crate) fn activate(&mut self, at: ShardEpoch, seq: u64, sessions: Vec<Session>) {
        let shard = self.fresh(at.epoch, seq, sessions);
        self.shards.insert(at.shard, shard);
    }

    /// A shard that is here already keeps its sessions.
    pub(crate) fn activate_empty(&mut self, at: ShardEpoch) -> Vec<HandoffId> {
        if self.shards.contains_key(&at.shard) {
            return self.reopen(at);
        }
        self.activate(at, 0, vec![Session::default(); usize::from(SESSIONS)]);
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
    pub(crate) fn admit(&mut self, ask: &Ask, rules: &Rules) -> Met {
        let Some(shard) = self.shards.get_mut(&ask.shard) else {
            return Met::Refused(Refusal::NotOwner { claim: None });
        };
        if let Err(refusal) = shard.gate.open_for(ask.epoch, rules) {
            return Met::Refused(refusal);
        }
        let session = usize::from(ask.session);
        if ask.is_write {
            if shard.turns[session].is_taken {
                shard.turns[session].queue.push_back(*ask);
                return Met::Queued;
            }
            shard.turns[session].is_taken = true;
        }
        shard.running += 1;
        let read = (!ask.is_write).then(|| shard.sessions[session].value());
        Met::Runs { life: shard.life, read }
    }

    /// A turn ends. `None`: the shard is gone, and nothing was committed.
    pub(crate) fn commit(&mut self, ask: &Ask, life: u64) -> Option<Committed> {
        let shard = self.shards.get_mut(&ask.shard).filter(|shard| shard.life == life)?;
        let session = &mut shard.sessions[usize::from(ask.session)];
        if ask.is_write {
            shard.seq += 1;
            session.ops.push(ask.op);
            session.version = Some(Version { epoch: shard.gate.epoch()?, seq: shard.seq });
        }
        let version = Version { epoch: shard.epoch(), seq: shard.seq };
        Some(Committed { version, value: shard.sessions[usize::from(ask.session)].value() })
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
