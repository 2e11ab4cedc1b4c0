//! One process for each name.
//!
//! A newcomer says nothing of itself until it has seen a list and, when that names another live
//! boot of its node, has asked at the recorded address. Otherwise the healthy process of that
//! name would be taken for dead, with everything it holds, because of a typing error.

use std::net::SocketAddr;
use std::time::Duration;

use foca::{Member, State};

use super::Swim;
use super::event::{FatalReason, SwimAction, SwimState};
use super::identity::{Identity, Standing};
use super::timers::Alarm;
use crate::id::{BootId, NodeBoot};
use crate::time::Time;

/// How long an elder waits before it asks for a newer process of its name: that one is to find
/// out first, and to give way.
const TWIN_PATIENCE: Duration = Duration::from_secs(2);

/// Whether this process may speak under its name.
#[derive(Clone, Debug)]
pub(super) enum Naming {
    /// Nobody was asked yet.
    Unknown,
    /// The process that had the name is being asked.
    Asking(Asked),
    /// It is ours.
    Settled,
    /// It is ours, and so it is of a newer process, which is being asked.
    Contested(Asked),
}

/// A question that is out.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Tells its time-out from those of earlier ones.
    n: u64,
    addr: SocketAddr,
    other: Identity,
    /// The list that told of it, and from whom it came.
    list: Option<(NodeBoot, SwimState)>,
}

impl Naming {
    pub(super) fn new(asked: bool) -> Self {
        if asked { Self::Unknown } else { Self::Settled }
    }

    /// Whether this process may speak.
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::Unknown | Self::Asking(_) => false,
            Self::Settled | Self::Contested(_) => true,
        }
    }
}

impl Swim {
    /// Nobody to ask: the name is ours.
    pub(super) fn name_unasked(&mut self) {
        if matches!(self.naming, Naming::Unknown) {
            self.naming = Naming::Settled;
        }
    }

    /// ## Unknown => (Asking | Settled)
    ///
    /// The first list decides. While a question is out further lists are of no use.
    pub(super) fn check_name(
        &mut self,
        now: Time,
        from: NodeBoot,
        state: SwimState,
        out: &mut Vec<SwimAction>,
    ) {
        if !matches!(self.naming, Naming::Unknown) {
            return;
        }
        let namesake = state
            .members
            .iter()
            .map(|entry| &entry.member)
            .find(|member| self.is_me(member.id().node) && member.id().boot != self.me.boot);
        let Some(namesake) = namesake.cloned() else {
            self.name_settled(now, Some((from, state)), out);
            return;
        };
        let gone = namesake.state() == State::Down || namesake.id().standing == Standing::Gone;
        if gone || namesake.id().gossip == self.me.gossip {
            self.outlive(namesake.id().boot, out);
            self.name_settled(now, Some((from, state)), out);
        } else {
            let asked = self.ask_name(now, *namesake.id(), Some((from, state)), out);
            self.naming = Naming::Asking(asked);
        }
    }

    fn ask_name(
        &mut self,
        now: Time,
        other: Identity,
        list: Option<(NodeBoot, SwimState)>,
        out: &mut Vec<SwimAction>,
    ) -> Asked {
        let n = now.as_micros();
        // The shell has the time-out; this one is for a shell that never answers.
        self.timers.set(now + self.config.name_timeout * 2, Alarm::NameTimeout(n));
        out.push(SwimAction::ProbeName { addr: other.gossip, old: other.node_boot() });
        Asked { n, addr: other.gossip, other, list }
    }

    /// Makes sure that our boot id is above that of an earlier boot.
    fn outlive(&mut self, old: BootId, out: &mut Vec<SwimAction>) {
        if self.me.boot <= old {
            self.reboot(BootId(old.0.saturating_add(1)), out);
        }
    }

    fn name_settled(
        &mut self,
        now: Time,
        list: Option<(NodeBoot, SwimState)>,
        out: &mut Vec<SwimAction>,
    ) {
        self.naming = Naming::Settled;
        if let Some((from, state)) = list {
            self.introduce(now, from, state, out);
        }
    }

    /// ## Asking => Settled, Contested => Settled
    pub(super) fn name_free(&mut self, now: Time, out: &mut Vec<SwimAction>) {
        match std::mem::replace(&mut self.naming, Naming::Settled) {
            Naming::Asking(asked) => {
                self.outlive(asked.other.boot, out);
                self.name_settled(now, asked.list, out);
            }
            Naming::Contested(asked) => self.outlive_twin(asked.other.boot, out),
            unasked @ (Naming::Unknown | Naming::Settled) => self.naming = unasked,
        }
    }

    /// A dead process had our name and a higher boot id. Everybody must learn that we are here,
    /// so this is a new start in the eyes of all; nothing of ours was believed anyway.
    fn outlive_twin(&mut self, other: BootId, out: &mut Vec<SwimAction>) {
        let peers: Vec<Member<Identity>> =
            self.core.members().filter(|member| !self.is_me(member.id().node)).cloned().collect();
        self.outlive(other, out);
        self.core.apply(peers, false);
    }

    /// ## (Asking | Contested) => fatal
    pub(super) fn name_held(&mut self, now: Time, boot: BootId, out: &mut Vec<SwimAction>) {
        if boot == self.me.boot {
            // We answered ourselves: the address is ours.
            self.name_free(now, out);
            return;
        }
        match std::mem::replace(&mut self.naming, Naming::Settled) {
            Naming::Asking(asked) => {
                self.fatal(FatalReason::NameTaken { addr: asked.addr, boot }, out);
            }
            Naming::Contested(asked) => {
                self.fatal(FatalReason::Superseded { addr: asked.addr, boot }, out);
            }
            unasked @ (Naming::Unknown | Naming::Settled) => self.naming = unasked,
        }
    }

    pub(super) fn name_timeout(&mut self, now: Time, n: u64, out: &mut Vec<SwimAction>) {
        match &self.naming {
            Naming::Asking(asked) | Naming::Contested(asked) if asked.n == n => {
                self.name_free(now, out);
            }
            Naming::Unknown | Naming::Settled | Naming::Asking(_) | Naming::Contested(_) => {}
        }
    }

    /// ## Settled => Contested
    ///
    /// Somebody told of a newer process of our name.
    pub(super) fn twin_seen(
        &mut self,
        now: Time,
        twin: &Member<Identity>,
        out: &mut Vec<SwimAction>,
    ) {
        let waiting = self.twin_due.is_some_and(|due| now < due);
        if !matches!(self.naming, Naming::Settled) || waiting || twin.id().boot <= self.me.boot {
            return;
        }
        if twin.state() == State::Down || twin.id().standing == Standing::Gone {
            self.outlive_twin(twin.id().boot, out);
            return;
        }
        self.twin_due = Some(now + TWIN_PATIENCE);
        self.timers.set(now + TWIN_PATIENCE, Alarm::TwinProbe(*twin.id()));
    }

    pub(super) fn probe_twin(&mut self, now: Time, twin: Identity, out: &mut Vec<SwimAction>) {
        if matches!(self.naming, Naming::Settled) && self.me.boot < twin.boot {
            let asked = self.ask_name(now, twin, None, out);
            self.naming = Naming::Contested(asked);
        }
    }
}
