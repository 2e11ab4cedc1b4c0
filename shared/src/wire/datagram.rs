//! The envelope of every gossip datagram: who sends what to whom, when, and the proof of it.
//!
//! ```text
//!  0 magic "sG" | 2 version | 3 kind: 0 plain, 1 sealed
//!  4 id of the key used | 8 id of the newest key that the sender has   (both 0 when plain)
//! 12 cluster id | 20 sender node, boot | 36 destination node, boot
//! 52 Unix milliseconds | 60 sequence number | 68 nonce (24 bytes, 0 when plain)
//! 92 payload | 16 bytes of proof
//! ```
//! All numbers are big endian. *Sealed*: XChaCha20-Poly1305, the header as associated data.
//! *Plain*: an XXH3-128 of everything before it; it finds damage and stray packets, and proves
//! nothing against somebody who means harm, so it is for loopback and for networks that are
//! trusted aloud.
//!
//! What [`Envelope::open`] lets through was sealed by a holder of a key of this cluster, for this
//! very boot of this member, at most [`CLOCK_MAX_MS`] from now by our clock, and comes through
//! once. Everything else is a [`DatagramError`]: count it, never answer it.
//!
//! Nonces are random: 24 bytes are enough that none repeats in the life of a key, without any
//! state that would have to survive a restart.
//!
//! **Rotation** needs no order and no haste: a member whose newest key we have heard of is spoken
//! to under the newest key that both have, any other one under our oldest.

use std::collections::BTreeMap;

use bytes::Bytes;
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use xxhash_rust::xxh3::xxh3_128;

use crate::id::{BootId, ClusterId, NodeBoot, NodeId};
use crate::keys::{GossipKey, KeyId, Keyring};

/// Most bytes of a datagram. Fits the 1,450 bytes that a VXLAN tunnel leaves of an Ethernet
/// frame, with the headers of IPv6 and UDP.
pub const DATAGRAM_BYTES_MAX: usize = 1400;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 92;

/// Bytes of the proof at the end.
pub const PROOF_BYTES: usize = 16;

/// Most bytes of payload.
pub const PAYLOAD_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - HEADER_BYTES - PROOF_BYTES;

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 24;

/// Farthest that a sender's clock may be from ours, in milliseconds.
pub const CLOCK_MAX_MS: u64 = 30_000;

/// Sequence numbers per sender that may arrive out of order.
pub const REPLAY_WINDOW: u64 = 1024;

/// Most senders (node and boot) that are remembered. At 160 bytes each, 640 KiB.
pub const SENDERS_MAX: usize = 4096;

const MAGIC: [u8; 2] = *b"sG";
const VERSION: u8 = 1;
const KIND_PLAIN: u8 = 0;
const KIND_SEALED: u8 = 1;

/// Why a datagram was dropped. It is not answered, and nothing has changed but, for some, the
/// memory of senders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Longer than [`DATAGRAM_BYTES_MAX`].
    #[error("longer than {DATAGRAM_BYTES_MAX} bytes")]
    Oversized,
    /// Too short for header and proof.
    #[error("too short for a header")]
    Truncated,
    /// Does not begin like one of ours.
    #[error("not a datagram of stead")]
    NotOurs,
    /// Of a version of the envelope that this program does not know.
    #[error("envelope version {0} is unknown here")]
    UnknownVersion(u8),
    /// Of another cluster on the same network.
    #[error("of another cluster; do the `--cluster` names agree?")]
    WrongCluster,
    /// For another member, or for an earlier boot of this one.
    #[error("for another member or another boot of this one")]
    WrongDestination,
    /// Plain, while this member has keys.
    #[error("not sealed, while this member has a key file; has its sender one?")]
    Plain,
    /// Sealed under a key that this member does not have, any more or yet.
    #[error("sealed under key {0}, which is not in the key file here")]
    UnknownKey(KeyId),
    /// The proof is wrong: forged, damaged, or sealed under another key of the same number.
    #[error("forged, damaged, or sealed by another cluster's key")]
    Forged,
    /// Genuine, and from another time: late by a replay, or a clock is wrong.
    #[error("the clock of {from:?} is {ahead_ms} ms ahead of ours; is it set by NTP?")]
    Clock {
        /// The sender.
        from: NodeBoot,
        /// By how much it is ahead of ours.
        ahead_ms: i64,
    },
    /// Genuine, and seen before, or behind [`REPLAY_WINDOW`] later ones.
    #[error("seen before")]
    Replayed,
    /// Genuine, and from one more sender than can be remembered.
    #[error("more than {SENDERS_MAX} senders at once")]
    TooManySenders,
}

