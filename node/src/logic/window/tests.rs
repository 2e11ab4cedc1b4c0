use proptest::collection::vec;
use proptest::prelude::*;
use stead_shared::id::BootId;

use super::*;

const NOW: Time = Time::from_micros(1_000);

fn asked(counter: u64, attempt: u16, first_sent_ms: u64) -> Asked {
    let id = Some(RequestId { boot: BootId(1), counter });
    Asked { id, attempt, first_sent_ms, key: None }
}

fn keyed(counter: u64, name: &str, fingerprint: u128) -> Asked {
    let key = Keyed { name: name.as_bytes().into(), fingerprint };
    Asked { key: Some(Box::new(key)), ..asked(counter, 1, counter) }
}

/// Each answer is told by its number.
fn kept(seq: u64, length: usize) -> Kept {
    let version = Version { epoch: Epoch { counter: 1, node: NodeId(1) }, seq };
    let content = Content::new(b"", &vec![0; length]);
    Kept { status: 200, version, has_etag: false, content }
}

fn answer(window: &Window, asked: &Asked) -> Option<u64> {
    match Window::meet(Some(window), 0, asked, &Rules::ALL) {
        Met::Replay(kept) => Some(kept.version.seq),
        Met::Run | Met::Unknown | Met::OtherRequest => None,
    }
}

fn meet(window: &Window, asked: &Asked) -> Met<'static> {
    match Window::meet(Some(window), 0, asked, &Rules::ALL) {
        Met::Replay(kept) => panic!("{kept:?}"),
        Met::Run => Met::Run,
        Met::Unknown => Met::Unknown,
        Met::OtherRequest => Met::OtherRequest,
    }
}

fn add(window: &mut Window, asked: Asked, seq: u64, now: Time) -> Trim {
    window.add(Entry::new(asked, kept(seq, 10), now), now)
}

#[test]
fn what_was_applied_is_answered_again_whatever_its_attempt() {
    let mut window = Window::default();
    let _ = add(&mut window, asked(1, 1, 5), 41, NOW);
    for attempt in [1, 2, 9] {
        assert_eq!(answer(&window, &asked(1, attempt, 5)), Some(41));
    }
    assert_eq!(meet(&window, &asked(2, 1, 5)), Met::Run);
    let off = Rules { applied_once: false, ..Rules::ALL };
    assert_eq!(Window::meet(Some(&window), 9, &asked(1, 2, 5), &off), Met::Run);
}

/// Two routers count alike.
#[test]
fn ids_with_the_same_mark_are_told_apart() {
    let of_boot = |boot, counter| {
        let id = Some(RequestId { boot: BootId(boot), counter });
        Asked { id, ..asked(counter, 1, 5) }
    };
    let mut window = Window::default();
    for counter in 0..RECENT_MAX as u64 + 9 {
        let _ = add(&mut window, of_boot(1, counter), counter, NOW);
        assert_eq!(answer(&window, &of_boot(1, counter)), Some(counter));
        assert_eq!(meet(&window, &of_boot(2, counter)), Met::Run);
        assert_eq!(meet(&window, &of_boot(1, counter + (1 << 32))), Met::Run);
    }
    assert_eq!(meet(&window, &of_boot(1, 8)), Met::Run, "it was pushed out");
    assert_eq!(answer(&window, &of_boot(1, 9)), Some(9));
}

#[test]
fn what_may_have_been_here_is_not_run_again() {
    let mut window = Window::default();
    let n = RECENT_MAX as u64;
    for counter in 0..n {
        assert!(add(&mut window, asked(counter, 1, 100 + counter), counter, NOW).is_empty());
    }
    assert_eq!(answer(&window, &asked(0, 2, 100)), Some(0));
    assert_eq!(add(&mut window, asked(n, 1, 100 + n), n, NOW), Trim { recent: 1, keyed: 0 });
    assert_eq!(window.floor_ms(), 100);
    assert_eq!(meet(&window, &asked(0, 2, 100)), Met::Unknown);
    assert_eq!(meet(&window, &asked(999, 2, 100)), Met::Unknown, "nobody knows");
    assert_eq!(meet(&window, &asked(999, 1, 100)), Met::Run, "a first attempt always runs");
    assert_eq!(meet(&window, &asked(999, 2, 101)), Met::Run);
    assert_eq!(answer(&window, &asked(1, 2, 101)), Some(1));
}

