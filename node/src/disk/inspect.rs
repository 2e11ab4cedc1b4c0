//! Looks at the database's files before the database does, which takes some of them as they are.
//!
//! Its journals are cut behind what can be read of them. The list of its tables, of which it
//! writes a checksum that it never looks at, must be what was written.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use super::store::StoreError;
use crate::logic::journal::check;

/// What was cut off last, for whoever wants to know what it was.
const CUT: &str = "journal.cut";
/// The folder with a folder for each keyspace.
const KEYSPACES: &str = "keyspaces";
/// The file that the database locks.
const LOCK: &str = "lock";
/// The file that it writes when all else is made but keyspaces, and how long that is.
const MARK: &str = "version";
const MARK_BYTES: u64 = 4;

/// Looks and cuts, with the database's own lock held: nobody else writes these files meanwhile.
///
/// # Errors
/// Something is not what was written, or in use. Nothing was changed then.
pub(super) fn inspect(dir: &Path) -> Result<(), StoreError> {
    let lock = match OpenOptions::new().read(true).write(true).open(dir.join(LOCK)) {
        Ok(lock) => lock,
        // No database yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StoreError::Locked),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    if is_half_made(dir)? {
        clear(dir)?;
        return Ok(lock.unlock()?);
    }
    for keyspace in std::fs::read_dir(dir.join(KEYSPACES))? {
        check_list(&keyspace?.path())?;
    }
    let mut number = None;
    for path in journals(dir)? {
        let bytes = std::fs::read(&path)?;
        let found = check(&bytes, number);
        number = found.number;
        if found.garbage {
            cut_one(dir, &path, &bytes, found.good)?;
        }
    }
    Ok(lock.unlock()?)
}

/// Whether a start ended while it made the database, which does not go on with what it finds of that:
/// nothing was ever written to it.
fn is_half_made(dir: &Path) -> io::Result<bool> {
    let mark = or_none(std::fs::metadata(dir.join(MARK)))?;
    if mark.is_some_and(|mark| MARK_BYTES <= mark.len()) {
        return Ok(false);
    }
    for keyspace in or_none(std::fs::read_dir(dir.join(KEYSPACES)))?.into_iter().flatten() {
        if keyspace?.path().join("current").try_exists()? {
            return Ok(false);
        }
    }
    for path in journals(dir)? {
        let found = check(&std::fs::read(path)?, None);
        if 0 < found.batches || found.garbage {
            return Ok(false);
        }
    }
    Ok(true)
}

fn or_none<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what was made of a database.
fn clear(dir: &Path) -> io::Result<()> {
    tracing::info!(dir = %dir.display(), "a start ended while it made the database: made anew");
    or_none(std::fs::remove_dir_all(dir.join(KEYSPACES)))?;
    for path in journals(dir)? {
        std::fs::remove_file(path)?;
    }
    or_none(std::fs::remove_file(dir.join(MARK)))?;
    Ok(())
}

/// `current` names the newest list and has its checksum: number u64, xxh3 u128, kind u8.
fn check_list(keyspace: &Path) -> Result<(), StoreError> {
    let current = match std::fs::read(keyspace.join("current")) {
        Ok(current) => current,
        // One that was never finished; the database clears it away.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let parts = current.split_first_chunk::<8>();
    let parts = parts.and_then(|(number, rest)| Some((number, rest.first_chunk::<16>()?)));
    let broken = |name: &str| {
        let path = keyspace.join(name);
        StoreError::Other(format!("{} is not what was written", path.display()))
    };
    let (number, checksum) = parts.ok_or_else(|| broken("current"))?;
    let name = format!("v{}", u64::from_le_bytes(*number));
    let list = match std::fs::read(keyspace.join(&name)) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(broken("current")),
        Err(error) => return Err(error.into()),
    };
    let whole = xxh3_128(&list) == u128::from_le_bytes(*checksum);
    if whole { Ok(()) } else { Err(broken(&name)) }
}

/// From the oldest to the newest.
fn journals(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(".jnl"));
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn cut_one(dir: &Path, path: &Path, bytes: &[u8], good: usize) -> io::Result<()> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(good, |last| last + 1);
    tracing::warn!(
        journal = %path.display(),
        good,
        cut = end - good,
        "a journal ends in something that is no batch: a write that was cut short, or damage"
    );
    let mut saved = File::create(dir.join(CUT))?;
    io::Write::write_all(&mut saved, &bytes[good..end])?;
    saved.sync_all()?;
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(good as u64)?;
    file.sync_all()
}
