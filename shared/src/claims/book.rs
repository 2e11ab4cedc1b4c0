//! The book that everybody keeps of everybody's claims, and the table that is published from it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::sets::{self, Replicas, Sets};
use super::{Claim, ClaimRange, ClaimsUpdate, ranges_of, weight};
use crate::id::{BootId, Epoch, NodeBoot, NodeId, ShardId};

/// One entry of the published table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Epoch counter; 0 when nobody claims the shard.
    pub counter: u64,
    /// Owner.
    pub owner: NodeBoot,
    /// Who holds copies.
    pub replicas: Replicas,
}

const NOBODY: TableEntry = TableEntry {
    counter: 0,
    owner: NodeBoot { node: NodeId(0), boot: BootId(0) },
    replicas: Replicas::NONE,
};
const CHUNK: usize = 256;

/// An immutable table of the best claim for each shard. Cheap to clone: chunks are shared
/// between versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimTable {
    chunks: Vec<Arc<[TableEntry; CHUNK]>>,
    n_shards: u32,
}

impl ClaimTable {
    fn new(n_shards: u32) -> Self {
        let empty = Arc::new([const { NOBODY }; CHUNK]);
        let n_chunks = (n_shards as usize).div_ceil(CHUNK);
        Self { chunks: vec![empty; n_chunks], n_shards }
    }

    /// Number of shards.
    #[must_use]
    pub fn n_shards(&self) -> u32 {
        self.n_shards
    }

    /// The best claim for `shard`: its epoch and the boot of its owner.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<(Epoch, NodeBoot)> {
        let entry = self.entry(shard)?;
        let epoch = Epoch { counter: entry.counter, node: entry.owner.node };
        (entry.counter > 0).then_some((epoch, entry.owner))
    }

    /// Who holds copies of `shard`, by the best claim for it.
    #[must_use]
    pub fn replicas(&self, shard: ShardId) -> &[NodeBoot] {
        self.entry(shard).map_or(&[], |entry| entry.replicas.as_slice())
    }

    fn entry(&self, shard: ShardId) -> Option<&TableEntry> {
        let chunk = self.chunks.get(shard.0 as usize / CHUNK)?;
        Some(&chunk[shard.0 as usize % CHUNK])
    }

    fn set(&mut self, shard: ShardId, entry: TableEntry) {
        if let Some(chunk) = self.chunks.get_mut(shard.0 as usize / CHUNK) {
            Arc::make_mut(chunk)[shard.0 as usize % CHUNK] = entry;
        }
    }
}

/// What became of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Applied {
    /// The book changed for these shards.
    Changed(Vec<ShardId>),
    /// Nothing new.
    Same,
    /// The update does not follow what is known of this owner: ask it for its whole log.
    WantFull,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct OwnerClaims {
    boot: BootId,
    pos: u64,
    checksum: u64,
    sets_checksum: u64,
    claims: BTreeMap<ShardId, Claim>,
    /// A checksum differed: only the whole log helps.
    broken: bool,
    /// Its claims count only where no living owner claims.
    dead: bool,
}

impl OwnerClaims {
    /// A whole log.
    fn of(update: &ClaimsUpdate) -> Self {
        let mut log = Self { boot: update.owner.boot, pos: update.pos, ..Self::default() };
        for (shard, counter) in pairs(&update.ranges).filter(|&(_, counter)| counter > 0) {
            log.put(shard, counter);
        }
        log.put_sets(&update.sets);
        log
    }

    /// Takes a claim in without replicas; counter 0 takes it out.
    fn put(&mut self, shard: ShardId, counter: u64) {
        let old = match counter {
            0 => self.claims.remove(&shard),
            _ => self.claims.insert(shard, Claim { counter, replicas: Replicas::NONE }),
        };
        if let Some(old) = old {
            self.checksum = self.checksum.wrapping_sub(weight(shard, old.counter));
            let set = sets::weight(shard, &old.replicas);
            self.sets_checksum = self.sets_checksum.wrapping_sub(set);
        }
        if counter > 0 {
            self.checksum = self.checksum.wrapping_add(weight(shard, counter));
        }
    }

