//! Records of sessions in a stream: framed, checksummed, and taken apart again.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use metrics::{Counter, counter};
use stead_shared::id::ShardId;
use stead_shared::net::link::{RecvHalf, SendHalf, StreamEvent};
use stead_shared::wire::link::PROTOCOL;
use tokio::time::timeout;

use super::{Tally, TransferError};

/// Records are gathered to about this size before they are sent.
pub(super) const CHUNK: usize = 60 * 1024;
/// Capacity of a chunk: one record more, as most are.
const CHUNK_CAPACITY: usize = 64 * 1024;
/// Header of a record, and length of the trailer.
const HEADER: usize = 12;
/// No shard has this number.
const TRAILER: u32 = u32::MAX;
/// Longest record that is believed.
const RECORD_MAX: usize = 64 << 20;
/// A stream that brings nothing for so long is broken off. A source that was stopped for some
/// seconds goes on.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(20);

/// Streams records and the trailer that makes them complete.
pub(crate) async fn send_records(
    stream: &mut SendHalf,
    records: impl Iterator<Item = (ShardId, Bytes)>,
    tally: &Tally,
) -> Result<(), TransferError> {
    let mut writer = Writer::new(stream, tally.clone());
    for (shard, record) in records {
        writer.put(shard, &record);
        writer.send_if_full().await?;
    }
    writer.finish().await
}

/// Frames records and sends them in chunks.
pub(super) struct Writer<'a> {
    stream: &'a mut SendHalf,
    /// Used again for every chunk.
    chunk: Vec<u8>,
    total: crc32fast::Hasher,
    n_records: u32,
    sent: Counter,
    tally: Tally,
    protocol: u8,
}

impl<'a> Writer<'a> {
    pub(super) fn new(stream: &'a mut SendHalf, tally: Tally) -> Self {
        Self::for_peer(stream, tally, PROTOCOL)
    }

    /// To one that speaks this version of the link's protocol.
    pub(super) fn for_peer(stream: &'a mut SendHalf, tally: Tally, protocol: u8) -> Self {
        let sent = counter!("stead_handoff_bytes_total", "direction" => "out");
        let chunk = Vec::with_capacity(CHUNK_CAPACITY);
        let total = crc32fast::Hasher::new();
        Self { stream, chunk, total, n_records: 0, sent, tally, protocol }
    }

    /// What the other end speaks.
    pub(super) fn protocol(&self) -> u8 {
        self.protocol
    }

    pub(super) fn put(&mut self, shard: ShardId, record: &[u8]) {
        self.put_with(shard, |chunk| chunk.extend_from_slice(record));
    }

    /// Frames the record that `write` puts behind what is there; gives its length.
    pub(super) fn put_with(&mut self, shard: ShardId, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.chunk.len();
        self.chunk.extend_from_slice(&[0; HEADER]);
        write(&mut self.chunk);
        let (mut header, record) = self.chunk[start..].split_at_mut(HEADER);
        let crc = crc32fast::hash(record);
        header.put_u32_le(shard.0);
        header.put_u32_le(u32::try_from(record.len()).unwrap_or(u32::MAX));
        header.put_u32_le(crc);
        self.total.update(&crc.to_le_bytes());
        self.n_records += 1;
        record.len()
    }

    pub(super) async fn send_if_full(&mut self) -> Result<(), TransferError> {
        if self.chunk.len() >= CHUNK { self.send().await } else { Ok(()) }
    }

    pub(super) async fn send(&mut self) -> Result<(), TransferError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.count();
        self.stream.send_slice(&self.chunk, false).await?;
        self.chunk.clear();
        self.chunk.shrink_to(CHUNK_CAPACITY);
        Ok(())
    }

    fn count(&self) {
        self.sent.increment(self.chunk.len() as u64);
        self.tally.add(self.chunk.len());
    }

    pub(super) async fn finish(mut self) -> Result<(), TransferError> {
        self.chunk.put_u32_le(TRAILER);
        self.chunk.put_u32_le(self.n_records);
        self.chunk.put_u32_le(self.total.clone().finalize());
        self.count();
        Ok(self.stream.send_slice(&self.chunk, true).await?)
    }
}

/// Takes a stream's records apart. One that came in one piece is not copied.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// What has come and was not looked at.
    data: Bytes,
    /// The beginning of a record that goes on in `data`.
    begun: BytesMut,
    total: crc32fast::Hasher,
    n_records: u32,
    pub(super) complete: bool,
}

impl Parser {
    /// Takes in what comes next, once [`next`](Self::next) has nothing more to give.
    pub(super) fn push(&mut self, data: Bytes) {
        debug_assert!(self.data.is_empty(), "all of it was taken apart");
        self.data = data;
    }

