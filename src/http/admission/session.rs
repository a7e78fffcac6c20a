//! Sessions of the web page: a cookie that proves that the browser has sent the admin token.
//!
//! ```text
//! netwatch_session=1798761600.kDZ8…
//!                  └ expiry ┘ └ HMAC-SHA256 of the expiry, with a key from the admin token
//! ```
//!
//! The server stores nothing. A cookie is valid on all servers with the same token, also after a restart, and until the
//! token changes. It permits what the token permits: reading.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hyper::header::{COOKIE, HeaderMap, HeaderName, HeaderValue};
use subtle::ConstantTimeEq;

use crate::config::{Access, AdminToken};

const NAME: &str = "netwatch_session";
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Maximum number of cookies of this name that are checked. Browsers send one.
const MAX_COOKIES: usize = 4;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The value of `Set-Cookie` for a new session. `None` if there is no token, and everybody may read.
pub(super) fn cookie(token: &AdminToken, is_https: bool) -> Option<HeaderValue> {
    let expiry = seconds(SystemTime::now() + LIFETIME);
    let mac = BASE64_URL_SAFE_NO_PAD.encode(token.mac(&message(expiry))?);
    Some(set_cookie(&format!("{expiry}.{mac}"), LIFETIME, is_https))
}

/// The value of `Set-Cookie` that ends a session.
pub(in crate::http) fn removal(is_https: bool) -> HeaderValue {
    set_cookie("", Duration::ZERO, is_https)
}

fn set_cookie(value: &str, age: Duration, is_https: bool) -> HeaderValue {
    let secure = if is_https { "; Secure" } else { "" };
    let age = age.as_secs();
    let cookie = format!("{NAME}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
    cookie.try_into().expect("it is printable ASCII")
}

/// Checks the cookie of a request. A session that has expired counts as none.
pub(super) fn check(token: &AdminToken, headers: &HeaderMap) -> Access {
    if is_cross_origin(headers) {
        return Access::Missing;
    }
    let now = seconds(SystemTime::now());
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let cookies = lines.flat_map(|line| line.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    let values = cookies.filter(|(name, value)| *name == NAME && !value.is_empty()).map(|(_, value)| value);
    let mut access = Access::Missing;
    for value in values.take(MAX_COOKIES) {
        match is_valid(token, value, now) {
            Some(true) => return Access::Granted,
            Some(false) => access = Access::Wrong,
            None => {}
        }
    }
    access
}

/// Whether a page of another origin has caused the request. `SameSite=Strict` does not exclude other ports of the host
/// and other hosts of the domain.
pub(in crate::http) fn is_cross_origin(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none")
}

/// `None` if it was valid and has expired.
fn is_valid(token: &AdminToken, value: &str, now: u64) -> Option<bool> {
    let parts = value.split_once('.').and_then(|(expiry, mac)| {
        let mac = BASE64_URL_SAFE_NO_PAD.decode(mac).ok()?;
        Some((expiry.parse().ok()?, mac))
    });
    let Some((expiry, mac)) = parts else { return Some(false) };
    let is_authentic = token.mac(&message(expiry)).is_some_and(|expected| expected[..].ct_eq(&mac).into());
    match is_authentic && expiry <= now {
        true => None,
        false => Some(is_authentic),
    }
}

fn message(expiry: u64) -> Vec<u8> {
    format!("session until {expiry}").into_bytes()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn token(text: &str) -> AdminToken {
        AdminToken::try_from(text.to_owned()).unwrap()
    }

    fn with_cookies(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (COOKIE, HeaderValue::from_str(line).unwrap())).collect()
    }

    fn new_cookie(token: &AdminToken) -> String {
        let cookie = cookie(token, false).unwrap();
        cookie.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    #[test]
    fn a_session_is_valid_on_every_server_with_the_same_token_and_on_no_other() {
        let (one, same, other) = (token("0123456789abcdef"), token("0123456789abcdef"), token("0123456789abcdeF"));
        let cookie = new_cookie(&one);
        for line in [cookie.clone(), format!("a=b; {cookie}; c=d"), format!("{NAME}=x; {cookie}")] {
            assert_eq!(check(&same, &with_cookies(&[&line])), Access::Granted, "{line}");
        }
        assert_eq!(check(&same, &with_cookies(&["a=b", &cookie])), Access::Granted);
        assert_eq!(check(&other, &with_cookies(&[&cookie])), Access::Wrong);
        assert_eq!(check(&token("auto"), &with_cookies(&[&cookie])), Access::Wrong);
        one.replace_with(&other);
        assert_eq!(check(&one, &with_cookies(&[&cookie])), Access::Wrong);
    }

    #[test]
    fn a_changed_cookie_is_wrong_and_an_expired_one_counts_as_none() {
        let token = token("0123456789abcdef");
        let cookie = new_cookie(&token);
        let (expiry, mac) = cookie.strip_prefix("netwatch_session=").unwrap().split_once('.').unwrap();
        let expiry: u64 = expiry.parse().unwrap();
        let longer = format!("{NAME}={}.{mac}", expiry + 1);
        for wrong in
            [&*longer, &cookie[..cookie.len() - 1], "netwatch_session=.", "netwatch_session=1", &format!("{cookie}A")]
        {
            assert_eq!(check(&token, &with_cookies(&[wrong])), Access::Wrong, "{wrong}");
        }
        assert_eq!(is_valid(&token, &format!("{expiry}.{mac}"), expiry - 1), Some(true));
        assert_eq!(is_valid(&token, &format!("{expiry}.{mac}"), expiry), None);
        for missing in ["", "netwatch_session=", "other=1.2"] {
            assert_eq!(check(&token, &with_cookies(&[missing])), Access::Missing, "{missing}");
        }
    }

    #[test]
    fn a_session_does_not_count_for_pages_of_other_origins() {
        let token = token("0123456789abcdef");
        let mut headers = with_cookies(&[&new_cookie(&token)]);
        for (site, access) in [
            ("same-origin", Access::Granted),
            ("none", Access::Granted),
            ("same-site", Access::Missing),
            ("cross-site", Access::Missing),
        ] {
            headers.insert(SEC_FETCH_SITE, HeaderValue::from_static(site));
            assert_eq!(check(&token, &headers), access, "{site}");
        }
    }

    #[test]
    fn scripts_and_other_sites_cannot_use_the_cookie_and_https_keeps_it_to_itself() {
        let token = token("0123456789abcdef");
        for (is_https, end) in [(false, "Strict"), (true, "Strict; Secure")] {
            let cookie = cookie(&token, is_https).unwrap();
            let cookie = cookie.to_str().unwrap();
            assert!(cookie.ends_with(&format!("; Path=/; Max-Age=2592000; HttpOnly; SameSite={end}")), "{cookie}");
        }
        assert!(removal(false).to_str().unwrap().starts_with("netwatch_session=; Path=/; Max-Age=0; "));
    }
}
