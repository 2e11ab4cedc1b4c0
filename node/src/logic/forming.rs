//! How the first node of a cluster comes to own everything (R0, forming).
//!
//! A node without seeds founds a cluster at once. A node with seeds first hears of other members.
//! When one of them owns anything it joins; when all are joining, the one with the lowest id asks
//! the others, and founds when all have said yes:
//!
//! ```text
//! n1 (lowest)                    n2, n3 (joining)
//!   Propose{token, members} ───▶   promise: follow nobody else for 5 s
//!   ◀─── Accept{token}
//!   all accepted within 3 s: claims every shard, ready
//!   claims ────────────────────▶   know an owner: join it
//! ```
//!
//! The promise outlives the proposal by 2 s, so that two proposers which share one acceptor never
//! both found. Two groups of joiners that know nothing of each other may both found: nothing but
//! the operator's seeds ties them, and when they meet the higher epochs win.

use std::collections::BTreeSet;
use std::time::Duration;

use stead_shared::control::{Control, Token};
use stead_shared::id::{NodeBoot, NodeId};
use stead_shared::time::Time;

/// How long a proposal may gather answers.
const PROPOSAL_FOR: Duration = Duration::from_secs(3);
/// How long an acceptor follows nobody else. Longer than [`PROPOSAL_FOR`] by a message's delay.
const PROMISE_FOR: Duration = Duration::from_secs(5);
/// How long to wait before another proposal.
const PROPOSE_AGAIN: Duration = Duration::from_millis(500);
/// Unanswered proposals are sent again.
const RESEND_EVERY: Duration = Duration::from_millis(200);

/// When to form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FormingConfig {
    /// Whether any seed was named (`--join`).
    pub has_seeds: bool,
    /// How long no new joining member may have appeared.
    pub quiet: Duration,
    /// How long to look for a seed before forming alone; `None` for ever.
    pub alone_after: Option<Duration>,
}

impl Default for FormingConfig {
    fn default() -> Self {
        Self {
            has_seeds: false,
            quiet: Duration::from_secs(1),
            alone_after: Some(Duration::from_secs(10)),
        }
    }
}

/// What a joining node sees of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// This node.
    pub me: NodeBoot,
    /// Live joining nodes, this one included, by id.
    pub joining: &'a BTreeSet<NodeBoot>,
    /// Somebody who is ready, or leaving, or owns shards, and is alive.
    pub owner: Option<NodeBoot>,
    /// Any live member but this one: a seed answered.
    pub has_peer: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Wait,
    /// Claim every shard. `alone`: no seed was reachable.
    Found {
        /// Whether seeds were named and none answered.
        alone: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Proposal {
    token: Token,
    waiting: BTreeSet<NodeBoot>,
    members: Vec<NodeBoot>,
    until: Time,
    resend_at: Time,
}

/// The forming of one joining node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forming {
    config: FormingConfig,
    started: Time,
    seen: BTreeSet<NodeBoot>,
    quiet_since: Time,
    proposal: Option<Proposal>,
    propose_at: Time,
    promised: Option<(NodeBoot, Time)>,
    next_token: Token,
}

impl Forming {
    /// A node that starts at `now`.
    #[must_use]
    pub fn new(config: FormingConfig, now: Time) -> Self {
        Self {
            config,
            started: now,
            seen: BTreeSet::new(),
            quiet_since: now,
            proposal: None,
            propose_at: now,
            promised: None,
            next_token: 1,
        }
    }

    /// Shows `visit` every moment that is remembered, and how long after it something may happen.
    pub(super) fn each_time(&mut self, visit: &mut dyn FnMut(&mut Time, Duration)) {
        visit(&mut self.started, self.config.alone_after.unwrap_or_default());
        visit(&mut self.quiet_since, self.config.quiet);
        visit(&mut self.propose_at, Duration::ZERO);
        if let Some(proposal) = &mut self.proposal {
            visit(&mut proposal.until, Duration::ZERO);
            visit(&mut proposal.resend_at, Duration::ZERO);
        }
        if let Some((_, until)) = &mut self.promised {
            visit(until, Duration::ZERO);
        }
    }

