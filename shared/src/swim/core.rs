//! foca, and what it wants done.

use std::time::Duration;

use bytes::Bytes;
use foca::{
    Error, Foca, Member, NoCustomBroadcast, Notification, PostcardCodec, Runtime, State, Timer,
    TimerToken,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::event::SwimStats;
use super::identity::Identity;
use super::notice::wrap_core;

/// Incarnation of a death that is proved. A living member never reaches it, and since a death
/// outdoes every incarnation it travels like any other.
pub(crate) const PROVED: u16 = u16::MAX;

/// What foca wants done, in the order in which it said so.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) sends: Vec<(Identity, Bytes)>,
    pub(crate) timers: Vec<(Duration, Timer<Identity>)>,
    /// Something may have changed in foca's list.
    pub(crate) dirty: bool,
    /// Somebody came, went or has another identity.
    pub(crate) news: bool,
    /// Nobody else is alive.
    pub(crate) idle: bool,
    /// Token of the timers that foca still heeds.
    token: TimerToken,
}

impl Runtime<Identity> for Effects {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        self.dirty = true;
        match notification {
            Notification::Idle => self.idle = true,
            Notification::Active => self.idle = false,
            Notification::MemberUp(_) | Notification::MemberDown(_) | Notification::Rename(..) => {
                self.news = true
            }
            Notification::Defunct | Notification::Rejoin(_) => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.sends.push((to, wrap_core(data)));
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        match &timer {
            Timer::ProbeRandomMember(token) => self.token = *token,
            // A probe failed: the probed member is suspect now.
            Timer::ChangeSuspectToDown { .. } => self.dirty = true,
            Timer::SendIndirectProbe { .. }
            | Timer::PeriodicAnnounce(_)
            | Timer::PeriodicAnnounceDown(_)
            | Timer::PeriodicGossip(_)
            | Timer::RemoveDown(_) => {}
        }
        self.timers.push((after, timer));
    }
}

/// foca with its effects and error counts.
pub(crate) struct Core {
    foca: Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>,
    pub(crate) effects: Effects,
    pub(crate) stats: SwimStats,
}

impl Core {
    pub(crate) fn new(me: Identity, config: foca::Config, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self {
            foca: Foca::new(me, config, rng, PostcardCodec),
            effects: Effects::default(),
            stats: SwimStats::default(),
        }
    }

    /// Forgets everything and starts again as `me`. What was to be sent is still sent.
    pub(crate) fn restart(&mut self, me: Identity, config: foca::Config, seed: u64) {
        let fresh = Self::new(me, config, seed);
        self.foca = fresh.foca;
        let sends = std::mem::take(&mut self.effects.sends);
        self.effects = Effects { dirty: true, sends, ..Effects::default() };
    }

    pub(crate) fn identity(&self) -> Identity {
        *self.foca.identity()
    }

    pub(crate) fn n_active(&self) -> usize {
        self.foca.num_members()
    }

    /// Everybody in foca's list, in no order that means anything.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member<Identity>> {
        self.foca.iter_membership_state()
    }

    pub(crate) fn is_suspect(&self, id: &Identity, incarnation: u16) -> bool {
        self.members().any(|member| {
            member.id() == id
                && member.incarnation() == incarnation
                && member.state() == State::Suspect
        })
    }

    pub(crate) fn packet(&mut self, packet: &[u8]) {
        let result = self.foca.handle_data(packet, &mut self.effects);
        self.note(result);
    }

    pub(crate) fn timer(&mut self, timer: Timer<Identity>) {
        let result = self.foca.handle_timer(timer, &mut self.effects);
        self.note(result);
    }

    /// Takes `members` in, and passes the news on when `spread`.
    pub(crate) fn apply(&mut self, members: Vec<Member<Identity>>, spread: bool) {
        self.effects.dirty = true;
        let result = self.foca.apply_many(members.into_iter(), spread, &mut self.effects);
        self.note(result);
    }

    /// After a change of identity foca rests until somebody speaks to it. Nobody may know its
    /// new name yet, so it has to go on by itself.
    pub(crate) fn wake(&mut self) {
        self.apply(Vec::new(), false);
    }

    pub(crate) fn announce(&mut self, to: Identity) {
        let result = self.foca.announce(to, &mut self.effects);
        self.note(result);
    }

    pub(crate) fn change_identity(&mut self, me: Identity) {
        let result = self.foca.change_identity(me, &mut self.effects);
        self.note(result);
    }

    /// Passes news on now.
    pub(crate) fn gossip(&mut self) {
        let result = self.foca.gossip(&mut self.effects);
        self.note(result);
    }

    pub(crate) fn leave(&mut self) {
        let result = self.foca.leave_cluster(&mut self.effects);
        self.note(result);
    }

    /// The timer that ends the suspicion of `id`.
    pub(crate) fn suspicion_timer(&self, id: Identity, incarnation: u16) -> Timer<Identity> {
        Timer::ChangeSuspectToDown { member_id: id, incarnation, token: self.effects.token }
    }

    fn note(&mut self, result: Result<(), Error>) {
        match result {
            Ok(()) => {}
            Err(
                Error::DataTooBig
                | Error::DataFromOurselves
                | Error::IndirectForOurselves
                | Error::MalformedPacket
                | Error::Decode(_)
                | Error::CustomBroadcast(_),
            ) => self.stats.packets_refused += 1,
            Err(
                Error::NotUndead
                | Error::SameIdentity
                | Error::NotConnected
                | Error::IncompleteProbeCycle
                | Error::Encode(_)
                | Error::InvalidConfig,
            ) => self.stats.core_errors += 1,
        }
    }
}
