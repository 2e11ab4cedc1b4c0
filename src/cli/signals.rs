//! When to stop.

use std::io::Read as _;

use stead_shared::net::watch;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::exit::Exit;

/// Requests to stop: SIGTERM, SIGINT, and, for a child, the end of its parent. The first one asks
/// for an orderly end, the second one for an end at once.
#[derive(Clone)]
pub(super) struct Stop {
    asked: watch::Receiver<u32>,
}

impl Stop {
    /// Starts to watch. Called inside a runtime.
    pub(super) fn watch(with_parent: bool) -> anyhow::Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Exit::Os.because(format!("cannot watch signals: {error}")))
        };
        let (terminate, interrupt) =
            (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let parent = with_parent.then(parent_gone);
        let (count, asked) = watch::channel(0);
        tokio::spawn(count_requests(terminate, interrupt, parent, count));
        Ok(Self { asked })
    }

    /// Ready at the first request.
    pub(super) async fn first(self) {
        self.reached(1).await;
    }

    /// Ready at the second request.
    pub(super) async fn second(self) {
        self.reached(2).await;
    }

    async fn reached(mut self, n: u32) {
        if self.asked.wait_for(|asked| *asked >= n).await.is_err() {
            // Nobody counts any more, so nobody asks.
            std::future::pending::<()>().await;
        }
    }
}

async fn count_requests(
    mut terminate: Signal,
    mut interrupt: Signal,
    mut parent: Option<oneshot::Receiver<()>>,
    count: watch::Sender<u32>,
) {
    loop {
        let parent_gone = async {
            match &mut parent {
                Some(gone) => drop(gone.await),
                None => std::future::pending().await,
            }
        };
        let why = tokio::select! {
            biased;
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = parent_gone => {
                parent = None;
                "the end of the parent"
            }
        };
        tracing::info!(why, "asked to stop");
        count.send_modify(|asked| *asked += 1);
    }
}

/// Done when stdin ends: the parent holds its other end, so it ends with the parent, however
/// that dies. Reads on a thread of its own, because a read of stdin cannot be cancelled.
fn parent_gone() -> oneshot::Receiver<()> {
    let (gone, wait) = oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while std::io::stdin().read(&mut buffer).is_ok_and(|n| n > 0) {}
        drop(gone);
    });
    wait
}
