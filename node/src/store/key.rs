//! The key of a session at rest.

use std::fmt;
use std::ops::Deref;

/// As long as fits where a pointer and a length would be, with one byte more to round it up.
const SHORT_MAX: usize = 22;

/// The bytes of a key; short ones without an allocation of their own.
#[derive(Clone)]
pub(crate) enum Key {
    Short { length: u8, bytes: [u8; SHORT_MAX] },
    Long(Box<[u8]>),
}

impl From<&[u8]> for Key {
    fn from(key: &[u8]) -> Self {
        let mut bytes = [0; SHORT_MAX];
        match bytes.get_mut(..key.len()) {
            Some(short) => {
                short.copy_from_slice(key);
                Self::Short { length: key.len() as u8, bytes }
            }
            None => Self::Long(key.into()),
        }
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.escape_ascii().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_any_length_is_kept() {
        for length in 0..100 {
            let bytes: Vec<u8> = (0..length).collect();
            assert_eq!(*Key::from(&bytes[..]), bytes);
        }
    }

    #[test]
    fn a_short_key_takes_no_more_than_a_pointer_to_it_would() {
        assert_eq!(size_of::<Key>(), 24);
    }
}
