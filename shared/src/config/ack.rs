//! What must know of a change before its answer goes out.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What must know of a change before its answer goes out. Written `memory` or `replica`, each with
/// or without `+disk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AckPolicy {
    /// The owner's memory. A node that dies takes its latest changes along.
    Memory,
    /// The memory of the owner and of every replica in the shard's claim.
    Replica,
    /// The owner's disk. A node that dies has its changes when it starts again.
    #[serde(rename = "memory+disk")]
    MemoryAndDisk,
    /// The memory of every replica in the shard's claim, and the owner's disk.
    #[serde(rename = "replica+disk")]
    ReplicaAndDisk,
}

impl AckPolicy {
    /// Whether answers wait for replicas.
    #[must_use]
    pub fn waits_for_replicas(self) -> bool {
        match self {
            Self::Replica | Self::ReplicaAndDisk => true,
            Self::Memory | Self::MemoryAndDisk => false,
        }
    }

    /// Whether answers wait for the owner's disk.
    #[must_use]
    pub fn waits_for_disk(self) -> bool {
        match self {
            Self::MemoryAndDisk | Self::ReplicaAndDisk => true,
            Self::Memory | Self::Replica => false,
        }
    }
}

impl fmt::Display for AckPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Replica => "replica",
            Self::MemoryAndDisk => "memory+disk",
            Self::ReplicaAndDisk => "replica+disk",
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
        let all = [Self::Memory, Self::Replica, Self::MemoryAndDisk, Self::ReplicaAndDisk];
        all.into_iter().find(|policy| policy.to_string() == text).ok_or(ParseAckError)
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
            assert_eq!(read.waits_for_disk(), policy.ends_with("+disk"));
            assert_eq!(read.waits_for_replicas(), policy.starts_with("replica"));
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(json, format!("\"{policy}\""));
        }
        for none in ["disk", "disk+memory", "replica+", "Replica", ""] {
            assert_eq!(none.parse::<AckPolicy>(), Err(ParseAckError), "{none}");
            assert!(serde_json::from_str::<AckPolicy>(&format!("\"{none}\"")).is_err(), "{none}");
        }
    }
}
