//! `stead members`: what an operator says of members.

use clap::{Args, Subcommand};
use http::Method;
use stead_shared::net::admin::ForgetReport;

use super::client::{AdminArgs, ClientError, escape};
use super::exit::Exit;

#[derive(Debug, Subcommand)]
pub(super) enum MembersCommand {
    /// Count a dead node no more when nodes with --on-minority stop look whether they are too few
    Forget(ForgetArgs),
}

#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    /// The name of a node that is gone for ever. If it lives on where nobody hears it, it and the
    /// nodes here may then serve the same sessions
    node: String,

    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) fn run(command: &MembersCommand) -> anyhow::Result<()> {
    match command {
        MembersCommand::Forget(args) => forget(args),
    }
}

fn forget(args: &ForgetArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    let path = format!("/v1/members/{}/forget", escape(&args.node));
    let report: ForgetReport = super::small_runtime()?
        .block_on(client.json(Method::POST, &path))
        .map_err(ClientError::exit)?;
    let ForgetReport { told, unreached } = report;
    let node = &args.node;
    if !unreached.is_empty() || told.is_empty() {
        let who = if unreached.is_empty() { "any node".to_owned() } else { unreached.join(", ") };
        return Err(Exit::TempFail.because(format!(
            "{node} is still counted: {who} did not answer\n  hint: the same again is safe, also \
             with `--admin` of another member"
        )));
    }
    super::print(&format!("{node} is not counted any more by {}\n", told.join(", ")))
}
