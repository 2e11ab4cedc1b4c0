//! The hello: two processes tell who they are and prove that they know the cluster's key.
//!
//! Each proof is an HMAC over both hellos, nonces included, under a label of its side: it cannot
//! be replayed on another connection, nor sent back to the one who made it.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::flow::{RecvWindow, SendWindow};
use super::frame::{FrameType, put_frame};
use super::reason::CloseReason;
use crate::id::{ClusterId, NodeBoot};
use crate::member::Role;

/// The first bytes of a hello's payload.
pub const MAGIC: [u8; 8] = *b"stead\x00lk";

/// The version this build prefers. It speaks the one before as well.
///
/// 1: handoffs send state behind a closed gate. 2: state is copied while its source serves, in
/// records that version 1 cannot read. 3: nodes hold copies. 4: requests are applied once.
pub const PROTOCOL: u8 = 4;

/// The first version whose nodes answer a request that was applied before with its answer, and
/// whose records tell of those.
pub const ONCE_SINCE: u8 = 4;

/// The oldest version this build speaks.
pub const PROTOCOL_OLDEST: u8 = 1;

/// Longest payload of a hello: more is not one. Room for fields of later versions.
pub const HELLO_BYTES_MAX: usize = 1024;

/// Most keys that a process accepts at a time: the primary one and those being rotated out.
pub const KEYS_MAX: usize = 4;

const NONCE_BYTES: usize = 32;
const DIALER_LABEL: &[u8] = b"stead link 1: dialer";
const ACCEPTOR_LABEL: &[u8] = b"stead link 1: acceptor";

/// What a connection is for. Two members share at most a few of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConnectionKind {
    /// Requests and control.
    Main,
    /// State in bulk; its data frames carry checksums.
    Bulk,
}

/// What one side says first. Later versions append fields; a reader ignores what follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version it speaks.
    pub oldest: u8,
    /// Newest version it speaks.
    pub newest: u8,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node and this start of it.
    pub who: NodeBoot,
    /// What it is.
    pub role: Role,
    /// What the dialer wants the connection for; the acceptor repeats it.
    pub kind: ConnectionKind,
    /// Random, never used twice.
    pub nonce: [u8; NONCE_BYTES],
    /// Body bytes it takes per stream before it consumes any.
    pub stream_window: u32,
    /// The same for all streams of the connection together.
    pub connection_window: u32,
    /// Streams that the peer may have open towards it.
    pub streams_max: u32,
    /// Dialer: names of the keys it accepts, at most [`KEYS_MAX`]. Acceptor: the one it chose.
    /// Empty: it has none.
    pub key_tags: Vec<u64>,
}

/// What this process says of itself in every hello.
#[derive(Clone)]
pub struct LocalHello {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node and this start of it.
    pub who: NodeBoot,
    /// What it is.
    pub role: Role,
    /// Keys it accepts, the primary one first, at most [`KEYS_MAX`]. None: no proof is made or
    /// asked for, and only peers without a key are met.
    pub keys: Vec<[u8; 32]>,
    /// Body bytes taken per stream, at least [`REPLAY_BYTES`](super::REPLAY_BYTES).
    pub stream_window: u32,
    /// Body bytes taken per connection.
    pub connection_window: u32,
    /// Streams that a peer may have open.
    pub streams_max: u32,
}

impl std::fmt::Debug for LocalHello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalHello")
            .field("cluster", &self.cluster)
            .field("who", &self.who)
            .field("role", &self.role)
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

impl LocalHello {
    fn hello(&self, kind: ConnectionKind, nonce: [u8; NONCE_BYTES], key_tags: Vec<u64>) -> Hello {
        Hello {
            oldest: PROTOCOL_OLDEST,
            newest: PROTOCOL,
            cluster: self.cluster,
            who: self.who,
            role: self.role,
            kind,
            nonce,
            stream_window: self.stream_window,
            connection_window: self.connection_window,
            streams_max: self.streams_max,
            key_tags,
        }
    }

    /// The key called `tag`.
    fn key(&self, tag: u64) -> Option<&[u8; 32]> {
        self.keys.iter().take(KEYS_MAX).find(|key| key_tag(key) == tag)
    }
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// What the peer said.
    pub peer: Hello,
    /// The version both speak from now on.
    pub version: u8,
}

