//! Log lines on stderr.

use std::io::IsTerminal as _;

use stead_shared::config::LogFormat;
use tracing_subscriber::EnvFilter;

use super::exit::Exit;

/// Starts logging. Called once, before anything logs.
pub(super) fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(filter).map_err(|error| {
        Exit::Config.because(format!(
            "--log: {error}\n  hint: a level (error, warn, info, debug, trace) or target=level,…"
        ))
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Exit::Software.because(format!("logging started twice: {error}")))
}
