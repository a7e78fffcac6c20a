//! Whose request is it? The address of a client that may stand behind proxies.
//!
//! Whoever sends a header can write into it what he likes. What counts is what proxies have added that are trusted, and
//! that is read from the right: the last entry is from the proxy that has connected, the one before it from whoever that
//! entry names, and so on, for as long as these are trusted, too.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

/// Networks, as a setting lists them: `10.0.0.0/8, 192.0.2.7`, or `none`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

/// Where proxies say whose request it is. One of the two only: a proxy that writes the one hands on the other as the
/// client has sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// What most proxies write.
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// How many bits are kept of a client's address, as a setting has it: `/24,/48`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// Of an IPv4 address, up to 32.
    pub v4: u8,
    /// Of an IPv6 address, up to 128.
    pub v6: u8,
}

impl Networks {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `address` lies in one of them.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl FromStr for Networks {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::default());
        }
        // A plain address is a network of one.
        let network = |item: &str| item.parse().or_else(|error| item.parse().map(IpAddr::into).map_err(|_| error));
        text.split(',').map(|item| network(item.trim())).collect::<Result<_, _>>().map(Self)
    }
}

impl Mask {
    /// The address without the bits that are not kept.
    #[must_use]
    pub fn apply(self, address: IpAddr) -> IpAddr {
        let bits = if address.is_ipv4() { self.v4 } else { self.v6 };
        IpNet::new(address, bits).map_or(address, |network| network.network())
    }
}

/// A mask is written in another way than this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no pair of prefix lengths")]
pub struct NoMask;

impl FromStr for Mask {
    type Err = NoMask;

    fn from_str(text: &str) -> Result<Self, NoMask> {
        let (v4, v6) = text.split_once(',').ok_or(NoMask)?;
        let bits = |text: &str, most| {
            let bits = text.trim().strip_prefix('/').and_then(|bits| bits.parse().ok());
            bits.filter(|bits| *bits <= most).ok_or(NoMask)
        };
        Ok(Self { v4: bits(v4, 32)?, v6: bits(v6, 128)? })
    }
}

macro_rules! deserialize_from_str {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

deserialize_from_str!(Networks, Mask);

/// The address of the client that has sent these headers through `peer`, as far as the proxies in `trusted` tell.
pub(super) fn address(trusted: &Networks, header: ForwardedHeader, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let mut client = peer.to_canonical();
    if !trusted.contain(client) {
        return client;
    }
    let name = match header {
        ForwardedHeader::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
        ForwardedHeader::Forwarded => FORWARDED,
    };
    // Several lines are one list. What can't be read is an entry, too: the proxy that wrote it said that it can't tell.
    let lines: Vec<_> = headers.get_all(name).iter().map(|line| line.to_str().unwrap_or_default()).collect();
    for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let hop = match header {
            ForwardedHeader::XForwardedFor => node(entry.trim()),
            ForwardedHeader::Forwarded => forwarded_for(entry).and_then(node),
        };
        let Some(hop) = hop else { break };
        client = hop.to_canonical();
        if !trusted.contain(client) {
            break;
        }
    }
    client
}

/// What stands behind `for=` in one element of a `Forwarded` header.
fn forwarded_for(element: &str) -> Option<&str> {
    let value = element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(value.trim())
    })?;
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// An address with or without a port, an IPv6 one with or without brackets. `None` for `unknown`, for a name that hides
/// the address (RFC 7239, 6.3), and for anything else.
fn node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse().map(|address: SocketAddr| address.ip()).ok())
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{},/{}", self.v4, self.v6)
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn client(header: ForwardedHeader, peer: &str, lines: &[&str]) -> String {
        let trusted = "10.0.0.0/8, 192.0.2.7, 2001:db8:1::/48".parse().unwrap();
        let name = if header == ForwardedHeader::Forwarded { "forwarded" } else { "x-forwarded-for" };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_str(line).unwrap());
        }
        address(&trusted, header, peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_what_trusted_proxies_have_added_counts() {
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
    fn the_elements_of_rfc_7239_are_read_too() {
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

    #[test]
    fn a_mask_leaves_the_network() {
        let mask: Mask = "/24, /48".parse().unwrap();
        assert_eq!(mask.apply("198.51.100.77".parse().unwrap()).to_string(), "198.51.100.0");
        assert_eq!(mask.apply("2001:db8:1:2::3".parse().unwrap()).to_string(), "2001:db8:1::");
        for wrong in ["", "/24", "24,48", "/33,/48", "/24,/129", "/24,/48,/64", "/-1,/48"] {
            assert_eq!(wrong.parse::<Mask>(), Err(NoMask), "{wrong:?}");
        }
    }

    #[test]
    fn networks_that_are_none_are_refused() {
        assert!("none".parse::<Networks>().unwrap().is_empty());
        for wrong in ["", "10.0.0.0/33", "10.0.0", "all", "10.0.0.0/8,", "10.0.0.0/8 192.0.2.7"] {
            assert!(wrong.parse::<Networks>().is_err(), "{wrong:?}");
        }
    }
}
