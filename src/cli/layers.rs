//! Flag over variable over file over default, and where a bad value came from.

use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _};
use stead_shared::config::{ConfigError, NodeConfig, NodeOptions, RouterConfig, RouterOptions};

use super::Cli;
use super::args::{NodeArgs, RouterArgs};
use super::exit::Exit;
use super::file::{OptionsFile, Role};

/// The options of a node and what they amount to.
pub(super) fn node(
    args: NodeArgs,
    matches: &ArgMatches,
) -> anyhow::Result<(NodeOptions, NodeConfig)> {
    let file = read(args.config.as_deref())?;
    let mut options: NodeOptions = parse(file.as_ref(), Role::Node)?;
    args.overlay(&mut options);
    let config =
        NodeConfig::try_from(&options).map_err(|error| explain(&error, matches, file.as_ref()))?;
    Ok((options, config))
}

/// The options of a router and what they amount to.
pub(super) fn router(
    args: RouterArgs,
    matches: &ArgMatches,
) -> anyhow::Result<(RouterOptions, RouterConfig)> {
    let file = read(args.config.as_deref())?;
    let mut options: RouterOptions = parse(file.as_ref(), Role::Router)?;
    args.overlay(&mut options);
    let config = RouterConfig::try_from(&options)
        .map_err(|error| explain(&error, matches, file.as_ref()))?;
    Ok((options, config))
}

fn read(path: Option<&Path>) -> anyhow::Result<Option<OptionsFile>> {
    path.map(OptionsFile::read).transpose()
}

fn parse<T>(file: Option<&OptionsFile>, role: Role) -> anyhow::Result<T>
where
    T: Default + serde::de::DeserializeOwned,
{
    file.map_or_else(|| Ok(T::default()), |file| file.parse(role))
}

/// A checked option that cannot be used, named by what set it.
fn explain(error: &ConfigError, matches: &ArgMatches, file: Option<&OptionsFile>) -> anyhow::Error {
    let flag = error.key;
    let variable = variable(flag);
    match matches.value_source(&flag.replace('-', "_")) {
        Some(ValueSource::CommandLine) => {
            Exit::Config.because(format!("--{flag}: {}\n  hint: {}", error.problem, error.hint))
        }
        Some(ValueSource::EnvVariable) => {
            Exit::Config.because(format!("{variable}: {}\n  hint: {}", error.problem, error.hint))
        }
        Some(_) | None => match file {
            Some(file) => file.explain(error),
            None => Exit::Config.because(format!(
                "--{flag}: {}\n  hint: {}, or set {variable}, or `{flag}` in the file of --config",
                error.problem, error.hint
            )),
        },
    }
}

/// The variable of a flag: `session-ttl` has `STEAD_SESSION_TTL`.
pub(super) fn variable(flag: &str) -> String {
    format!("STEAD_{}", flag.replace('-', "_").to_ascii_uppercase())
}

/// What clap says, without its `error: `, and with the variable where the value came from there.
pub(super) fn explain_usage(error: &clap::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Exit::Usage.because(format!("no command given\n\n{error}"));
    }
    let text = error.render().to_string();
    let mut text = text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned();
    if let Some(variable) = blamed_variable(error) {
        text.push_str(&format!("\n  hint: the value comes from the variable {variable}"));
    }
    Exit::Usage.because(text)
}

/// The variable that holds the value that `error` complains about, unless a flag gave it.
fn blamed_variable(error: &clap::Error) -> Option<String> {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return None;
    }
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let flag = argument.strip_prefix("--")?.split([' ', '=', '[']).next()?;
    let given = format!("--{flag}");
    let on_the_line = std::env::args()
        .any(|argument| argument == given || argument.starts_with(&format!("{given}=")));
    let variable = Cli::command()
        .get_subcommands()
        .flat_map(|command| command.get_arguments().cloned().collect::<Vec<_>>())
        .filter(|argument| argument.get_long() == Some(flag))
        .find_map(|argument| argument.get_env().map(|name| name.to_string_lossy().into_owned()))?;
    (!on_the_line && std::env::var_os(&variable).is_some()).then_some(variable)
}
