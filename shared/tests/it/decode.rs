//! Whatever bytes arrive, nothing panics. The fuzzer's targets with the corpus that is checked
//! in, with damaged pieces of it, and with anything; and golden bytes of what goes over the wire.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use stead_shared::claims::{ClaimLog, ClaimsUpdate};
use stead_shared::control::{self, Control, HandoffId, NotNow, ShardEpoch, ShardRange};
use stead_shared::fuzz::{
    CLUSTER, ME, NOW_MS, PEER, SEALED, TARGETS, datagram_keys, local_hello, settled,
};
use stead_shared::id::{Epoch, RequestId, SessionKey, ShardId};
use stead_shared::keys::{KeyFile, SecretKey};
use stead_shared::pins::{PinKind, PinOrder, Pins, PinsNote};
use stead_shared::refusal::{Claim, Refusal};
use stead_shared::swim::{SwimAction, SwimEvent};
use stead_shared::time::Time;
use stead_shared::wire::datagram::Envelope;
use stead_shared::wire::http::{
    RequestMeta, ResponseMeta, encode_refusal, encode_request, encode_response, encode_trailers,
};
use stead_shared::wire::link::{
    Acceptor, ConnectionKind, Dialer, FrameType, HEADER_BYTES, flag, put_frame, put_message,
};

fn corpus_of(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

/// Every file of a target's corpus.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(corpus_of(target)).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort_unstable();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// The bytes of the checked-in file; written anew when `UPDATE_GOLDEN` is set.
fn check(target: &str, name: &str, found: &[u8]) {
    let path = corpus_of(target).join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(corpus_of(target)).unwrap();
        std::fs::write(&path, found).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert!(golden == found, "{} is not what is written today", path.display());
}

#[test]
fn every_target_takes_its_corpus() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(corpus.len() >= 2, "{name} has a corpus");
        corpus.iter().for_each(|bytes| target(bytes));
    }
}

