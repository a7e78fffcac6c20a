//! Networks, address masks, and the header that names the client.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

/// A list of networks: `10.0.0.0/8, 192.0.2.7`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

/// The header in which trusted proxies name the client. The server reads only one header, because a proxy that writes
/// one of them forwards the other as the client sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// The header that most proxies write.
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// How many bits of a client address are kept: `/24,/48`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// Bits of an IPv4 address, 0 to 32.
    pub v4: u8,
    /// Bits of an IPv6 address, 0 to 128.
    pub v6: u8,
}

/// The text is not a list of networks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list of networks")]
pub struct InvalidNetworks;

/// The text is not a pair of prefix lengths.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pair of prefix lengths")]
pub struct InvalidMask;

impl Networks {
    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the networks contains `address`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl FromStr for Networks {
    type Err = InvalidNetworks;

    fn from_str(text: &str) -> Result<Self, InvalidNetworks> {
        text.split(',').map(|item| network(item.trim()).ok_or(InvalidNetworks)).collect::<Result<_, _>>().map(Self)
    }
}

/// Parses one network. A plain address is a network of one address. Host bits must be zero: `10.0.0.5/8` is more likely
/// a mistake than the network `10.0.0.0/8`.
fn network(text: &str) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(network) => (network == network.trunc()).then_some(network),
        Err(_) => text.parse().map(IpAddr::into).ok(),
    }
}

impl Mask {
    /// Sets the bits of `address` that are not kept to zero.
    #[must_use]
    pub fn apply(self, address: IpAddr) -> IpAddr {
        let bits = if address.is_ipv4() { self.v4 } else { self.v6 };
        IpNet::new(address, bits).map_or(address, |network| network.network())
    }
}

impl FromStr for Mask {
    type Err = InvalidMask;

    fn from_str(text: &str) -> Result<Self, InvalidMask> {
        let (v4, v6) = text.split_once(',').ok_or(InvalidMask)?;
        let bits = |text: &str, max| {
            let bits = text.trim().strip_prefix('/').and_then(|bits| bits.parse().ok());
            bits.filter(|bits| *bits <= max).ok_or(InvalidMask)
        };
        Ok(Self { v4: bits(v4, 32)?, v6: bits(v6, 128)? })
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_mask_keeps_the_network_part_of_an_address() {
        let mask: Mask = "/24, /48".parse().unwrap();
        assert_eq!(mask.apply("198.51.100.77".parse().unwrap()).to_string(), "198.51.100.0");
        assert_eq!(mask.apply("2001:db8:1:2::3".parse().unwrap()).to_string(), "2001:db8:1::");
        for wrong in ["", "/24", "24,48", "/33,/48", "/24,/129", "/24,/48,/64", "/-1,/48"] {
            assert_eq!(wrong.parse::<Mask>(), Err(InvalidMask), "{wrong:?}");
        }
    }

    #[test]
    fn text_that_is_not_a_list_of_networks_is_refused() {
        let networks: Networks = "10.0.0.0/8, 192.0.2.7,2001:db8::/32".parse().unwrap();
        assert!(networks.contains("10.1.2.3".parse().unwrap()) && !networks.contains("192.0.2.8".parse().unwrap()));
        let with_host_bits = ["10.0.0.5/8", "2001:db8::1/32"];
        for wrong in ["", "10.0.0.0/33", "10.0.0", "all", "10.0.0.0/8,", "10.0.0.0/8 192.0.2.7"]
            .into_iter()
            .chain(with_host_bits)
        {
            assert!(wrong.parse::<Networks>().is_err(), "{wrong:?}");
        }
    }
}
