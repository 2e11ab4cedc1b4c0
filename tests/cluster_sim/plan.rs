//! What goes wrong in a run, and when: drawn from its seed.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stead_shared::id::BootId;
use stead_shared::rules::Rules;
use stead_shared::sim::Host;

use crate::content::Healing;
use crate::ctx::{Knobs, N_ROUTERS, PIN_SETS, ms};
use crate::disk::DiskKnobs;

/// Something that happens to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    Start(Host),
    /// `confirmed`: the others get proof of it; otherwise there is only silence.
    Crash {
        host: Host,
        confirmed: bool,
    },
    /// It has drained, or was not let in.
    Exit(Host, BootId),
    Restart {
        host: Host,
        confirmed: bool,
        after: Duration,
    },
    Pause {
        host: Host,
        lasts: Duration,
    },
    Resume(Host),
    Drain(Host),
    Pins(u8),
    /// It misses a probe, and is heard again after that time.
    Suspect {
        host: Host,
        lasts: Duration,
    },
    /// It is taken for dead by some or all, and is not.
    FalseDeath {
        host: Host,
        by_all: bool,
        lasts: Duration,
    },
    /// It is heard again.
    Refute(Host, BootId),
    /// Nothing gets from one to the other.
    Cut {
        from: Host,
        to: Host,
    },
    /// Nothing gets from these to the others, nor back.
    Isolate {
        mask: u32,
    },
    Heal,
    BreakLink,
    BreakStream,
    /// All streams of state from and to a process.
    BreakStreams(Host),
    /// All links from and to a process.
    BreakLinks(Host),
    /// What is sent from one to the other takes longer.
    Slow {
        from: Host,
        to: Host,
        by: Duration,
    },
    /// All nodes end at the same instant, and start again soon; `power`: all machines do.
    RestartAll {
        power: bool,
    },
    /// Whatever is written to its disk fails.
    DiskFails {
        host: Host,
        lasts: Duration,
    },
    /// The end of all faults.
    Quiet,
}

/// A step of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Prepare,
    Copy,
    Seal,
    Last,
    CaughtUp,
    Grant,
    /// As [`Self::Grant`], of a handoff that was hit before.
    Granted,
    Open,
}

const STEPS: [Step; 7] =
    [Step::Prepare, Step::Copy, Step::Seal, Step::Last, Step::CaughtUp, Step::Grant, Step::Open];

/// Whom a blow hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Source,
    Target,
}

/// What hits one part of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    Crash {
        confirmed: bool,
    },
    Restart {
        confirmed: bool,
        after: Duration,
    },
    Pause(Duration),
    /// What it sends to the other part is lost.
    CutToOther(Duration),
    /// What it sends to the other part takes longer.
    SlowToOther(Duration),
    /// What it sends to a third takes longer.
    SlowToThird(Duration),
    Suspect(Duration),
    FalseDeath(Duration),
    Drain,
    Pins,
    BreakLink,
    BreakStream,
}

/// A blow at a step of a handoff: the kind of bad luck that random times seldom bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trigger {
    pub(crate) step: Step,
    /// So many times the step passes unharmed.
    pub(crate) skip: u32,
    pub(crate) part: Part,
    pub(crate) blow: Blow,
    pub(crate) after: Duration,
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) knobs: Knobs,
    pub(crate) faults: Vec<(Duration, Fault)>,
    pub(crate) triggers: Vec<Trigger>,
    pub(crate) quiet_at: Duration,
}

/// What kind of bad luck a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Luck {
    /// Crashes, restarts, drains, joins, short pauses and cuts: only the dead are declared dead.
    Honest,
    /// False deaths and partitions, too.
    Wild,
    /// Nodes that start together, with trouble at the start.
    Forming,
    /// Owners die, and what was known of their epochs with them.
    Deaths,
    /// Handoffs of which every step may be hit.
    Handoffs,
    /// Late and repeated messages, false deaths.
    Echoes,
    /// Members change all the time.
    Unrest,
    /// Grants that are long under way while their source dies.
    LateGrants,
    /// Copies that lag, or are cut off, while their owner dies.
    Copies,
    /// Owners that are taken for dead, and do not hear who takes over.
    Zombies,
    /// All nodes end at once.
    Restarts,
    /// Disks that fail, are slow, or lose what was on them.
    Disks,
    /// See [`crate::cuts`].
    Cuts,
}

