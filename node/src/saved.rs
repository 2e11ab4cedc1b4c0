//! What the disk holds when a node starts: taken in, and kept until it is decided what becomes of
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{describe_gauge, gauge};
use stead_shared::config::NodeConfig;
use stead_shared::control::{BegunShard, SavedKind, ShardEpoch};
use stead_shared::id::{BootId, Epoch, NodeBoot, NodeId, ShardId, Version};
use stead_shared::net::disk::known_members;

use crate::disk::{Damage, Disk, DiskConfig, Recovered, RecoveredShard, Role, ShardMeta};
use crate::failure::NodeError;
use crate::host::{Host, Incoming};
use crate::logic::durable::Beginning;
use crate::logic::recovery::Saved;
use crate::store::arriving::Arriving;
use crate::store::aside::SetAside;
use crate::store::core::Core;
use crate::store::record::RecordError;
use crate::store::saving::{Pen, Saving};

/// Bytes that are read from disk at a time.
const READ_BYTES: usize = 1 << 20;

/// Why what is on disk cannot be taken in. Nothing on it was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// There is more than this node may hold in memory.
    #[error(
        "the sessions on disk take more memory than --memory-max allows: it was reached at shard \
         {shard}, with {taken} bytes taken; raise --memory-max at least for this start"
    )]
    MemoryFull {
        /// Where that was.
        shard: ShardId,
        /// What was taken by then.
        taken: u64,
    },
    /// The cluster has fewer shards than there were.
    #[error(
        "the data directory holds shard {shard}, and --shards is {n_shards}: the number of shards \
         is fixed for the life of a cluster; start this node with the --shards of before"
    )]
    ShardCount {
        /// A shard that there is not.
        shard: ShardId,
        /// How many there are.
        n_shards: u32,
    },
}

/// Shards as the disk held them at the start.
#[derive(Default)]
pub(crate) struct Kept {
    shards: Mutex<BTreeMap<ShardId, KeptShard>>,
    quarantined: Mutex<BTreeMap<ShardId, String>>,
}

struct KeptShard {
    at: Version,
    begun: Option<Beginning>,
    arrived: Arriving,
    damaged: Option<String>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("shards", &self.shards().len()).finish_non_exhaustive()
    }
}

impl Kept {
    fn shards(&self) -> MutexGuard<'_, BTreeMap<ShardId, KeptShard>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn aside(&self) -> MutexGuard<'_, BTreeMap<ShardId, String>> {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// Writes every change to `disk` from now on, before anything is served, and takes in what is
    /// there. `sync`: answers wait for it. Blocks, as long as that takes.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        &self,
        disk: Disk,
        sync: bool,
        recovered: &Recovered,
        n_shards: u32,
    ) -> Result<BTreeMap<ShardId, Saved>, LoadError> {
        let core = self.core();
        let saving = Arc::new(Saving::new(disk, sync));
        let mut all = BTreeMap::new();
        for found in &recovered.shards {
            let shard = found.shard;
            if n_shards <= shard.0 {
                return Err(LoadError::ShardCount { shard, n_shards });
            }
            saving.keep(shard);
            match kept_of(core, &saving, found)? {
                Some((kept, saved)) => {
                    self.kept().shards().insert(shard, kept);
                    all.insert(shard, saved);
                }
                None => saving.release(shard, None).forget(),
            }
        }
        // One process, one disk.
        let _ = core.saving.set(saving);
        Ok(all)
    }

    /// Serves what the disk held of a shard. True when there was any.
    pub(crate) fn open_saved(&self, shard: ShardId, epoch: Epoch) -> bool {
        let Some(kept) = self.kept().shards().remove(&shard) else { return false };
        let Some(saving) = self.core().saving.get() else { return false };
        let at = kept.at;
        // The first time counts: what is missed since then is missed now.
        let begun = kept.begun.unwrap_or(Beginning { epoch, from: Some(at) });
        let pen = saving.release(shard, Some(begun));
        self.serve_arrived(shard, epoch, kept.arrived, Some(at.epoch), Some(pen));
        self.drop_copy(shard);
        true
    }

    /// Shards that are about to come here began like this.
    pub(crate) fn note_begun(&self, begun: &[BegunShard]) {
        let Some(saving) = self.core().saving.get() else { return };
        for it in begun {
            let (epoch, from) = (it.at.epoch, it.from);
            saving.note_begun(it.at.shard, Beginning { epoch, from });
        }
    }

    /// Whether what the disk held of a shard is still here.
    pub(crate) fn has_saved(&self, shard: ShardId) -> bool {
        self.kept().shards().contains_key(&shard)
    }

    /// Forgets what the disk held of a shard.
    pub(crate) fn drop_saved(&self, shard: ShardId) {
        self.kept().aside().remove(&shard);
        if let Some(kept) = self.kept().shards().remove(&shard) {
            kept.arrived.forget(self.core());
        }
        if let Some(saving) = self.core().saving.get().filter(|saving| saving.keeps(shard)) {
            saving.release(shard, None).forget();
        }
    }

