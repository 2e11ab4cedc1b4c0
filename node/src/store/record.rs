//! Sessions on their way to another node: one record each, after one for the shard.
//!
//! A record is a version byte and postcard. Times travel as what is left of them, since each
//! process has a clock of its own; what a record spends on the way is not counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stead_shared::id::{SessionKey, Version};
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

/// One record. The order of the variants and fields is the format.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// The first record of a shard.
    Shard {
        seq: u64,
    },
    Session(SessionRecord),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRecord {
    pub(crate) key: SessionKey,
    value: Option<Bytes>,
    schema: Option<u32>,
    value_version: Version,
    version: Version,
    ttl_micros: u64,
    left_micros: u64,
    counters: Vec<(String, i64)>,
    timers: Vec<TimerRecord>,
    timer_last: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TimerRecord {
    id: u32,
    left_micros: u64,
    period_micros: u64,
    event: Bytes,
}

impl Record {
    pub(crate) fn encode(&self) -> Bytes {
        let bytes = postcard::to_extend(self, vec![FORMAT]);
        bytes.expect("a record has no field that postcard cannot write").into()
    }

    /// # Errors
    /// When the bytes are no record, or one of a version that is not known here.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (format, rest) = bytes.split_first().ok_or(RecordError::Malformed)?;
        if *format != FORMAT {
            return Err(RecordError::Format(*format));
        }
        match postcard::take_from_bytes(rest) {
            Ok((record, [])) => Ok(record),
            Ok(_) | Err(_) => Err(RecordError::Malformed),
        }
    }
}

impl SessionRecord {
    /// The record of a session as it is at `now`.
    pub(crate) fn of(key: SessionKey, data: &Data, expires: Time, now: Time) -> Self {
        let timers = data.timers().iter().map(|timer| TimerRecord {
            id: timer.id,
            left_micros: micros_left(timer.due, now),
            period_micros: timer.period_micros,
            event: Bytes::copy_from_slice(&timer.event),
        });
        let counters = data.counters().iter().map(|c| (c.name.to_string(), c.value));
        Self {
            key,
            value: data.value.as_ref().map(|value| Bytes::from_owner(Arc::clone(value))),
            schema: data.schema(),
            value_version: data.value_version,
            version: data.version,
            ttl_micros: data.ttl_micros,
            left_micros: micros_left(expires, now),
            counters: counters.collect(),
            timers: timers.collect(),
            timer_last: data.timer_last,
        }
    }

    /// The session that starts at `now` where the record left off.
    pub(crate) fn into_stored(self, now: Time) -> (SessionKey, Stored) {
        let mut counters: Vec<Counter> = self
            .counters
            .into_iter()
            .map(|(name, value)| Counter { name: name.into_boxed_str(), value })
            .collect();
        // Lookups rely on the order, and a peer's word is no proof of it.
        counters.sort_by(|a, b| a.name.cmp(&b.name));
        counters.dedup_by(|a, b| a.name == b.name);
        let timers: Vec<Timer> = self.timers.into_iter().map(|timer| timer.start(now)).collect();
        let mut data = Data::empty(self.version);
        data.value = self.value.map(|value| Arc::from(&value[..]));
        data.value_version = self.value_version;
        data.ttl_micros = self.ttl_micros;
        data.counters = (!counters.is_empty()).then(|| Arc::new(counters));
        data.timers = (!timers.is_empty()).then(|| Arc::new(timers));
        data.timer_last = self.timer_last;
        data.set_schema(self.schema);
        let expires = now + Duration::from_micros(self.left_micros);
        let bytes = u32::try_from(data.size(self.key.as_bytes().len())).unwrap_or(u32::MAX);
        (self.key, Stored { data, expires, bytes, activated: false })
    }
}

impl TimerRecord {
    fn start(self, now: Time) -> Timer {
        Timer {
            id: self.id,
            due: now + Duration::from_micros(self.left_micros),
            period_micros: self.period_micros,
            event: Box::from(&self.event[..]),
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

    fn session() -> SessionRecord {
        let version = Version { epoch: Epoch { counter: 3, node: NodeId(9) }, seq: 17 };
        SessionRecord {
            key: SessionKey::new(&b"alice"[..]).unwrap(),
            value: Some(Bytes::from_static(b"cart")),
            schema: Some(2),
            value_version: Version { seq: 4, ..version },
            version,
            ttl_micros: 5_000_000,
            left_micros: 4_000_000,
            counters: vec![("visits".into(), -7)],
            timers: vec![TimerRecord {
                id: 1,
                left_micros: 10,
                period_micros: 20,
                event: Bytes::from_static(b"tick"),
            }],
            timer_last: 3,
        }
    }

    #[test]
    fn a_record_survives_the_way_there_and_back() {
        let record = Record::Session(session());
        assert_eq!(Record::decode(&record.encode()), Ok(record));
        let now = Time::from_micros(1_000);
        let (key, stored) = session().into_stored(now);
        assert_eq!(SessionRecord::of(key, &stored.data, stored.expires, now), session());
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
    fn the_bytes_of_the_format_never_change() {
        let golden = "01000a";
        let bytes = Record::Shard { seq: 10 }.encode();
        assert_eq!(hex(&bytes), golden);
        let golden = "010105616c6963650104636172740102030904030911c096b1028092f401\
                      01067669736974730d01010a14047469636b03";
        assert_eq!(hex(&Record::Session(session()).encode()), golden);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes);
            let mut framed = vec![FORMAT, 1];
            framed.extend(bytes);
            if let Ok(Record::Session(session)) = Record::decode(&framed) {
                let _ = session.into_stored(Time::from_micros(u64::MAX - 5));
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
