//! `stead drain`: hand everything that a node owns to the others.

use std::time::Duration;

use clap::Args;
use http::Method;
use stead_shared::config::Span;
use stead_shared::net::admin::DrainReport;
use tokio::time::Instant;

use super::client::{AdminArgs, AdminClient, ClientError, escape};
use super::exit::Exit;
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
    let start = Instant::now();
    let mut ticks = tokio::time::interval(POLL);
    let mut left = "its shards are not known yet".to_owned();
    loop {
        ticks.tick().await;
        match Status::ask(client).await {
            Ok(status) => match progress(&status, node) {
                Progress::Left => return Ok(start.elapsed()),
                Progress::Died => {
                    return Err(Exit::TempFail.because(format!(
                        "{node} died before its drain ended; its last count was: {left}"
                    )));
                }
                Progress::Draining(shards) => left = format!("{shards} shards left"),
            },
            Err(ClientError::Unreachable { .. }) if asks_itself => {
                return Ok(start.elapsed());
            }
            Err(error) => left = error.to_string(),
        }
        if start.elapsed() >= timeout {
            let waited = Span(timeout);
            return Err(
                Exit::TempFail.because(format!("{node} still drains after {waited}: {left}"))
            );
        }
    }
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
