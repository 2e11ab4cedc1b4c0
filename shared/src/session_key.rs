//! The key of a request: the bytes that name its session, and where in the request they are.
//!
//! The first stead process that sees a request extracts the key, once, with [`extract`]; from
//! there on it travels in the link's request head. Routers and nodes use this one function, so
//! that `path:2` means the same on both.
//!
//! Values from the path and the query are percent-decoded once, everything else is taken
//! verbatim: `+` is a plus sign, quotes around a cookie's value belong to it, upper and lower
//! case differ.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use bytes::Bytes;
use http::header::{COOKIE, HeaderMap, HeaderName};
use http::uri::Uri;
use regex::Regex;

use crate::id::{KEY_BYTES_MAX, SessionKey};

/// Most sources in one list. Each costs a look at every request that has none of them.
pub const SOURCES_MAX: usize = 16;

/// Where a request's key is looked for.
#[derive(Clone, Debug, PartialEq)]
pub enum KeySource {
    /// `header:NAME`: the value of a header. Two headers of that name are refused.
    Header(HeaderName),
    /// `cookie:NAME`: the value of the first cookie of that name.
    Cookie(CookieName),
    /// `path:N`: the N-th segment of the path, from 1; `/sessions/alice` has `alice` as second.
    Path(NonZeroU16),
    /// `query:NAME`: the value of the first query parameter spelled `NAME`.
    Query(String),
    /// `regex:RE`: what the first group matches in the path as it was sent, then decoded.
    Regex(PathPattern),
    /// `ip`: the client's address as text, an IPv4-mapped one as IPv4.
    Ip,
}

/// A cookie's name: a token of RFC 9110 §5.6.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieName(String);

impl CookieName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CookieName {
    type Err = ParseSourceError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if !name.is_empty() && name.bytes().all(is_token_byte) {
            return Ok(Self(name.to_owned()));
        }
        Err(ParseSourceError::CookieName(name.to_owned()))
    }
}

/// A regular expression with at least one group, matched against the path.
#[derive(Clone, Debug)]
pub struct PathPattern(Regex);

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// A text that names no key source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSourceError {
    /// Not one of the known kinds.
    #[error(
        "`{0}` is not a key source: want header:NAME, cookie:NAME, path:N, query:NAME, regex:RE or ip"
    )]
    Unknown(String),
    /// `header:` with something that cannot be a header's name.
    #[error("`{0}` cannot be the name of a header")]
    HeaderName(String),
    /// `cookie:` with something that cannot be a cookie's name.
    #[error("`{0}` cannot be the name of a cookie")]
    CookieName(String),
    /// `path:` with something that is not a number from 1.
    #[error(
        "`path:{0}`: want the number of a segment, from 1 (path:2 of /sessions/alice is alice)"
    )]
    Segment(String),
    /// `query:` without a name.
    #[error("`query:` needs the name of a parameter, written as it stands in the URL")]
    QueryName,
    /// `regex:` with something that does not compile.
    #[error("`regex:{pattern}` is not a regular expression: {reason}")]
    Regex {
        /// What was given.
        pattern: String,
        /// What the parser says, on one line.
        reason: String,
    },
    /// `regex:` without a group.
    #[error("`regex:{0}` needs a group: its first group is the key, as in ^/rooms/([^/]+)")]
    NoGroup(String),
    /// An empty list.
    #[error("no key source given: want at least one, as in header:x-session,path:2")]
    None,
    /// Too many.
    #[error("{0} key sources given, {SOURCES_MAX} is the most")]
    TooMany(usize),
}

impl FromStr for KeySource {
    type Err = ParseSourceError;

    fn from_str(spec: &str) -> Result<Self, Self::Err> {
        if spec == "ip" {
            return Ok(Self::Ip);
        }
        let unknown = || ParseSourceError::Unknown(spec.to_owned());
        let (kind, value) = spec.split_once(':').ok_or_else(unknown)?;
        match kind {
            "header" => value
                .parse()
                .map(Self::Header)
                .map_err(|_| ParseSourceError::HeaderName(value.to_owned())),
            "cookie" => value.parse().map(Self::Cookie),
            "path" => value
                .parse()
                .map(Self::Path)
                .map_err(|_| ParseSourceError::Segment(value.to_owned())),
            "query" if value.is_empty() => Err(ParseSourceError::QueryName),
            "query" => Ok(Self::Query(value.to_owned())),
            "regex" => parse_pattern(value).map(Self::Regex),
            _ => Err(unknown()),
        }
    }
}