impl Agreed {
    /// The connection's windows: what we may send and what we take.
    #[must_use]
    pub fn windows(&self, local: &LocalHello) -> (SendWindow, RecvWindow) {
        (SendWindow::new(self.peer.connection_window), RecvWindow::new(local.connection_window))
    }
}

/// The newest version that both ranges `(oldest, newest)` contain.
#[must_use]
pub fn negotiate(mine: (u8, u8), theirs: (u8, u8)) -> Option<u8> {
    let newest = mine.1.min(theirs.1);
    (newest >= mine.0.max(theirs.0)).then_some(newest)
}

/// A public name of a key, so that two sides find one in common without telling it.
fn key_tag(key: &[u8; 32]) -> u64 {
    let tag = hmac(key, &[b"stead link 1: key tag"]).finalize().into_bytes();
    let (first, _) = tag.split_first_chunk::<8>().expect("a SHA-256 has 32 bytes");
    u64::from_be_bytes(*first)
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(&(part.len() as u32).to_be_bytes());
        mac.update(part);
    }
    mac
}

fn encode(hello: &Hello) -> Vec<u8> {
    postcard::to_extend(hello, MAGIC.to_vec()).expect("a vector takes everything")
}

/// Reads the payload of a hello and checks what needs no key.
fn decode(payload: &[u8], local: &LocalHello) -> Result<Agreed, CloseReason> {
    let body = payload.strip_prefix(&MAGIC[..]).ok_or(CloseReason::Garbage)?;
    if payload.len() > HELLO_BYTES_MAX {
        return Err(CloseReason::Garbage);
    }
    let (peer, _later) =
        postcard::take_from_bytes::<Hello>(body).map_err(|_| CloseReason::Garbage)?;
    let version = negotiate((PROTOCOL_OLDEST, PROTOCOL), (peer.oldest, peer.newest))
        .ok_or(CloseReason::Version)?;
    if peer.cluster != local.cluster {
        return Err(CloseReason::WrongCluster);
    }
    Ok(Agreed { peer, version })
}

/// Appends the proof of `label`'s side; an empty one where no key is in use.
fn put_proof(out: &mut Vec<u8>, key: Option<&[u8; 32]>, label: &[u8], hellos: [&[u8]; 2]) {
    let Some(key) = key else {
        put_frame(out, FrameType::Proof, 0, 0, &[]);
        return;
    };
    let proof = hmac(key, &[label, hellos[0], hellos[1]]).finalize().into_bytes();
    put_frame(out, FrameType::Proof, 0, 0, &proof);
}

fn check_proof(
    key: Option<&[u8; 32]>,
    label: &[u8],
    hellos: [&[u8]; 2],
    proof: &[u8],
) -> Result<(), CloseReason> {
    let ok = match key {
        Some(key) => hmac(key, &[label, hellos[0], hellos[1]]).verify_slice(proof).is_ok(),
        None => proof.is_empty(),
    };
    if ok { Ok(()) } else { Err(CloseReason::WrongKey) }
}

/// The side that connected.
#[derive(Debug)]
pub struct Dialer {
    local: LocalHello,
    mine: Vec<u8>,
    theirs: Vec<u8>,
    agreed: Option<Agreed>,
}

impl Dialer {
    /// Starts; the bytes go out first. `nonce` must be random and new.
    #[must_use]
    pub fn start(local: LocalHello, kind: ConnectionKind, nonce: [u8; 32]) -> (Self, Vec<u8>) {
        let tags = local.keys.iter().take(KEYS_MAX).map(key_tag).collect();
        let mine = encode(&local.hello(kind, nonce, tags));
        let mut out = Vec::new();
        put_frame(&mut out, FrameType::Hello, 0, 0, &mine);
        (Self { local, mine, theirs: Vec::new(), agreed: None }, out)
    }

    /// The acceptor's hello came.
    ///
    /// # Errors
    /// The reason to close the connection with.
    pub fn hello(&mut self, payload: &[u8]) -> Result<(), CloseReason> {
        if self.agreed.is_some() {
            return Err(CloseReason::Garbage);
        }
        self.agreed = Some(decode(payload, &self.local)?);
        self.theirs = payload.to_vec();
        Ok(())
    }

