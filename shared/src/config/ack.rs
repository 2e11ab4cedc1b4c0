//! What must know of a change before its answer goes out.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What must know of a change before its answer goes out. Written `memory` or `replica`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AckPolicy {
    /// The owner's memory. A node that dies takes its latest changes along.
    Memory,
    /// The memory of the owner and of every replica in the shard's claim.
    Replica,
}

impl fmt::Display for AckPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Replica => "replica",
        })
    }
}

/// A text that is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("want `memory` or `replica`; sessions are not kept on disk")]
pub struct ParseAckError;

impl FromStr for AckPolicy {
    type Err = ParseAckError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Memory, Self::Replica];
        all.into_iter().find(|policy| policy.to_string() == text).ok_or(ParseAckError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_back_what_it_prints() {
        for policy in ["memory", "replica"] {
            let read: AckPolicy = policy.parse().unwrap();
            assert_eq!(read.to_string(), policy);
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(json, format!("\"{policy}\""));
        }
        // What nobody keeps is not promised.
        for none in ["disk", "memory+disk", "replica+disk", "Replica", ""] {
            assert_eq!(none.parse::<AckPolicy>(), Err(ParseAckError), "{none}");
            assert!(serde_json::from_str::<AckPolicy>(&format!("\"{none}\"")).is_err(), "{none}");
        }
    }
}
