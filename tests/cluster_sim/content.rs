//! What requests make of a session: a value, of which the last writer's stays, and a counter that is
//! made of parts. What becomes of both where two histories meet is decided by production.

use stead_node::logic::heal::counter::{self, Part};
use stead_node::logic::heal::value::{self, Stays};
use stead_node::logic::heal::{Histories, Written, twice};
use stead_node::logic::window::{Added, Window};
use stead_shared::id::{NodeId, Version};
use stead_shared::time::Time;

use crate::host::Session;
use crate::oracle::Violation;

const COUNTER: &str = "n";

/// What a write adds to the counter of its session.
pub(crate) fn adds(op: u32) -> i64 {
    if op % 7 < 2 { 0 } else { 1 + i64::from(op % 5) }
}

/// Whether a write writes a value.
pub(crate) fn puts(op: u32) -> bool {
    op % 7 < 4
}

/// What is noted of a write in the window of its session.
pub(crate) fn added(op: u32, at: Version) -> Option<Box<Added>> {
    let by = Some(adds(op)).filter(|by| *by != 0);
    Added::new(by.map(|by| (COUNTER.into(), by)).into_iter().collect(), at)
}

/// A value: the write that wrote it, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) op: u32,
    at: Version,
    bytes: [u8; 4],
}

/// See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) value: Option<Value>,
    pub(crate) written: Written,
    counter: Vec<Part>,
}

impl Content {
    pub(crate) fn counter(&self) -> i64 {
        counter::value(&self.counter)
    }

    /// Makes the change of a write. Gives the write whose value it replaces.
    pub(crate) fn change(
        &mut self,
        op: u32,
        at: Version,
        stamp: impl FnOnce() -> Written,
    ) -> Option<u32> {
        if adds(op) != 0 {
            counter::add(&mut self.counter, at, adds(op));
        }
        if !puts(op) {
            return None;
        }
        self.written = stamp();
        let value = Value { op, at, bytes: op.to_be_bytes() };
        self.value.replace(value).map(|old| old.op)
    }

    fn side(&self) -> Option<value::Value<'_>> {
        let written = self.written;
        self.value.as_ref().map(|it| value::Value {
            bytes: &it.bytes,
            schema: None,
            at: it.at,
            written,
        })
    }
}

/// A hybrid logical clock over one that is up to a second wrong.
#[derive(Debug)]
pub(crate) struct Clock {
    last: Written,
    ahead_micros: u64,
}

impl Clock {
    pub(crate) fn of(node: NodeId) -> Self {
        Self { last: Written::default(), ahead_micros: node.0 % 2_000_000 }
    }

    pub(crate) fn stamp(&mut self, now: Time) -> Written {
        self.last = self.last.next(now.as_micros() + self.ahead_micros);
        self.last
    }

    pub(crate) fn see(&mut self, now: Time, written: Written) {
        if written.counts_at(now.as_micros() + self.ahead_micros) {
            self.last = self.last.max(written);
        }
    }
}

/// How histories of a session are merged: as production does it, or wrong in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Healing {
    Whole,
    /// Nobody knows through which epochs a shard has come.
    WithoutLineage,
    /// Of a session that both sides changed, one side's state counts.
    OneSide,
    /// Counters of both sides are added up.
    AddsUp,
    /// A request that both sides executed counts twice.
    CountsTwice,
    /// A value that lost is not listed.
    LosesValues,
}

impl Healing {
    /// Those that lose something or count it twice, and what of it is found out.
    pub(crate) const WRONG: [(Self, Violation); 5] = [
        (Self::WithoutLineage, Violation::LostChange),
        (Self::OneSide, Violation::LostChange),
        (Self::AddsUp, Violation::CounterOff),
        (Self::CountsTwice, Violation::CounterOff),
        (Self::LosesValues, Violation::LostValue),
    ];
}

/// Two histories of a session that both sides changed.
pub(crate) struct Meeting<'a> {
    pub(crate) histories: &'a Histories,
    /// The change that it is to merge them.
    pub(crate) version: Version,
    pub(crate) now: Time,
    pub(crate) healing: Healing,
}

impl Meeting<'_> {
    /// Makes of `theirs` what both are together. Gives the write whose value did not stay.
    pub(crate) fn merge(&self, ours: &Session, theirs: &mut Session) -> Option<u32> {
        let Self { histories, version, now, healing } = *self;
        let (window, amends) = if healing == Healing::CountsTwice {
            (ours.window.united(&theirs.window, now, |_, _| {}), Vec::new())
        } else {
            let (window, amends, _) =
                twice::unite(&ours.window, &theirs.window, histories, version, now);
            (window, amends)
        };
        let loser = Self::merge_value(&ours.content, &mut theirs.content, histories);
        if healing == Healing::AddsUp {
            counter::add(&mut theirs.content.counter, version, ours.content.counter());
        } else {
            theirs.content.counter = counter::merge(
                (&ours.content.counter, &histories.ours),
                (&theirs.content.counter, &histories.theirs),
            );
        }
        for amends in amends {
            counter::add(&mut theirs.content.counter, version, amends.by);
        }
        theirs.content.written = theirs.content.written.max(ours.content.written);
        theirs.version = Some(version);
        theirs.window = window;
        theirs.ops = united(&ours.ops, &theirs.ops);
        loser.filter(|_| healing != Healing::LosesValues)
    }

    fn merge_value(ours: &Content, theirs: &mut Content, histories: &Histories) -> Option<u32> {
        match value::merge(ours.side(), theirs.side(), histories, None) {
            Stays::Theirs { loses } => ours.value.filter(|_| loses).map(|it| it.op),
            Stays::Ours { loses } => {
                let loser = theirs.value.filter(|_| loses).map(|it| it.op);
                theirs.value = ours.value;
                loser
            }
            Stays::Both(_) => unreachable!("nobody makes one of two values here"),
        }
    }
}

fn united(ours: &[u32], theirs: &[u32]) -> Vec<u32> {
    let more = theirs.iter().filter(|op| !ours.contains(op));
    ours.iter().chain(more).copied().collect()
}

impl Session {
    /// What is there comes in place of what is here; only its window stays.
    pub(crate) fn take_window(&mut self, here: &Window, now: Time) {
        self.window = self.window.united(here, now, |_, _| {});
    }

    /// What a copy that has `here` makes of a change, which tells it of sums alone, and not when
    /// values were written.
    pub(crate) fn derive(&mut self, here: &Self, stamp: impl FnOnce() -> Written) {
        let at = |content: &Content| content.value.map(|value| value.at);
        let is_same = here.is_there() && at(&here.content) == at(&self.content);
        self.content.written = if is_same { here.content.written } else { stamp() };
        let Some(at) = self.version else { return };
        let by = self.content.counter().wrapping_sub(here.content.counter());
        if !self.content.counter.is_empty() {
            self.content.counter.clone_from(&here.content.counter);
            if by != 0 {
                counter::add(&mut self.content.counter, at, by);
            }
        }
    }
}
