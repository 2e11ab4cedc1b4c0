//! Connections of clients: accepted up to a bound, watched, and closed in an orderly way.
//!
//! Every connection is one task. What it waits for is noted in its [`ClientState`] with a time
//! by which that must be over; a janitor looks at all of them ten times a second and wakes those
//! that are late. So a request costs a few stores and no timer: setting, moving and dropping one
//! per request is measurable at this rate, and nobody needs these bounds to the millisecond.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use stead_shared::net::sock::{TcpListener, TcpStream, tune_client};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::logic::framing::{Framing, Violation};
use crate::proxy::Proxy;

/// How often late clients are looked for.
const TICK: Duration = Duration::from_millis(100);

/// Bytes that the HTTP library buffers of one connection, at most. Above the largest head that
/// [`Framing`] lets through, so that ours is the limit that clients meet.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// How long to wait after the system refused to accept: it ran out of something.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// How long, and for how many bytes, a connection that is closed in the middle of a request is
/// still read: closing a socket with unread bytes resets it, and the client would lose the answer
/// that says why.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: u64 = 8 << 20;

/// What is not longer goes out in one piece: putting it together is cheaper than having the system
/// do so.
const FLAT_BYTES_MAX: usize = 1024;

/// No limit.
const NEVER: u64 = u64::MAX;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// The client's next request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// The answer's head.
    Request,
    /// The client, to take what there is of the answer.
    Client,
    /// The node, to send more of the answer. No limit: the link notices dead nodes.
    Node,
}

impl Phase {
    fn from_byte(byte: u8) -> Self {
        [Self::Idle, Self::Head, Self::Request, Self::Client, Self::Node]
            .into_iter()
            .find(|phase| *phase as u8 == byte)
            .expect("only phases are stored")
    }
}

mod order {
    /// Close after the request in progress.
    pub(super) const FINISH: u8 = 1;
    /// Close now.
    pub(super) const ABORT: u8 = 2;
    /// Answer the request now, with an error.
    pub(super) const OVERDUE: u8 = 4;
}

/// What is known of one client's connection; shared by its task, its answers and the janitor.
#[derive(Debug)]
pub(crate) struct ClientState {
    pub(crate) ip: IpAddr,
    /// The address as text, for `X-Forwarded-For`: made once per connection.
    pub(crate) ip_text: HeaderValue,
    clients: Arc<Clients>,
    waker: AtomicWaker,
    orders: AtomicU8,
    phase: AtomicU8,
    late_at_ms: AtomicU64,
    inside_head: AtomicBool,
    /// What the client still sends is read for a while after the end.
    lingers: AtomicBool,
    requests: AtomicU64,
    /// The request from which on the framing is not to be trusted; 0 for none.
    violated_at: AtomicU64,
    violation: Mutex<Option<Violation>>,
    /// The client's place among those that may be connected, also after an upgrade.
    _place: OwnedSemaphorePermit,
}

impl ClientState {
    fn new(peer: SocketAddr, clients: Arc<Clients>, place: OwnedSemaphorePermit) -> Self {
        let ip = peer.ip().to_canonical();
        let ip_text = HeaderValue::try_from(ip.to_string()).expect("an address is visible ASCII");
        let state = Self {
            ip,
            ip_text,
            clients,
            waker: AtomicWaker::new(),
            orders: AtomicU8::new(0),
            phase: AtomicU8::new(Phase::Idle as u8),
            late_at_ms: AtomicU64::new(NEVER),
            inside_head: AtomicBool::new(false),
            lingers: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            violated_at: AtomicU64::new(0),
            violation: Mutex::new(None),
            _place: place,
        };
        // Who connects has something to say.
        state.enter(Phase::Head, Some(state.clients.limits.head_timeout));
        state
    }

    fn enter(&self, phase: Phase, limit: Option<Duration>) {
        let late_at = limit.map_or(NEVER, |limit| {
            let limit = u64::try_from(limit.as_millis()).unwrap_or(NEVER);
            self.clients.now_ms.load(Ordering::Relaxed).saturating_add(limit)
        });
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.late_at_ms.store(late_at, Ordering::Relaxed);
    }

