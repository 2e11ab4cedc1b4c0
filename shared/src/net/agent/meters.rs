//! What the agent counts: for the metrics of the process, and for [`Agent::stats`](super::Agent).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use tokio::time::Instant;

use crate::member::{MemberState, Members};
use crate::swim::SwimStats;
use crate::wire::datagram::DatagramError;

/// At most one line of the log in this time tells of dropped datagrams.
const DROP_LOG_PERIOD: Duration = Duration::from_secs(10);

const STATES: [MemberState; 6] = [
    MemberState::Joining,
    MemberState::Ready,
    MemberState::Leaving,
    MemberState::Suspect,
    MemberState::Down,
    MemberState::Left,
];

const N_REASONS: usize = DatagramError::REASONS.len();

/// A metric that can be read back.
#[derive(Debug)]
pub(super) struct Meter {
    metric: Counter,
    count: AtomicU64,
}

impl Meter {
    fn new(metric: Counter) -> Self {
        // Shown as 0 before the first event.
        metric.increment(0);
        Self { metric, count: AtomicU64::new(0) }
    }

    pub(super) fn add(&self, n: usize) {
        let n = n as u64;
        self.metric.increment(n);
        self.count.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// What an agent has counted since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams that came through.
    pub packets_in: u64,
    /// Datagrams sent.
    pub packets_out: u64,
    /// Bytes received, dropped datagrams included.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Datagrams dropped, by reason, in the order of [`DatagramError::REASONS`].
    pub dropped: [u64; N_REASONS],
    /// Datagrams that the system did not take.
    pub send_errors: u64,
    /// Calls to peers that were answered.
    pub push_pulls_ok: u64,
    /// Calls to peers that failed.
    pub push_pulls_failed: u64,
    /// Calls of peers that we answered.
    pub push_pulls_answered: u64,
}

impl Stats {
    /// Datagrams dropped for this reason.
    #[must_use]
    pub fn dropped_for(&self, reason: &str) -> u64 {
        let at = DatagramError::REASONS.iter().position(|known| *known == reason);
        at.map_or(0, |at| self.dropped[at])
    }
}

pub(super) struct Meters {
    pub(super) packets_in: Meter,
    pub(super) packets_out: Meter,
    pub(super) bytes_in: Meter,
    pub(super) bytes_out: Meter,
    dropped: [Meter; N_REASONS],
    pub(super) send_errors: Meter,
    pub(super) receive_errors: Meter,
    pub(super) push_pulls_ok: Meter,
    pub(super) push_pulls_failed: Meter,
    pub(super) push_pulls_answered: Meter,
    pub(super) deaths_confirmed: Meter,
    pub(super) deaths_silent: Meter,
    members: [Gauge; STATES.len()],
    key_age: Gauge,
    sealed: Gauge,
    loop_lag: Histogram,
    swim: [Counter; 6],
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stats().fmt(f)
    }
}

impl Meters {
    pub(super) fn new(sealed: bool) -> Self {
        describe();
        let push_pulls =
            |outcome| Meter::new(counter!("stead_gossip_push_pulls_total", "outcome" => outcome));
        let deaths = |proof| Meter::new(counter!("stead_gossip_deaths_total", "proof" => proof));
        let meters = Self {
            packets_in: Meter::new(counter!("stead_gossip_packets_in_total")),
            packets_out: Meter::new(counter!("stead_gossip_packets_out_total")),
            bytes_in: Meter::new(counter!("stead_gossip_bytes_in_total")),
            bytes_out: Meter::new(counter!("stead_gossip_bytes_out_total")),
            dropped: DatagramError::REASONS.map(|reason| {
                Meter::new(counter!("stead_gossip_dropped_total", "reason" => reason))
            }),
            send_errors: Meter::new(counter!("stead_gossip_send_errors_total")),
            receive_errors: Meter::new(counter!("stead_gossip_receive_errors_total")),
            push_pulls_ok: push_pulls("ok"),
            push_pulls_failed: push_pulls("failed"),
            push_pulls_answered: push_pulls("answered"),
            deaths_confirmed: deaths("confirmed"),
            deaths_silent: deaths("silence"),
            members: STATES
                .map(|state| gauge!("stead_gossip_members", "state" => state.to_string())),
            key_age: gauge!("stead_gossip_key_age_seconds"),
            loop_lag: histogram!("stead_gossip_loop_lag_seconds"),
            swim: [
                counter!("stead_gossip_refused_payloads_total"),
                counter!("stead_gossip_core_errors_total"),
                counter!("stead_gossip_suspicions_refuted_total"),
                counter!("stead_gossip_accusations_held_total"),
                counter!("stead_gossip_renewals_total"),
                counter!("stead_gossip_stalls_total"),
            ],
            sealed: gauge!("stead_gossip_sealed"),
        };
        meters.sealed(sealed);
        meters
    }

