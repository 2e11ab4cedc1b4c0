use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::keys::{KeyFile, SecretKey};

const NOW: u64 = 1_795_185_000_000;
const NONCE: [u8; NONCE_BYTES] = [5; NONCE_BYTES];
const CLUSTER: ClusterId = ClusterId(77);

fn member(name: &str) -> NodeBoot {
    NodeBoot { node: NodeId::of_name(name), boot: BootId(1_000) }
}

fn key_file() -> KeyFile {
    KeyFile::generate(SecretKey::new([1; 32]), SecretKey::new([2; 32]), 1_795_185_000)
}

fn rotated() -> KeyFile {
    key_file().rotate(SecretKey::new([3; 32]), 1_795_186_000)
}

fn envelope(name: &str, keys: Option<&KeyFile>) -> Envelope {
    Envelope::new(member(name), CLUSTER, keys.map(KeyFile::keyring))
}

/// A sender `a` and a receiver `b`, with a key and without.
fn pairs() -> [(Envelope, Envelope); 2] {
    let keys = key_file();
    [
        (envelope("a", Some(&keys)), envelope("b", Some(&keys))),
        (envelope("a", None), envelope("b", None)),
    ]
}

fn seal(from: &mut Envelope, to: &str, payload: &[u8]) -> Vec<u8> {
    from.seal(member(to), payload, NOW, NONCE).unwrap()
}

fn key_used(datagram: &[u8]) -> u32 {
    u32::from_be_bytes(field(datagram, 4))
}

#[test]
fn what_was_sealed_for_me_comes_through_once() {
    for (mut a, mut b) in pairs() {
        for payload in [&b""[..], b"ping", &[9; PAYLOAD_BYTES_MAX]] {
            let datagram = seal(&mut a, "b", payload);
            assert!(datagram.len() <= DATAGRAM_BYTES_MAX);
            let opened = Opened { from: member("a"), payload: payload.to_vec().into() };
            assert_eq!(b.open(&datagram, NOW), Ok(opened));
            assert_eq!(b.open(&datagram, NOW), Err(DatagramError::Replayed));
        }
    }
}

#[test]
fn a_payload_that_does_not_fit_is_not_sealed() {
    for (mut a, _) in pairs() {
        let error = a.seal(member("b"), &[0; PAYLOAD_BYTES_MAX + 1], NOW, NONCE);
        assert_eq!(error, Err(PayloadTooLong(PAYLOAD_BYTES_MAX + 1)));
    }
}

#[test]
fn a_sealed_payload_cannot_be_read_on_the_wire() {
    let [(mut a, _), _] = pairs();
    let datagram = seal(&mut a, "b", b"a telling payload");
    assert!(!datagram.windows(7).any(|window| window == b"telling"));
}

#[test]
fn a_datagram_for_another_member_or_another_boot_is_dropped() {
    for (mut a, mut b) in pairs() {
        let for_c = seal(&mut a, "c", b"x");
        assert_eq!(b.open(&for_c, NOW), Err(DatagramError::WrongDestination));
        let for_earlier_boot = NodeBoot { boot: BootId(999), ..member("b") };
        let datagram = a.seal(for_earlier_boot, b"x", NOW, NONCE).unwrap();
        assert_eq!(b.open(&datagram, NOW), Err(DatagramError::WrongDestination));
    }
}

#[test]
fn a_header_that_was_rewritten_is_forged() {
    let [(mut a, mut b), _] = pairs();
    let for_c = seal(&mut a, "c", b"x");
    let mut redirected = for_c.clone();
    redirected[36..52].copy_from_slice(&seal(&mut a, "b", b"x")[36..52]);
    assert_eq!(b.open(&redirected, NOW), Err(DatagramError::Forged));

    let mut other_cluster = Envelope::new(member("a"), ClusterId(78), a.keys().cloned());
    let mut moved_here = seal(&mut other_cluster, "b", b"x");
    moved_here[12..20].copy_from_slice(&CLUSTER.0.to_be_bytes());
    assert_eq!(b.open(&moved_here, NOW), Err(DatagramError::Forged));

    let mut redated = seal(&mut a, "b", b"x");
    redated[52..60].copy_from_slice(&(NOW + 1).to_be_bytes());
    assert_eq!(b.open(&redated, NOW), Err(DatagramError::Forged));
}

#[test]
fn another_cluster_is_dropped() {
    for keys in [None, Some(key_file().keyring())] {
        let mut a = Envelope::new(member("a"), ClusterId(78), keys.clone());
        let mut b = Envelope::new(member("b"), CLUSTER, keys);
        let datagram = seal(&mut a, "b", b"x");
        assert_eq!(b.open(&datagram, NOW), Err(DatagramError::WrongCluster));
    }
}

