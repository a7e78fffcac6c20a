//! The routes.

mod files;
mod health;
mod ingest;
mod live;
mod metrics;
mod openapi;
mod page;
mod parameters;
mod query;
mod session;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};
use tracing::Level;

use super::admission::cors;
use super::app::App;
use super::conn::{Connection, Handler, RequestContext};
use super::error::ApiError;
use super::response::ResponseBody;
use crate::metrics::Route;

/// Answers the requests to `PORT`: all of them, or only those that do not read if there is an `ADMIN_LISTEN`.
#[derive(Debug)]
pub(super) struct Routes;

/// Answers the requests to `ADMIN_LISTEN`: everything except sending reports.
#[derive(Debug)]
pub(super) struct AdminRoutes;

impl Handler for Routes {
    async fn answer(context: RequestContext<'_>, request: Request<Incoming>) -> Response<ResponseBody> {
        let has_admin_listener = context.connection.app.has_admin_listener;
        let on_this_port = |route| match route {
            // Only the other methods of this path.
            Route::Query if has_admin_listener => Route::Reports,
            route if has_admin_listener && is_for_readers(route) => Route::Other,
            route => route,
        };
        answer_and_count(context, request, on_this_port).await
    }
}

impl Handler for AdminRoutes {
    async fn answer(context: RequestContext<'_>, request: Request<Incoming>) -> Response<ResponseBody> {
        let on_this_port = |route| if route == Route::Reports { Route::Other } else { route };
        answer_and_count(context, request, on_this_port).await
    }
}

/// Whether a route is only on `ADMIN_LISTEN`, if there is one.
fn is_for_readers(route: Route) -> bool {
    match route {
        Route::Reports | Route::Livez | Route::Readyz | Route::Openapi | Route::Other => false,
        Route::Metrics | Route::Query | Route::Stats | Route::Tail => true,
        Route::Files | Route::File | Route::Live | Route::Login | Route::Logout | Route::Page => true,
    }
}

async fn answer_and_count(
    mut context: RequestContext<'_>,
    request: Request<Incoming>,
    on_this_port: impl FnOnce(Route) -> Route,
) -> Response<ResponseBody> {
    let started = Instant::now();
    let route = on_this_port(route_of(request.method(), request.uri().path()));
    let app = Arc::clone(&context.connection.app);
    let response = answer(&mut context, request, route).await;
    app.metrics.count_request(route, response.status().as_u16(), started.elapsed());
    response
}

const REPORTS: &str = "/api/v1/reports";

/// The directory of the report files.
const FILES: &str = "/api/v1/files/";

