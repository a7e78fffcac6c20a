//! A client with minimal CPU usage: one thread, two system calls per request.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use memchr::memmem;
use mio::event::Event;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::time::ClockId;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::common::Reports;
use crate::{ANSWER, Result};

/// More than one batch of netwatch-server, so that no batch contains the same report twice.
const POOL_BYTES: usize = 16 << 20;

/// More than the longest answer. A read that does not fill this buffer has emptied the socket.
const READ_BYTES: usize = 16 << 10;

const TIMER: Token = Token(usize::MAX);

/// The client wakes no more often than this to send requests that are due.
const MIN_TICK: Duration = Duration::from_micros(100);

const HEAD_END: &[u8] = b"\r\n\r\n";

/// If no connection receives an answer for this long, the server hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Prepared requests, used in a cycle.
pub(crate) struct Requests {
    bytes: Vec<u8>,
    /// The end offset of each request.
    ends: Vec<usize>,
    next: usize,
}

impl Requests {
    pub(crate) fn new(report_bytes: usize) -> Self {
        let mut reports = Reports::new(report_bytes as u64);
        let mut requests = Self { bytes: Vec::with_capacity(POOL_BYTES), ends: Vec::new(), next: 0 };
        while requests.bytes.len() < POOL_BYTES {
            let report = reports.report(report_bytes);
            let head = format!(
                "POST /api/v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n",
                report.len()
            );
            requests.bytes.extend(head.as_bytes());
            requests.bytes.extend(report);
            requests.ends.push(requests.bytes.len());
        }
        requests
    }

    fn next(&mut self) -> Range<usize> {
        let start = self.next.checked_sub(1).map_or(0, |previous| self.ends[previous]);
        let end = self.ends[self.next];
        self.next = (self.next + 1) % self.ends.len();
        start..end
    }
}

/// The measurements of one `drive`.
pub(crate) struct Load {
    /// The number of requests. All of them were answered with 200.
    pub(crate) answered: u64,
    /// The number of answers before the deadline: all except the last one of each connection.
    pub(crate) answered_in_time: u64,
    /// In nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// From the first request to the last answer.
    pub(crate) wall_time: Duration,
    /// The CPU time of the client in that time.
    pub(crate) cpu_time: Duration,
}

/// Keep-alive connections, each with at most one request in flight.
pub(crate) struct Client<'a> {
    poll: Poll,
    connections: Vec<Connection>,
    requests: &'a mut Requests,
}

impl<'a> Client<'a> {
    pub(crate) fn connect(address: SocketAddr, connections: usize, requests: &'a mut Requests) -> Result<Self> {
        let poll = Poll::new()?;
        let connections = (0..connections)
            .map(|index| {
                let stream = std::net::TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                let mut stream = TcpStream::from_std(stream);
                poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
                Ok(Connection { stream, sent_at: Instant::now(), unsent: 0..0, received: Vec::new() })
            })
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|error| format!("connecting to {address}: {error}"))?;
        Ok(Self { poll, connections, requests })
    }

    /// Sends requests for this long, then waits for the remaining answers. Without a `rate`, each connection sends its next
    /// request when it has the answer to the last one. With a `rate`, in requests per second, requests are due at fixed
    /// times, whatever the server does. If no connection is free then, a request is sent later, but its latency counts
    /// from the time when it was due.
    ///
    /// # Errors
    ///
    /// Fails on any answer that is not complete, or does not have status 200 and the expected body.
    pub(crate) fn drive(&mut self, time: Duration, rate: Option<u32>) -> Result<Load> {
        let Self { poll, connections, requests } = self;
        let mut events = Events::with_capacity(1024);
        let mut scratch = [0; READ_BYTES];
        let mut latency = Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?;
        let (mut answered, mut answered_in_time) = (0, 0);
        let (start, cpu_start) = (Instant::now(), thread_cpu_time()?);
        let deadline = start + time;

        let mut schedule = rate.map(|rate| Schedule::start(poll, start, rate)).transpose()?;
        let mut idle: Vec<usize> = (0..connections.len()).collect();
        let mut in_flight = 0;
        loop {
            while let Some(&connection) = idle.last()
                && let Some(due) = match &mut schedule {
                    None => Some(Instant::now()).filter(|now| *now < deadline),
                    Some(schedule) => schedule.next_due(deadline),
                }
            {
                idle.pop();
                in_flight += 1;
                connections[connection].send(requests, due)?;
            }
            if in_flight == 0 && Instant::now() >= deadline {
                break;
            }
            match poll.poll(&mut events, Some(PATIENCE)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            if events.is_empty() {
                return Err(format!("no answer to {in_flight} requests within {PATIENCE:?}").into());
            }
            for event in &events {
                if event.token() == TIMER {
                    schedule.iter().try_for_each(Schedule::clear)?;
                    continue;
                }
                let connection = &mut connections[event.token().0];
                if !connection.progress(event, &requests.bytes, &mut scratch)? {
                    continue;
                }
                let now = Instant::now();
                in_flight -= 1;
                latency.saturating_record((now - connection.sent_at).as_nanos() as u64);
                answered += 1;
                answered_in_time += u64::from(now < deadline);
                if schedule.is_none() && now < deadline {
                    in_flight += 1;
                    connection.send(requests, now)?;
                } else {
                    idle.push(event.token().0);
                }
            }
        }
        let cpu_time = thread_cpu_time()? - cpu_start;
        Ok(Load { answered, answered_in_time, latency, wall_time: start.elapsed(), cpu_time })
    }
}

