//! On the smaller side of a cut: serve on, or stop.
//!
//! A node that stops keeps what it has: its gates stay open for the machine and closed for requests,
//! and it claims nothing, until enough of the others are heard again.

use super::*;

impl Ownership {
    /// Takes in who is there.
    pub(super) fn count_members(&mut self) {
        let nodes = || self.members.list.iter().filter(|member| member.role == Role::Node);
        let is_ready = |m: &&Member| m.state.is_live() && m.phase == Phase::Ready;
        let ready: BTreeSet<NodeId> = nodes().filter(is_ready).map(|m| m.id).collect();
        let left = nodes().filter(|m| m.state == MemberState::Left || m.phase == Phase::Leaving);
        let left: BTreeSet<NodeId> =
            left.filter(|m| m.id != self.config.me.node).map(|m| m.id).collect();
        self.majority.see(self.now, ready, &left);
    }

    /// Whether this node is cut off with less than half of its cluster, as far as it knows.
    #[must_use]
    pub fn is_minority(&self) -> bool {
        let me = BTreeSet::from([self.config.me.node]);
        self.majority.is_minority() || self.is_alone && self.majority.is_minority_of(&me)
    }

    /// Nodes that count, and how many of them are here.
    #[must_use]
    pub fn settled(&self) -> (usize, usize) {
        let (settled, ready) = self.majority.count();
        (settled, if self.is_alone { ready.min(1) } else { ready })
    }

    /// Whether this node answers nothing and claims nothing.
    pub(super) fn is_stopped(&self) -> bool {
        match self.config.on_minority {
            OnMinority::Serve => false,
            OnMinority::Stop => self.was_minority,
        }
    }

    /// Somebody spoke.
    pub(super) fn hears(&mut self) {
        self.is_alone = false;
    }

    pub(super) fn on_forget(&mut self, node: NodeId) {
        let lives = self.members.find(node).is_some_and(|member| member.state.is_live());
        if !lives {
            self.majority.forget(node);
        }
    }

    pub(super) fn review_majority(&mut self, out: &mut Vec<Action>) {
        self.majority.advance(self.now);
        let is_minority = self.is_minority();
        if std::mem::replace(&mut self.was_minority, is_minority) == is_minority {
            return;
        }
        let stops = self.config.on_minority == OnMinority::Stop;
        if stops {
            out.push(Action::Stop(is_minority));
            self.recheck = true;
        }
        let (settled, ready) = self.settled();
        out.push(Action::Note(Note::Minority { is_minority, stops, settled, ready }));
    }
}
