//! A shard of another history, merged into one that is served here, record by record.

use stead_shared::control::ShardEpoch;

use crate::host::Host;
use crate::logic::heal::lineage::Lineage;
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

/// Where two states of a shard come from.
#[derive(Clone, Debug)]
pub(crate) struct Histories {
    /// That of the state here, when the first record came.
    pub(crate) ours: Lineage,
    /// Empty until the first record has said so, and of a process that does not say it.
    pub(crate) theirs: Lineage,
    /// What theirs has beyond where they parted was answered to nobody.
    pub(crate) is_unconfirmed: bool,
}

impl Host {
    /// Begins to merge what another host served under a shard that is served here, in this epoch or a
    /// higher one.
    #[must_use]
    pub fn merging(&self, at: ShardEpoch) -> Merging {
        let (ours, theirs) = (Lineage::EMPTY, Lineage::EMPTY);
        let histories = Histories { ours, theirs, is_unconfirmed: false };
        Merging { host: self.clone(), at, histories }
    }
}

impl Merging {
    /// Everything was merged: nobody will offer it again.
    pub fn finish(self) {
        if let Some(shard) = self.host.shard(self.at.shard) {
            shard.is_healed();
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
        let now = host.core().now();
        let stored = match Record::decode(record)? {
            Record::Shard { seq } => return shard.raise_seq(at.epoch, seq, 0).map(|()| None),
            Record::ShardPast { seq, floor_ms, lineage } => {
                let theirs = Lineage::of(lineage).ok_or(RecordError::Malformed)?;
                let ours = shard.lineage();
                *histories = Histories { ours, theirs, is_unconfirmed: false };
                return shard.raise_seq(at.epoch, seq, floor_ms).map(|()| None);
            }
            Record::Unconfirmed => {
                histories.is_unconfirmed = true;
                return Ok(None);
            }
            Record::Session(session) => session.into_stored(now),
            Record::Windowed(session, window) => {
                let mut stored = session.into_stored(now);
                stored.set_window(window.into_window(now));
                stored
            }
            Record::Whole(session, past, window) => {
                let mut stored = past.complete(session.into_stored(now))?;
                host.core().see_stamp(stored.data.written);
                if let Some(window) = window {
                    stored.set_window(window.into_window(now));
                }
                stored
            }
            // They follow a session that was copied, and an offer is no copy.
            Record::Gone { .. }
            | Record::Touched { .. }
            | Record::Changed(..)
            | Record::Trimmed { .. } => return Err(RecordError::Malformed.into()),
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