impl DatagramError {
    /// Every value of [`Self::reason`].
    pub const REASONS: [&'static str; 12] = [
        "oversized",
        "truncated",
        "not_ours",
        "unknown_version",
        "wrong_cluster",
        "wrong_destination",
        "plain",
        "unknown_key",
        "forged",
        "clock",
        "replayed",
        "too_many_senders",
    ];

    /// The position of the reason in [`Self::REASONS`].
    #[must_use]
    pub fn reason_idx(&self) -> usize {
        match self {
            Self::Oversized => 0,
            Self::Truncated => 1,
            Self::NotOurs => 2,
            Self::UnknownVersion(_) => 3,
            Self::WrongCluster => 4,
            Self::WrongDestination => 5,
            Self::Plain => 6,
            Self::UnknownKey(_) => 7,
            Self::Forged => 8,
            Self::Clock { .. } => 9,
            Self::Replayed => 10,
            Self::TooManySenders => 11,
        }
    }

    /// The label of the metric that counts it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        Self::REASONS[self.reason_idx()]
    }
}

/// A payload that does not fit into a datagram. Nothing was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {0} bytes, at most {PAYLOAD_BYTES_MAX} fit into a datagram")]
pub struct PayloadTooLong(pub usize);

/// A datagram that came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Who sealed it.
    pub from: NodeBoot,
    /// What it says.
    pub payload: Bytes,
}

/// Seals and opens the datagrams of one member.
#[derive(Debug)]
pub struct Envelope {
    me: NodeBoot,
    cluster: ClusterId,
    keys: Option<Keyring>,
    last_seq: u64,
    senders: BTreeMap<NodeBoot, Sender>,
}

impl Envelope {
    /// The envelope of `me`; plain without `keys`.
    #[must_use]
    pub fn new(me: NodeBoot, cluster: ClusterId, keys: Option<Keyring>) -> Self {
        Self { me, cluster, keys, last_seq: 0, senders: BTreeMap::new() }
    }

    /// Replaces the keys. What was sealed under a key that is gone is dropped from now on.
    pub fn set_keys(&mut self, keys: Option<Keyring>) {
        self.keys = keys;
    }

    /// Another boot id of ours: a dead boot of this name was newer than we thought.
    pub fn set_boot(&mut self, boot: BootId) {
        self.me.boot = boot;
    }

    /// The keys in use.
    #[must_use]
    pub fn keys(&self) -> Option<&Keyring> {
        self.keys.as_ref()
    }

