//! Every socket of the workspace is opened here.
//!
//! - A port that somebody else listens on is always an error: `SO_REUSEPORT` is never set, so a
//!   bind fails even when the other process sets it, and UDP sockets do without `SO_REUSEADDR`,
//!   with which Linux would let two processes share a port.
//! - TCP goes out at once (`TCP_NODELAY`): whoever writes has already batched.
//! - With the feature `turmoil` a process inside a turmoil simulation gets sockets of its network.
//!   That is decided anew for each socket, by the thread that opens it, so that one build serves
//!   simulations and the system. Without the feature there are only the system's.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

pub use self::datagram::{Datagrams, UdpSocket};
pub use self::stream::{ReadHalf, TcpListener, TcpStream, WriteHalf};

/// Does the same with a socket of either kind. For the modules below.
macro_rules! whichever {
    ($of:expr, $socket:ident => $work:expr) => {
        match $of {
            Self::Real($socket) => $work,
            #[cfg(feature = "turmoil")]
            Self::Simulated($socket) => $work,
        }
    };
}

mod datagram;
#[cfg(feature = "turmoil")]
mod simulated;
mod stream;

/// Bytes asked of the kernel for datagrams that wait for us. Linux grants no more than
/// `net.core.rmem_max`; at 1,400 bytes a datagram this is a burst of about 3,000.
const UDP_RECEIVE_BYTES: usize = 4 << 20;

/// Connections that may wait for `accept`. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How often [`udp_and_tcp`] looks for a number that is free for both, when it may choose.
const PAIR_ATTEMPTS: usize = 32;