fn route_of(method: &Method, path: &str) -> Route {
    match path {
        REPORTS if is_read(method) => Route::Query,
        REPORTS => Route::Reports,
        "/api/v1/reports/tail" => Route::Tail,
        "/api/v1/stats" => Route::Stats,
        "/api/v1/files" => Route::Files,
        "/api/v1/live" => Route::Live,
        "/login" => Route::Login,
        "/logout" => Route::Logout,
        "/livez" => Route::Livez,
        "/readyz" | "/.well-known/healthcheck.json" | "/.well-known/healthcheck" => Route::Readyz,
        "/openapi.yaml" => Route::Openapi,
        "/metrics" => Route::Metrics,
        "/" => Route::Page,
        _ if path.starts_with("/page/") => Route::Page,
        _ if path.starts_with(FILES) => Route::File,
        _ => Route::Other,
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

async fn answer(context: &mut RequestContext<'_>, request: Request<Incoming>, route: Route) -> Response<ResponseBody> {
    let logged = Logged::of(context, &request);
    if route == Route::Reports
        && let Some(origin) = request.headers().get(ORIGIN)
    {
        let origin = origin.clone();
        return reports_from(origin, context, request, logged).await;
    }
    let app = &context.connection.app;
    let result = match route {
        Route::Reports => reports(context, request).await,
        Route::Livez => get_only(&request).map(|()| health::live(app)),
        Route::Readyz => get_only(&request).map(|()| health::ready(app)),
        Route::Openapi => get_only(&request).map(|()| openapi::document()),
        Route::Metrics => metrics(app, &request).await,
        Route::Login => session::log_in(context, request).await,
        Route::Logout => session::log_out(context, request),
        Route::Query | Route::Stats | Route::Tail | Route::Files | Route::File | Route::Live => {
            read(context, request, route).await.map(keep_private)
        }
        Route::Page => page(&request),
        Route::Other => Err(ApiError::NotFound),
    };
    result.unwrap_or_else(|error| refuse(context, &error, logged))
}

async fn reports(
    context: &mut RequestContext<'_>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ApiError> {
    match *request.method() {
        Method::POST => ingest::post(context, request).await,
        // GET is another route, which may be on another port.
        _ => Err(ApiError::Method {
            allow: if context.connection.app.has_admin_listener { "POST" } else { "GET, HEAD, POST" },
        }),
    }
}

/// A request to `/api/v1/reports` from a page of this origin.
async fn reports_from(
    origin: HeaderValue,
    context: &mut RequestContext<'_>,
    request: Request<Incoming>,
    logged: Option<Logged>,
) -> Response<ResponseBody> {
    if !context.connection.app.origins.allow(origin.as_bytes()) {
        context.discard(request.into_body());
        return refuse(context, &ApiError::Origin, logged);
    }
    let mut response = match cors::is_preflight(&request) {
        true => cors::preflight(request.headers()),
        false => reports(context, request).await.unwrap_or_else(|error| refuse(context, &error, logged)),
    };
    cors::share(&mut response, origin);
    response
}

async fn metrics(app: &Arc<App>, request: &Request<Incoming>) -> Result<Response<ResponseBody>, ApiError> {
    get_only(request)?;
    app.admin.admit_to_metrics(request.headers()).await.inspect_err(|_| app.metrics.admin_refused.add(1))?;
    metrics::get(app, request.headers()).await
}

/// A request for reports, files, statistics or the state of the server.
async fn read(
    context: &RequestContext<'_>,
    request: Request<Incoming>,
    route: Route,
) -> Result<Response<ResponseBody>, ApiError> {
    get_only(&request)?;
    let app = &context.connection.app;
    app.admin.admit(request.headers()).await.inspect_err(|_| app.metrics.admin_refused.add(1))?;
    let (uri, is_head) = (request.uri(), request.method() == Method::HEAD);
    match route {
        Route::Query => query::get(context, &request, &query::REPORTS).await,
        Route::Stats => query::get(context, &request, &query::STATS).await,
        Route::Tail => query::get(context, &request, &query::TAIL).await,
        Route::Live => parameters::Parameters::parse(uri.query(), &[]).and_then(|_| live::get(context, is_head)),
        Route::File => {
            let name = uri.path().strip_prefix(FILES).unwrap_or_default();
            files::get(context, &request, name).await
        }
        _ => files::list(app, uri.query()),
    }
}

/// Pages of other origins must not embed what is read, and a browser must not guess its type.
fn keep_private(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    let headers = response.headers_mut();
    headers.insert(cors::CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The head of a stream of server-sent events.
fn event_stream(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::<ResponseBody>::default();
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would collect events until its buffer is full.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The web page. It contains no data, so everybody may load it.
fn page(request: &Request<Incoming>) -> Result<Response<ResponseBody>, ApiError> {
    let asset = page::asset(request.uri().path()).ok_or(ApiError::NotFound)?;
    get_only(request).map(|()| asset.response(request.headers()))
}

fn get_only(request: &Request<Incoming>) -> Result<(), ApiError> {
    // hyper omits the body of an answer to HEAD.
    match is_read(request.method()) {
        true => Ok(()),
        false => Err(ApiError::Method { allow: "GET, HEAD" }),
    }
}

/// The address of the client of a request.
fn client_address(connection: &Connection, headers: &HeaderMap) -> IpAddr {
    connection.app.proxies.client_address(connection.peer, headers)
}

/// Counts and logs a refusal, and returns its answer.
fn refuse(context: &RequestContext<'_>, error: &ApiError, logged: Option<Logged>) -> Response<ResponseBody> {
    let (response, name) = error.to_response();
    context.connection.app.refusals.count(name);
    if let Some(Logged { client, method, path, origin }) = logged {
        let (status, origin) = (response.status().as_u16(), origin.as_deref());
        tracing::debug!(%client, %method, path, origin, status, reason = name, %error, "refused a request");
    }
    response
}

/// What the log says about a refused request. Without the query of the URL, which may contain a key.
struct Logged {
    client: IpAddr,
    method: Method,
    path: String,
    origin: Option<String>,
}

impl Logged {
    /// `None` unless refusals are logged one by one.
    fn of(context: &RequestContext<'_>, request: &Request<Incoming>) -> Option<Self> {
        if !tracing::enabled!(Level::DEBUG) {
            return None;
        }
        let headers = request.headers();
        Some(Self {
            client: client_address(context.connection, headers),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            origin: headers.get(ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()).into_owned()),
        })
    }
}
