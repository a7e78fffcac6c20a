//! The accepted content types.
//!
//! The body itself shows whether it contains reports. So the server accepts every type that clients use for JSON, also
//! by default: browsers send strings as `text/plain`, and `curl -d` sends the type of a form.

use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use mediatype::names::{CHARSET, FORM_DATA, MULTIPART, TEXT};
use mediatype::{MediaType, ReadParams};

use crate::http::error::ApiError;

/// The types that almost all clients send. A shortcut: they would also pass the full check.
const USUAL: [&[u8]; 3] = [b"application/json", b"text/plain;charset=UTF-8", b"application/x-www-form-urlencoded"];

/// Accepted types without `json` in their names. Browsers send a JSON object as `csp-report` to the `report-uri` of a
/// content security policy.
const OTHERS: [&str; 3] = ["application/x-www-form-urlencoded", "application/octet-stream", "application/csp-report"];

/// Checks that a body with these headers can be JSON in UTF-8.
pub(in crate::http) fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    if value.is_empty() || USUAL.contains(&value.as_bytes()) {
        return Ok(());
    }
    let text = value.to_str().map_err(|_| ApiError::ContentType { essence: None })?;
    let media_type = MediaType::parse(text).map_err(|_| ApiError::ContentType { essence: None })?;
    if media_type.ty == MULTIPART && media_type.subty == FORM_DATA {
        return Err(ApiError::FormData);
    }
    if !may_be_json(&media_type) {
        return Err(ApiError::ContentType { essence: Some(media_type.essence().to_string()) });
    }
    match media_type.get_param(CHARSET) {
        Some(charset) if !is_utf8(&charset.unquoted_str()) => {
            Err(ApiError::Charset { charset: charset.unquoted_str().into_owned() })
        }
        _ => Ok(()),
    }
}

fn may_be_json(media_type: &MediaType<'_>) -> bool {
    // `application/json`, types that end with `+json`, and all names of NDJSON.
    let names = [Some(media_type.subty), media_type.suffix];
    names.into_iter().flatten().any(|name| name.as_str().to_ascii_lowercase().contains("json"))
        || media_type.ty == TEXT
        || OTHERS.iter().any(|other| media_type.essence().to_string().eq_ignore_ascii_case(other))
}

fn is_utf8(charset: &str) -> bool {
    ["utf-8", "utf8", "us-ascii"].iter().any(|name| charset.eq_ignore_ascii_case(name))
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn checked(content_type: &[u8]) -> Result<(), ApiError> {
        check(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_bytes(content_type).unwrap())]))
    }

    #[test]
    fn every_type_that_clients_use_for_json_is_accepted() {
        assert!(check(&HeaderMap::new()).is_ok());
        for content_type in [
            "",
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON;Charset=\"UTF-8\"",
            "application/json;profile=\"a;b\" ; charset=utf8",
            "application/json;",
            "application/reports+json",
            "application/vnd.api+json;charset=utf-8",
            "application/csp-report",
            "application/x-ndjson",
            "application/ndjson",
            "application/jsonl",
            "text/json",
            "text/plain",
            "text/plain;charset=UTF-8",
            "text/plain; charset=us-ascii",
            "application/x-www-form-urlencoded",
            "application/x-www-form-urlencoded; charset=UTF-8",
            "application/octet-stream",
        ] {
            assert!(checked(content_type.as_bytes()).is_ok(), "{content_type}");
        }
    }

    #[test]
    fn other_types_are_refused_by_name() {
        assert!(matches!(checked(b"multipart/form-data; boundary=x"), Err(ApiError::FormData)));
        assert!(matches!(checked(b"Multipart/Form-Data"), Err(ApiError::FormData)));
        for content_type in ["application/xml", "application/x-protobuf", "image/svg+xml", "multipart/mixed"] {
            let error = checked(format!("{content_type}; q=1").as_bytes());
            assert!(
                matches!(&error, Err(ApiError::ContentType { essence: Some(essence) }) if essence == content_type),
                "{error:?}"
            );
        }
        for malformed in [&b"json"[..], b"/", b"application/", b"application/json; charset", b"application/json\xff"] {
            let error = checked(malformed);
            assert!(matches!(error, Err(ApiError::ContentType { essence: None })), "{error:?}");
        }
    }

    #[test]
    fn a_charset_other_than_utf_8_is_refused() {
        for content_type in
            ["application/json; charset=iso-8859-1", "text/plain;charset=\"utf-16\"", "text/x;charset=\"\""]
        {
            let error = checked(content_type.as_bytes());
            assert!(matches!(error, Err(ApiError::Charset { .. })), "{content_type}: {error:?}");
        }
    }
}