    /// The next whole record.
    pub(super) fn next(&mut self) -> Result<Option<(ShardId, Bytes)>, TransferError> {
        if self.complete {
            return Ok(None);
        }
        let Some(mut record) = self.next_framed()? else { return Ok(None) };
        let (shard, length, crc) = (record.get_u32_le(), record.get_u32_le(), record.get_u32_le());
        if shard == TRAILER {
            if length != self.n_records || crc != self.total.clone().finalize() {
                return Err(TransferError::Checksum);
            }
            self.complete = true;
            return Ok(None);
        }
        if crc32fast::hash(&record) != crc {
            return Err(TransferError::Checksum);
        }
        self.total.update(&crc.to_le_bytes());
        self.n_records += 1;
        Ok(Some((ShardId(shard), record)))
    }

    /// The next record with its header, or the trailer.
    fn next_framed(&mut self) -> Result<Option<Bytes>, TransferError> {
        if self.begun.is_empty() {
            let length = framed_length(&self.data)?;
            if length <= self.data.len() {
                return Ok(Some(self.data.split_to(length)));
            }
        }
        loop {
            let length = framed_length(&self.begun)?;
            let more = length.saturating_sub(self.begun.len());
            if more == 0 {
                return Ok(Some(self.begun.split().freeze()));
            }
            if self.data.is_empty() {
                return Ok(None);
            }
            let piece = self.data.split_to(more.min(self.data.len()));
            self.begun.extend_from_slice(&piece);
        }
    }
}

/// How long what begins here is, as far as its header is there.
fn framed_length(start: &[u8]) -> Result<usize, TransferError> {
    let Some(mut header) = start.get(..HEADER) else { return Ok(HEADER) };
    let (shard, length) = (header.get_u32_le(), header.get_u32_le() as usize);
    match shard {
        TRAILER => Ok(HEADER),
        _ if RECORD_MAX < length => Err(TransferError::Broken),
        _ => Ok(HEADER + length),
    }
}

/// The records of a stream as they come in.
pub(crate) struct Records<'a> {
    stream: &'a mut RecvHalf,
    parser: Parser,
    received: Counter,
}

impl<'a> Records<'a> {
    pub(crate) fn new(stream: &'a mut RecvHalf) -> Self {
        let received = counter!("stead_handoff_bytes_total", "direction" => "in");
        Self { stream, parser: Parser::default(), received }
    }

    /// The next record; none after the last one, when the trailer agrees.
    pub(crate) async fn next(&mut self) -> Result<Option<(ShardId, Bytes)>, TransferError> {
        loop {
            if let Some(record) = self.parser.next()? {
                return Ok(Some(record));
            }
            let next = timeout(SILENCE_MAX, self.stream.next()).await;
            match next.map_err(|_| TransferError::Silent)? {
                Some(StreamEvent::Data(data)) => {
                    self.received.increment(data.len() as u64);
                    self.parser.push(data);
                }
                Some(StreamEvent::End(_)) | None if self.parser.complete => return Ok(None),
                Some(StreamEvent::End(_) | StreamEvent::Reset(_)) | None => {
                    return Err(TransferError::Broken);
                }
                Some(StreamEvent::Accepted | StreamEvent::Refused(_) | StreamEvent::Head(_)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(shard: u32, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32_le(shard);
        out.put_u32_le(bytes.len() as u32);
        out.put_u32_le(crc32fast::hash(bytes));
        out.put_slice(bytes);
        out
    }

    fn trailer(records: &[&[u8]]) -> Vec<u8> {
        let mut total = crc32fast::Hasher::new();
        for bytes in records {
            total.update(&crc32fast::hash(bytes).to_le_bytes());
        }
        let mut out = Vec::new();
        out.put_u32_le(TRAILER);
        out.put_u32_le(records.len() as u32);
        out.put_u32_le(total.finalize());
        out
    }

    #[test]
    fn records_come_out_as_they_went_in_however_they_are_cut() {
        let whole = [record(7, b"abc"), record(9, b""), trailer(&[b"abc", b""])].concat();
        for cut in 1..whole.len() {
            let mut parser = Parser::default();
            let mut out = Vec::new();
            for piece in whole.chunks(cut) {
                parser.push(Bytes::copy_from_slice(piece));
                while let Some((shard, record)) = parser.next().unwrap() {
                    out.push((shard.0, record.to_vec()));
                }
            }
            assert!(parser.complete, "cut at {cut}");
            assert_eq!(out, [(7, b"abc".to_vec()), (9, Vec::new())]);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let whole = [record(7, b"abc"), trailer(&[b"abc"])].concat();
        for bit in 32..whole.len() * 8 {
            let mut bent = whole.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            let mut parser = Parser::default();
            parser.push(Bytes::from(bent));
            let mut outcome = Ok(());
            loop {
                match parser.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
            assert!(outcome.is_err() || !parser.complete, "bit {bit}");
        }
    }
}
