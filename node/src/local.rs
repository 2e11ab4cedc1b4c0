//! What a node says of itself on its admin listener.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use stead_shared::config::{NodeConfig, OnMinority};
use stead_shared::id::{NodeId, Version};
use stead_shared::net::admin::{
    ConflictReport, ConflictsReport, DrainReport, Local, MajorityReport, Mode, MovesReport,
    PromisesReport, Readiness,
};

use crate::Conflict;
use crate::driver::Done;
use crate::moving;
use crate::node::Handle;

impl Local for Handle {
    fn name(&self) -> String {
        self.inner.name.clone()
    }

    fn ready(&self) -> Readiness {
        let progress = *self.inner.progress.borrow();
        let n_aside = self.inner.host.quarantined().len();
        if progress.draining {
            Readiness::NotReady("draining".to_owned())
        } else if progress.minority && self.inner.config.on_minority == OnMinority::Stop {
            let (settled, ready) = progress.settled;
            Readiness::NotReady(format!(
                "cut off: {ready} of {settled} nodes are here, and --on-minority is stop"
            ))
        } else if progress.ready && progress.minority {
            let (settled, ready) = progress.settled;
            Readiness::Warning(format!("cut off: {ready} of {settled} nodes are here"))
        } else if progress.ready && n_aside > 0 {
            Readiness::Warning(format!(
                "{n_aside} shards of this node are quarantined: see `quarantined` in /v1/shards"
            ))
        } else if progress.ready && progress.n_under > 0 {
            let n = progress.n_under;
            Readiness::Warning(format!("{n} shards of this node have too few copies"))
        } else if progress.ready {
            Readiness::Ready
        } else {
            Readiness::NotReady("joining: not all owners' claims are known yet".to_owned())
        }
    }

    fn moving(&self) -> u32 {
        u32::try_from(self.inner.progress.borrow().pending.moving).unwrap_or(u32::MAX)
    }

    fn quarantined(&self) -> Vec<u32> {
        self.inner.host.quarantined().iter().map(|(shard, _)| shard.0).collect()
    }

    fn moves(&self) -> MovesReport {
        moving::report(&self.inner.progress.borrow())
    }

    fn majority(&self) -> Option<MajorityReport> {
        let progress = *self.inner.progress.borrow();
        let (settled, ready) = progress.settled;
        let on_minority = self.inner.config.on_minority;
        Some(MajorityReport { on_minority, settled, ready, is_minority: progress.minority })
    }

    fn promises(&self) -> Option<PromisesReport> {
        let NodeConfig { ack, replicas, min_copies, .. } = self.inner.config;
        Some(PromisesReport { mode: Mode::Available, ack, replicas, min_copies })
    }

    fn conflicts(&self) -> ConflictsReport {
        let conflicts = self.inner.host.conflicts();
        ConflictsReport { conflicts: conflicts.iter().map(conflict_report).collect() }
    }

    fn forget(&self, node: NodeId) -> bool {
        self.inner.done.try_send(Done::Forget(node)).is_ok()
    }

    fn drain(&self) -> bool {
        // A full queue means that the driver is busy; the caller is told to ask again by the
        // progress that does not begin.
        let _ = self.inner.done.try_send(Done::Drain);
        true
    }

    fn drain_report(&self) -> Option<DrainReport> {
        let stats = self.inner.host.stats();
        Some(moving::drain_report(&self.inner.name, *self.inner.progress.borrow(), stats))
    }
}

fn conflict_report(conflict: &Conflict) -> ConflictReport {
    let change = |at: Version| format!("{}/{}", at.epoch, at.seq);
    ConflictReport {
        key: String::from_utf8_lossy(conflict.key.as_bytes()).into_owned(),
        shard: conflict.shard.0,
        kept: change(conflict.kept),
        lost: change(conflict.lost),
        lost_written_ms: conflict.lost_written_micros / 1000,
        value: BASE64.encode(&conflict.value),
        schema: conflict.schema,
    }
}
