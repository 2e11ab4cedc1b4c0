//! Who may change something.
//!
//! A POST from loopback needs the header `stead-admin: 1`, which a page in a browser cannot add
//! to a request for another origin, and a `Host` that is loopback too, which a page whose name
//! was made to resolve to 127.0.0.1 does not have. From elsewhere it needs the token.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, HOST, HeaderMap};
use sha2::{Digest, Sha256};

/// Shortest and longest token.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=512;

/// The secret that allows POSTs from outside loopback.
#[derive(Clone)]
pub struct AdminToken {
    digest: [u8; 32],
}

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(..)")
    }
}

/// A token file whose content cannot be a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "want one line of 16 to 512 visible ASCII characters, for example of `openssl rand -hex 32`"
)]
pub struct TokenError;

impl AdminToken {
    /// The token in the text of a token file; white space around it does not count.
    ///
    /// # Errors
    /// When it is too short, too long, or has other than visible ASCII characters.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let token = text.trim();
        if TOKEN_BYTES.contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Self { digest: Sha256::digest(token.as_bytes()).into() });
        }
        Err(TokenError)
    }

    /// Whether `given` is the token. Takes the same time wherever they differ.
    fn matches(&self, given: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(given).into();
        given.iter().zip(&self.digest).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

/// Why a POST is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// From loopback, without the header.
    NoHeader,
    /// From loopback, in the name of another host.
    ForeignHost,
    /// From elsewhere, while no token is configured.
    NotLoopback,
    /// From elsewhere, without the right token.
    BadToken,
}

impl Denied {
    pub(super) fn detail(self) -> &'static str {
        match self {
            Self::NoHeader => "add the header `stead-admin: 1`",
            Self::ForeignHost => {
                "the Host of a request from loopback must be loopback too, or give the token"
            }
            Self::NotLoopback => {
                "only from loopback, unless the process is started with --admin-token-file"
            }
            Self::BadToken => "give the token of --admin-token-file as `Authorization: Bearer …`",
        }
    }
}

/// Whether a request of `peer` with these headers may change something.
pub(super) fn check(
    peer: IpAddr,
    headers: &HeaderMap,
    token: Option<&AdminToken>,
) -> Result<(), Denied> {
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
        .map(<[u8]>::trim_ascii);
    if let (Some(token), Some(given)) = (token, bearer) {
        return if token.matches(given) { Ok(()) } else { Err(Denied::BadToken) };
    }
    if !peer.to_canonical().is_loopback() {
        return Err(if token.is_some() { Denied::BadToken } else { Denied::NotLoopback });
    }
    if headers.get("stead-admin").is_none_or(|value| value != "1") {
        return Err(Denied::NoHeader);
    }
    match headers.get(HOST) {
        Some(host) if !names_loopback(host.to_str().unwrap_or("")) => Err(Denied::ForeignHost),
        Some(_) | None => Ok(()),
    }
}

/// `127.0.0.1:9180`, `localhost`, `[::1]:9180`.
fn names_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const LOOPBACK: &str = "127.0.0.1";
    const ELSEWHERE: &str = "10.0.0.9";
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn decide(peer: &str, headers: &[(&'static str, &str)], token: bool) -> Result<(), Denied> {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect();
        let token = token.then(|| AdminToken::parse(TOKEN).unwrap());
        check(peer.parse().unwrap(), &map, token.as_ref())
    }

    #[test]
    fn loopback_needs_the_header_and_a_loopback_host() {
        let header = ("stead-admin", "1");
        assert_eq!(decide(LOOPBACK, &[], false), Err(Denied::NoHeader));
        assert_eq!(decide(LOOPBACK, &[("stead-admin", "0")], false), Err(Denied::NoHeader));
        for host in ["127.0.0.1:9180", "localhost:9180", "[::1]:9180", "LOCALHOST"] {
            assert_eq!(decide(LOOPBACK, &[header, ("host", host)], false), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.9", "[::2]:1", ""] {
            let decided = decide(LOOPBACK, &[header, ("host", host)], false);
            assert_eq!(decided, Err(Denied::ForeignHost), "{host}");
        }
        assert_eq!(decide("::ffff:127.0.0.1", &[header], false), Ok(()));
    }

    #[test]
    fn elsewhere_needs_the_token_and_nothing_else_does() {
        let bearer = |token: &str| format!("Bearer {token}");
        let header = ("stead-admin", "1");
        assert_eq!(decide(ELSEWHERE, &[header], false), Err(Denied::NotLoopback));
        assert_eq!(decide(ELSEWHERE, &[header], true), Err(Denied::BadToken));
        assert_eq!(decide(ELSEWHERE, &[("authorization", &bearer(TOKEN))], true), Ok(()));
        let wrong = bearer(&TOKEN.replace('0', "1"));
        assert_eq!(decide(ELSEWHERE, &[("authorization", &wrong)], true), Err(Denied::BadToken));
        let unconfigured = decide(ELSEWHERE, &[("authorization", &bearer(TOKEN))], false);
        assert_eq!(unconfigured, Err(Denied::NotLoopback));
        assert_eq!(decide(LOOPBACK, &[("authorization", &bearer(TOKEN))], true), Ok(()));
    }

    #[test]
    fn a_token_is_one_line_of_some_length() {
        assert!(AdminToken::parse("0123456789abcdef\n").is_ok());
        for bad in ["", "short", "0123456789 abcdef", "ä0123456789abcdef"] {
            assert!(AdminToken::parse(bad).is_err(), "{bad}");
        }
    }
}
