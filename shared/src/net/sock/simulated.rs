//! Sockets of a simulated network, where the current thread runs a turmoil simulation.
//!
//! Turmoil binds to all addresses of a host or to loopback, and to nothing else. A process that
//! names its own address gets all of them, and is told the address that it named.

use std::future::{Future, pending};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::TcpStream;

/// Whether the current thread runs a simulation.
pub(super) fn is_here() -> bool {
    turmoil::in_simulation()
}

/// A listener in a simulation.
pub struct Listener {
    listener: turmoil::net::TcpListener,
    addr: SocketAddr,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Listener {
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let listener = at_once(turmoil::net::TcpListener::bind(all_addresses(addr)))?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, addr: SocketAddr::new(addr.ip(), port) })
    }

    pub(super) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, peer) = self.listener.accept().await?;
        Ok((TcpStream::Simulated(socket), peer))
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }
}

/// A UDP socket in a simulation.
#[derive(Debug)]
pub struct Datagrams {
    socket: turmoil::net::UdpSocket,
    addr: SocketAddr,
}

impl Datagrams {
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = at_once(turmoil::net::UdpSocket::bind(all_addresses(addr)))?;
        let port = socket.local_addr()?.port();
        Ok(Self { socket, addr: SocketAddr::new(addr.ip(), port) })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    pub(super) fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.try_recv_from(buffer)
    }

    pub(super) fn try_send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.socket.try_send_to(datagram, to)
    }
}

/// A connection to `addr`.
///
/// Turmoil says at once that a peer beyond a partition refused. A refusal takes a round trip, and
/// it is proof that nobody listens; what took no time is the silence of a network that drops.
pub(super) async fn dial(addr: SocketAddr) -> io::Result<TcpStream> {
    let begun = Instant::now();
    match turmoil::net::TcpStream::connect(addr).await {
        Err(error)
            if error.kind() == io::ErrorKind::ConnectionRefused && begun.elapsed().is_zero() =>
        {
            pending().await
        }
        outcome => outcome.map(TcpStream::Simulated),
    }
}

/// The addresses of a name with a port.
pub(super) async fn lookup(name: &str) -> io::Result<Vec<SocketAddr>> {
    Ok(turmoil::net::lookup_host(name).await?.collect())
}

fn all_addresses(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(ip) if !ip.is_loopback() => Ipv6Addr::UNSPECIFIED.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// What never waits, though its type says that it may.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("a simulated bind waits for nobody"),
    }
}
