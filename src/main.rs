//! The one binary: `stead node | router | demo | status | where | drain | keygen | config`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
