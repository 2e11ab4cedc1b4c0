//! Files that hold secrets.

use std::fs;
use std::path::Path;

use stead_shared::net::admin::AdminToken;
use stead_shared::net::disk::DiskError;

use super::exit::Exit;

/// Larger files hold no token.
const TOKEN_FILE_BYTES_MAX: u64 = 4 << 10;

/// The exit code for a file that cannot be used.
pub(super) fn failed(error: DiskError) -> anyhow::Error {
    let exit = match &error {
        DiskError::Io { .. } => Exit::NoInput,
        DiskError::Exists { .. } => Exit::CantCreate,
        DiskError::KeysExposed { .. } | DiskError::Keys { .. } | DiskError::BootFile { .. } => {
            Exit::Config
        }
        DiskError::Random(_) => Exit::Os,
    };
    exit.because(error.to_string())
}

/// The admin token, as the server keeps it.
pub(super) fn read_token(path: &Path) -> anyhow::Result<AdminToken> {
    parse_token(path, &read(path)?)
}

/// The admin token, as a client sends it.
pub(super) fn read_token_text(path: &Path) -> anyhow::Result<String> {
    let text = read(path)?;
    parse_token(path, &text)?;
    Ok(text.trim().to_owned())
}

fn parse_token(path: &Path, text: &str) -> anyhow::Result<AdminToken> {
    let name = path.display();
    AdminToken::parse(text)
        .map_err(|error| Exit::Config.because(format!("--admin-token-file: {name}: {error}")))
}

fn read(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let fail = |why: String| {
        Exit::NoInput.because(format!("--admin-token-file: cannot read {name}: {why}"))
    };
    let size = fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if size > TOKEN_FILE_BYTES_MAX {
        return Err(fail(format!("{size} bytes are no token")));
    }
    fs::read_to_string(path).map_err(|error| fail(error.to_string()))
}
