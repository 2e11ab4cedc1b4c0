//! Why connections and streams end.

use std::fmt;

/// Why a connection ended. Closed list: each is counted by `stead_link_closed_total{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// This process stops, or the peer does.
    Shutdown = 1,
    /// What came is not this protocol.
    Garbage = 2,
    /// The peer belongs to another cluster.
    WrongCluster = 3,
    /// The peer has no key in common with us, or its proof is wrong.
    WrongKey = 4,
    /// No protocol version in common.
    Version = 5,
    /// The hello took too long.
    HelloTimeout = 6,
    /// The peer broke a rule of the protocol after the hello.
    Protocol = 7,
    /// The peer sent more than it had credit for.
    FlowControl = 8,
    /// A checksum was wrong.
    Checksum = 9,
    /// Nothing came for too long, not even the answer to a ping.
    Silent = 10,
    /// The peer took nothing for too long.
    Stalled = 11,
    /// More waits to be sent than the limit allows.
    Overflow = 12,
    /// The peer closed the connection without a word.
    PeerGone = 13,
    /// The socket failed.
    Io = 14,
    /// A newer connection between the same two processes took its place.
    Replaced = 15,
    /// A newer start of the same node appeared.
    NewerBoot = 16,
    /// The peer carries this process's own name: it is this process, or another of that name.
    SameName = 17,
    /// Too many connections.
    TooMany = 18,
}

impl CloseReason {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Shutdown,
        Self::Garbage,
        Self::WrongCluster,
        Self::WrongKey,
        Self::Version,
        Self::HelloTimeout,
        Self::Protocol,
        Self::FlowControl,
        Self::Checksum,
        Self::Silent,
        Self::Stalled,
        Self::Overflow,
        Self::PeerGone,
        Self::Io,
        Self::Replaced,
        Self::NewerBoot,
        Self::SameName,
        Self::TooMany,
    ];

    /// The reason of this byte; what a newer version may say counts as its shutdown.
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        let known = Self::ALL.into_iter().find(|reason| *reason as u8 == byte);
        known.unwrap_or(Self::Shutdown)
    }

    /// The label in metrics.
    #[must_use]
    pub fn token(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Garbage => "garbage",
            Self::WrongCluster => "wrong-cluster",
            Self::WrongKey => "wrong-key",
            Self::Version => "version",
            Self::HelloTimeout => "hello-timeout",
            Self::Protocol => "protocol",
            Self::FlowControl => "flow-control",
            Self::Checksum => "checksum",
            Self::Silent => "silent",
            Self::Stalled => "stalled",
            Self::Overflow => "overflow",
            Self::PeerGone => "peer-gone",
            Self::Io => "io",
            Self::Replaced => "replaced",
            Self::NewerBoot => "newer-boot",
            Self::SameName => "same-name",
            Self::TooMany => "too-many",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.token())
    }
}

/// Why a stream was given up before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ResetCode {
    /// Its user lost interest.
    Cancelled = 1,
    /// The side that should have answered failed.
    Failed = 2,
    /// Too many streams are open: not executed.
    TooMany = 3,
    /// Everything was said; the rest of the other direction is not wanted.
    Done = 4,
    /// The deadline passed.
    Deadline = 5,
    /// The connection ended under it. Never sent.
    LinkClosed = 6,
}

impl ResetCode {
    /// The code of this byte; an unknown one counts as a failure.
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Cancelled,
            3 => Self::TooMany,
            4 => Self::Done,
            5 => Self::Deadline,
            6 => Self::LinkClosed,
            _ => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_reads_back_and_has_a_label_of_its_own() {
        let mut labels: Vec<_> = CloseReason::ALL.iter().map(|r| r.token()).collect();
        for reason in CloseReason::ALL {
            assert_eq!(CloseReason::from_byte(reason as u8), reason);
        }
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), CloseReason::ALL.len());
        for byte in 0..=u8::MAX {
            let _ = (CloseReason::from_byte(byte), ResetCode::from_byte(byte));
        }
    }
}