    /// Says who holds copies of claims that are in. Others are not looked at.
    fn put_sets(&mut self, sets: &Sets) {
        for (range, replicas) in sets.unpack() {
            let end = range.first.saturating_add(range.len);
            for (&shard, claim) in self.claims.range_mut(ShardId(range.first)..ShardId(end)) {
                let old = sets::weight(shard, &claim.replicas);
                let new = sets::weight(shard, &replicas);
                self.sets_checksum = self.sets_checksum.wrapping_sub(old).wrapping_add(new);
                claim.replicas = replicas.clone();
            }
        }
    }
}

/// Everything known of everybody's claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Book {
    owners: BTreeMap<NodeId, OwnerClaims>,
    /// The last log of each name's process before the present one: who held copies of its shards.
    former: BTreeMap<NodeId, OwnerClaims>,
    table: ClaimTable,
    /// Highest counter ever seen for each shard, whoever claimed it.
    highest: Vec<u64>,
}

/// The table follows from the rest.
impl Hash for Book {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.owners.hash(state);
        self.former.hash(state);
        self.highest.hash(state);
    }
}

impl Book {
    /// An empty book for `n_shards` shards.
    #[must_use]
    pub fn new(n_shards: u32) -> Self {
        Self {
            owners: BTreeMap::new(),
            former: BTreeMap::new(),
            table: ClaimTable::new(n_shards),
            highest: vec![0; n_shards as usize],
        }
    }

    /// The published form.
    #[must_use]
    pub fn table(&self) -> &ClaimTable {
        &self.table
    }

