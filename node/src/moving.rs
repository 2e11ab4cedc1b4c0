//! What is moving at this node, as other members and people are told.

use stead_shared::net::admin::{MovesReport, PendingMoves};

use crate::logic::ownership::Pending;

/// What the ownership machine counts. It measures no time: bytes per second are not known here.
pub(crate) fn report(pending: Pending) -> MovesReport {
    let Pending { takeover, drain, balance, copying, moving, bytes, frozen } = pending;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    MovesReport {
        moving: count(moving),
        copying: count(copying),
        pending: PendingMoves {
            takeover: count(takeover),
            drain: count(drain),
            balance: count(balance),
        },
        bytes_left: bytes,
        bytes_per_second: 0,
        frozen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_of_the_machine_has_its_place() {
        let pending = Pending {
            takeover: 1,
            drain: 2,
            balance: 3,
            copying: 4,
            moving: 5,
            bytes: 6,
            frozen: true,
        };
        let expected = MovesReport {
            moving: 5,
            copying: 4,
            pending: PendingMoves { takeover: 1, drain: 2, balance: 3 },
            bytes_left: 6,
            bytes_per_second: 0,
            frozen: true,
        };
        assert_eq!(report(pending), expected);
        assert_eq!(report(pending).remaining(), 15);
    }
}
