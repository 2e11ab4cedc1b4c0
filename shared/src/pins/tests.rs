use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const ME: NodeId = NodeId(1);
const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: u64 = 3_600_000;
const NOW: u64 = 1_700_000_000_000;
const SHARD: ShardId = ShardId(7);
const N1: NodeId = NodeId(11);
const N2: NodeId = NodeId(12);

fn order(kind: PinKind, node: NodeId) -> PinOrder {
    PinOrder { shard: SHARD, node, kind, keep: HOUR }
}

fn by_hand(node: NodeId) -> PinOrder {
    order(PinKind::Hand, node)
}

fn by_heat(node: NodeId) -> PinOrder {
    order(PinKind::Heat, node)
}

#[track_caller]
fn pinned(pins: &Pins, now_ms: u64) -> Option<NodeId> {
    let all = pins.in_force(now_ms);
    let one = pins.pin_of(SHARD, now_ms);
    assert_eq!(all.iter().copied().find(|entry| entry.shard == SHARD), one, "both ways agree");
    one.and_then(|entry| entry.node)
}

#[test]
fn a_pin_is_in_force_until_it_expires_and_then_forgotten() {
    let mut pins = Pins::default();
    let written = pins.pin(ME, by_hand(N1), NOW).unwrap();
    assert_eq!(written.len(), 1);
    assert_eq!(pinned(&pins, NOW), Some(N1));
    assert_eq!(pinned(&pins, NOW + HOUR_MS - 1), Some(N1));
    assert_eq!(pinned(&pins, NOW + HOUR_MS), None);
    assert_eq!(pins.expire(NOW + HOUR_MS - 1), Change::Same);
    assert_eq!(pins.expire(NOW + HOUR_MS), Change::Changed);
    assert!(pins.is_empty());
    assert_eq!(pins.apply(&written, NOW + HOUR_MS), Change::Same, "too late to matter");
}

#[test]
fn the_last_writer_wins_and_of_two_at_once_the_higher_author() {
    let (mut a, mut b) = (Pins::default(), Pins::default());
    let first = a.pin(NodeId(1), by_hand(N1), NOW).unwrap();
    let second = b.pin(NodeId(2), by_hand(N2), NOW).unwrap();
    assert_eq!(a.apply(&second, NOW), Change::Changed);
    assert_eq!(b.apply(&first, NOW), Change::Same);
    assert_eq!((pinned(&a, NOW), pinned(&b, NOW)), (Some(N2), Some(N2)));
    // Whoever has seen a pin writes a later one, whatever the clock says.
    let third = a.pin(NodeId(1), by_hand(N1), NOW - 5_000).unwrap();
    assert_eq!(b.apply(&third, NOW), Change::Changed);
    assert_eq!(pinned(&b, NOW), Some(N1));
    assert_eq!(a.digest(), b.digest());
}

#[test]
fn hand_beats_heat_however_new_that_is() {
    let mut pins = Pins::default();
    let _ = pins.pin(ME, by_hand(N1), NOW).unwrap();
    assert_eq!(pins.pin(ME, by_heat(N2), NOW), Err(PinError::PinnedByHand(SHARD)));
    // Of a member that does not know the pin by hand yet.
    let heat = Pins::default().pin(NodeId(9), by_heat(N2), NOW + 10).unwrap();
    assert_eq!(pins.apply(&heat, NOW + 10), Change::Changed);
    assert_eq!(pinned(&pins, NOW + 10), Some(N1));
    assert_eq!(pinned(&pins, NOW + HOUR_MS), Some(N2), "when that by hand is over");
    assert_eq!(pins.pin(ME, by_heat(N1), NOW + HOUR_MS).unwrap().len(), 1);
}

