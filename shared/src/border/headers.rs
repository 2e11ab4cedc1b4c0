//! Headers at the border: what ends here, what is ours, what is added.
//!
//! Order matters: first everything that concerns only the connection to the client goes, with
//! whatever its `Connection` header names, then come our own headers. So no client can name one
//! of ours and have it removed.

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{Method, Version};

/// `stead-refusal`: not executed, and why.
pub const REFUSAL: HeaderName = HeaderName::from_static("stead-refusal");
/// `stead-outcome`: may have been executed.
pub const OUTCOME: HeaderName = HeaderName::from_static("stead-outcome");
/// Says that an answer was given before, to an earlier attempt of the same request: `true`, or
/// `status-only` where the rest of it was too long to be kept.
pub const REPLAYED: HeaderName = HeaderName::from_static("stead-replayed");
/// `stead-node`: the name of the node that answered.
pub const NODE: HeaderName = HeaderName::from_static("stead-node");
/// `stead-shard`: the shard of the request's key.
pub const SHARD: HeaderName = HeaderName::from_static("stead-shard");
/// `stead-epoch`: the epoch in which the answer was given, `COUNTER.NODE`.
pub const EPOCH: HeaderName = HeaderName::from_static("stead-epoch");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Most bytes kept of what a client says of the way before it: about 60 addresses.
const FORWARDED_FOR_BYTES_MAX: usize = 1024;

/// Names that concern one connection only (RFC 9110 §7.6.1), and `Expect`, which we answer.
static HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    EXPECT,
];

/// Removes what concerns only the connection it came on, and everything that begins with
/// `stead-`, in any spelling, unless `keep` says so.
fn strip(headers: &mut HeaderMap, keep: impl Fn(&HeaderName) -> bool) {
    // Nothing is allocated for a request that has none of them, or only the ordinary ones.
    let mut found = 0_u16;
    let mut doomed: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        if let Some(idx) = HOP_BY_HOP.iter().position(|hop| hop == name) {
            found |= 1 << idx;
        } else if is_internal(name) && !keep(name) {
            doomed.push(name.clone());
        }
    }
    if found & 1 != 0 {
        doomed.extend(named_by_connection(headers));
    }
    for name in (HOP_BY_HOP.iter().enumerate()).filter(|(idx, _)| found & 1 << idx != 0) {
        headers.remove(name.1);
    }
    for name in doomed {
        headers.remove(name);
    }
}

fn is_internal(name: &HeaderName) -> bool {
    matches!(name.as_str().as_bytes(), [b's', b't', b'e', b'a', b'd', b'-' | b'_', ..])
}

/// The further headers that `Connection` says end here. Those that hold a message together
/// stay: naming `Host` must not give a request without one.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(CONNECTION).iter();
    let options = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    options
        .map(<[u8]>::trim_ascii)
        .filter(|option| !option.eq_ignore_ascii_case(b"keep-alive"))
        .filter(|option| !option.eq_ignore_ascii_case(b"close"))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect()
}

/// The protocol that a request asks to switch to, when it is one that is passed through.
///
/// `h2c` is not: an HTTP/2 connection inside would carry requests past every check here. Nor is
/// an upgrade of a request with a body, or of another method than `GET`.
#[must_use]
pub fn upgrade_of(method: &Method, version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get(UPGRADE)?;
    let lines = headers.get_all(CONNECTION).iter();
    let mut options = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    let named = options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    let single = headers.get_all(UPGRADE).iter().nth(1).is_none();
    let protocol = asked.as_bytes();
    let plain =
        protocol.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte));
    let http = protocol.get(..1).is_some_and(|first| first.eq_ignore_ascii_case(b"h"));
    let no_body = !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING);
    let passes = named && single && plain && !http && no_body && !protocol.is_empty();
    (passes && *method == Method::GET && version == Version::HTTP_11).then(|| asked.clone())
}

