//! The PROXY protocol, versions 1 and 2: a proxy that works below HTTP says first whose connection it hands on.

use std::io;
use std::net::IpAddr;

use ppp::{HeaderResult, PartialResult, v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The longest header that is read, in bytes: 107 in version 1; in version 2 those that add extensions of their own
/// take a few hundred.
const MAX_BYTES: usize = 4096;

/// Reads the header, and not a byte more. Returns the client's address; `None` if the connection is the proxy's own, as
/// its health checks are, or if it does not tell.
///
/// # Errors
/// Those of the connection, and `InvalidData` when it does not begin with such a header.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut bytes = Vec::new();
    let mut peeked = vec![0; MAX_BYTES];
    loop {
        let before = bytes.len();
        let count = match stream.peek(&mut peeked[before..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => count,
        };
        bytes.extend_from_slice(&peeked[before..before + count]);
        let header = HeaderResult::parse(&bytes);
        let is_incomplete = header.is_incomplete();
        let (len, client) = match header {
            _ if is_incomplete && bytes.len() < MAX_BYTES => (bytes.len(), None),
            HeaderResult::V1(Ok(header)) => (header.header.len(), client_v1(&header)),
            HeaderResult::V2(Ok(header)) => (header.len(), client_v2(&header)),
            HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no PROXY protocol header"));
            }
        };
        // What was only looked at so far.
        stream.read_exact(&mut peeked[before..len]).await?;
        if !is_incomplete {
            return Ok(client);
        }
    }
}

fn client_v1(header: &v1::Header<'_>) -> Option<IpAddr> {
    match header.addresses {
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Unknown => None,
    }
}

fn client_v2(header: &v2::Header<'_>) -> Option<IpAddr> {
    match header.addresses {
        _ if header.command == v2::Command::Local => None,
        v2::Addresses::IPv4(addresses) => Some(addresses.source_address.into()),
        v2::Addresses::IPv6(addresses) => Some(addresses.source_address.into()),
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
    }
}