    /// The best claim for `shard`, its owner dead or alive.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<(Epoch, NodeBoot)> {
        self.table.get(shard)
    }

    /// Who holds copies of `shard`, by the best claim for it.
    #[must_use]
    pub fn replicas(&self, shard: ShardId) -> &[NodeBoot] {
        self.table.replicas(shard)
    }

    /// Whom this owner names as holders of copies of `shard`; none when it does not claim it, or
    /// another boot of it is known.
    #[must_use]
    pub fn replicas_of(&self, owner: NodeBoot, shard: ShardId) -> Option<&Replicas> {
        self.log_known(owner)?.claims.get(&shard).map(|claim| &claim.replicas)
    }

    /// What processes claimed of a shard that others of the same name have replaced.
    pub fn former(&self, shard: ShardId) -> impl Iterator<Item = (NodeBoot, &Replicas)> + '_ {
        self.former.iter().filter_map(move |(&node, known)| {
            let claim = known.claims.get(&shard)?;
            Some((NodeBoot { node, boot: known.boot }, &claim.replicas))
        })
    }

    /// The highest claim of a shard that anybody but `but` is known to have made and not given up,
    /// dead or alive.
    #[must_use]
    pub fn highest_claim(&self, shard: ShardId, but: NodeBoot) -> Option<Epoch> {
        let claims = self.owners.iter().chain(&self.former).filter_map(|(&node, known)| {
            let counter = known.claims.get(&shard)?.counter;
            let owner = NodeBoot { node, boot: known.boot };
            (owner != but).then_some(Epoch { counter, node })
        });
        claims.max()
    }

    fn log_known(&self, owner: NodeBoot) -> Option<&OwnerClaims> {
        let logs = [&self.owners, &self.former].into_iter();
        logs.filter_map(|logs| logs.get(&owner.node)).find(|known| known.boot == owner.boot)
    }

    /// How far the log of this boot is known; 0 when nothing is.
    #[must_use]
    pub fn pos_of(&self, owner: NodeBoot) -> u64 {
        self.log_known(owner).filter(|known| !known.broken).map_or(0, |known| known.pos)
    }

    /// The whole log of this boot, as far as it is known: for one who knows less of it.
    #[must_use]
    pub fn log_of(&self, owner: NodeBoot) -> Option<ClaimsUpdate> {
        let known = self.log_known(owner).filter(|known| !known.broken)?;
        let ranges = ranges_of(known.claims.iter().map(|(&shard, claim)| (shard, claim.counter)));
        let sets = known.claims.iter().map(|(&shard, claim)| (shard, &claim.replicas));
        let sets = Sets::pack(sets, known.sets_checksum);
        let (pos, checksum) = (known.pos, known.checksum);
        Some(ClaimsUpdate { owner, base: None, pos, ranges, checksum, sets })
    }

    /// The highest epoch counter ever heard of for `shard`; 0 for none.
    #[must_use]
    pub fn highest(&self, shard: ShardId) -> u64 {
        self.highest.get(shard.0 as usize).copied().unwrap_or(0)
    }

    /// Takes note of a counter that somebody remembers.
    pub fn remember(&mut self, shard: ShardId, counter: u64) {
        if let Some(highest) = self.highest.get_mut(shard.0 as usize) {
            *highest = (*highest).max(counter);
        }
    }

    /// Number of claims of each owner known, dead ones included.
    pub fn owners(&self) -> impl Iterator<Item = (NodeBoot, usize)> + '_ {
        self.owners
            .iter()
            .map(|(&node, claims)| (NodeBoot { node, boot: claims.boot }, claims.claims.len()))
    }

    /// Whether this boot's log has been received in whole.
    #[must_use]
    pub fn knows(&self, owner: NodeBoot) -> bool {
        self.owners.get(&owner.node).is_some_and(|known| known.boot == owner.boot && !known.broken)
    }

    /// An update of this owner was not taken: what is known of it may be behind.
    pub fn doubt(&mut self, owner: NodeBoot) {
        if let Some(known) = self.owners.get_mut(&owner.node).filter(|k| k.boot == owner.boot) {
            known.broken = true;
        }
    }

    /// Takes note of who lives: a claim of a dead owner hides none of a living one, whatever their
    /// epochs. An owner that was cut off and served on below the epoch of one who took over and
    /// died would else never be found.
    pub fn set_live(&mut self, is_live: impl Fn(NodeBoot) -> bool) -> Applied {
        let mut touched = BTreeSet::new();
        for (&node, known) in &mut self.owners {
            let dead = !is_live(NodeBoot { node, boot: known.boot });
            if std::mem::replace(&mut known.dead, dead) != dead {
                touched.extend(known.claims.keys().copied());
            }
        }
        self.settle(touched)
    }

    /// Applies an update, or says that it cannot be applied.
    ///
    /// Updates of an older boot, and those already known, change nothing.
    pub fn apply(&mut self, update: &ClaimsUpdate) -> Applied {
        let node = update.owner.node;
        let known = self.owners.get(&node);
        if known.is_some_and(|known| known.boot > update.owner.boot) {
            self.apply_to_former(update);
            return Applied::Same;
        }
        if !update.ranges.iter().all(|range| self.is_valid(range)) {
            return Applied::WantFull;
        }
        let same_boot = known.filter(|known| known.boot == update.owner.boot);
        match (update.base, same_boot) {
            (None, Some(known)) if update.pos < known.pos && !known.broken => Applied::Same,
            (None, _) => self.replace(update),
            (Some(_), None) => Applied::WantFull,
            (Some(_), Some(known)) if known.broken => Applied::WantFull,
            (Some(base), Some(known)) => {
                if update.pos < known.pos || (update.pos == known.pos && base < known.pos) {
                    Applied::Same
                } else if base != known.pos {
                    Applied::WantFull
                } else {
                    self.extend(update)
                }
            }
        }
    }

    /// A log of a process that is replaced changes nothing but what is known of its copies.
    fn apply_to_former(&mut self, update: &ClaimsUpdate) {
        let known = self.former.get(&update.owner.node).map(|known| (known.boot, known.pos));
        let is_newer = known < Some((update.owner.boot, update.pos));
        if update.base.is_some() || !is_newer || !update.ranges.iter().all(|it| self.is_valid(it)) {
            return;
        }
        let log = OwnerClaims::of(update);
        for (&shard, claim) in &log.claims {
            let highest = &mut self.highest[shard.0 as usize];
            *highest = claim.counter.max(*highest);
        }
        self.former.insert(update.owner.node, log);
    }

    fn is_valid(&self, range: &ClaimRange) -> bool {
        range.len > 0
            && range.first.checked_add(range.len).is_some_and(|end| end <= self.table.n_shards)
    }

    fn replace(&mut self, update: &ClaimsUpdate) -> Applied {
        let old = self.owners.remove(&update.owner.node).unwrap_or_default();
        let new = OwnerClaims::of(update);
        let same_boot = old.boot == new.boot;
        let touched: BTreeSet<ShardId> = if old.broken {
            (0..self.table.n_shards).map(ShardId).collect()
        } else {
            old.claims
                .iter()
                .filter(|&(shard, claim)| !same_boot || new.claims.get(shard) != Some(claim))
                .chain(new.claims.iter().filter(|&(s, claim)| old.claims.get(s) != Some(claim)))
                .map(|(&shard, _)| shard)
                .collect()
        };
        self.owners.insert(update.owner.node, new);
        if !same_boot && !old.claims.is_empty() {
            self.former.insert(update.owner.node, old);
        }
        self.settle(touched)
    }

    fn extend(&mut self, update: &ClaimsUpdate) -> Applied {
        let mut touched = BTreeSet::new();
        let Some(known) = self.owners.get_mut(&update.owner.node) else {
            return Applied::WantFull;
        };
        for (shard, counter) in pairs(&update.ranges) {
            known.put(shard, counter);
            touched.insert(shard);
        }
        known.put_sets(&update.sets);
        known.pos = update.pos;
        known.broken =
            (known.checksum, known.sets_checksum) != (update.checksum, update.sets.checksum);
        // What is wrong is told to nobody: the whole log will tell what has changed.
        if known.broken { Applied::WantFull } else { self.settle(touched) }
    }

    /// Works the best claim of each shard in `touched` out anew.
    fn settle(&mut self, touched: BTreeSet<ShardId>) -> Applied {
        let mut changed = Vec::new();
        for shard in touched {
            let best = self
                .owners
                .iter()
                .filter_map(|(&node, known)| {
                    let claim = known.claims.get(&shard)?;
                    let owner = NodeBoot { node, boot: known.boot };
                    let epoch = Epoch { counter: claim.counter, node };
                    Some((!known.dead, epoch, owner, claim))
                })
                .max_by_key(|&(lives, epoch, ..)| (lives, epoch));
            let entry = best.map_or(NOBODY, |(_, _, owner, claim)| {
                let Claim { counter, replicas } = claim.clone();
                TableEntry { counter, owner, replicas }
            });
            let claims = self.owners.values().filter_map(|known| known.claims.get(&shard));
            let highest = claims.map(|claim| claim.counter).max().unwrap_or(0);
            self.remember(shard, highest);
            if self.table.entry(shard) != Some(&entry) {
                self.table.set(shard, entry);
                changed.push(shard);
            }
        }
        if changed.is_empty() { Applied::Same } else { Applied::Changed(changed) }
    }
}