    /// Takes out what the disk held of a shard, to be offered to its owner. It stays on disk until
    /// [`SetAside::forget_on_disk`].
    pub(crate) fn take_saved(&self, shard: ShardId) -> Option<SetAside> {
        let mut kept = self.kept().shards().remove(&shard)?;
        kept.arrived.note_epoch(kept.at);
        let pen = self.core().saving.get().map(|saving| saving.kept_pen(shard));
        Some(SetAside::of(Arc::clone(self.core()), shard, kept.arrived, pen))
    }

    /// Refuses requests of a shard from now on: what the disk holds of it is damaged. Gives in what
    /// way.
    pub(crate) fn quarantine(&self, shard: ShardId) -> String {
        let damaged = self.kept().shards().get(&shard).and_then(|kept| kept.damaged.clone());
        let damaged = damaged.unwrap_or_else(|| Damage::Earlier.to_string());
        self.kept().aside().insert(shard, damaged.clone());
        damaged
    }

    /// Whether requests of a shard are refused since what the disk holds of it is damaged.
    pub(crate) fn is_quarantined(&self, shard: ShardId) -> bool {
        self.core().saving.get().is_some() && self.kept().aside().contains_key(&shard)
    }

    /// Waits until everything that was written up to now is on disk.
    pub(crate) async fn settle_disk(&self) -> Result<(), crate::disk::DiskFailed> {
        match self.core().saving.get() {
            Some(saving) => saving.settled().await,
            None => Ok(()),
        }
    }

    /// Brings everything to disk and closes it.
    pub(crate) async fn close_disk(&self) {
        let Some(saving) = self.core().saving.get() else { return };
        if let Err(error) = saving.disk().clone().close().await {
            tracing::error!(%error, "not everything is on disk");
        }
    }
}

/// What becomes of a shard that was found; none where nothing of it is of use.
fn kept_of(
    core: &Core,
    saving: &Saving,
    found: &RecoveredShard,
) -> Result<Option<(KeptShard, Saved)>, LoadError> {
    let nothing = Version { epoch: Epoch { counter: 0, node: NodeId(0) }, seq: 0 };
    let at = found.meta.map_or(nothing, |meta| meta.at);
    let sealed = found.meta.is_some_and(|meta| meta.role == Role::Sealed);
    let begun = found.meta.and_then(|meta| meta.begun);
    let alone = found.meta.is_some_and(|meta| meta.alone);
    let damaged = |why: String| {
        let kept = KeptShard { at, begun, arrived: Arriving::new(), damaged: Some(why) };
        let saved = Saved { at, kind: SavedKind::Damaged, sealed, begun, alone };
        Ok(Some((kept, saved)))
    };
    if let Some(damage) = &found.damaged {
        return damaged(damage.to_string());
    }
    let kind = match found.meta {
        Some(ShardMeta { complete: true, role: Role::Owner | Role::Sealed, .. }) => {
            SavedKind::Owner
        }
        Some(ShardMeta { complete: true, role: Role::Copy { .. }, .. }) => SavedKind::Copy,
        Some(_) | None => return Ok(None),
    };
    match read(core, saving.disk(), found.shard)? {
        Ok((mut arrived, n_rows)) if n_rows == found.rows => {
            arrived.set_seq(at.seq);
            let kept = KeptShard { at, begun, arrived, damaged: None };
            Ok(Some((kept, Saved { at, kind, sealed, begun, alone })))
        }
        Ok((arrived, n_rows)) => {
            arrived.forget(core);
            damaged(format!("{n_rows} of {} rows were read", found.rows))
        }
        Err(why) => damaged(why),
    }
}

/// Reads all sessions of a shard, and from how many rows; the inner error says why they cannot be read.
fn read(
    core: &Core,
    disk: &Disk,
    shard: ShardId,
) -> Result<Result<(Arriving, u64), String>, LoadError> {
    let (mut arrived, mut n_rows) = (Arriving::new(), 0);
    let mut after: Option<bytes::Bytes> = None;
    loop {
        let sessions = match disk.read(shard, after.as_deref(), READ_BYTES) {
            Ok(sessions) => sessions,
            Err(error) => {
                arrived.forget(core);
                return Ok(Err(error.to_string()));
            }
        };
        let Some(last) = sessions.last() else { return Ok(Ok((arrived, n_rows))) };
        after = Some(last.key.clone());
        for session in &sessions {
            n_rows += u64::from(session.own.is_some()) + session.slots.len() as u64;
            match arrived.add_saved(core, session) {
                Ok(()) => {}
                Err(RecordError::MemoryFull) => {
                    let taken = core.bytes();
                    return Err(LoadError::MemoryFull { shard, taken });
                }
                Err(error @ (RecordError::Format(_) | RecordError::Malformed)) => {
                    arrived.forget(core);
                    return Ok(Err(error.to_string()));
                }
            }
        }
    }
}

