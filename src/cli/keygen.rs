//! `stead keygen`: the file with the cluster's keys.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::Args;
use stead_shared::keys::KeyFile;
use stead_shared::net::disk;

use super::exit::Exit;
use super::secrets;

#[derive(Debug, Args)]
pub(super) struct KeygenArgs {
    /// File to make, readable by its owner only; without one the keys go to stdout
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// The same, under the name that it has elsewhere
    #[arg(long, value_name = "FILE", env = "STEAD_CLUSTER_KEY_FILE", hide_env_values = true)]
    cluster_key_file: Option<PathBuf>,

    /// Add a gossip key to an existing file, keep the one before it, and drop older ones; what
    /// decides where sessions are stays as it is
    #[arg(long)]
    rotate: bool,
}

pub(super) fn run(args: &KeygenArgs) -> anyhow::Result<()> {
    let path = args.file.as_deref().or(args.cluster_key_file.as_deref());
    match (args.rotate, path) {
        (false, None) => {
            if !std::io::stdout().is_terminal() {
                // Members refuse a file that everybody can read.
                let _ =
                    writeln!(std::io::stderr(), "stead: `chmod 600` the file that this goes to");
            }
            super::print(&fresh()?.render())
        }
        (false, Some(path)) => {
            let made = disk::create_keys(path, &fresh()?);
            made.map_err(|error| Exit::CantCreate.because(error.to_string()))?;
            super::print(&format!(
                "{} made: copy it to every member and name it by --cluster-key-file\n",
                path.display()
            ))
        }
        (true, Some(path)) => {
            let fresh = disk::random_key().map_err(secrets::failed)?;
            let keys = disk::read_keys(path).map_err(secrets::failed)?;
            let rotated = keys.rotate(fresh, now_unix_s());
            let replaced = disk::replace_keys(path, &rotated);
            replaced.map_err(|error| Exit::CantCreate.because(error.to_string()))?;
            super::print(&format!(
                "{} has a new gossip key: copy it to every member and restart them one by one, \
                 before the next rotation\n",
                path.display()
            ))
        }
        (true, None) => Err(Exit::Usage
            .because("--rotate needs the file to change\n  hint: stead keygen --rotate FILE")),
    }
}

fn fresh() -> anyhow::Result<KeyFile> {
    let random = || disk::random_key().map_err(secrets::failed);
    Ok(KeyFile::generate(random()?, random()?, now_unix_s()))
}

fn now_unix_s() -> u64 {
    disk::unix_micros() / 1_000_000
}
