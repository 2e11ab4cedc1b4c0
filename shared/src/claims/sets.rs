//! Who holds copies of claimed shards, beside their owner.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{GOLDEN, mix};
use crate::id::{NodeBoot, ShardId};

/// Most replicas of one claim: two that placement may want, and one that is about to go.
pub const CLAIM_REPLICAS_MAX: usize = 3;

/// The boots that hold copies of a shard, in the order in which they take it over. At most
/// [`CLAIM_REPLICAS_MAX`], none of them twice. Clones share their memory.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Replicas(Option<Arc<[NodeBoot]>>);

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

impl Replicas {
    /// Nobody.
    pub const NONE: Self = Self(None);

    /// The first [`CLAIM_REPLICAS_MAX`] different ones of these.
    #[must_use]
    pub fn new(boots: impl IntoIterator<Item = NodeBoot>) -> Self {
        let mut list: Vec<NodeBoot> = Vec::new();
        for boot in boots {
            if list.len() < CLAIM_REPLICAS_MAX && !list.contains(&boot) {
                list.push(boot);
            }
        }
        Self((!list.is_empty()).then(|| list.into()))
    }

    /// In order.
    #[must_use]
    pub fn as_slice(&self) -> &[NodeBoot] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether this boot is one of them.
    #[must_use]
    pub fn contains(&self, boot: NodeBoot) -> bool {
        self.as_slice().contains(&boot)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The same and `boot` behind them. Where there are [`CLAIM_REPLICAS_MAX`] already, the same.
    #[must_use]
    pub fn with(&self, boot: NodeBoot) -> Self {
        Self::new(self.as_slice().iter().copied().chain([boot]))
    }

    /// The same without `boot`.
    #[must_use]
    pub fn without(&self, boot: NodeBoot) -> Self {
        Self::new(self.as_slice().iter().copied().filter(|it| *it != boot))
    }
}

/// The replicas of the shards of a [`ClaimsUpdate`](super::ClaimsUpdate): behind it on the wire,
/// where those who know nothing of replicas do not look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sets {
    /// Every boot that is named below, once.
    pub boots: Vec<NodeBoot>,
    /// Sorted by shard. A shard of the update that is in none of them has no replicas.
    pub ranges: Vec<SetRange>,
    /// Sum over all claims of the owner after the changes.
    pub checksum: u64,
}

/// Consecutive shards with the same replicas.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SetRange {
    /// First shard.
    pub first: u32,
    /// Number of shards, at least 1.
    pub len: u32,
    /// Indexes into [`Sets::boots`], in the order of the set.
    pub replicas: Vec<u16>,
}

impl Sets {
    /// Packs sorted shards; those without replicas are left out.
    pub(super) fn pack<'a>(
        shards: impl Iterator<Item = (ShardId, &'a Replicas)>,
        checksum: u64,
    ) -> Self {
        let mut sets = Self { checksum, ..Self::default() };
        let mut last: Option<&Replicas> = None;
        for (shard, replicas) in shards.filter(|(_, replicas)| !replicas.is_empty()) {
            if let Some(range) = sets.ranges.last_mut().filter(|range| {
                range.first.checked_add(range.len) == Some(shard.0) && last == Some(replicas)
            }) {
                range.len += 1;
                continue;
            }
            last = Some(replicas);
            let indexes = replicas.as_slice().iter().map(|boot| sets.index(*boot)).collect();
            sets.ranges.push(SetRange { first: shard.0, len: 1, replicas: indexes });
        }
        sets
    }

    fn index(&mut self, boot: NodeBoot) -> u16 {
        let at = self.boots.iter().position(|it| *it == boot).unwrap_or_else(|| {
            self.boots.push(boot);
            self.boots.len() - 1
        });
        u16::try_from(at).expect("a cluster has fewer boots than that")
    }

    /// The replicas of each shard that has any. Indexes of no boot count for none.
    pub(super) fn unpack(&self) -> impl Iterator<Item = (SetRange, Replicas)> + '_ {
        self.ranges.iter().map(|range| {
            let boots = range.replicas.iter().filter_map(|at| self.boots.get(usize::from(*at)));
            (range.clone(), Replicas::new(boots.copied()))
        })
    }
}

/// What the replicas of one claim add to the checksum; nothing when there are none.
pub(super) fn weight(shard: ShardId, replicas: &Replicas) -> u64 {
    let mut sum = 0;
    for (place, boot) in replicas.as_slice().iter().enumerate() {
        let at = u64::from(shard.0) << 32 | place as u64;
        let who = boot.node.0.rotate_left(17) ^ boot.boot.0.wrapping_mul(GOLDEN);
        sum = u64::wrapping_add(sum, mix(at ^ who));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{BootId, NodeId};

    const A: NodeBoot = NodeBoot { node: NodeId(1), boot: BootId(10) };
    const B: NodeBoot = NodeBoot { node: NodeId(2), boot: BootId(20) };

    #[test]
    fn a_set_has_nobody_twice_and_not_too_many() {
        let more = (3..9).map(|n| NodeBoot { node: NodeId(n), boot: BootId(1) });
        assert_eq!(Replicas::new([A, A, B]).as_slice(), [A, B]);
        assert_eq!(Replicas::new(more).len(), CLAIM_REPLICAS_MAX);
        assert_eq!(Replicas::new([A]).with(B).without(A).as_slice(), [B]);
        assert!(Replicas::new([A]).without(A).is_empty());
    }

    #[test]
    fn sets_come_out_as_they_went_in() {
        let (one, two) = (Replicas::new([A]), Replicas::new([B, A]));
        let none = Replicas::NONE;
        let shards = [(1, &one), (2, &one), (3, &none), (4, &two), (6, &two)];
        let sets = Sets::pack(shards.iter().map(|(s, r)| (ShardId(*s), *r)), 7);
        assert_eq!(sets.boots, [A, B]);
        let out: Vec<_> = sets.unpack().map(|(range, set)| (range.first, range.len, set)).collect();
        assert_eq!(out, [(1, 2, one.clone()), (4, 1, two.clone()), (6, 1, two.clone())]);
        assert_ne!(weight(ShardId(1), &two), weight(ShardId(1), &Replicas::new([A, B])));
        assert_eq!(weight(ShardId(1), &none), 0);
    }
}
