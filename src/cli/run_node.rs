//! `stead node`.

use clap::ArgMatches;
use stead_node::disk::DiskError;
use stead_node::{Node, NodeError};
use stead_shared::config::NodeConfig;

use super::args::NodeArgs;
use super::exit::Exit;
use super::process::{self, Outside};
use super::{layers, logging};

pub(super) fn run(args: NodeArgs, matches: &ArgMatches) -> anyhow::Result<()> {
    let with_parent = args.exit_with_parent;
    let (options, config) = layers::node(args, matches)?;
    logging::start(&options.log, options.log_format)?;
    let member = config.member.clone();
    process::run(&member, with_parent, |outside| serve(config, outside))
}

async fn serve(config: NodeConfig, outside: Outside) -> anyhow::Result<()> {
    let (gossip, admin_addr) = (config.member.gossip, config.member.admin);
    let has_disk = config.data_dir.is_some();
    let node = Node::builder().config(config).start().await.map_err(failed)?;
    let handle = node.handle();
    let (name, http) = (handle.name().to_owned(), handle.http_addr());
    tracing::info!(name, %http, %gossip, admin = %admin_addr, "node started");
    let stop = outside.stop.clone();
    let admin = outside.serve_admin(handle.admin());
    let left = node.run_until_forced(stop.clone().first(), stop.second()).await;
    admin.stop().await;
    let left = left.map_err(failed)?;
    let (shards, sessions) = (left.shards_left, left.sessions_left);
    if left.forced && sessions > 0 {
        let fate = if has_disk { "are left on disk" } else { "were dropped" };
        return Err(Exit::TempFail.because(format!(
            "the drain was cut short: {sessions} sessions in {shards} shards {fate}"
        )));
    }
    match sessions {
        0 => {}
        _ if has_disk => tracing::info!(shards, sessions, "nobody was left: these are on disk"),
        _ => tracing::warn!(shards, sessions, "nobody was left to take these: they are dropped"),
    }
    tracing::info!(name, "node has left");
    Ok(())
}

/// The error with the exit code that fits.
fn failed(error: NodeError) -> anyhow::Error {
    let exit = match error {
        NodeError::Start(error) => return process::start_failed(error),
        NodeError::Config(_)
        | NodeError::Fatal(_)
        | NodeError::Rejected { .. }
        | NodeError::ShardCount { .. }
        | NodeError::Balance { .. }
        | NodeError::KnowsOthers { .. } => Exit::Config,
        NodeError::State(DiskError::OtherNode { .. } | DiskError::OtherCluster { .. })
        | NodeError::Load(_) => Exit::Config,
        NodeError::State(DiskError::InUse { .. }) => Exit::Unavailable,
        NodeError::State(
            DiskError::Io { .. }
            | DiskError::Format { .. }
            | DiskError::Identity { .. }
            | DiskError::Broken { .. },
        )
        | NodeError::Disk(_) => Exit::Io,
        NodeError::Sock(_) => Exit::Os,
        NodeError::JoinTimeout => Exit::Unavailable,
        NodeError::GossipLost => Exit::Software,
    };
    exit.because(error.to_string())
}
