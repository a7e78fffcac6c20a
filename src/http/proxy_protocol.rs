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
        let is_incomplete = is_incomplete(&header, &bytes);
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

fn is_incomplete(header: &HeaderResult<'_>, bytes: &[u8]) -> bool {
    match header {
        // The parser takes a header that ends just before its last port for one with a bad port.
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
    fn a_header_that_has_come_in_part_is_waited_for_wherever_it_is_cut() {
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
