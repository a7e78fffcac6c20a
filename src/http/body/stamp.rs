//! Stamps: members that the server adds to each report.
//!
//! A stamp is a top-level member whose name begins with `_`. The server never overwrites a member: a report that
//! already has a member of that name is refused.

use std::fmt;
use std::net::IpAddr;

use hyper::HeaderMap;
use jiff::Timestamp;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::config::{Stamp, StampSource, Stamps};
use crate::http::error::ApiError;
use crate::report::Reports;

/// Maximum number of bytes of a header that a stamp contains.
const MAX_VALUE_BYTES: usize = 1024;

/// The stamps of a request: the members of an object, without its braces. A header that is missing adds no member.
pub(in crate::http) fn members(stamps: &Stamps, headers: &HeaderMap, client: IpAddr) -> String {
    let value = |stamp: &Stamp| match &stamp.source {
        StampSource::ReceivedAt => Some(format!("{:.3}", Timestamp::now())),
        StampSource::ClientIp => Some(client.to_string()),
        StampSource::Header(name) => headers.get(name).map(|value| {
            let bytes = &value.as_bytes()[..value.len().min(MAX_VALUE_BYTES)];
            String::from_utf8_lossy(bytes).into_owned()
        }),
    };
    let member = |(stamp, value): (&Stamp, String)| format!("\"{}\":{}", stamp.name, serde_json::Value::String(value));
    let members = stamps.iter().filter_map(|stamp| Some((stamp, value(stamp)?))).map(member);
    members.collect::<Vec<_>>().join(",")
}

/// Adds `members` to each of `reports`.
///
/// # Errors
/// If a report has a member with the name of a stamp, or if the result is longer than `max_bytes`.
pub(in crate::http) fn add(
    stamps: &Stamps,
    reports: &Reports<'_>,
    members: &str,
    max_bytes: usize,
) -> Result<Reports<'static>, ApiError> {
    let mut lines = Vec::with_capacity(reports.as_bytes().len() + members.len() + 1);
    for (index, line) in reports.as_bytes().split(|byte| *byte == b'\n').enumerate() {
        if let Some(name) = existing_stamp(stamps, line) {
            let element = (reports.count() > 1).then_some(index);
            return Err(ApiError::Stamped { name, element });
        }
        let rest = &line[1..];
        let is_empty = rest.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
        let comma = if is_empty || members.is_empty() { "" } else { "," };
        if index > 0 {
            lines.push(b'\n');
        }
        [b"{", members.as_bytes(), comma.as_bytes(), rest].iter().for_each(|part| lines.extend_from_slice(part));
        if lines.len() > max_bytes {
            return Err(ApiError::StampedTooLarge { max_bytes });
        }
    }
    Ok(Reports::from_checked(lines, reports.count()))
}

/// The name of a stamp that a report already has as a member.
fn existing_stamp(stamps: &Stamps, line: &[u8]) -> Option<String> {
    let mut found = None;
    let members = Members { stamps, found: &mut found };
    // The report is valid JSON, so there is no error.
    drop(serde_json::Deserializer::from_slice(line).deserialize_map(members));
    found
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
            if let Some(stamp) = self.stamps.iter().find(|stamp| stamp.name.as_bytes() == name) {
                *self.found = Some(stamp.name.clone());
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// The name of a member, without escapes. Bytes, because a lone surrogate is not text but may occur in a name.
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

    fn stamped(stamps: &str, body: &str) -> Result<String, ApiError> {
        let stamps: Stamps = stamps.parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", HeaderValue::from_static("a \"b\""));
        headers.insert("x-long", HeaderValue::from_str(&"x".repeat(5000)).unwrap());
        let members = members(&stamps, &headers, "192.0.2.1".parse().unwrap());
        let reports = Reports::check(body.as_bytes()).unwrap();
        let reports = add(&stamps, &reports, &members, 2000)?;
        Ok(String::from_utf8(reports.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn stamps_precede_the_members_of_a_report() {
        let both = stamped("client_ip,user_agent,origin", "[{\"a\":1},{},{ }]").unwrap();
        let stamp = "\"_client_ip\":\"192.0.2.1\",\"_user_agent\":\"a \\\"b\\\"\"";
        assert_eq!(both, format!("{{{stamp},\"a\":1}}\n{{{stamp}}}\n{{{stamp} }}"));
        assert_eq!(stamped("origin", "{\"a\":1}").unwrap(), "{\"a\":1}", "the header is missing");
        let received = stamped("received_at", "{}").unwrap();
        let received: serde_json::Value = serde_json::from_str(&received).unwrap();
        let time: Timestamp = received["_received_at"].as_str().unwrap().parse().unwrap();
        assert!(Timestamp::now().duration_since(time).as_secs() < 60);
        assert_eq!(stamped("header:X-Long", "{}").unwrap().len(), "{\"_x_long\":\"\"}".len() + MAX_VALUE_BYTES);
    }

    #[test]
    fn a_report_that_has_a_member_of_that_name_is_refused_in_every_spelling() {
        for name in ["_client_ip", "\\u005fclient_ip", "_client\\u005Fip"] {
            let body = format!("[{{}},{{\"\\ud83d\":1,\"{name}\":null}}]");
            match stamped("client_ip", &body) {
                Err(ApiError::Stamped { name, element }) => {
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
    fn stamps_count_towards_the_size_limit() {
        let body = format!("[{}]", vec!["{}"; 100].join(","));
        assert!(matches!(stamped("client_ip", &body), Err(ApiError::StampedTooLarge { max_bytes: 2000 })));
    }
}
