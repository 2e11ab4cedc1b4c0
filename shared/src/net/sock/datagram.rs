//! UDP: a socket that is bound, and one that a runtime waits on.

use std::io;
use std::net::SocketAddr;

/// A UDP socket that is bound. It belongs to no runtime yet, because the one that uses it is
/// rarely the one that is current while it is bound: see [`attach`](Self::attach).
#[derive(Debug)]
#[non_exhaustive]
pub enum UdpSocket {
    /// The system's, in non-blocking mode.
    Real(std::net::UdpSocket),
    /// In a simulated network.
    #[cfg(feature = "turmoil")]
    Simulated(super::simulated::Datagrams),
}

impl UdpSocket {
    /// The address that was bound.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        whichever!(self, socket => socket.local_addr())
    }

    /// The socket for the tasks of the current runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled, for a real socket.
    pub fn attach(self) -> io::Result<Datagrams> {
        match self {
            Self::Real(socket) => tokio::net::UdpSocket::from_std(socket).map(Datagrams::Real),
            #[cfg(feature = "turmoil")]
            Self::Simulated(socket) => Ok(Datagrams::Simulated(socket)),
        }
    }
}

/// A UDP socket that the current runtime watches.
#[derive(Debug)]
#[non_exhaustive]
pub enum Datagrams {
    /// The system's.
    Real(tokio::net::UdpSocket),
    /// In a simulated network.
    #[cfg(feature = "turmoil")]
    Simulated(super::simulated::Datagrams),
}

impl Datagrams {
    /// The address that was bound.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        whichever!(self, socket => socket.local_addr())
    }

    /// Waits until there may be a datagram. Safe to drop before it is ready.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn readable(&self) -> io::Result<()> {
        whichever!(self, socket => socket.readable().await)
    }

    /// Takes a datagram that is here. Gives its length and its sender.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        whichever!(self, socket => socket.try_recv_from(buffer))
    }

    /// Sends a datagram, or gives up at once.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full.
    pub fn try_send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        whichever!(self, socket => socket.try_send_to(datagram, to))
    }
}
