//! What goes over a stream of entries, byte by byte.
//!
//! ```text
//! frame    [length u32][crc32 of the rest u32][rest]
//! to it    rest = [position of the first item u64] [length u32][head][record] …
//! back     rest = an acknowledgement
//! ```
//! Numbers are little-endian, heads and acknowledgements are postcard. A record is what is left of
//! its item: see [`crate::store::record`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use stead_shared::id::{Epoch, ShardId, Version};
use stead_shared::wire::link::ONCE_SINCE;

use crate::logic::replication::Lost;
use crate::store::record;
use crate::transfer::TransferError;

/// Length and checksum.
const HEADER: usize = 8;
/// Longest frame that is believed.
const FRAME_MAX: usize = 64 << 20;

/// What an item is. The order of the variants and fields is the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Head {
    /// A change: the record of the session as it is after it, of a session that is gone, or of
    /// the shard's number alone.
    Entry { shard: ShardId, epoch: Epoch, seq: u64, prev: Version },
    /// An access of a session, which is no change.
    Touch { shard: ShardId, epoch: Epoch },
    /// A copy begins anew.
    FillBegin { shard: ShardId, at: Version },
    /// A session of a copy that is being filled.
    Fill { shard: ShardId, epoch: Epoch },
    /// The copy is complete.
    FillEnd { shard: ShardId, at: Version },
    /// The shard is served in this epoch, and was at `prev` when that began: a complete copy that
    /// ends there is to follow.
    Adopt { shard: ShardId, epoch: Epoch, prev: Version },
    /// The one that a copy follows serves in this epoch from now on.
    NextEpoch { shard: ShardId, epoch: Epoch, prev: Version },
}

impl Head {
    pub(crate) fn shard(self) -> ShardId {
        match self {
            Self::Entry { shard, .. }
            | Self::Touch { shard, .. }
            | Self::FillBegin { shard, .. }
            | Self::Fill { shard, .. }
            | Self::FillEnd { shard, .. }
            | Self::Adopt { shard, .. }
            | Self::NextEpoch { shard, .. } => shard,
        }
    }

    /// Whether a follower begins with it, whatever became of one before.
    pub(crate) fn begins(self) -> bool {
        match self {
            Self::FillBegin { .. } | Self::Adopt { .. } => true,
            Self::Entry { .. }
            | Self::Touch { .. }
            | Self::Fill { .. }
            | Self::FillEnd { .. }
            | Self::NextEpoch { .. } => false,
        }
    }

    /// The item, with the record that `record` writes.
    pub(crate) fn item(self, record: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let head = postcard::to_extend(&self, Vec::with_capacity(64));
        let mut item = head.expect("plain data always encodes");
        record(&mut item);
        item.into()
    }
}

/// An item for one that speaks this version of the link's protocol.
pub(super) fn for_peer(item: &Bytes, protocol: u8) -> Bytes {
    if ONCE_SINCE <= protocol {
        return item.clone();
    }
    let Ok((head, record)) = postcard::take_from_bytes::<Head>(item) else { return item.clone() };
    let record = record::for_peer(item.slice(item.len() - record.len()..), protocol);
    head.item(|out| out.extend_from_slice(&record))
}

/// How far a follower is. The order of the fields is the format.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ack {
    /// Everything up to here was taken in, or refused.
    pub(crate) position: u64,
    /// What did not fit.
    pub(crate) refused: Vec<Refused>,
}

/// An item that a follower did not take in. What follows of its shard it refuses too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) position: u64,
    pub(crate) shard: ShardId,
    pub(crate) why: Lost,
}

impl Ack {
    pub(crate) fn frame(&self) -> Bytes {
        let rest = postcard::to_extend(self, Vec::new()).expect("plain data always encodes");
        let mut frame = BytesMut::with_capacity(HEADER + rest.len());
        frame.put_u32_le(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        frame.put_u32_le(crc32fast::hash(&rest));
        frame.put_slice(&rest);
        frame.freeze()
    }

    pub(crate) fn decode(rest: &[u8]) -> Result<Self, TransferError> {
        postcard::from_bytes(rest).map_err(|_| TransferError::Broken)
    }
}

/// Puts items into one frame.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    frame: BytesMut,
}

impl FrameWriter {
    pub(crate) fn new(first: u64) -> Self {
        let mut frame = BytesMut::zeroed(HEADER);
        frame.put_u64_le(first);
        Self { frame }
    }

    pub(crate) fn put(&mut self, item: &[u8]) {
        self.frame.put_u32_le(u32::try_from(item.len()).unwrap_or(u32::MAX));
        self.frame.put_slice(item);
    }

    pub(crate) fn len(&self) -> usize {
        self.frame.len()
    }