#[test]
fn a_pin_by_hand_takes_the_place_of_one_by_heat_for_good() {
    let mut pins = Pins::default();
    let _ = pins.pin(ME, by_heat(N1), NOW).unwrap();
    let short = PinOrder { keep: Duration::from_secs(1), ..by_hand(N2) };
    assert_eq!(pins.pin(ME, short, NOW).unwrap().len(), 2);
    assert_eq!(pinned(&pins, NOW), Some(N2));
    assert_eq!(pinned(&pins, NOW + 1_000), None);
}

#[test]
fn an_unpin_outlives_late_copies_of_what_it_ended() {
    let mut pins = Pins::default();
    let late = pins.pin(ME, by_hand(N1), NOW).unwrap();
    let gone = pins.unpin(NodeId(2), SHARD, NOW + 10);
    assert_eq!(gone.len(), 1);
    assert_eq!(pinned(&pins, NOW + 10), None);
    assert_eq!(pins.apply(&late, NOW + 20), Change::Same);
    assert_eq!(pinned(&pins, NOW + 20), None);
    assert_eq!(pins.expire(NOW + HOUR_MS - 1), Change::Same);
    assert_eq!(pins.expire(NOW + HOUR_MS), Change::Changed);
    // A second unpin has nothing to do.
    assert_eq!(pins.unpin(ME, SHARD, NOW + HOUR_MS), []);
}

#[test]
fn an_unpin_ends_both_kinds_and_the_shard_can_be_pinned_again() {
    let mut pins = Pins::default();
    let heat = Pins::default().pin(NodeId(9), by_heat(N2), NOW).unwrap();
    let _ = pins.pin(ME, by_hand(N1), NOW).unwrap();
    let _ = pins.apply(&heat, NOW);
    assert_eq!(pins.unpin(ME, SHARD, NOW).len(), 2);
    assert_eq!(pinned(&pins, NOW), None);
    let _ = pins.pin(ME, by_heat(N2), NOW).unwrap();
    assert_eq!(pinned(&pins, NOW), Some(N2));
}

#[test]
fn a_shorter_pin_outlives_late_copies_of_the_longer_one_it_replaced() {
    let mut pins = Pins::default();
    let late = pins.pin(ME, by_hand(N1), NOW).unwrap();
    let short = PinOrder { keep: Duration::from_secs(1), ..by_hand(N2) };
    let _ = pins.pin(ME, short, NOW).unwrap();
    assert_eq!(pins.expire(NOW + 2_000), Change::Same);
    assert_eq!(pins.apply(&late, NOW + 2_000), Change::Same);
    assert_eq!(pinned(&pins, NOW + 2_000), None);
}

#[test]
fn there_is_room_for_so_many_shards_and_for_times_within_bounds() {
    let mut pins = Pins::default();
    let of = |shard: u32| PinOrder { shard: ShardId(shard), ..by_hand(N1) };
    for shard in 0..PINS_MAX as u32 {
        let _ = pins.pin(ME, of(shard), NOW).unwrap();
    }
    let full = pins.clone();
    assert_eq!(pins.pin(ME, of(PINS_MAX as u32), NOW), Err(PinError::Full));
    assert_eq!(pins, full);
    assert!(pins.pin(ME, of(3), NOW).is_ok(), "that shard has its place");
    for keep in [Duration::ZERO, KEEP_MIN / 2, KEEP_MAX * 2] {
        let order = PinOrder { keep, ..by_hand(N1) };
        assert_eq!(Pins::default().pin(ME, order, NOW), Err(PinError::Keep), "{keep:?}");
    }
}

#[test]
fn shards_that_cannot_exist_are_passed_over() {
    let mut pins = Pins::default();
    let mut written = Pins::default().pin(ME, by_hand(N1), NOW).unwrap();
    written[0].shard = ShardId(ShardCount::MAX.get());
    assert_eq!(pins.apply(&written, NOW), Change::Same);
    assert!(pins.is_empty());
}

