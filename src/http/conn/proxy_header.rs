//! The PROXY protocol, versions 1 and 2. A proxy that works below HTTP sends the address of the client first.

use std::io;
use std::net::IpAddr;

use ppp::{HeaderResult, PartialResult, v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http::app::App;

/// Maximum size of a header in bytes. Version 1 has 107. Version 2 has a few hundred with extensions.
const MAX_BYTES: usize = 4096;

/// The address of the client of a new connection. Reads the PROXY header if the peer is a trusted proxy that sends one.
/// `None` if the peer is a trusted proxy and its client is unknown.
///
/// # Errors
/// Why the connection has to be closed.
pub(super) async fn client(app: &App, stream: &mut TcpStream, peer: IpAddr) -> Result<Option<IpAddr>, String> {
    // A socket for both IPv6 and IPv4 reports IPv4 addresses as IPv6 addresses.
    let peer = peer.to_canonical();
    if !app.proxies.trusted.contains(peer) {
        return Ok(Some(peer));
    }
    if !app.proxies.proxy_protocol {
        return Ok(None);
    }
    match timeout(app.limits.header_timeout, read(stream)).await {
        Ok(Ok(client)) => Ok(client.map(|client| client.to_canonical())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no PROXY header arrived in time".to_owned()),
    }
}

/// Reads exactly the header. Returns the client's address. `None` if the header does not contain one, or if the
/// connection belongs to the proxy itself, as for health checks.
///
/// # Errors
/// Errors of the connection. `InvalidData` if the connection does not begin with a PROXY header.
async fn read(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
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
        let is_incomplete = is_incomplete(&header, &bytes);
        let (len, client) = match header {
            _ if is_incomplete && bytes.len() < MAX_BYTES => (bytes.len(), None),
            HeaderResult::V1(Ok(header)) => (header.header.len(), client_v1(&header)),
            HeaderResult::V2(Ok(header)) => (header.len(), client_v2(&header)),
            HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the connection does not begin with a PROXY header",
                ));
            }
        };
        // Consumes the bytes that were only peeked at.
        stream.read_exact(&mut peeked[before..len]).await?;
        if !is_incomplete {
            return Ok(client);
        }
    }
}

fn is_incomplete(header: &HeaderResult<'_>, bytes: &[u8]) -> bool {
    match header {
        // The parser reports a header that ends just before its last port as one with an invalid port.
        HeaderResult::V1(Err(v1::BinaryParseError::Parse(v1::ParseError::InvalidDestinationPort(_))))
            if bytes.ends_with(b" ") =>
        {
            true
        }
        header => header.is_incomplete(),
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

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_header_is_recognized_wherever_it_is_cut() {
        let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        v2.extend([198, 51, 100, 8, 127, 0, 0, 1, 0x12, 0x34, 0, 80]);
        let v1 = [
            &b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 80\r\n"[..],
            b"PROXY TCP6 2001:db8::7 ::1 4711 80\r\n",
            b"PROXY UNKNOWN\r\n",
        ];
        for header in v1.into_iter().chain([&v2[..]]) {
            let waits = |len: &usize| is_incomplete(&HeaderResult::parse(&header[..*len]), &header[..*len]);
            assert_eq!((1..=header.len()).find(|len| !waits(len)), Some(header.len()), "{}", header.escape_ascii());
        }
        let bad = b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 x";
        assert!(!is_incomplete(&HeaderResult::parse(bad), bad));
    }
}
