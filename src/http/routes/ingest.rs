//! `POST /api/v1/reports`: body → reports → buffer → answer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use tokio::time::timeout;

use super::client_address;
use crate::buffer::{AppendError, NotDurable, Ticket};
use crate::http::admission::{CLIENT, Key, Repeats};
use crate::http::app::App;
use crate::http::body::{self, Encoding, Received};
use crate::http::conn::{Connection, RequestContext};
use crate::http::error::ApiError;
use crate::http::response::{ResponseBody, text};
use crate::report::Reports;

/// How long a request waits for capacity in the buffer before it is refused.
const CAPACITY_TIMEOUT: Duration = Duration::from_secs(1);

/// The reports of a request.
struct Size {
    reports: usize,
    /// As stored, with a line break after each.
    bytes: usize,
}

/// What the header of a request says.
struct Head<'a> {
    encoding: Option<Encoding>,
    /// The idempotency key, if the server uses them.
    key: Option<(&'a Repeats, Key)>,
    /// The members that are added to the reports.
    stamps: Option<String>,
}

impl<'a> Head<'a> {
    fn of(connection: &'a Connection, request: &Request<Incoming>) -> Result<Self, ApiError> {
        let app = &*connection.app;
        let headers = request.headers();
        app.admission.admit(|| client_address(connection, headers), request)?;
        body::check_content_type(headers)?;
        let encoding = Encoding::of(headers)?;
        let key = match &app.repeats {
            None => None,
            Some(repeats) => repeats.key(request)?.map(|key| (repeats, key)),
        };
        let stamps = (!app.stamps.is_empty()).then(|| {
            let client = app.client_ip_mask.apply(client_address(connection, headers));
            body::stamp_members(&app.stamps, headers, client)
        });
        Ok(Self { encoding, key, stamps })
    }
}

pub(super) async fn post(
    context: &mut RequestContext<'_>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ApiError> {
    let connection = context.connection;
    let app = &connection.app;
    context.start_body();
    let head = match context.has_permit() {
        true => Head::of(connection, &request),
        false => Err(ApiError::TooManyInFlight),
    };
    let client = CLIENT.apply(client_address(connection, request.headers()));
    let mut incoming = request.into_body();
    let received = match head {
        Ok(head) => body::read(context, &mut incoming, client).await.map(|body| (body, head)),
        Err(error) => Err(error),
    };
    let (body, Head { encoding, key, stamps }) = match received {
        Ok(received) => received,
        Err(error) => {
            if !matches!(error, ApiError::BodyTimeout | ApiError::BodyBroken(_)) {
                context.discard(incoming);
            }
            return Err(error);
        }
    };
    context.start_answer();
    let stored = match key {
        None => context.in_time(store(app, body, encoding, stamps)).await,
        Some((repeats, key)) => {
            let app = Arc::clone(app);
            // Without a time limit: it continues when this request has been answered with `not-durable`. A repeated
            // request waits for it, and is not stored again.
            let store = async move {
                let (ticket, size) = append(&app, body, encoding, stamps).await?;
                ticket.stored().await;
                // A repeated request is not counted again.
                app.metrics.count_accepted(size.reports, size.bytes);
                Ok(size.reports)
            };
            context.in_time(repeats.once(key, store)).await
        }
    };
    // `None`: the disk did not respond in time.
    stored.unwrap_or(Err(NotDurable.into())).map(accepted)
}

/// Stores the reports of a body in the state that `ACK` asks for. Returns their number.
async fn store(
    app: &App,
    body: Received,
    encoding: Option<Encoding>,
    stamps: Option<String>,
) -> Result<usize, ApiError> {
    let (ticket, size) = append(app, body, encoding, stamps).await?;
    ticket.durable().await?;
    app.metrics.count_accepted(size.reports, size.bytes);
    Ok(size.reports)
}

/// Checks a body and appends its reports to the buffer. Releases the body: the wait that follows
/// may be long.
async fn append(
    app: &App,
    body: Received,
    encoding: Option<Encoding>,
    stamps: Option<String>,
) -> Result<(Ticket, Size), ApiError> {
    let body = match encoding {
        None => body.pin()?,
        Some(encoding) => body.decode(app, encoding).await?,
    };
    let mut reports = Reports::check(body.as_bytes())?;
    if let Some(stamps) = stamps {
        reports = body::add_stamps(&app.stamps, &reports, &stamps, app.limits.max_body_bytes)?;
    }
    let size = Size { reports: reports.count(), bytes: reports.as_bytes().len() + 1 };
    Ok((append_reports(app, &reports).await?, size))
}

/// Appends to the buffer. If the buffer is full, waits for capacity.
async fn append_reports(app: &App, reports: &Reports<'_>) -> Result<Ticket, ApiError> {
    let retry = async {
        loop {
            let mut capacity = pin!(app.buffer.capacity());
            // Registered before the append, so that no change is missed.
            capacity.as_mut().enable();
            match app.buffer.append(reports) {
                Ok(ticket) => return Ok(ticket),
                Err(AppendError::Full) => capacity.await,
                Err(error) => return Err(error.into()),
            }
        }
    };
    match app.buffer.append(reports) {
        Ok(ticket) => Ok(ticket),
        Err(AppendError::Full) => timeout(CAPACITY_TIMEOUT, retry).await.unwrap_or(Err(AppendError::Full.into())),
        Err(error) => Err(error.into()),
    }
}

fn accepted(count: usize) -> Response<ResponseBody> {
    let body = match count {
        1 => Bytes::from_static(b"{\"status\":\"ok\",\"accepted\":1}\n"),
        _ => format!("{{\"status\":\"ok\",\"accepted\":{count}}}\n").into(),
    };
    text(StatusCode::OK, "application/json", body)
}
