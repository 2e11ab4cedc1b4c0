//! What a process takes from the system beneath it, beside sockets and the runtime's clock: the
//! time of day, randomness, and a thread for its gossip.
//!
//! Everything that is not the same in every run comes through here, so that a simulation can
//! give what makes two runs the same.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;

use super::agent::{AgentError, AgentRun, PushPuller, on_own_thread};
use super::disk;
use super::heard::{Clock, boottime};
use crate::time::Time;

/// The system beneath a process. A clone is the same: it draws from the same random numbers.
#[derive(Clone, Default)]
pub struct Platform {
    simulated: Option<Simulated>,
}

#[derive(Clone)]
struct Simulated {
    rng: Arc<Mutex<StdRng>>,
    unix_micros: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.simulated.is_some() { "simulated" } else { "system" };
        f.debug_tuple("Platform").field(&kind).finish()
    }
}

impl Platform {
    /// The real one: the system's clock and randomness, and gossip on a thread of its own.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// One that is the same in every run: all randomness comes from `seed`, the time of day from
    /// `unix_micros` (microseconds since 1970), and gossip is a task of the runtime in which the
    /// process starts.
    ///
    /// For tests. Whoever knows the seed knows every nonce, so that nothing is authentic.
    #[must_use]
    pub fn simulated(seed: u64, unix_micros: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let rng = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        Self { simulated: Some(Simulated { rng, unix_micros: Arc::new(unix_micros) }) }
    }

    /// Microseconds since 1970; 0 when the clock stands before that.
    #[must_use]
    pub fn unix_micros(&self) -> u64 {
        match &self.simulated {
            None => disk::unix_micros(),
            Some(simulated) => (simulated.unix_micros)(),
        }
    }

    /// A clock that also runs while the system sleeps.
    #[must_use]
    pub fn awake_clock(&self) -> Clock {
        match &self.simulated {
            None => Box::new(boottime),
            Some(simulated) => {
                let unix_micros = Arc::clone(&simulated.unix_micros);
                Box::new(move || Time::from_micros(unix_micros()))
            }
        }
    }

    /// Random bytes that nobody can guess.
    ///
    /// # Errors
    /// When the system has none.
    pub fn fill(&self, bytes: &mut [u8]) -> Result<(), getrandom::Error> {
        match &self.simulated {
            None => getrandom::fill(bytes),
            Some(simulated) => {
                simulated.rng.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
                Ok(())
            }
        }
    }

    /// As many random bytes as are wanted, for nonces and names.
    ///
    /// # Panics
    /// When the system has none: then nothing can be safe.
    #[must_use]
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes).expect("the system gives random bytes");
        bytes
    }

    /// Starts the gossip agent, which calls peers on the current runtime.
    /// [`Agent::ended`](super::agent::Agent::ended) tells how it ended.
    ///
    /// # Errors
    /// [`AgentError::Thread`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn gossip<P: PushPuller>(&self, run: AgentRun, peers: Arc<P>) -> Result<(), AgentError> {
        match &self.simulated {
            None => on_own_thread(run, peers).map(drop),
            Some(_) => {
                // Whoever waits for its end learns that it is lost when it does not start.
                drop(tokio::spawn(run.run(peers, Handle::current())));
                Ok(())
            }
        }
    }
}
