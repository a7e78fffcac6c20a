//! The write key of a request.

use std::borrow::Cow;

use hyper::Request;
use hyper::header::{AUTHORIZATION, HeaderName};

use crate::config::{WriteKey, WriteKeys};
use crate::http::error::ApiError;

const HEADER: HeaderName = HeaderName::from_static("x-write-key");

/// The URL parameter for clients that cannot set headers, such as `sendBeacon`.
const PARAMETER: &str = "key";

/// Checks the write key of a request. Returns it, or `None` if the server has no write keys.
pub(super) fn check<B>(keys: &WriteKeys, request: &Request<B>) -> Result<Option<WriteKey>, ApiError> {
    if keys.is_empty() {
        return Ok(None);
    }
    let presented = presented(request).ok_or(ApiError::KeyMissing)?;
    keys.find(&presented).map(Some).ok_or(ApiError::KeyWrong)
}

/// The key in the first of the three places that contains one.
fn presented<B>(request: &Request<B>) -> Option<Cow<'_, [u8]>> {
    let headers = request.headers();
    let header = || Some(Cow::Borrowed(headers.get(HEADER)?.as_bytes()));
    let bearer = || {
        let value = headers.get(AUTHORIZATION)?.as_bytes();
        let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| Cow::Borrowed(token.trim_ascii()))
    };
    let parameter = || {
        let mut parameters = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        parameters.find(|(name, _)| name == PARAMETER).map(|(_, value)| Cow::Owned(value.into_owned().into_bytes()))
    };
    header().or_else(bearer).or_else(parameter)
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef";
    const TWO: &str = "fedcba9876543210-._~+/=";

    fn check_with(list: &str, target: &str, headers: &[(&str, &str)]) -> Result<Option<WriteKey>, &'static str> {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let keys = WriteKeys::try_from(list.to_owned()).unwrap();
        check(&keys, &request.body(()).unwrap()).map_err(|error| match error {
            ApiError::KeyMissing => "missing",
            ApiError::KeyWrong => "wrong",
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_key_is_read_from_a_header_as_bearer_token_or_as_parameter() {
        let check = |target: &str, headers: &[(&str, &str)]| check_with(&format!("{ONE}, {TWO}"), target, headers);
        assert_eq!(check("/", &[("x-write-key", ONE)]).unwrap().as_deref(), Some(ONE));
        assert_eq!(check("/", &[("authorization", &format!("Bearer {TWO}"))]).unwrap().as_deref(), Some(TWO));
        assert_eq!(check("/", &[("authorization", &format!("bearer  {ONE} "))]).unwrap().as_deref(), Some(ONE));
        assert_eq!(check(&format!("/?a=b&key={ONE}"), &[]).unwrap().as_deref(), Some(ONE));
        let escaped = format!("/?key={}", form_urlencoded::byte_serialize(TWO.as_bytes()).collect::<String>());
        assert_eq!(check(&escaped, &[]).unwrap().as_deref(), Some(TWO));
        for headers in [&[][..], &[("authorization", "Basic dTpw")], &[("authorization", "Bearer")]] {
            assert_eq!(check("/?keys=x", headers), Err("missing"), "{headers:?}");
        }
        assert_eq!(check("/", &[("x-write-key", "x")]), Err("wrong"));
        assert_eq!(
            check(&format!("/?key={ONE}"), &[("x-write-key", "x")]),
            Err("wrong"),
            "the header takes precedence"
        );
    }

    #[test]
    fn without_keys_every_request_may_send() {
        assert_eq!(check_with("none", "/", &[]), Ok(None));
        assert_eq!(check_with("none", "/?key=x", &[("x-write-key", "x")]), Ok(None));
    }
}
