//! The link's protocol: one framed connection between any two members (pure part).
//!
//! # Frames
//! Eight bytes of header, then at most [`PAYLOAD_MAX`] bytes of payload:
//!
//! ```text
//!  0      1       2        4            8
//!  | type | flags | length | stream id  | payload …
//! ```
//! All numbers are big-endian. A message longer than a frame is cut into frames of the same type
//! and stream that follow each other directly, all but the last one with [`flag::MORE`]. A frame
//! of an unknown type is skipped, so that versions can mix.
//!
//! # A connection
//! ```text
//! dialer                                        acceptor
//!   hello (versions, cluster, node, nonce, key tags) ──►
//!   ◄── hello (version, node, nonce, key tag, proof)
//!   proof ──►
//!   ◄──────── streams, calls, notes, both ways ────────►
//!   ◄── close(reason) ──►
//! ```
//! # A stream
//! One request and its answer. The opener's frames are on the left:
//! ```text
//!   open (head) ──►
//!   data … [end] ──►         at most 64 KiB before `accepted`: kept for replay
//!   ◄── accepted             or refused: not executed
//!   ◄── head, data …, end    a head without `accepted` before it accepts as well
//!   reset ◄──►               either side, at any time: nothing follows
//! ```
//! The last frame of a direction carries [`flag::FIN`]. Only the payload of `data` frames costs
//! credit; each side announces in its hello how much it takes, per stream and per connection.
//!
//! # What it does not promise
//! No secrecy and, after the hello, no integrity against somebody who sits on the wire: the
//! proofs only keep strangers and other clusters out.

mod flow;
mod frame;
mod hello;
mod reason;
mod stream;

pub use flow::{FlowError, RecvWindow, SendWindow};
pub use frame::{
    Assembler, FrameError, FrameType, HEADER_BYTES, Header, MESSAGE_MAX, Message, PAYLOAD_MAX,
    Parsed, flag, parse, put_frame, put_message,
};
pub use hello::{
    Acceptor, Agreed, ConnectionKind, Dialer, HELLO_BYTES_MAX, Hello, KEYS_MAX, LocalHello, MAGIC,
    ONCE_SINCE, PROTOCOL, PROTOCOL_OLDEST, negotiate,
};
pub use reason::{CloseReason, ResetCode};
pub use stream::{Incoming, Side, StreamId, StreamState, Violation};

/// Body bytes that an opener may send before the stream is accepted, and keeps for a replay.
pub const REPLAY_BYTES: u32 = 64 << 10;
