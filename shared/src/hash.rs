//! The one stable hash: session key to shard.
//!
//! `shard = xxh3(key, secret) >> (64 - k)` for `2^k` shards. The secret belongs to the cluster,
//! so that nobody outside can choose keys that fall on one shard, and it never changes: another
//! secret is another placement of every session. Golden vectors are in `shared/tests/golden`.

use std::fmt;
use std::sync::Arc;

use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use xxhash_rust::xxh3::xxh3_64_with_secret;

use crate::id::{SessionKey, ShardId};

/// Bytes of the secret that xxh3 mixes into a key: its default length.
const EXPANDED_BYTES: usize = 192;

/// What a cluster without a key file uses. Anybody can compute it: no protection, same routes.
const PUBLIC_RAW: [u8; 32] = *b"stead public hash secret, no key";

/// Into how many shards the sessions of a cluster fall: a power of two, 1 to 65,536.
///
/// The same on every member and for the whole life of a cluster. Keep 100 shards per node or
/// more: with fewer, a difference of one shard is a visible difference of load, and a change of
/// one node moves much more than its share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ShardCount {
    bits: u8,
}

/// A shard count that is not a power of two within bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no shard count: want a power of two from 1 to {max}", max = ShardCount::MAX.get())]
pub struct ShardCountError(pub u32);

impl ShardCount {
    /// The largest: an owner table of 128 KiB.
    pub const MAX: Self = Self { bits: 16 };

    /// This many shards.
    ///
    /// # Errors
    /// When `count` is not a power of two from 1 to 65,536.
    pub const fn new(count: u32) -> Result<Self, ShardCountError> {
        if count.is_power_of_two() && count <= Self::MAX.get() {
            Ok(Self { bits: count.trailing_zeros() as u8 })
        } else {
            Err(ShardCountError(count))
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        1 << self.bits
    }

    /// Its logarithm to base two.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.bits as u32
    }

    /// Whether there is such a shard.
    #[must_use]
    pub const fn contains(self, shard: ShardId) -> bool {
        shard.0 < self.get()
    }

    /// Every shard, in order.
    pub fn all(self) -> impl ExactSizeIterator<Item = ShardId> + DoubleEndedIterator {
        (0..self.get()).map(ShardId)
    }

    /// The shard in whose part of the hash's range `hash` falls: its top bits.
    #[must_use]
    pub const fn shard_at(self, hash: u64) -> ShardId {
        // In two steps, because one shard would mean a shift by all 64 bits.
        ShardId(((hash >> 1) >> (63 - self.bits as u32)) as u32)
    }

    /// Where the part of `shard` begins: the smallest hash that falls on it.
    #[must_use]
    pub const fn position(self, shard: ShardId) -> u64 {
        ((shard.0 as u64) << (63 - self.bits as u32)) << 1
    }
}

impl Default for ShardCount {
    /// 16,384: for up to about 150 nodes.
    fn default() -> Self {
        Self { bits: 14 }
    }
}

impl TryFrom<u32> for ShardCount {
    type Error = ShardCountError;

    fn try_from(count: u32) -> Result<Self, ShardCountError> {
        Self::new(count)
    }
}

impl From<ShardCount> for u32 {
    fn from(count: ShardCount) -> Self {
        count.get()
    }
}

impl fmt::Display for ShardCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl fmt::Debug for ShardCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shards", self.get())
    }
}

/// The cluster's hash secret, expanded once. Cheap to clone.
#[derive(Clone)]
pub struct HashSecret {
    expanded: Arc<[u8; EXPANDED_BYTES]>,
    fingerprint: u64,
}

impl HashSecret {
    /// The secret made of these 32 random bytes, by HKDF-SHA256 (RFC 5869).
    #[must_use]
    pub fn new(raw: [u8; 32]) -> Self {
        let kdf = Hkdf::<Sha256>::new(None, &raw);
        let mut expanded = [0; EXPANDED_BYTES];
        kdf.expand(b"stead hash secret v1", &mut expanded).expect("192 bytes are below the limit");
        let mut fingerprint = [0; 8];
        kdf.expand(b"stead hash fingerprint v1", &mut fingerprint).expect("8 bytes are few");
        Self { expanded: Arc::new(expanded), fingerprint: u64::from_le_bytes(fingerprint) }
    }

    /// The fixed secret of clusters that have no key file. It protects nothing.
    #[must_use]
    pub fn public() -> Self {
        Self::new(PUBLIC_RAW)
    }

    /// Tells two secrets apart without telling anything of them.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The hash of any bytes under this secret.
    #[must_use]
    #[inline]
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_secret(bytes, &self.expanded[..])
    }

    /// The shard of a session, one of `shards`. Allocates nothing.
    #[must_use]
    #[inline]
    pub fn shard_of(&self, key: &SessionKey, shards: ShardCount) -> ShardId {
        shards.shard_at(self.hash(key.as_bytes()))
    }
}

impl PartialEq for HashSecret {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for HashSecret {}

impl fmt::Debug for HashSecret {
    /// Prints the fingerprint, never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashSecret({:016x})", self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_count_is_a_power_of_two_within_bounds() {
        for good in [1, 2, 256, 16_384, 65_536] {
            let count = ShardCount::new(good).unwrap();
            assert_eq!((count.get(), 1 << count.bits()), (good, good));
        }
        for bad in [0, 3, 16_383, 131_072, u32::MAX] {
            assert_eq!(ShardCount::new(bad), Err(ShardCountError(bad)));
        }
        assert_eq!(ShardCount::default().get(), 16_384);
        assert!(ShardCountError(3).to_string().contains("1 to 65536"));
    }

    #[test]
    fn a_shard_is_the_top_bits_of_the_hash() {
        let four = ShardCount::new(4).unwrap();
        assert_eq!(four.shard_at(0), ShardId(0));
        assert_eq!(four.shard_at(u64::MAX), ShardId(3));
        assert_eq!(four.shard_at((1 << 62) - 1), ShardId(0));
        for shard in four.all() {
            assert_eq!(four.shard_at(four.position(shard)), shard);
        }
        let one = ShardCount::new(1).unwrap();
        assert_eq!((one.shard_at(u64::MAX), one.position(ShardId(0))), (ShardId(0), 0));
        assert_eq!(ShardCount::MAX.shard_at(u64::MAX), ShardId(65_535));
    }

    #[test]
    fn another_secret_is_another_placement_and_is_told_apart() {
        let (ours, theirs) = (HashSecret::new([1; 32]), HashSecret::new([2; 32]));
        assert_ne!(ours.fingerprint(), theirs.fingerprint());
        assert_ne!(ours.hash(b"alice"), theirs.hash(b"alice"));
        assert_eq!(ours.hash(b"alice"), HashSecret::new([1; 32]).hash(b"alice"));
    }

    #[test]
    fn the_secret_is_never_printed() {
        let printed = format!("{:?}", HashSecret::new([0xab; 32]));
        assert_eq!(printed.len(), "HashSecret()".len() + 16);
    }
}