fn parse_pattern(pattern: &str) -> Result<PathPattern, ParseSourceError> {
    let regex = Regex::new(pattern).map_err(|error| ParseSourceError::Regex {
        pattern: pattern.to_owned(),
        // The parser draws the pattern on several lines; its last one says what is wrong.
        reason: error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
    })?;
    // The whole match counts as one.
    if regex.captures_len() < 2 {
        return Err(ParseSourceError::NoGroup(pattern.to_owned()));
    }
    Ok(PathPattern(regex))
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{}", name.as_str()),
            Self::Path(segment) => write!(f, "path:{segment}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Regex(pattern) => write!(f, "regex:{}", pattern.0.as_str()),
            Self::Ip => f.write_str("ip"),
        }
    }
}

/// The sources in a comma-separated list, in order of preference.
///
/// A comma separates only where a source follows it, so that `regex:^/r/(\w{1,8})` is one.
///
/// # Errors
/// When the list is empty or too long, or one of its entries is not a source.
pub fn parse_list(list: &str) -> Result<Vec<KeySource>, ParseSourceError> {
    let mut sources = Vec::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        let end = (rest.match_indices(',').map(|(at, _)| at))
            .find(|&at| begins_source(&rest[at + 1..]))
            .unwrap_or(rest.len());
        sources.push(rest[..end].trim().parse()?);
        rest = rest.get(end + 1..).unwrap_or_default().trim_start();
    }
    match sources.len() {
        0 => Err(ParseSourceError::None),
        1..=SOURCES_MAX => Ok(sources),
        n => Err(ParseSourceError::TooMany(n)),
    }
}

fn begins_source(text: &str) -> bool {
    let text = text.trim_start();
    let first = text.split(',').next().unwrap_or_default().trim_end();
    first == "ip"
        || ["header:", "cookie:", "path:", "query:", "regex:"]
            .iter()
            .any(|kind| text.starts_with(kind))
}

/// A key is there, and it cannot be used. The client's mistake: answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing between the separators.
    #[error("the session key is empty")]
    Empty,
    /// More than a key may have.
    #[error("the session key has {0} bytes, {KEY_BYTES_MAX} is the most")]
    TooLong(usize),
    /// A `%` that two hexadecimal digits do not follow.
    #[error("the session key has a `%` that two hexadecimal digits do not follow")]
    BadEscape,
    /// Two headers that each name a session.
    #[error("the header with the session key is there more than once")]
    Ambiguous,
}

/// The key of a request: the value of the first of `sources` that the request has.
///
/// `Ok(None)` when it has none of them. `client` is the address of the peer of the connection;
/// a source that trusts what a header says of it is `header:NAME`.
///
/// # Errors
/// When the first source that is there has an unusable value. Later sources are not tried then:
/// a client that says which session it means must not land in another one.
pub fn extract(
    sources: &[KeySource],
    uri: &Uri,
    headers: &HeaderMap,
    client: IpAddr,
) -> Result<Option<SessionKey>, KeyError> {
    for source in sources {
        let found = match source {
            KeySource::Header(name) => from_header(headers, name)?.map(Cow::Borrowed),
            KeySource::Cookie(name) => cookie(headers, name).map(Cow::Borrowed),
            KeySource::Path(segment) => from_path(uri.path(), *segment).map(decode).transpose()?,
            KeySource::Query(name) => from_query(uri, name).map(decode).transpose()?,
            KeySource::Regex(PathPattern(regex)) => {
                let group = regex.captures(uri.path()).and_then(|captures| captures.get(1));
                group.map(|text| decode(text.as_str().as_bytes())).transpose()?
            }
            KeySource::Ip => Some(Cow::Owned(client.to_canonical().to_string().into_bytes())),
        };
        if let Some(bytes) = found {
            return checked(bytes).map(Some);
        }
    }
    Ok(None)
}

fn checked(bytes: Cow<'_, [u8]>) -> Result<SessionKey, KeyError> {
    match bytes.len() {
        0 => return Err(KeyError::Empty),
        1..=KEY_BYTES_MAX => {}
        n => return Err(KeyError::TooLong(n)),
    }
    let bytes = match bytes {
        Cow::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
        Cow::Owned(bytes) => Bytes::from(bytes),
    };
    SessionKey::new(bytes).map_err(|error| KeyError::TooLong(error.0))
}

fn from_header<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a [u8]>, KeyError> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Ok(None) };
    match values.next() {
        Some(_) => Err(KeyError::Ambiguous),
        None => Ok(Some(first.as_bytes())),
    }
}