impl Luck {
    /// The kind that a seed of the great run has.
    pub(crate) fn of_seed(seed: u64) -> Self {
        match seed % 9 {
            0 | 1 => Self::Honest,
            2 => Self::Wild,
            3 => Self::Forming,
            4 => Self::Deaths,
            5 => Self::Handoffs,
            6 => Self::Echoes,
            7 => Self::LateGrants,
            _ => Self::Unrest,
        }
    }

    /// The kind that a seed of the great run with copies has.
    pub(crate) fn with_copies(seed: u64) -> Self {
        match seed % 6 {
            0 | 3 => Self::Copies,
            1 => Self::Zombies,
            _ => Self::of_seed(seed / 3),
        }
    }

    /// The kind that a seed of the great run with disks has.
    pub(crate) fn with_disks(seed: u64) -> Self {
        match seed % 6 {
            0 | 1 => Self::Restarts,
            2 => Self::Disks,
            3 => Self::Handoffs,
            4 => Self::with_copies(seed / 6),
            _ => Self::of_seed(seed / 6),
        }
    }

    fn is_honest(self, rng: &mut StdRng) -> bool {
        match self {
            Self::Honest
            | Self::Forming
            | Self::Deaths
            | Self::Unrest
            | Self::LateGrants
            | Self::Restarts
            | Self::Disks
            | Self::Copies => true,
            Self::Handoffs => rng.random_bool(0.7),
            Self::Wild | Self::Echoes | Self::Zombies | Self::Cuts => false,
        }
    }
}

pub(crate) struct Draw {
    pub(crate) rng: StdRng,
    pub(crate) n_nodes: u32,
    pub(crate) honest: bool,
}

