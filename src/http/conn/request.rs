//! One request, as its connection sees it: permit, time limits, end.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::Version;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep, timeout};

use super::connection::Connection;
use super::deadlines::Phase;
use super::stream_writer::StreamWriter;
use crate::http::response::ResponseBody;

/// How much of a refused body is read and discarded, and for how long.
const DISCARD_BYTES: usize = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// How much a short piece of a discarded body counts, because each piece costs time.
const MIN_DISCARD_BYTES: usize = 256;

/// An open request. Dropping it tells the connection that the request has ended.
#[derive(Debug)]
pub(super) struct RequestGuard {
    pub(super) connection: Arc<Connection>,
    is_http2: bool,
    /// Whether the connection has reserved memory for this request.
    has_permit: bool,
}

impl RequestGuard {
    pub(super) fn new(connection: &Arc<Connection>, version: Version) -> Self {
        let is_http2 = version == Version::HTTP_2;
        let has_permit = !is_http2 || connection.deadlines.stream_opened();
        Self { connection: Arc::clone(connection), is_http2, has_permit }
    }

    /// The body of the answer. Over HTTP/2, the client may refuse to receive it. So a request without a permit gets no
    /// body.
    pub(super) fn answer_body(self, body: ResponseBody) -> AnswerBody {
        match (&body, self.is_http2, self.has_permit) {
            (_, true, false) => AnswerBody { body: ResponseBody::default(), held: Held::Nothing },
            (ResponseBody::Streamed(_), ..) => AnswerBody { body, held: Held::Request(OpenAnswer::new(self)) },
            (ResponseBody::Whole(_), false, _) => AnswerBody { body, held: Held::Nothing },
            (ResponseBody::Whole(_), true, true) => {
                AnswerBody { body, held: Held::Unsent { _answer: Unsent::new(Arc::clone(&self.connection)) } }
            }
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        match self.is_http2 {
            false => self.connection.deadlines.answered(),
            true => self.connection.deadlines.stream_answered(),
        }
    }
}

/// The body of an answer. hyper holds it until the client has received all of it.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: ResponseBody,
    held: Held,
}

// hyper moves it several times with each answer.
const _: () = assert!(size_of::<AnswerBody>() <= 64);

/// What the connection has to know until the body is sent.
#[derive(Debug)]
enum Held {
    Nothing,
    /// Dropped with the body.
    Unsent {
        _answer: Unsent,
    },
    /// The request of a streamed answer is open until its end.
    Request(OpenAnswer),
}

/// A streamed answer.
#[derive(Debug)]
struct OpenAnswer {
    request: RequestGuard,
    /// hyper has taken a frame and not asked for the next one: it waits for the client.
    is_waiting: bool,
}

impl OpenAnswer {
    fn new(request: RequestGuard) -> Self {
        if request.is_http2 {
            request.connection.deadlines.stream_answer_begun();
        }
        Self { request, is_waiting: false }
    }

    fn wait(&mut self, is_waiting: bool) {
        let deadlines = &self.request.connection.deadlines;
        match (self.is_waiting, is_waiting, self.request.is_http2) {
            (false, true, false) => deadlines.frame_taken(),
            (true, false, false) => deadlines.frame_wanted(),
            (false, true, true) => deadlines.stream_frame_taken(),
            (true, false, true) => deadlines.stream_frame_released(),
            (false, false, _) | (true, true, _) => {}
        }
        self.is_waiting = is_waiting;
    }
}

impl Drop for OpenAnswer {
    fn drop(&mut self) {
        self.wait(false);
        if self.request.is_http2 {
            self.request.connection.deadlines.stream_answer_ended();
        }
    }
}

/// HTTP/2: an answer that the client has not received completely.
#[derive(Debug)]
struct Unsent(Arc<Connection>);

impl Unsent {
    fn new(connection: Arc<Connection>) -> Self {
        connection.deadlines.answer_held();
        Self(connection)
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.0.deadlines.answer_released();
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        // hyper asks for a frame when the client has read most of the frames before it.
        if let Held::Request(answer) = &mut self.held {
            answer.wait(false);
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Held::Request(answer) = &mut self.held {
            answer.wait(matches!(frame, Poll::Ready(Some(Ok(_)))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// One request, as its route sees its connection.
#[derive(Debug)]
pub(in crate::http) struct RequestContext<'a> {
    pub(in crate::http) connection: &'a Arc<Connection>,
    is_http2: bool,
    has_permit: bool,
    /// HTTP/2: the time limit of the current step, and its timer, which exists once the request has to wait.
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<'a> RequestContext<'a> {
    pub(super) fn new(RequestGuard { connection, is_http2, has_permit }: &'a RequestGuard) -> Self {
        Self { connection, is_http2: *is_http2, has_permit: *has_permit, limit: Duration::ZERO, timer: None }
    }

    /// Whether the server permits this request beside all the others.
    pub(in crate::http) fn has_permit(&self) -> bool {
        self.has_permit
    }

    /// Starts the time for the body.
    pub(in crate::http) fn start_body(&mut self) {
        match self.is_http2 {
            false => self.connection.deadlines.reading_body(),
            true => self.start_timer(self.connection.app.limits.body_timeout),
        }
    }

    /// Starts the time for the answer.
    pub(in crate::http) fn start_answer(&mut self) {
        match self.is_http2 {
            false => self.connection.deadlines.answering(),
            true => self.start_timer(self.connection.app.limits.commit_timeout),
        }
    }

    /// The request is complete, and its answer may take any time. While it does, a client that closes its sending side
    /// counts as gone.
    pub(in crate::http) fn start_stream(&self) {
        if !self.is_http2 {
            self.connection.deadlines.streaming(self.connection.left.is_set());
        }
    }

    /// A body that is made while it is sent, and its writer. `bytes` is its length, if that is known.
    pub(in crate::http) fn stream(&self, bytes: Option<u64>) -> (StreamWriter, ResponseBody) {
        StreamWriter::new(Arc::clone(self.connection), bytes)
    }

    /// Resolves when the connection has to end: a streamed answer is to end, too.
    pub(in crate::http) async fn left(&self) {
        self.connection.left.wait().await;
    }

    fn start_timer(&mut self, limit: Duration) {
        (self.limit, self.timer) = (limit, None);
    }

    /// Runs `work` within the time of the current step. Returns `None` if the time is over.
    pub(in crate::http) async fn in_time<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.is_late(cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Whether the time of the current step is over. The task is polled at the deadline.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_http2 {
            return self.connection.deadlines.phase() == Phase::Late;
        }
        let limit = self.limit;
        self.timer.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx).is_ready()
    }

    /// Discards the rest of a refused body. The answer is sent at once. But a client that is still sending would not
    /// read the answer if the connection were closed, so the body is read for a while.
    pub(in crate::http) fn discard(&self, body: Incoming) {
        // HTTP/2 tells the client to stop sending.
        if !self.is_http2 {
            tokio::spawn(timeout(DISCARD_TIMEOUT, discard(body, Arc::clone(self.connection))));
        }
    }
}

/// Reads and discards at most [`DISCARD_BYTES`].
async fn discard(mut body: Incoming, connection: Arc<Connection>) {
    let mut left = DISCARD_BYTES;
    // Checked before each frame: hyper reports the end of a body as a frame only when the next request arrives.
    while !body.is_end_stream() {
        let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else { break };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len).max(MIN_DISCARD_BYTES)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
    connection.deadlines.discarded_body();
}
