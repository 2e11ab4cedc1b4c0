//! Commands, flags, and how they end.
//!
//! Every option of `stead node` and `stead router` is a flag, a variable `STEAD_…` and a key of
//! the TOML file, in this order of precedence. Results go to stdout, everything else to stderr.

mod args;
mod client;
mod completions;
mod config;
mod demo;
mod drain;
mod exit;
mod file;
mod keygen;
mod layers;
mod logging;
mod members;
mod metrics;
mod pins;
mod process;
mod run_node;
mod run_router;
mod secrets;
mod show;
mod signals;
mod status;
mod where_is;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use exit::Exit;

/// One home for every session: a router, nodes that hold the state, and what operates them.
#[derive(Debug, Parser)]
#[command(name = "stead", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node: it owns shards and keeps the state of their sessions
    Node(Box<args::NodeArgs>),
    /// Run a router: it sends every request to the node that owns the session
    Router(Box<args::RouterArgs>),
    /// Run a router and nodes on this machine, to try things out
    Demo(demo::DemoArgs),
    /// Show members and shards
    Status(status::StatusArgs),
    /// Show where a session is
    Where(where_is::WhereArgs),
    /// Say of a member what the others cannot know
    #[command(subcommand)]
    Members(members::MembersCommand),
    /// Hand everything that a node owns to the others, then stop it
    Drain(drain::DrainArgs),
    /// Place a shard by hand: it moves to a node and stays there for a while
    Move(pins::MoveArgs),
    /// Show the shards that are pinned to a node
    Pins(pins::PinsArgs),
    /// Take the pin of a shard away: it goes where placement wants it
    Unpin(pins::UnpinArgs),
    /// Make the file with the cluster's keys
    Keygen(keygen::KeygenArgs),
    /// Check, show and describe configuration files
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print shell completions
    Completions(completions::CompletionsArgs),
}

/// Runs the command that the arguments of the process name.
pub(crate) fn main() -> ExitCode {
    match run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is gone.
            let _ = writeln!(std::io::stderr(), "stead: {error:#}");
            exit::code_of(&error)
        }
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let matches = match Cli::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => return Err(layers::explain_usage(&error)),
        Err(help) if std::io::stdout().is_terminal() => {
            return print(&help.render().ansi().to_string());
        }
        Err(help) => return print(&help.render().to_string()),
    };
    let cli = Cli::from_arg_matches(&matches).map_err(|error| layers::explain_usage(&error))?;
    // The matches of the subcommand say where each of its values came from.
    let (_, matches) = matches.subcommand().ok_or_else(|| Exit::Usage.because("no command"))?;
    match cli.command {
        Command::Node(args) => run_node::run(*args, matches),
        Command::Router(args) => run_router::run(*args, matches),
        Command::Demo(args) => demo::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Where(args) => where_is::run(&args),
        Command::Members(command) => members::run(&command),
        Command::Drain(args) => drain::run(&args),
        Command::Move(args) => pins::run_move(&args),
        Command::Pins(args) => pins::run_pins(&args),
        Command::Unpin(args) => pins::run_unpin(&args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Config(command) => config::run(&command),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Writes to stdout. A reader that went away (`stead status | head -1`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Exit::Io.because(format!("cannot write to stdout: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A runtime for a command that asks a few questions.
fn small_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::Os.because(format!("cannot start a runtime: {error}")))
}
