//! One connection: hyper's state machine, with deadlines, permits and an orderly end.
//!
//! With HTTP/1, the connection has one phase and one deadline at a time. With HTTP/2, requests are concurrent: the
//! connection only limits its idle time, and each slow request has its own timer.

mod connection;
mod deadlines;
mod protocol;
mod proxy_header;
mod request;
mod stream_writer;
mod streams;
mod timed_stream;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use tokio::net::TcpStream;
use tokio::time::Instant;

pub(super) use self::connection::Connection;
use self::deadlines::{Expired, Phase};
use self::protocol::Protocol;
pub use self::protocol::http1_builder;
pub(super) use self::request::RequestContext;
use self::request::RequestGuard;
pub(super) use self::stream_writer::{Stopped, StreamWriter};
pub(super) use self::streams::Streams;
use self::timed_stream::TimedStream;
use super::app::App;
use super::refusals::TOO_MANY_CONNECTIONS;
use super::response::ResponseBody;
use crate::metrics::Ended;

/// Maximum number of header fields. hyper has the same limit for HTTP/1, and none for HTTP/2.
const MAX_HEADER_FIELDS: usize = 100;

/// Answers requests.
pub(super) trait Handler: 'static {
    /// Answers one request.
    fn answer(
        context: RequestContext<'_>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<ResponseBody>> + Send;
}

/// Serves one connection until the client closes it, a timeout ends it, or the server shuts down.
pub(super) async fn serve<H: Handler>(app: Arc<App>, stream: TcpStream, peer: SocketAddr) {
    let metrics = Arc::clone(&app.metrics);
    metrics.connections_opened.add(1);
    let ended = match serve_until_end::<H>(app, stream, peer).await {
        Ok(()) => Ended::Closed,
        Err(End { outcome, reason }) => {
            tracing::debug!(%peer, reason, "closed the connection");
            outcome
        }
    };
    metrics.count_connection(ended);
}

/// Why a connection was closed early.
struct End {
    outcome: Ended,
    reason: String,
}

impl End {
    fn error(reason: String) -> Self {
        Self { outcome: Ended::Error, reason }
    }
}

async fn serve_until_end<H: Handler>(app: Arc<App>, mut stream: TcpStream, peer: SocketAddr) -> Result<(), End> {
    let client = proxy_header::client(&app, &mut stream, peer.ip()).await.map_err(End::error)?;
    let address = client.unwrap_or(peer.ip().to_canonical());
    let connection = Arc::new(Connection::new(app, address));
    // A proxy's own connections carry requests of many clients, so they are not counted.
    let counted = connection.app.per_address.as_ref().zip(client).map(|(counts, client)| counts.count(client));
    if let Some(None) = counted {
        connection.app.refusals.count(TOO_MANY_CONNECTIONS);
        let reason = "the client has too many connections".to_owned();
        return Err(End { outcome: Ended::Refused, reason });
    }
    drive::<H>(&connection, stream).await
}

/// The answer that hyper gives to a long header.
fn too_many_header_fields() -> Response<ResponseBody> {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response
}

/// Polls hyper's state machine, and enforces deadlines and the drain.
async fn drive<H: Handler>(connection: &Arc<Connection>, stream: TcpStream) -> Result<(), End> {
    let Connection { app, deadlines, .. } = &**connection;
    let requests = Arc::clone(connection);
    let service = service_fn(move |request: Request<Incoming>| {
        let version = request.version();
        let guard = RequestGuard::new(&requests, version);
        // Drops a large table of headers now: the answer may have to wait for its turn.
        let request = Some(request).filter(|request| request.headers().len() <= MAX_HEADER_FIELDS);
        async move {
            let mut response = match request {
                Some(request) => H::answer(RequestContext::new(&guard), request).await,
                None => too_many_header_fields(),
            };
            if guard.connection.app.drain.is_announced() && version != Version::HTTP_2 {
                // The client, or its load balancer, reconnects, perhaps to another server. So no connection is left
                // that would have to be closed while a request arrives.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| guard.answer_body(body)))
        }
    });
    let mut protocol = Protocol::new(TimedStream { stream, connection: Arc::clone(connection) }, service);

    // Polled once, to register the waker of this task. The waker does not change, and each further poll would take a
    // lock that all connections share.
    let mut drain = pin!(app.drain.started());
    poll_fn(|cx| Poll::Ready(drain.as_mut().poll(cx).is_ready())).await;
    let mut is_draining = false;
    let mut armed = deadlines.deadline().unwrap_or_else(Instant::now);
    let mut timer = pin!(tokio::time::sleep_until(armed));

    poll_fn(|cx| {
        loop {
            if !is_draining && app.drain.is_started() && !deadlines.is_fresh() {
                is_draining = true;
                connection.leave();
                protocol.graceful_shutdown();
            }
            if let Poll::Ready(ended) = protocol.poll(cx) {
                return Poll::Ready(match deadlines.phase() {
                    // A client may leave a stream at any time.
                    Phase::Streaming | Phase::LastFrame => Ok(()),
                    _ => ended.map_err(End::error),
                });
            }
            if protocol.poll_leave(cx).is_ready() {
                connection.leave();
                protocol.graceful_shutdown();
                continue;
            }
            let mut deadline = deadlines.deadline();
            if !is_draining && app.drain.is_started() {
                if !deadlines.is_fresh() {
                    // The first request has just arrived.
                    continue;
                }
                deadline = Some(deadlines.fresh_deadline());
            }
            if let Some(deadline) = deadline.filter(|deadline| *deadline < armed) {
                armed = deadline;
                timer.as_mut().reset(armed);
            }
            ready!(timer.as_mut().poll(cx));
            match deadline {
                Some(deadline) if deadline <= Instant::now() => match deadlines.expired() {
                    Expired::AnswerLate => {}
                    Expired::GoAway => {
                        connection.leave();
                        protocol.graceful_shutdown();
                    }
                    Expired::Close(reason) => {
                        return Poll::Ready(Err(End { outcome: Ended::Timeout, reason: reason.to_owned() }));
                    }
                },
                later => {
                    armed = later.unwrap_or_else(|| Instant::now() + app.limits.keep_alive_timeout);
                    timer.as_mut().reset(armed);
                }
            }
        }
    })
    .await
}
