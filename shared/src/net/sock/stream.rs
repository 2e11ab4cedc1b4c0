//! TCP: a connection, its halves, and what accepts connections.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp;

/// A TCP connection. Without the feature `turmoil` it is tokio's and nothing else.
#[derive(Debug)]
#[non_exhaustive]
pub enum TcpStream {
    /// The system's.
    Real(tokio::net::TcpStream),
    /// In a simulated network.
    #[cfg(feature = "turmoil")]
    Simulated(turmoil::net::TcpStream),
}

/// The reading half of a [`TcpStream`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadHalf {
    /// The system's.
    Real(tcp::OwnedReadHalf),
    /// In a simulated network.
    #[cfg(feature = "turmoil")]
    Simulated(turmoil::net::tcp::OwnedReadHalf),
}

/// The writing half of a [`TcpStream`]. Dropping it ends what the peer reads.
#[derive(Debug)]
#[non_exhaustive]
pub enum WriteHalf {
    /// The system's.
    Real(tcp::OwnedWriteHalf),
    /// In a simulated network.
    #[cfg(feature = "turmoil")]
    Simulated(turmoil::net::tcp::OwnedWriteHalf),
}

impl TcpStream {
    /// Sends what is written at once, or waits for more.
    ///
    /// # Errors
    /// When the connection is already gone.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        whichever!(self, socket => socket.set_nodelay(nodelay))
    }

    /// Our own address.
    ///
    /// # Errors
    /// When the connection is already gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        whichever!(self, socket => socket.local_addr())
    }

    /// Both halves, which are used without a lock between them.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Real(socket) => {
                let (reader, writer) = socket.into_split();
                (ReadHalf::Real(reader), WriteHalf::Real(writer))
            }
            #[cfg(feature = "turmoil")]
            Self::Simulated(socket) => {
                let (reader, writer) = socket.into_split();
                (ReadHalf::Simulated(reader), WriteHalf::Simulated(writer))
            }
        }
    }
}

impl From<tokio::net::TcpStream> for TcpStream {
    fn from(socket: tokio::net::TcpStream) -> Self {
        Self::Real(socket)
    }
}

macro_rules! read_by_either {
    ($half:ty) => {
        impl AsyncRead for $half {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                whichever!(self.get_mut(), socket => Pin::new(socket).poll_read(cx, buffer))
            }
        }
    };
}

macro_rules! write_by_either {
    ($half:ty) => {
        impl AsyncWrite for $half {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                whichever!(self.get_mut(), socket => Pin::new(socket).poll_write(cx, bytes))
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                whichever!(self.get_mut(), socket => Pin::new(socket).poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                whichever!(self.get_mut(), socket => Pin::new(socket).poll_shutdown(cx))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let this = self.get_mut();
                whichever!(this, socket => Pin::new(socket).poll_write_vectored(cx, slices))
            }

            fn is_write_vectored(&self) -> bool {
                whichever!(self, socket => socket.is_write_vectored())
            }
        }
    };
}

read_by_either!(TcpStream);
read_by_either!(ReadHalf);
write_by_either!(TcpStream);
write_by_either!(WriteHalf);

/// What accepts TCP connections.
#[derive(Debug)]
#[non_exhaustive]
pub enum TcpListener {
    /// The system's.
    Real(tokio::net::TcpListener),
    /// In a simulated network.
    #[cfg(feature = "turmoil")]
    Simulated(super::simulated::Listener),
}

impl TcpListener {
    /// The next connection, and from where it came. Safe to drop before it is ready.
    ///
    /// # Errors
    /// When the system is out of something, or the connection was gone already.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Real(listener) => {
                listener.accept().await.map(|(socket, peer)| (TcpStream::Real(socket), peer))
            }
            #[cfg(feature = "turmoil")]
            Self::Simulated(listener) => listener.accept().await,
        }
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        whichever!(self, listener => listener.local_addr())
    }
}