/// Makes a client's headers fit for a node: `peer` is the client's address as text, `upgrade`
/// what [`upgrade_of`] found.
pub fn to_node(
    headers: &mut HeaderMap,
    version: Version,
    peer: &HeaderValue,
    upgrade: Option<HeaderValue>,
) {
    strip(headers, |_| false);
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    add_forwarded_for(headers, peer);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    let via = if version == Version::HTTP_10 { "1.0 stead" } else { "1.1 stead" };
    headers.append(VIA, HeaderValue::from_static(via));
}

fn add_forwarded_for(headers: &mut HeaderMap, peer: &HeaderValue) {
    if !headers.contains_key(FORWARDED_FOR) {
        headers.insert(FORWARDED_FOR, peer.clone());
        return;
    }
    let mut way = Vec::new();
    for line in headers.get_all(FORWARDED_FOR) {
        way.extend_from_slice(line.as_bytes());
        way.extend_from_slice(b", ");
    }
    // What is nearest to us is at the end; drop whole entries from the begin.
    let excess = way.len().saturating_sub(FORWARDED_FOR_BYTES_MAX);
    if 0 < excess {
        let cut = way[excess..].iter().position(|&byte| byte == b',');
        way.drain(..cut.map_or(way.len(), |at| excess + at + 1));
    }
    let mut whole = way.trim_ascii_start().to_vec();
    whole.extend_from_slice(peer.as_bytes());
    let value = HeaderValue::from_bytes(&whole).unwrap_or_else(|_| peer.clone());
    headers.insert(FORWARDED_FOR, value);
}

