//! Entry points for fuzzing: one function for each thing that reads bytes of others.
//!
//! Each takes any bytes, must return, and asserts what must hold whatever they are: nothing
//! panics, what was read is written and read again as the same, and what is kept stays within its
//! bound. The fuzzer in `fuzz/` calls them, and so do the tests, with the corpus that is checked
//! in, with pieces of it, and with anything.
//!
//! Nothing here is of use in production.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, Uri};
use xxhash_rust::xxh3::xxh3_128;

use crate::claims::{Book, ClaimsUpdate};
use crate::control::{self, Control};
use crate::id::{BootId, ClusterId, NodeBoot, NodeId};
use crate::keys::{KeyFile, SecretKey};
use crate::member::{Card, Phase, Role};
use crate::pins::{Pins, PinsNote};
use crate::session_key::{self, KeySource};
use crate::swim::{SelfDescription, Swim, SwimConfig, SwimEvent, SwimState};
use crate::time::Time;
use crate::wire::datagram::{DATAGRAM_BYTES_MAX, DatagramError, Envelope};
use crate::wire::http as head;
use crate::wire::link::{
    Acceptor, Assembler, ConnectionKind, Dialer, LocalHello, MESSAGE_MAX, Message, Parsed, Side,
    StreamState, parse, put_message,
};

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, by the name of their corpus.
pub const TARGETS: [(&str, Target); 8] = [
    ("link_frames", link_frames),
    ("link_hello", link_hello),
    ("link_heads", link_heads),
    ("datagram", datagram),
    ("swim", swim),
    ("control", control),
    ("key_file", key_file),
    ("session_key", session_key),
];

/// The receiver of everything here.
pub const ME: NodeBoot = NodeBoot { node: NodeId(0x11), boot: BootId(1_000) };
/// The sender of what is authenticated.
pub const PEER: NodeBoot = NodeBoot { node: NodeId(0x22), boot: BootId(2_000) };
/// The cluster of both.
pub const CLUSTER: ClusterId = ClusterId(0x33);
/// The time on the receiver's clock, in Unix milliseconds.
pub const NOW_MS: u64 = 1_700_000_000_000;
/// Shards of the cluster.
pub const N_SHARDS: u32 = 64;
/// All that was ever sealed under [`datagram_keys`].
pub const SEALED: &[u8] = b"gossip";
/// Window of streams.
const WINDOW: u32 = 128 << 10;

/// A connection's bytes: frames, the messages they make, and what those do to a stream.
pub fn link_frames(bytes: &[u8]) {
    let mut assembler = Assembler::default();
    let mut ends = [Side::Opener, Side::Acceptor]
        .map(|side| StreamState::new(side, WINDOW, WINDOW, bytes.len() % 2 == 1));
    let mut rest = bytes;
    while let Ok(parsed) = parse(rest) {
        let (header, payload, taken) = match parsed {
            Parsed::Frame { header, payload, taken } => (header, payload, taken),
            Parsed::Needs(more) => {
                assert!(more > 0, "a reader that waits for nothing waits for ever");
                return;
            }
        };
        assert!(payload.len() < taken && taken <= rest.len());
        rest = &rest[taken..];
        let Ok(message) = assembler.take(header, payload) else { return };
        assert!(assembler.held() <= MESSAGE_MAX);
        if let Some(message) = message {
            ends.iter_mut().for_each(|end| feed_stream(end, &message));
            frame_again(&message);
        }
    }
}

fn feed_stream(end: &mut StreamState, message: &Message) {
    let before = end.clone();
    let len = message.payload.len() as u32;
    match end.receive(message.kind, message.flags, len) {
        Ok(_) => assert!(end.held() <= WINDOW, "more is held than was granted"),
        Err(_) => assert_eq!(*end, before, "a violation changes nothing"),
    }
}

/// A message that was read and is written again is the same message.
fn frame_again(message: &Message) {
    if message.flags & crate::wire::link::flag::MORE != 0 || !message.kind.may_be_cut() {
        return;
    }
    let mut out = Vec::new();
    let Message { kind, flags, stream, payload } = message;
    put_message(&mut out, *kind, *flags, *stream, &[], payload);
    let (mut assembler, mut rest, mut found) = (Assembler::default(), out.as_slice(), None);
    while let Ok(Parsed::Frame { header, payload, taken }) = parse(rest) {
        rest = &rest[taken..];
        found = assembler.take(header, payload).expect("our own frames follow each other");
    }
    assert_eq!(found.as_ref(), Some(message));
}

