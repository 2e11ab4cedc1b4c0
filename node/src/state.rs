//! Typed state: how a value of the application becomes bytes that later versions can read.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Application state with a schema version.
///
/// The default encoding is JSON: field names travel with the values, so that a field added
/// later with `#[serde(default)]` reads old states, and a removed one is skipped. Raise
/// [`VERSION`](Self::VERSION) when old code must not touch what new code writes: it then refuses
/// the session (503 `quarantined`) and leaves the bytes as they are.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use stead_node::State;
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Cart {
///     items: Vec<String>,
///     #[serde(default)]
///     coupon: Option<String>,
/// }
///
/// impl State for Cart {
///     const VERSION: u32 = 1;
/// }
/// ```
pub trait State: Serialize + DeserializeOwned {
    /// The version this code writes, and the newest it reads.
    const VERSION: u32;

    /// The bytes of this value.
    ///
    /// # Errors
    /// When the value cannot be written in this encoding.
    fn encode(&self) -> Result<Vec<u8>, CodecError> {
        serde_json::to_vec(self).map_err(CodecError::new)
    }

    /// The value in `bytes`, which were written by version `version` (≤ [`VERSION`](Self::VERSION)).
    ///
    /// Override it to read a schema that serde's defaults cannot bridge.
    ///
    /// # Errors
    /// When the bytes are not such a value. They are kept as they are.
    fn decode(version: u32, bytes: &[u8]) -> Result<Self, CodecError> {
        let _ = version;
        serde_json::from_slice(bytes).map_err(CodecError::new)
    }
}

/// A value that cannot be written, or bytes that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(String);

impl CodecError {
    /// What is wrong, in the encoding's words.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}