fn pairs(ranges: &[ClaimRange]) -> impl Iterator<Item = (ShardId, u64)> + '_ {
    ranges.iter().flat_map(|range| {
        (range.first..range.first + range.len).map(|shard| (ShardId(shard), range.counter))
    })
}

#[cfg(test)]
mod tests {
    use super::super::ClaimLog;
    use super::*;
    use crate::control;

    const A: NodeBoot = NodeBoot { node: NodeId(1), boot: BootId(10) };
    const B: NodeBoot = NodeBoot { node: NodeId(2), boot: BootId(20) };

    fn log(me: NodeBoot, shards: impl IntoIterator<Item = u32>, counter: u64) -> ClaimLog {
        let mut log = ClaimLog::new(me);
        for shard in shards {
            log.claim(ShardId(shard), counter);
        }
        let _ = log.commit();
        log
    }

    #[test]
    fn a_full_log_is_one_range_when_one_node_owns_everything() {
        let log = log(A, 0..16_384, 1);
        assert_eq!(log.full().ranges, [ClaimRange { first: 0, len: 16_384, counter: 1 }]);
    }

    #[test]
    fn a_delta_applies_at_its_base_and_nowhere_else() {
        let mut log = log(A, 0..8, 1);
        let mut book = Book::new(16);
        assert_eq!(book.apply(&log.heartbeat()), Applied::WantFull);
        assert!(matches!(book.apply(&log.full()), Applied::Changed(s) if s.len() == 8));
        log.claim(ShardId(9), 4);
        let first = log.commit().unwrap();
        log.release(ShardId(0));
        let second = log.commit().unwrap();
        assert_eq!(book.apply(&second), Applied::WantFull);
        assert_eq!(book.apply(&first), Applied::Changed(vec![ShardId(9)]));
        assert_eq!(book.apply(&first), Applied::Same);
        assert_eq!(book.apply(&second), Applied::Changed(vec![ShardId(0)]));
        assert_eq!(book.get(ShardId(0)), None);
        assert_eq!(book.highest(ShardId(0)), 1);
        assert_eq!(book.apply(&log.heartbeat()), Applied::Same);
    }