    /// A request begins. Tells what makes it unusable, if anything does.
    pub(crate) fn begin_request(&self) -> Option<Violation> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        self.enter(Phase::Request, Some(self.clients.limits.request_timeout));
        self.violation_in(number)
    }

    /// What makes the present request unusable, if anything was found since it began.
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.violation_in(self.requests.load(Ordering::Relaxed))
    }

    fn violation_in(&self, request: u64) -> Option<Violation> {
        let at = self.violated_at.load(Ordering::Relaxed);
        if at == 0 || request < at {
            return None;
        }
        *self.violation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request in progress has taken too long.
    pub(crate) fn is_overdue(&self) -> bool {
        self.orders.load(Ordering::Relaxed) & order::OVERDUE != 0
    }

    pub(crate) fn waits_for_client(&self) {
        self.enter(Phase::Client, Some(self.clients.limits.stall_timeout));
    }

    pub(crate) fn waits_for_node(&self) {
        self.enter(Phase::Node, None);
    }

    /// The connection closes after this answer, though the client may be sending still.
    pub(crate) fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    /// The answer is over, or was given up.
    pub(crate) fn answered(&self) {
        self.orders.fetch_and(!order::OVERDUE, Ordering::Relaxed);
        if self.inside_head.load(Ordering::Relaxed) {
            self.enter(Phase::Head, Some(self.clients.limits.head_timeout));
        } else {
            self.enter(Phase::Idle, Some(self.clients.limits.idle_timeout));
        }
    }

    fn on_read(&self, framing: &Framing) {
        if let Some((request, violation)) = framing.violation()
            && self.violated_at.load(Ordering::Relaxed) == 0
        {
            *self.violation.lock().unwrap_or_else(PoisonError::into_inner) = Some(violation);
            self.violated_at.store(request, Ordering::Relaxed);
        }
        let inside = framing.is_inside_head();
        self.inside_head.store(inside, Ordering::Relaxed);
        if inside && self.phase.load(Ordering::Relaxed) == Phase::Idle as u8 {
            self.enter(Phase::Head, Some(self.clients.limits.head_timeout));
        }
    }

    fn give(&self, order: u8) {
        self.orders.fetch_or(order, Ordering::Release);
        self.waker.wake();
    }

    fn check(&self, now_ms: u64) -> bool {
        if now_ms < self.late_at_ms.load(Ordering::Relaxed) {
            return false;
        }
        self.late_at_ms.store(NEVER, Ordering::Relaxed);
        match Phase::from_byte(self.phase.load(Ordering::Relaxed)) {
            Phase::Idle => self.give(order::FINISH),
            Phase::Head | Phase::Client => self.give(order::ABORT),
            Phase::Request => self.give(order::OVERDUE),
            Phase::Node => {}
        }
        true
    }
}

/// All connections of one proxy.
#[derive(Debug)]
pub(crate) struct Clients {
    limits: Limits,
    origin: Instant,
    now_ms: AtomicU64,
    /// In the order in which they came: so they are told.
    open: Mutex<BTreeMap<u64, Arc<ClientState>>>,
    room: Arc<Semaphore>,
    /// Connections, upgraded ones and what is left of uploads.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the proxy stops: upgraded connections end.
    pub(crate) stopping: CancellationToken,
}

impl Clients {
    pub(crate) fn new(limits: Limits) -> Self {
        let room = limits.connections_max.min(Semaphore::MAX_PERMITS);
        Self {
            limits,
            origin: Instant::now(),
            now_ms: AtomicU64::new(0),
            open: Mutex::new(BTreeMap::new()),
            room: Arc::new(Semaphore::new(room)),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    fn all(&self) -> Vec<Arc<ClientState>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().cloned().collect()
    }

    fn tell_all(&self, order: u8) {
        self.all().iter().for_each(|client| client.give(order));
    }

    /// Keeps the clock and looks for late clients, for ever.
    async fn janitor(&self, late: impl Fn()) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await.saturating_duration_since(self.origin);
            let now_ms = u64::try_from(now.as_millis()).unwrap_or(NEVER);
            self.now_ms.store(now_ms, Ordering::Relaxed);
            // Held for a walk over all connections, which touches none but late ones.
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            (open.values().filter(|client| client.check(now_ms))).for_each(|_| late());
        }
    }
}

/// Serves one listener until `shutdown`, then lets requests finish, within limits.
pub(crate) async fn serve(proxy: Proxy, listener: TcpListener, shutdown: CancellationToken) {
    let clients = Arc::clone(proxy.clients());
    let janitor = {
        let (clients, proxy) = (Arc::clone(&clients), proxy.clone());
        async move { clients.janitor(|| proxy.metrics().timeouts.increment(1)).await }
    };
    let driver = {
        let proxy = proxy.clone();
        async move { proxy.parking().drive().await }
    };
    let helpers = [tokio::spawn(janitor), tokio::spawn(driver)];
    accept_until(&proxy, listener, &shutdown).await;
    clients.stopping.cancel();
    clients.tell_all(order::FINISH);
    clients.tasks.close();
    let drain = clients.limits.drain_timeout;
    if timeout(drain, clients.tasks.wait()).await.is_err() {
        tracing::warn!(open = clients.tasks.len(), "clients did not finish in time, cutting off");
        clients.tell_all(order::ABORT);
        // Told to stop, every connection ends at its next poll.
        clients.tasks.wait().await;
    }
    helpers.iter().for_each(tokio::task::JoinHandle::abort);
}