impl Draw {
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.rng.random_range(0..n.max(1))
    }

    pub(crate) fn millis(&mut self, range: Range<u64>) -> Duration {
        ms(self.rng.random_range(range))
    }

    pub(crate) fn one<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.rng.random_range(0..all.len())]
    }

    pub(crate) fn node(&mut self) -> Host {
        Host(self.below(self.n_nodes))
    }

    pub(crate) fn two(&mut self) -> (Host, Host) {
        let n = self.n_nodes + N_ROUTERS;
        let from = self.below(n);
        (Host(from), Host((from + 1 + self.below(n - 1)) % n))
    }

    fn pause(&mut self) -> Duration {
        if self.honest { self.millis(5..1_400) } else { self.millis(5..5_500) }
    }

    fn fault(&mut self) -> Fault {
        let confirmed = self.rng.random_bool(0.5);
        let host = self.node();
        let (from, to) = self.two();
        match self.below(if self.honest { 20 } else { 24 }) {
            0 => Fault::Crash { host, confirmed },
            1 | 2 => Fault::Restart { host, confirmed, after: self.millis(20..3_000) },
            3 => Fault::Start(host),
            4 | 5 => Fault::Pause { host, lasts: self.pause() },
            6 => Fault::Pause { host: from, lasts: self.pause() },
            7 | 8 => Fault::Drain(host),
            9..=12 => Fault::Pins(self.below(u32::from(PIN_SETS)) as u8),
            13 => Fault::Suspect { host, lasts: self.millis(200..2_000) },
            14 | 15 => Fault::Cut { from, to },
            16 => Fault::Heal,
            17 => Fault::BreakLink,
            18 => Fault::BreakStream,
            19 => Fault::Slow { from, to, by: self.millis(5..1_500) },
            20 | 21 => {
                let by_all = self.rng.random_bool(0.6);
                Fault::FalseDeath { host, by_all, lasts: self.millis(500..5_000) }
            }
            _ => Fault::Isolate { mask: 1 + self.below((1 << (self.n_nodes + N_ROUTERS)) - 2) },
        }
    }

    fn blow(&mut self) -> Blow {
        let confirmed = self.rng.random_bool(0.5);
        match self.below(if self.honest { 14 } else { 16 }) {
            0 | 1 => Blow::Crash { confirmed },
            2 | 3 => Blow::Restart { confirmed, after: self.millis(20..1_500) },
            4 => Blow::Pause(self.pause()),
            5 | 6 => Blow::CutToOther(self.millis(20..6_000)),
            7 => Blow::SlowToOther(self.millis(20..3_000)),
            8 => Blow::SlowToThird(self.millis(100..3_000)),
            9 => Blow::Suspect(self.millis(200..2_000)),
            10 => Blow::Drain,
            11 => Blow::Pins,
            12 => Blow::BreakLink,
            13 => Blow::BreakStream,
            _ => Blow::FalseDeath(self.millis(500..5_000)),
        }
    }

    fn trigger(&mut self) -> Trigger {
        Trigger {
            step: self.one(&STEPS),
            skip: self.below(8),
            part: self.one(&[Part::Source, Part::Target]),
            blow: self.blow(),
            after: Duration::from_micros(u64::from(self.below(4_000))),
        }
    }

    pub(crate) fn knobs(&mut self, rules: Rules) -> Knobs {
        let us = Duration::from_micros;
        let delay = self.one(&[(100, 1_500), (100, 1_500), (200, 8_000), (1_000, 40_000)]);
        let news = self.one(&[(5, 60), (20, 200), (50, 500)]);
        let turn = self.one(&[(50, 2_000), (200, 10_000)]);
        Knobs {
            n_nodes: self.n_nodes,
            delay: us(delay.0)..us(delay.1),
            news: ms(news.0)..ms(news.1),
            turn: us(turn.0)..us(turn.1),
            long_turns: self.one(&[0, 40, 15]),
            long_turn: self.millis(50..2_500),
            session_bytes: self.one(&[200, 4 << 10, 200 << 10, 900 << 10]),
            copy_rate: self.one(&[100 << 20, 20 << 20]),
            repeats: 0,
            old_nodes: if self.below(6) == 0 { 1 + self.below(2) } else { 0 },
            replicas: 0,
            disk: None,
            n_clients: 4,
            think: ms(3)..ms(60),
            rules,
            healing: Healing::Whole,
            heals: false,
            honest: self.honest,
        }
    }
}

/// What a source says comes late, and the source dies once it has granted.
fn late_grant(draw: &mut Draw, triggers: &mut Vec<Trigger>) {
    let (part, skip) = (Part::Source, 2 + draw.below(5));
    let late = Blow::SlowToOther(draw.millis(200..4_000));
    triggers.push(Trigger { step: Step::CaughtUp, skip, part, blow: late, after: Duration::ZERO });
    let pins = Blow::Pins;
    triggers.push(Trigger {
        step: Step::Granted,
        skip: 0,
        part,
        blow: pins,
        after: Duration::ZERO,
    });
    let blow = Blow::Restart { confirmed: true, after: draw.millis(500..2_500) };
    let after = draw.millis(0..300);
    triggers.push(Trigger { step: Step::Granted, skip: 0, part, blow, after });
}

