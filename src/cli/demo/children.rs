//! The demo's processes.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::ports::Ports;
use crate::cli::exit::Exit;

/// How long the processes may take to stop before they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// One process.
struct Running {
    name: String,
    pid: u32,
    child: Child,
    ended: bool,
}

/// All of them, the router first. Those that still run are killed when this is dropped.
pub(super) struct Children {
    list: Vec<Running>,
}

impl Children {
    /// Starts the nodes and the router.
    pub(super) fn start(program: &Path, ports: &Ports) -> anyhow::Result<Self> {
        let router = &ports.router;
        let mut list = vec![Running::start(
            program,
            "router",
            &[
                "router".to_owned(),
                "--listen".to_owned(),
                router.http.to_string(),
                "--gossip".to_owned(),
                router.gossip.to_string(),
                "--admin".to_owned(),
                router.admin.to_string(),
                "--join".to_owned(),
                ports.join(),
                "--key".to_owned(),
                "path:2".to_owned(),
                "--expose-headers".to_owned(),
            ],
        )?];
        for node in ports.demo_nodes() {
            list.push(Running::start(program, &node.name, &node.arguments())?);
        }
        Ok(Self { list })
    }

    /// The process id of the one called `name`, 0 for nobody.
    pub(super) fn pid(&self, name: &str) -> u32 {
        self.list.iter().find(|running| running.name == name).map_or(0, |running| running.pid)
    }

    /// Describes those that ended since the last call.
    pub(super) fn ended(&mut self) -> Vec<String> {
        let mut ended = Vec::new();
        for running in self.list.iter_mut().filter(|running| !running.ended) {
            if let Ok(Some(status)) = running.child.try_wait() {
                running.ended = true;
                ended.push(format!("{} (pid {}) {}", running.name, running.pid, told(status)));
            }
        }
        ended
    }

    /// Nothing works without the router.
    pub(super) fn router_runs(&self) -> anyhow::Result<()> {
        if self.list[0].ended {
            return Err(Exit::Unavailable.because("the router has ended, so the demo ends as well"));
        }
        Ok(())
    }

    /// Closes everybody's stdin, which tells them to stop, waits for a bounded time and kills
    /// who is left.
    pub(super) async fn stop(mut self) {
        for running in &mut self.list {
            drop(running.child.stdin.take());
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        for running in &mut self.list {
            if tokio::time::timeout_at(deadline, running.child.wait()).await.is_err() {
                // It may have ended just now.
                let _ = running.child.kill().await;
            }
        }
    }
}

impl Running {
    fn start(program: &Path, name: &str, arguments: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            // Ctrl-C at the terminal reaches the demo alone, which then stops the others.
            .process_group(0);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("STEAD_") && variable != "STEAD_LOG" {
                command.env_remove(variable);
            }
        }
        if std::env::var_os("STEAD_LOG").is_none() {
            command.env("STEAD_LOG", "warn");
        }
        let child = command
            .spawn()
            .map_err(|error| Exit::Os.because(format!("cannot start {name}: {error}")))?;
        let pid = child.id().unwrap_or(0);
        Ok(Self { name: name.to_owned(), pid, child, ended: false })
    }
}

/// How a process ended.
fn told(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(0), _) => "has stopped".to_owned(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
