//! Counts on sessions of a running cluster at a fixed rate, and checks every answer: for load
//! recipes, and for changes to a cluster that are made by hand meanwhile.
//!
//! The router must run with `--key path:2 --expose-headers`.
//!
//! ```text
//! judge ADDR SECONDS [SESSIONS [CONNECTIONS [PART_OF_SATURATION]]]
//! ```
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::io;
use std::time::Duration;

use judge::{Judge, Load};

#[path = "../tests/processes/client.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "it is the tests' client")]
mod client;
#[path = "../tests/processes/judge/mod.rs"]
#[expect(dead_code, reason = "the tests ask more of it")]
mod judge;

/// Beyond the time that the load takes: a cluster that falls behind is still waited for.
const GRACE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument =
        |i: usize, default: &str| arguments.get(i).map_or(default, String::as_str).to_owned();
    let seconds: f64 = number(&argument(1, "10"))?;
    let load = Load {
        front: number(&argument(0, ""))?,
        prefix: format!("judged-{}", std::process::id()),
        n_sessions: number(&argument(2, "1000"))?,
        n_connections: number(&argument(3, "64"))?,
        saturate_for: Duration::from_secs(2),
        fraction: number(&argument(4, "0.5"))?,
        rate_max: f64::INFINITY,
    };
    let judge = Judge::start(load).await;
    judge.seconds(seconds, Duration::from_secs_f64(seconds) + GRACE).await;
    let report = judge.stop().await;
    println!("{}", report.table("judge"));
    for trouble in &report.troubles {
        println!("{trouble}");
    }
    match report.troubles.len() {
        0 => Ok(()),
        n => Err(io::Error::other(format!("{n} answers were not what they must be"))),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    let usage = "judge ADDR SECONDS [SESSIONS [CONNECTIONS [PART_OF_SATURATION]]]";
    text.parse().map_err(|_| io::Error::other(format!("`{text}`; usage: {usage}")))
}