/// Makes a node's headers fit for the client. `stead-refusal` and `stead-outcome` stay: they
/// are what tells the client whether its request was executed.
///
/// The list of trailers stays for a client that takes them: the HTTP library sends those listed.
pub fn to_client(headers: &mut HeaderMap, upgrade: Option<HeaderValue>, takes_trailers: bool) {
    let trailers = if takes_trailers { headers.remove(TRAILER) } else { None };
    strip(headers, |name| [REFUSAL, OUTCOME, REPLAYED].contains(name));
    if let Some(trailers) = trailers {
        headers.insert(TRAILER, trailers);
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// Whether a trailer with this name may be passed on: none that could be taken for a header
/// that frames, routes or authorises (RFC 9110 §6.5.1).
#[must_use]
pub fn is_passed_as_trailer(name: &HeaderName) -> bool {
    let never = [CONTENT_LENGTH, HOST, http::header::AUTHORIZATION, http::header::SET_COOKIE];
    !is_internal(name) && !HOP_BY_HOP.contains(name) && !never.contains(name)
}

/// Whether the client takes trailers.
#[must_use]
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(TE).iter();
    lines.any(|line| {
        let mut codings = line.as_bytes().split(|&byte| byte == b',');
        codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn forwarded(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = map(headers);
        to_node(&mut map, Version::HTTP_11, &HeaderValue::from_static("192.0.2.7"), None);
        map
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    const OURS: [&str; 3] = ["via", "x-forwarded-for", "x-forwarded-proto"];

    #[test]
    fn what_concerns_the_connection_ends_here() {
        let sent = map(&[
            ("connection", "keep-alive, X-Mine"),
            ("connection", "x-other,close"),
            ("keep-alive", "5"),
            ("proxy-connection", "x"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "x"),
            ("expect", "100-continue"),
            ("x-mine", "1"),
            ("x-other", "1"),
            ("x-kept", "1"),
        ]);
        let mut headers = sent;
        to_node(&mut headers, Version::HTTP_11, &HeaderValue::from_static("192.0.2.7"), None);
        assert_eq!(names(&headers), [&OURS[..], &["x-kept"]].concat());
    }

    #[test]
    fn the_client_cannot_have_ours_or_the_host_removed() {
        let connection = "X-Forwarded-For, x-forwarded-proto, Via, Host, content-length, Cookie";
        let headers = forwarded(&[
            ("connection", connection),
            ("host", "a"),
            ("content-length", "0"),
            ("cookie", "a=1"),
            ("x-forwarded-for", "203.0.113.9"),
        ]);
        assert_eq!(names(&headers), [&["content-length", "host"], &OURS[..]].concat());
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
    }

    #[test]
    fn names_of_ours_never_come_from_outside() {
        let sent = [
            ("stead-node", "x"),
            ("STEAD-Anything", "x"),
            ("stead_epoch", "x"),
            ("stead-refusal", "moving"),
            ("steadfast", "kept"),
        ];
        assert_eq!(names(&forwarded(&sent)), [&["steadfast"], &OURS[..]].concat());
        let mut answer = map(&sent);
        to_client(&mut answer, None, false);
        assert_eq!(names(&answer), ["stead-refusal", "steadfast"]);
    }

    #[test]
    fn the_way_of_a_request_grows_at_its_end() {
        let headers = forwarded(&[("x-forwarded-for", "a, b"), ("x-forwarded-for", "c")]);
        assert_eq!(headers["x-forwarded-for"], "a, b, c, 192.0.2.7");
        let vias = forwarded(&[("via", "1.0 old")]);
        let vias: Vec<_> = vias.get_all(VIA).iter().collect();
        assert_eq!(vias, ["1.0 old", "1.1 stead"]);
        let spoofed = forwarded(&[("x-forwarded-proto", "https"), ("x-forwarded-proto", "x")]);
        let protos: Vec<_> = spoofed.get_all("x-forwarded-proto").iter().collect();
        assert_eq!(protos, ["http"]);
    }

    #[test]
    fn a_long_way_loses_its_begin() {
        let long = (0..1000).map(|n| format!("10.0.0.{n}")).collect::<Vec<_>>().join(", ");
        let headers = forwarded(&[("x-forwarded-for", &long)]);
        let way = headers["x-forwarded-for"].to_str().unwrap();
        assert!(way.len() < FORWARDED_FOR_BYTES_MAX + 16, "{}", way.len());
        assert!(way.starts_with("10.0.0.") && way.ends_with("10.0.0.999, 192.0.2.7"), "{way}");
        let endless = "x".repeat(5000);
        assert_eq!(forwarded(&[("x-forwarded-for", &endless)])["x-forwarded-for"], "192.0.2.7");
    }

    #[test]
    fn an_upgrade_passes_only_when_it_is_one_and_not_to_http() {
        let found =
            |headers: &[(&str, &str)]| upgrade_of(&Method::GET, Version::HTTP_11, &map(headers));
        let both = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert_eq!(found(&both), Some(HeaderValue::from_static("websocket")));
        assert_eq!(found(&both[..1]), None);
        assert_eq!(found(&both[1..]), None);
        for protocol in ["h2c", "H2C", "HTTP/2.0", "websocket, h2c", ""] {
            assert_eq!(found(&[both[0], ("upgrade", protocol)]), None, "{protocol}");
        }
        assert_eq!(found(&[both[0], both[1], both[1]]), None);
        assert_eq!(found(&[both[0], both[1], ("content-length", "3")]), None);
        assert_eq!(upgrade_of(&Method::POST, Version::HTTP_11, &map(&both)), None);
        assert_eq!(upgrade_of(&Method::GET, Version::HTTP_10, &map(&both)), None);
    }

    #[test]
    fn trailers_pass_only_to_who_takes_them_and_never_as_headers() {
        assert!(takes_trailers(&map(&[("te", "gzip, Trailers")])));
        assert!(!takes_trailers(&map(&[("te", "gzip")])));
        for name in ["content-length", "host", "transfer-encoding", "stead-node", "set-cookie"] {
            assert!(!is_passed_as_trailer(&name.parse().unwrap()), "{name}");
        }
        assert!(is_passed_as_trailer(&"x-checksum".parse().unwrap()));
    }
}
