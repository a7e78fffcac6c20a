//! Stamps, as the setting `STAMP` lists them.

use std::str::FromStr;

use hyper::header::{HeaderName, ORIGIN, USER_AGENT};

/// The stamps that the server adds to each report: `received_at, header:X-Request-Id`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps(Vec<Stamp>);

/// One member that the server adds to a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The member's name. It begins with `_` and contains only characters of header names, so it needs no escaping.
    pub name: String,
    /// Where the value comes from.
    pub source: StampSource,
}

/// Where the value of a stamp comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StampSource {
    /// The time at which the server received the request.
    ReceivedAt,
    /// The client's address, masked with `CLIENT_IP_MASK`.
    ClientIp,
    /// A request header.
    Header(HeaderName),
}

/// The text is not a list of stamps.
#[derive(Debug, thiserror::Error)]
#[error("not a list of stamps")]
pub struct InvalidStamps;

impl Stamps {
    /// Whether there are no stamps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The stamps in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = &Stamp> {
        self.0.iter()
    }
}

impl FromStr for Stamps {
    type Err = InvalidStamps;

    fn from_str(text: &str) -> Result<Self, InvalidStamps> {
        let mut stamps: Vec<Stamp> = Vec::new();
        for item in text.split(',').map(str::trim) {
            let (name, source) = match item {
                "received_at" => (item.to_owned(), StampSource::ReceivedAt),
                "client_ip" => (item.to_owned(), StampSource::ClientIp),
                "user_agent" => (item.to_owned(), StampSource::Header(USER_AGENT)),
                "origin" => (item.to_owned(), StampSource::Header(ORIGIN)),
                _ => {
                    let header = item.strip_prefix("header:").and_then(|header| header.trim().parse().ok());
                    let header: HeaderName = header.ok_or(InvalidStamps)?;
                    (header.as_str().replace('-', "_"), StampSource::Header(header))
                }
            };
            let stamp = Stamp { name: format!("_{name}"), source };
            if stamps.iter().any(|other| other.name == stamp.name) {
                return Err(InvalidStamps);
            }
            stamps.push(stamp);
        }
        Ok(Self(stamps))
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_not_a_list_of_stamps_is_refused() {
        for wrong in ["", "time", "received_at,", "header:", "header:a b", "origin,origin", "origin,header:Origin"] {
            assert!(wrong.parse::<Stamps>().is_err(), "{wrong:?}");
        }
    }
}
