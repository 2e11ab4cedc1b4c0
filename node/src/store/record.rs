//! Sessions on their way to another node: one record each, after one for the shard.
//!
//! A record is a version byte and postcard. Times travel as what is left of them, since each
//! process has a clock of its own; what a record spends on the way is not counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use stead_shared::id::{KEY_BYTES_MAX, Version};
use stead_shared::time::Time;

use super::data::{Counter, Data, Stored, Timer};

/// The version of records that this code writes, and the only one it reads.
const FORMAT: u8 = 1;

/// A record that cannot be read. Nothing of it was taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a version of this program that this one does not know.
    #[error("the record has format {0}, this version reads {FORMAT}")]
    Format(u8),
    /// Not a record.
    #[error("the bytes are not a record of a session")]
    Malformed,
    /// The record is fine, and there is no memory for it (`--memory-max`).
    #[error("no memory left for the record")]
    MemoryFull,
}

/// One record. The order of the variants and fields is the format; new variants go to the end.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record<'a> {
    /// The number of the shard's last change. The first record of a shard, and of a copy that
    /// was made while it served also the last one.
    Shard { seq: u64 },
    /// A session. It replaces what came before under its key.
    #[serde(borrow)]
    Session(SessionRecord<'a>),
    /// A session that was sent before is no more.
    Gone {
        #[serde(serialize_with = "as_bytes")]
        key: &'a [u8],
    },
    /// A session that was sent before was accessed since: this is what is left of its time.
    Touched {
        #[serde(serialize_with = "as_bytes")]
        key: &'a [u8],
        left_micros: u64,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRecord<'a> {
    #[serde(serialize_with = "as_bytes")]
    key: &'a [u8],
    #[serde(serialize_with = "as_bytes_if_any", borrow)]
    value: Option<&'a [u8]>,
    schema: Option<u32>,
    value_version: Version,
    version: Version,
    ttl_micros: u64,
    left_micros: u64,
    #[serde(borrow)]
    counters: Vec<(&'a str, i64)>,
    #[serde(borrow)]
    timers: Vec<TimerRecord<'a>>,
    timer_last: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TimerRecord<'a> {
    id: u32,
    left_micros: u64,
    period_micros: u64,
    #[serde(serialize_with = "as_bytes")]
    event: &'a [u8],
}

/// The same bytes as a sequence of numbers would give, written at once.
fn as_bytes<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(bytes)
}

fn as_bytes_if_any<S: Serializer>(bytes: &Option<&[u8]>, to: S) -> Result<S::Ok, S::Error> {
    struct Raw<'a>(&'a [u8]);
    impl Serialize for Raw<'_> {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_bytes(self.0)
        }
    }
    bytes.map(Raw).serialize(to)
}

impl<'a> Record<'a> {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        self.encode_to(&mut bytes);
        bytes.into()
    }

    /// Writes the record behind what is in `out`.
    pub(crate) fn encode_to(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        let bytes = postcard::to_extend(self, std::mem::take(out));
        *out = bytes.expect("a record has no field that postcard cannot write");
    }

    /// # Errors
    /// When the bytes are no record, or one of a version that is not known here.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (format, rest) = bytes.split_first().ok_or(RecordError::Malformed)?;
        if *format != FORMAT {
            return Err(RecordError::Format(*format));
        }
        let Ok((record, [])) = postcard::take_from_bytes(rest) else {
            return Err(RecordError::Malformed);
        };
        match &record {
            Self::Shard { .. } => Ok(record),
            Self::Session(SessionRecord { key, .. })
            | Self::Gone { key }
            | Self::Touched { key, .. } => match key.len() {
                1..=KEY_BYTES_MAX => Ok(record),
                _ => Err(RecordError::Malformed),
            },
        }
    }

    /// The record of a session as it is at `now`.
    pub(crate) fn of(key: &'a [u8], data: &'a Data, expires: Time, now: Time) -> Self {
        let timers = data.timers().iter().map(|timer| TimerRecord {
            id: timer.id,
            left_micros: micros_left(timer.due, now),
            period_micros: timer.period_micros,
            event: &timer.event,
        });
        let counters = data.counters().iter().map(|c| (&*c.name, c.value));
        Self::Session(SessionRecord {
            key,
            value: data.value.as_deref(),
            schema: data.schema(),
            value_version: data.value_version,
            version: data.version,
            ttl_micros: data.ttl_micros,
            left_micros: micros_left(expires, now),
            counters: counters.collect(),
            timers: timers.collect(),
            timer_last: data.timer_last,
        })
    }

    /// The record of an access.
    pub(crate) fn touched(key: &'a [u8], expires: Time, now: Time) -> Self {
        Self::Touched { key, left_micros: micros_left(expires, now) }
    }
}

