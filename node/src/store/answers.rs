//! Windows of sessions behind a shard's lock: see [`crate::logic::window`].
//!
//! An entry is committed with the change that it tells of. A session that goes leaves its window as
//! a tombstone, which goes with it; the floor of a window that has ended counts for the whole shard
//! from then on.

use stead_shared::id::SessionKey;
use stead_shared::rules::Rules;
use stead_shared::time::Time;

use super::core::Core;
use super::data::{Data, Footprint, SESSION_OVERHEAD, Stored};
use super::inner::Inner;
use super::turns::Turn;
use crate::logic::window::{Asked, Met, Trim, Window};

/// What a change did to the window of its session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    pub(super) trim: Trim,
    /// Whether an entry came, and to the list of idempotency keys.
    pub(super) came: Option<bool>,
}

impl Inner {
    /// What becomes of a request in its turn, whose session is here or is not.
    pub(super) fn meet(&self, here: Option<&Stored>, asked: Asked) -> Turn {
        let window = window(here);
        match Window::meet(window, self.floor_ms(), &asked, &Rules::ALL) {
            Met::Run => Turn::Runs(Some(asked)),
            Met::Replay(kept) => Turn::Replays(kept.clone()),
            Met::Unknown => Turn::Unknown,
            Met::OtherRequest => Turn::OtherRequest,
        }
    }

    /// There is no memory for what a session has answered. Whatever was first sent up to then is not
    /// known any more, in the whole shard.
    pub(super) fn forget_answers(&mut self, core: &Core, up_to_ms: u64) {
        core.metrics.answers_forgotten.increment(1);
        if self.floor_ms() < up_to_ms {
            self.raise_floor(up_to_ms);
            let prev = self.next_seq(0);
            self.tell_seq(core, prev);
        }
    }

    /// Puts a tombstone where the session was, if it has answered anything lately.
    pub(super) fn bury(&mut self, core: &Core, key: &SessionKey, gone: &Stored) {
        let Some(window) = gone.data.window() else { return };
        let mut tombstone = Stored::new(key.as_bytes(), gone.data.version(), core.now());
        tombstone.bytes = tombstone_bytes(key.as_bytes().len());
        tombstone.set_window(window.clone());
        if core.resize(Footprint::NONE, tombstone.footprint()).is_err() {
            // Others took the memory that it had.
            self.forget_answers(core, window.newest_ms());
            return;
        }
        self.expires_at(tombstone.due());
        self.sessions.insert(Box::new(tombstone));
    }

    /// Lets entries of a session go that are of no use any more, and its tombstone with the last.
    pub(super) fn trim(&mut self, core: &Core, key: &SessionKey, now: Time) {
        let Some(stored) = self.sessions.at_rest(key.as_bytes()) else { return };
        let trim = stored.data.window().map(|window| window.expired(now)).unwrap_or_default();
        let old = stored.footprint();
        let (new, ended) = self.sessions.trim_window(key.as_bytes(), trim);
        core.shrink(old, new);
        self.raise_floor(ended.unwrap_or(0));
        let is_over = self
            .sessions
            .at_rest(key.as_bytes())
            .is_some_and(|stored| stored.is_tombstone() && stored.data.window().is_none());
        if is_over {
            self.remove(core, key);
        }
        if is_over || !trim.is_empty() {
            let prev = self.next_seq(0);
            self.tell_trim(core, prev, key, trim);
        }
    }
}

/// What a session takes at most after a change.
pub(super) struct Bound {
    pub(super) footprint: Footprint,
    /// Without its window; 0 when nothing of it stays.
    pub(super) rest: usize,
}

impl Bound {
    /// Of a session of `size` bytes, 0 for none, and a window.
    pub(super) fn new(key: &SessionKey, size: usize, window_max: usize) -> Self {
        let rest = match size {
            0 if window_max == 0 => 0,
            0 => tombstone_bytes(key.as_bytes().len()) as usize,
            size => size,
        };
        let bytes = (rest + window_max) as u64;
        Self { footprint: Footprint { bytes, sessions: u64::from(0 < size) }, rest }
    }
}

/// Bytes of a session that has nothing, beside its window.
fn tombstone_bytes(key_bytes: usize) -> u32 {
    (SESSION_OVERHEAD + key_bytes) as u32
}

/// The window of a session that may not be there.
pub(super) fn window(stored: Option<&Stored>) -> Option<&Window> {
    stored.map(|stored| &stored.data).and_then(Data::window)
}
