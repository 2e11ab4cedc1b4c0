//! The small files of a process: the key file and the boot id. Read and written at the start and
//! on request, so blocking.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::id::BootId;
use crate::keys::{KEY_BYTES, KeyFile, KeyFileError, SecretKey};

/// Most bytes of a key file. A real one has about 600.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;

/// The file in the data directory that holds the last boot id.
const BOOT_FILE: &str = "boot";
/// Names of other members, one a line.
const MEMBERS_FILE: &str = "members";

/// A file that cannot be used. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system refused.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// `keygen` would overwrite secrets.
    #[error(
        "{path} exists already; add a key to it with `--rotate`, or remove it first (then all \
         sessions move to other shards)",
        path = path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Everybody on the host can read the secrets.
    #[error(
        "{path} has mode {mode:03o}, so everybody on this host can read or change the cluster's \
         secrets; run `chmod 600 {path}`",
        path = path.display()
    )]
    KeysExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file's content is wrong.
    #[error("{path}: {source}", path = path.display())]
    Keys {
        /// The key file.
        path: PathBuf,
        /// What is wrong.
        source: KeyFileError,
    },
    /// The boot file's content is wrong.
    #[error(
        "{path} holds no boot id, a decimal number; restore it, or remove it if the clock never \
         went back since this node last ran",
        path = path.display()
    )]
    BootFile {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> DiskError + 'a {
    move |source| DiskError::Io { what, path: path.to_owned(), source }
}

/// 32 bytes from the system's source of randomness.
///
/// # Errors
/// [`DiskError::Random`].
pub fn random_key() -> Result<SecretKey, DiskError> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(DiskError::Random)?;
    Ok(SecretKey::new(bytes))
}

