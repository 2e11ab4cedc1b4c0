//! The keys of rows on disk: a session's own, and its *slots*, in which a part of it is replaced
//! without writing the rest.
//!
//! ```text
//! shard, 4 bytes big-endian │ key, each 00 as 00 01 │ 00 00 │ slot, 1 byte; a session's own row has none
//! ```
//!
//! So the rows of a shard are neighbours, in the order of the keys, and those of a session come
//! directly behind its own, in the order of their slots.

use stead_shared::id::ShardId;

use super::durable::RowError;

/// Above every slot that is used.
pub const SLOT_MAX: u8 = u8::MAX;

/// Stands for a zero byte of a session's key, behind one.
const ZERO: u8 = 1;

/// What comes before all rows of a shard, and behind all of the shards below it.
#[must_use]
pub fn start_of(shard: ShardId) -> Vec<u8> {
    shard.0.to_be_bytes().to_vec()
}

/// The key of a session's row, or of one of its slots.
#[must_use]
pub fn row_key(shard: ShardId, key: &[u8], slot: Option<u8>) -> Vec<u8> {
    let mut row = Vec::with_capacity(4 + key.len() + 3);
    row.extend_from_slice(&shard.0.to_be_bytes());
    for &byte in key {
        row.push(byte);
        if byte == 0 {
            row.push(ZERO);
        }
    }
    row.extend_from_slice(&[0, 0]);
    row.extend(slot);
    row
}

/// The shard of a row.
///
/// # Errors
/// [`RowError::Short`].
pub fn shard_of(row: &[u8]) -> Result<ShardId, RowError> {
    let (shard, _) = row.split_first_chunk().ok_or(RowError::Short)?;
    Ok(ShardId(u32::from_be_bytes(*shard)))
}

/// The session's key and the slot, if it is the row of one.
///
/// # Errors
/// [`RowError`] when it is no key of a row.
pub fn split_row(row: &[u8]) -> Result<(Vec<u8>, Option<u8>), RowError> {
    let (own, slot) = split_slot(row)?;
    let mut escaped = own[4..own.len() - 2].iter().copied();
    let mut key = Vec::with_capacity(escaped.len());
    while let Some(byte) = escaped.next() {
        key.push(byte);
        if byte == 0 {
            // What stands for it.
            escaped.next();
        }
    }
    Ok((key, slot))
}

/// The row of the session itself, and the slot, if it is the row of one.
///
/// # Errors
/// As [`split_row`], from which it differs in that it copies nothing.
pub fn split_slot(row: &[u8]) -> Result<(&[u8], Option<u8>), RowError> {
    let mut at = 4;
    loop {
        match *row.get(at..).ok_or(RowError::Short)? {
            [0, 0] => return Ok((row, None)),
            [0, 0, slot] => return Ok((&row[..row.len() - 1], Some(slot))),
            [0, ZERO, ..] => at += 2,
            [0, ..] => return Err(RowError::Malformed),
            [_, ..] => at += 1,
            [] => return Err(RowError::Short),
        }
    }
}

/// Whether two rows are of the same session.
#[must_use]
pub fn is_same(a: &[u8], b: &[u8]) -> bool {
    let own = |row| split_slot(row).map(|(own, _)| own).ok();
    own(a).is_some_and(|a| own(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_the_format_never_change() {
        assert_eq!(row_key(ShardId(258), b"ab", None), b"\0\0\x01\x02ab\0\0");
        assert_eq!(row_key(ShardId(0), b"\0a", Some(7)), b"\0\0\0\0\0\x01a\0\0\x07");
        assert_eq!(row_key(ShardId(0), b"", None), b"\0\0\0\0\0\0");
    }

    #[test]
    fn what_is_no_key_of_a_row_is_refused() {
        for (row, error) in [
            (&b"\0\0\0"[..], RowError::Short),
            (b"\0\0\0\0", RowError::Short),
            (b"\0\0\0\0a\0", RowError::Malformed),
            (b"\0\0\0\0a\0\x02", RowError::Malformed),
            (b"\0\0\0\0a\0\0\x01\x01", RowError::Malformed),
        ] {
            assert_eq!(split_row(row), Err(error), "{row:?}");
        }
    }

    fn few() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0), Just(1), Just(2), any::<u8>()], 0..6)
    }

    proptest! {
        #[test]
        fn rows_are_in_the_order_of_their_sessions(a in few(), b in few(), s: Option<u8>, t: Option<u8>) {
            let (first, second) = (row_key(ShardId(3), &a, s), row_key(ShardId(3), &b, t));
            prop_assert_eq!(first.cmp(&second), (&a, s).cmp(&(&b, t)));
            prop_assert_eq!(is_same(&first, &second), a == b);
            prop_assert_eq!(split_row(&first), Ok((a, s)));
            prop_assert!(start_of(ShardId(3)) <= first && first < start_of(ShardId(4)));
            prop_assert_eq!(shard_of(&first), Ok(ShardId(3)));
        }

        #[test]
        fn no_bytes_make_it_panic(row: Vec<u8>) {
            if let (Ok(shard), Ok((key, slot))) = (shard_of(&row), split_row(&row)) {
                prop_assert_eq!(row_key(shard, &key, slot), row);
            }
        }
    }
}