/// The value of the first cookie called `name`, byte for byte.
///
/// The first, because browsers send the one with the most specific path first (RFC 6265 §5.4).
#[must_use]
pub fn cookie<'a>(headers: &'a HeaderMap, name: &CookieName) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter();
    let mut pairs = pairs.flat_map(|line| line.as_bytes().split(|&byte| byte == b';'));
    pairs.find_map(|pair| {
        let value = pair.trim_ascii_start().strip_prefix(name.0.as_bytes())?;
        Some(value.strip_prefix(b"=")?.trim_ascii_end())
    })
}

fn from_path(path: &str, segment: NonZeroU16) -> Option<&[u8]> {
    let segments = path.strip_prefix('/')?;
    segments.split('/').nth(usize::from(segment.get()) - 1).map(str::as_bytes)
}

fn from_query<'a>(uri: &'a Uri, name: &str) -> Option<&'a [u8]> {
    uri.query()?.split('&').find_map(|pair| {
        let value = pair.strip_prefix(name)?;
        if value.is_empty() {
            return Some(&b""[..]);
        }
        value.strip_prefix('=').map(str::as_bytes)
    })
}

/// Percent-decoded once; borrowed when there is nothing to decode.
fn decode(text: &[u8]) -> Result<Cow<'_, [u8]>, KeyError> {
    if !text.contains(&b'%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            decoded.push(byte);
            rest = after;
            continue;
        }
        let [high, low, after @ ..] = after else { return Err(KeyError::BadEscape) };
        decoded.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
        rest = after;
    }
    Ok(Cow::Owned(decoded))
}

