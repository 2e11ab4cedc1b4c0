//! `stead drain`: hand everything that a node owns to the others.

use std::time::Duration;

use clap::Args;
use http::Method;
use stead_shared::config::Span;
use stead_shared::net::admin::DrainReport;

use super::client::{AdminArgs, AdminClient, ClientError, escape};
use super::exit::Exit;
use super::show::{ProgressLines, bytes};
use super::status::{POLL, Status};

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The node's name
    #[arg(env = "STEAD_NAME", hide_env_values = true)]
    node: String,

    #[command(flatten)]
    admin: AdminArgs,

    /// Wait until the node has left
    #[arg(long)]
    wait: bool,

    /// How long to wait
    #[arg(long, value_name = "D", default_value = "60s", requires = "wait")]
    timeout: Span,
}

pub(super) fn run(args: &DrainArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    super::small_runtime()?.block_on(async {
        // A node that drains itself stops answering when it is done.
        let asked: Result<DrainReport, _> = client.json(Method::GET, "/v1/drain").await;
        let asks_itself = asked.is_ok_and(|report| report.node == args.node);
        let path = format!("/v1/drain?node={}", escape(&args.node));
        let _: serde_json::Value =
            client.json(Method::POST, &path).await.map_err(ClientError::exit)?;
        if !args.wait {
            return super::print(&format!(
                "{} drains; `stead status` shows how far it is\n",
                args.node
            ));
        }
        let took = wait_left(&client, &args.node, asks_itself, args.timeout.0).await?;
        super::print(&format!("{} has left after {:.1} s\n", args.node, took.as_secs_f64()))
    })
}

/// Waits until the process that is asked no longer counts `node` among the live ones.
async fn wait_left(
    client: &AdminClient,
    node: &str,
    asks_itself: bool,
    timeout: Duration,
) -> anyhow::Result<Duration> {
    let mut lines = ProgressLines::new();
    let mut ticks = tokio::time::interval(POLL);
    let mut left = "its shards are not known yet".to_owned();
    loop {
        ticks.tick().await;
        match Status::ask(client).await {
            Ok(status) => match progress(&status, node) {
                Progress::Left => return Ok(lines.elapsed()),
                Progress::Died => {
                    return Err(Exit::TempFail.because(format!(
                        "{node} died before its drain ended; its last count was: {left}"
                    )));
                }
                Progress::Draining(shards) => {
                    let report = drain_report(client, node).await;
                    left = report.map_or_else(|| format!("{shards} shards left"), |r| describe(&r));
                    lines.show(&format!("{node}: {left}"));
                }
            },
            Err(ClientError::Unreachable { .. }) if asks_itself => {
                return Ok(lines.elapsed());
            }
            Err(error) => left = error.to_string(),
        }
        if lines.elapsed() >= timeout {
            let waited = Span(timeout);
            return Err(
                Exit::TempFail.because(format!("{node} still drains after {waited}: {left}"))
            );
        }
    }
}

/// How far the node itself says it is, if it still can.
async fn drain_report(client: &AdminClient, node: &str) -> Option<DrainReport> {
    let path = format!("/v1/drain?node={}", escape(node));
    client.json(Method::GET, &path).await.ok()
}

fn describe(report: &DrainReport) -> String {
    let DrainReport { shards_left, sessions_left, bytes_left, bytes_per_second, .. } = report;
    let bytes_left = bytes(*bytes_left);
    let rate = match bytes_per_second {
        0 => String::new(),
        rate => format!(" at {}/s", bytes(*rate)),
    };
    format!("{shards_left} shards, {sessions_left} sessions, {bytes_left} left{rate}")
}

#[derive(Debug, PartialEq)]
enum Progress {
    Draining(u32),
    Left,
    Died,
}

fn progress(status: &Status, node: &str) -> Progress {
    let state = status.members.members.iter().find(|m| m.name == node).map(|m| m.state.as_str());
    match state {
        None | Some("left") => Progress::Left,
        Some("down") => Progress::Died,
        Some(_) => Progress::Draining(status.shards.by_node.get(node).copied().unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use stead_shared::net::admin::DrainState;

    use super::*;

    #[test]
    fn what_is_left_of_a_drain_is_counted_in_shards_sessions_and_bytes() {
        let report = DrainReport {
            node: "n1".into(),
            state: DrainState::Draining,
            shards_left: 12,
            sessions_left: 340,
            bytes_left: 3 << 20,
            bytes_per_second: 0,
            elapsed_ms: 5,
        };
        assert_eq!(describe(&report), "12 shards, 340 sessions, 3.0 MiB left");
        let moving = DrainReport { bytes_per_second: 1 << 20, ..report };
        assert_eq!(describe(&moving), "12 shards, 340 sessions, 3.0 MiB left at 1.0 MiB/s");
    }
}
