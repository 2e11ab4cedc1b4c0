//! A run as text.

use std::fmt::Write;

use stateright::Path;
use stead_shared::claims::ClaimsUpdate;
use stead_shared::control::{Control, HandoffId, ShardEpoch};
use stead_shared::id::{Epoch, NodeBoot};

use super::cluster::Step;
use super::feed::Item;
use super::kept::Report;
use super::members::{NODES, index_of};
use super::node::{LONG, Node};
use super::state::{Letter, State};

/// A run as text: a line for each step, and one for each process that it changes.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    text: String,
    before: [String; NODES],
    n_steps: usize,
}

impl Trace {
    pub(crate) fn of(path: Path<State, Step>) -> Self {
        let mut trace = Self::default();
        for (state, step) in path.into_vec() {
            trace.add(&state, step.as_ref());
        }
        trace
    }

    /// A state, and what happens then.
    pub(crate) fn add(&mut self, state: &State, step: Option<&Step>) {
        for (i, before) in self.before.iter_mut().enumerate() {
            let now = state.node(i).map_or_else(|| "not running".to_owned(), holds);
            if now != *before {
                let _ = writeln!(self.text, "{:>8}{}: {now}", "", name(i));
                *before = now;
            }
        }
        if let Some(step) = step {
            self.n_steps += 1;
            let _ = writeln!(self.text, "{:>4}  {}", self.n_steps, describe(step, state));
        }
    }

