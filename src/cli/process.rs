//! What `stead node` and `stead router` have in common around the part that runs.

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use stead_shared::config::MemberConfig;
use stead_shared::net::admin::{self, Admin, AdminSource, AdminToken, Render};
use stead_shared::net::process::StartError;
use stead_shared::net::sock;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::exit::Exit;
use super::signals::Stop;
use super::{metrics, secrets};

/// What tasks that hang may cost at the end.
const RUNTIME_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything around a member that is there before it starts.
pub(super) struct Outside {
    pub(super) stop: Stop,
    listener: sock::TcpListener,
    token: Option<AdminToken>,
    metrics: Render,
}

/// Runs `member` in a runtime of its own, with signals watched and the admin address taken.
///
/// # Errors
/// What `member` returns, or what went wrong before it was called.
pub(super) fn run<F: Future<Output = anyhow::Result<()>>>(
    config: &MemberConfig,
    with_parent: bool,
    member: impl FnOnce(Outside) -> F,
) -> anyhow::Result<()> {
    let token = config.admin_token_file.as_deref().map(secrets::read_token).transpose()?;
    let (metrics, upkeep) = metrics::start()?;
    let runtime = runtime(config.threads)
        .map_err(|error| Exit::Os.because(format!("cannot start a runtime: {error}")))?;
    let ended = runtime.block_on(async {
        tokio::spawn(upkeep);
        let stop = Stop::watch(with_parent)?;
        let listener = sock::tcp_listener(config.admin, "--admin")
            .map_err(|error| Exit::Os.because(error.to_string()))?;
        member(Outside { stop, listener, token, metrics }).await
    });
    runtime.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
    ended
}

/// A runtime with this many threads, or one for each core that this process may use.
///
/// The one for a single thread has nothing to share: no queues to steal from, nobody to wake.
fn runtime(threads: Option<NonZeroUsize>) -> io::Result<Runtime> {
    let threads = threads.or_else(|| available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let mut builder =
        if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()
}

/// A running admin listener. It ends with [`AdminTask::stop`].
pub(super) struct AdminTask {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Outside {
    /// Answers on the admin address.
    pub(super) fn serve_admin(self, source: impl AdminSource) -> AdminTask {
        let (stop, stopped) = oneshot::channel();
        let admin = Admin { source: Arc::new(source), metrics: self.metrics, token: self.token };
        let task = tokio::spawn(admin::serve(self.listener, admin, async {
            // Dropped or sent: both mean the end.
            let _ = stopped.await;
        }));
        AdminTask { stop, task }
    }
}

impl AdminTask {
    /// Lets requests end and closes the listener.
    pub(super) async fn stop(self) {
        drop(self.stop);
        // It does not panic, and nobody aborts it.
        let _ = self.task.await;
    }
}

/// The error of a start that failed, with the exit code that fits.
pub(super) fn start_failed(error: StartError) -> anyhow::Error {
    match error {
        StartError::Disk(error) => secrets::failed(error),
        StartError::Sock(error) => Exit::Os.because(error.to_string()),
        StartError::Advertise { .. } => Exit::Unavailable.because(error.to_string()),
        StartError::Agent(_) => Exit::Os.because(error.to_string()),
    }
}
