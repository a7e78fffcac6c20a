//! One connection: hyper's state machine under one watch that keeps all of its time-outs.
//!
//! A timer for each header, body and pause would be set and cancelled with every request. Here each of these only
//! notes its deadline, and one timer for the connection is moved when it fires too early, or when a deadline comes
//! that lies before it.
//!
//! With HTTP/2, requests come side by side. Then the watch only closes a connection on which there has been none for a
//! while, and a body that comes slowly has a timer of its own.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::protocol::Protocol;
use super::{App, Limits, answer, proxy_protocol};

/// What a connection's requests share.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) app: Arc<App>,
    /// Who has connected; if that is a proxy which says so, whose connection it hands on.
    pub(super) peer: IpAddr,
    activity: Activity,
}

/// What a connection is at, and until when it may be.
///
/// Nearly all of it is told from the connection's own task with HTTP/1; with HTTP/2 by tasks of which the watch need not
/// hear at once. So every ordering is Relaxed.
#[derive(Debug)]
struct Activity {
    opened: Instant,
    limits: Limits,
    phase: AtomicU8,
    /// Nanoseconds after `opened`.
    deadline_ns: AtomicU64,
    /// HTTP/2: requests that are being answered.
    answering: AtomicU32,
    /// HTTP/2: answers that the client has not taken yet.
    untaken: AtomicU32,
}

/// Nothing has come yet.
const FRESH: u8 = 0;
/// Between two requests.
const IDLE: u8 = 1;
/// Some of a header has come.
const HEADER: u8 = 2;
/// The body is being read.
const BODY: u8 = 3;
/// The body did not come in time.
const LATE: u8 = 4;
/// The request is being answered; that has bounds of its own.
const ANSWER: u8 = 5;
/// HTTP/2: requests come side by side.
const STREAMS: u8 = 6;
/// HTTP/2: the client was told that the connection ends.
const LEAVING: u8 = 7;

/// How long after it was accepted a connection may still bring its first request to a server that stops: long enough
/// for one that is on its way. A browser that has only connected in advance holds up the stop no longer than this.
const FRESH_TIME: Duration = Duration::from_secs(1);

/// How much of a body is read after it has been refused, and for how long.
const DISCARD_BYTES: usize = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a request that is late may take to say so.
const LATE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the client of an idle HTTP/2 connection has for a request that it sent before it heard of the end.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

impl Activity {
    fn new(limits: Limits) -> Self {
        let activity = Self {
            opened: Instant::now(),
            limits,
            phase: AtomicU8::new(FRESH),
            deadline_ns: AtomicU64::new(0),
            answering: AtomicU32::new(0),
            untaken: AtomicU32::new(0),
        };
        activity.enter(FRESH, limits.keep_alive_timeout);
        activity
    }

    fn idles(&self) {
        self.enter(IDLE, self.limits.keep_alive_timeout);
    }

    /// What has been read since the last answer was not the start of a request.
    fn has_discarded(&self) {
        // Unless there is a request by now.
        if self.phase.compare_exchange(HEADER, IDLE, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.put_off(self.limits.keep_alive_timeout);
        }
    }

    /// HTTP/2: a request is done with. The connection has its time anew if all is well with it: a client that does not
    /// take its answers, or that was told to leave, gets no more by asking on.
    fn has_answered(&self) {
        if self.phase() == STREAMS && self.untaken.load(Ordering::Relaxed) == 0 {
            self.put_off(self.limits.keep_alive_timeout);
        }
    }

    fn is_fresh(&self) -> bool {
        self.phase() == FRESH && self.opened.elapsed() < FRESH_TIME
    }

    fn enter(&self, phase: u8, within: Duration) {
        self.phase.store(phase, Ordering::Relaxed);
        self.put_off(within);
    }

