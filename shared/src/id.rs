//! Identifiers. Newtypes, so that a shard is never taken for a node; never bare integers.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of the hash that turns a node's name into its id. Part of the wire format.
const NODE_ID_SEED: u64 = 0x5354_4541_445f_4944;

/// Who a node is, across restarts: the hash of its stable name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The id of the node called `name`. The same name gives the same id everywhere, for ever.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        Self(xxh3_64_with_seed(name.as_bytes(), NODE_ID_SEED))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node:{:016x}", self.0)
    }
}

/// One start of a process. A newer boot id of the same node means that its memory was lost.
///
/// Unix microseconds at the start, or the last one seen + 1 where that is larger.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct BootId(pub u64);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One start of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeBoot {
    /// The node.
    pub node: NodeId,
    /// The start of its process.
    pub boot: BootId,
}

impl NodeBoot {
    /// What names the requests that this process takes in: two processes may have begun in the same
    /// microsecond.
    #[must_use]
    pub fn requests(self) -> BootId {
        BootId(xxh3_64_with_seed(&self.boot.0.to_le_bytes(), self.node.0).max(1))
    }
}

/// Seed of the hash that turns a cluster's name into its id. Part of the wire format.
const CLUSTER_ID_SEED: u64 = 0x5354_4541_445f_434c;

/// Which cluster a process belongs to: the hash of the `--cluster` name. It is mixed into every
/// datagram and every link's hello, so that two clusters on one network never merge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u64);

impl ClusterId {
    /// The id of the cluster called `name`. The same name gives the same id everywhere, for ever.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        Self(xxh3_64_with_seed(name.as_bytes(), CLUSTER_ID_SEED))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster:{:016x}", self.0)
    }
}

/// The unit of ownership and movement: `0 .. shard count`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ShardId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The fencing number of a shard: who may serve it. It only grows.
///
/// Ordered by counter, then by node; `node` is the one that serves in this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Grows with each change of owner.
    pub counter: u64,
    /// The owner in this epoch.
    pub node: NodeId,
}

impl Epoch {
    /// The epoch that follows this one, served by `node`.
    #[must_use]
    pub fn next(self, node: NodeId) -> Self {
        Self { counter: self.counter + 1, node }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.counter, self.node)
    }
}

/// A text that is not an epoch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an epoch: want COUNTER.NODE, a decimal number and 16 hex digits")]
pub struct ParseEpochError(String);

impl FromStr for Epoch {
    type Err = ParseEpochError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseEpochError(text.chars().take(64).collect());
        let (counter, node) = text.split_once('.').ok_or_else(error)?;
        if node.len() != 16 {
            return Err(error());
        }
        Ok(Self {
            counter: counter.parse().map_err(|_| error())?,
            node: NodeId(u64::from_str_radix(node, 16).map_err(|_| error())?),
        })
    }
}

/// The version of a session's state: the epoch and sequence number of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The epoch in which the change was made.
    pub epoch: Epoch,
    /// The number of the change within its shard; it only grows.
    pub seq: u64,
}

/// A request, across its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The process that took the request from the client: [`NodeBoot::requests`]. 0 for one that
    /// does not know its own name yet.
    pub boot: BootId,
    /// Its number there.
    pub counter: u64,
}

/// Most bytes of a session key.
pub const KEY_BYTES_MAX: usize = 512;

/// The bytes that name a session: 1 to [`KEY_BYTES_MAX`] of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct SessionKey(Bytes);

/// A key that is empty or too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a session key has 1 to {KEY_BYTES_MAX} bytes, this one has {0}")]
pub struct KeyLengthError(pub usize);

impl SessionKey {
    /// The key of these bytes.
    ///
    /// # Errors
    /// When there are none, or more than [`KEY_BYTES_MAX`].
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, KeyLengthError> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes.len() > KEY_BYTES_MAX {
            return Err(KeyLengthError(bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Bytes> for SessionKey {
    type Error = KeyLengthError;

    fn try_from(bytes: Bytes) -> Result<Self, KeyLengthError> {
        Self::new(bytes)
    }
}

impl From<SessionKey> for Bytes {
    fn from(key: SessionKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_reads_back_what_it_prints() {
        let epoch = Epoch { counter: 7, node: NodeId::of_name("n1") };
        assert_eq!(epoch.to_string().parse(), Ok(epoch));
        for bad in ["", "7", "7.", ".0123456789abcdef", "x.0123456789abcdef", "7.123"] {
            assert!(bad.parse::<Epoch>().is_err(), "{bad}");
        }
    }

    #[test]
    fn epochs_are_ordered_by_counter_first() {
        let a = Epoch { counter: 1, node: NodeId(9) };
        let b = Epoch { counter: 2, node: NodeId(1) };
        assert!(a < b);
        assert_eq!(a.next(NodeId(1)), b);
    }

    #[test]
    fn a_key_has_a_length_within_bounds() {
        assert!(SessionKey::new(&b""[..]).is_err());
        assert!(SessionKey::new(vec![0; KEY_BYTES_MAX]).is_ok());
        assert_eq!(SessionKey::new(vec![0; 513]), Err(KeyLengthError(513)));
    }

    #[test]
    fn the_id_of_a_name_never_changes() {
        assert_eq!(NodeId::of_name("n1").to_string(), "9c29e663a4231b1f");
        assert_eq!(ClusterId::of_name("stead").to_string(), "9486e4506a283c9f");
    }
}
