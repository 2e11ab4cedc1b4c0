mod checks;
mod cluster;
mod explore;
mod members;
mod node;
mod recovery;
mod scenario;
mod state;
mod trace;

use explore::explore;
use scenario::{DEATHS, MOVES, SLANDERS, Scenario};

#[test]
fn any() {
    let mut scenario = MOVES;
    scenario.name = "any";
    let mut n: usize = 100_000;
    scenario.budget = scenario::NOTHING;
    for pair in std::env::var("B").unwrap_or_default().split(',').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap();
        let v: u8 = value.parse().unwrap_or(0);
        let b = &mut scenario.budget;
        match name {
            "n" => n = value.parse().unwrap(),
            "writes" => b.writes = v,
            "moves" => b.moves = v,
            "drains" => b.drains = v,
            "kills" => b.kills = v,
            "restarts" => b.restarts = v,
            "slanders" => b.slanders = v,
            "breaks" => b.breaks = v,
            "repeats" => b.repeats = v,
            "losses" => b.losses = v,
            "handoffs" => scenario.handoffs = v.into(),
            "questions" => scenario.questions = v.into(),
            "epochs" => scenario.epochs = v.into(),
            "heals" => scenario.heals = true,
            "r2" => scenario.rules.gate_closes_first = false,
            "r4a" => scenario.rules.grant_is_final = false,
            "r4b" => scenario.rules.grant_is_resent = false,
            "r3" => scenario.rules.seal_is_promise = false,
            "r8" => scenario.rules.stale_is_ignored = false,
            _ => panic!(),
        }
    }
    println!("{:?}", explore(scenario, n));
}
