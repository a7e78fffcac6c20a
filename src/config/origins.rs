//! Origins of web pages, as the setting `CORS_ALLOW_ORIGINS` lists them.

use hyper::http::uri::Authority;
use serde::Deserialize;

/// The origins whose pages may send reports.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Origins(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Any,
    /// One origin, written as browsers send it.
    One(String),
    /// All subdomains of a domain, but not the domain itself.
    Subdomains {
        /// Scheme, including `://`.
        scheme: String,
        /// Domain, with the dot before it and the port after it.
        domain: String,
    },
}

/// The text is not an origin.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an origin: {0:?}")]
pub struct InvalidOrigin(String);

impl TryFrom<String> for Origins {
    type Error = InvalidOrigin;

    fn try_from(list: String) -> Result<Self, InvalidOrigin> {
        if list == "*" {
            return Ok(Self(vec![Pattern::Any]));
        }
        let pattern = |text: &str| Pattern::parse(text.trim()).ok_or_else(|| InvalidOrigin(text.to_owned()));
        list.split(',').map(pattern).collect::<Result<_, _>>().map(Self)
    }
}

impl Origins {
    /// Whether pages of this origin may send reports. `origin` is the value of the `Origin` header.
    #[must_use]
    pub fn allow(&self, origin: &[u8]) -> bool {
        self.0.iter().any(|pattern| pattern.allows(origin))
    }
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        if text == "null" {
            return Some(Self::One(text));
        }
        let (scheme, rest) = text.split_once("://")?;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(is_scheme) {
            return None;
        }
        let (rest, is_wildcard) = rest.strip_prefix("*.").map_or((rest, false), |domain| (domain, true));
        let authority: Authority = rest.parse().ok()?;
        let (host, port) = (authority.host(), authority.port_u16());
        if host.is_empty() || !host.bytes().all(|byte| is_host(byte) || b"[:]".contains(&byte)) {
            return None;
        }
        let host_and_port = match (scheme, port) {
            ("https", Some(443)) | ("http", Some(80)) => host.to_owned(), // browsers omit the default port
            (_, Some(port)) => format!("{host}:{port}"),
            (_, None) => host.to_owned(),
        };
        // Rejects user names and malformed ports.
        if authority.as_str() != host && port.is_none_or(|port| authority.as_str() != format!("{host}:{port}")) {
            return None;
        }
        Some(match is_wildcard {
            true => Self::Subdomains { scheme: format!("{scheme}://"), domain: format!(".{host_and_port}") },
            false => Self::One(format!("{scheme}://{host_and_port}")),
        })
    }

    fn allows(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::One(one) => origin == one.as_bytes(),
            Self::Subdomains { scheme, domain } => {
                let host = origin.strip_prefix(scheme.as_bytes()).and_then(|rest| rest.strip_suffix(domain.as_bytes()));
                // Host characters only. Otherwise `https://evil.com/.example.com` would match `*.example.com`.
                host.is_some_and(|host| !host.is_empty() && host.iter().copied().all(is_host))
            }
        }
    }
}

fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte)
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn allows(list: &str, origin: &str) -> bool {
        Origins::try_from(list.to_owned()).unwrap().allow(origin.as_bytes())
    }

    #[test]
    fn a_list_allows_the_origins_that_it_names_and_no_others() {
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
    fn a_wildcard_allows_all_subdomains_but_not_the_domain_itself() {
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
    fn a_star_allows_every_origin_and_null_can_be_listed() {
        assert!(allows("*", "https://any.where") && allows("*", "null"));
        assert!(allows("https://a.example,null", "null"));
        assert!(!allows("https://a.example", "null"));
    }

    #[test]
    fn text_that_is_not_an_origin_is_refused() {
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
