//! The routes.

mod health;
mod ingest;
mod openapi;

use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response};
use tracing::Level;

use super::admission::cors;
use super::conn::{Connection, Handler, RequestContext};
use super::error::ApiError;

/// Answers all requests of the server.
#[derive(Debug)]
pub(super) struct Routes;

impl Handler for Routes {
    async fn answer(mut context: RequestContext<'_>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let logged = Logged::of(&context, &request);
        let result = match request.uri().path() {
            "/api/v1/reports" => match request.headers().get(ORIGIN) {
                None => reports(&mut context, request).await,
                Some(origin) => {
                    let origin = origin.clone();
                    return reports_from(origin, &mut context, request, logged).await;
                }
            },
            "/livez" => get_only(&request).map(|()| health::live(&context.connection.app)),
            "/readyz" | "/.well-known/healthcheck.json" | "/.well-known/healthcheck" => {
                get_only(&request).map(|()| health::ready(&context.connection.app))
            }
            "/openapi.yaml" => get_only(&request).map(|()| openapi::document()),
            _ => Err(ApiError::NotFound),
        };
        result.unwrap_or_else(|error| refuse(&context, &error, logged))
    }
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
