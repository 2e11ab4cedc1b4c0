//! [`crate::heard`] for the tasks of a process: those that read tell it, those that answer ask it.
//!
//! While somebody is heard all the time, both cost one look at the clock and one atomic load; a
//! lock is taken only where something changes.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::heard::{Change, Ear, Lift, SILENCE_MAX};
use crate::net::watch;
use crate::time::Time;

/// Nothing has to be heard.
const OFF: u64 = u64::MAX;
/// Answers go out, and the next packet changes that.
const ALONE: u64 = u64::MAX - 1;
/// No answer goes out.
const DOUBT: u64 = 0;
/// Packets that follow each other more closely are one, so that cores do not fight for the same
/// cache line.
const CLOSE: u64 = 10_000;

/// A clock that also runs while the system sleeps.
pub type Clock = Box<dyn Fn() -> Time + Send + Sync>;

/// The system's clock that counts the time in suspension too: `CLOCK_BOOTTIME` on Linux, the
/// monotonic clock elsewhere.
#[must_use]
pub fn boottime() -> Time {
    #[cfg(target_os = "linux")]
    const ID: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const ID: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let at = rustix::time::clock_gettime(ID);
    let (seconds, nanos) = (u64::try_from(at.tv_sec), u64::try_from(at.tv_nsec));
    Time::from_micros(seconds.unwrap_or(0) * 1_000_000 + nanos.unwrap_or(0) / 1000)
}

/// The doubt of a process, as those see it who ask the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// Number of doubts so far; the last one is this one.
    pub number: u64,
    /// Whether it lasts.
    pub lasts: bool,
    /// How often somebody was heard during it. Only that it changes means anything.
    pub n_heard: u64,
}

/// Whether this process has heard anybody lately.
pub struct Heard {
    clock: Clock,
    /// Until when answers go out without a look at `ear`: one of the constants above, or a time
    /// in microseconds. Written under the lock of `ear`, or where a packet moves it on.
    calm_until: AtomicU64,
    ear: Mutex<Ear>,
    doubts: watch::Sender<Doubt>,
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heard").field("ear", &self.ear).finish_non_exhaustive()
    }
}

impl Heard {
    /// Knows nobody yet. With `is_on` false it never doubts.
    #[must_use]
    pub fn new(is_on: bool, clock: Clock) -> Self {
        Self {
            clock,
            calm_until: AtomicU64::new(OFF),
            ear: Mutex::new(Ear::new(is_on)),
            doubts: watch::Sender::new(Doubt::default()),
        }
    }

    /// Tells of every doubt, its end, and of what is heard during it.
    #[must_use]
    pub fn doubts(&self) -> watch::Receiver<Doubt> {
        self.doubts.subscribe()
    }

    /// Whether there is any live member beside this one.
    pub fn peers(&self, has_peers: bool) {
        let now = (self.clock)();
        self.with_ear(|ear| ear.peers(has_peers, now));
    }

    /// An authentic packet is here.
    pub fn note(&self) {
        let until = self.calm_until.load(Ordering::Acquire);
        if until == OFF {
            return;
        }
        let now = (self.clock)();
        if now.as_micros() <= until && until < ALONE {
            let next = (now + SILENCE_MAX).as_micros();
            if next < until + CLOSE
                || self
                    .calm_until
                    .compare_exchange(until, next, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok()
            {
                return;
            }
        }
        self.tell(|ear| ear.note(now));
    }

    /// Whether an answer that is ready now has to wait for [`Self::certain`]. Call it after the
    /// handler.
    #[must_use]
    pub fn check(&self) -> bool {
        let until = self.calm_until.load(Ordering::Acquire);
        if ALONE <= until {
            return false;
        }
        let now = (self.clock)();
        if now.as_micros() <= until {
            return false;
        }
        self.tell(|ear| ear.check(now));
        self.is_in_doubt()
    }

    /// Whether nothing may begin. One load; it notices no silence by itself.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.calm_until.load(Ordering::Acquire) == DOUBT
    }

