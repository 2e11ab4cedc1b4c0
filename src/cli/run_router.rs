//! `stead router`.

use clap::ArgMatches;
use stead_router::{Router, RouterError};
use stead_shared::config::RouterConfig;

use super::args::RouterArgs;
use super::exit::Exit;
use super::process::{self, Outside};
use super::{layers, logging};

pub(super) fn run(args: RouterArgs, matches: &ArgMatches) -> anyhow::Result<()> {
    let with_parent = args.exit_with_parent;
    let (options, config) = layers::router(args, matches)?;
    logging::start(&options.log, options.log_format)?;
    let member = config.member.clone();
    process::run(&member, with_parent, |outside| serve(config, outside))
}

async fn serve(config: RouterConfig, outside: Outside) -> anyhow::Result<()> {
    let (gossip, admin_addr) = (config.member.gossip, config.member.admin);
    let router = Router::builder().config(config).start().await.map_err(failed)?;
    let handle = router.handle();
    let (name, listen) = (handle.name().to_owned(), handle.listen_addr());
    tracing::info!(name, %listen, %gossip, admin = %admin_addr, "router started");
    let stop = outside.stop.clone();
    let admin = outside.serve_admin(handle.admin());
    let ended = tokio::select! {
        biased;
        () = stop.clone().second() => {
            Err(Exit::TempFail.because("a second signal cut off the requests that still ran"))
        }
        ended = router.run_until(stop.first()) => ended.map_err(failed),
    };
    admin.stop().await;
    ended?;
    tracing::info!(name, "router has left");
    Ok(())
}

/// The error with the exit code that fits.
fn failed(error: RouterError) -> anyhow::Error {
    let exit = match error {
        RouterError::Start(error) => return process::start_failed(error),
        RouterError::Config(_)
        | RouterError::Proxy(_)
        | RouterError::Fatal(_)
        | RouterError::Rejected { .. } => Exit::Config,
        RouterError::Sock(_) => Exit::Os,
        RouterError::GossipLost => Exit::Software,
    };
    exit.because(error.to_string())
}
