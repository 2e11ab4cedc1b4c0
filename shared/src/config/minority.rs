//! What a node does on the smaller side of a cut.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a node does that is cut off with the smaller part of its cluster. Written `serve` or `stop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnMinority {
    /// It serves. What both sides change is merged when they hear each other again.
    #[default]
    Serve,
    /// It answers nothing until enough of the others are back: 503, `stead-refusal: degraded`.
    Stop,
}

impl fmt::Display for OnMinority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serve => "serve",
            Self::Stop => "stop",
        })
    }
}

/// A text that says neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("want `serve` or `stop`")]
pub struct ParseOnMinorityError;

impl FromStr for OnMinority {
    type Err = ParseOnMinorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Serve, Self::Stop];
        all.into_iter().find(|it| it.to_string() == text).ok_or(ParseOnMinorityError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_what_it_prints() {
        for text in ["serve", "stop"] {
            let read: OnMinority = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
            assert_eq!(serde_json::to_string(&read).unwrap(), format!("\"{text}\""));
        }
        assert_eq!("Stop".parse::<OnMinority>(), Err(ParseOnMinorityError));
    }
}
