//! What RFC 9110 and 9112 forbid in a request's head and a lenient parser lets through.

use std::net::Ipv6Addr;

use http::header::{EXPECT, HOST};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};

/// What is wrong with a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// HTTP/1.1 without `Host` (RFC 9112 §3.2).
    HostMissing,
    /// More than one `Host` (RFC 9112 §3.2).
    HostTwice,
    /// A `Host` that is not `name[:port]`.
    HostInvalid,
    /// An absolute-form target whose authority is not the `Host` (RFC 9112 §3.2.2).
    HostMismatch,
    /// A target in a form that its method does not take (RFC 9112 §3.2).
    TargetForm,
    /// `CONNECT`: this is no tunnel.
    Connect,
    /// An `Expect` other than one `100-continue` (RFC 9110 §10.1.1).
    Expectation,
}

impl Malformed {
    /// One sentence for the client.
    #[must_use]
    pub fn detail(self) -> &'static str {
        match self {
            Self::HostMissing => "the request has no Host header",
            Self::HostTwice => "the request has more than one Host header",
            Self::HostInvalid => "the Host header is not NAME or NAME:PORT",
            Self::HostMismatch => "the request target names another host than the Host header",
            Self::TargetForm => "the request target has a form that its method does not take",
            Self::Connect => "CONNECT is not supported",
            Self::Expectation => "the only expectation that is supported is 100-continue",
        }
    }
}

/// Checks a request's head.
///
/// # Errors
/// The first thing found wrong.
pub fn check(
    method: &Method,
    uri: &Uri,
    version: Version,
    headers: &HeaderMap,
) -> Result<(), Malformed> {
    if *method == Method::CONNECT {
        return Err(Malformed::Connect);
    }
    let host = the_only_host(version, headers)?;
    check_target(method, uri, host)?;
    if !headers.contains_key(EXPECT) {
        return Ok(());
    }
    let mut expectations = headers.get_all(EXPECT).iter();
    let first = expectations.next().map_or(&b""[..], HeaderValue::as_bytes);
    let single = expectations.next().is_none() && first.eq_ignore_ascii_case(b"100-continue");
    if single { Ok(()) } else { Err(Malformed::Expectation) }
}

fn the_only_host(version: Version, headers: &HeaderMap) -> Result<Option<&str>, Malformed> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version == Version::HTTP_10 => Ok(None),
        (None, _) => Err(Malformed::HostMissing),
        (Some(_), Some(_)) => Err(Malformed::HostTwice),
        (Some(host), None) => match host.to_str() {
            Ok(text) if is_host(text) => Ok(Some(text)),
            Ok(_) | Err(_) => Err(Malformed::HostInvalid),
        },
    }
}

/// `name`, `name:port` or `[v6]:port`, without user, path or list.
fn is_host(text: &str) -> bool {
    if let Some(bracketed) = text.strip_prefix('[') {
        let Some((address, port)) = bracketed.split_once(']') else { return false };
        let has_port = || port.strip_prefix(':').is_some_and(is_port);
        return address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || has_port());
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    // What RFC 3986 allows in a name beyond these has no use in one.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty() && name.bytes().all(plain) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn check_target(method: &Method, uri: &Uri, host: Option<&str>) -> Result<(), Malformed> {
    let Some(authority) = uri.authority() else {
        let is_asterisk = uri.path() == "*";
        let takes_it = !is_asterisk || *method == Method::OPTIONS;
        let is_path = uri.path().starts_with('/') || is_asterisk;
        return if takes_it && is_path { Ok(()) } else { Err(Malformed::TargetForm) };
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(Malformed::TargetForm);
    }
    let same = host.is_none_or(|host| host.eq_ignore_ascii_case(authority.as_str()));
    if same { Ok(()) } else { Err(Malformed::HostMismatch) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<(), Malformed> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        check(&method.parse().unwrap(), &uri.parse().unwrap(), Version::HTTP_11, &map)
    }

    #[test]
    fn ordinary_heads_pass() {
        for host in ["a", "a.example:8080", "127.0.0.1", "[::1]:80", "[::1]", "xn--a_b.c"] {
            assert_eq!(verdict("GET", "/x?y", &[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(verdict("OPTIONS", "*", &[("host", "a")]), Ok(()));
        assert_eq!(verdict("GET", "http://A.example/x", &[("host", "a.example")]), Ok(()));
        assert_eq!(verdict("PUT", "/", &[("host", "a"), ("expect", "100-Continue")]), Ok(()));
    }

    #[test]
    fn a_host_is_there_once_and_names_one_host() {
        assert_eq!(verdict("GET", "/", &[]), Err(Malformed::HostMissing));
        let twice = [("host", "a"), ("host", "a")];
        assert_eq!(verdict("GET", "/", &twice), Err(Malformed::HostTwice));
        for host in [
            "", "a,b", "a, b", "u@a", "a/b", "a b", "a:b", "a:", ":80", "a:99999", "a:+80",
            "a:80:80", "[::1", "[::1]80", "[::1]:", "[x]", "a#b", "a?b", "\u{e4}",
        ] {
            assert_eq!(
                verdict("GET", "/", &[("host", host)]),
                Err(Malformed::HostInvalid),
                "{host}"
            );
        }
    }

    #[test]
    fn old_clients_may_leave_the_host_out() {
        let uri = "/".parse().unwrap();
        assert_eq!(check(&Method::GET, &uri, Version::HTTP_10, &HeaderMap::new()), Ok(()));
    }

    #[test]
    fn the_target_fits_its_method_and_host() {
        let host = [("host", "a")];
        assert_eq!(verdict("CONNECT", "a:80", &host), Err(Malformed::Connect));
        assert_eq!(verdict("GET", "*", &host), Err(Malformed::TargetForm));
        assert_eq!(verdict("GET", "a:80", &host), Err(Malformed::TargetForm));
        assert_eq!(verdict("GET", "ftp://a/", &host), Err(Malformed::TargetForm));
        assert_eq!(verdict("GET", "http://b/", &host), Err(Malformed::HostMismatch));
        assert_eq!(verdict("GET", "http://u@a/", &host), Err(Malformed::HostMismatch));
        assert_eq!(verdict("GET", "http://a:81/", &host), Err(Malformed::HostMismatch));
    }

    #[test]
    fn only_one_expectation_is_known() {
        for expect in [&["x"][..], &["100-continue", "100-continue"], &["100-continue, x"], &[""]] {
            let mut headers = vec![("host", "a")];
            headers.extend(expect.iter().map(|&value| ("expect", value)));
            assert_eq!(verdict("PUT", "/", &headers), Err(Malformed::Expectation), "{expect:?}");
        }
    }
}
