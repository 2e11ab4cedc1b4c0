//! The cluster's secrets: the key file, and the keys derived from it.
//!
//! A cluster has one key file, the same on every member, made by `stead keygen`:
//!
//! ```toml
//! hash_secret = "<64 hex digits>"   # where keys fall on shards; never changes
//!
//! [[gossip]]                        # the newest key, under which members speak
//! id = 2
//! made_unix_s = 1795185000
//! key = "<64 hex digits>"
//!
//! [[gossip]]                        # the one before it, still understood
//! id = 1
//! made_unix_s = 1790000000
//! key = "<64 hex digits>"
//! ```
//!
//! **Rotation** adds a key and keeps one older. The new file may reach the members one by one,
//! in any order and at any pace: every datagram says what the newest key of its sender is, and
//! members answer with the newest key that both have (see [`crate::wire::datagram`]). Only a
//! second rotation before the first has reached everybody shuts members out.
//!
//! The hash secret and what is derived from it survive rotations: a session stays on its shard,
//! and a cookie that was issued stays valid.
//!
//! No key is used twice: each purpose has its own, by HKDF-SHA256 (RFC 5869).

use std::fmt;

use hkdf::Hkdf;
use serde::Deserialize;
use sha2::Sha256;
use toml::Spanned;

/// Bytes of every secret and every derived key.
pub const KEY_BYTES: usize = 32;

/// Most gossip keys in a file: the newest and one older.
pub const GOSSIP_KEYS_MAX: usize = 2;

const SALT: &[u8] = b"stead key derivation 1";
const DATAGRAM: &[u8] = b"gossip datagram";
const LINK: &[u8] = b"link hello";
const COOKIE: &[u8] = b"session cookie";

/// The number of a gossip key. A newer key has a higher one; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A secret, or a key derived from one. Its bytes never appear in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey([u8; KEY_BYTES]);

impl SecretKey {
    /// The key of these bytes, which must come from a good source of randomness.
    #[must_use]
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The key for one purpose.
    fn derive(&self, purpose: &[u8]) -> Self {
        let mut derived = [0; KEY_BYTES];
        Hkdf::<Sha256>::new(Some(SALT), &self.0)
            .expand(purpose, &mut derived)
            .expect("HKDF-SHA256 gives up to 8,160 bytes");
        Self(derived)
    }

    fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 2 * KEY_BYTES || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; KEY_BYTES];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |at: u8| char::from(at).to_digit(16);
            *byte = u8::try_from(digit(digits[0])? << 4 | digit(digits[1])?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// One gossip key of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipKey {
    /// Its number.
    pub id: KeyId,
    /// When it was made, in Unix seconds.
    pub made_unix_s: u64,
    /// The key itself; nothing is sealed with it, only with what is derived from it.
    pub key: SecretKey,
}

/// The content of a key file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    hash_secret: SecretKey,
    /// Newest first, one or two.
    gossip: Vec<GossipKey>,
}

