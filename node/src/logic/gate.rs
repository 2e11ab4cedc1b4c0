//! Whether a shard's requests are served: a shard has one gate, and whoever serves it asks the gate
//! before it begins and again after every wait (R2).

use stead_shared::id::Epoch;
use stead_shared::refusal::Refusal;
use stead_shared::rules::Rules;

/// Whether a shard's requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Served, in this epoch.
    Serving(Epoch),
    /// Closed for a move. It was served in this epoch.
    Sealed(Epoch),
    /// Not here any more.
    Gone,
}

impl Gate {
    /// The epoch in which new requests are served.
    ///
    /// # Errors
    /// Why none is.
    pub fn open(self) -> Result<Epoch, Refusal> {
        match self {
            Self::Serving(epoch) => Ok(epoch),
            Self::Sealed(_) => Err(Refusal::Moving),
            Self::Gone => Err(Refusal::NotOwner { claim: None }),
        }
    }

    /// Whether a request that names the epoch `named` can be served (R9). One that names an older
    /// epoch can: only the owner serves, and it answers with its own. One that names a newer epoch
    /// knows of another owner.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn open_for(self, named: Option<Epoch>, rules: &Rules) -> Result<(), Refusal> {
        let served = self.open()?;
        match named {
            Some(named) if served < named && rules.newest_serves => {
                Err(Refusal::NotOwner { claim: None })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The epoch in which turns that run may commit.
    #[must_use]
    pub fn epoch(self) -> Option<Epoch> {
        match self {
            Self::Serving(epoch) | Self::Sealed(epoch) => Some(epoch),
            Self::Gone => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use stead_shared::id::NodeId;

    use super::*;

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, node: NodeId(1) }
    }

    const NOT_OWNER: Refusal = Refusal::NotOwner { claim: None };

    #[test]
    fn an_open_gate_serves_all_but_those_who_know_of_a_newer_owner() {
        let gate = Gate::Serving(epoch(3));
        for (named, served) in
            [(None, Ok(())), (Some(2), Ok(())), (Some(3), Ok(())), (Some(4), Err(NOT_OWNER))]
        {
            assert_eq!(gate.open_for(named.map(epoch), &Rules::ALL), served, "{named:?}");
        }
        let off = Rules { newest_serves: false, ..Rules::ALL };
        assert_eq!(gate.open_for(Some(epoch(4)), &off), Ok(()));
    }

    #[test]
    fn a_closed_gate_serves_nobody_and_lets_turns_finish() {
        let gate = Gate::Sealed(epoch(3));
        assert_eq!(gate.open_for(None, &Rules::ALL), Err(Refusal::Moving));
        assert_eq!(gate.epoch(), Some(epoch(3)));
    }

    #[test]
    fn what_is_gone_serves_and_finishes_nothing() {
        assert_eq!(Gate::Gone.open_for(Some(epoch(1)), &Rules::ALL), Err(NOT_OWNER));
        assert_eq!(Gate::Gone.epoch(), None);
    }
}
