//! What a link runs over.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::net::sock::{ReadHalf, TcpStream, WriteHalf};

/// What a link can run over: TCP, or a pipe in tests.
pub trait LinkSocket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The reading half.
    type Reader: AsyncRead + Unpin + Send + 'static;
    /// The writing half.
    type Writer: AsyncWrite + Unpin + Send + 'static;
    /// Both halves.
    fn halves(self) -> (Self::Reader, Self::Writer);
}

impl LinkSocket for TcpStream {
    type Reader = ReadHalf;
    type Writer = WriteHalf;

    fn halves(self) -> (Self::Reader, Self::Writer) {
        self.into_split()
    }
}

impl LinkSocket for tokio::io::DuplexStream {
    type Reader = tokio::io::ReadHalf<Self>;
    type Writer = tokio::io::WriteHalf<Self>;

    fn halves(self) -> (Self::Reader, Self::Writer) {
        tokio::io::split(self)
    }
}