    fn put_off(&self, within: Duration) {
        let deadline = self.opened.elapsed().saturating_add(within);
        self.deadline_ns.store(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    fn deadline(&self) -> Option<Instant> {
        if self.answering.load(Ordering::Relaxed) > 0 {
            return None;
        }
        self.opened.checked_add(Duration::from_nanos(self.deadline_ns.load(Ordering::Relaxed)))
    }
}

/// One request, from when it came until there is an answer.
#[derive(Debug)]
struct Open {
    connection: Arc<Connection>,
    over_http2: bool,
    /// With HTTP/2; with HTTP/1, the connection's own place is that of its request.
    place: Option<OwnedSemaphorePermit>,
}

impl Open {
    fn new(connection: &Arc<Connection>, version: Version) -> Self {
        let over_http2 = version == Version::HTTP_2;
        let mut place = None;
        if over_http2 {
            connection.activity.answering.fetch_add(1, Ordering::Relaxed);
            place = Arc::clone(&connection.app.streams).try_acquire_owned().ok();
        }
        Self { connection: Arc::clone(connection), over_http2, place }
    }

    /// The body of its answer. Over HTTP/2, a client may not want to take it; without a place, there is none to be held.
    fn answered(mut self, body: Full<Bytes>) -> Answer {
        if !self.over_http2 {
            return Answer { body, _untaken: None };
        }
        match self.place.take() {
            None => Answer { body: Full::default(), _untaken: None },
            Some(place) => Answer { body, _untaken: Some(Untaken::new(Arc::clone(&self.connection), place)) },
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let activity = &self.connection.activity;
        match self.over_http2 {
            false => activity.idles(),
            true => {
                activity.has_answered();
                activity.answering.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// The body of an answer. hyper keeps it until the client lets all of it be sent.
#[derive(Debug)]
pub(super) struct Answer {
    body: Full<Bytes>,
    _untaken: Option<Untaken>,
}

/// That a client has not taken its answer yet: it keeps its place.
#[derive(Debug)]
struct Untaken {
    connection: Arc<Connection>,
    _place: OwnedSemaphorePermit,
}

impl Untaken {
    fn new(connection: Arc<Connection>, place: OwnedSemaphorePermit) -> Self {
        connection.activity.untaken.fetch_add(1, Ordering::Relaxed);
        Self { connection, _place: place }
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        let activity = &self.connection.activity;
        activity.untaken.fetch_sub(1, Ordering::Relaxed);
        activity.has_answered();
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// One request, as the watch over its connection has to know it.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    pub(super) connection: &'a Arc<Connection>,
    over_http2: bool,
    has_place: bool,
    /// When its body is late; only with HTTP/2, and only once the body has to be waited for.
    late: Option<Pin<Box<Sleep>>>,
}

impl<'a> Exchange<'a> {
    fn new(Open { connection, over_http2, place }: &'a Open) -> Self {
        Self { connection, over_http2: *over_http2, has_place: !over_http2 || place.is_some(), late: None }
    }

    /// Whether the server has all the requests that it can have at a time.
    pub(super) fn has_no_place(&self) -> bool {
        !self.has_place
    }

    pub(super) fn reads_body(&self) {
        if !self.over_http2 {
            let activity = &self.connection.activity;
            activity.enter(BODY, activity.limits.body_timeout);
        }
    }

    /// Whether the body has taken too long. When that comes to be so, this task is polled.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.over_http2 {
            return self.connection.activity.phase() == LATE;
        }
        let body_timeout = self.connection.activity.limits.body_timeout;
        self.late.get_or_insert_with(|| Box::pin(sleep(body_timeout))).as_mut().poll(cx).is_ready()
    }

    pub(super) fn answers(&self) {
        if !self.over_http2 {
            let activity = &self.connection.activity;
            activity.phase.store(ANSWER, Ordering::Relaxed);
            activity.deadline_ns.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Takes care of a body that is not wanted any more. The answer goes out at once, but a client that is still sending
    /// would never read it if the connection were closed over what it sends. So that is read for a while and thrown
    /// away.
    pub(super) fn throw_away(&self, body: Incoming) {
        // HTTP/2 tells the client to stop, and goes on.
        if !self.over_http2 {
            tokio::spawn(timeout(DISCARD_TIMEOUT, discard(body, Arc::clone(self.connection))));
        }
    }
}

/// Reads on and throws away, [`DISCARD_BYTES`] at the most.
async fn discard(mut body: Incoming, connection: Arc<Connection>) {
    let mut left = DISCARD_BYTES;
    // Asked before each piece: hyper gives the end of a body by itself only when the next request comes.
    while !body.is_end_stream() {
        let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else { break };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
    connection.activity.has_discarded();
}

/// A socket that notes when the first bytes of a request come.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl Watched {
    /// What has come, without taking it.
    pub(super) fn poll_peek(&self, cx: &mut Context<'_>, bytes: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        self.stream.poll_peek(cx, bytes)
    }

    pub(super) fn speaks_http2(&self) {
        let activity = &self.connection.activity;
        activity.enter(STREAMS, activity.limits.keep_alive_timeout);
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let activity = &self.connection.activity;
        if buf.filled().len() > before && matches!(activity.phase(), FRESH | IDLE) {
            activity.enter(HEADER, activity.limits.header_timeout);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    // One write of head and body together costs less than a vectored one: the answers are short.
    fn is_write_vectored(&self) -> bool {
        false
    }
}

/// Serves one connection until the client goes, it is idle or late for too long, or the server stops.
pub async fn serve(app: Arc<App>, mut stream: TcpStream, peer: SocketAddr) {
    // With one socket for IPv6 and IPv4, the addresses of IPv4 come as those of IPv6.
    let peer_ip = peer.ip().to_canonical();
    let is_proxy = app.proxies.trusted.contain(peer_ip);
    let mut client = (!is_proxy).then_some(peer_ip);
    if is_proxy && app.proxies.speak_proxy {
        match timeout(app.limits.header_timeout, proxy_protocol::read(&mut stream)).await {
            Ok(Ok(address)) => client = address.map(|address| address.to_canonical()),
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "closed the connection"),
            Err(_) => return tracing::debug!(%peer, reason = "no PROXY header came in time", "closed the connection"),
        }
    }
    let connection = Arc::new(Connection { peer: client.unwrap_or(peer_ip), activity: Activity::new(app.limits), app });
    // A proxy's own connections may be anybody's.
    let counted = connection.app.per_address.as_ref().zip(client).map(|(counts, client)| counts.count(client));
    if let Some(None) = counted {
        return tracing::debug!(%peer, reason = "the client has too many", "closed the connection");
    }
    let Connection { app, activity, .. } = &*connection;
    let watched = Watched { stream, connection: Arc::clone(&connection) };
    let requests = Arc::clone(&connection);
    let service = service_fn(move |request: Request<Incoming>| {
        let version = request.version();
        let open = Open::new(&requests, version);
        async move {
            let mut response = answer(Exchange::new(&open), request).await;
            if open.connection.app.is_leaving() && version != Version::HTTP_2 {
                // The client, or the balancer, comes back over a new one, to another server perhaps. None is left then
                // to be closed at the end, while a request is on its way.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| open.answered(body)))
        }
    });
    let mut protocol = Protocol::new(watched, service);

    // Polled once, to leave this task's waker there: a task keeps its waker, and each poll would take a lock that all
    // connections share.
    let mut drain = pin!(app.drain.notified());
    poll_fn(|cx| Poll::Ready(drain.as_mut().poll(cx).is_ready())).await;
    let mut draining = false;
    let mut armed = activity.opened + app.limits.keep_alive_timeout;
    let mut timer = pin!(tokio::time::sleep_until(armed));

    let ended = poll_fn(|cx| {
        loop {
            if !draining && app.is_draining() && !activity.is_fresh() {
                draining = true;
                if activity.phase() == STREAMS {
                    activity.enter(LEAVING, LEAVE_TIMEOUT);
                }
                protocol.graceful_shutdown();
            }
            if let Poll::Ready(ended) = protocol.poll(cx) {
                return Poll::Ready(ended);
            }
            let mut deadline = activity.deadline();
            if !draining && app.is_draining() {
                if !activity.is_fresh() {
                    // Its first request has come just now.
                    continue;
                }
                deadline = Some(activity.opened + FRESH_TIME);
            }
            if let Some(deadline) = deadline.filter(|deadline| *deadline < armed) {
                armed = deadline;
                timer.as_mut().reset(armed);
            }
            ready!(timer.as_mut().poll(cx));
            match deadline {
                Some(deadline) if deadline <= Instant::now() => match activity.phase() {
                    // The request itself says so, in an answer.
                    BODY => activity.enter(LATE, LATE_TIMEOUT),
                    HEADER => return Poll::Ready(Err("the header did not come in time".to_owned())),
                    STREAMS => {
                        // Told first: a client that has just sent a request would not know whether it was read.
                        activity.enter(LEAVING, LEAVE_TIMEOUT);
                        protocol.graceful_shutdown();
                    }
                    _ => return Poll::Ready(Err("idle for too long".to_owned())),
                },
                later => {
                    armed = later.unwrap_or_else(|| Instant::now() + app.limits.keep_alive_timeout);
                    timer.as_mut().reset(armed);
                }
            }
        }
    })
    .await;
    if let Err(reason) = ended {
        tracing::debug!(%peer, reason, "closed the connection");
    }
}