#[test]
fn all_entries_fit_into_notes() {
    let mut pins = Pins::default();
    for shard in 0..PINS_MAX as u32 {
        let _ = pins.pin(ME, PinOrder { shard: ShardId(shard), ..by_hand(N1) }, NOW).unwrap();
    }
    let mut other = Pins::default();
    for note in pins.notes() {
        let PinsNote::Changed(entries) = note else { panic!("{note:?}") };
        assert!(entries.len() <= NOTE_ENTRIES);
        assert_eq!(other.apply(&entries, NOW), Change::Changed);
    }
    assert_eq!(pins, other);
}

/// Few values, so that entries meet.
fn any_entry() -> impl Strategy<Value = PinEntry> {
    let node = prop_oneof![Just(None), (11..14_u64).prop_map(|id| Some(NodeId(id)))];
    let kind = prop_oneof![Just(PinKind::Heat), Just(PinKind::Hand)];
    let fields = (0..3_u32, kind, 0..4_u64, 1..4_u64, node, 0..60_u64, 0..60_u64);
    fields.prop_map(|(shard, kind, version, author, node, until, kept)| PinEntry {
        shard: ShardId(shard),
        kind,
        version,
        author: NodeId(author),
        node,
        until_ms: NOW + until,
        kept_ms: NOW + kept,
    })
}

fn joined(entries: &[PinEntry], now_ms: u64) -> Pins {
    let mut pins = Pins::default();
    for entry in entries {
        let _ = pins.apply(std::slice::from_ref(entry), now_ms);
    }
    pins
}

proptest! {
    #[test]
    fn order_and_repetition_do_not_matter(
        (entries, shuffled) in vec(any_entry(), 0..12)
            .prop_flat_map(|entries| (Just(entries.clone()), Just(entries).prop_shuffle())),
        again in vec(any::<prop::sample::Index>(), 0..12),
        now in 0..60_u64,
    ) {
        let now_ms = NOW + now;
        let once = joined(&entries, now_ms);
        let mut more = shuffled.clone();
        if !shuffled.is_empty() {
            more.extend(again.iter().map(|index| shuffled[index.index(shuffled.len())]));
        }
        let other = joined(&more, now_ms);
        prop_assert_eq!(&once, &other);
        prop_assert_eq!(once.digest(), other.digest());
        prop_assert_eq!(once.overlay(now_ms), other.overlay(now_ms));
    }

    /// Each half is heard by one member, at different times; then they tell each other all.
    #[test]
    fn members_that_exchange_their_books_agree(
        mine in vec(any_entry(), 0..8),
        yours in vec(any_entry(), 0..8),
        (early, late) in (0..30_u64, 30..60_u64),
    ) {
        let (mut a, mut b) = (joined(&mine, NOW + early), joined(&yours, NOW + late));
        let now_ms = NOW + late;
        let _ = (a.expire(now_ms), b.expire(now_ms));
        let told: Vec<_> = [a.clone(), b.clone()].map(|book| book.notes().collect()).into();
        for (book, notes) in [(&mut a, &told[1]), (&mut b, &told[0])] {
            let notes: &Vec<PinsNote> = notes;
            for note in notes {
                if let PinsNote::Changed(entries) = note {
                    let _ = book.apply(entries, now_ms);
                }
            }
        }
        prop_assert_eq!(&a, &b);
        prop_assert_eq!(a.overlay(now_ms), b.overlay(now_ms));
    }

    /// Whatever was heard, at most one pin per shard counts, and heat only where no hand does.
    #[test]
    fn one_pin_per_shard_counts_and_hand_comes_first(
        entries in vec(any_entry(), 0..16),
        now in 0..60_u64,
    ) {
        let now_ms = NOW + now;
        let pins = joined(&entries, now_ms);
        let counted = pins.in_force(now_ms);
        prop_assert!(counted.windows(2).all(|pair| pair[0].shard < pair[1].shard));
        for entry in &counted {
            let hand = pins.effective(entry.shard, PinKind::Hand, now_ms);
            prop_assert!(entry.is_in_force(now_ms));
            prop_assert_eq!(hand.is_some(), entry.kind == PinKind::Hand);
        }
    }
}
