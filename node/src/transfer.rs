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
//! Records are made while they are sent: neither side holds a shard twice. A stream that ends
//! without its trailer is broken, whatever arrived.
//!
//! A shard is copied while it serves: first a walk over all its sessions, then rounds of what has
//! changed since, until the ownership machine closes the gate ([`crate::logic::copying`]) and the
//! rest is sent. Records that come later replace those that came before.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stead_shared::control::{self, HandoffId, ShardEpoch};
use stead_shared::id::{NodeBoot, ShardId};
use stead_shared::net::link::{DialError, Links, OpenError, SendError, ServerStream};
use stead_shared::net::watch;
use stead_shared::time::Time;

use tokio::time::{Instant, timeout};

use crate::host::{Host, Incoming};
use crate::logic::copying::Progress;
use crate::logic::pace::Pace;
use crate::store::copy::ShardCopy;
use crate::store::record::{Record, RecordError, for_peer};
use frames::{CHUNK, SILENCE_MAX, Writer};
pub(crate) use frames::{Records, send_records};

mod frames;

/// How often the walk of a copy tells how far it is.
const REPORT_EVERY: Duration = Duration::from_millis(200);
/// How long a copy that has nothing to send waits before it looks again.
const IDLE: Duration = Duration::from_millis(10);
/// The rate that a copy begins with, until it knows its own.
const RATE_FIRST: u64 = 64 << 20;
/// Less than this tells nothing about the rate.
const RATE_SAMPLE: u64 = 256 << 10;

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
    /// Changes of shards that the sender serves, for as long as it does: see [`crate::replica`].
    Replicate {
        /// Who sends.
        owner: NodeBoot,
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
    #[error("nothing came for {SILENCE_MAX:?}")]
    Silent,
    #[error("a shard is not here any more, or is being copied already")]
    NotHere,
    #[error("called off")]
    CalledOff,
}

/// Streams the sealed state of `shards` to the target.
pub(crate) async fn send(
    links: &Links,
    host: &Host,
    (to, addr): (NodeBoot, SocketAddr),
    handoff: HandoffId,
    shards: &[ShardEpoch],
    tally: &Tally,
) -> Result<(), TransferError> {
    let link = links.bulk(to.node, Some(to.boot), addr).await?;
    let head = TransferHead::Handoff { handoff, shards: shards.to_vec() };
    let (mut stream, _answers) = link.open(control::encode(&head), false)?.split();
    let protocol = link.peer().protocol;
    let records = shards.iter().flat_map(|at| {
        let records = host.export(at.shard).into_iter().flatten();
        records.map(move |record| (at.shard, for_peer(record, protocol)))
    });
    send_records(&mut stream, records, tally).await
}

/// Bytes of state that a node has sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<AtomicU64>);

impl Tally {
    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What a copy is told while it runs. Dropping the sender calls it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Send what changes.
    GoOn,
    /// The gates are quiet: send the rest and the trailer.
    Finish,
}

/// The bytes per second that all copies of a node share.
#[derive(Debug)]
pub(crate) struct Budget {
    /// None: no limit.
    pace: Mutex<Option<Pace>>,
    origin: Instant,
}

impl Budget {
    pub(crate) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        let pace = bytes_per_second.map(|rate| Pace::new(rate, Time::ZERO));
        Self { pace: Mutex::new(pace), origin: Instant::now() }
    }

    /// Nobody waits any more: this node leaves.
    pub(crate) fn lift(&self) {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn spend(&self, bytes: usize) {
        let now = Time::ZERO + self.origin.elapsed();
        let begin = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.as_mut().map_or(now, |pace| pace.admit(now, bytes as u64))
        };
        if now < begin {
            tokio::time::sleep(begin.since(now)).await;
        }
    }
}