    #[test]
    fn the_higher_epoch_wins_whoever_speaks_last() {
        let (low, high) = (log(A, 0..4, 3), log(B, 0..4, 4));
        for order in [[&low, &high], [&high, &low]] {
            let mut book = Book::new(4);
            for log in order {
                let _ = book.apply(&log.full());
            }
            assert_eq!(book.get(ShardId(2)), Some((Epoch { counter: 4, node: B.node }, B)));
        }
    }

    #[test]
    fn a_newer_boot_voids_the_claims_of_the_older_one() {
        let mut book = Book::new(4);
        let _ = book.apply(&log(A, 0..4, 3).full());
        let again = NodeBoot { boot: BootId(11), ..A };
        let changed = book.apply(&ClaimLog::new(again).full());
        assert!(matches!(changed, Applied::Changed(shards) if shards.len() == 4));
        assert_eq!(book.get(ShardId(1)), None);
        assert_eq!(book.highest(ShardId(1)), 3);
        assert_eq!(book.apply(&log(A, 0..4, 9).full()), Applied::Same);
    }

    #[test]
    fn a_checksum_that_differs_asks_for_the_whole_log() {
        let mut log = log(A, 0..4, 1);
        let mut book = Book::new(4);
        let _ = book.apply(&log.full());
        log.claim(ShardId(1), 2);
        let mut update = log.commit().unwrap();
        update.ranges.clear();
        assert_eq!(book.apply(&update), Applied::WantFull);
        assert_eq!(book.apply(&log.heartbeat()), Applied::WantFull);
        assert!(matches!(book.apply(&log.full()), Applied::Changed(_)));
        assert_eq!(book.apply(&log.heartbeat()), Applied::Same);
    }

    #[test]
    fn an_owner_in_doubt_is_asked_for_its_whole_log() {
        let mut log = log(A, 0..4, 1);
        let mut book = Book::new(4);
        let _ = book.apply(&log.full());
        book.doubt(NodeBoot { boot: BootId(11), ..A });
        assert!(book.knows(A), "another boot is meant");
        book.doubt(A);
        assert!(!book.knows(A));
        log.claim(ShardId(1), 2);
        assert_eq!(book.apply(&log.commit().unwrap()), Applied::WantFull);
        assert!(matches!(book.apply(&log.full()), Applied::Changed(_)));
        assert!(book.knows(A));
    }

