//! The sticky cookie: an id that only the cluster can make.
//!
//! ```text
//! base64url( version 1 | id 16 | issued 8 | HMAC-SHA256 32 )      76 characters
//! ```
//! The cookie names a session and nothing else: no node, no shard, so it says nothing about the
//! cluster and stays right when shards move. The key is the cluster's own, so a cookie of
//! another cluster is as invalid as a forged one. Whatever does not verify counts as absent: the
//! client gets a new one, and an id it made up is never taken.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderValue;
use sha2::Sha256;
use stead_shared::id::SessionKey;

const VERSION: u8 = 1;
const ID_BYTES: usize = 16;
const BODY_BYTES: usize = 1 + ID_BYTES + 8;
const MAC_BYTES: usize = 32;
/// Says what is signed, so that a signature of something else under this key is worth nothing.
const DOMAIN: &[u8] = b"stead sticky cookie";

/// How long a cookie is valid, in seconds: 400 days, the most that browsers keep one.
pub const MAX_AGE_SECONDS: u64 = 400 * 24 * 3600;

/// How far ahead of ours the clock of another router may be, in seconds.
const CLOCK_SKEW_SECONDS: u64 = 300;

/// Makes and checks cookies.
#[derive(Clone)]
pub struct Signer {
    keyed: Hmac<Sha256>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer(..)")
    }
}

impl Signer {
    /// A signer with a key that all routers of the cluster share.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        let mut keyed = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
        keyed.update(DOMAIN);
        Self { keyed }
    }

    /// The value of a new cookie: `id` is 128 random bits, `now` Unix seconds.
    #[must_use]
    pub fn issue(&self, id: [u8; ID_BYTES], now: u64) -> String {
        let mut bytes = Vec::with_capacity(BODY_BYTES + MAC_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&id);
        bytes.extend_from_slice(&now.to_be_bytes());
        let mac = self.keyed.clone().chain_update(&bytes).finalize();
        bytes.extend_from_slice(&mac.into_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The id in a cookie's value, if we made it and it has not expired at `now`, Unix seconds.
    #[must_use]
    pub fn verify(&self, value: &[u8], now: u64) -> Option<[u8; ID_BYTES]> {
        let mut buffer = [0; BODY_BYTES + MAC_BYTES];
        // The length first, so that eight kilobytes of nonsense cost nothing.
        if value.len() != (BODY_BYTES + MAC_BYTES) * 4 / 3 {
            return None;
        }
        let n = URL_SAFE_NO_PAD.decode_slice(value, &mut buffer).ok()?;
        let (body, mac) = buffer.get(..n)?.split_at_checked(BODY_BYTES)?;
        self.keyed.clone().chain_update(body).verify_slice(mac).ok()?;
        let (&version, rest) = body.split_first()?;
        let (id, issued) = rest.split_first_chunk::<ID_BYTES>()?;
        let issued = u64::from_be_bytes(issued.try_into().ok()?);
        let valid = version == VERSION
            && issued <= now.saturating_add(CLOCK_SKEW_SECONDS)
            && now < issued.saturating_add(MAX_AGE_SECONDS);
        valid.then_some(*id)
    }
}

/// The session key that an id stands for: 32 hex digits, so that it can be typed and looked up.
#[must_use]
pub fn key_of(id: [u8; ID_BYTES]) -> SessionKey {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 * ID_BYTES);
    for byte in id {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    SessionKey::new(text.into_bytes()).expect("32 bytes are within a key's bounds")
}

/// Whether a cookie is sent over TLS only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Secure {
    /// Over anything: the listener has no TLS and no proxy before it has.
    #[default]
    No,
    /// Over TLS only, and bound to this very host by the prefix `__Host-`.
    Yes,
}

/// The name under which the cookie called `name` is set and looked for.
#[must_use]
pub fn full_name(name: &str, secure: Secure) -> String {
    match secure {
        Secure::No => name.to_owned(),
        Secure::Yes => format!("__Host-{name}"),
    }
}

/// The `Set-Cookie` header for a cookie. `full_name` is what [`full_name`] made.
#[must_use]
pub fn set_cookie(full_name: &str, value: &str, secure: Secure) -> HeaderValue {
    let secure = match secure {
        Secure::No => "",
        Secure::Yes => "; Secure",
    };
    let text = format!(
        "{full_name}={value}; Path=/; Max-Age={MAX_AGE_SECONDS}; HttpOnly; SameSite=Lax{secure}"
    );
    HeaderValue::try_from(text).expect("a cookie's name and base64 are visible ASCII")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const ID: [u8; 16] = *b"0123456789abcdef";

    fn signer() -> Signer {
        Signer::new(&[7; 32])
    }

    #[test]
    fn a_cookie_of_ours_gives_its_id_back() {
        let value = signer().issue(ID, NOW);
        assert_eq!(value.len(), 76);
        assert_eq!(signer().verify(value.as_bytes(), NOW), Some(ID));
        assert_eq!(key_of(ID).as_bytes(), b"30313233343536373839616263646566");
    }

    #[test]
    fn every_single_bit_flip_and_every_truncation_is_absent() {
        let value = signer().issue(ID, NOW).into_bytes();
        for bit in 0..value.len() * 8 {
            let mut forged = value.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(signer().verify(&forged, NOW), None, "bit {bit}");
        }
        for len in 0..value.len() {
            assert_eq!(signer().verify(&value[..len], NOW), None, "length {len}");
        }
        let longer = [&value[..], b"A"].concat();
        assert_eq!(signer().verify(&longer, NOW), None);
        assert_eq!(signer().verify(&vec![b'A'; 8192], NOW), None);
    }

    #[test]
    fn an_expired_one_and_one_from_the_future_are_absent() {
        let value = signer().issue(ID, NOW);
        let at = |now| signer().verify(value.as_bytes(), now);
        assert_eq!(at(NOW + MAX_AGE_SECONDS - 1), Some(ID));
        assert_eq!(at(NOW + MAX_AGE_SECONDS), None);
        assert_eq!(at(NOW - CLOCK_SKEW_SECONDS), Some(ID));
        assert_eq!(at(NOW - CLOCK_SKEW_SECONDS - 1), None);
    }

    #[test]
    fn another_clusters_cookie_is_absent() {
        let value = Signer::new(&[8; 32]).issue(ID, NOW);
        assert_eq!(signer().verify(value.as_bytes(), NOW), None);
    }

    #[test]
    fn the_cookie_is_kept_from_scripts_and_other_sites() {
        let plain = set_cookie(&full_name("sid", Secure::No), "v", Secure::No);
        assert_eq!(plain, "sid=v; Path=/; Max-Age=34560000; HttpOnly; SameSite=Lax");
        let secure = set_cookie(&full_name("sid", Secure::Yes), "v", Secure::Yes);
        let text = secure.to_str().unwrap();
        assert!(text.starts_with("__Host-sid=v; Path=/;") && text.ends_with("; Secure"), "{text}");
    }

    proptest! {
        #[test]
        fn nothing_a_client_makes_up_verifies(value in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            prop_assert_eq!(signer().verify(&value, NOW), None);
        }

        #[test]
        fn nothing_that_looks_like_one_verifies(value in "[A-Za-z0-9_-]{76}") {
            prop_assert_eq!(signer().verify(value.as_bytes(), NOW), None);
        }
    }
}