    pub(crate) fn finish(mut self) -> Bytes {
        let (mut header, rest) = self.frame.split_at_mut(HEADER);
        header.put_u32_le(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        header.put_u32_le(crc32fast::hash(rest));
        self.frame.freeze()
    }
}

/// The items of a frame.
#[derive(Debug)]
pub(crate) struct Items {
    rest: Bytes,
    position: u64,
}

impl Items {
    pub(crate) fn of(mut rest: Bytes) -> Result<Self, TransferError> {
        let position = rest.try_get_u64_le().map_err(|_| TransferError::Broken)?;
        Ok(Self { rest, position })
    }

    /// The position of the next item.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next item, in its two parts.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Head, Bytes)>, TransferError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let length = self.rest.try_get_u32_le().map_err(|_| TransferError::Broken)? as usize;
        if self.rest.len() < length {
            return Err(TransferError::Broken);
        }
        let item = self.rest.split_to(length);
        let read = postcard::take_from_bytes::<Head>(&item);
        let (head, record) = read.map_err(|_| TransferError::Broken)?;
        let record = item.slice(item.len() - record.len()..);
        let position = self.position;
        self.position += 1;
        Ok(Some((position, head, record)))
    }
}

/// Takes a stream's frames apart.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// What the next whole frame carries.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        if self.buffer.len() < HEADER {
            return Ok(None);
        }
        let mut header = &self.buffer[..HEADER];
        let (length, crc) = (header.get_u32_le() as usize, header.get_u32_le());
        if FRAME_MAX < length {
            return Err(TransferError::Broken);
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let rest = self.buffer.split_to(length).freeze();
        if crc32fast::hash(&rest) != crc {
            return Err(TransferError::Checksum);
        }
        Ok(Some(rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stead_shared::id::NodeId;

    use super::*;

    const SHARD: ShardId = ShardId(300);
    const EPOCH: Epoch = Epoch { counter: 3, node: NodeId(9) };
    const AT: Version = Version { epoch: EPOCH, seq: 17 };

    fn items() -> Vec<(Head, &'static [u8])> {
        vec![
            (Head::Entry { shard: SHARD, epoch: EPOCH, seq: 18, prev: AT }, b"record"),
            (Head::Touch { shard: SHARD, epoch: EPOCH }, b"touched"),
            (Head::FillBegin { shard: SHARD, at: AT }, b""),
            (Head::Fill { shard: SHARD, epoch: EPOCH }, b"session"),
            (Head::FillEnd { shard: SHARD, at: AT }, b""),
            (Head::Adopt { shard: SHARD, epoch: EPOCH, prev: AT }, b""),
            (Head::NextEpoch { shard: SHARD, epoch: EPOCH, prev: AT }, b""),
        ]
    }

    fn frame() -> Bytes {
        let mut writer = FrameWriter::new(40);
        for (head, record) in items() {
            writer.put(&head.item(|out| out.extend_from_slice(record)));
        }
        writer.finish()
    }

    #[test]
    fn items_come_out_as_they_went_in_however_they_are_cut() {
        let whole = [frame(), Ack::default().frame(), frame()].concat();
        for cut in 1..whole.len() {
            let (mut reader, mut frames) = (FrameReader::default(), Vec::new());
            for piece in whole.chunks(cut) {
                reader.push(piece);
                while let Some(frame) = reader.next().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(Ack::decode(&frames.remove(1)).unwrap(), Ack::default());
            for frame in frames {
                let mut read = Items::of(frame).unwrap();
                for (n, (head, record)) in items().into_iter().enumerate() {
                    let wanted = Some((40 + n as u64, head, Bytes::from_static(record)));
                    assert_eq!(read.next().unwrap(), wanted);
                }
                assert_eq!((read.next().unwrap(), read.position()), (None, 47));
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let whole = frame();
        for bit in 32..whole.len() * 8 {
            let mut bent = whole.to_vec();
            bent[bit / 8] ^= 1 << (bit % 8);
            let mut reader = FrameReader::default();
            reader.push(&bent);
            assert!(reader.next().is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_bytes_of_the_format_never_change() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let heads = items().into_iter().map(|(head, _)| hex(&head.item(|_| {})));
        assert_eq!(
            heads.collect::<Vec<_>>(),
            [
                "00ac0203091203".to_owned() + "0911",
                "01ac020309".to_owned(),
                "02ac02030911".to_owned(),
                "03ac020309".to_owned(),
                "04ac02030911".to_owned(),
                "05ac020309030911".to_owned(),
                "06ac020309030911".to_owned(),
            ]
        );
        let refused = |why| Refused { position: 5, shard: SHARD, why };
        let why = [Lost::Behind, Lost::HigherEpoch(EPOCH), Lost::NoCopy];
        let ack = Ack { position: 7, refused: why.map(refused).to_vec() };
        assert_eq!(hex(&ack.frame()[HEADER..]), "070305ac020005ac0201030905ac0202");
        assert_eq!(Ack::decode(&ack.frame()[HEADER..]).unwrap(), ack);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = Ack::decode(&bytes);
            if let Ok(mut items) = Items::of(Bytes::from(bytes)) {
                while let Ok(Some(_)) = items.next() {}
            }
        }
    }
}
