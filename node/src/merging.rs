//! A shard of another history, merged into one that is served here, record by record.

use std::time::Duration;

use stead_shared::control::ShardEpoch;

use crate::host::Host;
use crate::logic::heal::Histories;
use crate::logic::heal::lineage::Lineage;
use crate::store::draft::Access;
use crate::store::merge::{MergeError, Merged};
use crate::store::record::{Record, RecordError};
use crate::store::shard::{Shard, session_key};
use crate::store::turns::Asker;

/// Takes in what another host served under a shard that is served here. Made by
/// [`Host::merging`].
#[derive(Clone, Debug)]
pub struct Merging {
    host: Host,
    at: ShardEpoch,
    histories: Histories,
}

impl Host {
    /// Begins to merge what another host served under a shard that is served here, in this epoch or a
    /// higher one.
    #[must_use]
    pub fn merging(&self, at: ShardEpoch) -> Merging {
        Merging { host: self.clone(), at, histories: Histories::UNKNOWN }
    }
}

impl Merging {
    /// Everything was merged: nobody will offer it again.
    pub fn finish(self) {
        if let Some(shard) = self.host.shard(self.at.shard) {
            shard.end_healing(&self.histories.theirs);
        }
    }

    /// Waits until all that was merged is where answers wait for it: with the shard's copies, and on
    /// disk. False when that is not known.
    pub(crate) async fn is_confirmed(&self) -> bool {
        match self.host.shard(self.at.shard) {
            Some(shard) => shard.acknowledged(Access::Change).await,
            None => false,
        }
    }

    /// Merges one of the records that [`SetAside::records`](crate::SetAside::records) gives, in their
    /// order. It waits for the session's turn. None for a record that is not a session's.
    ///
    /// What becomes of a session says [`crate::logic::heal`]. Records of a process that does not say
    /// where its state comes from add sessions that are not here, and change none. Merging the same
    /// again changes nothing.
    ///
    /// # Errors
    /// When nothing was taken in: [`MergeError`].
    pub async fn add(&mut self, record: &[u8]) -> Result<Option<Merged>, MergeError> {
        let Self { host, at, histories } = self;
        let shard = host.shard(at.shard).ok_or(MergeError::NotServed)?;
        let stored = match Record::decode(record)? {
            Record::Shard { seq } => return shard.raise_seq(at.epoch, seq, 0).map(|()| None),
            Record::ShardPast { seq, floor_ms, lineage } => {
                let theirs = Lineage::of(lineage).ok_or(RecordError::Malformed)?;
                *histories = Histories::new(shard.lineage(), theirs);
                return shard.raise_seq(at.epoch, seq, floor_ms).map(|()| None);
            }
            Record::Unconfirmed => {
                histories.is_unconfirmed = true;
                return Ok(None);
            }
            // Records of another kind follow a session that was copied, and an offer is no copy.
            session => session.into_stored(host.core(), Duration::ZERO)?,
        };
        let key = session_key(&stored.key);
        if let Some(merged) = shard.is_settled(&key, &stored, (at.epoch, histories))? {
            return Ok(Some(merged));
        }
        // A turn that runs believes that the session is as it was.
        let _turn = Shard::wait_turn(&shard, &key, Asker::Node).await?;
        shard.take_in(&key, stored, (at.epoch, histories)).map(Some)
    }
}
