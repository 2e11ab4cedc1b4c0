//! Durations and sizes as people write them: `25s`, `1h30m`, `512MiB`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A text that is not a duration or a size. Says what was wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("`{0}` is not a duration: write a number and a unit (us, ms, s, m, h, d), as in `25s`")]
    Duration(String),
    /// Not a size.
    #[error(
        "`{0}` is not a size: write bytes, or a number and k, m, g, KiB, MiB, GiB, as in `512MiB`"
    )]
    Size(String),
    /// Neither a duration nor `never`.
    #[error("`{0}` is neither a duration such as `10s` nor `never`")]
    Limit(String),
}

/// A span of time; text form `25s`, `500ms`, `1h30m`.
///
/// Whole numbers of microseconds, at most 2^63 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

/// Units of a [`Span`] in microseconds, the longest first.
const SPAN_UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

impl Span {
    /// A span of whole seconds.
    #[must_use]
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || UnitError::Duration(clip(text));
        let mut rest = text.trim();
        let mut micros = 0_u64;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let (number, unit, tail) = split_number(rest).ok_or_else(error)?;
            let (_, scale) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
            let part = number.checked_mul(*scale).ok_or_else(error)?;
            micros = micros.checked_add(part).ok_or_else(error)?;
            rest = tail;
        }
        if micros > i64::MAX as u64 {
            return Err(error());
        }
        Ok(Self(Duration::from_micros(micros)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut micros = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        if micros == 0 {
            return f.write_str("0s");
        }
        // Days only when there is nothing else: `24h` is what people write, `7d` as well.
        for (unit, scale) in SPAN_UNITS {
            if unit == "d" && (micros % scale != 0 || micros / scale < 2) {
                continue;
            }
            if micros >= scale {
                write!(f, "{}{unit}", micros / scale)?;
                micros %= scale;
            }
        }
        Ok(())
    }
}

/// A number of bytes; text form `4096`, `512MiB`, `1g`.
///
/// `k`, `m`, `g`, `t` and `KiB`, `MiB`, `GiB`, `TiB` are powers of 1024; `KB`, `MB`, `GB`, `TB`
/// powers of 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "SizeText", into = "String")]
pub struct Size(pub u64);

impl Size {
    /// This many MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || UnitError::Size(clip(text));
        let (number, unit, tail) = split_number(text.trim()).ok_or_else(error)?;
        if !tail.is_empty() {
            return Err(error());
        }
        let scale: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        Ok(Self(number.checked_mul(scale).ok_or_else(error)?))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A size in a file: a text with a unit, or a plain number of bytes.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size such as \"512MiB\", or a number of bytes")]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = UnitError;

    fn try_from(text: SizeText) -> Result<Self, UnitError> {
        match text {
            SizeText::Bytes(n) => Ok(Self(n)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

/// How long to wait for something that may never come: a [`Span`] or `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Patience {
    /// Give up waiting after this long.
    After(Span),
    /// Wait for ever.
    Never,
}

impl Patience {
    /// The limit, `None` for none.
    #[must_use]
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::After(span) => Some(span.0),
            Self::Never => None,
        }
    }
}

impl FromStr for Patience {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "never" {
            return Ok(Self::Never);
        }
        text.parse().map(Self::After).map_err(|_| UnitError::Limit(clip(text)))
    }
}

impl fmt::Display for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(span) => span.fmt(f),
            Self::Never => f.write_str("never"),
        }
    }
}

/// Texts in and out for serde, and a schema that says how they look.
macro_rules! text_form {
    ($type:ident, $pattern:literal, $example:literal) => {
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string", "pattern": $pattern, "examples": [$example]
                })
            }
        }
    };
}

macro_rules! from_text {
    ($type:ident) => {
        impl TryFrom<String> for $type {
            type Error = UnitError;

            fn try_from(text: String) -> Result<Self, UnitError> {
                text.parse()
            }
        }
    };
}

from_text!(Span);
from_text!(Patience);
text_form!(Span, "^([0-9]+(us|ms|s|m|h|d))+$", "25s");
text_form!(Size, "^[0-9]+([kmgtKMGT]([iI]?[bB])?|[bB])?$", "512MiB");
text_form!(Patience, "^(never|([0-9]+(us|ms|s|m|h|d))+)$", "10s");

/// `1h30m` → (1, "h", "30m"). `None` when the text does not start with a digit, or when its
/// number is above `u64`.
fn split_number(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse().ok()?;
    let rest = text[digits..].trim_start();
    let unit = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    Some((number, &rest[..unit], rest[unit..].trim_start()))
}

/// What was given, short enough for a message.
fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_what_they_print() {
        for (text, micros) in [
            ("500ms", 500_000),
            ("25s", 25_000_000),
            ("1h30m", 5_400_000_000),
            ("24h", 86_400_000_000),
            ("7d", 604_800_000_000),
            ("36h", 129_600_000_000),
            ("1s500ms", 1_500_000),
            ("250us", 250),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0, Duration::from_micros(micros), "{text}");
            assert_eq!(span.to_string(), text);
        }
        assert_eq!("1d".parse::<Span>().unwrap().to_string(), "24h");
        assert_eq!("0s".parse::<Span>().unwrap().to_string(), "0s");
    }

    #[test]
    fn a_duration_needs_a_unit() {
        for bad in ["", "25", "s", "2.5s", "-1s", "1w", "9999999999999999999s", "1s x"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_binary_unless_they_say_otherwise() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1g", 1 << 30),
            ("512MiB", 512 << 20),
            ("2k", 2048),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        assert_eq!(Size(1 << 30).to_string(), "1GiB");
        assert_eq!(Size(1_000_000).to_string(), "1000000");
        for bad in ["", "g", "1.5g", "1x", "99999999999g"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn patience_may_have_no_end() {
        assert_eq!("never".parse(), Ok(Patience::Never));
        assert_eq!("10s".parse(), Ok(Patience::After(Span::secs(10))));
        assert_eq!("soon".parse::<Patience>(), Err(UnitError::Limit("soon".into())));
    }
}