/// A key file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// Not TOML, or a field is missing, unknown or of another type.
    #[error("line {line}: {message}; make a key file with `stead keygen`")]
    Syntax {
        /// Where, from 1.
        line: usize,
        /// What is wrong. Never quotes a value.
        message: String,
    },
    /// Not a key.
    #[error("line {line}: `{field}` must be 64 hex digits (32 bytes); `stead keygen` makes them")]
    NotAKey {
        /// Where, from 1.
        line: usize,
        /// Which field.
        field: &'static str,
    },
    /// No gossip key at all.
    #[error("no [[gossip]] key; add one with `stead keygen --rotate`")]
    NoGossipKey,
    /// More than the newest and one older.
    #[error("{found} [[gossip]] keys, at most {GOSSIP_KEYS_MAX}: remove the oldest")]
    TooManyGossipKeys {
        /// How many there are.
        found: usize,
    },
    /// Gossip keys without a number, or with the same one.
    #[error("line {line}: gossip key id {id}: ids start at 1, and no two keys have the same")]
    BadId {
        /// Where, from 1.
        line: usize,
        /// The id.
        id: KeyId,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    hash_secret: Spanned<String>,
    #[serde(default)]
    gossip: Vec<GossipText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GossipText {
    id: Spanned<u32>,
    made_unix_s: u64,
    key: Spanned<String>,
}

impl KeyFile {
    /// A new cluster's secrets, of 32 random bytes each.
    #[must_use]
    pub fn generate(hash_secret: SecretKey, gossip: SecretKey, made_unix_s: u64) -> Self {
        Self { hash_secret, gossip: vec![GossipKey { id: KeyId(1), made_unix_s, key: gossip }] }
    }

    /// Adds `fresh` as the newest gossip key and keeps one older. The hash secret stays.
    #[must_use]
    pub fn rotate(mut self, fresh: SecretKey, made_unix_s: u64) -> Self {
        let id = KeyId(self.newest().id.0.saturating_add(1));
        self.gossip.insert(0, GossipKey { id, made_unix_s, key: fresh });
        self.gossip.truncate(GOSSIP_KEYS_MAX);
        self
    }

    /// Reads the text of a key file.
    ///
    /// # Errors
    /// [`KeyFileError`] says where and what to do; it never quotes a secret.
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        let file: FileText = toml::from_str(text).map_err(|error| syntax(text, &error))?;
        let hash_secret = secret(text, "hash_secret", &file.hash_secret)?;
        if file.gossip.len() > GOSSIP_KEYS_MAX {
            return Err(KeyFileError::TooManyGossipKeys { found: file.gossip.len() });
        }
        let mut gossip: Vec<GossipKey> = Vec::new();
        for entry in &file.gossip {
            let id = KeyId(*entry.id.get_ref());
            if id == KeyId(0) || gossip.iter().any(|other| other.id == id) {
                return Err(KeyFileError::BadId { line: line(text, entry.id.span().start), id });
            }
            let key = secret(text, "key", &entry.key)?;
            gossip.push(GossipKey { id, made_unix_s: entry.made_unix_s, key });
        }
        if gossip.is_empty() {
            return Err(KeyFileError::NoGossipKey);
        }
        gossip.sort_by_key(|key| std::cmp::Reverse(key.id));
        Ok(Self { hash_secret, gossip })
    }

    /// The text of the file; [`Self::parse`] reads it back.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!(
            "# Secrets of one stead cluster: the same file on every member, readable by its user \
             only.\n# Rotate the gossip keys with `stead keygen --rotate`.\n\n\
             # Decides which shard a session falls on. It never changes.\nhash_secret = \"{}\"\n",
            self.hash_secret.to_hex()
        );
        for GossipKey { id, made_unix_s, key } in &self.gossip {
            let key = key.to_hex();
            text +=
                &format!("\n[[gossip]]\nid = {id}\nmade_unix_s = {made_unix_s}\nkey = \"{key}\"\n");
        }
        text
    }

    fn newest(&self) -> &GossipKey {
        self.gossip.first().expect("a key file has at least one gossip key")
    }

    /// The secret of the hash that puts keys on shards. A rotation does not change it.
    #[must_use]
    pub fn hash_secret(&self) -> &SecretKey {
        &self.hash_secret
    }

    /// The gossip keys, newest first.
    #[must_use]
    pub fn gossip_keys(&self) -> &[GossipKey] {
        &self.gossip
    }

    /// The keys of datagrams.
    #[must_use]
    pub fn keyring(&self) -> Keyring {
        self.ring_of(DATAGRAM)
    }

    /// The keys that prove membership in a link's hello, which uses the newest one that both
    /// sides have.
    #[must_use]
    pub fn link_keys(&self) -> Keyring {
        self.ring_of(LINK)
    }

    fn ring_of(&self, purpose: &[u8]) -> Keyring {
        let derive = |key: &GossipKey| GossipKey { key: key.key.derive(purpose), ..key.clone() };
        Keyring { newest: derive(self.newest()), older: self.gossip.get(1).map(derive) }
    }

    /// The key that signs session cookies. It is derived from the hash secret, so that a
    /// rotation does not cut clients off from their sessions.
    #[must_use]
    pub fn cookie_key(&self) -> SecretKey {
        self.hash_secret.derive(COOKIE)
    }
}

fn secret(
    text: &str,
    field: &'static str,
    value: &Spanned<String>,
) -> Result<SecretKey, KeyFileError> {
    SecretKey::from_hex(value.get_ref())
        .ok_or_else(|| KeyFileError::NotAKey { line: line(text, value.span().start), field })
}

/// The parser's message without the values that it quotes, which may be secrets.
fn syntax(text: &str, error: &toml::de::Error) -> KeyFileError {
    let message = error.message();
    let what = message.split([':', '\n']).next().unwrap_or(message);
    let expected = message.rsplit_once(", expected ").map(|(_, expected)| expected);
    let message = match expected {
        Some(expected) if !what.contains(", expected ") => format!("{what}, expected {expected}"),
        Some(_) | None => what.to_owned(),
    };
    KeyFileError::Syntax { line: line(text, error.span().map_or(0, |span| span.start)), message }
}

/// The line of a byte, from 1.
fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// The keys of one purpose: the newest, and an older one while a rotation is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    newest: GossipKey,
    older: Option<GossipKey>,
}

impl Keyring {
    /// The newest key.
    #[must_use]
    pub fn newest(&self) -> &GossipKey {
        &self.newest
    }

    /// The keys' bytes, the newest first.
    #[must_use]
    pub fn secrets(&self) -> Vec<[u8; KEY_BYTES]> {
        std::iter::once(&self.newest).chain(&self.older).map(|key| *key.key.as_bytes()).collect()
    }

    /// The oldest key that is still understood; the newest when there is one only. Every member
    /// that misses at most one rotation has it.
    #[must_use]
    pub fn oldest(&self) -> &GossipKey {
        self.older.as_ref().unwrap_or(&self.newest)
    }