    /// Seals `payload` for `to`. `nonce` must be random and used once.
    ///
    /// # Errors
    /// When it has more than [`PAYLOAD_BYTES_MAX`] bytes.
    pub fn seal(
        &mut self,
        to: NodeBoot,
        payload: &[u8],
        unix_ms: u64,
        nonce: [u8; NONCE_BYTES],
    ) -> Result<Vec<u8>, PayloadTooLong> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(PayloadTooLong(payload.len()));
        }
        self.last_seq += 1;
        let key = self.keys.as_ref().map(|keys| {
            let theirs = self.senders.get(&to).and_then(|sender| sender.newest_key);
            (keys.shared_with(theirs), keys.newest().id)
        });
        let header = Header {
            kind: if key.is_some() { KIND_SEALED } else { KIND_PLAIN },
            key: key.map_or(KeyId(0), |(key, _)| key.id),
            newest_key: key.map_or(KeyId(0), |(_, newest)| newest),
            cluster: self.cluster,
            from: self.me,
            to,
            unix_ms,
            seq: self.last_seq,
            nonce: if key.is_some() { nonce } else { [0; NONCE_BYTES] },
        };
        let mut datagram = Vec::with_capacity(HEADER_BYTES + payload.len() + PROOF_BYTES);
        header.write(&mut datagram);
        datagram.extend_from_slice(payload);
        let proof = match key {
            Some((key, _)) => encrypt(key, &nonce, &mut datagram),
            None => xxh3_128(&datagram).to_be_bytes(),
        };
        datagram.extend_from_slice(&proof);
        Ok(datagram)
    }

    /// Opens what came from the network.
    ///
    /// # Errors
    /// [`DatagramError`]; no bytes make it panic.
    pub fn open(&mut self, datagram: &[u8], unix_ms: u64) -> Result<Opened, DatagramError> {
        if datagram.len() > DATAGRAM_BYTES_MAX {
            return Err(DatagramError::Oversized);
        }
        let header = Header::read(datagram)?;
        if header.cluster != self.cluster {
            return Err(DatagramError::WrongCluster);
        }
        if header.to != self.me {
            return Err(DatagramError::WrongDestination);
        }
        let payload = self.prove(&header, datagram)?;
        if header.unix_ms.abs_diff(unix_ms) > CLOCK_MAX_MS {
            let ahead_ms = header.unix_ms.wrapping_sub(unix_ms).cast_signed();
            return Err(DatagramError::Clock { from: header.from, ahead_ms });
        }
        self.remember(&header, unix_ms)?;
        Ok(Opened { from: header.from, payload: payload.into() })
    }

    fn prove(&self, header: &Header, datagram: &[u8]) -> Result<Vec<u8>, DatagramError> {
        let (rest, proof) =
            datagram.split_last_chunk::<PROOF_BYTES>().ok_or(DatagramError::Truncated)?;
        let (associated, body) = rest.split_at(HEADER_BYTES);
        match (&self.keys, header.kind) {
            (None, KIND_PLAIN) if xxh3_128(rest).to_be_bytes() == *proof => Ok(body.to_vec()),
            (None, KIND_PLAIN) => Err(DatagramError::Forged),
            (None, _) => Err(DatagramError::UnknownKey(header.key)),
            (Some(_), KIND_PLAIN) => Err(DatagramError::Plain),
            (Some(keys), _) => {
                let key = keys.find(header.key).ok_or(DatagramError::UnknownKey(header.key))?;
                let mut body = body.to_vec();
                cipher(key)
                    .decrypt_inout_detached(
                        &header.nonce.into(),
                        associated,
                        body.as_mut_slice().into(),
                        &(*proof).into(),
                    )
                    .map_err(|_| DatagramError::Forged)?;
                Ok(body)
            }
        }
    }

    fn remember(&mut self, header: &Header, unix_ms: u64) -> Result<(), DatagramError> {
        if self.senders.len() >= SENDERS_MAX && !self.senders.contains_key(&header.from) {
            // All that such a sender ever sealed is refused by its time stamp.
            self.senders
                .retain(|_, sender| sender.newest_ms.saturating_add(CLOCK_MAX_MS) >= unix_ms);
            if self.senders.len() >= SENDERS_MAX {
                return Err(DatagramError::TooManySenders);
            }
        }
        self.senders.entry(header.from).or_default().accept(header)
    }
}

fn cipher(key: &GossipKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.key.as_bytes().into())
}

/// Encrypts what follows the header in place and returns the proof of both.
fn encrypt(key: &GossipKey, nonce: &[u8; NONCE_BYTES], datagram: &mut [u8]) -> [u8; PROOF_BYTES] {
    let (associated, body) = datagram.split_at_mut(HEADER_BYTES);
    cipher(key)
        .encrypt_inout_detached(nonce.into(), associated, body.into())
        .expect("1,400 bytes are far below the cipher's limit")
        .into()
}

struct Header {
    kind: u8,
    key: KeyId,
    newest_key: KeyId,
    cluster: ClusterId,
    from: NodeBoot,
    to: NodeBoot,
    unix_ms: u64,
    seq: u64,
    nonce: [u8; NONCE_BYTES],
}

