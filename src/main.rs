//! The one binary: `stead node | router | demo | status | where | drain | move | keygen | config`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
