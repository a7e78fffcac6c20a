//! Listening sockets and the limit of open files.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use listenfd::ListenFd;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel completes before the server accepts them. Thousands of browsers may connect within one
/// second. The kernel reduces it to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 8192;

/// The listening socket that systemd has passed to this process (`LISTEN_FDS`), if there is one.
///
/// # Errors
/// If the passed descriptor is not a listening TCP socket.
pub fn inherited() -> io::Result<Option<TcpListener>> {
    ListenFd::from_env().take_tcp_listener(0)
}

/// Opens a listening socket. With `reuse_port`, several such sockets can share the port.
///
/// # Errors
/// Errors of the system, such as a port that is in use.
pub fn listen(host: IpAddr, port: u16, reuse_port: bool) -> io::Result<TcpListener> {
    let bind = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Otherwise a restart would have to wait for old connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    match bind(SocketAddr::new(host, port)) {
        // On a machine without IPv6, `::` means all IPv4 interfaces.
        Err(error) if host.is_ipv6() && host.is_unspecified() && no_ipv6(&error) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        }
        bound => bound,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Raises the limit of open files to `wanted`, as far as the hard limit permits. Returns the resulting limit.
pub(crate) fn raise_file_limit(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if raised <= current {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
        Ok(()) => raised,
        Err(_) => current,
    }
}
