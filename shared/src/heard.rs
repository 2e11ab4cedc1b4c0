//! Whether this process has heard anybody lately (R11).
//!
//! ```text
//!           a peer is known            silent for 1 s           answered
//!   Off ─────────────────────▶ Hearing ──────────────▶ Doubt ───────────▶ Hearing
//!    ▲                            │                    ▲   │
//!    └──── no peer is known ──────┘     somebody spoke │   │ nobody spoke for 2 s
//!                                                      Alone ◀──────────
//! ```
//! A process that was stopped, or whose network is cut, may have lost its shards without knowing.
//! So each answer looks at the clock *after* its handler and compares it with the last time that
//! anybody was heard; after a longer silence nothing goes out before somebody has said who holds
//! the shards. A process that wakes reads what lay in its sockets meanwhile: the first packet
//! after a silence raises the doubt as well, so that old packets do not hide it.
//!
//! This bounds how old an answer can be, it does not exclude that it is old: the clock may be
//! stopped with the process, as in a virtual machine that is paused.

use std::time::Duration;

use crate::time::Time;

/// The longest silence without doubt. Twice the time between two probes: in a calm cluster of two
/// something is heard at least every 500 ms.
pub const SILENCE_MAX: Duration = Duration::from_secs(1);
/// How often it is told that somebody was heard during a doubt; what is heard earlier may have
/// been in a socket for long.
pub const TELL_EVERY: Duration = Duration::from_millis(250);

/// How a doubt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lift {
    /// Somebody has said who holds the shards.
    Answered,
    /// Nobody was heard for too long: there may be nobody else.
    Alone,
}

/// What is news to whoever asks the others.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// A doubt has begun.
    Doubt,
    /// Somebody was heard during one.
    Heard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    Hearing { last: Time },
    Doubt { told: Time },
    Alone,
}

/// What one process knows of having been heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ear {
    is_on: bool,
    has_peers: bool,
    state: State,
    n_doubts: u64,
}

impl Ear {
    /// One that knows no peer yet; with `is_on` false, one that never doubts.
    #[must_use]
    pub fn new(is_on: bool) -> Self {
        Self { is_on, has_peers: false, state: State::Off, n_doubts: 0 }
    }

    /// Doubts so far: the number of the present one, if there is one.
    #[must_use]
    pub fn n_doubts(&self) -> u64 {
        self.n_doubts
    }

