//! One session of the judge, and what its answers must be.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::Shared;
use crate::client::{Answer, Connection};

/// Troubles of one session that are kept; more of the same tell nothing.
const TROUBLES_MAX: usize = 100;

/// An answer with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) value: i64,
    pub(crate) node: String,
    pub(crate) shard: String,
    /// The counter of the epoch in which it was given.
    pub(crate) epoch: u64,
}

/// Something that should not have happened.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    /// Since the start of the judge.
    pub(crate) at: Duration,
    pub(crate) session: String,
    pub(crate) kind: TroubleKind,
    /// The last answer with a value before it.
    pub(crate) before: Option<Seen>,
    /// The first answer with a value at or after it.
    pub(crate) after: Option<Seen>,
}

#[derive(Clone, Debug)]
pub(crate) enum TroubleKind {
    /// No answer, or one that says that something went wrong.
    Failed(String),
    /// Values were left out: something counted more than once.
    Lost,
    /// A value came again: something that had counted was forgotten.
    Repeated,
    /// The count began anew: everything was forgotten.
    Restarted,
}

/// What became of a request.
pub(super) enum Verdict {
    /// There is a value, which is right or not, from the node of the last one or not, after the session
    /// had been without one for `out_for`.
    Counted {
        right: bool,
        moved: bool,
        out_for: Duration,
    },
    Failed,
}

impl Trouble {
    /// Whether the kill of `node` excuses it: the node owned the session when it last answered,
    /// or was about to.
    ///
    /// Ownership passes to a node by one epoch, and from a dead one by the next. So a session
    /// that was last answered elsewhere and had been granted to the dead node is found two epochs
    /// later. Values that are skipped, or repeated without a new beginning, nothing excuses.
    pub(crate) fn is_excused_by_the_kill_of(&self, node: &str) -> bool {
        match self.kind {
            TroubleKind::Lost | TroubleKind::Repeated => return false,
            TroubleKind::Failed(_) | TroubleKind::Restarted => {}
        }
        let Some(before) = &self.before else { return false };
        let passed_on = self.after.as_ref().is_some_and(|after| after.epoch >= before.epoch + 2);
        before.node == node || passed_on
    }

    pub(crate) fn is_failure(&self) -> bool {
        matches!(self.kind, TroubleKind::Failed(_))
    }

    pub(crate) fn is_doubled(&self) -> bool {
        matches!(self.kind, TroubleKind::Lost)
    }

    pub(crate) fn is_restart(&self) -> bool {
        matches!(self.kind, TroubleKind::Restarted)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, session, kind, before, after } = self;
        write!(f, "{:.3} s {session}: ", at.as_secs_f64())?;
        match kind {
            TroubleKind::Failed(why) => write!(f, "failed: {why}")?,
            TroubleKind::Lost => write!(f, "values were left out")?,
            TroubleKind::Repeated => write!(f, "a value came again")?,
            TroubleKind::Restarted => write!(f, "began anew")?,
        }
        for (when, seen) in [("before", before), ("after", after)] {
            if let Some(Seen { value, node, shard, epoch }) = seen {
                write!(f, "; {when}: {value} from {node}, shard {shard}, epoch {epoch}")?;
            }
        }
        Ok(())
    }
}

pub(super) struct Session {
    pub(super) i: usize,
    name: String,
    path: String,
    seen: Option<Seen>,
    /// Failed requests that may count yet.
    n_unknown: i64,
    /// When the first request since the last success was due.
    waits_since: Option<Instant>,
    pub(super) troubles: Vec<Trouble>,
}

impl Session {
    pub(super) fn new(i: usize, prefix: &str) -> Self {
        let name = format!("{prefix}-{i}");
        let path = format!("/sessions/{name}/counters/visits");
        let (seen, waits_since, troubles) = (None, None, Vec::new());
        Self { i, name, path, seen, n_unknown: 0, waits_since, troubles }
    }