fn hex_digit(digit: u8) -> Result<u8, KeyError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(KeyError::BadEscape),
    }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn key(list: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Option<Vec<u8>>, KeyError> {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect();
        let key = extract(&parse_list(list).unwrap(), &uri.parse().unwrap(), &map, CLIENT)?;
        Ok(key.map(|key| key.as_bytes().to_vec()))
    }

    fn found(text: &str) -> Result<Option<Vec<u8>>, KeyError> {
        Ok(Some(text.as_bytes().to_vec()))
    }

    #[test]
    fn each_source_finds_its_own_place() {
        let headers =
            [("x-session", "h1"), ("cookie", "a=1; sid=c1;b=2"), ("cookie", "sid=other; z=9")];
        let uri = "/sessions/p2/x?a=1&s=q1&s=q2";
        for (source, want) in [
            ("header:X-Session", "h1"),
            ("cookie:sid", "c1"),
            ("cookie:b", "2"),
            ("cookie:z", "9"),
            ("path:1", "sessions"),
            ("path:2", "p2"),
            ("path:3", "x"),
            ("query:s", "q1"),
            ("query:a", "1"),
            ("regex:^/sess[a-z]{1,8}/([^/]+)", "p2"),
            ("ip", "::1"),
        ] {
            assert_eq!(key(source, uri, &headers), found(want), "{source}");
        }
    }

    #[test]
    fn what_is_not_there_is_no_key() {
        for source in
            ["header:x-session", "cookie:sid", "path:3", "query:s", "query:sess", "regex:^/r/(.+)"]
        {
            let headers = [("cookie", "xsid=1; sidx=2; sid")];
            assert_eq!(key(source, "/a/b?ss=1&session=2", &headers), Ok(None), "{source}");
        }
        assert_eq!(key("path:1", "*", &[]), Ok(None), "the asterisk form has no segments");
        assert_eq!(key("regex:^/(a)|^/b", "/b", &[]), Ok(None), "the group took no part");
    }

    #[test]
    fn the_first_source_that_is_there_wins() {
        let list = "header:x-session,query:s,path:1,ip";
        assert_eq!(key(list, "/p?s=q", &[("x-session", "h")]), found("h"));
        assert_eq!(key(list, "/p?s=q", &[]), found("q"));
        assert_eq!(key(list, "/p", &[]), found("p"));
        assert_eq!(key(list, "*", &[]), found("::1"));
    }

    #[test]
    fn a_bad_value_does_not_fall_through_to_the_next_source() {
        let list = "query:s,path:1";
        assert_eq!(key(list, "/p?s=", &[]), Err(KeyError::Empty));
        assert_eq!(key(list, "/p?s", &[]), Err(KeyError::Empty));
        assert_eq!(key(list, "/p?s=%4", &[]), Err(KeyError::BadEscape));
        assert_eq!(key(list, "/p?s=%4g", &[]), Err(KeyError::BadEscape));
        assert_eq!(key(list, "/p?s=%", &[]), Err(KeyError::BadEscape));
        let twice = [("x-session", "a"), ("x-session", "a")];
        assert_eq!(key("header:x-session,path:1", "/p", &twice), Err(KeyError::Ambiguous));
    }

    #[test]
    fn path_and_query_are_decoded_once_and_the_rest_is_verbatim() {
        assert_eq!(key("path:1", "/a%2Fb%2541+c", &[]), found("a/b%41+c"));
        assert_eq!(key("query:s", "/?s=a%20b=c", &[]), found("a b=c"));
        assert_eq!(key("regex:^/(.*)", "/%61/b", &[]), found("a/b"));
        assert_eq!(key("header:x-session", "/", &[("x-session", "a%20b")]), found("a%20b"));
        assert_eq!(
            key("cookie:sid", "/", &[("cookie", "sid=\"a%20b\" ; x=1")]),
            found("\"a%20b\"")
        );
        assert_eq!(key("path:1", "/%00%ff", &[]), Ok(Some(vec![0, 255])));
    }

    #[test]
    fn a_key_has_1_to_512_bytes_after_decoding() {
        assert_eq!(key("path:2", "/a//b", &[]), Err(KeyError::Empty));
        assert_eq!(key("path:1", "/", &[]), Err(KeyError::Empty));
        let longest = "k".repeat(512);
        assert_eq!(key("path:1", &format!("/{longest}"), &[]), found(&longest));
        assert_eq!(key("path:1", &format!("/{}", "%6b".repeat(512)), &[]), found(&longest));
        assert_eq!(key("path:1", &format!("/{longest}k"), &[]), Err(KeyError::TooLong(513)));
    }

    #[test]
    fn an_ipv4_mapped_client_is_its_ipv4_address() {
        let mapped = "::ffff:192.0.2.7".parse().unwrap();
        let key = extract(&[KeySource::Ip], &Uri::default(), &HeaderMap::new(), mapped);
        assert_eq!(key.unwrap().unwrap().as_bytes(), b"192.0.2.7");
    }

    #[test]
    fn a_comma_inside_an_expression_does_not_end_it() {
        let list = r"regex:^/r/(\w{1,8}),x, header:x-session ,ip";
        let specs: Vec<String> =
            parse_list(list).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(specs, [r"regex:^/r/(\w{1,8}),x", "header:x-session", "ip"]);
    }

    #[test]
    fn bad_specifications_say_what_is_wrong() {
        for (list, part) in [
            ("", "no key source given"),
            ("ipp", "want header:NAME"),
            ("path2", "want header:NAME"),
            ("Header:x", "want header:NAME"),
            ("header:", "name of a header"),
            ("header:a b", "name of a header"),
            ("header:a,b", "name of a header"),
            ("cookie:", "name of a cookie"),
            ("cookie:a=b", "name of a cookie"),
            ("path:0", "from 1"),
            ("path:-1", "from 1"),
            ("path:x", "from 1"),
            ("query:", "name of a parameter"),
            ("regex:(", "unclosed group"),
            ("regex:^/a", "needs a group"),
            ("path:1,,path:2", "from 1"),
        ] {
            let error = parse_list(list).expect_err(list).to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{list}: {error}");
        }
        let many = vec!["ip"; SOURCES_MAX + 1].join(",");
        assert_eq!(parse_list(&many), Err(ParseSourceError::TooMany(SOURCES_MAX + 1)));
    }

    proptest! {
        #[test]
        fn extraction_never_panics_and_keeps_the_bounds(
            path in "/[!-~]{0,600}",
            header in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
        ) {
            let sources =
                parse_list("header:h,cookie:sid,query:s,path:3,regex:^/a(.*)$,path:1").unwrap();
            for from in 0..sources.len() {
                let Ok(uri) = path.parse::<Uri>() else { continue };
                let mut headers = HeaderMap::new();
                if let Ok(value) = HeaderValue::from_bytes(&header) {
                    headers.insert("h", value.clone());
                    headers.insert(COOKIE, value);
                }
                if let Ok(Some(key)) = extract(&sources[from..], &uri, &headers, CLIENT) {
                    prop_assert!((1..=KEY_BYTES_MAX).contains(&key.as_bytes().len()));
                }
            }
        }

        #[test]
        fn any_bytes_come_back_from_their_escapes(bytes in proptest::collection::vec(proptest::num::u8::ANY, 1..200)) {
            let escaped: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(key("path:1", &format!("/{escaped}"), &[]), Ok(Some(bytes.clone())));
            prop_assert_eq!(key("query:s", &format!("/?s={escaped}"), &[]), Ok(Some(bytes)));
        }

        #[test]
        fn parsing_never_panics_and_reads_back_what_it_prints(list in ".{0,80}") {
            if let Ok(sources) = parse_list(&list) {
                let printed: Vec<String> = sources.iter().map(ToString::to_string).collect();
                prop_assert_eq!(parse_list(&printed.join(",")).unwrap(), sources);
            }
        }
    }
}