    /// The key of this number.
    #[must_use]
    pub fn find(&self, id: KeyId) -> Option<&GossipKey> {
        [Some(&self.newest), self.older.as_ref()].into_iter().flatten().find(|key| key.id == id)
    }

    /// The key to speak to a member whose newest key is `theirs`, where that is known: the newest
    /// one that both have.
    #[must_use]
    pub fn shared_with(&self, theirs: Option<KeyId>) -> &GossipKey {
        match theirs {
            Some(theirs) if self.newest.id <= theirs => &self.newest,
            Some(_) | None => self.oldest(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> KeyFile {
        KeyFile::generate(SecretKey::new([7; 32]), SecretKey::new([8; 32]), 1_795_185_000)
    }

    #[test]
    fn a_file_reads_back_what_it_renders() {
        let first = file();
        assert_eq!(KeyFile::parse(&first.render()), Ok(first.clone()));
        let second = first.rotate(SecretKey::new([9; 32]), 1_795_186_000);
        assert_eq!(KeyFile::parse(&second.render()), Ok(second));
    }

    #[test]
    fn a_rotation_keeps_one_older_key_and_the_hash_secret() {
        let first = file();
        let second = first.clone().rotate(SecretKey::new([9; 32]), 2);
        let third = second.clone().rotate(SecretKey::new([10; 32]), 3);
        let ids = |file: &KeyFile| file.gossip_keys().iter().map(|k| k.id.0).collect::<Vec<_>>();
        assert_eq!((ids(&first), ids(&second), ids(&third)), (vec![1], vec![2, 1], vec![3, 2]));
        assert_eq!(third.hash_secret(), first.hash_secret());
        assert_eq!(third.cookie_key(), first.cookie_key());
        assert_eq!(third.keyring().oldest(), second.keyring().newest());
    }

    #[test]
    fn two_members_one_rotation_apart_share_a_key_in_both_directions() {
        let old = file();
        let new = old.clone().rotate(SecretKey::new([9; 32]), 2);
        let (old, new) = (old.keyring(), new.keyring());
        assert_eq!(new.shared_with(None).id, KeyId(1));
        assert_eq!(new.shared_with(Some(KeyId(1))).id, KeyId(1));
        assert_eq!(old.shared_with(Some(KeyId(2))).id, KeyId(1));
        assert_eq!(new.shared_with(Some(KeyId(2))).id, KeyId(2));
        assert_eq!(new.find(KeyId(1)), Some(old.newest()));
    }

    /// Golden, computed by another implementation of RFC 5869: changing a derivation cuts running
    /// clusters in two and is a breaking change.
    #[test]
    fn derived_keys_never_change_and_differ_by_purpose() {
        let file = file();
        let golden = [
            (
                file.keyring().newest().key.to_hex(),
                "c831b5f55f4aeb1e811c09165f0a9365fb06c86f4ee48eb340c631f974b59ce4",
            ),
            (
                file.link_keys().newest().key.to_hex(),
                "5632ffcbb04b387770465dc4a7d4fe0d748697ae209d0d347315aafb19f383db",
            ),
            (
                file.cookie_key().to_hex(),
                "47ec4a4d9a8f1cc5dfac16a459e312145ea0b33db9a01b33f3a172e4ac73b146",
            ),
        ];
        for (derived, wanted) in golden {
            assert_eq!(derived, wanted);
        }
    }

    #[test]
    fn a_bad_file_says_where_and_what_and_never_quotes_a_secret() {
        let good = file().render();
        let secret = "08".repeat(32);
        let cases = [
            (good.replace("id = 1", "id = 0"), "line 8: gossip key id 0"),
            (good.replace("id = 1\n", ""), "missing field `id`"),
            (good.replace("id = 1", &format!("id = \"{secret}\"")), "line 8: invalid type"),
            (good.replace(&secret, &secret[1..]), "line 10: `key` must be 64 hex digits"),
            (good.replace(&secret, &format!("{}zz", &secret[2..])), "line 10: `key`"),
            (good.replace(&secret, "é"), "line 10: `key`"),
            (good.replace("id = 1", "id = 1\ncolour = 3"), "line 9: unknown field `colour`"),
            (good.replace("hash_secret", "hash_secrets"), "unknown field `hash_secrets`"),
            (good.replace("key = \"", "key = "), "line 10"),
            (good.split("[[gossip]]").next().unwrap().to_owned(), "no [[gossip]] key"),
            (
                good.clone()
                    + good
                        .split_once("[[gossip]]")
                        .map(|(_, b)| "[[gossip]]".to_owned() + b)
                        .unwrap()
                        .as_str(),
                "gossip key id 1",
            ),
        ];
        for (text, wanted) in cases {
            let error = KeyFile::parse(&text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}\nwanted: {wanted}");
            assert!(!error.contains(&secret[..16]), "{error}");
        }
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let shown = format!("{:?} {:?}", file(), file().keyring());
        assert!(
            !shown.contains("[7") && !shown.contains("0707") && shown.contains("SecretKey(..)")
        );
    }
}
