//! Claiming what nobody holds (R0), at first and after a crash that left no copy.
//!
//! ```text
//! target                                   every live member, routers too
//!   WhoHolds{digest, shards} ───────────▶    looks into its book
//!   ◀─── Holds{digest, holdings, highest}
//!   all have answered with the same digest, nobody holds it:
//!   claims at 1 + the highest counter anybody remembers
//! ```
//!
//! Only the target asks, and only answers under its own members digest count. Two nodes that both
//! ask see each other's digest, and at most one of them is the target under it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stead_shared::claims::ClaimRange;
use stead_shared::control::{Control, Holding, ShardRange, Token};
use stead_shared::id::{Epoch, NodeBoot, NodeId, ShardId};
use stead_shared::time::Time;

/// Unanswered questions are sent again.
pub const ASK_EVERY: Duration = Duration::from_millis(200);
/// A question that got no full set of answers in this time is dropped and asked anew.
pub const ASK_FOR: Duration = Duration::from_secs(5);

/// One question to everybody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// Ties answers to it.
    pub token: Token,
    /// The digest under which it was asked.
    pub digest: u64,
    /// The shards.
    pub shards: BTreeSet<ShardId>,
    /// Who has not answered yet.
    pub waiting: BTreeSet<NodeId>,
    /// Highest counter anybody remembers.
    pub highest: BTreeMap<ShardId, u64>,
    /// Who was asked at all.
    pub asked: BTreeSet<NodeId>,
    /// Shards that somebody holds by its own word: one serves it, or several may yet take it over.
    pub held: BTreeMap<ShardId, BTreeSet<NodeBoot>>,
    /// Shards that somebody holds by the word of others, who may be behind: the highest counter
    /// that any of them knows, and whose it is.
    pub said_to_be_held: BTreeMap<ShardId, (u64, NodeBoot)>,
    /// The highest counter at which each of them is said to hold it.
    pub held_at: BTreeMap<(ShardId, NodeBoot), u64>,
    /// Asked since.
    pub since: Time,
    /// When to ask those again who are silent.
    pub resend_at: Time,
    /// Somebody answered under another digest.
    pub disagreed: bool,
}

impl Query {
    /// A question that is asked at `now`, of `waiting`, under `digest`.
    #[must_use]
    pub fn new(
        token: Token,
        digest: u64,
        shards: BTreeSet<ShardId>,
        waiting: BTreeSet<NodeId>,
        now: Time,
    ) -> Self {
        Self {
            token,
            digest,
            shards,
            asked: waiting.clone(),
            waiting,
            highest: BTreeMap::new(),
            held: BTreeMap::new(),
            said_to_be_held: BTreeMap::new(),
            held_at: BTreeMap::new(),
            since: now,
            resend_at: now,
            disagreed: false,
        }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> Control {
        Control::WhoHolds {
            token: self.token,
            members_digest: self.digest,
            shards: ShardRange::pack(self.shards.iter().copied()),
        }
    }

    /// Takes one answer in. `binding`: the answerer is a ready node, so its digest must agree.
    pub fn answer(
        &mut self,
        from: NodeId,
        digest: u64,
        binding: bool,
        (holdings, highest): (&[Holding], &[ClaimRange]),
    ) {
        if !self.waiting.remove(&from) {
            return;
        }
        self.disagreed |= binding && digest != self.digest;
        for holding in holdings {
            let end = holding.range.first.saturating_add(holding.range.len);
            for &shard in self.shards.range(ShardId(holding.range.first)..ShardId(end)) {
                let counter = self.held_at.entry((shard, holding.owner)).or_default();
                *counter = holding.range.counter.max(*counter);
                if holding.owner.node == from {
                    self.held.entry(shard).or_default().insert(holding.owner);
                    continue;
                }
                let said = (holding.range.counter, holding.owner);
                let newest = self.said_to_be_held.entry(shard).or_insert(said);
                *newest = said.max(*newest);
            }
        }
        for range in highest {
            let end = range.first.saturating_add(range.len);
            for &shard in self.shards.range(ShardId(range.first)..ShardId(end)) {
                let known = self.highest.entry(shard).or_default();
                *known = (*known).max(range.counter);
            }
        }
    }

    /// Those who hold `shard`, when all have answered. What others say of an owner that was asked
    /// itself counts for nothing: they may have missed that it let go.
    pub fn holders(&self, shard: ShardId) -> impl Iterator<Item = NodeBoot> {
        let said = self.said_to_be_held.get(&shard).map(|(_, owner)| owner);
        let said = said.filter(|owner| !self.asked.contains(&owner.node));
        let held = self.held.get(&shard);
        held.into_iter().flatten().chain(said.filter(|_| held.is_none())).copied()
    }

    /// The same, of those who hold it above `epoch`.
    pub fn holders_above(&self, shard: ShardId, epoch: Epoch) -> impl Iterator<Item = NodeBoot> {
        self.holders(shard).filter(move |holder| {
            let counter = self.held_at.get(&(shard, *holder)).copied().unwrap_or(0);
            epoch < Epoch { counter, node: holder.node }
        })
    }
}
