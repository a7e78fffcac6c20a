//! The phase of a connection and its deadline.
//!
//! A timer per header, body and pause would be set and cancelled with every request. Instead, each phase only stores
//! its deadline. One timer per connection is moved when it fires too early, or when an earlier deadline is stored.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::http::app::Limits;

/// How long a new connection may still send its first request after a shutdown has begun. A browser that has only
/// connected in advance delays the shutdown no longer than this.
pub(super) const FRESH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a request may take to answer that it is late.
const LATE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the client of an idle HTTP/2 connection has for requests that it sent before it received GOAWAY.
const GO_AWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client may take to receive the rest of a streamed answer during a shutdown, or after GOAWAY.
const LAST_FRAME_TIMEOUT: Duration = Duration::from_secs(1);

/// The value of `deadline_ns` that means no deadline.
const NEVER: u64 = u64::MAX;

/// A client can receive an answer and send its next request before the server has dropped the answer. So this many
/// requests beyond the streams of an HTTP/2 connection are not refused.
const UNFINISHED_REQUESTS: u32 = 8;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// No byte has arrived yet.
    Fresh,
    /// Between two requests.
    Idle,
    /// A part of a header has arrived.
    Header,
    /// The body is being read.
    Body,
    /// The request is answered.
    Answer,
    /// The body or the answer is late. The request answers that.
    Late,
    /// The answer is made while it is sent.
    Streaming,
    /// The same, but the server is shutting down.
    LastFrame,
    /// HTTP/2: several requests are open at the same time.
    Streams,
    /// HTTP/2: the client has been sent GOAWAY.
    GoingAway,
}

const PHASES: [Phase; 10] = [
    Phase::Fresh,
    Phase::Idle,
    Phase::Header,
    Phase::Body,
    Phase::Answer,
    Phase::Late,
    Phase::Streaming,
    Phase::LastFrame,
    Phase::Streams,
    Phase::GoingAway,
];

/// What to do at a deadline.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// Poll the request, which answers that it is late.
    AnswerLate,
    /// Send GOAWAY.
    GoAway,
    /// Close the connection, for this reason.
    Close(&'static str),
}

/// The connection's phase and deadline.
///
/// With HTTP/1, almost all accesses come from the task of the connection. With HTTP/2, they come from several tasks,
/// and the connection may notice a change late. So all orderings are Relaxed.
#[derive(Debug)]
pub(super) struct Deadlines {
    opened: Instant,
    limits: Limits,
    phase: AtomicU8,
    /// Nanoseconds after `opened`.
    deadline_ns: AtomicU64,
    /// HTTP/2: number of streams that the connection has reserved.
    streams: AtomicU32,
    /// HTTP/2: number of requests without an answer.
    open_requests: AtomicU32,
    /// HTTP/2: [`Unsent`] in one word, so that the number and the deadline always match.
    unsent_answers: AtomicU64,
    /// HTTP/2: number of streamed answers. Their requests count as open.
    streamed_answers: AtomicU32,
    /// HTTP/2: the streamed answers that wait for the client, as [`Unsent`].
    unread_frames: AtomicU64,
}

/// HTTP/2: the answers that the client has not received completely.
#[derive(Debug, Clone, Copy)]
struct Unsent {
    count: u64,
    /// Milliseconds after `opened`. The client has to receive all answers until then.
    deadline_ms: u64,
}

impl Unsent {
    const COUNT_BITS: u32 = 16;

    fn from_word(word: u64) -> Self {
        Self { count: word & ((1 << Self::COUNT_BITS) - 1), deadline_ms: word >> Self::COUNT_BITS }
    }

    fn to_word(self) -> u64 {
        self.deadline_ms << Self::COUNT_BITS | self.count
    }

    fn of(word: &AtomicU64) -> Self {
        Self::from_word(word.load(Ordering::Relaxed))
    }

    fn update(word: &AtomicU64, change: impl Fn(Self) -> Self) {
        let change = |word| Some(change(Self::from_word(word)).to_word());
        let updated = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        debug_assert!(updated.is_ok(), "each word can be changed");
    }
}

