//! Exit codes, after sysexits(3).

use std::fmt;
use std::process::ExitCode;

/// Why the process ends without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Bad flags or arguments.
    Usage = 64,
    /// A file that must be there is not, or cannot be read.
    NoInput = 66,
    /// Another process did not answer, refused, or takes part in another cluster.
    Unavailable = 69,
    /// A fault of this program.
    Software = 70,
    /// The system refused: a port in use, no threads.
    Os = 71,
    /// A file could not be made.
    CantCreate = 73,
    /// Reading or writing failed.
    Io = 74,
    /// Not in time; trying again may help.
    TempFail = 75,
    /// Not allowed.
    NoPermission = 77,
    /// A value in a file, in the environment or in a flag cannot be used.
    Config = 78,
}

impl Exit {
    /// An error that ends the process this way, with a message for the person at the terminal.
    pub(super) fn because(self, message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Failure { exit: self, message: message.into() })
    }
}

/// A message and a code.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The code for an error that reached the top.
pub(super) fn code_of(error: &anyhow::Error) -> ExitCode {
    let exit = error.downcast_ref::<Failure>().map_or(Exit::Software, |failure| failure.exit);
    ExitCode::from(exit as u8)
}