/// A copy of shards that are served, on its way to their next owner.
pub(crate) struct Copier<R> {
    pub(crate) links: Links,
    pub(crate) host: Host,
    pub(crate) to: (NodeBoot, SocketAddr),
    pub(crate) handoff: HandoffId,
    pub(crate) shards: Vec<ShardEpoch>,
    /// None: as fast as it goes.
    pub(crate) budget: Option<Arc<Budget>>,
    pub(crate) tally: Tally,
    pub(crate) command: watch::Receiver<Command>,
    /// Is told how far the copy is.
    pub(crate) report: R,
}

impl<R: Fn(Progress) + Send> Copier<R> {
    /// Copies until it is told that nothing changes any more, then sends the rest.
    pub(crate) async fn run(mut self) -> Result<(), TransferError> {
        let (to, addr) = self.to;
        let copies = self.shards.iter().map(|at| self.host.copy(at.shard));
        let mut copies: Vec<ShardCopy> =
            copies.collect::<Option<_>>().ok_or(TransferError::NotHere)?;
        let link = self.links.bulk(to.node, Some(to.boot), addr).await?;
        let head = TransferHead::Handoff { handoff: self.handoff, shards: self.shards.clone() };
        let (mut stream, _answers) = link.open(control::encode(&head), false)?.split();
        let mut writer = Writer::for_peer(&mut stream, self.tally.clone(), link.peer().protocol);
        for copy in &copies {
            writer.put(copy.shard(), &for_peer(copy.seq_record(), writer.protocol()));
        }
        let mut meter = Meter::new();
        for i in 0..copies.len() {
            self.walk(&mut copies, i, &mut writer, &mut meter).await?;
        }
        self.rounds(&mut copies, &mut writer, &mut meter).await?;
        for copy in &mut copies {
            while write_some(copy, &mut writer, CHUNK) > 0 {
                writer.send_if_full().await?;
            }
            writer.put(copy.shard(), &for_peer(copy.seq_record(), writer.protocol()));
        }
        writer.finish().await
    }

    /// Sends all sessions of one shard.
    async fn walk(
        &mut self,
        copies: &mut [ShardCopy],
        i: usize,
        writer: &mut Writer<'_>,
        meter: &mut Meter,
    ) -> Result<(), TransferError> {
        while let Some(copy) = copies.get_mut(i).filter(|copy| !copy.is_gone()) {
            if !copy.lag().walking {
                break;
            }
            let n = write_some(copy, writer, CHUNK);
            self.pass_on(n, writer, meter).await?;
            if n == 0 || meter.is_report_due() {
                (self.report)(meter.progress(copies));
            }
            self.is_called_off()?;
            if n == 0 {
                // It has lost track of what changed, which the report tells.
                let _ = timeout(IDLE, self.command.changed()).await;
            }
        }
        Ok(())
    }

    /// Sends what has changed, round by round, until the gates are quiet.
    async fn rounds(
        &mut self,
        copies: &mut [ShardCopy],
        writer: &mut Writer<'_>,
        meter: &mut Meter,
    ) -> Result<(), TransferError> {
        loop {
            if meter.is_news(copies) {
                (self.report)(meter.progress(copies));
            }
            writer.send().await?;
            let mut moved = 0;
            for copy in copies.iter_mut() {
                // What changes during the round is the next one's.
                let mut left = copy.lag().bytes;
                while left > 0 {
                    let n = write_some(copy, writer, CHUNK.min(left as usize));
                    if n == 0 {
                        break;
                    }
                    left = left.saturating_sub(n as u64);
                    moved += n;
                    self.pass_on(n, writer, meter).await?;
                }
            }
            if *self.command.borrow() == Command::Finish {
                return Ok(());
            }
            self.is_called_off()?;
            if moved == 0 {
                // An error is seen in the next turn.
                let _ = timeout(IDLE, self.command.changed()).await;
            }
        }
    }

    async fn pass_on(
        &self,
        n: usize,
        writer: &mut Writer<'_>,
        meter: &mut Meter,
    ) -> Result<(), TransferError> {
        meter.count(n);
        writer.send_if_full().await?;
        let is_last = *self.command.borrow() == Command::Finish;
        if let Some(budget) = self.budget.as_ref().filter(|_| !is_last) {
            budget.spend(n).await;
        }
        Ok(())
    }

