//! One stream: which frames may come and go, and when it is over.
//!
//! ## Opened => Accepted | Refused
//! The owner answers. Until then the opener has [`REPLAY_BYTES`] of credit and gets none back.
//! ## Accepted => Answered
//! The head of the answer. It may come first: then it accepts as well.
//! ## any => over
//! Each direction ends with a frame that carries `FIN`, or both with a reset or a refusal.

use super::REPLAY_BYTES;
use super::flow::{FlowError, RecvWindow, SendWindow};
use super::frame::{FrameType, flag};

/// The number of a stream on its connection.
///
/// The lowest bit tells who opened it (1: the dialer), the next 16 a place in the opener's table,
/// the rest how often that place was used: a late frame never meets a later stream by mistake.
/// No stream has number 0, which means the whole connection: the first use of a place is number 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

impl StreamId {
    /// Places in a table, so most streams that one side can have open.
    pub const PLACES: u32 = 1 << 16;

    /// Uses of a place that an id tells apart.
    pub const USES: u16 = 1 << 15;

    /// The stream at `place`, its `use_count`-th, opened by the dialer or not.
    #[must_use]
    pub fn new(dialer: bool, place: u16, use_count: u16) -> Self {
        let id = (u32::from(use_count & 0x7fff) << 17) | (u32::from(place) << 1);
        Self(id | u32::from(dialer))
    }

    /// Whether the dialer opened it.
    #[must_use]
    pub fn by_dialer(self) -> bool {
        self.0 & 1 == 1
    }

    /// Its place in the opener's table.
    #[must_use]
    pub fn place(self) -> u16 {
        (self.0 >> 1) as u16
    }
}

/// Which end of a stream this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Sends the request.
    Opener,
    /// Answers it.
    Acceptor,
}

/// The peer broke a rule; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame that may not come in this state.
    #[error("a frame that may not come now")]
    OutOfPlace,
    /// More than the stream's window.
    #[error("more bytes than the stream's window allows")]
    Window,
}

impl From<FlowError> for Violation {
    fn from(_: FlowError) -> Self {
        Self::Window
    }
}

/// What a frame of a stream means to the one who waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The request will be executed.
    Accepted,
    /// The request was not executed.
    Refused,
    /// The answer's head.
    Head,
    /// A piece of a body.
    Data,
    /// The end of a body.
    End,
    /// Given up by the peer.
    Reset,
    /// The peer gave up after it had said everything: only sending has ended.
    Stopped,
    /// The stream was over here already: nothing to tell.
    Late,
}

/// The state of one stream at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    side: Side,
    accepted: bool,
    answered: bool,
    sending: bool,
    receiving: bool,
    send: SendWindow,
    recv: RecvWindow,
    send_window: u32,
    recv_window: u32,
}

impl StreamState {
    /// A new stream. `send_window` is what the peer takes per stream, `recv_window` what we take;
    /// `fin` when its head was all that the opener sends.
    #[must_use]
    pub fn new(side: Side, send_window: u32, recv_window: u32, fin: bool) -> Self {
        let (send_window, recv_window) =
            (send_window.max(REPLAY_BYTES), recv_window.max(REPLAY_BYTES));
        let (send, recv) = match side {
            Side::Opener => (REPLAY_BYTES, recv_window),
            Side::Acceptor => (send_window, REPLAY_BYTES),
        };
        Self {
            side,
            accepted: false,
            answered: false,
            sending: side == Side::Acceptor || !fin,
            receiving: side == Side::Opener || !fin,
            send: SendWindow::new(send),
            recv: RecvWindow::new(recv),
            send_window,
            recv_window,
        }
    }