    /// The acceptor's proof came. On success the bytes go out, and the connection is open.
    ///
    /// # Errors
    /// The reason to close the connection with.
    pub fn proof(self, payload: &[u8]) -> Result<(Agreed, Vec<u8>), CloseReason> {
        let agreed = self.agreed.ok_or(CloseReason::Garbage)?;
        let key = match agreed.peer.key_tags.first() {
            Some(tag) => Some(self.local.key(*tag).ok_or(CloseReason::WrongKey)?),
            None if self.local.keys.is_empty() => None,
            None => return Err(CloseReason::WrongKey),
        };
        let hellos = [self.mine.as_slice(), self.theirs.as_slice()];
        check_proof(key, ACCEPTOR_LABEL, hellos, payload)?;
        let mut out = Vec::new();
        put_proof(&mut out, key, DIALER_LABEL, hellos);
        Ok((agreed, out))
    }
}

/// The side that was connected to.
#[derive(Debug)]
pub struct Acceptor {
    local: LocalHello,
    nonce: [u8; 32],
    hellos: Option<(Vec<u8>, Vec<u8>)>,
    agreed: Option<Agreed>,
    tag: Option<u64>,
}

impl Acceptor {
    /// Waits for a hello. `nonce` must be random and new.
    #[must_use]
    pub fn start(local: LocalHello, nonce: [u8; 32]) -> Self {
        Self { local, nonce, hellos: None, agreed: None, tag: None }
    }

    /// The dialer's hello came; the bytes answer it.
    ///
    /// # Errors
    /// The reason to close the connection with.
    pub fn hello(&mut self, payload: &[u8]) -> Result<Vec<u8>, CloseReason> {
        if self.agreed.is_some() {
            return Err(CloseReason::Garbage);
        }
        let agreed = decode(payload, &self.local)?;
        self.tag = self.common_key(&agreed.peer.key_tags)?;
        let key = self.tag.and_then(|tag| self.local.key(tag));
        let tags = self.tag.into_iter().collect();
        let mine = encode(&self.local.hello(agreed.peer.kind, self.nonce, tags));
        let mut out = Vec::new();
        put_frame(&mut out, FrameType::Hello, 0, 0, &mine);
        put_proof(&mut out, key, ACCEPTOR_LABEL, [payload, &mine]);
        self.hellos = Some((payload.to_vec(), mine));
        self.agreed = Some(agreed);
        Ok(out)
    }

    /// The first of our keys that the peer accepts; none when neither side has one.
    fn common_key(&self, theirs: &[u64]) -> Result<Option<u64>, CloseReason> {
        if self.local.keys.is_empty() && theirs.is_empty() {
            return Ok(None);
        }
        let mut mine = self.local.keys.iter().take(KEYS_MAX).map(key_tag);
        let tag = mine.find(|tag| theirs.iter().take(KEYS_MAX).any(|their| their == tag));
        tag.map(Some).ok_or(CloseReason::WrongKey)
    }

