//! Stamps: what the server knows of a request and its reports don't, added to each of them.
//!
//! A stamp is a member at the top level of the report, and its name begins with `_`. Nothing that a client sends is
//! overwritten: a report that brings a member of that name is refused.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::HeaderMap;
use hyper::header::{HeaderName, ORIGIN, USER_AGENT};
use jiff::Timestamp;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::refusal::Refusal;
use crate::report::Reports;

/// A header may be as long as it likes; its stamp ends here, in bytes.
const MAX_VALUE_BYTES: usize = 1024;

/// The stamps that each report gets, as a setting lists them: `received_at, header:X-Request-Id`, or `none`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps(Vec<Stamp>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    name: String,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    ReceivedAt,
    ClientIp,
    Header(HeaderName),
}

/// What a stamp is not.
#[derive(Debug, thiserror::Error)]
#[error("no stamp")]
pub struct NoStamp;

impl FromStr for Stamps {
    type Err = NoStamp;

    fn from_str(text: &str) -> Result<Self, NoStamp> {
        if text == "none" {
            return Ok(Self::default());
        }
        let mut stamps: Vec<Stamp> = Vec::new();
        for item in text.split(',').map(str::trim) {
            let (name, source) = match item {
                "received_at" => (item.to_owned(), Source::ReceivedAt),
                "client_ip" => (item.to_owned(), Source::ClientIp),
                "user_agent" => (item.to_owned(), Source::Header(USER_AGENT)),
                "origin" => (item.to_owned(), Source::Header(ORIGIN)),
                _ => {
                    let header = item.strip_prefix("header:").and_then(|header| header.trim().parse().ok());
                    let header: HeaderName = header.ok_or(NoStamp)?;
                    (header.as_str().replace('-', "_"), Source::Header(header))
                }
            };
            let stamp = Stamp { name: format!("_{name}"), source };
            if stamps.iter().any(|other| other.name == stamp.name) {
                return Err(NoStamp);
            }
            stamps.push(stamp);
        }
        Ok(Self(stamps))
    }
}

impl<'de> Deserialize<'de> for Stamps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Stamps {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the client's address is wanted.
    pub(super) fn want_client_ip(&self) -> bool {
        self.0.iter().any(|stamp| stamp.source == Source::ClientIp)
    }

    /// What all reports of a request get: the members of an object, without its braces.
    pub(super) fn members(&self, headers: &HeaderMap, client: IpAddr) -> String {
        let value = |stamp: &Stamp| match &stamp.source {
            Source::ReceivedAt => Some(format!("{:.3}", Timestamp::now())),
            Source::ClientIp => Some(client.to_string()),
            Source::Header(name) => headers.get(name).map(|value| {
                let bytes = &value.as_bytes()[..value.len().min(MAX_VALUE_BYTES)];
                String::from_utf8_lossy(bytes).into_owned()
            }),
        };
        let member =
            |(stamp, value): (&Stamp, String)| format!("\"{}\":{}", stamp.name, serde_json::Value::String(value));
        let members = self.0.iter().filter_map(|stamp| Some((stamp, value(stamp)?))).map(member);
        members.collect::<Vec<_>>().join(",")
    }

    /// Puts `members` on each of `reports`.
    ///
    /// # Errors
    /// When one brings a member of the name of a stamp, or if all of it is longer than `max_bytes`.
    pub(super) fn put_on(
        &self,
        reports: &Reports<'_>,
        members: &str,
        max_bytes: usize,
    ) -> Result<Reports<'static>, Refusal> {
        let mut lines = Vec::with_capacity(reports.as_bytes().len() + members.len() + 1);
        for (index, line) in reports.as_bytes().split(|byte| *byte == b'\n').enumerate() {
            if let Some(name) = self.found_in(line) {
                let element = (reports.count() > 1).then_some(index);
                return Err(Refusal::Stamped { name, element });
            }
            let rest = &line[1..];
            let is_empty = rest.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
            let comma = if is_empty || members.is_empty() { "" } else { "," };
            if index > 0 {
                lines.push(b'\n');
            }
            [b"{", members.as_bytes(), comma.as_bytes(), rest].iter().for_each(|part| lines.extend_from_slice(part));
            if lines.len() > max_bytes {
                return Err(Refusal::StampedTooLarge { max_bytes });
            }
        }
        Ok(Reports::stamped(lines, reports.count()))
    }

    /// The first name of a stamp that a report brings along.
    fn found_in(&self, line: &[u8]) -> Option<String> {
        let mut found = None;
        // A report is valid JSON; all that can stop this is the name that it looks for.
        drop(serde_json::Deserializer::from_slice(line).deserialize_map(Members { stamps: self, found: &mut found }));
        found
    }
}

