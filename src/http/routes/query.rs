//! `GET /api/v1/reports`, `/api/v1/stats` and `/api/v1/reports/tail`: parameters become the arguments of a child process.

use std::ffi::OsString;

use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue,
    TE, TRAILER, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};

use super::event_stream;
use super::parameters::Parameters;
use crate::http::conn::RequestContext;
use crate::http::error::ApiError;
use crate::http::queries::Kind;
use crate::http::response::{NETWATCH_STATUS, ResponseBody};

/// One kind of query.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The command of the child.
    command: &'static str,
    kind: Kind,
    /// The parameters. They are options of the command with the same names, except for `format` and `operand`.
    parameters: &'static [&'static str],
    /// The parameter that is the operand of the command.
    operand: &'static str,
    is_operand_required: bool,
    /// The formats and their content types. The first one is the default. None: server-sent events.
    formats: &'static [(&'static str, (&'static str, &'static str))],
}

const NDJSON: &str = "application/x-ndjson";
const JSON: &str = "application/json";
const CSV: &str = "text/csv; charset=utf-8";

pub(super) static REPORTS: Endpoint = Endpoint {
    command: "query",
    kind: Kind::Query,
    parameters: &["since", "until", "time", "order", "limit", "format", "filter"],
    operand: "filter",
    is_operand_required: false,
    formats: &[("ndjson", ("ndjson", NDJSON)), ("json", ("json", JSON)), ("csv", ("csv", CSV))],
};

pub(super) static STATS: Endpoint = Endpoint {
    command: "stats",
    kind: Kind::Query,
    parameters: &[
        "path",
        "by",
        "step",
        "quantiles",
        "errors",
        "distinct",
        "top",
        "where",
        "since",
        "until",
        "time",
        "format",
    ],
    operand: "path",
    is_operand_required: true,
    formats: &[
        ("json", ("json", JSON)),
        ("csv", ("csv", CSV)),
        ("svg", ("svg", "image/svg+xml")),
        ("table", ("table", "text/plain; charset=utf-8")),
    ],
};

pub(super) static TAIL: Endpoint = Endpoint {
    command: "tail",
    kind: Kind::Tail,
    parameters: &["filter"],
    operand: "filter",
    is_operand_required: false,
    formats: &[],
};

impl Endpoint {
    /// The arguments of the child, without its encoding, and the content type.
    fn arguments(&self, query: Option<&str>) -> Result<(Vec<OsString>, Option<&'static str>), ApiError> {
        let parameters = Parameters::parse(query, self.parameters)?;
        let (format, content_type) = match self.formats {
            [] => ("sse", None),
            formats => parameters.word("format", formats).map(|(format, content_type)| (format, Some(content_type)))?,
        };
        let mut arguments: Vec<OsString> = vec![format!("--format={format}").into()];
        if self.kind == Kind::Tail {
            arguments.push("--follow".into());
        }
        let options = parameters.iter().filter(|(name, _)| *name != self.operand && *name != "format");
        arguments.extend(options.map(|(name, value)| OsString::from(format!("--{name}={value}"))));
        match parameters.get(self.operand) {
            // An operand can begin with a hyphen.
            Some(operand) => arguments.extend(["--".into(), operand.into()]),
            None if self.is_operand_required => {
                return Err(ApiError::BadQuery(format!("The parameter {} is missing.", self.operand)));
            }
            None => {}
        }
        Ok((arguments, content_type))
    }
}

