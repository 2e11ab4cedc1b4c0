//! Header names that travel as one byte.

use http::header::HeaderName;

macro_rules! names {
    ($($name:literal)*) => {
        /// The names that travel as one byte, by code - 1. Part of the wire format: append only.
        pub static NAMES: [HeaderName; TEXTS.len()] = [$(HeaderName::from_static($name)),*];

        const TEXTS: &[&str] = &[$($name),*];
    };
}

names! {
    "host" "user-agent" "accept" "accept-encoding" "accept-language" "content-type"
    "content-length" "content-encoding" "cookie" "set-cookie" "authorization" "cache-control"
    "etag" "if-match" "if-none-match" "if-modified-since" "if-unmodified-since" "last-modified"
    "date" "server" "vary" "location" "origin" "referer" "range" "if-range" "accept-ranges"
    "content-range" "content-disposition" "content-language" "content-location"
    "content-security-policy" "expect" "expires" "age" "allow" "forwarded" "via" "pragma"
    "retry-after" "strict-transport-security" "te" "trailer" "upgrade" "connection" "warning"
    "www-authenticate" "x-content-type-options" "x-frame-options" "sec-websocket-accept"
    "sec-websocket-extensions" "sec-websocket-key" "sec-websocket-protocol"
    "sec-websocket-version" "access-control-allow-origin" "access-control-allow-credentials"
    "upgrade-insecure-requests" "dnt" "x-forwarded-for" "x-forwarded-proto" "x-forwarded-host"
    "x-real-ip" "x-request-id" "traceparent" "tracestate" "idempotency-key" "sec-fetch-dest"
    "sec-fetch-mode" "sec-fetch-site" "stead-node" "stead-shard" "stead-epoch"
}

/// Slots of the lookup table: several per name, so that a lookup compares one string or none.
const SLOTS: usize = 512;

/// Codes by hash of the name, 0 for none; a taken slot sends on to the next one.
static CODES: [u8; SLOTS] = codes();

const fn codes() -> [u8; SLOTS] {
    let mut table = [0; SLOTS];
    let mut at = 0;
    while at < TEXTS.len() {
        let mut slot = hash(TEXTS[at].as_bytes());
        while table[slot] != 0 {
            slot = (slot + 1) % SLOTS;
        }
        table[slot] = at as u8 + 1;
        at += 1;
    }
    table
}

/// A few bytes of the name, mixed. Any function would do; names are never empty.
const fn hash(name: &[u8]) -> usize {
    let len = name.len();
    let ends = name[0] as usize * 151 + name[len - 1] as usize * 11;
    let inside = name[len / 2] as usize * 73 + name[len / 3] as usize * 29;
    (len * 37 + ends + inside) % SLOTS
}

/// The code of a name, if it has one.
pub(super) fn code(name: &HeaderName) -> Option<u8> {
    let text = name.as_str();
    let mut slot = hash(text.as_bytes());
    loop {
        let code = CODES[slot];
        if code == 0 {
            return None;
        }
        if TEXTS[usize::from(code) - 1] == text {
            return Some(code);
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// The name of a code.
pub(super) fn name(code: u8) -> Option<HeaderName> {
    NAMES.get(usize::from(code).checked_sub(1)?).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_code_of_its_own() {
        for (at, text) in TEXTS.iter().enumerate() {
            let known = &NAMES[at];
            assert_eq!(known.as_str(), *text);
            assert_eq!(code(known), Some(at as u8 + 1));
            assert_eq!(name(at as u8 + 1).as_ref(), Some(known));
        }
        assert_eq!(code(&HeaderName::from_static("x-unheard-of")), None);
        assert_eq!(name(0), None);
        assert_eq!(name(255), None);
    }
}