impl Header {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.kind]);
        out.extend_from_slice(&self.key.0.to_be_bytes());
        out.extend_from_slice(&self.newest_key.0.to_be_bytes());
        let numbers = [
            self.cluster.0,
            self.from.node.0,
            self.from.boot.0,
            self.to.node.0,
            self.to.boot.0,
            self.unix_ms,
            self.seq,
        ];
        for number in numbers {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.nonce);
    }

    fn read(datagram: &[u8]) -> Result<Self, DatagramError> {
        if !datagram.starts_with(&MAGIC) {
            return Err(DatagramError::NotOurs);
        }
        match datagram.get(2) {
            Some(&VERSION) => {}
            Some(&version) => return Err(DatagramError::UnknownVersion(version)),
            None => return Err(DatagramError::Truncated),
        }
        if datagram.len() < HEADER_BYTES + PROOF_BYTES {
            return Err(DatagramError::Truncated);
        }
        let kind = datagram[3];
        if kind != KIND_PLAIN && kind != KIND_SEALED {
            return Err(DatagramError::NotOurs);
        }
        Ok(Self {
            kind,
            key: KeyId(u32::from_be_bytes(field(datagram, 4))),
            newest_key: KeyId(u32::from_be_bytes(field(datagram, 8))),
            cluster: ClusterId(number(datagram, 12)),
            from: node_boot(datagram, 20),
            to: node_boot(datagram, 36),
            unix_ms: number(datagram, 52),
            seq: number(datagram, 60),
            nonce: field(datagram, 68),
        })
    }
}

fn field<const N: usize>(datagram: &[u8], at: usize) -> [u8; N] {
    *datagram[at..].first_chunk().expect("the length was checked against the whole header")
}

fn number(datagram: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(datagram, at))
}

fn node_boot(datagram: &[u8], at: usize) -> NodeBoot {
    NodeBoot { node: NodeId(number(datagram, at)), boot: BootId(number(datagram, at + 8)) }
}

const WINDOW_WORDS: usize = (REPLAY_WINDOW / 64) as usize;

/// What is remembered of one boot of one member.
#[derive(Clone, Debug, Default)]
struct Sender {
    /// The highest sequence number seen; 0 before the first.
    highest: u64,
    /// One bit for each of the last [`REPLAY_WINDOW`] numbers, at `seq % REPLAY_WINDOW`.
    seen: [u64; WINDOW_WORDS],
    /// The latest time stamp seen.
    newest_ms: u64,
    /// The newest key that it has, by its latest word.
    newest_key: Option<KeyId>,
}

impl Sender {
    fn accept(&mut self, header: &Header) -> Result<(), DatagramError> {
        let seq = header.seq;
        if seq == 0 || self.highest.saturating_sub(seq) >= REPLAY_WINDOW || self.has_seen(seq) {
            return Err(DatagramError::Replayed);
        }
        if seq > self.highest {
            self.forget_up_to(seq);
            self.highest = seq;
            self.newest_key = (header.kind == KIND_SEALED).then_some(header.newest_key);
        }
        let (word, bit) = Self::place(seq);
        self.seen[word] |= bit;
        self.newest_ms = self.newest_ms.max(header.unix_ms);
        Ok(())
    }

    fn has_seen(&self, seq: u64) -> bool {
        let (word, bit) = Self::place(seq);
        seq <= self.highest && self.seen[word] & bit != 0
    }

    /// Clears the bits that the numbers up to `seq` take over from those a window earlier.
    fn forget_up_to(&mut self, seq: u64) {
        if seq - self.highest >= REPLAY_WINDOW {
            self.seen = [0; WINDOW_WORDS];
            return;
        }
        for forgotten in self.highest + 1..=seq {
            let (word, bit) = Self::place(forgotten);
            self.seen[word] &= !bit;
        }
    }

    fn place(seq: u64) -> (usize, u64) {
        let at = seq % REPLAY_WINDOW;
        (usize::try_from(at / 64).expect("below the number of words"), 1 << (at % 64))
    }
}

#[cfg(test)]
mod tests;