    /// Whether no answer may go out.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        match self.state {
            State::Doubt { .. } => true,
            State::Off | State::Hearing { .. } | State::Alone => false,
        }
    }

    /// When somebody was last heard, if that matters.
    #[must_use]
    pub fn last(&self) -> Option<Time> {
        match self.state {
            State::Hearing { last } => Some(last),
            State::Off | State::Doubt { .. } | State::Alone => None,
        }
    }

    /// Packets came until then, none of them after too long a silence.
    pub fn heard_until(&mut self, time: Time) {
        if let State::Hearing { last } = &mut self.state {
            *last = time.max(*last);
        }
    }

    /// Whether the next packet changes anything but the time of the last one.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.state == State::Alone
    }

    /// Whether there is any live member beside this one. A doubt that has begun is not ended by
    /// this: whoever asks finds out that there is nobody to ask.
    pub fn peers(&mut self, has_peers: bool, now: Time) {
        self.has_peers = has_peers;
        match (self.state, self.is_on && has_peers) {
            (State::Off, true) => self.state = State::Hearing { last: now },
            (State::Hearing { .. } | State::Alone, false) => self.state = State::Off,
            (State::Off | State::Doubt { .. }, false)
            | (State::Hearing { .. } | State::Doubt { .. } | State::Alone, true) => {}
        }
    }

    /// An authentic packet is here.
    pub fn note(&mut self, now: Time) -> Change {
        match &mut self.state {
            State::Off => Change::None,
            State::Hearing { last } if now.since(*last) <= SILENCE_MAX => {
                *last = now.max(*last);
                Change::None
            }
            State::Hearing { .. } | State::Alone => self.doubt(now),
            State::Doubt { told } if now.since(*told) < TELL_EVERY => Change::None,
            State::Doubt { told } => {
                *told = now;
                Change::Heard
            }
        }
    }

    /// An answer is about to go out.
    pub fn check(&mut self, now: Time) -> Change {
        match self.state {
            State::Hearing { last } if SILENCE_MAX < now.since(last) => self.doubt(now),
            State::Off | State::Hearing { .. } | State::Doubt { .. } | State::Alone => Change::None,
        }
    }

    /// `Hearing, Alone => Doubt`.
    fn doubt(&mut self, now: Time) -> Change {
        self.n_doubts += 1;
        self.state = State::Doubt { told: now };
        Change::Doubt
    }

    /// The doubt with this number is over; of any other, nothing happens. Whether it did.
    pub fn lift(&mut self, number: u64, how: Lift, now: Time) -> bool {
        let is_it = self.is_in_doubt() && number == self.n_doubts;
        if is_it {
            self.state = match how {
                Lift::Answered => State::Hearing { last: now },
                Lift::Alone => State::Alone,
            };
            self.peers(self.has_peers, now);
        }
        is_it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    /// One that heard somebody at 1 s.
    fn hearing() -> Ear {
        let mut ear = Ear::new(true);
        ear.peers(true, ms(1000));
        ear
    }

    fn doubting() -> Ear {
        let mut ear = hearing();
        assert_eq!(ear.check(ms(2001)), Change::Doubt);
        ear
    }

    fn alone() -> Ear {
        let mut ear = doubting();
        assert!(ear.lift(1, Lift::Alone, ms(4001)));
        ear
    }

    #[test]
    fn every_state_meets_every_event() {
        use Change::{Doubt, Heard, None};
        let cases = [
            ("off, packet", Ear::new(true), Ear::note as fn(&mut Ear, Time) -> Change, 9000, None),
            ("off, answer", Ear::new(true), Ear::check, 9000, None),
            ("hearing, packet in time", hearing(), Ear::note, 2000, None),
            ("hearing, packet too late", hearing(), Ear::note, 2001, Doubt),
            ("hearing, answer in time", hearing(), Ear::check, 2000, None),
            ("hearing, answer too late", hearing(), Ear::check, 2001, Doubt),
            ("doubt, old packet", doubting(), Ear::note, 2250, None),
            ("doubt, packet", doubting(), Ear::note, 2251, Heard),
            ("doubt, answer", doubting(), Ear::check, 9000, None),
            ("alone, packet", alone(), Ear::note, 9000, Doubt),
            ("alone, answer", alone(), Ear::check, 9000, None),
        ];
        for (what, mut ear, event, at, wanted) in cases {
            let (was_in_doubt, n) = (ear.is_in_doubt(), ear.n_doubts());
            assert_eq!(event(&mut ear, ms(at)), wanted, "{what}");
            assert_eq!(ear.is_in_doubt(), was_in_doubt || wanted == Doubt, "{what}");
            assert_eq!(ear.n_doubts(), n + u64::from(wanted == Doubt), "{what}");
        }
    }

    #[test]
    fn packets_keep_doubt_away() {
        let mut ear = hearing();
        for at in [2000, 3000, 3500] {
            assert_eq!(ear.note(ms(at)), Change::None);
        }
        assert_eq!(ear.note(ms(3400)), Change::None, "late to be told");
        assert_eq!(ear.check(ms(4500)), Change::None);
        assert_eq!(ear.check(ms(4501)), Change::Doubt);
    }

    #[test]
    fn old_packets_do_not_hide_a_silence() {
        let mut ear = hearing();
        assert_eq!(ear.note(ms(2500)), Change::Doubt, "it lay in the socket");
        assert_eq!(ear.note(ms(2501)), Change::None);
        assert!(ear.is_in_doubt());
    }

    #[test]
    fn a_doubt_is_lifted_by_its_number_only() {
        let mut ear = doubting();
        assert!(!ear.lift(0, Lift::Answered, ms(2010)));
        assert!(ear.is_in_doubt());
        assert!(ear.lift(1, Lift::Answered, ms(2010)));
        assert_eq!(ear.last(), Some(ms(2010)));
        assert!(!ear.lift(1, Lift::Answered, ms(2020)), "once");
    }

    #[test]
    fn who_knows_nobody_never_doubts() {
        let mut ear = hearing();
        ear.peers(false, ms(1500));
        assert_eq!(ear.check(ms(9000)), Change::None);
        ear.peers(true, ms(10_000));
        assert_eq!(ear.check(ms(11_000)), Change::None, "the silence counts from here");
        let mut doubting = doubting();
        doubting.peers(false, ms(2100));
        assert!(doubting.is_in_doubt(), "whoever asks ends it");
        assert!(doubting.lift(1, Lift::Alone, ms(2200)));
        assert_eq!(doubting.note(ms(9000)), Change::None);
        let mut off = Ear::new(false);
        off.peers(true, ms(1000));
        assert_eq!((off.check(ms(9000)), off.note(ms(9000))), (Change::None, Change::None));
    }
}
