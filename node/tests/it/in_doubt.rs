//! One machine in doubt (R11).

use std::sync::Arc;

use stead_node::logic::forming::FormingConfig;
use stead_node::logic::ownership::{ALONE_AFTER, Action, Event, Ownership, OwnershipConfig};
use stead_shared::claims::{ClaimLog, ClaimRange};
use stead_shared::control::{Control, Holding, ShardEpoch, ShardRange, Token};
use stead_shared::id::{Epoch, NodeBoot, NodeId};
use stead_shared::member::MemberState;
use stead_shared::rules::Rules;
use stead_shared::time::Time;

use crate::yields::{A, B, SHARD, handle, members, view};

/// `A` owns all eight shards and sees `B`.
fn owner(rules: Rules) -> Ownership {
    let alone = view(MemberState::Down);
    let forming = FormingConfig { has_seeds: false, ..FormingConfig::default() };
    let config = OwnershipConfig { rules, ..OwnershipConfig::new(A, 8, forming) };
    let (list, targets) = (Arc::clone(&alone.members), Arc::clone(&alone.targets));
    let mut machine = Ownership::new(config, list, targets, Time::ZERO);
    handle(&mut machine, 0, Event::Tick);
    assert_eq!(machine.n_owned(), 8);
    handle(&mut machine, 1, members(&view(MemberState::Ready)));
    machine
}

/// The token and the shards of the question to `to`.
fn asked(out: &[Action], to: NodeId) -> Option<(Token, Vec<ShardRange>)> {
    out.iter().find_map(|action| match action {
        Action::Send { to: whom, message: Control::WhoHolds { token, shards, .. } }
            if *whom == to =>
        {
            Some((*token, shards.clone()))
        }
        _ => None,
    })
}

fn answer(token: Token, holdings: Vec<Holding>) -> Event {
    let message = Control::Holds { token, members_digest: 0, holdings, highest: Vec::new() };
    Event::Control { from: B, message }
}

fn holding(owner: NodeBoot, counter: u64) -> Holding {
    Holding { owner, range: ClaimRange { first: SHARD.0, len: 1, counter } }
}

fn certain(doubt: u64, alone: bool) -> Action {
    Action::Certain { doubt, alone }
}

/// Ticks every 20 ms, as the driver does, until something ends the doubt.
fn until_certain(machine: &mut Ownership, from_ms: u64, to_ms: u64) -> Option<(u64, Action)> {
    (from_ms..=to_ms).step_by(20).find_map(|at| {
        let out = handle(machine, at, Event::Tick);
        let ends = out.into_iter().find(|action| matches!(action, Action::Certain { .. }));
        ends.map(|action| (at, action))
    })
}

#[test]
fn everybody_is_asked_for_all_shards_and_an_answer_ends_it() {
    let mut machine = owner(Rules::ALL);
    let out = handle(&mut machine, 10, Event::Doubt(4));
    let (token, shards) = asked(&out, B.node).expect("B is asked");
    assert_eq!(shards, [ShardRange { first: 0, len: 8 }]);
    let out = handle(&mut machine, 11, answer(token + 1, Vec::new()));
    assert!(!out.contains(&certain(4, false)), "another question's answer: {out:?}");
    // That we hold it ourselves, or that somebody holds it at less, is no news.
    let out = handle(&mut machine, 12, answer(token, vec![holding(A, 1), holding(B, 0)]));
    assert!(out.contains(&certain(4, false)), "{out:?}");
    let out = handle(&mut machine, 13, answer(token, Vec::new()));
    assert!(!out.contains(&certain(4, false)), "once: {out:?}");
}

#[test]
fn a_shard_with_another_owner_is_yielded_before_it_is_certain() {
    let mut machine = owner(Rules::ALL);
    let out = handle(&mut machine, 10, Event::Doubt(1));
    let (token, _) = asked(&out, B.node).expect("B is asked");
    let out = handle(&mut machine, 11, answer(token, vec![holding(B, 9)]));
    assert!(out.contains(&Action::AskClaims { to: B.node }), "{out:?}");
    assert!(!out.contains(&certain(1, false)), "{out:?}");
    let mut log = ClaimLog::new(B);
    log.claim(SHARD, 9);
    log.commit();
    let out = handle(&mut machine, 12, Event::Claims(log.full()));
    let epoch = Epoch { counter: 9, node: B.node };
    let shards = vec![ShardEpoch { shard: SHARD, epoch }];
    assert!(out.contains(&Action::Yield { to: B, shards }), "{out:?}");
    let (token, shards) = asked(&out, B.node).expect("asked again at once");
    assert_eq!(shards.iter().map(|range| range.len).sum::<u32>(), 7, "for the rest");
    let out = handle(&mut machine, 13, answer(token, vec![holding(B, 9)]));
    assert!(out.contains(&certain(1, false)), "{out:?}");
}

#[test]
fn heard_by_nobody_for_long_it_is_alone() {
    let mut machine = owner(Rules::ALL);
    handle(&mut machine, 1000, Event::Doubt(1));
    let alone_at = 1000 + ALONE_AFTER.as_millis() as u64;
    let ended = until_certain(&mut machine, 1020, 10_000);
    assert_eq!(ended, Some((alone_at, certain(1, true))));
}

#[test]
fn while_somebody_is_heard_it_goes_on_asking() {
    let mut machine = owner(Rules::ALL);
    handle(&mut machine, 1000, Event::Doubt(1));
    let mut n_asked = 0;
    for at in (1020..9000).step_by(20) {
        let event = if at % 500 == 0 { Event::Heard(1) } else { Event::Tick };
        let out = handle(&mut machine, at, event);
        assert!(!out.iter().any(|action| matches!(action, Action::Certain { .. })), "{at}");
        n_asked += u64::from(asked(&out, B.node).is_some());
    }
    assert!((35..=40).contains(&n_asked), "every 200 ms: {n_asked}");
    // News of another doubt is none of this one.
    handle(&mut machine, 9000, Event::Heard(7));
    assert!(until_certain(&mut machine, 9020, 11_500).is_some());
}

#[test]
fn time_in_which_the_process_stood_still_is_no_silence() {
    let mut machine = owner(Rules::ALL);
    handle(&mut machine, 1000, Event::Doubt(1));
    let out = handle(&mut machine, 9000, Event::Tick);
    assert!(!out.contains(&certain(1, true)), "{out:?}");
    assert_eq!(until_certain(&mut machine, 9020, 20_000), Some((11_000, certain(1, true))));
}

#[test]
fn who_knows_nobody_is_certain_at_once() {
    let mut machine = owner(Rules::ALL);
    handle(&mut machine, 5, members(&view(MemberState::Down)));
    let out = handle(&mut machine, 10, Event::Doubt(2));
    assert!(out.contains(&certain(2, true)), "{out:?}");
}

#[test]
fn without_the_rule_there_is_no_doubt() {
    let mut machine = owner(Rules { heard_lately: false, ..Rules::ALL });
    let out = handle(&mut machine, 10, Event::Doubt(2));
    assert!(out.contains(&certain(2, false)), "{out:?}");
    assert_eq!(asked(&out, B.node), None);
}
