//! Word of the disk's progress for tasks.
//!
//! The committer is a thread of its own, and each task that it wakes costs a call to the system, and
//! perhaps its turn on the core. With `+disk` as many wait as there are requests under way. So it
//! wakes one task, which wakes the others: among tasks that costs next to nothing. Those are woken
//! whose changes are on disk, and not those that came while they were written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stead_shared::net::watch;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::queue::Progress;

/// A task that tells others of progress. It ends with whoever makes progress, or with the runtime.
pub(super) struct Herald {
    waiting: Arc<Waiting>,
}

/// Who waits for what position, in the order in which they began to. None when nobody tells.
struct Waiting(Mutex<Option<List>>);

type List = Vec<(u64, oneshot::Sender<()>)>;

impl Waiting {
    /// A list that a panic leaves whole.
    fn lock(&self) -> MutexGuard<'_, Option<List>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those whose changes are on disk; all of them when it fails.
    fn tell(&self, now: Progress) {
        let mut waiting = self.lock();
        let is_told =
            |(position, _): &mut (u64, _)| now.failed.is_some() || *position <= now.synced;
        let told: Vec<_> = waiting.iter_mut().flat_map(|it| it.extract_if(.., is_told)).collect();
        drop(waiting);
        for (_, waits) in told {
            // Whoever went away does not want to know.
            let _ = waits.send(());
        }
    }
}

/// Lets those go who wait when the task ends, however that is.
struct Ends(Arc<Waiting>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.lock().take();
    }
}

impl Herald {
    /// None outside a runtime.
    pub(super) fn start(mut progress: watch::Receiver<Progress>) -> Option<Self> {
        let runtime = Handle::try_current().ok()?;
        let waiting = Arc::new(Waiting(Mutex::new(Some(Vec::new()))));
        let told = Ends(Arc::clone(&waiting));
        runtime.spawn(async move {
            while progress.changed().await.is_ok() {
                let now = *progress.borrow_and_update();
                told.0.tell(now);
            }
        });
        Some(Self { waiting })
    }

    /// Word of the progress, from now on, that brings `position` to the disk, or of an error. None when
    /// nobody tells any more; whoever waits then is let go.
    pub(super) fn listen(&self, position: u64) -> Option<oneshot::Receiver<()>> {
        let (waits, told) = oneshot::channel();
        self.waiting.lock().as_mut()?.push((position, waits));
        Some(told)
    }
}
