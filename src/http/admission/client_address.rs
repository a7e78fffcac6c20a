//! The address of a client that may be behind proxies.
//!
//! A client can send any header. Only entries that trusted proxies have added count. They are read from the right: the
//! last entry is from the peer, the entry before it from the host that the last entry names, and so on, as long as
//! these hosts are trusted.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName};

use crate::config::{ForwardedHeader, Networks};

/// The proxies in front of the server.
#[derive(Debug)]
pub(in crate::http) struct Proxies {
    /// Proxies whose statements about the client are trusted.
    pub(in crate::http) trusted: Networks,
    /// The header in which they name the client.
    pub(in crate::http) header: ForwardedHeader,
    /// Their connections begin with a PROXY header.
    pub(in crate::http) proxy_protocol: bool,
}

impl Proxies {
    /// The address of the client that sent these headers through `peer`, as far as trusted proxies tell.
    pub(in crate::http) fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trusted.contains(client) {
            return client;
        }
        let name = match self.header {
            ForwardedHeader::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            ForwardedHeader::Forwarded => FORWARDED,
        };
        // Several lines form one list. An unreadable entry counts as an entry: the proxy that wrote it did not know the
        // client.
        let lines: Vec<_> = headers.get_all(name).iter().map(|line| line.to_str().unwrap_or_default()).collect();
        for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            let hop = match self.header {
                ForwardedHeader::XForwardedFor => node(entry.trim()),
                ForwardedHeader::Forwarded => forwarded_for(entry).and_then(node),
            };
            let Some(hop) = hop else { break };
            client = hop.to_canonical();
            if !self.trusted.contains(client) {
                break;
            }
        }
        client
    }

    /// Whether the client uses HTTPS, as far as the trusted proxy `peer` tells.
    pub(in crate::http) fn is_https(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        if !self.trusted.contains(peer.to_canonical()) {
            return false;
        }
        let last = |name: HeaderName| {
            let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
            line.rsplit(',').next().map(str::trim)
        };
        let proto = match self.header {
            ForwardedHeader::XForwardedFor => last(HeaderName::from_static("x-forwarded-proto")),
            ForwardedHeader::Forwarded => last(FORWARDED).and_then(|element| parameter(element, "proto")),
        };
        proto.is_some_and(|proto| proto.eq_ignore_ascii_case("https"))
    }
}

/// The value of `for=` in one element of a `Forwarded` header.
fn forwarded_for(element: &str) -> Option<&str> {
    parameter(element, "for")
}

fn parameter<'a>(element: &'a str, wanted: &str) -> Option<&'a str> {
    let value = element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then_some(value.trim())
    })?;
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// Parses an address with or without a port, and with or without the brackets of IPv6. `None` for everything else, such
/// as `unknown` and obfuscated identifiers (RFC 7239, section 6.3).
fn node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse().map(|address: SocketAddr| address.ip()).ok())
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn client(header: ForwardedHeader, peer: &str, lines: &[&str]) -> String {
        let trusted = "10.0.0.0/8, 192.0.2.7, 2001:db8:1::/48".parse().unwrap();
        let proxies = Proxies { trusted, header, proxy_protocol: false };
        let name = if header == ForwardedHeader::Forwarded { "forwarded" } else { "x-forwarded-for" };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_str(line).unwrap());
        }
        proxies.client_address(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_entries_of_trusted_proxies_count() {
        for (peer, lines, expected) in [
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["6.6.6.6, 198.51.100.1,192.0.2.7 , 10.9.9.9"], "198.51.100.1"),
            ("10.0.0.1", &["6.6.6.6", "198.51.100.1", "10.9.9.9"], "198.51.100.1"),
            ("10.0.0.1", &["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("2001:db8:1::5", &["::ffff:198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, "], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, unknown, 10.0.0.9"], "10.0.0.9"),
        ] {
            assert_eq!(client(ForwardedHeader::XForwardedFor, peer, lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn elements_of_rfc_7239_are_parsed() {
        for (lines, expected) in [
            (&["for=198.51.100.1;proto=https;by=10.0.0.1"][..], "198.51.100.1"),
            (&["proto=https; For=\"[2001:db8::1]:4711\""], "2001:db8::1"),
            (&["for=6.6.6.6, for=\"198.51.100.1:80\", for=10.0.0.7"], "198.51.100.1"),
            (&["for=198.51.100.1, for=_hidden"], "10.0.0.1"),
            (&["for=198.51.100.1, proto=http"], "10.0.0.1"),
        ] {
            assert_eq!(client(ForwardedHeader::Forwarded, "10.0.0.1", lines), expected, "{lines:?}");
        }
    }
}
