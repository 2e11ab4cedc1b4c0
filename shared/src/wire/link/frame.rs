//! Frames: the eight-byte header, cutting long messages and putting them together again.

use bytes::Bytes;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;

/// Most payload bytes of one frame. Small, so that a large transfer delays others by little.
pub const PAYLOAD_MAX: usize = 16 << 10;

/// Most bytes of a message put together from several frames: a full claim log of 65,536 shards
/// in single ranges is about 1.3 MiB.
pub const MESSAGE_MAX: usize = 4 << 20;

/// Bytes of the checksum at the end of a payload with [`flag::CHECKSUM`].
const CHECKSUM_BYTES: usize = 4;

/// Bits of a frame's flags. Unknown ones are ignored.
pub mod flag {
    /// The sender's last frame of this stream.
    pub const FIN: u8 = 0x01;
    /// The message goes on in the next frame.
    pub const MORE: u8 = 0x02;
    /// A reply that says: the peer has no answer. An end that carries trailers.
    pub const MARK: u8 = 0x04;
    /// The payload's last four bytes are the CRC-32 of what precedes them.
    pub const CHECKSUM: u8 = 0x80;
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// Who I am and what I speak.
    Hello = 1,
    /// The dialer's proof that it knows the cluster's key.
    Proof = 2,
    /// Are you there? Eight bytes that come back in the pong.
    Ping = 3,
    /// I am.
    Pong = 4,
    /// The connection ends; one byte says why.
    Close = 5,
    /// More credit: four bytes. Stream 0 is the connection.
    Credit = 6,
    /// A new stream and its head.
    Open = 16,
    /// The stream's request will be executed here.
    Accepted = 17,
    /// The stream's request was not executed; the payload says why.
    Refused = 18,
    /// The answer's head.
    Head = 19,
    /// A piece of a body.
    Data = 20,
    /// The end of a body, with trailers when marked.
    End = 21,
    /// The stream is given up, both ways; one byte says why.
    Reset = 22,
    /// A question; the stream field is its number, the first byte its kind.
    Call = 32,
    /// The answer to the call of that number.
    Reply = 33,
    /// Something said once; the first byte is its kind.
    Notify = 34,
}

impl FrameType {
    /// The type of this byte, if this version knows it.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Proof,
            3 => Self::Ping,
            4 => Self::Pong,
            5 => Self::Close,
            6 => Self::Credit,
            16 => Self::Open,
            17 => Self::Accepted,
            18 => Self::Refused,
            19 => Self::Head,
            20 => Self::Data,
            21 => Self::End,
            22 => Self::Reset,
            32 => Self::Call,
            33 => Self::Reply,
            34 => Self::Notify,
            _ => return None,
        })
    }

    /// Whether a message of this type may be cut into several frames.
    #[must_use]
    pub fn may_be_cut(self) -> bool {
        match self {
            Self::Open
            | Self::Refused
            | Self::Head
            | Self::End
            | Self::Call
            | Self::Reply
            | Self::Notify => true,
            Self::Hello
            | Self::Proof
            | Self::Ping
            | Self::Pong
            | Self::Close
            | Self::Credit
            | Self::Accepted
            | Self::Data
            | Self::Reset => false,
        }
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type as it came.
    pub kind: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Payload bytes, at most [`PAYLOAD_MAX`].
    pub len: u16,
    /// The stream, or the call's number, or 0.
    pub stream: u32,
}

/// Bytes that cannot be frames of this protocol. The connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The header announces more than [`PAYLOAD_MAX`] bytes.
    #[error("a frame of {0} bytes: the limit is {PAYLOAD_MAX}")]
    TooLong(u16),
    /// The payload is not what was sent.
    #[error("the checksum of a frame is wrong")]
    Checksum,
    /// A cut message is not continued by its next frame, or has a type that is never cut.
    #[error("the frames of a message do not follow each other")]
    Broken,
    /// A message of more than [`MESSAGE_MAX`] bytes.
    #[error("a message is longer than {MESSAGE_MAX} bytes")]
    MessageTooLong,
}

/// What stands at the beginning of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A whole frame; it takes `taken` bytes of the buffer.
    Frame {
        /// Its header.
        header: Header,
        /// Its payload without the checksum.
        payload: &'a [u8],
        /// Bytes of the buffer it took.
        taken: usize,
    },
    /// The beginning of a frame: at least this many more bytes are needed.
    Needs(usize),
}