/// Microseconds since 1970 by the system's clock; 0 when it stands before that.
#[must_use]
pub fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Reads the key file at `path`.
///
/// # Errors
/// [`DiskError`]: missing, readable by everybody, or not a key file.
pub fn read_keys(path: &Path) -> Result<KeyFile, DiskError> {
    let file = File::open(path).map_err(io_error("open the key file", path))?;
    refuse_exposed(&file, path)?;
    let mut text = String::new();
    file.take(KEY_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(io_error("read the key file", path))?;
    KeyFile::parse(&text).map_err(|source| DiskError::Keys { path: path.to_owned(), source })
}

#[cfg(unix)]
fn refuse_exposed(file: &File, path: &Path) -> Result<(), DiskError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(io_error("read the mode of the key file", path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(DiskError::KeysExposed { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn refuse_exposed(_file: &File, _path: &Path) -> Result<(), DiskError> {
    Ok(())
}

/// Writes a new key file that only its user can read.
///
/// # Errors
/// [`DiskError::Exists`] when there is one; it is not touched.
pub fn create_keys(path: &Path, keys: &KeyFile) -> Result<(), DiskError> {
    match write_new(path, keys.render().as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(DiskError::Exists { path: path.to_owned() })
        }
        result => result.map_err(io_error("write the key file", path)),
    }
}

/// Replaces the key file at `path` in one step: a reader sees the old one or the new one.
///
/// # Errors
/// [`DiskError::Io`]; then the old one is still there.
pub fn replace_keys(path: &Path, keys: &KeyFile) -> Result<(), DiskError> {
    replace(path, keys.render().as_bytes()).map_err(io_error("replace the key file", path))
}

/// The id of this start of the process: `now`, the time in microseconds, or one more than the
/// last one that `data_dir` remembers where the clock has gone back. It is on disk before this
/// returns.
///
/// # Errors
/// [`DiskError`] when the directory cannot be read or written.
pub fn next_boot(data_dir: Option<&Path>, now: u64) -> Result<BootId, DiskError> {
    let Some(dir) = data_dir else { return Ok(BootId(now)) };
    fs::create_dir_all(dir).map_err(io_error("create the data directory", dir))?;
    let path = dir.join(BOOT_FILE);
    let last = match fs::read_to_string(&path) {
        Ok(text) => {
            text.trim().parse::<u64>().map_err(|_| DiskError::BootFile { path: path.clone() })?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let boot = BootId(now.max(last.saturating_add(1)));
    remember_boot(dir, boot)?;
    Ok(boot)
}

/// Writes a boot id that was taken for another reason than a start.
///
/// # Errors
/// [`DiskError::Io`].
pub fn remember_boot(dir: &Path, boot: BootId) -> Result<(), DiskError> {
    let path = dir.join(BOOT_FILE);
    replace(&path, format!("{boot}\n").as_bytes()).map_err(io_error("write", &path))
}

/// Names of other members of the cluster that this directory belongs to; none for a new one.
///
/// # Errors
/// [`DiskError::Io`].
pub fn known_members(dir: &Path) -> Result<Vec<String>, DiskError> {
    let path = dir.join(MEMBERS_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

/// Remembers the names of other members.
///
/// # Errors
/// [`DiskError::Io`].
pub fn remember_members(dir: &Path, names: &[String]) -> Result<(), DiskError> {
    let path = dir.join(MEMBERS_FILE);
    let text: String = names.iter().map(|name| format!("{name}\n")).collect();
    replace(&path, text.as_bytes()).map_err(io_error("write", &path))
}

/// Creates the file for its user alone, with all bytes on disk.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    // Left by a process that was killed while it wrote.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    write_new(&fresh, bytes)?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(dir) if cfg!(unix) && !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_remembered() {
        let dir = Scratch::new("members");
        assert_eq!(known_members(&dir.0).unwrap(), Vec::<String>::new());
        let names = ["n1".to_owned(), "n2".to_owned()];
        remember_members(&dir.0, &names).unwrap();
        assert_eq!(known_members(&dir.0).unwrap(), names);
    }

    /// A directory of its own for each test, removed at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("stead-disk-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn keys() -> KeyFile {
        KeyFile::generate(random_key().unwrap(), random_key().unwrap(), 1)
    }

    #[test]
    fn a_key_file_is_made_once_and_then_only_rotated() {
        let scratch = Scratch::new("keys");
        let path = scratch.0.join("cluster.keys");
        let first = keys();
        create_keys(&path, &first).unwrap();
        assert!(matches!(create_keys(&path, &keys()), Err(DiskError::Exists { .. })));
        assert_eq!(read_keys(&path).unwrap(), first);
        let second = first.rotate(random_key().unwrap(), 2);
        replace_keys(&path, &second).unwrap();
        assert_eq!(read_keys(&path).unwrap(), second);
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_that_everybody_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("mode");
        let path = scratch.0.join("cluster.keys");
        create_keys(&path, &keys()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read_keys(&path).unwrap_err();
        assert!(matches!(error, DiskError::KeysExposed { mode: 0o644, .. }));
        assert!(error.to_string().contains("chmod 600"));
    }

    #[test]
    fn an_error_names_the_file() {
        let scratch = Scratch::new("errors");
        let path = scratch.0.join("cluster.keys");
        assert!(read_keys(&path).unwrap_err().to_string().contains("cluster.keys"));
        write_new(&path, b"hash_secret = 5").unwrap();
        let error = read_keys(&path).unwrap_err().to_string();
        assert!(error.contains("cluster.keys") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn boot_ids_grow_even_when_the_clock_goes_back() {
        let scratch = Scratch::new("boot");
        let dir = scratch.0.join("data");
        let first = next_boot(Some(&dir), unix_micros()).unwrap();
        let second = next_boot(Some(&dir), unix_micros()).unwrap();
        assert!(first < second);
        let far = BootId(second.0 + 1_000_000_000_000);
        remember_boot(&dir, far).unwrap();
        assert_eq!(next_boot(Some(&dir), unix_micros()).unwrap(), BootId(far.0 + 1));
        fs::write(dir.join(BOOT_FILE), "torn").unwrap();
        assert!(matches!(next_boot(Some(&dir), unix_micros()), Err(DiskError::BootFile { .. })));
    }
}