#[test]
fn windows_that_have_ended_count_for_the_whole_shard() {
    let meet = |asked| Window::meet(None, 50, &asked, &Rules::ALL);
    assert_eq!(meet(asked(1, 2, 50)), Met::Unknown);
    assert_eq!(meet(asked(1, 2, 51)), Met::Run);
    assert_eq!(meet(asked(1, 1, 50)), Met::Run);
}

#[test]
fn a_list_leaves_when_its_last_entry_is_of_no_use() {
    let mut window = Window::default();
    let later = NOW + Duration::from_secs(30);
    let _ = add(&mut window, asked(1, 1, 7), 1, NOW);
    let _ = add(&mut window, asked(2, 1, 6), 2, later);
    let _ = add(&mut window, keyed(3, "a", 1), 3, NOW);
    assert_eq!(window.due(), Some(later + RECENT_FOR));
    assert_eq!(window.expires(), Some(NOW + KEYED_FOR));
    assert!(window.expired(NOW + RECENT_FOR).is_empty(), "the last one is still of use");
    let trim = window.expired(later + RECENT_FOR);
    assert_eq!(trim, Trim { recent: 2, keyed: 0 });
    window.follow(trim, None);
    assert_eq!((window.floor_ms(), window.recent().len(), window.keyed().len()), (7, 0, 1));
    let trim = window.expired(NOW + KEYED_FOR);
    window.follow(trim, None);
    assert!(window.is_empty());
    assert_eq!(window.size(), 0);
}

#[test]
fn an_entry_whose_time_is_over_leaves_when_another_comes() {
    let mut window = Window::default();
    let _ = add(&mut window, asked(1, 1, 7), 1, NOW);
    let trim = add(&mut window, asked(2, 1, 8), 2, NOW + RECENT_FOR);
    assert_eq!(trim, Trim { recent: 1, keyed: 0 });
}

#[test]
fn a_key_answers_whoever_has_it_and_nothing_else() {
    let mut window = Window::default();
    let _ = add(&mut window, keyed(1, "a", 1), 1, NOW);
    assert_eq!(answer(&window, &keyed(2, "a", 1)), Some(1), "another request of the client's");
    assert_eq!(meet(&window, &keyed(2, "a", 2)), Met::OtherRequest);
    assert_eq!(meet(&window, &keyed(2, "b", 1)), Met::Run);
    for counter in 0..RECENT_MAX as u64 * 2 {
        let _ = add(&mut window, asked(100 + counter, 1, 1), counter, NOW);
    }
    assert_eq!(answer(&window, &keyed(3, "a", 1)), Some(1), "others do not push it out");
}

#[test]
fn a_long_answer_is_kept_without_its_content() {
    assert!(Content::new(&[1; 10], &[2; ANSWER_BYTES_MAX - 10]).is_some());
    assert!(Content::new(&[1; 10], &[2; ANSWER_BYTES_MAX - 9]).is_none());
    let content = Content::new(b"head", b"body").unwrap();
    assert_eq!((content.head(), content.body()), (&b"head"[..], &b"body"[..]));
}

#[test]
fn an_entry_takes_no_more_than_it_is_counted_with() {
    assert!(size_of::<Entry>() + 16 <= ENTRY_OVERHEAD, "{}", size_of::<Entry>());
    assert!(
        size_of::<Window>() + size_of::<List>() + 24 <= WINDOW_OVERHEAD,
        "{}",
        size_of::<Window>()
    );
}