struct Members<'a> {
    stamps: &'a Stamps,
    found: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            if let Some(stamp) = self.stamps.0.iter().find(|stamp| stamp.name.as_bytes() == name) {
                *self.found = Some(stamp.name.clone());
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// A member's name without its escapes. Bytes, because a half of a surrogate pair is no text, and yet may stand there.
struct Name(Vec<u8>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Name, E> {
                Ok(Name(bytes.to_vec()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Name, E> {
                Ok(Name(text.as_bytes().to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn stamped(stamps: &str, body: &str) -> Result<String, Refusal> {
        let stamps: Stamps = stamps.parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", HeaderValue::from_static("a \"b\""));
        headers.insert("x-long", HeaderValue::from_str(&"x".repeat(5000)).unwrap());
        let members = stamps.members(&headers, "192.0.2.1".parse().unwrap());
        let reports = Reports::check(body.as_bytes()).unwrap();
        let reports = stamps.put_on(&reports, &members, 2000)?;
        Ok(String::from_utf8(reports.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn each_report_gets_its_stamps_first() {
        let both = stamped("client_ip,user_agent,origin", "[{\"a\":1},{},{ }]").unwrap();
        let stamp = "\"_client_ip\":\"192.0.2.1\",\"_user_agent\":\"a \\\"b\\\"\"";
        assert_eq!(both, format!("{{{stamp},\"a\":1}}\n{{{stamp}}}\n{{{stamp} }}"));
        assert_eq!(stamped("origin", "{\"a\":1}").unwrap(), "{\"a\":1}", "there is none");
        let received = stamped("received_at", "{}").unwrap();
        let received: serde_json::Value = serde_json::from_str(&received).unwrap();
        let time: Timestamp = received["_received_at"].as_str().unwrap().parse().unwrap();
        assert!(Timestamp::now().duration_since(time).as_secs() < 60);
        assert_eq!(stamped("header:X-Long", "{}").unwrap().len(), "{\"_x_long\":\"\"}".len() + MAX_VALUE_BYTES);
    }

    #[test]
    fn a_report_that_brings_a_member_of_that_name_is_refused_however_it_is_written() {
        for name in ["_client_ip", "\\u005fclient_ip", "_client\\u005Fip"] {
            let body = format!("[{{}},{{\"\\ud83d\":1,\"{name}\":null}}]");
            match stamped("client_ip", &body) {
                Err(Refusal::Stamped { name, element }) => {
                    assert_eq!((name.as_str(), element), ("_client_ip", Some(1)))
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        for body in ["{\"a\":{\"_client_ip\":1}}", "{\"client_ip\":1}", "{\"_client_ip \":1}", "{\"a\":\"_client_ip\"}"]
        {
            stamped("client_ip", body).unwrap();
        }
    }

    #[test]
    fn stamps_do_not_get_past_the_bound() {
        let body = format!("[{}]", vec!["{}"; 100].join(","));
        assert!(matches!(stamped("client_ip", &body), Err(Refusal::StampedTooLarge { max_bytes: 2000 })));
    }

    #[test]
    fn what_is_no_stamp_is_refused() {
        assert!("none".parse::<Stamps>().unwrap().is_empty());
        for wrong in ["", "time", "received_at,", "header:", "header:a b", "origin,origin", "origin,header:Origin"] {
            assert!(wrong.parse::<Stamps>().is_err(), "{wrong:?}");
        }
    }
}
