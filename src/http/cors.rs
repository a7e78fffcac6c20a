//! Which pages may send reports, and what lets them read the answers: the CORS protocol of the Fetch standard.
//!
//! Browsers put the origin of the page into each POST. A request without one is not from a page, and none of this
//! concerns it.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderName, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Deserialize;

/// How long a browser may remember what it was told, in seconds: Chromium's limit, the shortest one.
const MAX_AGE_SECONDS: &str = "7200";

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
pub(super) const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The origins whose pages may send reports.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Origins(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Any,
    /// An origin as browsers send it.
    One(String),
    /// All hosts that end in a domain, which is no such host itself.
    Below {
        /// With its `://`.
        scheme: String,
        /// With the dot before it, and the port.
        domain: String,
    },
}

/// A pattern is not of one of the forms that there are.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no origin: {0:?}")]
pub struct NoOrigin(String);

impl TryFrom<String> for Origins {
    type Error = NoOrigin;

    fn try_from(list: String) -> Result<Self, NoOrigin> {
        if list == "*" {
            return Ok(Self(vec![Pattern::Any]));
        }
        let pattern = |text: &str| Pattern::parse(text.trim()).ok_or_else(|| NoOrigin(text.to_owned()));
        list.split(',').map(pattern).collect::<Result<_, _>>().map(Self)
    }
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        if text == "null" {
            return Some(Self::One(text));
        }
        let (scheme, place) = text.split_once("://")?;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(is_scheme) {
            return None;
        }
        let (place, is_below) = place.strip_prefix("*.").map_or((place, false), |domain| (domain, true));
        let authority: Authority = place.parse().ok()?;
        let (host, port) = (authority.host(), authority.port_u16());
        if host.is_empty() || !host.bytes().all(|byte| is_host(byte) || b"[:]".contains(&byte)) {
            return None;
        }
        // Without user, and with a port that is one or none at all.
        let place = match (scheme, port) {
            ("https", Some(443)) | ("http", Some(80)) => host.to_owned(), // browsers leave these out
            (_, Some(port)) => format!("{host}:{port}"),
            (_, None) => host.to_owned(),
        };
        if authority.as_str() != host && port.is_none_or(|port| authority.as_str() != format!("{host}:{port}")) {
            return None;
        }
        Some(match is_below {
            true => Self::Below { scheme: format!("{scheme}://"), domain: format!(".{place}") },
            false => Self::One(format!("{scheme}://{place}")),
        })
    }

    fn allows(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => origin == one.as_bytes(),
            Self::Below { scheme, domain } => {
                let host = origin.strip_prefix(scheme.as_bytes()).and_then(|rest| rest.strip_suffix(domain.as_bytes()));
                // Nothing in it but a host: no other one, with the domain behind a port or a path.
                host.is_some_and(|host| !host.is_empty() && host.iter().copied().all(is_host))
            }
        }
    }
}

fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte)
}

impl Origins {
    /// Whether pages of this origin may send reports.
    pub(super) fn allow(&self, origin: &HeaderValue) -> bool {
        self.0.iter().any(|pattern| pattern.allows(origin.as_bytes()))
    }
}

/// Whether it asks what a page may send.
pub(super) fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight: POST, with any headers.
pub(super) fn preflight(asked: &HeaderMap) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_SECONDS));
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    if asked.get(REQUEST_PRIVATE_NETWORK).is_some_and(|asked| asked == "true") {
        headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    headers.append(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    headers.append(VARY, HeaderValue::from_static("Access-Control-Request-Private-Network"));
    response
}

/// Lets pages of this origin have the answer.
pub(super) fn share(response: &mut Response<Full<Bytes>>, origin: HeaderValue) {
    let headers = response.headers_mut();
    // The origin itself, never `*`: sendBeacon always sends credentials along, and with these no browser accepts that.
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After"));
    headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    headers.append(VARY, HeaderValue::from_static("Origin"));
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn origins(list: &str) -> Origins {
        Origins::try_from(list.to_owned()).unwrap()
    }

    fn allows(list: &str, origin: &'static str) -> bool {
        origins(list).allow(&HeaderValue::from_static(origin))
    }

    #[test]
    fn a_list_allows_what_it_names_and_nothing_else() {
        let list = "https://app.example.com, http://localhost:3000,capacitor://localhost,HTTPS://Shop.Example.com:443";
        for origin in
            ["https://app.example.com", "http://localhost:3000", "capacitor://localhost", "https://shop.example.com"]
        {
            assert!(allows(list, origin), "{origin}");
        }
        for origin in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.com",
            "https://xapp.example.com",
            "https://example.com",
            "http://localhost",
            "null",
            "",
        ] {
            assert!(!allows(list, origin), "{origin}");
        }
        assert!(allows("http://[::1]:8080", "http://[::1]:8080"));
    }

    #[test]
    fn a_star_before_a_domain_allows_all_hosts_below_it_and_not_the_domain() {
        let list = "https://*.example.com,http://*.dev.test:3000";
        for origin in ["https://a.example.com", "https://a.b-c.example.com", "http://x.dev.test:3000"] {
            assert!(allows(list, origin), "{origin}");
        }
        for origin in [
            "https://example.com",
            "https://.example.com",
            "https://aexample.com",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://evil.com/.example.com",
            "https://evil.com:1.example.com",
            "https://evil.com?.example.com",
            "https://user@a.example.com",
            "http://x.dev.test",
        ] {
            assert!(!allows(list, origin), "{origin}");
        }
    }

    #[test]
    fn a_star_alone_allows_everything_and_null_is_allowed_by_that_or_by_name() {
        assert!(allows("*", "https://any.where") && allows("*", "null"));
        assert!(allows("https://a.example,null", "null"));
        assert!(!allows("https://a.example", "null"));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for list in [
            "example.com",
            "https://",
            "https://example.com/",
            "https://example.com/app",
            "https://user@example.com",
            "https://example.com:port",
            "https://example.com:",
            "https://example.com:99999",
            "https://*",
            "https://*.",
            "https://a.*.example.com",
            "https://**.example.com",
            "https://*example.com",
            "*.example.com",
            "*://example.com",
            "https://münchen.example",
            "https://a.example,",
            "https://a.example,*",
            "https://a.example https://b.example",
            "",
        ] {
            assert!(Origins::try_from(list.to_owned()).is_err(), "{list}");
        }
    }
}