    /// Waits until there is no doubt.
    pub async fn certain(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.doubts.subscribe().wait_for(|doubt| !doubt.lasts).await;
    }

    /// The doubt with this number is over; of any other, nothing happens. Whether it did.
    pub fn lift(&self, number: u64, how: Lift) -> bool {
        let now = (self.clock)();
        let lifted = self.with_ear(|ear| ear.lift(number, how, now));
        if lifted {
            self.doubts.send_modify(|doubt| doubt.lasts &= doubt.number != number);
        }
        lifted
    }

    fn lock(&self) -> MutexGuard<'_, Ear> {
        self.ear.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the ear, which first hears of the packets that were only counted outside.
    fn with_ear<T>(&self, change: impl FnOnce(&mut Ear) -> T) -> T {
        let mut ear = self.lock();
        if ear.last().is_some() {
            let until = Time::from_micros(self.calm_until.load(Ordering::Acquire));
            ear.heard_until(until - SILENCE_MAX);
        }
        let result = change(&mut ear);
        let until = match ear.last() {
            Some(last) => (last + SILENCE_MAX).as_micros(),
            None if ear.is_in_doubt() => DOUBT,
            None if ear.is_alone() => ALONE,
            None => OFF,
        };
        self.calm_until.store(until, Ordering::Release);
        result
    }

    fn tell(&self, change: impl FnOnce(&mut Ear) -> Change) {
        let (change, number) = self.with_ear(|ear| (change(ear), ear.n_doubts()));
        match change {
            Change::None => {}
            Change::Doubt => {
                self.doubts.send_replace(Doubt { number, lasts: true, n_heard: 0 });
            }
            Change::Heard => self.doubts.send_modify(|doubt| doubt.n_heard += 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A process and the clock that it reads, in milliseconds.
    fn heard() -> (Heard, Arc<AtomicU64>) {
        let ms = Arc::new(AtomicU64::new(1000));
        let clock = Arc::clone(&ms);
        let clock = move || Time::from_micros(clock.load(Ordering::Relaxed) * 1000);
        (Heard::new(true, Box::new(clock)), ms)
    }

    #[test]
    fn an_answer_after_a_silence_waits_until_it_is_lifted() {
        let (heard, ms) = heard();
        ms.store(9000, Ordering::Relaxed);
        assert!(!heard.check(), "nobody is there to be heard");
        heard.peers(true);
        for at in [9500, 10_400, 11_300] {
            ms.store(at, Ordering::Relaxed);
            heard.note();
        }
        ms.store(12_300, Ordering::Relaxed);
        assert!(!heard.check());
        ms.store(12_301, Ordering::Relaxed);
        assert!(!heard.is_in_doubt(), "nobody has looked yet");
        let doubts = heard.doubts();
        assert!(heard.check());
        assert!(heard.is_in_doubt());
        assert_eq!(*doubts.borrow(), Doubt { number: 1, lasts: true, n_heard: 0 });
        ms.store(12_600, Ordering::Relaxed);
        heard.note();
        assert_eq!(*doubts.borrow(), Doubt { number: 1, lasts: true, n_heard: 1 });
        assert!(!heard.lift(7, Lift::Answered), "another one");
        assert!(heard.check());
        assert!(heard.lift(1, Lift::Answered));
        assert!(!doubts.borrow().lasts);
        assert!(!heard.check());
    }

    #[test]
    fn the_first_packet_after_a_silence_raises_the_doubt() {
        let (heard, ms) = heard();
        heard.peers(true);
        ms.store(2500, Ordering::Relaxed);
        heard.note();
        heard.note();
        assert!(heard.is_in_doubt());
        assert!(heard.lift(1, Lift::Alone));
        ms.store(60_000, Ordering::Relaxed);
        assert!(!heard.check(), "alone, whatever the time");
        heard.note();
        assert!(heard.is_in_doubt(), "no longer alone");
    }

    #[test]
    fn the_system_s_clock_goes_on() {
        let before = boottime();
        while boottime() == before {}
        assert!(before < boottime());
    }
}
