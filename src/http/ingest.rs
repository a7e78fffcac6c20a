//! `POST /api/v1/reports`: body → reports → buffer → answer.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::{HeaderMap, Request, Response, StatusCode};
use tokio::time::timeout;

use super::connection::{Connection, Exchange};
use super::encoding::Encoding;
use super::gathered::Gathered;
use super::idempotency::{Key, Repeats};
use super::refusal::Refusal;
use super::{App, client, content_type, json};
use crate::buffer::{Refused, Ticket};
use crate::report::Reports;

/// How long a request waits for room in the buffer before it is turned away.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);

/// A whole request body.
enum Received {
    /// It came in one piece, which lies where it was read to.
    Piece(Bytes),
    /// It came in several, or compressed.
    Gathered(Gathered),
}

impl Received {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Piece(bytes) => bytes,
            Self::Gathered(gathered) => gathered.as_bytes(),
        }
    }
}

/// What the header says of the body.
struct Head<'a> {
    encoding: Option<Encoding>,
    /// With what it may have been sent before.
    once: Option<(&'a Repeats, Key)>,
    /// What its reports are stamped with.
    stamps: Option<String>,
}

impl<'a> Head<'a> {
    fn of(connection: &'a Connection, request: &Request<Incoming>) -> Result<Self, Refusal> {
        let app = &*connection.app;
        let headers = request.headers();
        app.admission.admit(|| client(connection, headers), request)?;
        content_type::check(headers)?;
        let encoding = Encoding::of(headers)?;
        let once = match &app.repeats {
            None => None,
            Some(repeats) => repeats.key(request)?.map(|key| (repeats, key)),
        };
        let stamps = (!app.stamps.is_empty()).then(|| stamps(connection, headers));
        Ok(Self { encoding, once, stamps })
    }
}

pub(super) async fn post(
    exchange: &mut Exchange<'_>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let connection = exchange.connection;
    let app = &connection.app;
    exchange.reads_body();
    let head = match exchange.has_no_place() {
        true => Err(Refusal::TooManyInFlight),
        false => Head::of(connection, &request),
    };
    let mut body = request.into_body();
    let received = match head {
        Ok(head) => receive(exchange, &mut body).await.map(|received| (received, head)),
        Err(refusal) => Err(refusal),
    };
    let (received, Head { encoding, once, stamps }) = match received {
        Ok(received) => received,
        Err(refusal) => {
            if !matches!(refusal, Refusal::BodyTimeout | Refusal::BodyBroken(_)) {
                exchange.throw_away(body);
            }
            return Err(refusal);
        }
    };
    exchange.answers();
    let count = match once {
        None => keep(app, received, encoding, stamps).await?,
        Some((repeats, key)) => {
            let app = Arc::clone(app);
            repeats.once(key, async move { keep(&app, received, encoding, stamps).await }).await?
        }
    };
    Ok(accepted(count))
}

/// Keeps the reports of a body as `ACK` says; returns how many they are.
async fn keep(
    app: &App,
    received: Received,
    encoding: Option<Encoding>,
    stamps: Option<String>,
) -> Result<usize, Refusal> {
    let (ticket, count) = {
        let received = match encoding {
            None => received,
            Some(encoding) => unpack(app, received, encoding)?,
        };
        let mut reports = Reports::check(received.as_bytes())?;
        if let Some(stamps) = stamps {
            reports = app.stamps.put_on(&reports, &stamps, app.limits.max_body_bytes)?;
        }
        (append(app, &reports).await?, reports.count())
        // The body's memory is given back: the wait may be long.
    };
    ticket.kept().await?;
    Ok(count)
}

fn unpack(app: &App, packed: Received, encoding: Encoding) -> Result<Received, Refusal> {
    let mut unpacked = Gathered::new(&app.inflight, app.limits.max_body_bytes)?;
    encoding.unpack(packed.as_bytes(), &mut unpacked)?;
    Ok(Received::Gathered(unpacked))
}

/// What the reports of this request are stamped with.
fn stamps(connection: &Connection, headers: &HeaderMap) -> String {
    let app = &connection.app;
    let client = match app.stamps.want_client_ip() {
        true => client(connection, headers),
        false => connection.peer,
    };
    app.stamps.members(headers, app.client_ip_mask.apply(client))
}

/// Whose request it is.
fn client(Connection { app, peer, .. }: &Connection, headers: &HeaderMap) -> IpAddr {
    client::address(&app.proxies.trusted, app.proxies.header, *peer, headers)
}

fn accepted(count: usize) -> Response<Full<Bytes>> {
    let body = match count {
        1 => Bytes::from_static(br#"{"status":"ok","accepted":1}"#),
        _ => format!(r#"{{"status":"ok","accepted":{count}}}"#).into(),
    };
    json(StatusCode::OK, "application/json", body)
}

/// Reads the whole body, as long as it stays within the bounds.
async fn receive(exchange: &mut Exchange<'_>, body: &mut Incoming) -> Result<Received, Refusal> {
    let app = &exchange.connection.app;
    let max_bytes = app.limits.max_body_bytes;
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(Refusal::TooLarge { max_bytes });
    }
    let Some(first) = next_piece(exchange, body).await? else { return Ok(Received::Piece(Bytes::new())) };
    if body.is_end_stream() && first.len() <= max_bytes {
        return Ok(Received::Piece(first));
    }
    let mut gathered = Gathered::new(&app.inflight, max_bytes)?;
    let mut next = Some(first);
    while let Some(piece) = next {
        gathered.push(&piece)?;
        // Else what it was read into is held while the next one is waited for.
        drop(piece);
        next = if body.is_end_stream() { None } else { next_piece(exchange, body).await? };
    }
    Ok(Received::Gathered(gathered))
}

/// The next bytes of a body; `None` at its end.
async fn next_piece(exchange: &mut Exchange<'_>, body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    poll_fn(|cx| {
        loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => return Poll::Ready(Ok(Some(bytes))),
                    Err(_trailers) => continue,
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Refusal::BodyBroken(error))),
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                // The connection's watch polls this task when the time is over.
                Poll::Pending if exchange.is_late(cx) => return Poll::Ready(Err(Refusal::BodyTimeout)),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

/// Appends to the buffer; when that is full, waits a moment for room.
async fn append(app: &App, reports: &Reports<'_>) -> Result<Ticket, Refusal> {
    let waits = async {
        loop {
            let mut room = pin!(app.buffer.room());
            // Before the try, so that room that comes right after it is not missed.
            room.as_mut().enable();
            match app.buffer.append(reports) {
                Ok(ticket) => return Ok(ticket),
                Err(Refused::Full) => room.await,
                Err(refused) => return Err(refused.into()),
            }
        }
    };
    match app.buffer.append(reports) {
        Ok(ticket) => Ok(ticket),
        Err(Refused::Full) => timeout(ROOM_TIMEOUT, waits).await.unwrap_or(Err(Refused::Full.into())),
        Err(refused) => Err(refused.into()),
    }
}