#[test]
fn every_target_takes_every_beginning_of_its_corpus() {
    for (name, target) in TARGETS {
        for bytes in corpus(name) {
            (0..bytes.len().min(300)).for_each(|end| target(&bytes[..end]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_target_takes_anything(bytes in vec(any::<u8>(), 0..600)) {
        TARGETS.iter().for_each(|(_, target)| target(&bytes));
    }

    #[test]
    fn every_target_takes_a_damaged_corpus(
        changes in vec((any::<Index>(), any::<u8>()), 1..6),
        file: Index,
        cut: Index,
        tail in vec(any::<u8>(), 0..20)
    ) {
        for (name, target) in TARGETS {
            let corpus = corpus(name);
            let mut bytes = file.get(&corpus).clone();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            target(&bytes);
            bytes.truncate(cut.index(bytes.len() + 1));
            bytes.extend(&tail);
            target(&bytes);
        }
    }
}

fn epoch(counter: u64) -> Epoch {
    Epoch { counter, node: PEER.node }
}

fn frame(kind: FrameType, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(&mut out, kind, flags, stream, payload);
    out
}

#[test]
fn frames_look_as_they_always_did() {
    let opened = [
        frame(FrameType::Open, flag::FIN, 1, b"head"),
        frame(FrameType::Accepted, 0, 1, b""),
        frame(FrameType::Head, 0, 1, b"answer"),
        frame(FrameType::Data, flag::CHECKSUM, 1, b"body"),
        frame(FrameType::End, flag::FIN | flag::MARK, 1, b"trailers"),
    ];
    check("link_frames", "golden-stream", &opened.concat());
    let control = [
        frame(FrameType::Ping, 0, 0, &[1; 8]),
        frame(FrameType::Credit, 0, 3, &[0, 1, 0, 0]),
        frame(FrameType::Refused, flag::FIN, 5, b"why"),
        frame(FrameType::Reset, 0, 7, &[2]),
        frame(FrameType::Close, 0, 0, &[1]),
    ];
    check("link_frames", "golden-control", &control.concat());
    let mut cut = Vec::new();
    put_message(&mut cut, FrameType::Call, flag::CHECKSUM, 9, &[1], &[b'x'; 20_000]);
    check("link_frames", "golden-cut", &cut);
}

/// A hello of `ours` and the proof that follows, as `link_hello` parts them.
fn hello_and_proof(frames: &[u8]) -> Vec<u8> {
    let len = usize::from(u16::from_be_bytes([frames[2], frames[3]]));
    let (hello, proof) = frames[HEADER_BYTES..].split_at(len);
    let proof = proof.get(HEADER_BYTES..).unwrap_or_default();
    let mut out = vec![u8::try_from(len).unwrap()];
    out.extend_from_slice(hello);
    out.extend_from_slice(proof);
    out
}

#[test]
fn hellos_look_as_they_always_did() {
    for (name, keys) in [("golden-plain", vec![]), ("golden-proven", vec![[1; 32], [2; 32]])] {
        let local = local_hello(keys);
        let (_, dialer) = Dialer::start(local.clone(), ConnectionKind::Bulk, [3; 32]);
        check("link_hello", &format!("{name}-dialer"), &hello_and_proof(&dialer));
        let hello = hello_and_proof(&dialer);
        let answer = Acceptor::start(local, [4; 32]).hello(&hello[1..]).unwrap();
        check("link_hello", &format!("{name}-acceptor"), &hello_and_proof(&answer));
    }
}

#[test]
fn heads_look_as_they_always_did() {
    let meta = RequestMeta {
        shard: ShardId(7),
        epoch: Some(epoch(3)),
        key: SessionKey::new("alice").unwrap(),
        id: RequestId { boot: PEER.boot, counter: 5 },
        attempt: 1,
        first_sent_ms: NOW_MS,
        deadline_ms: 30_000,
        client: IpAddr::from(Ipv4Addr::LOCALHOST),
        upgrade: false,
    };
    let request = Request::post("/sessions/alice/counters/visits?by=1")
        .header("host", "localhost:8080")
        .header("cookie", "sid=alice")
        .header("x-odd", "1");
    let (parts, ()) = request.body(()).unwrap().into_parts();
    check("link_heads", "golden-request", &encode_request(&meta, &parts).unwrap());

    let meta = ResponseMeta { shard: ShardId(7), epoch: epoch(3), length: Some(11), pressure: 2 };
    let response = Response::builder().status(201).header("etag", "\"3.1\"");
    let (parts, ()) = response.body(()).unwrap().into_parts();
    check("link_heads", "golden-response", &encode_response(&meta, &parts).unwrap());

    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    check("link_heads", "golden-trailers", &encode_trailers(&trailers).unwrap());
    let refusal = Refusal::NotOwner { claim: Some(Claim { epoch: epoch(4) }) };
    check("link_heads", "golden-refusal", &encode_refusal(&refusal));
}

#[test]
fn datagrams_look_as_they_always_did() {
    let seal = |keys| Envelope::new(PEER, CLUSTER, keys).seal(ME, SEALED, NOW_MS, [6; 24]);
    check("datagram", "golden-plain", &seal(None).unwrap());
    let keys = datagram_keys();
    check("datagram", "golden-sealed", &seal(Some(keys.keyring())).unwrap());
    // Under a key that the receiver has not.
    let twice = keys.rotate(SecretKey::new([5; 32]), 1).rotate(SecretKey::new([6; 32]), 2);
    check("datagram", "golden-unknown-key", &seal(Some(twice.keyring())).unwrap());
}

#[test]
fn membership_looks_as_it_always_did() {
    let mut swims = [settled(ME), settled(PEER)];
    check("swim", "golden-state-of-one", &swims[0].state().encode());
    let mut actions = vec![];
    let state = swims[1].state();
    swims[0].handle(Time::ZERO, SwimEvent::PushPull { from: PEER, state }, &mut actions);
    check("swim", "golden-state-of-two", &swims[0].state().encode());
    for _ in 0..100 {
        let now = swims[0].deadline().unwrap();
        swims[0].handle(now, SwimEvent::Tick, &mut actions);
    }
    let sent = actions.into_iter().find_map(|action| match action {
        SwimAction::Send { payload, .. } => Some(payload),
        _ => None,
    });
    check("swim", "golden-packet", &sent.unwrap());
}

#[test]
fn messages_about_ownership_look_as_they_always_did() {
    let handoff = HandoffId { source: PEER, number: 3 };
    let shards = vec![ShardEpoch { shard: ShardId(5), epoch: epoch(9) }];
    let ranges = vec![ShardRange { first: 0, len: 8 }, ShardRange { first: 60, len: u32::MAX }];
    let messages = [
        ("propose", Control::Propose { token: 1, members: vec![ME, PEER] }),
        ("reject", Control::Reject { token: 1, rather: PEER }),
        ("who-holds", Control::WhoHolds { token: 2, members_digest: 4, shards: ranges }),
        (
            "prepare",
            Control::Prepare { handoff, members_digest: 4, shards: shards.clone(), drain: true },
        ),
        ("declined", Control::Declined { handoff, why: NotNow::Busy }),
        ("grant", Control::Grant { handoff, shards: shards.clone() }),
        ("relay", Control::Relay { to: ME.node, handoff, shards: shards.clone() }),
        ("served", Control::Served { handoff, shards }),
    ];
    for (name, message) in messages {
        check("control", &format!("golden-{name}"), &message.encode());
    }
    let mut log = ClaimLog::new(PEER);
    (0..20).for_each(|shard| log.claim(ShardId(shard), 1));
    log.claim(ShardId(40), 7);
    let encoded = |update: &ClaimsUpdate| -> Bytes { control::encode(update) };
    check("control", "golden-claims", &encoded(&log.full()));
    log.release(ShardId(3));
    check("control", "golden-claims-changed", &encoded(&log.commit().unwrap()));
}

#[test]
fn notes_about_pins_look_as_they_always_did() {
    let order = |shard: u32, kind: PinKind| PinOrder {
        shard: ShardId(shard),
        node: PEER.node,
        kind,
        keep: Duration::from_secs(3600),
    };
    let mut pins = Pins::default();
    let mut written = pins.pin(ME.node, order(5, PinKind::Hand), NOW_MS).unwrap();
    written.extend(pins.pin(ME.node, order(60, PinKind::Heat), NOW_MS).unwrap());
    written.extend(pins.unpin(PEER.node, ShardId(5), NOW_MS + 1));
    let note = |note: &PinsNote| -> Bytes { control::encode(note) };
    check("control", "golden-pins", &note(&PinsNote::Changed(written)));
    check("control", "golden-pins-digest", &note(&PinsNote::Digest(pins.digest())));
    check("control", "golden-pins-wanted", &note(&PinsNote::Wanted));
}

#[test]
fn key_files_look_as_they_always_did() {
    let file = KeyFile::generate(SecretKey::new([1; 32]), SecretKey::new([2; 32]), 1_700_000_000);
    check("key_file", "golden-new", file.render().as_bytes());
    let rotated = file.rotate(SecretKey::new([3; 32]), 1_700_000_100);
    check("key_file", "golden-rotated", rotated.render().as_bytes());
}

/// Not golden, but something for the fuzzer to begin with.
#[test]
fn the_corpus_of_session_keys_is_there() {
    check("session_key", "percent", b"/sessions/al%69ce?s=b%20ob\n\nsid=carol; other=1");
    check("session_key", "header", b"/rooms/7/x\ntoken-1\n");
    check("session_key", "list", b"header:x-a,regex:^/r/(\\w{1,8}),ip");
}