    /// Counts once, and takes down what comes of it.
    pub(super) async fn ask(
        &mut self,
        front: SocketAddr,
        kept: &mut Option<Connection>,
        due: Instant,
        shared: &Shared,
    ) {
        self.waits_since.get_or_insert(due);
        let answer = send(front, kept, &self.path).await;
        if answer.is_err() {
            *kept = None;
        }
        let now = Instant::now();
        let verdict = match answer.and_then(seen) {
            Ok(seen) => self.counted(seen, now, shared.begun),
            Err(failure) => self.failed(failure, now, shared.begun),
        };
        shared.board().record(self.i, due, now, &verdict);
    }

    fn counted(&mut self, seen: Seen, now: Instant, begun: Instant) -> Verdict {
        for trouble in self.troubles.iter_mut().rev().take_while(|t| t.after.is_none()) {
            trouble.after = Some(seen.clone());
        }
        let last = self.seen.as_ref().map_or(0, |seen| seen.value);
        let skipped = seen.value - last - 1;
        let waits_since = self.waits_since.take().unwrap_or(now);
        let wrong = if (0..=self.n_unknown).contains(&skipped) {
            self.n_unknown -= skipped;
            None
        } else if skipped > 0 {
            Some(TroubleKind::Lost)
        } else if seen.value <= 1 + self.n_unknown {
            Some(TroubleKind::Restarted)
        } else {
            Some(TroubleKind::Repeated)
        };
        let before = self.seen.replace(seen.clone());
        let right = wrong.is_none();
        let moved = before.as_ref().is_some_and(|before| before.node != seen.node);
        if let Some(kind) = wrong {
            self.trouble(now - begun, kind, before, Some(seen));
        }
        Verdict::Counted { right, moved, out_for: now - waits_since }
    }

    fn failed(&mut self, failure: Failure, now: Instant, begun: Instant) -> Verdict {
        if failure.may_count {
            self.n_unknown += 1;
        }
        let kind = TroubleKind::Failed(failure.why);
        self.trouble(now - begun, kind, self.seen.clone(), None);
        Verdict::Failed
    }

    fn trouble(
        &mut self,
        at: Duration,
        kind: TroubleKind,
        before: Option<Seen>,
        after: Option<Seen>,
    ) {
        if self.troubles.len() < TROUBLES_MAX {
            self.troubles.push(Trouble { at, session: self.name.clone(), kind, before, after });
        }
    }
}

/// Why a request failed.
struct Failure {
    why: String,
    /// Whether it may have been carried out, or may be yet.
    may_count: bool,
}

async fn send(
    front: SocketAddr,
    kept: &mut Option<Connection>,
    path: &str,
) -> Result<Answer, Failure> {
    let not_sent = |why| Failure { why, may_count: false };
    if kept.is_none() {
        *kept = Some(Connection::open(front).await.map_err(not_sent)?);
    }
    let connection = kept.as_mut().expect("opened above");
    connection.send(Method::POST, path).await.map_err(|why| Failure { why, may_count: true })
}

fn seen(answer: Answer) -> Result<Seen, Failure> {
    let value = answer.status.is_success().then(|| answer.counter()).and_then(Result::ok);
    // `COUNTER.NODE`.
    let epoch = answer.header("stead-epoch").split('.').next().and_then(|text| text.parse().ok());
    let [node, shard] = ["stead-node", "stead-shard"].map(|name| answer.header(name).to_owned());
    match (value, epoch) {
        (Some(value), Some(epoch)) => Ok(Seen { value, node, shard, epoch }),
        _ => Err(failure(&answer)),
    }
}

