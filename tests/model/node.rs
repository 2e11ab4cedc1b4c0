//! One process: the production machine, and the little of the shell around it that matters.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use stead_node::logic::ownership::{Action, Event, Ownership};
use stead_shared::claims::Replicas;
use stead_shared::control::{HandoffId, ShardEpoch};
use stead_shared::id::{Epoch, NodeBoot, ShardId, Version};
use stead_shared::time::Time;
use xxhash_rust::xxh3::Xxh3;

use super::feed::{Feeds, Follow};
use super::kept::{Intake, Kept, Report};

/// The one shard of the model.
pub(crate) const SHARD: ShardId = ShardId(0);
/// What every machine's clock shows; late enough that nothing lies before the origin.
const NOW: Time = Time::from_micros(3_600_000_000);
/// Ends every wait for an answer, and what a node gives a peer before it asks again.
pub(crate) const SHORT: Duration = Duration::from_secs(2);
/// Ends every other wait too.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A change of the shard's state that a client was, or will be, told of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entry {
    pub(crate) epoch: Epoch,
    pub(crate) seq: u8,
    pub(crate) value: u8,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}", self.value)
    }
}

/// The shard at a node that serves it, or did until its next owner is seen to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Gate {
    pub(crate) epoch: Epoch,
    pub(crate) open: bool,
    /// A turn was begun while the gate was open, and has yet to commit.
    pub(crate) turn: bool,
    /// The number of the last change.
    pub(crate) seq: u64,
    pub(crate) entries: Vec<Entry>,
    /// The epoch in which it was served before, until it changes.
    pub(crate) origin: Option<Epoch>,
    pub(crate) follows: Vec<Follow>,
    /// Whom answers wait for, by the machine's last word.
    pub(crate) told: Replicas,
}

impl Gate {
    /// One that is open, over a state that ended at `end`.
    pub(crate) fn over(at: ShardEpoch, turn: bool, whole: Whole) -> Self {
        let Whole { end, entries } = whole;
        Self {
            epoch: at.epoch,
            open: true,
            turn,
            seq: end.map_or(0, |end| end.seq),
            entries,
            origin: end.map(|end| end.epoch),
            follows: Vec::new(),
            told: Replicas::NONE,
        }
    }

    /// Where the shard is.
    pub(crate) fn end(&self) -> Version {
        Version { epoch: self.epoch, seq: self.seq }
    }
}

/// The whole state of a shard, and where it ends; an empty one ends nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Whole {
    pub(crate) end: Option<Version>,
    pub(crate) entries: Vec<Entry>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) me: NodeBoot,
    pub(crate) machine: Ownership,
    /// What it says of itself.
    pub(crate) phase: stead_shared::member::MemberState,
    /// The last view it has seen.
    pub(crate) seen: usize,
    pub(crate) gate: Option<Gate>,
    /// Copies that have come in whole.
    pub(crate) copies: BTreeMap<HandoffId, Whole>,
    /// Copies that go out, and whose last part has not been sent.
    pub(crate) streams: BTreeMap<HandoffId, NodeBoot>,
    /// The highest epoch that was sealed, until its turns had ended, or granted.
    pub(crate) promised: Option<Epoch>,
    /// What it held of shards that it gave up to another claimant: offered, and kept until merged.
    pub(crate) aside: BTreeSet<Entry>,
    /// Copies elsewhere that follow the shard here.
    pub(crate) feeds: Feeds,
    /// The copy here that follows the shard elsewhere.
    pub(crate) kept: Option<Kept>,
    pub(crate) intake: Intake,
    /// What the machine is yet to be told of copies.
    pub(crate) reports: VecDeque<Report>,
    pub(crate) drained: bool,
}

impl Node {
    pub(crate) fn new(
        machine: Ownership,
        me: NodeBoot,
        phase: stead_shared::member::MemberState,
        seen: usize,
    ) -> Self {
        let (copies, streams, aside) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self {
            me,
            machine,
            phase,
            seen,
            gate: None,
            copies,
            streams,
            promised: None,
            aside,
            feeds: Feeds::default(),
            kept: None,
            intake: Intake::default(),
            reports: VecDeque::new(),
            drained: false,
        }
    }

    /// Feeds the machine, `after` some time.
    pub(crate) fn feed(&mut self, after: Duration, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.machine.handle(NOW + after, event, &mut out);
        round_times(&mut self.machine);
        out
    }

    pub(crate) fn start_time() -> Time {
        NOW
    }

    /// The whole state of the shard that is served here.
    pub(crate) fn whole(&self) -> Whole {
        let end = self.gate.as_ref().map(Gate::end);
        Whole { end, entries: self.entries().to_vec() }
    }

    /// Opens the gate again, in another epoch. Gives the one in which the shard was served.
    pub(crate) fn raise(&mut self, epoch: Epoch) -> Epoch {
        let Some(gate) = &mut self.gate else { return epoch };
        gate.open = true;
        std::mem::replace(&mut gate.epoch, epoch)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.open)
    }

    pub(crate) fn has_turn(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.turn)
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        self.gate.as_ref().map_or(&[], |gate| &gate.entries)
    }

    /// Whether the change is anywhere in this process.
    pub(crate) fn has(&self, entry: &Entry) -> bool {
        self.entries().contains(entry)
            || self.aside.contains(entry)
            || self.copies.values().any(|copy| copy.entries.contains(entry))
            || self.kept.as_ref().is_some_and(|copy| copy.entries.contains(entry))
    }
}

/// Sets the machine's clock back to [`NOW`], and rounds what is left until each of its timers is
/// over up to one of the waits that the model knows.
fn round_times(machine: &mut Ownership) {
    let mut now = None;
    machine.each_time(&mut |at, after| {
        let now = *now.get_or_insert(*at);
        let left = (*at + after).since(now);
        let rounded = match left {
            Duration::ZERO => Duration::ZERO,
            left if left <= SHORT => SHORT,
            _ => LONG,
        };
        *at = (NOW + rounded) - after;
    });
}

/// Processes that differ from each other: most states are new arrangements of old ones.
static KNOWN: LazyLock<Mutex<HashMap<u64, Shared<Node>>>> = LazyLock::new(Mutex::default);

impl Shared<Node> {
    /// The one copy of this process.
    pub(crate) fn known(node: Node) -> Self {
        let node = Self::new(node);
        let mut known = KNOWN.lock().expect("nobody panics while holding it");
        known.entry(node.fingerprint).or_insert(node).clone()
    }
}

/// The same for equal values, in every run.
pub(crate) fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = Xxh3::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A value that is shared between states, with its fingerprint.
#[derive(Clone)]
pub(crate) struct Shared<T> {
    fingerprint: u64,
    value: Arc<T>,
}

impl<T: Hash> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { fingerprint: fingerprint(&value), value: Arc::new(value) }
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl<T> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint);
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}