    /// Looks at the cluster and takes the next step.
    pub fn step(&mut self, now: Time, sight: Sight<'_>, out: &mut Vec<(NodeId, Control)>) -> Step {
        if *sight.joining != self.seen {
            if sight.joining.difference(&self.seen).next().is_some() {
                self.quiet_since = now;
            }
            self.seen.clone_from(sight.joining);
            self.proposal = None;
        }
        if sight.owner.is_some() {
            self.proposal = None;
            return Step::Wait;
        }
        if !self.config.has_seeds {
            return Step::Found { alone: false };
        }
        if !sight.has_peer {
            let alone =
                self.config.alone_after.is_some_and(|after| now.since(self.started) >= after);
            return if alone { Step::Found { alone: true } } else { Step::Wait };
        }
        self.propose(now, sight, out)
    }

    fn propose(&mut self, now: Time, sight: Sight<'_>, out: &mut Vec<(NodeId, Control)>) -> Step {
        let lowest = sight.joining.iter().all(|other| other.node >= sight.me.node);
        let promised = self.promised.is_some_and(|(to, until)| to != sight.me && now < until);
        if !lowest || promised || now.since(self.quiet_since) < self.config.quiet {
            return Step::Wait;
        }
        if self.proposal.as_ref().is_some_and(|proposal| proposal.until <= now) {
            self.proposal = None;
            self.propose_at = now + PROPOSE_AGAIN;
        }
        if self.proposal.is_none() && now >= self.propose_at {
            self.proposal = Some(Proposal {
                token: self.next_token,
                waiting: sight.joining.iter().copied().filter(|who| *who != sight.me).collect(),
                members: sight.joining.iter().copied().collect(),
                until: now + PROPOSAL_FOR,
                resend_at: now,
            });
            self.next_token += 1;
            self.promised = Some((sight.me, now + PROMISE_FOR));
        }
        let Some(proposal) = &mut self.proposal else { return Step::Wait };
        if proposal.waiting.is_empty() {
            self.proposal = None;
            return Step::Found { alone: false };
        }
        if now >= proposal.resend_at {
            proposal.resend_at = now + RESEND_EVERY;
            let (token, members) = (proposal.token, &proposal.members);
            out.extend(
                proposal
                    .waiting
                    .iter()
                    .map(|who| (who.node, Control::Propose { token, members: members.clone() })),
            );
        }
        Step::Wait
    }

    /// Answers a proposal of `from`. A promise to itself does not bind a node: by saying yes it
    /// gives its own proposal up.
    pub fn on_propose(
        &mut self,
        now: Time,
        from: NodeBoot,
        (token, members): (Token, &[NodeBoot]),
        sight: Sight<'_>,
    ) -> Control {
        if let Some(owner) = sight.owner {
            return Control::Reject { token, rather: owner };
        }
        if let Some((to, until)) = self.promised
            && to != from
            && to != sight.me
            && now < until
        {
            return Control::Reject { token, rather: to };
        }
        let lower = sight.joining.iter().find(|who| who.node < from.node && !members.contains(who));
        if let Some(&rather) = lower {
            return Control::Reject { token, rather };
        }
        self.promised = Some((from, now + PROMISE_FOR));
        self.proposal = None;
        Control::Accept { token }
    }

    /// An acceptor said yes.
    pub fn on_accept(&mut self, now: Time, from: NodeBoot, token: Token) {
        if let Some(proposal) = &mut self.proposal
            && proposal.token == token
            && now < proposal.until
        {
            proposal.waiting.remove(&from);
        }
    }

    /// An acceptor said no: try again a little later.
    pub fn on_reject(&mut self, now: Time, token: Token) {
        if self.proposal.as_ref().is_some_and(|proposal| proposal.token == token) {
            self.proposal = None;
            self.propose_at = now + PROPOSE_AGAIN;
        }
    }
}
