//! The pins of a process and how they spread: the same for nodes and routers.
//!
//! The process's own loop owns the [`Pinning`] and tells it of links and notes; everybody else in
//! the process reads and writes through the [`PinDesk`]. See [`crate::pins`] for the protocol.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use metrics::{Gauge, counter, describe_counter, describe_gauge, gauge};
use tokio::sync::{mpsc, oneshot};

use super::link::Links;
use crate::control::{self, kind};
use crate::id::{NodeId, ShardId};
use crate::net::platform::Platform;
use crate::net::watch;
use crate::pins::{Change, PinEntry, PinError, PinKind, PinOrder, Pins, PinsNote};
use crate::view::View;

/// Orders that may wait for the process's loop. More are refused.
const ORDERS_MAX: usize = 64;

/// Milliseconds since 1970 on this machine's clock.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An order for the process's loop.
#[derive(Debug)]
pub struct Order(What);

#[derive(Debug)]
enum What {
    Pin(PinOrder, oneshot::Sender<Result<PinEntry, PinError>>),
    Unpin(ShardId, oneshot::Sender<bool>),
}

/// An order that was not carried out: the process stops, or has too many. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process takes no orders now; ask another member, or again in a second")]
pub struct DeskClosed;

/// Where the rest of a process reads pins and gives orders.
#[derive(Clone, Debug)]
pub struct PinDesk {
    orders: mpsc::Sender<Order>,
    book: watch::Receiver<Arc<Pins>>,
}

impl PinDesk {
    /// All that is known now.
    #[must_use]
    pub fn book(&self) -> Arc<Pins> {
        Arc::clone(&self.book.borrow())
    }

    /// Pins a shard; everybody is told.
    ///
    /// # Errors
    /// The outer one when the order was not looked at, the inner one when it cannot be carried
    /// out. Nothing changed.
    pub async fn pin(&self, order: PinOrder) -> Result<Result<PinEntry, PinError>, DeskClosed> {
        let (reply, answer) = oneshot::channel();
        self.orders.try_send(Order(What::Pin(order, reply))).map_err(|_| DeskClosed)?;
        answer.await.map_err(|_| DeskClosed)
    }

    /// Takes the pins of a shard away; everybody is told. False when there were none.
    ///
    /// # Errors
    /// [`DeskClosed`]; nothing changed.
    pub async fn unpin(&self, shard: ShardId) -> Result<bool, DeskClosed> {
        let (reply, answer) = oneshot::channel();
        self.orders.try_send(Order(What::Unpin(shard, reply))).map_err(|_| DeskClosed)?;
        answer.await.map_err(|_| DeskClosed)
    }
}

/// The pins of a process, in the hands of its loop.
#[derive(Debug)]
pub struct Pinning {
    me: NodeId,
    links: Links,
    platform: Platform,
    book: Pins,
    orders: mpsc::Receiver<Order>,
    published: watch::Sender<Arc<Pins>>,
    /// Whether `book` is not what was published.
    changed: bool,
    by_hand: Gauge,
    by_heat: Gauge,
}

impl Pinning {
    /// No pins yet, for the process `me`.
    #[must_use]
    pub fn new(me: NodeId, links: Links, platform: Platform) -> (Self, PinDesk) {
        describe_gauge!("stead_pins", "Pins in force that this process knows, by kind");
        describe_counter!(
            "stead_pin_notes_unreadable_total",
            "Messages about pins that could not be read"
        );
        let (orders_in, orders) = mpsc::channel(ORDERS_MAX);
        let (published, book) = watch::channel(Arc::new(Pins::default()));
        let pinning = Self {
            me,
            links,
            platform,
            book: Pins::default(),
            orders,
            published,
            changed: false,
            by_hand: gauge!("stead_pins", "kind" => "hand"),
            by_heat: gauge!("stead_pins", "kind" => "heat"),
        };
        (pinning, PinDesk { orders: orders_in, book })
    }

