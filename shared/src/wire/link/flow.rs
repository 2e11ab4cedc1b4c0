//! Flow control: who may send how much. Windows count the payload bytes of data frames.

/// The largest window, and the most credit a sender may ever hold.
const CREDIT_MAX: u32 = 1 << 30;

/// The peer did not keep to its credit, or gave more than there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more bytes or more credit than the window allows")]
pub struct FlowError;

/// What this side may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWindow {
    credit: u32,
}

impl SendWindow {
    /// With this much credit to begin with.
    #[must_use]
    pub fn new(credit: u32) -> Self {
        Self { credit: credit.min(CREDIT_MAX) }
    }

    /// Bytes that may be sent now.
    #[must_use]
    pub fn credit(&self) -> u32 {
        self.credit
    }

    /// Spends credit.
    ///
    /// # Panics
    /// In debug builds, when there is less: the caller has looked.
    pub fn spend(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.credit, "spent {bytes} of {}", self.credit);
        self.credit = self.credit.saturating_sub(bytes);
    }

    /// The peer gave more.
    ///
    /// # Errors
    /// When the sum is past any window. Nothing changed.
    pub fn grant(&mut self, bytes: u32) -> Result<(), FlowError> {
        let sum = self.credit.checked_add(bytes).filter(|sum| *sum <= CREDIT_MAX);
        self.credit = sum.ok_or(FlowError)?;
        Ok(())
    }
}

/// What the peer may send, and what of it waits here.
///
/// `window = held + owed + the peer's credit`, always; so no more than the window is ever held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvWindow {
    window: u32,
    /// Received and not yet consumed.
    held: u32,
    /// Consumed and not yet given back.
    owed: u32,
}

impl RecvWindow {
    /// The peer starts with this much credit.
    #[must_use]
    pub fn new(window: u32) -> Self {
        Self { window: window.min(CREDIT_MAX), held: 0, owed: 0 }
    }

    /// Bytes received and not yet consumed.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Bytes arrived.
    ///
    /// # Errors
    /// When the peer had no credit for them. Nothing changed.
    pub fn receive(&mut self, bytes: u32) -> Result<(), FlowError> {
        let credit = self.window - self.held - self.owed;
        if bytes > credit {
            return Err(FlowError);
        }
        self.held += bytes;
        Ok(())
    }

    /// Bytes that had arrived were used.
    ///
    /// # Panics
    /// In debug builds, when fewer are held.
    pub fn consume(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.held, "consumed {bytes} of {}", self.held);
        let bytes = bytes.min(self.held);
        self.held -= bytes;
        self.owed += bytes;
    }

    /// Credit to give back now, if it is worth a frame: half of what is not held, which keeps a
    /// sender busy that is one round trip away and costs a frame per half window. What some
    /// streams of a connection hold never keeps the rest from flowing.
    #[must_use]
    pub fn give_back(&mut self) -> Option<u32> {
        if self.owed == 0 || self.owed < (self.window - self.held) / 2 {
            return None;
        }
        Some(std::mem::take(&mut self.owed))
    }

    /// Widens the window without a word to the peer, who does the same.
    pub fn widen(&mut self, window: u32) {
        self.window = self.window.max(window.min(CREDIT_MAX));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_peer_that_sends_beyond_its_credit_is_refused() {
        let mut window = RecvWindow::new(100);
        window.receive(60).unwrap();
        assert_eq!(window.receive(41), Err(FlowError));
        window.receive(40).unwrap();
        assert_eq!(window.held(), 100);
        window.consume(100);
        assert_eq!(window.give_back(), Some(100));
    }

    #[test]
    fn credit_goes_back_in_large_pieces_and_never_sticks_behind_what_is_held() {
        let mut window = RecvWindow::new(100);
        window.receive(60).unwrap();
        for (consumed, given) in [(20, None), (10, None), (10, Some(40))] {
            window.consume(consumed);
            assert_eq!(window.give_back(), given);
        }
        // Eighty bytes are held by somebody who never reads; the others still get credit.
        window.receive(80).unwrap();
        window.consume(20);
        assert_eq!(window.give_back(), Some(20));
    }

    #[test]
    fn credit_past_any_window_is_an_error() {
        let mut window = SendWindow::new(1);
        assert_eq!(window.grant(u32::MAX), Err(FlowError));
        assert_eq!(window.grant(CREDIT_MAX), Err(FlowError));
        assert_eq!(window.credit(), 1);
    }

    proptest! {
        #[test]
        fn both_ends_of_a_window_agree_and_never_stick(
            size in 1u32..1000, steps in prop::collection::vec((any::<bool>(), 0u32..300), 0..200),
        ) {
            let (mut send, mut recv) = (SendWindow::new(size), RecvWindow::new(size));
            for (sends, bytes) in steps {
                if sends {
                    let bytes = bytes.min(send.credit());
                    send.spend(bytes);
                    recv.receive(bytes).unwrap();
                } else {
                    recv.consume(bytes.min(recv.held()));
                    if let Some(back) = recv.give_back() {
                        send.grant(back).unwrap();
                    }
                }
                prop_assert!(recv.held() + send.credit() <= size);
            }
            recv.consume(recv.held());
            if let Some(back) = recv.give_back() {
                send.grant(back).unwrap();
            }
            prop_assert!(send.credit() > 0);
        }
    }
}
