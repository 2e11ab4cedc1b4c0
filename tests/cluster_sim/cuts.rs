//! Runs in which the cluster falls apart and comes together again, and nobody dies: both sides go on
//! serving for longer than it takes to be taken for dead.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stead_shared::rules::Rules;
use stead_shared::sim::Host;

use crate::ctx::{N_ROUTERS, PIN_SETS, ms};
use crate::plan::{Draw, Fault, Plan};

/// How the runs of a seed are drawn.
struct Cuts {
    draw: Draw,
    faults: Vec<(Duration, Fault)>,
}

impl Cuts {
    /// Some nodes on each side, and mostly a router as well.
    fn mask(&mut self) -> u32 {
        let n_nodes = self.draw.n_nodes;
        let nodes = 1 + self.draw.below((1 << n_nodes) - 2);
        let routers = self.draw.one(&[1, 1, 1, 2, 2, 2, 0, 3]);
        nodes | (routers << n_nodes)
    }

    /// Something that makes it harder, from then on and within so many milliseconds.
    fn trouble(&mut self, from: u64, lasts: u64) {
        let (one, other) = self.draw.two();
        let fault = match self.draw.below(8) {
            0 | 1 => Fault::Pins(self.draw.below(u32::from(PIN_SETS)) as u8),
            2 => Fault::BreakLinks(one),
            3 => Fault::BreakStreams(self.draw.node()),
            4 => Fault::Slow { from: one, to: other, by: self.draw.millis(5..1_500) },
            5 => Fault::Pause { host: one, lasts: self.draw.millis(5..1_400) },
            6 => Fault::Cut { from: one, to: other },
            _ => Fault::BreakStream,
        };
        self.faults.push((self.draw.millis(from..from + lasts.max(1)), fault));
    }

    /// A cut from then on. When it is healed.
    fn cut(&mut self, from: u64) -> u64 {
        let mask = self.mask();
        self.faults.push((ms(from), Fault::Isolate { mask }));
        let lasts = 3_600 + u64::from(self.draw.below(3_500));
        if self.draw.below(3) == 0 {
            // In three or four.
            let (later, mask) = (self.draw.millis(0..lasts), self.mask());
            self.faults.push((ms(from) + later, Fault::Isolate { mask }));
        }
        for _ in 0..self.draw.below(3) {
            self.trouble(from, lasts);
        }
        from + lasts
    }
}

/// The run of a seed.
pub(crate) fn plan_with_cuts(seed: u64, rules: Rules) -> Plan {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xC075_0000);
    let n_nodes = [2, 3, 3, 4, 4, 5, 5, 6][rng.random_range(0..8)];
    let mut draw = Draw { rng, n_nodes, honest: false };
    let mut knobs = draw.knobs(rules);
    (knobs.old_nodes, knobs.heals) = (0, true);
    knobs.replicas = draw.one(&[0, 0, 1, 1, 1, 2]);
    knobs.n_clients = 4 + 2 * draw.below(2);
    let mut cuts = Cuts { draw, faults: Vec::new() };
    for host in 0..n_nodes {
        let at = cuts.draw.millis(1..400);
        cuts.faults.push((at, Fault::Start(Host(host))));
    }
    let mut at = 2_000 + u64::from(cuts.draw.below(2_000));
    let n_cuts = cuts.draw.one(&[1, 1, 2, 2, 3]);
    for n in 1..=n_cuts {
        at = cuts.cut(at);
        if n < n_cuts {
            cuts.faults.push((ms(at), Fault::Heal));
            let pause = 100 + u64::from(cuts.draw.below(3_500));
            for _ in 0..cuts.draw.below(2) {
                cuts.trouble(at, pause);
            }
            at += pause;
        }
    }
    let quiet_at = ms(at);
    cuts.faults.push((quiet_at, Fault::Quiet));
    const { assert!(N_ROUTERS == 2, "masks are drawn for two") };
    Plan { knobs, faults: cuts.faults, triggers: Vec::new(), quiet_at }
}