pub(super) async fn get(
    context: &RequestContext<'_>,
    request: &Request<Incoming>,
    endpoint: &Endpoint,
) -> Result<Response<ResponseBody>, ApiError> {
    let (mut arguments, content_type) = endpoint.arguments(request.uri().query())?;
    let encoding = content_type.and_then(|_| encoding(request.headers()));
    if let Some(encoding) = encoding {
        arguments.insert(0, format!("--compress={encoding}").into());
    }
    let mut response = head(content_type, encoding);
    if request.method() == Method::HEAD {
        return Ok(response);
    }
    // From now on, a client that goes away is noticed, and the query ends.
    context.start_stream();
    let app = &context.connection.app;
    let started = async {
        let mut query = app.queries.start(endpoint.kind, endpoint.command, arguments).await?;
        // A tail may have to wait for the first report.
        let first = match endpoint.kind {
            Kind::Query => Some(query.first().await?),
            Kind::Tail => query.first_of_tail().await?,
        };
        Ok::<_, ApiError>((query, first))
    };
    let (query, first) = tokio::select! {
        started = started => started?,
        () = context.left() => return Err(ApiError::Leaving),
    };
    let has_trailers = request.headers().get_all(TE).iter().any(|te| {
        te.to_str().is_ok_and(|te| te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
    });
    let (writer, body) = context.stream(None);
    *response.body_mut() = body;
    tokio::spawn(query.relay(first, writer, has_trailers));
    Ok(response)
}

fn head(content_type: Option<&'static str>, encoding: Option<&'static str>) -> Response<ResponseBody> {
    let Some(content_type) = content_type else { return event_stream(StatusCode::OK) };
    let mut response = Response::<ResponseBody>::default();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A chart contains text from reports, and a browser would show it as a page.
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; sandbox");
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    headers.insert(TRAILER, NETWATCH_STATUS.into());
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.extend(encoding.map(|encoding| (CONTENT_ENCODING, HeaderValue::from_static(encoding))));
    response
}

/// The best encoding that the client accepts by name. `*` alone is no reason to compress.
fn encoding(headers: &HeaderMap) -> Option<&'static str> {
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    let accepted = lines.flat_map(|line| line.split(',')).filter_map(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next()?;
        let is_refused = parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.trim().parse() == Ok(0.0)));
        (!is_refused).then_some(name)
    });
    let accepted: Vec<_> = accepted.collect();
    ["zstd", "gzip"].into_iter().find(|name| accepted.iter().any(|accepted| accepted.eq_ignore_ascii_case(name)))
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn arguments(endpoint: &Endpoint, query: &str) -> String {
        match endpoint.arguments(Some(query)) {
            Ok((arguments, content_type)) => {
                let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
                format!("{} | {}", arguments.join(" "), content_type.unwrap_or("events"))
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn parameters_become_options_and_the_filter_an_operand() {
        assert_eq!(arguments(&REPORTS, ""), "--format=ndjson | application/x-ndjson");
        assert_eq!(
            arguments(&REPORTS, "filter=--dir%3D/etc&limit=-5&since=1h&format=csv"),
            "--format=csv --limit=-5 --since=1h -- --dir=/etc | text/csv; charset=utf-8"
        );
        assert_eq!(arguments(&REPORTS, "format=xml"), "The parameter format is not one of: ndjson, json, csv.");
        assert_eq!(arguments(&TAIL, "filter=.a"), "--format=sse --follow -- .a | events");
        assert!(arguments(&TAIL, "since=1h").starts_with("There is no parameter"));
        assert_eq!(arguments(&STATS, "by=.a"), "The parameter path is missing.");
        assert_eq!(
            arguments(&STATS, "path=.a&where=.b&top=3"),
            "--format=json --where=.b --top=3 -- .a | application/json"
        );
        for endpoint in [&REPORTS, &STATS, &TAIL] {
            for other in ["dir=/etc", "child=", "compress=gzip", "--child="] {
                assert!(arguments(endpoint, other).starts_with("There is no parameter"), "{other}");
            }
        }
    }

    #[test]
    fn zstd_is_preferred_and_a_weight_of_0_refuses() {
        let encoding = |accept: &'static str| {
            encoding(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accept))]))
        };
        assert_eq!(encoding("gzip, deflate, br, zstd"), Some("zstd"));
        assert_eq!(encoding("GZIP;q=0.5"), Some("gzip"));
        assert_eq!(encoding("zstd;q=0, gzip;q=1"), Some("gzip"));
        assert_eq!(encoding("gzip;q=0.000"), None);
        for none in ["", "*", "identity", "br"] {
            assert_eq!(encoding(none), None, "{none}");
        }
    }
}
