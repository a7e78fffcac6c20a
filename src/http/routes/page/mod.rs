//! The web page at `/`, which shows what the read endpoints return. Its files are part of the binary.
//!
//! The page contains no data, so it is public. It loads nothing from elsewhere, and inserts reports as text only.

use std::hash::{DefaultHasher, Hasher};
use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};

use crate::http::response::ResponseBody;

/// What the page may do: load its own files, and send requests to its own server. Trusted types keep its scripts from
/// turning text into HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    // A browser asks each time, so that all files of the page are of one version.
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The files of the page, by path.
const ASSETS: [(&str, &str, &str); 14] = [
    ("/", HTML, include_str!("index.html")),
    ("/page/analysis.js", JS, include_str!("analysis.js")),
    ("/page/api.js", JS, include_str!("api.js")),
    ("/page/chart.js", JS, include_str!("chart.js")),
    ("/page/dom.js", JS, include_str!("dom.js")),
    ("/page/files.js", JS, include_str!("files.js")),
    ("/page/format.js", JS, include_str!("format.js")),
    ("/page/icon.svg", SVG, include_str!("icon.svg")),
    ("/page/live.js", JS, include_str!("live.js")),
    ("/page/page.js", JS, include_str!("page.js")),
    ("/page/paths.js", JS, include_str!("paths.js")),
    ("/page/stream.js", JS, include_str!("stream.js")),
    ("/page/style.css", CSS, include_str!("style.css")),
    ("/page/tail.js", JS, include_str!("tail.js")),
];

/// The strong entity tag of every file: a change of one file changes all tags, so that a browser never mixes two versions.
static TAG: LazyLock<HeaderValue> = LazyLock::new(|| {
    let mut hasher = DefaultHasher::new();
    for (.., content) in ASSETS {
        hasher.write(content.as_bytes());
    }
    HeaderValue::try_from(format!("\"{:016x}\"", hasher.finish())).expect("hexadecimal digits are valid in a header")
});

/// A file of the page.
#[derive(Debug)]
pub(super) struct Asset {
    content_type: &'static str,
    content: &'static str,
}

pub(super) fn asset(path: &str) -> Option<Asset> {
    let (_, content_type, content) = *ASSETS.iter().find(|(known, ..)| *known == path)?;
    Some(Asset { content_type, content })
}

impl Asset {
    /// The file, or 304 if the client has it already.
    pub(super) fn response(&self, request: &HeaderMap) -> Response<ResponseBody> {
        let is_known = request.get(IF_NONE_MATCH).is_some_and(|tags| contains(tags, &TAG));
        let mut response = Response::<ResponseBody>::default();
        response.headers_mut().extend(HEADERS);
        response.headers_mut().insert(ETAG, TAG.clone());
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
            *response.body_mut() = ResponseBody::Whole(Full::new(Bytes::from_static(self.content.as_bytes())));
        }
        response
    }
}

/// Whether a list of entity tags contains this one, also as the weak tag that a proxy which compresses makes of it.
fn contains(tags: &HeaderValue, tag: &HeaderValue) -> bool {
    let (tags, tag) = (tags.as_bytes(), tag.as_bytes());
    tags.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|one| one.strip_prefix(b"W/").unwrap_or(one) == tag)
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn get(path: &str, if_none_match: Option<&str>) -> Response<ResponseBody> {
        let mut headers = HeaderMap::new();
        headers.extend(if_none_match.map(|tags| (IF_NONE_MATCH, HeaderValue::from_str(tags).unwrap())));
        asset(path).unwrap().response(&headers)
    }

    #[test]
    fn every_file_of_the_directory_is_served_under_its_name() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/routes/page");
        let mut served: Vec<_> = ASSETS.iter().map(|(path, ..)| path.trim_start_matches("/page/").to_owned()).collect();
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<_> =
            files.filter(|name| name != "mod.rs").map(|name| name.replace("index.html", "/")).collect();
        served.sort();
        files.sort();
        assert_eq!(served, files);
    }

    #[test]
    fn a_module_imports_only_files_that_are_served() {
        for (path, _, content) in ASSETS.iter().filter(|(_, content_type, _)| *content_type == JS) {
            let imports = content.lines().filter_map(|line| line.strip_prefix("import ")?.split('"').nth(1));
            for import in imports {
                assert!(asset(&import.replace("./", "/page/")).is_some(), "{path} imports {import}");
            }
        }
        for path in asset("/").unwrap().content.split('"').filter(|text| text.starts_with("page/")) {
            assert!(asset(&format!("/{path}")).is_some(), "index.html loads {path}");
        }
    }

    #[test]
    fn other_paths_have_no_file() {
        for path in ["", "/page", "/page/", "/page/mod.rs", "/page/../mod.rs", "/index.html", "//"] {
            assert!(asset(path).is_none(), "{path}");
        }
    }

    #[test]
    fn a_client_with_the_current_version_gets_304() {
        let response = get("/", None);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], HTML);
        let tag = response.headers()[ETAG].to_str().unwrap().to_owned();
        for tags in [tag.clone(), format!("\"other\", {tag}"), format!("W/{tag}")] {
            let response = get("/page/page.js", Some(&tags));
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{tags}");
            assert_eq!(response.headers()[ETAG], tag);
            assert!(response.headers().contains_key(CONTENT_SECURITY_POLICY));
        }
        assert_eq!(get("/", Some("\"other\"")).status(), StatusCode::OK);
    }

    #[test]
    fn the_policy_permits_nothing_from_other_origins_and_nothing_inline() {
        for directive in POLICY.split(';') {
            let mut words = directive.split_whitespace().skip(1);
            assert!(words.all(|word| ["'none'", "'self'", "'script'"].contains(&word)), "{directive}");
        }
    }
}
