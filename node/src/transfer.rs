//! State of shards on its way from one node to another, over the bulk connection.
//!
//! ```text
//! source                                             target
//!   open{head} ────────────────────────────────────▶
//!   [shard u32][length u32][crc32 u32][record] … ──▶   into a copy that nobody sees
//!   [u32::MAX][number of records u32][crc of all] ─▶   complete only when all three agree
//! ```
//!
//! That is a handoff. An offer is framed in the same way and answered: see [`crate::offer`].
//!
//! Records are made one at a time while they are sent: neither side holds a shard twice. A stream
//! that ends without its trailer is broken, whatever arrived.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use metrics::counter;
use serde::{Deserialize, Serialize};
use stead_shared::control::{self, HandoffId, ShardEpoch};
use stead_shared::id::{NodeBoot, ShardId};
use stead_shared::net::link::{
    DialError, Links, OpenError, RecvHalf, SendError, SendHalf, ServerStream, StreamEvent,
};

use crate::host::{Host, Incoming};
use crate::store::record::RecordError;

/// Records are gathered to about this size before they are sent.
const CHUNK: usize = 60 * 1024;
/// Header of a record, and length of the trailer.
const HEADER: usize = 12;
/// No shard has this number.
const TRAILER: u32 = u32::MAX;
/// Longest record that is believed.
const RECORD_MAX: usize = 64 << 20;

/// What a transfer begins with. The order of the variants and fields is the format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TransferHead {
    /// Shards that the target will serve, with the epochs they were served in.
    Handoff {
        /// The move.
        handoff: HandoffId,
        /// The shards.
        shards: Vec<ShardEpoch>,
    },
    /// Sessions of shards that the target serves, with the epochs that it serves them in.
    Offer {
        /// Who served them before.
        from: NodeBoot,
        /// The shards.
        shards: Vec<ShardEpoch>,
    },
}

/// Why state did not arrive. Nothing has changed on either side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("no address of the target is known")]
    NoAddress,
    #[error("no bulk connection: {0}")]
    Dial(#[from] DialError),
    #[error("no stream: {0}")]
    Open(#[from] OpenError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the head cannot be read")]
    Head,
    #[error("the stream broke off")]
    Broken,
    #[error("a checksum differs")]
    Checksum,
    #[error("a record cannot be taken in: {0}")]
    Record(#[from] RecordError),
    #[error("no answer in time")]
    Timeout,
}

/// Streams the sealed state of `shards` to the target.
pub(crate) async fn send(
    links: &Links,
    host: &Host,
    (to, addr): (NodeBoot, SocketAddr),
    handoff: HandoffId,
    shards: &[ShardEpoch],
) -> Result<(), TransferError> {
    let link = links.bulk(to.node, Some(to.boot), addr).await?;
    let head = TransferHead::Handoff { handoff, shards: shards.to_vec() };
    let (mut stream, _answers) = link.open(control::encode(&head), false)?.split();
    let records = shards.iter().flat_map(|at| {
        let records = host.export(at.shard).into_iter().flatten();
        records.map(move |record| (at.shard, record))
    });
    send_records(&mut stream, records).await
}

/// Streams records and the trailer that makes them complete.
pub(crate) async fn send_records(
    stream: &mut SendHalf,
    records: impl Iterator<Item = (ShardId, Bytes)>,
) -> Result<(), TransferError> {
    let sent = counter!("stead_handoff_bytes_total", "direction" => "out");
    let mut chunk = BytesMut::with_capacity(CHUNK + HEADER);
    let mut total = crc32fast::Hasher::new();
    let mut n_records: u32 = 0;
    for (shard, record) in records {
        let crc = crc32fast::hash(&record);
        chunk.put_u32_le(shard.0);
        chunk.put_u32_le(u32::try_from(record.len()).unwrap_or(u32::MAX));
        chunk.put_u32_le(crc);
        chunk.put_slice(&record);
        total.update(&crc.to_le_bytes());
        n_records += 1;
        if chunk.len() >= CHUNK {
            sent.increment(chunk.len() as u64);
            stream.send(chunk.split().freeze()).await?;
        }
    }
    chunk.put_u32_le(TRAILER);
    chunk.put_u32_le(n_records);
    chunk.put_u32_le(total.finalize());
    sent.increment(chunk.len() as u64);
    stream.send_last(chunk.freeze()).await?;
    Ok(())
}

/// Takes a stream's records apart.
#[derive(Debug, Default)]
struct Parser {
    buffer: BytesMut,
    total: crc32fast::Hasher,
    n_records: u32,
    complete: bool,
}

impl Parser {
    fn push(&mut self, data: &Bytes) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole record.
    fn next(&mut self) -> Result<Option<(ShardId, Bytes)>, TransferError> {
        if self.buffer.len() < HEADER || self.complete {
            return Ok(None);
        }
        let mut header = &self.buffer[..HEADER];
        let (shard, length, crc) = (header.get_u32_le(), header.get_u32_le(), header.get_u32_le());
        if shard == TRAILER {
            if length != self.n_records || crc != self.total.clone().finalize() {
                return Err(TransferError::Checksum);
            }
            self.complete = true;
            return Ok(None);
        }
        let length = length as usize;
        if length > RECORD_MAX {
            return Err(TransferError::Broken);
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let record = self.buffer.split_to(length).freeze();
        if crc32fast::hash(&record) != crc {
            return Err(TransferError::Checksum);
        }
        self.total.update(&crc.to_le_bytes());
        self.n_records += 1;
        Ok(Some((ShardId(shard), record)))
    }
}

/// What a stream's head announces.
pub(crate) fn head_of(stream: &ServerStream) -> Result<TransferHead, TransferError> {
    control::decode(&stream.head).map_err(|_| TransferError::Head)
}

/// The records of a stream as they come in.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    stream: &'a mut RecvHalf,
    parser: Parser,
}

impl<'a> Records<'a> {
    pub(crate) fn new(stream: &'a mut RecvHalf) -> Self {
        Self { stream, parser: Parser::default() }
    }

    /// The next record; none after the last one, when the trailer agrees.
    pub(crate) async fn next(&mut self) -> Result<Option<(ShardId, Bytes)>, TransferError> {
        loop {
            if let Some(record) = self.parser.next()? {
                return Ok(Some(record));
            }
            match self.stream.next().await {
                Some(StreamEvent::Data(data)) => {
                    let received = counter!("stead_handoff_bytes_total", "direction" => "in");
                    received.increment(data.len() as u64);
                    self.parser.push(&data);
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

/// Takes all state of a handoff in, into a copy that nobody sees yet.
pub(crate) async fn receive(
    host: &Host,
    shards: &[ShardEpoch],
    mut stream: ServerStream,
) -> Result<BTreeMap<ShardId, Incoming>, TransferError> {
    stream.send.accepted();
    let mut copy: BTreeMap<ShardId, Incoming> =
        shards.iter().map(|at| (at.shard, host.incoming(at.shard))).collect();
    let mut records = Records::new(&mut stream.recv);
    while let Some((shard, record)) = records.next().await? {
        copy.get_mut(&shard).ok_or(TransferError::Broken)?.add(&record)?;
    }
    Ok(copy)
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
                parser.push(&Bytes::copy_from_slice(piece));
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
            parser.push(&Bytes::from(bent));
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
