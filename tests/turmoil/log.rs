//! What a run writes down: everything that happened, in order, with its virtual time.

use std::fmt::{Display, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stead_shared::net::turmoil;
use tracing::field::{Field, Visit};
use tracing::span;

/// A run's log. Clones write to the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    text: String,
    wire: Wire,
    deaf: bool,
}

/// What went over the simulated network since it was last written down.
#[derive(Debug)]
struct Wire {
    messages: u64,
    bytes: u64,
    digest: u64,
}

/// FNV-1a: no secret, and the same in every process.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

impl Default for Wire {
    fn default() -> Self {
        Self { messages: 0, bytes: 0, digest: FNV_OFFSET }
    }
}

impl Wire {
    fn take(&mut self, message: &str) {
        self.messages += 1;
        self.bytes += message.len() as u64;
        for byte in message.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
    }
}

impl Log {
    /// Writes a line of the host that runs now.
    pub(crate) fn say(&self, who: &str, what: impl Display) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        self.line(at, who, what);
    }

    /// Writes a line.
    pub(crate) fn line(&self, at: Duration, who: &str, what: impl Display) {
        let mut inner = self.inner.lock().unwrap();
        writeln!(inner.text, "{:>9.3} {who:<7} {what}", at.as_secs_f64()).unwrap();
    }

    /// Whether messages count: not those that are never on the network.
    pub(crate) fn listen(&self, listen: bool) {
        self.inner.lock().unwrap().deaf = !listen;
    }

    /// Writes how much was sent since the last time, and a digest of every byte of all that was
    /// ever sent, with sender and receiver.
    pub(crate) fn sent(&self, at: Duration) {
        let mut inner = self.inner.lock().unwrap();
        let digest = inner.wire.digest;
        let wire = std::mem::replace(&mut inner.wire, Wire { digest, ..Wire::default() });
        drop(inner);
        let (messages, bytes) = (wire.messages, wire.bytes);
        self.line(
            at,
            "network",
            format_args!("{messages} messages, {bytes} as text, {digest:016x}"),
        );
    }

    pub(crate) fn text(&self) -> String {
        self.inner.lock().unwrap().text.clone()
    }
}

/// Hears of each message that turmoil puts on its network, and writes it into the log.
pub(crate) struct WireTap(pub(crate) Log);

impl tracing::Subscriber for WireTap {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.module_path() == Some("turmoil::top")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let mut inner = self.0.inner.lock().unwrap();
        if !inner.deaf {
            inner.wire.take(&without_date(message.0));
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Fields of an event, one after the other.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

/// `date: ` in the way in which turmoil writes bytes.
const DATE: &str = "0x64, 0x61, 0x74, 0x65, 0x3A, 0x20, ";
/// So many characters are the date itself: 29 bytes.
const DATE_CHARS: usize = 29 * "0x00, ".len();

/// The HTTP library reads the system's clock for the `Date` of an answer, and nothing can give it
/// another one: all other bytes of the answer count.
fn without_date(mut message: String) -> String {
    if let Some(at) = message.find(DATE) {
        let from = at + DATE.len();
        message.replace_range(from..(from + DATE_CHARS).min(message.len()), "");
    }
    message
}