/// What both sides of a new connection get to read, keys or no keys.
pub fn link_hello(bytes: &[u8]) {
    // The first byte says where hello and proof part.
    let (at, rest) = bytes.split_first().map_or((0, bytes), |(at, rest)| (usize::from(*at), rest));
    let (hello, proof) = rest.split_at(at.min(rest.len()));
    for keys in [vec![], vec![[1; 32], [2; 32]]] {
        let local = local_hello(keys);
        let (mut dialer, _) = Dialer::start(local.clone(), ConnectionKind::Main, [7; 32]);
        if dialer.hello(hello).is_ok() {
            let open = dialer.proof(proof).is_ok();
            assert!(!open || local.keys.is_empty(), "a stranger proved a key");
        }
        let mut acceptor = Acceptor::start(local.clone(), [8; 32]);
        if acceptor.hello(hello).is_ok() {
            let open = acceptor.proof(proof).is_ok();
            assert!(!open || local.keys.is_empty(), "a stranger proved a key");
        }
    }
}

/// What this side of [`link_hello`] says of itself.
#[must_use]
pub fn local_hello(keys: Vec<[u8; 32]>) -> LocalHello {
    LocalHello {
        cluster: CLUSTER,
        who: ME,
        role: Role::Node,
        keys,
        stream_window: WINDOW,
        connection_window: 8 * WINDOW,
        streams_max: 64,
    }
}

/// Heads of requests and answers, trailers and refusals.
pub fn link_heads(bytes: &[u8]) {
    let shared = Bytes::copy_from_slice(bytes);
    if let Ok((meta, parts)) = head::decode_request(shared.clone())
        && let Ok(again) = head::encode_request(&meta, &parts)
    {
        let (meta_again, parts_again) = head::decode_request(again).expect("our own head");
        assert_eq!(meta, meta_again);
        assert_eq!((&parts.method, &parts.uri), (&parts_again.method, &parts_again.uri));
        assert_eq!(parts.headers, parts_again.headers);
        drop(Request::from_parts(parts, ()));
    }
    if let Ok((meta, parts)) = head::decode_response(shared.clone())
        && let Ok(again) = head::encode_response(&meta, &parts)
    {
        let (meta_again, parts_again) = head::decode_response(again).expect("our own head");
        assert_eq!(meta, meta_again);
        assert_eq!((parts.status, &parts.headers), (parts_again.status, &parts_again.headers));
        drop(Response::from_parts(parts, ()));
    }
    if let Ok(trailers) = head::decode_trailers(shared)
        && let Ok(again) = head::encode_trailers(&trailers)
    {
        assert_eq!(head::decode_trailers(again).as_ref(), Ok(&trailers));
    }
    if let Ok(refusal) = head::decode_refusal(bytes) {
        assert_eq!(head::decode_refusal(&head::encode_refusal(&refusal)).as_ref(), Ok(&refusal));
    }
}

/// A datagram from the network, for a member with keys and for one without.
pub fn datagram(bytes: &[u8]) {
    let mut sealed = Envelope::new(ME, CLUSTER, Some(datagram_keys().keyring()));
    if let Ok(opened) = sealed.open(bytes, NOW_MS) {
        // The holder of the key sealed one thing in its life: it is in the corpus.
        assert_eq!((opened.from, &opened.payload[..]), (PEER, SEALED), "forged");
        assert!(sealed.open(bytes, NOW_MS).is_err(), "a datagram came through twice");
    }

    let mut plain = Envelope::new(ME, CLUSTER, None);
    let found = plain.open(bytes, NOW_MS);
    let oversized = matches!(found, Err(DatagramError::Oversized));
    assert_eq!(oversized, bytes.len() > DATAGRAM_BYTES_MAX);
    // Behind the proof, which anybody can make where there are no keys.
    let proven = [bytes, &xxh3_128(bytes).to_be_bytes()].concat();
    if plain.open(&proven, NOW_MS).is_ok() {
        let again = plain.open(&proven, NOW_MS);
        assert!(again.is_err(), "a datagram came through twice");
    }
}

/// The keys of [`datagram`].
#[must_use]
pub fn datagram_keys() -> KeyFile {
    KeyFile::generate(SecretKey::new([1; 32]), SecretKey::new([2; 32]), 0)
}

/// Membership, of an authenticated peer that says anything: its whole list, and one packet.
pub fn swim(bytes: &[u8]) {
    let mut swim = settled(ME);
    let mut actions = vec![];
    let state = settled(PEER).state();
    swim.handle(Time::ZERO, SwimEvent::PushPull { from: PEER, state }, &mut actions);
    if let Ok(state) = SwimState::decode(bytes) {
        assert_eq!(SwimState::decode(&state.encode()).as_ref(), Ok(&state));
        swim.handle(Time::ZERO, SwimEvent::PushPull { from: PEER, state }, &mut actions);
    }
    let payload = Bytes::copy_from_slice(bytes);
    let source = description(PEER).gossip;
    swim.handle(Time::ZERO, SwimEvent::Datagram { from: PEER, source, payload }, &mut actions);
    for _ in 0..32 {
        let Some(now) = swim.deadline() else { break };
        swim.handle(now, SwimEvent::Tick, &mut actions);
    }
    assert!(swim.members().find(ME.node).is_some(), "nobody talks a process out of its own list");
}

