//! A grant that comes again after its shards have gone on.

use std::sync::Arc;

use stead_node::logic::copying::Progress;
use stead_node::logic::forming::FormingConfig;
use stead_node::logic::ownership::{Action, Event, Ownership, OwnershipConfig};
use stead_shared::claims::ClaimLog;
use stead_shared::control::{Control, HandoffId, ShardEpoch};
use stead_shared::id::Epoch;
use stead_shared::member::MemberState;
use stead_shared::time::Time;

use crate::yields::{A, B, handle, members, view};

fn from_b(message: Control) -> Event {
    Event::Control { from: B, message }
}

/// The grant among the messages to `B`.
fn grant(out: &[Action]) -> Option<(HandoffId, Vec<ShardEpoch>)> {
    out.iter().find_map(|action| match action {
        Action::Send { to, message: Control::Grant { handoff, shards } } if *to == B.node => {
            Some((*handoff, shards.clone()))
        }
        _ => None,
    })
}

/// `A`, which founded alone, when it has granted shards to `B`; and the time.
fn granted() -> (Ownership, u64, HandoffId, Vec<ShardEpoch>) {
    let ready = view(MemberState::Ready);
    let forming = FormingConfig { has_seeds: false, ..FormingConfig::default() };
    let config = OwnershipConfig::new(A, 8, forming);
    let alone = view(MemberState::Down);
    let (list, targets) = (Arc::clone(&alone.members), Arc::clone(&alone.targets));
    let mut machine = Ownership::new(config, list, targets, Time::ZERO);
    handle(&mut machine, 0, Event::Tick);
    handle(&mut machine, 1, members(&ready));
    handle(&mut machine, 2, Event::Connected { peer: B, protocol: 2 });
    handle(&mut machine, 3, Event::Claims(ClaimLog::new(B).full()));
    let out = handle(&mut machine, 100, Event::Tick);
    let asked = out.into_iter().find_map(|action| match action {
        Action::Send { message: Control::Prepare { handoff, .. }, .. } => Some(handoff),
        _ => None,
    });
    let handoff = asked.expect("balance wants shards at B");
    handle(&mut machine, 101, from_b(Control::Prepared { handoff }));
    let progress = Progress { walking: false, lag: 0, left: 0, rate: 1 << 20, overflow: false };
    handle(&mut machine, 102, Event::Copied { handoff, progress });
    handle(&mut machine, 103, Event::Sealed(handoff));
    let out = handle(&mut machine, 104, from_b(Control::CaughtUp { handoff }));
    let (_, shards) = grant(&out).expect("all of it is there");
    assert!(2 <= shards.len(), "{shards:?}");
    (machine, 104, handoff, shards)
}

#[test]
fn word_that_they_were_served_ends_a_grant() {
    let (mut machine, at, handoff, shards) = granted();
    let n_before = machine.n_owned();
    let n_shards = shards.len();
    let out =
        handle(&mut machine, at + 1, from_b(Control::Served { handoff, shards: shards.clone() }));
    let dropped = shards.iter().map(|at| at.shard).collect();
    assert!(out.contains(&Action::DropState { shards: dropped }), "{out:?}");
    assert!(out.iter().any(|action| matches!(action, Action::PushClaims(_))), "{out:?}");
    assert_eq!(machine.n_owned(), n_before - n_shards);
    let later = handle(&mut machine, at + 1_000, Event::Tick);
    assert_eq!(grant(&later).filter(|(id, _)| *id == handoff), None);
    // Nor does anything that comes late bring it back.
    let late = handle(&mut machine, at + 1_001, from_b(Control::NoCopy { handoff }));
    assert!(!late.iter().any(|action| matches!(action, Action::Reopen { .. })), "{late:?}");
}

#[test]
fn a_grant_goes_on_for_what_was_not_served() {
    let (mut machine, at, handoff, shards) = granted();
    let (first, rest) = shards.split_first().expect("some");
    let older = Epoch { counter: first.epoch.counter - 1, node: B.node };
    let stale = vec![ShardEpoch { shard: first.shard, epoch: older }];
    let out = handle(&mut machine, at + 1, from_b(Control::Served { handoff, shards: stale }));
    assert!(!out.iter().any(|action| matches!(action, Action::DropState { .. })), "{out:?}");
    handle(&mut machine, at + 2, from_b(Control::Served { handoff, shards: vec![*first] }));
    let out = handle(&mut machine, at + 200, Event::Tick);
    assert_eq!(grant(&out), Some((handoff, rest.to_vec())));
    let out = handle(&mut machine, at + 201, from_b(Control::NoCopy { handoff }));
    let raised = |at: &ShardEpoch| ShardEpoch {
        shard: at.shard,
        epoch: Epoch { counter: at.epoch.counter + 1, node: A.node },
    };
    let shards = rest.iter().map(raised).collect();
    assert!(out.contains(&Action::Reopen { shards }), "{out:?}");
}

/// `A` gets a grant by which it served before it handed the shard on.
#[test]
fn who_has_handed_it_on_says_that_it_was_served() {
    let (mut machine, at, _, shards) = granted();
    let mut log = ClaimLog::new(B);
    for at in &shards {
        log.claim(at.shard, at.epoch.counter);
    }
    log.commit();
    handle(&mut machine, at + 1, Event::Claims(log.full()));
    let handoff = HandoffId { source: B, number: 1 };
    let served = |at: &ShardEpoch| ShardEpoch {
        shard: at.shard,
        epoch: Epoch { counter: at.epoch.counter - 1, node: A.node },
    };
    let mine: Vec<ShardEpoch> = shards.iter().map(served).collect();
    let repeated = || from_b(Control::Grant { handoff, shards: mine.clone() });
    let out = handle(&mut machine, at + 2, repeated());
    let message = Control::Served { handoff, shards: mine.clone() };
    assert!(out.contains(&Action::Send { to: B.node, message: message.clone() }), "{out:?}");
    // One that does not know the word gets the claims alone.
    handle(&mut machine, at + 3, Event::Connected { peer: B, protocol: 1 });
    let out = handle(&mut machine, at + 4, repeated());
    assert!(!out.contains(&Action::Send { to: B.node, message }), "{out:?}");
    assert!(out.iter().any(|action| matches!(action, Action::SendClaims { .. })), "{out:?}");
}