impl SessionRecord<'_> {
    pub(crate) fn key(&self) -> &[u8] {
        self.key
    }

    /// Takes away what has passed of its time and of its timers' since the record was made.
    pub(crate) fn age(&mut self, age: Duration) {
        let age = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        self.left_micros = self.left_micros.saturating_sub(age);
        for timer in &mut self.timers {
            timer.left_micros = timer.left_micros.saturating_sub(age);
        }
    }

    /// The session that starts at `now` where the record left off.
    pub(crate) fn into_stored(self, now: Time) -> Stored {
        let mut counters: Vec<Counter> = self
            .counters
            .into_iter()
            .map(|(name, value)| Counter { name: name.into(), value })
            .collect();
        // Lookups rely on the order, and a peer's word is no proof of it.
        counters.sort_by(|a, b| a.name.cmp(&b.name));
        counters.dedup_by(|a, b| a.name == b.name);
        let timers: Vec<Timer> = self.timers.into_iter().map(|timer| timer.start(now)).collect();
        let mut data = Data::empty(self.version);
        data.value = self.value.map(Arc::from);
        data.value_version = self.value_version;
        data.ttl_micros = self.ttl_micros;
        data.counters = (!counters.is_empty()).then(|| Arc::new(counters));
        data.timers = (!timers.is_empty()).then(|| Arc::new(timers));
        data.timer_last = self.timer_last;
        data.set_schema(self.schema);
        let expires = now + Duration::from_micros(self.left_micros);
        let bytes = u32::try_from(data.size(self.key.len())).unwrap_or(u32::MAX);
        Stored { key: self.key.into(), data, expires, bytes, activated: false }
    }
}

impl TimerRecord<'_> {
    fn start(self, now: Time) -> Timer {
        Timer {
            id: self.id,
            due: now + Duration::from_micros(self.left_micros),
            period_micros: self.period_micros,
            event: self.event.into(),
        }
    }
}

fn micros_left(at: Time, now: Time) -> u64 {
    u64::try_from(at.since(now).as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stead_shared::id::{Epoch, NodeId};

    use super::*;

    fn session() -> SessionRecord<'static> {
        let version = Version { epoch: Epoch { counter: 3, node: NodeId(9) }, seq: 17 };
        SessionRecord {
            key: b"alice",
            value: Some(b"cart"),
            schema: Some(2),
            value_version: Version { seq: 4, ..version },
            version,
            ttl_micros: 5_000_000,
            left_micros: 4_000_000,
            counters: vec![("visits", -7)],
            timers: vec![TimerRecord { id: 1, left_micros: 10, period_micros: 20, event: b"tick" }],
            timer_last: 3,
        }
    }

    #[test]
    fn a_record_survives_the_way_there_and_back() {
        for record in [
            Record::Shard { seq: 5 },
            Record::Session(session()),
            Record::Gone { key: b"bob" },
            Record::Touched { key: b"bob", left_micros: 1 << 40 },
        ] {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
        let now = Time::from_micros(1_000);
        let stored = session().into_stored(now);
        let record = Record::of(&stored.key, &stored.data, stored.expires, now);
        assert_eq!(record, Record::Session(session()));
    }

    #[test]
    fn time_passes_for_a_record_on_disk() {
        let mut record = session();
        record.age(Duration::from_micros(5));
        assert_eq!((record.left_micros, record.timers[0].left_micros), (3_999_995, 5));
        record.age(Duration::from_secs(3600));
        assert_eq!((record.left_micros, record.timers[0].left_micros), (0, 0));
    }

    #[test]
    fn a_record_of_another_format_or_with_a_tail_is_refused() {
        let mut bytes = Record::Shard { seq: 5 }.encode().to_vec();
        bytes.push(0);
        assert_eq!(Record::decode(&bytes), Err(RecordError::Malformed));
        bytes[0] = 2;
        assert_eq!(Record::decode(&bytes), Err(RecordError::Format(2)));
        assert_eq!(Record::decode(&[]), Err(RecordError::Malformed));
    }

    #[test]
    fn a_record_without_a_key_or_with_one_that_is_too_long_is_refused() {
        let long = [b'k'; KEY_BYTES_MAX + 1];
        for (key, ok) in [(&long[1..], true), (&long[..], false), (&[][..], false)] {
            let session = SessionRecord { key, ..session() };
            let touched = Record::Touched { key, left_micros: 1 };
            for record in [Record::Session(session), Record::Gone { key }, touched] {
                assert_eq!(Record::decode(&record.encode()).is_ok(), ok, "{}", key.len());
            }
        }
    }

    #[test]
    fn the_bytes_of_the_format_never_change() {
        let golden = "01000a";
        let bytes = Record::Shard { seq: 10 }.encode();
        assert_eq!(hex(&bytes), golden);
        let golden = "010105616c6963650104636172740102030904030911c096b1028092f401\
                      01067669736974730d01010a14047469636b03";
        assert_eq!(hex(&Record::Session(session()).encode()), golden);
        assert_eq!(hex(&Record::Gone { key: b"bob" }.encode()), "010203626f62");
        let touched = Record::Touched { key: b"bob", left_micros: 300 };
        assert_eq!(hex(&touched.encode()), "010303626f62ac02");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes);
            for variant in 0..4 {
                let framed = [&[FORMAT, variant], &bytes[..]].concat();
                if let Ok(Record::Session(session)) = Record::decode(&framed) {
                    let _ = session.into_stored(Time::from_micros(u64::MAX - 5));
                }
            }
        }

        #[test]
        fn a_damaged_record_is_refused_or_read_but_never_panics(at in 0usize..60, byte: u8) {
            let mut bytes = Record::Session(session()).encode().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Record::decode(&bytes);
        }
    }
}
