//! `stead where`: the home of a session.

use clap::Args;
use http::Method;
use stead_shared::net::admin::WhereReport;

use super::client::{AdminArgs, ClientError, escape};
use super::pins::kind;
use super::show::until;

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
    let pin = report.pin.as_ref().map_or_else(String::new, |pin| {
        let away = if pin.effective { "" } else { " (away)" };
        let (node, by, left) = (&pin.node, kind(pin.kind), until(pin.expires_ms));
        format!(", pinned to {node}{away} by {by} for {left}")
    });
    let (key, shard) = (key.escape_debug(), report.shard);
    format!("{key}: shard {shard}, owner {owner}, epoch {epoch}, replicas {replicas}{pin}\n")
}

#[cfg(test)]
mod tests {
    use stead_shared::net::admin::PinReport;
    use stead_shared::pins::PinKind;

    use super::*;

    #[test]
    fn a_pin_is_told() {
        let mut report = WhereReport {
            shard: 5,
            owner: Some("n1".into()),
            epoch: Some("3.7".into()),
            replicas: vec![],
            pin: None,
        };
        let plain = "alice: shard 5, owner n1, epoch 3.7, replicas none";
        assert_eq!(describe("alice", &report), format!("{plain}\n"));
        report.pin = Some(PinReport {
            shard: 5,
            node: "n2".into(),
            kind: PinKind::Hand,
            author: "n1".into(),
            version: 1,
            expires_ms: 0,
            effective: false,
        });
        let pinned = format!("{plain}, pinned to n2 (away) by hand for 0s\n");
        assert_eq!(describe("alice", &report), pinned);
    }
}