    fn is_called_off(&self) -> Result<(), TransferError> {
        if self.command.is_closed() { Err(TransferError::CalledOff) } else { Ok(()) }
    }
}

/// Puts the next records of a copy into the writer; gives their bytes.
fn write_some(copy: &mut ShardCopy, writer: &mut Writer<'_>, bytes_max: usize) -> usize {
    let (shard, protocol) = (copy.shard(), writer.protocol());
    let put =
        |record: &Record<'_>| writer.put_with(shard, |chunk| record.encode_for(protocol, chunk));
    copy.each_next(bytes_max, put)
}

/// How fast a copy is.
struct Meter {
    since: Instant,
    bytes: u64,
    rate: u64,
    reported: Instant,
    /// The lag when that was, after the walk.
    last: Option<u64>,
}

impl Meter {
    fn new() -> Self {
        let now = Instant::now();
        Self { since: now, bytes: 0, rate: RATE_FIRST, reported: now, last: None }
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn is_report_due(&self) -> bool {
        self.reported.elapsed() >= REPORT_EVERY
    }

    /// Whether more than the time has changed since the last report, or it is long ago.
    fn is_news(&self, copies: &[ShardCopy]) -> bool {
        let lag: u64 = copies.iter().filter(|copy| !copy.is_gone()).map(|c| c.lag().bytes).sum();
        self.last != Some(lag) || self.is_report_due()
    }

    fn progress(&mut self, copies: &[ShardCopy]) -> Progress {
        self.reported = Instant::now();
        let micros = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        if self.bytes >= RATE_SAMPLE {
            self.rate = (self.bytes.saturating_mul(1_000_000) / micros.max(1)).max(1);
            (self.since, self.bytes) = (self.reported, 0);
        }
        let mut sum =
            Progress { walking: false, lag: 0, left: 0, rate: self.rate, overflow: false };
        for lag in copies.iter().filter(|copy| !copy.is_gone()).map(ShardCopy::lag) {
            sum.walking |= lag.walking;
            sum.lag += lag.bytes;
            sum.left += lag.left_bytes;
            sum.overflow |= lag.overflow;
        }
        self.last = (!sum.walking).then_some(sum.lag);
        sum
    }
}

/// What a stream's head announces.
pub(crate) fn head_of(stream: &ServerStream) -> Result<TransferHead, TransferError> {
    control::decode(&stream.head).map_err(|_| TransferError::Head)
}

/// Takes all state of a handoff in, into a copy that nobody sees yet.
pub(crate) async fn receive(
    host: &Host,
    shards: &[ShardEpoch],
    mut stream: ServerStream,
) -> Result<BTreeMap<ShardId, Incoming>, TransferError> {
    stream.send.accepted();
    let mut copy: BTreeMap<ShardId, Incoming> =
        shards.iter().map(|at| (at.shard, host.incoming_from(*at))).collect();
    let mut records = Records::new(&mut stream.recv);
    while let Some((shard, record)) = records.next().await? {
        copy.get_mut(&shard).ok_or(TransferError::Broken)?.add(&record)?;
    }
    Ok(copy)
}

/// What was recorded from a build of the protocol before this one.
#[cfg(test)]
mod protocol_1 {
    use stead_shared::control::{Control, NotNow};
    use stead_shared::id::{BootId, Epoch, NodeId, SessionKey};

    use bytes::Bytes;

    use super::frames::Parser;
    use super::*;
    use crate::builtin::{BuiltIn, BuiltInConfig};
    use crate::{HostConfig, SharedService};

    const SOURCE: NodeBoot = NodeBoot { node: NodeId(0x5eed), boot: BootId(1_764_000_000_000_001) };
    const TARGET: NodeId = NodeId(0xbeef);
    const HANDOFF: HandoffId = HandoffId { source: SOURCE, number: 7 };

    fn recorded(name: &str) -> Vec<u8> {
        let text = include_str!("../tests/golden/protocol-1-handoff.txt");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let digits = line.expect("it was recorded").as_bytes().chunks(2);
        let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
        digits.map(byte).collect()
    }