/// The frame at the beginning of `buffer`.
///
/// # Errors
/// [`FrameError::TooLong`] and [`FrameError::Checksum`].
pub fn parse(buffer: &[u8]) -> Result<Parsed<'_>, FrameError> {
    let Some((head, rest)) = buffer.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(Parsed::Needs(HEADER_BYTES - buffer.len()));
    };
    let [kind, flags, l0, l1, s0, s1, s2, s3] = *head;
    let len = u16::from_be_bytes([l0, l1]);
    if usize::from(len) > PAYLOAD_MAX {
        return Err(FrameError::TooLong(len));
    }
    let Some(payload) = rest.get(..usize::from(len)) else {
        return Ok(Parsed::Needs(usize::from(len) - rest.len()));
    };
    let header = Header { kind, flags, len, stream: u32::from_be_bytes([s0, s1, s2, s3]) };
    let payload = if flags & flag::CHECKSUM == 0 { payload } else { checked(payload)? };
    Ok(Parsed::Frame { header, payload, taken: HEADER_BYTES + usize::from(len) })
}

/// The payload without its checksum.
fn checked(payload: &[u8]) -> Result<&[u8], FrameError> {
    let (data, sum) = payload.split_last_chunk::<CHECKSUM_BYTES>().ok_or(FrameError::Checksum)?;
    if crc32fast::hash(data) == u32::from_be_bytes(*sum) {
        Ok(data)
    } else {
        Err(FrameError::Checksum)
    }
}

/// Appends one frame to `out`.
///
/// # Panics
/// When the payload, with its checksum if flagged, is longer than [`PAYLOAD_MAX`].
pub fn put_frame(out: &mut Vec<u8>, kind: FrameType, flags: u8, stream: u32, payload: &[u8]) {
    let checksum = flags & flag::CHECKSUM != 0;
    let len = payload.len() + if checksum { CHECKSUM_BYTES } else { 0 };
    assert!(len <= PAYLOAD_MAX, "the caller cuts payloads: {len} bytes");
    out.reserve(HEADER_BYTES + len);
    let [l0, l1] = (len as u16).to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    out.extend_from_slice(&[kind as u8, flags, l0, l1, s0, s1, s2, s3]);
    out.extend_from_slice(payload);
    if checksum {
        out.extend_from_slice(&crc32fast::hash(payload).to_be_bytes());
    }
}

/// Appends a message of any length up to [`MESSAGE_MAX`] to `out`, cut into as few frames as
/// possible, `flags` on the last one. `first` stands before `payload` (a call's kind). Returns
/// the number of frames.
///
/// # Panics
/// When the message is longer than [`MESSAGE_MAX`]: the callers' limits are lower.
pub fn put_message(
    out: &mut Vec<u8>,
    kind: FrameType,
    flags: u8,
    stream: u32,
    first: &[u8],
    payload: &[u8],
) -> usize {
    let total = first.len() + payload.len();
    assert!(total <= MESSAGE_MAX, "the caller bounds messages: {total} bytes");
    let checksum = flags & flag::CHECKSUM;
    let room = PAYLOAD_MAX - if checksum == 0 { 0 } else { CHECKSUM_BYTES };
    if first.is_empty() && payload.len() <= room {
        put_frame(out, kind, flags, stream, payload);
        return 1;
    }
    let mut frames = 0;
    let mut whole = Vec::with_capacity(total);
    whole.extend_from_slice(first);
    whole.extend_from_slice(payload);
    let mut rest = whole.as_slice();
    while rest.len() > room {
        let (piece, after) = rest.split_at(room);
        put_frame(out, kind, flag::MORE | checksum, stream, piece);
        rest = after;
        frames += 1;
    }
    put_frame(out, kind, flags, stream, rest);
    frames + 1
}

/// One whole message of a known type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: FrameType,
    /// The flags of its last frame.
    pub flags: u8,
    /// The stream, or the call's number, or 0.
    pub stream: u32,
    /// Everything its frames carried: a copy, so that a small message that is kept for long does
    /// not hold the whole buffer it arrived in.
    pub payload: Bytes,
}

/// Puts messages together from frames. Holds at most one partial message.
#[derive(Debug, Default)]
pub struct Assembler {
    partial: Vec<u8>,
    of: Option<(FrameType, u32)>,
}

