//! What a path names, and what its query says.

use std::borrow::Cow;
use std::time::Duration;

use super::{bad_request, not_found};
use crate::problem::Problem;

/// Longest name of a counter.
const COUNTER_NAME_BYTES_MAX: usize = 128;

/// Longest time to live that can be asked for: ten years.
const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub(super) id: Cow<'a, [u8]>,
    pub(super) resource: Resource<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resource<'a> {
    Value,
    Counter(Cow<'a, str>),
    Room,
}

impl<'a> Target<'a> {
    pub(super) fn parse(path: &'a str) -> Result<Self, Problem> {
        let nothing = || not_found("no-such-resource", "There is no such resource");
        let mut segments = path.strip_prefix("/sessions/").ok_or_else(nothing)?.split('/');
        let id = segments.next().filter(|id| !id.is_empty()).ok_or_else(nothing)?;
        let resource = match (segments.next(), segments.next(), segments.next()) {
            (None, None, None) => Resource::Value,
            (Some("ws"), None, None) => Resource::Room,
            (Some("counters"), Some(name), None) => Resource::Counter(counter_name(name)?),
            (Some(_) | None, _, _) => return Err(nothing()),
        };
        Ok(Self { id: decode(id)?, resource })
    }
}

/// The name of a counter: 1 to 128 bytes of UTF-8 without control characters, which leaves room
/// for counters of our own.
fn counter_name(segment: &str) -> Result<Cow<'_, str>, Problem> {
    let not_utf8 = || bad_request("bad-counter-name", "The counter's name is not UTF-8.");
    let name = match decode(segment)? {
        Cow::Borrowed(_) => Cow::Borrowed(segment),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).map_err(|_| not_utf8())?),
    };
    let is_valid =
        (1..=COUNTER_NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    if !is_valid {
        let detail = "A counter's name has 1 to 128 bytes and no control characters.";
        return Err(bad_request("bad-counter-name", detail));
    }
    Ok(name)
}

/// Undoes percent-encoding, once.
fn decode(segment: &str) -> Result<Cow<'_, [u8]>, Problem> {
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment.as_bytes()));
    }
    let bad = || bad_request("bad-path", "The path's percent-encoding is broken.");
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let (digits, tail) = tail.split_at_checked(2).ok_or_else(bad)?;
            bytes.push(hex(digits[0]).ok_or_else(bad)? << 4 | hex(digits[1]).ok_or_else(bad)?);
            rest = tail;
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    Ok(Cow::Owned(bytes))
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

/// The time to live that a query asks for, if it does.
pub(super) fn ttl(query: Option<&str>) -> Result<Option<Duration>, Problem> {
    let pairs = query.unwrap_or("").split('&');
    let Some(text) = pairs.filter_map(|pair| pair.strip_prefix("ttl=")).next_back() else {
        return Ok(None);
    };
    let bad = || {
        let detail = "ttl is a time like 90s, 30m, 24h or 1h30m, above zero, at most ten years.";
        bad_request("bad-ttl", detail)
    };
    let ttl = duration(text).ok_or_else(bad)?;
    if ttl.is_zero() || TTL_MAX < ttl {
        return Err(bad());
    }
    Ok(Some(ttl))
}

/// Numbers with units (`ms`, `s`, `m`, `h`, `d`), added up.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        let millis = number.parse::<u64>().ok()?.checked_mul(millis)?;
        total = total.checked_add(Duration::from_millis(millis))?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str) -> Option<(String, Resource<'_>)> {
        let target = Target::parse(path).ok()?;
        Some((String::from_utf8(target.id.into_owned()).unwrap(), target.resource))
    }

    #[test]
    fn a_path_names_a_session_and_what_of_it() {
        assert_eq!(parsed("/sessions/alice"), Some(("alice".into(), Resource::Value)));
        assert_eq!(parsed("/sessions/a%2Fb"), Some(("a/b".into(), Resource::Value)));
        assert_eq!(parsed("/sessions/a%252F"), Some(("a%2F".into(), Resource::Value)));
        assert_eq!(parsed("/sessions/a/ws"), Some(("a".into(), Resource::Room)));
        let counter = Resource::Counter("v 1".into());
        assert_eq!(parsed("/sessions/a/counters/v%201"), Some(("a".into(), counter)));
    }

    #[test]
    fn other_paths_name_nothing() {
        for path in [
            "/",
            "/sessions",
            "/sessions/",
            "/sessions//ws",
            "/sessions/a/",
            "/sessions/a/b",
            "/sessions/a/ws/",
            "/sessions/a/counters",
            "/sessions/a/counters/",
            "/sessions/a/counters/x/y",
            "/sessions/a%2",
            "/sessions/a%zz",
            "/sessions/a/counters/%00room",
            "/sessions/a/counters/%ff",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }

    #[test]
    fn times_to_live_are_numbers_with_units() {
        let ms = |text| ttl(Some(text)).ok().flatten().map(|ttl| ttl.as_millis());
        assert_eq!(ms("ttl=30m"), Some(1_800_000));
        assert_eq!(ms("a=b&ttl=1h30m"), Some(5_400_000));
        assert_eq!(ms("ttl=1ms"), Some(1));
        assert_eq!(ttl(None).ok(), Some(None));
        assert_eq!(ttl(Some("x=ttl")).ok(), Some(None));
        for bad in ["ttl=", "ttl=0s", "ttl=5", "ttl=m", "ttl=5y", "ttl=-5s", "ttl=99999999999d"] {
            assert!(ttl(Some(bad)).is_err(), "{bad}");
        }
    }
}
