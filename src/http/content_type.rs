//! Which bodies are taken, going by what they are said to be.
//!
//! A body tells by itself whether it holds reports. So any type will do that JSON is sent with, on purpose or for want
//! of a better one: browsers send strings as `text/plain`, and curl sends what `-d` gives it as a form.

use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use mediatype::names::{CHARSET, FORM_DATA, MULTIPART, TEXT};
use mediatype::{MediaType, ReadParams};

use super::refusal::Refusal;

/// What nearly all clients send. Each of them would pass the check, too.
const USUAL: [&[u8]; 3] = [b"application/json", b"text/plain;charset=UTF-8", b"application/x-www-form-urlencoded"];

/// Those without JSON in their names. `csp-report` is what browsers send to the `report-uri` of a content security
/// policy: a JSON object.
const OTHERS: [&str; 3] = ["application/x-www-form-urlencoded", "application/octet-stream", "application/csp-report"];

/// Checks that a body with these headers may be JSON in UTF-8.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    if value.is_empty() || USUAL.contains(&value.as_bytes()) {
        return Ok(());
    }
    let text = value.to_str().map_err(|_| Refusal::ContentType { essence: None })?;
    let media_type = MediaType::parse(text).map_err(|_| Refusal::ContentType { essence: None })?;
    if media_type.ty == MULTIPART && media_type.subty == FORM_DATA {
        return Err(Refusal::FormData);
    }
    if !may_be_json(&media_type) {
        return Err(Refusal::ContentType { essence: Some(media_type.essence().to_string()) });
    }
    match media_type.get_param(CHARSET) {
        Some(charset) if !is_utf8(&charset.unquoted_str()) => {
            Err(Refusal::Charset { charset: charset.unquoted_str().into_owned() })
        }
        _ => Ok(()),
    }
}

fn may_be_json(media_type: &MediaType<'_>) -> bool {
    // `application/json`, those that end in `+json`, and all that NDJSON is called.
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

    fn checked(content_type: &[u8]) -> Result<(), Refusal> {
        check(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_bytes(content_type).unwrap())]))
    }

    #[test]
    fn whatever_json_is_sent_with_is_taken() {
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
    fn a_type_that_json_is_not_sent_with_is_refused_by_its_name() {
        assert!(matches!(checked(b"multipart/form-data; boundary=x"), Err(Refusal::FormData)));
        assert!(matches!(checked(b"Multipart/Form-Data"), Err(Refusal::FormData)));
        for content_type in ["application/xml", "application/x-protobuf", "image/svg+xml", "multipart/mixed"] {
            let refused = checked(format!("{content_type}; q=1").as_bytes());
            assert!(
                matches!(&refused, Err(Refusal::ContentType { essence: Some(essence) }) if essence == content_type),
                "{refused:?}"
            );
        }
        for malformed in [&b"json"[..], b"/", b"application/", b"application/json; charset", b"application/json\xff"] {
            let refused = checked(malformed);
            assert!(matches!(refused, Err(Refusal::ContentType { essence: None })), "{refused:?}");
        }
    }

    #[test]
    fn a_charset_other_than_utf_8_is_refused() {
        for content_type in
            ["application/json; charset=iso-8859-1", "text/plain;charset=\"utf-16\"", "text/x;charset=\"\""]
        {
            let refused = checked(content_type.as_bytes());
            assert!(matches!(refused, Err(Refusal::Charset { .. })), "{content_type}: {refused:?}");
        }
    }
}