    /// Which end this is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Whether the request was accepted, as far as this end knows.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// Whether the answer's head was sent or received.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// Whether this end may still send.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.sending
    }

    /// Whether the peer may still send.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        self.receiving
    }

    /// Whether nothing more comes or goes.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !self.sending && !self.receiving
    }

    /// Body bytes that may be sent now, the connection's credit aside.
    #[must_use]
    pub fn credit(&self) -> u32 {
        if self.sending { self.send.credit() } else { 0 }
    }

    /// Body bytes that came and were not yet consumed.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.recv.held()
    }

    /// A frame of this stream came, `len` bytes long.
    ///
    /// # Errors
    /// The peer broke a rule. The state is unchanged.
    pub fn receive(&mut self, kind: FrameType, flags: u8, len: u32) -> Result<Incoming, Violation> {
        if kind == FrameType::Reset {
            return Ok(self.receive_reset());
        }
        if !self.receiving {
            // After our own reset late frames are harmless; after the peer's end they are wrong.
            return if self.is_over() { Ok(Incoming::Late) } else { Err(Violation::OutOfPlace) };
        }
        let incoming = match (self.side, kind) {
            (Side::Opener, FrameType::Accepted) if !self.accepted => {
                self.accept_by_peer();
                Incoming::Accepted
            }
            (Side::Opener, FrameType::Refused) if !self.accepted => {
                self.sending = false;
                self.receiving = false;
                return Ok(Incoming::Refused);
            }
            (Side::Opener, FrameType::Head) if !self.answered => {
                self.accept_by_peer();
                self.answered = true;
                Incoming::Head
            }
            (_, FrameType::Data) if self.body_may_come() => {
                self.recv.receive(len)?;
                Incoming::Data
            }
            (_, FrameType::End) if self.body_may_come() => Incoming::End,
            _ => return Err(Violation::OutOfPlace),
        };
        if flags & flag::FIN != 0 || kind == FrameType::End {
            self.receiving = false;
        }
        Ok(incoming)
    }

    fn receive_reset(&mut self) -> Incoming {
        let (sending, receiving) = (self.sending, self.receiving);
        self.reset();
        match (sending, receiving) {
            (_, true) => Incoming::Reset,
            (true, false) => Incoming::Stopped,
            (false, false) => Incoming::Late,
        }
    }

    fn body_may_come(&self) -> bool {
        self.side == Side::Acceptor || self.answered
    }

    fn accept_by_peer(&mut self) {
        if !self.accepted {
            self.accepted = true;
            // Cannot overflow: the sum is the window that the peer announced.
            let _ = self.send.grant(self.send_window - REPLAY_BYTES);
        }
    }

    /// The peer gave credit.
    ///
    /// # Errors
    /// More than there can be.
    pub fn receive_credit(&mut self, bytes: u32) -> Result<(), Violation> {
        Ok(self.send.grant(bytes)?)
    }

    /// This end accepts the request. True when the peer must be told; the head of an answer
    /// tells it too.
    #[must_use]
    pub fn accept(&mut self) -> bool {
        let new = self.side == Side::Acceptor && !self.accepted && self.sending;
        if new {
            self.accepted = true;
            self.recv.widen(self.recv_window);
        }
        new
    }

    /// This end refuses the request. False when it is too late for that.
    #[must_use]
    pub fn refuse(&mut self) -> bool {
        let may = self.side == Side::Acceptor && !self.accepted && self.sending;
        if may {
            self.reset();
        }
        may
    }

    /// This end sends the head of the answer. False when it may not.
    #[must_use]
    pub fn answer(&mut self, fin: bool) -> bool {
        if self.side != Side::Acceptor || self.answered || !self.sending {
            return false;
        }
        let _told_by_the_head = self.accept();
        self.answered = true;
        self.sending = !fin;
        true
    }

    /// This end sends body bytes; the caller has looked at [`credit`](Self::credit). False when
    /// it may not send.
    #[must_use]
    pub fn send(&mut self, bytes: u32, fin: bool) -> bool {
        if !self.sending || (self.side == Side::Acceptor && !self.answered) {
            return false;
        }
        self.send.spend(bytes);
        self.sending = !fin;
        true
    }

    /// This end gives the stream up, or the connection ended.
    pub fn reset(&mut self) {
        self.sending = false;
        self.receiving = false;
    }

    /// Body bytes were consumed. Gives the credit to send back, if any: none before the request
    /// is accepted, none once the peer has said everything.
    #[must_use]
    pub fn consume(&mut self, bytes: u32) -> Option<u32> {
        self.recv.consume(bytes);
        self.give_back()
    }

    /// Credit to send back now; after [`accept`](Self::accept) there may be some.
    #[must_use]
    pub fn give_back(&mut self) -> Option<u32> {
        let withheld = self.side == Side::Acceptor && !self.accepted;
        if withheld || !self.receiving { None } else { self.recv.give_back() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: u32 = 1 << 18;

    fn pair(fin: bool) -> (StreamState, StreamState) {
        let opener = StreamState::new(Side::Opener, WINDOW, WINDOW, fin);
        (opener, StreamState::new(Side::Acceptor, WINDOW, WINDOW, fin))
    }

    #[test]
    fn sixty_four_kilobytes_may_go_before_the_request_is_accepted() {
        let (mut opener, mut acceptor) = pair(false);
        assert_eq!(opener.credit(), REPLAY_BYTES);
        assert!(opener.send(REPLAY_BYTES, false));
        assert_eq!(acceptor.receive(FrameType::Data, 0, REPLAY_BYTES), Ok(Incoming::Data));
        assert_eq!(acceptor.receive(FrameType::Data, 0, 1), Err(Violation::Window));
        // Consuming gives nothing back yet.
        assert_eq!(acceptor.consume(REPLAY_BYTES), None);
        assert_eq!(opener.credit(), 0);

        assert!(acceptor.accept());
        assert_eq!(opener.receive(FrameType::Accepted, 0, 0), Ok(Incoming::Accepted));
        assert_eq!(opener.credit(), WINDOW - REPLAY_BYTES);
        assert!(opener.send(WINDOW - REPLAY_BYTES, false));
        assert!(acceptor.receive(FrameType::Data, 0, WINDOW - REPLAY_BYTES).is_ok());
        let back = acceptor.consume(WINDOW - REPLAY_BYTES).unwrap();
        opener.receive_credit(back).unwrap();
        assert_eq!(opener.credit(), WINDOW);
    }

    #[test]
    fn a_head_accepts_and_a_refusal_ends_both_directions() {
        let (mut opener, mut acceptor) = pair(true);
        assert!(acceptor.answer(true));
        assert!(!acceptor.refuse(), "too late");
        assert_eq!(opener.receive(FrameType::Head, flag::FIN, 9), Ok(Incoming::Head));
        assert!(opener.is_accepted() && opener.is_over() && acceptor.is_over());

        let (mut opener, mut acceptor) = pair(false);
        assert!(acceptor.refuse());
        assert_eq!(opener.receive(FrameType::Refused, flag::FIN, 9), Ok(Incoming::Refused));
        assert!(opener.is_over() && acceptor.is_over());
        assert_eq!(acceptor.receive(FrameType::Data, 0, 5), Ok(Incoming::Late));
    }

    #[test]
    fn frames_out_of_place_are_violations() {
        use FrameType::{Accepted, Data, End, Head, Refused};
        let (opener, acceptor) = pair(false);
        for kind in [Data, End] {
            assert_eq!(opener.clone().receive(kind, 0, 1), Err(Violation::OutOfPlace), "{kind:?}");
        }
        for kind in [Accepted, Refused, Head] {
            assert_eq!(
                acceptor.clone().receive(kind, 0, 1),
                Err(Violation::OutOfPlace),
                "{kind:?}"
            );
        }
        let mut opener = opener;
        opener.receive(Head, 0, 1).unwrap();
        for kind in [Accepted, Refused, Head] {
            assert_eq!(opener.clone().receive(kind, 0, 1), Err(Violation::OutOfPlace), "{kind:?}");
        }
        opener.receive(End, 0, 0).unwrap();
        assert_eq!(opener.receive(Data, 0, 1), Err(Violation::OutOfPlace));
    }

    #[test]
    fn a_reset_after_the_end_only_stops_the_sender() {
        let (mut opener, _) = pair(false);
        opener.receive(FrameType::Head, flag::FIN, 1).unwrap();
        assert!(!opener.is_over());
        assert_eq!(opener.receive(FrameType::Reset, 0, 1), Ok(Incoming::Stopped));
        assert!(opener.is_over());
        assert_eq!(opener.receive(FrameType::Reset, 0, 1), Ok(Incoming::Late));
    }

    #[test]
    fn a_stream_id_tells_its_opener_and_place() {
        let id = StreamId::new(true, 65_535, 32_767);
        assert_eq!((id.0, id.by_dialer(), id.place()), (u32::MAX, true, 65_535));
        let id = StreamId::new(false, 5, 32_768);
        assert_eq!((id.0, id.by_dialer(), id.place()), (10, false, 5));
    }

    proptest! {
        /// Whatever frames come, in any order: no panic, and never more held than the window.
        #[test]
        fn any_frames_are_survived(
            opener: bool, frames in prop::collection::vec((0u8..40, any::<u8>(), 0u32..80_000), 0..60),
        ) {
            let side = if opener { Side::Opener } else { Side::Acceptor };
            let mut state = StreamState::new(side, WINDOW, WINDOW, false);
            for (kind, flags, len) in frames {
                if let Some(kind) = FrameType::from_byte(kind) {
                    let before = state.clone();
                    if state.receive(kind, flags, len).is_err() {
                        prop_assert_eq!(&state, &before);
                    }
                } else if len % 3 == 0 {
                    let _ = state.consume(state.held());
                } else if len % 3 == 1 {
                    let _ = state.accept();
                } else {
                    let _ = state.receive_credit(len);
                }
                prop_assert!(state.held() <= WINDOW);
            }
        }
    }
}
