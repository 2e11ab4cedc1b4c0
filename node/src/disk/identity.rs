//! Whose directory it is: a file that refuses another node, another cluster, another format.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use stead_shared::id::ClusterId;

use super::DiskError;
use crate::logic::durable::FORMAT;

const NAME: &str = "identity";
/// A file that the database writes last when it is made.
const DATABASE_MARK: &str = "version";

/// Checks the identity, or writes it into a directory that has no state yet.
pub(super) fn check(dir: &Path, name: &str, cluster: ClusterId) -> Result<(), DiskError> {
    let path = dir.join(NAME);
    let broken = || DiskError::Identity { path: path.clone() };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if dir.join(DATABASE_MARK).exists() {
                return Err(broken());
            }
            return write(dir, &render(name, cluster)).map_err(super::io_error("write", &path));
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(broken()),
        Err(error) => return Err(super::io_error("read", &path)(error)),
    };
    let found = parse(&text).ok_or_else(broken)?;
    if found.format != FORMAT {
        return Err(DiskError::Format { dir: dir.to_owned(), found: found.format });
    }
    if found.name != name {
        let (found, own) = (found.name.to_owned(), name.to_owned());
        return Err(DiskError::OtherNode { dir: dir.to_owned(), found, own });
    }
    if found.cluster != cluster {
        let (found, own) = (found.cluster, cluster);
        return Err(DiskError::OtherCluster { dir: dir.to_owned(), found, own });
    }
    Ok(())
}

struct Identity<'a> {
    format: u8,
    name: &'a str,
    cluster: ClusterId,
}

fn lines(name: &str, cluster: ClusterId) -> String {
    format!("stead state {FORMAT}\ncluster {:016x}\nnode {name}\n", cluster.0)
}

fn render(name: &str, cluster: ClusterId) -> String {
    let lines = lines(name, cluster);
    format!("{lines}check {:08x}\n", crc32fast::hash(lines.as_bytes()))
}

fn parse(text: &str) -> Option<Identity<'_>> {
    let (lines, check) = text.rsplit_once("check ")?;
    let check = u32::from_str_radix(check.strip_suffix('\n')?, 16).ok()?;
    if check != crc32fast::hash(lines.as_bytes()) {
        return None;
    }
    let rest = lines.strip_prefix("stead state ")?;
    let (format, rest) = rest.split_once("\ncluster ")?;
    let (cluster, name) = rest.split_once("\nnode ")?;
    Some(Identity {
        format: format.parse().ok()?,
        name: name.strip_suffix('\n')?,
        cluster: ClusterId(u64::from_str_radix(cluster, 16).ok()?),
    })
}

fn write(dir: &Path, text: &str) -> io::Result<()> {
    let fresh = dir.join("identity.new");
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, dir.join(NAME))?;
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
