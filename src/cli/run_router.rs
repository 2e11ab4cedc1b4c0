//! `stead router`.

use clap::ArgMatches;

use super::args::RouterArgs;
use super::exit::Exit;
use super::process::Started;
use super::{layers, logging};

pub(super) fn run(args: RouterArgs, matches: &ArgMatches) -> anyhow::Result<()> {
    let with_parent = args.exit_with_parent;
    let (options, config) = layers::router(args, matches)?;
    logging::start(&options.log, options.log_format)?;
    let Started { runtime, keys, token, metrics, stop } =
        Started::new(&config.member, with_parent)?;
    drop((runtime, keys, token, metrics, stop));
    Err(Exit::Software.because("this build has no router"))
}