    fn shards(node: NodeId, raise: u64) -> Vec<ShardEpoch> {
        let at = |shard, counter| {
            let epoch = Epoch { counter: counter + raise, node };
            ShardEpoch { shard: ShardId(shard), epoch }
        };
        vec![at(3, 9), at(4, 1)]
    }

    #[test]
    fn its_messages_are_read_and_written_as_they_were() {
        let (handoff, to) = (HANDOFF, TARGET);
        let prepare = |members_digest, drain| {
            let shards = shards(SOURCE.node, 0);
            Control::Prepare { handoff, members_digest, shards, drain }
        };
        let granted = shards(TARGET, 1);
        for (name, message) in [
            ("prepare", prepare(0x1122_3344_5566_7788, false)),
            ("prepare-drain", prepare(1, true)),
            ("prepared", Control::Prepared { handoff }),
            ("declined", Control::Declined { handoff, why: NotNow::Busy }),
            ("caught-up", Control::CaughtUp { handoff }),
            ("grant", Control::Grant { handoff, shards: granted.clone() }),
            ("no-copy", Control::NoCopy { handoff }),
            ("relay", Control::Relay { to, handoff, shards: granted }),
            ("abort", Control::Abort { handoff }),
        ] {
            assert_eq!(Control::decode(&recorded(name)).as_ref(), Ok(&message), "{name}");
            assert_eq!(message.encode(), recorded(name), "{name}");
        }
        let head = TransferHead::Handoff { handoff, shards: shards(SOURCE.node, 0) };
        assert_eq!(control::decode(&recorded("transfer-head")).as_ref(), Ok(&head));
        assert_eq!(control::encode(&head), recorded("transfer-head"));
    }

    fn host() -> Host {
        let service = SharedService::new(BuiltIn::new(BuiltInConfig::default()));
        Host::new(HostConfig::default(), service)
    }

    /// The recorded body, taken in as a copy.
    fn copy(host: &Host) -> BTreeMap<ShardId, Incoming> {
        let mut copy: BTreeMap<ShardId, Incoming> =
            [3, 4].map(ShardId).map(|shard| (shard, host.incoming(shard))).into();
        let mut parser = Parser::default();
        parser.push(Bytes::from(recorded("transfer-body")));
        while let Some((shard, record)) = parser.next().unwrap() {
            copy.get_mut(&shard).unwrap().add(&record).unwrap();
        }
        assert!(parser.complete, "the trailer agrees");
        copy
    }

    #[tokio::test]
    async fn its_state_is_taken_in_and_what_is_sent_to_it_is_as_it_was() {
        let host = host();
        for (shard, incoming) in copy(&host) {
            incoming.activate(Epoch { counter: 20, node: TARGET });
            assert!(host.shard_stats(shard).is_some());
        }
        let alice = SessionKey::new(&b"alice"[..]).unwrap();
        let session = host.session(ShardId(3), alice).unwrap();
        let read = session.turn(|s| Ok((s.bytes()?, s.counter("visits")?)), |_| ());
        let (value, visits) = read.await.unwrap();
        assert_eq!(value.as_deref(), Some(&b"a cart"[..]));
        assert_eq!(visits, Some(3));
        // A sealed shard is sent in records that it knows: the same but for the time that passed.
        let records: Vec<Bytes> =
            host.export(ShardId(3)).unwrap().map(|it| for_peer(it, 1)).collect();
        let mut parser = Parser::default();
        parser.push(Bytes::from(recorded("transfer-body")));
        let then: Vec<Bytes> = std::iter::from_fn(|| parser.next().unwrap())
            .filter_map(|(shard, record)| (shard == ShardId(3)).then_some(record))
            .collect();
        assert_eq!(records.len(), then.len());
        assert_eq!(records[0], then[0]);
        let differ = records[1].iter().zip(&then[1]).filter(|(now, then)| now != then).count();
        assert!(records[1].len() == then[1].len() && differ <= 5, "the format changed");
    }
}
