//! What must always hold.

use super::*;

impl Ownership {
    /// Panics when the machine contradicts itself.
    pub fn check_invariants(&self) {
        for (&shard, slot) in &self.slots {
            let epoch = match slot {
                Slot::Serving { epoch } | Slot::Sealed { epoch } => {
                    assert_eq!(epoch.node, self.config.me.node, "serves in another's epoch");
                    epoch
                }
                Slot::Granted { epoch, next, .. } => {
                    assert!(next > epoch, "a grant does not raise the epoch of {shard}");
                    epoch
                }
            };
            assert_eq!(self.log.counter(shard), Some(epoch.counter), "claim of {shard}");
        }
        assert_eq!(self.log.len(), self.slots.len(), "claims without a shard behind them");
        for handoff in self.outgoing.values() {
            if handoff.is_sealed() {
                for shard in handoff.ids() {
                    let open = matches!(self.slots.get(&shard), Some(Slot::Serving { .. }));
                    let allowed = !self.config.rules.gate_closes_first;
                    assert!(!open || allowed, "{shard} serves while sealed");
                }
            }
        }
    }
}
