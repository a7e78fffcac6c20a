//! `GET /openapi.yaml`: the description of the API (OpenAPI).

use hyper::Response;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};

use crate::http::admission::cors::CROSS_ORIGIN_RESOURCE_POLICY;
use crate::http::response::{ResponseBody, whole};

const DOCUMENT: &[u8] = include_bytes!("../../../openapi.yaml");

/// Pages of all origins may read it, whatever `CORS_ALLOW_ORIGINS` is: it contains nothing secret.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (CONTENT_TYPE, HeaderValue::from_static("application/yaml")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    // It changes only with the version of the server.
    (CACHE_CONTROL, HeaderValue::from_static("max-age=3600")),
    (ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    (CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin")),
];

pub(super) fn document() -> Response<ResponseBody> {
    let mut response = whole(DOCUMENT);
    response.headers_mut().extend(HEADERS);
    response
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::collections::BTreeSet;

    use hyper::StatusCode;
    use serde_json::Value;

    use super::*;
    use crate::http::error::PROBLEMS;

    /// The problem types, by status and name.
    type Kinds = BTreeSet<(u16, String)>;

    fn parsed() -> Value {
        serde_saphyr::from_slice(DOCUMENT).unwrap()
    }

    /// The problem types in `error.rs`: a status, followed by the name.
    fn of_the_source() -> Kinds {
        let source = include_str!("../error.rs");
        let pieces: Vec<_> = source.split('"').collect();
        let status_and_name = |pair: &[&str]| {
            let before = pair[0].trim_end().strip_suffix(',')?;
            let status = match before.rsplit(|char: char| !char.is_ascii_uppercase() && char != '_').next()? {
                "BAD" => StatusCode::BAD_REQUEST,
                "UNAVAILABLE" => StatusCode::SERVICE_UNAVAILABLE,
                "NOT_FOUND" => StatusCode::NOT_FOUND,
                "METHOD_NOT_ALLOWED" => StatusCode::METHOD_NOT_ALLOWED,
                "RANGE_NOT_SATISFIABLE" => StatusCode::RANGE_NOT_SATISFIABLE,
                "UNPROCESSABLE_ENTITY" => StatusCode::UNPROCESSABLE_ENTITY,
                "FORBIDDEN" => StatusCode::FORBIDDEN,
                "UNAUTHORIZED" => StatusCode::UNAUTHORIZED,
                "TOO_MANY_REQUESTS" => StatusCode::TOO_MANY_REQUESTS,
                "UNSUPPORTED_MEDIA_TYPE" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "PAYLOAD_TOO_LARGE" => StatusCode::PAYLOAD_TOO_LARGE,
                "REQUEST_TIMEOUT" => StatusCode::REQUEST_TIMEOUT,
                "INTERNAL_SERVER_ERROR" => StatusCode::INTERNAL_SERVER_ERROR,
                "" => return None,
                other => panic!("{other} before {:?}", pair[1]),
            };
            Some((status.as_u16(), pair[1].to_owned()))
        };
        pieces.windows(2).filter_map(status_and_name).collect()
    }

    /// The problem types in the document.
    fn of_the_document(document: &Value) -> Kinds {
        let responses = document["components"]["responses"].as_object().unwrap().values();
        let schemas = responses.filter_map(|response| response["content"].get("application/problem+json"));
        let kinds = schemas.flat_map(|content| {
            let properties = &content["schema"]["properties"];
            let status = properties["status"]["const"].as_u64().unwrap() as u16;
            let names = properties["type"]["enum"].as_array().unwrap().iter().map(move |uri| {
                let name = uri.as_str().unwrap().strip_prefix("tag:netwatch-server,2026:").unwrap();
                (status, name.to_owned())
            });
            names.collect::<Vec<_>>()
        });
        kinds.collect()
    }

    #[test]
    fn the_document_lists_exactly_the_problem_types() {
        let kinds = of_the_source();
        for known in [(400, "empty"), (404, "not-found"), (503, "stopping")] {
            assert!(kinds.contains(&(known.0, known.1.to_owned())), "{kinds:?}");
        }
        assert_eq!(of_the_document(&parsed()), kinds);
        let names: BTreeSet<_> = kinds.into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, PROBLEMS.iter().map(|name| name.to_string()).collect(), "the log counts them");
    }

    #[test]
    fn the_documentation_lists_every_problem_type() {
        let text = include_str!("../../../docs/http-api.md");
        for (status, name) in of_the_source() {
            let is_row = |row: &&str| row.starts_with("| ") && row.contains(&status.to_string());
            let mut rows = text.lines().filter(is_row);
            assert!(rows.any(|row| row.contains(&format!("`{name}`"))), "docs/http-api.md lacks {status} {name}");
        }
    }

    #[test]
    fn responses_in_the_document_are_listed_under_their_own_status() {
        let document = parsed();
        let items = document["paths"].as_object().unwrap().values();
        let items = items.chain(document["components"]["pathItems"].as_object().unwrap().values());
        let operations = items.flat_map(|item| item.as_object().unwrap().values()).filter(|it| it.is_object());
        let mut refusals = 0;
        for (status, response) in operations.flat_map(|operation| operation["responses"].as_object().unwrap()) {
            let Some(name) = response["$ref"].as_str() else { continue };
            let name = name.strip_prefix("#/components/responses/").unwrap();
            let content = &document["components"]["responses"][name]["content"];
            let Some(problem) = content.get("application/problem+json") else { continue };
            let said = &problem["schema"]["properties"]["status"]["const"];
            assert_eq!(said.to_string(), *status, "{name}");
            refusals += 1;
        }
        assert!(refusals > 0);
    }

    #[test]
    fn the_document_has_the_version_of_the_server() {
        assert_eq!(parsed()["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
