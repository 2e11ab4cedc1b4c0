//! What must know of a change before its answer goes out.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What must know of a change before its answer goes out. Written `memory`, `replica`,
/// `memory+disk` or `replica+disk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum AckPolicy {
    /// The owner's memory. A node that dies takes its latest changes along.
    #[serde(rename = "memory")]
    Memory,
    /// The memory of the owner and of every replica in the shard's claim.
    #[serde(rename = "replica")]
    Replica,
    /// The owner's memory and disk.
    #[serde(rename = "memory+disk")]
    MemoryDisk,
    /// The memory and the disk of the owner and of every replica in the shard's claim.
    #[serde(rename = "replica+disk")]
    ReplicaDisk,
}

impl AckPolicy {
    /// Whether replicas are waited for.
    #[must_use]
    pub fn replicas(self) -> bool {
        matches!(self, Self::Replica | Self::ReplicaDisk)
    }

    /// Whether disks are waited for.
    #[must_use]
    pub fn disk(self) -> bool {
        matches!(self, Self::MemoryDisk | Self::ReplicaDisk)
    }
}

impl fmt::Display for AckPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Replica => "replica",
            Self::MemoryDisk => "memory+disk",
            Self::ReplicaDisk => "replica+disk",
        })
    }
}

/// A text that is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("want `memory`, `replica`, `memory+disk` or `replica+disk`")]
pub struct ParseAckError;

impl FromStr for AckPolicy {
    type Err = ParseAckError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Memory, Self::Replica, Self::MemoryDisk, Self::ReplicaDisk]
            .into_iter()
            .find(|policy| policy.to_string() == text)
            .ok_or(ParseAckError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_back_what_it_prints() {
        for policy in ["memory", "replica", "memory+disk", "replica+disk"] {
            let read: AckPolicy = policy.parse().unwrap();
            assert_eq!(read.to_string(), policy);
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(json, format!("\"{policy}\""));
        }
        assert_eq!("disk".parse::<AckPolicy>(), Err(ParseAckError));
    }
}