/// A replica lags or is out of reach, and then its owner dies.
fn lagging_copies(draw: &mut Draw, faults: &mut Vec<(Duration, Fault)>) {
    let from = draw.millis(2_500..8_000);
    let n_nodes = draw.n_nodes;
    let host = draw.node();
    let other = Host((host.0 + 1 + draw.below(n_nodes - 1)) % n_nodes);
    let lag = match draw.below(4) {
        0 => Fault::BreakStreams(host),
        1 => Fault::Cut { from: host, to: other },
        2 => Fault::Cut { from: other, to: host },
        _ => Fault::Slow { from: host, to: other, by: draw.millis(20..2_500) },
    };
    let is_short = lag == Fault::BreakStreams(host) || draw.below(2) == 0;
    let after = if is_short { draw.millis(1..60) } else { draw.millis(900..2_500) };
    faults.push((from, lag));
    let confirmed = draw.below(3) > 0;
    let last = match draw.below(4) {
        0 => Fault::Crash { host, confirmed },
        1 => Fault::Drain(host),
        _ => Fault::Restart { host, confirmed, after: draw.millis(20..1_500) },
    };
    faults.push((from + after, last));
    faults.push((from + after + draw.millis(50..1_500), Fault::Heal));
}

/// An owner is taken for dead, and its links break while others take over.
fn zombie(draw: &mut Draw, faults: &mut Vec<(Duration, Fault)>) {
    let (from, host) = (draw.millis(2_500..8_000), draw.node());
    let lasts = draw.millis(500..2_500);
    faults.push((from, Fault::FalseDeath { host, by_all: true, lasts }));
    for _ in 0..2 {
        faults.push((from + draw.millis(280..600), Fault::BreakLinks(host)));
    }
}

/// Nothing goes wrong; one node after the other leaves and comes again.
pub(crate) fn rolling(seed: u64) -> Plan {
    let mut plan = plan_with_copies(Luck::Honest, seed, Rules::ALL);
    (plan.knobs.old_nodes, plan.knobs.long_turns) = (0, 0);
    plan.triggers.clear();
    plan.faults = (0..plan.knobs.n_nodes).map(|n| (ms(1), Fault::Start(Host(n)))).collect();
    for n in 0..plan.knobs.n_nodes {
        let at = ms(4_000 + 4_000 * u64::from(n));
        plan.faults.push((at, Fault::Drain(Host(n))));
        plan.faults.push((at + ms(2_500), Fault::Start(Host(n))));
    }
    plan.quiet_at = ms(4_000 + 4_000 * u64::from(plan.knobs.n_nodes));
    plan
}

/// The run of a seed, with copies of all shards: of most one.
pub(crate) fn plan_with_copies(luck: Luck, seed: u64, rules: Rules) -> Plan {
    let mut plan = plan(luck, seed, rules);
    plan.knobs.replicas = 1 + u8::from(seed % 5 == 4);
    plan
}

/// The run of a seed, with disks.
pub(crate) fn plan_with_disks(luck: Luck, seed: u64, rules: Rules) -> Plan {
    let mut plan = plan(luck, seed, rules);
    let n_nodes = plan.knobs.n_nodes;
    let rng = StdRng::seed_from_u64(seed ^ 0xD15C_0000);
    let mut draw = Draw { rng, n_nodes, honest: plan.knobs.honest };
    let us = Duration::from_micros;
    let takes = draw.one(&[(50, 500), (300, 3_000), (300, 3_000), (5_000, 60_000)]);
    plan.knobs.disk = Some(DiskKnobs {
        sync: draw.below(3) > 0,
        sync_takes: us(takes.0)..us(takes.1),
        power: 1 + draw.below(2),
        damage: if luck == Luck::Disks { draw.one(&[0, 2, 4]) } else { 0 },
    });
    plan.knobs.replicas = draw.one(&[0, 0, 1, 1, 2]);
    plan.knobs.old_nodes = 0;
    if matches!(luck, Luck::Restarts | Luck::Disks) {
        for _ in 0..1 + draw.below(2) {
            let power = draw.below(2) == 0;
            plan.faults.push((draw.millis(2_500..8_000), Fault::RestartAll { power }));
        }
    }
    if luck == Luck::Disks || draw.below(4) == 0 {
        for _ in 0..1 + draw.below(3) {
            let fails = Fault::DiskFails { host: draw.node(), lasts: draw.millis(50..2_500) };
            plan.faults.push((draw.millis(2_000..9_000), fails));
        }
    }
    plan
}