    #[test]
    fn a_dead_owner_hides_no_living_one() {
        let mut book = Book::new(4);
        let _ = book.apply(&log(A, 0..4, 2).full());
        let _ = book.apply(&log(B, 0..2, 3).full());
        let owner = |book: &Book, shard| book.get(ShardId(shard)).map(|(_, owner)| owner);
        assert_eq!(owner(&book, 0), Some(B));
        let both = vec![ShardId(0), ShardId(1)];
        assert_eq!(book.set_live(|owner| owner == A), Applied::Changed(both.clone()));
        assert_eq!(owner(&book, 0), Some(A));
        assert_eq!(book.highest(ShardId(0)), 3, "counters only grow");
        assert_eq!(book.set_live(|owner| owner == A), Applied::Same);
        assert_eq!(book.set_live(|_| true), Applied::Changed(both));
        assert_eq!(owner(&book, 0), Some(B));
        // Where nobody alive claims, the dead one is still known.
        let _ = book.set_live(|_| false);
        assert_eq!(owner(&book, 3), Some(A));
    }

    #[test]
    fn who_holds_copies_travels_with_the_claims_and_old_readers_do_not_see_it() {
        let mut log = log(A, 0..4, 1);
        let mut book = Book::new(8);
        let _ = book.apply(&ClaimsUpdate::decode(&log.full().encode()).unwrap());
        assert!(log.set_replicas(ShardId(1), Replicas::new([B])));
        assert!(!log.set_replicas(ShardId(1), Replicas::new([B])), "nothing new");
        assert!(!log.set_replicas(ShardId(7), Replicas::new([B])), "not claimed");
        let update = log.commit().unwrap();
        let bytes = update.encode();
        assert_eq!(ClaimsUpdate::decode(&bytes), Ok(update.clone()));
        let old: ClaimsUpdate = control::decode(&bytes).unwrap();
        assert_eq!(old, ClaimsUpdate { sets: Sets::default(), ..update.clone() });
        assert_eq!(book.apply(&update), Applied::Changed(vec![ShardId(1)]));
        assert_eq!(book.replicas(ShardId(1)), [B]);
        assert_eq!(book.apply(&log.heartbeat()), Applied::Same);
        // A change of the counter alone says who holds copies again.
        log.claim(ShardId(1), 2);
        assert_eq!(book.apply(&log.commit().unwrap()), Applied::Changed(vec![ShardId(1)]));
        assert_eq!(book.replicas_of(A, ShardId(1)), Some(&Replicas::new([B])));
        let mut other = Book::new(8);
        let _ = other.apply(&book.log_of(A).unwrap());
        assert_eq!(other.apply(&log.heartbeat()), Applied::Same);
        assert_eq!((other.pos_of(A), other.pos_of(B)), (log.pos(), 0));
        log.release(ShardId(1));
        let mut missed = log.commit().unwrap();
        missed.sets.checksum ^= 1;
        assert_eq!(book.apply(&missed), Applied::WantFull);
        assert_eq!(book.apply(&log.full()), Applied::Changed(vec![ShardId(1)]));
    }

    #[test]
    fn ranges_outside_the_shards_are_refused() {
        let mut book = Book::new(4);
        for (first, len) in [(4, 1), (0, 5), (u32::MAX, 2), (0, 0)] {
            let ranges = vec![ClaimRange { first, len, counter: 1 }];
            let update = ClaimsUpdate {
                owner: A,
                base: None,
                pos: 1,
                ranges,
                checksum: 0,
                sets: Sets::default(),
            };
            assert_eq!(book.apply(&update), Applied::WantFull, "{first}+{len}");
        }
    }
}