impl Deadlines {
    pub(super) fn new(limits: Limits) -> Self {
        let deadlines = Self {
            opened: Instant::now(),
            limits,
            phase: AtomicU8::new(Phase::Fresh as u8),
            deadline_ns: AtomicU64::new(0),
            streams: AtomicU32::new(0),
            open_requests: AtomicU32::new(0),
            unsent_answers: AtomicU64::new(0),
            streamed_answers: AtomicU32::new(0),
            unread_frames: AtomicU64::new(0),
        };
        deadlines.set_deadline(limits.keep_alive_timeout);
        deadlines
    }

    pub(super) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    /// The deadline. `None` if there is none: HTTP/2 requests without an answer have their own limits, and a streamed
    /// answer has a limit only while it waits for the client.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // After GOAWAY, streamed answers are over as soon as the client reads.
        let streamed = match self.phase() {
            Phase::GoingAway => self.streamed_answers.load(Ordering::Relaxed),
            _ => 0,
        };
        let is_idle = self.open_requests.load(Ordering::Relaxed) <= streamed;
        let idle = is_idle.then(|| self.deadline_ns.load(Ordering::Relaxed)).filter(|ns| *ns != NEVER);
        let idle = idle.map(Duration::from_nanos);
        let unsent = [&self.unsent_answers, &self.unread_frames].map(|word| {
            let unsent = Unsent::of(word);
            (unsent.count > 0).then(|| Duration::from_millis(unsent.deadline_ms))
        });
        self.opened.checked_add(idle.into_iter().chain(unsent.into_iter().flatten()).min()?)
    }

    /// Whether the connection may still send its first request during a shutdown.
    pub(super) fn is_fresh(&self) -> bool {
        self.phase() == Phase::Fresh && self.opened.elapsed() < FRESH_TIMEOUT
    }

    pub(super) fn fresh_deadline(&self) -> Instant {
        self.opened + FRESH_TIMEOUT
    }

    /// Bytes have arrived. If they are the first of a request, the time for its header begins.
    pub(super) fn received(&self) {
        if matches!(self.phase(), Phase::Fresh | Phase::Idle) {
            self.enter(Phase::Header, self.limits.header_timeout);
        }
    }

    /// HTTP/1: the body is about to be read.
    pub(super) fn reading_body(&self) {
        self.enter(Phase::Body, self.limits.body_timeout);
    }

    /// HTTP/1: the request is complete and about to be answered.
    pub(super) fn answering(&self) {
        self.enter(Phase::Answer, self.limits.commit_timeout);
    }

    /// HTTP/1: the answer is complete.
    pub(super) fn answered(&self) {
        // After its last answer, the client gets no more time.
        if self.phase() != Phase::LastFrame {
            self.enter(Phase::Idle, self.limits.keep_alive_timeout);
        }
    }

    /// HTTP/1: the request is complete and gets a streamed answer. If the connection has to end, a short one.
    pub(super) fn streaming(&self, is_leaving: bool) {
        match is_leaving {
            false => self.enter(Phase::Streaming, Duration::MAX),
            true => self.enter(Phase::LastFrame, LAST_FRAME_TIMEOUT),
        }
    }

    /// HTTP/1: the client has to read before the answer can continue.
    pub(super) fn frame_taken(&self) {
        if self.phase() == Phase::Streaming {
            self.set_deadline(self.limits.keep_alive_timeout);
        }
    }

    /// HTTP/1: the client has read, and waits for the answer to continue.
    pub(super) fn frame_wanted(&self) {
        if self.phase() == Phase::Streaming {
            self.set_deadline(Duration::MAX);
        }
    }

    /// HTTP/1: the bytes since the last answer belonged to a discarded body, not to a new request.
    pub(super) fn discarded_body(&self) {
        let (header, idle) = (Phase::Header as u8, Phase::Idle as u8);
        // Only if no request has begun since.
        if self.phase.compare_exchange(header, idle, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.set_deadline(self.limits.keep_alive_timeout);
        }
    }

    /// The connection uses HTTP/2 and has reserved this number of streams.
    pub(super) fn is_http2(&self, streams: u32) {
        self.streams.store(streams, Ordering::Relaxed);
        self.enter(Phase::Streams, self.limits.keep_alive_timeout);
    }

    /// HTTP/2: a request has arrived. Returns whether the streams of the connection suffice. A client exceeds them if it
    /// resets requests faster than the server ends them.
    pub(super) fn stream_opened(&self) -> bool {
        let open = self.open_requests.fetch_add(1, Ordering::Relaxed) + 1;
        u64::from(open) + self.unsent().count <= u64::from(self.streams.load(Ordering::Relaxed) + UNFINISHED_REQUESTS)
    }

    /// HTTP/2: a request is answered or was reset.
    pub(super) fn stream_answered(&self) {
        self.extend_idle_time();
        self.open_requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// HTTP/2: hyper holds an answer until the client accepts it. The first one starts the time for all of them: more
    /// answers do not extend it.
    pub(super) fn answer_held(&self) {
        let deadline_ms = self.opened.elapsed().saturating_add(self.limits.keep_alive_timeout).as_millis() as u64;
        Unsent::update(&self.unsent_answers, |Unsent { count, deadline_ms: earlier }| Unsent {
            count: count + 1,
            deadline_ms: if count == 0 { deadline_ms } else { earlier },
        });
    }

    /// HTTP/2: an answer was sent or dropped.
    pub(super) fn answer_released(&self) {
        Unsent::update(&self.unsent_answers, |unsent| Unsent { count: unsent.count - 1, ..unsent });
        self.extend_idle_time();
    }

    /// HTTP/2: the answer to an open request is streamed.
    pub(super) fn stream_answer_begun(&self) {
        self.streamed_answers.fetch_add(1, Ordering::Relaxed);
    }

    /// HTTP/2: a streamed answer has ended, and its request, too.
    pub(super) fn stream_answer_ended(&self) {
        self.streamed_answers.fetch_sub(1, Ordering::Relaxed);
    }

    /// HTTP/2: the client has to read before a streamed answer can continue. Each frame starts the time anew: a client
    /// that reads one of its answers is not gone.
    pub(super) fn stream_frame_taken(&self) {
        let limit = match self.phase() {
            Phase::GoingAway => LAST_FRAME_TIMEOUT,
            _ => self.limits.keep_alive_timeout,
        };
        let deadline_ms = self.opened.elapsed().saturating_add(limit).as_millis() as u64;
        Unsent::update(&self.unread_frames, |unsent| Unsent { count: unsent.count + 1, deadline_ms });
    }

    /// HTTP/2: the client has read a frame, or will never read it.
    pub(super) fn stream_frame_released(&self) {
        Unsent::update(&self.unread_frames, |unsent| Unsent { count: unsent.count - 1, ..unsent });
    }

    fn unsent(&self) -> Unsent {
        Unsent::of(&self.unsent_answers)
    }

    /// Starts the idle time of an HTTP/2 connection anew. A client that does not read its answers, or that was sent
    /// GOAWAY, gets no more time for further requests.
    fn extend_idle_time(&self) {
        if self.phase() == Phase::Streams && self.unsent().count == 0 {
            self.set_deadline(self.limits.keep_alive_timeout);
        }
    }

    /// The connection accepts no further requests, and streamed answers end.
    pub(super) fn leaving(&self) {
        match self.phase() {
            // GOAWAY is about to be sent.
            Phase::Streams => self.going_away(),
            Phase::Streaming => self.enter(Phase::LastFrame, LAST_FRAME_TIMEOUT),
            _ => {}
        }
    }

    fn going_away(&self) {
        self.enter(Phase::GoingAway, GO_AWAY_TIMEOUT);
        let deadline_ms = (self.opened.elapsed() + LAST_FRAME_TIMEOUT).as_millis() as u64;
        Unsent::update(&self.unread_frames, |unsent| Unsent { deadline_ms, ..unsent });
    }

    /// The deadline has passed. Enters the phase that follows.
    pub(super) fn expired(&self) -> Expired {
        match self.phase() {
            Phase::Body | Phase::Answer => {
                self.enter(Phase::Late, LATE_TIMEOUT);
                Expired::AnswerLate
            }
            // A client that has just sent a request would not know whether it was read, if it got no GOAWAY.
            Phase::Streams => {
                self.going_away();
                let deadline_ms = (self.opened.elapsed() + GO_AWAY_TIMEOUT).as_millis() as u64;
                Unsent::update(&self.unsent_answers, |unsent| Unsent { deadline_ms, ..unsent });
                Expired::GoAway
            }
            Phase::Header => Expired::Close("the header did not arrive in time"),
            Phase::Streaming | Phase::LastFrame => Expired::Close("the client does not read its answer"),
            Phase::Fresh | Phase::Idle | Phase::Late | Phase::GoingAway => Expired::Close("idle for too long"),
        }
    }

    fn enter(&self, phase: Phase, limit: Duration) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.set_deadline(limit);
    }

    fn set_deadline(&self, limit: Duration) {
        let deadline = self.opened.elapsed().saturating_add(limit);
        self.deadline_ns.store(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn http2(streams: u32) -> Deadlines {
        let timeout = Duration::from_secs(60);
        let deadlines = Deadlines::new(Limits {
            max_body_bytes: 1,
            header_timeout: timeout,
            body_timeout: timeout,
            commit_timeout: timeout,
            keep_alive_timeout: timeout,
        });
        deadlines.is_http2(streams);
        deadlines
    }

    #[test]
    fn requests_beyond_the_streams_get_no_permit_once_some_are_unfinished() {
        let deadlines = http2(3);
        deadlines.answer_held();
        let permitted = (0..20).filter(|_| deadlines.stream_opened()).count();
        assert_eq!(permitted as u32, 3 + UNFINISHED_REQUESTS - 1);
        deadlines.answer_released();
        (0..19).for_each(|_| deadlines.stream_answered());
        assert!(deadlines.stream_opened());
    }

    #[test]
    fn the_first_unsent_answer_sets_a_deadline_that_others_and_open_requests_do_not_move() {
        let deadlines = http2(3);
        deadlines.stream_opened();
        assert_eq!(deadlines.deadline(), None);
        deadlines.answer_held();
        let first = deadlines.deadline().unwrap();
        while deadlines.opened.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        deadlines.answer_held();
        deadlines.stream_opened();
        deadlines.stream_answered();
        deadlines.answer_released();
        assert_eq!(deadlines.deadline(), Some(first));
        deadlines.answer_released();
        assert_eq!(deadlines.deadline(), None);
        deadlines.answer_held();
        assert!(deadlines.deadline().unwrap() > first);
    }

    #[test]
    fn a_streamed_answer_over_http_1_has_a_deadline_only_while_it_waits_for_the_client() {
        let deadlines = Deadlines::new(http2(1).limits);
        deadlines.streaming(false);
        assert_eq!(deadlines.deadline(), None);
        deadlines.frame_taken();
        assert!(deadlines.deadline().is_some());
        deadlines.frame_wanted();
        assert_eq!(deadlines.deadline(), None);
        deadlines.leaving();
        let last = deadlines.deadline().unwrap();
        assert!(last <= Instant::now() + LAST_FRAME_TIMEOUT);
        // Neither further frames nor the end give the client more time.
        [Deadlines::frame_taken, Deadlines::frame_wanted, Deadlines::answered].iter().for_each(|call| call(&deadlines));
        assert_eq!(deadlines.deadline(), Some(last));
        assert!(matches!(deadlines.expired(), Expired::Close(_)));
        let late = Deadlines::new(deadlines.limits);
        late.streaming(true);
        assert!(late.deadline().unwrap() <= Instant::now() + LAST_FRAME_TIMEOUT);
    }

    #[test]
    fn a_streamed_answer_over_http_2_has_a_deadline_only_while_it_waits_for_the_client_or_after_goaway() {
        let deadlines = http2(3);
        deadlines.stream_opened();
        deadlines.stream_answer_begun();
        assert_eq!(deadlines.deadline(), None);
        deadlines.stream_frame_taken();
        deadlines.stream_frame_taken();
        deadlines.stream_frame_released();
        assert!(deadlines.deadline().is_some(), "one frame is not read");
        deadlines.stream_frame_released();
        assert_eq!(deadlines.deadline(), None);
        deadlines.leaving();
        assert!(deadlines.deadline().unwrap() <= Instant::now() + GO_AWAY_TIMEOUT);
        // Another request may still take its time.
        deadlines.stream_opened();
        assert_eq!(deadlines.deadline(), None);
        deadlines.stream_frame_taken();
        assert!(deadlines.deadline().unwrap() <= Instant::now() + LAST_FRAME_TIMEOUT);
    }

    #[test]
    fn every_phase_survives_a_round_trip_through_its_number() {
        for phase in PHASES {
            assert_eq!(PHASES[phase as usize], phase);
        }
    }
}