impl Assembler {
    /// Takes one frame; gives the message it ends, if any. Frames of unknown type give none.
    ///
    /// # Errors
    /// [`FrameError::Broken`] and [`FrameError::MessageTooLong`]; the connection must be closed.
    pub fn take(&mut self, header: Header, payload: &[u8]) -> Result<Option<Message>, FrameError> {
        let Some(kind) = FrameType::from_byte(header.kind) else {
            return Ok(None);
        };
        let more = header.flags & flag::MORE != 0;
        if self.of.is_none() && !more {
            return Ok(Some(message(kind, header, Bytes::copy_from_slice(payload))));
        }
        match self.of {
            None if kind.may_be_cut() => self.of = Some((kind, header.stream)),
            Some(of) if of == (kind, header.stream) => {}
            None | Some(_) => return Err(FrameError::Broken),
        }
        if self.partial.len() + payload.len() > MESSAGE_MAX {
            return Err(FrameError::MessageTooLong);
        }
        self.partial.extend_from_slice(payload);
        if more {
            return Ok(None);
        }
        self.of = None;
        Ok(Some(message(kind, header, Bytes::from(std::mem::take(&mut self.partial)))))
    }

    /// Bytes of the partial message.
    #[must_use]
    pub fn held(&self) -> usize {
        self.partial.len()
    }
}

fn message(kind: FrameType, header: Header, payload: Bytes) -> Message {
    Message { kind, flags: header.flags, stream: header.stream, payload }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything a peer can make of `bytes`, in any split: must never panic.
    fn messages(mut bytes: &[u8]) -> Result<Vec<Message>, FrameError> {
        let mut assembler = Assembler::default();
        let mut all = Vec::new();
        while let Parsed::Frame { header, payload, taken } = parse(bytes)? {
            all.extend(assembler.take(header, payload)?);
            bytes = &bytes[taken..];
        }
        Ok(all)
    }

    #[test]
    fn frames_look_the_same_for_ever() {
        let mut out = Vec::new();
        put_frame(&mut out, FrameType::Data, flag::FIN, 0x0102_0304, b"hi");
        put_frame(&mut out, FrameType::Notify, flag::CHECKSUM, 0, b"abc");
        let golden = [
            &[20, 1, 0, 2, 1, 2, 3, 4, b'h', b'i'][..],
            &[34, 0x80, 0, 7, 0, 0, 0, 0, b'a', b'b', b'c', 0x35, 0x24, 0x41, 0xc2],
        ];
        assert_eq!(out, golden.concat());
    }

    #[test]
    fn a_frame_of_an_unknown_type_is_skipped() {
        let mut out = vec![200, 0xff, 0, 1, 0, 0, 0, 1, 7];
        out[1] = 0x7f;
        put_frame(&mut out, FrameType::Ping, 0, 0, &[1; 8]);
        let all = messages(&out).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].kind, FrameType::Ping);
    }

    #[test]
    fn a_changed_byte_is_noticed_where_a_checksum_is() {
        let mut out = Vec::new();
        put_frame(&mut out, FrameType::Data, flag::CHECKSUM, 3, b"state of a shard");
        for at in HEADER_BYTES..out.len() {
            let mut bad = out.clone();
            bad[at] ^= 0x10;
            assert_eq!(parse(&bad), Err(FrameError::Checksum));
        }
    }

    #[test]
    fn a_message_is_bounded_and_its_frames_follow_each_other() {
        let mut out = Vec::new();
        put_frame(&mut out, FrameType::Call, flag::MORE, 1, b"a");
        put_frame(&mut out, FrameType::Call, 0, 2, b"b");
        assert_eq!(messages(&out), Err(FrameError::Broken));

        out.clear();
        put_frame(&mut out, FrameType::Data, flag::MORE, 1, b"a");
        assert_eq!(messages(&out), Err(FrameError::Broken));

        out.clear();
        for _ in 0..=MESSAGE_MAX / PAYLOAD_MAX {
            put_frame(&mut out, FrameType::Call, flag::MORE, 1, &[0; PAYLOAD_MAX]);
        }
        assert_eq!(messages(&out), Err(FrameError::MessageTooLong));
        assert_eq!(parse(&[20, 0, 0xff, 0, 0, 0, 0, 0]), Err(FrameError::TooLong(0xff00)));
    }

    proptest! {
        #[test]
        fn a_message_of_any_length_comes_back(
            sizes in prop::collection::vec(0usize..70_000, 1..4), checksum: bool, kind: u8,
        ) {
            let flags = if checksum { flag::CHECKSUM } else { 0 };
            let mut out = Vec::new();
            let mut sent = Vec::new();
            for (n, size) in sizes.iter().enumerate() {
                let body: Vec<u8> = (0..*size).map(|i| (i * 7 + n) as u8).collect();
                put_message(&mut out, FrameType::Call, flags, n as u32, &[kind], &body);
                sent.push([vec![kind], body].concat());
            }
            let got: Vec<_> = messages(&out).unwrap().into_iter().map(|m| m.payload.to_vec()).collect();
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = messages(&bytes);
        }
    }
}