    fn unix_ms(&self) -> u64 {
        self.platform.unix_micros() / 1000
    }

    /// The next order. Waits for ever when no desk is left.
    pub async fn order(&mut self) -> Order {
        match self.orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }

    /// Carries an order out.
    pub fn carry_out(&mut self, order: Order) {
        match order.0 {
            What::Pin(order, reply) => {
                let pinned = self.book.pin(self.me, order, self.unix_ms());
                let answer = pinned.map(|written| {
                    self.tell_everybody(&written);
                    written.last().copied()
                });
                // Whoever asked may have gone: the pin is made all the same.
                if let Some(answer) = answer.transpose() {
                    let _ = reply.send(answer);
                }
            }
            What::Unpin(shard, reply) => {
                let written = self.book.unpin(self.me, shard, self.unix_ms());
                self.tell_everybody(&written);
                // Whoever asked may have gone: the pin has too.
                let _ = reply.send(!written.is_empty());
            }
        }
        self.publish();
    }

    /// A link to this member is open: what is it missing?
    pub fn connected(&self, peer: NodeId) {
        self.note(peer, &PinsNote::Digest(self.book.digest()));
    }

    /// Compares with everybody: what a note did not bring comes this way.
    pub fn compare(&self) {
        let digest = PinsNote::Digest(self.book.digest());
        for peer in self.links.peers() {
            self.note(peer.node, &digest);
        }
    }

    /// A note of kind [`kind::PINS`] from a peer.
    pub fn take_note(&mut self, from: NodeId, payload: &Bytes) {
        match control::decode::<PinsNote>(payload) {
            Ok(PinsNote::Digest(theirs)) if theirs == self.book.digest() => {}
            Ok(PinsNote::Digest(_)) => {
                self.send_all(from);
                self.note(from, &PinsNote::Wanted);
            }
            Ok(PinsNote::Wanted) => self.send_all(from),
            Ok(PinsNote::Changed(entries)) => {
                if self.book.apply(&entries, self.unix_ms()) == Change::Changed {
                    self.publish();
                }
            }
            Err(_) => counter!("stead_pin_notes_unreadable_total").increment(1),
        }
    }

    /// Looks at the clock: to be called about once a second.
    pub fn tick(&mut self) {
        // What is in force may have changed without an entry going.
        self.changed |= !self.book.is_empty();
        if self.book.expire(self.unix_ms()) == Change::Changed {
            self.publish();
        }
    }

    /// The view with the pins that are in force now, where that is another one.
    pub fn follow(&mut self, view: &View) -> Option<View> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let now_ms = self.unix_ms();
        let in_force = self.book.in_force(now_ms);
        let by_hand = in_force.iter().filter(|entry| entry.kind == PinKind::Hand).count();
        self.by_hand.set(by_hand as f64);
        self.by_heat.set((in_force.len() - by_hand) as f64);
        let pins = self.book.overlay(now_ms);
        (*pins != *view.pins).then(|| view.with_pins(pins))
    }

    fn publish(&mut self) {
        self.changed = true;
        self.published.send_replace(Arc::new(self.book.clone()));
    }

    fn tell_everybody(&self, written: &[PinEntry]) {
        if written.is_empty() {
            return;
        }
        let note = PinsNote::Changed(written.to_vec());
        for peer in self.links.peers() {
            self.note(peer.node, &note);
        }
    }

    fn send_all(&self, to: NodeId) {
        for note in self.book.notes() {
            self.note(to, &note);
        }
    }

    /// Lost without a link, or when too much waits on it: books are compared again.
    fn note(&self, to: NodeId, note: &PinsNote) {
        let payload = control::encode(note);
        let sent = self.links.open_link(to).map(|link| link.notify(kind::PINS, payload));
        if !matches!(sent, Some(Ok(()))) {
            counter!("stead_control_unsent_total").increment(1);
        }
    }
}
