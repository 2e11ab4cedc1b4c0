//! The newest value of something, and word that there is a newer one.
//!
//! As [`tokio::sync::watch`], with one difference: those who wait are woken in the order in which
//! they began to wait. Tokio's spreads them over several queues by chance, so that two runs of
//! the same simulation would wake them in two orders.
//!
//! Values that nobody looked at in time are skipped.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::Notify;

struct Shared<T> {
    value: RwLock<T>,
    /// Number of the value; written under the lock.
    version: AtomicU64,
    senders: AtomicUsize,
    told: Notify,
}

impl<T> Shared<T> {
    /// Nothing of a value that a panic left half written is worse than what was there before.
    fn read(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel whose first value counts as seen.
#[must_use]
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

/// Says what the newest value is. When the last clone is dropped, nothing newer will come.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&*self.borrow()).finish()
    }
}

impl<T> Sender<T> {
    /// A channel that nobody watches yet.
    #[must_use]
    pub fn new(value: T) -> Self {
        let shared = Shared {
            value: RwLock::new(value),
            version: AtomicU64::new(0),
            senders: AtomicUsize::new(1),
            told: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Somebody who watches from now on: the value of now counts as seen.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.shared.version.load(Ordering::Acquire);
        Receiver { shared: Arc::clone(&self.shared), seen }
    }

    /// How many watch at this moment.
    #[must_use]
    pub fn receiver_count(&self) -> usize {
        // Each sender and each receiver holds the channel once.
        let senders = self.shared.senders.load(Ordering::Acquire);
        Arc::strong_count(&self.shared).saturating_sub(senders)
    }

    /// The newest value. It stays locked against change while the guard lives: keep it for
    /// moments, never across an await.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// Replaces the value and gives the old one.
    pub fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_modify(|old| std::mem::swap(old, &mut value));
        value
    }

    /// Changes the value.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Changes the value; tells nobody unless `change` says that it did. Whether it did.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let mut value = self.shared.value.write().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut value) {
            return false;
        }
        self.shared.version.fetch_add(1, Ordering::Release);
        drop(value);
        self.shared.told.notify_waiters();
        true
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.told.notify_waiters();
        }
    }
}

/// Watches a value. A clone has seen what the original has.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&*self.borrow()).finish()
    }
}

/// The senders are gone: there will be no newer value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing newer will come")]
pub struct Closed;

impl<T> Receiver<T> {
    /// The newest value, which does not count as seen by this. As [`Sender::borrow`].
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// The newest value, seen by this. As [`Sender::borrow`].
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.read();
        self.seen = self.shared.version.load(Ordering::Acquire);
        Ref(value)
    }

    /// Whether nothing newer will come. The last value may not have been seen yet.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.senders.load(Ordering::Acquire) == 0
    }

    /// Waits until there is a value that was not seen; it counts as seen then. Safe to drop
    /// before it is ready.
    ///
    /// # Errors
    /// [`Closed`] when the last value was seen.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            // Made before the look: it wakes for whatever comes after it.
            let told = self.shared.told.notified();
            // Looked at first: the last value comes before the end.
            let closed = self.is_closed();
            let version = self.shared.version.load(Ordering::Acquire);
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if closed {
                return Err(Closed);
            }
            told.await;
        }
    }

    /// Waits until a value is as wanted, be it the one of now, and gives it; it counts as seen.
    /// Values in between may go unnoticed.
    ///
    /// # Errors
    /// [`Closed`] when the last value is not.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<T, Closed>
    where
        T: Clone,
    {
        loop {
            let found = {
                let value = self.borrow_and_update();
                wanted(&value).then(|| value.clone())
            };
            match found {
                Some(value) => return Ok(value),
                None => self.changed().await?,
            }
        }
    }
}

/// A look at the newest value, which cannot change meanwhile.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn the_newest_value_is_seen_once() {
        let (sender, mut receiver) = channel(1);
        sender.send_replace(2);
        assert_eq!(sender.send_replace(3), 2);
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow(), 3);
        assert!(!sender.send_if_modified(|_| false));
        let late = sender.subscribe();
        assert_eq!((sender.receiver_count(), sender.clone().receiver_count()), (2, 2));
        for mut watcher in [receiver.clone(), receiver, late] {
            let waits = std::pin::pin!(watcher.changed());
            assert!(futures_now(waits).is_none(), "seen");
        }
    }

    #[tokio::test]
    async fn the_last_value_comes_before_the_end() {
        let (sender, mut receiver) = channel(1);
        sender.send_replace(2);
        drop(sender.clone());
        assert!(!receiver.is_closed());
        drop(sender);
        assert!(receiver.is_closed());
        assert_eq!(receiver.changed().await, Ok(()));
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(receiver.wait_for(|value| *value == 2).await, Ok(2));
        assert_eq!(receiver.wait_for(|value| *value == 3).await, Err(Closed));
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_value_that_is_wanted() {
        let (sender, mut receiver) = channel(0);
        let waits = tokio::spawn(async move { receiver.wait_for(|value| *value > 2).await });
        for value in 1..=3 {
            sender.send_replace(value);
            tokio::task::yield_now().await;
        }
        assert_eq!(waits.await.unwrap(), Ok(3));
    }

    /// With tokio's channel this fails nearly always.
    #[tokio::test]
    async fn those_who_wait_are_woken_in_order() {
        let (sender, receiver) = channel(0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..32)
            .map(|number| {
                let (mut receiver, woken) = (receiver.clone(), Arc::clone(&woken));
                tokio::spawn(async move {
                    receiver.changed().await.unwrap();
                    woken.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*woken.lock().unwrap(), (0..32).collect::<Vec<_>>());
    }

    fn futures_now<T>(work: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match work.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        }
    }
}
