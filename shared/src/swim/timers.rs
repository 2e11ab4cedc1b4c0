//! All timers of the machine, in one order.

use std::collections::BTreeMap;
use std::time::Duration;

use foca::Timer;

use super::identity::Identity;
use crate::id::NodeBoot;
use crate::time::Time;

/// What a timer is for.
#[derive(Clone, Debug)]
pub(crate) enum Alarm {
    /// One of foca's, and since when it has been held back.
    Foca(Timer<Identity>, Option<Time>),
    /// Try the seeds.
    Seeds,
    /// Exchange lists with somebody.
    PushPull,
    /// See whether we have been deaf for too long.
    Deaf,
    /// Nobody answered for our name.
    NameTimeout(u64),
    /// Ask for the name of a newer process of our name.
    TwinProbe(Identity),
    /// An accusation heard by push/pull was not answered.
    Pending(Identity, u16),
    /// Tell a member again that it is taken for dead.
    RenewAgain(Identity, u32),
    /// Look after the next member.
    Watch,
    /// Ask an accused member again, or give it up.
    Accused(Identity, Time, u32),
    /// A refused connect had too few witnesses.
    Refused(NodeBoot),
    /// Ask for a card again.
    Card(Identity, u32),
    /// The ring, or the list of the gone, changes by the passing of time.
    Roster,
    /// The next round of goodbyes.
    Goodbye(u32),
}

/// Alarms by due time; of those due at once foca's in the order it wants, then by age.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_due: BTreeMap<(Time, u8, u64), Alarm>,
    n_set: u64,
}

/// An indirect probe must start before its cycle ends.
fn rank(alarm: &Alarm) -> u8 {
    match alarm {
        Alarm::Foca(Timer::SendIndirectProbe { .. }, _) => 0,
        Alarm::Foca(Timer::ProbeRandomMember(_), _) => 1,
        Alarm::Foca(_, _) => 2,
        Alarm::Seeds
        | Alarm::PushPull
        | Alarm::Deaf
        | Alarm::NameTimeout(_)
        | Alarm::TwinProbe(_)
        | Alarm::Pending(..)
        | Alarm::RenewAgain(..)
        | Alarm::Watch
        | Alarm::Accused(..)
        | Alarm::Refused(_)
        | Alarm::Card(..)
        | Alarm::Roster
        | Alarm::Goodbye(_) => 3,
    }
}

impl Timers {
    pub(crate) fn set(&mut self, due: Time, alarm: Alarm) {
        self.n_set += 1;
        self.by_due.insert((due, rank(&alarm), self.n_set), alarm);
    }

    pub(crate) fn next_due(&self) -> Option<Time> {
        self.by_due.first_key_value().map(|((due, _, _), _)| *due)
    }

    /// Takes the first alarm that is due.
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<Alarm> {
        let first = self.by_due.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Takes the last alarm that is due: what happens when each timer is a task of its own.
    pub(crate) fn pop_due_unordered(&mut self, now: Time) -> Option<Alarm> {
        let (&key, _) = self.by_due.range(..=(now, u8::MAX, u64::MAX)).next_back()?;
        self.by_due.remove(&key)
    }

    /// Moves every alarm back by `lateness`.
    pub(crate) fn postpone(&mut self, lateness: Duration) {
        let alarms = std::mem::take(&mut self.by_due);
        self.by_due = alarms
            .into_iter()
            .map(|((due, rank, n), alarm)| ((due + lateness, rank, n), alarm))
            .collect();
    }

    pub(crate) fn clear(&mut self) {
        self.by_due.clear();
    }

    /// Forgets foca's timers: they belong to a machine that is no more.
    pub(crate) fn forget_core(&mut self) {
        self.by_due.retain(|_, alarm| !matches!(alarm, Alarm::Foca(..)));
    }
}