/// What the disk holds, and who was in the cluster when it was written.
pub(crate) type Found = (BTreeMap<ShardId, Saved>, BTreeSet<NodeId>);

/// Opens the state on disk and takes it in.
pub(crate) async fn open_disk(config: &NodeConfig, host: &Host) -> Result<Found, NodeError> {
    describe_gauge!("stead_ack_policy", "1 at the policy that answers of changes wait for");
    gauge!("stead_ack_policy", "policy" => config.ack.to_string()).set(1.0);
    let Some(dir) = config.data_dir.clone() else { return Ok(Found::default()) };
    let known = if config.found { Vec::new() } else { known_members(&dir)? };
    let remembered = known.iter().map(|name| NodeId::of_name(name)).collect();
    let sync = config.ack.waits_for_disk();
    let cluster = config.member.cluster_id();
    let disk_config = DiskConfig { sync, ..DiskConfig::new(dir, &config.name, cluster) };
    let (host, n_shards) = (host.clone(), config.shards.get());
    let load = move || -> Result<_, NodeError> {
        let (disk, recovered) = Disk::open(disk_config)?;
        Ok(host.load(disk, sync, &recovered, n_shards)?)
    };
    // A panic of it is one of this.
    let held = tokio::task::spawn_blocking(load).await.expect("reading the disk does not panic")?;
    if !held.is_empty() {
        tracing::info!(n_shards = held.len(), "shards were read from disk");
    }
    Ok((held, remembered))
}

// ---- handoffs -------------------------------------------------------------------------------

/// What arrived is not on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotSaved;

impl Incoming {
    /// Writes what arrives to disk, unless it is there as a copy that follows.
    pub(crate) fn begin_on_disk(&mut self) {
        let (host, shard) = (self.host(), self.shard());
        let Some(epoch) = self.origin().filter(|_| !host.replicas().has_copy(shard)) else {
            return;
        };
        let owner = NodeBoot { node: epoch.node, boot: BootId(0) };
        let at = Version { epoch, seq: 0 };
        let meta = ShardMeta {
            at,
            role: Role::Copy { owner },
            complete: false,
            begun: None,
            alone: false,
        };
        let pen = host.core().begin_on_disk(shard, meta);
        self.set_pen(pen);
    }

    /// Sees to it that all that arrived is on disk, where there is one that answers wait for.
    pub(crate) async fn save(&mut self) -> Result<(), NotSaved> {
        let host = self.host().clone();
        let (Some(saving), Some(epoch)) = (host.core().saving.get(), self.origin()) else {
            return Ok(());
        };
        let at = Version { epoch, seq: self.arrived().seq() };
        if !host.replicas().is_on_disk_at(self.shard(), at) {
            let owner = NodeBoot { node: epoch.node, boot: BootId(0) };
            let role = Role::Copy { owner };
            let meta = |complete| ShardMeta { at, role, complete, begun: None, alone: false };
            let mut pen = match self.take_pen().filter(|pen| pen.is_current()) {
                Some(pen) => pen,
                None => {
                    let mut pen =
                        host.core().begin_on_disk(self.shard(), meta(false)).ok_or(NotSaved)?;
                    pen.put_all(host.core(), at, self.arrived().sessions());
                    pen
                }
            };
            pen.meta(meta(true), self.arrived().past());
            self.set_pen(Some(pen));
        }
        if saving.is_awaited() { saving.settled().await.map_err(|_| NotSaved) } else { Ok(()) }
    }

    /// The pen of a copy that holds the same.
    pub(crate) fn take_pen_of_copy(&self, arrived: &Arriving) -> Option<Box<Pen>> {
        let at = Version { epoch: self.origin()?, seq: arrived.seq() };
        self.host().replicas().take_pen_at(self.shard(), at)
    }
}

impl Host {
    /// Shards whose requests are refused since what the disk holds of them is damaged, and in what
    /// way, in the order of their numbers.
    #[must_use]
    pub fn quarantined(&self) -> Vec<(ShardId, String)> {
        let aside = self.kept().aside();
        aside.iter().map(|(shard, why)| (*shard, why.clone())).collect()
    }
}

/// Takes out what the disk held of these shards.
pub(crate) fn taken_saved(host: &Host, shards: &[ShardEpoch]) -> Vec<(ShardEpoch, SetAside)> {
    shards.iter().filter_map(|at| Some((*at, host.take_saved(at.shard)?))).collect()
}

/// What was granted must be on disk before it is, if answers wait for that.
pub(crate) async fn save_all(copy: &mut BTreeMap<ShardId, Incoming>) -> Result<(), NotSaved> {
    for incoming in copy.values_mut() {
        incoming.save().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
