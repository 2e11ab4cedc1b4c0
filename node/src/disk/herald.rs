//! Word of the disk's progress for tasks.
//!
//! The committer is a thread of its own, and each task that it wakes costs a call to the system, and
//! perhaps its turn on the core. With `+disk` as many wait as there are requests under way. So it
//! wakes one task, which wakes the others: among tasks that costs next to nothing.

use stead_shared::net::watch;
use tokio::runtime::Handle;

use super::queue::Progress;

/// A task that tells others of progress. It ends with whoever makes progress, or with the runtime.
pub(super) struct Herald {
    told: watch::Receiver<()>,
}

impl Herald {
    /// None outside a runtime.
    pub(super) fn start(mut progress: watch::Receiver<Progress>) -> Option<Self> {
        let runtime = Handle::try_current().ok()?;
        let (sender, told) = watch::channel(());
        runtime.spawn(async move {
            while progress.changed().await.is_ok() {
                sender.send_replace(());
            }
        });
        Some(Self { told })
    }

    /// Changes with all progress from now on. An error means that nobody tells any more.
    pub(super) fn listen(&self) -> watch::Receiver<()> {
        let mut told = self.told.clone();
        told.borrow_and_update();
        told
    }
}
