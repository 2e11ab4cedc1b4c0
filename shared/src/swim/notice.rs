//! What members tell one another in datagrams beside foca's packets.

use bytes::Bytes;
use foca::{Codec, Header, Member, PostcardCodec};
use serde::{Deserialize, Serialize};

use super::config::PAYLOAD_BYTES_MAX;
use super::identity::Identity;
use crate::id::NodeBoot;
use crate::member::Card;

/// First byte of a payload: one of foca's packets follows.
const KIND_CORE: u8 = 0;
/// First byte of a payload: a [`Notice`] follows.
const KIND_NOTICE: u8 = 1;

/// A message of our own. All but cards take at most 48 bytes (60 where addresses are IPv6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Notice {
    /// A connect to this process was refused to the sender.
    Refused(NodeBoot),
    /// The sender leaves, and this is the last it says of itself.
    Gone(Identity),
    /// Somebody holds this identity of the receiver for dead: take a new one.
    Renew(Identity),
    /// The receiver spoke to an outdated identity of the sender. This is the one it has now.
    Iam(Identity),
    /// The sender lacks the receiver's card.
    CardWanted,
    /// The sender's card.
    Card(Card),
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
}

impl Notice {
    /// The payload, or nothing when it does not fit a datagram (a card may not; it travels by
    /// push/pull then).
    pub(crate) fn encode(&self) -> Option<Bytes> {
        let payload = postcard::to_extend(self, vec![KIND_NOTICE]).ok()?;
        (payload.len() <= PAYLOAD_BYTES_MAX).then(|| Bytes::from(payload))
    }
}

/// A payload that was read.
#[derive(Clone, Debug)]
pub(crate) enum Payload<'a> {
    Core(&'a [u8]),
    Notice(Box<Notice>),
}

/// Reads the outer form. Nothing for anything that no version of this program writes.
pub(crate) fn read(payload: &[u8]) -> Option<Payload<'_>> {
    let (&kind, body) = payload.split_first()?;
    match kind {
        KIND_CORE => Some(Payload::Core(body)),
        KIND_NOTICE => {
            let (notice, rest) = postcard::take_from_bytes(body).ok()?;
            rest.is_empty().then_some(Payload::Notice(Box::new(notice)))
        }
        _ => None,
    }
}

/// Puts the kind in front of one of foca's packets.
pub(crate) fn wrap_core(packet: &[u8]) -> Bytes {
    let mut payload = Vec::with_capacity(packet.len() + 1);
    payload.push(KIND_CORE);
    payload.extend_from_slice(packet);
    Bytes::from(payload)
}

/// The header of one of foca's packets and the members it tells of.
#[derive(Debug)]
pub(crate) struct Peeked {
    pub(crate) header: Header<Identity>,
    pub(crate) updates: Vec<Member<Identity>>,
}

impl Peeked {
    /// Everybody it tells of, its sender included.
    pub(crate) fn members(&self) -> impl Iterator<Item = Member<Identity>> {
        let Header { src, src_incarnation, .. } = self.header;
        let sender = Member::new(src, src_incarnation, foca::State::Alive);
        std::iter::once(sender).chain(self.updates.iter().cloned())
    }
}

/// Reads one of foca's packets without acting on it. Nothing when foca would refuse it too.
pub(crate) fn peek(mut packet: &[u8]) -> Option<Peeked> {
    let mut codec = PostcardCodec;
    let header = Codec::<Identity>::decode_header(&mut codec, &mut packet).ok()?;
    let mut updates = Vec::new();
    if let Some((count, rest)) = packet.split_first_chunk::<2>() {
        packet = rest;
        for _ in 0..u16::from_be_bytes(*count) {
            updates.push(Codec::<Identity>::decode_member(&mut codec, &mut packet).ok()?);
        }
    }
    Some(Peeked { header, updates })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{BootId, NodeId};
    use crate::member::Role;
    use crate::swim::identity::{PROTOCOL, Standing};

    fn identity() -> Identity {
        Identity {
            boot: BootId(u64::MAX),
            bump: u32::MAX,
            gossip: "192.0.2.1:65535".parse().unwrap(),
            node: NodeId(u64::MAX),
            role: Role::Router,
            standing: Standing::Gone,
            weight: u16::MAX,
            zone: u32::MAX,
            protocol: PROTOCOL,
        }
    }

    #[test]
    fn notices_are_small() {
        let who = identity().node_boot();
        let all = [
            Notice::Refused(who),
            Notice::Gone(identity()),
            Notice::Renew(identity()),
            Notice::Iam(identity()),
            Notice::CardWanted,
            Notice::Ping,
            Notice::Pong,
        ];
        for notice in all {
            let payload = notice.encode().unwrap();
            assert!(payload.len() <= 48, "{notice:?}: {} bytes", payload.len());
            let Some(Payload::Notice(read)) = read(&payload) else { panic!("{notice:?}") };
            assert_eq!(*read, notice);
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Part of the wire format: members of different versions must read one another.
    #[test]
    fn payloads_have_these_bytes() {
        let identity = Identity {
            boot: BootId(1_790_000_000_000_000),
            bump: 2,
            gossip: "192.0.2.7:7400".parse().unwrap(),
            node: NodeId::of_name("n1"),
            role: Role::Node,
            standing: Standing::Ready,
            weight: 1,
            zone: 0x0102_0304,
            protocol: PROTOCOL,
        };
        let golden = [
            (Notice::Refused(identity.node_boot()), "01009fb68ca1baccf9949c0180c097d1edff9603"),
            (
                Notice::Gone(identity),
                "010100c00002071ce89c29e663a4231b1f80c097d1edff96030202010102030401",
            ),
            (
                Notice::Renew(identity),
                "010200c00002071ce89c29e663a4231b1f80c097d1edff96030202010102030401",
            ),
            (
                Notice::Iam(identity),
                "010300c00002071ce89c29e663a4231b1f80c097d1edff96030202010102030401",
            ),
            (Notice::CardWanted, "0104"),
            (Notice::Ping, "0106"),
            (Notice::Pong, "0107"),
        ];
        for (notice, bytes) in golden {
            assert_eq!(hex(&notice.encode().unwrap()), bytes, "{notice:?}");
        }
        let header = Header {
            src: identity,
            src_incarnation: 3,
            dst: identity,
            message: foca::Message::Ping(9),
        };
        let mut packet = Vec::new();
        PostcardCodec.encode_header(&header, &mut packet).unwrap();
        assert_eq!(
            hex(&wrap_core(&packet)),
            "0000c00002071ce89c29e663a4231b1f80c097d1edff960302020101020304010300c00002071ce89c29e663a4231b1f80c097d1edff960302020101020304010009"
        );
    }

    #[test]
    fn unknown_kinds_and_trailing_bytes_are_refused() {
        let mut payload = Notice::Ping.encode().unwrap().to_vec();
        payload.push(0);
        assert!(read(&payload).is_none());
        assert!(read(&[2, 0]).is_none());
        assert!(read(&[]).is_none());
    }

    proptest! {
        #[test]
        fn reading_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&payload);
            let _ = peek(&payload);
        }
    }
}