/// A member that needs to ask nobody for its name.
#[must_use]
pub fn settled(who: NodeBoot) -> Swim {
    let mut swim = Swim::new(description(who), SwimConfig::default(), 1, Time::ZERO);
    swim.handle(Time::ZERO, SwimEvent::SeedAddrs(vec![]), &mut vec![]);
    swim
}

/// A member as [`swim`] describes it.
#[must_use]
pub fn description(who: NodeBoot) -> SelfDescription {
    let name = format!("node-{}", who.node);
    let card = Card {
        of: who,
        name,
        http: String::from("127.0.0.1:8000"),
        admin: String::new(),
        zone: String::from("a"),
        n_shards: N_SHARDS,
        balance_permille: 1050,
        secret_fingerprint: 9,
        version: String::from("0.1.0"),
    };
    let port = 7000 + (who.node.0 % 1000) as u16;
    SelfDescription {
        card,
        role: Role::Node,
        weight: 1,
        zone: 5,
        gossip: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        phase: Phase::Ready,
    }
}

/// Messages about ownership, and claims and pins as a member's books take them.
pub fn control(bytes: &[u8]) {
    if let Ok(message) = Control::decode(bytes) {
        assert_eq!(Control::decode(&message.encode()).as_ref(), Ok(&message));
        if let Control::WhoHolds { shards, .. } = &message {
            let book = Book::new(N_SHARDS);
            // A question may name a shard as often as it has room for.
            let bounded = &shards[..shards.len().min(64)];
            let (holdings, _) = control::who_holds(&book, N_SHARDS, bounded, |_| true);
            assert!(holdings.is_empty(), "an empty book names nobody");
        }
    }
    if let Ok(update) = ClaimsUpdate::decode(bytes) {
        let again = ClaimsUpdate::decode(&update.encode());
        assert_eq!(again.as_ref(), Ok(&update));
        let mut book = Book::new(N_SHARDS);
        let _ = book.apply(&update);
        let _ = book.apply(&ClaimsUpdate { base: Some(update.pos), ..update.clone() });
        let n_claims: usize = book.owners().map(|(_, n_claims)| n_claims).sum();
        assert!(n_claims <= N_SHARDS as usize, "claims to shards that do not exist");
    }
    if let Ok(note) = control::decode::<PinsNote>(bytes) {
        assert_eq!(control::decode::<PinsNote>(&control::encode(&note)).as_ref(), Ok(&note));
        pins(&note);
    }
}

/// Pins of an authenticated peer that says anything.
fn pins(note: &PinsNote) {
    let PinsNote::Changed(entries) = note else { return };
    let mut book = Pins::default();
    let _ = book.apply(entries, NOW_MS);
    let mut again = Pins::default();
    let reversed: Vec<_> = entries.iter().rev().copied().collect();
    let _ = again.apply(&reversed, NOW_MS);
    assert_eq!(book, again, "the order of what is heard matters");
    let in_force = book.in_force(NOW_MS);
    assert!(in_force.windows(2).all(|pair| pair[0].shard < pair[1].shard));
    // Nothing has a later version than the last one.
    if entries.iter().all(|entry| entry.version < u64::MAX / 2) {
        for entry in in_force {
            let _ = book.unpin(ME.node, entry.shard, NOW_MS);
            assert_eq!(book.pin_of(entry.shard, NOW_MS), None, "what is unpinned is so");
        }
    }
    let _ = book.expire(u64::MAX);
    assert!(book.is_empty(), "nothing is remembered for ever");
}

/// The text of a key file.
pub fn key_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match KeyFile::parse(text) {
        Ok(file) => assert_eq!(KeyFile::parse(&file.render()).as_ref(), Ok(&file)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What a client sends as the key of its session. Lines: path and query, a header, a cookie.
pub fn session_key(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let uri = Uri::try_from(line()).unwrap_or_default();
    let mut headers = HeaderMap::new();
    for name in ["x-session", "cookie"] {
        if let Ok(value) = HeaderValue::from_bytes(line()) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let client = IpAddr::from(Ipv4Addr::LOCALHOST);
    let list = "header:x-session,cookie:sid,path:2,query:s,regex:^/rooms/([^/]+),ip";
    let sources = session_key::parse_list(list).expect("a good list");
    for source in &sources {
        let found = session_key::extract(std::slice::from_ref(source), &uri, &headers, client);
        assert!(!matches!(source, KeySource::Ip) || matches!(found, Ok(Some(_))));
    }
    if let Ok(key) = session_key::extract(&sources, &uri, &headers, client) {
        assert!(key.is_some(), "there always is an address");
    }
    if let Ok(list) = std::str::from_utf8(bytes) {
        for source in session_key::parse_list(list).unwrap_or_default() {
            let printed = source.to_string();
            let again = printed.parse::<KeySource>().expect("what is printed can be read");
            assert_eq!(again.to_string(), printed);
        }
    }
}
