//! Runs of the checker, and what they print.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model, Path};

use super::checks::{ALWAYS, ENOUGH, HEALS};
use super::cluster::{Exploration, Step};
use super::recovery::recover;
use super::scenario::Scenario;
use super::state::State;
use super::trace::Trace;

/// What an exploration came to.
#[derive(Debug)]
pub(crate) struct Explored {
    /// Names of what must hold and does not.
    pub(crate) violated: Vec<&'static str>,
    /// Names of what came about.
    pub(crate) found: BTreeSet<&'static str>,
}

fn checker(
    scenario: Scenario,
    states_max: usize,
    only: Option<&'static str>,
) -> CheckerBuilder<Exploration> {
    let (n_checked, well) = (AtomicUsize::new(0), Mutex::default());
    let until = only.map_or_else(|| ALWAYS.into_iter().chain([ENOUGH]).collect(), |it| [it].into());
    Exploration { scenario, states_max, n_checked, only, well }
        .checker()
        .finish_when(HasDiscoveries::AnyOf(until))
}

/// Explores breadth first until something fails that never may, `states_max` states have been
/// checked or none is left, and prints how far that was.
pub(crate) fn explore(scenario: Scenario, states_max: usize) -> Explored {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let started = tokio::time::Instant::now();
    let checker = checker(scenario, states_max, None).threads(threads).spawn_bfs().join();
    let found: BTreeSet<&'static str> = checker.discoveries().into_keys().collect();
    let violated: Vec<&'static str> =
        ALWAYS.into_iter().filter(|name| found.contains(name)).collect();
    let exhausted = violated.is_empty() && !found.contains(ENOUGH);
    println!(
        "{:<21} {:>8} unique states, {:>8} checked, depth {:>2}, {}, {:.1} s",
        scenario.name,
        checker.unique_state_count(),
        checker.model().n_checked.load(Ordering::Relaxed),
        checker.max_depth(),
        if exhausted { "exhausted" } else { "not exhausted" },
        started.elapsed().as_secs_f64(),
    );
    for name in &violated {
        println!("it fails that {name}:\n{}", counterexample(scenario, name).unwrap_or_default());
    }
    Explored { violated, found }
}

/// A shortest run to a state where the property called `name` fails, as text.
pub(crate) fn counterexample(scenario: Scenario, name: &'static str) -> Option<String> {
    let mut shortest = None;
    let mut depth_max = usize::MAX;
    loop {
        let checker = checker(scenario, usize::MAX, Some(name))
            .target_max_depth(depth_max)
            .spawn_bfs()
            .join();
        let Some(path) = checker.discovery(name) else { break };
        depth_max = path.clone().into_states().len();
        shortest = Some(path);
    }
    shortest.map(|path: Path<State, Step>| {
        let last = path.last_state().clone();
        let mut trace = Trace::of(path);
        if name == HEALS {
            trace.say("everything on its way is lost, and nothing goes wrong any more:");
            recover(&scenario, &last, &mut |state, step| {
                let waits = matches!(step, Some(Step::Wait { .. }));
                trace.add(state, step.filter(|_| !waits));
            });
            trace.say("and so it stays, however long all wait.");
        }
        trace.into_text()
    })
}