    /// Whether datagrams are sealed with a key.
    pub(super) fn sealed(&self, sealed: bool) {
        self.sealed.set(f64::from(u8::from(sealed)));
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            packets_in: self.packets_in.get(),
            packets_out: self.packets_out.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            dropped: std::array::from_fn(|at| self.dropped[at].get()),
            send_errors: self.send_errors.get(),
            push_pulls_ok: self.push_pulls_ok.get(),
            push_pulls_failed: self.push_pulls_failed.get(),
            push_pulls_answered: self.push_pulls_answered.get(),
        }
    }

    /// The membership as it is now.
    pub(super) fn members(&self, members: &Members) {
        for (state, gauge) in STATES.iter().zip(&self.members) {
            let n = members.list.iter().filter(|member| member.state == *state).count();
            gauge.set(n as f64);
        }
    }

    /// What the membership machine counts itself.
    pub(super) fn swim(&self, swim: SwimStats) {
        let counts = [
            swim.packets_refused,
            swim.core_errors,
            swim.suspicions_refuted,
            swim.accusations_held,
            swim.renewals,
            swim.stalls,
        ];
        for (counter, count) in self.swim.iter().zip(counts) {
            counter.absolute(count);
        }
    }

    pub(super) fn key_age(&self, seconds: u64) {
        self.key_age.set(seconds as f64);
    }

    /// How late a timer fired.
    pub(super) fn loop_lag(&self, lag: Duration) {
        self.loop_lag.record(lag.as_secs_f64());
    }
}

fn describe() {
    describe_gauge!("stead_gossip_members", "Members known, by state, this process included");
    describe_gauge!("stead_gossip_sealed", "1 when datagrams are sealed with a key, else 0");
    describe_gauge!("stead_gossip_key_age_seconds", Unit::Seconds, "Age of the newest gossip key");
    describe_histogram!(
        "stead_gossip_loop_lag_seconds",
        Unit::Seconds,
        "How late the timers of gossip fire"
    );
    let counters = [
        ("stead_gossip_packets_in_total", "Gossip datagrams that came through"),
        ("stead_gossip_packets_out_total", "Gossip datagrams sent"),
        ("stead_gossip_bytes_in_total", "Bytes of gossip received, dropped datagrams included"),
        ("stead_gossip_bytes_out_total", "Bytes of gossip sent"),
        ("stead_gossip_dropped_total", "Datagrams dropped unanswered, by reason"),
        ("stead_gossip_send_errors_total", "Gossip datagrams that the system did not take"),
        ("stead_gossip_receive_errors_total", "Times that the gossip socket failed"),
        ("stead_gossip_push_pulls_total", "Exchanges of member lists, by outcome"),
        ("stead_gossip_deaths_total", "Boots of members found dead, by proof or by silence"),
        ("stead_gossip_refused_payloads_total", "Genuine datagrams that make no sense"),
        ("stead_gossip_core_errors_total", "Errors of the protocol core; a sign of a defect"),
        ("stead_gossip_suspicions_refuted_total", "Suspects that spoke up in time"),
        ("stead_gossip_accusations_held_total", "Accusations held back while hearing nobody"),
        ("stead_gossip_renewals_total", "Times that this process was held for dead wrongly"),
        ("stead_gossip_stalls_total", "Times that this process stood still"),
    ];
    for (name, help) in counters {
        describe_counter!(name, help);
    }
}

/// Counts dropped datagrams, and tells of them in the log now and then.
#[derive(Debug, Default)]
pub(super) struct DropLog {
    last: Option<Instant>,
    untold: u64,
}

impl DropLog {
    pub(super) fn dropped(&mut self, meters: &Meters, error: &DatagramError, from: SocketAddr) {
        meters.dropped[error.reason_idx()].add(1);
        let reason = error.reason();
        if !is_for_the_operator(error) {
            tracing::trace!(%from, reason, "dropped a gossip datagram: {error}");
            return;
        }
        self.untold += 1;
        let now = Instant::now();
        if self.last.is_some_and(|last| now < last + DROP_LOG_PERIOD) {
            return;
        }
        self.last = Some(now);
        let n = std::mem::take(&mut self.untold);
        tracing::warn!(%from, reason, n, "dropped gossip datagrams, last: {error}");
    }
}

/// Whether it looks like members that are set up differently, rather than like a stray packet,
/// a duplicate or a peer that has not noticed our restart.
fn is_for_the_operator(error: &DatagramError) -> bool {
    match error {
        DatagramError::UnknownVersion(_)
        | DatagramError::WrongCluster
        | DatagramError::Plain
        | DatagramError::UnknownKey(_)
        | DatagramError::Forged
        | DatagramError::Clock { .. }
        | DatagramError::TooManySenders => true,
        DatagramError::Oversized
        | DatagramError::Truncated
        | DatagramError::NotOurs
        | DatagramError::WrongDestination
        | DatagramError::Replayed => false,
    }
}