    /// Something said in between.
    pub(crate) fn say(&mut self, text: &str) {
        let _ = writeln!(self.text, "      {text}");
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

fn name(i: usize) -> String {
    format!("n{}", i + 1)
}

fn epoch(epoch: Epoch) -> String {
    format!("{}.{}", epoch.counter, name(index_of(epoch.node)))
}

fn handoff(id: HandoffId) -> String {
    format!("{}#{}", name(index_of(id.source.node)), id.number)
}

fn epochs(shards: &[ShardEpoch]) -> String {
    shards.iter().map(|at| epoch(at.epoch)).collect::<Vec<_>>().join(" ")
}

/// What a process has of the shard.
fn holds(node: &Node) -> String {
    let mut text = gate(node);
    if let Some(gate) = node.gate.as_ref().filter(|gate| !gate.told.is_empty()) {
        let _ = write!(text, ", counts on {}", boots(gate.told.as_slice()));
    }
    if !node.feeds.unacked.is_empty() {
        let _ = write!(text, ", {} to be answered", node.feeds.unacked.len());
    }
    if let Some(copy) = &node.kept {
        let whole = if copy.state.complete { "a" } else { "half a" };
        let owner = name(index_of(copy.state.owner.node));
        let at = copy.state.at;
        let _ = write!(
            text,
            "; {whole} copy of {owner}'s at {}/{}: {:?}",
            epoch(at.epoch),
            at.seq,
            copy.entries
        );
    }
    text
}

fn boots(boots: &[NodeBoot]) -> String {
    boots.iter().map(|boot| name(index_of(boot.node))).collect::<Vec<_>>().join(" ")
}

fn gate(node: &Node) -> String {
    match &node.gate {
        None => "no shard".to_owned(),
        Some(gate) => {
            let state = if gate.open { "serves in" } else { "closed, served in" };
            let turn = if gate.turn { ", a turn runs" } else { "" };
            format!("{state} {}, has {:?}{turn}", epoch(gate.epoch), gate.entries)
        }
    }
}

fn describe(step: &Step, state: &State) -> String {
    match step {
        Step::Deliver(letter) => describe_letter(letter),
        Step::Repeat(letter) => format!("{} (and will again)", describe_letter(letter)),
        Step::Claims { from, to } => claims(state, *from, *to, ""),
        Step::LoseClaims { from, to } => claims(state, *from, *to, " (lost)"),
        Step::Wait { node, so_long } if *so_long == LONG => format!("{}: a long wait", name(*node)),
        Step::Wait { node, .. } => format!("{}: a wait", name(*node)),
        Step::Look(i) => {
            let view = state.node(*i).and_then(|node| state.views.get(node.seen + 1));
            format!("{} sees {}", name(*i), view.map(members).unwrap_or_default())
        }
        Step::Begin(i) => format!("{}: a turn begins", name(*i)),
        Step::Commit(i) => format!("{}: the turn ends and is acknowledged", name(*i)),
        Step::Copied { handoff: id, .. } => format!("the copy of {} nears its end", handoff(*id)),
        Step::TooHot { handoff: id, .. } => format!("the copy of {} is too slow", handoff(*id)),
        Step::Break { handoff: id, .. } => format!("the copy of {} breaks", handoff(*id)),
        Step::Fill { from, to } => {
            format!("{} goes on with filling the copy at {}", name(*from), name(index_of(to.node)))
        }
        Step::Carry { owner, to } => {
            let (from, to) = (name(index_of(owner.node)), *to);
            format!("{from} → {}: {}", name(to), item(state, *owner, to))
        }
        Step::Acknowledge { from, owner } => {
            let ack = state.node(*from).and_then(|node| node.intake.acks.get(owner));
            let what = ack.map(|ack| format!("{ack:?}")).unwrap_or_default();
            format!("{} → {}: {what}", name(*from), name(index_of(owner.node)))
        }
        Step::Cut { from, to } => {
            format!(
                "the connection of {} to the copy at {} is cut",
                name(*from),
                name(index_of(to.node))
            )
        }
        Step::Silence { node, to } => {
            format!(
                "{} has waited too long for the copy at {}",
                name(*node),
                name(index_of(to.node))
            )
        }
        Step::Report(i) => {
            let report = state.node(*i).and_then(|node| node.reports.front());
            format!("{} learns: {}", name(*i), report.map(describe_report).unwrap_or_default())
        }
        Step::Move => "placement wants the shard at the next node".to_owned(),
        Step::Drain(i) => format!("{} is told to leave", name(*i)),
        Step::Leave(i) => format!("{} ends", name(*i)),
        Step::Kill(i) => format!("{} dies", name(*i)),
        Step::Restart(i) => format!("{} starts again", name(*i)),
        Step::Slander(i) => format!("{} is taken for dead", name(*i)),
        Step::Clear(i) => format!("{} is known to live", name(*i)),
    }
}

/// What comes next from an owner to a copy.
fn item(state: &State, owner: NodeBoot, to: usize) -> String {
    let feed = |node: &Node, to: &Node| {
        let feed = node.feeds.by_node.get(&to.me)?;
        feed.flying.front().cloned()
    };
    let last_word = || state.last_words.get(&(owner, to))?.front().cloned();
    let of_node = match (state.node(index_of(owner.node)), state.node(to)) {
        (Some(node), Some(to)) if node.me == owner => feed(node, to),
        _ => None,
    };
    let item = of_node.or_else(last_word).map(|(_, item)| item);
    match item {
        None => String::new(),
        Some(Item::FillBegin { at }) => format!("a copy begins at {}/{}", epoch(at.epoch), at.seq),
        Some(Item::Fill { entries, .. }) => format!("state {entries:?}"),
        Some(Item::FillEnd { at }) => {
            format!("the copy is whole at {}/{}", epoch(at.epoch), at.seq)
        }
        Some(Item::Adopt { epoch: at, .. }) => format!("follow in {}", epoch(at)),
        Some(Item::NextEpoch { epoch: at, .. }) => format!("go on in {}", epoch(at)),
        Some(Item::Entry { entry, .. }) => format!("{entry:?}"),
    }
}

fn describe_report(report: &Report) -> String {
    match report {
        Report::Filled { to, at } => {
            format!("the copy at {} follows in {}", name(index_of(to.node)), epoch(at.epoch))
        }
        Report::Lost { to, why } => {
            format!("the copy at {} does not follow: {why:?}", name(index_of(to.node)))
        }
        Report::Silent(to) => format!("the copy at {} is silent", name(index_of(to.node))),
        Report::Begun { owner, at } => {
            format!("a copy of {}'s begins, in {}", name(index_of(owner.node)), epoch(at.epoch))
        }
        Report::Complete { owner, at } => {
            format!("the copy of {}'s is whole, in {}", name(index_of(owner.node)), epoch(at.epoch))
        }
        Report::NotOpened(at) => format!("there was no copy to serve in {}", epoch(at.epoch)),
    }
}

fn members(view: &super::members::View) -> String {
    let states: Vec<String> =
        (0..NODES).map(|i| format!("{} {}", name(i), view.nodes[i].1)).collect();
    let target = view.target().map_or_else(|| "nobody".to_owned(), name);
    format!("{}; target {target}", states.join(", "))
}

fn claims(state: &State, from: usize, to: usize, end: &str) -> String {
    let update = state.claims.get(&(from, to)).and_then(|queue| queue.front());
    let what = update.map(describe_claims).unwrap_or_default();
    format!("{} → {}: {what}{end}", name(from), name(to))
}

fn describe_claims(update: &ClaimsUpdate) -> String {
    match update.ranges.first() {
        None => "claims: none".to_owned(),
        Some(range) if range.counter == 0 => "claims: released".to_owned(),
        Some(range) => {
            let named = if update.sets.boots.is_empty() { "" } else { ", copies at " };
            let (owner, boots) = (name(index_of(update.owner.node)), boots(&update.sets.boots));
            format!("claims: {}.{owner}{named}{boots} ({})", range.counter, update.pos)
        }
    }
}

fn describe_letter(letter: &Letter) -> String {
    match letter {
        Letter::Control { from, to, message } => {
            format!("{} → {}: {}", name(index_of(from.node)), name(*to), control(message))
        }
        Letter::ClaimsWanted { from, to } => {
            format!("{} → {}: send your claims", name(*from), name(*to))
        }
        Letter::Copy { to, handoff: id, state: Some(state) } => {
            format!("{} has the copy of {}: {:?}", name(*to), handoff(*id), state.entries)
        }
        Letter::Copy { to, handoff: id, state: None } => {
            format!("{} sees the copy of {} break", name(*to), handoff(*id))
        }
        Letter::Quiet { node, handoff: id } => {
            format!("{}: no turn runs any more, for {}", name(*node), handoff(*id))
        }
        Letter::Broken { node, handoff: id } => {
            format!("{} sees its copy of {} break", name(*node), handoff(*id))
        }
    }
}

fn control(message: &Control) -> String {
    match message {
        Control::Propose { .. } => "propose".to_owned(),
        Control::Accept { .. } => "accept".to_owned(),
        Control::Reject { .. } => "reject".to_owned(),
        Control::WhoHolds { token, .. } => format!("who holds it? ({token})"),
        Control::Holds { token, holdings, highest, .. } => {
            let held: Vec<String> = holdings
                .iter()
                .map(|held| format!("{}.{}", held.range.counter, name(index_of(held.owner.node))))
                .collect();
            let highest = highest.iter().map(|range| range.counter).max().unwrap_or(0);
            format!("held at [{}], highest {highest} ({token})", held.join(" "))
        }
        Control::Prepare { handoff: id, shards, .. } => {
            format!("prepare {} of {}", handoff(*id), epochs(shards))
        }
        Control::Prepared { handoff: id } => format!("prepared {}", handoff(*id)),
        Control::Declined { handoff: id, why } => format!("declined {}: {why:?}", handoff(*id)),
        Control::Served { handoff: id, shards } => {
            format!("served {} at {}", handoff(*id), epochs(shards))
        }
        Control::NoCopy { handoff: id } => format!("no copy of {}", handoff(*id)),
        Control::CaughtUp { handoff: id } => format!("caught up {}", handoff(*id)),
        Control::Grant { handoff: id, shards } => {
            format!("grant {} at {}", handoff(*id), epochs(shards))
        }
        Control::Relay { to, handoff: id, shards } => {
            format!(
                "relay to {}: grant {} at {}",
                name(index_of(*to)),
                handoff(*id),
                epochs(shards)
            )
        }
        Control::Abort { handoff: id } => format!("abort {}", handoff(*id)),
        Control::TakeOver { token, owner, pos, .. } => {
            let owner = name(index_of(owner.node));
            format!("may I take over from {owner}, known up to {pos}? ({token})")
        }
        Control::Takeable { token, pos, holdings, .. } => {
            let held: Vec<String> = holdings
                .iter()
                .map(|held| format!("{}.{}", held.range.counter, name(index_of(held.owner.node))))
                .collect();
            format!("held at [{}], known up to {pos} ({token})", held.join(" "))
        }
        Control::SeeClaims { pos } => format!("do you know my claims up to {pos}?"),
        Control::SeenClaims { pos } => format!("your claims are known up to {pos}"),
        Control::WhatSaved { .. } | Control::Saved { .. } => format!("{message:?}"),
    }
}
