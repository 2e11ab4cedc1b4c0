//! `stead config`: check, show and describe files with options.

use std::path::PathBuf;

use clap::Subcommand;
use schemars::JsonSchema;
use stead_shared::config::{NodeOptions, RouterOptions};

use super::exit::Exit;
use super::file::{Checked, OptionsFile, Role};
use super::layers::variable;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say whether a process could start with this file
    Check {
        /// The file
        file: PathBuf,
        /// Whose options it holds; otherwise told by its keys
        #[arg(long)]
        role: Option<Role>,
    },
    /// Print the JSON Schema of the options
    Schema {
        /// Only of this role
        role: Option<Role>,
    },
    /// Print every option with the value that this file gives it, defaults included
    Show {
        /// The file
        file: PathBuf,
        /// Whose options it holds; otherwise told by its keys
        #[arg(long)]
        role: Option<Role>,
    },
}

pub(super) fn run(command: &ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Check { file, role } => {
            let file_read = OptionsFile::read(file)?;
            let role = role.unwrap_or_else(|| file_read.role());
            file_read.check(role)?;
            super::print(&format!("{}: fine for `stead {}`\n", file.display(), role.command()))
        }
        ConfigCommand::Schema { role } => schema(*role),
        ConfigCommand::Show { file, role } => {
            let file = OptionsFile::read(file)?;
            show(&file, role.unwrap_or_else(|| file.role()))
        }
    }
}

/// Options of either role.
#[derive(JsonSchema)]
#[schemars(untagged, title = "Options of stead")]
#[expect(dead_code, reason = "only its schema is used")]
enum AnyOptions {
    Node(NodeOptions),
    Router(RouterOptions),
}

fn schema(role: Option<Role>) -> anyhow::Result<()> {
    let schema = match role {
        Some(Role::Node) => schemars::schema_for!(NodeOptions),
        Some(Role::Router) => schemars::schema_for!(RouterOptions),
        None => schemars::schema_for!(AnyOptions),
    };
    let text = serde_json::to_string_pretty(&schema)
        .map_err(|error| Exit::Software.because(format!("the schema is no JSON: {error}")))?;
    super::print(&(text + "\n"))
}

fn show(file: &OptionsFile, role: Role) -> anyhow::Result<()> {
    let text = match file.check(role)? {
        Checked::Node(options) => toml::to_string(&*options),
        Checked::Router(options) => toml::to_string(&*options),
    };
    let text =
        text.map_err(|error| Exit::Software.because(format!("cannot write TOML: {error}")))?;
    let set: Vec<String> = role
        .keys()
        .iter()
        .map(|key| variable(key))
        .filter(|v| std::env::var_os(v).is_some())
        .collect();
    let note = match set.as_slice() {
        [] => String::new(),
        set => format!("# These variables are set here and would win: {}\n", set.join(", ")),
    };
    super::print(&format!("# Options of `stead {}`\n{note}{text}", role.command()))
}
