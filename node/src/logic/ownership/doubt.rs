//! Doubt (R11): nobody was heard for too long, so this node's shards may have other owners.
//!
//! ```text
//! doubting node                              every live member
//!   WhoHolds{all its shards} ────────────────▶
//!   ◀──────────────────────────────── Holds
//!   no live owner above one's own epochs: certain
//!   one above: its claims are asked for, its shards yielded, and everybody asked again
//! ```
//! Nobody heard for [`ALONE_AFTER`], or nobody there: certain, alone. While somebody is heard and
//! nobody answers, the doubt lasts.

use super::*;

/// How long nobody must have been heard for this node to be taken for isolated.
pub const ALONE_AFTER: Duration = Duration::from_secs(2);
/// How often everybody is asked.
const DOUBT_ASK_EVERY: Duration = Duration::from_millis(200);
/// A machine that is not called for so long did not listen either.
const STOOD_STILL: Duration = Duration::from_millis(500);

/// A doubt that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Doubt {
    number: u64,
    token: Token,
    quiet_since: Time,
    looked_at: Time,
    ask_at: Time,
}

impl Doubt {
    pub(super) fn each_time(&mut self, visit: &mut dyn FnMut(&mut Time, Duration)) {
        visit(&mut self.quiet_since, ALONE_AFTER);
        visit(&mut self.looked_at, STOOD_STILL);
        visit(&mut self.ask_at, Duration::ZERO);
    }
}

impl Ownership {
    pub(super) fn on_doubt(&mut self, number: u64, out: &mut Vec<Action>) {
        if !self.config.rules.heard_lately {
            out.push(Action::Certain { doubt: number, alone: false });
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        let now = self.now;
        self.doubt = Some(Doubt { number, token, quiet_since: now, looked_at: now, ask_at: now });
    }

    pub(super) fn on_heard(&mut self, number: u64) {
        if let Some(doubt) = self.doubt.as_mut().filter(|doubt| doubt.number == number) {
            doubt.quiet_since = self.now;
        }
    }

    pub(super) fn advance_doubt(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let Some(doubt) = &mut self.doubt else { return };
        if STOOD_STILL < now.since(doubt.looked_at) {
            doubt.quiet_since = now;
        }
        doubt.looked_at = now;
        let is_alone = ALONE_AFTER <= now.since(doubt.quiet_since);
        if is_alone || self.members.live_peers().next().is_none() {
            self.end_doubt(true, out);
            return;
        }
        if doubt.ask_at <= now {
            doubt.ask_at = now + DOUBT_ASK_EVERY;
            let message = Control::WhoHolds {
                token: doubt.token,
                // It asks for no right to claim anything.
                members_digest: NO_CLAIM,
                shards: ShardRange::pack(self.slots.keys().copied()),
            };
            for peer in self.members.live_peers() {
                out.push(Action::Send { to: peer.id, message: message.clone() });
            }
        }
    }

    /// A member has said who holds the shards of this node.
    pub(super) fn on_doubt_answer(
        &mut self,
        from: NodeBoot,
        token: Token,
        holdings: &[Holding],
        out: &mut Vec<Action>,
    ) {
        let is_asked = self.doubt.is_some_and(|doubt| doubt.token == token);
        if !is_asked || !self.members.is_live(from) {
            return;
        }
        let others = self.owners_above(holdings);
        if others.is_empty() {
            self.end_doubt(false, out);
        }
        for owner in others {
            self.ask_claims(owner, out);
        }
    }

    /// Live owners of shards of this node at epochs above its own, by what somebody says.
    fn owners_above(&self, holdings: &[Holding]) -> BTreeSet<NodeId> {
        let mut owners = BTreeSet::new();
        for Holding { owner, range } in holdings {
            let epoch = Epoch { counter: range.counter, node: owner.node };
            let end = range.first.saturating_add(range.len);
            let mut slots = self.slots.range(ShardId(range.first)..ShardId(end));
            let is_above = slots.any(|(_, slot)| slot.newest() < epoch);
            if is_above && *owner != self.config.me && self.members.is_live(*owner) {
                owners.insert(owner.node);
            }
        }
        owners
    }

    /// Claims have come in: if they were the ones that were missing, the next answers say so.
    pub(super) fn ask_again(&mut self) {
        if let Some(doubt) = &mut self.doubt {
            doubt.ask_at = self.now;
        }
    }

    fn end_doubt(&mut self, alone: bool, out: &mut Vec<Action>) {
        if let Some(doubt) = self.doubt.take() {
            self.is_alone = alone;
            self.review_majority(out);
            out.push(Action::Certain { doubt: doubt.number, alone });
            self.recheck = true;
        }
    }
}

impl Slot {
    /// The newest epoch that this node has made for the shard.
    fn newest(self) -> Epoch {
        match self {
            Self::Serving { epoch } | Self::Sealed { epoch } => epoch,
            Self::Granted { next, .. } => next,
        }
    }
}