#[derive(Clone, Debug)]
enum Step {
    Add { counter: u64, key: bool, length: usize },
    Expire,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u64..2000, prop::bool::weighted(0.3), 0usize..ANSWER_BYTES_MAX)
            .prop_map(|(counter, key, length)| Step::Add { counter, key, length }),
        1 => Just(Step::Expire),
        2 => (0u64..90).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever comes, a window keeps within its bounds, a copy that follows it is the same, and no
    /// request that was applied is ever told to run again.
    #[test]
    fn nothing_is_applied_twice(steps in vec(step(), 0..200)) {
        let (mut window, mut copy, mut now) = (Window::default(), Window::default(), NOW);
        let mut applied = Vec::new();
        for (seq, step) in steps.into_iter().enumerate() {
            match step {
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Expire => {
                    let trim = window.expired(now);
                    window.follow(trim, None);
                    copy.follow(trim, None);
                }
                Step::Add { counter, key, length } => {
                    let first_sent_ms = now.as_micros() / 1000;
                    let asked = match key {
                        true => Asked { first_sent_ms, ..keyed(counter, &counter.to_string(), 1) },
                        false => asked(counter, 1, first_sent_ms),
                    };
                    if !matches!(Window::meet(Some(&window), 0, &asked, &Rules::ALL), Met::Run) {
                        continue;
                    }
                    let answer = kept(seq as u64, length);
                    let entry = Entry::new(asked.clone(), answer, now);
                    let bound = Window::bound(Some(&window), Some(&entry));
                    let trim = window.add(entry.clone(), now);
                    copy.follow(trim, Some(entry));
                    prop_assert!(window.size() <= bound);
                    applied.push(Asked { attempt: 2, ..asked });
                }
            }
            prop_assert_eq!(&window, &copy);
            prop_assert!(window.recent.entries.len() <= RECENT_MAX);
            prop_assert!(window.list(true).entries.len() <= KEYED_MAX);
            let is_long = MARKED_MIN <= window.recent().len();
            prop_assert_eq!(&window.marks, &is_long.then(|| Marks::of(window.recent())));
            for list in [&window.recent, window.list(true)] {
                let bytes: usize = list.entries.iter().map(Entry::size).sum();
                prop_assert_eq!(list.bytes as usize, bytes);
                prop_assert!(bytes <= LIST_BYTES_MAX);
            }
            for asked in &applied {
                let met = Window::meet(Some(&window), 0, asked, &Rules::ALL);
                prop_assert!(!matches!(met, Met::Run), "{asked:?} would run again");
            }
        }
    }
}

/// Goal: each entry is alone in its slot while it is in the window, and a window that is put together
/// from slots goes on where it was. Method: any run of requests with all counters about to wrap.
#[test]
fn no_two_entries_share_a_slot() {
    let mut window = Window::default();
    let _ = add(&mut window, keyed(0, "first", 1), 0, NOW);
    window = window.numbered_from(u32::MAX - 70, u32::MAX - 30);
    for counter in 0..400_u64 {
        let name = counter.to_string();
        let request =
            if counter % 3 == 0 { keyed(counter, &name, 1) } else { asked(counter, 1, counter) };
        let _ = add(&mut window, request, counter, NOW);
        for is_keyed in [false, true] {
            let (first, n) = window.extent(is_keyed);
            let slots: std::collections::BTreeSet<u8> =
                window.numbered(is_keyed).map(|(number, _)| slot_of(is_keyed, number)).collect();
            assert_eq!(slots.len(), n as usize);
            assert!(slots.iter().all(|slot| is_keyed_slot(*slot) == is_keyed));
            assert!(slots.iter().all(|slot| SLOTS[usize::from(is_keyed)].contains(slot)));
            assert_eq!(window.numbered(is_keyed).next().map_or(first, |(number, _)| number), first);
        }
    }
    let parts = |is_keyed: bool| window.numbered(is_keyed).map(|(_, entry)| entry.clone());
    let (recent, keyed) = (window.extent(false).0, window.extent(true).0);
    let again = Window::from_parts(window.floor_ms(), parts(false), parts(true));
    assert_eq!(again.numbered_from(recent, keyed), window);
}
