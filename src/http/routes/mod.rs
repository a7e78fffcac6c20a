//! The routes.

mod health;
mod ingest;
mod metrics;
mod openapi;
mod page;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response};
use tracing::Level;

use super::admission::cors;
use super::app::App;
use super::conn::{Connection, Handler, RequestContext};
use super::error::ApiError;
use crate::metrics::Route;

/// Answers the requests to `PORT`: all of them, or only those that do not read if there is an `ADMIN_LISTEN`.
#[derive(Debug)]
pub(super) struct Routes;

/// Answers the requests to `ADMIN_LISTEN`: all but reports.
#[derive(Debug)]
pub(super) struct AdminRoutes;

impl Handler for Routes {
    async fn answer(context: RequestContext<'_>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let hides_metrics = context.connection.app.has_admin_listener;
        answer_and_count(context, request, |route| !(hides_metrics && route == Route::Metrics)).await
    }
}

impl Handler for AdminRoutes {
    async fn answer(context: RequestContext<'_>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        answer_and_count(context, request, |route| route != Route::Reports).await
    }
}

async fn answer_and_count(
    mut context: RequestContext<'_>,
    request: Request<Incoming>,
    is_served: impl FnOnce(Route) -> bool,
) -> Response<Full<Bytes>> {
    let (started, route) = (Instant::now(), route_of(request.uri().path()));
    let route = if is_served(route) { route } else { Route::Other };
    let app = Arc::clone(&context.connection.app);
    let response = answer(&mut context, request, route).await;
    app.metrics.count_request(route, response.status().as_u16(), started.elapsed());
    response
}

fn route_of(path: &str) -> Route {
    match path {
        "/api/v1/reports" => Route::Reports,
        "/livez" => Route::Livez,
        "/readyz" | "/.well-known/healthcheck.json" | "/.well-known/healthcheck" => Route::Readyz,
        "/openapi.yaml" => Route::Openapi,
        "/metrics" => Route::Metrics,
        _ => Route::Other,
    }
}

async fn answer(context: &mut RequestContext<'_>, request: Request<Incoming>, route: Route) -> Response<Full<Bytes>> {
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
        Route::Other => page(&request),
    };
    result.unwrap_or_else(|error| refuse(context, &error, logged))
}

async fn reports(
    context: &mut RequestContext<'_>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, ApiError> {
    match *request.method() {
        Method::POST => ingest::post(context, request).await,
        _ => Err(ApiError::Method { allow: "POST" }),
    }
}

/// A request to `/api/v1/reports` from a page of this origin.
async fn reports_from(
    origin: HeaderValue,
    context: &mut RequestContext<'_>,
    request: Request<Incoming>,
    logged: Option<Logged>,
) -> Response<Full<Bytes>> {
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

async fn metrics(app: &Arc<App>, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, ApiError> {
    get_only(request)?;
    app.admin.admit_to_metrics(request.headers()).await.inspect_err(|_| app.metrics.admin_refused.add(1))?;
    metrics::get(app, request.headers()).await
}

/// The web page. It contains no data, so everybody may load it.
fn page(request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, ApiError> {
    let asset = page::asset(request.uri().path()).ok_or(ApiError::NotFound)?;
    get_only(request).map(|()| asset.response(request.headers()))
}

fn get_only(request: &Request<Incoming>) -> Result<(), ApiError> {
    // hyper omits the body of an answer to HEAD.
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(ApiError::Method { allow: "GET, HEAD" }),
    }
}

/// The address of the client of a request.
fn client_address(connection: &Connection, headers: &HeaderMap) -> IpAddr {
    connection.app.proxies.client_address(connection.peer, headers)
}

/// Counts and logs a refusal, and returns its answer.
fn refuse(context: &RequestContext<'_>, error: &ApiError, logged: Option<Logged>) -> Response<Full<Bytes>> {
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
