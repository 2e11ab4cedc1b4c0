//! What the process wants of its agent: the last word of each kind counts, so that the callers
//! never wait and what waits is bounded by the number of nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::id::{BootId, NodeBoot, NodeId};
use crate::keys::Keyring;
use crate::member::Phase;

/// Most nodes that are named in one kind of wish. A cluster has fewer; what is above is a hint
/// that comes again.
const NAMED_MAX: usize = 4096;

/// What waits for the agent's next turn.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) phase: Option<Phase>,
    pub(super) weight: Option<u16>,
    pub(super) keys: Option<Keyring>,
    pub(super) leave: bool,
    pub(super) stop: bool,
    pub(super) accused: BTreeSet<NodeId>,
    pub(super) refused: BTreeSet<(NodeBoot, NodeId)>,
    pub(super) other_boots: BTreeMap<NodeId, BootId>,
}

/// Where wishes wait.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    wishes: Mutex<Wishes>,
    changed: Notify,
}

impl Inbox {
    pub(super) fn wish(&self, wish: impl FnOnce(&mut Wishes)) {
        wish(&mut self.wishes.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    pub(super) fn accuse(&self, node: NodeId) {
        self.wish(|wishes| {
            if wishes.accused.len() < NAMED_MAX {
                wishes.accused.insert(node);
            }
        });
    }

    pub(super) fn refused(&self, node: NodeBoot, by: NodeId) {
        self.wish(|wishes| {
            if wishes.refused.len() < NAMED_MAX {
                wishes.refused.insert((node, by));
            }
        });
    }

    pub(super) fn other_boot(&self, node: NodeId, boot: BootId) {
        self.wish(|wishes| {
            if wishes.other_boots.len() < NAMED_MAX {
                let newest = wishes.other_boots.entry(node).or_insert(boot);
                *newest = boot.max(*newest);
            }
        });
    }

    /// Waits for a wish. May be cancelled and repeated.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn take(&self) -> Wishes {
        std::mem::take(&mut self.wishes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wishes_are_kept_until_they_are_taken_and_the_last_word_counts() {
        let inbox = Inbox::default();
        inbox.wish(|wishes| wishes.phase = Some(Phase::Joining));
        inbox.wish(|wishes| wishes.phase = Some(Phase::Ready));
        inbox.accuse(NodeId(1));
        inbox.accuse(NodeId(1));
        inbox.other_boot(NodeId(1), BootId(7));
        inbox.other_boot(NodeId(1), BootId(6));
        inbox.changed().await;
        let wishes = inbox.take();
        assert_eq!(wishes.phase, Some(Phase::Ready));
        assert_eq!(wishes.accused.len(), 1);
        assert_eq!(wishes.other_boots.get(&NodeId(1)), Some(&BootId(7)));
        assert_eq!(inbox.take().phase, None);
    }
}