    /// The dialer's proof came: the connection is open.
    ///
    /// # Errors
    /// The reason to close the connection with.
    pub fn proof(self, payload: &[u8]) -> Result<Agreed, CloseReason> {
        let (agreed, (theirs, mine)) = self.agreed.zip(self.hellos).ok_or(CloseReason::Garbage)?;
        let key = self.tag.and_then(|tag| self.local.key(tag));
        check_proof(key, DIALER_LABEL, [&theirs, &mine], payload)?;
        Ok(agreed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::{Parsed, parse};
    use super::*;
    use crate::id::{BootId, NodeId};

    fn local(name: &str, keys: &[u8]) -> LocalHello {
        LocalHello {
            cluster: ClusterId::of_name("test"),
            who: NodeBoot { node: NodeId::of_name(name), boot: BootId(7) },
            role: Role::Node,
            keys: keys.iter().map(|byte| [*byte; 32]).collect(),
            stream_window: 1 << 18,
            connection_window: 1 << 22,
            streams_max: 1000,
        }
    }

    fn payloads(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let Ok(Parsed::Frame { payload, taken, .. }) = parse(bytes) {
            all.push(payload.to_vec());
            bytes = &bytes[taken..];
        }
        all
    }

    /// Both sides in turn; what each one comes to.
    fn shake(dialer: LocalHello, acceptor: LocalHello) -> Result<(Agreed, Agreed), CloseReason> {
        let (mut dialer, first) = Dialer::start(dialer, ConnectionKind::Main, [1; 32]);
        let mut acceptor = Acceptor::start(acceptor, [2; 32]);
        let answer = payloads(&acceptor.hello(&payloads(&first)[0])?);
        dialer.hello(&answer[0])?;
        let (at_dialer, proof) = dialer.proof(&answer[1])?;
        let at_acceptor = acceptor.proof(&payloads(&proof)[0])?;
        Ok((at_dialer, at_acceptor))
    }

    #[test]
    fn two_members_with_a_key_in_common_meet() {
        for (a, b) in [(&[1][..], &[1][..]), (&[], &[]), (&[2, 1], &[1]), (&[1], &[2, 1])] {
            let (at_a, at_b) = shake(local("a", a), local("b", b)).unwrap();
            assert_eq!(at_a.peer.who.node, NodeId::of_name("b"));
            assert_eq!(at_b.peer.who.node, NodeId::of_name("a"));
            assert_eq!((at_a.version, at_b.version), (PROTOCOL, PROTOCOL));
        }
    }

    #[test]
    fn strangers_do_not_meet() {
        for (a, b) in [(&[1][..], &[2][..]), (&[], &[1]), (&[1], &[])] {
            assert_eq!(shake(local("a", a), local("b", b)), Err(CloseReason::WrongKey));
        }
        let mut other = local("b", &[1]);
        other.cluster = ClusterId::of_name("other");
        assert_eq!(shake(local("a", &[1]), other), Err(CloseReason::WrongCluster));
    }

    #[test]
    fn knowing_the_name_of_a_key_is_not_knowing_the_key() {
        let (_, first) = Dialer::start(local("a", &[1]), ConnectionKind::Main, [1; 32]);
        let mut acceptor = Acceptor::start(local("b", &[1]), [2; 32]);
        let answer = payloads(&acceptor.hello(&payloads(&first)[0]).unwrap());
        // Sending the acceptor its own proof back does not help either.
        assert_eq!(acceptor.proof(&answer[1]), Err(CloseReason::WrongKey));
    }

    #[test]
    fn neighbouring_versions_meet_and_distant_ones_do_not() {
        assert_eq!(negotiate((1, 1), (1, 1)), Some(1));
        assert_eq!(negotiate((1, 2), (2, 3)), Some(2));
        assert_eq!(negotiate((2, 3), (1, 2)), Some(2));
        assert_eq!(negotiate((1, 1), (2, 3)), None);
        assert_eq!(negotiate((3, 4), (1, 2)), None);
    }

    #[test]
    fn a_hello_with_fields_of_a_later_version_is_read() {
        let me = local("a", &[]);
        let mut bytes = encode(&me.hello(ConnectionKind::Bulk, [3; 32], Vec::new()));
        bytes.extend_from_slice(b"something new");
        assert_eq!(decode(&bytes, &me).unwrap().peer.kind, ConnectionKind::Bulk);
    }

    #[test]
    fn a_hello_looks_the_same_for_ever() {
        let bytes = encode(&local("n1", &[]).hello(ConnectionKind::Main, [9; 32], vec![5]));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = [
            "7374656164006c6b",       // magic
            "0104",                   // versions
            "dd89abc9a891a4e53f",     // cluster
            "9fb68ca1baccf9949c0107", // node and boot
            "0000",                   // role, kind
            "09090909090909090909090909090909",
            "09090909090909090909090909090909", // nonce
            "80801080808002e807",               // windows, streams
            "0105",                             // key tags
        ];
        assert_eq!(hex, golden.concat());
        assert_eq!(format!("{:016x}", key_tag(&[1; 32])), "6e96db5b9399ee9f");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_hello_or_a_reason(mut bytes in prop::collection::vec(any::<u8>(), 0..300), magic: bool) {
            if magic {
                bytes.splice(0..0, MAGIC);
            }
            let _ = decode(&bytes, &local("a", &[1]));
            let mut acceptor = Acceptor::start(local("b", &[1]), [2; 32]);
            let _ = acceptor.hello(&bytes);
            prop_assert!(acceptor.proof(&bytes).is_err());
        }
    }
}
