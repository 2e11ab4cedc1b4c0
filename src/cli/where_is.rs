//! `stead where`: the home of a session.

use clap::Args;
use http::Method;
use stead_shared::net::admin::WhereReport;

use super::client::{AdminArgs, ClientError, escape};

#[derive(Debug, Args)]
pub(super) struct WhereArgs {
    /// The session key
    key: String,

    #[command(flatten)]
    admin: AdminArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &WhereArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    let path = format!("/v1/where?key={}", escape(&args.key));
    let report: WhereReport = super::small_runtime()?
        .block_on(client.json(Method::GET, &path))
        .map_err(ClientError::exit)?;
    if args.json {
        return super::print(&format!("{}\n", serde_json::json!(report)));
    }
    super::print(&describe(&args.key, &report))
}

fn describe(key: &str, report: &WhereReport) -> String {
    let owner = report.owner.as_deref().unwrap_or("nobody");
    let epoch = report.epoch.as_deref().unwrap_or("none");
    let replicas = match report.replicas.as_slice() {
        [] => "none".to_owned(),
        replicas => replicas.join(", "),
    };
    let key = key.escape_debug();
    format!("{key}: shard {}, owner {owner}, epoch {epoch}, replicas {replicas}\n", report.shard)
}