/// The run of a seed.
pub(crate) fn plan(luck: Luck, seed: u64, rules: Rules) -> Plan {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5EED_0000);
    let n_nodes = [3, 3, 4, 4, 5, 5, 6, 7][rng.random_range(0..8)];
    let honest = luck.is_honest(&mut rng);
    let mut draw = Draw { rng, n_nodes, honest };
    let mut knobs = draw.knobs(rules);
    let n_late = draw.below(3).min(n_nodes - 2);
    let mut faults = Vec::new();
    for host in 0..n_nodes - n_late {
        faults.push((draw.millis(1..400), Fault::Start(Host(host))));
    }
    for host in n_nodes - n_late..n_nodes {
        faults.push((draw.millis(2_000..8_000), Fault::Start(Host(host))));
    }
    let mut n_faults = 3 + draw.below(7);
    let mut n_triggers = draw.below(3);
    let mut from = 2_000;
    let mut triggers = Vec::new();
    match luck {
        Luck::Honest | Luck::Wild | Luck::Cuts => {}
        Luck::Restarts => {
            (n_faults, n_triggers) = (draw.below(3), draw.below(2));
        }
        Luck::Disks => n_faults = draw.below(5),
        Luck::Forming => {
            from = 200;
            n_triggers = 0;
        }
        Luck::Deaths => {
            for _ in 0..3 {
                let (host, confirmed) = (draw.node(), draw.below(2) == 0);
                let after = draw.millis(20..2_500);
                faults.push((draw.millis(2_000..8_500), Fault::Restart { host, confirmed, after }));
            }
            n_faults = 3;
        }
        Luck::Handoffs => {
            n_triggers = 2 + draw.below(4);
            n_faults = 2;
            for at in [3_000, 5_000, 7_000] {
                let pins = draw.below(u32::from(PIN_SETS)) as u8;
                faults.push((ms(at), Fault::Pins(pins)));
            }
        }
        Luck::Echoes => {
            knobs.repeats = 12;
            n_triggers = 1 + draw.below(3);
        }
        Luck::LateGrants => {
            (n_faults, n_triggers) = (draw.below(2), 0);
            for at in [3_000, 5_500, 8_000] {
                let pins = draw.below(u32::from(PIN_SETS)) as u8;
                faults.push((ms(at), Fault::Pins(pins)));
                late_grant(&mut draw, &mut triggers);
            }
        }
        Luck::Zombies => {
            (n_faults, n_triggers) = (draw.below(2), 0);
            knobs.replicas = 1 + u8::from(seed % 5 == 4);
            for _ in 0..2 + draw.below(3) {
                zombie(&mut draw, &mut faults);
            }
        }
        Luck::Copies => {
            (n_faults, n_triggers) = (draw.below(3), draw.below(2));
            knobs.replicas = 1 + u8::from(seed % 5 == 4);
            for _ in 0..2 + draw.below(3) {
                lagging_copies(&mut draw, &mut faults);
            }
        }
        Luck::Unrest => {
            for at in 0..5 {
                let pins = draw.below(u32::from(PIN_SETS)) as u8;
                let pause = draw.millis(0..900);
                faults.push((ms(2_500 + at * 1_300) + pause, Fault::Pins(pins)));
                let suspect = Fault::Suspect { host: draw.node(), lasts: draw.millis(300..1_500) };
                faults.push((draw.millis(2_000..9_000), suspect));
            }
        }
    }
    for _ in 0..n_faults {
        faults.push((draw.millis(from..9_000), draw.fault()));
    }
    triggers.extend((0..n_triggers).map(|_| draw.trigger()));
    let quiet_at = ms(9_500);
    faults.push((quiet_at, Fault::Quiet));
    Plan { knobs, faults, triggers, quiet_at }
}
