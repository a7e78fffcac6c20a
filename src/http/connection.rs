//! One connection: hyper's state machine under one watch that keeps all of its time-outs.
//!
//! A timer for each header, body and pause would be set and cancelled with every request. Here each of these only
//! notes its deadline, and one timer for the connection is moved when it fires too early, or when a deadline comes
//! that lies before it.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{App, Limits, answer, http1_builder, proxy_protocol};

/// What a connection is at, and until when it may be.
///
/// All of it is used from the connection's own task, so every ordering is Relaxed; the atomics only make it `Sync`.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    limits: Limits,
    /// Who has connected; if that is a proxy which says so, whose connection it hands on.
    pub(super) peer: IpAddr,
    phase: AtomicU8,
    /// Nanoseconds after `opened`.
    deadline_ns: AtomicU64,
}

/// Nothing has come yet.
const FRESH: u8 = 5;
/// Between two requests.
const IDLE: u8 = 0;
/// Some of a header has come.
const HEADER: u8 = 1;
/// The body is being read.
const BODY: u8 = 2;
/// The body did not come in time.
const LATE: u8 = 3;
/// The request is being answered; that has bounds of its own.
const ANSWER: u8 = 4;

/// How long after it was accepted a connection may still bring its first request to a server that stops: long enough
/// for one that is on its way. A browser that has only connected in advance holds up the stop no longer than this.
const FRESH_TIME: Duration = Duration::from_secs(1);

/// How long a request that is late may take to say so.
const LATE_TIMEOUT: Duration = Duration::from_secs(1);

impl Activity {
    fn new(limits: Limits, peer: IpAddr) -> Self {
        let activity =
            Self { opened: Instant::now(), limits, peer, phase: AtomicU8::new(FRESH), deadline_ns: AtomicU64::new(0) };
        activity.enter(FRESH, limits.keep_alive_timeout);
        activity
    }

    pub(super) fn reads_body(&self, within: Duration) {
        self.enter(BODY, within);
    }

    /// What has been read since the last answer was not the start of a request.
    pub(super) fn idles(&self) {
        self.enter(IDLE, self.limits.keep_alive_timeout);
    }

    pub(super) fn answers(&self) {
        self.phase.store(ANSWER, Ordering::Relaxed);
        self.deadline_ns.store(u64::MAX, Ordering::Relaxed);
    }

    fn is_fresh(&self) -> bool {
        self.phase() == FRESH && self.opened.elapsed() < FRESH_TIME
    }

    pub(super) fn is_late(&self) -> bool {
        self.phase() == LATE
    }

    fn enter(&self, phase: u8, within: Duration) {
        self.phase.store(phase, Ordering::Relaxed);
        let deadline = self.opened.elapsed().saturating_add(within);
        self.deadline_ns.store(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    fn deadline(&self) -> Option<Instant> {
        self.opened.checked_add(Duration::from_nanos(self.deadline_ns.load(Ordering::Relaxed)))
    }
}

/// A socket that notes when the first bytes of a request come.
struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before && matches!(self.activity.phase(), FRESH | IDLE) {
            self.activity.enter(HEADER, self.activity.limits.header_timeout);
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
pub(crate) async fn serve(app: Arc<App>, mut stream: TcpStream, peer: SocketAddr) {
    let address = if app.proxies.speak_proxy && app.proxies.trusted.contain(peer.ip().to_canonical()) {
        match timeout(app.limits.header_timeout, proxy_protocol::read(&mut stream)).await {
            Ok(Ok(client)) => client.unwrap_or(peer.ip()),
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "closed the connection"),
            Err(_) => return tracing::debug!(%peer, reason = "no PROXY header came in time", "closed the connection"),
        }
    } else {
        peer.ip()
    };
    let activity = Arc::new(Activity::new(app.limits, address));
    let io = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
    let (app, activity) = (&app, &activity);
    let service = service_fn(|request| async move {
        let response = answer(app, activity, request).await;
        activity.idles();
        Ok::<_, Infallible>(response)
    });
    let mut connection = pin!(http1_builder().serve_connection(io, service));

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
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(ended.map_err(|error| error.to_string()));
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
