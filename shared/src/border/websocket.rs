//! Where one WebSocket message frame ends and the next begins (RFC 6455 §5.2).
//!
//! The proxy passes a WebSocket through byte for byte. Only when the node's side ends without a
//! close frame does it say one thing of its own: 1012, come back. That must not land in the
//! middle of a frame, so it follows the frames that it passes to the client.

/// A close frame with code 1012, service restart: what a server sends, so without a mask.
pub const CLOSE_SERVICE_RESTART: [u8; 4] = [0x88, 2, 0x03, 0xF4];

/// Follows the frames from server to client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Bytes of the present frame's header that have arrived; a server's has at most ten.
    header: Vec<u8>,
    /// Bytes of the present frame's payload to come.
    payload: u64,
    closed: bool,
}

impl Frames {
    /// Before the first frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a frame may begin here: between frames, and no close frame was sent.
    #[must_use]
    pub fn may_close(&self) -> bool {
        self.header.is_empty() && self.payload == 0 && !self.closed
    }

    /// Takes note of the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.closed {
            if 0 < self.payload {
                let n = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= n as u64;
                bytes = &bytes[n..];
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(length) = payload_length(&self.header) {
                self.closed = self.header[0] & 0x0F == 8;
                self.payload = length;
                self.header.clear();
            }
        }
    }
}

/// The payload's length with its mask, once the header before the mask is complete.
fn payload_length(header: &[u8]) -> Option<u64> {
    let &[_, second, ref rest @ ..] = header else { return None };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let length = match second & 0x7F {
        126 => u64::from(u16::from_be_bytes(rest.try_into().ok()?)),
        127 => u64::from_be_bytes(rest.try_into().ok()?),
        short => u64::from(short),
    };
    Some(length.saturating_add(mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(bytes: &[u8]) -> bool {
        let mut whole = Frames::new();
        whole.feed(bytes);
        let mut bytewise = Frames::new();
        bytes.iter().for_each(|&byte| bytewise.feed(&[byte]));
        assert_eq!(whole, bytewise);
        whole.may_close()
    }

    #[test]
    fn a_close_fits_only_between_frames() {
        assert!(after(&[]));
        let text = [0x81, 3, b'a', b'b', b'c'];
        for cut in 1..text.len() {
            assert!(!after(&text[..cut]), "after {cut} bytes");
        }
        assert!(after(&text));
        assert!(after(&[&text[..], &[0x89, 0]].concat()), "an empty ping");
    }

    #[test]
    fn long_frames_are_counted() {
        let medium = [&[0x82, 126, 1, 0][..], &[0; 256]].concat();
        assert!(after(&medium) && !after(&medium[..259]));
        let long = [&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0][..], &[0; 65536]].concat();
        assert!(after(&long) && !after(&long[..65545]));
        let masked = [0x81, 0x81, 1, 2, 3, 4, b'x'];
        assert!(after(&masked) && !after(&masked[..6]));
    }

    #[test]
    fn nothing_follows_a_close() {
        assert!(!after(&CLOSE_SERVICE_RESTART));
        assert!(!after(&[0x88, 0, 0x81, 0]));
        assert!(!after(&[0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255, 0]), "no overflow");
    }
}