fn thread_cpu_time() -> Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

/// The times at which requests are due.
struct Schedule {
    start: Instant,
    interval: Duration,
    sent: u32,
    /// Wakes the client. The timeout of `poll` counts whole milliseconds.
    timer: OwnedFd,
}

impl Schedule {
    fn start(poll: &Poll, start: Instant, rate: u32) -> Result<Self> {
        let interval = Duration::from_secs(1) / rate;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let tick = interval.max(MIN_TICK);
        let tick = Timespec { tv_sec: tick.as_secs().cast_signed(), tv_nsec: tick.subsec_nanos().into() };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: tick, it_value: tick })?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        Ok(Self { start, interval, sent: 0, timer })
    }

    /// When the next request was due. `None` if it is not due yet, or is due after the deadline.
    fn next_due(&mut self, deadline: Instant) -> Option<Instant> {
        let due = self.start + self.interval * self.sent;
        let is_due = due <= Instant::now() && due < deadline;
        self.sent += u32::from(is_due);
        is_due.then_some(due)
    }

    fn clear(&self) -> Result<()> {
        match rustix::io::read(&self.timer, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

struct Connection {
    stream: TcpStream,
    sent_at: Instant,
    /// The part of the pool that is not yet written to the socket.
    unsent: Range<usize>,
    /// The beginning of an answer that arrives in several pieces.
    received: Vec<u8>,
}

impl Connection {
    fn send(&mut self, requests: &mut Requests, now: Instant) -> Result<()> {
        self.sent_at = now;
        self.unsent = requests.next();
        self.write(&requests.bytes)
    }

    /// Usually one write. If the socket buffer is full, the rest is sent when the socket is writable.
    fn write(&mut self, pool: &[u8]) -> Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&pool[self.unsent.clone()]) {
                Ok(written_bytes) => self.unsent.start += written_bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("sending a request: {error}").into()),
            }
        }
        Ok(())
    }

    /// Writes and reads as the event allows. Returns whether the answer is complete.
    fn progress(&mut self, event: &Event, pool: &[u8], scratch: &mut [u8; READ_BYTES]) -> Result<bool> {
        self.write(pool)?;
        Ok(event.is_readable() && self.read(scratch)?)
    }

    /// Reads once. A second read is not necessary: the first one did not fill the buffer, so the socket is empty, and
    /// later data causes another event.
    fn read(&mut self, scratch: &mut [u8; READ_BYTES]) -> Result<bool> {
        let read_bytes = match self.stream.read(scratch) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(read_bytes) => read_bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(format!("reading an answer: {error}").into()),
        };
        let piece = &scratch[..read_bytes];
        if self.received.is_empty() && is_whole(piece)? {
            return Ok(true);
        }
        self.received.extend(piece);
        let whole = is_whole(&self.received)?;
        if whole {
            self.received.clear();
        }
        Ok(whole)
    }
}

/// Whether this is a complete answer, and not only its beginning.
fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(head_bytes) = memmem::find(answer, HEAD_END) else {
        return Ok(false);
    };
    let (head, body) = (&answer[..head_bytes], &answer[head_bytes + HEAD_END.len()..]);
    // Builds before 0.1.0 end the answer without a newline.
    let expected = if content_length(head) == Some(ANSWER.len()) { ANSWER } else { ANSWER.trim_end() };
    if head.starts_with(b"HTTP/1.1 200 ")
        && content_length(head) == Some(expected.len())
        && expected.as_bytes().starts_with(body)
    {
        Ok(body.len() == expected.len())
    } else {
        Err(format!("unexpected answer to a report:\n{}", String::from_utf8_lossy(answer)).into())
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let value = head.split(|&byte| byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    })?;
    str::from_utf8(value).ok()?.trim().parse().ok()
}
