//! What clients did and saw, and whether counters could have given it.

use std::collections::BTreeMap;

use stead_router::logic::retry::Failure;
use stead_shared::id::ShardId;
use stead_shared::time::Time;

/// How a request ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Value(u64),
    /// It was not executed.
    Refused(Failure),
    /// It may have been executed.
    Unknown,
}

/// One request of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) shard: ShardId,
    pub(crate) session: u8,
    pub(crate) is_write: bool,
    pub(crate) asked: Time,
    pub(crate) done: Option<(Time, Done)>,
}

/// Whether the history of each session is linearizable.
///
/// A write raises its counter by one and gives the new value; a read gives the value. So the
/// order of values is the only possible order, and it is a linearization when no two writes give
/// the same value, when what ended before something else began has a lower value (not a higher one
/// where the later is a read), and when every value that nobody was told of can be of a write
/// whose end is unknown and that had begun by then.
pub(crate) fn check(ops: impl Iterator<Item = Op>) -> Result<(), String> {
    let mut sessions: BTreeMap<(ShardId, u8), Vec<Op>> = BTreeMap::new();
    for op in ops {
        sessions.entry((op.shard, op.session)).or_default().push(op);
    }
    for (session, ops) in sessions {
        check_session(&ops).map_err(|text| format!("{session:?}: {text}"))?;
    }
    Ok(())
}

fn check_session(ops: &[Op]) -> Result<(), String> {
    let known = |op: &Op| match op.done {
        Some((at, Done::Value(value))) => Some((*op, at, value)),
        Some((_, Done::Refused(_) | Done::Unknown)) | None => None,
    };
    let mut begun: Vec<(Op, Time, u64)> = ops.iter().filter_map(known).collect();
    let mut ended = begun.clone();
    begun.sort_by_key(|(op, _, _)| op.asked);
    ended.sort_by_key(|(_, at, _)| *at);
    let mut ended = ended.into_iter().peekable();
    // The highest value that was told before what is looked at began.
    let mut floor = 0;
    for (op, _, value) in &begun {
        while let Some((_, _, told)) = ended.next_if(|(_, at, _)| *at < op.asked) {
            floor = floor.max(told);
        }
        if *value < floor || (op.is_write && *value == floor) {
            return Err(format!("{op:?} though {floor} was told before"));
        }
    }
    check_values(ops, &begun)
}

fn check_values(ops: &[Op], known: &[(Op, Time, u64)]) -> Result<(), String> {
    let mut writes: Vec<(u64, Op)> =
        known.iter().filter(|(op, _, _)| op.is_write).map(|(op, _, value)| (*value, *op)).collect();
    writes.sort_by_key(|(value, _)| *value);
    if let Some(pair) = writes.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("the same value twice: {pair:?}"));
    }
    let unknown = |op: &&Op| op.is_write && matches!(op.done, None | Some((_, Done::Unknown)));
    let unknown: Vec<Time> = ops.iter().filter(unknown).map(|op| op.asked).collect();
    for (op, at, value) in known {
        let told = writes.iter().filter(|(other, _)| other <= value).count() as u64;
        let begun = unknown.iter().filter(|asked| *asked <= at).count() as u64;
        if told + begun < *value {
            return Err(format!("{op:?}: too high, {told} writes are known below it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(is_write: bool, asked: u64, done: Option<(u64, u64)>) -> Op {
        let done = done.map_or(Some((Time::from_micros(999), Done::Unknown)), |(at, value)| {
            Some((Time::from_micros(at), Done::Value(value)))
        });
        let asked = Time::from_micros(asked);
        Op { shard: ShardId(0), session: 0, is_write, asked, done }
    }

    fn is_fine(ops: &[Op]) -> bool {
        check(ops.iter().copied()).is_ok()
    }

    #[test]
    fn overlapping_requests_may_end_in_any_order() {
        assert!(is_fine(&[op(true, 0, Some((9, 2))), op(true, 1, Some((8, 1)))]));
        assert!(is_fine(&[op(true, 0, Some((9, 1))), op(false, 1, Some((8, 0)))]));
    }

    #[test]
    fn what_ended_before_is_seen() {
        assert!(is_fine(&[op(true, 0, Some((1, 1))), op(false, 2, Some((3, 1)))]));
        assert!(!is_fine(&[op(true, 0, Some((1, 1))), op(false, 2, Some((3, 0)))]), "stale read");
        assert!(!is_fine(&[op(true, 0, Some((1, 1))), op(true, 2, Some((3, 1)))]), "lost write");
    }

    #[test]
    fn values_that_nobody_wrote_are_found() {
        assert!(!is_fine(&[op(true, 0, Some((1, 2)))]));
        assert!(is_fine(&[op(true, 0, None), op(true, 0, Some((1, 2)))]));
        assert!(!is_fine(&[op(true, 5, None), op(true, 0, Some((1, 2)))]), "it began later");
    }
}