/// A socket that could not be opened or connected. Nothing was left open.
#[derive(Debug, thiserror::Error)]
pub enum SockError {
    /// Somebody listens there already. A retry helps once it has gone.
    #[error(
        "{what}: {addr} is in use by another process; stop it (`ss -lntup` shows it) or choose \
         another port"
    )]
    InUse {
        /// What the socket was for, for example the flag that gave the address.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
    },
    /// The address belongs to no interface of this host.
    #[error(
        "{what}: {addr} is not an address of this host; use one that `ip addr` lists, or \
         0.0.0.0 for all"
    )]
    NotLocal {
        /// What the socket was for.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
    },
    /// The process may not use the port.
    #[error("{what}: not allowed to listen on {addr}; choose a port above 1023")]
    Denied {
        /// What the socket was for.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
    },
    /// The system refused for another reason.
    #[error("{what}: cannot listen on {addr}: {source}")]
    Bind {
        /// What the socket was for.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Nobody listens there: proof that the process is gone, or was never started.
    #[error("{addr} refused the connection: nothing listens there")]
    Refused {
        /// The peer.
        addr: SocketAddr,
    },
    /// No answer in time. A retry may help.
    #[error("{addr} did not answer within {after:?}")]
    Timeout {
        /// The peer.
        addr: SocketAddr,
        /// How long we waited.
        after: Duration,
    },
    /// No connection for another reason (no route, network down, out of files).
    #[error("cannot connect to {addr}: {source}")]
    Connect {
        /// The peer.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

impl SockError {
    fn bind(what: &'static str, addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { what, addr },
            io::ErrorKind::AddrNotAvailable => Self::NotLocal { what, addr },
            io::ErrorKind::PermissionDenied => Self::Denied { what, addr },
            _ => Self::Bind { what, addr, source },
        }
    }
}

/// A UDP socket on `addr` with a large receive buffer, in non-blocking mode. `what` goes into
/// the error message.
///
/// # Errors
/// [`SockError`] when the address cannot be bound.
pub fn udp(addr: SocketAddr, what: &'static str) -> Result<UdpSocket, SockError> {
    let open = || {
        #[cfg(feature = "turmoil")]
        if simulated::is_here() {
            return simulated::Datagrams::bind(addr).map(UdpSocket::Simulated);
        }
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        accept_both_families(&socket, addr)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        // Less than asked for is no reason not to start.
        let _ = socket.set_recv_buffer_size(UDP_RECEIVE_BYTES);
        Ok(UdpSocket::Real(socket.into()))
    };
    open().map_err(|source| SockError::bind(what, addr, source))
}

/// A listening TCP socket on `addr`. `what` goes into the error message.
///
/// A port left in `TIME_WAIT` by an earlier process is taken over, a port with a listener never.
///
/// # Errors
/// [`SockError`] when the address cannot be bound.
///
/// # Panics
/// Outside a tokio runtime with I/O enabled.
pub fn tcp_listener(addr: SocketAddr, what: &'static str) -> Result<TcpListener, SockError> {
    let open = || {
        #[cfg(feature = "turmoil")]
        if simulated::is_here() {
            return simulated::Listener::bind(addr).map(TcpListener::Simulated);
        }
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        accept_both_families(&socket, addr)?;
        if cfg!(unix) {
            socket.set_reuse_address(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        tokio::net::TcpListener::from_std(socket.into()).map(TcpListener::Real)
    };
    open().map_err(|source| SockError::bind(what, addr, source))
}

/// A UDP socket and a TCP listener on one address and one port number: gossip and the link.
/// Port 0 chooses a number that is free for both.
///
/// # Errors
/// [`SockError`] when either cannot be bound; then neither is.
///
/// # Panics
/// Outside a tokio runtime with I/O enabled.
pub fn udp_and_tcp(
    addr: SocketAddr,
    what: &'static str,
) -> Result<(UdpSocket, TcpListener), SockError> {
    let mut attempts = if addr.port() == 0 { PAIR_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        let listener = tcp_listener(addr, what)?;
        let bound = listener.local_addr().map_err(|source| SockError::bind(what, addr, source))?;
        match udp(bound, what) {
            Err(SockError::InUse { .. }) if attempts > 0 => {}
            Err(error) => return Err(error),
            Ok(socket) => return Ok((socket, listener)),
        }
    }
}

/// `[::]` means every address, IPv4 ones too, whatever the host's default is.
fn accept_both_families(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    match addr {
        SocketAddr::V6(v6) if *v6.ip() == Ipv6Addr::UNSPECIFIED => socket.set_only_v6(false),
        SocketAddr::V4(_) | SocketAddr::V6(_) => Ok(()),
    }
}

/// A connection to `addr`, with `TCP_NODELAY`.
///
/// # Errors
/// [`SockError::Refused`], [`SockError::Timeout`] or [`SockError::Connect`].
pub async fn connect(addr: SocketAddr, timeout: Duration) -> Result<TcpStream, SockError> {
    let stream = match tokio::time::timeout(timeout, dial(addr)).await {
        Err(_) => return Err(SockError::Timeout { addr, after: timeout }),
        Ok(Err(source)) if source.kind() == io::ErrorKind::ConnectionRefused => {
            return Err(SockError::Refused { addr });
        }
        Ok(Err(source)) if source.kind() == io::ErrorKind::TimedOut => {
            return Err(SockError::Timeout { addr, after: timeout });
        }
        Ok(Err(source)) => return Err(SockError::Connect { addr, source }),
        Ok(Ok(stream)) => stream,
    };
    stream.set_nodelay(true).map_err(|source| SockError::Connect { addr, source })?;
    Ok(stream)
}

async fn dial(addr: SocketAddr) -> io::Result<TcpStream> {
    #[cfg(feature = "turmoil")]
    if simulated::is_here() {
        return simulated::dial(addr).await;
    }
    tokio::net::TcpStream::connect(addr).await.map(TcpStream::Real)
}

/// The addresses of `name`, `HOST:PORT`, as the resolver gives them. An address stands for itself.
///
/// # Errors
/// What the resolver says.
pub async fn lookup(name: &str) -> io::Result<Vec<SocketAddr>> {
    #[cfg(feature = "turmoil")]
    if simulated::is_here() {
        return simulated::lookup(name).await;
    }
    tokio::net::lookup_host(name).await.map(Iterator::collect)
}

/// The system's socket beneath a stream, if there is one.
fn system_socket(stream: &TcpStream) -> Option<SockRef<'_>> {
    match stream {
        TcpStream::Real(stream) => Some(SockRef::from(stream)),
        #[cfg(feature = "turmoil")]
        TcpStream::Simulated(_) => None,
    }
}

/// Bytes that a link leaves in the kernel before it stops writing, so that what goes first is
/// decided in our queue and not in the socket's buffer.
pub const LINK_NOTSENT_BYTES: u32 = 64 << 10;

/// Sets the options of a link's connection, dialled or accepted: `TCP_NODELAY`, and
/// `TCP_NOTSENT_LOWAT` at [`LINK_NOTSENT_BYTES`] where the system has it.
///
/// # Errors
/// When the connection is already gone.
pub fn tune_link(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Some(socket) = system_socket(stream) {
        socket.set_tcp_notsent_lowat(LINK_NOTSENT_BYTES)?;
    }
    Ok(())
}

/// After how long a silent client is asked whether it is still there, and how often then. One
/// that vanished is noticed within about two minutes.
const CLIENT_KEEPALIVE: Duration = Duration::from_secs(60);
const CLIENT_KEEPALIVE_EVERY: Duration = Duration::from_secs(20);

/// Sets the options of a client's connection: `TCP_NODELAY`, since answers are written whole,
/// and keep-alive, since a WebSocket's client may vanish without a word.
///
/// # Errors
/// When the connection is already gone.
pub fn tune_client(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(CLIENT_KEEPALIVE)
        .with_interval(CLIENT_KEEPALIVE_EVERY);
    system_socket(stream).map_or(Ok(()), |socket| socket.set_tcp_keepalive(&keepalive))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWrite;

    use super::*;

    const ANY_PORT: SocketAddr =
        SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0));

    #[tokio::test]
    async fn a_port_in_use_is_noticed_even_when_the_other_one_shares_it() {
        for (kind, protocol) in [(Type::STREAM, Protocol::TCP), (Type::DGRAM, Protocol::UDP)] {
            let other = Socket::new(Domain::IPV4, kind, Some(protocol)).unwrap();
            other.set_reuse_port(true).unwrap();
            other.set_reuse_address(true).unwrap();
            other.bind(&ANY_PORT.into()).unwrap();
            let addr = other.local_addr().unwrap().as_socket().unwrap();
            let error = if kind == Type::STREAM {
                other.listen(1).unwrap();
                tcp_listener(addr, "--http").unwrap_err()
            } else {
                udp(addr, "--http").unwrap_err()
            };
            assert!(matches!(error, SockError::InUse { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("--http") && text.contains(&addr.to_string()), "{text}");
        }
    }

    #[tokio::test]
    async fn all_addresses_and_one_of_them_cannot_share_a_port() {
        let (socket, listener) = udp_and_tcp(ANY_PORT, "--gossip").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(socket.local_addr().unwrap().port(), port);
        for all in [format!("0.0.0.0:{port}"), format!("[::]:{port}")] {
            let all = all.parse().unwrap();
            let in_use = |error| matches!(error, SockError::InUse { .. } | SockError::Bind { .. });
            assert!(in_use(udp(all, "gossip").unwrap_err()));
            assert!(in_use(tcp_listener(all, "gossip").unwrap_err()));
        }
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_a_clear_error() {
        let error = udp("192.0.2.1:7400".parse().unwrap(), "--gossip").unwrap_err();
        assert!(matches!(error, SockError::NotLocal { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_closed_port_refuses_and_an_open_one_connects() {
        let listener = tcp_listener(ANY_PORT, "test").unwrap();
        let addr = listener.local_addr().unwrap();
        let stream = connect(addr, Duration::from_secs(5)).await.unwrap();
        assert!(system_socket(&stream).unwrap().tcp_nodelay().unwrap());
        assert!(stream.is_write_vectored(), "many buffers go out in one system call");
        tune_link(&stream).unwrap();
        drop((stream, listener));
        let error = connect(addr, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, SockError::Refused { .. }), "{error:?}");
    }
}