#[test]
fn every_truncation_and_every_extension_is_dropped() {
    for (mut a, mut b) in pairs() {
        let datagram = seal(&mut a, "b", b"some payload");
        for length in 0..datagram.len() {
            assert!(b.open(&datagram[..length], NOW).is_err(), "{length} bytes");
        }
        for more in 1..40 {
            let mut longer = datagram.clone();
            longer.resize(datagram.len() + more, 0);
            assert_eq!(b.open(&longer, NOW), Err(DatagramError::Forged), "{more} more");
        }
        let mut oversized = datagram.clone();
        oversized.resize(DATAGRAM_BYTES_MAX + 1, 0);
        assert_eq!(b.open(&oversized, NOW), Err(DatagramError::Oversized));
        assert!(b.open(&datagram, NOW).is_ok(), "the untouched one still comes through");
    }
}

#[test]
fn every_flipped_bit_is_dropped() {
    for (mut a, mut b) in pairs() {
        let datagram = seal(&mut a, "b", b"payload");
        for bit in 0..datagram.len() * 8 {
            let mut flipped = datagram.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(b.open(&flipped, NOW).is_err(), "bit {bit}");
        }
        assert!(b.open(&datagram, NOW).is_ok(), "the untouched one still comes through");
    }
}

#[test]
fn a_datagram_of_another_time_is_dropped_and_says_by_how_much() {
    for (mut a, mut b) in pairs() {
        for (now, ahead_ms) in [(NOW + 30_001, -30_001), (NOW - 30_001, 30_001)] {
            let datagram = seal(&mut a, "b", b"x");
            let error = DatagramError::Clock { from: member("a"), ahead_ms };
            assert_eq!(b.open(&datagram, now), Err(error));
            assert!(b.open(&datagram, NOW + CLOCK_MAX_MS).is_ok(), "dropped, not remembered");
        }
    }
}

#[test]
fn plain_and_sealed_members_do_not_mix() {
    let [(mut sealed_a, mut sealed_b), (mut plain_a, mut plain_b)] = pairs();
    let plain = seal(&mut plain_a, "b", b"x");
    let sealed = seal(&mut sealed_a, "b", b"x");
    assert_eq!(sealed_b.open(&plain, NOW), Err(DatagramError::Plain));
    assert_eq!(plain_b.open(&sealed, NOW), Err(DatagramError::UnknownKey(KeyId(1))));
}

#[test]
fn another_key_of_the_same_number_is_forged() {
    let other = KeyFile::generate(SecretKey::new([1; 32]), SecretKey::new([9; 32]), 0);
    let (mut a, mut b) = (envelope("a", Some(&other)), envelope("b", Some(&key_file())));
    assert_eq!(b.open(&seal(&mut a, "b", b"x"), NOW), Err(DatagramError::Forged));
}

/// Three members get the new key file one after the other; after each step everybody can still
/// speak to everybody, and at the end under the new key alone.
#[test]
fn a_rotation_in_any_order_cuts_nobody_off() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in orders {
        let names = ["a", "b", "c"];
        let mut all = names.map(|name| envelope(name, Some(&key_file())));
        for who in order {
            all[who].set_keys(Some(rotated().keyring()));
            // Twice: the second round knows what the first one said of newest keys.
            for _ in 0..2 {
                for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
                    let datagram = seal(&mut all[from], names[to], b"x");
                    assert!(all[to].open(&datagram, NOW).is_ok(), "{from} to {to} in {order:?}");
                }
            }
        }
        assert_eq!(key_used(&seal(&mut all[0], "b", b"x")), 2, "{order:?}");
    }
}

#[test]
fn a_key_that_was_rotated_out_opens_nothing() {
    let mut a = envelope("a", Some(&key_file()));
    let mut b = envelope("b", Some(&rotated()));
    assert!(b.open(&seal(&mut a, "b", b"x"), NOW).is_ok());
    b.set_keys(Some(rotated().rotate(SecretKey::new([4; 32]), 0).keyring()));
    let error = DatagramError::UnknownKey(KeyId(1));
    assert_eq!(b.open(&seal(&mut a, "b", b"x"), NOW), Err(error));
}

#[test]
fn a_member_that_goes_back_to_its_old_key_file_is_understood() {
    let mut a = envelope("a", Some(&rotated()));
    let mut b = envelope("b", Some(&rotated()));
    assert!(b.open(&seal(&mut a, "b", b"x"), NOW).is_ok());
    assert_eq!(key_used(&seal(&mut b, "a", b"x")), 2);
    a.set_keys(Some(key_file().keyring()));
    assert!(b.open(&seal(&mut a, "b", b"x"), NOW).is_ok());
    assert!(a.open(&seal(&mut b, "a", b"x"), NOW).is_ok());
}

