//! When to stop.

use std::io::Read as _;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::exit::Exit;

/// Ready at the first SIGTERM or SIGINT, or, for a child, when its parent is gone. A second
/// signal while the process drains ends it at once.
pub(super) fn stop(with_parent: bool) -> anyhow::Result<impl Future<Output = &'static str> + Send> {
    let listen = |kind| {
        signal(kind).map_err(|error| Exit::Os.because(format!("cannot watch signals: {error}")))
    };
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let parent = with_parent.then(parent_gone);
    Ok(async move {
        let parent_gone = async {
            match parent {
                Some(parent) => drop(parent.await),
                None => std::future::pending().await,
            }
        };
        let why = tokio::select! {
            biased;
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = parent_gone => "the end of the parent",
        };
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => end_now(),
                _ = interrupt.recv() => end_now(),
            }
        });
        why
    })
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

#[expect(clippy::exit, reason = "the person at the terminal asked twice")]
fn end_now() {
    tracing::warn!("second signal: ending without waiting for the drain");
    std::process::exit(Exit::TempFail as i32);
}
