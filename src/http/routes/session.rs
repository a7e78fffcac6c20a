//! `POST /login` and `POST /logout`: the session of the web page.

use std::pin::Pin;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CACHE_CONTROL, HeaderValue, SET_COOKIE, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};

use crate::http::admission::session;
use crate::http::conn::RequestContext;
use crate::http::error::ApiError;
use crate::http::response::ResponseBody;

/// Maximum length of a body with a token. A token has at most 128 bytes.
const MAX_BYTES: usize = 1024;

/// Begins a session, if the body is the admin token.
pub(super) async fn log_in(
    context: &mut RequestContext<'_>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ApiError> {
    let is_https = check(context, &request)?;
    let app = &context.connection.app;
    context.start_body();
    let mut body = request.into_body();
    let token = context.in_time(read(&mut body)).await.unwrap_or(Err(ApiError::BodyTimeout))?;
    // A body that is too long is no token.
    let token = token.unwrap_or_else(|| {
        context.discard(body);
        vec![b' ']
    });
    context.start_answer();
    let cookie = app.admin.log_in(&token, is_https).await.inspect_err(|_| app.metrics.admin_refused.add(1))?;
    Ok(no_content(cookie))
}

/// Ends a session.
pub(super) fn log_out(
    context: &RequestContext<'_>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ApiError> {
    let is_https = check(context, &request)?;
    context.discard(request.into_body());
    Ok(no_content(Some(session::removal(is_https))))
}

/// Checks the method and the origin. Returns whether the client uses HTTPS.
fn check(context: &RequestContext<'_>, request: &Request<Incoming>) -> Result<bool, ApiError> {
    if request.method() != Method::POST {
        return Err(ApiError::Method { allow: "POST" });
    }
    if session::is_cross_origin(request.headers()) {
        return Err(ApiError::OtherOrigin);
    }
    let connection = context.connection;
    Ok(connection.app.proxies.is_https(connection.peer, request.headers()))
}

/// Reads a token, without white space around it. `None` if it is too long.
async fn read(body: &mut Incoming) -> Result<Option<Vec<u8>>, ApiError> {
    let mut token = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        let frame = frame.map_err(ApiError::BodyBroken)?;
        token.extend_from_slice(frame.data_ref().map_or(&[][..], Bytes::as_ref));
        if token.len() > MAX_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(token.trim_ascii().to_vec()))
}

fn no_content(cookie: Option<HeaderValue>) -> Response<ResponseBody> {
    let mut response = Response::<ResponseBody>::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.extend(cookie.map(|cookie| (SET_COOKIE, cookie)));
    response
}