async fn accept_until(proxy: &Proxy, listener: TcpListener, shutdown: &CancellationToken) {
    let mut number = 0_u64;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = accept(proxy, &listener) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        let clients = Arc::clone(proxy.clients());
        let state = Arc::new(ClientState::new(peer, Arc::clone(&clients), permit));
        number += 1;
        let open = Open::new(number, &state, proxy);
        let proxy = proxy.clone();
        clients.tasks.spawn(async move {
            serve_client(proxy, stream, state).await;
            drop(open);
        });
    }
}

type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

async fn accept(proxy: &Proxy, listener: &TcpListener) -> Option<Accepted> {
    let room = Arc::clone(&proxy.clients().room);
    let permit = room.acquire_owned().await.expect("the semaphore is never closed");
    match listener.accept().await {
        Ok((stream, peer)) => {
            // When the client is gone already, reading says so.
            let _gone = tune_client(&stream);
            Some((stream, peer, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept a client");
            tokio::time::sleep(ACCEPT_AGAIN).await;
            None
        }
    }
}

/// A place in the list of open connections.
struct Open {
    number: u64,
    proxy: Proxy,
}

impl Open {
    fn new(number: u64, state: &Arc<ClientState>, proxy: &Proxy) -> Self {
        let mut open = proxy.clients().open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(number, Arc::clone(state));
        proxy.metrics().connections.set(open.len() as f64);
        Self { number, proxy: proxy.clone() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.proxy.clients().open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&self.number);
        self.proxy.metrics().connections.set(open.len() as f64);
    }
}

async fn serve_client(proxy: Proxy, stream: TcpStream, state: Arc<ClientState>) {
    let watched =
        Watched { stream: Some(stream), framing: Framing::new(), state: Arc::clone(&state) };
    let client = Arc::clone(&state);
    let service = service_fn(move |request| {
        let (proxy, client) = (proxy.clone(), Arc::clone(&client));
        async move { Ok::<_, std::convert::Infallible>(proxy.answer(request, client).await) }
    });
    // No timer is set: the janitor bounds the head and everything else. Nor is the number of
    // headers: the default of 100 keeps them off the heap.
    let connection = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(watched), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut finishing = false;
    let mut registered = false;
    let served = poll_fn(|cx| {
        let mut orders = state.orders.load(Ordering::Acquire);
        if !registered || orders != 0 {
            // The waker of a task stays good for its whole life; each order uses it up.
            state.waker.register(cx.waker());
            registered = true;
            orders = state.orders.load(Ordering::Acquire);
        }
        if orders & order::ABORT != 0 {
            return Poll::Ready(Ok(()));
        }
        if orders & order::FINISH != 0 && !finishing {
            finishing = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = served {
        tracing::trace!(%error, "a client's connection ended");
    }
}

/// A client's socket, whose bytes [`Framing`] sees before the HTTP library does.
struct Watched {
    /// There until it is dropped.
    stream: Option<TcpStream>,
    framing: Framing,
    state: Arc<ClientState>,
}

impl Watched {
    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("only dropping takes the socket"))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(mut stream) = self.stream.take()
            && self.state.lingers.load(Ordering::Relaxed)
        {
            let tasks = self.state.clients.tasks.clone();
            let state = Arc::clone(&self.state);
            tasks.spawn(async move {
                let _ended = stream.shutdown().await;
                let (mut rest, mut nowhere) = (stream.take(LINGER_BYTES_MAX), tokio::io::sink());
                let _ended = timeout(LINGER, tokio::io::copy(&mut rest, &mut nowhere)).await;
                drop(state);
            });
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = self.stream().poll_read(cx, buf);
        let this = &mut *self;
        if let Some(fresh) = buf.filled().get(before..).filter(|fresh| !fresh.is_empty()) {
            this.framing.feed(fresh);
            this.state.on_read(&this.framing);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if FLAT_BYTES_MAX < length {
            return self.stream().poll_write_vectored(cx, slices);
        }
        let mut flat = [0; FLAT_BYTES_MAX];
        let mut at = 0;
        for slice in slices {
            flat[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        self.stream().poll_write(cx, &flat[..length])
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}

/// A future that ends with `None` when its client's request is overdue. It must be polled by
/// the client's own task, which is what the janitor wakes.
pub(crate) async fn in_time<T>(client: &ClientState, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if client.is_overdue() {
            return Poll::Ready(None);
        }
        work.as_mut().poll(cx).map(Some)
    })
    .await
}