#[test]
fn the_memory_of_senders_is_bounded_and_forgets_the_silent_ones() {
    let mut b = envelope("b", None);
    let from = |i: usize| NodeBoot { node: NodeId(i as u64), boot: BootId(1) };
    let datagram = |i: usize, now: u64| {
        Envelope::new(from(i), CLUSTER, None).seal(member("b"), b"x", now, NONCE).unwrap()
    };
    for i in 0..SENDERS_MAX {
        assert!(b.open(&datagram(i, NOW), NOW).is_ok());
    }
    let one_more = datagram(SENDERS_MAX, NOW);
    assert_eq!(b.open(&one_more, NOW), Err(DatagramError::TooManySenders));
    let known = Envelope::new(from(0), CLUSTER, None).seal(member("b"), b"x", NOW, NONCE).unwrap();
    assert_eq!(b.open(&known, NOW), Err(DatagramError::Replayed), "nobody was forgotten for it");
    let later = NOW + CLOCK_MAX_MS + 1;
    assert!(b.open(&datagram(SENDERS_MAX, later), later).is_ok());
    assert_eq!(b.senders.len(), 1);
}

#[test]
fn every_reason_has_its_label() {
    let from = member("a");
    let all = [
        DatagramError::Oversized,
        DatagramError::Truncated,
        DatagramError::NotOurs,
        DatagramError::UnknownVersion(9),
        DatagramError::WrongCluster,
        DatagramError::WrongDestination,
        DatagramError::Plain,
        DatagramError::UnknownKey(KeyId(9)),
        DatagramError::Forged,
        DatagramError::Clock { from, ahead_ms: 1 },
        DatagramError::Replayed,
        DatagramError::TooManySenders,
    ];
    assert_eq!(all.map(|error| error.reason()), DatagramError::REASONS);
}

/// Golden: these bytes are the wire format. Changing them is a breaking change and asks for
/// another version number. The sealed ones were checked with another implementation.
#[test]
fn the_bytes_on_the_wire_never_change() {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (mut sealed, mut plain) = (envelope("a", Some(&rotated())), envelope("a", None));
    assert_eq!(
        hex(&seal(&mut sealed, "b", b"ping")),
        "734701010000000100000002000000000000004dbb8e474c76d85ccc00000000000003e803d17fdd\
         0af4b3af00000000000003e8000001a1f95d3e400000000000000001050505050505050505050505\
         050505050505050505050505646eb2c1f980b2cbe6e2d21d9b2aee75b6bc9738"
    );
    assert_eq!(
        hex(&seal(&mut plain, "b", b"ping")),
        "734701000000000000000000000000000000004dbb8e474c76d85ccc00000000000003e803d17fdd\
         0af4b3af00000000000003e8000001a1f95d3e400000000000000001000000000000000000000000\
         00000000000000000000000070696e6714c227342c18191ed5bfe960ea7cd9c6"
    );
}

proptest! {
    #[test]
    fn open_never_panics_on_any_bytes(
        mut bytes in prop::collection::vec(any::<u8>(), 0..1500),
        like_ours in any::<bool>(),
        kind in 0_u8..3,
        to_me in any::<bool>(),
        now in any::<u64>(),
    ) {
        if like_ours && bytes.len() >= HEADER_BYTES {
            bytes[..4].copy_from_slice(&[b's', b'G', VERSION, kind]);
            bytes[4..8].copy_from_slice(&1_u32.to_be_bytes());
            bytes[12..20].copy_from_slice(&CLUSTER.0.to_be_bytes());
            if to_me {
                bytes[36..44].copy_from_slice(&member("b").node.0.to_be_bytes());
                bytes[44..52].copy_from_slice(&member("b").boot.0.to_be_bytes());
            }
        }
        for (_, mut b) in pairs() {
            prop_assert!(b.open(&bytes, now).is_err());
        }
    }

    /// Whatever the order of arrival: each number comes through at most once, and always when it
    /// is new and not behind the window.
    #[test]
    fn the_replay_window_lets_each_number_through_once(
        steps in prop::collection::vec((0_u64..3000, 0_u64..3), 1..400),
    ) {
        let mut sender = Sender::default();
        let (mut seen, mut highest, mut base) = (BTreeSet::new(), 0, 0);
        for (offset, jump) in steps {
            base += jump * 700;
            let seq = base + offset;
            let header = Header {
                kind: KIND_PLAIN, key: KeyId(0), newest_key: KeyId(0), cluster: CLUSTER,
                from: member("a"), to: member("b"), unix_ms: NOW, seq, nonce: NONCE,
            };
            let in_window = seq > highest || highest - seq < REPLAY_WINDOW;
            let wanted = seq != 0 && in_window && !seen.contains(&seq);
            prop_assert_eq!(sender.accept(&header).is_ok(), wanted, "{} after {}", seq, highest);
            if wanted {
                seen.insert(seq);
                highest = highest.max(seq);
            }
        }
    }
}
