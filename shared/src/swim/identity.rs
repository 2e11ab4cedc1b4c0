//! What a member says of itself in every packet.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::{BootId, NodeBoot, NodeId};
use crate::member::{Phase, Role};

/// Version of the gossip that this program speaks.
pub const PROTOCOL: u8 = 1;

/// A member's own word about where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    Joining,
    Ready,
    Leaving,
    /// It has said goodbye. Final for its boot.
    Gone,
}

impl Standing {
    pub(crate) fn phase(self) -> Phase {
        match self {
            Self::Joining => Phase::Joining,
            Self::Ready => Phase::Ready,
            Self::Leaving | Self::Gone => Phase::Leaving,
        }
    }
}

impl From<Phase> for Standing {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Joining => Self::Joining,
            Phase::Ready => Self::Ready,
            Phase::Leaving => Self::Leaving,
        }
    }
}

/// One description of one boot of a node: foca's identity.
///
/// Fields are in the order of conflict: of two identities of one node the greater one stands,
/// and the order is total, so that two processes of one name cannot flap for ever.
/// With an IPv4 address it takes at most 32 bytes on the wire while bump and weight are small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "Packed", try_from = "Packed")]
pub(crate) struct Identity {
    pub(crate) boot: BootId,
    /// Grows when the same boot describes itself anew: it was taken for dead, or changed.
    pub(crate) bump: u32,
    /// Flow label and scope of an IPv6 address are not kept.
    pub(crate) gossip: SocketAddr,
    pub(crate) node: NodeId,
    pub(crate) role: Role,
    pub(crate) standing: Standing,
    pub(crate) weight: u16,
    pub(crate) zone: u32,
    pub(crate) protocol: u8,
}

impl Identity {
    pub(crate) fn node_boot(&self) -> NodeBoot {
        NodeBoot { node: self.node, boot: self.boot }
    }

    /// The same member under its next bump.
    pub(crate) fn bumped(self) -> Self {
        Self { bump: self.bump.saturating_add(1), ..self }
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        (self.standing != Standing::Gone).then(|| self.bumped())
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        adversary < self
    }
}

/// Drops what the wire form does not carry, so that an identity equals its own echo.
pub(crate) fn plain_addr(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), addr.port())
}

/// The wire form.
#[derive(Serialize, Deserialize)]
struct Packed {
    ip: IpAddr,
    port: [u8; 2],
    node: [u8; 8],
    boot: u64,
    bump: u32,
    /// Bit 0 the role, bits 1 and 2 the standing; the others are zero.
    flags: u8,
    weight: u16,
    zone: [u8; 4],
    protocol: u8,
}

impl From<Identity> for Packed {
    fn from(id: Identity) -> Self {
        let role = match id.role {
            Role::Node => 0,
            Role::Router => 1,
        };
        let standing = match id.standing {
            Standing::Joining => 0,
            Standing::Ready => 1,
            Standing::Leaving => 2,
            Standing::Gone => 3,
        };
        Self {
            ip: id.gossip.ip(),
            port: id.gossip.port().to_be_bytes(),
            node: id.node.0.to_be_bytes(),
            boot: id.boot.0,
            bump: id.bump,
            flags: role | standing << 1,
            weight: id.weight,
            zone: id.zone.to_be_bytes(),
            protocol: id.protocol,
        }
    }
}

/// Bits that this version does not know: written by a program that must be understood to be
/// believed.
#[derive(Debug, thiserror::Error)]
#[error("unknown flags {0:#04x} in an identity")]
struct UnknownFlags(u8);

impl TryFrom<Packed> for Identity {
    type Error = UnknownFlags;

    fn try_from(packed: Packed) -> Result<Self, UnknownFlags> {
        if packed.flags > 0b111 {
            return Err(UnknownFlags(packed.flags));
        }
        let standing = match packed.flags >> 1 {
            0 => Standing::Joining,
            1 => Standing::Ready,
            2 => Standing::Leaving,
            _ => Standing::Gone,
        };
        Ok(Self {
            boot: BootId(packed.boot),
            bump: packed.bump,
            gossip: SocketAddr::new(packed.ip, u16::from_be_bytes(packed.port)),
            node: NodeId(u64::from_be_bytes(packed.node)),
            role: if packed.flags & 1 == 0 { Role::Node } else { Role::Router },
            standing,
            weight: packed.weight,
            zone: u32::from_be_bytes(packed.zone),
            protocol: packed.protocol,
        })
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Identity {
        Identity {
            boot: BootId(1_790_000_000_000_000),
            bump: 3,
            gossip: "192.168.17.250:47400".parse().unwrap(),
            node: NodeId::of_name("n1"),
            role: Role::Router,
            standing: Standing::Leaving,
            weight: 100,
            zone: 0xfedc_ba98,
            protocol: PROTOCOL,
        }
    }

    #[test]
    fn an_identity_takes_at_most_32_bytes() {
        let bytes = postcard::to_stdvec(&sample()).unwrap();
        assert!(bytes.len() <= 32, "{} bytes", bytes.len());
        assert_eq!(postcard::from_bytes::<Identity>(&bytes).unwrap(), sample());
    }

    #[test]
    fn unknown_flags_are_refused() {
        let packed = Packed { flags: 8, ..Packed::from(sample()) };
        assert!(Identity::try_from(packed).is_err());
    }

    #[test]
    fn a_renewed_identity_wins_over_the_old_one_and_a_gone_one_is_not_renewed() {
        let renewed = sample().renew().unwrap();
        assert!(renewed.win_addr_conflict(&sample()));
        let gone = Identity { standing: Standing::Gone, ..sample() };
        assert_eq!(gone.renew(), None);
    }

    fn identities() -> impl Strategy<Value = Identity> {
        (0..3_u64, 0..3_u32, 0..3_u16, 0..3_u16, 0..3_u32).prop_map(
            |(boot, bump, port, weight, zone)| Identity {
                boot: BootId(boot),
                bump,
                gossip: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port),
                weight,
                zone,
                ..sample()
            },
        )
    }

    proptest! {
        #[test]
        fn of_two_identities_exactly_one_wins(a in identities(), b in identities()) {
            prop_assert_eq!(a == b, !a.win_addr_conflict(&b) && !b.win_addr_conflict(&a));
            prop_assert!(!(a.win_addr_conflict(&b) && b.win_addr_conflict(&a)));
        }
    }
}
