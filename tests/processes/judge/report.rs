//! What the judge saw, and what may be asked of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::Trouble;

/// Troubles that are printed; one is enough to fail, a few help to understand.
const PRINTED_MAX: usize = 20;
/// Longer than any request is waited for.
const LATENCY_MAX: Duration = Duration::from_secs(600);

/// A stretch of the load. Requests belong to the phase in which they were due.
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(super) since: Instant,
    pub(crate) requests: u64,
    /// Requests without a value in their answer.
    pub(crate) failed: u64,
    /// Values that were lost, repeated or began anew.
    pub(crate) wrong: u64,
    /// Longest that one session had to wait for a success: as its latency, but failed requests
    /// do not end it.
    pub(crate) outage: Duration,
    /// Longest time between two answers, whosever.
    pub(crate) gap: Duration,
    /// Of requests that did not fail, in microseconds since they were due.
    latencies: Histogram<u64>,
    /// How long sessions had to wait for their first success from another node, in microseconds.
    moved: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    let made = Histogram::new_with_bounds(1, LATENCY_MAX.as_micros() as u64, 3);
    made.expect("the bounds are in order")
}

impl Phase {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            since: Instant::now(),
            requests: 0,
            failed: 0,
            wrong: 0,
            outage: Duration::ZERO,
            gap: Duration::ZERO,
            latencies: histogram(),
            moved: histogram(),
        }
    }

    pub(super) fn took(&mut self, latency: Duration) {
        self.latencies.saturating_record(latency.as_micros() as u64);
    }

    pub(super) fn moved_after(&mut self, outage: Duration) {
        self.moved.saturating_record(outage.as_micros() as u64);
    }

    /// The latency that a part `quantile` of the requests did not exceed.
    pub(crate) fn latency(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.latencies.value_at_quantile(quantile))
    }

    fn row(&self) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        format!(
            "{:<12} {:>9} {:>7} {:>6} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2}\n",
            self.name,
            self.requests,
            self.failed,
            self.wrong,
            ms(self.latency(0.5)),
            ms(self.latency(0.99)),
            ms(self.latency(1.0)),
            ms(self.outage),
            ms(self.gap),
        )
    }
}

/// What the judge saw.
pub(crate) struct Report {
    /// Requests a second of the open loop.
    pub(crate) rate: f64,
    /// In order; the first is the measurement of saturation, the second "steady".
    pub(crate) phases: Vec<Phase>,
    /// In order of time.
    pub(crate) troubles: Vec<Trouble>,
}

impl Report {
    /// All phases, one a line; times in milliseconds.
    pub(crate) fn table(&self, what: &str) -> String {
        let mut table = format!(
            "{what}: open loop, {:.0} requests/s\n{:<12} {:>9} {:>7} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
            self.rate,
            "phase",
            "requests",
            "failed",
            "wrong",
            "p50 ms",
            "p99 ms",
            "max ms",
            "outage",
            "gap"
        );
        table.extend(self.phases.iter().map(Phase::row));
        table
    }

    /// The phase of this name.
    pub(crate) fn phase(&self, name: &str) -> &Phase {
        let found = self.phases.iter().find(|phase| phase.name == name);
        found.unwrap_or_else(|| panic!("no phase {name}"))
    }

    /// How long sessions that another node answered had waited for that, in the phases of this name:
    /// their number, the median and the longest.
    pub(crate) fn moved(&self, name: &str) -> (u64, Duration, Duration) {
        let mut all = histogram();
        for phase in self.phases.iter().filter(|phase| phase.name == name) {
            all.add(&phase.moved).expect("the bounds are the same");
        }
        let at = |quantile| Duration::from_micros(all.value_at_quantile(quantile));
        (all.len(), at(0.5), at(1.0))
    }

    /// Longest that a session had to wait for a success, in any phase.
    pub(crate) fn outage(&self) -> Duration {
        self.phases.iter().map(|phase| phase.outage).max().unwrap_or_default()
    }

    /// No request failed, no value was lost, repeated or began anew.
    #[track_caller]
    pub(crate) fn assert_clean(&self, what: &str) {
        self.assert_no_trouble(what, |_| true);
    }

    /// No value was lost, repeated or began anew; requests may have failed.
    #[track_caller]
    pub(crate) fn assert_values(&self, what: &str) {
        self.assert_no_trouble(what, |trouble| !trouble.is_failure());
    }

    /// No value was left out: nothing counted twice. Requests may have failed, and values been lost.
    #[track_caller]
    pub(crate) fn assert_nothing_doubled(&self, what: &str) {
        self.assert_no_trouble(what, Trouble::is_doubled);
    }

    /// What the kill of `node` does not excuse did not happen.
    #[track_caller]
    pub(crate) fn assert_excused_by_the_kill_of(&self, node: &str, what: &str) {
        self.assert_no_trouble(what, |trouble| !trouble.is_excused_by_the_kill_of(node));
    }

    #[track_caller]
    fn assert_no_trouble(&self, what: &str, counts: impl Fn(&Trouble) -> bool) {
        let found: Vec<&Trouble> = self.troubles.iter().filter(|trouble| counts(trouble)).collect();
        let mut text = self.table(what);
        for trouble in found.iter().take(PRINTED_MAX) {
            let _ = writeln!(text, "{trouble}");
        }
        assert!(found.is_empty(), "{} troubles\n{text}", found.len());
        let last = self.phases.last().map_or(0, |phase| phase.requests);
        assert!(last > 0, "nothing was counted in the last phase\n{text}");
    }

    /// Shards of which a session began anew.
    pub(crate) fn shards_begun_anew(&self) -> BTreeSet<&str> {
        let restarts = self.troubles.iter().filter(|trouble| trouble.is_restart());
        restarts.filter_map(|trouble| trouble.after.as_ref()).map(|seen| &*seen.shard).collect()
    }

    /// What clients notice of a planned change: p50 ≤ 1.2 × steady, p99 ≤ steady + 50 ms,
    /// maximum ≤ 500 ms.
    #[track_caller]
    pub(crate) fn assert_unnoticed(&self, what: &str, phase: &str) {
        let (steady, phase) = (self.phase("steady"), self.phase(phase));
        let p50_max = steady.latency(0.5).mul_f64(1.2);
        let p99_max = steady.latency(0.99) + Duration::from_millis(50);
        let bounds = [(0.5, p50_max), (0.99, p99_max), (1.0, Duration::from_millis(500))];
        for (quantile, most) in bounds {
            let latency = phase.latency(quantile);
            let table = self.table(what);
            assert!(latency <= most, "quantile {quantile}: {latency:?} > {most:?}\n{table}");
        }
    }
}