/// What stead refuses was not carried out; of everything else that is not known.
fn failure(answer: &Answer) -> Failure {
    let mut why = answer.status.to_string();
    for name in ["stead-refusal", "stead-outcome", "stead-node"] {
        let value = answer.header(name);
        if !value.is_empty() {
            why.push_str(&format!(", {name}: {value}"));
        }
    }
    why.push_str(&format!(", {}", String::from_utf8_lossy(&answer.body)));
    Failure { why, may_count: answer.header("stead-refusal").is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(value: i64, node: &str, epoch: u64) -> Seen {
        Seen { value, node: node.to_owned(), shard: "7".to_owned(), epoch }
    }

    /// What becomes of answers in this order; `None` is a failure whose outcome is unknown.
    fn troubles(answers: &[Option<Seen>]) -> Vec<Trouble> {
        let mut session = Session::new(0, "s");
        let now = Instant::now();
        for answer in answers {
            match answer {
                Some(seen) => session.counted(seen.clone(), now, now),
                None => {
                    session.failed(Failure { why: "gone".to_owned(), may_count: true }, now, now)
                }
            };
        }
        session.troubles
    }

    fn values(values: &[i64]) -> Vec<Trouble> {
        let answers: Vec<_> = values.iter().map(|value| Some(seen(*value, "n1", 1))).collect();
        troubles(&answers)
    }

    macro_rules! expect_kinds {
        ($troubles:expr, $($kind:pat),*) => {
            let kinds: Vec<TroubleKind> = $troubles.into_iter().map(|found| found.kind).collect();
            assert!(matches!(kinds.as_slice(), [$($kind),*]), "{kinds:?}");
        };
    }

    #[test]
    fn values_in_order_are_no_trouble() {
        expect_kinds!(values(&[1, 2, 3]),);
    }

    #[test]
    fn a_value_that_is_left_out_is_lost_and_one_that_comes_again_is_repeated() {
        expect_kinds!(values(&[1, 2, 4, 5]), TroubleKind::Lost);
        expect_kinds!(values(&[2]), TroubleKind::Lost);
        expect_kinds!(values(&[1, 2, 3, 3, 4]), TroubleKind::Repeated);
        expect_kinds!(values(&[1, 2, 3, 1, 2]), TroubleKind::Restarted);
    }

    #[test]
    fn an_unknown_outcome_counts_once_and_whenever_it_likes() {
        let one = |value| Some(seen(value, "n1", 1));
        expect_kinds!(troubles(&[one(1), None, one(2), one(3)]), TroubleKind::Failed(_));
        expect_kinds!(troubles(&[one(1), None, one(3), one(4)]), TroubleKind::Failed(_));
        expect_kinds!(troubles(&[one(1), None, one(2), one(4)]), TroubleKind::Failed(_));
        let twice = troubles(&[one(1), None, one(3), one(5)]);
        expect_kinds!(twice, TroubleKind::Failed(_), TroubleKind::Lost);
    }

    #[test]
    fn a_kill_excuses_a_new_beginning_of_what_was_the_dead_nodes_and_nothing_else() {
        let excused = |before: Seen, after: Seen| {
            let troubles = troubles(&[Some(seen(1, "n1", 1)), Some(before), Some(after)]);
            troubles.iter().map(|found| found.is_excused_by_the_kill_of("n1")).collect::<Vec<_>>()
        };
        // It owned the session, or had been granted it by somebody else.
        assert_eq!(excused(seen(2, "n1", 1), seen(1, "n2", 2)), [true]);
        assert_eq!(excused(seen(2, "n3", 2), seen(1, "n2", 4)), [true]);
        // Another node forgot it, by itself or while it handed it over.
        assert_eq!(excused(seen(2, "n3", 2), seen(1, "n3", 2)), [false]);
        assert_eq!(excused(seen(2, "n3", 2), seen(1, "n2", 3)), [false]);
        // What a dead node held cannot be half remembered, nor counted twice.
        assert_eq!(excused(seen(2, "n1", 1), seen(2, "n2", 2)), [false]);
        assert_eq!(excused(seen(2, "n1", 1), seen(4, "n2", 2)), [false]);
    }
}
